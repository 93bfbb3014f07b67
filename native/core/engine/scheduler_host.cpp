#include "scheduler_host.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "engine.hpp"

namespace saga {
namespace {

SagaSchedulerOptions scheduler_options(const EngineOptions& options) {
  const SchedulingOptions& scheduling = options.scheduling;
  SagaSchedulerOptions saga;
  saga.workers = options.max_workers;
  saga.threads = scheduling.max_threads;
  saga.tasks = options.max_workflows;
  // Ids go beyond the calls that may be open: the last calls of threads are kept in slots of their own.
  saga.calls = options.max_calls + scheduling.max_threads;
  saga.tenants = scheduling.max_tenants;
  saga.seed = options.seed;
  saga.costs = scheduling.costs;
  saga.kv_bytes_per_token = static_cast<double>(scheduling.kv_bytes_per_token);
  saga.parts = scheduling.parts;
  saga.leases = scheduling.leases;
  return saga;
}

bool equal(const AgentGraph& a, const AgentGraph& b) {
  const auto same_step = [](const AgentStep& x, const AgentStep& y) {
    return x.tool == y.tool && x.output_tokens == y.output_tokens && x.observation_tokens == y.observation_tokens &&
           x.gap_seconds == y.gap_seconds;
  };
  const auto same_edge = [](const AgentEdge& x, const AgentEdge& y) {
    return x.from == y.from && x.to == y.to && x.probability == y.probability;
  };
  return a.first_prompt_tokens == b.first_prompt_tokens && a.expected_calls == b.expected_calls &&
         a.expected_seconds == b.expected_seconds &&
         std::equal(a.steps.begin(), a.steps.end(), b.steps.begin(), b.steps.end(), same_step) &&
         std::equal(a.edges.begin(), a.edges.end(), b.edges.begin(), b.edges.end(), same_edge);
}

}  // namespace

std::uint32_t SchedulingOptions::without() const {
  const bool with[kSchedulingParts] = {parts.prediction, !leases,         parts.affinity, parts.stealing,
                                       parts.prefetch,   parts.admission, parts.fairness, parts.retention};
  std::uint32_t bits = 0;
  for (std::uint32_t bit = 0; bit < kSchedulingParts; ++bit) bits |= with[bit] ? 0u : 1u << bit;
  return bits;
}

void SchedulingOptions::set_without(std::uint32_t bits) {
  const auto with = [bits](std::uint32_t bit) { return (bits >> bit & 1u) == 0; };
  parts.prediction = with(0);
  leases = !with(1);
  parts.affinity = with(2);
  parts.stealing = with(3);
  parts.prefetch = with(4);
  parts.admission = with(5);
  parts.fairness = with(6);
  parts.retention = with(7);
}

SchedulerHost::SchedulerHost(Engine& engine, const EngineOptions& options)
    : engine_(engine),
      max_graphs_(options.scheduling.max_graphs),
      kv_bytes_per_token_(options.scheduling.kv_bytes_per_token),
      link_bytes_per_second_(options.scheduling.link_bytes_per_second),
      directive_time_(Time{options.scheduling.directive_seconds} * 1'000'000),
      scheduler_(scheduler_options(options)),
      outbox_(options.max_calls + options.scheduling.max_threads, options.scheduling.max_leases,
              options.scheduling.max_directives),
      threads_(options.scheduling.max_threads),
      first_thread_(options.max_workflows, kNone),
      calls_(std::size_t{options.max_calls} + options.scheduling.max_threads),
      weights_(options.scheduling.max_tenants, 1.0),
      receipts_(options.scheduling.max_receipts) {
  graphs_.reserve(max_graphs_);
  for (std::uint32_t thread = options.scheduling.max_threads; thread-- > 0; free_thread_ = thread) {
    threads_[thread].next = free_thread_;
  }
}

Time SchedulerHost::now() const { return engine_.now_; }

std::uint64_t SchedulerHost::handle(CallId call) const { return engine_.handle_of_call(call); }

// -------------------------------------------------------------------------------------------------------------- threads

// A thread of the agent without an open call.
std::uint32_t SchedulerHost::find_thread(std::uint32_t workflow, std::uint32_t agent) const {
  std::uint32_t thread = first_thread_[workflow];
  while (thread != kNone && (threads_[thread].agent != agent || threads_[thread].open)) thread = threads_[thread].next;
  return thread;
}

ThreadId SchedulerHost::take_thread(std::uint32_t workflow, std::uint32_t agent) {
  const std::uint32_t found = find_thread(workflow, agent);
  if (found != kNone) return found;
  const std::uint32_t thread = free_thread_;
  SAGA_ASSERT(thread != kNone);
  free_thread_ = threads_[thread].next;
  threads_[thread] = Thread{};
  threads_[thread].workflow = workflow;
  threads_[thread].agent = agent;
  std::uint32_t* link = &first_thread_[workflow];  // the oldest lane of an agent is found first
  while (*link != kNone) link = &threads_[*link].next;
  *link = thread;
  ++used_threads_;
  return thread;
}

void SchedulerHost::keep_chain(CallId call) {
  Call& kept = calls_[call];
  kept.chain_kept = true;
  kept.older = newest_kept_;
  kept.newer = kNone;
  (newest_kept_ == kNone ? oldest_kept_ : calls_[newest_kept_].newer) = call;
  newest_kept_ = call;
  kept_chunks_ += Engine::chunks_of(engine_.calls_[call].chain_blocks);
}

void SchedulerHost::forget_chain(CallId call) {
  Call& kept = calls_[call];
  if (!kept.chain_kept) return;
  (kept.older == kNone ? oldest_kept_ : calls_[kept.older].newer) = kept.newer;
  (kept.newer == kNone ? newest_kept_ : calls_[kept.newer].older) = kept.older;
  kept.older = kept.newer = kNone;
  kept.chain_kept = false;
  kept_chunks_ -= Engine::chunks_of(engine_.calls_[call].chain_blocks);
  engine_.release_chain(engine_.calls_[call]);
}

bool SchedulerHost::release_kept_chain() {
  if (oldest_kept_ == kNone) return false;
  forget_chain(oldest_kept_);
  return true;
}

void SchedulerHost::free_kept(CallId call) {
  forget_chain(call);
  outbox_.forget_call(call);
  engine_.free_slot(call);
}

// --------------------------------------------------------------------------------------------------------------- events

void SchedulerHost::run_due(Time until, bool inclusive) {
  matched_ = kNone;
  for (std::uint64_t id = outbox_.expired(until); id != 0; id = outbox_.expired(until)) {
    if (Outbox::is_lease(id)) {
      end_lease(id, LeaseOutcome::kExpired);
    } else {
      outbox_.end(id);
      ++stats_.copies_expired;
    }
  }
  for (Time next = scheduler_.next_wake(); next < until || (inclusive && next == until);
       next = scheduler_.next_wake()) {
    if (next > engine_.now_) engine_.now_ = next;
    scheduler_.timer(engine_.now_, *this);
  }
  matched_ = kNone;
}

std::uint32_t SchedulerHost::find_graph(const AgentGraph& graph) const {
  for (std::uint32_t id = 0; id < graphs_.size(); ++id) {
    if (equal(graphs_[id], graph)) return id;
  }
  return kNone;
}

std::uint32_t SchedulerHost::declare_graph(AgentGraph graph) {
  SAGA_ASSERT(!graphs_full());
  graph.prepare();
  graphs_.push_back(std::move(graph));
  stats_.graphs = static_cast<std::uint32_t>(graphs_.size());
  return stats_.graphs - 1;
}

void SchedulerHost::set_weight(std::uint32_t tenant, double weight) {
  weights_[tenant] = weight;
  scheduler_.tenant_changed(tenant, now(), *this);
}

void SchedulerHost::worker_removed(WorkerId worker) {
  for (std::uint64_t id = outbox_.any_on(worker); id != 0; id = outbox_.any_on(worker)) {
    if (Outbox::is_lease(id)) {
      end_lease(id, LeaseOutcome::kRevoked);
    } else {
      outbox_.end(id);
      ++stats_.copies_refused;
    }
  }
  outbox_.forget_worker(worker);
  for (Call& call : calls_) {
    if (call.ran_on == worker) call.ran_on = kNone;
  }
  scheduler_.worker_removed(worker, now(), *this);
  // Who waits for its pages waits no longer.
  for (std::uint64_t id = outbox_.unread_copy_from(worker); id != 0; id = outbox_.unread_copy_from(worker)) {
    end_copy(id, Outcome::kRefused);
  }
}

void SchedulerHost::worker_drained(WorkerId worker, std::span<const CallId> recalled) {
  for (const CallId call : recalled) scheduler_.call_recalled(call, now(), *this);
  for (std::uint64_t id = outbox_.unread_copy_to(worker); id != 0; id = outbox_.unread_copy_to(worker)) {
    outbox_.end(id);
    ++stats_.copies_refused;
  }
  scheduler_.worker_drained(worker, now(), *this);
}

void SchedulerHost::workflow_opened(std::uint32_t workflow) { scheduler_.task_arrived(workflow, now(), *this); }

void SchedulerHost::workflow_closed(std::uint32_t workflow) {
  scheduler_.task_finished(workflow, now(), *this);
  for (std::uint32_t thread = first_thread_[workflow]; thread != kNone;) {
    Thread& closed = threads_[thread];
    SAGA_ASSERT(!closed.open);
    if (closed.call != kNone) free_kept(closed.call);
    const std::uint32_t next = closed.next;
    closed = Thread{};
    closed.next = free_thread_;
    free_thread_ = thread;
    --used_threads_;
    thread = next;
  }
  first_thread_[workflow] = kNone;
}

void SchedulerHost::call_submitted(CallId call, std::uint32_t agent, std::uint32_t prompt_kind, const CallHints& hints,
                                   std::span<const BlockHash> chain) {
  const ThreadId id = take_thread(engine_.calls_[call].workflow, agent);
  Thread& thread = threads_[id];
  const PromptKind by_history = !thread.called                             ? PromptKind::kStart
                                : thread.last_stop == StopReason::kEndTurn ? PromptKind::kUser
                                                                           : PromptKind::kTool;
  Call& submitted = calls_[call];
  submitted = Call{};
  submitted.thread = id;
  submitted.prompt_kind = prompt_kind == kNone ? by_history : static_cast<PromptKind>(prompt_kind);
  submitted.hints = hints;
  outbox_.draft(call) = Decision{};
  const CallId before = thread.call;
  thread.call = call;
  thread.open = true;
  thread.called = true;
  submitting_ = call;
  submitting_chain_ = chain;
  const WorkerId worker = scheduler_.place(call, now(), *this);
  submitting_ = kNone;
  submitting_chain_ = {};
  if (worker != kNone) send(call, worker);
  if (before != kNone) free_kept(before);
}

void SchedulerHost::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool,
                                  std::uint32_t output_tokens, const CallHints& hints,
                                  std::span<const BlockHash> chain) {
  Call& finished = calls_[call];
  Engine::Call& known = engine_.calls_[call];
  // The KV of the last token of an answer is never computed.
  const std::uint64_t tokens = std::uint64_t{known.prompt_tokens} + (output_tokens > 0 ? output_tokens - 1 : 0);
  if (!chain.empty() && known.chain_blocks == known.prompt_tokens / engine_.options_.block_tokens) {
    engine_.extend_chain(known, chain);
  }
  outbox_.forget_call(call);
  finished.hints = hints;
  finished.output_tokens = output_tokens;
  finished.ran_on = worker;
  finished.final_blocks = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(tokens / engine_.options_.block_tokens, engine_.options_.max_chain_blocks));
  keep_chain(call);
  Thread& thread = threads_[finished.thread];
  thread.open = false;
  thread.last_stop = stop;
  scheduler_.call_finished(call, worker, stop, tool, now(), *this);
}

