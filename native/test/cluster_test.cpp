#include "../core/sim/cluster.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "../core/sim/engine_placement.hpp"
#include "agent_tasks.hpp"
#include "cluster_scenarios.hpp"

namespace saga {
namespace {

using test::expect_same;
using test::random_scenario;
using test::Scenario;
using test::tangled;
using test::WorkloadBuilder;

ClusterOptions linear_a100(std::uint32_t workers) {
  ClusterOptions options;
  options.workers = workers;
  options.step_time_curve = StepTimeCurve::kLinear;
  options.record_calls = true;
  options.verify_every = 1;
  return options;
}

// 28.6 + 0.178 P + 4.7e-6 S + 0.141 B + 7.8e-5 KV, in the comments below.

TEST(Cluster, OneTaskByHand) {
  // 100 + 3 tokens; a tool of one second; 47 tokens of observation; 2 tokens.
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 100, 3, {{0, 6}});
  builder.call(0, 150, 2, {{0, 9}}, {{first, 1'000'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.live = 1;
  const std::vector<Time> expected{780'612};  // 1.5 x this is exactly the completion time
  options.expected = &expected;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result), Status::kOk);
  EXPECT_EQ(result.calls[0].first_token, 46'424u);            // 28.6 + 17.8 + 0.0235
  EXPECT_EQ(result.calls[0].finished, 46'424u + 2 * 28'749);  // 28.6 + 0.141 + 7.8e-5 * 101 and 102
  EXPECT_EQ(result.calls[1].sent, 1'103'922u);
  EXPECT_EQ(result.calls[1].first_token, 1'103'922u + 38'243);  // 54 tokens behind 96: 28.6 + 9.612 + 0.0312174
  EXPECT_EQ(result.calls[1].finished, 1'170'918u);              // + 28.752778
  EXPECT_EQ(result.task_completion[0], 1'170'918u);
  EXPECT_DOUBLE_EQ(result.completion.mean, 1.170918);
  EXPECT_DOUBLE_EQ(result.completion.p99, 1.170918);
  EXPECT_DOUBLE_EQ(result.completion_without_gaps.mean, 0.170918);
  EXPECT_DOUBLE_EQ(result.ideal_seconds, 1.170918);
  EXPECT_EQ(result.tasks_completed, 1u);
  EXPECT_EQ(result.requested_pages, 15u);
  EXPECT_EQ(result.missed_pages, 9u);
  EXPECT_EQ(result.optimum_missed_pages, 9u);
  EXPECT_DOUBLE_EQ(result.belady_ratio, 1.0);
  EXPECT_DOUBLE_EQ(result.cost_ratio, 1.0);
  EXPECT_DOUBLE_EQ(result.prefix_hit_rate, 96.0 / 250.0);
  EXPECT_EQ(result.regenerated_tokens, 0u);
  EXPECT_EQ(result.output_tokens, 5u);
  EXPECT_EQ(result.prefilled_tokens, 154u);
  EXPECT_EQ(result.steps, 5u);
  EXPECT_DOUBLE_EQ(result.slo_attainment, 1.0);
  EXPECT_DOUBLE_EQ(result.slo_attainment_paper, 1.0);
}

// Two tasks of two calls each; the second task's first call ends earlier.
Workload two_by_two() {
  WorkloadBuilder builder;
  const CallId a = builder.call(0, 100, 3, {{0, 6}});
  builder.call(0, 150, 1, {{0, 9}}, {{a, 20'000}});
  builder.end_task();
  const CallId b = builder.call(1, 100, 2, {{100, 6}});
  builder.call(1, 120, 1, {{100, 7}}, {{b, 10'000}});
  builder.end_task();
  return builder.get();
}

TEST(Cluster, RoundRobinByHand) {
  const Workload workload = two_by_two();
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options = linear_a100(2);
  options.policy.kind = ClusterPolicyKind::kRoundRobin;
  options.live = 2;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &result), Status::kOk);
  EXPECT_EQ(result.calls[0].worker, 0u);
  EXPECT_EQ(result.calls[2].worker, 1u);
  EXPECT_EQ(result.calls[2].finished, 75'173u);  // 46.424 + 28.749
  // The other task's second call comes to worker 0 in its third step and waits for its end.
  EXPECT_EQ(result.calls[3].worker, 0u);
  EXPECT_EQ(result.calls[3].sent, 85'173u);
  EXPECT_EQ(result.calls[3].admitted, 103'922u);
  EXPECT_EQ(result.calls[3].finished, 153'916u);  // 28.6 + 21.36 + 0.03384
  EXPECT_EQ(result.calls[1].worker, 1u);
  EXPECT_EQ(result.calls[1].finished, 123'922u + 55'353);  // 28.6 + 26.7 + 0.052875
  EXPECT_EQ(result.regenerated_tokens, 192u);              // 6 pages each: prompt and answer of the call before
  EXPECT_EQ(result.requested_pages, 28u);
  EXPECT_EQ(result.missed_pages, 28u);
  EXPECT_EQ(result.optimum_missed_pages, 28u);
  EXPECT_DOUBLE_EQ(result.prefix_hit_rate, 0.0);
}

TEST(Cluster, AffinityByHand) {
  const Workload workload = two_by_two();
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options = linear_a100(2);
  options.live = 2;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &result), Status::kOk);
  EXPECT_EQ(result.calls[0].worker, 0u);
  EXPECT_EQ(result.calls[2].worker, 1u);  // both idle, but worker 0 has an open call
  EXPECT_EQ(result.calls[3].worker, 1u);
  EXPECT_EQ(result.calls[3].finished, 85'173u + 32'884);  // 24 tokens behind 96: 28.6 + 4.272 + 0.0121824
  EXPECT_EQ(result.calls[1].worker, 0u);
  EXPECT_EQ(result.calls[1].finished, 123'922u + 38'243);
  EXPECT_EQ(result.regenerated_tokens, 0u);
  EXPECT_EQ(result.missed_pages, 16u);
  // Everything ran alone: completion is the ideal.
  EXPECT_DOUBLE_EQ(result.completion.mean, result.ideal_seconds);
}

TEST(Cluster, MemoryUtilizationAndThroughputByHand) {
  // One worker of 100 pages, one live task: the second arrives when the first ends, at 1.170918 s.
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 100, 3, {{0, 6}});
  builder.call(0, 150, 2, {{0, 9}}, {{first, 1'000'000}});
  builder.end_task();
  builder.call(1, 100, 3, {{100, 6}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.kv_tokens = 1'600;
  options.live = 1;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result), Status::kOk);
  EXPECT_EQ(result.last_arrival, 1'170'918u);
  // 7 pages while the first call runs (103.922 ms), 6 while the tool runs (1 s), 10 while the second runs (66.996 ms).
  const double area = 7 * 103'922.0 + 6 * 1'000'000.0 + 10 * 66'996.0;
  EXPECT_NEAR(result.memory_utilization, area / 1'170'918.0 / 100.0, 1e-12);
  EXPECT_NEAR(result.throughput_tokens_per_second, 5 / 1.170918, 1e-9);
}

TEST(Cluster, ForkAndJoinFollowTheCriticalPath) {
  // One call, two branches (gaps 1 s and 3 s), a join 0.5 s after either answer.
  WorkloadBuilder builder;
  const CallId root = builder.call(0, 64, 1, {{0, 4}});
  const CallId left = builder.call(1, 64, 1, {{100, 4}}, {{root, 1'000'000}});
  const CallId right = builder.call(2, 64, 1, {{200, 4}}, {{root, 3'000'000}});
  builder.call(0, 128, 1, {{0, 8}}, {{left, 500'000}, {right, 500'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(2);
  options.live = 1;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result), Status::kOk);
  const Time step = 40'002;  // 64 tokens: 28.6 + 11.392 + 0.0096256 = 40.0016
  EXPECT_EQ(result.calls[0].finished, step);
  EXPECT_EQ(result.calls[2].sent, step + 3'000'000);
  EXPECT_EQ(result.calls[3].sent, 2 * step + 3'500'000);
  EXPECT_NEAR(result.completion.mean - result.completion_without_gaps.mean, 3.5, 1e-9);
}

TEST(Cluster, AffinityLeavesAnOverloadedWorker) {
  // 30 calls with one common prompt: the first warms worker 0, the others come while it is cached there. They pile up
  // on worker 0 until it is 11 calls ahead; from there on two-choice spreads them.
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 1600, 1, {{0, 100}});
  for (ThreadId i = 1; i <= 30; ++i) builder.call(i, 1600 + i, 50, {{0, 100}}, {{first, 1000 + i}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(4);
  options.live = 1;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result), Status::kOk);
  for (CallId call = 1; call <= 11; ++call) EXPECT_EQ(result.calls[call].worker, 0u) << call;
  std::uint32_t elsewhere = 0;
  for (CallId call = 12; call <= 30; ++call) elsewhere += result.calls[call].worker != 0 ? 1u : 0u;
  EXPECT_GE(elsewhere, 9u);
  EXPECT_LE(elsewhere, 19u);
}

TEST(Cluster, AffinityNeedsATenthOfThePrompt) {
  // 32 of 336 tokens match (9.5 %): not enough; 32 of 320 are.
  for (const bool enough : {false, true}) {
    WorkloadBuilder builder;
    const CallId first = builder.call(0, 32, 400, {{0, 2}});
    builder.call(1, enough ? 320 : 336, 1, {{0, 2}, {500, enough ? 18u : 19u}}, {{first, 1000}});
    // Keeps worker 0 busy, on another prompt, until the second call has come.
    builder.call(2, 32, 2000, {{900, 2}});
    builder.end_task();
    const PageTree tree = PageTree::for_cluster(builder.get(), 16);
    ClusterOptions options = linear_a100(3);
    options.live = 1;
    ClusterResult result;
    ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result), Status::kOk);
    EXPECT_EQ(result.calls[0].worker, 0u);
    EXPECT_EQ(result.calls[2].worker, 1u);
    // All idle but worker 1: without a match worker 0 (smallest id).
    EXPECT_EQ(result.calls[1].worker, 0u);
    EXPECT_DOUBLE_EQ(result.prefix_hit_rate, 32.0 / (64 + (enough ? 320 : 336)));
  }
}

// Holds the first call for a second, and copies its pages to where it sends the next one.
class ScriptedPlacement final : public PlacementPolicy {
 public:
  WorkerId place(CallId call, Time now, ClusterControl& cluster) override {
    if (call == 0) {
      held = call;
      cluster.wake_at(now + 1'000'000);
      return kNone;
    }
    return 1;
  }
  void timer(Time, ClusterControl& cluster) override { cluster.send(held, 0); }
  void call_finished(CallId call, WorkerId worker, StopReason, ToolClass, Time, ClusterControl& cluster) override {
    if (call == 0) copied = cluster.copy(1, worker, 1);  // the next prompt's pages follow the call to worker 1
  }
  CallId held = kNone;
  std::uint32_t copied = 0;
};

TEST(Cluster, PolicyHoldsAndMigrates) {
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 100, 3, {{0, 6}});
  builder.call(0, 150, 2, {{0, 9}}, {{first, 1'000'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(2);
  options.live = 1;
  ScriptedPlacement placement;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result, nullptr, &placement), Status::kOk);
  EXPECT_EQ(placement.copied, 6u);
  EXPECT_EQ(result.copied_pages, 6u);
  EXPECT_EQ(result.calls[0].admitted, 1'000'000u);
  EXPECT_EQ(result.calls[1].worker, 1u);
  EXPECT_EQ(result.task_completion[0], 2'170'918u);  // as alone, a second later
  EXPECT_DOUBLE_EQ(result.prefix_hit_rate, 96.0 / 250.0);
}

// Leases what a call leaves behind when it has ended, and remembers what becomes of that.
class LeasingPlacement final : public PlacementPolicy {
 public:
  explicit LeasingPlacement(Time duration) : duration_(duration) {}
  WorkerId place(CallId, Time, ClusterControl&) override { return 0; }
  void call_finished(CallId call, WorkerId worker, StopReason, ToolClass, Time now, ClusterControl& cluster) override {
    if (call != 0 || duration_ == 0) return;
    id = cluster.lease(call, worker, 1, now + duration_);
    leased = cluster.leased_pages(worker);
    EXPECT_EQ(cluster.running_pages(worker), 0u);
  }
  void lease_reported(const LeaseReport& report, Time now, ClusterControl&) override {
    reports.push_back({report, now});
  }
  LeaseId id = kNoLease;
  std::uint32_t leased = 0;
  std::vector<std::pair<LeaseReport, Time>> reports;

 private:
  const Time duration_;
};

TEST(Cluster, LeasedPagesSurviveWhatWouldEvictThem) {
  // Room for 8 pages. Call 0 leaves 3, call 1 takes 5, call 2 takes 5 more: those of call 0 (least recently used) and 2
  // of call 1, or, where call 0's are leased, all of call 1's. Call 3 continues call 0.
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 48, 1, {{0, 3}});
  const CallId second = builder.call(1, 80, 1, {{100, 5}}, {{first, 1'000'000}});
  const CallId third = builder.call(2, 80, 1, {{200, 5}}, {{second, 1'000'000}});
  builder.call(0, 64, 1, {{0, 3}, {50, 1}}, {{third, 1'000'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.kv_tokens = 128;
  options.live = 1;
  const Time finished = 37'149;  // 28.6 + 8.544 + 4.7e-6 * 48 * 24 = 37.1494
  for (const Time duration : {Time{0}, Time{60'000'000}, Time{1'010'000}}) {
    SCOPED_TRACE(duration);
    LeasingPlacement placement(duration);
    ClusterResult result;
    ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result, nullptr, &placement), Status::kOk);
    const bool kept = duration == 60'000'000;  // the short one ends while call 1 runs: call 0's are older again
    EXPECT_DOUBLE_EQ(result.prefix_hit_rate, kept ? 48.0 / 272.0 : 0.0);
    if (duration == 0) {
      EXPECT_TRUE(placement.reports.empty());
      continue;
    }
    EXPECT_EQ(placement.leased, 3u);
    ASSERT_EQ(placement.reports.size(), kept ? 1u : 2u);
    EXPECT_EQ(placement.reports[0].first, (LeaseReport{placement.id, 0, 0, 3, LeaseOutcome::kGranted}));
    EXPECT_EQ(placement.reports[0].second, finished);
    EXPECT_EQ(result.leases.granted, 1u);
    EXPECT_EQ(result.leases.expired, kept ? 0u : 1u);
    if (kept) continue;
    EXPECT_EQ(placement.reports[1].first, (LeaseReport{placement.id, 0, 0, 3, LeaseOutcome::kExpired}));
    EXPECT_EQ(placement.reports[1].second, finished + duration);
  }
}

TEST(Cluster, LeasesAreRevokedBeforeAnybodyIsPreempted) {
  // Room for 8 pages, 3 of them leased. Two calls of 2 + 2 pages come together; in their second step the second of them
  // finds no page but those.
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 48, 1, {{0, 3}});
  builder.call(1, 32, 32, {{100, 2}}, {{first, 1'000'000}});
  builder.call(2, 32, 32, {{200, 2}}, {{first, 1'000'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.kv_tokens = 128;
  options.live = 1;
  LeasingPlacement placement(60'000'000);
  ClusterResult leased;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &leased, nullptr, &placement), Status::kOk);
  EXPECT_EQ(leased.preemptions, 0u);
  EXPECT_EQ(leased.leases.revoked, 1u);
  ASSERT_EQ(placement.reports.size(), 2u);
  EXPECT_EQ(placement.reports[1].first, (LeaseReport{placement.id, 0, 0, 3, LeaseOutcome::kRevoked}));
  // The begin of that step: 28.6 + 11.392 + 4.7e-6 * 2 * 32 * 16 = 39.9968 ms for the prompts.
  EXPECT_EQ(placement.reports[1].second, 37'149u + 1'000'000 + 39'997);
  LeasingPlacement none(0);
  ClusterResult plain;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &plain, nullptr, &none), Status::kOk);
  EXPECT_EQ(leased.task_completion, plain.task_completion);  // the lease cost nobody anything
}

TEST(Cluster, TheBudgetForLeasesIsAnOption) {
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 48, 1, {{0, 3}});
  builder.call(1, 80, 1, {{100, 5}}, {{first, 1'000'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.kv_tokens = 128;
  options.live = 1;
  for (const std::uint32_t percent : {0u, 37u, 38u, 100u}) {  // of 8 pages: 0, 2, 3 and 8
    options.lease_budget_percent = percent;
    LeasingPlacement placement(60'000'000);
    ClusterResult result;
    ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result, nullptr, &placement), Status::kOk);
    EXPECT_EQ(result.leases.granted, percent >= 38 ? 1u : 0u) << percent;
    EXPECT_EQ(result.leases.refused, percent >= 38 ? 0u : 1u) << percent;
    ASSERT_EQ(placement.reports.size(), 1u);
    EXPECT_EQ(placement.reports[0].first.outcome, percent >= 38 ? LeaseOutcome::kGranted : LeaseOutcome::kRefused);
    EXPECT_EQ(placement.id == kNoLease, percent < 38);
  }
  options.lease_budget_percent = 101;
  ClusterResult result;
  EXPECT_EQ(simulate_cluster(builder.get(), tree, options, &result), Status::kInvalidArgument);
}

// Never sends anything.
class HoldingPlacement final : public PlacementPolicy {
 public:
  WorkerId place(CallId, Time, ClusterControl&) override { return kNone; }
};

TEST(Cluster, CallsHeldForEverAreReported) {
  const Workload workload = two_by_two();
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options = linear_a100(2);
  options.live = 2;
  HoldingPlacement placement;
  ClusterResult result;
  EXPECT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &placement), Status::kWrongState);
}

TEST(Cluster, RefusesOptionsOutOfRange) {
  const Workload workload = two_by_two();
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterResult result;
  ClusterOptions options = linear_a100(2);
  EXPECT_EQ(simulate_cluster(workload, tree, options, &result), Status::kInvalidArgument);  // neither rate nor live
  options.live = 1;
  options.rate = 1;
  EXPECT_EQ(simulate_cluster(workload, tree, options, &result), Status::kInvalidArgument);  // both
  options.rate = 0;
  options.kv_tokens = 159;  // 9 pages; the longest call needs 10
  EXPECT_EQ(simulate_cluster(workload, tree, options, &result), Status::kInvalidArgument);
  options.kv_tokens = 160;
  EXPECT_EQ(simulate_cluster(workload, tree, options, &result), Status::kOk);
  options.policy.without = kAllParts + 1;
  EXPECT_EQ(simulate_cluster(workload, tree, options, &result), Status::kInvalidArgument);
}

TEST(Cluster, LiveForPressure) {
  const Workload workload = two_by_two();  // contexts 101.5, 150.5, 101, 120.5: mean 118.375
  ClusterOptions options;
  options.workers = 2;
  options.kv_tokens = 5'000;
  EXPECT_EQ(live_for_pressure(workload, options, 1.0), 84u);  // 84.48
  EXPECT_EQ(live_for_pressure(workload, options, 1.1), 93u);  // 92.93
  EXPECT_EQ(live_for_pressure(workload, options, 0.001), 1u);
}

TEST(Cluster, ExponentialVariates) {
  Random random(1);
  double sum = 0;
  double squares = 0;
  int above_two = 0;
  constexpr int kDraws = 200'000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = exponential(random);
    ASSERT_GE(x, 0.0);
    sum += x;
    squares += x * x;
    if (x > 2) ++above_two;
  }
  EXPECT_NEAR(sum / kDraws, 1.0, 0.01);
  EXPECT_NEAR(squares / kDraws, 2.0, 0.05);
  EXPECT_NEAR(static_cast<double>(above_two) / kDraws, std::exp(-2.0), 0.003);
}

TEST(Cluster, LazyDecodingEqualsSingleSteps) {
  std::uint64_t preemptions = 0;
  std::uint64_t loaded = 0;
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
    ClusterResult lazy;
    ClusterResult single;
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &lazy), Status::kOk);
    scenario.options.single_step = true;
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &single), Status::kOk);
    expect_same(lazy, single);
    preemptions += lazy.preemptions;
    loaded += lazy.loaded_tokens;
    if (HasFailure()) break;
  }
  EXPECT_GT(preemptions, 100u);  // the scenarios reach what they are meant to reach
  EXPECT_GT(loaded, 1000u);
}

