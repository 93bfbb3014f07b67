#include "../core/place/saga_scheduler.hpp"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <tuple>

#include "../core/graph/agent_graph.hpp"
#include "cluster_scenarios.hpp"

namespace saga {
namespace {

using test::expect_same;
using test::WorkloadBuilder;

constexpr Time kMillisecond = 1'000;
constexpr Time kSecond = 1'000'000;

// A cluster of literal facts that writes down what is done to it. Pages of 16 tokens, copied at one a millisecond; what
// is copied is cached from then on.
class FakeCluster final : public ClusterControl {
 public:
  struct Call {
    std::uint32_t prompt = 0;
    std::uint32_t output = 0;
    ThreadId thread = 0;
    std::uint32_t task = 0;
    std::map<WorkerId, std::uint32_t> cached;  // pages
    std::map<WorkerId, std::uint32_t> host;    // pages that follow them there
  };
  struct Lease {
    CallId call;
    WorkerId worker;
    std::uint64_t value;
    Time until;
    bool open = true;
  };

  FakeCluster(std::uint32_t workers, std::uint32_t capacity)
      : open(workers, 0), gone(workers, false), capacity_(capacity) {}

  std::uint32_t workers() const override { return static_cast<std::uint32_t>(open.size()); }
  std::uint32_t page_tokens() const override { return 16; }
  std::uint32_t prompt_tokens(CallId call) const override { return calls.at(call).prompt; }
  PromptKind prompt_kind(CallId) const override { return PromptKind::kTool; }
  ThreadId thread(CallId call) const override { return calls.at(call).thread; }
  std::uint32_t task(CallId call) const override { return calls.at(call).task; }
  std::uint32_t tenant(std::uint32_t task) const override { return tenants.count(task) ? tenants.at(task) : 0; }
  double weight(std::uint32_t tenant) const override { return weights.count(tenant) ? weights.at(tenant) : 1.0; }
  const AgentGraph* graph(std::uint32_t task) const override { return graphs.count(task) ? graphs.at(task) : nullptr; }
  std::uint32_t output_tokens(CallId call) const override { return calls.at(call).output; }
  bool active(WorkerId worker) const override { return !gone[worker]; }
  std::uint32_t active_workers() const override {
    return static_cast<std::uint32_t>(std::count(gone.begin(), gone.end(), false));
  }
  bool has_host_tier() const override { return host_tier; }
  void match(CallId call, std::uint32_t* pages) override {
    for (WorkerId w = 0; w < workers(); ++w) pages[w] = cached_pages(call, w);
  }
  std::uint32_t open_calls(WorkerId worker) const override { return open[worker]; }
  std::uint32_t running_pages(WorkerId) override { return 0; }
  std::uint32_t waiting_calls(WorkerId) const override { return 0; }
  std::uint32_t free_pages(WorkerId) override { return capacity_; }
  std::uint32_t capacity_pages(WorkerId) const override { return capacity_; }
  std::uint32_t leased_pages(WorkerId) const override { return 0; }
  std::uint32_t cached_pages(CallId call, WorkerId worker) override {
    EXPECT_LT(worker, workers());
    const auto& cached = calls.at(call).cached;
    return cached.count(worker) ? cached.at(worker) : 0;
  }
  std::uint32_t cached_or_host_pages(CallId call, WorkerId worker) override {
    const auto& host = calls.at(call).host;
    return cached_pages(call, worker) + (host.count(worker) ? host.at(worker) : 0);
  }
  Time copy_time(std::uint32_t pages) const override { return pages * kMillisecond; }
  void send(CallId call, WorkerId worker) override {
    EXPECT_LT(worker, workers());
    EXPECT_FALSE(gone[worker]);
    EXPECT_TRUE(at.emplace(call, worker).second) << "sent twice: " << call;
    ++open[worker];
    sent.push_back({call, worker});
  }
  void set_priority(CallId call, std::int32_t priority) override { priorities.push_back({call, priority}); }
  std::uint32_t copy(CallId call, WorkerId from, WorkerId to) override {
    copies.push_back({call, from, to});
    auto& cached = calls.at(call).cached;
    const std::uint32_t before = cached_pages(call, to);
    cached[to] = from == to ? cached_or_host_pages(call, to) : std::max(before, cached_pages(call, from));
    if (from == to) calls.at(call).host.erase(to);
    return cached[to] - before;
  }
  void wake_at(Time time) override { wakes.insert(time); }
  void drop(CallId call, WorkerId worker) override { dropped.push_back({call, worker}); }
  LeaseId lease(CallId call, WorkerId worker, std::uint64_t value, Time until) override {
    leases.push_back({call, worker, value, until});
    return leases.size() - 1;
  }
  bool release(LeaseId lease) override { return std::exchange(leases.at(lease).open, false); }
  void granted(CallId call) override { grants.push_back(call); }

  using Places = std::vector<std::pair<CallId, WorkerId>>;
  std::vector<Call> calls;
  std::map<std::uint32_t, std::uint32_t> tenants;
  std::map<std::uint32_t, double> weights;
  std::map<std::uint32_t, const AgentGraph*> graphs;
  bool host_tier = false;
  std::vector<std::uint32_t> open;
  std::vector<bool> gone;
  std::map<CallId, WorkerId> at;  // open calls
  Places sent;                    // in order, also those that place() returned
  Places dropped;
  std::vector<std::tuple<CallId, WorkerId, WorkerId>> copies;
  std::vector<std::pair<CallId, std::int32_t>> priorities;
  std::vector<Lease> leases;
  std::vector<CallId> grants;
  std::set<Time> wakes;

 private:
  std::uint32_t capacity_;
};

// Costs that a reader can calculate with: a step takes 10 ms whoever is in it, a prompt token 1 ms. Without prediction
// every call is taken to have an answer of 300 tokens, to be followed by 300 more after a second, and by nine others.
SagaSchedulerOptions simple(std::uint32_t workers) {
  SagaSchedulerOptions options;
  options.workers = workers;
  options.threads = options.tasks = 300;
  options.calls = 2'000;
  options.tenants = 3;
  options.costs = {0.010, 0, 0, 0.001, 0};
  options.parts.prediction = false;
  options.room = 0.9;
  options.readmit = 0.3;
  options.hysteresis = 0.02;
  options.tie = 0.005;
  options.settle_seconds = 10;
  options.longest_copy_seconds = 2;
  options.displacement = 10;
  options.largest_need = 1;
  options.longest_wait = 3'600 * kSecond;
  return options;
}

// Prompts are so dear that nobody's answer is worth pushing others out for.
SagaSchedulerOptions dear(std::uint32_t workers) {
  SagaSchedulerOptions options = simple(workers);
  options.costs.per_prefill_token = 0.1;
  return options;
}

constexpr std::uint32_t kRoomy = 100'000;  // pages

// A scheduler in front of a fake cluster; everything is verified after each event.
struct Stage {
  explicit Stage(const SagaSchedulerOptions& options, std::uint32_t capacity_pages = kRoomy)
      : cluster(options.workers, capacity_pages), scheduler(options) {}

