#include "block_evictor.hpp"

#include <algorithm>
#include <utility>

#include "../base/assert.hpp"
#include "saga_policy.hpp"

namespace saga {
namespace {

std::uint32_t most_nodes(const BlockEvictorOptions& options) {
  const std::uint64_t ghosts = options.ghosts == kNone ? std::uint64_t{options.block_count} * 2 : options.ghosts;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(options.block_count + ghosts, 1u << 30));
}

}  // namespace

BlockEvictor::BlockEvictor(const BlockEvictorOptions& options)
    : options_(options),
      max_heads_(most_nodes(options)),
      tree_(PageTree::live(most_nodes(options), options.max_calls, max_heads_, options.block_tokens)),
      blocks_(std::size_t{options.block_count} + kLists),
      pages_(tree_.size()),
      calls_(options.max_calls),
      thread_by_key_(max_heads_),
      key_of_thread_(max_heads_, kNoThread) {
  SAGA_ASSERT(options.block_count > 0 && options.block_tokens > 0);
  SAGA_ASSERT(options.policy == PolicyKind::kSaga || options.policy == PolicyKind::kLru);
  residents_.tree = &tree_;
  residents_.live = &tree_;
  residents_.nodes.resize(tree_.size());
  policy_ = make_eviction_policy(options.policy, residents_);
  if (options.policy == PolicyKind::kSaga) saga_ = static_cast<SagaPolicy*>(policy_.get());
  path_.reserve(tree_.size());
  unused_threads_.reserve(max_heads_);
  for (ThreadId thread = max_heads_; thread > 0; --thread) unused_threads_.push_back(thread - 1);
  for (const List list : {kUnhashed, kCopies, kKeepers}) {
    blocks_[sentinel(list)].previous = blocks_[sentinel(list)].next = sentinel(list);
  }
  for (BlockId block = 0; block < options.block_count; ++block) link(block, kUnhashed, false);
  free_count_ = options.block_count;
  if (options.regret_calls > 0) {
    regret_ = std::make_unique<LiveRegret>(options.block_count, options.max_calls, options.regret_calls,
                                           std::size_t{options.block_count} * 16);
  }
}

BlockEvictor::~BlockEvictor() = default;

void BlockEvictor::link(BlockId block, List list, bool first) {
  const BlockId head = sentinel(list);
  const BlockId previous = first ? head : blocks_[head].previous;
  const BlockId next = blocks_[previous].next;
  Block& b = blocks_[block];
  SAGA_ASSERT(b.list == kNoList);
  b.list = list;
  b.previous = previous;
  b.next = next;
  blocks_[previous].next = block;
  blocks_[next].previous = block;
}

void BlockEvictor::unlink(BlockId block) {
  Block& b = blocks_[block];
  SAGA_ASSERT(b.list != kNoList);
  if (b.list == kCopies) --pages_[b.node].listed;
  blocks_[b.previous].next = b.next;
  blocks_[b.next].previous = b.previous;
  b.list = kNoList;
}

// ---- Known pages and threads

