// PageTable: the KV pages of one worker as its server sees them: sequences of tokens, each with a block
// table, over one BlockPool per tier. SAGA owns the page numbers; the server owns the memory behind them and
// moves the bytes.
//
// A sequence
//
// - open gives it an id and the longest cached prefix: those blocks are shared (touched), their tokens need no
//   computing. Only full blocks are shared, and never the block of the last token: a model must compute at
//   least one token to have something to sample from. So an exact repeat of a 12-token prompt with block
//   size 4 hits 8 tokens, and the third block, computed again, becomes a second copy of the same hash.
// - allocate_slots gives room to further tokens: all the blocks that takes, or none.
// - cache_full_blocks, after a block's last token was computed: from now on others find it by its hash.
// - fork makes a second sequence over the same blocks, at no cost in blocks. The first to write into a shared
//   block that is not full gets a copy of its own (copy-on-write): allocate_slots reports what to copy where.
// - truncate and free give blocks back, last one first (see BlockPool: it decides what is evicted first).
//
// A block that is full is never written again. The only block that allocate_slots may write into is the last
// one, when it is not full. If it is shared it is copied; if it is not shared but cached (which takes a
// truncate into a full block) it loses its hash, for its contents are about to change.
//
// Tiers. Each block of a sequence lies in one tier. A prefix hit may lie in a slower one (open says how many
// tokens hit where); a sequence is resident when all its blocks are in GPU memory, and only then can it get
// slots or be exported. Moving blocks is in two phases, since copying takes time: a plan reserves the target
// blocks and lists the copies, the server copies, and then says commit (targets take the place of the
// sources, and only now are the sources given back) or abort (the targets are given back; hashes that went to
// make room for them are gone, and what was free before the plan is most recently used). Between the two the
// sequence may be read and exported, not changed (kBusy).
//
// - plan_swap_out: all blocks of a sequence that lie above the target tier, shared ones too (the sequences they
//   are shared with keep the original).
// - plan_swap_in: all blocks of a sequence that lie below the GPU.
// - plan_copy: cached blocks named by hash, from one tier to another, whether or not a sequence uses them:
//   to demote what will not be needed soon, to prefetch what will.
//
// A block whose hash the target tier already holds is shared there instead of copied. What moved down is next
// in line to be evicted above (its copy below makes it the cheapest to lose) and still hits until then; what
// moved up stays cached below, as most recently used.
//
// Eviction. By default the least recently used block of GPU memory goes first, as in vLLM. With PolicyKind::kSaga a
// BlockEvictor decides (evict/block_evictor.hpp), and a sequence that is opened is a call to it: who tells the thread
// of a call when it opens it, how it ended when it frees it, and the time, gets the most from it. Time does not run
// backwards; who never tells it has one moment for all. A fork is no call. A sequence freed as preempted is expected
// back: the next call of its thread goes on.
//
// Demotion, with kSaga and a host tier. What allocate_slots evicts from the GPU is worth a copy in host memory where
//   P(used again within `horizon`) x time to compute it again  >  price x time to bring it back from there.
// It then takes the least recently used block there, answers to its hash from now on, and the copy is in
// drain_demotions(), to be executed before all copies that are reported later. What was not drained in time is dropped,
// never waited for.
//
// When the server must copy. Copies (of copy-on-write and of plans) are executed in the order reported,
// before the server writes into any block that was given out later. Then a source block may be freed and
// given out again at once without harm. A plan may be committed as soon as that order is certain, e.g. when
// all runs on one stream.
//
// Costs. Operations are O(blocks concerned), without allocation of memory: open, one hash probe a block up to
// the first miss; allocate_slots, O(new blocks); fork, free, export, plans, O(blocks of the sequence).
// Memory, all of it at construction: 4 bytes for each of max_sequences * max_blocks_per_sequence table
// entries (untouched rows cost address space only), 16 bytes for each of max_plans * max_blocks_per_sequence,
// the pools (about 64 to 96 bytes a block) and 16 bytes an event.
//
// Ids of sequences and plans are small integers; the one freed last is given out next.
//
// Statuses are conditions that a caller meets in operation; nothing has changed when one other than kOk is
// returned. Ids that are not open, spans that are too small and hashes that disagree are bugs (assertions):
// the C ABI checks them before.
//
// Invariants (verify): the references of each block are exactly those of the sequences and plans; a table is
// as long as its tokens need; pools are sound.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../base/types.hpp"
#include "block_events.hpp"
#include "block_pool.hpp"

