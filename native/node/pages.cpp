// Page tables for JavaScript: createPageTable(options, words, stats) -> functions of one table.
//
// `words` (Uint32Array of 8) and `stats` (Float64Array of 35: saga_page_table_stats_t in order) are registered. What a function
// writes to `words`: match and open the hit (tokens; then by tier), allocateSlots the copy, sequenceState the five fields, plans
// the number of copies. A copy is four words everywhere: saga_block_copy_t.
#include <algorithm>
#include <iterator>

#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kWords = 8;
constexpr std::size_t kStats = 35;
constexpr std::size_t kCopyWords = sizeof(saga_block_copy_t) / sizeof(std::uint32_t);
constexpr std::size_t kRangeWords = sizeof(saga_token_range_t) / sizeof(std::uint32_t);
static_assert(kCopyWords == 4 && kRangeWords == 3);

struct PageTableHandle {
  saga_page_table_t* handle = nullptr;
  std::uint32_t* words = nullptr;
  double* stats = nullptr;
  Napi::Reference<Napi::Array> registered;  // keeps the arrays alive
  ~PageTableHandle() { saga_page_table_destroy(handle); }
};
using BoundPageTable = Bound<PageTableHandle>;

saga_page_table_t* table_of(const Napi::CallbackInfo& info) { return BoundPageTable::of(info).handle; }
std::uint32_t* words_of(const Napi::CallbackInfo& info) { return BoundPageTable::of(info).words; }
saga_tier_t tier(const Napi::CallbackInfo& info, std::size_t i) { return static_cast<saga_tier_t>(u32(info, i)); }

void write_hit(const saga_prefix_hit_t& hit, std::uint32_t* words) {
  words[0] = hit.tokens;
  std::copy(std::begin(hit.tokens_in_tier), std::end(hit.tokens_in_tier), words + 1);
}

// match(hashes, tokenCount, slowest) -> tokens
Napi::Value match(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[0]);
  saga_prefix_hit_t hit{};
  const saga_status_t status =
      saga_page_table_match(table_of(info), hashes.data, hashes.count, u32(info, 1), tier(info, 2), &hit);
  if (status == SAGA_OK) write_hit(hit, words_of(info));
  return answer(info, status, hit.tokens);
}

// open(hashes, tokenCount, slowest, thread, kind, now) -> sequence. thread negative: not told
Napi::Value open(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[0]);
  saga_prefix_hit_t hit{};
  std::uint32_t sequence = 0;
  const saga_status_t status = saga_page_table_open_call(
      table_of(info), hashes.data, hashes.count, u32(info, 1), tier(info, 2), u64_or_max(info, 3),
      static_cast<saga_prompt_kind_t>(u32(info, 4)), u64_or_max(info, 5), &sequence, &hit);
  if (status == SAGA_OK) write_hit(hit, words_of(info));
  return answer(info, status, sequence);
}

// allocateSlots(sequence, newTokens) -> 1 if there is a copy to execute
Napi::Value allocate_slots(const Napi::CallbackInfo& info) {
  auto* copy = reinterpret_cast<saga_block_copy_t*>(words_of(info));
  std::uint32_t copied = 0;
  const saga_status_t status =
      saga_page_table_allocate_slots(table_of(info), u32(info, 0), u32(info, 1), copy, &copied);
  return answer(info, status, copied);
}

// cacheFullBlocks(sequence, hashes)
Napi::Value cache_full_blocks(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  return answer(info, saga_page_table_cache_full_blocks(table_of(info), u32(info, 0), hashes.data, hashes.count));
}

Napi::Value fork(const Napi::CallbackInfo& info) {
  std::uint32_t sequence = 0;
  const saga_status_t status = saga_page_table_fork(table_of(info), u32(info, 0), &sequence);
  return answer(info, status, sequence);
}

Napi::Value truncate(const Napi::CallbackInfo& info) {
  return answer(info, saga_page_table_truncate(table_of(info), u32(info, 0), u32(info, 1)));
}

