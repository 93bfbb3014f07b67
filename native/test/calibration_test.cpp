#include "../core/graph/calibration.hpp"

#include <gtest/gtest.h>

#include "../core/base/random.hpp"

namespace saga {
namespace {

TEST(Calibration, Literals) {
  Calibration calibration;
  EXPECT_EQ(calibration.report().next_call.brier(), 0);
  calibration.next_call_known(0.25, false);
  calibration.next_call_known(0.25, true);
  calibration.next_call_known(0.95, true);
  calibration.next_call_known(1.0, true);
  const ReliabilityTable& table = calibration.report().next_call;
  EXPECT_EQ(table.predictions(), 4u);
  EXPECT_EQ(table.happened(), 3u);
  EXPECT_EQ(table.bins[2].predictions, 2u);
  EXPECT_EQ(table.bins[2].happened, 1u);
  EXPECT_DOUBLE_EQ(table.bins[2].predicted_sum, 0.5);
  EXPECT_EQ(table.bins[9].predictions, 2u);
  EXPECT_DOUBLE_EQ(table.brier(), (0.0625 + 0.5625 + 0.0025) / 4);
  EXPECT_DOUBLE_EQ(table.calibration_error(), (0.5 + 0.05) / 4);
  EXPECT_EQ(calibration.report().within_horizon.predictions(), 0u);
  EXPECT_TRUE(calibration.verify());
}

TEST(Calibration, GapCoverage) {
  Calibration calibration;
  calibration.gap_known(5, 5, 10, 20);
  calibration.gap_known(6, 5, 10, 20);
  calibration.gap_known(15, 5, 10, 20);
  calibration.gap_known(21, 5, 10, 20);
  const GapCoverage& gaps = calibration.report().gaps;
  EXPECT_EQ(gaps.gaps, 4u);
  EXPECT_EQ(gaps.within_p50, 1u);
  EXPECT_EQ(gaps.within_p90, 2u);
  EXPECT_EQ(gaps.within_p95, 3u);
  EXPECT_TRUE(calibration.verify());
}

TEST(Calibration, TrueProbabilitiesAreCalibrated) {
  Random random(3);
  Calibration calibration;
  double expected = 0;
  constexpr int kPredictions = 200'000;
  for (int i = 0; i < kPredictions; ++i) {
    const double p = random.uniform();
    calibration.within_horizon_known(p, random.uniform() < p);
    expected += p * (1 - p);
  }
  const ReliabilityTable& table = calibration.report().within_horizon;
  EXPECT_NEAR(table.brier(), expected / kPredictions, 0.003);
  EXPECT_LT(table.calibration_error(), 0.01);
  EXPECT_TRUE(calibration.verify());
}

TEST(Calibration, MergeIsTheSum) {
  Random random(5);
  Calibration parts[2];
  Calibration whole;
  for (int i = 0; i < 2000; ++i) {
    Calibration& part = parts[random.below(2)];
    const double p = static_cast<double>(random.below(65)) / 64;  // sums are exact
    const bool came = random.below(3) == 0;
    const std::uint64_t gap = random.below(100);
    part.next_call_known(p, came);
    whole.next_call_known(p, came);
    part.within_horizon_known(p, !came);
    whole.within_horizon_known(p, !came);
    part.gap_known(gap, 50, 90, 95);
    whole.gap_known(gap, 50, 90, 95);
  }
  parts[0].merge(parts[1]);
  const CalibrationReport& a = parts[0].report();
  const CalibrationReport& b = whole.report();
  for (std::uint32_t i = 0; i < kReliabilityBins; ++i) {
    EXPECT_EQ(a.next_call.bins[i].predictions, b.next_call.bins[i].predictions);
    EXPECT_EQ(a.next_call.bins[i].happened, b.next_call.bins[i].happened);
    EXPECT_EQ(a.next_call.bins[i].predicted_sum, b.next_call.bins[i].predicted_sum);
    EXPECT_EQ(a.within_horizon.bins[i].happened, b.within_horizon.bins[i].happened);
  }
  EXPECT_EQ(a.next_call.squared_error, b.next_call.squared_error);
  EXPECT_EQ(a.gaps.gaps, b.gaps.gaps);
  EXPECT_EQ(a.gaps.within_p50, b.gaps.within_p50);
  EXPECT_EQ(a.gaps.within_p90, b.gaps.within_p90);
  EXPECT_EQ(a.gaps.within_p95, b.gaps.within_p95);
  EXPECT_TRUE(parts[0].verify());
}

TEST(Calibration, VerifyFindsWhatIsWrong) {
  ReliabilityTable table;
  EXPECT_TRUE(table.verify());
  table.bins[3] = {10, 4, 3.5};
  table.squared_error = 2.5;
  EXPECT_TRUE(table.verify());
  table.bins[3].happened = 11;
  EXPECT_FALSE(table.verify());
  table.bins[3] = {10, 4, 5.5};  // a mean of .55 is not in [.3, .4]
  EXPECT_FALSE(table.verify());
  table.bins[3] = {10, 4, 3.5};
  table.squared_error = 11;
  EXPECT_FALSE(table.verify());
  table.bins[3] = {10, 0, 3.5};
  table.squared_error = 0.1;  // all were .35 off
  EXPECT_FALSE(table.verify());
}

}  // namespace
}  // namespace saga
