// Predictor: what is still to come of a workflow. The learned half of the Agent Execution Graph (SAGA paper, section
// 3).
//
// A **workflow** here is one chain of calls: a task, or one thread of it, as its owner chooses; calls that overlap are
// counted, but teach nothing about gaps and growth. The owner numbers workflows by slots below max_workflows and
// reports four events: opened, call started, call ended, closed (or forgotten: no longer tracked, end unknown).
// forecast() answers at any time between them.
//
//   states of a slot: free -> open (no call yet) -> running (a call is under way) <-> waiting (gap: tool, human or
//   nothing) -> free
//
// **What is known about a call** is its step kind: stop reason and tool class of its answer. Per **agent class**
// (tenant, agent kind) and over all of them the predictor keeps, with decay:
//   - transition counts between step kinds (start and end included);
//   - gap tables: how waits end, by age in quarter octaves from 1/16 s to days. A wait has two competing ends, the next
//     call and the closing of the workflow, each with its own hazard; a wait that still lasts is at risk up to its
//     present age (Kaplan-Meier, and Aalen-Johansen for the two ends). So what idle time says about the end of a
//     workflow is learned, whether clients close their workflows or not;
//   - life tables: how many tasks end after the n-th call, by n in quarter octaves, and by n over the declared number
//     of calls;
//   - histograms of answer and growth tokens (half octaves), and the variance of both within a task and between tasks.
// Every table is shrunk to the one above it with a few pseudo-observations (agent class -> all -> built-in prior).
//
// **Sources, best first**: hints with the call, the declared graph, learned tables, priors. Hints are learned, not
// believed: a declared duration is a scale on which the distribution of its error is learned, a "final" flag has a
// learned reliability, and where two sources say different numbers (of calls, of tokens) they are weighted by the
// squared errors that they made on finished workflows. A task's own mean joins its class by shrinkage with k = variance
// within / variance between tasks pseudo-observations.
//
// In rebuilt tables a wait that lasts counts as at risk, and as much of an end as its age makes likely. Tables of a gap
// are rebuilt after max(16, min(2048, events / 8), open waits) ends of theirs and when their open waits have doubled (so
// workflows that never return are known before the first of them is closed): a rebuild is amortised O(1) an event.
//
// Cost: an event O(1), a forecast O(1) (a few table look-ups, two binary searches over 92 buckets): measured 70 to 160
// ns and 150 to 200 ns for up to 1,024 workflows, 120 to 300 ns and 180 to 250 ns for 16,384 of 64 classes, where
// caches miss (graph_bench). Memory, all at construction: max_workflows x 304 bytes + (max_agent_classes + 2) x 46 KB.
// Deterministic: doubles with + - * / only.
//
// Invariants (verify()): counts are finite and not negative; the open waits of each gap table are linked in order of
// their start and counted; distributions are monotone and within [0, 1].
#pragma once

#include <cstdint>
#include <vector>

#include "../base/types.hpp"
#include "agent_graph.hpp"
#include "calibration.hpp"
#include "hazard.hpp"

namespace saga {

// What a client may tell with a call or with its answer. Everything is optional.
struct CallHints {
  enum class Final : std::uint8_t { kNotTold = 0, kNo = 1, kYes = 2 };

  // With call_ended: the tool that runs now, where the answer itself does not name it.
  ToolClass next_tool = ToolClass::kNone;
  // With call_ended: time until the next call.
  Time gap = kNotDeclared;
  // With either: this call is the workflow's last one.
  Final final_step = Final::kNotTold;
  // With either: the step of the declared graph that this call is.
  std::uint32_t step = kNone;
  // With call_started: length of its answer. With call_ended: of the next one. 0: not told.
  std::uint32_t output_tokens = 0;
};

// The best of the sources that a forecast rests on.
enum class ForecastSource : std::uint8_t { kPrior = 0, kLearned = 1, kDeclared = 2, kHinted = 3 };

// Numbers about "the next call" mean: while a call runs, the one behind it; `current_output_tokens` is that of the
// running one.
struct Forecast {
  double end_probability = 0;    // no further call comes, given the idle time so far
  double reuse_probability = 0;  // Eqs 4, 5: (1 - end_probability) x cached / (cached + expected growth)
  double remaining_calls = 0;    // expected number of further calls (the running one not included)

