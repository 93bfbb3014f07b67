#include "../core/sim/cluster_policy.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "../core/evict/page_cache.hpp"
#include "../core/sim/continuum.hpp"
#include "../core/sim/kv_flow.hpp"
#include "../core/sim/kv_router.hpp"
#include "../core/sim/saga_paper.hpp"
#include "../core/sim/thunder_agent.hpp"
#include "cluster_scenarios.hpp"
#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::expect_same;
using test::random_scenario;
using test::Scenario;
using test::WorkloadBuilder;

constexpr Time kSecond = 1'000'000;

// A cluster of literal facts that writes down what it is told. Pages of 16 tokens; calls and tasks as the test sets them.
class FakeCluster final : public ClusterControl {
 public:
  struct Call {
    std::uint32_t prompt = 16;
    std::uint32_t output = 16;
    ThreadId thread = 0;
    std::uint32_t task = 0;
    std::map<WorkerId, std::uint32_t> cached;          // pages on the GPU
    std::map<WorkerId, std::uint32_t> cached_or_host;  // where there is more
  };
  struct Lease {
    CallId call;
    WorkerId worker;
    std::uint64_t value;
    Time until;
    bool open = true;
  };
  struct Copy {
    CallId call;
    WorkerId from, to;
    friend bool operator==(const Copy&, const Copy&) = default;
  };