// free(sequence, stopReason, toolClass, sessionEnd, outputTokens, declaredGap, preempted, now). declaredGap negative: not told
Napi::Value free(const Napi::CallbackInfo& info) {
  const saga_call_outcome_t outcome = {u32(info, 1), u32(info, 2), u32(info, 3), u32(info, 4), u64_or_max(info, 5)};
  return answer(info,
                saga_page_table_free_call(table_of(info), u32(info, 0), &outcome, u32(info, 6), u64_or_max(info, 7)));
}

// told(thread, stopReason, toolClass, sessionEnd, outputTokens, declaredGapMicroseconds, now); the gap negative: not told
Napi::Value told(const Napi::CallbackInfo& info) {
  const saga_call_outcome_t outcome = {u32(info, 1), u32(info, 2), u32(info, 3), u32(info, 4), u64_or_max(info, 5)};
  return answer(info, saga_page_table_told(table_of(info), u64_or_max(info, 0), &outcome, u64_or_max(info, 6)));
}

// threadLeft(thread, now)
Napi::Value thread_left(const Napi::CallbackInfo& info) {
  return answer(info, saga_page_table_thread_left(table_of(info), u64_or_max(info, 0), u64_or_max(info, 1)));
}

// drainDemotions(copies: Uint32Array) -> copies written
Napi::Value drain_demotions(const Napi::CallbackInfo& info) {
  const auto copies = elements<std::uint32_t>(info.Env(), info[0]);
  std::size_t count = 0;
  const saga_status_t status = saga_page_table_drain_demotions(
      table_of(info), reinterpret_cast<saga_block_copy_t*>(copies.data), copies.count / kCopyWords, &count);
  return answer(info, status, static_cast<std::uint32_t>(count));
}

// evictionStats(out: Float64Array of 18): saga_evictor_stats_t without its reserved field, then what became of demotions
Napi::Value eviction_stats(const Napi::CallbackInfo& info) {
  const auto out = elements<double>(info.Env(), info[0]);
  saga_page_table_eviction_stats_t stats{};
  const saga_status_t status = saga_page_table_eviction_stats(table_of(info), &stats);
  const saga_evictor_stats_t& evictor = stats.evictor;
  const double values[] = {static_cast<double>(evictor.free_blocks),
                           static_cast<double>(evictor.pages),
                           static_cast<double>(evictor.hollow),
                           static_cast<double>(evictor.ghosts),
                           static_cast<double>(evictor.heads),
                           static_cast<double>(evictor.taken_total),
                           static_cast<double>(evictor.taken_without_hash_total),
                           static_cast<double>(evictor.taken_copies_total),
                           static_cast<double>(evictor.evicted_total),
                           static_cast<double>(evictor.bypassed_total),
                           static_cast<double>(evictor.forgotten_total),
                           static_cast<double>(evictor.requested_pages_total),
                           static_cast<double>(evictor.missed_pages_total),
                           static_cast<double>(evictor.memory_bytes),
                           static_cast<double>(stats.demoted_total),
                           static_cast<double>(stats.demoted_shared_total),
                           static_cast<double>(stats.demotion_dropped_total),
                           static_cast<double>(stats.demotion_refused_total)};
  if (out.count != std::size(values)) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  std::copy(std::begin(values), std::end(values), out.data);
  return answer(info, status);
}

// regret(out: Float64Array of 3): calls, missed pages, those of the optimum
Napi::Value regret(const Napi::CallbackInfo& info) {
  const auto out = elements<double>(info.Env(), info[0]);
  if (out.count != 3) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_regret_t reading{};
  const saga_status_t status = saga_page_table_regret(table_of(info), &reading);
  out.data[0] = static_cast<double>(reading.calls);
  out.data[1] = static_cast<double>(reading.missed_pages);
  out.data[2] = static_cast<double>(reading.optimum_missed_pages);
  return answer(info, status);
}

Napi::Value sequence_state(const Napi::CallbackInfo& info) {
  saga_sequence_state_t state{};
  const saga_status_t status = saga_page_table_sequence_state(table_of(info), u32(info, 0), &state);
  if (status == SAGA_OK) {
    std::uint32_t* out = words_of(info);
    out[0] = state.token_count;
    out[1] = state.block_count;
    out[2] = state.cached_blocks;
    out[3] = state.resident;
    out[4] = state.busy;
  }
  return answer(info, status);
}

