// Prompt chains for JavaScript. A chain is one opaque handle, and the functions are those of the module: a gateway makes a chain for
// every long prompt, and nine functions of each, to be made and collected, cost more than to hash it.
//
// The arrays come with the call: words (Uint32Array of 4) receives common tokens and hashed blocks of a change, and the length in
// tokens and in blocks whenever it changes; stats (Float64Array of 3) what `promptChainStats` says.
#include <string>

#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kWords = 4;
constexpr std::size_t kStats = 3;
constexpr std::size_t kOptions = 3;
constexpr napi_type_tag kTag = {0x5A6A0001'00000004ull, 0x9B3F1D2C'77E04A04ull};

struct Held {
  saga_prompt_chain_t* handle;  // NULL once it was closed, which the C interface refuses
  std::int64_t bytes;           // as V8 was told
};

void free_now(Napi::Env env, Held& held) {
  saga_prompt_chain_destroy(held.handle);
  Napi::MemoryManagement::AdjustExternalMemory(env, -held.bytes);
  held = {nullptr, 0};
}

// nullptr if it is something else.
Held* held_by(const Napi::Value& value) {
  if (!value.IsExternal()) return nullptr;
  const auto external = value.As<Napi::External<Held>>();
  return external.CheckTypeTag(&kTag) ? external.Data() : nullptr;
}

saga_prompt_chain_t* chain_of(const Napi::CallbackInfo& info) {
  const Held* held = held_by(info[0]);
  return held == nullptr ? nullptr : held->handle;
}

// After a change: the length, and what V8 must know of memory.
void write_length(Napi::Env env, Held& held, std::uint32_t* words) {
  saga_prompt_chain_length(held.handle, &words[2], &words[3]);
  saga_prompt_chain_stats_t known{};
  if (saga_prompt_chain_stats(held.handle, &known) != SAGA_OK) return;
  const auto bytes = static_cast<std::int64_t>(known.memory_bytes);
  Napi::MemoryManagement::AdjustExternalMemory(env, bytes - held.bytes);
  held.bytes = bytes;
}

Napi::Value made(Napi::Env env, saga_prompt_chain_t* handle, std::uint32_t* words) {
  auto* held = new Held{handle, 0};
  auto external = Napi::External<Held>::New(env, held, [](Napi::Env finalizing, Held* last) {
    free_now(finalizing, *last);
    delete last;
  });
  if (external.IsEmpty()) {  // the thread is being ended: nobody will ask for it
    free_now(env, *held);
    delete held;
    return {};
  }
  external.TypeTag(&kTag);
  write_length(env, *held, words);
  return external;
}

// promptChainUpdate(chain, tokens, words), promptChainAppend(chain, tokens, words)
template <saga_status_t (*Change)(saga_prompt_chain_t*, const uint32_t*, size_t, saga_prompt_change_t*)>
Napi::Value change(const Napi::CallbackInfo& info) {
  Held* held = held_by(info[0]);
  const auto tokens = elements<std::uint32_t>(info.Env(), info[1]);
  const auto words = elements<std::uint32_t>(info.Env(), info[2]);
  if (held == nullptr || words.count != kWords) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_prompt_change_t done{};
  const saga_status_t status = Change(held->handle, tokens.data, tokens.count, &done);
  if (status != SAGA_OK) return failure(info, status);
  words.data[0] = done.common_tokens;
  words.data[1] = done.hashed_blocks;
  write_length(info.Env(), *held, words.data);
  return result(info, 0);
}

// promptChainTruncate(chain, tokens, words)
Napi::Value truncate(const Napi::CallbackInfo& info) {
  Held* held = held_by(info[0]);
  const auto words = elements<std::uint32_t>(info.Env(), info[2]);
  if (held == nullptr || words.count != kWords) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  const saga_status_t status = saga_prompt_chain_truncate(held->handle, u32(info, 1));
  if (status == SAGA_OK) write_length(info.Env(), *held, words.data);
  return answer(info, status);
}

