// SAGA's scheduler in the engine: lives of calls, copies, leases and threads, refusals, random events, and the simulated cluster
// driven by the engine against the same cluster driven by the scheduler itself.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <ostream>
#include <set>
#include <vector>

#include "../core/engine/engine.hpp"
#include "../core/place/saga_scheduler.hpp"
#include "../core/sim/engine_placement.hpp"
#include "cluster_scenarios.hpp"

namespace saga {

void PrintTo(Status status, std::ostream* out) { *out << "status " << static_cast<int>(status); }

namespace {

using test::expect_same;
using test::random_scenario;
using test::Scenario;

using Bytes = std::vector<std::uint8_t>;

void append(void* context, const std::uint8_t* bytes, std::size_t count) {
  auto& stream = *static_cast<Bytes*>(context);
  stream.insert(stream.end(), bytes, bytes + count);
}

// Declares for each task a chain of its own number of calls.
void declare_graphs(Workload& workload) {
  workload.task_graph.assign(workload.tasks(), kNone);
  for (std::uint32_t task = 0; task < workload.tasks(); ++task) {
    if (task % 3 == 2) continue;
    AgentGraph graph;
    graph.steps.push_back({ToolClass::kNone, 40.0 + task, 50, 0.5});
    graph.expected_calls = workload.task_first_call[task + 1] - workload.task_first_call[task];
    graph.expected_seconds = 10 + task;
    graph.edges.push_back({0, 0, 1 - 1 / graph.expected_calls});
    graph.prepare();
    workload.task_graph[task] = static_cast<std::uint32_t>(workload.graphs.size());
    workload.graphs.push_back(graph);
  }
}

struct Outcomes {
  std::uint64_t calls = 0, copies = 0, leases = 0, held = 0, steals = 0;
};

void compare(Scenario& scenario, Outcomes* outcomes) {
  scenario.options.policy.kind = ClusterPolicyKind::kSaga;
  const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
  const auto capacity = static_cast<std::uint32_t>(scenario.options.kv_tokens / scenario.page_tokens);
  Bytes journal;
  EnginePlacement engine(scenario.workload, tree, scenario.options.workers, capacity, PlacementKind::kSaga,
                         scenario.options.policy.seed, append, &journal,
                         EnginePlacement::scheduling_for(scenario.options.policy, scenario.options, scenario.workload));
  ClusterResult direct;
  ClusterResult through_engine;
  ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &direct), Status::kOk);
  ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &through_engine, nullptr, &engine, &engine),
            Status::kOk);
  ASSERT_EQ(engine.status(), Status::kOk);
  expect_same(direct, through_engine);
  EXPECT_EQ(direct.copied_pages, through_engine.copied_pages);
  EXPECT_EQ(direct.held_calls, through_engine.held_calls);
  EXPECT_EQ(direct.steals, through_engine.steals);
  EXPECT_EQ(direct.leases.granted, through_engine.leases.granted);
  EXPECT_EQ(direct.leases.revoked, through_engine.leases.revoked);
  EXPECT_TRUE(engine.engine().verify());
  EXPECT_EQ(engine.engine().stats().placed_calls, scenario.workload.calls());
  engine.finish_journal();
  EngineOptions options;
  ASSERT_EQ(read_journal_options(journal, &options), Status::kOk);
  Engine rebuilt(options);
  const ReplayResult replayed = replay_journal(journal, rebuilt);
  ASSERT_EQ(replayed.status, Status::kOk);
  EXPECT_EQ(rebuilt.digest(), engine.engine().digest());
  EXPECT_GE(replayed.decisions, scenario.workload.calls());
  outcomes->calls += scenario.workload.calls();
  outcomes->copies += direct.copied_pages;
  outcomes->leases += direct.leases.granted;
  outcomes->held += direct.held_calls;
  outcomes->steals += direct.steals;
}

