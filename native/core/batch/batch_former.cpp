#include "batch_former.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "../base/assert.hpp"
#include "../base/digest.hpp"

namespace saga {

namespace {

// Doubles that are not negative, as integers in the same order, below 2^63.
std::uint64_t ordered_bits(double value) { return std::bit_cast<std::uint64_t>(value + 0.0); }

}  // namespace

BatchFormer::BatchFormer(PageTable& pages, const BatchFormerOptions& options)
    : pages_(pages),
      options_(options),
      block_size_(pages.block_size()),
      max_blocks_(pages.max_blocks_per_sequence()),
      capacity_(pages.pool(Tier::kGpu).free_count()),
      max_swapped_(pages.max_sequences() - pages.stats().open_sequences - options.max_sequences),
      slowest_hit_(options.max_copies > 0 ? options.slowest_hit : Tier::kGpu),
      chunk_limit_(options.max_prefill_chunk > 0 ? options.max_prefill_chunk : options.token_budget),
      calls_(options.max_calls),
      hashes_(std::make_unique_for_overwrite<BlockHash[]>(std::size_t{options.max_calls} * max_blocks_)),
      copies_(options.max_copies) {
  SAGA_ASSERT(options.max_calls > 0 && options.max_sequences > 0 && options.token_budget > 0);
  // Calls that are swapped out keep their sequence: it must not be one that a running call needs.
  SAGA_ASSERT(options.max_sequences <= pages.max_sequences() - pages.stats().open_sequences);
  free_calls_.reserve(options.max_calls);
  for (CallId id = options.max_calls; id > 0; --id) free_calls_.push_back(id - 1);
  running_.reserve(options.max_sequences);
  waiting_.reserve(options.max_calls);
  held_.reserve(options.max_calls);
  computing_.reserve(options.max_sequences);
  batch_.reserve(options.max_sequences);
  filled_.reserve(options.max_sequences);
  preempted_.reserve(options.max_sequences);
}

BatchFormer::~BatchFormer() {
  for (const Running& running : running_) {
    (void)pages_.free(running.sequence, outcome_of(at(running.call), running.known));
  }
  for (const Waiting& waiting : waiting_) give_up(at(waiting.call));
}

const BatchFormer::Call& BatchFormer::at(CallId call) const {
  SAGA_ASSERT(is_open(call));
  return calls_[call];
}

std::uint32_t BatchFormer::chunk_of(std::uint32_t lacking, std::uint32_t budget) const {
  return std::min({lacking, budget, chunk_limit_});
}

std::uint32_t BatchFormer::hittable_blocks(const Call& call) const {
  return std::min(call.hash_count, (call.known - 1) / block_size_);
}

// ---- Calls

// The last new token is never computed.
bool BatchFormer::fits(std::uint64_t prompt_tokens, std::uint64_t max_new_tokens) const {
  if (prompt_tokens == 0 || max_new_tokens == 0 || prompt_tokens >= kNone || max_new_tokens >= kNone) return false;
  const std::uint64_t tokens = prompt_tokens + max_new_tokens - 1;
  return tokens < kNone - 1 && (tokens + block_size_ - 1) / block_size_ <= std::min(max_blocks_, capacity_);
}

Status BatchFormer::submit(Time now, const BatchCall& call, std::span<const BlockHash> hashes, CallId& id) {
  SAGA_ASSERT(now >= now_ && fits(call.prompt_tokens, call.max_new_tokens));
  SAGA_ASSERT(hashes.size() <= call.prompt_tokens / block_size_ && call.urgency >= 0);
  if (free_calls_.empty()) return Status::kFull;
  now_ = now;
  id = free_calls_.back();
  free_calls_.pop_back();
  Call& added = calls_[id];
  added = {};
  added.open = true;
  added.priority = call.priority;
  added.workflow = call.workflow;
  added.order = next_order_++;
  added.place = kMiddle + added.order;
  added.submitted = now;
  added.urgency = call.urgency;
  added.thread = call.thread;
  added.prompt_kind = call.prompt_kind;
  added.prompt_tokens = call.prompt_tokens;
  added.limit = call.prompt_tokens + call.max_new_tokens;
  added.known = call.prompt_tokens;
  add_hashes(id, hashes);
  push_waiting(id);
  ++totals_.submitted_total;
  return Status::kOk;
}

void BatchFormer::add_hashes(CallId id, std::span<const BlockHash> hashes) {
  Call& call = at(id);
  // Not one for the block of the last token, which is never computed; nor beyond the row.
  const std::uint32_t most = std::min((call.limit - 1) / block_size_, max_blocks_);
  SAGA_ASSERT(call.hash_count + hashes.size() <= hash_limit(id));
  const auto count = std::min<std::size_t>(hashes.size(), most - std::min(most, call.hash_count));
  std::copy_n(hashes.begin(), count, this->hashes(id) + call.hash_count);
  call.hash_count += static_cast<std::uint32_t>(count);
}

void BatchFormer::set_priority(CallId id, std::int32_t priority) {
  Call& call = at(id);
  call.priority = priority;
  if (call.heap_position == kNone || options_.order != BatchOrder::kPriority) return;
  remove_waiting(id);
  push_waiting(id);
}

std::uint32_t BatchFormer::set_urgency(std::uint64_t workflow, double urgency) {
  SAGA_ASSERT(urgency >= 0);
  std::uint32_t count = 0;
  for (Call& call : calls_) {
    if (!call.open || call.workflow != workflow) continue;
    call.urgency = urgency;  // waiting calls get their place when the next step orders them
    ++count;
  }
  return count;
}

void BatchFormer::cancel(CallId id) {
  Call& call = at(id);
  if (call.cancelled) return;
  ++totals_.cancelled_total;
  if (call.state == BatchCallState::kRunning) {
    if (in_flight_) {
      call.cancelled = true;
      ++cancelled_;
      return;
    }
    const auto place =
        std::find_if(running_.begin(), running_.end(), [id](const Running& running) { return running.call == id; });
    SAGA_ASSERT(place != running_.end());
    end_call(*place);
    running_.erase(place);
    return;
  }
  if (call.state == BatchCallState::kSwapped) --swapped_;
  give_up(call);
  remove_waiting(id);
  release(id);
}

// What the page table still has of a waiting call.
void BatchFormer::give_up(const Call& call) {
  if (call.state == BatchCallState::kSwapped) {
    (void)pages_.free(call.sequence, outcome_of(call, call.known));
  } else {
    pages_.preempted_ended(call.thread, outcome_of(call, call.known));
  }
}

CallOutcome BatchFormer::outcome_of(const Call& call, std::uint32_t known) {
  CallOutcome outcome = call.outcome;
  if (outcome.output_tokens == 0) outcome.output_tokens = known - call.prompt_tokens;
  return outcome;
}

std::uint32_t BatchFormer::cancel_workflow(std::uint64_t workflow) {
  std::uint32_t count = 0;
  for (CallId id = 0; id < calls_.size(); ++id) {
    if (!calls_[id].open || calls_[id].cancelled || calls_[id].workflow != workflow) continue;
    cancel(id);
    ++count;
  }
  return count;
}

BatchCallStatus BatchFormer::call_status(CallId id) const {
  const Call& call = at(id);
  BatchCallStatus status = {.state = call.state,
                            .known_tokens = call.known,
                            .computed_tokens = call.computed,
                            .hit_tokens = call.hit_tokens,
                            .preemptions = call.preemptions};
  if (call.state != BatchCallState::kRunning) return status;
  for (const Running& running : running_) {
    if (running.call != id) continue;
    status.known_tokens = running.known;
    status.computed_tokens = running.computed;
  }
  return status;
}

// Caches what is computed, gives the blocks back and forgets the call. It still stands in running_.
void BatchFormer::end_call(const Running& running) {
  publish(running, running.computed);
  (void)pages_.free(running.sequence, outcome_of(at(running.call), running.known));
  release(running.call);
}

void BatchFormer::release(CallId id) {
  calls_[id].open = false;
  free_calls_.push_back(id);
}

// ---- A step

BatchSummary BatchFormer::form(Time now, const BatchArrays& arrays) {
  SAGA_ASSERT(!in_flight_ && now >= now_ && arrays_fit(arrays));
  now_ = now;
  pages_.advance_time(now);
  copy_count_ = 0;
  preempted_.clear();
  batch_.clear();
  order_fresh_ = false;
  BatchSummary summary;
  // A call that had to preempt itself ends the round, even if nothing is scheduled yet; then the next follows at once.
  while (compose(arrays, summary) &&
         std::none_of(running_.begin(), running_.end(), [](const Running& running) { return running.scheduled > 0; })) {
    summary.updates = 0;
  }
  emit(arrays, summary);
  in_flight_ = summary.calls > 0;
  if (in_flight_) ++totals_.steps_total;
  return summary;
}

bool BatchFormer::arrays_fit(const BatchArrays& arrays) const {
  const std::size_t calls = options_.max_sequences;
  return arrays.calls.size() >= calls && arrays.rows.size() >= calls && arrays.first_tokens.size() >= calls &&
         arrays.token_counts.size() >= calls && arrays.sequence_lengths.size() >= calls &&
         arrays.query_starts.size() > calls && arrays.slot_mapping.size() >= options_.token_budget &&
         arrays.block_table_stride >= max_blocks_ &&
         arrays.block_tables.size() / arrays.block_table_stride >= pages_.max_sequences() &&
         arrays.updates.size() >= calls && arrays.copies.size() >= options_.max_copies &&
         arrays.preempted.size() >= calls;
}

// One round. True if it preempted a call. summary.decode_calls: how many calls are written out already.
bool BatchFormer::compose(const BatchArrays& arrays, BatchSummary& summary) {
  std::uint32_t budget = options_.token_budget;
  bool preempted = false;
  const auto running_calls = static_cast<std::uint32_t>(running_.size());
  summary.decode_calls = 0;
  filled_.clear();
  if (running_calls <= budget && running_calls <= pages_.pool(Tier::kGpu).free_count()) {
    budget -= decode_all(arrays, summary);
    if (summary.decode_calls < running_calls) (void)schedule_running(false, budget, preempted);
  } else {
    for (Running& running : running_) running.scheduled = 0;
    if (schedule_running(true, budget, preempted)) (void)schedule_running(false, budget, preempted);
  }
  first_admitted_ = static_cast<std::uint32_t>(running_.size());

  // Not before all running calls have their blocks: what a preempted call was to compute must not be hit.
  if (preempted) {
    summary.decode_calls = 0;
    filled_.clear();
    for (const bool decoding : {true, false}) {
      for (std::uint32_t i = 0; i < first_admitted_; ++i) {
        const bool decodes = running_[i].known - running_[i].computed == 1;
        if (decodes == decoding && may_fill_block(running_[i])) filled_.push_back(i);
      }
    }
  }
  if (!options_.hit_after_completion) {
    for (const std::uint32_t i : filled_) publish(running_[i], running_[i].computed + running_[i].scheduled);
  }
  if (!preempted && !waiting_.empty()) admit(budget);
  return preempted;
}

// Schedules the calls that lack one token and writes them out at once, where no block can be short. Should a call be
// preempted afterwards, emit() writes all anew. This is what a step costs when all calls decode.
std::uint32_t BatchFormer::decode_all(const BatchArrays& arrays, BatchSummary& summary) {
  Running* const running = running_.data();
  CallId* const calls = arrays.calls.data();
  SequenceId* const rows = arrays.rows.data();
  std::uint32_t* const first_tokens = arrays.first_tokens.data();
  std::uint32_t* const token_counts = arrays.token_counts.data();
  std::int32_t* const sequence_lengths = arrays.sequence_lengths.data();
  std::int32_t* const query_starts = arrays.query_starts.data();
  std::int64_t* const slot_mapping = arrays.slot_mapping.data();
  const auto bound = static_cast<std::uint32_t>(running_.size());
  batch_.resize(bound);
  std::uint32_t* const batch = batch_.data();
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < bound; ++i) {
    Running& call = running[i];
    if (call.known - call.computed != 1) {
      call.scheduled = 0;
      continue;
    }
    if (call.capacity - call.computed <= 1) cross_block(i, arrays, summary);
    call.scheduled = 1;
    calls[count] = call.call;
    rows[count] = call.sequence;
    first_tokens[count] = call.computed;
    token_counts[count] = 1;
    sequence_lengths[count] = static_cast<std::int32_t>(call.known);
    query_starts[count] = static_cast<std::int32_t>(count);
    slot_mapping[count] = call.next_slot;
    batch[count] = i;
    ++count;
  }
  summary.decode_calls = count;
  return count;
}

