#include "fair_queue.hpp"

#include <algorithm>

#include "../base/assert.hpp"

namespace saga {

namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr std::uint64_t kLargestCost = std::uint64_t{1} << 40;
constexpr std::uint32_t kLargestWeight = 1u << 20;
constexpr std::uint64_t kUrgencyOne = std::uint64_t{1} << 32;

// Keys of calls within a tenant: new workflows after running ones, what has no attainable deadline after what has.
constexpr std::uint64_t kAdmissionBit = std::uint64_t{1} << 63;
constexpr std::uint64_t kByWorkBit = std::uint64_t{1} << 62;
constexpr std::uint64_t kWorkMask = kByWorkBit - 1;
// Keys of eligible tenants: those with urgency below this, largest first, the others from here by remaining work.
constexpr std::uint64_t kNoUrgency = std::uint64_t{1} << 63;

std::uint64_t urgency_in(std::uint64_t key) { return (key & kByWorkBit) != 0 ? 0 : kUrgencyOne - (key & kWorkMask); }

}  // namespace

Status FairQueue::check(const FairOptions& options) {
  const bool valid = options.tenants >= 1 && options.tenants < (1u << 30) && options.entries >= 1 &&
                     options.entries < (1u << 30) && options.largest_grant >= 1 &&
                     options.largest_grant <= kLargestCost && options.lag_bound <= options.largest_grant &&
                     options.default_work >= 1 && options.oldest_every >= 1 && options.epoch >= 1 &&
                     options.evaluations >= 1;
  return valid ? Status::kOk : Status::kInvalidArgument;
}

FairQueue::FairQueue(const FairOptions& options)
    : options_(options),
      tenants_(options.tenants),
      entries_(options.entries),
      nodes_(options.entries),
      timeline_(options.tenants),
      eligible_(options.tenants),
      urgent_(options.tenants) {
  SAGA_ASSERT(check(options) == Status::kOk);
  if (options_.lag_bound == 0) options_.lag_bound = options_.largest_grant;
  if (options_.entries_per_tenant == 0) options_.entries_per_tenant = options_.entries;
  free_.reserve(options_.entries);
  dated_.reserve(options_.tenants);
  for (FairEntry entry = options_.entries; entry-- > 0;) free_.push_back(entry);
  for (Tenant& tenant : tenants_) set_spans(tenant);
}

std::uint64_t FairQueue::service(std::uint64_t gpu_microseconds, std::uint64_t kv_byte_microseconds) const {
  if (options_.byte_seconds_per_gpu_second == 0) return gpu_microseconds;
  return gpu_microseconds + kv_byte_microseconds / options_.byte_seconds_per_gpu_second;
}

std::uint64_t FairQueue::urgency(std::uint64_t work, Time deadline, Time now) const {
  if (deadline == kNotDeclared || deadline <= now) return 0;
  if (work == kFairWorkUnknown) work = options_.default_work;
  if (work == 0) work = 1;
  const std::uint64_t slack = deadline - now;
  if (work > slack) return 0;
  const std::uint64_t value =
      work < kUrgencyOne ? (work << 32) / slack : static_cast<std::uint64_t>((static_cast<Wide>(work) << 32) / slack);
  return std::max<std::uint64_t>(value, 1);
}

std::uint64_t FairQueue::key(const FairCall& call, Time now) const {
  const std::uint64_t urgent = urgency(call.work, call.deadline, now);
  std::uint64_t key = kUrgencyOne - urgent;
  if (urgent == 0) {
    const std::uint64_t work = call.work == kFairWorkUnknown ? options_.default_work : call.work;
    key = kByWorkBit | std::min(work, kWorkMask);
  }
  return call.kind == FairClass::kAdmission ? key | kAdmissionBit : key;
}