TEST(EngineSaga, TheSimulatedClusterRunsTheSameThroughTheEngine) {
  Outcomes outcomes;
  for (std::uint64_t seed = 500; seed < 580; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.host_tier_tokens = 0;  // of which no KV events are told
    if (seed % 2 == 0) declare_graphs(scenario.workload);
    if (seed % 3 == 0) {
      for (std::uint32_t task = 0; task < scenario.workload.tasks(); ++task) {
        scenario.workload.task_tenant[task] = task % 3;
      }
      scenario.workload.tenant_weight = {1, 2.5};
    }
    scenario.options.policy.without = seed % 5 == 4 ? (1u << (seed / 5 % 8)) : 0;
    compare(scenario, &outcomes);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(outcomes.calls, 1000u);
  EXPECT_GT(outcomes.copies, 1000u);
  EXPECT_GT(outcomes.leases, 10u);
  EXPECT_GT(outcomes.held, 100u);
  EXPECT_GT(outcomes.steals, 10u);
}

// ---------------------------------------------------------------------------------------------------------- single events

constexpr Time kSecond = 1'000'000;

EngineOptions small_options() {
  EngineOptions options;
  options.max_workers = 4;
  options.max_workflows = 4;
  options.max_calls = 6;
  options.max_blocks = 100'000;
  options.max_chain_blocks = 1000;
  options.max_open_blocks = 256 * 16;
  options.block_tokens = 16;
  options.seed = 7;
  options.placement.kind = PlacementKind::kSaga;
  options.scheduling.max_threads = 8;
  options.scheduling.max_tenants = 3;
  options.scheduling.max_graphs = 2;
  options.scheduling.max_leases = 4;
  options.scheduling.max_directives = 8;
  options.scheduling.max_receipts = 4;
  return options;
}

std::vector<BlockHash> range(BlockHash first, std::size_t count) {
  std::vector<BlockHash> hashes(count);
  std::iota(hashes.begin(), hashes.end(), first);
  return hashes;
}

// An engine whose events must succeed.
struct Life {
  explicit Life(const EngineOptions& options) : engine(options) {}
  WorkerId add_worker(Time now, std::uint32_t blocks = 10'000) {
    WorkerId worker = kNone;
    EXPECT_EQ(engine.add_worker(now, blocks, &worker), Status::kOk);
    return worker;
  }
  WorkflowHandle open(Time now, const WorkflowInfo& info = {}) {
    WorkflowHandle workflow = 0;
    EXPECT_EQ(engine.open_workflow(now, info, &workflow), Status::kOk);
    return workflow;
  }
  CallHandle submit(Time now, WorkflowHandle workflow, const std::vector<BlockHash>& chain, std::uint32_t agent = 0) {
    CallHandle call = 0;
    CallInfo info;
    info.prompt_tokens = static_cast<std::uint32_t>(chain.size()) * 16 + 5;
    info.agent = agent;
    EXPECT_EQ(engine.submit_call(now, workflow, info, chain, &call), Status::kOk);
    return call;
  }
  std::vector<Decision> decide(Time now, std::size_t room = 100) {
    std::vector<Decision> decisions(room);
    std::size_t count = 0;
    EXPECT_EQ(engine.decide(now, decisions, &count), Status::kOk);
    EXPECT_TRUE(engine.verify());
    decisions.resize(count);
    return decisions;
  }
  // The one decision that there must be.
  Decision decide_one(Time now, DecisionType type) {
    const std::vector<Decision> decisions = decide(now);
    EXPECT_EQ(decisions.size(), 1u);
    if (decisions.size() != 1) return {};
    EXPECT_EQ(decisions[0].type, static_cast<std::uint16_t>(type));
    return decisions[0];
  }
  void finish(Time now, CallHandle call, StopReason stop = StopReason::kToolUse, std::uint32_t output = 27) {
    EXPECT_EQ(engine.finish_call(now, call, stop, ToolClass::kWebApi, output), Status::kOk);
    EXPECT_TRUE(engine.verify());
  }
  const SchedulerHost& host() const { return *engine.scheduling(); }
  Engine engine;
};

TEST(EngineSaga, AThreadGoesWhereItsBlocksAreAndTheReceiptsSayWhy) {
  Life life(small_options());
  for (int i = 0; i < 3; ++i) life.add_worker(0);
  const WorkflowHandle workflow = life.open(10);
  const CallHandle first = life.submit(20, workflow, range(1, 40));
  const Decision placed = life.decide_one(20, DecisionType::kPlace);
  EXPECT_EQ(placed.call, first);
  EXPECT_EQ(placed.placement, 0u);
  EXPECT_EQ(placed.reason, kFirstSagaReason + static_cast<std::uint32_t>(SagaReason::kNew));
  EXPECT_EQ(placed.prompt_blocks, 40u);
  EXPECT_EQ(placed.longest_match_worker, kNone);
  EXPECT_EQ(placed.active_workers, 3u);
  EXPECT_EQ(placed.decided_at, 20u);
  EXPECT_TRUE(life.decide(20).empty());
  EXPECT_EQ(life.engine.first_token(kSecond / 4, first), Status::kOk);
  EXPECT_EQ(life.engine.blocks_stored(kSecond / 4, placed.worker, Tier::kGpu, 0, range(1, 42)), Status::kOk);
  life.finish(kSecond / 2, first);
  EXPECT_TRUE(life.decide(kSecond / 2).empty());
  EXPECT_LE(life.engine.next_wake(), 3 * kSecond / 2) << "presence falls with time, once a second";

  const CallHandle second = life.submit(kSecond / 2 + 5, workflow, range(1, 44));
  const Decision again = life.decide_one(kSecond / 2 + 5, DecisionType::kPlace);
  EXPECT_EQ(again.call, second);
  EXPECT_EQ(again.worker, placed.worker);
  EXPECT_EQ(again.reason, kFirstSagaReason + static_cast<std::uint32_t>(SagaReason::kHolder));
  EXPECT_EQ(again.matched_blocks[0], 42u);
  EXPECT_EQ(again.longest_match, 42u);
  EXPECT_EQ(again.longest_match_worker, placed.worker);
  const Receipt* receipt = life.host().receipt(second);
  ASSERT_NE(receipt, nullptr);
  EXPECT_EQ(receipt->decided.worker, placed.worker);
  EXPECT_EQ(receipt->decided.holder, placed.worker);
  EXPECT_EQ(receipt->decided.matched_pages, 42u);
  EXPECT_EQ(receipt->prompt_blocks, 44u);
  EXPECT_EQ(receipt->submitted_at, kSecond / 2 + 5);
  EXPECT_GT(receipt->decided.price.decode, 0);
  EXPECT_GT(receipt->decided.price.prefill, 0);
  EXPECT_EQ(receipt->decided.price.transfer, 0);
  ASSERT_NE(life.host().receipt(first), nullptr) << "also of a call that has ended";
  EXPECT_GT(life.host().receipt(first)->decided.price.prefill, 10 * receipt->decided.price.prefill);
  EXPECT_EQ(life.host().receipt(second + 1), nullptr);
}

// The same prompt again and again in the same slot, at the same moment: what was matched before says nothing of it any more.
TEST(EngineSaga, WhatWorkersTellBetweenTwoMatchesOfAPromptCounts) {
  EngineOptions options = small_options();
  options.scheduling.link_bytes_per_second = 1;  // nothing is ever copied
  Life life(options);
  const WorkerId first = life.add_worker(0);
  const WorkerId second = life.add_worker(0);
  const WorkflowHandle workflow = life.open(10);
  const std::vector<BlockHash> prompt = range(1, 400);
  const auto expect_match = [&](std::uint32_t in_gpu, std::uint32_t with_host, WorkerId holder) {
    const CallHandle call = life.submit(20, workflow, prompt);
    Decision placed;  // beside what the worker before is told to drop
    for (const Decision& decision : life.decide(20)) {
      if (decision.call == call && decision.type == static_cast<std::uint16_t>(DecisionType::kPlace)) placed = decision;
    }
    EXPECT_EQ(placed.longest_match, in_gpu);
    EXPECT_EQ(placed.longest_match_worker, holder);
    EXPECT_TRUE(holder == kNone || placed.worker == holder);
    EXPECT_EQ(placed.matched_blocks[0], in_gpu);
    EXPECT_EQ(placed.matched_blocks[1], with_host);
    ASSERT_NE(life.host().receipt(call), nullptr);
    EXPECT_EQ(life.host().receipt(call)->decided.matched_pages, in_gpu);
    EXPECT_EQ(life.engine.cancel_call(20, call), Status::kOk);
  };
  expect_match(0, 0, kNone);
  EXPECT_EQ(life.engine.blocks_stored(20, second, Tier::kGpu, 0, range(1, 400)), Status::kOk);
  expect_match(400, 400, second);
  EXPECT_EQ(life.engine.blocks_removed(20, second, Tier::kGpu, range(101, 300)), Status::kOk);
  expect_match(100, 100, second);
  EXPECT_EQ(life.engine.blocks_stored(20, second, Tier::kHost, 100, range(101, 150)), Status::kOk);
  expect_match(100, 250, second);
  EXPECT_EQ(life.engine.blocks_stored(20, first, Tier::kGpu, 0, range(1, 380)), Status::kOk);
  expect_match(380, 380, first);
  EXPECT_EQ(life.engine.blocks_cleared(20, first), Status::kOk);
  expect_match(100, 250, second);
  EXPECT_EQ(life.engine.remove_worker(20, second), Status::kOk);
  expect_match(0, 0, kNone);
}

// What a lease covers is matched when its thread's call ends, whatever was matched when it came.
TEST(EngineSaga, WhatWorkersTellWhileACallRunsCountsForItsLease) {
  EngineOptions options = small_options();
  options.scheduling.leases = true;
  Life life(options);
  const WorkerId worker = life.add_worker(0);
  const WorkflowHandle workflow = life.open(10);
  EXPECT_EQ(life.engine.blocks_stored(10, worker, Tier::kGpu, 0, range(1, 12)), Status::kOk);
  const CallHandle call = life.submit(20, workflow, range(1, 40));
  EXPECT_EQ(life.decide_one(20, DecisionType::kPlace).matched_blocks[0], 12u);
  EXPECT_EQ(life.engine.blocks_stored(20, worker, Tier::kGpu, 12, range(13, 17)), Status::kOk);
  life.finish(20, call);
  EXPECT_EQ(to_directive(life.decide_one(20, DecisionType::kRetain)).blocks, 29u);
}

// Where a prompt of 300 blocks goes that worker 0 is said to hold, while a call runs there.
Decision placed_with_trust(std::uint32_t trust, Receipt* receipt) {
  EngineOptions options = small_options();
  options.scheduling.link_bytes_per_second = 1;  // nothing is ever copied
  Life life(options);
  const WorkerId holder = life.add_worker(0);
  const WorkflowHandle others = life.open(0);
  life.submit(0, others, range(10'000, 50));
  EXPECT_EQ(life.decide(0).size(), 1u);
  life.add_worker(0);
  EXPECT_EQ(life.engine.blocks_stored(1, holder, Tier::kGpu, 0, range(1, 300)), Status::kOk);
  EXPECT_EQ(life.engine.worker_trust(1, holder, trust), Status::kOk);
  const CallHandle call = life.submit(2, life.open(2), range(1, 300));
  const Decision placed = life.decide_one(2, DecisionType::kPlace);
  EXPECT_EQ(placed.longest_match, 300u) << "as reported";
  EXPECT_EQ(placed.longest_match_worker, holder);
  *receipt = *life.host().receipt(call);
  EXPECT_EQ(receipt->decided.matched_pages, placed.worker == holder ? 300u : 0u);
  return placed;
}

TEST(EngineSaga, ADistrustedHolderLosesToComputingThePromptElsewhere) {
  Receipt full, half, none;
  EXPECT_EQ(placed_with_trust(1000, &full).worker, 0u);
  EXPECT_EQ(full.trust, 1000u);
  EXPECT_EQ(full.decided.reason, SagaReason::kHolder);
  EXPECT_EQ(placed_with_trust(900, &half).worker, 0u);
  EXPECT_EQ(half.trust, 900u);
  EXPECT_GT(half.decided.price.prefill, 5 * full.decided.price.prefill) << "a tenth of the prompt is computed again";
  const Decision elsewhere = placed_with_trust(50, &none);
  EXPECT_EQ(elsewhere.worker, 1u);
  EXPECT_EQ(none.decided.reason, SagaReason::kRecompute);
  EXPECT_EQ(none.trust, 1000u) << "in the worker that was chosen";
  EXPECT_EQ(placed_with_trust(0, &none).worker, 1u);
  EXPECT_EQ(none.decided.reason, SagaReason::kNew) << "nothing is believed";
}

TEST(EngineSaga, AHolderWithoutItsWindowIsNone) {
  EngineOptions options = small_options();
  options.scheduling.link_bytes_per_second = 1;  // nothing is ever copied
  Life life(options);
  const WorkerId holder = life.add_worker(0);
  life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  EXPECT_EQ(life.engine.worker_window(0, holder, 4), Status::kOk);
  EXPECT_EQ(life.engine.blocks_stored(0, holder, Tier::kGpu, 0, range(1, 300)), Status::kOk);
  CallHandle call = life.submit(1, workflow, range(1, 300));
  Decision placed = life.decide_one(1, DecisionType::kPlace);
  EXPECT_EQ(placed.reason, kFirstSagaReason + static_cast<std::uint32_t>(SagaReason::kNew));
  EXPECT_EQ(placed.longest_match_worker, kNone);
  life.finish(2, call);
  EXPECT_EQ(life.engine.window_stored(3, holder, range(197, 4)), Status::kOk);
  call = life.submit(3, life.open(3), range(1, 300));
  placed = life.decide_one(3, DecisionType::kPlace);
  EXPECT_EQ(placed.worker, holder);
  EXPECT_EQ(placed.matched_blocks[0], 200u);
  EXPECT_EQ(life.host().receipt(call)->decided.matched_pages, 200u);
}

TEST(EngineSaga, WhatADrainedWorkerWasNotToldOfGoesElsewhere) {
  Life life(small_options());
  const WorkerId drained = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  const CallHandle running = life.submit(1, workflow, range(1, 40));
  EXPECT_EQ(life.decide_one(1, DecisionType::kPlace).worker, drained);
  const CallHandle first = life.submit(2, workflow, range(1, 40), 1);
  const CallHandle second = life.submit(2, life.open(2), range(1, 40));
  EXPECT_EQ(life.engine.pending_decisions(), 2u);
  EXPECT_EQ(life.engine.worker_accepts(3, drained, false), Status::kOk);
  EXPECT_TRUE(life.decide(3).empty()) << "taken back, and nobody else is there";
  EXPECT_EQ(life.engine.stats().waiting_calls, 2u);
  EXPECT_EQ(life.engine.stats().replaced_calls, 0u);
  EXPECT_EQ(life.host().open_calls(drained), 1u);
  const CallHandle third = life.submit(3, workflow, range(1, 40), 2);
  EXPECT_TRUE(life.decide(3).empty());
  EXPECT_EQ(life.engine.first_token(4, running), Status::kOk);
  const WorkerId other = life.add_worker(4);
  std::set<CallHandle> placed;
  for (const Decision& decision : life.decide(4)) {
    if (decision.type == static_cast<std::uint16_t>(DecisionType::kDrop)) continue;
    EXPECT_EQ(decision.worker, other);
    EXPECT_EQ(decision.placement, 0u) << "nobody was told of the one before";
    EXPECT_EQ(decision.active_workers, 1u);
    placed.insert(decision.call);
  }
  EXPECT_EQ(placed, (std::set<CallHandle>{first, second, third}));
  life.finish(5, running);
  EXPECT_EQ(life.host().open_calls(drained), 0u);
  EXPECT_EQ(life.engine.worker_accepts(6, other, false), Status::kOk);
  const CallHandle last = life.submit(6, workflow, range(500, 40));
  EXPECT_TRUE(life.decide(6).empty());
  EXPECT_EQ(life.engine.worker_accepts(7, drained, true), Status::kOk);
  const Decision back = life.decide_one(7, DecisionType::kPlace);
  EXPECT_EQ(back.call, last);
  EXPECT_EQ(back.worker, drained);
}

TEST(EngineSaga, PausedThreadsMoveOffADrainedWorker) {
  EngineOptions options = small_options();
  Life life(options);
  const WorkerId drained = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  CallHandle call = life.submit(1, workflow, range(1, 400));
  EXPECT_EQ(life.decide_one(1, DecisionType::kPlace).worker, drained);
  EXPECT_EQ(life.engine.blocks_stored(2, drained, Tier::kGpu, 0, range(1, 402)), Status::kOk);
  life.finish(kSecond, call);
  const WorkerId other = life.add_worker(kSecond);
  EXPECT_TRUE(life.decide(kSecond).empty()) << "it stays where it is";
  EXPECT_EQ(life.engine.worker_accepts(kSecond + 1, drained, false), Status::kOk);
  const std::vector<Decision> moved = life.decide(kSecond + 1);
  ASSERT_EQ(moved.size(), 2u);
  const Directive copy = to_directive(moved[0]);
  EXPECT_EQ(copy.type, static_cast<std::uint16_t>(DecisionType::kCopy));
  EXPECT_EQ(copy.reason, static_cast<std::uint32_t>(CopyReason::kMigrate));
  EXPECT_EQ(copy.source, drained);
  EXPECT_EQ(copy.worker, other);
  EXPECT_EQ(copy.call, call);
  EXPECT_EQ(moved[1].type, static_cast<std::uint16_t>(DecisionType::kDrop));
  EXPECT_EQ(moved[1].worker, drained);
  EXPECT_EQ(life.host().scheduler().statistics().steals, 1u);
  EXPECT_EQ(life.engine.blocks_stored(kSecond + 2, other, Tier::kGpu, 0, range(1, 402)), Status::kOk);
  EXPECT_EQ(life.engine.directive_done(kSecond + 2, copy.id, Outcome::kApplied), Status::kOk);
  call = life.submit(kSecond + 3, workflow, range(1, 410));
  const Decision placed = life.decide_one(kSecond + 3, DecisionType::kPlace);
  EXPECT_EQ(placed.worker, other);
  EXPECT_EQ(placed.reason, kFirstSagaReason + static_cast<std::uint32_t>(SagaReason::kHolder));
  // One whose answer ends on a drained worker moves at once.
  EXPECT_EQ(life.engine.blocks_removed(kSecond + 4, drained, Tier::kGpu, range(1, 402)), Status::kOk);
  EXPECT_EQ(life.engine.worker_accepts(kSecond + 4, drained, true), Status::kOk);
  EXPECT_EQ(life.engine.worker_accepts(kSecond + 4, other, false), Status::kOk);
  life.finish(2 * kSecond, call);
  const std::vector<Decision> back = life.decide(2 * kSecond);
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].type, static_cast<std::uint16_t>(DecisionType::kCopy));
  EXPECT_EQ(to_directive(back[0]).source, other);
  EXPECT_EQ(to_directive(back[0]).worker, drained);
  // The worker that it moves to is drained as well, while a call waits there for its blocks.
  call = life.submit(2 * kSecond + 5, workflow, range(1, 411));
  EXPECT_TRUE(life.decide(2 * kSecond + 5).empty()) << "it is held until its blocks are there";
  EXPECT_EQ(life.engine.worker_accepts(2 * kSecond + 6, drained, false), Status::kOk);
  EXPECT_TRUE(life.decide(2 * kSecond + 6).empty());
  EXPECT_EQ(life.engine.tick(3 * kSecond), Status::kOk);
  EXPECT_TRUE(life.decide(3 * kSecond).empty()) << "nor is it sent when they should have arrived";
  const WorkerId third = life.add_worker(3 * kSecond + 1);
  Decision last{};
  std::vector<Decision> decisions = life.decide(3 * kSecond + 1);
  if (decisions.empty() || decisions.back().type != static_cast<std::uint16_t>(DecisionType::kPlace)) {
    EXPECT_EQ(life.engine.tick(4 * kSecond), Status::kOk);
    for (const Decision& decision : life.decide(4 * kSecond)) decisions.push_back(decision);
  }
  for (const Decision& decision : decisions) {
    if (decision.type == static_cast<std::uint16_t>(DecisionType::kDrop)) continue;
    EXPECT_EQ(decision.worker, third);
    last = decision;
  }
  EXPECT_EQ(last.call, call);
  EXPECT_EQ(last.type, static_cast<std::uint16_t>(DecisionType::kPlace));
}

TEST(EngineSaga, ACopyToADrainedWorkerThatNobodyHasReadIsTakenBack) {
  Life life(small_options());
  const WorkerId holder = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  const CallHandle call = life.submit(1, workflow, range(1, 400));
  life.decide_one(1, DecisionType::kPlace);
  EXPECT_EQ(life.engine.blocks_stored(2, holder, Tier::kGpu, 0, range(1, 402)), Status::kOk);
  life.finish(kSecond, call);
  const WorkerId other = life.add_worker(kSecond);
  EXPECT_EQ(life.engine.worker_accepts(kSecond, holder, false), Status::kOk);
  EXPECT_EQ(life.host().stats().copies, 1u);
  EXPECT_EQ(life.engine.worker_accepts(kSecond, other, false), Status::kOk);
  EXPECT_EQ(life.host().stats().copies_refused, 1u);
  for (const Decision& decision : life.decide(kSecond)) {
    EXPECT_EQ(decision.type, static_cast<std::uint16_t>(DecisionType::kDrop));
  }
}

// ---- a worker is removed, and another one gets its id

TEST(EngineSaga, WhatNobodyHasReadOfALostWorkerIsNotSaidOfTheNextOne) {
  for (const bool call_waits : {false, true}) {
    EngineOptions options = small_options();
    options.max_workers = 2;
    Life life(options);
    const WorkerId lost = life.add_worker(0);
    const WorkflowHandle workflow = life.open(0);
    CallHandle call = life.submit(1, workflow, range(1, 400));
    EXPECT_EQ(life.decide_one(1, DecisionType::kPlace).worker, lost);
    EXPECT_EQ(life.engine.blocks_stored(2, lost, Tier::kGpu, 0, range(1, 402)), Status::kOk);
    life.finish(kSecond, call);
    const WorkerId other = life.add_worker(kSecond);
    EXPECT_TRUE(life.decide(kSecond).empty());
    // Its thread moves: a copy from it and a drop there wait to be read, and then a call waits for what is copied.
    EXPECT_EQ(life.engine.worker_accepts(kSecond + 1, lost, false), Status::kOk);
    EXPECT_EQ(life.engine.pending_decisions(), 2u);
    if (call_waits) call = life.submit(kSecond + 2, workflow, range(1, 410));
    EXPECT_EQ(life.engine.pending_decisions(), 2u);
    EXPECT_EQ(life.engine.remove_worker(kSecond + 3, lost), Status::kOk);
    EXPECT_TRUE(life.engine.verify());
    EXPECT_EQ(life.add_worker(kSecond + 4), lost) << "another worker under its id";
    EXPECT_TRUE(life.decide(kSecond + 4).empty());
    if (call_waits) {
      EXPECT_EQ(life.engine.tick(2 * kSecond), Status::kOk);
    } else {
      call = life.submit(2 * kSecond, workflow, range(1, 410));
    }
    const Decision placed = life.decide_one(2 * kSecond, DecisionType::kPlace);
    EXPECT_EQ(placed.call, call);
    EXPECT_EQ(placed.longest_match, 0u) << "nobody has its blocks any more";
    if (call_waits) {
      EXPECT_EQ(placed.worker, other) << "there it was to go";
    }
    const SchedulerStats stats = life.host().stats();
    EXPECT_EQ(stats.copies, 1u);
    EXPECT_EQ(stats.copies_refused, 1u);
  }
}

TEST(EngineSaga, DirectivesOfALostWorkerAreOverWhenAnotherHasItsId) {
  EngineOptions options = small_options();
  options.max_workers = 2;
  Life life(options);
  const WorkerId source = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  CallHandle call = life.submit(1, workflow, range(1, 400));
  life.decide_one(1, DecisionType::kPlace);
  EXPECT_EQ(life.engine.blocks_stored(2, source, Tier::kGpu, 0, range(1, 402)), Status::kOk);
  life.finish(kSecond, call);
  const WorkerId lost = life.add_worker(kSecond);
  EXPECT_EQ(life.engine.worker_accepts(kSecond + 1, source, false), Status::kOk);
  const std::vector<Decision> moved = life.decide(kSecond + 1);
  ASSERT_EQ(moved.size(), 2u);
  const Directive copy = to_directive(moved[0]);
  EXPECT_EQ(copy.type, static_cast<std::uint16_t>(DecisionType::kCopy));
  EXPECT_EQ(copy.worker, lost);
  EXPECT_EQ(life.engine.remove_worker(kSecond + 2, lost), Status::kOk);
  EXPECT_EQ(life.add_worker(kSecond + 2), lost);
  const std::uint64_t before = life.engine.digest();
  EXPECT_EQ(life.engine.directive_done(kSecond + 2, copy.id, Outcome::kApplied), Status::kNotFound);
  EXPECT_EQ(life.engine.digest(), before);
  EXPECT_EQ(life.host().stats().copies_applied, 0u);
  EXPECT_EQ(life.host().stats().copies_refused, 1u);
}

TEST(EngineSaga, LeasesOfALostWorkerAreNotHeldByTheNextOne) {
  EngineOptions options = small_options();
  options.max_workers = 1;
  options.scheduling.leases = true;
  Life life(options);
  const WorkerId worker = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  Time now = kSecond;
  EXPECT_EQ(life.engine.blocks_stored(now, worker, Tier::kGpu, 0, range(1, 40)), Status::kOk);
  CallHandle call = life.submit(now, workflow, range(1, 40));
  life.decide_one(now, DecisionType::kPlace);
  life.finish(now, call);
  const Directive lease = to_directive(life.decide_one(now, DecisionType::kRetain));
  EXPECT_EQ(life.engine.directive_done(now, lease.id, Outcome::kApplied), Status::kOk);
  EXPECT_EQ(life.host().leased_pages(worker), 41u);
  EXPECT_EQ(life.engine.remove_worker(++now, worker), Status::kOk);
  EXPECT_EQ(life.add_worker(++now), worker);
  EXPECT_EQ(life.host().leased_pages(worker), 0u);
  EXPECT_EQ(life.engine.directive_done(now, lease.id, Outcome::kExpired), Status::kNotFound);
  EXPECT_EQ(life.host().stats().leases.revoked, 1u);

  // The call that ran there is kept, but not as one whose answer is cached at the new worker.
  EXPECT_EQ(life.engine.blocks_stored(now, worker, Tier::kGpu, 0, range(1, 40)), Status::kOk);
  EXPECT_TRUE(life.decide(now).empty());
  auto& host = const_cast<SchedulerHost&>(life.host());
  EXPECT_EQ(host.cached_pages(static_cast<CallId>(call), worker), 40u);

  // A release that nobody has read is not asked of the next one either.
  call = life.submit(++now, workflow, range(1, 40));
  life.decide_one(now, DecisionType::kPlace);
  EXPECT_EQ(host.cached_pages(static_cast<CallId>(call), worker), 40u);
  life.finish(now, call);
  EXPECT_EQ(host.cached_pages(static_cast<CallId>(call), worker), 41u) << "it ran here, so its answer is here";
  life.decide_one(now, DecisionType::kRetain);
  call = life.submit(++now, workflow, range(1, 40));
  EXPECT_EQ(life.engine.pending_decisions(), 2u) << "the release and the placement";
  EXPECT_EQ(life.engine.remove_worker(++now, worker), Status::kOk);
  EXPECT_EQ(life.engine.pending_decisions(), 0u);
  EXPECT_EQ(life.add_worker(++now), worker);
  EXPECT_EQ(life.decide_one(now, DecisionType::kPlace).call, call);
}

TEST(EngineSaga, ReceiptsSayHowManyWorkersHadBeenAdded) {
  EngineOptions options = small_options();
  options.max_workers = 1;
  Life life(options);
  const WorkflowHandle workflow = life.open(0);
  std::vector<CallHandle> calls;
  for (std::uint32_t added = 1; added <= 3; ++added) {
    EXPECT_EQ(life.add_worker(added), 0u);
    calls.push_back(life.submit(added, workflow, range(1, 4)));
    life.decide_one(added, DecisionType::kPlace);
    life.finish(added, calls.back());
    EXPECT_EQ(life.engine.remove_worker(added, 0), Status::kOk);
  }
  for (std::uint32_t i = 0; i < 3; ++i) EXPECT_EQ(life.host().receipt(calls[i])->workers_added, i + 1);
}

TEST(EngineSaga, ReceiptsAreTheNewestFew) {
  Life life(small_options());
  life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  std::vector<CallHandle> calls;
  for (Time now = 1; now <= 6; ++now) {
    calls.push_back(life.submit(now, workflow, range(1, 10)));
    life.decide_one(now, DecisionType::kPlace);
    life.finish(now, calls.back());
  }
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(life.host().receipt(calls[i]) != nullptr, i >= 2) << i;
}

TEST(EngineSaga, CallsWaitUntilThereIsAWorker) {
  Life life(small_options());
  const WorkflowHandle workflow = life.open(0);
  const CallHandle call = life.submit(1, workflow, range(1, 4));
  EXPECT_TRUE(life.decide(1).empty());
  EXPECT_EQ(life.engine.stats().waiting_calls, 1u);
  EXPECT_EQ(life.engine.finish_call(2, call, StopReason::kEndTurn, ToolClass::kNone, 1), Status::kWrongState);
  EXPECT_EQ(life.engine.first_token(2, call), Status::kWrongState);
  life.add_worker(5);
  EXPECT_EQ(life.engine.first_token(5, call), Status::kWrongState) << "granted, but nobody was told";
  EXPECT_EQ(life.engine.finish_call(5, call, StopReason::kEndTurn, ToolClass::kNone, 1), Status::kWrongState);
  EXPECT_EQ(life.decide_one(6, DecisionType::kPlace).call, call);
  EXPECT_EQ(life.engine.stats().waiting_calls, 0u);
  EXPECT_EQ(life.engine.stats().placed_calls, 1u);
}

TEST(EngineSaga, ALostWorkersAnswersAreRecognised) {
  Life life(small_options());
  const WorkerId lost = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  const CallHandle call = life.submit(1, workflow, range(1, 4));
  EXPECT_EQ(life.decide_one(1, DecisionType::kPlace).worker, lost);
  EXPECT_EQ(life.engine.remove_worker(2, lost), Status::kOk);
  EXPECT_TRUE(life.decide(2).empty());
  const WorkerId other = life.add_worker(3);
  const Decision placed = life.decide_one(3, DecisionType::kPlace);
  EXPECT_EQ(placed.worker, other);
  EXPECT_EQ(placed.placement, 1u);
  EXPECT_EQ(life.host().receipt(call)->placement, 1u);
  EXPECT_EQ(life.host().receipt(call)->decided.queued, 1u);
  const std::uint64_t before = life.engine.digest();
  AnswerInfo late;
  late.placement = 0;
  EXPECT_EQ(life.engine.first_token(4, call, 0), Status::kWrongState);
  EXPECT_EQ(life.engine.finish_call(4, call, late), Status::kWrongState);
  EXPECT_EQ(life.engine.digest(), before);
  EXPECT_EQ(life.host().stats().stale, 2u);
  EXPECT_EQ(life.engine.first_token(4, call, 1), Status::kOk);
  late.placement = 1;
  EXPECT_EQ(life.engine.finish_call(5, call, late), Status::kOk);
  EXPECT_EQ(life.engine.finish_call(5, call, late), Status::kNotFound);
}

TEST(EngineSaga, CallsOfAnAgentThatOverlapHaveLanes) {
  EngineOptions options = small_options();
  options.scheduling.max_threads = 3;
  Life life(options);
  life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  const CallHandle one = life.submit(1, workflow, range(1, 4));
  const CallHandle two = life.submit(1, workflow, range(1, 4));
  const CallHandle three = life.submit(1, workflow, range(1, 4), 9);
  EXPECT_EQ(life.host().stats().threads, 3u);
  EXPECT_EQ(life.decide(1).size(), 3u);
  CallHandle call = 0;
  CallInfo info;
  info.prompt_tokens = 64;
  EXPECT_EQ(life.engine.submit_call(2, workflow, info, {}, &call), Status::kFull) << "no lane is free";
  life.finish(3, two);
  EXPECT_EQ(life.engine.submit_call(4, workflow, info, {}, &call), Status::kOk) << "the free one is used again";
  EXPECT_EQ(life.host().stats().threads, 3u);
  EXPECT_EQ(life.engine.close_workflow(4, workflow), Status::kWrongState);
  life.decide(4);
  for (const CallHandle open : {one, three, call}) life.finish(5, open);
  EXPECT_EQ(life.engine.close_workflow(6, workflow), Status::kOk);
  EXPECT_EQ(life.host().stats().threads, 0u);
  EXPECT_TRUE(life.engine.verify());
}

TEST(EngineSaga, ThePromptsOfPausedThreadsGiveWay) {
  EngineOptions options = small_options();
  options.max_open_blocks = 256 * 4;
  Life life(options);
  life.add_worker(0);
  WorkflowHandle workflows[4];
  for (WorkflowHandle& workflow : workflows) {
    workflow = life.open(1);
    const CallHandle call = life.submit(1, workflow, range(1, 200));
    life.decide(1);
    life.finish(1, call);
  }
  EXPECT_EQ(life.host().kept_chunks(), 4u);
  const CallHandle large = life.submit(2, workflows[0], range(1, 600));  // three chunks
  life.decide(2);
  EXPECT_EQ(life.host().kept_chunks(), 1u);
  CallHandle call = 0;
  EXPECT_EQ(life.engine.submit_call(2, workflows[1], 600 * 16, range(1, 600), &call), Status::kFull);
  EXPECT_EQ(life.host().kept_chunks(), 1u) << "refused: nothing is given up";
  life.finish(3, large);
  EXPECT_EQ(life.engine.submit_call(3, workflows[1], 600 * 16, range(1, 600), &call), Status::kOk);
  EXPECT_TRUE(life.engine.verify());
}

TEST(EngineSaga, LeasesAreReleasedExpireAndAreRevoked) {
  EngineOptions options = small_options();
  options.scheduling.leases = true;
  Life life(options);
  const WorkerId worker = life.add_worker(0);
  const WorkflowHandle workflow = life.open(0);
  Time now = kSecond;
  EXPECT_EQ(life.engine.blocks_stored(now, worker, Tier::kGpu, 0, range(1, 40)), Status::kOk);
  CallHandle call = life.submit(now, workflow, range(1, 40));
  life.decide_one(now, DecisionType::kPlace);
  life.finish(now, call);
  const Directive lease = to_directive(life.decide_one(now, DecisionType::kRetain));
  EXPECT_EQ(lease.worker, worker);
  EXPECT_EQ(lease.call, call);
  EXPECT_EQ(lease.blocks, 41u) << "645 tokens of the prompt and 26 of the answer are computed";
  EXPECT_GT(lease.until, now);
  EXPECT_GT(lease.value, 0u);
  EXPECT_EQ(life.engine.directive_done(now, lease.id, Outcome::kApplied), Status::kOk);
  EXPECT_EQ(life.host().leased_pages(worker), 41u);
  // Released when the thread comes back.
  call = life.submit(now, workflow, range(1, 40));
  const std::vector<Decision> back = life.decide(now);
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].type, static_cast<std::uint16_t>(DecisionType::kRelease));
  EXPECT_EQ(to_directive(back[0]).id, lease.id);
  EXPECT_EQ(back[1].call, call);
  EXPECT_EQ(life.engine.directive_done(now, lease.id, Outcome::kRevoked), Status::kNotFound);
  EXPECT_EQ(life.host().leased_pages(worker), 0u);
  life.finish(now, call);
  // Revoked, and a stale id afterwards.
  const Directive revoked = to_directive(life.decide_one(now, DecisionType::kRetain));
  EXPECT_NE(revoked.id, lease.id);
  EXPECT_EQ(life.engine.directive_done(now, revoked.id, Outcome::kRevoked), Status::kOk);
  EXPECT_EQ(life.engine.directive_done(now, revoked.id, Outcome::kExpired), Status::kNotFound);
  // A lease that was never read is simply gone.
  call = life.submit(now, workflow, range(1, 40));
  life.decide_one(now, DecisionType::kPlace);
  life.finish(now, call);
  call = life.submit(now, workflow, range(1, 40));
  life.decide_one(now, DecisionType::kPlace);
  life.finish(now, call);
  // Expires by itself.
  const Directive last = to_directive(life.decide_one(now, DecisionType::kRetain));
  now = last.until + 1;
  EXPECT_EQ(life.engine.tick(now), Status::kOk);
  EXPECT_EQ(life.engine.directive_done(now, last.id, Outcome::kExpired), Status::kNotFound);
  const SchedulerStats stats = life.host().stats();
  EXPECT_EQ(stats.leases.granted, 4u);
  EXPECT_EQ(stats.leases.released, 2u);
  EXPECT_EQ(stats.leases.revoked, 1u);
  EXPECT_EQ(stats.leases.expired, 1u);
  EXPECT_EQ(stats.leases.refused, 0u);
}

