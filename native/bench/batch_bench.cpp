// Benchmark of BatchFormer: `batch_bench`. One thread, everything prepared outside the timing.
//
// Shape "decode": R calls run (64, 256, 1,024, 4,096), all of them decode, blocks of 16 tokens, contexts of 1,000 to 1,999
// tokens. A request-step is one call in one step: form(), with everything written out (calls, rows, positions, lengths,
// query starts, slot mapping, new blocks of the block tables), and complete().
// Shape "decode, cached": the same, and every block that is filled gets a hash and is cached; blocks that are taken
// evict one.
// Shape "mixed": calls of 1,000 prompt tokens and 100 new ones come as fast as they end; each step of 4,096 tokens
// decodes R calls and prefills what is left. With "blocks are short" only some 70 % of R calls find blocks: admission
// fails in most steps, and calls are preempted.
// Shape "decode, 1,024 wait": as "decode", with 1,024 more calls that wait for a seat.
//
// Each figure is the least of seven repetitions, in nanoseconds of processor time.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/batch/batch_former.hpp"

namespace {

using namespace saga;

constexpr int kRepetitions = 7;
constexpr std::uint32_t kBlockSize = 16;

double processor_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

// What reading the clock costs: taken off each interval.
double clock_cost_ns() {
  const double begin = processor_ns();
  for (int i = 0; i < 9999; ++i) (void)processor_ns();
  return (processor_ns() - begin) / 10'000;
}
const double kClockCost = clock_cost_ns();

struct Arrays {
  Arrays(const PageTable& pages, const BatchFormerOptions& options)
      : calls(options.max_sequences),
        rows(options.max_sequences),
        first_tokens(options.max_sequences),
        token_counts(options.max_sequences),
        sequence_lengths(options.max_sequences),
        query_starts(options.max_sequences + 1),
        slot_mapping(options.token_budget),
        block_tables(std::size_t{pages.max_sequences()} * pages.max_blocks_per_sequence()),
        updates(options.max_sequences),
        copies(options.max_copies),
        preempted(options.max_sequences),
        sampled(options.max_sequences),
        finished(options.max_sequences) {
    views = {.calls = calls,
             .rows = rows,
             .first_tokens = first_tokens,
             .token_counts = token_counts,
             .sequence_lengths = sequence_lengths,
             .query_starts = query_starts,
             .slot_mapping = slot_mapping,
             .block_tables = block_tables,
             .block_table_stride = pages.max_blocks_per_sequence(),
             .updates = updates,
             .copies = copies,
             .preempted = preempted};
  }
  std::vector<CallId> calls;
  std::vector<SequenceId> rows;
  std::vector<std::uint32_t> first_tokens, token_counts;
  std::vector<std::int32_t> sequence_lengths, query_starts;
  std::vector<std::int64_t> slot_mapping;
  std::vector<std::int32_t> block_tables;
  std::vector<BlockTableUpdate> updates;
  std::vector<BlockCopy> copies;
  std::vector<CallId> preempted;
  std::vector<std::uint32_t> sampled;
  std::vector<std::uint8_t> finished;
  BatchArrays views;
};

struct Server {
  Server(const PageTableOptions& page_options, const BatchFormerOptions& options)
      : pages(page_options), former(pages, options), arrays(pages, options) {}

  CallId submit(std::uint32_t prompt, std::uint32_t output) {
    std::vector<BlockHash> hashes(prompt / kBlockSize);
    for (BlockHash& hash : hashes) hash = random.next();
    CallId id = kNone;
    if (former.submit(former.now(), {.prompt_tokens = prompt, .max_new_tokens = output}, hashes, id) != Status::kOk) {
      std::abort();
    }
    return id;
  }

  BatchSummary step() {
    const BatchSummary batch = former.form(former.now(), arrays.views);
    for (std::uint32_t i = 0; i < batch.calls; ++i) arrays.sampled[i] = 1;
    for (std::uint32_t i = batch.decode_calls; i < batch.calls; ++i) {
      const auto end = arrays.first_tokens[i] + arrays.token_counts[i];
      arrays.sampled[i] = end >= former.call_status(arrays.calls[i]).known_tokens;
    }
    (void)former.complete({arrays.sampled.data(), batch.calls}, {arrays.finished.data(), batch.calls});
    return batch;
  }