  double current_output_tokens = 0;  // expected answer of the running call; 0 if none runs
  double next_output_tokens = 0;     // expected answer of the next call, given that it comes
  double next_output_p95 = 0;        // its 95 % quantile
  double next_growth_tokens = 0;     // expected tokens of the next prompt beyond the last prompt and its answer

  double remaining_output_tokens = 0;  // of the whole workflow, the running call included
  double remaining_growth_tokens = 0;  // prefill that the gaps to come bring, all of them

  // Time until the next call, given that one comes and the idle time so far (while a call runs: of the gap behind it).
  Time remaining_gap = 0;  // mean, in which a gap of more than an hour counts as an hour
  Time gap_p50 = 0;
  Time gap_p95 = 0;

  double confidence = 0;                   // 0 (built-in priors) to 1; falls with the evidence, not with the spread
  ToolClass next_tool = ToolClass::kNone;  // most likely tool of the next call's answer
  ForecastSource source = ForecastSource::kPrior;
};

struct PredictorOptions {
  std::uint32_t max_workflows = 1024;
  std::uint32_t max_tenants = 64;
  std::uint32_t max_agent_kinds = 64;    // small ids from 1; 0 = unknown
  std::uint32_t max_agent_classes = 64;  // pairs of the two with tables of their own; those beyond share one
  Time reuse_horizon = 60'000'000;       // of the calibration of "next call within the horizon"
};

class Predictor {
 public:
  explicit Predictor(const PredictorOptions& options);

  // Events, in order of time. Tenants and kinds out of range share the tables of those that are in none of their own.
  // `declared` must outlive the workflow and be prepared.
  void workflow_opened(std::uint32_t workflow, std::uint32_t tenant, std::uint32_t agent_kind,
                       const AgentGraph* declared, Time now);
  void call_started(std::uint32_t workflow, std::uint32_t prompt_tokens, PromptKind kind, Time now,
                    const CallHints* hints = nullptr);
  void call_ended(std::uint32_t workflow, StopReason stop, ToolClass tool, std::uint32_t output_tokens, Time now,
                  const CallHints* hints = nullptr);
  // The client said that the workflow has ended (or cancelled it).
  void workflow_closed(std::uint32_t workflow, Time now);
  // It is no longer tracked: idle for long, or its slot is needed. Its wait is censored, never counted as an end for
  // certain.
  void workflow_forgotten(std::uint32_t workflow, Time now);

  bool is_open(std::uint32_t workflow) const;
  // tails: with the quantiles at 0.95, else they are 0.
  Forecast forecast(std::uint32_t workflow, Time now, bool tails = true) const;
  // P(the next call comes within `horizon` from now | idle so far). While a call runs: within `horizon` of its end.
  double reuse_within(std::uint32_t workflow, Time horizon, Time now) const;

  // Adds what another predictor has learned (its open workflows stay its own).
  void merge(const Predictor& other);

  // Step kinds: 0 end_turn, 1 not told, 2 tool_use without a class, 3 to 6 tool_use by class; kStepKinds: start (from),
  // end (to).
  static constexpr std::uint32_t kStepKinds = 7;
  static std::uint32_t step_kind_of(StopReason stop, ToolClass tool);
  // Observed transitions, with decay: a row is halved when its sum passes kTransitionWindow. Class 0 counts all.
  static constexpr double kTransitionWindow = 4096;
  std::uint32_t class_of(std::uint32_t tenant, std::uint32_t agent_kind) const;  // kNone: has no tables yet
  double transitions(std::uint32_t agent_class, std::uint32_t from, std::uint32_t to) const {
    return classes_[agent_class].transitions[from][to];
  }

  const Calibration& calibration() const { return calibration_; }
  const PredictorOptions& options() const { return options_; }
  bool verify() const;

 private:
  static constexpr std::uint32_t kStart = kStepKinds;
  static constexpr std::uint32_t kEnd = kStepKinds;
  static constexpr std::uint32_t kAll = 0;     // class: sums over all
  static constexpr std::uint32_t kOthers = 1;  // class: those without tables of their own
  // Gap tables of a class: by step kind, in seconds; by the declared duration of this gap and by the declared mean of
  // the step, in multiples of it.
  static constexpr std::uint32_t kHintedGap = kStepKinds;
  static constexpr std::uint32_t kDeclaredGap = kStepKinds + 1;
  static constexpr std::uint32_t kGapTables = kStepKinds + 2;
  static constexpr std::uint32_t kLifeBuckets = 48;
  static constexpr std::uint32_t kTokenBuckets = 48;
  // Who says how many calls remain: the edges of the graph, the declared number of calls, the agent class.
  static constexpr std::uint32_t kCallExperts = 3;