TEST(EngineSaga, CancelledCallsLeaveNothingBehind) {
  Life life(small_options());
  const WorkflowHandle workflow = life.open(0);
  CallHandle call = life.submit(1, workflow, range(1, 4));
  EXPECT_EQ(life.engine.cancel_call(1, call), Status::kOk);  // waits
  const WorkerId worker = life.add_worker(1);
  EXPECT_TRUE(life.decide(1).empty());
  call = life.submit(2, workflow, range(1, 4));
  EXPECT_EQ(life.engine.cancel_call(2, call), Status::kOk);  // granted, not told
  EXPECT_TRUE(life.decide(2).empty());
  call = life.submit(3, workflow, range(1, 4));
  EXPECT_EQ(life.decide_one(3, DecisionType::kPlace).call, call);
  EXPECT_EQ(life.engine.cancel_call(3, call), Status::kOk);  // placed
  EXPECT_EQ(life.engine.cancel_call(3, call), Status::kNotFound);
  EXPECT_EQ(life.host().open_calls(worker), 0u);
  EXPECT_EQ(life.host().scheduler().queue().size() + life.host().scheduler().admissions().size(), 0u);
  call = life.submit(4, workflow, range(1, 4));
  EXPECT_EQ(life.decide_one(4, DecisionType::kPlace).call, call);
  life.finish(5, call);
  EXPECT_EQ(life.engine.close_workflow(6, workflow), Status::kOk);
  EXPECT_EQ(life.engine.stats().cancelled_calls, 3u);
  EXPECT_TRUE(life.engine.verify());
}

