#include "../core/graph/hazard.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

using ClassId = HazardTree::ClassId;

HazardTree::Options options_of(double prior, double weight) {
  HazardTree::Options options;
  options.prior = prior;
  options.prior_weight = weight;
  options.root_weight = weight;
  return options;
}

// The index by its definition: the best moment to give up is tried for every age.
double slow_index(const HazardTable& table, std::uint32_t from) {
  double best = 0;
  for (std::uint32_t to = from + 1; to <= kBuckets; ++to) {
    best = std::max(best, (table.survival[from] - table.survival[to]) / (table.left[from] - table.left[to]));
  }
  return best;
}

TEST(Hazard, BucketsAreQuarterOctavesOfSeconds) {
  EXPECT_EQ(bucket_of(0), 0u);
  EXPECT_EQ(bucket_of(62'499), 0u);
  EXPECT_EQ(bucket_of(62'500), 1u);
  EXPECT_EQ(bucket_of(1'000'000), 17u);
  EXPECT_EQ(bucket_of(30'000'000), 36u);
  EXPECT_EQ(bucket_of(~Time{0}), kBuckets - 1);
  for (std::uint32_t k = 1; k < kBuckets; ++k) {
    EXPECT_EQ(bucket_of(bucket_start(k)), k);
    EXPECT_EQ(bucket_of(bucket_start(k) - 1), k - 1);
    EXPECT_NEAR(static_cast<double>(bucket_start(k)), 62'500 * std::exp2((k - 1) / 4.0), 1.0);
    EXPECT_NEAR(second_grid().start[k], std::exp2((k - 1) / 4.0) / 16, 1e-9 * second_grid().start[k]);
  }
}

TEST(Hazard, MultiplesAreFineAroundOne) {
  const BucketGrid& grid = multiple_grid();
  for (std::uint32_t k = 0; k < kBuckets; ++k) EXPECT_LT(grid.start[k], grid.start[k + 1]);
  EXPECT_EQ(multiple_bucket_of(0.9999), multiple_bucket_of(1.0001));
  EXPECT_LT(multiple_bucket_of(0.99), multiple_bucket_of(1));
  EXPECT_LT(multiple_bucket_of(1), multiple_bucket_of(1.01));
  EXPECT_EQ(multiple_bucket_of(0), 0u);
  EXPECT_EQ(multiple_bucket_of(1e9), kBuckets - 1);
  Random random(7);
  for (int i = 0; i < 10000; ++i) {
    const double multiple = std::exp2(random.uniform() * 24 - 14);
    const std::uint32_t k = multiple_bucket_of(multiple);
    EXPECT_LE(grid.start[k], multiple);
    EXPECT_TRUE(multiple < grid.start[k + 1] || k + 1 == kBuckets);
  }
}

TEST(Hazard, HullEqualsTheDefinition) {
  Random random(8);
  for (int round = 0; round < 300; ++round) {
    HazardTable table;
    for (double& hazard : table.hazard) {
      const std::uint64_t kind = random.below(4);
      hazard = kind == 0 ? 0 : kind == 1 ? 0.999 * random.uniform() : std::exp2(-20 * random.uniform()) / 2;
    }
    table.derive(round % 2 == 0 ? second_grid() : multiple_grid());
    for (std::uint32_t k = 0; k < kBuckets; ++k) {
      const double want = slow_index(table, k);
      ASSERT_NEAR(table.index[k], want, 1e-9 * want + 1e-300) << round << " " << k;
    }
  }
}

// Where all waits end at d, the index is 1 / (d - age), within the bucket of d.
TEST(Hazard, AKnownEndGivesOneByTheTimeLeft) {
  for (const double d : {0.3, 2.0, 9.0, 25.0}) {
    HazardTree tree(options_of(1e-9, 1e-6));
    const std::uint32_t last = bucket_of(static_cast<Time>(d * 1e6));
    tree.event(HazardTree::kRoot, last, 1'000'000);
    tree.rebuild();
    const BucketGrid& grid = second_grid();
    for (std::uint32_t k = 0; k < last; ++k) {
      const double index = tree.table(HazardTree::kRoot).index[k];
      EXPECT_LE(index, 1 / (grid.start[last] - grid.start[k]));
      EXPECT_GE(index, 0.99 / (grid.start[last + 1] - grid.start[k]));
    }
  }
}

TEST(Hazard, ConstantHazardsGiveAnIndexThatFalls) {
  const HazardTree tree(options_of(0.05, 8));
  const HazardTable& table = tree.table(HazardTree::kRoot);
  // The first bucket is as wide as four of the next: its rate is lower.
  for (std::uint32_t k = 2; k < kBuckets; ++k) EXPECT_LT(table.index[k], table.index[k - 1]);
  EXPECT_TRUE(tree.verify());
}

TEST(Hazard, CountsAreShrunkToTheParent) {
  HazardTree tree(options_of(0.05, 8));
  const ClassId a = tree.child(HazardTree::kRoot, 3);
  EXPECT_EQ(tree.child(HazardTree::kRoot, 3), a);
  const ClassId b = tree.child(HazardTree::kRoot, 4);
  EXPECT_NE(a, b);
  // Class a: 3 waits end in bucket 2, 1 in bucket 5, 4 were given up in bucket 3, 2 are open in bucket 7. Class b: one of bucket 2.
  tree.event(a, 2, 3);
  tree.event(a, 5, 1);
  tree.censored(a, 3, 4);
  tree.event(b, 2, 1);
  tree.clear_open();
  tree.open(a, 7, 2);
  tree.rebuild();
  const double root2 = (4 + 8 * 0.05) / (11 + 8);
  EXPECT_DOUBLE_EQ(tree.table(HazardTree::kRoot).hazard[2], root2);
  EXPECT_DOUBLE_EQ(tree.table(a).hazard[2], (3 + 8 * root2) / (10 + 8));
  EXPECT_DOUBLE_EQ(tree.table(b).hazard[2], (1 + 8 * root2) / (1 + 8));
  const double root5 = (1 + 8 * 0.05) / (3 + 8);
  EXPECT_DOUBLE_EQ(tree.table(HazardTree::kRoot).hazard[5], root5);
  EXPECT_DOUBLE_EQ(tree.table(a).hazard[5], (1 + 8 * root5) / (3 + 8));
  EXPECT_DOUBLE_EQ(tree.table(a).hazard[8], 0.05);
  EXPECT_TRUE(tree.verify());
  // A new class begins as its parent.
  const ClassId c = tree.child(a, 0);
  EXPECT_EQ(tree.table(c).index, tree.table(a).index);
  EXPECT_EQ(tree.index(c)[9], tree.index(a)[9]);
  // Open waits are those of the last count.
  tree.clear_open();
  tree.rebuild();
  EXPECT_DOUBLE_EQ(tree.table(HazardTree::kRoot).hazard[5], (1 + 8 * 0.05) / (1 + 8));
}

// Tables are derived when they are read; that must not show, whatever happens between a rebuild and the reading.
TEST(Hazard, TablesAreThoseOfTheLastRebuildWheneverTheyAreRead) {
  Random random(12);
  HazardTree eager(options_of(0.05, 8));
  HazardTree lazy(options_of(0.05, 8));
  std::vector<ClassId> classes = {HazardTree::kRoot};
  for (int step = 0; step < 4000; ++step) {
    const ClassId id = classes[random.below(classes.size())];
    const auto bucket = static_cast<std::uint32_t>(random.below(kBuckets));
    for (HazardTree* tree : {&eager, &lazy}) tree->event(id, bucket, 1);
    if (random.below(400) == 0) {
      const auto label = static_cast<std::uint32_t>(random.below(3));
      const ClassId made = eager.child(id, label);
      ASSERT_EQ(lazy.child(id, label), made);
      classes.push_back(made);
    }
    if (random.below(50) == 0) {
      for (HazardTree* tree : {&eager, &lazy}) {
        tree->clear_open();
        tree->open(id, bucket, 3);
        tree->rebuild();
      }
      for (const ClassId one : classes) (void)eager.table(one);
    }
    if (random.below(20) == 0) {
      const ClassId one = classes[random.below(classes.size())];
      ASSERT_EQ(lazy.table(one).hazard, eager.table(one).hazard);
      ASSERT_EQ(lazy.table(one).index, eager.table(one).index);
      for (std::uint32_t k = 0; k < kBuckets; ++k) ASSERT_EQ(lazy.index(one)[k], eager.index(one)[k]);
    }
  }
  EXPECT_TRUE(lazy.verify());
}

TEST(Hazard, RatesFallFromHalfAMinuteOn) {
  Random random(9);
  for (int round = 0; round < 100; ++round) {
    HazardTree tree(options_of(0.05, 8));
    for (int i = 0; i < 200; ++i) tree.event(HazardTree::kRoot, static_cast<std::uint32_t>(random.below(kBuckets)), 1);
    tree.rebuild();
    const HazardTable& table = tree.table(HazardTree::kRoot);
    double before = 1e300;
    double mass = 0;
    for (std::uint32_t k = second_grid().falling_from; k < kBuckets; ++k) {
      const double rate = table.cumulated[k] / (second_grid().start[k + 1] - second_grid().start[k]);
      ASSERT_LE(rate, before * (1 + 1e-12));
      before = rate;
      mass += table.cumulated[k];
    }
    EXPECT_GE(second_grid().start[second_grid().falling_from], 30);
    EXPECT_GT(mass, 0);
    ASSERT_TRUE(tree.verify());
  }
}

TEST(Hazard, TreesAddUp) {
  Random random(10);
  HazardTree whole(options_of(0.05, 8));
  HazardTree parts[2] = {HazardTree(options_of(0.05, 8)), HazardTree(options_of(0.05, 8))};
  for (int i = 0; i < 3000; ++i) {
    HazardTree& part = parts[random.below(2)];
    const auto label = static_cast<std::uint32_t>(random.below(5));
    const auto deeper = static_cast<std::uint32_t>(random.below(3));
    const auto bucket = static_cast<std::uint32_t>(random.below(kBuckets));
    const bool event = random.below(3) > 0;
    for (HazardTree* tree : {&whole, &part}) {
      ClassId id = tree->child(HazardTree::kRoot, label);
      if (deeper > 0) id = tree->child(id, deeper);
      event ? tree->event(id, bucket, 1) : tree->censored(id, bucket, 1);
    }
  }
  parts[0].merge(parts[1]);
  parts[0].rebuild();
  whole.rebuild();
  ASSERT_EQ(parts[0].size(), whole.size());
  for (std::uint32_t label = 0; label < 5; ++label) {
    for (std::uint32_t deeper = 1; deeper < 3; ++deeper) {
      const ClassId a = parts[0].child(parts[0].child(HazardTree::kRoot, label), deeper);
      const ClassId b = whole.child(whole.child(HazardTree::kRoot, label), deeper);
      EXPECT_EQ(parts[0].table(a).hazard, whole.table(b).hazard);
      EXPECT_EQ(parts[0].table(a).index, whole.table(b).index);
    }
  }
  EXPECT_TRUE(parts[0].verify());
}

TEST(Hazard, QuestionsOfAPredictor) {
  Random random(11);
  HazardTree tree(options_of(0.02, 8));
  for (int i = 0; i < 400; ++i) tree.event(HazardTree::kRoot, 10 + static_cast<std::uint32_t>(random.below(40)), 1);
  tree.rebuild();
  const HazardTable& table = tree.table(HazardTree::kRoot);
  const BucketGrid& grid = second_grid();
  for (std::uint32_t k = 0; k < kBuckets; ++k) {
    EXPECT_NEAR(table.survival_at(grid, grid.start[k]), table.survival[k], 1e-12);
    EXPECT_NEAR(table.left_at(grid, grid.start[k]), table.left[k], 1e-9 * table.left[k]);
  }
  int answered = 0;
  for (const double age : {0.0, 0.4, 3.3, 40.0, 500.0}) {
    for (const double p : {0.1, 0.5, 0.9}) {
      const double span = table.quantile(grid, age, p);
      if (table.event_within(grid, age, grid.start[kBuckets]) < p) {
        EXPECT_LT(span, 0);
        continue;
      }
      ++answered;
      ASSERT_GE(span, 0);
      EXPECT_NEAR(table.event_within(grid, age, span), p, 1e-9);
    }
    // Mean of the time left = integral of the conditional survival.
    double sum = 0;
    double t = age;
    while (t < grid.start[kBuckets]) {
      const double step = 1e-3 * (t + 0.1);
      sum += step * table.survival_at(grid, t + step / 2);
      t += step;
    }
    const double mean = table.mean_remaining(grid, age);
    EXPECT_NEAR(sum / table.survival_at(grid, age), mean, 0.01 * mean);
  }
  EXPECT_GE(answered, 12);
  // Some never come.
  HazardTree rare(options_of(1e-6, 8));
  EXPECT_LT(rare.table(HazardTree::kRoot).quantile(grid, 0, 0.5), 0);
  EXPECT_EQ(table.event_within(grid, 1, 0), 0);
}

TEST(Hazard, IndexValuesAreFixedPointAndBounded) {
  EXPECT_EQ(to_index_value(0), 0u);
  EXPECT_EQ(to_index_value(1), IndexValue{1} << kIndexBits);
  EXPECT_EQ(to_index_value(0.25), IndexValue{1} << (kIndexBits - 2));
  EXPECT_LT(to_index_value(1e300), kCertain);
}

}  // namespace
}  // namespace saga
