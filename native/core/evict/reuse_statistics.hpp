// ReuseStatistics: what the policy `saga` has learned of how pages are used again. One cache owns one, or the caches of a cluster
// share one: counts add up, so every cache decides by what all of them have seen.
//
// Six trees of hazard tables (graph/hazard.hpp):
//   gap       from the end of a call to the next of its thread: stop reason > tool > (without thread ids) calls so far, 0 to 5
//   declared  the same where the client has told a duration, in multiples of it: tool > octave of the duration
//   ended     the same after the client has said that no call will follow. The prior is that it is right: next to no reuse
//   orphan    from when a prompt was superseded to when somebody comes back to it: tail of up to two pages or longer, and
//             whether this branch came back before
//   base      from when the last thread came onto a page to when another does: threads that ever came, 1 to 7 or more.
//             Counted in pages; sixteen pages weigh as much as one call
//   run       from start to next start of a thread: kind of prompt > how long its gaps are. Only of use where the pages of a
//             running call may be evicted
//
// and a correction of `gap` by what is known of a call (GapCorrection). Tables are rebuilt after every max(64, min(2048,
// events / 8)) events, for all caches at once: generation() tells. Each cache reports its open waits then, by OpenWaits.
//
// Cost: an event O(1); a rebuild a few microseconds a class and a few nanoseconds an open wait. Memory about 5 KB a class, a few
// dozen classes. Everything is counted in integers but the correction, whose arithmetic has a fixed order.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../base/random.hpp"
#include "../base/types.hpp"
#include "../graph/hazard.hpp"
#include "gap_correction.hpp"
#include "gap_history.hpp"

namespace saga {

class ReuseStatistics;

// Who has open waits: a cache's policy.
class OpenWaits {
 public:
  // Reports every open wait by HazardTree::open() of its tree.
  virtual void count_open_waits(Time now) = 0;

 protected:
  ~OpenWaits() = default;
};

class ReuseStatistics {
 public:
  // Of `base` every other node is counted, so that eight pages of them stand for sixteen.
  static constexpr std::uint32_t kPagesPerEvent = 8;
  static bool counts_in_base(std::uint64_t sample_key) { return (mix64(sample_key) & 1) == 0; }
  static constexpr Time kForget = 40'000'000'000;  // waits are at risk up to this age

  ReuseStatistics();
  ReuseStatistics(const ReuseStatistics&) = delete;
  ReuseStatistics& operator=(const ReuseStatistics&) = delete;

  HazardTree gap;
  HazardTree declared;
  HazardTree ended;
  HazardTree orphan;
  HazardTree base;
  HazardTree run;
  GapCorrection correction;
  ToolGaps tool_gaps;

  HazardTree::ClassId gap_class(StopReason stop, ToolClass tool, std::uint32_t calls_so_far);
  static constexpr std::uint32_t kCallsUnknown = 6;  // thread ids are known: calls so far are no class
  HazardTree::ClassId declared_class(ToolClass tool, Time declared);
  HazardTree::ClassId orphan_class(std::uint32_t tail_pages, bool came_back);
  HazardTree::ClassId base_class(std::uint32_t threads);  // threads >= 1
  HazardTree::ClassId run_class(PromptKind kind, std::uint32_t gap_level);
  static constexpr std::uint32_t kGapLevels = 6;

  // One event was counted in a tree (of `base`: so many pages).
  void learned() { ++events_; }
  void learned_pages(std::uint32_t pages) {
    pages_ += pages;
    events_ += pages_ / kPagesPerEvent;
    pages_ %= kPagesPerEvent;
  }
  std::uint64_t events() const { return events_; }

  void attach(OpenWaits* waits) { waits_.push_back(waits); }
  void detach(OpenWaits* waits);

  // Rebuilds all tables if enough has happened.
  void rebuild_if_due(Time now) {
    if (events_ >= next_rebuild_) rebuild(now);
  }
  void rebuild(Time now);
  std::uint64_t generation() const { return generation_; }

  // Adds what another cluster or an earlier run has counted. Tables follow at the next rebuild.
  void merge(const ReuseStatistics& other);

  bool verify() const;

 private:
  std::uint64_t events_ = 0;
  std::uint32_t pages_ = 0;
  std::uint64_t next_rebuild_ = 64;
  std::uint64_t generation_ = 1;
  std::vector<OpenWaits*> waits_;
  std::array<HazardTree::ClassId, 3 * 5 * 7> gap_classes_;
  std::array<HazardTree::ClassId, 8> base_classes_;
};

}  // namespace saga
