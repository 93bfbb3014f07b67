#include "gap_correction.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/real.hpp"

namespace saga {
namespace {

constexpr std::uint64_t kLossMemory = 512;
constexpr std::uint64_t kDecidedBefore = 64;  // the gate does not open
constexpr std::uint32_t kLanes = 4;

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

GapCorrection::Shift GapCorrection::shift(const Features& features) const {
  Shift sum{};
  for (std::uint32_t f = 0; f < kFeatures; ++f) {
    const Shift& weight = weights_[f * kBins + features[f]].weight;
    for (std::uint32_t g = 0; g < kGroups; ++g) sum[g] += weight[g];
  }
  return sum;
}

// Why it holds. Let h be the hazard of the class, S and G its survival and index, h' >= s h that of the call with s <= 1 the
// same at all ages, and S' = S^s. G is reached at some age, and from every age before it on to there the mean of h, weighted
// by S, is at least G (else it would have paid to stop earlier). S'/S rises with age, so weighting by S' instead puts weight on
// such later parts, and the mean of h stays at least G, that of s h at least s G: G' >= s G. Larger hazards only help.
// For s: hazards of a group are scaled by softplus(log odds + shift) / softplus(log odds), which is at least e^shift
// (1 from shift 0 on); what clamps and rounding take from that is far less than a tenth of it.
double GapCorrection::least_part(const Shift& shift, std::uint32_t from) const {
  float least = 0;
  for (std::uint32_t g = group_of(from); g < kCorrected; ++g) {
    if (loss_[g].counts) least = std::min(least, shift[g]);
  }
  return 0.9 * real_exp(static_cast<double>(least));
}

void GapCorrection::predict(const HazardTree& gap, HazardTree::ClassId id, const Shift& shift, std::uint32_t from,
                            IndexValue* index) const {
  const ClassView& seen = view(gap, id);
  const HazardTable& table = gap.table(id);

  // Loops without a dependency between buckets stand apart: two buckets are computed at once.
  const BucketGrid& grid = gap.grid();
  std::array<double, kEnd> mass;
  for (std::uint32_t g = group_of(from); g < kCorrected; ++g) {
    double scale = 1;
    if (loss_[g].counts) {
      const double odds = real_exp(clamp(static_cast<double>(seen.log_odds[g] + shift[g]), -11.5, 7.6));
      scale = real_ln(1 + odds) / seen.mass[g];
    }
    for (std::uint32_t k = std::max(from, kGroupStart[g]); k < kGroupStart[g + 1]; ++k) {
      mass[k] = table.cumulated[k] * scale;
    }
  }
  std::array<double, kEnd> passed;
  for (std::uint32_t k = from; k < kEnd; ++k) mass[k] = clamp(mass[k], 1e-6, 6.9);
  for (std::uint32_t k = from; k < kEnd; ++k) passed[k] = quick_exp(-mass[k]);

  // S and L from `from` on, S(from) = 1.
  std::array<double, kEnd + 1> survival;
  std::array<double, kEnd + 1> left;
  survival[from] = 1;
  for (std::uint32_t k = from; k < kEnd; ++k) survival[k + 1] = survival[k] * passed[k];
  for (std::uint32_t k = from; k < kEnd; ++k) {
    const double mean = (survival[k] - survival[k + 1]) / mass[k];
    left[k] = (grid.start[k + 1] - grid.start[k]) * (mass[k] > 1e-4 ? mean : survival[k]);
  }
  const double far = survival[kEnd] / table.survival[kEnd];
  left[kEnd] = table.left[kEnd] * far;
  for (std::uint32_t k = kEnd; k-- > from;) left[k] = left[k + 1] + left[k];

  struct Point {
    double survival;
    double left;
    double slope_before;
  };
  std::array<Point, kBuckets + 1> hull;
  for (std::uint32_t i = 0; i < seen.hull_size; ++i) {
    const std::uint32_t k = seen.hull[i];
    hull[i] = {table.survival[k] * far, table.left[k] * far, seen.slope[i]};
  }
  Point* top = hull.data() + seen.hull_size - 1;
  if (seen.hull[seen.hull_size - 1] == kEnd) {
    top->survival = survival[kEnd];
    top->left = left[kEnd];
  }
  for (std::uint32_t k = kEnd; k-- > from;) {
    double slope = (survival[k] - top->survival) / (left[k] - top->left);
    while (top > hull.data() && slope <= top->slope_before) {
      --top;
      slope = (survival[k] - top->survival) / (left[k] - top->left);
    }
    index[k] = to_index_value(slope);
    *++top = {survival[k], left[k], slope};
  }
}

void GapCorrection::learn(const HazardTree& gap, HazardTree::ClassId id, const Features& features, std::uint32_t from,
                          std::uint32_t to, bool ended) {
  const std::uint32_t end = std::min(ended ? to + 1 : to, kCorrected);
  if (from >= end) return;
  const ClassView& seen = view(gap, id);
  const Shift z = shift(features);
  Shift error{};
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
  }
  // Four groups at once. Those among them that have learned nothing have error 0 and no decay.
  Shift decay{};
  for (std::uint32_t g = from; g < end; ++g) decay[g] = 0.05f;
  for (std::uint32_t first = 0; first < kGroups; first += kLanes) {
    if (from < first + kLanes && end > first) descend(features, error, decay, first);
  }
}

void GapCorrection::descend(const Features& features, const Shift& error, const Shift& decay, std::uint32_t first) {
  using Lanes = std::array<float, kLanes>;  // copies, which the compiler keeps in a register each
  const auto load = [first](const Shift& from) {
    Lanes lanes;
    std::memcpy(lanes.data(), from.data() + first, sizeof lanes);
    return lanes;
  };
  const Lanes e = load(error);
  const Lanes d = load(decay);
  for (std::uint32_t f = 0; f < kFeatures; ++f) {
    Weights& w = weights_[f * kBins + features[f]];
    Lanes weight = load(w.weight);
    Lanes square = load(w.square);
    for (std::uint32_t i = 0; i < kLanes; ++i) {
      const float step = e[i] - d[i] * weight[i];
      square[i] += step * step;
      weight[i] += 0.03f * step * inverse_root(square[i]);
    }
    std::memcpy(w.weight.data() + first, weight.data(), sizeof weight);
    std::memcpy(w.square.data() + first, square.data(), sizeof square);
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
