/* Batch formation through the C interface: a server's day against literals, then every refusal. */
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

enum { CALLS = 4, TOKENS = 16, COPIES = 8, ROWS = 6, WIDTH = 8 };

/* Everything that a batch is written to. */
static uint32_t calls[CALLS], rows[CALLS], first_tokens[CALLS], token_counts[CALLS], preempted[CALLS];
static int32_t sequence_lengths[CALLS], query_starts[CALLS + 1], block_tables[ROWS * WIDTH];
static int64_t slot_mapping[TOKENS];
static saga_block_table_update_t updates[CALLS];
static saga_block_copy_t copies[COPIES];

static saga_batch_arrays_t all_arrays(void) {
  saga_batch_arrays_t arrays;
  saga_batch_arrays_init(&arrays);
  arrays.call_capacity = CALLS;
  arrays.token_capacity = TOKENS;
  arrays.copy_capacity = COPIES;
  arrays.block_table_rows = ROWS;
  arrays.block_table_width = WIDTH;
  arrays.calls = calls;
  arrays.rows = rows;
  arrays.first_tokens = first_tokens;
  arrays.token_counts = token_counts;
  arrays.sequence_lengths = sequence_lengths;
  arrays.query_starts = query_starts;
  arrays.slot_mapping = slot_mapping;
  arrays.block_tables = block_tables;
  arrays.updates = updates;
  arrays.copies = copies;
  arrays.preempted = preempted;
  return arrays;
}

static saga_page_table_t* small_table(uint32_t gpu, uint32_t host) {
  saga_page_table_options_t options;
  saga_page_table_t* table = NULL;
  saga_page_table_options_init(&options);
  options.block_tokens = 4;
  options.block_count[SAGA_TIER_GPU] = gpu;
  options.block_count[SAGA_TIER_HOST] = host;
  options.max_sequences = ROWS;
  options.max_blocks_per_sequence = WIDTH;
  options.max_plans = 2;
  CHECK(saga_page_table_create(&options, &table) == SAGA_OK);
  return table;
}

static saga_batch_former_options_t small_options(void) {
  saga_batch_former_options_t options;
  saga_batch_former_options_init(&options);
  options.max_calls = 8;
  options.max_sequences = CALLS;
  options.token_budget = TOKENS;
  options.max_copies = COPIES;
  options.order = SAGA_ORDER_FCFS;
  return options;
}

static saga_batch_former_t* small_former(saga_page_table_t* table) {
  const saga_batch_former_options_t options = small_options();
  saga_batch_former_t* former = NULL;
  CHECK(saga_batch_former_create(table, &options, &former) == SAGA_OK);
  return former;
}

static saga_batch_call_t call_of(uint32_t prompt_tokens, uint32_t max_new_tokens) {
  saga_batch_call_t call;
  saga_batch_call_init(&call);
  call.prompt_tokens = prompt_tokens;
  call.max_new_tokens = max_new_tokens;
  return call;
}

static uint32_t submit(saga_batch_former_t* former, uint64_t now, uint32_t prompt_tokens, uint32_t max_new_tokens,
                       const uint64_t* hashes, size_t count) {
  const saga_batch_call_t call = call_of(prompt_tokens, max_new_tokens);
  uint32_t id = SAGA_NONE;
  CHECK(saga_batch_former_submit(former, now, &call, hashes, count, &id) == SAGA_OK);
  return id;
}

static int intact(const saga_batch_former_t* former) {
  uint32_t answer = 2;
  return saga_batch_former_verify(former, &answer) == SAGA_OK && answer == 1;
}

static uint64_t digest_of(const saga_batch_former_t* former) {
  uint64_t digest = 0;
  CHECK(saga_batch_former_digest(former, &digest) == SAGA_OK);
  return digest;
}

