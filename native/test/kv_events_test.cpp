#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <map>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/hash/block_hash.hpp"
#include "../core/vllm/kv_event_source.hpp"

namespace {
std::uint64_t allocations = 0;
}

// Not inlined: compilers would pair the calls of malloc and delete that they see.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) std::abort();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace saga {
namespace {

using Bytes = std::vector<std::uint8_t>;
using Hashes = std::vector<BlockHash>;
using Tokens = std::vector<std::uint32_t>;

Bytes from_hex(std::string_view text) {
  Bytes bytes;
  std::string digits;
  for (const char c : text) {
    if (c == ' ' || c == '\n') continue;
    digits += c;
    if (digits.size() < 2) continue;
    bytes.push_back(static_cast<std::uint8_t>(std::stoul(digits, nullptr, 16)));
    digits.clear();
  }
  return bytes;
}

// Writes MessagePack, the smallest form of each value.
struct Writer {
  Bytes bytes;

  Writer& raw(std::uint64_t first, std::uint64_t value, int width) {
    bytes.push_back(static_cast<std::uint8_t>(first));
    for (int i = width - 1; i >= 0; --i) bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    return *this;
  }
  Writer& nil() { return raw(0xC0, 0, 0); }
  Writer& number(double value) { return raw(0xCB, std::bit_cast<std::uint64_t>(value), 8); }
  Writer& u(std::uint64_t value) {
    if (value < 0x80) return raw(value, 0, 0);
    if (value < 0x100) return raw(0xCC, value, 1);
    if (value < 0x10000) return raw(0xCD, value, 2);
    if (value < 0x100000000) return raw(0xCE, value, 4);
    return raw(0xCF, value, 8);
  }
  Writer& negative(std::int64_t value) {
    if (value >= -32) return raw(static_cast<std::uint8_t>(value), 0, 0);
    return raw(0xD3, static_cast<std::uint64_t>(value), 8);
  }
  Writer& text(std::string_view value) {
    if (value.size() < 32) {
      raw(0xA0 | value.size(), 0, 0);
    } else {
      raw(0xDA, value.size(), 2);
    }
    bytes.insert(bytes.end(), value.begin(), value.end());
    return *this;
  }
  Writer& binary(const Bytes& value) {
    raw(0xC4, value.size(), 1);
    bytes.insert(bytes.end(), value.begin(), value.end());
    return *this;
  }
  Writer& array(std::size_t count) { return count < 16 ? raw(0x90 | count, 0, 0) : raw(0xDC, count, 2); }
  Writer& map(std::size_t count) { return count < 16 ? raw(0x80 | count, 0, 0) : raw(0xDE, count, 2); }
  Writer& value(const Bytes& written) {
    bytes.insert(bytes.end(), written.begin(), written.end());
    return *this;
  }
};

struct Stored {
  Hashes hashes;
  std::optional<BlockHash> parent = {};
  Tokens tokens = {};
  std::uint32_t block_size = 4;
  std::uint32_t group = 0;
  std::string medium = "GPU";
  std::string kind = "full_attention";
  std::optional<std::uint32_t> window = {};
  std::string lora_name = {};
  std::vector<Bytes> extra_keys = {};  // an entry a block, as MessagePack
  std::string locality = {};
};

Bytes event(const Stored& given) {
  Writer out;
  out.map(9 + (given.kind.empty() ? 0u : 1u) + (given.window ? 1u : 0u) + (given.extra_keys.empty() ? 0u : 1u) +
          (given.locality.empty() ? 0u : 1u));
  out.text("type").text("BlockStored").text("block_hashes").array(given.hashes.size());
  for (const BlockHash hash : given.hashes) out.u(hash);
  out.text("parent_block_hash");
  given.parent ? out.u(*given.parent) : out.nil();
  out.text("token_ids").array(given.tokens.size());
  for (const std::uint32_t token : given.tokens) out.u(token);
  out.text("block_size").u(given.block_size).text("lora_id").nil().text("medium").text(given.medium);
  out.text("lora_name");
  given.lora_name.empty() ? out.nil() : out.text(given.lora_name);
  if (!given.extra_keys.empty()) {
    out.text("extra_keys").array(given.extra_keys.size());
    for (const Bytes& keys : given.extra_keys) out.value(keys);
  }
  out.text("group_idx").u(given.group);
  if (!given.kind.empty()) out.text("kv_cache_spec_kind").text(given.kind);
  if (given.window) out.text("kv_cache_spec_sliding_window").u(*given.window);
  if (!given.locality.empty()) out.text("locality").text(given.locality);
  return out.bytes;
}

struct Removed {
  Hashes hashes;
  std::uint32_t group = 0;
  std::string medium = "GPU";
};

Bytes event(const Removed& given) {
  Writer out;
  out.map(4).text("type").text("BlockRemoved").text("block_hashes").array(given.hashes.size());
  for (const BlockHash hash : given.hashes) out.u(hash);
  out.text("medium").text(given.medium).text("group_idx").u(given.group);
  return out.bytes;
}

Bytes cleared() { return Writer{}.array(1).text("AllBlocksCleared").bytes; }

Bytes batch(const std::vector<Bytes>& events) {
  Writer out;
  out.array(3).number(1.5).array(events.size());
  for (const Bytes& each : events) out.value(each);
  return out.u(0).bytes;
}

Tokens tokens_of(std::uint32_t first, std::uint32_t count) {
  Tokens tokens(count);
  for (std::uint32_t i = 0; i < count; ++i) tokens[i] = first + i;
  return tokens;
}

Hashes chain_of(const Tokens& tokens, std::uint32_t block_tokens, std::string_view salt = {}) {
  Hashes chain(tokens.size() / block_tokens);
  ChainHash state = chain_root(salt);
  hash_blocks(state, tokens, block_tokens, chain.data());
  return chain;
}

// What it is told, and whether it may be told that.
class Recorder final : public ResidencySink {
 public:
  Status ready() override { return take(); }
  Status stored(Tier tier, BlockHash parent, std::span<const BlockHash> hashes) override {
    if (const Status status = take(); status != Status::kOk) return status;
    parents.push_back(parent);
    for (const BlockHash hash : hashes)
      EXPECT_TRUE(tiers[static_cast<std::size_t>(tier)].insert(hash).second || names_repeat);
    return Status::kOk;
  }
  Status removed(Tier tier, std::span<const BlockHash> hashes) override {
    if (const Status status = take(); status != Status::kOk) return status;
    for (const BlockHash hash : hashes)
      EXPECT_TRUE(tiers[static_cast<std::size_t>(tier)].erase(hash) == 1 || names_repeat);
    return Status::kOk;
  }
  Status cleared() override {
    if (const Status status = take(); status != Status::kOk) return status;
    for (auto& tier : tiers) tier.clear();
    windows.clear();
    return Status::kOk;
  }
  Status window_blocks(std::uint32_t blocks) override {
    if (const Status status = take(); status != Status::kOk) return status;
    window = blocks;
    return Status::kOk;
  }
  Status window_stored(std::span<const BlockHash> hashes) override {
    if (const Status status = take(); status != Status::kOk) return status;
    for (const BlockHash hash : hashes) EXPECT_TRUE(windows.insert(hash).second || names_repeat);
    return Status::kOk;
  }
  Status window_removed(std::span<const BlockHash> hashes) override {
    if (const Status status = take(); status != Status::kOk) return status;
    for (const BlockHash hash : hashes) EXPECT_TRUE(windows.erase(hash) == 1 || names_repeat);
    return Status::kOk;
  }

  std::set<BlockHash>& gpu() { return tiers[0]; }

  std::array<std::set<BlockHash>, kTierCount> tiers;
  std::set<BlockHash> windows;
  std::uint32_t window = 0;
  std::vector<BlockHash> parents;
  bool names_repeat = false;         // the publisher may have several keys for one name
  std::uint64_t takes = UINT64_MAX;  // calls that are answered kOk
  Status refusal = Status::kJournalFull;
  std::uint64_t calls = 0;

