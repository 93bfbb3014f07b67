#include "../core/index/mirror.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

using Hashes = std::vector<BlockHash>;

TEST(Mirror, StoredTwiceAndRemovedOnceIsStillResident) {
  Mirror mirror({2, 100});
  mirror.store(0, Tier::kGpu, Hashes{1, 2, 3}, 0);
  mirror.store(0, Tier::kGpu, Hashes{3}, 2);
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 3), 2u);
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 2), 1u);
  EXPECT_EQ(mirror.count(1, Tier::kGpu, 3), 0u);
  EXPECT_EQ(mirror.shared_blocks(), 1u);
  EXPECT_EQ(mirror.holder_blocks(), 3u);
  mirror.remove(0, Tier::kGpu, Hashes{3});
  EXPECT_TRUE(mirror.holds(0, Tier::kGpu, 3));
  EXPECT_EQ(mirror.shared_blocks(), 0u);
  std::uint32_t depth[2 * kTierCount];
  EXPECT_EQ(mirror.match(Hashes{1, 2, 3}, depth), 3u);
  mirror.remove(0, Tier::kGpu, Hashes{3});
  EXPECT_FALSE(mirror.holds(0, Tier::kGpu, 3));
  EXPECT_EQ(mirror.match(Hashes{1, 2, 3}, depth), 2u);
  EXPECT_EQ(mirror.stats().unknown_removals, 0u);
  EXPECT_TRUE(mirror.verify());
}

TEST(Mirror, RemovalBelowZeroIsIgnoredAndCounted) {
  Mirror mirror({1, 100});
  mirror.store(0, Tier::kGpu, Hashes{1, 1}, 0);
  mirror.remove(0, Tier::kGpu, Hashes{1, 1, 1, 2});
  EXPECT_EQ(mirror.stats().unknown_removals, 2u);
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 1), 0u);
  mirror.store(0, Tier::kGpu, Hashes{1}, 0);
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 1), 1u) << "the surplus removal must not be remembered";
  EXPECT_TRUE(mirror.verify());
}

TEST(Mirror, TiersAndWorkersAreCountedApart) {
  Mirror mirror({2, 100});
  mirror.store(0, Tier::kGpu, Hashes{5, 5}, 0);
  mirror.store(0, Tier::kHost, Hashes{5}, 0);
  mirror.store(1, Tier::kGpu, Hashes{5, 5, 5}, 0);
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 5), 2u);
  EXPECT_EQ(mirror.count(0, Tier::kHost, 5), 1u);
  EXPECT_EQ(mirror.count(1, Tier::kGpu, 5), 3u);
  mirror.clear(0, Tier::kGpu);
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 5), 0u);
  EXPECT_EQ(mirror.count(0, Tier::kHost, 5), 1u);
  mirror.clear(1);
  EXPECT_EQ(mirror.shared_blocks(), 0u);
  EXPECT_EQ(mirror.holder_blocks(), 1u);
  EXPECT_TRUE(mirror.verify());
}

TEST(Mirror, FullIndexRefusesWithoutCounting) {
  Mirror mirror({1, 2});
  EXPECT_TRUE(mirror.store(0, Tier::kGpu, Hashes{1, 2}, 0));
  EXPECT_FALSE(mirror.store(0, Tier::kGpu, Hashes{1, 2, 3}, 0));
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 1), 1u);
  EXPECT_TRUE(mirror.store(0, Tier::kGpu, Hashes{1, 2}, 0));
  EXPECT_EQ(mirror.count(0, Tier::kGpu, 1), 2u);
}

TEST(Mirror, DigestTellsCounts) {
  Mirror one({4, 100});
  Mirror two({4, 100});
  one.store(2, Tier::kGpu, Hashes{1, 2}, 0);
  two.store(2, Tier::kGpu, Hashes{2, 1, 2}, 0);
  EXPECT_NE(one.digest(), two.digest());
  one.store(2, Tier::kGpu, Hashes{2}, 1);
  EXPECT_EQ(one.digest(), two.digest());
}

TEST(Mirror, AgreesWithAMapOfCounts) {
  constexpr std::uint32_t kWorkers = 5;
  Random random(77);
  Mirror mirror({kWorkers, 5000});
  std::map<std::tuple<WorkerId, std::uint32_t, BlockHash>, std::uint32_t> model;
  std::uint64_t unknown = 0;
  std::vector<Hashes> chains;
  for (int c = 0; c < 30; ++c) {
    Hashes chain;
    if (c > 0) {
      const Hashes& older = chains[random.below(chains.size())];
      chain.assign(older.begin(), older.begin() + static_cast<std::ptrdiff_t>(random.below(older.size() + 1)));
    }
    while (chain.size() < 60) chain.push_back(random.next() >> random.below(64));
    chains.push_back(chain);
  }
  for (int operation = 0; operation < 200000; ++operation) {
    const Hashes& chain = chains[random.below(chains.size())];
    const std::size_t first = random.below(chain.size());
    const std::size_t length = 1 + random.below(std::min<std::size_t>(20, chain.size() - first));
    const auto begin = chain.begin() + static_cast<std::ptrdiff_t>(first);
    Hashes part(begin, begin + static_cast<std::ptrdiff_t>(length));
    const auto worker = static_cast<WorkerId>(random.below(kWorkers));
    const auto tier = static_cast<std::uint32_t>(random.below(kTierCount));
    const std::uint64_t kind = random.below(1000);
    if (kind < 450) {
      ASSERT_TRUE(mirror.store(worker, static_cast<Tier>(tier), part, first > 0 ? chain[first - 1] : 0));
      for (const BlockHash hash : part) ++model[{worker, tier, hash}];
    } else if (kind < 900) {
      if (random.below(2) == 0) std::reverse(part.begin(), part.end());
      mirror.remove(worker, static_cast<Tier>(tier), part);
      for (const BlockHash hash : part) {
        const auto found = model.find({worker, tier, hash});
        if (found == model.end()) {
          ++unknown;
        } else if (--found->second == 0) {
          model.erase(found);
        }
      }
    } else if (kind < 902) {
      mirror.clear(worker);
      std::erase_if(model, [&](const auto& entry) { return std::get<0>(entry.first) == worker; });
    } else if (kind < 905) {
      mirror.clear(worker, static_cast<Tier>(tier));
      std::erase_if(model, [&](const auto& entry) {
        return std::get<0>(entry.first) == worker && std::get<1>(entry.first) == tier;
      });
    } else {
      std::uint32_t depth[kWorkers * kTierCount];
      mirror.match(part, depth);
      for (WorkerId w = 0; w < kWorkers; ++w) {
        std::uint32_t expected = 0;
        while (expected < part.size() && model.contains({w, 0, part[expected]})) ++expected;
        ASSERT_EQ(depth[w * kTierCount], expected);
      }
      const auto found = model.find({worker, tier, part[0]});
      ASSERT_EQ(mirror.count(worker, static_cast<Tier>(tier), part[0]), found == model.end() ? 0u : found->second);
    }
    if (operation % 2000 != 1999) continue;
    ASSERT_TRUE(mirror.verify());
    ASSERT_EQ(mirror.holder_blocks(), model.size());
    ASSERT_EQ(mirror.stats().unknown_removals, unknown);
    std::uint64_t shared = 0;
    for (const auto& [key, count] : model) {
      shared += count >= 2;
      ASSERT_EQ(mirror.count(std::get<0>(key), static_cast<Tier>(std::get<1>(key)), std::get<2>(key)), count);
    }
    ASSERT_EQ(mirror.shared_blocks(), shared);
  }
}

}  // namespace
}  // namespace saga
