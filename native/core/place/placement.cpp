#include "placement.hpp"

#include <algorithm>

#include "../base/assert.hpp"

namespace saga {
namespace {

Placement round_robin(const PlacementView& view, std::uint32_t& next) {
  const auto workers = static_cast<std::uint32_t>(view.active.size());
  for (std::uint32_t step = 0; step < workers; ++step) {
    const WorkerId worker = (next + step) % workers;
    if (view.active[worker] == 0) continue;
    next = (worker + 1) % workers;
    return {worker, PlacementReason::kRoundRobin};
  }
  return {};
}

// The n-th active worker in order of id.
WorkerId nth_active(const PlacementView& view, std::uint64_t n) {
  for (WorkerId worker = 0;; ++worker) {
    if (view.active[worker] != 0 && n-- == 0) return worker;
  }
}

// Of the active workers whose `column` holds `value`, the one with the fewest open calls, then the smallest id.
WorkerId fewest_open(const PlacementView& view, std::span<const std::uint32_t> column, std::uint32_t value) {
  WorkerId best = kNone;
  for (WorkerId worker = 0; worker < view.active.size(); ++worker) {
    if (view.active[worker] == 0 || column[worker] != value) continue;
    if (best == kNone || view.open_calls[worker] < view.open_calls[best]) best = worker;
  }
  return best;
}

Placement affinity(const PlacementOptions& options, const PlacementView& view, Random& random) {
  // One pass of plain minima and maxima, which compilers turn into vector code; who it was is looked up afterwards.
  std::uint32_t active = 0;
  std::uint32_t most_open = 0;
  std::uint32_t least_open = 0xFFFFFFFFu;
  std::uint32_t longest_match = 0;
  std::uint32_t least_blocks = 0xFFFFFFFFu;
  for (WorkerId worker = 0; worker < view.active.size(); ++worker) {
    const std::uint32_t present = view.active[worker] != 0 ? 0xFFFFFFFFu : 0;
    active += present & 1;
    most_open = std::max(most_open, view.open_calls[worker] & present);
    least_open = std::min(least_open, view.open_calls[worker] | ~present);
    longest_match = std::max(longest_match, view.matched_blocks[worker] & present);
    least_blocks = std::min(least_blocks, view.blocks_in_use[worker] | ~present);
  }
  if (active == 0) return {};
  if (most_open - least_open > options.imbalance_calls) {
    const std::uint64_t first_draw = random.below(active);
    std::uint64_t second_draw = random.below(active - 1);
    if (second_draw >= first_draw) ++second_draw;
    const WorkerId a = nth_active(view, std::min(first_draw, second_draw));
    const WorkerId b = nth_active(view, std::max(first_draw, second_draw));
    return {view.open_calls[b] < view.open_calls[a] ? b : a, PlacementReason::kImbalance};
  }
  const std::uint64_t matched = longest_match;
  if (matched > 0 && matched * 100 >= std::uint64_t{options.minimum_match_percent} * view.prompt_blocks) {
    return {fewest_open(view, view.matched_blocks, longest_match), PlacementReason::kLongestMatch};
  }
  return {fewest_open(view, view.blocks_in_use, least_blocks), PlacementReason::kFewestBlocks};
}

}  // namespace

Placement place(const PlacementOptions& options, const PlacementView& view, std::uint32_t& round_robin_next,
                Random& random) {
  SAGA_ASSERT(view.open_calls.size() >= view.active.size());
  SAGA_ASSERT(view.matched_blocks.size() >= view.active.size());
  SAGA_ASSERT(view.blocks_in_use.size() >= view.active.size());
  switch (options.kind) {
    case PlacementKind::kRoundRobin:
      return round_robin(view, round_robin_next);
    case PlacementKind::kAffinity:
      return affinity(options, view, random);
    case PlacementKind::kSaga:
      break;  // never asked here
  }
  return {};
}

}  // namespace saga
