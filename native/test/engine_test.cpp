// Engine and journal: literal lives of workflows, every refusal, a model over random events, replay and damaged journals.
#include "../core/engine/engine.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <ostream>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "placement_model.hpp"

namespace saga {

bool operator==(const Decision& a, const Decision& b) { return std::memcmp(&a, &b, sizeof a) == 0; }
void PrintTo(const Decision& d, std::ostream* out) {
  *out << "{placement " << d.placement << " worker " << d.worker << " call " << d.call << " reason " << d.reason
       << " blocks " << d.prompt_blocks << " matched " << d.matched_blocks[0] << ' ' << d.matched_blocks[1] << ' '
       << d.matched_blocks[2] << " longest " << d.longest_match << " by " << d.longest_match_worker << " open "
       << d.open_calls << " in use " << d.blocks_in_use << " active " << d.active_workers << " at " << d.decided_at
       << '}';
}
void PrintTo(Status status, std::ostream* out) { *out << "status " << static_cast<int>(status); }

namespace {

using test::place_by_model;
using test::WorkerView;
using Hashes = std::vector<BlockHash>;
using Bytes = std::vector<std::uint8_t>;

EngineOptions small_options() {
  EngineOptions options;
  options.max_workers = 4;
  options.max_workflows = 3;
  options.max_calls = 6;
  options.max_blocks = 1000;
  options.max_chain_blocks = 700;
  options.max_open_blocks = 1024;
  options.block_tokens = 4;
  options.seed = 1;
  return options;
}

Hashes range(BlockHash first, std::size_t count) {
  Hashes hashes(count);
  std::iota(hashes.begin(), hashes.end(), first);
  return hashes;
}

// An engine whose events must succeed.
struct Driver {
  explicit Driver(const EngineOptions& options) : engine(options) {}

  WorkerId add_worker(Time now, std::uint32_t capacity = 100) {
    WorkerId worker = 77;
    EXPECT_EQ(engine.add_worker(now, capacity, &worker), Status::kOk);
    return worker;
  }
  WorkflowHandle open_workflow(Time now, std::uint32_t tenant = 0) {
    WorkflowHandle workflow = 77;
    EXPECT_EQ(engine.open_workflow(now, tenant, &workflow), Status::kOk);
    return workflow;
  }
  CallHandle submit(Time now, WorkflowHandle workflow, const Hashes& chain, std::uint32_t more_tokens = 1) {
    CallHandle call = 77;
    const auto tokens = static_cast<std::uint32_t>(chain.size()) * engine.options().block_tokens + more_tokens;
    EXPECT_EQ(engine.submit_call(now, workflow, tokens, chain, &call), Status::kOk);
    return call;
  }
  void finish(Time now, CallHandle call) {
    EXPECT_EQ(engine.finish_call(now, call, StopReason::kToolUse, ToolClass::kWebApi, 7), Status::kOk);
  }
  std::vector<Decision> decide(Time now, std::size_t room = 100) {
    std::vector<Decision> decisions(room);
    std::size_t count = 99;
    EXPECT_EQ(engine.decide(now, decisions, &count), Status::kOk);
    decisions.resize(count);
    return decisions;
  }
  // (call, worker) of each decision.
  std::vector<std::pair<CallHandle, WorkerId>> placements(Time now, std::size_t room = 100) {
    std::vector<std::pair<CallHandle, WorkerId>> placed;
    for (const Decision& decision : decide(now, room)) placed.emplace_back(decision.call, decision.worker);
    return placed;
  }
  WorkerState worker(WorkerId id) const {
    WorkerState state;
    EXPECT_TRUE(engine.worker_state(id, &state));
    return state;
  }
  Bytes drain() {
    Bytes bytes(engine.journal().pending());
    EXPECT_EQ(engine.journal().drain(bytes.data(), bytes.size()), bytes.size());
    return bytes;
  }

  Engine engine;
};

constexpr std::uint64_t kGeneration = std::uint64_t{1} << 32;

// ---- literal lives ----------------------------------------------------------------------------------------------------------

TEST(Engine, LifeOfAWorkflow) {
  Driver life(small_options());
  EXPECT_EQ(life.add_worker(10, 500), 0u);
  EXPECT_EQ(life.add_worker(11, 600), 1u);
  const WorkflowHandle workflow = life.open_workflow(20, 3);
  EXPECT_EQ(workflow, 0u);

  // Nothing is held anywhere: the fewest blocks in use decide, and all are equal.
  EXPECT_EQ(life.submit(30, workflow, {11, 12, 13}, 2), 0u);  // 14 tokens: 3 full blocks and a part
  EXPECT_EQ(life.engine.stats().waiting_calls, 1u);
  EXPECT_EQ(life.decide(31), (std::vector<Decision>{{.type = 1,
                                                     .worker = 0,
                                                     .call = 0,
                                                     .reason = 2,
                                                     .prompt_blocks = 3,
                                                     .matched_blocks = {0, 0, 0},
                                                     .longest_match = 0,
                                                     .longest_match_worker = kNone,
                                                     .open_calls = 0,
                                                     .blocks_in_use = 0,
                                                     .active_workers = 2,
                                                     .decided_at = 31}}));
  EXPECT_EQ(life.worker(0).open_calls, 1u);
  EXPECT_EQ(life.worker(0).estimated_blocks, 4u);
  EXPECT_EQ(life.worker(0).capacity_blocks, 500u);
  EXPECT_EQ(life.worker(1).capacity_blocks, 600u);

  EXPECT_EQ(life.engine.first_token(40, 0), Status::kOk);
  // The worker's events: three blocks in GPU memory, the fourth only in host memory, the fifth on disk.
  EXPECT_EQ(life.engine.blocks_stored(41, 0, Tier::kGpu, 0, Hashes{11, 12, 13}), Status::kOk);
  EXPECT_EQ(life.engine.blocks_stored(42, 0, Tier::kHost, 13, Hashes{14}), Status::kOk);
  EXPECT_EQ(life.engine.blocks_stored(43, 0, Tier::kDisk, 14, Hashes{15}), Status::kOk);
  EXPECT_EQ(life.engine.blocks_stored(43, 1, Tier::kGpu, 0, Hashes{11, 12}), Status::kOk);
  life.finish(50, 0);
  EXPECT_EQ(life.worker(0).open_calls, 0u);
  EXPECT_EQ(life.worker(0).estimated_blocks, 0u);
  EXPECT_EQ(life.engine.tool_started(51, workflow, ToolClass::kCodeExecution), Status::kOk);
  EXPECT_EQ(life.engine.tool_finished(90, workflow), Status::kOk);

  // The next step goes where its context lies. Its slot is used again, in its second generation.
  EXPECT_EQ(life.submit(91, workflow, {11, 12, 13, 14, 15, 16}), kGeneration);
  EXPECT_EQ(life.decide(91), (std::vector<Decision>{{.type = 1,
                                                     .worker = 0,
                                                     .call = kGeneration,
                                                     .reason = 1,
                                                     .prompt_blocks = 6,
                                                     .matched_blocks = {3, 4, 5},
                                                     .longest_match = 3,
                                                     .longest_match_worker = 0,
                                                     .open_calls = 0,
                                                     .blocks_in_use = 0,
                                                     .active_workers = 2,
                                                     .decided_at = 91}}));
  // A stranger avoids the worker in use: nobody holds its prompt.
  EXPECT_EQ(life.submit(92, workflow, {91, 92}, 0), 1u);
  EXPECT_EQ(life.decide(93), (std::vector<Decision>{{.type = 1,
                                                     .worker = 1,
                                                     .call = 1,
                                                     .reason = 2,
                                                     .prompt_blocks = 2,
                                                     .matched_blocks = {0, 0, 0},
                                                     .longest_match = 0,
                                                     .longest_match_worker = kNone,
                                                     .open_calls = 0,
                                                     .blocks_in_use = 0,
                                                     .active_workers = 2,
                                                     .decided_at = 93}}));
  EXPECT_EQ(life.worker(1).estimated_blocks, 2u) << "8 tokens fill 2 blocks and no part";

  const EngineStats stats = life.engine.stats();
  EXPECT_EQ(stats.workers, 2u);
  EXPECT_EQ(stats.workflows, 1u);
  EXPECT_EQ(stats.open_calls, 2u);
  EXPECT_EQ(stats.waiting_calls, 0u);
  EXPECT_EQ(stats.placed_calls, 3u);
  EXPECT_EQ(stats.finished_calls, 1u);
  EXPECT_EQ(stats.replaced_calls, 0u);
  EXPECT_EQ(stats.prompt_blocks, 11u);
  EXPECT_EQ(stats.matched_blocks, 3u);
  EXPECT_EQ(stats.holder_blocks, 7u);
  EXPECT_EQ(stats.journal_bytes, 0u);

  life.finish(100, kGeneration);
  life.finish(101, 1);
  EXPECT_EQ(life.engine.close_workflow(102, workflow), Status::kOk);
  EXPECT_EQ(life.engine.stats().workflows, 0u);
  EXPECT_EQ(life.engine.now(), 102u);
  EXPECT_TRUE(life.engine.verify());
}

TEST(Engine, BlocksThatAreNotHashedCountAsPartOfThePrompt) {
  // 1 block of 20 is known: 5 % of the prompt, although all of the chain that was given.
  Driver life(small_options());
  life.add_worker(0);
  life.add_worker(0);
  life.open_workflow(0);
  ASSERT_EQ(life.engine.blocks_stored(0, 1, Tier::kGpu, 0, Hashes{5}), Status::kOk);
  life.submit(0, 0, {5}, 76);
  const std::vector<Decision> decisions = life.decide(0);
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].worker, 0u);
  EXPECT_EQ(decisions[0].prompt_blocks, 20u);
  EXPECT_EQ(decisions[0].longest_match, 1u);
  EXPECT_EQ(decisions[0].longest_match_worker, 1u);
  EXPECT_EQ(decisions[0].reason, static_cast<std::uint32_t>(PlacementReason::kFewestBlocks));
}

TEST(Engine, OneDecideSeesItsOwnPlacements) {
  EngineOptions options = small_options();
  options.max_open_blocks = 6 * 256;
  Driver life(options);
  for (int worker = 0; worker < 3; ++worker) life.add_worker(0);
  life.open_workflow(0);
  for (BlockHash chain = 1; chain <= 6; ++chain) life.submit(1, 0, Hashes(chain, chain), 0);  // 1, 2, .. 6 blocks
  // Always the worker with the fewest blocks in use: 0:1, 1:2, 2:3, then 0:1+4, 1:2+5, 2:3+6.
  EXPECT_EQ(life.placements(2, 2), (std::vector<std::pair<CallHandle, WorkerId>>{{0, 0}, {1, 1}})) << "room for two";
  EXPECT_EQ(life.placements(2, 0).size(), 0u);
  EXPECT_EQ(life.placements(3), (std::vector<std::pair<CallHandle, WorkerId>>{{2, 2}, {3, 0}, {4, 1}, {5, 2}}));
  EXPECT_EQ(life.placements(4).size(), 0u);
  EXPECT_EQ(life.worker(0).estimated_blocks, 5u);
  EXPECT_EQ(life.worker(1).estimated_blocks, 7u);
  EXPECT_EQ(life.worker(2).estimated_blocks, 9u);
  EXPECT_TRUE(life.engine.verify());
}

TEST(Engine, ImbalanceOverridesTheMatch) {
  EngineOptions options = small_options();
  options.placement.imbalance_calls = 1;
  Driver life(options);
  life.add_worker(0);
  life.add_worker(0);
  life.open_workflow(0);
  ASSERT_EQ(life.engine.blocks_stored(0, 0, Tier::kGpu, 0, Hashes{1, 2}), Status::kOk);
  for (int call = 0; call < 3; ++call) life.submit(0, 0, {1, 2});
  const std::vector<Decision> decisions = life.decide(5);
  ASSERT_EQ(decisions.size(), 3u);
  EXPECT_EQ(decisions[1].worker, 0u);
  EXPECT_EQ(decisions[1].reason, static_cast<std::uint32_t>(PlacementReason::kLongestMatch));
  EXPECT_EQ(decisions[1].open_calls, 1u);
  EXPECT_EQ(decisions[1].blocks_in_use, 3u);
  // Two against none: the emptier of the two, which holds nothing; the receipt tells what was given up.
  EXPECT_EQ(decisions[2].worker, 1u);
  EXPECT_EQ(decisions[2].reason, static_cast<std::uint32_t>(PlacementReason::kImbalance));
  EXPECT_EQ(decisions[2].matched_blocks[0], 0u);
  EXPECT_EQ(decisions[2].longest_match, 2u);
  EXPECT_EQ(decisions[2].longest_match_worker, 0u);
}