Status FairQueue::push(const FairCall& call, Time now, FairEntry* out) {
  if (call.tenant >= options_.tenants || call.cost > options_.largest_grant) return Status::kInvalidArgument;
  Tenant& tenant = tenants_[call.tenant];
  if (free_.empty() || tenant.waiting >= options_.entries_per_tenant) return Status::kFull;
  const FairEntry id = free_.back();
  free_.pop_back();
  entries_[id] = {call, now, true};
  Node& node = nodes_[id];
  node.sequence = ++sequence_;
  node.older = tenant.newest;
  node.newer = kNone;
  (tenant.newest == kNone ? tenant.oldest : nodes_[tenant.newest].newer) = id;
  tenant.newest = id;
  node.key = key(call, now);
  heap_insert(tenant, id);
  if (urgency_in(node.key) > 0) change_urgency(call.tenant, urgency_in(node.key));
  ++size_;
  if (tenant.waiting++ == 0) {
    start_at_clock(tenant);
    classify(call.tenant);
  } else if (tenant.state == State::kEligible) {
    set_eligible_key(call.tenant);
  }
  *out = id;
  return Status::kOk;
}

void FairQueue::remove(FairEntry id) {
  const TenantId owner = entries_[id].call.tenant;
  Tenant& tenant = tenants_[owner];
  unlink(owner, id);
  if (tenant.waiting == 0) {
    classify(owner);
  } else if (tenant.state == State::kEligible) {
    set_eligible_key(owner);
  }
}

void FairQueue::update(FairEntry id, std::uint64_t work, Time now) {
  Entry& entry = entries_[id];
  SAGA_ASSERT(entry.live);
  Tenant& tenant = tenants_[entry.call.tenant];
  heap_erase(tenant, id);
  const std::uint64_t before = urgency_in(nodes_[id].key);
  entry.call.work = work;
  nodes_[id].key = key(entry.call, now);
  change_urgency(entry.call.tenant, urgency_in(nodes_[id].key) - before);
  heap_insert(tenant, id);
  if (tenant.state == State::kEligible) set_eligible_key(entry.call.tenant);
}

void FairQueue::correct(TenantId id, std::int64_t delta) {
  Tenant& tenant = tenants_[id];
  tenant.served += delta;
  if (delta <= 0) {
    tenant.credit += static_cast<std::uint64_t>(-delta);
    return;
  }
  const std::uint64_t paid = std::min(tenant.credit, static_cast<std::uint64_t>(delta));
  tenant.credit -= paid;
  const std::uint64_t due = static_cast<std::uint64_t>(delta) - paid;
  if (due == 0) return;
  // Time in which nothing waited does not pay for what runs now.
  if (tenant.waiting == 0) start_at_clock(tenant);
  raise_tag(tenant, due);
  classify(id);
}

void FairQueue::set_weight(TenantId id, std::uint32_t weight) {
  SAGA_ASSERT(weight >= 1 && weight <= kLargestWeight);
  Tenant& tenant = tenants_[id];
  const std::uint64_t deadline = tenant.tag + tenant.lag_span + tenant.grant_span;
  const bool active = tenant.state != State::kInactive;
  if (active) active_weight_ += std::uint64_t{weight} - tenant.weight;
  tenant.weight = weight;
  tenant.remainder = 0;
  set_spans(tenant);
  if (!active) return;
  const std::uint64_t spans = tenant.lag_span + tenant.grant_span;
  if (deadline > spans) tenant.tag = std::max(tenant.tag, deadline - spans);
  classify(id);
}

bool FairQueue::should_preempt(FairEntry waiting, std::uint64_t running_work, Time running_deadline, Time now) const {
  const Entry& entry = entries_[waiting];
  SAGA_ASSERT(entry.live);
  if (now < entry.since || now - entry.since <= options_.preempt_after) return false;
  if (tenants_[entry.call.tenant].state == State::kAhead) return false;
  const Wide mine = urgency(entry.call.work, entry.call.deadline, now);
  const Wide theirs = urgency(running_work, running_deadline, now);
  return mine > theirs * options_.preempt_ratio;
}

