// Hashes against published vectors (FIPS 180-4), against vectors made with other implementations
// (data/hash_vectors.hpp) and against simple properties: in pieces or at once, by any path, the result is the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/hash/block_hash.hpp"
#include "../core/hash/bytes.hpp"
#include "../core/hash/cbor.hpp"
#include "../core/hash/sha256.hpp"
#include "../core/hash/xxh3.hpp"
#include "data/hash_vectors.hpp"

namespace saga {
namespace {

using Bytes = std::vector<std::uint8_t>;

std::string hex(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

Bytes unhex(std::string_view text) {
  const auto digit = [](char c) { return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10); };
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<std::uint8_t>(digit(text[i]) * 16 + digit(text[i + 1])));
  }
  return bytes;
}

std::span<const std::uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string sha256_hex(std::string_view text) { return hex(sha256(text.data(), text.size())); }

Bytes random_bytes(Random& random, std::size_t size) {
  Bytes bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
  return bytes;
}

std::vector<std::uint32_t> random_tokens(Random& random, std::size_t count) {
  std::vector<std::uint32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<std::uint32_t>(random.next() >> (32 + random.below(32)));
  return tokens;
}

// ---- SHA-256 --------------------------------------------------------------------------------------------------------

TEST(Sha256, PublishedVectors) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
                       "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, InPiecesAsAtOnce) {
  Random random(1);
  for (std::size_t size = 0; size < 300; ++size) {
    const Bytes message = random_bytes(random, size);
    Sha256 pieces;
    for (std::size_t at = 0; at < size;) {
      const std::size_t taken = std::min<std::size_t>(random.below(random.below(2) ? 10 : 150), size - at);
      pieces.update(message.data() + at, taken);
      ASSERT_TRUE(pieces.verify());
      at += taken;
    }
    ASSERT_EQ(hex(pieces.finish()), hex(sha256(message.data(), size))) << size;
    ASSERT_TRUE(pieces.verify());
  }
}

TEST(Sha256, InPlaceAsAtOnce) {
  Random random(8);
  for (std::size_t size = 0; size < 300; ++size) {
    Bytes message = random_bytes(random, size + kSha256Room);
    const auto expected = sha256(message.data(), size);
    ASSERT_EQ(hex(sha256_in_place(message.data(), size)), hex(expected)) << size;
  }
}

TEST(Sha256, PortableCompressionIsCorrect) {
  // "abc", padded by hand to one block.
  std::uint8_t block[64] = {'a', 'b', 'c', 0x80};
  block[63] = 24;
  std::uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  sha256_detail::compress_portable(state, block, 1);
  const std::array<std::uint32_t, 8> expected = {0xba7816bf, 0x8f01cfea, 0x414140de, 0x5dae2223,
                                                 0xb00361a3, 0x96177a9c, 0xb410ff61, 0xf20015ad};
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), state));
}

TEST(Sha256, AcceleratedCompressionAgreesWithPortable) {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    const std::size_t blocks = random.below(5);
    const Bytes data = random_bytes(random, 64 * blocks + 1);
    std::uint32_t portable[8], accelerated[8];
    for (int i = 0; i < 8; ++i) portable[i] = accelerated[i] = static_cast<std::uint32_t>(random.next());
    if (!sha256_detail::compress_accelerated(accelerated, data.data() + 1, blocks)) {
      GTEST_SKIP() << "this processor has no SHA instructions that SAGA uses";
    }
    sha256_detail::compress_portable(portable, data.data() + 1, blocks);
    ASSERT_TRUE(std::equal(portable, portable + 8, accelerated)) << blocks;
  }
}

// ---- XXH3-128 -------------------------------------------------------------------------------------------------------

