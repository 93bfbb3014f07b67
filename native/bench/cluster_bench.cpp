// Cluster simulator: time of whole runs on tasks like the paper's SWE-bench ones. Arguments: tasks, workers (2000, 16).
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "../core/sim/cluster.hpp"
#include "../test/agent_tasks.hpp"

namespace {

// Processor time: the machine may be shared.
double now_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

}  // namespace

int main(int argc, char** argv) {
  const auto tasks = static_cast<std::uint32_t>(argc > 1 ? std::atoi(argv[1]) : 2000);
  saga::ClusterOptions options;
  options.workers = static_cast<std::uint32_t>(argc > 2 ? std::atoi(argv[2]) : 16);
  const saga::Workload workload = saga::test::swe_bench_like(tasks, 42);
  double begin = now_seconds();
  const saga::PageTree tree = saga::PageTree::for_cluster(workload, 16);
  std::printf("%u tasks, %u calls, %u nodes, tree %.3f s\n", tasks, workload.calls(), tree.size(),
              now_seconds() - begin);

  begin = now_seconds();
  std::vector<saga::Time> ideal;
  if (saga::ideal_completion(workload, tree, options, &ideal) != saga::Status::kOk) return 1;
  std::printf("ideal %.3f s\n", now_seconds() - begin);
  options.ideal = &ideal;

  begin = now_seconds();
  double saturation = 0;
  std::atomic<std::uint64_t> runs{0};
  if (saga::find_saturation(workload, tree, options, &saturation, &runs) != saga::Status::kOk) return 1;
  std::printf("saturation %.4f tasks/s, %d runs, %.3f s\n", saturation, static_cast<int>(runs.load()),
              now_seconds() - begin);

  const struct {
    const char* name;
    saga::ClusterPolicyKind kind;
  } policies[] = {{"round-robin", saga::ClusterPolicyKind::kRoundRobin},
                  {"affinity", saga::ClusterPolicyKind::kAffinity},
                  {"wa-lru", saga::ClusterPolicyKind::kWaLru},
                  {"ttl", saga::ClusterPolicyKind::kTtl}};
  for (const double load : {0.5, 0.9, 1.1}) {
    for (const auto& policy : policies) {
      options.policy.kind = policy.kind;
      options.rate = load * saturation;
      saga::ClusterResult result;
      options.optimum = false;
      begin = now_seconds();
      if (saga::simulate_cluster(workload, tree, options, &result) != saga::Status::kOk) return 1;
      const double run = now_seconds() - begin;
      options.optimum = true;
      begin = now_seconds();
      if (saga::simulate_cluster(workload, tree, options, &result) != saga::Status::kOk) return 1;
      const double optimum = now_seconds() - begin - run;
      std::printf(
          "load %.1f %-11s run %.3f s (%.1f ns a token) optimum %.3f s | TCT %.1f p50 %.1f p95 %.1f p99 %.1f ideal "
          "%.1f "
          "hit %.4f belady %.3f cost %.3f regenerated %.1f M preempted %llu memory %.3f slo %.3f tokens/s %.0f steps "
          "%llu\n",
          load, policy.name, run, run * 1e9 / static_cast<double>(result.output_tokens), optimum,
          result.completion.mean, result.completion.p50, result.completion.p95, result.completion.p99,
          result.ideal_seconds, result.prefix_hit_rate, result.belady_ratio, result.cost_ratio,
          static_cast<double>(result.regenerated_tokens) / 1e6, static_cast<unsigned long long>(result.preemptions),
          result.memory_utilization, result.slo_attainment, result.throughput_tokens_per_second,
          static_cast<unsigned long long>(result.steps));
      std::fflush(stdout);
    }
  }
  return 0;
}