 private:
  Status take() {
    ++calls;
    if (takes == 0) return refusal;
    --takes;
    return Status::kOk;
  }
};

struct Fixture {
  explicit Fixture(KvNaming naming, std::uint32_t block_tokens = 4, std::uint64_t max_blocks = 4096)
      : source({.naming = naming, .block_tokens = block_tokens, .max_blocks = max_blocks, .max_batch_bytes = 1 << 20}) {
  }

  KvReport apply(const std::vector<Bytes>& events) { return apply_payload(batch(events)); }
  KvReport apply_payload(const Bytes& payload) {
    KvReport report;
    EXPECT_EQ(source.apply(payload, sink, &report), Status::kOk);
    EXPECT_TRUE(source.verify());
    return report;
  }

  Recorder sink;
  KvEventSource source;
};

std::set<BlockHash> set_of(const Hashes& hashes, std::size_t first = 0, std::size_t count = SIZE_MAX) {
  std::set<BlockHash> set;
  for (std::size_t i = first; i < hashes.size() && i - first < count; ++i) set.insert(hashes[i]);
  return set;
}

// ---- MessagePack -----------------------------------------------------------------------------------------------------

TEST(Msgpack, AcceptsOneWellFormedValue) {
  for (const char* good : {"c0",
                           "c2",
                           "00",
                           "7f",
                           "ff",
                           "ccff",
                           "cdffff",
                           "ceffffffff",
                           "cfffffffffffffffff",
                           "d080",
                           "a161",
                           "d90161",
                           "da000161",
                           "db0000000161",
                           "c40100",
                           "c5000100",
                           "c60000000100",
                           "90",
                           "9101",
                           "dc000101",
                           "dd0000000101",
                           "80",
                           "810102",
                           "de00010102",
                           "df000000010102",
                           "d40100",
                           "c7010500",
                           "ca00000000",
                           "cb0000000000000000",
                           "9192939400c0c0c0c0c0c0"}) {
    EXPECT_TRUE(msgpack_valid(from_hex(good))) << good;
  }
}

TEST(Msgpack, RefusesWhatIsCutOffOrNotMsgpack) {
  for (const char* bad : {"",
                          "c1",
                          "cc",
                          "cd00",
                          "ce000000",
                          "cf00000000000000",
                          "a1",
                          "d9",
                          "d901",
                          "da0001",
                          "dbffffffff61",
                          "c401",
                          "91",
                          "9201",
                          "dc0002c0",
                          "ddffffffff",
                          "81",
                          "8101",
                          "df7fffffff00",
                          "dfffffffff",
                          "c0c0",
                          "c70105",
                          "d401",
                          "cb00"}) {
    EXPECT_FALSE(msgpack_valid(from_hex(bad))) << bad;
  }
}

TEST(Msgpack, RefusesWhatIsNestedTooDeep) {
  Bytes nested(kMostMsgpackDepth, 0x91);
  nested.push_back(0);
  EXPECT_TRUE(msgpack_valid(nested));
  nested.insert(nested.begin(), 0x91);
  EXPECT_FALSE(msgpack_valid(nested));
}

TEST(Msgpack, ReadsIntegersOfAllWidths) {
  const struct {
    const char* bytes;
    std::uint64_t bits;
    bool negative;
  } cases[] = {{"05", 5, false},
               {"ccfb", 0xFB, false},
               {"cdfffb", 0xFFFB, false},
               {"cefffffffb", 0xFFFFFFFB, false},
               {"cffffffffffffffffb", 0xFFFFFFFFFFFFFFFB, false},
               {"fb", 0xFFFFFFFFFFFFFFFB, true},
               {"d0fb", 0xFFFFFFFFFFFFFFFB, true},
               {"d1fffb", 0xFFFFFFFFFFFFFFFB, true},
               {"d2fffffffb", 0xFFFFFFFFFFFFFFFB, true},
               {"d3fffffffffffffffb", 0xFFFFFFFFFFFFFFFB, true},
               {"d30000000000000007", 7, false}};
  for (const auto& expected : cases) {
    const Bytes bytes = from_hex(expected.bytes);
    MsgpackReader reader(bytes);
    std::uint64_t bits = 0;
    bool negative = false;
    ASSERT_TRUE(reader.read_integer(&bits, &negative)) << expected.bytes;
    EXPECT_EQ(bits, expected.bits) << expected.bytes;
    EXPECT_EQ(negative, expected.negative) << expected.bytes;
    EXPECT_TRUE(reader.at_end());
  }
  std::uint32_t value = 0;
  const Bytes large = from_hex("cf0000000100000000"), minus = from_hex("d2ffffffff"), small = from_hex("cc07");
  EXPECT_FALSE(MsgpackReader(large).read_unsigned32(&value));
  EXPECT_FALSE(MsgpackReader(minus).read_unsigned32(&value));
  EXPECT_TRUE(MsgpackReader(small).read_unsigned32(&value));
  EXPECT_EQ(value, 7u);
}

// ---- Wire formats, byte for byte -------------------------------------------------------------------------------------

constexpr const char* kFirstStored =
    "93 cb41dac012e3ecdb30 91 8b"
    "a474797065 ab426c6f636b53746f726564"
    "ac626c6f636b5f686173686573 93 cf0292db8f8fb2077a cf46eccad6cc7ead11 cf66170814a4e7102c"
    "b1706172656e745f626c6f636b5f68617368 c0"
    "a9746f6b656e5f696473 9c 0a0b0c0d0e0f101112131415"
    "aa626c6f636b5f73697a65 04 a76c6f72615f6964 c0 a66d656469756d a3475055 a96c6f72615f6e616d65 c0"
    "aa65787472615f6b657973 93 c0c0c0 a967726f75705f696478 00"
    "b26b765f63616368655f737065635f6b696e64 ae66756c6c5f617474656e74696f6e 00";
constexpr const char* kRemovedThird =
    "93 cb3ff8000000000000 91 84a474797065 ac426c6f636b52656d6f766564 ac626c6f636b5f686173686573 91cf66170814a4e7102c "
    "a66d656469756d a3475055 a967726f75705f696478 00 00";
constexpr const char* kCleared = "93 cb41dac012e473f931 91 81 a474797065 b0416c6c426c6f636b73436c6561726564 00";

TEST(KvEventSource, ReadsCapturedFramesDirectly) {
  Fixture direct(KvNaming::kDirect);
  const KvReport report = direct.apply_payload(from_hex(kFirstStored));
  EXPECT_EQ(report.rank, 0);
  EXPECT_EQ(std::bit_cast<std::uint64_t>(report.timestamp), 0x41dac012e3ecdb30u);
  EXPECT_EQ(report.counts.stored_blocks, 3u);
  EXPECT_EQ(report.counts.sink_stored, 3u);
  EXPECT_EQ(report.counts.skipped_fields, 0u);
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{0x0292db8f8fb2077a, 0x46eccad6cc7ead11, 0x66170814a4e7102c}));
  EXPECT_EQ(direct.sink.parents, Hashes{0});

  direct.apply_payload(from_hex(kRemovedThird));
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{0x0292db8f8fb2077a, 0x46eccad6cc7ead11}));
  EXPECT_EQ(direct.apply_payload(from_hex(kRemovedThird)).counts.unknown_removals, 1u);

  EXPECT_EQ(direct.apply_payload(from_hex(kCleared)).counts.cleared_events, 1u);
  EXPECT_TRUE(direct.sink.gpu().empty());
  EXPECT_EQ(direct.source.uncertain(), 0u);
}

