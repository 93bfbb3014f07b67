/* pages.h - page tables: the KV blocks of one worker as its server sees them. Included by saga.h, whose conventions hold.
 *
 * SAGA owns the block numbers; the server owns the memory behind them and moves the bytes. A sequence is a row of tokens with
 * a block table; blocks are shared by prefix hash, copied on write after a fork, and moved between tiers by plans. See
 * native/core/pages/page_table.hpp for states, costs and the order in which blocks are evicted.
 *
 * Ids of sequences and plans are small integers; the one freed last is given out next. An id that is not open, or a plan that
 * is not pending, gives SAGA_ERR_NOT_FOUND. An id that was freed and given out again cannot be told from the new one.
 *
 * While a batch former works on the table (batch.h), what opens or changes a sequence gives SAGA_ERR_WRONG_STATE.
 *
 * Copies, of copy-on-write and of plans, are to be executed in the order reported, before anything is written into a block
 * that was given out later. All counts of tokens and blocks are exact, never estimates.
 */
#ifndef SAGA_PAGES_H
#define SAGA_PAGES_H

#include "evictor.h"
#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saga_page_table_t saga_page_table_t;

typedef struct saga_page_table_options_t {
  uint32_t struct_size;
  uint32_t block_tokens;                 /* 1 to 4,096, default 16 */
  uint32_t block_count[SAGA_TIER_COUNT]; /* of each tier, at most 2^26; GPU at least 1; 0 (default): no such tier */
  uint32_t max_sequences;                /* open at one time, 1 to 2^20, default 256 */
  /* Longest block table, and the most blocks of one plan; 1 to 2^20, default 8,192. Its product with max_sequences is at most
   * 2^30 (4 bytes each), with max_plans at most 2^26 (16 bytes each), with block_tokens at most 2^32 - 2. */
  uint32_t max_blocks_per_sequence;
  uint32_t max_plans;      /* pending at one time, 1 to 2^16, default 8 */
  uint32_t event_capacity; /* events kept until they are drained, at most 2^26; 0 (default): none */
  uint32_t uncached_first; /* 1: a block freed without a hash is the next to be taken. 0 (default): the last */
  uint32_t eviction;       /* saga_evictor_policy_t of GPU memory, default SAGA_EVICTOR_LRU */
  uint32_t ghosts; /* with SAGA_EVICTOR_SAGA: pages remembered that are gone; default SAGA_NONE: twice the blocks */
  /* 1: with SAGA_EVICTOR_SAGA, what allocate_slots evicts is copied to host memory where P(used again within the horizon) times the
   * time to compute it again exceeds `demotion_price` times the time to bring it back. 0 (default): it is dropped. */
  uint32_t demotion;
  uint32_t reserved;              /* 0 */
  double recompute_ns_per_token;  /* of a token at the beginning of a prompt */
  double recompute_double_tokens; /* a token at this position takes twice as long, default 60,000; above 0 */
  double transfer_ns_per_token;
  double demotion_price;        /* default 1 */
  uint64_t demotion_horizon_us; /* default 600,000,000 */
} saga_page_table_options_t;

/* Leading tokens of a prompt that need no computing, in whole blocks: in all, and by the tier that their block lies in. */
typedef struct saga_prefix_hit_t {
  uint32_t tokens;
  uint32_t tokens_in_tier[SAGA_TIER_COUNT];
} saga_prefix_hit_t;

/* The contents of the source block go to the target block. */
typedef struct saga_block_copy_t {
  uint32_t source_tier; /* saga_tier_t */
  uint32_t source_block;
  uint32_t target_tier;
  uint32_t target_block;
} saga_block_copy_t;

/* Tokens [first_token, first_token + token_count) of a sequence. */
typedef struct saga_token_range_t {
  uint32_t sequence;
  uint32_t first_token;
  uint32_t token_count;
} saga_token_range_t;

typedef struct saga_sequence_state_t {
  uint32_t token_count;
  uint32_t block_count;   /* token_count / block_tokens, rounded up */
  uint32_t cached_blocks; /* leading blocks whose hash was given; cache_full_blocks continues behind them */
  uint32_t resident;      /* 1: all blocks are in GPU memory */
  uint32_t busy;          /* 1: a plan of the sequence is pending */
} saga_sequence_state_t;

/* STORED: the block now answers to the hash. REMOVED: it no longer does. CLEARED: nothing in the tier is cached any more (hash
 * is 0 and block SAGA_NONE). Counted per block: two blocks with one hash give two STORED and, one by one, two REMOVED. */
