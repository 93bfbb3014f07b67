/* Prompt chains from C99, beside a hasher that begins anew, and with the wrong arguments that a caller can give. Exits with 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "saga/saga.h"

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                        \
    }                                                                 \
  } while (0)
#define IS(expected, call) CHECK((call) == (expected))

static saga_prompt_chain_options_t options_of(saga_hash_algorithm_t algorithm, uint32_t max_tokens) {
  saga_prompt_chain_options_t options;
  saga_prompt_chain_options_init(&options);
  CHECK(options.algorithm == SAGA_HASH_SAGA && options.block_tokens == 16 && options.max_tokens == 1u << 20);
  options.algorithm = (uint32_t)algorithm;
  options.block_tokens = 4;
  options.max_tokens = max_tokens;
  return options;
}

static void is_as_hashed_anew(const saga_prompt_chain_t* chain, saga_hasher_t* hasher, const uint32_t* tokens,
                              size_t count) {
  uint64_t expected[64], hashes[64];
  uint32_t kept[256], length = 0, blocks = 0, intact = 0;
  size_t expected_count = 0, hash_count = 0, token_count = 0;
  IS(SAGA_OK, saga_hasher_reset(hasher));
  IS(SAGA_OK, saga_hasher_update(hasher, tokens, count, expected, 64, &expected_count));
  IS(SAGA_OK, saga_prompt_chain_hashes(chain, hashes, 64, &hash_count));
  IS(SAGA_OK, saga_prompt_chain_tokens(chain, kept, 256, &token_count));
  IS(SAGA_OK, saga_prompt_chain_length(chain, &length, &blocks));
  CHECK(length == count && token_count == count && blocks == count / 4);
  CHECK(hash_count == expected_count && memcmp(hashes, expected, 8 * hash_count) == 0);
  CHECK(count == 0 || memcmp(kept, tokens, 4 * count) == 0);
  IS(SAGA_OK, saga_prompt_chain_verify(chain, &intact));
  CHECK(intact == 1);
}

static void grows_by_what_is_new(saga_hash_algorithm_t algorithm, const char* root, const char* lora,
                                 const char* salt) {
  const saga_prompt_chain_options_t options = options_of(algorithm, 100);
  saga_prompt_chain_t *chain = NULL, *fork = NULL;
  saga_hasher_t* hasher = NULL;
  saga_prompt_change_t change = {9, 9};
  saga_prompt_chain_stats_t stats;
  uint32_t tokens[101], other[101], i;
  for (i = 0; i < 101; ++i) other[i] = tokens[i] = i * 7919;
  IS(SAGA_OK, saga_prompt_chain_create(&options, root, strlen(root), lora, strlen(lora), salt, strlen(salt), &chain));
  IS(SAGA_OK, saga_hasher_create(algorithm, 4, root, strlen(root), &hasher));
  if (algorithm != SAGA_HASH_SAGA) {
    IS(SAGA_OK, saga_hasher_set_keys(hasher, lora, strlen(lora), salt, strlen(salt)));
  }
  is_as_hashed_anew(chain, hasher, tokens, 0);
  IS(SAGA_OK, saga_prompt_chain_update(chain, tokens, 50, &change));
  CHECK(change.common_tokens == 0 && change.hashed_blocks == 12);
  is_as_hashed_anew(chain, hasher, tokens, 50);
  IS(SAGA_OK, saga_prompt_chain_append(chain, tokens + 50, 3, &change));
  CHECK(change.common_tokens == 50 && change.hashed_blocks == 1);
  IS(SAGA_OK, saga_prompt_chain_update(chain, tokens, 60, &change));
  CHECK(change.common_tokens == 53 && change.hashed_blocks == 2);
  is_as_hashed_anew(chain, hasher, tokens, 60);
  other[30] = 1;
  IS(SAGA_OK, saga_prompt_chain_fork(chain, 40, &fork));
  is_as_hashed_anew(fork, hasher, tokens, 40);
  IS(SAGA_OK, saga_prompt_chain_update(fork, other, 70, &change));
  CHECK(change.common_tokens == 30 && change.hashed_blocks == 10);
  is_as_hashed_anew(fork, hasher, other, 70);
  is_as_hashed_anew(chain, hasher, tokens, 60);
  IS(SAGA_OK, saga_prompt_chain_stats(fork, &stats));
  CHECK(stats.tokens_compared == 31 && stats.tokens_hashed == 40 && stats.memory_bytes > 70 * 4);
  IS(SAGA_OK, saga_prompt_chain_truncate(fork, 10));
  is_as_hashed_anew(fork, hasher, other, 10);
  /* Full is full, and nothing has changed. */
  IS(SAGA_ERR_FULL, saga_prompt_chain_update(chain, tokens, 101, &change));
  IS(SAGA_ERR_FULL, saga_prompt_chain_append(chain, tokens, 41, &change));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_prompt_chain_truncate(chain, 61));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_prompt_chain_fork(chain, 61, &fork));
  is_as_hashed_anew(chain, hasher, tokens, 60);
  IS(SAGA_OK, saga_prompt_chain_append(chain, tokens + 60, 40, &change));
  is_as_hashed_anew(chain, hasher, tokens, 100);
  saga_prompt_chain_destroy(fork);
  saga_prompt_chain_destroy(chain);
  saga_hasher_destroy(hasher);
}

