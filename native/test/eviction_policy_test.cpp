#include "../core/evict/eviction_policy.hpp"

#include <gtest/gtest.h>

#include <list>
#include <map>
#include <memory>
#include <set>

#include "../core/evict/page_cache.hpp"
#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::append_call;
using test::path_page_numbers;
using Pages = std::vector<std::uint32_t>;

// ---- Slow policies: page by page, every score from scratch for every page that goes -------------------------------------

struct Page {
  NodeId node = kNone;
  std::uint32_t parent = kNone;
  std::uint32_t depth = 0;
};

class SlowCache {
 public:
  SlowCache(const PageTree& tree, std::uint32_t capacity)
      : tree_(tree),
        capacity_(capacity),
        pages_(tree.distinct_pages()),
        resident_(tree.distinct_pages(), false),
        pins_(tree.distinct_pages(), 0) {
    for (NodeId node = 0; node < tree.size(); ++node) {
      const Pages path = path_page_numbers(tree, node);
      for (std::uint32_t i = 0; i < path.size(); ++i) {
        if (i >= tree.node(node).first_page) pages_[path[i]] = {node, i == 0 ? kNone : path[i - 1], i};
      }
    }
  }
  virtual ~SlowCache() = default;

  void start(CallId call, ThreadId thread, Time now) {
    now_ = now;
    const Pages path = path_page_numbers(tree_, tree_.prompt_leaf(call));
    started(call, thread, path);
    for (const std::uint32_t page : path) {
      resident_[page] = true;
      ++pins_[page];
    }
    running_[call] = path;
  }
  void unpin(CallId call) {
    const Pages path = running_[call];
    running_.erase(call);
    Pages freed;
    for (std::size_t i = path.size(); i-- > 0;) {
      if (--pins_[path[i]] == 0) freed.push_back(path[i]);
    }
    unpinned(freed);
  }
  void cut() {
    while (true) {
      std::uint32_t used = 0;
      for (const bool there : resident_) used += there;
      if (used <= capacity_) return;
      const std::uint32_t page = pick();
      if (page == kNone) return;
      resident_[page] = false;
      gone(page);
    }
  }
  virtual void ended(CallId, StopReason, ToolClass, Time) {}

  const std::vector<bool>& resident() const { return resident_; }

 protected:
  virtual void started(CallId, ThreadId, const Pages&) {}
  virtual void unpinned(const Pages&) {}
  virtual void gone(std::uint32_t) {}
  virtual std::uint32_t pick() = 0;

  // Unpinned resident pages without a resident page behind them.
  Pages candidates() const {
    std::vector<bool> inner(pages_.size(), false);
    for (std::uint32_t page = 0; page < pages_.size(); ++page) {
      if (resident_[page] && pages_[page].parent != kNone) inner[pages_[page].parent] = true;
    }
    Pages result;
    for (std::uint32_t page = 0; page < pages_.size(); ++page) {
      if (resident_[page] && !inner[page] && pins_[page] == 0) result.push_back(page);
    }
    return result;
  }
  bool deeper(std::uint32_t a, std::uint32_t b) const {
    const NodeId m = pages_[a].node;
    const NodeId n = pages_[b].node;
    return std::make_pair(tree_.node(n).end_page(), m) < std::make_pair(tree_.node(m).end_page(), n);
  }

  const PageTree& tree_;
  const std::uint32_t capacity_;
  Time now_ = 0;
  std::vector<Page> pages_;
  std::vector<bool> resident_;
  std::vector<int> pins_;
  std::map<CallId, Pages> running_;
};

class SlowLru final : public SlowCache {
 public:
  using SlowCache::SlowCache;

 private:
  void unpinned(const Pages& pages) override {
    for (const std::uint32_t page : pages) {
      order_.remove(page);
      order_.push_back(page);
    }
  }
  std::uint32_t pick() override {
    for (const std::uint32_t page : order_) {
      if (pins_[page] == 0) return page;
    }
    return kNone;
  }
  void gone(std::uint32_t page) override { order_.remove(page); }

  std::list<std::uint32_t> order_;
};

class SlowBelady final : public SlowCache {
 public:
  SlowBelady(const PageTree& tree, std::uint32_t capacity, const CacheSchedule& schedule)
      : SlowCache(tree, capacity), uses_(pages_.size()) {
    for (const CallId call : schedule.call) {
      for (const std::uint32_t page : path_page_numbers(tree, tree.prompt_leaf(call))) uses_[page].push_back(call);
    }
  }

