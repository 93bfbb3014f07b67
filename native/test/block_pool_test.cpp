#include "../core/pages/block_pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

using Ids = std::vector<BlockId>;
using Hashes = std::vector<BlockHash>;

Ids free_order(const BlockPool& pool) {
  Ids order;
  for (BlockId block = pool.next_free(); block != kNone; block = pool.next_free(block)) order.push_back(block);
  return order;
}

// The blocks allocated, or none if the pool refused.
Ids allocate(BlockPool& pool, std::size_t count) {
  Ids blocks(count);
  if (!pool.allocate(blocks)) return {};
  return blocks;
}

std::vector<BlockEvent> drain(BlockEventLog& log) {
  std::vector<BlockEvent> events(log.size());
  EXPECT_EQ(log.drain(events), events.size());
  return events;
}

BlockEvent stored(BlockHash hash, BlockId block) {
  return {.hash = hash, .block = block, .tier = Tier::kGpu, .kind = BlockEventKind::kStored};
}

BlockEvent removed(BlockHash hash, BlockId block) {
  return {.hash = hash, .block = block, .tier = Tier::kGpu, .kind = BlockEventKind::kRemoved};
}

TEST(BlockPool, GivesOutBlocksInOrderOfIdAtFirst) {
  BlockPool pool({.block_count = 5});
  EXPECT_EQ(free_order(pool), (Ids{0, 1, 2, 3, 4}));
  EXPECT_EQ(allocate(pool, 2), (Ids{0, 1}));
  EXPECT_EQ(free_order(pool), (Ids{2, 3, 4}));
  EXPECT_EQ(pool.ref_count(0), 1u);
  EXPECT_EQ(pool.ref_count(2), 0u);
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, AppendsFreedBlocksInTheOrderGiven) {
  BlockPool pool({.block_count = 6});
  allocate(pool, 4);
  // A sequence over 0, 1, 2, 3 is freed last block first: its end stands before its beginning, behind what was free already.
  pool.free_blocks(Ids{3, 2, 1, 0});
  EXPECT_EQ(free_order(pool), (Ids{4, 5, 3, 2, 1, 0}));
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, RefusesMoreThanItHasAndChangesNothing) {
  BlockEventLog log(8);
  BlockPool pool({.block_count = 4}, &log);
  allocate(pool, 2);
  pool.cache_full_blocks(Ids{0, 1}, Hashes{10, 11});
  pool.free_blocks(Ids{1});
  const std::uint64_t before = pool.digest();
  drain(log);
  Ids four(4, 77);
  EXPECT_FALSE(pool.allocate(four));
  EXPECT_EQ(four, Ids(4, 77));
  EXPECT_EQ(pool.digest(), before);
  EXPECT_EQ(pool.get_cached_block(11), 1u);
  EXPECT_EQ(log.size(), 0u);
  EXPECT_EQ(allocate(pool, 3), (Ids{2, 3, 1}));  // as many as there are
  EXPECT_EQ(free_order(pool), Ids{});
  Ids one(1);
  EXPECT_FALSE(pool.allocate(one));
  EXPECT_TRUE(pool.allocate({}));
}

