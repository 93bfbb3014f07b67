/* batch.h - batch formation: which calls make up the next step of a server that lets SAGA own its KV pages (continuous
 * batching over one page table). Included by saga.h, whose conventions hold.
 *
 * The server submits calls, asks for a batch, executes the copies and computes the batch, and says what was sampled:
 *
 *     saga_batch_former_submit(former, now, &call, hashes, count, &id);
 *     ...
 *     saga_batch_former_form(former, now, &arrays, &batch);
 *     ... copy arrays.copies[0 .. batch.copies), compute arrays.calls[0 .. batch.calls) ...
 *     saga_batch_former_complete(former, sampled, finished, batch.calls, &ended);
 *
 * See native/core/batch/batch_former.hpp for the rules of a step, the orders, states and costs.
 *
 * Ids of calls are small integers; the one freed last is given out next. An id that is not open gives SAGA_ERR_NOT_FOUND; one
 * that was freed and given out again cannot be told from the new one. `now` never goes back (SAGA_ERR_TIME_REVERSED).
 */
#ifndef SAGA_BATCH_H
#define SAGA_BATCH_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saga_batch_former_t saga_batch_former_t;

/* Which waiting call goes first. FCFS and PRIORITY, without session affinity, are vLLM's. */
typedef enum saga_batch_order_t SAGA_ENUM {
  SAGA_ORDER_FCFS = 0,     /* came first; a preempted call returns to the front */
  SAGA_ORDER_PRIORITY = 1, /* smallest priority number */
  SAGA_ORDER_BFS = 2,      /* oldest entry */
  SAGA_ORDER_DFS = 3,      /* newest entry */
  SAGA_ORDER_HYBRID = 4,   /* highest urgency */
  SAGA_ORDER_SAGA = 5      /* fewest tokens to prefill per urgency */
} saga_batch_order_t;

typedef enum saga_preemption_t SAGA_ENUM { SAGA_PREEMPT_RECOMPUTE = 0, SAGA_PREEMPT_SWAP = 1 } saga_preemption_t;

typedef struct saga_batch_former_options_t {
  uint32_t struct_size;
  uint32_t max_calls; /* waiting and running, 1 to 2^20, default 1,024; 8 bytes of address space for each of its product
                           * with max_blocks_per_sequence of the page table, which is at most 2^28 */
  uint32_t max_sequences; /* running at one time, 1 to as many as the page table has left, default 256 */
  uint32_t token_budget;  /* tokens of a step, 1 to 2^24, default 2,048 */
  uint32_t
      max_prefill_chunk; /* tokens of one call in a step, at most token_budget; 0 (default): what the budget leaves */
  uint32_t max_copies;   /* block copies of a step, at most 2^24; 0 (default): nothing is swapped */
  saga_batch_order_t order;     /* default SAGA_ORDER_SAGA */
  saga_preemption_t preemption; /* default RECOMPUTE; SWAP needs a host tier and max_copies */
  saga_tier_t slowest_hit;      /* prefixes in slower tiers are not looked at; default GPU; else needs max_copies */
  uint32_t session_affinity;    /* 1 (default): a call waits for one that is computing the prefix that both share */
  uint32_t
      hit_after_completion; /* 1: blocks are hit only when the step that computes them is complete. 0 (default): at once */
  uint32_t reserved;        /* 0 */
  uint64_t starvation_limit; /* DFS, HYBRID, SAGA: calls that waited so many microseconds go before all others; default
                                  * 10,000,000; UINT64_MAX: none */
} saga_batch_former_options_t;

typedef struct saga_batch_call_t {
  uint32_t struct_size;
  uint32_t prompt_tokens;  /* at least 1 */
  uint32_t max_new_tokens; /* at least 1; with the last of them the call ends */
  int32_t priority;        /* smaller goes first (PRIORITY); default 0 */
  uint64_t workflow;       /* chosen by the caller, see set_urgency and cancel_workflow; default 0 */
  double urgency;          /* finite, at least 0; above 0 for SAGA; larger goes first (HYBRID, SAGA); default 1 */
  /* For a page table of SAGA_EVICTOR_SAGA: */
  uint64_t thread;                /* the agent that calls; default SAGA_NO_THREAD: inferred from the prompt */
  saga_prompt_kind_t prompt_kind; /* default SAGA_PROMPT_START */
  uint32_t reserved;              /* 0 */
} saga_batch_call_t;

/* Blocks [first_block, first_block + block_count) of a row of the block tables were written. */
typedef struct saga_block_table_update_t {
  uint32_t row;
  uint32_t first_block;
  uint32_t block_count;
} saga_block_table_update_t;