 private:
  void started(CallId, ThreadId, const Pages& path) override {
    for (const std::uint32_t page : path) uses_[page].pop_front();
  }
  std::uint32_t pick() override {
    std::uint32_t best = kNone;
    for (const std::uint32_t page : candidates()) {
      if (best == kNone || next(page) > next(best) || (next(page) == next(best) && deeper(page, best))) best = page;
    }
    return best;
  }
  CallId next(std::uint32_t page) const { return uses_[page].empty() ? kNone : uses_[page].front(); }

  std::vector<std::list<CallId>> uses_;  // call numbers are in order of start here
};

// Branches as eviction_policy.hpp and branch_policy.hpp describe them.
class SlowBranches : public SlowCache {
 public:
  using SlowCache::SlowCache;

  void ended(CallId call, StopReason stop, ToolClass tool, Time now) override {
    now_ = now;
    Branch& head = branches_.at(branch_of_call_.at(call));
    if (head.newest != call) return;
    head.running = false;
    head.stop = stop;
    head.tool = tool;
    head.last_use = now;
    became_idle(head);
  }

 protected:
  struct Branch {
    Pages path;
    CallId newest = kNone;
    bool running = true;
    bool superseded = false;
    Time last_use = 0;
    Time deadline = 0;
    StopReason stop = StopReason::kUnknown;
    ToolClass tool = ToolClass::kNone;
  };

  virtual void gap_ended(const Branch&, Time) {}
  virtual void became_idle(Branch&) {}
  // The larger goes first.
  virtual std::uint64_t score(const Branch& branch) const = 0;

  std::uint32_t resident_pages(const Branch& branch) const {
    std::uint32_t pages = 0;
    while (pages < branch.path.size() && resident_[branch.path[pages]]) ++pages;
    return pages;
  }

  // In units of 2^-24.
  std::uint64_t reuse(const Branch& branch) const {
    if (branch.superseded) return 0;
    const std::uint64_t one = 1 << 24;
    std::uint64_t end = one / 2;
    if (branch.running || branch.stop != StopReason::kEndTurn) {
      if (threads_ < 6) {
        end = one / 20;
      } else if (continuations_ > 0) {
        end = std::min(end, threads_ * one / continuations_);
      }
    }
    // The mean growth is kept to 1/256 of a token.
    const std::uint64_t context = branch.path.size() * tree_.page_tokens() * 256;
    const std::uint64_t growth = continuations_ == 0 ? 300 * 256 : growth_ * 256 / continuations_;
    return context == 0 ? 0 : (one - end) * (context * one / (context + growth)) / one;
  }

  std::map<std::uint32_t, Branch> branches_;

 private:
  void started(CallId call, ThreadId thread, const Pages& path) override {
    std::uint32_t id = kNone;
    if (thread != kNone) {
      if (heads_.count(thread) > 0) id = heads_[thread];
    } else {
      std::uint32_t known = 0;
      while (known < path.size() && owner_.count(path[known]) > 0) ++known;
      if (known >= 2) {
        const std::uint32_t owner = owner_[path[known - 1]];
        const auto it = branches_.find(owner);
        if (it != branches_.end() && !it->second.superseded && it->second.path.size() <= known + 1) id = owner;
      }
    }
    if (id == kNone) {
      id = next_id_++;
      ++threads_;
    } else {
      Branch& head = branches_[id];
      ++continuations_;
      if (path.size() > head.path.size()) growth_ += (path.size() - head.path.size()) * tree_.page_tokens();
      if (!head.running) gap_ended(head, now_ - head.last_use);
      const bool contained =
          head.path.size() <= path.size() && std::equal(head.path.begin(), head.path.end(), path.begin());
      if (!contained) {
        const std::uint32_t old = next_id_++;
        if (thread == kNone) {
          for (std::size_t i = 0; i < head.path.size(); ++i) {
            if (i >= path.size() || path[i] != head.path[i]) owner_[head.path[i]] = old;
          }
        }
        Branch branch = head;
        branch.superseded = true;
        branch.running = false;
        branch.newest = kNone;
        branch.deadline = 0;
        branch.last_use = now_;
        if (resident_pages(branch) > 0) branches_[old] = branch;
      }
    }
    if (thread != kNone) heads_[thread] = id;
    if (thread == kNone) {
      for (const std::uint32_t page : path) owner_[page] = id;
    }
    branch_of_call_[call] = id;
    Branch& head = branches_[id];
    head.path = path;
    head.newest = call;
    head.running = true;
    head.last_use = now_;
  }

