#include "xxh3.hpp"

#include <bit>
#include <cstring>

#include "bytes.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace saga {
namespace {

using u64 = std::uint64_t;
__extension__ using u128 = unsigned __int128;

constexpr u64 kPrime32_1 = 0x9E3779B1u;
constexpr u64 kPrime32_2 = 0x85EBCA77u;
constexpr u64 kPrime32_3 = 0xC2B2AE3Du;
constexpr u64 kPrime64_1 = 0x9E3779B185EBCA87u;
constexpr u64 kPrime64_2 = 0xC2B2AE3D27D4EB4Fu;
constexpr u64 kPrime64_3 = 0x165667B19E3779F9u;
constexpr u64 kPrime64_4 = 0x85EBCA77C2B2AE63u;
constexpr u64 kPrime64_5 = 0x27D4EB2F165667C5u;
constexpr u64 kPrimeMix1 = 0x165667919E3779F9u;
constexpr u64 kPrimeMix2 = 0x9FB21C651E98DF25u;

constexpr std::size_t kSecretSize = 192;
constexpr std::size_t kStripeSize = 64;
constexpr std::size_t kStripesPerBlock = (kSecretSize - kStripeSize) / 8;

// The default secret of the specification.
alignas(64) constexpr std::uint8_t kSecret[kSecretSize] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

u64 word(const std::uint8_t* from) { return load_little_endian<u64>(from); }
u64 half_word(const std::uint8_t* from) { return load_little_endian<std::uint32_t>(from); }
u64 lower_half(u64 x) { return x & 0xFFFFFFFFu; }

u64 multiply_fold(u64 x, u64 y) {
  const u128 product = static_cast<u128>(x) * y;
  return static_cast<u64>(product) ^ static_cast<u64>(product >> 64);
}

u64 avalanche(u64 x) {
  x ^= x >> 37;
  x *= kPrimeMix1;
  return x ^ (x >> 32);
}

u64 avalanche_xxh64(u64 x) {
  x ^= x >> 33;
  x *= kPrime64_2;
  x ^= x >> 29;
  x *= kPrime64_3;
  return x ^ (x >> 32);
}

Hash128 hash_empty(u64 seed) {
  return {avalanche_xxh64(seed ^ word(kSecret + 64) ^ word(kSecret + 72)),
          avalanche_xxh64(seed ^ word(kSecret + 80) ^ word(kSecret + 88))};
}

Hash128 hash_1_to_3(const std::uint8_t* input, std::size_t size, u64 seed) {
  const std::uint32_t combined = std::uint32_t{input[size - 1]} | (static_cast<std::uint32_t>(size) << 8) |
                                 (std::uint32_t{input[0]} << 16) | (std::uint32_t{input[size / 2]} << 24);
  const u64 low = ((half_word(kSecret) ^ half_word(kSecret + 4)) + seed) ^ combined;
  const u64 high = ((half_word(kSecret + 8) ^ half_word(kSecret + 12)) - seed) ^ std::rotl(swap_bytes(combined), 13);
  return {avalanche_xxh64(low), avalanche_xxh64(high)};
}

Hash128 hash_4_to_8(const std::uint8_t* input, std::size_t size, u64 seed) {
  seed ^= u64{swap_bytes(static_cast<std::uint32_t>(seed))} << 32;
  const u64 combined = half_word(input) | (half_word(input + size - 4) << 32);
  const u64 value = ((word(kSecret + 16) ^ word(kSecret + 24)) + seed) ^ combined;
  const u128 product = static_cast<u128>(value) * (kPrime64_1 + (u64{size} << 2));
  u64 low = static_cast<u64>(product);
  const u64 high = static_cast<u64>(product >> 64) + (low << 1);
  low ^= high >> 3;
  low ^= low >> 35;
  low *= kPrimeMix2;
  low ^= low >> 28;
  return {low, avalanche(high)};
}

Hash128 hash_9_to_16(const std::uint8_t* input, std::size_t size, u64 seed) {
  const u64 first = word(input);
  const u64 last = word(input + size - 8);
  const u64 both = ((word(kSecret + 32) ^ word(kSecret + 40)) - seed) ^ first ^ last;
  const u64 tail = ((word(kSecret + 48) ^ word(kSecret + 56)) + seed) ^ last;
  const u128 product = static_cast<u128>(both) * kPrime64_1;
  u64 low = static_cast<u64>(product) + (u64{size - 1} << 54);
  const u64 high = static_cast<u64>(product >> 64) + tail + lower_half(tail) * (kPrime32_2 - 1);
  low ^= swap_bytes(high);
  const u128 mixed = static_cast<u128>(low) * kPrime64_2;
  return {avalanche(static_cast<u64>(mixed)), avalanche(static_cast<u64>(mixed >> 64) + high * kPrime64_2)};
}

// Sixteen bytes of the message.
struct Chunk {
  u64 first;
  u64 second;
};

Chunk chunk_at(const std::uint8_t* from) { return {word(from), word(from + 8)}; }

u64 mix(const Chunk& chunk, const std::uint8_t* secret, u64 seed) {
  return multiply_fold(chunk.first ^ (word(secret) + seed), chunk.second ^ (word(secret + 8) - seed));
}

// The state of the method for medium messages.
struct Medium {
  u64 left;
  u64 right = 0;

