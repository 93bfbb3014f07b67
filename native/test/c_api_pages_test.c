/* Page tables through the C interface: what a server does all day against literal block numbers, then every refusal. */
#include <saga/saga.h>
#include <stdio.h>
#include <string.h>

static int passed = 0;
static int failed = 0;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (condition) {                                                          \
      ++passed;                                                               \
    } else {                                                                  \
      ++failed;                                                               \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                         \
  } while (0)

#define INVALID SAGA_ERR_INVALID_ARGUMENT
/* Beyond the last tier, and still a value that the enumeration's bits can hold. */
#define NO_TIER ((saga_tier_t)3)

static saga_page_table_options_t small_options(uint32_t gpu, uint32_t host) {
  saga_page_table_options_t options;
  saga_page_table_options_init(&options);
  options.block_tokens = 4;
  options.block_count[SAGA_TIER_GPU] = gpu;
  options.block_count[SAGA_TIER_HOST] = host;
  options.max_sequences = 4;
  options.max_blocks_per_sequence = 8;
  options.max_plans = 2;
  options.event_capacity = 64;
  return options;
}

static saga_page_table_t* small_table(uint32_t gpu, uint32_t host) {
  const saga_page_table_options_t options = small_options(gpu, host);
  saga_page_table_t* table = NULL;
  CHECK(saga_page_table_create(&options, &table) == SAGA_OK);
  CHECK(table != NULL);
  return table;
}

static int intact(const saga_page_table_t* table) {
  uint32_t answer = 2;
  return saga_page_table_verify(table, &answer) == SAGA_OK && answer == 1;
}

static uint64_t digest_of(const saga_page_table_t* table) {
  uint64_t digest = 0;
  CHECK(saga_page_table_digest(table, &digest) == SAGA_OK);
  return digest;
}

/* A sequence with `tokens` tokens of which the first `count` blocks have these hashes. */
static uint32_t filled(saga_page_table_t* table, uint32_t tokens, const uint64_t* hashes, size_t count) {
  uint32_t sequence = SAGA_NONE;
  uint32_t copied = 7;
  saga_prefix_hit_t hit;
  saga_block_copy_t copy;
  CHECK(saga_page_table_open(table, NULL, 0, tokens, SAGA_TIER_GPU, &sequence, &hit) == SAGA_OK);
  CHECK(saga_page_table_allocate_slots(table, sequence, tokens, &copy, &copied) == SAGA_OK);
  CHECK(copied == 0);
  CHECK(saga_page_table_cache_full_blocks(table, sequence, hashes, count) == SAGA_OK);
  return sequence;
}

static int row_is(const saga_page_table_t* table, uint32_t sequence, const int32_t* blocks, uint32_t count) {
  int32_t row[8];
  uint32_t i;
  saga_sequence_state_t state;
  if (saga_page_table_sequence_state(table, sequence, &state) != SAGA_OK || state.block_count != count) return 0;
  if (saga_page_table_export_block_tables(table, &sequence, 1, 8, -1, row, 8) != SAGA_OK) return 0;
  for (i = 0; i < 8; ++i) {
    if (row[i] != (i < count ? blocks[i] : -1)) return 0;
  }
  return 1;
}

static int copy_is(const saga_block_copy_t* copy, uint32_t source_tier, uint32_t source, uint32_t target_tier,
                   uint32_t target) {
  return copy->source_tier == source_tier && copy->source_block == source && copy->target_tier == target_tier &&
         copy->target_block == target;
}