  void gone(std::uint32_t) override {
    for (auto it = branches_.begin(); it != branches_.end();) {
      it = it->second.superseded && resident_pages(it->second) == 0 ? branches_.erase(it) : std::next(it);
    }
  }

  std::uint32_t pick() override {
    std::uint32_t best = kNone;
    std::uint64_t best_score = 0;
    for (const std::uint32_t page : candidates()) {
      std::uint64_t least = ~std::uint64_t{0};  // a page takes its least evictable branch
      for (const auto& [id, branch] : branches_) {
        if (std::count(branch.path.begin(), branch.path.end(), page) > 0) least = std::min(least, score(branch));
      }
      if (best == kNone || least > best_score || (least == best_score && deeper(page, best))) {
        best = page;
        best_score = least;
      }
    }
    return best;
  }

  std::uint32_t next_id_ = 0;
  std::uint64_t threads_ = 0;
  std::uint64_t continuations_ = 0;
  std::uint64_t growth_ = 0;
  std::map<ThreadId, std::uint32_t> heads_;
  std::map<std::uint32_t, std::uint32_t> owner_;
  std::map<CallId, std::uint32_t> branch_of_call_;
};

class SlowWaLru : public SlowBranches {
 public:
  using SlowBranches::SlowBranches;

 protected:
  std::uint64_t score(const Branch& branch) const override {
    Time longest = 1;
    std::uint64_t most = 1;
    for (const auto& [id, other] : branches_) {
      const std::uint64_t pages = resident_pages(other);
      if (pages > 0) longest = std::max(longest, now_ - other.last_use);
      most = std::max(most, pages);
    }
    const std::uint64_t one = 1 << 24;
    const std::uint64_t idle = (now_ - branch.last_use) * one / longest;
    const std::uint64_t size = resident_pages(branch) * ((one << 16) / most) >> 16;
    return 3 * idle + 5 * (one - reuse(branch)) + 2 * size;
  }
};

class SlowPrefixLru final : public SlowBranches {
 public:
  using SlowBranches::SlowBranches;

 private:
  std::uint64_t score(const Branch& branch) const override {
    return (std::uint64_t{1} << 60) - branch.last_use - (reuse(branch) > (1 << 23) ? 2'000'000 : 0);
  }
};

Time slow_time_to_live(std::vector<Time> gaps) {
  if (gaps.size() > 256) gaps.erase(gaps.begin(), gaps.end() - 256);
  if (gaps.size() < 5) return 2'000'000;
  std::sort(gaps.begin(), gaps.end());
  std::size_t rank = 1;  // nearest rank: the smallest that at least 95 of 100 do not exceed
  while (rank * 100 < gaps.size() * 95) ++rank;
  return std::min<Time>(gaps[rank - 1] / 2, 300'000'000);
}

class SlowTtl final : public SlowBranches {
 public:
  using SlowBranches::SlowBranches;

 private:
  std::vector<Time>& gaps(const Branch& branch) { return gaps_[{branch.stop, branch.tool}]; }
  void gap_ended(const Branch& branch, Time gap) override { gaps(branch).push_back(gap); }
  void became_idle(Branch& branch) override {
    branch.deadline = branch.stop == StopReason::kEndTurn ? 0 : branch.last_use + slow_time_to_live(gaps(branch));
  }
  std::uint64_t score(const Branch& branch) const override {
    const bool kept = branch.running || now_ < branch.deadline;
    return (kept ? 0 : std::uint64_t{1} << 61) + (std::uint64_t{1} << 60) - branch.last_use;
  }

  std::map<std::pair<StopReason, ToolClass>, std::vector<Time>> gaps_;
};

class SlowSagaPaper final : public SlowWaLru {
 public:
  using SlowWaLru::SlowWaLru;

