// Agent Fair Share: which waiting call goes next, so that every tenant gets its share of the GPUs and, within that, the most
// urgent workflow goes first. The bounds that it keeps are stated and proved in docs/fairness.md.
//
// Service is counted in one unit, GPU-microseconds; KV byte-seconds are folded in at an exchange rate (service()). A call is
// charged its estimated cost when it is granted, and corrected to what it really took as it runs.
//
// Between tenants there is a clock V, the service that a tenant of weight 1 is due. A grant of cost c moves V by c / (weight
// of the active tenants) and the tag of its tenant by c / (weight of the tenant). A tenant lags its share by
// weight * (V - tag):
//   ahead     tag > V                    gets nothing (unless every waiting tenant is ahead: then V jumps to the first)
//   eligible  lag in [0, lag_bound)      may be granted; the largest AFS (Eq 8, hence the largest share of Eq 9) goes first
//   urgent    lag >= lag_bound           goes before all that is not urgent, earliest deadline tag + (lag_bound +
//                                        largest_grant) / weight first
//   absent    nothing waits, lag < lag_bound: still counted as active, so that V does not run away when many leave at once
//   inactive  nothing waits, lag >= lag_bound, or never seen
// A call that took less than charged leaves a credit, which pays for the tenant's next grants; one that took more moves the
// tag at once. So V and the tags never go back.
//
// Within a tenant: calls of running workflows before new workflows; of each, those whose deadline can still be met by
// urgency = remaining work / time to the deadline, largest first; then all others (overdue, not attainable, no deadline) by
// remaining work, least first. Every `oldest_every`-th grant of a tenant goes to its oldest call, so nothing starves.
// Urgency changes with time: it is evaluated when a call comes and again once an epoch (100 ms, as Eq 9 is), for at most about
// `evaluations` calls an epoch, in turn. No bound depends on it.
//
// Cost: push, pop, remove and correct are O(log tenants) + amortised O(log calls of the tenant); refresh() is O(evaluations)
// once an epoch, on the first pop in it, or earlier when the host has time. All memory is taken at construction.
// Invariants (verify()): the state of each tenant is the one of the table; V never decreases; the weight of the active
// tenants is the sum of theirs; heaps, lists and counts agree.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../base/huge_array.hpp"
#include "../base/status.hpp"
#include "../base/types.hpp"
#include "indexed_heap.hpp"

namespace saga {

using TenantId = std::uint32_t;
using FairEntry = std::uint32_t;  // a waiting call; valid until it is popped or removed, then used again

inline constexpr std::uint32_t kFairWeightOne = 1024;                 // weights are integers in 1/1024
inline constexpr std::uint64_t kFairWorkUnknown = ~std::uint64_t{0};  // no estimate of the remaining work

enum class FairClass : std::uint8_t { kRunning = 0, kAdmission = 1 };  // a call of a running workflow; a new workflow

struct FairOptions {
  std::uint32_t tenants = 0;             // ids are below
  std::uint32_t entries = 0;             // waiting calls in all
  std::uint32_t entries_per_tenant = 0;  // 0: `entries`
  std::uint64_t largest_grant = 0;       // a call that is estimated to cost more is refused; at most 2^40
  std::uint64_t lag_bound = 0;  // above it a lagging tenant goes first; 0: largest_grant, and never more than that
  std::uint64_t default_work = 10'000'000;                     // remaining work of a workflow without an estimate
  std::uint64_t byte_seconds_per_gpu_second = 80'000'000'000;  // exchange rate; 0: memory costs nothing
  std::uint32_t oldest_every = 8;                              // >= 1; 1: first come, first served within a tenant
  Time epoch = 100'000;
  std::uint32_t evaluations = 4096;  // of calls whose deadline can still be met, an epoch
  Time preempt_after = 500'000;
  std::uint32_t preempt_ratio = 2;
};

struct FairCall {
  TenantId tenant = 0;
  FairClass kind = FairClass::kRunning;
  std::uint32_t call = 0;                 // the caller's own name for it
  std::uint64_t cost = 0;                 // of this grant, estimated: service(GPU-microseconds, KV byte-microseconds)
  std::uint64_t work = kFairWorkUnknown;  // remaining GPU-microseconds of its workflow, this call included
  Time deadline = kNotDeclared;           // of its workflow
};

class FairQueue {
 public:
  // Options must be valid: kInvalidArgument of check() is for the caller's caller.
  static Status check(const FairOptions& options);
  explicit FairQueue(const FairOptions& options);