TEST(KvEventSource, NamesCapturedBlocksByTheirTokens) {
  Fixture translated(KvNaming::kTranslate);
  translated.apply_payload(from_hex(kFirstStored));
  const Hashes chain = chain_of(tokens_of(10, 12), 4);
  EXPECT_EQ(translated.sink.gpu(), set_of(chain));
  EXPECT_EQ(translated.source.usable(Tier::kGpu, chain, kNone), 3u);
  EXPECT_EQ(translated.source.usable(Tier::kGpu, chain, 2), 2u);
  translated.apply_payload(from_hex(kRemovedThird));
  EXPECT_EQ(translated.sink.gpu(), set_of(chain, 0, 2));
  EXPECT_EQ(translated.source.usable(Tier::kGpu, chain, kNone), 2u);
}

TEST(KvEventSource, OldestArraysWithNegativeHashes) {
  Fixture direct(KvNaming::kDirect);
  // Two elements a batch; hash -5 and one more, a removal of hash 7, then everything cleared.
  const KvReport report = direct.apply_payload(from_hex(
      "92cb3ff80000000000009396ab426c6f636b53746f72656492fbcf46eccad6cc7ead11c0940102030404c092ac426c6f636b52656d"
      "6f766564910791b0416c6c426c6f636b73436c6561726564"));
  EXPECT_EQ(report.rank, kNoRank);
  EXPECT_EQ(report.counts.stored_blocks, 2u);
  EXPECT_EQ(report.counts.unknown_removals, 1u);
  EXPECT_EQ(report.counts.cleared_events, 1u);
  EXPECT_EQ(report.counts.sink_stored, 2u);
  EXPECT_TRUE(direct.sink.gpu().empty());
  direct.apply_payload(from_hex("92cb3ff80000000000009196ab426c6f636b53746f72656491fbc0940102030404c0"));
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{0xFFFFFFFFFFFFFFFB}));
}

TEST(KvEventSource, ArraysOfEveryLength) {
  const BlockHash hash = 0xdab89baa7b5857c0;
  for (const char* payload : {
           "93cb3ff80000000000009196ab426c6f636b53746f72656491cfdab89baa7b5857c0cf46eccad6cc7ead11940102030404c001",
           "93cb3ff80000000000009197ab426c6f636b53746f72656491cfdab89baa7b5857c0cf46eccad6cc7ead11940102030404c0a347505"
           "500",
           "93cb3ff80000000000009198ab426c6f636b53746f72656491cfdab89baa7b5857c0cf46eccad6cc7ead1194010203040401a347505"
           "5a66c"
           "6f72612d6100",
           "93cb3ff8000000000000919aab426c6f636b53746f72656491cfdab89baa7b5857c0cf46eccad6cc7ead11940102030404c0a347505"
           "5c091"
           "c00000",
       }) {
    Fixture direct(KvNaming::kDirect);
    const KvReport report = direct.apply_payload(from_hex(payload));
    EXPECT_EQ(report.counts.refused_events, 0u) << payload;
    EXPECT_EQ(direct.sink.gpu(), std::set<BlockHash>{hash}) << payload;
    EXPECT_EQ(direct.sink.parents, Hashes{0x46eccad6cc7ead11}) << payload;
    // Its parent was never announced: without that it has no name.
    Fixture translated(KvNaming::kTranslate);
    EXPECT_EQ(translated.apply_payload(from_hex(payload)).counts.unusable_blocks, 1u) << payload;
    EXPECT_TRUE(translated.sink.gpu().empty()) << payload;
    EXPECT_EQ(translated.source.nameless_blocks(), 1u) << payload;
  }
}

TEST(KvEventSource, DigestsGiveTheirLast64Bits) {
  Fixture direct(KvNaming::kDirect);
  const KvReport report =
      direct.apply_payload(from_hex("93cb3ff8000000000000918ba474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865"
                                    "7391c420000102030405060708090a0b0c0d0e"
                                    "0f101112131415161718191a1b1c1d1e1fb1706172656e745f626c6f636b5f68617368c42000000000"
                                    "000000000000000000000000000000000000"
                                    "00000000000000000000a9746f6b656e5f696473940102"
                                    "0304aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e"
                                    "616d65a66c6f72612d61aa65787472615f6b"
                                    "6579739191a66c6f72612d61a967726f75705f69647800b26b765f63616368655f737065635f6b696e"
                                    "64ae66756c6c5f617474656e74696f6e03"));
  EXPECT_EQ(report.rank, 3);
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{0x18191a1b1c1d1e1f}));
}

Bytes sglang(std::size_t elements, std::string_view salt) {
  Writer out;
  out.array(elements).text("BlockStored").array(1).negative(-77).nil().array(4).u(1).u(2).u(3).u(4).u(4).nil();
  out.text("CPU_PINNED");
  if (elements == 8) out.map(2).text("cache_salt").text(salt).text("session_id").text("wf-1");
  return out.bytes;
}

TEST(KvEventSource, SglangArraysWithASalt) {
  Fixture direct(KvNaming::kDirect);
  direct.apply({sglang(7, "")});
  EXPECT_EQ(direct.sink.tiers[1], (std::set<BlockHash>{static_cast<BlockHash>(-77)}));
  Fixture translated(KvNaming::kTranslate);
  EXPECT_EQ(translated.apply({sglang(8, "tenant-a")}).counts.skipped_fields, 1u);
  EXPECT_EQ(translated.sink.tiers[1], set_of(chain_of({1, 2, 3, 4}, 4, "8:tenant-a")));
}

// llm-d-inference-sim: a parent of 0, and what is nil left out.
TEST(KvEventSource, ShortenedArraysAreToldByTheirTypes) {
  const auto stored = [](auto&& behind_block_size, std::size_t elements) {
    Writer out;
    out.array(5 + elements).text("BlockStored").array(1).u(9).u(0).array(4).u(1).u(2).u(3).u(4).u(4);
    behind_block_size(out);
    return out.bytes;
  };
  const Hashes chain = chain_of({1, 2, 3, 4}, 4);
  const std::vector<Bytes> good = {
      stored([](Writer& out) { out.text("GPU"); }, 1),
      stored([](Writer& out) { out.text("GPU").array(1).nil(); }, 2),
      stored([](Writer& out) { out.nil().text("GPU").array(1).nil().u(0); }, 4),
      stored([](Writer& out) { out.text("GPU").nil().nil().u(0).text("full_attention").nil().u(5).text("more"); }, 8),
      stored([](Writer&) {}, 0),
  };
  for (const Bytes& each : good) {
    Fixture translated(KvNaming::kTranslate);
    const KvReport report = translated.apply({each});
    EXPECT_EQ(report.counts.refused_events, 0u);
    EXPECT_EQ(translated.sink.gpu(), set_of(chain));
  }
  // A number where the adapter's name belongs could be anything.
  const std::vector<Bytes> bad = {stored([](Writer& out) { out.text("GPU").u(3); }, 2),
                                  stored([](Writer& out) { out.nil().u(3); }, 2),
                                  stored([](Writer& out) { out.array(0); }, 1)};
  for (const Bytes& each : bad) {
    Fixture translated(KvNaming::kTranslate);
    EXPECT_EQ(translated.apply({each, event(Stored{{1}, {}, {5, 6, 7, 8}})}).counts.refused_events, 1u);
    EXPECT_EQ(translated.source.uncertain(), KvUncertain::kEventRefused);
    EXPECT_EQ(translated.sink.gpu(), set_of(chain_of({5, 6, 7, 8}, 4))) << "the rest of the batch counts";
  }
}

