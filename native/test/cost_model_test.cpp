#include "../core/place/cost_model.hpp"

#include <gtest/gtest.h>

#include "../core/base/random.hpp"

namespace saga {
namespace {

constexpr StepCosts kCosts = {0.010, 0.001, 1e-6, 0.002, 1e-7};

TEST(CostModel, AStepIsTheSumOfItsTerms) {
  const CostModel model(kCosts, 2);
  EXPECT_DOUBLE_EQ(model.step(0, 0, 0), 0.010);
  EXPECT_DOUBLE_EQ(model.step(1, 4, 0), 0.014);
  EXPECT_DOUBLE_EQ(model.step(1, 4, 5'000), 0.019);
  EXPECT_EQ(model.costs().per_prefill_token, 0.002);
}

TEST(CostModel, APrefillPaysForEachPairOfTokens) {
  const CostModel model(kCosts, 1);
  EXPECT_DOUBLE_EQ(model.prefill(0, 0, 10'000), 0);
  EXPECT_DOUBLE_EQ(model.prefill(0, 1'000, 0), 2.0 + 0.05);       // 1000 x 500 pairs
  EXPECT_DOUBLE_EQ(model.prefill(0, 1'000, 10'000), 2.0 + 1.05);  // 1000 x 10500 pairs
  // In two pieces it costs the same.
  EXPECT_NEAR(model.prefill(0, 300, 0) + model.prefill(0, 700, 300), model.prefill(0, 1'000, 0), 1e-12);
}

TEST(CostModel, TheFactorOfAWorkerFollowsWhatCallsTake) {
  CostModel model(kCosts, 2);
  EXPECT_EQ(model.factor(0), 1);
  model.observe(0, 2.0, 4.0);
  EXPECT_DOUBLE_EQ(model.factor(0), 1 + 1.0 / 64);
  EXPECT_EQ(model.factor(1), 1);
  EXPECT_DOUBLE_EQ(model.step(0, 1, 0), 0.011 * (1 + 1.0 / 64));
  EXPECT_DOUBLE_EQ(model.prefill(0, 100, 0), (0.2 + 5e-4) * (1 + 1.0 / 64));
  EXPECT_DOUBLE_EQ(model.step(1, 1, 0), 0.011);

  // Predictions include the factor, so it comes to rest where they are right: at 3 for a worker three times as slow.
  for (int i = 0; i < 4'000; ++i) model.observe(0, model.prefill(0, 100, 0), 3 * (0.2 + 5e-4));
  EXPECT_NEAR(model.factor(0), 3, 1e-9);
}

TEST(CostModel, ACallOfAFewStepsSaysLittle) {
  CostModel model(kCosts, 1);
  model.observe(0, 0.25, 0.5);
  EXPECT_DOUBLE_EQ(model.factor(0), 1 + 0.25 / 64);
  model.reset(0);
  EXPECT_EQ(model.factor(0), 1);
}

TEST(CostModel, TheFactorIsHeldWithinBounds) {
  CostModel model(kCosts, 2);
  for (int i = 0; i < 2'000; ++i) {
    model.observe(0, 1, 1e9);
    model.observe(1, 1, 0);
  }
  EXPECT_LE(model.factor(0), 4);
  EXPECT_NEAR(model.factor(0), 4, 1e-9);
  EXPECT_GE(model.factor(1), 0.25);
  EXPECT_NEAR(model.factor(1), 0.25, 1e-9);
}

TEST(CostModel, WhatWasNotPredictedTeachesNothing) {
  CostModel model(kCosts, 1);
  model.observe(0, 0, 5);
  model.observe(0, -1, 5);
  EXPECT_EQ(model.factor(0), 1);
}

TEST(CostModel, AnyObservationsLeaveItWithinBounds) {
  Random random(7);
  CostModel model(kCosts, 1);
  for (int i = 0; i < 10'000; ++i) {
    const double before = model.factor(0);
    const double ratio = random.uniform() * 8;
    model.observe(0, before, ratio);  // as seen by a model of factor 1
    const double target = ratio < 0.25 ? 0.25 : ratio > 4 ? 4 : ratio;
    ASSERT_NEAR(model.factor(0), before + (target - before) / 64, 1e-12);
    ASSERT_GE(model.factor(0), 0.25);
    ASSERT_LE(model.factor(0), 4);
  }
}

}  // namespace
}  // namespace saga