  std::uint64_t service(std::uint64_t gpu_microseconds, std::uint64_t kv_byte_microseconds) const;

  // `now` never decreases over all calls. kFull: the queue, or the tenant's part of it, is full. kInvalidArgument: no such
  // tenant, or a cost above largest_grant.
  Status push(const FairCall& call, Time now, FairEntry* entry);
  void remove(FairEntry entry);                                // cancelled
  void update(FairEntry entry, std::uint64_t work, Time now);  // a better estimate of the remaining work
  const FairCall& call(FairEntry entry) const { return entries_[entry].call; }
  Time waiting_since(FairEntry entry) const { return entries_[entry].since; }

  // The call that goes next; kNone: nothing waits, or nothing that may go fits. Until the queue changes, or time goes on, pop()
  // would grant it.
  // fits(const FairCall&) says whether the call can start now. What does not fit is passed over only where that cannot harm
  // the bounds: among the oldest `kCandidates` calls of the tenant whose turn it is and, while no tenant is urgent, among
  // `kCandidates` eligible tenants. The first urgent tenant is never passed over: the host waits until its call fits.
  template <class Fits>
  FairEntry next(Time now, Fits&& fits) {
    refresh(now);
    make_eligible();
    if (!urgent_.empty()) return choose(tenants_[urgent_.top()], fits);
    const std::uint32_t candidates = eligible_.size() < kCandidates ? eligible_.size() : kCandidates;
    for (std::uint32_t i = 0; i < candidates; ++i) {
      const FairEntry entry = choose(tenants_[eligible_.at(i)], fits);
      if (entry != kNone) return entry;
    }
    return kNone;
  }

  // Grants the next call: charges its cost to its tenant and forgets it. False: next() is kNone.
  template <class Fits>
  bool pop(Time now, Fits&& fits, FairCall* granted) {
    const FairEntry entry = next(now, fits);
    if (entry == kNone) return false;
    *granted = entries_[entry].call;
    grant(entry);
    return true;
  }
  bool pop(Time now, FairCall* granted) {
    return pop(now, [](const FairCall&) { return true; }, granted);
  }
  static constexpr std::uint32_t kCandidates = 16;

  // What a granted call of the tenant took, beyond (or short of) what has been charged for it so far. A preempted or failed
  // call is corrected to what it took. At most 2^40 either way.
  void correct(TenantId tenant, std::int64_t delta);

  // At once, also for a tenant that waits; in 1/1024, from 1 to 2^20. A heavier tenant keeps its deadline for the next grant.
  void set_weight(TenantId tenant, std::uint32_t weight);

  // Whether a running call may be preempted for one that waits: it has waited for more than preempt_after, its tenant is not
  // ahead of its share, and its workflow is more than preempt_ratio times as urgent as that of the running call (a deadline
  // that can be met is infinitely more urgent than none, and one that cannot be met preempts nothing).
  bool should_preempt(FairEntry waiting, std::uint64_t running_work, Time running_deadline, Time now) const;

  void refresh(Time now);  // evaluates urgencies again if a new epoch has begun

  // Urgency in 1/2^32: 0 unless the deadline is declared and attainable (0 < work <= deadline - now), else in (0, 2^32].
  std::uint64_t urgency(std::uint64_t work, Time deadline, Time now) const;

  std::uint32_t size() const { return size_; }
  std::uint32_t waiting(TenantId tenant) const { return tenants_[tenant].waiting; }
  std::uint32_t weight(TenantId tenant) const { return tenants_[tenant].weight; }
  // Service charged and corrected, all time.
  std::int64_t served(TenantId tenant) const { return tenants_[tenant].served; }
  // Service still to be used up before the tenant is charged again.
  std::uint64_t credit(TenantId tenant) const { return tenants_[tenant].credit; }
  // How far the tenant is behind its fair share (ahead: negative), a credit counted as received; 0 while it is inactive.
  std::int64_t lag(TenantId tenant) const;
  // V in 1/2^16 GPU-microseconds for a weight of 1/1024: the fair share of a tenant over an interval is
  // weight(tenant) * (V at its end - V at its start) / 2^16.
  std::uint64_t virtual_time() const { return now_virtual_; }
  // Eq 9: the tenant's part of the urgency of all that waits, as last evaluated; 0 where nobody has an attainable deadline.
  double share(TenantId tenant) const;

