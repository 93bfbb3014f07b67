// What the evictor of a server's block pool costs: threads that come back with longer prompts until the pool has turned over many
// times. Prints nanoseconds for each kind of event and block, and the time of a step. Usage: evictor_bench [blocks] [running]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/evict/block_evictor.hpp"
#include "../core/pages/block_hash_map.hpp"

using namespace saga;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Counter {
  double time = 0;
  std::uint64_t calls = 0;
  std::uint64_t blocks = 0;
};

struct Running {
  bool open = false;
  std::uint32_t thread = 0;
  std::uint32_t steps_left = 0;
  std::uint32_t until_block = 0;
  std::vector<BlockHash> chain;
  std::vector<BlockId> row;
};

void bench(std::uint32_t blocks, std::uint32_t running_calls, PolicyKind policy) {
  BlockEvictorOptions options;
  options.block_count = blocks;
  options.max_calls = running_calls;
  options.policy = policy;
  BlockEvictor evictor(options);
  BlockHashMap block_of(blocks);
  std::vector<BlockHash> hash_of(blocks, 0);
  std::vector<std::uint32_t> users(blocks, 0);
  // A prompt grows to three quarters of a call's share of the pool; three times as many threads as run.
  const std::uint32_t longest = std::max(24u, 3 * blocks / (4 * running_calls));
  std::vector<std::vector<BlockHash>> threads(running_calls * 3);
  Random random(1);
  BlockHash fresh = 1;
  std::vector<Running> calls(running_calls);
  Counter start, pin, take, store, end, unpin;
  std::vector<double> steps;
  Time now = 0;
  std::vector<BlockId> room(longest + 64);
  std::uint64_t pages = 0;

  const auto timed = [&](Counter& counter, std::uint64_t count, auto&& work) {
    const double before = seconds();
    work();
    counter.time += seconds() - before;
    ++counter.calls;
    counter.blocks += count;
  };
  const auto own = [&](BlockId block, BlockHash hash) {
    if (hash_of[block] != 0 && block_of.find(hash_of[block]) == block) block_of.erase(hash_of[block]);
    hash_of[block] = hash;
    users[block] = 1;
    if (hash != 0 && block_of.find(hash) == kNone) block_of.insert(hash, block);
  };
  const std::uint32_t all_steps = 6000;
  double step_cost = 0;
  for (std::uint32_t step = 0; step < all_steps; ++step) {
    now += 30'000;
    const auto total = [&] { return start.time + pin.time + take.time + store.time + end.time + unpin.time; };
    const double before = total();
    std::uint32_t opened = 0;
    for (CallId id = 0; id < running_calls; ++id) {
      Running& call = calls[id];
      if (!call.open) {
        if (opened == 4) continue;
        call.thread = static_cast<std::uint32_t>(random.below(threads.size()));
        std::vector<BlockHash>& mine = threads[call.thread];
        if (mine.size() + 12 > longest) mine.clear();
        if (mine.empty()) {  // one of eight system prompts
          const BlockHash system = random.below(8) * 8 + 2;
          for (BlockHash i = 0; i < 4; ++i) mine.push_back(system + i * 2);
        }
        for (std::uint64_t i = random.below(6); i > 0; --i) mine.push_back(mix64(++fresh) | 1);
        call.chain = mine;
        std::uint32_t hits = 0;
        timed(start, call.chain.size(),
              [&] { hits = evictor.start(id, call.thread, call.chain, PromptKind::kTool, now); });
        ++opened;
        pages += call.chain.size();
        call.row.clear();
        std::vector<BlockId> free_hits;
        for (std::uint32_t i = 0; i < hits; ++i) {
          const BlockId block = block_of.find(call.chain[i]);
          if (block == kNone) break;
          if (users[block]++ == 0) free_hits.push_back(block);
          call.row.push_back(block);
        }
        timed(pin, free_hits.size(), [&] { evictor.pin(free_hits); });
        const auto missing = static_cast<std::uint32_t>(call.chain.size() - call.row.size());
        std::uint32_t got = 0;
        timed(take, missing, [&] { got = evictor.take(std::span(room).first(missing), now); });
        if (got < missing) std::exit(1);
        const std::size_t first = call.row.size();
        for (std::uint32_t i = 0; i < got; ++i) {
          own(room[i], call.chain[first + i]);
          call.row.push_back(room[i]);
        }
        timed(store, got, [&] {
          evictor.store(first > 0, first > 0 ? call.chain[first - 1] : 0, std::span(call.chain).subspan(first),
                        std::span(call.row).subspan(first));
        });
        call.open = true;
        call.steps_left = 16 + static_cast<std::uint32_t>(random.below(100));
        call.until_block = static_cast<std::uint32_t>(random.below(16));
        continue;
      }
      if (--call.steps_left == 0) {
        CallOutcome outcome;
        outcome.stop_reason = StopReason::kToolUse;
        outcome.tool_class = static_cast<ToolClass>(1 + random.below(4));
        outcome.session_end = random.below(20) == 0;
        timed(end, 1, [&] { evictor.end(id, outcome, call.row.back(), now); });
        std::vector<BlockId> freed;
        for (std::size_t i = call.row.size(); i-- > 0;) {
          if (--users[call.row[i]] == 0) freed.push_back(call.row[i]);
        }
        timed(unpin, freed.size(), [&] { evictor.unpin(freed); });
        threads[call.thread] = call.chain;
        call.open = false;
        continue;
      }
      if (call.until_block-- > 0) continue;
      call.until_block = 15;
      BlockId block = kNone;
      timed(take, 1, [&] { evictor.take({&block, 1}, now); });
      const BlockHash hash = mix64(++fresh) | 1;
      own(block, hash);
      timed(store, 1, [&] { evictor.store(true, call.chain.back(), {&hash, 1}, {&block, 1}); });
      call.chain.push_back(hash);
      call.row.push_back(block);
      ++pages;
    }
    step_cost = total() - before;
    if (step >= all_steps / 4) steps.push_back(step_cost);
  }
  std::sort(steps.begin(), steps.end());
  const auto line = [](const char* name, const Counter& counter) {
    std::printf("  %-6s %8.0f ns an event  %7.1f ns a block  (%llu events)\n", name,
                counter.time * 1e9 / static_cast<double>(counter.calls),
                counter.time * 1e9 / static_cast<double>(std::max<std::uint64_t>(1, counter.blocks)),
                static_cast<unsigned long long>(counter.calls));
  };
  const BlockEvictorStats stats = evictor.stats();
  std::printf(
      "%s, %u blocks, %u running: missed %.3f, evicted %llu, %u heads, %u ghosts, %.0f bytes a block, intact %d\n",
      policy == PolicyKind::kSaga ? "saga" : "lru", blocks, running_calls,
      static_cast<double>(stats.missed_pages_total) / static_cast<double>(stats.requested_pages_total),
      static_cast<unsigned long long>(stats.evicted_total), stats.heads, stats.ghosts,
      static_cast<double>(stats.memory_bytes) / blocks, evictor.verify() ? 1 : 0);
  line("start", start);
  line("pin", pin);
  line("take", take);
  line("store", store);
  line("end", end);
  line("unpin", unpin);
  const double sum = start.time + pin.time + take.time + store.time + end.time + unpin.time;
  std::printf("  %.1f ns a page; a step: median %.1f us, 99%% %.1f us, longest %.1f us\n",
              sum * 1e9 / static_cast<double>(pages), steps[steps.size() / 2] * 1e6,
              steps[steps.size() * 99 / 100] * 1e6, steps.back() * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint32_t running = argc > 2 ? static_cast<std::uint32_t>(std::atoi(argv[2])) : 256;
  for (const std::uint32_t blocks : {10'000u, 100'000u}) {
    if (argc > 1 && static_cast<std::uint32_t>(std::atoi(argv[1])) != blocks) continue;
    bench(blocks, running, PolicyKind::kLru);
    bench(blocks, running, PolicyKind::kSaga);
  }
}
