// BatchFormer and the simulated worker follow the same rules by other means: first come first served (and by priority),
// without session affinity, they make the same decisions step by step.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/batch/batch_former.hpp"
#include "../core/evict/page_tree.hpp"
#include "../core/sim/sim_worker.hpp"
#include "agent_tasks.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kPage = 16;

class Recorder final : public WorkerObserver {
 public:
  std::uint32_t computed_pages(NodeId, Time) override { return 0; }
  void call_admitted(WorkerId, CallId call, Time) override { admitted.push_back(call); }
  void first_token(WorkerId, CallId, Time) override {}
  void call_finished(WorkerId, CallId call, Time) override { finished.push_back(call); }
  void load_started(WorkerId, std::uint32_t, Time) override {}
  void pages_changed(WorkerId, const std::vector<PageCache::Change>&, Time) override {}
  void lease_changed(const LeaseReport&, Time) override {}
  std::vector<CallId> admitted, finished;
};

// Calls of a few families: a common beginning of the family, then pages of their own, then an unfinished page.
Workload families(Random& random, std::uint32_t calls, std::uint32_t longest_shared) {
  test::WorkloadBuilder builder(kPage);
  std::uint64_t own = 1'000'000;
  for (std::uint32_t call = 0; call < calls; ++call) {
    const auto family = static_cast<std::uint32_t>(random.below(3));
    const auto shared = static_cast<std::uint32_t>(random.below(longest_shared + 1));
    const auto pages = 1 + static_cast<std::uint32_t>(random.below(12));
    std::vector<std::pair<std::uint64_t, std::uint32_t>> ids;
    if (shared > 0) ids.push_back({1000 * family, shared});
    ids.push_back({own, pages});
    own += 1000;
    const auto tail = 1 + static_cast<std::uint32_t>(random.below(kPage - 1));
    builder.call(call, (shared + pages) * kPage + tail, 1 + static_cast<std::uint32_t>(random.below(60)), ids);
    builder.end_task();
  }
  return builder.get();
}

struct Compared {
  std::uint64_t preemptions = 0;
  std::uint64_t hit_tokens = 0;
  std::uint64_t steps = 0;
};

