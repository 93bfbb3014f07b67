// AgentGraph: a declared Agent Execution Graph (SAGA paper, section 3): what a client says about a class of tasks
// before one of them runs.
//
// A **step** (node) is a kind of LLM call: which tool its answer calls, how long the answer is, what the tool's result
// adds to the next prompt and how long that takes. An **edge** is the probability that one kind of step follows
// another; what the edges of a step leave of 1 is the probability that the task ends with it. All values are means over
// the class, never draws of one task. A task starts with step 0 unless it is seen or told to have started elsewhere.
// Checked where it comes in (C ABI).
//
// prepare(), called once when all fields are set, derives what follows from them: for each step the expected calls,
// tokens and time of waiting that are still to come (the fixed point of the Markov chain, by Gauss-Seidel sweeps from
// the last step to the first, at most kMaxSweeps; one sweep is enough for a graph whose edges all lead forward). Cost
// O(edges x sweeps). Afterwards the graph is immutable and every question about it is O(1), or O(edges of a step). A
// cycle that is never left has no finite expectation: values stop at kMaxExpectation.
//
// A graph without steps that declares its number of calls becomes one step that repeats.
//
// Invariants (verify()): edges are sorted by (from, to) without repetition, name steps that exist, have probabilities
// in [0, 1], and those of a step sum to at most 1; values are finite and not negative. If it is prepared, the derived
// values satisfy their equations.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/types.hpp"

namespace saga {

struct AgentStep {
  ToolClass tool = ToolClass::kNone;
  double output_tokens = 0;       // of the answer
  double observation_tokens = 0;  // that the tool's result adds to the next prompt
  double gap_seconds = 0;         // from the answer to the next call
};

struct AgentEdge {
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  double probability = 0;
};

// What is to come behind a step, the step itself not included.
struct StepExpectation {
  std::uint32_t first_edge = 0;     // its edges: [first_edge, first_edge of the next step)
  double end_probability = 0;       // the task ends with this step
  double calls = 0;                 // further calls
  double output_tokens = 0;         // of all of them
  double observation_tokens = 0;    // that all gaps to come add to prompts, the one behind this step included
  double gap_seconds = 0;           // of all gaps to come
  double next_output_tokens = 0;    // of the next call, given that there is one; 0 where the task always ends
  double next_end_probability = 0;  // the task ends with the next call, given that there is one
  std::uint32_t next_step = kNone;  // the most likely one (of equals the smallest); kNone where the task always ends
};

class AgentGraph {
 public:
  static constexpr double kMaxExpectation = 1e9;
  static constexpr std::uint32_t kMaxSweeps = 4096;

  std::vector<AgentStep> steps;
  std::vector<AgentEdge> edges;
  double first_prompt_tokens = 0;  // 0: not declared
  double expected_calls = 0;       // mean number of calls of a task; 0: what the edges imply
  double expected_seconds = 0;     // completion time of a task on a quiet cluster, tools included; 0: not declared

  void prepare();
  bool prepared() const { return !steps.empty() && expectations_.size() == steps.size() + 1; }

  // These need a prepared graph.
  const StepExpectation& expectation(std::uint32_t step) const { return expectations_[step]; }
  // Calls of a whole task: as declared, else as the edges imply.
  double total_calls() const { return expected_calls > 0 ? expected_calls : 1 + expectations_[0].calls; }
  // The step that a call is, whose answer calls `tool`, when `before` was the step of the call before it (kNone: it is
  // the first): the most likely successor with that tool (of equals the smallest), else the most likely one without a
  // declared tool; for a first call step 0 where it fits. Else the first step with that tool; kNone: none has it. Where
  // nothing is `told` of the answer, a tool of class kNone fits every step.
  std::uint32_t match_step(std::uint32_t before, ToolClass tool, bool told) const;

  bool verify() const;

 private:
  std::vector<StepExpectation> expectations_;  // [steps + 1]; the last only closes the range of edges
};

}  // namespace saga
