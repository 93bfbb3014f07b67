#include "reuse_statistics.hpp"

#include <algorithm>
#include <bit>

#include "../base/assert.hpp"

namespace saga {
namespace {

HazardTree::Options tree_options(double prior, double root_weight = 8, std::uint32_t unit = 1,
                                 const BucketGrid* grid = nullptr) {
  HazardTree::Options options;
  options.grid = grid;
  options.prior = prior;
  options.root_weight = root_weight;
  options.unit = unit;
  return options;
}

constexpr double kPrior = 0.05;
constexpr double kBasePrior = 0.02;
// A session that was said to be over: at no age worth as much as one that waits, until enough of them come back.
constexpr double kEndedPrior = 1e-8;
constexpr double kEndedWeight = 64;

}  // namespace

ReuseStatistics::ReuseStatistics()
    : gap(tree_options(kPrior)),
      declared(tree_options(kPrior, 8, 1, &multiple_grid())),
      ended(tree_options(kEndedPrior, kEndedWeight)),
      orphan(tree_options(kPrior)),
      base(tree_options(kBasePrior, 8, kPagesPerEvent)),
      run(tree_options(kPrior)) {
  gap_classes_.fill(kNone);
  base_classes_.fill(kNone);
}

HazardTree::ClassId ReuseStatistics::gap_class(StopReason stop, ToolClass tool, std::uint32_t calls_so_far) {
  const auto s = static_cast<std::uint32_t>(stop);
  const auto t = static_cast<std::uint32_t>(tool);
  const std::uint32_t calls = calls_so_far == kCallsUnknown ? kCallsUnknown : std::min(calls_so_far, 5u);
  HazardTree::ClassId& known = gap_classes_[(s * 5 + t) * 7 + calls];
  if (known == kNone) {
    known = gap.child(gap.child(HazardTree::kRoot, s), t);
    if (calls != kCallsUnknown) known = gap.child(known, calls);
  }
  return known;
}

HazardTree::ClassId ReuseStatistics::declared_class(ToolClass tool, Time declared_gap) {
  const auto octave = static_cast<std::uint32_t>(std::bit_width(declared_gap / 62'500 + 1));
  return declared.child(declared.child(HazardTree::kRoot, static_cast<std::uint32_t>(tool)), octave);
}

HazardTree::ClassId ReuseStatistics::orphan_class(std::uint32_t tail_pages, bool came_back) {
  return orphan.child(HazardTree::kRoot, (tail_pages > 2 ? 1u : 0u) + (came_back ? 2u : 0u));
}

HazardTree::ClassId ReuseStatistics::base_class(std::uint32_t threads) {
  SAGA_ASSERT(threads > 0);
  const std::uint32_t label = std::min(threads, 7u);
  HazardTree::ClassId& known = base_classes_[label];
  if (known == kNone) known = base.child(HazardTree::kRoot, label);
  return known;
}

HazardTree::ClassId ReuseStatistics::run_class(PromptKind kind, std::uint32_t gap_level) {
  return run.child(run.child(HazardTree::kRoot, static_cast<std::uint32_t>(kind)), gap_level);
}

void ReuseStatistics::detach(OpenWaits* waits) { waits_.erase(std::find(waits_.begin(), waits_.end(), waits)); }

void ReuseStatistics::rebuild(Time now) {
  HazardTree* const trees[] = {&gap, &declared, &ended, &orphan, &base, &run};
  for (HazardTree* tree : trees) tree->clear_open();
  for (OpenWaits* waits : waits_) waits->count_open_waits(now);
  for (HazardTree* tree : trees) tree->rebuild();
  correction.rebuild(gap);
  next_rebuild_ = events_ + std::max<std::uint64_t>(64, std::min<std::uint64_t>(2048, events_ / 8));
  ++generation_;
}

void ReuseStatistics::merge(const ReuseStatistics& other) {
  gap.merge(other.gap);
  declared.merge(other.declared);
  ended.merge(other.ended);
  orphan.merge(other.orphan);
  base.merge(other.base);
  run.merge(other.run);
  events_ += other.events_;
}

bool ReuseStatistics::verify() const {
  return correction.verify() && gap.verify() && declared.verify() && ended.verify() && orphan.verify() &&
         base.verify() && run.verify();
}

}  // namespace saga
