// Outbox: what a scheduler has decided and nobody has read yet, in order, and the copies and leases that are not over.
//
// There is a place for each thing that can wait here, given at construction, so that nothing is allocated and what the host
// cannot do without is never lost: one for the placement of each call, one for its priority, one for each lease, and
// `directives` for copies and drops. Where those run out a copy or a lease is refused and a drop forgotten.
//
//   a copy    pending -> read -> over          (its outcome was told, or its time has passed; then its id is stale)
//   a lease   pending -> read (holds) -> over  (its outcome, its deadline) | -> releasing (pending again) -> over when read
//   a drop    pending -> over when read
//
// What waits for a worker that is removed is over at once.
//
// Ids of copies and leases are slot + generation * 2^32, the slot of a copy above 2^30; never 0.
//
// Cost: everything O(1), a lease O(log leases). Invariants (verify()): the list links exactly the pending places; free and used
// slots add up; copies that are not over are linked by age; leases that hold or are not read yet are exactly those in the heap of deadlines.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/digest.hpp"
#include "../fair/indexed_heap.hpp"
#include "../place/lease.hpp"
#include "decisions.hpp"

namespace saga {

class Outbox {
 public:
  Outbox(std::uint32_t calls, std::uint32_t leases, std::uint32_t directives);

  std::uint32_t pending() const { return pending_; }
  // The oldest, taken out. Fields that depend on when it is read (decided_at) are the caller's.
  Decision pop();

  // Placement and priority of a call slot: the placement is drawn up in place, then waits to be read; a priority that was
  // not read yet is replaced.
  Decision& draft(std::uint32_t call) { return places_[call]; }
  void place(std::uint32_t call) { link(call); }
  bool place_waits(std::uint32_t call) const { return linked(call); }
  void set_priority(std::uint32_t call, const Directive& directive);
  void forget_call(std::uint32_t call);  // neither is needed any more

  // The id, or 0: no room. `until` of the copy is when it is given up.
  std::uint64_t copy(Directive directive);
  bool drop(const Directive& directive);
  std::uint64_t lease(Directive directive);
  // False: it is over. A lease that was never read is simply over; *unread tells so.
  bool release(std::uint64_t id, bool* unread);

  // The copy or lease of an id that is not over; nullptr otherwise.
  const Directive* find(std::uint64_t id) const;
  static bool is_lease(std::uint64_t id) { return (static_cast<std::uint32_t>(id) & kCopyBit) == 0; }
  // It is over.
  void end(std::uint64_t id);
  // The oldest copy, or the lease with the first deadline, that is over at `now`; 0: none.
  std::uint64_t expired(Time now) const;
  // Any copy to or lease on a worker that is not over; 0: none. O(slots).
  std::uint64_t any_on(WorkerId worker) const;
  // Any copy to it, or from it, that nobody has read; 0: none.
  std::uint64_t unread_copy_to(WorkerId worker) const;
  std::uint64_t unread_copy_from(WorkerId worker) const;
  // Drops and releases of a worker that nobody has read are not needed any more. O(slots).
  void forget_worker(WorkerId worker);
  // Whether all here is of active workers, what will be copied and was not read also from active ones. For checks.
  bool refers_only_to(const std::vector<bool>& active) const;
  std::uint64_t leased_blocks(WorkerId worker) const;

  bool verify() const;
  void add_to(Digest& digest) const;

 private:
  static constexpr std::uint32_t kCopyBit = 1u << 30;
  enum class State : std::uint8_t { kFree, kPending, kRead, kReleasing };
  struct Slot {
    Directive directive;
    std::uint32_t generation = 1;
    State state = State::kFree;
    std::uint32_t older = kNone, newer = kNone;  // copies; newer: also list of free slots
  };

  bool linked(std::uint32_t item) const { return item == first_ || previous_[item] != kNone; }
  void link(std::uint32_t item);
  void unlink(std::uint32_t item);
  std::uint32_t lease_item(std::uint32_t slot) const { return 2 * calls_ + slot; }
  std::uint32_t directive_item(std::uint32_t slot) const { return 2 * calls_ + lease_count_ + slot; }
  static std::uint64_t id_of(std::uint32_t slot, const Slot& of, bool copy);
  const Slot* slot_of(std::uint64_t id) const;
  void free_lease(std::uint32_t slot);
  void free_directive(std::uint32_t slot);

  const std::uint32_t calls_, lease_count_, directive_count_;
  std::vector<std::uint32_t> previous_, next_;  // items: placements, priorities, leases, directives
  std::uint32_t first_ = kNone, last_ = kNone, pending_ = 0;
  std::vector<Decision> places_;
  std::vector<Directive> priorities_;
  std::vector<Slot> leases_, directives_;
  std::uint32_t free_lease_ = kNone, free_directive_ = kNone;
  std::uint32_t oldest_copy_ = kNone, newest_copy_ = kNone;
  IndexedHeap deadlines_;  // of leases
};

}  // namespace saga
