// Conditions that a caller can meet and handle. Values are those of saga_status_t in saga.h (checked by static_assert in
// native/capi). Bugs are assertions (assert.hpp), never a status.
#pragma once

#include <cstdint>

namespace saga {

enum class Status : std::int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // a value outside its stated range
  kNotFound = 2,         // no such worker, workflow, call or sequence (or it has ended)
  kFull = 3,             // a bound fixed at construction is reached; nothing was changed
  kWrongState = 4,       // the object exists, but the event does not fit its state
  kTimeReversed = 5,     // `now` is before an event that was applied already
  kJournalFull = 6,      // the journal buffer must be drained first; nothing was changed
  kJournalCorrupt = 7,   // not a journal, cut off, or a checksum does not fit
  kJournalMismatch = 8,  // the replay decided otherwise than the journal says
  kOutOfMemory = 9,
  kVersionMismatch = 10,  // made by, or asking for, another version of the format or the ABI
  kOutOfBlocks = 11,      // fewer free blocks than the operation needs in all
  kNotResident = 12,      // some of the sequence's blocks are not in GPU memory
  kBusy = 13,             // a plan of the sequence is neither committed nor aborted
};

}  // namespace saga
