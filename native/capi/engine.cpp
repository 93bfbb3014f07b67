// The engine of the C interface: checks, then native/core/engine.
#include "../core/engine/engine.hpp"

#include <cstddef>
#include <memory>

#include "check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_PLACEMENT_ROUND_ROBIN == static_cast<int>(PlacementKind::kRoundRobin) &&
              SAGA_PLACEMENT_AFFINITY == static_cast<int>(PlacementKind::kAffinity));
static_assert(SAGA_REASON_ROUND_ROBIN == static_cast<int>(PlacementReason::kRoundRobin) &&
              SAGA_REASON_LONGEST_MATCH == static_cast<int>(PlacementReason::kLongestMatch) &&
              SAGA_REASON_FEWEST_BLOCKS == static_cast<int>(PlacementReason::kFewestBlocks) &&
              SAGA_REASON_IMBALANCE == static_cast<int>(PlacementReason::kImbalance));
// The C and the C++ decision are one layout, so an array of the one is an array of the other.
static_assert(sizeof(saga_decision_t) == sizeof(Decision));
static_assert(offsetof(saga_decision_t, call) == offsetof(Decision, call));
static_assert(offsetof(saga_decision_t, matched_blocks) == offsetof(Decision, matched_blocks));
static_assert(offsetof(saga_decision_t, blocks_in_use) == offsetof(Decision, blocks_in_use));
static_assert(offsetof(saga_decision_t, decided_at) == offsetof(Decision, decided_at));

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

bool options_valid(const EngineOptions& options) {
  return in_range(options.max_workers, 1, kMostWorkers) && in_range(options.max_workflows, 1, kMostSlots) &&
         in_range(options.max_calls, 1, kMostSlots) && in_range(options.max_blocks, 1, kMostBlocks) &&
         in_range(options.max_open_blocks, 1, kMostOpenBlocks) && in_range(options.max_chain_blocks, 1, kMostSlots) &&
         in_range(options.block_tokens, 1, 4096) && options.placement.minimum_match_percent <= 100 &&
         static_cast<std::uint8_t>(options.placement.kind) <= SAGA_PLACEMENT_AFFINITY &&
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
  if (engine == nullptr || !read_options(options, &given) || given.placement > SAGA_PLACEMENT_AFFINITY ||
      given.reserved != 0) {
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

}  // extern "C"
