// BatchFormer: rules one by one against literals, and random servers against a slow model of the rules.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/batch/batch_former.hpp"

namespace saga {
namespace {

using Hashes = std::vector<BlockHash>;

// A former with its page table, arrays, and a server that computes what it is told.
struct Server {
  Server(const PageTableOptions& page_options, const BatchFormerOptions& options)
      : pages(page_options), former(std::make_unique<BatchFormer>(pages, options)) {
    calls.resize(options.max_sequences);
    rows.resize(options.max_sequences);
    first_tokens.resize(options.max_sequences);
    token_counts.resize(options.max_sequences);
    sequence_lengths.resize(options.max_sequences);
    query_starts.resize(options.max_sequences + 1);
    slot_mapping.resize(options.token_budget);
    block_tables.assign(std::size_t{page_options.max_sequences} * page_options.max_blocks_per_sequence, -1);
    updates.resize(options.max_sequences);
    copies.resize(options.max_copies);
    preempted.resize(options.max_sequences);
    arrays = {.calls = calls,
              .rows = rows,
              .first_tokens = first_tokens,
              .token_counts = token_counts,
              .sequence_lengths = sequence_lengths,
              .query_starts = query_starts,
              .slot_mapping = slot_mapping,
              .block_tables = block_tables,
              .block_table_stride = page_options.max_blocks_per_sequence,
              .updates = updates,
              .copies = copies,
              .preempted = preempted};
  }

  CallId submit(const BatchCall& call, const Hashes& hashes = {}, Time now = 0) {
    CallId id = kNone;
    EXPECT_EQ(former->submit(std::max(now, former->now()), call, hashes, id), Status::kOk);
    EXPECT_TRUE(former->verify());
    return id;
  }

  const BatchSummary& form(Time now = 0) {
    batch = former->form(std::max(now, former->now()), arrays);
    EXPECT_TRUE(former->verify());
    EXPECT_TRUE(pages.verify());
    check_outputs();
    return batch;
  }

  // One token for each call whose known tokens are computed; `finished` end.
  std::uint32_t complete(const std::set<CallId>& finished = {}) {
    std::vector<std::uint32_t> sampled;
    std::vector<std::uint8_t> ends;
    for (std::uint32_t i = 0; i < batch.calls; ++i) {
      const bool whole = first_tokens[i] + token_counts[i] == former->call_status(calls[i]).known_tokens;
      sampled.push_back(whole ? 1 : 0);
      ends.push_back(finished.contains(calls[i]) ? 1 : 0);
    }
    EXPECT_TRUE(former->completion_valid(sampled, ends));
    const std::uint32_t ended = former->complete(sampled, ends);
    EXPECT_TRUE(former->verify());
    EXPECT_TRUE(pages.verify());
    return ended;
  }

  // "call:first+count" of each call of the batch.
  std::string batch_text() const {
    std::string text;
    for (std::uint32_t i = 0; i < batch.calls; ++i) {
      if (i > 0) text += i == batch.decode_calls ? " | " : " ";
      text += std::to_string(calls[i]) + ":" + std::to_string(first_tokens[i]) + "+" + std::to_string(token_counts[i]);
    }
    return text;
  }
  std::string step(const std::set<CallId>& finished = {}, Time now = 0) {
    form(now);
    if (batch.calls > 0) complete(finished);
    return batch_text();
  }

  // Every output is derived anew from what the page table says.
  void check_outputs() {
    std::uint32_t tokens = 0;
    std::set<CallId> seen;
    for (std::uint32_t i = 0; i < batch.calls; ++i) {
      EXPECT_TRUE(seen.insert(calls[i]).second);
      EXPECT_EQ(query_starts[i], static_cast<std::int32_t>(tokens));
      EXPECT_EQ(sequence_lengths[i], static_cast<std::int32_t>(first_tokens[i] + token_counts[i]));
      const std::uint32_t size = pages.block_size();
      std::vector<std::int32_t> table(std::size_t{arrays.block_table_stride});
      EXPECT_EQ(pages.export_block_tables({&rows[i], 1}, arrays.block_table_stride, -1, table), PageStatus::kOk);
      for (std::uint32_t t = 0; t < first_tokens[i] + token_counts[i]; ++t) {
        const std::int32_t block = block_tables[std::size_t{rows[i]} * arrays.block_table_stride + t / size];
        EXPECT_EQ(block, table[t / size]);
        if (t < first_tokens[i]) continue;
        EXPECT_EQ(slot_mapping[tokens + t - first_tokens[i]], std::int64_t{block} * size + t % size);
      }
      tokens += token_counts[i];
    }
    EXPECT_EQ(query_starts[batch.calls], static_cast<std::int32_t>(tokens));
    EXPECT_EQ(batch.tokens, tokens);
    EXPECT_LE(tokens, former->options().token_budget);
  }

