// Vocabulary of the core: time, ids and the small closed enumerations that every module shares.
//
// Time is an argument everywhere: unsigned microseconds from an origin that the caller chooses. The core reads no clock.
// Ids are small integers given out in order (dense, so that arrays index by them); kNone marks "no such thing".
// A block hash names a block *and everything before it* (a chain hash): equal hash means equal prefix.
//
// Field order and numeric values of the enumerations are part of the journal format and of the C ABI: append, never renumber.
#pragma once

#include <cstdint>

namespace saga {

using Time = std::uint64_t;  // microseconds

inline constexpr Time kNotDeclared = ~Time{0};  // a time that a client could have told and did not

using WorkerId = std::uint32_t;
using CallId = std::uint32_t;
using ThreadId = std::uint32_t;  // one agent of one workflow: its calls follow each other
using BlockHash = std::uint64_t;

inline constexpr std::uint32_t kNone = 0xFFFFFFFFu;

// Where a block lies on a worker, fastest first.
enum class Tier : std::uint8_t { kGpu = 0, kHost = 1, kDisk = 2 };
inline constexpr std::uint32_t kTierCount = 3;

// What the prompt of a call brings that the one before did not have.
enum class PromptKind : std::uint8_t { kStart = 0, kTool = 1, kUser = 2 };

// Why an answer ended. kToolUse: the client now runs a tool; kEndTurn: a human (or nothing) comes next; kUnknown: not told.
enum class StopReason : std::uint8_t { kUnknown = 0, kToolUse = 1, kEndTurn = 2 };

// Tool classes of the SAGA paper (section 1, tool latency table); kNone where the client names none.
enum class ToolClass : std::uint8_t {
  kNone = 0,
  kCodeExecution = 1,
  kFileOperation = 2,
  kWebApi = 3,
  kDatabaseQuery = 4
};

}  // namespace saga
