/* The C interface from C99, as an inference server would use it: every function, its refusals, and literal results. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "saga/saga.h"

static int passed = 0;
static int failed = 0;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (condition) {                                                          \
      ++passed;                                                               \
    } else {                                                                  \
      ++failed;                                                               \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                         \
  } while (0)

#define OK(call) CHECK((call) == SAGA_OK)
#define INVALID(call) CHECK((call) == SAGA_ERR_INVALID_ARGUMENT)

static const uint64_t kGeneration = (uint64_t)1 << 32;

/* ------------------------------------------------------------------------------------------------------- version, status */

static void test_version_and_status(void) {
  int i;
  int j;
  CHECK(saga_abi_version() == SAGA_ABI_VERSION);
  CHECK(strcmp(saga_version(), SAGA_VERSION) == 0);
  for (i = -3; i <= 300; ++i) CHECK(saga_status_text((saga_status_t)i) != NULL);
  for (i = 0; i <= 10; ++i) {
    CHECK(strcmp(saga_status_text((saga_status_t)i), saga_status_text((saga_status_t)11)) != 0);
    for (j = 0; j < i; ++j) CHECK(strcmp(saga_status_text((saga_status_t)i), saga_status_text((saga_status_t)j)) != 0);
  }
  CHECK(strcmp(saga_status_text(SAGA_OK), "success") == 0);
}

/* ---------------------------------------------------------------------------------------------------------------- hashing */

static saga_hasher_t* hasher_of(saga_hash_algorithm_t algorithm, uint32_t block_tokens, const char* root) {
  saga_hasher_t* hasher = NULL;
  OK(saga_hasher_create(algorithm, block_tokens, root, strlen(root), &hasher));
  CHECK(hasher != NULL);
  return hasher;
}

static int digest_is(const saga_hasher_t* hasher, const char* expected) {
  uint8_t digest[32];
  char text[65];
  size_t size = 0;
  size_t i;
  if (saga_hasher_digest(hasher, digest, &size) != SAGA_OK || size > 32) return 0;
  for (i = 0; i < size; ++i) sprintf(text + 2 * i, "%02x", digest[i]);
  return size * 2 == strlen(expected) && strcmp(text, expected) == 0;
}

static const uint32_t kTokens[9] = {10, 11, 12, 13, 14, 15, 16, 17, 18}; /* two blocks of four, and a rest */

static void test_hasher_literals(void) {
  uint64_t hashes[4];
  uint32_t many[32];
  size_t count = 9;
  uint32_t i;
  saga_hasher_t* hasher = hasher_of(SAGA_HASH_SHA256_CBOR, 4, "0");
  CHECK(digest_is(hasher, "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"));
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 1, &count));
  CHECK(count == 1);
  CHECK(hashes[0] == 185451944313227130u);
  CHECK(digest_is(hasher, "398c246ffafbdd52fd77aeeb90e6a134c3cfffac128d0a960292db8f8fb2077a"));
  OK(saga_hasher_update(hasher, kTokens + 4, 5, hashes, 4, &count)); /* the rest is ignored */
  CHECK(count == 1);
  CHECK(hashes[0] == 5110682701061336337u);
  CHECK(digest_is(hasher, "9f97f817b2cae5a3566d11367e5fb805030bb972f35d988046eccad6cc7ead11"));
  /* From the root again, both at once. */
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_update(hasher, kTokens, 9, hashes, 2, &count));
  CHECK(count == 2);
  CHECK(hashes[0] == 185451944313227130u && hashes[1] == 5110682701061336337u);
  saga_hasher_destroy(hasher);

  for (i = 0; i < 32; ++i) many[i] = i;
  hasher = hasher_of(SAGA_HASH_SHA256_CBOR, 16, "0");
  OK(saga_hasher_update(hasher, many, 32, hashes, 2, &count));
  CHECK(hashes[0] == 12687895063098490012u && hashes[1] == 1814341696565857452u);
  saga_hasher_destroy(hasher);

  hasher = hasher_of(SAGA_HASH_XXHASH_CBOR, 4, "0");
  CHECK(digest_is(hasher, "1ebe36576dcb573f26b99533a20aaeca"));
  OK(saga_hasher_update(hasher, kTokens, 8, hashes, 2, &count));
  CHECK(hashes[0] == 1744292558691780323u && hashes[1] == 0x21aa984480da7785u);
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 1, &count));
  CHECK(digest_is(hasher, "07699ce0d70dc80d1834f8d7292e46e3"));
  saga_hasher_destroy(hasher);

  hasher = hasher_of(SAGA_HASH_SAGA, 4, "");
  CHECK(digest_is(hasher, "7f498d4624c30160d8984701d306aa99"));
  OK(saga_hasher_update(hasher, kTokens, 8, hashes, 2, &count));
  CHECK(hashes[0] == 0xd6f4f9e97e0cc049u && hashes[1] == 0xd9980c035f804b16u);
  CHECK(digest_is(hasher, "164b805f030c98d98406b408c8f8fd9d"));
  saga_hasher_destroy(hasher);
  hasher = hasher_of(SAGA_HASH_SAGA, 4, "tenant-a");
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 1, &count));
  CHECK(hashes[0] == 0xdf170ffb16c6300eu);
  saga_hasher_destroy(hasher);
  saga_hasher_destroy(NULL);
}

static void test_hasher_keys(void) {
  uint64_t hashes[2];
  size_t count = 0;
  saga_hasher_t* hasher = hasher_of(SAGA_HASH_SHA256_CBOR, 4, "0");
  OK(saga_hasher_set_keys(hasher, NULL, 0, "tenant-a", 8));
  OK(saga_hasher_update(hasher, kTokens, 3, hashes, 0, &count)); /* no full block: still at the root */
  CHECK(count == 0);
  OK(saga_hasher_set_keys(hasher, NULL, 0, "tenant-a", 8));
  OK(saga_hasher_update(hasher, kTokens, 8, hashes, 2, &count));
  CHECK(hashes[0] == 0x1ae7219c0ec18e92u && hashes[1] == 0x1c69e14b79f7cceau); /* the salt on the first block only */
  CHECK(saga_hasher_set_keys(hasher, "lora-a", 6, NULL, 0) == SAGA_ERR_WRONG_STATE);
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 1, &count)); /* a reset keeps the keys */
  CHECK(hashes[0] == 0x1ae7219c0ec18e92u);
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_set_keys(hasher, "lora-a", 6, NULL, 0));
  OK(saga_hasher_update(hasher, kTokens, 8, hashes, 2, &count));
  CHECK(hashes[0] == 0x96d6f4bbd52772b6u && hashes[1] == 0xd370cd0745d94534u); /* the adapter on both */
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_set_keys(hasher, "lora-a", 6, "tenant-a", 8));
  OK(saga_hasher_update(hasher, kTokens, 8, hashes, 2, &count));
  CHECK(hashes[0] == 0x65fa9720eb3c7c76u && hashes[1] == 0x1c24c5c938ee986cu);
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_set_keys(hasher, NULL, 0, NULL, 0));
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 1, &count));
  CHECK(hashes[0] == 185451944313227130u);
  saga_hasher_destroy(hasher);
}

