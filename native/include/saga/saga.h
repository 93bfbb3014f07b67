/* saga.h - the C interface of SAGA, a workflow-atomic scheduler for LLM inference.
 *
 * This is the one border of the C++ core: the Node addon and outside inference servers use the same functions.
 *
 * Conventions
 *
 *  1. C99. Every name begins with saga_ or SAGA_. Types end in _t, enumerators have explicit values that never change.
 *  2. Objects are opaque and made by saga_<noun>_create, freed by saga_<noun>_destroy. Destroying NULL does nothing.
 *     Nothing else that this interface returns has to be freed.
 *  3. Every function that can fail returns saga_status_t and changes nothing unless it returns SAGA_OK (where a function
 *     departs from that, its comment says so). Results are written through pointers that come last and must not be NULL.
 *     saga_status_text gives a sentence for a status; it is static and never NULL.
 *  4. Every argument is checked: NULL, ranges, enumerators, sizes. A wrong argument gives SAGA_ERR_INVALID_ARGUMENT, never a crash.
 *     Only pointers that are not NULL yet invalid, and handles used after destroy, cannot be caught.
 *  5. An options struct begins with struct_size. Fill it with saga_<noun>_options_init, then change what you need: options
 *     added later keep their defaults for programs compiled before. A program compiled with a newer header than the library
 *     may not set options that the library does not know (they must be zero; else SAGA_ERR_INVALID_ARGUMENT).
 *  6. Arrays are a pointer and a count; the pointer may be NULL where the count is 0. Arrays are read or written during the
 *     call only. Alignment is that of the element type.
 *  7. Time is uint64_t microseconds from an origin of your choice and is an argument: the library reads no clock, does no
 *     I/O, and starts no threads. The same calls give the same results, byte for byte, on every machine.
 *  8. One object may be used by one thread at a time. Different objects are independent. Functions that take a const
 *     object may run at the same time as each other.
 *  9. No C++ exception crosses this border. Where memory runs out the status is SAGA_ERR_OUT_OF_MEMORY. An engine that met it in
 *     the middle of an event answers the same to every later event; rebuild it from its journal.
 * 10. Strings are UTF-8 and NUL-terminated. Integers have the byte order of the machine; the journal is little-endian.
 */
#ifndef SAGA_SAGA_H
#define SAGA_SAGA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(SAGA_STATIC) || defined(SAGA_ADDON)
#define SAGA_API
#elif defined(_WIN32)
#if defined(SAGA_BUILD)
#define SAGA_API __declspec(dllexport)
#else
#define SAGA_API __declspec(dllimport)
#endif
#else
#define SAGA_API __attribute__((visibility("default")))
#endif

/* To C++, an enumeration without a fixed type has no values but those that fit its enumerators: then already looking at a wrong
 * argument, to refuse it, would be undefined. The type is the one that C compilers choose. */