// The token that a decoding call is to compute is the first or the last of its block.
void BatchFormer::cross_block(std::uint32_t place, const BatchArrays& arrays, BatchSummary& summary) {
  Running& running = running_[place];
  if (running.computed == running.capacity) {
    const bool allocated = allocate(running, running.computed + 1);
    SAGA_ASSERT(allocated);
    (void)allocated;
    export_row(running, arrays, summary);
  }
  if (running.computed + 1 == running.capacity) filled_.push_back(place);
}

// Running calls that lack one token, or those that lack more. False if a call that had to go itself ended the round.
bool BatchFormer::schedule_running(bool decoding, std::uint32_t& budget, bool& preempted) {
  for (std::size_t i = 0; i < running_.size() && budget > 0; ++i) {
    const std::uint32_t lacking = running_[i].known - running_[i].computed;
    if ((lacking == 1) != decoding) continue;
    const std::uint32_t tokens = decoding ? 1 : chunk_of(lacking, budget);
    bool itself = false;
    while (!allocate(running_[i], running_[i].computed + tokens)) {
      const std::size_t victim = last_in_order();
      preempted = true;
      budget += running_[victim].scheduled;
      preempt(victim);
      itself = victim == i;
      if (itself) break;
      if (victim < i) --i;
    }
    if (itself) {
      // Nothing less important is left to take blocks from. vLLM leaves the calls behind it out of the step; they are
      // none under kFcfs.
      if (options_.order <= BatchOrder::kPriority) return false;
      --i;
      continue;
    }
    running_[i].scheduled = tokens;
    budget -= tokens;
    if (may_fill_block(running_[i])) filled_.push_back(static_cast<std::uint32_t>(i));
  }
  return true;
}

