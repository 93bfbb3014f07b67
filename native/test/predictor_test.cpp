#include "../core/graph/predictor.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "../core/base/random.hpp"

namespace {
std::uint64_t allocations = 0;
}

// Not inlined: compilers would pair the calls of malloc and delete that they see.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) std::abort();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace saga {
namespace {

constexpr Time kSecond = 1'000'000;

PredictorOptions small(std::uint32_t workflows = 64) {
  PredictorOptions options;
  options.max_workflows = workflows;
  options.max_tenants = 4;
  options.max_agent_kinds = 4;
  options.max_agent_classes = 6;
  return options;
}

// One workflow at a time, on slot 0, with an own clock.
struct Player {
  explicit Player(const PredictorOptions& options) : predictor(options) {}

  void open(const AgentGraph* graph = nullptr, std::uint32_t tenant = 0, std::uint32_t kind = 1) {
    predictor.workflow_opened(0, tenant, kind, graph, now);
    prompt = 1000;
  }
  void call(std::uint32_t output = 100, StopReason stop = StopReason::kToolUse, ToolClass tool = ToolClass::kNone,
            const CallHints* at_end = nullptr, const CallHints* at_start = nullptr) {
    predictor.call_started(0, prompt, PromptKind::kTool, now, at_start);
    now += kSecond;
    predictor.call_ended(0, stop, tool, output, now, at_end);
    prompt += output;
  }
  void gap(Time time, std::uint32_t growth = 50) {
    now += time;
    prompt += growth;
  }
  void close() { predictor.workflow_closed(0, now); }
  Forecast forecast() const { return predictor.forecast(0, now); }

