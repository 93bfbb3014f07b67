// The engine of the C interface: checks, then native/core/engine.
#include "../core/engine/engine.hpp"

#include <cstddef>
#include <memory>

#include "check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_PLACEMENT_ROUND_ROBIN == static_cast<int>(PlacementKind::kRoundRobin) &&
              SAGA_PLACEMENT_AFFINITY == static_cast<int>(PlacementKind::kAffinity) &&
              SAGA_PLACEMENT_SAGA == static_cast<int>(PlacementKind::kSaga));
static_assert(SAGA_REASON_NEW == kFirstSagaReason + static_cast<int>(SagaReason::kNew) &&
              SAGA_REASON_HOLDER == kFirstSagaReason + static_cast<int>(SagaReason::kHolder) &&
              SAGA_REASON_RECOMPUTE == kFirstSagaReason + static_cast<int>(SagaReason::kRecompute) &&
              SAGA_REASON_PULL == kFirstSagaReason + static_cast<int>(SagaReason::kPull));
static_assert(SAGA_DECISION_PLACE == static_cast<int>(DecisionType::kPlace) &&
              SAGA_DECISION_COPY == static_cast<int>(DecisionType::kCopy) &&
              SAGA_DECISION_RETAIN == static_cast<int>(DecisionType::kRetain) &&
              SAGA_DECISION_RELEASE == static_cast<int>(DecisionType::kRelease) &&
              SAGA_DECISION_DROP == static_cast<int>(DecisionType::kDrop) &&
              SAGA_DECISION_PRIORITY == static_cast<int>(DecisionType::kPriority));
static_assert(SAGA_COPY_PULL == static_cast<int>(CopyReason::kPull) &&
              SAGA_COPY_MIGRATE == static_cast<int>(CopyReason::kMigrate) &&
              SAGA_COPY_PREFETCH == static_cast<int>(CopyReason::kPrefetch) &&
              SAGA_COPY_RELOAD == static_cast<int>(CopyReason::kReload));
static_assert(SAGA_OUTCOME_APPLIED == static_cast<int>(Outcome::kApplied) &&
              SAGA_OUTCOME_REFUSED == static_cast<int>(Outcome::kRefused) &&
              SAGA_OUTCOME_EXPIRED == static_cast<int>(Outcome::kExpired) &&
              SAGA_OUTCOME_REVOKED == static_cast<int>(Outcome::kRevoked));
static_assert(SAGA_RELIABILITY_BINS == kReliabilityBins);
static_assert(SAGA_REASON_ROUND_ROBIN == static_cast<int>(PlacementReason::kRoundRobin) &&
              SAGA_REASON_LONGEST_MATCH == static_cast<int>(PlacementReason::kLongestMatch) &&
              SAGA_REASON_FEWEST_BLOCKS == static_cast<int>(PlacementReason::kFewestBlocks) &&
              SAGA_REASON_IMBALANCE == static_cast<int>(PlacementReason::kImbalance));
// The C and the C++ decision are one layout, so an array of the one is an array of the other.
static_assert(sizeof(saga_decision_t) == sizeof(Decision));
static_assert(offsetof(saga_decision_t, call) == offsetof(Decision, call));
static_assert(offsetof(saga_decision_t, matched_blocks) == offsetof(Decision, matched_blocks));
static_assert(offsetof(saga_decision_t, blocks_in_use) == offsetof(Decision, blocks_in_use));
static_assert(offsetof(saga_decision_t, priority) == offsetof(Decision, priority));
static_assert(offsetof(saga_decision_t, decided_at) == offsetof(Decision, decided_at));
static_assert(sizeof(saga_directive_t) == sizeof(Directive));
static_assert(offsetof(saga_directive_t, reason) == offsetof(Directive, reason));
static_assert(offsetof(saga_directive_t, priority) == offsetof(Directive, priority));
static_assert(offsetof(saga_directive_t, id) == offsetof(Directive, id));
static_assert(offsetof(saga_directive_t, until) == offsetof(Directive, until));
static_assert(offsetof(saga_directive_t, decided_at) == offsetof(Directive, decided_at));

struct saga_engine_t {
  explicit saga_engine_t(const EngineOptions& options) : engine(options) {}
  Engine engine;
  bool broken = false;  // memory ran out in the middle of an event
};

