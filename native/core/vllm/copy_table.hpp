// CopyTable: how many copies there are of what has two or more.
//
// Nearly everything has one copy, which its owner knows by a bit; only the others have an entry here: 16 bytes, open
// addressing, never more than half full. Memory is reserved at construction and taken once it is touched.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/huge_array.hpp"
#include "../base/random.hpp"

namespace saga {

class CopyTable {
 public:
  explicit CopyTable(std::uint64_t most_keys)
      : entries_(std::bit_ceil(static_cast<std::size_t>(std::max<std::uint64_t>(2 * most_keys, 16)))) {}

  // 0: no entry.
  std::uint32_t count(std::uint64_t key) const { return entries_[find(key)].count; }

  // One copy more of what has one at least. False: no room.
  bool add(std::uint64_t key) {
    Entry& entry = entries_[find(key)];
    if (entry.count == 0) {
      if (2 * (size_ + 1) > entries_.size()) return false;
      entry = {key, 2, 0};
      ++size_;
      return true;
    }
    if (entry.count == 0xFFFFFFFFu) return false;
    ++entry.count;
    return true;
  }

  // One copy less. False: there is no entry, so that was the only one.
  bool remove(std::uint64_t key) {
    const std::size_t at = find(key);
    if (entries_[at].count == 0) return false;
    if (--entries_[at].count == 1) erase(at);
    return true;
  }

  void clear() {
    if (size_ != 0) std::memset(entries_.data(), 0, memory_bytes());
    size_ = 0;
  }

  std::uint64_t size() const { return size_; }
  std::uint64_t memory_bytes() const { return entries_.size() * sizeof(Entry); }

  // Calls visit(key, count) for each entry.
  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].count != 0) visit(entries_[i].key, entries_[i].count);
    }
  }

 private:
  struct Entry {
    std::uint64_t key;
    std::uint32_t count;  // 0: empty
    std::uint32_t unused;
  };

  std::size_t mask() const { return entries_.size() - 1; }
  std::size_t home_of(std::uint64_t key) const { return static_cast<std::size_t>(mix64(key)) & mask(); }
  std::size_t find(std::uint64_t key) const {
    std::size_t i = home_of(key);
    while (entries_[i].count != 0 && entries_[i].key != key) i = (i + 1) & mask();
    return i;
  }
  void erase(std::size_t gap) {
    for (std::size_t i = (gap + 1) & mask(); entries_[i].count != 0; i = (i + 1) & mask()) {
      if (((i - home_of(entries_[i].key)) & mask()) >= ((i - gap) & mask())) {
        entries_[gap] = entries_[i];
        gap = i;
      }
    }
    entries_[gap] = {};
    --size_;
  }

  HugeArray<Entry> entries_;
  std::uint64_t size_ = 0;
};

}  // namespace saga
