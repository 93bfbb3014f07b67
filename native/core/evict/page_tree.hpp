// PageTree: all page chains of a workload as one path-compressed tree. Built once, then frozen; caches and policies only read
// it, from any number of threads.
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
    return node == kNone || (leaf != kNone && node <= leaf && leaf < nodes_[node].subtree_end);
  }

  // The deepest node on both paths, or kNone.
  NodeId common_ancestor(NodeId a, NodeId b) const {
    while (!on_path(a, b)) a = nodes_[a].parent;
    return a;
  }

  // Writes the nodes from the root to `leaf` and returns their number (at most max_path_nodes()).
  std::uint32_t path(NodeId leaf, NodeId* out) const;

  bool verify() const;

 private:
  friend class PageTreeBuilder;
  PageTree() = default;

  std::uint32_t page_tokens_ = 0;
  std::uint32_t threads_ = 0;
  std::uint32_t max_path_nodes_ = 0;
  std::uint64_t distinct_pages_ = 0;
  std::vector<PageNode> nodes_;
  std::vector<NodeId> prompt_leaf_;
  std::vector<NodeId> final_leaf_;
};

}  // namespace saga