TEST(Engine, ReportedLoadReplacesTheEstimateOfCallsPlacedBefore) {
  EngineOptions options = small_options();
  options.max_open_blocks = 4096;
  Driver life(options);
  life.add_worker(0);
  life.add_worker(0);
  life.open_workflow(0);
  ASSERT_EQ(life.engine.worker_load(1, 0, 50), Status::kOk);
  EXPECT_EQ(life.worker(0).reports, 1u);
  EXPECT_EQ(life.worker(1).reports, 0u);
  life.submit(2, 0, range(1, 60), 0);
  life.submit(2, 0, range(101, 10), 0);
  const std::vector<Decision> decisions = life.decide(3);
  ASSERT_EQ(decisions.size(), 2u);
  EXPECT_EQ(decisions[0].worker, 1u) << "50 reported blocks against none";
  EXPECT_EQ(decisions[1].worker, 0u) << "50 against 60 estimated";
  EXPECT_EQ(decisions[1].blocks_in_use, 50u);
  ASSERT_EQ(life.engine.worker_load(4, 0, 70), Status::kOk);
  ASSERT_EQ(life.engine.worker_load(5, 1, 0), Status::kOk);
  life.submit(6, 0, range(201, 1), 0);
  const Decision last = life.decide(7).at(0);
  EXPECT_EQ(last.worker, 1u);
  EXPECT_EQ(last.blocks_in_use, 0u) << "what it reports counts, not its call of 60 blocks";
  EXPECT_EQ(life.worker(1).estimated_blocks, 1u) << "only what was placed since the report";
  EXPECT_EQ(life.worker(0).blocks_in_use(), 70u);
  EXPECT_EQ(life.worker(1).blocks_in_use(), 1u);
  life.submit(8, 0, range(301, 80), 0);
  life.submit(8, 0, range(401, 1), 0);
  const std::vector<Decision> spread = life.decide(9);
  ASSERT_EQ(spread.size(), 2u);
  EXPECT_EQ(spread[0].worker, 1u) << "1 block in use against 70";
  EXPECT_EQ(spread[1].worker, 0u) << "70 against 81: calls placed since the report count";
  EXPECT_EQ(life.worker(1).blocks_in_use(), 81u);
  EXPECT_EQ(life.worker(0).blocks_in_use(), 71u);
  life.finish(10, decisions[0].call);
  EXPECT_EQ(life.worker(1).blocks_in_use(), 81u) << "a call that the report had counted";
  life.finish(10, last.call);
  EXPECT_EQ(life.worker(1).blocks_in_use(), 80u) << "a call placed since the report";
  EXPECT_TRUE(life.engine.verify());
}

TEST(Engine, ACancelledCallEndsInAnyState) {
  Driver life(small_options());
  life.open_workflow(0);
  const CallHandle waiting = life.submit(1, 0, {1});
  ASSERT_EQ(life.engine.cancel_call(2, waiting), Status::kOk);
  EXPECT_EQ(life.engine.cancel_call(2, waiting), Status::kNotFound);
  life.add_worker(3);
  const CallHandle placed = life.submit(3, 0, {1});
  const CallHandle running = life.submit(3, 0, {2});
  const CallHandle kept = life.submit(3, 0, {3});
  EXPECT_EQ(life.placements(4).size(), 3u) << "the cancelled one is not among them";
  ASSERT_EQ(life.engine.first_token(5, running), Status::kOk);
  ASSERT_EQ(life.engine.cancel_call(6, placed), Status::kOk);
  ASSERT_EQ(life.engine.cancel_call(6, running), Status::kOk);
  EXPECT_EQ(life.worker(0).open_calls, 1u);
  EXPECT_EQ(life.engine.stats().cancelled_calls, 3u);
  EXPECT_EQ(life.engine.stats().finished_calls, 0u);
  EXPECT_TRUE(life.engine.verify());
  life.finish(7, kept);
  EXPECT_EQ(life.engine.close_workflow(8, 0), Status::kOk);
}

TEST(Engine, CallsWaitWhileNoWorkerIsActive) {
  Driver life(small_options());
  life.open_workflow(0);
  const CallHandle call = life.submit(1, 0, {1});
  EXPECT_EQ(life.placements(2).size(), 0u);
  EXPECT_EQ(life.engine.stats().waiting_calls, 1u);
  life.add_worker(3);
  EXPECT_EQ(life.placements(4), (std::vector<std::pair<CallHandle, WorkerId>>{{call, 0}}));
}

TEST(Engine, CallsOfALostWorkerArePlacedAgainInTheirOrder) {
  EngineOptions options = small_options();
  options.placement.kind = PlacementKind::kRoundRobin;
  Driver life(options);
  life.add_worker(0);
  life.open_workflow(0);
  using Placed = std::vector<std::pair<CallHandle, WorkerId>>;
  const CallHandle a = life.submit(1, 0, {1});
  const CallHandle b = life.submit(1, 0, {2});
  const CallHandle c = life.submit(1, 0, {3});
  EXPECT_EQ(life.placements(1), (Placed{{a, 0}, {b, 0}, {c, 0}}));
  ASSERT_EQ(life.engine.first_token(2, b), Status::kOk);
  life.finish(2, a);
  const CallHandle d = life.submit(3, 0, {4});  // in the slot of a: order of slots is not order of submission
  EXPECT_EQ(d, kGeneration);
  EXPECT_EQ(life.placements(3), (Placed{{d, 0}}));
  const CallHandle e = life.submit(4, 0, {5});
  ASSERT_EQ(life.engine.blocks_stored(4, 0, Tier::kGpu, 0, Hashes{1, 2, 3}), Status::kOk);

  ASSERT_EQ(life.engine.remove_worker(5, 0), Status::kOk);
  EXPECT_TRUE(life.engine.verify());
  EXPECT_EQ(life.engine.stats().waiting_calls, 4u);
  EXPECT_EQ(life.engine.stats().replaced_calls, 3u);
  EXPECT_EQ(life.engine.stats().workers, 0u);
  EXPECT_EQ(life.engine.stats().holder_blocks, 0u);
  EXPECT_EQ(life.worker(0).open_calls, 0u);
  EXPECT_EQ(life.worker(0).estimated_blocks, 0u);
  EXPECT_EQ(life.worker(0).active, 0u);
  EXPECT_EQ(life.engine.first_token(5, c), Status::kWrongState) << "it waits again";
  EXPECT_EQ(life.engine.finish_call(5, b, StopReason::kEndTurn, ToolClass::kNone, 1), Status::kWrongState);

  EXPECT_EQ(life.add_worker(6), 1u) << "an id that nobody had goes first";
  EXPECT_EQ(life.placements(7), (Placed{{b, 1}, {c, 1}, {d, 1}, {e, 1}}));
  EXPECT_EQ(life.engine.first_token(8, b), Status::kOk) << "placed, not running any more";
  EXPECT_TRUE(life.engine.verify());
}

TEST(Engine, CallsOfTwoLostWorkersAreMerged) {
  EngineOptions options = small_options();
  options.max_open_blocks = 6 * 256;
  options.placement.kind = PlacementKind::kRoundRobin;
  Driver life(options);
  for (int worker = 0; worker < 3; ++worker) life.add_worker(0);
  life.open_workflow(0);
  for (BlockHash hash = 1; hash <= 5; ++hash) life.submit(1, 0, {hash});
  using Placed = std::vector<std::pair<CallHandle, WorkerId>>;
  EXPECT_EQ(life.placements(1), (Placed{{0, 0}, {1, 1}, {2, 2}, {3, 0}, {4, 1}}));
  life.submit(2, 0, {6});
  ASSERT_EQ(life.engine.remove_worker(3, 1), Status::kOk);  // 1, 4 before 5
  EXPECT_TRUE(life.engine.verify());
  ASSERT_EQ(life.engine.remove_worker(4, 0), Status::kOk);  // 0 before 1, 3 between 1 and 4
  EXPECT_TRUE(life.engine.verify());
  EXPECT_EQ(life.placements(5), (Placed{{0, 2}, {1, 2}, {3, 2}, {4, 2}, {5, 2}}));
  EXPECT_EQ(life.worker(2).open_calls, 6u);
}

TEST(Engine, ChainsOfSeveralChunksSurviveTheLossOfAWorker) {
  Driver life(small_options());
  life.add_worker(0);
  life.add_worker(0);
  life.open_workflow(0);
  const Hashes chain = range(1000, 600);
  const CallHandle call = life.submit(0, 0, chain);
  EXPECT_EQ(life.placements(1), (std::vector<std::pair<CallHandle, WorkerId>>{{call, 0}}));
  ASSERT_EQ(life.engine.blocks_stored(2, 1, Tier::kGpu, 0, chain), Status::kOk);
  ASSERT_EQ(life.engine.blocks_stored(2, 0, Tier::kGpu, 0, std::span(chain).first(599)), Status::kOk);
  life.add_worker(2);
  ASSERT_EQ(life.engine.remove_worker(3, 0), Status::kOk);
  const Decision decision = life.decide(4).at(0);
  EXPECT_EQ(decision.worker, 1u);
  EXPECT_EQ(decision.matched_blocks[0], 600u) << "block for block what was submitted";
  for (const std::size_t length : {255, 256, 257, 512}) {
    life.finish(5, length == 255 ? call : kGeneration * (length == 256 ? 1 : length == 257 ? 2 : 3));
    life.submit(5, 0, range(1000, length));
    EXPECT_EQ(life.decide(5).at(0).matched_blocks[0], length);
    EXPECT_TRUE(life.engine.verify());
  }
}

TEST(Engine, OpenPromptsAreBounded) {
  Driver life(small_options());  // 1,024 blocks: four chunks of 256
  life.open_workflow(0);
  life.add_worker(0);
  const CallHandle large = life.submit(0, 0, range(1, 600));  // three chunks
  CallHandle call = 77;
  const std::uint64_t before = life.engine.digest();
  EXPECT_EQ(life.engine.submit_call(0, 0, 1028, range(1, 257), &call), Status::kFull) << "two chunks";
  EXPECT_EQ(life.engine.digest(), before);
  EXPECT_EQ(call, 77u);
  life.submit(0, 0, range(1, 256));
  EXPECT_EQ(life.engine.submit_call(0, 0, 4, range(1, 1), &call), Status::kFull);
  life.submit(0, 0, {}, 3);  // without a full block: takes no room
  life.decide(1);
  life.finish(1, large);
  EXPECT_TRUE(life.engine.verify());
  life.submit(2, 0, range(1, 257));
  life.submit(2, 0, range(1, 1));
  EXPECT_EQ(life.engine.submit_call(2, 0, 4, range(1, 1), &call), Status::kFull);
  EXPECT_TRUE(life.engine.verify());
}

TEST(Engine, StaleIdsAreFound) {
  Driver life(small_options());
  life.add_worker(0);
  const WorkflowHandle first = life.open_workflow(0);
  const CallHandle call = life.submit(0, first, {1});
  life.decide(0);
  life.finish(0, call);
  EXPECT_EQ(life.engine.close_workflow(0, first), Status::kOk);
  const WorkflowHandle second = life.open_workflow(0);
  EXPECT_EQ(second, kGeneration) << "the same slot";
  const CallHandle next = life.submit(0, second, {1});
  EXPECT_EQ(next, kGeneration);
  life.decide(0);
  const std::uint64_t before = life.engine.digest();
  CallHandle none = 77;
  for (const WorkflowHandle stale : {first, second + kGeneration, WorkflowHandle{1}, WorkflowHandle{3},
                                     ~WorkflowHandle{0}, second | (kGeneration << 20)}) {
    EXPECT_EQ(life.engine.close_workflow(0, stale), Status::kNotFound);
    EXPECT_EQ(life.engine.submit_call(0, stale, 4, Hashes{1}, &none), Status::kNotFound);
    EXPECT_EQ(life.engine.tool_started(0, stale, ToolClass::kNone), Status::kNotFound);
    EXPECT_EQ(life.engine.tool_finished(0, stale), Status::kNotFound);
  }
  for (const CallHandle stale :
       {call, next + kGeneration, CallHandle{1}, CallHandle{6}, ~CallHandle{0}, next | (kGeneration << 20)}) {
    EXPECT_EQ(life.engine.first_token(0, stale), Status::kNotFound);
    EXPECT_EQ(life.engine.finish_call(0, stale, StopReason::kUnknown, ToolClass::kNone, 0), Status::kNotFound);
  }
  EXPECT_EQ(none, 77u);
  EXPECT_EQ(life.engine.digest(), before);
}

