// BlockHashMap: block hash -> block id, at most one entry a hash, for a number of entries fixed at
// construction.
//
// Open addressing with linear probing; at least twice as many slots as entries (a power of two), so a lookup
// reads 1.5 slots on average when it hits and 2.5 when it misses at the highest load of one half, usually in
// one cache line (16 bytes a slot). Erasing shifts the entries behind the hole back, so there are no
// tombstones and no rebuild: cost does not drift with age. Memory: 32 to 64 bytes an entry, allocated once.
// The place of an entry depends on history; nothing may be decided by it, so there is no iteration.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "../base/assert.hpp"
#include "../base/random.hpp"
#include "../base/types.hpp"

namespace saga {

class BlockHashMap {
 public:
  explicit BlockHashMap(std::uint32_t max_entries)
      : slots_(std::bit_ceil(std::size_t{2} * max_entries + 2)), mask_(slots_.size() - 1), max_entries_(max_entries) {}

  // The block stored under `hash`, or kNone.
  std::uint32_t find(BlockHash hash) const { return slots_[probe(hash)].block; }

  // `hash` is not in the map and there is room.
  void insert(BlockHash hash, std::uint32_t block) {
    SAGA_ASSERT(size_ < max_entries_ && block != kNone);
    Slot& slot = slots_[probe(hash)];
    SAGA_ASSERT(slot.block == kNone);
    slot = {hash, block};
    ++size_;
  }

  // `hash` is in the map; it now leads to `block`.
  void replace(BlockHash hash, std::uint32_t block) {
    Slot& slot = slots_[probe(hash)];
    SAGA_ASSERT(slot.block != kNone && block != kNone);
    slot.block = block;
  }

  // `hash` is in the map.
  void erase(BlockHash hash) {
    std::size_t hole = probe(hash);
    SAGA_ASSERT(slots_[hole].block != kNone);
    for (std::size_t i = next(hole); slots_[i].block != kNone; i = next(i)) {
      // An entry may move back to the hole unless its home lies behind the hole: then a lookup would start
      // past it.
      const std::size_t from_home = (i - home(slots_[i].hash)) & mask_;
      const std::size_t from_hole = (i - hole) & mask_;
      if (from_home >= from_hole) {
        slots_[hole] = slots_[i];
        hole = i;
      }
    }
    slots_[hole] = {};
    --size_;
  }

  void clear() {
    for (Slot& slot : slots_) slot = {};
    size_ = 0;
  }

  std::uint32_t size() const { return size_; }
  std::uint64_t memory_bytes() const { return slots_.size() * sizeof(Slot); }

  // Every entry is reached from its home without crossing an empty slot (hence found), and the count is
  // right.
  bool verify() const {
    std::uint32_t entries = 0;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].block == kNone) continue;
      ++entries;
      if (probe(slots_[i].hash) != i) return false;
    }
    return entries == size_ && size_ <= max_entries_;
  }

 private:
  struct Slot {
    BlockHash hash = 0;
    std::uint32_t block = kNone;  // kNone: empty (0 is a valid hash)
  };

  std::size_t home(BlockHash hash) const { return mix64(hash) & mask_; }
  std::size_t next(std::size_t slot) const { return (slot + 1) & mask_; }

  // The slot that holds `hash`, or the empty one where it would go. Ends: at least half of the slots are
  // empty.
  std::size_t probe(BlockHash hash) const {
    std::size_t slot = home(hash);
    while (slots_[slot].block != kNone && slots_[slot].hash != hash) slot = next(slot);
    return slot;
  }

  std::vector<Slot> slots_;
  std::size_t mask_;
  std::uint32_t max_entries_;
  std::uint32_t size_ = 0;
};

}  // namespace saga
