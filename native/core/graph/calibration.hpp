// Calibration: how good the predictions of reuse were, once their outcomes are known.
//
// Two reliability tables of ten bins (predicted probability against the share that happened) with the Brier score (mean
// squared error of the probability; 0 is perfect, that of always saying the mean rate r is r (1 - r)): "a next call
// comes at all" and "the next call comes within the horizon". And the coverage of gap quantiles: the share of gaps that
// were not longer than the predicted p50, p90 and p95, which should be .50, .90 and .95.
//
// A prediction is counted when its outcome is known: the next call, the end of the workflow, or the passing of the
// horizon. Cost: a few additions an outcome; the tables are plain numbers and add up (merge). Counts are exact up to
// 2^53.
//
// Invariants (verify()): in every bin happened <= predictions, the sum of predicted probabilities lies within the bin,
// and squared errors are within what both allow; covered gaps rise with the quantile and do not exceed the gaps.
#pragma once

#include <array>
#include <cstdint>

namespace saga {

inline constexpr std::uint32_t kReliabilityBins = 10;

struct ReliabilityBin {
  std::uint64_t predictions = 0;
  std::uint64_t happened = 0;
  double predicted_sum = 0;
};

struct ReliabilityTable {
  std::array<ReliabilityBin, kReliabilityBins> bins;
  double squared_error = 0;

  std::uint64_t predictions() const;
  std::uint64_t happened() const;
  double brier() const;              // 0 where nothing was predicted
  double calibration_error() const;  // mean over predictions of |predicted - happened| of their bin
  bool verify() const;
};

struct GapCoverage {
  std::uint64_t gaps = 0;
  std::uint64_t within_p50 = 0;
  std::uint64_t within_p90 = 0;
  std::uint64_t within_p95 = 0;
};

struct CalibrationReport {
  ReliabilityTable next_call;       // comes at all
  ReliabilityTable within_horizon;  // comes within the horizon
  GapCoverage gaps;
};

class Calibration {
 public:
  void next_call_known(double predicted, bool came) { add(report_.next_call, predicted, came); }
  void within_horizon_known(double predicted, bool came) { add(report_.within_horizon, predicted, came); }
  void gap_known(std::uint64_t gap, std::uint64_t p50, std::uint64_t p90, std::uint64_t p95);
  void merge(const Calibration& other);

  const CalibrationReport& report() const { return report_; }
  bool verify() const;

 private:
  static void add(ReliabilityTable& table, double predicted, bool came);

  CalibrationReport report_;
};

}  // namespace saga
