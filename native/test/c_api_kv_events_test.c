/* KV events from C99, as a gateway in front of inference servers would feed them. Exits with 0. */
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

/* [1.5, [["BlockStored", [1, 2], nil, [1 .. 8], 4, nil, "GPU"]], 3] */
static const uint8_t stored[] = {0x93, 0xcb, 0x3f, 0xf8, 0,   0,   0,   0,   0,    0,    0x91, 0x97, 0xab, 'B',  'l',
                                 'o',  'c',  'k',  'S',  't', 'o', 'r', 'e', 'd',  0x92, 1,    2,    0xc0, 0x98, 1,
                                 2,    3,    4,    5,    6,   7,   8,   4,   0xc0, 0xa3, 'G',  'P',  'U',  3};
/* [0, [["BlockRemoved", [2], "GPU", 0]]] */
static const uint8_t removed[] = {0x92, 0,   0x91, 0x94, 0xac, 'B',  'l', 'o',  'c', 'k', 'R', 'e',
                                  'm',  'o', 'v',  'e',  'd',  0x91, 2,   0xa3, 'G', 'P', 'U', 0};

static saga_kv_source_t* make(uint32_t algorithm) {
  saga_kv_source_options_t options;
  saga_kv_source_t* source = NULL;
  saga_kv_source_options_init(&options);
  CHECK(options.struct_size == sizeof options && options.algorithm == SAGA_HASH_SAGA && options.block_tokens == 16 &&
        options.max_blocks == 1u << 18 && options.max_batch_bytes == 1u << 26 && options.reserved == 0);
  options.algorithm = algorithm;
  options.block_tokens = 4;
  options.max_blocks = 100;
  IS(SAGA_OK, saga_kv_source_create(&options, &source));
  return source;
}

static saga_engine_t* engine_with_worker(void) {
  saga_engine_options_t options;
  saga_engine_t* engine = NULL;
  uint32_t worker = 9;
  saga_engine_options_init(&options);
  options.max_workers = 2;
  options.block_tokens = 4;
  IS(SAGA_OK, saga_engine_create(&options, &engine));
  IS(SAGA_OK, saga_engine_add_worker(engine, 1, 1000, &worker));
  CHECK(worker == 0);
  return engine;
}

static uint32_t matched(const saga_engine_t* engine, const uint64_t* chain, size_t count) {
  uint32_t depth[2 * SAGA_TIER_COUNT], longest = 99;
  IS(SAGA_OK, saga_engine_match(engine, chain, count, depth, 2 * SAGA_TIER_COUNT, &longest));
  return depth[SAGA_TIER_GPU];
}

static void verify(const saga_kv_source_t* source) {
  uint32_t intact = 0;
  IS(SAGA_OK, saga_kv_source_verify(source, &intact));
  CHECK(intact == 1);
}

static void follows_a_worker(uint32_t algorithm) {
  const uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  uint64_t chain[2] = {1, 2};
  saga_engine_t* engine = engine_with_worker();
  saga_kv_source_t* source = make(algorithm);
  saga_kv_report_t report;
  saga_kv_stats_t stats;
  uint32_t usable = 9, copies = 9;
  if (algorithm == SAGA_HASH_SAGA) {
    saga_hasher_t* hasher = NULL;
    size_t count = 0;
    IS(SAGA_OK, saga_hasher_create(SAGA_HASH_SAGA, 4, NULL, 0, &hasher));
    IS(SAGA_OK, saga_hasher_update(hasher, tokens, 8, chain, 2, &count));
    CHECK(count == 2);
    saga_hasher_destroy(hasher);
  }
  report.struct_size = sizeof report;
  stats.struct_size = sizeof stats;
  IS(SAGA_OK, saga_kv_source_apply(source, engine, 5, 0, stored, sizeof stored, &report));
  CHECK(report.data_parallel_rank == 3 && report.timestamp == 1.5 && report.uncertain == 0 &&
        report.engine_status == 0);
  CHECK(report.counts.events == 1 && report.counts.stored_blocks == 2 && report.counts.engine_stored == 2);
  CHECK(matched(engine, chain, 2) == 2);
  IS(SAGA_OK, saga_kv_source_usable(source, SAGA_TIER_GPU, chain, 2, SAGA_NONE, &usable));
  CHECK(usable == 2);
  IS(SAGA_OK, saga_kv_source_apply(source, engine, 5, 0, stored, sizeof stored, &report));
  IS(SAGA_OK, saga_kv_source_holds(source, 0, SAGA_TIER_GPU, chain[1], &copies));
  CHECK(copies == 2 && report.counts.engine_stored == 0);
  IS(SAGA_OK, saga_kv_source_apply(source, engine, 6, 0, removed, sizeof removed, &report));
  CHECK(report.data_parallel_rank == -1 && matched(engine, chain, 2) == 2);
  IS(SAGA_OK, saga_kv_source_apply(source, engine, 6, 0, removed, sizeof removed, &report));
  CHECK(report.counts.engine_removed == 1 && matched(engine, chain, 2) == 1);
  IS(SAGA_OK, saga_kv_source_stats(source, &stats));
  CHECK(stats.batches == 4 && stats.blocks == 1 && stats.copies == 2 && stats.groups == 1 && stats.counts.events == 4);
  verify(source);

  /* Refused, and nothing changed: cut off, of the past, of no worker. */
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(source, engine, 7, 0, stored, sizeof stored - 1, &report));
  IS(SAGA_ERR_TIME_REVERSED, saga_kv_source_apply(source, engine, 5, 0, stored, sizeof stored, &report));
  IS(SAGA_ERR_NOT_FOUND, saga_kv_source_apply(source, engine, 7, 1, stored, sizeof stored, &report));
  IS(SAGA_OK, saga_kv_source_stats(source, &stats));
  CHECK(stats.batches == 4 && stats.copies == 2);

  IS(SAGA_OK, saga_kv_source_sync(source, engine, 7, 0));
  IS(SAGA_OK, saga_kv_source_reset(source, engine, 8, 0));
  CHECK(matched(engine, chain, 2) == 0);
  verify(source);
  saga_kv_source_destroy(source);
  saga_engine_destroy(engine);
}