// The engine has taken it from its worker or from those that wait, and frees the slot afterwards.
void SchedulerHost::call_cancelled(CallId call) {
  outbox_.forget_call(call);
  scheduler_.call_cancelled(call, now(), *this);
  Thread& thread = threads_[calls_[call].thread];
  thread.open = false;
  thread.call = kNone;
}

void SchedulerHost::directive_done(std::uint64_t id, Outcome outcome) {
  const Directive directive = *outbox_.find(id);
  if (Outbox::is_lease(id)) {
    if (outcome == Outcome::kApplied) {
      scheduler_.lease_reported(
          {id, engine_.any_call_slot(directive.call), directive.worker, directive.blocks, LeaseOutcome::kGranted},
          now(), *this);
      return;
    }
    end_lease(id, outcome == Outcome::kRefused   ? LeaseOutcome::kRefused
                  : outcome == Outcome::kExpired ? LeaseOutcome::kExpired
                                                 : LeaseOutcome::kRevoked);
    return;
  }
  end_copy(id, outcome);
}

void SchedulerHost::end_copy(std::uint64_t id, Outcome outcome) {
  const Directive directive = *outbox_.find(id);
  outbox_.end(id);
  ++(outcome == Outcome::kApplied   ? stats_.copies_applied
     : outcome == Outcome::kExpired ? stats_.copies_expired
                                    : stats_.copies_refused);
  const CallId call = engine_.any_call_slot(directive.call);
  if (call != kNone) scheduler_.copy_ended(call, directive.worker, now(), *this);
}

