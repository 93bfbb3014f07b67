// BatchFormer: which calls make up the next step of an inference server that lets SAGA own its KV pages (continuous
// batching over one PageTable).
//
// The rules are those of vLLM V1's scheduler; with the order kFcfs (or kPriority), without session affinity, they are
// exactly those. There is no prefill phase and no decode phase: each running call has tokens that are known (its prompt
// and what it has generated) and leading ones that are computed, and a step computes more of them.
//
// A step, form(), under a budget of tokens:
//
//   1. Running calls, in order of admission: first those that lack one token of a computed context (they decode), then
//      chunks of unfinished prompts. Blocks are taken as tokens are scheduled. When one cannot be had, the running call
//      that is last in the order is preempted, until the block is there or the call itself had to go; then the round
//      ends.
//      (Under the other orders than kFcfs and kPriority the running calls behind it still get their turn.)
//   2. Waiting calls in the chosen order, unless the step preempted one, while seats (max_sequences), budget and blocks
//      last: the cached prefix is taken over (whole blocks, never the last token), then a chunk. The first that finds
//      no room ends the admission: nobody overtakes it, so a long prompt is not starved by short ones.
//
// Decoding calls come first in the batch. (With unlimited chunks only the call admitted last can have an unfinished
// prompt, so this is no other order than vLLM's.) complete() then says what each call of the batch has sampled.
//
// Order of waiting calls, and the call that is preempted first:
//
//   order      goes first                                                     is preempted first
//   kFcfs      came first; a preempted call returns to the very front        admitted last
//   kPriority  smallest priority number, then came first                     largest number, then came last
//   kBfs       oldest entry: a workflow's next call enters behind the others came last
//   kDfs       newest entry: stays with the workflow that came last          came first
//   kHybrid    highest urgency (Agent Fair Share), then came first           lowest urgency, then came last
//   kSaga      fewest tokens to prefill per urgency, then came first         lowest urgency, then fewest computed
//
// Under kSaga a call whose context is resident goes before one that must be computed from the start, and the calls that
// share a prefix follow each other while it is there. Tokens to prefill are estimated from where the cached prefix of a
// call ended last time (two probes a call, exact unless blocks left the middle of it); admission itself is exact.
//
// Starvation. Under kDfs, kHybrid and kSaga a call that has waited starvation_limit since it was submitted goes before
// all that have not, oldest first. So at most those overdue before it go first, and a new call can delay it no longer.
//
// Session affinity. A waiting call whose first uncached block is one that a running call is about to compute is held
// back, and others go first, until that block is cached; so a shared prefix is computed once. It ends by itself: the
// running call goes on with every step, and when it ends or is preempted, nothing is held for it. A block can be
// hit as soon as it is scheduled (attention kernels write the keys and values of a step before they read them), or,
// with hit_after_completion, when the step that computes it is complete.
//
// Preemption. kRecompute gives the blocks back; what is cached and not taken meanwhile is hit when the call returns,
// and what it has generated is part of its prompt then. kSwap moves the blocks to the host tier and back, if the
// host tier and max_copies have room, and the page table has a sequence to spare beyond max_sequences (else it is as
// kRecompute).
// The server executes `copies` in order before it computes the step, on the stream that computes; so blocks can be
// given out again at once, and plans are committed at once.
//
// Eviction. Where the page table evicts by the policy saga, each call is a call to it: with its thread and the kind of
// its prompt, by the whole chain of its prompt, and at its end with the outcome told by then (set_outcome; the tokens
// of its answer are known here). A call preempted by recompute is expected back. What turns out after the end is told
// to the page table (PageTable::told, thread_left). Without threads the policy knows calls again by their prompts.
//
// Outputs go to arrays of the caller. Block tables are written incrementally: the row of a call is its sequence id in
// the page table, which stays the same while it runs, and a step writes only blocks that are new; `updates` lists them,
// so that a server copies no more than that to the GPU. The array must therefore be the same in every step (or hold the
// same). PageTable::export_block_tables writes whole tables in the order of a batch.
//
// Costs. A decoding call costs about 5 ns a step from form() to complete(), its share of new blocks (of 16 tokens)
// included, and about 12 ns where every block that is filled is cached by a hash. Between two blocks nothing looks at
// the page table: blocks are allocated whole, and the table's token counts are multiples of block_size. Where
// fewer blocks are free than calls run, a step takes the slower way that can preempt.
// Admission: O(blocks of the prompt); ordering: a heap, O(log waiting), rebuilt once a step that could admit under
// kDfs, kHybrid and kSaga, O(waiting). Preemption: O(running). Memory, all of it at construction: about 190 bytes a
// call, and 8 bytes for each of max_calls * max_blocks_per_sequence hashes (address space where it is not used).
//
// States of a call: waiting -> running -> gone; running -> waiting when preempted (swapped: it keeps its sequence).
// A batch is in flight between form() and complete(); a call cancelled meanwhile ends with complete().
//
// Ids of calls are small integers; the one freed last is given out next. While a former is attached, nobody else opens
// or changes sequences of its page table; copies of cached blocks by hash (plan_copy), evict, evict_first, told,
// thread_left and drain_events are free to use.
//
// Invariants (verify): each running or swapped call owns one open sequence whose blocks cover its computed tokens and
// nothing more than the last block; computed < known <= limit; the heap is a heap and holds each waiting call once.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../base/status.hpp"
#include "../base/types.hpp"
#include "../pages/page_table.hpp"

