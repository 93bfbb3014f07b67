// Benchmark of PrefixIndex: `index_bench [requests.jsonl [holder-blocks of the pinned shape]]`. One thread, everything prepared
// outside the timing.
//
// Shape "mooncake" (given a trace of {"output_length", "hash_ids"} lines, ids of 512 tokens): each id becomes 16 blocks (128
// tokens, length factor 4), every request goes to one of 128 workers drawn with a fixed seed, each with an LRU of 16,384 blocks
// that evicts the deepest first; per request one query of the whole prompt, then the evictions and the stores of what the worker
// lacks, in events of at most 16 blocks, output tokens / 128 private blocks included. First as a whole, seven times
// (ns of processor time per block operation: query + stored + removed hashes), then with a clock around every event.
//
// Shape "pinned": 256 holders; chains of 8 to 512 blocks (log-uniform) with 1, 8 or 64 holders for 50, 35 and 15 % of the
// holder-blocks, private tails of 4 to 64 blocks, events of 8 blocks, 5 % of them repeated, interleaved over holders. Then
// queries: full chain of one holder; 78 blocks held by 64 workers, warm and with the caches flushed (128 MiB written before
// each); 64 unknown blocks. Then holes: one holder loses 2 % of the blocks, single blocks in the middle of chains; the flushed
// query again; then they are refilled.
//
// The cost of reading the clock is measured and taken off each timed event.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/index/prefix_index.hpp"

namespace {

using saga::BlockHash;
using saga::PrefixIndex;
using saga::Random;
using saga::Tier;
using saga::WorkerId;
using Clock = std::chrono::steady_clock;

constexpr int kRepetitions = 7;

double now_ns() {
  return static_cast<double>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count());
}

// Processor time of this thread: what a busy neighbour takes by preemption is not in it (what it takes of the caches is).
double processor_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

double clock_cost_ns() {
  std::vector<double> costs;
  for (int i = 0; i < 10001; ++i) {
    const double start = now_ns();
    costs.push_back(now_ns() - start);
  }
  std::nth_element(costs.begin(), costs.begin() + 5000, costs.end());
  return costs[5000];
}

double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0;
  double resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

// Touches memory and gives it back: on a virtual machine the first touch of a page waits for the host, which no user of the
// index should find in its figures. The index's own page faults stay in them.
void warm_machine_memory(std::size_t bytes) {
  const saga::HugeArray<std::uint64_t> memory(bytes / 8);
  for (std::size_t i = 0; i < memory.size(); i += 512) {
    const_cast<volatile std::uint64_t&>(memory[i]) = 1;
  }
}

struct Latencies {
  std::vector<double> ns;
  double blocks = 0;
  void add(double nanoseconds, std::size_t block_count) {
    ns.push_back(nanoseconds);
    blocks += static_cast<double>(block_count);
  }
  double at(double quantile) {
    if (ns.empty()) return 0;
    std::sort(ns.begin(), ns.end());
    return ns[static_cast<std::size_t>(quantile * static_cast<double>(ns.size() - 1))];
  }
  double per_block() const {
    double sum = 0;
    for (const double value : ns) sum += value;
    return blocks > 0 ? sum / blocks : 0;
  }
  void print(const char* name) {
    std::printf("  %-34s p50 %8.3f us   p99 %8.3f us   %6.2f ns per block   (%zu)\n", name, at(0.5) / 1000,
                at(0.99) / 1000, per_block(), ns.size());
  }
};

enum class Kind : std::uint8_t { kQuery, kStore, kRemove };

struct Event {
  Kind kind;
  WorkerId worker;
  std::uint32_t count;
  std::size_t first;  // in the array of hashes
  BlockHash parent;
};

struct Script {
  std::vector<BlockHash> hashes;
  std::vector<Event> events;
  std::uint64_t blocks[3] = {};
  std::uint64_t queries = 0;
  void add(Kind kind, WorkerId worker, const BlockHash* begin, std::size_t count, BlockHash parent) {
    events.push_back({kind, worker, static_cast<std::uint32_t>(count), hashes.size(), parent});
    hashes.insert(hashes.end(), begin, begin + count);
    blocks[static_cast<int>(kind)] += count;
    queries += kind == Kind::kQuery;
  }
};

