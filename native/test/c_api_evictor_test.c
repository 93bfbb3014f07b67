/* The evictor from C99, as a server's block pool would use it. Exits with 0. */
#include <stdio.h>
#include <stdlib.h>

#include "saga/saga.h"

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                        \
    }                                                                 \
  } while (0)
#define IS(expected, call) CHECK((call) == (expected))

static const saga_call_outcome_t kUnknown = {SAGA_STOP_UNKNOWN, SAGA_TOOL_NONE, 0, 0, UINT64_MAX};
enum { kSecond = 1000000 };

static saga_evictor_t* make(uint32_t blocks) {
  saga_evictor_options_t options;
  saga_evictor_t* evictor = NULL;
  saga_evictor_options_init(&options);
  CHECK(options.block_tokens == 16 && options.ghosts == SAGA_NONE && options.policy == SAGA_EVICTOR_SAGA);
  options.block_count = blocks;
  options.max_calls = 8;
  IS(SAGA_OK, saga_evictor_create(&options, &evictor));
  return evictor;
}

static void verify(const saga_evictor_t* evictor) {
  uint32_t intact = 0;
  IS(SAGA_OK, saga_evictor_verify(evictor, &intact));
  CHECK(intact == 1);
}

/* A call of three pages: found or taken, stored, ended, freed. Blocks are written to `blocks`. */
static void run(saga_evictor_t* evictor, uint64_t thread, const uint64_t* hashes, uint32_t* blocks, uint64_t now,
                saga_call_outcome_t outcome) {
  uint32_t resident = 0;
  saga_evictor_end_t end;
  uint32_t freed[3];
  IS(SAGA_OK, saga_evictor_start(evictor, 5, thread, hashes, 3, SAGA_PROMPT_TOOL, now, &resident));
  IS(SAGA_OK, saga_evictor_pin(evictor, blocks, resident));
  IS(SAGA_OK, saga_evictor_take(evictor, blocks + resident, 3 - resident, now));
  IS(SAGA_OK, saga_evictor_store(evictor, resident > 0 ? &hashes[resident - 1] : NULL, hashes + resident,
                                 blocks + resident, 3 - resident));
  end.call = 5;
  end.last_block = blocks[2];
  end.outcome = outcome;
  IS(SAGA_OK, saga_evictor_end(evictor, &end, 1, now + kSecond));
  freed[0] = blocks[2];
  freed[1] = blocks[1];
  freed[2] = blocks[0];
  IS(SAGA_OK, saga_evictor_unpin(evictor, freed, 3));
  verify(evictor);
}

static void decides(void) {
  const uint64_t first[3] = {10, 11, 12}, second[3] = {20, 21, 22}, third[3] = {10, 11, 13};
  saga_call_outcome_t last = {SAGA_STOP_END_TURN, SAGA_TOOL_NONE, 1, 100, UINT64_MAX};
  uint32_t a[3], b[3], taken[8];
  saga_evictor_stats_t stats;
  saga_regret_t regret;
  saga_evictor_t* evictor = make(7);
  run(evictor, 1, first, a, 0, kUnknown);
  run(evictor, 2, second, b, 2 * kSecond, last);
  CHECK(a[0] == 0 && a[2] == 2 && b[0] == 3 && b[2] == 5);
  run(evictor, 3, third, a, 4 * kSecond, kUnknown); /* finds two pages and takes the block that was never used */
  CHECK(a[2] == 6);
  IS(SAGA_OK, saga_evictor_take(evictor, taken, 4, 6 * kSecond));
  CHECK(taken[0] == 5 && taken[1] == 4 && taken[2] == 3); /* what is over; then what is oldest */
  CHECK(taken[3] == 2);
  IS(SAGA_OK, saga_evictor_stats(evictor, &stats));
  CHECK(stats.free_blocks == 3 && stats.pages == 3 && stats.evicted_total == 4 && stats.bypassed_total == 4);
  CHECK(stats.requested_pages_total == 9 && stats.missed_pages_total == 7 && stats.heads == 3 &&
        stats.memory_bytes > 0);
  IS(SAGA_OK, saga_evictor_regret(evictor, &regret));
  CHECK(regret.calls == 3 && regret.missed_pages == 7 && regret.optimum_missed_pages == 7);
  IS(SAGA_ERR_OUT_OF_BLOCKS, saga_evictor_take(evictor, taken, 4, 6 * kSecond));
  IS(SAGA_OK, saga_evictor_prefer(evictor, a, 1));
  IS(SAGA_OK, saga_evictor_take(evictor, taken, 1, 6 * kSecond));
  CHECK(taken[0] == a[0]);
  verify(evictor);
  IS(SAGA_OK, saga_evictor_clear(evictor));
  IS(SAGA_OK, saga_evictor_stats(evictor, &stats));
  CHECK(stats.pages == 0 && stats.hollow == 0);
  verify(evictor);
  saga_evictor_destroy(evictor);
}