// ---- refusals ---------------------------------------------------------------------------------------------------------------

// Every kind of event, each with arguments that fit the state in which `Refusals` is.
struct NamedEvent {
  std::string name;
  std::function<Status(Engine&, Time)> apply;
};

std::vector<NamedEvent> all_events() {
  static WorkerId worker;
  static std::uint64_t id;
  static std::size_t count;
  static std::vector<Decision> decisions(8);
  return {
      {"add_worker", [](Engine& e, Time t) { return e.add_worker(t, 1, &worker); }},
      {"remove_worker", [](Engine& e, Time t) { return e.remove_worker(t, 0); }},
      {"blocks_stored", [](Engine& e, Time t) { return e.blocks_stored(t, 0, Tier::kGpu, 0, Hashes{1}); }},
      {"blocks_removed", [](Engine& e, Time t) { return e.blocks_removed(t, 0, Tier::kGpu, Hashes{1}); }},
      {"blocks_cleared", [](Engine& e, Time t) { return e.blocks_cleared(t, 0); }},
      {"worker_load", [](Engine& e, Time t) { return e.worker_load(t, 0, 1); }},
      {"open_workflow", [](Engine& e, Time t) { return e.open_workflow(t, 0, &id); }},
      {"close_workflow", [](Engine& e, Time t) { return e.close_workflow(t, 1); }},
      {"submit_call", [](Engine& e, Time t) { return e.submit_call(t, 0, 4, Hashes{1}, &id); }},
      {"first_token", [](Engine& e, Time t) { return e.first_token(t, 0); }},
      {"finish_call", [](Engine& e, Time t) { return e.finish_call(t, 0, StopReason::kUnknown, ToolClass::kNone, 0); }},
      {"tool_started", [](Engine& e, Time t) { return e.tool_started(t, 0, ToolClass::kWebApi); }},
      {"tool_finished", [](Engine& e, Time t) { return e.tool_finished(t, 1); }},
      {"tick", [](Engine& e, Time t) { return e.tick(t); }},
      {"decide", [](Engine& e, Time t) { return e.decide(t, decisions, &count); }},
  };
}

// Worker 0; workflow 0 with call 0 placed and call 1 waiting; workflow 1, whose tool runs. Time 100.
std::unique_ptr<Driver> state_for_all_events(std::uint64_t journal_bytes) {
  EngineOptions options = small_options();
  options.journal_bytes = journal_bytes;
  auto life = std::make_unique<Driver>(options);
  life->add_worker(100);
  life->open_workflow(100);
  life->open_workflow(100);
  life->submit(100, 0, {1});
  life->decide(100);
  life->submit(100, 0, {2});
  EXPECT_EQ(life->engine.tool_started(100, 1, ToolClass::kWebApi), Status::kOk);
  return life;
}

TEST(EngineRefusals, EveryEventSucceedsWhereItFits) {
  for (const NamedEvent& event : all_events()) {
    const auto life = state_for_all_events(4096);
    const std::uint64_t before = life->engine.digest();
    EXPECT_EQ(event.apply(life->engine, 101), Status::kOk) << event.name;
    EXPECT_EQ(life->engine.now(), 101u) << event.name;
    EXPECT_NE(life->engine.digest(), before) << event.name;
    EXPECT_TRUE(life->engine.verify()) << event.name;
  }
}

TEST(EngineRefusals, ReversedTime) {
  const auto life = state_for_all_events(4096);
  const std::uint64_t before = life->engine.digest();
  const std::size_t bytes = life->engine.journal().pending();
  for (const NamedEvent& event : all_events()) {
    EXPECT_EQ(event.apply(life->engine, 99), Status::kTimeReversed) << event.name;
    EXPECT_EQ(event.apply(life->engine, 0), Status::kTimeReversed) << event.name;
  }
  EXPECT_EQ(life->engine.digest(), before);
  EXPECT_EQ(life->engine.journal().pending(), bytes);
}

TEST(EngineRefusals, FullJournal) {
  const auto life = state_for_all_events(4096);
  while (life->engine.tick(100) == Status::kOk) {
  }
  EXPECT_LT(4096 - life->engine.journal().pending(), 21u) << "no room for the smallest record";
  const std::uint64_t before = life->engine.digest();
  for (const NamedEvent& event : all_events()) {
    EXPECT_EQ(event.apply(life->engine, 100), Status::kJournalFull) << event.name;
  }
  EXPECT_EQ(life->engine.digest(), before);
  std::uint8_t bytes[200];
  ASSERT_EQ(life->engine.journal().drain(bytes, 200), 200u);
  EXPECT_EQ(life->engine.tick(100), Status::kOk) << "drained bytes are room at once";
}

TEST(EngineRefusals, TheJournalHasRoomForLiteralNumbers) {
  EngineOptions options = small_options();
  options.journal_bytes = 4096;
  Driver life(options);
  EXPECT_EQ(life.engine.journal().pending(), 77u);  // 8 + 4 + 4, options of 53, 8
  for (int record = 0; record < 191; ++record) ASSERT_EQ(life.engine.tick(0), Status::kOk);  // 21 each
  EXPECT_EQ(life.engine.journal().pending(), 4088u);
  EXPECT_EQ(life.engine.tick(0), Status::kJournalFull);
  EXPECT_EQ(life.engine.stats().journal_bytes, 4088u);
}

TEST(EngineRefusals, WhatTheEmptyJournalCannotTakeIsFull) {
  EngineOptions options = small_options();
  options.journal_bytes = 4096;
  Driver life(options);
  life.add_worker(0);
  life.open_workflow(0);
  life.drain();
  const std::uint64_t before = life.engine.digest();
  CallHandle call = 77;
  // 4,096 less 21 of every record, less 17 or 16 of these: 507 hashes.
  EXPECT_EQ(life.engine.blocks_stored(0, 0, Tier::kGpu, 0, range(1, 508)), Status::kFull);
  EXPECT_EQ(life.engine.blocks_removed(0, 0, Tier::kGpu, range(1, 508)), Status::kFull);
  EXPECT_EQ(life.engine.submit_call(0, 0, 4 * 508, range(1, 508), &call), Status::kFull);
  EXPECT_EQ(life.engine.digest(), before);
  EXPECT_EQ(life.engine.journal().pending(), 0u);
  EXPECT_EQ(life.engine.blocks_stored(0, 0, Tier::kGpu, 0, range(1, 507)), Status::kOk);
  EXPECT_EQ(life.engine.blocks_removed(0, 0, Tier::kGpu, range(1, 507)), Status::kJournalFull);
  life.drain();
  EXPECT_EQ(life.engine.blocks_removed(0, 0, Tier::kGpu, range(1, 507)), Status::kOk);
  life.drain();
  EXPECT_EQ(life.engine.submit_call(0, 0, 4 * 507, range(1, 507), &call), Status::kOk);
  EXPECT_TRUE(life.engine.verify());
}

TEST(EngineRefusals, ADecideNeverNeedsMoreThanTheEmptyJournal) {
  EngineOptions options = small_options();
  options.journal_bytes = 4096;
  options.max_calls = 100;
  options.max_open_blocks = 256 * 100;
  Driver life(options);
  life.open_workflow(0);
  Bytes journal;
  for (BlockHash call = 0; call < 100; ++call) {
    life.submit(0, 0, {call + 1});
    for (const std::uint8_t byte : life.drain()) journal.push_back(byte);
  }
  EXPECT_EQ(life.decide(1, 1000).size(), 0u) << "no worker: no room is needed for what cannot be placed";
  life.add_worker(2);
  const std::uint64_t before = life.engine.digest();
  std::vector<Decision> decisions(1000);
  std::size_t count = 99;
  EXPECT_EQ(life.engine.decide(3, decisions, &count), Status::kJournalFull);
  EXPECT_EQ(count, 0u);
  EXPECT_EQ(life.engine.digest(), before);
  for (const std::uint8_t byte : life.drain()) journal.push_back(byte);
  EXPECT_EQ(life.decide(3, 1000).size(), 63u) << "(4,096 - 25) / 64";
  for (const std::uint8_t byte : life.drain()) journal.push_back(byte);
  EXPECT_EQ(life.decide(3, 1000).size(), 37u);
  for (const std::uint8_t byte : life.drain()) journal.push_back(byte);

  Engine again(options = [&] {
    EngineOptions read;
    EXPECT_EQ(read_journal_options(journal, &read), Status::kOk);
    return read;
  }());
  const ReplayResult result = replay_journal(journal, again);
  EXPECT_EQ(result.status, Status::kOk);
  EXPECT_EQ(result.decisions, 100u);
  EXPECT_EQ(again.digest(), life.engine.digest());
}

TEST(EngineRefusals, StatesAndBounds) {
  Driver life(small_options());
  life.add_worker(0);
  life.add_worker(0);
  ASSERT_EQ(life.engine.remove_worker(0, 1), Status::kOk);
  life.open_workflow(0);
  life.open_workflow(0);
  const CallHandle placed = life.submit(0, 0, {1});
  life.decide(0);
  const CallHandle running = life.submit(0, 0, {1});
  life.decide(0);
  ASSERT_EQ(life.engine.first_token(0, running), Status::kOk);
  const CallHandle waiting = life.submit(0, 0, {1});
  ASSERT_EQ(life.engine.tool_started(0, 1, ToolClass::kWebApi), Status::kOk);
  ASSERT_EQ(life.engine.stats().waiting_calls, 1u);

  Engine& engine = life.engine;
  CallHandle id = 77;
  WorkerId worker = 77;
  const std::uint64_t before = engine.digest();
  const auto finish = [&](CallHandle call) {
    return engine.finish_call(9, call, StopReason::kEndTurn, ToolClass::kNone, 1);
  };
  EXPECT_EQ(engine.first_token(9, waiting), Status::kWrongState);
  EXPECT_EQ(engine.first_token(9, running), Status::kWrongState) << "the first token comes once";
  EXPECT_EQ(finish(waiting), Status::kWrongState);
  EXPECT_EQ(engine.close_workflow(9, 0), Status::kWrongState) << "calls are open";
  EXPECT_EQ(engine.tool_started(9, 1, ToolClass::kWebApi), Status::kWrongState);
  EXPECT_EQ(engine.tool_finished(9, 0), Status::kWrongState);
  for (const WorkerId unknown : {1u, 2u, 4u, kNone}) {  // removed, never added, beyond the bound
    EXPECT_EQ(engine.remove_worker(9, unknown), Status::kNotFound);
    EXPECT_EQ(engine.blocks_stored(9, unknown, Tier::kGpu, 0, Hashes{1}), Status::kNotFound);
    EXPECT_EQ(engine.blocks_removed(9, unknown, Tier::kGpu, Hashes{1}), Status::kNotFound);
    EXPECT_EQ(engine.blocks_cleared(9, unknown), Status::kNotFound);
    EXPECT_EQ(engine.worker_load(9, unknown, 1), Status::kNotFound);
    EXPECT_EQ(engine.worker_trust(9, unknown, 1), Status::kNotFound);
    EXPECT_EQ(engine.worker_accepts(9, unknown, false), Status::kNotFound);
    EXPECT_EQ(engine.worker_window(9, unknown, 1), Status::kNotFound);
    EXPECT_EQ(engine.window_stored(9, unknown, Hashes{1}), Status::kNotFound);
    EXPECT_EQ(engine.window_removed(9, unknown, Hashes{1}), Status::kNotFound);
    WorkerState state;
    EXPECT_EQ(engine.worker_state(unknown, &state), unknown == 1);
  }
  EXPECT_EQ(engine.submit_call(9, 0, 0, {}, &id), Status::kInvalidArgument) << "no tokens";
  EXPECT_EQ(engine.submit_call(9, 0, 7, Hashes{1, 2}, &id), Status::kInvalidArgument) << "7 tokens are one full block";
  EXPECT_EQ(engine.submit_call(9, 0, 4 * 701, range(1, 701), &id), Status::kInvalidArgument) << "max_chain_blocks";
  EXPECT_EQ(engine.submit_call(9, 0, 4 * 701, {}, &id), Status::kInvalidArgument) << "the same prompt, not hashed";
  EXPECT_EQ(engine.blocks_stored(9, 0, Tier::kGpu, 0, range(1, 1001)), Status::kFull) << "max_blocks";
  EXPECT_EQ(engine.window_stored(9, 0, range(1, 1001)), Status::kFull);
  EXPECT_EQ(engine.worker_trust(9, 0, 1001), Status::kInvalidArgument);
  EXPECT_EQ(engine.digest(), before) << "none of them changed anything, not even the time";
  EXPECT_EQ(engine.now(), 0u);

  EXPECT_EQ(life.add_worker(1), 2u);
  EXPECT_EQ(life.add_worker(1), 3u);
  EXPECT_EQ(life.add_worker(1), 1u) << "removed before";
  life.open_workflow(1);
  for (int call = 3; call < 6; ++call) life.submit(1, 1, {}, 3);
  const std::uint64_t full = engine.digest();
  EXPECT_EQ(engine.add_worker(9, 1, &worker), Status::kFull) << "all are active";
  EXPECT_EQ(engine.open_workflow(9, 0, &id), Status::kFull);
  EXPECT_EQ(engine.submit_call(9, 0, 1, {}, &id), Status::kFull);
  EXPECT_EQ(id, 77u);
  EXPECT_EQ(worker, 77u);
  EXPECT_EQ(engine.digest(), full);
  EXPECT_EQ(finish(placed), Status::kOk);
  EXPECT_TRUE(engine.verify());
}

