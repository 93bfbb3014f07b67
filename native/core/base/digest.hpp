// A 64-bit fingerprint of a state, word by word in a fixed order: two replicas that should be equal compare one number.
// About a nanosecond a word. It tells accidents apart, not an adversary's constructions.
#pragma once

#include <cstdint>

#include "random.hpp"

namespace saga {

class Digest {
 public:
  constexpr void add(std::uint64_t word) { value_ = mix64(value_ ^ mix64(word)); }
  constexpr std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0;
};

}  // namespace saga
