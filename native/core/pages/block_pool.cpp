#include "block_pool.hpp"

#include "../base/assert.hpp"
#include "../base/digest.hpp"

namespace saga {

BlockPool::BlockPool(const BlockPoolOptions& options, BlockEventLog* events, BlockEvictor* evictor)
    : block_count_(options.block_count),
      tier_(options.tier),
      uncached_first_(options.uncached_first),
      events_(events),
      evictor_(evictor),
      blocks_(std::size_t{options.block_count} + 1),
      first_copy_(options.block_count),
      free_count_(options.block_count) {
  SAGA_ASSERT(block_count_ <= kMaxBlockCount);
  const BlockId sentinel = block_count_;
  for (BlockId block = 0; block <= block_count_; ++block) {
    blocks_[block].previous_free = block == 0 ? sentinel : block - 1;
    blocks_[block].next_free = block == sentinel ? 0 : block + 1;
  }
}

void BlockPool::unlink_free(BlockId block) {
  Block& b = blocks_[block];
  SAGA_ASSERT(b.next_free != kNone && b.previous_free != kNone);
  blocks_[b.previous_free].next_free = b.next_free;
  blocks_[b.next_free].previous_free = b.previous_free;
  b.previous_free = kNone;
  b.next_free = kNone;
  --free_count_;
}

void BlockPool::link_free_after(BlockId block, BlockId previous) {
  Block& b = blocks_[block];
  SAGA_ASSERT(b.next_free == kNone && b.previous_free == kNone && b.ref_count == 0);
  const BlockId next = blocks_[previous].next_free;
  b.previous_free = previous;
  b.next_free = next;
  blocks_[previous].next_free = block;
  blocks_[next].previous_free = block;
  ++free_count_;
}

void BlockPool::log(BlockEventKind kind, BlockHash hash, BlockId block) {
  if (events_ != nullptr) events_->add({.hash = hash, .block = block, .tier = tier_, .kind = kind});
}

bool BlockPool::allocate(std::span<BlockId> blocks) {
  if (blocks.size() > free_count_) return false;
  if (evictor_ != nullptr) {
    const std::uint32_t taken = evictor_->take(blocks, evictor_->now(), evicted_, span_);
    SAGA_ASSERT(taken == blocks.size());
    static_cast<void>(taken);
  }
  for (BlockId& block : blocks) {
    if (evictor_ == nullptr) block = blocks_[block_count_].next_free;
    SAGA_ASSERT(block != block_count_);
    unlink_free(block);
    if (evict(block)) ++evicted_total_;
    blocks_[block].ref_count = 1;
  }
  allocated_total_ += blocks.size();
  return true;
}

void BlockPool::touch(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    Block& b = at(block);
    if (b.ref_count == 0) {
      unlink_free(block);
      if (evictor_ != nullptr) evictor_->pin({&block, 1});
    }
    ++b.ref_count;
    SAGA_ASSERT(b.ref_count != 0);
  }
}

void BlockPool::free_blocks(std::span<const BlockId> ordered) {
  const BlockId sentinel = block_count_;
  BlockId last_at_head = sentinel;  // keeps the order of several blocks that go to the head
  for (const BlockId block : ordered) {
    Block& b = at(block);
    SAGA_ASSERT(b.ref_count > 0);
    if (--b.ref_count > 0) continue;
    if (evictor_ != nullptr) evictor_->unpin({&block, 1});
    if (uncached_first_ && !is_cached(block)) {
      link_free_after(block, last_at_head);
      last_at_head = block;
    } else {
      link_free_after(block, blocks_[sentinel].previous_free);
    }
  }
}

void BlockPool::cache_full_blocks(std::span<const BlockId> blocks, std::span<const BlockHash> hashes) {
  SAGA_ASSERT(blocks.size() == hashes.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const BlockId block = blocks[i];
    Block& b = at(block);
    SAGA_ASSERT(b.ref_count > 0 && !is_cached(block));
    b.hash = hashes[i];
    const BlockId first = first_copy_.find(b.hash);
    if (first == kNone) {
      first_copy_.insert(b.hash, block);
      b.previous_copy = block;
      b.next_copy = block;
    } else {  // behind the last copy: before the first, around the cycle
      const BlockId last = blocks_[first].previous_copy;
      b.previous_copy = last;
      b.next_copy = first;
      blocks_[last].next_copy = block;
      blocks_[first].previous_copy = block;
    }
    ++cached_count_;
    log(BlockEventKind::kStored, b.hash, block);
  }
}

bool BlockPool::evict(BlockId block) {
  if (!is_cached(block)) return false;
  Block& b = blocks_[block];
  if (b.next_copy == block) {
    first_copy_.erase(b.hash);
  } else {
    blocks_[b.previous_copy].next_copy = b.next_copy;
    blocks_[b.next_copy].previous_copy = b.previous_copy;
    if (first_copy_.find(b.hash) == block) first_copy_.replace(b.hash, b.next_copy);
  }
  b.previous_copy = kNone;
  b.next_copy = kNone;
  --cached_count_;
  if (evictor_ != nullptr) evictor_->drop(block);
  log(BlockEventKind::kRemoved, b.hash, block);
  return true;
}