#ifdef __cplusplus
#define SAGA_ENUM : unsigned int
extern "C" {
#else
#define SAGA_ENUM
#endif

/* -------------------------------------------------------------------------------------------------------- version, status */

/* Raised when a function changes its meaning or disappears. A caller compares it with saga_abi_version() after loading. */
#define SAGA_ABI_VERSION 1u

SAGA_API uint32_t saga_abi_version(void);
/* Version of the package: of this header, and of the library that was loaded. */
#define SAGA_VERSION "0.1.0"
SAGA_API const char* saga_version(void);

typedef enum saga_status_t SAGA_ENUM {
  SAGA_OK = 0,
  SAGA_ERR_INVALID_ARGUMENT = 1, /* a value outside its stated range */
  SAGA_ERR_NOT_FOUND = 2,        /* no such worker, workflow, call or sequence, or it has ended */
  SAGA_ERR_FULL = 3,             /* a bound fixed at creation is reached */
  SAGA_ERR_WRONG_STATE = 4,      /* the object exists, but the event does not fit its state */
  SAGA_ERR_TIME_REVERSED = 5,    /* `now` lies before an event that was applied already */
  SAGA_ERR_JOURNAL_FULL = 6,     /* drain the journal first (saga_engine_journal_read) */
  SAGA_ERR_JOURNAL_CORRUPT = 7,  /* not a journal, cut off, or a checksum does not fit */
  SAGA_ERR_JOURNAL_MISMATCH = 8, /* the replay decided otherwise than the journal says */
  SAGA_ERR_OUT_OF_MEMORY = 9,
  SAGA_ERR_VERSION_MISMATCH = 10, /* made by, or asking for, another version of the format or the interface */
  SAGA_ERR_OUT_OF_BLOCKS = 11,    /* fewer free blocks than the operation needs in all: free, swap out or wait */
  SAGA_ERR_NOT_RESIDENT = 12,     /* some of the sequence's blocks are not in GPU memory: swap in first */
  SAGA_ERR_BUSY = 13              /* a plan of the sequence is neither committed nor aborted */
} saga_status_t;

SAGA_API const char* saga_status_text(saga_status_t status);

/* Where a block lies on a worker, fastest first. */
typedef enum saga_tier_t SAGA_ENUM { SAGA_TIER_GPU = 0, SAGA_TIER_HOST = 1, SAGA_TIER_DISK = 2 } saga_tier_t;
#define SAGA_TIER_COUNT 3u

/* Why an answer ended. */
typedef enum saga_stop_t SAGA_ENUM {
  SAGA_STOP_UNKNOWN = 0,
  SAGA_STOP_TOOL_USE = 1,
  SAGA_STOP_END_TURN = 2
} saga_stop_t;

/* Tool classes of the SAGA paper. */
typedef enum saga_tool_t SAGA_ENUM {
  SAGA_TOOL_NONE = 0,
  SAGA_TOOL_CODE_EXECUTION = 1,
  SAGA_TOOL_FILE_OPERATION = 2,
  SAGA_TOOL_WEB_API = 3,
  SAGA_TOOL_DATABASE_QUERY = 4
} saga_tool_t;

/* What the prompt of a call brings that the one before did not have. */
typedef enum saga_prompt_kind_t SAGA_ENUM {
  SAGA_PROMPT_START = 0,
  SAGA_PROMPT_TOOL = 1,
  SAGA_PROMPT_USER = 2
} saga_prompt_kind_t;

/* No such worker, sequence, block or call. */
#define SAGA_NONE 0xFFFFFFFFu

/* ----------------------------------------------------------------------------------------------------------- block hashing */

/* How the tokens of a block, chained to everything before it, become its hash. */
typedef enum saga_hash_algorithm_t SAGA_ENUM {
  SAGA_HASH_SAGA = 0,        /* SAGA's own chain of XXH3-128; fastest */
  SAGA_HASH_SHA256_CBOR = 1, /* vLLM --prefix-caching-hash-algo sha256_cbor */
  SAGA_HASH_XXHASH_CBOR = 2, /* vLLM --prefix-caching-hash-algo xxhash_cbor */
  /* The same with extra keys as vLLM 0.32 and 0.33 write them: each with its kind. Adapters are out of reach there, as
   * their paths enter the hash: chains with a LoRA name match nothing of the engine's. */
  SAGA_HASH_SHA256_CBOR_TAGGED = 3,
  SAGA_HASH_XXHASH_CBOR_TAGGED = 4
} saga_hash_algorithm_t;

typedef struct saga_hasher_t saga_hasher_t;

/* `root`: for SAGA_HASH_SAGA the tenant's salt (may be empty); for vLLM's algorithms the value of PYTHONHASHSEED as text,
 * for example "0" (root_size >= 1). `block_tokens`: 1 to 4,096. */
SAGA_API saga_status_t saga_hasher_create(saga_hash_algorithm_t algorithm, uint32_t block_tokens, const char* root,
                                          size_t root_size, saga_hasher_t** hasher);
SAGA_API void saga_hasher_destroy(saga_hasher_t* hasher);
/* Back to the root: the next block is the first of a prompt. The keys stay as they are. */
SAGA_API saga_status_t saga_hasher_reset(saga_hasher_t* hasher);
/* vLLM's extra keys that concern a whole prompt: LoRA adapter name and cache salt (the latter enters the first block
 * only). NULL or size 0 = none. Only for vLLM's algorithms and right after create or reset. At most 1,024 bytes each. */
SAGA_API saga_status_t saga_hasher_set_keys(saga_hasher_t* hasher, const char* lora_name, size_t lora_name_size,
                                            const char* cache_salt, size_t cache_salt_size);
/* Hashes the full blocks of `tokens` (the rest, less than a block, is ignored) as the continuation of what was hashed
 * before. Writes one 64-bit hash per block (for vLLM's algorithms the integer that its KV events carry) and their number.
 * `capacity` < number of full blocks: SAGA_ERR_INVALID_ARGUMENT. */
SAGA_API saga_status_t saga_hasher_update(saga_hasher_t* hasher, const uint32_t* tokens, size_t token_count,
                                          uint64_t* hashes, size_t capacity, size_t* count);
/* The whole digest of the last block hashed (or of the root): 16 or 32 bytes; *size receives which. */
SAGA_API saga_status_t saga_hasher_digest(const saga_hasher_t* hasher, uint8_t digest[32], size_t* size);

/* ------------------------------------------------------------------------------------------------------------------ engine */

/* The deterministic state machine: events in, decisions out. See native/core/engine/engine.hpp for states and costs. */
typedef struct saga_engine_t saga_engine_t;

typedef enum saga_placement_t SAGA_ENUM {
  SAGA_PLACEMENT_ROUND_ROBIN = 0,
  SAGA_PLACEMENT_AFFINITY = 1,
  SAGA_PLACEMENT_SAGA = 2 /* SAGA's own scheduler: native/core/place/saga_scheduler.hpp */
} saga_placement_t;

typedef struct saga_engine_options_t {
  uint32_t struct_size;
  uint32_t max_workers;           /* at one time, 1 to 1,024, default 64 */
  uint32_t max_workflows;         /* open at one time, 1 to 2^24, default 4,096 */
  uint32_t max_calls;             /* open at one time, 1 to 2^24, default 8,192 */
  uint64_t max_blocks;            /* distinct blocks known over all workers, 1 to 2^29 - 1, default 2^20 */
  uint64_t max_open_blocks;       /* prompts of all open calls together, each in whole chunks of 256 blocks; 1 to 2^32,
                                     default 2^21 */
  uint32_t max_chain_blocks;      /* longest prompt in blocks, 1 to 2^24, default 2^17 */
  uint32_t block_tokens;          /* 1 to 4,096, default 16 */
  uint32_t placement;             /* saga_placement_t, default affinity */
  uint32_t imbalance_calls;       /* affinity: spread of open calls above which load decides, default 10 */
  uint32_t minimum_match_percent; /* affinity: smallest match that decides, 0 to 100, default 10 */
  uint32_t reserved;              /* 0 */
  uint64_t seed;                  /* default 0 */
  uint64_t journal_bytes;         /* capacity of the journal buffer, default 0 = no journal; otherwise at least 4,096 */

  /* The rest is for SAGA_PLACEMENT_SAGA alone. */
  uint32_t max_threads; /* agents of all open workflows, with one more for each call of an agent that overlaps another
                              one of it; 1 to 2^24, default 0 = twice max_workflows */
  uint32_t max_tenants; /* 1 to 2^16, default 64; tenants are numbers below */
  uint32_t max_graphs;  /* declared graphs, 0 to 4,096, default 64 */
  uint32_t max_leases;  /* that hold at one time, 0 to 2^20, default 4,096; beyond it nothing more is retained */
  uint32_t max_directives; /* copies under way and drops not yet read, 1 to 2^20, default 4,096 */
  uint32_t max_receipts;   /* the newest that are kept, 0 to 2^24, default 4,096 */
  uint32_t
      without; /* parts switched off: bits of saga_policy_part_t (simulate.h), default 0. Without eviction: the workers
                              evict by an order of their own, and leases keep what will be used soon */
  uint32_t directive_seconds;     /* after which a copy without an answer counts as expired, 1 to 86,400, default 60 */
  uint64_t kv_bytes_per_token;    /* 1 to 2^30, default 327,680 (70B, bf16) */
  uint64_t link_bytes_per_second; /* between workers, 1 to 10^13, default 25 * 10^9 */
  /* Seconds of a step of continuous batching (native/core/place/cost_model.hpp): finite, above 0; at most 1,000. */
  double step_base;
  double step_per_call;
  double step_per_context_token;
  double step_per_prefill_token;
  double step_per_prefill_pair;
} saga_engine_options_t;

/* A decision with its receipt: what was known when it was made. With SAGA_PLACEMENT_SAGA decisions come also that are
 * carried out between calls: their 64 bytes are a saga_directive_t (saga_decision_to_directive). */
typedef enum saga_decision_type_t SAGA_ENUM {
  SAGA_DECISION_PLACE = 1,
  SAGA_DECISION_COPY =
      2, /* blocks of the call go over the link from a worker to another; same worker: from host memory */
  SAGA_DECISION_RETAIN =
      3, /* a lease: what the worker caches of the call is kept until a deadline, unless memory needs it */
  SAGA_DECISION_RELEASE = 4, /* the lease ends */
  SAGA_DECISION_DROP = 5,    /* nobody comes back to what only this call's agent uses there: it is evicted first */
  SAGA_DECISION_PRIORITY = 6 /* of a call that was placed, changed afterwards */
} saga_decision_type_t;
typedef enum saga_reason_t SAGA_ENUM {
  SAGA_REASON_ROUND_ROBIN = 0,   /* its turn */
  SAGA_REASON_LONGEST_MATCH = 1, /* it holds the longest leading part of the prompt */
  SAGA_REASON_FEWEST_BLOCKS = 2, /* nobody holds enough; it has the fewest blocks in use by running calls */
  SAGA_REASON_IMBALANCE = 3,     /* open calls were too unequal; the emptier of two drawn workers */
  /* of SAGA_PLACEMENT_SAGA: the cheapest alternative was */
  SAGA_REASON_NEW = 4,       /* no worker holds anything worth going to */
  SAGA_REASON_HOLDER = 5,    /* where its blocks are */
  SAGA_REASON_RECOMPUTE = 6, /* another worker, computing its prompt again */
  SAGA_REASON_PULL = 7       /* another worker, after copying its blocks there */
} saga_reason_t;

typedef struct saga_decision_t {
  uint16_t type;      /* saga_decision_type_t */
  uint16_t placement; /* how often this call was placed before (it lost its worker), modulo 2^16 */
  uint32_t worker;    /* where the call goes */
  uint64_t call;
  uint32_t reason;                          /* saga_reason_t */
  uint32_t prompt_blocks;                   /* full blocks of the prompt, hashed or not */
  uint32_t matched_blocks[SAGA_TIER_COUNT]; /* leading blocks on that worker: in GPU; in GPU or host; in any tier */
  uint32_t longest_match;                   /* longest leading match in GPU memory on any active worker, as reported */
  uint32_t longest_match_worker;            /* the smallest id that has it, or SAGA_NONE */
  uint32_t open_calls;                      /* on that worker, before this one */
  uint32_t blocks_in_use;                   /* there, by running calls, before this one */
  uint16_t active_workers;                  /* that take calls */
  int16_t priority;    /* in the worker's queue: smaller goes first; 0 unless the scheduler wants otherwise */
  uint64_t decided_at; /* microseconds */
} saga_decision_t;

/* Why blocks are copied. */
typedef enum saga_copy_reason_t SAGA_ENUM {
  SAGA_COPY_PULL = 0,     /* a call waits for them: it is placed when they should have arrived */
  SAGA_COPY_MIGRATE = 1,  /* the agent is in a gap and will go on at the other worker */
  SAGA_COPY_PREFETCH = 2, /* from the worker's host memory, before the agent comes back */
  SAGA_COPY_RELOAD = 3    /* from the worker's host memory, for a call that waits */
} saga_copy_reason_t;

/* A decision of another type than SAGA_DECISION_PLACE. What its type does not use is 0. `call` may have ended: it then
 * stands for its prompt and its answer. */
typedef struct saga_directive_t {
  uint16_t type; /* saga_decision_type_t */
  uint16_t reserved;
  uint32_t worker; /* that carries it out; copy: receives the blocks */
  uint64_t call;
  uint32_t reason; /* copy: saga_copy_reason_t */
  uint32_t
      blocks; /* copy: leading blocks of the call that `source` has, of prompt and answer; retain: that it covers */
  uint32_t source;     /* copy */
  int32_t priority;    /* priority */
  uint64_t id;         /* copy, retain, release: of the copy or the lease; 0: none */
  uint64_t value;      /* retain: of two leases the one of lower value is given up first */
  uint64_t until;      /* retain: deadline; copy: after this time it is not needed any more */
  uint64_t decided_at; /* microseconds */
} saga_directive_t;

static inline saga_directive_t saga_decision_to_directive(const saga_decision_t* decision) {
  saga_directive_t directive;
  memcpy(&directive, decision, sizeof directive);
  return directive;
}

/* What became of a copy or a lease. */
typedef enum saga_outcome_t SAGA_ENUM {
  SAGA_OUTCOME_APPLIED = 0, /* a copy: its blocks are there. A lease: it holds, and will report its end */
  SAGA_OUTCOME_REFUSED = 1,
  SAGA_OUTCOME_EXPIRED = 2, /* a copy: too late. A lease: its deadline has passed */
  SAGA_OUTCOME_REVOKED = 3  /* a lease: memory needed it */
} saga_outcome_t;

typedef struct saga_engine_stats_t {
  uint32_t workers;       /* active */
  uint32_t workflows;     /* open */
  uint32_t open_calls;    /* waiting, placed or running */
  uint32_t waiting_calls; /* not placed yet */
  uint64_t placed_calls;
  uint64_t finished_calls;
  uint64_t cancelled_calls;
  uint64_t replaced_calls; /* lost their worker and went back to waiting */
  uint64_t prompt_blocks;  /* of all placed calls */
  uint64_t matched_blocks; /* of those, held by the chosen worker in GPU memory */
  uint64_t holder_blocks;  /* (worker, tier, block) triples known */
  uint64_t journal_bytes;  /* written so far */
} saga_engine_stats_t;

/* What a client may tell with a call or with its answer (native/core/graph/predictor.hpp, CallHints). Zeros tell nothing,
 * but for `gap` and `step`: saga_call_hints_none. Hints are learned, not believed. */
typedef struct saga_call_hints_t {
  uint32_t next_tool;     /* answer: saga_tool_t that runs now, where the answer does not name it */
  uint32_t final_step;    /* this call is its agent's last: 0 not told, 1 no, 2 yes */
  uint64_t gap;           /* answer: microseconds until the next call; UINT64_MAX: not told */
  uint32_t step;          /* of the declared graph, that this call is; SAGA_NONE: not told */
  uint32_t output_tokens; /* call: of its answer; answer: of the next one; 0: not told */
} saga_call_hints_t;

static inline saga_call_hints_t saga_call_hints_none(void) {
  saga_call_hints_t hints = {0, 0, UINT64_MAX, SAGA_NONE, 0};
  return hints;
}

typedef struct saga_workflow_info_t {
  uint32_t struct_size;
  uint32_t tenant;     /* below max_tenants with SAGA_PLACEMENT_SAGA */
  uint32_t graph;      /* of saga_engine_declare_graph, default SAGA_NONE */
  uint32_t agent_kind; /* what is learned is kept for each kind: 1 to 63, default 0 = unknown */
} saga_workflow_info_t;

#define SAGA_PROMPT_NOT_TOLD SAGA_NONE

typedef struct saga_call_info_t {
  uint32_t struct_size;
  uint32_t prompt_tokens; /* at least 1 */
  uint32_t agent; /* of the workflow, a number of your choice; default 0: the main one. The calls of an agent follow
                             each other; where they overlap they count as agents of their own */
  uint32_t prompt_kind; /* saga_prompt_kind_t, default SAGA_PROMPT_NOT_TOLD: by how the answer before ended */
  saga_call_hints_t hints;
} saga_call_info_t;

typedef struct saga_answer_info_t {
  uint32_t struct_size;
  uint32_t placement; /* that answers, as in its decision; default SAGA_NONE: the present one */
  uint32_t stop;      /* saga_stop_t */
  uint32_t tool;      /* saga_tool_t */
  uint32_t output_tokens;
  uint32_t reserved; /* 0 */
  saga_call_hints_t hints;
} saga_answer_info_t;

typedef struct saga_worker_load_t {
  uint32_t struct_size;
  uint32_t running_blocks; /* in use by running calls */
  uint32_t waiting_calls;  /* in the worker's queue; default SAGA_NONE: not told */
  uint32_t free_blocks;    /* hold nothing at all; default SAGA_NONE: not told */
} saga_worker_load_t;

/* What the price of an alternative is made of, in predicted seconds of delay. */
typedef struct saga_price_t {
  double wait;         /* until the worker has room */
  double prefill;      /* of what is not there */
  double transfer;     /* of what is pulled */
  double decode;       /* of the answer */
  double interference; /* what the call costs others there */
  double displacement; /* what it pushes out of memory */
} saga_price_t;

typedef struct saga_receipt_t {
  uint32_t struct_size;
  uint32_t reason; /* saga_reason_t */
  uint64_t call;
  uint32_t worker;
  uint32_t source; /* of a pull, or SAGA_NONE */
  uint32_t holder; /* where the call's agent was, or SAGA_NONE */
  uint32_t matched_blocks;
  uint32_t prompt_blocks;
  uint32_t placement;
  saga_price_t price;        /* of the worker */
  saga_price_t holder_price; /* of staying where the agent was; zeros where that was no alternative */
  uint64_t submitted_at;
  uint64_t queued; /* microseconds from then, or from when its worker was lost, until it was granted */
  uint64_t granted_at;
  uint32_t trust_per_mille; /* in the worker when the call was granted; matched_blocks are as reported */
  /* To the engine when the call was granted, modulo 2^32: one that was added later under one of these ids is another. */
  uint32_t workers_added;
} saga_receipt_t;

typedef struct saga_scheduler_stats_t {
  uint32_t struct_size;
  uint32_t queued_calls; /* now, in the fair queue */
  uint64_t grants;
  uint64_t queued;     /* calls that waited in the fair queue */
  uint64_t held;       /* calls that waited for their blocks */
  uint64_t steals;     /* agents moved in a gap */
  uint64_t pulls;      /* moved with their blocks when they returned */
  uint64_t recomputes; /* that went elsewhere without their blocks */
  uint64_t thrash;     /* moves soon after the move before */
  uint64_t prefetches; /* loads from host memory before a return */
  uint64_t prefetches_cancelled;
  uint64_t preemptions; /* running calls asked to give way */
  uint64_t copies;
  uint64_t copies_applied;
  uint64_t copies_refused; /* by the executor, or for want of directives */
  uint64_t copies_expired;
  uint64_t leases_granted;
  uint64_t leases_refused;
  uint64_t leases_expired;
  uint64_t leases_released;
  uint64_t leases_revoked;
  uint64_t drops;
  uint64_t drops_lost; /* for want of directives */
  uint64_t stale;      /* events of an earlier placement, refused */
  uint32_t threads;    /* in use */
  uint32_t graphs;
} saga_scheduler_stats_t;

#define SAGA_RELIABILITY_BINS 10

typedef struct saga_reliability_bin_t {
  uint64_t predictions; /* with a probability in [bin / 10, (bin + 1) / 10) */
  uint64_t happened;
  double predicted_sum;
} saga_reliability_bin_t;

/* How good the predictions of reuse were (native/core/graph/calibration.hpp). */
typedef struct saga_calibration_t {
  uint32_t struct_size;
  uint32_t reserved;
  saga_reliability_bin_t next_call[SAGA_RELIABILITY_BINS];      /* a next call comes at all */
  saga_reliability_bin_t within_horizon[SAGA_RELIABILITY_BINS]; /* it comes within the horizon */
  double next_call_brier;
  double within_horizon_brier;
  uint64_t gaps; /* whose quantiles were predicted, and how many were not longer than them */
  uint64_t within_p50;
  uint64_t within_p90;
  uint64_t within_p95;
} saga_calibration_t;

typedef struct saga_tenant_state_t {
  uint32_t struct_size;
  uint32_t waiting; /* calls in the fair queues: of admitted workflows, and for admission */
  double weight;
  int64_t served;  /* of calls, GPU-microseconds, KV memory counted in */
  int64_t lag;     /* behind its fair share, of admissions where it waits for one, else of calls; negative: ahead */
  uint64_t credit; /* still to be used up before it is charged again */
  double share;    /* of the urgency of all that waits */
} saga_tenant_state_t;

typedef struct saga_worker_forecast_t {
  uint32_t struct_size;
  uint32_t open_calls;
  double cost_factor;     /* observed time over the predicted one, 1/4 to 4 */
  double resident_tokens; /* working sets of the agents there, weighted by their presence */
  double running_tokens;
  uint32_t leased_blocks;
  uint32_t reserved;
} saga_worker_forecast_t;

typedef struct saga_worker_state_t {
  uint32_t capacity_blocks;
  uint32_t open_calls;
  uint32_t blocks_in_use; /* as last reported, plus the prompts of open calls placed since */
  uint32_t active;        /* 0 after saga_engine_remove_worker */
} saga_worker_state_t;

/* What was told of a worker beyond its load. */
typedef struct saga_worker_properties_t {
  uint32_t struct_size;
  uint32_t trust_per_mille; /* saga_engine_worker_trust */
  uint32_t accepts;         /* saga_engine_worker_accepts */
  uint32_t window_blocks;   /* saga_engine_worker_window */
  uint64_t window_held;     /* distinct blocks that its window groups hold */
} saga_worker_properties_t;

/* Writes the defaults into a struct of `struct_size` bytes and never a byte behind it. */
SAGA_API void saga_engine_options_init_sized(saga_engine_options_t* options, uint32_t struct_size);
/* The same with the size that the program was compiled with, which a newer library cannot know. */
static inline void saga_engine_options_init(saga_engine_options_t* options) {
  saga_engine_options_init_sized(options, (uint32_t)sizeof(saga_engine_options_t));
}
SAGA_API saga_status_t saga_engine_create(const saga_engine_options_t* options, saga_engine_t** engine);
SAGA_API void saga_engine_destroy(saga_engine_t* engine);

/* Workers. `capacity_blocks` is the worker's KV room, at least 1. Ids are 0 to max_workers - 1: each new worker has one that
 * nobody had, while there are such, then the one whose worker was removed longest ago. So forget an id with its worker: after
 * saga_engine_remove_worker apply no events of it any more (close its KV source before) and carry out no decision that names
 * it. What the engine has not handed out yet no longer names it, an outcome told of one of its directives is
 * SAGA_ERR_NOT_FOUND, and its answers are told apart by their placement (saga_engine_finish_call_with). SAGA_ERR_FULL:
 * max_workers are active. */
SAGA_API saga_status_t saga_engine_add_worker(saga_engine_t* engine, uint64_t now, uint32_t capacity_blocks,
                                              uint32_t* worker);
/* The worker is lost, or has been drained: what it held is forgotten and its calls wait to be placed again. */
SAGA_API saga_status_t saga_engine_remove_worker(saga_engine_t* engine, uint64_t now, uint32_t worker);
/* KV events of a worker, counted per physical copy. `parent`: hash of the block before the first one, 0 where there is none
 * or it is not known (a hint for the layout; never needed for correctness). SAGA_ERR_FULL: nothing was stored. */
SAGA_API saga_status_t saga_engine_blocks_stored(saga_engine_t* engine, uint64_t now, uint32_t worker, saga_tier_t tier,
                                                 uint64_t parent, const uint64_t* hashes, size_t count);
/* Hashes that the worker does not hold are ignored. */
SAGA_API saga_status_t saga_engine_blocks_removed(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                  saga_tier_t tier, const uint64_t* hashes, size_t count);
/* Everything in every tier of the worker is gone. */
SAGA_API saga_status_t saga_engine_blocks_cleared(saga_engine_t* engine, uint64_t now, uint32_t worker);
/* Blocks that running calls use on the worker, as it reports them. Until the next report, the prompts of calls that are placed
 * there are added. */
SAGA_API saga_status_t saga_engine_worker_load(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                               uint32_t blocks_in_use);
SAGA_API saga_status_t saga_engine_worker_state(const saga_engine_t* engine, uint32_t worker,
                                                saga_worker_state_t* state);

/* How far what the worker reports to hold is believed, 0 to 1,000, default 1,000: a match of n blocks there counts as n *
 * per_mille / 1,000 wherever a worker is chosen. Matches in decisions, receipts and saga_engine_match stay as reported. */
SAGA_API saga_status_t saga_engine_worker_trust(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                uint32_t per_mille);
/* accepts 0: the worker is drained. No call is placed there any more and nothing is copied there; placements there that
 * no decide has handed out are taken back. Calls that were placed go on, and what it holds may be copied away. While no
 * active worker accepts, calls wait. 1, the default: it takes calls (again). */
SAGA_API saga_status_t saga_engine_worker_accepts(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                  uint32_t accepts);
/* For models with sliding-window attention, whose window groups keep the last blocks of a prefix only: leading blocks in
 * GPU memory count as a match up to the longest prefix whose last `window_blocks` blocks (all of them, where it is
 * shorter) the window groups hold. 0 to 2^24, default 0: no such groups. For a window of t tokens it is
 * (t - 1) / block_tokens, rounded up. */
SAGA_API saga_status_t saga_engine_worker_window(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                 uint32_t window_blocks);
/* KV events of the window groups, counted per copy like the others: with several groups, tell a block when all of them
 * hold it and when the first loses it. Before or after saga_engine_worker_window; forgotten with
 * saga_engine_blocks_cleared and saga_engine_remove_worker. SAGA_ERR_FULL: more than max_blocks distinct ones of all
 * workers; nothing was stored. */
SAGA_API saga_status_t saga_engine_window_stored(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                 const uint64_t* hashes, size_t count);
/* Hashes that the window groups do not hold are ignored. */
SAGA_API saga_status_t saga_engine_window_removed(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                  const uint64_t* hashes, size_t count);
/* Set struct_size to the size that you compiled with. Also of a worker that was removed. */
SAGA_API saga_status_t saga_engine_worker_properties(const saga_engine_t* engine, uint32_t worker,
                                                     saga_worker_properties_t* properties);

/* Workflows and calls. A workflow can be closed when none of its calls is open. */
SAGA_API saga_status_t saga_engine_open_workflow(saga_engine_t* engine, uint64_t now, uint32_t tenant,
                                                 uint64_t* workflow);
SAGA_API saga_status_t saga_engine_close_workflow(saga_engine_t* engine, uint64_t now, uint64_t workflow);
/* `chain`: hashes of the leading full blocks of the prompt, at most prompt_tokens / block_tokens of them; this quotient is at
 * most max_chain_blocks. The call's id stays valid until saga_engine_finish_call. */
SAGA_API saga_status_t saga_engine_submit_call(saga_engine_t* engine, uint64_t now, uint64_t workflow,
                                               uint32_t prompt_tokens, const uint64_t* chain, size_t count,
                                               uint64_t* call);
SAGA_API saga_status_t saga_engine_first_token(saga_engine_t* engine, uint64_t now, uint64_t call);
SAGA_API saga_status_t saga_engine_finish_call(saga_engine_t* engine, uint64_t now, uint64_t call, saga_stop_t stop,
                                               saga_tool_t tool, uint32_t output_tokens);
/* The client is gone: the call ends, whatever its state. */
SAGA_API saga_status_t saga_engine_cancel_call(saga_engine_t* engine, uint64_t now, uint64_t call);
SAGA_API saga_status_t saga_engine_tool_started(saga_engine_t* engine, uint64_t now, uint64_t workflow,
                                                saga_tool_t tool);
SAGA_API saga_status_t saga_engine_tool_finished(saga_engine_t* engine, uint64_t now, uint64_t workflow);
SAGA_API saga_status_t saga_engine_tick(saga_engine_t* engine, uint64_t now);

/* Places waiting calls in order of submission: at most `capacity` of them and, with a journal, (journal_bytes - 25) / 64. While
 * no worker is active they stay waiting. */
SAGA_API saga_status_t saga_engine_decide(saga_engine_t* engine, uint64_t now, saga_decision_t* decisions,
                                          size_t capacity, size_t* count);

/* ---- With SAGA_PLACEMENT_SAGA. Functions of this part answer SAGA_ERR_WRONG_STATE to an engine of another placement,
 * but for those that tell more of an event: there, what is told is checked and recorded and has no effect.
 *
 * saga_engine_decide then drains what the scheduler has decided since, in order: placements and directives. A call may be
 * held: it stays waiting, and a later decide places it. At the time of saga_engine_next_wake call saga_engine_tick and then
 * saga_engine_decide, also when nothing else happens. */

SAGA_API void saga_workflow_info_init_sized(saga_workflow_info_t* info, uint32_t struct_size);
static inline void saga_workflow_info_init(saga_workflow_info_t* info) {
  saga_workflow_info_init_sized(info, (uint32_t)sizeof(saga_workflow_info_t));
}
SAGA_API void saga_call_info_init_sized(saga_call_info_t* info, uint32_t struct_size);
static inline void saga_call_info_init(saga_call_info_t* info) {
  saga_call_info_init_sized(info, (uint32_t)sizeof(saga_call_info_t));
}
SAGA_API void saga_answer_info_init_sized(saga_answer_info_t* info, uint32_t struct_size);
static inline void saga_answer_info_init(saga_answer_info_t* info) {
  saga_answer_info_init_sized(info, (uint32_t)sizeof(saga_answer_info_t));
}
SAGA_API void saga_worker_load_init_sized(saga_worker_load_t* load, uint32_t struct_size);
static inline void saga_worker_load_init(saga_worker_load_t* load) {
  saga_worker_load_init_sized(load, (uint32_t)sizeof(saga_worker_load_t));
}

/* What clients declare about a class of tasks: the graph's steps and edges (first_step and first_edge are 0), as in a
 * workload (simulate.h). A graph that is declared already gets the id that it has. SAGA_ERR_FULL: max_graphs, or more than
 * 4,096 steps or 65,536 edges. */
struct saga_agent_graph_t;
struct saga_agent_step_t;
struct saga_agent_edge_t;
SAGA_API saga_status_t saga_engine_declare_graph(saga_engine_t* engine, uint64_t now,
                                                 const struct saga_agent_graph_t* graph,
                                                 const struct saga_agent_step_t* steps,
                                                 const struct saga_agent_edge_t* edges, uint32_t* id);
/* Weight of its fair share, 1/1,024 to 1,024, default 1; kept in 1/1,024. */
SAGA_API saga_status_t saga_engine_set_tenant(saga_engine_t* engine, uint64_t now, uint32_t tenant, double weight);

/* The events above, with all that can be told of them. */
SAGA_API saga_status_t saga_engine_open_workflow_with(saga_engine_t* engine, uint64_t now,
                                                      const saga_workflow_info_t* info, uint64_t* workflow);
/* SAGA_ERR_FULL also where max_threads are in use. */
SAGA_API saga_status_t saga_engine_submit_call_with(saga_engine_t* engine, uint64_t now, uint64_t workflow,
                                                    const saga_call_info_t* info, const uint64_t* chain, size_t count,
                                                    uint64_t* call);
/* SAGA_ERR_WRONG_STATE where the call has been placed anew since: an answer of the lost worker. */
SAGA_API saga_status_t saga_engine_first_token_with(saga_engine_t* engine, uint64_t now, uint64_t call,
                                                    uint32_t placement);
/* `chain`: hashes of the full blocks behind those of the prompt that the answer has filled, if known; at most as many as
 * prompt and answer have. */
SAGA_API saga_status_t saga_engine_finish_call_with(saga_engine_t* engine, uint64_t now, uint64_t call,
                                                    const saga_answer_info_t* info, const uint64_t* chain,
                                                    size_t count);
SAGA_API saga_status_t saga_engine_worker_load_with(saga_engine_t* engine, uint64_t now, uint32_t worker,
                                                    const saga_worker_load_t* load);
/* What became of a copy or a lease. SAGA_ERR_NOT_FOUND: it has ended (a lease may expire or be released meanwhile). */
SAGA_API saga_status_t saga_engine_directive_done(saga_engine_t* engine, uint64_t now, uint64_t id,
                                                  saga_outcome_t outcome);
/* When the scheduler wants to go on; UINT64_MAX: not before the next event. Any placement. */
SAGA_API saga_status_t saga_engine_next_wake(const saga_engine_t* engine, uint64_t* time);

/* The results of the rest begin with struct_size: set it to the size that you compiled with. */
/* Why a call was placed, or granted and held for its blocks: its newest receipt. SAGA_ERR_NOT_FOUND: not among the
 * newest max_receipts. */
SAGA_API saga_status_t saga_engine_receipt(const saga_engine_t* engine, uint64_t call, saga_receipt_t* receipt);
SAGA_API saga_status_t saga_engine_scheduler_stats(const saga_engine_t* engine, saga_scheduler_stats_t* stats);
SAGA_API saga_status_t saga_engine_calibration(const saga_engine_t* engine, saga_calibration_t* calibration);
SAGA_API saga_status_t saga_engine_tenant_state(const saga_engine_t* engine, uint32_t tenant,
                                                saga_tenant_state_t* state);
SAGA_API saga_status_t saga_engine_worker_forecast(const saga_engine_t* engine, uint32_t worker,
                                                   saga_worker_forecast_t* forecast);

/* Leading blocks of `chain` that each worker holds (with window groups: can use), as reported:
 * depth[worker * SAGA_TIER_COUNT + tier] for all max_workers; tiers are cumulative (in GPU; in GPU or host; in any).
 * `depth_count` must be max_workers * SAGA_TIER_COUNT. */
SAGA_API saga_status_t saga_engine_match(const saga_engine_t* engine, const uint64_t* chain, size_t count,
                                         uint32_t* depth, size_t depth_count, uint32_t* longest);

SAGA_API saga_status_t saga_engine_stats(const saga_engine_t* engine, saga_engine_stats_t* stats);
/* Fingerprint of the whole state. */
SAGA_API saga_status_t saga_engine_digest(const saga_engine_t* engine, uint64_t* digest);
/* Recomputes every invariant; *intact receives 1 or 0. Cost: O(state). */
SAGA_API saga_status_t saga_engine_verify(const saga_engine_t* engine, uint32_t* intact);

/* Moves up to `capacity` journal bytes that were not read yet into `bytes`. While an event does not fit into the rest of the
 * buffer it gives SAGA_ERR_JOURNAL_FULL; one that the empty buffer could not take gives SAGA_ERR_FULL. */
SAGA_API saga_status_t saga_engine_journal_read(saga_engine_t* engine, uint8_t* bytes, size_t capacity, size_t* count);

typedef struct saga_replay_result_t {
  uint64_t events;
  uint64_t decisions;  /* recorded decisions that came out again, byte for byte */
  uint64_t good_bytes; /* length of the journal up to the last good record */
} saga_replay_result_t;

/* Rebuilds an engine from a whole journal. An engine is returned for every status but SAGA_ERR_INVALID_ARGUMENT,
 * SAGA_ERR_OUT_OF_MEMORY and a header that cannot be read: after SAGA_ERR_JOURNAL_CORRUPT it holds the state up to the last
 * good record; after SAGA_ERR_JOURNAL_MISMATCH too, unless a decision came out otherwise: then it has made its own.
 * Where none is returned *engine is NULL. */
SAGA_API saga_status_t saga_engine_replay(const uint8_t* journal, size_t size, saga_engine_t** engine,
                                          saga_replay_result_t* result);

#ifdef __cplusplus
}
#endif

/* Page tables of a worker whose KV blocks SAGA owns. */
#include "pages.h"
/* The eviction order alone, for servers that keep their own block numbers. */
#include "evictor.h"
/* Batches over such a page table. */
#include "batch.h"
/* Whose call a prompt is. */
#include "lineage.h"
/* Prompts that grow, hashed by what is new. */
#include "prompt.h"
/* Where things are in the JSON body of a request. */
#include "json.h"
/* Workloads, cache replay and cluster simulation. */
#include "simulate.h"
/* KV events of inference engines. */
#include "kv_events.h"

#endif /* SAGA_SAGA_H */
