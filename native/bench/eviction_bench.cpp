// What an eviction decision costs: time in the policy for each requested page, `saga` beside `lru`.
//
//   eviction_bench [agents=400] [live=32] [repetitions=5]
//
// The workload is made up: agents whose prompts grow from call to call behind a system prompt that a quarter of them share,
// mostly short tool runs between calls, every tenth a human's minutes; one call in fifty starts from a shortened
// prompt. A replay (core/sim/cache_replay.hpp) for each cache size, both policies in turn, medians. What is timed, and
// how, is the same for both: everything that is done with the cache.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <queue>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/base/real.hpp"
#include "../core/evict/page_tree.hpp"
#include "../core/sim/cache_replay.hpp"

namespace {

using saga::Random;
using saga::Time;

constexpr std::uint32_t kPageTokens = 512;

struct Agents {
  saga::Workload workload;
  saga::CacheSchedule schedule;
};

double exponential(Random& random) { return -saga::real_ln(1 - random.uniform()); }

Time microseconds(double seconds) { return static_cast<Time>(seconds * 1e6); }

Agents make_agents(std::uint32_t agents, std::uint32_t live) {
  Random random(42);
  Agents made;
  saga::Workload& workload = made.workload;
  workload.block_tokens = kPageTokens;
  workload.task_tenant.assign(agents, 0);
  std::vector<std::uint32_t> calls_of(agents);
  std::uint64_t next_id = 100;
  for (std::uint32_t agent = 0; agent < agents; ++agent) {
    workload.task_first_call.push_back(workload.calls());
    calls_of[agent] = 1 + static_cast<std::uint32_t>(60 * exponential(random));
    const std::uint64_t own = next_id;
    next_id += 1'000'000;  // more than an agent can use
    const std::uint64_t system_prompt = agent % 4 == 0 ? 0 : own - 1000;
    std::uint64_t first = own;
    std::uint32_t pages = 8;
    for (std::uint32_t call = 0; call < calls_of[agent]; ++call) {
      const bool shortened = call > 0 && random.below(50) == 0;
      if (shortened) {
        first += pages;
        pages = 4 + pages / 8;
      }
      pages = std::min(pages + static_cast<std::uint32_t>(3 * exponential(random)), 390u);
      workload.call_thread.push_back(agent);
      workload.prompt_tokens.push_back((pages + 20) * kPageTokens);
      workload.output_tokens.push_back(1 + static_cast<std::uint32_t>(300 * exponential(random)));
      const bool human = random.below(10) == 0;
      workload.prompt_kind.push_back(call == 0 ? saga::PromptKind::kStart : saga::PromptKind::kTool);
      workload.stop_reason.push_back(human ? saga::StopReason::kEndTurn : saga::StopReason::kToolUse);
      workload.tool_class.push_back(human ? saga::ToolClass::kNone : static_cast<saga::ToolClass>(1 + random.below(4)));
      workload.call_first_run.push_back(static_cast<std::uint32_t>(workload.run_length.size()));
      workload.run_first_id.push_back(system_prompt);
      workload.run_length.push_back(20);
      workload.run_first_id.push_back(first);
      workload.run_length.push_back(pages);
    }
  }
  workload.task_first_call.push_back(workload.calls());
  workload.call_first_run.push_back(static_cast<std::uint32_t>(workload.run_length.size()));
  workload.call_first_predecessor.assign(workload.calls() + 1, 0);

  // `live` agents at once; when one has ended the next begins.
  struct Start {
    Time time;
    saga::CallId call;
    bool operator>(const Start& other) const { return time != other.time ? time > other.time : call > other.call; }
  };
  std::priority_queue<Start, std::vector<Start>, std::greater<>> starts;
  std::uint32_t begun = 0;
  for (; begun < std::min(live, agents); ++begun) {
    starts.push({microseconds(30 * random.uniform()), workload.task_first_call[begun]});
  }
  while (!starts.empty()) {
    const Start start = starts.top();
    starts.pop();
    const Time end = start.time + microseconds(1 + 0.02 * workload.output_tokens[start.call]);
    made.schedule.call.push_back(start.call);
    made.schedule.start.push_back(start.time);
    made.schedule.end.push_back(end);
    const std::uint32_t agent = workload.call_thread[start.call];
    const double typical = workload.stop_reason[start.call] == saga::StopReason::kEndTurn ? 200
                           : agent % 3 == 0                                               ? 12
                                                                                          : 1.5;
    const double gap = typical * exponential(random) * exponential(random);
    if (start.call + 1 < workload.task_first_call[agent + 1]) {
      starts.push({end + microseconds(gap), start.call + 1});
    } else if (begun < agents) {
      starts.push({end + microseconds(gap), workload.task_first_call[begun++]});
    }
  }
  return made;
}

std::uint64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::uint32_t option(int argc, char** argv, const char* name, std::uint32_t otherwise) {
  const std::size_t length = std::strlen(name);
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], name, length) != 0 || argv[i][length] != '=') continue;
    const long value = std::atol(argv[i] + length + 1);
    if (value > 0) return static_cast<std::uint32_t>(value);
  }
  return otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint32_t live = option(argc, argv, "live", 32);
  const std::uint32_t repetitions = option(argc, argv, "repetitions", 5);
  const Agents agents = make_agents(option(argc, argv, "agents", 400), live);
  const saga::PageTree tree = saga::PageTree::for_cache(agents.workload, kPageTokens);
  std::printf("%u calls, %llu distinct pages, %u live\n", agents.workload.calls(),
              static_cast<unsigned long long>(tree.distinct_pages()), live);
  std::printf("%8s %10s %14s %14s %10s %12s\n", "cache", "missed", "lru ns/page", "saga ns/page", "multiple",
              "saga us/call");
  for (const double share : {0.02, 0.05, 0.1, 0.2}) {
    std::vector<double> nanoseconds[2];
    saga::CacheReplayResult result;
    for (std::uint32_t i = 0; i < repetitions; ++i) {
      for (const bool saga_policy : {false, true}) {
        saga::CacheReplayOptions options;
        options.policy = saga_policy ? saga::PolicyKind::kSaga : saga::PolicyKind::kLru;
        options.capacity_pages = static_cast<std::uint32_t>(share * static_cast<double>(tree.distinct_pages())) + 1;
        options.now_ns = now_ns;
        result = saga::replay_cache(agents.workload, tree, agents.schedule, options);
        nanoseconds[saga_policy].push_back(static_cast<double>(result.policy_ns) /
                                           static_cast<double>(result.requested_pages));
      }
    }
    const double lru = median(nanoseconds[0]);
    const double saga_median = median(nanoseconds[1]);
    std::printf(
        "%7.0f%% %9.2f%% %14.1f %14.1f %10.2f %12.2f\n", share * 100,
        100 * static_cast<double>(result.missed_pages) / static_cast<double>(result.requested_pages), lru, saga_median,
        saga_median / lru,
        saga_median * static_cast<double>(result.requested_pages) / static_cast<double>(result.requests) / 1000);
  }
  return 0;
}