  explicit Medium(std::size_t size) : left(u64{size} * kPrime64_1) {}

  void absorb(const Chunk& one, const Chunk& two, const std::uint8_t* secret, u64 seed) {
    left += mix(one, secret, seed);
    left ^= two.first + two.second;
    right += mix(two, secret + 16, seed);
    right ^= one.first + one.second;
  }

  Hash128 finish(std::size_t size, u64 seed) const {
    const u64 high = left * kPrime64_1 + right * kPrime64_4 + (u64{size} - seed) * kPrime64_2;
    return {avalanche(left + right), u64{0} - avalanche(high)};
  }
};

// Pairs of chunks from both ends, from the middle outwards.
Hash128 hash_17_to_128(const std::uint8_t* input, std::size_t size, u64 seed) {
  Medium state(size);
  for (std::size_t pair = (size - 1) / 32 + 1; pair-- != 0;) {
    state.absorb(chunk_at(input + 16 * pair), chunk_at(input + size - 16 * (pair + 1)), kSecret + 32 * pair, seed);
  }
  return state.finish(size, seed);
}

// Pairs of neighbouring chunks: four, then the rest with a shifted secret, then the last 32 bytes, swapped.
Hash128 hash_129_to_240(const std::uint8_t* input, std::size_t size, u64 seed) {
  Medium state(size);
  std::size_t pair = 0;
  for (; pair < 4; ++pair) {
    state.absorb(chunk_at(input + 32 * pair), chunk_at(input + 32 * pair + 16), kSecret + 32 * pair, seed);
  }
  state.left = avalanche(state.left);
  state.right = avalanche(state.right);
  for (; pair < size / 32; ++pair) {
    state.absorb(chunk_at(input + 32 * pair), chunk_at(input + 32 * pair + 16), kSecret + 32 * (pair - 4) + 3, seed);
  }
  state.absorb(chunk_at(input + size - 16), chunk_at(input + size - 32), kSecret + 103, u64{0} - seed);
  return state.finish(size, seed);
}

#if defined(__SSE2__)

// Two lanes at a time: the product of 32-bit halves is one instruction, which compilers do not find by themselves.
class Lanes {
 public:
  explicit Lanes(const u64 (&initial)[8]) { std::memcpy(lanes_, initial, sizeof lanes_); }

  void accumulate(const std::uint8_t* stripe, const std::uint8_t* secret) {
    for (int i = 0; i < 4; ++i) {
      const __m128i value = pair(stripe, i);
      const __m128i keyed = _mm_xor_si128(value, pair(secret, i));
      const __m128i product = _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32));
      const __m128i crossed = _mm_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2));
      lanes_[i] = _mm_add_epi64(lanes_[i], _mm_add_epi64(product, crossed));
    }
  }

  void scramble(const std::uint8_t* secret) {
    const __m128i prime = _mm_set1_epi64x(static_cast<long long>(kPrime32_1));
    for (int i = 0; i < 4; ++i) {
      __m128i value = _mm_xor_si128(lanes_[i], _mm_srli_epi64(lanes_[i], 47));
      value = _mm_xor_si128(value, pair(secret, i));
      const __m128i high = _mm_mul_epu32(_mm_srli_epi64(value, 32), prime);
      lanes_[i] = _mm_add_epi64(_mm_mul_epu32(value, prime), _mm_slli_epi64(high, 32));
    }
  }

  void store(u64 to[8]) const { std::memcpy(to, lanes_, sizeof lanes_); }

 private:
  static __m128i pair(const std::uint8_t* from, int index) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + index);
  }

  __m128i lanes_[4];
};

#else

