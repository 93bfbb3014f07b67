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

/* A declared agent graph (native/core/graph/agent_graph.hpp): its steps and edges are ranges of the arrays below. Values are
 * means over a class of tasks, finite and not negative, at most 2^53; 0 where nothing is declared. */
typedef struct saga_agent_graph_t {
  uint32_t first_step; /* those of the first graph start at 0, those of the others where the graph before ends */
  uint32_t step_count; /* at least 1 */
  uint32_t first_edge; /* likewise */
  uint32_t edge_count;
  double first_prompt_tokens;
  double expected_calls;
  double expected_seconds;
} saga_agent_graph_t;

typedef struct saga_agent_step_t {
  uint32_t tool_class; /* saga_tool_t */
  uint32_t reserved;   /* 0 */
  double output_tokens;
  double observation_tokens;
  double gap_seconds;
} saga_agent_step_t;

typedef struct saga_agent_edge_t {
  uint32_t from; /* numbers of steps of the same graph; sorted by (from, to), none twice */
  uint32_t to;
  double probability; /* 0 to 1; those of a step sum to at most 1 */
} saga_agent_edge_t;

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

  const uint32_t* call_thread;   /* [call_count] below call_count */
  const uint32_t* prompt_tokens; /* [call_count] 1 to 2^28 */
  const uint32_t* output_tokens; /* [call_count] 1 to 2^28 */
  const uint8_t* prompt_kind;    /* [call_count] saga_prompt_kind_t */
  const uint8_t* stop_reason;    /* [call_count] saga_stop_t */
  const uint8_t* tool_class;     /* [call_count] saga_tool_t */

  const uint32_t* call_first_predecessor; /* [call_count + 1], 0 first, predecessor_count last */
  const uint32_t* predecessor_call;       /* [predecessor_count] in the same task, below the call itself */
  const uint64_t* predecessor_gap;        /* [predecessor_count] microseconds, at most 2^53 */

  const uint32_t* call_first_run; /* [call_count + 1], 0 first, run_count last */
  const uint64_t* run_first_id;   /* [run_count] first + length does not overflow */
  const uint32_t* run_length;     /* [run_count] at least 1; a call's lengths add up to at most 2^28 */

  /* What clients declare, all of it optional. */
  uint32_t tenant_count; /* at most 2^20 */
  uint32_t graph_count;  /* at most 2^12 */
  uint32_t step_count;   /* of all graphs, at most 2^16 */
  uint32_t edge_count;   /* of all graphs, at most 2^20 */
  const double*
      tenant_weight; /* [tenant_count] of the fair share, above 0, at most 10^6; tenants behind the end have 1 */
  const uint32_t* task_graph;      /* [task_count] below graph_count, UINT32_MAX for none; or NULL */
  const saga_agent_graph_t* graph; /* [graph_count] */
  const saga_agent_step_t* step;   /* [step_count] */
  const saga_agent_edge_t* edge;   /* [edge_count] */
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
  SAGA_EVICTION_BELADY = 4,
  SAGA_EVICTION_SAGA_PAPER = 5,
  SAGA_EVICTION_SAGA = 6
} saga_eviction_t;

typedef enum saga_cache_model_t { SAGA_CACHE_ATOMIC = 0, SAGA_CACHE_PINNED = 1 } saga_cache_model_t;

/* When the cache sees which call, in order of start, each at most once; and what clients tell with the answer. */
typedef struct saga_cache_schedule_t {
  uint32_t struct_size;
  uint32_t count;
  const uint32_t* call;       /* [count] */
  const uint64_t* start;      /* [count] microseconds */
  const uint64_t* end;        /* [count] start <= end <= 2^53 */
  const uint8_t* session_end; /* [count] 1: the last call of its thread, else 0; or NULL: nothing is told */
  const uint64_t*
      declared_gap; /* [count] how long the coming tool takes, at most 2^53, UINT64_MAX: not told; or NULL */
} saga_cache_schedule_t;

/* `page_tokens`: a multiple or a divisor of block_tokens, 1 to 2^20. */
SAGA_API saga_status_t saga_cache_replay_create(const saga_workload_t* workload, uint32_t page_tokens,
                                                const saga_cache_schedule_t* schedule, saga_cache_replay_t** replay);
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
  /* A monotonic clock in nanoseconds; if given, the time of the policy is measured. Default NULL. */
  uint64_t (*nanoseconds)(void);
} saga_cache_options_t;