void print_totals(const char* name, std::vector<double> totals) {
  std::sort(totals.begin(), totals.end());
  std::printf("  %-34s min %.2f  median %.2f  max %.2f\n", name, totals.front(), totals[totals.size() / 2],
              totals.back());
}

void print_contents(const saga::PrefixIndexStats& stats) {
  std::printf("  %-34s %llu holder-blocks, %llu blocks, %llu sets, %llu lines (%llu mixed)\n", "contents",
              static_cast<unsigned long long>(stats.holder_blocks), static_cast<unsigned long long>(stats.blocks),
              static_cast<unsigned long long>(stats.holder_sets), static_cast<unsigned long long>(stats.lines),
              static_cast<unsigned long long>(stats.mixed_lines));
}

// ---- mooncake -----------------------------------------------------------------------------------------------------------------

std::uint64_t number_after(const std::string& line, const char* key, std::size_t* end) {
  std::size_t at = line.find(key);
  if (at == std::string::npos) {
    std::fprintf(stderr, "no %s in: %s\n", key, line.c_str());
    std::exit(1);
  }
  at += std::strlen(key);
  while (at < line.size() && (line[at] < '0' || line[at] > '9') && line[at] != ']') ++at;
  std::uint64_t value = 0;
  for (; at < line.size() && line[at] >= '0' && line[at] <= '9'; ++at) {
    value = value * 10 + static_cast<std::uint64_t>(line[at] - '0');
  }
  *end = at;
  return value;
}

constexpr std::uint32_t kMooncakeWorkers = 128;
constexpr std::size_t kMooncakeCapacity = 16384;
constexpr std::size_t kBlocksPerId = 16;
constexpr std::size_t kEventBlocks = 16;

// One worker's cache: least recently used first; of one request the deepest block goes first.
struct WorkerCache {
  std::list<BlockHash> order;
  std::unordered_map<BlockHash, std::list<BlockHash>::iterator> where;
};

Script mooncake_script(const char* path) {
  std::ifstream file(path);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path);
    std::exit(1);
  }
  Script script;
  Random random(20240601);
  std::vector<WorkerCache> caches(kMooncakeWorkers);
  std::string line;
  std::uint64_t request = 0;
  while (std::getline(file, line)) {
    std::size_t at = 0;
    const std::uint64_t output = number_after(line, "\"output_length\"", &at);
    (void)number_after(line, "\"hash_ids\"", &at);
    at = line.find('[', line.find("\"hash_ids\""));
    std::vector<BlockHash> chain;
    BlockHash hash = 1;
    while (at < line.size() && line[at] != ']') {
      std::uint64_t id = 0;
      bool any = false;
      for (++at; at < line.size() && line[at] != ',' && line[at] != ']'; ++at) {
        if (line[at] < '0' || line[at] > '9') continue;
        id = id * 10 + static_cast<std::uint64_t>(line[at] - '0');
        any = true;
      }
      for (std::size_t k = 0; any && k < kBlocksPerId; ++k) {
        hash = saga::mix64(hash ^ saga::mix64(id * kBlocksPerId + k));
        chain.push_back(hash);
      }
    }
    const auto worker = static_cast<WorkerId>(random.below(kMooncakeWorkers));
    script.add(Kind::kQuery, worker, chain.data(), chain.size(), 0);
    for (std::uint64_t k = 0; k < output / 128; ++k) {
      hash = saga::mix64(hash ^ saga::mix64(~(request * 64 + k)));
      chain.push_back(hash);
    }
    ++request;

    // Resident blocks become the most recent, deepest first, so that the deepest is the first to go.
    WorkerCache& cache = caches[worker];
    std::size_t missing = 0;
    for (std::size_t k = chain.size(); k-- > 0;) {
      const auto found = cache.where.find(chain[k]);
      if (found == cache.where.end()) {
        ++missing;
      } else {
        cache.order.splice(cache.order.end(), cache.order, found->second);
      }
    }
    std::vector<BlockHash> evicted;
    while (cache.order.size() + missing > kMooncakeCapacity) {
      evicted.push_back(cache.order.front());
      cache.where.erase(cache.order.front());
      cache.order.pop_front();
    }
    std::vector<BlockHash> stored;
    BlockHash parent = 0;
    std::size_t evicted_at = 0;
    const auto flush = [&] {
      if (stored.empty()) return;
      const std::size_t count = std::min(stored.size(), evicted.size() - evicted_at);
      if (count > 0) script.add(Kind::kRemove, worker, evicted.data() + evicted_at, count, 0);
      evicted_at += count;
      script.add(Kind::kStore, worker, stored.data(), stored.size(), parent);
      stored.clear();
    };
    for (std::size_t k = 0; k < chain.size(); ++k) {
      if (cache.where.contains(chain[k])) {
        flush();
        continue;
      }
      if (stored.empty()) parent = k > 0 ? chain[k - 1] : 0;
      stored.push_back(chain[k]);
      if (stored.size() == kEventBlocks) flush();
    }
    flush();
    for (std::size_t k = chain.size(); k-- > 0;) {
      if (cache.where.contains(chain[k])) {
        cache.order.splice(cache.order.end(), cache.order, cache.where[chain[k]]);
      } else {
        cache.where[chain[k]] = cache.order.insert(cache.order.end(), chain[k]);
      }
    }
  }
  return script;
}

