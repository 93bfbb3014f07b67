#include "../core/sim/cache_replay.hpp"

#include <gtest/gtest.h>

#include <list>
#include <map>
#include <set>

#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::append_call;
using test::path_page_numbers;

constexpr PolicyKind kPolicies[] = {PolicyKind::kLru, PolicyKind::kLruPrefix, PolicyKind::kWaLru,
                                    PolicyKind::kTtl, PolicyKind::kBelady,    PolicyKind::kSaga};
constexpr CacheModel kModels[] = {CacheModel::kAtomic, CacheModel::kPinned};

CacheReplayOptions options_of(PolicyKind policy, CacheModel model, std::uint32_t capacity) {
  CacheReplayOptions options;
  options.policy = policy;
  options.model = model;
  options.capacity_pages = capacity;
  return options;
}

// Prompts of pages of 512 tokens; start and end in seconds.
struct Literal {
  struct Request {
    std::vector<std::uint64_t> ids;
    Time start;
    Time end;
  };
  explicit Literal(const std::vector<Request>& requests) {
    workload.block_tokens = 512;
    for (const Request& request : requests) {
      const auto call = static_cast<CallId>(schedule.call.size());
      append_call(workload, call, static_cast<std::uint32_t>(request.ids.size()) * 512, 1, request.ids);
      schedule.call.push_back(call);
      schedule.start.push_back(request.start * 1'000'000);
      schedule.end.push_back(request.end * 1'000'000);
    }
  }
  CacheReplayResult replay(PolicyKind policy, CacheModel model, std::uint32_t capacity) const {
    const PageTree tree = PageTree::for_cache(workload, 512);
    return replay_cache(workload, tree, schedule, options_of(policy, model, capacity));
  }
  Workload workload;
  CacheSchedule schedule;
};

TEST(CacheReplay, CountsMissesAndCosts) {
  const Literal literal({{{1, 2, 3}, 0, 1}, {{1, 2, 4}, 2, 3}});
  const CacheReplayResult result = literal.replay(PolicyKind::kLru, CacheModel::kPinned, 10);
  EXPECT_EQ(result.requests, 2u);
  EXPECT_EQ(result.requested_pages, 6u);
  EXPECT_EQ(result.missed_pages, 4u);
  EXPECT_EQ(result.evicted_pages, 0u);
  EXPECT_EQ(result.peak_running, 1u);
  double missed = 0;
  for (int token = 0; token < 1536; ++token) missed += 1 + token / 60000.0;
  for (int token = 1024; token < 1536; ++token) missed += 1 + token / 60000.0;
  EXPECT_NEAR(result.missed_cost, missed, 1e-6);
  EXPECT_NEAR(result.requested_cost, 2 * (1536 + 1536 * 1535 / 120000.0), 1e-6);
}

TEST(CacheReplay, RunningRequestsArePinnedAndMayOverflow) {
  // The first runs until 10; two pages of room.
  const Literal literal({{{1, 2}, 0, 10}, {{8, 9}, 1, 2}, {{1, 2}, 3, 4}, {{8, 9}, 20, 21}});
  const CacheReplayResult pinned = literal.replay(PolicyKind::kLru, CacheModel::kPinned, 2);
  EXPECT_EQ(pinned.missed_pages, 6u);  // the third finds the pages of the first
  EXPECT_EQ(pinned.overflows, 1u);
  EXPECT_EQ(pinned.peak_running, 2u);
  const CacheReplayResult atomic = literal.replay(PolicyKind::kLru, CacheModel::kAtomic, 2);
  EXPECT_EQ(atomic.missed_pages, 8u);
  EXPECT_EQ(atomic.overflows, 0u);
  EXPECT_EQ(literal.replay(PolicyKind::kBelady, CacheModel::kAtomic, 2).missed_pages, 6u);
}

TEST(CacheReplay, AnEndAtTheMomentOfAStartComesFirst) {
  const Literal literal({{{1, 2}, 0, 5}, {{3, 4}, 5, 6}, {{1}, 7, 8}});
  const CacheReplayResult result = literal.replay(PolicyKind::kLru, CacheModel::kPinned, 2);
  EXPECT_EQ(result.overflows, 0u);
  EXPECT_EQ(result.missed_pages, 5u);
  EXPECT_EQ(result.peak_running, 1u);
}