static void test_hasher_refusals(void) {
  static char text[1025];
  uint64_t hashes[2] = {1, 2};
  uint8_t digest[32];
  size_t count = 9;
  size_t size = 9;
  saga_hasher_t* hasher = NULL;
  saga_hasher_t* own;
  memset(text, 'a', sizeof text);
  INVALID(saga_hasher_create((saga_hash_algorithm_t)5, 4, "0", 1, &hasher));
  INVALID(saga_hasher_create((saga_hash_algorithm_t)-1, 4, "0", 1, &hasher));
  INVALID(saga_hasher_create(SAGA_HASH_SAGA, 0, "", 0, &hasher));
  INVALID(saga_hasher_create(SAGA_HASH_SAGA, 4097, "", 0, &hasher));
  INVALID(saga_hasher_create(SAGA_HASH_SAGA, 4, NULL, 1, &hasher));
  INVALID(saga_hasher_create(SAGA_HASH_SAGA, 4, "", 0, NULL));
  INVALID(saga_hasher_create(SAGA_HASH_SHA256_CBOR, 4, NULL, 0, &hasher)); /* a seed is needed */
  INVALID(saga_hasher_create(SAGA_HASH_XXHASH_CBOR, 4, "", 0, &hasher));
  INVALID(saga_hasher_create(SAGA_HASH_SHA256_CBOR, 4, text, 1025, &hasher));
  CHECK(hasher == NULL);
  OK(saga_hasher_create(SAGA_HASH_SAGA, 4, NULL, 0, &own));
  OK(saga_hasher_create(SAGA_HASH_SHA256_CBOR, 4096, "0", 1, &hasher));
  saga_hasher_destroy(hasher);
  hasher = hasher_of(SAGA_HASH_SHA256_CBOR, 4, "0");

  INVALID(saga_hasher_reset(NULL));
  INVALID(saga_hasher_set_keys(NULL, NULL, 0, NULL, 0));
  INVALID(saga_hasher_set_keys(own, NULL, 0, NULL, 0));
  INVALID(saga_hasher_set_keys(hasher, NULL, 1, NULL, 0));
  INVALID(saga_hasher_set_keys(hasher, NULL, 0, NULL, 1));
  INVALID(saga_hasher_set_keys(hasher, text, 1025, NULL, 0));
  INVALID(saga_hasher_set_keys(hasher, NULL, 0, text, 1025));
  OK(saga_hasher_set_keys(hasher, text, 1024, text, 1024));
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 1, &count));
  OK(saga_hasher_reset(hasher));
  OK(saga_hasher_set_keys(hasher, NULL, 0, NULL, 0));

  count = 9;
  hashes[0] = 1;
  INVALID(saga_hasher_update(NULL, kTokens, 4, hashes, 2, &count));
  INVALID(saga_hasher_update(hasher, NULL, 4, hashes, 2, &count));
  INVALID(saga_hasher_update(hasher, kTokens, 4, NULL, 2, &count));
  INVALID(saga_hasher_update(hasher, kTokens, 4, hashes, 2, NULL));
  INVALID(saga_hasher_update(hasher, kTokens, 8, hashes, 1, &count)); /* no room for two */
  INVALID(saga_hasher_update(hasher, kTokens, SIZE_MAX, hashes, 2, &count));
  CHECK(count == 9 && hashes[0] == 1);
  OK(saga_hasher_update(hasher, kTokens, 3, NULL, 0, &count));
  OK(saga_hasher_update(hasher, NULL, 0, NULL, 0, &count));
  CHECK(count == 0);
  OK(saga_hasher_update(hasher, kTokens, 4, hashes, 2, &count)); /* nothing of this moved it from the root */
  CHECK(count == 1 && hashes[0] == 185451944313227130u);

  INVALID(saga_hasher_digest(NULL, digest, &size));
  INVALID(saga_hasher_digest(hasher, NULL, &size));
  INVALID(saga_hasher_digest(hasher, digest, NULL));
  CHECK(size == 9);
  saga_hasher_destroy(own);
  saga_hasher_destroy(hasher);
}

/* --------------------------------------------------------------------------------------------------------- engine options */

static saga_engine_options_t small_options(void) {
  saga_engine_options_t options;
  saga_engine_options_init(&options);
  options.max_workers = 3;
  options.max_workflows = 2;
  options.max_calls = 4;
  options.max_blocks = 100;
  options.max_open_blocks = 1024;
  options.max_chain_blocks = 64;
  options.block_tokens = 4;
  return options;
}

static saga_engine_t* engine_of(const saga_engine_options_t* options) {
  saga_engine_t* engine = NULL;
  OK(saga_engine_create(options, &engine));
  CHECK(engine != NULL);
  return engine;
}

static int creates(const saga_engine_options_t* options) {
  saga_engine_t* engine = NULL;
  const saga_status_t status = saga_engine_create(options, &engine);
  const int made = engine != NULL;
  saga_engine_destroy(engine);
  return status == SAGA_OK ? made : status == SAGA_ERR_INVALID_ARGUMENT && !made ? 0 : -1;
}

#define OPTION(field, value, expected)               \
  do {                                               \
    saga_engine_options_t changed = small_options(); \
    changed.field = (value);                         \
    CHECK(creates(&changed) == (expected));          \
  } while (0)

static void test_engine_options(void) {
  saga_engine_options_t options;
  memset(&options, 0xFF, sizeof options);
  saga_engine_options_init(&options);
  CHECK(options.struct_size == sizeof options);
  CHECK(options.max_workers == 64);
  CHECK(options.max_workflows == 4096);
  CHECK(options.max_calls == 8192);
  CHECK(options.max_blocks == 1048576);
  CHECK(options.max_open_blocks == 2097152);
  CHECK(options.max_chain_blocks == 131072);
  CHECK(options.block_tokens == 16);
  CHECK(options.placement == SAGA_PLACEMENT_AFFINITY);
  CHECK(options.imbalance_calls == 10);
  CHECK(options.minimum_match_percent == 10);
  CHECK(options.reserved == 0);
  CHECK(options.seed == 0);
  CHECK(options.journal_bytes == 0);
  CHECK(creates(&options) == 1);

  OPTION(max_workers, 0, 0);
  OPTION(max_workers, 1, 1);
  OPTION(max_workers, 1024, 1);
  OPTION(max_workers, 1025, 0);
  OPTION(max_workflows, 0, 0);
  OPTION(max_workflows, 1, 1);
  OPTION(max_workflows, (1u << 24) + 1, 0);
  OPTION(max_calls, 0, 0);
  OPTION(max_calls, 1, 1);
  OPTION(max_calls, (1u << 24) + 1, 0);
  OPTION(max_blocks, 0, 0);
  OPTION(max_blocks, 1, 1);
  OPTION(max_blocks, (uint64_t)1 << 29, 0);
  OPTION(max_open_blocks, 0, 0);
  OPTION(max_open_blocks, 1, 1);
  OPTION(max_open_blocks, ((uint64_t)1 << 32) + 1, 0);
  OPTION(max_chain_blocks, 0, 0);
  OPTION(max_chain_blocks, 1, 1);
  OPTION(max_chain_blocks, (1u << 24) + 1, 0);
  OPTION(block_tokens, 0, 0);
  OPTION(block_tokens, 1, 1);
  OPTION(block_tokens, 4096, 1);
  OPTION(block_tokens, 4097, 0);
  OPTION(placement, SAGA_PLACEMENT_ROUND_ROBIN, 1);
  OPTION(placement, SAGA_PLACEMENT_SAGA, 1);
  OPTION(placement, 3, 0);
  OPTION(placement, 256, 0); /* not taken for 0 */
  OPTION(max_threads, 1, 1);
  OPTION(max_threads, (1u << 24) + 1, 0);
  OPTION(max_tenants, 0, 0);
  OPTION(max_tenants, 1u << 16, 1);
  OPTION(max_tenants, (1u << 16) + 1, 0);
  OPTION(max_graphs, 0, 1);
  OPTION(max_graphs, 4097, 0);
  OPTION(max_leases, 0, 1);
  OPTION(max_leases, (1u << 20) + 1, 0);
  OPTION(max_directives, 0, 0);
  OPTION(max_directives, (1u << 20) + 1, 0);
  OPTION(max_receipts, 0, 1);
  OPTION(max_receipts, (1u << 24) + 1, 0);
  OPTION(without, 255, 1);
  OPTION(without, 256, 0);
  OPTION(directive_seconds, 0, 0);
  OPTION(directive_seconds, 86401, 0);
  OPTION(kv_bytes_per_token, 0, 0);
  OPTION(kv_bytes_per_token, ((uint64_t)1 << 30) + 1, 0);
  OPTION(link_bytes_per_second, 0, 0);
  OPTION(link_bytes_per_second, 10000000000001u, 0);
  OPTION(step_base, 0, 0);
  OPTION(step_base, 1001, 0);
  OPTION(step_per_call, -1, 0);
  OPTION(step_per_context_token, 0, 0);
  OPTION(step_per_prefill_token, 0, 0);
  OPTION(step_per_prefill_pair, 1e-12, 1);
  OPTION(imbalance_calls, 0xFFFFFFFFu, 1);
  OPTION(minimum_match_percent, 0, 1);
  OPTION(minimum_match_percent, 100, 1);
  OPTION(minimum_match_percent, 101, 0);
  OPTION(reserved, 1, 0);
  OPTION(seed, ~(uint64_t)0, 1);
  OPTION(journal_bytes, 1, 0);
  OPTION(journal_bytes, 4095, 0);
  OPTION(journal_bytes, 4096, 1);
  OPTION(journal_bytes, ((uint64_t)1 << 40) + 1, 0);
  CHECK(creates(NULL) == 0);
  options = small_options();
  INVALID(saga_engine_create(&options, NULL));
  saga_engine_destroy(NULL);
}

