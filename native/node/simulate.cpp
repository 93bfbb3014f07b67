// Workloads and simulations for JavaScript. Runs are asynchronous: each takes a thread of libuv's pool, so that the caller can
// show progress and use both cores; the handles they work on are immutable. Results go to a Float64Array, progress to a
// BigUint64Array (one element; over shared memory if it is to be read while the run lasts).
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "binding.hpp"

namespace saga::node {
namespace {

// Type tags, so that one handle cannot be passed for another.
constexpr napi_type_tag kWorkloadTag = {0x5A6A0001'00000001ull, 0x9B3F1D2C'77E04A01ull};
constexpr napi_type_tag kCacheReplayTag = {0x5A6A0001'00000002ull, 0x9B3F1D2C'77E04A02ull};
constexpr napi_type_tag kClusterTag = {0x5A6A0001'00000003ull, 0x9B3F1D2C'77E04A03ull};

// A native object behind a handle, and roughly what it weighs, so that V8 sees a reason to collect it.
template <typename T>
struct Held {
  T* object;
  std::int64_t bytes;
  std::size_t tasks;  // of a workload and what is made of it
};

template <typename T, void (*Destroy)(T*)>
Napi::Value wrap(Napi::Env env, T* object, const napi_type_tag& tag, std::int64_t bytes, std::size_t tasks) {
  auto* held = new Held<T>{object, bytes, tasks};
  auto external = Napi::External<Held<T>>::New(env, held, [](Napi::Env finalizing, Held<T>* last) {
    Napi::MemoryManagement::AdjustExternalMemory(finalizing, -last->bytes);
    Destroy(last->object);
    delete last;
  });
  if (external.IsEmpty()) {  // the thread is being ended: nobody will ask for it
    Destroy(object);
    delete held;
    return {};
  }
  Napi::MemoryManagement::AdjustExternalMemory(env, bytes);
  external.TypeTag(&tag);
  return external;
}

// nullptr if `value` is something else.
template <typename T>
const Held<T>* held_by(const Napi::Value& value, const napi_type_tag& tag) {
  if (!value.IsExternal()) return nullptr;
  auto external = value.As<Napi::External<Held<T>>>();
  return external.CheckTypeTag(&tag) ? external.Data() : nullptr;
}

// nullptr if `value` is something else: the C interface then answers SAGA_ERR_INVALID_ARGUMENT.
template <typename T>
T* unwrap(const Napi::Value& value, const napi_type_tag& tag) {
  const Held<T>* held = held_by<T>(value, tag);
  return held == nullptr ? nullptr : held->object;
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
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

// Numbers come as doubles; what is no such integer becomes a number that the C interface refuses.
std::uint32_t small_integer(double value) {
  return value >= 0 && value < 0x1p32 ? static_cast<std::uint32_t>(value) : UINT32_MAX;
}

// Declared graphs from rows of numbers: graphs [steps, edges, first prompt tokens, expected calls, expected seconds], steps
// [tool class, output tokens, observation tokens, gap seconds], edges [from, to, probability].
struct Graphs {
  std::vector<saga_agent_graph_t> graph;
  std::vector<saga_agent_step_t> step;
  std::vector<saga_agent_edge_t> edge;

  Graphs(const Elements<double>& graphs, const Elements<double>& steps, const Elements<double>& edges) {
    std::uint32_t first_step = 0;
    std::uint32_t first_edge = 0;
    for (std::size_t i = 0; i + 5 <= graphs.count; i += 5) {
      const double* row = graphs.data + i;
      graph.push_back({first_step, small_integer(row[0]), first_edge, small_integer(row[1]), row[2], row[3], row[4]});
      first_step += graph.back().step_count;
      first_edge += graph.back().edge_count;
    }
    for (std::size_t i = 0; i + 4 <= steps.count; i += 4) {
      const double* row = steps.data + i;
      step.push_back({small_integer(row[0]), 0, row[1], row[2], row[3]});
    }
    for (std::size_t i = 0; i + 3 <= edges.count; i += 3) {
      const double* row = edges.data + i;
      edge.push_back({small_integer(row[0]), small_integer(row[1]), row[2]});
    }
  }
};

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
  // What may be left out.
  const auto tenant_weight = elements<double>(env, given.Get("tenantWeight"));
  const auto task_graph = words("taskGraph");
  const auto doubles = [&](const char* name) { return elements<double>(env, given.Get(name)); };
  const Graphs graphs(doubles("graphRows"), doubles("graphSteps"), doubles("graphEdges"));
  const std::size_t tasks = tenant.count;
  const std::size_t calls = thread.count;
  const bool sizes_agree = first_call.count == tasks + 1 && expected.size() == tasks && prompt_tokens.count == calls &&
                           output_tokens.count == calls && prompt_kind.count == calls && stop_reason.count == calls &&
                           tool_class.count == calls && first_predecessor.count == calls + 1 &&
                           first_run.count == calls + 1 && gap.size() == predecessor.count &&
                           run_length.count == run_id.size() && (task_graph.count == 0 || task_graph.count == tasks);
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
  columns.tenant_count = static_cast<std::uint32_t>(tenant_weight.count);
  columns.graph_count = static_cast<std::uint32_t>(graphs.graph.size());
  columns.step_count = static_cast<std::uint32_t>(graphs.step.size());
  columns.edge_count = static_cast<std::uint32_t>(graphs.edge.size());
  columns.tenant_weight = tenant_weight.data;
  columns.task_graph = task_graph.count == 0 ? nullptr : task_graph.data;
  columns.graph = graphs.graph.data();
  columns.step = graphs.step.data();
  columns.edge = graphs.edge.data();
  saga_workload_t* workload = nullptr;
  const saga_status_t status = saga_workload_create(&columns, &workload);
  if (status != SAGA_OK) return failure(info, status);
  const std::size_t copied = 16 * tasks + 23 * calls + 12 * predecessor.count + 12 * run_id.size();
  return wrap<saga_workload_t, saga_workload_destroy>(env, workload, kWorkloadTag, static_cast<std::int64_t>(copied),
                                                      tasks);
}

// createCacheReplay(workload, pageTokens, call: Uint32Array, start: Float64Array, end: Float64Array, sessionEnd?: Uint8Array,
// declaredGap?: Float64Array (microseconds, NaN: not told))
Napi::Value create_cache_replay(const Napi::CallbackInfo& info) {
  const auto* workload = unwrap<saga_workload_t>(info[0], kWorkloadTag);
  const auto call = elements<std::uint32_t>(info.Env(), info[2]);
  const auto start = integers(elements<double>(info.Env(), info[3]));
  const auto end = integers(elements<double>(info.Env(), info[4]));
  const auto session_end = elements<std::uint8_t>(info.Env(), info[5]);
  const auto gap = integers(elements<double>(info.Env(), info[6]));  // NaN becomes UINT64_MAX: not told
  const auto fits = [&](std::size_t count) { return count == 0 || count == call.count; };
  if (start.size() != call.count || end.size() != call.count || !fits(session_end.count) || !fits(gap.size())) {
    return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  }
  saga_cache_schedule_t schedule{};
  schedule.struct_size = sizeof schedule;
  schedule.count = static_cast<std::uint32_t>(call.count);
  schedule.call = call.data;
  schedule.start = start.data();
  schedule.end = end.data();
  schedule.session_end = session_end.count == 0 ? nullptr : session_end.data;
  schedule.declared_gap = gap.empty() ? nullptr : gap.data();
  saga_cache_replay_t* replay = nullptr;
  const saga_status_t status = saga_cache_replay_create(workload, u32(info, 1), &schedule, &replay);
  if (status != SAGA_OK) return failure(info, status);
  // It keeps the workload, and its tree has up to two nodes a call.
  const std::int64_t bytes =
      held_by<saga_workload_t>(info[0], kWorkloadTag)->bytes + static_cast<std::int64_t>(call.count * 93);
  return wrap<saga_cache_replay_t, saga_cache_replay_destroy>(info.Env(), replay, kCacheReplayTag, bytes,
                                                              held_by<saga_workload_t>(info[0], kWorkloadTag)->tasks);
}

Napi::Value distinct_pages(const Napi::CallbackInfo& info) {
  std::uint64_t pages = 0;
  const saga_status_t status =
      saga_cache_replay_distinct_pages(unwrap<saga_cache_replay_t>(info[0], kCacheReplayTag), &pages);
  return answer(info, status, static_cast<double>(pages));
}

// A promise that a thread of the pool will settle. Empty: the thread that asks for it is being ended.
struct Promise {
  explicit Promise(napi_env env) {
    if (napi_create_promise(env, &deferred, &value) != napi_ok) deferred = nullptr;
  }
  bool empty() const { return deferred == nullptr; }
  napi_deferred deferred = nullptr;
  napi_value value = nullptr;
};

// One run on a thread of the pool. Resolves to 0 or minus the status. The values that the run reads or writes are kept alive
// by a reference to `kept`.
template <typename Run>
class AsyncRun : public Napi::AsyncWorker {
 public:
  AsyncRun(Napi::Env env, napi_deferred deferred, Napi::Array kept, Run run)
      : Napi::AsyncWorker(env), deferred_(deferred), kept_(Napi::Persistent(kept)), run_(run) {}

