// SlotTable: finds slots of an array by a 64-bit key that lies in the slot itself.
//
// Open addressing with linear probing and deletion by backward shift; never more than half full. An entry is 8 bytes: half
// of the mixed key, from which its home follows, and the slot. A key may have several slots.
//
// Cost: one probe, usually one cache line, and for each entry whose half key fits a look at the slot. Memory: 16 to 32
// bytes a slot, reserved at construction and taken once it is touched.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/huge_array.hpp"
#include "../base/random.hpp"
#include "../base/types.hpp"

namespace saga {

class SlotTable {
 public:
  // Room for that many slots, at most 2^29.
  explicit SlotTable(std::uint64_t slots)
      : bits_(static_cast<std::uint32_t>(std::bit_width(std::max<std::uint64_t>(2 * slots, 16) - 1))),
        entries_(std::size_t{1} << bits_) {}

  // Any slot of the key for which matches(slot) holds, or kNone.
  template <typename Matches>
  std::uint32_t find(BlockHash key, Matches&& matches) const {
    const std::uint32_t tag = tag_of(key);
    for (std::size_t i = home_of(tag); entries_[i].slot_plus_1 != 0; i = (i + 1) & mask()) {
      if (entries_[i].tag == tag && matches(entries_[i].slot_plus_1 - 1)) return entries_[i].slot_plus_1 - 1;
    }
    return kNone;
  }

  void insert(BlockHash key, std::uint32_t slot) {
    SAGA_ASSERT(2 * size_ < entries_.size());
    const std::uint32_t tag = tag_of(key);
    std::size_t i = home_of(tag);
    while (entries_[i].slot_plus_1 != 0) i = (i + 1) & mask();
    entries_[i] = {tag, slot + 1};
    ++size_;
  }

  // The slot must be there under that key.
  void erase(BlockHash key, std::uint32_t slot) {
    std::size_t gap = home_of(tag_of(key));
    while (entries_[gap].slot_plus_1 != slot + 1) {
      SAGA_ASSERT(entries_[gap].slot_plus_1 != 0);
      gap = (gap + 1) & mask();
    }
    for (std::size_t i = (gap + 1) & mask(); entries_[i].slot_plus_1 != 0; i = (i + 1) & mask()) {
      // The entry may fill the gap unless its probe begins behind it.
      if (((i - home_of(entries_[i].tag)) & mask()) >= ((i - gap) & mask())) {
        entries_[gap] = entries_[i];
        gap = i;
      }
    }
    entries_[gap] = {0, 0};
    --size_;
  }

  void clear() {
    if (size_ != 0) std::memset(entries_.data(), 0, memory_bytes());
    size_ = 0;
  }

  SAGA_ALWAYS_INLINE void prefetch(BlockHash key) const { entries_.prefetch(home_of(tag_of(key))); }

  std::uint64_t size() const { return size_; }
  std::uint64_t memory_bytes() const { return entries_.size() * sizeof(Entry); }

 private:
  struct Entry {
    std::uint32_t tag;
    std::uint32_t slot_plus_1;  // 0: empty
  };

  static std::uint32_t tag_of(BlockHash key) { return static_cast<std::uint32_t>(mix64(key) >> 32); }
  std::size_t home_of(std::uint32_t tag) const { return (static_cast<std::uint64_t>(tag) << bits_) >> 32; }
  std::size_t mask() const { return entries_.size() - 1; }

  std::uint32_t bits_;
  HugeArray<Entry> entries_;
  std::uint64_t size_ = 0;
};

}  // namespace saga
