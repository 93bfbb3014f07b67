// Lineages for JavaScript: createLineage(maxHeads, maxBlocks, slackBlocks, words, stats, forgotten) -> functions of one lineage.
//
// The arrays are registered: words (Uint32Array of 6) receives saga_lineage_match_t, stats (Float64Array of 12) what `stats` says,
// forgotten (Uint32Array of maxHeads) what `forgotten` does.
#include <cstring>
#include <string>

#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kWords = 6;
constexpr std::size_t kStats = 7 + SAGA_LINEAGE_KIND_COUNT;
static_assert(sizeof(saga_lineage_match_t) == kWords * sizeof(std::uint32_t));

struct LineageHandle {
  saga_lineage_t* handle = nullptr;
  std::uint32_t* words = nullptr;
  double* stats = nullptr;
  Elements<std::uint32_t> forgotten;
  Napi::Reference<Napi::Array> registered;  // keeps the arrays alive
  ~LineageHandle() { saga_lineage_destroy(handle); }
};
using BoundLineage = Bound<LineageHandle>;

saga_lineage_t* lineage_of(const Napi::CallbackInfo& info) { return BoundLineage::of(info).handle; }

// identify(hashes, id): an empty id is none
Napi::Value identify(const Napi::CallbackInfo& info) {
  const auto hashes = elements<std::uint64_t>(info.Env(), info[0]);
  const std::string text = info[1].As<Napi::String>().Utf8Value();
  std::uint64_t id = SAGA_NO_WORKFLOW_ID;
  if (!text.empty()) {
    const saga_status_t known = saga_lineage_id_of(text.data(), text.size(), &id);
    if (known != SAGA_OK) return failure(info, known);
  }
  saga_lineage_match_t match{};
  const saga_status_t status = saga_lineage_identify(lineage_of(info), hashes.data, hashes.count, id, &match);
  if (status == SAGA_OK) std::memcpy(BoundLineage::of(info).words, &match, sizeof(match));
  return answer(info, status);
}

Napi::Value ended(const Napi::CallbackInfo& info) {
  return answer(info, saga_lineage_ended(lineage_of(info), u32(info, 0)));
}

Napi::Value closed(const Napi::CallbackInfo& info) {
  return answer(info, saga_lineage_closed(lineage_of(info), u32(info, 0)));
}

// forgotten() -> how many
Napi::Value forgotten(const Napi::CallbackInfo& info) {
  const Elements<std::uint32_t>& out = BoundLineage::of(info).forgotten;
  std::size_t count = 0;
  const saga_status_t status = saga_lineage_forgotten(lineage_of(info), out.data, out.count, &count);
  return answer(info, status, static_cast<double>(count));
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  saga_lineage_stats_t known{};
  const saga_status_t status = saga_lineage_stats(lineage_of(info), &known);
  if (status != SAGA_OK) return failure(info, status);
  double* out = BoundLineage::of(info).stats;
  const auto write = [&out](auto value) { *out++ = static_cast<double>(value); };
  write(known.workflows);
  write(known.heads);
  write(known.running_calls);
  write(known.blocks);
  for (const std::uint64_t calls : known.calls_total) write(calls);
  write(known.superseded_total);
  write(known.forgotten_total);
  write(known.memory_bytes);
  return result(info, 0);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_lineage_verify(lineage_of(info), &intact);
  return answer(info, status, intact);
}

// Frees the lineage now rather than when its functions are collected.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_lineage_destroy(BoundLineage::of(info).handle);
  BoundLineage::of(info).handle = nullptr;
  BoundLineage::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

Napi::Value create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  saga_lineage_options_t options;
  saga_lineage_options_init(&options);
  options.max_heads = u32(info, 0);
  options.max_blocks = u32(info, 1);
  options.slack_blocks = u32(info, 2);
  const auto words = elements<std::uint32_t>(env, info[3]);
  const auto stats_array = elements<double>(env, info[4]);
  const auto forgotten_array = elements<std::uint32_t>(env, info[5]);
  if (words.count != kWords || stats_array.count != kStats || forgotten_array.count != options.max_heads) {
    return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  }
  saga_lineage_t* handle = nullptr;
  const saga_status_t status = saga_lineage_create(&options, &handle);
  if (status != SAGA_OK) return failure(info, status);
  auto* bound = new BoundLineage();
  LineageHandle& lineage = bound->object;
  lineage.handle = handle;
  saga_lineage_stats_t made{};
  if (saga_lineage_stats(handle, &made) == SAGA_OK) {
    bound->set_native_bytes(env, static_cast<std::int64_t>(made.memory_bytes));
  }
  lineage.words = words.data;
  lineage.stats = stats_array.data;
  lineage.forgotten = forgotten_array;
  Napi::Array registered = Napi::Array::New(env, 3);
  for (std::uint32_t i = 0; i < 3; ++i) registered.Set(i, info[3 + i]);
  lineage.registered = Napi::Persistent(registered);

  Napi::Object methods = Napi::Object::New(env);
  bound->bind<identify>(env, methods, "identify");
  bound->bind<ended>(env, methods, "ended");
  bound->bind<closed>(env, methods, "closed");
  bound->bind<forgotten>(env, methods, "forgotten");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<destroy>(env, methods, "destroy");
  return bound->bound_to(env, methods);
}

}  // namespace

void register_lineage(Napi::Env env, Napi::Object exports) {
  exports.Set("createLineage", Napi::Function::New<create>(env, "createLineage"));
}

}  // namespace saga::node