TEST(CacheReplay, LimitProgressAndTiming) {
  Random random(61);
  const Workload workload = test::random_workload(random, {1000, 9, 30, 512});
  const PageTree tree = PageTree::for_cache(workload, 512);
  const CacheSchedule schedule = test::random_schedule(random, workload, 20);
  CacheReplayOptions options = options_of(PolicyKind::kLru, CacheModel::kPinned, 40);
  const CacheReplayResult whole = replay_cache(workload, tree, schedule, options);
  EXPECT_EQ(whole.requests, 1000u);
  EXPECT_EQ(whole.cut_ns, 0u);
  EXPECT_GT(whole.cuts, 0u);

  CacheSchedule head = schedule;
  head.call.resize(300);
  head.start.resize(300);
  head.end.resize(300);
  for (const PolicyKind policy : kPolicies) {
    std::atomic<std::uint64_t> progress{0};
    options.policy = policy;
    options.request_limit = 300;
    options.progress = &progress;
    options.now_ns = [] {
      static std::uint64_t ticks = 0;
      return ticks += 7;
    };
    const CacheReplayResult limited = replay_cache(workload, tree, schedule, options);
    EXPECT_EQ(progress.load(), 300u);
    EXPECT_EQ(limited.requests, 300u);
    EXPECT_EQ(limited.cut_ns, limited.cuts * 7);
    // Two readings a start and an end, three where pages go; the ends behind the last start are not played.
    EXPECT_GE(limited.policy_ns, limited.cut_ns * 2 + (limited.requests - limited.cuts) * 7);
    EXPECT_LE(limited.policy_ns, limited.cut_ns + limited.requests * 2 * 7);
    const CacheReplayResult alone = replay_cache(workload, tree, head, options_of(policy, CacheModel::kPinned, 40));
    EXPECT_EQ(limited.missed_pages, alone.missed_pages);  // belady does not look beyond the limit either
    EXPECT_EQ(limited.missed_cost, alone.missed_cost);
  }
}

// ---- LRU by the book ----------------------------------------------------------------------------------------------------

struct Counts {
  std::uint64_t missed = 0;
  std::uint64_t evicted = 0;
};

Counts slow_lru_atomic(const PageTree& tree, const CacheSchedule& schedule, std::uint32_t capacity) {
  Counts counts;
  std::list<std::uint32_t> order;  // front: next to go
  for (const CallId call : schedule.call) {
    const std::vector<std::uint32_t> pages = path_page_numbers(tree, tree.prompt_leaf(call));
    const std::set<std::uint32_t> cached(order.begin(), order.end());
    std::size_t hits = 0;
    while (hits < pages.size() && cached.count(pages[hits]) > 0) ++hits;
    counts.missed += pages.size() - hits;
    for (std::size_t i = pages.size(); i-- > 0;) {
      order.remove(pages[i]);
      order.push_back(pages[i]);
    }
    for (; order.size() > capacity; ++counts.evicted) order.pop_front();
  }
  return counts;
}

TEST(CacheReplay, AtomicLruByTheBook) {
  Random random(62);
  for (int round = 0; round < 150; ++round) {
    const Workload workload = test::random_workload(random, {150, 8, 20, 4});
    const PageTree tree = PageTree::for_cache(workload, 4 << random.below(3));
    const CacheSchedule schedule = test::random_schedule(random, workload, 10);
    const auto capacity = static_cast<std::uint32_t>(random.below(tree.distinct_pages() + 2));
    const Counts slow = slow_lru_atomic(tree, schedule, capacity);
    const CacheReplayResult fast =
        replay_cache(workload, tree, schedule, options_of(PolicyKind::kLru, CacheModel::kAtomic, capacity));
    ASSERT_EQ(fast.missed_pages, slow.missed);
    ASSERT_EQ(fast.evicted_pages, slow.evicted);
  }
}

// ---- Belady against every possible choice -------------------------------------------------------------------------------

// The fewest misses, by trying every set of pages to keep at every cut. Only for tiny inputs.
std::uint64_t fewest_misses(const PageTree& tree, const CacheSchedule& schedule, std::uint32_t capacity, bool pinned) {
  using Set = std::uint32_t;
  std::map<Set, std::uint64_t> best{{0, 0}};  // contents -> misses so far
  std::vector<std::uint32_t> open;
  std::vector<Set> paths;
  for (const CallId call : schedule.call) {
    Set set = 0;
    for (const std::uint32_t page : path_page_numbers(tree, tree.prompt_leaf(call))) set |= Set{1} << page;
    paths.push_back(set);
  }
  const auto cut = [&] {
    Set held = 0;
    for (const std::uint32_t i : open) held |= paths[i];
    std::map<Set, std::uint64_t> after;
    for (const auto& [contents, misses] : best) {
      const auto used = static_cast<std::uint32_t>(__builtin_popcount(contents));
      const auto locked = static_cast<std::uint32_t>(__builtin_popcount(contents & held));
      const std::uint32_t room = std::min(used, std::max(capacity, locked)) - locked;
      const Set loose = contents & ~held;
      for (Set keep = loose;; keep = (keep - 1) & loose) {
        if (static_cast<std::uint32_t>(__builtin_popcount(keep)) == room) {
          const Set left = keep | (contents & held);
          const auto [it, fresh] = after.emplace(left, misses);
          if (!fresh) it->second = std::min(it->second, misses);
        }
        if (keep == 0) break;
      }
    }
    best = after;
  };
  for (std::uint32_t i = 0; i < schedule.call.size(); ++i) {
    while (true) {
      auto first = open.end();
      for (auto it = open.begin(); it != open.end(); ++it) {
        if (schedule.end[*it] > schedule.start[i]) continue;
        if (first == open.end() || schedule.end[*it] < schedule.end[*first]) first = it;
      }
      if (first == open.end()) break;
      open.erase(first);
      cut();
    }
    std::map<Set, std::uint64_t> after;
    for (const auto& [contents, misses] : best) {
      std::uint64_t missed = 0;
      bool leading = true;
      for (const std::uint32_t page : path_page_numbers(tree, tree.prompt_leaf(schedule.call[i]))) {
        leading = leading && (contents >> page & 1) != 0;
        missed += !leading;
      }
      const auto [it, fresh] = after.emplace(contents | paths[i], misses + missed);
      if (!fresh) it->second = std::min(it->second, misses + missed);
    }
    best = after;
    if (pinned) open.push_back(i);
    cut();
  }
  std::uint64_t fewest = ~std::uint64_t{0};
  for (const auto& [contents, misses] : best) fewest = std::min(fewest, misses);
  return fewest;
}

