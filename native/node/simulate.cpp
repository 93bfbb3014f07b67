// Workloads and simulations for JavaScript. Runs are asynchronous: each takes a thread of libuv's pool, so that the caller can
// show progress and use both cores; the handles they work on are immutable. Results go to a Float64Array, progress to a
// BigUint64Array (one element; over shared memory if it is to be read while the run lasts).
#include <chrono>
#include <vector>

#include "binding.hpp"

namespace saga::node {
namespace {

// Type tags, so that one handle cannot be passed for another.
constexpr napi_type_tag kWorkloadTag = {0x5A6A0001'00000001ull, 0x9B3F1D2C'77E04A01ull};
constexpr napi_type_tag kCacheReplayTag = {0x5A6A0001'00000002ull, 0x9B3F1D2C'77E04A02ull};

template <typename T, void (*Destroy)(T*)>
Napi::Value wrap(Napi::Env env, T* handle, const napi_type_tag& tag) {
  auto external = Napi::External<T>::New(env, handle, [](Napi::Env, T* collected) { Destroy(collected); });
  external.TypeTag(&tag);
  return external;
}

// nullptr if `value` is something else: the C interface then answers SAGA_ERR_INVALID_ARGUMENT.
template <typename T>
T* unwrap(const Napi::Value& value, const napi_type_tag& tag) {
  if (!value.IsExternal()) return nullptr;
  auto external = value.As<Napi::External<T>>();
  return external.CheckTypeTag(&tag) ? external.Data() : nullptr;
}

// JavaScript holds times and ids as doubles below 2^53. Anything else becomes a number that the C interface refuses.
std::vector<std::uint64_t> integers(const Elements<double>& values) {
  std::vector<std::uint64_t> out(values.count);
  for (std::size_t i = 0; i < values.count; ++i) {
    const double value = values.data[i];
    out[i] = value >= 0 && value < 0x1p53 ? static_cast<std::uint64_t>(value) : UINT64_MAX;
  }
  return out;
}

std::uint64_t steady_nanoseconds() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

// createWorkload(columns): see NativeColumns in src/workload/columns.ts
Napi::Value create_workload(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto given = info[0].As<Napi::Object>();
  const auto words = [&](const char* name) { return elements<std::uint32_t>(env, given.Get(name)); };
  const auto bytes = [&](const char* name) { return elements<std::uint8_t>(env, given.Get(name)); };
  const auto numbers = [&](const char* name) { return integers(elements<double>(env, given.Get(name))); };
  const auto tenant = words("taskTenant");
  const auto first_call = words("taskFirstCall");
  const auto expected = numbers("taskExpected");
  const auto thread = words("callThread");
  const auto prompt_tokens = words("promptTokens");
  const auto output_tokens = words("outputTokens");
  const auto prompt_kind = bytes("promptKind");
  const auto stop_reason = bytes("stopReason");
  const auto tool_class = bytes("toolClass");
  const auto first_predecessor = words("callFirstPredecessor");
  const auto predecessor = words("predecessorCall");
  const auto gap = numbers("predecessorGap");
  const auto first_run = words("callFirstRun");
  const auto run_id = numbers("runFirstId");
  const auto run_length = words("runLength");
  const std::size_t tasks = tenant.count;
  const std::size_t calls = thread.count;
  const bool sizes_agree = first_call.count == tasks + 1 && expected.size() == tasks && prompt_tokens.count == calls &&
                           output_tokens.count == calls && prompt_kind.count == calls && stop_reason.count == calls &&
                           tool_class.count == calls && first_predecessor.count == calls + 1 &&
                           first_run.count == calls + 1 && gap.size() == predecessor.count &&
                           run_length.count == run_id.size();
  if (!sizes_agree) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_workload_columns_t columns{};
  columns.struct_size = sizeof columns;
  columns.block_tokens = given.Get("blockTokens").As<Napi::Number>().Uint32Value();
  columns.task_count = static_cast<std::uint32_t>(tasks);
  columns.call_count = static_cast<std::uint32_t>(calls);
  columns.predecessor_count = static_cast<std::uint32_t>(predecessor.count);
  columns.run_count = static_cast<std::uint32_t>(run_id.size());
  columns.task_tenant = tenant.data;
  columns.task_first_call = first_call.data;
  columns.task_expected = expected.data();
  columns.call_thread = thread.data;
  columns.prompt_tokens = prompt_tokens.data;
  columns.output_tokens = output_tokens.data;
  columns.prompt_kind = prompt_kind.data;
  columns.stop_reason = stop_reason.data;
  columns.tool_class = tool_class.data;
  columns.call_first_predecessor = first_predecessor.data;
  columns.predecessor_call = predecessor.data;
  columns.predecessor_gap = gap.data();
  columns.call_first_run = first_run.data;
  columns.run_first_id = run_id.data();
  columns.run_length = run_length.data;
  saga_workload_t* workload = nullptr;
  const saga_status_t status = saga_workload_create(&columns, &workload);
  if (status != SAGA_OK) return failure(info, status);
  return wrap<saga_workload_t, saga_workload_destroy>(env, workload, kWorkloadTag);
}

// createCacheReplay(workload, pageTokens, call: Uint32Array, start: Float64Array, end: Float64Array)
Napi::Value create_cache_replay(const Napi::CallbackInfo& info) {
  const auto* workload = unwrap<saga_workload_t>(info[0], kWorkloadTag);
  const auto call = elements<std::uint32_t>(info.Env(), info[2]);
  const auto start = integers(elements<double>(info.Env(), info[3]));
  const auto end = integers(elements<double>(info.Env(), info[4]));
  if (start.size() != call.count || end.size() != call.count) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_cache_replay_t* replay = nullptr;
  const saga_status_t status =
      saga_cache_replay_create(workload, u32(info, 1), call.data, start.data(), end.data(), call.count, &replay);
  if (status != SAGA_OK) return failure(info, status);
  return wrap<saga_cache_replay_t, saga_cache_replay_destroy>(info.Env(), replay, kCacheReplayTag);
}

Napi::Value distinct_pages(const Napi::CallbackInfo& info) {
  std::uint64_t pages = 0;
  const saga_status_t status =
      saga_cache_replay_distinct_pages(unwrap<saga_cache_replay_t>(info[0], kCacheReplayTag), &pages);
  return answer(info, status, static_cast<double>(pages));
}

// One run on a thread of the pool. Resolves to 0 or minus the status. The values that the run reads or writes are kept alive
// by a reference to `kept`.
template <typename Run>
class AsyncRun : public Napi::AsyncWorker {
 public:
  AsyncRun(Napi::Env env, Napi::Array kept, Run run)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), kept_(Napi::Persistent(kept)), run_(run) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override { status_ = run_(); }
  void OnOK() override { deferred_.Resolve(Napi::Number::New(Env(), -static_cast<double>(status_))); }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  Napi::Reference<Napi::Array> kept_;
  Run run_;
  saga_status_t status_ = SAGA_OK;
};

template <typename Run>
Napi::Value start_run(const Napi::CallbackInfo& info, Run run) {
  Napi::Array kept = Napi::Array::New(info.Env(), info.Length());
  for (std::uint32_t i = 0; i < info.Length(); ++i) kept.Set(i, info[i]);
  auto* worker = new AsyncRun<Run>(info.Env(), kept, run);
  Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

// runCacheReplay(replay, options: Float64Array of 6 [policy, model, capacityPages, requestLimit, inferThreads, timing],
// result: Float64Array of 8 in the order of saga_cache_result_t, progress)
Napi::Value run_cache_replay(const Napi::CallbackInfo& info) {
  const auto* replay = unwrap<saga_cache_replay_t>(info[0], kCacheReplayTag);
  const auto values = elements<double>(info.Env(), info[1]);
  const auto result = elements<double>(info.Env(), info[2]);
  std::uint64_t* progress = elements<std::uint64_t>(info.Env(), info[3]).data;
  saga_cache_options_t options;
  saga_cache_options_init(&options);
  if (values.count == 6) {
    options.policy = static_cast<std::uint32_t>(values.data[0]);
    options.model = static_cast<std::uint32_t>(values.data[1]);
    options.capacity_pages = static_cast<std::uint32_t>(values.data[2]);
    options.request_limit = static_cast<std::uint64_t>(values.data[3]);
    options.infer_threads = static_cast<std::uint32_t>(values.data[4]);
    options.nanoseconds = values.data[5] != 0 ? steady_nanoseconds : nullptr;
  }
  const bool sizes_fit = values.count == 6 && result.count == 8;
  double* out = result.data;
  return start_run(info, [=] {
    saga_cache_result_t replayed{};
    const saga_status_t status =
        sizes_fit ? saga_cache_replay_run(replay, &options, &replayed, progress) : SAGA_ERR_INVALID_ARGUMENT;
    if (status != SAGA_OK) return status;
    const double written[] = {static_cast<double>(replayed.requests),
                              static_cast<double>(replayed.requested_pages),
                              static_cast<double>(replayed.missed_pages),
                              static_cast<double>(replayed.evicted_pages),
                              replayed.requested_cost,
                              replayed.missed_cost,
                              static_cast<double>(replayed.eviction_nanoseconds),
                              static_cast<double>(replayed.overflows)};
    for (std::size_t i = 0; i < std::size(written); ++i) out[i] = written[i];
    return SAGA_OK;
  });
}

}  // namespace

void register_simulate(Napi::Env env, Napi::Object exports) {
  exports.Set("createWorkload", Napi::Function::New<create_workload>(env, "createWorkload"));
  exports.Set("createCacheReplay", Napi::Function::New<create_cache_replay>(env, "createCacheReplay"));
  exports.Set("cacheReplayDistinctPages", Napi::Function::New<distinct_pages>(env, "cacheReplayDistinctPages"));
  exports.Set("runCacheReplay", Napi::Function::New<run_cache_replay>(env, "runCacheReplay"));
}

}  // namespace saga::node
