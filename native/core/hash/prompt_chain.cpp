#include "prompt_chain.hpp"

#include <algorithm>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/common_prefix.hpp"
#include "bytes.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kChunkTokens = 4096;

}  // namespace

PromptChain::PromptChain(const PromptChainOptions& options)
    : algorithm_(options.vllm),
      block_tokens_(options.block_tokens),
      max_tokens_(options.max_tokens),
      rest_words_(options.vllm && is_sha256(*options.vllm) ? 3 : 1),
      lora_name_(options.lora_name),
      cache_salt_(options.cache_salt) {
  SAGA_ASSERT(block_tokens_ >= 1 && block_tokens_ <= kMaxBlockTokens && max_tokens_ >= 1);
  SAGA_ASSERT(algorithm_ || (lora_name_.empty() && cache_salt_.empty()));
  const std::uint32_t most_blocks = (max_tokens_ - 1) / block_tokens_ + 1;
  chunk_blocks_ = std::min(std::max(kChunkTokens / block_tokens_, 1u), most_blocks);
  if (algorithm_) {
    root_.vllm.emplace(*algorithm_, options.root);
  } else {
    root_.own = chain_root(options.root);
  }
}

PromptChain::Chunk PromptChain::make_chunk() const {
  const std::size_t blocks = chunk_blocks_;
  Chunk chunk;
  chunk.tokens.reset(new std::uint32_t[blocks * block_tokens_]);
  chunk.keys.reset(new std::uint64_t[blocks]);
  chunk.rests.reset(new std::uint64_t[blocks * rest_words_]);
  return chunk;
}

void PromptChain::reserve(std::uint32_t tokens) {
  const std::size_t chunk_tokens = std::size_t{chunk_blocks_} * block_tokens_;
  const std::size_t needed = (tokens + chunk_tokens - 1) / chunk_tokens;
  // Chunks made before memory ran out stay: they are room, not tokens.
  while (chunks_.size() < needed) chunks_.push_back(make_chunk());
}

PromptChain PromptChain::fork(std::uint32_t tokens) const {
  SAGA_ASSERT(tokens <= size_);
  PromptChain made;
  made.algorithm_ = algorithm_;
  made.block_tokens_ = block_tokens_;
  made.max_tokens_ = max_tokens_;
  made.chunk_blocks_ = chunk_blocks_;
  made.rest_words_ = rest_words_;
  made.root_ = root_;
  made.lora_name_ = lora_name_;
  made.cache_salt_ = cache_salt_;
  made.reserve(tokens);
  made.size_ = tokens;
  std::uint32_t left = tokens;
  for (std::size_t i = 0; i < made.chunks_.size(); ++i) {
    const std::uint32_t here = std::min(left, chunk_blocks_ * block_tokens_);
    const std::uint32_t blocks = here / block_tokens_;
    std::copy_n(chunks_[i].tokens.get(), here, made.chunks_[i].tokens.get());
    std::copy_n(chunks_[i].keys.get(), blocks, made.chunks_[i].keys.get());
    std::copy_n(chunks_[i].rests.get(), std::size_t{blocks} * rest_words_, made.chunks_[i].rests.get());
    left -= here;
  }
  return made;
}

std::uint32_t PromptChain::common(std::span<const std::uint32_t> tokens) const {
  const std::size_t chunk_tokens = std::size_t{chunk_blocks_} * block_tokens_;
  const std::size_t most = std::min<std::size_t>(size_, tokens.size());
  std::size_t at = 0;
  while (at < most) {
    const std::size_t step = std::min(chunk_tokens, most - at);
    const std::uint32_t* known = chunks_[at / chunk_tokens].tokens.get();
    const std::size_t same = common_prefix(known, tokens.data() + at, 4 * step) / 4;
    at += same;
    if (same != step) break;
  }
  return static_cast<std::uint32_t>(at);
}

void PromptChain::write_tokens(std::uint32_t from, std::span<const std::uint32_t> tokens) {
  const std::size_t chunk_tokens = std::size_t{chunk_blocks_} * block_tokens_;
  std::size_t at = from;
  while (!tokens.empty()) {
    const std::size_t place = at % chunk_tokens;
    const std::size_t step = std::min(chunk_tokens - place, tokens.size());
    std::copy_n(tokens.data(), step, chunks_[at / chunk_tokens].tokens.get() + place);
    tokens = tokens.subspan(step);
    at += step;
  }
}

PromptChain::State PromptChain::state_before(std::uint32_t block) const {
  if (block == 0) return root_;
  const std::uint32_t last = block - 1;
  const Chunk& chunk = chunks_[last / chunk_blocks_];
  const std::size_t place = last % chunk_blocks_;
  const std::uint64_t key = chunk.keys[place];
  const std::uint64_t* rest = chunk.rests.get() + place * rest_words_;
  State state;
  if (algorithm_) {
    // The key is the last 8 bytes of the digest, big-endian.
    std::uint8_t digest[8 * (kMostRestWords + 1)];
    std::memcpy(digest, rest, 8 * std::size_t{rest_words_});
    store_big_endian(digest + 8 * std::size_t{rest_words_}, key);
    const std::span<const std::uint8_t> bytes(digest, 8 * (std::size_t{rest_words_} + 1));
    state.vllm.emplace(*algorithm_, bytes, std::uint64_t{block} * block_tokens_);
  } else {
    state.own = {.low = key, .high = *rest};
  }
  return state;
}

