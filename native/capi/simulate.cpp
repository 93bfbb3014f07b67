// Workloads and simulations of the C interface.
#include <atomic>
#include <memory>

#include "../core/sim/cache_replay.hpp"
#include "../core/sim/cluster.hpp"
#include "../core/sim/engine_placement.hpp"
#include "../core/sim/workload.hpp"
#include "check.hpp"
#include "workload_check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_EVICTION_LRU == static_cast<int>(PolicyKind::kLru) &&
              SAGA_EVICTION_LRU_PREFIX == static_cast<int>(PolicyKind::kLruPrefix) &&
              SAGA_EVICTION_WA_LRU == static_cast<int>(PolicyKind::kWaLru) &&
              SAGA_EVICTION_TTL == static_cast<int>(PolicyKind::kTtl) &&
              SAGA_EVICTION_BELADY == static_cast<int>(PolicyKind::kBelady) &&
              SAGA_EVICTION_SAGA_PAPER == static_cast<int>(PolicyKind::kSagaPaper) &&
              SAGA_EVICTION_SAGA == static_cast<int>(PolicyKind::kSaga));
static_assert(SAGA_CACHE_ATOMIC == static_cast<int>(CacheModel::kAtomic) &&
              SAGA_CACHE_PINNED == static_cast<int>(CacheModel::kPinned));

static_assert(SAGA_HARDWARE_H100_TP4 == static_cast<int>(Hardware::kH100Tp4) &&
              SAGA_HARDWARE_H100_TP8 == static_cast<int>(Hardware::kH100Tp8) &&
              SAGA_HARDWARE_A100_TP4 == static_cast<int>(Hardware::kA100Tp4) &&
              SAGA_HARDWARE_A100_TP8 == static_cast<int>(Hardware::kA100Tp8));

static_assert(SAGA_POLICY_ROUND_ROBIN == static_cast<int>(ClusterPolicyKind::kRoundRobin) &&
              SAGA_POLICY_AFFINITY == static_cast<int>(ClusterPolicyKind::kAffinity) &&
              SAGA_POLICY_WA_LRU == static_cast<int>(ClusterPolicyKind::kWaLru) &&
              SAGA_POLICY_TTL == static_cast<int>(ClusterPolicyKind::kTtl) &&
              SAGA_POLICY_KV_ROUTER == static_cast<int>(ClusterPolicyKind::kKvRouter) &&
              SAGA_POLICY_CONTINUUM == static_cast<int>(ClusterPolicyKind::kContinuum) &&
              SAGA_POLICY_THUNDER_AGENT == static_cast<int>(ClusterPolicyKind::kThunderAgent) &&
              SAGA_POLICY_KV_FLOW == static_cast<int>(ClusterPolicyKind::kKvFlow) &&
              SAGA_POLICY_SAGA_PAPER == static_cast<int>(ClusterPolicyKind::kSagaPaper) &&
              SAGA_POLICY_SAGA == static_cast<int>(ClusterPolicyKind::kSaga) &&
              SAGA_POLICY_SAGA + 1 == kClusterPolicyKindCount && SAGA_POLICY_PARAMETERS == kPolicyParameters);
static_assert(SAGA_PART_PREDICTION == static_cast<int>(kPartPrediction) &&
              SAGA_PART_EVICTION == static_cast<int>(kPartEviction) &&
              SAGA_PART_AFFINITY == static_cast<int>(kPartAffinity) &&
              SAGA_PART_STEALING == static_cast<int>(kPartStealing) &&
              SAGA_PART_PREFETCH == static_cast<int>(kPartPrefetch) &&
              SAGA_PART_ADMISSION == static_cast<int>(kPartAdmission) &&
              SAGA_PART_FAIRNESS == static_cast<int>(kPartFairness) && SAGA_PART_TTL == static_cast<int>(kPartTtl) &&
              2 * SAGA_PART_TTL - 1 == kAllParts);
static_assert(SAGA_HINTS_NONE == static_cast<int>(ClusterHints::kNone) &&
              SAGA_HINTS_GRAPH == static_cast<int>(ClusterHints::kGraph));

