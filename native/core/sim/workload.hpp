// A workload: the tasks that a simulation plays, as columns.
//
// A **task** is one agent workflow (a session of a trace). It is made of **calls** to the model; a call starts when all of its
// predecessors have answered and its gap (tool run, human) after each has passed, so a task is a small DAG: a chain for a
// plain agent, with branches where sub-agents run and joins where the parent waits for them. A **thread** is one agent of one
// task: its calls follow each other, and eviction policies learn and score by thread.
//
// The prompt of a call is a sequence of **blocks** of `block_tokens` tokens, given as runs of consecutive ids. An id names
// content; what a prefix cache sees is the chain of ids, so the page tree (evict/page_tree.hpp) re-chains them. Tokens behind
// the last full block have no id. Simulated pages may be larger than a block (a whole number of blocks) or smaller (a block is
// a whole number of pages).
//
// Columns come from the C ABI, are checked there and copied here; afterwards a workload never changes, so that any number of
// simulations (also on other threads) can share it.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/types.hpp"
#include "../graph/agent_graph.hpp"

namespace saga {

struct Workload {
  std::uint32_t block_tokens = 16;  // tokens of one block id: 16, 64 or 512 in practice

  // Per task, in the order in which tasks start.
  std::vector<std::uint32_t> task_tenant;      // dense tenant id
  std::vector<std::uint32_t> task_first_call;  // [tasks + 1]; the calls of task t are [first[t], first[t + 1])
  std::vector<std::uint32_t> task_graph;       // index into graphs, kNone: nothing declared; empty: for no task
  std::vector<AgentGraph> graphs;              // declared classes of tasks
  std::vector<double> tenant_weight;           // of its fair share; tenants behind the end have weight 1

  // Per call; the calls of a task lie together, every predecessor before its successors.
  std::vector<ThreadId> call_thread;         // dense over the whole workload
  std::vector<std::uint32_t> prompt_tokens;  // at least 1
  std::vector<std::uint32_t> output_tokens;  // at least 1
  std::vector<PromptKind> prompt_kind;
  std::vector<StopReason> stop_reason;
  std::vector<ToolClass> tool_class;  // the tool that the answer calls

  // Predecessors of call c: [call_first_predecessor[c], call_first_predecessor[c + 1]). None: the call starts with its task.
  std::vector<std::uint32_t> call_first_predecessor;  // [calls + 1]
  std::vector<std::uint32_t> predecessor_call;        // absolute call number, same task, smaller than the call itself
  std::vector<Time> predecessor_gap;                  // microseconds between that answer and this call

  // Blocks of the prompt of call c: the runs [call_first_run[c], call_first_run[c + 1]); run r = ids first, first + 1, ...
  std::vector<std::uint32_t> call_first_run;  // [calls + 1]
  std::vector<std::uint64_t> run_first_id;
  std::vector<std::uint32_t> run_length;  // at least 1

  std::uint32_t tasks() const { return static_cast<std::uint32_t>(task_tenant.size()); }
  std::uint32_t calls() const { return static_cast<std::uint32_t>(call_thread.size()); }
};

// The order and times at which one shared cache sees the calls of a workload (cache mode): requests in order of start. A
// workload without call durations (atomic model only) has end == start.
struct CacheSchedule {
  std::vector<CallId> call;
  std::vector<Time> start;
  std::vector<Time> end;
  // What clients tell with the answer, by position in the schedule; empty: nothing. session_end: 1 for the last call of its
  // thread. declared_gap: the time that the coming tool will take, kNotDeclared where nothing is said.
  std::vector<std::uint8_t> session_end;
  std::vector<Time> declared_gap;
};

}  // namespace saga
