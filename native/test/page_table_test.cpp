#include "../core/pages/page_table.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "../core/base/random.hpp"

namespace saga {
namespace {

using Ids = std::vector<BlockId>;
using Hashes = std::vector<BlockHash>;

constexpr BlockLocation gpu(BlockId block) { return {.tier = Tier::kGpu, .block = block}; }
constexpr BlockLocation host(BlockId block) { return {.tier = Tier::kHost, .block = block}; }
constexpr BlockLocation disk(BlockId block) { return {.tier = Tier::kDisk, .block = block}; }

PageTableOptions options(std::uint32_t gpu_blocks, std::uint32_t host_blocks = 0, std::uint32_t disk_blocks = 0) {
  return {.block_size = 4,
          .block_count = {gpu_blocks, host_blocks, disk_blocks},
          .max_sequences = 4,
          .max_blocks_per_sequence = 8,
          .max_plans = 2,
          .event_capacity = 64};
}

Ids free_order(const PageTable& table, Tier tier) {
  Ids order;
  const BlockPool& pool = table.pool(tier);
  for (BlockId block = pool.next_free(); block != kNone; block = pool.next_free(block)) order.push_back(block);
  return order;
}

std::vector<BlockLocation> blocks_of(const PageTable& table, SequenceId sequence) {
  std::vector<BlockLocation> blocks;
  for (std::uint32_t i = 0; i < table.block_count(sequence); ++i) blocks.push_back(table.location(sequence, i));
  return blocks;
}

// A sequence with `token_count` tokens of which the full blocks have these hashes; nothing of it is in the cache yet.
SequenceId filled(PageTable& table, std::uint32_t token_count, const Hashes& hashes) {
  const OpenResult opened = table.open({}, token_count, Tier::kGpu);
  EXPECT_EQ(opened.status, PageStatus::kOk);
  EXPECT_EQ(table.allocate_slots(opened.sequence, token_count).status, PageStatus::kOk);
  EXPECT_EQ(table.cache_full_blocks(opened.sequence, hashes), PageStatus::kOk);
  return opened.sequence;
}

struct Planned {
  PlanResult result;
  std::vector<BlockCopy> copies;
};

Planned swap_out(PageTable& table, SequenceId sequence, Tier target) {
  Planned planned = {.result = {}, .copies = std::vector<BlockCopy>(8)};
  planned.result = table.plan_swap_out(sequence, target, planned.copies);
  planned.copies.resize(planned.result.copy_count);
  return planned;
}

Planned swap_in(PageTable& table, SequenceId sequence) {
  Planned planned = {.result = {}, .copies = std::vector<BlockCopy>(8)};
  planned.result = table.plan_swap_in(sequence, planned.copies);
  planned.copies.resize(planned.result.copy_count);
  return planned;
}

Planned copy(PageTable& table, Tier source, const Hashes& hashes, Tier target) {
  Planned planned = {.result = {}, .copies = std::vector<BlockCopy>(8)};
  planned.result = table.plan_copy(source, hashes, target, planned.copies);
  planned.copies.resize(planned.result.copy_count);
  return planned;
}

TEST(PageTable, ExactRepeatRecomputesTheLastBlock) {
  PageTable table(options(10));
  const Hashes prompt = {1, 2, 3};  // 12 tokens, three full blocks
  const OpenResult first = table.open(prompt, 12, Tier::kGpu);
  EXPECT_EQ(first.sequence, 0u);
  EXPECT_EQ(first.hit.tokens, 0u);
  EXPECT_EQ(table.allocate_slots(0, 12).status, PageStatus::kOk);
  EXPECT_EQ(table.cache_full_blocks(0, prompt), PageStatus::kOk);
  EXPECT_EQ(blocks_of(table, 0), (std::vector{gpu(0), gpu(1), gpu(2)}));

  // All three blocks are there, but the last token must be computed: 8 tokens hit, and the third block is computed again.
  EXPECT_EQ(table.match(prompt, 12, Tier::kGpu).tokens, 8u);
  const OpenResult repeat = table.open(prompt, 12, Tier::kGpu);
  EXPECT_EQ(repeat.sequence, 1u);
  EXPECT_EQ(repeat.hit.tokens, 8u);
  EXPECT_EQ(table.token_count(1), 8u);
  EXPECT_EQ(table.allocate_slots(1, 4).status, PageStatus::kOk);
  EXPECT_EQ(table.cache_full_blocks(1, Hashes{3}), PageStatus::kOk);
  EXPECT_EQ(blocks_of(table, 1), (std::vector{gpu(0), gpu(1), gpu(3)}));
  EXPECT_EQ(table.pool(Tier::kGpu).ref_count(0), 2u);

  // Two blocks with the hash 3; the one cached first is found.
  EXPECT_EQ(table.pool(Tier::kGpu).cached_count(), 4u);
  EXPECT_EQ(table.stats().tiers[0].cached_hashes, 3u);
  EXPECT_EQ(table.pool(Tier::kGpu).get_cached_block(3), 2u);
  std::vector<BlockEvent> events(8);
  events.resize(table.drain_events(events));
  const auto stored = [](BlockHash hash, BlockId block) {
    return BlockEvent{.hash = hash, .block = block, .tier = Tier::kGpu, .kind = BlockEventKind::kStored};
  };
  EXPECT_EQ(events, (std::vector{stored(1, 0), stored(2, 1), stored(3, 2), stored(3, 3)}));
  EXPECT_TRUE(table.verify());

  // Freeing the first gives back only what it does not share; freeing the second gives the rest, end first.
  EXPECT_EQ(table.free(0), PageStatus::kOk);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{4, 5, 6, 7, 8, 9, 2}));
  EXPECT_EQ(table.free(1), PageStatus::kOk);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{4, 5, 6, 7, 8, 9, 2, 3, 1, 0}));

  // One token more, and all of the 12 hit: through block 2, which leaves the middle of the list.
  const OpenResult longer = table.open(prompt, 13, Tier::kGpu);
  EXPECT_EQ(longer.hit.tokens, 12u);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{4, 5, 6, 7, 8, 9, 3}));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, MatchEndsAtTheFirstMiss) {
  PageTable table(options(8));
  filled(table, 12, {1, 2, 3});
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 100, Tier::kGpu).tokens, 12u);
  EXPECT_EQ(table.match(Hashes{1, 9, 3}, 100, Tier::kGpu).tokens, 4u);
  EXPECT_EQ(table.match(Hashes{9, 2, 3}, 100, Tier::kGpu).tokens, 0u);
  EXPECT_EQ(table.match(Hashes{1, 2}, 100, Tier::kGpu).tokens, 8u);
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 5, Tier::kGpu).tokens, 4u);  // the block of the last token never hits
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 4, Tier::kGpu).tokens, 0u);
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 1, Tier::kGpu).tokens, 0u);
  EXPECT_EQ(table.match({}, 100, Tier::kGpu).tokens, 0u);
  EXPECT_TRUE(table.evict(Tier::kGpu, 2));
  EXPECT_FALSE(table.evict(Tier::kGpu, 2));
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 100, Tier::kGpu).tokens, 4u);
}