  PageTable pages;
  std::unique_ptr<BatchFormer> former;
  BatchSummary batch;
  std::vector<CallId> calls;
  std::vector<SequenceId> rows;
  std::vector<std::uint32_t> first_tokens, token_counts;
  std::vector<std::int32_t> sequence_lengths, query_starts, block_tables;
  std::vector<std::int64_t> slot_mapping;
  std::vector<BlockTableUpdate> updates;
  std::vector<BlockCopy> copies;
  std::vector<CallId> preempted;
  BatchArrays arrays;
};

// Blocks of 4 tokens.
PageTableOptions small_pages(std::uint32_t gpu, std::uint32_t host = 0) {
  return {.block_size = 4, .block_count = {gpu, host, 0}, .max_sequences = 8, .max_blocks_per_sequence = 16};
}

BatchFormerOptions vllm(std::uint32_t budget, std::uint32_t sequences = 4) {
  return {.max_calls = 16,
          .max_sequences = sequences,
          .token_budget = budget,
          .order = BatchOrder::kFcfs,
          .session_affinity = false};
}

TEST(BatchFormer, PromptsAreComputedInChunksBehindDecodingCalls) {
  Server server(small_pages(32), vllm(8));
  EXPECT_EQ(server.submit({.prompt_tokens = 6, .max_new_tokens = 8}), 0u);
  EXPECT_EQ(server.submit({.prompt_tokens = 11, .max_new_tokens = 8}), 1u);
  EXPECT_EQ(server.submit({.prompt_tokens = 2, .max_new_tokens = 8}), 2u);
  EXPECT_EQ(server.step(), "0:0+6 1:0+2");
  EXPECT_EQ(server.batch.admitted, 2u);
  EXPECT_EQ(server.step(), "0:6+1 | 1:2+7");  // the rest of the budget; call 2 has none left
  EXPECT_EQ(server.step(), "0:7+1 | 1:9+2 2:0+2");
  EXPECT_EQ(server.step(), "0:8+1 1:11+1 2:2+1");
  EXPECT_EQ(server.batch.decode_calls, 3u);
  // Block 0 of the table to call 0, in order of allocation: 2 blocks, 1, 2 more, 1; then the third of call 0.
  EXPECT_EQ(server.batch.updates, 1u);
  EXPECT_EQ(server.updates[0].row, 0u);
  EXPECT_EQ(server.updates[0].first_block, 2u);
  EXPECT_EQ(server.updates[0].block_count, 1u);
}

TEST(BatchFormer, BlockTablesAndSlotsAreWrittenForTheBlocksThatAreNew) {
  Server server(small_pages(32), vllm(16));
  server.submit({.prompt_tokens = 6, .max_new_tokens = 8});
  server.form();
  EXPECT_EQ(std::vector(server.block_tables.begin(), server.block_tables.begin() + 3), (std::vector{0, 1, -1}));
  EXPECT_EQ(std::vector(server.slot_mapping.begin(), server.slot_mapping.begin() + 6),
            (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5}));
  server.complete();
  server.form();
  EXPECT_EQ(server.batch.updates, 0u);
  EXPECT_EQ(server.slot_mapping[0], 6);
  server.complete();
  server.step();
  server.form();
  EXPECT_EQ(server.batch.updates, 1u);
  EXPECT_EQ(server.block_tables[2], 2);
  EXPECT_EQ(server.slot_mapping[0], 8);
  EXPECT_EQ(server.sequence_lengths[0], 9);
}

TEST(BatchFormer, ACachedPrefixIsTakenOverAlsoWithinTheStepThatComputesIt) {
  const Hashes chain{11, 12, 13};
  Server server(small_pages(32), vllm(64));
  server.submit({.prompt_tokens = 13, .max_new_tokens = 2}, chain);
  server.submit({.prompt_tokens = 12, .max_new_tokens = 2}, chain);  // the block of its last token is no hit
  EXPECT_EQ(server.step(), "0:0+13 1:8+4");
  EXPECT_EQ(server.former->call_status(1).hit_tokens, 8u);
  EXPECT_EQ(server.former->stats().hit_tokens_total, 8u);
  EXPECT_EQ(server.former->stats().prompt_tokens_total, 25u);

  BatchFormerOptions later = vllm(64);
  later.hit_after_completion = true;
  Server careful(small_pages(32), later);
  careful.submit({.prompt_tokens = 13, .max_new_tokens = 2}, chain);
  careful.submit({.prompt_tokens = 12, .max_new_tokens = 2}, chain);
  EXPECT_EQ(careful.step(), "0:0+13 1:0+12");
  careful.submit({.prompt_tokens = 16, .max_new_tokens = 2}, chain);
  EXPECT_EQ(careful.step(), "0:13+1 1:12+1 | 2:12+4");
}

TEST(BatchFormer, SessionAffinityComputesASharedPrefixOnce) {
  BatchFormerOptions options = vllm(64);
  options.session_affinity = true;
  options.hit_after_completion = true;
  Server server(small_pages(32), options);
  server.submit({.prompt_tokens = 13, .max_new_tokens = 9}, {11, 12, 13});
  server.submit({.prompt_tokens = 14, .max_new_tokens = 9}, {11, 12, 99});  // held: 11 is about to be computed
  server.submit({.prompt_tokens = 5, .max_new_tokens = 9}, {50});           // overtakes it
  EXPECT_EQ(server.step(), "0:0+13 2:0+5");
  EXPECT_EQ(server.former->stats().held_total, 1u);
  EXPECT_EQ(server.step(), "0:13+1 2:5+1 | 1:8+6");

  // Nothing is held for a call that has ended, been preempted, or shares what is computed already.
  Server ended(small_pages(32), options);
  ended.submit({.prompt_tokens = 13, .max_new_tokens = 9}, {11, 12, 13});
  ended.submit({.prompt_tokens = 14, .max_new_tokens = 9}, {11, 12, 99});
  ended.form();
  ended.former->cancel(0);
  EXPECT_TRUE(ended.former->is_open(0));  // in flight
  EXPECT_EQ(ended.complete(), 1u);
  EXPECT_FALSE(ended.former->is_open(0));
  EXPECT_EQ(ended.step(), "1:8+6");  // what was computed is cached all the same
}

TEST(BatchFormer, SessionAffinityHoldsThroughTheChunksOfALongPrompt) {
  BatchFormerOptions options = vllm(64);
  options.session_affinity = true;
  options.max_prefill_chunk = 4;
  Server server(small_pages(32), options);
  server.submit({.prompt_tokens = 13, .max_new_tokens = 9}, {11, 12, 13});
  server.submit({.prompt_tokens = 13, .max_new_tokens = 9}, {11, 12, 99});
  EXPECT_EQ(server.step(), "0:0+4");
  EXPECT_EQ(server.step(), "0:4+4 1:8+4");  // both shared blocks are cached or scheduled
  options.session_affinity = false;
  Server without(small_pages(32), options);
  without.submit({.prompt_tokens = 13, .max_new_tokens = 9}, {11, 12, 13});
  without.submit({.prompt_tokens = 13, .max_new_tokens = 9}, {11, 12, 99});
  EXPECT_EQ(without.step(), "0:0+4 1:4+4");  // the second block twice
}

TEST(BatchFormer, PreemptionByRecomputeTakesTheCallAdmittedLast) {
  Server server(small_pages(5), vllm(32));
  server.submit({.prompt_tokens = 8, .max_new_tokens = 8}, {1, 2});
  server.submit({.prompt_tokens = 7, .max_new_tokens = 8}, {3});
  EXPECT_EQ(server.step(), "0:0+8 1:0+7");  // 4 blocks
  EXPECT_EQ(server.step(), "0:8+1 1:7+1");  // the fifth to call 0; call 1 fills its second block
  server.submit({.prompt_tokens = 1, .max_new_tokens = 1});
  EXPECT_EQ(server.step(), "0:9+1");  // call 1 wants a third block: nobody is behind it
  EXPECT_EQ(server.batch.preempted, 1u);
  EXPECT_EQ(server.preempted[0], 1u);
  EXPECT_EQ(server.former->call_status(1).state, BatchCallState::kWaiting);
  // It returns to the front: 9 known tokens, of which the first block is still cached.
  EXPECT_EQ(server.step({0}), "0:10+1");  // two blocks are free; it needs three, with the one that it hits
  EXPECT_EQ(server.step(), "1:4+5 2:0+1");
  EXPECT_EQ(server.former->call_status(1).preemptions, 1u);
  EXPECT_EQ(server.former->stats().recomputed_tokens_total, 8u);
}

TEST(BatchFormer, PreemptionBySwapKeepsWhatIsComputed) {
  BatchFormerOptions options = vllm(32);
  options.preemption = Preemption::kSwap;
  options.max_copies = 16;
  Server server(small_pages(5, 8), options);
  server.submit({.prompt_tokens = 8, .max_new_tokens = 8}, {1, 2});
  server.submit({.prompt_tokens = 7, .max_new_tokens = 8});
  EXPECT_EQ(server.step(), "0:0+8 1:0+7");
  EXPECT_EQ(server.step(), "0:8+1 1:7+1");
  EXPECT_EQ(server.step(), "0:9+1");
  EXPECT_EQ(server.batch.copies, 2u);
  EXPECT_EQ(server.copies[0], (BlockCopy{{Tier::kGpu, 2}, {Tier::kHost, 0}}));
  EXPECT_EQ(server.copies[1], (BlockCopy{{Tier::kGpu, 3}, {Tier::kHost, 1}}));
  EXPECT_EQ(server.former->call_status(1).state, BatchCallState::kSwapped);
  EXPECT_EQ(server.former->call_status(1).computed_tokens, 8u);
  EXPECT_EQ(server.step(), "0:10+1");  // 2 blocks are free; 3 are needed
  EXPECT_EQ(server.batch.copies, 0u);
  EXPECT_EQ(server.step({0}), "0:11+1");
  EXPECT_EQ(server.step(), "1:8+1");
  EXPECT_EQ(server.batch.copies, 2u);
  EXPECT_EQ(server.copies[0].source, (BlockLocation{Tier::kHost, 0}));
  EXPECT_EQ(server.former->stats().swapped_out_total, 1u);
  EXPECT_EQ(server.former->stats().recomputed_tokens_total, 0u);

  // Without room for the copies it is as by recompute.
  options.max_copies = 1;
  Server narrow(small_pages(5, 8), options);
  narrow.submit({.prompt_tokens = 8, .max_new_tokens = 8});
  narrow.submit({.prompt_tokens = 7, .max_new_tokens = 8});
  for (int i = 0; i < 3; ++i) narrow.step();
  EXPECT_EQ(narrow.former->call_status(1).state, BatchCallState::kWaiting);
}

TEST(BatchFormer, HitsInTheHostTierAreCopiedUp) {
  BatchFormerOptions options = vllm(32);
  options.max_copies = 4;
  options.slowest_hit = Tier::kHost;
  Server server(small_pages(8, 8), options);
  server.submit({.prompt_tokens = 9, .max_new_tokens = 1}, {1, 2});
  server.step();
  std::vector<BlockCopy> copies(2);
  const Hashes both{1, 2};
  const PlanResult plan = server.pages.plan_copy(Tier::kGpu, both, Tier::kHost, copies);
  server.pages.commit(plan.plan);
  for (const BlockHash hash : both) EXPECT_TRUE(server.pages.evict(Tier::kGpu, hash));
  server.submit({.prompt_tokens = 10, .max_new_tokens = 1}, both);
  EXPECT_EQ(server.step(), "0:8+2");
  EXPECT_EQ(server.batch.copies, 2u);
  EXPECT_EQ(server.copies[1].source.tier, Tier::kHost);
}

// Four calls, one seat: the order in which they run.
std::string order_of(BatchOrder order, Time limit, Time now = 0) {
  BatchFormerOptions options = vllm(64, 1);
  options.order = order;
  options.starvation_limit = limit;
  Server server(small_pages(64), options);
  server.submit({.prompt_tokens = 9, .max_new_tokens = 1}, {1, 2});  // leaves its prefix behind
  server.step();
  server.submit({.workflow = 1, .prompt_tokens = 12, .max_new_tokens = 1, .priority = 2, .urgency = 4}, {5, 6, 7}, 10);
  server.submit({.workflow = 2, .prompt_tokens = 13, .max_new_tokens = 1, .priority = 1, .urgency = 1}, {1, 2, 3}, 20);
  server.submit({.workflow = 3, .prompt_tokens = 20, .max_new_tokens = 1, .priority = 2, .urgency = 4}, {}, 30);
  server.submit({.workflow = 4, .prompt_tokens = 8, .max_new_tokens = 1, .priority = 0, .urgency = 1}, {}, 40);
  std::map<CallId, char> names;
  std::string text;
  for (CallId id = 0; id < 16; ++id) {
    if (server.former->is_open(id)) names[id] = static_cast<char>('a' + names.size());
  }
  // Ids are given out 0, 1, 2, 3, so names are in order of submission.
  for (int i = 0; i < 4; ++i) {
    server.form(now);
    text += names[server.calls[0]];
    server.complete();
  }
  return text;
}

TEST(BatchFormer, OrdersOfWaitingCalls) {
  EXPECT_EQ(order_of(BatchOrder::kFcfs, kNotDeclared), "abcd");
  EXPECT_EQ(order_of(BatchOrder::kPriority, kNotDeclared), "dbac");
  EXPECT_EQ(order_of(BatchOrder::kBfs, kNotDeclared), "abcd");
  EXPECT_EQ(order_of(BatchOrder::kDfs, kNotDeclared), "dcba");
  EXPECT_EQ(order_of(BatchOrder::kHybrid, kNotDeclared), "acbd");
  // Tokens to prefill by urgency: 12/4, 5/1 (two blocks are cached), 20/4, 8/1; b came before c.
  EXPECT_EQ(order_of(BatchOrder::kSaga, kNotDeclared), "abcd");
  // a and b are overdue, oldest first.
  EXPECT_EQ(order_of(BatchOrder::kDfs, 100, 125), "abdc");
  EXPECT_EQ(order_of(BatchOrder::kDfs, 100, 109), "dcba");
  EXPECT_EQ(order_of(BatchOrder::kHybrid, 100, 120), "abcd");
  EXPECT_EQ(order_of(BatchOrder::kPriority, 100, 1000), "dbac");
}

TEST(BatchFormer, SagaTakesWhatIsResidentFirstAndUrgencyMoves) {
  BatchFormerOptions options = vllm(64, 1);
  options.order = BatchOrder::kSaga;
  options.starvation_limit = kNotDeclared;
  Server server(small_pages(64), options);
  server.submit({.prompt_tokens = 17, .max_new_tokens = 1}, {1, 2, 3, 4});
  server.step();
  server.submit({.workflow = 1, .prompt_tokens = 8, .max_new_tokens = 1}, {8, 9});
  server.submit({.workflow = 2, .prompt_tokens = 20, .max_new_tokens = 1}, {1, 2, 3, 4, 5});
  server.submit({.workflow = 3, .prompt_tokens = 16, .max_new_tokens = 1}, {});
  EXPECT_EQ(server.former->set_urgency(3, 8), 1u);
  EXPECT_EQ(server.former->set_urgency(7, 8), 0u);
  EXPECT_EQ(server.step(), "2:0+16");  // 16/8
  EXPECT_EQ(server.step(), "1:16+4");  // 4/1
  EXPECT_EQ(server.step(), "0:0+8");
}

TEST(BatchFormer, TheCallThatIsPreemptedFirst) {
  const auto victim = [](BatchOrder order) {
    BatchFormerOptions options = vllm(64);
    options.order = order;
    Server server(small_pages(8), options);
    server.submit({.prompt_tokens = 8, .max_new_tokens = 9, .priority = 3, .urgency = 5});
    EXPECT_EQ(server.step(), "0:0+8");
    server.submit({.prompt_tokens = 7, .max_new_tokens = 9, .priority = 9, .urgency = 2});
    EXPECT_EQ(server.step(), "0:8+1 | 1:0+7");
    server.submit({.prompt_tokens = 12, .max_new_tokens = 9, .priority = 1, .urgency = 2});
    EXPECT_EQ(server.step(), "0:9+1 1:7+1 | 2:0+12");
    server.form();  // calls 1 and 2 want a block each; none is left
    return server.preempted[0];
  };
  EXPECT_EQ(victim(BatchOrder::kFcfs), 2u);
  EXPECT_EQ(victim(BatchOrder::kPriority), 1u);
  EXPECT_EQ(victim(BatchOrder::kBfs), 2u);
  EXPECT_EQ(victim(BatchOrder::kDfs), 0u);
  EXPECT_EQ(victim(BatchOrder::kHybrid), 2u);
  EXPECT_EQ(victim(BatchOrder::kSaga), 1u);  // 8 computed tokens against 12
}

TEST(BatchFormer, CallsEndByTheirLimitByTheServerAndByCancelling) {
  Server server(small_pages(32), vllm(64));
  server.submit({.workflow = 9, .prompt_tokens = 4, .max_new_tokens = 2});
  server.submit({.workflow = 9, .prompt_tokens = 4, .max_new_tokens = 9});
  server.submit({.workflow = 8, .prompt_tokens = 4, .max_new_tokens = 9});
  server.step();
  server.form();
  EXPECT_EQ(server.complete({2}), 2u);  // call 0 has reached its limit
  EXPECT_FALSE(server.former->is_open(0));
  EXPECT_TRUE(server.former->is_open(1));
  EXPECT_FALSE(server.former->is_open(2));
  EXPECT_EQ(server.former->cancel_workflow(9), 1u);
  EXPECT_EQ(server.former->stats().running_calls, 0u);
  EXPECT_EQ(server.former->stats().finished_total, 2u);
  EXPECT_EQ(server.former->stats().cancelled_total, 1u);
  EXPECT_EQ(server.pages.stats().open_sequences, 0u);
  EXPECT_EQ(server.form().calls, 0u);
  EXPECT_FALSE(server.former->in_flight());
}

TEST(BatchFormer, SeveralTokensOfOneStepAreComputedTogetherInTheNext) {
  Server server(small_pages(32), vllm(64));
  server.submit({.prompt_tokens = 4, .max_new_tokens = 9});
  server.form();
  const std::vector<std::uint32_t> three{3}, ten{10}, none{0};
  const std::vector<std::uint8_t> on{0}, end{1};
  EXPECT_FALSE(server.former->completion_valid(ten, on));
  EXPECT_FALSE(server.former->completion_valid(none, on));
  EXPECT_TRUE(server.former->completion_valid(none, end));
  EXPECT_FALSE(server.former->completion_valid({}, {}));
  server.former->complete(three, on);
  EXPECT_EQ(server.step(), "0:4+3");
  EXPECT_EQ(server.step(), "0:7+1");
}

TEST(BatchFormer, AnswersAreHitByTheNextCallOfTheWorkflow) {
  Server server(small_pages(32), vllm(64));
  server.submit({.prompt_tokens = 6, .max_new_tokens = 9}, {1});
  for (int i = 0; i < 3; ++i) server.step();  // 9 tokens are known, 8 computed
  const Hashes second{2};
  server.former->add_hashes(0, second);
  server.form();
  server.complete({0});
  EXPECT_EQ(server.pages.match(Hashes{1, 2}, 12, Tier::kGpu).tokens, 8u);
}

TEST(BatchFormer, RefusesWhatCannotRun) {
  Server server(small_pages(6), vllm(8));
  EXPECT_TRUE(server.former->fits(20, 5));
  EXPECT_FALSE(server.former->fits(20, 6));
  EXPECT_FALSE(server.former->fits(0, 6));
  EXPECT_FALSE(server.former->fits(6, 0));
  EXPECT_FALSE(server.former->fits(~0ull, ~0ull));
  for (int i = 0; i < 16; ++i) server.submit({.prompt_tokens = 1});
  CallId id = 77;
  EXPECT_EQ(server.former->submit(0, {.prompt_tokens = 1}, {}, id), Status::kFull);
  EXPECT_EQ(server.former->stats().waiting_calls, 16u);
}

TEST(BatchFormer, GivesItsSequencesBack) {
  PageTableOptions page_options = small_pages(5, 8);
  BatchFormerOptions options = vllm(32);
  options.preemption = Preemption::kSwap;
  options.max_copies = 8;
  Server server(page_options, options);
  server.submit({.prompt_tokens = 8, .max_new_tokens = 8});
  server.submit({.prompt_tokens = 7, .max_new_tokens = 8});
  for (int i = 0; i < 3; ++i) server.step();
  EXPECT_EQ(server.former->stats().swapped_calls, 1u);
  server.former.reset();
  EXPECT_EQ(server.pages.stats().open_sequences, 0u);
  EXPECT_TRUE(server.pages.verify());
}

// ---- Random servers against the rules, written down plainly

std::uint64_t next_hash = 0;

// The rules without clever structures: queues are sorted when they are looked at, every hash is searched, and all
// blocks are those of a second page table, which does exactly what the rules say.
struct Model {
  struct Entry {
    CallId id;
    BatchCall call;
    Hashes hashes;
    std::uint64_t order;
    std::int64_t place;
    Time submitted;
    std::uint32_t known;
    std::uint32_t computed = 0;
    std::uint32_t scheduled = 0;
    std::optional<SequenceId> sequence = {};
    bool swapped = false;
    bool cancelled = false;
  };
  struct Item {
    CallId id;
    std::uint32_t first, count;
    bool operator==(const Item&) const = default;
  };

