#include "../core/fair/fair_queue.hpp"

#include <gtest/gtest.h>

#include <map>
#include <tuple>
#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

FairOptions small(std::uint32_t tenants) {
  FairOptions options;
  options.tenants = tenants;
  options.entries = 64;
  options.largest_grant = 1000;
  return options;
}

FairCall make(TenantId tenant, std::uint32_t name, std::uint64_t cost, std::uint64_t work = kFairWorkUnknown,
              Time deadline = kNotDeclared, FairClass kind = FairClass::kRunning) {
  FairCall call;
  call.tenant = tenant;
  call.kind = kind;
  call.call = name;
  call.cost = cost;
  call.work = work;
  call.deadline = deadline;
  return call;
}

FairEntry push(FairQueue& queue, const FairCall& call, Time now = 0) {
  FairEntry entry = kNone;
  EXPECT_EQ(queue.push(call, now, &entry), Status::kOk);
  return entry;
}

std::vector<std::uint32_t> drain(FairQueue& queue, Time now) {
  std::vector<std::uint32_t> order;
  FairCall call;
  while (queue.pop(now, &call)) order.push_back(call.call);
  EXPECT_TRUE(queue.verify());
  return order;
}

using Names = std::vector<std::uint32_t>;

TEST(FairQueue, OptionsAreChecked) {
  EXPECT_EQ(FairQueue::check(small(1)), Status::kOk);
  FairOptions options = small(0);
  EXPECT_EQ(FairQueue::check(options), Status::kInvalidArgument);
  options = small(1);
  options.largest_grant = 0;
  EXPECT_EQ(FairQueue::check(options), Status::kInvalidArgument);
  options = small(1);
  options.lag_bound = 1001;
  EXPECT_EQ(FairQueue::check(options), Status::kInvalidArgument);
  options = small(1);
  options.oldest_every = 0;
  EXPECT_EQ(FairQueue::check(options), Status::kInvalidArgument);
}