TEST(PageTable, SlotsComeAllOrNot) {
  PageTable table(options(3));
  const SequenceId a = table.open({}, 20, Tier::kGpu).sequence;
  EXPECT_EQ(table.allocate_slots(a, 5).status, PageStatus::kOk);  // 2 blocks
  EXPECT_EQ(table.allocate_slots(a, 3).status, PageStatus::kOk);  // fills the second
  EXPECT_EQ(table.block_count(a), 2u);
  const std::uint64_t before = table.digest();
  EXPECT_EQ(table.allocate_slots(a, 5).status, PageStatus::kOutOfBlocks);  // needs 2, has 1
  EXPECT_EQ(table.digest(), before);
  EXPECT_EQ(table.allocate_slots(a, 4).status, PageStatus::kOk);
  EXPECT_EQ(table.allocate_slots(a, 0).status, PageStatus::kOk);
  EXPECT_EQ(table.allocate_slots(a, 1).status, PageStatus::kOutOfBlocks);
  EXPECT_EQ(table.allocate_slots(a, 21).status, PageStatus::kSequenceFull);  // 33 tokens in at most 8 blocks of 4
  EXPECT_EQ(table.allocate_slots(a, 0xFFFFFFFFu).status, PageStatus::kSequenceFull);
  EXPECT_EQ(table.stats().out_of_blocks_total, 2u);
  EXPECT_EQ(table.token_count(a), 12u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, SequencesAreBounded) {
  PageTable table(options(4));
  for (SequenceId id = 0; id < 4; ++id) EXPECT_EQ(table.open({}, 1, Tier::kGpu).sequence, id);
  EXPECT_EQ(table.open({}, 1, Tier::kGpu).status, PageStatus::kOutOfSequences);
  EXPECT_EQ(table.fork(0).status, PageStatus::kOutOfSequences);
  EXPECT_EQ(table.free(2), PageStatus::kOk);
  EXPECT_FALSE(table.is_open(2));
  EXPECT_EQ(table.fork(0).sequence, 2u);
  EXPECT_FALSE(table.is_open(4));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, ForkCopiesOnWrite) {
  PageTable table(options(6));
  const SequenceId a = filled(table, 6, {1});
  const SequenceId b = table.fork(a).sequence;
  EXPECT_EQ(blocks_of(table, b), (std::vector{gpu(0), gpu(1)}));
  EXPECT_EQ(table.pool(Tier::kGpu).ref_count(1), 2u);
  EXPECT_EQ(table.cached_blocks(b), 1u);

  // Block 1 is half full and shared: who writes first gets a copy, who is left alone with it writes in place.
  const AllocateResult written = table.allocate_slots(b, 1);
  EXPECT_EQ(written.status, PageStatus::kOk);
  EXPECT_TRUE(written.copied);
  EXPECT_EQ(written.copy, (BlockCopy{.source = gpu(1), .target = gpu(2)}));
  EXPECT_EQ(blocks_of(table, b), (std::vector{gpu(0), gpu(2)}));
  EXPECT_EQ(blocks_of(table, a), (std::vector{gpu(0), gpu(1)}));
  EXPECT_EQ(table.pool(Tier::kGpu).ref_count(0), 2u);
  EXPECT_EQ(table.pool(Tier::kGpu).ref_count(1), 1u);
  EXPECT_FALSE(table.allocate_slots(a, 2).copied);
  EXPECT_EQ(table.stats().copies_on_write_total, 1u);

  // At a block boundary nothing shared is written to.
  const SequenceId c = table.fork(a).sequence;
  EXPECT_FALSE(table.allocate_slots(c, 1).copied);
  EXPECT_EQ(blocks_of(table, c), (std::vector{gpu(0), gpu(1), gpu(3)}));
  // A full block that a fork cached already is passed over.
  EXPECT_EQ(table.cache_full_blocks(a, Hashes{2}), PageStatus::kOk);
  EXPECT_EQ(table.cache_full_blocks(c, Hashes{2}), PageStatus::kOk);
  EXPECT_EQ(table.pool(Tier::kGpu).cached_count(), 2u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, CopyOnWriteCountsAgainstTheFreeBlocks) {
  PageTable table(options(4));
  const SequenceId a = filled(table, 6, {});
  const SequenceId b = table.fork(a).sequence;
  const std::uint64_t before = table.digest();
  EXPECT_EQ(table.allocate_slots(b, 7).status, PageStatus::kOutOfBlocks);  // 2 more blocks and the copy; 2 are free
  EXPECT_EQ(table.digest(), before);
  const AllocateResult written = table.allocate_slots(b, 3);  // 1 more and the copy
  EXPECT_EQ(written.copy, (BlockCopy{.source = gpu(1), .target = gpu(2)}));
  EXPECT_EQ(blocks_of(table, b), (std::vector{gpu(0), gpu(2), gpu(3)}));

  const SequenceId c = table.fork(a).sequence;
  EXPECT_EQ(table.allocate_slots(c, 1).status, PageStatus::kOutOfBlocks);  // no room for the copy
  EXPECT_EQ(table.free(a), PageStatus::kOk);
  EXPECT_FALSE(table.allocate_slots(c, 1).copied);  // nobody else uses it now
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, TruncateGivesBackTheEnd) {
  PageTable table(options(6));
  const SequenceId a = filled(table, 16, {1, 2, 3, 4});
  EXPECT_EQ(table.truncate(a, 5), PageStatus::kOk);
  EXPECT_EQ(table.block_count(a), 2u);
  EXPECT_EQ(table.cached_blocks(a), 1u);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{4, 5, 3, 2}));
  EXPECT_EQ(table.match(Hashes{1, 2, 3, 4}, 17, Tier::kGpu).tokens, 16u);  // still cached, all of it
  EXPECT_EQ(table.truncate(a, 0), PageStatus::kOk);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{4, 5, 3, 2, 1, 0}));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, WritingIntoAFullCachedBlockNeverChangesWhatItsHashSays) {
  PageTable table(options(6));
  const SequenceId a = filled(table, 8, {1, 2});
  const SequenceId b = table.open(Hashes{1, 2}, 9, Tier::kGpu).sequence;
  EXPECT_EQ(blocks_of(table, b), (std::vector{gpu(0), gpu(1)}));

  // Shared: the writer gets a copy, the hash stays where the data stay.
  EXPECT_EQ(table.truncate(b, 6), PageStatus::kOk);
  EXPECT_EQ(table.allocate_slots(b, 1).copy, (BlockCopy{.source = gpu(1), .target = gpu(2)}));
  EXPECT_EQ(table.pool(Tier::kGpu).get_cached_block(2), 1u);

  // Alone: written in place, so the hash goes. Not before something is written.
  EXPECT_EQ(table.truncate(a, 7), PageStatus::kOk);
  EXPECT_FALSE(table.allocate_slots(a, 0).copied);
  EXPECT_EQ(table.pool(Tier::kGpu).get_cached_block(2), 1u);
  EXPECT_FALSE(table.allocate_slots(a, 1).copied);
  EXPECT_EQ(table.pool(Tier::kGpu).get_cached_block(2), kNone);
  EXPECT_EQ(table.cache_full_blocks(a, Hashes{22}), PageStatus::kOk);
  EXPECT_EQ(table.pool(Tier::kGpu).get_cached_block(22), 1u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, ExportsBlockTablesAndSlots) {
  PageTable table(options(8));
  const SequenceId a = filled(table, 6, {});                      // blocks 0, 1
  const SequenceId b = filled(table, 4, {});                      // block 2
  EXPECT_EQ(table.allocate_slots(a, 3).status, PageStatus::kOk);  // block 3
  const SequenceId empty = table.open({}, 1, Tier::kGpu).sequence;

  std::vector<std::int32_t> tables(13, 99);
  EXPECT_EQ(table.export_block_tables(std::vector{b, a, empty}, 4, -1, tables), PageStatus::kOk);
  EXPECT_EQ(tables, (std::vector<std::int32_t>{2, -1, -1, -1, 0, 1, 3, -1, -1, -1, -1, -1, 99}));

  std::vector<std::int64_t> slots(10, 99);
  const std::vector<TokenRange> ranges = {{.sequence = a, .first_token = 2, .token_count = 7},
                                          {.sequence = empty, .first_token = 0, .token_count = 0},
                                          {.sequence = b, .first_token = 1, .token_count = 2}};
  EXPECT_EQ(table.export_slot_mapping(ranges, slots), PageStatus::kOk);
  EXPECT_EQ(slots, (std::vector<std::int64_t>{2, 3, 4, 5, 6, 7, 12, 9, 10, 99}));
}

TEST(PageTable, SwapsOutAndIn) {
  PageTable table(options(6, 6));
  const SequenceId a = filled(table, 10, {1, 2});
  const Planned out = swap_out(table, a, Tier::kHost);
  EXPECT_EQ(out.result.status, PageStatus::kOk);
  EXPECT_EQ(out.copies, (std::vector<BlockCopy>{{gpu(0), host(0)}, {gpu(1), host(1)}, {gpu(2), host(2)}}));
  EXPECT_TRUE(table.verify());

  // Until the copies are done, the sequence can be read but not changed, and nothing of it is given away.
  EXPECT_EQ(table.allocate_slots(a, 1).status, PageStatus::kBusy);
  EXPECT_EQ(table.cache_full_blocks(a, {}), PageStatus::kBusy);
  EXPECT_EQ(table.truncate(a, 0), PageStatus::kBusy);
  EXPECT_EQ(table.fork(a).status, PageStatus::kBusy);
  EXPECT_EQ(table.free(a), PageStatus::kBusy);
  EXPECT_EQ(swap_out(table, a, Tier::kHost).result.status, PageStatus::kBusy);
  EXPECT_TRUE(table.is_busy(a));
  std::vector<std::int32_t> row(3);
  EXPECT_EQ(table.export_block_tables(std::vector{a}, 3, 0, row), PageStatus::kOk);
  EXPECT_EQ(row, (std::vector<std::int32_t>{0, 1, 2}));
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{3, 4, 5}));
  EXPECT_EQ(table.pool(Tier::kHost).get_cached_block(1), kNone);

  table.commit(out.result.plan);
  EXPECT_EQ(blocks_of(table, a), (std::vector{host(0), host(1), host(2)}));
  EXPECT_FALSE(table.is_resident(a));
  // What moved down is next to go above, its end first; until then it hits.
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{2, 1, 0, 3, 4, 5}));
  EXPECT_EQ(table.match(Hashes{1, 2}, 9, Tier::kGpu).tokens, 8u);
  EXPECT_EQ(table.pool(Tier::kHost).get_cached_block(2), 1u);
  EXPECT_EQ(table.allocate_slots(a, 1).status, PageStatus::kNotResident);
  EXPECT_EQ(table.export_block_tables(std::vector{a}, 3, 0, row), PageStatus::kNotResident);
  std::vector<std::int64_t> slot(1);
  EXPECT_EQ(table.export_slot_mapping(std::vector<TokenRange>{{a, 0, 1}}, slot), PageStatus::kNotResident);
  EXPECT_TRUE(table.verify());

  // Back again: two blocks still lie above and are shared, only the one without a hash is copied.
  const Planned in = swap_in(table, a);
  EXPECT_EQ(in.copies, (std::vector<BlockCopy>{{host(2), gpu(2)}}));
  table.commit(in.result.plan);
  EXPECT_EQ(blocks_of(table, a), (std::vector{gpu(0), gpu(1), gpu(2)}));
  EXPECT_TRUE(table.is_resident(a));
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{3, 4, 5, 2, 1, 0}));
  EXPECT_EQ(table.pool(Tier::kHost).get_cached_block(1), 0u);  // stays cached below
  EXPECT_EQ(table.stats().copied_into_tier_total, (std::array<std::uint64_t, 3>{1, 3, 0}));
  EXPECT_EQ(table.allocate_slots(a, 1).status, PageStatus::kOk);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, AnAbortedSwapLeavesTheSequenceAsItWas) {
  PageTable table(options(4, 4));
  const SequenceId a = filled(table, 6, {1});
  const Planned out = swap_out(table, a, Tier::kHost);
  table.abort(out.result.plan);
  EXPECT_EQ(blocks_of(table, a), (std::vector{gpu(0), gpu(1)}));
  EXPECT_FALSE(table.is_busy(a));
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{2, 3, 1, 0}));
  EXPECT_EQ(table.pool(Tier::kHost).cached_count(), 0u);
  EXPECT_FALSE(table.is_pending(out.result.plan));
  EXPECT_EQ(table.allocate_slots(a, 1).status, PageStatus::kOk);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, SwapLeavesSharedBlocksToTheOthers) {
  PageTable table(options(4, 4));
  const SequenceId a = filled(table, 6, {1});
  const SequenceId b = table.fork(a).sequence;
  table.commit(swap_out(table, a, Tier::kHost).result.plan);
  EXPECT_EQ(blocks_of(table, a), (std::vector{host(0), host(1)}));
  EXPECT_EQ(blocks_of(table, b), (std::vector{gpu(0), gpu(1)}));
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{2, 3}));
  EXPECT_FALSE(table.allocate_slots(b, 1).copied);  // alone with its last block now

  // The second follows: the full block is below already.
  const Planned second = swap_out(table, b, Tier::kHost);
  EXPECT_EQ(second.copies, (std::vector<BlockCopy>{{gpu(1), host(2)}}));
  table.commit(second.result.plan);
  EXPECT_EQ(blocks_of(table, b), (std::vector{host(0), host(2)}));
  EXPECT_EQ(table.pool(Tier::kHost).ref_count(0), 2u);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{1, 0, 2, 3}));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, SwapsAreAllOrNothing) {
  PageTable table(options(4, 3));
  const SequenceId a = filled(table, 4, {1});
  table.commit(copy(table, Tier::kGpu, {1}, Tier::kHost).result.plan);
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{1, 2, 0}));
  EXPECT_EQ(table.allocate_slots(a, 12).status, PageStatus::kOk);
  // One target is shared and three are new: the shared one is not free either, so four of three are wanted.
  const std::uint64_t before = table.digest();
  EXPECT_EQ(swap_out(table, a, Tier::kHost).result.status, PageStatus::kOutOfBlocks);
  EXPECT_EQ(table.digest(), before);
  EXPECT_EQ(swap_out(table, a, Tier::kDisk).result.status, PageStatus::kOutOfBlocks);  // no such tier
  EXPECT_EQ(table.truncate(a, 12), PageStatus::kOk);
  EXPECT_EQ(swap_out(table, a, Tier::kHost).copies, (std::vector<BlockCopy>{{gpu(1), host(1)}, {gpu(2), host(2)}}));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, PlansAreBounded) {
  PageTable table(options(4, 4));
  const SequenceId a = filled(table, 4, {});
  const SequenceId b = filled(table, 4, {});
  const SequenceId c = filled(table, 4, {});
  EXPECT_EQ(swap_out(table, a, Tier::kHost).result.plan, 0u);
  EXPECT_EQ(swap_out(table, b, Tier::kHost).result.plan, 1u);
  EXPECT_EQ(swap_out(table, c, Tier::kHost).result.status, PageStatus::kOutOfPlans);
  EXPECT_EQ(copy(table, Tier::kGpu, {1}, Tier::kHost).result.status, PageStatus::kOutOfPlans);
  table.commit(0);
  EXPECT_EQ(swap_out(table, c, Tier::kHost).result.plan, 0u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, MovesThroughThreeTiers) {
  PageTable table(options(3, 3, 3));
  const SequenceId a = filled(table, 6, {1});
  table.commit(swap_out(table, a, Tier::kHost).result.plan);
  const Planned down = swap_out(table, a, Tier::kDisk);
  EXPECT_EQ(down.copies, (std::vector<BlockCopy>{{host(0), disk(0)}, {host(1), disk(1)}}));
  table.commit(down.result.plan);
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{1, 0, 2}));
  EXPECT_EQ(swap_out(table, a, Tier::kHost).copies, std::vector<BlockCopy>{});  // it is below already
  table.abort(0);
  EXPECT_TRUE(table.evict(Tier::kGpu, 1));
  const Planned up = swap_in(table, a);
  EXPECT_EQ(up.copies, (std::vector<BlockCopy>{{disk(0), gpu(1)}, {disk(1), gpu(0)}}));
  table.commit(up.result.plan);
  EXPECT_TRUE(table.is_resident(a));
  EXPECT_EQ(table.pool(Tier::kGpu).get_cached_block(1), 1u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, HitsInSlowerTiersAreToldApart) {
  PageTable table(options(8, 4, 4));
  const SequenceId a = filled(table, 12, {1, 2, 3});
  table.commit(copy(table, Tier::kGpu, {1, 2}, Tier::kHost).result.plan);
  table.commit(copy(table, Tier::kGpu, {3}, Tier::kDisk).result.plan);
  EXPECT_TRUE(table.evict(Tier::kGpu, 2));
  EXPECT_TRUE(table.evict(Tier::kGpu, 3));

  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 13, Tier::kGpu).tokens, 4u);
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 13, Tier::kHost).tokens, 8u);
  const OpenResult b = table.open(Hashes{1, 2, 3}, 13, Tier::kDisk);
  EXPECT_EQ(b.hit.tokens, 12u);
  EXPECT_EQ(b.hit.tokens_in_tier, (std::array<std::uint32_t, 3>{4, 4, 4}));
  EXPECT_EQ(blocks_of(table, b.sequence), (std::vector{gpu(0), host(1), disk(0)}));
  EXPECT_FALSE(table.is_resident(b.sequence));
  EXPECT_EQ(table.free(a), PageStatus::kOk);

  const Planned in = swap_in(table, b.sequence);
  EXPECT_EQ(in.copies, (std::vector<BlockCopy>{{host(1), gpu(3)}, {disk(0), gpu(4)}}));
  table.commit(in.result.plan);
  EXPECT_TRUE(table.is_resident(b.sequence));
  EXPECT_EQ(table.match(Hashes{1, 2, 3}, 13, Tier::kGpu).tokens, 12u);

  // Or it is not worth the copy: dropping the lower hits makes the sequence resident at once.
  table.evict(Tier::kGpu, 2);
  const SequenceId c = table.open(Hashes{1, 2, 3}, 13, Tier::kHost).sequence;
  EXPECT_FALSE(table.is_resident(c));
  EXPECT_EQ(table.truncate(c, 4), PageStatus::kOk);
  EXPECT_TRUE(table.is_resident(c));
  EXPECT_EQ(table.stats().hit_tokens_total, (std::array<std::uint64_t, 3>{12, 8, 4}));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, DemotesAndPrefetchesCachedBlocks) {
  PageTable table(options(4, 4));
  EXPECT_EQ(table.free(filled(table, 8, {1, 2})), PageStatus::kOk);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{2, 3, 1, 0}));
  const Planned down = copy(table, Tier::kGpu, {1, 99, 2}, Tier::kHost);
  EXPECT_EQ(down.copies, (std::vector<BlockCopy>{{gpu(0), host(0)}, {gpu(1), host(1)}}));
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{2, 3}));  // the sources are held while they are read
  EXPECT_TRUE(table.verify());
  table.commit(down.result.plan);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{1, 0, 2, 3}));
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{2, 3, 1, 0}));
  EXPECT_EQ(table.match(Hashes{1, 2}, 9, Tier::kGpu).tokens, 8u);

  EXPECT_EQ(copy(table, Tier::kGpu, {1, 2}, Tier::kHost).result.copy_count, 0u);  // below already
  table.commit(0);

  const SequenceId other = filled(table, 8, {});  // takes blocks 1 and 0: nothing is lost that is not below
  EXPECT_EQ(table.match(Hashes{1, 2}, 9, Tier::kGpu).tokens, 0u);
  EXPECT_EQ(table.match(Hashes{1, 2}, 9, Tier::kHost).tokens_in_tier, (std::array<std::uint32_t, 3>{0, 8, 0}));

  const Planned up = copy(table, Tier::kHost, {1, 2}, Tier::kGpu);
  EXPECT_EQ(up.copies, (std::vector<BlockCopy>{{host(0), gpu(2)}, {host(1), gpu(3)}}));
  table.commit(up.result.plan);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{3, 2}));
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{2, 3, 1, 0}));  // stays below, most recently used
  EXPECT_EQ(table.match(Hashes{1, 2}, 9, Tier::kHost).tokens_in_tier, (std::array<std::uint32_t, 3>{8, 0, 0}));

  const Planned aborted = copy(table, Tier::kGpu, {1, 2}, Tier::kHost);
  table.abort(aborted.result.plan);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{3, 2}));
  EXPECT_EQ(table.free(other), PageStatus::kOk);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, APlanDoesNotEvictTheTargetsItShares) {
  PageTable table(options(4, 2));
  const SequenceId a = filled(table, 8, {1, 2});
  table.commit(copy(table, Tier::kGpu, {1}, Tier::kHost).result.plan);
  const SequenceId b = filled(table, 4, {3});
  table.commit(swap_out(table, b, Tier::kHost).result.plan);  // takes host(1); host(0) with hash 1 is next to be taken
  EXPECT_EQ(table.free(b), PageStatus::kOk);
  EXPECT_EQ(free_order(table, Tier::kHost), (Ids{0, 1}));
  const Planned both = copy(table, Tier::kGpu, {1, 2}, Tier::kHost);
  EXPECT_EQ(both.copies, (std::vector<BlockCopy>{{gpu(1), host(1)}}));  // hash 3 went, hash 1 did not
  table.commit(both.result.plan);
  EXPECT_EQ(table.match(Hashes{1, 2}, 9, Tier::kHost).tokens, 8u);
  EXPECT_EQ(table.pool(Tier::kHost).get_cached_block(3), kNone);
  EXPECT_TRUE(table.is_open(a));
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, PoliciesNameVictims) {
  PageTable table(options(4));
  const SequenceId a = filled(table, 12, {1, 2, 3});
  EXPECT_FALSE(table.evict_first(Tier::kGpu, 1));  // in use
  EXPECT_FALSE(table.evict_first(Tier::kGpu, 9));
  EXPECT_FALSE(table.reset_prefix_cache(Tier::kGpu));
  table.free(a);
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{3, 2, 1, 0}));
  EXPECT_TRUE(table.evict_first(Tier::kGpu, 1));
  EXPECT_TRUE(table.evict_first(Tier::kGpu, 2));
  EXPECT_EQ(free_order(table, Tier::kGpu), (Ids{1, 0, 3, 2}));
  EXPECT_TRUE(table.reset_prefix_cache(Tier::kGpu));
  EXPECT_EQ(table.match(Hashes{1}, 5, Tier::kGpu).tokens, 0u);
  EXPECT_TRUE(table.verify());
}

