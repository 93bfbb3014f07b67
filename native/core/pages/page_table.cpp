#include "page_table.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "../base/digest.hpp"

namespace saga {

PageTable::PageTable(const PageTableOptions& options)
    : block_size_(options.block_size),
      max_blocks_(options.max_blocks_per_sequence),
      demotion_(options.demotion),
      events_(options.event_capacity),
      sequences_(options.max_sequences),
      entries_(std::make_unique_for_overwrite<Entry[]>(std::size_t{options.max_sequences} * max_blocks_)),
      plans_(options.max_plans),
      moves_(std::make_unique_for_overwrite<Move[]>(std::size_t{options.max_plans} * max_blocks_)),
      new_blocks_(std::size_t{max_blocks_} + 1) {
  SAGA_ASSERT(block_size_ > 0 && max_blocks_ > 0);
  SAGA_ASSERT(std::uint64_t{block_size_} * max_blocks_ < kNone);  // token counts fit
  if (options.eviction == PolicyKind::kSaga) {
    BlockEvictorOptions evictor;
    evictor.block_count = options.block_count[0];
    evictor.block_tokens = options.block_size;
    evictor.max_calls = options.max_sequences * 2;
    evictor.ghosts = options.ghosts;
    evictor.regret_calls = 4096;
    evictor_ = std::make_unique<BlockEvictor>(evictor);
    for (CallId call = evictor.max_calls; call > 0; --call) free_calls_.push_back(call - 1);
    preempted_ = BlockHashMap(options.max_sequences);
    thread_of_call_.assign(evictor.max_calls, BlockEvictor::kNoThread);
  }
  pools_.reserve(kTierCount);
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    pools_.emplace_back(BlockPoolOptions{.block_count = options.block_count[tier],
                                         .tier = static_cast<Tier>(tier),
                                         .uncached_first = options.uncached_first},
                        options.event_capacity > 0 ? &events_ : nullptr, tier == 0 ? evictor_.get() : nullptr);
  }
  demotion_.enabled = demotion_.enabled && evictor_ != nullptr && options.block_count[1] > 0;
  if (demotion_.enabled) {
    evicted_.reserve(std::size_t{max_blocks_} + 1);
    demotions_.reserve(max_blocks_);
    tier_pool(Tier::kGpu).report_evicted(&evicted_, demotion_.horizon);
  }
  for (SequenceId id = options.max_sequences; id > 0; --id) free_sequences_.push_back(id - 1);
  for (PlanId id = options.max_plans; id > 0; --id) free_plans_.push_back(id - 1);
}

const PageTable::Sequence& PageTable::at(SequenceId sequence) const {
  SAGA_ASSERT(is_open(sequence));
  return sequences_[sequence];
}

PageTable::Sequence& PageTable::at(SequenceId sequence) {
  SAGA_ASSERT(is_open(sequence));
  return sequences_[sequence];
}

BlockLocation PageTable::location(SequenceId sequence, std::uint32_t index) const {
  SAGA_ASSERT(index < at(sequence).block_count);
  return unpack(row(sequence)[index]);
}

// The last token must be computed: its block is never a hit, full or not.
std::uint32_t PageTable::cacheable_blocks(std::size_t hash_count, std::uint32_t token_count) const {
  SAGA_ASSERT(token_count >= 1);
  const std::size_t whole = std::min((token_count - 1) / block_size_, max_blocks_);
  return static_cast<std::uint32_t>(std::min(hash_count, whole));
}

BlockLocation PageTable::find(BlockHash hash, Tier slowest) const {
  for (std::uint32_t tier = 0; tier <= static_cast<std::uint32_t>(slowest); ++tier) {
    const BlockId block = pools_[tier].get_cached_block(hash);
    if (block != kNone) return {.tier = static_cast<Tier>(tier), .block = block};
  }
  return {.tier = slowest, .block = kNone};
}