// Blocks for tokens up to `end`, or false.
bool BatchFormer::allocate(Running& running, std::uint32_t end) {
  if (end <= running.capacity) return true;
  const std::uint32_t capacity = blocks_for(end) * block_size_;
  if (pages_.allocate_slots(running.sequence, capacity - running.capacity).status != PageStatus::kOk) return false;
  if (running.computed == running.capacity) {
    running.next_slot = slot_of(running, running.computed);
  }
  running.capacity = capacity;
  return true;
}

std::int64_t BatchFormer::slot_of(const Running& running, std::uint32_t token) const {
  const BlockLocation at = pages_.location(running.sequence, token / block_size_);
  return std::int64_t{at.block} * static_cast<std::int64_t>(block_size_) + token % block_size_;
}

// Place in running_ of the call that is preempted next.
std::size_t BatchFormer::last_in_order() const {
  std::size_t last = running_.size() - 1;
  if (options_.order == BatchOrder::kFcfs) return last;
  const auto goes_before = [this](const Running& a, const Running& b) {
    const Call& first = at(a.call);
    const Call& second = at(b.call);
    switch (options_.order) {
      case BatchOrder::kFcfs:
      case BatchOrder::kBfs:
        break;
      case BatchOrder::kPriority:
        if (first.priority != second.priority) return first.priority < second.priority;
        break;
      case BatchOrder::kDfs:
        return first.order > second.order;
      case BatchOrder::kHybrid:
        if (first.urgency != second.urgency) return first.urgency > second.urgency;
        break;
      case BatchOrder::kSaga:
        if (first.urgency != second.urgency) return first.urgency > second.urgency;
        if (a.computed != b.computed) return a.computed > b.computed;
        break;
    }
    return first.order < second.order;
  };
  for (std::size_t i = last; i-- > 0;) {
    if (goes_before(running_[last], running_[i])) last = i;
  }
  return last;
}

