// PageCache: what one cache (the KV room of one worker) holds of a PageTree, and which part of it is pinned.
//
// Per node the number of resident pages, always a prefix of its run; a node with resident pages has its whole path
// before it resident. Eviction takes the last page of a node without resident children, so that stays true. Which node,
// the policy says.
//
// A **running call** has a slot (0 .. max_running - 1, chosen by the owner) and a path in the tree; it has pinned the
// first pages of that path, and its frontier moves on as it grows. A node is pinned, as a whole, from the moment the
// frontier of a running call enters it until the last such call lets go. (Of two calls that prefill the same node at
// the same time the slower one so protects, for a moment, pages that it has not reached yet.)
//
// A slot can also be pinned **quietly**, in nobody's name: the policy then hears of pins and of what becomes resident,
// but of no call, and so learns nothing about a thread from it. Two uses:
//   copy    pages that arrive from elsewhere, in a slot as of a running call: pin(), grow(), unpin().
//   lease   pages that somebody wants kept, in a slot of their own (max_running .. max_running + max_leases - 1):
//           pin(), and unpin() when it ends. Pages of nodes that only leases pin are revocable(): no running call uses
//           them, and they could be had by letting go of leases.
//
// Besides pages of the tree a cache holds **anonymous pages**: the partly filled last page of each running call, which
// has no identity yet. They count as used and are never evicted; when such a page fills up, release it and grow by one.
//
//   capacity >= used() = resident pages of the tree + anonymous pages   (insert() may go beyond; trim() repairs it)
//   evictable() = resident pages in nodes without a pin. All of them can go: pins are closed under prefixes too.
//   free() = capacity - used();   a grow by n new pages is granted in full exactly when n <= free() + evictable()
//   pinned() >= revocable();      leased() >= resident pages of nodes that leases pin
//
// Typical life of a call on a simulated worker:
//   matched = cache.start(slot, call, limit, now);        // pins the leading resident pages, at most `limit` of them
//   granted = cache.grow(slot, chunk_pages, now);         // per chunk of prefill, and whenever the answer fills a page
//   cache.end(slot, call_end, now);                       // or cache.preempt(slot, now), and later start() again
//
// Costs: start, pin, end and unpin O(nodes on the path), grow O(1 + nodes entered) plus evictions; an eviction decision
// is the policy's (O(1) for LRU however many pages go). Memory: 16 bytes a node, 4 more where there may be leases, and
// a path for each slot.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "eviction_policy.hpp"
#include "page_tree.hpp"

namespace saga {

// Pages [first, first + count) of a node; hashes by PageTree::page_hash().
struct PageRange {
  NodeId node = kNone;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

class PageCache {
 public:
  // The tree must outlive the cache; so must the calls of `future` (belady) and what it learns into (saga; nullptr: its own).
  PageCache(const PageTree& tree, std::uint32_t capacity, std::uint32_t max_running, PolicyKind policy,
            const FutureRequests& future = {}, std::uint32_t max_leases = 0, ReuseStatistics* shared = nullptr);

  PageCache(const PageCache&) = delete;
  PageCache& operator=(const PageCache&) = delete;

  // From now on changes are appended here, in order of happening (a range may be stored, evicted and stored again).
  // nullptr: not reported. The owner empties it.
  struct Change {
    PageRange range;
    bool stored = false;  // false: evicted
  };
  void report_to(std::vector<Change>* changes) { changes_ = changes; }

  // Leading resident pages on the path to a leaf. Changes nothing.
  std::uint32_t match(NodeId leaf) const;

  // The slot must be free and that of a running call. Pins the leading resident pages of call.path_leaf's path, at most
  // `limit`, and returns how many.
  std::uint32_t start(std::uint32_t slot, const CallStart& call, std::uint32_t limit, Time now);

  // The same quietly, for a copy or a lease: no call starts. Only unpin() lets go of such a slot.
  std::uint32_t pin(std::uint32_t slot, NodeId leaf, std::uint32_t limit);

  // Makes the next `pages` pages of the slot's path resident and pins them; pages that are there already (computed
  // meanwhile by another call) take no room. Evicts as needed. Returns how many were granted: fewer if what is pinned
  // leaves no more room. The path must be long enough; a lease does not grow.
  std::uint32_t grow(std::uint32_t slot, std::uint32_t pages, Time now);

  // As grow(), but without regard to the capacity and without evicting (cache replay: insert, then trim).
  void insert(std::uint32_t slot, std::uint32_t pages);

