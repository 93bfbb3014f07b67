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

TEST(PageCache, LeasesAndCopiesByHand) {
  Fixture fixture;
  const PageTree tree = PageTree::for_cache(fixture.workload, 16);
  PageCache cache(tree, 12, 2, PolicyKind::kLru, {}, 2);  // slots 0 and 1 for calls, 2 and 3 for leases
  cache.start(0, start_of(tree, 0, 0), 6, 0);
  cache.grow(0, 6, 0);
  cache.end(0, end_of(tree, 0), 1);
  EXPECT_EQ(cache.evictable(), 6u);

  EXPECT_EQ(cache.lease_growth(tree.prompt_leaf(0), 2), 3u);  // nodes count as a whole
  EXPECT_EQ(cache.lease_growth(tree.prompt_leaf(0), 6), 6u);
  EXPECT_EQ(cache.pin(2, tree.prompt_leaf(0), 6), 6u);
  EXPECT_EQ(cache.lease_growth(tree.prompt_leaf(1), 5), 2u);  // the shared three are leased already
  EXPECT_EQ(cache.evictable(), 0u);
  EXPECT_EQ(cache.pinned(), 6u);
  EXPECT_EQ(cache.revocable(), 6u);
  EXPECT_EQ(cache.leased(), 6u);

  // A call that uses the shared pages takes them out of what can be revoked, and gives them back.
  EXPECT_EQ(cache.start(1, start_of(tree, 1, 1), 5, 2), 3u);
  EXPECT_EQ(cache.revocable(), 3u);
  EXPECT_EQ(cache.call_pins(tree.node(tree.prompt_leaf(1)).parent), 1u);
  EXPECT_EQ(cache.grow(1, 2, 2), 2u);
  EXPECT_EQ(cache.pin(3, tree.prompt_leaf(1), 3), 3u);  // the second lease of the shared pages
  EXPECT_EQ(cache.leased(), 6u);
  EXPECT_TRUE(cache.verify());
  cache.unpin(2);
  EXPECT_EQ(cache.leased(), 3u);
  EXPECT_EQ(cache.revocable(), 0u);
  EXPECT_EQ(cache.evictable(), 3u);  // the tail of the first prompt
  cache.end(1, end_of(tree, 1), 3);
  EXPECT_EQ(cache.revocable(), 3u);
  EXPECT_EQ(cache.evictable(), 5u);
  EXPECT_TRUE(cache.verify());

  // A copy of the third prompt arrives; nothing is left of it but pages.
  EXPECT_EQ(cache.pin(0, tree.prompt_leaf(2), 0), 0u);
  EXPECT_EQ(cache.grow(0, 4, 4), 4u);
  EXPECT_EQ(cache.pinned() - cache.revocable(), 4u);
  cache.unpin(0);
  EXPECT_EQ(cache.match(tree.prompt_leaf(2)), 4u);
  EXPECT_EQ(cache.evict(100, 5), 9u);  // all but what is leased
  EXPECT_EQ(cache.match(tree.prompt_leaf(0)), 3u);
  cache.unpin(3);
  EXPECT_EQ(cache.leased(), 0u);
  EXPECT_EQ(cache.pinned(), 0u);
  EXPECT_EQ(cache.evict(100, 6), 3u);
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
  std::uint64_t copied = 0;
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
    constexpr std::uint32_t kLeases = 3;
    PageCache cache(tree, capacity, kSlots + 1, GetParam(), {future.data(), static_cast<std::uint32_t>(future.size())},
                    kLeases);
    const auto lease_slot = [](std::uint32_t lease) { return kSlots + 1 + lease; };  // behind the slot for copies
    std::vector<CallId> running(kSlots, kNone);
    std::vector<CallId> queue;
    for (CallId call = workload.calls(); call-- > 0;) queue.push_back(call);
    Time now = 0;
    while (!queue.empty()) {
      now += random.below(4) * 700'000;
      const auto slot = static_cast<std::uint32_t>(random.below(kSlots));
      if (random.below(6) == 0) {
        const std::uint32_t lease = lease_slot(static_cast<std::uint32_t>(random.below(kLeases)));
        const NodeId leaf = tree.final_leaf(static_cast<CallId>(random.below(workload.calls())));
        if (cache.is_running(lease)) {
          cache.unpin(lease);
        } else if (random.below(2) == 0) {
          const auto limit = static_cast<std::uint32_t>(random.below(tree.path_pages(leaf) + 1));
          const std::uint32_t leased = cache.leased();
          const std::uint32_t growth = cache.lease_growth(leaf, std::min(limit, cache.match(leaf)));
          ASSERT_EQ(cache.pin(lease, leaf, limit), std::min(limit, cache.match(leaf)));
          ASSERT_EQ(cache.leased(), leased + growth);
        } else {
          const std::uint32_t pages = tree.path_pages(leaf) - cache.pin(kSlots, leaf, kNone);
          const std::uint32_t room = cache.free() + cache.evictable();
          ASSERT_EQ(cache.grow(kSlots, pages, now), std::min(pages, room));
          cache.unpin(kSlots);
          copied += std::min(pages, room);
        }
        ASSERT_GE(cache.pinned(), cache.revocable());
        ASSERT_GE(cache.leased(), cache.revocable());
      } else if (running[slot] == kNone) {
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
          for (std::uint32_t lease = 0; lease < kLeases; ++lease) {  // else one call alone might not fit beside them
            if (cache.is_running(lease_slot(lease))) cache.unpin(lease_slot(lease));
          }
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
    for (std::uint32_t lease = 0; lease < kLeases; ++lease) {
      if (cache.is_running(lease_slot(lease))) cache.unpin(lease_slot(lease));
    }
    const std::uint32_t left = cache.used();
    ASSERT_EQ(cache.evict(capacity, now), left);  // nothing stays behind
    ASSERT_EQ(cache.used(), 0u);
    ASSERT_TRUE(cache.verify());
  }
  EXPECT_GT(evicted, 1000u);
  EXPECT_GT(copied, 1000u);
}

// Nothing is learned from copies and leases: a cache in which they come and go between the calls evicts, later, as one
// that never saw them. (Not for lru: there a page that was pinned is recent.)
class PageCacheWithLearningPolicy : public PageCacheWithPolicy {};

TEST_P(PageCacheWithLearningPolicy, QuietPinsTeachNothing) {
  Random random(57 + static_cast<std::uint64_t>(GetParam()));
  std::uint64_t evicted = 0;
  std::uint64_t held = 0;
  for (int round = 0; round < 60; ++round) {
    const Workload workload = test::random_workload(random, {150, 8, 20, 4});
    const PageTree tree = PageTree::for_cluster(workload, 2);
    const auto capacity = static_cast<std::uint32_t>(tree.max_path_nodes() + 24 + random.below(120));
    const bool infer = random.below(3) == 0;
    std::vector<CallId> future(workload.calls());
    for (CallId call = 0; call < workload.calls(); ++call) future[call] = call;
    const FutureRequests requests{future.data(), workload.calls()};
    PageCache plain(tree, capacity, 2, GetParam(), requests, 1);
    PageCache pinned(tree, capacity, 2, GetParam(), requests, 1);
    std::vector<PageCache::Change> plain_changes;
    std::vector<PageCache::Change> pinned_changes;
    plain.report_to(&plain_changes);
    pinned.report_to(&pinned_changes);
    Time now = 0;
    for (CallId call = 0; call < workload.calls(); ++call) {
      now += random.below(4) * 700'000;
      const NodeId leaf = tree.final_leaf(call);
      const ThreadId thread = infer ? kNone : workload.call_thread[call];
      const NodeId other = tree.final_leaf(static_cast<CallId>(random.below(workload.calls())));
      const bool lease = random.below(2) == 0;
      pinned.pin(lease ? 2 : 1, other, kNone);
      held += pinned.frontier(lease ? 2 : 1);
      pinned.unpin(lease ? 2 : 1);
      for (PageCache* cache : {&plain, &pinned}) {
        const std::uint32_t found = cache->start(0, {call, thread, tree.prompt_leaf(call), leaf}, kNone, now);
        cache->grow(0, tree.path_pages(leaf) - found, now);
      }
      now += random.below(4) * 300'000;
      for (PageCache* cache : {&plain, &pinned}) {
        if (cache->frontier(0) == tree.path_pages(leaf)) {
          cache->end(0, {call, workload.stop_reason[call], workload.tool_class[call], leaf}, now);
        } else {
          cache->preempt(0, now);
        }
      }
      ASSERT_EQ(plain_changes.size(), pinned_changes.size());
      for (std::size_t i = 0; i < plain_changes.size(); ++i) {
        ASSERT_EQ(plain_changes[i].stored, pinned_changes[i].stored);
        ASSERT_EQ(plain_changes[i].range.node, pinned_changes[i].range.node);
        ASSERT_EQ(plain_changes[i].range.first, pinned_changes[i].range.first);
        ASSERT_EQ(plain_changes[i].range.count, pinned_changes[i].range.count);
      }
      plain_changes.clear();
      pinned_changes.clear();
    }
    ASSERT_TRUE(pinned.verify());
    evicted += plain.evicted_total();
  }
  EXPECT_GT(evicted, 1000u);
  EXPECT_GT(held, 1000u);
}

// A thread whose tool takes a minute each time; copies of its prompt come every ten seconds. With five gaps known it is
// protected for half a minute, not for the five seconds that copies taken for calls would make of it.
TEST(PageCache, CopiesAreNoGaps) {
  Workload workload;
  workload.block_tokens = 16;
  for (CallId call = 0; call < 7; ++call) append_call(workload, 0, 16 * (2 + call), 1, range(100, 2 + call));
  append_call(workload, 1, 16 * 4, 1, range(500, 4));
  const PageTree tree = PageTree::for_cache(workload, 16);
  PageCache cache(tree, 12, 2, PolicyKind::kTtl);
  constexpr Time kSecond = 1'000'000;
  for (CallId call = 0; call < 7; ++call) {
    const Time now = call * 60 * kSecond;
    const std::uint32_t found = cache.start(0, start_of(tree, call, 0), 100, now);
    cache.grow(0, 2 + call - found, now);
    cache.end(0, end_of(tree, call), now);
    for (Time later = 10; call < 6 && later < 60; later += 10) {
      cache.pin(1, tree.prompt_leaf(call), kNone);
      cache.unpin(1);
    }
  }
  // Another thread's call ends 20 s later with end_turn: not protected at all, though used last.
  const Time now = (6 * 60 + 20) * kSecond;
  cache.start(0, start_of(tree, 7, 1), 100, now);
  ASSERT_EQ(cache.grow(0, 4, now), 4u);
  cache.end(0, {7, StopReason::kEndTurn, ToolClass::kNone, tree.final_leaf(7)}, now);
  EXPECT_EQ(cache.evict(4, now + kSecond), 4u);
  EXPECT_EQ(cache.match(tree.prompt_leaf(6)), 8u);
  EXPECT_EQ(cache.match(tree.prompt_leaf(7)), 0u);
}

// Pages that no thread here has asked for have the worst recency and reuse that there are (of wa-lru's terms S alone
// counts for them as for others); once their thread calls they are pages like any.
TEST(PageCache, CopiesGoFirstUntilTheirThreadCalls) {
  for (const PolicyKind policy : {PolicyKind::kLruPrefix, PolicyKind::kWaLru, PolicyKind::kTtl}) {
    Fixture fixture;
    const PageTree tree = PageTree::for_cache(fixture.workload, 16);
    for (const bool called : {false, true}) {
      PageCache cache(tree, 12, 2, policy);
      cache.pin(1, tree.prompt_leaf(2), kNone);
      ASSERT_EQ(cache.grow(1, 4, 0), 4u);
      cache.unpin(1);
      cache.start(0, start_of(tree, 0, 0), 6, 1);
      cache.grow(0, 6, 1);
      cache.end(0, end_of(tree, 0), 2'000'000);
      if (called) {
        EXPECT_EQ(cache.start(0, start_of(tree, 2, 2), 4, 9'000'000), 4u);
        cache.end(0, end_of(tree, 2), 9'000'000);
      }
      ASSERT_EQ(cache.evict(3, 9'500'000), 3u);
      EXPECT_EQ(cache.match(tree.prompt_leaf(2)), called ? 4u : 1u);
      EXPECT_EQ(cache.match(tree.prompt_leaf(0)), called ? 3u : 6u);
      EXPECT_TRUE(cache.verify());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PageCacheWithPolicy,
                         ::testing::Values(PolicyKind::kLru, PolicyKind::kLruPrefix, PolicyKind::kWaLru,
                                           PolicyKind::kTtl, PolicyKind::kBelady));

INSTANTIATE_TEST_SUITE_P(All, PageCacheWithLearningPolicy,
                         ::testing::Values(PolicyKind::kLruPrefix, PolicyKind::kWaLru, PolicyKind::kTtl,
                                           PolicyKind::kBelady));

}  // namespace
}  // namespace saga
