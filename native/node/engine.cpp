// The engine for JavaScript: createEngine(options, decisions, depth, results, workerState, told) -> functions of one engine.
//
// The arrays are registered: `decisions` (Uint32Array, 16 words a decision: saga_decision_t or saga_directive_t), `depth`
// (Uint32Array, max_workers * 3) and `workerState` (Uint32Array of 7) are written by decide, match and workerState;
// `results` (Float64Array of 72) by stats and whatever else answers with several numbers: the struct of the C interface in
// order, without its struct_size. `told` (Float64Array of 8) is read by submitCallWith and finishCallWith: what a client
// tells of a call beyond what every call has, see ToldColumn.
#include <array>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "binding.hpp"

namespace saga::node {
namespace {

struct EngineHandle {
  saga_engine_t* handle = nullptr;
  Elements<std::uint32_t> decisions;
  Elements<std::uint32_t> depth;
  Elements<double> results;
  Elements<std::uint32_t> worker_state;
  Elements<double> told;
  Napi::Reference<Napi::Array> registered;  // keeps the arrays alive
  ~EngineHandle() { saga_engine_destroy(handle); }
};
using BoundEngine = Bound<EngineHandle>;

saga_engine_t* engine_of(const Napi::CallbackInfo& info) { return BoundEngine::of(info).handle; }

constexpr std::size_t kDecisionWords = sizeof(saga_decision_t) / sizeof(std::uint32_t);
static_assert(kDecisionWords == 16);
static_assert(sizeof(saga_directive_t) == sizeof(saga_decision_t));

constexpr std::size_t kResults = 72;

// Numbers of `told`. Not told: SAGA_NONE, but 0 for tool, final step and output tokens, and infinity for the gap.
enum ToldColumn : std::size_t {
  kToldAgent,
  kToldPromptKind,
  kToldNextTool,
  kToldFinalStep,  // 1 no, 2 yes
  kToldGap,        // microseconds
  kToldStep,
  kToldOutputTokens,
  kToldPlacement,
  kToldColumns
};

std::uint32_t told(const Napi::CallbackInfo& info, ToldColumn column) {
  return static_cast<std::uint32_t>(BoundEngine::of(info).told.data[column]);
}

saga_call_hints_t told_hints(const Napi::CallbackInfo& info) {
  saga_call_hints_t hints = saga_call_hints_none();
  const double gap = BoundEngine::of(info).told.data[kToldGap];
  hints.next_tool = told(info, kToldNextTool);
  hints.final_step = told(info, kToldFinalStep);
  if (std::isfinite(gap)) hints.gap = static_cast<std::uint64_t>(gap);
  hints.step = told(info, kToldStep);
  hints.output_tokens = told(info, kToldOutputTokens);
  return hints;
}

// Writes numbers into `results`.
class Results {
 public:
  explicit Results(const Napi::CallbackInfo& info) : out_(BoundEngine::of(info).results.data) {}
  template <typename... Values>
  void add(Values... values) {
    ((*out_++ = static_cast<double>(values)), ...);
  }

 private:
  double* out_;
};

Napi::Value add_worker(const Napi::CallbackInfo& info) {
  std::uint32_t worker = 0;
  const saga_status_t status = saga_engine_add_worker(engine_of(info), u64(info, 0), u32(info, 1), &worker);
  return answer(info, status, worker);
}

Napi::Value remove_worker(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_remove_worker(engine_of(info), u64(info, 0), u32(info, 1)));
}

// blocksStored(now, worker, tier, hashes, hasParent): with hasParent the first element of `hashes` is the parent.
Napi::Value blocks_stored(const Napi::CallbackInfo& info) {
  auto hashes = elements<std::uint64_t>(info.Env(), info[3]);
  std::uint64_t parent = 0;
  if (number(info, 4) != 0 && hashes.count != 0) {
    parent = *hashes.data++;
    --hashes.count;
  }
  return answer(info,
                saga_engine_blocks_stored(engine_of(info), u64(info, 0), u32(info, 1),
                                          static_cast<saga_tier_t>(u32(info, 2)), parent, hashes.data, hashes.count));
}

Napi::Value blocks_removed(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[3]);
  return answer(info, saga_engine_blocks_removed(engine_of(info), u64(info, 0), u32(info, 1),
                                                 static_cast<saga_tier_t>(u32(info, 2)), hashes.data, hashes.count));
}

