// Mirror: a worker's page table as its events tell it, reference counted.
//
// Engines such as vLLM do not de-duplicate: two sequences that fill the same block announce it twice, and each physical copy
// is later removed by an event of its own. A block is resident while more copies were stored than removed. The mirror is a
// PrefixIndex plus the counts of the blocks with two copies or more, in a side table keyed (worker, tier, hash): a block with
// one copy, which nearly all are, has no entry there and costs nothing.
//
// Cost: as PrefixIndex; a removal also probes the side table while that is not empty. Memory: 16 bytes an entry, at most
// half full; the side table starts small and doubles (its entries are at most holder_blocks()).
//
// States of a (worker, tier, block): absent (count 0), single (in the index), shared (in the index and, with its count >= 2,
// in the side table). Invariant: every entry of the side table is held in the index and has a count of 2 or more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../base/types.hpp"
#include "prefix_index.hpp"

namespace saga {

class Mirror {
 public:
  explicit Mirror(const PrefixIndexOptions& options);

  // One copy more of each of these blocks. False, and nothing applied at all, if the index has no room (see PrefixIndex).
  bool store(WorkerId worker, Tier tier, std::span<const BlockHash> hashes, BlockHash parent);

  // One copy less of each. A removal below zero is ignored and counted (stats().unknown_removals).
  void remove(WorkerId worker, Tier tier, std::span<const BlockHash> hashes);

  // All copies are gone: in any tier, or in one.
  void clear(WorkerId worker);
  void clear(WorkerId worker, Tier tier);

  // Copies that the worker has of the block in that tier.
  std::uint32_t count(WorkerId worker, Tier tier, BlockHash hash) const;
  bool holds(WorkerId worker, Tier tier, BlockHash hash) const { return index_.holds(worker, tier, hash); }

  // As PrefixIndex.
  std::uint32_t match(std::span<const BlockHash> chain, std::uint32_t* depth) const {
    return index_.match(chain, depth);
  }
  void prefetch(std::span<const BlockHash> chain) const { index_.prefetch(chain); }
  std::uint32_t match_gpu(std::span<const BlockHash> chain, WorkerId* workers, std::uint32_t* depths) const {
    return index_.match_gpu(chain, workers, depths);
  }

  const PrefixIndex& index() const { return index_; }
  std::uint32_t workers() const { return index_.workers(); }
  std::uint64_t holder_blocks() const { return index_.holder_blocks(); }
  std::uint64_t shared_blocks() const { return shared_; }  // (worker, tier, block) triples with two copies or more
  PrefixIndexStats stats() const;

  // Depends on the contents (blocks and counts) alone.
  std::uint64_t digest() const;
  bool verify() const;

 private:
  struct Shared {
    BlockHash hash;
    std::uint32_t holder;
    std::uint32_t count;  // 0: empty entry
  };

  std::size_t home_of(std::uint32_t holder, BlockHash hash) const;
  std::size_t find(std::uint32_t holder, BlockHash hash) const;  // the entry, or the empty one where it would be
  void add_copy(std::uint32_t holder, BlockHash hash);
  void erase(std::size_t entry);
  void grow();
  void forget(WorkerId worker, std::uint32_t first_tier, std::uint32_t last_tier);

  PrefixIndex index_;
  std::vector<Shared> table_;    // a power of two; linear probing, deletion by backward shift
  std::vector<BlockHash> held_;  // scratch of store()
  std::uint64_t shared_ = 0;
};

}  // namespace saga