TEST(KvEventSource, SkipsAndCountsWhatItDoesNotKnow) {
  Fixture direct(KvNaming::kDirect);
  Writer stored;
  stored.map(6).text("later").map(1).text("a").array(2).u(1).nil().text("block_size").u(4).text("token_ids").array(0);
  stored.text("block_hashes").array(1).u(5).u(77).text("a key that is no text").text("type").text("BlockStored");
  const KvReport report = direct.apply({Writer{}.map(1).text("type").text("BlockMoved").bytes,
                                        Writer{}.array(2).text("Heartbeat").u(1).bytes, Writer{}.u(7).bytes,
                                        Writer{}.array(0).bytes, Writer{}.map(0).bytes, stored.bytes});
  EXPECT_EQ(report.counts.events, 6u);
  EXPECT_EQ(report.counts.unknown_events, 5u);
  EXPECT_EQ(report.counts.skipped_fields, 2u);
  EXPECT_EQ(direct.sink.gpu(), std::set<BlockHash>{5});
  EXPECT_EQ(direct.source.uncertain(), 0u);
}

TEST(KvEventSource, RefusesWhatIsNoBatch) {
  Fixture direct(KvNaming::kDirect);
  const Bytes good = batch({event(Stored{{1, 2}, {}, tokens_of(1, 8)})});
  const std::uint64_t calls = direct.sink.calls;
  KvReport report;
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_EQ(direct.source.apply({good.data(), size}, direct.sink, &report), Status::kInvalidArgument) << size;
  }
  Bytes longer = good;
  longer.push_back(0);
  EXPECT_EQ(direct.source.apply(longer, direct.sink, &report), Status::kInvalidArgument);
  for (const char* bad : {"c0", "90", "91c0", "92c090", "9200c0", "81a000"}) {
    EXPECT_EQ(direct.source.apply(from_hex(bad), direct.sink, &report), Status::kInvalidArgument) << bad;
  }
  EXPECT_EQ(direct.source.apply(Bytes((1 << 20) + 1, 0), direct.sink, &report), Status::kFull);
  EXPECT_EQ(direct.sink.calls, calls);
  EXPECT_EQ(direct.source.batches(), 0u);
  EXPECT_EQ(direct.source.blocks(), 0u);
}

// ---- Names -----------------------------------------------------------------------------------------------------------

TEST(ChainSalt, IsInjectiveAndEmptyForNothing) {
  const auto salt_of = [](std::string_view cache_salt, std::string_view lora) {
    char salt[kMostChainSalt];
    return std::string(salt, write_chain_salt(cache_salt, lora, salt));
  };
  EXPECT_EQ(salt_of("", ""), "");
  EXPECT_EQ(salt_of("tenant-a", ""), "8:tenant-a");
  EXPECT_EQ(salt_of("", "tenant-a"), "0:tenant-a");
  EXPECT_EQ(salt_of("tenant", "-a"), "6:tenant-a");
  EXPECT_EQ(salt_of(std::string(kMostSaltPart, 's'), std::string(kMostSaltPart, 'l')).size(), 2 * kMostSaltPart + 5);
}

Bytes keys(std::initializer_list<Bytes> entries) {
  Writer out;
  out.array(entries.size());
  for (const Bytes& entry : entries) out.value(entry);
  return out.bytes;
}
Bytes text(std::string_view value) { return Writer{}.text(value).bytes; }
const Bytes kNil = {0xC0};

TEST(KvEventSource, SaltAndAdapterBeginTheChain) {
  const Tokens tokens = tokens_of(10, 8);
  const struct {
    std::string lora;
    Bytes first, second;
    std::string salt;
  } cases[] = {
      {"", keys({text("tenant-a")}), kNil, "8:tenant-a"},
      {"lora-a", keys({text("lora-a")}), keys({text("lora-a")}), "0:lora-a"},
      {"lora-a", keys({text("lora-a"), text("tenant-a")}), keys({text("lora-a")}), "8:tenant-alora-a"},
      // A salt that is called as the adapter is.
      {"lora-a", keys({text("lora-a"), text("lora-a")}), keys({text("lora-a")}), "6:lora-alora-a"},
  };
  for (const auto& expected : cases) {
    Fixture translated(KvNaming::kTranslate);
    Stored stored{{1, 2}, {}, tokens};
    stored.lora_name = expected.lora;
    stored.extra_keys = {expected.first, expected.second};
    translated.apply({event(stored)});
    EXPECT_EQ(translated.sink.gpu(), set_of(chain_of(tokens, 4, expected.salt))) << expected.salt;
    // What follows the chain stays in it.
    translated.apply({event(Stored{{3}, 2, tokens_of(18, 4)})});
    EXPECT_EQ(translated.source.usable(Tier::kGpu, chain_of(tokens_of(10, 12), 4, expected.salt), kNone), 3u);
    EXPECT_EQ(translated.source.usable(Tier::kGpu, chain_of(tokens_of(10, 12), 4), kNone), 0u);
  }
}

TEST(KvEventSource, AnAdapterKnownByItsNumberIsCalledThat) {
  Fixture translated(KvNaming::kTranslate);
  translated.apply(
      {Writer{}.array(6).text("BlockStored").array(1).u(1).nil().array(4).u(1).u(2).u(3).u(4).u(4).u(7).bytes});
  EXPECT_EQ(translated.sink.gpu(), set_of(chain_of({1, 2, 3, 4}, 4, "0:7")));
}

// Blocks that differ in more than tokens have names of their own, equal ones equal names.
TEST(KvEventSource, OtherExtraKeysGiveOtherNames) {
  const auto names_of = [](const Bytes& first, const Bytes& second) {
    Fixture translated(KvNaming::kTranslate);
    Stored stored{{1, 2}, {}, tokens_of(10, 8)};
    stored.extra_keys = {first, second};
    translated.apply({event(stored)});
    EXPECT_EQ(translated.sink.gpu().size(), 2u);
    return translated.sink.gpu();
  };
  const Bytes image = Writer{}.array(2).text("mm-hash").negative(-3).bytes;
  const Bytes other = Writer{}.array(2).text("mm-hash").negative(-4).bytes;
  const Bytes embeds = Writer{}.binary(Bytes(32, 7)).bytes;
  const std::set<BlockHash> plain = names_of(kNil, kNil);
  std::set<std::set<BlockHash>> distinct = {plain,
                                            names_of(kNil, keys({image})),
                                            names_of(kNil, keys({other})),
                                            names_of(kNil, keys({embeds})),
                                            names_of(kNil, keys({image, embeds})),
                                            names_of(kNil, keys({text("bare")})),
                                            names_of(keys({image}), keys({image})),
                                            names_of(keys({image, text("salt")}), keys({image}))};
  EXPECT_EQ(distinct.size(), 8u);
  EXPECT_EQ(names_of(kNil, keys({image})), names_of(kNil, keys({image})));
  // Only what differs is renamed: the first block is that of everybody.
  EXPECT_TRUE(names_of(kNil, keys({image})).contains(chain_of(tokens_of(10, 4), 4)[0]));
}

TEST(KvEventSource, ABlockBehindAnUnknownParentGetsItsNameLater) {
  Fixture translated(KvNaming::kTranslate);
  const Hashes chain = chain_of(tokens_of(1, 12), 4);
  EXPECT_EQ(translated.apply({event(Stored{{30}, 20, tokens_of(9, 4)})}).counts.unusable_blocks, 1u);
  EXPECT_EQ(translated.apply({event(Stored{{20}, 10, tokens_of(5, 4)})}).counts.unusable_blocks, 1u);
  EXPECT_EQ(translated.source.nameless_blocks(), 2u);
  EXPECT_TRUE(translated.sink.gpu().empty());
  // The whole chain again: second copies, but now they lead to the root.
  const KvReport report = translated.apply({event(Stored{{10, 20, 30}, {}, tokens_of(1, 12)})});
  EXPECT_EQ(report.counts.unusable_blocks, 0u);
  EXPECT_EQ(translated.source.nameless_blocks(), 0u);
  EXPECT_EQ(translated.source.copies(), 5u);
  EXPECT_EQ(translated.sink.gpu(), set_of(chain));
  EXPECT_EQ(translated.source.copies(0, Tier::kGpu, chain[0]), 1u);
  EXPECT_EQ(translated.source.copies(0, Tier::kGpu, chain[2]), 2u);
}

