#include "sim_worker.hpp"

#include <algorithm>
#include <tuple>

#include "../base/assert.hpp"

namespace saga {

Time transfer_time(std::uint64_t pages, std::uint32_t page_tokens, std::uint64_t kv_bytes_per_token,
                   std::uint64_t link_bytes_per_second) {
  const std::uint64_t bytes = pages * page_tokens * kv_bytes_per_token;
  // Whole seconds apart, so that a million times the rest cannot overflow.
  const std::uint64_t seconds = bytes / link_bytes_per_second;
  const std::uint64_t rest = bytes % link_bytes_per_second;
  const Time time = seconds * 1'000'000 + (rest * 1'000'000 + link_bytes_per_second - 1) / link_bytes_per_second;
  return std::max<Time>(time, 1);
}

SimWorker::SimWorker(WorkerId id, const Workload& workload, const PageTree& tree, const SimWorkerOptions& options,
                     const std::vector<std::uint32_t>& awaited, WorkerObserver& observer)
    : id_(id),
      workload_(workload),
      tree_(tree),
      options_(options),
      page_tokens_(tree.page_tokens()),
      awaited_(awaited),
      observer_(observer),
      cache_(tree, options.capacity_pages, options.max_sequences + 1, options.eviction, {}, options.max_leases,
             options.statistics),
      host_(options.host_pages),
      lease_budget_(
          static_cast<std::uint32_t>(std::uint64_t{options.capacity_pages} * options.lease_budget_percent / 100)) {
  cache_.report_to(&changes_);
  sequences_.resize(options.max_sequences + 1);
  for (std::uint32_t slot = options.max_sequences + 1; slot-- > 0;) free_slots_.push_back(slot);
  running_.reserve(options.max_sequences);
  loaded_.reserve(options.max_sequences);
  leases_.reserve(options.max_leases);
  for (std::uint32_t i = options.max_leases; i-- > 0;) free_lease_slots_.push_back(options.max_sequences + 1 + i);
  residue_order_.resize(options.max_sequences);
  residue_first_.resize(page_tokens_ + 1);
}

void SimWorker::set_wake(Wake wake, Time time) {
  wake_ = wake;
  wake_time_ = time;
  ++generation_;
}

// Useful pages did not change since the last account(); it comes before every change.
void SimWorker::account(Time now) {
  SAGA_ASSERT(now >= accounted_until_);
  useful_area_ += (running_pages() + idle_awaited_) * (now - accounted_until_);
  accounted_until_ = now;
}

std::uint64_t SimWorker::useful_page_microseconds(Time now) {
  account(now);
  return useful_area_;
}

// After a grow or an eviction; pinned_before: pinned_by_calls() then. Pages that grew are pinned by a call and so
// counted; pages that went were unpinned.
void SimWorker::process_changes(std::uint32_t pinned_before, Time now) {
  std::uint32_t stored = 0;
  for (const PageCache::Change& change : changes_) {
    if (change.stored) {
      stored += change.range.count;
      continue;
    }
    if (awaited_[change.range.node] > 0) idle_awaited_ -= change.range.count;
    host_.insert(change.range);
  }
  if (!changes_.empty()) {
    observer_.pages_changed(id_, changes_, now);
    changes_.clear();
  }
  // The call grew into a node that lay there unpinned (another call had computed it, and ended, in the meantime): rare.
  if (pinned_by_calls() != pinned_before + stored) recount_idle_awaited();
}

void SimWorker::recount_idle_awaited() {
  idle_awaited_ = 0;
  const std::vector<ResidentNode>& nodes = cache_.residents().nodes;
  for (NodeId node = 0; node < nodes.size(); ++node) {
    if (cache_.call_pins(node) == 0 && awaited_[node] > 0) idle_awaited_ += nodes[node].pages;
  }
}

void SimWorker::node_awaited(NodeId node, bool will_be_awaited, Time now) {
  const ResidentNode& state = cache_.residents().nodes[node];
  if (state.pages == 0) return;  // and what comes before `now` could only be pages of a running call
  sync(now);
  if (state.pages == 0 || cache_.call_pins(node) > 0) return;
  account(now);
  if (will_be_awaited) {
    idle_awaited_ += state.pages;
  } else {
    idle_awaited_ -= state.pages;
  }
}

// Evictable pages that a call takes out of reach when it pins its leading `matched` pages: nodes are pinned as a whole.
std::uint32_t SimWorker::pages_to_pin(NodeId leaf, std::uint32_t matched) const {
  std::uint32_t pages = 0;
  for (NodeId node = leaf; node != kNone; node = tree_.node(node).parent) {
    if (tree_.node(node).first_page >= matched) continue;
    const ResidentNode& state = cache_.residents().nodes[node];
    if (state.pins > 0) break;  // and so is everything before it
    pages += state.pages;
  }
  return pages;
}

// The same if all leases were revoked before.
std::uint32_t SimWorker::pages_without_call(NodeId leaf, std::uint32_t matched) const {
  std::uint32_t pages = 0;
  for (NodeId node = leaf; node != kNone; node = tree_.node(node).parent) {
    if (tree_.node(node).first_page >= matched) continue;
    if (cache_.call_pins(node) > 0) break;
    pages += cache_.residents().nodes[node].pages;
  }
  return pages;
}

// The call is about to let go of the leading `frontier` pages of its path.
void SimWorker::unpin_accounting(NodeId leaf, std::uint32_t frontier) {
  for (NodeId node = leaf; node != kNone; node = tree_.node(node).parent) {
    if (tree_.node(node).first_page >= frontier) continue;
    if (cache_.call_pins(node) > 1) break;
    if (awaited_[node] > 0) idle_awaited_ += cache_.residents().nodes[node].pages;
  }
}

// Pages for all tokens before end_token; false, and no page taken, when they cannot be had. Leases may be revoked for them
// either way.
bool SimWorker::allocate(Sequence& sequence, std::uint32_t slot, std::uint32_t end_token, Time now) {
  const std::uint32_t full = end_token / page_tokens_;
  const bool partial = end_token % page_tokens_ != 0;
  const std::uint32_t frontier = cache_.frontier(slot);
  const std::uint32_t grow = full - std::min(full, frontier);
  const bool fills = sequence.anonymous && grow > 0;  // its identity is now known
  const bool reserves = partial && (!sequence.anonymous || fills);
  if (grow == 0 && !reserves) return true;
  const std::uint32_t wanted = grow + (reserves ? 1u : 0u) - (fills ? 1u : 0u);
  if (wanted > available()) {
    // Some of the pages may be there already, from another call; they cost what pinning them takes out of reach.
    const NodeId leaf = tree_.final_leaf(sequence.call);
    const std::uint32_t there = std::max(frontier, std::min(cache_.match(leaf), full));
    if (there == frontier && cache_.revocable() == 0) return false;
    // More of them than wanted, where the anonymous page is among what another call has computed.
    const std::uint64_t found = there - frontier;
    while (std::uint64_t{wanted} + pages_to_pin(leaf, there) > available() + found) {
      if (!revoke_lease(now)) return false;
    }
  }
  account(now);
  const std::uint32_t pinned_before = pinned_by_calls();
  if (fills) {
    cache_.release_anonymous(1);
    sequence.anonymous = false;
  }
  bool complete = grow == 0 || cache_.grow(slot, grow, now) == grow;
  if (complete && reserves) {
    complete = cache_.reserve_anonymous(1, now);
    sequence.anonymous = complete;
  }
  process_changes(pinned_before, now);
  return complete;
}

void SimWorker::enqueue(const Waiting& call, bool front) {
  if (!options_.priority_scheduling) {
    if (front) {
      waiting_.push_front(call);
    } else {
      waiting_.push_back(call);
    }
    return;
  }
  const auto behind = std::find_if(waiting_.begin(), waiting_.end(), [&call](const Waiting& other) {
    return other.priority != call.priority ? other.priority > call.priority : other.order > call.order;
  });
  waiting_.insert(behind, call);
}

void SimWorker::submit(CallId call, std::int32_t priority, Time now) {
  sync(now);
  const bool overtaken_by_none = !options_.priority_scheduling && !waiting_.empty();
  enqueue({call, priority, next_order_++, 0, false, now}, false);
  if (in_step_) {
    // First come, first served: who queues behind a call that cannot be admitted changes nothing in the plan.
    if (!overtaken_by_none) cut_plan(now);
  } else if (wake_ == Wake::kNever) {
    set_wake(Wake::kStepBegin, now);
  }
}

void SimWorker::set_priority(CallId call, std::int32_t priority, Time now) {
  sync(now);
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    if (waiting_[i].call != call) continue;
    Waiting changed = waiting_[i];
    changed.priority = priority;
    if (options_.priority_scheduling) {
      waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
      enqueue(changed, false);
    } else {
      waiting_[i] = changed;
    }
    break;
  }
  for (Sequence& sequence : sequences_) {
    if (sequence.call == call) sequence.priority = priority;
  }
  if (in_step_) cut_plan(now);
}