namespace {

constexpr std::uint32_t kMostWorkers = 1024;
constexpr std::uint32_t kMostSlots = 1u << 24;
constexpr std::uint64_t kMostBlocks = (std::uint64_t{1} << 29) - 1;  // of PrefixIndex
constexpr std::uint64_t kMostOpenBlocks = std::uint64_t{1} << 32;
constexpr std::uint64_t kLeastJournal = 4096;
constexpr std::uint32_t kMostTenants = 1u << 16;
constexpr std::uint32_t kMostGraphs = 1u << 12;
constexpr std::uint32_t kMostDirectives = 1u << 20;
constexpr std::uint32_t kMostSteps = 4096;   // of one graph
constexpr std::uint32_t kMostEdges = 65536;  // of one graph
constexpr std::uint32_t kMostAgentKinds = 64;

bool cost_valid(double seconds) { return seconds > 0 && seconds <= 1000; }

bool scheduling_valid(const SchedulingOptions& options) {
  const StepCosts& costs = options.costs;
  return options.max_threads <= kMostSlots && in_range(options.max_tenants, 1, kMostTenants) &&
         options.max_graphs <= kMostGraphs && options.max_leases <= kMostDirectives &&
         in_range(options.max_directives, 1, kMostDirectives) && options.max_receipts <= kMostSlots &&
         in_range(options.directive_seconds, 1, 86'400) && in_range(options.kv_bytes_per_token, 1, 1u << 30) &&
         in_range(options.link_bytes_per_second, 1, 10'000'000'000'000) && cost_valid(costs.base) &&
         cost_valid(costs.per_call) && cost_valid(costs.per_context_token) && cost_valid(costs.per_prefill_token) &&
         cost_valid(costs.per_prefill_pair);
}

bool options_valid(const EngineOptions& options) {
  return in_range(options.max_workers, 1, kMostWorkers) && in_range(options.max_workflows, 1, kMostSlots) &&
         in_range(options.max_calls, 1, kMostSlots) && in_range(options.max_blocks, 1, kMostBlocks) &&
         in_range(options.max_open_blocks, 1, kMostOpenBlocks) && in_range(options.max_chain_blocks, 1, kMostSlots) &&
         in_range(options.block_tokens, 1, 4096) && options.placement.minimum_match_percent <= 100 &&
         static_cast<std::uint8_t>(options.placement.kind) <= SAGA_PLACEMENT_SAGA &&
         scheduling_valid(options.scheduling) &&
         (options.journal_bytes == 0 || in_range(options.journal_bytes, kLeastJournal, std::uint64_t{1} << 40));
}

bool tier_valid(saga_tier_t tier) { return static_cast<std::uint32_t>(tier) < SAGA_TIER_COUNT; }
bool tool_valid(saga_tool_t tool) { return static_cast<std::uint32_t>(tool) <= SAGA_TOOL_DATABASE_QUERY; }
bool stop_valid(saga_stop_t stop) { return static_cast<std::uint32_t>(stop) <= SAGA_STOP_END_TURN; }

saga_engine_options_t default_options() {
  const EngineOptions defaults;
  saga_engine_options_t options{};
  options.max_workers = defaults.max_workers;
  options.max_workflows = defaults.max_workflows;
  options.max_calls = defaults.max_calls;
  options.max_blocks = defaults.max_blocks;
  options.max_open_blocks = defaults.max_open_blocks;
  options.max_chain_blocks = defaults.max_chain_blocks;
  options.block_tokens = defaults.block_tokens;
  options.placement = static_cast<std::uint32_t>(defaults.placement.kind);
  options.imbalance_calls = defaults.placement.imbalance_calls;
  options.minimum_match_percent = defaults.placement.minimum_match_percent;
  options.seed = defaults.seed;
  options.journal_bytes = defaults.journal_bytes;
  const SchedulingOptions& scheduling = defaults.scheduling;
  options.max_threads = scheduling.max_threads;
  options.max_tenants = scheduling.max_tenants;
  options.max_graphs = scheduling.max_graphs;
  options.max_leases = scheduling.max_leases;
  options.max_directives = scheduling.max_directives;
  options.max_receipts = scheduling.max_receipts;
  options.without = scheduling.without();
  options.directive_seconds = scheduling.directive_seconds;
  options.kv_bytes_per_token = scheduling.kv_bytes_per_token;
  options.link_bytes_per_second = scheduling.link_bytes_per_second;
  options.step_base = scheduling.costs.base;
  options.step_per_call = scheduling.costs.per_call;
  options.step_per_context_token = scheduling.costs.per_context_token;
  options.step_per_prefill_token = scheduling.costs.per_prefill_token;
  options.step_per_prefill_pair = scheduling.costs.per_prefill_pair;
  return options;
}

// Applies an event. If memory runs out in its middle the state can no longer be trusted: the engine refuses all further ones.
template <typename Event>
saga_status_t apply(saga_engine_t* engine, Event&& event) {
  if (engine->broken) return SAGA_ERR_OUT_OF_MEMORY;
  engine->broken = true;
  const saga_status_t status = guarded([&] {
    const Status answered = event(engine->engine);
    engine->broken = false;
    return to_c(answered);
  });
  return status;
}

// False: not hints.
bool to_hints(const saga_call_hints_t& given, CallHints* hints) {
  if (given.next_tool > SAGA_TOOL_DATABASE_QUERY || given.final_step > 2) return false;
  hints->next_tool = static_cast<ToolClass>(given.next_tool);
  hints->gap = given.gap;
  hints->final_step = static_cast<CallHints::Final>(given.final_step);
  hints->step = given.step;
  hints->output_tokens = given.output_tokens;
  return true;
}

saga_price_t price_of(const PriceTerms& terms) {
  return {terms.wait, terms.prefill, terms.transfer, terms.decode, terms.interference, terms.displacement};
}

void write_bins(const ReliabilityTable& table, saga_reliability_bin_t* bins) {
  for (std::uint32_t i = 0; i < kReliabilityBins; ++i) {
    bins[i] = {table.bins[i].predictions, table.bins[i].happened, table.bins[i].predicted_sum};
  }
}

// A result struct of the size that the caller was compiled with: as many bytes as both know, zeros behind.
template <typename Result>
bool result_valid(const Result* result) {
  constexpr std::uint32_t kMost = 4096;
  return result != nullptr && result->struct_size >= sizeof(result->struct_size) && result->struct_size <= kMost;
}
template <typename Result>
void write_result(const Result& from, Result* result) {
  write_options(from, result, result->struct_size);
}

// nullptr: the engine places by another rule.
const SchedulerHost* scheduling_of(const saga_engine_t* engine) { return engine->engine.scheduling(); }

saga_status_t create(const EngineOptions& options, saga_engine_t** engine) {
  return guarded([&] {
    *engine = new (std::nothrow) saga_engine_t(options);
    return *engine == nullptr ? SAGA_ERR_OUT_OF_MEMORY : SAGA_OK;
  });
}

}  // namespace

extern "C" {

void saga_engine_options_init_sized(saga_engine_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

saga_status_t saga_engine_create(const saga_engine_options_t* options, saga_engine_t** engine) {
  saga_engine_options_t given = default_options();
  if (engine == nullptr || !read_options(options, &given) || given.placement > SAGA_PLACEMENT_SAGA ||
      given.reserved != 0 || given.without >= 1u << kSchedulingParts) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  EngineOptions made;
  made.max_workers = given.max_workers;
  made.max_workflows = given.max_workflows;
  made.max_calls = given.max_calls;
  made.max_blocks = given.max_blocks;
  made.max_open_blocks = given.max_open_blocks;
  made.max_chain_blocks = given.max_chain_blocks;
  made.block_tokens = given.block_tokens;
  made.placement.kind = static_cast<PlacementKind>(given.placement);
  made.placement.imbalance_calls = given.imbalance_calls;
  made.placement.minimum_match_percent = given.minimum_match_percent;
  made.seed = given.seed;
  made.journal_bytes = given.journal_bytes;
  SchedulingOptions& scheduling = made.scheduling;
  scheduling.max_threads = given.max_threads;
  scheduling.max_tenants = given.max_tenants;
  scheduling.max_graphs = given.max_graphs;
  scheduling.max_leases = given.max_leases;
  scheduling.max_directives = given.max_directives;
  scheduling.max_receipts = given.max_receipts;
  scheduling.set_without(given.without);
  scheduling.directive_seconds = given.directive_seconds;
  scheduling.kv_bytes_per_token = given.kv_bytes_per_token;
  scheduling.link_bytes_per_second = given.link_bytes_per_second;
  scheduling.costs = {given.step_base, given.step_per_call, given.step_per_context_token, given.step_per_prefill_token,
                      given.step_per_prefill_pair};
  return options_valid(made) ? create(made, engine) : SAGA_ERR_INVALID_ARGUMENT;
}

void saga_engine_destroy(saga_engine_t* engine) { delete engine; }

saga_status_t saga_engine_add_worker(saga_engine_t* engine, uint64_t now, uint32_t capacity_blocks, uint32_t* worker) {
  if (engine == nullptr || worker == nullptr || capacity_blocks == 0) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.add_worker(now, capacity_blocks, worker); });
}

saga_status_t saga_engine_remove_worker(saga_engine_t* engine, uint64_t now, uint32_t worker) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.remove_worker(now, worker); });
}