void SchedulerHost::end_lease(std::uint64_t id, LeaseOutcome outcome) {
  const Directive directive = *outbox_.find(id);
  outbox_.end(id);
  ++(outcome == LeaseOutcome::kExpired   ? stats_.leases.expired
     : outcome == LeaseOutcome::kRevoked ? stats_.leases.revoked
                                         : stats_.leases.refused);
  if (outcome == LeaseOutcome::kRefused) --stats_.leases.granted;  // counted when it was asked for
  scheduler_.lease_reported({id, engine_.any_call_slot(directive.call), directive.worker, directive.blocks, outcome},
                            now(), *this);
}

Decision SchedulerHost::pop() {
  Decision decision = outbox_.pop();
  decision.decided_at = now();
  return decision;
}

// --------------------------------------------------------------------------------------------------------------- reports

const Receipt* SchedulerHost::receipt(std::uint64_t call) const {
  const std::uint64_t kept = std::min<std::uint64_t>(receipts_made_, receipts_.size());
  for (std::uint64_t back = 1; back <= kept; ++back) {
    const Receipt& one = receipts_[(receipts_made_ - back) % receipts_.size()];
    if (one.call == call) return &one;
  }
  return nullptr;
}

void SchedulerHost::add_receipt(CallId call, const SagaReceipt& decided) {
  if (receipts_.empty()) return;
  const Engine::Call& known = engine_.calls_[call];
  Receipt& receipt = receipts_[receipts_made_++ % receipts_.size()];
  receipt.decided = decided;
  receipt.call = handle(call);
  receipt.prompt_blocks = known.prompt_tokens / engine_.options_.block_tokens;
  receipt.placement = known.placement;
  receipt.trust = engine_.workers_[decided.worker].trust;
  receipt.workers_added = static_cast<std::uint32_t>(engine_.added_workers_);
  receipt.submitted_at = known.submitted;
  receipt.granted_at = now();
}