PrefixHit PageTable::match(std::span<const BlockHash> hashes, std::uint32_t token_count, Tier slowest) const {
  PrefixHit hit;
  for (const BlockHash hash : hashes.first(cacheable_blocks(hashes.size(), token_count))) {
    const BlockLocation found = find(hash, slowest);
    if (found.block == kNone) break;
    hit.tokens += block_size_;
    hit.tokens_in_tier[static_cast<std::size_t>(found.tier)] += block_size_;
  }
  return hit;
}

OpenResult PageTable::open(std::span<const BlockHash> hashes, std::uint32_t token_count, Tier slowest,
                           const CallHints& hints) {
  if (free_sequences_.empty()) return {.status = PageStatus::kOutOfSequences, .hit = {}};
  const SequenceId id = free_sequences_.back();
  free_sequences_.pop_back();
  Sequence& sequence = sequences_[id];
  sequence = {.open = true};
  if (evictor_ != nullptr) {
    const std::span<const BlockHash> chain = hints.chain.empty() ? hashes : hints.chain;
    start_call(id, chain.first(cacheable_blocks(chain.size(), token_count)), hints);
  }
  OpenResult result = {.sequence = id, .hit = {}};
  for (const BlockHash hash : hashes.first(cacheable_blocks(hashes.size(), token_count))) {
    const BlockLocation found = find(hash, slowest);
    if (found.block == kNone) break;
    tier_pool(found.tier).touch({&found.block, 1});
    row(id)[sequence.block_count++] = pack(found);
    if (found.tier != Tier::kGpu) ++sequence.blocks_below_gpu;
    if (evictor_ != nullptr) tell_stored(id, sequence.block_count - 1);
    result.hit.tokens += block_size_;
    result.hit.tokens_in_tier[static_cast<std::size_t>(found.tier)] += block_size_;
  }
  sequence.cached_blocks = sequence.block_count;
  sequence.token_count = result.hit.tokens;

  ++totals_.opened_total;
  totals_.prompt_tokens_total += token_count;
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    totals_.hit_tokens_total[tier] += result.hit.tokens_in_tier[tier];
  }
  return result;
}

AllocateResult PageTable::allocate_slots(SequenceId id, std::uint32_t new_tokens) {
  Sequence& sequence = at(id);
  if (sequence.plan != kNone) return {.status = PageStatus::kBusy};
  if (sequence.blocks_below_gpu > 0) return {.status = PageStatus::kNotResident};
  const std::uint64_t tokens = std::uint64_t{sequence.token_count} + new_tokens;
  if (tokens > std::uint64_t{max_blocks_} * block_size_) return {.status = PageStatus::kSequenceFull};

  BlockPool& gpu = tier_pool(Tier::kGpu);
  Entry* const table = row(id);
  const bool writes_last = new_tokens > 0 && sequence.token_count % block_size_ != 0;
  const BlockId last = writes_last ? unpack(table[sequence.block_count - 1]).block : kNone;
  const bool copies_last = writes_last && gpu.ref_count(last) > 1;
  const std::uint32_t blocks = blocks_for(tokens);
  const std::uint32_t new_count = blocks - sequence.block_count + (copies_last ? 1 : 0);
  if (!gpu.allocate(std::span(new_blocks_).first(new_count))) {
    ++totals_.out_of_blocks_total;
    return {.status = PageStatus::kOutOfBlocks};
  }

  demote_evicted();
  AllocateResult result;
  const BlockId* next = new_blocks_.data();
  if (copies_last) {
    const BlockId copy = *next++;
    table[sequence.block_count - 1] = pack({.tier = Tier::kGpu, .block = copy});
    release({.tier = Tier::kGpu, .block = last});
    result.copied = true;
    result.copy = {.source = {.tier = Tier::kGpu, .block = last}, .target = {.tier = Tier::kGpu, .block = copy}};
    ++totals_.copies_on_write_total;
  } else if (writes_last) {
    gpu.evict(last);
  }
  while (sequence.block_count < blocks) {
    table[sequence.block_count++] = pack({.tier = Tier::kGpu, .block = *next++});
  }
  sequence.token_count = static_cast<std::uint32_t>(tokens);
  return result;
}