// The last call of each thread keeps its slot when it has ended, so slots go beyond max_calls (found by the address sanitizer).
TEST(EngineSaga, CallsGoBeyondTheSlotsOfOpenOnes) {
  EngineOptions options = small_options();
  options.max_calls = 2;
  options.max_workflows = 12;
  options.scheduling.max_threads = 24;
  Life life(options);
  life.add_worker(0);
  std::uint32_t largest = 0;
  for (Time i = 0; i < 12; ++i) {
    const Time now = 1 + 2 * i;
    const CallHandle call = life.submit(now, life.open(now), range(1 + 10 * i, 4 + 10 * i));
    EXPECT_EQ(life.decide_one(now, DecisionType::kPlace).call, call);
    largest = std::max(largest, static_cast<std::uint32_t>(call));
    life.finish(now + 1, call);
  }
  EXPECT_GT(largest, options.max_calls);
}

TEST(EngineSaga, GraphsAndTenants) {
  Life life(small_options());
  AgentGraph graph;
  graph.steps.push_back({ToolClass::kWebApi, 100, 50, 2});
  graph.expected_calls = 3;
  std::uint32_t id = 9;
  EXPECT_EQ(life.engine.declare_graph(0, graph, &id), Status::kOk);
  EXPECT_EQ(id, 0u);
  graph.expected_calls = 4;
  EXPECT_EQ(life.engine.declare_graph(0, graph, &id), Status::kOk);
  EXPECT_EQ(id, 1u);
  graph.expected_calls = 3;
  EXPECT_EQ(life.engine.declare_graph(0, graph, &id), Status::kOk);
  EXPECT_EQ(id, 0u) << "the same graph";
  graph.expected_calls = 5;
  EXPECT_EQ(life.engine.declare_graph(0, graph, &id), Status::kFull);
  WorkflowHandle workflow = 0;
  EXPECT_EQ(life.engine.open_workflow(0, WorkflowInfo{0, 2, 0}, &workflow), Status::kInvalidArgument);
  EXPECT_EQ(life.engine.open_workflow(0, WorkflowInfo{3, 1, 0}, &workflow), Status::kInvalidArgument);
  EXPECT_EQ(life.engine.open_workflow(0, WorkflowInfo{2, 1, 5}, &workflow), Status::kOk);
  EXPECT_EQ(life.engine.set_tenant(0, 3, 2), Status::kInvalidArgument);
  EXPECT_EQ(life.engine.set_tenant(0, 2, 2.5), Status::kOk);
  EXPECT_EQ(life.host().weight(2), 2.5);
  EXPECT_EQ(life.host().scheduler().queue().weight(2), 2560u);
  EXPECT_EQ(life.host().scheduler().admissions().weight(2), 2560u);
  life.add_worker(0);
  life.submit(1, workflow, range(1, 4));
  life.decide(1);
  EXPECT_EQ(life.host().scheduler().predictor().forecast(0, 1).source, ForecastSource::kDeclared);
}