// ---- what is told of a worker -----------------------------------------------------------------------------------------------

TEST(EngineWorkers, IdsComeAgainTheLongestGoneFirst) {
  EngineOptions options = small_options();
  options.max_workers = 3;
  Driver life(options);
  Engine& engine = life.engine;
  const auto remove = [&](Time now, WorkerId worker) { ASSERT_EQ(engine.remove_worker(now, worker), Status::kOk); };
  const auto full = [&](Time now) {
    WorkerId none = 77;
    EXPECT_EQ(engine.add_worker(now, 1, &none), Status::kFull);
    EXPECT_EQ(none, 77u);
  };
  EXPECT_EQ(life.add_worker(1), 0u);
  remove(2, 0);
  EXPECT_EQ(life.add_worker(3), 1u) << "that nobody had";
  EXPECT_EQ(life.add_worker(4), 2u);
  EXPECT_EQ(engine.remove_worker(5, 0), Status::kNotFound) << "it is gone";
  EXPECT_EQ(life.add_worker(5), 0u) << "there is no other";
  full(6);
  remove(7, 2);
  remove(7, 0);
  remove(7, 1);
  EXPECT_TRUE(engine.verify());
  EXPECT_EQ(engine.stats().workers, 0u);
  EXPECT_EQ(life.add_worker(8), 2u);
  remove(9, 2);
  EXPECT_EQ(life.add_worker(10), 0u);
  EXPECT_EQ(life.add_worker(11), 1u);
  EXPECT_EQ(life.add_worker(12), 2u);
  EXPECT_TRUE(engine.verify());
  full(13);
  remove(14, 1);
  EXPECT_EQ(life.add_worker(15), 1u) << "while the others are active";
  full(16);
}

// Which id comes next is state: two engines with the same active workers are not the same.
TEST(EngineWorkers, TheOrderOfRemovedIdsIsState) {
  const auto digest = [](WorkerId first, WorkerId second) {
    EngineOptions options = small_options();
    options.max_workers = 2;
    Driver life(options);
    life.add_worker(0);
    life.add_worker(0);
    EXPECT_EQ(life.engine.remove_worker(0, first), Status::kOk);
    EXPECT_EQ(life.engine.remove_worker(0, second), Status::kOk);
    return life.engine.digest();
  };
  EXPECT_NE(digest(0, 1), digest(1, 0));
  EXPECT_EQ(digest(0, 1), digest(0, 1));
}

TEST(EngineWorkers, WhoTakesAnIdAgainInheritsNothing) {
  for (const PlacementKind kind : {PlacementKind::kAffinity, PlacementKind::kSaga}) {
    EngineOptions options = small_options();
    options.max_workers = 1;
    options.placement.kind = kind;
    Driver life(options);
    Engine& engine = life.engine;
    ASSERT_EQ(life.add_worker(1, 100), 0u);
    life.open_workflow(1);
    const CallHandle call = life.submit(2, 0, {1, 2, 3});
    EXPECT_EQ(life.placements(2), (std::vector<std::pair<CallHandle, WorkerId>>{{call, 0}}));
    for (const Tier tier : {Tier::kGpu, Tier::kGpu, Tier::kHost, Tier::kDisk}) {
      ASSERT_EQ(engine.blocks_stored(3, 0, tier, 0, Hashes{1, 2, 3}), Status::kOk);
    }
    ASSERT_EQ(engine.window_stored(3, 0, Hashes{1, 2, 3}), Status::kOk);
    ASSERT_EQ(engine.worker_window(3, 0, 2), Status::kOk);
    ASSERT_EQ(engine.worker_trust(3, 0, 500), Status::kOk);
    ASSERT_EQ(engine.worker_load(3, 0, WorkerLoad{40, 5, 6}), Status::kOk);
    ASSERT_EQ(engine.worker_accepts(3, 0, false), Status::kOk);
    EXPECT_EQ(engine.window_held(0), 3u);
    ASSERT_EQ(engine.remove_worker(4, 0), Status::kOk);
    EXPECT_EQ(life.worker(0).trust, 500u) << "as it was last";
    EXPECT_EQ(life.worker(0).active, 0u);

    ASSERT_EQ(life.add_worker(5, 200), 0u);
    EXPECT_TRUE(engine.verify());
    const WorkerState fresh = life.worker(0);
    EXPECT_EQ(fresh.capacity_blocks, 200u);
    EXPECT_EQ(fresh.active, 1u);
    EXPECT_EQ(fresh.accepts, 1u);
    EXPECT_EQ(fresh.trust, 1000u);
    EXPECT_EQ(fresh.window_blocks, 0u);
    EXPECT_EQ(fresh.reports, 0u);
    EXPECT_EQ(fresh.reported_blocks, 0u);
    EXPECT_EQ(fresh.reported_waiting, kNone);
    EXPECT_EQ(fresh.reported_free, kNone);
    EXPECT_EQ(engine.window_held(0), 0u);
    EXPECT_EQ(engine.stats().holder_blocks, 0u);
    std::uint32_t depth[kTierCount] = {77, 77, 77};
    EXPECT_EQ(engine.match(Hashes{1, 2, 3}, depth), 0u);
    EXPECT_EQ(depth[2], 0u);
    // Copies that the old worker had are not removed from the new one twice, and its call is placed anew, as the second time.
    ASSERT_EQ(engine.blocks_stored(6, 0, Tier::kGpu, 0, Hashes{1, 2, 3}), Status::kOk);
    const std::vector<Decision> placed = life.decide(6);
    ASSERT_EQ(placed.size(), 1u);
    EXPECT_EQ(placed[0].call, call);
    EXPECT_EQ(placed[0].placement, 1u);
    EXPECT_EQ(life.worker(0).open_calls, 1u);
    EXPECT_EQ(life.worker(0).estimated_blocks, 4u);
    EXPECT_EQ(engine.first_token(7, call, 0), Status::kWrongState) << "of the one that is gone, under the same id";
    AnswerInfo late;
    late.placement = 0;
    EXPECT_EQ(engine.finish_call(7, call, late), Status::kWrongState);
    EXPECT_EQ(engine.first_token(7, call, 1), Status::kOk);
    ASSERT_EQ(engine.blocks_removed(8, 0, Tier::kGpu, Hashes{1, 2, 3}), Status::kOk);
    EXPECT_EQ(engine.match(Hashes{1, 2, 3}, depth), 0u);
    EXPECT_TRUE(engine.verify());
  }
}

TEST(EngineWorkers, ADistrustedMatchCountsForLess) {
  Driver life(small_options());
  life.add_worker(0);
  life.add_worker(0);
  life.open_workflow(0);
  ASSERT_EQ(life.engine.blocks_stored(0, 0, Tier::kGpu, 0, range(1, 10)), Status::kOk);
  ASSERT_EQ(life.engine.blocks_stored(0, 1, Tier::kGpu, 0, range(1, 4)), Status::kOk);
  const auto decided = [&](Time now) {
    const CallHandle call = life.submit(now, 0, range(1, 10));
    const Decision decision = life.decide(now).at(0);
    life.finish(now, call);
    EXPECT_TRUE(life.engine.verify());
    return decision;
  };
  EXPECT_EQ(decided(1).worker, 0u);
  ASSERT_EQ(life.engine.worker_trust(2, 0, 401), Status::kOk);
  EXPECT_EQ(decided(2).worker, 0u) << "4 blocks of 10 are believed, a tie";
  ASSERT_EQ(life.engine.worker_trust(3, 0, 399), Status::kOk);
  const Decision other = decided(3);
  EXPECT_EQ(other.worker, 1u);
  EXPECT_EQ(other.reason, 1u);
  EXPECT_EQ(other.matched_blocks[0], 4u);
  EXPECT_EQ(other.longest_match, 10u) << "as reported";
  EXPECT_EQ(other.longest_match_worker, 0u);
  ASSERT_EQ(life.engine.worker_trust(4, 1, 0), Status::kOk);
  ASSERT_EQ(life.engine.worker_trust(4, 0, 0), Status::kOk);
  const Decision none = decided(4);
  EXPECT_EQ(none.reason, 2u) << "nothing is believed";
  EXPECT_EQ(none.worker, 0u);
  EXPECT_EQ(none.matched_blocks[0], 10u);
  std::vector<std::uint32_t> depth(4 * kTierCount);
  EXPECT_EQ(life.engine.match(range(1, 10), depth.data()), 10u);
  EXPECT_EQ(life.worker(0).trust, 0u);
}

TEST(EngineWorkers, ADrainedWorkerGetsNothingAndKeepsItsCalls) {
  for (const PlacementKind kind : {PlacementKind::kAffinity, PlacementKind::kRoundRobin}) {
    EngineOptions options = small_options();
    options.placement.kind = kind;
    Driver life(options);
    life.add_worker(0);
    life.add_worker(0);
    life.open_workflow(0);
    ASSERT_EQ(life.engine.blocks_stored(0, 0, Tier::kGpu, 0, range(1, 10)), Status::kOk);
    const CallHandle running = life.submit(1, 0, range(1, 10));
    EXPECT_EQ(life.decide(1).at(0).worker, 0u);
    ASSERT_EQ(life.engine.worker_accepts(2, 0, false), Status::kOk);
    EXPECT_EQ(life.worker(0).accepts, 0);
    EXPECT_EQ(life.worker(0).active, 1);
    EXPECT_EQ(life.engine.stats().workers, 2u);
    const CallHandle second = life.submit(3, 0, range(1, 10));
    const Decision elsewhere = life.decide(3).at(0);
    EXPECT_EQ(elsewhere.worker, 1u);
    EXPECT_EQ(elsewhere.active_workers, 1u);
    EXPECT_EQ(elsewhere.longest_match_worker, 0u) << "from where it can be copied";
    EXPECT_EQ(life.engine.first_token(4, running), Status::kOk);
    life.finish(5, running);
    ASSERT_EQ(life.engine.worker_accepts(6, 1, false), Status::kOk);
    const CallHandle waiting = life.submit(6, 0, range(1, 10));
    EXPECT_TRUE(life.decide(6).empty());
    EXPECT_EQ(life.engine.stats().waiting_calls, 1u);
    ASSERT_EQ(life.engine.remove_worker(7, 1), Status::kOk) << "its call waits again, before the other";
    EXPECT_TRUE(life.decide(7).empty());
    ASSERT_EQ(life.engine.worker_accepts(8, 0, true), Status::kOk);
    EXPECT_EQ(life.placements(8), (std::vector<std::pair<CallHandle, WorkerId>>{{second, 0}, {waiting, 0}}));
    EXPECT_TRUE(life.engine.verify());
  }
}

