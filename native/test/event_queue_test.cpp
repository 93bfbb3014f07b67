#include "../core/sim/event_queue.hpp"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "../core/base/random.hpp"

namespace saga {
namespace {

TEST(EventQueue, OrdersByTimeKindSubjectTag) {
  EventQueue queue;
  queue.push({20, 0, 0, 0});
  queue.push({10, 2, 1, 7});
  queue.push({10, 1, 9, 0});
  queue.push({10, 2, 1, 3});
  queue.push({10, 2, 0, 9});
  EXPECT_EQ(queue.pop(), (Event{10, 1, 9, 0}));
  EXPECT_EQ(queue.pop(), (Event{10, 2, 0, 9}));
  EXPECT_EQ(queue.pop(), (Event{10, 2, 1, 3}));
  EXPECT_EQ(queue.pop(), (Event{10, 2, 1, 7}));
  EXPECT_EQ(queue.pop(), (Event{20, 0, 0, 0}));
  EXPECT_TRUE(queue.empty());
}

TEST(EventQueue, AgreesWithAnOrderedSet) {
  EventQueue queue(16);
  std::multiset<std::tuple<Time, std::uint32_t, std::uint32_t, std::uint32_t>> model;
  Random random(7);
  for (int batch = 0; batch < 200; ++batch) {
    for (int i = 0; i < 500; ++i) {
      if (model.empty() || random.below(100) < (batch % 2 == 0 ? 65u : 35u)) {
        const Event event{random.below(1000), static_cast<std::uint32_t>(random.below(5)),
                          static_cast<std::uint32_t>(random.below(20)), static_cast<std::uint32_t>(random.below(3))};
        queue.push(event);
        model.emplace(event.time, event.kind, event.subject, event.tag);
      } else {
        const Event event = queue.pop();
        ASSERT_EQ(std::make_tuple(event.time, event.kind, event.subject, event.tag), *model.begin());
        model.erase(model.begin());
      }
    }
    ASSERT_EQ(queue.size(), model.size());
    ASSERT_TRUE(queue.verify());
  }
}

}  // namespace
}  // namespace saga
