// Belady's MIN over pages, offline: evict the page whose next use lies farthest in the future, of equals the deepest. With
// pinned pages it stays optimal in misses, because pins only take room away for a time.
//
// It is given the requests that the cache will see, and looks up for a node the first of them that uses it and has not started
// yet. A request uses the nodes of its prompt; pages of its answer are used by whoever has them in its prompt. Requests that
// start out of order, or never, do not confuse it (they only make it less than optimal); requests that it was not given are
// not missed.
//
// What is used no earlier than its parent is used by nobody who does not use the parent, so the farthest page, the deepest of
// equals, is always a leaf: a heap of the candidates by next use is enough. (Leaves with the same next use are all without one:
// of those the deepest node goes first.) The next use of a node changes only when a request
// on its path starts; those nodes are on the path of the starting call and are updated there and then.
//
// Cost: O(nodes on the path + log candidates) a call, O(log candidates) a change of candidates, O(1) a decision, valid for all
// resident pages of the node. Memory: 4 bytes for each (request, node of its prompt) and 16 bytes a node.
// Invariants: the heap holds exactly the candidates, each with its present next use.
#pragma once

#include <vector>

#include "eviction_policy.hpp"

namespace saga {

class BeladyPolicy final : public EvictionPolicy {
 public:
  BeladyPolicy(const ResidentSet& residents, const FutureRequests& future);

  void call_started(const CallStart& call, Time now) override;
  void candidate_added(NodeId node) override;
  void candidate_removed(NodeId node) override;
  Victim victim(Time now) override;
  bool verify() const override;

 private:
  // Whether a goes before b.
  bool before(NodeId a, NodeId b) const;
  void sift_up(std::uint32_t slot);
  void sift_down(std::uint32_t slot);
  void place(std::uint32_t slot, NodeId node) {
    heap_[slot] = node;
    slots_[node] = slot;
  }
  std::uint32_t find_next_use(NodeId node) const;

  const ResidentSet& residents_;
  std::vector<std::uint32_t> request_of_call_;  // position among the requests to come, kNone: not given
  std::vector<std::uint8_t> started_;           // by position
  std::vector<std::uint32_t> first_use_;        // [nodes + 1] into uses_
  std::vector<std::uint32_t> uses_;             // positions, ascending within a node
  std::vector<std::uint32_t> cursor_;           // per node: uses before it have started
  std::vector<std::uint32_t> next_use_;         // per node; kNone: never
  std::vector<std::uint32_t> slots_;            // per node: place in the heap
  std::vector<NodeId> heap_;
};

}  // namespace saga
