#include "hazard.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "../base/real.hpp"

namespace saga {
namespace {

constexpr double kHazardMost = 0.999;

constexpr BucketGrid make_second_grid() {
  BucketGrid grid{};
  grid.start[0] = 0;
  for (std::uint32_t k = 1; k <= kBuckets; ++k) {
    grid.start[k] = 0x1p-4 * real_exp2(static_cast<double>(k - 1) / 4);
  }
  while (grid.start[grid.falling_from] < 30) ++grid.falling_from;
  return grid;
}

constexpr BucketGrid make_multiple_grid() {
  constexpr double kAroundOne[] = {0.8,   0.87, 0.92, 0.95, 0.97, 0.98, 0.99, 0.995,
                                   1.005, 1.01, 1.02, 1.03, 1.05, 1.08, 1.15, 1.25};
  BucketGrid grid{};
  std::uint32_t k = 0;
  grid.start[k++] = 0;
  for (int quarter = -40; quarter <= -2; ++quarter) grid.start[k++] = real_exp2(quarter / 4.0);
  for (const double multiple : kAroundOne) grid.start[k++] = multiple;
  for (int quarter = 2; k <= kBuckets; ++quarter) grid.start[k++] = real_exp2(quarter / 4.0);
  while (grid.start[grid.falling_from] < 2) ++grid.falling_from;
  return grid;
}

constexpr BucketGrid kSecondGrid = make_second_grid();
constexpr BucketGrid kMultipleGrid = make_multiple_grid();

// The bucket of an age and the part of it that has passed.
struct Place {
  std::uint32_t bucket;
  double part;
};

Place place_of(const BucketGrid& grid, double age) {
  if (!(age > 0)) return {0, 0};
  if (age >= grid.start[kBuckets]) return {kBuckets - 1, 1};
  const auto above = std::upper_bound(grid.start.begin(), grid.start.end(), age);
  const auto bucket = static_cast<std::uint32_t>(above - grid.start.begin()) - 1;
  return {bucket, (age - grid.start[bucket]) / (grid.start[bucket + 1] - grid.start[bucket])};
}

}  // namespace

namespace hazard_detail {
constexpr std::array<Time, kBuckets + 1> kBucketStart = [] {
  std::array<Time, kBuckets + 1> start{};
  for (std::uint32_t k = 1; k <= kBuckets; ++k) {
    const double microseconds = kSecondGrid.start[k] * 1e6;
    start[k] = static_cast<Time>(microseconds);
    if (static_cast<double>(start[k]) < microseconds) ++start[k];
  }
  return start;
}();
static_assert(kBucketStart[1] == kFirstBucket && kBucketStart[5] == 2 * kFirstBucket);
}  // namespace hazard_detail

const BucketGrid& second_grid() { return kSecondGrid; }
const BucketGrid& multiple_grid() { return kMultipleGrid; }

std::uint32_t multiple_bucket_of(double multiple) { return place_of(kMultipleGrid, multiple).bucket; }

void HazardTable::index_of(const double* survival, const double* left, double* index) {
  // Upper hull of the points (-L, 1 - S), from the last to the first: its slope at a point is the index.
  std::uint32_t hull[kBuckets + 1];
  double slope_before[kBuckets + 1];  // from the entry to the one below it on the stack
  std::uint32_t top = 0;
  hull[0] = kBuckets;
  slope_before[0] = 0;
  for (std::uint32_t k = kBuckets; k-- > 0;) {
    double slope = (survival[k] - survival[hull[top]]) / (left[k] - left[hull[top]]);
    // While the top does not lie above the line to the one below it.
    while (top > 0 && slope <= slope_before[top]) {
      --top;
      slope = (survival[k] - survival[hull[top]]) / (left[k] - left[hull[top]]);
    }
    index[k] = slope;
    hull[++top] = k;
    slope_before[top] = slope;
  }
}

void HazardTable::derive(const BucketGrid& grid) {
  for (std::uint32_t k = 0; k < kBuckets; ++k) cumulated[k] = -real_ln(1 - hazard[k]);

  // Pools neighbours until no rate is above the one before it.
  struct Pool {
    double mass;
    double width;
    std::uint32_t end;
  };
  std::array<Pool, kBuckets> pools;
  std::uint32_t pool_count = 0;
  for (std::uint32_t k = grid.falling_from; k < kBuckets; ++k) {
    Pool pool{cumulated[k], grid.start[k + 1] - grid.start[k], k + 1};
    while (pool_count > 0 && pool.mass * pools[pool_count - 1].width > pools[pool_count - 1].mass * pool.width) {
      --pool_count;
      pool.mass += pools[pool_count].mass;
      pool.width += pools[pool_count].width;
    }
    pools[pool_count++] = pool;
  }
  std::uint32_t first = grid.falling_from;
  for (std::uint32_t i = 0; i < pool_count; ++i) {
    if (pools[i].end - first > 1) {
      const double rate = pools[i].mass / pools[i].width;
      for (std::uint32_t k = first; k < pools[i].end; ++k) {
        cumulated[k] = rate * (grid.start[k + 1] - grid.start[k]);
        hazard[k] = 1 - real_exp(-cumulated[k]);
      }
    }
    first = pools[i].end;
  }

  survival[0] = 1;
  for (std::uint32_t k = 0; k < kBuckets; ++k) survival[k + 1] = survival[k] * (1 - hazard[k]);
  left[kBuckets] = 0;
  for (std::uint32_t k = kBuckets; k-- > 0;) {
    const double width = grid.start[k + 1] - grid.start[k];
    // The hazard is constant within a bucket.
    const double mean = hazard[k] > 1e-6 ? survival[k] * hazard[k] / cumulated[k] : survival[k];
    left[k] = left[k + 1] + width * mean;
  }
  index_of(survival.data(), left.data(), index.data());
}

double HazardTable::survival_at(const BucketGrid& grid, double age) const {
  const Place place = place_of(grid, age);
  return survival[place.bucket] * real_exp(-cumulated[place.bucket] * place.part);
}

double HazardTable::left_at(const BucketGrid& grid, double age) const {
  const Place place = place_of(grid, age);
  const double here = survival[place.bucket] * real_exp(-cumulated[place.bucket] * place.part);
  const double width = (grid.start[place.bucket + 1] - grid.start[place.bucket]) * (1 - place.part);
  const double mass = cumulated[place.bucket] * (1 - place.part);
  return left[place.bucket + 1] + here * width * (mass > 1e-6 ? (1 - real_exp(-mass)) / mass : 1.0);
}

double HazardTable::event_within(const BucketGrid& grid, double age, double span) const {
  const double now = survival_at(grid, age);
  return now > 0 ? 1 - survival_at(grid, age + span) / now : 0;
}

double HazardTable::quantile(const BucketGrid& grid, double age, double p) const {
  const Place place = place_of(grid, age);
  double wanted = -real_ln(1 - p);
  if (wanted <= 0) return 0;
  std::uint32_t bucket = place.bucket;
  double begin = age < 0 ? 0 : age;
  double mass = cumulated[bucket] * (1 - place.part);
  while (mass < wanted) {
    wanted -= mass;
    if (++bucket >= kBuckets) return -1;
    begin = grid.start[bucket];
    mass = cumulated[bucket];
  }
  return begin + (grid.start[bucket + 1] - begin) * (wanted / mass) - (age < 0 ? 0 : age);
}

double HazardTable::mean_remaining(const BucketGrid& grid, double age) const {
  const double now = survival_at(grid, age);
  return now > 0 ? left_at(grid, age) / now : 0;
}

HazardTree::HazardTree(const Options& options) : options_(options) {
  if (options_.grid == nullptr) options_.grid = &kSecondGrid;
  classes_.emplace_back();
  tables_.emplace_back();
  indices_.emplace_back();
  derived_.push_back(rebuilds_);
  tables_[kRoot].hazard.fill(options_.prior);
  tables_[kRoot].derive(*options_.grid);
  fill_index(kRoot);
}

HazardTree::ClassId HazardTree::child(ClassId parent, std::uint32_t label) {
  ClassId last = kNone;
  for (ClassId id = classes_[parent].first_child; id != kNone; last = id, id = classes_[id].next_sibling) {
    if (classes_[id].label == label) return id;
  }
  const ClassId id = size();
  Class made;
  made.parent = parent;
  made.label = label;
  classes_.push_back(made);
  (last == kNone ? classes_[parent].first_child : classes_[last].next_sibling) = id;
  const HazardTable as_parent = table(parent);
  tables_.push_back(as_parent);
  indices_.push_back(indices_[parent]);
  derived_.push_back(rebuilds_);
  return id;
}

void HazardTree::clear_open() {
  for (Class& one : classes_) one.open.fill(0);
}

void HazardTree::rebuild() {
  summed_events_.assign(classes_.size(), {});
  summed_last_.assign(classes_.size(), {});
  for (ClassId id = size(); id-- > 0;) {
    const Class& one = classes_[id];
    Counts& events = summed_events_[id];
    Counts& last = summed_last_[id];
    for (std::uint32_t k = 0; k < kBuckets; ++k) {
      events[k] += one.events[k];
      last[k] += one.events[k] + one.censored[k] + one.open[k];
    }
    if (one.parent == kNone) continue;
    Counts& parent_events = summed_events_[one.parent];
    Counts& parent_last = summed_last_[one.parent];
    for (std::uint32_t k = 0; k < kBuckets; ++k) {
      parent_events[k] += events[k];
      parent_last[k] += last[k];
    }
  }
  ++rebuilds_;
}

void HazardTree::derive(ClassId id) const {
  const ClassId parent = classes_[id].parent;
  const HazardTable* above = parent == kNone ? nullptr : &table(parent);
  const double weight =
      (parent == kNone ? options_.root_weight : options_.prior_weight) * static_cast<double>(options_.unit);
  HazardTable& derived = tables_[id];
  std::uint64_t at_risk = 0;
  for (std::uint32_t k = kBuckets; k-- > 0;) {
    at_risk += summed_last_[id][k];
    const double prior = above == nullptr ? options_.prior : above->hazard[k];
    const double events = static_cast<double>(summed_events_[id][k]);
    const double hazard = (events + weight * prior) / (static_cast<double>(at_risk) + weight);
    derived.hazard[k] = std::min(kHazardMost, hazard);
  }
  derived.derive(*options_.grid);
  fill_index(id);
  derived_[id] = rebuilds_;
}

void HazardTree::fill_index(ClassId id) const {
  for (std::uint32_t k = 0; k < kBuckets; ++k) indices_[id][k] = to_index_value(tables_[id].index[k]);
}

void HazardTree::merge(const HazardTree& other) {
  std::vector<ClassId> here(other.size(), kRoot);
  for (ClassId id = 0; id < other.size(); ++id) {
    const Class& theirs = other.classes_[id];
    if (theirs.parent != kNone) here[id] = child(here[theirs.parent], theirs.label);
    Class& ours = classes_[here[id]];
    for (std::uint32_t k = 0; k < kBuckets; ++k) {
      ours.events[k] += theirs.events[k];
      ours.censored[k] += theirs.censored[k];
    }
  }
}

bool HazardTree::verify() const {
  if (tables_.size() != classes_.size() || indices_.size() != classes_.size()) return false;
  if (derived_.size() != classes_.size()) return false;
  std::uint32_t listed = 1;
  for (ClassId id = 0; id < size(); ++id) {
    if ((classes_[id].parent == kNone) != (id == kRoot) || (id != kRoot && classes_[id].parent >= id)) return false;
    for (ClassId one = classes_[id].first_child; one != kNone; one = classes_[one].next_sibling) {
      if (one >= size() || classes_[one].parent != id || ++listed > size()) return false;
      if (classes_[one].next_sibling != kNone && classes_[one].next_sibling <= one) return false;
    }
    const HazardTable& table = this->table(id);
    for (std::uint32_t k = 0; k < kBuckets; ++k) {
      if (!(table.hazard[k] >= 0 && table.hazard[k] <= kHazardMost)) return false;
      if (!(table.survival[k + 1] <= table.survival[k]) || !(table.left[k + 1] <= table.left[k])) return false;
      if (!(table.index[k] >= 0) || indices_[id][k] != to_index_value(table.index[k])) return false;
    }
  }
  return listed == size();
}

}  // namespace saga