TEST(EngineWorkers, AWindowGroupMakesPrefixesUsable) {
  Driver life(small_options());
  life.add_worker(0);
  life.add_worker(0);
  Engine& engine = life.engine;
  const auto depths = [&](const Hashes& chain) {
    std::vector<std::uint32_t> depth(4 * kTierCount);
    const std::uint32_t longest = engine.match(chain, depth.data());
    EXPECT_EQ(longest, *std::max_element(depth.begin(), depth.end()));
    EXPECT_TRUE(engine.verify());
    depth.resize(kTierCount);
    return depth;
  };
  using Depths = std::vector<std::uint32_t>;
  ASSERT_EQ(engine.blocks_stored(0, 0, Tier::kGpu, 0, range(1, 8)), Status::kOk);
  ASSERT_EQ(engine.blocks_stored(0, 0, Tier::kHost, 0, range(9, 1)), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{8, 8, 8}));
  ASSERT_EQ(engine.worker_window(1, 0, 2), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{0, 0, 0})) << "no window block at all";
  EXPECT_EQ(depths(range(1, 9)), (Depths{0, 9, 9})) << "the slower tier has more";
  ASSERT_EQ(engine.window_stored(2, 0, Hashes{7, 8}), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{8, 8, 8}));
  EXPECT_EQ(depths(range(1, 7)), (Depths{0, 0, 0})) << "6 is missing";
  ASSERT_EQ(engine.window_stored(3, 0, Hashes{3, 4}), Status::kOk);
  EXPECT_EQ(depths(range(1, 7)), (Depths{4, 4, 4}));
  EXPECT_EQ(depths(range(1, 3)), (Depths{0, 0, 0}));
  ASSERT_EQ(engine.window_stored(4, 0, Hashes{1, 8}), Status::kOk);
  EXPECT_EQ(depths(range(1, 3)), (Depths{1, 1, 1})) << "a prefix shorter than the window needs all of it";
  EXPECT_EQ(engine.window_held(0), 5u);
  ASSERT_EQ(engine.window_removed(5, 0, Hashes{8, 99}), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{8, 8, 8})) << "stored twice, removed once";
  ASSERT_EQ(engine.window_removed(5, 0, Hashes{8}), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{4, 4, 4}));
  ASSERT_EQ(engine.worker_window(6, 0, 0), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{8, 8, 8})) << "no window, no condition";
  ASSERT_EQ(engine.worker_window(6, 0, 1), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{7, 7, 7}));
  ASSERT_EQ(engine.blocks_cleared(7, 0), Status::kOk);
  ASSERT_EQ(engine.blocks_stored(7, 0, Tier::kGpu, 0, range(1, 8)), Status::kOk);
  EXPECT_EQ(depths(range(1, 8)), (Depths{0, 0, 0})) << "cleared together";
  EXPECT_EQ(engine.window_held(0), 0u);
  // A decision goes by what is usable.
  ASSERT_EQ(engine.blocks_stored(8, 1, Tier::kGpu, 0, range(1, 2)), Status::kOk);
  life.open_workflow(8);
  life.submit(8, 0, range(1, 8));
  const Decision decision = life.decide(8).at(0);
  EXPECT_EQ(decision.worker, 1u);
  EXPECT_EQ(decision.longest_match, 2u);
  ASSERT_EQ(engine.remove_worker(9, 0), Status::kOk);
  EXPECT_EQ(engine.match(range(1, 8), std::vector<std::uint32_t>(4 * kTierCount).data()), 2u);
  EXPECT_TRUE(engine.verify());
}

// ---- random events against a model ------------------------------------------------------------------------------------------

struct ModelCall {
  std::uint64_t sequence;
  WorkflowHandle workflow;
  WorkerId worker = kNone;  // kNone: waiting
  std::uint64_t placed_at = 0;
  bool running = false;
  std::uint32_t tokens;
  Hashes chain;
  std::uint16_t placements = 0;  // so far
};

struct ModelWorker {
  bool active = true;
  bool accepts = true;
  std::uint32_t trust = 1000;
  std::uint32_t window = 0;
  std::uint32_t reported = 0;
  std::uint64_t reported_at = 0;  // the count of events then
  std::uint32_t capacity;
};

// What the engine should be: ordered maps, everything recomputed, nothing kept that can be counted.
struct Model {
  explicit Model(const EngineOptions& given) : options(given), random(given.seed) {
    for (std::uint32_t slot = 0; slot < options.max_workflows; ++slot) free_workflows.push_back(slot);
    for (std::uint32_t slot = 0; slot < options.max_calls; ++slot) free_calls.push_back(slot);
  }

  std::uint32_t blocks_of(const ModelCall& call) const {
    return call.tokens / options.block_tokens + (call.tokens % options.block_tokens != 0 ? 1 : 0);
  }
  std::uint32_t open_calls(WorkerId worker) const {
    std::uint32_t count = 0;
    for (const auto& [id, call] : calls) count += call.worker == worker ? 1 : 0;
    return count;
  }
  std::uint32_t estimate(WorkerId worker) const {
    std::uint32_t blocks = 0;
    for (const auto& [id, call] : calls) {
      if (call.worker == worker && call.placed_at >= workers[worker].reported_at) blocks += blocks_of(call);
    }
    return blocks;
  }
  std::uint32_t blocks_in_use(WorkerId worker) const { return workers[worker].reported + estimate(worker); }
  bool holds(WorkerId worker, std::uint32_t most_tier, BlockHash hash) const {
    for (std::uint32_t tier = 0; tier <= most_tier; ++tier) {
      if (held.contains({worker, tier, hash})) return true;
    }
    return false;
  }
  std::uint32_t leading(const Hashes& chain, WorkerId worker, std::uint32_t tier) const {
    std::uint32_t blocks = 0;
    while (blocks < chain.size() && holds(worker, tier, chain[blocks])) ++blocks;
    return blocks;
  }
  // Whether the window groups hold the last blocks of a prefix.
  bool usable(const Hashes& chain, WorkerId worker, std::uint32_t blocks) const {
    const std::uint32_t window = workers[worker].window;
    for (std::uint32_t at = 0; at < blocks; ++at) {
      if (at + window >= blocks && !windows.contains({worker, 0, chain[at]})) return false;
    }
    return true;
  }
  std::uint32_t depth(const Hashes& chain, WorkerId worker, std::uint32_t tier) const {
    const std::uint32_t blocks = leading(chain, worker, tier);
    std::uint32_t shorter = leading(chain, worker, 0);
    if (workers[worker].window == 0 || blocks != shorter) return blocks;
    while (!usable(chain, worker, shorter)) --shorter;
    return shorter;
  }
  using Copies = std::map<std::tuple<WorkerId, std::uint32_t, BlockHash>, std::uint32_t>;
  bool has_room_for(const Hashes& hashes) const { return has_room_for(held, hashes); }
  bool has_room_for(const Copies& of, const Hashes& hashes) const {
    std::set<BlockHash> known;
    for (const auto& [key, copies] : of) known.insert(std::get<2>(key));
    std::size_t unknown = 0;
    for (const BlockHash hash : hashes) unknown += known.contains(hash) ? 0 : 1;
    return known.size() + unknown <= options.max_blocks;
  }
  void forget_blocks(WorkerId worker) {
    for (Copies* of : {&held, &windows}) {
      std::erase_if(*of, [&](const auto& entry) { return std::get<0>(entry.first) == worker; });
    }
  }
  std::vector<CallHandle> waiting() const {  // in order of submission
    std::map<std::uint64_t, CallHandle> order;
    for (const auto& [id, call] : calls) {
      if (call.worker == kNone) order[call.sequence] = id;
    }
    std::vector<CallHandle> ids;
    for (const auto& [sequence, id] : order) ids.push_back(id);
    return ids;
  }
  std::uint32_t active_workers() const {
    std::uint32_t count = 0;
    for (const ModelWorker& worker : workers) count += worker.active ? 1 : 0;
    return count;
  }
  std::uint32_t accepting_workers() const {
    std::uint32_t count = 0;
    for (const ModelWorker& worker : workers) count += worker.active && worker.accepts ? 1 : 0;
    return count;
  }
  std::vector<Decision> decide(Time now, std::size_t room) {
    std::vector<Decision> decisions;
    for (const CallHandle id : waiting()) {
      if (decisions.size() == room || accepting_workers() == 0) break;
      ModelCall& call = calls.at(id);
      std::vector<WorkerView> views;
      Decision decision;
      decision.longest_match_worker = kNone;
      for (WorkerId worker = 0; worker < workers.size(); ++worker) {
        const std::uint32_t matched = depth(call.chain, worker, 0);
        views.push_back({workers[worker].active && workers[worker].accepts, matched * workers[worker].trust / 1000,
                         open_calls(worker), blocks_in_use(worker)});
        if (workers[worker].active && matched > decision.longest_match) {
          decision.longest_match = matched;
          decision.longest_match_worker = worker;
        }
      }
      decision.prompt_blocks = call.tokens / options.block_tokens;
      const Placement placed =
          place_by_model(options.placement, views, decision.prompt_blocks, round_robin_next, random);
      decision.type = 1;
      decision.worker = placed.worker;
      decision.call = id;
      decision.reason = static_cast<std::uint32_t>(placed.reason);
      for (std::uint32_t tier = 0; tier < 3; ++tier)
        decision.matched_blocks[tier] = depth(call.chain, placed.worker, tier);
      decision.open_calls = views[placed.worker].open_calls;
      decision.blocks_in_use = views[placed.worker].blocks_in_use;
      decision.active_workers = static_cast<std::uint16_t>(accepting_workers());
      decision.placement = call.placements++;
      decision.decided_at = now;
      call.worker = placed.worker;
      call.placed_at = ++events;
      decisions.push_back(decision);
      ++placed_calls;
      prompt_blocks += decision.prompt_blocks;
      matched_blocks += decision.matched_blocks[0];
    }
    return decisions;
  }

  EngineOptions options;
  Random random;
  std::uint32_t round_robin_next = 0;
  Time now = 0;
  std::vector<ModelWorker> workers;
  std::deque<WorkerId> removed;  // the id that went first is used first, once all have been
  Copies held, windows;
  std::map<WorkflowHandle, bool> workflows;  // whether a tool runs
  std::map<CallHandle, ModelCall> calls;
  std::deque<std::uint32_t> free_workflows, free_calls;  // the slot given back last is used first
  std::map<std::uint32_t, std::uint64_t> workflow_generation, call_generation;
  std::uint64_t submitted = 0, placed_calls = 0, finished_calls = 0, cancelled_calls = 0, replaced_calls = 0,
                prompt_blocks = 0, matched_blocks = 0;
  std::uint64_t events = 0;  // placements and reports so far
};

// Random events, valid and invalid, given to the engine and to the model; every status, id, decision and count is compared.
class RandomRun {
 public:
  RandomRun(const EngineOptions& options, std::uint64_t seed) : random_(seed), engine_(options), model_(options) {}

  void events(int count) {
    for (int event = 0; event < count && !::testing::Test::HasFatalFailure(); ++event) {
      step();
      if (options().journal_bytes != 0) drain_some();
    }
  }