SchedulerStats SchedulerHost::stats() const {
  SchedulerStats stats = stats_;
  stats.threads = used_threads_;
  return stats;
}

// ------------------------------------------------------------------------------------------------------- ClusterControl

std::uint32_t SchedulerHost::workers() const { return engine_.worker_count_; }
std::uint32_t SchedulerHost::page_tokens() const { return engine_.options_.block_tokens; }
std::uint32_t SchedulerHost::prompt_tokens(CallId call) const { return engine_.calls_[call].prompt_tokens; }
std::uint32_t SchedulerHost::task(CallId call) const { return engine_.calls_[call].workflow; }
std::uint32_t SchedulerHost::tenant(std::uint32_t task) const { return engine_.workflows_[task].tenant; }
std::uint32_t SchedulerHost::agent_kind(std::uint32_t task) const { return engine_.workflows_[task].agent_kind; }
bool SchedulerHost::active(WorkerId worker) const { return engine_.worker_active(worker); }
std::uint32_t SchedulerHost::active_workers() const { return engine_.active_workers_; }
bool SchedulerHost::accepts(WorkerId worker) const { return engine_.worker_accepting(worker); }
std::uint32_t SchedulerHost::accepting_workers() const { return engine_.accepting_workers_; }
bool SchedulerHost::has_host_tier() const { return engine_.host_blocks_seen_; }
std::uint32_t SchedulerHost::open_calls(WorkerId worker) const { return engine_.workers_[worker].open_calls; }
std::uint32_t SchedulerHost::running_pages(WorkerId worker) { return engine_.workers_[worker].blocks_in_use(); }
std::uint32_t SchedulerHost::capacity_pages(WorkerId worker) const { return engine_.workers_[worker].capacity_blocks; }

const AgentGraph* SchedulerHost::graph(std::uint32_t task) const {
  const std::uint32_t graph = engine_.workflows_[task].graph;
  return graph == kNone ? nullptr : &graphs_[graph];
}