// Known pages are closed under prefixes, and so are resident ones.
std::uint32_t BlockEvictor::find_leading(std::span<const BlockHash> chain, bool want_resident) const {
  std::uint32_t low = 0;
  auto high = static_cast<std::uint32_t>(chain.size());
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    const NodeId node = tree_.find(chain[middle]);
    const bool there =
        node != kNone && tree_.path_pages(node) == middle + 1 && (!want_resident || residents_.nodes[node].pages > 0);
    if (there) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

bool BlockEvictor::make_room(std::uint32_t nodes) {
  while (tree_.free_nodes() < nodes) {
    const NodeId node = tree_.take_loose();
    if (node != kNone) {
      if (resident(node).pages > 0) continue;
      policy_->node_forgotten(node);
      tree_.remove(node);
      continue;
    }
    if (saga_ == nullptr || !saga_->forget_oldest(now_)) return false;
    ++totals_.forgotten_total;
  }
  return true;
}

void BlockEvictor::free_threads() {
  for (const ThreadId thread : saga_->forgotten_threads()) {
    thread_by_key_.erase(std::exchange(key_of_thread_[thread], kNoThread));
    unused_threads_.push_back(thread);
  }
  saga_->forgotten_threads().clear();
}

// The id of a thread; kNone, as if it had not been told, where there are no more.
ThreadId BlockEvictor::thread_of(ThreadKey key) {
  if (key == kNoThread) return kNone;
  const ThreadId known = thread_by_key_.find(key);
  if (known != kNone || unused_threads_.empty()) return known;
  const ThreadId thread = unused_threads_.back();
  unused_threads_.pop_back();
  key_of_thread_[thread] = key;
  thread_by_key_.insert(key, thread);
  return thread;
}

// ---- Calls

std::uint32_t BlockEvictor::start(CallId id, ThreadKey thread, std::span<const BlockHash> chain, PromptKind kind,
                                  Time now) {
  Call& call = calls_[id];
  SAGA_ASSERT(!call.open || call.preempted);
  SAGA_ASSERT(now >= now_);
  now_ = now;
  CallStart info;
  info.call = id;
  info.prompt_kind = kind;
  if (call.preempted) {
    call.preempted = false;
    info.thread = call.thread;
    info.prompt_leaf = info.path_leaf = call.leaf;
    policy_->call_started(info, now);
    return find_leading(chain, true);
  }
  call = {};
  call.open = true;
  const std::uint32_t hits = find_leading(chain, true);
  totals_.requested_pages_total += chain.size();
  totals_.missed_pages_total += chain.size() - hits;
  if (regret_ != nullptr) regret_->call_started(id, chain, static_cast<std::uint32_t>(chain.size()) - hits);
  if (saga_ == nullptr) return hits;

  while (!saga_->has_room(2, max_heads_) && saga_->forget_oldest(now)) ++totals_.forgotten_total;
  const std::uint32_t known = find_leading(chain, false);
  const auto fresh = static_cast<std::uint32_t>(chain.size()) - known;
  NodeId node = known == 0 ? kNone : tree_.find(chain[known - 1]);
  tree_.hold(node);
  make_room(fresh);
  tree_.unhold(node);
  free_threads();
  for (std::uint32_t i = known; i < chain.size() && tree_.find(chain[i]) == kNone; ++i) {
    const NodeId next = tree_.add(node, chain[i]);
    if (next == kNone) break;
    node = next;
  }
  call.leaf = node;
  call.thread = thread_of(thread);
  info.thread = call.thread;
  info.prompt_leaf = info.path_leaf = node;
  policy_->call_started(info, now);
  free_threads();
  return hits;
}

void BlockEvictor::end(CallId id, const CallOutcome& outcome, BlockId last, Time now) {
  Call& call = calls_[id];
  SAGA_ASSERT(call.open && now >= now_);
  now_ = now;
  if (regret_ != nullptr) regret_->call_ended(id);
  if (saga_ != nullptr) {
    CallEnd info;
    info.call = id;
    info.stop_reason = outcome.stop_reason;
    info.tool_class = outcome.tool_class;
    info.session_end = outcome.session_end;
    info.declared_gap = outcome.declared_gap;
    info.output_tokens = outcome.output_tokens;
    info.leaf = call.leaf;
    const NodeId reached = last == kNone ? kNone : blocks_[last].node;
    if (reached != kNone && (tree_.on_path(call.leaf, reached) || tree_.on_path(reached, call.leaf))) {
      info.leaf = reached;
    }
    policy_->call_ended(info, now);
  }
  call = {};
}

void BlockEvictor::preempt(CallId id, Time now) {
  Call& call = calls_[id];
  SAGA_ASSERT(call.open && !call.preempted && now >= now_);
  now_ = now;
  call.preempted = true;
  policy_->call_preempted(id, now);
}

bool BlockEvictor::told(ThreadKey key, const CallOutcome& outcome, Time now) {
  SAGA_ASSERT(now >= now_);
  const ThreadId thread = key == kNoThread ? kNone : thread_by_key_.find(key);
  if (saga_ == nullptr || thread == kNone) return false;
  CallEnd info;
  info.stop_reason = outcome.stop_reason;
  info.tool_class = outcome.tool_class;
  info.session_end = outcome.session_end;
  info.declared_gap = outcome.declared_gap;
  info.output_tokens = outcome.output_tokens;
  if (!saga_->call_told(thread, info)) return false;
  now_ = now;
  return true;
}

void BlockEvictor::thread_left(ThreadKey key, Time now) {
  SAGA_ASSERT(now >= now_);
  now_ = now;
  const ThreadId thread = key == kNoThread ? kNone : thread_by_key_.find(key);
  if (thread != kNone) policy_->thread_left(thread, now);
}

// ---- Residency

void BlockEvictor::pin_node(NodeId node) {
  ResidentNode& state = resident(node);
  if (state.pins == 0) {
    if (state.children == 0) policy_->candidate_removed(node);
    state.pins = 1;
    policy_->node_pinned(node);
  } else {
    ++state.pins;
  }
}

void BlockEvictor::unpin_node(NodeId node) {
  ResidentNode& state = resident(node);
  SAGA_ASSERT(state.pins > 0);
  if (--state.pins > 0) return;
  policy_->node_unpinned(node);
  if (state.children == 0) policy_->candidate_added(node);
}

// With one pin, as every page before it that was not resident: those are hollow.
void BlockEvictor::make_resident(NodeId node) {
  path_.clear();
  for (NodeId n = node; n != kNone && resident(n).pages == 0; n = tree_.node(n).parent) path_.push_back(n);
  while (!path_.empty()) {
    const NodeId n = path_.back();
    path_.pop_back();
    const NodeId parent = tree_.node(n).parent;
    if (parent != kNone && resident(parent).children++ == 0 && resident(parent).pins == 0) {
      policy_->candidate_removed(parent);
    }
    resident(n).pages = 1;
    policy_->node_resident(n);
    resident(n).pins = 1;
    policy_->node_pinned(n);
    if (n == node) break;
    pages_[n].hollow = true;
    ++totals_.hollow;
  }
}

// The last copy of the page has gone; no pin is left.
void BlockEvictor::page_gone(NodeId node) {
  --totals_.pages;
  if (resident(node).children > 0) {
    pages_[node].hollow = true;
    ++totals_.hollow;
    pin_node(node);
    return;
  }
  while (true) {
    policy_->candidate_removed(node);
    resident(node).pages = 0;
    policy_->node_emptied(node);
    tree_.loosen(node);
    const NodeId parent = tree_.node(node).parent;
    if (parent == kNone || --resident(parent).children > 0) return;
    if (!pages_[parent].hollow) {
      if (resident(parent).pins == 0) policy_->candidate_added(parent);
      return;
    }
    pages_[parent].hollow = false;
    --totals_.hollow;
    unpin_node(parent);
    node = parent;
  }
}

// The block does not hold its page any more. What is free stays free, but in no list.
void BlockEvictor::remove_copy(BlockId block) {
  Block& b = blocks_[block];
  if (b.list != kNoList) unlink(block);
  const NodeId node = std::exchange(b.node, kNone);
  Page& page = pages_[node];
  if (b.next_copy == block) {
    page.first_copy = kNone;
  } else {
    blocks_[b.previous_copy].next_copy = b.next_copy;
    blocks_[b.next_copy].previous_copy = b.previous_copy;
    if (page.first_copy == block) page.first_copy = b.next_copy;
  }
  b.previous_copy = b.next_copy = kNone;
  --page.copies;
  if (page.copies > 0 && page.copies == page.listed) {
    unlink(page.first_copy);
    link(page.first_copy, kKeepers, false);
  }
  if (b.in_use) unpin_node(node);
  if (page.copies == 0) page_gone(node);
}

void BlockEvictor::store_one(NodeId node, BlockId block) {
  Block& b = blocks_[block];
  Page& page = pages_[node];
  b.node = node;
  b.used_again = false;
  if (page.copies == 0) {
    page.first_copy = block;
    b.previous_copy = b.next_copy = block;
    ++totals_.pages;
    if (resident(node).pages == 0) {
      make_resident(node);
    } else {
      page.hollow = false;  // its pin is the block's now
      --totals_.hollow;
    }
    ++page.copies;
    if (!b.in_use) {
      link(block, kKeepers, false);
      unpin_node(node);
    }
    return;
  }
  const BlockId last = blocks_[page.first_copy].previous_copy;
  b.previous_copy = last;
  b.next_copy = page.first_copy;
  blocks_[last].next_copy = block;
  blocks_[page.first_copy].previous_copy = block;
  ++page.copies;
  if (b.in_use) {
    pin_node(node);
  } else {
    link(block, kCopies, false);
    ++page.listed;
  }
}

void BlockEvictor::store(bool has_parent, BlockHash parent_hash, std::span<const BlockHash> hashes,
                         std::span<const BlockId> blocks) {
  SAGA_ASSERT(hashes.size() == blocks.size());
  NodeId parent = has_parent ? tree_.find(parent_hash) : kNone;
  bool known = !has_parent || parent != kNone;
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    Block& b = blocks_[blocks[i]];
    NodeId node = tree_.find(hashes[i]);
    if (known && node == kNone) {
      tree_.hold(parent);
      make_room(1);
      tree_.unhold(parent);
      node = tree_.add(parent, hashes[i]);
      if (saga_ != nullptr) free_threads();
    }
    known = known && node != kNone && tree_.node(node).parent == parent;
    parent = node;
    if (known && b.node == node) continue;
    tree_.hold(node);
    if (b.node != kNone) {
      remove_copy(blocks[i]);
      if (!b.in_use) link(blocks[i], kUnhashed, false);
    }
    if (known) {
      if (b.list != kNoList) unlink(blocks[i]);
      store_one(node, blocks[i]);
    }
    tree_.unhold(node);
  }
}

