#include "../core/evict/saga_policy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>

#include "../core/evict/page_cache.hpp"
#include "../core/sim/cache_replay.hpp"
#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::append_call;
using test::path_page_numbers;
using Pages = std::vector<std::uint32_t>;

constexpr Time kSecond = 1'000'000;

// ---- The slow model: page by page, heads in a plain list, every leaf rated from scratch for every page that goes ----------
//
// It shares with the policy what is tested by itself (hazard tables, features, correction), in a set of statistics of its
// own, and nothing of the bookkeeping.

class SlowSaga final : private OpenWaits {
 public:
  SlowSaga(const PageTree& tree, std::uint32_t capacity)
      : tree_(tree), capacity_(capacity), pages_(tree.distinct_pages()) {
    for (NodeId node = 0; node < tree.size(); ++node) {
      const Pages path = path_page_numbers(tree, node);
      for (std::uint32_t i = tree.node(node).first_page; i < path.size(); ++i) {
        pages_[path[i]].node = node;
        pages_[path[i]].parent = i == 0 ? kNone : path[i - 1];
      }
    }
    statistics_.attach(this);
  }

  void start(const CallStart& call, Time now) {
    const Pages path = path_page_numbers(tree_, call.path_leaf);
    std::uint32_t id = kNone;
    const bool inferred = call.thread == kNone;
    if (!inferred && head_of_thread_.count(call.thread) > 0) {
      id = head_of_thread_[call.thread];
    } else {
      id = infer(path);
      if (!inferred && id != kNone) {
        const Head& other = heads_[id];
        if (other.state != kIdle || other.inferred || other.thread_calls != 1) {
          id = kNone;
        } else {
          head_of_thread_.erase(other.thread);
          heads_[id].thread = call.thread;
          heads_[id].thread_calls = 0;
        }
      }
    }
    std::size_t fork = 0;
    if (id == kNone) {
      id = make_head();
      heads_[id].inferred = inferred;
      heads_[id].thread = call.thread;
    } else {
      if (heads_[id].state == kIdle) gap_ended(id, now);
      statistics_.run.event(heads_[id].run_class, bucket_of(now - heads_[id].run_since), 1);
      statistics_.learned();
      const Pages old = heads_[id].path;
      while (fork < old.size() && fork < path.size() && old[fork] == path[fork]) ++fork;
      if (fork < old.size()) {
        const std::uint32_t orphan = make_head();
        heads_[orphan].state = kOrphan;
        heads_[orphan].path = old;
        heads_[orphan].since = now;
        heads_[orphan].parent = id;
        heads_[orphan].wait_class =
            statistics_.orphan_class(static_cast<std::uint32_t>(old.size() - fork), heads_[id].came_back);
        for (std::size_t i = fork; i < old.size(); ++i) pages_[old[i]].owner = orphan;
      }
    }
    if (!inferred) head_of_thread_[call.thread] = id;
    for (std::size_t i = path.size(); i-- > fork;) {
      Page& page = pages_[path[i]];
      if (page.owner < kDropped && page.owner != id && heads_[page.owner].state == kOrphan) {
        const Head& orphan = heads_[page.owner];
        statistics_.orphan.event(orphan.wait_class, bucket_of(now - orphan.since), 1);
        statistics_.learned();
        heads_[orphan.parent].came_back = true;
        drop(page.owner);
      }
      if (page.threads > 0 && ReuseStatistics::counts_in_base(page.node)) {
        statistics_.base.event(statistics_.base_class(page.threads), bucket_of(now - page.last_foreign), 1);
        statistics_.learned_pages(1);
      }
      ++page.threads;
      page.last_foreign = now;
      page.owner = id;
    }
    if (inferred) {
      for (const std::uint32_t page : path) pages_[page].owner = id;
    }
    Head& head = heads_[id];
    head.path = path;
    head.state = kRunning;
    head.newest_call = call.call;
    head.run_since = now;
    ++head.thread_calls;
    head.gaps.call_started(call.prompt_kind, static_cast<std::uint32_t>(path.size()),
                           static_cast<std::uint32_t>(path.size() - fork));
    head.run_class = statistics_.run_class(call.prompt_kind, head.gaps.gap_level());
    head_of_call_[call.call] = id;
    statistics_.rebuild_if_due(now);
    for (const std::uint32_t page : path) {
      pages_[page].resident = true;
      ++pages_[page].pins;
    }
    running_[call.call] = path;
  }

