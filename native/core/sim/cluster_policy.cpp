#include "cluster_policy.hpp"

#include "../base/assert.hpp"
#include "../place/saga_scheduler.hpp"
#include "cluster.hpp"
#include "continuum.hpp"
#include "kv_flow.hpp"
#include "kv_router.hpp"
#include "placement_policy.hpp"
#include "saga_paper.hpp"
#include "thunder_agent.hpp"

namespace saga {
namespace {

constexpr double kLargestParameter = 1e9;

}  // namespace

PolicyKind eviction_of(const ClusterPolicyOptions& options) {
  switch (options.kind) {
    case ClusterPolicyKind::kWaLru:
      return PolicyKind::kWaLru;
    case ClusterPolicyKind::kTtl:
      return PolicyKind::kTtl;
    case ClusterPolicyKind::kKvFlow:
      return PolicyKind::kStepsToExecution;
    case ClusterPolicyKind::kSagaPaper:
      if (!options.has(kPartEviction)) return options.has(kPartTtl) ? PolicyKind::kTtl : PolicyKind::kLru;
      return options.has(kPartTtl) ? PolicyKind::kSagaPaper : PolicyKind::kWaLru;
    case ClusterPolicyKind::kSaga:
      return options.has(kPartEviction) ? PolicyKind::kSaga : PolicyKind::kLru;
    default:
      return PolicyKind::kLru;
  }
}

bool priority_scheduling_of(const ClusterPolicyOptions& options) {
  switch (options.kind) {
    case ClusterPolicyKind::kContinuum:
      return true;
    case ClusterPolicyKind::kSagaPaper:
    case ClusterPolicyKind::kSaga:
      return options.has(kPartFairness);
    default:
      return false;
  }
}

bool leases_before_waiting_of(const ClusterPolicyOptions& options) {
  return options.kind == ClusterPolicyKind::kContinuum;
}

Time preempt_after_of(const ClusterPolicyOptions& options) {
  return options.kind == ClusterPolicyKind::kSagaPaper ? SagaPaper::preemption_threshold(options) : 0;
}

PlacementKind baseline_placement_of(ClusterPolicyKind kind) {
  return kind == ClusterPolicyKind::kRoundRobin ? PlacementKind::kRoundRobin : PlacementKind::kAffinity;
}

bool valid(const ClusterPolicyOptions& options) {
  if (static_cast<std::uint32_t>(options.kind) >= kClusterPolicyKindCount || (options.without & ~kAllParts) != 0) {
    return false;
  }
  for (const double parameter : options.parameters) {
    if (parameter > kLargestParameter || parameter < -kLargestParameter) return false;
  }
  return true;
}

SagaSchedulerOptions saga_options(const ClusterPolicyOptions& options, const ClusterOptions& cluster,
                                  const Workload& workload) {
  SagaSchedulerOptions saga;
  saga.workers = cluster.workers;
  saga.tasks = workload.tasks();
  saga.calls = workload.calls();
  for (const ThreadId thread : workload.call_thread) saga.threads = std::max(saga.threads, thread + 1);
  for (const std::uint32_t tenant : workload.task_tenant) saga.tenants = std::max(saga.tenants, tenant + 1);
  saga.seed = options.seed;
  saga.costs = step_costs(cluster.step_time());
  saga.kv_bytes_per_token = static_cast<double>(cluster.kv_bytes_per_token);
  saga.parts.prediction = options.has(kPartPrediction);
  saga.parts.affinity = options.has(kPartAffinity);
  saga.parts.stealing = options.has(kPartStealing);
  saga.parts.prefetch = options.has(kPartPrefetch);
  saga.parts.admission = options.has(kPartAdmission);
  saga.parts.fairness = options.has(kPartFairness);
  saga.parts.retention = options.has(kPartTtl);
  saga.leases = !options.has(kPartEviction);
  return saga;
}

std::unique_ptr<PlacementPolicy> make_cluster_policy(const ClusterPolicyOptions& options, const ClusterOptions& cluster,
                                                     const Workload& workload) {
  switch (options.kind) {
    case ClusterPolicyKind::kRoundRobin:
    case ClusterPolicyKind::kAffinity:
    case ClusterPolicyKind::kWaLru:
    case ClusterPolicyKind::kTtl:
      return std::make_unique<BaselinePlacement>(baseline_placement_of(options.kind), options.seed);
    case ClusterPolicyKind::kKvRouter:
      return std::make_unique<KvRouter>(options, cluster, workload);
    case ClusterPolicyKind::kContinuum:
      return std::make_unique<Continuum>(options, cluster, workload);
    case ClusterPolicyKind::kThunderAgent:
      return std::make_unique<ThunderAgent>(options, workload);
    case ClusterPolicyKind::kKvFlow:
      return std::make_unique<KvFlow>(options, cluster, workload);
    case ClusterPolicyKind::kSagaPaper:
      return std::make_unique<SagaPaper>(options, cluster, workload);
    case ClusterPolicyKind::kSaga:
      return std::make_unique<SagaScheduler>(saga_options(options, cluster, workload));
    default:
      break;
  }
  SAGA_ASSERT(false && "no such policy");
  return nullptr;
}

}  // namespace saga