// exportBlockTables(sequences: Uint32Array, width, padding, blockTables: Int32Array)
Napi::Value export_block_tables(const Napi::CallbackInfo& info) {
  const auto sequences = elements<std::uint32_t>(info.Env(), info[0]);
  const auto block_tables = elements<std::int32_t>(info.Env(), info[3]);
  return answer(info, saga_page_table_export_block_tables(table_of(info), sequences.data, sequences.count, u32(info, 1),
                                                          static_cast<std::int32_t>(number(info, 2)), block_tables.data,
                                                          block_tables.count));
}

// exportSlotMapping(ranges: Uint32Array, three words a range; slotMapping: BigInt64Array) -> number of slots
Napi::Value export_slot_mapping(const Napi::CallbackInfo& info) {
  const auto ranges = elements<std::uint32_t>(info.Env(), info[0]);
  const auto slot_mapping = elements<std::int64_t>(info.Env(), info[1]);
  std::size_t written = 0;
  const saga_status_t status =
      saga_page_table_export_slot_mapping(table_of(info), reinterpret_cast<const saga_token_range_t*>(ranges.data),
                                          ranges.count / kRangeWords, slot_mapping.data, slot_mapping.count, &written);
  return answer(info, status, static_cast<double>(written));
}

struct Copies {
  Copies(const Napi::CallbackInfo& info, std::size_t i) {
    const auto words = elements<std::uint32_t>(info.Env(), info[i]);
    data = reinterpret_cast<saga_block_copy_t*>(words.data);
    capacity = words.count / kCopyWords;
  }
  Napi::Value answer_plan(const Napi::CallbackInfo& info, saga_status_t status) const {
    if (status == SAGA_OK) words_of(info)[0] = static_cast<std::uint32_t>(count);
    return answer(info, status, plan);
  }
  saga_block_copy_t* data;
  std::size_t capacity;
  std::uint32_t plan = 0;
  std::size_t count = 0;
};

// planSwapOut(sequence, target, copies) -> plan
Napi::Value plan_swap_out(const Napi::CallbackInfo& info) {
  Copies copies(info, 2);
  const saga_status_t status = saga_page_table_plan_swap_out(table_of(info), u32(info, 0), tier(info, 1), copies.data,
                                                             copies.capacity, &copies.plan, &copies.count);
  return copies.answer_plan(info, status);
}

// planSwapIn(sequence, copies) -> plan
Napi::Value plan_swap_in(const Napi::CallbackInfo& info) {
  Copies copies(info, 1);
  const saga_status_t status = saga_page_table_plan_swap_in(table_of(info), u32(info, 0), copies.data, copies.capacity,
                                                            &copies.plan, &copies.count);
  return copies.answer_plan(info, status);
}

// planCopy(source, hashes, target, copies) -> plan
Napi::Value plan_copy(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  Copies copies(info, 3);
  const saga_status_t status =
      saga_page_table_plan_copy(table_of(info), tier(info, 0), hashes.data, hashes.count, tier(info, 2), copies.data,
                                copies.capacity, &copies.plan, &copies.count);
  return copies.answer_plan(info, status);
}

Napi::Value commit(const Napi::CallbackInfo& info) {
  return answer(info, saga_page_table_commit(table_of(info), u32(info, 0)));
}

Napi::Value abort(const Napi::CallbackInfo& info) {
  return answer(info, saga_page_table_abort(table_of(info), u32(info, 0)));
}

// evict(tier, hashes) -> how many were found
Napi::Value evict(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  std::size_t evicted = 0;
  const saga_status_t status =
      saga_page_table_evict(table_of(info), tier(info, 0), hashes.data, hashes.count, &evicted);
  return answer(info, status, static_cast<double>(evicted));
}

// evictFirst(tier, hashes) -> how many were found free
Napi::Value evict_first(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  std::size_t moved = 0;
  const saga_status_t status =
      saga_page_table_evict_first(table_of(info), tier(info, 0), hashes.data, hashes.count, &moved);
  return answer(info, status, static_cast<double>(moved));
}

