#include "lineage.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "../base/assert.hpp"
#include "../base/random.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kFetchedAhead = 12;

std::size_t table_size(std::uint32_t entries) { return std::bit_ceil(std::size_t{entries} * 2 + 2); }

// Open addressing with linear probing; `key(entry)` is the key of what a slot holds. Erasing moves later entries of the
// run back.
template <class Key>
std::uint32_t find_slot(const std::vector<std::uint32_t>& slots, std::uint64_t wanted, const Key& key) {
  const std::size_t mask = slots.size() - 1;
  std::size_t i = mix64(wanted) & mask;
  while (slots[i] != kNone && key(slots[i]) != wanted) i = (i + 1) & mask;
  return static_cast<std::uint32_t>(i);
}

template <class Key>
void erase_slot(std::vector<std::uint32_t>& slots, std::uint64_t wanted, const Key& key) {
  const std::size_t mask = slots.size() - 1;
  std::size_t hole = find_slot(slots, wanted, key);
  SAGA_ASSERT(slots[hole] != kNone);
  for (std::size_t i = (hole + 1) & mask; slots[i] != kNone; i = (i + 1) & mask) {
    const std::size_t home = mix64(key(slots[i])) & mask;
    // It may move to the hole unless its home lies behind the hole.
    if (((i - home) & mask) >= ((i - hole) & mask)) {
      slots[hole] = slots[i];
      hole = i;
    }
  }
  slots[hole] = kNone;
}

}  // namespace

Lineage::Lineage(const LineageOptions& options)
    : options_(options),
      nodes_(options.max_blocks),
      heads_(options.max_heads),
      workflows_(options.max_heads),
      slots_(table_size(options.max_blocks)),
      id_slots_(table_size(options.max_heads), kNone) {
  SAGA_ASSERT(options.max_heads >= 2 && options.max_blocks >= 1);
  forgotten_.reserve(options.max_heads);
  for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].node = kNone;
  for (std::uint32_t i = options.max_blocks; i-- > 0;) {
    nodes_[i] = Node{};
    nodes_[i].parent = free_node_;
    free_node_ = i;
  }
  for (std::uint32_t i = options.max_heads; i-- > 0;) {
    heads_[i].newer = free_head_;
    free_head_ = i;
    workflows_[i].newest = free_workflow_;
    free_workflow_ = i;
  }
}

// Maps
// --------------------------------------------------------------------------------------------------------------------

std::uint32_t Lineage::find_node(BlockHash hash, std::uint32_t depth) const {
  const std::uint32_t node = slots_[slot_of(hash)].node;
  return node != kNone && nodes_[node].depth == depth ? node : kNone;
}

std::size_t Lineage::slot_of(BlockHash hash) const {
  const std::size_t mask = slots_.size() - 1;
  const std::uint64_t mixed = mix64(hash);
  const auto tag = static_cast<std::uint32_t>(mixed);
  std::size_t i = mixed & mask;
  while (slots_[i].node != kNone && (slots_[i].tag != tag || nodes_[slots_[i].node].hash != hash)) i = (i + 1) & mask;
  return i;
}

// A probe that will come: memory takes as long to answer as some of them take.
void Lineage::fetch(BlockHash hash) const { slots_.prefetch(mix64(hash) & (slots_.size() - 1)); }

void Lineage::insert_hash(BlockHash hash, std::uint32_t node) {
  slots_[slot_of(hash)] = {node, static_cast<std::uint32_t>(mix64(hash))};
}

void Lineage::erase_hash(BlockHash hash) {
  const std::size_t mask = slots_.size() - 1;
  std::size_t hole = slot_of(hash);
  SAGA_ASSERT(slots_[hole].node != kNone);
  for (std::size_t i = (hole + 1) & mask; slots_[i].node != kNone; i = (i + 1) & mask) {
    // It may move to the hole unless its home lies behind the hole.
    if (((i - slots_[i].tag) & mask) >= ((i - hole) & mask)) {
      slots_[hole] = slots_[i];
      hole = i;
    }
  }
  slots_[hole].node = kNone;
}