namespace saga {

enum class BatchOrder : std::uint8_t { kFcfs = 0, kPriority = 1, kBfs = 2, kDfs = 3, kHybrid = 4, kSaga = 5 };
inline constexpr std::uint32_t kBatchOrderCount = 6;

enum class Preemption : std::uint8_t { kRecompute = 0, kSwap = 1 };

struct BatchFormerOptions {
  std::uint32_t max_calls = 1024;       // waiting and running
  std::uint32_t max_sequences = 256;    // running at one time
  std::uint32_t token_budget = 2048;    // tokens of a step
  std::uint32_t max_prefill_chunk = 0;  // tokens of one call in a step; 0: what the budget leaves
  std::uint32_t max_copies = 0;         // block copies of a step; 0: nothing is swapped, and only the GPU tier is hit
  BatchOrder order = BatchOrder::kSaga;
  Preemption preemption = Preemption::kRecompute;
  Tier slowest_hit = Tier::kGpu;  // prefixes in slower tiers are not looked at; hits below the GPU are copied up
  bool session_affinity = true;
  bool hit_after_completion = false;
  Time starvation_limit = 10'000'000;  // microseconds; kNotDeclared: none
};

// What is submitted. limit of tokens: prompt_tokens + max_new_tokens.
struct BatchCall {
  std::uint64_t workflow = 0;        // chosen by the caller; see set_urgency and cancel_workflow
  std::uint32_t prompt_tokens = 0;   // at least 1
  std::uint32_t max_new_tokens = 1;  // at least 1; with the last of them the call ends
  std::int32_t priority = 0;         // smaller goes first (kPriority)
  double urgency = 1;                // finite, at least 0; larger goes first (kHybrid, kSaga)
  BlockEvictor::ThreadKey thread = BlockEvictor::kNoThread;  // for the eviction policy, as prompt_kind
  PromptKind prompt_kind = PromptKind::kStart;
};

// Blocks [first_block, first_block + block_count) of a row of the block tables were written.
struct BlockTableUpdate {
  SequenceId row;
  std::uint32_t first_block;
  std::uint32_t block_count;
};

// Where form() writes; element i of the arrays of a call belongs to call i of the batch.
struct BatchArrays {
  std::span<CallId> calls;                   // max_sequences, as the next four
  std::span<SequenceId> rows;                // sequence id: the row in block_tables
  std::span<std::uint32_t> first_tokens;     // position of the first token to compute
  std::span<std::uint32_t> token_counts;     // to compute
  std::span<std::int32_t> sequence_lengths;  // computed tokens after the step
  std::span<std::int32_t> query_starts;  // max_sequences + 1: first token of each call in the step; then their number
  std::span<std::int64_t> slot_mapping;  // token_budget: block * block_size + offset, for each token of the step
  std::span<std::int32_t> block_tables;  // rows of block_table_stride, one for each sequence of the page table
  std::uint32_t block_table_stride = 0;  // at least max_blocks_per_sequence of the page table
  std::span<BlockTableUpdate> updates;   // max_sequences
  std::span<BlockCopy> copies;           // max_copies: to be executed in order, before the step
  std::span<CallId> preempted;           // max_sequences
};

struct BatchSummary {
  std::uint32_t calls = 0;
  std::uint32_t decode_calls = 0;  // the first of them: one token behind a computed context. The others prefill
  std::uint32_t tokens = 0;
  std::uint32_t admitted = 0;  // the last of them began, or began again, with this step
  std::uint32_t updates = 0;
  std::uint32_t copies = 0;
  std::uint32_t preempted = 0;
};

enum class BatchCallState : std::uint8_t { kWaiting = 0, kRunning = 1, kSwapped = 2 };

struct BatchCallStatus {
  BatchCallState state = BatchCallState::kWaiting;
  std::uint32_t known_tokens = 0;     // prompt and generated
  std::uint32_t computed_tokens = 0;  // kept in blocks; 0 while waiting
  std::uint32_t hit_tokens = 0;       // of the prompt, at the first admission
  std::uint32_t preemptions = 0;
};

struct BatchFormerStats {
  std::uint32_t waiting_calls = 0;  // swapped ones too
  std::uint32_t swapped_calls = 0;
  std::uint32_t running_calls = 0;
  std::uint64_t submitted_total = 0;
  std::uint64_t finished_total = 0;
  std::uint64_t cancelled_total = 0;
  std::uint64_t steps_total = 0;  // with at least one call
  std::uint64_t decode_tokens_total = 0;
  std::uint64_t prefill_tokens_total = 0;
  std::uint64_t prompt_tokens_total = 0;  // of calls admitted, each once
  std::uint64_t hit_tokens_total = 0;     // of these, not computed at the first admission
  std::uint64_t preempted_total = 0;
  std::uint64_t swapped_out_total = 0;        // of these, by swap
  std::uint64_t recomputed_tokens_total = 0;  // computed tokens given up by preemption (some may be hit again)
  std::uint64_t held_total = 0;               // times that a step held a call back for the prefix of another
  std::uint64_t memory_bytes = 0;
};

class BatchFormer {
 public:
  // `pages` outlives the former. Its blocks that are free now are what calls can have.
  BatchFormer(PageTable& pages, const BatchFormerOptions& options);
  ~BatchFormer();  // frees the sequences of its calls
  BatchFormer(const BatchFormer&) = delete;
  BatchFormer& operator=(const BatchFormer&) = delete;