TEST(EngineSaga, HintsReachThePredictor) {
  const auto forecast_with = [](std::uint32_t output_hint, Time gap_hint, bool waiting) {
    Life life(small_options());
    life.add_worker(0);
    const WorkflowHandle workflow = life.open(0);
    CallInfo info;
    info.prompt_tokens = 100;
    info.hints.output_tokens = output_hint;
    CallHandle call = 0;
    EXPECT_EQ(life.engine.submit_call(1, workflow, info, {}, &call), Status::kOk);
    if (!waiting) return life.host().scheduler().predictor().forecast(0, 1);
    life.decide(1);
    AnswerInfo answer;
    answer.stop = StopReason::kToolUse;
    answer.output_tokens = 300;
    answer.hints.gap = gap_hint;
    EXPECT_EQ(life.engine.finish_call(2, call, answer), Status::kOk);
    return life.host().scheduler().predictor().forecast(0, 2);
  };
  EXPECT_GT(forecast_with(3000, kNotDeclared, false).current_output_tokens,
            2 * forecast_with(0, kNotDeclared, false).current_output_tokens);
  EXPECT_GT(forecast_with(0, 500 * kSecond, true).gap_p50, 5 * forecast_with(0, kNotDeclared, true).gap_p50);
}

TEST(EngineSaga, AnotherPlacementHasNoneOfIt) {
  EngineOptions options = small_options();
  options.placement.kind = PlacementKind::kAffinity;
  Engine engine(options);
  std::uint32_t id = 0;
  EXPECT_EQ(engine.declare_graph(0, AgentGraph{}, &id), Status::kWrongState);
  EXPECT_EQ(engine.set_tenant(0, 0, 1), Status::kWrongState);
  EXPECT_EQ(engine.directive_done(0, 1, Outcome::kApplied), Status::kWrongState);
  EXPECT_EQ(engine.next_wake(), kNotDeclared);
  EXPECT_EQ(engine.scheduling(), nullptr);
  WorkflowHandle workflow = 0;
  EXPECT_EQ(engine.open_workflow(0, WorkflowInfo{1000, 17, 3}, &workflow), Status::kOk) << "recorded, without effect";
}