PageStatus PageTable::cache_full_blocks(SequenceId id, std::span<const BlockHash> hashes) {
  Sequence& sequence = at(id);
  if (sequence.plan != kNone) return PageStatus::kBusy;
  SAGA_ASSERT(sequence.cached_blocks + hashes.size() <= sequence.token_count / block_size_);
  for (const BlockHash& hash : hashes) {
    const BlockLocation location = unpack(row(id)[sequence.cached_blocks++]);
    BlockPool& blocks = tier_pool(location.tier);
    if (blocks.is_cached(location.block)) {
      SAGA_ASSERT(blocks.hash(location.block) == hash);
    } else {
      blocks.cache_full_blocks({&location.block, 1}, {&hash, 1});
      if (evictor_ != nullptr) tell_stored(id, sequence.cached_blocks - 1);
    }
  }
  return PageStatus::kOk;
}

ForkResult PageTable::fork(SequenceId parent_id) {
  const Sequence& parent = at(parent_id);
  if (parent.plan != kNone) return {.status = PageStatus::kBusy};
  if (free_sequences_.empty()) return {.status = PageStatus::kOutOfSequences};
  const SequenceId id = free_sequences_.back();
  free_sequences_.pop_back();
  sequences_[id] = parent;
  sequences_[id].call = kNone;
  for (std::uint32_t i = 0; i < parent.block_count; ++i) {
    const Entry entry = row(parent_id)[i];
    row(id)[i] = entry;
    const BlockLocation shared = unpack(entry);
    tier_pool(shared.tier).touch({&shared.block, 1});
  }
  return {.sequence = id};
}

void PageTable::release(BlockLocation location) { tier_pool(location.tier).free_blocks({&location.block, 1}); }

// Last block first: see BlockPool.
void PageTable::release_from(SequenceId id, std::uint32_t first_block) {
  Sequence& sequence = at(id);
  while (sequence.block_count > first_block) {
    const BlockLocation location = unpack(row(id)[--sequence.block_count]);
    if (location.tier != Tier::kGpu) --sequence.blocks_below_gpu;
    release(location);
  }
}

PageStatus PageTable::truncate(SequenceId id, std::uint32_t token_count) {
  Sequence& sequence = at(id);
  if (sequence.plan != kNone) return PageStatus::kBusy;
  SAGA_ASSERT(token_count <= sequence.token_count);
  release_from(id, blocks_for(token_count));
  sequence.token_count = token_count;
  sequence.cached_blocks = std::min(sequence.cached_blocks, token_count / block_size_);
  return PageStatus::kOk;
}

PageStatus PageTable::free(SequenceId id, const CallOutcome& outcome, bool preempted) {
  Sequence& sequence = at(id);
  if (sequence.plan != kNone) return PageStatus::kBusy;
  if (sequence.call != kNone) end_call(id, outcome, preempted);
  release_from(id, 0);
  sequence = {};
  free_sequences_.push_back(id);
  return PageStatus::kOk;
}

// ---- Calls, for the eviction policy

void PageTable::start_call(SequenceId id, std::span<const BlockHash> chain, const CallHints& hints) {
  CallId call = hints.thread == BlockEvictor::kNoThread ? kNone : preempted_.find(hints.thread);
  if (call != kNone) {
    preempted_.erase(hints.thread);
  } else {
    call = free_calls_.back();
    free_calls_.pop_back();
  }
  sequences_[id].call = call;
  thread_of_call_[call] = hints.thread;
  evictor_->start(call, hints.thread, chain, hints.prompt_kind, evictor_->now());
}