 private:
  std::vector<Time>& gaps(const Branch& branch) { return gaps_[{branch.stop, branch.tool}]; }
  void gap_ended(const Branch& branch, Time gap) override { gaps(branch).push_back(gap); }
  void became_idle(Branch& branch) override {
    branch.deadline =
        branch.last_use + (branch.stop == StopReason::kEndTurn ? 300'000'000 : slow_time_to_live(gaps(branch)));
  }
  std::uint64_t score(const Branch& branch) const override {
    const bool kept = branch.running || now_ < branch.deadline;
    return (kept ? 0 : std::uint64_t{1} << 61) + SlowWaLru::score(branch);
  }

  std::map<std::pair<StopReason, ToolClass>, std::vector<Time>> gaps_;
};

std::unique_ptr<SlowCache> make_slow(PolicyKind kind, const PageTree& tree, std::uint32_t capacity,
                                     const CacheSchedule& schedule) {
  switch (kind) {
    case PolicyKind::kLru:
      return std::make_unique<SlowLru>(tree, capacity);
    case PolicyKind::kLruPrefix:
      return std::make_unique<SlowPrefixLru>(tree, capacity);
    case PolicyKind::kWaLru:
      return std::make_unique<SlowWaLru>(tree, capacity);
    case PolicyKind::kTtl:
      return std::make_unique<SlowTtl>(tree, capacity);
    case PolicyKind::kBelady:
      return std::make_unique<SlowBelady>(tree, capacity, schedule);
    case PolicyKind::kSagaPaper:
      return std::make_unique<SlowSagaPaper>(tree, capacity);
    default:
      break;
  }
  return nullptr;
}

// ---- Both side by side: after every event the same pages must be resident -----------------------------------------------

class SideBySide {
 public:
  SideBySide(PolicyKind kind, const Workload& workload, const PageTree& tree, const CacheSchedule& schedule,
             std::uint32_t capacity, bool pinned, bool infer)
      : workload_(workload),
        tree_(tree),
        schedule_(schedule),
        pinned_(pinned),
        infer_(infer),
        fast_(tree, capacity, workload.calls(), kind, {schedule.call.data(), workload.calls()}),
        slow_(make_slow(kind, tree, capacity, schedule)) {}

  ::testing::AssertionResult run() {
    std::vector<std::uint32_t> open;  // requests whose end is to come
    for (std::uint32_t i = 0; i < schedule_.call.size(); ++i) {
      while (true) {
        auto first = open.end();
        for (auto it = open.begin(); it != open.end(); ++it) {
          if (schedule_.end[*it] > schedule_.start[i]) continue;
          if (first == open.end() || schedule_.end[*it] < schedule_.end[*first]) first = it;
        }
        if (first == open.end()) break;
        const std::uint32_t request = *first;
        open.erase(first);
        end(request);
        if (!same()) return ::testing::AssertionFailure() << "after the end of request " << request;
      }
      start(i);
      open.push_back(i);
      if (!same()) return ::testing::AssertionFailure() << "after the start of request " << i;
      if (!fast_.verify()) return ::testing::AssertionFailure() << "verify after request " << i;
    }
    return ::testing::AssertionSuccess();
  }

  std::uint64_t evicted() const { return fast_.evicted_total(); }

 private:
  void start(std::uint32_t i) {
    const CallId call = schedule_.call[i];
    const ThreadId thread = infer_ ? kNone : workload_.call_thread[call];
    const std::uint32_t pages = tree_.path_pages(tree_.prompt_leaf(call));
    const Time now = schedule_.start[i];
    fast_.start(call, {call, thread, tree_.prompt_leaf(call), tree_.prompt_leaf(call)}, pages, now);
    fast_.insert(call, pages - fast_.frontier(call));
    slow_->start(call, thread, now);
    if (!pinned_) {
      fast_.unpin(call);
      slow_->unpin(call);
    }
    fast_.trim(now);
    slow_->cut();
  }

  void end(std::uint32_t i) {
    const CallId call = schedule_.call[i];
    const Time now = schedule_.end[i];
    const CallEnd info{call, workload_.stop_reason[call], workload_.tool_class[call], tree_.prompt_leaf(call)};
    slow_->ended(call, info.stop_reason, info.tool_class, now);
    if (!pinned_) {
      fast_.policy().call_ended(info, now);
      return;
    }
    fast_.end(call, info, now);
    slow_->unpin(call);
    fast_.trim(now);
    slow_->cut();
  }

