// What the evictor and page tables of the C interface share: outcomes of calls and statistics.
#pragma once

#include "../core/evict/block_evictor.hpp"
#include "saga/saga.h"

namespace saga::capi {

inline bool outcome_valid(const saga_call_outcome_t& outcome) {
  return outcome.stop_reason <= SAGA_STOP_END_TURN && outcome.tool_class <= SAGA_TOOL_DATABASE_QUERY &&
         outcome.session_end <= 1;
}

inline CallOutcome to_core(const saga_call_outcome_t& from) {
  CallOutcome outcome;
  outcome.stop_reason = static_cast<StopReason>(from.stop_reason);
  outcome.tool_class = static_cast<ToolClass>(from.tool_class);
  outcome.session_end = from.session_end != 0;
  outcome.output_tokens = from.output_tokens;
  outcome.declared_gap = from.declared_gap_us;
  return outcome;
}

inline saga_evictor_stats_t to_c(const BlockEvictorStats& from) {
  return {from.free_blocks,
          from.pages,
          from.hollow,
          from.ghosts,
          from.heads,
          0,
          from.taken_total,
          from.taken_without_hash_total,
          from.taken_copies_total,
          from.evicted_total,
          from.bypassed_total,
          from.forgotten_total,
          from.requested_pages_total,
          from.missed_pages_total,
          from.memory_bytes};
}

}  // namespace saga::capi
