#include "../core/sim/step_time.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

namespace saga {
namespace {

StepLoad prefill(std::uint64_t tokens, std::uint64_t before) {
  StepLoad load;
  load.add_prefill(tokens, before);
  return load;
}

TEST(StepTime, SingleCallByHand) {
  // 28.6 + 178 + 4.7e-6 * 1000 * 500 = 208.95 ms.
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp4, StepTimeCurve::kLinear).step(prefill(1000, 0)), 208'950u);
  // 110.5 + 110.5 * 488 / 512 + 2.35 = 218.1703 ms.
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp4).step(prefill(1000, 0)), 218'170u);
  // One request decodes behind 999 tokens: 28.6 + 0.141 + 0.078; 27.8 + 0.078.
  StepLoad decode;
  decode.add_decode(1000);
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp4, StepTimeCurve::kLinear).step(decode), 28'819u);
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp4).step(decode), 27'878u);
}

TEST(StepTime, FullBatchByHand) {
  StepLoad load;
  for (int i = 0; i < 256; ++i) load.add_decode(1000);
  // 13.2 + 0.031 * 256 + 2.4e-5 * 256,000 = 27.28 ms; 20.0 + 6.144.
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp8, StepTimeCurve::kLinear).step(load), 27'280u);
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp8).step(load), 26'144u);
  // 18.7 + 0.105 * 256 + 3.9e-5 * 256,000 = 55.564 ms; 46.9 + 9.984.
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp8, StepTimeCurve::kLinear).step(load), 55'564u);
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp8).step(load), 56'884u);
}

TEST(StepTime, ChunkedPrefillByHand) {
  // A chunk of 2,048 behind 30,000: S = 2,048 * 31,024 = 63,537,152; 20.5 + 128.2048 + 93.39961 ms.
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp4, StepTimeCurve::kLinear).step(prefill(2048, 30'000)), 242'104u);
  // A chunk of 2,016 beside 32 decoding requests of 2,000 tokens: 139.8 + 91.89283 + 3.072 ms.
  StepLoad mixed = prefill(2016, 30'000);
  for (int i = 0; i < 32; ++i) mixed.add_decode(2000);
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp4).step(mixed), 234'765u);
  // A prompt of 5,000 in three chunks has the S of one chunk of 5,000: 12,500,000 pairs.
  StepLoad chunks;
  chunks.add_prefill(2048, 0);
  chunks.add_prefill(2048, 2048);
  chunks.add_prefill(904, 4096);
  EXPECT_EQ(chunks.prefill_pairs2, 25'000'000u);
}

TEST(StepTime, GrainByHand) {
  // 512 tokens behind 7,500, each for four: the pairs of 2,048 behind 30,000. Four steps of 512 tokens: 4 * 40.5 + 93.39961 ms.
  const StepTimeModel coarse(Hardware::kH100Tp4, StepTimeCurve::kInterpolated, true, 4);
  EXPECT_EQ(coarse.step(prefill(512, 7'500)), 255'400u);
  // 4 * 20.5 + 128.2048 + 93.39961 ms.
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp4, StepTimeCurve::kLinear, true, 4).step(prefill(512, 7'500)), 303'604u);
  // Four steps of one call with 40,000 tokens: 4 * (20.6 + 1.92) ms.
  StepLoad decode;
  decode.add_decode(10'000);
  EXPECT_EQ(coarse.step(decode), 90'080u);
  // A scheduler's costs of it are those of four steps.
  EXPECT_DOUBLE_EQ(step_costs(coarse).base, 4 * step_costs(StepTimeModel(Hardware::kH100Tp4)).base);
}

TEST(StepTime, WithinTenPercentOfTheSums) {
  int judged = 0;
  for (const StepTimeComparison& row : compare_step_time_model()) {
    if (row.source != StepTimeComparison::Source::kVidurSum) continue;
    if (row.tokens != 1 && row.tokens < 1024) continue;
    ++judged;
    EXPECT_LT(std::fabs(row.relative_error), 0.10) << hardware_name(row.hardware) << " n = " << row.tokens;
  }
  EXPECT_EQ(judged, 4 * 2 * 4);
}

TEST(StepTime, PublishedSumsAreTheReference) {
  // Literals against the data file: a slip there would move model and reference together.
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp4, StepTimeCurve::kInterpolated, false).step(prefill(256, 0)), 27'000u);
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp8, StepTimeCurve::kInterpolated, false).step(prefill(64, 0)), 14'600u);
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp4, StepTimeCurve::kInterpolated, false).step(prefill(2048, 9)), 391'100u);
  EXPECT_EQ(StepTimeModel(Hardware::kA100Tp8, StepTimeCurve::kInterpolated, false).step(prefill(4096, 0)), 469'800u);
  // Between points, down a dip (64: 22.0, 128: 21.6), and beyond the end (slope of the last segment, (278.7 -
  // 139.8) / 2,048).
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp4, StepTimeCurve::kInterpolated, false).step(prefill(96, 0)), 21'800u);
  EXPECT_EQ(StepTimeModel(Hardware::kH100Tp4, StepTimeCurve::kInterpolated, false).step(prefill(6144, 0)), 417'600u);
}

TEST(StepTime, ReportPrintsEveryError) {
  std::size_t sums = 0;
  std::size_t splitwise = 0;
  for (const StepTimeComparison& row : compare_step_time_model()) {
    const char* curve = row.curve == StepTimeCurve::kLinear ? "linear" : "interpolated";
    const char* source = "sum of profiles, n";
    if (row.source == StepTimeComparison::Source::kVidurSum) ++sums;
    if (row.source != StepTimeComparison::Source::kVidurSum) ++splitwise;
    if (row.source == StepTimeComparison::Source::kSplitwisePrefill) source = "splitwise prefill, P";
    if (row.source == StepTimeComparison::Source::kSplitwiseDecode) source = "splitwise decode, B";
    std::printf("%-9s %-12s %-20s = %5u context %5u  published %8.2f ms  model %8.2f ms  %+6.1f %%\n",
                hardware_name(row.hardware), curve, source, row.tokens, row.context_a_request,
                row.reference_milliseconds, row.model_milliseconds, 100.0 * row.relative_error);
    ASSERT_TRUE(std::isfinite(row.relative_error));
  }
  EXPECT_EQ(sums, 4u * 2u * 9u);
  EXPECT_EQ(splitwise, 4u * 2u * (6u + 8u));
}

TEST(StepTime, Verify) {
  for (std::uint32_t h = 0; h < kHardwareCount; ++h) {
    EXPECT_TRUE(StepTimeModel(static_cast<Hardware>(h)).verify());
  }
}

}  // namespace
}  // namespace saga
