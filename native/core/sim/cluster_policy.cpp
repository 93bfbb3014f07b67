#include "cluster_policy.hpp"

#include "../base/assert.hpp"
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
    default:
      break;
  }
  SAGA_ASSERT(!"no such policy");
  return nullptr;
}

}  // namespace saga
