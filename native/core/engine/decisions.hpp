// Decisions of the engine: 64 bytes each, one after the other as they cross the C ABI and the JavaScript border and as they
// lie in the journal. A placement carries what was known when it was made; every other type is a directive, in the same bytes.
#pragma once

#include <bit>
#include <cstdint>

#include "../base/types.hpp"

namespace saga {

// Numeric values are part of the journal format and of the C ABI: append, never renumber.
enum class DecisionType : std::uint16_t {
  kPlace = 1,
  kCopy = 2,
  kRetain = 3,
  kRelease = 4,
  kDrop = 5,
  kPriority = 6,
};

// Reasons of a placement are those of PlacementReason, and behind them those of SagaReason.
inline constexpr std::uint32_t kFirstSagaReason = 4;

enum class CopyReason : std::uint32_t {
  kPull = 0,      // a call waits for the pages
  kMigrate = 1,   // its thread is in a gap and will go on there
  kPrefetch = 2,  // from host memory, before the thread comes back
  kReload = 3,    // from host memory, for a call that waits
};

struct Decision {
  std::uint16_t type = 0;       // DecisionType
  std::uint16_t placement = 0;  // how often this call was placed before, modulo 2^16
  std::uint32_t worker = 0;     // where the call goes
  std::uint64_t call = 0;
  std::uint32_t reason = 0;                       // PlacementReason, or kFirstSagaReason + SagaReason
  std::uint32_t prompt_blocks = 0;                // full blocks of the prompt, hashed or not
  std::uint32_t matched_blocks[kTierCount] = {};  // leading blocks on that worker: in GPU; in GPU or host; in any tier
  std::uint32_t longest_match = 0;                // the longest leading match in GPU memory on any active worker
  std::uint32_t longest_match_worker = 0;         // the smallest id that has it; kNone where nobody holds anything
  std::uint32_t open_calls = 0;                   // on that worker, before this one
  std::uint32_t blocks_in_use = 0;                // there, by running calls, before this one
  std::uint16_t active_workers = 0;
  std::int16_t priority = 0;     // smaller goes first in the worker's queue
  std::uint64_t decided_at = 0;  // microseconds
};
static_assert(sizeof(Decision) == 64);

// What its type does not use is 0.
struct Directive {
  std::uint16_t type = 0;  // DecisionType
  std::uint16_t reserved = 0;
  std::uint32_t worker = 0;  // that carries it out; copy: receives the blocks
  std::uint64_t call = 0;    // may have ended: then it stands for its prompt and its answer
  std::uint32_t reason = 0;  // copy: CopyReason
  std::uint32_t blocks = 0;  // copy: leading blocks of the call that the source has; retain: that it covers
  std::uint32_t source = 0;  // copy
  std::int32_t priority = 0;
  std::uint64_t id = 0;  // copy, retain, release; 0: none
  std::uint64_t value = 0;
  std::uint64_t until = 0;  // retain: deadline; copy: not needed any more after it
  std::uint64_t decided_at = 0;
};
static_assert(sizeof(Directive) == 64);

inline Decision to_decision(const Directive& directive) { return std::bit_cast<Decision>(directive); }
inline Directive to_directive(const Decision& decision) { return std::bit_cast<Directive>(decision); }

}  // namespace saga
