#include "sha256.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "../base/assert.hpp"
#include "bytes.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define SAGA_SHA256_INSTRUCTIONS
#elif defined(__aarch64__) && defined(__AARCH64EL__) && defined(__ARM_FEATURE_SHA2)
#include <arm_neon.h>
#define SAGA_SHA256_INSTRUCTIONS  // the build is for processors that have them
#define SAGA_SHA256_TARGET
#elif defined(__aarch64__) && defined(__AARCH64EL__) && defined(__linux__) && !defined(__clang__)
#include <arm_neon.h>
#include <sys/auxv.h>
#define SAGA_SHA256_INSTRUCTIONS
#define SAGA_SHA256_TARGET __attribute__((target("+crypto")))
#endif

namespace saga {
namespace {

// The first 32 bits of the fractional parts of the square roots of the first 8 primes (FIPS 180-4, 5.3.3).
constexpr std::uint32_t kInitialState[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

// The same of the cube roots of the first 64 primes (4.2.2).
alignas(16) constexpr std::uint32_t kRoundConstants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#if defined(__x86_64__)

bool processor_has_sha() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kSsse3 = 1u << 9, kSse41 = 1u << 19;
  if ((ecx & kSsse3) == 0 || (ecx & kSse41) == 0) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kSha = 1u << 29;
  return (ebx & kSha) != 0;
}

// The instructions keep the state as two vectors, {f, e, b, a} and {h, g, d, c} (lowest lane first), and do two rounds
// each.
__attribute__((target("sha,sse4.1,ssse3"))) void compress_sha_extensions(std::uint32_t state[8],
                                                                         const std::uint8_t* data, std::size_t blocks) {
  const __m128i big_endian_words = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state)), 0xB1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4)), 0x1B);
  __m128i feba = _mm_alignr_epi8(badc, hgfe, 8);
  __m128i hgdc = _mm_blend_epi16(hgfe, badc, 0xF0);

  for (; blocks != 0; --blocks, data += 64) {
    const __m128i feba_before = feba;
    const __m128i hgdc_before = hgdc;
    __m128i words[4];  // the last 16 words of the message schedule, a ring of four groups
    for (int group = 0; group < 4; ++group) {
      words[group] =
          _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 16 * group)), big_endian_words);
    }
#pragma GCC unroll 16
    for (int group = 0; group < 16; ++group) {
      const __m128i current = words[group % 4];
      const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(kRoundConstants + 4 * group));
      const __m128i sum = _mm_add_epi32(current, constants);
      hgdc = _mm_sha256rnds2_epu32(hgdc, feba, sum);
      feba = _mm_sha256rnds2_epu32(feba, hgdc, _mm_shuffle_epi32(sum, 0x0E));
      if (group >= 3 && group < 15) {  // the group after the current one takes the place of the oldest
        __m128i& oldest = words[(group + 1) % 4];
        const __m128i seven_back = _mm_alignr_epi8(current, words[(group + 3) % 4], 4);
        oldest = _mm_sha256msg1_epu32(oldest, words[(group + 2) % 4]);
        oldest = _mm_sha256msg2_epu32(_mm_add_epi32(oldest, seven_back), current);
      }
    }
    feba = _mm_add_epi32(feba, feba_before);
    hgdc = _mm_add_epi32(hgdc, hgdc_before);
  }

  const __m128i abef = _mm_shuffle_epi32(feba, 0x1B);
  const __m128i ghcd = _mm_shuffle_epi32(hgdc, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(abef, ghcd, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(ghcd, abef, 8));
}

#elif defined(SAGA_SHA256_INSTRUCTIONS)

bool processor_has_sha() {
#if defined(__ARM_FEATURE_SHA2)
  return true;
#else
  constexpr unsigned long kSha2 = 1ul << 6;  // HWCAP_SHA2 of the Linux interface
  return (getauxval(AT_HWCAP) & kSha2) != 0;
#endif
}

// The instructions do four rounds each, on the two halves of the state in its natural order.
SAGA_SHA256_TARGET void compress_sha_extensions(std::uint32_t state[8], const std::uint8_t* data, std::size_t blocks) {
  uint32x4_t abcd = vld1q_u32(state);
  uint32x4_t efgh = vld1q_u32(state + 4);
  for (; blocks != 0; --blocks, data += 64) {
    const uint32x4_t abcd_before = abcd;
    const uint32x4_t efgh_before = efgh;
    uint32x4_t words[4];  // the last 16 words of the message schedule, a ring of four groups
    for (int group = 0; group < 4; ++group) {
      words[group] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * group)));
    }
