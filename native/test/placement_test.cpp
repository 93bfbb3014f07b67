// Placement: every rule and tie by literal cases, then equality with an obvious model over random views.
#include "../core/place/placement.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "placement_model.hpp"

namespace saga {
namespace {

using test::place_by_model;
using test::WorkerView;

// The view of the core as columns, and the state of the policy.
struct Policy {
  PlacementOptions options{};
  std::uint32_t round_robin_next = 0;
  Random random{42};

  Placement place(const std::vector<WorkerView>& workers, std::uint32_t prompt_blocks) {
    std::vector<std::uint8_t> active;
    std::vector<std::uint32_t> matched, open, in_use;
    for (const WorkerView& worker : workers) {
      active.push_back(worker.active ? 1 : 0);
      matched.push_back(worker.matched_blocks);
      open.push_back(worker.open_calls);
      in_use.push_back(worker.blocks_in_use);
    }
    return saga::place(options, {active, matched, open, in_use, prompt_blocks}, round_robin_next, random);
  }
};

bool same_state(const Random& a, const Random& b) { return std::equal(a.state(), a.state() + 4, b.state()); }

std::pair<WorkerId, PlacementReason> pair_of(const Placement& placement) {
  return {placement.worker, placement.reason};
}
#define EXPECT_PLACED(placement, worker, reason) \
  EXPECT_EQ(pair_of(placement), std::pair(WorkerId{worker}, PlacementReason::reason))

constexpr WorkerView kInactive{.active = false, .matched_blocks = 1000, .open_calls = 0, .blocks_in_use = 0};

TEST(RoundRobin, TakesTurnsAndSkipsInactiveWorkers) {
  Policy policy{.options = {.kind = PlacementKind::kRoundRobin}};
  const std::vector<WorkerView> workers = {{}, kInactive, {}, kInactive, {}, kInactive};
  for (const WorkerId expected : {0u, 2u, 4u, 0u, 2u, 4u, 0u})
    EXPECT_PLACED(policy.place(workers, 10), expected, kRoundRobin);
}

TEST(RoundRobin, GoesOnBehindAWorkerThatCame) {
  Policy policy{.options = {.kind = PlacementKind::kRoundRobin}};
  EXPECT_PLACED(policy.place({{}, {}}, 1), 0u, kRoundRobin);
  EXPECT_PLACED(policy.place({{}, {}, {}}, 1), 1u, kRoundRobin);
  EXPECT_PLACED(policy.place({{}, {}, {}}, 1), 2u, kRoundRobin);
  EXPECT_PLACED(policy.place({{}, {}, {}}, 1), 0u, kRoundRobin);
}

TEST(RoundRobin, DrawsNothingAndLooksAtNothingElse) {
  Policy policy{.options = {.kind = PlacementKind::kRoundRobin}};
  const Random before = policy.random;
  const std::vector<WorkerView> workers = {{true, 0, 500, 500}, {true, 10, 0, 0}};
  EXPECT_PLACED(policy.place(workers, 10), 0u, kRoundRobin);
  EXPECT_PLACED(policy.place(workers, 10), 1u, kRoundRobin);
  EXPECT_TRUE(same_state(policy.random, before));
}

TEST(Placement, WithoutAnActiveWorkerThereIsNone) {
  for (const PlacementKind kind : {PlacementKind::kRoundRobin, PlacementKind::kAffinity}) {
    Policy policy{.options = {.kind = kind}};
    EXPECT_EQ(policy.place({}, 10).worker, kNone);
    EXPECT_EQ(policy.place({kInactive, kInactive}, 10).worker, kNone);
    EXPECT_EQ(policy.round_robin_next, 0u);
  }
}

TEST(Affinity, LongestMatchOfAtLeastTenPercent) {
  Policy policy;
  EXPECT_PLACED(policy.place({{true, 3, 0, 0}, {true, 40, 5, 900}, {true, 39, 0, 0}}, 100), 1u, kLongestMatch);
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 10, 5, 900}}, 100), 1u, kLongestMatch) << "exactly 10 %";
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 9, 0, 900}}, 100), 0u, kFewestBlocks) << "9 %";
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 10, 0, 900}}, 101), 0u, kFewestBlocks) << "9.9 %";
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 1, 0, 900}}, 10), 1u, kLongestMatch);
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 1, 0, 900}}, 11), 0u, kFewestBlocks);
}

