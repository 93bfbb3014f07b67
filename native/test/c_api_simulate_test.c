/* The C interface of workloads and simulations, used from C: a small workload worked out by hand, and every refusal. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "saga/saga.h"

static int passed = 0;
static int failed = 0;
#define CHECK(condition)                                             \
  do {                                                               \
    if (condition) {                                                 \
      ++passed;                                                      \
    } else {                                                         \
      ++failed;                                                      \
      printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                \
  } while (0)
#define OK(call) CHECK((call) == SAGA_OK)
#define INVALID(call) CHECK((call) == SAGA_ERR_INVALID_ARGUMENT)

/* Two tasks. The first: a prompt of 64 tokens, then, 1 s after its answer of 16, one of 96 that continues it. The second: one
 * call that shares the first two blocks. Blocks of 16 tokens. */
static const uint32_t tenant[] = {0, 1};
static const uint32_t first_call[] = {0, 2, 3};
static const uint64_t expected[] = {2000000, 0};
static const uint32_t thread[] = {0, 0, 1};
static const uint32_t prompt_tokens[] = {64, 96, 48};
static const uint32_t output_tokens[] = {16, 1, 1};
static const uint8_t prompt_kind[] = {SAGA_PROMPT_START, SAGA_PROMPT_TOOL, SAGA_PROMPT_START};
static const uint8_t stop_reason[] = {SAGA_STOP_TOOL_USE, SAGA_STOP_END_TURN, SAGA_STOP_END_TURN};
static const uint8_t tool_class[] = {SAGA_TOOL_WEB_API, SAGA_TOOL_NONE, SAGA_TOOL_NONE};
static const uint32_t first_predecessor[] = {0, 0, 1, 1};
static const uint32_t predecessor_call[] = {0};
static const uint64_t predecessor_gap[] = {1000000};
static const uint32_t first_run[] = {0, 1, 2, 4};
static const uint64_t run_first_id[] = {10, 10, 10, 99};
static const uint32_t run_length[] = {4, 6, 2, 1};

/* Two graphs: a loop of two steps, and a single step. */
static const saga_agent_graph_t graph[] = {{0, 2, 0, 2, 64, 3, 20}, {2, 1, 2, 0, 0, 0, 0}};
static const saga_agent_step_t step[] = {
    {SAGA_TOOL_WEB_API, 0, 16, 16, 1}, {SAGA_TOOL_NONE, 0, 1, 0, 0}, {0, 0, 1, 0, 0}};
static const saga_agent_edge_t edge[] = {{0, 0, 0.25}, {0, 1, 0.75}};
static const uint32_t task_graph[] = {0, UINT32_MAX};
static const double tenant_weight[] = {3, 1};

static saga_workload_columns_t columns(void) {
  saga_workload_columns_t c;
  memset(&c, 0, sizeof c);
  c.struct_size = sizeof c;
  c.block_tokens = 16;
  c.task_count = 2;
  c.call_count = 3;
  c.predecessor_count = 1;
  c.run_count = 4;
  c.task_tenant = tenant;
  c.task_first_call = first_call;
  c.task_expected = expected;
  c.call_thread = thread;
  c.prompt_tokens = prompt_tokens;
  c.output_tokens = output_tokens;
  c.prompt_kind = prompt_kind;
  c.stop_reason = stop_reason;
  c.tool_class = tool_class;
  c.call_first_predecessor = first_predecessor;
  c.predecessor_call = predecessor_call;
  c.predecessor_gap = predecessor_gap;
  c.call_first_run = first_run;
  c.run_first_id = run_first_id;
  c.run_length = run_length;
  return c;
}

static saga_workload_columns_t declared(void) {
  saga_workload_columns_t c = columns();
  c.tenant_count = 2;
  c.graph_count = 2;
  c.step_count = 3;
  c.edge_count = 2;
  c.tenant_weight = tenant_weight;
  c.task_graph = task_graph;
  c.graph = graph;
  c.step = step;
  c.edge = edge;
  return c;
}