  PageTable pages;
  BatchFormer former;
  Arrays arrays;
  Random random{7};
};

PageTableOptions pages_for(std::uint32_t running, std::uint32_t blocks) {
  return {.block_size = kBlockSize,
          .block_count = {blocks, 0, 0},
          .max_sequences = running,
          .max_blocks_per_sequence = 512};
}

struct Timing {
  double form = 0;
  double complete = 0;
};

void decode(std::uint32_t running, std::uint32_t waiting, bool cached, const char* name) {
  Timing best{.form = std::numeric_limits<double>::max(), .complete = std::numeric_limits<double>::max()};
  std::int64_t sum = 0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    const std::uint32_t steps = 1024;
    const std::uint32_t blocks = running * ((3000 + steps) / kBlockSize);
    Server server(pages_for(running, blocks),
                  {.max_calls = running + waiting, .max_sequences = running, .token_budget = running + 8192});
    BatchFormer& former = server.former;
    for (std::uint32_t i = 0; i < running; ++i)
      server.submit(1000 + static_cast<std::uint32_t>(server.random.below(1000)), 4000);
    while (former.stats().waiting_calls > 0) server.step();
    while (server.step().decode_calls < running) {
    }
    for (std::uint32_t i = 0; i < waiting; ++i) server.submit(1000, 100);
    std::fill(server.arrays.sampled.begin(), server.arrays.sampled.end(), 1u);
    Timing timing;
    for (std::uint32_t step = 0; step < steps; ++step) {
      const double begin = processor_ns();
      const BatchSummary batch = former.form(step, server.arrays.views);
      const double middle = processor_ns();
      if (batch.calls != running || batch.decode_calls != running) std::abort();
      sum += server.arrays.slot_mapping[step % running];
      const double again = processor_ns();
      (void)former.complete({server.arrays.sampled.data(), running}, {server.arrays.finished.data(), running});
      const double end = processor_ns();
      timing.form += middle - begin - kClockCost;
      timing.complete += end - again - kClockCost;
      if (cached) {
        for (std::uint32_t i = 0; i < running; ++i) {
          if ((server.arrays.first_tokens[i] + 2) % kBlockSize != 0) continue;
          const CallId call = server.arrays.calls[i];
          std::vector<BlockHash> hashes((server.arrays.first_tokens[i] + 2) / kBlockSize - former.hash_count(call));
          for (BlockHash& hash : hashes) hash = server.random.next();
          former.add_hashes(call, hashes);
        }
      }
    }
    best.form = std::min(best.form, timing.form / (steps * double{1} * running));
    best.complete = std::min(best.complete, timing.complete / (steps * double{1} * running));
  }
  std::printf("%-28s %5u running  form %6.2f  complete %6.2f  together %6.2f ns per request-step  (%lld)\n", name,
              running, best.form, best.complete, best.form + best.complete, static_cast<long long>(sum & 7));
}

void mixed(std::uint32_t running, std::uint32_t blocks_a_call, const char* name) {
  double best = std::numeric_limits<double>::max();
  double best_step = 0;
  std::uint64_t calls = 0, tokens = 0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    Server server(pages_for(running, running * blocks_a_call),
                  {.max_calls = 2 * running, .max_sequences = running, .token_budget = 4096});
    const auto fill = [&] {
      while (server.former.stats().waiting_calls < running / 2) server.submit(1000, 100);
    };
    for (int step = 0; step < 600; ++step) {
      fill();
      server.step();
    }
    double spent = 0;
    calls = tokens = 0;
    for (int step = 0; step < 600; ++step) {
      fill();
      const double begin = processor_ns();
      const BatchSummary batch = server.former.form(0, server.arrays.views);
      spent += processor_ns() - begin - kClockCost;
      for (std::uint32_t i = 0; i < batch.calls; ++i) server.arrays.sampled[i] = 1;
      for (std::uint32_t i = batch.decode_calls; i < batch.calls; ++i) {
        const auto end = server.arrays.first_tokens[i] + server.arrays.token_counts[i];
        server.arrays.sampled[i] = end >= server.former.call_status(server.arrays.calls[i]).known_tokens;
      }
      const double again = processor_ns();
      (void)server.former.complete({server.arrays.sampled.data(), batch.calls},
                                   {server.arrays.finished.data(), batch.calls});
      spent += processor_ns() - again - kClockCost;
      calls += batch.calls;
      tokens += batch.tokens;
    }
    if (spent / static_cast<double>(calls) < best) {
      best = spent / static_cast<double>(calls);
      best_step = spent / 600;
    }
  }
  std::printf("%-28s %5.0f in a step, %5.0f tokens: %6.2f ns per request-step, %6.2f us a step\n", name,
              static_cast<double>(calls) / 600, static_cast<double>(tokens) / 600, best, best_step / 1000);
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const std::uint32_t running : {64u, 256u, 1024u, 4096u}) decode(running, 0, false, "decode");
  for (const std::uint32_t running : {256u, 1024u}) decode(running, 0, true, "decode, cached");
  decode(1024, 1024, false, "decode, 1,024 wait");
  for (const std::uint32_t running : {256u, 1024u}) {
    mixed(running, 80, "mixed");
    mixed(running, 50, "mixed, blocks are short");
  }
  return 0;
}
