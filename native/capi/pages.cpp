// Page tables of the C interface: checks, then native/core/pages. The core asserts where a caller could be wrong; everything it
// asserts is checked here first, so that it is a status.
#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "../core/pages/page_table.hpp"
#include "check.hpp"
#include "evictor_check.hpp"
#include "page_table_handle.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_BLOCK_STORED == static_cast<int>(BlockEventKind::kStored) &&
              SAGA_BLOCK_REMOVED == static_cast<int>(BlockEventKind::kRemoved) &&
              SAGA_BLOCK_CLEARED == static_cast<int>(BlockEventKind::kCleared));
// The C and the C++ range are one layout, so an array of the one is an array of the other.
static_assert(sizeof(saga_token_range_t) == sizeof(TokenRange));
static_assert(offsetof(saga_token_range_t, sequence) == offsetof(TokenRange, sequence));
static_assert(offsetof(saga_token_range_t, first_token) == offsetof(TokenRange, first_token));
static_assert(offsetof(saga_token_range_t, token_count) == offsetof(TokenRange, token_count));

namespace {

constexpr std::uint32_t kMostBlockTokens = 4096;
constexpr std::uint32_t kMostBlocks = 1u << 26;  // of a tier
constexpr std::uint32_t kMostSequences = 1u << 20;
constexpr std::uint32_t kMostBlocksPerSequence = 1u << 20;
constexpr std::uint32_t kMostPlans = 1u << 16;
constexpr std::uint32_t kMostGhosts = 1u << 27;
constexpr std::uint32_t kMostEvents = 1u << 26;
constexpr std::uint64_t kMostTableEntries = std::uint64_t{1} << 30;
constexpr std::uint64_t kMostPlanEntries = std::uint64_t{1} << 26;
static_assert(kMostBlocks <= BlockPool::kMaxBlockCount);
static_assert(kMostSequences + std::uint64_t{2} * kMostPlans < kNone);  // references of a block are counted in 32 bits

bool tier_valid(saga_tier_t tier) { return static_cast<std::uint32_t>(tier) < SAGA_TIER_COUNT; }

saga_status_t to_c(PageStatus status) {
  switch (status) {
    case PageStatus::kOk:
      return SAGA_OK;
    case PageStatus::kOutOfBlocks:
      return SAGA_ERR_OUT_OF_BLOCKS;
    case PageStatus::kOutOfSequences:
      return SAGA_ERR_FULL;
    case PageStatus::kSequenceFull:
      return SAGA_ERR_FULL;
    case PageStatus::kNotResident:
      return SAGA_ERR_NOT_RESIDENT;
    case PageStatus::kBusy:
      return SAGA_ERR_BUSY;
    case PageStatus::kOutOfPlans:
      return SAGA_ERR_FULL;
  }
  return SAGA_ERR_WRONG_STATE;
}

saga_block_copy_t to_c(const BlockCopy& copy) {
  return {static_cast<std::uint32_t>(copy.source.tier), copy.source.block, static_cast<std::uint32_t>(copy.target.tier),
          copy.target.block};
}

void to_c(const PrefixHit& from, saga_prefix_hit_t* to) {
  to->tokens = from.tokens;
  std::copy(from.tokens_in_tier.begin(), from.tokens_in_tier.end(), to->tokens_in_tier);
}

saga_page_table_options_t default_options() {
  const PageTableOptions defaults;
  saga_page_table_options_t options{};
  options.block_tokens = defaults.block_size;
  std::copy(defaults.block_count.begin(), defaults.block_count.end(), options.block_count);
  options.max_sequences = defaults.max_sequences;
  options.max_blocks_per_sequence = defaults.max_blocks_per_sequence;
  options.max_plans = defaults.max_plans;
  options.event_capacity = defaults.event_capacity;
  options.uncached_first = defaults.uncached_first ? 1 : 0;
  options.eviction = SAGA_EVICTOR_LRU;
  options.ghosts = SAGA_NONE;
  options.recompute_double_tokens = defaults.demotion.recompute_double_tokens;
  options.demotion_price = defaults.demotion.price;
  options.demotion_horizon_us = defaults.demotion.horizon;
  return options;
}

bool options_valid(const saga_page_table_options_t& options) {
  const std::uint64_t longest = options.max_blocks_per_sequence;
  return in_range(options.block_tokens, 1, kMostBlockTokens) && options.block_count[SAGA_TIER_GPU] >= 1 &&
         std::all_of(options.block_count, options.block_count + SAGA_TIER_COUNT,
                     [](std::uint32_t count) { return count <= kMostBlocks; }) &&
         in_range(options.max_sequences, 1, kMostSequences) && in_range(longest, 1, kMostBlocksPerSequence) &&
         in_range(options.max_plans, 1, kMostPlans) && options.event_capacity <= kMostEvents &&
         options.uncached_first <= 1 && options.eviction <= SAGA_EVICTOR_SAGA &&
         (options.ghosts <= kMostGhosts || options.ghosts == SAGA_NONE) && options.demotion <= 1 &&
         options.reserved == 0 && options.recompute_ns_per_token >= 0 && options.recompute_double_tokens > 0 &&
         options.transfer_ns_per_token >= 0 && options.demotion_price >= 0 &&
         longest * options.max_sequences <= kMostTableEntries && longest * options.max_plans <= kMostPlanEntries &&
         longest * options.block_tokens < kNone;
}

// Hashes of a prompt: not more than it has full blocks.
bool prompt_valid(const saga_page_table_t* table, const uint64_t* hashes, size_t count, uint32_t token_count,
                  saga_tier_t slowest) {
  return table != nullptr && is_array(hashes, count) && token_count >= 1 && tier_valid(slowest) &&
         count <= token_count / table->table.block_size();
}

// Whether the blocks that cache_full_blocks is to cache can have these hashes: those that are cached have them already.
bool hashes_agree(saga_page_table_t* table, SequenceId sequence, std::span<const BlockHash> hashes) {
  const std::uint32_t first = table->table.cached_blocks(sequence);
  table->shared.clear();
  for (std::uint32_t i = 0; i < hashes.size(); ++i) {
    const BlockLocation at = table->table.location(sequence, first + i);
    const BlockPool& pool = table->table.pool(at.tier);
    if (pool.is_cached(at.block)) {
      if (pool.hash(at.block) != hashes[i]) return false;
    } else if (pool.ref_count(at.block) > 1) {
      table->shared.emplace_back(std::uint64_t{static_cast<std::uint8_t>(at.tier)} << 32 | at.block, hashes[i]);
    }
  }
  // Callers that give one hash to different contents can get a block into one row twice (through a slower tier, where one hash
  // is one copy). Then both places must agree, too.
  std::sort(table->shared.begin(), table->shared.end());
  return std::adjacent_find(table->shared.begin(), table->shared.end(), [](const auto& a, const auto& b) {
           return a.first == b.first && a.second != b.second;
         }) == table->shared.end();
}

bool each_once(saga_page_table_t* table, std::span<const BlockHash> hashes) {
  table->hashes.assign(hashes.begin(), hashes.end());
  std::sort(table->hashes.begin(), table->hashes.end());
  return std::adjacent_find(table->hashes.begin(), table->hashes.end()) == table->hashes.end();
}

saga_status_t planned(const saga_page_table_t* table, const PlanResult& result, saga_block_copy_t* copies,
                      uint32_t* plan, size_t* copy_count) {
  if (result.status != PageStatus::kOk) return to_c(result.status);
  for (std::uint32_t i = 0; i < result.copy_count; ++i) copies[i] = to_c(table->copies[i]);
  *plan = result.plan;
  *copy_count = result.copy_count;
  return SAGA_OK;
}

}  // namespace