void SimWorker::load_ended(std::uint32_t slot, Time now) {
  sync(now);
  SAGA_ASSERT(sequences_[slot].loading);
  sequences_[slot].loading = false;
  loaded_.push_back(slot);
  if (in_step_) {
    cut_plan(now);
  } else if (wake_ == Wake::kNever) {
    set_wake(Wake::kStepBegin, now);
  }
}

// The plan ends with the step in flight.
void SimWorker::cut_plan(Time) {
  if (planned_ == reached_) return;
  planned_ = reached_;
  set_wake(Wake::kStepEnd, reached_end_);
}

Time SimWorker::planned_duration(std::uint64_t step) const {
  return StepTimeModel::round(plan_fixed_ + (step - 1) * plan_slope_);
}

void SimWorker::sync(Time now) {
  if (!in_step_) return;
  while (reached_ < planned_ && reached_end_ < now) {
    ++reached_;
    allocate_planned_step(reached_end_);
    reached_end_ += planned_duration(reached_);
  }
}

// Pages of step reached_ of the plan, which begins at `begin`: in order of admission, as every step takes them. Only
// calls whose new token is the first or the last of a page need anything.
void SimWorker::allocate_planned_step(Time begin) {
  const std::uint32_t tokens = page_tokens_;
  const auto step = static_cast<std::uint32_t>(reached_);
  const std::uint32_t first = (tokens - (step - 1) % tokens) % tokens;  // computed % tokens where a page begins
  const std::uint32_t last = (tokens - step % tokens) % tokens;         // ... where one fills up
  const std::uint32_t* a = residue_order_.data() + residue_first_[first];
  const std::uint32_t* a_end = residue_order_.data() + residue_first_[first + 1];
  const std::uint32_t* b = residue_order_.data() + residue_first_[last];
  const std::uint32_t* b_end = first == last ? b : residue_order_.data() + residue_first_[last + 1];
  while (a != a_end || b != b_end) {
    const std::uint32_t index = b == b_end || (a != a_end && *a < *b) ? *a++ : *b++;
    const std::uint32_t slot = running_[index];
    const bool taken = allocate(sequences_[slot], slot, sequences_[slot].computed + step, begin);
    SAGA_ASSERT(taken);
    (void)taken;
  }
}

