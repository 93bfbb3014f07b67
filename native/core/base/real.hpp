// Logarithm and exponential as plain double arithmetic: the same bits on every machine.
//
// Decisions must not depend on the C library, whose last bits differ between versions. Here are only additions, multiplications
// and divisions of IEEE doubles in a fixed order (build with -ffp-contract=off), so that results are equal wherever doubles are.
//
// Accuracy: relative error below 1e-14 over the whole range (of log2 and ln also near 1, where the result goes to 0).
// Cost: about 10 ns a logarithm, 5 ns an exponential; no tables, no branches but for the ends of the range.
// Range: ln(0) and log2(0) are -infinity, of a negative number or NaN it is NaN; exp and exp2 reach 0 and infinity at their ends,
// with gradual underflow.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace saga {
namespace real_detail {

inline constexpr double kLn2High = 0x1.62e42fefa0000p-1;  // the last 17 bits are 0: times an exponent it is exact
inline constexpr double kLn2Low = 0x1.cf79abc9e3b39p-40;
inline constexpr double kLn2 = 0x1.62e42fefa39efp-1;
inline constexpr double kLog2E = 0x1.71547652b82fep+0;
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// x = 2^exponent * m with m in [sqrt(1/2), sqrt(2)); ln_m = ln(m).
struct SplitLogarithm {
  double exponent;
  double ln_m;
};

// x must be positive and finite.
constexpr SplitLogarithm split_logarithm(double x) {
  double exponent = 0;
  if (x < std::numeric_limits<double>::min()) {
    x *= 0x1p54;
    exponent = -54;
  }
  // Subtracting the bits of sqrt(1/2) moves the borders of the binary orders there.
  constexpr std::uint64_t kRootHalf = 0x3fe6a09e667f3bcdull;
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  const std::int64_t order = static_cast<std::int64_t>(bits - kRootHalf) >> 52;
  exponent += static_cast<double>(order);
  const double m = std::bit_cast<double>(bits - (static_cast<std::uint64_t>(order) << 52));
  // ln m = 2 artanh s, |s| < 0.1716: ten terms behind the first leave less than 1e-17.
  const double s = (m - 1.0) / (m + 1.0);
  const double q = s * s;
  double series = 1.0 / 21;
  series = series * q + 1.0 / 19;
  series = series * q + 1.0 / 17;
  series = series * q + 1.0 / 15;
  series = series * q + 1.0 / 13;
  series = series * q + 1.0 / 11;
  series = series * q + 1.0 / 9;
  series = series * q + 1.0 / 7;
  series = series * q + 1.0 / 5;
  series = series * q + 1.0 / 3;
  return {exponent, 2 * s + 2 * s * (q * series)};
}

// e^r for |r| <= ln(2) / 2 and a little more.
constexpr double exp_near_zero(double r) {
  double sum = 1.0 / 6227020800;
  sum = sum * r + 1.0 / 479001600;
  sum = sum * r + 1.0 / 39916800;
  sum = sum * r + 1.0 / 3628800;
  sum = sum * r + 1.0 / 362880;
  sum = sum * r + 1.0 / 40320;
  sum = sum * r + 1.0 / 5040;
  sum = sum * r + 1.0 / 720;
  sum = sum * r + 1.0 / 120;
  sum = sum * r + 1.0 / 24;
  sum = sum * r + 1.0 / 6;
  sum = sum * r + 0.5;
  return 1.0 + (r + r * r * sum);
}

// x * 2^k for k in [-2000, 2000]: in two steps, so that the factors are normal numbers.
constexpr double scale(double x, std::int64_t k) {
  const std::int64_t half = k / 2;
  const double first = std::bit_cast<double>(static_cast<std::uint64_t>(half + 1023) << 52);
  const double second = std::bit_cast<double>(static_cast<std::uint64_t>(k - half + 1023) << 52);
  return x * first * second;
}

constexpr std::int64_t nearest(double x) { return static_cast<std::int64_t>(x < 0 ? x - 0.5 : x + 0.5); }

constexpr bool no_finite_logarithm(double x) { return !(x > 0) || x == kInfinity; }
constexpr double unusual_logarithm(double x) {
  if (x == 0) return -kInfinity;
  return x == kInfinity ? kInfinity : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace real_detail

constexpr double real_ln(double x) {
  if (real_detail::no_finite_logarithm(x)) return real_detail::unusual_logarithm(x);
  const auto [exponent, ln_m] = real_detail::split_logarithm(x);
  return exponent * real_detail::kLn2High + (exponent * real_detail::kLn2Low + ln_m);
}

constexpr double real_log2(double x) {
  if (real_detail::no_finite_logarithm(x)) return real_detail::unusual_logarithm(x);
  const auto [exponent, ln_m] = real_detail::split_logarithm(x);
  return exponent + ln_m * real_detail::kLog2E;
}

constexpr double real_exp(double x) {
  if (!(x > -746)) return x != x ? x : 0;
  if (x > 710) return real_detail::kInfinity;
  const std::int64_t k = real_detail::nearest(x * real_detail::kLog2E);
  const double whole = static_cast<double>(k);
  const double r = (x - whole * real_detail::kLn2High) - whole * real_detail::kLn2Low;
  return real_detail::scale(real_detail::exp_near_zero(r), k);
}

constexpr double real_exp2(double x) {
  if (!(x > -1076)) return x != x ? x : 0;
  if (x >= 1024) return real_detail::kInfinity;
  const std::int64_t k = real_detail::nearest(x);
  return real_detail::scale(real_detail::exp_near_zero((x - static_cast<double>(k)) * real_detail::kLn2), k);
}

}  // namespace saga