TEST(BlockPool, AnEmptyPoolIsOutOfBlocks) {
  BlockPool pool({.block_count = 0});
  Ids one(1);
  EXPECT_FALSE(pool.allocate(one));
  EXPECT_TRUE(pool.allocate({}));
  EXPECT_EQ(pool.get_cached_block(0), kNone);
  EXPECT_TRUE(pool.reset_prefix_cache());
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, ACachedBlockHitsUntilItIsTaken) {
  BlockEventLog log(16);
  BlockPool pool({.block_count = 4}, &log);
  allocate(pool, 3);
  pool.cache_full_blocks(Ids{0, 1, 2}, Hashes{10, 11, 12});
  pool.free_blocks(Ids{2, 1, 0});
  EXPECT_EQ(free_order(pool), (Ids{3, 2, 1, 0}));
  EXPECT_EQ(pool.get_cached_block(10), 0u);  // free and still found
  EXPECT_EQ(drain(log), (std::vector{stored(10, 0), stored(11, 1), stored(12, 2)}));

  // Block 3 holds nothing; then the end of the freed sequence goes, not its beginning.
  EXPECT_EQ(allocate(pool, 2), (Ids{3, 2}));
  EXPECT_EQ(drain(log), (std::vector{removed(12, 2)}));
  EXPECT_EQ(pool.get_cached_block(12), kNone);
  EXPECT_EQ(pool.get_cached_block(11), 1u);
  EXPECT_EQ(pool.stats().evicted_total, 1u);
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, TouchTakesAHitOutOfTheMiddle) {
  BlockPool pool({.block_count = 5});
  allocate(pool, 4);
  pool.cache_full_blocks(Ids{0, 1, 2, 3}, Hashes{10, 11, 12, 13});
  pool.free_blocks(Ids{3, 2, 1, 0});
  pool.touch(Ids{1});
  EXPECT_EQ(free_order(pool), (Ids{4, 3, 2, 0}));
  pool.touch(Ids{1, 4, 0});  // in use already; the head; the tail
  EXPECT_EQ(free_order(pool), (Ids{3, 2}));
  EXPECT_EQ(pool.ref_count(1), 2u);
  pool.free_blocks(Ids{1});
  EXPECT_EQ(free_order(pool), (Ids{3, 2}));  // one reference left
  pool.free_blocks(Ids{1});
  EXPECT_EQ(free_order(pool), (Ids{3, 2, 1}));  // most recently used
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, FindsTheCopyThatWasCachedFirst) {
  BlockEventLog log(16);
  BlockPool pool({.block_count = 4}, &log);
  allocate(pool, 4);
  pool.cache_full_blocks(Ids{2, 0, 3}, Hashes{7, 7, 7});
  EXPECT_EQ(pool.get_cached_block(7), 2u);
  EXPECT_EQ(pool.stats().cached_blocks, 3u);
  EXPECT_EQ(pool.stats().cached_hashes, 1u);
  EXPECT_TRUE(pool.verify());

  EXPECT_TRUE(pool.evict(0));  // from the middle: the first stays
  EXPECT_EQ(pool.get_cached_block(7), 2u);
  EXPECT_TRUE(pool.evict(2));  // the first: the next oldest follows
  EXPECT_EQ(pool.get_cached_block(7), 3u);
  pool.cache_full_blocks(Ids{0}, Hashes{7});  // the youngest now
  EXPECT_EQ(pool.get_cached_block(7), 3u);
  EXPECT_TRUE(pool.evict(3));
  EXPECT_EQ(pool.get_cached_block(7), 0u);
  EXPECT_TRUE(pool.evict(0));
  EXPECT_EQ(pool.get_cached_block(7), kNone);
  EXPECT_FALSE(pool.evict(0));
  EXPECT_EQ(drain(log), (std::vector{stored(7, 2), stored(7, 0), stored(7, 3), removed(7, 0), removed(7, 2),
                                     stored(7, 0), removed(7, 3), removed(7, 0)}));
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, EvictKeepsReferencesAndPlace) {
  BlockPool pool({.block_count = 3});
  allocate(pool, 2);
  pool.cache_full_blocks(Ids{0, 1}, Hashes{10, 11});
  pool.free_blocks(Ids{1});
  EXPECT_TRUE(pool.evict(0));
  EXPECT_TRUE(pool.evict(1));
  EXPECT_EQ(pool.ref_count(0), 1u);
  EXPECT_EQ(free_order(pool), (Ids{2, 1}));
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, UncachedFirstPutsUselessBlocksToTheHead) {
  for (const bool uncached_first : {false, true}) {
    BlockPool pool({.block_count = 6, .uncached_first = uncached_first});
    allocate(pool, 5);
    pool.cache_full_blocks(Ids{0, 1}, Hashes{10, 11});
    pool.free_blocks(Ids{4, 1, 3, 0});
    EXPECT_EQ(free_order(pool), uncached_first ? (Ids{4, 3, 5, 1, 0}) : (Ids{5, 4, 1, 3, 0}));
    pool.free_blocks(Ids{2});
    EXPECT_EQ(free_order(pool), uncached_first ? (Ids{2, 4, 3, 5, 1, 0}) : (Ids{5, 4, 1, 3, 0, 2}));
    EXPECT_TRUE(pool.verify());
  }
}