std::size_t SimWorker::newest_running() const {
  std::size_t newest = running_.size() - 1;
  if (!options_.priority_scheduling) return newest;
  for (std::size_t i = running_.size(); i-- > 0;) {
    const Sequence& candidate = sequences_[running_[i]];
    const Sequence& best = sequences_[running_[newest]];
    if (candidate.priority > best.priority || (candidate.priority == best.priority && candidate.order > best.order)) {
      newest = i;
    }
  }
  return newest;
}

void SimWorker::preempt(std::size_t index, Time now) {
  SAGA_ASSERT(cache_.revocable() == 0);  // leases go before calls
  const std::uint32_t slot = running_[index];
  Sequence& sequence = sequences_[slot];
  account(now);
  unpin_accounting(tree_.final_leaf(sequence.call), cache_.frontier(slot));
  if (sequence.anonymous) cache_.release_anonymous(1);
  cache_.preempt(slot, now);
  ++counters_.preemptions;
  counters_.preempted_tokens += sequence.computed;
  enqueue({sequence.call, sequence.priority, sequence.order, sequence.generated, true, now}, true);
  sequence = {};
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  free_slots_.push_back(slot);
}

void SimWorker::finish(std::uint32_t slot, Time now) {
  Sequence& sequence = sequences_[slot];
  const CallId call = sequence.call;
  const NodeId leaf = tree_.final_leaf(call);
  SAGA_ASSERT(cache_.frontier(slot) == tree_.path_pages(leaf));
  account(now);
  unpin_accounting(leaf, cache_.frontier(slot));
  if (sequence.anonymous) cache_.release_anonymous(1);
  CallEnd end;
  end.call = call;
  end.stop_reason = workload_.stop_reason[call];
  end.tool_class = workload_.tool_class[call];
  end.leaf = leaf;
  end.output_tokens = workload_.output_tokens[call];
  cache_.end(slot, end, now);
  sequence = {};
  free_slots_.push_back(slot);
}