Napi::Value blocks_cleared(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_blocks_cleared(engine_of(info), u64(info, 0), u32(info, 1)));
}

Napi::Value worker_load(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_worker_load(engine_of(info), u64(info, 0), u32(info, 1), u32(info, 2)));
}

// workerLoadWith(now, worker, runningBlocks, waitingCalls, freeBlocks): SAGA_NONE: not told.
Napi::Value worker_load_with(const Napi::CallbackInfo& info) {
  saga_worker_load_t load;
  saga_worker_load_init(&load);
  load.running_blocks = u32(info, 2);
  load.waiting_calls = u32(info, 3);
  load.free_blocks = u32(info, 4);
  return answer(info, saga_engine_worker_load_with(engine_of(info), u64(info, 0), u32(info, 1), &load));
}

Napi::Value worker_trust(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_worker_trust(engine_of(info), u64(info, 0), u32(info, 1), u32(info, 2)));
}

Napi::Value worker_accepts(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_worker_accepts(engine_of(info), u64(info, 0), u32(info, 1), u32(info, 2)));
}

Napi::Value worker_window(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_worker_window(engine_of(info), u64(info, 0), u32(info, 1), u32(info, 2)));
}

Napi::Value window_stored(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[2]);
  return answer(info,
                saga_engine_window_stored(engine_of(info), u64(info, 0), u32(info, 1), hashes.data, hashes.count));
}

Napi::Value window_removed(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[2]);
  return answer(info,
                saga_engine_window_removed(engine_of(info), u64(info, 0), u32(info, 1), hashes.data, hashes.count));
}

Napi::Value worker_state(const Napi::CallbackInfo& info) {
  saga_worker_state_t state{};
  saga_worker_properties_t properties{};
  properties.struct_size = sizeof properties;
  saga_status_t status = saga_engine_worker_state(engine_of(info), u32(info, 0), &state);
  if (status == SAGA_OK) status = saga_engine_worker_properties(engine_of(info), u32(info, 0), &properties);
  if (status == SAGA_OK) {
    std::uint32_t* out = BoundEngine::of(info).worker_state.data;
    out[0] = state.capacity_blocks;
    out[1] = state.open_calls;
    out[2] = state.blocks_in_use;
    out[3] = state.active;
    out[4] = properties.trust_per_mille;
    out[5] = properties.accepts;
    out[6] = properties.window_blocks;
  }
  return answer(info, status);
}

// declareGraph(now, steps, edges, totals) -> id. Columns as of AgentGraph.toColumns.
Napi::Value declare_graph(const Napi::CallbackInfo& info) {
  const auto steps = elements<double>(info.Env(), info[1]);
  const auto edges = elements<double>(info.Env(), info[2]);
  const auto totals = elements<double>(info.Env(), info[3]);
  if (totals.count < 3) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  std::vector<saga_agent_step_t> step(steps.count / 4);
  for (std::size_t i = 0; i < step.size(); ++i) {
    const double* row = steps.data + 4 * i;
    step[i] = {static_cast<std::uint32_t>(row[0]), 0, row[1], row[2], row[3]};
  }
  std::vector<saga_agent_edge_t> edge(edges.count / 3);
  for (std::size_t i = 0; i < edge.size(); ++i) {
    const double* row = edges.data + 3 * i;
    edge[i] = {static_cast<std::uint32_t>(row[0]), static_cast<std::uint32_t>(row[1]), row[2]};
  }
  const saga_agent_graph_t graph = {0,
                                    static_cast<std::uint32_t>(step.size()),
                                    0,
                                    static_cast<std::uint32_t>(edge.size()),
                                    totals.data[0],
                                    totals.data[1],
                                    totals.data[2]};
  std::uint32_t id = 0;
  const saga_status_t status =
      saga_engine_declare_graph(engine_of(info), u64(info, 0), &graph, step.data(), edge.data(), &id);
  return answer(info, status, id);
}