static void test_a_day(void) {
  const uint64_t chain[2] = {11, 12};
  const uint32_t one[CALLS] = {1, 1, 1, 1};
  const uint8_t running[CALLS] = {0, 0, 0, 0};
  const uint8_t first_ends[CALLS] = {1, 0, 0, 0};
  saga_page_table_t* table = small_table(16, 0);
  saga_batch_former_t* former = small_former(table);
  const saga_batch_arrays_t arrays = all_arrays();
  saga_batch_t batch;
  saga_call_status_t status;
  saga_batch_former_stats_t stats;
  saga_prefix_hit_t hit;
  uint32_t ended = 7;
  uint32_t count = 7;

  CHECK(submit(former, 0, 9, 4, chain, 2) == 0);
  CHECK(submit(former, 0, 10, 4, chain, 2) == 1);
  CHECK(saga_batch_former_form(former, 5, &arrays, &batch) == SAGA_OK);
  CHECK(batch.calls == 2 && batch.decode_calls == 0 && batch.tokens == 11 && batch.admitted == 2);
  CHECK(batch.updates == 2 && batch.copies == 0 && batch.preempted == 0);
  CHECK(calls[0] == 0 && first_tokens[0] == 0 && token_counts[0] == 9 && sequence_lengths[0] == 9);
  CHECK(calls[1] == 1 && first_tokens[1] == 8 && token_counts[1] == 2 && sequence_lengths[1] == 10);
  CHECK(query_starts[0] == 0 && query_starts[1] == 9 && query_starts[2] == 11);
  CHECK(block_tables[rows[0] * WIDTH + 2] == 2 && block_tables[rows[1] * WIDTH + 1] == 1 &&
        block_tables[rows[1] * WIDTH + 2] == 3);
  CHECK(slot_mapping[8] == 8 && slot_mapping[9] == 12 && slot_mapping[10] == 13);
  CHECK(updates[1].row == rows[1] && updates[1].first_block == 0 && updates[1].block_count == 3);
  CHECK(saga_batch_former_complete(former, one, running, 2, &ended) == SAGA_OK && ended == 0);

  CHECK(saga_batch_former_form(former, 6, &arrays, &batch) == SAGA_OK);
  CHECK(batch.calls == 2 && batch.decode_calls == 2 && batch.updates == 0);
  CHECK(slot_mapping[0] == 9 && slot_mapping[1] == 14);
  CHECK(saga_batch_former_call_status(former, 1, &status) == SAGA_OK);
  CHECK(status.state == SAGA_CALL_RUNNING && status.known_tokens == 11 && status.computed_tokens == 10 &&
        status.hit_tokens == 8 && status.hash_count == 2 && status.preemptions == 0);
  CHECK(saga_batch_former_complete(former, one, first_ends, 2, &ended) == SAGA_OK && ended == 1);
  CHECK(saga_batch_former_call_status(former, 0, &status) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_batch_former_stats(former, &stats) == SAGA_OK);
  CHECK(stats.running_calls == 1 && stats.waiting_calls == 0 && stats.finished_total == 1 && stats.steps_total == 2 &&
        stats.prefill_tokens_total == 11 && stats.decode_tokens_total == 2 && stats.hit_tokens_total == 8 &&
        stats.prompt_tokens_total == 19 && stats.submitted_total == 2 && stats.in_flight == 0);
  CHECK(saga_page_table_match(table, chain, 2, 9, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 8);
  CHECK(saga_batch_former_set_urgency(former, 0, 2.5, &count) == SAGA_OK && count == 1);
  CHECK(saga_batch_former_set_priority(former, 1, -3) == SAGA_OK);
  CHECK(saga_batch_former_cancel_workflow(former, 0, &count) == SAGA_OK && count == 1);
  CHECK(intact(former));

  /* The table outlives its own handle while the former uses it. */
  saga_page_table_destroy(table);
  CHECK(submit(former, 7, 9, 4, chain, 2) == 1);
  CHECK(saga_batch_former_form(former, 7, &arrays, &batch) == SAGA_OK && batch.tokens == 1);
  saga_batch_former_destroy(former);
  saga_batch_former_destroy(NULL);
}

static void test_swap(void) {
  saga_page_table_t* table = small_table(5, 8);
  saga_batch_former_options_t options = small_options();
  saga_batch_former_t* former = NULL;
  const saga_batch_arrays_t arrays = all_arrays();
  const uint32_t one[CALLS] = {1, 1, 1, 1};
  const uint8_t running[CALLS] = {0, 0, 0, 0};
  saga_batch_t batch;
  uint32_t ended;
  int step;
  options.preemption = SAGA_PREEMPT_SWAP;
  CHECK(saga_batch_former_create(table, &options, &former) == SAGA_OK);
  submit(former, 0, 8, 8, NULL, 0);
  submit(former, 0, 7, 8, NULL, 0);
  for (step = 0; step < 2; ++step) {
    CHECK(saga_batch_former_form(former, 0, &arrays, &batch) == SAGA_OK && batch.calls == 2);
    CHECK(saga_batch_former_complete(former, one, running, 2, &ended) == SAGA_OK);
  }
  CHECK(saga_batch_former_form(former, 0, &arrays, &batch) == SAGA_OK);
  CHECK(batch.calls == 1 && batch.preempted == 1 && preempted[0] == 1 && batch.copies == 2);
  CHECK(copies[0].source_tier == SAGA_TIER_GPU && copies[0].source_block == 2);
  CHECK(copies[0].target_tier == SAGA_TIER_HOST && copies[0].target_block == 0);
  CHECK(intact(former));
  saga_batch_former_destroy(former);
  /* The table is its caller's again. */
  {
    uint32_t sequence;
    saga_prefix_hit_t hit;
    CHECK(saga_page_table_open(table, NULL, 0, 4, SAGA_TIER_GPU, &sequence, &hit) == SAGA_OK);
  }
  saga_page_table_destroy(table);
}

static void test_wrong_options(void) {
  saga_page_table_t* table = small_table(16, 0);
  saga_page_table_t* with_host = small_table(16, 4);
  saga_batch_former_t* former = NULL;
  saga_batch_former_t* second = NULL;
  saga_batch_former_options_t options;
#define REFUSED(change)                                                   \
  do {                                                                    \
    options = small_options();                                            \
    change;                                                               \
    CHECK(saga_batch_former_create(table, &options, &former) == INVALID); \
    CHECK(former == NULL);                                                \
  } while (0)
  REFUSED(options.struct_size = 3);
  REFUSED(options.max_calls = 0);
  REFUSED(options.max_calls = (1u << 20) + 1);
  REFUSED(options.max_sequences = 0);
  REFUSED(options.max_sequences = ROWS + 1);
  REFUSED(options.token_budget = 0);
  REFUSED(options.token_budget = (1u << 24) + 1);
  REFUSED(options.max_prefill_chunk = TOKENS + 1);
  REFUSED(options.max_copies = (1u << 24) + 1);
  REFUSED(options.order = (saga_batch_order_t)6);
  REFUSED(options.preemption = (saga_preemption_t)2);
  REFUSED(options.preemption = SAGA_PREEMPT_SWAP); /* no host tier */
  REFUSED(options.slowest_hit = (saga_tier_t)3);
  REFUSED((options.slowest_hit = SAGA_TIER_HOST, options.max_copies = 0));
  REFUSED(options.session_affinity = 2);
  REFUSED(options.hit_after_completion = 2);
  REFUSED(options.reserved = 1);
#undef REFUSED
  options = small_options();
  CHECK(saga_batch_former_create(NULL, &options, &former) == INVALID);
  CHECK(saga_batch_former_create(table, NULL, &former) == INVALID);
  CHECK(saga_batch_former_create(table, &options, NULL) == INVALID);
  CHECK(saga_batch_former_create(table, &options, &former) == SAGA_OK);
  CHECK(saga_batch_former_create(table, &options, &second) == SAGA_ERR_WRONG_STATE);
  saga_batch_former_destroy(former);
  options.preemption = SAGA_PREEMPT_SWAP;
  CHECK(saga_batch_former_create(with_host, &options, &former) == SAGA_OK);
  saga_batch_former_destroy(former);
  saga_page_table_destroy(table);
  saga_page_table_destroy(with_host);
}

static void test_wrong_arguments(void) {
  const uint64_t hashes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  const uint32_t none[CALLS] = {0, 0, 0, 0};
  const uint32_t one[CALLS] = {1, 1, 1, 1};
  const uint32_t many[CALLS] = {9, 9, 9, 9};
  const uint8_t running[CALLS] = {0, 0, 0, 0};
  saga_page_table_t* table = small_table(6, 0);
  saga_batch_former_t* former = small_former(table);
  saga_batch_arrays_t arrays = all_arrays();
  saga_batch_call_t call = call_of(8, 4);
  saga_batch_t batch;
  saga_call_status_t status;
  saga_batch_former_stats_t stats;
  saga_prefix_hit_t hit;
  saga_block_copy_t copy;
  uint32_t id = SAGA_NONE, count = 0, sequence = 0, plan = 0;
  size_t copied = 0;
  uint64_t before = digest_of(former), digest = 0;

#define CALL_REFUSED(change)                                                      \
  do {                                                                            \
    call = call_of(8, 4);                                                         \
    change;                                                                       \
    CHECK(saga_batch_former_submit(former, 0, &call, hashes, 2, &id) == INVALID); \
  } while (0)
  CALL_REFUSED(call.struct_size = 0);
  CALL_REFUSED(call.prompt_tokens = 0);
  CALL_REFUSED(call.prompt_tokens = 7); /* one full block, two hashes */
  CALL_REFUSED(call.max_new_tokens = 0);
  CALL_REFUSED(call.max_new_tokens = 18); /* 25 tokens to compute; 6 blocks hold 24 */
  CALL_REFUSED(call.max_new_tokens = 0xFFFFFFFFu);
  CALL_REFUSED(call.urgency = -1);
  CALL_REFUSED(memset(&call.urgency, 0xFF, sizeof call.urgency)); /* not a number */
  CALL_REFUSED(call.prompt_kind = (saga_prompt_kind_t)3);
  CALL_REFUSED(call.reserved = 1);
#undef CALL_REFUSED
  call = call_of(8, 4);
  CHECK(saga_batch_former_submit(NULL, 0, &call, hashes, 2, &id) == INVALID);
  CHECK(saga_batch_former_submit(former, 0, NULL, hashes, 2, &id) == INVALID);
  CHECK(saga_batch_former_submit(former, 0, &call, NULL, 2, &id) == INVALID);
  CHECK(saga_batch_former_submit(former, 0, &call, hashes, 2, NULL) == INVALID);
  CHECK(digest_of(former) == before && id == SAGA_NONE);
  CHECK(saga_batch_former_submit(former, 10, &call, hashes, 2, &id) == SAGA_OK && id == 0);
  CHECK(saga_batch_former_submit(former, 9, &call, hashes, 2, &id) == SAGA_ERR_TIME_REVERSED);
  while (saga_batch_former_submit(former, 10, &call, NULL, 0, &id) == SAGA_OK) {
  }
  CHECK(saga_batch_former_submit(former, 10, &call, NULL, 0, &id) == SAGA_ERR_FULL);
  CHECK(id == 7);
  while (id > 0) CHECK(saga_batch_former_cancel(former, id--) == SAGA_OK);

  before = digest_of(former);
  CHECK(saga_batch_former_add_hashes(NULL, 0, hashes, 1) == INVALID);
  CHECK(saga_batch_former_add_hashes(former, 1, hashes, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_batch_former_add_hashes(former, SAGA_NONE, hashes, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_batch_former_add_hashes(former, 0, NULL, 1) == INVALID);
  CHECK(saga_batch_former_add_hashes(former, 0, hashes, 2) == INVALID); /* 12 tokens are 3 blocks */
  CHECK(saga_batch_former_set_priority(NULL, 0, 1) == INVALID);
  CHECK(saga_batch_former_set_priority(former, 3, 1) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_batch_former_set_urgency(NULL, 0, 1, &count) == INVALID);
  CHECK(saga_batch_former_set_urgency(former, 0, -1, &count) == INVALID);
  CHECK(saga_batch_former_set_urgency(former, 0, 1, NULL) == INVALID);
  CHECK(saga_batch_former_cancel(NULL, 0) == INVALID);
  CHECK(saga_batch_former_cancel(former, 4) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_batch_former_cancel_workflow(NULL, 0, &count) == INVALID);
  CHECK(saga_batch_former_cancel_workflow(former, 0, NULL) == INVALID);
  CHECK(saga_batch_former_call_status(NULL, 0, &status) == INVALID);
  CHECK(saga_batch_former_call_status(former, 0, NULL) == INVALID);
  CHECK(saga_batch_former_call_status(former, 2, &status) == SAGA_ERR_NOT_FOUND);
  CHECK(saga_batch_former_stats(NULL, &stats) == INVALID);
  CHECK(saga_batch_former_stats(former, NULL) == INVALID);
  CHECK(saga_batch_former_verify(NULL, &count) == INVALID);
  CHECK(saga_batch_former_verify(former, NULL) == INVALID);
  CHECK(saga_batch_former_digest(NULL, &digest) == INVALID);
  CHECK(saga_batch_former_digest(former, NULL) == INVALID);

#define ARRAYS_REFUSED(change)                                             \
  do {                                                                     \
    arrays = all_arrays();                                                 \
    change;                                                                \
    CHECK(saga_batch_former_form(former, 10, &arrays, &batch) == INVALID); \
  } while (0)
  ARRAYS_REFUSED(arrays.struct_size = 2);
  ARRAYS_REFUSED(arrays.call_capacity = CALLS - 1);
  ARRAYS_REFUSED(arrays.token_capacity = TOKENS - 1);
  ARRAYS_REFUSED(arrays.copy_capacity = COPIES - 1);
  ARRAYS_REFUSED(arrays.block_table_rows = ROWS - 1);
  ARRAYS_REFUSED(arrays.block_table_width = WIDTH - 1);
  ARRAYS_REFUSED(arrays.block_table_width = 0);
  ARRAYS_REFUSED(arrays.calls = NULL);
  ARRAYS_REFUSED(arrays.rows = NULL);
  ARRAYS_REFUSED(arrays.first_tokens = NULL);
  ARRAYS_REFUSED(arrays.token_counts = NULL);
  ARRAYS_REFUSED(arrays.sequence_lengths = NULL);
  ARRAYS_REFUSED(arrays.query_starts = NULL);
  ARRAYS_REFUSED(arrays.slot_mapping = NULL);
  ARRAYS_REFUSED(arrays.block_tables = NULL);
  ARRAYS_REFUSED(arrays.updates = NULL);
  ARRAYS_REFUSED(arrays.copies = NULL);
  ARRAYS_REFUSED(arrays.preempted = NULL);
#undef ARRAYS_REFUSED
  arrays = all_arrays();
  CHECK(saga_batch_former_form(NULL, 10, &arrays, &batch) == INVALID);
  CHECK(saga_batch_former_form(former, 10, NULL, &batch) == INVALID);
  CHECK(saga_batch_former_form(former, 10, &arrays, NULL) == INVALID);
  CHECK(saga_batch_former_form(former, 9, &arrays, &batch) == SAGA_ERR_TIME_REVERSED);
  CHECK(saga_batch_former_complete(former, one, running, 1, &count) == SAGA_ERR_WRONG_STATE);
  CHECK(digest_of(former) == before);

  /* What opens or changes a sequence is the former's. */
  CHECK(saga_page_table_open(table, NULL, 0, 4, SAGA_TIER_GPU, &sequence, &hit) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_batch_former_form(former, 10, &arrays, &batch) == SAGA_OK && batch.calls == 1);
  before = digest_of(former);
  CHECK(saga_page_table_allocate_slots(table, rows[0], 1, &copy, &count) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_page_table_cache_full_blocks(table, rows[0], hashes, 0) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_page_table_fork(table, rows[0], &sequence) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_page_table_truncate(table, rows[0], 0) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_page_table_free(table, rows[0]) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_page_table_plan_swap_out(table, rows[0], SAGA_TIER_HOST, copies, COPIES, &plan, &copied) ==
        SAGA_ERR_WRONG_STATE);
  CHECK(saga_page_table_plan_swap_in(table, rows[0], copies, COPIES, &plan, &copied) == SAGA_ERR_WRONG_STATE);

  CHECK(saga_batch_former_form(former, 10, &arrays, &batch) == SAGA_ERR_WRONG_STATE);
  CHECK(saga_batch_former_complete(NULL, one, running, 1, &count) == INVALID);
  CHECK(saga_batch_former_complete(former, NULL, running, 1, &count) == INVALID);
  CHECK(saga_batch_former_complete(former, one, NULL, 1, &count) == INVALID);
  CHECK(saga_batch_former_complete(former, one, running, 1, NULL) == INVALID);
  CHECK(saga_batch_former_complete(former, one, running, 2, &count) == INVALID);
  CHECK(saga_batch_former_complete(former, none, running, 1, &count) == INVALID); /* nothing left to compute */
  CHECK(saga_batch_former_complete(former, many, running, 1, &count) == INVALID); /* beyond max_new_tokens */
  CHECK(digest_of(former) == before);
  CHECK(intact(former));
  CHECK(saga_batch_former_complete(former, one, running, 1, &count) == SAGA_OK && count == 0);
  CHECK(intact(former));
  saga_batch_former_destroy(former);
  saga_page_table_destroy(table);

  /* SAGA's order divides by the urgency. */
  table = small_table(6, 0);
  {
    saga_batch_former_options_t options = small_options();
    options.order = SAGA_ORDER_SAGA;
    CHECK(saga_batch_former_create(table, &options, &former) == SAGA_OK);
    call = call_of(8, 4);
    call.urgency = 0;
    CHECK(saga_batch_former_submit(former, 0, &call, NULL, 0, &id) == INVALID);
    CHECK(saga_batch_former_set_urgency(former, 0, 0, &count) == INVALID);
  }
  saga_batch_former_destroy(former);
  saga_page_table_destroy(table);
}

/* Two calls that are not told of, then an outcome for the second: its blocks go first. */
static void test_outcomes(void) {
  const saga_call_outcome_t nothing = {0, 0, 0, 0, UINT64_MAX}, last = {0, 0, 1, 0, UINT64_MAX};
  const uint32_t one[1] = {1};
  const uint8_t running[1] = {0};
  int way; /* 0: before the end, 1: after it, 2: the thread left */
  for (way = 0; way < 3; ++way) {
    saga_page_table_options_t options;
    saga_page_table_t* table = NULL;
    saga_batch_former_t* former = NULL;
    saga_batch_former_options_t former_options = small_options();
    const saga_batch_arrays_t arrays = all_arrays();
    saga_call_outcome_t wrong = nothing;
    uint64_t thread;
    uint32_t id = SAGA_NONE, ended = 0;
    saga_page_table_options_init(&options);
    options.block_tokens = 4;
    options.block_count[SAGA_TIER_GPU] = 6;
    options.max_sequences = ROWS;
    options.max_blocks_per_sequence = WIDTH;
    options.eviction = SAGA_EVICTOR_SAGA;
    CHECK(saga_page_table_create(&options, &table) == SAGA_OK);
    CHECK(saga_batch_former_create(table, &former_options, &former) == SAGA_OK);
    for (thread = 1; thread <= 3; ++thread) {
      const uint64_t hashes[3] = {10 * thread, 10 * thread + 1, 10 * thread + 2};
      saga_batch_call_t call = call_of(12, 1);
      saga_batch_t batch;
      CHECK(call.thread == SAGA_NO_THREAD && call.prompt_kind == SAGA_PROMPT_START);
      call.thread = thread;
      call.prompt_kind = SAGA_PROMPT_TOOL;
      CHECK(saga_batch_former_submit(former, thread * 1000000, &call, hashes, 3, &id) == SAGA_OK);
      CHECK(saga_batch_former_set_outcome(former, id, thread == 2 && way == 0 ? &last : &nothing) == SAGA_OK);
      CHECK(saga_batch_former_form(former, thread * 1000000, &arrays, &batch) == SAGA_OK && batch.tokens == 12);
      CHECK(saga_page_table_told(table, thread, &last, 0) == SAGA_ERR_NOT_FOUND); /* it is running */
      CHECK(saga_batch_former_complete(former, one, running, 1, &ended) == SAGA_OK && ended == 1);
      if (thread == 2 && way == 1) CHECK(saga_page_table_told(table, thread, &last, 0) == SAGA_OK);
      if (thread == 2 && way == 2) CHECK(saga_page_table_thread_left(table, thread, 0) == SAGA_OK);
    }
    {
      const uint64_t first[3] = {10, 11, 12}, second[3] = {20, 21, 22};
      saga_prefix_hit_t hit;
      CHECK(saga_page_table_match(table, first, 3, 13, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 12);
      CHECK(saga_page_table_match(table, second, 3, 13, SAGA_TIER_GPU, &hit) == SAGA_OK && hit.tokens == 0);
    }
    CHECK(saga_page_table_told(table, 77, &last, 0) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_page_table_told(NULL, 1, &last, 0) == INVALID);
    CHECK(saga_page_table_told(table, 1, NULL, 0) == INVALID);
    wrong.stop_reason = 3;
    CHECK(saga_page_table_told(table, 1, &wrong, 0) == INVALID);
    CHECK(saga_batch_former_set_outcome(former, id, &nothing) == SAGA_ERR_NOT_FOUND);
    CHECK(saga_batch_former_set_outcome(NULL, id, &nothing) == INVALID);
    CHECK(saga_batch_former_set_outcome(former, id, NULL) == INVALID);
    CHECK(saga_batch_former_set_outcome(former, id, &wrong) == INVALID);
    CHECK(intact(former));
    saga_batch_former_destroy(former);
    saga_page_table_destroy(table);
  }
}

/* Callers of before `thread`: 32 bytes. */
static void test_an_older_call(void) {
  saga_page_table_t* table = small_table(6, 0);
  saga_batch_former_t* former = NULL;
  saga_batch_former_options_t options = small_options();
  saga_batch_call_t call;
  uint32_t id = SAGA_NONE;
  CHECK(saga_batch_former_create(table, &options, &former) == SAGA_OK);
  memset(&call, 0xFF, sizeof call);
  saga_batch_call_init_sized(&call, 32);
  call.prompt_tokens = 8;
  CHECK(call.reserved == 0xFFFFFFFFu);
  CHECK(saga_batch_former_submit(former, 0, &call, NULL, 0, &id) == SAGA_OK && id == 0);
  saga_batch_former_destroy(former);
  saga_page_table_destroy(table);
}

int main(void) {
  test_a_day();
  test_outcomes();
  test_an_older_call();
  test_swap();
  test_wrong_options();
  test_wrong_arguments();
  printf("%d checks passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