void compare(std::uint64_t seed, std::uint32_t longest_shared, std::uint32_t capacity, bool by_priority,
             Compared& sum) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << (by_priority ? " by priority" : ""));
  Random random(seed);
  constexpr std::uint32_t kCalls = 40;
  const Workload workload = families(random, kCalls, longest_shared);
  const PageTree tree = PageTree::for_cluster(workload, kPage);
  const std::vector<std::uint32_t> awaited(tree.size(), 0);
  Recorder recorder;
  SimWorkerOptions sim;
  sim.capacity_pages = capacity;
  sim.max_sequences = 2 + static_cast<std::uint32_t>(random.below(10));
  sim.token_budget = 32 + static_cast<std::uint32_t>(random.below(300));
  sim.priority_scheduling = by_priority;
  sim.single_step = true;
  SimWorker worker(0, workload, tree, sim, awaited, recorder);

  PageTable pages({.block_size = kPage,
                   .block_count = {capacity, 0, 0},
                   .max_sequences = sim.max_sequences,
                   .max_blocks_per_sequence = 32,
                   .uncached_first = true});  // as the simulated cache, which takes empty pages before cached ones
  const BatchFormerOptions options = {.max_calls = kCalls,
                                      .max_sequences = sim.max_sequences,
                                      .token_budget = sim.token_budget,
                                      .order = by_priority ? BatchOrder::kPriority : BatchOrder::kFcfs,
                                      .session_affinity = false};
  BatchFormer former(pages, options);
  std::vector<CallId> calls(sim.max_sequences), preempted(sim.max_sequences);
  std::vector<SequenceId> rows(sim.max_sequences);
  std::vector<std::uint32_t> first_tokens(sim.max_sequences), token_counts(sim.max_sequences);
  std::vector<std::int32_t> lengths(sim.max_sequences), query_starts(sim.max_sequences + 1),
      tables(sim.max_sequences * 32);
  std::vector<std::int64_t> slots(sim.token_budget);
  std::vector<BlockTableUpdate> updates(sim.max_sequences);
  const BatchArrays arrays = {.calls = calls,
                              .rows = rows,
                              .first_tokens = first_tokens,
                              .token_counts = token_counts,
                              .sequence_lengths = lengths,
                              .query_starts = query_starts,
                              .slot_mapping = slots,
                              .block_tables = tables,
                              .block_table_stride = 32,
                              .updates = updates,
                              .copies = {},
                              .preempted = preempted};

  std::vector<std::pair<Time, std::int32_t>> arrivals;
  for (std::uint32_t call = 0; call < kCalls; ++call) {
    arrivals.push_back({random.below(4'000'000), static_cast<std::int32_t>(random.below(3))});
  }
  std::sort(arrivals.begin(), arrivals.end());
  std::vector<CallId> call_of_id(kCalls, kNone);
  std::vector<CallId> finished;
  BatchSummary batch;
  std::uint32_t next = 0;
  std::uint64_t prefilled = 0;

  for (;;) {
    const bool wakes = worker.wake() != SimWorker::Wake::kNever;
    if (!wakes && next == kCalls) break;
    const bool ends = worker.wake() == SimWorker::Wake::kStepEnd;
    if (!wakes || (next < kCalls && (arrivals[next].first < worker.wake_time() ||
                                     (arrivals[next].first == worker.wake_time() && !ends)))) {
      const auto [now, priority] = arrivals[next];
      const CallId call = next++;
      worker.submit(call, priority, now);
      std::vector<BlockHash> hashes;
      std::vector<NodeId> path(tree.max_path_nodes());
      path.resize(tree.path(tree.final_leaf(call), path.data()));
      for (const NodeId node : path) {
        for (std::uint32_t page = 0; page < tree.node(node).pages; ++page) hashes.push_back(tree.page_hash(node, page));
      }
      const std::size_t of_prompt = std::min<std::size_t>(hashes.size(), workload.prompt_tokens[call] / kPage);
      CallId id = kNone;
      ASSERT_EQ(former.submit(now,
                              {.prompt_tokens = workload.prompt_tokens[call],
                               .max_new_tokens = workload.output_tokens[call],
                               .priority = priority},
                              std::span(hashes).first(of_prompt), id),
                Status::kOk);
      former.add_hashes(id, std::span(hashes).subspan(of_prompt));
      call_of_id[id] = call;
      continue;
    }
    const Time now = worker.wake_time();
    if (!ends) {
      worker.begin_step(now);
      batch = former.form(now, arrays);
      ++sum.steps;
      ASSERT_EQ(former.stats().running_calls, worker.running_calls());
      ASSERT_EQ(former.stats().waiting_calls, worker.waiting_calls());
      ASSERT_EQ(former.stats().preempted_total, worker.counters().preemptions);
      ASSERT_EQ(former.stats().hit_tokens_total, worker.counters().hit_tokens);
      ASSERT_EQ(former.stats().recomputed_tokens_total, worker.counters().preempted_tokens);
      continue;
    }
    worker.end_step(now);
    std::vector<std::uint32_t> sampled;
    for (std::uint32_t i = 0; i < batch.calls; ++i) {
      const std::uint32_t end = first_tokens[i] + token_counts[i];
      const CallId call = call_of_id[calls[i]];
      const bool whole = end == former.call_status(calls[i]).known_tokens;
      sampled.push_back(whole ? 1 : 0);
      // What the worker counts as prefill: up to the end of the prompt.
      const std::uint32_t prompt = workload.prompt_tokens[call];
      prefilled += std::min(end, prompt) - std::min(first_tokens[i], prompt);
    }
    const std::vector<std::uint8_t> none(batch.calls, 0);
    std::vector<CallId> before(calls.begin(), calls.begin() + batch.calls);
    former.complete(sampled, none);
    ASSERT_TRUE(former.verify());
    std::vector<CallId> ended;
    for (const CallId id : before) {
      if (!former.is_open(id)) ended.push_back(call_of_id[id]);
    }
    std::sort(ended.begin(), ended.end());
    std::sort(recorder.finished.begin(), recorder.finished.end());
    ASSERT_EQ(ended, recorder.finished);
    recorder.finished.clear();
    finished.insert(finished.end(), ended.begin(), ended.end());
    ASSERT_EQ(prefilled, worker.counters().prefilled_tokens);
  }
  EXPECT_EQ(finished.size(), kCalls);
  sum.preemptions += worker.counters().preemptions;
  sum.hit_tokens += worker.counters().hit_tokens;
}

TEST(BatchFormerAndSimWorker, DecideAlikeWhilePagesAreShort) {
  Compared sum;
  for (std::uint64_t seed = 1; seed <= 60 && !testing::Test::HasFatalFailure(); ++seed) {
    compare(seed, 0, 30, seed % 2 == 0, sum);
  }
  EXPECT_GT(sum.preemptions, 300u);
  EXPECT_GT(sum.steps, 10'000u);
}

TEST(BatchFormerAndSimWorker, DecideAlikeWhereManyCallsSharePrefixes) {
  Compared sum;
  for (std::uint64_t seed = 1; seed <= 40 && !testing::Test::HasFatalFailure(); ++seed) {
    compare(seed, 9, 1200, seed % 2 == 0, sum);
  }
  EXPECT_GT(sum.hit_tokens, 10'000u);
}

}  // namespace
}  // namespace saga
