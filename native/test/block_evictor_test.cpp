#include "../core/evict/block_evictor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <utility>

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

// ---- Literal cases

TEST(BlockEvictor, BlocksWithoutHashGoFirstThenCopiesThenPages) {
  BlockEvictor evictor(options_of(6));
  EXPECT_EQ(take(evictor, 6, 0), (std::vector<BlockId>{0, 1, 2, 3, 4, 5}));
  EXPECT_TRUE(take(evictor, 1, 0).empty());
  const std::vector<BlockHash> page{70};
  for (const BlockId block : {0u, 1u, 2u}) evictor.store(false, 0, page, std::vector<BlockId>{block});
  evictor.unpin(std::vector<BlockId>{0});  // 1 and 2 hold the page
  evictor.unpin(std::vector<BlockId>{2});  // 1 holds it
  evictor.unpin(std::vector<BlockId>{1});  // the keeper
  evictor.unpin(std::vector<BlockId>{5, 3});
  evictor.prefer(3);
  EXPECT_TRUE(evictor.verify());
  EXPECT_TRUE(evictor.is_resident(70));
  EXPECT_EQ(take(evictor, 4, 0), (std::vector<BlockId>{3, 5, 0, 2}));
  EXPECT_TRUE(evictor.is_resident(70));
  EXPECT_EQ(take(evictor, 1, 0), (std::vector<BlockId>{1}));
  EXPECT_FALSE(evictor.is_resident(70));
  const BlockEvictorStats stats = evictor.stats();
  EXPECT_EQ(stats.taken_total, 11u);
  EXPECT_EQ(stats.taken_without_hash_total, 8u);
  EXPECT_EQ(stats.taken_copies_total, 2u);
  EXPECT_EQ(stats.evicted_total, 1u);
  EXPECT_EQ(stats.bypassed_total, 1u);
  EXPECT_TRUE(evictor.verify());
}

TEST(BlockEvictor, TheKeeperOfAPageCanBeACopyThatWaited) {
  BlockEvictor evictor(options_of(3));
  take(evictor, 3, 0);
  const std::vector<BlockHash> page{70};
  evictor.store(false, 0, page, std::vector<BlockId>{0});
  evictor.store(false, 0, page, std::vector<BlockId>{1});
  evictor.unpin(std::vector<BlockId>{0});
  evictor.drop(1);  // in use: 0 is the only one now
  EXPECT_TRUE(evictor.is_resident(70));
  evictor.unpin(std::vector<BlockId>{1, 2});
  EXPECT_TRUE(evictor.verify());
  EXPECT_EQ(take(evictor, 3, 0), (std::vector<BlockId>{1, 2, 0}));
  EXPECT_TRUE(evictor.verify());
}

TEST(BlockEvictor, TheEndOfAChainGoesBeforeItsBeginning) {
  BlockEvictor evictor(options_of(4));
  Server server(evictor);
  std::uint32_t hits = 0;
  server.start(0, 1, chain(10, 4), 0, &hits);
  server.end(0, {}, kSecond);
  EXPECT_EQ(take(evictor, 4, 2 * kSecond), (std::vector<BlockId>{3, 2, 1, 0}));
}

TEST(BlockEvictor, EndedSessionsGoBeforeOlderOnes) {
  BlockEvictor evictor(options_of(6));
  Server server(evictor);
  std::uint32_t hits = 0;
  server.start(0, 1, chain(10, 3), 0, &hits);
  server.end(0, {}, kSecond);
  server.start(0, 2, chain(20, 3), 2 * kSecond, &hits);
  CallOutcome ended;
  ended.session_end = true;
  server.end(0, ended, 3 * kSecond);
  EXPECT_EQ(take(evictor, 3, 4 * kSecond), (std::vector<BlockId>{5, 4, 3}));  // the younger, which will not return
}

TEST(BlockEvictor, AThreadThatLeftGoesFirst) {
  BlockEvictor evictor(options_of(4));
  Server server(evictor);
  std::uint32_t hits = 0;
  server.start(0, 1, chain(10, 2), 0, &hits);
  server.end(0, {}, kSecond);
  server.start(0, 2, chain(20, 2), 2 * kSecond, &hits);
  server.end(0, {}, 3 * kSecond);
  evictor.thread_left(2, 4 * kSecond);
  evictor.thread_left(99, 4 * kSecond);  // nobody
  EXPECT_EQ(take(evictor, 2, 5 * kSecond), (std::vector<BlockId>{3, 2}));
}