/* A program compiled with an older header (a shorter struct) or a newer one (a longer struct). */
static void test_engine_options_of_other_versions(void) {
  struct newer {
    saga_engine_options_t known;
    uint64_t added;
  } newer;
  union {
    saga_engine_options_t options;
    unsigned char bytes[sizeof(saga_engine_options_t)];
  } older;
  const uint32_t older_size = (uint32_t)offsetof(saga_engine_options_t, seed);
  saga_engine_t* engine = NULL;
  uint64_t digest[2];
  uint32_t size;
  size_t i;

  /* The initialisation writes as much as the program has room for, and nothing behind it. */
  for (size = 0; size <= sizeof older; ++size) {
    int behind_is_untouched = 1;
    memset(&older, 0xA5, sizeof older);
    saga_engine_options_init_sized(&older.options, size);
    for (i = size < 4 ? 0 : size; i < sizeof older; ++i) behind_is_untouched &= older.bytes[i] == 0xA5;
    CHECK(behind_is_untouched);
    if (size >= 4) CHECK(older.options.struct_size == size);
    if (size >= 8) CHECK(older.options.max_workers == 64);
  }
  saga_engine_options_init_sized(NULL, 100);
  saga_engine_options_init(NULL);

  /* What an older program does not know keeps its default, whatever lies behind its struct. */
  older.options = small_options();
  engine = engine_of(&older.options);
  OK(saga_engine_digest(engine, &digest[0]));
  saga_engine_destroy(engine);
  older.options.struct_size = older_size;
  older.options.seed = 12345;
  older.options.journal_bytes = 1; /* would be refused */
  engine = engine_of(&older.options);
  OK(saga_engine_digest(engine, &digest[1]));
  CHECK(digest[0] == digest[1]); /* the digest shows the generator, and so the seed */
  saga_engine_destroy(engine);
  older.options.struct_size = 4; /* all defaults */
  CHECK(creates(&older.options) == 1);

  /* A newer program may hand over what this library does not know as long as it is not used. */
  memset(&newer, 0xFF, sizeof newer);
  saga_engine_options_init_sized(&newer.known, (uint32_t)sizeof newer);
  CHECK(newer.known.struct_size == sizeof newer);
  CHECK(newer.known.max_workers == 64);
  CHECK(newer.added == 0);
  newer.known.max_workers = 3;
  CHECK(creates(&newer.known) == 1);
  newer.added = 1;
  CHECK(creates(&newer.known) == 0);

  older.options = small_options();
  for (size = 0; size < 4; ++size) {
    older.options.struct_size = size;
    CHECK(creates(&older.options) == 0);
  }
  older.options.struct_size = 4097;
  CHECK(creates(&older.options) == 0);
}

/* ----------------------------------------------------------------------------------------------------------------- engine */

static int decision_is(const saga_decision_t* d, uint32_t worker, uint64_t call, uint32_t reason,
                       uint32_t prompt_blocks, uint32_t gpu, uint32_t host, uint32_t any, uint32_t longest,
                       uint32_t longest_worker, uint32_t open_calls, uint32_t blocks_in_use, uint32_t active_workers,
                       uint64_t decided_at) {
  return d->type == SAGA_DECISION_PLACE && d->worker == worker && d->call == call && d->reason == reason &&
         d->prompt_blocks == prompt_blocks && d->matched_blocks[SAGA_TIER_GPU] == gpu &&
         d->matched_blocks[SAGA_TIER_HOST] == host && d->matched_blocks[SAGA_TIER_DISK] == any &&
         d->longest_match == longest && d->longest_match_worker == longest_worker && d->open_calls == open_calls &&
         d->blocks_in_use == blocks_in_use && d->active_workers == active_workers && d->decided_at == decided_at;
}

