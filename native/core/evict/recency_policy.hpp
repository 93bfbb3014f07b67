// LRU over pages, as vLLM's free queue: a page joins the recency list when the last running call that uses it ends, the tail of
// the path first, and the front of the list is evicted.
//
// The list links nodes, not pages: the pages of a node share their last use, for calls end at nodes only and a pin covers its
// node as a whole. The front is always a leaf: whoever used a child used its parent, no earlier, and within one call the child
// was put first. So a decision is one look at the front, valid for all its resident pages.
//
// Cost: O(1) a notification and a decision. Memory: 8 bytes a node.
// Invariant: the list holds exactly the nodes that have resident pages and no pin.
#pragma once

#include <vector>

#include "eviction_policy.hpp"

namespace saga {

class RecencyPolicy final : public EvictionPolicy {
 public:
  explicit RecencyPolicy(const ResidentSet& residents);

  void node_emptied(NodeId node) override;
  void node_pinned(NodeId node) override;
  void node_unpinned(NodeId node) override;
  Victim victim(Time now) override;
  bool verify() const override;

 private:
  struct Link {
    NodeId previous = kNone;
    NodeId next = kNone;
  };
  void unlink(NodeId node);
  bool linked(NodeId node) const {
    return links_[node].previous != kNone || links_[node].next != kNone || first_ == node;
  }

  const ResidentSet& residents_;
  NodeId first_ = kNone;
  NodeId last_ = kNone;
  std::vector<Link> links_;
};

}  // namespace saga
