/* simulate.h - workloads, cache replay and cluster simulation. Included by saga.h, whose conventions hold.
 *
 * A workload is made once from columns, checked and copied; afterwards it never changes and may be used by any number of
 * simulations, also on several threads at once. See native/core/sim/workload.hpp for the meaning of each column.
 */
#ifndef SAGA_SIMULATE_H
#define SAGA_SIMULATE_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------------------- workload */

typedef struct saga_workload_t saga_workload_t;

typedef struct saga_workload_columns_t {
  uint32_t struct_size;
  uint32_t block_tokens; /* tokens of one block id, 1 to 4,096 */
  uint32_t task_count;   /* at least 1 */
  uint32_t call_count;   /* at least 1 */
  uint32_t predecessor_count;
  uint32_t run_count;

  const uint32_t* task_tenant;     /* [task_count] */
  const uint32_t* task_first_call; /* [task_count + 1], 0 first, call_count last; every task has a call */
  const uint64_t* task_expected;   /* [task_count] expected completion in microseconds, 0 = none; or NULL */

  const uint32_t* call_thread;    /* [call_count] below call_count */
  const uint32_t* prompt_tokens;  /* [call_count] 1 to 2^28 */
  const uint32_t* output_tokens;  /* [call_count] 1 to 2^28 */
  const uint8_t* prompt_kind;     /* [call_count] saga_prompt_kind_t */
  const uint8_t* stop_reason;     /* [call_count] saga_stop_t */
  const uint8_t* tool_class;      /* [call_count] saga_tool_t */

  const uint32_t* call_first_predecessor; /* [call_count + 1], 0 first, predecessor_count last */
  const uint32_t* predecessor_call;       /* [predecessor_count] in the same task, below the call itself */
  const uint64_t* predecessor_gap;        /* [predecessor_count] microseconds, at most 2^53 */

  const uint32_t* call_first_run; /* [call_count + 1], 0 first, run_count last */
  const uint64_t* run_first_id;   /* [run_count] first + length does not overflow */
  const uint32_t* run_length;     /* [run_count] at least 1; a call's lengths add up to at most 2^28 */
} saga_workload_columns_t;

SAGA_API saga_status_t saga_workload_create(const saga_workload_columns_t* columns, saga_workload_t** workload);
/* Simulations made from it keep what they need. */
SAGA_API void saga_workload_destroy(saga_workload_t* workload);

/* ------------------------------------------------------------------------------------------------------------ cache replay */

/* One shared cache that sees the calls of a workload in the order of a schedule (native/core/sim/cache_replay.hpp). */
typedef struct saga_cache_replay_t saga_cache_replay_t;

typedef enum saga_eviction_t {
  SAGA_EVICTION_LRU = 0,
  SAGA_EVICTION_LRU_PREFIX = 1,
  SAGA_EVICTION_WA_LRU = 2,
  SAGA_EVICTION_TTL = 3,
  SAGA_EVICTION_BELADY = 4
} saga_eviction_t;

typedef enum saga_cache_model_t { SAGA_CACHE_ATOMIC = 0, SAGA_CACHE_PINNED = 1 } saga_cache_model_t;

/* `page_tokens`: a multiple or a divisor of block_tokens, 1 to 2^20. The schedule lists calls in order of start; end >= start. */
SAGA_API saga_status_t saga_cache_replay_create(const saga_workload_t* workload, uint32_t page_tokens,
                                                const uint32_t* call, const uint64_t* start, const uint64_t* end,
                                                size_t count, saga_cache_replay_t** replay);
SAGA_API void saga_cache_replay_destroy(saga_cache_replay_t* replay);
/* Distinct pages of all prompts of the workload. */
SAGA_API saga_status_t saga_cache_replay_distinct_pages(const saga_cache_replay_t* replay, uint64_t* pages);

typedef struct saga_cache_options_t {
  uint32_t struct_size;
  uint32_t policy;         /* saga_eviction_t, default LRU */
  uint32_t model;          /* saga_cache_model_t, default pinned */
  uint32_t capacity_pages; /* at least 1 */
  uint64_t request_limit;  /* only the first so many requests of the schedule, default all */
  uint32_t infer_threads;  /* 1: hide thread ids from the policy, default 0 */
  uint32_t reserved;       /* 0 */
  /* A monotonic clock in nanoseconds; if given, the time of all evictions is measured. Default NULL. */
  uint64_t (*nanoseconds)(void);
} saga_cache_options_t;

typedef struct saga_cache_result_t {
  uint64_t requests;
  uint64_t requested_pages;
  uint64_t missed_pages; /* pages of prompts behind the leading run of resident pages */
  uint64_t evicted_pages;
  double requested_cost; /* weighted tokens: a token at position p counts 1 + p / 60,000 */
  double missed_cost;
  uint64_t eviction_nanoseconds; /* only with a clock */
  uint64_t overflows;            /* cuts that pinned pages alone prevented */
} saga_cache_result_t;

SAGA_API void saga_cache_options_init(saga_cache_options_t* options);
/* `progress`, if not NULL, receives the number of requests done, atomically, while it runs. May run on several threads at once. */
SAGA_API saga_status_t saga_cache_replay_run(const saga_cache_replay_t* replay, const saga_cache_options_t* options,
                                             saga_cache_result_t* result, uint64_t* progress);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_SIMULATE_H */