std::uint32_t Lineage::find_workflow(std::uint64_t id) const {
  return id_slots_[find_slot(id_slots_, id, [this](std::uint32_t w) { return workflows_[w].id; })];
}

void Lineage::insert_id(std::uint64_t id, std::uint32_t workflow) {
  id_slots_[find_slot(id_slots_, id, [this](std::uint32_t w) { return workflows_[w].id; })] = workflow;
}

void Lineage::erase_id(std::uint64_t id) {
  erase_slot(id_slots_, id, [this](std::uint32_t w) { return workflows_[w].id; });
}

std::uint32_t Lineage::known_depth(const BlockHash* chain, std::uint32_t blocks) const {
  std::uint32_t known = 0;
  std::uint32_t unknown = blocks + 1;
  while (unknown - known > 1) {
    const std::uint32_t middle = known + (unknown - known) / 2;
    if (find_node(chain[middle - 1], middle) != kNone) {
      known = middle;
    } else {
      unknown = middle;
    }
  }
  return known;
}

// Heads
// -------------------------------------------------------------------------------------------------------------------

std::uint32_t Lineage::owner(std::uint32_t node) const {
  if (node == kNone) return kNone;
  const std::uint32_t head = nodes_[node].head;
  return heads_[head].workflow != kNone && heads_[head].generation == nodes_[node].generation ? head : kNone;
}

std::uint32_t Lineage::head_hanging(std::uint32_t node, std::uint32_t workflow) const {
  std::uint32_t best = kNone;
  std::uint32_t seen = workflow;
  const auto better = [this](std::uint32_t a, std::uint32_t b) {
    if (b == kNone) return true;
    if (heads_[a].superseded != heads_[b].superseded) return heads_[b].superseded;
    return a < b;
  };
  for (std::uint32_t h = nodes_[node].first_hanging; h != kNone; h = heads_[h].same_node) {
    if (workflow != kNone && heads_[h].workflow != workflow) continue;
    if (seen != kNone && heads_[h].workflow != seen) return kNone;
    seen = heads_[h].workflow;
    if (heads_[h].running == 0 && better(h, best)) best = h;
  }
  return best;
}

bool Lineage::anybody_hangs(std::uint32_t node, std::uint32_t workflow) const {
  if (workflow == kNone) return nodes_[node].hanging > 0;
  std::uint32_t h = nodes_[node].first_hanging;
  while (h != kNone && heads_[h].workflow != workflow) h = heads_[h].same_node;
  return h != kNone;
}

std::uint32_t Lineage::head_behind(std::uint32_t node, std::uint32_t workflow) const {
  const std::uint32_t h = owner(node);
  if (h == kNone || heads_[h].running > 0 || heads_[h].tail == kNone) return kNone;
  if (workflow != kNone && heads_[h].workflow != workflow) return kNone;
  const std::uint32_t depth = nodes_[node].depth;
  const std::uint32_t tail_depth = nodes_[heads_[h].tail].depth;
  if (tail_depth < depth || tail_depth - depth > options_.slack_blocks) return kNone;
  std::uint32_t above = heads_[h].tail;
  for (std::uint32_t i = tail_depth; i > depth; --i) above = nodes_[above].parent;
  return above == node ? h : kNone;
}

std::uint32_t Lineage::head_above(std::uint32_t node, std::uint32_t workflow) const {
  for (; node != kNone; node = nodes_[node].parent) {
    if (nodes_[node].hanging == 0) continue;
    const std::uint32_t head = head_hanging(node, workflow);
    if (head != kNone) return head;
  }
  return kNone;
}

std::uint32_t Lineage::common_with(std::uint32_t head, const BlockHash* chain, std::uint32_t known) const {
  std::uint32_t node = heads_[head].tail;
  while (node != kNone) {
    const std::uint32_t depth = nodes_[node].depth;
    if (depth <= known && nodes_[node].hash == chain[depth - 1]) return depth;
    node = nodes_[node].parent;
  }
  return 0;
}