TEST(BlockEvictor, AnEndToldDuringTheGapCounts) {
  BlockEvictor evictor(options_of(6));
  Server server(evictor);
  std::uint32_t hits = 0;
  CallOutcome ended;
  ended.session_end = true;
  EXPECT_FALSE(evictor.told(2, ended, 0));  // nobody
  server.start(0, 1, chain(10, 3), 0, &hits);
  server.end(0, {}, kSecond);
  server.start(0, 2, chain(20, 3), 2 * kSecond, &hits);
  EXPECT_FALSE(evictor.told(2, ended, 2 * kSecond));  // it runs
  server.end(0, {}, 3 * kSecond);
  EXPECT_TRUE(evictor.told(2, ended, 4 * kSecond));
  EXPECT_TRUE(evictor.verify());
  EXPECT_EQ(take(evictor, 3, 5 * kSecond), (std::vector<BlockId>{5, 4, 3}));
  EXPECT_FALSE(evictor.told(BlockEvictor::kNoThread, ended, 6 * kSecond));
}

// Told at the end or just after it: the same decisions.
TEST(BlockEvictor, AnEndToldLateCountsAsOneToldAtOnce) {
  BlockEvictor at_once(options_of(120)), late(options_of(120));
  Server first(at_once), second(late);
  Random random(23);
  Time now = 0;
  std::vector<std::vector<BlockHash>> prompts(40);
  BlockHash fresh = 1000;
  for (int step = 0; step < 4000; ++step) {
    now += 1 + random.below(4 * kSecond);
    const auto thread = static_cast<std::uint32_t>(random.below(prompts.size()));
    std::vector<BlockHash>& prompt = prompts[thread];
    if (prompt.size() > 30 || prompt.empty()) {
      prompt = chain(1 + 100 * random.below(3), 4);
      fresh += 10;
    }
    prompt = chain(fresh, 1 + static_cast<std::uint32_t>(random.below(5)), prompt);
    fresh += 10;
    std::uint32_t hits[2] = {};
    ASSERT_TRUE(first.start(0, thread, prompt, now, &hits[0]));
    ASSERT_TRUE(second.start(0, thread, prompt, now, &hits[1]));
    ASSERT_EQ(hits[0], hits[1]) << "step " << step;
    now += random.below(kSecond);
    CallOutcome outcome;
    outcome.stop_reason = random.below(4) > 0 ? StopReason::kToolUse : StopReason::kEndTurn;
    outcome.tool_class = static_cast<ToolClass>(random.below(5));
    outcome.output_tokens = static_cast<std::uint32_t>(random.below(500));
    if (random.below(5) == 0) outcome.declared_gap = random.below(20 * kSecond);
    outcome.session_end = random.below(20) == 0;
    first.end(0, outcome, now);
    second.end(0, {}, now);
    ASSERT_TRUE(late.told(thread, outcome, now));
    if (step % 200 == 0) {
      ASSERT_TRUE(late.verify());
    }
  }
  EXPECT_GT(at_once.stats().evicted_total, 1000u);
  EXPECT_EQ(at_once.stats().missed_pages_total, late.stats().missed_pages_total);
}

TEST(BlockEvictor, SharedPagesOutliveTheirUsersTails) {
  BlockEvictor evictor(options_of(8));
  Server server(evictor);
  std::uint32_t hits = 0;
  for (std::uint64_t thread = 0; thread < 3; ++thread) {
    server.start(0, thread, chain(100 + 10 * thread, 2, chain(10, 2)), thread * kSecond, &hits);
    EXPECT_EQ(hits, thread == 0 ? 0u : 2u);
    server.end(0, {}, thread * kSecond + 1);
  }
  take(evictor, 6, 10 * kSecond);
  for (const BlockHash shared : {10, 11}) EXPECT_TRUE(evictor.is_resident(shared));
  for (const BlockHash own : {100, 101, 110, 111, 120, 121}) EXPECT_FALSE(evictor.is_resident(own));
}

