// SagaPaper: the scheduler of the SAGA paper (arXiv 2605.00528) as published, with the choices of its official code where the
// paper is silent. Its workers evict by WA-LRU with times to live (evict/branch_policy.hpp).
//
//   affinity   A call goes to the worker w of its session (task) while that caches some of its prompt and load(w) < theta,
//              else to the least loaded one. load = 0.5 utilization + 0.5 memory pressure + 0.01 queued calls;
//              utilization = open calls / seats; memory pressure = live contexts of the worker's sessions / its KV room.
//   queues     Calls wait in a queue for each worker and are dispatched while fewer than `dispatch depth` calls wait in the
//              engine itself: breadth first (oldest call), depth first (newest call), or hybrid: the tenant with the
//              highest urgency first, of one tenant the oldest call, or the oldest session.
//   fairness   Urgency of a tenant (Eq. 8) = weight x sum over its live tasks of remaining work / (deadline - now), overdue
//              ones floored as there; deadline = arrival + 1.5 x expected time. Work and times are the declared graph's, or
//              means over finished tasks. Priorities of the engines follow it, and a waiting call that has been blocked for
//              500 ms by one of less than half its urgency preempts that one.
//   stealing   Each epoch of 100 ms a worker whose queue has been empty for T_idle, or that is the least loaded where the
//              largest load is over R_max times the least, steals: from a worker drawn among the overloaded ones (load >
//              R_max x least, or two queued calls) its oldest pending session, which goes to the front of the thief's queue
//              when its KV has been copied. At most four an epoch; never where the thief would be the fuller one.
//   prefetch   What the host tier holds of a session is loaded back before its tool is expected to return; what the next
//              prompt will add is not known before.
//
// Without a part (ClusterPolicyOptions::without): prediction: no declared graph is read; eviction, ttl: the workers' policy;
// affinity: every call to the least loaded worker; stealing; prefetch; fairness: breadth first, no priorities.
//
// Parameters (defaults): 0 theta (1.2: with this load, which has no upper bound, better than the paper's 0.8), 1 queue strategy
// (3; 0 breadth, 1 depth, 2 hybrid by call, 3 hybrid by session), 2 T_idle in seconds (0.1), 3 R_max (2), 4 dispatch depth (1),
// 5 preemption threshold in seconds (0.5; 0: never).
//
// Cost: O(workers) a call, O(queue) a dispatch, O(live tasks) an epoch in which anything is sent or queued. Memory: 48 bytes a
// task and 24 a call. States of a call: (queued ->) sent -> gone. Invariants (verify()): a queued call belongs to a bound session,
// in the queue of its worker; queued calls are counted.
#pragma once

#include <vector>

#include "../base/random.hpp"
#include "../place/cluster_control.hpp"
#include "cluster_policy.hpp"
#include "prefetch_queue.hpp"
#include "session_table.hpp"

namespace saga {

class SagaPaper final : public PlacementPolicy {
 public:
  // A waiting call preempts one whose priority is larger by more than this: half its urgency.
  static constexpr std::int64_t kPreemptionGap = std::int64_t{16} << 20;
  static Time preemption_threshold(const ClusterPolicyOptions& options);

  SagaPaper(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload);

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  std::int32_t priority(CallId call, Time now, ClusterControl& cluster) override;
  void task_arrived(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void task_finished(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void first_token(CallId call, WorkerId worker, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                     ClusterControl& cluster) override;
  void timer(Time now, ClusterControl& cluster) override;
  bool verify() const override;

  double urgency(std::uint32_t tenant) const { return urgency_[tenant]; }
  std::uint64_t steals() const override { return steals_; }
  std::uint32_t live_tasks() const { return static_cast<std::uint32_t>(live_.size()); }
  const SessionTable& sessions() const { return sessions_; }

 private:
  enum class Strategy : std::uint8_t { kBreadth = 0, kDepth = 1, kHybridByCall = 2, kHybridBySession = 3 };
  struct Task {
    Time arrival = 0;
    std::uint32_t order = 0;
    std::uint32_t calls_done = 0;
    bool live = false;
    double seconds_a_call = 0;  // of GPU time, and the calls expected; 0: not declared
    double expected_calls = 0;
    double expected_seconds = 0;
  };
  struct Queued {
    CallId call;
    Time since;
    Time ready;  // its KV has arrived
    bool stolen;
  };

  double load(WorkerId worker, double queue_weight, ClusterControl& cluster) const;
  WorkerId least_loaded(ClusterControl& cluster) const;
  bool goes_before(const Queued& a, const Queued& b, ClusterControl& cluster) const;
  void dispatch(WorkerId worker, Time now, ClusterControl& cluster);
  void steal(Time now, ClusterControl& cluster);
  void refresh(Time now, ClusterControl& cluster);
  void keep_time(Time now, ClusterControl& cluster);

  const ClusterPolicyOptions options_;
  const double theta_;
  const Strategy strategy_;
  const Time idle_before_stealing_;
  const double largest_ratio_;
  const std::uint32_t dispatch_depth_;
  const std::uint32_t seats_;
  const bool host_tier_;
  const double prefill_seconds_;  // a token
  const double decode_seconds_;
  Random random_;
  SessionTable sessions_;
  PrefetchQueue prefetch_;
  std::vector<Task> tasks_;
  std::vector<std::uint32_t> live_;  // tasks, in order of arrival
  std::vector<double> urgency_;      // per tenant, as of refreshed_
  Time refreshed_ = kNotDeclared;
  std::vector<std::vector<Queued>> queues_;
  std::vector<Time> last_busy_;  // when something was last seen in the worker's queue
  std::vector<std::uint32_t> overloaded_;
  std::uint32_t queued_ = 0;
  std::uint32_t next_order_ = 0;
  std::uint64_t steals_ = 0;
  Time epoch_at_ = 0;
  bool epoch_set_ = false;
  // Means over finished tasks, for those that declare nothing.
  double tasks_seen_ = 0;
  double mean_calls_ = 0;
  double mean_seconds_ = 0;
};

}  // namespace saga