saga_status_t saga_engine_blocks_stored(saga_engine_t* engine, uint64_t now, uint32_t worker, saga_tier_t tier,
                                        uint64_t parent, const uint64_t* hashes, size_t count) {
  if (engine == nullptr || !tier_valid(tier) || !is_array(hashes, count) || count > kMostSlots) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return apply(engine, [&](Engine& to) {
    return to.blocks_stored(now, worker, static_cast<Tier>(tier), parent, to_span(hashes, count));
  });
}

saga_status_t saga_engine_blocks_removed(saga_engine_t* engine, uint64_t now, uint32_t worker, saga_tier_t tier,
                                         const uint64_t* hashes, size_t count) {
  if (engine == nullptr || !tier_valid(tier) || !is_array(hashes, count) || count > kMostSlots) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return apply(engine, [&](Engine& to) {
    return to.blocks_removed(now, worker, static_cast<Tier>(tier), to_span(hashes, count));
  });
}

saga_status_t saga_engine_blocks_cleared(saga_engine_t* engine, uint64_t now, uint32_t worker) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.blocks_cleared(now, worker); });
}

saga_status_t saga_engine_worker_load(saga_engine_t* engine, uint64_t now, uint32_t worker, uint32_t blocks_in_use) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.worker_load(now, worker, blocks_in_use); });
}