static void test_engine_life_and_replay(void) {
  static const uint64_t chain[5] = {101, 102, 103, 104, 105};
  saga_engine_options_t options = small_options();
  saga_engine_t* engine;
  saga_engine_t* again = NULL;
  saga_decision_t decisions[4];
  saga_engine_stats_t stats;
  saga_worker_state_t worker;
  saga_replay_result_t result;
  uint8_t journal[4096];
  uint8_t none[1];
  uint32_t depth[9];
  uint32_t id = 9;
  uint32_t longest = 9;
  uint32_t intact = 9;
  uint64_t workflow = 9;
  uint64_t call = 9;
  uint64_t digest[2] = {0, 0};
  size_t count = 9;
  size_t size = 0;

  options.journal_bytes = 4096;
  engine = engine_of(&options);
  OK(saga_engine_add_worker(engine, 1, 500, &id));
  CHECK(id == 0);
  OK(saga_engine_add_worker(engine, 1, 600, &id));
  CHECK(id == 1);
  OK(saga_engine_open_workflow(engine, 2, 7, &workflow));
  CHECK(workflow == 0);
  OK(saga_engine_blocks_stored(engine, 3, 1, SAGA_TIER_GPU, 0, chain, 2));
  OK(saga_engine_blocks_stored(engine, 3, 1, SAGA_TIER_HOST, 102, chain + 2, 1));
  OK(saga_engine_blocks_stored(engine, 3, 1, SAGA_TIER_DISK, 103, chain + 3, 1));
  OK(saga_engine_blocks_stored(engine, 3, 0, SAGA_TIER_GPU, 0, chain, 1));
  OK(saga_engine_match(engine, chain, 5, depth, 9, &longest));
  CHECK(longest == 4);
  CHECK(depth[0] == 1 && depth[1] == 1 && depth[2] == 1 && depth[3] == 2 && depth[4] == 3 && depth[5] == 4);
  CHECK(depth[6] == 0 && depth[7] == 0 && depth[8] == 0);

  OK(saga_engine_submit_call(engine, 4, workflow, 22, chain, 5, &call));
  CHECK(call == 0);
  OK(saga_engine_decide(engine, 5, decisions, 4, &count));
  CHECK(count == 1);
  CHECK(decision_is(&decisions[0], 1, 0, SAGA_REASON_LONGEST_MATCH, 5, 2, 3, 4, 2, 1, 0, 0, 2, 5));
  OK(saga_engine_worker_state(engine, 1, &worker));
  CHECK(worker.capacity_blocks == 600 && worker.open_calls == 1 && worker.blocks_in_use == 6 && worker.active == 1);
  OK(saga_engine_first_token(engine, 6, call));
  OK(saga_engine_worker_load(engine, 6, 1, 44));
  OK(saga_engine_worker_state(engine, 1, &worker));
  CHECK(worker.blocks_in_use == 44);
  OK(saga_engine_finish_call(engine, 7, call, SAGA_STOP_TOOL_USE, SAGA_TOOL_WEB_API, 12));
  OK(saga_engine_tool_started(engine, 7, workflow, SAGA_TOOL_WEB_API));
  OK(saga_engine_tool_finished(engine, 8, workflow));

  /* What it held is gone: the emptier worker. Then that worker is lost. */
  OK(saga_engine_blocks_removed(engine, 9, 0, SAGA_TIER_GPU, chain, 1));
  OK(saga_engine_blocks_cleared(engine, 9, 1));
  OK(saga_engine_submit_call(engine, 9, workflow, 8, chain, 2, &call));
  CHECK(call == kGeneration);
  OK(saga_engine_decide(engine, 10, decisions, 4, &count));
  CHECK(count == 1);
  CHECK(decision_is(&decisions[0], 0, kGeneration, SAGA_REASON_FEWEST_BLOCKS, 2, 0, 0, 0, 0, SAGA_NONE, 0, 0, 2, 10));
  OK(saga_engine_remove_worker(engine, 11, 0));
  OK(saga_engine_worker_state(engine, 0, &worker));
  CHECK(worker.capacity_blocks == 500 && worker.open_calls == 0 && worker.blocks_in_use == 0 && worker.active == 0);
  OK(saga_engine_stats(engine, &stats));
  CHECK(stats.workers == 1 && stats.workflows == 1 && stats.open_calls == 1 && stats.waiting_calls == 1);
  OK(saga_engine_decide(engine, 12, decisions, 0, &count));
  CHECK(count == 0);
  OK(saga_engine_decide(engine, 12, NULL, 0, &count));
  OK(saga_engine_decide(engine, 12, decisions, 1, &count));
  CHECK(count == 1);
  CHECK(decision_is(&decisions[0], 1, kGeneration, SAGA_REASON_FEWEST_BLOCKS, 2, 0, 0, 0, 0, SAGA_NONE, 0, 44, 1, 12));
  OK(saga_engine_finish_call(engine, 13, call, SAGA_STOP_END_TURN, SAGA_TOOL_NONE, 0));
  OK(saga_engine_close_workflow(engine, 14, workflow));
  OK(saga_engine_tick(engine, 15));
  OK(saga_engine_verify(engine, &intact));
  CHECK(intact == 1);
  OK(saga_engine_digest(engine, &digest[0]));

  /* The journal in pieces of seven bytes. */
  OK(saga_engine_stats(engine, &stats));
  CHECK(stats.placed_calls == 3 && stats.finished_calls == 2 && stats.replaced_calls == 1 && stats.prompt_blocks == 9 &&
        stats.matched_blocks == 2 && stats.holder_blocks == 0);
  OK(saga_engine_journal_read(engine, NULL, 0, &count));
  CHECK(count == 0);
  do {
    OK(saga_engine_journal_read(engine, journal + size, 7, &count));
    size += count;
  } while (count != 0);
  CHECK(size == stats.journal_bytes);

  OK(saga_engine_replay(journal, size, &again, &result));
  CHECK(result.events == 25 && result.decisions == 3 && result.good_bytes == size);
  OK(saga_engine_digest(again, &digest[1]));
  CHECK(digest[0] == digest[1]);
  OK(saga_engine_verify(again, &intact));
  CHECK(intact == 1);
  OK(saga_engine_journal_read(again, none, 1, &count)); /* a replayed engine writes no journal */
  CHECK(count == 0);
  OK(saga_engine_tick(again, 16)); /* and goes on */
  saga_engine_destroy(again);

  /* Cut off: an engine with the state of the good part. */
  CHECK(saga_engine_replay(journal, size - 1, &again, &result) == SAGA_ERR_JOURNAL_CORRUPT);
  CHECK(again != NULL && result.events == 24 && result.good_bytes == size - 21);
  saga_engine_destroy(again);
  journal[size - 1] ^= 1;
  CHECK(saga_engine_replay(journal, size, &again, &result) == SAGA_ERR_JOURNAL_CORRUPT);
  CHECK(again != NULL && result.events == 24);
  saga_engine_destroy(again);
  /* A header that cannot be read: none. */
  CHECK(saga_engine_replay(journal, 40, &again, &result) == SAGA_ERR_JOURNAL_CORRUPT);
  CHECK(again == NULL && result.events == 0 && result.good_bytes == 0);
  CHECK(saga_engine_replay(NULL, 0, &again, &result) == SAGA_ERR_JOURNAL_CORRUPT);
  journal[8] = 2;
  CHECK(saga_engine_replay(journal, size, &again, &result) == SAGA_ERR_VERSION_MISMATCH);
  CHECK(again == NULL);
  again = engine;
  INVALID(saga_engine_replay(NULL, 5, &again, &result));
  CHECK(again == NULL);
  INVALID(saga_engine_replay(journal, size, NULL, &result));
  INVALID(saga_engine_replay(journal, size, &again, NULL));
  saga_engine_destroy(engine);
}