  Model(const PageTableOptions& page_options, const BatchFormerOptions& former_options)
      : pages(page_options), options(former_options) {
    spare_sequences = page_options.max_sequences - options.max_sequences;
  }

  std::uint32_t blocks(std::uint32_t tokens) const { return (tokens + pages.block_size() - 1) / pages.block_size(); }
  std::uint32_t chunk(std::uint32_t lacking, std::uint32_t budget) const {
    std::uint32_t most = std::min(lacking, budget);
    return options.max_prefill_chunk > 0 ? std::min(most, options.max_prefill_chunk) : most;
  }
  std::uint32_t hittable(const Entry& entry) const {
    return std::min(static_cast<std::uint32_t>(entry.hashes.size()), (entry.known - 1) / pages.block_size());
  }
  Tier slowest() const { return options.max_copies > 0 ? options.slowest_hit : Tier::kGpu; }
  bool cached(BlockHash hash, Tier upto) const {
    for (std::uint32_t tier = 0; tier <= static_cast<std::uint32_t>(upto); ++tier) {
      if (pages.pool(static_cast<Tier>(tier)).get_cached_block(hash) != kNone) return true;
    }
    return false;
  }

  void submit(CallId id, const BatchCall& call, const Hashes& hashes, Time now) {
    waiting.push_back({id, call, hashes, next, static_cast<std::int64_t>(next), now, call.prompt_tokens});
    ++next;
  }
  Entry* find(CallId id) {
    for (auto* list : {&waiting, &running}) {
      for (Entry& entry : *list) {
        if (entry.id == id) return &entry;
      }
    }
    return nullptr;
  }

