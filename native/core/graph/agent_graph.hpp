// AgentGraph: a declared Agent Execution Graph (SAGA paper, section 3): what a client says about a class of tasks before one
// of them runs.
//
// A **step** (node) is a kind of LLM call: which tool its answer calls, how long the answer is, what the tool's result adds to
// the next prompt and how long that takes. An **edge** is the probability that one kind of step follows another; what the
// edges of a step leave of 1 is the probability that the task ends with it. All values are means over the class, never draws
// of one task. Immutable once built; checked where it comes in (C ABI).
//
// Invariants (verify()): edges are sorted by (from, to) without repetition, name steps that exist, have probabilities in
// [0, 1], and those of a step sum to at most 1.
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

class AgentGraph {
 public:
  std::vector<AgentStep> steps;
  std::vector<AgentEdge> edges;
  double first_prompt_tokens = 0;  // 0: not declared
  double expected_calls = 0;       // mean number of calls of a task; 0: what the edges imply
  double expected_seconds = 0;     // completion time of a task on a quiet cluster, tools included; 0: not declared

  bool verify() const;
};

}  // namespace saga
