// PageCache: what one cache (the KV room of one worker) holds of a PageTree, and which part of it running
// calls have pinned.
//
// Per node the number of resident pages, always a prefix of its run; a node with resident pages has its whole
// path before it resident. Eviction takes the last page of a node without resident children, so that stays
// true. Which node, the policy says.
//
// A **running call** has a slot (0 .. max_running - 1, chosen by the owner) and a path in the tree; it has
// pinned the first pages of that path, and its frontier moves on as it grows. A node is pinned, as a whole,
// from the moment the frontier of a running call enters it until the last such call lets go. (Of two calls
// that prefill the same node at the same time the slower one so protects, for a moment, pages that it has not
// reached yet.)
//
// Besides pages of the tree a cache holds **anonymous pages**: the partly filled last page of each running
// call, which has no identity yet. They count as used and are never evicted; when such a page fills up,
// release it and grow by one.
//
//   capacity >= used() = resident pages of the tree + anonymous pages          (insert() alone may go beyond;
//   trim() repairs it) evictable() = resident pages in nodes without a pin. All of them can go: pins are
//   closed under prefixes too. free() = capacity - used();   a grow by n new pages is granted in full exactly
//   when n <= free() + evictable()
//
// Typical life of a call on a simulated worker:
//   matched = cache.start(slot, call, limit, now);      // pins the leading resident pages, at most `limit`
//   of them granted = cache.grow(slot, chunk_pages, now);       // per chunk of prefill, and whenever the
//   answer fills a page cache.end(slot, call_end, now);                     // or cache.preempt(slot, now),
//   and later start() again
//
// Costs: start and end O(nodes on the path), grow O(1 + nodes entered) plus evictions; an eviction decision
// is the policy's (O(1) for LRU however many pages go). Memory: 16 bytes a node, and max_running paths.
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
  // The tree must outlive the cache; so must the calls of `future` (belady).
  PageCache(const PageTree& tree, std::uint32_t capacity, std::uint32_t max_running, PolicyKind policy,
            const FutureRequests& future = {});

  PageCache(const PageCache&) = delete;
  PageCache& operator=(const PageCache&) = delete;

  // From now on changes are appended here, in order of happening within each vector (a range may be stored,
  // evicted and stored again: with one vector for both, `stored` tells them apart). nullptr: not reported.
  // The owner empties it.
  struct Change {
    PageRange range;
    bool stored = false;  // false: evicted
  };
  void report_to(std::vector<Change>* changes) { changes_ = changes; }

  // Leading resident pages on the path to a leaf. Changes nothing.
  std::uint32_t match(NodeId leaf) const;

  // The slot must be free. Pins the leading resident pages of call.path_leaf's path, at most `limit`, and
  // returns how many.
  std::uint32_t start(std::uint32_t slot, const CallStart& call, std::uint32_t limit, Time now);

  // Makes the next `pages` pages of the call's path resident and pins them; pages that are there already
  // (computed meanwhile by another call) take no room. Evicts as needed. Returns how many were granted: fewer
  // if what is pinned leaves no more room. The path must be long enough.
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
  std::uint32_t pinned() const { return pinned_; }  // resident pages in pinned nodes
  std::uint64_t evicted_total() const { return evicted_total_; }
  std::uint64_t decisions() const { return decisions_; }  // times the policy was asked for a victim

  bool is_running(std::uint32_t slot) const { return running_[slot].active; }
  std::uint32_t frontier(std::uint32_t slot) const { return running_[slot].frontier; }  // pages pinned by the call

  const PageTree& tree() const { return tree_; }
  const ResidentSet& residents() const { return residents_; }
  EvictionPolicy& policy() { return *policy_; }
  const EvictionPolicy& policy() const { return *policy_; }

  // O(nodes + running paths): recomputes every count and asks the policy as well.
  bool verify() const;

 private:
  struct Running {
    bool active = false;
    CallId call = 0;
    std::uint32_t path_nodes = 0;  // nodes of its path, in paths_[slot * stride]
    std::uint32_t entered = 0;     // how many of them are pinned: the frontier lies in or at the end of the last
    std::uint32_t frontier = 0;    // pages pinned
  };

  NodeId path_node(std::uint32_t slot, std::uint32_t i) const { return paths_[std::size_t{slot} * stride_ + i]; }
  void pin(NodeId node, bool fresh);
  void release(std::uint32_t slot);
  void add_pages(NodeId node, std::uint32_t pages);
  void remove_pages(NodeId node, std::uint32_t pages);
  void add_leaf(NodeId node);
  void remove_leaf(NodeId node);
  std::uint32_t advance(std::uint32_t slot, std::uint32_t pages, bool bounded, Time now);

  const PageTree& tree_;
  const std::uint32_t capacity_;
  const std::uint32_t stride_;
  std::uint32_t resident_ = 0;
  std::uint32_t pinned_ = 0;
  std::uint32_t anonymous_ = 0;
  std::uint64_t evicted_total_ = 0;
  std::uint64_t decisions_ = 0;
  ResidentSet residents_;
  std::vector<Running> running_;
  std::vector<NodeId> paths_;
  std::vector<Change>* changes_ = nullptr;
  std::unique_ptr<EvictionPolicy> policy_;
};

}  // namespace saga