  bool grow(Entry& entry, std::uint32_t end) {
    const std::uint32_t size = pages.block_size();
    const std::uint32_t have = pages.token_count(*entry.sequence);
    const std::uint32_t want = blocks(end) * size;
    return want <= have || pages.allocate_slots(*entry.sequence, want - have).status == PageStatus::kOk;
  }
  bool fills(const Entry& e) const {
    return e.scheduled > 1 || (e.scheduled == 1 && (e.computed + 1) % pages.block_size() == 0);
  }
  void publish(Entry& entry, std::uint32_t end) {
    const std::uint32_t full = std::min(end / pages.block_size(), static_cast<std::uint32_t>(entry.hashes.size()));
    const std::uint32_t done = pages.cached_blocks(*entry.sequence);
    if (full > done) pages.cache_full_blocks(*entry.sequence, std::span(entry.hashes).subspan(done, full - done));
  }

  // Larger is preempted before smaller.
  auto importance(const Entry& e) const {
    using Key = std::tuple<double, double, double>;
    const auto order = static_cast<double>(e.order);
    switch (options.order) {
      case BatchOrder::kFcfs:
        return Key{0, 0, 0};
      case BatchOrder::kPriority:
        return Key{e.call.priority, order, 0};
      case BatchOrder::kBfs:
        return Key{order, 0, 0};
      case BatchOrder::kDfs:
        return Key{-order, 0, 0};
      case BatchOrder::kHybrid:
        return Key{-e.call.urgency, order, 0};
      case BatchOrder::kSaga:
        return Key{-e.call.urgency, -static_cast<double>(e.computed), order};
    }
    return Key{};
  }