Napi::Value set_tenant(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_set_tenant(engine_of(info), u64(info, 0), u32(info, 1), number(info, 2)));
}

// openWorkflow(now, tenant, graph, agentKind): graph SAGA_NONE, kind 0: not told.
Napi::Value open_workflow(const Napi::CallbackInfo& info) {
  std::uint64_t workflow = 0;
  saga_workflow_info_t told_of_it;
  saga_workflow_info_init(&told_of_it);
  told_of_it.tenant = u32(info, 1);
  told_of_it.graph = u32(info, 2);
  told_of_it.agent_kind = u32(info, 3);
  const saga_status_t status = saga_engine_open_workflow_with(engine_of(info), u64(info, 0), &told_of_it, &workflow);
  return answer(info, status, static_cast<double>(workflow));
}

Napi::Value close_workflow(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_close_workflow(engine_of(info), u64(info, 0), u64(info, 1)));
}

// submitCall(now, workflow, promptTokens, chain, count)
Napi::Value submit_call(const Napi::CallbackInfo& info) {
  const auto chain = elements<std::uint64_t>(info.Env(), info[3]);
  std::uint64_t call = 0;
  const saga_status_t status = saga_engine_submit_call(engine_of(info), u64(info, 0), u64(info, 1), u32(info, 2),
                                                       chain.data, static_cast<std::size_t>(u64(info, 4)), &call);
  return answer(info, status, static_cast<double>(call));
}

// submitCallWith(now, workflow, promptTokens, chain, count): the rest is in `told`.
Napi::Value submit_call_with(const Napi::CallbackInfo& info) {
  const auto chain = elements<std::uint64_t>(info.Env(), info[3]);
  saga_call_info_t told_of_it;
  saga_call_info_init(&told_of_it);
  told_of_it.prompt_tokens = u32(info, 2);
  told_of_it.agent = told(info, kToldAgent);
  told_of_it.prompt_kind = told(info, kToldPromptKind);
  told_of_it.hints = told_hints(info);
  std::uint64_t call = 0;
  const saga_status_t status = saga_engine_submit_call_with(engine_of(info), u64(info, 0), u64(info, 1), &told_of_it,
                                                            chain.data, static_cast<std::size_t>(u64(info, 4)), &call);
  return answer(info, status, static_cast<double>(call));
}

// firstToken(now, call, placement): SAGA_NONE: the present one.
Napi::Value first_token(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_first_token_with(engine_of(info), u64(info, 0), u64(info, 1), u32(info, 2)));
}

// finishCall(now, call, stop, tool, outputTokens)
Napi::Value finish_call(const Napi::CallbackInfo& info) {
  return answer(
      info, saga_engine_finish_call(engine_of(info), u64(info, 0), u64(info, 1), static_cast<saga_stop_t>(u32(info, 2)),
                                    static_cast<saga_tool_t>(u32(info, 3)), u32(info, 4)));
}

// finishCallWith(now, call, stop, tool, outputTokens, chain): the rest is in `told`.
Napi::Value finish_call_with(const Napi::CallbackInfo& info) {
  const auto chain = elements<std::uint64_t>(info.Env(), info[5]);
  saga_answer_info_t told_of_it;
  saga_answer_info_init(&told_of_it);
  told_of_it.placement = told(info, kToldPlacement);
  told_of_it.stop = u32(info, 2);
  told_of_it.tool = u32(info, 3);
  told_of_it.output_tokens = u32(info, 4);
  told_of_it.hints = told_hints(info);
  return answer(info, saga_engine_finish_call_with(engine_of(info), u64(info, 0), u64(info, 1), &told_of_it, chain.data,
                                                   chain.count));
}

Napi::Value cancel_call(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_cancel_call(engine_of(info), u64(info, 0), u64(info, 1)));
}

