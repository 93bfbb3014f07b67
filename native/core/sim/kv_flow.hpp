// KvFlow: workers that evict by steps to execution (evict/steps_policy.hpp) and load what a thread will need back from host
// memory before its next step (arXiv 2507.07400).
//
// KVFlow is an engine, not a router: calls are routed to where their task ran before, a new task to the worker with the smallest
// live contexts in sum (parameter 0 = 0: by the baseline `affinity` instead). A thread that is over is dropped at once: its
// pages have no steps to execution any more.
//
// Parameters (defaults): 0 routing (1: by task; 0: affinity).
//
// Cost: O(1) a call, O(workers) a new task; without a host tier nothing is prefetched. Memory: that of its tables.
#pragma once

#include <vector>

#include "../place/cluster_control.hpp"
#include "cluster_policy.hpp"
#include "placement_policy.hpp"
#include "prefetch_queue.hpp"
#include "session_table.hpp"

namespace saga {

class KvFlow final : public PlacementPolicy {
 public:
  KvFlow(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload);

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                     ClusterControl& cluster) override;
  void task_finished(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void timer(Time now, ClusterControl& cluster) override { prefetch_.timer(now, cluster); }
  bool verify() const override { return sessions_.verify() && prefetch_.verify(); }

  const PrefetchQueue& prefetch() const { return prefetch_; }
  const SessionTable& sessions() const { return sessions_; }

 private:
  const bool by_task_;
  const bool host_tier_;
  BaselinePlacement affinity_;
  SessionTable sessions_;
  PrefetchQueue prefetch_;
};

}  // namespace saga