// resetPrefixCache(tier) -> 1 if it was done
Napi::Value reset_prefix_cache(const Napi::CallbackInfo& info) {
  std::uint32_t done = 0;
  const saga_status_t status = saga_page_table_reset_prefix_cache(table_of(info), tier(info, 0), &done);
  return answer(info, status, done);
}

// cachedHashes(tier, hashes) -> their number
Napi::Value cached_hashes(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  std::size_t count = 0;
  const saga_status_t status =
      saga_page_table_cached_hashes(table_of(info), tier(info, 0), hashes.data, hashes.count, &count);
  return answer(info, status, static_cast<double>(count));
}

// drainEvents(hashes: BigUint64Array, blocks: Uint32Array, tiers: Uint8Array, kinds: Uint8Array), all of one length -> number
// of events
Napi::Value drain_events(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[0]);
  const auto blocks = elements<std::uint32_t>(info.Env(), info[1]);
  const auto tiers = elements<std::uint8_t>(info.Env(), info[2]);
  const auto kinds = elements<std::uint8_t>(info.Env(), info[3]);
  const std::size_t capacity = std::min({hashes.count, blocks.count, tiers.count, kinds.count});
  saga_block_event_t chunk[64];
  std::size_t written = 0;
  while (written < capacity) {
    const std::size_t wanted = std::min(capacity - written, std::size(chunk));
    std::size_t count = 0;
    const saga_status_t status = saga_page_table_drain_events(table_of(info), chunk, wanted, &count);
    if (status != SAGA_OK) return failure(info, status);
    for (std::size_t i = 0; i < count; ++i, ++written) {
      hashes.data[written] = chunk[i].hash;
      blocks.data[written] = chunk[i].block;
      tiers.data[written] = static_cast<std::uint8_t>(chunk[i].tier);
      kinds.data[written] = static_cast<std::uint8_t>(chunk[i].kind);
    }
    if (count < wanted) break;
  }
  return result(info, static_cast<double>(written));
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  saga_page_table_stats_t stats{};
  const saga_status_t status = saga_page_table_stats(table_of(info), &stats);
  if (status != SAGA_OK) return failure(info, status);
  double* out = BoundPageTable::of(info).stats;
  const auto write = [&out](auto value) { *out++ = static_cast<double>(value); };
  for (const saga_block_pool_stats_t& pool : stats.tiers) {
    write(pool.block_count);
    write(pool.free_blocks);
    write(pool.cached_blocks);
    write(pool.cached_hashes);
    write(pool.allocated_total);
    write(pool.evicted_total);
    write(pool.memory_bytes);
  }
  write(stats.open_sequences);
  write(stats.pending_plans);
  write(stats.opened_total);
  write(stats.prompt_tokens_total);
  for (const std::uint64_t tokens : stats.hit_tokens_total) write(tokens);
  write(stats.copies_on_write_total);
  for (const std::uint64_t blocks : stats.copied_into_tier_total) write(blocks);
  write(stats.out_of_blocks_total);
  write(stats.events_lost_total);
  write(stats.memory_bytes);
  return result(info, 0);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_page_table_verify(table_of(info), &intact);
  return answer(info, status, intact);
}

Napi::Value digest(const Napi::CallbackInfo& info) {
  std::uint64_t digest = 0;
  const saga_status_t status = saga_page_table_digest(table_of(info), &digest);
  if (status != SAGA_OK) return failure(info, status);
  return Napi::BigInt::New(info.Env(), digest);
}

// createBatchFormer(options, arrays): see batch.cpp
Napi::Value batch_former(const Napi::CallbackInfo& info) { return create_batch_former(info, table_of(info)); }

// Frees the table now rather than when its functions are collected. Afterwards every function answers
// SAGA_ERR_INVALID_ARGUMENT, because the C interface refuses NULL.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_page_table_destroy(BoundPageTable::of(info).handle);
  BoundPageTable::of(info).handle = nullptr;
  BoundPageTable::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