TEST(Xxh3, VectorsOfEveryMethodAndItsEdges) {
  Bytes message(5000);
  for (std::size_t i = 0; i < message.size(); ++i) {
    message[i] = static_cast<std::uint8_t>(std::uint64_t{i} * 2654435761u >> 13);
  }
  for (const auto& vector : hash_vectors::kXxh3) {
    // At the end of its own allocation, so that a sanitizer sees a read behind the message.
    const Bytes exact(message.begin(), message.begin() + static_cast<std::ptrdiff_t>(vector.size));
    const Hash128 hash = xxh3_128(exact.data(), exact.size(), vector.seed);
    EXPECT_EQ(hex(canonical(hash)), vector.digest) << vector.size << " bytes, seed " << vector.seed;
    EXPECT_EQ(hash.high, load_big_endian<std::uint64_t>(unhex(vector.digest).data()));
    EXPECT_EQ(hash.low, load_big_endian<std::uint64_t>(unhex(vector.digest).data() + 8));
  }
}

TEST(Xxh3, SeedZeroIsTheDefault) {
  const Bytes message(300, 7);
  EXPECT_EQ(xxh3_128(message.data(), 300), xxh3_128(message.data(), 300, 0));
  EXPECT_NE(xxh3_128(message.data(), 300), xxh3_128(message.data(), 300, 1));
}

TEST(Xxh3, LinkIsTheHashOfTheConcatenation) {
  Random random(3);
  for (int round = 0; round < 100; ++round) {
    const Hash128 prefix{random.next(), random.next()};
    Bytes message(16);
    store_little_endian(message.data(), prefix.low);
    store_little_endian(message.data() + 8, prefix.high);
    const Bytes body = random_bytes(random, 64);
    message.insert(message.end(), body.begin(), body.end());
    ASSERT_EQ(xxh3_128_link(prefix, body.data()), xxh3_128(message.data(), message.size()));
  }
}

// ---- CBOR -----------------------------------------------------------------------------------------------------------

template <typename Write>
std::string cbor(Write write) {
  std::uint8_t buffer[1024];
  CborWriter writer(buffer, sizeof buffer);
  write(writer);
  EXPECT_TRUE(writer.verify());
  return hex({buffer, writer.size()});
}

std::string cbor_integer(std::int64_t value) {
  return cbor([=](CborWriter& writer) { writer.integer(value); });
}

TEST(Cbor, IntegersTakeTheShortestForm) {
  // RFC 8949, appendix A, and the edges of each width.
  EXPECT_EQ(cbor_integer(0), "00");
  EXPECT_EQ(cbor_integer(23), "17");
  EXPECT_EQ(cbor_integer(24), "1818");
  EXPECT_EQ(cbor_integer(255), "18ff");
  EXPECT_EQ(cbor_integer(256), "190100");
  EXPECT_EQ(cbor_integer(65535), "19ffff");
  EXPECT_EQ(cbor_integer(65536), "1a00010000");
  EXPECT_EQ(cbor_integer(1000000), "1a000f4240");
  EXPECT_EQ(cbor_integer(4294967295), "1affffffff");
  EXPECT_EQ(cbor_integer(4294967296), "1b0000000100000000");
  EXPECT_EQ(cbor_integer(1000000000000), "1b000000e8d4a51000");
  EXPECT_EQ(cbor_integer(INT64_MAX), "1b7fffffffffffffff");
  EXPECT_EQ(cbor_integer(-1), "20");
  EXPECT_EQ(cbor_integer(-24), "37");
  EXPECT_EQ(cbor_integer(-25), "3818");
  EXPECT_EQ(cbor_integer(-100), "3863");
  EXPECT_EQ(cbor_integer(-1000), "3903e7");
  EXPECT_EQ(cbor_integer(-65537), "3a00010000");
  EXPECT_EQ(cbor_integer(-4294967297), "3b0000000100000000");
  EXPECT_EQ(cbor_integer(INT64_MIN), "3b7fffffffffffffff");
}

