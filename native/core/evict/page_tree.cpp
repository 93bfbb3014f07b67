#include "page_tree.hpp"

#include <algorithm>
#include <utility>

#include "../base/assert.hpp"

namespace saga {

// Positions are counted in **units**, the smaller of a block and a page, so that one walk serves both ways round: a block is
// `units_per_block` units, a page `units_per_page`, and one of the two is 1. A trie is built over the units of the block ids
// and turned into pages at the end: a page belongs to the trie node that holds its last unit, for only there is it decided
// which page it is.
//
// The label of a trie node is not copied: it is a place in the run list of the call that made it, good for as many units as
// the node is long. Two labels at the same depth are compared run by run.
class PageTreeBuilder {
 public:
  PageTreeBuilder(const Workload& workload, std::uint32_t page_tokens)
      : workload_(workload), page_tokens_(page_tokens) {
    const std::uint32_t unit = std::min(workload.block_tokens, page_tokens);
    SAGA_ASSERT(unit > 0 && workload.block_tokens % unit == 0 && page_tokens % unit == 0);
    units_per_block_ = workload.block_tokens / unit;
    units_per_page_ = page_tokens / unit;
    prompt_leaf_.assign(workload.calls(), kNone);
    final_leaf_.assign(workload.calls(), kNone);
    std::size_t slots = 64;
    while (slots < std::size_t{workload.calls()} * 4) slots *= 2;
    children_.resize(slots);
    trie_.reserve(std::size_t{workload.calls()} * 3);
  }

  PageTree build_for_cache() {
    for (CallId call = 0; call < workload_.calls(); ++call) {
      std::uint64_t pages = blocks_of(call) * units_per_block_ / units_per_page_;
      // Pages smaller than a block: a partial last block has only as many as its tokens need.
      if (units_per_block_ > 1) {
        const std::uint64_t needed = (std::uint64_t{workload_.prompt_tokens[call]} + page_tokens_ - 1) / page_tokens_;
        pages = std::min(pages, needed);
      }
      prompt_leaf_[call] = final_leaf_[call] = insert(call, pages);
    }
    return finish();
  }

  PageTree build_for_cluster() {
    const std::uint32_t calls = workload_.calls();
    std::vector<CallId> next_of_thread;  // the call after the present one, by thread
    for (CallId call = calls; call-- > 0;) {
      const std::uint64_t prompt = workload_.prompt_tokens[call];
      const std::uint64_t prompt_pages = prompt / page_tokens_;
      const std::uint64_t final_pages = (prompt + workload_.output_tokens[call] - 1) / page_tokens_;
      const ThreadId thread = workload_.call_thread[call];
      CallId next = kNone;
      if (thread != kNone) {
        if (thread >= next_of_thread.size()) next_of_thread.resize(std::size_t{thread} + 1, kNone);
        next = std::exchange(next_of_thread[thread], call);
      }
      if (next != kNone && continues(call, next)) {
        // The next call of the thread is in the trie already (calls are taken from the last to the first): this one is a
        // prefix of it, its answer included.
        final_leaf_[call] = end_at(final_leaf_[next], final_pages);
        prompt_leaf_[call] = end_at(final_leaf_[next], prompt_pages);
        continue;
      }
      const std::uint64_t named = std::min(blocks_of(call) * workload_.block_tokens, prompt) / page_tokens_;
      prompt_leaf_[call] = append_private(insert(call, named), named, prompt_pages);
      final_leaf_[call] = append_private(prompt_leaf_[call], prompt_pages, final_pages);
    }
    return finish();
  }

 private:
  // A place in the run list: `offset` units into run `run`.
  struct Cursor {
    std::uint32_t run = kNone;  // kNone: private content, equal to nothing
    std::uint64_t offset = 0;
  };
  struct TrieNode {
    std::uint32_t parent = kNone;
    std::uint64_t begin = 0;  // in units from the root
    std::uint64_t end = 0;
    Cursor label;
  };
  // Open addressing, keyed by (parent, id of the first block). Entries are never removed.
  struct Child {
    std::uint32_t node = kNone;
    std::uint32_t parent = kNone;
    std::uint64_t id = 0;
  };

  std::uint64_t blocks_of(CallId call) const {
    std::uint64_t blocks = 0;
    for (std::uint32_t r = workload_.call_first_run[call]; r < workload_.call_first_run[call + 1]; ++r) {
      blocks += workload_.run_length[r];
    }
    return blocks;
  }

