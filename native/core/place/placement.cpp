#include "placement.hpp"

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

Placement affinity(const PlacementOptions& options, const PlacementView& view, Random& random) {
  const auto workers = static_cast<WorkerId>(view.active.size());
  WorkerId longest = kNone;
  WorkerId emptiest = kNone;
  std::uint32_t active = 0;
  std::uint32_t most_open = 0;
  std::uint32_t fewest_open = 0xFFFFFFFFu;
  const auto fewer_open = [&](WorkerId a, WorkerId b) { return view.open_calls[a] < view.open_calls[b]; };
  for (WorkerId worker = 0; worker < workers; ++worker) {
    if (view.active[worker] == 0) continue;
    ++active;
    most_open = view.open_calls[worker] > most_open ? view.open_calls[worker] : most_open;
    fewest_open = view.open_calls[worker] < fewest_open ? view.open_calls[worker] : fewest_open;
    if (longest == kNone || view.matched_blocks[worker] > view.matched_blocks[longest] ||
        (view.matched_blocks[worker] == view.matched_blocks[longest] && fewer_open(worker, longest))) {
      longest = worker;
    }
    if (emptiest == kNone || view.blocks_in_use[worker] < view.blocks_in_use[emptiest] ||
        (view.blocks_in_use[worker] == view.blocks_in_use[emptiest] && fewer_open(worker, emptiest))) {
      emptiest = worker;
    }
  }
  if (active == 0) return {};
  if (most_open - fewest_open > options.imbalance_calls) {
    const std::uint64_t first_draw = random.below(active);
    std::uint64_t second_draw = random.below(active - 1);
    if (second_draw >= first_draw) ++second_draw;
    const WorkerId a = nth_active(view, first_draw < second_draw ? first_draw : second_draw);
    const WorkerId b = nth_active(view, first_draw < second_draw ? second_draw : first_draw);
    return {fewer_open(b, a) ? b : a, PlacementReason::kImbalance};
  }
  const std::uint64_t matched = view.matched_blocks[longest];
  if (matched > 0 && matched * 100 >= std::uint64_t{options.minimum_match_percent} * view.prompt_blocks) {
    return {longest, PlacementReason::kLongestMatch};
  }
  return {emptiest, PlacementReason::kFewestBlocks};
}

}  // namespace

Placement place(const PlacementOptions& options, const PlacementView& view, std::uint32_t& round_robin_next,
                Random& random) {
  SAGA_ASSERT(view.open_calls.size() >= view.active.size());
  SAGA_ASSERT(view.matched_blocks.size() >= view.active.size());
  SAGA_ASSERT(view.blocks_in_use.size() >= view.active.size());
  switch (options.kind) {
    case PlacementKind::kRoundRobin: return round_robin(view, round_robin_next);
    case PlacementKind::kAffinity: return affinity(options, view, random);
  }
  return {};
}

}  // namespace saga
