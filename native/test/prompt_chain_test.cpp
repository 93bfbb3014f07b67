// Prompt chains against hashing from scratch: random updates, appends, truncations and forks, every algorithm, block sizes on both
// sides of a chunk.
#include "../core/hash/prompt_chain.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/hash/block_hash.hpp"

namespace saga {
namespace {

using Tokens = std::vector<std::uint32_t>;

Tokens drawn(Random& random, std::size_t count) {
  Tokens tokens(count);
  for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random.below(152'000));
  return tokens;
}

std::vector<std::uint64_t> hashed_anew(const PromptChainOptions& options, const Tokens& tokens) {
  std::vector<std::uint64_t> keys(tokens.size() / options.block_tokens);
  if (options.vllm) {
    VllmHasher hasher(*options.vllm, options.root);
    const VllmRequestKeys request{.lora_name = options.lora_name, .cache_salt = options.cache_salt, .multimodal = {}};
    hasher.hash_blocks(tokens, options.block_tokens, request, keys.data());
  } else {
    ChainHash state = chain_root(options.root);
    hash_blocks(state, tokens, options.block_tokens, keys.data());
  }
  return keys;
}

std::vector<std::uint64_t> keys_of(const PromptChain& chain) {
  std::vector<std::uint64_t> keys(chain.blocks());
  chain.copy_keys(keys);
  return keys;
}

Tokens tokens_of(const PromptChain& chain) {
  Tokens tokens(chain.size());
  chain.copy_tokens(tokens);
  return tokens;
}

std::vector<PromptChainOptions> kinds(std::uint32_t block_tokens, std::uint32_t max_tokens) {
  PromptChainOptions own{.vllm = {},
                         .block_tokens = block_tokens,
                         .max_tokens = max_tokens,
                         .root = "tenant",
                         .lora_name = {},
                         .cache_salt = {}};
  PromptChainOptions sha256 = own;
  sha256.vllm = VllmHashAlgorithm::kSha256Cbor;
  sha256.root = "0";
  PromptChainOptions keyed = sha256;
  keyed.lora_name = "adapter";
  keyed.cache_salt = "salt";
  PromptChainOptions xxhash = keyed;
  xxhash.vllm = VllmHashAlgorithm::kXxhashCbor;
  return {own, sha256, keyed, xxhash};
}

TEST(PromptChain, HashesOnlyFromTheBlockThatDiffers) {
  PromptChain chain({.vllm = {}, .block_tokens = 4, .max_tokens = 1000, .root = {}, .lora_name = {}, .cache_salt = {}});
  Tokens tokens(100);
  for (std::uint32_t i = 0; i < 100; ++i) tokens[i] = i;
  PromptChange change = chain.update(tokens);
  EXPECT_EQ(change.common_tokens, 0u);
  EXPECT_EQ(change.hashed_blocks, 25u);
  EXPECT_EQ(chain.tokens_compared(), 0u);
  EXPECT_EQ(chain.tokens_hashed(), 100u);
  change = chain.update(tokens);
  EXPECT_EQ(change.common_tokens, 100u);
  EXPECT_EQ(change.hashed_blocks, 0u);
  EXPECT_EQ(chain.tokens_compared(), 100u);
  tokens[62] = 7;
  change = chain.update(tokens);
  EXPECT_EQ(change.common_tokens, 62u);
  EXPECT_EQ(change.hashed_blocks, 10u);
  EXPECT_EQ(chain.tokens_compared(), 163u);
  EXPECT_EQ(chain.tokens_hashed(), 140u);
  // A block that was not full is hashed when it is.
  change = chain.append(Tokens{1, 2, 3});
  EXPECT_EQ(change.common_tokens, 100u);
  EXPECT_EQ(change.hashed_blocks, 0u);
  change = chain.append(Tokens{4, 5});
  EXPECT_EQ(change.common_tokens, 103u);
  EXPECT_EQ(change.hashed_blocks, 1u);
  // A shorter prompt needs nothing.
  tokens.resize(41);
  change = chain.update(tokens);
  EXPECT_EQ(change.common_tokens, 41u);
  EXPECT_EQ(change.hashed_blocks, 0u);
  EXPECT_EQ(chain.blocks(), 10u);
  EXPECT_EQ(chain.tokens_hashed(), 144u);
  change = chain.update({});
  EXPECT_EQ(chain.size(), 0u);
  EXPECT_TRUE(chain.verify());
}

TEST(PromptChain, WorkGrowsWithWhatIsNewAlone) {
  Random random(1);
  const Tokens all = drawn(random, 100'000);
  PromptChain chain(PromptChainOptions{});
  std::uint64_t appended = 0;
  for (std::size_t size = 1000; size <= all.size(); size += 1000) {
    chain.append(std::span(all).subspan(size - 1000, 1000));
    appended += 1000;
    EXPECT_EQ(chain.tokens_hashed(), appended / 16 * 16);
  }
  EXPECT_EQ(chain.tokens_compared(), 0u);
  EXPECT_EQ(keys_of(chain), hashed_anew({}, all));
}

TEST(PromptChain, MemoryGrowsInChunksAndIsGivenBack) {
  PromptChain chain(
      {.vllm = {}, .block_tokens = 16, .max_tokens = 1u << 20, .root = {}, .lora_name = {}, .cache_salt = {}});
  const std::uint64_t empty = chain.memory_bytes();
  EXPECT_LT(empty, 1000u);
  const Tokens tokens(100'000, 5);
  chain.append(std::span(tokens).first(1));
  const std::uint64_t one = chain.memory_bytes() - empty;
  EXPECT_GE(one, 4096u * 5);
  EXPECT_LT(one, 4096u * 5 + 200);
  chain.update(tokens);
  EXPECT_GE(chain.memory_bytes(), 100'000u * 5);
  EXPECT_LT(chain.memory_bytes(), 104'000u * 5 + 4000);
  const PromptChain fork = chain.fork(50'000);
  EXPECT_GE(fork.memory_bytes(), 50'000u * 5);
  EXPECT_LT(fork.memory_bytes(), 54'000u * 5 + 3000);
  chain.truncate(1);
  EXPECT_LT(chain.memory_bytes(), empty + 4096 * 5 + 3000);
  // A small bound takes a small chunk.
  PromptChain small({.vllm = {}, .block_tokens = 16, .max_tokens = 17, .root = {}, .lora_name = {}, .cache_salt = {}});
  small.append(std::span(tokens).first(17));
  EXPECT_LT(small.memory_bytes(), 1000u);
}

TEST(PromptChain, IsAsHashedFromScratchWhateverWasDone) {
  struct Line {
    PromptChain chain;
    Tokens tokens;
  };
  std::uint64_t seed = 0;
  for (const std::uint32_t block_tokens : {1u, 3u, 16u, 100u, 4096u}) {
    const std::uint32_t max_tokens = block_tokens == 1 ? 5000 : 20'000;
    for (const PromptChainOptions& options : kinds(block_tokens, max_tokens)) {
      Random random(++seed);
      std::vector<Line> lines;
      lines.push_back({PromptChain(options), {}});
      for (int step = 0; step < 40; ++step) {
        Line& line = lines[random.below(lines.size())];
        const std::uint32_t size = line.chain.size();
        switch (random.below(6)) {
          case 0: {  // another prompt with the same beginning
            const auto kept = static_cast<std::uint32_t>(random.below(size + 1));
            Tokens next(line.tokens.begin(), line.tokens.begin() + kept);
            const Tokens added = drawn(random, random.below(max_tokens - kept + 1));
            next.insert(next.end(), added.begin(), added.end());
            std::uint32_t shared = kept;
            while (shared < std::min<std::size_t>(size, next.size()) && next[shared] == line.tokens[shared]) ++shared;
            const PromptChange change = line.chain.update(next);
            ASSERT_EQ(change.common_tokens, shared);
            ASSERT_EQ(change.hashed_blocks, next.size() / block_tokens - shared / block_tokens);
            line.tokens = next;
            break;
          }
          case 1:
          case 2: {
            const std::uint64_t room = max_tokens - size;
            const Tokens added = drawn(random, random.below(std::min<std::uint64_t>(room, 3 * block_tokens + 50) + 1));
            const PromptChange change = line.chain.append(added);
            line.tokens.insert(line.tokens.end(), added.begin(), added.end());
            ASSERT_EQ(change.common_tokens, size);
            ASSERT_EQ(change.hashed_blocks, line.tokens.size() / block_tokens - size / block_tokens);
            break;
          }
          case 3: {
            const auto kept = static_cast<std::uint32_t>(random.below(size + 1));
            line.chain.truncate(kept);
            line.tokens.resize(kept);
            break;
          }
          case 4: {  // one token changed
            if (size == 0) break;
            const auto at = static_cast<std::uint32_t>(random.below(size));
            line.tokens[at] ^= 1;
            const PromptChange change = line.chain.update(line.tokens);
            ASSERT_EQ(change.common_tokens, at);
            ASSERT_EQ(change.hashed_blocks, size / block_tokens - at / block_tokens);
            break;
          }
          default: {
            const auto kept = static_cast<std::uint32_t>(random.below(size + 1));
            Line forked{line.chain.fork(kept), Tokens(line.tokens.begin(), line.tokens.begin() + kept)};
            ASSERT_EQ(forked.chain.tokens_hashed(), 0u);
            if (lines.size() < 5) {
              lines.push_back(std::move(forked));
            } else {
              lines[random.below(lines.size())] = std::move(forked);
            }
            break;
          }
        }
        for (const Line& each : lines) {
          ASSERT_EQ(tokens_of(each.chain), each.tokens);
          ASSERT_EQ(keys_of(each.chain), hashed_anew(options, each.tokens));
        }
      }
      for (const Line& each : lines) ASSERT_TRUE(each.chain.verify());
    }
  }
}

}  // namespace
}  // namespace saga
