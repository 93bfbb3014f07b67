// Random small workloads for the tests of page tree, page cache, eviction policies and cache replay: threads whose prompts grow,
// shrink, fork from each other and repeat, over a small alphabet of block ids, so that everything is shared and split.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/evict/page_tree.hpp"
#include "../core/sim/workload.hpp"

namespace saga::test {

struct Shape {
  std::uint32_t calls = 60;
  std::uint32_t threads = 6;
  std::uint32_t max_blocks = 24;
  std::uint32_t block_tokens = 4;
};

inline void append_call(Workload& workload, ThreadId thread, std::uint32_t prompt_tokens, std::uint32_t output_tokens,
                        const std::vector<std::uint64_t>& blocks, Random* splits = nullptr) {
  if (workload.call_first_run.empty()) workload.call_first_run.push_back(0);
  const std::size_t first = workload.run_first_id.size();
  for (const std::uint64_t id : blocks) {
    const bool fresh = workload.run_first_id.size() == first ||
                       workload.run_first_id.back() + workload.run_length.back() != id ||
                       (splits != nullptr && splits->below(5) == 0);
    if (fresh) {
      workload.run_first_id.push_back(id);
      workload.run_length.push_back(1);
    } else {
      ++workload.run_length.back();
    }
  }
  workload.call_first_run.push_back(static_cast<std::uint32_t>(workload.run_first_id.size()));
  workload.call_thread.push_back(thread);
  workload.prompt_tokens.push_back(prompt_tokens);
  workload.output_tokens.push_back(output_tokens);
  workload.prompt_kind.push_back(PromptKind::kStart);
  workload.stop_reason.push_back(StopReason::kUnknown);
  workload.tool_class.push_back(ToolClass::kNone);
}

inline Workload random_workload(Random& random, const Shape& shape) {
  Workload workload;
  workload.block_tokens = shape.block_tokens;
  std::vector<std::vector<std::uint64_t>> prompts(shape.threads);
  std::uint64_t fresh = 100000;
  const auto prefix_of = [&](const std::vector<std::uint64_t>& of) {
    return std::vector<std::uint64_t>(of.begin(),
                                      of.begin() + static_cast<std::ptrdiff_t>(random.below(of.size() + 1)));
  };
  const auto extend = [&](std::vector<std::uint64_t>& ids, std::uint64_t by) {
    const bool shared = random.below(2) == 0;
    if (!shared) fresh += random.below(3);
    for (; by > 0 && ids.size() < shape.max_blocks; --by) ids.push_back(shared ? 5000 + ids.size() : fresh++);
  };
  for (std::uint32_t call = 0; call < shape.calls; ++call) {
    const auto thread = static_cast<ThreadId>(random.below(shape.threads));
    std::vector<std::uint64_t>& ids = prompts[thread];
    const std::uint64_t step = random.below(10);
    if (ids.empty() && step < 5) {
      const std::uint64_t stream = 1000 * (1 + random.below(2));
      for (std::uint64_t i = 0; i <= random.below(5); ++i) ids.push_back(stream + i);
      extend(ids, random.below(3));
    } else if (ids.empty() || step == 9) {
      ids = prefix_of(prompts[random.below(shape.threads)]);
      extend(ids, random.below(3));
    } else if (step < 6) {
      extend(ids, random.below(5));
    } else if (step < 8) {
      ids = prefix_of(ids);
      extend(ids, random.below(4));
    }  // else the same prompt again
    const std::uint32_t full = static_cast<std::uint32_t>(ids.size()) * shape.block_tokens;
    const auto odd = static_cast<std::uint32_t>(random.below(shape.block_tokens));
    // Either tokens behind the last block, or a last block that is not full.
    std::uint32_t tokens = full > 0 && random.below(3) == 0 ? full - odd : full + odd;
    if (tokens == 0) tokens = 1;
    append_call(workload, thread, tokens, 1 + static_cast<std::uint32_t>(random.below(shape.block_tokens * 2)), ids,
                &random);
    workload.stop_reason.back() = static_cast<StopReason>(random.below(3));
    workload.tool_class.back() = static_cast<ToolClass>(random.below(5));
  }
  workload.task_tenant = {0};
  workload.task_first_call = {0, shape.calls};
  return workload;
}

// Requests in order of start; gaps and durations of up to `spread` seconds, some of them zero.
inline CacheSchedule random_schedule(Random& random, const Workload& workload, std::uint64_t spread) {
  CacheSchedule schedule;
  Time now = 0;
  for (CallId call = 0; call < workload.calls(); ++call) {
    now += random.below(3) == 0 ? 0 : random.below(spread) * 1'000'000;
    schedule.call.push_back(call);
    schedule.start.push_back(now);
    schedule.end.push_back(now + (random.below(4) == 0 ? 0 : random.below(spread * 3) * 1'000'000));
  }
  return schedule;
}

// The pages of a path, root first, by their number (key + offset: unique over the tree).
inline std::vector<std::uint32_t> path_page_numbers(const PageTree& tree, NodeId leaf) {
  std::vector<std::uint32_t> numbers;
  for (NodeId node = leaf; node != kNone; node = tree.node(node).parent) {
    for (std::uint32_t i = tree.node(node).pages; i-- > 0;) {
      numbers.push_back(static_cast<std::uint32_t>(tree.node(node).key) + i);
    }
  }
  std::reverse(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace saga::test