typedef enum saga_block_event_kind_t {
  SAGA_BLOCK_STORED = 0,
  SAGA_BLOCK_REMOVED = 1,
  SAGA_BLOCK_CLEARED = 2
} saga_block_event_kind_t;

typedef struct saga_block_event_t {
  uint64_t hash;
  uint32_t block;
  uint16_t tier; /* saga_tier_t */
  uint16_t kind; /* saga_block_event_kind_t */
} saga_block_event_t;

typedef struct saga_block_pool_stats_t {
  uint32_t block_count;
  uint32_t free_blocks;   /* cached or not */
  uint32_t cached_blocks; /* in use or free, every copy counted */
  uint32_t cached_hashes; /* distinct */
  uint64_t allocated_total;
  uint64_t evicted_total; /* hashes lost because their block was taken */
  uint64_t memory_bytes;
} saga_block_pool_stats_t;

/* Sizes are present ones, totals since creation. */
typedef struct saga_page_table_stats_t {
  saga_block_pool_stats_t tiers[SAGA_TIER_COUNT];
  uint32_t open_sequences;
  uint32_t pending_plans;
  uint64_t opened_total; /* not counting forks */
  uint64_t prompt_tokens_total;
  uint64_t hit_tokens_total[SAGA_TIER_COUNT];
  uint64_t copies_on_write_total;
  uint64_t copied_into_tier_total[SAGA_TIER_COUNT]; /* blocks, by committed plans */
  uint64_t out_of_blocks_total;                     /* refusals */
  uint64_t events_lost_total;                       /* dropped because event_capacity were waiting */
  uint64_t memory_bytes;                            /* of the whole table */
} saga_page_table_stats_t;

/* With SAGA_EVICTOR_SAGA; zero without. */
typedef struct saga_page_table_eviction_stats_t {
  saga_evictor_stats_t evictor;
  uint64_t demoted_total;          /* blocks: copied to host memory, */
  uint64_t demoted_shared_total;   /* were there already, */
  uint64_t demotion_dropped_total; /* were not worth it, */
  uint64_t demotion_refused_total; /* or found no room there, or no room to report */
} saga_page_table_eviction_stats_t;

/* Writes the defaults into a struct of `struct_size` bytes and never a byte behind it. */
SAGA_API void saga_page_table_options_init_sized(saga_page_table_options_t* options, uint32_t struct_size);
/* The same with the size that the program was compiled with, which a newer library cannot know. */
static inline void saga_page_table_options_init(saga_page_table_options_t* options) {
  saga_page_table_options_init_sized(options, (uint32_t)sizeof(saga_page_table_options_t));
}
/* Allocates everything that the table will ever use: some 64 to 96 bytes a block, 4 for each entry of the block tables (which
 * costs memory only where it is used), 16 for each entry of the plans and for each event. */
SAGA_API saga_status_t saga_page_table_create(const saga_page_table_options_t* options, saga_page_table_t** table);
SAGA_API void saga_page_table_destroy(saga_page_table_t* table);

/* ---- Sequences. `hashes`: those of the prompt's leading full blocks, at most token_count / block_tokens. `token_count`: the
 * whole prompt, at least 1. Tiers slower than `slowest` are not looked at. The block of the last token is never a hit: a model
 * must compute at least one token. */

/* The prefix that saga_page_table_open would hit now. */
SAGA_API saga_status_t saga_page_table_match(const saga_page_table_t* table, const uint64_t* hashes, size_t count,
                                             uint32_t token_count, saga_tier_t slowest, saga_prefix_hit_t* hit);
/* A new sequence that holds the matched prefix and has as many tokens. SAGA_ERR_FULL: max_sequences are open. */
SAGA_API saga_status_t saga_page_table_open(saga_page_table_t* table, const uint64_t* hashes, size_t count,
                                            uint32_t token_count, saga_tier_t slowest, uint32_t* sequence,
                                            saga_prefix_hit_t* hit);
/* Room for `new_tokens` more tokens. *copied receives 1 if the last block was shared and therefore replaced: then `copy` is to
 * be executed; else 0. SAGA_ERR_OUT_OF_BLOCKS, SAGA_ERR_NOT_RESIDENT, SAGA_ERR_BUSY; SAGA_ERR_FULL: longer than
 * max_blocks_per_sequence. */
