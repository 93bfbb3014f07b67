// Which worker gets a call: the baseline placements, as a pure function of what a router can see.
//
// `round_robin` takes the next active worker in order of id. `affinity` is a strong baseline, after Ray Serve's
// PrefixCacheAffinityRouter:
//
//   1. Where the most and the fewest open calls (sent and not yet finished) of two active workers differ by more than
//      `imbalance_calls`, the one with fewer open calls of two different workers drawn by seed, whatever it holds.
//   2. Else the worker with the longest match, if that is at least `minimum_match_percent` of the prompt's blocks.
//   3. Else the worker with the fewest blocks in use by running calls.
//
// Ties: fewest open calls, then the smallest id. Cost: O(workers), no allocation; two draws of the generator in case 1, none
// otherwise, so that the same events with the same seed give the same decisions.
#pragma once

#include <cstdint>
#include <span>

#include "../base/random.hpp"
#include "../base/types.hpp"

namespace saga {

// kSaga is no function of these alone: place/saga_scheduler.hpp.
enum class PlacementKind : std::uint8_t { kRoundRobin = 0, kAffinity = 1, kSaga = 2 };

// Why a worker was chosen; part of the receipt.
enum class PlacementReason : std::uint8_t {
  kRoundRobin = 0,    // its turn
  kLongestMatch = 1,  // it holds the longest leading part of the prompt
  kFewestBlocks = 2,  // nobody holds enough; it has the fewest blocks in use by running calls
  kImbalance = 3,     // open calls were too unequal; the emptier of two drawn workers
};

struct PlacementOptions {
  PlacementKind kind = PlacementKind::kAffinity;
  std::uint32_t imbalance_calls = 10;
  std::uint32_t minimum_match_percent = 10;
};

// One column per worker, indexed by worker id.
struct PlacementView {
  std::span<const std::uint8_t> active;           // 1: may be given calls
  std::span<const std::uint32_t> matched_blocks;  // leading blocks of this prompt that need no prefill there
  std::span<const std::uint32_t> open_calls;
  std::span<const std::uint32_t> blocks_in_use;  // by running calls
  std::uint32_t prompt_blocks = 0;
};

struct Placement {
  WorkerId worker = kNone;  // kNone: no active worker
  PlacementReason reason = PlacementReason::kRoundRobin;
};

// `round_robin_next` and `random` are the state of the policy; the caller keeps them.
Placement place(const PlacementOptions& options, const PlacementView& view, std::uint32_t& round_robin_next,
                Random& random);

}  // namespace saga