TEST(KvEventSource, OffloadTiersJoinByHashAlsoAfterTheGpuLetGo) {
  Fixture translated(KvNaming::kTranslate);
  const Hashes chain = chain_of(tokens_of(1, 8), 4);
  Stored placeholder{{10, 20, 99}};
  placeholder.block_size = 0;
  placeholder.medium = "CPU";
  placeholder.kind = "";
  translated.apply({event(Stored{{10, 20}, {}, tokens_of(1, 8)}), event(Removed{{20}})});
  EXPECT_EQ(translated.apply({event(placeholder)}).counts.unusable_blocks, 1u);
  EXPECT_EQ(translated.sink.tiers[0], set_of(chain, 0, 1));
  EXPECT_EQ(translated.sink.tiers[1], set_of(chain));
  EXPECT_EQ(translated.source.usable(Tier::kGpu, chain, kNone), 1u);
  EXPECT_EQ(translated.source.usable(Tier::kHost, chain, kNone), 2u);
  translated.apply({event(Removed{{10}}), event(Removed{{10, 20}, 0, "CPU"})});
  EXPECT_TRUE(translated.sink.tiers[0].empty() && translated.sink.tiers[1].empty());
  EXPECT_EQ(translated.source.uncertain(), 0u);
}

TEST(KvEventSource, TokensThatAreNoneMakeBlocksUnusable) {
  Fixture translated(KvNaming::kTranslate);
  Writer out;
  out.array(6).text("BlockStored").array(2).u(1).u(2).nil().array(8).u(1).u(2).text("three").u(4).u(5).u(6).u(7).u(8);
  EXPECT_EQ(translated.apply({out.u(4).nil().bytes}).counts.unusable_blocks, 2u);
  EXPECT_EQ(translated.source.uncertain(), KvUncertain::kEventRefused);
  EXPECT_EQ(translated.source.copies(), 2u);
}

// ---- Media, locality, groups -----------------------------------------------------------------------------------------

TEST(KvEventSource, MediaAreTiers) {
  const std::pair<const char*, std::size_t> media[] = {{"GPU", 0},      {"CPU", 1},     {"CPU_PINNED", 1}, {"HOST", 1},
                                                       {"DISK", 2},     {"STORAGE", 2}, {"FS", 2},         {"OBJ", 2},
                                                       {"EXTERNAL", 2}, {"moon", 2}};
  for (const auto& [medium, tier] : media) {
    Fixture direct(KvNaming::kDirect);
    Stored stored{{1}, {}, tokens_of(1, 4)};
    stored.medium = medium;
    direct.apply({event(stored)});
    for (std::size_t t = 0; t < kTierCount; ++t) EXPECT_EQ(direct.sink.tiers[t].size(), t == tier ? 1u : 0u) << medium;
  }
}

TEST(KvEventSource, RemoteBlocksAreNotThePublishers) {
  Fixture direct(KvNaming::kDirect);
  Stored stored{{1}, {}, tokens_of(1, 4)};
  stored.locality = "REMOTE";
  EXPECT_EQ(direct.apply({event(stored)}).counts.remote_events, 1u);
  EXPECT_EQ(direct.source.blocks(), 0u);
  stored.locality = "LOCAL";
  direct.apply({event(stored)});
  EXPECT_EQ(direct.source.blocks(), 1u);
}

Bytes in_group(std::uint32_t group, Hashes hashes, std::string kind = "full_attention",
               std::optional<std::uint32_t> window = {}) {
  Stored stored{std::move(hashes), {}, {}};
  stored.tokens = tokens_of(1, static_cast<std::uint32_t>(4 * stored.hashes.size()));
  stored.group = group;
  stored.kind = std::move(kind);
  stored.window = window;
  return event(stored);
}

TEST(KvEventSource, ABlockCountsWhenEveryFullGroupHoldsIt) {
  Fixture direct(KvNaming::kDirect);
  direct.apply({in_group(0, {1, 2, 3})});
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 2, 3}));
  // A second group appears: what it does not hold is not usable.
  direct.apply({in_group(1, {1, 2}, "mla_attention")});
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 2}));
  EXPECT_EQ(direct.source.usable(Tier::kGpu, Hashes{1, 2, 3}, kNone), 2u);
  direct.apply({event(Removed{{1}, 1}), in_group(1, {3})});
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{2, 3}));
  EXPECT_EQ(direct.source.usable(Tier::kGpu, Hashes{1, 2, 3}, kNone), 0u);
  EXPECT_EQ(direct.source.groups(), 2u);
  EXPECT_EQ(direct.source.uncertain(), 0u);
}

// One group on the GPU, the other in host memory: it is there in host memory.
TEST(KvEventSource, ABlockIsInTheSlowestTierThatItsGroupsNeed) {
  Fixture direct(KvNaming::kDirect);
  direct.apply({in_group(0, {1, 2}), in_group(1, {1})});
  Stored offloaded{{2}, {}, tokens_of(1, 4)};
  offloaded.group = 1;
  offloaded.medium = "CPU";
  direct.apply({event(offloaded)});
  EXPECT_EQ(direct.sink.tiers[0], std::set<BlockHash>{1});
  EXPECT_EQ(direct.sink.tiers[1], std::set<BlockHash>{2});
  EXPECT_EQ(direct.source.usable(Tier::kGpu, Hashes{1, 2}, kNone), 1u);
  EXPECT_EQ(direct.source.usable(Tier::kHost, Hashes{1, 2}, kNone), 2u);
}

// Full group 0, and group 1 with a window of 9 tokens: with blocks of 4 the last 2 before the end.
TEST(KvEventSource, AWindowNeedsTheLastBlocksBeforeTheEnd) {
  Fixture direct(KvNaming::kDirect);
  const Hashes chain = {1, 2, 3, 4, 5, 6};
  direct.apply({in_group(0, chain)});
  Stored window{{3, 4, 6}, {}, tokens_of(1, 24)};  // 1, 2 and 5 are masked; the tokens are those of all
  window.group = 1;
  window.kind = "sliding_window";
  window.window = 9;
  direct.apply({event(window)});
  EXPECT_EQ(direct.source.window_blocks(), 2u);
  EXPECT_EQ(direct.sink.window, 2u);
  EXPECT_EQ(direct.sink.gpu(), set_of(chain));
  EXPECT_EQ(direct.sink.windows, (std::set<BlockHash>{3, 4, 6}));
  EXPECT_EQ(direct.source.usable(Tier::kGpu, chain, kNone), 4u);
  EXPECT_EQ(direct.source.usable(Tier::kGpu, chain, 3), 0u) << "3 alone is one block too few";
  window.hashes = {5};
  window.parent = 4;
  direct.apply({event(window)});
  EXPECT_EQ(direct.source.usable(Tier::kGpu, chain, kNone), 6u);
  direct.apply({event(Removed{{4}, 1})});
  EXPECT_EQ(direct.sink.windows, (std::set<BlockHash>{3, 5, 6}));
  EXPECT_EQ(direct.source.usable(Tier::kGpu, chain, kNone), 6u);
  direct.apply({event(Removed{{6}, 1})});
  EXPECT_EQ(direct.source.usable(Tier::kGpu, chain, kNone), 0u);
  window.hashes = {1};
  window.parent = {};
  direct.apply({event(window)});
  EXPECT_EQ(direct.source.usable(Tier::kGpu, chain, kNone), 1u)
      << "a prefix shorter than the window needs all of itself";
  EXPECT_EQ(direct.source.uncertain(), 0u);
}