namespace saga {

using SequenceId = std::uint32_t;
using PlanId = std::uint32_t;

enum class PageStatus : std::uint8_t {
  kOk = 0,
  kOutOfBlocks = 1,     // fewer free blocks than the operation needs in all
  kOutOfSequences = 2,  // max_sequences are open
  kSequenceFull = 3,    // longer than max_blocks_per_sequence
  kNotResident = 4,     // some of the sequence's blocks are not in GPU memory: swap in first
  kBusy = 5,            // a plan of the sequence is neither committed nor aborted
  kOutOfPlans = 6,      // max_plans are pending
};

struct DemotionOptions {
  bool enabled = false;
  double recompute_ns_per_token = 0;        // of a token at the beginning of a prompt
  double recompute_double_tokens = 60'000;  // a token at this position takes twice as long
  double transfer_ns_per_token = 0;
  double price = 1;
  Time horizon = 600'000'000;
};

struct PageTableOptions {
  std::uint32_t block_size = 16;                           // tokens a block
  std::array<std::uint32_t, kTierCount> block_count = {};  // blocks of each tier; 0: the worker has no such tier
  std::uint32_t max_sequences = 256;
  std::uint32_t max_blocks_per_sequence = 8192;  // also the most blocks of one plan
  std::uint32_t max_plans = 8;                   // pending at the same time
  std::uint32_t event_capacity = 0;              // 0: no events are kept
  bool uncached_first = false;                   // see BlockPool
  PolicyKind eviction = PolicyKind::kLru;        // of GPU memory; or kSaga
  std::uint32_t ghosts = kNone;                  // see BlockEvictor
  DemotionOptions demotion = {};
};

// What is known of the call that a sequence is for.
struct CallHints {
  BlockEvictor::ThreadKey thread = BlockEvictor::kNoThread;
  PromptKind prompt_kind = PromptKind::kStart;
  // The whole prompt, of which `hashes` of open() are the beginning; empty: they are all of it.
  // The compiler asks for the initializer wherever a CallHints is made without it.
  std::span<const BlockHash> chain = {};  // NOLINT(readability-redundant-member-init)
};

struct BlockLocation {
  Tier tier;
  BlockId block;

  friend bool operator==(const BlockLocation&, const BlockLocation&) = default;
};

struct BlockCopy {
  BlockLocation source;
  BlockLocation target;

  friend bool operator==(const BlockCopy&, const BlockCopy&) = default;
};

struct PrefixHit {
  std::uint32_t tokens = 0;  // leading tokens that need no computing, in whole blocks
  std::array<std::uint32_t, kTierCount> tokens_in_tier = {};
};

struct OpenResult {
  PageStatus status = PageStatus::kOk;
  SequenceId sequence = kNone;
  PrefixHit hit;
};

struct ForkResult {
  PageStatus status = PageStatus::kOk;
  SequenceId sequence = kNone;
};

struct AllocateResult {
  PageStatus status = PageStatus::kOk;
  bool copied = false;  // copy-on-write: `copy` is to be executed (at most one a call)
  BlockCopy copy = {};
};

struct PlanResult {
  PageStatus status = PageStatus::kOk;
  PlanId plan = kNone;
  std::uint32_t copy_count = 0;  // may be 0: all targets shared. The plan is to be committed all the same
};

// Tokens [first_token, first_token + token_count) of a sequence.
struct TokenRange {
  SequenceId sequence;
  std::uint32_t first_token;
  std::uint32_t token_count;
};

struct PageTableStats {
  std::array<BlockPoolStats, kTierCount> tiers;
  std::uint32_t open_sequences = 0;
  std::uint32_t pending_plans = 0;
  std::uint64_t opened_total = 0;  // by open, not by fork
  std::uint64_t prompt_tokens_total = 0;
  std::array<std::uint64_t, kTierCount> hit_tokens_total = {};
  std::uint64_t copies_on_write_total = 0;
  std::array<std::uint64_t, kTierCount> copied_into_tier_total = {};  // blocks, by committed plans
  std::uint64_t out_of_blocks_total = 0;                              // refusals
  std::uint64_t demoted_total = 0;                                    // blocks: copied to host memory,
  std::uint64_t demoted_shared_total = 0;                             // were there already,
  std::uint64_t demotion_dropped_total = 0;                           // were not worth it,
  std::uint64_t demotion_refused_total = 0;                           // or found no room, or no room to report
  std::uint64_t events_lost_total = 0;
  std::uint64_t memory_bytes = 0;
};

class PageTable {
 public:
  explicit PageTable(const PageTableOptions& options);
  PageTable(const PageTable&) = delete;  // the pools point to the event log
  PageTable& operator=(const PageTable&) = delete;

  // ---- Sequences

  // The prefix that open() would hit now; changes nothing. `hashes` are those of the prompt's full blocks
  // from the first on (more than token_count allows, or fewer, do no harm); token_count >= 1 counts the
  // prompt's tokens; tiers slower than `slowest` are not looked at. A block in several tiers counts for the
  // fastest.
  PrefixHit match(std::span<const BlockHash> hashes, std::uint32_t token_count, Tier slowest) const;

