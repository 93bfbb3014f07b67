// The bounds of docs/fairness.md on adversarial arrivals, and that each of them is broken as soon as the rule that it rests
// on is taken away.
#include <gtest/gtest.h>

#include "fair_simulation.hpp"

namespace saga {
namespace {

FairScenario random_scenario(std::uint64_t seed) {
  Random random(seed);
  FairScenario scenario;
  const std::uint64_t tenants = 2 + random.below(30);
  const std::uint64_t spread = random.below(3);
  for (std::uint64_t i = 0; i < tenants; ++i) {
    scenario.tactics.push_back(static_cast<Tactic>(random.below(8)));
    const std::uint64_t weight = spread == 0   ? 1
                                 : spread == 1 ? 1 + random.below(100)
                                               : (random.below(8) == 0 ? 100 : 1);
    scenario.weights.push_back(static_cast<std::uint32_t>(weight) * (random.below(2) == 0 ? 1 : kFairWeightOne));
  }
  if (random.below(2) == 0) {
    for (auto& weight : scenario.weights) weight = (weight + 1023) / 1024 * 1024;
  }
  scenario.slots = 1u << random.below(6);
  scenario.events = 4000;
  return scenario;
}

// Rounding of the model, not of the queue.
constexpr double kSlack = 1.0;

TEST(FairBounds, DeviationOverEveryInterval) {
  double worst = 0, worst_lag = 0, free_grants = 0, grants = 0;
  for (std::uint64_t seed = 1; seed <= 120; ++seed) {
    const FairScenario scenario = random_scenario(seed);
    const FairOutcome outcome = FairSimulation(scenario, seed).run();
    const double grant = static_cast<double>(scenario.largest);
    ASSERT_TRUE(outcome.verified) << seed;
    ASSERT_EQ(outcome.illegal, 0u) << seed;
    ASSERT_GT(outcome.grants, 500u) << seed;
    const auto lightest = *std::min_element(scenario.weights.begin(), scenario.weights.end());
    ASSERT_LT(outcome.clock_error * lightest, 0.001 * grant) << seed;
    ASSERT_LE(outcome.lag, 3 * grant + kSlack) << seed;
    ASSERT_LE(outcome.lead, grant + outcome.up + kSlack) << seed;
    ASSERT_LE(outcome.deviation, 4 * grant + outcome.up + outcome.down + kSlack) << seed;
    worst = std::max(worst, outcome.deviation / (4 * grant + outcome.up + outcome.down));
    worst_lag = std::max(worst_lag, outcome.lag / (3 * grant));
    free_grants += static_cast<double>(outcome.free_grants);
    grants += static_cast<double>(outcome.grants);
  }
  // The adversary comes near the bounds, and both modes are played.
  EXPECT_GT(worst, 0.4);
  EXPECT_GT(worst_lag, 0.4);
  EXPECT_GT(free_grants / grants, 0.05);
  EXPECT_LT(free_grants / grants, 0.99);
  std::printf("deviation / bound %.3f, lag / bound %.3f, grants by urgency %.3f\n", worst, worst_lag,
              free_grants / grants);
}

// Charged the most that they can take, calls are corrected downwards only: the bound with what all calls running at one
// moment can still consume.
TEST(FairBounds, ChargedTheMost) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    FairScenario scenario = random_scenario(seed + 1000);
    scenario.charge_most = true;
    const FairOutcome outcome = FairSimulation(scenario, seed).run();
    ASSERT_EQ(outcome.up, 0) << seed;
    ASSERT_LE(outcome.deviation, 4 * static_cast<double>(scenario.largest) + outcome.can_consume + kSlack) << seed;
  }
}

// A call that does not fit is passed over, or waited for, without harm to the bounds that are not about time.
TEST(FairBounds, CallsThatDoNotFit) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    FairScenario scenario = random_scenario(seed + 3000);
    scenario.misfits = true;
    const FairOutcome outcome = FairSimulation(scenario, seed).run();
    ASSERT_TRUE(outcome.verified) << seed;
    ASSERT_EQ(outcome.illegal, 0u) << seed;
    ASSERT_GT(outcome.grants, 500u) << seed;
    ASSERT_LE(outcome.deviation, 4 * static_cast<double>(scenario.largest) + outcome.up + outcome.down + kSlack)
        << seed;
    ASSERT_LE(outcome.worst_turn, 1.0) << seed;
  }
}

TEST(FairBounds, IndependentOfTheLength) {
  FairScenario scenario;
  scenario.tactics = {Tactic::kHuge, Tactic::kTiny, Tactic::kUnderestimate, Tactic::kOverestimate, Tactic::kMixed};
  scenario.weights = {1024, 2048, 1024, 4096, 100 * 1024};
  double deviation[2];
  for (int i = 0; i < 2; ++i) {
    scenario.events = i == 0 ? 5000 : 50'000;
    scenario.verify_often = false;
    deviation[i] = FairSimulation(scenario, 7).run().deviation;
  }
  EXPECT_LE(deviation[1], 1.5 * deviation[0]);
}