// Takes and releases leases, and copies, at random; checks that every lease has the life that it should have.
class RandomLeases final : public PlacementPolicy {
 public:
  RandomLeases(const Workload& workload, const ClusterOptions& options)
      : workload_(workload),
        baseline_(baseline_placement_of(options.policy.kind), options.seed),
        random_(options.seed + 99) {}

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override {
    const WorkerId worker = baseline_.place(call, now, cluster);
    act(call, worker, now, cluster);
    return worker;
  }
  void first_token(CallId call, WorkerId worker, Time now, ClusterControl& cluster) override {
    act(call, worker, now, cluster);
  }
  void call_finished(CallId call, WorkerId worker, StopReason, ToolClass, Time now, ClusterControl& cluster) override {
    lease(call, worker, now, cluster);
    act(call, worker, now, cluster);
  }
  void timer(Time now, ClusterControl& cluster) override {
    act(static_cast<CallId>(random_.below(workload_.calls())), static_cast<WorkerId>(random_.below(cluster.workers())),
        now, cluster);
  }
  void lease_reported(const LeaseReport& report, Time now, ClusterControl& cluster) override {
    reports.push_back({report, now});
    if (report.outcome == LeaseOutcome::kRefused) {
      EXPECT_EQ(report.lease, kNoLease);
      return;
    }
    EXPECT_GT(report.pages, 0u);
    ASSERT_LT(report.lease, static_cast<LeaseId>(kNone));
    const auto at = std::find_if(open_.begin(), open_.end(), [&](const Open& o) { return o.lease == report.lease; });
    ASSERT_NE(at, open_.end());
    EXPECT_EQ(at->granted, report.outcome != LeaseOutcome::kGranted);
    EXPECT_EQ(at->worker, report.worker);
    at->granted = true;
    if (report.outcome == LeaseOutcome::kGranted) return;
    EXPECT_EQ(at->released, report.outcome == LeaseOutcome::kReleased);
    if (report.outcome == LeaseOutcome::kExpired) {
      EXPECT_EQ(now, at->until);
    } else {
      EXPECT_LE(now, at->until);
    }
    open_.erase(at);
    if (report.outcome == LeaseOutcome::kRevoked && random_.below(4) == 0)
      lease(report.call, report.worker, now, cluster);
  }