  std::uint64_t run_units(std::uint32_t run) const {
    return std::uint64_t{workload_.run_length[run]} * units_per_block_;
  }
  std::uint64_t block_id(const Cursor& at) const {
    return workload_.run_first_id[at.run] + at.offset / units_per_block_;
  }
  void advance(Cursor& at, std::uint64_t units) const {
    at.offset += units;
    // A cursor at the end of a run moves on only when more is asked of it: the next run may belong to another call.
    while (at.offset > run_units(at.run)) at.offset -= run_units(at.run++);
  }
  void settle(Cursor& at) const {
    if (at.offset == run_units(at.run)) {
      at.offset = 0;
      ++at.run;
    }
  }

  Child& child_slot(std::uint32_t parent, std::uint64_t id) {
    const std::size_t mask = children_.size() - 1;
    std::size_t slot = static_cast<std::size_t>(mix64(id ^ mix64(parent))) & mask;
    while (children_[slot].node != kNone && (children_[slot].parent != parent || children_[slot].id != id)) {
      slot = (slot + 1) & mask;
    }
    return children_[slot];
  }
  void put_child(std::uint32_t parent, std::uint64_t id, std::uint32_t node) {
    Child& child = child_slot(parent, id);
    if (child.node == kNone && ++child_count_ * 2 > children_.size()) {
      grow_children();
      put_child(parent, id, node);
      return;
    }
    child = {node, parent, id};
  }
  void grow_children() {
    std::vector<Child> old(children_.size() * 2);
    old.swap(children_);
    for (const Child& child : old) {
      if (child.node != kNone) child_slot(child.parent, child.id) = child;
    }
    --child_count_;  // the caller counts its entry again
  }

  std::uint32_t add(std::uint32_t parent, std::uint64_t begin, std::uint64_t end, const Cursor& label) {
    trie_.push_back({parent, begin, end, label});
    return static_cast<std::uint32_t>(trie_.size() - 1);
  }

  // Cuts a node in two at a depth inside it and returns the upper part, which gets the new number: whoever ends at the node,
  // or hangs below it, need not be told.
  std::uint32_t split(std::uint32_t node, std::uint64_t at) {
    const TrieNode old = trie_[node];
    SAGA_ASSERT(old.begin < at && at < old.end);
    const std::uint32_t upper = add(old.parent, old.begin, at, old.label);
    trie_[node].parent = upper;
    trie_[node].begin = at;
    if (old.label.run != kNone) {
      Cursor label = old.label;
      advance(label, at - old.begin);
      settle(label);
      trie_[node].label = label;
      put_child(old.parent, block_id(old.label), upper);
      put_child(upper, block_id(label), node);
    }
    return upper;
  }

  // The node that ends at the first `pages` pages of the blocks of a call.
  std::uint32_t insert(CallId call, std::uint64_t pages) {
    const std::uint64_t total = pages * units_per_page_;
    std::uint32_t node = kNone;
    std::uint64_t position = 0;
    Cursor at{workload_.call_first_run[call], 0};
    while (position < total) {
      settle(at);
      const std::uint32_t child = child_slot(node, block_id(at)).node;
      if (child == kNone) {
        const std::uint32_t leaf = add(node, position, total, at);
        put_child(node, block_id(at), leaf);
        return leaf;
      }
      const std::uint64_t limit = std::min(trie_[child].end, total) - position;
      const std::uint64_t equal = equal_units(trie_[child].label, at, limit);
      SAGA_ASSERT(equal > 0);
      position += equal;
      node = position < trie_[child].end ? split(child, position) : child;
    }
    return node;
  }

  // Leading units, at most `limit`, in which two labels at the same depth agree; moves `b` behind them.
  std::uint64_t equal_units(Cursor a, Cursor& b, std::uint64_t limit) const {
    std::uint64_t equal = 0;
    while (equal < limit) {
      settle(a);
      settle(b);
      if (block_id(a) != block_id(b)) break;
      const std::uint64_t step = std::min({limit - equal, run_units(a.run) - a.offset, run_units(b.run) - b.offset});
      a.offset += step;
      b.offset += step;
      equal += step;
    }
    return equal;
  }

