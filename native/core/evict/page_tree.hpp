// PageTree: all page chains of a workload as one path-compressed tree. Built once, then frozen; caches and policies only read
// it, from any number of threads. Or **live**: of the chains that a running server knows now (below).
//
// A **page** is `page_tokens` consecutive tokens of a prompt or an answer together with everything before them, so two calls
// have a page in common exactly when they have the same content up to its end. A **node** is a run of consecutive pages
// without a fork, and no call ends inside one: the path of a call is a whole number of nodes, and its deepest node, the
// **leaf**, names it. Nodes are numbered in preorder: a parent comes before its children and a subtree is a range of numbers.
// kNone stands for the root, which has no pages: the parent of a top node, and the leaf of a prompt without a full page.
//
// Two ways to read a workload:
//
//   cache mode    one prompt a call, the answer leaves nothing behind. Pages of a call = floor(blocks / blocks per page) (a
//                 partial last block with an id of its own counts as a block). prompt_leaf == final_leaf.
//   cluster mode  a prompt of n tokens has floor(n / page_tokens) pages. Block ids cover its front; what lies behind the last
//                 id belongs to this call alone, unless the next call of the same thread *continues* it: it has all of the
//                 call's blocks as its leading blocks and at least prompt + output tokens. Then the tail and the answer are
//                 the content of the next prompt at those positions. prompt_leaf: the full pages of the prompt; final_leaf:
//                 those of prompt + output - 1 tokens (the KV of the last generated token is never computed). prompt_leaf is
//                 final_leaf or an ancestor of it.
//
// **Live** (PageTree::live): a node is one page, found by its chain hash; it is added below a known parent and removed when
// nothing needs it any more: it has no child, nobody holds it (a head holds the last page of its path) and nobody says that it
// is resident. What may have become so is listed: the owner takes it from there and removes it when it needs room. Numbers are used again, and
// there are at most max_nodes. Node numbers say nothing about the order of the tree then: there is no subtree_end, and
// on_path() and common_ancestor() go by jump pointers, O(log depth). calls() and threads() are bounds of the ids in use,
// which the owner gives out; prompt_leaf(), final_leaf() and distinct_pages() say nothing. Adding and removing are O(1);
// 56 bytes a node and the map's 32 to 64, all of it allocated at construction.
//
// Cost of building: O(runs of block ids + nodes on the paths), blocks are never expanded one by one; memory
// O(nodes) after it. Afterwards every question is O(1) except common_ancestor() and path(), O(nodes walked).
//
// Invariants (verify()): parents before children and subtrees contiguous; first_page is the parent's end;
// pages >= 1; keys are distinct; every prompt leaf is an ancestor of, or equal to, its final leaf.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/random.hpp"
#include "../base/types.hpp"
#include "../pages/block_hash_map.hpp"
#include "../sim/workload.hpp"

namespace saga {

using NodeId = std::uint32_t;

struct PageNode {
  NodeId parent = kNone;
  NodeId subtree_end = 0;        // one behind the last node of the subtree
  std::uint32_t first_page = 0;  // depth of its first page: pages on the path before it
  std::uint32_t pages = 0;       // at least 1
  std::uint64_t key = 0;         // hash of page i of the run: mix64(key + i)

  std::uint32_t end_page() const { return first_page + pages; }
};

class PageTree {
 public:
  // page_tokens and workload.block_tokens: one must be a multiple of the other.
  static PageTree for_cache(const Workload& workload, std::uint32_t page_tokens);
  static PageTree for_cluster(const Workload& workload, std::uint32_t page_tokens);

  // Empty, for at most `max_nodes` pages; ids of calls and threads are below max_calls and max_threads.
  static PageTree live(std::uint32_t max_nodes, std::uint32_t max_calls, std::uint32_t max_threads,
                       std::uint32_t page_tokens);

  std::uint32_t page_tokens() const { return page_tokens_; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(nodes_.size()); }  // nodes
  std::uint32_t calls() const { return static_cast<std::uint32_t>(prompt_leaf_.size()); }
  std::uint32_t threads() const { return threads_; }                // thread ids are below this
  std::uint64_t distinct_pages() const { return distinct_pages_; }  // of all nodes together
  std::uint32_t max_path_nodes() const { return max_path_nodes_; }  // the longest path, in nodes