TEST(PageTable, CountsLostEvents) {
  PageTableOptions few = options(4);
  few.event_capacity = 1;
  PageTable table(few);
  filled(table, 8, {1, 2});
  EXPECT_EQ(table.stats().events_lost_total, 1u);
  few.event_capacity = 0;  // none are wanted: none are lost
  PageTable silent(few);
  filled(silent, 8, {1, 2});
  EXPECT_EQ(silent.stats().events_lost_total, 0u);
}

#if defined(SAGA_FORCE_ASSERTS) || !defined(NDEBUG)
TEST(PageTableDeathTest, MisuseIsABug) {
  PageTable table(options(4, 4));
  EXPECT_DEATH(table.free(0), "is_open");
  const SequenceId a = filled(table, 7, {1});
  EXPECT_DEATH(table.cache_full_blocks(a, Hashes{2}), "cached_blocks");  // the second block is not full
  EXPECT_DEATH(table.truncate(a, 8), "token_count");
  EXPECT_DEATH(table.commit(0), "is_pending");
  std::vector<std::int32_t> row(1);
  EXPECT_DEATH(table.export_block_tables(std::vector{a}, 1, 0, row), "block_count");
  std::vector<BlockCopy> one(1);
  EXPECT_DEATH((void)table.plan_swap_out(a, Tier::kHost, one), "copies.size");
}
#endif

