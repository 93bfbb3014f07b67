#include "../core/base/real.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "../core/base/random.hpp"

namespace saga {
namespace {

constexpr double kTolerance = 1e-14;

void expect_close(double got, double want, double x) {
  if (want == 0) {
    EXPECT_EQ(got, 0) << x;
  } else {
    EXPECT_LE(std::fabs(got - want), kTolerance * std::fabs(want)) << x;
  }
}

TEST(Real, LogarithmsAgreeWithTheLibrary) {
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    const double magnitude = (random.uniform() - 0.5) * 2 * static_cast<double>(1 + random.below(1000));
    const double x = std::exp2(magnitude) * (1 + random.uniform());
    expect_close(real_ln(x), std::log(x), x);
    expect_close(real_log2(x), std::log2(x), x);
    const double near_one = 1 + (random.uniform() - 0.5) * std::exp2(-static_cast<double>(random.below(50)));
    expect_close(real_ln(near_one), std::log(near_one), near_one);
    expect_close(real_log2(near_one), std::log2(near_one), near_one);
  }
  const double tiny = std::numeric_limits<double>::denorm_min();
  expect_close(real_ln(tiny), std::log(tiny), tiny);
  expect_close(real_log2(tiny * 12345), std::log2(tiny * 12345), tiny);
}

TEST(Real, ExponentialsAgreeWithTheLibrary) {
  Random random(2);
  for (int i = 0; i < 200000; ++i) {
    const double x = (random.uniform() - 0.5) * 2 * static_cast<double>(random.below(700));
    expect_close(real_exp(x), std::exp(x), x);
    expect_close(real_exp2(x), std::exp2(x), x);
    const double small = (random.uniform() - 0.5) * std::exp2(-static_cast<double>(random.below(60)));
    expect_close(real_exp(small), std::exp(small), small);
    expect_close(real_exp2(small), std::exp2(small), small);
  }
  expect_close(real_exp(709.7), std::exp(709.7), 709.7);
  expect_close(real_exp2(-1020.3), std::exp2(-1020.3), -1020.3);
}

TEST(Real, WholePowersAreExact) {
  for (int k = -1074; k < 1024; ++k) {
    EXPECT_EQ(real_exp2(k), std::ldexp(1.0, k)) << k;
    EXPECT_EQ(real_log2(std::ldexp(1.0, k)), k);
  }
  EXPECT_EQ(real_exp(0), 1);
  EXPECT_EQ(real_ln(1), 0);
}

TEST(Real, EndsOfTheRange) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(real_ln(0), -kInfinity);
  EXPECT_EQ(real_log2(0), -kInfinity);
  EXPECT_EQ(real_ln(kInfinity), kInfinity);
  EXPECT_EQ(real_log2(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(real_ln(-1)));
  EXPECT_TRUE(std::isnan(real_log2(std::nan(""))));
  EXPECT_EQ(real_exp(-kInfinity), 0);
  EXPECT_EQ(real_exp(-750), 0);
  EXPECT_EQ(real_exp(711), kInfinity);
  EXPECT_EQ(real_exp2(kInfinity), kInfinity);
  EXPECT_EQ(real_exp2(1024), kInfinity);
  EXPECT_EQ(real_exp2(-1076), 0);
  EXPECT_TRUE(std::isnan(real_exp(std::nan(""))));
  EXPECT_TRUE(std::isnan(real_exp2(std::nan(""))));
}

// The bits themselves: the same on every machine.
TEST(Real, Bits) {
  static_assert(real_exp(1.0) == 0x1.5bf0a8b14576ap+1);
  static_assert(real_ln(2.0) == 0x1.62e42fefa39efp-1);
  Random random(3);
  std::uint64_t digest = 0;
  for (int i = 0; i < 10000; ++i) {
    const double x = random.uniform() * 100;
    for (const double y : {real_ln(x), real_log2(x), real_exp(x), real_exp2(x)}) {
      digest = mix64(digest ^ std::bit_cast<std::uint64_t>(y));
    }
  }
  EXPECT_EQ(digest, 18291804147152003055u);
}

}  // namespace
}  // namespace saga
