/* prompt.h - the tokens of one line of a conversation and the hashes of their blocks, extended by what is new. Included by saga.h,
 * whose conventions hold.
 *
 * A conversation sends its whole prompt again with every call. A **prompt chain** keeps the prompt that it saw last: of the next
 * one it compares what both have (at the speed of memcmp) and hashes from the first block that differs on. Only the blocks that
 * are full are hashed; the tokens behind them wait. The hashes are those of saga_hasher_t for the same tokens.
 *
 * Memory grows in chunks of some 4,096 tokens up to max_tokens: (4 + 16 / block_tokens) bytes a token, 32 instead of 16 for
 * SAGA_HASH_SHA256_CBOR. It shrinks by saga_prompt_chain_truncate alone. See native/core/hash/prompt_chain.hpp.
 */
#ifndef SAGA_PROMPT_H
#define SAGA_PROMPT_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saga_prompt_chain_t saga_prompt_chain_t;

typedef struct saga_prompt_chain_options_t {
  uint32_t struct_size;
  uint32_t algorithm;    /* saga_hash_algorithm_t, default SAGA_HASH_SAGA */
  uint32_t block_tokens; /* 1 to 4,096, default 16 */
  uint32_t max_tokens;   /* 1 to 2^28, default 2^20 */
} saga_prompt_chain_options_t;

/* What a prompt was to the one before. */
typedef struct saga_prompt_change_t {
  uint32_t common_tokens; /* leading tokens that both have */
  uint32_t hashed_blocks; /* full blocks behind them, which were hashed */
} saga_prompt_change_t;

typedef struct saga_prompt_chain_stats_t {
  uint64_t tokens_compared; /* since creation */
  uint64_t tokens_hashed;   /* since creation */
  uint64_t memory_bytes;    /* now */
} saga_prompt_chain_stats_t;

SAGA_API void saga_prompt_chain_options_init_sized(saga_prompt_chain_options_t* options, uint32_t struct_size);
static inline void saga_prompt_chain_options_init(saga_prompt_chain_options_t* options) {
  saga_prompt_chain_options_init_sized(options, (uint32_t)sizeof(saga_prompt_chain_options_t));
}
/* `root` as of saga_hasher_create; `lora_name` and `cache_salt` as of saga_hasher_set_keys, and must be of size 0 for
 * SAGA_HASH_SAGA. The chain keeps copies. */
SAGA_API saga_status_t saga_prompt_chain_create(const saga_prompt_chain_options_t* options, const char* root,
                                                size_t root_size, const char* lora_name, size_t lora_name_size,
                                                const char* cache_salt, size_t cache_salt_size,
                                                saga_prompt_chain_t** chain);
SAGA_API void saga_prompt_chain_destroy(saga_prompt_chain_t* chain);
/* A chain of its own that has the first `token_count` tokens of `chain`; nothing is compared or hashed, and its counters begin at
 * 0. `token_count` beyond its length: SAGA_ERR_INVALID_ARGUMENT. */
SAGA_API saga_status_t saga_prompt_chain_fork(const saga_prompt_chain_t* chain, uint32_t token_count,
                                              saga_prompt_chain_t** fork);

/* The prompt is now `tokens`. SAGA_ERR_FULL: more than max_tokens. */
SAGA_API saga_status_t saga_prompt_chain_update(saga_prompt_chain_t* chain, const uint32_t* tokens, size_t count,
                                                saga_prompt_change_t* change);
/* `tokens` follow those that are there. SAGA_ERR_FULL: more than max_tokens in all. */
SAGA_API saga_status_t saga_prompt_chain_append(saga_prompt_chain_t* chain, const uint32_t* tokens, size_t count,
                                                saga_prompt_change_t* change);
/* The first `token_count` tokens stay. SAGA_ERR_INVALID_ARGUMENT: there are fewer. */
SAGA_API saga_status_t saga_prompt_chain_truncate(saga_prompt_chain_t* chain, uint32_t token_count);

/* ---- What is there */

SAGA_API saga_status_t saga_prompt_chain_length(const saga_prompt_chain_t* chain, uint32_t* tokens, uint32_t* blocks);
/* *count receives how many hashes there are, one a full block; `hashes` the first `capacity` of them. */
SAGA_API saga_status_t saga_prompt_chain_hashes(const saga_prompt_chain_t* chain, uint64_t* hashes, size_t capacity,
                                                size_t* count);
/* The same of the tokens. */
SAGA_API saga_status_t saga_prompt_chain_tokens(const saga_prompt_chain_t* chain, uint32_t* tokens, size_t capacity,
                                                size_t* count);
SAGA_API saga_status_t saga_prompt_chain_stats(const saga_prompt_chain_t* chain, saga_prompt_chain_stats_t* stats);
/* Hashes everything again; *intact receives 1 or 0. */
SAGA_API saga_status_t saga_prompt_chain_verify(const saga_prompt_chain_t* chain, uint32_t* intact);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_PROMPT_H */