TEST(KvEventSource, WindowsInBlocks) {
  const std::pair<std::uint32_t, std::uint32_t> cases[] = {{0, 0}, {1, 0}, {2, 1},      {5, 1},
                                                           {6, 2}, {9, 2}, {4096, 1024}};
  for (const auto& [tokens, blocks] : cases) {
    Fixture direct(KvNaming::kDirect);
    direct.apply({in_group(0, {1}), in_group(1, {1}, "sliding_window_mla", tokens)});
    EXPECT_EQ(direct.source.window_blocks(), blocks) << tokens;
    EXPECT_EQ(direct.sink.window, blocks) << tokens;
  }
}

// The window group's event comes before that which names its blocks.
TEST(KvEventSource, WindowBlocksAreNamedByTheFullGroup) {
  Fixture translated(KvNaming::kTranslate);
  const Hashes chain = chain_of(tokens_of(1, 12), 4);
  Stored window{{30}, {}, tokens_of(1, 12)};
  window.group = 1;
  window.kind = "sliding_window";
  window.window = 5;
  EXPECT_EQ(translated.apply({event(window)}).counts.unusable_blocks, 1u);
  EXPECT_TRUE(translated.sink.windows.empty());
  translated.apply({event(Stored{{10, 20, 30}, {}, tokens_of(1, 12)})});
  EXPECT_EQ(translated.sink.windows, set_of(chain, 2));
  EXPECT_EQ(translated.source.usable(Tier::kGpu, chain, kNone), 3u);
}

TEST(KvEventSource, SaysWhatItCannotKnow) {
  const auto uncertain_after = [](const std::vector<Bytes>& events, bool is_usable) {
    Fixture direct(KvNaming::kDirect);
    direct.apply(events);
    EXPECT_EQ(direct.source.usable(Tier::kGpu, Hashes{1}, kNone), is_usable ? 1u : 0u);
    return direct.source.uncertain();
  };
  const Bytes full = in_group(0, {1});
  for (const char* kind : {"mamba", "encoder_only_attention", "cross_attention", "unknown", "quantum_attention"}) {
    EXPECT_EQ(uncertain_after({full, in_group(1, {1}, kind)}, false), KvUncertain::kGroupKind) << kind;
  }
  EXPECT_EQ(uncertain_after({full, in_group(0, {1}, "mamba")}, false), KvUncertain::kGroupKind);
  EXPECT_EQ(uncertain_after({in_group(0, {1}, "")}, true), 0u);
  EXPECT_EQ(uncertain_after({full, in_group(1, {1}, "")}, true), KvUncertain::kGroupUnstated);
  EXPECT_EQ(uncertain_after({full, in_group(32, {1})}, false), KvUncertain::kGroupLimit);
  EXPECT_EQ(uncertain_after({full, in_group(31, {1})}, true), 0u);
  EXPECT_EQ(uncertain_after({full, in_group(1, {1}, "chunked_local_attention")}, true), KvUncertain::kWindowUnstated);
  Stored other{{1}, {}, tokens_of(1, 8)};
  other.block_size = 8;
  other.group = 1;
  EXPECT_EQ(uncertain_after({full, event(other)}, false), KvUncertain::kBlockSize);
}

// Hybrid models announce a block that is not full yet, and remove it before the whole one.
TEST(KvEventSource, PartialBlocksAreNotBlocks) {
  Fixture direct(KvNaming::kDirect);
  Stored partial{{50}, 1, tokens_of(5, 2)};
  partial.block_size = 2;
  const KvReport report = direct.apply({event(Stored{{1}, {}, tokens_of(1, 4)}), event(partial), event(Removed{{50}}),
                                        event(Stored{{2}, 1, tokens_of(5, 4)})});
  EXPECT_EQ(report.counts.partial_events, 1u);
  EXPECT_EQ(report.counts.unknown_removals, 1u);
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 2}));
  EXPECT_EQ(direct.source.uncertain(), 0u);
}

// ---- Bounds and refusals ---------------------------------------------------------------------------------------------

TEST(KvEventSource, AFullTableSaysSo) {
  for (const KvNaming naming : {KvNaming::kDirect, KvNaming::kTranslate}) {
    Fixture small(naming, 4, 4);
    const KvReport report = small.apply({event(Stored{{1, 2, 3, 4, 5, 6}, {}, tokens_of(1, 24)})});
    EXPECT_EQ(report.counts.stored_blocks, 4u);
    EXPECT_EQ(report.counts.dropped_blocks, 2u);
    EXPECT_EQ(small.source.uncertain(), KvUncertain::kSourceFull);
    EXPECT_EQ(small.sink.gpu().size(), 4u);
    small.apply({event(Removed{{4}}), event(Stored{{7}, {}, tokens_of(100, 4)})});
    EXPECT_EQ(small.sink.gpu().size(), 4u);
    EXPECT_EQ(small.source.copies(0, Tier::kGpu, naming == KvNaming::kDirect ? 7 : chain_of(tokens_of(100, 4), 4)[0]),
              1u);
    small.apply({cleared()});
    EXPECT_EQ(small.source.uncertain(), 0u) << "nothing is there, and that is exact";
  }
}

// Names without copies make room, the one unused for longest first.
TEST(KvEventSource, ForgetsNamesWhenItNeedsRoom) {
  Fixture small(KvNaming::kTranslate, 4, 3);
  small.apply({event(Stored{{1}, {}, tokens_of(1, 4)}), event(Stored{{2}, {}, tokens_of(5, 4)}), event(Removed{{1}}),
               event(Removed{{2}})});
  small.apply({event(Stored{{3}, {}, tokens_of(9, 4)}), event(Stored{{4}, {}, tokens_of(13, 4)})});
  // Of 1 and 2, the first had to go; 2 leads on although its room is needed now.
  EXPECT_EQ(small.apply({event(Stored{{20}, 2, tokens_of(50, 4)}), event(Removed{{20}})}).counts.unusable_blocks, 0u);
  EXPECT_EQ(small.apply({event(Stored{{10}, 1, tokens_of(60, 4)}), event(Removed{{10}})}).counts.unusable_blocks, 1u);
  EXPECT_EQ(small.apply({event(Stored{{21}, 2, tokens_of(50, 4)})}).counts.unusable_blocks, 1u);
  EXPECT_EQ(small.source.uncertain(), 0u);
}

TEST(KvEventSource, RefusesABatchWhenTheSinkTakesNothing) {
  Fixture direct(KvNaming::kDirect);
  direct.sink.takes = 0;
  direct.sink.refusal = Status::kTimeReversed;
  KvReport report;
  const Bytes payload = batch({in_group(0, {1, 2})});
  EXPECT_EQ(direct.source.apply(payload, direct.sink, &report), Status::kTimeReversed);
  EXPECT_EQ(direct.source.blocks(), 0u);
  EXPECT_EQ(direct.source.reset(direct.sink), Status::kTimeReversed);
}

TEST(KvEventSource, RemembersWhatTheSinkRefused) {
  Fixture direct(KvNaming::kDirect);
  direct.apply({in_group(0, {1, 2, 3})});
  direct.sink.takes = 1;  // ready, and then no more
  const KvReport report = direct.apply({event(Removed{{2}}), in_group(0, {7})});
  EXPECT_EQ(report.sink_status, Status::kJournalFull);
  EXPECT_TRUE(direct.source.is_behind());
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 2, 3}));
  // Still full: the next batch is refused, and nothing of it counts.
  direct.sink.takes = 1;
  KvReport second;
  EXPECT_EQ(direct.source.apply(batch({in_group(0, {8})}), direct.sink, &second), Status::kJournalFull);
  EXPECT_EQ(direct.source.sync(direct.sink), Status::kJournalFull);
  EXPECT_TRUE(direct.source.verify());
  direct.sink.takes = UINT64_MAX;
  direct.apply({in_group(0, {8})});
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 3, 7, 8}));
  EXPECT_FALSE(direct.source.is_behind());

  // Cleared while it refuses: what it believes in is taken back later.
  direct.sink.takes = 1;
  direct.apply({cleared(), in_group(0, {1, 9})});
  EXPECT_EQ(direct.source.blocks(), 2u);
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 3, 7, 8}));
  direct.sink.takes = UINT64_MAX;
  EXPECT_EQ(direct.source.sync(direct.sink), Status::kOk);
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 9}));
  EXPECT_TRUE(direct.source.verify());
}

