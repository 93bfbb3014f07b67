// The engine: SAGA as a deterministic state machine.
//
// Every change of state is an event with an explicit time: worker added or removed, KV blocks stored, removed or cleared,
// workflow opened or closed, call submitted, first token, call finished, tool started or finished, load reported, graph
// declared, tenant's weight set, outcome of a directive told, worker trusted, drained or given a window, tick. An
// event method checks that the event fits the state, writes it to the journal and applies it; otherwise it returns a status
// and changes nothing (but for an allocation that fails in its middle: the C ABI then refuses all further events). decide(now)
// then emits decisions. The same events with the same options and seed give byte-identical
// decisions on every machine: there is no clock, no I/O and no iteration of a hash map here, and ties break by small ids.
//
// What it knows
//
//   workers    id (small, see below), KV room in blocks, open calls, blocks in use by running calls,
//              and which blocks it holds: the mirror (index/mirror.hpp), reference counted per (worker, tier, hash). Further:
//   trust      how far these blocks count where a worker is chosen, in thousandths; matches are told as reported
//   accepts    no: it is drained. It gets no calls and no copies, and keeps those that it has been told of
//   window     of a model with sliding-window attention, in blocks: D leading blocks in GPU memory are a match up to
//              the longest prefix whose last `window` blocks (all, where it is shorter) its window groups hold. These
//              are a mirror of their own, made with their first event; a match then walks back from its end, O(window)
//              where it ends in a window
//   workflows  an agent's whole task: tenant, open calls, whether a tool runs and since when
//   calls      one LLM call of a workflow: its chain of block hashes, prompt tokens, worker and state
//
// States of a call
//
//   waiting   -> placed     (decide)                   no active worker: it stays waiting
//   waiting   -> granted    (kSaga: the scheduler sends it, in any event)    -> placed  (decide)
//   placed    -> running    (first_token)
//   placed, running -> gone (finish_call)              its id becomes invalid. kSaga: -> kept (scheduler_host.hpp) -> gone
//   any -> gone             (cancel_call)
//   granted, placed, running -> waiting (remove_worker)   its worker is lost: it is placed again
//   granted   -> waiting    (worker_accepts)           its worker is drained
//
// Who decides: the baselines (place/placement.hpp) when decide is called, one call after the other; kSaga, SAGA's own scheduler
// (scheduler_host.hpp), at every event, so that decide hands out what was decided since, directives among it.
//
// States of a workflow: thinking (calls open or none yet) -> tool (tool_started) -> thinking (tool_finished); close_workflow
// needs that no call is open.
//
// Ids of workflows and calls are slot + generation * 2^32; the generation has 20 bits, so an id fits a JavaScript number and a
// stale id is found as long as its slot was not reused 2^20 times.
//
// Ids of workers are 0 to max_workers - 1. Each new worker has one that nobody had, while there are such; then the one whose
// worker was removed longest ago. So a stale one is found as long as ids last, and is another worker's as late as can be:
// whoever keeps one must forget it with its worker. The engine does: nothing that it keeps or still hands out refers to a
// worker that was removed, but receipts, which say how many workers had been added until then, and what a placement
// reports of the longest match when it was decided.
//
// Costs: events on blocks cost what the mirror costs (index/prefix_index.hpp); remove_worker that of clearing the worker
// plus O(max_calls + n log n) for its n calls, worker_accepts with kSaga the latter; all others O(1) plus one copy of a
// chain at submit, and with kSaga what the scheduler costs. decide is O(decisions) with kSaga, else one match per waiting
// call plus O(workers). Everything is reserved at construction (the mirror's exceptions aside): an open call's chain lies in
// 2 KiB chunks of one arena of `max_open_blocks` hashes, because a call that loses its worker is placed again.
//
// Invariants (verify): ids that were given out are those of active workers and, each once, those that wait to be given out
// again; per worker, open_calls equals the placed and running calls on it, and estimated_blocks the sum of the
// blocks of those placed since its last report; the waiting queue holds exactly the waiting calls, in order of submission; a workflow's open_calls equals its
// calls; free and used slots and chunks add up; workers are counted by what they accept, their trust and their windows; both
// mirrors verify.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../base/huge_array.hpp"
#include "../base/random.hpp"
#include "../base/status.hpp"
#include "../base/types.hpp"
#include "../index/mirror.hpp"
#include "../place/placement.hpp"
#include "decisions.hpp"
#include "journal.hpp"
#include "scheduler_host.hpp"