  // A new sequence that holds the matched prefix and has as many tokens. Takes no free block but those that
  // hit.
  [[nodiscard]] OpenResult open(std::span<const BlockHash> hashes, std::uint32_t token_count, Tier slowest,
                                const CallHints& hints = {});

  // Room for `new_tokens` more tokens behind the present ones.
  [[nodiscard]] AllocateResult allocate_slots(SequenceId sequence, std::uint32_t new_tokens);

  // The next hashes.size() blocks of the sequence after those cached_blocks() counts are full and computed. A
  // block that a fork shares and has cached already is passed over; it must have got the same hash.
  PageStatus cache_full_blocks(SequenceId sequence, std::span<const BlockHash> hashes);

  // A second sequence over the same blocks and tokens.
  [[nodiscard]] ForkResult fork(SequenceId parent);

  // Keeps the first `token_count` tokens (at most as many as there are).
  PageStatus truncate(SequenceId sequence, std::uint32_t token_count);

  PageStatus free(SequenceId sequence, const CallOutcome& outcome = {}, bool preempted = false);

  // For the eviction policy; nothing under lru.
  // How the newest call of the thread ended, where that turned out after free(). False, and nothing happens, if the
  // thread is not known or not in a gap.
  bool told(BlockEvictor::ThreadKey thread, const CallOutcome& outcome);
  // The call of the thread that was freed as preempted, if there is one, will not go on.
  void preempted_ended(BlockEvictor::ThreadKey thread, const CallOutcome& outcome = {});
  // The thread will not call again.
  void thread_left(BlockEvictor::ThreadKey thread);
  void advance_time(Time now) {
    if (evictor_ != nullptr) evictor_->advance(now);
  }
  Time now() const { return evictor_ != nullptr ? evictor_->now() : 0; }

  bool is_open(SequenceId sequence) const { return sequence < sequences_.size() && sequences_[sequence].open; }
  std::uint32_t token_count(SequenceId sequence) const { return at(sequence).token_count; }
  std::uint32_t block_count(SequenceId sequence) const { return at(sequence).block_count; }
  std::uint32_t cached_blocks(SequenceId sequence) const { return at(sequence).cached_blocks; }
  bool is_resident(SequenceId sequence) const { return at(sequence).blocks_below_gpu == 0; }
  bool is_busy(SequenceId sequence) const { return at(sequence).plan != kNone; }
  BlockLocation location(SequenceId sequence, std::uint32_t index) const;

  // ---- Export for one batch, in the layout of paged attention kernels

  // Row i, `width` wide, holds the blocks of sequences[i], then `padding`. width is at least the longest
  // block_count().
  PageStatus export_block_tables(std::span<const SequenceId> sequences, std::uint32_t width, std::int32_t padding,
                                 std::span<std::int32_t> block_tables) const;

  // For each token of each range, in order: block * block_size + offset in the block. Written one after
  // another, without gaps.
  PageStatus export_slot_mapping(std::span<const TokenRange> ranges, std::span<std::int64_t> slot_mapping) const;

  // ---- Tiers. `copies` has room for block_count() (or hashes.size()) entries.

  [[nodiscard]] PlanResult plan_swap_out(SequenceId sequence, Tier target, std::span<BlockCopy> copies);
  [[nodiscard]] PlanResult plan_swap_in(SequenceId sequence, std::span<BlockCopy> copies);
  // Hashes that `source` does not hold are passed over. At most max_blocks_per_sequence hashes, each once;
  // order them as prefixes are, beginning first: it decides who is evicted first, as freeing a sequence does.
  [[nodiscard]] PlanResult plan_copy(Tier source, std::span<const BlockHash> hashes, Tier target,
                                     std::span<BlockCopy> copies);

  void commit(PlanId plan);
  void abort(PlanId plan);
  bool is_pending(PlanId plan) const { return plan < plans_.size() && plans_[plan].pending; }

  // Copies to host memory that allocate_slots has decided on since, in order; at most max_blocks_per_sequence wait.
  std::uint32_t drain_demotions(std::span<BlockCopy> copies);

  // ---- Cached blocks

  // Drops the hash from the block that a lookup in `tier` finds (one copy; call again for another). False if
  // none does.
  bool evict(Tier tier, BlockHash hash);

  // That block, if free, becomes the next to be taken in `tier`; of several calls the last is taken first.
  // False if there is no such free block.
  bool evict_first(Tier tier, BlockHash hash);

  // Forgets all hashes of a tier. False, with nothing changed, while any of its blocks is in use.
  bool reset_prefix_cache(Tier tier) { return tier_pool(tier).reset_prefix_cache(); }

  // What was stored and removed since the last drain (see BlockEventLog; stats().events_lost_total for
  // losses).
  std::uint32_t drain_events(std::span<BlockEvent> events) { return events_.drain(events); }

  // ---- Inspection