void FairQueue::refresh(Time now) {
  const std::uint64_t epoch = now / options_.epoch;
  if (epoch == epoch_) return;
  epoch_ = epoch;
  std::uint32_t evaluated = 0;
  for (std::size_t left = dated_.size(); left > 0 && evaluated < options_.evaluations; --left) {
    if (sweep_ >= dated_.size()) sweep_ = 0;
    const TenantId id = dated_[sweep_];
    Tenant& tenant = tenants_[id];
    std::uint64_t urgency = 0;
    tenant.root = kNone;
    for (FairEntry next = tenant.oldest; next != kNone; next = nodes_[next].newer) {
      nodes_[next].key = key(entries_[next].call, now);
      heap_insert(tenant, next);
      urgency += urgency_in(nodes_[next].key);
    }
    evaluated += tenant.waiting;
    change_urgency(id, urgency - tenant.urgency);
    if (tenant.state == State::kEligible) set_eligible_key(id);
    // A tenant without a deadline that can be met has left dated_; another stands in its place.
    if (urgency > 0) ++sweep_;
  }
}

void FairQueue::change_urgency(TenantId id, std::uint64_t difference) {
  Tenant& tenant = tenants_[id];
  tenant.urgency += difference;  // modulo 2^64: it may be negative
  total_urgency_ += difference;
  const bool dated = tenant.dated_place != kNone;
  if (dated == (tenant.urgency > 0)) return;
  if (!dated) {
    tenant.dated_place = static_cast<std::uint32_t>(dated_.size());
    dated_.push_back(id);
    return;
  }
  const TenantId last = dated_.back();
  dated_[tenant.dated_place] = last;
  tenants_[last].dated_place = tenant.dated_place;
  dated_.pop_back();
  tenant.dated_place = kNone;
}

std::int64_t FairQueue::lag(TenantId id) const {
  const Tenant& tenant = tenants_[id];
  if (tenant.state == State::kInactive) return 0;
  const auto distance = static_cast<std::int64_t>(now_virtual_ - tenant.tag);
  return distance * static_cast<std::int64_t>(tenant.weight) / (std::int64_t{1} << kShift);
}

double FairQueue::share(TenantId id) const {
  if (total_urgency_ == 0) return 0.0;
  return static_cast<double>(tenants_[id].urgency) / static_cast<double>(total_urgency_);
}

// Every waiting tenant is ahead of its share: nobody's share is hurt if the clock goes on to the first of them.
void FairQueue::make_eligible() {
  if (size_ == 0) return;
  while (urgent_.empty() && eligible_.empty()) {
    now_virtual_ = std::max(now_virtual_, timeline_.top_key());
    classify(timeline_.top());
  }
}

void FairQueue::grant(FairEntry entry) {
  const TenantId id = entries_[entry].call.tenant;
  Tenant& tenant = tenants_[id];
  const std::uint64_t cost = entries_[entry].call.cost;
  tenant.since_oldest = entry == tenant.oldest ? 0 : tenant.since_oldest + 1;
  unlink(id, entry);
  tenant.served += static_cast<std::int64_t>(cost);
  const std::uint64_t paid = std::min(tenant.credit, cost);
  tenant.credit -= paid;
  const std::uint64_t due = cost - paid;
  raise_tag(tenant, due);
  if (tenant.waiting > 0) {
    classify(id);
    advance(due);
    return;
  }
  // The tenant counts as active until the clock has moved, wherever its tag lies.
  leave_heaps(id);
  tenant.state = State::kAbsent;
  advance(due);
  classify(id);
}

// Shares the service among the active tenants: moves the clock, exactly, through all changes of state on its way.
void FairQueue::advance(std::uint64_t service) {
  std::uint64_t budget = (service << kShift) + carry_;
  std::uint64_t start = now_virtual_;
  std::uint64_t target = start + budget / active_weight_;
  while (!timeline_.empty() && timeline_.top_key() <= target) {
    const std::uint64_t weight = active_weight_;
    now_virtual_ = std::max(now_virtual_, timeline_.top_key());
    classify(timeline_.top());
    if (active_weight_ == weight) continue;
    budget -= (now_virtual_ - start) * weight;
    start = now_virtual_;
    target = start + budget / active_weight_;
  }
  carry_ = budget - (target - start) * active_weight_;
  now_virtual_ = target;
}

void FairQueue::raise_tag(Tenant& tenant, std::uint64_t service) {
  const std::uint64_t total = (service << kShift) + tenant.remainder;
  const std::uint64_t step = total / tenant.weight;
  tenant.tag += step;
  tenant.remainder = static_cast<std::uint32_t>(total - step * tenant.weight);
}

