// Seeded randomness for decisions that must be spread (two-choice placement) and for property tests.
//
// xoshiro256** (Blackman and Vigna) seeded through splitmix64: 32 bytes of state, a few nanoseconds a draw, the same sequence
// on every machine. The state is part of whatever owns the generator, so that a replay continues with the same draws.
#pragma once

#include <cstdint>

namespace saga {

// Bijective 64-bit mix (splitmix64's finaliser): spreads counters over the whole range.
constexpr std::uint64_t mix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit constexpr Random(std::uint64_t seed) {
    for (auto& word : state_) word = mix64(seed++);
  }

  constexpr std::uint64_t next() {
    const std::uint64_t result = rotate(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = rotate(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound), bound >= 1, without modulo bias worth speaking of (multiply-shift; bias < bound / 2^64).
  constexpr std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>((static_cast<Product>(next()) * bound) >> 64);
  }

  // Uniform in [0, 1) with 53 bits.
  constexpr double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

  constexpr const std::uint64_t* state() const { return state_; }

 private:
  __extension__ typedef unsigned __int128 Product;
  static constexpr std::uint64_t rotate(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  std::uint64_t state_[4] = {};
};

}  // namespace saga