void PageTable::end_call(SequenceId id, const CallOutcome& outcome, bool preempted) {
  const Sequence& sequence = at(id);
  const CallId call = sequence.call;
  const BlockEvictor::ThreadKey thread = thread_of_call_[call];
  if (preempted && thread != BlockEvictor::kNoThread && preempted_.find(thread) == kNone &&
      preempted_.size() < max_sequences()) {
    evictor_->preempt(call, evictor_->now());
    preempted_.insert(thread, call);
    return;
  }
  BlockId last = kNone;
  for (std::uint32_t i = sequence.cached_blocks; i > 0 && last == kNone; --i) {
    const BlockLocation location = unpack(row(id)[i - 1]);
    if (location.tier == Tier::kGpu && evictor_->is_stored(location.block)) last = location.block;
  }
  evictor_->end(call, outcome, last, evictor_->now());
  free_calls_.push_back(call);
}

bool PageTable::told(BlockEvictor::ThreadKey thread, const CallOutcome& outcome) {
  return evictor_ != nullptr && evictor_->told(thread, outcome, evictor_->now());
}

void PageTable::preempted_ended(BlockEvictor::ThreadKey thread, const CallOutcome& outcome) {
  if (evictor_ == nullptr || thread == BlockEvictor::kNoThread) return;
  const CallId call = preempted_.find(thread);
  if (call == kNone) return;
  preempted_.erase(thread);
  evictor_->end(call, outcome, kNone, evictor_->now());
  free_calls_.push_back(call);
}

void PageTable::thread_left(BlockEvictor::ThreadKey thread) {
  if (evictor_ == nullptr) return;
  preempted_ended(thread);
  evictor_->thread_left(thread, evictor_->now());
}

// The evictor hears which page block `index` of the sequence holds, if it is cached in GPU memory and not known yet.
void PageTable::tell_stored(SequenceId id, std::uint32_t index) {
  const BlockLocation location = unpack(row(id)[index]);
  const BlockPool& gpu = pool(Tier::kGpu);
  if (location.tier != Tier::kGpu || !gpu.is_cached(location.block) || evictor_->is_stored(location.block)) return;
  const BlockHash hash = gpu.hash(location.block);
  if (index == 0) {
    evictor_->store(false, 0, {&hash, 1}, {&location.block, 1});
    return;
  }
  const BlockLocation before = unpack(row(id)[index - 1]);
  if (pool(before.tier).is_cached(before.block)) {
    evictor_->store(true, pool(before.tier).hash(before.block), {&hash, 1}, {&location.block, 1});
  } else {
    evictor_->store_known(hash, location.block);
  }
}

void PageTable::demote_evicted() {
  BlockPool& host = tier_pool(Tier::kHost);
  for (const BlockEvictor::Evicted& gone : evicted_) {
    const double position = static_cast<double>(gone.index) * block_size_;
    const double again = demotion_.recompute_ns_per_token * (1 + position / demotion_.recompute_double_tokens);
    if (!(gone.reuse_probability * again > demotion_.price * demotion_.transfer_ns_per_token)) {
      ++totals_.demotion_dropped_total;
      continue;
    }
    BlockId target = host.get_cached_block(gone.hash);
    if (target != kNone) {  // most recently used from now on
      host.touch({&target, 1});
      host.free_blocks({&target, 1});
      ++totals_.demoted_shared_total;
      continue;
    }
    if (demotions_.size() == max_blocks_ || !host.allocate({&target, 1})) {
      ++totals_.demotion_refused_total;
      continue;
    }
    host.cache_full_blocks({&target, 1}, {&gone.hash, 1});
    host.free_blocks({&target, 1});
    demotions_.push_back(
        {.source = {.tier = Tier::kGpu, .block = gone.block}, .target = {.tier = Tier::kHost, .block = target}});
    ++totals_.demoted_total;
  }
  evicted_.clear();
}