TEST(FairBounds, Waits) {
  double worst_wait = 0, worst_turn = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const FairScenario scenario = random_scenario(seed + 2000);
    const FairOutcome outcome = FairSimulation(scenario, seed).run();
    ASSERT_LE(outcome.worst_turn, 1.0) << seed;
    ASSERT_LE(outcome.worst_wait, 1.0) << seed;
    worst_wait = std::max(worst_wait, outcome.worst_wait);
    worst_turn = std::max(worst_turn, outcome.worst_turn);
  }
  EXPECT_GT(worst_turn, 0.5);
  EXPECT_GT(worst_wait, 0.05);
  std::printf("wait / bound %.3f, turns / bound %.3f\n", worst_wait, worst_turn);
}

// ---- without the rule, the bound does not hold: the tests above can fail.

FairScenario steady() {
  FairScenario scenario;
  scenario.tactics = {Tactic::kMixed, Tactic::kMixed, Tactic::kMixed, Tactic::kMixed};
  scenario.weights = {1024, 1024, 2048, 4096};
  scenario.events = 10'000;
  return scenario;
}

TEST(FairBounds, WithoutTheLagRuleUrgencyDecides) {
  // Forty light tenants that are always more urgent than one as heavy as all of them together.
  FairScenario scenario;
  scenario.tactics.assign(41, Tactic::kMixed);
  scenario.weights.assign(41, 1024);
  scenario.weights[40] = 40 * 1024;
  scenario.meek = 40;
  scenario.events = 5000;
  const FairOutcome with = FairSimulation(scenario, 3).run();
  EXPECT_LE(with.deviation, 4.0 * 100'000);
  scenario.largest = 10'000'000;  // and with it the lag bound, out of reach
  scenario.largest_sent = 100'000;
  const FairOutcome without = FairSimulation(scenario, 3).run();
  EXPECT_GT(without.deviation, 2 * 4.0 * 100'000);
}

TEST(FairBounds, WithoutCorrectionTheDeviationGrowsWithTheLength) {
  FairScenario scenario = steady();
  scenario.tactics[1] = Tactic::kUnderestimate;
  scenario.tactics[2] = Tactic::kOverestimate;
  scenario.correct = false;
  const FairOutcome outcome = FairSimulation(scenario, 3).run();
  EXPECT_GT(outcome.deviation, 100 * (4.0 * 100'000 + outcome.up + outcome.down));
  scenario.correct = true;
  const FairOutcome corrected = FairSimulation(scenario, 3).run();
  EXPECT_LE(corrected.deviation, 4.0 * 100'000 + corrected.up + corrected.down);
}

TEST(FairBounds, WithoutTheTurnOfTheOldestCallsStarve) {
  FairOptions options;
  options.tenants = 1;
  options.entries = 64;
  options.largest_grant = 100;
  for (const std::uint32_t every : {8u, 1'000'000u}) {
    options.oldest_every = every;
    FairQueue queue(options);
    FairCall call, granted;
    call.cost = 100;
    call.work = 1'000'000;
    call.call = 1;
    FairEntry entry = kNone;
    ASSERT_EQ(queue.push(call, 0, &entry), Status::kOk);
    int turns = 0;
    do {
      FairCall shorter = call;
      shorter.call = 2;
      shorter.work = 100;
      while (queue.size() < 4) ASSERT_EQ(queue.push(shorter, 0, &entry), Status::kOk);
      ASSERT_TRUE(queue.pop(0, &granted));
    } while (granted.call != 1 && ++turns < 10'000);
    EXPECT_EQ(turns, every == 8 ? 7 : 10'000);
  }
}

// Light tenants come and go in bursts beside a heavy one, whose deadlines are far shorter than theirs.
TEST(FairBounds, ManyTenantsThatLeaveAtOnce) {
  FairScenario scenario;
  for (int i = 0; i < 200; ++i) {
    scenario.tactics.push_back(Tactic::kBurst);
    scenario.weights.push_back(1024);
  }
  scenario.tactics.push_back(Tactic::kHuge);
  scenario.weights.push_back(100 * 1024);
  scenario.events = 6000;
  scenario.slots = 2;
  const FairOutcome outcome = FairSimulation(scenario, 5).run();
  EXPECT_EQ(outcome.illegal, 0u);
  EXPECT_LE(outcome.deviation, 4.0 * 100'000 + kSlack);
}

}  // namespace
}  // namespace saga