  bool verify() const;

 private:
  static constexpr std::uint32_t kShift = 16;
  enum class State : std::uint8_t { kInactive, kAbsent, kAhead, kEligible, kUrgent };

  struct Tenant {
    std::uint64_t tag = 0;         // service received over weight, on the scale of V
    std::uint64_t remainder = 0;   // what division by the weight left over, below the weight
    std::uint64_t lag_span = 0;    // lag_bound / weight on the scale of V
    std::uint64_t grant_span = 0;  // largest_grant / weight, rounded up
    std::uint64_t credit = 0;
    std::uint64_t urgency = 0;  // sum over its waiting calls (Eq 8)
    std::int64_t served = 0;
    std::uint32_t weight = kFairWeightOne;
    std::uint32_t waiting = 0;
    std::uint32_t root = kNone;    // pairing heap of its waiting calls by key
    std::uint32_t oldest = kNone;  // the same calls in order of arrival
    std::uint32_t newest = kNone;
    std::uint32_t since_oldest = 0;     // grants since one went to the oldest
    std::uint32_t dated_place = kNone;  // in dated_, while its urgency is not 0
    State state = State::kInactive;
  };
  // What the heaps and lists touch, apart from the rest: it stays in the cache.
  struct Node {
    std::uint64_t key = 0;  // smaller goes first; holds the urgency
    std::uint64_t sequence = 0;
    std::uint32_t child = kNone, sibling = kNone, parent = kNone;  // parent: or the sibling before
    std::uint32_t older = kNone, newer = kNone;
  };
  struct Entry {
    FairCall call;
    Time since = 0;
    bool live = false;
  };

  // The oldest when it is its turn, else the first by key. Who does not fit is passed over, but the oldest at most
  // oldest_every times: then its tenant waits for it.
  template <class Fits>
  FairEntry choose(const Tenant& tenant, Fits&& fits) const {
    const bool oldest_turn = tenant.since_oldest + 1 >= options_.oldest_every;
    const FairEntry first = oldest_turn ? tenant.oldest : tenant.root;
    if (fits(entries_[first].call)) return first;
    if (tenant.since_oldest + 1 >= 2 * std::uint64_t{options_.oldest_every} && first == tenant.oldest) return kNone;
    FairEntry next = tenant.oldest;
    for (std::uint32_t i = 0; i < kCandidates && next != kNone; ++i, next = nodes_[next].newer) {
      if (next != first && fits(entries_[next].call)) return next;
    }
    return kNone;
  }

  void make_eligible();
  void grant(FairEntry entry);
  void advance(std::uint64_t service);
  void classify(TenantId id);
  void leave_heaps(TenantId id);
  void raise_tag(Tenant& tenant, std::uint64_t service);
  void start_at_clock(Tenant& tenant);
  void set_spans(Tenant& tenant) const;
  void set_eligible_key(TenantId id);
  std::uint64_t key(const FairCall& call, Time now) const;
  void change_urgency(TenantId id, std::uint64_t difference);
  void unlink(TenantId id, FairEntry entry);
  bool before(FairEntry a, FairEntry b) const;
  FairEntry meld(FairEntry a, FairEntry b);
  FairEntry merge_children(FairEntry entry);
  void heap_insert(Tenant& tenant, FairEntry entry);
  void heap_erase(Tenant& tenant, FairEntry entry);

  FairOptions options_;
  std::vector<Tenant> tenants_;
  HugeArray<Entry> entries_;
  HugeArray<Node> nodes_;  // of the entries
  std::vector<FairEntry> free_;
  IndexedHeap timeline_;         // by the V at which the state of a tenant changes by itself: absent, ahead, eligible
  IndexedHeap eligible_;         // by AFS
  IndexedHeap urgent_;           // by deadline
  std::vector<TenantId> dated_;  // tenants with a deadline that can be met, in no order
  std::uint32_t sweep_ = 0;      // the place in dated_ that is evaluated next
  std::uint64_t now_virtual_ = 0;
  std::uint64_t carry_ = 0;  // service (1/2^16) that has not moved V yet, below active_weight_ unless that fell
  std::uint64_t active_weight_ = 0;
  std::uint64_t total_urgency_ = 0;
  std::uint64_t sequence_ = 0;
  std::uint64_t epoch_ = ~std::uint64_t{0};
  std::uint32_t size_ = 0;
};

}  // namespace saga