  std::vector<std::pair<LeaseReport, Time>> reports;
  std::uint64_t copied = 0;

 private:
  struct Open {
    LeaseId lease;
    WorkerId worker;
    Time until;
    bool granted;
    bool released;
  };
  void lease(CallId call, WorkerId worker, Time now, ClusterControl& cluster) {
    const Time until = now + random_.below(random_.below(2) == 0 ? 300'000 : 5'000'000);
    const LeaseId id = cluster.lease(call, worker, random_.below(4), until);
    EXPECT_LE(cluster.leased_pages(worker), cluster.capacity_pages(worker));
    if (id != kNoLease) open_.push_back({id, worker, until, false, false});
  }
  void act(CallId call, WorkerId worker, Time now, ClusterControl& cluster) {
    if (random_.below(3) == 0) lease(call, worker, now, cluster);
    if (random_.below(4) == 0 && !open_.empty()) {
      const std::size_t at = random_.below(open_.size());
      // It may have ended at this moment, and the report be still to come; then this is refused.
      if (cluster.release(open_[at].lease)) {
        EXPECT_FALSE(open_[at].released);
        open_[at].released = true;
        EXPECT_FALSE(cluster.release(open_[at].lease));
      }
    }
    if (random_.below(4) == 0) {
      copied += cluster.copy(call, worker, static_cast<WorkerId>(random_.below(cluster.workers())));
    }
    if (random_.below(3) == 0) cluster.wake_at(now + random_.below(400'000));
  }

  const Workload& workload_;
  BaselinePlacement baseline_;
  Random random_;
  std::vector<Open> open_;
};

TEST(Cluster, LazyDecodingEqualsSingleStepsWithLeases) {
  LeaseCounters sum;
  std::uint64_t preemptions = 0;
  std::uint64_t copied = 0;
  for (std::uint64_t seed = 1000; seed < 1200; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.lease_budget_percent = static_cast<std::uint32_t>(20 + 20 * (seed % 5));
    scenario.options.max_leases = static_cast<std::uint32_t>(seed % 3 == 0 ? 2 : 40);
    scenario.options.verify_every = seed % 4 == 0 ? 1 : 0;
    const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
    ClusterResult lazy;
    ClusterResult single;
    RandomLeases lazy_leases(scenario.workload, scenario.options);
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &lazy, nullptr, &lazy_leases), Status::kOk);
    scenario.options.single_step = true;
    RandomLeases single_leases(scenario.workload, scenario.options);
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &single, nullptr, &single_leases),
              Status::kOk);
    expect_same(lazy, single);
    EXPECT_EQ(lazy.copied_pages, single.copied_pages);
    EXPECT_EQ(lazy_leases.copied, single_leases.copied);
    ASSERT_EQ(lazy_leases.reports, single_leases.reports);
    std::uint64_t outcomes[5] = {};
    for (const auto& [report, time] : lazy_leases.reports) ++outcomes[static_cast<std::size_t>(report.outcome)];
    EXPECT_EQ(outcomes[0], lazy.leases.granted);
    EXPECT_EQ(outcomes[1], lazy.leases.refused);
    EXPECT_EQ(outcomes[2], lazy.leases.expired);
    EXPECT_EQ(outcomes[3], lazy.leases.released);
    EXPECT_EQ(outcomes[4], lazy.leases.revoked);
    sum.granted += outcomes[0];
    sum.refused += outcomes[1];
    sum.expired += outcomes[2];
    sum.released += outcomes[3];
    sum.revoked += outcomes[4];
    preemptions += lazy.preemptions;
    copied += lazy.copied_pages;
    if (HasFailure()) break;
  }
  // The scenarios reach what they are meant to reach.
  EXPECT_GT(sum.granted, 5000u);
  EXPECT_GT(sum.refused, 1000u);
  EXPECT_GT(sum.expired, 1000u);
  EXPECT_GT(sum.released, 1000u);
  EXPECT_GT(sum.revoked, 1000u);
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(copied, 1000u);
}

