#include "../core/evict/block_evictor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "../core/evict/saga_policy.hpp"
#include "../core/sim/cache_replay.hpp"
#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::append_call;
using test::random_schedule;
using test::random_workload;

constexpr Time kSecond = 1'000'000;

BlockEvictorOptions options_of(std::uint32_t blocks, PolicyKind policy = PolicyKind::kSaga,
                               std::uint32_t ghosts = kNone) {
  BlockEvictorOptions options;
  options.block_count = blocks;
  options.policy = policy;
  options.ghosts = ghosts;
  return options;
}

std::vector<BlockId> take(BlockEvictor& evictor, std::uint32_t count, Time now) {
  std::vector<BlockId> blocks(count);
  blocks.resize(evictor.take(blocks, now));
  return blocks;
}

// A server of calls: finds the blocks of a chain by their hash, takes what is missing, stores at once.
class Server {
 public:
  explicit Server(BlockEvictor& evictor) : evictor_(evictor) {}

  // False, with the call open all the same, if there are too few blocks. `hits` receives the leading pages found.
  bool start(CallId call, std::uint64_t thread, const std::vector<BlockHash>& chain, Time now, std::uint32_t* hits,
             PromptKind kind = PromptKind::kTool) {
    *hits = evictor_.start(call, thread, chain, kind, now);
    std::vector<BlockId>& row = rows_[call];
    row.clear();
    for (std::uint32_t i = 0; i < *hits; ++i) {
      const BlockId block = block_of_.at(chain[i]);
      if (users_[block]++ == 0) evictor_.pin({&block, 1});
      row.push_back(block);
    }
    return grow(call, chain, now);
  }
  bool grow(CallId call, const std::vector<BlockHash>& chain, Time now) {
    std::vector<BlockId>& row = rows_[call];
    const std::size_t first = row.size();
    const std::vector<BlockId> fresh = take(evictor_, static_cast<std::uint32_t>(chain.size() - first), now);
    for (const BlockId block : fresh) {
      if (hash_of_.count(block) > 0) block_of_.erase(hash_of_[block]);
      hash_of_[block] = chain[row.size()];
      block_of_[chain[row.size()]] = block;
      users_[block] = 1;
      row.push_back(block);
    }
    evictor_.store(first > 0, first > 0 ? chain[first - 1] : 0, std::span(chain).subspan(first, fresh.size()), fresh);
    return row.size() == chain.size();
  }
  void end(CallId call, const CallOutcome& outcome, Time now) {
    std::vector<BlockId>& row = rows_[call];
    evictor_.end(call, outcome, row.empty() ? kNone : row.back(), now);
    for (std::size_t i = row.size(); i-- > 0;) {
      if (--users_[row[i]] == 0) evictor_.unpin({&row[i], 1});
    }
    row.clear();
  }
  bool holds(BlockHash hash) const { return block_of_.count(hash) > 0; }

 private:
  BlockEvictor& evictor_;
  std::map<BlockHash, BlockId> block_of_;
  std::map<BlockId, BlockHash> hash_of_;
  std::map<BlockId, std::uint32_t> users_;
  std::map<CallId, std::vector<BlockId>> rows_;
};

// The hashes first, first + 1, ..., behind others.
std::vector<BlockHash> chain(BlockHash first, std::uint32_t length, std::vector<BlockHash> before = {}) {
  for (std::uint32_t i = 0; i < length; ++i) before.push_back(first + i);
  return before;
}

// ---- The live tree

