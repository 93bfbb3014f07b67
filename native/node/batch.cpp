// Batch formers for JavaScript: createBatchFormer of a page table's functions -> functions of one former.
//
// All arrays are registered once, in this order: words (Uint32Array of 13), stats (Float64Array of 17), calls, rows,
// firstTokens, tokenCounts (Uint32Array), sequenceLengths, queryStarts (Int32Array), slotMapping (BigInt64Array), blockTables
// (Int32Array), updates (Uint32Array, three words each), copies (Uint32Array, four words each), preempted, sampled (Uint32Array),
// finished (Uint8Array). What a function writes to `words`: form saga_batch_t in the first seven, callStatus saga_call_status_t
// in the six behind them.
#include <limits>

#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kOptions = 12;
constexpr std::size_t kWords = 13;
constexpr std::size_t kStats = 17;
constexpr std::size_t kArrays = 15;
constexpr std::size_t kCopyWords = sizeof(saga_block_copy_t) / sizeof(std::uint32_t);
constexpr std::size_t kUpdateWords = sizeof(saga_block_table_update_t) / sizeof(std::uint32_t);
static_assert(kCopyWords == 4 && kUpdateWords == 3 && sizeof(saga_batch_t) == 7 * sizeof(std::uint32_t));

struct BatchFormerHandle {
  saga_batch_former_t* handle = nullptr;
  saga_batch_arrays_t arrays{};
  std::uint32_t* words = nullptr;
  double* stats = nullptr;
  Elements<std::uint32_t> sampled;
  Elements<std::uint8_t> finished;
  Napi::Reference<Napi::Array> registered;  // keeps the arrays alive
  ~BatchFormerHandle() { saga_batch_former_destroy(handle); }
};
using BoundBatchFormer = Bound<BatchFormerHandle>;

saga_batch_former_t* former_of(const Napi::CallbackInfo& info) { return BoundBatchFormer::of(info).handle; }

// submit(now, promptTokens, maxNewTokens, priority, workflow, urgency, hashes, thread, promptKind) -> call; thread negative: not told
Napi::Value submit(const Napi::CallbackInfo& info) {
  saga_batch_call_t call;
  saga_batch_call_init(&call);
  call.prompt_tokens = u32(info, 1);
  call.max_new_tokens = u32(info, 2);
  call.priority = static_cast<std::int32_t>(number(info, 3));
  call.workflow = u64(info, 4);
  call.urgency = number(info, 5);
  const auto hashes = elements<std::uint64_t>(info.Env(), info[6]);
  call.thread = u64_or_max(info, 7);
  call.prompt_kind = static_cast<saga_prompt_kind_t>(u32(info, 8));
  std::uint32_t id = 0;
  const saga_status_t status =
      saga_batch_former_submit(former_of(info), u64(info, 0), &call, hashes.data, hashes.count, &id);
  return answer(info, status, id);
}

// addHashes(call, hashes)
Napi::Value add_hashes(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  return answer(info, saga_batch_former_add_hashes(former_of(info), u32(info, 0), hashes.data, hashes.count));
}

Napi::Value set_priority(const Napi::CallbackInfo& info) {
  return answer(
      info, saga_batch_former_set_priority(former_of(info), u32(info, 0), static_cast<std::int32_t>(number(info, 1))));
}

// setUrgency(workflow, urgency) -> number of calls
Napi::Value set_urgency(const Napi::CallbackInfo& info) {
  std::uint32_t count = 0;
  const saga_status_t status = saga_batch_former_set_urgency(former_of(info), u64(info, 0), number(info, 1), &count);
  return answer(info, status, count);
}

// setOutcome(call, stopReason, toolClass, sessionEnd, outputTokens, declaredGapMicroseconds); the gap negative: not told
Napi::Value set_outcome(const Napi::CallbackInfo& info) {
  const saga_call_outcome_t outcome = {u32(info, 1), u32(info, 2), u32(info, 3), u32(info, 4), u64_or_max(info, 5)};
  return answer(info, saga_batch_former_set_outcome(former_of(info), u32(info, 0), &outcome));
}

Napi::Value cancel(const Napi::CallbackInfo& info) {
  return answer(info, saga_batch_former_cancel(former_of(info), u32(info, 0)));
}

// cancelWorkflow(workflow) -> number of calls
Napi::Value cancel_workflow(const Napi::CallbackInfo& info) {
  std::uint32_t count = 0;
  const saga_status_t status = saga_batch_former_cancel_workflow(former_of(info), u64(info, 0), &count);
  return answer(info, status, count);
}