// Knows what the workers hold only from what they report, as an index in front of real engines does.
class MirrorDirectory final : public PrefixDirectory {
 public:
  MirrorDirectory(const PageTree& tree, std::uint32_t workers)
      : tree_(tree), pages_(workers, std::vector<std::uint32_t>(tree.size(), 0)) {}
  void match(CallId call, std::uint32_t* pages) override {
    std::vector<NodeId> path(tree_.max_path_nodes());
    const std::uint32_t length = tree_.path(tree_.prompt_leaf(call), path.data());
    for (std::size_t w = 0; w < pages_.size(); ++w) {
      pages[w] = 0;
      for (std::uint32_t i = 0; i < length; ++i) {
        pages[w] += pages_[w][path[i]];
        if (pages_[w][path[i]] < tree_.node(path[i]).pages) break;
      }
    }
    ++matches;
  }
  void pages_changed(WorkerId worker, const std::vector<PageCache::Change>& changes, Time) override {
    for (const PageCache::Change& change : changes) {
      std::uint32_t& pages = pages_[worker][change.range.node];
      if (change.stored) {
        EXPECT_EQ(pages, change.range.first);
        pages += change.range.count;
      } else {
        EXPECT_EQ(pages, change.range.first + change.range.count);
        pages = change.range.first;
      }
    }
  }
  std::uint64_t matches = 0;

