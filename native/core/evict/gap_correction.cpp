#include "gap_correction.hpp"

#include <algorithm>
#include <bit>

#include "../base/assert.hpp"
#include "../base/real.hpp"

namespace saga {
namespace {

constexpr std::uint64_t kLossMemory = 512;
constexpr std::uint64_t kDecidedBefore = 64;  // the gate does not open

double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// e^x for x in [-8, 0], to about 1e-7.
double quick_exp(double x) {
  const double y = x * real_detail::kLog2E;
  constexpr double kMagic = 0x1.8p52;
  const double shifted = y + kMagic;
  const double whole = shifted - kMagic;
  const double r = (y - whole) * real_detail::kLn2;
  const double p = 1 + r * (1 + r * (0.5 + r * (1.0 / 6 + r * (1.0 / 24 + r * (1.0 / 120 + r * (1.0 / 720))))));
  const auto k = std::bit_cast<std::int64_t>(shifted) - std::bit_cast<std::int64_t>(kMagic);
  return p * std::bit_cast<double>(static_cast<std::uint64_t>(k + 1023) << 52);
}

// 1 / sqrt(x), x >= 1, to 5e-6: a first guess from the bits, and two steps of Newton's. Unlike a root and a division it is
// computed for four groups at once.
inline float inverse_root(float x) {
  float y = std::bit_cast<float>(0x5f3759dfu - (std::bit_cast<std::uint32_t>(x) >> 1));
  y = y * (1.5f - 0.5f * x * y * y);
  return y * (1.5f - 0.5f * x * y * y);
}

}  // namespace

GapCorrection::GapCorrection() : weights_(std::size_t{kFeatures} * kBins) {
  for (Weights& w : weights_) w.square.fill(1);
}

void GapCorrection::fill(ClassView& view, const HazardTable& table) {
  for (std::uint32_t g = 0; g < kGroups; ++g) {
    double mass = 0;
    for (std::uint32_t k = kGroupStart[g]; k < kGroupStart[g + 1]; ++k) mass += table.cumulated[k];
    const double passed = real_exp(-mass);
    const double event = clamp(1 - passed, 1e-4, 0.9999);
    view.mass[g] = -real_ln(1 - event);
    view.log_odds[g] = static_cast<float>(real_ln(event / (1 - event)));
  }
  std::uint32_t top = 0;
  view.hull[0] = kBuckets;
  view.slope[0] = 0;
  for (std::uint32_t k = kBuckets; k-- > kEnd;) {
    const auto slope_to = [&](std::uint32_t other) {
      return (table.survival[k] - table.survival[other]) / (table.left[k] - table.left[other]);
    };
    double slope = slope_to(view.hull[top]);
    while (top > 0 && slope <= view.slope[top]) slope = slope_to(view.hull[--top]);
    view.hull[++top] = static_cast<std::uint8_t>(k);
    view.slope[top] = slope;
  }
  view.hull_size = top + 1;
}

void GapCorrection::rebuild(const HazardTree& gap) {
  fresh_.assign(gap.size(), false);
  views_.resize(gap.size());
  active_ = false;
  for (std::uint32_t g = 0; g < kCorrected; ++g) {
    Loss& loss = loss_[g];
    // Better by two standard errors of a mean over the memory of the average.
    const double spread =
        std::max(0.0, loss.square - loss.advantage * loss.advantage) / static_cast<double>(kLossMemory);
    loss.counts = loss.decided >= kDecidedBefore && loss.advantage > 0 && loss.advantage * loss.advantage > 4 * spread;
    active_ |= loss.counts;
  }
}

const GapCorrection::ClassView& GapCorrection::view(const HazardTree& gap, HazardTree::ClassId id) const {
  if (id >= views_.size()) {
    views_.resize(id + 1);
    fresh_.resize(id + 1, false);
  }
  if (!fresh_[id]) {
    fill(views_[id], gap.table(id));
    fresh_[id] = true;
  }
  return views_[id];
}

std::array<float, GapCorrection::kGroups> GapCorrection::sum(const Features& features) const {
  std::array<float, kGroups> z{};
  for (std::uint32_t f = 0; f < kFeatures; ++f) {
    const auto& weight = weights_[f * kBins + features[f]].weight;
    for (std::uint32_t g = 0; g < kGroups; ++g) z[g] += weight[g];
  }
  return z;
}

void GapCorrection::predict(const HazardTree& gap, HazardTree::ClassId id, const Features& features, std::uint32_t from,
                            IndexValue* index) const {
  const ClassView& seen = view(gap, id);
  const HazardTable& table = gap.table(id);
  const std::array<float, kGroups> z = sum(features);

  // S and L from `from` on, S(from) = 1.
  std::array<double, kBuckets + 1> survival;
  std::array<double, kBuckets + 1> left;
  std::array<double, kEnd> mass;
  const BucketGrid& grid = gap.grid();
  survival[from] = 1;
  for (std::uint32_t g = group_of(from); g < kCorrected; ++g) {
    double scale = 1;
    if (loss_[g].counts) {
      const double odds = real_exp(clamp(static_cast<double>(seen.log_odds[g] + z[g]), -11.5, 7.6));
      scale = real_ln(1 + odds) / seen.mass[g];
    }
    for (std::uint32_t k = std::max(from, kGroupStart[g]); k < kGroupStart[g + 1]; ++k) {
      mass[k] = clamp(table.cumulated[k] * scale, 1e-6, 6.9);
      survival[k + 1] = survival[k] * quick_exp(-mass[k]);
    }
  }
  const double far = survival[kEnd] / table.survival[kEnd];
  left[kEnd] = table.left[kEnd] * far;
  for (std::uint32_t k = kEnd; k-- > from;) {
    const double width = grid.start[k + 1] - grid.start[k];
    const double lost = survival[k] - survival[k + 1];
    left[k] = left[k + 1] + width * (mass[k] > 1e-4 ? lost / mass[k] : survival[k]);
  }

  std::array<std::uint8_t, kBuckets + 1> hull;
  std::array<double, kBuckets + 1> slope_before;
  std::uint32_t top = seen.hull_size - 1;
  std::copy_n(seen.hull.begin(), seen.hull_size, hull.begin());
  std::copy_n(seen.slope.begin(), seen.hull_size, slope_before.begin());
  const auto point_survival = [&](std::uint32_t k) { return k <= kEnd ? survival[k] : table.survival[k] * far; };
  const auto point_left = [&](std::uint32_t k) { return k <= kEnd ? left[k] : table.left[k] * far; };
  for (std::uint32_t k = kEnd; k-- > from;) {
    double slope = (survival[k] - point_survival(hull[top])) / (left[k] - point_left(hull[top]));
    while (top > 0 && slope <= slope_before[top]) {
      --top;
      slope = (survival[k] - point_survival(hull[top])) / (left[k] - point_left(hull[top]));
    }
    index[k] = to_index_value(slope);
    hull[++top] = static_cast<std::uint8_t>(k);
    slope_before[top] = slope;
  }
}

void GapCorrection::learn(const HazardTree& gap, HazardTree::ClassId id, const Features& features, std::uint32_t from,
                          std::uint32_t to, bool ended) {
  const std::uint32_t end = std::min(ended ? to + 1 : to, kCorrected);
  if (from >= end) return;
  const ClassView& seen = view(gap, id);
  const std::array<float, kGroups> z = sum(features);
  // All groups in one sweep over the weights: those that have learned nothing have error and decay 0.
  std::array<float, kGroups> error{};
  std::array<float, kGroups> decay{};
  for (std::uint32_t g = from; g < end; ++g) {
    const bool event = ended && g == to;
    const double base = static_cast<double>(seen.log_odds[g]);
    const double all = clamp(base + static_cast<double>(z[g]), -30, 30);
    const double odds = real_exp(all);
    const double corrected = real_ln(1 + odds) - (event ? all : 0);
    const double plain = seen.mass[g] - (event ? base : 0);
    Loss& loss = loss_[g];
    ++loss.decided;
    const double rate = loss.decided > kLossMemory ? 1.0 / kLossMemory : 1 / static_cast<double>(loss.decided);
    const double advantage = plain - corrected;
    loss.plain += rate * (plain - loss.plain);
    loss.corrected += rate * (corrected - loss.corrected);
    loss.advantage += rate * (advantage - loss.advantage);
    loss.square += rate * (advantage * advantage - loss.square);
    error[g] = static_cast<float>((event ? 1.0 : 0.0) - odds / (1 + odds));
    decay[g] = 0.05f;
  }
  for (std::uint32_t f = 0; f < kFeatures; ++f) {
    Weights& w = weights_[f * kBins + features[f]];
    for (std::uint32_t g = 0; g < kGroups; ++g) {
      const float step = error[g] - decay[g] * w.weight[g];
      w.square[g] += step * step;
      w.weight[g] += 0.03f * step * inverse_root(w.square[g]);
    }
  }
}

bool GapCorrection::verify() const {
  for (const Weights& w : weights_) {
    for (std::uint32_t g = 0; g < kGroups; ++g) {
      if (!(w.square[g] >= 1) || !(w.weight[g] > -100 && w.weight[g] < 100)) return false;
    }
  }
  bool any = false;
  for (const Loss& loss : loss_) {
    if (!(loss.square >= 0) || (loss.counts && loss.decided < kDecidedBefore)) return false;
    any |= loss.counts;
  }
  return any == active_ && views_.size() == fresh_.size();
}

}  // namespace saga