std::uint32_t PageTable::drain_demotions(std::span<BlockCopy> copies) {
  const std::size_t count = std::min(copies.size(), demotions_.size());
  std::copy_n(demotions_.begin(), count, copies.begin());
  demotions_.erase(demotions_.begin(), demotions_.begin() + static_cast<std::ptrdiff_t>(count));
  return static_cast<std::uint32_t>(count);
}

// ---- Export

PageStatus PageTable::export_block_tables(std::span<const SequenceId> sequences, std::uint32_t width,
                                          std::int32_t padding, std::span<std::int32_t> block_tables) const {
  SAGA_ASSERT(block_tables.size() >= sequences.size() * width);
  for (const SequenceId id : sequences) {
    SAGA_ASSERT(at(id).block_count <= width);
    if (at(id).blocks_below_gpu > 0) return PageStatus::kNotResident;
  }
  std::int32_t* out = block_tables.data();
  for (const SequenceId id : sequences) {
    const std::uint32_t count = at(id).block_count;
    const Entry* const table = row(id);
    for (std::uint32_t i = 0; i < count; ++i) out[i] = static_cast<std::int32_t>(table[i]);  // tier bits are 0
    std::fill(out + count, out + width, padding);
    out += width;
  }
  return PageStatus::kOk;
}

PageStatus PageTable::export_slot_mapping(std::span<const TokenRange> ranges,
                                          std::span<std::int64_t> slot_mapping) const {
  std::uint64_t tokens = 0;
  for (const TokenRange& range : ranges) {
    const Sequence& sequence = at(range.sequence);
    SAGA_ASSERT(std::uint64_t{range.first_token} + range.token_count <= sequence.token_count);
    if (sequence.blocks_below_gpu > 0) return PageStatus::kNotResident;
    tokens += range.token_count;
  }
  SAGA_ASSERT(slot_mapping.size() >= tokens);
  std::int64_t* out = slot_mapping.data();
  for (const TokenRange& range : ranges) {
    const Entry* entry = row(range.sequence) + range.first_token / block_size_;
    std::uint32_t offset = range.first_token % block_size_;
    for (std::uint32_t left = range.token_count; left > 0;) {  // block by block
      const std::uint32_t count = std::min(left, block_size_ - offset);
      const std::int64_t first = std::int64_t{*entry} * block_size_ + offset;
      for (std::uint32_t i = 0; i < count; ++i) out[i] = first + i;
      out += count;
      left -= count;
      offset = 0;
      ++entry;
    }
  }
  return PageStatus::kOk;
}

// ---- Plans

PlanResult PageTable::plan_swap_out(SequenceId sequence, Tier target, std::span<BlockCopy> copies) {
  SAGA_ASSERT(target != Tier::kGpu);
  return plan_sequence(sequence, target, true, copies);
}

PlanResult PageTable::plan_swap_in(SequenceId sequence, std::span<BlockCopy> copies) {
  return plan_sequence(sequence, Tier::kGpu, false, copies);
}

PlanResult PageTable::plan_sequence(SequenceId id, Tier target, bool down, std::span<BlockCopy> copies) {
  Sequence& sequence = at(id);
  if (sequence.plan != kNone) return {.status = PageStatus::kBusy};
  if (free_plans_.empty()) return {.status = PageStatus::kOutOfPlans};
  const PlanId plan = free_plans_.back();
  plans_[plan] = {.sequence = id, .target = target};
  for (std::uint32_t i = 0; i < sequence.block_count; ++i) {
    const Entry entry = row(id)[i];
    const Tier tier = unpack(entry).tier;
    if (down ? tier >= target : tier == target) continue;
    moves(plan)[plans_[plan].move_count++] = {.position = i, .source = entry, .target = kNone, .copied = true};
  }
  const PlanResult result = reserve(plan, copies);
  if (result.status == PageStatus::kOk) sequence.plan = plan;
  return result;
}

