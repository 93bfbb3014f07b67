#include "../core/sim/sim_worker.hpp"

#include <gtest/gtest.h>

#include <map>

#include "../core/sim/event_queue.hpp"
#include "agent_tasks.hpp"

namespace saga {
namespace {

// Drives one worker: calls are submitted at given times, everything is recorded.
class Drive final : public WorkerObserver {
 public:
  Drive(const Workload& workload, const PageTree& tree, const SimWorkerOptions& options)
      : tree_(tree), awaited_(tree.size(), 0), worker_(0, workload, tree, options, awaited_, *this) {}

  void submit_at(Time time, CallId call, std::int32_t priority = 0) {
    priority_[call] = priority;
    outside_.push({time, 1, call, 0});
  }
  // Pages of the prompt of a call arrive from elsewhere.
  void receive_at(Time time, CallId call) { outside_.push({time, 2, call, 0}); }
  void run() {
    for (;;) {
      const bool wakes = worker_.wake() != SimWorker::Wake::kNever;
      if (!wakes && outside_.empty()) break;
      const bool ends = worker_.wake() == SimWorker::Wake::kStepEnd;
      // Step end, then outside, then step begin.
      const bool worker_next = wakes && (outside_.empty() || worker_.wake_time() < outside_.top().time ||
                                         (worker_.wake_time() == outside_.top().time && ends));
      if (worker_next) {
        const Time now = worker_.wake_time();
        if (ends) {
          worker_.end_step(now);
        } else {
          worker_.begin_step(now);
        }
      } else {
        const Event event = outside_.pop();
        if (event.kind == 0) {
          worker_.load_ended(event.subject, event.time);
        } else if (event.kind == 2) {
          const NodeId leaf = tree_.prompt_leaf(event.subject);
          received += worker_.receive(leaf, tree_.path_pages(leaf), event.time);
        } else {
          worker_.submit(event.subject, priority_[event.subject], event.time);
        }
      }
      ASSERT_TRUE(worker_.verify());
    }
    EXPECT_EQ(worker_.running_pages(), 0u);
    EXPECT_EQ(finished.size(), submitted());
  }
  std::size_t submitted() const { return priority_.size(); }
  SimWorker& worker() { return worker_; }

  std::uint32_t computed_pages(NodeId, Time) override { return 0; }
  void call_admitted(WorkerId, CallId call, Time now) override { admitted[call] = now; }
  void first_token(WorkerId, CallId call, Time now) override { first[call] = now; }
  void call_finished(WorkerId, CallId call, Time now) override {
    finished[call] = now;
    order.push_back(call);
  }
  void load_started(WorkerId, std::uint32_t slot, Time end) override { outside_.push({end, 0, slot, 0}); }
  void pages_changed(WorkerId, const std::vector<PageCache::Change>& changes, Time) override {
    for (const PageCache::Change& change : changes) {
      if (!change.stored) evicted.push_back(change.range);
    }
  }

  void lease_changed(const LeaseReport& report, Time now) override { leases.push_back({report, now}); }

  std::map<CallId, Time> admitted, first, finished;
  std::vector<std::pair<LeaseReport, Time>> leases;
  std::vector<CallId> order;
  std::uint32_t received = 0;
  std::vector<PageRange> evicted;