  // ---- Calls, at any time, also while a batch is in flight. `now` never goes back.

  // Whether a call of so many tokens could ever run here.
  bool fits(std::uint64_t prompt_tokens, std::uint64_t max_new_tokens) const;

  // A new waiting call. `hashes`: of the leading full blocks of the prompt (fewer do no harm). kFull: max_calls are
  // here.
  [[nodiscard]] Status submit(Time now, const BatchCall& call, std::span<const BlockHash> hashes, CallId& id);

  // Hashes of the next full blocks of the call's known tokens, behind those given: what it generated can then be hit.
  // A block that is computed already is cached with the next one that is filled, or when the call ends.
  void add_hashes(CallId call, std::span<const BlockHash> hashes);
  std::uint32_t hash_count(CallId call) const { return at(call).hash_count; }
  // Full blocks that the call can ever have.
  std::uint32_t hash_limit(CallId call) const { return at(call).limit / block_size_; }

  void set_priority(CallId call, std::int32_t priority);
  // Of all calls of the workflow; returns how many. O(max_calls).
  std::uint32_t set_urgency(std::uint64_t workflow, double urgency);

  // What is known so far of how the call ends, for the eviction policy; the last word before its end counts.
  void set_outcome(CallId call, const CallOutcome& outcome) { at(call).outcome = outcome; }

  void cancel(CallId call);
  std::uint32_t cancel_workflow(std::uint64_t workflow);

