/* kv_events.h - KV events of inference engines, decoded straight into the page tables of a saga_engine_t. Included by saga.h, whose
 * conventions hold.
 *
 * A source belongs to one publisher and data-parallel rank, and so to one worker. It takes the payload (the last frame) of each
 * message in order, counts the copies of every block per KV-cache group and tier, and tells the engine only when a block comes or
 * is gone. It reads the msgpack of vLLM since 0.9, SGLang and llm-d-inference-sim; see native/core/vllm/kv_event_source.hpp for
 * the rules, what they cost and what they cannot know.
 *
 * Hashes: with SAGA_HASH_SHA256_CBOR and SAGA_HASH_XXHASH_CBOR the engine's key of a block is the low 64 bits of the publisher's
 * hash, which saga_hasher_t computes alike (fixed PYTHONHASHSEED). With SAGA_HASH_SAGA blocks are named anew from the tokens in the
 * events, by SAGA's own chain: that works for any hash and seed of the publisher, but needs every event since the root; a block
 * behind an unknown parent cannot be used until it is stored again behind a known one. Its chain begins at the salt that
 * saga_chain_salt makes of cache salt and LoRA adapter.
 *
 * What cannot be known exactly is said: the `uncertain` bits (saga_kv_uncertain_t). All memory is allocated at creation. A source
 * is used from one thread at a time, and so is the engine that it tells.
 */
#ifndef SAGA_KV_EVENTS_H
#define SAGA_KV_EVENTS_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saga_kv_source_t saga_kv_source_t;

typedef struct saga_kv_source_options_t {
  uint32_t struct_size;
  uint32_t algorithm;       /* saga_hash_algorithm_t, default SAGA_HASH_SAGA */
  uint32_t block_tokens;    /* 1 to 4,096, default 16: that of the engine and of the publisher */
  uint32_t reserved;        /* 0 */
  uint64_t max_blocks;      /* distinct blocks known at one time in all tiers, 1 to 2^28, default 2^18 */
  uint64_t max_batch_bytes; /* longest payload, 64 to 2^30, default 2^26 */
} saga_kv_source_options_t;

/* Why what a source says may differ from what its publisher holds; a set of bits. It stays until a batch clears all blocks
 * (SAGA_KV_EVENT_REFUSED and the two behind it) or until saga_kv_source_reset (all). */
typedef enum saga_kv_uncertain_t SAGA_ENUM {
  SAGA_KV_GROUP_KIND =
      1, /* a KV-cache group keeps neither every block nor a window (such as mamba), or changed its kind */
  SAGA_KV_GROUP_UNSTATED =
      2,                   /* a group beside group 0 whose kind nobody stated: taken for one that keeps every block */
  SAGA_KV_GROUP_LIMIT = 4, /* a group of number 32 or above */
  SAGA_KV_BLOCK_SIZE = 8,  /* a group with another block size than the options say */
  SAGA_KV_WINDOW_UNSTATED = 16, /* a group keeps a window whose length nobody stated: taken for the whole prefix */
  SAGA_KV_EVENT_REFUSED = 32,   /* an event that stores or removes could not be understood */
  SAGA_KV_SOURCE_FULL = 64,     /* max_blocks were known; blocks or copies were not counted */
  SAGA_KV_ENGINE_FULL = 128     /* the engine had no room for blocks (its max_blocks) */
} saga_kv_uncertain_t;
#define SAGA_KV_UNCERTAIN_COUNT 8u

/* What was done: by one batch, or since creation. Blocks count once for each time that an event names them. */
typedef struct saga_kv_counts_t {
  uint64_t events;
  uint64_t stored_events; /* of these kinds, whatever became of them */
  uint64_t removed_events;
  uint64_t cleared_events;
  uint64_t unknown_events;   /* skipped: of another kind */
  uint64_t refused_events;   /* skipped: of these kinds, but not as they should be */
  uint64_t remote_events;    /* skipped: of memory that is not the publisher's */
  uint64_t partial_events;   /* skipped: of blocks that are not full yet */
  uint64_t group_events;     /* skipped: of groups with another block size, or beyond the limit */
  uint64_t stored_blocks;    /* copies that came */
  uint64_t removed_blocks;   /* copies that went, not counting cleared ones */
  uint64_t unknown_removals; /* removals of copies that were not known */
  uint64_t
      unusable_blocks; /* stored ones whose key cannot be known: behind an unknown parent, or announced without tokens */
  uint64_t dropped_blocks; /* copies not counted, for want of room */
  uint64_t engine_stored;  /* blocks that the engine was told to have come */
  uint64_t engine_removed; /* to have gone */
  uint64_t skipped_fields; /* keys of maps and elements of arrays that are not known */
} saga_kv_counts_t;

typedef struct saga_kv_report_t {
  uint32_t struct_size;       /* set it to the size that you compiled with */
  int32_t data_parallel_rank; /* as the batch says; -1: it does not */
  double timestamp;           /* as the batch says: seconds since 1970 */
  uint32_t uncertain;         /* bits of saga_kv_uncertain_t, present ones */
  uint32_t engine_status;     /* saga_status_t: why the engine was not told everything (yet) */
  saga_kv_counts_t counts;    /* of this batch */
} saga_kv_report_t;