bool SimWorker::admit(std::uint32_t& budget, Time now) {
  const Waiting head = waiting_.front();
  const NodeId leaf = tree_.final_leaf(head.call);
  const std::uint32_t prompt = workload_.prompt_tokens[head.call];
  const std::uint32_t known = prompt + head.generated;
  const std::uint32_t limit = (known - 1) / page_tokens_;
  const std::uint32_t resident = cache_.match(leaf);
  const std::uint32_t matched = std::min(resident, limit);
  const std::uint32_t loads = host_.run_on_path(tree_, leaf, matched, limit);
  const std::uint32_t computed = (matched + loads) * page_tokens_;
  const std::uint32_t chunk = loads > 0 ? 0 : std::min(known - computed, budget);
  const std::uint32_t end = computed + chunk;
  const std::uint32_t room = options_.whole_prompts ? known : end;  // that there must be room for
  const std::uint32_t full = room / page_tokens_;
  const std::uint32_t there = std::min(full, resident);  // beyond `matched` only where the limit cut something off
  const std::uint32_t wanted = full - there + (room % page_tokens_ != 0 ? 1u : 0u);
  if (wanted + pages_to_pin(leaf, there) > available()) {
    if (cache_.revocable() == 0) return false;
    if (options_.leases_before_waiting && running_.size() + loading_ > 0) return false;
    // No lease is revoked in vain.
    if (wanted + pages_without_call(leaf, there) > available() + cache_.revocable()) return false;
    do {
      if (!revoke_lease(now)) return false;
    } while (wanted + pages_to_pin(leaf, there) > available());
  }

  waiting_.pop_front();
  const std::uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Sequence& sequence = sequences_[slot];
  sequence.call = head.call;
  sequence.priority = head.priority;
  sequence.order = head.order;
  sequence.computed = computed;
  sequence.known = known;
  sequence.generated = head.generated;
  sequence.regenerated_end = std::min(observer_.computed_pages(leaf, now) * page_tokens_, prompt);
  if (!head.admitted_before) {
    const std::uint32_t pages = tree_.path_pages(tree_.prompt_leaf(head.call));
    counters_.prompt_tokens += prompt;
    counters_.hit_tokens += computed;
    counters_.loaded_tokens += loads * page_tokens_;
    counters_.requested_pages += pages;
    counters_.missed_pages += pages - std::min(pages, resident);
    counters_.missed_cost += page_cost(page_tokens_, std::min(pages, resident), pages);
    observer_.call_admitted(id_, head.call, now);
  }

  account(now);
  for (NodeId node = leaf; node != kNone; node = tree_.node(node).parent) {
    if (tree_.node(node).first_page >= matched) continue;
    if (cache_.call_pins(node) > 0) break;
    if (awaited_[node] > 0) idle_awaited_ -= cache_.residents().nodes[node].pages;
  }
  const std::uint32_t pinned = cache_.start(slot,
                                            {head.call, workload_.call_thread[head.call], tree_.prompt_leaf(head.call),
                                             leaf, workload_.prompt_kind[head.call]},
                                            matched, now);
  SAGA_ASSERT(pinned == matched);
  (void)pinned;
  const bool taken = allocate(sequence, slot, end, now);
  SAGA_ASSERT(taken);
  (void)taken;
  if (loads > 0) {
    host_.touch_path(tree_, leaf, matched, matched + loads);
    load_link_free_ = std::max(load_link_free_, now) +
                      transfer_time(loads, page_tokens_, options_.kv_bytes_per_token, options_.link_bytes_per_second);
    sequence.loading = true;
    ++loading_;
    observer_.load_started(id_, slot, load_link_free_);
    return true;
  }
  sequence.scheduled = chunk;
  budget -= chunk;
  running_.push_back(slot);
  return true;
}

