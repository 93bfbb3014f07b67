#include "steps_policy.hpp"

#include <algorithm>

namespace saga {

void StepsPolicy::gap_ended(const Branch& branch, Time) { ++classes_[class_of(branch)].followed; }

void StepsPolicy::became_idle(Branch& branch) { ++classes_[class_of(branch)].ended; }

std::uint64_t StepsPolicy::steps(const Branch& branch) const {
  if (branch.state == State::kRunning || branch.state == State::kWaiting) return 0;
  if (branch.state == State::kSuperseded || branch.over) return kNever;
  // One answer more that was followed: the first of a class is not taken for the last.
  const Class& one = classes_[class_of(branch)];
  const std::uint64_t followed = one.followed + 1;
  return std::max<std::uint64_t>(1, (one.ended + followed / 2) / followed);
}

Victim StepsPolicy::victim(Time) {
  NodeId best = kNone;
  std::uint64_t best_steps = 0;
  Time best_use = 0;
  for (const NodeId node : residents_.leaves) {
    if (residents_.nodes[node].pins > 0) continue;
    std::uint64_t fewest = kNever;
    Time use = 0;
    for (BranchId id = first_at(node); id != kNone; id = branch(id).next) {
      fewest = std::min(fewest, steps(branch(id)));
      use = std::max(use, branch(id).last_use);
    }
    const bool first = fewest != best_steps ? fewest > best_steps
                       : use != best_use    ? use < best_use
                                            : best != kNone && deeper(node, best);
    if (best == kNone || first) {
      best = node;
      best_steps = fewest;
      best_use = use;
    }
  }
  if (best == kNone) return {};
  return {best, residents_.nodes[best].pages};
}

bool StepsPolicy::verify() const {
  for (const Class& one : classes_) {
    if (one.followed > one.ended) return false;
  }
  return BranchPolicy::verify();
}

}  // namespace saga