// A server in small: memory behind each block, prompts that share prefixes, copies executed as late as allowed. What a token
// leaves in memory depends on all tokens before it, as a KV entry does, so that any block that is shared, copied, evicted or
// written to wrongly shows in what a sequence reads back. The expectations are computed from tokens and from the locations alone.
class Server {
 public:
  Server(std::uint64_t seed, const PageTableOptions& options)
      : random_(seed), options_(options), table_(options), mirror_(kTierCount) {
    for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
      memory_.emplace_back(std::size_t{options.block_count[tier]} * options.block_size);
    }
  }

  void step() {
    switch (below(20)) {
      case 0:
      case 1:
      case 2:
        return open();
      default:
        return allocate();
      case 9:
      case 10:
      case 11:
        return cache();
      case 12:
        return fork();
      case 13:
        return truncate();
      case 14:
        return free();
      case 15:
      case 16:
        return plan();
      case 17:
      case 18:
        return finish_plan();
      case 19:
        return touch_cache();
    }
  }

  // Everything, against the slow view.
  void check() {
    ASSERT_TRUE(table_.verify());
    const auto references = count_references();
    for (std::uint32_t t = 0; t < kTierCount; ++t) {
      const auto tier = static_cast<Tier>(t);
      const BlockPool& pool = table_.pool(tier);
      std::map<BlockHash, int> present;
      for (BlockId block = 0; block < pool.block_count(); ++block) {
        ASSERT_EQ(pool.ref_count(block), references[t][block]);
        if (!pool.is_cached(block)) continue;
        ++present[pool.hash(block)];
        // The hash of a block is what its last token leaves, so a cached block proves itself.
        ASSERT_EQ(memory_[t][(block + 1) * options_.block_size - 1], pool.hash(block));
      }
      read_events();
      ASSERT_EQ(mirror_[t], present);
    }
    for (const auto& [id, sequence] : sequences_) {
      ASSERT_EQ(table_.token_count(id), sequence.tokens.size());
      ASSERT_EQ(table_.cached_blocks(id), sequence.cached);
      ASSERT_EQ(table_.is_busy(id), sequence.busy);
      check_contents(id, sequence.tokens.size());
    }
    ASSERT_EQ(table_.stats().open_sequences, sequences_.size());
    ASSERT_EQ(table_.stats().pending_plans, plans_.size());
    ASSERT_EQ(table_.stats().events_lost_total, 0u);
  }

  std::uint64_t digest() const { return table_.digest(); }
  PageTableStats stats() const { return table_.stats(); }
  const std::map<PageStatus, int>& statuses() const { return statuses_; }

 private:
  struct Sequence {
    std::vector<std::uint32_t> tokens;    // those that have slots
    std::vector<std::uint32_t> expected;  // the rest of the prompt
    std::uint32_t cached = 0;
    bool busy = false;
  };
  struct Plan {
    SequenceId sequence;
    std::vector<BlockCopy> copies;
    std::vector<BlockLocation> held;  // what the plan must hold references to
  };

  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(random_.below(bound)); }
  std::uint64_t& cell(BlockLocation at, std::size_t offset) {
    return memory_[static_cast<std::size_t>(at.tier)][at.block * options_.block_size + offset];
  }
  static std::uint64_t next_value(std::uint64_t value, std::uint32_t token) { return mix64(value * 31 + token + 1); }

  // What each token leaves in memory.
  static std::vector<std::uint64_t> values(const std::vector<std::uint32_t>& tokens) {
    std::vector<std::uint64_t> result;
    std::uint64_t value = 0;
    for (const std::uint32_t token : tokens) result.push_back(value = next_value(value, token));
    return result;
  }
  Hashes hashes(const std::vector<std::uint32_t>& tokens) const {
    const auto all = values(tokens);
    Hashes result;
    for (std::size_t end = options_.block_size; end <= all.size(); end += options_.block_size) {
      result.push_back(all[end - 1]);
    }
    return result;
  }

  std::array<std::vector<std::uint32_t>, kTierCount> count_references() const {
    std::array<std::vector<std::uint32_t>, kTierCount> references;
    for (std::uint32_t tier = 0; tier < kTierCount; ++tier) references[tier].resize(options_.block_count[tier]);
    const auto count = [&](BlockLocation at) { ++references[static_cast<std::size_t>(at.tier)][at.block]; };
    for (const auto& [id, sequence] : sequences_) {
      for (std::uint32_t i = 0; i < table_.block_count(id); ++i) count(table_.location(id, i));
    }
    for (const auto& [id, plan] : plans_) {
      for (const BlockLocation at : plan.held) count(at);
    }
    return references;
  }
  static std::size_t unused(const std::vector<std::uint32_t>& references) {
    return static_cast<std::size_t>(std::count(references.begin(), references.end(), 0u));
  }

  void read_events() {
    std::array<BlockEvent, 16> events;
    while (const std::uint32_t count = table_.drain_events(events)) {
      for (std::uint32_t i = 0; i < count; ++i) {
        auto& held = mirror_[static_cast<std::size_t>(events[i].tier)];
        if (events[i].kind == BlockEventKind::kStored) ++held[events[i].hash];
        if (events[i].kind == BlockEventKind::kRemoved && --held[events[i].hash] == 0) held.erase(events[i].hash);
        if (events[i].kind == BlockEventKind::kCleared) held.clear();
      }
    }
  }

  void check_contents(SequenceId id, std::size_t token_count) {
    const auto expected = values(sequences_.at(id).tokens);
    ASSERT_EQ(table_.block_count(id), (token_count + options_.block_size - 1) / options_.block_size);
    for (std::size_t i = 0; i < token_count; ++i) {
      const BlockLocation at = table_.location(id, static_cast<std::uint32_t>(i / options_.block_size));
      ASSERT_EQ(cell(at, i % options_.block_size), expected[i]) << "sequence " << id << ", token " << i;
    }
  }

  SequenceId any_sequence() {
    return sequences_.empty() ? kNone
                              : std::next(sequences_.begin(), static_cast<int>(below(sequences_.size())))->first;
  }

  void execute(const BlockCopy& copy) {
    for (std::uint32_t i = 0; i < options_.block_size; ++i) cell(copy.target, i) = cell(copy.source, i);
  }

  void open() {
    // One of three texts up to some place, then anything.
    std::vector<std::uint32_t> prompt;
    const std::uint64_t text = below(3);
    const std::size_t length = 1 + below(options_.max_blocks_per_sequence * options_.block_size);
    const std::size_t common = below(4) == 0 ? below(length + 1) : length;
    for (std::size_t i = 0; i < length; ++i) {
      prompt.push_back(static_cast<std::uint32_t>(i < common ? mix64(text * 1000 + i) % 5 : below(5)));
    }
    const auto slowest = static_cast<Tier>(below(kTierCount));
    const Hashes chain = hashes(prompt);

    read_events();
    std::array<std::uint32_t, kTierCount> hit = {};
    for (std::size_t block = 0; block < chain.size() && (block + 1) * options_.block_size < length; ++block) {
      std::size_t tier = 0;
      while (tier <= static_cast<std::size_t>(slowest) && !mirror_[tier].contains(chain[block])) ++tier;
      if (tier > static_cast<std::size_t>(slowest)) break;
      hit[tier] += options_.block_size;
    }
    const std::uint32_t total = hit[0] + hit[1] + hit[2];

    const std::uint64_t before = table_.digest();
    const PrefixHit matched = table_.match(chain, static_cast<std::uint32_t>(length), slowest);
    ASSERT_EQ(matched.tokens_in_tier, hit);
    ASSERT_EQ(matched.tokens, total);
    ASSERT_EQ(table_.digest(), before);
    const OpenResult opened = table_.open(chain, static_cast<std::uint32_t>(length), slowest);
    ++statuses_[opened.status];
    if (sequences_.size() == options_.max_sequences) {
      ASSERT_EQ(opened.status, PageStatus::kOutOfSequences);
      ASSERT_EQ(table_.digest(), before);
      return;
    }
    ASSERT_EQ(opened.status, PageStatus::kOk);
    ASSERT_EQ(opened.hit.tokens_in_tier, hit);
    ASSERT_FALSE(sequences_.contains(opened.sequence));
    const auto split = prompt.begin() + static_cast<std::ptrdiff_t>(total);
    sequences_[opened.sequence] = {
        .tokens = {prompt.begin(), split}, .expected = {split, prompt.end()}, .cached = total / options_.block_size};
    check_contents(opened.sequence, total);
  }

  void allocate() {
    const SequenceId id = any_sequence();
    if (id == kNone) return;
    Sequence& sequence = sequences_.at(id);
    const std::size_t old_count = sequence.tokens.size();
    const std::size_t added = below(3 * options_.block_size + 1);
    const std::size_t new_count = old_count + added;

    const auto references = count_references();
    const auto blocks = [&](std::size_t tokens) { return (tokens + options_.block_size - 1) / options_.block_size; };
    bool resident = true;
    for (std::uint32_t i = 0; i < table_.block_count(id); ++i) resident &= table_.location(id, i).tier == Tier::kGpu;
    ASSERT_EQ(table_.is_resident(id), resident);
    const bool writes_last = added > 0 && old_count % options_.block_size != 0;
    const bool copies =
        writes_last && references[0][table_.location(id, table_.block_count(id) - 1).block] > 1 && resident;
    PageStatus expected = PageStatus::kOk;
    if (sequence.busy) {
      expected = PageStatus::kBusy;
    } else if (!resident) {
      expected = PageStatus::kNotResident;
    } else if (blocks(new_count) > options_.max_blocks_per_sequence) {
      expected = PageStatus::kSequenceFull;
    } else if (blocks(new_count) - blocks(old_count) + (copies ? 1 : 0) > unused(references[0])) {
      expected = PageStatus::kOutOfBlocks;
    }

    const std::uint64_t before = table_.digest();
    const AllocateResult result = table_.allocate_slots(id, static_cast<std::uint32_t>(added));
    ++statuses_[result.status];
    ASSERT_EQ(result.status, expected);
    if (expected != PageStatus::kOk) {
      ASSERT_EQ(table_.digest(), before);
      return;
    }
    ASSERT_EQ(result.copied, copies);
    if (copies) execute(result.copy);

    // The step is computed: what it writes must belong to this sequence alone and answer to no hash.
    for (std::size_t i = 0; i < added; ++i) {
      const bool from_prompt = !sequence.expected.empty();
      sequence.tokens.push_back(from_prompt ? sequence.expected.front() : static_cast<std::uint32_t>(below(2)));
      if (from_prompt) sequence.expected.erase(sequence.expected.begin());
    }
    std::vector<std::int64_t> slots(added);
    const TokenRange range = {id, static_cast<std::uint32_t>(old_count), static_cast<std::uint32_t>(added)};
    ASSERT_EQ(table_.export_slot_mapping({&range, 1}, slots), PageStatus::kOk);
    const auto all = values(sequence.tokens);
    const auto now = count_references();
    for (std::size_t i = 0; i < added; ++i) {
      const auto block = static_cast<BlockId>(slots[i] / options_.block_size);
      ASSERT_EQ(now[0][block], 1u);
      ASSERT_FALSE(table_.pool(Tier::kGpu).is_cached(block));
      memory_[0][static_cast<std::size_t>(slots[i])] = all[old_count + i];
    }
    std::vector<std::int32_t> row(options_.max_blocks_per_sequence);
    ASSERT_EQ(table_.export_block_tables({&id, 1}, options_.max_blocks_per_sequence, -7, row), PageStatus::kOk);
    for (std::uint32_t i = 0; i < row.size(); ++i) {
      const bool within = i < table_.block_count(id);
      ASSERT_EQ(row[i], within ? static_cast<std::int32_t>(table_.location(id, i).block) : -7);
    }
  }

  void cache() {
    const SequenceId id = any_sequence();
    if (id == kNone) return;
    Sequence& sequence = sequences_.at(id);
    const Hashes chain = hashes(sequence.tokens);
    const std::size_t count = below(chain.size() - sequence.cached + 1);
    const PageStatus status = table_.cache_full_blocks(id, std::span(chain).subspan(sequence.cached, count));
    ASSERT_EQ(status, sequence.busy ? PageStatus::kBusy : PageStatus::kOk);
    if (status == PageStatus::kOk) sequence.cached += static_cast<std::uint32_t>(count);
  }

  void fork() {
    const SequenceId id = any_sequence();
    if (id == kNone) return;
    const ForkResult forked = table_.fork(id);
    ++statuses_[forked.status];
    if (sequences_.at(id).busy) {
      ASSERT_EQ(forked.status, PageStatus::kBusy);
    } else if (sequences_.size() == options_.max_sequences) {
      ASSERT_EQ(forked.status, PageStatus::kOutOfSequences);
    } else {
      ASSERT_EQ(forked.status, PageStatus::kOk);
      ASSERT_FALSE(sequences_.contains(forked.sequence));
      const Sequence child = sequences_.at(id);
      sequences_[forked.sequence] = child;
    }
  }

  void truncate() {
    const SequenceId id = any_sequence();
    if (id == kNone) return;
    Sequence& sequence = sequences_.at(id);
    const std::size_t count = below(sequence.tokens.size() + 1);
    const PageStatus status = table_.truncate(id, static_cast<std::uint32_t>(count));
    ASSERT_EQ(status, sequence.busy ? PageStatus::kBusy : PageStatus::kOk);
    if (status != PageStatus::kOk) return;
    sequence.tokens.resize(count);
    sequence.expected.clear();
    sequence.cached = std::min(sequence.cached, static_cast<std::uint32_t>(count) / options_.block_size);
  }

  void free() {
    const SequenceId id = any_sequence();
    if (id == kNone) return;
    const bool busy = sequences_.at(id).busy;
    ASSERT_EQ(table_.free(id), busy ? PageStatus::kBusy : PageStatus::kOk);
    if (!busy) sequences_.erase(id);
  }

  // Swap out, swap in, demote or prefetch.
  void plan() {
    const std::size_t kind = below(3);
    const SequenceId id = kind < 2 ? any_sequence() : kNone;
    if (kind < 2 && id == kNone) return;
    auto target = static_cast<Tier>(kind == 0 ? 1 + below(2) : kind == 1 ? 0 : below(kTierCount));
    const auto from = static_cast<Tier>((static_cast<std::size_t>(target) + 1 + below(2)) % kTierCount);

    std::vector<BlockLocation> sources;
    Hashes wanted;
    if (id != kNone) {
      for (std::uint32_t i = 0; i < table_.block_count(id); ++i) {
        const BlockLocation at = table_.location(id, i);
        if (kind == 0 ? at.tier < target : at.tier != Tier::kGpu) sources.push_back(at);
      }
    } else {
      read_events();
      std::set<BlockHash> chosen;
      for (const auto& [hash, copies] : mirror_[static_cast<std::size_t>(from)]) {
        if (below(3) == 0 && chosen.size() < options_.max_blocks_per_sequence) chosen.insert(hash);
      }
      wanted.assign(chosen.begin(), chosen.end());
      for (const BlockHash hash : wanted) {
        sources.push_back({.tier = from, .block = table_.pool(from).get_cached_block(hash)});
      }
    }

    const auto references = count_references();
    const auto& target_references = references[static_cast<std::size_t>(target)];
    std::vector<BlockLocation> held;
    std::vector<bool> copied;
    std::size_t taken = 0;
    for (const BlockLocation at : sources) {
      const BlockPool& pool = table_.pool(at.tier);
      BlockId shared = kNone;
      if (pool.is_cached(at.block)) shared = table_.pool(target).get_cached_block(pool.hash(at.block));
      copied.push_back(shared == kNone);
      if (shared != kNone) held.push_back({.tier = target, .block = shared});
      if (shared == kNone || target_references[shared] == 0) ++taken;
      if (id == kNone) held.push_back(at);
    }
    PageStatus expected = PageStatus::kOk;
    if (id != kNone && sequences_.at(id).busy) {
      expected = PageStatus::kBusy;
    } else if (plans_.size() == options_.max_plans) {
      expected = PageStatus::kOutOfPlans;
    } else if (taken > unused(target_references)) {
      expected = PageStatus::kOutOfBlocks;
    }

    const std::uint64_t before = table_.digest();
    std::vector<BlockCopy> copies(sources.size());
    const PlanResult result = kind == 0   ? table_.plan_swap_out(id, target, copies)
                              : kind == 1 ? table_.plan_swap_in(id, copies)
                                          : table_.plan_copy(from, wanted, target, copies);
    ++statuses_[result.status];
    ASSERT_EQ(result.status, expected);
    if (expected != PageStatus::kOk) {
      ASSERT_EQ(table_.digest(), before);
      return;
    }
    copies.resize(result.copy_count);
    std::size_t next = 0;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      if (!copied[i]) continue;
      ASSERT_LT(next, copies.size());
      ASSERT_EQ(copies[next].source, sources[i]);
      ASSERT_EQ(copies[next].target.tier, target);
      ASSERT_EQ(target_references[copies[next].target.block], 0u);
      held.push_back(copies[next++].target);
    }
    ASSERT_EQ(next, copies.size());
    ASSERT_FALSE(plans_.contains(result.plan));
    plans_[result.plan] = {.sequence = id, .copies = copies, .held = held};
    if (id != kNone) sequences_.at(id).busy = true;
  }

  void finish_plan() {
    if (plans_.empty()) return;
    const auto chosen = std::next(plans_.begin(), static_cast<int>(below(plans_.size())));
    const auto [id, plan] = *chosen;
    plans_.erase(chosen);
    if (plan.sequence != kNone) sequences_.at(plan.sequence).busy = false;
    if (below(4) == 0) {
      table_.abort(id);
    } else {
      for (const BlockCopy& copy : plan.copies) execute(copy);
      table_.commit(id);
    }
    if (plan.sequence != kNone) check_contents(plan.sequence, sequences_.at(plan.sequence).tokens.size());
  }

  void touch_cache() {
    read_events();
    const auto tier = static_cast<Tier>(below(kTierCount));
    const auto& held = mirror_[static_cast<std::size_t>(tier)];
    if (held.empty()) return;
    const BlockHash hash = std::next(held.begin(), static_cast<int>(below(held.size())))->first;
    const auto references = count_references();
    const auto& used = references[static_cast<std::size_t>(tier)];
    switch (below(4)) {
      case 0: {
        ASSERT_TRUE(table_.evict(tier, hash));
        break;
      }
      case 1: {
        ASSERT_EQ(table_.reset_prefix_cache(tier), unused(used) == used.size());
        break;
      }
      default: {
        const BlockId block = table_.pool(tier).get_cached_block(hash);
        ASSERT_EQ(table_.evict_first(tier, hash), used[block] == 0);
        if (used[block] == 0) {
          ASSERT_EQ(table_.pool(tier).next_free(), block);
        }
      }
    }
  }

  Random random_;
  PageTableOptions options_;
  PageTable table_;
  std::vector<std::vector<std::uint64_t>> memory_;  // by tier
  std::vector<std::map<BlockHash, int>> mirror_;    // by tier, from the events alone
  std::map<SequenceId, Sequence> sequences_;
  std::map<PlanId, Plan> plans_;
  std::map<PageStatus, int> statuses_;
};