typedef struct saga_kv_stats_t {
  uint32_t struct_size; /* set it to the size that you compiled with */
  uint32_t uncertain;
  uint32_t groups;        /* KV-cache groups that were named */
  uint32_t window_blocks; /* longest window of any group, in blocks; 0: no group keeps a window */
  uint32_t engine_behind; /* 1: the engine refused something that it will be told with the next batch */
  uint32_t reserved;
  uint64_t batches;
  uint64_t blocks;          /* distinct ones with at least one copy */
  uint64_t copies;          /* of all groups and tiers */
  uint64_t nameless_blocks; /* of `blocks`, those that cannot be used */
  uint64_t memory_bytes;    /* reserved; taken once it is touched */
  saga_kv_counts_t counts;  /* since creation */
} saga_kv_stats_t;

SAGA_API void saga_kv_source_options_init_sized(saga_kv_source_options_t* options, uint32_t struct_size);
static inline void saga_kv_source_options_init(saga_kv_source_options_t* options) {
  saga_kv_source_options_init_sized(options, (uint32_t)sizeof(saga_kv_source_options_t));
}
SAGA_API saga_status_t saga_kv_source_create(const saga_kv_source_options_t* options, saga_kv_source_t** source);
SAGA_API void saga_kv_source_destroy(saga_kv_source_t* source);

/* Applies one batch: the whole of it, or nothing. Nothing is changed by
 *   SAGA_ERR_INVALID_ARGUMENT  (also:) the payload is not a batch, or cut off: ask for it again
 *   SAGA_ERR_FULL              it is longer than max_batch_bytes
 *   any other status           the engine takes no event now: `now`, the worker, or its journal
 * With SAGA_OK the batch is counted. What the engine then refused is in report->engine_status: for SAGA_ERR_JOURNAL_FULL it is told
 * with the next batch, or by saga_kv_source_sync, after the journal has been read; for SAGA_ERR_FULL only by saga_kv_source_sync.
 * Give one source always the same engine and worker. */
SAGA_API saga_status_t saga_kv_source_apply(saga_kv_source_t* source, saga_engine_t* engine, uint64_t now,
                                            uint32_t worker, const uint8_t* payload, size_t size,
                                            saga_kv_report_t* report);
/* The publisher began anew, or events are lost: all is forgotten, here (groups too) and in the engine. Then feed the events from
 * the first one on, or go on with what comes. Any status but SAGA_OK: nothing was changed. */
SAGA_API saga_status_t saga_kv_source_reset(saga_kv_source_t* source, saga_engine_t* engine, uint64_t now,
                                            uint32_t worker);
/* Tells the engine what it refused. Any status but SAGA_OK is the engine's: it still lacks something. O(max_blocks) if so. */
SAGA_API saga_status_t saga_kv_source_sync(saga_kv_source_t* source, saga_engine_t* engine, uint64_t now,
                                           uint32_t worker);

/* Leading blocks of `chain` (keys of the engine) that the publisher could use from `tier` and faster ones: groups that keep every
 * block hold all of them, and each that keeps a window holds the last ones before the end. At most `full_depth`, leading blocks
 * known to be held by the groups that keep every block (saga_engine_match), or SAGA_NONE: found here. 0 while a group is known
 * whose blocks are not understood (SAGA_KV_GROUP_KIND, _LIMIT, _BLOCK_SIZE). */
SAGA_API saga_status_t saga_kv_source_usable(const saga_kv_source_t* source, saga_tier_t tier, const uint64_t* chain,
                                             size_t count, uint32_t full_depth, uint32_t* usable);
/* Copies of a block (key of the engine) that a group holds in a tier. `group`: 0 to 31. */
SAGA_API saga_status_t saga_kv_source_holds(const saga_kv_source_t* source, uint32_t group, saga_tier_t tier,
                                            uint64_t hash, uint32_t* copies);

SAGA_API saga_status_t saga_kv_source_stats(const saga_kv_source_t* source, saga_kv_stats_t* stats);
/* A sentence for one bit of saga_kv_uncertain_t; static, never NULL. */
SAGA_API const char* saga_kv_uncertain_text(saga_kv_uncertain_t reason);
/* Recomputes every invariant; *intact receives 1 or 0. Cost: O(max_blocks). */
SAGA_API saga_status_t saga_kv_source_verify(const saga_kv_source_t* source, uint32_t* intact);

/* The data-parallel rank that a batch names, or -1, without applying it: for publishers that share a socket.
 * SAGA_ERR_INVALID_ARGUMENT: not a batch. */
SAGA_API saga_status_t saga_kv_batch_rank(const uint8_t* payload, size_t size, int32_t* rank);

/* The salt of SAGA's own chain for requests with this cache salt and LoRA adapter (NULL or size 0: none; at most 4,096 bytes each):
 * different pairs give different salts, no pair gives the empty one. It is the length of the cache salt in decimal, a colon, the
 * cache salt, and the adapter. *size receives its length; SAGA_ERR_INVALID_ARGUMENT where that is above `capacity`
 * (8,200 is always enough). */
SAGA_API saga_status_t saga_chain_salt(const char* cache_salt, size_t cache_salt_size, const char* lora_name,
                                       size_t lora_name_size, char* salt, size_t capacity, size_t* size);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_KV_EVENTS_H */