static void test_worker_properties(void) {
  static const uint64_t chain[5] = {101, 102, 103, 104, 105};
  static const uint64_t window[3] = {102, 104, 105};
  saga_engine_options_t options = small_options();
  saga_engine_t* engine;
  saga_engine_t* again = NULL;
  saga_decision_t decisions[2];
  saga_worker_properties_t properties;
  saga_replay_result_t result;
  uint8_t journal[4096];
  uint32_t depth[9];
  uint32_t id = 9;
  uint32_t longest = 9;
  uint32_t intact = 9;
  uint64_t workflow = 9;
  uint64_t call = 9;
  uint64_t digest[2] = {0, 0};
  size_t count = 9;
  size_t size = 0;

  options.journal_bytes = 4096;
  engine = engine_of(&options);
  OK(saga_engine_add_worker(engine, 1, 500, &id));
  OK(saga_engine_add_worker(engine, 1, 500, &id));
  memset(&properties, 0xFF, sizeof properties);
  properties.struct_size = sizeof properties;
  OK(saga_engine_worker_properties(engine, 1, &properties));
  CHECK(properties.struct_size == sizeof properties && properties.trust_per_mille == 1000);
  CHECK(properties.accepts == 1 && properties.window_blocks == 0 && properties.window_held == 0);

  /* What is told comes back, by older headers as far as they know it. */
  OK(saga_engine_worker_trust(engine, 2, 1, 250));
  OK(saga_engine_worker_accepts(engine, 2, 1, 0));
  OK(saga_engine_worker_window(engine, 2, 1, 2));
  OK(saga_engine_window_stored(engine, 2, 1, window, 3));
  OK(saga_engine_window_stored(engine, 2, 1, NULL, 0));
  OK(saga_engine_worker_properties(engine, 1, &properties));
  CHECK(properties.trust_per_mille == 250 && properties.accepts == 0);
  CHECK(properties.window_blocks == 2 && properties.window_held == 3);
  properties.struct_size = 8;
  properties.accepts = 77;
  OK(saga_engine_worker_trust(engine, 2, 1, 0));
  OK(saga_engine_worker_properties(engine, 1, &properties));
  CHECK(properties.trust_per_mille == 0 && properties.accepts == 77);
  properties.struct_size = 3;
  INVALID(saga_engine_worker_properties(engine, 1, &properties));
  properties.struct_size = sizeof properties;

  /* Drained and not believed; then it takes calls and is believed as far as its windows reach. */
  OK(saga_engine_blocks_stored(engine, 3, 1, SAGA_TIER_GPU, 0, chain, 5));
  OK(saga_engine_match(engine, chain, 5, depth, 9, &longest));
  CHECK(longest == 5 && depth[3] == 5);
  OK(saga_engine_match(engine, chain, 4, depth, 9, &longest));
  CHECK(longest == 0 && depth[3] == 0 && depth[4] == 0);
  OK(saga_engine_open_workflow(engine, 3, 0, &workflow));
  OK(saga_engine_submit_call(engine, 3, workflow, 22, chain, 5, &call));
  OK(saga_engine_decide(engine, 3, decisions, 2, &count));
  CHECK(count == 1);
  CHECK(decision_is(&decisions[0], 0, call, SAGA_REASON_FEWEST_BLOCKS, 5, 0, 0, 0, 5, 1, 0, 0, 1, 3));
  OK(saga_engine_worker_accepts(engine, 4, 1, 1));
  OK(saga_engine_worker_trust(engine, 4, 1, 999));
  OK(saga_engine_submit_call(engine, 4, workflow, 22, chain, 5, &call));
  OK(saga_engine_decide(engine, 4, decisions, 2, &count));
  CHECK(count == 1);
  CHECK(decision_is(&decisions[0], 1, call, SAGA_REASON_LONGEST_MATCH, 5, 5, 5, 5, 5, 1, 0, 0, 2, 4));
  OK(saga_engine_window_removed(engine, 5, 1, window + 2, 1));
  OK(saga_engine_match(engine, chain, 5, depth, 9, &longest));
  CHECK(longest == 0);
  OK(saga_engine_worker_accepts(engine, 5, 0, 0));
  OK(saga_engine_worker_accepts(engine, 5, 1, 0));
  OK(saga_engine_submit_call(engine, 5, workflow, 22, chain, 5, &call));
  OK(saga_engine_decide(engine, 5, decisions, 2, &count));
  CHECK(count == 0);
  OK(saga_engine_verify(engine, &intact));
  CHECK(intact == 1);
  OK(saga_engine_digest(engine, &digest[0]));
  OK(saga_engine_journal_read(engine, journal, sizeof journal, &size));
  OK(saga_engine_replay(journal, size, &again, &result));
  OK(saga_engine_digest(again, &digest[1]));
  CHECK(digest[0] == digest[1] && result.decisions == 2);
  OK(saga_engine_worker_properties(again, 1, &properties));
  CHECK(properties.trust_per_mille == 999 && properties.accepts == 0 && properties.window_held == 2);
  saga_engine_destroy(again);

  /* Refusals, without a trace. */
  INVALID(saga_engine_worker_trust(NULL, 5, 0, 1));
  INVALID(saga_engine_worker_trust(engine, 5, 0, 1001));
  INVALID(saga_engine_worker_accepts(NULL, 5, 0, 1));
  INVALID(saga_engine_worker_accepts(engine, 5, 0, 2));
  INVALID(saga_engine_worker_window(NULL, 5, 0, 1));
  INVALID(saga_engine_worker_window(engine, 5, 0, (1u << 24) + 1));
  INVALID(saga_engine_window_stored(NULL, 5, 0, chain, 1));
  INVALID(saga_engine_window_stored(engine, 5, 0, NULL, 1));
  INVALID(saga_engine_window_stored(engine, 5, 0, chain, (1u << 24) + 1));
  INVALID(saga_engine_window_removed(NULL, 5, 0, chain, 1));
  INVALID(saga_engine_window_removed(engine, 5, 0, NULL, 1));
  INVALID(saga_engine_window_removed(engine, 5, 0, chain, (1u << 24) + 1));
  INVALID(saga_engine_worker_properties(NULL, 0, &properties));
  INVALID(saga_engine_worker_properties(engine, 0, NULL));
  CHECK(saga_engine_worker_trust(engine, 5, 2, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_worker_accepts(engine, 5, 2, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_worker_window(engine, 5, 2, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_window_stored(engine, 5, 2, chain, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_window_removed(engine, 5, 2, chain, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_worker_properties(engine, 2, &properties) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_worker_trust(engine, 4, 0, 1) == SAGA_ERR_TIME_REVERSED);
  OK(saga_engine_digest(engine, &digest[1]));
  CHECK(digest[0] == digest[1]);
  OK(saga_engine_remove_worker(engine, 6, 1));
  OK(saga_engine_worker_properties(engine, 1, &properties));
  CHECK(properties.window_held == 0);
  saga_engine_destroy(engine);
}

/* Ids are given out again, the longest gone first; who gets one inherits nothing. */
static void test_worker_ids(void) {
  static const uint64_t chain[2] = {1, 2};
  static const uint32_t removed[3] = {1, 2, 0};
  static const uint32_t added[3] = {1, 2, 0};
  static uint8_t journal[1 << 14];
  saga_engine_options_t options = small_options();
  saga_engine_t* engine;
  saga_engine_t* again = NULL;
  saga_replay_result_t replayed;
  saga_worker_state_t state;
  saga_worker_properties_t properties;
  uint64_t digests[2];
  uint32_t worker = 9;
  uint32_t intact = 0;
  uint32_t i;
  size_t count = 0;
  options.max_workers = 3;
  options.journal_bytes = sizeof journal;
  engine = engine_of(&options);
  for (i = 0; i < 3; ++i) {
    OK(saga_engine_add_worker(engine, i, 10, &worker));
    CHECK(worker == i);
  }
  CHECK(saga_engine_add_worker(engine, 3, 10, &worker) == SAGA_ERR_FULL);
  CHECK(worker == 2);
  OK(saga_engine_blocks_stored(engine, 4, 1, SAGA_TIER_GPU, 0, chain, 2));
  OK(saga_engine_worker_trust(engine, 4, 1, 300));
  OK(saga_engine_worker_accepts(engine, 4, 1, 0));
  for (i = 0; i < 3; ++i) OK(saga_engine_remove_worker(engine, 5, removed[i]));
  CHECK(saga_engine_remove_worker(engine, 5, 1) == SAGA_ERR_NOT_FOUND);
  for (i = 0; i < 3; ++i) {
    OK(saga_engine_add_worker(engine, 6, 20 + i, &worker));
    CHECK(worker == added[i]);
  }
  CHECK(saga_engine_add_worker(engine, 6, 10, &worker) == SAGA_ERR_FULL);
  OK(saga_engine_worker_state(engine, 1, &state));
  CHECK(state.active == 1 && state.capacity_blocks == 20 && state.blocks_in_use == 0);
  properties.struct_size = sizeof properties;
  OK(saga_engine_worker_properties(engine, 1, &properties));
  CHECK(properties.trust_per_mille == 1000 && properties.accepts == 1);
  OK(saga_engine_verify(engine, &intact));
  CHECK(intact == 1);
  OK(saga_engine_digest(engine, &digests[0]));
  OK(saga_engine_journal_read(engine, journal, sizeof journal, &count));
  OK(saga_engine_replay(journal, count, &again, &replayed));
  OK(saga_engine_digest(again, &digests[1]));
  CHECK(digests[0] == digests[1]);
  saga_engine_destroy(again);
  saga_engine_destroy(engine);
}

static void test_engine_refusals(void) {
  static const uint64_t chain[65] = {1, 2};
  saga_engine_options_t options = small_options();
  saga_engine_t* engine = engine_of(&options);
  saga_decision_t decision;
  saga_engine_stats_t stats;
  saga_worker_state_t state;
  uint8_t byte = 0;
  uint32_t depth[9];
  uint32_t worker = 9;
  uint32_t number = 9;
  uint64_t workflow = 9;
  uint64_t call = 9;
  uint64_t id = 9;
  uint64_t digest[2];
  size_t count = 9;

  OK(saga_engine_add_worker(engine, 5, 1, &worker));
  OK(saga_engine_open_workflow(engine, 5, 0, &workflow));
  OK(saga_engine_submit_call(engine, 5, workflow, 1, NULL, 0, &call));
  OK(saga_engine_digest(engine, &digest[0]));

  /* NULL for every pointer. */
  INVALID(saga_engine_add_worker(NULL, 5, 1, &number));
  INVALID(saga_engine_add_worker(engine, 5, 1, NULL));
  INVALID(saga_engine_remove_worker(NULL, 5, 0));
  INVALID(saga_engine_blocks_stored(NULL, 5, 0, SAGA_TIER_GPU, 0, chain, 2));
  INVALID(saga_engine_blocks_stored(engine, 5, 0, SAGA_TIER_GPU, 0, NULL, 2));
  INVALID(saga_engine_blocks_removed(NULL, 5, 0, SAGA_TIER_GPU, chain, 2));
  INVALID(saga_engine_blocks_removed(engine, 5, 0, SAGA_TIER_GPU, NULL, 2));
  INVALID(saga_engine_blocks_cleared(NULL, 5, 0));
  INVALID(saga_engine_worker_load(NULL, 5, 0, 1));
  INVALID(saga_engine_cancel_call(NULL, 5, 0));
  INVALID(saga_engine_worker_state(NULL, 0, &state));
  INVALID(saga_engine_worker_state(engine, 0, NULL));
  INVALID(saga_engine_open_workflow(NULL, 5, 0, &id));
  INVALID(saga_engine_open_workflow(engine, 5, 0, NULL));
  INVALID(saga_engine_close_workflow(NULL, 5, workflow));
  INVALID(saga_engine_submit_call(NULL, 5, workflow, 8, chain, 2, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 8, NULL, 2, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 8, chain, 2, NULL));
  INVALID(saga_engine_first_token(NULL, 5, call));
  INVALID(saga_engine_finish_call(NULL, 5, call, SAGA_STOP_UNKNOWN, SAGA_TOOL_NONE, 0));
  INVALID(saga_engine_tool_started(NULL, 5, workflow, SAGA_TOOL_NONE));
  INVALID(saga_engine_tool_finished(NULL, 5, workflow));
  INVALID(saga_engine_tick(NULL, 5));
  INVALID(saga_engine_decide(NULL, 5, &decision, 1, &count));
  INVALID(saga_engine_decide(engine, 5, NULL, 1, &count));
  INVALID(saga_engine_decide(engine, 5, &decision, 1, NULL));
  INVALID(saga_engine_match(NULL, chain, 2, depth, 9, &number));
  INVALID(saga_engine_match(engine, NULL, 2, depth, 9, &number));
  INVALID(saga_engine_match(engine, chain, 2, NULL, 9, &number));
  INVALID(saga_engine_match(engine, chain, 2, depth, 9, NULL));
  INVALID(saga_engine_stats(NULL, &stats));
  INVALID(saga_engine_stats(engine, NULL));
  INVALID(saga_engine_digest(NULL, &id));
  INVALID(saga_engine_digest(engine, NULL));
  INVALID(saga_engine_verify(NULL, &number));
  INVALID(saga_engine_verify(engine, NULL));
  INVALID(saga_engine_journal_read(NULL, &byte, 1, &count));
  INVALID(saga_engine_journal_read(engine, NULL, 1, &count));
  INVALID(saga_engine_journal_read(engine, &byte, 1, NULL));

  /* Ranges, sizes and enumerators. */
  INVALID(saga_engine_add_worker(engine, 5, 0, &number));
  INVALID(saga_engine_blocks_stored(engine, 5, 0, (saga_tier_t)3, 0, chain, 2));
  INVALID(saga_engine_blocks_stored(engine, 5, 0, (saga_tier_t)-1, 0, chain, 2));
  INVALID(saga_engine_blocks_stored(engine, 5, 0, SAGA_TIER_GPU, 0, chain, (1u << 24) + 1));
  INVALID(saga_engine_blocks_stored(engine, 5, 0, SAGA_TIER_GPU, 0, chain, SIZE_MAX));
  INVALID(saga_engine_blocks_removed(engine, 5, 0, (saga_tier_t)3, chain, 2));
  INVALID(saga_engine_blocks_removed(engine, 5, 0, SAGA_TIER_GPU, chain, (1u << 24) + 1));
  INVALID(saga_engine_blocks_removed(engine, 5, 0, SAGA_TIER_GPU, chain, SIZE_MAX));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 0, chain, 0, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 7, chain, 2, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 260, chain, 65, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 260, NULL, 0, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 8, chain, SIZE_MAX / 8, &id));
  INVALID(saga_engine_submit_call(engine, 5, workflow, 8, chain, SIZE_MAX, &id));
  INVALID(saga_engine_finish_call(engine, 5, call, (saga_stop_t)3, SAGA_TOOL_NONE, 0));
  INVALID(saga_engine_finish_call(engine, 5, call, (saga_stop_t)-1, SAGA_TOOL_NONE, 0));
  INVALID(saga_engine_finish_call(engine, 5, call, SAGA_STOP_UNKNOWN, (saga_tool_t)5, 0));
  INVALID(saga_engine_tool_started(engine, 5, workflow, (saga_tool_t)5));
  INVALID(saga_engine_tool_started(engine, 5, workflow, (saga_tool_t)-1));
  INVALID(saga_engine_decide(engine, 5, &decision, SIZE_MAX, &count));
  INVALID(saga_engine_match(engine, chain, 2, depth, 8, &number));
  INVALID(saga_engine_match(engine, chain, 2, depth, 10, &number));
  INVALID(saga_engine_match(engine, chain, SIZE_MAX, depth, 9, &number));

  /* Conditions. */
  CHECK(saga_engine_tick(engine, 4) == SAGA_ERR_TIME_REVERSED);
  CHECK(saga_engine_remove_worker(engine, 5, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_blocks_stored(engine, 5, 1, SAGA_TIER_GPU, 0, chain, 2) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_blocks_removed(engine, 5, 1, SAGA_TIER_GPU, chain, 2) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_blocks_cleared(engine, 5, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_worker_load(engine, 5, 1, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_worker_state(engine, 1, &state) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_close_workflow(engine, 5, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_close_workflow(engine, 5, workflow) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_submit_call(engine, 5, 1, 8, chain, 2, &id) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_first_token(engine, 5, call) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_first_token(engine, 5, call + kGeneration) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_finish_call(engine, 5, call, SAGA_STOP_UNKNOWN, SAGA_TOOL_NONE, 0) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_finish_call(engine, 5, 99, SAGA_STOP_UNKNOWN, SAGA_TOOL_NONE, 0) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_cancel_call(engine, 5, 99) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_tool_started(engine, 5, 1, SAGA_TOOL_NONE) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_engine_tool_finished(engine, 5, workflow) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_tool_finished(engine, 5, 1) == SAGA_ERR_NOT_FOUND);
  OK(saga_engine_digest(engine, &digest[1]));
  CHECK(digest[0] == digest[1]); /* nothing of all this changed anything */
  CHECK(number == 9 && id == 9);

  OK(saga_engine_add_worker(engine, 5, 1, &worker));
  OK(saga_engine_add_worker(engine, 5, 1, &worker));
  CHECK(saga_engine_add_worker(engine, 5, 1, &number) == SAGA_ERR_FULL);
  OK(saga_engine_open_workflow(engine, 5, 0, &workflow));
  CHECK(saga_engine_open_workflow(engine, 5, 0, &id) == SAGA_ERR_FULL);
  OK(saga_engine_blocks_stored(engine, 5, 0, SAGA_TIER_GPU, 0, NULL, 0));
  OK(saga_engine_blocks_removed(engine, 5, 0, SAGA_TIER_GPU, NULL, 0));
  OK(saga_engine_match(engine, NULL, 0, depth, 9, &number));
  CHECK(number == 0);
  OK(saga_engine_journal_read(engine, &byte, 1, &count)); /* no journal: nothing to read */
  CHECK(count == 0);
  saga_engine_destroy(engine);
}

static void test_journal_full(void) {
  saga_engine_options_t options = small_options();
  saga_engine_t* engine;
  uint8_t bytes[4096];
  size_t count = 0;
  int ticks = 0;
  options.journal_bytes = 4096;
  engine = engine_of(&options);
  while (ticks < 1000 && saga_engine_tick(engine, 0) == SAGA_OK) ++ticks;
  CHECK(ticks == 191);
  CHECK(saga_engine_tick(engine, 0) == SAGA_ERR_JOURNAL_FULL);
  OK(saga_engine_journal_read(engine, bytes, sizeof bytes, &count));
  CHECK(count == 77 + 191 * 21);
  CHECK(memcmp(bytes, "SAGAJRNL\1\0\0\0", 12) == 0);
  OK(saga_engine_tick(engine, 0));
  saga_engine_destroy(engine);
}

/* The same calls give the same results, byte for byte. */
static void test_determinism(void) {
  saga_engine_options_t options = small_options();
  saga_engine_t* engines[2];
  saga_decision_t decisions[2][4];
  uint64_t digests[2];
  uint64_t ignored;
  uint32_t worker;
  size_t count[2];
  int i;
  int round;
  options.imbalance_calls = 0; /* draws as often as it can */
  options.seed = 99;
  memset(decisions, 0, sizeof decisions);
  for (i = 0; i < 2; ++i) {
    engines[i] = engine_of(&options);
    for (round = 0; round < 3; ++round) OK(saga_engine_add_worker(engines[i], 0, 100, &worker));
    OK(saga_engine_open_workflow(engines[i], 0, 0, &ignored));
    for (round = 0; round < 4; ++round) OK(saga_engine_submit_call(engines[i], 1, 0, 10, NULL, 0, &ignored));
    OK(saga_engine_decide(engines[i], 2, decisions[i], 4, &count[i]));
    OK(saga_engine_digest(engines[i], &digests[i]));
  }
  CHECK(count[0] == 4 && count[1] == 4);
  CHECK(memcmp(decisions[0], decisions[1], sizeof decisions[0]) == 0);
  CHECK(decisions[0][1].reason == SAGA_REASON_IMBALANCE);
  CHECK(digests[0] == digests[1]);
  saga_engine_destroy(engines[0]);
  saga_engine_destroy(engines[1]);
}

/* --------------------------------------------------------------------------------------------------------- the scheduler */

static saga_engine_t* scheduling_engine(void) {
  saga_engine_t* engine = NULL;
  saga_engine_options_t options;
  saga_engine_options_init(&options);
  options.max_workers = 2;
  options.max_workflows = 4;
  options.max_calls = 4;
  options.max_blocks = 1000;
  options.max_open_blocks = 4096;
  options.max_chain_blocks = 100;
  options.placement = SAGA_PLACEMENT_SAGA;
  options.max_tenants = 2;
  options.max_graphs = 1;
  options.journal_bytes = 1 << 16;
  OK(saga_engine_create(&options, &engine));
  return engine;
}

static void test_scheduler_events(void) {
  static uint8_t journal[1 << 16];
  saga_engine_t* engine = scheduling_engine();
  saga_engine_t* again = NULL;
  saga_replay_result_t replayed;
  saga_agent_graph_t graph = {0, 1, 0, 1, 100, 5, 10};
  saga_agent_step_t step = {SAGA_TOOL_WEB_API, 0, 100, 50, 1};
  saga_agent_edge_t edge = {0, 0, 0.5};
  saga_workflow_info_t workflow_info;
  saga_call_info_t call_info;
  saga_answer_info_t answer;
  saga_worker_load_t load;
  saga_decision_t decisions[8];
  saga_receipt_t receipt;
  saga_scheduler_stats_t stats;
  saga_calibration_t calibration;
  saga_tenant_state_t tenant;
  saga_worker_forecast_t forecast;
  uint64_t chain[4] = {11, 12, 13, 14};
  uint64_t workflow = 0;
  uint64_t call = 0;
  uint64_t wake = 0;
  uint64_t digests[2];
  uint32_t worker = 0;
  uint32_t id = 7;
  size_t count = 0;
  uint32_t intact = 0;

  OK(saga_engine_next_wake(engine, &wake));
  CHECK(wake == UINT64_MAX);
  INVALID(saga_engine_next_wake(NULL, &wake));
  INVALID(saga_engine_next_wake(engine, NULL));
  OK(saga_engine_add_worker(engine, 0, 1000, &worker));

  OK(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  CHECK(id == 0);
  OK(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  INVALID(saga_engine_declare_graph(NULL, 0, &graph, &step, &edge, &id));
  INVALID(saga_engine_declare_graph(engine, 0, NULL, &step, &edge, &id));
  INVALID(saga_engine_declare_graph(engine, 0, &graph, NULL, &edge, &id));
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, NULL, &id));
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, NULL));
  edge.to = 1; /* no such step */
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  edge.to = 0;
  edge.probability = 1.5;
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  edge.probability = 0.5;
  step.tool_class = 5;
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  step.tool_class = 0;
  step.output_tokens = -1;
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  step.output_tokens = 90;
  CHECK(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id) == SAGA_ERR_FULL);
  graph.first_step = 1;
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  graph.first_step = 0;
  graph.step_count = 0;
  INVALID(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id));
  graph.step_count = 4097;
  CHECK(saga_engine_declare_graph(engine, 0, &graph, &step, &edge, &id) == SAGA_ERR_FULL);

  OK(saga_engine_set_tenant(engine, 0, 1, 4));
  INVALID(saga_engine_set_tenant(NULL, 0, 1, 4));
  INVALID(saga_engine_set_tenant(engine, 0, 2, 4));
  INVALID(saga_engine_set_tenant(engine, 0, 1, 0));
  INVALID(saga_engine_set_tenant(engine, 0, 1, 1025));
  INVALID(saga_engine_set_tenant(engine, 0, 1, (double)NAN));

  saga_workflow_info_init(&workflow_info);
  CHECK(workflow_info.graph == SAGA_NONE && workflow_info.tenant == 0 && workflow_info.agent_kind == 0);
  workflow_info.tenant = 1;
  workflow_info.graph = 0;
  workflow_info.agent_kind = 63;
  OK(saga_engine_open_workflow_with(engine, 1, &workflow_info, &workflow));
  INVALID(saga_engine_open_workflow_with(NULL, 1, &workflow_info, &workflow));
  INVALID(saga_engine_open_workflow_with(engine, 1, NULL, &workflow));
  INVALID(saga_engine_open_workflow_with(engine, 1, &workflow_info, NULL));
  workflow_info.agent_kind = 64;
  INVALID(saga_engine_open_workflow_with(engine, 1, &workflow_info, &workflow));
  workflow_info.agent_kind = 0;
  workflow_info.graph = 1;
  INVALID(saga_engine_open_workflow_with(engine, 1, &workflow_info, &workflow));
  workflow_info.graph = SAGA_NONE;
  workflow_info.tenant = 2;
  INVALID(saga_engine_open_workflow_with(engine, 1, &workflow_info, &workflow));
  workflow_info.struct_size = 3;
  INVALID(saga_engine_open_workflow_with(engine, 1, &workflow_info, &workflow));

  saga_call_info_init(&call_info);
  CHECK(call_info.prompt_kind == SAGA_PROMPT_NOT_TOLD && call_info.hints.gap == UINT64_MAX);
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, &call_info, chain, 4, &call)); /* no tokens */
  call_info.prompt_tokens = 70;
  call_info.agent = 3;
  call_info.hints.output_tokens = 50;
  INVALID(saga_engine_submit_call_with(NULL, 2, workflow, &call_info, chain, 4, &call));
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, NULL, chain, 4, &call));
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, &call_info, NULL, 4, &call));
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, &call_info, chain, 4, NULL));
  call_info.prompt_kind = 3;
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, &call_info, chain, 4, &call));
  call_info.prompt_kind = SAGA_PROMPT_USER;
  call_info.hints.next_tool = 5;
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, &call_info, chain, 4, &call));
  call_info.hints.next_tool = 0;
  call_info.hints.final_step = 3;
  INVALID(saga_engine_submit_call_with(engine, 2, workflow, &call_info, chain, 4, &call));
  call_info.hints.final_step = 1;
  CHECK(saga_engine_submit_call_with(engine, 2, workflow + 1, &call_info, chain, 4, &call) == SAGA_ERR_NOT_FOUND);
  OK(saga_engine_submit_call_with(engine, 2, workflow, &call_info, chain, 4, &call));

  OK(saga_engine_decide(engine, 2, decisions, 8, &count));
  CHECK(count == 1 && decisions[0].type == SAGA_DECISION_PLACE && decisions[0].call == call);
  CHECK(decisions[0].worker == worker && decisions[0].reason == SAGA_REASON_NEW && decisions[0].placement == 0);
  CHECK(decisions[0].prompt_blocks == 4 && decisions[0].active_workers == 1 && decisions[0].priority == 0);
  CHECK(saga_decision_to_directive(&decisions[0]).decided_at == 2);

  saga_worker_load_init(&load);
  CHECK(load.waiting_calls == SAGA_NONE && load.free_blocks == SAGA_NONE);
  load.running_blocks = 5;
  load.waiting_calls = 1;
  OK(saga_engine_worker_load_with(engine, 3, worker, &load));
  INVALID(saga_engine_worker_load_with(NULL, 3, worker, &load));
  INVALID(saga_engine_worker_load_with(engine, 3, worker, NULL));
  CHECK(saga_engine_worker_load_with(engine, 3, 1, &load) == SAGA_ERR_NOT_FOUND);

  INVALID(saga_engine_first_token_with(NULL, 3, call, 0));
  INVALID(saga_engine_first_token_with(engine, 3, call, 65536));
  CHECK(saga_engine_first_token_with(engine, 3, call, 1) == SAGA_ERR_WRONG_STATE);
  OK(saga_engine_first_token_with(engine, 3, call, 0));

  saga_answer_info_init(&answer);
  CHECK(answer.placement == SAGA_NONE && answer.hints.step == SAGA_NONE);
  answer.output_tokens = 40;
  answer.stop = SAGA_STOP_TOOL_USE;
  INVALID(saga_engine_finish_call_with(NULL, 4, call, &answer, NULL, 0));
  INVALID(saga_engine_finish_call_with(engine, 4, call, NULL, NULL, 0));
  INVALID(saga_engine_finish_call_with(engine, 4, call, &answer, NULL, 1));
  INVALID(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 3)); /* 110 tokens have two blocks more */
  answer.tool = 5;
  INVALID(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2));
  answer.tool = SAGA_TOOL_WEB_API;
  answer.stop = 3;
  INVALID(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2));
  answer.stop = SAGA_STOP_TOOL_USE;
  answer.reserved = 1;
  INVALID(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2));
  answer.reserved = 0;
  answer.placement = 65536;
  INVALID(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2));
  answer.placement = 9;
  CHECK(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2) == SAGA_ERR_WRONG_STATE);
  answer.placement = 0;
  OK(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2));
  CHECK(saga_engine_finish_call_with(engine, 4, call, &answer, chain, 2) == SAGA_ERR_NOT_FOUND);
  OK(saga_engine_next_wake(engine, &wake));
  CHECK(wake > 4 && wake <= 1000004);

  CHECK(saga_engine_directive_done(engine, 5, 12345, SAGA_OUTCOME_APPLIED) == SAGA_ERR_NOT_FOUND);
  INVALID(saga_engine_directive_done(NULL, 5, 1, SAGA_OUTCOME_APPLIED));
  INVALID(saga_engine_directive_done(engine, 5, 1, (saga_outcome_t)4));

  receipt.struct_size = sizeof receipt;
  OK(saga_engine_receipt(engine, call, &receipt));
  CHECK(receipt.struct_size == sizeof receipt && receipt.call == call && receipt.reason == SAGA_REASON_NEW);
  CHECK(receipt.worker == worker && receipt.source == SAGA_NONE && receipt.holder == SAGA_NONE);
  CHECK(receipt.prompt_blocks == 4 && receipt.submitted_at == 2 && receipt.granted_at == 2 && receipt.queued == 0);
  CHECK(receipt.price.decode > 0 && receipt.price.wait == 0);
  CHECK(receipt.trust_per_mille == 1000 && receipt.workers_added == 1);
  CHECK(saga_engine_receipt(engine, call + 1, &receipt) == SAGA_ERR_NOT_FOUND);
  INVALID(saga_engine_receipt(NULL, call, &receipt));
  INVALID(saga_engine_receipt(engine, call, NULL));
  receipt.struct_size = 8; /* of an older header: not a byte behind it */
  receipt.call = 77;
  OK(saga_engine_receipt(engine, call, &receipt));
  CHECK(receipt.call == 77);
  receipt.struct_size = 3;
  INVALID(saga_engine_receipt(engine, call, &receipt));

  stats.struct_size = sizeof stats;
  OK(saga_engine_scheduler_stats(engine, &stats));
  CHECK(stats.grants == 1 && stats.queued_calls == 0 && stats.threads == 1 && stats.graphs == 1 && stats.stale == 2);
  INVALID(saga_engine_scheduler_stats(NULL, &stats));
  INVALID(saga_engine_scheduler_stats(engine, NULL));
  calibration.struct_size = sizeof calibration;
  OK(saga_engine_calibration(engine, &calibration));
  CHECK(calibration.gaps == 0 && calibration.next_call_brier == 0);
  INVALID(saga_engine_calibration(NULL, &calibration));
  INVALID(saga_engine_calibration(engine, NULL));
  tenant.struct_size = sizeof tenant;
  OK(saga_engine_tenant_state(engine, 1, &tenant));
  CHECK(tenant.weight == 4 && tenant.waiting == 0 && tenant.served > 0);
  INVALID(saga_engine_tenant_state(NULL, 1, &tenant));
  INVALID(saga_engine_tenant_state(engine, 2, &tenant));
  INVALID(saga_engine_tenant_state(engine, 1, NULL));
  forecast.struct_size = sizeof forecast;
  OK(saga_engine_worker_forecast(engine, worker, &forecast));
  CHECK(forecast.open_calls == 0 && forecast.cost_factor > 0.2 && forecast.resident_tokens > 0);
  INVALID(saga_engine_worker_forecast(NULL, worker, &forecast));
  INVALID(saga_engine_worker_forecast(engine, worker, NULL));
  CHECK(saga_engine_worker_forecast(engine, 1, &forecast) == SAGA_ERR_NOT_FOUND);

  OK(saga_engine_close_workflow(engine, 5, workflow));
  OK(saga_engine_tick(engine, 2000000));
  OK(saga_engine_verify(engine, &intact));
  CHECK(intact == 1);
  OK(saga_engine_digest(engine, &digests[0]));
  OK(saga_engine_journal_read(engine, journal, sizeof journal, &count));
  OK(saga_engine_replay(journal, count, &again, &replayed));
  OK(saga_engine_digest(again, &digests[1]));
  CHECK(digests[0] == digests[1] && replayed.decisions == 1);
  saga_engine_destroy(again);
  saga_engine_destroy(engine);
}