 private:
  const PageTree& tree_;
  std::vector<std::vector<std::uint32_t>> pages_;
};

TEST(Cluster, WhatWorkersReportIsEnoughToMatch) {
  std::uint64_t matches = 0;
  for (std::uint64_t seed = 300; seed < 340; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.policy.kind = ClusterPolicyKind::kAffinity;
    const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
    ClusterResult asked;
    ClusterResult told;
    MirrorDirectory mirror(tree, scenario.options.workers);
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &asked), Status::kOk);
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &told, nullptr, nullptr, &mirror),
              Status::kOk);
    expect_same(asked, told);
    matches += mirror.matches;
  }
  EXPECT_GT(matches, 1000u);
}

// The engine, told of pages by their hashes, places every call as the direct look at the caches does; its journal
//   rebuilds it.
TEST(Cluster, TheEngineDecidesAsTheBaseline) {
  std::uint64_t decisions = 0;
  for (std::uint64_t seed = 300; seed < 340; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.policy.kind = seed % 3 == 0 ? ClusterPolicyKind::kRoundRobin : ClusterPolicyKind::kAffinity;
    const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
    const auto capacity = static_cast<std::uint32_t>(scenario.options.kv_tokens / scenario.page_tokens);
    std::vector<std::uint8_t> journal;
    EnginePlacement engine(
        scenario.workload, tree, scenario.options.workers, capacity,
        baseline_placement_of(scenario.options.policy.kind), scenario.options.seed,
        [](void* context, const std::uint8_t* bytes, std::size_t count) {
          auto& stream = *static_cast<std::vector<std::uint8_t>*>(context);
          stream.insert(stream.end(), bytes, bytes + count);
        },
        &journal);
    ClusterResult direct;
    ClusterResult through_engine;
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &direct), Status::kOk);
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &through_engine, nullptr, &engine, &engine),
              Status::kOk);
    expect_same(direct, through_engine);
    EXPECT_TRUE(engine.engine().verify());
    EXPECT_EQ(engine.engine().stats().placed_calls, scenario.workload.calls());
    EXPECT_EQ(engine.engine().stats().open_calls, 0u);
    engine.finish_journal();
    EngineOptions options;
    ASSERT_EQ(read_journal_options(journal, &options), Status::kOk);
    Engine rebuilt(options);
    const ReplayResult replayed = replay_journal(journal, rebuilt);
    ASSERT_EQ(replayed.status, Status::kOk);
    EXPECT_EQ(rebuilt.digest(), engine.engine().digest());
    EXPECT_EQ(replayed.decisions, scenario.workload.calls());
    decisions += replayed.decisions;
  }
  EXPECT_GT(decisions, 1000u);
}