// The head of the queue could not be admitted: makes room for it if it may.
bool SimWorker::preempt_for_head(std::uint32_t& budget, Time now) {
  if (options_.preempt_after == 0 || !options_.priority_scheduling || running_.empty()) return false;
  const Waiting& head = waiting_.front();
  if (now - head.since < options_.preempt_after) return false;
  const std::size_t victim = newest_running();
  const Sequence& running = sequences_[running_[victim]];
  if (running.priority - std::int64_t{head.priority} <= options_.preemption_gap) return false;
  while (revoke_lease(now)) {
  }
  budget += running.scheduled;
  preempt(victim, now);
  return true;
}

// Preempted anything; scheduled anything.
std::pair<bool, bool> SimWorker::compose_step(Time now) {
  std::uint32_t budget = options_.token_budget;
  bool preempted = false;
  for (const std::uint32_t slot : running_) sequences_[slot].scheduled = 0;
  for (std::size_t i = 0; i < running_.size() && budget > 0; ++i) {
    const std::uint32_t slot = running_[i];
    Sequence& sequence = sequences_[slot];
    const std::uint32_t tokens = std::min(sequence.known - sequence.computed, budget);
    bool self = false;
    while (!self && !allocate(sequence, slot, sequence.computed + tokens, now)) {
      const std::size_t victim = newest_running();
      preempted = true;
      self = victim == i;
      if (victim < i) {  // only under priority: it had its tokens already
        budget += sequences_[running_[victim]].scheduled;
        --i;
      }
      preempt(victim, now);
    }
    if (self) break;  // nothing less important is left to take pages from
    sequence.scheduled = tokens;
    budget -= tokens;
  }
  if (!preempted) {
    while (!waiting_.empty() && budget > 0 && running_.size() + loading_ < options_.max_sequences) {
      if (!admit(budget, now) && !preempt_for_head(budget, now)) break;
    }
  }
  return {preempted, budget < options_.token_budget};
}

void SimWorker::begin_step(Time now) {
  SAGA_ASSERT(!in_step_ && wake_ == Wake::kStepBegin);
  for (const std::uint32_t slot : loaded_) {
    running_.push_back(slot);
    --loading_;
  }
  loaded_.clear();

  // A call that had to preempt itself ends the step's round, even if nothing is scheduled yet; then the next follows at
  // once.
  bool preempted = false;
  bool scheduled = false;
  do {
    std::tie(preempted, scheduled) = compose_step(now);
  } while (preempted && !scheduled);
  plan(preempted, now);
}

// True if the head of the queue cannot be admitted while nothing happens but decoding. The pages that it wants beyond
// those that are pinned anyway are at least those of its first chunk, whatever part of its prompt stays cached;
// decoding only takes pages away, and can bring at most one page of its prompt for each running call without taking one. Leases
// are no obstacle: what they alone pin can be had, and so counts neither as pinned nor as missing; but under
// leases_before_waiting they are like calls.
bool SimWorker::head_stays_blocked() const {
  if (running_.size() + loading_ >= options_.max_sequences) return true;
  if (host_.capacity() > 0 || running_.size() >= options_.token_budget || options_.preempt_after > 0) return false;
  const bool keeps = options_.leases_before_waiting;
  const Waiting& head = waiting_.front();
  std::uint32_t pinned = 0;
  for (NodeId node = tree_.final_leaf(head.call); node != kNone; node = tree_.node(node).parent) {
    if ((keeps ? cache_.residents().nodes[node].pins : cache_.call_pins(node)) == 0) continue;
    pinned = cache_.residents().path_pages(node);
    break;
  }
  const std::uint32_t known = workload_.prompt_tokens[head.call] + head.generated;
  const std::uint32_t computed = std::min(pinned, (known - 1) / page_tokens_) * page_tokens_;
  const auto running = static_cast<std::uint32_t>(running_.size());
  const std::uint32_t chunk = std::min(known - computed, options_.token_budget - running);
  return (chunk + page_tokens_ - 1) / page_tokens_ > available() + (keeps ? 0 : cache_.revocable()) + running;
}

