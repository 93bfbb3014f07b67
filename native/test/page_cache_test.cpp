#include "../core/evict/page_cache.hpp"

#include <gtest/gtest.h>

#include <list>
#include <set>

#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::append_call;
using test::path_page_numbers;

std::vector<std::uint64_t> range(std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> ids(count);
  for (std::uint64_t i = 0; i < count; ++i) ids[i] = first + i;
  return ids;
}

CallStart start_of(const PageTree& tree, CallId call, ThreadId thread) {
  return {call, thread, tree.prompt_leaf(call), tree.final_leaf(call)};
}

CallEnd end_of(const PageTree& tree, CallId call) {
  return {call, StopReason::kToolUse, ToolClass::kNone, tree.final_leaf(call)};
}

// Two prompts of 6 and 5 pages that share 3, and one of 4 on its own.
struct Fixture {
  Fixture() {
    workload.block_tokens = 16;
    append_call(workload, 0, 96, 1, range(100, 6));
    std::vector<std::uint64_t> fork = range(100, 3);
    fork.insert(fork.end(), {900, 901});
    append_call(workload, 1, 80, 1, fork);
    append_call(workload, 2, 64, 1, range(500, 4));
  }
  Workload workload;
};

TEST(PageCache, GrowsPinsAndEvictsTailFirst) {
  Fixture fixture;
  const PageTree tree = PageTree::for_cache(fixture.workload, 16);
  PageCache cache(tree, 8, 3, PolicyKind::kLru);
  std::vector<PageCache::Change> changes;
  cache.report_to(&changes);

  EXPECT_EQ(cache.start(0, start_of(tree, 0, 0), 6, 0), 0u);
  EXPECT_EQ(cache.grow(0, 4, 0), 4u);  // a chunk that ends inside the second node
  EXPECT_EQ(cache.match(tree.prompt_leaf(0)), 4u);
  EXPECT_EQ(cache.match(tree.prompt_leaf(1)), 3u);
  EXPECT_EQ(cache.grow(0, 2, 0), 2u);
  EXPECT_EQ(cache.evictable(), 0u);
  EXPECT_EQ(cache.free(), 2u);

  EXPECT_EQ(cache.start(1, start_of(tree, 1, 1), 5, 1), 3u);
  EXPECT_EQ(cache.grow(1, 2, 1), 2u);
  EXPECT_EQ(cache.used(), 8u);
  EXPECT_EQ(cache.start(2, start_of(tree, 2, 2), 4, 2), 0u);
  EXPECT_EQ(cache.grow(2, 4, 2), 0u);  // everything is pinned
  EXPECT_TRUE(cache.verify());

  cache.end(0, end_of(tree, 0), 3);  // the shared three pages stay pinned
  EXPECT_EQ(cache.evictable(), 3u);
  changes.clear();
  EXPECT_EQ(cache.grow(2, 2, 4), 2u);
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_FALSE(changes[0].stored);
  EXPECT_EQ(changes[0].range.node, tree.prompt_leaf(0));
  EXPECT_EQ(changes[0].range.first, 1u);  // the last two of three
  EXPECT_EQ(changes[0].range.count, 2u);
  EXPECT_TRUE(changes[1].stored);
  EXPECT_EQ(changes[1].range.node, tree.prompt_leaf(2));
  EXPECT_EQ(cache.match(tree.prompt_leaf(0)), 4u);

  EXPECT_EQ(cache.grow(2, 2, 5), 1u);  // one more page could go
  cache.end(1, end_of(tree, 1), 6);
  EXPECT_EQ(cache.evictable(), 5u);
  EXPECT_EQ(cache.evict(100, 7), 5u);
  EXPECT_EQ(cache.used(), 3u);
  EXPECT_EQ(cache.frontier(2), 3u);
  EXPECT_EQ(cache.evicted_total(), 8u);
  EXPECT_TRUE(cache.verify());
}

TEST(PageCache, LimitOfAStartAndPagesFoundOnTheWay) {
  Fixture fixture;
  const PageTree tree = PageTree::for_cache(fixture.workload, 16);
  PageCache cache(tree, 6, 2, PolicyKind::kLru);
  cache.start(0, start_of(tree, 0, 0), 6, 0);
  cache.grow(0, 6, 0);
  cache.end(0, end_of(tree, 0), 1);
  EXPECT_EQ(cache.start(0, start_of(tree, 0, 0), 4, 2), 4u);
  EXPECT_EQ(cache.evictable(), 0u);    // the node in which the frontier lies is pinned as a whole
  EXPECT_EQ(cache.grow(0, 2, 2), 2u);  // they are there: no room taken
  EXPECT_EQ(cache.used(), 6u);
  cache.preempt(0, 3);
  EXPECT_EQ(cache.evictable(), 6u);
  EXPECT_TRUE(cache.verify());
}