 private:
  const PageTree& tree_;
  std::vector<std::uint32_t> awaited_;
  std::map<CallId, std::int32_t> priority_;
  EventQueue outside_;
  SimWorker worker_;
};

SimWorkerOptions linear_a100() {
  SimWorkerOptions options;
  options.step_time = StepTimeModel(Hardware::kA100Tp4, StepTimeCurve::kLinear);
  return options;
}

// Calls without anything in common.
Workload separate_calls(const std::vector<std::pair<std::uint32_t, std::uint32_t>>& prompt_output) {
  test::WorkloadBuilder builder(16);
  std::uint64_t id = 0;
  ThreadId thread = 0;
  for (const auto& [prompt, output] : prompt_output) {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> ids;
    if (prompt >= 16) ids.push_back({id, prompt / 16});
    id += prompt / 16;
    builder.call(thread++, prompt, output, ids);
    builder.end_task();
  }
  return builder.get();
}

TEST(SimWorker, ChunkedPrefillBesideDecodeByHand) {
  // A decodes (prompt 100); B (prompt 5,000) comes during A's second step and is cut into 2,047 + 2,047 + 906.
  const Workload workload = separate_calls({{100, 6}, {5000, 1}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  Drive drive(workload, tree, linear_a100());
  drive.submit_at(0, 0);
  drive.submit_at(50'000, 1);
  drive.run();
  EXPECT_EQ(drive.first[0], 46'424u);     // 28.6 + 17.8 + 0.0235 = 46.4235
  EXPECT_EQ(drive.admitted[1], 75'173u);  // + 28.748878: the step in flight is not broken up
  // 28.6 + 0.178 * 2047 + 4.7e-6 * 2047^2 / 2 + 0.141 + 7.8e-5 * 102 = 402.961919
  // 28.6 + 364.366 + 4.7e-6 * 2047 * (2047 + 1023.5) + 0.141 + 7.8e-5 * 103 = 422.656208
  // 28.6 + 161.268 + 4.7e-6 * 906 * (4094 + 453) + 0.141 + 7.8e-5 * 104 = 209.379145
  EXPECT_EQ(drive.first[1], 75'173u + 402'962 + 422'656 + 209'379);
  EXPECT_EQ(drive.finished[1], drive.first[1]);
  EXPECT_EQ(drive.finished[0], drive.finished[1] + 28'749);  // A's sixth token: 28.6 + 0.141 + 7.8e-5 * 105 = 28.74919
}

TEST(SimWorker, NewestIsPreemptedAndComputedAgain) {
  // Room for 8 pages; three calls of 2 + 2 pages come together. In step 2 the third finds no page and is preempted; the
  // others take its pages, tail first, and finish together after 32 steps: 45.695 ms for the three prompts, then 31
  // steps of 28.882 + 7.8e-5 * 2 * (33 + i) ms, each rounded. Then the third: a chunk of 33 (34.477 ms) and 30 steps
  // alone.
  const Workload workload = separate_calls({{32, 32}, {32, 32}, {32, 32}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 8;
  Drive drive(workload, tree, options);
  for (CallId call = 0; call < 3; ++call) drive.submit_at(0, call);
  drive.run();
  EXPECT_EQ(drive.order, (std::vector<CallId>{0, 1, 2}));
  EXPECT_EQ(drive.first[0], 45'695u);
  EXPECT_EQ(drive.first[2], 45'695u);
  EXPECT_EQ(drive.finished[0], 941'269u);
  EXPECT_EQ(drive.finished[1], 941'269u);
  EXPECT_EQ(drive.finished[2], 1'838'091u);
  EXPECT_EQ(drive.worker().counters().preemptions, 1u);
  EXPECT_EQ(drive.worker().counters().preempted_tokens, 32u);
  // Its prompt was prefilled twice.
  EXPECT_EQ(drive.worker().counters().prefilled_tokens, 4u * 32u);
  const NodeId third = tree.prompt_leaf(2);
  ASSERT_GE(drive.evicted.size(), 2u);
  EXPECT_EQ(drive.evicted[0].node, third);
  EXPECT_EQ(drive.evicted[0].first, 1u);  // tail first
  EXPECT_EQ(drive.evicted[1].node, third);
  EXPECT_EQ(drive.evicted[1].first, 0u);
}

TEST(SimWorker, WhoIsPreemptedGoesToTheFrontOfTheQueue) {
  // As above, and a fourth call, small enough to fit beside the first two, that came before the third was preempted.
  const Workload workload = separate_calls({{32, 32}, {32, 32}, {32, 32}, {15, 1}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 8;
  options.max_sequences = 3;
  Drive drive(workload, tree, options);
  for (CallId call = 0; call < 3; ++call) drive.submit_at(0, call);
  drive.submit_at(10'000, 3);
  drive.run();
  EXPECT_EQ(drive.finished[0], 941'269u);
  EXPECT_EQ(drive.admitted[3], drive.finished[0]);
  EXPECT_EQ(drive.order, (std::vector<CallId>{0, 1, 3, 2}));
}

TEST(SimWorker, WholePromptsWaitForRoomForAllOfThem) {
  // Room for 8 pages. The first call has 3 and more while it decodes; the second needs 6, of which its first chunk takes 2.
  const Workload workload = separate_calls({{32, 20}, {96, 1}, {16, 1}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  for (const bool whole : {false, true}) {
    for (const bool single : {false, true}) {
      SimWorkerOptions options = linear_a100();
      options.capacity_pages = 8;
      options.token_budget = 32;
      options.whole_prompts = whole;
      options.single_step = single;
      Drive drive(workload, tree, options);
      for (CallId call = 0; call < 3; ++call) drive.submit_at(0, call);
      drive.run();
      if (whole) {
        EXPECT_EQ(drive.admitted[1], drive.finished[0]);
        EXPECT_EQ(drive.worker().counters().preemptions, 0u);
      } else {
        EXPECT_EQ(drive.admitted[1], drive.first[0]);
        EXPECT_GE(drive.worker().counters().preemptions, 1u);
      }
      // The third, which would fit, overtakes nobody.
      EXPECT_EQ(drive.order, (std::vector<CallId>{0, 1, 2}));
    }
  }
  // What is cached needs no room: with the first four of six pages there, both fit.
  test::WorkloadBuilder builder(16);
  builder.call(0, 64, 1, {{0, 4}});
  builder.call(0, 32, 8, {{100, 2}});
  builder.call(0, 96, 1, {{0, 4}, {200, 2}});
  builder.end_task();
  const PageTree shared = PageTree::for_cluster(builder.get(), 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 9;
  options.token_budget = 32;
  options.whole_prompts = true;
  Drive drive(builder.get(), shared, options);
  drive.submit_at(0, 0);
  drive.submit_at(1'000'000, 1);
  drive.submit_at(1'000'001, 2);
  drive.run();
  EXPECT_EQ(drive.admitted[2], drive.first[1]);
  EXPECT_EQ(drive.worker().counters().preemptions, 0u);
}

TEST(SimWorker, WhoComesAtTheEndOfAStepIsInTheNext) {
  // Steps end at 46,424, 75,173, 103,922 and so on; the whole answer is planned at once.
  const Workload workload = separate_calls({{100, 6}, {16, 1}, {16, 1}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  Drive drive(workload, tree, linear_a100());
  drive.submit_at(0, 0);
  drive.submit_at(75'173, 1);
  drive.run();
  EXPECT_EQ(drive.admitted[1], 75'173u);
  Drive late(workload, tree, linear_a100());
  late.submit_at(0, 0);
  late.submit_at(75'174, 1);
  late.run();
  EXPECT_EQ(late.admitted[1], 103'922u);
}

TEST(SimWorker, PriorityPreemptsTheLeastImportant) {
  const Workload workload = separate_calls({{32, 32}, {32, 32}, {32, 32}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 8;
  options.priority_scheduling = true;
  Drive drive(workload, tree, options);
  drive.submit_at(0, 0, 5);
  drive.submit_at(0, 1, 7);  // the largest number goes first, though not the newest
  drive.submit_at(0, 2, 5);
  drive.run();
  EXPECT_EQ(drive.order, (std::vector<CallId>{0, 2, 1}));
  EXPECT_EQ(drive.worker().counters().preemptions, 1u);
}

TEST(SimWorker, PriorityOrdersTheQueue) {
  const Workload workload = separate_calls({{32, 40}, {32, 2}, {32, 2}, {32, 2}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  SimWorkerOptions options = linear_a100();
  options.max_sequences = 1;
  options.token_budget = 64;
  options.priority_scheduling = true;
  Drive drive(workload, tree, options);
  drive.submit_at(0, 0, 0);
  drive.submit_at(1, 1, 3);
  drive.submit_at(2, 2, 1);
  drive.submit_at(3, 3, 3);
  drive.run();
  EXPECT_EQ(drive.order, (std::vector<CallId>{0, 2, 1, 3}));
}

TEST(SimWorker, NobodyOvertakesTheHeadOfTheQueue) {
  // Room for 8 pages. The first call holds 5; the second needs 6 and waits; the third, of one page, waits behind it.
  const Workload workload = separate_calls({{79, 2}, {95, 2}, {15, 1}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 8;
  Drive drive(workload, tree, options);
  drive.submit_at(0, 0);
  drive.submit_at(1, 1);
  drive.submit_at(2, 2);
  drive.run();
  EXPECT_EQ(drive.admitted[1], drive.finished[0]);
  EXPECT_EQ(drive.admitted[2], drive.finished[0]);
}

TEST(SimWorker, ExactRepeatRecomputesTheLastPage) {
  // A prompt of 48 tokens again: three pages are cached, but the last token must be computed: 32 tokens hit.
  test::WorkloadBuilder builder(16);
  builder.call(0, 48, 1, {{0, 3}});
  builder.end_task();
  builder.call(1, 48, 1, {{0, 3}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  Drive drive(builder.get(), tree, linear_a100());
  drive.submit_at(0, 0);
  drive.submit_at(1'000'000, 1);
  drive.run();
  EXPECT_EQ(drive.worker().counters().hit_tokens, 32u);
  EXPECT_EQ(drive.worker().counters().missed_pages, 3u);  // of the first call; the second found all three
  EXPECT_EQ(drive.finished[1], 1'000'000u + 31'451);      // 28.6 + 2.848 + 4.7e-6 * 16 * 40
}

TEST(SimWorker, SeatsBoundTheBatch) {
  const Workload workload = separate_calls({{16, 3}, {16, 3}, {16, 3}});
  const PageTree tree = PageTree::for_cluster(workload, 16);
  SimWorkerOptions options = linear_a100();
  options.max_sequences = 2;
  Drive drive(workload, tree, options);
  for (CallId call = 0; call < 3; ++call) drive.submit_at(0, call);
  drive.run();
  EXPECT_EQ(drive.admitted[1], 0u);
  EXPECT_EQ(drive.admitted[2], drive.finished[0]);
}

TEST(SimWorker, HostTierLoadsWhileTheEngineGoesOn) {
  // Room for 8 pages. Call 0 (6 pages) is pushed out by call 1 (6 pages); call 2 repeats call 0's prompt and loads its
  // 5 leading pages: 2 are still there, 3 come over the link: 3 * 16 * 327,680 B at 25 GB/s = 629.15 us.
  test::WorkloadBuilder builder(16);
  builder.call(0, 96, 1, {{0, 6}});
  builder.end_task();
  builder.call(1, 96, 1, {{100, 6}});
  builder.end_task();
  builder.call(2, 96, 1, {{0, 6}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 8;
  options.host_pages = 100;
  Drive drive(builder.get(), tree, options);
  drive.submit_at(0, 0);
  drive.submit_at(1'000'000, 1);
  drive.submit_at(2'000'000, 2);
  drive.run();
  EXPECT_EQ(drive.worker().counters().loaded_tokens, 48u);
  EXPECT_EQ(drive.worker().counters().hit_tokens, 80u);
  EXPECT_EQ(drive.admitted[2], 2'000'000u);
  // 28.6 + 0.178 * 16 + 4.7e-6 * 16 * 88 = 31.4546
  EXPECT_EQ(drive.finished[2], 2'000'000u + 630 + 31'455);
}

TEST(SimWorker, TransferTime) {
  EXPECT_EQ(transfer_time(1, 16, 327'680, 25'000'000'000), 210u);  // 209.7
  // 32,768 tokens: 10.74 GB, 429.5 ms.
  EXPECT_EQ(transfer_time(2'048, 16, 327'680, 25'000'000'000), 429'497u);
  EXPECT_EQ(transfer_time(1, 1, 1, 25'000'000'000), 1u);
  EXPECT_EQ(transfer_time(250'000, 16, 327'680, 25'000'000'000), 52'428'800u);
}

TEST(SimWorker, PageCost) {
  // One page of 16 tokens at the front: 16 + (16 * 15 / 2) / 60,000 = 16.002 tokens.
  EXPECT_EQ(page_cost(16, 0, 1), 16u * 120'000 + 240);
  std::uint64_t sum = 0;
  for (std::uint64_t position = 5 * 16; position < 9 * 16; ++position) sum += 120'000 + 2 * position;
  EXPECT_EQ(page_cost(16, 5, 9), sum);
  EXPECT_EQ(page_cost(16, 9, 9), 0u);
}

// An engine as simple as can be: no cache, no shortage of pages; a list of calls and a clock.
std::vector<Time> naive_engine(const Workload& workload, const std::vector<Time>& submit, const StepTimeModel& model,
                               std::uint32_t seats, std::uint32_t token_budget) {
  struct Job {
    CallId call;
    std::uint32_t computed;
    std::uint32_t generated;
  };
  std::vector<Time> finished(workload.calls(), 0);
  std::vector<Job> running;
  CallId next = 0;
  Time now = 0;
  while (next < workload.calls() || !running.empty()) {
    if (running.empty()) now = std::max(now, submit[next]);
    std::uint32_t budget = token_budget;
    StepLoad load;
    std::vector<std::uint32_t> tokens;
    for (std::size_t i = 0;; ++i) {
      if (i == running.size()) {
        if (next == workload.calls() || submit[next] > now || running.size() == seats || budget == 0) break;
        running.push_back({next++, 0, 0});
      }
      const Job& job = running[i];
      const std::uint32_t known = workload.prompt_tokens[job.call] + job.generated;
      tokens.push_back(std::min(known - job.computed, budget));
      budget -= tokens.back();
      if (job.generated > 0) load.add_decode(known);
      if (job.generated == 0) load.add_prefill(tokens.back(), job.computed);
    }
    now += model.step(load);
    std::vector<Job> kept;
    for (std::size_t i = 0; i < running.size(); ++i) {
      Job job = running[i];
      job.computed += tokens[i];
      if (job.computed == workload.prompt_tokens[job.call] + job.generated) ++job.generated;
      if (job.generated == workload.output_tokens[job.call]) {
        finished[job.call] = now;
      } else {
        kept.push_back(job);
      }
    }
    running = kept;
  }
  return finished;
}

TEST(SimWorker, AgreesWithANaiveEngine) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed);
    std::vector<std::pair<std::uint32_t, std::uint32_t>> calls;
    std::vector<Time> submit;
    Time time = 0;
    for (int i = 0; i < 120; ++i) {
      calls.push_back({1 + static_cast<std::uint32_t>(random.below(random.below(4) == 0 ? 9000 : 600)),
                       1 + static_cast<std::uint32_t>(random.below(200))});
      time += random.below(900'000);
      submit.push_back(time);
    }
    const Workload workload = separate_calls(calls);
    const PageTree tree = PageTree::for_cluster(workload, 16);
    SimWorkerOptions options;
    options.step_time = StepTimeModel(static_cast<Hardware>(seed % kHardwareCount),
                                      seed % 2 == 0 ? StepTimeCurve::kInterpolated : StepTimeCurve::kLinear);
    options.max_sequences = 1 + static_cast<std::uint32_t>(random.below(40));
    options.token_budget = 64 + static_cast<std::uint32_t>(random.below(2048));
    options.single_step = seed % 5 == 4;
    Drive drive(workload, tree, options);
    for (CallId call = 0; call < workload.calls(); ++call) drive.submit_at(submit[call], call);
    drive.run();
    const std::vector<Time> expected =
        naive_engine(workload, submit, options.step_time, options.max_sequences, options.token_budget);
    for (CallId call = 0; call < workload.calls(); ++call) {
      ASSERT_EQ(drive.finished[call], expected[call]) << "seed " << seed << " call " << call;
    }
    EXPECT_EQ(drive.worker().counters().preemptions, 0u);
  }
}

// Four prompts of 4 pages each, then others; room for `pages` pages, all of which may be leased.
struct LeaseFixture {
  LeaseFixture(std::uint32_t pages, const std::vector<std::pair<std::uint32_t, std::uint32_t>>& others)
      : workload(separate_calls(calls(others))), tree(PageTree::for_cluster(workload, 16)) {
    options = linear_a100();
    options.capacity_pages = pages;
    options.lease_budget_percent = 100;
  }
  static std::vector<std::pair<std::uint32_t, std::uint32_t>> calls(
      const std::vector<std::pair<std::uint32_t, std::uint32_t>>& others) {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> all(4, {64, 1});
    all.insert(all.end(), others.begin(), others.end());
    return all;
  }
  Workload workload;
  PageTree tree;
  SimWorkerOptions options;
};

LeaseReport report(LeaseId lease, CallId call, std::uint32_t pages, LeaseOutcome outcome) {
  return {lease, call, 0, pages, outcome};
}

constexpr Time kSecond = 1'000'000;

TEST(SimWorker, LeasesAreRevokedByValueThenDeadlineThenAge) {
  LeaseFixture f(20, {{13 * 16, 1}});
  Drive drive(f.workload, f.tree, f.options);
  for (CallId call = 0; call < 4; ++call) drive.submit_at(call, call);
  drive.run();
  SimWorker& worker = drive.worker();
  const Time now = kSecond;
  const auto lease = [&](CallId call, std::uint64_t value, Time until) {
    return worker.lease(call, f.tree.prompt_leaf(call), kNone, value, until, now);
  };
  EXPECT_EQ(lease(0, 5, 90 * kSecond), 0u);
  EXPECT_EQ(lease(1, 1, 99 * kSecond), 1u);
  EXPECT_EQ(lease(2, 1, 50 * kSecond), 2u);
  EXPECT_EQ(lease(3, 1, 50 * kSecond), 3u);
  EXPECT_EQ(worker.running_pages(), 0u);  // kept, not used
  EXPECT_EQ(worker.cache().leased(), 16u);
  EXPECT_TRUE(worker.verify());
  drive.submit_at(2 * kSecond, 4);  // 13 pages, 4 are free: three of the leases must go
  drive.run();
  EXPECT_EQ(drive.admitted[4], 2 * kSecond);
  ASSERT_EQ(drive.leases.size(), 7u);
  const LeaseId order[] = {2, 3, 1};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(drive.leases[4 + i].first, report(order[i], static_cast<CallId>(order[i]), 4, LeaseOutcome::kRevoked));
    EXPECT_EQ(drive.leases[4 + i].second, 2 * kSecond);
  }
  EXPECT_EQ(worker.match(f.tree.prompt_leaf(0)), 4u);
  EXPECT_EQ(worker.open_leases(), 1u);
  EXPECT_EQ(worker.lease_counters().granted, 4u);
  EXPECT_EQ(worker.lease_counters().revoked, 3u);
}

TEST(SimWorker, NoLeaseIsRevokedInVain) {
  // Room for 20 pages: 4 leased, 11 used by the first call; the second wants 10 and could not have them without the
  // lease either. When the first has ended its pages are enough.
  LeaseFixture f(20, {{160, 10}, {160, 1}});
  Drive drive(f.workload, f.tree, f.options);
  drive.submit_at(0, 0);
  drive.run();
  SimWorker& worker = drive.worker();
  ASSERT_EQ(worker.lease(0, f.tree.prompt_leaf(0), kNone, 0, 99 * kSecond, kSecond), 0u);
  drive.submit_at(kSecond, 4);
  drive.submit_at(kSecond + 1, 5);
  drive.run();
  EXPECT_EQ(drive.admitted[5], drive.finished[4]);
  EXPECT_EQ(worker.open_leases(), 1u);
  EXPECT_EQ(worker.match(f.tree.prompt_leaf(0)), 4u);
}

TEST(SimWorker, LeasesOfWhatRunningCallsUseArePassedOver) {
  // The call continues the first prompt, leased at 0, and needs 3 pages of its own beside the second's 4, leased at 9;
  // at the last page only that lease can help.
  test::WorkloadBuilder builder(16);
  builder.call(0, 64, 1, {{0, 4}});
  builder.end_task();
  builder.call(1, 64, 1, {{100, 4}});
  builder.end_task();
  builder.call(2, 80, 32, {{0, 4}, {50, 1}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  SimWorkerOptions options = linear_a100();
  options.capacity_pages = 10;
  options.lease_budget_percent = 100;
  Drive drive(builder.get(), tree, options);
  drive.submit_at(0, 0);
  drive.submit_at(1, 1);
  drive.run();
  SimWorker& worker = drive.worker();
  ASSERT_EQ(worker.lease(0, tree.prompt_leaf(0), kNone, 0, 99 * kSecond, kSecond), 0u);
  ASSERT_EQ(worker.lease(1, tree.prompt_leaf(1), kNone, 9, 99 * kSecond, kSecond), 1u);
  drive.submit_at(kSecond, 2);
  drive.run();
  EXPECT_EQ(worker.counters().hit_tokens, 64u);
  EXPECT_EQ(worker.counters().preemptions, 0u);
  ASSERT_EQ(drive.leases.size(), 3u);
  EXPECT_EQ(drive.leases[2].first, report(1, 1, 4, LeaseOutcome::kRevoked));
  // The prompt's step and 16 more take the tokens up to 96; the next begins the page that is missing. 28.6 + 2.848 +
  // 4.7e-6 * 16 * 72 = 31.4534 ms, then 28.741 + 7.8e-5 * (80 + i) ms: 28,747 (i = 1 ... 3), 28,748 (i = 4 ... 16).
  EXPECT_EQ(drive.leases[2].second, kSecond + 31'453 + 3 * 28'747 + 13 * 28'748);
  EXPECT_EQ(worker.match(tree.prompt_leaf(0)), 4u);
}

TEST(SimWorker, LeasesAreRefusedExpireAndAreReleased) {
  LeaseFixture f(16, {});
  f.options.lease_budget_percent = 60;  // 9 pages
  f.options.max_leases = 3;
  Drive drive(f.workload, f.tree, f.options);
  for (CallId call = 0; call < 3; ++call) drive.submit_at(call, call);
  drive.run();
  SimWorker& worker = drive.worker();
  const NodeId first = f.tree.prompt_leaf(0);
  EXPECT_EQ(worker.lease(3, f.tree.prompt_leaf(3), kNone, 1, 9 * kSecond, kSecond), kNoLease);  // nothing is cached
  EXPECT_EQ(worker.lease(0, first, kNone, 1, kSecond, kSecond), kNoLease);                      // the deadline has come
  EXPECT_EQ(worker.lease(0, first, 2, 1, 9 * kSecond, kSecond), 0u);
  EXPECT_EQ(worker.cache().leased(), 4u);  // nodes count as a whole
  EXPECT_EQ(worker.lease(1, f.tree.prompt_leaf(1), kNone, 1, 3 * kSecond, kSecond), 1u);
  EXPECT_EQ(worker.lease(2, f.tree.prompt_leaf(2), kNone, 1, 9 * kSecond, kSecond), kNoLease);  // 12 of 9 pages
  EXPECT_EQ(worker.lease(0, first, kNone, 1, 9 * kSecond, kSecond), 2u);                        // the same pages again
  EXPECT_EQ(worker.lease(0, first, kNone, 1, 9 * kSecond, kSecond), kNoLease);                  // all leases hold
  EXPECT_TRUE(worker.verify());
  worker.expire_leases(3 * kSecond - 1);
  EXPECT_EQ(worker.open_leases(), 3u);
  worker.expire_leases(3 * kSecond);
  EXPECT_EQ(worker.open_leases(), 2u);
  EXPECT_FALSE(worker.release(1, 4 * kSecond));  // it has expired
  EXPECT_TRUE(worker.release(0, 4 * kSecond));
  EXPECT_FALSE(worker.release(0, 4 * kSecond));
  EXPECT_EQ(worker.cache().leased(), 4u);
  EXPECT_EQ(worker.lease(2, f.tree.prompt_leaf(2), kNone, 1, 9 * kSecond, 4 * kSecond), 3u);  // now there is room
  const LeaseOutcome outcomes[] = {LeaseOutcome::kRefused, LeaseOutcome::kRefused, LeaseOutcome::kGranted,
                                   LeaseOutcome::kGranted, LeaseOutcome::kRefused, LeaseOutcome::kGranted,
                                   LeaseOutcome::kRefused, LeaseOutcome::kExpired, LeaseOutcome::kReleased,
                                   LeaseOutcome::kGranted};
  ASSERT_EQ(drive.leases.size(), 10u);
  for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(drive.leases[i].first.outcome, outcomes[i]) << i;
  EXPECT_EQ(drive.leases[7].second, 3 * kSecond);
  EXPECT_EQ(drive.leases[2].first, report(0, 0, 2, LeaseOutcome::kGranted));
  EXPECT_EQ(worker.lease_counters().granted, 4u);
  EXPECT_EQ(worker.lease_counters().refused, 4u);
  EXPECT_EQ(worker.lease_counters().expired, 1u);
  EXPECT_EQ(worker.lease_counters().released, 1u);
  EXPECT_TRUE(worker.verify());
}

TEST(SimWorker, CopiesRevokeNothing) {
  LeaseFixture f(12, {{96, 1}});
  Drive drive(f.workload, f.tree, f.options);
  for (CallId call = 0; call < 3; ++call) drive.submit_at(call, call);
  drive.run();
  SimWorker& worker = drive.worker();
  for (CallId call = 0; call < 2; ++call) {
    ASSERT_EQ(worker.lease(call, f.tree.prompt_leaf(call), kNone, 0, 9 * kSecond, kSecond), call);
  }
  EXPECT_EQ(worker.receive(f.tree.prompt_leaf(4), 6, 2 * kSecond), 4u);  // of six; those of the third prompt went
  EXPECT_EQ(worker.match(f.tree.prompt_leaf(4)), 4u);
  EXPECT_EQ(worker.match(f.tree.prompt_leaf(2)), 0u);
  EXPECT_EQ(worker.open_leases(), 2u);
  EXPECT_EQ(worker.running_pages(), 0u);
  EXPECT_TRUE(worker.verify());
}

TEST(SimWorker, CopiesAheadOfACallThatDecodesCutThePlan) {
  // Room for 12 pages; two calls decode, each from 2 pages to 8. In the fifth step the first one's answer arrives as
  // part of a copied prompt and fills the cache. When the call enters those pages it pins them all, and the second
  // call, for which the plan had counted on some of them, is preempted.
  test::WorkloadBuilder builder(16);
  builder.call(0, 32, 97, {{0, 2}});
  builder.call(0, 144, 1, {{0, 9}});
  builder.call(1, 32, 97, {{100, 2}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  std::map<CallId, Time> finished[2];
  std::uint64_t preempted[2] = {0, 0};
  for (const bool single : {false, true}) {
    SimWorkerOptions options = linear_a100();
    options.capacity_pages = 12;
    options.single_step = single;
    Drive drive(builder.get(), tree, options);
    drive.submit_at(0, 0);
    drive.submit_at(0, 2);
    drive.receive_at(150'000, 1);
    drive.run();
    EXPECT_EQ(drive.received, 6u);
    EXPECT_EQ(drive.order, (std::vector<CallId>{0, 2}));  // the second alone was preempted
    preempted[single ? 1 : 0] = drive.worker().counters().preempted_tokens;
    finished[single ? 1 : 0] = drive.finished;
  }
  EXPECT_GT(preempted[0], 0u);
  EXPECT_EQ(preempted[0], preempted[1]);
  EXPECT_EQ(finished[0], finished[1]);
}

TEST(HostTier, KeepsTheMostRecentlyUsed) {
  test::WorkloadBuilder builder(16);
  builder.call(0, 96, 1, {{0, 6}});
  builder.end_task();
  const PageTree tree = PageTree::for_cluster(builder.get(), 16);
  const NodeId leaf = tree.prompt_leaf(0);
  HostTier tier(3);
  tier.insert({leaf, 2, 4});  // 5, 4, 3, 2: the first to come, 5, has gone
  EXPECT_EQ(tier.size(), 3u);
  EXPECT_FALSE(tier.contains(leaf, 5));
  EXPECT_EQ(tier.run_on_path(tree, leaf, 2, 6), 3u);
  EXPECT_EQ(tier.run_on_path(tree, leaf, 2, 4), 2u);
  EXPECT_EQ(tier.run_on_path(tree, leaf, 1, 6), 0u);
  tier.touch_path(tree, leaf, 4, 5);
  tier.insert({leaf, 1, 1});  // 3 is the oldest now
  EXPECT_FALSE(tier.contains(leaf, 3));
  EXPECT_TRUE(tier.contains(leaf, 4));
  EXPECT_TRUE(tier.verify());
  tier.clear();
  EXPECT_EQ(tier.size(), 0u);
  EXPECT_TRUE(tier.verify());
}

}  // namespace
}  // namespace saga
