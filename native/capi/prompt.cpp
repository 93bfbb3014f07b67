// Prompt chains of the C interface: checks, then native/core/hash/prompt_chain.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "../core/hash/prompt_chain.hpp"
#include "check.hpp"

using namespace saga;
using namespace saga::capi;

struct saga_prompt_chain_t {
  PromptChain chain;
};

namespace {

constexpr std::uint32_t kMostTokens = 1u << 28;
constexpr std::size_t kMostKeyBytes = 1024;

saga_prompt_chain_options_t default_options() {
  const PromptChainOptions defaults;
  saga_prompt_chain_options_t options{};
  options.algorithm = SAGA_HASH_SAGA;
  options.block_tokens = defaults.block_tokens;
  options.max_tokens = defaults.max_tokens;
  return options;
}

std::string_view to_text(const char* text, std::size_t size) {
  return size == 0 ? std::string_view() : std::string_view(text, size);
}

// Changes the prompt by `count` tokens behind `kept` ones, if there is room.
template <typename F>
saga_status_t change_prompt(saga_prompt_chain_t* chain, std::uint32_t kept, const uint32_t* tokens, std::size_t count,
                            saga_prompt_change_t* change, F&& apply) {
  if (!is_array(tokens, count) || change == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (count > chain->chain.max_tokens() - kept) return SAGA_ERR_FULL;
  return guarded([&] {
    const PromptChange made = apply(to_span(tokens, count));
    change->common_tokens = made.common_tokens;
    change->hashed_blocks = made.hashed_blocks;
    return SAGA_OK;
  });
}

}  // namespace

extern "C" {

void saga_prompt_chain_options_init_sized(saga_prompt_chain_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

saga_status_t saga_prompt_chain_create(const saga_prompt_chain_options_t* options, const char* root, size_t root_size,
                                       const char* lora_name, size_t lora_name_size, const char* cache_salt,
                                       size_t cache_salt_size, saga_prompt_chain_t** chain) {
  saga_prompt_chain_options_t given = default_options();
  if (chain == nullptr || !read_options(options, &given) || !in_range(given.block_tokens, 1, kMaxBlockTokens) ||
      !in_range(given.max_tokens, 1, kMostTokens) || given.algorithm > SAGA_HASH_XXHASH_CBOR_TAGGED ||
      !is_array(root, root_size) || !is_array(lora_name, lora_name_size) || !is_array(cache_salt, cache_salt_size) ||
      lora_name_size > kMostKeyBytes || cache_salt_size > kMostKeyBytes) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  PromptChainOptions made{.vllm = {},
                          .block_tokens = given.block_tokens,
                          .max_tokens = given.max_tokens,
                          .root = to_text(root, root_size),
                          .lora_name = to_text(lora_name, lora_name_size),
                          .cache_salt = to_text(cache_salt, cache_salt_size)};
  if (given.algorithm == SAGA_HASH_SAGA) {
    if (lora_name_size != 0 || cache_salt_size != 0) return SAGA_ERR_INVALID_ARGUMENT;
  } else {
    if (!in_range(root_size, 1, kMaxHashSeedBytes)) return SAGA_ERR_INVALID_ARGUMENT;
    made.vllm = to_vllm_algorithm(given.algorithm);
  }
  return guarded([&] {
    *chain = new saga_prompt_chain_t{PromptChain(made)};
    return SAGA_OK;
  });
}

void saga_prompt_chain_destroy(saga_prompt_chain_t* chain) { delete chain; }

saga_status_t saga_prompt_chain_fork(const saga_prompt_chain_t* chain, uint32_t token_count,
                                     saga_prompt_chain_t** fork) {
  if (chain == nullptr || fork == nullptr || token_count > chain->chain.size()) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *fork = new saga_prompt_chain_t{chain->chain.fork(token_count)};
    return SAGA_OK;
  });
}

saga_status_t saga_prompt_chain_update(saga_prompt_chain_t* chain, const uint32_t* tokens, size_t count,
                                       saga_prompt_change_t* change) {
  if (chain == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return change_prompt(chain, 0, tokens, count, change,
                       [chain](std::span<const std::uint32_t> prompt) { return chain->chain.update(prompt); });
}

saga_status_t saga_prompt_chain_append(saga_prompt_chain_t* chain, const uint32_t* tokens, size_t count,
                                       saga_prompt_change_t* change) {
  if (chain == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return change_prompt(chain, chain->chain.size(), tokens, count, change,
                       [chain](std::span<const std::uint32_t> added) { return chain->chain.append(added); });
}

saga_status_t saga_prompt_chain_truncate(saga_prompt_chain_t* chain, uint32_t token_count) {
  if (chain == nullptr || token_count > chain->chain.size()) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    chain->chain.truncate(token_count);
    return SAGA_OK;
  });
}

saga_status_t saga_prompt_chain_length(const saga_prompt_chain_t* chain, uint32_t* tokens, uint32_t* blocks) {
  if (chain == nullptr || tokens == nullptr || blocks == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *tokens = chain->chain.size();
  *blocks = chain->chain.blocks();
  return SAGA_OK;
}

saga_status_t saga_prompt_chain_hashes(const saga_prompt_chain_t* chain, uint64_t* hashes, size_t capacity,
                                       size_t* count) {
  if (chain == nullptr || count == nullptr || !is_array(hashes, capacity)) return SAGA_ERR_INVALID_ARGUMENT;
  const std::size_t blocks = chain->chain.blocks();
  chain->chain.copy_keys(to_span(hashes, std::min(capacity, blocks)));
  *count = blocks;
  return SAGA_OK;
}

saga_status_t saga_prompt_chain_tokens(const saga_prompt_chain_t* chain, uint32_t* tokens, size_t capacity,
                                       size_t* count) {
  if (chain == nullptr || count == nullptr || !is_array(tokens, capacity)) return SAGA_ERR_INVALID_ARGUMENT;
  const std::size_t size = chain->chain.size();
  chain->chain.copy_tokens(to_span(tokens, std::min(capacity, size)));
  *count = size;
  return SAGA_OK;
}

saga_status_t saga_prompt_chain_stats(const saga_prompt_chain_t* chain, saga_prompt_chain_stats_t* stats) {
  if (chain == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  stats->tokens_compared = chain->chain.tokens_compared();
  stats->tokens_hashed = chain->chain.tokens_hashed();
  stats->memory_bytes = chain->chain.memory_bytes();
  return SAGA_OK;
}

saga_status_t saga_prompt_chain_verify(const saga_prompt_chain_t* chain, uint32_t* intact) {
  if (chain == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *intact = chain->chain.verify() ? 1 : 0;
  return SAGA_OK;
}

}  // extern "C"
