// Predictor: what is still to come of a workflow. The learned half of the Agent Execution Graph (SAGA paper, section 3).
//
// A **workflow** here is one chain of calls: a task, or one thread of it, as its owner chooses; calls that overlap are counted, but
// teach nothing about gaps and growth. The owner numbers workflows by slots below max_workflows and reports four events: opened,
// call started, call ended, closed (or forgotten: no longer tracked, end unknown). forecast() answers at any time between them.
//
//   states of a slot: free -> open (no call yet) -> running (a call is under way) <-> waiting (gap: tool, human or nothing) -> free
//
// **What is known about a call** is its step kind: stop reason and tool class of its answer. Per **agent class** (tenant, agent kind)
// and over all of them the predictor keeps, with decay:
//   - transition counts between step kinds (start and end included);
//   - gap tables: how waits end, by age in quarter octaves from 1/16 s to days. A wait has two competing ends, the next call and the
//     closing of the workflow, each with its own hazard; a wait that still lasts is at risk up to its present age (Kaplan-Meier, and
//     Aalen-Johansen for the two ends). So what idle time says about the end of a workflow is learned, whether clients close
//     their workflows or not;
//   - life tables: the hazard of ending after the n-th call, by n, and by n over the declared number of calls;
//   - histograms of answer and growth tokens (half octaves), and the variance of both within a task and between tasks.
// Every table is shrunk to the one above it with a few pseudo-observations (agent class -> all -> built-in prior).
//
// **Sources, best first**: hints with the call, the declared graph, learned tables, priors. Hints are learned, not believed: a
// declared duration is a scale on which the distribution of its error is learned, a "final" flag has a learned reliability, and where
// two sources say different numbers (of calls, of tokens) they are weighted by the squared errors that they made on finished
// workflows. A task's own mean joins its class by shrinkage with k = variance within / variance between tasks pseudo-observations.
//
// Learning happens only when something has ended. Tables of a gap are rebuilt after max(16, min(2048, events / 8), open waits / 4)
// events of theirs, so a rebuild is amortised O(1) an event.
//
// Cost: an event O(1), a forecast O(1) (a few table look-ups, two binary searches over 92 buckets); figures in bench/RESULTS.md.
// Memory, all at construction: max_workflows x ~300 bytes + (max_agent_classes + 1) x ~50 KB. Deterministic: doubles with + - * / only.
//
// Invariants (verify()): counts are finite and not negative; the open waits of each gap table are linked in order of their start and
// counted; distributions are monotone and within [0, 1].
#pragma once

#include <cstdint>
#include <vector>

#include "../base/types.hpp"
#include "agent_graph.hpp"
#include "calibration.hpp"

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