  void preempt(std::size_t victim) {
    Entry entry = running[victim];
    running.erase(running.begin() + static_cast<std::ptrdiff_t>(victim));
    entry.scheduled = 0;
    entry.place = --front;
    std::uint32_t swapped = 0;
    for (const Entry& other : waiting) swapped += other.swapped;
    const std::uint32_t kept = blocks(entry.computed);
    bool moved = false;
    if (options.preemption == Preemption::kSwap && kept + copies.size() <= options.max_copies &&
        swapped < spare_sequences) {
      pages.truncate(*entry.sequence, kept * pages.block_size());
      std::vector<BlockCopy> room(kept);
      const PlanResult plan = pages.plan_swap_out(*entry.sequence, Tier::kHost, room);
      moved = plan.status == PageStatus::kOk;
      if (moved) {
        pages.commit(plan.plan);
        copies.insert(copies.end(), room.begin(), room.begin() + plan.copy_count);
      }
    }
    if (!moved) {
      pages.free(*entry.sequence);
      entry.sequence.reset();
      entry.computed = 0;
    }
    entry.swapped = moved;
    preempted.push_back(entry.id);
    waiting.push_back(entry);
  }

  // Which waiting call is next, of those that are not held.
  std::size_t first_waiting(const std::vector<std::tuple<int, double, double, CallId>>& keys,
                            const std::set<CallId>& held) const {
    std::size_t best = waiting.size();
    std::optional<std::tuple<int, double, double, CallId>> least;
    for (std::size_t i = 0; i < waiting.size(); ++i) {
      if (held.contains(waiting[i].id)) continue;
      for (const auto& key : keys) {
        if (std::get<3>(key) != waiting[i].id || (least && *least <= key)) continue;
        least = key;
        best = i;
      }
    }
    return best;
  }

  std::tuple<int, double, double, CallId> key(const Entry& e, Time now) const {
    const auto order = static_cast<double>(e.order);
    const bool may_age = options.order >= BatchOrder::kDfs && options.starvation_limit != kNotDeclared;
    if (may_age && now - e.submitted >= options.starvation_limit) return {0, order, 0, e.id};
    switch (options.order) {
      case BatchOrder::kFcfs:
        return {1, static_cast<double>(e.place), 0, e.id};
      case BatchOrder::kPriority:
        return {1, e.call.priority, order, e.id};
      case BatchOrder::kBfs:
        return {1, order, 0, e.id};
      case BatchOrder::kDfs:
        return {1, -order, 0, e.id};
      case BatchOrder::kHybrid:
        return {1, -e.call.urgency, order, e.id};
      case BatchOrder::kSaga:
        break;
    }
    std::uint32_t computed = e.computed;
    if (!e.swapped) {
      std::uint32_t matched = 0;
      while (matched < hittable(e) && cached(e.hashes[matched], slowest())) ++matched;
      computed = matched * pages.block_size();
    }
    return {1, static_cast<double>(e.known - computed) / e.call.urgency, order, e.id};
  }

  bool held(const Entry& e, std::uint32_t matched) const {
    if (!options.session_affinity || matched >= hittable(e)) return false;
    for (const Entry& other : running) {
      if (other.known - other.computed > 1 && other.hashes.size() > matched &&
          other.known >= (matched + 1) * pages.block_size() && pages.cached_blocks(*other.sequence) <= matched &&
          other.hashes[matched] == e.hashes[matched]) {
        return true;
      }
    }
    return false;
  }

  bool round(Time now) {
    std::uint32_t budget = options.token_budget;
    bool any = false;
    bool stop = false;
    for (Entry& e : running) e.scheduled = 0;
    for (const bool decoding : {true, false}) {
      std::vector<CallId> ids;
      for (const Entry& e : running) {
        if ((e.known - e.computed == 1) == decoding) ids.push_back(e.id);
      }
      for (const CallId id : ids) {
        const auto place = [&] {
          return static_cast<std::size_t>(
              std::find_if(running.begin(), running.end(), [&](const Entry& e) { return e.id == id; }) -
              running.begin());
        };
        if (stop || budget == 0 || place() == running.size()) continue;
        const Entry& e = running[place()];
        const std::uint32_t tokens = decoding ? 1 : chunk(e.known - e.computed, budget);
        while (place() < running.size() && !grow(running[place()], running[place()].computed + tokens)) {
          std::size_t victim = running.size() - 1;
          for (std::size_t i = 0; i < running.size() && options.order != BatchOrder::kFcfs; ++i) {
            if (importance(running[i]) > importance(running[victim])) victim = i;
          }
          budget += running[victim].scheduled;
          any = true;
          if (running[victim].id == id && options.order <= BatchOrder::kPriority) stop = true;
          preempt(victim);
        }
        if (place() == running.size()) continue;
        running[place()].scheduled = tokens;
        budget -= tokens;
      }
    }
    admitted_from = running.size();
    if (!options.hit_after_completion) {
      for (const bool decoding : {true, false}) {
        for (Entry& e : running) {
          if (fills(e) && (e.known - e.computed == 1) == decoding) publish(e, e.computed + e.scheduled);
        }
      }
    }
    if (!any) admit(now, budget);
    return any;
  }