TEST(BlockPool, EvictFirstNamesTheNextVictims) {
  BlockPool pool({.block_count = 5});
  pool.evict_first(Ids{3, 1});
  EXPECT_EQ(free_order(pool), (Ids{3, 1, 0, 2, 4}));
  pool.evict_first(Ids{3});  // is the head already
  EXPECT_EQ(free_order(pool), (Ids{3, 1, 0, 2, 4}));
  pool.evict_first(Ids{4});
  EXPECT_EQ(free_order(pool), (Ids{4, 3, 1, 0, 2}));
  EXPECT_EQ(allocate(pool, 3), (Ids{4, 3, 1}));
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, ResetsOnlyWhenNothingIsInUse) {
  BlockEventLog log(8);
  BlockPool pool({.block_count = 3}, &log);
  allocate(pool, 2);
  pool.cache_full_blocks(Ids{0, 1}, Hashes{10, 11});
  pool.free_blocks(Ids{1});
  EXPECT_FALSE(pool.reset_prefix_cache());
  EXPECT_EQ(pool.get_cached_block(11), 1u);
  pool.free_blocks(Ids{0});
  drain(log);
  EXPECT_TRUE(pool.reset_prefix_cache());
  EXPECT_EQ(pool.get_cached_block(10), kNone);
  EXPECT_EQ(pool.cached_count(), 0u);
  EXPECT_EQ(free_order(pool), (Ids{2, 1, 0}));  // as it was
  EXPECT_EQ(
      drain(log),
      (std::vector<BlockEvent>{{.hash = 0, .block = kNone, .tier = Tier::kGpu, .kind = BlockEventKind::kCleared}}));
  EXPECT_TRUE(pool.verify());
}

TEST(BlockPool, DigestSeesEverythingThatMattersLater) {
  const auto made = [](auto&& change) {
    BlockPool pool({.block_count = 4});
    Ids blocks(3);
    EXPECT_TRUE(pool.allocate(blocks));
    change(pool);
    return pool.digest();
  };
  const std::uint64_t same = made([](BlockPool& p) { p.cache_full_blocks(Ids{0, 1}, Hashes{5, 5}); });
  EXPECT_EQ(made([](BlockPool& p) { p.cache_full_blocks(Ids{0, 1}, Hashes{5, 5}); }), same);
  EXPECT_NE(made([](BlockPool& p) { p.cache_full_blocks(Ids{1, 0}, Hashes{5, 5}); }), same);  // which copy is first
  EXPECT_NE(made([](BlockPool& p) { p.cache_full_blocks(Ids{0, 1}, Hashes{5, 6}); }), same);
  EXPECT_NE(made([](BlockPool&) {}), same);
  EXPECT_NE(made([](BlockPool& p) { p.free_blocks(Ids{0, 1}); }),
            made([](BlockPool& p) { p.free_blocks(Ids{1, 0}); }));  // order of the free list
  EXPECT_NE(made([](BlockPool& p) { p.touch(Ids{0}); }), made([](BlockPool&) {}));
}

TEST(BlockEventLog, DropsAndCountsWhatDoesNotFit) {
  BlockEventLog log(2);
  BlockPool pool({.block_count = 3}, &log);
  allocate(pool, 3);
  pool.cache_full_blocks(Ids{0, 1, 2}, Hashes{10, 11, 12});
  EXPECT_EQ(log.lost(), 1u);
  std::array<BlockEvent, 1> one;
  EXPECT_EQ(log.drain(one), 1u);
  EXPECT_EQ(one[0], stored(10, 0));
  pool.evict(2);  // around the end of the ring
  EXPECT_EQ(drain(log), (std::vector{stored(11, 1), removed(12, 2)}));
  EXPECT_EQ(log.drain(one), 0u);
  EXPECT_EQ(log.lost(), 1u);
  EXPECT_TRUE(log.verify());

  BlockEventLog none(0);
  none.add(stored(1, 1));
  EXPECT_EQ(none.lost(), 1u);
  EXPECT_EQ(none.drain(one), 0u);
  EXPECT_TRUE(none.verify());
}