  bool same() const {
    for (NodeId node = 0; node < tree_.size(); ++node) {
      for (std::uint32_t i = 0; i < tree_.node(node).pages; ++i) {
        const bool there = i < fast_.residents().nodes[node].pages;
        if (there != slow_->resident()[tree_.node(node).key + i]) return false;
      }
    }
    return true;
  }

  const Workload& workload_;
  const PageTree& tree_;
  const CacheSchedule& schedule_;
  const bool pinned_;
  const bool infer_;
  PageCache fast_;
  std::unique_ptr<SlowCache> slow_;
};

class Policy : public ::testing::TestWithParam<PolicyKind> {};

TEST_P(Policy, DecidesLikeItsSlowModel) {
  Random random(41 + static_cast<std::uint64_t>(GetParam()));
  std::uint64_t evicted = 0;
  for (int round = 0; round < 240; ++round) {
    // Pages of at least 512 tokens: WA-LRU is then exact to the page.
    const std::uint32_t page_blocks = 1 + static_cast<std::uint32_t>(random.below(2));
    const Workload workload =
        test::random_workload(random, {90, 3 + static_cast<std::uint32_t>(random.below(8)), 14, 512});
    const PageTree tree = PageTree::for_cache(workload, 512 * page_blocks);
    if (tree.size() == 0) continue;
    const CacheSchedule schedule = test::random_schedule(random, workload, 2 + random.below(40));
    const auto capacity = static_cast<std::uint32_t>(random.below(1 + tree.distinct_pages() / 2));
    const bool pinned = random.below(3) > 0;
    const bool infer = random.below(3) == 0;
    SideBySide both(GetParam(), workload, tree, schedule, capacity, pinned, infer);
    ASSERT_TRUE(both.run()) << "round " << round << " capacity " << capacity << " pinned " << pinned << " infer "
                            << infer;
    evicted += both.evicted();
  }
  EXPECT_GT(evicted, 20000u);
}

INSTANTIATE_TEST_SUITE_P(All, Policy,
                         ::testing::Values(PolicyKind::kLru, PolicyKind::kLruPrefix, PolicyKind::kWaLru,
                                           PolicyKind::kTtl, PolicyKind::kBelady, PolicyKind::kSagaPaper));