TEST(BlockEvictor, APreemptedCallKeepsItsPages) {
  BlockEvictor evictor(options_of(4));
  Server server(evictor);
  std::uint32_t hits = 0;
  server.start(0, 1, chain(10, 2), 0, &hits);
  evictor.preempt(0, kSecond);
  EXPECT_TRUE(evictor.is_preempted(0));
  evictor.unpin(std::vector<BlockId>{1, 0});
  server.start(1, 2, chain(20, 2), 2 * kSecond, &hits);
  server.end(1, {}, 3 * kSecond);
  EXPECT_EQ(take(evictor, 2, 4 * kSecond), (std::vector<BlockId>{3, 2}));  // though the other is younger
  EXPECT_EQ(evictor.start(0, 1, chain(10, 2), PromptKind::kTool, 5 * kSecond), 2u);
  EXPECT_FALSE(evictor.is_preempted(0));
  EXPECT_TRUE(evictor.verify());
}

TEST(BlockEvictor, HollowPagesStandInForBlocksThatAreGone) {
  BlockEvictor evictor(options_of(4));
  take(evictor, 4, 0);
  evictor.store(false, 0, chain(10, 3), std::vector<BlockId>{0, 1, 2});
  evictor.drop(1);
  EXPECT_EQ(evictor.stats().hollow, 1u);
  EXPECT_EQ(evictor.stats().pages, 2u);
  EXPECT_TRUE(evictor.verify());
  evictor.unpin(std::vector<BlockId>{2, 1, 0});
  EXPECT_TRUE(evictor.verify());
  EXPECT_EQ(take(evictor, 2, 0), (std::vector<BlockId>{1, 2}));  // and the hollow page with 2
  EXPECT_EQ(evictor.stats().hollow, 0u);
  EXPECT_TRUE(evictor.verify());
  // Behind pages that are known but not resident.
  evictor.store(true, 11, chain(12, 1), std::vector<BlockId>{3});
  EXPECT_EQ(evictor.stats().hollow, 1u);
  evictor.store(true, 10, chain(11, 1), std::vector<BlockId>{1});
  EXPECT_EQ(evictor.stats().hollow, 0u);
  EXPECT_TRUE(evictor.verify());
  // Behind a page that nobody knows: as without a hash.
  evictor.store(true, 555, chain(556, 1), std::vector<BlockId>{2});
  EXPECT_FALSE(evictor.is_stored(2));
  EXPECT_TRUE(evictor.verify());
}

TEST(BlockEvictor, PagesOfTheAnswerBelongToTheThread) {
  BlockEvictor evictor(options_of(6));
  Server server(evictor);
  std::uint32_t hits = 0;
  server.start(0, 1, chain(10, 1), 0, &hits);
  server.grow(0, chain(10, 3), kSecond);  // two pages of answer
  server.start(1, 2, chain(20, 3), kSecond, &hits);
  server.end(1, {}, 2 * kSecond);
  server.end(0, {}, 3 * kSecond);
  EXPECT_TRUE(evictor.verify());
  // The other's end goes first, for it is older; were the answer nobody's, it would.
  EXPECT_EQ(take(evictor, 3, 4 * kSecond), (std::vector<BlockId>{5, 4, 3}));
}

TEST(BlockEvictor, TheThreadWhosePagesLeftFirstIsForgottenFirst) {
  BlockEvictor evictor(options_of(4, PolicyKind::kSaga, 4));
  Server server(evictor);
  std::uint32_t hits = 0;
  Time now = 0;
  for (std::uint64_t thread = 0; thread < 4; ++thread) {  // each drives the one before out
    server.start(0, thread, chain(100 * (thread + 1), 4), now += kSecond, &hits);
    server.end(0, {}, now += kSecond);
    EXPECT_TRUE(evictor.verify());
  }
  EXPECT_EQ(evictor.stats().forgotten_total, 2u);
  EXPECT_EQ(evictor.stats().heads, 2u);
  EXPECT_EQ(evictor.stats().ghosts, 4u);
  EXPECT_EQ(evictor.tree().find(100), kNone);
  EXPECT_EQ(evictor.tree().find(200), kNone);
  EXPECT_NE(evictor.tree().find(300), kNone);
  EXPECT_TRUE(evictor.is_resident(400));
}

// ---- Live regret

