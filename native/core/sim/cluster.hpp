// Cluster simulator: tasks arrive, their calls are placed on simulated workers, and every task runs to completion.
//
// Discrete events on one queue. Tasks come open loop (a seeded Poisson process; the same seed gives the same pattern at
// every rate, only scaled) or closed loop (`live` tasks start at 0, and whenever one ends the next begins). A call is
// sent when all its predecessors have answered and its gap after each has passed; the placement policy names the worker
// (or holds the call), and the worker (sim_worker.hpp) does the rest. At one moment: steps end, leases expire, loads
// and copies arrive, timers fire, tasks arrive, calls are sent, steps begin; within each, by id.
//
// simulate_cluster() is a pure function of its arguments: no clock, no global state, integer time, the same result on
// every machine; any number may run at once on one Workload and PageTree. Cost: under 0.1 us a generated token for the
// whole run, mostly in calls and pages. Memory: per worker 20 bytes a tree node plus (seats + max_leases) x longest
// path; per call about 60 bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "../base/status.hpp"
#include "../base/types.hpp"
#include "../evict/page_tree.hpp"
#include "cluster_policy.hpp"
#include "placement_policy.hpp"
#include "sim_worker.hpp"
#include "step_time.hpp"
#include "workload.hpp"

namespace saga {

// What clients tell the scheduler beyond their requests. kNone: nothing. kGraph: the declared graph of a task when it arrives
// (Workload::graphs), and that a task is over.
enum class ClusterHints : std::uint8_t { kNone = 0, kGraph = 1 };

struct ClusterOptions {
  std::uint32_t workers = 16;
  Hardware hardware = Hardware::kA100Tp4;
  StepTimeCurve step_time_curve = StepTimeCurve::kInterpolated;
  std::uint32_t token_grain = 1;      // tokens that one token of the workload stands for (step_time.hpp)
  std::uint64_t kv_tokens = 448'000;  // KV room of a worker; whole pages of it are used
  std::uint32_t max_sequences = 256;
  std::uint32_t token_budget = 2'048;
  std::uint64_t host_tier_tokens = 0;  // 0: off
  std::uint64_t link_bytes_per_second = 25'000'000'000;
  std::uint64_t kv_bytes_per_token = 327'680;
  ClusterPolicyOptions policy;  // its seed is that of the policy's own draws; `seed` below is that of the arrivals
  ClusterHints hints = ClusterHints::kGraph;
  bool whole_prompts = false;               // of the workers (sim_worker.hpp)
  bool priority_scheduling = false;         // also where the policy does not ask for it
  std::uint32_t max_leases = 256;           // on a worker at a time
  std::uint32_t lease_budget_percent = 50;  // of its KV room, at most 100
  std::uint64_t seed = 0;
  double rate = 0;         // open loop: tasks a second. Exactly one of rate and live is above 0.
  std::uint32_t live = 0;  // closed loop

  const std::vector<Time>* ideal = nullptr;     // per task, from ideal_completion(); computed here when missing
  const std::vector<Time>* expected = nullptr;  // per task: the paper's expected completion time; missing: no paper SLO
  bool optimum = true;                          // replay pinned OPT on each worker's requests (beladyRatio, costRatio)
  bool single_step = false;                     // slow reference mode of the workers
  bool record_calls = false;
  std::uint32_t verify_every = 0;  // for tests: every so many events verify everything; a failure ends in kWrongState
  StepTimeModel step_time() const { return StepTimeModel(hardware, step_time_curve, true, token_grain); }