TEST(BlockHashMap, FollowsAMapThroughRandomOperations) {
  Random random(1);
  BlockHashMap map(48);
  std::map<BlockHash, std::uint32_t> model;
  for (int step = 0; step < 300'000; ++step) {
    const BlockHash hash = random.below(96);  // 128 slots: long runs of neighbours, also around the end
    const auto value = static_cast<std::uint32_t>(random.below(1000));
    const auto known = model.find(hash);
    ASSERT_EQ(map.find(hash), known == model.end() ? kNone : known->second) << "step " << step;
    if (known == model.end()) {
      if (model.size() == 48) continue;
      map.insert(hash, value);
      model[hash] = value;
    } else if (random.below(3) == 0) {
      map.replace(hash, value);
      known->second = value;
    } else {
      map.erase(hash);
      model.erase(known);
    }
    ASSERT_EQ(map.size(), model.size());
    if (step % 16 == 0) {
      ASSERT_TRUE(map.verify()) << "step " << step;
    }
  }
  map.clear();
  EXPECT_EQ(map.size(), 0u);
  for (BlockHash hash = 0; hash < 96; ++hash) EXPECT_EQ(map.find(hash), kNone);
}

#if defined(SAGA_FORCE_ASSERTS) || !defined(NDEBUG)
TEST(BlockPoolDeathTest, MisuseIsABug) {
  BlockPool pool({.block_count = 2});
  EXPECT_DEATH(pool.free_blocks(Ids{0}), "ref_count > 0");
  EXPECT_DEATH(pool.touch(Ids{2}), "block_count_");
  EXPECT_DEATH(pool.cache_full_blocks(Ids{0}, Hashes{1}), "ref_count > 0");
  allocate(pool, 1);
  EXPECT_DEATH(pool.evict_first(Ids{0}), "ref_count == 0");
  pool.cache_full_blocks(Ids{0}, Hashes{1});
  EXPECT_DEATH(pool.cache_full_blocks(Ids{0}, Hashes{1}), "is_cached");
}
#endif

// The pool, said in the plainest way: the free list is a vector, the copies of a hash are a vector.
class SlowPool {
 public:
  SlowPool(std::uint32_t count, bool uncached_first) : references_(count), uncached_first_(uncached_first) {
    for (BlockId block = 0; block < count; ++block) free_.push_back(block);
  }

  Ids allocate(std::size_t count) {
    if (count > free_.size()) return {};
    const auto end = free_.begin() + static_cast<std::ptrdiff_t>(count);
    const Ids taken(free_.begin(), end);
    free_.erase(free_.begin(), end);
    for (const BlockId block : taken) {
      evict(block);
      references_[block] = 1;
    }
    return taken;
  }

  void touch(const Ids& blocks) {
    for (const BlockId block : blocks) {
      if (references_[block]++ == 0) std::erase(free_, block);
    }
  }

  void free_blocks(const Ids& ordered) {
    Ids useless;
    for (const BlockId block : ordered) {
      if (--references_[block] > 0) continue;
      if (uncached_first_ && !hash_.contains(block)) {
        useless.push_back(block);
      } else {
        free_.push_back(block);
      }
    }
    free_.insert(free_.begin(), useless.begin(), useless.end());
  }

  void cache(BlockId block, BlockHash hash) {
    hash_[block] = hash;
    copies_[hash].push_back(block);
    events_.push_back(stored(hash, block));
  }

  bool evict(BlockId block) {
    const auto known = hash_.find(block);
    if (known == hash_.end()) return false;
    std::erase(copies_[known->second], block);
    events_.push_back(removed(known->second, block));
    hash_.erase(known);
    return true;
  }

  void evict_first(const Ids& blocks) {
    for (const BlockId block : blocks) std::erase(free_, block);
    free_.insert(free_.begin(), blocks.begin(), blocks.end());
  }

  bool reset() {
    if (free_.size() != references_.size()) return false;
    hash_.clear();
    copies_.clear();
    events_.push_back({.hash = 0, .block = kNone, .tier = Tier::kGpu, .kind = BlockEventKind::kCleared});
    return true;
  }

  BlockId find(BlockHash hash) {
    const auto known = copies_.find(hash);
    return known == copies_.end() || known->second.empty() ? kNone : known->second.front();
  }

  const Ids& free() const { return free_; }
  std::uint32_t references(BlockId block) const { return references_[block]; }
  const std::map<BlockId, BlockHash>& hashes() const { return hash_; }
  std::vector<BlockEvent> take_events() { return std::exchange(events_, {}); }