static void refused_columns(void) {
  saga_workload_t* workload = NULL;
  saga_workload_columns_t c;
  static const uint32_t falling[] = {0, 2, 1};
  static const uint32_t one_empty[] = {0, 3, 3};
  static const uint32_t zero[] = {0, 0, 0};
  static const uint32_t high_thread[] = {0, 0, 3};
  static const uint8_t bad_enum[] = {0, 0, 9};
  static const uint32_t forward[] = {1};
  static const uint64_t overflow[] = {UINT64_MAX, 0, 0, 0};
  static const uint32_t no_length[] = {1, 0, 1, 1};
  static const uint64_t late[] = {UINT64_MAX, 0};
  c = columns();
  INVALID(saga_workload_create(NULL, &workload));
  INVALID(saga_workload_create(&c, NULL));
#define REFUSED(field, value) \
  c = columns();              \
  c.field = value;            \
  INVALID(saga_workload_create(&c, &workload))
  REFUSED(struct_size, 2);
  REFUSED(block_tokens, 0);
  REFUSED(block_tokens, 4097);
  REFUSED(task_count, 0);
  REFUSED(call_count, 0);
  REFUSED(predecessor_count, 2);
  REFUSED(run_count, 3);
  REFUSED(task_tenant, NULL);
  REFUSED(task_first_call, NULL);
  REFUSED(task_first_call, falling);
  REFUSED(task_first_call, one_empty);
  REFUSED(task_expected, late);
  REFUSED(call_thread, NULL);
  REFUSED(call_thread, high_thread);
  REFUSED(prompt_tokens, NULL);
  REFUSED(prompt_tokens, zero);
  REFUSED(output_tokens, zero);
  REFUSED(prompt_kind, bad_enum);
  REFUSED(stop_reason, bad_enum);
  REFUSED(tool_class, bad_enum);
  REFUSED(call_first_predecessor, NULL);
  REFUSED(predecessor_call, NULL);
  REFUSED(predecessor_call, forward);
  REFUSED(predecessor_gap, late);
  REFUSED(call_first_run, NULL);
  REFUSED(run_first_id, overflow);
  REFUSED(run_length, no_length);
  CHECK(workload == NULL);
}

/* What clients declare: as a whole, and every refusal. */
static void declarations(void) {
  saga_workload_t* workload = NULL;
  saga_workload_columns_t c = declared();
  static const double weightless[] = {3, 0};
  static const double heavy[] = {3, HUGE_VAL};
  static const double unknown_weight[] = {NAN, 1};
  static const uint32_t no_such_graph[] = {2, 0};
  static const saga_agent_graph_t shifted[] = {{0, 2, 0, 2, 64, 3, 20}, {1, 1, 2, 0, 0, 0, 0}};
  static const saga_agent_graph_t too_long[] = {{0, 2, 0, 2, 64, 3, 20}, {2, 2, 2, 0, 0, 0, 0}};
  static const saga_agent_graph_t hollow[] = {{0, 3, 0, 2, 64, 3, 20}, {3, 0, 2, 0, 0, 0, 0}};
  static const saga_agent_graph_t negative[] = {{0, 2, 0, 2, -1, 3, 20}, {2, 1, 2, 0, 0, 0, 0}};
  static const saga_agent_graph_t endless[] = {{0, 2, 0, 2, 64, 3, HUGE_VAL}, {2, 1, 2, 0, 0, 0, 0}};
  static const saga_agent_step_t bad_tool[] = {{5, 0, 16, 16, 1}, {0, 0, 1, 0, 0}, {0, 0, 1, 0, 0}};
  static const saga_agent_step_t bad_gap[] = {{0, 0, 16, 16, NAN}, {0, 0, 1, 0, 0}, {0, 0, 1, 0, 0}};
  static const saga_agent_step_t bad_reserved[] = {{0, 1, 16, 16, 1}, {0, 0, 1, 0, 0}, {0, 0, 1, 0, 0}};
  static const saga_agent_edge_t foreign[] = {{0, 0, 0.25}, {0, 2, 0.75}};
  static const saga_agent_edge_t unsorted[] = {{0, 1, 0.75}, {0, 0, 0.25}};
  static const saga_agent_edge_t too_likely[] = {{0, 0, 0.5}, {0, 1, 0.75}};
  static const saga_agent_edge_t unlikely[] = {{0, 0, -0.5}, {0, 1, 0.75}};
  static const saga_agent_edge_t unknown[] = {{0, 0, NAN}, {0, 1, 0.75}};
  OK(saga_workload_create(&c, &workload));
  saga_workload_destroy(workload);
  workload = NULL;
#define REFUSED_DECLARATION(field, value) \
  c = declared();                         \
  c.field = value;                        \
  INVALID(saga_workload_create(&c, &workload))
  REFUSED_DECLARATION(tenant_weight, NULL);
  REFUSED_DECLARATION(tenant_weight, weightless);
  REFUSED_DECLARATION(tenant_weight, heavy);
  REFUSED_DECLARATION(tenant_weight, unknown_weight);
  REFUSED_DECLARATION(tenant_count, (1u << 20) + 1);
  REFUSED_DECLARATION(task_graph, no_such_graph);
  REFUSED_DECLARATION(graph, NULL);
  REFUSED_DECLARATION(graph, shifted);
  REFUSED_DECLARATION(graph, too_long);
  REFUSED_DECLARATION(graph, hollow);
  REFUSED_DECLARATION(graph, negative);
  REFUSED_DECLARATION(graph, endless);
  REFUSED_DECLARATION(graph_count, 1);
  REFUSED_DECLARATION(step, NULL);
  REFUSED_DECLARATION(step, bad_tool);
  REFUSED_DECLARATION(step, bad_gap);
  REFUSED_DECLARATION(step, bad_reserved);
  REFUSED_DECLARATION(step_count, 2);
  REFUSED_DECLARATION(edge, NULL);
  REFUSED_DECLARATION(edge, foreign);
  REFUSED_DECLARATION(edge, unsorted);
  REFUSED_DECLARATION(edge, too_likely);
  REFUSED_DECLARATION(edge, unlikely);
  REFUSED_DECLARATION(edge, unknown);
  REFUSED_DECLARATION(edge_count, 1);
  CHECK(workload == NULL);
}