std::uint32_t Lineage::newest_head(std::uint32_t workflow, bool waiting, std::uint32_t except) const {
  for (std::uint32_t h = workflows_[workflow].newest; h != kNone; h = heads_[h].next) {
    if (h != except && (!waiting || (heads_[h].running == 0 && !heads_[h].superseded))) return h;
  }
  return kNone;
}

std::uint32_t Lineage::add_workflow(std::uint64_t id, std::uint32_t blocks) {
  if (free_workflow_ == kNone) (void)forget_oldest(kNone);
  // With every head in use, and so possibly every workflow, one was just given up.
  SAGA_ASSERT(free_workflow_ != kNone);
  const std::uint32_t w = free_workflow_;
  free_workflow_ = workflows_[w].newest;
  workflows_[w] = Workflow{};
  workflows_[w].id = id;
  workflows_[w].root_blocks = blocks;
  ++live_workflows_;
  if (id != kNoId) insert_id(id, w);
  return w;
}

std::uint32_t Lineage::add_head(std::uint32_t workflow) {
  const std::uint32_t h = free_head_;
  SAGA_ASSERT(h != kNone);
  free_head_ = heads_[h].newer;
  const std::uint32_t generation = heads_[h].generation;
  heads_[h] = Head{};
  heads_[h].generation = generation;
  heads_[h].workflow = workflow;
  ++workflows_[workflow].heads;
  ++live_heads_;
  link_newest(h);
  return h;
}

void Lineage::link_newest(std::uint32_t h) {
  Head& head = heads_[h];
  head.older = newest_;
  head.newer = kNone;
  (newest_ == kNone ? oldest_ : heads_[newest_].newer) = h;
  newest_ = h;
  Workflow& workflow = workflows_[head.workflow];
  head.previous = kNone;
  head.next = workflow.newest;
  if (head.next != kNone) heads_[head.next].previous = h;
  workflow.newest = h;
}

void Lineage::unlink(std::uint32_t h) {
  const Head& head = heads_[h];
  (head.older == kNone ? oldest_ : heads_[head.older].newer) = head.newer;
  (head.newer == kNone ? newest_ : heads_[head.newer].older) = head.older;
  (head.previous == kNone ? workflows_[head.workflow].newest : heads_[head.previous].next) = head.next;
  if (head.next != kNone) heads_[head.next].previous = head.previous;
}

void Lineage::hang(std::uint32_t h, std::uint32_t node) {
  heads_[h].tail = node;
  if (node == kNone) return;
  heads_[h].same_node = nodes_[node].first_hanging;
  nodes_[node].first_hanging = h;
  ++nodes_[node].hanging;
}

void Lineage::unhang(std::uint32_t h) {
  const std::uint32_t node = heads_[h].tail;
  heads_[h].tail = kNone;
  if (node == kNone) return;
  std::uint32_t* link = &nodes_[node].first_hanging;
  while (*link != h) link = &heads_[*link].same_node;
  *link = heads_[h].same_node;
  heads_[h].same_node = kNone;
  --nodes_[node].hanging;
}

void Lineage::prune(std::uint32_t node) {
  std::uint32_t ahead = kNone;
  for (std::uint32_t pruned = 0; node != kNone && nodes_[node].children == 0 && nodes_[node].hanging == 0; ++pruned) {
    // Most prunes are of a few nodes. Of a whole line the maps are asked for some nodes ahead of its turn.
    if (pruned == kFetchedAhead) ahead = node;
    for (std::uint32_t k = pruned == kFetchedAhead ? kFetchedAhead : 1; k > 0 && ahead != kNone; --k) {
      ahead = nodes_[ahead].parent;
      if (ahead != kNone) fetch(nodes_[ahead].hash);
    }
    const std::uint32_t parent = nodes_[node].parent;
    erase_hash(nodes_[node].hash);
    nodes_[node] = Node{};
    nodes_[node].parent = free_node_;
    free_node_ = node;
    --live_nodes_;
    if (parent != kNone) --nodes_[parent].children;
    node = parent;
  }
}