  // The node on the path to `leaf` that ends at `pages`, split off where needed.
  std::uint32_t end_at(std::uint32_t leaf, std::uint64_t pages) {
    const std::uint64_t position = pages * units_per_page_;
    while (leaf != kNone && trie_[leaf].begin >= position) leaf = trie_[leaf].parent;
    if (leaf == kNone) return kNone;
    return trie_[leaf].end == position ? leaf : split(leaf, position);
  }

  std::uint32_t append_private(std::uint32_t node, std::uint64_t from_page, std::uint64_t to_page) {
    if (from_page == to_page) return node;
    return add(node, from_page * units_per_page_, to_page * units_per_page_, Cursor{});
  }

  bool continues(CallId call, CallId next) const {
    const std::uint64_t tokens = std::uint64_t{workload_.prompt_tokens[call]} + workload_.output_tokens[call];
    if (workload_.prompt_tokens[next] < tokens) return false;
    std::uint32_t a = workload_.call_first_run[call];
    std::uint32_t b = workload_.call_first_run[next];
    const std::uint32_t a_end = workload_.call_first_run[call + 1];
    const std::uint32_t b_end = workload_.call_first_run[next + 1];
    std::uint64_t a_offset = 0;
    std::uint64_t b_offset = 0;
    while (a < a_end) {
      if (b == b_end || workload_.run_first_id[a] + a_offset != workload_.run_first_id[b] + b_offset) return false;
      const std::uint64_t step = std::min(workload_.run_length[a] - a_offset, workload_.run_length[b] - b_offset);
      a_offset += step;
      b_offset += step;
      if (a_offset == workload_.run_length[a]) ++a, a_offset = 0;
      if (b_offset == workload_.run_length[b]) ++b, b_offset = 0;
    }
    return true;
  }

  std::uint32_t first_page(const TrieNode& node) const {
    return static_cast<std::uint32_t>(node.begin / units_per_page_);
  }
  std::uint32_t pages(const TrieNode& node) const {
    return static_cast<std::uint32_t>(node.end / units_per_page_ - node.begin / units_per_page_);
  }

  // Trie to pages, in preorder; children in the order in which they came into being. Nodes that a fork in the middle of a page
  // left without a page are passed over.
  PageTree finish() {
    const std::uint32_t count = static_cast<std::uint32_t>(trie_.size());
    std::vector<std::uint32_t> first_child(std::size_t{count} + 2, 0);  // slot 0: the root
    for (const TrieNode& node : trie_) ++first_child[node.parent == kNone ? 1 : std::size_t{node.parent} + 2];
    for (std::size_t i = 1; i < first_child.size(); ++i) first_child[i] += first_child[i - 1];
    std::vector<std::uint32_t> child(count);
    std::vector<std::uint32_t> fill(first_child.begin(), first_child.end() - 1);
    for (std::uint32_t i = 0; i < count; ++i) {
      child[fill[trie_[i].parent == kNone ? 0 : std::size_t{trie_[i].parent} + 1]++] = i;
    }

    PageTree tree;
    tree.page_tokens_ = page_tokens_;
    tree.nodes_.reserve(count);
    std::vector<NodeId> number(count, kNone);  // trie node -> page node, or that of its parent where it has no page
    struct Step {
      std::uint32_t node;  // trie node, kNone: the root
      std::uint32_t next;  // index into `child`
      std::uint32_t depth;
      bool numbered;
    };
    std::vector<Step> stack{{kNone, 0, 0, false}};
    while (!stack.empty()) {
      Step& top = stack.back();
      const std::size_t slot = top.node == kNone ? 0 : std::size_t{top.node} + 1;
      if (first_child[slot] + top.next < first_child[slot + 1]) {
        const std::uint32_t node = child[first_child[slot] + top.next++];
        const NodeId parent = top.node == kNone ? kNone : number[top.node];
        const bool numbered = pages(trie_[node]) > 0;
        const std::uint32_t depth = top.depth + (numbered ? 1 : 0);
        number[node] = parent;
        if (numbered) {
          number[node] = static_cast<NodeId>(tree.nodes_.size());
          PageNode page_node;
          page_node.parent = parent;
          page_node.first_page = first_page(trie_[node]);
          page_node.pages = pages(trie_[node]);
          page_node.key = tree.distinct_pages_;
          tree.distinct_pages_ += page_node.pages;
          tree.nodes_.push_back(page_node);
          tree.max_path_nodes_ = std::max(tree.max_path_nodes_, depth);
        }
        stack.push_back({node, 0, depth, numbered});
      } else {
        if (top.numbered) tree.nodes_[number[top.node]].subtree_end = static_cast<NodeId>(tree.nodes_.size());
        stack.pop_back();
      }
    }

    const auto renumber = [&](std::vector<std::uint32_t>& leaves) {
      for (std::uint32_t& leaf : leaves) {
        if (leaf != kNone) leaf = number[leaf];
      }
    };
    renumber(prompt_leaf_);
    renumber(final_leaf_);
    tree.prompt_leaf_ = std::move(prompt_leaf_);
    tree.final_leaf_ = std::move(final_leaf_);
    for (const ThreadId thread : workload_.call_thread) {
      if (thread != kNone) tree.threads_ = std::max(tree.threads_, thread + 1);
    }
    return tree;
  }

