#include "outbox.hpp"

#include <algorithm>

#include "../base/assert.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kGenerations = 1u << 20;  // ids fit a JavaScript number

void next_generation(std::uint32_t& generation) { generation = generation + 1 < kGenerations ? generation + 1 : 1; }

}  // namespace

Outbox::Outbox(std::uint32_t calls, std::uint32_t leases, std::uint32_t directives)
    : calls_(calls),
      lease_count_(leases),
      directive_count_(directives),
      previous_(std::size_t{2} * calls + leases + directives, kNone),
      next_(previous_.size(), kNone),
      places_(calls),
      priorities_(calls),
      leases_(leases),
      directives_(directives),
      deadlines_(leases) {
  for (std::uint32_t slot = leases; slot-- > 0; free_lease_ = slot) leases_[slot].newer = free_lease_;
  for (std::uint32_t slot = directives; slot-- > 0; free_directive_ = slot) directives_[slot].newer = free_directive_;
}

void Outbox::link(std::uint32_t item) {
  SAGA_ASSERT(!linked(item));
  previous_[item] = last_;
  next_[item] = kNone;
  (last_ == kNone ? first_ : next_[last_]) = item;
  last_ = item;
  ++pending_;
}

void Outbox::unlink(std::uint32_t item) {
  (previous_[item] == kNone ? first_ : next_[previous_[item]]) = next_[item];
  (next_[item] == kNone ? last_ : previous_[next_[item]]) = previous_[item];
  previous_[item] = next_[item] = kNone;
  --pending_;
}

Decision Outbox::pop() {
  SAGA_ASSERT(pending_ > 0);
  const std::uint32_t item = first_;
  unlink(item);
  if (item < calls_) return places_[item];
  if (item < 2 * calls_) return to_decision(priorities_[item - calls_]);
  if (item < directive_item(0)) {
    const std::uint32_t slot = item - lease_item(0);
    const Decision decision = to_decision(leases_[slot].directive);
    if (leases_[slot].state == State::kReleasing) {
      free_lease(slot);
    } else {
      leases_[slot].state = State::kRead;
    }
    return decision;
  }
  const std::uint32_t slot = item - directive_item(0);
  const Decision decision = to_decision(directives_[slot].directive);
  directives_[slot].state = State::kRead;
  if (decision.type == static_cast<std::uint16_t>(DecisionType::kDrop)) free_directive(slot);
  return decision;
}

void Outbox::set_priority(std::uint32_t call, const Directive& directive) {
  priorities_[call] = directive;
  if (!linked(calls_ + call)) link(calls_ + call);
}

void Outbox::forget_call(std::uint32_t call) {
  if (linked(call)) unlink(call);
  if (linked(calls_ + call)) unlink(calls_ + call);
}

std::uint64_t Outbox::id_of(std::uint32_t slot, const Slot& of, bool copy) {
  return (slot | (copy ? kCopyBit : 0)) | (std::uint64_t{of.generation} << 32);
}

std::uint64_t Outbox::copy(Directive directive) {
  const std::uint32_t slot = free_directive_;
  if (slot == kNone) return 0;
  Slot& taken = directives_[slot];
  free_directive_ = taken.newer;
  directive.id = id_of(slot, taken, true);
  taken.directive = directive;
  taken.state = State::kPending;
  taken.older = newest_copy_;
  taken.newer = kNone;
  (newest_copy_ == kNone ? oldest_copy_ : directives_[newest_copy_].newer) = slot;
  newest_copy_ = slot;
  link(directive_item(slot));
  return directive.id;
}

bool Outbox::drop(const Directive& directive) {
  const std::uint32_t slot = free_directive_;
  if (slot == kNone) return false;
  Slot& taken = directives_[slot];
  free_directive_ = taken.newer;
  taken.directive = directive;
  taken.state = State::kPending;
  taken.older = taken.newer = kNone;
  link(directive_item(slot));
  return true;
}

void Outbox::free_directive(std::uint32_t slot) {
  Slot& slot_of = directives_[slot];
  if (slot_of.directive.type == static_cast<std::uint16_t>(DecisionType::kCopy)) {
    (slot_of.older == kNone ? oldest_copy_ : directives_[slot_of.older].newer) = slot_of.newer;
    (slot_of.newer == kNone ? newest_copy_ : directives_[slot_of.newer].older) = slot_of.older;
  }
  next_generation(slot_of.generation);
  slot_of.state = State::kFree;
  slot_of.older = kNone;
  slot_of.newer = free_directive_;
  free_directive_ = slot;
}

