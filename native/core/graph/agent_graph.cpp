#include "agent_graph.hpp"

namespace saga {

bool AgentGraph::verify() const {
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
  return true;
}

}  // namespace saga