void BatchFormer::preempt(std::size_t index) {
  Running& running = running_[index];
  Call& call = at(running.call);
  call.known = running.known;
  ++call.preemptions;
  ++totals_.preempted_total;
  if (options_.preemption == Preemption::kSwap && swap_out(running, call)) {
    ++totals_.swapped_out_total;
  } else {
    totals_.recomputed_tokens_total += running.computed;
    (void)pages_.free(running.sequence, outcome_of(call, call.known), true);
    call.state = BatchCallState::kWaiting;
  }
  call.place = --front_;
  preempted_.push_back(running.call);
  push_waiting(running.call);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
}

// To the host tier, or false with nothing moved.
bool BatchFormer::swap_out(Running& running, Call& call) {
  const std::uint32_t blocks = blocks_for(running.computed);
  const std::span<BlockCopy> room = std::span(copies_).subspan(copy_count_);
  if (blocks > room.size() || swapped_ == max_swapped_) return false;
  // Blocks of this step have no content yet.
  (void)pages_.truncate(running.sequence, blocks * block_size_);
  running.capacity = blocks * block_size_;
  const PlanResult planned = pages_.plan_swap_out(running.sequence, Tier::kHost, room);
  if (planned.status != PageStatus::kOk) return false;
  pages_.commit(planned.plan);
  copy_count_ += planned.copy_count;
  call.state = BatchCallState::kSwapped;
  call.sequence = running.sequence;
  call.computed = running.computed;
  ++swapped_;
  return true;
}

// From now on the full blocks before token `end` are found by their hashes, as far as those are known.
void BatchFormer::publish(const Running& running, std::uint32_t end) {
  const std::uint32_t full = std::min(at(running.call).hash_count, end / block_size_);
  const std::uint32_t cached = pages_.cached_blocks(running.sequence);
  if (full <= cached) return;
  (void)pages_.cache_full_blocks(running.sequence, {hashes(running.call) + cached, full - cached});
}

// ---- Admission

void BatchFormer::admit(std::uint32_t& budget) {
  held_.clear();
  bool looked = false;
  while (budget > 0 && !waiting_.empty() && running_.size() < options_.max_sequences) {
    if (!looked) {
      looked = true;
      refresh_order();
      computing_.clear();
      for (std::uint32_t i = 0; options_.session_affinity && i < running_.size(); ++i) {
        if (running_[i].known - running_[i].computed > 1) computing_.push_back(i);
      }
    }
    const CallId id = waiting_.front().call;
    const Admission outcome = try_admit(id, budget);
    if (outcome == Admission::kNoRoom) break;
    if (outcome == Admission::kAdmitted) continue;
    remove_waiting(id);
    held_.push_back(id);
    ++totals_.held_total;
  }
  for (const CallId id : held_) push_waiting(id);
}

