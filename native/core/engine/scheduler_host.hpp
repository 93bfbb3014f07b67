// SchedulerHost: SAGA's scheduler (place/saga_scheduler.hpp) inside the engine.
//
// It is the engine's side of the seam place/cluster_control.hpp: what the scheduler may see is answered from the engine's state
// (mirror, loads, calls, what clients declared), and what it does becomes decisions in the outbox, which Engine::decide reads.
// Numbers at the seam are slots: of calls, of workflows (tasks), and of **threads**, which are given out here.
//
//   thread    one agent of one workflow, or one lane of it: calls of an agent that overlap run in lanes of their own, so the calls
//             of a thread follow each other. Threads live as long as their workflow.
//   kept call the newest call of each thread stays, after it has ended, until the next one is placed or the workflow is
//             closed: the scheduler moves, loads and drops its pages meanwhile. Its chain is given up where the arena has no
//             room for the prompt of an open call, the oldest first; then what workers cache of it is not known (0).
//
// Time. The scheduler asks for wake-ups; what was due before an event is run, at its own time, before that event, and Engine::tick
// also runs what is due at that very moment. So a host that ticks late gets the same decisions, only later.
//
// Cost: what the scheduler costs, plus a copy of a chain and a match for each question about what workers cache. Memory, all at
// construction: max_threads x ~40 bytes, call slots x ~200, leases and directives x ~100, receipts x 160.
//
// When a worker is removed, what is kept of it goes: leases there and copies to it end, copies from it that nobody has read
// are refused, and drops and releases that nobody has read are forgotten; kept calls no longer say that they ran there.
//
// Invariants (verify()): no kept call ran on, and nothing in the outbox is of, a worker that was removed, but for the source of
// a copy that was read; each thread is free or in the list of one open workflow; a call that is open or kept belongs to exactly
// one thread; calls with a placement in the outbox are exactly the granted ones; kept chains are linked by age.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../graph/agent_graph.hpp"
#include "../place/saga_scheduler.hpp"
#include "outbox.hpp"

namespace saga {

class Engine;
struct EngineOptions;

struct SchedulingOptions {
  std::uint32_t max_threads = 0;  // 0: twice max_workflows
  std::uint32_t max_tenants = 64;
  std::uint32_t max_graphs = 64;
  std::uint32_t max_leases = 4096;
  std::uint32_t max_directives = 4096;
  std::uint32_t max_receipts = 4096;
  std::uint32_t directive_seconds = 60;  // after which a copy without an answer has expired
  SagaParts parts;
  bool leases = false;  // the workers evict by an order of their own
  std::uint64_t kv_bytes_per_token = 327'680;
  std::uint64_t link_bytes_per_second = 25'000'000'000;
  StepCosts costs;

  // Parts that are switched off, as bits of saga_policy_part_t (C interface).
  std::uint32_t without() const;
  void set_without(std::uint32_t without);
};
inline constexpr std::uint32_t kSchedulingParts = 8;

// How far a worker's reports of what it holds are believed, in thousandths.
inline constexpr std::uint32_t kFullTrust = 1000;
inline std::uint32_t believed(std::uint32_t blocks, std::uint32_t trust) {
  return static_cast<std::uint32_t>(std::uint64_t{blocks} * trust / kFullTrust);
}

// Of a tenant's fair share.
inline constexpr double kLeastWeight = 1.0 / 1024;
inline constexpr double kMostWeight = 1024;

enum class Outcome : std::uint8_t { kApplied = 0, kRefused = 1, kExpired = 2, kRevoked = 3 };

// Why a call was placed.
struct Receipt {
  SagaReceipt decided;     // `call` is a slot, used again
  std::uint64_t call = 0;  // its handle
  std::uint32_t prompt_blocks = 0;
  std::uint32_t placement = 0;
  std::uint32_t trust = kFullTrust;  // in the worker; decided.matched_pages are as reported
  // Until then, modulo 2^32: of a worker that was added later the ids in `decided` do not speak.
  std::uint32_t workers_added = 0;
  Time submitted_at = 0;
  Time granted_at = 0;
};

struct SchedulerStats {
  std::uint64_t copies = 0;
  std::uint64_t copies_applied = 0;
  std::uint64_t copies_refused = 0;
  std::uint64_t copies_expired = 0;
  LeaseCounters leases;
  std::uint64_t drops = 0;
  std::uint64_t drops_lost = 0;
  std::uint64_t stale = 0;  // events of an earlier placement
  std::uint32_t threads = 0;
  std::uint32_t graphs = 0;
};

class SchedulerHost final : public ClusterControl {
 public:
  SchedulerHost(Engine& engine, const EngineOptions& options);

