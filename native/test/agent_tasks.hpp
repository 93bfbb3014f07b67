// Small workloads for tests and benchmarks of the cluster simulator: hand-made ones, and chains of calls drawn like the SWE-bench tasks of
// the SAGA paper (steps Gamma(2, 18.5) clipped to 150, prompt 2,000 to 4,000, answers 100 to 500, observations Gamma(2, 175), four
// classes of tools with log-normal times).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/sim/cluster.hpp"
#include "../core/sim/workload.hpp"

namespace saga::test {

class WorkloadBuilder {
 public:
  explicit WorkloadBuilder(std::uint32_t block_tokens = 16) {
    workload_.block_tokens = block_tokens;
    workload_.task_first_call.push_back(0);
    workload_.call_first_predecessor.push_back(0);
    workload_.call_first_run.push_back(0);
  }

  // A call of the task that is open. Its prompt: `ids` = (first id, number) runs, for its full blocks.
  CallId call(ThreadId thread, std::uint32_t prompt, std::uint32_t output,
              const std::vector<std::pair<std::uint64_t, std::uint32_t>>& ids,
              const std::vector<std::pair<CallId, Time>>& predecessors = {}, ToolClass tool = ToolClass::kNone) {
    const auto id = static_cast<CallId>(workload_.call_thread.size());
    workload_.call_thread.push_back(thread);
    workload_.prompt_tokens.push_back(prompt);
    workload_.output_tokens.push_back(output);
    workload_.prompt_kind.push_back(predecessors.empty() ? PromptKind::kStart : PromptKind::kTool);
    workload_.stop_reason.push_back(StopReason::kToolUse);
    workload_.tool_class.push_back(tool);
    for (const auto& [before, gap] : predecessors) {
      workload_.predecessor_call.push_back(before);
      workload_.predecessor_gap.push_back(gap);
    }
    workload_.call_first_predecessor.push_back(static_cast<std::uint32_t>(workload_.predecessor_call.size()));
    for (const auto& [first, length] : ids) {
      workload_.run_first_id.push_back(first);
      workload_.run_length.push_back(length);
    }
    workload_.call_first_run.push_back(static_cast<std::uint32_t>(workload_.run_first_id.size()));
    return id;
  }
  void end_task(std::uint32_t tenant = 0) {
    workload_.task_tenant.push_back(tenant);
    workload_.task_first_call.push_back(static_cast<std::uint32_t>(workload_.call_thread.size()));
  }
  const Workload& get() const { return workload_; }

 private:
  Workload workload_;
};

inline double gamma_of_two(Random& random, double scale) {
  const double first = exponential(random);
  return (first + exponential(random)) * scale;
}

inline Workload swe_bench_like(std::uint32_t tasks, std::uint64_t seed, std::uint32_t max_steps = 150) {
  struct Tool {
    double p50, p95;
  };
  constexpr Tool kTools[4] = {{180, 2400}, {45, 320}, {850, 4500}, {120, 890}};
  Random random(seed);
  WorkloadBuilder builder(16);
  std::uint64_t next_id = 0;
  const auto between = [&random](std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(random.below(high - low + 1));
  };
  for (std::uint32_t t = 0; t < tasks; ++t) {
    const double drawn = gamma_of_two(random, 18.5);
    const auto steps = static_cast<std::uint32_t>(std::clamp(drawn, 1.0, static_cast<double>(max_steps)));
    const std::uint32_t output = between(100, 500);
    const auto observation = std::max(1u, static_cast<std::uint32_t>(gamma_of_two(random, 175)));
    std::uint32_t prompt = between(2000, 4000);
    std::uint64_t first_id = next_id;
    CallId before = 0;
    Time gap = 0;
    for (std::uint32_t step = 0; step < steps; ++step) {
      const std::uint64_t draw = random.below(100);
      const std::uint32_t tool = draw < 45 ? 0u : draw < 85 ? 1u : draw < 95 ? 2u : 3u;
      std::vector<std::pair<CallId, Time>> predecessors;
      if (step > 0) predecessors.push_back({before, gap});
      before =
          builder.call(t, prompt, output, {{first_id, prompt / 16}}, predecessors, static_cast<ToolClass>(tool + 1));
      const double sigma = std::log(kTools[tool].p95 / kTools[tool].p50) / 1.6448536269514722;
      double normal = -6;
      for (int i = 0; i < 12; ++i) normal += random.uniform();
      gap = static_cast<Time>(std::max(1.0, kTools[tool].p50 * std::exp(sigma * normal)) * 1000);
      prompt += output + observation;
    }
    next_id = first_id + prompt / 16 + 1;
    builder.end_task();
  }
  return builder.get();
}

}  // namespace saga::test