  void admit(Time now, std::uint32_t budget) {
    std::vector<std::tuple<int, double, double, CallId>> keys;
    for (const Entry& e : waiting) keys.push_back(key(e, now));
    std::set<CallId> held_now;
    const BlockPool& gpu = pages.pool(Tier::kGpu);
    while (budget > 0 && running.size() < options.max_sequences) {
      const std::size_t best = first_waiting(keys, held_now);
      if (best == waiting.size()) return;
      Entry e = waiting[best];
      if (e.swapped) {
        const std::uint32_t tokens = chunk(e.known - e.computed, budget);
        if (blocks(e.computed + tokens) > gpu.free_count()) return;
        if (pages.block_count(*e.sequence) > options.max_copies - copies.size() && !pages.is_resident(*e.sequence))
          return;
        e.scheduled = tokens;
      } else {
        std::uint32_t matched = 0, taken = 0, below = 0;
        for (; matched < hittable(e); ++matched) {
          const BlockId block = gpu.get_cached_block(e.hashes[matched]);
          if (block != kNone) {
            taken += gpu.ref_count(block) == 0;
          } else if (cached(e.hashes[matched], slowest()) && copies.size() + below < options.max_copies) {
            ++below;
          } else {
            break;
          }
        }
        if (held(e, matched)) {
          held_now.insert(e.id);
          continue;
        }
        e.computed = matched * pages.block_size();
        e.scheduled = chunk(e.known - e.computed, budget);
        if (blocks(e.computed + e.scheduled) - matched + taken + below > gpu.free_count()) return;
        e.sequence = pages.open(std::span(e.hashes).first(matched), e.known, slowest()).sequence;
      }
      if (!pages.is_resident(*e.sequence)) {
        std::vector<BlockCopy> room(pages.block_count(*e.sequence));
        const PlanResult plan = pages.plan_swap_in(*e.sequence, room);
        pages.commit(plan.plan);
        copies.insert(copies.end(), room.begin(), room.begin() + plan.copy_count);
      }
      EXPECT_TRUE(grow(e, e.computed + e.scheduled));
      e.swapped = false;
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(best));
      budget -= e.scheduled;
      running.push_back(e);
      if (!options.hit_after_completion && fills(e)) publish(running.back(), e.computed + e.scheduled);
    }
  }

  std::vector<Item> form(Time now) {
    copies.clear();
    preempted.clear();
    while (round(now)) {
      if (std::any_of(running.begin(), running.end(), [](const Entry& e) { return e.scheduled > 0; })) break;
    }
    std::vector<Item> batch;
    decodes = 0;
    for (const bool decoding : {true, false}) {
      for (std::size_t i = 0; i < running.size(); ++i) {
        const Entry& e = running[i];
        const bool decodes_now = i < admitted_from && e.known - e.computed == 1;
        if (e.scheduled == 0 || decodes_now != decoding) continue;
        batch.push_back({e.id, e.computed, e.scheduled});
        decodes += decoding;
      }
    }
    return batch;
  }

  void complete(const std::map<CallId, std::pair<std::uint32_t, bool>>& outcome) {
    // In order of the batch for what is published after completion: decoding calls first.
    for (const bool decoding : {true, false}) {
      for (std::size_t i = 0; i < running.size(); ++i) {
        Entry& e = running[i];
        const bool decodes_now = i < admitted_from && e.known - e.computed == 1;
        if (!fills(e) || decodes_now != decoding || !options.hit_after_completion) continue;
        publish(e, e.computed + e.scheduled);
      }
    }
    std::vector<Entry> left;
    for (Entry& e : running) {
      bool ends = e.cancelled;
      if (e.scheduled > 0) {
        const auto [sampled, finished] = outcome.at(e.id);
        e.computed += e.scheduled;
        e.known += sampled;
        e.scheduled = 0;
        ends = ends || finished || e.known == e.call.prompt_tokens + e.call.max_new_tokens;
      }
      if (!ends) {
        left.push_back(e);
        continue;
      }
      publish(e, e.computed);
      pages.free(*e.sequence);
    }
    running = left;
  }

  PageTable pages;
  BatchFormerOptions options;
  std::vector<Entry> waiting, running;
  std::vector<BlockCopy> copies;
  std::vector<CallId> preempted;
  std::size_t admitted_from = 0;
  std::uint32_t decodes = 0;
  std::uint32_t spare_sequences = 0;
  std::uint64_t next = 0;
  std::int64_t front = 0;
};

