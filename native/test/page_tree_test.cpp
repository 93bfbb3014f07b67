#include "../core/evict/page_tree.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

#include "evict_test_support.hpp"

namespace saga {
namespace {

using test::append_call;
using test::path_page_numbers;
using Ids = std::vector<std::uint64_t>;

Ids range(std::uint64_t first, std::uint64_t count) {
  Ids ids(count);
  for (std::uint64_t i = 0; i < count; ++i) ids[i] = first + i;
  return ids;
}

Ids join(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// (first_page, pages) of the nodes on a path.
std::vector<std::pair<std::uint32_t, std::uint32_t>> runs(const PageTree& tree, NodeId leaf) {
  std::vector<NodeId> nodes(tree.max_path_nodes());
  nodes.resize(tree.path(leaf, nodes.data()));
  std::vector<std::pair<std::uint32_t, std::uint32_t>> result;
  for (const NodeId node : nodes) result.push_back({tree.node(node).first_page, tree.node(node).pages});
  return result;
}

using Runs = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

TEST(PageTree, SplitsWhereCallsEndAndFork) {
  Workload workload;
  workload.block_tokens = 16;
  append_call(workload, 0, 160, 1, range(100, 10));
  append_call(workload, 0, 96, 1, range(100, 6));                        // ends inside
  append_call(workload, 1, 128, 1, join(range(100, 3), range(500, 5)));  // forks off
  append_call(workload, 2, 5, 1, {});                                    // no block at all
  const PageTree tree = PageTree::for_cache(workload, 16);
  ASSERT_TRUE(tree.verify());
  EXPECT_EQ(tree.size(), 4u);
  EXPECT_EQ(tree.distinct_pages(), 15u);
  EXPECT_EQ(tree.max_path_nodes(), 3u);
  EXPECT_EQ(tree.threads(), 3u);
  EXPECT_EQ(runs(tree, tree.prompt_leaf(0)), (Runs{{0, 3}, {3, 3}, {6, 4}}));
  EXPECT_EQ(runs(tree, tree.prompt_leaf(1)), (Runs{{0, 3}, {3, 3}}));
  EXPECT_EQ(runs(tree, tree.prompt_leaf(2)), (Runs{{0, 3}, {3, 5}}));
  EXPECT_EQ(tree.prompt_leaf(3), kNone);
  EXPECT_EQ(tree.path_pages(kNone), 0u);
  EXPECT_EQ(tree.path_pages(tree.prompt_leaf(2)), 8u);

  const NodeId fork = tree.common_ancestor(tree.prompt_leaf(0), tree.prompt_leaf(2));
  EXPECT_EQ(tree.path_pages(fork), 3u);
  EXPECT_TRUE(tree.on_path(tree.prompt_leaf(1), tree.prompt_leaf(0)));
  EXPECT_FALSE(tree.on_path(tree.prompt_leaf(0), tree.prompt_leaf(1)));
  EXPECT_TRUE(tree.on_path(kNone, tree.prompt_leaf(2)));
  EXPECT_EQ(tree.common_ancestor(kNone, tree.prompt_leaf(0)), kNone);
}

TEST(PageTree, EqualIdsAreEqualPagesOnlyAfterEqualPrefixes) {
  Workload workload;
  workload.block_tokens = 16;
  append_call(workload, 0, 64, 1, {1, 7, 8, 9});
  append_call(workload, 1, 64, 1, {2, 7, 8, 9});
  const PageTree tree = PageTree::for_cache(workload, 16);
  EXPECT_EQ(tree.distinct_pages(), 8u);
  EXPECT_EQ(tree.common_ancestor(tree.prompt_leaf(0), tree.prompt_leaf(1)), kNone);
  std::set<BlockHash> hashes;
  for (NodeId node = 0; node < tree.size(); ++node) {
    for (std::uint32_t i = 0; i < tree.node(node).pages; ++i) hashes.insert(tree.page_hash(node, i));
  }
  EXPECT_EQ(hashes.size(), 8u);
}

TEST(PageTree, PagesOfSeveralBlocksForkAtTheLastSharedWholePage) {
  Workload workload;
  workload.block_tokens = 16;
  append_call(workload, 0, 160, 1, range(100, 10));                      // 2 pages of 4 blocks, 2 blocks over
  append_call(workload, 1, 160, 1, join(range(100, 6), range(700, 4)));  // leaves in the middle of page 1
  const PageTree tree = PageTree::for_cache(workload, 64);
  ASSERT_TRUE(tree.verify());
  EXPECT_EQ(runs(tree, tree.prompt_leaf(0)), (Runs{{0, 1}, {1, 1}}));
  EXPECT_EQ(runs(tree, tree.prompt_leaf(1)), (Runs{{0, 1}, {1, 1}}));
  EXPECT_EQ(tree.distinct_pages(), 3u);
}

TEST(PageTree, BlocksOfSeveralPages) {
  Workload workload;
  workload.block_tokens = 64;
  append_call(workload, 0, 150, 1, range(10, 3));  // the last block is partial: 22 tokens, 2 pages begun
  append_call(workload, 1, 192, 1, range(10, 3));
  const PageTree cache = PageTree::for_cache(workload, 16);
  ASSERT_TRUE(cache.verify());
  EXPECT_EQ(cache.path_pages(cache.prompt_leaf(0)), 10u);
  EXPECT_EQ(cache.path_pages(cache.prompt_leaf(1)), 12u);
  EXPECT_EQ(cache.distinct_pages(), 12u);
  const PageTree cluster = PageTree::for_cluster(workload, 16);
  EXPECT_EQ(cluster.path_pages(cluster.prompt_leaf(0)), 9u);
  EXPECT_TRUE(cluster.on_path(cluster.prompt_leaf(0), cluster.prompt_leaf(1)));
}

TEST(PageTree, TheNextCallOfAThreadContinuesTailAndAnswer) {
  Workload workload;
  workload.block_tokens = 16;
  append_call(workload, 0, 40, 30, range(100, 2));   // 2 pages, then up to token 69: 4 pages
  append_call(workload, 0, 100, 40, range(100, 6));  // continues it: has its blocks and 70 tokens
  append_call(workload, 0, 60, 10, range(100, 3));   // shorter than 140: nobody continues the second
  append_call(workload, 1, 100, 33, range(100, 6));  // same blocks, another thread
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ASSERT_TRUE(tree.verify());
  EXPECT_EQ(tree.path_pages(tree.prompt_leaf(0)), 2u);
  EXPECT_EQ(tree.path_pages(tree.final_leaf(0)), 4u);  // 69 tokens have KV
  EXPECT_TRUE(tree.on_path(tree.final_leaf(0), tree.prompt_leaf(1)));
  EXPECT_TRUE(tree.on_path(tree.final_leaf(0), tree.prompt_leaf(3)));  // named by the ids of the second call
  EXPECT_EQ(tree.path_pages(tree.prompt_leaf(1)), 6u);
  EXPECT_EQ(tree.prompt_leaf(1), tree.prompt_leaf(3));
  EXPECT_EQ(tree.path_pages(tree.final_leaf(1)), 8u);                                            // 139 tokens
  EXPECT_EQ(tree.path_pages(tree.final_leaf(3)), 8u);                                            // 132 tokens
  EXPECT_EQ(tree.common_ancestor(tree.final_leaf(1), tree.final_leaf(3)), tree.prompt_leaf(1));  // private answers
}

TEST(PageTree, AnAnswerOfOneTokenLeavesNoPage) {
  Workload workload;
  workload.block_tokens = 16;
  append_call(workload, kNone, 32, 1, range(1, 2));
  const PageTree tree = PageTree::for_cluster(workload, 16);
  EXPECT_EQ(tree.final_leaf(0), tree.prompt_leaf(0));
  EXPECT_EQ(tree.threads(), 0u);
}

TEST(PageTree, EmptyWorkload) {
  Workload workload;
  workload.call_first_run = {0};
  const PageTree tree = PageTree::for_cluster(workload, 16);
  EXPECT_TRUE(tree.verify());
  EXPECT_EQ(tree.size(), 0u);
}

// Gives every page a number from its whole content, one token or block after the other.
class SlowPages {
 public:
  template <typename Content>
  std::vector<int> number(const std::vector<Content>& content, std::size_t per_page) {
    std::vector<int> result;
    int node = -1;
    for (std::size_t i = 0; i < content.size(); ++i) {
      const auto key = std::make_tuple(node, std::uint64_t{content[i].first}, std::uint64_t{content[i].second});
      node = trie_.emplace(key, static_cast<int>(trie_.size())).first->second;
      if ((i + 1) % per_page == 0) result.push_back(node);
    }
    return result;
  }

 private:
  std::map<std::tuple<int, std::uint64_t, std::uint64_t>, int> trie_;
};

using Content = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

Ids blocks_of(const Workload& workload, CallId call) {
  Ids ids;
  for (std::uint32_t r = workload.call_first_run[call]; r < workload.call_first_run[call + 1]; ++r) {
    for (std::uint32_t i = 0; i < workload.run_length[r]; ++i) ids.push_back(workload.run_first_id[r] + i);
  }
  return ids;
}

// Both name the same pages: the same slow number exactly where the tree has the same page.
class Naming {
 public:
  ::testing::AssertionResult same(const std::vector<int>& slow, const std::vector<std::uint32_t>& fast) {
    if (slow.size() != fast.size()) {
      return ::testing::AssertionFailure() << slow.size() << " pages expected, the tree has " << fast.size();
    }
    for (std::size_t i = 0; i < slow.size(); ++i) {
      const auto there = slow_to_fast_.emplace(slow[i], fast[i]).first->second;
      const auto back = fast_to_slow_.emplace(fast[i], slow[i]).first->second;
      if (there != fast[i] || back != slow[i]) return ::testing::AssertionFailure() << "page " << i << " differs";
    }
    return ::testing::AssertionSuccess();
  }
  std::size_t distinct() const { return slow_to_fast_.size(); }

 private:
  std::map<int, std::uint32_t> slow_to_fast_;
  std::map<std::uint32_t, int> fast_to_slow_;
};

TEST(PageTree, CacheModeAgreesWithATrieOfBlocks) {
  Random random(11);
  for (int round = 0; round < 400; ++round) {
    const std::uint32_t page_blocks = 1 + static_cast<std::uint32_t>(random.below(4));
    const Workload workload = test::random_workload(random, {80, 7, 30, 4});
    const PageTree tree = PageTree::for_cache(workload, 4 * page_blocks);
    ASSERT_TRUE(tree.verify());
    SlowPages slow;
    Naming naming;
    std::set<NodeId> ends;
    for (CallId call = 0; call < workload.calls(); ++call) {
      Content content;
      for (const std::uint64_t id : blocks_of(workload, call)) content.push_back({id, 0});
      ASSERT_TRUE(naming.same(slow.number(content, page_blocks), path_page_numbers(tree, tree.prompt_leaf(call))));
      ASSERT_EQ(tree.final_leaf(call), tree.prompt_leaf(call));
      ends.insert(tree.prompt_leaf(call));
    }
    ASSERT_EQ(naming.distinct(), tree.distinct_pages());
    // Compressed: a node that no call ends at has a fork below it.
    std::vector<int> children(tree.size(), 0);
    for (NodeId node = 0; node < tree.size(); ++node) {
      if (tree.node(node).parent != kNone) ++children[tree.node(node).parent];
    }
    for (NodeId node = 0; node < tree.size(); ++node) {
      ASSERT_TRUE(ends.count(node) > 0 || children[node] > 1) << node;
    }
  }
}

// Every token of prompt and answer of a call, by what it is: (block id, offset) or (2^40 + call, position) where private.
std::vector<Content> token_contents(const Workload& workload) {
  std::vector<Content> contents(workload.calls());
  std::map<ThreadId, CallId> next_of_thread;
  for (CallId call = workload.calls(); call-- > 0;) {
    const Ids ids = blocks_of(workload, call);
    const std::size_t prompt = workload.prompt_tokens[call];
    const std::size_t tokens = prompt + workload.output_tokens[call];
    const auto next = next_of_thread.find(workload.call_thread[call]);
    bool continued = next != next_of_thread.end() && workload.prompt_tokens[next->second] >= tokens;
    if (continued) {
      const Ids later = blocks_of(workload, next->second);
      continued = later.size() >= ids.size() && std::equal(ids.begin(), ids.end(), later.begin());
    }
    Content& content = contents[call];
    for (std::size_t i = 0; i < tokens; ++i) {
      const std::size_t block = i / workload.block_tokens;
      if (i < prompt && block < ids.size()) {
        content.push_back({ids[block], i % workload.block_tokens});
      } else if (continued) {
        content.push_back(contents[next->second][i]);
      } else {
        content.push_back({(std::uint64_t{1} << 40) + call, i});
      }
    }
    next_of_thread[workload.call_thread[call]] = call;
  }
  return contents;
}

TEST(PageTree, ClusterModeAgreesWithATrieOfTokens) {
  Random random(12);
  const std::uint32_t shapes[][2] = {{4, 4}, {4, 8}, {4, 2}, {8, 2}, {2, 8}};  // tokens of a block and of a page
  std::uint64_t continued = 0;
  for (int round = 0; round < 400; ++round) {
    const auto& [block, page] = shapes[round % 5];
    const Workload workload = test::random_workload(random, {60, 6, 20, block});
    const PageTree tree = PageTree::for_cluster(workload, page);
    ASSERT_TRUE(tree.verify());
    const std::vector<Content> contents = token_contents(workload);
    SlowPages slow;
    Naming naming;
    for (CallId call = 0; call < workload.calls(); ++call) {
      Content content = contents[call];
      content.pop_back();  // the KV of the last token is never computed
      ASSERT_TRUE(naming.same(slow.number(content, page), path_page_numbers(tree, tree.final_leaf(call))));
      ASSERT_EQ(tree.path_pages(tree.prompt_leaf(call)), workload.prompt_tokens[call] / page);
      const NodeId end = tree.final_leaf(call);
      continued += end != kNone && tree.node(end).subtree_end > end + 1;
    }
    ASSERT_EQ(naming.distinct(), tree.distinct_pages());
  }
  EXPECT_GT(continued, 1000u);  // the workloads do what the test is about
}

}  // namespace
}  // namespace saga
