// SAGA's scheduler in the engine: lives of calls, copies, leases and threads, refusals, random events, and the simulated cluster
// driven by the engine against the same cluster driven by the scheduler itself.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <ostream>
#include <vector>

#include "../core/engine/engine.hpp"
#include "../core/place/saga_scheduler.hpp"
#include "../core/sim/engine_placement.hpp"
#include "cluster_scenarios.hpp"

namespace saga {

void PrintTo(Status status, std::ostream* out) { *out << "status " << static_cast<int>(status); }

namespace {

using test::expect_same;
using test::random_scenario;
using test::Scenario;

using Bytes = std::vector<std::uint8_t>;

void append(void* context, const std::uint8_t* bytes, std::size_t count) {
  auto& stream = *static_cast<Bytes*>(context);
  stream.insert(stream.end(), bytes, bytes + count);
}

// Declares for each task a chain of its own number of calls.
void declare_graphs(Workload& workload) {
  workload.task_graph.assign(workload.tasks(), kNone);
  for (std::uint32_t task = 0; task < workload.tasks(); ++task) {
    if (task % 3 == 2) continue;
    AgentGraph graph;
    graph.steps.push_back({ToolClass::kNone, 40.0 + task, 50, 0.5});
    graph.expected_calls = workload.task_first_call[task + 1] - workload.task_first_call[task];
    graph.expected_seconds = 10 + task;
    graph.edges.push_back({0, 0, 1 - 1 / graph.expected_calls});
    graph.prepare();
    workload.task_graph[task] = static_cast<std::uint32_t>(workload.graphs.size());
    workload.graphs.push_back(graph);
  }
}

struct Outcomes {
  std::uint64_t calls = 0, copies = 0, leases = 0, held = 0, steals = 0, preempting = 0;
};

void compare(Scenario& scenario, Outcomes* outcomes) {
  scenario.options.policy.kind = ClusterPolicyKind::kSaga;
  const PageTree tree = PageTree::for_cluster(scenario.workload, scenario.page_tokens);
  const auto capacity = static_cast<std::uint32_t>(scenario.options.kv_tokens / scenario.page_tokens);
  Bytes journal;
  EnginePlacement engine(scenario.workload, tree, scenario.options.workers, capacity, PlacementKind::kSaga,
                         scenario.options.policy.seed, append, &journal,
                         EnginePlacement::scheduling_for(scenario.options.policy, scenario.options, scenario.workload));
  ClusterResult direct;
  ClusterResult through_engine;
  ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &direct), Status::kOk);
  ASSERT_EQ(simulate_cluster(scenario.workload, tree, scenario.options, &through_engine, nullptr, &engine, &engine),
            Status::kOk);
  ASSERT_EQ(engine.status(), Status::kOk);
  expect_same(direct, through_engine);
  EXPECT_EQ(direct.copied_pages, through_engine.copied_pages);
  EXPECT_EQ(direct.held_calls, through_engine.held_calls);
  EXPECT_EQ(direct.steals, through_engine.steals);
  EXPECT_EQ(direct.leases.granted, through_engine.leases.granted);
  EXPECT_EQ(direct.leases.revoked, through_engine.leases.revoked);
  EXPECT_TRUE(engine.engine().verify());
  EXPECT_EQ(engine.engine().stats().placed_calls, scenario.workload.calls());
  engine.finish_journal();
  EngineOptions options;
  ASSERT_EQ(read_journal_options(journal, &options), Status::kOk);
  Engine rebuilt(options);
  const ReplayResult replayed = replay_journal(journal, rebuilt);
  ASSERT_EQ(replayed.status, Status::kOk);
  EXPECT_EQ(rebuilt.digest(), engine.engine().digest());
  EXPECT_GE(replayed.decisions, scenario.workload.calls());
  outcomes->calls += scenario.workload.calls();
  outcomes->copies += direct.copied_pages;
  outcomes->leases += direct.leases.granted;
  outcomes->held += direct.held_calls;
  outcomes->steals += direct.steals;
}

TEST(EngineSaga, TheSimulatedClusterRunsTheSameThroughTheEngine) {
  Outcomes outcomes;
  for (std::uint64_t seed = 500; seed < 580; ++seed) {
    SCOPED_TRACE(seed);
    Scenario scenario = random_scenario(seed);
    scenario.options.host_tier_tokens = 0;  // of which no KV events are told
    if (seed % 2 == 0) declare_graphs(scenario.workload);
    if (seed % 3 == 0) {
      for (std::uint32_t task = 0; task < scenario.workload.tasks(); ++task) {
        scenario.workload.task_tenant[task] = task % 3;
      }
      scenario.workload.tenant_weight = {1, 2.5};
    }
    scenario.options.policy.without = seed % 5 == 4 ? (1u << (seed / 5 % 8)) : 0;
    compare(scenario, &outcomes);
    if (HasFatalFailure()) return;
  }
  std::printf("calls %llu copied %llu leases %llu held %llu steals %llu\n",
              static_cast<unsigned long long>(outcomes.calls), static_cast<unsigned long long>(outcomes.copies),
              static_cast<unsigned long long>(outcomes.leases), static_cast<unsigned long long>(outcomes.held),
              static_cast<unsigned long long>(outcomes.steals));
  EXPECT_GT(outcomes.calls, 1000u);
}

}  // namespace
}  // namespace saga
