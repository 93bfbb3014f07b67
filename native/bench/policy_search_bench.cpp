// Parameter search for the policies of the simulated cluster: mean completion time over the ideal, for every setting, on
// tasks like the paper's SWE-bench and WebArena ones (src/workload/paper-workloads.ts), over loads and seeds. Load 1 is
// the rate at which `affinity` takes 3 times the ideal. A setting is judged by the geometric mean over mixes and loads.
//
//   policy_search POLICY|all [index=value,value,..].. [tasks=400] [workers=4] [seeds=2] [loads=0.5,0.8,0.9,1,1.1]
//                 [mix=swe,web,tenants] [hints=1] [host=0] [without=0] [detail=0]
//
// `all` runs every policy with its defaults. index=values names the values of a parameter to try (all combinations).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "../core/sim/cluster.hpp"

namespace {

using saga::Random;

struct TaskClass {
  double steps_scale;
  std::uint32_t longest;
  std::uint32_t prompt_low, prompt_high;
  std::uint32_t output_low, output_high;
  double observation_scale;
  double mix[4];
  double expected_seconds;
  std::uint32_t tenants;
  double rate;
  double weight;
};

struct Mix {
  const char* name;
  std::vector<TaskClass> classes;
};

const std::vector<Mix>& mixes() {
  static const std::vector<Mix> all = {
      {"swe", {{18.5, 150, 2000, 4000, 100, 500, 175, {0.45, 0.4, 0.1, 0.05}, 200, 1, 8, 1}}},
      {"web", {{9, 80, 4000, 8000, 50, 200, 400, {0.05, 0.15, 0.75, 0.05}, 80, 1, 8, 1}}},
      {"tenants",
       {{50, 200, 3000, 5000, 200, 600, 200, {0.5, 0, 0.5, 0}, 120, 3, 16, 3},
        {15, 80, 2000, 4000, 100, 400, 200, {0.5, 0, 0.5, 0}, 36, 4, 8, 2},
        {5, 30, 1500, 3000, 50, 200, 200, {0.5, 0, 0.5, 0}, 12, 3, 4, 1}}}};
  return all;
}

struct Tool {
  double p50, p95;
  double mu() const { return std::log(p50); }
  double sigma() const { return std::log(p95 / p50) / 1.6448536269514722; }
  double mean_seconds() const { return std::exp(mu() + sigma() * sigma() / 2) / 1000; }
};
constexpr Tool kTools[4] = {{180, 2400}, {45, 320}, {850, 4500}, {120, 890}};

double normal(Random& random) {
  return std::sqrt(-2 * std::log(1 - random.uniform())) * std::cos(6.283185307179586 * random.uniform());
}

double gamma_of_two(Random& random, double scale) {
  const double first = saga::exponential(random);
  return (first + saga::exponential(random)) * scale;
}

std::uint32_t between(Random& random, std::uint32_t low, std::uint32_t high) {
  return low + static_cast<std::uint32_t>(random.below(high - low + 1));
}

std::uint32_t weighted(Random& random, const double* weights, std::uint32_t count) {
  double sum = 0;
  for (std::uint32_t i = 0; i < count; ++i) sum += weights[i];
  double left = random.uniform() * sum;
  for (std::uint32_t i = 0; i + 1 < count; ++i) {
    left -= weights[i];
    if (left < 0) return i;
  }
  return count - 1;
}

// A step for each tool class, an edge to each of the class's mix; what they leave of 1 is the end of the task.
saga::AgentGraph graph_of(const TaskClass& one) {
  saga::AgentGraph graph;
  const double mean_steps = 2 * one.steps_scale;
  std::vector<std::uint32_t> tools;
  for (std::uint32_t tool = 0; tool < 4; ++tool) {
    if (one.mix[tool] > 0) tools.push_back(tool);
  }
  for (const std::uint32_t tool : tools) {
    graph.steps.push_back({static_cast<saga::ToolClass>(tool + 1), (one.output_low + one.output_high) / 2.0,
                           2 * one.observation_scale, kTools[tool].mean_seconds()});
  }
  for (std::uint32_t from = 0; from < tools.size(); ++from) {
    for (std::uint32_t to = 0; to < tools.size(); ++to) {
      graph.edges.push_back({from, to, one.mix[tools[to]] * (1 - 1 / mean_steps)});
    }
  }
  graph.first_prompt_tokens = (one.prompt_low + one.prompt_high) / 2.0;
  graph.expected_calls = mean_steps;
  graph.expected_seconds = one.expected_seconds;
  return graph;
}

saga::Workload generate(const Mix& mix, std::uint32_t tasks, std::uint64_t seed) {
  saga::Workload workload;
  workload.block_tokens = 16;
  workload.task_first_call.push_back(0);
  workload.call_first_predecessor.push_back(0);
  workload.call_first_run.push_back(0);
  std::vector<double> rates;
  std::vector<std::uint32_t> first_tenant;
  for (const TaskClass& one : mix.classes) {
    first_tenant.push_back(static_cast<std::uint32_t>(workload.tenant_weight.size()));
    for (std::uint32_t i = 0; i < one.tenants; ++i) workload.tenant_weight.push_back(one.weight);
    rates.push_back(one.tenants * one.rate);
    workload.graphs.push_back(graph_of(one));
  }
  Random random(seed);
  std::uint64_t next_id = 0;
  for (std::uint32_t task = 0; task < tasks; ++task) {
    const std::uint32_t drawn = weighted(random, rates.data(), static_cast<std::uint32_t>(rates.size()));
    const TaskClass& one = mix.classes[drawn];
    const std::uint32_t tenant = first_tenant[drawn] + static_cast<std::uint32_t>(random.below(one.tenants));
    const double wanted = std::round(gamma_of_two(random, one.steps_scale));
    const auto steps = static_cast<std::uint32_t>(std::min<double>(one.longest, std::max(1.0, wanted)));
    std::uint32_t context = between(random, one.prompt_low, one.prompt_high);
    const std::uint32_t output = between(random, one.output_low, one.output_high);
    const auto observation =
        static_cast<std::uint32_t>(std::max(1.0, std::round(gamma_of_two(random, one.observation_scale))));
    for (std::uint32_t step = 0; step < steps; ++step) {
      const bool last = step + 1 == steps;
      const std::uint32_t tool = weighted(random, one.mix, 4);
      const auto call = static_cast<std::uint32_t>(workload.call_thread.size());
      workload.call_thread.push_back(task);
      workload.prompt_tokens.push_back(context);
      workload.output_tokens.push_back(output);
      workload.prompt_kind.push_back(step == 0 ? saga::PromptKind::kStart : saga::PromptKind::kTool);
      workload.stop_reason.push_back(last ? saga::StopReason::kEndTurn : saga::StopReason::kToolUse);
      workload.tool_class.push_back(last ? saga::ToolClass::kNone : static_cast<saga::ToolClass>(tool + 1));
      if (step > 0) workload.predecessor_call.push_back(call - 1);
      workload.call_first_predecessor.push_back(static_cast<std::uint32_t>(workload.predecessor_call.size()));
      workload.run_first_id.push_back(next_id);
      workload.run_length.push_back(context / 16);
      workload.call_first_run.push_back(static_cast<std::uint32_t>(workload.run_first_id.size()));
      if (last) {
        next_id += context / 16;
        break;
      }
      const double milliseconds = std::max(1.0, std::exp(kTools[tool].mu() + kTools[tool].sigma() * normal(random)));
      workload.predecessor_gap.push_back(static_cast<saga::Time>(std::min(milliseconds * 1e3, 1.8e9)));
      context += output + observation;
    }
    workload.task_tenant.push_back(tenant);
    workload.task_graph.push_back(drawn);
    workload.task_first_call.push_back(static_cast<std::uint32_t>(workload.call_thread.size()));
  }
  return workload;
}

constexpr const char* kNames[saga::kClusterPolicyKindCount] = {"round-robin", "affinity",  "wa-lru",        "ttl",
                                                               "kv-router",   "continuum", "thunder-agent", "kv-flow",
                                                               "saga-paper",  "saga"};

std::vector<double> numbers(const char* text) {
  std::vector<double> result;
  while (*text != 0) {
    char* end = nullptr;
    result.push_back(std::strtod(text, &end));
    if (end == text) std::exit(2);
    text = *end == ',' ? end + 1 : end;
  }
  return result;
}

struct Prepared {
  const Mix* mix;
  saga::Workload workload;
  saga::PageTree tree;
  std::vector<saga::Time> ideal;
  double saturation;
  std::uint64_t seed;
};

struct Search {
  std::uint32_t tasks = 400;
  std::uint32_t seeds = 2;
  std::vector<double> loads = {0.5, 0.8, 0.9, 1.0, 1.1};
  std::string mix = "swe,web";
  bool detail = false;
  saga::ClusterOptions options;
  std::vector<std::vector<double>> values{saga::kPolicyParameters};
};

std::vector<Prepared> prepare(const Search& search) {
  std::vector<Prepared> result;
  for (const Mix& mix : mixes()) {
    const std::string wanted = std::string(",").append(search.mix).append(",");
    if (wanted.find(std::string(",").append(mix.name).append(",")) == std::string::npos) continue;
    for (std::uint64_t seed = 1; seed <= search.seeds; ++seed) {
      saga::Workload workload = generate(mix, search.tasks, seed);
      saga::PageTree tree = saga::PageTree::for_cluster(workload, 16);
      Prepared one{&mix, std::move(workload), std::move(tree), {}, 0, seed};
      saga::ClusterOptions options = search.options;
      options.seed = seed;
      options.policy.kind = saga::ClusterPolicyKind::kAffinity;
      options.policy.seed = seed;
      if (saga::ideal_completion(one.workload, one.tree, options, &one.ideal) != saga::Status::kOk) std::exit(1);
      options.ideal = &one.ideal;
      if (saga::find_saturation(one.workload, one.tree, options, &one.saturation) != saga::Status::kOk) std::exit(1);
      result.push_back(std::move(one));
    }
  }
  return result;
}

// Prints a line: mean completion / ideal for each mix and load (mean over seeds), and their geometric mean.
void run(const Search& search, const std::vector<Prepared>& prepared, const saga::ClusterPolicyOptions& policy) {
  double logs = 0;
  std::uint32_t cells = 0;
  const std::clock_t begin = std::clock();
  for (std::size_t first = 0; first < prepared.size(); first += search.seeds) {
    std::printf(" | %s", prepared[first].mix->name);
    for (const double load : search.loads) {
      double sum = 0;
      for (std::size_t i = first; i < first + search.seeds; ++i) {
        const Prepared& one = prepared[i];
        saga::ClusterOptions options = search.options;
        options.policy = policy;
        options.policy.seed = one.seed;
        options.seed = one.seed;
        options.ideal = &one.ideal;
        options.rate = load * one.saturation;
        options.optimum = false;
        saga::ClusterResult result;
        if (saga::simulate_cluster(one.workload, one.tree, options, &result) != saga::Status::kOk) {
          std::printf(" failed\n");
          return;
        }
        sum += result.completion.mean / result.ideal_seconds;
        if (search.detail) {
          std::printf(
              "\n    %s seed %d load %.2f: mean %.1f p50 %.1f p95 %.1f ideal %.1f hit %.3f regenerated %.1fM "
              "preempted %d (%.1fM) copied %d memory %.2f leases %d/%d/%d/%d/%d slo %.2f\n   ",
              one.mix->name, static_cast<int>(one.seed), load, result.completion.mean, result.completion.p50,
              result.completion.p95, result.ideal_seconds, result.prefix_hit_rate,
              static_cast<double>(result.regenerated_tokens) * 1e-6, static_cast<int>(result.preemptions),
              static_cast<double>(result.preempted_tokens) * 1e-6, static_cast<int>(result.copied_pages),
              result.memory_utilization, static_cast<int>(result.leases.granted),
              static_cast<int>(result.leases.refused), static_cast<int>(result.leases.expired),
              static_cast<int>(result.leases.released), static_cast<int>(result.leases.revoked), result.slo_attainment);
        }
      }
      const double mean = sum / search.seeds;
      std::printf(" %5.2f", mean);
      logs += std::log(mean);
      ++cells;
    }
  }
  std::printf(" | all %.3f  (%.1f s)\n", std::exp(logs / cells),
              static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  std::fflush(stdout);
}

void run_all_settings(const Search& search, const std::vector<Prepared>& prepared, saga::ClusterPolicyOptions& policy,
                      std::uint32_t index) {
  if (index == saga::kPolicyParameters) {
    std::printf("%-13s", kNames[static_cast<std::uint32_t>(policy.kind)]);
    for (std::uint32_t i = 0; i < saga::kPolicyParameters; ++i) {
      if (!search.values[i].empty()) std::printf(" %u=%g", i, policy.parameters[i]);
    }
    run(search, prepared, policy);
    return;
  }
  if (search.values[index].empty()) return run_all_settings(search, prepared, policy, index + 1);
  for (const double value : search.values[index]) {
    policy.parameters[index] = value;
    run_all_settings(search, prepared, policy, index + 1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "policy_search POLICY|all [index=value,value,..].. [name=value]..\n");
    return 2;
  }
  Search search;
  search.options.workers = 4;
  std::uint32_t without = 0;
  for (int i = 2; i < argc; ++i) {
    const char* equals = std::strchr(argv[i], '=');
    if (equals == nullptr) return 2;
    const std::string name(argv[i], static_cast<std::size_t>(equals - argv[i]));
    const char* value = equals + 1;
    if (name == "mix") {
      search.mix = value;
      continue;
    }
    const std::vector<double> given = numbers(value);
    if (given.empty()) return 2;
    const auto whole = static_cast<std::uint32_t>(given[0]);
    if (name == "tasks") {
      search.tasks = whole;
    } else if (name == "workers") {
      search.options.workers = whole;
    } else if (name == "seeds") {
      search.seeds = whole;
    } else if (name == "loads") {
      search.loads = given;
    } else if (name == "hints") {
      search.options.hints = whole == 0 ? saga::ClusterHints::kNone : saga::ClusterHints::kGraph;
    } else if (name == "host") {
      search.options.host_tier_tokens = static_cast<std::uint64_t>(given[0]);
    } else if (name == "without") {
      without = whole;
    } else if (name == "detail") {
      search.detail = whole != 0;
    } else if (name.size() == 1 && name[0] >= '0' && name[0] < '0' + static_cast<int>(saga::kPolicyParameters)) {
      search.values[static_cast<std::uint32_t>(name[0] - '0')] = given;
    } else {
      return 2;
    }
  }
  const std::vector<Prepared> prepared = prepare(search);
  std::printf("loads");
  for (const double load : search.loads) std::printf(" %g", load);
  for (const Prepared& one : prepared)
    std::printf("; %s/%d 1 = %.4f tasks/s", one.mix->name, static_cast<int>(one.seed), one.saturation);
  std::printf("\n");
  for (std::uint32_t kind = 0; kind < saga::kClusterPolicyKindCount; ++kind) {
    if (std::strcmp(argv[1], kNames[kind]) != 0 && std::strcmp(argv[1], "all") != 0) continue;
    saga::ClusterPolicyOptions policy;
    policy.kind = static_cast<saga::ClusterPolicyKind>(kind);
    policy.without = without;
    run_all_settings(search, prepared, policy, 0);
  }
  return 0;
}