// Numbers about "the next call" mean: while a call runs, the one behind it; `current_output_tokens` is that of the running one.
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
  // It is no longer tracked: idle for long, or its slot is needed. Its wait is censored, never counted as an end for certain.
  void workflow_forgotten(std::uint32_t workflow, Time now);

  bool is_open(std::uint32_t workflow) const;
  Forecast forecast(std::uint32_t workflow, Time now) const;
  // P(the next call comes within `horizon` from now | idle so far). While a call runs: within `horizon` of its end.
  double reuse_within(std::uint32_t workflow, Time horizon, Time now) const;

  // Adds what another predictor has learned (its open workflows stay its own).
  void merge(const Predictor& other);

  const Calibration& calibration() const { return calibration_; }
  const PredictorOptions& options() const { return options_; }
  bool verify() const;

 private:
  // Step kinds: what is known about a call once it has ended.
  static constexpr std::uint32_t kStepKinds = 7;  // end_turn, not told, tool_use x (no class, four classes)
  static constexpr std::uint32_t kEnd = kStepKinds;
  static constexpr std::uint32_t kStart = kStepKinds;
  static constexpr std::uint32_t kGapBuckets = 92;
  // Gap tables of a class: by step kind; by the declared duration of this gap; by the declared mean of the step.
  static constexpr std::uint32_t kHintedGap = kStepKinds;
  static constexpr std::uint32_t kDeclaredGap = kStepKinds + 1;
  static constexpr std::uint32_t kGapTables = kStepKinds + 2;
  static constexpr std::uint32_t kLifeBuckets = 48;
  static constexpr std::uint32_t kTokenBuckets = 48;
  // Who says how many calls remain: the graph's edges, the declared number of calls, the agent class.
  static constexpr std::uint32_t kCallExperts = 3;

  struct GapTable {
    // Waits by how and in which bucket they ended. Censored: forgotten, the end not known.
    float returned[kGapBuckets] = {}, closed[kGapBuckets] = {}, censored[kGapBuckets] = {};
    // Derived, at the lower bound of each bucket: still waiting, returned before, and sum of return times before (seconds, at most
    // an hour each).
    float waiting[kGapBuckets + 1] = {}, returned_before[kGapBuckets + 1] = {}, time_before[kGapBuckets + 1] = {};
    float return_hazard[kGapBuckets] = {}, close_hazard[kGapBuckets] = {};
    double events = 0;  // all three kinds, decayed
    std::uint32_t since_rebuild = 0;
    std::uint32_t open_waits = 0;
    std::uint32_t oldest = kNone, newest = kNone;  // open waits: slots of workflows, in order of start
  };
  struct LifeTable {
    double ended[kLifeBuckets] = {}, exposure[kLifeBuckets] = {};
    double rate[kLifeBuckets] = {}, remaining[kLifeBuckets] = {};  // derived: hazard, expected rest at the lower bound
    double tasks = 0;
    std::uint32_t since_rebuild = 0;
  };
  struct TokenTable {
    float count[kTokenBuckets] = {};
    double samples = 0, sum = 0;
  };
  // Variance of log2(1 + tokens) within tasks and between them.
  struct VarianceTable {
    double within = 0, within_freedom = 0;
    double means = 0, mean_sum = 0, mean_square_sum = 0, inverse_samples = 0;
  };
  struct AgentClass {
    GapTable gaps[kGapTables];
    LifeTable calls, declared_calls;
    TokenTable output[kStepKinds], growth[kStepKinds];
    TokenTable any_output, any_growth;
    VarianceTable output_variance, growth_variance;
    double transitions[kStepKinds + 1][kStepKinds + 1] = {};  // [from; kStart][to; kEnd]
    double transition_sum[kStepKinds + 1] = {};
    double expert_error[kCallExperts] = {}, expert_tasks = 0;  // mean shares of the squared error, decayed
    double hint_error[2] = {}, hint_samples = 0;               // of answer lengths: own estimate, hint
    double final_told[2] = {}, final_ended[2] = {};  // hint kNo, kYes: how often told, how often it was the last call
    double tasks = 0;
    std::uint32_t tenant = kNone, agent_kind = kNone;
  };
  struct OwnMean {
    double count = 0, sum = 0, log_sum = 0, log_square_sum = 0;
  };
  enum class State : std::uint8_t { kFree, kOpen, kRunning, kWaiting };
  struct Wait {  // the slot's place in one gap table
    std::uint32_t table = kNone;
    std::uint32_t older = kNone, newer = kNone;
    double scale = 1;  // ages are multiplied by this
  };
  struct Workflow {
    State state = State::kFree;
    std::uint8_t step_kind = kStart;  // of the last call
    CallHints::Final final_step = CallHints::Final::kNotTold;
    bool outcome_due = false;  // a prediction of the horizon is not yet counted
    std::uint32_t agent_class = 0;
    const AgentGraph* declared = nullptr;
    std::uint32_t step = kNone;  // of the declared graph; while a call runs: of the one before it
    std::uint32_t running_step = kNone;
    std::uint32_t calls = 0;  // started
    std::uint32_t ended = 0;
    std::uint32_t open_calls = 0;
    std::uint32_t prompt_tokens = 0, output_tokens = 0;
    std::uint32_t hinted_output = 0;
    double model_output = 0;  // what was expected without the hint
    Time gap_start = 0;
    Wait waits[4];  // class step kind, class hinted, class declared, all
    OwnMean output, growth;
    double expert_sum[kCallExperts] = {}, expert_square_sum[kCallExperts] = {};
    double predicted_return = 0, predicted_within = 0;
    Time predicted_p50 = 0, predicted_p90 = 0, predicted_p95 = 0;
  };

  PredictorOptions options_;
  std::vector<AgentClass> classes_;      // [0]: all; [1]: those without tables of their own; then by first use
  std::vector<std::uint32_t> class_of_;  // [tenant][kind]
  std::vector<Workflow> workflows_;
  Calibration calibration_;
};

}  // namespace saga