  // The three ways to let go of a slot; see eviction_policy.hpp for what the policy is told. None of them
  // evicts.
  void end(std::uint32_t slot, const CallEnd& call, Time now);
  void preempt(std::uint32_t slot, Time now);
  void unpin(std::uint32_t slot);

  // Evicts up to `pages` pages and returns how many went.
  std::uint32_t evict(std::uint32_t pages, Time now);

  // Evicts while used() > capacity() and something is evictable.
  void trim(Time now);

  // All or nothing; evicts as needed.
  bool reserve_anonymous(std::uint32_t pages, Time now);
  void release_anonymous(std::uint32_t pages);

  std::uint32_t capacity() const { return capacity_; }
  std::uint32_t used() const { return resident_ + anonymous_; }
  std::uint32_t anonymous() const { return anonymous_; }
  std::uint32_t free() const { return used() >= capacity_ ? 0 : capacity_ - used(); }
  std::uint32_t evictable() const { return resident_ - pinned_; }
  std::uint32_t pinned() const { return pinned_; }        // resident pages in pinned nodes
  std::uint32_t revocable() const { return revocable_; }  // of these, in nodes that only leases pin
  std::uint32_t leased() const { return leased_; }        // pages of nodes that leases pin, resident or not
  // What leased() would rise by if a lease pinned the leading `pages` pages of the path, all of them resident.
  std::uint32_t lease_growth(NodeId leaf, std::uint32_t pages) const;
  // Pins of a node that are not leases.
  std::uint32_t call_pins(NodeId node) const {
    return leases_ == 0 ? residents_.nodes[node].pins : residents_.nodes[node].pins - lease_pins_[node];
  }
  std::uint64_t evicted_total() const { return evicted_total_; }
  std::uint64_t decisions() const { return decisions_; }  // times the policy was asked for a victim

  bool is_running(std::uint32_t slot) const { return running_[slot].active; }
  std::uint32_t frontier(std::uint32_t slot) const { return running_[slot].frontier; }  // pages pinned by the slot

  const PageTree& tree() const { return tree_; }
  const ResidentSet& residents() const { return residents_; }
  EvictionPolicy& policy() { return *policy_; }
  const EvictionPolicy& policy() const { return *policy_; }

  // O(nodes + running paths): recomputes every count and asks the policy as well.
  bool verify() const;

 private:
  struct Running {
    bool active = false;
    CallId call = kNone;           // kNone: pinned quietly
    std::uint32_t path_nodes = 0;  // nodes of its path, in paths_[slot * stride]
    std::uint32_t entered = 0;     // how many of them are pinned: the frontier lies in or at the end of the last
    std::uint32_t frontier = 0;    // pages pinned
  };

  NodeId path_node(std::uint32_t slot, std::uint32_t i) const { return paths_[std::size_t{slot} * stride_ + i]; }
  bool is_lease(std::uint32_t slot) const { return slot >= max_running_; }
  void open(std::uint32_t slot, CallId call, NodeId leaf);
  std::uint32_t enter_resident(std::uint32_t slot, std::uint32_t limit);
  void pin_node(NodeId node, bool fresh, bool lease);
  void count_pin(NodeId node, bool lease);
  void count_unpin(NodeId node, bool lease);
  void release(std::uint32_t slot);
  void add_pages(NodeId node, std::uint32_t pages);
  void remove_pages(NodeId node, std::uint32_t pages);
  void add_leaf(NodeId node);
  void remove_leaf(NodeId node);
  std::uint32_t advance(std::uint32_t slot, std::uint32_t pages, bool bounded, Time now);

  const PageTree& tree_;
  const std::uint32_t capacity_;
  const std::uint32_t stride_;
  const std::uint32_t max_running_;
  std::uint32_t resident_ = 0;
  std::uint32_t pinned_ = 0;
  std::uint32_t leases_ = 0;  // slots of leases in use; without any, nothing below is looked at
  std::uint32_t revocable_ = 0;
  std::uint32_t leased_ = 0;
  std::uint32_t anonymous_ = 0;
  std::uint64_t evicted_total_ = 0;
  std::uint64_t decisions_ = 0;
  ResidentSet residents_;
  std::vector<std::uint32_t> lease_pins_;  // per node: of ResidentNode::pins, those of leases
  std::vector<Running> running_;
  std::vector<NodeId> paths_;
  std::vector<Change>* changes_ = nullptr;
  std::unique_ptr<EvictionPolicy> policy_;
};

}  // namespace saga
