#include "host_tier.hpp"

#include <algorithm>

namespace saga {

HostTier::HostTier(std::uint32_t capacity_pages) : capacity_(capacity_pages) {}

void HostTier::unlink(std::uint32_t slot) {
  const Entry& entry = entries_[slot];
  (entry.older == kNone ? oldest_ : entries_[entry.older].newer) = entry.newer;
  (entry.newer == kNone ? newest_ : entries_[entry.newer].older) = entry.older;
}

void HostTier::link_newest(std::uint32_t slot) {
  entries_[slot].older = newest_;
  entries_[slot].newer = kNone;
  (newest_ == kNone ? oldest_ : entries_[newest_].newer) = slot;
  newest_ = slot;
}

void HostTier::use(NodeId node, std::uint32_t offset, bool insert_missing) {
  const std::uint64_t page = key(node, offset);
  const auto found = slot_of_.find(page);
  if (found != slot_of_.end()) {
    unlink(found->second);
    link_newest(found->second);
    return;
  }
  if (!insert_missing) return;
  std::uint32_t slot;
  if (size() == capacity_) {
    slot = oldest_;
    unlink(slot);
    slot_of_.erase(entries_[slot].key);
    entries_[slot].key = page;
  } else {
    slot = static_cast<std::uint32_t>(entries_.size());
    entries_.push_back({page, kNone, kNone});
  }
  link_newest(slot);
  slot_of_.emplace(page, slot);
}

void HostTier::insert(const PageRange& range) {
  if (capacity_ == 0) return;
  for (std::uint32_t i = range.count; i-- > 0;) use(range.node, range.first + i, true);
}

std::uint32_t HostTier::run_on_path(const PageTree& tree, NodeId leaf, std::uint32_t first, std::uint32_t end) const {
  if (capacity_ == 0 || first >= end) return 0;
  path_.clear();
  for (NodeId node = leaf; node != kNone && tree.node(node).end_page() > first; node = tree.node(node).parent) {
    path_.push_back(node);
  }
  std::uint32_t page = first;
  while (!path_.empty()) {
    const NodeId node = path_.back();
    path_.pop_back();
    const PageNode& run = tree.node(node);
    for (; page < std::min(run.end_page(), end); ++page) {
      if (!contains(node, page - run.first_page)) return page - first;
    }
  }
  return page - first;
}

void HostTier::touch_path(const PageTree& tree, NodeId leaf, std::uint32_t first, std::uint32_t end) {
  if (capacity_ == 0) return;
  for (NodeId node = leaf; node != kNone && tree.node(node).end_page() > first; node = tree.node(node).parent) {
    const PageNode& run = tree.node(node);
    for (std::uint32_t page = std::min(run.end_page(), end); page-- > std::max(run.first_page, first);) {
      use(node, page - run.first_page, false);
    }
  }
}

void HostTier::clear() {
  entries_.clear();
  slot_of_.clear();
  oldest_ = newest_ = kNone;
}

bool HostTier::verify() const {
  if (size() > capacity_ || entries_.size() != slot_of_.size()) return false;
  std::size_t seen = 0;
  std::uint32_t previous = kNone;
  for (std::uint32_t slot = oldest_; slot != kNone; slot = entries_[slot].newer) {
    if (entries_[slot].older != previous) return false;
    const auto found = slot_of_.find(entries_[slot].key);
    if (found == slot_of_.end() || found->second != slot) return false;
    if (++seen > entries_.size()) return false;
    previous = slot;
  }
  return seen == entries_.size() && newest_ == previous;
}

}  // namespace saga