BatchFormer::Admission BatchFormer::try_admit(CallId id, std::uint32_t& budget) {
  Call& call = at(id);
  const std::uint32_t free_blocks = pages_.pool(Tier::kGpu).free_count();
  Running running{.call = id, .known = call.known, .limit = call.limit};
  if (call.state == BatchCallState::kSwapped) {
    const std::uint32_t chunk = chunk_of(call.known - call.computed, budget);
    // Blocks that are shared with running calls would need no free ones; counted as if they did.
    if (blocks_for(call.computed + chunk) > free_blocks) return Admission::kNoRoom;
    if (!reopen(call, 0)) return Admission::kNoRoom;
    --swapped_;
    running.computed = call.computed;
    running.scheduled = chunk;
  } else {
    const Prefix prefix = cached_prefix(id);
    call.match_hint = prefix.blocks;
    if (is_held(id, prefix.blocks)) return Admission::kHeld;
    running.computed = prefix.blocks * block_size_;
    running.scheduled = chunk_of(call.known - running.computed, budget);
    const std::uint32_t blocks = blocks_for(running.computed + running.scheduled);
    if (blocks - prefix.blocks + prefix.free_blocks + prefix.blocks_below_gpu > free_blocks) return Admission::kNoRoom;
    if (!reopen(call, prefix.blocks)) return Admission::kNoRoom;
  }
  running.sequence = call.sequence;
  running.capacity = blocks_for(running.computed) * block_size_;
  if (running.computed < running.capacity) running.next_slot = slot_of(running, running.computed);
  const bool allocated = allocate(running, running.computed + running.scheduled);
  SAGA_ASSERT(allocated);
  (void)allocated;

  remove_waiting(id);
  call.state = BatchCallState::kRunning;
  call.sequence = kNone;
  call.computed = 0;
  if (!call.admitted_before) {
    call.admitted_before = true;
    call.hit_tokens = std::min(running.computed, call.prompt_tokens);
    totals_.prompt_tokens_total += call.prompt_tokens;
    totals_.hit_tokens_total += call.hit_tokens;
  }
  budget -= running.scheduled;
  if (!options_.hit_after_completion && may_fill_block(running)) publish(running, running.computed + running.scheduled);
  if (running.known - running.computed > 1) computing_.push_back(static_cast<std::uint32_t>(running_.size()));
  running_.push_back(running);
  return Admission::kAdmitted;
}

// Brings the blocks of a swapped call back, or opens a sequence over the first `matched` blocks of a waiting one.
// False, with the call as it was, where sequences or plans of the page table have run out.
bool BatchFormer::reopen(Call& call, std::uint32_t matched) {
  const auto id = static_cast<CallId>(&call - calls_.data());
  const bool swapped = call.state == BatchCallState::kSwapped;
  if (!swapped) {
    const CallHints hints = {
        .thread = call.thread, .prompt_kind = call.prompt_kind, .chain = {hashes(id), hittable_blocks(call)}};
    const OpenResult opened = pages_.open({hashes(id), matched}, std::max(call.known, 1u), slowest_hit_, hints);
    if (opened.status != PageStatus::kOk) return false;
    SAGA_ASSERT(opened.hit.tokens == matched * block_size_);
    call.sequence = opened.sequence;
  }
  if (pages_.is_resident(call.sequence)) return true;
  const std::span<BlockCopy> room = std::span(copies_).subspan(copy_count_);
  PlanResult planned{.status = PageStatus::kOutOfPlans};
  if (!swapped || pages_.block_count(call.sequence) <= room.size()) planned = pages_.plan_swap_in(call.sequence, room);
  if (planned.status != PageStatus::kOk) {
    if (!swapped) {
      (void)pages_.free(call.sequence, {}, true);
      call.sequence = kNone;
    }
    return false;
  }
  pages_.commit(planned.plan);
  copy_count_ += planned.copy_count;
  return true;
}

BatchFormer::Prefix BatchFormer::cached_prefix(CallId id) const {
  const Call& call = at(id);
  const BlockPool& gpu = pages_.pool(Tier::kGpu);
  const auto room = static_cast<std::uint32_t>(copies_.size()) - copy_count_;
  const BlockHash* const chain = hashes(id);
  Prefix prefix;
  for (const std::uint32_t most = hittable_blocks(call); prefix.blocks < most; ++prefix.blocks) {
    const BlockHash hash = chain[prefix.blocks];
    const BlockId block = gpu.get_cached_block(hash);
    if (block != kNone) {
      prefix.free_blocks += gpu.ref_count(block) == 0;
    } else if (slowest_hit_ > Tier::kGpu && prefix.blocks_below_gpu < room && is_cached(hash)) {
      ++prefix.blocks_below_gpu;
    } else {
      break;
    }
  }
  return prefix;
}

bool BatchFormer::is_cached(BlockHash hash) const {
  for (std::uint32_t tier = 0; tier <= static_cast<std::uint32_t>(slowest_hit_); ++tier) {
    if (pages_.pool(static_cast<Tier>(tier)).get_cached_block(hash) != kNone) return true;
  }
  return false;
}

// Whether a running call is about to compute the first block that this one lacks.
bool BatchFormer::is_held(CallId id, std::uint32_t matched) const {
  if (!options_.session_affinity || matched >= hittable_blocks(at(id))) return false;
  const BlockHash wanted = hashes(id)[matched];
  return std::any_of(computing_.begin(), computing_.end(), [&](std::uint32_t place) {
    const Running& running = running_[place];
    return at(running.call).hash_count > matched && running.known / block_size_ > matched &&
           pages_.cached_blocks(running.sequence) <= matched && hashes(running.call)[matched] == wanted;
  });
}

