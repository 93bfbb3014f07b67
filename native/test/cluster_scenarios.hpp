// Random small clusters for the tests of the simulator and of its policies: tangled tasks on one to three workers, from thrashing
// to roomy, and the comparison of two runs that must be the same.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>

#include "../core/sim/cluster.hpp"
#include "agent_tasks.hpp"

namespace saga::test {

// Small tasks of every shape: chains that continue, chains that are cut back (compaction), forks that share their
//   prefix, joins, repeats.
inline Workload tangled(std::uint64_t seed, std::uint32_t tasks) {
  Random random(seed);
  WorkloadBuilder builder;
  const auto up_to = [&random](std::uint64_t bound) { return static_cast<std::uint32_t>(random.below(bound)); };
  std::uint64_t fresh = 1000;
  ThreadId thread = 0;
  Random before = random;
  std::uint64_t fresh_before = fresh;
  for (std::uint32_t t = 0; t < tasks; ++t) {
    if (t % 4 == 3) {  // the task before once more: the same contents, answers included
      random = before;
      fresh = fresh_before;
    }
    before = random;
    fresh_before = fresh;
    const std::uint64_t common = random.below(3) * 100;  // three system prompts of 20 blocks
    struct Branch {
      ThreadId thread;
      std::vector<std::pair<std::uint64_t, std::uint32_t>> ids;
      std::uint32_t prompt;
      std::vector<std::pair<CallId, Time>> after;
    };
    std::vector<Branch> open{{thread++, {{common, 20}}, 320 + up_to(16), {}}};
    const std::uint32_t calls = 1 + up_to(14);
    for (std::uint32_t i = 0; i < calls; ++i) {
      const std::size_t at = random.below(open.size());
      Branch& branch = open[at];
      const std::uint32_t output = 1 + up_to(90);
      const CallId call = builder.call(branch.thread, branch.prompt, output, branch.ids, branch.after,
                                       static_cast<ToolClass>(random.below(5)));
      const Time gap = random.below(3) == 0 ? 0 : random.below(2'000'000);
      branch.after = {{call, gap}};
      const std::uint32_t kind = up_to(10);
      if (kind < 6) {  // continue: the answer and an observation follow
        const std::uint32_t prompt = branch.prompt + output + up_to(100);
        std::uint32_t blocks = 0;
        for (const auto& run : branch.ids) blocks += run.second;
        if (prompt / 16 > blocks) {
          branch.ids.push_back({fresh, prompt / 16 - blocks});
          fresh += prompt / 16 - blocks;
        }
        branch.prompt = prompt;
      } else if (kind < 7) {  // cut back to the system prompt
        branch.ids = {{common, 20}, {fresh, 4}};
        fresh += 4;
        branch.prompt = 24 * 16 + up_to(16);
      } else if (kind < 9 && open.size() < 4) {  // fork: two branches with this prompt as their beginning
        Branch copy = branch;
        copy.thread = thread++;
        copy.ids.push_back({fresh, 3});
        fresh += 3;
        std::uint32_t blocks = 0;
        for (const auto& run : copy.ids) blocks += run.second;
        copy.prompt = blocks * 16 + up_to(16);
        open.push_back(copy);
      } else if (open.size() > 1) {  // join: another branch waits for this one
        open[at == 0 ? 1 : 0].after.push_back({call, gap / 2});
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
    builder.end_task();
  }
  return builder.get();
}

inline void expect_same(const ClusterResult& a, const ClusterResult& b) {
  EXPECT_EQ(a.task_completion, b.task_completion);
  ASSERT_EQ(a.calls.size(), b.calls.size());
  for (std::size_t i = 0; i < a.calls.size(); ++i) {
    ASSERT_EQ(a.calls[i].worker, b.calls[i].worker) << i;
    ASSERT_EQ(a.calls[i].sent, b.calls[i].sent) << i;
    ASSERT_EQ(a.calls[i].admitted, b.calls[i].admitted) << i;
    ASSERT_EQ(a.calls[i].first_token, b.calls[i].first_token) << i;
    ASSERT_EQ(a.calls[i].finished, b.calls[i].finished) << i;
  }
  EXPECT_EQ(a.missed_pages, b.missed_pages);
  EXPECT_EQ(a.evicted_pages, b.evicted_pages);
  EXPECT_EQ(a.optimum_missed_pages, b.optimum_missed_pages);
  EXPECT_EQ(a.regenerated_tokens, b.regenerated_tokens);
  EXPECT_EQ(a.prefilled_tokens, b.prefilled_tokens);
  EXPECT_EQ(a.output_tokens, b.output_tokens);
  EXPECT_EQ(a.preemptions, b.preemptions);
  EXPECT_EQ(a.preempted_tokens, b.preempted_tokens);
  EXPECT_EQ(a.loaded_tokens, b.loaded_tokens);
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_EQ(a.memory_utilization, b.memory_utilization);
  EXPECT_EQ(a.throughput_tokens_per_second, b.throughput_tokens_per_second);
  EXPECT_EQ(a.prefix_hit_rate, b.prefix_hit_rate);
}

struct Scenario {
  ClusterOptions options;
  std::uint32_t page_tokens = 16;
  Workload workload;
};

inline Scenario random_scenario(std::uint64_t seed) {
  Random random(seed + 1'000'000);
  Scenario scenario;
  scenario.workload = tangled(seed, 12);
  ClusterOptions& options = scenario.options;
  options.workers = 1 + static_cast<std::uint32_t>(random.below(3));
  options.hardware = static_cast<Hardware>(random.below(kHardwareCount));
  std::uint32_t longest = 0;
  for (CallId call = 0; call < scenario.workload.calls(); ++call) {
    longest = std::max(longest, scenario.workload.prompt_tokens[call] + scenario.workload.output_tokens[call]);
  }
  constexpr std::uint32_t kPageTokens[] = {16, 16, 16, 1, 8, 32, 48};
  scenario.page_tokens = kPageTokens[random.below(7)];
  options.kv_tokens =
      longest + scenario.page_tokens + random.below(random.below(2) == 0 ? 600 : 6'000);  // from thrashing to roomy
  options.max_sequences = 1 + static_cast<std::uint32_t>(random.below(20));
  options.token_budget = 32 + static_cast<std::uint32_t>(random.below(500));
  options.host_tier_tokens = random.below(3) == 0 ? 16 * random.below(400) : 0;
  options.policy.kind = static_cast<ClusterPolicyKind>(random.below(4));
  options.priority_scheduling = random.below(4) == 0;
  options.seed = seed;
  options.policy.seed = seed;
  if (random.below(2) == 0) {
    options.live = 1 + static_cast<std::uint32_t>(random.below(12));
  } else {
    options.rate = 0.2 + random.uniform() * 4;
  }
  options.record_calls = true;
  return scenario;
}

}  // namespace saga::test