TEST(Affinity, ZeroPercentStillNeedsAMatch) {
  Policy policy{.options = {.minimum_match_percent = 0}};
  EXPECT_PLACED(policy.place({{true, 0, 0, 7}, {true, 0, 0, 3}}, 100), 1u, kFewestBlocks);
  EXPECT_PLACED(policy.place({{true, 1, 0, 7}, {true, 0, 0, 3}}, 100000), 0u, kLongestMatch);
  EXPECT_PLACED(policy.place({{true, 0, 0, 7}, {true, 0, 0, 3}}, 0), 1u, kFewestBlocks)
      << "a prompt without full blocks";
}

TEST(Affinity, HundredPercentNeedsAllOfThePrompt) {
  Policy policy{.options = {.minimum_match_percent = 100}};
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 99, 0, 9}}, 100), 0u, kFewestBlocks);
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 100, 0, 9}}, 100), 1u, kLongestMatch);
}

TEST(Affinity, PercentOfALongPromptDoesNotOverflow) {
  Policy policy{.options = {.minimum_match_percent = 100}};
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 0xFFFFFFFEu, 0, 9}}, 0xFFFFFFFFu), 0u, kFewestBlocks);
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 0xFFFFFFFFu, 0, 9}}, 0xFFFFFFFFu), 1u, kLongestMatch);
}

TEST(Affinity, EqualMatchesGoToFewerOpenCallsThenTheSmallestId) {
  Policy policy;
  EXPECT_PLACED(policy.place({{true, 50, 4, 0}, {true, 50, 3, 900}, {true, 50, 5, 0}}, 100), 1u, kLongestMatch);
  EXPECT_PLACED(policy.place({{true, 0, 0, 0}, {true, 50, 3, 900}, {true, 50, 3, 0}}, 100), 1u, kLongestMatch);
}

TEST(Affinity, FewestBlocksThenFewerOpenCallsThenTheSmallestId) {
  Policy policy;
  EXPECT_PLACED(policy.place({{true, 0, 0, 5}, {true, 0, 9, 4}, {true, 0, 0, 6}}, 100), 1u, kFewestBlocks);
  EXPECT_PLACED(policy.place({{true, 0, 3, 5}, {true, 0, 2, 5}, {true, 0, 2, 5}}, 100), 1u, kFewestBlocks);
  EXPECT_PLACED(policy.place({{true, 0, 2, 5}, {true, 0, 2, 5}}, 100), 0u, kFewestBlocks);
}

TEST(Affinity, InactiveWorkersDoNotCount) {
  Policy policy;
  EXPECT_PLACED(policy.place({kInactive, {true, 20, 5, 9}, {true, 0, 5, 4}}, 100), 1u, kLongestMatch);
  EXPECT_PLACED(policy.place({kInactive, {true, 0, 5, 9}, {true, 0, 5, 4}}, 100), 2u, kFewestBlocks);
  // An inactive worker's zero open calls are no imbalance either.
  EXPECT_PLACED(policy.place({kInactive, {true, 0, 50, 9}, {true, 0, 45, 10}}, 100), 1u, kFewestBlocks);
}

TEST(Affinity, OneWorkerIsNeverImbalanced) {
  Policy policy{.options = {.imbalance_calls = 0}};
  EXPECT_PLACED(policy.place({kInactive, {true, 0, 0xFFFFFFFFu, 9}}, 100), 1u, kFewestBlocks);
}

TEST(Affinity, ImbalanceBeginsAboveTheLimit) {
  Policy policy;
  const Random before = policy.random;
  EXPECT_PLACED(policy.place({{true, 90, 10, 9}, {true, 0, 0, 0}}, 100), 0u, kLongestMatch)
      << "a difference of 10 is fine";
  EXPECT_TRUE(same_state(policy.random, before)) << "nothing is drawn";
  EXPECT_PLACED(policy.place({{true, 90, 11, 0}, {true, 0, 0, 900}}, 100), 1u, kImbalance);
  Random twice = before;
  twice.next();
  twice.next();
  EXPECT_TRUE(same_state(policy.random, twice)) << "two draws, no more and no fewer";
}

