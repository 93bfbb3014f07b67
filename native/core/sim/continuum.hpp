// Continuum: the cached context of a program is kept on its GPU through a tool call for a time to live that weighs what a miss
// would cost against the memory held (arXiv 2511.02230).
//
// When a call ends, the pages of its context are leased (lease.hpp) until `now + ttl`. The ttl is the one that maximises
//
//   P(gap <= ttl) * (reload + queue weight * mean queueing delay) - memory weight * E[min(gap, ttl)]
//
// over the gaps seen so far after answers of the same class (stop reason x tool class), the last 256 of them; P counts the
// answers that nothing followed, too. Reload is the time to compute the context again, from a profile of the hardware;
// queueing delay is what calls waited beyond their own prefill. Before five gaps are known the ttl is a constant.
//
// **Programs first come, first served**: the priority of a call is the number of its program (task) in order of arrival, on
// engines with priority scheduling. A returning call finds its lease extended until its first token. Its engines are its
// own fork: leases may hold all of the memory and a call is not admitted at the expense of one; only when nothing runs any more,
// or a running call needs a page, are they revoked, the latest program first.
//
// Calls of a program go to the worker of the one before; a new program goes where the contexts of the programs that run, wait or
// are leased are smallest in sum.
//
// Parameters (defaults): 0 memory weight (0.1), 1 queue weight (1), 2 longest ttl in seconds (300), 3 ttl before gaps are known, in
// seconds (2).
//
// Cost: O(1) a call but for new programs, O(workers), and O(gaps) an end. Memory: 40 bytes a call, 40 a thread, 2 KiB a class.
// Invariants (verify()): the context counted for a worker is the sum over its threads that are open or leased; the gaps of a
// class are sorted.
#pragma once

#include <vector>

#include "../place/cluster_control.hpp"
#include "cluster_policy.hpp"

namespace saga {

class Continuum final : public PlacementPolicy {
 public:
  Continuum(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload);

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  std::int32_t priority(CallId call, Time now, ClusterControl& cluster) override;
  void first_token(CallId call, WorkerId worker, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                     ClusterControl& cluster) override;
  void task_finished(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void lease_reported(const LeaseReport& report, Time now, ClusterControl& cluster) override;
  bool verify() const override;

  // Of an answer of this class, for a context of so many tokens; 0: nothing is kept.
  Time time_to_live(StopReason stop, ToolClass tool, std::uint32_t tokens) const;
  // What time_to_live() learns from.
  void observe_end(StopReason stop, ToolClass tool) { ++classes_[class_of(stop, tool)].ended; }
  void observe_gap(StopReason stop, ToolClass tool, Time gap);

 private:
  struct Thread {
    WorkerId worker = kNone;
    std::uint32_t open_calls = 0;
    std::uint32_t tokens = 0;  // its context, as counted for the worker while open or leased
    std::uint32_t counted = 0;
    LeaseId lease = kNoLease;
    std::size_t last_class = 0;
    Time idle_since = kNotDeclared;  // no answer yet, or it has been followed
    std::uint32_t next_of_task = kNone;
  };
  struct Task {
    std::uint32_t order = kNone;  // of arrival
    ThreadId first_thread = kNone;
    WorkerId worker = kNone;
  };
  struct GapClass {
    std::uint64_t ended = 0;     // answers
    std::uint64_t followed = 0;  // of these, by another call
    std::vector<Time> ring;
    std::vector<Time> sorted;
    std::uint32_t next = 0;
  };

  static std::size_t class_of(StopReason stop, ToolClass tool) {
    return static_cast<std::size_t>(stop) * 5 + static_cast<std::size_t>(tool);
  }
  void count(ThreadId thread);

  const double memory_weight_;
  const double queue_weight_;
  const Time longest_ttl_;
  const Time cold_ttl_;
  const double prefill_microseconds_;  // a token
  std::vector<Thread> threads_;
  std::vector<Task> tasks_;
  std::vector<Time> sent_;               // per call
  std::vector<std::uint32_t> uncached_;  // per call: tokens of its prompt that were not cached when it was sent
  std::vector<std::uint64_t> context_;   // per worker
  std::vector<GapClass> classes_;
  double mean_delay_ = 0;  // microseconds; moving average
  std::uint32_t next_order_ = 0;
};

}  // namespace saga