saga_status_t saga_engine_worker_state(const saga_engine_t* engine, uint32_t worker, saga_worker_state_t* state) {
  if (engine == nullptr || state == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  WorkerState known;
  if (!engine->engine.worker_state(worker, &known)) return SAGA_ERR_NOT_FOUND;
  state->capacity_blocks = known.capacity_blocks;
  state->open_calls = known.open_calls;
  state->blocks_in_use = known.blocks_in_use();
  state->active = known.active;
  return SAGA_OK;
}

saga_status_t saga_engine_worker_trust(saga_engine_t* engine, uint64_t now, uint32_t worker, uint32_t per_mille) {
  if (engine == nullptr || per_mille > kFullTrust) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.worker_trust(now, worker, per_mille); });
}

saga_status_t saga_engine_worker_accepts(saga_engine_t* engine, uint64_t now, uint32_t worker, uint32_t accepts) {
  if (engine == nullptr || accepts > 1) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.worker_accepts(now, worker, accepts != 0); });
}

saga_status_t saga_engine_worker_window(saga_engine_t* engine, uint64_t now, uint32_t worker, uint32_t window_blocks) {
  if (engine == nullptr || window_blocks > kMostSlots) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.worker_window(now, worker, window_blocks); });
}

saga_status_t saga_engine_window_stored(saga_engine_t* engine, uint64_t now, uint32_t worker, const uint64_t* hashes,
                                        size_t count) {
  if (engine == nullptr || !is_array(hashes, count) || count > kMostSlots) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.window_stored(now, worker, to_span(hashes, count)); });
}

saga_status_t saga_engine_window_removed(saga_engine_t* engine, uint64_t now, uint32_t worker, const uint64_t* hashes,
                                         size_t count) {
  if (engine == nullptr || !is_array(hashes, count) || count > kMostSlots) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.window_removed(now, worker, to_span(hashes, count)); });
}

saga_status_t saga_engine_worker_properties(const saga_engine_t* engine, uint32_t worker,
                                            saga_worker_properties_t* properties) {
  if (engine == nullptr || !result_valid(properties)) return SAGA_ERR_INVALID_ARGUMENT;
  WorkerState known;
  if (!engine->engine.worker_state(worker, &known)) return SAGA_ERR_NOT_FOUND;
  saga_worker_properties_t written{};
  written.trust_per_mille = known.trust;
  written.accepts = known.accepts;
  written.window_blocks = known.window_blocks;
  written.window_held = engine->engine.window_held(worker);
  write_result(written, properties);
  return SAGA_OK;
}

saga_status_t saga_engine_open_workflow(saga_engine_t* engine, uint64_t now, uint32_t tenant, uint64_t* workflow) {
  if (engine == nullptr || workflow == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.open_workflow(now, tenant, workflow); });
}

saga_status_t saga_engine_close_workflow(saga_engine_t* engine, uint64_t now, uint64_t workflow) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.close_workflow(now, workflow); });
}

