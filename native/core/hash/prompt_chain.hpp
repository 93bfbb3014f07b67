// The tokens of one line of a conversation and the hashes of their blocks, extended by what is new.
//
// A conversation sends its whole prompt again with every call, a little longer. Hashing all of it costs 5 to 100 ns a block of
// 16 tokens (block_hash.hpp), and nearly all of it was hashed for the call before. So the chain keeps the tokens that it saw last
// and the state of the hash behind every full block: an update compares (memcmp, some 10 us for 100,000 tokens) and hashes from
// the first block that differs on, an append hashes only what it is given. Nothing is ever hashed to get back to a state.
//
// The hashes are exactly those of hash_blocks or of VllmHasher with the same root and keys.
//
// Memory: tokens (4 bytes each); a block has its key (8 bytes) and what the state has besides: 8 bytes, with SHA-256 24. That is 5
// bytes a token for blocks of 16, with SHA-256 6. It lies in chunks of about 4,096 tokens, so that growing copies nothing; chunks
// are made as they are needed, up to the longest prompt allowed, and freed by truncate alone.
//
// States: any prompt of 0 to max_tokens tokens. Invariant: key and state of every full block are those of the tokens up to its end.
// Where memory runs out an operation throws std::bad_alloc and has changed nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block_hash.hpp"

namespace saga {

struct PromptChainOptions {
  std::optional<VllmHashAlgorithm> vllm;  // none: SAGA's own chain
  std::uint32_t block_tokens = 16;        // 1 to kMaxBlockTokens
  std::uint32_t max_tokens = 1u << 20;
  std::string_view root;        // salt, or the seed of vLLM's chain
  std::string_view lora_name;   // vLLM's alone; at most kMaxExtraKeyBytes with cache_salt
  std::string_view cache_salt;  // vLLM's alone
};

// What a prompt was to the one before.
struct PromptChange {
  std::uint32_t common_tokens = 0;  // leading tokens of both
  std::uint32_t hashed_blocks = 0;  // full blocks behind them
};

class PromptChain {
 public:
  explicit PromptChain(const PromptChainOptions& options);

  // A chain with the first `tokens` tokens of this one. Copies memory, and hashes nothing. Its counters begin at 0.
  PromptChain fork(std::uint32_t tokens) const;

  // The prompt is now `tokens`, at most max_tokens of them.
  PromptChange update(std::span<const std::uint32_t> tokens);
  // `tokens` follow; at most max_tokens in all.
  PromptChange append(std::span<const std::uint32_t> tokens);
  // The first `tokens` stay. Frees chunks.
  void truncate(std::uint32_t tokens);

  std::uint32_t size() const { return size_; }
  std::uint32_t blocks() const { return size_ / block_tokens_; }
  std::uint32_t max_tokens() const { return max_tokens_; }
  // The first `out.size()` keys of blocks, or tokens.
  void copy_keys(std::span<std::uint64_t> out) const;
  void copy_tokens(std::span<std::uint32_t> out) const;

  std::uint64_t tokens_compared() const { return tokens_compared_; }
  std::uint64_t tokens_hashed() const { return tokens_hashed_; }
  std::uint64_t memory_bytes() const;

  // Hashes everything again.
  bool verify() const;

 private:
  static constexpr std::size_t kMostRestWords = 3;

  // Not initialised: nothing is read that was not written.
  struct Chunk {
    std::unique_ptr<std::uint32_t[]> tokens;
    std::unique_ptr<std::uint64_t[]> keys;
    std::unique_ptr<std::uint64_t[]> rests;  // what the state behind a block has besides its key
  };

  // The state of the hash between two blocks.
  struct State {
    ChainHash own;
    std::optional<VllmHasher> vllm;
  };
  struct BlockResult {
    std::uint64_t key = 0;
    std::array<std::uint64_t, kMostRestWords> rest{};
  };

  PromptChain() = default;
  Chunk make_chunk() const;
  void reserve(std::uint32_t tokens);
  std::uint32_t common(std::span<const std::uint32_t> tokens) const;
  void write_tokens(std::uint32_t from, std::span<const std::uint32_t> tokens);
  std::uint32_t hash_from(std::uint32_t block);
  State state_before(std::uint32_t block) const;
  BlockResult hash_block(State& state, std::uint32_t block) const;

  std::optional<VllmHashAlgorithm> algorithm_;
  std::uint32_t block_tokens_ = 0;
  std::uint32_t max_tokens_ = 0;
  std::uint32_t chunk_blocks_ = 0;
  std::uint32_t rest_words_ = 0;
  State root_;
  std::string lora_name_;
  std::string cache_salt_;

  std::vector<Chunk> chunks_;
  std::uint32_t size_ = 0;
  std::uint64_t tokens_compared_ = 0;
  std::uint64_t tokens_hashed_ = 0;
};

}  // namespace saga
