// BlockEvictor: which physical KV block of a running server is taken next. An eviction policy over a live page tree
// (evict/page_tree.hpp), for owners of a block pool: SAGA's own page table, and servers behind the C interface.
//
// What the owner tells
//   start, end, preempt, thread_left   about calls: what a policy learns from
//   store                              a block is full and answers to a chain hash from now on
//   drop                               it no longer does
//   unpin, pin                         the block became free (its last reference went), or is used again
//   take                               so many free blocks are needed: these; they are in use without a hash then
//
// States of a block
//   in use             nobody takes it. At first all blocks are free and have no hash
//   free, without hash taken first, those free for longest before the others; prefer() puts a block before them
//   free, a copy       another block that stays holds the same page: taken next, oldest first
//   free, keeper       the one free copy of a page that stays: taken as the policy says. Where the policy has no
//                      candidate, because pages behind all of them are in use (by calls that never stored what lies
//                      between), the one that has been free for longest is taken
//
// Pages. Every stored page is a node of the tree. A page is resident as long as a block holds it, and pinned while one
// of them is in use. Policies want what is resident to be closed under prefixes, and taking by policy keeps it so.
// Where the owner breaks it (drop() of a page in the middle, a store behind a page that is not here) a **hollow** page
// stands in: resident and pinned, without a block, until a block comes or nothing resident hangs behind it.
//   Pages that are not resident are **ghosts**: the policy needs them to know a thread again, and to learn what comes
// back. When there is no room for another page, those go that no thread has on its path, and then the thread (or
// superseded prompt) whose last page left the cache first is forgotten. A chain for which there is no room even so is
// known by its beginning only, and a page for which there is none is not known: its block counts as one without a hash.
//
// Against a replay of the same calls on a frozen tree whose nodes are single pages (sim/cache_replay.hpp, pinned)
// decisions are the same, as long as no ghost has to be forgotten and but for ties of equal pages, which go by node
// number.
//
// Policies: saga, and lru as a measure. Without calls saga knows nobody and takes deepest pages first.
//
// Cost: start O(log pages of the chain + pages of it that are new), end O(pages that it wrote), the others O(1) a block
// and one hash probe where a hash is given; take also O(log candidates) a block. Nothing allocates but what saga learns
// (tables of a class at first use; a table for a head with history). Memory: about 40 bytes a block, 240 a page (blocks
// and ghosts), 128 a block more where regret is measured. Deterministic: no clock, times are arguments and must not run backwards.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../base/types.hpp"
#include "../pages/block_events.hpp"
#include "../pages/block_hash_map.hpp"
#include "eviction_policy.hpp"
#include "live_regret.hpp"
#include "page_tree.hpp"

namespace saga {

class SagaPolicy;

struct BlockEvictorOptions {
  std::uint32_t block_count = 1;  // at least 1
  std::uint32_t block_tokens = 16;
  std::uint32_t max_calls = 256;          // at one time, those preempted included; ids of calls are below this
  std::uint32_t ghosts = kNone;           // kNone: twice as many as blocks
  PolicyKind policy = PolicyKind::kSaga;  // or kLru
  // Calls that regret() looks at, at most; their chains have at most sixteen hashes a block together. 0: none are kept.
  std::uint32_t regret_calls = 0;
};

// What an owner knows of a call that ends; all of it may be unknown.
struct CallOutcome {
  StopReason stop_reason = StopReason::kUnknown;
  ToolClass tool_class = ToolClass::kNone;
  bool session_end = false;
  Time declared_gap = kNotDeclared;
  std::uint32_t output_tokens = 0;
};

struct BlockEvictorStats {
  std::uint32_t free_blocks = 0;
  std::uint32_t pages = 0;  // stored, distinct
  std::uint32_t hollow = 0;
  std::uint32_t ghosts = 0;  // pages known and not resident
  std::uint32_t heads = 0;   // threads and superseded prompts that are known (saga)
  std::uint64_t taken_total = 0;
  std::uint64_t taken_without_hash_total = 0;
  std::uint64_t taken_copies_total = 0;
  std::uint64_t evicted_total = 0;          // pages that went by the policy
  std::uint64_t bypassed_total = 0;         // of these, never used by anybody but the call that wrote them
  std::uint64_t forgotten_total = 0;        // heads forgotten for want of room
  std::uint64_t requested_pages_total = 0;  // of the chains of calls
  std::uint64_t missed_pages_total = 0;     // of these, not resident at the start
  std::uint64_t memory_bytes = 0;
};

class BlockEvictor {
 public:
  using ThreadKey = std::uint64_t;
  static constexpr ThreadKey kNoThread = ~ThreadKey{0};  // the policy infers it

  // A block that was taken although it held a page, as take() can report it.
  struct Evicted {
    BlockId block;
    std::uint32_t index;  // of the page in its chain
    BlockHash hash;
    double reuse_probability;  // within the span asked for
  };

  explicit BlockEvictor(const BlockEvictorOptions& options);
  ~BlockEvictor();
  BlockEvictor(const BlockEvictor&) = delete;
  BlockEvictor& operator=(const BlockEvictor&) = delete;

  // ---- Calls. Ids are chosen by the owner.