TEST(LivePageTree, AncestorsAgreeWithWalks) {
  Random random(7);
  for (int round = 0; round < 20; ++round) {
    PageTree tree = PageTree::live(400, 1, 1, 16);
    std::vector<NodeId> nodes;
    BlockHash hash = 1;
    for (int step = 0; step < 3000; ++step) {
      if (random.below(4) > 0 && tree.free_nodes() > 0) {
        // Mostly behind the newest, so that paths get long.
        const NodeId parent = nodes.empty() || random.below(20) == 0 ? kNone
                              : random.below(3) > 0                  ? nodes.back()
                                                                     : nodes[random.below(nodes.size())];
        nodes.push_back(tree.add(parent, hash++));
        tree.loosen(nodes.back());
      } else if (const NodeId node = tree.take_loose(); node != kNone) {
        tree.remove(node);
        nodes.erase(std::find(nodes.begin(), nodes.end(), node));
      }
      if (nodes.size() < 2) continue;
      const NodeId a = nodes[random.below(nodes.size())];
      const NodeId b = nodes[random.below(nodes.size())];
      std::set<NodeId> on_path_of_a;
      for (NodeId n = a; n != kNone; n = tree.node(n).parent) on_path_of_a.insert(n);
      NodeId common = b;
      while (common != kNone && on_path_of_a.count(common) == 0) common = tree.node(common).parent;
      ASSERT_EQ(tree.common_ancestor(a, b), common);
      ASSERT_EQ(tree.on_path(b, a), on_path_of_a.count(b) > 0);
      ASSERT_TRUE(tree.on_path(kNone, a));
      ASSERT_FALSE(tree.on_path(a, kNone));
    }
    ASSERT_TRUE(tree.verify());
  }
}

TEST(LivePageTree, WhatIsHeldAndAllBeforeItStays) {
  PageTree tree = PageTree::live(4, 1, 1, 16);
  const NodeId a = tree.add(kNone, 10);
  const NodeId b = tree.add(a, 11);
  const NodeId c = tree.add(b, 12);
  const NodeId d = tree.add(b, 13);
  EXPECT_EQ(tree.add(d, 14), kNone);
  tree.hold(c);
  tree.hold(c);
  tree.loosen(c);
  tree.loosen(a);
  EXPECT_EQ(tree.take_loose(), kNone);
  tree.loosen(d);
  EXPECT_EQ(tree.take_loose(), d);
  tree.remove(d);
  EXPECT_EQ(tree.find(13), kNone);
  tree.unhold(c);
  EXPECT_EQ(tree.take_loose(), kNone);
  tree.unhold(c);
  for (const NodeId node : {c, b, a}) {
    EXPECT_EQ(tree.take_loose(), node);
    tree.remove(node);
  }
  EXPECT_EQ(tree.free_nodes(), 4u);
  EXPECT_TRUE(tree.verify());
}

// ---- Agreement with the replay on a frozen tree

struct Replayed {
  std::uint64_t missed = 0;
  std::uint64_t evicted = 0;
  bool overflowed = false;
};

// The same calls again behind the workload's, one for each of their prefixes: every node of its tree is a single page then.
Workload with_all_prefixes(const Workload& workload) {
  Workload all = workload;
  for (CallId call = 0; call < workload.calls(); ++call) {
    std::vector<std::uint64_t> ids;
    for (std::uint32_t r = workload.call_first_run[call]; r < workload.call_first_run[call + 1]; ++r) {
      for (std::uint32_t i = 0; i < workload.run_length[r]; ++i) {
        ids.push_back(workload.run_first_id[r] + i);
        append_call(all, kNone, static_cast<std::uint32_t>(ids.size()) * workload.block_tokens, 1, ids);
      }
    }
  }
  return all;
}

