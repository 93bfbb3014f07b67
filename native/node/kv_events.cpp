// KV event sources for JavaScript: the engine's createKvSource(worker, algorithm, blockTokens, maxBlocks, maxBatchBytes, results) ->
// functions of one source, which tells that engine of that worker.
//
// `results` (Float64Array of 26) is registered and written by apply and stats. The source keeps the engine's functions alive, and
// asks for the engine at each call: once it is destroyed it is refused.
#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kCounts = sizeof(saga_kv_counts_t) / sizeof(std::uint64_t);
constexpr std::size_t kResults = 9 + kCounts;
static_assert(kResults == 26);

struct KvSourceHandle {
  saga_kv_source_t* handle = nullptr;
  saga_engine_t* const* engine = nullptr;
  std::uint32_t worker = 0;
  double* results = nullptr;
  Napi::Reference<Napi::Array> registered;  // keeps the array and the engine alive
  ~KvSourceHandle() { saga_kv_source_destroy(handle); }
};
using BoundKvSource = Bound<KvSourceHandle>;

double* write_counts(const saga_kv_counts_t& counts, double* out) {
  const auto* from = reinterpret_cast<const std::uint64_t*>(&counts);
  for (std::size_t i = 0; i < kCounts; ++i) *out++ = static_cast<double>(from[i]);
  return out;
}

Napi::Value apply(const Napi::CallbackInfo& info) {
  const KvSourceHandle& source = BoundKvSource::of(info);
  const auto payload = elements<std::uint8_t>(info.Env(), info[1]);
  saga_kv_report_t report{};
  report.struct_size = sizeof report;
  const saga_status_t status = saga_kv_source_apply(source.handle, *source.engine, u64(info, 0), source.worker,
                                                    payload.data, payload.count, &report);
  if (status != SAGA_OK) return failure(info, status);
  double* out = source.results;
  *out++ = report.data_parallel_rank;
  *out++ = report.timestamp;
  *out++ = report.uncertain;
  *out++ = report.engine_status;
  write_counts(report.counts, out);
  return result(info, 0);
}

Napi::Value reset(const Napi::CallbackInfo& info) {
  const KvSourceHandle& source = BoundKvSource::of(info);
  return answer(info, saga_kv_source_reset(source.handle, *source.engine, u64(info, 0), source.worker));
}

Napi::Value sync(const Napi::CallbackInfo& info) {
  const KvSourceHandle& source = BoundKvSource::of(info);
  return answer(info, saga_kv_source_sync(source.handle, *source.engine, u64(info, 0), source.worker));
}

// usable(tier, chain, fullDepth)
Napi::Value usable(const Napi::CallbackInfo& info) {
  const auto chain = elements<std::uint64_t>(info.Env(), info[1]);
  std::uint32_t blocks = 0;
  const saga_status_t status =
      saga_kv_source_usable(BoundKvSource::of(info).handle, static_cast<saga_tier_t>(u32(info, 0)), chain.data,
                            chain.count, u32(info, 2), &blocks);
  return answer(info, status, blocks);
}

// holds(group, tier, hash)
Napi::Value holds(const Napi::CallbackInfo& info) {
  const auto hash = elements<std::uint64_t>(info.Env(), info[2]);
  if (hash.count != 1) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  std::uint32_t copies = 0;
  const saga_status_t status = saga_kv_source_holds(BoundKvSource::of(info).handle, u32(info, 0),
                                                    static_cast<saga_tier_t>(u32(info, 1)), *hash.data, &copies);
  return answer(info, status, copies);
}

saga_status_t read_stats(const saga_kv_source_t* source, saga_kv_stats_t* stats) {
  *stats = {};
  stats->struct_size = sizeof *stats;
  return saga_kv_source_stats(source, stats);
}

Napi::Value uncertain(const Napi::CallbackInfo& info) {
  saga_kv_stats_t known;
  const saga_status_t status = read_stats(BoundKvSource::of(info).handle, &known);
  return answer(info, status, known.uncertain);
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  saga_kv_stats_t known;
  const saga_status_t status = read_stats(BoundKvSource::of(info).handle, &known);
  if (status != SAGA_OK) return failure(info, status);
  double* out = BoundKvSource::of(info).results;
  const auto write = [&out](auto value) { *out++ = static_cast<double>(value); };
  write(known.uncertain);
  write(known.groups);
  write(known.window_blocks);
  write(known.engine_behind);
  write(known.batches);
  write(known.blocks);
  write(known.copies);
  write(known.nameless_blocks);
  write(known.memory_bytes);
  write_counts(known.counts, out);
  return result(info, 0);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_kv_source_verify(BoundKvSource::of(info).handle, &intact);
  return answer(info, status, intact);
}

// Frees the source now rather than when its functions are collected.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_kv_source_destroy(BoundKvSource::of(info).handle);
  BoundKvSource::of(info).handle = nullptr;
  BoundKvSource::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

// kvBatchRank(payload) -> rank, or 2^32 - 1 where none is named
Napi::Value batch_rank(const Napi::CallbackInfo& info) {
  const auto payload = elements<std::uint8_t>(info.Env(), info[0]);
  std::int32_t rank = -1;
  const saga_status_t status = saga_kv_batch_rank(payload.data, payload.count, &rank);
  return answer(info, status, rank < 0 ? SAGA_NONE : static_cast<std::uint32_t>(rank));
}

Napi::Value uncertain_text(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), saga_kv_uncertain_text(static_cast<saga_kv_uncertain_t>(u32(info, 0))));
}

}  // namespace

Napi::Value create_kv_source(const Napi::CallbackInfo& info, saga_engine_t* const* engine) {
  Napi::Env env = info.Env();
  saga_kv_source_options_t options;
  saga_kv_source_options_init(&options);
  options.algorithm = u32(info, 1);
  options.block_tokens = u32(info, 2);
  options.max_blocks = u64(info, 3);
  options.max_batch_bytes = u64(info, 4);
  const auto results = elements<double>(env, info[5]);
  if (results.count != kResults) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_kv_source_t* handle = nullptr;
  const saga_status_t status = saga_kv_source_create(&options, &handle);
  if (status != SAGA_OK) return failure(info, status);
  auto* bound = new BoundKvSource();
  KvSourceHandle& source = bound->object;
  source.handle = handle;
  source.engine = engine;
  source.worker = u32(info, 0);
  source.results = results.data;
  saga_kv_stats_t made;
  if (read_stats(handle, &made) == SAGA_OK) {
    bound->set_native_bytes(env, static_cast<std::int64_t>(made.memory_bytes));
  }
  Napi::Array registered = Napi::Array::New(env, 2);
  registered.Set(0u, info[5]);
  registered.Set(1u, info.This());
  source.registered = Napi::Persistent(registered);

  Napi::Object methods = Napi::Object::New(env);
  bound->bind<apply>(env, methods, "apply");
  bound->bind<reset>(env, methods, "reset");
  bound->bind<sync>(env, methods, "sync");
  bound->bind<usable>(env, methods, "usable");
  bound->bind<holds>(env, methods, "holds");
  bound->bind<uncertain>(env, methods, "uncertain");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<destroy>(env, methods, "destroy");
  return bound->bound_to(env, methods);
}

void register_kv_events(Napi::Env env, Napi::Object exports) {
  exports.Set("kvBatchRank", Napi::Function::New<batch_rank>(env, "kvBatchRank"));
  exports.Set("kvUncertainText", Napi::Function::New<uncertain_text>(env, "kvUncertainText"));
}

}  // namespace saga::node