TEST(Cbor, StringsArraysNull) {
  EXPECT_EQ(cbor([](CborWriter& w) { w.null(); }), "f6");
  EXPECT_EQ(cbor([](CborWriter& w) { w.text(""); }), "60");
  EXPECT_EQ(cbor([](CborWriter& w) { w.text("IETF"); }), "6449455446");
  EXPECT_EQ(cbor([](CborWriter& w) { w.text("\xc3\xbc"); }), "62c3bc");
  EXPECT_EQ(cbor([](CborWriter& w) { w.bytes({}); }), "40");
  EXPECT_EQ(cbor([](CborWriter& w) { w.bytes(bytes_of("\x01\x02\x03\x04")); }), "4401020304");
  EXPECT_EQ(cbor([](CborWriter& w) { w.text(std::string(24, 'a')); }), "7818" + hex(Bytes(24, 'a')));
  EXPECT_EQ(cbor([](CborWriter& w) { w.text(std::string(256, 'a')); }), "790100" + hex(Bytes(256, 'a')));
  EXPECT_EQ(cbor([](CborWriter& w) { w.integers({}); }), "80");
  const std::vector<std::uint32_t> tokens = {0, 23, 24, 255, 256, 65535, 65536, 0xFFFFFFFFu};
  EXPECT_EQ(cbor([&](CborWriter& w) { w.integers(tokens); }),
            "8800171818"
            "18ff"
            "190100"
            "19ffff"
            "1a00010000"
            "1affffffff");
  EXPECT_EQ(cbor([](CborWriter& w) {
              w.array(2);
              w.text("a");
              w.array(1);
              w.integer(-3);
            }),
            "826161"
            "8122");
}

TEST(Cbor, WritesNothingBehindItsBuffer) {
  const std::vector<std::uint32_t> tokens(20, 70000);
  Bytes buffer(1 + 20 * 5 + CborWriter::kMaxItemSize + CborWriter::kSlack, 0xAA);
  CborWriter writer(buffer.data(), buffer.size() - 1);
  writer.integers(tokens);
  EXPECT_TRUE(writer.verify());
  EXPECT_EQ(writer.size(), 101u);
  EXPECT_EQ(buffer.back(), 0xAA);
}

#if !defined(NDEBUG) || defined(SAGA_FORCE_ASSERTS)
TEST(CborDeathTest, OverflowIsAsserted) {
  std::uint8_t buffer[16 + CborWriter::kSlack];
  const std::string text(16, 'a');
  EXPECT_DEATH(
      {
        CborWriter writer(buffer, sizeof buffer);
        writer.text(text);
      },
      "fits");
}
#endif

// ---- vLLM's chain ---------------------------------------------------------------------------------------------------

VllmHashAlgorithm algorithm_named(std::string_view name) {
  return name == "sha256_cbor" ? VllmHashAlgorithm::kSha256Cbor : VllmHashAlgorithm::kXxhashCbor;
}

// The vector's keys of one block; `storage` keeps the decoded bytes alive.
std::vector<ExtraKey> extra_keys_of(const std::vector<hash_vectors::Key>& keys, std::vector<Bytes>& storage) {
  std::vector<ExtraKey> list;
  for (const auto& key : keys) {
    switch (key.kind) {
      case hash_vectors::kLoraName:
        list.push_back(ExtraKey::lora_name(key.data));
        break;
      case hash_vectors::kMultimodal:
        list.push_back(ExtraKey::multimodal(key.data, key.offset));
        break;
      case hash_vectors::kCacheSalt:
        list.push_back(ExtraKey::cache_salt(key.data));
        break;
      case hash_vectors::kPromptEmbedding:
        storage.push_back(unhex(key.data));
        list.push_back(ExtraKey::prompt_embedding(storage.back()));
        break;
    }
  }
  return list;
}

TEST(VllmHasher, AllVectorsBlockByBlock) {
  std::size_t blocks = 0;
  for (const auto& chain : hash_vectors::chains()) {
    VllmHasher hasher(algorithm_named(chain.algorithm), chain.seed);
    EXPECT_EQ(hex(hasher.digest()), chain.none_hash);
    for (std::size_t i = 0; i < chain.hashes.size(); ++i) {
      std::vector<Bytes> storage;
      const auto keys = extra_keys_of(chain.extra_keys[i], storage);
      EXPECT_TRUE(extra_keys_valid(keys, i == 0));
      const auto tokens = std::span(chain.tokens).subspan(i * chain.block_size, chain.block_size);
      EXPECT_EQ(hasher.hash_block(tokens, keys), chain.keys[i]);
      EXPECT_EQ(hex(hasher.digest()), chain.hashes[i]);
      EXPECT_EQ(hasher.key(), chain.keys[i]);
      EXPECT_EQ(hasher.tokens_hashed(), (i + 1) * chain.block_size);
      EXPECT_TRUE(hasher.verify());
      ++blocks;
    }
  }
  EXPECT_EQ(blocks, 2u * 2u * 29u);
}

