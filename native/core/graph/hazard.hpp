// Learned distributions of waiting times, by class: how long until a branch, a superseded prompt or a shared page is used again.
//
// A **wait** begins at age 0 and ends with an event (the reuse) or not at all. Ages fall into 92 **buckets**. A class counts, for
// each bucket, the waits that ended in it and those that had come so far and were given up (censored) or are still open; a
// wait is at risk in a bucket from when it enters it. The **hazard** of a bucket is the share of those at risk in it that end
// in it (Kaplan-Meier), shrunk towards the hazard of the parent class: (events + m * parent's) / (at risk + m). So a class
// with few waits behaves as its parent, the root without any as its prior.
//
// Of the hazards a HazardTable makes: S, the chance to get to the start of each bucket without the event; L, the expected
// time that is spent waiting from there on (the integral of S, summed from the far end so that it stays exact where S is tiny);
// and the **index** G(age) = max over tau > age of (S(age) - S(tau)) / (L(age) - L(tau)): the most events for
// each second of waiting that one can get by waiting on from that age and giving up at the best moment. It is the Gittins index
// of the wait, 1 / (time left) where the time is known. Towards old ages (from the grid's `falling_from` on) rates are made to
// fall: the little that is known there must not look like a reason to wait for ever.
//
// Two **grids** of buckets: seconds, in quarter octaves from 1/16 s to five days; and multiples of a declared duration, fine
// around 1, so that what is learned is how far declarations can be trusted, at any scale.
//
// Counts are integers and add up: trees of several caches can be merged, or several caches can count into one. Between two
// calls of rebuild() tables do not change. rebuild() only sums the counts; the table of a class is derived when somebody reads
// it for the first time after that (so even reading is not for two threads at once): many classes are never asked for.
// Costs: event() O(1); rebuild() about 0.1 us a class, and 2 us for each that is read. Memory: 6 KB a class.
// Deterministic: plain double arithmetic in a fixed order (base/real.hpp).
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "../base/types.hpp"

namespace saga {

inline constexpr std::uint32_t kBuckets = 92;

// The index in fixed point: events a second, so that sums of it do not depend on their order.
using IndexValue = std::uint64_t;
inline constexpr int kIndexBits = 44;
inline constexpr IndexValue kCertain = IndexValue{1} << 62;  // more than any sum of others

struct BucketGrid {
  std::array<double, kBuckets + 1>
      start;                       // of each bucket, in units (seconds, or multiples); [kBuckets]: the end of the last
  std::uint32_t falling_from = 0;  // first bucket from which on rates never rise
};
const BucketGrid& second_grid();
const BucketGrid& multiple_grid();

// Buckets of the grid of seconds, from microseconds. bucket_start(b) is the first age in bucket b.
namespace hazard_detail {
inline constexpr Time kFirstBucket = 62'500;
extern const std::array<Time, kBuckets + 1> kBucketStart;
}  // namespace hazard_detail
inline Time bucket_start(std::uint32_t bucket) { return hazard_detail::kBucketStart[bucket]; }  // bucket <= kBuckets
inline std::uint32_t bucket_of(Time age) {
  const auto& start = hazard_detail::kBucketStart;
  if (age < hazard_detail::kFirstBucket) return 0;
  if (age >= start[kBuckets - 1]) return kBuckets - 1;
  const std::uint32_t octave = static_cast<std::uint32_t>(std::bit_width(age / hazard_detail::kFirstBucket)) - 1;
  const std::uint32_t bucket = 4 * octave + 1;
  return bucket + (age >= start[bucket + 1]) + (age >= start[bucket + 2]) + (age >= start[bucket + 3]);
}
// Of the grid of multiples.
std::uint32_t multiple_bucket_of(double multiple);

inline IndexValue to_index_value(double events_per_second) {
  constexpr double kScale = static_cast<double>(IndexValue{1} << kIndexBits);
  const double scaled = events_per_second * kScale;
  constexpr double kMost = static_cast<double>(kCertain >> 8);
  return scaled >= kMost ? kCertain >> 8 : static_cast<IndexValue>(static_cast<std::int64_t>(scaled));
}

// What a class knows, derived from its hazards.
struct HazardTable {
  std::array<double, kBuckets> hazard;        // P(event in the bucket | at risk in it)
  std::array<double, kBuckets> cumulated;     // -ln(1 - hazard)
  std::array<double, kBuckets + 1> survival;  // S, 1 at age 0
  std::array<double, kBuckets + 1> left;      // L, in units
  std::array<double, kBuckets> index;         // G from the start of the bucket, in 1 / unit

