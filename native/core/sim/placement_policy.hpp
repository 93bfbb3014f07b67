// PlacementPolicy: what a scheduler in front of a simulated cluster decides, and what it can see and do.
//
// Every policy drives the same workers. It may place a call, hold it, give it a priority, copy cached pages between
// workers (prefetch, migration), and lease cached pages (retention); the eviction policy of the workers is chosen
// beside it (evict/). Nothing else differs between two policies, and a policy sees what a router in front of real
// engines sees: prompts when they are sent, what each worker caches, how much it runs, and answers when they end. Never
// the future.
//
// A policy belongs to one run. It is called from one thread, in order of simulated time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../base/random.hpp"
#include "../base/types.hpp"
#include "../evict/page_cache.hpp"
#include "../place/placement.hpp"
#include "lease.hpp"

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

// The cluster as a policy sees it and acts on it.
class ClusterControl {
 public:
  virtual std::uint32_t workers() const = 0;
  virtual std::uint32_t page_tokens() const = 0;

  // What the request itself tells.
  virtual std::uint32_t prompt_tokens(CallId call) const = 0;
  virtual PromptKind prompt_kind(CallId call) const = 0;
  virtual ThreadId thread(CallId call) const = 0;
  virtual std::uint32_t task(CallId call) const = 0;
  virtual std::uint32_t tenant(std::uint32_t task) const = 0;

  // The workers now.
  virtual void match(CallId call, std::uint32_t* pages) = 0;       // leading cached pages of the prompt, per worker
  virtual std::uint32_t open_calls(WorkerId worker) const = 0;     // sent and not yet finished
  virtual std::uint32_t running_pages(WorkerId worker) = 0;        // pages in use by running calls
  virtual std::uint32_t waiting_calls(WorkerId worker) const = 0;  // in the engine's queue
  virtual std::uint32_t capacity_pages(WorkerId worker) const = 0;
  virtual std::uint32_t leased_pages(WorkerId worker) const = 0;  // of these, held against the budget by leases

  // Actions. send() places a call that was held. set_priority() acts on workers with priority scheduling (smaller
  // first). copy(): the prompt's pages that `from` caches and `to` lacks go over the link into `to` (its incoming link
  // carries one copy after the other) and are cached there, as far as there is room, when they arrive; from == to loads
  // from the host tier. The source keeps its copy, which ages. Returns the pages under way. wake_at(): timer() at that
  // time, now or later.
  virtual void send(CallId call, WorkerId worker) = 0;
  virtual void set_priority(CallId call, std::int32_t priority) = 0;
  virtual std::uint32_t copy(CallId call, WorkerId from, WorkerId to) = 0;
  virtual void wake_at(Time time) = 0;
  // lease(): what the worker caches now of a call's prompt, and of its answer if that has ended, is kept before `until`
  // unless it is revoked (lease.hpp). kNoLease: refused. release(): false if the lease has ended before.
  virtual LeaseId lease(CallId call, WorkerId worker, std::uint64_t value, Time until) = 0;
  virtual bool release(LeaseId lease) = 0;

 protected:
  ~ClusterControl() = default;
};

class PlacementPolicy {
 public:
  virtual ~PlacementPolicy() = default;

  // The worker for a call that is sent now, or kNone: the policy holds it and will send() it later.
  virtual WorkerId place(CallId call, Time now, ClusterControl& cluster) = 0;
  virtual std::int32_t priority(CallId, Time, ClusterControl&) { return 0; }

  virtual void task_arrived(std::uint32_t, Time, ClusterControl&) {}
  virtual void task_finished(std::uint32_t, Time, ClusterControl&) {}
  virtual void first_token(CallId, WorkerId, Time, ClusterControl&) {}
  virtual void call_finished(CallId, WorkerId, StopReason, ToolClass, Time, ClusterControl&) {}
  virtual void timer(Time, ClusterControl&) {}
  // Each outcome once, in order, at the moment when it happens but after everything that the same event brings about
  // (so lease() has returned before its kGranted comes). Who asks again at each refusal asks for ever.
  virtual void lease_reported(const LeaseReport&, Time, ClusterControl&) {}
  virtual bool verify() const { return true; }

 protected:
  PlacementPolicy() = default;
  PlacementPolicy(const PlacementPolicy&) = delete;
  PlacementPolicy& operator=(const PlacementPolicy&) = delete;
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