  bool is_open(CallId call) const { return call < calls_.size() && calls_[call].open; }
  BatchCallStatus call_status(CallId call) const;

  // ---- Steps

  // The next batch; empty where nothing can run. No batch is in flight.
  BatchSummary form(Time now, const BatchArrays& arrays);

  // What became of each call of the batch, in its order. sampled: tokens generated, 0 exactly where known tokens are
  // still to be computed (except that a call that ends may have sampled none); at most what max_new_tokens leaves.
  // finished: not 0 where the call ends with them. Returns the number of calls that ended.
  std::uint32_t complete(std::span<const std::uint32_t> sampled, std::span<const std::uint8_t> finished);
  // Whether complete() may be given these.
  bool completion_valid(std::span<const std::uint32_t> sampled, std::span<const std::uint8_t> finished) const;

  // Whether the arrays have room for every batch.
  bool arrays_fit(const BatchArrays& arrays) const;

  bool in_flight() const { return in_flight_; }
  std::uint32_t batch_calls() const { return static_cast<std::uint32_t>(batch_.size()); }
  Time now() const { return now_; }

  const BatchFormerOptions& options() const { return options_; }
  const PageTable& pages() const { return pages_; }
  BatchFormerStats stats() const;
  bool verify() const;
  std::uint64_t digest() const;

 private:
  static constexpr std::uint32_t kEnded = kNone;  // as Running::scheduled, within complete()

  struct Call {
    bool open = false;
    bool cancelled = false;  // while a batch is in flight: ends with complete()
    bool admitted_before = false;
    BatchCallState state = BatchCallState::kWaiting;
    std::int32_t priority = 0;
    std::uint64_t workflow = 0;
    std::uint64_t order = 0;  // of submission
    std::uint64_t place = 0;  // in the queue of kFcfs
    Time submitted = 0;
    double urgency = 1;
    BlockEvictor::ThreadKey thread = BlockEvictor::kNoThread;
    CallOutcome outcome;
    PromptKind prompt_kind = PromptKind::kStart;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t limit = 0;
    std::uint32_t hash_count = 0;
    std::uint32_t hit_tokens = 0;
    std::uint32_t preemptions = 0;
    std::uint32_t heap_position = kNone;  // while waiting
    std::uint32_t match_hint = 0;         // blocks of the cached prefix when last looked at
    // While waiting; a running call has its own in Running.
    std::uint32_t known = 0;
    std::uint32_t computed = 0;   // swapped only
    SequenceId sequence = kNone;  // swapped only
  };

  // What a step touches of a running call: 40 bytes, in order of admission.
  struct Running {
    std::int64_t next_slot = 0;  // of token `computed`, if it lies before `capacity`
    CallId call = kNone;
    SequenceId sequence = kNone;
    std::uint32_t computed = 0;
    std::uint32_t known = 0;
    std::uint32_t limit = 0;
    std::uint32_t capacity = 0;   // tokens that its blocks hold: what the page table counts
    std::uint32_t scheduled = 0;  // tokens of the step
    std::uint32_t exported = 0;   // blocks written to its row
  };

  // Smaller goes first; the second word is different for each call.
  struct Waiting {
    std::uint64_t key = 0;
    std::uint64_t tie = 0;
    CallId call = kNone;

    friend bool operator<(const Waiting& a, const Waiting& b) { return a.key != b.key ? a.key < b.key : a.tie < b.tie; }
  };

  // The cached prefix of a waiting call, exactly.
  struct Prefix {
    std::uint32_t blocks = 0;
    std::uint32_t free_blocks = 0;       // of these, in the GPU's free list
    std::uint32_t blocks_below_gpu = 0;  // of these, to be copied up
  };

  enum class Admission : std::uint8_t { kAdmitted, kHeld, kNoRoom };