Replayed replay_live(const Workload& workload, const PageTree& tree, const CacheSchedule& schedule, PolicyKind policy,
                     std::uint32_t capacity, bool infer) {
  BlockEvictorOptions options = options_of(capacity, policy, 100'000);
  options.block_tokens = tree.page_tokens();
  options.max_calls = workload.calls();
  BlockEvictor evictor(options);
  Server server(evictor);
  Replayed result;
  const auto requests = static_cast<std::uint32_t>(schedule.call.size());
  std::vector<std::uint32_t> by_end(requests);
  for (std::uint32_t i = 0; i < requests; ++i) by_end[i] = i;
  std::stable_sort(by_end.begin(), by_end.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return schedule.end[a] < schedule.end[b]; });
  std::uint32_t ended = 0;
  for (std::uint32_t i = 0; i < requests; ++i) {
    for (; ended < requests && by_end[ended] < i && schedule.end[by_end[ended]] <= schedule.start[i]; ++ended) {
      const CallId call = schedule.call[by_end[ended]];
      CallOutcome outcome;
      outcome.stop_reason = workload.stop_reason[call];
      outcome.tool_class = workload.tool_class[call];
      outcome.output_tokens = workload.output_tokens[call];
      if (!schedule.session_end.empty()) outcome.session_end = schedule.session_end[by_end[ended]] != 0;
      if (!schedule.declared_gap.empty()) outcome.declared_gap = schedule.declared_gap[by_end[ended]];
      server.end(call, outcome, schedule.end[by_end[ended]]);
    }
    const CallId call = schedule.call[i];
    std::vector<BlockHash> hashes;
    for (const std::uint32_t page : test::path_page_numbers(tree, tree.prompt_leaf(call))) hashes.push_back(page);
    std::uint32_t hits = 0;
    const std::uint64_t thread = infer ? BlockEvictor::kNoThread : workload.call_thread[call] * 1000 + 5;
    if (!server.start(call, thread, hashes, schedule.start[i], &hits, workload.prompt_kind[call])) {
      result.overflowed = true;
      return result;
    }
    result.missed += hashes.size() - hits;
    if (i % 16 == 0) {
      EXPECT_TRUE(evictor.verify());
    }
  }
  EXPECT_TRUE(evictor.verify());
  EXPECT_EQ(evictor.stats().missed_pages_total, result.missed);
  EXPECT_EQ(evictor.stats().forgotten_total, 0u);
  result.evicted = evictor.stats().evicted_total;
  return result;
}

TEST(BlockEvictor, DecidesAsTheReplayOnAFrozenTree) {
  Random random(11);
  std::uint32_t compared = 0;
  std::uint64_t evicted = 0;
  for (int round = 0; round < 60; ++round) {
    const test::Shape shape{.calls = 160, .threads = 4 + static_cast<std::uint32_t>(random.below(12))};
    const Workload workload = random_workload(random, shape);
    CacheSchedule schedule = random_schedule(random, workload, 1 + random.below(40));
    if (round % 3 == 0) {
      for (CallId call = 0; call < workload.calls(); ++call) {
        schedule.session_end.push_back(random.below(6) == 0);
        schedule.declared_gap.push_back(random.below(3) == 0 ? random.below(60) * kSecond : kNotDeclared);
      }
    }
    const Workload all = with_all_prefixes(workload);
    const PageTree tree = PageTree::for_cache(all, workload.block_tokens);
    for (NodeId node = 0; node < tree.size(); ++node) ASSERT_EQ(tree.node(node).key, node);
    for (const PolicyKind policy : {PolicyKind::kLru, PolicyKind::kSaga}) {
      CacheReplayOptions options;
      options.policy = policy;
      options.infer_threads = round % 4 == 1;
      options.capacity_pages = 30 + static_cast<std::uint32_t>(random.below(120));
      const CacheReplayResult frozen = replay_cache(all, tree, schedule, options);
      const Replayed live =
          replay_live(workload, tree, schedule, policy, options.capacity_pages, options.infer_threads);
      if (frozen.overflows > 0 || live.overflowed) continue;  // a pool can't overflow
      ++compared;
      evicted += live.evicted;
      EXPECT_EQ(live.missed, frozen.missed_pages) << "round " << round << " policy " << static_cast<int>(policy);
      EXPECT_EQ(live.evicted, frozen.evicted_pages);
    }
  }
  EXPECT_GT(compared, 60u);
  EXPECT_GT(evicted, 10'000u);
}

}  // namespace
}  // namespace saga
