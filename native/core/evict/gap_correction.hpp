// GapCorrection: an online logistic regression on top of the class tables of gaps. Classes know how long gaps of a kind are;
// the correction knows this call: how long the gaps of its thread have been, how much it has written, how large its prompt is.
//
// Ages fall into eight **groups** of buckets. For each of the first seven it predicts whether a gap that has come that far ends
// there: log odds of the class + the sum of the weights of the call's 24 **features**, each in one of 16 bins. The hazards of
// the class are then scaled, group by group, to the corrected probability. The last group is left as it is: few come there.
//
// **Gate.** For every group a running log loss of both predictions is kept, on the gaps that the group has decided; the correction
// counts only while it is the better one by more than chance. Where calls have no history (chat) it never is.
//
// Cost: learning about 0.2 us, and 0.03 us a group that a gap has passed; predicting 0.5 us, and only where a decision asks for it:
// shift() and least_part(), a tenth of that, bound what it would say. Memory: 25 KB, and 56 bytes a head. Arithmetic in float and
// double in a fixed order, without the C library but sqrt.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../base/types.hpp"
#include "../graph/hazard.hpp"

namespace saga {

class GapCorrection {
 public:
  static constexpr std::uint32_t kGroups = 8;
  static constexpr std::uint32_t kCorrected = 7;
  static constexpr std::uint32_t kFeatures = 24;
  static constexpr std::uint32_t kBins = 16;
  // First bucket of each group: about 0, .7, 2.5, 8, 30, 100, 300, 1000 s.
  static constexpr std::array<std::uint32_t, kGroups + 1> kGroupStart = {0, 15, 22, 29, 37, 44, 50, 57, kBuckets};
  static constexpr std::uint32_t kEnd = kGroupStart[kCorrected];  // buckets from here on are those of the class

  using Features = std::array<std::uint8_t, kFeatures>;  // the bin of each

  static std::uint32_t group_of(std::uint32_t bucket) {
    std::uint32_t group = 0;
    while (group < kCorrected && kGroupStart[group + 1] <= bucket) ++group;
    return group;
  }

  GapCorrection();

  // After the tables of the tree have changed.
  void rebuild(const HazardTree& gap);

  bool active() const { return active_; }

  // What the features of a call add to the log odds of each group, by the weights as they are now.
  using Shift = std::array<float, kGroups>;
  Shift shift(const Features& features) const;

  // Indices of buckets [from, kEnd) of a call's own table; from < kEnd.
  void predict(const HazardTree& gap, HazardTree::ClassId id, const Shift& shift, std::uint32_t from,
               IndexValue* index) const;

  // A factor in (0, 1): in bucket `from` and later, up to kEnd, the index of the call's own table is at least that of the
  // class times this. It costs a tenth of the table.
  double least_part(const Shift& shift, std::uint32_t from) const;

  // The gap got through the groups [from, to); with `ended` it then ended in group `to`.
  void learn(const HazardTree& gap, HazardTree::ClassId id, const Features& features, std::uint32_t from,
             std::uint32_t to, bool ended);

  // Mean log loss of the class tables and of the correction, and whether the correction counts, by group.
  struct Loss {
    double plain = 0;
    double corrected = 0;
    double advantage = 0;  // running mean of the difference, and of its square
    double square = 0;
    std::uint64_t decided = 0;
    bool counts = false;
  };
  const Loss& loss(std::uint32_t group) const { return loss_[group]; }

  bool verify() const;

 private:
  // What predict() needs of a class, made once for each generation of tables.
  struct ClassView {
    std::array<double, kGroups> mass{};  // -ln of the chance to pass the group
    std::array<float, kGroups> log_odds{};
    // Hull of the points from kEnd on.
    std::uint32_t hull_size = 0;
    std::array<std::uint8_t, kBuckets + 1> hull{};
    std::array<double, kBuckets + 1> slope{};
  };
  const ClassView& view(const HazardTree& gap, HazardTree::ClassId id) const;
  static void fill(ClassView& view, const HazardTable& table);
  void descend(const Features& features, const Shift& error, const Shift& decay, std::uint32_t first);

  struct Weights {
    Shift weight{};
    Shift square{};
  };
  std::vector<Weights> weights_;  // [features * bins]
  std::array<Loss, kGroups> loss_{};
  bool active_ = false;
  mutable std::vector<ClassView> views_;
  mutable std::vector<bool> fresh_;
};

}  // namespace saga