Napi::Value tool_started(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_tool_started(engine_of(info), u64(info, 0), u64(info, 1),
                                               static_cast<saga_tool_t>(u32(info, 2))));
}

Napi::Value tool_finished(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_tool_finished(engine_of(info), u64(info, 0), u64(info, 1)));
}

Napi::Value tick(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_tick(engine_of(info), u64(info, 0)));
}

// nextWake() -> microseconds, or infinity.
Napi::Value next_wake(const Napi::CallbackInfo& info) {
  std::uint64_t time = 0;
  const saga_status_t status = saga_engine_next_wake(engine_of(info), &time);
  return answer(info, status, time == UINT64_MAX ? HUGE_VAL : static_cast<double>(time));
}

// directiveDone(now, id, outcome)
Napi::Value directive_done(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_directive_done(engine_of(info), u64(info, 0), u64(info, 1),
                                                 static_cast<saga_outcome_t>(u32(info, 2))));
}

// decide(now) -> number of decisions written. What the scheduler wanted to go on with by now is done first.
Napi::Value decide(const Napi::CallbackInfo& info) {
  const auto& decisions = BoundEngine::of(info).decisions;
  std::uint64_t wake = 0;
  saga_status_t status = saga_engine_next_wake(engine_of(info), &wake);
  if (status == SAGA_OK && wake <= u64(info, 0)) status = saga_engine_tick(engine_of(info), u64(info, 0));
  if (status != SAGA_OK) return failure(info, status);
  std::size_t count = 0;
  status = saga_engine_decide(engine_of(info), u64(info, 0), reinterpret_cast<saga_decision_t*>(decisions.data),
                              decisions.count / kDecisionWords, &count);
  return answer(info, status, static_cast<double>(count));
}

// match(chain, count) -> longest
Napi::Value match(const Napi::CallbackInfo& info) {
  const auto chain = elements<std::uint64_t>(info.Env(), info[0]);
  const auto& depth = BoundEngine::of(info).depth;
  std::uint32_t longest = 0;
  const saga_status_t status = saga_engine_match(engine_of(info), chain.data, static_cast<std::size_t>(u64(info, 1)),
                                                 depth.data, depth.count, &longest);
  return answer(info, status, longest);
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  saga_engine_stats_t of{};
  const saga_status_t status = saga_engine_stats(engine_of(info), &of);
  if (status == SAGA_OK) {
    Results(info).add(of.workers, of.workflows, of.open_calls, of.waiting_calls, of.placed_calls, of.finished_calls,
                      of.cancelled_calls, of.replaced_calls, of.prompt_blocks, of.matched_blocks, of.holder_blocks,
                      of.journal_bytes);
  }
  return answer(info, status);
}

Napi::Value scheduler_stats(const Napi::CallbackInfo& info) {
  saga_scheduler_stats_t of{};
  of.struct_size = sizeof of;
  const saga_status_t status = saga_engine_scheduler_stats(engine_of(info), &of);
  if (status == SAGA_OK) {
    Results(info).add(of.queued_calls, of.grants, of.queued, of.held, of.steals, of.pulls, of.recomputes, of.thrash,
                      of.prefetches, of.prefetches_cancelled, of.preemptions, of.copies, of.copies_applied,
                      of.copies_refused, of.copies_expired, of.leases_granted, of.leases_refused, of.leases_expired,
                      of.leases_released, of.leases_revoked, of.drops, of.drops_lost, of.stale, of.threads, of.graphs);
  }
  return answer(info, status);
}

// calibration(): Brier scores, gaps, within p50, p90, p95, then three numbers a bin: a next call at all, within the horizon.
Napi::Value calibration(const Napi::CallbackInfo& info) {
  saga_calibration_t of{};
  of.struct_size = sizeof of;
  const saga_status_t status = saga_engine_calibration(engine_of(info), &of);
  if (status == SAGA_OK) {
    Results out(info);
    out.add(of.next_call_brier, of.within_horizon_brier, of.gaps, of.within_p50, of.within_p90, of.within_p95);
    for (const auto* table : {of.next_call, of.within_horizon}) {
      for (std::size_t i = 0; i < SAGA_RELIABILITY_BINS; ++i) {
        out.add(table[i].predictions, table[i].happened, table[i].predicted_sum);
      }
    }
  }
  return answer(info, status);
}
static_assert(6 + 2 * 3 * SAGA_RELIABILITY_BINS <= kResults);