TEST(PageCache, AnonymousPagesTakeRoomAndAreNotEvicted) {
  Fixture fixture;
  const PageTree tree = PageTree::for_cache(fixture.workload, 16);
  PageCache cache(tree, 6, 2, PolicyKind::kLru);
  cache.start(0, start_of(tree, 0, 0), 6, 0);
  cache.grow(0, 6, 0);
  EXPECT_FALSE(cache.reserve_anonymous(1, 0));
  cache.end(0, end_of(tree, 0), 1);
  EXPECT_TRUE(cache.reserve_anonymous(2, 1));
  EXPECT_EQ(cache.used(), 6u);
  EXPECT_EQ(cache.match(tree.prompt_leaf(0)), 4u);
  EXPECT_FALSE(cache.reserve_anonymous(5, 1));
  EXPECT_EQ(cache.match(tree.prompt_leaf(0)), 4u);  // a refusal evicts nothing
  EXPECT_EQ(cache.evict(10, 1), 4u);
  EXPECT_EQ(cache.used(), 2u);
  cache.release_anonymous(2);
  EXPECT_EQ(cache.free(), 6u);
  EXPECT_TRUE(cache.verify());
}

TEST(PageCache, InsertGoesBeyondTheCapacityAndTrimRepairs) {
  Fixture fixture;
  const PageTree tree = PageTree::for_cache(fixture.workload, 16);
  PageCache cache(tree, 4, 1, PolicyKind::kLru);
  cache.start(0, start_of(tree, 0, 0), 6, 0);
  cache.insert(0, 6);
  EXPECT_EQ(cache.used(), 6u);
  EXPECT_EQ(cache.free(), 0u);
  cache.trim(0);
  EXPECT_EQ(cache.used(), 6u);
  cache.unpin(0);
  cache.trim(0);
  EXPECT_EQ(cache.used(), 4u);
  EXPECT_TRUE(cache.verify());
}

// The same cache page by page: a set of resident pages, a list of those that no running call has reached the node of.
class SlowLruCache {
 public:
  SlowLruCache(const PageTree& tree, std::uint32_t capacity, std::uint32_t slots)
      : tree_(tree), capacity_(capacity), calls_(slots), pins_(tree.size(), 0) {
    node_of_page_.resize(tree.distinct_pages());
    for (NodeId node = 0; node < tree.size(); ++node) {
      for (std::uint32_t i = 0; i < tree.node(node).pages; ++i) node_of_page_[tree.node(node).key + i] = node;
    }
  }

  std::uint32_t match(NodeId leaf) const {
    std::uint32_t pages = 0;
    for (const std::uint32_t page : path_page_numbers(tree_, leaf)) {
      if (resident_.count(page) == 0) break;
      ++pages;
    }
    return pages;
  }

  std::uint32_t start(std::uint32_t slot, NodeId leaf, std::uint32_t limit) {
    Call& call = calls_[slot];
    call.path = path_page_numbers(tree_, leaf);
    call.frontier = 0;
    const std::uint32_t found = std::min(match(leaf), limit);
    while (call.frontier < found) step(call);
    return found;
  }

  std::uint32_t grow(std::uint32_t slot, std::uint32_t pages) {
    Call& call = calls_[slot];
    for (std::uint32_t grown = 0; grown < pages; ++grown) {
      const std::uint32_t page = call.path[call.frontier];
      if (resident_.count(page) == 0) {
        if (used() == capacity_ && evict(1) == 0) return grown;
        resident_.insert(page);
        free_.push_back(page);  // reached at once, by step()
      }
      step(call);
    }
    return pages;
  }

  void let_go(std::uint32_t slot) {
    Call& call = calls_[slot];
    std::vector<NodeId> nodes;
    for (std::uint32_t i = 0; i < call.frontier; ++i) {
      const NodeId node = node_of_page_[call.path[i]];
      if (nodes.empty() || nodes.back() != node) nodes.push_back(node);
    }
    for (std::size_t i = nodes.size(); i-- > 0;) {
      if (--pins_[nodes[i]] > 0) continue;
      for (std::uint32_t p = tree_.node(nodes[i]).pages; p-- > 0;) {
        const auto page = static_cast<std::uint32_t>(tree_.node(nodes[i]).key) + p;
        if (resident_.count(page) > 0) free_.push_back(page);
      }
    }
    call = {};
  }

  std::uint32_t evict(std::uint32_t pages) {
    std::uint32_t gone = 0;
    for (; gone < pages && !free_.empty(); ++gone) {
      resident_.erase(free_.front());
      free_.pop_front();
    }
    return gone;
  }