// ---------------------------------------------------------------------------------------------------------- random events

// Random events against what must hold for any scheduler: each call is placed once a placement, on an active worker, and in the end all of
// them; copies and leases have one outcome; and the journal rebuilds the state.
class RandomRun {
 public:
  RandomRun(std::uint64_t seed, bool leases) : random_(seed), engine_(options_for(seed, leases)) {}

  static EngineOptions options_for(std::uint64_t seed, bool leases) {
    EngineOptions options = small_options();
    options.max_workers = seed % 2 == 0 ? 6 : 3;
    options.max_workflows = 5;
    options.max_calls = 12;
    options.scheduling.max_threads = 10;
    options.scheduling.max_leases = 3;
    options.scheduling.max_directives = static_cast<std::uint32_t>(2 + seed % 7);
    options.scheduling.leases = leases;
    options.scheduling.directive_seconds = 2;
    options.scheduling.link_bytes_per_second = seed % 2 == 0 ? 25'000'000'000 : 1'000'000'000;
    options.scheduling.max_receipts = 64;
    options.journal_bytes = 1 << 16;
    options.seed = seed;
    return options;
  }

  void run(int events) {
    for (int i = 0; i < 2; ++i) add_worker();
    for (int event = 0; event < events; ++event) {
      now_ += random_.below(20) == 0 ? random_.below(100 * kSecond) : random_.below(300'000);
      step();
      if (event % 16 == 0) {
        ASSERT_TRUE(engine_.verify()) << event;
      }
      if (::testing::Test::HasFatalFailure()) return;
      drain();
    }
    settle();
    ASSERT_TRUE(engine_.verify());
    drain();
  }

  const Bytes& journal() const { return journal_; }
  Engine& engine() { return engine_; }
  std::uint64_t copies() const { return copies_; }
  std::uint64_t early() const { return early_; }
  std::uint64_t leases() const { return leases_read_; }
  std::uint64_t rescued() const { return rescued_; }
  std::uint64_t reused() const { return reused_; }

 private:
  struct Call {
    WorkflowHandle workflow = 0;
    std::vector<BlockHash> chain;
    WorkerId worker = kNone;  // kNone: waits
    std::uint32_t lost = 0;   // placements that it lost
  };

  void add_worker() {
    WorkerId worker = kNone;
    const Status status = engine_.add_worker(now_, 60 + static_cast<std::uint32_t>(random_.below(200)), &worker);
    const bool full = workers_.size() == engine_.options().max_workers;
    ASSERT_EQ(status, full ? Status::kFull : Status::kOk) << "of the workers at one time";
    if (full) return;
    ASSERT_EQ(std::find(workers_.begin(), workers_.end(), worker), workers_.end());
    workers_.push_back(worker);
    if (!known_.insert(worker).second) ++reused_;
  }
  template <class Map>
  auto any(Map& map) {
    return std::next(map.begin(), static_cast<std::ptrdiff_t>(random_.below(map.size())));
  }

  void submit() {
    const auto workflow = any(workflows_);
    const std::uint64_t base = (workflow->first & 0xFF) * 100'000 + (workflow->first >> 32) * 1000;
    Call call;
    call.workflow = workflow->first;
    const std::size_t blocks = std::min<std::size_t>(4 + workflow->second, 55);
    for (std::size_t i = 0; i < blocks; ++i) call.chain.push_back(i < 3 ? 1 + i : base + i);
    CallInfo info;
    info.prompt_tokens = static_cast<std::uint32_t>(blocks * 16 + random_.below(16));
    info.agent = static_cast<std::uint32_t>(random_.below(2));
    if (random_.below(3) == 0) info.hints.output_tokens = static_cast<std::uint32_t>(random_.below(500));
    if (random_.below(3) == 0) info.prompt_kind = static_cast<std::uint32_t>(random_.below(3));
    CallHandle handle = 0;
    const Status status = engine_.submit_call(now_, workflow->first, info, call.chain, &handle);
    if (status == Status::kFull) return;
    ASSERT_EQ(status, Status::kOk);
    ASSERT_TRUE(calls_.emplace(handle, call).second);
    workflow->second += static_cast<std::uint32_t>(random_.below(6));
  }

  void finish() {
    const auto at = any(calls_);
    const auto& [handle, call] = *at;
    AnswerInfo answer;
    answer.output_tokens = static_cast<std::uint32_t>(random_.below(200));
    answer.stop = static_cast<StopReason>(random_.below(3));
    answer.tool = static_cast<ToolClass>(random_.below(5));
    if (random_.below(4) == 0) answer.hints.gap = random_.below(60 * kSecond);
    if (random_.below(4) == 0) answer.hints.final_step = static_cast<CallHints::Final>(random_.below(3));
    if (call.worker == kNone) {
      EXPECT_EQ(engine_.finish_call(now_, handle, answer), Status::kWrongState);
      return;
    }
    if (call.lost > 0) {
      answer.placement = call.lost - 1;
      EXPECT_EQ(engine_.finish_call(now_, handle, answer), Status::kWrongState);
    }
    answer.placement = random_.below(2) == 0 ? kNone : call.lost;
    if (random_.below(2) == 0) {
      EXPECT_EQ(engine_.blocks_stored(now_, call.worker, Tier::kGpu, 0, call.chain), Status::kOk);
    }
    ASSERT_EQ(engine_.finish_call(now_, handle, answer), Status::kOk);
    calls_.erase(at);
  }

  void decide() {
    std::vector<Decision> decisions(1 + random_.below(20));
    std::size_t count = 0;
    ASSERT_EQ(engine_.decide(now_, decisions, &count), Status::kOk);
    for (std::size_t i = 0; i < count; ++i) take(decisions[i]);
  }

  void take(const Decision& decision) {
    EXPECT_EQ(decision.decided_at, now_);
    switch (static_cast<DecisionType>(decision.type)) {
      case DecisionType::kPlace: {
        const auto call = calls_.find(decision.call);
        ASSERT_NE(call, calls_.end());
        ASSERT_EQ(call->second.worker, kNone);
        ASSERT_NE(std::find(workers_.begin(), workers_.end(), decision.worker), workers_.end());
        ASSERT_FALSE(drained_.contains(decision.worker));
        EXPECT_EQ(decision.placement, call->second.lost);
        EXPECT_NE(engine_.scheduling()->receipt(decision.call), nullptr);
        call->second.worker = decision.worker;
        break;
      }
      case DecisionType::kCopy:
        ++copies_;
        ASSERT_FALSE(drained_.contains(decision.worker));
        if (drained_.contains(to_directive(decision).source)) ++rescued_;
        outcomes_[to_directive(decision).id] = decision;
        break;
      case DecisionType::kRetain:
        ++leases_read_;
        EXPECT_TRUE(held_.insert(to_directive(decision).id).second);
        outcomes_[to_directive(decision).id] = decision;
        break;
      case DecisionType::kRelease:
        EXPECT_EQ(held_.erase(to_directive(decision).id), 1u) << "of a lease that was read, once";
        outcomes_.erase(to_directive(decision).id);
        break;
      default:
        break;
    }
  }

  void tell_outcome() {
    const auto at = any(outcomes_);
    const Directive directive = to_directive(at->second);
    const bool copy = directive.type == static_cast<std::uint16_t>(DecisionType::kCopy);
    const auto outcome = static_cast<Outcome>(random_.below(copy ? 3 : 4));
    const Status status = engine_.directive_done(now_, directive.id, outcome);
    EXPECT_TRUE(status == Status::kOk || status == Status::kNotFound);
    // A lease that is told of after its release was asked for has still to be released in the outbox.
    if (copy || (outcome != Outcome::kApplied && status == Status::kOk)) outcomes_.erase(at);
    if (!copy || status != Status::kOk) return;
    EXPECT_EQ(engine_.directive_done(now_, directive.id, outcome), Status::kNotFound) << "once";
    const auto call = calls_.find(directive.call);
    if (call == calls_.end() || call->second.worker != kNone) return;
    if (directive.reason != static_cast<std::uint32_t>(CopyReason::kPull)) return;
    EXPECT_GT(engine_.pending_decisions(), 0u) << "the call waited for these blocks";
    ++early_;
  }

  void remove_worker() {
    const std::size_t at = random_.below(workers_.size());
    ASSERT_EQ(engine_.remove_worker(now_, workers_[at]), Status::kOk);
    for (auto& [handle, call] : calls_) {
      if (call.worker != workers_[at]) continue;
      call.worker = kNone;
      ++call.lost;
    }
    drained_.erase(workers_[at]);
    workers_.erase(workers_.begin() + static_cast<std::ptrdiff_t>(at));
    ASSERT_TRUE(engine_.verify()) << "nothing is of a worker that is gone";
    if (random_.below(2) == 0) add_worker();
  }

  void drain_or_resume() {
    if (workers_.empty()) return;
    const WorkerId worker = workers_[random_.below(workers_.size())];
    const bool accepts = drained_.contains(worker);
    ASSERT_EQ(engine_.worker_accepts(now_, worker, accepts), Status::kOk);
    if (accepts) {
      drained_.erase(worker);
      return;
    }
    drained_.insert(worker);
    // No call waits any longer for what is copied there.
    for (auto at = outcomes_.begin(); at != outcomes_.end();) {
      const Directive directive = to_directive(at->second);
      const bool copy_there =
          directive.type == static_cast<std::uint16_t>(DecisionType::kCopy) && directive.worker == worker;
      if (copy_there && random_.below(2) == 0) {
        const Status status = engine_.directive_done(now_, directive.id, Outcome::kApplied);
        EXPECT_TRUE(status == Status::kOk || status == Status::kNotFound);
      }
      at = copy_there ? outcomes_.erase(at) : std::next(at);
    }
  }

  void tell_of_worker() {
    if (workers_.empty()) return;
    const WorkerId worker = workers_[random_.below(workers_.size())];
    std::vector<BlockHash> hashes = range(1, 3);
    if (!calls_.empty()) hashes = any(calls_)->second.chain;
    switch (random_.below(4)) {
      case 0:
        ASSERT_EQ(engine_.worker_trust(now_, worker, static_cast<std::uint32_t>(random_.below(1001))), Status::kOk);
        break;
      case 1:
        ASSERT_EQ(engine_.worker_window(now_, worker, static_cast<std::uint32_t>(random_.below(3))), Status::kOk);
        break;
      case 2:
        ASSERT_EQ(engine_.window_stored(now_, worker, hashes), Status::kOk);
        break;
      default:
        ASSERT_EQ(engine_.window_removed(now_, worker, hashes), Status::kOk);
    }
  }

  void step() {
    if (random_.below(25) == 0) return drain_or_resume();
    if (random_.below(25) == 0) return tell_of_worker();
    const std::uint64_t kind = random_.below(100);
    if (kind < 8) {
      WorkflowHandle workflow = 0;
      const WorkflowInfo info{static_cast<std::uint32_t>(random_.below(3)), kNone,
                              static_cast<std::uint32_t>(random_.below(3))};
      const Status status = engine_.open_workflow(now_, info, &workflow);
      if (status == Status::kOk) workflows_[workflow] = 0;
    } else if (kind < 35) {
      if (!workflows_.empty()) submit();
    } else if (kind < 55) {
      decide();
    } else if (kind < 75) {
      if (!calls_.empty()) finish();
    } else if (kind < 78) {
      if (workflows_.empty()) return;
      const auto at = any(workflows_);
      if (engine_.close_workflow(now_, at->first) == Status::kOk) workflows_.erase(at);
    } else if (kind < 82) {
      if (calls_.empty()) return;
      const auto at = any(calls_);
      ASSERT_EQ(engine_.cancel_call(now_, at->first), Status::kOk);
      calls_.erase(at);
    } else if (kind < 90) {
      if (!outcomes_.empty()) tell_outcome();
    } else if (kind < 92) {
      if (workers_.size() < 2 || random_.below(3) == 0) add_worker();
    } else if (kind < 93) {
      if (workers_.size() > 1 && random_.below(3) == 0) remove_worker();
    } else if (kind < 95) {
      if (workers_.empty()) return;
      ASSERT_EQ(engine_.blocks_cleared(now_, workers_[random_.below(workers_.size())]), Status::kOk);
    } else if (kind < 96) {
      ASSERT_EQ(engine_.set_tenant(now_, static_cast<std::uint32_t>(random_.below(3)), 0.5 + random_.uniform()),
                Status::kOk);
    } else if (kind < 97) {
      const WorkerLoad load{static_cast<std::uint32_t>(random_.below(50)), static_cast<std::uint32_t>(random_.below(5)),
                            kNone};
      if (workers_.empty()) return;
      ASSERT_EQ(engine_.worker_load(now_, workers_[0], load), Status::kOk);
    } else {
      ASSERT_EQ(engine_.tick(now_), Status::kOk);
    }
  }

  // With time, room and ticks every call is placed, and ends.
  void settle() {
    if (workers_.empty()) add_worker();
    drained_.erase(workers_[0]);
    ASSERT_EQ(engine_.worker_accepts(now_, workers_[0], true), Status::kOk);
    for (int round = 0; round < 1000 && !calls_.empty(); ++round) {
      const Time next = engine_.next_wake();
      now_ = next == kNotDeclared || next < now_ ? now_ + kSecond : next;
      ASSERT_EQ(engine_.tick(now_), Status::kOk);
      decide();
      drain();
      for (auto at = calls_.begin(); at != calls_.end();) {
        if (at->second.worker == kNone) {
          ++at;
          continue;
        }
        ASSERT_EQ(engine_.finish_call(now_, at->first, StopReason::kEndTurn, ToolClass::kNone, 5), Status::kOk);
        at = calls_.erase(at);
        drain();
      }
    }
    ASSERT_TRUE(calls_.empty()) << calls_.size() << " calls are never placed";
    for (const auto& [workflow, blocks] : workflows_) {
      ASSERT_EQ(engine_.close_workflow(now_, workflow), Status::kOk);
      drain();
    }
    EXPECT_EQ(engine_.scheduling()->stats().threads, 0u);
  }

  void drain() {
    std::uint8_t bytes[4096];
    for (std::size_t count = 1; count != 0;) {
      count = engine_.journal().drain(bytes, sizeof bytes);
      journal_.insert(journal_.end(), bytes, bytes + count);
    }
  }

  Random random_;
  Engine engine_;
  Time now_ = 0;
  std::vector<WorkerId> workers_;
  std::set<WorkerId> drained_;
  std::set<WorkerId> known_;                           // ids that were given out
  std::map<WorkflowHandle, std::uint32_t> workflows_;  // blocks of its prompts
  std::map<CallHandle, Call> calls_;
  std::map<std::uint64_t, Decision> outcomes_;  // copies and leases that were read
  std::set<std::uint64_t> held_;                // leases that were read, and not released since
  Bytes journal_;
  std::uint64_t copies_ = 0, early_ = 0, leases_read_ = 0, rescued_ = 0, reused_ = 0;
};

TEST(EngineSaga, RandomEvents) {
  std::uint64_t copies = 0, early = 0, leases = 0, rescued = 0, reused = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    RandomRun run(seed, seed % 3 == 0);
    run.run(1000);
    if (HasFatalFailure()) return;
    EngineOptions options;
    ASSERT_EQ(read_journal_options(run.journal(), &options), Status::kOk);
    Engine rebuilt(options);
    const ReplayResult replayed = replay_journal(run.journal(), rebuilt);
    ASSERT_EQ(replayed.status, Status::kOk) << replayed.events;
    EXPECT_EQ(replayed.good_bytes, run.journal().size());
    EXPECT_EQ(rebuilt.digest(), run.engine().digest());
    EXPECT_TRUE(rebuilt.verify());
    copies += run.copies();
    early += run.early();
    leases += run.leases();
    rescued += run.rescued();
    reused += run.reused();
  }
  EXPECT_GT(copies, 100u);
  EXPECT_GT(early, 5u);
  EXPECT_GT(leases, 100u);
  EXPECT_GT(rescued, 10u) << "copies away from drained workers";
  EXPECT_GT(reused, 40u) << "ids of removed workers";
}

}  // namespace
}  // namespace saga