  // A call of the thread, of the task of the same number; it finds what the call before left.
  CallId call(ThreadId thread, std::uint32_t prompt = 1'000) { return call_of(thread, thread, prompt); }
  CallId call_of(ThreadId thread, std::uint32_t task, std::uint32_t prompt) {
    FakeCluster::Call call;
    call.prompt = prompt;
    call.thread = thread;
    call.task = task;
    if (last.count(thread)) {
      for (const auto& [worker, pages] : cluster.calls[last[thread]].cached) {
        call.cached[worker] = std::min(pages, prompt / 16);
      }
    }
    cluster.calls.push_back(call);
    const auto id = static_cast<CallId>(cluster.calls.size() - 1);
    last[thread] = id;
    return id;
  }
  WorkerId place(CallId call) {
    const std::uint32_t task = cluster.calls[call].task;
    if (tasks.insert(task).second) scheduler.task_arrived(task, now, cluster);
    const WorkerId worker = scheduler.place(call, now, cluster);
    if (worker != kNone) cluster.send(call, worker);
    EXPECT_TRUE(scheduler.verify());
    return worker;
  }
  WorkerId place(ThreadId thread, std::uint32_t prompt) { return place(call(thread, prompt)); }
  void finish(CallId call, std::uint32_t output = 300, StopReason stop = StopReason::kToolUse) {
    ASSERT_TRUE(cluster.at.count(call)) << call;
    const WorkerId worker = cluster.at.at(call);
    cluster.at.erase(call);
    --cluster.open[worker];
    FakeCluster::Call& ended = cluster.calls[call];
    ended.output = output;
    ended.cached[worker] = (ended.prompt + output) / 16;
    scheduler.call_finished(call, worker, stop, ToolClass::kCodeExecution, now, cluster);
    EXPECT_TRUE(scheduler.verify());
  }
  void end_task(std::uint32_t task) {
    scheduler.task_finished(task, now, cluster);
    tasks.erase(task);
    EXPECT_TRUE(scheduler.verify());
  }
  // Time goes on, with all timers on the way.
  void until(Time time) {
    while (scheduler.next_wake() <= time) {
      now = std::max(now, scheduler.next_wake());
      EXPECT_TRUE(cluster.wakes.count(scheduler.next_wake()));
      scheduler.timer(now, cluster);
      EXPECT_TRUE(scheduler.verify());
    }
    now = time;
  }
  const SagaReceipt& receipt() const { return scheduler.receipt(); }
  const SagaStatistics& statistics() const { return scheduler.statistics(); }

  Time now = kSecond;
  FakeCluster cluster;
  SagaScheduler scheduler;
  std::map<ThreadId, CallId> last;
  std::set<std::uint32_t> tasks;
};

using Places = FakeCluster::Places;

// ----------------------------------------------------------------------------------------------------------- placement

TEST(SagaScheduler, FirstCallsGoToTheEmptiestWorkers) {
  Stage stage(simple(3));
  std::set<WorkerId> used;
  for (ThreadId thread = 0; thread < 3; ++thread) {
    used.insert(stage.place(thread, 1'000));
    EXPECT_EQ(stage.receipt().reason, SagaReason::kNew);
    EXPECT_EQ(stage.receipt().holder, kNone);
  }
  EXPECT_EQ(used.size(), 3u);
  EXPECT_EQ(stage.statistics().grants, 3u);
  EXPECT_EQ(stage.statistics().queued, 0u);
}

TEST(SagaScheduler, ACallThatComesBackGoesToItsPages) {
  Stage stage(simple(4));
  const CallId first = stage.call(0);
  const WorkerId home = stage.place(first);
  stage.now += 3 * kSecond;
  stage.finish(first, 280);
  stage.now += kSecond;
  EXPECT_EQ(stage.place(0, 1'600), home);
  EXPECT_EQ(stage.receipt().reason, SagaReason::kHolder);
  EXPECT_EQ(stage.receipt().matched_pages, 80u);  // of 1280 tokens
  EXPECT_EQ(stage.receipt().holder, home);
  EXPECT_EQ(stage.receipt().source, kNone);
  EXPECT_DOUBLE_EQ(stage.receipt().price.prefill, 0.320 * stage.scheduler.cost_factor(home));
  EXPECT_EQ(stage.receipt().price.total(), stage.receipt().holder_price.total());
  EXPECT_TRUE(stage.cluster.dropped.empty());
}

// The share of time in which a call of such a thread runs: 300 steps, half as long again, and 0.3 s of prefill, of a
// cycle with a gap of a second.
constexpr double kBusy = 4.8 / 5.8;
constexpr double kPrefillShare = 0.3 / 5.8;

TEST(SagaScheduler, PriceTermsAsCalculatedByHand) {
  SagaSchedulerOptions options = simple(1);
  Stage stage(options);
  stage.place(0, 1'000);
  const double alone = 0.010 / (1 - kPrefillShare);
  PriceTerms price = stage.receipt().price;
  EXPECT_DOUBLE_EQ(price.prefill, 1.0);
  EXPECT_DOUBLE_EQ(price.decode, 300 * alone);
  EXPECT_DOUBLE_EQ(price.interference, 0);
  EXPECT_DOUBLE_EQ(price.wait, 0);
  EXPECT_DOUBLE_EQ(price.transfer, 0);
  EXPECT_DOUBLE_EQ(price.displacement, 0);
  EXPECT_NEAR(price.total(), 4.163636363636364, 1e-12);

  // Beside another: its own answer takes longer, and so does the other's, which also waits for its prompt.
  stage.place(1, 2'000);
  const double both = 0.010 / (1 - 2 * kPrefillShare);
  price = stage.receipt().price;
  EXPECT_DOUBLE_EQ(price.prefill, 2.0);
  EXPECT_NEAR(price.decode, 300 * both, 1e-12);
  EXPECT_NEAR(price.interference, 300 * (both - alone) + 2.0 * kBusy, 1e-12);
  EXPECT_DOUBLE_EQ(price.wait, 0);
  EXPECT_DOUBLE_EQ(price.displacement, 0);
}

TEST(SagaScheduler, PriceOfWhatDoesNotFit) {
  SagaSchedulerOptions options = simple(1);
  options.parts.admission = false;  // nobody waits
  Stage stage(options, 125);        // 2,000 tokens
  stage.place(0, 1'000);
  // Expected to hold: the maximum of (1000 + 600 k) P(at least k more calls), 10 expected: 6000 exp(1000 / 6000 - 1).
  const double set = 6'000 * 0.43459820850707825;
  EXPECT_DOUBLE_EQ(stage.scheduler.resident_tokens(0), 1'800);  // nobody counts for more than the worker's room
  EXPECT_DOUBLE_EQ(stage.scheduler.running_tokens(0), 1'300);
  EXPECT_NEAR(stage.receipt().price.displacement, 10 * (set - 1'800) * 0.001, 1e-6);
  EXPECT_EQ(stage.receipt().price.wait, 0);
  stage.place(1, 1'000);
  // All of it is too much now, and 600 tokens have to end before it runs.
  EXPECT_NEAR(stage.receipt().price.displacement, 10 * set * 0.001, 1e-6);
  EXPECT_NEAR(stage.receipt().price.wait, 600.0 / 1'300 * 300 * 0.010 / (1 - 2 * kPrefillShare), 1e-9);
}

TEST(SagaScheduler, TransferIsPricedBehindWhatTheLinkCarries) {
  SagaSchedulerOptions options = simple(2);
  options.costs.per_prefill_token =
      0.1;  // prompts are dear: each is pulled, as soon as anybody runs where its pages are
  Stage stage(options);
  for (ThreadId thread = 0; thread < 3; ++thread) {
    const CallId call = stage.call(thread, 1'600);
    stage.cluster.calls[call].cached[0] = 50;
    stage.place(call);
  }
  EXPECT_EQ(stage.cluster.sent, (Places{{0, 0}}));
  ASSERT_EQ(stage.cluster.copies.size(), 2u);
  EXPECT_EQ(stage.cluster.copies[0], std::make_tuple(CallId{1}, 0u, 1u));
  // The second goes where it costs less; it is priced at worker 1 behind 50 ms of the first.
  EXPECT_EQ(stage.receipt().source, 0u);
  EXPECT_EQ(stage.receipt().worker, 1u);
  EXPECT_EQ(stage.receipt().reason, SagaReason::kPull);
  EXPECT_DOUBLE_EQ(stage.receipt().price.transfer, 0.100);
  EXPECT_DOUBLE_EQ(stage.receipt().price.prefill, 80.0);
}

TEST(SagaScheduler, AThreadStaysUnlessElsewhereIsBetterByAMargin) {
  // Home has another thread and 320 of its tokens; the other worker is empty and has nothing. 0.68 + 3.346 + 0.183 +
  // 0.563 = 4.77 against 1 + 3.164 = 4.16: 14.6 % more.
  for (const double hysteresis : {0.10, 0.20}) {
    SagaSchedulerOptions options = simple(2);
    options.parts.stealing = false;
    options.hysteresis = hysteresis;
    Stage stage(options);
    stage.cluster.gone[1] = true;
    const CallId first = stage.call(0, 700);
    stage.place(first);
    stage.place(1, 1'000);
    stage.finish(first);
    stage.cluster.gone[1] = false;
    stage.scheduler.worker_added(1, stage.now, stage.cluster);
    const CallId second = stage.call(0, 1'000);
    stage.cluster.calls[second].cached[0] = 20;
    const WorkerId expected = hysteresis < 0.146 ? 1 : 0;
    EXPECT_EQ(stage.place(second), expected);
    const double both = 300 * 0.010 / (1 - 2 * kPrefillShare), alone = 300 * 0.010 / (1 - kPrefillShare);
    EXPECT_NEAR(stage.receipt().holder_price.total(),
                stage.scheduler.cost_factor(0) * (0.68 + both + (both - alone) + 0.68 * kBusy), 1e-9);
    EXPECT_EQ(stage.receipt().reason, expected == 1 ? SagaReason::kRecompute : SagaReason::kHolder);
    EXPECT_EQ(stage.statistics().recomputes, expected);
    EXPECT_EQ(stage.cluster.dropped, expected == 1 ? (Places{{second, 0}}) : Places{});
  }
}

TEST(SagaScheduler, NearTiesAreDrawnBySeed) {
  std::map<WorkerId, int> chosen;
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    WorkerId first = kNone;
    for (int run = 0; run < 2; ++run) {
      SagaSchedulerOptions options = simple(2);
      options.seed = seed;
      Stage stage(options);
      const WorkerId worker = stage.place(0, 1'000);
      if (run == 0) first = worker;
      EXPECT_EQ(worker, first);
    }
    ++chosen[first];
  }
  EXPECT_GT(chosen[0], 16);
  EXPECT_GT(chosen[1], 16);
}

TEST(SagaScheduler, OfNearTiesTheOneWithFewerOpenCallsIsTaken) {
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    SagaSchedulerOptions options = simple(2);
    options.seed = seed;
    Stage stage(options);
    stage.cluster.open[seed % 2] = 1;  // of somebody else
    EXPECT_EQ(stage.place(0, 1'000), 1 - seed % 2);
  }
}

TEST(SagaScheduler, AHotPromptDoesNotHerd) {
  Stage stage(simple(4));
  std::map<WorkerId, int> calls;
  std::set<WorkerId> holders = {2};
  for (ThreadId thread = 0; thread < 64; ++thread) {
    const CallId call = stage.call(thread, 1'000);
    for (const WorkerId w : holders) stage.cluster.calls[call].cached[w] = 60;
    stage.place(call);
    const WorkerId worker = stage.receipt().worker;
    if (thread == 0) {
      EXPECT_EQ(worker, 2u);
    }
    holders.insert(worker);
    ++calls[worker];
  }
  ASSERT_EQ(calls.size(), 4u);
  for (const auto& [worker, count] : calls) EXPECT_NEAR(count, 16, 3) << worker;
}

// --------------------------------------------------------------------------------------------------------------- moves

// Thread 0 pauses at worker 0, where others run, while worker 1 has just come: it moves there in its gap.
std::unique_ptr<Stage> stolen(SagaSchedulerOptions options = simple(2)) {
  auto made = std::make_unique<Stage>(options);
  Stage& stage = *made;
  for (WorkerId w = 1; w < options.workers; ++w) stage.cluster.gone[w] = true;
  const CallId first = stage.call(0);
  stage.place(first);
  for (ThreadId thread = 1; thread < 4; ++thread) stage.place(thread, 1'000);
  stage.cluster.gone[1] = false;
  stage.scheduler.worker_added(1, stage.now, stage.cluster);
  stage.finish(first, 280);  // 80 pages
  return made;
}

TEST(SagaScheduler, AThreadMovesWhenItsGapBegins) {
  const auto made = stolen();
  Stage& stage = *made;
  EXPECT_EQ(stage.statistics().steals, 1u);
  EXPECT_EQ(stage.scheduler.steals(), 1u);
  ASSERT_EQ(stage.cluster.copies.size(), 1u);
  EXPECT_EQ(stage.cluster.copies[0], std::make_tuple(CallId{0}, 0u, 1u));
  EXPECT_EQ(stage.cluster.dropped, (Places{{0, 0}}));
  stage.until(2 * kSecond);
  EXPECT_EQ(stage.place(0, 1'600), 1u);
  EXPECT_EQ(stage.receipt().reason, SagaReason::kHolder);
  EXPECT_EQ(stage.statistics().held, 0u);
}

TEST(SagaScheduler, ACallWaitsForItsPagesAndIsSentOnce) {
  const auto made = stolen();
  Stage& stage = *made;
  const std::size_t before = stage.cluster.sent.size();
  stage.until(kSecond + 79 * kMillisecond);
  const CallId back = stage.call(0, 1'600);
  EXPECT_EQ(stage.place(back), kNone);
  EXPECT_EQ(stage.statistics().held, 1u);
  stage.until(kSecond + 80 * kMillisecond);
  EXPECT_EQ(stage.cluster.sent.size(), before);
  stage.until(kSecond + 80 * kMillisecond + 1);
  ASSERT_EQ(stage.cluster.sent.size(), before + 1);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(back, WorkerId{1}));
  stage.until(10 * kSecond);
  EXPECT_EQ(stage.cluster.sent.size(), before + 1);
  stage.finish(back);
}

TEST(SagaScheduler, ACopyThatEndsEarlyOrFailsLetsTheCallGo) {
  const auto made = stolen();
  Stage& stage = *made;
  const CallId back = stage.call(0, 1'600);
  EXPECT_EQ(stage.place(back), kNone);
  stage.until(kSecond + 10 * kMillisecond);
  stage.scheduler.copy_ended(back, 0, stage.now, stage.cluster);  // another's
  EXPECT_NE(stage.cluster.sent.back().first, back);
  stage.scheduler.copy_ended(back, 1, stage.now, stage.cluster);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(back, WorkerId{1}));
  EXPECT_TRUE(stage.scheduler.verify());
  stage.until(10 * kSecond);
  EXPECT_EQ(stage.cluster.at.count(back), 1u);
}

TEST(SagaScheduler, CallsThatOverlapOneWhosePagesAreOnTheirWayAreSentWithIt) {
  const auto made = stolen();
  Stage& stage = *made;
  const CallId first = stage.call(0, 1'600);
  const CallId second = stage.call(0, 1'700);
  const CallId third = stage.call(0, 1'800);
  EXPECT_EQ(stage.place(first), kNone);
  EXPECT_EQ(stage.place(second), kNone);
  EXPECT_EQ(stage.place(third), kNone);
  stage.scheduler.call_cancelled(second, stage.now, stage.cluster);
  stage.until(2 * kSecond);
  EXPECT_EQ(Places(stage.cluster.sent.end() - 2, stage.cluster.sent.end()), (Places{{first, 1}, {third, 1}}));
  EXPECT_EQ(stage.place(stage.call(0, 1'900)), 1u);  // while they run: at once
  stage.finish(third);
  stage.finish(first);
  EXPECT_GT(stage.scheduler.running_tokens(1), 0);
  stage.finish(stage.last[0]);
  EXPECT_EQ(stage.scheduler.running_tokens(1), 0);  // it pauses, whichever ended last
}

TEST(SagaScheduler, CallsThatOverlapOneThatWaitsAreSentWithIt) {
  Stage stage(simple(1), 375);
  for (ThreadId thread = 0; thread < 2; ++thread) stage.place(thread, 1'000);
  const CallId first = stage.call(2, 1'000);
  const CallId second = stage.call(2, 1'000);
  const CallId third = stage.call(2, 1'000);
  for (const CallId call : {first, second, third}) EXPECT_EQ(stage.place(call), kNone);
  stage.scheduler.call_cancelled(first, stage.now, stage.cluster);  // the others wait on
  EXPECT_TRUE(stage.scheduler.verify());
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  stage.finish(0);
  stage.end_task(0);
  EXPECT_EQ(Places(stage.cluster.sent.end() - 2, stage.cluster.sent.end()), (Places{{second, 0}, {third, 0}}));
  EXPECT_EQ(stage.scheduler.admissions().size(), 0u);
}

TEST(SagaScheduler, CallsAtAWorkerThatGoesAreSentAgain) {
  Stage stage(simple(2));
  stage.cluster.gone[1] = true;
  const CallId first = stage.call(0), second = stage.call(0), other = stage.call(1), paused = stage.call(2);
  for (const CallId call : {first, second, other, paused}) EXPECT_EQ(stage.place(call), 0u);
  stage.finish(paused);
  stage.cluster.sent.clear();
  stage.cluster.at.clear();
  stage.cluster.gone = {true, false};
  for (FakeCluster::Call& call : stage.cluster.calls) call.cached.clear();
  stage.scheduler.worker_removed(0, stage.now, stage.cluster);
  EXPECT_TRUE(stage.scheduler.verify());
  std::sort(stage.cluster.sent.begin(), stage.cluster.sent.end());
  EXPECT_EQ(stage.cluster.sent, (Places{{first, 1}, {second, 1}, {other, 1}}));
  EXPECT_EQ(stage.scheduler.resident_tokens(0), 0);
  EXPECT_EQ(stage.place(2, 1'600), 1u);
  EXPECT_EQ(stage.receipt().reason, SagaReason::kNew);
}

TEST(SagaScheduler, WithoutWorkersEverybodyWaits) {
  Stage stage(simple(1));
  stage.cluster.gone[0] = true;
  for (ThreadId thread = 0; thread < 5; ++thread) EXPECT_EQ(stage.place(thread, 1'000), kNone);
  stage.until(10 * kSecond);
  EXPECT_TRUE(stage.cluster.sent.empty());
  stage.cluster.gone[0] = false;
  stage.scheduler.worker_added(0, stage.now, stage.cluster);
  EXPECT_EQ(stage.cluster.sent.size(), 5u);
  EXPECT_TRUE(stage.scheduler.verify());
}

TEST(SagaScheduler, AThreadSettlesBeforeItMovesAgain) {
  for (const Time pause : {5 * kSecond, 15 * kSecond}) {
    SagaSchedulerOptions options = simple(3);
    const auto made = stolen(options);
    Stage& stage = *made;
    stage.until(2 * kSecond);
    const CallId back = stage.call(0, 1'300);
    EXPECT_EQ(stage.place(back), 1u);
    stage.cluster.gone[0] = true;  // so that the next threads come here
    for (ThreadId thread = 10; thread < 14; ++thread) EXPECT_EQ(stage.place(thread, 1'000), 1u);
    stage.cluster.gone[0] = stage.cluster.gone[2] = false;
    stage.scheduler.worker_added(2, stage.now, stage.cluster);
    stage.now = kSecond + pause;
    stage.finish(back);
    EXPECT_EQ(stage.statistics().steals, pause < 10 * kSecond ? 1u : 2u);
    EXPECT_EQ(stage.statistics().thrash, pause < 10 * kSecond ? 0u : 1u);  // within three settle times
  }
}

TEST(SagaScheduler, ACopyThatKeepsTheLinkBusyForTooLongIsNotMade) {
  SagaSchedulerOptions options = simple(2);
  options.longest_copy_seconds = 0.080;
  EXPECT_EQ(stolen(options)->statistics().steals, 1u);
  options.longest_copy_seconds = 0.079;
  const auto made = stolen(options);
  Stage& stage = *made;
  EXPECT_EQ(stage.statistics().steals, 0u);
  EXPECT_TRUE(stage.cluster.copies.empty());
  EXPECT_TRUE(stage.cluster.dropped.empty());
}

// Four threads pause at worker 0, whose peers have just come; one call runs at worker 1 and ends.
std::unique_ptr<Stage> lopsided(SagaSchedulerOptions options) {
  auto made = std::make_unique<Stage>(options);
  Stage& stage = *made;
  for (WorkerId w = 1; w < options.workers; ++w) stage.cluster.gone[w] = true;
  std::vector<CallId> calls;
  for (ThreadId thread = 0; thread < 4; ++thread) {
    calls.push_back(stage.call(thread));
    EXPECT_EQ(stage.place(calls.back()), 0u);
  }
  for (const CallId call : calls) {
    stage.now += kMillisecond;
    stage.finish(call);
  }
  for (WorkerId w = 1; w < options.workers; ++w) {
    stage.cluster.gone[w] = false;
    stage.scheduler.worker_added(w, stage.now, stage.cluster);
  }
  const CallId other = stage.call(4);
  stage.cluster.calls[other].cached[1] = 62;
  EXPECT_EQ(stage.place(other), 1u);
  stage.finish(other);
  EXPECT_EQ(stage.statistics().steals, 0u);
  return made;
}

TEST(SagaScheduler, AnIdleWorkerTakesAPausedThread) {
  const auto made = lopsided(simple(3));
  Stage& stage = *made;
  const Time idle = stage.now;
  stage.until(idle + 100 * kMillisecond - 1);
  EXPECT_EQ(stage.statistics().steals, 0u);
  stage.until(idle + 100 * kMillisecond);
  EXPECT_EQ(stage.statistics().steals, 1u);
  ASSERT_EQ(stage.cluster.copies.size(), 1u);
  EXPECT_EQ(stage.cluster.copies[0], std::make_tuple(CallId{0}, 0u, 1u));  // the one that has paused for longest
  EXPECT_EQ(stage.cluster.dropped, (Places{{0, 0}}));
}

TEST(SagaScheduler, AWorkerThatHasBeenBusyInBetweenIsNotIdleYet) {
  const auto made = lopsided(simple(3));
  Stage& stage = *made;
  const Time idle = stage.now;
  stage.until(idle + 50 * kMillisecond);
  const CallId more = stage.call(4, 1'400);
  EXPECT_EQ(stage.place(more), 1u);
  stage.until(idle + 99 * kMillisecond);
  stage.finish(more, 20);
  stage.until(idle + 198 * kMillisecond);
  EXPECT_EQ(stage.statistics().steals, 0u);
  stage.until(idle + 199 * kMillisecond);
  EXPECT_EQ(stage.statistics().steals, 1u);
}

TEST(SagaScheduler, AnIdleWorkerLeavesThreadsWhereLoadIsNotLopsided) {
  SagaSchedulerOptions options = simple(3);
  options.steal_ratio = 3;
  const auto made = lopsided(options);
  Stage& stage = *made;
  stage.until(stage.now + kSecond);
  EXPECT_EQ(stage.statistics().steals, 0u);
}

// ----------------------------------------------------------------------------------------------------------- admission

TEST(SagaScheduler, ANewWorkflowWaitsUntilWorkingSetsLeaveRoom) {
  Stage stage(simple(1), 375);  // 6,000 tokens, of which 5,400 for working sets of 2,608
  EXPECT_EQ(stage.place(0, 1'000), 0u);
  EXPECT_EQ(stage.place(1, 1'000), 0u);
  EXPECT_EQ(stage.place(2, 1'000), kNone);
  EXPECT_EQ(stage.place(3, 1'000), kNone);
  EXPECT_EQ(stage.statistics().queued, 2u);
  EXPECT_EQ(stage.scheduler.admissions().size(), 2u);
  // Who is there already goes on.
  stage.finish(0);
  EXPECT_EQ(stage.place(0, 1'600), 0u);
  stage.until(5 * kSecond);
  EXPECT_EQ(stage.scheduler.admissions().size(), 2u);
  stage.finish(4);
  stage.end_task(0);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(CallId{2}, WorkerId{0}));
  EXPECT_EQ(stage.receipt().queued, 4 * kSecond);
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  stage.finish(1);
  stage.end_task(1);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(CallId{3}, WorkerId{0}));
  EXPECT_EQ(stage.cluster.grants, (std::vector<CallId>{0, 1, 4, 2, 3}));
}

TEST(SagaScheduler, PresenceThatFallsMakesRoom) {
  Stage stage(dear(1), 556);
  stage.place(0, 1'000);
  stage.place(1, 1'000);
  stage.place(3, 1'000);  // runs on
  stage.place(2, 1'000);
  stage.finish(0);
  stage.finish(1);
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  // Contexts are 1,300 now, working sets 6000 exp(1300 / 6000 - 1) = 2,741; there is room for the newcomer when they
  // count half: horizon 30 s, so after 29 s (2 x 2741 x 30 / (30 + t) <= 2791).
  stage.until(kSecond + 28 * kSecond);
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  stage.until(kSecond + 29 * kSecond);
  EXPECT_EQ(stage.scheduler.admissions().size(), 0u);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(CallId{3}, WorkerId{0}));
}

// Whose pages fill an idle worker may be back in an hour; who waits is there.
TEST(SagaScheduler, AnIdleWorkerKeepsNobodyWaiting) {
  Stage stage(dear(1), 375);
  stage.place(0, 1'000);
  stage.place(1, 1'000);
  stage.place(2, 1'000);
  stage.finish(0);
  stage.finish(1);
  stage.until(kSecond + 100 * kMillisecond - 1);
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  stage.until(kSecond + 100 * kMillisecond);
  EXPECT_EQ(stage.scheduler.admissions().size(), 0u);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(CallId{2}, WorkerId{0}));
  // One that comes to a worker that idles already goes there at once, the next waits again.
  stage.finish(2);
  stage.until(3 * kSecond);
  EXPECT_EQ(stage.place(3, 1'000), 0u);
  EXPECT_EQ(stage.place(4, 1'000), kNone);
}

// An answer takes 3 s. Working sets are 2,608 tokens, 2,741 after the first answer; 5,400 have room.
TEST(SagaScheduler, WhatIsWorthLessThanAnAnswerIsPushedOut) {
  SagaSchedulerOptions options = simple(1);
  options.displacement = 1;
  Stage stage(options, 375);
  stage.place(0, 1'000);
  stage.place(1, 1'000);
  EXPECT_EQ(stage.place(2, 1'000), kNone);
  stage.finish(0);  // 2,557 tokens too many delay the other and itself: 5.1 s
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  stage.finish(1);  // 2,690 delay only itself
  EXPECT_EQ(stage.scheduler.admissions().size(), 0u);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(CallId{2}, WorkerId{0}));
}

// Two agents between their calls fill the worker; what one that is pushed out pushes out in turn counts.
TEST(SagaScheduler, AgentsInTheirGapsAreNotPushedOut) {
  Stage stage(simple(1), 375);
  stage.place(0, 1'000);
  stage.place(1, 1'000);
  EXPECT_EQ(stage.place(2, 1'000), kNone);
  stage.finish(0);
  stage.finish(1);
  stage.until(kSecond + 99 * kMillisecond);
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
  EXPECT_EQ(stage.place(0, 1'600), 0u);
  EXPECT_EQ(stage.place(1, 1'600), 0u);
  EXPECT_EQ(stage.scheduler.admissions().size(), 1u);
}

// 100 chats with nothing behind them: what they leave keeps nobody out.
TEST(SagaScheduler, ChatsThatEndLeaveRoomForOthers) {
  SagaSchedulerOptions options = simple(1);
  options.parts.prediction = true;
  options.longest_idle = 3'600 * kSecond;
  Stage stage(options, 375);
  Time waited = 0;
  for (ThreadId thread = 0; thread < 100; ++thread) {
    const CallId call = stage.call(thread, 512);
    const Time asked = stage.now;
    stage.place(call);
    while (!stage.cluster.at.count(call)) stage.until(stage.now + kSecond);
    if (thread >= 50) waited += stage.now - asked;
    stage.until(stage.now + 2 * kSecond);
    stage.finish(call, 200, StopReason::kEndTurn);
  }
  EXPECT_EQ(waited, 0u);
}

// The worker that idles is why the call may go at all: it does not go to where its pages are, which is full.
TEST(SagaScheduler, WhoIsLetInForAnIdleWorkerGoesThere) {
  SagaSchedulerOptions options = dear(2);
  options.parts.stealing = false;
  options.displacement = 0;
  Stage stage(options, 375);
  const CallId first = stage.call(0);
  ASSERT_EQ(stage.place(first), 0u);
  const CallId beside = stage.call(1, 4'000);
  stage.cluster.calls[beside].cached[0] = 250;
  ASSERT_EQ(stage.place(beside), 0u);
  stage.finish(first);
  const CallId other = stage.call(2, 4'000);  // what it leaves fills the other worker
  ASSERT_EQ(stage.place(other), 1u);
  stage.finish(other);
  stage.until(stage.now + 200 * kMillisecond);
  EXPECT_EQ(stage.place(0, 1'600), 1u);  // 4,300 + 1,900 of 6,000 tokens would not run beside each other
}

// Who runs is busy for half of the time of another answer, though it may be away for an hour afterwards.
TEST(SagaScheduler, RunningCallsCountHoweverLongTheyAreAwayAfterwards) {
  SagaSchedulerOptions options = simple(1);
  options.parts.prediction = true;
  Stage stage(options);
  for (int round = 0; round < 2; ++round) {
    for (ThreadId thread = 0; thread < 40; ++thread) {
      const CallId call = stage.call(thread);
      stage.place(call);
      stage.until(stage.now + 3 * kSecond);
      stage.finish(call, 300, StopReason::kEndTurn);
    }
    stage.until(stage.now + 3'600 * kSecond);
  }
  stage.place(0, 1'000);
  stage.place(50, 1'000);  // its prompt is in the way of the other
  EXPECT_NEAR(stage.receipt().price.interference / stage.receipt().price.prefill, 0.5, 0.02);
}

TEST(SagaScheduler, AThreadThatWasAwayIsAdmittedAnew) {
  for (const Time away : {30 * kSecond, 80 * kSecond}) {  // present by a half, by 3 / 11
    Stage stage(dear(1), 375);
    const CallId first = stage.call(0);
    stage.place(first);
    stage.finish(first);
    stage.until(kSecond + away);
    for (ThreadId thread = 1; thread < 3; ++thread) stage.place(thread, 1'000);
    const CallId back = stage.call(0, 1'600);
    stage.cluster.calls[back].cached.clear();
    const bool waits = away == 80 * kSecond;
    EXPECT_EQ(stage.place(back), waits ? kNone : 0u);
    EXPECT_EQ(stage.scheduler.admissions().size(), waits ? 2u : 1u);
  }
}

TEST(SagaScheduler, RoomGoesToTheTenantThatHasHadLess) {
  for (const bool fairness : {true, false}) {
    SagaSchedulerOptions options = simple(1);
    options.parts.fairness = fairness;
    Stage stage(options, 375);
    stage.cluster.tenants[4] = 1;
    for (ThreadId thread = 0; thread < 5; ++thread) stage.place(thread, 1'000);
    for (ThreadId thread = 0; thread < 3; ++thread) {
      stage.finish(thread);
      stage.end_task(thread);
    }
    // Two run at once, and both were of the first tenant: the other is next.
    EXPECT_EQ(stage.cluster.sent, fairness ? (Places{{0, 0}, {1, 0}, {4, 0}, {2, 0}, {3, 0}})
                                           : (Places{{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}}));
  }
}

TEST(SagaScheduler, MemoryStarvesNobody) {
  SagaSchedulerOptions options = simple(1);
  options.longest_wait = 10 * kSecond;
  Stage stage(options, 375);
  stage.place(0, 1'000);
  stage.place(1, 1'000);
  stage.place(2, 1'000);
  stage.until(kSecond + 10 * kSecond);
  EXPECT_EQ(stage.cluster.sent.size(), 2u);
  stage.until(kSecond + 11 * kSecond);
  EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(CallId{2}, WorkerId{0}));
  EXPECT_GT(stage.receipt().price.displacement, 0);
}

TEST(SagaScheduler, ALargeCallIsNotStarvedByAStreamOfSmallOnes) {
  SagaSchedulerOptions options = simple(1);
  options.largest_need = 0.1;
  options.oldest_every = 4;
  Stage stage(options, 375);
  std::vector<CallId> running;
  ThreadId thread = 0;
  const auto small = [&] {
    const CallId call = stage.call(thread++, 500);
    stage.place(call);
    return call;
  };
  for (int i = 0; i < 12; ++i) small();
  const CallId large = stage.call(thread++, 5'000);  // more than there is room for unless almost nobody runs
  EXPECT_EQ(stage.place(large), kNone);
  int grants = 0;
  while (stage.cluster.at.count(large) == 0 && grants < 100) {
    small();
    const auto [call, worker] = *stage.cluster.at.begin();
    stage.now += 100 * kMillisecond;
    stage.finish(call);
    stage.end_task(stage.cluster.calls[call].task);
    ++grants;
  }
  EXPECT_EQ(stage.cluster.at.count(large), 1u);
  EXPECT_LE(grants, 2 * 4 + 12);
}

TEST(SagaScheduler, ACallLargerThanAnyRoomRunsAlone) {
  Stage stage(simple(2), 100);  // 1,600 tokens
  const WorkerId a = stage.place(0, 500);
  const WorkerId b = stage.place(1, 500);
  EXPECT_NE(a, b);
  EXPECT_EQ(stage.place(2, 5'000), kNone);
  stage.finish(0);
  EXPECT_EQ(stage.cluster.at.count(2), 0u);
  stage.end_task(0);
  EXPECT_EQ(stage.cluster.at.at(2), a);
}

TEST(SagaScheduler, AllCallsMayWaitAtOnce) {
  SagaSchedulerOptions options = simple(1);
  options.calls = options.threads = options.tasks = 50;
  Stage stage(options);
  stage.cluster.gone[0] = true;
  for (ThreadId thread = 0; thread < 50; ++thread) EXPECT_EQ(stage.place(thread, 1'000), kNone);
  EXPECT_EQ(stage.scheduler.admissions().size(), 50u);
  EXPECT_EQ(stage.statistics().refused, 0u);
  for (CallId call = 0; call < 50; call += 2) stage.scheduler.call_cancelled(call, stage.now, stage.cluster);
  EXPECT_TRUE(stage.scheduler.verify());
  EXPECT_EQ(stage.scheduler.admissions().size(), 25u);
}

// A tick that another event comes upon first is not lost: the engine hears of time with its events.
TEST(SagaScheduler, TheTickGoesOnWhenAnEventComesLate) {
  Stage stage(simple(1), 375);
  stage.place(0, 1'000);
  stage.place(1, 1'000);
  stage.place(2, 1'000);
  stage.finish(0);
  stage.finish(1);
  const Time tick = 2 * kSecond;
  stage.until(tick - 1);
  EXPECT_EQ(stage.scheduler.next_wake(), tick);
  stage.now = tick + 1;
  EXPECT_EQ(stage.place(3, 1'000), kNone);
  EXPECT_EQ(stage.scheduler.next_wake(), tick + 1 + kSecond);
  stage.until(100 * kSecond);
  EXPECT_EQ(stage.cluster.at.count(2), 1u);
}

// What is charged in advance is corrected to what calls took: 10 ms a token of the answer and 1 ms a token of the prompt that
// has to be computed here. Both accounts, of calls and of
// admissions, count the same service.
TEST(SagaScheduler, TenantsAreChargedWhatTheirCallsTook) {
  SagaSchedulerOptions options = simple(2);
  options.kv_bytes_per_token = 0;
  Stage stage(options);
  stage.cluster.tenants[1] = 1;
  const auto served = [&](std::uint32_t tenant) { return stage.scheduler.queue().served(tenant); };
  const auto admitted = [&](std::uint32_t tenant) { return stage.scheduler.admissions().served(tenant); };
  const CallId first = stage.call(0), beside = stage.call(0), other = stage.call(1);
  for (const CallId call : {first, beside, other}) stage.place(call);
  EXPECT_GT(admitted(0), 0);
  EXPECT_GT(admitted(1), 0);
  stage.finish(beside, 50);
  stage.finish(first, 200);
  EXPECT_EQ(served(0), 2'500'000 + 1'000'000);
  const CallId next = stage.call(0, 1'400);
  stage.place(next);
  EXPECT_GT(served(0), 3'500'000);
  stage.finish(next, 1);
  EXPECT_EQ(served(0), 3'510'000 + 360'000);  // 65 of its pages are there
  EXPECT_EQ(admitted(0), served(0));
  stage.cluster.at.erase(other);
  stage.scheduler.call_cancelled(other, stage.now, stage.cluster);
  EXPECT_EQ(served(1), 0);
  EXPECT_TRUE(stage.scheduler.verify());
}

// ---------------------------------------------------------------------------------------------------------- preemption

TEST(SagaScheduler, AnUrgentCallThatWaitsPreempts) {
  AgentGraph graph;
  graph.steps = {{ToolClass::kCodeExecution, 100, 100, 1}};
  graph.edges = {{0, 0, 0.5}};
  graph.expected_seconds = 100;
  graph.prepare();
  for (const bool fairness : {true, false}) {
    SagaSchedulerOptions options = simple(1);
    options.parts.prediction = true;
    options.parts.fairness = fairness;
    options.room = 1e9;  // working sets are no matter
    Stage stage(options, 375);
    stage.cluster.graphs[0] = &graph;
    const CallId first = stage.call(0);
    EXPECT_EQ(stage.place(first), 0u);
    stage.finish(first, 100);
    const CallId rival = stage.call(1, 5'000);
    EXPECT_EQ(stage.place(rival), 0u);
    const CallId urgent = stage.call(0, 1'200);
    const Time since = stage.now;
    EXPECT_EQ(stage.place(urgent), kNone);
    EXPECT_EQ(stage.scheduler.queue().size(), 1u);
    stage.until(since + 500 * kMillisecond);
    EXPECT_TRUE(stage.cluster.priorities.empty());
    stage.until(since + kSecond);
    if (!fairness) {
      EXPECT_TRUE(stage.cluster.priorities.empty());
      continue;
    }
    EXPECT_EQ(stage.cluster.priorities, (std::vector<std::pair<CallId, std::int32_t>>{{rival, 1}}));
    EXPECT_EQ(stage.cluster.sent.back(), std::make_pair(urgent, WorkerId{0}));
    EXPECT_EQ(stage.scheduler.priority(urgent, stage.now, stage.cluster), -1);
    EXPECT_EQ(stage.scheduler.priority(rival, stage.now, stage.cluster), 0);
    EXPECT_EQ(stage.statistics().preemptions, 1u);
    // Once: the next call of the thread is one like others.
    stage.finish(urgent, 10);
    stage.finish(rival, 10);
    const CallId next = stage.call(0, 1'300);
    EXPECT_EQ(stage.place(next), 0u);
    EXPECT_EQ(stage.scheduler.priority(next, stage.now, stage.cluster), 0);
  }
}

// ---------------------------------------------------------------------------------------- prefetches, drops and leases

TEST(SagaScheduler, WhatHasGoneToHostMemoryIsLoadedBeforeTheThreadIsExpected) {
  for (const bool prefetch : {true, false}) {
    SagaSchedulerOptions options = simple(1);
    options.parts.prefetch = prefetch;
    Stage stage(options, 220);  // 3,520 tokens
    stage.cluster.host_tier = true;
    const CallId first = stage.call(0);
    stage.place(first);
    stage.finish(first);  // 81 pages, expected back in a second
    stage.cluster.calls[first].cached[0] = 30;
    stage.cluster.calls[first].host[0] = 51;
    stage.until(2 * kSecond - 82 * kMillisecond);
    EXPECT_TRUE(stage.cluster.copies.empty());
    stage.until(2 * kSecond - 81 * kMillisecond);
    EXPECT_EQ(stage.statistics().prefetches, prefetch ? 1u : 0u);
    ASSERT_EQ(stage.cluster.copies.size(), prefetch ? 1u : 0u);
    if (!prefetch) continue;
    EXPECT_EQ(stage.cluster.copies[0], std::make_tuple(first, 0u, 0u));
    // Back before all of it is there: 51 ms.
    const CallId back = stage.call(0, 1'600);
    EXPECT_EQ(stage.place(back), kNone);
    stage.until(2 * kSecond - 30 * kMillisecond);
    EXPECT_EQ(stage.cluster.at.count(back), 0u);
    stage.until(2 * kSecond - 30 * kMillisecond + 1);
    EXPECT_EQ(stage.cluster.at.count(back), 1u);
    EXPECT_EQ(stage.statistics().prefetches_cancelled, 0u);
  }
}

TEST(SagaScheduler, ALoadIsCancelledWhenTheThreadIsBackFirst) {
  Stage stage(simple(1), 220);
  stage.cluster.host_tier = true;
  const CallId first = stage.call(0);
  stage.place(first);
  stage.finish(first);
  stage.cluster.calls[first].host[0] = 51;
  stage.until(kSecond + 500 * kMillisecond);
  const CallId back = stage.call(0, 1'400);
  EXPECT_EQ(stage.place(back), 0u);
  EXPECT_EQ(stage.statistics().prefetches_cancelled, 1u);
  stage.until(10 * kSecond);
  EXPECT_TRUE(stage.cluster.copies.empty());
  EXPECT_EQ(stage.statistics().prefetches_cancelled, 1u);
}

TEST(SagaScheduler, NothingIsLoadedWhereNothingCanHaveGone) {
  Stage stage(simple(1));  // almost empty
  stage.cluster.host_tier = true;
  const CallId first = stage.call(0);
  stage.place(first);
  stage.finish(first);
  stage.cluster.calls[first].host[0] = 51;
  stage.until(10 * kSecond);
  EXPECT_TRUE(stage.cluster.copies.empty());
}

TEST(SagaScheduler, ATimerOfAWorkerThatHasGoneDoesNothing) {
  Stage stage(simple(2), 220);
  stage.cluster.host_tier = true;
  stage.cluster.gone[1] = true;
  const CallId first = stage.call(0);
  stage.place(first);
  stage.finish(first);
  stage.cluster.gone = {true, true};
  stage.scheduler.worker_removed(0, stage.now, stage.cluster);
  stage.until(10 * kSecond);
  EXPECT_TRUE(stage.cluster.copies.empty());
}

TEST(SagaScheduler, WhatATaskLeavesIsDroppedWhenItEnds) {
  Stage stage(simple(2));
  const CallId parent = stage.call_of(0, 7, 1'000), child = stage.call_of(1, 7, 1'000);
  const WorkerId at_parent = stage.place(parent), at_child = stage.place(child);
  stage.finish(parent);
  stage.finish(child);
  EXPECT_TRUE(stage.cluster.dropped.empty());
  stage.end_task(7);
  EXPECT_EQ(std::set(stage.cluster.dropped.begin(), stage.cluster.dropped.end()),
            (std::set<std::pair<CallId, WorkerId>>{{parent, at_parent}, {child, at_child}}));
  EXPECT_EQ(stage.scheduler.resident_tokens(0) + stage.scheduler.resident_tokens(1), 0);
  EXPECT_FALSE(stage.scheduler.predictor().is_open(0));
}

TEST(SagaScheduler, LeasesAreTakenOnlyWhereAsked) {
  for (const bool leases : {true, false}) {
    for (const bool retention : {true, false}) {
      SagaSchedulerOptions options = simple(1);
      options.leases = leases;
      options.parts.retention = retention;
      Stage stage(options);
      const CallId first = stage.call(0);
      stage.place(first);
      stage.finish(first);
      ASSERT_EQ(stage.cluster.leases.size(), leases && retention ? 1u : 0u);
      if (stage.cluster.leases.empty()) continue;
      EXPECT_EQ(stage.cluster.leases[0].call, first);
      EXPECT_EQ(stage.cluster.leases[0].value, 1'000'000u);  // all of it is present
      EXPECT_GT(stage.cluster.leases[0].until, stage.now);
      EXPECT_LE(stage.cluster.leases[0].until, stage.now + 300 * kSecond + 1);
      EXPECT_TRUE(stage.cluster.leases[0].open);
      const CallId back = stage.call(0, 1'400);
      stage.place(back);
      EXPECT_FALSE(stage.cluster.leases[0].open);
      stage.finish(back);
      EXPECT_TRUE(stage.cluster.leases.at(1).open);
      stage.end_task(0);
      EXPECT_FALSE(stage.cluster.leases[1].open);
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- parts off

TEST(SagaSchedulerParts, WithoutStealingNothingIsCopied) {
  SagaSchedulerOptions options = simple(2);
  options.parts.stealing = false;
  const auto made = stolen(options);
  Stage& stage = *made;
  EXPECT_EQ(stage.statistics().steals, 0u);
  stage.until(2 * kSecond);
  stage.place(0, 1'600);
  EXPECT_TRUE(stage.cluster.copies.empty());
  options = simple(3);
  options.parts.stealing = false;
  const auto idle = lopsided(options);
  idle->until(10 * kSecond);
  EXPECT_TRUE(idle->cluster.copies.empty());
}

TEST(SagaSchedulerParts, WithoutAffinityPagesCountForNothing) {
  SagaSchedulerOptions options = simple(2);
  options.parts.affinity = options.parts.stealing = false;
  Stage stage(options);
  const CallId first = stage.call(0), other = stage.call(1);
  const WorkerId home = stage.place(first);
  stage.finish(first);
  stage.cluster.gone[1 - home] = true;
  stage.place(other);  // beside it
  stage.cluster.gone[1 - home] = false;
  EXPECT_EQ(stage.place(0, 1'100), 1 - home);
  EXPECT_DOUBLE_EQ(stage.receipt().price.prefill, 1.1);
  EXPECT_DOUBLE_EQ(stage.receipt().holder_price.prefill, 1.1 * stage.scheduler.cost_factor(home));
}

TEST(SagaSchedulerParts, WithoutAdmissionNobodyWaits) {
  SagaSchedulerOptions options = simple(1);
  options.parts.admission = false;
  Stage stage(options, 375);
  for (ThreadId thread = 0; thread < 20; ++thread) EXPECT_EQ(stage.place(thread, 1'000), 0u);
  EXPECT_EQ(stage.statistics().queued, 0u);
}

TEST(SagaSchedulerParts, WithoutPredictionGraphsAreNotRead) {
  AgentGraph graph;
  graph.steps = {{ToolClass::kCodeExecution, 2'000, 100, 1}};
  graph.edges = {{0, 0, 0.5}};
  graph.prepare();
  for (const bool prediction : {true, false}) {
    SagaSchedulerOptions options = simple(1);
    options.parts.prediction = prediction;
    Stage stage(options);
    stage.cluster.graphs[0] = &graph;
    stage.place(0, 1'000);
    if (prediction) {
      EXPECT_GT(stage.receipt().price.decode, 1'000 * 0.010);
    } else {
      EXPECT_DOUBLE_EQ(stage.receipt().price.decode, 300 * 0.010 / (1 - kPrefillShare));
    }
  }
}

TEST(SagaSchedulerParts, WeightsOfTenantsActAtOnce) {
  // Tenant 1 with a weight of 100 gets nearly all of the room that comes free; with a weight of 1 half of it.
  for (const double weight : {1.0, 100.0}) {
    Stage stage(simple(1), 375);
    for (std::uint32_t task = 0; task < 300; ++task) stage.cluster.tenants[task] = task % 2;
    stage.cluster.weights[1] = weight;
    stage.scheduler.tenant_changed(1, stage.now, stage.cluster);
    for (ThreadId thread = 0; thread < 200; ++thread) stage.place(thread, 1'000);
    int granted[2] = {0, 0};
    for (int i = 0; i < 80; ++i) {
      const CallId call = stage.cluster.at.begin()->first;
      ++granted[call % 2];
      stage.now += kSecond;
      stage.finish(call);
      stage.end_task(call);
    }
    EXPECT_EQ(granted[0] + granted[1], 80);
    if (weight == 1) {
      EXPECT_NEAR(granted[0], 40, 2);
    } else {
      EXPECT_LE(granted[0], 4);
      EXPECT_GE(granted[0], 1);
    }
  }
}

// -------------------------------------------------------------------------------------------- on the simulated cluster

// Tasks in which a thread may have several calls open at once, with sub-agents that share its prompt, joins, and gaps
// of nothing; some of them declare a graph, with a deadline.
Workload overlapping(std::uint64_t seed, std::uint32_t tasks) {
  Random random(seed);
  const auto up_to = [&random](std::uint64_t bound) { return static_cast<std::uint32_t>(random.below(bound)); };
  WorkloadBuilder builder;
  std::uint64_t fresh = 10'000;
  ThreadId threads = 0;
  for (std::uint32_t task = 0; task < tasks; ++task) {
    struct Agent {
      ThreadId thread;
      std::uint64_t first_block;
      std::uint32_t prompt;
      std::vector<CallId> last;
    };
    std::vector<Agent> agents{{threads++, fresh, 100 + up_to(300), {}}};
    fresh += 1'000;
    const std::uint32_t rounds = 1 + up_to(8);
    for (std::uint32_t round = 0; round < rounds; ++round) {
      Agent& agent = agents[random.below(agents.size())];
      std::vector<std::pair<CallId, Time>> after;
      for (const CallId call : agent.last) after.push_back({call, up_to(4) == 0 ? 0 : up_to(3'000'000)});
      agent.last.clear();
      const std::uint32_t at_once = up_to(3) == 0 ? 2 + up_to(3) : 1;
      for (std::uint32_t i = 0; i < at_once; ++i) {
        if (!after.empty() && up_to(2) == 0) after[0].second += up_to(20'000);
        agent.last.push_back(builder.call(agent.thread, agent.prompt + 16 * up_to(3), 1 + up_to(80),
                                          {{agent.first_block, agent.prompt / 16}}, after,
                                          static_cast<ToolClass>(random.below(5))));
      }
      agent.prompt += 20 + up_to(150);
      if (agents.size() < 4 && up_to(4) == 0) {
        agents.push_back({threads++, agent.first_block, agent.prompt, agent.last});
      }
    }
    builder.end_task(up_to(3));
  }
  Workload workload = builder.get();
  workload.tenant_weight = {1, 100, 0.5};
  AgentGraph graph;
  graph.steps = {{ToolClass::kCodeExecution, 40, 50, 1}, {ToolClass::kNone, 40, 50, 0.5}};
  graph.edges = {{0, 0, 0.3}, {0, 1, 0.5}, {1, 0, 0.6}};
  graph.expected_seconds = 20;
  graph.prepare();
  workload.graphs = {graph};
  for (std::uint32_t task = 0; task < tasks; ++task) workload.task_graph.push_back(up_to(2) == 0 ? 0 : kNone);
  return workload;
}

void add(SagaStatistics& sum, const SagaStatistics& more) {
  sum.grants += more.grants;
  sum.queued += more.queued;
  sum.held += more.held;
  sum.steals += more.steals;
  sum.pulls += more.pulls;
  sum.recomputes += more.recomputes;
  sum.thrash += more.thrash;
  sum.prefetches += more.prefetches;
  sum.prefetches_cancelled += more.prefetches_cancelled;
  sum.preemptions += more.preemptions;
  sum.refused += more.refused;
}

// All that a run of a scheduler has to keep, whatever the workload: everything ends, twice the same, and the counters
// add up.
void expect_good_run(const Workload& workload, const ClusterOptions& options, SagaStatistics* sum) {
  const PageTree tree = PageTree::for_cluster(workload, 16);
  ClusterResult result, again;
  SagaScheduler scheduler(saga_options(options.policy, options, workload));
  ASSERT_EQ(simulate_cluster(workload, tree, options, &result, nullptr, &scheduler), Status::kOk);
  EXPECT_EQ(result.tasks_completed, workload.tasks());
  const SagaStatistics& statistics = scheduler.statistics();
  EXPECT_LE(statistics.grants, workload.calls());
  EXPECT_LE(statistics.queued, statistics.grants);
  // A call that place() did not send waited in the queue, for its pages, or behind one of its own thread that did.
  EXPECT_LE(result.held_calls, statistics.queued + statistics.held + workload.calls() - statistics.grants);
  EXPECT_GE(result.held_calls + statistics.held, statistics.queued);
  EXPECT_LE(statistics.thrash, statistics.steals + statistics.pulls + statistics.recomputes);
  EXPECT_EQ(result.steals, statistics.steals + statistics.pulls);
  EXPECT_EQ(statistics.refused, 0u);
  EXPECT_EQ(scheduler.queue().size() + scheduler.admissions().size(), 0u);
  for (WorkerId w = 0; w < options.workers; ++w) {
    EXPECT_NEAR(scheduler.running_tokens(w), 0, 1e-6);
    if (options.hints == ClusterHints::kGraph) {
      EXPECT_NEAR(scheduler.resident_tokens(w), 0, 1e-6);
    }
    EXPECT_GE(scheduler.cost_factor(w), 0.25);
    EXPECT_LE(scheduler.cost_factor(w), 4);
  }
  if (!options.policy.has(kPartStealing)) {
    EXPECT_EQ(statistics.steals + statistics.pulls, 0u);
  }
  if (!options.policy.has(kPartPrefetch) || options.host_tier_tokens == 0) {
    EXPECT_EQ(statistics.prefetches, 0u);
  }
  if (!options.policy.has(kPartAdmission)) {
    EXPECT_EQ(statistics.queued, 0u);
  }
  if (!options.policy.has(kPartFairness)) {
    EXPECT_EQ(statistics.preemptions, 0u);
  }
  const bool leases = options.policy.has(kPartTtl) && !options.policy.has(kPartEviction);
  if (!leases) {
    EXPECT_EQ(result.leases.granted + result.leases.refused, 0u);
  }
  add(*sum, statistics);

  ClusterOptions unverified = options;
  unverified.verify_every = 0;
  SagaScheduler second(saga_options(options.policy, options, workload));
  ASSERT_EQ(simulate_cluster(workload, tree, unverified, &again, nullptr, &second), Status::kOk);
  expect_same(result, again);
  Digest one, two;
  scheduler.add_to(one, result.end);
  second.add_to(two, again.end);
  EXPECT_EQ(one.value(), two.value());
}

ClusterOptions small_cluster(const Workload& workload, Random& random) {
  ClusterOptions options;
  options.workers = 1 + static_cast<std::uint32_t>(random.below(4));
  options.hardware = static_cast<Hardware>(random.below(kHardwareCount));
  options.kv_tokens = longest_context(workload) + 16 + random.below(random.below(2) == 0 ? 600 : 6'000);
  options.max_sequences = 1 + static_cast<std::uint32_t>(random.below(20));
  options.token_budget = 64 + static_cast<std::uint32_t>(random.below(500));
  options.host_tier_tokens = random.below(2) == 0 ? 3'200 : 0;
  options.hints = random.below(2) == 0 ? ClusterHints::kNone : ClusterHints::kGraph;
  if (random.below(2) == 0) {
    options.live = 1 + static_cast<std::uint32_t>(random.below(10));
  } else {
    options.rate = 0.2 + random.uniform() * 4;
  }
  options.policy.kind = ClusterPolicyKind::kSaga;
  options.policy.seed = random.next();
  options.verify_every = 7;
  options.record_calls = true;
  options.optimum = false;
  return options;
}

TEST(SagaSchedulerRuns, RandomWorkloadsInSmallMemories) {
  SagaStatistics sum;
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed + 77);
    const Workload workload = overlapping(seed, 10);
    const ClusterOptions options = small_cluster(workload, random);
    expect_good_run(workload, options, &sum);
    if (HasFailure()) return;
  }
  EXPECT_GT(sum.queued, 100u);
  EXPECT_GT(sum.held, 50u);
  EXPECT_GT(sum.steals, 20u);
  EXPECT_GT(sum.pulls, 20u);
  EXPECT_GT(sum.recomputes, 10u);
  EXPECT_GT(sum.thrash, 0u);
  EXPECT_GT(sum.prefetches, 20u);
  EXPECT_GT(sum.prefetches_cancelled, 20u);
  EXPECT_GT(sum.preemptions, 0u);
}

TEST(SagaSchedulerRuns, AllCombinationsOfParts) {
  SagaStatistics sum;
  for (std::uint32_t without = 0; without <= kAllParts; ++without) {
    SCOPED_TRACE(without);
    Random random(without);
    const Workload workload = overlapping(without % 7, 6);
    ClusterOptions options = small_cluster(workload, random);
    options.policy.without = without;
    options.verify_every = 31;
    expect_good_run(workload, options, &sum);
    if (HasFailure()) return;
  }
}

TEST(SagaSchedulerRuns, ManyWorkers) {
  SagaStatistics sum;
  const Workload workload = overlapping(5, 60);
  Random random(5);
  ClusterOptions options = small_cluster(workload, random);
  options.workers = 128;
  options.verify_every = 101;
  options.live = 0;
  options.rate = 20;
  expect_good_run(workload, options, &sum);
}

TEST(SagaSchedulerRuns, NoGaps) {
  SagaStatistics sum;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    Random random(seed);
    Workload workload = overlapping(seed, 10);
    std::fill(workload.predecessor_gap.begin(), workload.predecessor_gap.end(), Time{0});
    expect_good_run(workload, small_cluster(workload, random), &sum);
  }
}

// A prompt that every call begins with: no worker goes without work, and none has most of it.
TEST(SagaSchedulerRuns, ASharedPromptSpreads) {
  WorkloadBuilder builder;
  for (std::uint32_t task = 0; task < 64; ++task) {
    CallId before = 0;
    for (std::uint32_t step = 0; step < 6; ++step) {
      std::vector<std::pair<CallId, Time>> after;
      if (step > 0) after.push_back({before, 500'000});
      const std::uint32_t prompt = 8'000 + 320 * step;
      before =
          builder.call(task, prompt, 200, {{1, 400}, {10'000 + 1'000 * std::uint64_t{task}, prompt / 16 - 400}}, after);
    }
    builder.end_task();
  }
  const Workload& workload = builder.get();
  ClusterOptions options;
  options.workers = 4;
  options.policy.kind = ClusterPolicyKind::kSaga;
  options.live = 64;
  options.record_calls = true;
  ClusterResult result;
  ASSERT_EQ(simulate_cluster(workload, PageTree::for_cluster(workload, 16), options, &result), Status::kOk);
  std::map<WorkerId, std::uint32_t> calls;
  for (const CallRecord& call : result.calls) ++calls[call.worker];
  ASSERT_EQ(calls.size(), 4u);
  for (const auto& [worker, count] : calls) EXPECT_NEAR(count, 96, 48) << worker;
}

}  // namespace
}  // namespace saga