static void cache_replay(const saga_workload_t* workload) {
  static const uint32_t call[] = {0, 2, 1};
  static const uint64_t start[] = {0, 100, 200};
  static const uint64_t end[] = {50, 150, 250};
  static const uint64_t early[] = {0, 100, 199};
  static const uint32_t unknown[] = {0, 2, 3};
  static const uint32_t twice[] = {0, 0, 1};
  static const uint64_t never[] = {50, 150, UINT64_MAX};
  saga_cache_replay_t* replay = NULL;
  saga_cache_options_t options;
  saga_cache_result_t result;
  uint64_t pages = 0;
  uint64_t progress = 0;

  static const uint8_t ends[] = {0, 1, 1};
  static const uint8_t no_flag[] = {0, 2, 1};
  static const uint64_t gaps[] = {150, UINT64_MAX, UINT64_MAX};
  static const uint64_t long_gap[] = {UINT64_MAX - 1, UINT64_MAX, UINT64_MAX};
  saga_cache_schedule_t schedule;
  memset(&schedule, 0, sizeof schedule);
  schedule.struct_size = sizeof schedule;
  schedule.count = 3;
  schedule.call = call;
  schedule.start = start;
  schedule.end = end;
  {
    const saga_cache_schedule_t good = schedule;
    INVALID(saga_cache_replay_create(NULL, 16, &good, &replay));
    INVALID(saga_cache_replay_create(workload, 16, NULL, &replay));
    INVALID(saga_cache_replay_create(workload, 16, &good, NULL));
    INVALID(saga_cache_replay_create(workload, 24, &good, &replay));
    INVALID(saga_cache_replay_create(workload, 0, &good, &replay));
#define REFUSED_SCHEDULE(field, value) \
  schedule = good;                     \
  schedule.field = value;              \
  INVALID(saga_cache_replay_create(workload, 16, &schedule, &replay))
    REFUSED_SCHEDULE(struct_size, 3);
    REFUSED_SCHEDULE(call, NULL);
    REFUSED_SCHEDULE(call, unknown);
    REFUSED_SCHEDULE(call, twice);
    REFUSED_SCHEDULE(start, NULL);
    REFUSED_SCHEDULE(end, early);
    REFUSED_SCHEDULE(end, never);
    REFUSED_SCHEDULE(count, 4);
    REFUSED_SCHEDULE(session_end, no_flag);
    REFUSED_SCHEDULE(declared_gap, long_gap);
    CHECK(replay == NULL);
    schedule = good;
    schedule.session_end = ends;
    schedule.declared_gap = gaps;
    OK(saga_cache_replay_create(workload, 16, &schedule, &replay));
    saga_cache_replay_destroy(replay);
    schedule = good;
    OK(saga_cache_replay_create(workload, 16, &schedule, &replay));
  }
  OK(saga_cache_replay_distinct_pages(replay, &pages));
  CHECK(pages == 7); /* six of the first task, one private of the second */
  INVALID(saga_cache_replay_distinct_pages(NULL, &pages));
  INVALID(saga_cache_replay_distinct_pages(replay, NULL));

  saga_cache_options_init(&options);
  CHECK(options.struct_size == sizeof options && options.policy == SAGA_EVICTION_LRU &&
        options.model == SAGA_CACHE_PINNED && options.request_limit == UINT64_MAX && options.nanoseconds == NULL);
  options.capacity_pages = 7;
  OK(saga_cache_replay_run(replay, &options, &result, &progress));
  /* 4 missed; of 3 the first two hit; of 6 the first four. */
  CHECK(result.requests == 3 && result.requested_pages == 13 && result.missed_pages == 4 + 1 + 2);
  CHECK(result.evicted_pages == 0 && result.overflows == 0 && result.eviction_nanoseconds == 0 &&
        result.policy_nanoseconds == 0 && progress == 3);
  /* LRU with room for 5: the last call needs 6 pages, all its own pinned. The second call's private page goes first only when
   * it is the oldest: after call 2 the list holds, oldest first, pages 3, 2 of the first prompt, then those of call 2. */
  options.capacity_pages = 5;
  OK(saga_cache_replay_run(replay, &options, &result, NULL));
  CHECK(result.missed_pages == 7 && result.overflows == 1);
  options.policy = SAGA_EVICTION_BELADY;
  options.model = SAGA_CACHE_ATOMIC;
  options.capacity_pages = 4;
  OK(saga_cache_replay_run(replay, &options, &result, NULL));
  CHECK(result.missed_pages == 7); /* it passes the private page by and keeps all four that return */
  options.policy = SAGA_EVICTION_LRU;
  OK(saga_cache_replay_run(replay, &options, &result, NULL));
  CHECK(result.missed_pages == 8); /* the private page pushes the last page of the first prompt out */
  options.request_limit = 1;
  OK(saga_cache_replay_run(replay, &options, &result, NULL));
  CHECK(result.requests == 1 && result.missed_pages == 4);

#define REFUSED_RUN(field, value)    \
  saga_cache_options_init(&options); \
  options.field = value;             \
  INVALID(saga_cache_replay_run(replay, &options, &result, NULL))
  REFUSED_RUN(policy, 7);
  REFUSED_RUN(model, 2);
  REFUSED_RUN(capacity_pages, 0);
  REFUSED_RUN(infer_threads, 2);
  REFUSED_RUN(reserved, 1);
  REFUSED_RUN(struct_size, 3);
  saga_cache_options_init(&options);
  INVALID(saga_cache_replay_run(NULL, &options, &result, NULL));
  INVALID(saga_cache_replay_run(replay, NULL, &result, NULL));
  INVALID(saga_cache_replay_run(replay, &options, NULL, NULL));
  saga_cache_replay_destroy(replay);
  saga_cache_replay_destroy(NULL);
}