std::uint64_t apply(PrefixIndex& index, const Script& script, const Event& event, std::uint32_t* depth) {
  const std::span<const BlockHash> hashes(script.hashes.data() + event.first, event.count);
  switch (event.kind) {
    case Kind::kQuery:
      return index.match(hashes, depth);
    case Kind::kStore:
      if (!index.store(event.worker, Tier::kGpu, hashes, event.parent)) std::abort();
      return 0;
    case Kind::kRemove:
      index.remove(event.worker, Tier::kGpu, hashes);
      return 0;
  }
  return 0;
}

void mooncake(const char* path) {
  const Script script = mooncake_script(path);
  const saga::PrefixIndexOptions options{kMooncakeWorkers, kMooncakeWorkers * kMooncakeCapacity};
  const double operations = static_cast<double>(script.blocks[0] + script.blocks[1] + script.blocks[2]);
  std::vector<std::uint32_t> depth(kMooncakeWorkers * saga::kTierCount);
  std::printf("mooncake: %llu query + %llu store + %llu remove block operations\n",
              static_cast<unsigned long long>(script.blocks[0]), static_cast<unsigned long long>(script.blocks[1]),
              static_cast<unsigned long long>(script.blocks[2]));
  std::vector<double> totals;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    const double before = resident_bytes();
    PrefixIndex index(options);
    std::uint64_t found = 0;
    const double start = processor_ns();
    for (const Event& event : script.events) found += apply(index, script, event, depth.data());
    totals.push_back((processor_ns() - start) / operations);
    if (repetition > 0) continue;
    const saga::PrefixIndexStats stats = index.stats();
    print_contents(stats);
    std::printf("  %-34s %.1f B resident, %.1f B touched by its own account\n", "per holder-block",
                (resident_bytes() - before) / static_cast<double>(stats.holder_blocks),
                static_cast<double>(stats.bytes) / static_cast<double>(stats.holder_blocks));
    std::printf("  %-34s %.0f\n", "blocks found a query",
                static_cast<double>(found) / static_cast<double>(script.queries));
    if (stats.unknown_removals != 0 || !index.verify()) std::abort();
  }
  print_totals("whole replay, ns per block operation", totals);
  for (const bool sparse : {false, true}) {
    PrefixIndex index(options);
    Latencies latencies[3];
    std::vector<WorkerId> workers(kMooncakeWorkers);
    const double clock = clock_cost_ns();
    for (const Event& event : script.events) {
      double start = 0;
      double end = 0;
      if (sparse && event.kind == Kind::kQuery) {
        start = now_ns();
        index.match_gpu({script.hashes.data() + event.first, event.count}, workers.data(), depth.data());
        end = now_ns();
      } else {
        start = now_ns();
        (void)apply(index, script, event, depth.data());
        end = now_ns();
      }
      latencies[static_cast<int>(event.kind)].add(std::max(0.0, end - start - clock), event.count);
    }
    latencies[0].print(sparse ? "query (match_gpu)" : "query (match)");
    if (sparse) continue;
    latencies[1].print("store event");
    latencies[2].print("remove event");
  }
}

// ---- pinned -------------------------------------------------------------------------------------------------------------------

constexpr std::uint32_t kPinnedWorkers = 256;