PromptChain::BlockResult PromptChain::hash_block(State& state, std::uint32_t block) const {
  const Chunk& chunk = chunks_[block / chunk_blocks_];
  const std::span<const std::uint32_t> tokens(chunk.tokens.get() + std::size_t{block % chunk_blocks_} * block_tokens_,
                                              block_tokens_);
  BlockResult result;
  if (algorithm_) {
    ExtraKey keys[2];
    std::size_t count = 0;
    if (!lora_name_.empty()) keys[count++] = ExtraKey::lora_name(lora_name_);
    if (block == 0 && !cache_salt_.empty()) keys[count++] = ExtraKey::cache_salt(cache_salt_);
    result.key = state.vllm->hash_block(tokens, {keys, count});
    std::memcpy(result.rest.data(), state.vllm->digest().data(), 8 * std::size_t{rest_words_});
  } else {
    hash_blocks(state.own, tokens, block_tokens_, &result.key);
    result.rest[0] = state.own.high;
  }
  return result;
}

// Hashes the full blocks from `block` on; returns their number.
std::uint32_t PromptChain::hash_from(std::uint32_t block) {
  const std::uint32_t end = blocks();
  if (block >= end) return 0;
  State state = state_before(block);
  for (std::uint32_t i = block; i < end; ++i) {
    const BlockResult result = hash_block(state, i);
    Chunk& chunk = chunks_[i / chunk_blocks_];
    const std::size_t place = i % chunk_blocks_;
    chunk.keys[place] = result.key;
    std::copy_n(result.rest.data(), rest_words_, chunk.rests.get() + place * rest_words_);
  }
  tokens_hashed_ += std::uint64_t{end - block} * block_tokens_;
  return end - block;
}

PromptChange PromptChain::update(std::span<const std::uint32_t> tokens) {
  SAGA_ASSERT(tokens.size() <= max_tokens_);
  const auto count = static_cast<std::uint32_t>(tokens.size());
  reserve(count);
  const std::uint32_t shared = common(tokens);
  // The token that differs was compared, too.
  tokens_compared_ += std::min({shared + 1, size_, count});
  write_tokens(shared, tokens.subspan(shared));
  size_ = count;
  return {.common_tokens = shared, .hashed_blocks = hash_from(shared / block_tokens_)};
}

PromptChange PromptChain::append(std::span<const std::uint32_t> tokens) {
  SAGA_ASSERT(tokens.size() <= max_tokens_ - size_);
  const std::uint32_t before = size_;
  const std::uint32_t after = before + static_cast<std::uint32_t>(tokens.size());
  reserve(after);
  write_tokens(before, tokens);
  size_ = after;
  return {.common_tokens = before, .hashed_blocks = hash_from(before / block_tokens_)};
}

void PromptChain::truncate(std::uint32_t tokens) {
  SAGA_ASSERT(tokens <= size_);
  const std::size_t chunk_tokens = std::size_t{chunk_blocks_} * block_tokens_;
  size_ = tokens;
  chunks_.resize((tokens + chunk_tokens - 1) / chunk_tokens);
}

void PromptChain::copy_keys(std::span<std::uint64_t> out) const {
  SAGA_ASSERT(out.size() <= blocks());
  for (std::size_t i = 0; !out.empty(); ++i) {
    const std::size_t step = std::min<std::size_t>(chunk_blocks_, out.size());
    std::copy_n(chunks_[i].keys.get(), step, out.data());
    out = out.subspan(step);
  }
}

void PromptChain::copy_tokens(std::span<std::uint32_t> out) const {
  SAGA_ASSERT(out.size() <= size_);
  for (std::size_t i = 0; !out.empty(); ++i) {
    const std::size_t step = std::min(std::size_t{chunk_blocks_} * block_tokens_, out.size());
    std::copy_n(chunks_[i].tokens.get(), step, out.data());
    out = out.subspan(step);
  }
}

std::uint64_t PromptChain::memory_bytes() const {
  const std::uint64_t chunk = std::uint64_t{chunk_blocks_} * (4 * block_tokens_ + 8 + 8 * rest_words_);
  return sizeof(*this) + chunks_.size() * chunk + chunks_.capacity() * sizeof(Chunk) + lora_name_.capacity() +
         cache_salt_.capacity();
}

bool PromptChain::verify() const {
  if (size_ > max_tokens_ || chunk_blocks_ == 0) return false;
  if (chunks_.size() * chunk_blocks_ * block_tokens_ < size_) return false;
  State state = root_;
  for (std::uint32_t i = 0; i < blocks(); ++i) {
    const BlockResult result = hash_block(state, i);
    const Chunk& chunk = chunks_[i / chunk_blocks_];
    const std::size_t place = i % chunk_blocks_;
    if (chunk.keys[place] != result.key) return false;
    if (!std::equal(result.rest.data(), result.rest.data() + rest_words_, chunk.rests.get() + place * rest_words_)) {
      return false;
    }
  }
  return true;
}

}  // namespace saga