TEST(KvEventSource, ASinkWithoutRoomIsAskedAgainBySyncAlone) {
  Fixture direct(KvNaming::kDirect);
  direct.apply({in_group(0, {1})});
  direct.sink.takes = 1;
  direct.sink.refusal = Status::kFull;
  EXPECT_EQ(direct.apply({in_group(0, {2, 3})}).sink_status, Status::kFull);
  EXPECT_EQ(direct.source.uncertain(), KvUncertain::kSinkFull);
  EXPECT_FALSE(direct.source.is_behind());
  direct.sink.takes = UINT64_MAX;
  direct.apply({in_group(0, {4}), event(Removed{{3}})});
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 4}));
  EXPECT_EQ(direct.source.sync(direct.sink), Status::kOk);
  EXPECT_EQ(direct.sink.gpu(), (std::set<BlockHash>{1, 2, 4}));
  EXPECT_EQ(direct.source.uncertain(), 0u);
}

TEST(KvEventSource, ResetForgetsEverything) {
  Fixture translated(KvNaming::kTranslate);
  translated.apply({in_group(0, {1, 2}), in_group(1, {1}, "sliding_window", 100), in_group(2, {1}, "mamba")});
  EXPECT_EQ(translated.source.reset(translated.sink), Status::kOk);
  EXPECT_TRUE(translated.sink.gpu().empty() && translated.sink.windows.empty());
  EXPECT_EQ(translated.sink.window, 0u);
  EXPECT_EQ(translated.source.uncertain(), 0u);
  EXPECT_EQ(translated.source.groups(), 0u);
  EXPECT_EQ(translated.source.blocks(), 0u);
  EXPECT_TRUE(translated.source.verify());
  EXPECT_EQ(translated.apply({event(Stored{{3}, 2, tokens_of(1, 4)})}).counts.unusable_blocks, 1u);
}

TEST(KvEventSource, AllocatesNothingAfterConstruction) {
  KvEventSource source({.naming = KvNaming::kTranslate, .block_tokens = 4, .max_blocks = 64, .max_batch_bytes = 4096});
  class Silent final : public ResidencySink {
    Status ready() override { return Status::kOk; }
    Status stored(Tier, BlockHash, std::span<const BlockHash>) override { return Status::kOk; }
    Status removed(Tier, std::span<const BlockHash>) override { return Status::kOk; }
    Status cleared() override { return Status::kOk; }
    Status window_blocks(std::uint32_t) override { return Status::kOk; }
    Status window_stored(std::span<const BlockHash>) override { return Status::kOk; }
    Status window_removed(std::span<const BlockHash>) override { return Status::kOk; }
  } sink;
  const Bytes payload = batch({in_group(0, {1, 2, 3}), in_group(0, {1, 2, 3}), in_group(1, {2, 3}, "sliding_window", 5),
                               event(Removed{{2, 9}}), cleared(), in_group(0, {5})});
  const std::uint64_t before = allocations;
  for (int i = 0; i < 100; ++i) {
    KvReport report;
    ASSERT_EQ(source.apply(payload, sink, &report), Status::kOk);
  }
  EXPECT_EQ(allocations, before);
}

// ---- Against a plain model -------------------------------------------------------------------------------------------

// Counts copies in maps and derives what the sink must hold from scratch.
struct Model {
  using Copy = std::tuple<BlockHash, std::uint32_t, std::uint32_t>;  // key, tier, group
  std::map<Copy, std::uint32_t> copies;
  std::map<BlockHash, BlockHash> names;  // by key
  std::set<std::uint32_t> full, windows;

  bool holds(BlockHash key, std::uint32_t tier, std::uint32_t group) const {
    return copies.contains({key, tier, group});
  }
  void remove(BlockHash key, std::uint32_t tier, std::uint32_t group) {
    const auto at = copies.find({key, tier, group});
    if (at != copies.end() && --at->second == 0) copies.erase(at);
  }
  std::set<BlockHash> keys() const {
    std::set<BlockHash> all;
    for (const auto& [copy, count] : copies) all.insert(std::get<0>(copy));
    return all;
  }
  std::set<BlockHash> in_tier(std::uint32_t tier) const {
    std::set<BlockHash> result;
    for (const BlockHash key : keys()) {
      if (!names.contains(key)) continue;
      bool all = true, one_here = false;
      for (const std::uint32_t group : full) {
        bool somewhere = false;
        for (std::uint32_t t = 0; t <= tier; ++t) somewhere = somewhere || holds(key, t, group);
        all = all && somewhere;
        one_here = one_here || holds(key, tier, group);
      }
      if (all && one_here) result.insert(names.at(key));
    }
    return result;
  }
  std::set<BlockHash> in_windows() const {
    std::set<BlockHash> result;
    for (const BlockHash key : keys()) {
      bool all = !windows.empty() && names.contains(key);
      for (const std::uint32_t group : windows) all = all && holds(key, 0, group);
      if (all) result.insert(names.at(key));
    }
    return result;
  }
};

struct Node {  // a block of a tree of chains
  BlockHash key = 0;
  std::size_t parent = SIZE_MAX;
  Tokens tokens;
  ChainHash state;
};