saga_status_t saga_engine_submit_call(saga_engine_t* engine, uint64_t now, uint64_t workflow, uint32_t prompt_tokens,
                                      const uint64_t* chain, size_t count, uint64_t* call) {
  if (engine == nullptr || call == nullptr || !is_array(chain, count)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine,
               [&](Engine& to) { return to.submit_call(now, workflow, prompt_tokens, to_span(chain, count), call); });
}

saga_status_t saga_engine_first_token(saga_engine_t* engine, uint64_t now, uint64_t call) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.first_token(now, call); });
}

saga_status_t saga_engine_finish_call(saga_engine_t* engine, uint64_t now, uint64_t call, saga_stop_t stop,
                                      saga_tool_t tool, uint32_t output_tokens) {
  if (engine == nullptr || !stop_valid(stop) || !tool_valid(tool)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) {
    return to.finish_call(now, call, static_cast<StopReason>(stop), static_cast<ToolClass>(tool), output_tokens);
  });
}

saga_status_t saga_engine_cancel_call(saga_engine_t* engine, uint64_t now, uint64_t call) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.cancel_call(now, call); });
}

saga_status_t saga_engine_tool_started(saga_engine_t* engine, uint64_t now, uint64_t workflow, saga_tool_t tool) {
  if (engine == nullptr || !tool_valid(tool)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.tool_started(now, workflow, static_cast<ToolClass>(tool)); });
}

saga_status_t saga_engine_tool_finished(saga_engine_t* engine, uint64_t now, uint64_t workflow) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.tool_finished(now, workflow); });
}

saga_status_t saga_engine_tick(saga_engine_t* engine, uint64_t now) {
  if (engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.tick(now); });
}

saga_status_t saga_engine_decide(saga_engine_t* engine, uint64_t now, saga_decision_t* decisions, size_t capacity,
                                 size_t* count) {
  if (engine == nullptr || count == nullptr || !is_array(decisions, capacity)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) {
    return to.decide(now, to_span(reinterpret_cast<Decision*>(decisions), capacity), count);
  });
}

saga_status_t saga_engine_match(const saga_engine_t* engine, const uint64_t* chain, size_t count, uint32_t* depth,
                                size_t depth_count, uint32_t* longest) {
  if (engine == nullptr || longest == nullptr || !is_array(chain, count) || depth == nullptr ||
      depth_count != std::size_t{engine->engine.worker_slots()} * kTierCount) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  *longest = engine->engine.match(to_span(chain, count), depth);
  return SAGA_OK;
}