// Prefetches the next call's pages from the host tier while its tool runs.
class PrefetchingPlacement final : public PlacementPolicy {
 public:
  WorkerId place(CallId call, Time now, ClusterControl& cluster) override {
    if (call == 1) cluster.wake_at(now + 500'000);  // by then call 1 has pushed call 0's pages out
    return 0;
  }
  void timer(Time, ClusterControl& cluster) override { copied = cluster.copy(2, 0, 0); }
  std::uint32_t copied = 0;
};

TEST(Cluster, PolicyPrefetchesFromTheHostTier) {
  // Room for 8 pages. Call 0 leaves 6, call 1 pushes 4 of them out to the host tier; call 2 repeats call 0's prompt and
  // more.
  WorkloadBuilder builder;
  const CallId first = builder.call(0, 96, 1, {{0, 6}});
  const CallId second = builder.call(1, 96, 1, {{100, 6}}, {{first, 1'000'000}});
  builder.call(2, 112, 1, {{0, 6}, {50, 1}}, {{second, 5'000'000}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.kv_tokens = 128;
  options.host_tier_tokens = 1'600;
  options.live = 1;
  PrefetchingPlacement placement;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result, nullptr, &placement), Status::kOk);
  EXPECT_EQ(placement.copied, 4u);
  EXPECT_EQ(result.copied_pages, 4u);
  EXPECT_EQ(result.loaded_tokens, 0u);  // nothing was left to load when the call came
  EXPECT_DOUBLE_EQ(result.prefix_hit_rate, 96.0 / (96 + 96 + 112));
}

// Serves the tasks in reverse order of arrival.
class ReversingPlacement final : public PlacementPolicy {
 public:
  WorkerId place(CallId, Time, ClusterControl&) override { return 0; }
  std::int32_t priority(CallId call, Time, ClusterControl&) override { return -static_cast<std::int32_t>(call); }
};

TEST(Cluster, PolicySetsPriorities) {
  WorkloadBuilder builder;
  for (ThreadId t = 0; t < 4; ++t) {
    builder.call(t, 32, 1, {{t * 10, 2}});
    builder.end_task();
  }
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  ClusterOptions options = linear_a100(1);
  options.max_sequences = 1;
  options.live = 4;
  options.priority_scheduling = true;
  ReversingPlacement placement;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(builder.get(), tree, options, &result, nullptr, &placement), Status::kOk);
  for (CallId call = 0; call < 3; ++call) EXPECT_EQ(result.calls[call].admitted, result.calls[call + 1].finished);
  EXPECT_EQ(result.calls[3].admitted, 0u);
}