void Lineage::forget_head(std::uint32_t h) {
  Head& head = heads_[h];
  const std::uint32_t tail = head.tail;
  const std::uint32_t w = head.workflow;
  unhang(h);
  prune(tail);
  unlink(h);
  const std::uint32_t generation = head.generation + 1;
  running_ -= head.running;
  head = Head{};
  head.generation = generation;
  head.newer = free_head_;
  free_head_ = h;
  --live_heads_;
  Workflow& workflow = workflows_[w];
  if (--workflow.heads > 0) return;
  if (workflow.id != kNoId) erase_id(workflow.id);
  workflow = Workflow{};
  --live_workflows_;
  workflow.newest = free_workflow_;
  free_workflow_ = w;
  forgotten_.push_back(w);
}

bool Lineage::forget_oldest(std::uint32_t except) {
  for (std::uint32_t h = oldest_; h != kNone; h = heads_[h].newer) {
    if (h == except || heads_[h].running > 0) continue;
    forget_head(h);
    return true;
  }
  return false;
}

std::uint32_t Lineage::add_node(std::uint32_t parent, BlockHash hash, std::uint32_t h) {
  const std::uint32_t node = free_node_;
  free_node_ = nodes_[node].parent;
  Node& made = nodes_[node];
  made = Node{};
  made.hash = hash;
  made.parent = parent;
  made.depth = parent == kNone ? 1 : nodes_[parent].depth + 1;
  made.head = h;
  made.generation = heads_[h].generation;
  if (parent != kNone) ++nodes_[parent].children;
  insert_hash(hash, node);
  ++live_nodes_;
  return node;
}

void Lineage::extend(std::uint32_t h, const BlockHash* chain, std::uint32_t blocks, std::uint32_t known) {
  const std::uint32_t old_tail = heads_[h].tail;
  unhang(h);
  std::uint32_t node = known > 0 ? find_node(chain[known - 1], known) : kNone;
  // It hangs where the path has come to, so that making room does not take that away.
  hang(h, node);
  prune(old_tail);
  for (std::uint32_t i = known; i < blocks; ++i) {
    // A hash that is known at another depth belongs to a chain that is none: nothing behind it is followed.
    if (blocks - i > kFetchedAhead) fetch(chain[i + kFetchedAhead]);
    if (slots_[slot_of(chain[i])].node != kNone) break;
    if (free_node_ == kNone) {
      unhang(h);
      hang(h, node);
      while (free_node_ == kNone && forget_oldest(h)) {
      }
      if (free_node_ == kNone) break;
    }
    const std::uint32_t made = add_node(node, chain[i], h);
    if (heads_[h].tail != kNone) {
      unhang(h);
    }
    hang(h, made);
    node = made;
  }
  heads_[h].length = blocks;
}

void Lineage::take_over(std::uint32_t node, std::uint32_t from, std::uint32_t to) {
  for (; node != kNone && owner(node) == from; node = nodes_[node].parent) {
    nodes_[node].head = to;
    nodes_[node].generation = heads_[to].generation;
  }
}

// Calls
// -------------------------------------------------------------------------------------------------------------------