 protected:
  void Execute() override { status_ = run_(); }
  void OnOK() override {
    napi_resolve_deferred(Env(), deferred_, Napi::Number::New(Env(), -static_cast<double>(status_)));
  }
  void OnError(const Napi::Error& error) override { napi_reject_deferred(Env(), deferred_, error.Value()); }

 private:
  napi_deferred deferred_;
  Napi::Reference<Napi::Array> kept_;
  Run run_;
  saga_status_t status_ = SAGA_OK;
};

template <typename Run>
Napi::Value start_run(const Napi::CallbackInfo& info, Run run) {
  const Promise promise(info.Env());
  if (promise.empty()) return {};
  Napi::Array kept = Napi::Array::New(info.Env(), info.Length());
  for (std::uint32_t i = 0; i < info.Length(); ++i) kept.Set(i, info[i]);
  (new AsyncRun<Run>(info.Env(), promise.deferred, kept, run))->Queue();
  return {info.Env(), promise.value};
}

// runCacheReplay(replay, options: Float64Array of 6 [policy, model, capacityPages, requestLimit, inferThreads, timing],
// result: Float64Array of 9 in the order of saga_cache_result_t, progress)
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
  const bool sizes_fit = values.count == 6 && result.count == 9;
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
                              static_cast<double>(replayed.overflows),
                              static_cast<double>(replayed.policy_nanoseconds)};
    for (std::size_t i = 0; i < std::size(written); ++i) out[i] = written[i];
    return SAGA_OK;
  });
}