TEST(Cluster, EverythingHoldsAtEveryEvent) {
  for (std::uint64_t seed = 200; seed < 240; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.verify_every = 1;
    const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
    ClusterResult result;
    ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &result), Status::kOk);
    EXPECT_EQ(result.tasks_completed, scenario.workload.tasks());
    std::uint64_t output = 0;
    for (const std::uint32_t tokens : scenario.workload.output_tokens) output += tokens;
    EXPECT_EQ(result.output_tokens, output);
    for (CallId call = 0; call < scenario.workload.calls(); ++call) {
      const CallRecord& record = result.calls[call];
      EXPECT_LE(record.sent, record.admitted);
      EXPECT_LT(record.admitted, record.first_token);
      EXPECT_LE(record.first_token, record.finished);
    }
    EXPECT_GE(result.memory_utilization, 0.0);
    EXPECT_LE(result.memory_utilization, 1.0);
  }
}

TEST(Cluster, SameSeedSameResult) {
  const Workload workload = test::swe_bench_like(60, 5, 20);
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options;
  options.workers = 2;
  options.kv_tokens = 60'000;
  options.rate = 0.2;
  options.seed = 3;
  options.record_calls = true;
  ClusterResult first;
  ClusterResult second;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &first), Status::kOk);
  ASSERT_EQ(simulate_cluster(workload, tree, options, &second), Status::kOk);
  expect_same(first, second);
  options.seed = 4;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &second), Status::kOk);
  EXPECT_NE(first.task_completion, second.task_completion);
}