  explicit FakeCluster(std::uint32_t workers, std::uint32_t capacity = 1'000)
      : open(workers, 0), waiting(workers, 0), capacity_(capacity) {}

  std::uint32_t workers() const override { return static_cast<std::uint32_t>(open.size()); }
  std::uint32_t page_tokens() const override { return 16; }
  std::uint32_t prompt_tokens(CallId call) const override { return calls.at(call).prompt; }
  PromptKind prompt_kind(CallId) const override { return PromptKind::kTool; }
  ThreadId thread(CallId call) const override { return calls.at(call).thread; }
  std::uint32_t task(CallId call) const override { return calls.at(call).task; }
  std::uint32_t tenant(std::uint32_t task) const override {
    const auto at = tenants.find(task);
    return at == tenants.end() ? 0 : at->second;
  }
  double weight(std::uint32_t tenant) const override { return tenant == 1 ? 2.0 : 1.0; }
  const AgentGraph* graph(std::uint32_t) const override { return declared; }
  std::uint32_t output_tokens(CallId call) const override { return calls.at(call).output; }
  void match(CallId call, std::uint32_t* pages) override {
    for (WorkerId w = 0; w < workers(); ++w) pages[w] = cached_pages(call, w);
  }
  std::uint32_t open_calls(WorkerId worker) const override { return open[worker]; }
  std::uint32_t running_pages(WorkerId) override { return 0; }
  std::uint32_t waiting_calls(WorkerId worker) const override { return waiting[worker]; }
  std::uint32_t free_pages(WorkerId) override { return capacity_; }
  std::uint32_t capacity_pages(WorkerId) const override { return capacity_; }
  std::uint32_t leased_pages(WorkerId) const override { return 0; }
  std::uint32_t cached_pages(CallId call, WorkerId worker) override {
    const auto& cached = calls.at(call).cached;
    return cached.count(worker) ? cached.at(worker) : 0;
  }
  std::uint32_t cached_or_host_pages(CallId call, WorkerId worker) override {
    const auto& cached = calls.at(call).cached_or_host;
    return cached.count(worker) ? cached.at(worker) : cached_pages(call, worker);
  }
  Time copy_time(std::uint32_t pages) const override { return pages * 1'000; }
  void send(CallId call, WorkerId worker) override { sent.push_back({call, worker}); }
  void set_priority(CallId, std::int32_t) override {}
  std::uint32_t copy(CallId call, WorkerId from, WorkerId to) override {
    copies.push_back({call, from, to});
    return from == to ? cached_or_host_pages(call, to) - cached_pages(call, to) : cached_pages(call, from);
  }
  void wake_at(Time time) override { wakes.insert(time); }
  void drop(CallId call, WorkerId worker) override { dropped.push_back({call, worker}); }
  LeaseId lease(CallId call, WorkerId worker, std::uint64_t value, Time until) override {
    leases.push_back({call, worker, value, until});
    return leases.size() - 1;
  }
  bool release(LeaseId lease) override { return std::exchange(leases[lease].open, false); }

  using Sent = std::vector<std::pair<CallId, WorkerId>>;
  std::vector<Call> calls = std::vector<Call>(40);
  std::map<std::uint32_t, std::uint32_t> tenants;
  const AgentGraph* declared = nullptr;
  std::vector<std::uint32_t> open;
  std::vector<std::uint32_t> waiting;
  Sent sent;
  Sent dropped;
  std::vector<Copy> copies;
  std::vector<Lease> leases;
  std::set<Time> wakes;

 private:
  std::uint32_t capacity_;
};

// Tables for 40 calls of 40 tasks and two tenants, as FakeCluster has them.
Workload forty() {
  WorkloadBuilder builder;
  for (std::uint32_t task = 0; task < 40; ++task) {
    builder.call(task, 16, 1, {});
    builder.end_task(task % 2);
  }
  return builder.get();
}

ClusterOptions of_workers(std::uint32_t workers) {
  ClusterOptions options;
  options.workers = workers;
  return options;
}

ClusterPolicyOptions with(ClusterPolicyKind kind, std::initializer_list<std::pair<std::uint32_t, double>> parameters) {
  ClusterPolicyOptions options;
  options.kind = kind;
  for (const auto& [index, value] : parameters) options.parameters[index] = value;
  return options;
}

constexpr auto kTool = StopReason::kToolUse;
constexpr auto kCode = ToolClass::kCodeExecution;

// --- kv-router -----------------------------------------------------------------------------------------------------------------

TEST(KvRouter, TheCheapestWorkerByItsOwnBooks) {
  FakeCluster cluster(2);
  KvRouter router(with(ClusterPolicyKind::kKvRouter, {{0, 1.0}, {2, 0.0}, {4, 0.0}}), of_workers(2), forty());
  for (CallId call = 0; call < 3; ++call) cluster.calls[call].prompt = 160;
  // Costs 160 - 80 + 160 against 160 + 160.
  cluster.calls[0].cached = {{1, 5}};
  EXPECT_EQ(router.place(0, 0, cluster), 1u);
  // Nothing cached: 160 + 160 against (80 + 160) + (160 + 160).
  EXPECT_EQ(router.place(1, 0, cluster), 0u);
  // Worker 1 holds 9 pages of 10: (80 + 16) + (160 + 160) = 416 against (160 + 160) + (160 + 160) = 640.
  cluster.calls[2].cached = {{1, 9}};
  EXPECT_EQ(router.place(2, 0, cluster), 1u);
  EXPECT_TRUE(router.verify());
  // First tokens: worker 0 has no prefill any more, 160 of decode; worker 1 still 96 and 320.
  router.first_token(1, 0, 1, cluster);
  cluster.calls[3].prompt = 160;
  cluster.calls[3].cached = {{1, 9}};  // 112 + 480 against 160 + 320
  EXPECT_EQ(router.place(3, 1, cluster), 0u);
  for (const auto& [call, worker] : FakeCluster::Sent{{0, 1}, {1, 0}, {2, 1}, {3, 0}}) {
    router.call_finished(call, worker, kTool, kCode, 2, cluster);
  }
  EXPECT_TRUE(router.verify());
  EXPECT_EQ(router.place(4, 3, cluster), 0u);  // all books are empty again: the smallest id
}

TEST(KvRouter, HostMemoryCountsForThreeQuarters) {
  FakeCluster cluster(2);
  ClusterOptions options = of_workers(2);
  cluster.calls[0].prompt = 160;
  cluster.calls[0].cached = {{0, 7}};
  cluster.calls[0].cached_or_host = {{1, 10}};  // 7.5 pages' worth
  KvRouter without(with(ClusterPolicyKind::kKvRouter, {{2, 0.0}, {4, 0.0}}), options, forty());
  EXPECT_EQ(without.place(0, 0, cluster), 0u);
  options.host_tier_tokens = 16;
  KvRouter router(with(ClusterPolicyKind::kKvRouter, {{2, 0.0}, {4, 0.0}}), options, forty());
  EXPECT_EQ(router.place(0, 0, cluster), 1u);
}

TEST(KvRouter, CallsAreHeldWhileEveryWorkerIsBusy) {
  FakeCluster cluster(2);
  // Busy: more than half of 2,048 tokens to compute.
  for (const double least_work_first : {0.0, 1.0}) {
    KvRouter router(with(ClusterPolicyKind::kKvRouter, {{2, 0.5}, {3, least_work_first}, {4, 0.0}}), of_workers(2),
                    forty());
    cluster.sent.clear();
    for (CallId call = 0; call < 4; ++call) cluster.calls[call].prompt = 1'600;
    cluster.calls[3].prompt = 1'200;
    EXPECT_EQ(router.place(0, 0, cluster), 0u);
    EXPECT_EQ(router.place(1, 0, cluster), 1u);
    EXPECT_EQ(router.place(2, 0, cluster), kNone);
    EXPECT_EQ(router.place(3, 0, cluster), kNone);
    router.first_token(0, 0, 5, cluster);
    EXPECT_EQ(cluster.sent, (FakeCluster::Sent{{least_work_first > 0 ? 3u : 2u, 0}}));
    router.first_token(1, 1, 6, cluster);
    EXPECT_EQ(cluster.sent.size(), 2u);
    EXPECT_TRUE(router.verify());
  }
}

TEST(KvRouter, SessionAffinityLastsUntilTheThreadWasIdleForSoLong) {
  FakeCluster cluster(2);
  KvRouter router(with(ClusterPolicyKind::kKvRouter, {{2, 0.0}, {4, 10.0}}), of_workers(2), forty());
  cluster.calls[0].cached = {{1, 1}};
  EXPECT_EQ(router.place(0, 0, cluster), 1u);
  router.call_finished(0, 1, kTool, kCode, kSecond, cluster);
  EXPECT_EQ(router.place(1, 11 * kSecond, cluster), 1u);
  router.call_finished(1, 1, kTool, kCode, 11 * kSecond, cluster);
  EXPECT_EQ(router.place(2, 21 * kSecond + 1, cluster), 0u);
}

TEST(KvRouter, ATemperatureSpreads) {
  FakeCluster cluster(2);
  KvRouter router(with(ClusterPolicyKind::kKvRouter, {{1, 1.0}, {2, 0.0}, {4, 0.0}}), of_workers(2), forty());
  std::uint32_t cheapest = 0;
  for (int i = 0; i < 1'000; ++i) {
    cluster.calls[0].cached = {{1, 1}};
    const WorkerId worker = router.place(0, 0, cluster);
    cheapest += worker == 1;
    router.call_finished(0, worker, kTool, kCode, 0, cluster);
  }
  EXPECT_NEAR(cheapest, 731, 60);  // 1 / (1 + exp(-1))
}

// --- thunder-agent -------------------------------------------------------------------------------------------------------------

// One worker of 1,600 tokens: pause from 1,520 down to 1,280, resume up to 1,360.
ThunderAgent thunder(double half_life, double order) {
  return ThunderAgent(with(ClusterPolicyKind::kThunderAgent,
                           {{0, 0.95}, {1, 0.8}, {2, 0.1}, {3, half_life}, {4, 1.0}, {5, order}, {6, 100.0}}),
                      forty());
}

void each_its_task(FakeCluster& cluster) {
  for (CallId call = 0; call < cluster.calls.size(); ++call) {
    cluster.calls[call].task = call % 10;  // calls 0, 10, 20, 30 are those of task 0
    cluster.calls[call].thread = call % 10;
  }
}

TEST(ThunderAgent, ProgramsWaitForRoomAndTheLargestThatFitsGoesFirst) {
  FakeCluster cluster(1, 100);
  each_its_task(cluster);
  ThunderAgent policy = thunder(0, 0);
  for (const auto& [call, prompt] : {std::pair{0u, 900u}, {1u, 700u}, {2u, 600u}, {3u, 400u}}) {
    cluster.calls[call].prompt = prompt;
  }
  EXPECT_EQ(policy.place(0, 0, cluster), 0u);
  EXPECT_EQ(policy.place(1, 0, cluster), kNone);  // 900 + 700 > 1,360
  EXPECT_EQ(policy.place(2, 0, cluster), kNone);
  EXPECT_EQ(policy.place(3, 0, cluster), kNone);  // it would fit, but others wait
  EXPECT_EQ(cluster.wakes, (std::set<Time>{kSecond}));
  policy.timer(kSecond, cluster);
  EXPECT_EQ(cluster.sent, (FakeCluster::Sent{{3, 0}}));  // 1,300 with it
  policy.call_finished(0, 0, kTool, kCode, kSecond, cluster);
  policy.task_finished(0, kSecond, cluster);
  policy.timer(2 * kSecond, cluster);
  EXPECT_EQ(cluster.sent, (FakeCluster::Sent{{3, 0}, {1, 0}}));  // 1,100
  EXPECT_EQ(policy.live_programs(), 3u);
  EXPECT_TRUE(policy.verify());
}

TEST(ThunderAgent, TheSmallestActingProgramsArePausedFirstThenReasoningOnesAreMarked) {
  FakeCluster cluster(1, 100);
  each_its_task(cluster);
  ThunderAgent policy = thunder(0, 1);
  for (const CallId call : {0u, 1u, 2u, 3u}) {
    cluster.calls[call].prompt = 320;
    cluster.calls[call].output = 40 + 20 * call;
    EXPECT_EQ(policy.place(call, 0, cluster), 0u);
  }
  for (const CallId call : {0u, 1u, 2u}) policy.call_finished(call, 0, kTool, kCode, 10, cluster);
  // 360 + 380 + 400 + 320 = 1,460: below the threshold.
  policy.timer(kSecond, cluster);
  EXPECT_EQ(policy.pauses(), 0u);
  cluster.calls[12].prompt = 500;
  EXPECT_EQ(policy.place(12, kSecond, cluster), 0u);
  // 360 + 380 + 500 + 320 = 1,560. Acting: 0 (360) goes, then 1,200 remain.
  policy.timer(2 * kSecond, cluster);
  EXPECT_EQ(policy.pauses(), 1u);
  EXPECT_EQ(policy.place(10, 2 * kSecond, cluster), kNone);
  cluster.calls[11].prompt = 1'000;
  EXPECT_EQ(policy.place(11, 2 * kSecond, cluster), 0u);
  // 1,000 + 500 + 320 = 1,820, all reasoning: 3 (320) is marked, and 2 (500), at their ends they are paused.
  policy.timer(3 * kSecond, cluster);
  EXPECT_EQ(policy.pauses(), 1u);
  policy.call_finished(3, 0, kTool, kCode, 3 * kSecond, cluster);
  policy.call_finished(12, 0, kTool, kCode, 3 * kSecond, cluster);
  policy.call_finished(11, 0, kTool, kCode, 3 * kSecond, cluster);
  EXPECT_EQ(policy.pauses(), 3u);
  EXPECT_EQ(policy.place(13, 3 * kSecond, cluster), kNone);
  EXPECT_TRUE(policy.verify());
}

TEST(ThunderAgent, ActingProgramsWeighHalfWithEachHalfLife) {
  for (const double half_life : {0.0, 1.0}) {
    FakeCluster cluster(1, 100);
    each_its_task(cluster);
    ThunderAgent policy = thunder(half_life, 1);
    cluster.calls[0].prompt = 1'184;
    EXPECT_EQ(policy.place(0, 0, cluster), 0u);
    policy.call_finished(0, 0, kTool, kCode, 0, cluster);  // 1,200
    cluster.calls[1].prompt = 760;
    // After 1 s 600, and 760 make 1,360; a microsecond earlier more.
    EXPECT_EQ(policy.place(1, kSecond - 2'000, cluster), kNone);
    policy.timer(kSecond, cluster);
    EXPECT_EQ(cluster.sent.size(), half_life > 0 ? 1u : 0u);
  }
}

TEST(ThunderAgent, NobodyWaitsLongerThanTheLimitAndSilentProgramsAreForgotten) {
  FakeCluster cluster(2, 100);
  each_its_task(cluster);
  ThunderAgent policy = thunder(0, 0);
  cluster.calls[0].prompt = 1'300;
  cluster.calls[1].prompt = 1'200;
  cluster.calls[2].prompt = 1'000;
  EXPECT_EQ(policy.place(0, 0, cluster), 0u);
  EXPECT_EQ(policy.place(1, 0, cluster), 1u);
  EXPECT_EQ(policy.place(2, 0, cluster), kNone);
  policy.timer(99 * kSecond, cluster);
  EXPECT_TRUE(cluster.sent.empty());
  policy.timer(100 * kSecond, cluster);
  EXPECT_EQ(cluster.sent, (FakeCluster::Sent{{2, 1}}));
  policy.call_finished(0, 0, kTool, kCode, 100 * kSecond, cluster);
  policy.timer(200 * kSecond, cluster);
  EXPECT_EQ(policy.live_programs(), 3u);
  policy.timer(200 * kSecond + 1, cluster);
  EXPECT_EQ(policy.live_programs(), 2u);
  EXPECT_EQ(policy.place(10, 201 * kSecond, cluster), 0u);  // a new program
  EXPECT_TRUE(policy.verify());
}

TEST(ThunderAgent, AResumedProgramPrefersTheWorkerThatStillCachesIt) {
  for (const bool cached : {false, true}) {
    FakeCluster cluster(2, 100);
    each_its_task(cluster);
    ThunderAgent policy = thunder(0, 1);
    cluster.calls[0].prompt = 500;
    cluster.calls[0].output = 1'100;  // alone it is too much
    cluster.calls[1].prompt = 300;
    cluster.calls[2].prompt = 400;
    EXPECT_EQ(policy.place(1, 0, cluster), 0u);
    EXPECT_EQ(policy.place(2, 0, cluster), 1u);
    EXPECT_EQ(policy.place(0, 0, cluster), 0u);
    policy.call_finished(1, 0, kTool, kCode, 1, cluster);
    policy.call_finished(2, 1, kTool, kCode, 1, cluster);
    policy.call_finished(0, 0, kTool, kCode, 1, cluster);  // 1,600 and 316
    policy.timer(kSecond, cluster);
    EXPECT_EQ(policy.pauses(), 1u);  // program 1, the smallest
    cluster.calls[11].prompt = 330;
    if (cached) cluster.calls[11].cached = {{0, 5}};
    EXPECT_EQ(policy.place(11, kSecond, cluster), kNone);
    policy.task_finished(0, kSecond, cluster);
    policy.timer(2 * kSecond, cluster);
    // Packed onto the fuller worker 1 (416), unless worker 0 still has some of it.
    EXPECT_EQ(cluster.sent, (FakeCluster::Sent{{11, cached ? 0u : 1u}}));
  }
}

// --- continuum -----------------------------------------------------------------------------------------------------------------

TEST(Continuum, TimeToLiveWeighsAMissAgainstMemory) {
  ClusterOptions options = of_workers(1);
  options.step_time_curve = StepTimeCurve::kLinear;
  // 28.6 ms + 2,048 x 0.178 ms + attention of 2,048 tokens behind 16,384: about 0.28 ms a token.
  Continuum policy(with(ClusterPolicyKind::kContinuum, {{0, 1.0}, {1, 0.0}, {2, 50.0}, {3, 2.0}}), options, forty());
  EXPECT_EQ(policy.time_to_live(kTool, kCode, 10'000), 2 * kSecond);
  EXPECT_EQ(policy.time_to_live(StopReason::kEndTurn, ToolClass::kNone, 10'000), 0u);
  for (const Time gap : {1, 1, 1, 1, 1, 1, 1, 1, 30, 100}) {
    policy.observe_end(kTool, kCode);
    policy.observe_gap(kTool, kCode, gap * kSecond);
  }
  // A reload of 2.8 s: keeping it for 1 s saves 0.8 x 2.8 for 1 s held; to 30 s only 0.28 more for 5.8 s.
  EXPECT_EQ(policy.time_to_live(kTool, kCode, 10'000), kSecond + 1);
  // Of 100 s: 0.1 x 100 more for 5.8 s; the gap of 100 s is beyond the longest ttl.
  EXPECT_EQ(policy.time_to_live(kTool, kCode, 360'000), 30 * kSecond + 1);
  EXPECT_EQ(policy.time_to_live(kTool, kCode, 2'000), 0u);  // 0.56 s: not worth a second
  // Answers that nothing follows make it worth less: 1 of 10 comes back.
  for (int i = 0; i < 90; ++i) policy.observe_end(kTool, kCode);
  EXPECT_EQ(policy.time_to_live(kTool, kCode, 10'000), 0u);
  EXPECT_TRUE(policy.verify());
}

TEST(Continuum, LeasesLastThroughTheToolAndUntilTheNextFirstToken) {
  FakeCluster cluster(2);
  each_its_task(cluster);
  Continuum policy(with(ClusterPolicyKind::kContinuum, {{3, 2.0}}), of_workers(2), forty());
  for (CallId call = 0; call < 40; ++call) cluster.calls[call].prompt = call == 1 ? 100 : 200;
  EXPECT_EQ(policy.place(0, 0, cluster), 0u);
  EXPECT_EQ(policy.place(1, 0, cluster), 1u);
  EXPECT_EQ(policy.place(2, 0, cluster), 1u);  // 100 there against 200
  EXPECT_EQ(policy.priority(0, 0, cluster), 0);
  EXPECT_EQ(policy.priority(12, 0, cluster), 2);
  policy.first_token(0, 0, 10, cluster);
  policy.call_finished(0, 0, kTool, kCode, kSecond, cluster);
  ASSERT_EQ(cluster.leases.size(), 1u);
  EXPECT_EQ(cluster.leases[0].until, 3 * kSecond);
  EXPECT_TRUE(policy.verify());
  EXPECT_EQ(policy.place(10, 2 * kSecond, cluster), 0u);
  ASSERT_EQ(cluster.leases.size(), 2u);
  EXPECT_EQ(cluster.leases[1].call, 10u);
  EXPECT_FALSE(cluster.leases[0].open);
  EXPECT_TRUE(cluster.leases[1].open);
  policy.first_token(10, 0, 3 * kSecond, cluster);
  EXPECT_FALSE(cluster.leases[1].open);
  // The latest program is worth least.
  policy.call_finished(10, 0, kTool, kCode, 4 * kSecond, cluster);
  policy.call_finished(2, 1, kTool, kCode, 4 * kSecond, cluster);
  ASSERT_EQ(cluster.leases.size(), 4u);
  EXPECT_GT(cluster.leases[2].value, cluster.leases[3].value);
  // Expired: its context counts no longer. 216 on worker 0 against 100 on worker 1.
  policy.lease_reported({3, 2, 1, 5, LeaseOutcome::kExpired}, 6 * kSecond, cluster);
  EXPECT_EQ(policy.place(3, 6 * kSecond, cluster), 1u);
  policy.task_finished(0, 7 * kSecond, cluster);
  EXPECT_FALSE(cluster.leases[2].open);
  EXPECT_EQ(policy.place(4, 7 * kSecond, cluster), 0u);
  EXPECT_TRUE(policy.verify());
}

// --- steps to execution ----------------------------------------------------------------------------------------------------------

TEST(StepsPolicy, WhatIsMostStepsAwayGoesFirst) {
  Workload workload;
  workload.block_tokens = 4;
  for (std::uint64_t i = 0; i < 6; ++i)
    test::append_call(workload, static_cast<ThreadId>(i), 8, 1, {10 * i, 10 * i + 1});
  workload.task_first_call = {0, 6};
  workload.task_tenant = {0};
  workload.call_first_predecessor.assign(7, 0);
  const PageTree tree = PageTree::for_cluster(workload, 4);
  PageCache cache(tree, 12, 4, PolicyKind::kStepsToExecution);
  const auto run = [&](CallId call, StopReason stop, Time now) {
    const NodeId leaf = tree.final_leaf(call);
    cache.start(0, {call, static_cast<ThreadId>(call), tree.prompt_leaf(call), leaf}, kNone, now);
    ASSERT_EQ(cache.grow(0, 2, now), 2u);
    cache.end(0, {call, stop, ToolClass::kNone, leaf}, now);
  };
  run(0, StopReason::kToolUse, 1);
  run(1, StopReason::kEndTurn, 2);
  run(2, StopReason::kEndTurn, 3);
  run(3, StopReason::kEndTurn, 4);
  // Nothing was ever followed: after end_turn three answers make 3 steps, after tool_use one makes 1.
  EXPECT_EQ(cache.policy().victim(5).node, tree.final_leaf(1));  // the least recently used of the three
  run(4, StopReason::kToolUse, 6);
  cache.policy().thread_left(4, 7);  // never again
  EXPECT_EQ(cache.policy().victim(8).node, tree.final_leaf(4));
  EXPECT_EQ(cache.evict(2, 8), 2u);
  EXPECT_EQ(cache.evict(6, 9), 6u);  // 1, 2 and 3, though 0 is the oldest
  EXPECT_EQ(cache.match(tree.final_leaf(0)), 2u);
  EXPECT_TRUE(cache.verify());
}

// --- kv-flow -------------------------------------------------------------------------------------------------------------------

TEST(KvFlow, WhatLiesInHostMemoryIsLoadedBeforeTheThreadReturns) {
  FakeCluster cluster(2);
  each_its_task(cluster);
  ClusterOptions options = of_workers(2);
  options.host_tier_tokens = 1;
  KvFlow policy(with(ClusterPolicyKind::kKvFlow, {{0, 1.0}}), options, forty());
  Time now = 0;
  // Five gaps of two seconds are learned from task 0.
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(policy.place(0, now, cluster), 0u);
    policy.call_finished(0, 0, kTool, kCode, now, cluster);
    now += 2 * kSecond;
  }
  EXPECT_TRUE(cluster.copies.empty());
  EXPECT_EQ(policy.place(0, now, cluster), 0u);
  cluster.wakes.clear();
  cluster.calls[0].cached_or_host = {{0, 2}};
  policy.call_finished(0, 0, kTool, kCode, now, cluster);
  const Time due = now + 2 * kSecond - 2'000;  // two pages take 2 ms
  EXPECT_EQ(cluster.wakes, (std::set<Time>{due}));
  policy.timer(due - 1, cluster);
  EXPECT_TRUE(cluster.copies.empty());
  policy.timer(due, cluster);
  EXPECT_EQ(cluster.copies, (std::vector<FakeCluster::Copy>{{0, 0, 0}}));
  EXPECT_EQ(policy.prefetch().loads(), 1u);
  policy.task_finished(0, due, cluster);
  EXPECT_EQ(cluster.dropped, (FakeCluster::Sent{{0, 0}}));
  EXPECT_EQ(policy.sessions().bound(), 0u);
  EXPECT_TRUE(policy.verify());
}

// --- saga-paper ----------------------------------------------------------------------------------------------------------------

TEST(SagaPaper, UrgencyIsWorkOverSlackTimesWeight) {
  FakeCluster cluster(1);
  each_its_task(cluster);
  cluster.tenants = {{1, 1}, {2, 1}};
  SagaPaper policy(with(ClusterPolicyKind::kSagaPaper, {{1, 2}}), of_workers(1), forty());
  for (const std::uint32_t task : {0u, 1u, 2u}) policy.task_arrived(task, 0, cluster);
  policy.place(0, 0, cluster);
  // 37 calls of 4 s each over 1.5 x 200 s, before anything is known.
  EXPECT_DOUBLE_EQ(policy.urgency(0), 148.0 / 300);
  EXPECT_DOUBLE_EQ(policy.urgency(1), 2 * (148.0 / 300) + 2 * (148.0 / 300));
  policy.call_finished(0, 0, kTool, kCode, 0, cluster);
  policy.place(10, 100 * kSecond, cluster);
  EXPECT_DOUBLE_EQ(policy.urgency(0), 144.0 / 200);  // one call less, a third of the time gone
  // The more urgent tenant has the smaller priority number.
  EXPECT_LT(policy.priority(1, 100 * kSecond, cluster), policy.priority(0, 100 * kSecond, cluster));
  policy.call_finished(10, 0, kTool, kCode, 100 * kSecond, cluster);
  policy.place(20, 400 * kSecond, cluster);
  EXPECT_DOUBLE_EQ(policy.urgency(0), 140.0 / 1e-9);  // overdue
  EXPECT_TRUE(policy.verify());
}

TEST(SagaPaper, DeclaredGraphsGiveWorkAndDeadline) {
  FakeCluster cluster(1);
  AgentGraph graph;
  graph.steps = {{kCode, 100, 0, 1}};
  graph.expected_calls = 10;
  graph.expected_seconds = 20;
  cluster.declared = &graph;
  ClusterOptions options = of_workers(1);
  options.step_time_curve = StepTimeCurve::kLinear;
  // A decode step of 16 calls behind 16,384 tokens each: 28.6 + 16 x 0.141 + 262,144 x 7.8e-5 = 51.303 ms.
  for (const bool reads : {true, false}) {
    ClusterPolicyOptions given = with(ClusterPolicyKind::kSagaPaper, {});
    if (!reads) given.without = kPartPrediction;
    SagaPaper policy(given, options, forty());
    policy.task_arrived(0, 0, cluster);
    policy.place(0, 0, cluster);
    EXPECT_NEAR(policy.urgency(0), reads ? 10 * 100 * 0.051303 / 16 / 30 : 148.0 / 300, 1e-4);
  }
}

TEST(SagaPaper, CallsWaitInQueuesInTheOrderOfTheStrategy) {
  // Tasks 0 and 1 of tenants 0 and 1; task 0 came first, its call last.
  const std::vector<std::vector<CallId>> expected = {{1, 2, 0}, {0, 2, 1}, {1, 2, 0}, {1, 0, 2}};
  for (std::uint32_t strategy = 0; strategy < 4; ++strategy) {
    SCOPED_TRACE(strategy);
    FakeCluster cluster(1);
    each_its_task(cluster);
    cluster.tenants = {{1, 1}};
    SagaPaper policy(with(ClusterPolicyKind::kSagaPaper, {{1, strategy}, {4, 1}}), of_workers(1), forty());
    for (const std::uint32_t task : {0u, 1u, 2u}) policy.task_arrived(task, 0, cluster);
    cluster.waiting[0] = 1;
    // Tenant 1 (task 1, weight 2) and tenant 0 (tasks 0 and 2) are equally urgent at first: then the order of calls decides.
    EXPECT_EQ(policy.place(1, 10, cluster), kNone);
    EXPECT_EQ(policy.place(2, 20, cluster), kNone);
    EXPECT_EQ(policy.place(0, 30, cluster), kNone);
    EXPECT_TRUE(policy.verify());
    cluster.tenants = {{1, 1}, {2, 0}};
    policy.task_arrived(3, 40, cluster);
    cluster.tenants[3] = 1;  // tenant 1 is now more urgent
    cluster.waiting[0] = 0;
    policy.timer(200'000, cluster);
    std::vector<CallId> order;
    for (const auto& [call, worker] : cluster.sent) order.push_back(call);
    EXPECT_EQ(order, expected[strategy]);
    EXPECT_TRUE(policy.verify());
  }
}

TEST(SagaPaper, AffinityYieldsToLoad) {
  for (const double theta : {0.8, 0.4}) {
    FakeCluster cluster(2, 100);
    each_its_task(cluster);
    SagaPaper policy(with(ClusterPolicyKind::kSagaPaper, {{0, theta}}), of_workers(2), forty());
    for (const std::uint32_t task : {0u, 1u}) policy.task_arrived(task, 0, cluster);
    cluster.calls[0].prompt = 1'584;  // memory pressure 1 with its answer: load 0.5
    cluster.calls[10].cached = {{0, 99}};
    EXPECT_EQ(policy.place(0, 0, cluster), 0u);
    policy.call_finished(0, 0, kTool, kCode, 1, cluster);
    EXPECT_EQ(policy.place(10, 2, cluster), theta > 0.5 ? 0u : 1u);
    EXPECT_EQ(cluster.dropped.size(), theta > 0.5 ? 0u : 1u);
    EXPECT_TRUE(policy.verify());
  }
}

TEST(SagaPaper, AnIdleWorkerStealsTheOldestPendingSessionWithItsCache) {
  for (const bool steals : {true, false}) {
    FakeCluster cluster(2, 100);
    each_its_task(cluster);
    ClusterPolicyOptions options = with(ClusterPolicyKind::kSagaPaper, {{0, 9}, {4, 1}});
    if (!steals) options.without = kPartStealing;
    SagaPaper policy(options, of_workers(2), forty());
    for (std::uint32_t task = 0; task < 4; ++task) policy.task_arrived(task, 0, cluster);
    // Sessions 0 and 2 on worker 0, 1 on worker 1.
    cluster.calls[0].prompt = 400;
    cluster.calls[1].prompt = 800;
    cluster.calls[2].prompt = 320;
    EXPECT_EQ(policy.place(0, 0, cluster), 0u);
    EXPECT_EQ(policy.place(1, 0, cluster), 1u);
    EXPECT_EQ(policy.place(2, 0, cluster), 0u);
    for (const auto& [call, worker] : FakeCluster::Sent{{0, 0}, {1, 1}, {2, 0}}) {
      policy.call_finished(call, worker, kTool, kCode, 1, cluster);
    }
    policy.task_finished(1, 1, cluster);  // worker 1 has nothing any more
    cluster.waiting[0] = 1;
    for (const CallId call : {10u, 12u}) {
      cluster.calls[call].prompt = 480;
      cluster.calls[call].cached = {{0, 25}};
      EXPECT_EQ(policy.place(call, 300'000, cluster), kNone);
    }
    policy.timer(400'000, cluster);
    EXPECT_EQ(policy.steals(), steals ? 1u : 0u);  // a second one would make the thief the fuller one
    if (!steals) continue;
    EXPECT_EQ(cluster.copies, (std::vector<FakeCluster::Copy>{{10, 0, 1}}));
    EXPECT_TRUE(cluster.sent.empty());
    EXPECT_TRUE(policy.verify());
    policy.timer(425'000, cluster);  // 25 pages take 25 ms
    EXPECT_EQ(cluster.sent, (FakeCluster::Sent{{10, 1}}));
    EXPECT_EQ(policy.sessions().worker(0), 1u);
  }
}

class Priorities final : public PlacementPolicy {
 public:
  WorkerId place(CallId, Time, ClusterControl&) override { return 0; }
  std::int32_t priority(CallId call, Time, ClusterControl&) override {
    return call == 0 ? static_cast<std::int32_t>(SagaPaper::kPreemptionGap) + gap : 0;
  }
  std::int32_t gap = 1;
};

TEST(SagaPaper, ACallBlockedForHalfASecondPreempts) {
  WorkloadBuilder builder;
  builder.call(0, 160, 400, {{0, 10}});
  builder.end_task();
  const CallId small = builder.call(1, 16, 2, {{100, 1}});
  builder.call(1, 480, 2, {{200, 30}}, {{small, 200'000}});
  builder.end_task();
  const Workload workload = builder.get();
  const PageTree tree = PageTree::for_cluster(workload, 16);
  Time finished[3] = {};
  for (int i = 0; i < 3; ++i) {
    ClusterOptions options;
    options.workers = 1;
    options.kv_tokens = 36 * 16;
    options.policy = with(ClusterPolicyKind::kSagaPaper, {{5, i == 0 ? 0.0 : 0.5}});
    options.live = 2;
    options.token_budget = 512;
    options.record_calls = true;
    options.verify_every = 1;
    Priorities priorities;
    priorities.gap = i == 1 ? 1 : 0;  // 0: not clearly less urgent
    ClusterResult result;
    ASSERT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &priorities), Status::kOk);
    EXPECT_EQ(result.preemptions, i == 1 ? 1u : 0u);
    finished[i] = result.calls[2].first_token;
  }
  EXPECT_GT(finished[1], kSecond / 2);
  EXPECT_LT(finished[1], 2 * kSecond);
  EXPECT_GT(finished[0], 5 * kSecond);  // 400 steps
  EXPECT_EQ(finished[0], finished[2]);
}

// --- session table ---------------------------------------------------------------------------------------------------------------

TEST(SessionTable, AgreesWithASimpleModel) {
  struct Model {
    WorkerId worker = kNone;
    std::vector<std::uint32_t> open;
    std::uint64_t last = 0;
    Time idle_since = 0;
  };
  Random random(7);
  SessionTable table(12, 12, 3, 50);
  std::vector<Model> models(12);
  for (Time now = 0; now < 4'000; ++now) {
    const auto task = static_cast<std::uint32_t>(random.below(12));
    Model& model = models[task];
    switch (random.below(5)) {
      case 0:
      case 1: {
        if (model.worker == kNone || random.below(4) == 0) {
          if (model.worker == kNone) model.idle_since = now;
          model.worker = static_cast<WorkerId>(random.below(3));
          table.bind(task, model.worker, now);
        }
        model.open.push_back(static_cast<std::uint32_t>(random.below(100)));
        table.call_opened(task, model.open.back());
        table.thread_called(task, task, static_cast<CallId>(now));
        break;
      }
      case 2:
      case 3:
        if (model.open.empty()) break;
        model.last = model.open.back() + std::uint64_t{9};
        table.call_closed(task, model.open.back(), 9, now);
        model.open.pop_back();
        if (model.open.empty()) model.idle_since = now;
        break;
      default:
        if (model.open.empty() && random.below(3) == 0) {
          table.task_over(task);
          model = {};
        }
        table.forget_idle(now);
        for (Model& other : models) {
          if (other.worker != kNone && other.open.empty() && now - other.idle_since > 50) other = {};
        }
        break;
    }
    std::uint64_t context[3] = {};
    std::uint32_t bound = 0;
    for (std::uint32_t t = 0; t < 12; ++t) {
      ASSERT_EQ(table.worker(t), models[t].worker);
      if (models[t].worker == kNone) continue;
      ++bound;
      std::uint64_t open = 0;
      for (const std::uint32_t tokens : models[t].open) open += tokens;
      context[models[t].worker] += std::max(open, models[t].last);
      ASSERT_EQ(table.only_call(t), models[t].open.size() == 1);
    }
    for (WorkerId w = 0; w < 3; ++w) ASSERT_EQ(table.context(w), context[w]);
    ASSERT_EQ(table.bound(), bound);
    if (now % 16 == 0) {
      ASSERT_TRUE(table.verify());
    }
  }
}

// --- all policies --------------------------------------------------------------------------------------------------------------

constexpr ClusterPolicyKind kKinds[] = {
    ClusterPolicyKind::kRoundRobin, ClusterPolicyKind::kAffinity,     ClusterPolicyKind::kWaLru,
    ClusterPolicyKind::kTtl,        ClusterPolicyKind::kKvRouter,     ClusterPolicyKind::kContinuum,
    ClusterPolicyKind::kKvFlow,     ClusterPolicyKind::kThunderAgent, ClusterPolicyKind::kSagaPaper};

TEST(ClusterPolicies, CompleteEverythingTheSameEveryTimeLazilyOrStepByStep) {
  for (const ClusterPolicyKind kind : kKinds) {
    std::uint64_t preemptions = 0;
    LeaseCounters leases;
    for (std::uint64_t seed = 500; seed < 540; ++seed) {
      SCOPED_TRACE(static_cast<int>(kind));
      SCOPED_TRACE(seed);
      Scenario scenario = random_scenario(seed);
      Random random(seed);
      scenario.options.priority_scheduling = false;
      scenario.options.policy.kind = kind;
      scenario.options.hints = random.below(3) == 0 ? ClusterHints::kNone : ClusterHints::kGraph;
      if (random.below(2) == 0) {
        for (double& parameter : scenario.options.policy.parameters) {
          if (random.below(3) == 0) parameter = random.uniform() * 3;
        }
        scenario.options.policy.without = static_cast<std::uint32_t>(random.below(kAllParts + 1));
      }
      const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
      ClusterResult lazy;
      ClusterResult again;
      ClusterResult single;
      scenario.options.verify_every = 7;
      ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &lazy), Status::kOk);
      EXPECT_EQ(lazy.tasks_completed, scenario.workload.tasks());
      scenario.options.verify_every = 0;
      ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &again), Status::kOk);
      expect_same(lazy, again);
      scenario.options.single_step = true;
      ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &single), Status::kOk);
      expect_same(lazy, single);
      preemptions += lazy.preemptions;
      leases.granted += lazy.leases.granted;
      leases.revoked += lazy.leases.revoked;
      if (HasFailure()) return;
    }
    EXPECT_GT(preemptions, 10u) << static_cast<int>(kind);
    EXPECT_EQ(leases.granted > 0, kind == ClusterPolicyKind::kContinuum);
    EXPECT_EQ(leases.revoked > 0, kind == ClusterPolicyKind::kContinuum);
  }
}

TEST(ClusterPolicies, NothingIsLeftWhenAllTasksAreOver) {
  for (std::uint64_t seed = 600; seed < 615; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.priority_scheduling = false;
    const Workload& workload = scenario.workload;
    const PageTree tree = PageTree::for_cluster(workload, scenario.page_tokens);
    ClusterOptions& options = scenario.options;
    ClusterResult result;

    options.policy.kind = ClusterPolicyKind::kThunderAgent;
    ThunderAgent thunder(options.policy, workload);
    ASSERT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &thunder), Status::kOk);
    EXPECT_EQ(thunder.live_programs(), 0u);

    options.policy.kind = ClusterPolicyKind::kKvFlow;
    KvFlow flow(options.policy, options, workload);
    ASSERT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &flow), Status::kOk);
    EXPECT_EQ(flow.sessions().bound(), 0u);

    options.policy.kind = ClusterPolicyKind::kSagaPaper;
    SagaPaper paper(options.policy, options, workload);
    ASSERT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &paper), Status::kOk);
    EXPECT_EQ(paper.sessions().bound(), 0u);
    EXPECT_EQ(paper.live_tasks(), 0u);

    options.policy.kind = ClusterPolicyKind::kContinuum;
    Continuum continuum(options.policy, options, workload);
    ASSERT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &continuum), Status::kOk);
    EXPECT_EQ(result.leases.granted, result.leases.expired + result.leases.released + result.leases.revoked);
  }
}

TEST(ClusterPolicies, Options) {
  ClusterPolicyOptions options;
  EXPECT_TRUE(valid(options));
  EXPECT_EQ(options.parameter(3, 1.5), 1.5);
  options.parameters[3] = 2.5;
  EXPECT_EQ(options.parameter(3, 1.5), 2.5);
  options.parameters[7] = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(valid(options));
  options.parameters[7] = -1e10;
  EXPECT_FALSE(valid(options));
  options.parameters[7] = 1e9;
  EXPECT_TRUE(valid(options));
  options.without = kAllParts;
  EXPECT_TRUE(valid(options));
  options.kind = ClusterPolicyKind::kSagaPaper;
  EXPECT_EQ(eviction_of(options), PolicyKind::kLru);
  EXPECT_FALSE(priority_scheduling_of(options));
  options.without = kPartEviction;
  EXPECT_EQ(eviction_of(options), PolicyKind::kTtl);
  options.without = kPartTtl;
  EXPECT_EQ(eviction_of(options), PolicyKind::kWaLru);
  options.without = 0;
  EXPECT_EQ(eviction_of(options), PolicyKind::kSagaPaper);
  EXPECT_TRUE(priority_scheduling_of(options));
}

}  // namespace
}  // namespace saga