  void end(const CallEnd& call, Time now) {
    Head& head = heads_[head_of_call_[call.call]];
    if (head.newest_call != call.call || head.state == kLeft) return;
    head.state = kIdle;
    head.since = now;
    head.survived = 0;
    head.own.clear();
    head.gaps.call_ended(call.stop_reason, call.tool_class, call.output_tokens,
                         std::uint64_t{head.path.size()} * tree_.page_tokens(), now - head.run_since,
                         statistics_.tool_gaps);
    head.tree = &statistics_.gap;
    if (call.session_end) {
      head.tree = &statistics_.ended;
      head.wait_class = statistics_.ended.child(HazardTree::kRoot, 0);
    } else if (call.declared_gap != kNotDeclared) {
      head.tree = &statistics_.declared;
      head.wait_class = statistics_.declared_class(call.tool_class, call.declared_gap);
      head.unit = static_cast<double>(call.declared_gap) + 62'500;
    } else {
      head.wait_class = statistics_.gap_class(call.stop_reason, call.tool_class,
                                              head.inferred ? head.gaps.calls() - 1 : ReuseStatistics::kCallsUnknown);
    }
  }

  void leave(ThreadId thread, Time now) {
    if (head_of_thread_.count(thread) == 0) return;
    Head& head = heads_[head_of_thread_[thread]];
    if (head.state == kIdle) head.tree->censored(head.wait_class, bucket_at(head, now), 1);
    head.state = kLeft;
  }

  void unpin(CallId call) {
    for (const std::uint32_t page : running_[call]) --pages_[page].pins;
    running_.erase(call);
  }

  void cut(Time now) {
    while (true) {
      std::uint32_t used = 0;
      for (const Page& page : pages_) used += page.resident;
      if (used <= capacity_) return;
      const std::uint32_t page = pick(now);
      if (page == kNone) return;
      pages_[page].resident = false;
      ++evicted_;
    }
  }

  bool resident(std::uint32_t page) const { return pages_[page].resident; }
  std::uint64_t evicted() const { return evicted_; }
  std::uint64_t corrected() const { return corrected_; }
  std::uint64_t generation() const { return statistics_.generation(); }

 private:
  enum State { kRunning, kIdle, kOrphan, kLeft, kGone };
  static constexpr std::uint32_t kDropped = kNone - 1;

  struct Page {
    NodeId node = kNone;
    std::uint32_t parent = kNone;
    std::uint32_t owner = kNone;
    std::uint32_t threads = 0;
    Time last_foreign = 0;
    bool resident = false;
    int pins = 0;
  };
  struct Head {
    Pages path;
    State state = kGone;
    Time since = 0;
    Time run_since = 0;
    HazardTree* tree = nullptr;
    HazardTree::ClassId wait_class = 0;
    HazardTree::ClassId run_class = 0;
    double unit = 1;
    CallId newest_call = kNone;
    ThreadId thread = kNone;
    std::uint32_t thread_calls = 0;
    std::uint32_t parent = kNone;
    std::uint32_t survived = 0;
    bool inferred = false;
    bool came_back = false;
    GapHistory gaps;
    std::vector<IndexValue> own;
  };