TEST(LiveRegret, AgreesWithTheMeterOnAFrozenTree) {
  Random random(5);
  for (int round = 0; round < 12; ++round) {
    const Workload workload = random_workload(random, test::Shape{.calls = 120, .threads = 8});
    const PageTree tree = PageTree::for_cache(workload, workload.block_tokens);
    RegretMeter::Options options;
    options.capacity_pages = 20 + static_cast<std::uint32_t>(random.below(60));
    options.window = workload.calls();
    options.warm_up = workload.calls() / 4;
    options.every = 0;
    RegretMeter meter(tree, options);
    LiveRegret live(options.capacity_pages, workload.calls(), workload.calls(), 100'000);
    LiveRegret small(options.capacity_pages, workload.calls(), 50, 300);
    std::vector<CallId> running;
    for (CallId call = 0; call < workload.calls(); ++call) {
      while (!running.empty() && (running.size() > 5 || random.below(2) == 0)) {
        const std::size_t which = random.below(running.size());
        meter.call_ended(running[which]);
        live.call_ended(running[which]);
        small.call_ended(running[which]);
        running.erase(running.begin() + static_cast<std::ptrdiff_t>(which));
      }
      std::vector<BlockHash> hashes;
      for (const std::uint32_t page : test::path_page_numbers(tree, tree.prompt_leaf(call))) {
        hashes.push_back(mix64(page));
      }
      const auto missed = static_cast<std::uint32_t>(random.below(hashes.size() + 1));
      meter.call_started(call, missed);
      live.call_started(call, hashes, missed);
      small.call_started(call, hashes, missed);
      running.push_back(call);
      ASSERT_TRUE(live.verify());
      ASSERT_TRUE(small.verify());
      ASSERT_LE(small.calls(), 50u);
    }
    const RegretMeter::Reading expected = meter.measure();
    const RegretMeter::Reading reading = live.measure();
    EXPECT_EQ(reading.calls, expected.calls);
    EXPECT_EQ(reading.missed_pages, expected.missed_pages);
    EXPECT_EQ(reading.optimum_missed, expected.optimum_missed);
    EXPECT_GT(reading.optimum_missed, 0u);
    EXPECT_EQ(small.measure().calls, small.calls() - small.calls() / 4);
  }
}

// ---- Random operations of an owner

// Blocks and pages once more, as plainly as can be.
struct Model {
  struct Block {
    bool in_use = false;
    BlockHash hash = 0;  // 0: none
    std::uint64_t freed_at = 0;
    bool copy = false;  // waits as a copy
  };
  std::vector<Block> blocks;
  std::deque<BlockId> unhashed;
  std::deque<BlockId> copies;
  std::map<BlockHash, BlockHash> parent;  // of pages that were ever stored

  bool resident(BlockHash hash) const {
    return std::any_of(blocks.begin(), blocks.end(), [&](const Block& b) { return b.hash == hash; });
  }
  static void forget(std::deque<BlockId>& list, BlockId block) {
    list.erase(std::remove(list.begin(), list.end(), block), list.end());
  }
  // Blocks that hold the page and do not wait as a copy.
  std::vector<BlockId> keepers(BlockHash hash) const {
    std::vector<BlockId> found;
    for (BlockId b = 0; b < blocks.size(); ++b) {
      if (blocks[b].hash == hash && !blocks[b].copy) found.push_back(b);
    }
    return found;
  }
};

void random_operations(std::uint64_t seed, PolicyKind policy, std::uint32_t ghosts) {
  Random random(seed);
  constexpr std::uint32_t kBlocks = 40;
  constexpr std::uint32_t kCalls = 6;
  BlockEvictor evictor(options_of(kBlocks, policy, ghosts));
  Model model;
  model.blocks.resize(kBlocks);
  for (BlockId block = 0; block < kBlocks; ++block) model.unhashed.push_back(block);
  struct Running {
    bool open = false;
    bool preempted = false;
    std::uint64_t thread = 0;
    std::vector<BlockHash> chain;
    std::vector<BlockId> row;
  };
  std::vector<Running> calls(kCalls);
  std::vector<std::uint32_t> users(kBlocks, 0);
  std::vector<std::vector<BlockHash>> last(8);
  Time now = 0;
  BlockHash fresh = 1000;
  std::uint64_t compared = 0;

  const auto take_one = [&]() -> BlockId {
    if (evictor.free_count() == 0) return kNone;
    // What the policy has to choose from: pages without a block in use, and without a resident page behind them.
    BlockId expected = kNone;
    std::set<BlockId> allowed;
    if (!model.unhashed.empty()) {
      expected = model.unhashed.front();
      model.unhashed.pop_front();
    } else if (!model.copies.empty()) {
      expected = model.copies.front();
      model.copies.pop_front();
    } else if (policy == PolicyKind::kSaga) {
      IndexValue least = ~IndexValue{0};
      for (BlockId b = 0; b < kBlocks; ++b) {
        const BlockHash hash = model.blocks[b].hash;
        if (model.blocks[b].in_use || hash == 0) continue;
        bool leaf = model.keepers(hash).size() == 1;
        for (const Model::Block& other : model.blocks) {
          // A page behind it, directly or behind pages that are gone.
          for (BlockHash up = other.hash; up != 0 && leaf;) {
            up = model.parent.at(up);
            if (up == hash) leaf = false;
          }
        }
        if (!leaf) continue;
        const IndexValue key = evictor.saga()->key_of(evictor.tree().find(hash), now);
        if (key < least) allowed.clear();
        if (key <= least) allowed.insert(b);
        least = std::min(least, key);
      }
    }
    BlockId block = kNone;
    EXPECT_EQ(evictor.take({&block, 1}, now), 1u);
    EXPECT_FALSE(model.blocks[block].in_use);
    if (expected != kNone) {
      EXPECT_EQ(block, expected);
    } else if (policy == PolicyKind::kSaga && !allowed.empty()) {
      ++compared;
      EXPECT_TRUE(allowed.count(block) > 0) << "block " << block << " of " << allowed.size();
    }
    model.blocks[block] = {};
    model.blocks[block].in_use = true;
    users[block] = 1;
    return block;
  };
  const auto drop_from_model = [&](BlockId block) {
    Model::Block& b = model.blocks[block];
    const BlockHash hash = std::exchange(b.hash, 0);
    if (b.copy) Model::forget(model.copies, block);
    b.copy = false;
    if (hash == 0 || !model.resident(hash) || !model.keepers(hash).empty()) return true;
    return false;  // which of the waiting copies is the keeper now is not for the model to say
  };
  const auto unpin = [&](BlockId block) {
    if (--users[block] > 0) return;
    evictor.unpin({&block, 1});
    Model::Block& b = model.blocks[block];
    b.in_use = false;
    if (b.hash == 0) {
      model.unhashed.push_back(block);
    } else if (model.keepers(b.hash).size() > 1) {
      b.copy = true;
      model.copies.push_back(block);
    }
  };
  const auto pin = [&](BlockId block) {
    if (users[block]++ > 0) return;
    evictor.pin({&block, 1});
    Model::Block& b = model.blocks[block];
    b.in_use = true;
    if (b.copy) Model::forget(model.copies, block);
    b.copy = false;
    if (b.hash == 0) Model::forget(model.unhashed, block);
  };

  for (int step = 0; step < 3000; ++step) {
    now += random.below(5) == 0 ? random.below(40 * kSecond) : random.below(1000);
    const auto id = static_cast<CallId>(random.below(kCalls));
    Running& call = calls[id];
    if (!call.open || call.preempted) {
      if (!call.preempted) {
        call.thread = random.below(last.size());
        std::vector<BlockHash>& mine = last[call.thread];
        if (mine.empty() || random.below(6) == 0) mine = random.below(2) == 0 ? chain(1, 3) : chain(fresh += 2, 2);
        if (random.below(8) == 0) mine.resize(1 + random.below(mine.size()));
        for (std::uint64_t i = random.below(4); i > 0; --i) mine.push_back((fresh += 2));
        if (mine.size() > 14) mine.resize(14);
        call.chain = mine;
      }
      const std::uint64_t thread = random.below(5) == 0 && !call.preempted ? BlockEvictor::kNoThread : call.thread;
      evictor.start(id, thread, call.chain, static_cast<PromptKind>(random.below(3)), now);
      call.open = true;
      call.preempted = false;
      for (const BlockHash hash : call.chain) {
        const std::vector<BlockId> keepers = model.keepers(hash);
        if (keepers.empty() || random.below(30) == 0) break;  // sometimes computed again: copies
        call.row.push_back(keepers.front());
        pin(keepers.front());
      }
      for (BlockHash parent = 0; const BlockHash hash : call.chain) model.parent.emplace(hash, parent), parent = hash;
    } else if (call.row.size() < call.chain.size() && random.below(4) > 0) {
      for (std::uint64_t i = 1 + random.below(4); i > 0 && call.row.size() < call.chain.size(); --i) {
        const BlockId block = take_one();
        if (block == kNone) break;
        const std::size_t index = call.row.size();
        call.row.push_back(block);
        if (random.below(40) == 0) continue;  // never stored: a hole
        const BlockHash hash = call.chain[index];
        evictor.store(index > 0, index > 0 ? call.chain[index - 1] : 0, {&hash, 1}, {&block, 1});
        if (evictor.is_stored(block)) model.blocks[block].hash = hash;
      }
    } else if (random.below(12) == 0) {
      evictor.preempt(id, now);
      call.preempted = true;
      while (!call.row.empty()) unpin(call.row.back()), call.row.pop_back();
    } else {
      CallOutcome outcome;
      outcome.stop_reason = static_cast<StopReason>(random.below(3));
      outcome.tool_class = static_cast<ToolClass>(random.below(5));
      outcome.session_end = random.below(10) == 0;
      if (random.below(4) == 0) outcome.declared_gap = random.below(100 * kSecond);
      BlockId end = kNone;
      for (const BlockId block : call.row) end = model.blocks[block].hash != 0 ? block : end;
      evictor.end(id, outcome, end, now);
      while (!call.row.empty()) unpin(call.row.back()), call.row.pop_back();
      call = {};
    }
    if (random.below(60) == 0) evictor.thread_left(random.below(last.size()), now);
    if (random.below(25) == 0) {
      const auto block = static_cast<BlockId>(random.below(kBlocks));
      Model::Block& b = model.blocks[block];
      const BlockHash hash = b.hash;
      const bool prefer = !b.in_use && random.below(2) == 0;
      if (hash != 0 || prefer) {
        if (hash == 0) Model::forget(model.unhashed, block);
        const bool plain = drop_from_model(block);
        prefer ? evictor.prefer(block) : evictor.drop(block);
        if (!b.in_use) prefer ? model.unhashed.push_front(block) : model.unhashed.push_back(block);
        if (!plain) {  // the copy that was cached first of those that are left
          const NodeId node = evictor.tree().find(hash);
          ASSERT_NE(node, kNone);
          BlockId keeper = kNone;
          for (BlockId other = 0; other < kBlocks; ++other) {
            if (model.blocks[other].hash == hash && evictor.is_keeper(other)) {
              ASSERT_EQ(keeper, kNone);
              keeper = other;
            }
          }
          ASSERT_NE(keeper, kNone);
          model.blocks[keeper].copy = false;
          Model::forget(model.copies, keeper);
        }
      }
    }
    if (step % 8 == 0) {
      ASSERT_TRUE(evictor.verify()) << step;
      for (BlockId block = 0; block < kBlocks; ++block) {
        ASSERT_EQ(evictor.is_free(block), !model.blocks[block].in_use);
        ASSERT_EQ(evictor.is_stored(block), model.blocks[block].hash != 0);
      }
    }
  }
  EXPECT_TRUE(policy != PolicyKind::kSaga || compared > 300) << compared;
  if (ghosts < 20) {
    EXPECT_GT(evictor.stats().forgotten_total, 10u);
  }
}

TEST(BlockEvictor, RandomOperationsAgreeWithAPlainModel) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) random_operations(seed, PolicyKind::kSaga, 100'000);
}

TEST(BlockEvictor, RandomOperationsWithFewGhosts) {
  for (std::uint64_t seed = 10; seed < 16; ++seed)
    random_operations(seed, PolicyKind::kSaga, 8 * static_cast<std::uint32_t>(seed - 9));
}

TEST(BlockEvictor, RandomOperationsUnderRecency) {
  for (std::uint64_t seed = 20; seed < 23; ++seed) random_operations(seed, PolicyKind::kLru, 40);
}

}  // namespace
}  // namespace saga
