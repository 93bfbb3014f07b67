#include "block_hash.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "../base/assert.hpp"
#include "bytes.hpp"
#include "cbor.hpp"
#include "sha256.hpp"

namespace saga {
namespace {

constexpr std::size_t digest_size(VllmHashAlgorithm algorithm) { return is_sha256(algorithm) ? 32 : 16; }

constexpr std::string_view kTags[] = {"lora", "mm", "cache_salt", "prompt_embeds"};  // by ExtraKey::Kind
constexpr std::size_t kMaxTag = 16;

// The tuple, the parent, the tokens, and the extra keys: at most a tag, an identifier and an offset in an array, each.
constexpr std::size_t kMaxPreimage = CborWriter::kMaxItemSize * (3 + 4 * kMaxExtraKeys) + kMaxTag * kMaxExtraKeys + 32 +
                                     kMaxBlockTokens * CborWriter::kMaxItemSize32 + kMaxExtraKeyBytes +
                                     CborWriter::kSlack + kSha256Room;

std::span<const std::uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string_view as_text(std::span<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_extra_keys(CborWriter& writer, std::span<const ExtraKey> keys, bool tagged) {
  if (keys.empty()) {
    writer.null();
    return;
  }
  writer.array(keys.size());
  for (const ExtraKey& key : keys) {
    const bool has_offset = key.kind == ExtraKey::Kind::kMultimodal;
    if (tagged) {
      writer.array(has_offset ? 3 : 2);
      writer.text(kTags[static_cast<std::size_t>(key.kind)]);
    } else if (has_offset) {
      writer.array(2);
    }
    switch (key.kind) {
      case ExtraKey::Kind::kLoraName:
      case ExtraKey::Kind::kCacheSalt:
        writer.text(as_text(key.data));
        break;
      case ExtraKey::Kind::kMultimodal:
        writer.text(as_text(key.data));
        writer.integer(key.offset);
        break;
      case ExtraKey::Kind::kPromptEmbedding:
        writer.bytes(key.data);
        break;
    }
  }
}

// Derives the extra keys of consecutive blocks from those of the request. Blocks must be asked for in order.
class BlockKeys {
 public:
  explicit BlockKeys(const VllmRequestKeys& request) : request_(request), items_(request.multimodal) {}

  // The keys of the block of tokens [begin, end). False: more than the bounds allow.
  bool advance(std::uint64_t begin, std::uint64_t end) {
    count_ = 0;
    bool fits = true;
    if (!request_.lora_name.empty()) fits = add(ExtraKey::lora_name(request_.lora_name));
    while (!items_.empty() && items_.front().offset + items_.front().length <= begin) {
      items_ = items_.subspan(1);
    }
    for (const MultimodalItem& item : items_) {
      if (item.offset >= end) break;
      if (item.length == 0) continue;
      fits = fits && add(ExtraKey::multimodal(item.identifier, static_cast<std::int64_t>(item.offset - begin)));
    }
    if (begin == 0 && !request_.cache_salt.empty()) {
      fits = fits && add(ExtraKey::cache_salt(request_.cache_salt));
    }
    return fits;
  }

  std::span<const ExtraKey> keys() const { return {keys_, count_}; }

 private:
  bool add(const ExtraKey& key) {
    if (count_ == kMaxExtraKeys) return false;
    keys_[count_++] = key;
    return true;
  }

  const VllmRequestKeys& request_;
  std::span<const MultimodalItem> items_;  // those that do not end before the block asked for last
  std::size_t count_ = 0;
  ExtraKey keys_[kMaxExtraKeys];
};

// Where memory has the byte order of the message: the tokens are hashed where they lie.
void extend_by_16(ChainHash& state, const std::uint32_t* tokens, std::size_t blocks, std::uint64_t* out) {
  ChainHash hash = state;
  for (std::size_t block = 0; block < blocks; ++block, tokens += 16) {
    hash = xxh3_128_link(hash, reinterpret_cast<const std::uint8_t*>(tokens));
    out[block] = hash.low;
  }
  state = hash;
}

void extend(ChainHash& state, const std::uint32_t* tokens, std::size_t blocks, std::size_t block_tokens,
            std::uint64_t* out) {
  std::uint8_t message[16 + 4 * kMaxBlockTokens];
  for (std::size_t block = 0; block < blocks; ++block, tokens += block_tokens) {
    store_little_endian(message, state.low);
    store_little_endian(message + 8, state.high);
    if constexpr (std::endian::native == std::endian::little) {
      std::memcpy(message + 16, tokens, 4 * block_tokens);
    } else {
      for (std::size_t i = 0; i < block_tokens; ++i) store_little_endian(message + 16 + 4 * i, tokens[i]);
    }
    state = xxh3_128(message, 16 + 4 * block_tokens);
    out[block] = state.low;
  }
}

}  // namespace

ChainHash chain_root(std::string_view salt) { return xxh3_128(salt.data(), salt.size()); }

std::size_t hash_blocks(ChainHash& state, std::span<const std::uint32_t> tokens, std::uint32_t block_tokens,
                        std::uint64_t* out) {
  SAGA_ASSERT(block_tokens >= 1 && block_tokens <= kMaxBlockTokens);
  const std::size_t blocks = tokens.size() / block_tokens;
  if (block_tokens == 16 && std::endian::native == std::endian::little) {
    extend_by_16(state, tokens.data(), blocks, out);
  } else {
    extend(state, tokens.data(), blocks, block_tokens, out);
  }
  return blocks;
}

ExtraKey ExtraKey::lora_name(std::string_view name) { return {Kind::kLoraName, as_bytes(name)}; }

ExtraKey ExtraKey::multimodal(std::string_view identifier, std::int64_t offset) {
  return {Kind::kMultimodal, as_bytes(identifier), offset};
}

ExtraKey ExtraKey::cache_salt(std::string_view salt) { return {Kind::kCacheSalt, as_bytes(salt)}; }

ExtraKey ExtraKey::prompt_embedding(std::span<const std::uint8_t> sha256) { return {Kind::kPromptEmbedding, sha256}; }

bool extra_keys_valid(std::span<const ExtraKey> keys, bool first_block) {
  if (keys.size() > kMaxExtraKeys) return false;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const ExtraKey& key = keys[i];
    if (key.data.size() > kMaxExtraKeyBytes - bytes) return false;
    bytes += key.data.size();
    if (key.kind == ExtraKey::Kind::kCacheSalt && !first_block) return false;
    if (key.kind == ExtraKey::Kind::kPromptEmbedding && key.data.size() != 32) return false;
    if (i == 0) continue;
    const ExtraKey& before = keys[i - 1];
    if (before.kind > key.kind) return false;
    if (before.kind == key.kind) {
      if (key.kind != ExtraKey::Kind::kMultimodal || before.offset > key.offset) return false;
    }
  }
  return true;
}

bool request_keys_valid(const VllmRequestKeys& keys, std::uint32_t block_tokens, std::uint64_t total_tokens) {
  if (block_tokens < 1 || block_tokens > kMaxBlockTokens) return false;
  std::uint64_t end = 0;
  for (const MultimodalItem& item : keys.multimodal) {
    if (item.offset < end || item.offset + item.length < item.offset) return false;
    end = item.offset + item.length;
  }
  // Beyond the last item all blocks are alike, and the first block is the only one with the salt.
  const std::uint64_t last = std::min(total_tokens, end);
  BlockKeys block_keys(keys);
  std::uint64_t begin = 0;
  do {
    if (!block_keys.advance(begin, begin + block_tokens)) return false;
    if (!extra_keys_valid(block_keys.keys(), begin == 0)) return false;
    begin += block_tokens;
  } while (begin < last);
  return true;
}

VllmHasher::VllmHasher(VllmHashAlgorithm algorithm, std::string_view hash_seed) : algorithm_(algorithm) {
  SAGA_ASSERT(hash_seed.size() <= kMaxHashSeedBytes);
  std::uint8_t preimage[CborWriter::kMaxItemSize + kMaxHashSeedBytes + CborWriter::kSlack + kSha256Room];
  CborWriter writer(preimage, sizeof preimage - kSha256Room);
  writer.text(hash_seed);
  set_digest_of(preimage, writer.size());
}

VllmHasher::VllmHasher(VllmHashAlgorithm algorithm, std::span<const std::uint8_t> digest, std::uint64_t tokens_before)
    : tokens_hashed_(tokens_before), digest_size_(static_cast<std::uint8_t>(digest.size())), algorithm_(algorithm) {
  SAGA_ASSERT(digest.size() == digest_size(algorithm) || (digest.size() == 32 && tokens_before == 0));
  std::copy(digest.begin(), digest.end(), digest_.begin());
}

// The digest of the message becomes the parent of the next block. Behind the message lie kSha256Room bytes to write to.
void VllmHasher::set_digest_of(std::uint8_t* message, std::size_t size) {
  if (is_sha256(algorithm_)) {
    digest_ = sha256_in_place(message, size);
    digest_size_ = 32;
  } else {
    const auto bytes = canonical(xxh3_128(message, size));
    std::copy(bytes.begin(), bytes.end(), digest_.begin());
    digest_size_ = 16;
  }
}

std::uint64_t VllmHasher::hash_block(std::span<const std::uint32_t> tokens, std::span<const ExtraKey> extra_keys) {
  SAGA_ASSERT(!tokens.empty() && tokens.size() <= kMaxBlockTokens);
  SAGA_ASSERT(extra_keys_valid(extra_keys, tokens_hashed_ == 0));
  std::uint8_t preimage[kMaxPreimage];
  CborWriter writer(preimage, sizeof preimage - kSha256Room);
  writer.array(3);
  writer.bytes(digest());
  writer.integers(tokens);
  write_extra_keys(writer, extra_keys, has_tagged_keys(algorithm_));
  SAGA_ASSERT(writer.verify());
  set_digest_of(preimage, writer.size());
  tokens_hashed_ += tokens.size();
  return key();
}

std::size_t VllmHasher::hash_blocks(std::span<const std::uint32_t> tokens, std::uint32_t block_tokens,
                                    const VllmRequestKeys& keys, std::uint64_t* out) {
  SAGA_ASSERT(block_tokens >= 1 && block_tokens <= kMaxBlockTokens);
  SAGA_ASSERT(tokens_hashed_ % block_tokens == 0);
  const std::size_t blocks = tokens.size() / block_tokens;
  const bool salted = tokens_hashed_ == 0 && !keys.cache_salt.empty();
  if (keys.lora_name.empty() && keys.multimodal.empty() && !salted) {
    for (std::size_t block = 0; block < blocks; ++block) {
      out[block] = hash_block(tokens.subspan(block * block_tokens, block_tokens), {});
    }
    return blocks;
  }
  BlockKeys block_keys(keys);
  for (std::size_t block = 0; block < blocks; ++block) {
    [[maybe_unused]] const bool fits = block_keys.advance(tokens_hashed_, tokens_hashed_ + block_tokens);
    SAGA_ASSERT(fits);
    out[block] = hash_block(tokens.subspan(block * block_tokens, block_tokens), block_keys.keys());
  }
  return blocks;
}

std::uint64_t VllmHasher::key() const { return load_big_endian<std::uint64_t>(digest_.data() + digest_size_ - 8); }

bool VllmHasher::verify() const {
  const auto algorithm = static_cast<std::size_t>(algorithm_);
  if (algorithm > static_cast<std::size_t>(VllmHashAlgorithm::kXxhashCborTagged)) return false;
  const bool random_root = digest_size_ == 32 && tokens_hashed_ == 0;
  return digest_size_ == digest_size(algorithm_) || random_root;
}

}  // namespace saga