  struct GapTable {
    // Waits by how and in which bucket they ended. Censored: forgotten, the end not known.
    float returned[kBuckets], closed[kBuckets], censored[kBuckets];
    // Derived. Of a bucket: both hazards. At its lower bound: chance to wait for so long, chance to return then or
    // later, and the same times the time of return (units of the grid; late returns are cut off).
    float return_hazard[kBuckets], close_hazard[kBuckets];
    double waiting[kBuckets + 1], returns[kBuckets + 1], return_time[kBuckets + 1];
    double quantile_50, quantile_90, quantile_95;  // of a gap, at age 0
    double events;                                 // counts of all three kinds
    std::uint32_t since_rebuild, open_waits, open_at_rebuild;
    std::uint32_t oldest, newest;  // open waits: slots of workflows, in order of start (not in class kAll)
  };
  // At an age: the three derived columns, interpolated.
  struct GapPoint {
    double waiting, returns, return_time;
  };
  struct LifeTable {
    // Tasks that ended in a bucket, and that came through it alive. Within a bucket ends are taken to be spread evenly.
    double ended[kLifeBuckets], passed[kLifeBuckets];
    // Derived: share that comes through; at the lower bound: alive, and the integral of alive from there on.
    double pass[kLifeBuckets], alive[kLifeBuckets + 1], area[kLifeBuckets + 1];
    double events;
    std::uint32_t since_rebuild;
  };
  struct LifePoint {
    double alive, area;
  };
  struct TokenTable {
    float count[kTokenBuckets];  // half octaves of 1 + tokens
    double samples, sum;
  };
  // Of log2(1 + tokens), within tasks and between them.
  struct VarianceTable {
    double within, within_freedom;
    double tasks, mean_sum, mean_square_sum, inverse_samples;
  };
  struct AgentClass {
    GapTable gaps[kGapTables];
    LifeTable calls, declared_calls;                            // by n, and by kLifeUnit x n / declared number of calls
    TokenTable output[kStepKinds + 1], growth[kStepKinds + 1];  // of the call behind a step of that kind
    TokenTable any_output, any_growth;
    VarianceTable output_variance, growth_variance;
    double transitions[kStepKinds + 1][kStepKinds + 1];
    double transition_sum[kStepKinds + 1];
    // How often each step kind came, forgotten at one pace (rows and tables forget at their own), and by how much an
    // end behind it has other odds than behind any.
    double step_count[kStepKinds], step_count_sum;
    double end_factor[kStepKinds];
    double expert_error[kCallExperts], expert_tasks;  // shares of the squared error
    double length_error[2], length_samples;           // of answer lengths: own estimate, hint
    double final_told[2], final_ended[2];             // hints kNo, kYes: how often told, how often it was the last call
    double tasks;
    std::uint32_t tenant, agent_kind;
  };
  struct OwnMean {
    double count = 0, sum = 0, log_sum = 0, log_square_sum = 0;
    void add(double tokens, double log);
  };
  enum class State : std::uint8_t { kFree, kOpen, kRunning, kWaiting };
  struct Wait {  // the slot's place in one gap table of its class
    std::uint32_t table = kNone;
    std::uint32_t older = kNone, newer = kNone;
    double unit = 1;  // microseconds of one unit of the table's grid
  };
  struct Workflow {
    State state = State::kFree;
    CallHints::Final final_step = CallHints::Final::kNotTold;
    bool hinted = false;          // by the last call
    std::uint32_t step_kind = 0;  // of the last ended call
    std::uint32_t agent_class = 0;
    const AgentGraph* declared = nullptr;
    std::uint32_t step = kNone;          // of the declared graph, of the last ended call
    std::uint32_t running_step = kNone;  // told for the running call
    std::uint32_t calls = 0;             // started
    std::uint32_t ended = 0;
    std::uint32_t unresolved = 0;  // ended, and not yet known whether they were the last
    std::uint32_t open_calls = 0;
    std::uint32_t prompt_tokens = 0, output_tokens = 0;
    std::uint32_t hinted_output = 0;  // of the running or next call
    Time gap_start = 0;
    Wait waits[3];  // by step kind, hinted, declared
    OwnMean output, growth;
    double expert_sum[kCallExperts] = {}, expert_square_sum[kCallExperts] = {}, expert_samples = 0;
    double predicted_next = 0, predicted_within = 0;
    Time predicted_p50 = 0, predicted_p90 = 0, predicted_p95 = 0;
  };
  // Further calls, given that there is one more; and the chance that the last one was the last.
  struct CallsToCome {
    double end = 0;
    double given_more = 0;
  };
  struct TokenEstimate {
    double next = 0;     // of the next call (output) or gap (growth)
    double average = 0;  // of those to come
    double ratio = 1;    // of the task's own level to its class
  };