Napi::Value tenant_state(const Napi::CallbackInfo& info) {
  saga_tenant_state_t of{};
  of.struct_size = sizeof of;
  const saga_status_t status = saga_engine_tenant_state(engine_of(info), u32(info, 0), &of);
  if (status == SAGA_OK) Results(info).add(of.waiting, of.weight, of.served, of.lag, of.credit, of.share);
  return answer(info, status);
}

Napi::Value worker_forecast(const Napi::CallbackInfo& info) {
  saga_worker_forecast_t of{};
  of.struct_size = sizeof of;
  const saga_status_t status = saga_engine_worker_forecast(engine_of(info), u32(info, 0), &of);
  if (status == SAGA_OK) {
    Results(info).add(of.open_calls, of.cost_factor, of.resident_tokens, of.running_tokens, of.leased_blocks);
  }
  return answer(info, status);
}

Napi::Value receipt(const Napi::CallbackInfo& info) {
  saga_receipt_t of{};
  of.struct_size = sizeof of;
  const saga_status_t status = saga_engine_receipt(engine_of(info), u64(info, 0), &of);
  if (status == SAGA_OK) {
    Results out(info);
    out.add(of.reason, of.worker, of.source, of.holder, of.matched_blocks, of.prompt_blocks, of.placement,
            of.submitted_at, of.queued, of.granted_at);
    for (const saga_price_t& price : {of.price, of.holder_price}) {
      out.add(price.wait, price.prefill, price.transfer, price.decode, price.interference, price.displacement);
    }
    out.add(of.trust_per_mille, of.workers_added);
  }
  return answer(info, status);
}

Napi::Value digest(const Napi::CallbackInfo& info) {
  std::uint64_t digest = 0;
  const saga_status_t status = saga_engine_digest(engine_of(info), &digest);
  if (status != SAGA_OK) return failure(info, status);
  return Napi::BigInt::New(info.Env(), digest);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_engine_verify(engine_of(info), &intact);
  return answer(info, status, intact);
}

Napi::Value journal_read(const Napi::CallbackInfo& info) {
  const auto bytes = elements<std::uint8_t>(info.Env(), info[0]);
  std::size_t count = 0;
  const saga_status_t status = saga_engine_journal_read(engine_of(info), bytes.data, bytes.count, &count);
  return answer(info, status, static_cast<double>(count));
}

Napi::Value kv_source(const Napi::CallbackInfo& info) { return create_kv_source(info, &BoundEngine::of(info).handle); }

// Frees the engine now rather than when its functions are collected. Afterwards every function answers
// SAGA_ERR_INVALID_ARGUMENT, because the C interface refuses NULL.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_engine_destroy(BoundEngine::of(info).handle);
  BoundEngine::of(info).handle = nullptr;
  BoundEngine::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

// What a new engine takes, roughly: the index's table, slots of calls and workflows, the journal's buffer (twice its
// capacity), and what SAGA's own scheduler needs. The rest grows with use.
std::int64_t native_bytes(const saga_engine_options_t& options) {
  const std::uint64_t of_all = options.max_blocks * 16 + options.max_calls * std::uint64_t{80} +
                               options.max_workflows * std::uint64_t{48} + 2 * options.journal_bytes;
  if (options.placement != SAGA_PLACEMENT_SAGA) return static_cast<std::int64_t>(of_all);
  // Threads with their slots of the predictor, the predictor's tables, entries of the fair queues, receipts.
  const std::uint64_t threads =
      options.max_threads != 0 ? options.max_threads : 2 * std::uint64_t{options.max_workflows};
  const std::uint64_t of_saga =
      threads * 640 + 66 * 46'000 + options.max_calls * std::uint64_t{320} + options.max_receipts * std::uint64_t{160};
  return static_cast<std::int64_t>(of_all + of_saga);
}