bool BlockEvictor::store_known(BlockHash hash, BlockId block) {
  const NodeId node = tree_.find(hash);
  if (node == kNone) return false;
  const NodeId parent = tree_.node(node).parent;
  store(parent != kNone, parent == kNone ? 0 : tree_.node(parent).key, {&hash, 1}, {&block, 1});
  return true;
}

void BlockEvictor::drop(BlockId block) {
  Block& b = blocks_[block];
  if (b.node == kNone) return;
  remove_copy(block);
  if (!b.in_use) link(block, kUnhashed, false);
}

void BlockEvictor::pin(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    Block& b = blocks_[block];
    SAGA_ASSERT(!b.in_use);
    unlink(block);
    b.in_use = true;
    --free_count_;
    if (b.node == kNone) continue;
    b.used_again = true;
    pin_node(b.node);
  }
}

void BlockEvictor::unpin(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    Block& b = blocks_[block];
    SAGA_ASSERT(b.in_use);
    b.in_use = false;
    ++free_count_;
    if (b.node == kNone) {
      link(block, kUnhashed, false);
      continue;
    }
    Page& page = pages_[b.node];
    if (page.copies - page.listed > 1) {
      link(block, kCopies, false);
      ++page.listed;
    } else {
      link(block, kKeepers, false);
    }
    unpin_node(b.node);
  }
}