  const Workload& workload_;
  const std::uint32_t page_tokens_;
  std::uint32_t units_per_block_ = 1;
  std::uint32_t units_per_page_ = 1;
  std::vector<TrieNode> trie_;
  std::vector<Child> children_;
  std::size_t child_count_ = 0;
  std::vector<std::uint32_t> prompt_leaf_;
  std::vector<std::uint32_t> final_leaf_;
};

PageTree PageTree::for_cache(const Workload& workload, std::uint32_t page_tokens) {
  return PageTreeBuilder(workload, page_tokens).build_for_cache();
}

PageTree PageTree::for_cluster(const Workload& workload, std::uint32_t page_tokens) {
  return PageTreeBuilder(workload, page_tokens).build_for_cluster();
}

std::uint32_t PageTree::path(NodeId leaf, NodeId* out) const {
  std::uint32_t length = 0;
  for (NodeId node = leaf; node != kNone; node = nodes_[node].parent) out[length++] = node;
  std::reverse(out, out + length);
  return length;
}

PageTree PageTree::live(std::uint32_t max_nodes, std::uint32_t max_calls, std::uint32_t max_threads,
                        std::uint32_t page_tokens) {
  SAGA_ASSERT(max_nodes > 0);
  PageTree tree;
  tree.page_tokens_ = page_tokens;
  tree.threads_ = max_threads;
  tree.prompt_leaf_.assign(max_calls, kNone);
  tree.final_leaf_.assign(max_calls, kNone);
  tree.nodes_.resize(max_nodes);
  tree.live_.resize(max_nodes);
  tree.free_.reserve(max_nodes);
  for (NodeId node = max_nodes; node > 0; --node) tree.free_.push_back(node - 1);
  tree.loose_.resize(max_nodes);
  tree.by_hash_ = BlockHashMap(max_nodes);
  return tree;
}

NodeId PageTree::add(NodeId parent, BlockHash hash) {
  if (free_.empty()) return kNone;
  const NodeId node = free_.back();
  free_.pop_back();
  const bool listed = live_[node].listed;
  PageNode& page = nodes_[node];
  page = {};
  page.parent = parent;
  page.first_page = path_pages(parent);
  page.pages = 1;
  page.key = hash;
  LiveNode& live = live_[node];
  live = {};
  live.listed = listed;
  if (parent != kNone) {
    ++live_[parent].children;
    // Two jumps of equal length in a row become one.
    const NodeId jump = live_[parent].jump;
    const NodeId second = jump == kNone ? kNone : live_[jump].jump;
    const bool joins = path_pages(parent) - path_pages(jump) == path_pages(jump) - path_pages(second);
    live.jump = joins ? second : parent;
  }
  by_hash_.insert(hash, node);
  return node;
}

void PageTree::hold(NodeId node) {
  if (node != kNone) ++live_[node].holds;
}

void PageTree::unhold(NodeId node) {
  if (node == kNone) return;
  SAGA_ASSERT(live_[node].holds > 0);
  if (--live_[node].holds == 0) loosen(node);
}

void PageTree::loosen(NodeId node) {
  LiveNode& live = live_[node];
  if (live.listed || live.holds > 0 || live.children > 0) return;
  live.listed = true;
  loose_[(std::size_t{loose_first_} + loose_count_++) % loose_.size()] = node;
}

NodeId PageTree::take_loose() {
  while (loose_count_ > 0) {
    const NodeId node = loose_[loose_first_];
    loose_first_ = loose_first_ + 1 == loose_.size() ? 0 : loose_first_ + 1;
    --loose_count_;
    LiveNode& live = live_[node];
    live.listed = false;
    if (is_known(node) && live.holds == 0 && live.children == 0) return node;
  }
  return kNone;
}

void PageTree::remove(NodeId node) {
  SAGA_ASSERT(is_known(node) && live_[node].holds == 0 && live_[node].children == 0);
  PageNode& page = nodes_[node];
  by_hash_.erase(page.key);
  if (page.parent != kNone && --live_[page.parent].children == 0) loosen(page.parent);
  page.pages = 0;
  free_.push_back(node);
}

NodeId PageTree::live_common_ancestor(NodeId a, NodeId b) const {
  const std::uint32_t depth = std::min(path_pages(a), path_pages(b));
  a = ancestor(a, depth);
  b = ancestor(b, depth);
  if (depth == 0) return kNone;
  while (a != b) {
    const bool jumps = live_[a].jump != live_[b].jump;
    a = jumps ? live_[a].jump : nodes_[a].parent;
    b = jumps ? live_[b].jump : nodes_[b].parent;
  }
  return a;
}

bool PageTree::verify_live() const {
  std::vector<std::uint32_t> children(nodes_.size(), 0);
  std::uint32_t known = 0;
  for (NodeId id = 0; id < size(); ++id) {
    const PageNode& node = nodes_[id];
    if (!is_known(id)) continue;
    ++known;
    if (node.pages != 1 || by_hash_.find(node.key) != id || node.first_page != path_pages(node.parent)) return false;
    if (node.parent != kNone) {
      if (!is_known(node.parent)) return false;
      ++children[node.parent];
    }
    const NodeId jump = live_[id].jump;
    if (jump == kNone) continue;
    if (!is_known(jump) || path_pages(jump) >= path_pages(id)) return false;
    NodeId above = node.parent;
    while (path_pages(above) > path_pages(jump)) above = nodes_[above].parent;
    if (above != jump) return false;
  }
  std::vector<bool> listed(nodes_.size(), false);
  for (std::uint32_t i = 0; i < loose_count_; ++i) {
    const NodeId id = loose_[(std::size_t{loose_first_} + i) % loose_.size()];
    if (id >= size() || listed[id]) return false;
    listed[id] = true;
  }
  for (NodeId id = 0; id < size(); ++id) {
    if (live_[id].listed != listed[id]) return false;
    if (is_known(id) ? live_[id].children != children[id] : children[id] != 0) return false;
  }
  return known + free_.size() == nodes_.size() && by_hash_.size() == known && by_hash_.verify();
}

bool PageTree::verify() const {
  if (is_live()) return verify_live();
  std::uint64_t pages = 0;
  std::uint32_t longest = 0;
  std::vector<std::uint32_t> depth(nodes_.size());
  std::vector<NodeId> open;  // the path to the node under test: preorder
  for (NodeId id = 0; id < size(); ++id) {
    const PageNode& node = nodes_[id];
    while (!open.empty() && nodes_[open.back()].subtree_end <= id) open.pop_back();
    if (node.parent != (open.empty() ? kNone : open.back())) return false;
    if (node.pages == 0 || node.first_page != path_pages(node.parent)) return false;
    if (node.subtree_end <= id || node.subtree_end > size()) return false;
    if (!open.empty() && node.subtree_end > nodes_[open.back()].subtree_end) return false;
    if (node.key != pages) return false;  // pages are numbered through, so that no two have the same hash
    pages += node.pages;
    depth[id] = open.empty() ? 1 : depth[open.back()] + 1;
    longest = std::max(longest, depth[id]);
    open.push_back(id);
  }
  if (pages != distinct_pages_ || longest != max_path_nodes_) return false;
  if (prompt_leaf_.size() != final_leaf_.size()) return false;
  for (std::size_t call = 0; call < prompt_leaf_.size(); ++call) {
    for (const NodeId leaf : {prompt_leaf_[call], final_leaf_[call]}) {
      if (leaf != kNone && leaf >= size()) return false;
    }
    if (!on_path(prompt_leaf_[call], final_leaf_[call])) return false;
  }
  return true;
}

}  // namespace saga