void flush_caches(std::vector<std::uint64_t>& memory, std::uint64_t value) {
  for (std::size_t i = 0; i < memory.size(); i += 8) memory[i] = value + i;
}

void pinned(double target_holder_blocks) {
  Random random(12345);
  struct Chain {
    std::vector<BlockHash> hashes;
    std::vector<WorkerId> holders;
  };
  std::vector<Chain> chains;
  std::vector<std::vector<BlockHash>> single;  // full chain of one holder, tail included
  std::vector<std::vector<Event>> queues(kPinnedWorkers);
  Script script;
  std::uint64_t distinct = 0;
  const auto log_uniform = [&](double low, double high) {
    return static_cast<std::size_t>(low * std::pow(high / low, random.uniform()));
  };
  const double shares[3] = {0.50, 0.35, 0.15};
  const std::uint32_t holder_counts[3] = {1, 8, 64};
  for (int kind = 0; kind < 3; ++kind) {
    double made = 0;
    while (made < target_holder_blocks * shares[kind]) {
      Chain chain;
      const std::size_t length = log_uniform(8, 513);
      for (std::size_t k = 0; k < length; ++k) chain.hashes.push_back(random.next());
      while (chain.holders.size() < holder_counts[kind]) {
        const auto worker = static_cast<WorkerId>(random.below(kPinnedWorkers));
        if (std::find(chain.holders.begin(), chain.holders.end(), worker) == chain.holders.end()) {
          chain.holders.push_back(worker);
        }
      }
      distinct += length;
      for (const WorkerId worker : chain.holders) {
        std::vector<BlockHash> all = chain.hashes;
        const std::size_t tail = log_uniform(4, 65);
        for (std::size_t k = 0; k < tail; ++k) all.push_back(random.next());
        distinct += tail;
        made += static_cast<double>(all.size());
        for (std::size_t k = 0; k < all.size(); k += 8) {
          const std::size_t count = std::min<std::size_t>(8, all.size() - k);
          const Event event{Kind::kStore, worker, static_cast<std::uint32_t>(count), script.hashes.size(),
                            k > 0 ? all[k - 1] : 0};
          script.hashes.insert(script.hashes.end(), all.begin() + static_cast<std::ptrdiff_t>(k),
                               all.begin() + static_cast<std::ptrdiff_t>(k + count));
          queues[worker].push_back(event);
          if (random.below(20) == 0) queues[worker].push_back(event);
        }
        if (kind == 0) single.push_back(all);
      }
      chains.push_back(std::move(chain));
    }
  }
  // Interleave: a random worker's next event each time.
  std::vector<std::size_t> next(kPinnedWorkers, 0);
  std::vector<WorkerId> active;
  for (WorkerId worker = 0; worker < kPinnedWorkers; ++worker) {
    if (!queues[worker].empty()) active.push_back(worker);
  }
  double written = 0;
  while (!active.empty()) {
    const std::size_t pick = random.below(active.size());
    const WorkerId worker = active[pick];
    script.events.push_back(queues[worker][next[worker]++]);
    written += script.events.back().count;
    if (next[worker] == queues[worker].size()) {
      active[pick] = active.back();
      active.pop_back();
    }
  }
  queues.clear();

  const saga::PrefixIndexOptions options{kPinnedWorkers, distinct + distinct / 16};
  std::vector<std::uint32_t> depth(kPinnedWorkers * saga::kTierCount);
  std::vector<double> totals;
  const auto write = [&](PrefixIndex& into) {
    const double start = processor_ns();
    for (const Event& event : script.events) (void)apply(into, script, event, depth.data());
    totals.push_back((processor_ns() - start) / written);
  };
  for (int repetition = 1; repetition < kRepetitions; ++repetition) {
    PrefixIndex index(options);
    write(index);
  }
  const double before = resident_bytes();
  PrefixIndex index(options);
  write(index);
  const saga::PrefixIndexStats stats = index.stats();
  std::printf("pinned\n");
  print_contents(stats);
  print_totals("write, ns per block", totals);
  std::printf("  %-34s %.1f B resident, %.1f B touched by its own account\n", "per holder-block",
              (resident_bytes() - before) / static_cast<double>(stats.holder_blocks),
              static_cast<double>(stats.bytes) / static_cast<double>(stats.holder_blocks));

  std::vector<const Chain*> wide;
  for (const Chain& chain : chains) {
    if (chain.holders.size() == 64 && chain.hashes.size() >= 78) wide.push_back(&chain);
  }
  const double clock = clock_cost_ns();
  std::vector<WorkerId> workers(kPinnedWorkers);
  bool sparse = false;
  const auto timed = [&](std::span<const BlockHash> chain, std::uint32_t expected, Latencies& into) {
    std::uint32_t reached = expected;
    const double begin = now_ns();
    if (sparse) {
      (void)index.match_gpu(chain, workers.data(), depth.data());
    } else {
      reached = index.match(chain, depth.data());
    }
    into.add(std::max(0.0, now_ns() - begin - clock), chain.size());
    if (reached != expected) std::abort();
  };
  std::vector<std::uint64_t> memory((128u << 20) / 8, 1);
  const auto wide_queries = [&](bool flushed, Latencies& into) {
    for (std::size_t q = 0; q < (flushed ? 400u : 20000u); ++q) {
      const Chain& chain = *wide[random.below(wide.size())];
      const std::vector<BlockHash> asked(chain.hashes.begin(), chain.hashes.begin() + 78);
      if (flushed) flush_caches(memory, q);
      volatile BlockHash sink = 0;  // the question itself is warm, as it is for a caller who has just made it
      for (const BlockHash hash : asked) sink = hash;
      (void)sink;
      timed(asked, 78, into);
    }
  };
  Latencies one;
  for (int q = 0; q < 20000; ++q) {
    const std::vector<BlockHash>& chain = single[random.below(single.size())];
    timed(chain, static_cast<std::uint32_t>(chain.size()), one);
  }
  one.print("one holder, full chain");
  // Warm: a few chains asked again and again.
  std::vector<const Chain*> all_wide = wide;
  wide.resize(std::min<std::size_t>(wide.size(), 16));
  Latencies warm;
  wide_queries(false, warm);
  warm.print("78 blocks x 64 holders, warm");
  wide = all_wide;
  Latencies cold;
  wide_queries(true, cold);
  cold.print("78 blocks x 64 holders, flushed");
  sparse = true;
  Latencies cold_sparse;
  wide_queries(true, cold_sparse);
  cold_sparse.print("the same (match_gpu)");
  sparse = false;
  Latencies miss;
  std::vector<BlockHash> unknown(64);
  for (int q = 0; q < 20000; ++q) {
    for (BlockHash& hash : unknown) hash = random.next();
    timed(unknown, 0, miss);
  }
  miss.print("64 unknown blocks");

  // Holes: for 2 % of the blocks of each shared chain one holder loses that one block.
  Latencies removal;
  Latencies refill;
  std::vector<std::pair<WorkerId, BlockHash>> holes;
  for (const Chain& chain : chains) {
    for (const BlockHash hash : chain.hashes) {
      if (random.below(50) == 0) holes.emplace_back(chain.holders[random.below(chain.holders.size())], hash);
    }
  }
  for (std::size_t i = holes.size(); i > 1; --i) std::swap(holes[i - 1], holes[random.below(i)]);
  const std::uint64_t digest = index.digest();
  for (const auto& [worker, hash] : holes) {
    const double begin = now_ns();
    index.remove(worker, Tier::kGpu, {&hash, 1});
    removal.add(std::max(0.0, now_ns() - begin - clock), 1);
  }
  removal.print("removal of an interior block");
  Latencies holed;
  wide_queries(true, holed);
  holed.print("78 x 64 with 2 % holes, flushed");
  for (const auto& [worker, hash] : holes) {
    const double begin = now_ns();
    if (!index.store(worker, Tier::kGpu, {&hash, 1}, 0)) std::abort();
    refill.add(std::max(0.0, now_ns() - begin - clock), 1);
  }
  refill.print("refill of an interior block");
  if (index.digest() != digest || !index.verify()) std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  warm_machine_memory(std::size_t{1200} << 20);
  if (argc > 1) {
    mooncake(argv[1]);
  } else {
    std::printf("mooncake: left out (give the path of a requests.jsonl)\n");
  }
  const double holder_blocks = argc > 2 ? std::atof(argv[2]) : 5.4e6;
  if (holder_blocks > 0) pinned(std::max(holder_blocks, 200000.0));
  return 0;
}