TEST(VllmHasher, PlainVectorsAsARequest) {
  std::size_t chains = 0;
  for (const auto& chain : hash_vectors::chains()) {
    const auto empty = [](const auto& keys) { return keys.empty(); };
    if (!std::all_of(chain.extra_keys.begin(), chain.extra_keys.end(), empty)) continue;
    VllmHasher hasher(algorithm_named(chain.algorithm), chain.seed);
    std::vector<std::uint64_t> keys(chain.keys.size());
    EXPECT_EQ(hasher.hash_blocks(chain.tokens, chain.block_size, {}, keys.data()), keys.size());
    EXPECT_EQ(keys, chain.keys);
    ++chains;
  }
  EXPECT_EQ(chains, 2u * 2u * 8u);
}

// The worked examples of vLLM's definition: the bytes that are hashed, and the hashes.
TEST(VllmHasher, WorkedExamples) {
  const auto root = sha256(unhex("6130").data(), 2);
  EXPECT_EQ(hex(root), "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e");
  const Bytes preimage = unhex("835820" + hex(root) + "840a0b0c0df6");
  EXPECT_EQ(hex(sha256(preimage.data(), preimage.size())),
            "398c246ffafbdd52fd77aeeb90e6a134c3cfffac128d0a960292db8f8fb2077a");

  const std::vector<std::uint32_t> tokens = {10, 11, 12, 13, 14, 15, 16, 17};
  std::uint64_t keys[2] = {};
  VllmHasher plain(VllmHashAlgorithm::kSha256Cbor, "0");
  EXPECT_EQ(plain.hash_blocks(tokens, 4, {}, keys), 2u);
  EXPECT_EQ(keys[0], 185451944313227130u);
  EXPECT_EQ(keys[1], 5110682701061336337u);
  EXPECT_EQ(hex(plain.digest()), "9f97f817b2cae5a3566d11367e5fb805030bb972f35d988046eccad6cc7ead11");

  VllmHasher salted(VllmHashAlgorithm::kSha256Cbor, "0");
  EXPECT_EQ(salted.hash_blocks(std::span(tokens).first(4), 4,
                               {.lora_name = {}, .cache_salt = "tenant-a", .multimodal = {}}, keys),
            1u);
  EXPECT_EQ(hex(salted.digest()), "7abb93924f35c1c22e7f5a9ffed2d3481111f71e5366f9d21ae7219c0ec18e92");

  // As vLLM 0.33.0 computes them.
  VllmHasher tagged(VllmHashAlgorithm::kSha256CborTagged, "0");
  EXPECT_EQ(tagged.hash_blocks(tokens, 4, {.lora_name = {}, .cache_salt = "tenant-a", .multimodal = {}}, keys), 2u);
  EXPECT_EQ(hex(tagged.digest()), "a0cad50ac9e352b3c2af33638022de761637d1630111de4c3dc127a1b7a5ed75");
  EXPECT_EQ(keys[0], 5826883734100288558u);
  std::array<std::uint8_t, 32> embedding;
  for (std::uint8_t i = 0; i < 32; ++i) embedding[i] = i;
  const ExtraKey every[] = {ExtraKey::multimodal("id", -3), ExtraKey::cache_salt("s"),
                            ExtraKey::prompt_embedding(embedding)};
  VllmHasher all(VllmHashAlgorithm::kSha256CborTagged, "0");
  all.hash_block(std::span(tokens).first(4), every);
  EXPECT_EQ(hex(all.digest()), "72305ffcd2ca3ec821e0b39c6304000cd11f3a8ad47c32157807edd9e5a5be1a");

  const MultimodalItem items[] = {{.identifier = "id", .offset = 1, .length = 5}};
  VllmHasher request(VllmHashAlgorithm::kSha256CborTagged, "0");
  const VllmRequestKeys with_item = {.lora_name = {}, .cache_salt = "s", .multimodal = items};
  EXPECT_EQ(request.hash_blocks(std::span(tokens).first(4), 4, with_item, keys), 1u);
  EXPECT_EQ(hex(request.digest()), "a308015c3f1cf55086376128cbe9bb80e850df9b18f52c83d52d8b163f767ab1");
  EXPECT_EQ(request.hash_blocks(std::span(tokens).subspan(4, 4), 4, with_item, keys), 1u);
  EXPECT_EQ(hex(request.digest()), "fba7666f7b72e77e91273ad962fd2fb053b477443d918c6f86bf1c0d0cadc464");

  std::vector<std::uint32_t> counting(32);
  for (std::uint32_t i = 0; i < 32; ++i) counting[i] = i;
  VllmHasher sixteen(VllmHashAlgorithm::kSha256Cbor, "0");
  EXPECT_EQ(sixteen.hash_blocks(counting, 16, {}, keys), 2u);
  EXPECT_EQ(keys[0], 12687895063098490012u);
  EXPECT_EQ(keys[1], 1814341696565857452u);

  VllmHasher fast(VllmHashAlgorithm::kXxhashCbor, "0");
  EXPECT_EQ(hex(fast.digest()), "1ebe36576dcb573f26b99533a20aaeca");
  EXPECT_EQ(fast.hash_blocks(tokens, 4, {}, keys), 2u);
  EXPECT_EQ(keys[0], 1744292558691780323u);
}