// ---- Output

void BatchFormer::emit(const BatchArrays& arrays, BatchSummary& summary) {
  const auto bound = static_cast<std::uint32_t>(running_.size());
  batch_.resize(bound);
  std::uint32_t count = summary.decode_calls;
  if (count == 0) {
    for (std::uint32_t i = 0; i < first_admitted_; ++i) {
      if (running_[i].scheduled == 1 && running_[i].known - running_[i].computed == 1) {
        emit_call(i, count, count, arrays, summary);
        ++count;
      }
    }
    summary.decode_calls = count;
  }
  std::uint32_t tokens = count;
  if (count < bound) {
    for (std::uint32_t i = 0; i < bound; ++i) {
      if (running_[i].scheduled == 0) continue;
      if (i < first_admitted_ && running_[i].known - running_[i].computed == 1) continue;
      emit_call(i, count, tokens, arrays, summary);
      tokens += running_[i].scheduled;
      ++count;
    }
  }
  arrays.query_starts[count] = static_cast<std::int32_t>(tokens);
  batch_.resize(count);
  std::copy(preempted_.begin(), preempted_.end(), arrays.preempted.begin());
  std::copy_n(copies_.begin(), copy_count_, arrays.copies.begin());
  summary.calls = count;
  summary.tokens = tokens;
  summary.admitted = bound - first_admitted_;
  summary.copies = copy_count_;
  summary.preempted = static_cast<std::uint32_t>(preempted_.size());
  totals_.decode_tokens_total += summary.decode_calls;
  totals_.prefill_tokens_total += tokens - summary.decode_calls;
}

// The call at `place` is call `index` of the batch, and its first token is token `token` of it.
void BatchFormer::emit_call(std::uint32_t place, std::uint32_t index, std::uint32_t token, const BatchArrays& arrays,
                            BatchSummary& summary) {
  Running& running = running_[place];
  arrays.calls[index] = running.call;
  arrays.rows[index] = running.sequence;
  arrays.first_tokens[index] = running.computed;
  arrays.token_counts[index] = running.scheduled;
  arrays.sequence_lengths[index] = static_cast<std::int32_t>(running.computed + running.scheduled);
  arrays.query_starts[index] = static_cast<std::int32_t>(token);
  const TokenRange range = {
      .sequence = running.sequence, .first_token = running.computed, .token_count = running.scheduled};
  (void)pages_.export_slot_mapping({&range, 1}, arrays.slot_mapping.subspan(token));
  batch_[index] = place;
  if (running.exported * std::uint64_t{block_size_} < running.capacity) export_row(running, arrays, summary);
}

void BatchFormer::export_row(Running& running, const BatchArrays& arrays, BatchSummary& summary) {
  const std::uint32_t blocks = running.capacity / block_size_;
  std::int32_t* const row = &arrays.block_tables[std::size_t{running.sequence} * arrays.block_table_stride];
  for (std::uint32_t block = running.exported; block < blocks; ++block) {
    row[block] = static_cast<std::int32_t>(pages_.location(running.sequence, block).block);
  }
  arrays.updates[summary.updates++] = {
      .row = running.sequence, .first_block = running.exported, .block_count = blocks - running.exported};
  running.exported = blocks;
}

bool BatchFormer::completion_valid(std::span<const std::uint32_t> sampled,
                                   std::span<const std::uint8_t> finished) const {
  if (!in_flight_ || sampled.size() != batch_.size() || finished.size() != batch_.size()) return false;
  bool valid = true;
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    const Running& running = running_[batch_[i]];
    const bool complete = running.computed + running.scheduled == running.known;
    valid &= complete ? (sampled[i] > 0 || finished[i] != 0) && sampled[i] <= running.limit - running.known
                      : sampled[i] == 0;
  }
  return valid;
}

std::uint32_t BatchFormer::complete(std::span<const std::uint32_t> sampled, std::span<const std::uint8_t> finished) {
  SAGA_ASSERT(completion_valid(sampled, finished));
  std::uint32_t ended = 0;
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    Running& running = running_[batch_[i]];
    const std::uint32_t scheduled = running.scheduled;
    running.computed += scheduled;
    running.known += sampled[i];
    if (scheduled == 1) {
      ++running.next_slot;
    } else if (running.computed < running.capacity) {
      running.next_slot = slot_of(running, running.computed);
    }
    if (options_.hit_after_completion && (scheduled > 1 || running.computed == running.capacity)) {
      publish(running, running.computed);
    }
    if (finished[i] != 0 || running.known == running.limit) {
      running.scheduled = kEnded;
      ++ended;
    }
  }
  in_flight_ = false;
  batch_.clear();
  if (cancelled_ > 0) {
    for (Running& running : running_) {
      if (!at(running.call).cancelled || running.scheduled == kEnded) continue;
      running.scheduled = kEnded;
      ++ended;
    }
    cancelled_ = 0;
  }
  if (ended == 0) return 0;
  std::size_t kept = 0;
  for (const Running& running : running_) {
    if (running.scheduled != kEnded) {
      running_[kept++] = running;
      continue;
    }
    if (!at(running.call).cancelled) ++totals_.finished_total;
    end_call(running);
  }
  running_.resize(kept);
  return ended;
}