typedef struct saga_cache_result_t {
  uint64_t requests;
  uint64_t requested_pages;
  uint64_t missed_pages; /* pages of prompts behind the leading run of resident pages */
  uint64_t evicted_pages;
  double requested_cost; /* weighted tokens: a token at position p counts 1 + p / 60,000 */
  double missed_cost;
  uint64_t eviction_nanoseconds; /* of all evictions, what the cache does for them included; only with a clock */
  uint64_t overflows;            /* cuts that pinned pages alone prevented */
  /* Of everything that is done with the cache: every notification and decision of the policy, and the cache's own work, which is
   * the same for each policy; only with a clock. */
  uint64_t policy_nanoseconds;
} saga_cache_result_t;

/* As saga_engine_options_init(_sized). */
SAGA_API void saga_cache_options_init_sized(saga_cache_options_t* options, uint32_t struct_size);
static inline void saga_cache_options_init(saga_cache_options_t* options) {
  saga_cache_options_init_sized(options, (uint32_t)sizeof(saga_cache_options_t));
}
/* `progress`, if not NULL, receives the number of requests done, atomically, while it runs. May run on several threads at once. */
SAGA_API saga_status_t saga_cache_replay_run(const saga_cache_replay_t* replay, const saga_cache_options_t* options,
                                             saga_cache_result_t* result, uint64_t* progress);

/* ------------------------------------------------------------------------------------------------------ cluster simulation */

/* Simulated workers of one kind and the tasks they are to serve (native/core/sim/cluster.hpp). */
typedef struct saga_cluster_t saga_cluster_t;

typedef enum saga_hardware_t {
  SAGA_HARDWARE_H100_TP4 = 0,
  SAGA_HARDWARE_H100_TP8 = 1,
  SAGA_HARDWARE_A100_TP4 = 2,
  SAGA_HARDWARE_A100_TP8 = 3
} saga_hardware_t;

typedef struct saga_cluster_options_t {
  uint32_t struct_size;
  uint32_t workers;               /* 1 to 1,024, default 16 */
  uint32_t hardware;              /* saga_hardware_t, default A100 TP4 */
  uint32_t page_tokens;           /* a multiple or a divisor of block_tokens, default 16 */
  uint32_t max_sequences;         /* calls in one step, default 256 */
  uint32_t token_budget;          /* tokens in one step, default 2,048; at least max_sequences */
  uint64_t kv_tokens;             /* KV room of a worker; 0 (default): 448,000 for TP4, 1,327,000 for TP8 */
  uint64_t host_tier_tokens;      /* 0 (default): none */
  uint64_t link_bytes_per_second; /* default 25e9 */
  uint32_t token_grain; /* 1 to 64, default 1: a token of the workload stands for so many, a step for as many steps */
  /* 0 (default): a call is admitted where its first chunk finds room; 1: where its whole prompt does, as in newer releases of vLLM. */
  uint32_t whole_prompts;
} saga_cluster_options_t;

/* What drives the cluster: where calls go, what is kept and copied, and what the workers evict by
 * (native/core/sim/cluster_policy.hpp). */
typedef enum saga_policy_t {
  SAGA_POLICY_ROUND_ROBIN = 0,
  SAGA_POLICY_AFFINITY = 1,
  SAGA_POLICY_WA_LRU = 2,
  SAGA_POLICY_TTL = 3,
  SAGA_POLICY_KV_ROUTER = 4,
  SAGA_POLICY_CONTINUUM = 5,
  SAGA_POLICY_THUNDER_AGENT = 6,
  SAGA_POLICY_KV_FLOW = 7,
  SAGA_POLICY_SAGA_PAPER = 8,
  SAGA_POLICY_SAGA = 9
} saga_policy_t;

/* Parts of saga-paper and saga that can be taken out; the other policies have none of them. */
typedef enum saga_policy_part_t {
  SAGA_PART_PREDICTION = 1,
  SAGA_PART_EVICTION = 2,
  SAGA_PART_AFFINITY = 4,
  SAGA_PART_STEALING = 8,
  SAGA_PART_PREFETCH = 16,
  SAGA_PART_ADMISSION = 32,
  SAGA_PART_FAIRNESS = 64,
  SAGA_PART_TTL = 128
} saga_policy_part_t;

/* What clients tell the scheduler beyond their requests. Graph: the declared graph of a task when it arrives, and that a task
 * is over. */
typedef enum saga_hints_t { SAGA_HINTS_NONE = 0, SAGA_HINTS_GRAPH = 1 } saga_hints_t;

#define SAGA_POLICY_PARAMETERS 8