struct journal {
  uint8_t bytes[1 << 16];
  size_t size;
};

static void keep(void* context, const uint8_t* bytes, size_t count) {
  struct journal* journal = (struct journal*)context;
  if (journal->size + count > sizeof journal->bytes) return;
  memcpy(journal->bytes + journal->size, bytes, count);
  journal->size += count;
}

/* Calls of one thread may overlap: the result is that of threads of their own, as these policies learn nothing from threads. */
static void overlapping_threads(void) {
  static const uint32_t one_thread[] = {0, 0, 0};
  saga_workload_columns_t c = columns();
  saga_workload_t* workload = NULL;
  saga_cluster_t* made = NULL;
  saga_cluster_options_t options;
  saga_run_options_t run;
  saga_run_result_t own;
  saga_run_result_t shared;
  saga_cluster_options_init(&options);
  saga_run_options_init(&run);
  run.live = 2;
  options.workers = 1;
  OK(saga_workload_create(&c, &workload));
  OK(saga_cluster_create(workload, &options, &made));
  OK(saga_cluster_run(made, &run, &own, NULL));
  saga_cluster_destroy(made);
  saga_workload_destroy(workload);
  c.call_thread = one_thread;
  OK(saga_workload_create(&c, &workload));
  OK(saga_cluster_create(workload, &options, &made));
  OK(saga_cluster_run(made, &run, &shared, NULL));
  CHECK(shared.tasks_completed == 2 && shared.output_tokens == own.output_tokens);
  saga_cluster_destroy(made);
  saga_workload_destroy(workload);
}

