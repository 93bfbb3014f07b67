#include "placement_policy.hpp"

#include <tuple>

namespace saga {

WorkerId RoundRobinPlacement::place(CallId, Time, ClusterControl& cluster) {
  const WorkerId worker = next_;
  next_ = next_ + 1 == cluster.workers() ? 0 : next_ + 1;
  return worker;
}

WorkerId AffinityPlacement::place(CallId call, Time, ClusterControl& cluster) {
  const std::uint32_t workers = cluster.workers();
  std::uint32_t fewest = kNone;
  std::uint32_t most = 0;
  for (WorkerId w = 0; w < workers; ++w) {
    fewest = std::min(fewest, cluster.open_calls(w));
    most = std::max(most, cluster.open_calls(w));
  }
  if (most - fewest > kImbalance) {
    const auto first = static_cast<WorkerId>(random_.below(workers));
    auto second = static_cast<WorkerId>(random_.below(workers - 1));
    if (second >= first) ++second;
    return cluster.open_calls(second) < cluster.open_calls(first) ? second : first;
  }
  matched_.resize(workers);
  cluster.match(call, matched_.data());
  std::uint32_t longest = 0;
  for (const std::uint32_t pages : matched_) longest = std::max(longest, pages);
  const bool worth = longest > 0 && std::uint64_t{10} * longest * cluster.page_tokens() >= cluster.prompt_tokens(call);
  WorkerId best = kNone;
  std::tuple<std::uint32_t, std::uint32_t> best_key;
  for (WorkerId w = 0; w < workers; ++w) {
    if (worth && matched_[w] != longest) continue;
    const std::tuple<std::uint32_t, std::uint32_t> key{cluster.running_pages(w), cluster.open_calls(w)};
    if (best != kNone && !(key < best_key)) continue;
    best = w;
    best_key = key;
  }
  return best;
}

std::unique_ptr<PlacementPolicy> make_placement_policy(PlacementKind kind, std::uint64_t seed) {
  if (kind == PlacementKind::kRoundRobin) return std::make_unique<RoundRobinPlacement>();
  return std::make_unique<AffinityPlacement>(seed);
}

}  // namespace saga