struct saga_workload_t {
  std::shared_ptr<const Workload> workload;
  std::shared_ptr<const std::vector<Time>> expected;  // per task; null where the workload gives none
};

struct saga_cache_replay_t {
  std::shared_ptr<const Workload> workload;
  PageTree tree;
  CacheSchedule schedule;
};

struct saga_cluster_t {
  std::shared_ptr<const Workload> workload;
  std::shared_ptr<const std::vector<Time>> expected;
  PageTree tree;
  std::uint32_t capacity_pages;
  ClusterOptions options;  // ideal and expected point into this object
  std::vector<Time> ideal;
};

namespace {

// The core counts in std::atomic; to a C caller it is a plain 64-bit integer.
std::atomic<std::uint64_t>* as_atomic(std::uint64_t* progress) {
  static_assert(sizeof(std::atomic<std::uint64_t>) == sizeof(std::uint64_t));
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
  return reinterpret_cast<std::atomic<std::uint64_t>*>(progress);
}

bool page_size_fits(std::uint32_t page_tokens, std::uint32_t block_tokens) {
  return in_range(page_tokens, 1, 1u << 20) && (page_tokens % block_tokens == 0 || block_tokens % page_tokens == 0);
}

// Policies that the engine itself decides by. Of host tiers it is told no KV events, which only saga would miss.
bool runs_through_engine(const ClusterOptions& options) {
  return options.policy.kind <= ClusterPolicyKind::kTtl ||
         (options.policy.kind == ClusterPolicyKind::kSaga && options.host_tier_tokens == 0);
}

PlacementKind placement_of(ClusterPolicyKind kind) {
  return kind == ClusterPolicyKind::kSaga ? PlacementKind::kSaga : baseline_placement_of(kind);
}

// The options of a run on a cluster, or false.
bool run_options(const saga_cluster_t& cluster, const saga_run_options_t& given, ClusterOptions* options) {
  if (given.policy > SAGA_POLICY_SAGA || given.hints > SAGA_HINTS_GRAPH || given.reserved != 0) return false;
  *options = cluster.options;
  options->policy.kind = static_cast<ClusterPolicyKind>(given.policy);
  options->policy.seed = given.seed;
  options->policy.without = given.without;
  for (std::uint32_t i = 0; i < kPolicyParameters; ++i) options->policy.parameters[i] = given.parameters[i];
  options->hints = static_cast<ClusterHints>(given.hints);
  options->seed = given.seed;
  options->rate = given.rate;
  options->live = given.live;
  const bool has_parts = given.policy == SAGA_POLICY_SAGA_PAPER || given.policy == SAGA_POLICY_SAGA;
  if ((given.without != 0 && !has_parts) || (given.journal != nullptr && !runs_through_engine(*options))) {
    return false;
  }
  return valid(options->policy);
}

saga_cache_options_t default_cache_options() {
  saga_cache_options_t options{};
  options.policy = SAGA_EVICTION_LRU;
  options.model = SAGA_CACHE_PINNED;
  options.capacity_pages = 1;
  options.request_limit = UINT64_MAX;
  return options;
}

saga_cluster_options_t default_cluster_options() {
  const ClusterOptions defaults;
  saga_cluster_options_t options{};
  options.workers = defaults.workers;
  options.hardware = static_cast<std::uint32_t>(defaults.hardware);
  options.page_tokens = 16;
  options.max_sequences = defaults.max_sequences;
  options.token_budget = defaults.token_budget;
  options.link_bytes_per_second = defaults.link_bytes_per_second;
  options.token_grain = defaults.token_grain;
  return options;
}

saga_run_options_t default_run_options() {
  saga_run_options_t options{};
  options.policy = SAGA_POLICY_AFFINITY;
  options.hints = SAGA_HINTS_GRAPH;
  for (double& parameter : options.parameters) parameter = ClusterPolicyOptions::kDefault;
  return options;
}

saga_distribution_t to_c(const Distribution& distribution) {
  return {distribution.mean, distribution.p50, distribution.p95, distribution.p99};
}

}  // namespace

