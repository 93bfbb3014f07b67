// HolderSets: every distinct set of holders once, named by a small id.
//
// A holder is a pair (worker, tier). Whole chains of blocks have the same holders, so a block does not store its set but the
// id of it: "the same holders as the block before" is one integer compare, and adding a worker to a thousand blocks is one
// transition (set, holder, add) -> set, found in a cache, and a thousand integer stores.
//
// Representation: three bitmaps a set, one a tier, of `max_workers` bits. A set is found by its *signature* (the exclusive or
// of a random word per holder, so that adding a holder costs one operation) and then compared bit by bit: ids are exact.
//
// Cost: a transition is one cached 16-byte load; when it is not cached, a copy and a compare of the bitmaps (48 bytes at 128
// workers). Memory: 3/8 byte a worker + 40 bytes a set, plus 512 KiB of transitions.
//
// States of a set id: live (references > 0), dead (references = 0; kept because sets that vanish tend to come back), free.
// Id 0 is the empty set: always there, never counted. Dead sets are freed together once they outnumber the live ones, which
// is constant time a transition in the long run. Invariants: no two ids have the same holders; a transition in the cache
// names sets that are not free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../base/types.hpp"

namespace saga {

using HolderSetId = std::uint32_t;
inline constexpr HolderSetId kEmptySet = 0;

class HolderSets {
 public:
  explicit HolderSets(std::uint32_t max_workers);

  // The set with, or without, one holder more; the same id where nothing changes. The result may be dead: the caller
  // references it before collect() runs.
  HolderSetId with(HolderSetId set, std::uint32_t holder) { return transition(set, holder, 0); }
  HolderSetId without(HolderSetId set, std::uint32_t holder) { return transition(set, holder, 1); }

  // References: one a block that has the set.
  void reference(HolderSetId set, std::uint32_t blocks);
  void release(HolderSetId set, std::uint32_t blocks);

  // Frees the dead sets if there are more of them than live ones. No id of a dead set may be in use across this call.
  void collect_if_worthwhile() {
    if (dead_ > live_ + kDeadFloor) collect();
  }
  void collect();

  bool contains(HolderSetId set, std::uint32_t holder) const {
    const std::uint32_t worker = holder / kTierCount;
    return (bits(set)[(holder % kTierCount) * words_ + worker / 64] >> (worker % 64) & 1) != 0;
  }

  // Bitmaps of the set: GPU, host, disk, words() words each.
  const std::uint64_t* bits(HolderSetId set) const {
    return chunks_[set / kChunkSets].get() + static_cast<std::size_t>(set % kChunkSets) * stride_;
  }
  bool gpu_only(HolderSetId set) const { return sets_[set].gpu_only; }
  std::uint64_t signature(HolderSetId set) const { return sets_[set].signature; }
  std::uint32_t holders(HolderSetId set) const { return sets_[set].holders; }
  std::uint32_t references(HolderSetId set) const { return sets_[set].references; }

  std::uint32_t words() const { return words_; }
  std::uint32_t live() const { return live_; }
  std::uint32_t dead() const { return dead_; }
  std::size_t ids() const { return sets_.size(); }
  std::uint64_t bytes() const;

  // Index of a holder: what the calls above take.
  static std::uint32_t holder(WorkerId worker, Tier tier) {
    return worker * kTierCount + static_cast<std::uint32_t>(tier);
  }

  bool verify() const;

 private:
  static constexpr std::uint32_t kChunkSets = 256;
  static constexpr std::uint32_t kDeadFloor = 1024;
  static constexpr std::uint32_t kTransitions = 1u << 15;

  struct Set {
    std::uint64_t signature = 0;
    std::uint32_t references = 0;
    std::uint32_t holders = 0;
    std::uint32_t next = kNone;  // in its bucket, or in the free list
    bool gpu_only = true;
    bool in_use = false;  // live or dead, not free
  };
  struct Transition {
    HolderSetId from;
    std::uint32_t change;  // 2 * holder + (1 for a removal) + 1; 0 marks an unused entry
    HolderSetId to;
    std::uint32_t unused;
  };

  std::uint64_t* mutable_bits(HolderSetId set) {
    return chunks_[set / kChunkSets].get() + static_cast<std::size_t>(set % kChunkSets) * stride_;
  }
  HolderSetId transition(HolderSetId set, std::uint32_t holder, std::uint32_t removal) {
    const std::uint32_t change = 2 * holder + removal + 1;
    Transition& cached = transitions_[transition_slot(set, change)];
    if (cached.from == set && cached.change == change) return cached.to;
    const HolderSetId to = find_or_make(set, holder, removal != 0);
    cached = {set, change, to, 0};
    return to;
  }
  static std::uint32_t transition_slot(HolderSetId set, std::uint32_t change) {
    const std::uint64_t key = (static_cast<std::uint64_t>(set) << 32) | change;
    return static_cast<std::uint32_t>((key * 0x9E3779B97F4A7C15ull) >> 49);  // 15 bits: kTransitions
  }
  HolderSetId find_or_make(HolderSetId set, std::uint32_t holder, bool removal);
  HolderSetId take_id();
  void grow_buckets();

  std::uint32_t words_;
  std::uint32_t stride_;  // words a set
  std::vector<Set> sets_;
  std::vector<std::unique_ptr<std::uint64_t[]>> chunks_;
  std::vector<std::uint32_t> buckets_;  // by signature; a power of two
  std::vector<Transition> transitions_;
  std::vector<std::uint64_t> wanted_;  // scratch: the bitmaps looked for
  std::uint32_t first_free_ = kNone;
  std::uint32_t live_ = 0;
  std::uint32_t dead_ = 0;
};

}  // namespace saga
