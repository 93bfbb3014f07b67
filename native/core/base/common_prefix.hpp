// How many leading bytes two arrays share, at the speed of memcmp: whole pages by memcmp, the page that differs by words.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace saga {

inline std::size_t common_prefix(const void* a, const void* b, std::size_t size) {
  constexpr std::size_t kPage = 4096;
  const auto* left = static_cast<const unsigned char*>(a);
  const auto* right = static_cast<const unsigned char*>(b);
  std::size_t at = 0;
  while (at < size) {
    const std::size_t step = std::min(kPage, size - at);
    if (std::memcmp(left + at, right + at, step) != 0) break;
    at += step;
  }
  for (; at + 8 <= size; at += 8) {
    std::uint64_t x = 0;
    std::uint64_t y = 0;
    std::memcpy(&x, left + at, 8);
    std::memcpy(&y, right + at, 8);
    if (x == y) continue;
    const std::uint64_t differ = x ^ y;
    const int bits = std::endian::native == std::endian::little ? std::countr_zero(differ) : std::countl_zero(differ);
    return at + static_cast<std::size_t>(bits) / 8;
  }
  while (at < size && left[at] == right[at]) ++at;
  return at;
}

}  // namespace saga