std::uint64_t Outbox::lease(Directive directive) {
  const std::uint32_t slot = free_lease_;
  if (slot == kNone) return 0;
  Slot& taken = leases_[slot];
  free_lease_ = taken.newer;
  directive.id = id_of(slot, taken, false);
  taken.directive = directive;
  taken.state = State::kPending;
  deadlines_.set(slot, directive.until);
  link(lease_item(slot));
  return directive.id;
}

void Outbox::free_lease(std::uint32_t slot) {
  Slot& slot_of = leases_[slot];
  if (deadlines_.contains(slot)) deadlines_.erase(slot);
  next_generation(slot_of.generation);
  slot_of.state = State::kFree;
  slot_of.newer = free_lease_;
  free_lease_ = slot;
}

const Outbox::Slot* Outbox::slot_of(std::uint64_t id) const {
  const std::uint32_t slot = static_cast<std::uint32_t>(id) & ~kCopyBit;
  const std::vector<Slot>& slots = is_lease(id) ? leases_ : directives_;
  if (slot >= slots.size() || slots[slot].generation != id >> 32) return nullptr;
  const Slot& found = slots[slot];
  const bool over = found.state == State::kFree || found.state == State::kReleasing || found.directive.id != id;
  return over ? nullptr : &found;
}

bool Outbox::release(std::uint64_t id, bool* unread) {
  *unread = false;
  const Slot* found = is_lease(id) ? slot_of(id) : nullptr;
  if (found == nullptr) return false;
  const auto slot = static_cast<std::uint32_t>(found - leases_.data());
  if (found->state == State::kPending) {
    *unread = true;
    end(id);
    return true;
  }
  Slot& released = leases_[slot];
  released.state = State::kReleasing;
  released.directive.type = static_cast<std::uint16_t>(DecisionType::kRelease);
  released.directive.value = released.directive.until = 0;
  deadlines_.erase(slot);
  link(lease_item(slot));
  return true;
}

const Directive* Outbox::find(std::uint64_t id) const {
  const Slot* found = slot_of(id);
  return found == nullptr ? nullptr : &found->directive;
}

void Outbox::end(std::uint64_t id) {
  const Slot* found = slot_of(id);
  SAGA_ASSERT(found != nullptr);
  const bool lease = is_lease(id);
  const auto slot = static_cast<std::uint32_t>(found - (lease ? leases_ : directives_).data());
  if (found->state == State::kPending) unlink(lease ? lease_item(slot) : directive_item(slot));
  if (lease) {
    free_lease(slot);
  } else {
    free_directive(slot);
  }
}

std::uint64_t Outbox::expired(Time now) const {
  if (oldest_copy_ != kNone && directives_[oldest_copy_].directive.until < now) {
    return directives_[oldest_copy_].directive.id;
  }
  if (!deadlines_.empty() && deadlines_.top_key() < now) return leases_[deadlines_.top()].directive.id;
  return 0;
}

std::uint64_t Outbox::any_on(WorkerId worker) const {
  for (std::uint32_t slot = oldest_copy_; slot != kNone; slot = directives_[slot].newer) {
    if (directives_[slot].directive.worker == worker) return directives_[slot].directive.id;
  }
  for (const Slot& slot : leases_) {
    if ((slot.state == State::kPending || slot.state == State::kRead) && slot.directive.worker == worker) {
      return slot.directive.id;
    }
  }
  return 0;
}

std::uint64_t Outbox::unread_copy_to(WorkerId worker) const {
  for (std::uint32_t slot = oldest_copy_; slot != kNone; slot = directives_[slot].newer) {
    const Slot& copy = directives_[slot];
    if (copy.state == State::kPending && copy.directive.worker == worker) return copy.directive.id;
  }
  return 0;
}

std::uint64_t Outbox::unread_copy_from(WorkerId worker) const {
  for (std::uint32_t slot = oldest_copy_; slot != kNone; slot = directives_[slot].newer) {
    const Slot& copy = directives_[slot];
    if (copy.state == State::kPending && copy.directive.source == worker) return copy.directive.id;
  }
  return 0;
}

void Outbox::forget_worker(WorkerId worker) {
  for (std::uint32_t slot = 0; slot < directive_count_; ++slot) {
    const Slot& drop = directives_[slot];
    if (drop.state != State::kPending || drop.directive.worker != worker ||
        drop.directive.type != static_cast<std::uint16_t>(DecisionType::kDrop)) {
      continue;
    }
    unlink(directive_item(slot));
    free_directive(slot);
  }
  for (std::uint32_t slot = 0; slot < lease_count_; ++slot) {
    if (leases_[slot].state != State::kReleasing || leases_[slot].directive.worker != worker) continue;
    unlink(lease_item(slot));
    free_lease(slot);
  }
}

