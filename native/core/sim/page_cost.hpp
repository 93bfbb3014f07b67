// What it costs to compute pages of a prompt again, for cost ratios: attention grows with depth, so a token at position p weighs
// 1 + p / 60,000. In 1/120,000 tokens, so that sums are exact: page i of T tokens weighs 120,000 T + 2 i T^2 + T (T - 1).
#pragma once

#include <cstdint>

namespace saga {

// Of the pages [first, end). O(1).
constexpr std::uint64_t page_cost(std::uint32_t page_tokens, std::uint64_t first, std::uint64_t end) {
  if (end <= first) return 0;
  const std::uint64_t tokens = page_tokens;
  const std::uint64_t pages = end - first;
  return pages * (120'000 * tokens + tokens * (tokens - 1)) + tokens * tokens * (pages * (first + end - 1));
}

}  // namespace saga