void SimWorker::plan(bool preempted, Time now) {
  StepLoad load;
  step_outputs_ = 0;
  bool decode_only = true;
  std::uint32_t longest = kNone;  // steps until the first answer is complete
  for (const std::uint32_t slot : running_) {
    const Sequence& sequence = sequences_[slot];
    if (sequence.scheduled == 0) {
      decode_only = false;
      continue;
    }
    if (sequence.generated > 0 && sequence.known - sequence.computed == 1) {
      load.add_decode(sequence.known);
      // Pages ahead that another call has computed would be entered, not taken: leave that to single steps.
      if (cache_.match(tree_.final_leaf(sequence.call)) > cache_.frontier(slot)) decode_only = false;
      longest = std::min(longest, workload_.output_tokens[sequence.call] - sequence.generated);
    } else {
      load.add_prefill(sequence.scheduled, sequence.computed);
      decode_only = false;
    }
    if (sequence.computed + sequence.scheduled == sequence.known) ++step_outputs_;
  }
  if (load.prefill_tokens + load.decode_requests == 0) {
    // Idle, or everything here waits for a load. A call always fits into an empty cache, so nobody waits for pages now.
    SAGA_ASSERT(waiting_.empty() || loading_ > 0);
    set_wake(Wake::kNever, 0);
    return;
  }
  in_step_ = true;
  planned_ = 1;
  reached_ = 1;
  plan_fixed_ = options_.step_time.picoseconds(load);
  plan_slope_ = 0;
  reached_end_ = now + StepTimeModel::round(plan_fixed_);
  Time end = reached_end_;

  if (decode_only && !preempted && !options_.single_step && longest > 1 && (waiting_.empty() || head_stays_blocked())) {
    const auto batch = static_cast<std::uint32_t>(running_.size());
    const std::uint32_t tokens = page_tokens_;
    std::fill(residue_first_.begin(), residue_first_.end(), 0u);
    for (const std::uint32_t slot : running_) ++residue_first_[sequences_[slot].computed % tokens + 1];
    for (std::uint32_t r = 0; r < tokens; ++r) residue_first_[r + 1] += residue_first_[r];
    for (std::uint32_t i = batch; i-- > 0;) {  // from the back: residue_first_[r + 1] walks down to the begin of r
      const std::uint32_t residue = sequences_[running_[i]].computed % tokens;
      residue_order_[--residue_first_[residue + 1]] = i;
    }
    for (std::uint32_t r = 0; r < tokens; ++r) residue_first_[r] = residue_first_[r + 1];
    residue_first_[tokens] = batch;

    const std::uint64_t room = available();  // not what leases hold: steps that need that are no part of a plan
    planned_ = longest;
    if (std::uint64_t{batch} * ((longest - 1 + tokens - 1) / tokens) > room) {
      std::uint64_t taken = 0;
      for (std::uint32_t step = 2; step <= longest; ++step) {
        const std::uint32_t residue = (tokens - (step - 1) % tokens) % tokens;
        taken += residue_first_[residue + 1] - residue_first_[residue];
        if (taken <= room) continue;
        planned_ = step - 1;
        break;
      }
    }
    plan_slope_ = options_.step_time.context_picoseconds() * batch;
    std::uint64_t picoseconds = plan_fixed_;
    for (std::uint64_t step = 2; step <= planned_; ++step) {
      picoseconds += plan_slope_;
      end += StepTimeModel::round(picoseconds);
    }
  }
  set_wake(Wake::kStepEnd, end);
}

void SimWorker::end_step(Time now) {
  sync(now);
  SAGA_ASSERT(in_step_ && reached_ == planned_ && reached_end_ == now);
  in_step_ = false;
  const auto steps = static_cast<std::uint32_t>(planned_);
  counters_.steps += steps;
  counters_.output_tokens += std::uint64_t{step_outputs_} * steps;
  step_outputs_ = 0;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const std::uint32_t slot = running_[i];
    Sequence& sequence = sequences_[slot];
    const CallId call = sequence.call;
    bool finished = false;
    if (sequence.scheduled > 0) {
      const std::uint32_t prompt = workload_.prompt_tokens[call];
      const std::uint32_t begin = sequence.computed;
      sequence.computed += steps > 1 ? steps : sequence.scheduled;
      if (begin < prompt) {
        const std::uint32_t end = std::min(sequence.computed, prompt);
        counters_.prefilled_tokens += end - begin;
        counters_.regenerated_tokens +=
            std::min(end, sequence.regenerated_end) - std::min(begin, sequence.regenerated_end);
      }
      if (sequence.computed + 1 >= sequence.known + steps) {  // all that was known is computed: one token more (a step)
        sequence.generated += steps;
        sequence.known += steps;
        if (sequence.generated == steps && steps == 1) observer_.first_token(id_, call, now);
        finished = sequence.generated == workload_.output_tokens[call];
      }
    }
    if (!finished) {
      running_[kept++] = slot;
      continue;
    }
    finish(slot, now);
    observer_.call_finished(id_, call, now);
  }
  running_.resize(kept);
  if (running_.empty() && waiting_.empty() && loaded_.empty()) {
    set_wake(Wake::kNever, 0);
  } else {
    set_wake(Wake::kStepBegin, now);
  }
}