saga_status_t saga_engine_stats(const saga_engine_t* engine, saga_engine_stats_t* stats) {
  if (engine == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  const EngineStats known = engine->engine.stats();
  stats->workers = known.workers;
  stats->workflows = known.workflows;
  stats->open_calls = known.open_calls;
  stats->waiting_calls = known.waiting_calls;
  stats->placed_calls = known.placed_calls;
  stats->finished_calls = known.finished_calls;
  stats->cancelled_calls = known.cancelled_calls;
  stats->replaced_calls = known.replaced_calls;
  stats->prompt_blocks = known.prompt_blocks;
  stats->matched_blocks = known.matched_blocks;
  stats->holder_blocks = known.holder_blocks;
  stats->journal_bytes = known.journal_bytes;
  return SAGA_OK;
}

saga_status_t saga_engine_digest(const saga_engine_t* engine, uint64_t* digest) {
  if (engine == nullptr || digest == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *digest = engine->engine.digest();
  return SAGA_OK;
}

saga_status_t saga_engine_verify(const saga_engine_t* engine, uint32_t* intact) {
  if (engine == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *intact = engine->engine.verify() ? 1 : 0;
    return SAGA_OK;
  });
}

saga_status_t saga_engine_journal_read(saga_engine_t* engine, uint8_t* bytes, size_t capacity, size_t* count) {
  if (engine == nullptr || count == nullptr || !is_array(bytes, capacity)) return SAGA_ERR_INVALID_ARGUMENT;
  *count = engine->engine.journal().drain(bytes, capacity);
  return SAGA_OK;
}

saga_status_t saga_engine_replay(const uint8_t* journal, size_t size, saga_engine_t** engine,
                                 saga_replay_result_t* result) {
  if (engine != nullptr) *engine = nullptr;
  if (engine == nullptr || result == nullptr || !is_array(journal, size)) return SAGA_ERR_INVALID_ARGUMENT;
  *result = saga_replay_result_t{};
  EngineOptions options;
  if (const Status status = read_journal_options(to_span(journal, size), &options); status != Status::kOk) {
    return to_c(status);
  }
  if (!options_valid(options)) return SAGA_ERR_JOURNAL_CORRUPT;
  return guarded([&]() -> saga_status_t {
    auto made = std::unique_ptr<saga_engine_t>(new (std::nothrow) saga_engine_t(options));
    if (made == nullptr) return SAGA_ERR_OUT_OF_MEMORY;
    const ReplayResult replayed = replay_journal(to_span(journal, size), made->engine);
    result->events = replayed.events;
    result->decisions = replayed.decisions;
    result->good_bytes = replayed.good_bytes;
    *engine = made.release();
    return to_c(replayed.status);
  });
}

void saga_workflow_info_init_sized(saga_workflow_info_t* info, uint32_t struct_size) {
  write_options(saga_workflow_info_t{0, 0, SAGA_NONE, 0}, info, struct_size);
}

void saga_call_info_init_sized(saga_call_info_t* info, uint32_t struct_size) {
  write_options(saga_call_info_t{0, 0, 0, SAGA_PROMPT_NOT_TOLD, saga_call_hints_none()}, info, struct_size);
}

void saga_answer_info_init_sized(saga_answer_info_t* info, uint32_t struct_size) {
  write_options(saga_answer_info_t{0, SAGA_NONE, SAGA_STOP_UNKNOWN, SAGA_TOOL_NONE, 0, 0, saga_call_hints_none()}, info,
                struct_size);
}

void saga_worker_load_init_sized(saga_worker_load_t* load, uint32_t struct_size) {
  write_options(saga_worker_load_t{0, 0, SAGA_NONE, SAGA_NONE}, load, struct_size);
}

saga_status_t saga_engine_declare_graph(saga_engine_t* engine, uint64_t now, const struct saga_agent_graph_t* graph,
                                        const struct saga_agent_step_t* steps, const struct saga_agent_edge_t* edges,
                                        uint32_t* id) {
  if (engine == nullptr || graph == nullptr || id == nullptr || graph->first_step != 0 || graph->first_edge != 0 ||
      graph->step_count == 0 || !is_array(steps, graph->step_count) || !is_array(edges, graph->edge_count)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (graph->step_count > kMostSteps || graph->edge_count > kMostEdges) return SAGA_ERR_FULL;
  if (scheduling_of(engine) == nullptr) return SAGA_ERR_WRONG_STATE;
  for (std::uint32_t i = 0; i < graph->step_count; ++i) {
    if (steps[i].tool_class > SAGA_TOOL_DATABASE_QUERY || steps[i].reserved != 0) return SAGA_ERR_INVALID_ARGUMENT;
  }
  AgentGraph copy;
  const saga_status_t copied = guarded([&] {
    for (const saga_agent_step_t& step : to_span(steps, graph->step_count)) {
      copy.steps.push_back(
          {static_cast<ToolClass>(step.tool_class), step.output_tokens, step.observation_tokens, step.gap_seconds});
    }
    for (const saga_agent_edge_t& edge : to_span(edges, graph->edge_count)) {
      copy.edges.push_back({edge.from, edge.to, edge.probability});
    }
    return SAGA_OK;
  });
  if (copied != SAGA_OK) return copied;
  copy.first_prompt_tokens = graph->first_prompt_tokens;
  copy.expected_calls = graph->expected_calls;
  copy.expected_seconds = graph->expected_seconds;
  if (!copy.verify()) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.declare_graph(now, copy, id); });
}

saga_status_t saga_engine_set_tenant(saga_engine_t* engine, uint64_t now, uint32_t tenant, double weight) {
  if (engine == nullptr || !(weight >= kLeastWeight && weight <= kMostWeight)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.set_tenant(now, tenant, weight); });
}

saga_status_t saga_engine_open_workflow_with(saga_engine_t* engine, uint64_t now, const saga_workflow_info_t* info,
                                             uint64_t* workflow) {
  saga_workflow_info_t given{0, 0, SAGA_NONE, 0};
  if (engine == nullptr || workflow == nullptr || !read_options(info, &given) || given.agent_kind >= kMostAgentKinds) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return apply(engine, [&](Engine& to) {
    return to.open_workflow(now, WorkflowInfo{given.tenant, given.graph, given.agent_kind}, workflow);
  });
}

