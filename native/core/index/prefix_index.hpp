// PrefixIndex: for a chain of block hashes, how many leading blocks does each worker hold, and in which tier?
//
// Depth is cumulative over the tiers, fastest first: depth[GPU] counts the leading blocks that lie in the GPU tier,
// depth[host] those that lie in GPU or host, depth[disk] those that lie anywhere on the worker (what it can load without
// recomputing). It is exact for every content, also with interior holes: a depth ends at the first block that is missing,
// whatever lies behind it, and a refilled hole counts again at once.
//
// Layout. Blocks that were stored one after the other lie side by side in a *line* of sixteen hashes; a line whose blocks all
// have the same holders has one HolderSetId for all of them (`holder_sets.hpp`), other lines ("mixed") have sixteen. A hash
// table names the place of every block. A query therefore costs one probe and one compare of 128 bytes for sixteen blocks, and
// does work per worker only where the set of holders changes. Where blocks lie is a matter of speed alone: every hash is
// compared, so neither a wrong parent nor a hash that appears twice in a chain can make an answer wrong.
//
//   table   {32 hash bits, place} : 8 bytes an entry, 8/5 of max_blocks entries, linear probing, deletion by backward shift
//   hashes  16 a line             : 8 bytes a place
//   lines   {set or mixed sets, occupied places} : 8 bytes a line
//   mixed   16 set ids            : 64 bytes for each line that needs them
//
// Cost (n blocks, w = max_workers): match O(n/16 lines + holders that drop out + set changes * w/64), store and remove one
// probe a block and about one set transition a line; clear visits every line. Memory: about 21 bytes a distinct block
// in full lines (plus sets: see HolderSets), however many workers hold it. Chains that are short or fork often
// leave places of their lines unused: at worst 63 bytes a block.
//
// Lookups are bound by memory latency, so everything that can be known ahead is prefetched: a store or a removal fetches the
// table entries of the whole event, a query those of the next lines. Measured against a plain table of {hash, set} with one
// probe a block (Mooncake replay, native/bench/index_bench.cpp): queries take half the time on average and a quarter at the
// 99th percentile, whole replays about the same time, in two thirds of the memory; writes of the pinned shape take 10 to 15 %
// more, because a store of known blocks waits for the table and then for the line.
//
// Bounds: max_workers <= kMaxWorkers; max_blocks distinct blocks (not holder-blocks). Memory for the bound is reserved
// at construction and takes room once it is touched (the table, probed at random, soon does as a whole). Only the
// directory of holder sets grows later, in steps; dead sets are collected, so it depends on the contents, not on the
// history. The index is single-threaded; const calls may run concurrently with each other.
//
// Invariants: a block is in the table if and only if it has a holder; every place is named by at most one table entry; a line
// without blocks is in the free list; the references of a set are the number of blocks that have it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../base/huge_array.hpp"
#include "../base/types.hpp"
#include "holder_sets.hpp"

namespace saga {

struct PrefixIndexOptions {
  std::uint32_t max_workers;
  std::uint64_t max_blocks;  // distinct blocks, below 2^29
};

struct PrefixIndexStats {
  std::uint64_t blocks;            // distinct blocks
  std::uint64_t holder_blocks;     // (worker, tier, block) triples
  std::uint64_t holder_sets;       // distinct sets in use
  std::uint64_t lines;             // lines in use
  std::uint64_t mixed_lines;       // of these, lines with more than one holder set
  std::uint64_t bytes;             // memory touched so far
  std::uint64_t unknown_removals;  // removals of what the worker did not hold in that tier
};

class PrefixIndex {
 public:
  static constexpr std::uint32_t kMaxWorkers = 4096;

  explicit PrefixIndex(const PrefixIndexOptions& options);

  // The worker holds these blocks in this tier. `parent` is the block before the first one (0: none or unknown): a hint for
  // the layout, nothing else. Storing a block twice is storing it once.
  // False, and nothing applied at all, if the blocks that are new to the index (a repetition within `hashes` counts again)
  // would exceed max_blocks.
  bool store(WorkerId worker, Tier tier, std::span<const BlockHash> hashes, BlockHash parent) {
    return store(worker, tier, hashes, parent, nullptr, nullptr);
  }
  // The same, and tells which of the blocks the worker held already: `held` has room for hashes.size() of them and receives
  // `*held_count` in the order of `hashes`. (What a reference counting caller needs.)
  bool store(WorkerId worker, Tier tier, std::span<const BlockHash> hashes, BlockHash parent, BlockHash* held,
             std::size_t* held_count);

  // The worker no longer holds these blocks in this tier. Blocks that it did not hold there are ignored and counted.
  void remove(WorkerId worker, Tier tier, std::span<const BlockHash> hashes);

  // The worker holds nothing any more: in any tier (worker lost), or in one.
  void clear(WorkerId worker);
  void clear(WorkerId worker, Tier tier);

  bool holds(WorkerId worker, Tier tier, BlockHash hash) const;

  // Writes depth[worker * kTierCount + tier] for all workers in [0, workers()) and returns the greatest of them.
  std::uint32_t match(std::span<const BlockHash> chain, std::uint32_t* depth) const;

