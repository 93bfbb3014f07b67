// The engine for JavaScript: createEngine(options, decisions, depth, stats, workerState) -> functions of one engine.
//
// The arrays are registered: `decisions` (Uint32Array, 16 words a decision: saga_decision_t), `depth` (Uint32Array,
// max_workers * 3), `stats` (Float64Array of 12: saga_engine_stats_t in order) and `workerState` (Uint32Array of 4) are
// written by decide, match, stats and workerState.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "binding.hpp"

namespace saga::node {
namespace {

struct EngineHandle {
  saga_engine_t* handle = nullptr;
  Elements<std::uint32_t> decisions;
  Elements<std::uint32_t> depth;
  Elements<double> stats;
  Elements<std::uint32_t> worker_state;
  Napi::Reference<Napi::Array> registered;  // keeps the arrays alive
  ~EngineHandle() { saga_engine_destroy(handle); }
};
using BoundEngine = Bound<EngineHandle>;

saga_engine_t* engine_of(const Napi::CallbackInfo& info) { return BoundEngine::of(info).handle; }

constexpr std::size_t kDecisionWords = sizeof(saga_decision_t) / sizeof(std::uint32_t);
static_assert(kDecisionWords == 16);

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

Napi::Value worker_state(const Napi::CallbackInfo& info) {
  saga_worker_state_t state{};
  const saga_status_t status = saga_engine_worker_state(engine_of(info), u32(info, 0), &state);
  if (status == SAGA_OK) {
    std::uint32_t* out = BoundEngine::of(info).worker_state.data;
    out[0] = state.capacity_blocks;
    out[1] = state.open_calls;
    out[2] = state.blocks_in_use;
    out[3] = state.active;
  }
  return answer(info, status);
}

Napi::Value open_workflow(const Napi::CallbackInfo& info) {
  std::uint64_t workflow = 0;
  const saga_status_t status = saga_engine_open_workflow(engine_of(info), u64(info, 0), u32(info, 1), &workflow);
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

Napi::Value first_token(const Napi::CallbackInfo& info) {
  return answer(info, saga_engine_first_token(engine_of(info), u64(info, 0), u64(info, 1)));
}

// finishCall(now, call, stop, tool, outputTokens)
Napi::Value finish_call(const Napi::CallbackInfo& info) {
  return answer(
      info, saga_engine_finish_call(engine_of(info), u64(info, 0), u64(info, 1), static_cast<saga_stop_t>(u32(info, 2)),
                                    static_cast<saga_tool_t>(u32(info, 3)), u32(info, 4)));
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

// decide(now) -> number of decisions written
Napi::Value decide(const Napi::CallbackInfo& info) {
  const auto& decisions = BoundEngine::of(info).decisions;
  std::size_t count = 0;
  const saga_status_t status =
      saga_engine_decide(engine_of(info), u64(info, 0), reinterpret_cast<saga_decision_t*>(decisions.data),
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
  saga_engine_stats_t stats{};
  const saga_status_t status = saga_engine_stats(engine_of(info), &stats);
  double* out = BoundEngine::of(info).stats.data;
  const double values[] = {static_cast<double>(stats.workers),         static_cast<double>(stats.workflows),
                           static_cast<double>(stats.open_calls),      static_cast<double>(stats.waiting_calls),
                           static_cast<double>(stats.placed_calls),    static_cast<double>(stats.finished_calls),
                           static_cast<double>(stats.cancelled_calls), static_cast<double>(stats.replaced_calls),
                           static_cast<double>(stats.prompt_blocks),   static_cast<double>(stats.matched_blocks),
                           static_cast<double>(stats.holder_blocks),   static_cast<double>(stats.journal_bytes)};
  for (std::size_t i = 0; i < BoundEngine::of(info).stats.count && i < std::size(values); ++i) out[i] = values[i];
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

// Frees the engine now rather than when its functions are collected. Afterwards every function answers
// SAGA_ERR_INVALID_ARGUMENT, because the C interface refuses NULL.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_engine_destroy(BoundEngine::of(info).handle);
  BoundEngine::of(info).handle = nullptr;
  BoundEngine::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

// What a new engine takes, roughly: the index's table, slots of calls and workflows, the journal's buffer (twice its
// capacity). The rest grows with use.
std::int64_t native_bytes(const saga_engine_options_t& options) {
  return static_cast<std::int64_t>(options.max_blocks * 16 + options.max_calls * std::uint64_t{80} +
                                   options.max_workflows * std::uint64_t{48} + 2 * options.journal_bytes);
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
  engine.stats = elements<double>(env, info[first_array + 2]);
  engine.worker_state = elements<std::uint32_t>(env, info[first_array + 3]);
  Napi::Array registered = Napi::Array::New(env, 4);
  for (std::uint32_t i = 0; i < 4; ++i) registered.Set(i, info[first_array + i]);
  engine.registered = Napi::Persistent(registered);
  Napi::Object methods = Napi::Object::New(env);
  bound->bind<add_worker>(env, methods, "addWorker");
  bound->bind<remove_worker>(env, methods, "removeWorker");
  bound->bind<blocks_stored>(env, methods, "blocksStored");
  bound->bind<blocks_removed>(env, methods, "blocksRemoved");
  bound->bind<blocks_cleared>(env, methods, "blocksCleared");
  bound->bind<worker_load>(env, methods, "workerLoad");
  bound->bind<worker_state>(env, methods, "workerState");
  bound->bind<open_workflow>(env, methods, "openWorkflow");
  bound->bind<close_workflow>(env, methods, "closeWorkflow");
  bound->bind<submit_call>(env, methods, "submitCall");
  bound->bind<first_token>(env, methods, "firstToken");
  bound->bind<finish_call>(env, methods, "finishCall");
  bound->bind<cancel_call>(env, methods, "cancelCall");
  bound->bind<tool_started>(env, methods, "toolStarted");
  bound->bind<tool_finished>(env, methods, "toolFinished");
  bound->bind<tick>(env, methods, "tick");
  bound->bind<decide>(env, methods, "decide");
  bound->bind<match>(env, methods, "match");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<digest>(env, methods, "digest");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<journal_read>(env, methods, "journalRead");
  bound->bind<destroy>(env, methods, "destroy");
  return methods;
}

// createEngine(options: Float64Array of 12, decisions, depth, stats, workerState)
Napi::Value create(const Napi::CallbackInfo& info) {
  const auto values = elements<double>(info.Env(), info[0]);
  if (values.count != 12) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_engine_options_t options;
  saga_engine_options_init(&options);
  options.max_workers = static_cast<std::uint32_t>(values.data[0]);
  options.max_workflows = static_cast<std::uint32_t>(values.data[1]);
  options.max_calls = static_cast<std::uint32_t>(values.data[2]);
  options.max_blocks = static_cast<std::uint64_t>(values.data[3]);
  options.max_open_blocks = static_cast<std::uint64_t>(values.data[4]);
  options.max_chain_blocks = static_cast<std::uint32_t>(values.data[5]);
  options.block_tokens = static_cast<std::uint32_t>(values.data[6]);
  options.placement = static_cast<std::uint32_t>(values.data[7]);
  options.imbalance_calls = static_cast<std::uint32_t>(values.data[8]);
  options.minimum_match_percent = static_cast<std::uint32_t>(values.data[9]);
  options.seed = static_cast<std::uint64_t>(values.data[10]);
  options.journal_bytes = static_cast<std::uint64_t>(values.data[11]);
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
