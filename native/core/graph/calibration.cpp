#include "calibration.hpp"

#include "../base/assert.hpp"

namespace saga {
namespace {

double sum_of_predictions(const ReliabilityTable& table) {
  double sum = 0;
  for (const ReliabilityBin& bin : table.bins) sum += bin.predicted_sum;
  return sum;
}

void add_up(ReliabilityTable& to, const ReliabilityTable& from) {
  for (std::uint32_t i = 0; i < kReliabilityBins; ++i) {
    to.bins[i].predictions += from.bins[i].predictions;
    to.bins[i].happened += from.bins[i].happened;
    to.bins[i].predicted_sum += from.bins[i].predicted_sum;
  }
  to.squared_error += from.squared_error;
}

}  // namespace

std::uint64_t ReliabilityTable::predictions() const {
  std::uint64_t sum = 0;
  for (const ReliabilityBin& bin : bins) sum += bin.predictions;
  return sum;
}

std::uint64_t ReliabilityTable::happened() const {
  std::uint64_t sum = 0;
  for (const ReliabilityBin& bin : bins) sum += bin.happened;
  return sum;
}

double ReliabilityTable::brier() const {
  const std::uint64_t n = predictions();
  return n == 0 ? 0 : squared_error / static_cast<double>(n);
}

double ReliabilityTable::calibration_error() const {
  const std::uint64_t n = predictions();
  if (n == 0) return 0;
  double sum = 0;
  for (const ReliabilityBin& bin : bins) {
    const double off = bin.predicted_sum - static_cast<double>(bin.happened);
    sum += off < 0 ? -off : off;
  }
  return sum / static_cast<double>(n);
}

bool ReliabilityTable::verify() const {
  for (std::uint32_t i = 0; i < kReliabilityBins; ++i) {
    const ReliabilityBin& bin = bins[i];
    if (bin.happened > bin.predictions) return false;
    const auto n = static_cast<double>(bin.predictions);
    const double rounding = 1e-9 * (n + 1);
    if (bin.predicted_sum < n * i / kReliabilityBins - rounding) return false;
    if (bin.predicted_sum > n * (i + 1) / kReliabilityBins + rounding) return false;
  }
  const auto n = static_cast<double>(predictions());
  // By Cauchy and Schwarz the mean squared error is at least the square of the mean error.
  const double mean_error = n > 0 ? (sum_of_predictions(*this) - static_cast<double>(happened())) / n : 0;
  return squared_error <= n * (1 + 1e-9) && squared_error >= n * mean_error * mean_error - 1e-6 * (n + 1);
}

void Calibration::add(ReliabilityTable& table, double predicted, bool came) {
  SAGA_ASSERT(predicted >= 0 && predicted <= 1);
  auto i = static_cast<std::uint32_t>(predicted * kReliabilityBins);
  if (i >= kReliabilityBins) i = kReliabilityBins - 1;
  ReliabilityBin& bin = table.bins[i];
  ++bin.predictions;
  bin.happened += came;
  bin.predicted_sum += predicted;
  const double error = came ? 1 - predicted : predicted;
  table.squared_error += error * error;
}

void Calibration::gap_known(std::uint64_t gap, std::uint64_t p50, std::uint64_t p90, std::uint64_t p95) {
  SAGA_ASSERT(p50 <= p90 && p90 <= p95);
  GapCoverage& gaps = report_.gaps;
  ++gaps.gaps;
  gaps.within_p50 += gap <= p50;
  gaps.within_p90 += gap <= p90;
  gaps.within_p95 += gap <= p95;
}

void Calibration::merge(const Calibration& other) {
  add_up(report_.next_call, other.report_.next_call);
  add_up(report_.within_horizon, other.report_.within_horizon);
  report_.gaps.gaps += other.report_.gaps.gaps;
  report_.gaps.within_p50 += other.report_.gaps.within_p50;
  report_.gaps.within_p90 += other.report_.gaps.within_p90;
  report_.gaps.within_p95 += other.report_.gaps.within_p95;
}

bool Calibration::verify() const {
  const GapCoverage& gaps = report_.gaps;
  return report_.next_call.verify() && report_.within_horizon.verify() && gaps.within_p50 <= gaps.within_p90 &&
         gaps.within_p90 <= gaps.within_p95 && gaps.within_p95 <= gaps.gaps;
}

}  // namespace saga
