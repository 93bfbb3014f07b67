#include "belady_policy.hpp"

#include "../base/assert.hpp"

namespace saga {

BeladyPolicy::BeladyPolicy(const ResidentSet& residents, const FutureRequests& future)
    : residents_(residents), request_of_call_(residents.tree->calls(), kNone), started_(future.count, 0) {
  const PageTree& tree = *residents.tree;
  first_use_.assign(std::size_t{tree.size()} + 2, 0);
  for (std::uint32_t i = 0; i < future.count; ++i) {
    SAGA_ASSERT(request_of_call_[future.calls[i]] == kNone);
    request_of_call_[future.calls[i]] = i;
    for (NodeId node = tree.prompt_leaf(future.calls[i]); node != kNone; node = tree.node(node).parent) {
      ++first_use_[std::size_t{node} + 2];
    }
  }
  for (std::size_t i = 2; i < first_use_.size(); ++i) first_use_[i] += first_use_[i - 1];
  uses_.resize(first_use_.back());
  for (std::uint32_t i = 0; i < future.count; ++i) {
    for (NodeId node = tree.prompt_leaf(future.calls[i]); node != kNone; node = tree.node(node).parent) {
      uses_[first_use_[std::size_t{node} + 1]++] = i;
    }
  }
  first_use_.pop_back();
  cursor_.assign(first_use_.begin(), first_use_.end() - 1);
  next_use_.resize(tree.size());
  for (NodeId node = 0; node < tree.size(); ++node) next_use_[node] = find_next_use(node);
  slots_.assign(tree.size(), kNone);
}

std::uint32_t BeladyPolicy::find_next_use(NodeId node) const {
  for (std::uint32_t i = cursor_[node]; i < first_use_[std::size_t{node} + 1]; ++i) {
    if (started_[uses_[i]] == 0) return uses_[i];
  }
  return kNone;
}

void BeladyPolicy::call_started(const CallStart& call, Time) {
  const std::uint32_t request = request_of_call_[call.call];
  if (request == kNone || started_[request] != 0) return;  // a preempted call was counted when it first started
  started_[request] = 1;
  const PageTree& tree = *residents_.tree;
  for (NodeId node = tree.prompt_leaf(call.call); node != kNone; node = tree.node(node).parent) {
    if (next_use_[node] != request) continue;  // an earlier request has not come yet
    std::uint32_t& cursor = cursor_[node];
    while (cursor < first_use_[std::size_t{node} + 1] && started_[uses_[cursor]] != 0) ++cursor;
    next_use_[node] = find_next_use(node);
    if (slots_[node] != kNone) sift_up(slots_[node]);  // next uses move away only: it can but rise
  }
}

bool BeladyPolicy::before(NodeId a, NodeId b) const {
  if (next_use_[a] != next_use_[b]) return next_use_[a] > next_use_[b];  // kNone is the largest
  const std::uint32_t depth_a = residents_.tree->node(a).end_page();
  const std::uint32_t depth_b = residents_.tree->node(b).end_page();
  return depth_a != depth_b ? depth_a > depth_b : a < b;
}

void BeladyPolicy::candidate_added(NodeId node) {
  SAGA_ASSERT(slots_[node] == kNone);
  heap_.push_back(node);
  slots_[node] = static_cast<std::uint32_t>(heap_.size() - 1);
  sift_up(slots_[node]);
}

void BeladyPolicy::candidate_removed(NodeId node) {
  const std::uint32_t slot = slots_[node];
  SAGA_ASSERT(slot != kNone);
  const NodeId last = heap_.back();
  heap_.pop_back();
  slots_[node] = kNone;
  if (last == node) return;
  place(slot, last);
  sift_up(slot);
  sift_down(slots_[last]);
}

void BeladyPolicy::sift_up(std::uint32_t slot) {
  const NodeId node = heap_[slot];
  while (slot > 0 && before(node, heap_[(slot - 1) / 2])) {
    place(slot, heap_[(slot - 1) / 2]);
    slot = (slot - 1) / 2;
  }
  place(slot, node);
}

void BeladyPolicy::sift_down(std::uint32_t slot) {
  const NodeId node = heap_[slot];
  for (std::uint32_t child = 2 * slot + 1; child < heap_.size(); child = 2 * slot + 1) {
    if (child + 1 < heap_.size() && before(heap_[child + 1], heap_[child])) ++child;
    if (!before(heap_[child], node)) break;
    place(slot, heap_[child]);
    slot = child;
  }
  place(slot, node);
}

Victim BeladyPolicy::victim(Time) {
  if (heap_.empty()) return {};
  return {heap_[0], residents_.nodes[heap_[0]].pages};
}

bool BeladyPolicy::verify() const {
  std::uint32_t candidates = 0;
  for (NodeId node = 0; node < residents_.nodes.size(); ++node) {
    const bool candidate = residents_.is_candidate(node);
    candidates += candidate;
    if (candidate != (slots_[node] != kNone)) return false;
    if (candidate && (slots_[node] >= heap_.size() || heap_[slots_[node]] != node)) return false;
    if (next_use_[node] != find_next_use(node)) return false;
  }
  for (std::uint32_t slot = 1; slot < heap_.size(); ++slot) {
    if (before(heap_[slot], heap_[(slot - 1) / 2])) return false;
  }
  return candidates == heap_.size();
}

}  // namespace saga