SAGA_API saga_status_t saga_page_table_allocate_slots(saga_page_table_t* table, uint32_t sequence, uint32_t new_tokens,
                                                      saga_block_copy_t* copy, uint32_t* copied);
/* The next `count` blocks behind those that saga_sequence_state_t.cached_blocks counts are full and computed: from now on they
 * are found by these hashes. A block that a fork has cached already must be given the same hash; another one, and more hashes
 * than there are full blocks, is SAGA_ERR_INVALID_ARGUMENT. SAGA_ERR_BUSY. */
SAGA_API saga_status_t saga_page_table_cache_full_blocks(saga_page_table_t* table, uint32_t sequence,
                                                         const uint64_t* hashes, size_t count);
/* A second sequence over the same blocks. SAGA_ERR_FULL: max_sequences are open. SAGA_ERR_BUSY. */
SAGA_API saga_status_t saga_page_table_fork(saga_page_table_t* table, uint32_t parent, uint32_t* sequence);
/* Keeps the first `token_count` tokens, at most as many as there are. SAGA_ERR_BUSY. */
SAGA_API saga_status_t saga_page_table_truncate(saga_page_table_t* table, uint32_t sequence, uint32_t token_count);
/* SAGA_ERR_BUSY. */
SAGA_API saga_status_t saga_page_table_free(saga_page_table_t* table, uint32_t sequence);
SAGA_API saga_status_t saga_page_table_sequence_state(const saga_page_table_t* table, uint32_t sequence,
                                                      saga_sequence_state_t* state);

/* ---- Calls, from which the policy of SAGA_EVICTOR_SAGA learns; under SAGA_EVICTOR_LRU the same as without. `now` in microseconds;
 * it never runs backwards: what is earlier counts as the present. */

/* saga_page_table_open for a call of `thread` (SAGA_NO_THREAD: not told). */
SAGA_API saga_status_t saga_page_table_open_call(saga_page_table_t* table, const uint64_t* hashes, size_t count,
                                                 uint32_t token_count, saga_tier_t slowest, uint64_t thread,
                                                 saga_prompt_kind_t kind, uint64_t now, uint32_t* sequence,
                                                 saga_prefix_hit_t* hit);
/* saga_page_table_free of a call that ended so; `preempted` is 1 if it will go on: the next call of its thread is it. */
SAGA_API saga_status_t saga_page_table_free_call(saga_page_table_t* table, uint32_t sequence,
                                                 const saga_call_outcome_t* outcome, uint32_t preempted, uint64_t now);
/* How the newest call of a thread ended, where that turned out after its sequence was freed: as saga_evictor_told.
 * SAGA_ERR_NOT_FOUND: the thread is not in a gap, or not known; under SAGA_EVICTOR_LRU none is. Also with a batch former. */
SAGA_API saga_status_t saga_page_table_told(saga_page_table_t* table, uint64_t thread,
                                            const saga_call_outcome_t* outcome, uint64_t now);
/* The thread will not call again. Also with a batch former. */
SAGA_API saga_status_t saga_page_table_thread_left(saga_page_table_t* table, uint64_t thread, uint64_t now);
/* Copies to host memory that allocate_slots has decided on since, in order: to be executed before all copies that are reported
 * later. At most max_blocks_per_sequence wait; others are dropped. */
SAGA_API saga_status_t saga_page_table_drain_demotions(saga_page_table_t* table, saga_block_copy_t* copies,
                                                       size_t capacity, size_t* count);
SAGA_API saga_status_t saga_page_table_eviction_stats(const saga_page_table_t* table,
                                                      saga_page_table_eviction_stats_t* stats);
/* As saga_evictor_regret. */
SAGA_API saga_status_t saga_page_table_regret(const saga_page_table_t* table, saga_regret_t* regret);

/* ---- Export for one batch, in the layout of paged attention kernels. SAGA_ERR_NOT_RESIDENT. */

/* Row i, `width` wide, holds the GPU blocks of sequences[i], then `padding`. `width` is at least the longest block_count,
 * `capacity` (elements of block_tables) at least count * width. */
SAGA_API saga_status_t saga_page_table_export_block_tables(const saga_page_table_t* table, const uint32_t* sequences,
                                                           size_t count, uint32_t width, int32_t padding,
                                                           int32_t* block_tables, size_t capacity);
/* For each token of each range, in order and without gaps: block * block_tokens + place in the block. *written receives their
 * number, which `capacity` must have room for. */
