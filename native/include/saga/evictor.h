/* evictor.h - which KV block of a server's pool is taken next, for servers that keep their own block numbers. Included by saga.h,
 * whose conventions hold.
 *
 * The policy `saga` keeps the pages with the most expected hits for each page-second of room; it learns from calls how long their
 * threads are away. An evictor stands in for the free list of a block pool (in vLLM: the queue of free blocks): append and
 * append_n are `unpin`, remove is `pin`, prepend is `prefer`, popleft and popleft_n are `take`. See
 * native/core/evict/block_evictor.hpp for states, order and cost.
 *
 * All blocks are free and without a hash at first. Every function works on whole arrays, so a step of the server needs a few
 * crossings only; one that gives SAGA_ERR_INVALID_ARGUMENT or SAGA_ERR_WRONG_STATE has changed nothing. `now` is in microseconds
 * and must not run backwards (SAGA_ERR_TIME_REVERSED). An evictor is used from one thread at a time.
 */
#ifndef SAGA_EVICTOR_H
#define SAGA_EVICTOR_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saga_evictor_t saga_evictor_t;

typedef enum saga_evictor_policy_t {
  SAGA_EVICTOR_LRU = 0, /* least recently used first, as vLLM */
  SAGA_EVICTOR_SAGA = 1
} saga_evictor_policy_t;

#define SAGA_NO_THREAD UINT64_MAX

typedef struct saga_evictor_options_t {
  uint32_t struct_size;
  uint32_t block_count;  /* 1 to 2^26; to be set */
  uint32_t block_tokens; /* 1 to 4,096, default 16 */
  uint32_t max_calls;    /* at one time, those preempted included, 1 to 2^20, default 1,024 */
  uint32_t ghosts;       /* pages remembered that are gone, at most 2^27; default SAGA_NONE: twice block_count */
  uint32_t policy;       /* saga_evictor_policy_t, default SAGA_EVICTOR_SAGA */
} saga_evictor_options_t;

/* How a call ended; everything may be unknown: {0, 0, 0, 0, UINT64_MAX}. */
typedef struct saga_call_outcome_t {
  uint32_t stop_reason;     /* saga_stop_reason_t */
  uint32_t tool_class;      /* saga_tool_class_t */
  uint32_t session_end;     /* 1: the client says that the thread will not call again */
  uint32_t output_tokens;   /* of the answer; 0: not told */
  uint64_t declared_gap_us; /* the client says that its tool takes so long; UINT64_MAX: not told */
} saga_call_outcome_t;

/* A call that ends. `last_block`: the deepest of its blocks that is stored, or SAGA_NONE. */
typedef struct saga_evictor_end_t {
  uint32_t call;
  uint32_t last_block;
  saga_call_outcome_t outcome;
} saga_evictor_end_t;

typedef struct saga_evictor_stats_t {
  uint32_t free_blocks;
  uint32_t pages;  /* stored, distinct */
  uint32_t hollow; /* pages without a block that stand in before others */
  uint32_t ghosts;
  uint32_t heads; /* threads and superseded prompts that are known */
  uint32_t reserved;
  uint64_t taken_total;
  uint64_t taken_without_hash_total;
  uint64_t taken_copies_total;
  uint64_t evicted_total;   /* pages that went by the policy */
  uint64_t bypassed_total;  /* of these, never used again since they were stored */
  uint64_t forgotten_total; /* threads and superseded prompts forgotten for want of room */
  uint64_t requested_pages_total;
  uint64_t missed_pages_total;
  uint64_t memory_bytes;
} saga_evictor_stats_t;

/* Misses of the cache and of Belady's optimum on the calls of the recent window, those that warm the optimum up not counted. */
typedef struct saga_regret_t {
  uint64_t calls;
  uint64_t missed_pages;
  uint64_t optimum_missed_pages;
} saga_regret_t;

SAGA_API void saga_evictor_options_init_sized(saga_evictor_options_t* options, uint32_t struct_size);
static inline void saga_evictor_options_init(saga_evictor_options_t* options) {
  saga_evictor_options_init_sized(options, (uint32_t)sizeof(saga_evictor_options_t));
}
SAGA_API saga_status_t saga_evictor_create(const saga_evictor_options_t* options, saga_evictor_t** evictor);
SAGA_API void saga_evictor_destroy(saga_evictor_t* evictor);