  const BlockPool& pool(Tier tier) const { return pools_[static_cast<std::size_t>(tier)]; }
  std::uint32_t block_size() const { return block_size_; }
  std::uint32_t max_sequences() const { return static_cast<std::uint32_t>(sequences_.size()); }
  std::uint32_t max_blocks_per_sequence() const { return max_blocks_; }
  const BlockEvictor* evictor() const { return evictor_.get(); }  // nullptr under lru
  PageTableStats stats() const;
  bool verify() const;
  std::uint64_t digest() const;

 private:
  // A table entry: the block in the low 30 bits, its tier in the high two. A resident row is thus the
  // exported row.
  using Entry = std::uint32_t;
  static constexpr std::uint32_t kBlockBits = 30;
  static constexpr Entry pack(BlockLocation location) {
    return static_cast<Entry>(location.tier) << kBlockBits | location.block;
  }
  static constexpr BlockLocation unpack(Entry entry) {
    return {.tier = static_cast<Tier>(entry >> kBlockBits), .block = entry & ((Entry{1} << kBlockBits) - 1)};
  }

  struct Sequence {
    bool open = false;
    std::uint32_t token_count = 0;
    std::uint32_t block_count = 0;       // ceil(token_count / block_size)
    std::uint32_t cached_blocks = 0;     // leading blocks whose hash was given (a block may have lost it since)
    std::uint32_t blocks_below_gpu = 0;  // 0: resident
    PlanId plan = kNone;
    CallId call = kNone;  // to the evictor
  };

  // One block of a plan. A target that is not copied is shared: the target tier had the hash.
  struct Move {
    std::uint32_t position;  // in the sequence's table
    Entry source;
    Entry target;
    bool copied;
  };

  // Pending plans hold a reference to each target; those of plan_copy (sequence kNone) to each source too.
  struct Plan {
    bool pending = false;
    SequenceId sequence = kNone;
    Tier target = Tier::kGpu;
    std::uint32_t move_count = 0;
  };

  BlockPool& tier_pool(Tier tier) { return pools_[static_cast<std::size_t>(tier)]; }
  const Sequence& at(SequenceId sequence) const;
  Sequence& at(SequenceId sequence);
  Entry* row(SequenceId sequence) { return &entries_[std::size_t{sequence} * max_blocks_]; }
  const Entry* row(SequenceId sequence) const { return &entries_[std::size_t{sequence} * max_blocks_]; }
  Move* moves(PlanId plan) { return &moves_[std::size_t{plan} * max_blocks_]; }
  const Move* moves(PlanId plan) const { return &moves_[std::size_t{plan} * max_blocks_]; }

  std::uint32_t blocks_for(std::uint64_t tokens) const {
    return static_cast<std::uint32_t>((tokens + block_size_ - 1) / block_size_);
  }
  std::uint32_t cacheable_blocks(std::size_t hash_count, std::uint32_t token_count) const;
  BlockLocation find(BlockHash hash, Tier slowest) const;  // block kNone: nowhere
  void release(BlockLocation location);                    // gives one reference back
  void release_from(SequenceId sequence, std::uint32_t first_block);
  PlanResult plan_sequence(SequenceId sequence, Tier target, bool down, std::span<BlockCopy> copies);
  PlanResult reserve(PlanId plan, std::span<BlockCopy> copies);
  void finish(PlanId plan);
  void start_call(SequenceId sequence, std::span<const BlockHash> chain, const CallHints& hints);
  void end_call(SequenceId sequence, const CallOutcome& outcome, bool preempted);
  void tell_stored(SequenceId sequence, std::uint32_t index);
  void demote_evicted();

  std::uint32_t block_size_;
  std::uint32_t max_blocks_;
  DemotionOptions demotion_;
  BlockEventLog events_;
  std::unique_ptr<BlockEvictor> evictor_;
  std::vector<CallId> free_calls_;  // of the evictor, a stack: two a sequence, for those preempted
  BlockHashMap preempted_{0};       // thread -> call
  std::vector<BlockEvictor::ThreadKey> thread_of_call_;
  std::vector<BlockEvictor::Evicted> evicted_;
  std::vector<BlockCopy> demotions_;  // that wait to be drained
  std::vector<BlockPool> pools_;      // by tier
  std::vector<Sequence> sequences_;
  std::unique_ptr<Entry[]> entries_;        // max_blocks_ a sequence; behind block_count a row is not initialised
  std::vector<SequenceId> free_sequences_;  // a stack, as free_plans_
  std::vector<Plan> plans_;
  std::unique_ptr<Move[]> moves_;  // max_blocks_ a plan; likewise
  std::vector<PlanId> free_plans_;
  std::vector<BlockId> new_blocks_;  // of the operation under way; max_blocks_ + 1
  PageTableStats totals_;            // the *_total fields
};

}  // namespace saga