/* Where a batch is written. Element i of the arrays of a call belongs to call i of the batch.
 *
 * Block tables are written incrementally: the row of a call is its sequence id in the page table, the same while it runs, and
 * only blocks that are new to it are written. So pass the same array in each step. */
typedef struct saga_batch_arrays_t {
  uint32_t struct_size;
  uint32_t call_capacity;     /* of `calls` to `sequence_lengths`, `updates` and `preempted`: at least max_sequences */
  uint32_t token_capacity;    /* of slot_mapping: at least token_budget */
  uint32_t copy_capacity;     /* of `copies`: at least max_copies */
  uint32_t block_table_rows;  /* at least max_sequences of the page table */
  uint32_t block_table_width; /* at least max_blocks_per_sequence of the page table */
  uint32_t* calls;
  uint32_t* rows;            /* in block_tables */
  uint32_t* first_tokens;    /* position of the first token to compute */
  uint32_t* token_counts;    /* to compute */
  int32_t* sequence_lengths; /* computed tokens after the step */
  int32_t* query_starts;     /* call_capacity + 1: first token of each call in the step; then their number */
  int64_t* slot_mapping;     /* for each token of the step: block * block_tokens + place in the block */
  int32_t* block_tables;
  saga_block_table_update_t* updates;
  saga_block_copy_t* copies; /* execute in this order, before the step is computed */
  uint32_t* preempted;       /* calls */
} saga_batch_arrays_t;

typedef struct saga_batch_t {
  uint32_t calls;
  uint32_t decode_calls; /* the first of them: one token behind a computed context. The others prefill */
  uint32_t tokens;
  uint32_t admitted; /* the last of them began, or began again, with this step */
  uint32_t updates;
  uint32_t copies;
  uint32_t preempted;
} saga_batch_t;

typedef enum saga_call_state_t SAGA_ENUM {
  SAGA_CALL_WAITING = 0,
  SAGA_CALL_RUNNING = 1,
  SAGA_CALL_SWAPPED = 2 /* preempted, with its blocks in the host tier */
} saga_call_state_t;

typedef struct saga_call_status_t {
  saga_call_state_t state;
  uint32_t known_tokens;    /* prompt and generated */
  uint32_t computed_tokens; /* kept in blocks; 0 while waiting */
  uint32_t hash_count;      /* of leading full blocks; add_hashes continues behind them */
  uint32_t hit_tokens;      /* of the prompt, at the first admission */
  uint32_t preemptions;
} saga_call_status_t;

/* Sizes are present ones, totals since creation. */
typedef struct saga_batch_former_stats_t {
  uint32_t waiting_calls; /* swapped ones too */
  uint32_t swapped_calls;
  uint32_t running_calls;
  uint32_t in_flight; /* 1: a batch was formed and not completed */
  uint64_t submitted_total;
  uint64_t finished_total;
  uint64_t cancelled_total;
  uint64_t steps_total; /* with at least one call */
  uint64_t decode_tokens_total;
  uint64_t prefill_tokens_total;
  uint64_t prompt_tokens_total; /* of calls admitted, each once */
  uint64_t hit_tokens_total;    /* of these, not computed at the first admission */
  uint64_t preempted_total;
  uint64_t swapped_out_total;       /* of these, by swap */
  uint64_t recomputed_tokens_total; /* computed tokens given up by preemption; some may be hit again */
  uint64_t held_total;              /* times that a step held a call back for the prefix of another */
  uint64_t memory_bytes;            /* without the page table */
} saga_batch_former_stats_t;

/* Write the defaults into a struct of `struct_size` bytes and never a byte behind it; of the arrays, zeros. */
SAGA_API void saga_batch_former_options_init_sized(saga_batch_former_options_t* options, uint32_t struct_size);
SAGA_API void saga_batch_call_init_sized(saga_batch_call_t* call, uint32_t struct_size);
SAGA_API void saga_batch_arrays_init_sized(saga_batch_arrays_t* arrays, uint32_t struct_size);
static inline void saga_batch_former_options_init(saga_batch_former_options_t* options) {
  saga_batch_former_options_init_sized(options, (uint32_t)sizeof(saga_batch_former_options_t));
}
static inline void saga_batch_call_init(saga_batch_call_t* call) {
  saga_batch_call_init_sized(call, (uint32_t)sizeof(saga_batch_call_t));
}
static inline void saga_batch_arrays_init(saga_batch_arrays_t* arrays) {
  saga_batch_arrays_init_sized(arrays, (uint32_t)sizeof(saga_batch_arrays_t));
}