PlanResult PageTable::plan_copy(Tier source, std::span<const BlockHash> hashes, Tier target,
                                std::span<BlockCopy> copies) {
  SAGA_ASSERT(source != target && hashes.size() <= max_blocks_);
  if (free_plans_.empty()) return {.status = PageStatus::kOutOfPlans};
  const PlanId plan = free_plans_.back();
  plans_[plan] = {.target = target};
  for (const BlockHash hash : hashes) {
    const BlockId block = tier_pool(source).get_cached_block(hash);
    if (block == kNone) continue;
    moves(plan)[plans_[plan].move_count++] = {
        .position = 0, .source = pack({.tier = source, .block = block}), .target = kNone, .copied = true};
  }
  const PlanResult result = reserve(plan, copies);
  if (result.status == PageStatus::kOk) {
    for (std::uint32_t i = 0; i < plans_[plan].move_count; ++i) {
      const BlockLocation location = unpack(moves(plan)[i].source);
      tier_pool(location.tier).touch({&location.block, 1});
    }
  }
  return result;
}

// Finds a target for each source of the plan, which becomes pending; or changes nothing.
PlanResult PageTable::reserve(PlanId id, std::span<BlockCopy> copies) {
  Plan& plan = plans_[id];
  BlockPool& target = tier_pool(plan.target);
  const std::span<Move> planned(moves(id), plan.move_count);

  // Targets that are shared leave the free list too, so they count against the free blocks as the new ones
  // do.
  std::uint32_t copy_count = 0;
  std::uint64_t taken = 0;
  for (Move& move : planned) {
    const BlockLocation source = unpack(move.source);
    const BlockPool& from = pool(source.tier);
    const BlockId shared = from.is_cached(source.block) ? target.get_cached_block(from.hash(source.block)) : kNone;
    move.copied = shared == kNone;
    if (!move.copied) move.target = pack({.tier = plan.target, .block = shared});
    if (move.copied) ++copy_count;
    if (move.copied || target.ref_count(shared) == 0) ++taken;
  }
  if (taken > target.free_count()) {
    ++totals_.out_of_blocks_total;
    return {.status = PageStatus::kOutOfBlocks};
  }
  SAGA_ASSERT(copies.size() >= copy_count);

  // Shared targets first: they must be out of the free list before the allocation takes from it.
  for (const Move& move : planned) {
    if (move.copied) continue;
    const BlockId shared = unpack(move.target).block;
    target.touch({&shared, 1});
  }
  const bool allocated = target.allocate(std::span(new_blocks_).first(copy_count));
  SAGA_ASSERT(allocated);
  static_cast<void>(allocated);
  // Not worth a copy below: that could take the place of one of the plan's sources.
  totals_.demotion_dropped_total += evicted_.size();
  evicted_.clear();
  std::uint32_t next = 0;
  for (Move& move : planned) {
    if (!move.copied) continue;
    const BlockLocation location = {.tier = plan.target, .block = new_blocks_[next]};
    move.target = pack(location);
    copies[next++] = {.source = unpack(move.source), .target = location};
  }

  free_plans_.pop_back();
  plan.pending = true;
  return {.plan = id, .copy_count = copy_count};
}