void BlockEvictor::prefer(BlockId block) {
  Block& b = blocks_[block];
  SAGA_ASSERT(!b.in_use);
  if (b.node != kNone) {
    remove_copy(block);
  } else {
    unlink(block);
  }
  link(block, kUnhashed, true);
}

std::uint32_t BlockEvictor::take(std::span<BlockId> blocks, Time now, std::vector<Evicted>* evicted, Time span) {
  SAGA_ASSERT(now >= now_);
  now_ = now;
  std::uint32_t count = 0;
  while (count < blocks.size() && free_count_ > 0) {
    BlockId block = blocks_[sentinel(kUnhashed)].next;
    if (block != sentinel(kUnhashed)) {
      unlink(block);
      ++totals_.taken_without_hash_total;
    } else if ((block = blocks_[sentinel(kCopies)].next) != sentinel(kCopies)) {
      remove_copy(block);
      ++totals_.taken_copies_total;
    } else {
      const NodeId victim = policy_->victim(now).node;
      block = victim != kNone ? pages_[victim].first_copy : blocks_[sentinel(kKeepers)].next;
      SAGA_ASSERT(blocks_[block].list == kKeepers);
      const NodeId node = blocks_[block].node;
      if (pages_[node].copies > 1) {
        ++totals_.taken_copies_total;
      } else {
        ++totals_.evicted_total;
        if (!blocks_[block].used_again) ++totals_.bypassed_total;
        if (evicted != nullptr) {
          const double reuse = saga_ != nullptr ? saga_->reuse_probability(node, now, span) : 0;
          evicted->push_back({block, tree_.node(node).first_page, tree_.node(node).key, reuse});
        }
      }
      remove_copy(block);
    }
    blocks_[block].in_use = true;
    --free_count_;
    blocks[count++] = block;
  }
  totals_.taken_total += count;
  return count;
}

void BlockEvictor::clear() {
  for (BlockId block = 0; block < block_count(); ++block) drop(block);
}

bool BlockEvictor::is_resident(BlockHash hash) const {
  const NodeId node = tree_.find(hash);
  return node != kNone && pages_[node].copies > 0;
}

// ---- Inspection