// createCluster(workload, options: Float64Array of 10 in the order of saga_cluster_options_t from `workers`) -> Promise of the
// cluster, or minus the status. It takes as long as playing every task alone.
class CreateCluster : public Napi::AsyncWorker {
 public:
  CreateCluster(Napi::Env env, napi_deferred deferred, Napi::Value workload, const saga_cluster_options_t& options)
      : Napi::AsyncWorker(env),
        deferred_(deferred),
        workload_(held_by<saga_workload_t>(workload, kWorkloadTag)),
        options_(options) {
    Napi::Array kept = Napi::Array::New(env, 1);
    kept.Set(std::uint32_t{0}, workload);
    kept_ = Napi::Persistent(kept);
  }

 protected:
  void Execute() override {
    status_ = saga_cluster_create(workload_ == nullptr ? nullptr : workload_->object, &options_, &cluster_);
  }
  void OnOK() override {
    // A cluster keeps the workload, and its tree is of that order.
    const Napi::Value made = status_ == SAGA_OK
                                 ? wrap<saga_cluster_t, saga_cluster_destroy>(Env(), cluster_, kClusterTag,
                                                                              4 * workload_->bytes, workload_->tasks)
                                 : Napi::Number::New(Env(), -static_cast<double>(status_));
    if (!made.IsEmpty()) napi_resolve_deferred(Env(), deferred_, made);
  }
  void OnError(const Napi::Error& error) override { napi_reject_deferred(Env(), deferred_, error.Value()); }

 private:
  napi_deferred deferred_;
  Napi::Reference<Napi::Array> kept_;
  const Held<saga_workload_t>* workload_;
  saga_cluster_options_t options_;
  saga_cluster_t* cluster_ = nullptr;
  saga_status_t status_ = SAGA_OK;
};