  // A match of this chain follows soon: fetches the table entries that it will look at first.
  void prefetch(std::span<const BlockHash> chain) const;

  // The workers that hold the first block in the GPU tier, in increasing order, with their GPU depth (1 or more). Both arrays
  // have room for workers() entries. Returns how many were written.
  std::uint32_t match_gpu(std::span<const BlockHash> chain, WorkerId* workers, std::uint32_t* depths) const;

  std::uint32_t workers() const { return max_workers_; }
  std::uint64_t blocks() const { return blocks_; }
  std::uint64_t max_blocks() const { return max_blocks_; }
  std::uint64_t holder_blocks() const { return holder_blocks_; }
  std::uint64_t holder_blocks(WorkerId worker, Tier tier) const {
    return holder_blocks_of_[HolderSets::holder(worker, tier)];
  }
  PrefixIndexStats stats() const;

  // Depends on the contents alone, neither on their history nor on the bounds.
  std::uint64_t digest() const;
  bool verify() const;

 private:
  static constexpr std::uint32_t kLine = 16;
  static constexpr std::uint32_t kFullLine = (1u << kLine) - 1;

  using Place = std::uint32_t;  // line * kLine + slot; line 0 is never used, so that 0 means "nowhere"

  struct Entry {
    std::uint32_t tag;  // upper half of the spread hash; also determines where the probe begins
    Place place;        // 0: empty entry
  };
  struct Line {
    std::uint32_t set;       // HolderSetId, index into mixed_, or the next free line if there are no blocks
    std::uint16_t occupied;  // bit per slot
    std::uint16_t mixed;
  };
  struct alignas(64) MixedSets {
    HolderSetId set[kLine];
  };

  static std::uint32_t tag_of(BlockHash hash) {
    return static_cast<std::uint32_t>(((hash ^ (hash >> 32)) * 0x9E3779B97F4A7C15ull) >> 32);
  }
  std::uint64_t home_of(std::uint32_t tag) const { return (tag * table_size_) >> 32; }
  std::uint64_t after(std::uint64_t slot) const { return slot + 1 == table_size_ ? 0 : slot + 1; }
  SAGA_ALWAYS_INLINE void prefetch_entry(BlockHash hash) const { table_.prefetch(home_of(tag_of(hash))); }
  SAGA_ALWAYS_INLINE void prefetch_line(Place place) const {
    lines_.prefetch(place / kLine);
    hashes_.prefetch(place & ~(kLine - 1));
    hashes_.prefetch(place | (kLine / 2));
  }
  bool is_at(Place place, BlockHash hash) const {
    return hashes_[place] == hash && (lines_[place / kLine].occupied >> (place % kLine) & 1) != 0;
  }
  HolderSetId set_at(Place place) const {
    const Line line = lines_[place / kLine];
    return line.mixed ? mixed_[line.set].set[place % kLine] : line.set;
  }

  Place find(BlockHash hash) const;
  Place find_candidate(BlockHash hash) const;
  Place find_or_insertion(BlockHash hash, std::uint64_t* entry) const;
  void erase_entry(BlockHash hash, Place place);
  std::uint32_t run_length(Place place, const BlockHash* chain, std::size_t limit) const;
  bool follows(std::uint32_t line, HolderSetId set, const BlockHash* chain, std::size_t limit) const;

  Place place_after(Place previous);
  Place any_free_place();
  std::uint32_t take_line();
  void give_line(std::uint32_t line);
  void make_mixed(std::uint32_t line);
  void make_uniform_if_possible(std::uint32_t line);

  void add_new(std::uint32_t line, std::uint32_t slots, HolderSetId set);
  std::uint32_t add_holder(std::uint32_t line, std::uint32_t slots, std::uint32_t holder);
  std::uint32_t remove_holder(std::uint32_t line, std::uint32_t slots, std::uint32_t holder);
  void erase_blocks(std::uint32_t line, std::uint32_t slots);
  void clear_holder(std::uint32_t holder);

  template <class Visitor>
  std::uint32_t walk(std::span<const BlockHash> chain, Visitor& visitor) const;

  std::uint32_t max_workers_;
  std::uint64_t max_blocks_;
  std::uint64_t table_size_;
  std::uint32_t line_limit_;  // one past the last line that may be used

  HugeArray<Entry> table_;
  HugeArray<BlockHash> hashes_;
  HugeArray<Line> lines_;
  HugeArray<MixedSets> mixed_;
  HolderSets sets_;
  std::vector<std::uint64_t> holder_blocks_of_;  // by holder

  std::uint32_t unused_line_ = 1;   // lines from here on were never used
  std::uint32_t free_line_ = 0;     // list of lines without blocks; 0 ends it
  std::uint32_t unused_mixed_ = 1;  // the same for mixed_
  std::uint32_t free_mixed_ = 0;
  std::uint32_t scan_line_ = 1;  // where any_free_place() goes on looking

  std::uint64_t blocks_ = 0;
  std::uint64_t holder_blocks_ = 0;
  std::uint64_t lines_in_use_ = 0;
  std::uint64_t mixed_in_use_ = 0;
  std::uint64_t unknown_removals_ = 0;
};

}  // namespace saga