extern "C" {

saga_status_t saga_workload_create(const saga_workload_columns_t* columns, saga_workload_t** workload) {
  saga_workload_columns_t given{};
  if (workload == nullptr || !read_options(columns, &given) || !workload_columns_valid(given)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&]() -> saga_status_t {
    auto copy = std::make_shared<Workload>(copy_workload(given));
    for (AgentGraph& graph : copy->graphs) {
      if (!graph.verify()) return SAGA_ERR_INVALID_ARGUMENT;
      graph.prepare();
    }
    std::shared_ptr<const std::vector<Time>> expected;
    if (given.task_expected != nullptr) {
      expected = std::make_shared<const std::vector<Time>>(given.task_expected, given.task_expected + given.task_count);
    }
    *workload = new (std::nothrow) saga_workload_t{std::move(copy), std::move(expected)};
    return *workload == nullptr ? SAGA_ERR_OUT_OF_MEMORY : SAGA_OK;
  });
}

void saga_workload_destroy(saga_workload_t* workload) { delete workload; }

saga_status_t saga_cache_replay_create(const saga_workload_t* workload, uint32_t page_tokens,
                                       const saga_cache_schedule_t* schedule, saga_cache_replay_t** replay) {
  saga_cache_schedule_t given{};
  if (workload == nullptr || replay == nullptr || !read_options(schedule, &given) ||
      !is_array(given.call, given.count) || !is_array(given.start, given.count) || !is_array(given.end, given.count) ||
      given.count > workload->workload->calls() || !page_size_fits(page_tokens, workload->workload->block_tokens)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&]() -> saga_status_t {
    std::vector<bool> seen(workload->workload->calls());
    for (std::uint32_t i = 0; i < given.count; ++i) {
      const CallId call = given.call[i];
      if (call >= seen.size() || seen[call] || given.end[i] < given.start[i] || given.end[i] > kMostTime ||
          (i > 0 && given.start[i] < given.start[i - 1]) ||
          (given.session_end != nullptr && given.session_end[i] > 1) ||
          (given.declared_gap != nullptr && given.declared_gap[i] > kMostTime &&
           given.declared_gap[i] != kNotDeclared)) {
        return SAGA_ERR_INVALID_ARGUMENT;
      }
      seen[call] = true;
    }
    CacheSchedule copy;
    copy.call.assign(given.call, given.call + given.count);
    copy.start.assign(given.start, given.start + given.count);
    copy.end.assign(given.end, given.end + given.count);
    if (given.session_end != nullptr) copy.session_end.assign(given.session_end, given.session_end + given.count);
    if (given.declared_gap != nullptr) copy.declared_gap.assign(given.declared_gap, given.declared_gap + given.count);
    *replay = new (std::nothrow)
        saga_cache_replay_t{workload->workload, PageTree::for_cache(*workload->workload, page_tokens), std::move(copy)};
    return *replay == nullptr ? SAGA_ERR_OUT_OF_MEMORY : SAGA_OK;
  });
}

void saga_cache_replay_destroy(saga_cache_replay_t* replay) { delete replay; }