Napi::Value create_cluster(const Napi::CallbackInfo& info) {
  const auto values = elements<double>(info.Env(), info[1]);
  saga_cluster_options_t options;
  saga_cluster_options_init(&options);
  if (values.count == 10) {
    options.workers = static_cast<std::uint32_t>(values.data[0]);
    options.hardware = static_cast<std::uint32_t>(values.data[1]);
    options.page_tokens = static_cast<std::uint32_t>(values.data[2]);
    options.max_sequences = static_cast<std::uint32_t>(values.data[3]);
    options.token_budget = static_cast<std::uint32_t>(values.data[4]);
    options.kv_tokens = static_cast<std::uint64_t>(values.data[5]);
    options.host_tier_tokens = static_cast<std::uint64_t>(values.data[6]);
    options.link_bytes_per_second = static_cast<std::uint64_t>(values.data[7]);
    options.token_grain = static_cast<std::uint32_t>(values.data[8]);
    options.whole_prompts = static_cast<std::uint32_t>(values.data[9]);
  } else {
    options.struct_size = 0;  // refused
  }
  const Promise promise(info.Env());
  if (promise.empty()) return {};
  (new CreateCluster(info.Env(), promise.deferred, info[0], options))->Queue();
  return {info.Env(), promise.value};
}

saga_run_options_t run_options_of(const Elements<double>& values) {
  saga_run_options_t options;
  saga_run_options_init(&options);
  if (values.count == 6 + SAGA_POLICY_PARAMETERS) {
    options.policy = static_cast<std::uint32_t>(values.data[0]);
    options.hints = static_cast<std::uint32_t>(values.data[1]);
    options.without = static_cast<std::uint32_t>(values.data[2]);
    options.live = static_cast<std::uint32_t>(values.data[3]);
    options.rate = values.data[4];
    options.seed = static_cast<std::uint64_t>(values.data[5]);
    for (std::size_t i = 0; i < SAGA_POLICY_PARAMETERS; ++i) options.parameters[i] = values.data[6 + i];
  } else {
    options.struct_size = 0;  // refused
  }
  return options;
}

// The file that a run writes its journal to.
struct JournalFile {
  std::FILE* file = nullptr;
  std::uint64_t bytes = 0;
  bool failed = false;
  ~JournalFile() {
    if (file != nullptr) std::fclose(file);
  }
  static void append(void* context, const std::uint8_t* bytes, std::size_t count) {
    auto* journal = static_cast<JournalFile*>(context);
    if (std::fwrite(bytes, 1, count, journal->file) != count) journal->failed = true;
    journal->bytes += count;
  }
};

std::size_t tasks_of_cluster(const Napi::Value& cluster) {
  const auto* held = held_by<saga_cluster_t>(cluster, kClusterTag);
  return held == nullptr ? 0 : held->tasks;
}