SAGA_API saga_status_t saga_page_table_export_slot_mapping(const saga_page_table_t* table,
                                                           const saga_token_range_t* ranges, size_t count,
                                                           int64_t* slot_mapping, size_t capacity, size_t* written);

/* ---- Tiers. A plan reserves target blocks and lists the copies; the server copies, then commits or aborts. Until then the
 * sequence may be read and exported, not changed. `capacity` (elements of copies) is at least the sequence's block_count, or
 * `count`. *copy_count may be 0 (the targets hold the hashes already); the plan is to be committed all the same.
 * SAGA_ERR_OUT_OF_BLOCKS, SAGA_ERR_BUSY; SAGA_ERR_FULL: max_plans are pending. */

/* All blocks of the sequence that lie above `target`, which is not the GPU. */
SAGA_API saga_status_t saga_page_table_plan_swap_out(saga_page_table_t* table, uint32_t sequence, saga_tier_t target,
                                                     saga_block_copy_t* copies, size_t capacity, uint32_t* plan,
                                                     size_t* copy_count);
/* All blocks of the sequence that lie below the GPU. */
SAGA_API saga_status_t saga_page_table_plan_swap_in(saga_page_table_t* table, uint32_t sequence,
                                                    saga_block_copy_t* copies, size_t capacity, uint32_t* plan,
                                                    size_t* copy_count);
/* Cached blocks by hash, used by a sequence or not, from one tier to another one. At most max_blocks_per_sequence hashes, each
 * once, in prefix order (beginning first: it decides what is evicted first). Hashes that `source` does not hold are passed
 * over. */
SAGA_API saga_status_t saga_page_table_plan_copy(saga_page_table_t* table, saga_tier_t source, const uint64_t* hashes,
                                                 size_t count, saga_tier_t target, saga_block_copy_t* copies,
                                                 size_t capacity, uint32_t* plan, size_t* copy_count);
/* The copies are done, or certain to be done before anything that is ordered later. */
SAGA_API saga_status_t saga_page_table_commit(saga_page_table_t* table, uint32_t plan);
/* The targets are given back. Hashes that went to make room for them stay gone. */
SAGA_API saga_status_t saga_page_table_abort(saga_page_table_t* table, uint32_t plan);

/* ---- Cached blocks */

/* For each hash: the block that a lookup in `tier` finds no longer answers to it (one copy; call again for another). *evicted
 * receives how many hashes were found. */
SAGA_API saga_status_t saga_page_table_evict(saga_page_table_t* table, saga_tier_t tier, const uint64_t* hashes,
                                             size_t count, size_t* evicted);
/* Those of these blocks that are free become the next to be taken in `tier`, in the order given. *moved receives their number. */
SAGA_API saga_status_t saga_page_table_evict_first(saga_page_table_t* table, saga_tier_t tier, const uint64_t* hashes,
                                                   size_t count, size_t* moved);
/* Forgets all hashes of a tier. *done receives 1; or 0, with nothing changed, while any of its blocks is in use. */
SAGA_API saga_status_t saga_page_table_reset_prefix_cache(saga_page_table_t* table, saga_tier_t tier, uint32_t* done);
/* The hash of every cached block of a tier in order of block number (two blocks may have the same), for a reader that lost
 * events. `capacity` is at least cached_blocks of the tier's statistics. Cost: O(blocks of the tier). */
SAGA_API saga_status_t saga_page_table_cached_hashes(const saga_page_table_t* table, saga_tier_t tier, uint64_t* hashes,
                                                     size_t capacity, size_t* count);
/* Moves the oldest events, at most `capacity`, into `events`. While event_capacity of them wait, new ones are dropped and
 * counted in events_lost_total. */
SAGA_API saga_status_t saga_page_table_drain_events(saga_page_table_t* table, saga_block_event_t* events,
                                                    size_t capacity, size_t* count);

/* ---- Inspection */

SAGA_API saga_status_t saga_page_table_stats(const saga_page_table_t* table, saga_page_table_stats_t* stats);
/* Recomputes every invariant; *intact receives 1 or 0. Cost: O(blocks + entries in use). */
SAGA_API saga_status_t saga_page_table_verify(const saga_page_table_t* table, uint32_t* intact);
/* Fingerprint of the whole state, without statistics and events. */
SAGA_API saga_status_t saga_page_table_digest(const saga_page_table_t* table, uint64_t* digest);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_PAGES_H */