saga_status_t saga_engine_submit_call_with(saga_engine_t* engine, uint64_t now, uint64_t workflow,
                                           const saga_call_info_t* info, const uint64_t* chain, size_t count,
                                           uint64_t* call) {
  saga_call_info_t given{0, 0, 0, SAGA_PROMPT_NOT_TOLD, saga_call_hints_none()};
  CallInfo told;
  if (engine == nullptr || call == nullptr || !is_array(chain, count) || !read_options(info, &given) ||
      (given.prompt_kind > SAGA_PROMPT_USER && given.prompt_kind != SAGA_PROMPT_NOT_TOLD) ||
      !to_hints(given.hints, &told.hints)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  told.prompt_tokens = given.prompt_tokens;
  told.agent = given.agent;
  told.prompt_kind = given.prompt_kind;
  return apply(engine, [&](Engine& to) { return to.submit_call(now, workflow, told, to_span(chain, count), call); });
}

saga_status_t saga_engine_first_token_with(saga_engine_t* engine, uint64_t now, uint64_t call, uint32_t placement) {
  if (engine == nullptr || (placement > 0xFFFF && placement != SAGA_NONE)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.first_token(now, call, placement); });
}

saga_status_t saga_engine_finish_call_with(saga_engine_t* engine, uint64_t now, uint64_t call,
                                           const saga_answer_info_t* info, const uint64_t* chain, size_t count) {
  saga_answer_info_t given{0, SAGA_NONE, SAGA_STOP_UNKNOWN, SAGA_TOOL_NONE, 0, 0, saga_call_hints_none()};
  AnswerInfo told;
  if (engine == nullptr || !is_array(chain, count) || !read_options(info, &given) || given.reserved != 0 ||
      given.stop > SAGA_STOP_END_TURN || given.tool > SAGA_TOOL_DATABASE_QUERY ||
      (given.placement > 0xFFFF && given.placement != SAGA_NONE) || !to_hints(given.hints, &told.hints)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  told.placement = given.placement;
  told.stop = static_cast<StopReason>(given.stop);
  told.tool = static_cast<ToolClass>(given.tool);
  told.output_tokens = given.output_tokens;
  return apply(engine, [&](Engine& to) { return to.finish_call(now, call, told, to_span(chain, count)); });
}

saga_status_t saga_engine_worker_load_with(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                           const saga_worker_load_t* load) {
  saga_worker_load_t given{0, 0, SAGA_NONE, SAGA_NONE};
  if (engine == nullptr || !read_options(load, &given)) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) {
    return to.worker_load(now, worker, WorkerLoad{given.running_blocks, given.waiting_calls, given.free_blocks});
  });
}

saga_status_t saga_engine_directive_done(saga_engine_t* engine, uint64_t now, uint64_t id, saga_outcome_t outcome) {
  if (engine == nullptr || static_cast<std::uint32_t>(outcome) > SAGA_OUTCOME_REVOKED) return SAGA_ERR_INVALID_ARGUMENT;
  return apply(engine, [&](Engine& to) { return to.directive_done(now, id, static_cast<Outcome>(outcome)); });
}