saga_status_t saga_cache_replay_distinct_pages(const saga_cache_replay_t* replay, uint64_t* pages) {
  if (replay == nullptr || pages == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *pages = replay->tree.distinct_pages();
  return SAGA_OK;
}

void saga_cache_options_init_sized(saga_cache_options_t* options, uint32_t struct_size) {
  write_options(default_cache_options(), options, struct_size);
}

saga_status_t saga_cache_replay_run(const saga_cache_replay_t* replay, const saga_cache_options_t* options,
                                    saga_cache_result_t* result, uint64_t* progress) {
  saga_cache_options_t given = default_cache_options();
  if (replay == nullptr || result == nullptr || !read_options(options, &given) || given.policy > SAGA_EVICTION_SAGA ||
      given.model > SAGA_CACHE_PINNED || given.capacity_pages == 0 || given.infer_threads > 1 || given.reserved != 0) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  CacheReplayOptions run;
  run.policy = static_cast<PolicyKind>(given.policy);
  run.model = static_cast<CacheModel>(given.model);
  run.capacity_pages = given.capacity_pages;
  run.request_limit = given.request_limit < kNone ? static_cast<std::uint32_t>(given.request_limit) : kNone;
  run.infer_threads = given.infer_threads != 0;
  run.progress = as_atomic(progress);
  run.now_ns = given.nanoseconds;
  return guarded([&] {
    const CacheReplayResult replayed = replay_cache(*replay->workload, replay->tree, replay->schedule, run);
    result->requests = replayed.requests;
    result->requested_pages = replayed.requested_pages;
    result->missed_pages = replayed.missed_pages;
    result->evicted_pages = replayed.evicted_pages;
    result->requested_cost = replayed.requested_cost;
    result->missed_cost = replayed.missed_cost;
    result->eviction_nanoseconds = replayed.cut_ns;
    result->overflows = replayed.overflows;
    result->policy_nanoseconds = replayed.policy_ns;
    return SAGA_OK;
  });
}

void saga_cluster_options_init_sized(saga_cluster_options_t* options, uint32_t struct_size) {
  write_options(default_cluster_options(), options, struct_size);
}

void saga_run_options_init_sized(saga_run_options_t* options, uint32_t struct_size) {
  write_options(default_run_options(), options, struct_size);
}

saga_status_t saga_cluster_create(const saga_workload_t* workload, const saga_cluster_options_t* options,
                                  saga_cluster_t** cluster) {
  saga_cluster_options_t given = default_cluster_options();
  if (workload == nullptr || cluster == nullptr || !read_options(options, &given) ||
      !in_range(given.workers, 1, 1024) || given.hardware > SAGA_HARDWARE_A100_TP8 ||
      !page_size_fits(given.page_tokens, workload->workload->block_tokens) ||
      !in_range(given.max_sequences, 1, 1u << 16) || !in_range(given.token_budget, given.max_sequences, 1u << 24) ||
      given.kv_tokens > (std::uint64_t{1} << 32) || given.host_tier_tokens > (std::uint64_t{1} << 40) ||
      given.link_bytes_per_second == 0 || !in_range(given.token_grain, 1, 64) || given.whole_prompts > 1) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  ClusterOptions made;
  made.workers = given.workers;
  made.hardware = static_cast<Hardware>(given.hardware);
  made.kv_tokens = given.kv_tokens != 0 ? given.kv_tokens : default_kv_tokens(made.hardware) / given.token_grain;
  made.max_sequences = given.max_sequences;
  made.token_budget = given.token_budget;
  made.host_tier_tokens = given.host_tier_tokens;
  made.link_bytes_per_second = given.link_bytes_per_second;
  made.token_grain = given.token_grain;
  made.whole_prompts = given.whole_prompts != 0;
  made.kv_bytes_per_token *= given.token_grain;
  const std::uint64_t capacity = made.kv_tokens / given.page_tokens;
  if (!in_range(capacity, 1, 1u << 28)) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&]() -> saga_status_t {
    auto built = std::unique_ptr<saga_cluster_t>(
        new (std::nothrow) saga_cluster_t{workload->workload,
                                          workload->expected,
                                          PageTree::for_cluster(*workload->workload, given.page_tokens),
                                          static_cast<std::uint32_t>(capacity),
                                          made,
                                          {}});
    if (built == nullptr) return SAGA_ERR_OUT_OF_MEMORY;
    const Status status = ideal_completion(*built->workload, built->tree, built->options, &built->ideal);
    if (status != Status::kOk) return saga::capi::to_c(status);
    built->options.ideal = &built->ideal;
    built->options.expected = built->expected.get();
    *cluster = built.release();
    return SAGA_OK;
  });
}

void saga_cluster_destroy(saga_cluster_t* cluster) { delete cluster; }