/* A batch former that works on `table`, whose sequences it owns from now on: nobody else opens or changes one until the former
 * is destroyed (sequences that are open now stay as they are). The table's free GPU blocks are what calls can have. The table
 * lives as long as the former, also when its own handle is destroyed before. SAGA_ERR_WRONG_STATE: it has a former. Both are
 * one object in the sense of saga.h, 8: to be used by one thread at a time. */
SAGA_API saga_status_t saga_batch_former_create(saga_page_table_t* table, const saga_batch_former_options_t* options,
                                                saga_batch_former_t** former);
/* Frees the sequences of its calls. */
SAGA_API void saga_batch_former_destroy(saga_batch_former_t* former);

/* ---- Calls, at any time, also between form and complete. */

/* A new waiting call. `hashes`: of the prompt's leading full blocks, at most prompt_tokens / block_tokens. SAGA_ERR_FULL:
 * max_calls are here. SAGA_ERR_INVALID_ARGUMENT: also where so many tokens could never run, because the page table has too few
 * blocks or its sequences are too short. */
SAGA_API saga_status_t saga_batch_former_submit(saga_batch_former_t* former, uint64_t now,
                                                const saga_batch_call_t* call, const uint64_t* hashes, size_t count,
                                                uint32_t* id);
/* Hashes of the next full blocks of the call's prompt and answer: then the answer can be hit too. A block that is computed
 * already is cached with the next one that is filled, or when the call ends. Not more than the call can ever have. */
SAGA_API saga_status_t saga_batch_former_add_hashes(saga_batch_former_t* former, uint32_t call, const uint64_t* hashes,
                                                    size_t count);
SAGA_API saga_status_t saga_batch_former_set_priority(saga_batch_former_t* former, uint32_t call, int32_t priority);
/* Of all calls of a workflow, O(max_calls). *count receives how many there are. */
SAGA_API saga_status_t saga_batch_former_set_urgency(saga_batch_former_t* former, uint64_t workflow, double urgency,
                                                     uint32_t* count);
/* What is known so far of how the call ends, for a page table of SAGA_EVICTOR_SAGA; the last word before its end counts. What turns
 * out afterwards is for saga_page_table_told and saga_page_table_thread_left. Where output_tokens is 0 the former fills it in. */
SAGA_API saga_status_t saga_batch_former_set_outcome(saga_batch_former_t* former, uint32_t call,
                                                     const saga_call_outcome_t* outcome);
/* Ends a call; what it has computed stays cached. While a batch is in flight a running call ends with complete. */
SAGA_API saga_status_t saga_batch_former_cancel(saga_batch_former_t* former, uint32_t call);
SAGA_API saga_status_t saga_batch_former_cancel_workflow(saga_batch_former_t* former, uint64_t workflow,
                                                         uint32_t* count);
SAGA_API saga_status_t saga_batch_former_call_status(const saga_batch_former_t* former, uint32_t call,
                                                     saga_call_status_t* status);

/* ---- Steps */

/* The next batch; without calls where nothing can run, and then there is nothing to complete (`copies` and `preempted` may be
 * there all the same). SAGA_ERR_WRONG_STATE: a batch is in flight. */
SAGA_API saga_status_t saga_batch_former_form(saga_batch_former_t* former, uint64_t now,
                                              const saga_batch_arrays_t* arrays, saga_batch_t* batch);
/* What became of each of the `count` calls of the batch, in its order. sampled: tokens generated; 0 exactly where known tokens
 * are still to be computed (a call that ends may have sampled none); at most what max_new_tokens leaves. finished: not 0 where
 * the call ends with them. *ended receives how many calls ended. SAGA_ERR_WRONG_STATE: no batch is in flight. */
SAGA_API saga_status_t saga_batch_former_complete(saga_batch_former_t* former, const uint32_t* sampled,
                                                  const uint8_t* finished, size_t count, uint32_t* ended);

SAGA_API saga_status_t saga_batch_former_stats(const saga_batch_former_t* former, saga_batch_former_stats_t* stats);
/* *intact receives 1; 0 is a bug in SAGA. O(max_calls + blocks). */
SAGA_API saga_status_t saga_batch_former_verify(const saga_batch_former_t* former, uint32_t* intact);
/* Of the former and its page table: equal where the same has happened. */
SAGA_API saga_status_t saga_batch_former_digest(const saga_batch_former_t* former, uint64_t* digest);

#ifdef __cplusplus
}
#endif

#endif