/* 12 tokens in blocks of 4. The exact repeat hits 8 of them: the block of the last token is computed again. */
static void prefix_hits(void) {
  static const uint64_t prompt[] = {1, 2, 3};
  static const int32_t first_row[] = {0, 1, 2};
  static const int32_t second_row[] = {0, 1, 3};
  saga_page_table_t* table = small_table(10, 0);
  saga_page_table_stats_t stats;
  saga_prefix_hit_t hit;
  saga_block_copy_t copy;
  saga_block_event_t events[8];
  uint64_t hashes[4];
  uint32_t sequence = SAGA_NONE;
  uint32_t copied = 7;
  size_t count = 0;

  CHECK(saga_page_table_open(table, prompt, 3, 12, SAGA_TIER_GPU, &sequence, &hit) == SAGA_OK);
  CHECK(sequence == 0 && hit.tokens == 0);
  CHECK(saga_page_table_allocate_slots(table, 0, 12, &copy, &copied) == SAGA_OK && copied == 0);
  CHECK(saga_page_table_cache_full_blocks(table, 0, prompt, 3) == SAGA_OK);
  CHECK(row_is(table, 0, first_row, 3));

  CHECK(saga_page_table_match(table, prompt, 3, 12, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 8);
  CHECK(saga_page_table_match(table, prompt, 3, 13, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 12);
  CHECK(saga_page_table_open(table, prompt, 3, 12, SAGA_TIER_GPU, &sequence, &hit) == SAGA_OK);
  CHECK(sequence == 1 && hit.tokens == 8);
  CHECK(hit.tokens_in_tier[0] == 8 && hit.tokens_in_tier[1] == 0 && hit.tokens_in_tier[2] == 0);
  CHECK(saga_page_table_allocate_slots(table, 1, 4, &copy, &copied) == SAGA_OK && copied == 0);
  CHECK(saga_page_table_cache_full_blocks(table, 1, prompt + 2, 1) == SAGA_OK);
  CHECK(row_is(table, 1, second_row, 3));

  CHECK(saga_page_table_drain_events(table, events, 8, &count) == SAGA_OK && count == 4);
  CHECK(events[0].hash == 1 && events[0].block == 0 && events[0].tier == SAGA_TIER_GPU);
  CHECK(events[3].hash == 3 && events[3].block == 3 && events[3].kind == SAGA_BLOCK_STORED);
  CHECK(saga_page_table_drain_events(table, events, 8, &count) == SAGA_OK && count == 0);
  CHECK(saga_page_table_cached_hashes(table, SAGA_TIER_GPU, hashes, 4, &count) == SAGA_OK && count == 4);
  CHECK(hashes[0] == 1 && hashes[1] == 2 && hashes[2] == 3 && hashes[3] == 3);

  CHECK(saga_page_table_free(table, 0) == SAGA_OK && saga_page_table_free(table, 1) == SAGA_OK);
  CHECK(saga_page_table_stats(table, &stats) == SAGA_OK);
  CHECK(stats.tiers[0].block_count == 10 && stats.tiers[0].free_blocks == 10 && stats.tiers[1].block_count == 0);
  CHECK(stats.tiers[0].cached_blocks == 4 && stats.tiers[0].cached_hashes == 3);
  CHECK(stats.tiers[0].allocated_total == 4 && stats.tiers[0].evicted_total == 0);
  CHECK(stats.open_sequences == 0 && stats.opened_total == 2 && stats.prompt_tokens_total == 24);
  CHECK(stats.hit_tokens_total[0] == 8 && stats.memory_bytes > 10 * 64);
  CHECK(intact(table));
  saga_page_table_destroy(table);
}

static void forks_and_exports(void) {
  static const uint64_t first[] = {1};
  static const int32_t parent_row[] = {0, 1};
  static const int32_t child_row[] = {0, 2};
  static const uint32_t both[] = {1, 0};
  const saga_token_range_t ranges[] = {{1, 3, 4}, {0, 0, 0}, {0, 5, 1}};
  saga_page_table_t* table = small_table(6, 0);
  saga_sequence_state_t state;
  saga_block_copy_t copy;
  uint32_t child = SAGA_NONE;
  uint32_t copied = 7;
  int32_t tables[7] = {9, 9, 9, 9, 9, 9, 9};
  int64_t slots[6] = {9, 9, 9, 9, 9, 9};
  size_t written = 0;

  CHECK(filled(table, 6, first, 1) == 0);
  CHECK(saga_page_table_fork(table, 0, &child) == SAGA_OK && child == 1);
  CHECK(row_is(table, 1, parent_row, 2));
  CHECK(saga_page_table_allocate_slots(table, 1, 1, &copy, &copied) == SAGA_OK && copied == 1);
  CHECK(copy_is(&copy, SAGA_TIER_GPU, 1, SAGA_TIER_GPU, 2));
  CHECK(row_is(table, 0, parent_row, 2));
  CHECK(row_is(table, 1, child_row, 2));
  CHECK(saga_page_table_sequence_state(table, 1, &state) == SAGA_OK);
  CHECK(state.token_count == 7 && state.block_count == 2 && state.cached_blocks == 1);
  CHECK(state.resident == 1 && state.busy == 0);

  CHECK(saga_page_table_export_block_tables(table, both, 2, 3, -5, tables, 7) == SAGA_OK);
  CHECK(tables[0] == 0 && tables[1] == 2 && tables[2] == -5 && tables[3] == 0 && tables[4] == 1 && tables[5] == -5);
  CHECK(tables[6] == 9);
  CHECK(saga_page_table_export_slot_mapping(table, ranges, 3, slots, 6, &written) == SAGA_OK && written == 5);
  CHECK(slots[0] == 3 && slots[1] == 8 && slots[2] == 9 && slots[3] == 10 && slots[4] == 5 && slots[5] == 9);

  CHECK(saga_page_table_truncate(table, 1, 4) == SAGA_OK);
  CHECK(row_is(table, 1, child_row, 1));
  CHECK(saga_page_table_export_block_tables(table, NULL, 0, 0, 0, NULL, 0) == SAGA_OK);
  CHECK(saga_page_table_export_slot_mapping(table, NULL, 0, NULL, 0, &written) == SAGA_OK && written == 0);
  CHECK(intact(table));
  saga_page_table_destroy(table);
}

static void tiers(void) {
  static const uint64_t hashes[] = {1, 2};
  static const int32_t row[] = {0, 1, 2};
  saga_page_table_t* table = small_table(6, 6);
  saga_page_table_stats_t stats;
  saga_sequence_state_t state;
  saga_prefix_hit_t hit;
  saga_block_copy_t copies[8];
  uint32_t plan = SAGA_NONE;
  uint32_t done = 7;
  uint32_t sequence = SAGA_NONE;
  size_t count = 0;

  CHECK(filled(table, 10, hashes, 2) == 0);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 3, &plan, &count) == SAGA_OK);
  CHECK(plan == 0 && count == 3);
  CHECK(copy_is(&copies[0], SAGA_TIER_GPU, 0, SAGA_TIER_HOST, 0));
  CHECK(copy_is(&copies[2], SAGA_TIER_GPU, 2, SAGA_TIER_HOST, 2));
  CHECK(saga_page_table_sequence_state(table, 0, &state) == SAGA_OK && state.busy == 1 && state.resident == 1);
  CHECK(row_is(table, 0, row, 3));
  CHECK(saga_page_table_commit(table, plan) == SAGA_OK);
  CHECK(saga_page_table_sequence_state(table, 0, &state) == SAGA_OK && state.busy == 0 && state.resident == 0);

  /* Two blocks still lie above and are shared: only the one without a hash is copied. */
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, &plan, &count) == SAGA_OK && count == 1);
  CHECK(copy_is(&copies[0], SAGA_TIER_HOST, 2, SAGA_TIER_GPU, 2));
  CHECK(saga_page_table_abort(table, plan) == SAGA_OK);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, &plan, &count) == SAGA_OK && count == 1);
  CHECK(saga_page_table_commit(table, plan) == SAGA_OK);
  CHECK(saga_page_table_sequence_state(table, 0, &state) == SAGA_OK && state.resident == 1 && state.block_count == 3);

  CHECK(saga_page_table_reset_prefix_cache(table, SAGA_TIER_HOST, &done) == SAGA_OK && done == 1);
  CHECK(saga_page_table_reset_prefix_cache(table, SAGA_TIER_GPU, &done) == SAGA_OK && done == 0);
  CHECK(saga_page_table_plan_copy(table, SAGA_TIER_GPU, hashes, 2, SAGA_TIER_HOST, copies, 2, &plan, &count) ==
        SAGA_OK);
  CHECK(count == 2 && copies[1].source_tier == SAGA_TIER_GPU && copies[1].target_tier == SAGA_TIER_HOST);
  CHECK(saga_page_table_stats(table, &stats) == SAGA_OK && stats.pending_plans == 1);
  CHECK(saga_page_table_commit(table, plan) == SAGA_OK);
  CHECK(saga_page_table_stats(table, &stats) == SAGA_OK);
  CHECK(stats.copied_into_tier_total[0] == 1 && stats.copied_into_tier_total[1] == 5);

  CHECK(saga_page_table_evict(table, SAGA_TIER_GPU, hashes + 1, 1, &count) == SAGA_OK && count == 1);
  CHECK(saga_page_table_evict(table, SAGA_TIER_GPU, hashes + 1, 1, &count) == SAGA_OK && count == 0);
  CHECK(saga_page_table_match(table, hashes, 2, 9, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 4);
  CHECK(saga_page_table_open(table, hashes, 2, 9, SAGA_TIER_DISK, &sequence, &hit) == SAGA_OK && sequence == 1);
  CHECK(hit.tokens == 8 && hit.tokens_in_tier[0] == 4 && hit.tokens_in_tier[1] == 4);
  CHECK(saga_page_table_free(table, 1) == SAGA_OK && saga_page_table_free(table, 0) == SAGA_OK);
  CHECK(saga_page_table_evict_first(table, SAGA_TIER_HOST, hashes, 2, &count) == SAGA_OK && count == 2);
  CHECK(saga_page_table_evict_first(table, SAGA_TIER_GPU, hashes, 2, &count) == SAGA_OK && count == 1);
  CHECK(filled(table, 4, NULL, 0) == 0);
  CHECK(row_is(table, 0, row, 1)); /* block 0 was named the next victim */
  CHECK(saga_page_table_match(table, hashes, 2, 9, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 0);
  CHECK(intact(table));
  saga_page_table_destroy(table);
}

static saga_status_t create_with(const saga_page_table_options_t* options) {
  saga_page_table_t* table = NULL;
  const saga_status_t status = saga_page_table_create(options, &table);
  CHECK((table != NULL) == (status == SAGA_OK));
  saga_page_table_destroy(table);
  return status;
}

#define REFUSED(field, value)                                \
  do {                                                       \
    saga_page_table_options_t changed = small_options(4, 4); \
    changed.field = (value);                                 \
    CHECK(create_with(&changed) == INVALID);                 \
  } while (0)

static void creation_refuses(void) {
  saga_page_table_options_t options;
  struct {
    saga_page_table_options_t known;
    uint32_t unknown;
  } newer;
  saga_page_table_t* table = NULL;

  saga_page_table_options_init(&options);
  CHECK(options.struct_size == sizeof options && options.block_tokens == 16 && options.max_sequences == 256);
  CHECK(options.block_count[0] == 0 && options.max_blocks_per_sequence == 8192 && options.max_plans == 8);
  CHECK(options.event_capacity == 0 && options.uncached_first == 0);
  CHECK(create_with(&options) == INVALID); /* blocks have no default */
  options.block_count[0] = 1;
  CHECK(create_with(&options) == SAGA_OK);
  CHECK(saga_page_table_create(NULL, &table) == INVALID);
  CHECK(saga_page_table_create(&options, NULL) == INVALID);

  REFUSED(struct_size, 0);
  REFUSED(struct_size, 3);
  REFUSED(struct_size, 5000);
  REFUSED(block_tokens, 0);
  REFUSED(block_tokens, 4097);
  REFUSED(block_count[0], 0);
  REFUSED(block_count[0], (1u << 26) + 1);
  REFUSED(block_count[2], SAGA_NONE);
  REFUSED(max_sequences, 0);
  REFUSED(max_sequences, (1u << 20) + 1);
  REFUSED(max_blocks_per_sequence, 0);
  REFUSED(max_blocks_per_sequence, (1u << 20) + 1);
  REFUSED(max_plans, 0);
  REFUSED(max_plans, (1u << 16) + 1);
  REFUSED(event_capacity, (1u << 26) + 1);
  REFUSED(uncached_first, 2);

  options = small_options(4, 4);
  options.max_blocks_per_sequence = 1u << 20;
  options.max_sequences = 1025; /* table entries */
  CHECK(create_with(&options) == INVALID);
  options.max_sequences = 1;
  options.max_plans = 65; /* plan entries */
  CHECK(create_with(&options) == INVALID);
  options.max_plans = 1;
  options.block_tokens = 4096; /* 2^32 tokens */
  CHECK(create_with(&options) == INVALID);
  options.block_tokens = 4095;
  CHECK(create_with(&options) == SAGA_OK);

  /* Options of a newer header: zero is "not used". */
  memset(&newer, 0, sizeof newer);
  newer.known = small_options(4, 4);
  newer.known.struct_size = (uint32_t)sizeof newer;
  CHECK(create_with(&newer.known) == SAGA_OK);
  newer.unknown = 1;
  CHECK(create_with(&newer.known) == INVALID);
  saga_page_table_destroy(NULL);
}

static void null_tables_are_refused(void) {
  static const uint64_t hashes[] = {1};
  saga_prefix_hit_t hit;
  saga_block_copy_t copy;
  saga_block_event_t event;
  saga_page_table_stats_t stats;
  saga_sequence_state_t state;
  uint64_t digest = 0;
  uint64_t hash = 0;
  uint32_t word = 0;
  size_t count = 0;
  int32_t block = 0;
  int64_t slot = 0;
  CHECK(saga_page_table_match(NULL, hashes, 1, 4, SAGA_TIER_GPU, &hit) == INVALID);
  CHECK(saga_page_table_open(NULL, hashes, 1, 4, SAGA_TIER_GPU, &word, &hit) == INVALID);
  CHECK(saga_page_table_allocate_slots(NULL, 0, 1, &copy, &word) == INVALID);
  CHECK(saga_page_table_cache_full_blocks(NULL, 0, hashes, 1) == INVALID);
  CHECK(saga_page_table_fork(NULL, 0, &word) == INVALID);
  CHECK(saga_page_table_truncate(NULL, 0, 0) == INVALID);
  CHECK(saga_page_table_free(NULL, 0) == INVALID);
  CHECK(saga_page_table_sequence_state(NULL, 0, &state) == INVALID);
  CHECK(saga_page_table_export_block_tables(NULL, NULL, 0, 1, 0, &block, 1) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(NULL, NULL, 0, &slot, 1, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_out(NULL, 0, SAGA_TIER_HOST, &copy, 1, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_in(NULL, 0, &copy, 1, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_copy(NULL, SAGA_TIER_GPU, hashes, 1, SAGA_TIER_HOST, &copy, 1, &word, &count) == INVALID);
  CHECK(saga_page_table_commit(NULL, 0) == INVALID);
  CHECK(saga_page_table_abort(NULL, 0) == INVALID);
  CHECK(saga_page_table_evict(NULL, SAGA_TIER_GPU, hashes, 1, &count) == INVALID);
  CHECK(saga_page_table_evict_first(NULL, SAGA_TIER_GPU, hashes, 1, &count) == INVALID);
  CHECK(saga_page_table_reset_prefix_cache(NULL, SAGA_TIER_GPU, &word) == INVALID);
  CHECK(saga_page_table_cached_hashes(NULL, SAGA_TIER_GPU, &hash, 1, &count) == INVALID);
  CHECK(saga_page_table_drain_events(NULL, &event, 1, &count) == INVALID);
  CHECK(saga_page_table_stats(NULL, &stats) == INVALID);
  CHECK(saga_page_table_verify(NULL, &word) == INVALID);
  CHECK(saga_page_table_digest(NULL, &digest) == INVALID);
}

/* Wrong arguments to a table that has one sequence of 7 tokens, its first block cached as 1. */
static void wrong_arguments_are_refused(void) {
  static const uint64_t hashes[] = {1, 2, 3};
  static const uint64_t twice[] = {1, 2, 1};
  static const uint32_t open_and_not[] = {0, 1};
  saga_page_table_t* table = small_table(6, 6);
  const saga_token_range_t beyond = {0, 4, 4};
  const saga_token_range_t overflowing = {0, 2, 0xFFFFFFFFu};
  const saga_token_range_t fitting = {0, 0, 7};
  const saga_token_range_t not_open = {1, 0, 0};
  saga_prefix_hit_t hit;
  saga_block_copy_t copies[9];
  saga_block_event_t event;
  uint64_t many[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  uint32_t word = 0;
  size_t count = 0;
  int32_t blocks[8];
  int64_t slots[8];
  uint64_t before;
  uint32_t id;

  CHECK(filled(table, 7, hashes, 1) == 0);
  before = digest_of(table);

  CHECK(saga_page_table_match(table, NULL, 1, 4, SAGA_TIER_GPU, &hit) == INVALID);
  CHECK(saga_page_table_match(table, hashes, 3, 11, SAGA_TIER_GPU, &hit) == INVALID); /* 11 tokens: two full blocks */
  CHECK(saga_page_table_match(table, hashes, SIZE_MAX, 12, SAGA_TIER_GPU, &hit) == INVALID);
  CHECK(saga_page_table_match(table, NULL, 0, 0, SAGA_TIER_GPU, &hit) == INVALID);
  CHECK(saga_page_table_match(table, hashes, 1, 4, NO_TIER, &hit) == INVALID);
  CHECK(saga_page_table_match(table, hashes, 1, 4, SAGA_TIER_GPU, NULL) == INVALID);
  CHECK(saga_page_table_open(table, NULL, 1, 4, SAGA_TIER_GPU, &word, &hit) == INVALID);
  CHECK(saga_page_table_open(table, hashes, 3, 11, SAGA_TIER_GPU, &word, &hit) == INVALID);
  CHECK(saga_page_table_open(table, NULL, 0, 0, SAGA_TIER_GPU, &word, &hit) == INVALID);
  CHECK(saga_page_table_open(table, hashes, 1, 4, NO_TIER, &word, &hit) == INVALID);
  CHECK(saga_page_table_open(table, hashes, 1, 4, SAGA_TIER_GPU, NULL, &hit) == INVALID);
  CHECK(saga_page_table_open(table, hashes, 1, 4, SAGA_TIER_GPU, &word, NULL) == INVALID);

  CHECK(saga_page_table_allocate_slots(table, 0, 1, NULL, &word) == INVALID);
  CHECK(saga_page_table_allocate_slots(table, 0, 1, copies, NULL) == INVALID);
  CHECK(saga_page_table_cache_full_blocks(table, 0, NULL, 1) == INVALID);
  CHECK(saga_page_table_cache_full_blocks(table, 0, hashes + 1, 1) == INVALID); /* the second block is not full */
  CHECK(saga_page_table_fork(table, 0, NULL) == INVALID);
  CHECK(saga_page_table_truncate(table, 0, 8) == INVALID);
  CHECK(saga_page_table_sequence_state(table, 0, NULL) == INVALID);

  CHECK(saga_page_table_export_block_tables(table, NULL, 1, 2, 0, blocks, 8) == INVALID);
  CHECK(saga_page_table_export_block_tables(table, open_and_not, 1, 2, 0, NULL, 8) == INVALID);
  CHECK(saga_page_table_export_block_tables(table, open_and_not, 1, 1, 0, blocks, 8) == INVALID); /* two blocks long */
  CHECK(saga_page_table_export_block_tables(table, open_and_not, 1, 0, 0, blocks, 8) == INVALID);
  CHECK(saga_page_table_export_block_tables(table, open_and_not, 1, 9, 0, blocks, 8) == INVALID);
  CHECK(saga_page_table_export_block_tables(table, open_and_not, 1, SAGA_NONE, 0, blocks, 8) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(table, NULL, 1, slots, 8, &count) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(table, &fitting, 1, NULL, 8, &count) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(table, &fitting, 1, slots, 8, NULL) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(table, &fitting, 1, slots, 6, &count) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(table, &beyond, 1, slots, 8, &count) == INVALID);
  CHECK(saga_page_table_export_slot_mapping(table, &overflowing, 1, slots, 8, &count) == INVALID);

  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_GPU, copies, 8, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_out(table, 0, NO_TIER, copies, 8, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, NULL, 8, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 1, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 8, NULL, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 8, &word, NULL) == INVALID);
  CHECK(saga_page_table_plan_swap_in(table, 0, NULL, 8, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 1, &word, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, NULL, &count) == INVALID);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, &word, NULL) == INVALID);
#define PLAN_COPY(source, hashes, hash_count, target, copies, capacity) \
  saga_page_table_plan_copy(table, source, hashes, hash_count, target, copies, capacity, &word, &count)
  CHECK(PLAN_COPY(SAGA_TIER_GPU, hashes, 1, SAGA_TIER_GPU, copies, 8) == INVALID);
  CHECK(PLAN_COPY(NO_TIER, hashes, 1, SAGA_TIER_GPU, copies, 8) == INVALID);
  CHECK(PLAN_COPY(SAGA_TIER_GPU, hashes, 1, NO_TIER, copies, 8) == INVALID);
  CHECK(PLAN_COPY(SAGA_TIER_GPU, NULL, 1, SAGA_TIER_HOST, copies, 8) == INVALID);
  CHECK(PLAN_COPY(SAGA_TIER_GPU, hashes, 3, SAGA_TIER_HOST, NULL, 8) == INVALID);
  CHECK(PLAN_COPY(SAGA_TIER_GPU, hashes, 3, SAGA_TIER_HOST, copies, 2) == INVALID);
  CHECK(PLAN_COPY(SAGA_TIER_GPU, many, 9, SAGA_TIER_HOST, copies, 9) == INVALID); /* longer than a plan */
  CHECK(PLAN_COPY(SAGA_TIER_GPU, twice, 3, SAGA_TIER_HOST, copies, 8) == INVALID);
  CHECK(saga_page_table_plan_copy(table, SAGA_TIER_GPU, hashes, 1, SAGA_TIER_HOST, copies, 8, NULL, &count) == INVALID);
  CHECK(saga_page_table_plan_copy(table, SAGA_TIER_GPU, hashes, 1, SAGA_TIER_HOST, copies, 8, &word, NULL) == INVALID);

  CHECK(saga_page_table_evict(table, NO_TIER, hashes, 1, &count) == INVALID);
  CHECK(saga_page_table_evict(table, SAGA_TIER_GPU, NULL, 1, &count) == INVALID);
  CHECK(saga_page_table_evict(table, SAGA_TIER_GPU, hashes, 1, NULL) == INVALID);
  CHECK(saga_page_table_evict_first(table, NO_TIER, hashes, 1, &count) == INVALID);
  CHECK(saga_page_table_evict_first(table, SAGA_TIER_GPU, NULL, 1, &count) == INVALID);
  CHECK(saga_page_table_evict_first(table, SAGA_TIER_GPU, hashes, 1, NULL) == INVALID);
  CHECK(saga_page_table_reset_prefix_cache(table, NO_TIER, &word) == INVALID);
  CHECK(saga_page_table_reset_prefix_cache(table, SAGA_TIER_HOST, NULL) == INVALID);
  CHECK(saga_page_table_cached_hashes(table, NO_TIER, many, 9, &count) == INVALID);
  CHECK(saga_page_table_cached_hashes(table, SAGA_TIER_GPU, NULL, 9, &count) == INVALID);
  CHECK(saga_page_table_cached_hashes(table, SAGA_TIER_GPU, NULL, 0, &count) == INVALID); /* one is cached */
  CHECK(saga_page_table_cached_hashes(table, SAGA_TIER_GPU, many, 9, NULL) == INVALID);
  CHECK(saga_page_table_drain_events(table, NULL, 1, &count) == INVALID);
  CHECK(saga_page_table_drain_events(table, &event, 1, NULL) == INVALID);
  CHECK(saga_page_table_stats(table, NULL) == INVALID);
  CHECK(saga_page_table_verify(table, NULL) == INVALID);
  CHECK(saga_page_table_digest(table, NULL) == INVALID);

  /* Ids: never given out, and beyond any. */
  for (id = 1; id != 0; id = id == 1 ? 4 : id == 4 ? SAGA_NONE : 0) {
    CHECK(saga_page_table_allocate_slots(table, id, 1, copies, &word) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_cache_full_blocks(table, id, NULL, 0) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_fork(table, id, &word) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_truncate(table, id, 0) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_free(table, id) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_plan_swap_out(table, id, SAGA_TIER_HOST, copies, 8, &word, &count) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_plan_swap_in(table, id, copies, 8, &word, &count) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_commit(table, id) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_abort(table, id) == SAGA_ERR_NOT_FOUND);
  }
  CHECK(saga_page_table_commit(table, 0) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_page_table_export_block_tables(table, open_and_not, 2, 2, 0, blocks, 8) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_page_table_export_slot_mapping(table, &not_open, 1, slots, 8, &count) == SAGA_ERR_NOT_FOUND);

  CHECK(digest_of(table) == before);
  CHECK(intact(table));
  saga_page_table_destroy(table);
}

/* Conditions that a server meets. Each leaves the table as it was. */
static void conditions_change_nothing(void) {
  static const uint64_t hashes[] = {1, 2};
  saga_page_table_t* table = small_table(3, 2);
  saga_page_table_stats_t stats;
  saga_prefix_hit_t hit;
  saga_block_copy_t copies[8];
  const uint32_t sequence = 0;
  const saga_token_range_t range = {0, 0, 1};
  uint32_t plan = SAGA_NONE;
  uint32_t word = SAGA_NONE;
  size_t count = 0;
  int32_t row[8];
  int64_t slot = 0;
  uint64_t before;

  CHECK(filled(table, 8, hashes, 1) == 0);
  before = digest_of(table);
  CHECK(saga_page_table_allocate_slots(table, 0, 5, copies, &word) == SAGA_ERR_OUT_OF_BLOCKS);
  CHECK(saga_page_table_allocate_slots(table, 0, 25, copies, &word) ==
        SAGA_ERR_FULL); /* nine blocks of at most eight */
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_DISK, copies, 8, &plan, &count) == SAGA_ERR_OUT_OF_BLOCKS);
  CHECK(word == SAGA_NONE && plan == SAGA_NONE);
  CHECK(digest_of(table) == before);
  CHECK(saga_page_table_stats(table, &stats) == SAGA_OK && stats.out_of_blocks_total == 2);

  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 8, &plan, &count) == SAGA_OK && count == 2);
  before = digest_of(table);
  CHECK(saga_page_table_allocate_slots(table, 0, 1, copies, &word) == SAGA_ERR_BUSY);
  CHECK(saga_page_table_cache_full_blocks(table, 0, hashes + 1, 1) == SAGA_ERR_BUSY);
  CHECK(saga_page_table_fork(table, 0, &word) == SAGA_ERR_BUSY);
  CHECK(saga_page_table_truncate(table, 0, 0) == SAGA_ERR_BUSY);
  CHECK(saga_page_table_free(table, 0) == SAGA_ERR_BUSY);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 8, &word, &count) == SAGA_ERR_BUSY);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, &word, &count) == SAGA_ERR_BUSY);
  CHECK(digest_of(table) == before);

  CHECK(saga_page_table_commit(table, plan) == SAGA_OK);
  CHECK(saga_page_table_commit(table, plan) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_page_table_abort(table, plan) == SAGA_ERR_NOT_FOUND);
  before = digest_of(table);
  CHECK(saga_page_table_allocate_slots(table, 0, 1, copies, &word) == SAGA_ERR_NOT_RESIDENT);
  CHECK(saga_page_table_export_block_tables(table, &sequence, 1, 8, 0, row, 8) == SAGA_ERR_NOT_RESIDENT);
  CHECK(saga_page_table_export_slot_mapping(table, &range, 1, &slot, 1, &count) == SAGA_ERR_NOT_RESIDENT);
  CHECK(digest_of(table) == before);

  CHECK(saga_page_table_plan_copy(table, SAGA_TIER_GPU, hashes, 1, SAGA_TIER_HOST, copies, 8, &word, &count) ==
        SAGA_OK);
  CHECK(saga_page_table_plan_copy(table, SAGA_TIER_GPU, hashes, 1, SAGA_TIER_HOST, copies, 8, &word, &count) ==
        SAGA_OK);
  before = digest_of(table);
  CHECK(PLAN_COPY(SAGA_TIER_GPU, hashes, 1, SAGA_TIER_HOST, copies, 8) == SAGA_ERR_FULL);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, &word, &count) == SAGA_ERR_FULL);
  CHECK(digest_of(table) == before);
  CHECK(saga_page_table_abort(table, 0) == SAGA_OK && saga_page_table_abort(table, 1) == SAGA_OK);

  CHECK(saga_page_table_fork(table, 0, &word) == SAGA_OK && word == 1);
  CHECK(saga_page_table_fork(table, 0, &word) == SAGA_OK && word == 2);
  CHECK(saga_page_table_open(table, NULL, 0, 1, SAGA_TIER_GPU, &word, &hit) == SAGA_OK && word == 3);
  before = digest_of(table);
  CHECK(saga_page_table_fork(table, 0, &word) == SAGA_ERR_FULL);
  CHECK(saga_page_table_open(table, NULL, 0, 1, SAGA_TIER_GPU, &word, &hit) == SAGA_ERR_FULL && word == 3);
  CHECK(digest_of(table) == before);
  CHECK(intact(table));
  saga_page_table_destroy(table);
}