extern "C" {

void saga_page_table_options_init_sized(saga_page_table_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

saga_status_t saga_page_table_create(const saga_page_table_options_t* options, saga_page_table_t** table) {
  saga_page_table_options_t given = default_options();
  if (table == nullptr || !read_options(options, &given) || !options_valid(given)) return SAGA_ERR_INVALID_ARGUMENT;
  PageTableOptions made;
  made.block_size = given.block_tokens;
  std::copy(given.block_count, given.block_count + SAGA_TIER_COUNT, made.block_count.begin());
  made.max_sequences = given.max_sequences;
  made.max_blocks_per_sequence = given.max_blocks_per_sequence;
  made.max_plans = given.max_plans;
  made.event_capacity = given.event_capacity;
  made.uncached_first = given.uncached_first != 0;
  made.eviction = given.eviction == SAGA_EVICTOR_SAGA ? PolicyKind::kSaga : PolicyKind::kLru;
  made.ghosts = given.ghosts;
  made.demotion.enabled = given.demotion != 0;
  made.demotion.recompute_ns_per_token = given.recompute_ns_per_token;
  made.demotion.recompute_double_tokens = given.recompute_double_tokens;
  made.demotion.transfer_ns_per_token = given.transfer_ns_per_token;
  made.demotion.price = given.demotion_price;
  made.demotion.horizon = given.demotion_horizon_us;
  return guarded([&] {
    auto* created = new (std::nothrow) saga_page_table_t(made);
    if (created == nullptr) return SAGA_ERR_OUT_OF_MEMORY;
    *table = created;
    return SAGA_OK;
  });
}

void saga_page_table_destroy(saga_page_table_t* table) { let_go(table); }

saga_status_t saga_page_table_match(const saga_page_table_t* table, const uint64_t* hashes, size_t count,
                                    uint32_t token_count, saga_tier_t slowest, saga_prefix_hit_t* hit) {
  if (hit == nullptr || !prompt_valid(table, hashes, count, token_count, slowest)) return SAGA_ERR_INVALID_ARGUMENT;
  to_c(table->table.match(to_span(hashes, count), token_count, static_cast<Tier>(slowest)), hit);
  return SAGA_OK;
}

saga_status_t saga_page_table_open(saga_page_table_t* table, const uint64_t* hashes, size_t count, uint32_t token_count,
                                   saga_tier_t slowest, uint32_t* sequence, saga_prefix_hit_t* hit) {
  return saga_page_table_open_call(table, hashes, count, token_count, slowest, SAGA_NO_THREAD, SAGA_PROMPT_START, 0,
                                   sequence, hit);
}

saga_status_t saga_page_table_open_call(saga_page_table_t* table, const uint64_t* hashes, size_t count,
                                        uint32_t token_count, saga_tier_t slowest, uint64_t thread,
                                        saga_prompt_kind_t kind, uint64_t now, uint32_t* sequence,
                                        saga_prefix_hit_t* hit) {
  if (static_cast<std::uint32_t>(kind) > SAGA_PROMPT_USER) return SAGA_ERR_INVALID_ARGUMENT;
  if (sequence == nullptr || hit == nullptr || !prompt_valid(table, hashes, count, token_count, slowest)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  table->table.advance_time(now);
  const OpenResult opened = table->table.open(to_span(hashes, count), token_count, static_cast<Tier>(slowest),
                                              {thread, static_cast<PromptKind>(kind)});
  if (opened.status != PageStatus::kOk) return to_c(opened.status);
  *sequence = opened.sequence;
  to_c(opened.hit, hit);
  return SAGA_OK;
}

saga_status_t saga_page_table_allocate_slots(saga_page_table_t* table, uint32_t sequence, uint32_t new_tokens,
                                             saga_block_copy_t* copy, uint32_t* copied) {
  if (table == nullptr || copy == nullptr || copied == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  const AllocateResult allocated = table->table.allocate_slots(sequence, new_tokens);
  if (allocated.status != PageStatus::kOk) return to_c(allocated.status);
  if (allocated.copied) *copy = to_c(allocated.copy);
  *copied = allocated.copied ? 1 : 0;
  return SAGA_OK;
}

saga_status_t saga_page_table_cache_full_blocks(saga_page_table_t* table, uint32_t sequence, const uint64_t* hashes,
                                                size_t count) {
  if (table == nullptr || !is_array(hashes, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  const PageTable& pages = table->table;
  if (!pages.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  if (pages.is_busy(sequence)) return SAGA_ERR_BUSY;
  if (count > pages.token_count(sequence) / pages.block_size() - pages.cached_blocks(sequence) ||
      !hashes_agree(table, sequence, to_span(hashes, count))) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return to_c(table->table.cache_full_blocks(sequence, to_span(hashes, count)));
}

saga_status_t saga_page_table_fork(saga_page_table_t* table, uint32_t parent, uint32_t* sequence) {
  if (table == nullptr || sequence == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(parent)) return SAGA_ERR_NOT_FOUND;
  const ForkResult forked = table->table.fork(parent);
  if (forked.status == PageStatus::kOk) *sequence = forked.sequence;
  return to_c(forked.status);
}

saga_status_t saga_page_table_truncate(saga_page_table_t* table, uint32_t sequence, uint32_t token_count) {
  if (table == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  if (token_count > table->table.token_count(sequence)) return SAGA_ERR_INVALID_ARGUMENT;
  return to_c(table->table.truncate(sequence, token_count));
}

saga_status_t saga_page_table_free(saga_page_table_t* table, uint32_t sequence) {
  if (table == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  return to_c(table->table.free(sequence));
}

saga_status_t saga_page_table_free_call(saga_page_table_t* table, uint32_t sequence, const saga_call_outcome_t* outcome,
                                        uint32_t preempted, uint64_t now) {
  if (table == nullptr || outcome == nullptr || !outcome_valid(*outcome) || preempted > 1) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  table->table.advance_time(now);
  return to_c(table->table.free(sequence, to_core(*outcome), preempted != 0));
}

saga_status_t saga_page_table_told(saga_page_table_t* table, uint64_t thread, const saga_call_outcome_t* outcome,
                                   uint64_t now) {
  if (table == nullptr || outcome == nullptr || !outcome_valid(*outcome)) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    table->table.advance_time(now);
    return table->table.told(thread, to_core(*outcome)) ? SAGA_OK : SAGA_ERR_NOT_FOUND;
  });
}

saga_status_t saga_page_table_thread_left(saga_page_table_t* table, uint64_t thread, uint64_t now) {
  if (table == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  table->table.advance_time(now);
  table->table.thread_left(thread);
  return SAGA_OK;
}

saga_status_t saga_page_table_drain_demotions(saga_page_table_t* table, saga_block_copy_t* copies, size_t capacity,
                                              size_t* count) {
  if (table == nullptr || count == nullptr || !is_array(copies, capacity)) return SAGA_ERR_INVALID_ARGUMENT;
  const std::size_t room = std::min(capacity, table->copies.size());
  const std::uint32_t drained = table->table.drain_demotions(std::span(table->copies).first(room));
  for (std::uint32_t i = 0; i < drained; ++i) copies[i] = to_c(table->copies[i]);
  *count = drained;
  return SAGA_OK;
}

saga_status_t saga_page_table_eviction_stats(const saga_page_table_t* table, saga_page_table_eviction_stats_t* stats) {
  if (table == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *stats = {};
  if (table->table.evictor() != nullptr) stats->evictor = to_c(table->table.evictor()->stats());
  const PageTableStats known = table->table.stats();
  stats->demoted_total = known.demoted_total;
  stats->demoted_shared_total = known.demoted_shared_total;
  stats->demotion_dropped_total = known.demotion_dropped_total;
  stats->demotion_refused_total = known.demotion_refused_total;
  return SAGA_OK;
}

saga_status_t saga_page_table_regret(const saga_page_table_t* table, saga_regret_t* regret) {
  if (table == nullptr || regret == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    RegretMeter::Reading reading;
    if (table->table.evictor() != nullptr) reading = table->table.evictor()->regret();
    *regret = {reading.calls, reading.missed_pages, reading.optimum_missed};
    return SAGA_OK;
  });
}

saga_status_t saga_page_table_sequence_state(const saga_page_table_t* table, uint32_t sequence,
                                             saga_sequence_state_t* state) {
  if (table == nullptr || state == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  const PageTable& pages = table->table;
  if (!pages.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  state->token_count = pages.token_count(sequence);
  state->block_count = pages.block_count(sequence);
  state->cached_blocks = pages.cached_blocks(sequence);
  state->resident = pages.is_resident(sequence) ? 1 : 0;
  state->busy = pages.is_busy(sequence) ? 1 : 0;
  return SAGA_OK;
}

saga_status_t saga_page_table_export_block_tables(const saga_page_table_t* table, const uint32_t* sequences,
                                                  size_t count, uint32_t width, int32_t padding, int32_t* block_tables,
                                                  size_t capacity) {
  if (table == nullptr || !is_array(sequences, count) || !is_array(block_tables, capacity) ||
      (width != 0 && count > capacity / width)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  for (const SequenceId sequence : to_span(sequences, count)) {
    if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
    if (table->table.block_count(sequence) > width) return SAGA_ERR_INVALID_ARGUMENT;
  }
  return to_c(
      table->table.export_block_tables(to_span(sequences, count), width, padding, to_span(block_tables, capacity)));
}

saga_status_t saga_page_table_export_slot_mapping(const saga_page_table_t* table, const saga_token_range_t* ranges,
                                                  size_t count, int64_t* slot_mapping, size_t capacity,
                                                  size_t* written) {
  if (table == nullptr || !is_array(ranges, count) || !is_array(slot_mapping, capacity) || written == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  std::size_t left = capacity;
  for (const saga_token_range_t& range : to_span(ranges, count)) {
    if (!table->table.is_open(range.sequence)) return SAGA_ERR_NOT_FOUND;
    if (std::uint64_t{range.first_token} + range.token_count > table->table.token_count(range.sequence) ||
        range.token_count > left) {
      return SAGA_ERR_INVALID_ARGUMENT;
    }
    left -= range.token_count;
  }
  const auto* same = reinterpret_cast<const TokenRange*>(ranges);
  const PageStatus status = table->table.export_slot_mapping(to_span(same, count), to_span(slot_mapping, capacity));
  if (status == PageStatus::kOk) *written = capacity - left;
  return to_c(status);
}

saga_status_t saga_page_table_plan_swap_out(saga_page_table_t* table, uint32_t sequence, saga_tier_t target,
                                            saga_block_copy_t* copies, size_t capacity, uint32_t* plan,
                                            size_t* copy_count) {
  if (table == nullptr || !tier_valid(target) || target == SAGA_TIER_GPU || !is_array(copies, capacity) ||
      plan == nullptr || copy_count == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  if (capacity < table->table.block_count(sequence)) return SAGA_ERR_INVALID_ARGUMENT;
  const PlanResult result = table->table.plan_swap_out(sequence, static_cast<Tier>(target), table->copies);
  return planned(table, result, copies, plan, copy_count);
}

saga_status_t saga_page_table_plan_swap_in(saga_page_table_t* table, uint32_t sequence, saga_block_copy_t* copies,
                                           size_t capacity, uint32_t* plan, size_t* copy_count) {
  if (table == nullptr || !is_array(copies, capacity) || plan == nullptr || copy_count == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!table->table.is_open(sequence)) return SAGA_ERR_NOT_FOUND;
  if (capacity < table->table.block_count(sequence)) return SAGA_ERR_INVALID_ARGUMENT;
  return planned(table, table->table.plan_swap_in(sequence, table->copies), copies, plan, copy_count);
}

saga_status_t saga_page_table_plan_copy(saga_page_table_t* table, saga_tier_t source, const uint64_t* hashes,
                                        size_t count, saga_tier_t target, saga_block_copy_t* copies, size_t capacity,
                                        uint32_t* plan, size_t* copy_count) {
  if (table == nullptr || !tier_valid(source) || !tier_valid(target) || source == target || !is_array(hashes, count) ||
      !is_array(copies, capacity) || count > capacity || count > table->copies.size() || plan == nullptr ||
      copy_count == nullptr || !each_once(table, to_span(hashes, count))) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const PlanResult result = table->table.plan_copy(static_cast<Tier>(source), to_span(hashes, count),
                                                   static_cast<Tier>(target), table->copies);
  return planned(table, result, copies, plan, copy_count);
}

saga_status_t saga_page_table_commit(saga_page_table_t* table, uint32_t plan) {
  if (table == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (!table->table.is_pending(plan)) return SAGA_ERR_NOT_FOUND;
  table->table.commit(plan);
  return SAGA_OK;
}

saga_status_t saga_page_table_abort(saga_page_table_t* table, uint32_t plan) {
  if (table == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (!table->table.is_pending(plan)) return SAGA_ERR_NOT_FOUND;
  table->table.abort(plan);
  return SAGA_OK;
}

saga_status_t saga_page_table_evict(saga_page_table_t* table, saga_tier_t tier, const uint64_t* hashes, size_t count,
                                    size_t* evicted) {
  if (table == nullptr || !tier_valid(tier) || !is_array(hashes, count) || evicted == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  std::size_t found = 0;
  for (const BlockHash hash : to_span(hashes, count))
    found += table->table.evict(static_cast<Tier>(tier), hash) ? 1 : 0;
  *evicted = found;
  return SAGA_OK;
}

saga_status_t saga_page_table_evict_first(saga_page_table_t* table, saga_tier_t tier, const uint64_t* hashes,
                                          size_t count, size_t* moved) {
  if (table == nullptr || !tier_valid(tier) || !is_array(hashes, count) || moved == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  std::size_t found = 0;
  // From behind: each goes to the head of the free list.
  for (std::size_t i = count; i > 0; --i) {
    found += table->table.evict_first(static_cast<Tier>(tier), hashes[i - 1]) ? 1 : 0;
  }
  *moved = found;
  return SAGA_OK;
}

saga_status_t saga_page_table_reset_prefix_cache(saga_page_table_t* table, saga_tier_t tier, uint32_t* done) {
  if (table == nullptr || !tier_valid(tier) || done == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *done = table->table.reset_prefix_cache(static_cast<Tier>(tier)) ? 1 : 0;
  return SAGA_OK;
}

saga_status_t saga_page_table_cached_hashes(const saga_page_table_t* table, saga_tier_t tier, uint64_t* hashes,
                                            size_t capacity, size_t* count) {
  if (table == nullptr || !tier_valid(tier) || !is_array(hashes, capacity) || count == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const BlockPool& pool = table->table.pool(static_cast<Tier>(tier));
  if (capacity < pool.cached_count()) return SAGA_ERR_INVALID_ARGUMENT;
  std::size_t written = 0;
  for (BlockId block = 0; block < pool.block_count(); ++block) {
    if (pool.is_cached(block)) hashes[written++] = pool.hash(block);
  }
  *count = written;
  return SAGA_OK;
}

saga_status_t saga_page_table_drain_events(saga_page_table_t* table, saga_block_event_t* events, size_t capacity,
                                           size_t* count) {
  if (table == nullptr || !is_array(events, capacity) || count == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  BlockEvent chunk[64];
  std::size_t written = 0;
  while (written < capacity) {
    const std::size_t wanted = std::min(capacity - written, std::size(chunk));
    const std::uint32_t drained = table->table.drain_events({chunk, wanted});
    for (std::uint32_t i = 0; i < drained; ++i) {
      events[written++] = {chunk[i].hash, chunk[i].block, static_cast<std::uint16_t>(chunk[i].tier),
                           static_cast<std::uint16_t>(chunk[i].kind)};
    }
    if (drained < wanted) break;
  }
  *count = written;
  return SAGA_OK;
}

saga_status_t saga_page_table_stats(const saga_page_table_t* table, saga_page_table_stats_t* stats) {
  if (table == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  const PageTableStats known = table->table.stats();
  for (std::uint32_t tier = 0; tier < SAGA_TIER_COUNT; ++tier) {
    const BlockPoolStats& from = known.tiers[tier];
    stats->tiers[tier] = {from.block_count,     from.free_blocks,   from.cached_blocks, from.cached_hashes,
                          from.allocated_total, from.evicted_total, from.memory_bytes};
    stats->hit_tokens_total[tier] = known.hit_tokens_total[tier];
    stats->copied_into_tier_total[tier] = known.copied_into_tier_total[tier];
  }
  stats->open_sequences = known.open_sequences;
  stats->pending_plans = known.pending_plans;
  stats->opened_total = known.opened_total;
  stats->prompt_tokens_total = known.prompt_tokens_total;
  stats->copies_on_write_total = known.copies_on_write_total;
  stats->out_of_blocks_total = known.out_of_blocks_total;
  stats->events_lost_total = known.events_lost_total;
  stats->memory_bytes = known.memory_bytes + table->copies.capacity() * sizeof(BlockCopy) +
                        table->hashes.capacity() * sizeof(BlockHash) +
                        table->shared.capacity() * sizeof(table->shared[0]);
  return SAGA_OK;
}

saga_status_t saga_page_table_verify(const saga_page_table_t* table, uint32_t* intact) {
  if (table == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *intact = table->table.verify() ? 1 : 0;
    return SAGA_OK;
  });
}

saga_status_t saga_page_table_digest(const saga_page_table_t* table, uint64_t* digest) {
  if (table == nullptr || digest == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *digest = table->table.digest();
  return SAGA_OK;
}

}  // extern "C"