// More than 256 gaps of one class, so that the window slides.
TEST(TimeToLivePolicy, ForgetsOldGaps) {
  Random random(51);
  for (int round = 0; round < 8; ++round) {
    Workload workload = test::random_workload(random, {900, 4, 10, 512});
    for (StopReason& stop : workload.stop_reason) stop = StopReason::kToolUse;
    for (ToolClass& tool : workload.tool_class) tool = ToolClass::kWebApi;
    const PageTree tree = PageTree::for_cache(workload, 512);
    CacheSchedule schedule = test::random_schedule(random, workload, 8);
    Time shift = 0;  // the pace slows down, by odd microseconds, so that every gap in the window counts
    for (std::size_t i = 0; i < schedule.call.size(); ++i) {
      shift += random.below(1 + i * 20'000);
      schedule.start[i] += shift;
      schedule.end[i] += shift;
    }
    SideBySide both(PolicyKind::kTtl, workload, tree, schedule, 20, true, false);
    ASSERT_TRUE(both.run());
  }
}

// ---- Literal cases ------------------------------------------------------------------------------------------------------

// One thread a call; each prompt is one page of its own unless said otherwise.
struct Literal {
  explicit Literal(std::vector<std::pair<ThreadId, std::vector<std::uint64_t>>> calls) {
    workload.block_tokens = 512;
    for (const auto& [thread, ids] : calls) {
      append_call(workload, thread, static_cast<std::uint32_t>(ids.size()) * 512, 1, ids);
    }
  }
  Workload workload;
};

void play(PageCache& cache, CallId call, ThreadId thread, Time start, Time end, StopReason stop, bool over = false) {
  const NodeId leaf = cache.tree().prompt_leaf(call);
  const std::uint32_t pages = cache.tree().path_pages(leaf);
  cache.start(0, {call, thread, leaf, leaf}, pages, start);
  cache.insert(0, pages - cache.frontier(0));
  cache.trim(start);
  cache.end(0, {call, stop, ToolClass::kNone, leaf, over}, end);
  cache.trim(end);
}

std::vector<std::uint32_t> matches(const PageCache& cache) {
  std::vector<std::uint32_t> result;
  for (CallId call = 0; call < cache.tree().calls(); ++call)
    result.push_back(cache.match(cache.tree().prompt_leaf(call)));
  return result;
}

constexpr Time kSecond = 1'000'000;

TEST(LruPolicy, OldestTailFirst) {
  const Literal literal({{0, {1, 2, 3}}, {1, {7, 8}}, {0, {1, 2, 4}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  PageCache cache(tree, 5, 1, PolicyKind::kLru);
  play(cache, 0, 0, 0, 1, StopReason::kToolUse);
  play(cache, 1, 1, 2, 3, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{3, 2, 2}));
  play(cache, 2, 0, 4, 5, StopReason::kToolUse);  // page 3 is the oldest now
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{2, 2, 3}));
}

TEST(TimeToLivePolicy, ProtectsForTwoSecondsAtFirstButNotAfterAnEndOfTurn) {
  for (const bool late : {false, true}) {
    const Literal literal({{0, {1, 2}}, {1, {7, 8}}, {2, {20}}});
    const PageTree tree = PageTree::for_cache(literal.workload, 512);
    PageCache cache(tree, 4, 1, PolicyKind::kTtl);
    play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
    play(cache, 1, 1, kSecond, 2 * kSecond, StopReason::kEndTurn);
    play(cache, 2, 2, late ? 3 * kSecond : 3 * kSecond - 1, 9 * kSecond, StopReason::kToolUse);
    // Younger than two seconds: the other one goes, although it was used later.
    EXPECT_EQ(matches(cache), late ? (std::vector<std::uint32_t>{1, 2, 1}) : (std::vector<std::uint32_t>{2, 1, 1}));
  }
}

TEST(WorkflowAwarePolicy, LargestScoreGoes) {
  // Equally old; thread 0 has the larger context: S decides against it, P_reuse for it.
  // Thread 0: R = 1, P = .95 * 2048/2348 = .8286, S = 1:   .3 + .0857 + .2 = .5857
  // Thread 1: R = 1, P = .95 *  512/812  = .5990, S = .25: .3 + .2005 + .05 = .5505
  const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {2, {20}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  PageCache cache(tree, 5, 1, PolicyKind::kWaLru);
  play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
  play(cache, 1, 1, kSecond, kSecond, StopReason::kToolUse);
  play(cache, 2, 2, 10 * kSecond, 11 * kSecond, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{3, 1, 1}));
}

TEST(WorkflowAwarePolicy, EndOfTurnHalvesTheReuse) {
  // As above, but thread 1 ended its turn: P = .5 * 512/812 = .3153, so .3 + .3424 + .05 = .6924 and it goes.
  const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {2, {20}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  PageCache cache(tree, 5, 1, PolicyKind::kWaLru);
  play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
  play(cache, 1, 1, kSecond, kSecond, StopReason::kEndTurn);
  play(cache, 2, 2, 10 * kSecond, 11 * kSecond, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{4, 0, 1}));
}

TEST(WorkflowAwarePolicy, ASessionThatIsOverHasNoReuse) {
  // As in LargestScoreGoes, but thread 1 was its last call: .3 + .5 + .05 = .85 and it goes.
  const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {2, {20}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  PageCache cache(tree, 5, 1, PolicyKind::kWaLru);
  play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
  play(cache, 1, 1, kSecond, kSecond, StopReason::kToolUse, true);
  play(cache, 2, 2, 10 * kSecond, 11 * kSecond, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{4, 0, 1}));
}

TEST(WorkflowAwarePolicy, AThreadThatLeftHasNoReuseUntilItComesBack) {
  for (const bool back : {false, true}) {
    const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {1, {9}}, {2, {20}}});
    const PageTree tree = PageTree::for_cache(literal.workload, 512);
    PageCache cache(tree, 5, 1, PolicyKind::kWaLru);
    play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
    play(cache, 1, 1, kSecond, kSecond, StopReason::kToolUse);
    cache.policy().thread_left(1, kSecond);
    if (back) play(cache, 2, 1, kSecond, kSecond, StopReason::kToolUse);
    play(cache, 3, 2, 10 * kSecond, 11 * kSecond, StopReason::kToolUse);
    EXPECT_EQ(cache.match(tree.prompt_leaf(0)), back ? 3u : 4u);
    EXPECT_EQ(cache.match(tree.prompt_leaf(1)), back ? 1u : 0u);
    EXPECT_TRUE(cache.verify());
  }
}