static void cluster(const saga_workload_t* workload) {
  static struct journal journal;
  saga_cluster_options_t options;
  saga_run_options_t run;
  saga_run_result_t result;
  saga_run_result_t again;
  saga_cluster_t* made = NULL;
  saga_engine_t* rebuilt = NULL;
  saga_replay_result_t replayed;
  uint64_t digest = 0;
  uint64_t progress = 0;
  uint32_t live = 0;
  double rate = 0;
  double task_seconds[2] = {0, 0};

  saga_cluster_options_init(&options);
  CHECK(options.workers == 16 && options.hardware == SAGA_HARDWARE_A100_TP4 && options.page_tokens == 16 &&
        options.max_sequences == 256 && options.token_budget == 2048 && options.kv_tokens == 0 &&
        options.host_tier_tokens == 0 && options.link_bytes_per_second == 25000000000u && options.token_grain == 1);
#define REFUSED_CLUSTER(field, value)  \
  saga_cluster_options_init(&options); \
  options.field = value;               \
  INVALID(saga_cluster_create(workload, &options, &made))
  REFUSED_CLUSTER(workers, 0);
  REFUSED_CLUSTER(workers, 1025);
  REFUSED_CLUSTER(hardware, 4);
  REFUSED_CLUSTER(page_tokens, 0);
  REFUSED_CLUSTER(page_tokens, 24);
  REFUSED_CLUSTER(max_sequences, 0);
  REFUSED_CLUSTER(token_budget, 1);
  REFUSED_CLUSTER(kv_tokens, 15);
  REFUSED_CLUSTER(kv_tokens, 80); /* a call of 96 tokens does not fit */
  REFUSED_CLUSTER(link_bytes_per_second, 0);
  REFUSED_CLUSTER(token_grain, 0);
  REFUSED_CLUSTER(token_grain, 65);
  REFUSED_CLUSTER(whole_prompts, 2);
  REFUSED_CLUSTER(struct_size, 1);
  saga_cluster_options_init(&options);
  INVALID(saga_cluster_create(NULL, &options, &made));
  INVALID(saga_cluster_create(workload, NULL, &made));
  INVALID(saga_cluster_create(workload, &options, NULL));
  CHECK(made == NULL);
  options.workers = 2;
  OK(saga_cluster_create(workload, &options, &made));

  saga_run_options_init(&run);
  CHECK(run.policy == SAGA_POLICY_AFFINITY && run.hints == SAGA_HINTS_GRAPH && run.without == 0 && run.live == 0 &&
        run.seed == 0 && run.task_seconds == NULL && isnan(run.parameters[0]) && isnan(run.parameters[7]));
  INVALID(saga_cluster_run(made, &run, &result, NULL)); /* neither live nor rate */
  run.live = 1;
  run.rate = 1;
  INVALID(saga_cluster_run(made, &run, &result, NULL)); /* both */
  run.rate = 0;
  run.journal = keep;
  run.journal_context = &journal;
  OK(saga_cluster_run(made, &run, &result, &progress));
  CHECK(result.tasks_completed == 2 && progress == 2);
  CHECK(result.capacity_pages == 28000 && result.requested_pages == 4 + 6 + 3);
  /* The second call of the first task finds its five leading pages: four of the prompt and the page of answer and tail; the
   * other task the two it shares. */
  CHECK(result.missed_pages == 4 + 2 + 1 && result.evicted_pages == 0);
  CHECK(result.output_tokens == 18 && result.preemptions == 0);
  CHECK(result.completion.mean > 0 && result.completion_without_gaps.mean < result.completion.mean);
  CHECK(result.slo_attainment == 1);

  OK(saga_engine_replay(journal.bytes, journal.size, &rebuilt, &replayed));
  CHECK(replayed.decisions == 3);
  OK(saga_engine_digest(rebuilt, &digest));
  CHECK(digest == result.engine_digest);
  saga_engine_destroy(rebuilt);

  run.journal = NULL;
  OK(saga_cluster_run(made, &run, &again, NULL));
  CHECK(memcmp(&result, &again, sizeof result) == 0);
  run.hints = SAGA_HINTS_NONE;
  run.task_seconds = task_seconds;
  OK(saga_cluster_run(made, &run, &again, NULL));
  CHECK(again.completion.mean == result.completion.mean && again.engine_digest != 0);
  CHECK(fabs((task_seconds[0] + task_seconds[1]) / 2 - result.completion.mean) < 1e-9);
  CHECK(task_seconds[0] > 1 && task_seconds[1] > 0 && task_seconds[1] < task_seconds[0]);
  CHECK(again.prefilled_tokens == result.prefilled_tokens && again.prefilled_tokens > 0);
  CHECK(again.leases_granted == 0 && again.leases_refused == 0 && again.copied_pages == 0 && again.held_calls == 0 &&
        again.steals == 0 && again.loaded_tokens == 0);
#define REFUSED_OPTION(field, value) \
  saga_run_options_init(&run);       \
  run.live = 1;                      \
  run.field = value;                 \
  INVALID(saga_cluster_run(made, &run, &result, NULL))
  REFUSED_OPTION(struct_size, 3);
  REFUSED_OPTION(policy, 10);
  REFUSED_OPTION(hints, 2);
  REFUSED_OPTION(without, SAGA_PART_STEALING); /* affinity has no parts */
  REFUSED_OPTION(reserved, 1);
  REFUSED_OPTION(parameters[3], HUGE_VAL);
  REFUSED_OPTION(parameters[7], -1.1e9);
  REFUSED_OPTION(rate, 1);
  REFUSED_OPTION(live, 0);
  saga_run_options_init(&run);
  run.live = 1;
  for (run.policy = SAGA_POLICY_KV_ROUTER; run.policy <= SAGA_POLICY_SAGA; ++run.policy) {
    OK(saga_cluster_run(made, &run, &result, NULL));
    CHECK(result.tasks_completed == 2 && result.missed_pages >= 7);
    CHECK((result.engine_digest == 0) == (run.policy != SAGA_POLICY_SAGA));
  }
  run.policy = SAGA_POLICY_SAGA_PAPER;
  run.without = 255;
  OK(saga_cluster_run(made, &run, &result, NULL));
  run.policy = SAGA_POLICY_SAGA;
  OK(saga_cluster_run(made, &run, &result, NULL));
  run.without = 256;
  INVALID(saga_cluster_run(made, &run, &result, NULL));
  run.without = 0;
  OK(saga_cluster_run(made, &run, &result, NULL));
  CHECK(result.engine_digest != 0);
  run.policy = SAGA_POLICY_SAGA_PAPER;
  run.journal = keep; /* it does not run through the engine */
  INVALID(saga_cluster_run(made, &run, &result, NULL));
  saga_run_options_init(&run);
  run.live = 1;
  run.policy = SAGA_POLICY_TTL;
  INVALID(saga_cluster_run(NULL, &run, &result, NULL));
  INVALID(saga_cluster_run(made, NULL, &result, NULL));
  INVALID(saga_cluster_run(made, &run, NULL, NULL));
  OK(saga_cluster_run(made, &run, &result, NULL));

  CHECK(saga_cluster_saturation(made, &run, &rate, NULL) == SAGA_ERR_NOT_FOUND); /* two tasks saturate nothing */
  INVALID(saga_cluster_saturation(NULL, &run, &rate, NULL));
  INVALID(saga_cluster_saturation(made, NULL, &rate, NULL));
  INVALID(saga_cluster_saturation(made, &run, NULL, NULL));
  /* Mean context (72 + 96.5 + 48.5) / 3 = 72.33 tokens; room 2 x 448,000. */
  OK(saga_cluster_live_for_pressure(made, 1, &live));
  CHECK(live == 12387);
  INVALID(saga_cluster_live_for_pressure(made, 0, &live));
  INVALID(saga_cluster_live_for_pressure(NULL, 1, &live));
  INVALID(saga_cluster_live_for_pressure(made, 1, NULL));
  saga_cluster_destroy(made);
  saga_cluster_destroy(NULL);
}

int main(void) {
  const saga_workload_columns_t c = columns();
  saga_workload_t* workload = NULL;
  refused_columns();
  declarations();
  OK(saga_workload_create(&c, &workload));
  cache_replay(workload);
  cluster(workload);
  overlapping_threads();
  saga_workload_destroy(workload);
  saga_workload_destroy(NULL);
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