  // Where the distribution of a workflow's present or next gap stands.
  struct GapView {
    const GapTable* table;
    const BucketGrid* grid;
    double unit;
  };

  static const BucketGrid& grid_of(std::uint32_t table) { return table < kHintedGap ? second_grid() : multiple_grid(); }
  static GapPoint point_at(const GapTable& table, const BucketGrid& grid, double age);
  static double gap_quantile(const GapTable& table, const BucketGrid& grid, double age, double p);
  static LifePoint life_at(const LifeTable& table, double x);
  static double variance_ratio(const VarianceTable& one, const VarianceTable& all);
  static void learn_variance(VarianceTable& table, const OwnMean& own);
  static void learn_tokens(TokenTable& table, double tokens, std::uint32_t bucket);
  static double token_quantile(const TokenTable& table, double p);

  std::uint32_t find_or_add_class(std::uint32_t tenant, std::uint32_t agent_kind);
  void rebuild_gap(std::uint32_t agent_class, std::uint32_t table, Time now);
  void rebuild_life(std::uint32_t agent_class, bool declared, Time now);
  void count_open_life(std::uint32_t agent_class, bool declared, Time now, double* ended, double* inside) const;
  static void rebuild_end_factors(AgentClass& one);
  void rebuild_all(Time now);
  void count_open(std::uint32_t agent_class, std::uint32_t table, Time now, double* reached) const;

  std::uint32_t open_waits(std::uint32_t agent_class) const;
  void begin_wait(std::uint32_t slot, std::uint32_t which, std::uint32_t table, double unit);
  // How: 0 returned, 1 closed, 2 forgotten.
  void end_waits(std::uint32_t slot, std::uint32_t how, Time now);
  void resolve_calls(Workflow& workflow, double ended, Time now);
  void add_transition(std::uint32_t agent_class, std::uint32_t from, std::uint32_t to, double weight);
  void finish(std::uint32_t slot, double ended, Time now);

  const Wait& best_wait(const Workflow& workflow) const;
  const GapTable& table_of(const Workflow& workflow, const Wait& wait) const {
    return classes_[workflow.agent_class].gaps[wait.table];
  }
  // After n calls; where their step is known (ended) or only the one before (running).
  void experts(const Workflow& workflow, std::uint32_t n, bool running, CallsToCome out[kCallExperts]) const;
  CallsToCome pooled_calls(const Workflow& workflow, std::uint32_t n, bool running) const;
  CallsToCome pool(const Workflow& workflow, const CallsToCome said[kCallExperts]) const;
  double end_probability(const Workflow& workflow, const CallsToCome& calls, Time now) const;
  TokenEstimate estimate_output(const Workflow& workflow) const;
  TokenEstimate estimate_growth(const Workflow& workflow) const;
  double with_length_hint(const Workflow& workflow, double estimate) const;
  GapView gap_view(const Workflow& workflow) const;
  std::uint32_t likely_kind(std::uint32_t agent_class, std::uint32_t from) const;
  double class_mean(const Workflow& workflow, bool growth, std::uint32_t kind, double* any) const;

  PredictorOptions options_;
  std::vector<AgentClass> classes_;      // kAll, kOthers, then by first use
  std::vector<std::uint32_t> class_of_;  // [tenant][kind]
  std::uint32_t used_classes_ = 2;
  std::vector<Workflow> workflows_;
  Time now_ = 0;  // of the last event
  Calibration calibration_;
};

}  // namespace saga
