// An obvious model of the placements for tests: it sorts where native/core/place scans, and decides by whole keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../core/place/placement.hpp"

namespace saga::test {

struct WorkerView {
  bool active = true;
  std::uint32_t matched_blocks = 0;
  std::uint32_t open_calls = 0;
  std::uint32_t blocks_in_use = 0;
};

inline Placement place_by_model(const PlacementOptions& options, const std::vector<WorkerView>& workers,
                                std::uint32_t prompt_blocks, std::uint32_t& round_robin_next, Random& random) {
  std::vector<WorkerId> active;
  for (WorkerId id = 0; id < workers.size(); ++id) {
    if (workers[id].active) active.push_back(id);
  }
  if (active.empty()) return {kNone, PlacementReason::kRoundRobin};

  if (options.kind == PlacementKind::kRoundRobin) {
    WorkerId chosen = active.front();
    for (const WorkerId id : active) {
      if (id >= round_robin_next) {
        chosen = id;
        break;
      }
    }
    round_robin_next = chosen + 1 == workers.size() ? 0 : chosen + 1;
    return {chosen, PlacementReason::kRoundRobin};
  }

  const auto best_by = [&](auto key) {
    return *std::min_element(active.begin(), active.end(), [&](WorkerId a, WorkerId b) { return key(a) < key(b); });
  };
  const auto open = [&](WorkerId id) { return std::int64_t{workers[id].open_calls}; };
  const std::int64_t fewest = open(best_by([&](WorkerId id) { return open(id); }));
  const std::int64_t most = open(best_by([&](WorkerId id) { return -open(id); }));
  if (most - fewest > std::int64_t{options.imbalance_calls}) {
    std::vector<WorkerId> urn = active;
    const auto first = static_cast<std::ptrdiff_t>(random.below(urn.size()));
    const WorkerId a = urn[static_cast<std::size_t>(first)];
    urn.erase(urn.begin() + first);
    const WorkerId b = urn[random.below(urn.size())];
    return {std::pair(open(a), a) < std::pair(open(b), b) ? a : b, PlacementReason::kImbalance};
  }
  const WorkerId longest =
      best_by([&](WorkerId id) { return std::tuple(-std::int64_t{workers[id].matched_blocks}, open(id), id); });
  const std::int64_t matched = workers[longest].matched_blocks;
  if (matched > 0 && matched * 100 >= std::int64_t{options.minimum_match_percent} * prompt_blocks) {
    return {longest, PlacementReason::kLongestMatch};
  }
  return {best_by([&](WorkerId id) { return std::tuple(workers[id].blocks_in_use, open(id), id); }),
          PlacementReason::kFewestBlocks};
}

}  // namespace saga::test