saga_status_t saga_cluster_run(const saga_cluster_t* cluster, const saga_run_options_t* options,
                               saga_run_result_t* result, uint64_t* progress) {
  saga_run_options_t given = default_run_options();
  ClusterOptions run;
  if (cluster == nullptr || result == nullptr || !read_options(options, &given) ||
      !run_options(*cluster, given, &run) || !((given.rate > 0) != (given.live > 0)) || !(given.rate < 1e9)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&]() -> saga_status_t {
    ClusterResult played;
    std::uint64_t digest = 0;
    if (runs_through_engine(run)) {
      EnginePlacement engine(*cluster->workload, cluster->tree, run.workers, cluster->capacity_pages,
                             placement_of(run.policy.kind), run.seed, given.journal, given.journal_context,
                             EnginePlacement::scheduling_for(run.policy, run, *cluster->workload));
      const Status status =
          simulate_cluster(*cluster->workload, cluster->tree, run, &played, as_atomic(progress), &engine, &engine);
      engine.finish_journal();
      if (status != Status::kOk) return saga::capi::to_c(status);
      if (engine.status() != Status::kOk) return saga::capi::to_c(engine.status());
      digest = engine.engine().digest();
    } else {
      const Status status = simulate_cluster(*cluster->workload, cluster->tree, run, &played, as_atomic(progress));
      if (status != Status::kOk) return saga::capi::to_c(status);
    }
    if (given.task_seconds != nullptr) {
      for (std::size_t task = 0; task < played.task_completion.size(); ++task) {
        given.task_seconds[task] = static_cast<double>(played.task_completion[task]) / 1e6;
      }
    }
    *result = saga_run_result_t{};
    result->tasks_completed = played.tasks_completed;
    result->completion = to_c(played.completion);
    result->completion_without_gaps = to_c(played.completion_without_gaps);
    result->ideal_seconds = played.ideal_seconds;
    result->prefix_hit_rate = played.prefix_hit_rate;
    result->capacity_pages = cluster->capacity_pages;
    result->requested_pages = played.requested_pages;
    result->missed_pages = played.missed_pages;
    result->evicted_pages = played.evicted_pages;
    result->belady_ratio = played.belady_ratio;
    result->cost_ratio = played.cost_ratio;
    result->regenerated_tokens = played.regenerated_tokens;
    result->memory_utilization = played.memory_utilization;
    result->slo_attainment = played.slo_attainment;
    result->slo_attainment_paper = played.slo_attainment_paper;
    result->throughput_tokens_per_second = played.throughput_tokens_per_second;
    result->output_tokens = played.output_tokens;
    result->preemptions = played.preemptions;
    result->steps = played.steps;
    result->engine_digest = digest;
    result->prefilled_tokens = played.prefilled_tokens;
    result->loaded_tokens = played.loaded_tokens;
    result->preempted_tokens = played.preempted_tokens;
    result->copied_pages = played.copied_pages;
    result->held_calls = played.held_calls;
    result->steals = played.steals;
    result->leases_granted = played.leases.granted;
    result->leases_refused = played.leases.refused;
    result->leases_expired = played.leases.expired;
    result->leases_released = played.leases.released;
    result->leases_revoked = played.leases.revoked;
    return SAGA_OK;
  });
}

saga_status_t saga_cluster_saturation(const saga_cluster_t* cluster, const saga_run_options_t* options,
                                      double* tasks_per_second, uint64_t* progress) {
  saga_run_options_t given = default_run_options();
  ClusterOptions run;
  if (cluster == nullptr || tasks_per_second == nullptr || !read_options(options, &given) ||
      !run_options(*cluster, given, &run)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&] {
    return saga::capi::to_c(
        find_saturation(*cluster->workload, cluster->tree, run, tasks_per_second, as_atomic(progress)));
  });
}

saga_status_t saga_cluster_live_for_pressure(const saga_cluster_t* cluster, double pressure, uint32_t* live) {
  if (cluster == nullptr || live == nullptr || !(pressure > 0) || !(pressure < 1e6)) return SAGA_ERR_INVALID_ARGUMENT;
  *live = live_for_pressure(*cluster->workload, cluster->options, pressure);
  return SAGA_OK;
}

}  // extern "C"