  const Call& at(CallId call) const;
  Call& at(CallId call) { return const_cast<Call&>(static_cast<const BatchFormer*>(this)->at(call)); }
  BlockHash* hashes(CallId call) { return &hashes_[std::size_t{call} * max_blocks_]; }
  const BlockHash* hashes(CallId call) const { return &hashes_[std::size_t{call} * max_blocks_]; }
  std::uint32_t blocks_for(std::uint32_t tokens) const { return tokens / block_size_ + (tokens % block_size_ != 0); }
  std::uint32_t chunk_of(std::uint32_t lacking, std::uint32_t budget) const;
  // Blocks of the known tokens that may be hit: not that of the last token.
  std::uint32_t hittable_blocks(const Call& call) const;

  bool compose(const BatchArrays& arrays, BatchSummary& summary);
  std::uint32_t decode_all(const BatchArrays& arrays, BatchSummary& summary);
  void cross_block(std::uint32_t place, const BatchArrays& arrays, BatchSummary& summary);
  bool schedule_running(bool decoding, std::uint32_t& budget, bool& preempted);
  bool allocate(Running& running, std::uint32_t end);
  std::int64_t slot_of(const Running& running, std::uint32_t token) const;
  std::size_t last_in_order() const;
  void preempt(std::size_t index);
  bool swap_out(Running& running, Call& call);
  static bool may_fill_block(const Running& running) {
    return running.scheduled > 1 || (running.scheduled == 1 && running.computed + 1 == running.capacity);
  }
  void publish(const Running& running, std::uint32_t end);
  void admit(std::uint32_t& budget);
  Admission try_admit(CallId id, std::uint32_t& budget);
  bool reopen(Call& call, std::uint32_t end);
  Prefix cached_prefix(CallId id) const;
  bool is_held(CallId id, std::uint32_t matched) const;
  bool is_cached(BlockHash hash) const;
  void emit(const BatchArrays& arrays, BatchSummary& summary);
  void emit_call(std::uint32_t place, std::uint32_t index, std::uint32_t token, const BatchArrays& arrays,
                 BatchSummary& summary);
  void export_row(Running& running, const BatchArrays& arrays, BatchSummary& summary);
  void end_call(const Running& running);
  void give_up(const Call& call);
  static CallOutcome outcome_of(const Call& call, std::uint32_t known);
  void release(CallId id);

  bool order_changes() const { return options_.order >= BatchOrder::kDfs; }
  Waiting waiting_of(CallId id);
  void refresh_order();
  void push_waiting(CallId id);
  void remove_waiting(CallId id);
  void place_waiting(std::size_t position, const Waiting& waiting);
  void sift_up(std::size_t position);
  void sift_down(std::size_t position);

  PageTable& pages_;
  const BatchFormerOptions options_;
  const std::uint32_t block_size_;
  const std::uint32_t max_blocks_;  // of a sequence
  const std::uint32_t capacity_;    // blocks that calls can have
  const std::uint32_t max_swapped_;
  const Tier slowest_hit_;
  const std::uint32_t chunk_limit_;

  std::vector<Call> calls_;
  std::unique_ptr<BlockHash[]> hashes_;  // max_blocks_ a call; behind hash_count not initialised
  std::vector<CallId> free_calls_;       // a stack
  std::vector<Running> running_;
  std::vector<Waiting> waiting_;          // a binary heap
  std::vector<CallId> held_;              // while a step admits
  std::vector<std::uint32_t> computing_;  // while a step admits: running calls with an unfinished prompt
  bool order_fresh_ = false;

  // The step that is put together, or in flight.
  std::vector<std::uint32_t> batch_;   // places in running_
  std::vector<std::uint32_t> filled_;  // places of the calls that may fill a block in this step
  std::vector<BlockCopy> copies_;      // max_copies; the first copy_count_ count
  std::vector<CallId> preempted_;
  std::uint32_t copy_count_ = 0;
  std::uint32_t first_admitted_ = 0;  // place in running_
  std::uint32_t cancelled_ = 0;       // calls marked
  bool in_flight_ = false;

  Time now_ = 0;
  std::uint64_t next_order_ = 0;
  std::uint64_t front_ = kMiddle;  // places before it are those of calls that came back to the front
  static constexpr std::uint64_t kMiddle = std::uint64_t{1} << 63;
  std::uint32_t swapped_ = 0;
  BatchFormerStats totals_;  // the *_total fields
};

}  // namespace saga