namespace saga {

using WorkflowHandle = std::uint64_t;  // slot + generation * 2^32
using CallHandle = std::uint64_t;

struct EngineOptions {
  std::uint32_t max_workers = 64;
  std::uint32_t max_workflows = 4096;
  std::uint32_t max_calls = 8192;             // open at one time
  std::uint64_t max_blocks = 1u << 20;        // of the mirror: see PrefixIndexOptions
  std::uint32_t max_chain_blocks = 1u << 17;  // longest prompt in blocks: 2 M tokens in blocks of 16
  std::uint64_t max_open_blocks = 1u << 21;   // prompts of all open calls together (16 MiB)
  std::uint32_t block_tokens = 16;
  std::uint64_t seed = 0;
  PlacementOptions placement;
  SchedulingOptions scheduling;     // with PlacementKind::kSaga
  std::uint64_t journal_bytes = 0;  // capacity of the journal buffer: 0 = no journal, else at least 4,096
};

// What can be told of an event beyond the necessary. kNone, zero and kNotDeclared: not told.
struct WorkflowInfo {
  std::uint32_t tenant = 0;
  std::uint32_t graph = kNone;  // of declare_graph
  std::uint32_t agent_kind = 0;
};
struct CallInfo {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t agent = 0;            // of the workflow
  std::uint32_t prompt_kind = kNone;  // PromptKind
  CallHints hints;
};
struct AnswerInfo {
  std::uint32_t placement = kNone;  // that answers; kNone: the present one
  StopReason stop = StopReason::kUnknown;
  ToolClass tool = ToolClass::kNone;
  std::uint32_t output_tokens = 0;
  CallHints hints;
};
struct WorkerLoad {
  std::uint32_t running_blocks = 0;
  std::uint32_t waiting_calls = kNone;
  std::uint32_t free_blocks = kNone;
};

struct WorkerState {
  std::uint32_t capacity_blocks = 0;
  std::uint32_t open_calls = 0;
  std::uint32_t reported_blocks = 0;   // in use by running calls, as the worker last said; 0 before that
  std::uint64_t estimated_blocks = 0;  // full and partial blocks of the prompts of open calls placed since then
  std::uint64_t reports = 0;
  std::uint32_t reported_waiting = kNone;  // calls in its queue, and blocks that hold nothing; kNone: not told
  std::uint32_t reported_free = kNone;
  std::uint32_t trust = kFullTrust;
  std::uint32_t window_blocks = 0;
  std::uint8_t active = 0;
  std::uint8_t accepts = 1;