static void checks_arguments(void) {
  saga_kv_source_options_t options;
  saga_kv_source_t* source = make(SAGA_HASH_SAGA);
  saga_kv_source_t* other = NULL;
  saga_engine_t* engine = engine_with_worker();
  saga_kv_report_t report;
  saga_kv_stats_t stats;
  uint32_t number = 0;
  int32_t rank = 9;
  const uint64_t chain[1] = {1};
  saga_kv_source_options_init(&options);
  options.max_blocks = 0;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_create(&options, &other));
  options.max_blocks = (1u << 28) + UINT64_C(1);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_create(&options, &other));
  saga_kv_source_options_init(&options);
  options.block_tokens = 4097;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_create(&options, &other));
  saga_kv_source_options_init(&options);
  options.algorithm = 5;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_create(&options, &other));
  saga_kv_source_options_init(&options);
  options.max_batch_bytes = 63;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_create(&options, &other));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_create(NULL, &other));
  CHECK(other == NULL);

  report.struct_size = sizeof report;
  stats.struct_size = 0;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(NULL, engine, 1, 0, stored, sizeof stored, &report));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(source, NULL, 1, 0, stored, sizeof stored, &report));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(source, engine, 1, 0, NULL, 4, &report));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(source, engine, 1, 0, NULL, 0, &report));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(source, engine, 1, 0, stored, sizeof stored, NULL));
  report.struct_size = 3;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_apply(source, engine, 1, 0, stored, sizeof stored, &report));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_stats(source, &stats));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_reset(source, NULL, 1, 0));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_sync(NULL, engine, 1, 0));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_usable(source, (saga_tier_t)3, chain, 1, SAGA_NONE, &number));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_usable(source, SAGA_TIER_GPU, NULL, 1, SAGA_NONE, &number));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_holds(source, 32, SAGA_TIER_GPU, 1, &number));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_source_verify(source, NULL));
  /* A caller of an older header, whose report ended sooner: not a byte behind it is written. */
  memset(&report, 0x55, sizeof report);
  report.struct_size = 16;
  IS(SAGA_OK, saga_kv_source_apply(source, engine, 1, 0, stored, sizeof stored, &report));
  CHECK(report.timestamp == 1.5 && report.uncertain == 0x55555555u);

  IS(SAGA_OK, saga_kv_batch_rank(stored, sizeof stored, &rank));
  CHECK(rank == 3);
  IS(SAGA_OK, saga_kv_batch_rank(removed, sizeof removed, &rank));
  CHECK(rank == -1);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_batch_rank(stored, sizeof stored - 1, &rank));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_kv_batch_rank(NULL, 1, &rank));
  for (number = 0; number < SAGA_KV_UNCERTAIN_COUNT; ++number) {
    CHECK(strcmp(saga_kv_uncertain_text((saga_kv_uncertain_t)(1u << number)), "no such reason") != 0);
  }
  CHECK(strcmp(saga_kv_uncertain_text((saga_kv_uncertain_t)(1u << SAGA_KV_UNCERTAIN_COUNT)), "no such reason") == 0);
  saga_kv_source_destroy(source);
  saga_kv_source_destroy(NULL);
  saga_engine_destroy(engine);
}

static void makes_salts(void) {
  char salt[32];
  size_t size = 99;
  IS(SAGA_OK, saga_chain_salt(NULL, 0, NULL, 0, NULL, 0, &size));
  CHECK(size == 0);
  IS(SAGA_OK, saga_chain_salt("tenant-a", 8, "lora", 4, salt, sizeof salt, &size));
  CHECK(size == 14 && memcmp(salt, "8:tenant-alora", 14) == 0);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_chain_salt("tenant-a", 8, "lora", 4, salt, 13, &size));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_chain_salt("tenant-a", 4097, "lora", 4, salt, sizeof salt, &size));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_chain_salt(NULL, 1, NULL, 0, salt, sizeof salt, &size));
}

int main(void) {
  follows_a_worker(SAGA_HASH_SAGA);
  follows_a_worker(SAGA_HASH_SHA256_CBOR);
  checks_arguments();
  makes_salts();
  return 0;
}