/* ---- Calls. The server gives them numbers below max_calls and may use them again after their end. */

/* A call of `thread` (SAGA_NO_THREAD: not told) with the hashes of the full blocks of its prompt, before its blocks are pinned.
 * *resident receives how many of the leading ones are stored. The same number goes on with a call that was preempted.
 * SAGA_ERR_WRONG_STATE: the number is in use. */
SAGA_API saga_status_t saga_evictor_start(saga_evictor_t* evictor, uint32_t call, uint64_t thread,
                                          const uint64_t* hashes, size_t count, saga_prompt_kind_t kind, uint64_t now,
                                          uint32_t* resident);
/* Calls that end, before their blocks are unpinned. SAGA_ERR_NOT_FOUND: one of them is not open. */
SAGA_API saga_status_t saga_evictor_end(saga_evictor_t* evictor, const saga_evictor_end_t* ends, size_t count,
                                        uint64_t now);
/* Calls that lose their blocks and go on later: saga_evictor_start with the same number. */
SAGA_API saga_status_t saga_evictor_preempt(saga_evictor_t* evictor, const uint32_t* calls, size_t count, uint64_t now);
/* How the newest call of a thread ended, where that turned out after saga_evictor_end: the gap that it is in goes on by this
 * outcome, which replaces the one told then. SAGA_ERR_NOT_FOUND: the thread is not in a gap (or not known; the policy lru knows
 * none). */
SAGA_API saga_status_t saga_evictor_told(saga_evictor_t* evictor, uint64_t thread, const saga_call_outcome_t* outcome,
                                         uint64_t now);
/* These threads will not call again. Those that are not known are passed over. */
SAGA_API saga_status_t saga_evictor_threads_left(saga_evictor_t* evictor, const uint64_t* threads, size_t count,
                                                 uint64_t now);

/* ---- Blocks */

/* Consecutive full blocks of one chain, which answer to `hashes` from now on. `parent`: the hash of the page before the first, or
 * NULL at the beginning of a chain. Behind a page that is not known they count as blocks without a hash. */
SAGA_API saga_status_t saga_evictor_store(saga_evictor_t* evictor, const uint64_t* parent, const uint64_t* hashes,
                                          const uint32_t* blocks, size_t count);
/* They do not answer to a hash any more. */
SAGA_API saga_status_t saga_evictor_drop(saga_evictor_t* evictor, const uint32_t* blocks, size_t count);
/* Free blocks that are used again; SAGA_ERR_WRONG_STATE if one of them is in use, or given twice. */
SAGA_API saga_status_t saga_evictor_pin(saga_evictor_t* evictor, const uint32_t* blocks, size_t count);
/* Blocks whose last user has gone, of each call the last block first; SAGA_ERR_WRONG_STATE if one is free, or given twice. */
SAGA_API saga_status_t saga_evictor_unpin(saga_evictor_t* evictor, const uint32_t* blocks, size_t count);
/* Free blocks lose their hash and are the next to be taken, the first of them first. */
SAGA_API saga_status_t saga_evictor_prefer(saga_evictor_t* evictor, const uint32_t* blocks, size_t count);
/* Takes `count` free blocks, in the order in which they are to go: they are in use and without a hash from now on.
 * SAGA_ERR_OUT_OF_BLOCKS, with nothing changed, if fewer are free. */
SAGA_API saga_status_t saga_evictor_take(saga_evictor_t* evictor, uint32_t* blocks, size_t count, uint64_t now);
/* No block has a hash any more. */
SAGA_API saga_status_t saga_evictor_clear(saga_evictor_t* evictor);

/* ---- Inspection */

SAGA_API saga_status_t saga_evictor_stats(const saga_evictor_t* evictor, saga_evictor_stats_t* stats);
/* Replays the recent calls under Belady's optimum. Cost: some 50 ns for each block of their prompts; for reports, not for
 * every step. */
SAGA_API saga_status_t saga_evictor_regret(const saga_evictor_t* evictor, saga_regret_t* regret);
/* Recomputes every invariant; *intact receives 1 or 0. */
SAGA_API saga_status_t saga_evictor_verify(const saga_evictor_t* evictor, uint32_t* intact);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_EVICTOR_H */
