#include "../core/index/prefix_index.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bitset>
#include <map>
#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

using Hashes = std::vector<BlockHash>;

// Depths of one worker: {GPU, host, disk}.
std::vector<std::uint32_t> depths(const PrefixIndex& index, const Hashes& chain, WorkerId worker) {
  std::vector<std::uint32_t> depth(static_cast<std::size_t>(index.workers()) * kTierCount, 99999);
  index.match(chain, depth.data());
  const auto first = depth.begin() + worker * kTierCount;
  return {first, first + kTierCount};
}

using Depths = std::vector<std::uint32_t>;

TEST(PrefixIndex, EmptyIndexKnowsNothing) {
  const PrefixIndex index({4, 100});
  std::vector<std::uint32_t> depth(4 * kTierCount, 7);
  EXPECT_EQ(index.match(Hashes{1, 2, 3}, depth.data()), 0u);
  EXPECT_EQ(depth, Depths(12, 0));
  EXPECT_EQ(index.match(Hashes{}, depth.data()), 0u);
  EXPECT_EQ(index.holder_blocks(), 0u);
  EXPECT_FALSE(index.holds(0, Tier::kGpu, 0));
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, CountsLeadingBlocks) {
  PrefixIndex index({4, 100});
  EXPECT_TRUE(index.store(1, Tier::kGpu, Hashes{10, 11, 12}, 0));
  EXPECT_TRUE(index.store(2, Tier::kGpu, Hashes{10, 11, 12, 13, 14}, 0));
  std::vector<std::uint32_t> depth(4 * kTierCount);
  EXPECT_EQ(index.match(Hashes{10, 11, 12, 13, 99}, depth.data()), 4u);
  EXPECT_EQ(depth, (Depths{0, 0, 0, 3, 3, 3, 4, 4, 4, 0, 0, 0}));
  EXPECT_EQ(index.match(Hashes{11, 12}, depth.data()), 2u) << "a chain may be asked for from any block on";
  EXPECT_EQ(index.holder_blocks(), 8u);
  EXPECT_EQ(index.holder_blocks(2, Tier::kGpu), 5u);
  EXPECT_EQ(index.blocks(), 5u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, TiersAreCumulative) {
  PrefixIndex index({2, 100});
  index.store(0, Tier::kGpu, Hashes{1, 2}, 0);
  index.store(0, Tier::kHost, Hashes{3, 4}, 2);
  index.store(0, Tier::kDisk, Hashes{5}, 4);
  index.store(0, Tier::kGpu, Hashes{6}, 5);
  EXPECT_EQ(depths(index, {1, 2, 3, 4, 5, 6, 7}, 0), (Depths{2, 4, 6}));
  index.store(0, Tier::kHost, Hashes{1}, 0);
  index.remove(0, Tier::kGpu, Hashes{1});
  EXPECT_EQ(depths(index, {1, 2, 3, 4, 5, 6, 7}, 0), (Depths{0, 4, 6})) << "block 1 was swapped out to the host";
  EXPECT_EQ(depths(index, {5, 6}, 0), (Depths{0, 0, 2}));
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, InteriorHolesAreExactAndRefill) {
  PrefixIndex index({3, 1000});
  Hashes chain;
  for (BlockHash hash = 1; hash <= 100; ++hash) chain.push_back(hash * 0x123456789ull);
  for (WorkerId worker = 0; worker < 3; ++worker) index.store(worker, Tier::kGpu, chain, 0);
  index.remove(1, Tier::kGpu, Hashes{chain[40]});
  index.remove(1, Tier::kGpu, Hashes{chain[70]});
  index.remove(2, Tier::kGpu, Hashes{chain[0]});
  EXPECT_EQ(depths(index, chain, 0)[0], 100u);
  EXPECT_EQ(depths(index, chain, 1)[0], 40u);
  EXPECT_EQ(depths(index, chain, 2)[0], 0u);
  EXPECT_TRUE(index.verify());
  index.store(1, Tier::kGpu, Hashes{chain[40]}, chain[39]);
  EXPECT_EQ(depths(index, chain, 1)[0], 70u);
  index.store(1, Tier::kGpu, Hashes{chain[70]}, 0);
  index.store(2, Tier::kGpu, Hashes{chain[0]}, 0);
  EXPECT_EQ(depths(index, chain, 1)[0], 100u);
  EXPECT_EQ(depths(index, chain, 2)[0], 100u);
  EXPECT_EQ(index.stats().mixed_lines, 0u) << "the holder sets are one again";
  EXPECT_EQ(index.stats().holder_sets, 1u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, HoleThatNobodyHoldsIsRefilledElsewhere) {
  PrefixIndex index({2, 100});
  index.store(0, Tier::kGpu, Hashes{1, 2, 3, 4}, 0);
  index.remove(0, Tier::kGpu, Hashes{3});
  index.store(1, Tier::kGpu, Hashes{1, 2, 33}, 0);  // takes the place of block 3
  index.store(0, Tier::kGpu, Hashes{3}, 2);
  EXPECT_EQ(depths(index, {1, 2, 3, 4}, 0)[0], 4u);
  EXPECT_EQ(depths(index, {1, 2, 33, 4}, 1)[0], 3u);
  EXPECT_EQ(depths(index, {1, 2, 33, 4}, 0)[0], 2u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, StoringTwiceIsStoringOnceAndIsTold) {
  PrefixIndex index({2, 100});
  index.store(0, Tier::kGpu, Hashes{1, 2, 3}, 0);
  BlockHash held[5];
  std::size_t held_count = 99;
  EXPECT_TRUE(index.store(0, Tier::kGpu, Hashes{2, 3, 4, 5, 4}, 1, held, &held_count));
  EXPECT_EQ(Hashes(held, held + held_count), (Hashes{2, 3, 4}));
  EXPECT_EQ(index.holder_blocks(), 5u);
  EXPECT_TRUE(index.store(0, Tier::kHost, Hashes{1, 2}, 0, held, &held_count));
  EXPECT_EQ(held_count, 0u) << "another tier is another holder";
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, UnknownRemovalsAreCounted) {
  PrefixIndex index({2, 100});
  index.store(0, Tier::kGpu, Hashes{1, 2, 3}, 0);
  index.remove(0, Tier::kGpu, Hashes{7, 2, 2, 8});
  EXPECT_EQ(index.stats().unknown_removals, 3u);
  index.remove(1, Tier::kGpu, Hashes{1});
  index.remove(0, Tier::kHost, Hashes{3, 1});
  EXPECT_EQ(index.stats().unknown_removals, 6u);
  EXPECT_EQ(index.holder_blocks(), 2u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, RemovesInEitherDirection) {
  PrefixIndex index({2, 1000});
  Hashes chain;
  for (BlockHash hash = 100; hash < 200; ++hash) chain.push_back(hash);
  index.store(0, Tier::kGpu, chain, 0);
  index.store(1, Tier::kGpu, chain, 0);
  const Hashes deepest_first(chain.rbegin(), chain.rbegin() + 45);
  index.remove(0, Tier::kGpu, deepest_first);
  EXPECT_EQ(depths(index, chain, 0)[0], 55u);
  EXPECT_EQ(depths(index, chain, 1)[0], 100u);
  index.remove(1, Tier::kGpu, Hashes(chain.begin() + 30, chain.end()));
  EXPECT_EQ(depths(index, chain, 1)[0], 30u);
  EXPECT_EQ(index.blocks(), 55u);
  EXPECT_EQ(index.stats().unknown_removals, 0u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, FullIndexRefusesWithoutChange) {
  PrefixIndex index({2, 40});
  Hashes chain;
  for (BlockHash hash = 1; hash <= 41; ++hash) chain.push_back(hash);
  EXPECT_FALSE(index.store(0, Tier::kGpu, chain, 0));
  EXPECT_EQ(index.holder_blocks(), 0u);
  chain.pop_back();
  EXPECT_TRUE(index.store(0, Tier::kGpu, chain, 0));
  const std::uint64_t digest = index.digest();
  EXPECT_FALSE(index.store(1, Tier::kGpu, Hashes{1, 2, 41}, 0));
  EXPECT_EQ(index.digest(), digest);
  EXPECT_TRUE(index.store(1, Tier::kGpu, chain, 0)) << "known blocks need no room";
  index.remove(0, Tier::kGpu, Hashes{40});
  EXPECT_FALSE(index.store(1, Tier::kGpu, Hashes{41}, 0));
  index.remove(1, Tier::kGpu, Hashes{40});
  EXPECT_TRUE(index.store(1, Tier::kGpu, Hashes{41}, 0));
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, RoomDoesNotDependOnTheLayout) {
  // Single blocks without a parent: the worst layout there is. All max_blocks must still fit, twice over.
  PrefixIndex index({1, 1000});
  for (int round = 0; round < 2; ++round) {
    for (BlockHash hash = 0; hash < 1000; ++hash) {
      ASSERT_TRUE(index.store(0, Tier::kGpu, Hashes{hash * 7}, 0)) << hash;
    }
    EXPECT_FALSE(index.store(0, Tier::kGpu, Hashes{1}, 0));
    EXPECT_TRUE(index.verify());
    EXPECT_EQ(depths(index, {0, 7, 14, 21, 28}, 0)[0], 5u);
    index.clear(0);
    EXPECT_EQ(index.blocks(), 0u);
    EXPECT_EQ(index.stats().lines, 0u);
  }
}

TEST(PrefixIndex, EveryHashIsLegal) {
  PrefixIndex index({1, 100});
  const Hashes chain{0, ~0ull, 1ull << 63, 1, 0xFFFFFFFFull, 0xFFFFFFFF00000000ull};
  index.store(0, Tier::kGpu, chain, 0);
  EXPECT_EQ(depths(index, chain, 0)[0], 6u);
  EXPECT_TRUE(index.holds(0, Tier::kGpu, 0));
  index.remove(0, Tier::kGpu, Hashes{0});
  EXPECT_FALSE(index.holds(0, Tier::kGpu, 0));
  EXPECT_EQ(depths(index, chain, 0)[0], 0u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, ClearTakesOneTierOrAll) {
  PrefixIndex index({3, 200});
  Hashes chain;
  for (BlockHash hash = 1; hash <= 60; ++hash) chain.push_back(hash);
  for (WorkerId worker = 0; worker < 3; ++worker) {
    index.store(worker, Tier::kGpu, chain, 0);
    index.store(worker, Tier::kHost, Hashes(chain.begin(), chain.begin() + 20), 0);
  }
  index.clear(1, Tier::kGpu);
  EXPECT_EQ(depths(index, chain, 1), (Depths{0, 20, 20}));
  index.clear(2);
  EXPECT_EQ(depths(index, chain, 2), (Depths{0, 0, 0}));
  EXPECT_EQ(depths(index, chain, 0), (Depths{60, 60, 60}));
  EXPECT_EQ(index.holder_blocks(), 100u);
  EXPECT_EQ(index.stats().unknown_removals, 0u);
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, SparseAnswerListsGpuHoldersInOrder) {
  PrefixIndex index({300, 1000});
  Hashes chain;
  for (BlockHash hash = 1; hash <= 70; ++hash) chain.push_back(hash);
  for (const WorkerId worker : {299u, 5u, 64u, 130u}) {
    index.store(worker, Tier::kGpu, Hashes(chain.begin(), chain.begin() + 1 + worker % 50), 0);
  }
  index.store(7, Tier::kHost, chain, 0);
  WorkerId workers[300];
  std::uint32_t depth[300];
  ASSERT_EQ(index.match_gpu(chain, workers, depth), 4u);
  EXPECT_EQ(Depths(workers, workers + 4), (Depths{5, 64, 130, 299}));
  EXPECT_EQ(Depths(depth, depth + 4), (Depths{6, 15, 31, 50}));
  EXPECT_EQ(index.match_gpu(Hashes{999}, workers, depth), 0u);
}

TEST(PrefixIndex, AThousandWorkers) {
  constexpr std::uint32_t kWorkers = 1100;
  PrefixIndex index({kWorkers, 1000});
  Hashes chain;
  for (BlockHash hash = 1; hash <= 200; ++hash) chain.push_back(hash);
  for (WorkerId worker = 0; worker < kWorkers; ++worker) {
    index.store(worker, Tier::kGpu, Hashes(chain.begin(), chain.begin() + worker % 190), 0);
    if (worker % 3 == 0) index.store(worker, Tier::kDisk, chain, 0);
  }
  std::vector<std::uint32_t> depth(kWorkers * kTierCount);
  EXPECT_EQ(index.match(chain, depth.data()), 200u);
  for (WorkerId worker = 0; worker < kWorkers; ++worker) {
    EXPECT_EQ(depth[worker * kTierCount], worker % 190) << worker;
    EXPECT_EQ(depth[worker * kTierCount + 1], worker % 190) << worker;
    EXPECT_EQ(depth[worker * kTierCount + 2], worker % 3 == 0 ? 200 : worker % 190) << worker;
  }
  EXPECT_TRUE(index.verify());
}

TEST(PrefixIndex, DigestDependsOnContentsAlone) {
  PrefixIndex forward({8, 100});
  PrefixIndex backward({500, 1000});
  forward.store(3, Tier::kGpu, Hashes{1, 2, 3, 4}, 0);
  forward.store(4, Tier::kHost, Hashes{1, 2}, 0);
  backward.store(4, Tier::kHost, Hashes{2}, 1);
  for (const BlockHash hash : {4, 9, 3, 2, 1}) backward.store(3, Tier::kGpu, Hashes{hash}, 0);
  EXPECT_NE(forward.digest(), backward.digest());
  backward.store(4, Tier::kHost, Hashes{1}, 0);
  backward.remove(3, Tier::kGpu, Hashes{9});
  EXPECT_EQ(forward.digest(), backward.digest());
  backward.remove(4, Tier::kHost, Hashes{1});
  backward.store(5, Tier::kHost, Hashes{1}, 0);
  EXPECT_NE(forward.digest(), backward.digest());
}

TEST(PrefixIndex, DeadHolderSetsAreCollected) {
  // Ever new combinations of 64 holders over one block: only one set is in use at any time.
  PrefixIndex index({64, 10});
  Random random(3);
  const Hashes block{42};
  std::uint64_t bytes = 0;
  for (int i = 0; i < 60000; ++i) {
    const auto worker = static_cast<WorkerId>(random.below(64));
    if (index.holds(worker, Tier::kGpu, 42)) {
      index.remove(worker, Tier::kGpu, block);
    } else {
      index.store(worker, Tier::kGpu, block, 0);
    }
    if (i == 20000) bytes = index.stats().bytes;
  }
  EXPECT_LE(index.stats().holder_sets, 1u);
  EXPECT_EQ(index.stats().bytes, bytes) << "memory must not grow with the history";
  EXPECT_TRUE(index.verify());
}

// ---- against a simple model ---------------------------------------------------------------------------------------------------

constexpr std::uint32_t kModelWorkers = 80;
using Holders = std::bitset<kModelWorkers * kTierCount>;

struct Model {
  std::map<BlockHash, Holders> blocks;
  std::uint64_t unknown_removals = 0;

  void store(std::uint32_t holder, const Hashes& hashes) {
    for (const BlockHash hash : hashes) blocks[hash].set(holder);
  }
  void remove(std::uint32_t holder, const Hashes& hashes) {
    for (const BlockHash hash : hashes) {
      const auto found = blocks.find(hash);
      if (found == blocks.end() || !found->second.test(holder)) {
        ++unknown_removals;
        continue;
      }
      found->second.reset(holder);
      if (found->second.none()) blocks.erase(found);
    }
  }
  void clear(std::uint32_t first, std::uint32_t last) {
    for (auto it = blocks.begin(); it != blocks.end();) {
      for (std::uint32_t holder = first; holder <= last; ++holder) it->second.reset(holder);
      it = it->second.none() ? blocks.erase(it) : std::next(it);
    }
  }
  std::uint64_t holder_blocks() const {
    std::uint64_t count = 0;
    for (const auto& [hash, holders] : blocks) count += holders.count();
    return count;
  }
  std::vector<std::uint32_t> match(const Hashes& chain, std::uint32_t workers) const {
    std::vector<std::uint32_t> depth(static_cast<std::size_t>(workers) * kTierCount, 0);
    std::vector<Holders> rows;
    for (const BlockHash hash : chain) {
      const auto found = blocks.find(hash);
      if (found == blocks.end()) break;
      rows.push_back(found->second);
    }
    for (std::uint32_t worker = 0; worker < workers; ++worker) {
      for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
        std::uint32_t& d = depth[worker * kTierCount + tier];
        for (const Holders& row : rows) {
          bool there = false;
          for (std::uint32_t t = 0; t <= tier; ++t) there |= row.test(worker * kTierCount + t);
          if (!there) break;
          ++d;
        }
      }
    }
    return depth;
  }
};

struct World {
  const char* name;
  std::uint64_t seed;
  std::uint32_t workers;
  std::uint64_t max_blocks;
  std::uint32_t max_length;  // of a chain
  std::uint32_t max_event;   // blocks an event
  std::uint64_t hash_space;  // 0: random 64-bit hashes; otherwise hashes below this, without regard to what a chain is
  std::uint32_t tiers;
  int operations;
  bool gets_full;
};

void PrintTo(const World& world, std::ostream* out) { *out << world.name; }

class PrefixIndexAgainstModel : public ::testing::TestWithParam<World> {};

TEST_P(PrefixIndexAgainstModel, AgreesAfterEveryOperation) {
  const World world = GetParam();
  Random random(world.seed);
  PrefixIndex index({world.workers, world.max_blocks});
  Model model;
  const auto pick = [&](std::uint64_t bound) { return static_cast<std::uint32_t>(random.below(bound)); };
  const auto fresh_hash = [&] {
    if (world.hash_space != 0) return random.below(world.hash_space);
    return random.next() >> (pick(8) == 0 ? pick(64) : 0) << (pick(8) == 0 ? pick(64) : 0);
  };

  // Chains share prefixes: each is a part of an older one and a new tail.
  std::vector<Hashes> chains(1);
  const auto new_chain = [&] {
    const Hashes& older = chains[pick(chains.size())];
    Hashes chain(older.begin(), older.begin() + pick(older.size() + 1));
    const std::size_t length =
        std::min<std::size_t>(world.max_length, chain.size() + pick(world.max_length / 2 + 1) + 1);
    while (chain.size() < length) chain.push_back(fresh_hash());
    return chain;
  };

  std::vector<std::uint32_t> depth(static_cast<std::size_t>(world.workers) * kTierCount);
  std::vector<WorkerId> sparse_workers(world.workers);
  std::vector<std::uint32_t> sparse_depths(world.workers);
  int refused = 0;
  for (int operation = 0; operation < world.operations; ++operation) {
    if (pick(100) == 0) {
      if (chains.size() < 40) {
        chains.push_back(new_chain());
      } else {
        chains[pick(chains.size())] = new_chain();
      }
    }
    const Hashes& chain = chains[pick(chains.size())];
    const std::size_t first = chain.empty() || pick(3) == 0 ? 0 : pick(chain.size());
    const std::size_t length = std::min<std::size_t>(chain.size() - first, pick(world.max_event) + 1);
    const auto begin = chain.begin() + static_cast<std::ptrdiff_t>(first);
    Hashes part(begin, begin + static_cast<std::ptrdiff_t>(length));
    const WorkerId worker = pick(world.workers);
    const auto tier = static_cast<Tier>(pick(world.tiers));
    const std::uint32_t holder = worker * kTierCount + static_cast<std::uint32_t>(tier);

    const std::uint32_t kind = pick(1000);
    if (kind < 380) {
      BlockHash parent = first > 0 ? chain[first - 1] : 0;
      if (pick(4) == 0) parent = pick(2) == 0 ? 0 : fresh_hash();
      std::uint64_t unknown = 0;
      for (const BlockHash hash : part) unknown += !model.blocks.contains(hash);
      const bool expected = model.blocks.size() + unknown <= world.max_blocks;
      Hashes expected_held;
      if (expected) {
        for (const BlockHash hash : part) {
          if (model.blocks[hash].test(holder)) expected_held.push_back(hash);
          model.blocks[hash].set(holder);
        }
      }
      Hashes held(part.size());
      std::size_t held_count = 0;
      ASSERT_EQ(index.store(worker, tier, part, parent, held.data(), &held_count), expected);
      held.resize(held_count);
      ASSERT_EQ(held, expected_held);
      refused += !expected;
    } else if (kind < 680) {
      if (pick(2) == 0) std::reverse(part.begin(), part.end());
      if (pick(3) == 0) part.resize(std::min<std::size_t>(part.size(), 1));  // an interior hole
      if (pick(20) == 0) part.push_back(fresh_hash());
      index.remove(worker, tier, part);
      model.remove(holder, part);
    } else if (kind < 682) {
      index.clear(worker);
      model.clear(worker * kTierCount, worker * kTierCount + kTierCount - 1);
    } else if (kind < 684) {
      index.clear(worker, tier);
      model.clear(holder, holder);
    } else if (kind < 700 && !part.empty()) {
      const auto found = model.blocks.find(part[0]);
      ASSERT_EQ(index.holds(worker, tier, part[0]), found != model.blocks.end() && found->second.test(holder));
    } else {
      const Hashes asked = pick(2) == 0 ? chain : Hashes(begin, chain.end());
      const std::vector<std::uint32_t> expected = model.match(asked, world.workers);
      std::fill(depth.begin(), depth.end(), 12345u);
      const std::uint32_t longest = index.match(asked, depth.data());
      ASSERT_EQ(depth, expected) << "operation " << operation;
      ASSERT_EQ(longest, *std::max_element(expected.begin(), expected.end()));
      const std::uint32_t count = index.match_gpu(asked, sparse_workers.data(), sparse_depths.data());
      std::uint32_t at = 0;
      for (WorkerId w = 0; w < world.workers; ++w) {
        if (expected[w * kTierCount] == 0) continue;
        ASSERT_LT(at, count);
        ASSERT_EQ(sparse_workers[at], w);
        ASSERT_EQ(sparse_depths[at], expected[w * kTierCount]);
        ++at;
      }
      ASSERT_EQ(at, count);
    }
    if (operation % 1000 == 999) {
      ASSERT_TRUE(index.verify()) << "operation " << operation;
      ASSERT_EQ(index.blocks(), model.blocks.size());
      ASSERT_EQ(index.holder_blocks(), model.holder_blocks());
      ASSERT_EQ(index.stats().unknown_removals, model.unknown_removals);
    }
  }
  EXPECT_EQ(refused > 0, world.gets_full);

  // The same contents, put in block by block in the order of the hashes, give the same digest.
  PrefixIndex again({kModelWorkers, 100000});
  for (const auto& [hash, holders] : model.blocks) {
    for (std::uint32_t holder = 0; holder < holders.size(); ++holder) {
      if (!holders.test(holder)) continue;
      ASSERT_TRUE(again.store(holder / kTierCount, static_cast<Tier>(holder % kTierCount), Hashes{hash}, 0));
    }
  }
  EXPECT_EQ(index.digest(), again.digest());
  for (WorkerId worker = 0; worker < world.workers; ++worker) index.clear(worker);
  EXPECT_EQ(index.blocks(), 0u);
  EXPECT_EQ(index.stats().holder_sets, 0u);
  EXPECT_TRUE(index.verify());
}

INSTANTIATE_TEST_SUITE_P(Worlds, PrefixIndexAgainstModel,
                         ::testing::Values(World{"few_workers", 1, 3, 20000, 150, 40, 0, 3, 300000, false},
                                           World{"many_workers", 2, 80, 60000, 100, 30, 0, 3, 150000, false},
                                           World{"gpu_only", 3, 20, 60000, 150, 100, 0, 1, 200000, false},
                                           World{"always_full", 4, 4, 300, 60, 20, 0, 3, 200000, true},
                                           World{"not_chains", 5, 4, 200, 40, 20, 48, 3, 200000, false}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace saga
