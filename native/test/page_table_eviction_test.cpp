#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/pages/page_table.hpp"

namespace saga {
namespace {

constexpr Time kSecond = 1'000'000;

PageTableOptions options_of(std::uint32_t gpu, std::uint32_t host = 0) {
  PageTableOptions options;
  options.block_size = 4;
  options.block_count = {gpu, host, 0};
  options.max_sequences = 8;
  options.max_blocks_per_sequence = 64;
  options.eviction = PolicyKind::kSaga;
  return options;
}

std::vector<BlockHash> chain(BlockHash first, std::uint32_t length, std::vector<BlockHash> before = {}) {
  for (std::uint32_t i = 0; i < length; ++i) before.push_back(first + i);
  return before;
}

// Opens, computes and caches a prompt of whole blocks; returns the sequence.
SequenceId run(PageTable& table, const std::vector<BlockHash>& hashes, BlockEvictor::ThreadKey thread, Time now) {
  table.advance_time(now);
  const auto tokens = static_cast<std::uint32_t>(hashes.size()) * 4 + 1;
  const OpenResult opened = table.open(hashes, tokens, Tier::kGpu, {thread, PromptKind::kTool});
  EXPECT_EQ(opened.status, PageStatus::kOk);
  const std::uint32_t found = opened.hit.tokens / 4;
  EXPECT_EQ(table.allocate_slots(opened.sequence, tokens - 1 - opened.hit.tokens).status, PageStatus::kOk);
  EXPECT_EQ(table.cache_full_blocks(opened.sequence, std::span(hashes).subspan(found)), PageStatus::kOk);
  return opened.sequence;
}

void end(PageTable& table, SequenceId sequence, Time now, const CallOutcome& outcome = {}, bool preempted = false) {
  table.advance_time(now);
  EXPECT_EQ(table.free(sequence, outcome, preempted), PageStatus::kOk);
  EXPECT_TRUE(table.verify());
}

bool holds(const PageTable& table, BlockHash hash, Tier tier = Tier::kGpu) {
  return table.pool(tier).get_cached_block(hash) != kNone;
}

TEST(PageTableEviction, AnEndedSessionGoesBeforeOneThatIsOlder) {
  PageTable table(options_of(6));
  end(table, run(table, chain(10, 3), 1, 0), kSecond);
  CallOutcome last;
  last.session_end = true;
  end(table, run(table, chain(20, 3), 2, 2 * kSecond), 3 * kSecond, last);
  const SequenceId third = run(table, chain(30, 3), 3, 4 * kSecond);
  for (BlockHash hash = 10; hash < 13; ++hash) EXPECT_TRUE(holds(table, hash));
  for (BlockHash hash = 20; hash < 23; ++hash) EXPECT_FALSE(holds(table, hash));
  end(table, third, 5 * kSecond);
  EXPECT_EQ(table.evictor()->stats().evicted_total, 3u);
  EXPECT_EQ(table.evictor()->stats().bypassed_total, 3u);
}

TEST(PageTableEviction, APreemptedCallIsExpectedBack) {
  PageTable table(options_of(6));
  end(table, run(table, chain(10, 3), 1, 0), kSecond, {}, true);
  end(table, run(table, chain(20, 3), 2, 2 * kSecond), 3 * kSecond);
  const SequenceId third = run(table, chain(30, 3), 3, 4 * kSecond);
  for (BlockHash hash = 10; hash < 13; ++hash) EXPECT_TRUE(holds(table, hash));
  for (BlockHash hash = 20; hash < 23; ++hash) EXPECT_FALSE(holds(table, hash));
  end(table, third, 5 * kSecond);
  // It goes on, and then it is a thread like others.
  const SequenceId again = run(table, chain(10, 3), 1, 6 * kSecond);
  EXPECT_EQ(table.stats().hit_tokens_total[0], 12u);
  end(table, again, 7 * kSecond);
  table.thread_left(1);
  end(table, run(table, chain(40, 3), 4, 8 * kSecond), 9 * kSecond);
  EXPECT_FALSE(holds(table, 12));
  EXPECT_TRUE(holds(table, 32));
}

TEST(PageTableEviction, WhatEvictFirstNamesIsTakenFirstAndStillHitsUntilThen) {
  PageTable table(options_of(4));
  end(table, run(table, chain(10, 4), 1, 0), kSecond);
  EXPECT_TRUE(table.evict_first(Tier::kGpu, 11));
  EXPECT_TRUE(table.evict_first(Tier::kGpu, 10));
  EXPECT_TRUE(table.verify());
  EXPECT_EQ(table.match(chain(10, 4), 17, Tier::kGpu).tokens, 16u);
  const SequenceId again = run(table, chain(10, 4), 1, 2 * kSecond);  // the evictor knows them again
  end(table, again, 3 * kSecond);
  EXPECT_EQ(table.evictor()->stats().pages, 4u);
  EXPECT_TRUE(table.evict_first(Tier::kGpu, 11));
  const SequenceId other = run(table, chain(20, 1), 2, 4 * kSecond);
  EXPECT_FALSE(holds(table, 11));
  EXPECT_TRUE(holds(table, 13));
  EXPECT_TRUE(table.evict(Tier::kGpu, 10));
  EXPECT_TRUE(table.verify());
  end(table, other, 5 * kSecond);
  EXPECT_TRUE(table.reset_prefix_cache(Tier::kGpu));
  EXPECT_EQ(table.evictor()->stats().pages, 0u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTableEviction, WhatIsWorthACopyGoesToHostMemory) {
  PageTableOptions options = options_of(4, 8);
  options.demotion.enabled = true;
  options.demotion.recompute_ns_per_token = 100'000;
  options.demotion.recompute_double_tokens = 4;  // the second block costs twice the first, the third three times
  options.demotion.transfer_ns_per_token = 1;
  PageTable table(options);
  end(table, run(table, chain(10, 4), 1, 0), kSecond);
  end(table, run(table, chain(20, 2), 2, 2 * kSecond), 3 * kSecond);
  std::vector<BlockCopy> copies(8);
  ASSERT_EQ(table.drain_demotions(copies), 2u);
  EXPECT_EQ(copies[0], (BlockCopy{{Tier::kGpu, 3}, {Tier::kHost, 0}}));
  EXPECT_EQ(copies[1], (BlockCopy{{Tier::kGpu, 2}, {Tier::kHost, 1}}));
  EXPECT_EQ(table.drain_demotions(copies), 0u);
  EXPECT_TRUE(holds(table, 13, Tier::kHost));
  EXPECT_TRUE(holds(table, 12, Tier::kHost));
  EXPECT_EQ(table.stats().demoted_total, 2u);
  EXPECT_EQ(table.match(chain(10, 4), 17, Tier::kHost).tokens, 16u);

  // What the client says is over goes without a copy.
  CallOutcome last;
  last.session_end = true;
  end(table, run(table, chain(30, 2), 3, 4 * kSecond), 5 * kSecond, last);
  const std::uint64_t demoted = table.stats().demoted_total;
  end(table, run(table, chain(40, 2), 4, 6 * kSecond), 7 * kSecond);
  EXPECT_EQ(table.stats().demoted_total, demoted);
  EXPECT_EQ(table.stats().demotion_dropped_total, 2u);
  EXPECT_FALSE(holds(table, 31));
  EXPECT_FALSE(holds(table, 31, Tier::kHost));
}

TEST(PageTableEviction, APriceAboveTheWorthDropsEverything) {
  PageTableOptions options = options_of(4, 8);
  options.demotion.enabled = true;
  options.demotion.recompute_ns_per_token = 100'000;
  options.demotion.transfer_ns_per_token = 1;
  options.demotion.price = 1e9;
  PageTable table(options);
  end(table, run(table, chain(10, 4), 1, 0), kSecond);
  end(table, run(table, chain(20, 4), 2, 2 * kSecond), 3 * kSecond);
  EXPECT_EQ(table.stats().demoted_total, 0u);
  EXPECT_EQ(table.stats().demotion_dropped_total, 4u);
  EXPECT_EQ(table.pool(Tier::kHost).cached_count(), 0u);
}

// Opens, grows, forks, swaps and frees at random; the table's own check covers pool and evictor, block for block.
TEST(PageTableEviction, RandomOperationsStayConsistent) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    Random random(seed);
    PageTableOptions options = options_of(40, seed % 2 == 0 ? 24 : 0);
    options.ghosts = 8 + static_cast<std::uint32_t>(random.below(100));
    options.demotion.enabled = seed % 4 == 0;
    options.demotion.recompute_ns_per_token = 1000;
    options.demotion.transfer_ns_per_token = 100;
    PageTable table(options);
    struct Open {
      SequenceId id;
      std::vector<BlockHash> hashes;
    };
    std::vector<Open> open;
    std::vector<std::vector<BlockHash>> last(6);
    std::vector<BlockCopy> copies(64);
    BlockHash fresh = 1000;
    Time now = 0;
    for (int step = 0; step < 3000; ++step) {
      table.advance_time(now += random.below(4) == 0 ? random.below(30 * kSecond) : 1000);
      if (open.size() < 6 && random.below(3) == 0) {
        const std::uint64_t thread = random.below(last.size());
        std::vector<BlockHash>& mine = last[thread];
        if (mine.empty() || random.below(8) == 0) mine = random.below(2) == 0 ? chain(1, 3) : std::vector{++fresh};
        for (std::uint64_t i = random.below(4); i > 0 && mine.size() < 14; --i) mine.push_back(++fresh);
        const auto tokens = static_cast<std::uint32_t>(mine.size() * 4 + 1);
        const OpenResult opened =
            table.open(mine, tokens, options.block_count[1] > 0 ? Tier::kHost : Tier::kGpu,
                       {random.below(4) == 0 ? BlockEvictor::kNoThread : thread, PromptKind::kTool});
        ASSERT_EQ(opened.status, PageStatus::kOk);
        open.push_back({opened.sequence, mine});
      }
      if (open.empty()) continue;
      Open& one = open[random.below(open.size())];
      switch (random.below(8)) {
        case 0:
        case 1: {
          if (table.is_busy(one.id)) break;
          CallOutcome outcome;
          outcome.stop_reason = static_cast<StopReason>(random.below(3));
          outcome.session_end = random.below(6) == 0;
          ASSERT_EQ(table.free(one.id, outcome, random.below(6) == 0), PageStatus::kOk);
          one = open.back();
          open.pop_back();
          break;
        }
        case 2: {
          if (!table.is_resident(one.id)) {
            const PlanResult plan = table.plan_swap_in(one.id, copies);
            if (plan.status == PageStatus::kOk) random.below(4) == 0 ? table.abort(plan.plan) : table.commit(plan.plan);
          } else if (options.block_count[1] > 0 && random.below(3) == 0) {
            const PlanResult plan = table.plan_swap_out(one.id, Tier::kHost, copies);
            if (plan.status == PageStatus::kOk) table.commit(plan.plan);
          }
          break;
        }
        case 3:
          if (open.size() < 6) {
            const ForkResult forked = table.fork(one.id);
            if (forked.status == PageStatus::kOk) open.push_back({forked.sequence, one.hashes});
          }
          break;
        case 4:
          if (random.below(3) == 0) {
            table.truncate(one.id, table.token_count(one.id) / 2);
            one.hashes.resize(table.token_count(one.id) / 4);
          }
          if (random.below(10) == 0) table.thread_left(random.below(last.size()));
          break;
        default: {
          if (!table.is_resident(one.id)) break;
          const auto wanted = static_cast<std::uint32_t>(one.hashes.size()) * 4 - table.token_count(one.id);
          const auto some = static_cast<std::uint32_t>(random.below(wanted + 1));
          if (table.allocate_slots(one.id, some).status != PageStatus::kOk) break;
          const std::uint32_t cached = table.cached_blocks(one.id);
          const std::uint32_t full = table.token_count(one.id) / 4;
          table.cache_full_blocks(one.id, std::span(one.hashes).subspan(cached, full - cached));
          break;
        }
      }
      if (random.below(3) == 0) table.drain_demotions(copies);
      if (step % 8 == 0) {
        ASSERT_TRUE(table.verify()) << "seed " << seed << " step " << step;
      }
    }
    EXPECT_GT(table.evictor()->stats().evicted_total, 300u);
    if (options.demotion.enabled) {
      EXPECT_GT(table.stats().demoted_total, 20u);
    }
  }
}

}  // namespace
}  // namespace saga