Napi::Value call_status(const Napi::CallbackInfo& info) {
  saga_call_status_t known{};
  const saga_status_t status = saga_batch_former_call_status(former_of(info), u32(info, 0), &known);
  if (status == SAGA_OK) {
    std::uint32_t* out = BoundBatchFormer::of(info).words + 7;
    out[0] = known.state;
    out[1] = known.known_tokens;
    out[2] = known.computed_tokens;
    out[3] = known.hash_count;
    out[4] = known.hit_tokens;
    out[5] = known.preemptions;
  }
  return answer(info, status);
}

// form(now) -> number of calls
Napi::Value form(const Napi::CallbackInfo& info) {
  BatchFormerHandle& former = BoundBatchFormer::of(info);
  auto* const batch = reinterpret_cast<saga_batch_t*>(former.words);
  const saga_status_t status = saga_batch_former_form(former.handle, u64(info, 0), &former.arrays, batch);
  return answer(info, status, batch->calls);
}

// complete(calls) -> number of calls that ended. What became of them is in the registered arrays.
Napi::Value complete(const Napi::CallbackInfo& info) {
  BatchFormerHandle& former = BoundBatchFormer::of(info);
  const std::uint32_t calls = u32(info, 0);
  if (calls > former.sampled.count || calls > former.finished.count) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  std::uint32_t ended = 0;
  const saga_status_t status =
      saga_batch_former_complete(former.handle, former.sampled.data, former.finished.data, calls, &ended);
  return answer(info, status, ended);
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  saga_batch_former_stats_t known{};
  const saga_status_t status = saga_batch_former_stats(former_of(info), &known);
  if (status != SAGA_OK) return failure(info, status);
  double* out = BoundBatchFormer::of(info).stats;
  const auto write = [&out](auto value) { *out++ = static_cast<double>(value); };
  write(known.waiting_calls);
  write(known.swapped_calls);
  write(known.running_calls);
  write(known.in_flight);
  write(known.submitted_total);
  write(known.finished_total);
  write(known.cancelled_total);
  write(known.steps_total);
  write(known.decode_tokens_total);
  write(known.prefill_tokens_total);
  write(known.prompt_tokens_total);
  write(known.hit_tokens_total);
  write(known.preempted_total);
  write(known.swapped_out_total);
  write(known.recomputed_tokens_total);
  write(known.held_total);
  write(known.memory_bytes);
  return result(info, 0);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_batch_former_verify(former_of(info), &intact);
  return answer(info, status, intact);
}

Napi::Value digest(const Napi::CallbackInfo& info) {
  std::uint64_t digest = 0;
  const saga_status_t status = saga_batch_former_digest(former_of(info), &digest);
  if (status != SAGA_OK) return failure(info, status);
  return Napi::BigInt::New(info.Env(), digest);
}

// Frees the former now rather than when its functions are collected; see pages.cpp.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_batch_former_destroy(BoundBatchFormer::of(info).handle);
  BoundBatchFormer::of(info).handle = nullptr;
  BoundBatchFormer::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

}  // namespace