// ---- Order of waiting calls

BatchFormer::Waiting BatchFormer::waiting_of(CallId id) {
  Call& call = at(id);
  Waiting waiting{.key = call.order, .tie = call.order, .call = id};
  // Below kMiddle: overdue. Above, what the order says.
  if (order_changes() && options_.starvation_limit != kNotDeclared &&
      now_ - call.submitted >= options_.starvation_limit) {
    return waiting;
  }
  switch (options_.order) {
    case BatchOrder::kFcfs:
      waiting.key = call.place;
      break;
    case BatchOrder::kPriority:
      waiting.key = static_cast<std::uint64_t>(std::int64_t{call.priority} + (std::int64_t{1} << 32));
      break;
    case BatchOrder::kBfs:
      break;
    case BatchOrder::kDfs:
      waiting.key = ~call.order;
      break;
    case BatchOrder::kHybrid:
      waiting.key = ~ordered_bits(call.urgency);
      break;
    case BatchOrder::kSaga: {
      std::uint32_t computed = call.computed;
      if (call.state != BatchCallState::kSwapped) {
        const BlockHash* const chain = hashes(id);
        std::uint32_t& hint = call.match_hint;
        const std::uint32_t most = hittable_blocks(call);
        hint = std::min(hint, most);
        while (hint > 0 && !is_cached(chain[hint - 1])) --hint;
        while (hint < most && is_cached(chain[hint])) ++hint;
        computed = hint * block_size_;
      }
      waiting.key = kMiddle | ordered_bits(static_cast<double>(call.known - computed) / call.urgency);
      break;
    }
  }
  return waiting;
}

// Keys that depend on the time, the cache or what the caller has set since.
void BatchFormer::refresh_order() {
  if (!order_changes() || order_fresh_) return;
  order_fresh_ = true;
  for (Waiting& waiting : waiting_) waiting = waiting_of(waiting.call);
  for (std::size_t i = waiting_.size() / 2; i-- > 0;) sift_down(i);
}

void BatchFormer::push_waiting(CallId id) {
  waiting_.push_back(waiting_of(id));
  sift_up(waiting_.size() - 1);
}

void BatchFormer::remove_waiting(CallId id) {
  const std::uint32_t position = at(id).heap_position;
  SAGA_ASSERT(position < waiting_.size() && waiting_[position].call == id);
  const Waiting last = waiting_.back();
  waiting_.pop_back();
  at(id).heap_position = kNone;
  if (last.call == id) return;
  place_waiting(position, last);
  sift_up(position);
  sift_down(at(last.call).heap_position);
}

void BatchFormer::place_waiting(std::size_t position, const Waiting& waiting) {
  waiting_[position] = waiting;
  calls_[waiting.call].heap_position = static_cast<std::uint32_t>(position);
}

void BatchFormer::sift_up(std::size_t position) {
  const Waiting waiting = waiting_[position];
  while (position > 0 && waiting < waiting_[(position - 1) / 2]) {
    place_waiting(position, waiting_[(position - 1) / 2]);
    position = (position - 1) / 2;
  }
  place_waiting(position, waiting);
}

void BatchFormer::sift_down(std::size_t position) {
  const Waiting waiting = waiting_[position];
  for (std::size_t child = 2 * position + 1; child < waiting_.size(); child = 2 * position + 1) {
    if (child + 1 < waiting_.size() && waiting_[child + 1] < waiting_[child]) ++child;
    if (!(waiting_[child] < waiting)) break;
    place_waiting(position, waiting_[child]);
    position = child;
  }
  place_waiting(position, waiting);
}

// ---- Inspection

BatchFormerStats BatchFormer::stats() const {
  BatchFormerStats stats = totals_;
  stats.waiting_calls = static_cast<std::uint32_t>(waiting_.size());
  stats.swapped_calls = swapped_;
  stats.running_calls = static_cast<std::uint32_t>(running_.size());
  stats.memory_bytes =
      calls_.size() * (sizeof(Call) + 2 * sizeof(CallId) + sizeof(Waiting) + max_blocks_ * sizeof(BlockHash)) +
      options_.max_sequences * (sizeof(Running) + 3 * sizeof(std::uint32_t)) + copies_.size() * sizeof(BlockCopy);
  return stats;
}