  // Stop with kFull as soon as the completion times of all tasks together are sure to exceed this; 0: never.
  Time total_completion_limit = 0;
};

// KV room of a worker with four and eight 80 GB GPUs at 0.9 of their memory, 70B bf16.
inline std::uint64_t default_kv_tokens(Hardware hardware) {
  return hardware == Hardware::kH100Tp4 || hardware == Hardware::kA100Tp4 ? 448'000 : 1'327'000;
}

struct Distribution {  // seconds
  double mean = 0;
  double p50 = 0;  // nearest rank
  double p95 = 0;
  double p99 = 0;
};

struct CallRecord {
  WorkerId worker = kNone;
  Time sent = 0;         // gap over: the policy is asked
  Time admitted = 0;     // into its first step
  Time first_token = 0;  // end of the step that yields it
  Time finished = 0;
};

// Definitions, where more than one would do:
//   gaps on the critical path   Going back from the last answer of a task: the gap before that call, after the
//                               predecessor whose answer + gap came last (equal: the smallest number), and so on to the
//                               first call.
//   hits and misses             Each call counts once, at its first admission: hits are the tokens that it does not
//                               compute (whole pages, cached or loaded, never the last token), missed pages those of
//                               its prompt behind the leading run on the GPU, whether or not that run may be used to
//                               its end.
//   regenerated tokens          Prompt tokens prefilled in pages that some worker had computed before the call was
//                               admitted, as prompt or as answer; after a preemption the call's own first attempt
//                               counts as before.
//   memory utilization          Pages that a running call uses, its partly filled one included, or that lie in the
//                               prompt of a call to come of a task that has arrived (on whichever worker it will run),
//                               over all KV rooms, weighted by time from the first to the last arrival. Throughput has
//                               the same window. Where all tasks arrive at one moment: until the last answer.
//   optimum                     Replay of each worker's requests, from first admission to last answer, by pinned OPT in
//                               a cache of the same size; answers are cached there too. Ratios are of sums over
//                               workers.
struct ClusterResult {
  std::uint32_t tasks_completed = 0;
  Distribution completion;               // last answer - arrival
  Distribution completion_without_gaps;  // less the gaps on the task's critical path
  double ideal_seconds = 0;              // mean over the tasks
  double prefix_hit_rate = 0;            // prompt tokens not computed at the first admission / prompt tokens
  std::uint64_t requested_pages = 0;
  std::uint64_t missed_pages = 0;
  std::uint64_t evicted_pages = 0;
  std::uint64_t optimum_missed_pages = 0;
  double belady_ratio = 0;  // 0 where it was not asked for
  double cost_ratio = 0;
  std::uint64_t regenerated_tokens = 0;
  double memory_utilization = 0;
  double slo_attainment = 0;        // completion <= 3 x ideal
  double slo_attainment_paper = 0;  // completion <= 1.5 x expected
  double throughput_tokens_per_second = 0;
  std::uint64_t output_tokens = 0;
  std::uint64_t prefilled_tokens = 0;
  std::uint64_t loaded_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t preempted_tokens = 0;
  std::uint64_t steps = 0;
  std::uint64_t copied_pages = 0;
  std::uint64_t held_calls = 0;  // that the policy did not place when they were sent
  std::uint64_t steals = 0;      // as the policy counts them
  LeaseCounters leases;
  Time first_arrival = 0;
  Time last_arrival = 0;
  Time end = 0;                       // last answer of all
  std::vector<Time> task_completion;  // per task
  std::vector<CallRecord> calls;      // with record_calls
};

// Status: kInvalidArgument for options outside their range, or a call that does not fit into the KV room of a worker;
// kFull at the total_completion_limit; kWrongState when a policy held calls for ever. `progress`, if given, is set to
// the number of tasks completed. `placement` and `directory` replace the built-in ones if given (one run each).
Status simulate_cluster(const Workload& workload, const PageTree& tree, const ClusterOptions& options,
                        ClusterResult* result, std::atomic<std::uint64_t>* progress = nullptr,
                        PlacementPolicy* placement = nullptr, PrefixDirectory* directory = nullptr);

// Per task its completion time alone on one idle worker of these options, with nothing cached.
Status ideal_completion(const Workload& workload, const PageTree& tree, const ClusterOptions& options,
                        std::vector<Time>* ideal);

// The rate (tasks a second), by bisection to 2 %, at which the mean completion time under these options is 3 x the mean
// ideal: at the rate returned it is not above that, at a rate up to 2 % higher it is. (Near it the mean need not rise
// steadily, so between the two it can be anything.) kNotFound: not even a million times the first guess saturates so few tasks. Uses options.ideal if given.
// `progress` counts the runs; those above the rate stop as soon as that is certain.
Status find_saturation(const Workload& workload, const PageTree& tree, const ClusterOptions& options, double* rate,
                       std::atomic<std::uint64_t>* progress = nullptr);

// KV tokens of the largest call: prompt + output - 1. Whole pages of it must fit into the KV room of a worker.
std::uint64_t longest_context(const Workload& workload);

// Closed loop: the number of live tasks at which their mean contexts (prompt + half the answer, over all calls) fill
// the KV rooms `pressure` times over; at least 1.
std::uint32_t live_for_pressure(const Workload& workload, const ClusterOptions& options, double pressure);

// Unit exponential variate by von Neumann's method: comparisons of uniform integers only, so the same on every machine.
double exponential(Random& random);

// The requests that one worker served, in order of their first admission, and pinned OPT on them.
struct ServedRequest {
  CallId call = 0;
  Time start = 0;
  Time end = 0;
};
struct OptimumResult {
  std::uint64_t missed_pages = 0;
  std::uint64_t missed_cost = 0;  // 1/120,000 tokens
};
// Belady's MIN with bypass and pins: from start to end nobody may evict what a request uses; its answer is cached when
// it ends. Requests that end at or before a start come first.
OptimumResult replay_optimum(const Workload& workload, const PageTree& tree, const std::vector<ServedRequest>& served,
                             std::uint32_t capacity_pages);

}  // namespace saga