static void refuses_wrong_arguments(void) {
  saga_prompt_chain_options_t options = options_of(SAGA_HASH_SAGA, 100);
  const saga_status_t wrong = SAGA_ERR_INVALID_ARGUMENT;
  const uint32_t tokens[4] = {1, 2, 3, 4};
  uint64_t hashes[1];
  uint32_t word = 0;
  size_t count = 0;
  char text[1025];
  saga_prompt_chain_t* chain = NULL;
  saga_prompt_change_t change;
  memset(text, 'a', sizeof text);
  IS(wrong, saga_prompt_chain_create(NULL, NULL, 0, NULL, 0, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, NULL));
  IS(wrong, saga_prompt_chain_create(&options, NULL, 1, NULL, 0, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, "l", 1, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, "s", 1, &chain));
  options.block_tokens = 0;
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, &chain));
  options.block_tokens = 4097;
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, &chain));
  options.block_tokens = 16;
  options.max_tokens = 0;
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, &chain));
  options.max_tokens = (1u << 28) + 1;
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, &chain));
  options.max_tokens = 8;
  options.algorithm = 5;
  IS(wrong, saga_prompt_chain_create(&options, "0", 1, NULL, 0, NULL, 0, &chain));
  options.algorithm = SAGA_HASH_SHA256_CBOR;
  IS(wrong, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_create(&options, text, 65, NULL, 0, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_create(&options, "0", 1, text, 1025, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_create(&options, "0", 1, NULL, 0, text, 1025, &chain));
  options.struct_size = 2;
  IS(wrong, saga_prompt_chain_create(&options, "0", 1, NULL, 0, NULL, 0, &chain));
  CHECK(chain == NULL);
  options = options_of(SAGA_HASH_SAGA, 8);
  IS(SAGA_OK, saga_prompt_chain_create(&options, NULL, 0, NULL, 0, NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_update(NULL, tokens, 4, &change));
  IS(wrong, saga_prompt_chain_update(chain, NULL, 4, &change));
  IS(wrong, saga_prompt_chain_update(chain, tokens, 4, NULL));
  IS(wrong, saga_prompt_chain_append(NULL, tokens, 4, &change));
  IS(wrong, saga_prompt_chain_append(chain, NULL, 4, &change));
  IS(wrong, saga_prompt_chain_append(chain, tokens, 4, NULL));
  IS(wrong, saga_prompt_chain_truncate(NULL, 0));
  IS(wrong, saga_prompt_chain_truncate(chain, 1));
  IS(wrong, saga_prompt_chain_fork(NULL, 0, &chain));
  IS(wrong, saga_prompt_chain_fork(chain, 0, NULL));
  IS(wrong, saga_prompt_chain_length(NULL, &word, &word));
  IS(wrong, saga_prompt_chain_length(chain, NULL, &word));
  IS(wrong, saga_prompt_chain_length(chain, &word, NULL));
  IS(wrong, saga_prompt_chain_hashes(NULL, hashes, 1, &count));
  IS(wrong, saga_prompt_chain_hashes(chain, NULL, 1, &count));
  IS(wrong, saga_prompt_chain_hashes(chain, hashes, 1, NULL));
  IS(wrong, saga_prompt_chain_tokens(NULL, &word, 1, &count));
  IS(wrong, saga_prompt_chain_tokens(chain, NULL, 1, &count));
  IS(wrong, saga_prompt_chain_tokens(chain, &word, 1, NULL));
  IS(wrong, saga_prompt_chain_stats(NULL, NULL));
  IS(wrong, saga_prompt_chain_stats(chain, NULL));
  IS(wrong, saga_prompt_chain_verify(NULL, &word));
  IS(wrong, saga_prompt_chain_verify(chain, NULL));
  /* Nothing of it has changed the chain; fewer hashes than there are can be asked for. */
  IS(SAGA_OK, saga_prompt_chain_update(chain, tokens, 4, &change));
  IS(SAGA_OK, saga_prompt_chain_append(chain, tokens, 4, &change));
  IS(SAGA_OK, saga_prompt_chain_hashes(chain, hashes, 1, &count));
  CHECK(count == 2);
  saga_prompt_chain_destroy(chain);
  saga_prompt_chain_destroy(NULL);
}

int main(void) {
  grows_by_what_is_new(SAGA_HASH_SAGA, "", "", "");
  grows_by_what_is_new(SAGA_HASH_SAGA, "tenant", "", "");
  grows_by_what_is_new(SAGA_HASH_SHA256_CBOR, "0", "", "");
  grows_by_what_is_new(SAGA_HASH_SHA256_CBOR, "0", "adapter", "salt");
  grows_by_what_is_new(SAGA_HASH_XXHASH_CBOR, "17", "adapter", "salt");
  refuses_wrong_arguments();
  return 0;
}