saga_status_t saga_engine_next_wake(const saga_engine_t* engine, uint64_t* time) {
  if (engine == nullptr || time == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *time = engine->engine.next_wake();
  return SAGA_OK;
}

saga_status_t saga_engine_receipt(const saga_engine_t* engine, uint64_t call, saga_receipt_t* receipt) {
  if (engine == nullptr || !result_valid(receipt)) return SAGA_ERR_INVALID_ARGUMENT;
  const SchedulerHost* host = scheduling_of(engine);
  if (host == nullptr) return SAGA_ERR_WRONG_STATE;
  const Receipt* known = host->receipt(call);
  if (known == nullptr) return SAGA_ERR_NOT_FOUND;
  const SagaReceipt& decided = known->decided;
  saga_receipt_t written{};
  written.reason = kFirstSagaReason + static_cast<std::uint32_t>(decided.reason);
  written.call = known->call;
  written.worker = decided.worker;
  written.source = decided.source;
  written.holder = decided.holder;
  written.matched_blocks = decided.matched_pages;
  written.prompt_blocks = known->prompt_blocks;
  written.placement = known->placement;
  written.price = price_of(decided.price);
  written.holder_price = price_of(decided.holder_price);
  written.submitted_at = known->submitted_at;
  written.queued = decided.queued;
  written.granted_at = known->granted_at;
  written.trust_per_mille = known->trust;
  written.workers_added = known->workers_added;
  write_result(written, receipt);
  return SAGA_OK;
}

saga_status_t saga_engine_scheduler_stats(const saga_engine_t* engine, saga_scheduler_stats_t* stats) {
  if (engine == nullptr || !result_valid(stats)) return SAGA_ERR_INVALID_ARGUMENT;
  const SchedulerHost* host = scheduling_of(engine);
  if (host == nullptr) return SAGA_ERR_WRONG_STATE;
  const SagaStatistics& made = host->scheduler().statistics();
  const SchedulerStats carried = host->stats();
  saga_scheduler_stats_t written{};
  written.queued_calls = host->scheduler().queue().size() + host->scheduler().admissions().size();
  written.grants = made.grants;
  written.queued = made.queued;
  written.held = made.held;
  written.steals = made.steals;
  written.pulls = made.pulls;
  written.recomputes = made.recomputes;
  written.thrash = made.thrash;
  written.prefetches = made.prefetches;
  written.prefetches_cancelled = made.prefetches_cancelled;
  written.preemptions = made.preemptions;
  written.copies = carried.copies;
  written.copies_applied = carried.copies_applied;
  written.copies_refused = carried.copies_refused;
  written.copies_expired = carried.copies_expired;
  written.leases_granted = carried.leases.granted;
  written.leases_refused = carried.leases.refused;
  written.leases_expired = carried.leases.expired;
  written.leases_released = carried.leases.released;
  written.leases_revoked = carried.leases.revoked;
  written.drops = carried.drops;
  written.drops_lost = carried.drops_lost;
  written.stale = carried.stale;
  written.threads = carried.threads;
  written.graphs = carried.graphs;
  write_result(written, stats);
  return SAGA_OK;
}

saga_status_t saga_engine_calibration(const saga_engine_t* engine, saga_calibration_t* calibration) {
  if (engine == nullptr || !result_valid(calibration)) return SAGA_ERR_INVALID_ARGUMENT;
  const SchedulerHost* host = scheduling_of(engine);
  if (host == nullptr) return SAGA_ERR_WRONG_STATE;
  const CalibrationReport& report = host->scheduler().predictor().calibration().report();
  saga_calibration_t written{};
  write_bins(report.next_call, written.next_call);
  write_bins(report.within_horizon, written.within_horizon);
  written.next_call_brier = report.next_call.brier();
  written.within_horizon_brier = report.within_horizon.brier();
  written.gaps = report.gaps.gaps;
  written.within_p50 = report.gaps.within_p50;
  written.within_p90 = report.gaps.within_p90;
  written.within_p95 = report.gaps.within_p95;
  write_result(written, calibration);
  return SAGA_OK;
}

saga_status_t saga_engine_tenant_state(const saga_engine_t* engine, uint32_t tenant, saga_tenant_state_t* state) {
  if (engine == nullptr || !result_valid(state)) return SAGA_ERR_INVALID_ARGUMENT;
  const SchedulerHost* host = scheduling_of(engine);
  if (host == nullptr) return SAGA_ERR_WRONG_STATE;
  if (tenant >= host->tenants()) return SAGA_ERR_INVALID_ARGUMENT;
  const FairQueue& queue = host->scheduler().queue();
  const FairQueue& admissions = host->scheduler().admissions();
  saga_tenant_state_t written{};
  written.waiting = queue.waiting(tenant) + admissions.waiting(tenant);
  written.weight = host->weight(tenant);
  // Calls and admissions have accounts of their own; what holds a tenant up is the one where it waits.
  const FairQueue& account = admissions.waiting(tenant) > 0 ? admissions : queue;
  written.served = queue.served(tenant);
  written.lag = account.lag(tenant);
  written.credit = account.credit(tenant);
  written.share = account.share(tenant);
  write_result(written, state);
  return SAGA_OK;
}

saga_status_t saga_engine_worker_forecast(const saga_engine_t* engine, uint32_t worker,
                                          saga_worker_forecast_t* forecast) {
  if (engine == nullptr || !result_valid(forecast)) return SAGA_ERR_INVALID_ARGUMENT;
  const SchedulerHost* host = scheduling_of(engine);
  if (host == nullptr) return SAGA_ERR_WRONG_STATE;
  if (worker >= host->workers()) return SAGA_ERR_NOT_FOUND;
  saga_worker_forecast_t written{};
  written.open_calls = host->open_calls(worker);
  written.cost_factor = host->scheduler().cost_factor(worker);
  written.resident_tokens = host->scheduler().resident_tokens(worker);
  written.running_tokens = host->scheduler().running_tokens(worker);
  written.leased_blocks = host->leased_pages(worker);
  write_result(written, forecast);
  return SAGA_OK;
}

}  // extern "C"