// options: Float64Array of 12 (saga_batch_former_options_t in order; a negative starvation limit is none; the last is the width
// of the block tables), arrays: see above.
Napi::Value create_batch_former(const Napi::CallbackInfo& info, saga_page_table_t* table) {
  Napi::Env env = info.Env();
  const auto values = elements<double>(env, info[0]);
  if (values.count != kOptions || !info[1].IsArray()) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  const auto given = info[1].As<Napi::Array>();
  if (given.Length() != kArrays) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  const auto value = [&](std::size_t i) { return static_cast<std::uint32_t>(values.data[i]); };
  std::uint32_t next = 0;
  const auto words = elements<std::uint32_t>(env, given.Get(next++));
  const auto stats_array = elements<double>(env, given.Get(next++));
  const auto calls = elements<std::uint32_t>(env, given.Get(next++));
  const auto rows = elements<std::uint32_t>(env, given.Get(next++));
  const auto first_tokens = elements<std::uint32_t>(env, given.Get(next++));
  const auto token_counts = elements<std::uint32_t>(env, given.Get(next++));
  const auto sequence_lengths = elements<std::int32_t>(env, given.Get(next++));
  const auto query_starts = elements<std::int32_t>(env, given.Get(next++));
  const auto slot_mapping = elements<std::int64_t>(env, given.Get(next++));
  const auto block_tables = elements<std::int32_t>(env, given.Get(next++));
  const auto updates = elements<std::uint32_t>(env, given.Get(next++));
  const auto copies = elements<std::uint32_t>(env, given.Get(next++));
  const auto preempted = elements<std::uint32_t>(env, given.Get(next++));
  const auto sampled = elements<std::uint32_t>(env, given.Get(next++));
  const auto finished = elements<std::uint8_t>(env, given.Get(next++));
  const std::size_t capacity = value(1);
  const std::uint32_t width = value(11);
  if (words.count != kWords || stats_array.count != kStats || calls.count < capacity || rows.count < capacity ||
      first_tokens.count < capacity || token_counts.count < capacity || sequence_lengths.count < capacity ||
      query_starts.count < capacity + 1 || updates.count < capacity * kUpdateWords || preempted.count < capacity ||
      sampled.count < capacity || finished.count < capacity || width == 0) {
    return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  }

  saga_batch_former_options_t options;
  saga_batch_former_options_init(&options);
  options.max_calls = value(0);
  options.max_sequences = value(1);
  options.token_budget = value(2);
  options.max_prefill_chunk = value(3);
  options.max_copies = value(4);
  options.order = static_cast<saga_batch_order_t>(value(5));
  options.preemption = static_cast<saga_preemption_t>(value(6));
  options.slowest_hit = static_cast<saga_tier_t>(value(7));
  options.session_affinity = value(8);
  options.hit_after_completion = value(9);
  options.starvation_limit =
      values.data[10] < 0 ? std::numeric_limits<std::uint64_t>::max() : static_cast<std::uint64_t>(values.data[10]);
  saga_batch_former_t* handle = nullptr;
  const saga_status_t status = saga_batch_former_create(table, &options, &handle);
  if (status != SAGA_OK) return failure(info, status);

  auto* bound = new BoundBatchFormer();
  BatchFormerHandle& former = bound->object;
  former.handle = handle;
  saga_batch_former_stats_t made{};
  if (saga_batch_former_stats(handle, &made) == SAGA_OK) {
    bound->set_native_bytes(env, static_cast<std::int64_t>(made.memory_bytes));
  }
  saga_batch_arrays_t& arrays = former.arrays;
  saga_batch_arrays_init(&arrays);
  arrays.call_capacity = static_cast<std::uint32_t>(capacity);
  arrays.token_capacity = static_cast<std::uint32_t>(slot_mapping.count);
  arrays.copy_capacity = static_cast<std::uint32_t>(copies.count / kCopyWords);
  arrays.block_table_rows = static_cast<std::uint32_t>(block_tables.count / width);
  arrays.block_table_width = width;
  arrays.calls = calls.data;
  arrays.rows = rows.data;
  arrays.first_tokens = first_tokens.data;
  arrays.token_counts = token_counts.data;
  arrays.sequence_lengths = sequence_lengths.data;
  arrays.query_starts = query_starts.data;
  arrays.slot_mapping = slot_mapping.data;
  arrays.block_tables = block_tables.data;
  arrays.updates = reinterpret_cast<saga_block_table_update_t*>(updates.data);
  arrays.copies = reinterpret_cast<saga_block_copy_t*>(copies.data);
  arrays.preempted = preempted.data;
  former.words = words.data;
  former.stats = stats_array.data;
  former.sampled = sampled;
  former.finished = finished;
  // A copy of the list: the caller may change its own.
  Napi::Array registered = Napi::Array::New(env, kArrays);
  for (std::uint32_t i = 0; i < kArrays; ++i) registered.Set(i, given.Get(i));
  former.registered = Napi::Persistent(registered);

  Napi::Object methods = Napi::Object::New(env);
  bound->bind<submit>(env, methods, "submit");
  bound->bind<add_hashes>(env, methods, "addHashes");
  bound->bind<set_priority>(env, methods, "setPriority");
  bound->bind<set_urgency>(env, methods, "setUrgency");
  bound->bind<set_outcome>(env, methods, "setOutcome");
  bound->bind<cancel>(env, methods, "cancel");
  bound->bind<cancel_workflow>(env, methods, "cancelWorkflow");
  bound->bind<call_status>(env, methods, "callStatus");
  bound->bind<form>(env, methods, "form");
  bound->bind<complete>(env, methods, "complete");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<digest>(env, methods, "digest");
  bound->bind<destroy>(env, methods, "destroy");
  return bound->bound_to(env, methods);
}

}  // namespace saga::node