TEST(Affinity, ImbalanceDrawsTwoDifferentWorkersUniformly) {
  // Worker 1 is full and worker 3 inactive. Pairs of {0, 1, 2, 4}: 0 wins three of six, 2 two, 4 one, 1 none.
  Policy policy;
  const std::vector<WorkerView> workers = {
      {true, 0, 0, 0}, {true, 100, 20, 0}, {true, 0, 0, 0}, kInactive, {true, 0, 0, 0}};
  std::array<int, 5> chosen{};
  for (int draw = 0; draw < 6000; ++draw) {
    const Placement placed = policy.place(workers, 100);
    ASSERT_EQ(placed.reason, PlacementReason::kImbalance);
    ++chosen[placed.worker];
  }
  EXPECT_EQ(chosen[1], 0);
  EXPECT_EQ(chosen[3], 0);
  EXPECT_NEAR(chosen[0], 3000, 150);
  EXPECT_NEAR(chosen[2], 2000, 150);
  EXPECT_NEAR(chosen[4], 1000, 150);
}

TEST(Affinity, TheSameSeedDrawsTheSame) {
  const std::vector<WorkerView> workers(9, WorkerView{});
  std::vector<WorkerView> unequal = workers;
  unequal[4].open_calls = 30;
  Policy a{.random = Random(7)}, b{.random = Random(7)}, c{.random = Random(8)};
  bool differs = false;
  for (int draw = 0; draw < 100; ++draw) {
    const WorkerId chosen = a.place(unequal, 10).worker;
    EXPECT_EQ(b.place(unequal, 10).worker, chosen);
    differs |= c.place(unequal, 10).worker != chosen;
  }
  EXPECT_TRUE(differs);
}

TEST(Affinity, RanksAllOrdersOfFourWorkersAlike) {
  // Whatever ids they have, the worker with the best key wins: 4! orders for each of the two rules.
  const std::vector<WorkerView> by_match = {{true, 60, 2, 90}, {true, 60, 3, 10}, {true, 59, 0, 0}, {true, 0, 1, 0}};
  const std::vector<WorkerView> by_blocks = {{true, 0, 2, 10}, {true, 0, 3, 10}, {true, 5, 0, 11}, {true, 9, 1, 900}};
  std::vector<std::size_t> order = {0, 1, 2, 3};
  do {
    std::vector<WorkerView> match, blocks;
    for (const std::size_t i : order) match.push_back(by_match[i]), blocks.push_back(by_blocks[i]);
    const auto best = static_cast<WorkerId>(std::find(order.begin(), order.end(), 0u) - order.begin());
    Policy policy;
    EXPECT_PLACED(policy.place(match, 100), best, kLongestMatch);
    EXPECT_PLACED(policy.place(blocks, 100), best, kFewestBlocks);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(Placement, EqualsTheModelOverRandomViews) {
  Random random(2024);
  std::array<int, 4> reasons{};
  for (int round = 0; round < 400; ++round) {
    Policy policy{.options = {.kind = random.below(4) == 0 ? PlacementKind::kRoundRobin : PlacementKind::kAffinity,
                              .imbalance_calls = static_cast<std::uint32_t>(random.below(12)),
                              .minimum_match_percent = static_cast<std::uint32_t>(random.below(101))},
                  .random = Random(random.next())};
    std::uint32_t model_next = 0;
    Random model_random = policy.random;
    // Small ranges, so that ties are common; the number of workers grows as it does in the engine.
    std::vector<WorkerView> workers(random.below(6));
    for (int step = 0; step < 100; ++step) {
      if (workers.size() < 12 && random.below(10) == 0) workers.push_back({});
      for (WorkerView& worker : workers) {
        worker = {random.below(4) != 0, static_cast<std::uint32_t>(random.below(5)),
                  static_cast<std::uint32_t>(random.below(random.below(2) == 0 ? 4 : 20)),
                  static_cast<std::uint32_t>(random.below(4))};
      }
      const auto prompt_blocks = static_cast<std::uint32_t>(random.below(20));
      const Placement placed = policy.place(workers, prompt_blocks);
      const Placement expected = place_by_model(policy.options, workers, prompt_blocks, model_next, model_random);
      ASSERT_EQ(placed.worker, expected.worker);
      ASSERT_EQ(placed.reason, expected.reason);
      ASSERT_EQ(policy.round_robin_next, model_next);
      ASSERT_TRUE(same_state(policy.random, model_random));
      if (placed.worker != kNone) ++reasons[static_cast<std::size_t>(placed.reason)];
    }
  }
  for (const int count : reasons) EXPECT_GT(count, 1000) << "each rule was met";
}

}  // namespace
}  // namespace saga
