#include "placement_policy.hpp"

namespace saga {

WorkerId BaselinePlacement::place(CallId call, Time, ClusterControl& cluster) {
  const std::uint32_t workers = cluster.workers();
  active_.assign(workers, 1);
  matched_.assign(workers, 0);
  open_calls_.resize(workers);
  running_pages_.resize(workers);
  if (options_.kind == PlacementKind::kAffinity) {
    cluster.match(call, matched_.data());
    for (WorkerId worker = 0; worker < workers; ++worker) {
      open_calls_[worker] = cluster.open_calls(worker);
      running_pages_[worker] = cluster.running_pages(worker);
    }
  }
  const std::uint32_t prompt_pages = cluster.prompt_tokens(call) / cluster.page_tokens();
  return saga::place(options_, {active_, matched_, open_calls_, running_pages_, prompt_pages}, round_robin_next_,
                     random_)
      .worker;
}

}  // namespace saga