void PageTable::commit(PlanId id) {
  SAGA_ASSERT(is_pending(id));
  const Plan plan = plans_[id];
  const std::span<const Move> planned(moves(id), plan.move_count);
  BlockPool& target_pool = tier_pool(plan.target);

  BlockHash before = 0;  // the page that the next one follows, as far as the evictor does not know better
  bool follows = false;
  for (const Move& move : planned) {
    const BlockLocation source = unpack(move.source);
    const BlockPool& from = pool(source.tier);
    if (!move.copied) continue;
    ++totals_.copied_into_tier_total[static_cast<std::size_t>(plan.target)];
    if (!from.is_cached(source.block)) continue;
    const BlockHash hash = from.hash(source.block);
    const BlockId target = unpack(move.target).block;
    target_pool.cache_full_blocks({&target, 1}, {&hash, 1});
    if (evictor_ == nullptr || plan.target != Tier::kGpu) continue;
    if (!evictor_->store_known(hash, target) && follows) evictor_->store(true, before, {&hash, 1}, {&target, 1});
    before = hash;
    follows = true;
  }

  if (plan.sequence != kNone) {
    Sequence& sequence = at(plan.sequence);
    for (const Move& move : planned) {
      if (unpack(move.source).tier != Tier::kGpu) --sequence.blocks_below_gpu;
      if (plan.target != Tier::kGpu) ++sequence.blocks_below_gpu;
      row(plan.sequence)[move.position] = move.target;
    }
  }

  // Last block first, so that the end of a prefix is evicted before its beginning, in both tiers.
  for (std::size_t i = planned.size(); i > 0; --i) {
    if (plan.sequence == kNone) release(unpack(planned[i - 1].target));
    release(unpack(planned[i - 1].source));
  }
  for (const Move& move : planned) {
    const BlockLocation source = unpack(move.source);
    BlockPool& from = tier_pool(source.tier);
    if (source.tier < plan.target && from.ref_count(source.block) == 0) from.evict_first({&source.block, 1});
  }
  finish(id);
}

void PageTable::abort(PlanId id) {
  SAGA_ASSERT(is_pending(id));
  const Plan plan = plans_[id];
  const std::span<const Move> planned(moves(id), plan.move_count);
  for (std::size_t i = planned.size(); i > 0; --i) {
    release(unpack(planned[i - 1].target));
    if (plan.sequence == kNone) release(unpack(planned[i - 1].source));
  }
  finish(id);
}

void PageTable::finish(PlanId id) {
  if (plans_[id].sequence != kNone) at(plans_[id].sequence).plan = kNone;
  plans_[id] = {};
  free_plans_.push_back(id);
}

// ---- Cached blocks

bool PageTable::evict(Tier tier, BlockHash hash) {
  const BlockId block = tier_pool(tier).get_cached_block(hash);
  return block != kNone && tier_pool(tier).evict(block);
}

bool PageTable::evict_first(Tier tier, BlockHash hash) {
  const BlockId block = tier_pool(tier).get_cached_block(hash);
  if (block == kNone || tier_pool(tier).ref_count(block) > 0) return false;
  tier_pool(tier).evict_first({&block, 1});
  return true;
}

// ---- Inspection

PageTableStats PageTable::stats() const {
  PageTableStats stats = totals_;
  stats.open_sequences = static_cast<std::uint32_t>(sequences_.size() - free_sequences_.size());
  stats.pending_plans = static_cast<std::uint32_t>(plans_.size() - free_plans_.size());
  stats.events_lost_total = events_.lost();
  stats.memory_bytes = sequences_.size() * (sizeof(Sequence) + sizeof(SequenceId) + max_blocks_ * sizeof(Entry)) +
                       plans_.size() * (sizeof(Plan) + sizeof(PlanId) + max_blocks_ * sizeof(Move)) +
                       new_blocks_.size() * sizeof(BlockId) + events_.capacity() * sizeof(BlockEvent);
  if (evictor_ != nullptr) stats.memory_bytes += evictor_->stats().memory_bytes;
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    stats.tiers[tier] = pools_[tier].stats();
    stats.memory_bytes += stats.tiers[tier].memory_bytes;
  }
  return stats;
}