  Predictor predictor;
  Time now = kSecond;
  std::uint32_t prompt = 1000;
};

TEST(Predictor, ColdStart) {
  Player player(small());
  player.open();
  Forecast forecast = player.forecast();
  EXPECT_EQ(forecast.source, ForecastSource::kPrior);
  EXPECT_EQ(forecast.confidence, 0);
  EXPECT_EQ(forecast.end_probability, 0);
  EXPECT_EQ(forecast.reuse_probability, 0);  // nothing is cached
  EXPECT_NEAR(forecast.remaining_calls, 32, 2);
  EXPECT_NEAR(forecast.next_output_tokens, 250, 1e-9);
  player.call(100, StopReason::kToolUse);
  forecast = player.forecast();
  EXPECT_LT(forecast.end_probability, 0.1);
  EXPECT_GT(forecast.reuse_probability, 0.6);
  player.gap(kSecond);
  player.call(100, StopReason::kEndTurn);
  EXPECT_GT(player.forecast().end_probability, 0.15);
  EXPECT_TRUE(player.predictor.verify());
}

TEST(Predictor, PaperReuseProbability) {
  // Eqs 4, 5 with a declared graph: (1 - end) x cached / (cached + observation).
  AgentGraph graph;
  graph.steps = {{ToolClass::kNone, 200, 600, 0}, {ToolClass::kNone, 200, 0, 0}};
  graph.edges = {{0, 1, 1.0}};
  graph.prepare();
  Player player(small());
  player.open(&graph);
  player.call(200);
  const Forecast forecast = player.forecast();
  EXPECT_NEAR(forecast.next_growth_tokens, 600, 1e-9);
  EXPECT_NEAR(forecast.reuse_probability, (1 - forecast.end_probability) * 1200 / 1800, 1e-12);
  EXPECT_EQ(forecast.source, ForecastSource::kDeclared);
}

TEST(Predictor, TransitionsAgainstABruteForceCount) {
  Random random(21);
  Predictor predictor(small(16));
  std::map<std::pair<std::uint32_t, std::uint32_t>, double> all;
  std::map<std::pair<std::uint32_t, std::uint32_t>, double> of_tenant[3];
  struct Live {
    bool open = false;
    std::uint32_t tenant = 0;
    std::uint32_t last = Predictor::kStepKinds;
    bool running = false;
  } live[16];
  Time now = 0;
  for (int i = 0; i < 12'000; ++i) {
    const auto w = static_cast<std::uint32_t>(random.below(16));
    now += random.below(kSecond);
    Live& one = live[w];
    if (!one.open) {
      one = Live{true, static_cast<std::uint32_t>(random.below(3)), Predictor::kStepKinds, false};
      predictor.workflow_opened(w, one.tenant, 2, nullptr, now);
    } else if (one.running) {
      const auto stop = static_cast<StopReason>(random.below(3));
      const auto tool = stop == StopReason::kToolUse ? static_cast<ToolClass>(random.below(5)) : ToolClass::kNone;
      predictor.call_ended(w, stop, tool, static_cast<std::uint32_t>(random.below(500)), now);
      const std::uint32_t kind = stop == StopReason::kEndTurn   ? 0
                                 : stop == StopReason::kUnknown ? 1
                                                                : 2 + static_cast<std::uint32_t>(tool);
      all[{one.last, kind}] += 1;
      of_tenant[one.tenant][{one.last, kind}] += 1;
      one.last = kind;
      one.running = false;
    } else if (one.last != Predictor::kStepKinds && random.below(12) == 0) {
      predictor.workflow_closed(w, now);
      all[{one.last, Predictor::kStepKinds}] += 1;
      of_tenant[one.tenant][{one.last, Predictor::kStepKinds}] += 1;
      one.open = false;
    } else {
      predictor.call_started(w, static_cast<std::uint32_t>(1000 + random.below(1000)), PromptKind::kTool, now);
      one.running = true;
    }
    if (i % 500 == 0) {
      ASSERT_TRUE(predictor.verify());
    }
  }
  for (std::uint32_t from = 0; from <= Predictor::kStepKinds; ++from) {
    for (std::uint32_t to = 0; to <= Predictor::kStepKinds; ++to) {
      const auto expected = [&](auto& counts) { return counts.count({from, to}) != 0 ? counts[{from, to}] : 0.0; };
      EXPECT_EQ(predictor.transitions(0, from, to), expected(all)) << from << " " << to;
      for (std::uint32_t t = 0; t < 3; ++t) {
        EXPECT_EQ(predictor.transitions(predictor.class_of(t, 2), from, to), expected(of_tenant[t]));
      }
    }
  }
}

TEST(Predictor, NextToolIsTheMostFrequentOne) {
  Player player(small());
  player.open();
  for (int i = 0; i < 20; ++i) {
    player.call(100, StopReason::kToolUse, ToolClass::kFileOperation);
    player.gap(kSecond);
    player.call(100, StopReason::kToolUse, ToolClass::kCodeExecution);
    player.gap(kSecond);
  }
  EXPECT_EQ(player.forecast().next_tool, ToolClass::kFileOperation);
  player.call(100, StopReason::kToolUse, ToolClass::kFileOperation);
  EXPECT_EQ(player.forecast().next_tool, ToolClass::kCodeExecution);
}

// Nine gaps of one second in ten, the tenth of 1,000 seconds.
TEST(Predictor, GapsConditionOnTheIdleTime) {
  Player player(small());
  player.open();
  for (int i = 0; i < 2000; ++i) {
    player.call();
    player.gap(i % 10 == 9 ? 1000 * kSecond : kSecond);
  }
  player.call();
  const Forecast fresh = player.forecast();
  EXPECT_NEAR(static_cast<double>(fresh.gap_p50), 1e6, 0.25e6);
  EXPECT_GT(fresh.gap_p95, 700 * kSecond);
  EXPECT_NEAR(static_cast<double>(fresh.remaining_gap), 101e6, 20e6);
  EXPECT_NEAR(player.predictor.reuse_within(0, 5 * kSecond, player.now), 0.9, 0.02);
  const Time later = player.now + 10 * kSecond;
  const Forecast idle = player.predictor.forecast(0, later);
  EXPECT_NEAR(static_cast<double>(idle.gap_p50), 990e6, 150e6);
  EXPECT_NEAR(static_cast<double>(idle.remaining_gap), 990e6, 150e6);
  EXPECT_LT(player.predictor.reuse_within(0, 60 * kSecond, later), 0.05);
  EXPECT_TRUE(player.predictor.verify());
}

// P(within | age) against the empirical share of the very same waits.
TEST(Predictor, ReuseWithinAgainstTheEmpiricalShare) {
  Random random(8);
  Player player(small());
  player.open();
  std::vector<Time> gaps;
  for (int i = 0; i < 6000; ++i) {
    player.call();
    double normal = -6;
    for (int k = 0; k < 12; ++k) normal += random.uniform();
    gaps.push_back(static_cast<Time>(2e6 * std::exp(1.8 * normal)));
    player.gap(gaps.back());
  }
  player.call();
  for (const Time age : {Time{0}, kSecond / 2, 4 * kSecond, 30 * kSecond}) {
    for (const Time horizon : {kSecond, 10 * kSecond, 60 * kSecond}) {
      double waiting = 0;
      double within = 0;
      for (const Time gap : gaps) {
        waiting += gap > age;
        within += gap > age && gap <= age + horizon;
      }
      EXPECT_NEAR(player.predictor.reuse_within(0, horizon, player.now + age), within / waiting, 0.06)
          << age << " " << horizon;
    }
  }
}

TEST(Predictor, OpenWaitsAreAtRisk) {
  // 100 gaps of a second have ended, 900 waits last for 100 seconds already: the share that returns is near a tenth,
  // not one.
  Predictor predictor(small(1000));
  for (std::uint32_t w = 0; w < 1000; ++w) {
    predictor.workflow_opened(w, 0, 1, nullptr, 0);
    predictor.call_started(w, 1000, PromptKind::kTool, 0);
    predictor.call_ended(w, StopReason::kToolUse, ToolClass::kNone, 100, 0);
  }
  for (std::uint32_t w = 0; w < 100; ++w) predictor.call_started(w, 1200, PromptKind::kTool, kSecond);
  ASSERT_TRUE(predictor.verify());
  // Events at 100 s that bring rebuilds; they end waits of their own.
  Time now = 100 * kSecond;
  for (int i = 0; i < 1200; ++i) {
    predictor.call_ended(0, StopReason::kToolUse, ToolClass::kWebApi, 100, now);
    predictor.call_started(0, 1200, PromptKind::kTool, ++now);
  }
  for (std::uint32_t w = 1; w < 100; ++w) predictor.call_ended(w, StopReason::kToolUse, ToolClass::kNone, 100, now);
  // Their returns bring the rebuild of this very table: none before 2048 or the number of open waits.
  for (int i = 0; i < 1200; ++i) {
    predictor.call_ended(0, StopReason::kToolUse, ToolClass::kNone, 100, now);
    now += 10;
    predictor.call_started(0, 1200, PromptKind::kTool, now);
  }
  ASSERT_TRUE(predictor.verify());
  // Of the 2,299 waits at age 2 s and more only the 900 are left: hardly any of them returned between 2 and 90 s.
  EXPECT_LT(predictor.reuse_within(999, 80 * kSecond, 2 * kSecond + now), 0.3);
}

TEST(Predictor, IdleTimeOfClientsThatClose) {
  Player player(small());
  // Workflows of 5 calls, closed at once; gaps of 2 s.
  for (int task = 0; task < 300; ++task) {
    player.open();
    for (int i = 0; i < 5; ++i) {
      if (i > 0) player.gap(2 * kSecond);
      player.call();
    }
    player.gap(10'000, 0);
    player.close();
  }
  player.open();
  player.call();
  const double fresh = player.forecast().end_probability;
  const double after_a_second = player.predictor.forecast(0, player.now + kSecond).end_probability;
  EXPECT_LT(after_a_second, 0.6 * fresh + 0.005);  // who has not closed by now will come back
  EXPECT_TRUE(player.predictor.verify());
}

TEST(Predictor, IdleTimeOfClientsThatNeverClose) {
  Random random(6);
  Predictor predictor(small(400));
  // Every fourth call is a workflow's last one, the others come back after 2 s. Nobody closes; forgotten is what is an
  // hour old.
  Time now = 0;
  for (std::uint32_t w = 0; w < 300; ++w) {
    predictor.workflow_opened(w, 0, 1, nullptr, now);
    do {
      predictor.call_started(w, 1000, PromptKind::kTool, now);
      now += kSecond;
      predictor.call_ended(w, StopReason::kToolUse, ToolClass::kNone, 100, now);
      now += 2 * kSecond;
    } while (random.below(4) != 0);
    if (w >= 100) predictor.workflow_forgotten(w - 100, now);
    now += 30 * kSecond;
  }
  ASSERT_TRUE(predictor.verify());
  const std::uint32_t w = 399;
  predictor.workflow_opened(w, 0, 1, nullptr, now);
  predictor.call_started(w, 1000, PromptKind::kTool, now);
  predictor.call_ended(w, StopReason::kToolUse, ToolClass::kNone, 100, now);
  double before = predictor.forecast(w, now).end_probability;
  EXPECT_LT(before, 0.5);
  for (const Time age : {kSecond, 4 * kSecond, 20 * kSecond, 200 * kSecond}) {
    const double end = predictor.forecast(w, now + age).end_probability;
    EXPECT_GE(end, before - 1e-9) << age;
    before = end;
  }
  EXPECT_GT(before, 0.8);
}

// Nobody comes back and nobody closes: that is learned while all of them still wait.
TEST(Predictor, WorkflowsThatOnlyBegin) {
  Predictor predictor(small(400));
  Time now = 0;
  double first = 0;
  for (std::uint32_t w = 0; w < 300; ++w) {
    predictor.workflow_opened(w, 0, 1, nullptr, now);
    predictor.call_started(w, 500, PromptKind::kStart, now);
    now += kSecond;
    predictor.call_ended(w, StopReason::kEndTurn, ToolClass::kNone, 100, now);
    if (w == 0) first = predictor.reuse_within(w, 30 * kSecond, now);
  }
  ASSERT_TRUE(predictor.verify());
  EXPECT_GT(first, 0.3);
  EXPECT_LT(predictor.reuse_within(299, 30 * kSecond, now), 0.05);
  EXPECT_LT(predictor.forecast(299, now).remaining_calls, 1.5);
}

TEST(Predictor, AnswersOfATaskItsClassAndWhatVaries) {
  Random random(4);
  {
    // Nearly constant within a task, very different between tasks: two calls tell.
    Player player(small());
    for (int task = 0; task < 200; ++task) {
      const auto level = static_cast<std::uint32_t>(100 * std::exp2(random.uniform() * 5));
      player.open();
      for (int i = 0; i < 6; ++i) {
        if (i > 0) player.gap(kSecond);
        player.call(level + static_cast<std::uint32_t>(random.below(level / 20 + 1)));
      }
      player.close();
    }
    player.open();
    player.call(3000);
    player.gap(kSecond);
    player.call(3000);
    EXPECT_NEAR(player.forecast().next_output_tokens, 3000, 450);
  }
  {
    // The same spread within every task: two calls tell little.
    Player player(small());
    double sum = 0;
    for (int task = 0; task < 200; ++task) {
      player.open();
      for (int i = 0; i < 6; ++i) {
        if (i > 0) player.gap(kSecond);
        const auto output = static_cast<std::uint32_t>(100 * std::exp2(random.uniform() * 5));
        player.call(output);
        sum += output;
      }
      player.close();
    }
    player.open();
    player.call(3000);
    player.gap(kSecond);
    player.call(3000);
    EXPECT_NEAR(player.forecast().next_output_tokens, sum / 1200, 0.2 * sum / 1200);
    EXPECT_GT(player.forecast().next_output_p95, 1.5 * sum / 1200);
  }
}

TEST(Predictor, GrowthIsWhatThePromptHasBeyondTheAnswer) {
  Player player(small());
  player.open();
  for (int i = 0; i < 500; ++i) {
    player.call(300, StopReason::kToolUse, i % 2 == 0 ? ToolClass::kFileOperation : ToolClass::kWebApi);
    player.gap(kSecond, i % 2 == 0 ? 100 : 900);
  }
  player.call(300, StopReason::kToolUse, ToolClass::kFileOperation);
  EXPECT_NEAR(player.forecast().next_growth_tokens, 100, 30);
  player.gap(kSecond, 100);
  player.call(300, StopReason::kToolUse, ToolClass::kWebApi);
  EXPECT_NEAR(player.forecast().next_growth_tokens, 900, 60);
  // A prompt that shrinks is no growth of zero: nothing is learned from it.
  player.prompt = 1000;
  player.call(300, StopReason::kToolUse, ToolClass::kWebApi);
  EXPECT_NEAR(player.forecast().next_growth_tokens, 900, 60);
}

TEST(Predictor, TasksOfTenCalls) {
  Player player(small());
  for (int task = 0; task < 400; ++task) {
    player.open();
    for (int i = 0; i < 10; ++i) {
      if (i > 0) player.gap(kSecond);
      player.call(200);
    }
    player.close();
  }
  player.open();
  EXPECT_NEAR(player.forecast().remaining_calls, 10, 0.8);
  for (int n = 1; n <= 10; ++n) {
    if (n > 1) player.gap(kSecond);
    player.call(200);
    const Forecast forecast = player.forecast();
    EXPECT_NEAR(forecast.remaining_calls, 10 - n, 1.5) << n;
    if (n < 8) {
      EXPECT_LT(forecast.end_probability, 0.05) << n;
      EXPECT_NEAR(forecast.remaining_output_tokens, 200 * forecast.remaining_calls, 5) << n;
    }
  }
  EXPECT_GT(player.forecast().end_probability, 0.35);
}

// All tasks begin at once and are equally far: those still alive are at risk, or the few that ended would look like
// many.
TEST(Predictor, TasksThatGoOnCountAsAlive) {
  Random random(17);
  Predictor predictor(small(512));
  Time now = 0;
  for (std::uint32_t w = 0; w < 512; ++w) predictor.workflow_opened(w, 0, 1, nullptr, now);
  for (int round = 0; round < 70; ++round) {
    for (std::uint32_t w = 0; w < 512; ++w) {
      if (!predictor.is_open(w)) continue;
      predictor.call_started(w, 1000, PromptKind::kTool, now);
      predictor.call_ended(w, StopReason::kToolUse, ToolClass::kNone, 100, ++now);
      if (random.below(50) == 0) predictor.workflow_closed(w, now);
    }
    now += kSecond;
  }
  ASSERT_TRUE(predictor.verify());
  std::uint32_t slot = 0;
  while (predictor.is_open(slot)) ++slot;
  predictor.workflow_opened(slot, 0, 1, nullptr, now);
  // 50 calls on average; known is the part up to 70 calls, 50 (1 - e^-1.4) = 37.7, and behind it the prior's 32 for
  // every fourth task.
  EXPECT_NEAR(predictor.forecast(slot, now).remaining_calls, 45.6, 4);
}

TEST(Predictor, RunningCalls) {
  Player player(small());
  for (int task = 0; task < 100; ++task) {
    player.open();
    for (int i = 0; i < 8; ++i) {
      if (i > 0) player.gap(3 * kSecond, 70);
      player.call(200);
    }
    player.close();
  }
  player.open();
  player.call(200);
  player.gap(3 * kSecond, 70);
  player.predictor.call_started(0, player.prompt, PromptKind::kTool, player.now);
  const Forecast forecast = player.forecast();
  EXPECT_NEAR(forecast.current_output_tokens, 200, 10);
  EXPECT_NEAR(forecast.remaining_calls, 6, 1);
  EXPECT_NEAR(forecast.remaining_output_tokens, 200 * (1 + forecast.remaining_calls), 60);
  EXPECT_NEAR(forecast.remaining_growth_tokens, 70 * forecast.remaining_calls, 40);
  EXPECT_NEAR(static_cast<double>(forecast.gap_p50), 3e6, 0.5e6);
  EXPECT_EQ(forecast.source, ForecastSource::kLearned);
}

TEST(Predictor, DeclaredChain) {
  AgentGraph graph;
  for (int i = 0; i < 6; ++i) graph.steps.push_back({ToolClass::kCodeExecution, 400.0 + i, 100, 8});
  for (std::uint32_t i = 0; i + 1 < 6; ++i) graph.edges.push_back({i, i + 1, 1.0});
  graph.prepare();
  Player player(small());
  for (int task = 0; task < 60; ++task) {
    player.open(&graph);
    for (int i = 0; i < 6; ++i) {
      if (i > 0) player.gap(8 * kSecond, 100);
      player.call(400, StopReason::kToolUse, ToolClass::kCodeExecution);
    }
    player.close();
  }
  // Tasks of other classes, of the same kind and without a declaration, are long.
  for (int task = 0; task < 60; ++task) {
    player.open();
    for (int i = 0; i < 60; ++i) {
      if (i > 0) player.gap(kSecond, 100);
      player.call(400, StopReason::kToolUse, ToolClass::kFileOperation);
    }
    player.close();
  }
  player.open(&graph);
  for (int n = 1; n <= 5; ++n) {
    if (n > 1) player.gap(8 * kSecond, 100);
    player.call(400, StopReason::kToolUse, ToolClass::kCodeExecution);
    EXPECT_NEAR(player.forecast().remaining_calls, 6 - n, 1.3) << n;
    EXPECT_EQ(player.forecast().source, ForecastSource::kDeclared);
    EXPECT_EQ(player.forecast().next_tool, ToolClass::kCodeExecution);
  }
}

TEST(Predictor, DeclaredGapsAtColdStart) {
  AgentGraph graph;
  graph.steps = {{ToolClass::kCodeExecution, 300, 100, 40}};
  graph.edges = {{0, 0, 0.9}};
  graph.prepare();
  Player player(small());
  player.open(&graph);
  player.call(300, StopReason::kToolUse, ToolClass::kCodeExecution);
  const Forecast forecast = player.forecast();
  EXPECT_GT(forecast.gap_p50, 15 * kSecond);
  EXPECT_LT(forecast.gap_p50, 80 * kSecond);
  EXPECT_NEAR(forecast.next_output_tokens, 300, 1e-9);
}

TEST(Predictor, FinalFlagsAreBelievedAndFoundOut) {
  CallHints final;
  final.final_step = CallHints::Final::kYes;
  Player player(small());
  player.open();
  player.call(100, StopReason::kToolUse, ToolClass::kNone, &final);
  EXPECT_GT(player.forecast().end_probability, 0.9);
  EXPECT_EQ(player.forecast().source, ForecastSource::kHinted);
  for (int i = 0; i < 300; ++i) {
    player.gap(kSecond);
    player.call(100, StopReason::kToolUse, ToolClass::kNone, &final);
  }
  EXPECT_LT(player.forecast().end_probability, 0.2);
}

TEST(Predictor, DeclaredDurationsAreScaledByTheirError) {
  Random random(9);
  Player honest(small());
  Player careless(small());
  honest.open();
  careless.open();
  for (int i = 0; i < 1500; ++i) {
    CallHints hints;
    hints.gap = (1 + random.below(100)) * kSecond;
    honest.call(100, StopReason::kToolUse, ToolClass::kNone, &hints);
    honest.gap(hints.gap);
    careless.call(100, StopReason::kToolUse, ToolClass::kNone, &hints);
    careless.gap(static_cast<Time>(static_cast<double>(hints.gap) * std::exp2(6 * random.uniform() - 3)));
  }
  CallHints hints;
  hints.gap = 30 * kSecond;
  honest.call(100, StopReason::kToolUse, ToolClass::kNone, &hints);
  careless.call(100, StopReason::kToolUse, ToolClass::kNone, &hints);
  EXPECT_NEAR(static_cast<double>(honest.forecast().gap_p50), 30e6, 1.5e6);
  EXPECT_NEAR(static_cast<double>(honest.forecast().gap_p95), 30e6, 3e6);
  EXPECT_NEAR(honest.predictor.reuse_within(0, 31 * kSecond, honest.now), 1, 0.05);
  EXPECT_GT(careless.forecast().gap_p95, 100 * kSecond);
  EXPECT_NEAR(careless.predictor.reuse_within(0, 30 * kSecond, careless.now), 0.5, 0.08);
}

TEST(Predictor, AnswerLengthsToldAreWeighedByTheirRecord) {
  Random random(13);
  Player good(small());
  Player bad(small());
  good.open();
  bad.open();
  for (int i = 0; i < 300; ++i) {
    const auto output = static_cast<std::uint32_t>(100 + random.below(3000));
    CallHints hints;
    hints.output_tokens = output;
    good.call(output, StopReason::kToolUse, ToolClass::kNone, nullptr, &hints);
    good.gap(kSecond);
    hints.output_tokens = static_cast<std::uint32_t>(1 + random.below(20'000));
    bad.call(output, StopReason::kToolUse, ToolClass::kNone, nullptr, &hints);
    bad.gap(kSecond);
  }
  CallHints hints;
  hints.output_tokens = 9000;
  good.predictor.call_started(0, good.prompt, PromptKind::kTool, good.now, &hints);
  bad.predictor.call_started(0, bad.prompt, PromptKind::kTool, bad.now, &hints);
  EXPECT_GT(good.forecast().current_output_tokens, 8000);
  EXPECT_LT(bad.forecast().current_output_tokens, 3500);
}

TEST(Predictor, ClassesAreApartAndShareWhatIsKnown) {
  Player player(small());
  for (int task = 0; task < 50; ++task) {
    for (const std::uint32_t tenant : {0u, 1u}) {
      player.open(nullptr, tenant, 1);
      for (int i = 0; i < 4; ++i) {
        if (i > 0) player.gap(tenant == 0 ? kSecond : 100 * kSecond);
        player.call(tenant == 0 ? 100 : 2000);
      }
      player.close();
    }
  }
  player.open(nullptr, 0, 1);
  player.call(100);
  EXPECT_NEAR(static_cast<double>(player.forecast().gap_p50), 1e6, 0.4e6);
  player.close();
  player.open(nullptr, 1, 1);
  player.call(2000);
  EXPECT_NEAR(static_cast<double>(player.forecast().gap_p50), 100e6, 25e6);
  player.close();
  // A class never seen starts from what is known over all.
  player.open(nullptr, 2, 3);
  EXPECT_NEAR(player.forecast().next_output_tokens, 1050, 120);
  EXPECT_NEAR(player.forecast().remaining_calls, 4, 1.5);
  player.close();
  // Beyond the bounds: shared tables, no trouble.
  for (std::uint32_t tenant = 0; tenant < 40; ++tenant) {
    player.open(nullptr, tenant, tenant % 9);
    player.call();
    player.close();
  }
  EXPECT_EQ(player.predictor.class_of(99, 0), 1u);
  EXPECT_TRUE(player.predictor.verify());
}

TEST(Predictor, OverlappingCallsTeachNoGaps) {
  Predictor predictor(small());
  predictor.workflow_opened(0, 0, 1, nullptr, 0);
  predictor.call_started(0, 1000, PromptKind::kTool, 0);
  predictor.call_started(0, 5000, PromptKind::kTool, kSecond);
  predictor.call_ended(0, StopReason::kToolUse, ToolClass::kNone, 10, 2 * kSecond);
  ASSERT_TRUE(predictor.verify());
  EXPECT_EQ(predictor.forecast(0, 2 * kSecond).remaining_gap, predictor.forecast(0, 50 * kSecond).remaining_gap);
  predictor.call_ended(0, StopReason::kToolUse, ToolClass::kNone, 10, 3 * kSecond);
  predictor.call_started(0, 5100, PromptKind::kTool, 4 * kSecond);
  EXPECT_EQ(predictor.calibration().report().gaps.gaps, 1u);
  predictor.workflow_closed(0, 5 * kSecond);
  ASSERT_TRUE(predictor.verify());
}

TEST(Predictor, CalibrationCountsKnownOutcomesOnly) {
  Player player(small());
  player.open();
  player.call();
  EXPECT_EQ(player.predictor.calibration().report().next_call.predictions(), 0u);
  player.gap(100 * kSecond);  // beyond the horizon of 60 s
  player.call();
  const CalibrationReport& report = player.predictor.calibration().report();
  EXPECT_EQ(report.next_call.predictions(), 1u);
  EXPECT_EQ(report.next_call.happened(), 1u);
  EXPECT_EQ(report.within_horizon.predictions(), 1u);
  EXPECT_EQ(report.within_horizon.happened(), 0u);
  player.gap(kSecond);
  player.close();
  EXPECT_EQ(report.next_call.predictions(), 2u);
  EXPECT_EQ(report.next_call.happened(), 1u);
  EXPECT_EQ(report.within_horizon.happened(), 0u);
  player.open();
  player.call();
  player.predictor.workflow_forgotten(0, player.now + 30 * kSecond);  // the horizon has not passed
  EXPECT_EQ(report.next_call.predictions(), 2u);
  EXPECT_EQ(report.within_horizon.predictions(), 2u);
  EXPECT_EQ(report.gaps.gaps, 1u);
}

// Whatever happens, in any order that the states allow.
void random_events(Predictor& predictor, const AgentGraph* graph, std::uint64_t seed, int events,
                   std::uint32_t first_slot, std::uint32_t slots, bool check) {
  Random random(seed);
  std::vector<std::uint32_t> open_calls(slots, 0);
  Time now = 0;
  for (int i = 0; i < events; ++i) {
    const auto s = static_cast<std::uint32_t>(random.below(slots));
    const std::uint32_t w = first_slot + s;
    now += random.below(3) == 0 ? static_cast<Time>(std::exp2(random.uniform() * 30)) : random.below(1000);
    CallHints hints;
    hints.gap = random.below(2) == 0 ? kNotDeclared : random.below(100 * kSecond);
    hints.final_step = static_cast<CallHints::Final>(random.below(3));
    hints.step = static_cast<std::uint32_t>(random.below(6));
    hints.output_tokens = static_cast<std::uint32_t>(random.below(1000));
    hints.next_tool = static_cast<ToolClass>(random.below(5));
    const CallHints* told = random.below(3) == 0 ? &hints : nullptr;
    if (!predictor.is_open(w)) {
      open_calls[s] = 0;
      predictor.workflow_opened(w, static_cast<std::uint32_t>(random.below(5)),
                                static_cast<std::uint32_t>(random.below(5)), random.below(2) == 0 ? graph : nullptr,
                                now);
    } else if (random.below(40) == 0) {
      if (random.below(2) == 0) {
        predictor.workflow_closed(w, now);
      } else {
        predictor.workflow_forgotten(w, now);
      }
      continue;
    } else if (open_calls[s] == 0 || random.below(20) == 0) {
      predictor.call_started(w, static_cast<std::uint32_t>(random.below(100'000)),
                             static_cast<PromptKind>(random.below(3)), now, told);
      ++open_calls[s];
    } else {
      predictor.call_ended(w, static_cast<StopReason>(random.below(3)), static_cast<ToolClass>(random.below(5)),
                           static_cast<std::uint32_t>(random.below(5000)), now, told);
      --open_calls[s];
    }
    if (!check) continue;
    const Forecast forecast = predictor.forecast(w, now + random.below(kSecond));
    for (const double p : {forecast.end_probability, forecast.reuse_probability, forecast.confidence,
                           predictor.reuse_within(w, 60 * kSecond, now)}) {
      ASSERT_GE(p, 0);
      ASSERT_LE(p, 1);
    }
    for (const double amount : {forecast.remaining_calls, forecast.current_output_tokens, forecast.next_output_tokens,
                                forecast.next_output_p95, forecast.next_growth_tokens, forecast.remaining_output_tokens,
                                forecast.remaining_growth_tokens}) {
      ASSERT_GE(amount, 0);
      ASSERT_LT(amount, 1e12);
    }
    ASSERT_LE(forecast.gap_p50, forecast.gap_p95);
    ASSERT_GE(forecast.next_output_p95, forecast.next_output_tokens);
    ASSERT_LE(predictor.reuse_within(w, kSecond, now), predictor.reuse_within(w, 60 * kSecond, now) + 1e-12);
    if (i % 300 == 0) {
      ASSERT_TRUE(predictor.verify());
    }
  }
}

AgentGraph four_tools() {
  AgentGraph graph;
  for (std::uint32_t i = 0; i < 4; ++i) {
    graph.steps.push_back({static_cast<ToolClass>(i + 1), 200.0 + 50 * i, 100.0 * i, i * 2.0});
    for (std::uint32_t j = 0; j < 4; ++j) graph.edges.push_back({i, j, 0.05 + 0.05 * (j + i % 2)});
  }
  graph.expected_calls = 12;
  graph.prepare();
  return graph;
}

TEST(Predictor, RandomEvents) {
  const AgentGraph graph = four_tools();
  ASSERT_TRUE(graph.verify());
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    Predictor predictor(small(24));
    random_events(predictor, &graph, seed, 12'000, 0, 24, true);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(predictor.verify());
  }
}

TEST(Predictor, SameEventsSameBits) {
  const AgentGraph graph = four_tools();
  Predictor a(small(24));
  Predictor b(small(24));
  random_events(a, &graph, 77, 6000, 0, 24, false);
  random_events(b, &graph, 77, 6000, 0, 24, false);
  for (std::uint32_t w = 0; w < 24; ++w) {
    ASSERT_EQ(a.is_open(w), b.is_open(w));
    if (!a.is_open(w)) continue;
    const Time now = Time{1} << 50;
    const Forecast x = a.forecast(w, now);
    const Forecast y = b.forecast(w, now);
    EXPECT_EQ(x.end_probability, y.end_probability);
    EXPECT_EQ(x.remaining_calls, y.remaining_calls);
    EXPECT_EQ(x.remaining_output_tokens, y.remaining_output_tokens);
    EXPECT_EQ(x.gap_p95, y.gap_p95);
  }
}

TEST(Predictor, NothingIsAllocatedAfterConstruction) {
  const AgentGraph graph = four_tools();
  Predictor predictor(small(24));
  std::vector<std::uint32_t> warm(24);
  const std::uint64_t before = allocations;
  random_events(predictor, &graph, 5, 5000, 0, 24, false);
  EXPECT_EQ(allocations - before, 1u);  // the test's own vector
}

TEST(Predictor, MergedTablesAreTheSum) {
  const AgentGraph graph = four_tools();
  PredictorOptions options = small(40);
  options.max_agent_classes = 16;
  Predictor first(options);
  Predictor second(options);
  Predictor both(options);
  random_events(first, &graph, 31, 2500, 0, 20, false);
  random_events(second, &graph, 32, 2500, 0, 20, false);
  Predictor merged(options);
  merged.merge(first);
  merged.merge(second);
  ASSERT_TRUE(merged.verify());
  Predictor other_way(options);
  other_way.merge(second);
  other_way.merge(first);
  for (std::uint32_t from = 0; from <= Predictor::kStepKinds; ++from) {
    for (std::uint32_t to = 0; to <= Predictor::kStepKinds; ++to) {
      EXPECT_NEAR(merged.transitions(0, from, to), first.transitions(0, from, to) + second.transitions(0, from, to),
                  1e-9);
    }
  }
  EXPECT_EQ(
      merged.calibration().report().next_call.predictions(),
      first.calibration().report().next_call.predictions() + second.calibration().report().next_call.predictions());
  for (Predictor* one : {&merged, &other_way}) {
    one->workflow_opened(0, 1, 2, nullptr, 0);
    one->call_started(0, 1000, PromptKind::kStart, 0);
    one->call_ended(0, StopReason::kToolUse, ToolClass::kWebApi, 300, kSecond);
  }
  const Forecast a = merged.forecast(0, 5 * kSecond);
  const Forecast b = other_way.forecast(0, 5 * kSecond);
  EXPECT_NEAR(a.end_probability, b.end_probability, 1e-6);
  EXPECT_NEAR(a.remaining_calls, b.remaining_calls, 1e-6 * b.remaining_calls);
  EXPECT_NEAR(a.next_output_tokens, b.next_output_tokens, 1e-6 * b.next_output_tokens);
  EXPECT_EQ(a.source, ForecastSource::kLearned);
  EXPECT_GT(a.confidence, 0.5);
}

}  // namespace
}  // namespace saga
