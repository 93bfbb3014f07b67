// Block hashes: the identity of a KV block, which is that of its tokens *and of everything before them*.
//
// A block hash is a link of a chain, h_i = H(h_{i-1}, tokens of block i, ...). Equal hash means equal prefix, so a
// prompt is looked up block by block without its tokens, and a workflow that grows hashes its new blocks only: all
// state of a chain is its last hash, a small value that can be copied (a fork of the workflow) and kept (the next call
// of the workflow). Tokens behind the last full block are not hashed; give them again when the block is full. The
// result for each block is the 64-bit key (BlockHash) that the index stores.
//
// Two kinds of chain:
//
//   hash_blocks(ChainHash&, ..)   SAGA's own: needs nothing from the engine
//   VllmHasher                    vLLM's `sha256_cbor` and `xxhash_cbor`, bit for bit: the keys of its KV events
//
// Cost: one hash of 16 + 4n bytes a block of n tokens (own), or of 20 to 40 + up to 5n bytes (vLLM). No allocation; the
// preimage lies on the stack (38 KiB at the bounds below, of which only what is used is touched). Measured on one core
// of an AMD EPYC (Zen 5), tokens drawn from a vocabulary of 152,000, ns a block within one chain:
//
//   tokens in a block      16    32    64   128   256
//   own                   5.6    16    32    46    75
//   xxhash_cbor            36    54   104   177   350
//   sha256_cbor           105   158   264   475   900
//
// SAGA's own chain
// ----------------
//   root = XXH3-128(salt)          h_i = XXH3-128(h_{i-1} || tokens as u32 little-endian)      key_i = low half of h_i
//
// where h_{i-1} is written as its low, then its high half, each little-endian.
//
// Why a state of 128 bits when the keys have 64: what collides differs, and so does the damage. Among n = 10^9 blocks
// alive at once there are n^2/2 = 5e17 pairs. Two *keys* are equal somewhere with probability 5e17 / 2^64 = 2.7 %, and
// a block that is absent is taken for a present one with probability 10^9 / 2^64 = 5e-11: one block too many is
// credited to one worker, which costs a placement a little precision, and the next block of that chain is right again.
// If the *state* had 64 bits, the same 2.7 % would join two chains for good: every later block of both that has equal
// tokens would be equal too. With 128 bits that has probability 5e17 / 2^128 = 1.5e-21.
//
// Why a salt isolates tenants: chains with different roots agree in no state (but by the chance above), so no block of
// one tenant is ever found by a prompt of another, although both send the same tokens. Neither hits, timing nor keys
// then tell a tenant what others sent. The salt belongs to the operator: a tenant that may choose it freely chooses
// whose chains it joins. The empty salt is the shared root for all who need no isolation.
//
// What it is not: collision resistant. XXH3 is not a cryptographic hash, and who chooses the tokens can look for two
// blocks of one key. A secret salt is no remedy within a tenant: for blocks of 16 tokens XXH3 mixes the parent in last,
// so blocks may be found that collide behind every parent. In front of an engine that does no harm beyond a bad
// placement, since the engine goes by its own hash. Where a hit hands out *content* (a server that shares pages by
// these keys, among users who do not trust each other) use `sha256_cbor` and compare whole digests: the 64-bit key
// alone is found to collide by some 2^32 trials by anyone who can compute it, whatever the hash is.
//
// vLLM's chain
// ------------
//   h_i = H(canonical CBOR of the tuple (h_{i-1} or NONE_HASH, (token, ..), extra keys or null))  key_i = low 64 bits
//
// H is SHA-256 (32 bytes) or XXH3-128 (16 bytes, canonical). NONE_HASH is H of PYTHONHASHSEED as text, or 32 random
// bytes where that is not set (then nobody outside knows it). Extra keys name what the tokens do not show: see
// ExtraKey.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "xxh3.hpp"

