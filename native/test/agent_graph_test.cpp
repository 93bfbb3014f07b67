#include "../core/graph/agent_graph.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

AgentGraph chain_of_three() {
  AgentGraph graph;
  graph.steps = {{ToolClass::kFileOperation, 100, 50, 1.0},
                 {ToolClass::kCodeExecution, 200, 70, 5.0},
                 {ToolClass::kNone, 300, 0, 0.0}};
  graph.edges = {{0, 1, 1.0}, {1, 2, 1.0}};
  graph.prepare();
  return graph;
}

TEST(AgentGraph, ExpectationsOfAChain) {
  const AgentGraph graph = chain_of_three();
  ASSERT_TRUE(graph.prepared());
  ASSERT_TRUE(graph.verify());
  const StepExpectation& first = graph.expectation(0);
  EXPECT_DOUBLE_EQ(first.calls, 2);
  EXPECT_DOUBLE_EQ(first.output_tokens, 500);
  EXPECT_DOUBLE_EQ(first.observation_tokens, 120);
  EXPECT_DOUBLE_EQ(first.gap_seconds, 6);
  EXPECT_DOUBLE_EQ(first.end_probability, 0);
  EXPECT_DOUBLE_EQ(first.next_output_tokens, 200);
  EXPECT_DOUBLE_EQ(first.next_end_probability, 0);
  EXPECT_EQ(first.next_step, 1u);
  EXPECT_DOUBLE_EQ(graph.expectation(1).next_end_probability, 1);
  EXPECT_DOUBLE_EQ(graph.expectation(2).calls, 0);
  EXPECT_DOUBLE_EQ(graph.expectation(2).end_probability, 1);
  EXPECT_EQ(graph.expectation(2).next_step, kNone);
  EXPECT_DOUBLE_EQ(graph.total_calls(), 3);
}

TEST(AgentGraph, ExpectationsOfALoop) {
  AgentGraph graph;
  graph.steps = {{ToolClass::kWebApi, 100, 40, 2.0}};
  graph.edges = {{0, 0, 0.95}};
  graph.prepare();
  ASSERT_TRUE(graph.verify());
  EXPECT_NEAR(graph.expectation(0).calls, 19, 1e-9);
  EXPECT_NEAR(graph.expectation(0).output_tokens, 1900, 1e-7);
  EXPECT_NEAR(graph.expectation(0).observation_tokens, 760, 1e-7);
  EXPECT_NEAR(graph.expectation(0).gap_seconds, 38, 1e-8);
  EXPECT_NEAR(graph.expectation(0).end_probability, 0.05, 1e-12);
  EXPECT_NEAR(graph.total_calls(), 20, 1e-9);
  graph.expected_calls = 7;
  EXPECT_DOUBLE_EQ(graph.total_calls(), 7);
}

TEST(AgentGraph, ACycleThatIsNeverLeftStaysFinite) {
  AgentGraph graph;
  graph.steps.resize(2);
  graph.edges = {{0, 0, 1.0}, {1, 0, 0.5}, {1, 1, 0.5}};
  graph.prepare();
  EXPECT_TRUE(graph.verify());
  EXPECT_LE(graph.expectation(0).calls, AgentGraph::kMaxExpectation);
  EXPECT_GE(graph.expectation(0).calls, 0.5 * AgentGraph::kMaxExpectation);
}

TEST(AgentGraph, OnlyANumberOfCalls) {
  AgentGraph graph;
  graph.expected_calls = 5;
  graph.prepare();
  ASSERT_TRUE(graph.prepared());
  ASSERT_TRUE(graph.verify());
  EXPECT_NEAR(graph.expectation(0).calls, 4, 1e-9);
  AgentGraph empty;
  empty.prepare();
  EXPECT_FALSE(empty.prepared());
}