TEST(VllmHasher, SaltIsOnTheFirstBlockAndLoraOnAll) {
  const std::vector<std::uint32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  const VllmRequestKeys request = {.lora_name = "lora-a", .cache_salt = "salt-1", .multimodal = {}};
  std::uint64_t keys[2] = {};
  VllmHasher hasher(VllmHashAlgorithm::kSha256Cbor, "0");
  hasher.hash_blocks(tokens, 4, request, keys);
  EXPECT_EQ(keys[0], 8533960205534631075u);
  EXPECT_EQ(keys[1], 8872781393568726626u);

  // The same in two calls: the second does not begin a chain.
  VllmHasher delta(VllmHashAlgorithm::kSha256Cbor, "0");
  std::uint64_t key = 0;
  delta.hash_blocks(std::span(tokens).first(4), 4, request, &key);
  EXPECT_EQ(key, keys[0]);
  delta.hash_blocks(std::span(tokens).subspan(4), 4, request, &key);
  EXPECT_EQ(key, keys[1]);
}

TEST(VllmHasher, SaltAloneInOneCallAsInMany) {
  Random random(9);
  const auto tokens = random_tokens(random, 16 * 5);
  const VllmRequestKeys request = {.lora_name = {}, .cache_salt = "tenant-a", .multimodal = {}};
  VllmHasher stated(VllmHashAlgorithm::kSha256Cbor, "0"), once(stated), many(stated);
  std::vector<std::uint64_t> expected, at_once(5), one_by_one(5);
  for (std::size_t i = 0; i < 5; ++i) {
    const std::vector<ExtraKey> salt = {ExtraKey::cache_salt("tenant-a")};
    const auto block = std::span(tokens).subspan(16 * i, 16);
    expected.push_back(stated.hash_block(block, i == 0 ? salt : std::vector<ExtraKey>{}));
    ASSERT_EQ(many.hash_blocks(block, 16, request, &one_by_one[i]), 1u);
  }
  EXPECT_EQ(once.hash_blocks(tokens, 16, request, at_once.data()), 5u);
  EXPECT_EQ(at_once, expected);
  EXPECT_EQ(one_by_one, expected);
}