// runCluster(cluster, options: Float64Array of 14 [policy, hints, without, live, rate, seed, 8 parameters], journal: path or '',
// result: Float64Array of 39, see src/native.d.cts, progress, taskSeconds?: Float64Array with a place for each task)
Napi::Value run_cluster(const Napi::CallbackInfo& info) {
  const auto* cluster = unwrap<saga_cluster_t>(info[0], kClusterTag);
  saga_run_options_t options = run_options_of(elements<double>(info.Env(), info[1]));
  const auto path = std::make_shared<const std::string>(info[2].As<Napi::String>().Utf8Value());
  const auto result = elements<double>(info.Env(), info[3]);
  std::uint64_t* progress = elements<std::uint64_t>(info.Env(), info[4]).data;
  const auto task_seconds = elements<double>(info.Env(), info[5]);
  if (task_seconds.count != 0) options.task_seconds = task_seconds.data;
  const bool sizes_fit =
      result.count == 39 && (task_seconds.count == 0 || task_seconds.count == tasks_of_cluster(info[0]));
  return start_run(info, [cluster, options, path, result, progress, sizes_fit]() -> saga_status_t {
    if (!sizes_fit) return SAGA_ERR_INVALID_ARGUMENT;
    saga_run_options_t run = options;
    JournalFile journal;
    if (!path->empty()) {
      journal.file = std::fopen(path->c_str(), "wb");
      if (journal.file == nullptr) return SAGA_ERR_NOT_FOUND;
      run.journal = &JournalFile::append;
      run.journal_context = &journal;
    }
    saga_run_result_t played{};
    const saga_status_t status = saga_cluster_run(cluster, &run, &played, progress);
    if (journal.file != nullptr && (std::fflush(journal.file) != 0 || journal.failed)) return SAGA_ERR_JOURNAL_FULL;
    if (status != SAGA_OK) return status;
    const saga_distribution_t& all = played.completion;
    const saga_distribution_t& busy = played.completion_without_gaps;
    const double written[] = {static_cast<double>(played.tasks_completed),
                              all.mean,
                              all.p50,
                              all.p95,
                              all.p99,
                              busy.mean,
                              busy.p50,
                              busy.p95,
                              busy.p99,
                              played.ideal_seconds,
                              played.prefix_hit_rate,
                              static_cast<double>(played.capacity_pages),
                              static_cast<double>(played.requested_pages),
                              static_cast<double>(played.missed_pages),
                              static_cast<double>(played.evicted_pages),
                              played.belady_ratio,
                              played.cost_ratio,
                              static_cast<double>(played.regenerated_tokens),
                              played.memory_utilization,
                              played.slo_attainment,
                              played.slo_attainment_paper,
                              played.throughput_tokens_per_second,
                              static_cast<double>(played.output_tokens),
                              static_cast<double>(played.preemptions),
                              static_cast<double>(played.steps),
                              static_cast<double>(played.engine_digest >> 32),
                              static_cast<double>(played.engine_digest & 0xFFFFFFFFu),
                              static_cast<double>(journal.bytes),
                              static_cast<double>(played.prefilled_tokens),
                              static_cast<double>(played.loaded_tokens),
                              static_cast<double>(played.preempted_tokens),
                              static_cast<double>(played.copied_pages),
                              static_cast<double>(played.held_calls),
                              static_cast<double>(played.steals),
                              static_cast<double>(played.leases_granted),
                              static_cast<double>(played.leases_refused),
                              static_cast<double>(played.leases_expired),
                              static_cast<double>(played.leases_released),
                              static_cast<double>(played.leases_revoked)};
    static_assert(std::size(written) == 39);
    for (std::size_t i = 0; i < std::size(written); ++i) result.data[i] = written[i];
    return SAGA_OK;
  });
}

// clusterSaturation(cluster, options as of runCluster, result: Float64Array of 1, progress)
Napi::Value cluster_saturation(const Napi::CallbackInfo& info) {
  const auto* cluster = unwrap<saga_cluster_t>(info[0], kClusterTag);
  const saga_run_options_t options = run_options_of(elements<double>(info.Env(), info[1]));
  const auto result = elements<double>(info.Env(), info[2]);
  std::uint64_t* progress = elements<std::uint64_t>(info.Env(), info[3]).data;
  return start_run(info, [=] {
    return result.count == 1 ? saga_cluster_saturation(cluster, &options, result.data, progress)
                             : SAGA_ERR_INVALID_ARGUMENT;
  });
}

Napi::Value cluster_live_for_pressure(const Napi::CallbackInfo& info) {
  std::uint32_t live = 0;
  const saga_status_t status =
      saga_cluster_live_for_pressure(unwrap<saga_cluster_t>(info[0], kClusterTag), number(info, 1), &live);
  return answer(info, status, live);
}

}  // namespace

void register_simulate(Napi::Env env, Napi::Object exports) {
  exports.Set("createWorkload", Napi::Function::New<create_workload>(env, "createWorkload"));
  exports.Set("createCacheReplay", Napi::Function::New<create_cache_replay>(env, "createCacheReplay"));
  exports.Set("cacheReplayDistinctPages", Napi::Function::New<distinct_pages>(env, "cacheReplayDistinctPages"));
  exports.Set("runCacheReplay", Napi::Function::New<run_cache_replay>(env, "runCacheReplay"));
  exports.Set("createCluster", Napi::Function::New<create_cluster>(env, "createCluster"));
  exports.Set("runCluster", Napi::Function::New<run_cluster>(env, "runCluster"));
  exports.Set("clusterSaturation", Napi::Function::New<cluster_saturation>(env, "clusterSaturation"));
  exports.Set("clusterLiveForPressure", Napi::Function::New<cluster_live_for_pressure>(env, "clusterLiveForPressure"));
}

}  // namespace saga::node