bool PageTable::verify() const {
  std::array<std::vector<std::uint32_t>, kTierCount> references;
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    if (!pools_[tier].verify()) return false;
    references[tier].assign(pools_[tier].block_count(), 0);
  }
  const auto refer = [&](Entry entry) {
    const BlockLocation location = unpack(entry);
    const auto tier = static_cast<std::size_t>(location.tier);
    if (tier >= kTierCount || location.block >= references[tier].size()) return false;
    ++references[tier][location.block];
    return true;
  };

  std::uint32_t open = 0;
  for (SequenceId id = 0; id < sequences_.size(); ++id) {
    const Sequence& sequence = sequences_[id];
    if (!sequence.open) continue;
    ++open;
    if (sequence.block_count > max_blocks_ || sequence.block_count != blocks_for(sequence.token_count)) return false;
    if (sequence.cached_blocks > sequence.token_count / block_size_) return false;
    std::uint32_t below = 0;
    for (std::uint32_t i = 0; i < sequence.block_count; ++i) {
      if (!refer(row(id)[i])) return false;
      if (unpack(row(id)[i]).tier != Tier::kGpu) ++below;
    }
    if (below != sequence.blocks_below_gpu) return false;
    if (sequence.plan != kNone && (!is_pending(sequence.plan) || plans_[sequence.plan].sequence != id)) return false;
  }

  std::uint32_t pending = 0;
  for (PlanId id = 0; id < plans_.size(); ++id) {
    const Plan& plan = plans_[id];
    if (!plan.pending) continue;
    ++pending;
    if (plan.sequence != kNone && (!is_open(plan.sequence) || sequences_[plan.sequence].plan != id)) return false;
    if (plan.move_count > max_blocks_) return false;
    for (std::uint32_t i = 0; i < plan.move_count; ++i) {
      const Move& move = moves(id)[i];
      if (unpack(move.target).tier != plan.target || !refer(move.target)) return false;
      if (plan.sequence == kNone) {
        if (!refer(move.source)) return false;
      } else if (move.position >= sequences_[plan.sequence].block_count ||
                 row(plan.sequence)[move.position] != move.source) {
        return false;
      }
    }
  }

  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    for (BlockId block = 0; block < references[tier].size(); ++block) {
      if (pools_[tier].ref_count(block) != references[tier][block]) return false;
    }
  }
  // The stacks hold each unused id once.
  std::vector<bool> sequence_free(sequences_.size()), plan_free(plans_.size());
  for (const SequenceId id : free_sequences_) {
    if (id >= sequences_.size() || sequences_[id].open || sequence_free[id]) return false;
    sequence_free[id] = true;
  }
  for (const PlanId id : free_plans_) {
    if (id >= plans_.size() || plans_[id].pending || plan_free[id]) return false;
    plan_free[id] = true;
  }
  return open + free_sequences_.size() == sequences_.size() && pending + free_plans_.size() == plans_.size() &&
         events_.verify();
}

std::uint64_t PageTable::digest() const {
  Digest digest;
  digest.add(std::uint64_t{block_size_} << 32 | max_blocks_);
  for (const BlockPool& blocks : pools_) digest.add(blocks.digest());
  for (SequenceId id = 0; id < sequences_.size(); ++id) {
    const Sequence& sequence = sequences_[id];
    digest.add(sequence.open ? 1 : 0);
    if (!sequence.open) continue;
    digest.add(std::uint64_t{sequence.token_count} << 32 | sequence.cached_blocks);
    digest.add(sequence.plan);
    for (std::uint32_t i = 0; i < sequence.block_count; ++i) digest.add(row(id)[i]);
  }
  for (PlanId id = 0; id < plans_.size(); ++id) {
    const Plan& plan = plans_[id];
    digest.add(plan.pending ? 1 : 0);
    if (!plan.pending) continue;
    digest.add(std::uint64_t{plan.sequence} << 32 | static_cast<std::uint64_t>(plan.target));
    digest.add(plan.move_count);
    for (std::uint32_t i = 0; i < plan.move_count; ++i) {
      const Move& move = moves(id)[i];
      digest.add(std::uint64_t{move.position} << 1 | (move.copied ? 1 : 0));
      digest.add(std::uint64_t{move.source} << 32 | move.target);
    }
  }
  for (const SequenceId id : free_sequences_) digest.add(id);
  for (const PlanId id : free_plans_) digest.add(id);
  return digest.value();
}

}  // namespace saga