std::uint64_t SimWorker::output_tokens(Time now) const {
  if (!in_step_) return counters_.output_tokens;
  return counters_.output_tokens + step_outputs_ * (reached_ - (reached_end_ <= now ? 0u : 1u));
}

void SimWorker::drop(ThreadId thread, Time now) {
  sync(now);
  cache_.policy().thread_left(thread, now);
}

void SimWorker::expect(ThreadId thread, NodeId leaf, Time now) {
  sync(now);
  cache_.policy().thread_expected(thread, leaf, now);
}

std::uint32_t SimWorker::receive(NodeId leaf, std::uint32_t pages, Time now) {
  sync(now);
  SAGA_ASSERT(pages <= tree_.path_pages(leaf) && !free_slots_.empty());
  const std::uint32_t cached = cache_.match(leaf);
  if (cached >= pages) return 0;
  const std::uint32_t slot = free_slots_.back();  // seats are one fewer than slots
  account(now);
  cache_.pin(slot, leaf, cached);
  recount_idle_awaited();
  const std::uint32_t pinned_before = pinned_by_calls();
  const std::uint32_t granted = cache_.grow(slot, pages - cached, now);
  process_changes(pinned_before, now);
  cache_.unpin(slot);
  recount_idle_awaited();
  // They may lie ahead of a call that decodes, which a plan does not reckon with.
  if (in_step_ && granted > 0) cut_plan(now);
  return granted;
}

LeaseId SimWorker::lease(CallId call, NodeId leaf, std::uint32_t pages, std::uint64_t value, Time until, Time now) {
  sync(now);
  const std::uint32_t covered = std::min(cache_.match(leaf), pages);
  if (covered == 0 || until <= now || free_lease_slots_.empty() ||
      cache_.lease_growth(leaf, covered) > lease_budget_ - cache_.leased()) {
    ++lease_counters_.refused;
    observer_.lease_changed({kNoLease, call, id_, covered, LeaseOutcome::kRefused}, now);
    return kNoLease;
  }
  NodeId deepest = leaf;
  while (tree_.node(deepest).first_page >= covered) deepest = tree_.node(deepest).parent;
  const std::uint32_t slot = free_lease_slots_.back();
  free_lease_slots_.pop_back();
  cache_.pin(slot, leaf, covered);
  leases_.push_back({next_lease_++, call, slot, deepest, value, until});
  ++lease_counters_.granted;
  observer_.lease_changed({leases_.back().id, call, id_, covered, LeaseOutcome::kGranted}, now);
  if (in_step_) cut_plan(now);  // it counts on pages that are evictable no longer
  return leases_.back().id;
}

bool SimWorker::release(LeaseId lease, Time now) {
  const auto at = std::lower_bound(leases_.begin(), leases_.end(), lease,
                                   [](const Lease& other, LeaseId id) { return other.id < id; });
  if (at == leases_.end() || at->id != lease) return false;
  sync(now);
  end_lease(static_cast<std::size_t>(at - leases_.begin()), LeaseOutcome::kReleased, now);
  return true;
}

void SimWorker::expire_leases(Time now) {
  for (std::size_t i = 0; i < leases_.size();) {
    if (leases_[i].until > now) {
      ++i;
      continue;
    }
    sync(now);
    end_lease(i, LeaseOutcome::kExpired, now);
  }
}