static void refuses(void) {
  const uint64_t hashes[2] = {1, 2};
  const uint64_t threads[1] = {77};
  uint32_t blocks[4] = {0, 1, 1, 9}, resident = 0, calls[2] = {3, 3};
  saga_evictor_end_t end = {3, SAGA_NONE, {0, 0, 0, 0, UINT64_MAX}};
  saga_evictor_options_t options;
  saga_evictor_t* evictor = NULL;
  saga_evictor_options_init(&options);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_create(&options, &evictor)); /* no blocks */
  options.block_count = 4;
  options.policy = 2;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_create(&options, &evictor));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_create(NULL, &evictor));
  evictor = make(4);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_pin(evictor, blocks + 3, 1));
  IS(SAGA_ERR_WRONG_STATE, saga_evictor_pin(evictor, blocks, 3));
  IS(SAGA_ERR_WRONG_STATE, saga_evictor_unpin(evictor, blocks, 1));
  IS(SAGA_OK, saga_evictor_pin(evictor, blocks, 2));
  IS(SAGA_ERR_WRONG_STATE, saga_evictor_unpin(evictor, blocks, 3));
  IS(SAGA_ERR_WRONG_STATE, saga_evictor_prefer(evictor, blocks, 1));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_store(evictor, NULL, NULL, blocks, 2));
  IS(SAGA_OK, saga_evictor_store(evictor, NULL, hashes, blocks, 2));
  IS(SAGA_OK, saga_evictor_drop(evictor, blocks, 2));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_start(evictor, 8, 1, hashes, 2, SAGA_PROMPT_TOOL, 5, &resident));
  IS(SAGA_ERR_NOT_FOUND, saga_evictor_end(evictor, &end, 1, 5));
  IS(SAGA_ERR_NOT_FOUND, saga_evictor_preempt(evictor, calls, 1, 5));
  IS(SAGA_OK, saga_evictor_start(evictor, 3, 1, hashes, 2, SAGA_PROMPT_TOOL, 5, &resident));
  IS(SAGA_ERR_WRONG_STATE, saga_evictor_start(evictor, 3, 1, hashes, 2, SAGA_PROMPT_TOOL, 5, &resident));
  IS(SAGA_ERR_TIME_REVERSED, saga_evictor_end(evictor, &end, 1, 4));
  IS(SAGA_ERR_WRONG_STATE, saga_evictor_preempt(evictor, calls, 2, 5));
  IS(SAGA_OK, saga_evictor_preempt(evictor, calls, 1, 6));
  IS(SAGA_OK, saga_evictor_start(evictor, 3, 1, hashes, 2, SAGA_PROMPT_TOOL, 7, &resident));
  end.outcome.tool_class = 5;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_end(evictor, &end, 1, 8));
  end.outcome.tool_class = SAGA_TOOL_WEB_API;
  IS(SAGA_OK, saga_evictor_end(evictor, &end, 1, 8));
  end.outcome.session_end = 2;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_told(evictor, 1, &end.outcome, 8));
  end.outcome.session_end = 1;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_told(evictor, 1, NULL, 8));
  IS(SAGA_ERR_TIME_REVERSED, saga_evictor_told(evictor, 1, &end.outcome, 7));
  IS(SAGA_ERR_NOT_FOUND, saga_evictor_told(evictor, 2, &end.outcome, 8));
  IS(SAGA_OK, saga_evictor_told(evictor, 1, &end.outcome, 8));
  IS(SAGA_OK, saga_evictor_threads_left(evictor, threads, 1, 9));
  IS(SAGA_OK, saga_evictor_told(evictor, 1, &end.outcome, 9));
  IS(SAGA_OK, saga_evictor_threads_left(evictor, (const uint64_t[]){1}, 1, 9));
  IS(SAGA_ERR_NOT_FOUND, saga_evictor_told(evictor, 1, &end.outcome, 9));
  IS(SAGA_ERR_TIME_REVERSED, saga_evictor_take(evictor, blocks, 1, 8));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_stats(evictor, NULL));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_evictor_verify(NULL, &resident));
  verify(evictor);
  saga_evictor_destroy(evictor);
  saga_evictor_destroy(NULL);
}

int main(void) {
  decides();
  refuses();
  return 0;
}