static void test_other_placements_have_no_scheduler(void) {
  saga_engine_t* engine = NULL;
  saga_engine_options_t options;
  saga_agent_graph_t graph = {0, 1, 0, 0, 0, 0, 0};
  saga_agent_step_t step = {0, 0, 0, 0, 0};
  saga_receipt_t receipt;
  saga_scheduler_stats_t stats;
  saga_calibration_t calibration;
  saga_tenant_state_t tenant;
  saga_worker_forecast_t forecast;
  uint32_t id = 0;
  saga_engine_options_init(&options);
  OK(saga_engine_create(&options, &engine));
  receipt.struct_size = sizeof receipt;
  stats.struct_size = sizeof stats;
  calibration.struct_size = sizeof calibration;
  tenant.struct_size = sizeof tenant;
  forecast.struct_size = sizeof forecast;
  CHECK(saga_engine_declare_graph(engine, 0, &graph, &step, NULL, &id) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_set_tenant(engine, 0, 0, 1) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_directive_done(engine, 0, 1, SAGA_OUTCOME_APPLIED) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_receipt(engine, 0, &receipt) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_scheduler_stats(engine, &stats) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_calibration(engine, &calibration) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_tenant_state(engine, 0, &tenant) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_engine_worker_forecast(engine, 0, &forecast) == SAGA_ERR_WRONG_STATE);
  saga_engine_destroy(engine);
}

int main(void) {
  test_version_and_status();
  test_hasher_literals();
  test_hasher_keys();
  test_hasher_refusals();
  test_engine_options();
  test_engine_options_of_other_versions();
  test_engine_life_and_replay();
  test_worker_properties();
  test_worker_ids();
  test_engine_refusals();
  test_journal_full();
  test_determinism();
  test_scheduler_events();
  test_other_placements_have_no_scheduler();
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