// Pages that running calls use are first on the path of a lease, so one whose deepest node is in use frees nothing.
bool SimWorker::revoke_lease(Time now) {
  if (cache_.revocable() == 0) return false;
  std::size_t first = leases_.size();
  for (std::size_t i = 0; i < leases_.size(); ++i) {
    const Lease& lease = leases_[i];
    if (cache_.call_pins(lease.deepest) > 0) continue;
    if (first == leases_.size() ||
        std::tie(lease.value, lease.until) < std::tie(leases_[first].value, leases_[first].until)) {
      first = i;
    }
  }
  SAGA_ASSERT(first < leases_.size());
  end_lease(first, LeaseOutcome::kRevoked, now);
  return true;
}

// Neither what running calls use nor what is useful changes, and a plan stays true: there only is more room.
void SimWorker::end_lease(std::size_t index, LeaseOutcome outcome, Time now) {
  const Lease lease = leases_[index];
  const std::uint32_t covered = cache_.frontier(lease.slot);
  cache_.unpin(lease.slot);
  free_lease_slots_.push_back(lease.slot);
  leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(index));
  switch (outcome) {
    case LeaseOutcome::kExpired:
      ++lease_counters_.expired;
      break;
    case LeaseOutcome::kReleased:
      ++lease_counters_.released;
      break;
    default:
      ++lease_counters_.revoked;
      break;
  }
  observer_.lease_changed({lease.id, lease.call, id_, covered, outcome}, now);
  if (options_.leases_before_waiting && in_step_ && !waiting_.empty()) cut_plan(now);
}

void SimWorker::forget_everything(Time now) {
  SAGA_ASSERT(running_.empty() && waiting_.empty() && loading_ == 0 && !in_step_ && leases_.empty());
  account(now);
  cache_.evict(cache_.evictable(), now);
  process_changes(pinned_by_calls(), now);
  host_.clear();
}

bool SimWorker::verify() const {
  if (!cache_.verify() || !host_.verify() || cache_.used() > cache_.capacity()) return false;
  if (running_.size() + loading_ + free_slots_.size() != sequences_.size()) return false;
  std::uint32_t anonymous = 0;
  std::uint32_t active = 0;
  for (std::uint32_t slot = 0; slot < sequences_.size(); ++slot) {
    const Sequence& sequence = sequences_[slot];
    if ((sequence.call != kNone) != cache_.is_running(slot)) return false;
    if (sequence.call == kNone) continue;
    ++active;
    if (sequence.anonymous) ++anonymous;
    const std::uint32_t prompt = workload_.prompt_tokens[sequence.call];
    if (sequence.known != prompt + sequence.generated || sequence.computed >= sequence.known) return false;
    if (sequence.generated >= workload_.output_tokens[sequence.call]) return false;
    // Not scheduled: it waits for pages, for its load, or for the step after its load.
    const bool in_step = in_step_ && sequence.scheduled > 0;
    const std::uint32_t end =
        sequence.computed + (in_step ? sequence.scheduled + static_cast<std::uint32_t>(reached_ - 1) : 0);
    if (cache_.frontier(slot) < end / page_tokens_) return false;
    if (sequence.anonymous != (end % page_tokens_ != 0)) return false;
  }
  if (anonymous != cache_.anonymous() || active != running_.size() + loading_) return false;
  std::uint64_t idle_awaited = 0;
  const std::vector<ResidentNode>& nodes = cache_.residents().nodes;
  for (NodeId node = 0; node < nodes.size(); ++node) {
    if (cache_.call_pins(node) == 0 && awaited_[node] > 0) idle_awaited += nodes[node].pages;
  }
  if (idle_awaited != idle_awaited_) return false;
  if (leases_.size() + free_lease_slots_.size() != options_.max_leases || cache_.leased() > lease_budget_) return false;
  for (std::size_t i = 0; i < leases_.size(); ++i) {
    const Lease& lease = leases_[i];
    if (!cache_.is_running(lease.slot) || (i > 0 && leases_[i - 1].id >= lease.id)) return false;
    const std::uint32_t covered = cache_.frontier(lease.slot);
    if (covered <= tree_.node(lease.deepest).first_page || covered > tree_.node(lease.deepest).end_page()) return false;
  }
  const LeaseCounters& leases = lease_counters_;
  if (leases.granted != leases.expired + leases.released + leases.revoked + leases_.size()) return false;
  if ((wake_ == Wake::kStepEnd) != in_step_) return false;
  return reached_ <= planned_;
}

}  // namespace saga