/* What the core takes for granted about hashes, from a caller who gets them wrong. */
static void hashes_that_disagree(void) {
  static const uint64_t hashes[] = {1, 2, 3};
  static const uint64_t same[] = {5, 5};
  static const uint64_t different[] = {6, 7};
  saga_page_table_t* table = small_table(6, 6);
  saga_block_copy_t copies[8];
  uint32_t fork = SAGA_NONE;
  uint32_t plan = SAGA_NONE;
  size_t count = 0;
  uint64_t before;

  /* The parent caches the block that both share; the fork must agree. */
  CHECK(filled(table, 8, NULL, 0) == 0);
  CHECK(saga_page_table_fork(table, 0, &fork) == SAGA_OK && fork == 1);
  CHECK(saga_page_table_cache_full_blocks(table, 0, hashes, 2) == SAGA_OK);
  before = digest_of(table);
  CHECK(saga_page_table_cache_full_blocks(table, 1, hashes + 1, 2) == INVALID);
  CHECK(saga_page_table_cache_full_blocks(table, 1, hashes, 3) == INVALID);
  CHECK(digest_of(table) == before);
  CHECK(saga_page_table_cache_full_blocks(table, 1, hashes, 2) == SAGA_OK);
  CHECK(saga_page_table_free(table, 0) == SAGA_OK && saga_page_table_free(table, 1) == SAGA_OK);

  /* One hash for two contents: through the slower tier both places of the fork's table become one block. */
  CHECK(filled(table, 8, NULL, 0) == 1);
  CHECK(saga_page_table_fork(table, 1, &fork) == SAGA_OK && fork == 0);
  CHECK(saga_page_table_cache_full_blocks(table, 1, same, 2) == SAGA_OK);
  CHECK(saga_page_table_plan_swap_out(table, 0, SAGA_TIER_HOST, copies, 8, &plan, &count) == SAGA_OK && count == 2);
  CHECK(saga_page_table_commit(table, plan) == SAGA_OK);
  CHECK(saga_page_table_plan_swap_in(table, 0, copies, 8, &plan, &count) == SAGA_OK && count == 0);
  CHECK(saga_page_table_commit(table, plan) == SAGA_OK);
  CHECK(saga_page_table_evict(table, SAGA_TIER_GPU, same, 2, &count) == SAGA_OK && count == 2);
  before = digest_of(table);
  CHECK(saga_page_table_cache_full_blocks(table, 0, different, 2) == INVALID);
  CHECK(digest_of(table) == before);
  CHECK(saga_page_table_cache_full_blocks(table, 0, same, 2) == SAGA_OK);
  CHECK(intact(table));
  saga_page_table_destroy(table);
}

static void statuses_have_texts(void) {
  int status;
  for (status = SAGA_OK; status <= SAGA_ERR_BUSY; ++status) {
    CHECK(strcmp(saga_status_text((saga_status_t)status), "unknown status") != 0);
  }
  CHECK(SAGA_ERR_OUT_OF_BLOCKS == 11 && SAGA_ERR_NOT_RESIDENT == 12 && SAGA_ERR_BUSY == 13);
}

int main(void) {
  prefix_hits();
  forks_and_exports();
  tiers();
  creation_refuses();
  null_tables_are_refused();
  wrong_arguments_are_refused();
  conditions_change_nothing();
  hashes_that_disagree();
  statuses_have_texts();
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
