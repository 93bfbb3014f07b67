// StepsPolicy: eviction by steps to execution (KVFlow, arXiv 2507.07400): what will be used after the most steps of its
// workflow goes first, from the end of a path to its root.
//
// A branch (branch_policy.hpp) has a number of **steps to execution**: 0 while it runs or waits, kNever if it is superseded or
// its thread is over, and for an idle one the expected number of steps until its thread runs again: answers of its class (stop
// reason x tool class) over those of them that were followed, rounded, learned by this cache. So a thread whose tool runs
// is one step away, and one whose answers of that kind are seldom followed is many. A leaf takes the fewest steps of the branches
// that hang there; one without a branch goes first. Equal steps: least recently used, then the deepest.
//
// Cost: as BranchPolicy; a decision O(leaves and branches there). Invariant (verify()): no class was followed more often
// than it ended.
#pragma once

#include <array>

#include "branch_policy.hpp"

namespace saga {

class StepsPolicy final : public BranchPolicy {
 public:
  static constexpr std::uint64_t kNever = ~std::uint64_t{0};

  explicit StepsPolicy(const ResidentSet& residents) : BranchPolicy(residents) {}
  Victim victim(Time now) override;
  bool verify() const override;

 private:
  struct Class {
    std::uint64_t ended = 0;
    std::uint64_t followed = 0;
  };

  static std::size_t class_of(const Branch& branch) {
    return static_cast<std::size_t>(branch.stop_reason) * 5 + static_cast<std::size_t>(branch.tool_class);
  }
  std::uint64_t steps(const Branch& branch) const;
  void gap_ended(const Branch& branch, Time gap) override;
  void became_idle(Branch& branch) override;

  std::array<Class, 15> classes_{};
};

}  // namespace saga