PageTableOptions small_server(std::uint32_t block_size, bool uncached_first) {
  return {.block_size = block_size,
          .block_count = {20, 12, 9},
          .max_sequences = 6,
          .max_blocks_per_sequence = 8,
          .max_plans = 2,
          .event_capacity = 4096,
          .uncached_first = uncached_first};
}

TEST(PageTable, AServerReadsBackWhatItWrote) {
  std::map<PageStatus, int> statuses;
  std::array<std::uint64_t, kTierCount> hits = {};
  std::uint64_t seed = 1;
  for (const std::uint32_t block_size : {1u, 2u, 3u, 4u, 5u}) {
    for (const bool uncached_first : {false, true}) {
      Server server(seed++, small_server(block_size, uncached_first));
      for (int step = 0; step < 110'000; ++step) {
        server.step();
        if (step % 64 == 0) server.check();
        if (HasFatalFailure()) FAIL() << "seed " << seed - 1 << ", step " << step;
      }
      for (const auto& [status, count] : server.statuses()) statuses[status] += count;
      for (std::size_t tier = 0; tier < kTierCount; ++tier) hits[tier] += server.stats().hit_tokens_total[tier];
      // A block of one token is never half full.
      EXPECT_EQ(server.stats().copies_on_write_total > 100, block_size > 1);
      EXPECT_GT(server.stats().tiers[0].evicted_total, 1000u);
    }
  }
  // The run went where it was meant to go.
  for (std::uint8_t status = 0; status <= static_cast<std::uint8_t>(PageStatus::kOutOfPlans); ++status) {
    EXPECT_GT(statuses[static_cast<PageStatus>(status)], 1000) << "status " << int{status};
  }
  for (const std::uint64_t tokens : hits) EXPECT_GT(tokens, 1000u);
}

TEST(PageTable, SameOperationsSameDigest) {
  Server one(5, small_server(4, false));
  Server two(5, small_server(4, false));
  Server other(6, small_server(4, false));
  for (int step = 0; step < 2000; ++step) {
    one.step();
    two.step();
    other.step();
    ASSERT_EQ(one.digest(), two.digest());
  }
  EXPECT_NE(one.digest(), other.digest());
}

}  // namespace
}  // namespace saga