namespace saga {

inline constexpr std::uint32_t kMaxBlockTokens = 4096;

// ---- SAGA's own chain -----------------------------------------------------------------------------------------------

// The state of a chain: the hash of its last block, or the root before the first one.
using ChainHash = Hash128;

ChainHash chain_root(std::string_view salt = {});

// Extends the chain by all full blocks of `tokens` and writes the key of each to `out`. Returns their number,
// tokens.size() / block_tokens; `state` is then the hash of the last of them. 1 <= block_tokens <= kMaxBlockTokens, and
// one chain keeps to one block size.
std::size_t hash_blocks(ChainHash& state, std::span<const std::uint32_t> tokens, std::uint32_t block_tokens,
                        std::uint64_t* out);

// ---- vLLM's chain ---------------------------------------------------------------------------------------------------

// `--prefix-caching-hash-algo`. The default of vLLM, `sha256`, hashes Python's pickle and is not offered: its bytes
// depend on whether equal strings are the same object.
//
// Releases of vLLM differ in how the extra keys are written: bare (0.15 and others), or (`Tagged`; 0.32 and 0.33) each as
// a tuple that begins with its kind, so that no salt can pass for an adapter. A tagged LoRA key of vLLM has the path of
// the adapter behind its name, which is not known here: chains of adapters are other ones than the engine's then, and
// match nothing of it. (Where an EAGLE drafter looks ahead, 0.33 hashes the tokens behind a block, too: no chain fits.)
enum class VllmHashAlgorithm : std::uint8_t {
  kSha256Cbor = 0,
  kXxhashCbor = 1,
  kSha256CborTagged = 2,
  kXxhashCborTagged = 3,
};

constexpr bool is_sha256(VllmHashAlgorithm algorithm) {
  return algorithm == VllmHashAlgorithm::kSha256Cbor || algorithm == VllmHashAlgorithm::kSha256CborTagged;
}

constexpr bool has_tagged_keys(VllmHashAlgorithm algorithm) {
  return algorithm == VllmHashAlgorithm::kSha256CborTagged || algorithm == VllmHashAlgorithm::kXxhashCborTagged;
}

// One entry of the extra keys of a block. vLLM has them in the order of the kinds, any number of multimodal items
// (ordered by offset) and at most one of the others. It refers to memory of the caller, for the duration of the call.
struct ExtraKey {
  enum class Kind : std::uint8_t {
    kLoraName = 0,         // data: the name of the adapter
    kMultimodal = 1,       // data: the identifier (hash) of an item; offset: where it begins, counted from the block
    kCacheSalt = 2,        // data: `cache_salt` of the request; first block of a chain only
    kPromptEmbedding = 3,  // data: SHA-256 of the block's slice of the prompt embeddings, 32 bytes
  };

  Kind kind;
  std::span<const std::uint8_t> data;  // UTF-8 but for kPromptEmbedding
  std::int64_t offset = 0;             // kMultimodal: negative if the item began in an earlier block

  static ExtraKey lora_name(std::string_view name);
  static ExtraKey multimodal(std::string_view identifier, std::int64_t offset);
  static ExtraKey cache_salt(std::string_view salt);
  static ExtraKey prompt_embedding(std::span<const std::uint8_t> sha256);
};

inline constexpr std::size_t kMaxExtraKeys = 64;        // of one block
inline constexpr std::size_t kMaxExtraKeyBytes = 8192;  // sum of `data` of one block
inline constexpr std::size_t kMaxHashSeedBytes = 64;

// Whether the list is one that vLLM could make for a block and that keeps within the bounds. For callers that take it
// from outside; VllmHasher asserts it.
bool extra_keys_valid(std::span<const ExtraKey> keys, bool first_block);

// An item of a multimodal prompt: it covers the tokens [offset, offset + length) of the prompt.
struct MultimodalItem {
  std::string_view identifier;
  std::uint64_t offset;
  std::uint64_t length;
};

// What a request brings besides tokens; empty = none. Items are ordered by offset and do not overlap.
struct VllmRequestKeys {
  std::string_view lora_name;
  std::string_view cache_salt;
  std::span<const MultimodalItem> multimodal;
};

// Whether every block of a request that lies in its first `total_tokens` tokens has extra keys within the bounds.
bool request_keys_valid(const VllmRequestKeys& keys, std::uint32_t block_tokens, std::uint64_t total_tokens);

// One chain of vLLM block hashes.
//
// States: at the root (after construction) -> behind block 1, 2, ..; each hash_block(s) moves it on. Copy it to fork.
// Invariant: digest() is the digest of the last block, or NONE_HASH at the root, and has 32 bytes, or 16 for
// kXxhashCbor (there a random NONE_HASH has 32 all the same).
class VllmHasher {
 public:
  // NONE_HASH from PYTHONHASHSEED, e.g. "0".
  VllmHasher(VllmHashAlgorithm algorithm, std::string_view hash_seed);

  // Goes on from a known digest: a NONE_HASH of raw bytes (with tokens_before = 0), or a block `tokens_before` tokens
  // deep.
  VllmHasher(VllmHashAlgorithm algorithm, std::span<const std::uint8_t> digest, std::uint64_t tokens_before);

  // Extends the chain by all full blocks of `tokens` and writes the key of each to `out`; returns their number. The
  // extra keys of each block follow from `keys` and its place in the chain: the LoRA name on every block, the items
  // that overlap it, the salt on the first. Give the same `keys` with every extension of one chain (items may be added
  // at the end).
  std::size_t hash_blocks(std::span<const std::uint32_t> tokens, std::uint32_t block_tokens,
                          const VllmRequestKeys& keys, std::uint64_t* out);

  // One block, with its extra keys stated; returns its key.
  std::uint64_t hash_block(std::span<const std::uint32_t> tokens, std::span<const ExtraKey> extra_keys);

  VllmHashAlgorithm algorithm() const { return algorithm_; }
  std::span<const std::uint8_t> digest() const { return {digest_.data(), digest_size_}; }
  std::uint64_t key() const;  // the integer of a KV event: the last 8 bytes of the digest, big-endian
  std::uint64_t tokens_hashed() const { return tokens_hashed_; }

  bool verify() const;

 private:
  void set_digest_of(std::uint8_t* message, std::size_t size);

  std::array<std::uint8_t, 32> digest_ = {};
  std::uint64_t tokens_hashed_ = 0;
  std::uint8_t digest_size_ = 0;
  VllmHashAlgorithm algorithm_;
};

}  // namespace saga