// The items of a request, against a model that looks at every token of every block.
TEST(VllmHasher, MultimodalItemsFallOnTheBlocksTheyOverlap) {
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    const auto block_tokens = static_cast<std::uint32_t>(1 + random.below(12));
    const std::size_t blocks = 1 + random.below(12);
    const auto tokens = random_tokens(random, blocks * block_tokens);
    std::vector<std::string> names;
    std::vector<MultimodalItem> items;
    std::uint64_t at = random.below(5);
    while (at < tokens.size() + 5) {
      names.push_back("image-" + std::to_string(names.size()));
      const std::uint64_t length = 1 + random.below(20);
      items.push_back({"", at, length});
      at += length + random.below(10);
    }
    for (std::size_t i = 0; i < items.size(); ++i) items[i].identifier = names[i];
    const VllmRequestKeys request = {
        .lora_name = random.below(2) ? "l" : "", .cache_salt = random.below(2) ? "s" : "", .multimodal = items};
    ASSERT_TRUE(request_keys_valid(request, block_tokens, tokens.size()));

    VllmHasher model(VllmHashAlgorithm::kXxhashCbor, "7");
    std::vector<std::uint64_t> expected;
    for (std::uint64_t block = 0; block < blocks; ++block) {
      std::vector<ExtraKey> keys;
      if (!request.lora_name.empty()) keys.push_back(ExtraKey::lora_name(request.lora_name));
      std::set<std::size_t> seen;
      for (std::uint64_t token = block * block_tokens; token < (block + 1) * block_tokens; ++token) {
        for (std::size_t i = 0; i < items.size(); ++i) {
          if (token < items[i].offset || token >= items[i].offset + items[i].length || !seen.insert(i).second) continue;
          const auto offset =
              static_cast<std::int64_t>(items[i].offset) - static_cast<std::int64_t>(block * block_tokens);
          keys.push_back(ExtraKey::multimodal(items[i].identifier, offset));
        }
      }
      if (block == 0 && !request.cache_salt.empty()) keys.push_back(ExtraKey::cache_salt(request.cache_salt));
      expected.push_back(model.hash_block(std::span(tokens).subspan(block * block_tokens, block_tokens), keys));
    }

    VllmHasher hasher(VllmHashAlgorithm::kXxhashCbor, "7");
    std::vector<std::uint64_t> keys(blocks);
    for (std::size_t done = 0; done < blocks;) {
      const std::size_t count = 1 + random.below(blocks - done);
      const auto part = std::span(tokens).subspan(done * block_tokens, count * block_tokens);
      ASSERT_EQ(hasher.hash_blocks(part, block_tokens, request, keys.data() + done), count);
      ASSERT_TRUE(hasher.verify());
      done += count;
    }
    ASSERT_EQ(keys, expected);
  }
}

TEST(VllmHasher, RandomRootAndResume) {
  // A random NONE_HASH has 32 bytes for both algorithms; the preimage written by hand.
  const Bytes random_root(32, 0x5A);
  const std::vector<std::uint32_t> tokens = {10, 11, 12, 13};
  const Bytes preimage = unhex("835820" + hex(random_root) + "840a0b0c0df6");
  VllmHasher hasher(VllmHashAlgorithm::kXxhashCbor, random_root, 0);
  EXPECT_TRUE(hasher.verify());
  hasher.hash_block(tokens, {});
  EXPECT_EQ(hex(hasher.digest()), hex(canonical(xxh3_128(preimage.data(), preimage.size()))));

  VllmHasher resumed(VllmHashAlgorithm::kXxhashCbor, hasher.digest(), 4);
  EXPECT_EQ(resumed.hash_block(tokens, {}), hasher.hash_block(tokens, {}));
  EXPECT_EQ(hex(resumed.digest()), hex(hasher.digest()));
}

TEST(VllmHasher, LargestBlockWithLargestKeysFits) {
  const std::vector<std::uint32_t> tokens(kMaxBlockTokens, 0xFFFFFFFFu);
  const std::string identifier(kMaxExtraKeyBytes / kMaxExtraKeys, 'm');
  const std::vector<ExtraKey> keys(kMaxExtraKeys, ExtraKey::multimodal(identifier, INT64_MIN));
  ASSERT_TRUE(extra_keys_valid(keys, true));

  std::string preimage = "835820" + std::string(64, '1') + "991000";
  for (std::uint32_t i = 0; i < kMaxBlockTokens; ++i) preimage += "1affffffff";
  preimage += "9840";
  for (std::size_t i = 0; i < kMaxExtraKeys; ++i) {
    preimage += "827880" + hex(bytes_of(identifier)) + "3b7fffffffffffffff";
  }
  const Bytes bytes = unhex(preimage);
  VllmHasher hasher(VllmHashAlgorithm::kSha256Cbor, Bytes(32, 0x11), 0);
  hasher.hash_block(tokens, keys);
  EXPECT_EQ(hex(hasher.digest()), hex(sha256(bytes.data(), bytes.size())));
}