 private:
  Ids free_;
  std::vector<std::uint32_t> references_;
  std::map<BlockId, BlockHash> hash_;
  std::map<BlockHash, Ids> copies_;
  std::vector<BlockEvent> events_;
  bool uncached_first_;
};

void random_operations_follow_the_slow_pool(std::uint64_t seed, std::uint32_t block_count, bool uncached_first,
                                            int steps) {
  Random random(seed);
  BlockEventLog log(4096);
  BlockPool pool({.block_count = block_count, .uncached_first = uncached_first}, &log);
  SlowPool slow(block_count, uncached_first);
  Ids held;  // one entry a reference
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random.below(bound)); };

  for (int step = 0; step < steps; ++step) {
    SCOPED_TRACE(step);
    switch (below(16)) {
      default: {  // allocate
        const std::size_t count = below(5);
        const Ids got = allocate(pool, count);
        ASSERT_EQ(got, slow.allocate(count));
        held.insert(held.end(), got.begin(), got.end());
        break;
      }
      case 4:
      case 5:
      case 6: {  // cache what is held and is not cached
        if (held.empty()) break;
        const BlockId block = held[below(held.size())];
        ASSERT_EQ(pool.is_cached(block), slow.hashes().contains(block));
        if (pool.is_cached(block)) break;
        const BlockHash hash = below(block_count);  // few hashes: many copies
        pool.cache_full_blocks({&block, 1}, {&hash, 1});
        slow.cache(block, hash);
        break;
      }
      case 7:
      case 8:
      case 9: {  // a prefix hit
        const BlockHash hash = below(block_count);
        const BlockId block = pool.get_cached_block(hash);
        ASSERT_EQ(block, slow.find(hash));
        if (block == kNone || held.size() > 4 * block_count) break;
        pool.touch({&block, 1});
        slow.touch({block});
        held.push_back(block);
        break;
      }
      case 10:
      case 11:
      case 12:
      case 13: {  // free several references, in any order
        Ids freed;
        for (std::size_t left = below(8); left > 0 && !held.empty(); --left) {
          std::swap(held[below(held.size())], held.back());
          freed.push_back(held.back());
          held.pop_back();
        }
        pool.free_blocks(freed);
        slow.free_blocks(freed);
        break;
      }
      case 14: {
        const auto block = static_cast<BlockId>(below(block_count));
        ASSERT_EQ(pool.evict(block), slow.evict(block));
        break;
      }
      case 15: {
        if (below(8) == 0) {
          ASSERT_EQ(pool.reset_prefix_cache(), slow.reset());
          break;
        }
        Ids victims;
        for (const BlockId block : slow.free()) {
          if (below(4) == 0) victims.push_back(block);
        }
        if (below(2) == 0) std::reverse(victims.begin(), victims.end());
        pool.evict_first(victims);
        slow.evict_first(victims);
        break;
      }
    }
    if (below(64) != 0 && step + 1 < steps) continue;

    ASSERT_TRUE(pool.verify());
    ASSERT_EQ(free_order(pool), slow.free());
    ASSERT_EQ(pool.free_count(), slow.free().size());
    ASSERT_EQ(pool.cached_count(), slow.hashes().size());
    for (BlockId block = 0; block < block_count; ++block) {
      ASSERT_EQ(pool.ref_count(block), slow.references(block));
      const auto known = slow.hashes().find(block);
      ASSERT_EQ(pool.is_cached(block), known != slow.hashes().end());
      if (known != slow.hashes().end()) {
        ASSERT_EQ(pool.hash(block), known->second);
      }
    }
    for (BlockHash hash = 0; hash < block_count; ++hash) ASSERT_EQ(pool.get_cached_block(hash), slow.find(hash));
    ASSERT_EQ(drain(log), slow.take_events());
    ASSERT_EQ(log.lost(), 0u);
  }
}

TEST(BlockPool, RandomOperationsFollowTheSlowPool) {
  std::uint64_t seed = 100;
  for (const std::uint32_t block_count : {1u, 2u, 7u, 24u, 60u}) {
    for (const bool uncached_first : {false, true}) {
      random_operations_follow_the_slow_pool(seed++, block_count, uncached_first, 110'000);
      if (HasFatalFailure()) FAIL() << "blocks " << block_count << ", uncached_first " << uncached_first;
    }
  }
}

}  // namespace
}  // namespace saga