  // What the engine asks before an event.
  bool thread_available(std::uint32_t workflow, std::uint32_t agent) const {
    return find_thread(workflow, agent) != kNone || free_thread_ != kNone;
  }
  std::uint32_t kept_chunks() const { return kept_chunks_; }
  bool due_before(Time now) const { return outbox_.expired(now) != 0 || scheduler_.next_wake() < now; }
  bool graph_known(std::uint32_t graph) const { return graph < graphs_.size(); }
  // The same graph, kNone: not declared yet.
  std::uint32_t find_graph(const AgentGraph& graph) const;
  bool graphs_full() const { return graphs_.size() == max_graphs_; }
  const Directive* directive(std::uint64_t id) const { return outbox_.find(id); }
  std::uint32_t tenants() const { return static_cast<std::uint32_t>(weights_.size()); }
  std::uint32_t pending() const { return outbox_.pending(); }

  // Events, once the engine has applied its own part.
  void run_due(Time now, bool inclusive);
  std::uint32_t declare_graph(AgentGraph graph);
  void set_weight(std::uint32_t tenant, double weight);
  void worker_added(WorkerId worker) { scheduler_.worker_added(worker, now(), *this); }
  void worker_removed(WorkerId worker);
  // `recalled`: were granted there, and have been taken back (call_lost).
  void worker_drained(WorkerId worker, std::span<const CallId> recalled);
  void worker_resumed(WorkerId worker) { scheduler_.worker_resumed(worker, now(), *this); }
  void workflow_opened(std::uint32_t workflow);
  void workflow_closed(std::uint32_t workflow);
  void call_submitted(CallId call, std::uint32_t agent, std::uint32_t prompt_kind, const CallHints& hints,
                      std::span<const BlockHash> chain);
  void first_token(CallId call, WorkerId worker) { scheduler_.first_token(call, worker, now(), *this); }
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, std::uint32_t output_tokens,
                     const CallHints& hints, std::span<const BlockHash> chain);
  void call_lost(CallId call) { outbox_.forget_call(call); }
  void call_cancelled(CallId call);
  void directive_done(std::uint64_t id, Outcome outcome);
  void note_stale() { ++stats_.stale; }
  bool release_kept_chain();  // the oldest; false: there is none
  Decision pop();

  // For reports.
  Time next_wake() const { return scheduler_.next_wake(); }
  const Receipt* receipt(std::uint64_t call) const;
  SchedulerStats stats() const;
  const SagaScheduler& scheduler() const { return scheduler_; }
  bool verify() const;
  void add_to(Digest& digest) const;