  // What placement goes by: calls that the worker cannot have counted yet are added to what it said.
  std::uint32_t blocks_in_use() const {
    const std::uint64_t blocks = reported_blocks + estimated_blocks;
    return blocks < kNone ? static_cast<std::uint32_t>(blocks) : kNone;
  }
};

struct EngineStats {
  std::uint32_t workers = 0;
  std::uint32_t workflows = 0;
  std::uint32_t open_calls = 0;
  std::uint32_t waiting_calls = 0;  // granted ones included
  std::uint64_t placed_calls = 0;
  std::uint64_t finished_calls = 0;
  std::uint64_t cancelled_calls = 0;
  std::uint64_t replaced_calls = 0;  // lost their worker and went back to waiting
  std::uint64_t prompt_blocks = 0;   // of all placed calls
  std::uint64_t matched_blocks = 0;  // of those, held by the chosen worker in GPU memory
  std::uint64_t holder_blocks = 0;   // (worker, tier, block) triples known
  std::uint64_t journal_bytes = 0;
};

class Engine {
 public:
  explicit Engine(const EngineOptions& options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineOptions& options() const { return options_; }

  // Workers.
  Status add_worker(Time now, std::uint32_t capacity_blocks, WorkerId* worker);
  Status remove_worker(Time now, WorkerId worker);
  Status blocks_stored(Time now, WorkerId worker, Tier tier, BlockHash parent, std::span<const BlockHash> hashes);
  Status blocks_removed(Time now, WorkerId worker, Tier tier, std::span<const BlockHash> hashes);
  Status blocks_cleared(Time now, WorkerId worker);
  Status worker_load(Time now, WorkerId worker, const WorkerLoad& load);
  Status worker_load(Time now, WorkerId worker, std::uint32_t blocks_in_use) {
    return worker_load(now, worker, WorkerLoad{blocks_in_use, kNone, kNone});
  }

  Status worker_trust(Time now, WorkerId worker, std::uint32_t per_mille);
  Status worker_accepts(Time now, WorkerId worker, bool accepts);
  Status worker_window(Time now, WorkerId worker, std::uint32_t window_blocks);
  Status window_stored(Time now, WorkerId worker, std::span<const BlockHash> hashes);
  Status window_removed(Time now, WorkerId worker, std::span<const BlockHash> hashes);

  // With kSaga; otherwise kWrongState. The graph is not prepared yet; its values are the caller's to check (verify()).
  Status declare_graph(Time now, const AgentGraph& graph, std::uint32_t* id);
  Status set_tenant(Time now, std::uint32_t tenant, double weight);
  Status directive_done(Time now, std::uint64_t id, Outcome outcome);

  // Workflows and calls.
  Status open_workflow(Time now, const WorkflowInfo& info, WorkflowHandle* workflow);
  Status open_workflow(Time now, std::uint32_t tenant, WorkflowHandle* workflow) {
    return open_workflow(now, WorkflowInfo{tenant, kNone, 0}, workflow);
  }
  Status close_workflow(Time now, WorkflowHandle workflow);
  Status submit_call(Time now, WorkflowHandle workflow, const CallInfo& info, std::span<const BlockHash> chain,
                     CallHandle* call);
  Status submit_call(Time now, WorkflowHandle workflow, std::uint32_t prompt_tokens, std::span<const BlockHash> chain,
                     CallHandle* call) {
    return submit_call(now, workflow, CallInfo{prompt_tokens, 0, kNone, {}}, chain, call);
  }
  // `placement` as in the decision; kWrongState where the call has been placed anew since. kNone: the present one.
  Status first_token(Time now, CallHandle call, std::uint32_t placement = kNone);
  // `chain`: the full blocks behind those of the prompt that the answer has filled, if known.
  Status finish_call(Time now, CallHandle call, const AnswerInfo& info, std::span<const BlockHash> chain = {});
  Status finish_call(Time now, CallHandle call, StopReason stop, ToolClass tool, std::uint32_t output_tokens) {
    return finish_call(now, call, AnswerInfo{kNone, stop, tool, output_tokens, {}});
  }
  // The client is gone: the call ends in whatever state it is.
  Status cancel_call(Time now, CallHandle call);
  Status tool_started(Time now, WorkflowHandle workflow, ToolClass tool);
  Status tool_finished(Time now, WorkflowHandle workflow);
  Status tick(Time now);

  // Places waiting calls in order of submission, as many as `decisions` has room for and, with a journal, one record can hold
  // ((journal_bytes - 25) / 64); *count receives how many were written. On kJournalFull nothing was decided. With kSaga:
  // hands out what was decided since, in order.
  Status decide(Time now, std::span<Decision> decisions, std::size_t* count);

  // Leading blocks of `chain` per worker and tier, depth[worker * kTierCount + tier] for worker < worker_slots().
  // Changes nothing; returns the longest in any tier.
  std::uint32_t match(std::span<const BlockHash> chain, std::uint32_t* depth) const {
    const std::uint32_t longest = mirror_.match(chain, depth);
    return windowed_workers_ == 0 ? longest : apply_windows(chain, depth);
  }
  std::uint32_t worker_slots() const { return options_.max_workers; }

  // When tick and decide should be called at the latest; kNotDeclared: not before the next event.
  Time next_wake() const { return host_ == nullptr ? kNotDeclared : host_->next_wake(); }
  // SAGA's scheduler and what it decides by; nullptr with another placement.
  const SchedulerHost* scheduling() const { return host_.get(); }
  // Decisions that wait for decide, at most.
  std::uint32_t pending_decisions() const { return host_ == nullptr ? waiting_calls_ : host_->pending(); }

  bool worker_state(WorkerId worker, WorkerState* state) const;
  std::uint64_t window_held(WorkerId worker) const {  // distinct blocks
    return windows_ == nullptr ? 0 : windows_->index().holder_blocks(worker, Tier::kGpu);
  }
  EngineStats stats() const;
  Time now() const { return now_; }
  JournalWriter& journal() { return journal_; }

  bool verify() const;
  // Of the whole state, the generator included; the same for every engine that has seen the same events.
  std::uint64_t digest() const;

 private:
  friend class SchedulerHost;
  enum class CallState : std::uint8_t { kFree, kWaiting, kPlaced, kRunning, kGranted, kKept };
  static constexpr std::uint32_t kChunkBlocks = 256;
  enum class WorkflowState : std::uint8_t { kFree, kThinking, kTool };

  struct Call {
    Time submitted = 0;
    std::uint64_t sequence = 0;         // number of its submission
    std::uint32_t first_chunk = kNone;  // of its chain
    std::uint32_t chain_blocks = 0;
    std::uint32_t generation = 0;
    std::uint32_t workflow = kNone;
    WorkerId worker = kNone;
    std::uint64_t reports = 0;  // of its worker when it was placed
    std::uint32_t prompt_tokens = 0;
    std::uint32_t placement = 0;  // how often it was placed before
    CallState state = CallState::kFree;
    std::uint32_t previous = kNone;  // waiting queue
    std::uint32_t next = kNone;      // waiting queue, or list of free slots
  };
  struct Workflow {
    Time since = 0;  // start of the present state
    std::uint32_t generation = 0;
    std::uint32_t tenant = 0;
    std::uint32_t graph = kNone;
    std::uint32_t agent_kind = 0;
    std::uint32_t open_calls = 0;
    std::uint32_t finished_calls = 0;
    WorkflowState state = WorkflowState::kFree;
    ToolClass tool = ToolClass::kNone;
    StopReason last_stop = StopReason::kUnknown;
    std::uint32_t next_free = kNone;
  };

  Status admit(Time now, std::size_t payload) const;
  // Time has come to `now`: what the scheduler wanted to do before, it does first.
  void advance(Time now, bool due_now = false) {
    if (host_ != nullptr) host_->run_due(now, due_now);
    now_ = now;
  }
  bool worker_active(WorkerId worker) const { return worker < worker_count_ && workers_[worker].active != 0; }
  bool worker_accepting(WorkerId worker) const { return worker_active(worker) && workers_[worker].accepts != 0; }
  void count_properties(WorkerId worker, bool present);
  WorkerId removed_id(std::uint32_t place) const {  // 0: the one that was removed longest ago
    return removed_ids_[(first_removed_ + place) % options_.max_workers];
  }
  std::uint32_t removed_ids() const { return worker_count_ - active_workers_; }
  std::uint32_t apply_windows(std::span<const BlockHash> chain, std::uint32_t* depth) const;
  void find_longest_match(Decision* decision) const;  // by the depths of the last match
  void clear_blocks(WorkerId worker);
  std::span<const std::uint32_t> take_calls_back(WorkerId worker, bool granted_only);
  std::uint32_t call_slot(CallHandle call) const;
  std::uint32_t any_call_slot(CallHandle call) const;  // kept ones too
  CallHandle handle_of_call(std::uint32_t slot) const;
  bool stale_placement(const Call& call, std::uint32_t placement);
  std::uint32_t workflow_slot(WorkflowHandle workflow) const;
  std::uint32_t blocks_of(const Call& call) const {
    return static_cast<std::uint32_t>((std::uint64_t{call.prompt_tokens} + options_.block_tokens - 1) /
                                      options_.block_tokens);
  }
  void enqueue_waiting(std::uint32_t slot, std::uint32_t next);
  void dequeue_waiting(std::uint32_t slot);
  void leave_worker(Call& call);
  void end_call(std::uint32_t slot);
  void free_slot(std::uint32_t slot);
  void grant(std::uint32_t slot, WorkerId worker, Decision& decision);
  Status decide_by_scheduler(Time now, std::span<Decision> decisions, std::size_t* count);
  static std::uint32_t chunks_of(std::size_t blocks) {
    return static_cast<std::uint32_t>((blocks + kChunkBlocks - 1) / kChunkBlocks);
  }
  void extend_chain(Call& call, std::span<const BlockHash> more);
  bool store_chain(Call& call, std::span<const BlockHash> chain);
  void release_chain(Call& call);
  // The chain of a call side by side, valid until the next call of load_chain.
  std::span<const BlockHash> load_chain(const Call& call);
  // The same in pieces. It touches no scratch memory, so that const functions may run at the same time as each other.
  template <class Visitor>
  void for_each_chunk(const Call& call, Visitor visit) const {
    std::size_t rest = call.chain_blocks;
    for (std::uint32_t chunk = call.first_chunk; chunk != kNone; chunk = next_chunk_[chunk]) {
      const std::size_t count = rest < kChunkBlocks ? rest : kChunkBlocks;
      visit(std::span<const BlockHash>(&chunks_[std::size_t{chunk} * kChunkBlocks], count));
      rest -= count;
    }
  }
  void write_options();

  EngineOptions options_;
  Mirror mirror_;
  std::unique_ptr<Mirror> windows_;  // of window groups, in the tier kGpu; made when there are any
  Random random_;
  JournalWriter journal_;
  Time now_ = 0;

  std::uint32_t worker_count_ = 0;  // ids that were ever given out
  std::uint32_t active_workers_ = 0;
  std::uint64_t added_workers_ = 0;
  // Ids of removed workers in the order in which they went: a ring, as many as are given out and not active.
  std::vector<WorkerId> removed_ids_;
  std::uint32_t first_removed_ = 0;
  std::uint32_t accepting_workers_ = 0;   // of the active ones
  std::uint32_t distrusted_workers_ = 0;  // of the active ones: with less than full trust
  std::uint32_t windowed_workers_ = 0;    // of the active ones: with a window
  std::uint32_t round_robin_next_ = 0;
  std::vector<WorkerState> workers_;
  // Columns of `workers_` that a placement reads, and the depths of the last match.
  std::vector<std::uint8_t> active_column_;
  std::vector<std::uint32_t> open_calls_column_;
  std::vector<std::uint32_t> blocks_in_use_column_;
  std::vector<std::uint32_t> matched_column_;
  std::vector<std::uint32_t> depth_;

  std::vector<Workflow> workflows_;
  std::uint32_t free_workflow_ = 0;
  std::uint32_t open_workflows_ = 0;

  HugeArray<BlockHash> chunks_;  // kChunkBlocks hashes each; takes memory as it is used
  std::vector<std::uint32_t> next_chunk_;
  std::uint32_t free_chunk_ = kNone;
  std::uint32_t free_chunks_ = 0;
  std::vector<BlockHash> scratch_chain_;

  std::vector<Call> calls_;
  std::vector<std::uint32_t> lost_calls_;  // scratch of remove_worker
  std::uint32_t free_call_ = 0;
  std::uint32_t open_calls_ = 0;
  std::uint32_t waiting_first_ = kNone;
  std::uint32_t waiting_last_ = kNone;
  std::uint32_t waiting_calls_ = 0;
  std::uint32_t granted_calls_ = 0;
  bool host_blocks_seen_ = false;

  std::uint64_t submitted_calls_ = 0;
  std::uint64_t placed_calls_ = 0;
  std::uint64_t finished_calls_ = 0;
  std::uint64_t cancelled_calls_ = 0;
  std::uint64_t replaced_calls_ = 0;
  std::uint64_t prompt_blocks_ = 0;
  std::uint64_t matched_blocks_ = 0;
  std::unique_ptr<SchedulerHost> host_;  // with kSaga
};

// The options of a journal's engine, its own journal switched off. They are as recorded: the caller checks their ranges.
Status read_journal_options(std::span<const std::uint8_t> journal, EngineOptions* options);

// Rebuilds an engine from a journal: `engine` is new and made with the journal's options; all records are applied to it, and
// each decision is compared with the one recorded. The status is kOk; kJournalCorrupt, where the engine holds the state of the
// good part; kJournalMismatch, where an event was refused or a decision came out otherwise (in the latter case the engine holds
// the state after its own decisions); or kVersionMismatch.
struct ReplayResult {
  Status status = Status::kOk;
  std::uint64_t events = 0;
  std::uint64_t decisions = 0;
  std::uint64_t good_bytes = 0;  // up to the last record that was applied and agreed
};
ReplayResult replay_journal(std::span<const std::uint8_t> journal, Engine& engine);

}  // namespace saga
