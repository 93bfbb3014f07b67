// KvRouter: placement by the cost function of NVIDIA Dynamo's KV router.
//
// Each worker has a cost, and the call goes to the cheapest one (counted in tokens here, in blocks there: the same order):
//
//   uncached = max(prompt - device credit * cached on the GPU - host credit * cached on the host, 0)
//   cost     = prefill scale * (active prefill + uncached) + (active decode + prompt)
//
// **Active prefill** are the tokens that calls sent to the worker have yet to compute, by what was cached when they were
// sent, up to their first token; **active decode** are the prompts of calls sent and not yet finished. Both are
// the router's own books, as there, not reports of the workers. With a temperature the worker is drawn by softmax over
// the costs divided by their range. With a queue threshold a call is held while every worker has more active prefill
// than that part of a step's token budget; the queue is served first come first served, or by the least uncached work
// first (its `wspt` with equal weights). Session affinity binds a thread to the worker of its first call until it has
// been idle for so long.
//
// Parameters (defaults; in brackets the published ones where a search found better, native/bench/policy_search_bench.cpp):
//   0 prefill scale: 16 (1)                                  1 temperature, 0: the cheapest: 0
//   2 queue threshold, 0: off: 0.01 (off)                    3 queue order, 0: arrival, 1: least work: 1 (0)
//   4 session affinity in seconds, 0: off: 10 (off)          5 device credit: 1        6 host credit: 0.75
//
// Cost: O(workers) a call and one match; O(queue) more where there is a queue. Memory: 16 bytes a call, 16 a thread.
// States of a call: (held ->) prefilling -> decoding -> gone. Invariant (verify()): the books are the sums over open calls.
// Ties: fewest open calls, then the smallest id.
#pragma once

#include <vector>

#include "../base/random.hpp"
#include "../place/cluster_control.hpp"
#include "cluster_policy.hpp"

namespace saga {

class KvRouter final : public PlacementPolicy {
 public:
  KvRouter(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload);

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  void first_token(CallId call, WorkerId worker, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason, ToolClass, Time now, ClusterControl& cluster) override;
  bool verify() const override;

 private:
  struct Call {
    WorkerId worker = kNone;
    std::uint64_t prefill = 0;  // tokens that it has yet to compute; 0 after its first token
    std::uint64_t decode = 0;   // tokens of its prompt
  };
  struct Books {
    std::uint64_t prefill = 0;
    std::uint64_t decode = 0;
  };
  struct Binding {
    WorkerId worker = kNone;
    Time until = 0;
  };

  bool all_busy() const;
  std::uint64_t uncached(CallId call, WorkerId worker, ClusterControl& cluster);
  WorkerId route(CallId call, Time now, ClusterControl& cluster);
  void drain(Time now, ClusterControl& cluster);

  const double prefill_scale_;
  const double temperature_;
  const double busy_tokens_;  // 0: no queue
  const bool least_work_first_;
  const Time affinity_;  // 0: off
  const double device_credit_;
  const double host_credit_;
  const bool host_tier_;
  Random random_;
  std::vector<Call> calls_;
  std::vector<Books> books_;
  std::vector<Binding> bindings_;  // per thread
  std::vector<CallId> queue_;      // held, in order of arrival
  std::vector<std::uint32_t> matched_;
  std::vector<double> costs_;
};

}  // namespace saga
