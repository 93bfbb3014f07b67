#include "../core/evict/regret.hpp"

#include <gtest/gtest.h>

#include "../core/evict/page_cache.hpp"
#include "../core/sim/cache_replay.hpp"
#include "evict_test_support.hpp"

namespace saga {
namespace {

struct Step {
  CallId call;
  bool end;
};

// Starts and ends in the order of cache replay.
std::vector<Step> steps_of(const CacheSchedule& schedule) {
  std::vector<Step> steps;
  std::vector<std::uint32_t> open;
  for (std::uint32_t i = 0; i < schedule.call.size(); ++i) {
    while (true) {
      auto first = open.end();
      for (auto it = open.begin(); it != open.end(); ++it) {
        if (schedule.end[*it] > schedule.start[i]) continue;
        if (first == open.end() || schedule.end[*it] < schedule.end[*first]) first = it;
      }
      if (first == open.end()) break;
      steps.push_back({schedule.call[*first], true});
      open.erase(first);
    }
    steps.push_back({schedule.call[i], false});
    open.push_back(i);
  }
  return steps;
}

RegretMeter::Options options_of(std::uint32_t capacity, std::uint32_t window, std::uint32_t warm_up) {
  RegretMeter::Options options;
  options.capacity_pages = capacity;
  options.window = window;
  options.warm_up = warm_up;
  options.every = 0;
  return options;
}

TEST(Regret, AWindowOverEverythingIsTheReplay) {
  Random random(81);
  for (int round = 0; round < 60; ++round) {
    const Workload workload = test::random_workload(random, {200, 8, 20, 4});
    const PageTree tree = PageTree::for_cache(workload, 4);
    const CacheSchedule schedule = test::random_schedule(random, workload, 10);
    CacheReplayOptions options;
    options.capacity_pages = 1 + static_cast<std::uint32_t>(random.below(tree.distinct_pages()));
    options.policy = PolicyKind::kBelady;
    const std::uint64_t best = replay_cache(workload, tree, schedule, options).missed_pages;
    RegretMeter meter(tree, options_of(options.capacity_pages, 200, 0));
    for (const Step& step : steps_of(schedule)) {
      step.end ? meter.call_ended(step.call) : meter.call_started(step.call, 3);
    }
    const RegretMeter::Reading reading = meter.measure();
    ASSERT_EQ(reading.calls, 200u);
    ASSERT_EQ(reading.missed_pages, 600u);
    ASSERT_EQ(reading.optimum_missed, best);
    ASSERT_DOUBLE_EQ(reading.ratio(), 600.0 / static_cast<double>(best));
    ASSERT_TRUE(meter.verify());
  }
}

// A window that slides gives what a meter gives that has only seen the last calls; the warm-up is not counted.
TEST(Regret, TheWindowSlides) {
  Random random(82);
  const Workload workload = test::random_workload(random, {400, 8, 20, 4});
  const PageTree tree = PageTree::for_cache(workload, 4);
  const CacheSchedule schedule = test::random_schedule(random, workload, 10);
  const auto capacity = static_cast<std::uint32_t>(tree.distinct_pages() / 3);
  const std::vector<Step> steps = steps_of(schedule);
  RegretMeter sliding(tree, options_of(capacity, 100, 30));
  RegretMeter last(tree, options_of(capacity, 100, 30));
  std::uint64_t missed = 0;
  for (std::size_t i = 0, starts = 0; i < steps.size(); ++i) {
    const CallId call = steps[i].call;
    if (steps[i].end) {
      sliding.call_ended(call);
      if (starts > 300 && call >= 300) last.call_ended(call);
    } else {
      ++starts;
      sliding.call_started(call, call % 7);
      sliding.call_started(call, 1000);  // preempted, and back again
      if (call >= 300) last.call_started(call, call % 7);
      if (call >= 330) missed += call % 7;
    }
    ASSERT_LE(sliding.calls(), 100u);
  }
  const RegretMeter::Reading a = sliding.measure();
  const RegretMeter::Reading b = last.measure();
  EXPECT_EQ(a.calls, 70u);
  EXPECT_EQ(a.missed_pages, missed);
  EXPECT_EQ(a.optimum_missed, b.optimum_missed);
  EXPECT_TRUE(sliding.verify());
  EXPECT_EQ(sliding.reading().calls, 0u);  // nothing was asked for on the way
}

// Ten prompts of four pages in turn, room for twenty: LRU misses every page, the optimum keeps about half of them.
TEST(Regret, ReadingsComeByThemselves) {
  Workload workload;
  workload.block_tokens = 4;
  for (std::uint64_t call = 0; call < 1000; ++call) {
    const std::uint64_t first = 100 * (call % 10);
    test::append_call(workload, static_cast<ThreadId>(call % 10), 16, 1, {first, first + 1, first + 2, first + 3});
  }
  const PageTree tree = PageTree::for_cache(workload, 4);
  RegretMeter::Options options = options_of(20, 200, 50);
  options.every = 100;
  RegretMeter meter(tree, options);
  PageCache cache(tree, 20, 1, PolicyKind::kLru);
  for (CallId call = 0; call < workload.calls(); ++call) {
    CallStart info;
    info.call = call;
    info.prompt_leaf = info.path_leaf = tree.prompt_leaf(call);
    const std::uint32_t missed = 4 - cache.start(0, info, 4, 0);
    cache.insert(0, missed);
    meter.call_started(call, missed);
    cache.unpin(0);
    meter.call_ended(call);
    cache.trim(0);
    if (call < 99) {
      EXPECT_EQ(meter.reading().calls, 0u);
    } else if (call < 199) {
      EXPECT_EQ(meter.reading().calls, 50u);
    } else {
      EXPECT_EQ(meter.reading().calls, 150u);
      EXPECT_EQ(meter.reading().missed_pages, 600u);
      EXPECT_GT(meter.reading().ratio(), 1.7);
      EXPECT_LT(meter.reading().ratio(), 2.4);
    }
  }
}

}  // namespace
}  // namespace saga
