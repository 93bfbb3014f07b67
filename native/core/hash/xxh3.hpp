// XXH3-128 (xxHash specification 0.1.1), with the default secret and a seed.
//
// A fast non-cryptographic hash: about 5 ns for the 80 to 120 bytes of a block of 16 tokens. Four methods by length: 0
// to 16 bytes, 17 to 128, 129 to 240, and longer; the longer one alone keeps an internal state (8 accumulators), the
// others are straight-line code. One-shot only: block hashes have their message in one piece.
//
// Anyone who chooses the input can make collisions, for every seed; see block_hash.hpp for where that matters.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace saga {

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend constexpr bool operator==(const Hash128&, const Hash128&) = default;
};

Hash128 xxh3_128(const void* data, std::size_t size, std::uint64_t seed = 0);

// Exactly xxh3_128 (seed 0) of an 80-byte message: `prefix` as 16 bytes (low, then high, each little-endian), then
// `body`. That is a link of a chain over blocks of 16 tokens. The prefix stays in registers: only ~18 cycles lie
// between a prefix and the hash that is the next prefix, and all work on the body runs ahead of them.
Hash128 xxh3_128_link(const Hash128& prefix, const std::uint8_t body[64]);

// The canonical representation: 16 bytes, big-endian, high half first.
std::array<std::uint8_t, 16> canonical(const Hash128& hash);

}  // namespace saga