bool BatchFormer::verify() const {
  std::vector<bool> seen(calls_.size()), sequence_seen(pages_.max_sequences());
  const auto see = [&](CallId id) {
    if (!is_open(id) || seen[id]) return false;
    seen[id] = true;
    const Call& call = calls_[id];
    return call.order < next_order_ && call.submitted <= now_ && call.hash_count <= max_blocks_ &&
           call.hash_count <= call.limit / block_size_ && call.prompt_tokens < call.limit;
  };
  const auto see_sequence = [&](SequenceId id, std::uint32_t tokens) {
    if (!pages_.is_open(id) || pages_.is_busy(id) || sequence_seen[id]) return false;
    sequence_seen[id] = true;
    return pages_.token_count(id) == tokens;
  };

  if (running_.size() > options_.max_sequences) return false;
  std::uint32_t cancelled = 0;
  for (const Running& running : running_) {
    if (!see(running.call) || !see_sequence(running.sequence, running.capacity)) return false;
    const Call& call = calls_[running.call];
    if (call.state != BatchCallState::kRunning || call.heap_position != kNone || call.limit != running.limit)
      return false;
    if (call.cancelled) ++cancelled;
    const std::uint32_t end = running.computed + (in_flight_ ? running.scheduled : 0);
    if (end > running.known || running.computed >= running.known || running.known >= running.limit) return false;
    if (running.known < call.prompt_tokens || running.capacity != blocks_for(end) * block_size_) return false;
    if (!pages_.is_resident(running.sequence) || running.exported * block_size_ > running.capacity) return false;
    if (running.computed < running.capacity && running.next_slot != slot_of(running, running.computed)) return false;
    const std::uint32_t cached = pages_.cached_blocks(running.sequence);
    if (cached > call.hash_count || cached > end / block_size_) return false;
  }
  if (cancelled != cancelled_ || (cancelled > 0 && !in_flight_)) return false;

  std::uint32_t swapped = 0;
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    const CallId id = waiting_[i].call;
    if (!see(id) || (i > 0 && waiting_[i] < waiting_[(i - 1) / 2])) return false;
    const Call& call = calls_[id];
    if (call.heap_position != i || call.cancelled || call.known < call.prompt_tokens) return false;
    if (call.known >= call.limit || call.computed >= call.known) return false;
    if (call.state == BatchCallState::kRunning) return false;
    if (call.state == BatchCallState::kWaiting && (call.computed != 0 || call.sequence != kNone)) return false;
    if (call.state != BatchCallState::kSwapped) continue;
    ++swapped;
    if (!see_sequence(call.sequence, blocks_for(call.computed) * block_size_)) return false;
  }
  if (swapped != swapped_) return false;

  for (const CallId id : free_calls_) {
    if (id >= calls_.size() || calls_[id].open || seen[id]) return false;
    seen[id] = true;
  }
  std::uint32_t last = kNone;
  std::vector<bool> in_batch(running_.size());
  for (const std::uint32_t place : batch_) {
    if (!in_flight_ || place >= running_.size() || running_[place].scheduled == 0 || in_batch[place]) return false;
    in_batch[place] = true;
    last = place;
  }
  return in_flight_ == (last != kNone) && std::all_of(seen.begin(), seen.end(), [](bool one) { return one; });
}

std::uint64_t BatchFormer::digest() const {
  Digest digest;
  digest.add(pages_.digest());
  digest.add(now_);
  digest.add(next_order_);
  digest.add(front_);
  digest.add(in_flight_ ? 1 : 0);
  for (CallId id = 0; id < calls_.size(); ++id) {
    const Call& call = calls_[id];
    digest.add(call.open ? 1 : 0);
    if (!call.open) continue;
    digest.add(static_cast<std::uint64_t>(call.state) << 2 | (call.cancelled ? 2 : 0) | (call.admitted_before ? 1 : 0));
    digest.add(static_cast<std::uint64_t>(std::int64_t{call.priority}));
    for (const std::uint64_t word :
         {call.workflow, call.order, call.place, call.submitted, ordered_bits(call.urgency)}) {
      digest.add(word);
    }
    if (pages_.evictor() != nullptr) {
      digest.add(call.thread);
      digest.add(static_cast<std::uint64_t>(call.prompt_kind) << 32 |
                 static_cast<std::uint64_t>(call.outcome.stop_reason) << 16 |
                 static_cast<std::uint64_t>(call.outcome.tool_class) << 8 | (call.outcome.session_end ? 1 : 0));
      digest.add(call.outcome.declared_gap);
      digest.add(call.outcome.output_tokens);
    }
    digest.add(std::uint64_t{call.prompt_tokens} << 32 | call.limit);
    digest.add(std::uint64_t{call.hash_count} << 32 | call.match_hint);
    for (std::uint32_t i = 0; i < call.hash_count; ++i) digest.add(hashes(id)[i]);
    if (call.state == BatchCallState::kRunning) continue;
    digest.add(std::uint64_t{call.known} << 32 | call.computed);
    digest.add(call.sequence);
  }
  for (const Running& running : running_) {
    digest.add(std::uint64_t{running.call} << 32 | running.sequence);
    digest.add(std::uint64_t{running.computed} << 32 | running.known);
    digest.add(in_flight_ ? running.scheduled : 0);
  }
  for (const CallId id : free_calls_) digest.add(id);
  return digest.value();
}

}  // namespace saga