  void check() {
    ASSERT_TRUE(engine_.verify());
    const EngineStats stats = engine_.stats();
    ASSERT_EQ(stats.workers, model_.active_workers());
    ASSERT_EQ(stats.workflows, model_.workflows.size());
    ASSERT_EQ(stats.open_calls, model_.calls.size());
    ASSERT_EQ(stats.waiting_calls, model_.waiting().size());
    ASSERT_EQ(stats.placed_calls, model_.placed_calls);
    ASSERT_EQ(stats.finished_calls, model_.finished_calls);
    ASSERT_EQ(stats.cancelled_calls, model_.cancelled_calls);
    ASSERT_EQ(stats.replaced_calls, model_.replaced_calls);
    ASSERT_EQ(stats.prompt_blocks, model_.prompt_blocks);
    ASSERT_EQ(stats.matched_blocks, model_.matched_blocks);
    ASSERT_EQ(stats.holder_blocks, model_.held.size());
    ASSERT_EQ(engine_.now(), model_.now);
    for (WorkerId id = 0; id < model_.workers.size(); ++id) {
      WorkerState state;
      ASSERT_TRUE(engine_.worker_state(id, &state));
      ASSERT_EQ(state.active != 0, model_.workers[id].active);
      ASSERT_EQ(state.capacity_blocks, model_.workers[id].capacity);
      ASSERT_EQ(state.open_calls, model_.open_calls(id));
      ASSERT_EQ(state.estimated_blocks, model_.estimate(id));
      ASSERT_EQ(state.accepts != 0, model_.workers[id].accepts);
      ASSERT_EQ(state.trust, model_.workers[id].trust);
      ASSERT_EQ(state.window_blocks, model_.workers[id].window);
      std::uint64_t in_windows = 0;
      for (const auto& [key, copies] : model_.windows) in_windows += std::get<0>(key) == id ? 1 : 0;
      ASSERT_EQ(engine_.window_held(id), in_windows);
    }
    const Hashes chain = random_chain();
    std::vector<std::uint32_t> depth(std::size_t{options().max_workers} * kTierCount, 77);
    engine_.match(chain, depth.data());
    for (WorkerId id = 0; id < model_.workers.size(); ++id) {
      for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
        ASSERT_EQ(depth[id * kTierCount + tier], model_.depth(chain, id, tier));
      }
      const std::uint32_t usable = depth[id * kTierCount];
      if (usable > 0 && usable < model_.leading(chain, id, 0)) ++shortened_;
    }
  }

  Bytes whole_journal() {
    while (engine_.journal().pending() != 0) drain_some();
    return journal_;
  }
  const EngineOptions& options() const { return engine_.options(); }
  Engine& engine() { return engine_; }
  const std::vector<Decision>& decisions() const { return decisions_; }
  std::uint64_t accepted() const { return accepted_; }
  std::uint64_t shortened() const { return shortened_; }
  std::uint64_t reused() const { return reused_; }
  const std::map<std::pair<int, Status>, int>& outcomes() const { return outcomes_; }
  const std::map<std::uint32_t, int>& reasons() const { return reasons_; }

 private:
  std::uint32_t below(std::uint64_t bound) { return static_cast<std::uint32_t>(random_.below(bound)); }
  bool one_in(std::uint64_t n) { return random_.below(n) == 0; }

  // A path in a tree of blocks, so that chains share prefixes.
  Hashes random_chain() {
    Hashes chain;
    BlockHash hash = 1 + below(4);
    for (std::size_t length = one_in(50) ? 250 + below(20) : below(12); chain.size() < length;) {
      chain.push_back(hash);
      hash = mix64(hash * 4 + (one_in(5) ? 1 : 0));
    }
    return chain;
  }
  Hashes part_of_a_chain() {
    Hashes chain = random_chain();
    if (chain.size() > 20) chain.resize(20);
    const std::size_t first = chain.empty() ? 0 : below(chain.size());
    chain.erase(chain.begin(), chain.begin() + static_cast<std::ptrdiff_t>(first));
    if (!chain.empty() && one_in(10)) chain.push_back(chain.front());
    return chain;
  }
  WorkerId some_worker() {
    if (model_.active_workers() == 0 || one_in(20)) return below(options().max_workers + 2);
    for (;;) {
      const WorkerId worker = below(model_.workers.size());
      if (model_.workers[worker].active) return worker;
    }
  }
  template <class Map>
  std::uint64_t some_id(const Map& ids) {
    if (ids.empty() || one_in(15)) return below(12) + kGeneration * below(3);  // mostly stale or never given out
    auto at = ids.begin();
    std::advance(at, below(ids.size()));
    return at->first;
  }
  // The outcome that the model expects of an event whose own condition is `fits`.
  Status expected(Time now, Status otherwise) const { return now < model_.now ? Status::kTimeReversed : otherwise; }
  Status of_worker(Time now, WorkerId worker) const {
    const bool active = worker < model_.workers.size() && model_.workers[worker].active;
    return expected(now, active ? Status::kOk : Status::kNotFound);
  }

  void step() {
    const std::uint64_t before = one_in(64) ? engine_.digest() : 0;
    const Time time =
        one_in(50) && model_.now > 0 ? model_.now - 1 - below(std::min<Time>(model_.now, 3)) : model_.now + below(3);
    Status status = Status::kOk, wanted = Status::kOk;
    // Workers come while there are few, and go now and then.
    const std::uint32_t active = model_.active_workers();
    const std::uint32_t kind = one_in(active < 3 ? 15 : 400) ? 0 : one_in(active < 3 ? 2000 : 250) ? 1 : 2 + below(37);

    switch (kind) {
      case 0: {  // add_worker
        WorkerId worker = kNone;
        const std::uint32_t capacity = 1 + below(1000);
        status = engine_.add_worker(time, capacity, &worker);
        wanted = expected(time, active < options().max_workers ? Status::kOk : Status::kFull);
        if (wanted != Status::kOk) break;
        if (model_.workers.size() < options().max_workers) {
          ASSERT_EQ(worker, model_.workers.size());
          model_.workers.push_back({.capacity = capacity});
          break;
        }
        ASSERT_EQ(worker, model_.removed.front());
        model_.removed.pop_front();
        model_.workers[worker] = {.capacity = capacity};
        ++reused_;
        break;
      }
      case 1: {  // remove_worker
        const WorkerId worker = some_worker();
        status = engine_.remove_worker(time, worker);
        wanted = of_worker(time, worker);
        if (wanted != Status::kOk) break;
        model_.forget_blocks(worker);
        model_.workers[worker].active = false;
        model_.removed.push_back(worker);
        for (auto& [id, call] : model_.calls) {
          if (call.worker != worker) continue;
          call.worker = kNone;
          call.running = false;
          ++model_.replaced_calls;
        }
        break;
      }
      case 2:
      case 3:
      case 4:
      case 5: {  // blocks_stored
        const WorkerId worker = some_worker();
        const std::uint32_t tier = one_in(2) ? 0 : below(3);
        const Hashes hashes = part_of_a_chain();
        status = engine_.blocks_stored(time, worker, static_cast<Tier>(tier), below(2), hashes);
        wanted = of_worker(time, worker);
        if (wanted == Status::kOk && !model_.has_room_for(hashes)) wanted = Status::kFull;
        if (wanted != Status::kOk) break;
        for (const BlockHash hash : hashes) ++model_.held[{worker, tier, hash}];
        break;
      }
      case 6:
      case 7: {  // blocks_removed
        const WorkerId worker = some_worker();
        const std::uint32_t tier = one_in(2) ? 0 : below(3);
        const Hashes hashes = part_of_a_chain();
        status = engine_.blocks_removed(time, worker, static_cast<Tier>(tier), hashes);
        wanted = of_worker(time, worker);
        if (wanted != Status::kOk) break;
        for (const BlockHash hash : hashes) {
          const auto copies = model_.held.find({worker, tier, hash});
          if (copies != model_.held.end() && --copies->second == 0) model_.held.erase(copies);
        }
        break;
      }
      case 8: {  // blocks_cleared
        const WorkerId worker = some_worker();
        if (!one_in(8)) return;
        status = engine_.blocks_cleared(time, worker);
        wanted = of_worker(time, worker);
        if (wanted == Status::kOk) model_.forget_blocks(worker);
        break;
      }
      case 9: {  // worker_load
        const WorkerId worker = some_worker();
        const std::uint32_t blocks = below(30);
        status = engine_.worker_load(time, worker, blocks);
        wanted = of_worker(time, worker);
        if (wanted != Status::kOk) break;
        model_.workers[worker].reported = blocks;
        model_.workers[worker].reported_at = ++model_.events;
        break;
      }
      case 10: {  // open_workflow
        WorkflowHandle workflow = 77;
        status = engine_.open_workflow(time, below(5), &workflow);
        wanted = expected(time, model_.free_workflows.empty() ? Status::kFull : Status::kOk);
        if (wanted != Status::kOk) break;
        const std::uint32_t slot = model_.free_workflows.front();
        model_.free_workflows.pop_front();
        ASSERT_EQ(workflow, slot + kGeneration * model_.workflow_generation[slot]);
        model_.workflows[workflow] = false;
        break;
      }
      case 11:
      case 12: {  // close_workflow
        const WorkflowHandle workflow = some_id(model_.workflows);
        status = engine_.close_workflow(time, workflow);
        bool open = false;
        for (const auto& [id, call] : model_.calls) open |= call.workflow == workflow;
        wanted = expected(time, !model_.workflows.contains(workflow) ? Status::kNotFound
                                : open                               ? Status::kWrongState
                                                                     : Status::kOk);
        if (wanted != Status::kOk) break;
        model_.workflows.erase(workflow);
        const auto slot = static_cast<std::uint32_t>(workflow);
        ++model_.workflow_generation[slot];
        model_.free_workflows.push_front(slot);
        break;
      }
      case 13:
      case 14:
      case 15:
      case 16:
      case 17:
      case 18: {  // submit_call
        const WorkflowHandle workflow = some_id(model_.workflows);
        const Hashes chain = random_chain();
        const auto least = static_cast<std::uint32_t>(chain.size()) * options().block_tokens;
        const std::uint32_t tokens = one_in(30)   ? below(least + 2)
                                     : one_in(30) ? least + 8 * below(200)
                                                  : least + below(4);
        CallHandle call = 77;
        status = engine_.submit_call(time, workflow, tokens, chain, &call);
        std::size_t chunks = (chain.size() + 255) / 256;
        for (const auto& [id, other] : model_.calls) chunks += (other.chain.size() + 255) / 256;
        wanted = expected(time, !model_.workflows.contains(workflow) ? Status::kNotFound
                                : tokens == 0 || chain.size() > tokens / options().block_tokens ||
                                        tokens / options().block_tokens > options().max_chain_blocks
                                    ? Status::kInvalidArgument
                                : model_.free_calls.empty() || chunks > (options().max_open_blocks + 255) / 256
                                    ? Status::kFull
                                    : Status::kOk);
        if (wanted != Status::kOk) break;
        const std::uint32_t slot = model_.free_calls.front();
        model_.free_calls.pop_front();
        ASSERT_EQ(call, slot + kGeneration * model_.call_generation[slot]);
        model_.calls[call] = {.sequence = model_.submitted++, .workflow = workflow, .tokens = tokens, .chain = chain};
        break;
      }
      case 19:
      case 20:
      case 21: {  // first_token
        const CallHandle call = some_id(model_.calls);
        status = engine_.first_token(time, call);
        const auto at = model_.calls.find(call);
        wanted = expected(time, at == model_.calls.end()                           ? Status::kNotFound
                                : at->second.worker == kNone || at->second.running ? Status::kWrongState
                                                                                   : Status::kOk);
        if (wanted == Status::kOk) at->second.running = true;
        break;
      }
      case 22:
      case 23:
      case 24:
      case 25: {  // finish_call, cancel_call
        const CallHandle call = some_id(model_.calls);
        const bool cancel = one_in(8);
        status = cancel ? engine_.cancel_call(time, call)
                        : engine_.finish_call(time, call, static_cast<StopReason>(below(3)),
                                              static_cast<ToolClass>(below(5)), below(99));
        const auto at = model_.calls.find(call);
        wanted = expected(time, at == model_.calls.end()                ? Status::kNotFound
                                : at->second.worker == kNone && !cancel ? Status::kWrongState
                                                                        : Status::kOk);
        if (wanted != Status::kOk) break;
        model_.calls.erase(at);
        const auto slot = static_cast<std::uint32_t>(call);
        ++model_.call_generation[slot];
        model_.free_calls.push_front(slot);
        ++(cancel ? model_.cancelled_calls : model_.finished_calls);
        break;
      }
      case 26:
      case 27: {  // tool_started, tool_finished
        const WorkflowHandle workflow = some_id(model_.workflows);
        const bool start = kind == 26;
        status = start ? engine_.tool_started(time, workflow, static_cast<ToolClass>(below(5)))
                       : engine_.tool_finished(time, workflow);
        const auto at = model_.workflows.find(workflow);
        wanted = expected(time, at == model_.workflows.end() ? Status::kNotFound
                                : at->second == start        ? Status::kWrongState
                                                             : Status::kOk);
        if (wanted == Status::kOk) at->second = start;
        break;
      }
      case 28: {
        status = engine_.tick(time);
        wanted = expected(time, Status::kOk);
        break;
      }
      case 29: {  // worker_trust
        const WorkerId worker = some_worker();
        const std::uint32_t trust = one_in(2) ? 1000 : one_in(30) ? 1001 : below(1001);
        status = engine_.worker_trust(time, worker, trust);
        wanted = of_worker(time, worker);
        if (wanted == Status::kOk && trust > 1000) wanted = Status::kInvalidArgument;
        if (wanted == Status::kOk) model_.workers[worker].trust = trust;
        break;
      }
      case 30: {  // worker_accepts
        const WorkerId worker = some_worker();
        const bool accepts = !one_in(3);
        status = engine_.worker_accepts(time, worker, accepts);
        wanted = of_worker(time, worker);
        if (wanted == Status::kOk) model_.workers[worker].accepts = accepts;
        break;
      }
      case 31: {  // worker_window
        const WorkerId worker = some_worker();
        const std::uint32_t window = one_in(2) ? 0 : below(6);
        status = engine_.worker_window(time, worker, window);
        wanted = of_worker(time, worker);
        if (wanted == Status::kOk) model_.workers[worker].window = window;
        break;
      }
      case 32:
      case 33:
      case 34: {  // window_stored
        const WorkerId worker = some_worker();
        const Hashes hashes = part_of_a_chain();
        status = engine_.window_stored(time, worker, hashes);
        wanted = of_worker(time, worker);
        if (wanted == Status::kOk && !model_.has_room_for(model_.windows, hashes)) wanted = Status::kFull;
        if (wanted != Status::kOk) break;
        for (const BlockHash hash : hashes) ++model_.windows[{worker, 0, hash}];
        break;
      }
      case 35: {  // window_removed
        const WorkerId worker = some_worker();
        const Hashes hashes = part_of_a_chain();
        status = engine_.window_removed(time, worker, hashes);
        wanted = of_worker(time, worker);
        if (wanted != Status::kOk) break;
        for (const BlockHash hash : hashes) {
          const auto copies = model_.windows.find({worker, 0, hash});
          if (copies != model_.windows.end() && --copies->second == 0) model_.windows.erase(copies);
        }
        break;
      }
      default: {  // decide
        const std::size_t room = one_in(3) ? below(3) : 64;
        std::vector<Decision> decisions(room);
        std::size_t count = 77;
        status = engine_.decide(time, decisions, &count);
        wanted = expected(time, Status::kOk);
        decisions.resize(count);
        if (wanted != Status::kOk) {
          ASSERT_EQ(count, 0u);
          break;
        }
        ASSERT_EQ(decisions, model_.decide(time, room));
        for (const Decision& decision : decisions) ++reasons_[decision.reason];
        decisions_.insert(decisions_.end(), decisions.begin(), decisions.end());
      }
    }
    ASSERT_EQ(status, wanted) << "kind " << kind;
    ++outcomes_[{static_cast<int>(kind), status}];
    if (status == Status::kOk) {
      model_.now = time;
      ++accepted_;
    } else if (before != 0) {
      ASSERT_EQ(engine_.digest(), before) << "a refused event changes nothing";
    }
  }

  void drain_some() {
    Bytes piece(1 + below(999));
    piece.resize(engine_.journal().drain(piece.data(), piece.size()));
    journal_.insert(journal_.end(), piece.begin(), piece.end());
  }

  Random random_;
  Engine engine_;
  Model model_;
  Bytes journal_;
  std::vector<Decision> decisions_;
  std::uint64_t accepted_ = 0;
  std::uint64_t reused_ = 0;     // ids of workers
  std::uint64_t shortened_ = 0;  // matches that were compared and that a window made shorter, but not empty
  std::map<std::pair<int, Status>, int> outcomes_;
  std::map<std::uint32_t, int> reasons_;
};