LineageMatch Lineage::call_started(const BlockHash* chain, std::uint32_t blocks, std::uint64_t id) {
  SAGA_ASSERT(running_ + 2 <= options_.max_heads);
  forgotten_.clear();
  LineageMatch match;
  const std::uint32_t known = known_depth(chain, blocks);
  const std::uint32_t node = known > 0 ? find_node(chain[known - 1], known) : kNone;
  match.known_blocks = known;
  match.common_blocks = known;
  const auto beyond_root = [this](std::uint32_t workflow, std::uint32_t depth) {
    return depth > 0 && depth + options_.slack_blocks >= workflows_[workflow].root_blocks;
  };

  std::uint32_t workflow = id == kNoId ? kNone : find_workflow(id);
  std::uint32_t head = kNone;
  if (node != kNone && (id == kNoId || workflow != kNone)) {
    // A head just here or just behind; or else the nearest one that all of the prompt's known part goes beyond: where
    // two workflows have the same content, the line may have been known before this one came along it.
    head = head_hanging(node, workflow);
    if (head == kNone && !anybody_hangs(node, workflow)) {
      head = head_behind(node, workflow);
      if (head == kNone) head = head_above(nodes_[node].parent, workflow);
    }
  }
  std::uint32_t left = kNone;
  if (head != kNone) {
    match.kind = LineageKind::kContinued;
  } else if (id == kNoId) {
    const std::uint32_t line = owner(node);
    if (line != kNone && !nodes_[node].shared && beyond_root(heads_[line].workflow, known)) {
      workflow = heads_[line].workflow;
      match.kind = heads_[line].running > 0 ? LineageKind::kForked : LineageKind::kRolledBack;
      left = line;
    }
  } else if (workflow != kNone) {
    const std::uint32_t line = owner(node);
    left = line != kNone && heads_[line].workflow == workflow ? line : newest_head(workflow, true, kNone);
    if (left == kNone) left = newest_head(workflow, false, kNone);
    match.common_blocks = common_with(left, chain, known);
    if (heads_[left].running > 0) {
      match.kind = LineageKind::kForked;
    } else if (match.common_blocks > 0 && match.common_blocks + options_.slack_blocks >= heads_[left].length) {
      match.kind = LineageKind::kContinued;
      head = left;
    } else {
      match.kind = beyond_root(workflow, match.common_blocks) ? LineageKind::kRolledBack : LineageKind::kCompacted;
    }
  }

  if (match.kind == LineageKind::kContinued) {
    workflow = heads_[head].workflow;
    match.common_blocks = std::min(match.common_blocks, heads_[head].length);
    left = heads_[head].superseded ? newest_head(workflow, true, head) : kNone;
    heads_[head].superseded = false;
  } else if (match.kind == LineageKind::kForked || match.kind == LineageKind::kNew) {
    left = kNone;
  } else if (heads_[left].superseded) {
    // A second departure from a line that was left before: the place taken is that of its successor.
    const std::uint32_t line = left;
    left = newest_head(workflow, true, line);
    if (left == kNone) left = line;
  }

  if (head == kNone) {
    // The workflow, and the head that is left, are in use: they are not the ones to be forgotten.
    if (workflow != kNone) {
      const std::uint32_t keep = left != kNone ? left : newest_head(workflow, false, kNone);
      unlink(keep);
      link_newest(keep);
      if (free_head_ == kNone) (void)forget_oldest(keep);
    } else if (free_head_ == kNone) {
      (void)forget_oldest(kNone);
    }
    if (workflow == kNone) workflow = add_workflow(id, blocks);
    head = add_head(workflow);
  } else {
    unlink(head);
    link_newest(head);
  }
  ++heads_[head].running;
  ++running_;

  // Making room may have cut the known prefix.
  const std::uint32_t still_known = known_depth(chain, known);
  if (match.kind == LineageKind::kNew || match.kind == LineageKind::kCompacted) {
    // Another workflow (or another conversation of the same) begins with these blocks.
    std::uint32_t above = still_known > 0 ? find_node(chain[still_known - 1], still_known) : kNone;
    for (; above != kNone && !nodes_[above].shared; above = nodes_[above].parent) {
      const std::uint32_t line = owner(above);
      if (line != kNone && heads_[line].workflow == workflow) continue;
      nodes_[above].shared = true;
    }
  }
  if (match.kind == LineageKind::kRolledBack && still_known > 0) {
    take_over(find_node(chain[still_known - 1], still_known), left, head);
  }
  const std::uint32_t left_generation = left == kNone ? 0 : heads_[left].generation;
  extend(head, chain, blocks, still_known);
  if (left != kNone && heads_[left].workflow == workflow && heads_[left].generation == left_generation) {
    heads_[left].superseded = true;
    match.superseded = left;
  }
  match.workflow = workflow;
  match.head = head;
  return match;
}

