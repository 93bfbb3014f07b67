/* The lineage from C99, as a gateway in front of inference servers would use it. Exits with 0. */
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

static saga_lineage_t* make(uint32_t max_heads, uint32_t max_blocks) {
  saga_lineage_options_t options;
  saga_lineage_t* lineage = NULL;
  saga_lineage_options_init(&options);
  CHECK(options.max_heads == 4096 && options.max_blocks == 1u << 20 && options.slack_blocks == 1);
  options.max_heads = max_heads;
  options.max_blocks = max_blocks;
  IS(SAGA_OK, saga_lineage_create(&options, &lineage));
  return lineage;
}

static saga_lineage_match_t identify(saga_lineage_t* lineage, const uint64_t* hashes, size_t count, uint64_t id) {
  saga_lineage_match_t match = {SAGA_LINEAGE_NEW, 99, 99, 99, 99, 99};
  IS(SAGA_OK, saga_lineage_identify(lineage, hashes, count, id, &match));
  return match;
}

static void is(saga_lineage_match_t match, saga_lineage_kind_t kind, uint32_t workflow, uint32_t head,
               uint32_t superseded, uint32_t common_blocks, uint32_t known_blocks) {
  CHECK(match.kind == kind && match.workflow == workflow && match.head == head);
  CHECK(match.superseded == superseded && match.common_blocks == common_blocks && match.known_blocks == known_blocks);
}

static void verify(const saga_lineage_t* lineage) {
  uint32_t intact = 0;
  IS(SAGA_OK, saga_lineage_verify(lineage, &intact));
  CHECK(intact == 1);
}

