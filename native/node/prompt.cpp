// Prompt chains for JavaScript: createPromptChain(options, root, loraName, cacheSalt, words, stats) -> functions of one chain.
//
// The arrays are registered: words (Uint32Array of 4) receives common tokens and hashed blocks of a change, and the length in
// tokens and in blocks whenever it changes; stats (Float64Array of 3) what `stats` says.
#include <string>

#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kWords = 4;
constexpr std::size_t kStats = 3;
constexpr std::size_t kOptions = 3;

struct PromptChainHandle {
  saga_prompt_chain_t* handle = nullptr;
  std::uint32_t* words = nullptr;
  double* stats = nullptr;
  Napi::Reference<Napi::Array> registered;  // keeps the arrays alive
  ~PromptChainHandle() { saga_prompt_chain_destroy(handle); }
};
using BoundChain = Bound<PromptChainHandle>;

saga_prompt_chain_t* chain_of(const Napi::CallbackInfo& info) { return BoundChain::of(info).handle; }

Napi::Value bind_chain(Napi::Env env, saga_prompt_chain_t* handle, Napi::Value words, Napi::Value stats);

// After a change: the length, and what V8 must know of memory.
void write_length(Napi::Env env, BoundChain& bound) {
  PromptChainHandle& chain = bound.object;
  saga_prompt_chain_length(chain.handle, &chain.words[2], &chain.words[3]);
  saga_prompt_chain_stats_t known{};
  if (saga_prompt_chain_stats(chain.handle, &known) != SAGA_OK) return;
  bound.set_native_bytes(env, static_cast<std::int64_t>(known.memory_bytes));
}

template <saga_status_t (*Change)(saga_prompt_chain_t*, const uint32_t*, size_t, saga_prompt_change_t*)>
Napi::Value change(const Napi::CallbackInfo& info) {
  const auto tokens = elements<std::uint32_t>(info.Env(), info[0]);
  saga_prompt_change_t made{};
  const saga_status_t status = Change(chain_of(info), tokens.data, tokens.count, &made);
  if (status != SAGA_OK) return failure(info, status);
  BoundChain::of(info).words[0] = made.common_tokens;
  BoundChain::of(info).words[1] = made.hashed_blocks;
  write_length(info.Env(), BoundChain::bound_of(info));
  return result(info, 0);
}

Napi::Value truncate(const Napi::CallbackInfo& info) {
  const saga_status_t status = saga_prompt_chain_truncate(chain_of(info), u32(info, 0));
  if (status == SAGA_OK) write_length(info.Env(), BoundChain::bound_of(info));
  return answer(info, status);
}

Napi::Value hashes(const Napi::CallbackInfo& info) {
  const auto out = elements<std::uint64_t>(info.Env(), info[0]);
  std::size_t count = 0;
  const saga_status_t status = saga_prompt_chain_hashes(chain_of(info), out.data, out.count, &count);
  return answer(info, status, static_cast<double>(count));
}

Napi::Value tokens(const Napi::CallbackInfo& info) {
  const auto out = elements<std::uint32_t>(info.Env(), info[0]);
  std::size_t count = 0;
  const saga_status_t status = saga_prompt_chain_tokens(chain_of(info), out.data, out.count, &count);
  return answer(info, status, static_cast<double>(count));
}

// fork(tokens, words, stats) -> functions of the fork
Napi::Value fork(const Napi::CallbackInfo& info) {
  saga_prompt_chain_t* handle = nullptr;
  const saga_status_t status = saga_prompt_chain_fork(chain_of(info), u32(info, 0), &handle);
  return status == SAGA_OK ? bind_chain(info.Env(), handle, info[1], info[2]) : failure(info, status);
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  saga_prompt_chain_stats_t known{};
  const saga_status_t status = saga_prompt_chain_stats(chain_of(info), &known);
  if (status != SAGA_OK) return failure(info, status);
  double* out = BoundChain::of(info).stats;
  out[0] = static_cast<double>(known.tokens_compared);
  out[1] = static_cast<double>(known.tokens_hashed);
  out[2] = static_cast<double>(known.memory_bytes);
  return result(info, 0);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_prompt_chain_verify(chain_of(info), &intact);
  return answer(info, status, intact);
}

// Frees the chain now rather than when its functions are collected.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  saga_prompt_chain_destroy(BoundChain::of(info).handle);
  BoundChain::of(info).handle = nullptr;
  BoundChain::bound_of(info).set_native_bytes(info.Env(), 0);
  return result(info, 0);
}

Napi::Value bind_chain(Napi::Env env, saga_prompt_chain_t* handle, Napi::Value words, Napi::Value stats_array) {
  auto* bound = new BoundChain();
  PromptChainHandle& chain = bound->object;
  chain.handle = handle;
  chain.words = elements<std::uint32_t>(env, words).data;
  chain.stats = elements<double>(env, stats_array).data;
  Napi::Array registered = Napi::Array::New(env, 2);
  registered.Set(0u, words);
  registered.Set(1u, stats_array);
  chain.registered = Napi::Persistent(registered);
  write_length(env, *bound);

  Napi::Object methods = Napi::Object::New(env);
  bound->bind<change<saga_prompt_chain_update>>(env, methods, "update");
  bound->bind<change<saga_prompt_chain_append>>(env, methods, "append");
  bound->bind<truncate>(env, methods, "truncate");
  bound->bind<hashes>(env, methods, "hashes");
  bound->bind<tokens>(env, methods, "tokens");
  bound->bind<fork>(env, methods, "fork");
  bound->bind<stats>(env, methods, "stats");
  bound->bind<verify>(env, methods, "verify");
  bound->bind<destroy>(env, methods, "destroy");
  return bound->bound_to(env, methods);
}

Napi::Value create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto given = elements<double>(env, info[0]);
  if (given.count != kOptions || elements<std::uint32_t>(env, info[4]).count != kWords ||
      elements<double>(env, info[5]).count != kStats) {
    return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  }
  saga_prompt_chain_options_t options;
  saga_prompt_chain_options_init(&options);
  options.algorithm = static_cast<std::uint32_t>(given.data[0]);
  options.block_tokens = static_cast<std::uint32_t>(given.data[1]);
  options.max_tokens = static_cast<std::uint32_t>(given.data[2]);
  const std::string root = info[1].As<Napi::String>().Utf8Value();
  const std::string lora = info[2].As<Napi::String>().Utf8Value();
  const std::string salt = info[3].As<Napi::String>().Utf8Value();
  saga_prompt_chain_t* handle = nullptr;
  const saga_status_t status = saga_prompt_chain_create(&options, root.data(), root.size(), lora.data(), lora.size(),
                                                        salt.data(), salt.size(), &handle);
  return status == SAGA_OK ? bind_chain(env, handle, info[4], info[5]) : failure(info, status);
}

}  // namespace

void register_prompt(Napi::Env env, Napi::Object exports) {
  exports.Set("createPromptChain", Napi::Function::New<create>(env, "createPromptChain"));
}

}  // namespace saga::node