void play(std::uint64_t seed, std::uint64_t& preemptions, std::uint64_t& held, std::uint64_t& swaps) {
  Random random(seed);
  const auto below = [&](std::uint32_t bound) { return static_cast<std::uint32_t>(random.below(bound)); };
  const std::uint32_t size = 1 + below(4);
  PageTableOptions page_options = {.block_size = size,
                                   .block_count = {12 + below(30), below(2) * below(40), 0},
                                   .max_sequences = 4 + below(6),
                                   .max_blocks_per_sequence = 12,
                                   .event_capacity = 0,
                                   .uncached_first = below(2) == 1};
  BatchFormerOptions options = {.max_calls = 12,
                                .max_sequences = 2 + below(page_options.max_sequences - 1),
                                .token_budget = 1 + below(30),
                                .max_prefill_chunk = below(3) == 0 ? 1 + below(6) : 0,
                                .max_copies = below(3) == 0 ? 0 : 4 + below(30),
                                .order = static_cast<BatchOrder>(below(kBatchOrderCount)),
                                .preemption = static_cast<Preemption>(below(2)),
                                .slowest_hit = below(2) == 0 ? Tier::kGpu : Tier::kHost,
                                .session_affinity = below(2) == 1,
                                .hit_after_completion = below(2) == 1,
                                .starvation_limit = below(2) == 0 ? kNotDeclared : below(40)};
  options.max_sequences = std::min(options.max_sequences, page_options.max_sequences);
  Server server(page_options, options);
  Model model(page_options, options);
  BatchFormer& former = *server.former;
  Time now = 0;
  std::map<std::vector<std::uint32_t>, BlockHash> names;
  std::map<CallId, std::uint32_t> hashed;

  for (int step = 0; step < 120; ++step) {
    now += below(4);
    while (below(3) > 0) {
      const std::uint32_t prompt = 1 + below(7 * size);
      const std::uint32_t output = 1 + below(3 * size + 2);
      if (!former.fits(prompt, output)) continue;
      // Few different prefixes, so that many are shared; a chain names everything before it.
      Hashes hashes;
      std::vector<std::uint32_t> words;
      for (std::uint32_t i = 0; i < prompt / size; ++i) {
        words.push_back(i == 0 ? below(3) : below(8) == 0 ? 1 : 0);
        hashes.push_back(names.try_emplace(words, names.size() + 1).first->second);
      }
      const BatchCall call = {.workflow = below(3),
                              .prompt_tokens = prompt,
                              .max_new_tokens = output,
                              .priority = static_cast<std::int32_t>(below(3)) - 1,
                              .urgency = below(4) / 2.0};
      if (call.urgency == 0 && options.order == BatchOrder::kSaga) continue;
      CallId id = kNone;
      const Status status = former.submit(now, call, hashes, id);
      if (status == Status::kFull) break;
      model.submit(id, call, hashes, now);
    }
    const auto cancel_some = [&] {
      const CallId id = below(12);
      if (!former.is_open(id) || below(4) > 0) return;
      Model::Entry* entry = model.find(id);
      ASSERT_NE(entry, nullptr);
      former.cancel(id);
      if (former.in_flight() && entry >= model.running.data() && entry < model.running.data() + model.running.size()) {
        entry->cancelled = true;
        return;
      }
      if (entry->sequence) {
        if (!entry->swapped) model.publish(*entry, entry->computed);
        model.pages.free(*entry->sequence);
      }
      for (auto* list : {&model.waiting, &model.running}) {
        std::erase_if(*list, [&](const Model::Entry& e) { return e.id == id; });
      }
    };
    cancel_some();
    if (below(4) == 0) {
      const std::uint64_t workflow = below(3);
      const double urgency = 0.5 + below(4);
      former.set_urgency(workflow, urgency);
      for (auto* list : {&model.waiting, &model.running}) {
        for (Model::Entry& e : *list) {
          if (e.call.workflow == workflow) e.call.urgency = urgency;
        }
      }
      const CallId id = below(12);
      if (former.is_open(id)) {
        former.set_priority(id, -2);
        model.find(id)->call.priority = -2;
      }
    }

    server.form(now);
    const std::vector<Model::Item> expected = model.form(now);
    std::vector<Model::Item> got;
    for (std::uint32_t i = 0; i < server.batch.calls; ++i) {
      got.push_back({server.calls[i], server.first_tokens[i], server.token_counts[i]});
    }
    ASSERT_TRUE(got == expected) << "seed " << seed << " step " << step << ": " << server.batch_text();
    ASSERT_EQ(server.batch.decode_calls, model.decodes);
    ASSERT_EQ(std::vector(server.preempted.begin(), server.preempted.begin() + server.batch.preempted),
              model.preempted);
    ASSERT_EQ(std::vector(server.copies.begin(), server.copies.begin() + server.batch.copies), model.copies);
    ASSERT_EQ(server.pages.digest(), model.pages.digest()) << "seed " << seed << " step " << step;
    if (server.batch.calls == 0) continue;
    cancel_some();

    std::map<CallId, std::pair<std::uint32_t, bool>> outcome;
    std::vector<std::uint32_t> sampled;
    std::vector<std::uint8_t> finished;
    for (const Model::Item& item : expected) {
      const Model::Entry& e = *model.find(item.id);
      const bool whole = e.computed + e.scheduled == e.known;
      const std::uint32_t left = e.call.prompt_tokens + e.call.max_new_tokens - e.known;
      const std::uint32_t tokens = whole ? std::min(left, below(8) == 0 ? 2u : 1u) : 0;
      const bool ends = below(16) == 0;
      outcome[item.id] = {tokens, ends};
      sampled.push_back(tokens);
      finished.push_back(ends ? 1 : 0);
    }
    ASSERT_TRUE(former.completion_valid(sampled, finished));
    former.complete(sampled, finished);
    model.complete(outcome);
    ASSERT_TRUE(former.verify() && server.pages.verify()) << "seed " << seed << " step " << step;
    // Some blocks that are full now get a hash.
    for (Model::Entry& e : model.running) {
      if (below(2) == 0 || e.known / size <= e.hashes.size()) continue;
      const Hashes more{1'000'000 + next_hash++};
      former.add_hashes(e.id, more);
      e.hashes.push_back(more[0]);
    }
    ASSERT_EQ(server.pages.digest(), model.pages.digest()) << "seed " << seed << " step " << step;
    ASSERT_EQ(former.stats().running_calls, model.running.size());
    ASSERT_EQ(former.stats().waiting_calls, model.waiting.size());
  }
  preemptions += former.stats().preempted_total;
  held += former.stats().held_total;
  swaps += former.stats().swapped_out_total;
}

TEST(BatchFormer, DoesWhatTheModelDoes) {
  std::uint64_t preemptions = 0, held = 0, swaps = 0;
  for (std::uint64_t seed = 1; seed <= 400 && !testing::Test::HasFatalFailure(); ++seed) {
    play(seed, preemptions, held, swaps);
  }
  // What was to be compared did occur.
  EXPECT_GT(preemptions, 1000u);
  EXPECT_GT(held, 200u);
  EXPECT_GT(swaps, 100u);
}

// ---- Eviction by the policy saga

constexpr Time kSecond = 1'000'000;

PageTableOptions saga_pages(std::uint32_t gpu, std::uint32_t host = 0) {
  PageTableOptions options = small_pages(gpu, host);
  options.eviction = PolicyKind::kSaga;
  return options;
}

Hashes blocks_from(BlockHash first, std::uint32_t count) {
  Hashes hashes;
  for (std::uint32_t i = 0; i < count; ++i) hashes.push_back(first + i);
  return hashes;
}

// A call of three blocks that are all computed and cached, and one new token.
CallId submit_three(Server& server, std::uint64_t thread, Time now) {
  return server.submit({.prompt_tokens = 12, .thread = thread, .prompt_kind = PromptKind::kTool},
                       blocks_from(10 * thread, 3), now);
}

std::string cached(const PageTable& pages, std::uint64_t threads) {
  std::string text;
  for (std::uint64_t thread = 1; thread <= threads; ++thread) {
    for (BlockHash hash = 10 * thread; hash < 10 * thread + 3; ++hash) {
      if (pages.pool(Tier::kGpu).get_cached_block(hash) != kNone) text += std::to_string(hash) + " ";
    }
  }
  return text;
}

TEST(BatchFormerEviction, WhatIsToldOfACallReachesThePolicy) {
  for (const PolicyKind kind : {PolicyKind::kLru, PolicyKind::kSaga}) {
    PageTableOptions options = saga_pages(6);
    options.eviction = kind;
    Server server(options, vllm(64));
    submit_three(server, 1, 0);
    server.step();
    const CallId second = submit_three(server, 2, kSecond);
    server.former->set_outcome(second, {.session_end = true});
    server.step();
    submit_three(server, 3, 2 * kSecond);
    server.step();
    EXPECT_EQ(cached(server.pages, 3), kind == PolicyKind::kLru ? "20 21 22 30 31 32 " : "10 11 12 30 31 32 ");
  }
}