void FairQueue::start_at_clock(Tenant& tenant) {
  if (tenant.state != State::kInactive && tenant.tag >= now_virtual_) return;
  tenant.tag = now_virtual_;
  tenant.remainder = 0;
}

void FairQueue::set_spans(Tenant& tenant) const {
  tenant.lag_span = (options_.lag_bound << kShift) / tenant.weight;
  tenant.grant_span = (options_.largest_grant << kShift) / tenant.weight + 1;
}

// Puts the tenant into the state that its tag, the clock and what waits make it, and into the heaps of that state.
void FairQueue::classify(TenantId id) {
  Tenant& tenant = tenants_[id];
  const State old = tenant.state;
  const std::uint64_t release = tenant.tag + tenant.lag_span;
  State state = State::kInactive;
  if (tenant.waiting == 0) {
    if (now_virtual_ < release) state = State::kAbsent;
  } else if (tenant.tag > now_virtual_) {
    state = State::kAhead;
  } else {
    state = now_virtual_ < release ? State::kEligible : State::kUrgent;
  }
  if (old == State::kEligible && state != State::kEligible) eligible_.erase(id);
  if (old == State::kUrgent && state != State::kUrgent) urgent_.erase(id);
  if (state == State::kInactive || state == State::kUrgent) {
    if (timeline_.contains(id)) timeline_.erase(id);
  } else {
    timeline_.set(id, state == State::kAhead ? tenant.tag : release);
  }
  tenant.state = state;
  if (state == State::kEligible) set_eligible_key(id);
  if (state == State::kUrgent) urgent_.set(id, release + tenant.grant_span);
  if (old == State::kInactive && state != State::kInactive) active_weight_ += tenant.weight;
  if (old != State::kInactive && state == State::kInactive) active_weight_ -= tenant.weight;
}

void FairQueue::leave_heaps(TenantId id) {
  if (timeline_.contains(id)) timeline_.erase(id);
  if (eligible_.contains(id)) eligible_.erase(id);
  if (urgent_.contains(id)) urgent_.erase(id);
}

void FairQueue::set_eligible_key(TenantId id) {
  const Tenant& tenant = tenants_[id];
  eligible_.set(id,
                tenant.urgency > 0 ? kNoUrgency - tenant.urgency : kNoUrgency + (nodes_[tenant.root].key & kWorkMask));
}

void FairQueue::unlink(TenantId id, FairEntry which) {
  Tenant& tenant = tenants_[id];
  SAGA_ASSERT(entries_[which].live);
  heap_erase(tenant, which);
  const Node& node = nodes_[which];
  (node.older == kNone ? tenant.oldest : nodes_[node.older].newer) = node.newer;
  (node.newer == kNone ? tenant.newest : nodes_[node.newer].older) = node.older;
  if (urgency_in(node.key) > 0) change_urgency(id, std::uint64_t{0} - urgency_in(node.key));
  entries_[which].live = false;
  --tenant.waiting;
  --size_;
  free_.push_back(which);
}

bool FairQueue::before(FairEntry a, FairEntry b) const {
  const Node& left = nodes_[a];
  const Node& right = nodes_[b];
  return left.key != right.key ? left.key < right.key : left.sequence < right.sequence;
}

// A pairing heap in the entries themselves: tenants share the memory, and merging is a few stores.
FairEntry FairQueue::meld(FairEntry a, FairEntry b) {
  if (before(b, a)) std::swap(a, b);
  Node& parent = nodes_[a];
  Node& child = nodes_[b];
  child.sibling = parent.child;
  if (parent.child != kNone) nodes_[parent.child].parent = b;
  child.parent = a;
  parent.child = b;
  return a;
}