TEST(ExtraKeys, WhatVllmCouldNotMakeIsInvalid) {
  const Bytes embedding(32), short_embedding(31);
  const auto lora = ExtraKey::lora_name("a");
  const auto image = ExtraKey::multimodal("m", 0);
  const auto salt = ExtraKey::cache_salt("s");
  using List = std::vector<ExtraKey>;
  EXPECT_TRUE(extra_keys_valid(List{}, true));
  EXPECT_TRUE(extra_keys_valid(List{lora, image, image, salt, ExtraKey::prompt_embedding(embedding)}, true));
  EXPECT_FALSE(extra_keys_valid(List{lora, salt}, false));
  EXPECT_FALSE(extra_keys_valid(List{salt, lora}, true));
  EXPECT_FALSE(extra_keys_valid(List{lora, lora}, true));
  EXPECT_FALSE(extra_keys_valid(List{image, ExtraKey::multimodal("m", -1)}, true));
  EXPECT_FALSE(extra_keys_valid(List{ExtraKey::prompt_embedding(short_embedding)}, true));
  EXPECT_TRUE(extra_keys_valid(List(kMaxExtraKeys, image), true));
  EXPECT_FALSE(extra_keys_valid(List(kMaxExtraKeys + 1, image), true));
  EXPECT_TRUE(extra_keys_valid(List{ExtraKey::lora_name(std::string(kMaxExtraKeyBytes, 'x'))}, true));
  EXPECT_FALSE(extra_keys_valid(List{ExtraKey::lora_name(std::string(kMaxExtraKeyBytes, 'x')), salt}, true));
}

TEST(ExtraKeys, RequestsOutOfBoundsAreInvalid) {
  const auto valid = [](std::vector<MultimodalItem> items, std::uint32_t block_tokens) {
    return request_keys_valid({.lora_name = "a", .cache_salt = "s", .multimodal = items}, block_tokens, 1000);
  };
  EXPECT_TRUE(valid({}, 16));
  EXPECT_FALSE(valid({}, 0));
  EXPECT_FALSE(valid({}, kMaxBlockTokens + 1));
  EXPECT_TRUE(valid({{"m", 0, 10}, {"m", 10, 10}}, 16));
  EXPECT_FALSE(valid({{"m", 0, 10}, {"m", 9, 10}}, 16));
  EXPECT_FALSE(valid({{"m", 10, 10}, {"m", 0, 10}}, 16));
  EXPECT_FALSE(valid({{"m", 10, UINT64_MAX}}, 16));
  std::vector<MultimodalItem> many;  // one token each: fits blocks of 32, not the third block of 128 tokens
  for (std::uint64_t i = 0; i < 100; ++i) many.push_back({"m", 300 + i, 1});
  EXPECT_TRUE(valid(many, 32));
  EXPECT_FALSE(valid(many, 128));
  const std::string name(kMaxExtraKeyBytes, 'x');
  EXPECT_FALSE(request_keys_valid({.lora_name = name, .cache_salt = "s", .multimodal = {}}, 16, 1000));
  EXPECT_TRUE(request_keys_valid({.lora_name = name, .cache_salt = {}, .multimodal = {}}, 16, 1000));
}

// ---- SAGA's own chain -----------------------------------------------------------------------------------------------