void BlockPool::evict_first(std::span<const BlockId> free_blocks_in_order) {
  BlockId previous = block_count_;
  for (const BlockId block : free_blocks_in_order) {
    SAGA_ASSERT(at(block).ref_count == 0);
    unlink_free(block);
    link_free_after(block, previous);
    previous = block;
  }
  if (evictor_ == nullptr) return;
  for (std::size_t i = free_blocks_in_order.size(); i-- > 0;) evictor_->prefer(free_blocks_in_order[i]);
}

bool BlockPool::reset_prefix_cache() {
  if (free_count_ != block_count_) return false;
  for (Block& b : blocks_) {
    b.previous_copy = kNone;
    b.next_copy = kNone;
  }
  first_copy_.clear();
  cached_count_ = 0;
  if (evictor_ != nullptr) evictor_->clear();
  log(BlockEventKind::kCleared, 0, kNone);
  return true;
}

BlockHash BlockPool::hash(BlockId block) const {
  SAGA_ASSERT(is_cached(block));
  return at(block).hash;
}

BlockId BlockPool::next_free(BlockId block) const {
  SAGA_ASSERT(block == kNone || at(block).ref_count == 0);
  const BlockId next = blocks_[block == kNone ? block_count_ : block].next_free;
  return next == block_count_ ? kNone : next;
}

BlockPoolStats BlockPool::stats() const {
  return {
      .block_count = block_count_,
      .free_blocks = free_count_,
      .cached_blocks = cached_count_,
      .cached_hashes = first_copy_.size(),
      .allocated_total = allocated_total_,
      .evicted_total = evicted_total_,
      .memory_bytes = blocks_.size() * sizeof(Block) + first_copy_.memory_bytes(),
  };
}

bool BlockPool::verify() const {
  // The free list: as long as counted, links agree in both directions, only blocks without a reference.
  const BlockId sentinel = block_count_;
  std::uint32_t linked = 0;
  BlockId previous = sentinel;
  for (BlockId block = blocks_[sentinel].next_free; block != sentinel; block = blocks_[block].next_free) {
    if (block > sentinel || ++linked > free_count_) return false;
    if (blocks_[block].previous_free != previous || blocks_[block].ref_count != 0) return false;
    previous = block;
  }
  if (blocks_[sentinel].previous_free != previous || linked != free_count_) return false;

  // With the above: every block without a reference is in the list, for there are as many of them as links.
  std::uint32_t unreferenced = 0;
  std::uint32_t cached = 0;
  std::uint32_t firsts = 0;
  for (BlockId block = 0; block < block_count_; ++block) {
    const Block& b = blocks_[block];
    if (b.ref_count == 0) ++unreferenced;
    if (b.ref_count != 0 && (b.previous_free != kNone || b.next_free != kNone)) return false;
    if ((b.previous_copy == kNone) != (b.next_copy == kNone)) return false;
    if (b.next_copy == kNone) continue;
    ++cached;
    if (b.next_copy >= block_count_ || b.previous_copy >= block_count_) return false;
    if (blocks_[b.next_copy].previous_copy != block || blocks_[b.previous_copy].next_copy != block) return false;
    if (blocks_[b.next_copy].hash != b.hash) return false;
    const BlockId first = first_copy_.find(b.hash);
    if (first >= block_count_ || blocks_[first].hash != b.hash || !is_cached(first)) return false;
    if (first == block) ++firsts;
  }
  if (unreferenced != free_count_ || cached != cached_count_ || firsts != first_copy_.size()) return false;

  // One cycle a hash: walking from each first reaches every cached block exactly once.
  std::uint32_t reached = 0;
  for (BlockId block = 0; block < block_count_; ++block) {
    if (!is_cached(block) || first_copy_.find(blocks_[block].hash) != block) continue;
    BlockId copy = block;
    do {
      if (++reached > cached) return false;
      copy = blocks_[copy].next_copy;
    } while (copy != block);
  }
  if (evictor_ != nullptr) {
    if (evictor_->block_count() != block_count_ || !evictor_->verify()) return false;
    for (BlockId block = 0; block < block_count_; ++block) {
      if (evictor_->is_free(block) != (blocks_[block].ref_count == 0)) return false;
      if (evictor_->is_stored(block) && !is_cached(block)) return false;
    }
  }
  return reached == cached && first_copy_.verify();
}

std::uint64_t BlockPool::digest() const {
  Digest digest;
  digest.add(block_count_);
  digest.add(static_cast<std::uint64_t>(tier_) << 1 | (uncached_first_ ? 1 : 0));
  for (BlockId block = 0; block < block_count_; ++block) {
    const Block& b = blocks_[block];
    digest.add(std::uint64_t{b.ref_count} << 32 | b.next_free);
    if (!is_cached(block)) {
      digest.add(0);
      continue;
    }
    // The cycle of the copies is next_copy; where it begins is which copy is first.
    digest.add(1 + (first_copy_.find(b.hash) == block ? 1 : 0));
    digest.add(b.hash);
    digest.add(b.next_copy);
  }
  digest.add(blocks_[block_count_].next_free);
  return digest.value();
}

}  // namespace saga