typedef struct saga_run_options_t {
  uint32_t struct_size;
  uint32_t policy;   /* saga_policy_t, default affinity */
  uint32_t hints;    /* saga_hints_t, default graph */
  uint32_t without;  /* saga_policy_part_t added up, default 0: the policy is whole */
  uint32_t live;     /* closed loop: tasks live at one time; 0 = open loop */
  uint32_t reserved; /* 0 */
  double rate;       /* open loop: tasks a second; exactly one of live and rate is above 0 */
  uint64_t seed;     /* of arrivals and of the policy's draws, default 0 */
  /* Of the policy, as its header numbers them; NaN (default): the policy's own default. At most 10^9 in size. */
  double parameters[SAGA_POLICY_PARAMETERS];
  /* If given, receives the engine's journal in pieces, on the thread of the run. Only with a policy that runs through the
   * engine: round-robin, affinity, wa-lru, ttl and, on a cluster without a host tier, saga. Default NULL. */
  void (*journal)(void* context, const uint8_t* bytes, size_t count);
  void* journal_context;
  double* task_seconds; /* if given, [task_count]: receives the completion time of each task. Default NULL. */
} saga_run_options_t;

typedef struct saga_distribution_t {
  double mean, p50, p95, p99; /* seconds; quantiles by nearest rank */
} saga_distribution_t;

typedef struct saga_run_result_t {
  uint64_t tasks_completed;
  saga_distribution_t completion;              /* first submit to last answer */
  saga_distribution_t completion_without_gaps; /* less the gaps on the task's critical path */
  double ideal_seconds;                        /* mean over the tasks, each alone on an idle worker */
  double prefix_hit_rate;                      /* prompt tokens hit / prompt tokens */
  uint64_t capacity_pages;                     /* of one worker */
  uint64_t requested_pages;
  uint64_t missed_pages;
  uint64_t evicted_pages;
  double belady_ratio; /* missed pages / those of pinned OPT on the same requests per worker */
  double cost_ratio;
  uint64_t regenerated_tokens; /* prompt tokens computed although some worker had computed them before */
  double memory_utilization;
  double slo_attainment;       /* completion <= 3 x ideal */
  double slo_attainment_paper; /* completion <= 1.5 x task_expected; 0 where there is none */
  double throughput_tokens_per_second;
  uint64_t output_tokens;
  uint64_t preemptions;
  uint64_t steps;
  uint64_t engine_digest;    /* of the scheduling engine after the run; 0 where the policy does not run through it */
  uint64_t prefilled_tokens; /* prompt tokens computed, those computed again after a preemption included */
  uint64_t loaded_tokens;    /* from the host tier */
  uint64_t preempted_tokens;
  uint64_t copied_pages; /* between workers, on arrival */
  uint64_t held_calls;   /* that the policy did not place when they were sent */
  uint64_t steals;       /* paused or waiting sessions that the policy moved to another worker */
  uint64_t leases_granted;
  uint64_t leases_refused;
  uint64_t leases_expired;
  uint64_t leases_released;
  uint64_t leases_revoked;
} saga_run_result_t;

/* As saga_engine_options_init(_sized). */
SAGA_API void saga_cluster_options_init_sized(saga_cluster_options_t* options, uint32_t struct_size);
static inline void saga_cluster_options_init(saga_cluster_options_t* options) {
  saga_cluster_options_init_sized(options, (uint32_t)sizeof(saga_cluster_options_t));
}
SAGA_API void saga_run_options_init_sized(saga_run_options_t* options, uint32_t struct_size);
static inline void saga_run_options_init(saga_run_options_t* options) {
  saga_run_options_init_sized(options, (uint32_t)sizeof(saga_run_options_t));
}

/* Builds the page tree and plays every task alone on an idle worker (its ideal completion time). A call that does not fit into the
 * KV room of a worker: SAGA_ERR_INVALID_ARGUMENT. */
SAGA_API saga_status_t saga_cluster_create(const saga_workload_t* workload, const saga_cluster_options_t* options,
                                           saga_cluster_t** cluster);
SAGA_API void saga_cluster_destroy(saga_cluster_t* cluster);
/* Plays all tasks. `progress`, if not NULL, receives the number of tasks completed, atomically. May run on several threads. */
SAGA_API saga_status_t saga_cluster_run(const saga_cluster_t* cluster, const saga_run_options_t* options,
                                        saga_run_result_t* result, uint64_t* progress);
/* The rate at which the mean completion time is 3 times the mean ideal, by bisection to 2 %: there it is not above that, at a
 * rate up to 2 % higher it is. `live` and `rate` of the
 * options are ignored. SAGA_ERR_NOT_FOUND: so few tasks that no rate reaches it. `progress` counts runs. */
SAGA_API saga_status_t saga_cluster_saturation(const saga_cluster_t* cluster, const saga_run_options_t* options,
                                               double* tasks_per_second, uint64_t* progress);
/* The number of live tasks whose mean contexts fill the cluster's KV room `pressure` times over; at least 1. */
SAGA_API saga_status_t saga_cluster_live_for_pressure(const saga_cluster_t* cluster, double pressure, uint32_t* live);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_SIMULATE_H */