  // Everything from `hazard`, each in [0, 0.999].
  void derive(const BucketGrid& grid);
  // The index alone, from survival and left.
  static void index_of(const double* survival, const double* left, double* index);

  // Questions of a predictor. Ages in units; beyond the grid nothing happens any more.
  double survival_at(const BucketGrid& grid, double age) const;
  double left_at(const BucketGrid& grid, double age) const;
  // P(event by age + span | none by age).
  double event_within(const BucketGrid& grid, double age, double span) const;
  // Smallest span for which event_within() reaches p; negative: none does.
  double quantile(const BucketGrid& grid, double age, double p) const;
  // Expected time still to wait, cut off at the end of the grid.
  double mean_remaining(const BucketGrid& grid, double age) const;
};

class HazardTree {
 public:
  using ClassId = std::uint32_t;
  static constexpr ClassId kRoot = 0;

  struct Options {
    const BucketGrid* grid = nullptr;  // nullptr: seconds
    double prior = 0.05;               // hazard of every bucket before anything is known
    double prior_weight = 8;           // m: waits that the parent counts for
    double root_weight = 8;            // the same for the prior
    std::uint32_t unit = 1;            // counts that make up one wait
  };

  explicit HazardTree(const Options& options);

  // The child of a class under a label; made at first use, as a copy of its parent without counts.
  ClassId child(ClassId parent, std::uint32_t label);

  void event(ClassId id, std::uint32_t bucket, std::uint32_t count) { classes_[id].events[bucket] += count; }
  // A wait that is given up: it came as far as this bucket.
  void censored(ClassId id, std::uint32_t bucket, std::uint32_t count) { classes_[id].censored[bucket] += count; }

  // Open waits are counted anew at each rebuild: clear_open(), open() for every open wait, rebuild().
  void clear_open();
  void open(ClassId id, std::uint32_t bucket, std::uint32_t count) { classes_[id].open[bucket] += count; }
  void rebuild();

  // Adds events and censored waits of another tree of the same options (not the open ones).
  void merge(const HazardTree& other);

  // Both move when a class is made.
  const HazardTable& table(ClassId id) const {
    if (derived_[id] != rebuilds_) [[unlikely]]
      derive(id);
    return tables_[id];
  }
  const IndexValue* index(ClassId id) const {
    if (derived_[id] != rebuilds_) [[unlikely]]
      derive(id);
    return indices_[id].data();
  }
  const BucketGrid& grid() const { return *options_.grid; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(classes_.size()); }
  std::uint64_t events(ClassId id, std::uint32_t bucket) const { return classes_[id].events[bucket]; }

  bool verify() const;

 private:
  struct Class {
    ClassId parent = kNone;
    std::uint32_t label = 0;
    ClassId first_child = kNone;
    ClassId next_sibling = kNone;
    // Of waits of this very class, not of its descendants.
    std::array<std::uint64_t, kBuckets> events{};
    std::array<std::uint64_t, kBuckets> censored{};
    std::array<std::uint64_t, kBuckets> open{};
  };
  using Counts = std::array<std::uint64_t, kBuckets>;
  void derive(ClassId id) const;
  void fill_index(ClassId id) const;

  Options options_;
  std::vector<Class> classes_;  // a parent comes before its children
  // By class, of all waits at the last rebuild, those of its descendants too: events, and waits that came as far as a bucket.
  std::vector<Counts> summed_events_;
  std::vector<Counts> summed_last_;
  std::uint64_t rebuilds_ = 0;
  // Derived from these sums when they are read.
  mutable std::vector<HazardTable> tables_;
  mutable std::vector<std::array<IndexValue, kBuckets>> indices_;
  mutable std::vector<std::uint64_t> derived_;  // the rebuild that a table is of
};

}  // namespace saga