std::vector<Node> tree_of(Random& random, std::size_t size) {
  std::vector<Node> nodes(size);
  for (std::size_t i = 0; i < size; ++i) {
    Node& node = nodes[i];
    node.key = random.next();
    if (i > 3 && random.below(8) != 0) node.parent = random.below(3) == 0 ? random.below(i) : i - 1;
    for (int t = 0; t < 4; ++t) node.tokens.push_back(static_cast<std::uint32_t>(random.below(200'000)));
    node.state = node.parent == SIZE_MAX ? chain_root() : nodes[node.parent].state;
    BlockHash name = 0;
    hash_blocks(node.state, node.tokens, 4, &name);
  }
  return nodes;
}

void run_against_model(std::uint64_t seed, KvNaming naming, bool sink_refuses) {
  Random random(seed);
  const std::vector<Node> nodes = tree_of(random, 60);
  Fixture fixture(naming, 4, 256);
  Model model;
  const char* const media[] = {"GPU", "CPU", "DISK"};
  for (int step = 0; step < 400; ++step) {
    std::vector<Bytes> events;
    for (std::uint64_t n = 1 + random.below(4); n != 0; --n) {
      const std::uint64_t kind = random.below(100);
      // Groups appear one after the other: full, full, window, window.
      const auto group = static_cast<std::uint32_t>(random.below(step < 100 ? 1 : step < 200 ? 3 : 4));
      const auto tier = static_cast<std::uint32_t>(random.below(6) < 4 ? 0 : random.below(kTierCount));
      // Names of what the sink still believes in outlive a clear that it refused, which the model does not follow.
      if (kind == 0 && !(sink_refuses && naming == KvNaming::kTranslate)) {
        events.push_back(cleared());
        model.copies.clear();
        model.names.clear();
      } else if (kind < 55) {
        // A stretch of a chain, ending anywhere.
        std::vector<std::size_t> path = {random.below(nodes.size())};
        while (path.size() < 1 + random.below(6) && nodes[path.front()].parent != SIZE_MAX) {
          path.insert(path.begin(), nodes[path.front()].parent);
        }
        Stored stored;
        stored.group = group;
        stored.medium = media[tier];
        const bool is_window = group >= 2;
        stored.kind = is_window ? "sliding_window" : group == 1 ? "sink_full_attention" : "full_attention";
        if (is_window) stored.window = 5 + 4 * (group - 2);
        const bool placeholder = random.below(6) == 0;
        const bool masked = is_window && random.below(2) == 0;
        if (placeholder) stored.block_size = 0;
        if (!placeholder && nodes[path.front()].parent != SIZE_MAX)
          stored.parent = nodes[nodes[path.front()].parent].key;
        bool known = !placeholder && (!stored.parent || model.names.contains(*stored.parent));
        bool skipped_one = false;
        std::vector<std::size_t> kept;
        for (const std::size_t at : path) {
          if (!placeholder) stored.tokens.insert(stored.tokens.end(), nodes[at].tokens.begin(), nodes[at].tokens.end());
          if (masked && path.size() > 1 && (random.below(2) == 0 || at == path.back()) && !skipped_one) {
            skipped_one = true;
          } else {
            kept.push_back(at);
          }
        }
        for (const std::size_t at : kept) {
          const Node& node = nodes[at];
          stored.hashes.push_back(node.key);
          ++model.copies[{node.key, tier, group}];
          if (naming == KvNaming::kDirect) model.names[node.key] = node.key;
          if (placeholder || skipped_one) continue;
          known = known || model.names.contains(node.key);
          if (known && naming == KvNaming::kTranslate) model.names[node.key] = node.state.low;
        }
        (is_window ? model.windows : model.full).insert(group);
        events.push_back(event(stored));
      } else {
        Removed removed;
        removed.group = group;
        removed.medium = media[tier];
        for (std::uint64_t i = 1 + random.below(4); i != 0; --i) {
          BlockHash key = random.below(20) == 0 ? random.next() : nodes[random.below(nodes.size())].key;
          if (!model.copies.empty() && random.below(3) != 0) {
            auto at = model.copies.begin();
            std::advance(at, static_cast<std::ptrdiff_t>(random.below(model.copies.size())));
            if (std::get<1>(at->first) == tier && std::get<2>(at->first) == group) key = std::get<0>(at->first);
          }
          removed.hashes.push_back(key);
          model.remove(key, tier, group);
        }
        events.push_back(event(removed));
      }
    }
    if (sink_refuses && random.below(3) == 0) fixture.sink.takes = 1 + random.below(4);
    fixture.apply(events);
    fixture.sink.takes = UINT64_MAX;
    if (fixture.source.is_behind()) {
      ASSERT_EQ(fixture.source.sync(fixture.sink), Status::kOk);
    }
    ASSERT_TRUE(fixture.source.verify());
    for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
      // Where only window groups are known they decide; here group 0 comes first unless the seed will have it otherwise.
      if (!model.full.empty()) {
        ASSERT_EQ(fixture.sink.tiers[tier], model.in_tier(tier)) << "seed " << seed << " step " << step;
      }
    }
    ASSERT_EQ(fixture.sink.windows, model.in_windows()) << "seed " << seed << " step " << step;
    std::uint64_t copies = 0;
    for (const auto& [copy, count] : model.copies) {
      copies += count;
      const auto& [key, tier, group] = copy;
      if (model.names.contains(key)) {
        ASSERT_EQ(fixture.source.copies(group, static_cast<Tier>(tier), model.names.at(key)), count);
      }
    }
    ASSERT_EQ(fixture.source.copies(), copies);
    ASSERT_EQ(fixture.source.blocks(), model.keys().size());

    // The usable prefix of a random chain, by its definition.
    Hashes chain;
    std::vector<BlockHash> chain_keys;
    for (std::size_t at = random.below(nodes.size()); at != SIZE_MAX; at = nodes[at].parent) {
      chain.insert(chain.begin(), naming == KvNaming::kDirect ? nodes[at].key : nodes[at].state.low);
      chain_keys.insert(chain_keys.begin(), nodes[at].key);
    }
    if (model.full.empty()) continue;
    std::uint32_t expected = 0;
    for (std::uint32_t end = 1; end <= chain.size(); ++end) {
      bool good = true;
      for (std::uint32_t i = 0; i < end; ++i) {
        const bool named = model.names.contains(chain_keys[i]);
        for (const std::uint32_t group : model.full) good = good && named && model.holds(chain_keys[i], 0, group);
        for (const std::uint32_t group : model.windows) {
          const std::uint32_t window = group == 2 ? 1 : 2;
          if (i + window >= end) good = good && named && model.holds(chain_keys[i], 0, group);
        }
      }
      if (good) expected = end;
    }
    ASSERT_EQ(fixture.source.usable(Tier::kGpu, chain, kNone), expected) << "seed " << seed << " step " << step;
  }
}

TEST(KvEventSourceModel, Direct) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) run_against_model(seed, KvNaming::kDirect, false);
}
TEST(KvEventSourceModel, Translate) {
  for (std::uint64_t seed = 11; seed <= 16; ++seed) run_against_model(seed, KvNaming::kTranslate, false);
}
TEST(KvEventSourceModel, WithASinkThatRefuses) {
  for (std::uint64_t seed = 21; seed <= 24; ++seed) {
    run_against_model(seed, KvNaming::kDirect, true);
    run_against_model(seed, KvNaming::kTranslate, true);
  }
}

// ---- Mutated payloads ------------------------------------------------------------------------------------------------

TEST(KvEventSource, MutatedPayloadsAreRefusedOrApplied) {
  const std::vector<Bytes> originals = {
      from_hex(kFirstStored), from_hex(kRemovedThird), from_hex(kCleared),
      batch({in_group(0, {1, 2}), in_group(1, {2}, "sliding_window", 9), event(Removed{{1}}), sglang(8, "salt")}),
      batch({event(Stored{{1, 2},
                          {},
                          tokens_of(1, 8),
                          4,
                          0,
                          "CPU",
                          "mla_attention",
                          {},
                          "lora",
                          {keys({text("lora"), text("salt")}), keys({text("lora")})}})})};
  Random random(7);
  std::uint64_t refused = 0, applied = 0;
  for (const KvNaming naming : {KvNaming::kDirect, KvNaming::kTranslate}) {
    for (int run = 0; run < 40; ++run) {
      Fixture fixture(naming, 4, 32);
      fixture.sink.names_repeat = true;
      for (int i = 0; i < 100; ++i) {
        Bytes payload = originals[random.below(originals.size())];
        for (std::uint64_t n = random.below(4); n != 0; --n) {
          payload[random.below(payload.size())] = static_cast<std::uint8_t>(random.next());
        }
        if (random.below(8) == 0) payload.resize(random.below(payload.size() + 1));
        if (random.below(8) == 0) payload.push_back(static_cast<std::uint8_t>(random.next()));
        const std::uint64_t calls = fixture.sink.calls, batches = fixture.source.batches();
        const std::uint64_t copies = fixture.source.copies(), blocks = fixture.source.blocks();
        const KvCounts totals = fixture.source.totals();
        // On the heap and no byte larger: reading beyond it is seen.
        const Bytes exact(payload.begin(), payload.end());
        KvReport report;
        const Status status = fixture.source.apply(exact, fixture.sink, &report);
        ASSERT_TRUE(fixture.source.verify());
        if (status == Status::kOk) {
          ++applied;
          continue;
        }
        ++refused;
        ASSERT_EQ(status, Status::kInvalidArgument);
        ASSERT_EQ(fixture.sink.calls, calls);
        ASSERT_EQ(fixture.source.batches(), batches);
        ASSERT_EQ(fixture.source.copies(), copies);
        ASSERT_EQ(fixture.source.blocks(), blocks);
        ASSERT_EQ(fixture.source.totals().events, totals.events);
      }
    }
  }
  EXPECT_GT(refused, 500u);
  EXPECT_GT(applied, 500u);
}

}  // namespace
}  // namespace saga