TEST(BatchFormerEviction, WhatIsToldAfterTheEndCountsToo) {
  for (const std::uint64_t told : {0, 1, 2}) {  // 0: nobody
    Server server(saga_pages(6), vllm(64));
    for (const std::uint64_t thread : {1, 2}) {
      submit_three(server, thread, thread * kSecond);
      if (thread == told) {
        EXPECT_FALSE(server.pages.told(told, {.session_end = true}));  // it is not in a gap
      }
      server.step();
    }
    if (told > 0) {
      EXPECT_TRUE(server.pages.told(told, {.session_end = true}));
    }
    EXPECT_FALSE(server.pages.told(77, {.session_end = true}));
    submit_three(server, 3, 3 * kSecond);
    server.step();
    EXPECT_EQ(cached(server.pages, 3), told == 2 ? "10 11 12 30 31 32 " : "20 21 22 30 31 32 ");
  }
}

TEST(BatchFormerEviction, AShortGapThatIsDeclaredKeepsAnOlderThread) {
  for (const bool declared : {false, true}) {
    Server server(saga_pages(6), vllm(64));
    for (const std::uint64_t thread : {1, 2}) {
      const CallId call = submit_three(server, thread, thread * kSecond);
      const Time gap = thread == 1 ? 5 * kSecond : 3000 * kSecond;
      if (declared) server.former->set_outcome(call, {.stop_reason = StopReason::kToolUse, .declared_gap = gap});
      server.step();
    }
    submit_three(server, 3, 3 * kSecond);
    server.step();
    EXPECT_EQ(cached(server.pages, 3), declared ? "10 11 12 30 31 32 " : "20 21 22 30 31 32 ");
  }
}

TEST(BatchFormerEviction, ThePolicySeesWholePromptsAndPreemptedCallsOnce) {
  Server server(saga_pages(5), vllm(32));
  server.submit({.prompt_tokens = 8, .max_new_tokens = 8, .thread = 1}, {1, 2});
  server.submit({.prompt_tokens = 7, .max_new_tokens = 8, .thread = 2}, {3});
  server.step();
  server.step();
  EXPECT_EQ(server.step(), "0:9+1");                                     // the second is preempted
  EXPECT_EQ(server.pages.evictor()->stats().requested_pages_total, 2u);  // not the block of a last token
  EXPECT_FALSE(server.pages.told(2, {}));                                // it is expected back, not in a gap
  EXPECT_EQ(server.step(), "0:10+1");
  EXPECT_EQ(server.step({0}), "0:11+1");
  EXPECT_TRUE(server.pages.told(1, {}));
  EXPECT_EQ(server.step().substr(0, 2), "1:");
  EXPECT_EQ(server.pages.evictor()->stats().requested_pages_total, 2u);
  server.former->cancel(1);
  EXPECT_TRUE(server.pages.told(2, {}));
}

TEST(BatchFormerEviction, ACallThatIsCancelledWhilePreemptedHasEnded) {
  for (const bool cancels : {true, false}) {  // or the former is destroyed
    Server server(saga_pages(5), vllm(32));
    server.submit({.prompt_tokens = 8, .max_new_tokens = 8, .thread = 1}, {1, 2});
    server.submit({.prompt_tokens = 7, .max_new_tokens = 8, .thread = 2}, {3});
    for (int i = 0; i < 3; ++i) server.step();
    ASSERT_EQ(server.former->call_status(1).preemptions, 1u);
    EXPECT_FALSE(server.pages.told(2, {}));
    if (cancels) {
      server.former->cancel(1);
      EXPECT_FALSE(server.pages.told(1, {}));
    } else {
      server.former.reset();
      EXPECT_TRUE(server.pages.told(1, {}));
    }
    EXPECT_TRUE(server.pages.told(2, {}));
  }
}

TEST(BatchFormerEviction, RandomCallsStayConsistent) {
  std::uint64_t preemptions = 0, evictions = 0, told = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Random random(seed);
    BatchFormerOptions options = vllm(24);
    options.order = static_cast<BatchOrder>(random.below(kBatchOrderCount));
    options.max_copies = static_cast<std::uint32_t>(random.below(2) * 8);
    if (options.max_copies > 0 && random.below(2) == 0) options.preemption = Preemption::kSwap;
    if (options.max_copies > 0) options.slowest_hit = Tier::kHost;
    Server server(saga_pages(10, 6), options);
    std::map<std::uint64_t, std::uint32_t> blocks;  // of the thread's conversation
    Time now = 0;
    for (int step = 0; step < 150; ++step) {
      now += random.below(3 * kSecond);
      if (random.below(2) == 0) {
        const std::uint64_t thread = random.below(6);
        const bool named = random.below(4) > 0;
        std::uint32_t& length = blocks[thread];
        length = random.below(8) == 0 ? 1 : std::min(length + 1, 5u);
        BatchCall call{.prompt_tokens = 4 * length + static_cast<std::uint32_t>(random.below(4)),
                       .max_new_tokens = 1 + static_cast<std::uint32_t>(random.below(6)),
                       .urgency = 1 + static_cast<double>(random.below(3)),
                       .prompt_kind = static_cast<PromptKind>(random.below(3))};
        if (named) call.thread = thread;
        CallId id = kNone;
        (void)server.former->submit(std::max(now, server.former->now()), call, blocks_from(100 * thread, length), id);
      }
      const CallId call = static_cast<CallId>(random.below(options.max_calls));
      if (random.below(4) == 0 && server.former->is_open(call)) {
        server.former->set_outcome(call, {.stop_reason = StopReason::kToolUse,
                                          .session_end = random.below(3) == 0,
                                          .declared_gap = random.below(2) == 0 ? kNotDeclared : random.below(kSecond)});
      }
      if (random.below(16) == 0 && server.former->is_open(call)) server.former->cancel(call);
      if (random.below(4) == 0) told += server.pages.told(random.below(6), {.session_end = random.below(2) == 0});
      if (random.below(24) == 0) server.pages.thread_left(random.below(6));
      if (server.form(now).calls > 0) {
        if (random.below(16) == 0 && server.former->is_open(call)) server.former->cancel(call);
        server.complete();
      }
      if (testing::Test::HasFailure()) FAIL() << "seed " << seed << " step " << step;
    }
    preemptions += server.former->stats().preempted_total;
    evictions += server.pages.evictor()->stats().evicted_total;
    server.former.reset();
    ASSERT_TRUE(server.pages.verify());
    // All calls have ended: every thread that called is in a gap, or has left.
    EXPECT_EQ(server.pages.stats().open_sequences, 0u);
  }
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(evictions, 1000u);
  EXPECT_GT(told, 200u);
}

}  // namespace
}  // namespace saga
