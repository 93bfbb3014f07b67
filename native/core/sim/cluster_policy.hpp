// The schedulers that a simulated cluster can be driven by, each under one name: where calls go, what is kept and copied,
// and what the workers evict. A policy is made for one run from its options, the cluster's and the workload's bounds; it
// never reads what a router could not see.
//
//   round-robin    the next worker in turn; LRU
//   affinity       the longest match, unless load is too unequal (place/placement.hpp); LRU
//   wa-lru         affinity; WA-LRU of the SAGA paper on the workers
//   ttl            affinity; time to live on the workers
//   kv-router      the cost of NVIDIA Dynamo's KV router (kv_router.hpp); LRU
//   continuum      retention for a time to live by cost and benefit, programs first come first served (continuum.hpp)
//   thunder-agent  programs paused and resumed by the room they take (thunder_agent.hpp); LRU
//   kv-flow        eviction by steps to execution, prefetch (kv_flow.hpp)
//   saga-paper     SAGA as its paper describes it (saga_paper.hpp)
//   saga           SAGA (place/saga_scheduler.hpp)
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>

#include "../evict/eviction_policy.hpp"
#include "../place/cluster_control.hpp"
#include "../place/placement.hpp"
#include "workload.hpp"

namespace saga {

enum class ClusterPolicyKind : std::uint8_t {
  kRoundRobin = 0,
  kAffinity = 1,
  kWaLru = 2,
  kTtl = 3,
  kKvRouter = 4,
  kContinuum = 5,
  kThunderAgent = 6,
  kKvFlow = 7,
  kSagaPaper = 8,
  kSaga = 9,
};
inline constexpr std::uint32_t kClusterPolicyKindCount = 10;

// Parts of saga-paper and saga that can be taken out (ablations): bits of ClusterPolicyOptions::without.
enum ClusterPolicyPart : std::uint32_t {
  kPartPrediction = 1u << 0,  // nothing is learned and no declared graph is read
  kPartEviction = 1u << 1,    // the workers evict by LRU
  kPartAffinity = 1u << 2,    // calls go to the least loaded worker
  kPartStealing = 1u << 3,
  kPartPrefetch = 1u << 4,
  kPartAdmission = 1u << 5,
  kPartFairness = 1u << 6,  // no order of urgency: first come, first served
  kPartTtl = 1u << 7,
};
inline constexpr std::uint32_t kAllParts = (1u << 8) - 1;

inline constexpr std::uint32_t kPolicyParameters = 8;

struct ClusterPolicyOptions {
  ClusterPolicyKind kind = ClusterPolicyKind::kAffinity;
  std::uint64_t seed = 0;
  std::uint32_t without = 0;
  // NaN: the policy's default. What each means, and its default, stands in the header of the policy.
  std::array<double, kPolicyParameters> parameters = {kDefault, kDefault, kDefault, kDefault,
                                                      kDefault, kDefault, kDefault, kDefault};

  static constexpr double kDefault = std::numeric_limits<double>::quiet_NaN();
  double parameter(std::uint32_t index, double otherwise) const {
    return parameters[index] == parameters[index] ? parameters[index] : otherwise;
  }
  bool has(ClusterPolicyPart part) const { return (without & part) == 0; }
};

struct ClusterOptions;

// What the workers evict by under this policy.
PolicyKind eviction_of(const ClusterPolicyOptions& options);

// Whether the workers run vLLM's priority scheduling for it.
bool priority_scheduling_of(const ClusterPolicyOptions& options);

// Whether the workers let leases hold all of their memory, and admit nobody at their expense (sim_worker.hpp).
bool leases_before_waiting_of(const ClusterPolicyOptions& options);

// After what time of waiting the workers let a call preempt one of clearly lower priority (sim_worker.hpp); 0: never.
Time preempt_after_of(const ClusterPolicyOptions& options);

// The baseline placement of the kinds that have no scheduler of their own (kRoundRobin to kTtl).
PlacementKind baseline_placement_of(ClusterPolicyKind kind);

// False: unknown bits in `without`, or a parameter beyond a thousand million.
bool valid(const ClusterPolicyOptions& options);

// The options of `saga`, as make_cluster_policy() sets them.
struct SagaSchedulerOptions;
SagaSchedulerOptions saga_options(const ClusterPolicyOptions& options, const ClusterOptions& cluster,
                                  const Workload& workload);

// A policy for one run. The workload bounds its tables and nothing else; both references are not kept.
std::unique_ptr<PlacementPolicy> make_cluster_policy(const ClusterPolicyOptions& options, const ClusterOptions& cluster,
                                                     const Workload& workload);

}  // namespace saga