  bool reserve(std::uint32_t pages) {
    if (used() + pages > capacity_ + free_.size()) return false;
    while (used() + pages > capacity_) evict(1);
    anonymous_ += pages;
    return true;
  }

  std::uint32_t used() const { return static_cast<std::uint32_t>(resident_.size()) + anonymous_; }
  std::uint32_t evictable() const { return static_cast<std::uint32_t>(free_.size()); }
  std::uint32_t frontier(std::uint32_t slot) const { return calls_[slot].frontier; }
  const std::set<std::uint32_t>& resident() const { return resident_; }
  void release(std::uint32_t pages) { anonymous_ -= pages; }

 private:
  struct Call {
    std::vector<std::uint32_t> path;
    std::uint32_t frontier = 0;
  };

  // Moves the frontier over a resident page; the first page of a node pins all of it.
  void step(Call& call) {
    const NodeId node = node_of_page_[call.path[call.frontier]];
    const bool enters = call.frontier == 0 || node_of_page_[call.path[call.frontier - 1]] != node;
    if (enters) ++pins_[node];
    free_.remove_if([&](std::uint32_t page) { return node_of_page_[page] == node; });
    ++call.frontier;
  }

  const PageTree& tree_;
  const std::uint32_t capacity_;
  std::uint32_t anonymous_ = 0;
  std::vector<Call> calls_;
  std::vector<int> pins_;
  std::vector<NodeId> node_of_page_;
  std::set<std::uint32_t> resident_;
  std::list<std::uint32_t> free_;
};

TEST(PageCache, AgreesWithASlowCachePageByPage) {
  Random random(21);
  std::uint64_t evicted = 0;
  std::uint64_t refused = 0;
  for (int round = 0; round < 150; ++round) {
    const Workload workload = test::random_workload(random, {50, 6, 20, 4});
    const PageTree tree = PageTree::for_cluster(workload, 2);
    const auto capacity = static_cast<std::uint32_t>(20 + random.below(tree.distinct_pages() / 2));
    constexpr std::uint32_t kSlots = 4;
    PageCache fast(tree, capacity, kSlots, PolicyKind::kLru);
    SlowLruCache slow(tree, capacity, kSlots);
    std::vector<PageCache::Change> changes;
    fast.report_to(&changes);
    std::set<std::uint32_t> reported;  // what a follower of the changes believes to be resident
    std::vector<CallId> running(kSlots, kNone);
    CallId next = 0;
    for (int step = 0; step < 500; ++step) {
      const auto slot = static_cast<std::uint32_t>(random.below(kSlots));
      const Time now = static_cast<Time>(step);
      const std::uint64_t what = random.below(12);
      if (running[slot] == kNone) {
        const CallId call = next++ % workload.calls();
        if (std::count(running.begin(), running.end(), call) > 0) continue;
        running[slot] = call;
        ASSERT_EQ(fast.match(tree.prompt_leaf(call)), slow.match(tree.prompt_leaf(call)));
        const std::uint32_t limit = random.below(4) == 0 ? static_cast<std::uint32_t>(random.below(8)) : 1000;
        ASSERT_EQ(fast.start(slot, start_of(tree, call, workload.call_thread[call]), limit, now),
                  slow.start(slot, tree.final_leaf(call), limit));
      } else if (what < 7) {
        const std::uint32_t left = tree.path_pages(tree.final_leaf(running[slot])) - fast.frontier(slot);
        const auto pages = static_cast<std::uint32_t>(random.below(left + 1));
        const std::uint32_t granted = fast.grow(slot, pages, now);
        ASSERT_EQ(granted, slow.grow(slot, pages));
        refused += granted < pages;
      } else if (what < 9) {
        fast.end(slot, end_of(tree, running[slot]), now);
        slow.let_go(slot);
        running[slot] = kNone;
      } else if (what == 9) {
        fast.preempt(slot, now);
        slow.let_go(slot);
        next = running[slot];  // it comes back soon
        running[slot] = kNone;
      } else if (what == 10) {
        const auto pages = static_cast<std::uint32_t>(random.below(4));
        const bool granted = fast.reserve_anonymous(pages, now);
        ASSERT_EQ(granted, slow.reserve(pages));
        if (granted && random.below(4) > 0) {
          fast.release_anonymous(pages);
          slow.release(pages);
        }
      } else if (random.below(8) == 0) {
        const auto pages = static_cast<std::uint32_t>(random.below(20));
        ASSERT_EQ(fast.evict(pages, now), slow.evict(pages));
      }
      ASSERT_EQ(fast.used(), slow.used());
      ASSERT_EQ(fast.evictable(), slow.evictable());
      ASSERT_EQ(fast.frontier(slot), slow.frontier(slot));
      for (const PageCache::Change& change : changes) {
        for (std::uint32_t i = 0; i < change.range.count; ++i) {
          const auto page = static_cast<std::uint32_t>(tree.node(change.range.node).key) + change.range.first + i;
          ASSERT_EQ(change.stored, reported.count(page) == 0);  // stored once, evicted once
          change.stored ? (void)reported.insert(page) : (void)reported.erase(page);
        }
      }
      changes.clear();
      ASSERT_EQ(reported, slow.resident());
      ASSERT_TRUE(step % 10 != 0 || fast.verify());
    }
    ASSERT_TRUE(fast.verify());
    evicted += fast.evicted_total();
  }
  EXPECT_GT(evicted, 10000u);
  EXPECT_GT(refused, 100u);
}