void Lineage::call_ended(std::uint32_t head) {
  SAGA_ASSERT(head < heads_.size() && heads_[head].running > 0);
  --heads_[head].running;
  --running_;
  unlink(head);
  link_newest(head);
}

void Lineage::workflow_closed(std::uint32_t workflow) {
  SAGA_ASSERT(is_open(workflow));
  for (std::uint32_t left = workflows_[workflow].heads; left > 0; --left) forget_head(workflows_[workflow].newest);
  forgotten_.clear();
}

bool Lineage::is_busy(std::uint32_t workflow) const {
  std::uint32_t h = workflows_[workflow].newest;
  while (h != kNone && heads_[h].running == 0) h = heads_[h].next;
  return h != kNone;
}

std::uint64_t Lineage::memory_bytes() const {
  return sizeof(*this) + nodes_.size() * sizeof(Node) + heads_.capacity() * sizeof(Head) +
         workflows_.capacity() * sizeof(Workflow) + slots_.size() * sizeof(Slot) +
         (id_slots_.capacity() + forgotten_.capacity()) * sizeof(std::uint32_t);
}

bool Lineage::verify() const {
  std::uint32_t live = 0;
  std::vector<std::uint32_t> children(nodes_.size(), 0);
  for (std::uint32_t n = 0; n < nodes_.size(); ++n) {
    const Node& node = nodes_[n];
    if (node.depth == 0) continue;
    ++live;
    if (find_node(node.hash, node.depth) != n) return false;
    if ((node.depth == 1) != (node.parent == kNone)) return false;
    if (node.children == 0 && node.hanging == 0) return false;
    if (node.parent != kNone) {
      if (nodes_[node.parent].depth + 1 != node.depth) return false;
      ++children[node.parent];
    }
    std::uint32_t hanging = 0;
    for (std::uint32_t h = node.first_hanging; h != kNone; h = heads_[h].same_node) {
      if (heads_[h].workflow == kNone || heads_[h].tail != n || ++hanging > live_heads_) return false;
    }
    if (hanging != node.hanging) return false;
  }
  for (std::uint32_t n = 0; n < nodes_.size(); ++n) {
    if (nodes_[n].depth != 0 && nodes_[n].children != children[n]) return false;
  }
  const auto used = [](const std::vector<std::uint32_t>& slots) {
    return static_cast<std::uint32_t>(
        std::count_if(slots.begin(), slots.end(), [](std::uint32_t slot) { return slot != kNone; }));
  };
  std::uint32_t held = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) held += slots_[i].node == kNone ? 0 : 1;
  if (live != live_nodes_ || held != live) return false;

  std::uint32_t heads = 0;
  std::uint32_t running = 0;
  std::uint32_t before = kNone;
  for (std::uint32_t h = oldest_; h != kNone; h = heads_[h].newer) {
    if (heads_[h].older != before || heads_[h].workflow == kNone || ++heads > live_heads_) return false;
    if (heads_[h].tail != kNone && nodes_[heads_[h].tail].depth > heads_[h].length) return false;
    if (heads_[h].running > 1) return false;
    running += heads_[h].running;
    before = h;
  }
  if (newest_ != before || heads != live_heads_ || running != running_) return false;
  std::uint32_t listed = 0;
  std::uint32_t open = 0;
  std::uint32_t with_id = 0;
  for (std::uint32_t w = 0; w < workflows_.size(); ++w) {
    const Workflow& workflow = workflows_[w];
    if (workflow.heads == 0) continue;
    ++open;
    std::uint32_t own = 0;
    before = kNone;
    for (std::uint32_t h = workflow.newest; h != kNone; h = heads_[h].next) {
      if (heads_[h].workflow != w || heads_[h].previous != before || ++own > workflow.heads) return false;
      before = h;
    }
    if (own != workflow.heads) return false;
    listed += own;
    if (workflow.id != kNoId) {
      ++with_id;
      if (find_workflow(workflow.id) != w) return false;
    }
  }
  return listed == live_heads_ && open == live_workflows_ && used(id_slots_) == with_id;
}

}  // namespace saga