TEST(SagaPaperPolicy, ProtectsForFiveMinutesAfterAnEndOfTurnUnlessItWasTheLast) {
  // By score thread 0 would go first (the larger, its turn over); its time to live of 300 s holds it, that of thread 1 (2 s) is over.
  for (const bool late : {false, true}) {
    const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {2, {20}}});
    const PageTree tree = PageTree::for_cache(literal.workload, 512);
    PageCache cache(tree, 5, 1, PolicyKind::kSagaPaper);
    play(cache, 0, 0, 0, kSecond, StopReason::kEndTurn);
    play(cache, 1, 1, kSecond, kSecond, StopReason::kToolUse);
    play(cache, 2, 2, late ? 301 * kSecond : 301 * kSecond - 1, 400 * kSecond, StopReason::kToolUse);
    EXPECT_EQ(matches(cache), late ? (std::vector<std::uint32_t>{3, 1, 1}) : (std::vector<std::uint32_t>{4, 0, 1}));
  }
  const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {2, {20}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  PageCache cache(tree, 5, 1, PolicyKind::kSagaPaper);
  play(cache, 0, 0, 0, kSecond, StopReason::kEndTurn, true);
  play(cache, 1, 1, kSecond, kSecond, StopReason::kToolUse);
  play(cache, 2, 2, 2 * kSecond, 400 * kSecond, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{3, 1, 1}));
}

TEST(SagaPaperPolicy, AmongTheProtectedTheScoreDecides) {
  // Both within their times to live: as in WorkflowAwarePolicy.LargestScoreGoes.
  const Literal literal({{0, {1, 2, 3, 4}}, {1, {9}}, {2, {20}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  PageCache cache(tree, 5, 1, PolicyKind::kSagaPaper);
  play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
  play(cache, 1, 1, kSecond, kSecond, StopReason::kToolUse);
  play(cache, 2, 2, 2 * kSecond, 11 * kSecond, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{3, 1, 1}));
}

TEST(PrefixRecencyPolicy, ReuseIsWorthTwoSeconds) {
  // Thread 0 has P_reuse .95 * 512/812 > .5, thread 1 ended its turn: .5 * 512/812 < .5.
  for (const bool late : {false, true}) {
    const Literal literal({{0, {1}}, {1, {9}}, {2, {20}}});
    const PageTree tree = PageTree::for_cache(literal.workload, 512);
    PageCache cache(tree, 2, 1, PolicyKind::kLruPrefix);
    play(cache, 0, 0, 0, kSecond, StopReason::kToolUse);
    const Time end = late ? 3 * kSecond + 1 : 3 * kSecond - 1;
    play(cache, 1, 1, end, end, StopReason::kEndTurn);
    play(cache, 2, 2, 10 * kSecond, 10 * kSecond, StopReason::kToolUse);
    EXPECT_EQ(matches(cache), late ? (std::vector<std::uint32_t>{0, 1, 1}) : (std::vector<std::uint32_t>{1, 0, 1}));
  }
}

TEST(BeladyPolicy, KnowsWhatStartedOutOfOrder) {
  const Literal literal({{0, {1}}, {1, {9}}, {0, {1}}, {1, {9}}, {2, {20}}});
  const PageTree tree = PageTree::for_cache(literal.workload, 512);
  const std::vector<CallId> future = {0, 1, 2, 3, 4};
  PageCache cache(tree, 2, 1, PolicyKind::kBelady, {future.data(), 5});
  play(cache, 0, 0, 0, 1, StopReason::kToolUse);
  play(cache, 1, 1, 2, 3, StopReason::kToolUse);
  play(cache, 3, 1, 4, 5, StopReason::kToolUse);  // before call 2: block 9 has no use left, block 1 has
  play(cache, 4, 2, 6, 7, StopReason::kToolUse);
  EXPECT_EQ(matches(cache), (std::vector<std::uint32_t>{1, 0, 1, 0, 1}));
  EXPECT_TRUE(cache.verify());
}

}  // namespace
}  // namespace saga
