/* lineage.h - which workflow a call belongs to, told by its prompt where no client says so. Included by saga.h, whose conventions
 * hold.
 *
 * A prompt that begins with all that an earlier call's prompt was continues that call's workflow; one that leaves an earlier line
 * of calls forks it, or rolls it back. A **head** is the newest prompt of one line of calls; a workflow has one or several. See
 * native/core/graph/lineage.hpp for the rules, their order and their cost (some 3 to 10 us a call of 1,024 blocks).
 *
 * Workflows and heads are small numbers below max_heads, used again when they have been forgotten. Memory is allocated at creation
 * alone: when heads or blocks are used up, the head unused for longest is forgotten, and a workflow with its last head.
 * saga_lineage_forgotten names those workflows. A lineage is used from one thread at a time.
 */
#ifndef SAGA_LINEAGE_H
#define SAGA_LINEAGE_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saga_lineage_t saga_lineage_t;

/* What a call is to those before it. */
typedef enum saga_lineage_kind_t SAGA_ENUM {
  SAGA_LINEAGE_NEW = 0,         /* the first of a workflow */
  SAGA_LINEAGE_CONTINUED = 1,   /* the next of a line */
  SAGA_LINEAGE_FORKED = 2,      /* a further line of a workflow, beside one that runs: a sub-agent, a parallel sample */
  SAGA_LINEAGE_ROLLED_BACK = 3, /* goes on from an earlier point of a line that waits, and takes its place */
  SAGA_LINEAGE_COMPACTED = 4    /* of a workflow named by its id: a new prompt replaces the old one, as a summary */
} saga_lineage_kind_t;
#define SAGA_LINEAGE_KIND_COUNT 5u

/* The id of a call whose client names no workflow. */
#define SAGA_NO_WORKFLOW_ID UINT64_MAX

typedef struct saga_lineage_options_t {
  uint32_t struct_size;
  uint32_t max_heads;    /* 2 to 2^20, default 4,096; at most max_heads - 1 calls run at one time */
  uint32_t max_blocks;   /* known at one time, 1 to 2^26, default 2^20; 56 to 72 bytes each */
  uint32_t slack_blocks; /* the last blocks of a prompt that the next one may lack, at most 4,096; default 1 */
} saga_lineage_options_t;

typedef struct saga_lineage_match_t {
  saga_lineage_kind_t kind;
  uint32_t workflow;
  uint32_t head;          /* of this call, until saga_lineage_ended */
  uint32_t superseded;    /* head whose line was left, or SAGA_NONE */
  uint32_t common_blocks; /* leading blocks shared with the line continued, left or forked; if new: with any */
  uint32_t known_blocks;  /* leading blocks that were known at all */
} saga_lineage_match_t;

typedef struct saga_lineage_stats_t {
  uint32_t workflows;
  uint32_t heads;
  uint32_t running_calls;
  uint32_t blocks;
  uint64_t calls_total[SAGA_LINEAGE_KIND_COUNT]; /* by kind */
  uint64_t superseded_total;                     /* heads whose line was left */
  uint64_t forgotten_total;                      /* workflows forgotten for want of room */
  uint64_t memory_bytes;
} saga_lineage_stats_t;

SAGA_API void saga_lineage_options_init_sized(saga_lineage_options_t* options, uint32_t struct_size);
static inline void saga_lineage_options_init(saga_lineage_options_t* options) {
  saga_lineage_options_init_sized(options, (uint32_t)sizeof(saga_lineage_options_t));
}
SAGA_API saga_status_t saga_lineage_create(const saga_lineage_options_t* options, saga_lineage_t** lineage);
SAGA_API void saga_lineage_destroy(saga_lineage_t* lineage);

/* The id of a workflow that its client names with a text of at least one byte, such as the value of a session header: a hash,
 * never SAGA_NO_WORKFLOW_ID. Equal texts give equal ids, in every process and on every machine. */
SAGA_API saga_status_t saga_lineage_id_of(const char* text, size_t size, uint64_t* id);

/* A call is sent: `hashes` are those of the full blocks of its prompt, `id` that of its workflow or SAGA_NO_WORKFLOW_ID. Its head
 * runs until saga_lineage_ended. SAGA_ERR_FULL: max_heads - 1 calls run. */
SAGA_API saga_status_t saga_lineage_identify(saga_lineage_t* lineage, const uint64_t* hashes, size_t count, uint64_t id,
                                             saga_lineage_match_t* match);
/* The call of a head has ended. SAGA_ERR_NOT_FOUND: no call of this head runs. */
SAGA_API saga_status_t saga_lineage_ended(saga_lineage_t* lineage, uint32_t head);
/* A workflow is done, and forgotten. SAGA_ERR_NOT_FOUND: it is not known (any more); SAGA_ERR_WRONG_STATE: a call of it runs. */
SAGA_API saga_status_t saga_lineage_closed(saga_lineage_t* lineage, uint32_t workflow);
/* Workflows that the last saga_lineage_identify forgot to make room, before it gave out its own number, which may be one of theirs;
 * none after saga_lineage_closed. *count receives how many, `workflows` the first `capacity` of them. */
SAGA_API saga_status_t saga_lineage_forgotten(const saga_lineage_t* lineage, uint32_t* workflows, size_t capacity,
                                              size_t* count);

/* ---- Inspection */

SAGA_API saga_status_t saga_lineage_stats(const saga_lineage_t* lineage, saga_lineage_stats_t* stats);
/* Recomputes every invariant; *intact receives 1 or 0. */
SAGA_API saga_status_t saga_lineage_verify(const saga_lineage_t* lineage, uint32_t* intact);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_LINEAGE_H */
