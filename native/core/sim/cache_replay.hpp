// Cache replay: one shared cache of a fixed size sees the calls of a workload in the order of a schedule,
// under one eviction policy. It measures policies against each other and against Belady's optimum; nothing is
// simulated but the cache.
//
//   atomic  A request occupies an instant: look up, touch or insert all its pages, cut to size. Its pages may go at once,
//           even while it still runs.
//   pinned  A request runs from start to end, and nobody may evict its pages before that. First every request with end <=
//           start of the new one ends, in order of end (ties: of start): its pins go, then the cache is cut; then the new
//           one: look up, insert and pin all its pages, cut. If pinned pages alone exceed the size, the cache overflows.
//
// A **miss** is a page of the prompt behind the leading run of resident pages when the request starts. Costs
// weigh a page by the work of computing it again: attention grows with depth, so a token at position p weighs
// 1 + p / 60,000, and page i (of T tokens) the sum over its tokens, T + (i T^2 + T (T - 1) / 2) / 60,000.
// Sums are exact (integers of 1/120,000).
//
// The policies are told what a server would know: thread, prompt and its pages at the start; stop reason and
// tool at `end`. Memory: O(nodes of the tree + calls). A replay is O(nodes on all paths) plus the policy's
// decisions. Deterministic; it reads no clock of its own.
//
// **What a policy costs** (with now_ns): policy_ns is the time of everything that is done with the cache, from before a request
// starts to after the cut that follows, and the same at its end: every notification and decision of the policy, and the
// cache's own work, which is the same for each of them. Divided by the pages requested it is the cost of a decision, for
// `lru` as for any other. Two clock readings a phase, three where it evicts.
#pragma once

#include <atomic>
#include <cstdint>

#include "../evict/eviction_policy.hpp"
#include "../evict/page_tree.hpp"
#include "workload.hpp"

namespace saga {

enum class CacheModel : std::uint8_t { kAtomic = 0, kPinned = 1 };

struct CacheReplayOptions {
  PolicyKind policy = PolicyKind::kLru;
  CacheModel model = CacheModel::kPinned;
  std::uint32_t capacity_pages = 1;
  std::uint32_t request_limit =
      kNone;                   // only the first so many requests of the schedule are replayed (and known to belady)
  bool infer_threads = false;  // hide thread ids from the policy
  std::atomic<std::uint64_t>* progress = nullptr;  // set to the number of requests done, every 256 and at the end
  std::uint64_t (*now_ns)() = nullptr;             // if given, times the cuts that evict and all of the cache's work
};

struct CacheReplayResult {
  std::uint64_t requests = 0;
  std::uint64_t requested_pages = 0;
  std::uint64_t missed_pages = 0;
  std::uint64_t evicted_pages = 0;
  double requested_cost = 0;       // in weighted tokens
  double missed_cost = 0;          // the recompute cost
  std::uint64_t overflows = 0;     // cuts that pinned pages alone prevented
  std::uint64_t cuts = 0;          // cuts that evicted something
  std::uint64_t decisions = 0;     // victims asked for
  std::uint64_t cut_ns = 0;        // time of all cuts (only with now_ns)
  std::uint64_t policy_ns = 0;     // time of all starts, ends and cuts (only with now_ns)
  std::uint32_t peak_running = 0;  // most requests at once (pinned)
};

// `tree` is PageTree::for_cache(workload, ...). The schedule is in order of start, end >= start.
CacheReplayResult replay_cache(const Workload& workload, const PageTree& tree, const CacheSchedule& schedule,
                               const CacheReplayOptions& options);

}  // namespace saga