  // ClusterControl
  std::uint32_t workers() const override;
  std::uint32_t page_tokens() const override;
  std::uint32_t prompt_tokens(CallId call) const override;
  PromptKind prompt_kind(CallId call) const override { return calls_[call].prompt_kind; }
  ThreadId thread(CallId call) const override { return calls_[call].thread; }
  std::uint32_t task(CallId call) const override;
  std::uint32_t tenant(std::uint32_t task) const override;
  double weight(std::uint32_t tenant) const override { return weights_[tenant]; }
  const AgentGraph* graph(std::uint32_t task) const override;
  std::uint32_t agent_kind(std::uint32_t task) const override;
  const CallHints* hints(CallId call) const override { return &calls_[call].hints; }
  std::uint32_t output_tokens(CallId call) const override { return calls_[call].output_tokens; }
  bool active(WorkerId worker) const override;
  std::uint32_t active_workers() const override;
  bool accepts(WorkerId worker) const override;
  std::uint32_t accepting_workers() const override;
  bool has_host_tier() const override;
  void match(CallId call, std::uint32_t* pages) override;
  std::uint32_t open_calls(WorkerId worker) const override;
  std::uint32_t running_pages(WorkerId worker) override;
  std::uint32_t waiting_calls(WorkerId worker) const override;
  std::uint32_t free_pages(WorkerId worker) override;
  std::uint32_t capacity_pages(WorkerId worker) const override;
  std::uint32_t leased_pages(WorkerId worker) const override;
  std::uint32_t cached_pages(CallId call, WorkerId worker) override;
  std::uint32_t cached_or_host_pages(CallId call, WorkerId worker) override;
  Time copy_time(std::uint32_t pages) const override;
  void send(CallId call, WorkerId worker) override;
  void set_priority(CallId call, std::int32_t priority) override;
  std::uint32_t copy(CallId call, WorkerId from, WorkerId to) override;
  void wake_at(Time) override {}  // next_wake() asks the scheduler
  void drop(CallId call, WorkerId worker) override;
  LeaseId lease(CallId call, WorkerId worker, std::uint64_t value, Time until) override;
  bool release(LeaseId lease) override;
  void granted(CallId call) override;

 private:
  struct Thread {
    std::uint32_t workflow = kNone;
    std::uint32_t agent = 0;
    std::uint32_t next = kNone;  // of the workflow, or free
    CallId call = kNone;         // open or kept
    bool open = false;
    bool called = false;  // it has had a call
    StopReason last_stop = StopReason::kUnknown;
  };
  struct Call {
    ThreadId thread = kNone;
    PromptKind prompt_kind = PromptKind::kStart;
    CallHints hints;
    std::uint32_t output_tokens = 0;
    std::uint32_t final_blocks = 0;              // kept: of prompt and answer
    WorkerId ran_on = kNone;                     // kept
    std::uint32_t older = kNone, newer = kNone;  // kept chains
    bool chain_kept = false;
  };

  Time now() const;
  std::uint64_t handle(CallId call) const;
  std::uint32_t find_thread(std::uint32_t workflow, std::uint32_t agent) const;
  ThreadId take_thread(std::uint32_t workflow, std::uint32_t agent);
  void keep_chain(CallId call);
  void forget_chain(CallId call);
  void free_kept(CallId call);
  const std::uint32_t* depths(CallId call);
  std::uint32_t held(CallId call, WorkerId worker, Tier tier);
  void add_receipt(CallId call, const SagaReceipt& decided);
  void end_lease(std::uint64_t id, LeaseOutcome outcome);
  void end_copy(std::uint64_t id, Outcome outcome);
  Directive directive_for(DecisionType type, CallId call, WorkerId worker) const;

  Engine& engine_;
  const std::uint32_t max_graphs_;
  const std::uint64_t kv_bytes_per_token_;
  const std::uint64_t link_bytes_per_second_;
  const Time directive_time_;
  SagaScheduler scheduler_;
  Outbox outbox_;
  std::vector<Thread> threads_;
  std::uint32_t free_thread_ = kNone;
  std::uint32_t used_threads_ = 0;
  std::vector<std::uint32_t> first_thread_;  // per workflow
  std::vector<Call> calls_;
  std::uint32_t oldest_kept_ = kNone, newest_kept_ = kNone;
  std::uint32_t kept_chunks_ = 0;
  std::vector<double> weights_;     // per tenant
  std::vector<AgentGraph> graphs_;  // reserved: they do not move
  std::vector<Receipt> receipts_;   // ring
  std::uint64_t receipts_made_ = 0;
  CallId submitting_ = kNone;  // its chain lies with the caller
  std::span<const BlockHash> submitting_chain_;
  CallId matched_ = kNone;  // whose match lies in the engine's columns; kNone: it may have changed since
  SchedulerStats stats_;
};

}  // namespace saga