EngineOptions random_run_options(std::uint64_t seed, std::uint64_t journal_bytes) {
  EngineOptions options;
  options.max_workers = seed % 2 == 0 ? 4 : 12;
  options.max_workflows = 24;
  options.max_calls = 40;
  options.max_blocks = 90;
  options.max_chain_blocks = 280;
  options.max_open_blocks = 256 * 36;
  options.block_tokens = 4;
  options.seed = seed;
  options.placement.kind = seed % 4 == 3 ? PlacementKind::kRoundRobin : PlacementKind::kAffinity;
  options.placement.imbalance_calls = seed % 2 == 0 ? 3 : 10;
  options.placement.minimum_match_percent = seed % 3 == 0 ? 50 : 10;
  options.journal_bytes = journal_bytes;
  return options;
}

TEST(EngineProperty, RandomEventsAgreeWithTheModel) {
  std::map<std::pair<int, Status>, int> outcomes;
  std::map<std::uint32_t, int> reasons;
  std::uint64_t shortened = 0, reused = 0;
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomRun run(random_run_options(seed, 0), 1000 + seed);
    for (int batch = 0; batch < 40; ++batch) {
      ASSERT_NO_FATAL_FAILURE(run.events(200));
      ASSERT_NO_FATAL_FAILURE(run.check());
    }
    for (const auto& [outcome, count] : run.outcomes()) outcomes[outcome] += count;
    for (const auto& [reason, count] : run.reasons()) reasons[reason] += count;
    shortened += run.shortened();
    reused += run.reused();
  }
  EXPECT_GT(shortened, 20u);
  EXPECT_GT(reused, 100u) << "ids of workers";
  // The run went where it should: every kind of event succeeded and every refusal was met.
  for (int kind = 0; kind < 37; ++kind) {
    EXPECT_GT((outcomes[{kind, Status::kOk}]), 10) << "kind " << kind;
    EXPECT_GT((outcomes[{kind, Status::kTimeReversed}]), 0) << "kind " << kind;
  }
  EXPECT_GT((outcomes[{0, Status::kFull}]), 0) << "workers";
  EXPECT_GT((outcomes[{2, Status::kFull}]), 0) << "blocks";
  EXPECT_GT((outcomes[{32, Status::kFull}]), 0) << "blocks of windows";
  EXPECT_GT((outcomes[{29, Status::kInvalidArgument}]), 0) << "trust";
  EXPECT_GT((outcomes[{10, Status::kFull}]), 0) << "workflows";
  EXPECT_GT((outcomes[{13, Status::kFull}]), 0) << "calls";
  EXPECT_GT((outcomes[{13, Status::kInvalidArgument}]), 0) << "prompts";
  for (const int kind : {1, 2, 6, 8, 9, 11, 13, 19, 22, 26, 27, 29, 30, 31, 32, 35}) {
    EXPECT_GT((outcomes[{kind, Status::kNotFound}]), 0) << "kind " << kind;
  }
  for (const int kind : {11, 19, 22, 26, 27}) EXPECT_GT((outcomes[{kind, Status::kWrongState}]), 0) << "kind " << kind;
  for (const std::uint32_t reason : {0u, 1u, 2u, 3u}) EXPECT_GT(reasons[reason], 100) << "reason " << reason;
}

TEST(EngineProperty, TheSameSeedGivesTheSameRunWithAndWithoutAJournal) {
  // The journal is drained in pieces of odd sizes, which are draws too: only runs with the same use of it share their draws.
  RandomRun first(random_run_options(2, 0), 5), second(random_run_options(2, 0), 5), other(random_run_options(2, 0), 6);
  for (RandomRun* run : {&first, &second, &other}) ASSERT_NO_FATAL_FAILURE(run->events(3000));
  EXPECT_GT(first.decisions().size(), 200u);
  EXPECT_EQ(first.decisions(), second.decisions());
  EXPECT_EQ(first.engine().digest(), second.engine().digest());
  EXPECT_NE(first.engine().digest(), other.engine().digest());
}

// ---- journal ----------------------------------------------------------------------------------------------------------------

struct Replayed {
  Status header = Status::kOk;
  ReplayResult result;
  std::unique_ptr<Engine> engine;  // null where the header cannot be read
};

Replayed replay(std::span<const std::uint8_t> journal) {
  Replayed replayed;
  EngineOptions options;
  replayed.header = read_journal_options(journal, &options);
  if (replayed.header != Status::kOk) return replayed;
  replayed.engine = std::make_unique<Engine>(options);
  replayed.result = replay_journal(journal, *replayed.engine);
  return replayed;
}

TEST(Journal, ReplayOfRandomRunsEqualsTheLiveEngine) {
  for (const std::uint64_t seed : {0, 1, 3}) {
    RandomRun run(random_run_options(seed, 1 << 16), 77 + seed);
    ASSERT_NO_FATAL_FAILURE(run.events(6000));
    const Bytes journal = run.whole_journal();
    EXPECT_EQ(run.engine().stats().journal_bytes, journal.size());
    const Replayed replayed = replay(journal);
    ASSERT_EQ(replayed.header, Status::kOk);
    EXPECT_EQ(replayed.result.status, Status::kOk);
    EXPECT_EQ(replayed.result.events, run.accepted());
    EXPECT_EQ(replayed.result.decisions, run.decisions().size());
    EXPECT_EQ(replayed.result.good_bytes, journal.size());
    EXPECT_EQ(replayed.engine->digest(), run.engine().digest());
    EXPECT_TRUE(replayed.engine->verify());
    EXPECT_FALSE(replayed.engine->journal().enabled());
    EXPECT_EQ(replayed.engine->options().seed, seed);
    EXPECT_GT(run.reused(), 5u);
  }
}

// A small journal with every kind of record, and the state after each of them.
struct SmallJournal {
  struct Boundary {
    std::size_t bytes;
    std::uint64_t digest;
    std::uint64_t decisions;
  };

  SmallJournal() {
    EngineOptions options = small_options();
    options.max_calls = 3;
    options.max_blocks = 64;
    options.max_chain_blocks = 16;
    options.journal_bytes = 1 << 14;
    Driver life(options);
    Engine& engine = life.engine;
    std::uint64_t decisions = 0;
    const auto mark = [&] { boundaries.push_back({engine.stats().journal_bytes, engine.digest(), decisions}); };
    mark();
    const auto placed = [&](Time now) {
      decisions += life.decide(now).size();
      mark();
    };
    life.add_worker(1, 100);
    mark();
    life.add_worker(2, 200);
    mark();
    life.open_workflow(3, 7);
    mark();
    life.submit(4, 0, {1, 2});
    mark();
    life.submit(4, 0, {}, 3);
    mark();
    placed(5);
    EXPECT_EQ(engine.blocks_stored(6, 0, Tier::kHost, 9, Hashes{1, 2}), Status::kOk);
    mark();
    EXPECT_EQ(engine.first_token(7, 0), Status::kOk);
    mark();
    life.finish(8, 0);
    mark();
    EXPECT_EQ(engine.tool_started(9, 0, ToolClass::kDatabaseQuery), Status::kOk);
    mark();
    EXPECT_EQ(engine.tool_finished(10, 0), Status::kOk);
    mark();
    EXPECT_EQ(engine.blocks_removed(11, 0, Tier::kHost, Hashes{2}), Status::kOk);
    mark();
    EXPECT_EQ(engine.worker_load(12, 1, 33), Status::kOk);
    mark();
    EXPECT_EQ(engine.remove_worker(13, 1), Status::kOk);
    mark();
    placed(14);
    EXPECT_EQ(engine.blocks_cleared(15, 0), Status::kOk);
    mark();
    EXPECT_EQ(engine.tick(16), Status::kOk);
    mark();
    life.finish(17, 1);
    mark();
    EXPECT_EQ(engine.close_workflow(18, 0), Status::kOk);
    mark();
    EXPECT_EQ(engine.worker_trust(19, 0, 250), Status::kOk);
    mark();
    EXPECT_EQ(engine.worker_window(19, 0, 3), Status::kOk);
    mark();
    EXPECT_EQ(engine.window_stored(20, 0, Hashes{5, 6}), Status::kOk);
    mark();
    EXPECT_EQ(engine.window_removed(20, 0, Hashes{6}), Status::kOk);
    mark();
    EXPECT_EQ(engine.worker_accepts(21, 0, false), Status::kOk);
    mark();
    bytes = life.drain();
    EXPECT_EQ(bytes.size(), boundaries.back().bytes);
  }

  // The last boundary at or before `size`.
  std::size_t boundary_of(std::size_t size) const {
    std::size_t at = 0;
    while (at + 1 < boundaries.size() && boundaries[at + 1].bytes <= size) ++at;
    return at;
  }
  void expect_state(const Replayed& replayed, std::size_t boundary) const {
    ASSERT_EQ(replayed.header, Status::kOk);
    ASSERT_EQ(replayed.result.good_bytes, boundaries[boundary].bytes);
    ASSERT_EQ(replayed.result.events, boundary);
    ASSERT_EQ(replayed.result.decisions, boundaries[boundary].decisions);
    ASSERT_EQ(replayed.engine->digest(), boundaries[boundary].digest);
    ASSERT_TRUE(replayed.engine->verify());
  }

  Bytes bytes;
  std::vector<Boundary> boundaries;  // [0] is behind the header
};

TEST(Journal, ReplaysEveryKindOfRecord) {
  const SmallJournal journal;
  const Replayed replayed = replay(journal.bytes);
  EXPECT_EQ(replayed.result.status, Status::kOk);
  EXPECT_EQ(journal.boundaries.size(), 25u);
  journal.expect_state(replayed, 24);
  EXPECT_EQ(replayed.result.decisions, 3u);
  std::set<RecordType> types;
  JournalReader reader(journal.bytes);
  std::span<const std::uint8_t> options;
  ASSERT_EQ(reader.read_header(&options), Status::kOk);
  for (Record record; reader.next(&record) == Status::kOk;) types.insert(record.type);
  EXPECT_EQ(types.size(), 20u);
}

