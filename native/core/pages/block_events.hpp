// BlockEventLog: what became findable by its hash and what ceased to be, in order, so that a prefix index
// outside can be kept in step without looking at the pool.
//
// A bounded ring: the pools of a PageTable write, the owner drains between steps. Adding is a few stores;
// nothing allocates after construction; 16 bytes an event.
//
// Events are counted per physical copy, as vLLM's are: two blocks that hold the same hash give two kStored
// and, one by one, two kRemoved. A reader that asks "is this hash here" counts them.
//
// When the ring is full, new events are dropped and counted in lost(). A reader that finds lost() grown has
// missed changes: it drains what is there, forgets what it knew and rebuilds from BlockPool::is_cached() and
// hash() of every block, which costs one pass over the pool. A ring of as many events as there are blocks in
// all tiers, drained every step, rarely gets there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../base/types.hpp"

namespace saga {

using BlockId = std::uint32_t;  // index of a physical block in its tier's pool

// kStored: the block now answers to the hash. kRemoved: it no longer does. kCleared: nothing in this tier is
// cached any more (hash and block say nothing).
enum class BlockEventKind : std::uint8_t { kStored = 0, kRemoved = 1, kCleared = 2 };

struct BlockEvent {
  BlockHash hash;
  BlockId block;
  Tier tier;
  BlockEventKind kind;

  friend bool operator==(const BlockEvent&, const BlockEvent&) = default;
};

class BlockEventLog {
 public:
  explicit BlockEventLog(std::uint32_t capacity) : ring_(capacity) {}

  void add(const BlockEvent& event) {
    if (size_ == ring_.size()) {
      ++lost_;
      return;
    }
    ring_[(first_ + size_) % ring_.size()] = event;
    ++size_;
  }

  // Moves the oldest events into `events`, as many as fit, and returns how many.
  std::uint32_t drain(std::span<BlockEvent> events) {
    std::uint32_t count = 0;
    while (size_ > 0 && count < events.size()) {
      events[count++] = ring_[first_];
      first_ = (first_ + 1) % ring_.size();
      --size_;
    }
    return count;
  }

  std::uint32_t size() const { return static_cast<std::uint32_t>(size_); }
  std::uint32_t capacity() const { return static_cast<std::uint32_t>(ring_.size()); }
  std::uint64_t lost() const { return lost_; }

  bool verify() const { return size_ <= ring_.size() && (ring_.empty() ? first_ == 0 : first_ < ring_.size()); }

 private:
  std::vector<BlockEvent> ring_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
  std::uint64_t lost_ = 0;
};

}  // namespace saga