std::uint32_t SchedulerHost::waiting_calls(WorkerId worker) const {
  const std::uint32_t waiting = engine_.workers_[worker].reported_waiting;
  return waiting == kNone ? 0 : waiting;
}

// What the worker says; else what running calls do not use, which may be cached.
std::uint32_t SchedulerHost::free_pages(WorkerId worker) {
  const WorkerState& state = engine_.workers_[worker];
  if (state.reported_free != kNone) return state.reported_free;
  return state.capacity_blocks - std::min(state.capacity_blocks, state.blocks_in_use());
}

std::uint32_t SchedulerHost::leased_pages(WorkerId worker) const {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(outbox_.leased_blocks(worker), engine_.workers_[worker].capacity_blocks));
}

// The depths of the call. What the workers hold changes neither between what comes due before an event and the event
// itself nor in the course of either, so that a call is matched once in each: run_due() forgets the match at both ends.
const std::uint32_t* SchedulerHost::depths(CallId call) {
  if (matched_ != call) {
    const std::span<const BlockHash> chain =
        call == submitting_ ? submitting_chain_ : engine_.load_chain(engine_.calls_[call]);
    engine_.match(chain, engine_.depth_.data());
    matched_ = call;
  }
  return engine_.depth_.data();
}

void SchedulerHost::match(CallId call, std::uint32_t* pages) {
  const std::uint32_t* const depth = depths(call);
  const std::uint32_t count = engine_.options_.max_workers;
  WorkerId at = 0;
  for (; at + 8 <= count; at += 8) {  // without shuffles of vectors, which take three times as long
    const std::uint32_t* const eight = depth + std::size_t{at} * kTierCount;
    for (std::uint32_t k = 0; k < 8; ++k) pages[at + k] = eight[k * kTierCount];
  }
  for (; at < count; ++at) pages[at] = depth[std::size_t{at} * kTierCount];
  if (engine_.distrusted_workers_ == 0) return;
  for (WorkerId worker = 0; worker < engine_.worker_count_; ++worker) {
    pages[worker] = believed(pages[worker], engine_.workers_[worker].trust);
  }
}

std::uint32_t SchedulerHost::cached_pages(CallId call, WorkerId worker) {
  return believed(held(call, worker, Tier::kGpu), engine_.workers_[worker].trust);
}

std::uint32_t SchedulerHost::cached_or_host_pages(CallId call, WorkerId worker) {
  return believed(held(call, worker, Tier::kHost), engine_.workers_[worker].trust);
}

std::uint32_t SchedulerHost::held(CallId call, WorkerId worker, Tier tier) {
  const Engine::Call& known = engine_.calls_[call];
  const std::uint32_t depth = depths(call)[worker * kTierCount + static_cast<std::uint32_t>(tier)];
  // Whose prompt is there to its end, also has the answer that it gave, if nothing is known of its blocks.
  const Call& mine = calls_[call];
  const bool all_of_prompt =
      depth == known.prompt_tokens / engine_.options_.block_tokens && depth == known.chain_blocks;
  if (depth > 0 && all_of_prompt && mine.ran_on == worker) return mine.final_blocks;
  return depth;
}

Time SchedulerHost::copy_time(std::uint32_t pages) const {
  const std::uint64_t bytes = std::uint64_t{pages} * engine_.options_.block_tokens * kv_bytes_per_token_;
  // Whole seconds apart, so that a million times the rest cannot overflow.
  const std::uint64_t whole = bytes / link_bytes_per_second_;
  const std::uint64_t rest = bytes % link_bytes_per_second_;
  const Time time = whole * 1'000'000 + (rest * 1'000'000 + link_bytes_per_second_ - 1) / link_bytes_per_second_;
  return std::max<Time>(time, 1);
}

void SchedulerHost::granted(CallId call) {
  SagaReceipt decided = scheduler_.receipt();
  SAGA_ASSERT(matched_ == call);
  decided.matched_pages = engine_.depth_[decided.worker * kTierCount];  // as reported
  add_receipt(call, decided);
  Decision& draft = outbox_.draft(call);
  draft = Decision{};
  draft.type = static_cast<std::uint16_t>(DecisionType::kPlace);
  draft.reason = kFirstSagaReason + static_cast<std::uint32_t>(decided.reason);
  draft.longest_match = scheduler_.longest_match();
  draft.longest_match_worker = scheduler_.longest_match_worker();
  if (engine_.distrusted_workers_ != 0) engine_.find_longest_match(&draft);
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    draft.matched_blocks[tier] = engine_.depth_[decided.worker * kTierCount + tier];
  }
}