TEST(CacheReplay, BeladyIsTheOptimumOfAllChoices) {
  Random random(63);
  int differs_from_lru = 0;
  for (int round = 0; round < 1500; ++round) {
    Workload workload;
    workload.block_tokens = 4;
    const std::uint64_t calls = 3 + random.below(6);
    for (CallId call = 0; call < calls; ++call) {
      std::vector<std::uint64_t> ids;
      for (std::uint64_t i = 0; i <= random.below(4); ++i) ids.push_back(2 * random.below(2) + 1);
      append_call(workload, static_cast<ThreadId>(random.below(3)), static_cast<std::uint32_t>(ids.size()) * 4, 1, ids);
    }
    const PageTree tree = PageTree::for_cache(workload, 4);
    if (tree.distinct_pages() > 12) continue;
    const CacheSchedule schedule = test::random_schedule(random, workload, 4);
    const auto capacity = 1 + static_cast<std::uint32_t>(random.below(6));
    for (const CacheModel model : kModels) {
      const std::uint64_t want = fewest_misses(tree, schedule, capacity, model == CacheModel::kPinned);
      const auto got = replay_cache(workload, tree, schedule, options_of(PolicyKind::kBelady, model, capacity));
      ASSERT_EQ(got.missed_pages, want) << "round " << round << " capacity " << capacity;
      const auto lru = replay_cache(workload, tree, schedule, options_of(PolicyKind::kLru, model, capacity));
      differs_from_lru += lru.missed_pages != want;
    }
  }
  EXPECT_GT(differs_from_lru, 200);
}

TEST(CacheReplay, NoPolicyBeatsBeladyAndAReplayRepeatsItself) {
  Random random(64);
  std::uint64_t requests = 0;
  std::uint64_t belady_total = 0;
  std::uint64_t lru_total = 0;
  for (int round = 0; round < 150; ++round) {
    const Workload workload = test::random_workload(random, {140, 12, 24, 64});
    const PageTree tree = PageTree::for_cache(workload, 64 << random.below(3));
    const CacheSchedule schedule = test::random_schedule(random, workload, 1 + random.below(30));
    const auto capacity = static_cast<std::uint32_t>(1 + random.below(tree.distinct_pages() + 1));
    for (const CacheModel model : kModels) {
      const auto belady = replay_cache(workload, tree, schedule, options_of(PolicyKind::kBelady, model, capacity));
      belady_total += belady.missed_pages;
      for (const PolicyKind policy : kPolicies) {
        CacheReplayOptions options = options_of(policy, model, capacity);
        options.infer_threads = random.below(2) == 0;
        const auto first = replay_cache(workload, tree, schedule, options);
        const auto second = replay_cache(workload, tree, schedule, options);
        ASSERT_GE(first.missed_pages, belady.missed_pages);
        ASSERT_EQ(first.requested_pages, belady.requested_pages);
        ASSERT_EQ(first.missed_pages, second.missed_pages);
        ASSERT_EQ(first.missed_cost, second.missed_cost);
        ASSERT_EQ(first.evicted_pages, second.evicted_pages);
        ASSERT_EQ(first.decisions, second.decisions);
        requests += first.requests;
        if (policy == PolicyKind::kLru) lru_total += first.missed_pages;
      }
    }
  }
  EXPECT_GT(requests, 100000u);
  EXPECT_LT(belady_total, lru_total);
}

TEST(CacheReplay, EverythingFits) {
  Random random(65);
  const Workload workload = test::random_workload(random, {200, 6, 20, 64});
  const PageTree tree = PageTree::for_cache(workload, 64);
  const CacheSchedule schedule = test::random_schedule(random, workload, 5);
  for (const PolicyKind policy : kPolicies) {
    for (const CacheModel model : kModels) {
      const auto result = replay_cache(workload, tree, schedule,
                                       options_of(policy, model, static_cast<std::uint32_t>(tree.distinct_pages())));
      EXPECT_EQ(result.missed_pages, tree.distinct_pages());  // the compulsory ones
      EXPECT_EQ(result.evicted_pages, 0u);
      EXPECT_EQ(result.decisions, 0u);
    }
  }
}

}  // namespace
}  // namespace saga
