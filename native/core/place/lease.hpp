// Leases: cached pages that somebody wants kept until a deadline, unless memory needs them.
//
// A lease is never a hard pin. It covers the leading cached pages of a path on one worker, has a value (of the policy's
// own scale: a larger one is worth more) and a deadline, and is refused where it would exceed the worker's budget. Its
// pages are not evicted as long as it holds. When a running call, or one that can then be admitted, cannot get a page
// otherwise, leases are revoked: the lowest value first, of equals the one that expires first, of equals the oldest;
// one all of whose pages running calls use anyway would free nothing and is passed over. A lease that has ended leaves
// its pages where they are, cached, for the eviction policy to judge.
//
//   requested -> refused
//             -> granted -> expired | released | revoked
//
// Every outcome is reported once and counted.
#pragma once

#include <cstdint>

#include "../base/types.hpp"

namespace saga {

using LeaseId = std::uint64_t;  // given out in order
inline constexpr LeaseId kNoLease = ~LeaseId{0};

enum class LeaseOutcome : std::uint8_t { kGranted = 0, kRefused = 1, kExpired = 2, kReleased = 3, kRevoked = 4 };

struct LeaseReport {
  LeaseId lease = kNoLease;  // kNoLease: refused
  CallId call = kNone;
  WorkerId worker = kNone;
  std::uint32_t pages = 0;  // that it covered; refused: that it would have
  LeaseOutcome outcome = LeaseOutcome::kRefused;

  friend bool operator==(const LeaseReport&, const LeaseReport&) = default;
};

struct LeaseCounters {
  std::uint64_t granted = 0;  // = expired + released + revoked + those that still hold
  std::uint64_t refused = 0;
  std::uint64_t expired = 0;
  std::uint64_t released = 0;
  std::uint64_t revoked = 0;
};

}  // namespace saga