class Lanes {
 public:
  explicit Lanes(const u64 (&initial)[8]) { std::memcpy(lanes_, initial, sizeof lanes_); }

  void accumulate(const std::uint8_t* stripe, const std::uint8_t* secret) {
    for (std::size_t i = 0; i < 8; ++i) {
      const u64 value = word(stripe + 8 * i);
      const u64 keyed = value ^ word(secret + 8 * i);
      lanes_[i ^ 1] += value;
      lanes_[i] += lower_half(keyed) * (keyed >> 32);
    }
  }

  void scramble(const std::uint8_t* secret) {
    for (std::size_t i = 0; i < 8; ++i) {
      lanes_[i] = (lanes_[i] ^ (lanes_[i] >> 47) ^ word(secret + 8 * i)) * kPrime32_1;
    }
  }

  void store(u64 to[8]) const { std::memcpy(to, lanes_, sizeof lanes_); }

 private:
  u64 lanes_[8];
};

#endif

u64 merge(const u64 lanes[8], const std::uint8_t* secret, u64 result) {
  for (std::size_t i = 0; i < 8; i += 2) {
    result += multiply_fold(lanes[i] ^ word(secret + 8 * i), lanes[i + 1] ^ word(secret + 8 * i + 8));
  }
  return avalanche(result);
}

// Stripes of 64 bytes; after each full block of stripes the lanes are scrambled, except after the last one. The last 64
// bytes of the message are always a stripe of their own, wherever they begin.
Hash128 hash_over_240(const std::uint8_t* input, std::size_t size, const std::uint8_t* secret) {
  static constexpr u64 kInitial[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                      kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
  Lanes state(kInitial);
  std::size_t in_block = 0;
  const std::size_t stripes = (size - 1) / kStripeSize;
  for (std::size_t stripe = 0; stripe < stripes; ++stripe) {
    state.accumulate(input + kStripeSize * stripe, secret + 8 * in_block);
    if (++in_block == kStripesPerBlock) {
      state.scramble(secret + kSecretSize - kStripeSize);
      in_block = 0;
    }
  }
  state.accumulate(input + size - kStripeSize, secret + kSecretSize - 71);
  u64 lanes[8];
  state.store(lanes);
  return {merge(lanes, secret + 11, u64{size} * kPrime64_1),
          merge(lanes, secret + kSecretSize - 75, ~(u64{size} * kPrime64_2))};
}

Hash128 hash_over_240_seeded(const std::uint8_t* input, std::size_t size, u64 seed) {
  std::uint8_t secret[kSecretSize];
  for (std::size_t i = 0; i < kSecretSize; i += 16) {
    store_little_endian(secret + i, word(kSecret + i) + seed);
    store_little_endian(secret + i + 8, word(kSecret + i + 8) - seed);
  }
  return hash_over_240(input, size, secret);
}

}  // namespace

Hash128 xxh3_128(const void* data, std::size_t size, std::uint64_t seed) {
  const auto* input = static_cast<const std::uint8_t*>(data);
  if (size > 240) {
    return seed == 0 ? hash_over_240(input, size, kSecret) : hash_over_240_seeded(input, size, seed);
  }
  if (size > 128) return hash_129_to_240(input, size, seed);
  if (size > 16) return hash_17_to_128(input, size, seed);
  if (size > 8) return hash_9_to_16(input, size, seed);
  if (size > 3) return hash_4_to_8(input, size, seed);
  if (size > 0) return hash_1_to_3(input, size, seed);
  return hash_empty(seed);
}

// hash_17_to_128 for 80 bytes: the pairs of chunks are (2, 2), (1, 3) and (0, 4), and chunk 0, the prefix, comes last.
Hash128 xxh3_128_link(const Hash128& prefix, const std::uint8_t body[64]) {
  constexpr std::size_t kSize = 80;
  Medium state(kSize);
  const Chunk middle = chunk_at(body + 16);
  state.absorb(middle, middle, kSecret + 64, 0);
  state.absorb(chunk_at(body), chunk_at(body + 32), kSecret + 32, 0);
  state.absorb(Chunk{prefix.low, prefix.high}, chunk_at(body + 48), kSecret, 0);
  return state.finish(kSize, 0);
}

std::array<std::uint8_t, 16> canonical(const Hash128& hash) {
  std::array<std::uint8_t, 16> bytes;
  store_big_endian(bytes.data(), hash.high);
  store_big_endian(bytes.data() + 8, hash.low);
  return bytes;
}

}  // namespace saga
