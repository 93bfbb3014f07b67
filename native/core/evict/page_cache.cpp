#include "page_cache.hpp"

#include <algorithm>
#include <utility>

#include "../base/assert.hpp"

namespace saga {

PageCache::PageCache(const PageTree& tree, std::uint32_t capacity, std::uint32_t max_running, PolicyKind policy,
                     const FutureRequests& future, std::uint32_t max_leases, ReuseStatistics* shared)
    : tree_(tree), capacity_(capacity), stride_(tree.max_path_nodes()), max_running_(max_running) {
  residents_.tree = &tree;
  residents_.nodes.resize(tree.size());
  residents_.leaves.reserve(std::min(tree.size(), capacity + 1));
  const std::size_t slots = std::size_t{max_running} + max_leases;
  running_.resize(slots);
  paths_.resize(slots * stride_);
  if (max_leases > 0) lease_pins_.resize(tree.size());
  policy_ = make_eviction_policy(policy, residents_, future, shared);
}

std::uint32_t PageCache::match(NodeId leaf) const {
  while (leaf != kNone && residents_.nodes[leaf].pages == 0) leaf = tree_.node(leaf).parent;
  return leaf == kNone ? 0 : residents_.path_pages(leaf);
}

void PageCache::open(std::uint32_t slot, CallId call, NodeId leaf) {
  Running& running = running_[slot];
  SAGA_ASSERT(!running.active);
  running = {};
  running.active = true;
  running.call = call;
  running.path_nodes = tree_.path(leaf, paths_.data() + std::size_t{slot} * stride_);
}

std::uint32_t PageCache::enter_resident(std::uint32_t slot, std::uint32_t limit) {
  Running& running = running_[slot];
  const bool lease = is_lease(slot);
  while (running.entered < running.path_nodes && running.frontier < limit) {
    const NodeId node = path_node(slot, running.entered);
    const std::uint32_t pages = std::min(residents_.nodes[node].pages, limit - running.frontier);
    if (pages == 0) break;
    pin_node(node, false, lease);
    ++running.entered;
    running.frontier += pages;
    if (pages < tree_.node(node).pages) break;
  }
  return running.frontier;
}

std::uint32_t PageCache::start(std::uint32_t slot, const CallStart& call, std::uint32_t limit, Time now) {
  SAGA_ASSERT(!is_lease(slot) && tree_.on_path(call.prompt_leaf, call.path_leaf));
  open(slot, call.call, call.path_leaf);
  policy_->call_started(call, now);
  return enter_resident(slot, limit);
}

std::uint32_t PageCache::pin(std::uint32_t slot, NodeId leaf, std::uint32_t limit) {
  open(slot, kNone, leaf);
  if (is_lease(slot)) ++leases_;
  return enter_resident(slot, limit);
}

// The nodes that leases pin are closed under prefixes.
std::uint32_t PageCache::lease_growth(NodeId leaf, std::uint32_t pages) const {
  std::uint32_t growth = 0;
  for (NodeId node = leaf; node != kNone; node = tree_.node(node).parent) {
    if (tree_.node(node).first_page >= pages) continue;
    if (leases_ > 0 && lease_pins_[node] > 0) break;
    growth += tree_.node(node).pages;
  }
  return growth;
}

std::uint32_t PageCache::grow(std::uint32_t slot, std::uint32_t pages, Time now) {
  return advance(slot, pages, true, now);
}

void PageCache::insert(std::uint32_t slot, std::uint32_t pages) { advance(slot, pages, false, 0); }

std::uint32_t PageCache::advance(std::uint32_t slot, std::uint32_t pages, bool bounded, Time now) {
  Running& running = running_[slot];
  SAGA_ASSERT(running.active && !is_lease(slot));
  const std::uint32_t begin = running.frontier;
  const std::uint32_t target = begin + pages;
  while (running.frontier < target) {
    const bool inside =
        running.entered > 0 && running.frontier < tree_.node(path_node(slot, running.entered - 1)).end_page();
    SAGA_ASSERT(inside || running.entered < running.path_nodes);
    const NodeId node = path_node(slot, inside ? running.entered - 1 : running.entered);
    const std::uint32_t offset = running.frontier - tree_.node(node).first_page;
    const std::uint32_t there = residents_.nodes[node].pages;
    std::uint32_t step = 0;
    if (offset < there) {
      step = std::min(there - offset, target - running.frontier);
    } else {
      step = std::min(tree_.node(node).pages - offset, target - running.frontier);
      if (bounded) {
        // The node before this one is pinned by this call, so nothing that it needs can go here.
        if (free() < step) evict(step + used() - capacity_, now);
        step = std::min(step, free());
        if (step == 0) break;
      }
      add_pages(node, step);
    }
    if (!inside) {
      pin_node(node, there == 0, false);
      ++running.entered;
    }
    running.frontier += step;
  }
  return running.frontier - begin;
}

void PageCache::end(std::uint32_t slot, const CallEnd& call, Time now) {
  SAGA_ASSERT(running_[slot].active && running_[slot].call == call.call);
  policy_->call_ended(call, now);
  release(slot);
}

void PageCache::preempt(std::uint32_t slot, Time now) {
  SAGA_ASSERT(running_[slot].active && running_[slot].call != kNone);
  policy_->call_preempted(running_[slot].call, now);
  release(slot);
}

void PageCache::unpin(std::uint32_t slot) { release(slot); }

// The node is about to get one pin more.
void PageCache::count_pin(NodeId node, bool lease) {
  const ResidentNode& state = residents_.nodes[node];
  if (lease) {
    if (state.pins == 0) revocable_ += state.pages;
    if (lease_pins_[node]++ == 0) leased_ += tree_.node(node).pages;
  } else if (state.pins > 0 && state.pins == lease_pins_[node]) {
    revocable_ -= state.pages;
  }
}

// The node has one pin less.
void PageCache::count_unpin(NodeId node, bool lease) {
  const ResidentNode& state = residents_.nodes[node];
  if (lease) {
    if (--lease_pins_[node] == 0) leased_ -= tree_.node(node).pages;
    if (state.pins == 0) revocable_ -= state.pages;
  } else if (state.pins > 0 && state.pins == lease_pins_[node]) {
    revocable_ += state.pages;
  }
}

void PageCache::pin_node(NodeId node, bool fresh, bool lease) {
  ResidentNode& state = residents_.nodes[node];
  SAGA_ASSERT(state.pages > 0);
  if (leases_ > 0) [[unlikely]]
    count_pin(node, lease);
  if (state.pins == 0) {
    if (!fresh && state.children == 0) policy_->candidate_removed(node);
    state.pins = 1;
    pinned_ += state.pages;
    policy_->node_pinned(node);
  } else {
    ++state.pins;
  }
}

void PageCache::release(std::uint32_t slot) {
  Running& running = running_[slot];
  const bool lease = is_lease(slot);
  SAGA_ASSERT(running.active);
  for (std::uint32_t i = running.entered; i-- > 0;) {
    const NodeId node = path_node(slot, i);
    ResidentNode& state = residents_.nodes[node];
    SAGA_ASSERT(state.pins > 0);
    --state.pins;
    if (leases_ > 0) [[unlikely]]
      count_unpin(node, lease);
    if (state.pins > 0) continue;
    pinned_ -= state.pages;
    policy_->node_unpinned(node);
    if (state.children == 0) policy_->candidate_added(node);
  }
  if (lease) --leases_;
  running = {};
}

void PageCache::add_pages(NodeId node, std::uint32_t pages) {
  ResidentNode& state = residents_.nodes[node];
  if (changes_ != nullptr) changes_->push_back({{node, state.pages, pages}, true});
  resident_ += pages;
  if (state.pages > 0) {
    SAGA_ASSERT(call_pins(node) > 0);  // only a call (or a copy) that has entered the node grows it
    state.pages += pages;
    pinned_ += pages;
    return;
  }
  const NodeId parent = tree_.node(node).parent;
  if (parent != kNone && residents_.nodes[parent].children++ == 0) remove_leaf(parent);
  state.pages = pages;
  add_leaf(node);
  policy_->node_resident(node);  // and pinned by the caller at once: a fresh node is never a candidate
}

void PageCache::remove_pages(NodeId node, std::uint32_t pages) {
  ResidentNode& state = residents_.nodes[node];
  SAGA_ASSERT(residents_.is_candidate(node) && pages <= state.pages);
  resident_ -= pages;
  evicted_total_ += pages;
  if (changes_ != nullptr) changes_->push_back({{node, state.pages - pages, pages}, false});
  if (pages < state.pages) {
    state.pages -= pages;
    return;
  }
  policy_->candidate_removed(node);
  state.pages = 0;
  remove_leaf(node);
  policy_->node_emptied(node);
  const NodeId parent = tree_.node(node).parent;
  if (parent == kNone || --residents_.nodes[parent].children > 0) return;
  add_leaf(parent);
  if (residents_.nodes[parent].pins == 0) policy_->candidate_added(parent);
}

void PageCache::add_leaf(NodeId node) {
  residents_.nodes[node].leaf_slot = static_cast<std::uint32_t>(residents_.leaves.size());
  residents_.leaves.push_back(node);
}

void PageCache::remove_leaf(NodeId node) {
  const std::uint32_t slot = std::exchange(residents_.nodes[node].leaf_slot, kNone);
  const NodeId last = residents_.leaves.back();
  residents_.leaves[slot] = last;
  residents_.leaves.pop_back();
  if (last != node) residents_.nodes[last].leaf_slot = slot;
}

std::uint32_t PageCache::evict(std::uint32_t pages, Time now) {
  std::uint32_t gone = 0;
  while (gone < pages && evictable() > 0) {
    ++decisions_;
    const Victim victim = policy_->victim(now);
    SAGA_ASSERT(victim.node != kNone && victim.pages > 0);
    if (victim.node == kNone) break;
    const std::uint32_t step = std::min(victim.pages, pages - gone);
    remove_pages(victim.node, step);
    gone += step;
  }
  return gone;
}

void PageCache::trim(Time now) {
  if (used() > capacity_) evict(used() - capacity_, now);
}

bool PageCache::reserve_anonymous(std::uint32_t pages, Time now) {
  if (free() < pages) {
    const std::uint32_t missing = pages + used() - capacity_;
    if (missing > evictable()) return false;
    evict(missing, now);
  }
  anonymous_ += pages;
  return true;
}

void PageCache::release_anonymous(std::uint32_t pages) {
  SAGA_ASSERT(pages <= anonymous_);
  anonymous_ -= pages;
}

bool PageCache::verify() const {
  std::vector<std::uint32_t> pins(tree_.size(), 0);
  std::vector<std::uint32_t> lease_pins(tree_.size(), 0);
  std::uint32_t leases = 0;
  for (std::size_t slot = 0; slot < running_.size(); ++slot) {
    const Running& running = running_[slot];
    if (!running.active) continue;
    const auto index = static_cast<std::uint32_t>(slot);
    if (is_lease(index)) ++leases;
    if (running.entered > running.path_nodes || (is_lease(index) && running.call != kNone)) return false;
    for (std::uint32_t i = 0; i < running.entered; ++i) {
      ++pins[path_node(index, i)];
      if (is_lease(index)) ++lease_pins[path_node(index, i)];
    }
    if (running.entered == 0) {
      if (running.frontier != 0) return false;
      continue;
    }
    const NodeId last = path_node(index, running.entered - 1);
    if (running.frontier <= tree_.node(last).first_page) return false;
    if (running.frontier > residents_.path_pages(last)) return false;
  }
  std::vector<std::uint32_t> children(tree_.size(), 0);
  std::uint32_t resident = 0;
  std::uint32_t pinned = 0;
  std::uint32_t revocable = 0;
  std::uint32_t leased = 0;
  std::uint32_t leaves = 0;
  if (leases != leases_ || (!lease_pins_.empty() && lease_pins != lease_pins_)) return false;
  for (NodeId node = 0; node < tree_.size(); ++node) {
    const ResidentNode& state = residents_.nodes[node];
    if (state.pages > tree_.node(node).pages || state.pins != pins[node]) return false;
    if (state.pages == 0) {
      if (state.pins != 0) return false;
      continue;
    }
    resident += state.pages;
    if (state.pins > 0) pinned += state.pages;
    if (state.pins > 0 && state.pins == lease_pins[node]) revocable += state.pages;
    if (lease_pins[node] > 0) leased += tree_.node(node).pages;
    const NodeId parent = tree_.node(node).parent;
    if (parent == kNone) continue;
    if (residents_.nodes[parent].pages != tree_.node(parent).pages) return false;  // closed under prefixes
    ++children[parent];
  }
  for (NodeId node = 0; node < tree_.size(); ++node) {
    const ResidentNode& state = residents_.nodes[node];
    if (state.children != children[node]) return false;
    const bool leaf = state.pages > 0 && state.children == 0;
    if (!leaf && state.leaf_slot != kNone) return false;
    if (!leaf) continue;
    ++leaves;
    if (state.leaf_slot >= residents_.leaves.size() || residents_.leaves[state.leaf_slot] != node) return false;
  }
  if (revocable != revocable_ || leased != leased_) return false;
  return resident == resident_ && pinned == pinned_ && leaves == residents_.leaves.size() && policy_->verify();
}

}  // namespace saga
