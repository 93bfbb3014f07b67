#include "agent_graph.hpp"

#include <cstddef>

#include "../base/assert.hpp"

namespace saga {
namespace {

double bounded(double value) { return value < AgentGraph::kMaxExpectation ? value : AgentGraph::kMaxExpectation; }

double distance(double a, double b) { return a < b ? b - a : a - b; }

// The four sums that follow the same recursion.
struct Sums {
  double calls = 0, output_tokens = 0, observation_tokens = 0, gap_seconds = 0;
};

// Right-hand side of a step's equations, its own loop left out.
Sums over_edges(const AgentGraph& graph, const std::vector<StepExpectation>& expectations, std::uint32_t i) {
  Sums sums;
  for (std::uint32_t e = expectations[i].first_edge; e < expectations[i + 1].first_edge; ++e) {
    const AgentEdge& edge = graph.edges[e];
    const double p = edge.probability;
    sums.calls += p;
    sums.output_tokens += p * graph.steps[edge.to].output_tokens;
    sums.observation_tokens += p * graph.steps[i].observation_tokens;
    sums.gap_seconds += p * graph.steps[i].gap_seconds;
    if (edge.to == i) continue;
    const StepExpectation& next = expectations[edge.to];
    sums.calls += p * next.calls;
    sums.output_tokens += p * next.output_tokens;
    sums.observation_tokens += p * next.observation_tokens;
    sums.gap_seconds += p * next.gap_seconds;
  }
  return sums;
}

}  // namespace

void AgentGraph::prepare() {
  if (steps.empty() && expected_calls >= 1) {
    steps.push_back(AgentStep{});
    edges.push_back({0, 0, 1 - 1 / expected_calls});
  }
  const std::size_t n = steps.size();
  expectations_.assign(n + 1, StepExpectation{});
  std::vector<double> loop(n, 0.0);
  std::size_t e = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    StepExpectation& step = expectations_[i];
    step.first_edge = static_cast<std::uint32_t>(e);
    double sum = 0;
    double output = 0;
    double best = 0;
    for (; e < edges.size() && edges[e].from == i; ++e) {
      const double p = edges[e].probability;
      sum += p;
      output += p * steps[edges[e].to].output_tokens;
      if (edges[e].to == i) loop[i] = p;
      if (p > best) {
        best = p;
        step.next_step = edges[e].to;
      }
    }
    step.end_probability = sum < 1 ? 1 - sum : 0;
    step.next_output_tokens = sum > 0 ? output / sum : 0;
  }
  expectations_[n].first_edge = static_cast<std::uint32_t>(edges.size());

  for (std::uint32_t sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool changed = false;
    for (std::uint32_t i = static_cast<std::uint32_t>(n); i-- > 0;) {
      const Sums sums = over_edges(*this, expectations_, i);
      // A loop that is never left is treated as one left once in kMaxExpectation calls.
      const double leave = loop[i] < 1 - 1 / kMaxExpectation ? 1 - loop[i] : 1 / kMaxExpectation;
      StepExpectation& step = expectations_[i];
      const auto update = [&changed, leave](double& old, double sum) {
        const double value = bounded(sum / leave);
        changed |= distance(value, old) > 1e-12 * value;
        old = value;
      };
      update(step.calls, sums.calls);
      update(step.output_tokens, sums.output_tokens);
      update(step.observation_tokens, sums.observation_tokens);
      update(step.gap_seconds, sums.gap_seconds);
    }
    if (!changed) break;
  }
  for (std::uint32_t i = 0; i < n; ++i) {
    double sum = 0;
    double ends = 0;
    for (std::uint32_t k = expectations_[i].first_edge; k < expectations_[i + 1].first_edge; ++k) {
      sum += edges[k].probability;
      ends += edges[k].probability * expectations_[edges[k].to].end_probability;
    }
    expectations_[i].next_end_probability = sum > 0 ? ends / sum : 0;
  }
}

std::uint32_t AgentGraph::match_step(std::uint32_t before, ToolClass tool, bool told) const {
  SAGA_ASSERT(prepared());
  const bool any = !told && tool == ToolClass::kNone;
  if (before == kNone) {
    if (any || steps[0].tool == tool) return 0;
  } else {
    std::uint32_t best[2] = {kNone, kNone};  // with that tool, without any
    double best_probability[2] = {0, 0};
    for (std::uint32_t e = expectations_[before].first_edge; e < expectations_[before + 1].first_edge; ++e) {
      const AgentEdge& edge = edges[e];
      const ToolClass declared = steps[edge.to].tool;
      if (!any && declared != tool && declared != ToolClass::kNone) continue;
      const std::uint32_t rank = any || declared == tool ? 0 : 1;
      if (edge.probability > best_probability[rank]) {
        best_probability[rank] = edge.probability;
        best[rank] = edge.to;
      }
    }
    if (best[0] != kNone) return best[0];
    if (best[1] != kNone) return best[1];
    if (any) return kNone;
  }
  for (std::uint32_t i = 0; i < steps.size(); ++i) {
    if (steps[i].tool == tool) return i;
  }
  return before == kNone && steps[0].tool == ToolClass::kNone ? 0 : kNone;
}

bool AgentGraph::verify() const {
  const auto valid = [](double value) { return value >= 0 && value <= kMaxExpectation; };
  if (!valid(first_prompt_tokens) || !valid(expected_calls) || !valid(expected_seconds)) return false;
  for (const AgentStep& step : steps) {
    if (!valid(step.output_tokens) || !valid(step.observation_tokens) || !valid(step.gap_seconds)) return false;
  }
  double sum = 0;
  for (std::size_t i = 0; i < edges.size(); ++i) {
    const AgentEdge& edge = edges[i];
    if (edge.from >= steps.size() || edge.to >= steps.size()) return false;
    if (!(edge.probability >= 0 && edge.probability <= 1)) return false;
    if (i > 0) {
      const AgentEdge& before = edges[i - 1];
      if (edge.from < before.from || (edge.from == before.from && edge.to <= before.to)) return false;
      if (edge.from != before.from) sum = 0;
    }
    sum += edge.probability;
    if (sum > 1.0 + 1e-9) return false;
  }
  if (!prepared()) return expectations_.empty();
  for (std::uint32_t i = 0; i < steps.size(); ++i) {
    const StepExpectation& step = expectations_[i];
    if (step.first_edge > expectations_[i + 1].first_edge) return false;
    if (!(step.end_probability >= 0 && step.end_probability <= 1)) return false;
    if (!valid(step.calls) || !valid(step.output_tokens) || !valid(step.observation_tokens)) return false;
    // Values beyond a millionth of the bound may have been cut, or stopped short by the number of sweeps.
    if (step.calls > 1e-6 * kMaxExpectation) continue;
    double calls = 0;
    for (std::uint32_t e = step.first_edge; e < expectations_[i + 1].first_edge; ++e) {
      if (edges[e].from != i) return false;
      const double behind = expectations_[edges[e].to].calls;
      calls += edges[e].probability * (1 + behind);
    }
    if (distance(calls, step.calls) > 1e-6 * (1 + calls)) return false;
  }
  return true;
}

}  // namespace saga