void SchedulerHost::send(CallId call, WorkerId worker) {
  Decision& draft = outbox_.draft(call);
  if (draft.type == 0) {  // it follows its pages, which were moved in the gap before it
    SagaReceipt receipt;
    receipt.call = call;
    receipt.worker = receipt.holder = worker;
    receipt.reason = SagaReason::kHolder;
    receipt.matched_pages = held(call, worker, Tier::kGpu);
    add_receipt(call, receipt);
    draft.type = static_cast<std::uint16_t>(DecisionType::kPlace);
    draft.reason = kFirstSagaReason + static_cast<std::uint32_t>(SagaReason::kHolder);
    for (std::uint32_t& matched : draft.matched_blocks) matched = receipt.matched_pages;
    draft.longest_match = receipt.matched_pages;
    draft.longest_match_worker = worker;
  }
  draft.priority = static_cast<std::int16_t>(scheduler_.priority(call, now(), *this));
  engine_.grant(call, worker, draft);
  outbox_.place(call);
}

void SchedulerHost::set_priority(CallId call, std::int32_t priority) {
  const Engine::CallState state = engine_.calls_[call].state;
  if (state == Engine::CallState::kGranted) {
    outbox_.draft(call).priority = static_cast<std::int16_t>(priority);
  } else if (state == Engine::CallState::kPlaced || state == Engine::CallState::kRunning) {
    Directive directive = directive_for(DecisionType::kPriority, call, engine_.calls_[call].worker);
    directive.priority = priority;
    outbox_.set_priority(call, directive);
  }
}

Directive SchedulerHost::directive_for(DecisionType type, CallId call, WorkerId worker) const {
  Directive directive;
  directive.type = static_cast<std::uint16_t>(type);
  directive.worker = worker;
  directive.call = handle(call);
  return directive;
}

std::uint32_t SchedulerHost::copy(CallId call, WorkerId from, WorkerId to) {
  const std::uint32_t there = held(call, to, Tier::kGpu);
  const std::uint32_t blocks = from == to ? held(call, to, Tier::kHost) : held(call, from, Tier::kGpu);
  if (blocks <= there) return 0;
  const bool ended = engine_.calls_[call].state == Engine::CallState::kKept;
  Directive directive = directive_for(DecisionType::kCopy, call, to);
  directive.reason = static_cast<std::uint32_t>(from == to ? (ended ? CopyReason::kPrefetch : CopyReason::kReload)
                                                           : (ended ? CopyReason::kMigrate : CopyReason::kPull));
  directive.blocks = blocks;
  directive.source = from;
  directive.until = now() + directive_time_;
  ++stats_.copies;
  if (outbox_.copy(directive) == 0) {
    ++stats_.copies_refused;
    return 0;
  }
  return blocks - there;
}

void SchedulerHost::drop(CallId call, WorkerId worker) {
  if (!active(worker)) return;
  ++stats_.drops;
  if (!outbox_.drop(directive_for(DecisionType::kDrop, call, worker))) ++stats_.drops_lost;
}

LeaseId SchedulerHost::lease(CallId call, WorkerId worker, std::uint64_t value, Time until) {
  Directive directive = directive_for(DecisionType::kRetain, call, worker);
  directive.blocks = held(call, worker, Tier::kGpu);
  directive.value = value;
  directive.until = until;
  const std::uint64_t id = directive.blocks == 0 || until <= now() ? 0 : outbox_.lease(directive);
  ++(id == 0 ? stats_.leases.refused : stats_.leases.granted);
  return id == 0 ? kNoLease : id;
}

bool SchedulerHost::release(LeaseId lease) {
  bool unread = false;
  if (lease == kNoLease || !outbox_.release(lease, &unread)) return false;
  ++stats_.leases.released;
  return true;
}

// ---------------------------------------------------------------------------------------------------------------- checks