TEST(FairQueue, KvByteSecondsAreFoldedIn) {
  FairOptions options = small(1);
  options.byte_seconds_per_gpu_second = 1000;
  EXPECT_EQ(FairQueue(options).service(50, 20'000), 70u);  // 1000 bytes for 20 us are 20 us of GPU
  options.byte_seconds_per_gpu_second = 0;
  EXPECT_EQ(FairQueue(options).service(50, 20'000), 50u);
}

TEST(FairQueue, RefusesWithAStatus) {
  FairOptions options = small(2);
  options.entries = 3;
  options.entries_per_tenant = 2;
  FairQueue queue(options);
  FairEntry entry = kNone;
  EXPECT_EQ(queue.push(make(2, 0, 1), 0, &entry), Status::kInvalidArgument);
  EXPECT_EQ(queue.push(make(0, 0, 1001), 0, &entry), Status::kInvalidArgument);
  push(queue, make(0, 1, 1));
  push(queue, make(0, 2, 1));
  EXPECT_EQ(queue.push(make(0, 3, 1), 0, &entry), Status::kFull);  // the tenant's part
  push(queue, make(1, 4, 1));
  EXPECT_EQ(queue.push(make(1, 5, 1), 0, &entry), Status::kFull);  // the queue
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_TRUE(queue.verify());
  EXPECT_EQ(drain(queue, 0).size(), 3u);
  push(queue, make(0, 6, 1));  // room again
}

TEST(FairQueue, UrgencyIsDefinedEverywhere) {
  FairOptions options = small(1);
  options.default_work = 50;
  const FairQueue queue(options);
  const std::uint64_t one = std::uint64_t{1} << 32;
  EXPECT_EQ(queue.urgency(50, 200, 100), one / 2);
  EXPECT_EQ(queue.urgency(100, 200, 100), one);                   // just attainable
  EXPECT_EQ(queue.urgency(101, 200, 100), 0u);                    // no longer
  EXPECT_EQ(queue.urgency(1, 100, 100), 0u);                      // zero slack
  EXPECT_EQ(queue.urgency(1, 50, 100), 0u);                       // overdue
  EXPECT_EQ(queue.urgency(1, kNotDeclared, 100), 0u);             // no deadline
  EXPECT_EQ(queue.urgency(kFairWorkUnknown, 200, 100), one / 2);  // no estimate
  EXPECT_EQ(queue.urgency(0, 200, 100), one / 100);               // nothing left is taken for a microsecond
  EXPECT_EQ(queue.urgency(1, Time{1} << 50, 0), 1u);              // never rounds to "not attainable"
  EXPECT_EQ(queue.urgency(std::uint64_t{1} << 40, Time{1} << 41, 0), one / 2);
}

TEST(FairQueue, OrderWithinATenant) {
  FairOptions options = small(1);
  options.oldest_every = 100;
  FairQueue queue(options);
  push(queue, make(0, 0, 1, 10, 1100, FairClass::kAdmission), 1000);  // urgency 1/10, but a new workflow
  push(queue, make(0, 1, 1, 70), 1000);                               // no deadline
  push(queue, make(0, 2, 1, 60, 900), 1000);                          // overdue
  push(queue, make(0, 3, 1, 10, 1100), 1000);                         // 1/10
  push(queue, make(0, 4, 1, 90, 1100), 1000);                         // 9/10
  push(queue, make(0, 5, 1, 101, 1100), 1000);                        // not attainable
  push(queue, make(0, 6, 1, 60, 1000), 1000);                         // zero slack, younger than 2
  push(queue, make(0, 7, 1, 1, 500, FairClass::kAdmission), 1000);
  EXPECT_EQ(drain(queue, 1000), (Names{4, 3, 2, 6, 1, 5, 0, 7}));
}

TEST(FairQueue, TheOldestHasItsTurn) {
  FairOptions options = small(1);
  options.oldest_every = 3;
  FairQueue queue(options);
  for (std::uint32_t i = 0; i < 9; ++i) push(queue, make(0, i, 1, 100 - i));  // the youngest has least work
  EXPECT_EQ(drain(queue, 0), (Names{8, 7, 0, 6, 5, 1, 4, 3, 2}));
}

TEST(FairQueue, UrgencyIsEvaluatedOnceAnEpoch) {
  FairOptions options = small(1);
  options.epoch = 100;
  FairQueue queue(options);
  FairCall call;
  push(queue, make(0, 0, 1, 10, 220));   // attainable until 210
  push(queue, make(0, 1, 1, 10, 1000));  // far less urgent
  ASSERT_TRUE(queue.pop(50, &call));
  EXPECT_EQ(call.call, 0u);
  push(queue, make(0, 2, 1, 10, 220), 60);
  ASSERT_TRUE(queue.pop(300, &call));  // 2 is overdue by now, 1 is not
  EXPECT_EQ(call.call, 1u);
  EXPECT_TRUE(queue.verify());
}

TEST(FairQueue, UpdateAndRemove) {
  FairQueue queue(small(1));
  push(queue, make(0, 0, 1, 100));
  const FairEntry second = push(queue, make(0, 1, 1, 200));
  const FairEntry third = push(queue, make(0, 2, 1, 300));
  push(queue, make(0, 3, 1, 400));
  queue.update(third, 50, 0);
  queue.remove(second);
  EXPECT_TRUE(queue.verify());
  EXPECT_EQ(drain(queue, 0), (Names{2, 0, 3}));
}

TEST(FairQueue, MostUrgentTenantFirstUntilAnotherLags) {
  FairQueue queue(small(2));  // lag bound 1000
  for (std::uint32_t i = 0; i < 8; ++i) push(queue, make(0, i, 1000, 1000));
  for (std::uint32_t i = 8; i < 16; ++i) push(queue, make(1, i, 1000, 10, 1'000'000));
  // Both weigh the same. 1 is more urgent: it goes first, then it is ahead by 500 and 0 lags by 500; and so on.
  FairCall call;
  Names tenants;
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(queue.pop(0, &call));
    tenants.push_back(call.tenant);
  }
  EXPECT_EQ(tenants, (Names{1, 0, 1, 0, 1, 0}));
  EXPECT_DOUBLE_EQ(queue.share(1), 1.0);
  EXPECT_DOUBLE_EQ(queue.share(0), 0.0);
}

TEST(FairQueue, SmallGrantsLetUrgencyDecideWithinTheBound) {
  FairOptions options = small(3);
  options.lag_bound = 100;
  FairQueue queue(options);
  for (std::uint32_t i = 0; i < 20; ++i) {
    push(queue, make(0, i, 40));
    push(queue, make(1, i, 40, 10, 1'000'000));
    push(queue, make(2, i, 40, 20, 1'000'000));
  }
  // Worked by hand, in thirds: a grant of 40 takes 80/3 off its tenant's lag and adds 40/3 to the others'.
  // lags (0, 0, 0): 2 is most urgent -> (40, 40, -80)/3: 1 -> (80, -40, -40)/3: only 0 is not ahead -> (0, 0, 0).
  FairCall call;
  Names tenants;
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(queue.pop(0, &call));
    tenants.push_back(call.tenant);
  }
  EXPECT_EQ(tenants, (Names{2, 1, 0, 2, 1, 0}));
  EXPECT_EQ(queue.lag(0), 0);
}

TEST(FairQueue, WeightsDivideTheService) {
  FairQueue queue(small(2));
  queue.set_weight(0, 3 * kFairWeightOne);
  std::uint32_t name = 0;
  FairCall call;
  for (int i = 0; i < 400; ++i) {
    while (queue.waiting(0) < 4) push(queue, make(0, name++, 100));
    while (queue.waiting(1) < 4) push(queue, make(1, name++, 100));
    ASSERT_TRUE(queue.pop(0, &call));
  }
  EXPECT_NEAR(static_cast<double>(queue.served(0)), 30'000, 1000);
  EXPECT_NEAR(static_cast<double>(queue.served(1)), 10'000, 1000);
  EXPECT_EQ(queue.virtual_time(), (std::uint64_t{40'000} << 16) / (4 * kFairWeightOne));
  queue.set_weight(0, kFairWeightOne);  // at once
  EXPECT_TRUE(queue.verify());
  const std::int64_t before = queue.served(0);
  for (int i = 0; i < 400; ++i) {
    while (queue.waiting(0) < 4) push(queue, make(0, name++, 100));
    while (queue.waiting(1) < 4) push(queue, make(1, name++, 100));
    ASSERT_TRUE(queue.pop(0, &call));
  }
  EXPECT_NEAR(static_cast<double>(queue.served(0) - before), 20'000, 2000);
}

TEST(FairQueue, CreditPaysForTheNextGrants) {
  FairQueue queue(small(2));
  FairCall call;
  push(queue, make(0, 0, 800));
  ASSERT_TRUE(queue.pop(0, &call));
  queue.correct(0, -500);  // it took 300
  EXPECT_EQ(queue.served(0), 300);
  EXPECT_EQ(queue.credit(0), 500u);
  const std::uint64_t clock = queue.virtual_time();
  push(queue, make(0, 1, 400));
  ASSERT_TRUE(queue.pop(0, &call));
  EXPECT_EQ(queue.credit(0), 100u);
  EXPECT_EQ(queue.virtual_time(), clock);  // paid before
  queue.correct(0, 150);                   // 100 from the credit, 50 from the tag
  EXPECT_EQ(queue.credit(0), 0u);
  EXPECT_EQ(queue.served(0), 850);
  EXPECT_TRUE(queue.verify());
}

TEST(FairQueue, UnderestimatesDelayTheTenant) {
  FairQueue queue(small(2));
  FairCall call;
  for (std::uint32_t i = 0; i < 10; ++i) push(queue, make(0, i, 10, 1));
  for (std::uint32_t i = 10; i < 40; ++i) push(queue, make(1, i, 100, 2));
  ASSERT_TRUE(queue.pop(0, &call));
  EXPECT_EQ(call.tenant, 0u);
  queue.correct(0, 990);
  EXPECT_EQ(queue.lag(0), -995);
  // It has had 1000: it waits until the other has had as much. (The 990 were nobody's fair share, so the clock jumps over
  // them whenever both are ahead of it.)
  int others = 0;
  while (queue.pop(0, &call) && call.tenant == 1) ++others;
  EXPECT_EQ(others, 10);
}

TEST(FairQueue, IdleTimeGivesNoClaim) {
  FairQueue queue(small(2));
  FairCall call;
  for (std::uint32_t i = 0; i < 20; ++i) push(queue, make(0, i, 1000));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(queue.pop(0, &call));
  push(queue, make(1, 100, 1000));
  EXPECT_EQ(queue.lag(1), 0);
  EXPECT_TRUE(queue.verify());
}

TEST(FairQueue, ACallThatDoesNotFitIsPassedOverOnlyWhileNobodyIsUrgent) {
  FairQueue queue(small(2));  // lag bound 1000
  FairCall call;
  for (std::uint32_t i = 0; i < 8; ++i) push(queue, make(0, i, 1000, 1));
  for (std::uint32_t i = 8; i < 16; ++i) push(queue, make(1, i, 100, 2));
  const auto fits = [](const FairCall& candidate) { return candidate.tenant == 1; };
  // 1 goes while its lag is not below 0: it is granted at 0, lags -50, and 0 is eligible at +50 but does not fit.
  ASSERT_TRUE(queue.pop(0, fits, &call));
  EXPECT_EQ(call.call, 8u);
  EXPECT_FALSE(queue.pop(0, fits, &call));
  ASSERT_TRUE(queue.pop(0, &call));
  EXPECT_EQ(call.tenant, 0u);  // now 1 lags by 450
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(queue.pop(0, fits, &call));
  EXPECT_EQ(queue.waiting(1), 0u);
  EXPECT_TRUE(queue.verify());
}

TEST(FairQueue, TheFirstUrgentTenantIsWaitedFor) {
  FairOptions options = small(2);
  options.lag_bound = 40;
  FairQueue queue(options);
  FairCall call;
  push(queue, make(0, 0, 100, 1));
  push(queue, make(0, 1, 100, 1));
  push(queue, make(1, 2, 100, 2));
  push(queue, make(1, 3, 100, 3));
  ASSERT_TRUE(queue.pop(0, &call));
  EXPECT_EQ(call.call, 0u);  // 1 lags by 50 now: urgent
  EXPECT_FALSE(queue.pop(0, [](const FairCall& candidate) { return candidate.tenant == 0; }, &call));
  const FairEntry next = queue.next(0, [](const FairCall&) { return true; });
  ASSERT_NE(next, kNone);
  EXPECT_EQ(queue.call(next).call, 2u);
  // Its second call fits while its first does not.
  ASSERT_TRUE(queue.pop(0, [](const FairCall& candidate) { return candidate.call != 2; }, &call));
  EXPECT_EQ(call.call, 3u);
}

TEST(FairQueue, TheOldestIsPassedOverABoundedNumberOfTimes) {
  FairOptions options = small(1);
  options.oldest_every = 4;
  FairQueue queue(options);
  for (std::uint32_t i = 0; i < 30; ++i) push(queue, make(0, i, 1));
  FairCall call;
  int passed = 0;
  while (queue.pop(0, [](const FairCall& candidate) { return candidate.call != 0; }, &call)) ++passed;
  EXPECT_EQ(passed, 7);  // 2 * 4 - 1
  ASSERT_TRUE(queue.pop(0, &call));
  EXPECT_EQ(call.call, 0u);
}

TEST(FairQueue, Preemption) {
  FairQueue queue(small(2));
  const Time second = 1'000'000;
  const FairEntry waiting = push(queue, make(0, 0, 1000, second, 5 * second), second);
  const Time late = second + 500'001;                                             // urgency 1 / 3.5
  EXPECT_FALSE(queue.should_preempt(waiting, second, 10 * second, late - 1));     // not yet 500 ms
  EXPECT_TRUE(queue.should_preempt(waiting, second, 10 * second, late));          // 1 / 8.5
  EXPECT_FALSE(queue.should_preempt(waiting, second, 8 * second, late));          // 1 / 6.5: less than twice
  EXPECT_TRUE(queue.should_preempt(waiting, second, kNotDeclared, late));         // no deadline
  EXPECT_TRUE(queue.should_preempt(waiting, second, second, late));               // overdue
  EXPECT_FALSE(queue.should_preempt(waiting, second, kNotDeclared, 5 * second));  // cannot be met either
  queue.correct(0, 1);                                                            // ahead of its share
  EXPECT_FALSE(queue.should_preempt(waiting, second, kNotDeclared, late));
}

// The order within a tenant against sorting, with updates and removals.
TEST(FairQueue, AgainstASortedModel) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    FairOptions options = small(1);
    options.oldest_every = 5;
    options.epoch = 1000;
    FairQueue queue(options);
    struct Item {
      std::uint64_t work;
      Time deadline;
      bool admission;
      FairEntry entry;
      Time evaluated;
    };
    std::map<std::uint32_t, Item> model;  // by name, that is by age
    Time now = 0, epoch = 0;
    std::uint32_t name = 0;
    int since = 0;
    for (int step = 0; step < 3000; ++step) {
      now += random.below(30);
      const std::uint64_t choice = random.below(10);
      if (choice < 5 && model.size() < 60) {
        Item item{1 + random.below(3000), now + random.below(8000), random.below(3) == 0, kNone, now};
        if (random.below(4) == 0) item.deadline = kNotDeclared;
        item.entry = push(queue,
                          make(0, name, 1 + random.below(1000), item.work, item.deadline,
                               item.admission ? FairClass::kAdmission : FairClass::kRunning),
                          now);
        model[name++] = item;
      } else if (choice < 6 && !model.empty()) {
        auto at = model.begin();
        std::advance(at, static_cast<int>(random.below(model.size())));
        queue.remove(at->second.entry);
        model.erase(at);
      } else if (choice < 7 && !model.empty()) {
        auto at = model.begin();
        std::advance(at, static_cast<int>(random.below(model.size())));
        at->second.work = 1 + random.below(3000);
        at->second.evaluated = now;
        queue.update(at->second.entry, at->second.work, now);
      } else if (!model.empty()) {
        if (now / 1000 != epoch || step == 0) {
          epoch = now / 1000;
          for (auto& [id, item] : model) item.evaluated = now;
        }
        auto best = model.begin();
        const auto rank = [](const Item& item) {
          const double slack = static_cast<double>(item.deadline) - static_cast<double>(item.evaluated);
          const bool hopeless = item.deadline == kNotDeclared || static_cast<double>(item.work) > slack;
          return std::tuple(item.admission, hopeless,
                            hopeless ? static_cast<double>(item.work) : -static_cast<double>(item.work) / slack);
        };
        const bool oldest = since + 1 >= 5;
        for (auto at = model.begin(); at != model.end() && !oldest; ++at) {
          if (rank(at->second) < rank(best->second)) best = at;
        }
        since = best == model.begin() ? 0 : since + 1;
        FairCall call;
        ASSERT_TRUE(queue.pop(now, &call));
        ASSERT_EQ(call.call, best->first) << "seed " << seed << " step " << step;
        model.erase(best);
      }
      if (step % 50 == 0) {
        ASSERT_TRUE(queue.verify());
        ASSERT_EQ(queue.size(), model.size());
      }
    }
  }
}

// Any sequence of operations, weights changed while tenants wait included, leaves the structure whole, loses no call, and
// the clock never goes back.
TEST(FairQueue, RandomOperations) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    FairOptions options = small(20);
    options.evaluations = 8;
    options.epoch = 50;
    FairQueue queue(options);
    std::map<std::uint32_t, FairEntry> waiting;
    std::vector<std::int64_t> served(20);
    Time now = 0;
    std::uint64_t clock = 0;
    for (std::uint32_t step = 0; step < 4000; ++step) {
      now += random.below(20);
      const auto tenant = static_cast<TenantId>(random.below(20));
      auto any = waiting.begin();
      if (!waiting.empty()) std::advance(any, static_cast<int>(random.below(waiting.size())));
      switch (random.below(8)) {
        case 0:
        case 1:
        case 2: {
          const FairCall call = make(tenant, step, random.below(1001), random.below(2000), now + random.below(4000),
                                     random.below(2) == 0 ? FairClass::kRunning : FairClass::kAdmission);
          FairEntry entry = kNone;
          const Status status = queue.push(call, now, &entry);
          ASSERT_EQ(status, waiting.size() < 64 ? Status::kOk : Status::kFull);
          if (status == Status::kOk) waiting[step] = entry;
          break;
        }
        case 3:
        case 4: {
          FairCall call;
          ASSERT_EQ(queue.pop(now, &call), !waiting.empty());
          if (!waiting.empty()) {
            ASSERT_EQ(waiting.erase(call.call), 1u);
            served[call.tenant] += static_cast<std::int64_t>(call.cost);
          }
          break;
        }
        case 5: {
          const std::int64_t delta = static_cast<std::int64_t>(random.below(1001)) - 500;
          queue.correct(tenant, delta);
          served[tenant] += delta;
          break;
        }
        case 6:
          if (random.below(3) == 0) queue.set_weight(tenant, static_cast<std::uint32_t>(1 + random.below(100'000)));
          if (!waiting.empty()) queue.update(any->second, random.below(3000), now);
          break;
        default:
          if (waiting.empty()) break;
          queue.remove(any->second);
          waiting.erase(any);
      }
      ASSERT_EQ(queue.size(), waiting.size());
      ASSERT_GE(queue.virtual_time(), clock);
      clock = queue.virtual_time();
      if (step % 20 == 0) {
        ASSERT_TRUE(queue.verify()) << "seed " << seed << " step " << step;
      }
    }
    for (TenantId id = 0; id < 20; ++id) EXPECT_EQ(queue.served(id), served[id]);
  }
}

}  // namespace
}  // namespace saga