FairEntry FairQueue::merge_children(FairEntry id) {
  FairEntry next = nodes_[id].child;
  nodes_[id].child = kNone;
  FairEntry pairs = kNone;  // linked by sibling, last pair first
  while (next != kNone) {
    const FairEntry first = next;
    const FairEntry second = nodes_[first].sibling;
    next = second == kNone ? kNone : nodes_[second].sibling;
    nodes_[first].sibling = kNone;
    FairEntry pair = first;
    if (second != kNone) {
      nodes_[second].sibling = kNone;
      pair = meld(first, second);
    }
    nodes_[pair].sibling = pairs;
    pairs = pair;
  }
  FairEntry root = kNone;
  while (pairs != kNone) {
    const FairEntry rest = nodes_[pairs].sibling;
    nodes_[pairs].sibling = kNone;
    root = root == kNone ? pairs : meld(root, pairs);
    pairs = rest;
  }
  if (root != kNone) nodes_[root].parent = kNone;
  return root;
}

void FairQueue::heap_insert(Tenant& tenant, FairEntry id) {
  Node& entry = nodes_[id];
  entry.child = entry.sibling = entry.parent = kNone;
  tenant.root = tenant.root == kNone ? id : meld(tenant.root, id);
}

void FairQueue::heap_erase(Tenant& tenant, FairEntry id) {
  Node& entry = nodes_[id];
  const FairEntry children = merge_children(id);
  if (tenant.root == id) {
    tenant.root = children;
    return;
  }
  Node& previous = nodes_[entry.parent];
  (previous.child == id ? previous.child : previous.sibling) = entry.sibling;
  if (entry.sibling != kNone) nodes_[entry.sibling].parent = entry.parent;
  if (children != kNone) tenant.root = meld(tenant.root, children);
}

bool FairQueue::verify() const {
  std::uint64_t weight = 0;
  std::uint64_t urgency = 0;
  std::uint32_t waiting = 0;
  for (TenantId id = 0; id < options_.tenants; ++id) {
    const Tenant& tenant = tenants_[id];
    const std::uint64_t release = tenant.tag + tenant.lag_span;
    const State state = tenant.state;
    if ((tenant.waiting > 0) == (state == State::kInactive || state == State::kAbsent)) return false;
    if (state == State::kAbsent && now_virtual_ >= release) return false;
    if (tenant.waiting > 0) {
      const State expected = tenant.tag > now_virtual_ ? State::kAhead
                             : now_virtual_ < release  ? State::kEligible
                                                       : State::kUrgent;
      if (state != expected) return false;
    }
    if (eligible_.contains(id) != (state == State::kEligible)) return false;
    if (urgent_.contains(id) != (state == State::kUrgent)) return false;
    if (timeline_.contains(id) != (state == State::kAbsent || state == State::kAhead || state == State::kEligible))
      return false;
    if (timeline_.contains(id) && timeline_.key(id) != (state == State::kAhead ? tenant.tag : release)) return false;
    if (urgent_.contains(id) && urgent_.key(id) != release + tenant.grant_span) return false;
    if (tenant.remainder >= tenant.weight) return false;
    if (state != State::kInactive) weight += tenant.weight;

    std::uint32_t count = 0;
    std::uint64_t sum = 0;
    FairEntry older = kNone;
    for (FairEntry next = tenant.oldest; next != kNone; next = nodes_[next].newer) {
      const Node& node = nodes_[next];
      if (!entries_[next].live || entries_[next].call.tenant != id || node.older != older || ++count > tenant.waiting)
        return false;
      if (older != kNone && nodes_[older].sequence >= node.sequence) return false;
      if (before(next, tenant.root)) return false;
      if ((node.parent == kNone) != (next == tenant.root)) return false;
      for (FairEntry child = node.child; child != kNone; child = nodes_[child].sibling) {
        if (before(child, next)) return false;
      }
      sum += urgency_in(node.key);
      older = next;
    }
    if (count != tenant.waiting || older != tenant.newest || sum != tenant.urgency) return false;
    if ((tenant.root == kNone) != (count == 0)) return false;
    if ((tenant.dated_place == kNone) != (sum == 0)) return false;
    if (sum > 0 && (tenant.dated_place >= dated_.size() || dated_[tenant.dated_place] != id)) return false;
    waiting += count;
    urgency += sum;
  }
  return weight == active_weight_ && urgency == total_urgency_ && waiting == size_ &&
         free_.size() + size_ == options_.entries && timeline_.verify() && eligible_.verify() && urgent_.verify();
}

}  // namespace saga