Napi::Value methods_of(const Napi::CallbackInfo& info, saga_engine_t* handle, std::int64_t bytes,
                       std::size_t first_array) {
  Napi::Env env = info.Env();
  auto* bound = new BoundEngine();
  bound->set_native_bytes(env, bytes);
  EngineHandle& engine = bound->object;
  engine.handle = handle;
  engine.decisions = elements<std::uint32_t>(env, info[first_array]);
  engine.depth = elements<std::uint32_t>(env, info[first_array + 1]);
  engine.results = elements<double>(env, info[first_array + 2]);
  engine.worker_state = elements<std::uint32_t>(env, info[first_array + 3]);
  engine.told = elements<double>(env, info[first_array + 4]);
  Napi::Array registered = Napi::Array::New(env, 5);
  for (std::uint32_t i = 0; i < 5; ++i) registered.Set(i, info[first_array + i]);
  engine.registered = Napi::Persistent(registered);
  Napi::Object methods = Napi::Object::New(env);
  bound->bind<add_worker>(env, methods, "addWorker");
  bound->bind<remove_worker>(env, methods, "removeWorker");
  bound->bind<blocks_stored>(env, methods, "blocksStored");
  bound->bind<blocks_removed>(env, methods, "blocksRemoved");
  bound->bind<blocks_cleared>(env, methods, "blocksCleared");
  bound->bind<kv_source>(env, methods, "createKvSource");
  bound->bind<worker_load>(env, methods, "workerLoad");
  bound->bind<worker_load_with>(env, methods, "workerLoadWith");
  bound->bind<worker_trust>(env, methods, "workerTrust");
  bound->bind<worker_accepts>(env, methods, "workerAccepts");
  bound->bind<worker_window>(env, methods, "workerWindow");
  bound->bind<window_stored>(env, methods, "windowStored");
  bound->bind<window_removed>(env, methods, "windowRemoved");
  bound->bind<worker_state>(env, methods, "workerState");
  bound->bind<declare_graph>(env, methods, "declareGraph");
  bound->bind<set_tenant>(env, methods, "setTenant");
  bound->bind<open_workflow>(env, methods, "openWorkflow");
  bound->bind<close_workflow>(env, methods, "closeWorkflow");
  bound->bind<submit_call>(env, methods, "submitCall");
  bound->bind<submit_call_with>(env, methods, "submitCallWith");
  bound->bind<first_token>(env, methods, "firstToken");
  bound->bind<finish_call>(env, methods, "finishCall");
  bound->bind<finish_call_with>(env, methods, "finishCallWith");
  bound->bind<cancel_call>(env, methods, "cancelCall");
  bound->bind<tool_started>(env, methods, "toolStarted");
  bound->bind<tool_finished>(env, methods, "toolFinished");
  bound->bind<tick>(env, methods, "tick");
  bound->bind<decide>(env, methods, "decide");
  bound->bind<next_wake>(env, methods, "nextWake");
  bound->bind<directive_done>(env, methods, "directiveDone");
  bound->bind<match>(env, methods, "match");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<scheduler_stats>(env, methods, "schedulerStats");
  bound->bind<calibration>(env, methods, "calibration");
  bound->bind<tenant_state>(env, methods, "tenantState");
  bound->bind<worker_forecast>(env, methods, "workerForecast");
  bound->bind<receipt>(env, methods, "receipt");
  bound->bind<digest>(env, methods, "digest");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<journal_read>(env, methods, "journalRead");
  bound->bind<destroy>(env, methods, "destroy");
  return bound->bound_to(env, methods);
}