// promptChainHashes(chain, out)
Napi::Value hashes(const Napi::CallbackInfo& info) {
  const auto out = elements<std::uint64_t>(info.Env(), info[1]);
  std::size_t count = 0;
  const saga_status_t status = saga_prompt_chain_hashes(chain_of(info), out.data, out.count, &count);
  return answer(info, status, static_cast<double>(count));
}

// promptChainTokens(chain, out)
Napi::Value tokens(const Napi::CallbackInfo& info) {
  const auto out = elements<std::uint32_t>(info.Env(), info[1]);
  std::size_t count = 0;
  const saga_status_t status = saga_prompt_chain_tokens(chain_of(info), out.data, out.count, &count);
  return answer(info, status, static_cast<double>(count));
}

// promptChainFork(chain, tokens, words) -> chain
Napi::Value fork(const Napi::CallbackInfo& info) {
  const auto words = elements<std::uint32_t>(info.Env(), info[2]);
  if (words.count != kWords) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_prompt_chain_t* handle = nullptr;
  const saga_status_t status = saga_prompt_chain_fork(chain_of(info), u32(info, 1), &handle);
  return status == SAGA_OK ? made(info.Env(), handle, words.data) : failure(info, status);
}

// promptChainStats(chain, stats)
Napi::Value stats(const Napi::CallbackInfo& info) {
  const auto out = elements<double>(info.Env(), info[1]);
  if (out.count != kStats) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  saga_prompt_chain_stats_t known{};
  const saga_status_t status = saga_prompt_chain_stats(chain_of(info), &known);
  if (status != SAGA_OK) return failure(info, status);
  out.data[0] = static_cast<double>(known.tokens_compared);
  out.data[1] = static_cast<double>(known.tokens_hashed);
  out.data[2] = static_cast<double>(known.memory_bytes);
  return result(info, 0);
}

Napi::Value verify(const Napi::CallbackInfo& info) {
  std::uint32_t intact = 0;
  const saga_status_t status = saga_prompt_chain_verify(chain_of(info), &intact);
  return answer(info, status, intact);
}

// Frees the chain now rather than when it is collected.
Napi::Value destroy(const Napi::CallbackInfo& info) {
  Held* held = held_by(info[0]);
  if (held == nullptr) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  free_now(info.Env(), *held);
  return result(info, 0);
}

// createPromptChain(options, root, loraName, cacheSalt, words) -> chain
Napi::Value create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto given = elements<double>(env, info[0]);
  const auto words = elements<std::uint32_t>(env, info[4]);
  if (given.count != kOptions || words.count != kWords) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
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
  return status == SAGA_OK ? made(env, handle, words.data) : failure(info, status);
}

}  // namespace

void register_prompt(Napi::Env env, Napi::Object exports) {
  exports.Set("createPromptChain", Napi::Function::New<create>(env, "createPromptChain"));
  exports.Set("promptChainUpdate", Napi::Function::New<change<saga_prompt_chain_update>>(env, "promptChainUpdate"));
  exports.Set("promptChainAppend", Napi::Function::New<change<saga_prompt_chain_append>>(env, "promptChainAppend"));
  exports.Set("promptChainTruncate", Napi::Function::New<truncate>(env, "promptChainTruncate"));
  exports.Set("promptChainHashes", Napi::Function::New<hashes>(env, "promptChainHashes"));
  exports.Set("promptChainTokens", Napi::Function::New<tokens>(env, "promptChainTokens"));
  exports.Set("promptChainFork", Napi::Function::New<fork>(env, "promptChainFork"));
  exports.Set("promptChainStats", Napi::Function::New<stats>(env, "promptChainStats"));
  exports.Set("promptChainVerify", Napi::Function::New<verify>(env, "promptChainVerify"));
  exports.Set("promptChainDestroy", Napi::Function::New<destroy>(env, "promptChainDestroy"));
}

}  // namespace saga::node
