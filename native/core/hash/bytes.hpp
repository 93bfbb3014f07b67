// Unaligned loads and stores in a stated byte order. Each is one instruction where the machine has that order, a byte
// swap more where it has not. Hashes are defined over bytes, so everything in hash/ reads and writes memory through
// these.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace saga {

static_assert(std::endian::native == std::endian::little || std::endian::native == std::endian::big);

constexpr std::uint32_t swap_bytes(std::uint32_t value) { return __builtin_bswap32(value); }
constexpr std::uint64_t swap_bytes(std::uint64_t value) { return __builtin_bswap64(value); }

template <typename Integer>
constexpr Integer little_endian(Integer value) {
  return std::endian::native == std::endian::little ? value : swap_bytes(value);
}

template <typename Integer>
constexpr Integer big_endian(Integer value) {
  return std::endian::native == std::endian::big ? value : swap_bytes(value);
}

template <typename Integer>
inline Integer load_little_endian(const void* from) {
  Integer value;
  std::memcpy(&value, from, sizeof value);
  return little_endian(value);
}

template <typename Integer>
inline Integer load_big_endian(const void* from) {
  Integer value;
  std::memcpy(&value, from, sizeof value);
  return big_endian(value);
}

template <typename Integer>
inline void store_little_endian(void* to, Integer value) {
  value = little_endian(value);
  std::memcpy(to, &value, sizeof value);
}

template <typename Integer>
inline void store_big_endian(void* to, Integer value) {
  value = big_endian(value);
  std::memcpy(to, &value, sizeof value);
}

}  // namespace saga