// createEngine(options: Float64Array of 27, decisions, depth, results, workerState, told). NaN leaves the default.
Napi::Value create(const Napi::CallbackInfo& info) {
  const auto values = elements<double>(info.Env(), info[0]);
  if (values.count != 27 || elements<double>(info.Env(), info[3]).count < kResults ||
      elements<std::uint32_t>(info.Env(), info[4]).count < 7 ||
      elements<double>(info.Env(), info[5]).count < kToldColumns) {
    return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  }
  saga_engine_options_t options;
  saga_engine_options_init(&options);
  const double* next = values.data;
  const auto take = [&next](auto&... fields) {
    const auto one = [&next](auto& field) {
      const double value = *next++;
      if (!std::isnan(value)) field = static_cast<std::remove_reference_t<decltype(field)>>(value);
    };
    (one(fields), ...);
  };
  take(options.max_workers, options.max_workflows, options.max_calls, options.max_blocks, options.max_open_blocks,
       options.max_chain_blocks, options.block_tokens, options.placement, options.imbalance_calls,
       options.minimum_match_percent, options.seed, options.journal_bytes);
  take(options.max_threads, options.max_tenants, options.max_graphs, options.max_leases, options.max_directives,
       options.max_receipts, options.without, options.directive_seconds, options.kv_bytes_per_token,
       options.link_bytes_per_second);
  take(options.step_base, options.step_per_call, options.step_per_context_token, options.step_per_prefill_token,
       options.step_per_prefill_pair);
  saga_engine_t* handle = nullptr;
  const saga_status_t status = saga_engine_create(&options, &handle);
  return status == SAGA_OK ? methods_of(info, handle, native_bytes(options), 1) : failure(info, status);
}

// The rest of both: `result` (Float64Array of 4): the status, then saga_replay_result_t. Returns the digest of
// the state that was rebuilt as a bigint, or minus the status where there is no engine.
Napi::Value replay_bytes(const Napi::CallbackInfo& info, const std::uint8_t* bytes, std::size_t count) {
  const auto out = elements<double>(info.Env(), info[1]);
  saga_replay_result_t replayed{};
  EngineHandle engine;
  const saga_status_t status = saga_engine_replay(bytes, count, &engine.handle, &replayed);
  if (out.count >= 4) {
    out.data[0] = static_cast<double>(status);
    out.data[1] = static_cast<double>(replayed.events);
    out.data[2] = static_cast<double>(replayed.decisions);
    out.data[3] = static_cast<double>(replayed.good_bytes);
  }
  std::uint64_t digest = 0;
  if (engine.handle == nullptr || saga_engine_digest(engine.handle, &digest) != SAGA_OK) return failure(info, status);
  return Napi::BigInt::New(info.Env(), digest);
}

Napi::Value replay(const Napi::CallbackInfo& info) {
  const auto journal = elements<std::uint8_t>(info.Env(), info[0]);
  return replay_bytes(info, journal.data, journal.count);
}

// replayJournalFile(path, result): as replayJournal, for files of any size. Minus SAGA_ERR_NOT_FOUND where it cannot be read.
Napi::Value replay_file(const Napi::CallbackInfo& info) {
  const std::string path = info[0].As<Napi::String>().Utf8Value();
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return failure(info, SAGA_ERR_NOT_FOUND);
  std::vector<std::uint8_t> bytes;
  constexpr std::size_t kPiece = std::size_t{1} << 24;
  for (std::size_t size = 0;;) {
    bytes.resize(size + kPiece);
    const std::size_t count = std::fread(bytes.data() + size, 1, kPiece, file.get());
    size += count;
    bytes.resize(size);
    if (count == kPiece) continue;
    if (std::ferror(file.get()) != 0) return failure(info, SAGA_ERR_NOT_FOUND);
    break;
  }
  return replay_bytes(info, bytes.data(), bytes.size());
}

}  // namespace

void register_engine(Napi::Env env, Napi::Object exports) {
  exports.Set("createEngine", Napi::Function::New<create>(env, "createEngine"));
  exports.Set("replayJournal", Napi::Function::New<replay>(env, "replayJournal"));
  exports.Set("replayJournalFile", Napi::Function::New<replay_file>(env, "replayJournalFile"));
}

}  // namespace saga::node