// createPageTable(options: Float64Array of 17, words, stats)
Napi::Value create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto values = elements<double>(env, info[0]);
  const auto words = elements<std::uint32_t>(env, info[1]);
  const auto stats_array = elements<double>(env, info[2]);
  if (values.count != 17 || words.count != kWords || stats_array.count != kStats) {
    return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  }
  const auto value = [&](std::size_t i) { return static_cast<std::uint32_t>(values.data[i]); };
  saga_page_table_options_t options;
  saga_page_table_options_init(&options);
  options.block_tokens = value(0);
  for (std::size_t i = 0; i < SAGA_TIER_COUNT; ++i) options.block_count[i] = value(1 + i);
  options.max_sequences = value(4);
  options.max_blocks_per_sequence = value(5);
  options.max_plans = value(6);
  options.event_capacity = value(7);
  options.uncached_first = value(8);
  options.eviction = value(9);
  options.ghosts = values.data[10] < 0 ? SAGA_NONE : value(10);
  options.demotion = value(11);
  options.recompute_ns_per_token = values.data[12];
  options.recompute_double_tokens = values.data[13];
  options.transfer_ns_per_token = values.data[14];
  options.demotion_price = values.data[15];
  options.demotion_horizon_us = static_cast<std::uint64_t>(values.data[16]);
  saga_page_table_t* handle = nullptr;
  const saga_status_t status = saga_page_table_create(&options, &handle);
  if (status != SAGA_OK) return failure(info, status);

  auto* bound = new BoundPageTable();
  PageTableHandle& table = bound->object;
  table.handle = handle;
  saga_page_table_stats_t made{};
  if (saga_page_table_stats(handle, &made) == SAGA_OK) {
    bound->set_native_bytes(info.Env(), static_cast<std::int64_t>(made.memory_bytes));
  }
  table.words = words.data;
  table.stats = stats_array.data;
  Napi::Array registered = Napi::Array::New(env, 2);
  registered.Set(0u, info[1]);
  registered.Set(1u, info[2]);
  table.registered = Napi::Persistent(registered);
  Napi::Object methods = Napi::Object::New(env);
  bound->bind<match>(env, methods, "match");
  bound->bind<open>(env, methods, "open");
  bound->bind<allocate_slots>(env, methods, "allocateSlots");
  bound->bind<cache_full_blocks>(env, methods, "cacheFullBlocks");
  bound->bind<fork>(env, methods, "fork");
  bound->bind<truncate>(env, methods, "truncate");
  bound->bind<free>(env, methods, "free");
  bound->bind<told>(env, methods, "told");
  bound->bind<thread_left>(env, methods, "threadLeft");
  bound->bind<drain_demotions>(env, methods, "drainDemotions");
  bound->bind<eviction_stats>(env, methods, "evictionStats");
  bound->bind<regret>(env, methods, "regret");
  bound->bind<sequence_state>(env, methods, "sequenceState");
  bound->bind<export_block_tables>(env, methods, "exportBlockTables");
  bound->bind<export_slot_mapping>(env, methods, "exportSlotMapping");
  bound->bind<plan_swap_out>(env, methods, "planSwapOut");
  bound->bind<plan_swap_in>(env, methods, "planSwapIn");
  bound->bind<plan_copy>(env, methods, "planCopy");
  bound->bind<commit>(env, methods, "commit");
  bound->bind<abort>(env, methods, "abort");
  bound->bind<evict>(env, methods, "evict");
  bound->bind<evict_first>(env, methods, "evictFirst");
  bound->bind<reset_prefix_cache>(env, methods, "resetPrefixCache");
  bound->bind<cached_hashes>(env, methods, "cachedHashes");
  bound->bind<drain_events>(env, methods, "drainEvents");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<batch_former>(env, methods, "createBatchFormer");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<digest>(env, methods, "digest");
  bound->bind<destroy>(env, methods, "destroy");
  return bound->bound_to(env, methods);
}

}  // namespace

void register_pages(Napi::Env env, Napi::Object exports) {
  exports.Set("createPageTable", Napi::Function::New<create>(env, "createPageTable"));
}

}  // namespace saga::node