  const PageNode& node(NodeId node) const { return nodes_[node]; }
  NodeId prompt_leaf(CallId call) const { return prompt_leaf_[call]; }
  NodeId final_leaf(CallId call) const { return final_leaf_[call]; }

  // Pages from the root to the end of a node; 0 for kNone. path_pages(prompt_leaf(c)) = full pages of the
  // prompt of c.
  std::uint32_t path_pages(NodeId leaf) const { return leaf == kNone ? 0 : nodes_[leaf].end_page(); }

  // The hash of page `offset` of a node: a chain hash, different for every distinct page of the tree.
  BlockHash page_hash(NodeId node, std::uint32_t offset) const { return mix64(nodes_[node].key + offset); }

  // Whether `node` lies on the path to `leaf`, itself included. kNone lies on every path.
  bool on_path(NodeId node, NodeId leaf) const {
    if (is_live()) [[unlikely]]
      return node == kNone || (leaf != kNone && ancestor(leaf, nodes_[node].end_page()) == node);
    return node == kNone || (leaf != kNone && node <= leaf && leaf < nodes_[node].subtree_end);
  }

  // The deepest node on both paths, or kNone.
  NodeId common_ancestor(NodeId a, NodeId b) const {
    if (is_live()) [[unlikely]]
      return live_common_ancestor(a, b);
    while (!on_path(a, b)) a = nodes_[a].parent;
    return a;
  }

  // Writes the nodes from the root to `leaf` and returns their number (at most max_path_nodes()).
  std::uint32_t path(NodeId leaf, NodeId* out) const;

  // What a sample of the nodes goes by: in a live tree the content of the page, for numbers are used again.
  std::uint64_t sample_key(NodeId node) const { return is_live() ? nodes_[node].key : node; }

  // ---- Live trees only

  bool is_live() const { return !live_.empty(); }
  std::uint32_t free_nodes() const { return static_cast<std::uint32_t>(free_.size()); }
  bool is_known(NodeId node) const { return nodes_[node].pages > 0; }
  // The page with this chain hash, or kNone.
  NodeId find(BlockHash hash) const { return by_hash_.find(hash); }
  // The page with `hash`, which is not known, behind `parent` (kNone: the first of a chain). kNone if all nodes are in use.
  NodeId add(NodeId parent, BlockHash hash);
  // A node that is held, and all before it, stays known. kNone is nothing.
  void hold(NodeId node);
  void unhold(NodeId node);
  // The owner says that the node may not be needed any more.
  void loosen(NodeId node);
  // A node without children that nobody holds, the one that became so first; kNone: there is none. It is given out once: the owner
  // removes it, or says loosen() again when it is not resident any more.
  NodeId take_loose();
  void remove(NodeId node);
  std::uint64_t memory_bytes() const {
    return nodes_.size() * (sizeof(PageNode) + sizeof(LiveNode) + 2 * sizeof(NodeId)) + by_hash_.memory_bytes();
  }

  bool verify() const;

 private:
  friend class PageTreeBuilder;
  PageTree() = default;

  struct LiveNode {
    NodeId jump = kNone;  // an ancestor; following jumps or parents any ancestor is O(log depth) away
    std::uint32_t children = 0;
    std::uint32_t holds = 0;
    bool listed = false;  // in loose_
  };

  // The node that ends at `end_page` on the path to `node`, which is at least as deep.
  NodeId ancestor(NodeId node, std::uint32_t end_page) const {
    while (node != kNone && nodes_[node].end_page() > end_page) {
      const NodeId jump = live_[node].jump;
      node = path_pages(jump) >= end_page ? jump : nodes_[node].parent;
    }
    return node;
  }
  NodeId live_common_ancestor(NodeId a, NodeId b) const;
  bool verify_live() const;

  std::uint32_t page_tokens_ = 0;
  std::uint32_t threads_ = 0;
  std::uint32_t max_path_nodes_ = 0;
  std::uint64_t distinct_pages_ = 0;
  std::vector<PageNode> nodes_;
  std::vector<NodeId> prompt_leaf_;
  std::vector<NodeId> final_leaf_;
  std::vector<LiveNode> live_;  // empty: the tree is frozen
  std::vector<NodeId> free_;    // a stack
  std::vector<NodeId> loose_;   // a ring
  std::uint32_t loose_first_ = 0;
  std::uint32_t loose_count_ = 0;
  BlockHashMap by_hash_{0};
};

}  // namespace saga
