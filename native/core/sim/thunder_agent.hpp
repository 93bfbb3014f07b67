// ThunderAgent: programs, not calls, are admitted, paused and resumed, so that what the running ones cache fits into memory
// (arXiv 2602.13692; the rules are those of Dynamo's `thunderagent_router`).
//
// A **program** is a task. It is **reasoning** while one of its calls is sent and unfinished, else **acting** (its tool
// runs); and it is **active** (bound to a worker, all its calls go there) or **paused** (its calls are held). It weighs the
// tokens of its context; while it acts they decay by half with each half-life. A worker's load is what its active
// programs weigh.
//
//   absent -> active | paused   at its first call: active if some worker has room for it
//   active -> paused            at a tick where its worker's load is at or above the pause threshold: the smallest acting
//                               programs go first, then reasoning ones are marked and go when their calls end, until the
//                               load is at the pause target
//   paused -> active            at a tick, when it has a held call and a worker has room: up to the pause threshold less the
//                               hysteresis, on the worker that fits best (of those that still cache its prompt, if any
//                               does); after the time limit in any case, on the least loaded worker
//   any -> absent               the task is over, or its client says nothing and it has been idle for the time limit
//
// Parameters (defaults; in brackets the published ones where a search found better, native/bench/policy_search_bench.cpp):
//   0 pause threshold, of the KV room: 0.95         1 pause target: 0.90 (0.80)         2 hysteresis: 0.15 (0.10)
//   3 half-life in seconds, 0: no decay: 20 (1)     4 tick in seconds: 5                6 time limit in seconds: 1,800
//   5 order of resumption: smallest first, 2 (0: largest first; 1: the earliest program first, 3: most calls done first)
//
// Cost: O(1) for a call of an active program; a tick, and the arrival of a program, O(live programs). Memory: 80 bytes a
// task and 4 a call. Invariants (verify()): live programs are listed once; a held call belongs to a paused program;
// nothing but a live program has open or held calls.
#pragma once

#include <vector>

#include "../place/cluster_control.hpp"
#include "cluster_policy.hpp"

namespace saga {

class ThunderAgent final : public PlacementPolicy {
 public:
  ThunderAgent(const ClusterPolicyOptions& options, const Workload& workload);

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  void task_finished(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason, ToolClass, Time now, ClusterControl& cluster) override;
  void timer(Time now, ClusterControl& cluster) override;
  bool verify() const override;

  std::uint32_t live_programs() const { return static_cast<std::uint32_t>(live_.size()); }
  std::uint64_t pauses() const { return pauses_; }

 private:
  enum class State : std::uint8_t { kAbsent, kActive, kPaused };
  struct Program {
    State state = State::kAbsent;
    bool marked = false;  // active, to be paused when its calls have ended
    WorkerId worker = kNone;
    std::uint32_t open_calls = 0;
    std::uint64_t open_tokens = 0;  // prompts of the open calls
    std::uint64_t tokens = 0;       // its last context
    std::uint32_t calls_done = 0;
    CallId first_held = kNone, last_held = kNone;  // in order of arrival
    Time idle_since = 0;
    Time paused_since = 0;
    std::uint64_t order = 0;  // of its first call
  };

  std::uint64_t weight(const Program& program, Time now) const;
  std::uint64_t full_weight(const Program& program) const;
  void hold(Program& program, CallId call);
  void pause(Program& program, Time now);
  void activate(Program& program, WorkerId worker, Time now, ClusterControl& cluster);
  void measure(Time now, ClusterControl& cluster);
  WorkerId best_fit(const Program& program, ClusterControl& cluster);
  void pause_programs(Time now, ClusterControl& cluster);
  void resume_programs(Time now, ClusterControl& cluster);
  bool goes_before(const Program& a, const Program& b) const;
  void keep_ticking(Time now, ClusterControl& cluster);

  const double pause_at_;
  const double pause_to_;
  const double resume_to_;
  const Time half_life_;
  const Time tick_;
  const int resume_order_;
  const Time time_limit_;
  std::vector<Program> programs_;    // per task
  std::vector<CallId> next_held_;    // per call
  std::vector<std::uint32_t> live_;  // tasks, in order of their first calls
  std::vector<std::uint64_t> load_;  // per worker, as of measure()
  std::vector<std::uint32_t> candidates_;
  std::uint64_t next_order_ = 0;
  std::uint64_t pauses_ = 0;
  bool ticking_ = false;
};

}  // namespace saga