TEST(AgentGraph, MatchStep) {
  AgentGraph graph;
  graph.steps = {{ToolClass::kFileOperation, 0, 0, 0},
                 {ToolClass::kCodeExecution, 0, 0, 0},
                 {ToolClass::kFileOperation, 0, 0, 0},
                 {ToolClass::kNone, 0, 0, 0},
                 {ToolClass::kWebApi, 0, 0, 0}};
  graph.edges = {{0, 1, 0.3}, {0, 2, 0.5}, {0, 3, 0.2}, {1, 1, 0.4}, {1, 2, 0.4}};
  graph.prepare();
  ASSERT_TRUE(graph.verify());
  EXPECT_EQ(graph.match_step(kNone, ToolClass::kFileOperation, true), 0u);  // the first call is step 0
  EXPECT_EQ(graph.match_step(kNone, ToolClass::kCodeExecution, true), 1u);  // unless it visibly is another
  EXPECT_EQ(graph.match_step(0, ToolClass::kCodeExecution, true), 1u);
  EXPECT_EQ(graph.match_step(0, ToolClass::kFileOperation, true), 2u);
  EXPECT_EQ(graph.match_step(0, ToolClass::kNone, true), 3u);           // ended without a tool
  EXPECT_EQ(graph.match_step(0, ToolClass::kNone, false), 2u);          // nothing told: the most likely one
  EXPECT_EQ(graph.match_step(0, ToolClass::kDatabaseQuery, true), 3u);  // a step without a declared tool takes any
  EXPECT_EQ(graph.match_step(1, ToolClass::kWebApi, true), 4u);         // not a successor, but declared
  EXPECT_EQ(graph.match_step(1, ToolClass::kDatabaseQuery, true), kNone);
  EXPECT_EQ(graph.match_step(1, ToolClass::kNone, false), 1u);  // equal probabilities: the smaller
  EXPECT_EQ(graph.match_step(3, ToolClass::kNone, false), kNone);
}

TEST(AgentGraph, VerifyFindsWhatIsWrong) {
  const AgentGraph good = chain_of_three();
  ASSERT_TRUE(good.verify());
  AgentGraph graph = good;
  graph.edges[1].to = 3;
  EXPECT_FALSE(graph.verify());
  graph = good;
  graph.edges[0].probability = 1.5;
  EXPECT_FALSE(graph.verify());
  graph = good;
  graph.edges = {{1, 2, 1.0}, {0, 1, 1.0}};
  EXPECT_FALSE(graph.verify());
  graph = good;
  graph.edges = {{0, 1, 0.7}, {0, 2, 0.7}};
  EXPECT_FALSE(graph.verify());
  graph = good;
  graph.edges[0].probability = 0.5;  // changed after prepare()
  EXPECT_FALSE(graph.verify());
  graph = good;
  graph.steps[0].gap_seconds = -1;
  EXPECT_FALSE(graph.verify());
}

// Expectations as sums over time of the distribution of where the task is.
TEST(AgentGraph, RandomGraphsAgainstForwardSums) {
  Random random(11);
  for (int round = 0; round < 40; ++round) {
    AgentGraph graph;
    const auto n = static_cast<std::uint32_t>(1 + random.below(7));
    for (std::uint32_t i = 0; i < n; ++i) {
      graph.steps.push_back({static_cast<ToolClass>(random.below(5)), 10.0 + random.uniform() * 300,
                             random.uniform() * 500, random.uniform() * 10});
    }
    for (std::uint32_t i = 0; i < n; ++i) {
      double left = 0.97;
      for (std::uint32_t j = 0; j < n; ++j) {
        if (random.below(2) == 0) continue;
        const double p = left * random.uniform();
        graph.edges.push_back({i, j, p});
        left -= p;
      }
    }
    graph.prepare();
    ASSERT_TRUE(graph.verify());
    for (std::uint32_t start = 0; start < n; ++start) {
      std::vector<double> at(n, 0.0);
      at[start] = 1;
      double calls = 0, output = 0, observation = 0, gap = 0;
      for (int t = 0; t < 3000; ++t) {
        std::vector<double> next(n, 0.0);
        for (const AgentEdge& edge : graph.edges) {
          const double p = at[edge.from] * edge.probability;
          next[edge.to] += p;
          calls += p;
          output += p * graph.steps[edge.to].output_tokens;
          observation += p * graph.steps[edge.from].observation_tokens;
          gap += p * graph.steps[edge.from].gap_seconds;
        }
        at = next;
      }
      const StepExpectation& step = graph.expectation(start);
      EXPECT_NEAR(step.calls, calls, 1e-6 * (1 + calls));
      EXPECT_NEAR(step.output_tokens, output, 1e-6 * (1 + output));
      EXPECT_NEAR(step.observation_tokens, observation, 1e-6 * (1 + observation));
      EXPECT_NEAR(step.gap_seconds, gap, 1e-6 * (1 + gap));
    }
  }
}

}  // namespace
}  // namespace saga