  // A call with the chain of the full blocks of its prompt; before its blocks are pinned. Returns the leading pages of
  // the chain that are resident. The id must be free, or that of a call of the same thread that was preempted: it goes
  // on then.
  std::uint32_t start(CallId call, ThreadKey thread, std::span<const BlockHash> chain, PromptKind kind, Time now);
  // Before its blocks are unpinned. `last`: a stored block, the deepest that the call has got to; kNone: none of them
  // is stored, or it is not told.
  void end(CallId call, const CallOutcome& outcome, BlockId last, Time now);
  // It will go on: start() with the same id.
  void preempt(CallId call, Time now);
  bool is_open(CallId call) const { return calls_[call].open; }
  bool is_preempted(CallId call) const { return calls_[call].open && calls_[call].preempted; }
  // How the newest call of the thread ended, where that turned out after end(). False, and nothing happens, if the thread is
  // not known or not in a gap (or the policy is lru).
  bool told(ThreadKey thread, const CallOutcome& outcome, Time now);
  // The thread will not come back.
  void thread_left(ThreadKey thread, Time now);

  // ---- Blocks

  // Consecutive pages, the first of them behind `parent` (has_parent) or at the beginning of a chain. A block that is
  // stored already is dropped first, unless it has the very hash.
  void store(bool has_parent, BlockHash parent, std::span<const BlockHash> hashes, std::span<const BlockId> blocks);
  // A page that is known already, behind the page that it is known to follow. False if it is not known.
  bool store_known(BlockHash hash, BlockId block);
  void drop(BlockId block);
  void pin(std::span<const BlockId> blocks);    // free ones
  void unpin(std::span<const BlockId> blocks);  // in use; the last of a sequence first
  // A free block is dropped and becomes the next to be taken.
  void prefer(BlockId block);

  // Takes up to blocks.size() free blocks and returns how many. `evicted`, if given, receives those that held a page
  // that is gone now, in order, with the probability of its reuse within `span`.
  std::uint32_t take(std::span<BlockId> blocks, Time now, std::vector<Evicted>* evicted = nullptr, Time span = 0);

  // Time passes without an event; take() goes by it. Earlier than now() is now().
  void advance(Time now) { now_ = now > now_ ? now : now_; }
  Time now() const { return now_; }

  // Everything is dropped; calls and what was learned stay.
  void clear();

  bool is_free(BlockId block) const { return !blocks_[block].in_use; }
  bool is_stored(BlockId block) const { return blocks_[block].node != kNone; }
  // Stored, and not one of the copies that wait to be taken.
  bool is_keeper(BlockId block) const { return is_stored(block) && blocks_[block].list != kCopies; }
  bool is_resident(BlockHash hash) const;
  std::uint32_t free_count() const { return free_count_; }
  std::uint32_t block_count() const { return static_cast<std::uint32_t>(blocks_.size()) - kLists; }
  const PageTree& tree() const { return tree_; }
  SagaPolicy* saga() { return saga_; }  // nullptr under lru

  std::uint32_t max_calls() const { return static_cast<std::uint32_t>(calls_.size()); }

  // Misses on the recent calls, and those of Belady's optimum (evict/live_regret.hpp).
  RegretMeter::Reading regret() const { return regret_ == nullptr ? RegretMeter::Reading{} : regret_->measure(); }

  BlockEvictorStats stats() const;
  bool verify() const;

 private:
  // Lists of free blocks, linked through sentinels behind the blocks.
  enum List : std::uint8_t { kUnhashed = 0, kCopies = 1, kKeepers = 2, kNoList = 3 };
  static constexpr std::uint32_t kLists = 3;

  struct Block {
    NodeId node = kNone;
    BlockId previous = kNone, next = kNone;            // in its list, while it is free
    BlockId previous_copy = kNone, next_copy = kNone;  // cycle of the blocks of a node
    List list = kNoList;
    bool in_use = false;
    bool used_again = false;  // since it was stored
  };
  struct Page {
    BlockId first_copy = kNone;
    std::uint32_t copies = 0;
    std::uint32_t listed = 0;  // of these, in kCopies
    bool hollow = false;
  };
  struct Call {
    bool open = false;
    bool preempted = false;
    NodeId leaf = kNone;  // of the prompt, as far as it is known
    ThreadId thread = kNone;
  };

  BlockId sentinel(List list) const { return block_count() + list; }
  void link(BlockId block, List list, bool first);
  void unlink(BlockId block);
  ResidentNode& resident(NodeId node) { return residents_.nodes[node]; }

  std::uint32_t find_leading(std::span<const BlockHash> chain, bool want_resident) const;
  bool make_room(std::uint32_t nodes);
  ThreadId thread_of(ThreadKey key);
  void free_threads();

  void store_one(NodeId node, BlockId block);
  void make_resident(NodeId node);
  void pin_node(NodeId node);
  void unpin_node(NodeId node);
  void remove_copy(BlockId block);
  void page_gone(NodeId node);

  const BlockEvictorOptions options_;
  const std::uint32_t max_heads_;
  PageTree tree_;
  ResidentSet residents_;
  std::unique_ptr<EvictionPolicy> policy_;
  SagaPolicy* saga_ = nullptr;
  std::vector<Block> blocks_;  // and the sentinels
  std::vector<Page> pages_;    // by node
  std::vector<Call> calls_;
  std::vector<NodeId> path_;  // working room
  BlockHashMap thread_by_key_;
  std::vector<ThreadKey> key_of_thread_;
  std::vector<ThreadId> unused_threads_;
  std::unique_ptr<LiveRegret> regret_;
  std::uint32_t free_count_ = 0;
  Time now_ = 0;  // of the latest event
  BlockEvictorStats totals_;
};

}  // namespace saga