BlockEvictorStats BlockEvictor::stats() const {
  BlockEvictorStats stats = totals_;
  stats.free_blocks = free_count_;
  stats.ghosts = tree_.size() - tree_.free_nodes() - stats.pages - stats.hollow;
  if (saga_ != nullptr) stats.heads = saga_->heads();
  stats.memory_bytes = blocks_.size() * sizeof(Block) +
                       std::uint64_t{tree_.size()} * (sizeof(Page) + sizeof(ResidentNode) + sizeof(NodeId)) +
                       tree_.memory_bytes() + thread_by_key_.memory_bytes() +
                       key_of_thread_.size() * (sizeof(ThreadKey) + sizeof(ThreadId)) + calls_.size() * sizeof(Call);
  if (regret_ != nullptr) stats.memory_bytes += regret_->memory_bytes();
  if (saga_ != nullptr) stats.memory_bytes += saga_->memory_bytes();
  return stats;
}

bool BlockEvictor::verify() const {
  const std::uint32_t nodes = tree_.size();
  std::vector<std::uint32_t> copies(nodes, 0), listed(nodes, 0), pins(nodes, 0), children(nodes, 0);
  std::uint32_t free_blocks = 0;
  std::uint32_t in_lists = 0;
  for (BlockId block = 0; block < block_count(); ++block) {
    const Block& b = blocks_[block];
    if (!b.in_use) ++free_blocks;
    if (b.list != kNoList) ++in_lists;
    if (b.in_use != (b.list == kNoList)) return false;
    if (b.node == kNone) {
      if (!b.in_use && b.list != kUnhashed) return false;
      if (b.next_copy != kNone || b.previous_copy != kNone) return false;
      continue;
    }
    if (b.node >= nodes || !tree_.is_known(b.node) || b.list == kUnhashed) return false;
    if (blocks_[b.next_copy].node != b.node || blocks_[b.next_copy].previous_copy != block) return false;
    ++copies[b.node];
    if (b.list == kCopies) ++listed[b.node];
    if (b.in_use) ++pins[b.node];
  }
  for (const List list : {kUnhashed, kCopies, kKeepers}) {
    BlockId previous = sentinel(list);
    for (BlockId block = blocks_[previous].next; block != sentinel(list); block = blocks_[block].next) {
      if (in_lists-- == 0 || blocks_[block].list != list || blocks_[block].previous != previous) return false;
      previous = block;
    }
    if (blocks_[sentinel(list)].previous != previous) return false;
  }
  std::uint32_t stored = 0;
  std::uint32_t hollow = 0;
  for (NodeId node = 0; node < nodes; ++node) {
    const Page& page = pages_[node];
    const ResidentNode& state = residents_.nodes[node];
    if (page.copies != copies[node] || page.listed != listed[node]) return false;
    if ((page.first_copy != kNone) != (page.copies > 0) || (page.copies > 0 && page.copies == page.listed))
      return false;
    if (page.copies > 0 && blocks_[page.first_copy].node != node) return false;
    if (page.hollow && (page.copies > 0 || state.children == 0)) return false;
    if (state.pages != (page.copies > 0 || page.hollow ? 1u : 0u)) return false;
    if (state.pins != pins[node] + (page.hollow ? 1 : 0)) return false;
    // At most one copy that nobody uses is the keeper.
    if (page.copies - page.listed > pins[node] + 1) return false;
    if (page.copies > 0) ++stored;
    if (page.hollow) ++hollow;
    if (state.pages == 0) continue;
    if (!tree_.is_known(node)) return false;
    const NodeId parent = tree_.node(node).parent;
    if (parent == kNone) continue;
    if (residents_.nodes[parent].pages == 0) return false;
    ++children[parent];
  }
  for (NodeId node = 0; node < nodes; ++node) {
    if (residents_.nodes[node].children != children[node]) return false;
  }
  if (free_blocks != free_count_ || in_lists != 0 || stored != totals_.pages || hollow != totals_.hollow) return false;
  std::uint32_t threads = 0;
  for (ThreadId thread = 0; thread < key_of_thread_.size(); ++thread) {
    if (key_of_thread_[thread] == kNoThread) continue;
    ++threads;
    if (thread_by_key_.find(key_of_thread_[thread]) != thread) return false;
  }
  if (threads + unused_threads_.size() != key_of_thread_.size() || thread_by_key_.size() != threads) return false;
  if (regret_ != nullptr && !regret_->verify()) return false;
  return tree_.verify() && thread_by_key_.verify() && policy_->verify();
}

}  // namespace saga
