// Checks and copies the columns of a workload. O(columns).
#pragma once

#include <cstdint>
#include <vector>

#include "../core/sim/workload.hpp"
#include "check.hpp"

namespace saga::capi {

inline constexpr std::uint64_t kMostTime = std::uint64_t{1} << 53;  // what a JavaScript number holds exactly

// Offsets of a ragged array: 0 first, never falling, `total` last.
inline bool offsets_valid(const std::uint32_t* offsets, std::uint32_t rows, std::uint32_t total,
                          std::uint32_t least_per_row) {
  if (offsets == nullptr || offsets[0] != 0 || offsets[rows] != total) return false;
  for (std::uint32_t row = 0; row < rows; ++row) {
    if (offsets[row + 1] < offsets[row] || offsets[row + 1] - offsets[row] < least_per_row) return false;
  }
  return true;
}

// Declared values: finite, not negative, and small enough that sums of them stay exact enough to mean something.
inline bool declared_value(double value) { return value >= 0 && value <= 0x1p53; }

inline bool graphs_valid(const saga_workload_columns_t& columns) {
  if (columns.graph_count > (1u << 12) || columns.step_count > (1u << 16) || columns.edge_count > (1u << 20) ||
      !is_array(columns.graph, columns.graph_count) || !is_array(columns.step, columns.step_count) ||
      !is_array(columns.edge, columns.edge_count)) {
    return false;
  }
  std::uint64_t steps = 0;
  std::uint64_t edges = 0;
  for (std::uint32_t g = 0; g < columns.graph_count; ++g) {
    const saga_agent_graph_t& graph = columns.graph[g];
    if (graph.first_step != steps || graph.first_edge != edges || graph.step_count == 0 ||
        !declared_value(graph.first_prompt_tokens) || !declared_value(graph.expected_calls) ||
        !declared_value(graph.expected_seconds)) {
      return false;
    }
    steps += graph.step_count;
    edges += graph.edge_count;
    if (steps > columns.step_count || edges > columns.edge_count) return false;
  }
  if (steps != columns.step_count || edges != columns.edge_count) return false;
  for (std::uint32_t i = 0; i < columns.step_count; ++i) {
    const saga_agent_step_t& step = columns.step[i];
    if (step.tool_class > SAGA_TOOL_DATABASE_QUERY || step.reserved != 0 || !declared_value(step.output_tokens) ||
        !declared_value(step.observation_tokens) || !declared_value(step.gap_seconds)) {
      return false;
    }
  }
  return true;  // edges: AgentGraph::verify()
}

inline AgentGraph copy_graph(const saga_workload_columns_t& columns, const saga_agent_graph_t& given) {
  AgentGraph graph;
  graph.steps.reserve(given.step_count);
  for (std::uint32_t i = 0; i < given.step_count; ++i) {
    const saga_agent_step_t& step = columns.step[given.first_step + i];
    graph.steps.push_back(
        {static_cast<ToolClass>(step.tool_class), step.output_tokens, step.observation_tokens, step.gap_seconds});
  }
  graph.edges.reserve(given.edge_count);
  for (std::uint32_t i = 0; i < given.edge_count; ++i) {
    const saga_agent_edge_t& edge = columns.edge[given.first_edge + i];
    graph.edges.push_back({edge.from, edge.to, edge.probability});
  }
  graph.first_prompt_tokens = given.first_prompt_tokens;
  graph.expected_calls = given.expected_calls;
  graph.expected_seconds = given.expected_seconds;
  return graph;
}

inline bool workload_columns_valid(const saga_workload_columns_t& columns) {
  constexpr std::uint32_t kMostTokens = 1u << 28;
  if (!in_range(columns.block_tokens, 1, 4096) || columns.task_count == 0 || columns.call_count == 0 ||
      columns.call_count == kNone || columns.task_tenant == nullptr || columns.call_thread == nullptr ||
      columns.prompt_tokens == nullptr || columns.output_tokens == nullptr || columns.prompt_kind == nullptr ||
      columns.stop_reason == nullptr || columns.tool_class == nullptr ||
      !is_array(columns.predecessor_call, columns.predecessor_count) ||
      !is_array(columns.predecessor_gap, columns.predecessor_count) ||
      !is_array(columns.run_first_id, columns.run_count) || !is_array(columns.run_length, columns.run_count) ||
      !offsets_valid(columns.task_first_call, columns.task_count, columns.call_count, 1) ||
      !offsets_valid(columns.call_first_predecessor, columns.call_count, columns.predecessor_count, 0) ||
      !offsets_valid(columns.call_first_run, columns.call_count, columns.run_count, 0) ||
      columns.tenant_count > (1u << 20) || !is_array(columns.tenant_weight, columns.tenant_count) ||
      !graphs_valid(columns)) {
    return false;
  }
  for (std::uint32_t tenant = 0; tenant < columns.tenant_count; ++tenant) {
    if (!(columns.tenant_weight[tenant] > 0 && columns.tenant_weight[tenant] <= 1e6)) return false;
  }
  for (std::uint32_t task = 0; task < columns.task_count; ++task) {
    if (columns.task_expected != nullptr && columns.task_expected[task] > kMostTime) return false;
    if (columns.task_graph != nullptr && columns.task_graph[task] >= columns.graph_count &&
        columns.task_graph[task] != kNone) {
      return false;
    }
    for (std::uint32_t call = columns.task_first_call[task]; call < columns.task_first_call[task + 1]; ++call) {
      if (columns.call_thread[call] >= columns.call_count || !in_range(columns.prompt_tokens[call], 1, kMostTokens) ||
          !in_range(columns.output_tokens[call], 1, kMostTokens) || columns.prompt_kind[call] > SAGA_PROMPT_USER ||
          columns.stop_reason[call] > SAGA_STOP_END_TURN || columns.tool_class[call] > SAGA_TOOL_DATABASE_QUERY) {
        return false;
      }
      for (std::uint32_t i = columns.call_first_predecessor[call]; i < columns.call_first_predecessor[call + 1]; ++i) {
        if (columns.predecessor_call[i] < columns.task_first_call[task] || columns.predecessor_call[i] >= call ||
            columns.predecessor_gap[i] > kMostTime) {
          return false;
        }
      }
      std::uint64_t blocks = 0;
      for (std::uint32_t run = columns.call_first_run[call]; run < columns.call_first_run[call + 1]; ++run) {
        if (columns.run_length[run] == 0 || columns.run_first_id[run] > UINT64_MAX - columns.run_length[run])
          return false;
        blocks += columns.run_length[run];
      }
      if (blocks > kMostTokens) return false;
    }
  }
  return true;
}

// Graphs are copied unchecked: verify() and prepare() are the caller's.
inline Workload copy_workload(const saga_workload_columns_t& columns) {
  const auto copy = [](auto& to, const auto* from, std::size_t count) { to.assign(from, from + count); };
  const auto copy_enum = [](auto& to, const std::uint8_t* from, std::size_t count) {
    to.resize(count);
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<std::remove_reference_t<decltype(to[0])>>(from[i]);
  };
  Workload workload;
  const std::size_t tasks = columns.task_count;
  const std::size_t calls = columns.call_count;
  workload.block_tokens = columns.block_tokens;
  copy(workload.task_tenant, columns.task_tenant, tasks);
  copy(workload.task_first_call, columns.task_first_call, tasks + 1);
  copy(workload.call_thread, columns.call_thread, calls);
  copy(workload.prompt_tokens, columns.prompt_tokens, calls);
  copy(workload.output_tokens, columns.output_tokens, calls);
  copy_enum(workload.prompt_kind, columns.prompt_kind, calls);
  copy_enum(workload.stop_reason, columns.stop_reason, calls);
  copy_enum(workload.tool_class, columns.tool_class, calls);
  copy(workload.call_first_predecessor, columns.call_first_predecessor, calls + 1);
  copy(workload.predecessor_call, columns.predecessor_call, columns.predecessor_count);
  copy(workload.predecessor_gap, columns.predecessor_gap, columns.predecessor_count);
  copy(workload.call_first_run, columns.call_first_run, calls + 1);
  copy(workload.run_first_id, columns.run_first_id, columns.run_count);
  copy(workload.run_length, columns.run_length, columns.run_count);
  copy(workload.tenant_weight, columns.tenant_weight, columns.tenant_count);
  if (columns.task_graph != nullptr) copy(workload.task_graph, columns.task_graph, tasks);
  workload.graphs.reserve(columns.graph_count);
  for (std::uint32_t g = 0; g < columns.graph_count; ++g)
    workload.graphs.push_back(copy_graph(columns, columns.graph[g]));
  return workload;
}

}  // namespace saga::capi