bool SchedulerHost::verify() const {
  if (!scheduler_.verify() || !outbox_.verify()) return false;
  std::vector<bool> is_active(engine_.options_.max_workers);
  for (WorkerId worker = 0; worker < engine_.worker_count_; ++worker) is_active[worker] = active(worker);
  if (!outbox_.refers_only_to(is_active)) return false;
  std::vector<std::uint8_t> seen(threads_.size());
  std::vector<std::uint8_t> owned(calls_.size());
  std::uint32_t used = 0;
  for (std::uint32_t workflow = 0; workflow < first_thread_.size(); ++workflow) {
    const bool open = engine_.workflows_[workflow].state != Engine::WorkflowState::kFree;
    if (!open && first_thread_[workflow] != kNone) return false;
    for (std::uint32_t id = first_thread_[workflow]; id != kNone; id = threads_[id].next) {
      if (id >= threads_.size() || seen[id]++ != 0 || threads_[id].workflow != workflow) return false;
      ++used;
      const CallId call = threads_[id].call;
      if (call == kNone) {
        if (threads_[id].open) return false;
        continue;
      }
      if (owned[call]++ != 0 || calls_[call].thread != id) return false;
      const Engine::CallState state = engine_.calls_[call].state;
      if (state == Engine::CallState::kFree || (state == Engine::CallState::kKept) == threads_[id].open) return false;
    }
  }
  std::uint32_t free = 0;
  for (std::uint32_t id = free_thread_; id != kNone; id = threads_[id].next) {
    if (id >= threads_.size() || seen[id]++ != 0 || threads_[id].workflow != kNone) return false;
    ++free;
  }
  if (used != used_threads_ || used + free != threads_.size()) return false;
  std::uint32_t chunks = 0, kept = 0;
  for (CallId call = 0; call < calls_.size(); ++call) {
    const Engine::CallState state = engine_.calls_[call].state;
    if ((state != Engine::CallState::kFree) != (owned[call] != 0)) return false;
    if ((state == Engine::CallState::kGranted) != outbox_.place_waits(call)) return false;
    if (state != Engine::CallState::kKept) continue;
    if (calls_[call].ran_on != kNone && !engine_.worker_active(calls_[call].ran_on)) return false;
    if (calls_[call].chain_kept) {
      ++kept;
      chunks += Engine::chunks_of(engine_.calls_[call].chain_blocks);
    } else if (engine_.calls_[call].chain_blocks != 0) {
      return false;
    }
  }
  CallId older = kNone;
  for (CallId call = oldest_kept_; call != kNone; older = call, call = calls_[call].newer) {
    if (calls_[call].older != older || !calls_[call].chain_kept || kept-- == 0) return false;
  }
  if (older != newest_kept_ || kept != 0 || chunks != kept_chunks_) return false;
  for (const AgentGraph& graph : graphs_) {
    if (!graph.prepared() || !graph.verify()) return false;
  }
  return true;
}

void SchedulerHost::add_to(Digest& digest) const {
  scheduler_.add_to(digest, engine_.now_);
  outbox_.add_to(digest);
  for (ThreadId id = 0; id < threads_.size(); ++id) {
    const Thread& thread = threads_[id];
    if (thread.workflow == kNone) continue;
    digest.add(id | (std::uint64_t{thread.workflow} << 32));
    digest.add(thread.agent | (std::uint64_t{thread.call} << 32));
    digest.add(thread.next | (std::uint64_t{thread.open} << 32) | (std::uint64_t{thread.called} << 33) |
               (static_cast<std::uint64_t>(thread.last_stop) << 34));
    if (thread.call == kNone) continue;
    const Call& call = calls_[thread.call];
    digest.add(call.output_tokens | (std::uint64_t{call.final_blocks} << 32));
    digest.add(call.ran_on | (static_cast<std::uint64_t>(call.prompt_kind) << 32) |
               (std::uint64_t{call.chain_kept} << 40));
    digest.add(call.hints.gap);
    digest.add(call.hints.step | (std::uint64_t{call.hints.output_tokens} << 32));
  }
  for (std::uint32_t id = free_thread_; id != kNone; id = threads_[id].next) digest.add(id);
  for (CallId call = oldest_kept_; call != kNone; call = calls_[call].newer) digest.add(call);
  for (const double weight : weights_) digest.add(std::bit_cast<std::uint64_t>(weight));
  digest.add(graphs_.size());
  digest.add(receipts_made_);
  for (const std::uint64_t count : {stats_.copies, stats_.copies_applied, stats_.copies_refused, stats_.copies_expired,
                                    stats_.leases.granted, stats_.leases.refused, stats_.leases.expired,
                                    stats_.leases.released, stats_.leases.revoked, stats_.drops, stats_.drops_lost}) {
    digest.add(count);
  }
}

}  // namespace saga
