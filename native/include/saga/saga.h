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
  SAGA_HASH_XXHASH_CBOR = 2  /* vLLM --prefix-caching-hash-algo xxhash_cbor */
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
  SAGA_PLACEMENT_AFFINITY = 1
} saga_placement_t;

typedef struct saga_engine_options_t {
  uint32_t struct_size;
  uint32_t max_workers;           /* 1 to 1,024, default 64; ids are never reused */
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
} saga_engine_options_t;

/* A decision with its receipt: what was known when it was made. */
typedef enum saga_decision_type_t SAGA_ENUM { SAGA_DECISION_PLACE = 1 } saga_decision_type_t;
typedef enum saga_reason_t SAGA_ENUM {
  SAGA_REASON_ROUND_ROBIN = 0,   /* its turn */
  SAGA_REASON_LONGEST_MATCH = 1, /* it holds the longest leading part of the prompt */
  SAGA_REASON_FEWEST_BLOCKS = 2, /* nobody holds enough; it has the fewest blocks in use by running calls */
  SAGA_REASON_IMBALANCE = 3      /* open calls were too unequal; the emptier of two drawn workers */
} saga_reason_t;

typedef struct saga_decision_t {
  uint32_t type;   /* saga_decision_type_t */
  uint32_t worker; /* where the call goes */
  uint64_t call;
  uint32_t reason;                          /* saga_reason_t */
  uint32_t prompt_blocks;                   /* full blocks of the prompt, hashed or not */
  uint32_t matched_blocks[SAGA_TIER_COUNT]; /* leading blocks on that worker: in GPU; in GPU or host; in any tier */
  uint32_t longest_match;                   /* longest leading match in GPU memory on any active worker */
  uint32_t longest_match_worker;            /* the smallest id that has it, or SAGA_NONE */
  uint32_t open_calls;                      /* on that worker, before this one */
  uint32_t blocks_in_use;                   /* there, by running calls, before this one */
  uint32_t active_workers;
  uint64_t decided_at; /* microseconds */
} saga_decision_t;

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

typedef struct saga_worker_state_t {
  uint32_t capacity_blocks;
  uint32_t open_calls;
  uint32_t blocks_in_use; /* as last reported, plus the prompts of open calls placed since */
  uint32_t active;        /* 0 after saga_engine_remove_worker */
} saga_worker_state_t;

/* Writes the defaults into a struct of `struct_size` bytes and never a byte behind it. */
SAGA_API void saga_engine_options_init_sized(saga_engine_options_t* options, uint32_t struct_size);
/* The same with the size that the program was compiled with, which a newer library cannot know. */
static inline void saga_engine_options_init(saga_engine_options_t* options) {
  saga_engine_options_init_sized(options, (uint32_t)sizeof(saga_engine_options_t));
}
SAGA_API saga_status_t saga_engine_create(const saga_engine_options_t* options, saga_engine_t** engine);
SAGA_API void saga_engine_destroy(saga_engine_t* engine);

/* Workers. `capacity_blocks` is the worker's KV room, at least 1. */
SAGA_API saga_status_t saga_engine_add_worker(saga_engine_t* engine, uint64_t now, uint32_t capacity_blocks,
                                              uint32_t* worker);
/* The worker is lost or drained: what it held is forgotten and its calls wait to be placed again. */
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

/* Leading blocks of `chain` that each worker holds: depth[worker * SAGA_TIER_COUNT + tier] for all max_workers; tiers are
 * cumulative (in GPU; in GPU or host; in any). `depth_count` must be max_workers * SAGA_TIER_COUNT. */
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
/* Batches over such a page table. */
#include "batch.h"
/* Workloads, cache replay and cluster simulation. */
#include "simulate.h"

#endif /* SAGA_SAGA_H */
