// BlockPool: the physical KV blocks of one worker in one tier. Which are free, who is taken next, which hash finds
// which block.
//
// Words and order are those of vLLM's block pool, so that predictions made from one hold for the other.
//
// States of a block
//
//             not cached                cached (answers to a hash)
//   free      holds nothing of use      holds a prefix that nobody uses now; the hash is lost when the block is taken
//   in use    being filled              full, shared by its hash
//
//   free -> in use     allocate: from the head of the free list; a hash it had is evicted then and not before, so
//                      caching takes no room. touch: a prefix hit, from anywhere in the list
//   in use -> free     free_blocks, when the last reference goes
//   -> cached          cache_full_blocks: the block is in use and full
//   -> not cached      allocate, evict, reset_prefix_cache
//
// The free list, exactly (its head is taken first)
//
//   - at first: 0, 1, 2, ... in order of id;
//   - allocate pops from the head, one by one: the first id written is the old head;
//   - touch unlinks from wherever the block is; the others keep their order;
//   - free_blocks appends the blocks that lose their last reference to the tail, in the order given. A caller gives the
//     blocks of a sequence last block first, so that of one sequence the end is evicted before the beginning: a prefix
//     without its end is still a hit, an end without its prefix is not. The list is thus least recently used first, and
//     among blocks freed together deepest first;
//   - with uncached_first, a block freed without a hash goes to the head instead (several in one call: in the order
//     given), for it holds nothing that a later request could hit (vLLM does this since mid-2026, before it appended
//     all blocks);
//   - evict_first moves free blocks to the head, in the order given: how a policy other than LRU names its victims;
//   - evict, cache_full_blocks and reset_prefix_cache leave the list alone.
//
// One hash, several blocks. Two sequences that compute the same block at the same time each fill a copy, and
// both copies are cached. get_cached_block returns the copy that was cached first among those that are still
// cached; the others stand behind it in the order they were cached.
//
// Costs. Every operation is O(1) a block and allocates no memory: the free list and the copies of a hash are
// linked through arrays, so that a block leaves the middle of either without a search. evict_first, touch,
// free and allocate without an eviction touch two or three 32-byte records; caching, evicting and looking up
// add one probe of the hash map. Memory: 32 bytes a block, and the map's 32 to 64. verify, digest and
// reset_prefix_cache walk the pool.
//
// With a BlockEvictor (evict/block_evictor.hpp) it is the evictor that says which free blocks are taken; the free list is kept,
// but its order means nothing. The pool tells it what becomes free, in use, or without a hash; which page a block holds, the
// owner tells (it knows what comes before). evict_first and reset_prefix_cache hold for the evictor's order too.
//
// No block is reserved: a server that wants block 0 as padding allocates one block first and keeps it.
//
// Invariants (verify): the free list is a cycle through the sentinel that holds exactly the blocks with no
// reference; the copies of each hash form a cycle whose first the map knows; counts agree.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../base/types.hpp"
#include "../evict/block_evictor.hpp"
#include "block_events.hpp"
#include "block_hash_map.hpp"

namespace saga {

struct BlockPoolOptions {
  std::uint32_t block_count = 0;  // below 2^30; 0 is a pool that is always out of blocks
  Tier tier = Tier::kGpu;         // written into the events, nothing else
  bool uncached_first = false;    // see "The free list"
};

struct BlockPoolStats {
  std::uint32_t block_count = 0;
  std::uint32_t free_blocks = 0;    // cached or not
  std::uint32_t cached_blocks = 0;  // in use or free, every copy counted
  std::uint32_t cached_hashes = 0;  // distinct
  std::uint64_t allocated_total = 0;
  std::uint64_t evicted_total = 0;  // hashes lost to an allocation (not by evict or reset)
  std::uint64_t memory_bytes = 0;
};

class BlockPool {
 public:
  static constexpr std::uint32_t kMaxBlockCount = (1u << 30) - 1;