bool Outbox::refers_only_to(const std::vector<bool>& active) const {
  for (std::uint32_t item = first_; item != kNone; item = next_[item]) {
    if (item < calls_ && !active[places_[item].worker]) return false;
    if (item >= calls_ && item < 2 * calls_ && !active[priorities_[item - calls_].worker]) return false;
  }
  const auto is_well = [&active](const Slot& slot) {
    if (slot.state == State::kFree) return true;
    const bool copy = slot.directive.type == static_cast<std::uint16_t>(DecisionType::kCopy);
    return active[slot.directive.worker] && (!copy || slot.state != State::kPending || active[slot.directive.source]);
  };
  return std::all_of(leases_.begin(), leases_.end(), is_well) &&
         std::all_of(directives_.begin(), directives_.end(), is_well);
}

std::uint64_t Outbox::leased_blocks(WorkerId worker) const {
  std::uint64_t blocks = 0;
  for (const Slot& slot : leases_) {
    if (slot.state == State::kRead && slot.directive.worker == worker) blocks += slot.directive.blocks;
  }
  return blocks;
}

bool Outbox::verify() const {
  std::vector<bool> seen(previous_.size());
  std::uint32_t before = kNone;
  std::uint32_t pending = 0;
  for (std::uint32_t item = first_; item != kNone; before = item, item = next_[item]) {
    if (item >= seen.size() || seen[item] || previous_[item] != before) return false;
    seen[item] = true;
    ++pending;
  }
  if (pending != pending_ || before != last_) return false;
  std::uint32_t holding = 0, free_leases = 0, used_leases = 0;
  for (std::uint32_t slot = 0; slot < lease_count_; ++slot) {
    const State state = leases_[slot].state;
    const bool waits = state == State::kPending || state == State::kReleasing;
    if (seen[lease_item(slot)] != waits) return false;
    const bool holds = state == State::kPending || state == State::kRead;
    if (deadlines_.contains(slot) != holds) return false;
    if (holds && deadlines_.key(slot) != leases_[slot].directive.until) return false;
    if (holds) ++holding;
    if (state != State::kFree) ++used_leases;
  }
  for (std::uint32_t slot = free_lease_; slot != kNone; slot = leases_[slot].newer) {
    if (leases_[slot].state != State::kFree || ++free_leases > lease_count_) return false;
  }
  if (free_leases + used_leases != lease_count_ || holding != deadlines_.size() || !deadlines_.verify()) return false;
  std::uint32_t copies = 0, used = 0, free = 0;
  for (std::uint32_t slot = 0; slot < directive_count_; ++slot) {
    const State state = directives_[slot].state;
    if (state == State::kReleasing || seen[directive_item(slot)] != (state == State::kPending)) return false;
    if (state == State::kFree) continue;
    ++used;
    if (directives_[slot].directive.type == static_cast<std::uint16_t>(DecisionType::kCopy)) ++copies;
  }
  for (std::uint32_t slot = free_directive_; slot != kNone; slot = directives_[slot].newer) {
    if (directives_[slot].state != State::kFree || ++free > directive_count_) return false;
  }
  std::uint32_t older = kNone;
  for (std::uint32_t slot = oldest_copy_; slot != kNone; older = slot, slot = directives_[slot].newer) {
    if (directives_[slot].older != older || copies-- == 0) return false;
  }
  return older == newest_copy_ && copies == 0 && used + free == directive_count_;
}

void Outbox::add_to(Digest& digest) const {
  for (std::uint32_t item = first_; item != kNone; item = next_[item]) {
    digest.add(item);
    if (item >= calls_) continue;
    digest.add(places_[item].call);
    digest.add(places_[item].worker | (std::uint64_t{places_[item].reason} << 32));
  }
  const auto add_slot = [&digest](const Slot& slot) {
    digest.add(slot.generation | (static_cast<std::uint64_t>(slot.state) << 32));
    if (slot.state == State::kFree) return;
    digest.add(slot.directive.call);
    digest.add(slot.directive.worker | (std::uint64_t{slot.directive.type} << 32));
    digest.add(slot.directive.source | (std::uint64_t{slot.directive.blocks} << 32));
    digest.add(slot.directive.value);
    digest.add(slot.directive.until);
  };
  for (const Slot& slot : leases_) add_slot(slot);
  for (const Slot& slot : directives_) add_slot(slot);
  for (std::uint32_t slot = free_lease_; slot != kNone; slot = leases_[slot].newer) digest.add(slot);
  for (std::uint32_t slot = free_directive_; slot != kNone; slot = directives_[slot].newer) digest.add(slot);
}

}  // namespace saga