// Every policy under the life of a simulated worker: chunks, answers, preemption, restarts, overlapping calls of a thread.
class PageCacheWithPolicy : public ::testing::TestWithParam<PolicyKind> {};

TEST_P(PageCacheWithPolicy, StaysConsistent) {
  Random random(31 + static_cast<std::uint64_t>(GetParam()));
  std::uint64_t evicted = 0;
  for (int round = 0; round < 60; ++round) {
    const Workload workload = test::random_workload(random, {120, 8, 20, 4});
    const PageTree tree = PageTree::for_cluster(workload, 2);
    const auto capacity = static_cast<std::uint32_t>(tree.max_path_nodes() + 24 + random.below(120));
    constexpr std::uint32_t kSlots = 5;
    const bool infer = random.below(3) == 0;
    std::vector<CallId> future;
    for (CallId call = 0; call < workload.calls(); ++call) {
      if (random.below(5) > 0) future.push_back(call);  // belady is not told of all
    }
    PageCache cache(tree, capacity, kSlots, GetParam(), {future.data(), static_cast<std::uint32_t>(future.size())});
    std::vector<CallId> running(kSlots, kNone);
    std::vector<CallId> queue;
    for (CallId call = workload.calls(); call-- > 0;) queue.push_back(call);
    Time now = 0;
    while (!queue.empty()) {
      now += random.below(4) * 700'000;
      const auto slot = static_cast<std::uint32_t>(random.below(kSlots));
      if (running[slot] == kNone) {
        running[slot] = queue.back();
        queue.pop_back();
        const ThreadId thread = infer ? kNone : workload.call_thread[running[slot]];
        cache.start(slot, start_of(tree, running[slot], thread), 1000, now);
      } else {
        const std::uint32_t left = tree.path_pages(tree.final_leaf(running[slot])) - cache.frontier(slot);
        const std::uint32_t chunk = std::min<std::uint32_t>(left, 1 + static_cast<std::uint32_t>(random.below(12)));
        const std::uint32_t new_room = cache.free() + cache.evictable();
        const std::uint32_t there = cache.match(tree.final_leaf(running[slot]));
        const std::uint32_t granted = cache.grow(slot, chunk, now);
        // In full exactly when the new pages fit into what is free or evictable. Those found on the way are evictable only
        // until they are reached.
        if (there <= cache.frontier(slot) - granted) {
          ASSERT_EQ(granted, std::min(chunk, new_room));
        }
        if (granted < chunk) {
          cache.preempt(slot, now);
          queue.push_back(running[slot]);
          if (queue.size() > 1 && random.below(2) == 0) std::swap(queue.back(), queue[queue.size() - 2]);
          running[slot] = kNone;
        } else if (granted == left) {
          cache.end(slot,
                    {running[slot], workload.stop_reason[running[slot]], workload.tool_class[running[slot]],
                     tree.final_leaf(running[slot])},
                    now);
          running[slot] = kNone;
        }
      }
      ASSERT_LE(cache.used(), capacity);
      ASSERT_TRUE(cache.verify());
    }
    evicted += cache.evicted_total();
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
      if (running[slot] != kNone) cache.preempt(slot, now);
    }
    const std::uint32_t left = cache.used();
    ASSERT_EQ(cache.evict(capacity, now), left);  // nothing stays behind
    ASSERT_EQ(cache.used(), 0u);
    ASSERT_TRUE(cache.verify());
  }
  EXPECT_GT(evicted, 1000u);
}

INSTANTIATE_TEST_SUITE_P(All, PageCacheWithPolicy,
                         ::testing::Values(PolicyKind::kLru, PolicyKind::kLruPrefix, PolicyKind::kWaLru,
                                           PolicyKind::kTtl, PolicyKind::kBelady));

}  // namespace
}  // namespace saga
