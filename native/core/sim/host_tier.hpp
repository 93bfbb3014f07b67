// Host tier: the pages that one simulated worker keeps in host memory after its GPU evicted them.
//
// Least recently used goes first; a page is used when it arrives and when it is loaded back (it stays here as well). Pages of
// one evicted range arrive last page first, so that the tail of a branch leaves before its head, as on the GPU.
//
// One hash-map entry and one list entry a page; insert, touch and contains are O(1). The map is never iterated. Bounded by the
// capacity given at construction; capacity 0 means that there is no host tier.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "../evict/page_cache.hpp"
#include "../evict/page_tree.hpp"

namespace saga {

class HostTier {
 public:
  explicit HostTier(std::uint32_t capacity_pages);

  std::uint32_t capacity() const { return capacity_; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(slot_of_.size()); }

  void insert(const PageRange& range);
  bool contains(NodeId node, std::uint32_t offset) const { return slot_of_.count(key(node, offset)) != 0; }

  // How many pages from page `first` of the path to `leaf` on lie here without a hole, up to page `end`. O(nodes + pages).
  std::uint32_t run_on_path(const PageTree& tree, NodeId leaf, std::uint32_t first, std::uint32_t end) const;

  // The same pages were loaded: they are now the most recently used.
  void touch_path(const PageTree& tree, NodeId leaf, std::uint32_t first, std::uint32_t end);

  void clear();
  bool verify() const;

 private:
  struct Entry {
    std::uint64_t key;
    std::uint32_t older;
    std::uint32_t newer;
  };
  static std::uint64_t key(NodeId node, std::uint32_t offset) { return (std::uint64_t{node} << 32) | offset; }
  void unlink(std::uint32_t slot);
  void link_newest(std::uint32_t slot);
  void use(NodeId node, std::uint32_t offset, bool insert_missing);

  std::uint32_t capacity_;
  std::uint32_t oldest_ = kNone;
  std::uint32_t newest_ = kNone;
  std::vector<Entry> entries_;
  std::unordered_map<std::uint64_t, std::uint32_t> slot_of_;
  mutable std::vector<NodeId> path_;  // scratch
};

}  // namespace saga