  // `events` may be null; otherwise it outlives the pool. So may `evictor`, which has as many blocks.
  explicit BlockPool(const BlockPoolOptions& options, BlockEventLog* events = nullptr, BlockEvictor* evictor = nullptr);

  // From now on allocate() reports here what was evicted, with the probability that it is used again within `span`.
  void report_evicted(std::vector<BlockEvictor::Evicted>* evicted, Time span) {
    evicted_ = evicted;
    span_ = span;
  }

  // Takes blocks.size() blocks from the head of the free list, one reference each, and writes their ids.
  // False, with nothing changed, when fewer are free.
  [[nodiscard]] bool allocate(std::span<BlockId> blocks);

  // One more reference to each; free blocks (cached ones, after a hit) leave the free list.
  void touch(std::span<const BlockId> blocks);

  // One reference less to each, which must have one; see "The free list" for where they go.
  void free_blocks(std::span<const BlockId> ordered);

  // The blocks, in use and not cached, are full: block i now answers to hash i.
  void cache_full_blocks(std::span<const BlockId> blocks, std::span<const BlockHash> hashes);

  // The block that answers to `hash`, or kNone. It may be free: touch it before anything is allocated.
  BlockId get_cached_block(BlockHash hash) const { return first_copy_.find(hash); }

  // The block no longer answers to its hash (its references, and its place if it is free, stay). False if it
  // did not.
  bool evict(BlockId block);

  // Moves free blocks to the head of the free list: the first of them is taken next.
  void evict_first(std::span<const BlockId> free_blocks_in_order);

  // Forgets all hashes. False, with nothing changed, while any block is in use.
  bool reset_prefix_cache();

  std::uint32_t block_count() const { return block_count_; }
  std::uint32_t free_count() const { return free_count_; }
  std::uint32_t cached_count() const { return cached_count_; }
  std::uint32_t ref_count(BlockId block) const { return at(block).ref_count; }
  bool is_cached(BlockId block) const { return at(block).next_copy != kNone; }
  BlockHash hash(BlockId block) const;  // of a cached block

  // The next block in the free list after `block`, the first for kNone; kNone at the end.
  BlockId next_free(BlockId block = kNone) const;

  BlockPoolStats stats() const;
  bool verify() const;
  // Of everything that later behaviour depends on: references, hashes, order of the free list and of the
  // copies.
  std::uint64_t digest() const;

 private:
  struct Block {
    BlockHash hash = 0;  // while cached
    std::uint32_t ref_count = 0;
    BlockId previous_free = kNone;  // kNone both while in use
    BlockId next_free = kNone;
    BlockId previous_copy = kNone;  // cycle of the blocks with this hash; kNone both while not cached
    BlockId next_copy = kNone;
  };
  static_assert(sizeof(Block) == 32);

  const Block& at(BlockId block) const {
    SAGA_ASSERT(block < block_count_);
    return blocks_[block];
  }
  Block& at(BlockId block) { return const_cast<Block&>(static_cast<const BlockPool*>(this)->at(block)); }

  void unlink_free(BlockId block);
  void link_free_after(BlockId block, BlockId previous);  // `previous` may be the sentinel
  void log(BlockEventKind kind, BlockHash hash, BlockId block);

  std::uint32_t block_count_;
  Tier tier_;
  bool uncached_first_;
  BlockEventLog* events_;
  BlockEvictor* evictor_;
  std::vector<BlockEvictor::Evicted>* evicted_ = nullptr;
  Time span_ = 0;
  // The blocks, and behind them the sentinel of the free list: its next is the head and its previous the
  // tail, so that no operation has an empty-list case.
  std::vector<Block> blocks_;
  BlockHashMap first_copy_;
  std::uint32_t free_count_;
  std::uint32_t cached_count_ = 0;
  std::uint64_t allocated_total_ = 0;
  std::uint64_t evicted_total_ = 0;
};

}  // namespace saga