TEST(Cluster, RunsShareAWorkloadBetweenThreads) {
  const Workload workload = test::swe_bench_like(30, 6, 15);
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options;
  options.workers = 2;
  options.kv_tokens = 40'000;
  options.rate = 0.3;
  options.record_calls = true;
  ClusterResult alone;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &alone), Status::kOk);
  ClusterResult both[2];
  Status status[2] = {Status::kWrongState, Status::kWrongState};
  std::thread threads[2];
  for (int i = 0; i < 2; ++i) {
    threads[i] = std::thread([&, i] { status[i] = simulate_cluster(workload, tree, options, &both[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(status[i], Status::kOk);
    expect_same(alone, both[i]);
  }
}

TEST(Cluster, NoTaskIsFasterThanAlone) {
  // Chains without anything in common: whatever happens around a task can only delay it.
  const Workload workload = test::swe_bench_like(80, 11, 25);
  const PageTree tree = PageTree::for_cluster(workload, 16);
  for (const ClusterPolicyKind kind : {ClusterPolicyKind::kRoundRobin, ClusterPolicyKind::kAffinity,
                                       ClusterPolicyKind::kWaLru, ClusterPolicyKind::kTtl}) {
    ClusterOptions options;
    options.workers = 2;
    options.kv_tokens = 100'000;
    options.policy.kind = kind;
    options.rate = 0.3;
    std::vector<Time> ideal;
    ASSERT_EQ(ideal_completion(workload, tree, options, &ideal), Status::kOk);
    ClusterResult result;
    ASSERT_EQ(simulate_cluster(workload, tree, options, &result), Status::kOk);
    for (std::uint32_t t = 0; t < workload.tasks(); ++t) ASSERT_GE(result.task_completion[t], ideal[t]) << t;
    EXPECT_GE(result.belady_ratio, 0.999);
  }
}

TEST(Cluster, IdealDoesNotDependOnTheOrderOfTasks) {
  // Each task alone: a workload of one task gives the same time as that task among others.
  const Workload all = test::swe_bench_like(5, 21, 12);
  const PageTree tree = PageTree::for_cluster(all, 16);
  ClusterOptions options;
  std::vector<Time> ideal;
  ASSERT_EQ(ideal_completion(all, tree, options, &ideal), Status::kOk);
  const Workload one = test::swe_bench_like(1, 21, 12);  // the same first task
  const PageTree single = PageTree::for_cluster(one, 16);
  std::vector<Time> alone;
  ASSERT_EQ(ideal_completion(one, single, options, &alone), Status::kOk);
  EXPECT_EQ(ideal[0], alone[0]);
}

TEST(Cluster, SaturationIsWhereTheMeanIsThreeTimesTheIdeal) {
  const Workload workload = test::swe_bench_like(120, 9, 20);
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options;
  options.workers = 1;
  options.kv_tokens = 80'000;
  double rate = 0;
  ASSERT_EQ(find_saturation(workload, tree, options, &rate), Status::kOk);
  ClusterResult below;
  ClusterResult above;
  options.rate = rate;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &below), Status::kOk);
  options.rate = rate * 1.02;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &above), Status::kOk);
  EXPECT_LE(below.completion.mean, 3 * below.ideal_seconds);
  EXPECT_GE(above.completion.mean, 3 * above.ideal_seconds);
  const Workload few = test::swe_bench_like(1, 9, 3);
  const PageTree small = PageTree::for_cluster(few, 16);
  EXPECT_EQ(find_saturation(few, small, options, &rate), Status::kNotFound);
}

TEST(Cluster, OptimumByHand) {
  // Room for 3 pages. A (1 page), B (1), C (2: with one pinned page left MIN keeps whichever returns first).
  WorkloadBuilder builder;
  const auto one_call = [&builder](std::uint64_t id, std::uint32_t blocks) {
    const CallId call = builder.call(static_cast<ThreadId>(id), blocks * 16, 1, {{id, blocks}});
    builder.end_task();
    return call;
  };
  const CallId a = one_call(0, 1);
  const CallId b = one_call(10, 1);
  const CallId c = one_call(20, 2);
  const CallId b2 = one_call(10, 1);
  const CallId a2 = one_call(0, 1);
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  const std::vector<ServedRequest> served{{a, 0, 1}, {b, 2, 3}, {c, 4, 5}, {b2, 6, 7}, {a2, 8, 9}};
  const OptimumResult optimum = replay_optimum(builder.get(), tree, served, 3);
  EXPECT_EQ(optimum.missed_pages, 5u);  // a, b, 2 x c; then b stays (returns first), a is computed again
  EXPECT_EQ(optimum.missed_cost, 4 * page_cost(16, 0, 1) + page_cost(16, 1, 2));
  EXPECT_EQ(replay_optimum(builder.get(), tree, served, 4).missed_pages, 4u);
}

TEST(Cluster, ProgressCountsTasks) {
  const Workload workload = two_by_two();
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterOptions options = linear_a100(2);
  options.live = 1;
  std::atomic<std::uint64_t> progress{0};
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(workload, tree, options, &result, &progress), Status::kOk);
  EXPECT_EQ(progress.load(), 2u);
}

}  // namespace
}  // namespace saga