TEST(Journal, EveryTruncationIsThePrefixOrSaysSo) {
  const SmallJournal journal;
  for (std::size_t size = 0; size < journal.bytes.size(); ++size) {
    SCOPED_TRACE(size);
    const Replayed replayed = replay(std::span(journal.bytes).first(size));
    if (size < journal.boundaries[0].bytes) {
      ASSERT_EQ(replayed.header, Status::kJournalCorrupt);
      continue;
    }
    const std::size_t boundary = journal.boundary_of(size);
    ASSERT_EQ(replayed.result.status,
              journal.boundaries[boundary].bytes == size ? Status::kOk : Status::kJournalCorrupt);
    ASSERT_NO_FATAL_FAILURE(journal.expect_state(replayed, boundary));
  }
}

TEST(Journal, EveryChangedByteIsFound) {
  const SmallJournal journal;
  Bytes damaged = journal.bytes;
  for (std::size_t at = 0; at < damaged.size(); ++at) {
    SCOPED_TRACE(at);
    const std::uint8_t good = damaged[at];
    const std::size_t boundary = journal.boundary_of(at);  // the damage lies in the record that begins there
    // All 255 values before the checksums ..
    for (int change = 1; change < 256; ++change) {
      damaged[at] = static_cast<std::uint8_t>(good ^ change);
      JournalReader reader(damaged);
      std::span<const std::uint8_t> options;
      Status status = reader.read_header(&options);
      for (Record record; status == Status::kOk;) status = reader.next(&record);
      ASSERT_TRUE(status == Status::kJournalCorrupt || status == Status::kVersionMismatch);
      ASSERT_EQ(reader.good_bytes(), at < journal.boundaries[0].bytes ? 0 : journal.boundaries[boundary].bytes);
    }
    // .. and some all the way through an engine.
    for (const int change : {0x01, 0x80, 0xFF}) {
      damaged[at] = static_cast<std::uint8_t>(good ^ change);
      const Replayed replayed = replay(damaged);
      if (at < journal.boundaries[0].bytes) {
        ASSERT_EQ(replayed.header, at >= 8 && at < 12 ? Status::kVersionMismatch : Status::kJournalCorrupt);
      } else {
        ASSERT_EQ(replayed.result.status, Status::kJournalCorrupt);
        ASSERT_NO_FATAL_FAILURE(journal.expect_state(replayed, boundary));
      }
    }
    damaged[at] = good;
  }
}

TEST(Journal, ARecordThatIsLostRepeatedOrExchangedIsFound) {
  const SmallJournal journal;
  const auto records = journal.boundaries.size() - 1;
  const auto record = [&](std::size_t i) {
    return std::span(journal.bytes)
        .subspan(journal.boundaries[i].bytes, journal.boundaries[i + 1].bytes - journal.boundaries[i].bytes);
  };
  const auto build = [&](const std::vector<std::size_t>& order) {
    Bytes bytes(journal.bytes.begin(),
                journal.bytes.begin() + static_cast<std::ptrdiff_t>(journal.boundaries[0].bytes));
    for (const std::size_t i : order) bytes.insert(bytes.end(), record(i).begin(), record(i).end());
    return bytes;
  };
  std::vector<std::size_t> all(records);
  std::iota(all.begin(), all.end(), 0u);
  EXPECT_EQ(build(all), journal.bytes);
  for (std::size_t i = 0; i + 1 < records; ++i) {
    SCOPED_TRACE(i);
    std::vector<std::size_t> lost = all, repeated = all, exchanged = all;
    lost.erase(lost.begin() + static_cast<std::ptrdiff_t>(i));
    repeated.insert(repeated.begin() + static_cast<std::ptrdiff_t>(i), i);
    std::swap(exchanged[i], exchanged[i + 1]);
    for (const auto& [order, good] : {std::pair(lost, i), std::pair(repeated, i + 1), std::pair(exchanged, i)}) {
      const Replayed replayed = replay(build(order));
      EXPECT_EQ(replayed.result.status, Status::kJournalCorrupt);
      ASSERT_NO_FATAL_FAILURE(journal.expect_state(replayed, good));
    }
  }
}

// The journal written anew with correct checksums, after `change` was applied to the payload of its i-th record.
Bytes forge(const SmallJournal& journal, std::size_t i, const std::function<void(RecordType&, Time&, Bytes&)>& change) {
  JournalReader reader(journal.bytes);
  std::span<const std::uint8_t> options;
  EXPECT_EQ(reader.read_header(&options), Status::kOk);
  JournalWriter writer(1 << 16);
  writer.begin_header();
  writer.put_bytes(options.data(), options.size());
  writer.end();
  Record record;
  for (std::size_t at = 0; reader.next(&record) == Status::kOk; ++at) {
    Bytes payload(record.payload.begin(), record.payload.end());
    if (at == i) change(record.type, record.now, payload);
    writer.begin(record.type, record.now);
    writer.put_bytes(payload.data(), payload.size());
    writer.end();
  }
  Bytes bytes(writer.pending());
  writer.drain(bytes.data(), bytes.size());
  return bytes;
}

constexpr std::size_t kFirstDecide = 5, kStore = 6, kFinish = 8, kToolStart = 9, kSecondDecide = 14, kTick = 16,
                      kTrust = 19, kAccepts = 23;

TEST(Journal, AnUnchangedForgeryIsTheJournal) {
  const SmallJournal journal;
  EXPECT_EQ(forge(journal, 0, [](RecordType&, Time&, Bytes&) {}), journal.bytes);
}

TEST(Journal, AnotherDecisionIsAMismatch) {
  const SmallJournal journal;
  for (const std::size_t record : {kFirstDecide, kSecondDecide}) {
    const std::size_t size = record == kFirstDecide ? 128 : 64;
    for (std::size_t byte = 0; byte < size; ++byte) {
      const Replayed replayed = replay(forge(journal, record, [&](RecordType& type, Time&, Bytes& payload) {
        ASSERT_EQ(type, RecordType::kDecided);
        ASSERT_EQ(payload.size(), 4 + size);
        payload[4 + byte] ^= 1;
      }));
      ASSERT_EQ(replayed.result.status, Status::kJournalMismatch);
      ASSERT_EQ(replayed.result.good_bytes, journal.boundaries[record].bytes);
      ASSERT_EQ(replayed.result.events, record);
      ASSERT_EQ(replayed.result.decisions, journal.boundaries[record].decisions) << "only those that came out again";
    }
  }
  // One decision fewer, and one more.
  for (const int change : {-64, 64}) {
    const Replayed replayed = replay(forge(journal, kSecondDecide, [&](RecordType&, Time&, Bytes& payload) {
      payload.resize(payload.size() + static_cast<std::size_t>(change));
    }));
    EXPECT_EQ(replayed.result.status, Status::kJournalMismatch);
  }
  // Less room than there were decisions.
  const Replayed replayed =
      replay(forge(journal, kFirstDecide, [](RecordType&, Time&, Bytes& payload) { payload[0] = 1; }));
  EXPECT_EQ(replayed.result.status, Status::kJournalMismatch);
  // Room beyond all bounds costs nothing and changes nothing.
  const Replayed roomy = replay(forge(journal, kFirstDecide, [](RecordType&, Time&, Bytes& payload) {
    std::fill(payload.begin(), payload.begin() + 4, std::uint8_t{0xFF});
  }));
  EXPECT_EQ(roomy.result.status, Status::kOk);
}

TEST(Journal, AnEventThatIsRefusedIsAMismatch) {
  const SmallJournal journal;
  const auto mismatch = [&](std::size_t record, const std::function<void(RecordType&, Time&, Bytes&)>& change) {
    const Replayed replayed = replay(forge(journal, record, change));
    EXPECT_EQ(replayed.result.status, Status::kJournalMismatch);
    EXPECT_NO_FATAL_FAILURE(journal.expect_state(replayed, record));
  };
  mismatch(kTick, [](RecordType&, Time& now, Bytes&) { now = 1; });                         // time runs backwards
  mismatch(kFinish, [](RecordType&, Time&, Bytes& payload) { payload[0] = 2; });            // no such call
  mismatch(kStore, [](RecordType&, Time&, Bytes& payload) { payload[0] = 3; });             // no such worker
  mismatch(kTrust, [](RecordType&, Time&, Bytes& payload) { payload[5] = 4; });             // more than all
  mismatch(3, [](RecordType&, Time&, Bytes& payload) { payload[8] = 1, payload[9] = 0; });  // two blocks in one token
  mismatch(10, [](RecordType& type, Time&, Bytes& payload) {                                // the tool runs already
    type = RecordType::kToolStarted;
    payload.push_back(0);
  });
}

TEST(Journal, APayloadThatDoesNotFitItsTypeIsCorrupt) {
  const SmallJournal journal;
  const auto corrupt = [&](std::size_t record, const std::function<void(RecordType&, Time&, Bytes&)>& change) {
    const Replayed replayed = replay(forge(journal, record, change));
    EXPECT_EQ(replayed.result.status, Status::kJournalCorrupt) << record;
    EXPECT_NO_FATAL_FAILURE(journal.expect_state(replayed, record));
  };
  for (std::size_t record = 0; record + 1 < journal.boundaries.size(); ++record) {
    SCOPED_TRACE(record);
    corrupt(record, [](RecordType&, Time&, Bytes& payload) { payload.push_back(0); });  // a byte too many
    if (record != kTick) corrupt(record, [](RecordType&, Time&, Bytes& payload) { payload.pop_back(); });
    if (record != kTick) corrupt(record, [](RecordType&, Time&, Bytes& payload) { payload.clear(); });
    for (const int type : {0, 30, 255}) {
      corrupt(record, [&](RecordType& written, Time&, Bytes&) { written = static_cast<RecordType>(type); });
    }
  }
  corrupt(kStore, [](RecordType&, Time&, Bytes& payload) { payload[4] = 3; });      // no such tier
  corrupt(kStore, [](RecordType&, Time&, Bytes& payload) { payload[13] = 3; });     // more hashes than bytes
  corrupt(kStore, [](RecordType&, Time&, Bytes& payload) { payload[16] = 0xFF; });  // far more
  corrupt(kFinish, [](RecordType&, Time&, Bytes& payload) { payload[8] = 3; });     // no such stop reason
  corrupt(kFinish, [](RecordType&, Time&, Bytes& payload) { payload[9] = 5; });     // no such tool class
  corrupt(kToolStart, [](RecordType&, Time&, Bytes& payload) { payload[8] = 5; });
  corrupt(kAccepts, [](RecordType&, Time&, Bytes& payload) { payload[4] = 2; });
}

TEST(Journal, PiecesOfAnySizeAreOneStream) {
  // Three writers of the same records, drained in different ways while records come: the same bytes, within the capacity.
  const auto write = [](std::size_t piece, bool wait_until_full) {
    JournalWriter writer(300);
    Bytes stream;
    writer.begin_header();
    writer.put(std::uint32_t{7});
    writer.end();
    for (std::uint64_t record = 0; record < 500; ++record) {
      const std::size_t size = static_cast<std::size_t>(record % 11) * 8;
      const auto drain = [&] {
        Bytes out(piece);
        out.resize(writer.drain(out.data(), out.size()));
        stream.insert(stream.end(), out.begin(), out.end());
      };
      if (!wait_until_full) drain();
      while (!writer.fits(size)) drain();
      writer.begin(RecordType::kTick, record);
      for (std::size_t i = 0; i < size / 8; ++i) writer.put(mix64(record + i));
      writer.end();
      EXPECT_LE(writer.pending(), 300u);
    }
    Bytes rest(writer.pending());
    writer.drain(rest.data(), rest.size());
    stream.insert(stream.end(), rest.begin(), rest.end());
    EXPECT_EQ(writer.total_bytes(), stream.size());
    return stream;
  };
  const Bytes stream = write(1 << 20, false);
  for (const std::size_t piece : {1, 7, 64, 299}) {
    EXPECT_EQ(write(piece, false), stream);
    EXPECT_EQ(write(piece, true), stream);
  }
  JournalReader reader(stream);
  std::span<const std::uint8_t> options;
  ASSERT_EQ(reader.read_header(&options), Status::kOk);
  EXPECT_EQ(options.size(), 4u);
  Record record;
  std::uint64_t count = 0;
  for (; reader.next(&record) == Status::kOk; ++count) {
    ASSERT_EQ(record.now, count);
    ASSERT_EQ(record.payload.size(), count % 11 * 8);
  }
  EXPECT_EQ(count, 500u);
  EXPECT_EQ(reader.good_bytes(), stream.size());
}

}  // namespace
}  // namespace saga