// By definition: concatenate, hash.
std::vector<ChainHash> model_chain(ChainHash state, std::span<const std::uint32_t> tokens, std::size_t block_tokens) {
  std::vector<ChainHash> chain;
  for (std::size_t block = 0; block < tokens.size() / block_tokens; ++block) {
    Bytes message;
    for (int i = 0; i < 8; ++i) message.push_back(static_cast<std::uint8_t>(state.low >> (8 * i)));
    for (int i = 0; i < 8; ++i) message.push_back(static_cast<std::uint8_t>(state.high >> (8 * i)));
    for (const std::uint32_t token : tokens.subspan(block * block_tokens, block_tokens)) {
      for (int i = 0; i < 4; ++i) message.push_back(static_cast<std::uint8_t>(token >> (8 * i)));
    }
    state = xxh3_128(message.data(), message.size());
    chain.push_back(state);
  }
  return chain;
}

TEST(Chain, Roots) {
  EXPECT_EQ(hex(canonical(chain_root())), "99aa06d3014798d86001c324468d497f");  // XXH3-128 of nothing
  EXPECT_EQ(chain_root(), chain_root(""));
  EXPECT_NE(chain_root("tenant-a"), chain_root("tenant-b"));
}

TEST(Chain, IsTheHashOfParentAndTokensForEveryBlockSize) {
  Random random(5);
  for (const std::uint32_t block_tokens :
       {1u, 2u, 4u, 8u, 15u, 16u, 17u, 28u, 29u, 32u, 56u, 57u, 64u, 128u, 256u, 1024u, kMaxBlockTokens}) {
    const auto tokens = random_tokens(random, 3 * block_tokens + random.below(block_tokens));
    ChainHash state = chain_root("salt");
    const auto expected = model_chain(state, tokens, block_tokens);
    std::vector<std::uint64_t> keys(3);
    ASSERT_EQ(hash_blocks(state, tokens, block_tokens, keys.data()), 3u);
    EXPECT_EQ(state, expected.back()) << block_tokens;
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(keys[i], expected[i].low) << block_tokens;
  }
}

TEST(Chain, SplitAtBlockBordersIsTheSameChain) {
  Random random(6);
  for (int round = 0; round < 200; ++round) {
    const std::uint32_t block_tokens = random.below(2) ? 16 : static_cast<std::uint32_t>(1 + random.below(80));
    const std::size_t blocks = random.below(20);
    const auto tokens = random_tokens(random, blocks * block_tokens + random.below(block_tokens));
    ChainHash whole = chain_root();
    std::vector<std::uint64_t> at_once(blocks);
    ASSERT_EQ(hash_blocks(whole, tokens, block_tokens, at_once.data()), blocks);

    ChainHash state = chain_root();
    std::vector<std::uint64_t> in_parts(blocks);
    for (std::size_t done = 0; done < blocks;) {
      // With a tail that is not a block yet, as a growing prompt has it; it is given again with the next part.
      const std::size_t count = random.below(blocks - done + 1);
      const std::size_t size =
          std::min(count * block_tokens + random.below(block_tokens), tokens.size() - done * block_tokens);
      const auto part = std::span(tokens).subspan(done * block_tokens, size);
      ASSERT_EQ(hash_blocks(state, part, block_tokens, in_parts.data() + done), size / block_tokens);
      done += size / block_tokens;
    }
    ASSERT_EQ(in_parts, at_once);
    ASSERT_EQ(state, whole);
  }
}

TEST(Chain, NamesTheWholePrefixAndTheSalt) {
  Random random(7);
  auto tokens = random_tokens(random, 16 * 8);
  const auto keys_of = [&](std::string_view salt) {
    ChainHash state = chain_root(salt);
    std::vector<std::uint64_t> keys(8);
    hash_blocks(state, tokens, 16, keys.data());
    return keys;
  };
  const auto before = keys_of("");
  const auto salted = keys_of("tenant-a");
  for (std::size_t i = 0; i < 8; ++i) EXPECT_NE(before[i], salted[i]);
  for (std::size_t changed = 0; changed < tokens.size(); ++changed) {
    tokens[changed] ^= 1;
    const auto after = keys_of("");
    for (std::size_t i = 0; i < 8; ++i) {
      EXPECT_EQ(after[i] == before[i], i < changed / 16) << changed;
    }
    tokens[changed] ^= 1;
  }
}

}  // namespace
}  // namespace saga
