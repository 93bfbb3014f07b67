#include "recency_policy.hpp"

#include "../base/assert.hpp"

namespace saga {

RecencyPolicy::RecencyPolicy(const ResidentSet& residents) : residents_(residents), links_(residents.nodes.size()) {}

void RecencyPolicy::unlink(NodeId node) {
  Link& link = links_[node];
  (link.previous == kNone ? first_ : links_[link.previous].next) = link.next;
  (link.next == kNone ? last_ : links_[link.next].previous) = link.previous;
  link = {};
}

void RecencyPolicy::node_emptied(NodeId node) { unlink(node); }

void RecencyPolicy::node_pinned(NodeId node) {
  if (linked(node)) unlink(node);  // a fresh node is pinned before it was ever free
}

void RecencyPolicy::node_unpinned(NodeId node) {
  SAGA_ASSERT(!linked(node));
  links_[node].previous = last_;
  (last_ == kNone ? first_ : links_[last_].next) = node;
  last_ = node;
}

Victim RecencyPolicy::victim(Time) {
  if (first_ == kNone) return {};
  return {first_, residents_.nodes[first_].pages};
}

bool RecencyPolicy::verify() const {
  std::uint32_t free_nodes = 0;
  for (const ResidentNode& state : residents_.nodes) free_nodes += state.pages > 0 && state.pins == 0;
  NodeId previous = kNone;
  for (NodeId node = first_; node != kNone; previous = node, node = links_[node].next) {
    const ResidentNode& state = residents_.nodes[node];
    if (links_[node].previous != previous || state.pages == 0 || state.pins > 0) return false;
    if (free_nodes-- == 0) return false;  // a cycle, or one too many
  }
  // Users of a live tree may use a page without the one before it.
  if (first_ != kNone && residents_.live == nullptr && !residents_.is_candidate(first_)) return false;
  return last_ == previous && free_nodes == 0;
}

}  // namespace saga