  std::uint32_t make_head() {
    if (!free_.empty()) {
      const std::uint32_t id = free_.back();
      free_.pop_back();
      heads_[id] = {};
      return id;
    }
    heads_.emplace_back();
    return static_cast<std::uint32_t>(heads_.size() - 1);
  }
  void drop(std::uint32_t id) {
    for (Page& page : pages_) {
      if (page.owner == id) page.owner = kDropped;
    }
    heads_[id].state = kGone;
    free_.push_back(id);
  }
  std::uint32_t infer(const Pages& path) const {
    std::size_t known = 0;
    while (known < path.size() && pages_[path[known]].owner != kNone) ++known;
    if (known < 2) return kNone;
    const std::uint32_t id = pages_[path[known - 1]].owner;
    if (id == kDropped || heads_[id].state == kOrphan || heads_[id].path.size() > known + 1) return kNone;
    return id;
  }
  std::uint32_t bucket_at(const Head& head, Time now) const {
    const Time age = now - head.since;
    if (head.tree == &statistics_.declared) {
      return multiple_bucket_of((static_cast<double>(age) + 62'500) / head.unit);
    }
    return bucket_of(age);
  }
  void gap_ended(std::uint32_t id, Time now) {
    Head& head = heads_[id];
    const std::uint32_t bucket = bucket_at(head, now);
    head.tree->event(head.wait_class, bucket, 1);
    if (head.tree == &statistics_.gap && head.gaps.past()) {
      statistics_.correction.learn(statistics_.gap, head.wait_class, head.gaps.features(), head.survived,
                                   GapCorrection::group_of(bucket), true);
    }
    statistics_.learned();
    head.gaps.gap_ended(now - head.since, statistics_.tool_gaps);
  }
  void count_open_waits(Time now) override {
    for (Head& head : heads_) {
      if (head.state == kGone || head.state == kLeft) continue;
      if (head.state == kOrphan) {
        statistics_.orphan.open(head.wait_class, bucket_of(now - head.since), 1);
        continue;
      }
      statistics_.run.open(head.run_class, bucket_of(now - head.run_since), 1);
      if (head.state != kIdle) continue;
      const std::uint32_t bucket = bucket_at(head, now);
      head.tree->open(head.wait_class, bucket, 1);
      if (head.tree != &statistics_.gap || !head.gaps.past()) continue;
      const std::uint32_t groups = GapCorrection::group_of(bucket);
      if (groups > head.survived) {
        statistics_.correction.learn(statistics_.gap, head.wait_class, head.gaps.features(), head.survived, groups,
                                     false);
        head.survived = groups;
      }
    }
    for (const Page& page : pages_) {
      if (page.threads == 0 || !ReuseStatistics::counts_in_base(page.node)) continue;
      statistics_.base.open(statistics_.base_class(page.threads), bucket_of(now - page.last_foreign), 1);
    }
  }

  IndexValue value(Head& head, Time now) {
    switch (head.state) {
      case kRunning:
        return statistics_.run.index(head.run_class)[bucket_of(now - head.run_since)];
      case kOrphan:
        return statistics_.orphan.index(head.wait_class)[bucket_of(now - head.since)];
      case kIdle:
        break;
      default:
        return 0;
    }
    const std::uint32_t bucket = bucket_at(head, now);
    if (head.tree == &statistics_.declared) {
      return to_index_value(statistics_.declared.table(head.wait_class).index[bucket] / (head.unit * 1e-6));
    }
    const bool own = head.tree == &statistics_.gap && head.gaps.past() && bucket < GapCorrection::kEnd &&
                     (!head.own.empty() || statistics_.correction.active());
    if (!own) return head.tree->index(head.wait_class)[bucket];
    ++corrected_;
    if (head.own.empty()) {
      head.own.resize(GapCorrection::kEnd);
      statistics_.correction.predict(statistics_.gap, head.wait_class,
                                     statistics_.correction.shift(head.gaps.features()), bucket, head.own.data());
    }
    return head.own[bucket];
  }

  std::uint32_t pick(Time now) {
    std::vector<bool> inner(pages_.size(), false);
    for (const Page& page : pages_) {
      if (page.resident && page.parent != kNone) inner[page.parent] = true;
    }
    std::vector<IndexValue> key(pages_.size(), 0);
    std::vector<Time> tie(pages_.size(), 0);
    for (Head& head : heads_) {
      if (head.state == kGone) continue;
      std::size_t there = head.path.size();
      while (there > 0 && !pages_[head.path[there - 1]].resident) --there;
      if (there == 0) continue;
      const std::uint32_t page = head.path[there - 1];
      if (inner[page] || pages_[page].pins > 0) continue;
      key[page] += value(head, now);
      if (head.state != kLeft) tie[page] = std::max(tie[page], head.state == kRunning ? head.run_since : head.since);
    }
    std::uint32_t best = kNone;
    const auto rank = [&](std::uint32_t page) {
      const std::uint32_t depth = tree_.node(pages_[page].node).end_page();
      return std::make_tuple(key[page], tie[page], ~depth, pages_[page].node);
    };
    for (std::uint32_t page = 0; page < pages_.size(); ++page) {
      const Page& p = pages_[page];
      if (!p.resident || inner[page] || p.pins > 0) continue;
      if (p.threads >= 2) {
        key[page] += statistics_.base.index(statistics_.base_class(p.threads))[bucket_of(now - p.last_foreign)];
        tie[page] = std::max(tie[page], p.last_foreign);
      }
      if (best == kNone || rank(page) < rank(best)) best = page;
    }
    return best;
  }

  const PageTree& tree_;
  const std::uint32_t capacity_;
  ReuseStatistics statistics_;
  std::vector<Page> pages_;
  std::vector<Head> heads_;
  std::vector<std::uint32_t> free_;
  std::map<ThreadId, std::uint32_t> head_of_thread_;
  std::map<CallId, std::uint32_t> head_of_call_;
  std::map<CallId, Pages> running_;
  std::uint64_t evicted_ = 0;
  std::uint64_t corrected_ = 0;
};

struct Agreement {
  std::uint64_t evicted = 0;
  std::uint64_t corrected = 0;
  std::uint64_t generations = 0;
};

// Runs the same calls through the policy and the slow model and compares what is resident after every cut.
void compare(Random& random, const Workload& workload, const PageTree& tree, std::uint32_t capacity, bool pinned,
             bool inferred, Agreement& total) {
  PageCache cache(tree, capacity, workload.calls() + 1, PolicyKind::kSaga);
  SlowSaga slow(tree, capacity);
  Time now = 0;
  std::vector<CallId> running;
  std::vector<std::uint32_t> slot_of(workload.calls(), kNone);
  const auto same = [&] {
    for (NodeId node = 0; node < tree.size(); ++node) {
      const Pages path = path_page_numbers(tree, node);
      for (std::uint32_t i = 0; i < tree.node(node).pages; ++i) {
        const bool there = i < cache.residents().nodes[node].pages;
        ASSERT_EQ(there, slow.resident(path[tree.node(node).first_page + i])) << "node " << node << " page " << i;
      }
    }
  };
  const auto finish = [&](std::size_t place) {
    const CallId call = running[place];
    running.erase(running.begin() + static_cast<std::ptrdiff_t>(place));
    CallEnd info{call, workload.stop_reason[call], workload.tool_class[call], tree.prompt_leaf(call)};
    info.output_tokens = workload.output_tokens[call];
    info.session_end = random.below(20) == 0;
    if (random.below(4) == 0) info.declared_gap = random.below(20) * kSecond / 2;
    if (pinned) {
      cache.end(slot_of[call], info, now);
      slow.end(info, now);
      slow.unpin(call);
    } else {
      cache.policy().call_ended(info, now);
      slow.end(info, now);
    }
    cache.trim(now);
    slow.cut(now);
  };
  for (CallId call = 0; call < workload.calls(); ++call) {
    now += random.below(3) == 0 ? 0 : random.below(4'000'000) * (random.below(8) == 0 ? 40 : 1);
    while (!running.empty() && random.below(5) < 3) {
      finish(random.below(running.size()));
      same();
      if (testing::Test::HasFatalFailure()) return;
    }
    if (random.below(30) == 0 && !inferred) {
      const auto thread = static_cast<ThreadId>(random.below(tree.threads()));
      cache.policy().thread_left(thread, now);
      slow.leave(thread, now);
    }
    CallStart info;
    info.call = call;
    info.thread = inferred ? kNone : workload.call_thread[call];
    info.prompt_leaf = info.path_leaf = tree.prompt_leaf(call);
    info.prompt_kind = workload.prompt_kind[call];
    const std::uint32_t pages = tree.path_pages(info.prompt_leaf);
    const std::uint32_t hits = cache.start(call, info, pages, now);
    cache.insert(call, pages - hits);
    slow.start(info, now);
    slot_of[call] = call;
    running.push_back(call);
    if (!pinned) {
      cache.unpin(call);
      slow.unpin(call);
    }
    cache.trim(now);
    slow.cut(now);
    ASSERT_EQ(cache.evicted_total(), slow.evicted());
    same();
    if (testing::Test::HasFatalFailure()) return;
    if (call % 16 == 0) {
      ASSERT_TRUE(cache.verify());
    }
  }
  total.evicted += slow.evicted();
  total.corrected += slow.corrected();
  total.generations += slow.generation();
}

TEST(SagaPolicy, EveryVictimIsThatOfTheSlowModel) {
  Random random(71);
  Agreement total;
  for (int round = 0; round < 120; ++round) {
    Workload workload = test::random_workload(random, {90, 1 + static_cast<std::uint32_t>(random.below(7)), 20, 4});
    for (auto& kind : workload.prompt_kind) kind = static_cast<PromptKind>(random.below(3));
    const PageTree tree = PageTree::for_cache(workload, 4 << random.below(2));
    const auto capacity = static_cast<std::uint32_t>(random.below(tree.distinct_pages() + 2));
    compare(random, workload, tree, capacity, random.below(2) == 0, random.below(3) == 0, total);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  EXPECT_GT(total.evicted, 10000u);
}

// Long enough for tables to be rebuilt often, with one busy thread and some that seldom call: what a thread did before tells
// how long its gaps will be, so the correction counts.
TEST(SagaPolicy, EveryVictimIsThatOfTheSlowModelWhenTablesAreLearned) {
  Random random(72);
  Agreement total;
  for (int round = 0; round < 3; ++round) {
    Workload workload = test::random_workload(random, {1500, 9, 14, 4});
    for (ThreadId& thread : workload.call_thread) thread = thread < 6 ? 0 : thread - 5;
    const PageTree tree = PageTree::for_cache(workload, 4);
    compare(random, workload, tree, static_cast<std::uint32_t>(tree.distinct_pages() / 2), true, round == 2, total);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  EXPECT_GT(total.generations, 30u);
  EXPECT_GT(total.corrected, 1000u);
}

// ---- Literal situations ---------------------------------------------------------------------------------------------------

// Prompts of pages of 512 tokens, one call each but where the thread is the same.
struct Situation {
  explicit Situation(const std::vector<std::pair<ThreadId, std::vector<std::uint64_t>>>& calls) {
    workload.block_tokens = 512;
    for (const auto& [thread, ids] : calls) {
      append_call(workload, thread, static_cast<std::uint32_t>(ids.size()) * 512, 1, ids);
    }
    tree = std::make_unique<PageTree>(PageTree::for_cache(workload, 512));
    cache = std::make_unique<PageCache>(*tree, 1000, static_cast<std::uint32_t>(calls.size()), PolicyKind::kSaga);
  }
  void start(CallId call, Time now) {
    CallStart info;
    info.call = call;
    info.thread = workload.call_thread[call];
    info.prompt_leaf = info.path_leaf = tree->prompt_leaf(call);
    cache->start(call, info, tree->path_pages(info.prompt_leaf), now);
    cache->insert(call, tree->path_pages(info.prompt_leaf) - cache->frontier(call));
  }
  void end(CallId call, Time now, bool session_end = false, Time declared = kNotDeclared) {
    CallEnd info{call, StopReason::kToolUse, ToolClass::kNone, tree->prompt_leaf(call)};
    info.session_end = session_end;
    info.declared_gap = declared;
    cache->end(call, info, now);
  }
  NodeId victim(Time now) { return cache->policy().victim(now).node; }
  Workload workload;
  std::unique_ptr<PageTree> tree;
  std::unique_ptr<PageCache> cache;
};

TEST(SagaPolicy, ColdItIsLeastRecentlyUsed) {
  Situation s({{0, {1, 2}}, {1, {3, 4}}, {2, {5, 6}}});
  for (const CallId call : {1u, 2u, 0u}) s.start(call, 0);
  s.end(1, 1 * kSecond);
  s.end(2, 3 * kSecond);
  s.end(0, 9 * kSecond);
  EXPECT_EQ(s.victim(10 * kSecond), s.tree->prompt_leaf(1));
  EXPECT_EQ(s.cache->evict(2, 10 * kSecond), 2u);
  EXPECT_EQ(s.victim(11 * kSecond), s.tree->prompt_leaf(2));
  // In one bucket the values are equal: the older one goes.
  Situation t({{0, {1}}, {1, {2}}});
  t.start(0, 0);
  t.start(1, 0);
  t.end(1, 100 * kSecond);
  t.end(0, 100 * kSecond + 1);
  EXPECT_EQ(t.victim(200 * kSecond), t.tree->prompt_leaf(1));
}

TEST(SagaPolicy, EndedSessionsGoFirstAndSharedPagesKeepTheirOtherUsers) {
  Situation s({{0, {1, 2, 3}}, {1, {1, 2, 4}}, {2, {8, 9}}});
  for (const CallId call : {0u, 1u, 2u}) s.start(call, 0);
  s.end(2, 1 * kSecond);
  s.end(1, 50 * kSecond, true);
  s.end(0, 50 * kSecond);
  EXPECT_EQ(s.victim(60 * kSecond), s.tree->prompt_leaf(1));
  s.cache->evict(1, 60 * kSecond);
  EXPECT_EQ(s.victim(60 * kSecond), s.tree->prompt_leaf(2));  // 1 and 2 belong to thread 0 as well
}

TEST(SagaPolicy, ThreadsThatLeftGoFirstAndPreemptedOnesLast) {
  Situation s({{0, {1}}, {1, {2}}, {2, {3}}, {3, {4}}});
  for (const CallId call : {0u, 1u, 2u, 3u}) s.start(call, call);
  s.end(0, 1 * kSecond);
  s.end(1, 2 * kSecond);
  s.end(2, 3 * kSecond);
  s.cache->preempt(3, 0);
  s.cache->policy().thread_left(2, 4 * kSecond);
  std::vector<NodeId> order;
  for (int i = 0; i < 4; ++i) {
    order.push_back(s.victim(5 * kSecond));
    s.cache->evict(1, 5 * kSecond);
  }
  const PageTree& tree = *s.tree;
  EXPECT_EQ(order,
            (std::vector<NodeId>{tree.prompt_leaf(2), tree.prompt_leaf(0), tree.prompt_leaf(1), tree.prompt_leaf(3)}));
  EXPECT_TRUE(s.cache->verify());
}

// Threads come back after 2 and after 60 seconds, as declared: at 20 s the one that is overdue goes first.
TEST(SagaPolicy, DeclaredDurationsAreLearned) {
  constexpr Time kGap[2] = {2 * kSecond, 60 * kSecond};
  std::vector<std::pair<ThreadId, std::vector<std::uint64_t>>> calls;
  std::vector<Time> begin;
  Time ready[2] = {0, 0};
  for (int i = 0; i < 2000; ++i) {
    const ThreadId thread = ready[1] <= ready[0] ? 1 : 0;
    calls.push_back({thread, {thread + 1u}});
    begin.push_back(ready[thread]);
    ready[thread] += kGap[thread];
  }
  const auto fast = static_cast<CallId>(calls.size());
  const CallId slow = fast + 1;
  calls.push_back({2, {5}});
  calls.push_back({3, {6}});
  Situation s(calls);
  Time now = 0;
  for (CallId call = 0; call < fast; ++call) {
    now = begin[call];
    s.start(call, now);
    s.end(call, now, false, kGap[calls[call].first]);
  }
  now += 1000 * kSecond;
  s.start(fast, now);
  s.start(slow, now);
  s.end(fast, now, false, kGap[0]);
  s.end(slow, now, false, kGap[1]);
  s.cache->evict(2, now + 1);  // threads 0 and 1, long overdue
  EXPECT_EQ(s.cache->residents().nodes[s.tree->prompt_leaf(0)].pages, 0u);
  EXPECT_EQ(s.victim(now + 1 * kSecond), s.tree->prompt_leaf(slow));
  EXPECT_EQ(s.victim(now + 20 * kSecond), s.tree->prompt_leaf(fast));
  EXPECT_EQ(s.victim(now + 59 * kSecond), s.tree->prompt_leaf(fast));
}

// ---- Whole replays --------------------------------------------------------------------------------------------------------

// Threads with prompts of their own that only grow, and gaps that are told exactly.
struct Agents {
  explicit Agents(std::uint64_t seed, std::uint32_t threads, std::uint32_t calls, bool shared_front) {
    Random random(seed);
    workload.block_tokens = 512;
    std::vector<Time> ready(threads);
    std::vector<std::vector<std::uint64_t>> prompts(threads);
    for (std::uint32_t t = 0; t < threads; ++t) {
      ready[t] = t * kSecond;
      if (shared_front) prompts[t] = {1, 2, 3};
    }
    for (CallId call = 0; call < calls; ++call) {
      const auto t = static_cast<ThreadId>(std::min_element(ready.begin(), ready.end()) - ready.begin());
      for (std::uint64_t n = 1 + random.below(3); n > 0; --n) prompts[t].push_back(1000 * (t + 1) + prompts[t].size());
      append_call(workload, t, static_cast<std::uint32_t>(prompts[t].size()) * 512, 1, prompts[t]);
      workload.stop_reason.back() = StopReason::kToolUse;
      const Time now = ready[t];
      const Time gap = kSecond + random.below(60 * kSecond) * (random.below(4) == 0 ? 8 : 1);
      schedule.call.push_back(call);
      schedule.start.push_back(now);
      schedule.end.push_back(now + kSecond / 2);
      schedule.declared_gap.push_back(gap);
      schedule.session_end.push_back(0);
      ready[t] = now + kSecond / 2 + gap;
    }
  }
  std::uint64_t missed(PolicyKind policy, std::uint32_t capacity, bool told) const {
    CacheSchedule given = schedule;
    if (!told) given.declared_gap.clear();
    const PageTree tree = PageTree::for_cache(workload, 512);
    CacheReplayOptions options;
    options.policy = policy;
    options.capacity_pages = capacity;
    return replay_cache(workload, tree, given, options).missed_pages;
  }
  Workload workload;
  CacheSchedule schedule;
};

TEST(SagaPolicy, WithExactGapsItIsTheOptimum) {
  const Agents agents(73, 24, 2000, false);
  const std::uint32_t capacity = 1000;
  const auto best = static_cast<double>(agents.missed(PolicyKind::kBelady, capacity, true));
  const auto lru = static_cast<double>(agents.missed(PolicyKind::kLru, capacity, true));
  const auto told = static_cast<double>(agents.missed(PolicyKind::kSaga, capacity, true));
  const auto untold = static_cast<double>(agents.missed(PolicyKind::kSaga, capacity, false));
  EXPECT_LE(told, 1.001 * best);
  EXPECT_LT(told, untold);
  EXPECT_LE(untold, 1.01 * lru);
  EXPECT_LT(told, lru);
}

// Hundreds of sessions that begin alike: the bounds in the heap against a rating of every candidate.
TEST(SagaPolicy, TheVictimHasTheSmallestKeyOfAllCandidates) {
  Random random(74);
  Workload workload = test::random_workload(random, {3000, 300, 20, 4});
  const PageTree tree = PageTree::for_cache(workload, 4);
  const auto capacity = static_cast<std::uint32_t>(tree.distinct_pages() / 3);
  PageCache cache(tree, capacity, 3000, PolicyKind::kSaga);
  auto& policy = static_cast<SagaPolicy&>(cache.policy());
  Time now = 0;
  std::uint64_t decisions = 0;
  for (CallId call = 0; call < workload.calls(); ++call) {
    now += random.below(3 * kSecond);
    CallStart info;
    info.call = call;
    info.thread = workload.call_thread[call];
    info.prompt_leaf = info.path_leaf = tree.prompt_leaf(call);
    const std::uint32_t pages = tree.path_pages(info.prompt_leaf);
    cache.insert(call, pages - cache.start(call, info, pages, now));
    cache.end(call, {call, workload.stop_reason[call], workload.tool_class[call], info.prompt_leaf}, now + 1);
    now += random.below(2) * 100;
    while (cache.used() > capacity) {
      const Victim victim = policy.victim(now + 1);
      const IndexValue key = policy.key_of(victim.node, now + 1);
      for (const NodeId leaf : cache.residents().leaves) ASSERT_LE(key, policy.key_of(leaf, now + 1));
      ASSERT_EQ(cache.evict(1, now + 1), 1u);
      ++decisions;
    }
    if (call % 100 == 0) {
      ASSERT_TRUE(cache.verify());
    }
  }
  EXPECT_GT(decisions, 1000u);
}

// What stands in for a call's own table until that one is needed must not be above it, whatever was learned.
TEST(GapCorrection, TheLeastPartIsABoundOfTheOwnTable) {
  Random random(76);
  std::uint64_t corrected = 0;
  std::uint64_t near = 0;
  for (int round = 0; round < 40; ++round) {
    HazardTree gap{HazardTree::Options{}};
    GapCorrection correction;
    GapCorrection::Features features{};
    // Short after one bin of a feature, long after another: something to correct.
    const std::uint32_t feature = static_cast<std::uint32_t>(random.below(GapCorrection::kFeatures));
    const std::uint32_t places[2] = {static_cast<std::uint32_t>(random.below(20)),
                                     static_cast<std::uint32_t>(25 + random.below(40))};
    for (int wait = 0; wait < 1500; ++wait) {
      for (std::uint8_t& bin : features) bin = static_cast<std::uint8_t>(random.below(4));
      const bool longer = random.below(2) == 1;
      features[feature] = longer ? 9 : 3;
      const auto bucket = static_cast<std::uint32_t>(places[longer ? 1 : 0] + random.below(5));
      gap.event(HazardTree::kRoot, bucket, 1);
      correction.learn(gap, HazardTree::kRoot, features, 0, GapCorrection::group_of(bucket), true);
      if (wait % 250 != 249) continue;
      gap.rebuild();
      correction.rebuild(gap);
      const IndexValue* of_class = gap.index(HazardTree::kRoot);
      const GapCorrection::Shift shift = correction.shift(features);
      for (std::uint32_t from = 0; from < GapCorrection::kEnd;
           from += 1 + static_cast<std::uint32_t>(random.below(9))) {
        IndexValue own[GapCorrection::kEnd];
        correction.predict(gap, HazardTree::kRoot, shift, from, own);
        const double part = correction.least_part(shift, from);
        ASSERT_GT(part, 0);
        ASSERT_LT(part, 1);
        for (std::uint32_t k = from; k < GapCorrection::kEnd; ++k) {
          const double bound = part * static_cast<double>(of_class[k]);
          ASSERT_LE(bound, static_cast<double>(own[k])) << round << " " << wait << " " << from << " " << k;
          corrected += own[k] != of_class[k];
          near += bound > 0.3 * static_cast<double>(own[k]);
        }
      }
      ASSERT_TRUE(correction.verify());
    }
  }
  EXPECT_GT(corrected, 10000u);
  EXPECT_GT(near, 10000u);  // it is not idle
}

TEST(SagaPolicy, CachesThatShareStatisticsLearnFromEachOther) {
  const Agents agents(75, 6, 600, true);
  const PageTree tree = PageTree::for_cache(agents.workload, 512);
  ResidentSet residents;
  residents.tree = &tree;
  residents.nodes.resize(tree.size());
  ReuseStatistics shared;
  {
    SagaPolicy first(residents, &shared);
    SagaPolicy second(residents, &shared);
    for (CallId call = 0; call < 600; ++call) {
      SagaPolicy& policy = agents.workload.call_thread[call] % 2 == 0 ? first : second;
      CallStart info;
      info.call = call;
      info.thread = agents.workload.call_thread[call];
      info.prompt_leaf = info.path_leaf = tree.prompt_leaf(call);
      policy.call_started(info, agents.schedule.start[call]);
      policy.call_ended({call, StopReason::kToolUse, ToolClass::kNone, info.prompt_leaf}, agents.schedule.end[call]);
    }
    EXPECT_TRUE(first.verify());
    EXPECT_TRUE(second.verify());
    EXPECT_EQ(&first.statistics(), &second.statistics());
    EXPECT_EQ(first.victim(agents.schedule.end.back()).node, kNone);
  }
  std::uint64_t gaps = 0;
  for (HazardTree::ClassId id = 0; id < shared.gap.size(); ++id) {
    for (std::uint32_t k = 0; k < kBuckets; ++k) gaps += shared.gap.events(id, k);
  }
  EXPECT_EQ(gaps, 600u - 6u);  // every gap but the last of each thread
  EXPECT_GT(shared.generation(), 5u);
}

}  // namespace
}  // namespace saga