#pragma GCC unroll 16
    for (int group = 0; group < 16; ++group) {
      uint32x4_t& oldest = words[group % 4];
      const uint32x4_t sum = vaddq_u32(oldest, vld1q_u32(kRoundConstants + 4 * group));
      const uint32x4_t abcd_now = abcd;
      abcd = vsha256hq_u32(abcd, efgh, sum);
      efgh = vsha256h2q_u32(efgh, abcd_now, sum);
      if (group < 12) {
        oldest = vsha256su0q_u32(oldest, words[(group + 1) % 4]);
        oldest = vsha256su1q_u32(oldest, words[(group + 2) % 4], words[(group + 3) % 4]);
      }
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

#endif

void compress(std::uint32_t state[8], const std::uint8_t* data, std::size_t blocks) {
  if (!sha256_detail::compress_accelerated(state, data, blocks)) {
    sha256_detail::compress_portable(state, data, blocks);
  }
}

Sha256Digest digest_of(const std::uint32_t state[8]) {
  Sha256Digest digest;
  for (std::size_t i = 0; i < 8; ++i) store_big_endian(digest.data() + 4 * i, state[i]);
  return digest;
}

// Absorbs the last `size` % 64 bytes of the message together with the padding: a one bit, zeros, the length in bits.
Sha256Digest finish_message(std::uint32_t state[8], const std::uint8_t* tail, std::uint64_t size) {
  std::uint8_t padded[128] = {};
  const std::size_t rest = static_cast<std::size_t>(size % 64);
  const std::size_t blocks = rest + 1 + 8 <= 64 ? 1 : 2;
  if (rest != 0 && tail != nullptr) std::memcpy(padded, tail, rest);
  padded[rest] = 0x80;
  store_big_endian<std::uint64_t>(padded + 64 * blocks - 8, size * 8);
  compress(state, padded, blocks);
  return digest_of(state);
}

}  // namespace

namespace sha256_detail {

void compress_portable(std::uint32_t state[8], const std::uint8_t* data, std::size_t blocks) {
  for (; blocks != 0; --blocks, data += 64) {
    std::uint32_t words[64];
    for (std::size_t t = 0; t < 16; ++t) words[t] = load_big_endian<std::uint32_t>(data + 4 * t);
    for (std::size_t t = 16; t < 64; ++t) {
      const std::uint32_t near = words[t - 2];
      const std::uint32_t far = words[t - 15];
      const std::uint32_t sigma1 = std::rotr(near, 17) ^ std::rotr(near, 19) ^ (near >> 10);
      const std::uint32_t sigma0 = std::rotr(far, 7) ^ std::rotr(far, 18) ^ (far >> 3);
      words[t] = sigma1 + words[t - 7] + sigma0 + words[t - 16];
    }
    std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    std::uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (std::size_t t = 0; t < 64; ++t) {
      const std::uint32_t sum1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const std::uint32_t choice = (e & f) ^ (~e & g);
      const std::uint32_t first = h + sum1 + choice + kRoundConstants[t] + words[t];
      const std::uint32_t sum0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const std::uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
      h = g;
      g = f;
      f = e;
      e = d + first;
      d = c;
      c = b;
      b = a;
      a = first + sum0 + majority;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
  }
}

bool compress_accelerated([[maybe_unused]] std::uint32_t state[8], [[maybe_unused]] const std::uint8_t* data,
                          [[maybe_unused]] std::size_t blocks) {
#if defined(SAGA_SHA256_INSTRUCTIONS)
  static const bool available = processor_has_sha();  // a constant of the machine
  if (available) {
    compress_sha_extensions(state, data, blocks);
    return true;
  }
#endif
  return false;
}

}  // namespace sha256_detail

Sha256Digest sha256(const void* data, std::size_t size) {
  std::uint32_t state[8];
  std::copy(kInitialState, kInitialState + 8, state);
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  const std::size_t whole = size / 64;
  if (whole != 0) compress(state, bytes, whole);
  return finish_message(state, size % 64 == 0 ? nullptr : bytes + 64 * whole, size);
}

Sha256Digest sha256_in_place(std::uint8_t* message, std::size_t size) {
  std::uint32_t state[8];
  std::copy(kInitialState, kInitialState + 8, state);
  // At most 63 zeros and 8 bytes of length lie behind the first byte of the padding.
  message[size] = 0x80;
  std::memset(message + size + 1, 0, kSha256Room - 1);
  const std::size_t blocks = (size + 8) / 64 + 1;
  store_big_endian<std::uint64_t>(message + 64 * blocks - 8, std::uint64_t{size} * 8);
  compress(state, message, blocks);
  return digest_of(state);
}

Sha256::Sha256() { std::copy(kInitialState, kInitialState + 8, state_); }

void Sha256::update(const void* data, std::size_t size) {
  SAGA_ASSERT(!finished_);
  if (size == 0) return;
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  const std::size_t held = static_cast<std::size_t>(size_ % 64);
  size_ += size;
  if (held != 0) {
    const std::size_t taken = std::min<std::size_t>(64 - held, size);
    std::memcpy(pending_ + held, bytes, taken);
    if (held + taken < 64) return;
    compress(state_, pending_, 1);
    bytes += taken;
    size -= taken;
  }
  if (size >= 64) compress(state_, bytes, size / 64);
  if (size % 64 != 0) std::memcpy(pending_, bytes + size / 64 * 64, size % 64);
}

Sha256Digest Sha256::finish() {
  SAGA_ASSERT(!finished_);
  finished_ = true;
  return finish_message(state_, pending_, size_);
}

// The length field of SHA-256 counts bits in 64 bits. A state equal to the initial one after a block would be a fixed
// point of the compression function, which nobody has ever seen.
bool Sha256::verify() const {
  if (size_ >= (std::uint64_t{1} << 61)) return false;
  const bool initial = std::equal(kInitialState, kInitialState + 8, state_);
  return finished_ || initial == (size_ < 64);
}

}  // namespace saga