static void follows_a_workflow(void) {
  const uint64_t first[4] = {1, 2, 3, 4}, second[7] = {1, 2, 3, 4, 5, 6, 7}, agent[6] = {1, 2, 3, 4, 5, 60},
                 earlier[6] = {1, 2, 3, 4, 50, 51}, other[3] = {1, 2, 30};
  saga_lineage_t* lineage = make(16, 1000);
  saga_lineage_stats_t stats;
  size_t count = 9;
  is(identify(lineage, first, 4, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 0, 0, SAGA_NONE, 0, 0);
  IS(SAGA_OK, saga_lineage_ended(lineage, 0));
  is(identify(lineage, second, 7, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_CONTINUED, 0, 0, SAGA_NONE, 4, 4);
  /* While it runs another leaves its line; when both wait, one goes back. */
  is(identify(lineage, agent, 6, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_FORKED, 0, 1, SAGA_NONE, 5, 5);
  IS(SAGA_OK, saga_lineage_ended(lineage, 0));
  IS(SAGA_OK, saga_lineage_ended(lineage, 1));
  is(identify(lineage, earlier, 6, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_ROLLED_BACK, 0, 2, 0, 4, 4);
  /* The same beginning, as of a system prompt, joins no strangers. */
  is(identify(lineage, other, 3, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 1, 3, SAGA_NONE, 2, 2);
  verify(lineage);
  IS(SAGA_OK, saga_lineage_stats(lineage, &stats));
  CHECK(stats.workflows == 2 && stats.heads == 4 && stats.running_calls == 2 && stats.blocks == 11);
  CHECK(stats.calls_total[SAGA_LINEAGE_NEW] == 2 && stats.calls_total[SAGA_LINEAGE_CONTINUED] == 1 &&
        stats.calls_total[SAGA_LINEAGE_FORKED] == 1 && stats.calls_total[SAGA_LINEAGE_ROLLED_BACK] == 1 &&
        stats.calls_total[SAGA_LINEAGE_COMPACTED] == 0);
  CHECK(stats.superseded_total == 1 && stats.forgotten_total == 0 && stats.memory_bytes > 1000 * 40);

  IS(SAGA_ERR_WRONG_STATE, saga_lineage_closed(lineage, 0));
  IS(SAGA_OK, saga_lineage_ended(lineage, 2));
  IS(SAGA_OK, saga_lineage_closed(lineage, 0));
  IS(SAGA_ERR_NOT_FOUND, saga_lineage_closed(lineage, 0));
  IS(SAGA_OK, saga_lineage_forgotten(lineage, NULL, 0, &count));
  CHECK(count == 0);
  IS(SAGA_OK, saga_lineage_stats(lineage, &stats));
  CHECK(stats.workflows == 1 && stats.heads == 1 && stats.running_calls == 1 && stats.blocks == 3);
  verify(lineage);
  saga_lineage_destroy(lineage);
}

static void takes_ids(void) {
  const uint64_t conversation[4] = {1, 2, 3, 4}, summary[2] = {8, 9};
  const char name[] = "session-7";
  uint64_t id = 0, again = 0, other = 0;
  saga_lineage_match_t compacted;
  saga_lineage_t* lineage = make(16, 1000);
  IS(SAGA_OK, saga_lineage_id_of(name, strlen(name), &id));
  IS(SAGA_OK, saga_lineage_id_of(name, strlen(name), &again));
  IS(SAGA_OK, saga_lineage_id_of(name, strlen(name) - 1, &other));
  CHECK(id == again && id != other && id != SAGA_NO_WORKFLOW_ID);
  is(identify(lineage, conversation, 4, id), SAGA_LINEAGE_NEW, 0, 0, SAGA_NONE, 0, 0);
  is(identify(lineage, conversation, 4, other), SAGA_LINEAGE_NEW, 1, 1, SAGA_NONE, 4, 4);
  IS(SAGA_OK, saga_lineage_ended(lineage, 0));
  compacted = identify(lineage, summary, 2, id);
  is(compacted, SAGA_LINEAGE_COMPACTED, 0, 2, 0, 0, 0);
  verify(lineage);
  saga_lineage_destroy(lineage);
}

static void keeps_its_bounds(void) {
  const uint64_t a[2] = {1, 2}, b[2] = {3, 4}, c[2] = {5, 6}, d[2] = {7, 8};
  uint32_t forgotten[3] = {9, 9, 9};
  size_t count = 9;
  saga_lineage_match_t match = {SAGA_LINEAGE_COMPACTED, 9, 9, 9, 9, 9};
  saga_lineage_stats_t stats;
  saga_lineage_t* lineage = make(3, 5);
  is(identify(lineage, a, 2, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 0, 0, SAGA_NONE, 0, 0);
  is(identify(lineage, b, 2, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 1, 1, SAGA_NONE, 0, 0);
  IS(SAGA_ERR_FULL, saga_lineage_identify(lineage, c, 2, SAGA_NO_WORKFLOW_ID, &match));
  CHECK(match.kind == SAGA_LINEAGE_COMPACTED && match.workflow == 9);
  IS(SAGA_OK, saga_lineage_ended(lineage, 1));
  /* There is room for five blocks. */
  is(identify(lineage, c, 2, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 2, 2, SAGA_NONE, 0, 0);
  IS(SAGA_OK, saga_lineage_forgotten(lineage, forgotten, 3, &count));
  CHECK(count == 1 && forgotten[0] == 1 && forgotten[1] == 9);
  forgotten[0] = 9;
  IS(SAGA_OK, saga_lineage_forgotten(lineage, forgotten, 0, &count));
  CHECK(count == 1 && forgotten[0] == 9);
  IS(SAGA_OK, saga_lineage_ended(lineage, 2));
  is(identify(lineage, d, 2, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 1, 1, SAGA_NONE, 0, 0);
  IS(SAGA_OK, saga_lineage_stats(lineage, &stats));
  CHECK(stats.forgotten_total == 2 && stats.running_calls == 2);
  verify(lineage);
  saga_lineage_destroy(lineage);
}

/* Two heads, one of which runs: nothing that comes may ask for a third. */
static void lives_with_two_heads(void) {
  const uint64_t chain[6] = {1, 2, 3, 4, 5, 6}, fork[6] = {1, 2, 3, 4, 7, 8};
  saga_lineage_match_t match = {SAGA_LINEAGE_NEW, 0, 0, 0, 0, 0};
  saga_lineage_t* lineage = make(2, 100);
  is(identify(lineage, chain, 4, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 0, 0, SAGA_NONE, 0, 0);
  IS(SAGA_ERR_FULL, saga_lineage_identify(lineage, fork, 6, SAGA_NO_WORKFLOW_ID, &match));
  IS(SAGA_OK, saga_lineage_ended(lineage, 0));
  is(identify(lineage, chain, 6, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_CONTINUED, 0, 0, SAGA_NONE, 4, 4);
  IS(SAGA_OK, saga_lineage_ended(lineage, 0));
  is(identify(lineage, fork, 6, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_ROLLED_BACK, 0, 1, 0, 4, 4);
  verify(lineage);
  saga_lineage_destroy(lineage);
}

/* Hashes that are no chains at all are wrong answers at worst. */
static void survives_nonsense(void) {
  uint64_t state = 1, hashes[12];
  uint32_t running[8], calls = 0, step;
  saga_lineage_t* lineage = make(8, 20);
  for (step = 0; step < 20000; ++step) {
    size_t count, i;
    uint64_t id;
    saga_lineage_match_t match;
    state = state * 6364136223846793005u + 1442695040888963407u;
    count = (size_t)(state >> 33) % 13;
    id = (state >> 40) % 3 == 0 ? (state >> 50) % 4 : SAGA_NO_WORKFLOW_ID;
    for (i = 0; i < count; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      hashes[i] = (state >> 45) % 9;
    }
    if (calls == 7 || (state >> 62) == 0) {
      IS(calls == 7 ? SAGA_ERR_FULL : SAGA_ERR_NOT_FOUND,
         calls == 7 ? saga_lineage_identify(lineage, hashes, count, id, &match) : saga_lineage_ended(lineage, 8));
      if (calls > 0) {
        const uint32_t at = (uint32_t)(state >> 40) % calls;
        IS(SAGA_OK, saga_lineage_ended(lineage, running[at]));
        running[at] = running[--calls];
      }
    } else {
      match = identify(lineage, hashes, count, id);
      CHECK(match.head < 8 && match.workflow < 8 && match.common_blocks <= count && match.known_blocks <= count);
      running[calls++] = match.head;
    }
    if (step % 64 == 0) verify(lineage);
  }
  verify(lineage);
  saga_lineage_destroy(lineage);
}

static void refuses(void) {
  const uint64_t hashes[1] = {1};
  saga_lineage_options_t options;
  saga_lineage_match_t match;
  saga_lineage_stats_t stats;
  saga_lineage_t* lineage = NULL;
  uint64_t id = 0;
  uint32_t intact = 0;
  size_t count = 0;
  saga_lineage_options_init(&options);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(NULL, &lineage));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(&options, NULL));
  options.max_heads = 1;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(&options, &lineage));
  options.max_heads = (1u << 20) + 1;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(&options, &lineage));
  options.max_heads = 4;
  options.max_blocks = 0;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(&options, &lineage));
  options.max_blocks = 10;
  options.slack_blocks = 4097;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(&options, &lineage));
  options.slack_blocks = 0;
  options.struct_size = 3;
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_create(&options, &lineage));
  CHECK(lineage == NULL);
  lineage = make(4, 10);
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_id_of("x", 0, &id));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_id_of(NULL, 1, &id));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_id_of("x", 1, NULL));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_identify(NULL, hashes, 1, SAGA_NO_WORKFLOW_ID, &match));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_identify(lineage, NULL, 1, SAGA_NO_WORKFLOW_ID, &match));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_identify(lineage, hashes, 1, SAGA_NO_WORKFLOW_ID, NULL));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_ended(NULL, 0));
  IS(SAGA_ERR_NOT_FOUND, saga_lineage_ended(lineage, 0));
  IS(SAGA_ERR_NOT_FOUND, saga_lineage_ended(lineage, 4));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_closed(NULL, 0));
  IS(SAGA_ERR_NOT_FOUND, saga_lineage_closed(lineage, 0));
  IS(SAGA_ERR_NOT_FOUND, saga_lineage_closed(lineage, SAGA_NONE));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_forgotten(lineage, NULL, 1, &count));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_forgotten(lineage, &intact, 1, NULL));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_stats(NULL, &stats));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_stats(lineage, NULL));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_verify(lineage, NULL));
  IS(SAGA_ERR_INVALID_ARGUMENT, saga_lineage_verify(NULL, &intact));
  /* A prompt without a full block is a call like any other. */
  is(identify(lineage, NULL, 0, SAGA_NO_WORKFLOW_ID), SAGA_LINEAGE_NEW, 0, 0, SAGA_NONE, 0, 0);
  IS(SAGA_OK, saga_lineage_ended(lineage, 0));
  IS(SAGA_ERR_NOT_FOUND, saga_lineage_ended(lineage, 0));
  verify(lineage);
  saga_lineage_destroy(lineage);
  saga_lineage_destroy(NULL);
}

int main(void) {
  follows_a_workflow();
  takes_ids();
  keeps_its_bounds();
  lives_with_two_heads();
  survives_nonsense();
  refuses();
  return 0;
}
