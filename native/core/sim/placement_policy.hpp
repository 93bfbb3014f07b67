// Placement in a simulated cluster: where policies (place/cluster_control.hpp) learn what is cached, and the baselines.
//
// Every policy drives the same workers; the eviction policy of the workers is chosen beside it (evict/). Nothing else
// differs between two policies.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../base/random.hpp"
#include "../base/types.hpp"
#include "../evict/page_cache.hpp"
#include "../place/cluster_control.hpp"
#include "../place/placement.hpp"

namespace saga {

// Which worker caches how much of a prompt. The run's own implementation asks the caches; another one (an index fed by
// what pages_changed() tells) must answer the same if it is exact.
class PrefixDirectory {
 public:
  virtual ~PrefixDirectory() = default;
  // pages[w] = leading cached pages of the prompt of `call` on worker w.
  virtual void match(CallId call, std::uint32_t* pages) = 0;
  virtual void pages_changed(WorkerId, const std::vector<PageCache::Change>&, Time) {}
};

// The baseline placements (place/placement.hpp) on what the cluster shows, without an engine in between: for searches
// that need many runs. EnginePlacement makes the same decisions through the engine. O(workers) and one directory
// look-up.
class BaselinePlacement final : public PlacementPolicy {
 public:
  BaselinePlacement(PlacementKind kind, std::uint64_t seed) : random_(seed) { options_.kind = kind; }
  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;

 private:
  PlacementOptions options_;
  Random random_;
  std::uint32_t round_robin_next_ = 0;
  std::vector<std::uint8_t> active_;
  std::vector<std::uint32_t> matched_;
  std::vector<std::uint32_t> open_calls_;
  std::vector<std::uint32_t> running_pages_;
};

}  // namespace saga
