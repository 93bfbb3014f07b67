// Version, status texts and block hashing of the C interface.
#include <cstring>
#include <optional>
#include <string_view>

#include "../core/base/types.hpp"
#include "../core/hash/block_hash.hpp"
#include "check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_ERR_INVALID_ARGUMENT == static_cast<int>(Status::kInvalidArgument));
static_assert(SAGA_ERR_NOT_FOUND == static_cast<int>(Status::kNotFound));
static_assert(SAGA_ERR_FULL == static_cast<int>(Status::kFull));
static_assert(SAGA_ERR_WRONG_STATE == static_cast<int>(Status::kWrongState));
static_assert(SAGA_ERR_TIME_REVERSED == static_cast<int>(Status::kTimeReversed));
static_assert(SAGA_ERR_JOURNAL_FULL == static_cast<int>(Status::kJournalFull));
static_assert(SAGA_ERR_JOURNAL_CORRUPT == static_cast<int>(Status::kJournalCorrupt));
static_assert(SAGA_ERR_JOURNAL_MISMATCH == static_cast<int>(Status::kJournalMismatch));
static_assert(SAGA_ERR_OUT_OF_MEMORY == static_cast<int>(Status::kOutOfMemory));
static_assert(SAGA_ERR_VERSION_MISMATCH == static_cast<int>(Status::kVersionMismatch));
static_assert(SAGA_ERR_OUT_OF_BLOCKS == static_cast<int>(Status::kOutOfBlocks));
static_assert(SAGA_ERR_NOT_RESIDENT == static_cast<int>(Status::kNotResident));
static_assert(SAGA_ERR_BUSY == static_cast<int>(Status::kBusy));
static_assert(SAGA_TIER_GPU == static_cast<int>(Tier::kGpu) && SAGA_TIER_HOST == static_cast<int>(Tier::kHost) &&
              SAGA_TIER_DISK == static_cast<int>(Tier::kDisk) && SAGA_TIER_COUNT == kTierCount);
static_assert(SAGA_STOP_TOOL_USE == static_cast<int>(StopReason::kToolUse) &&
              SAGA_STOP_END_TURN == static_cast<int>(StopReason::kEndTurn));
static_assert(SAGA_TOOL_CODE_EXECUTION == static_cast<int>(ToolClass::kCodeExecution) &&
              SAGA_TOOL_DATABASE_QUERY == static_cast<int>(ToolClass::kDatabaseQuery));
static_assert(SAGA_PROMPT_TOOL == static_cast<int>(PromptKind::kTool) &&
              SAGA_PROMPT_USER == static_cast<int>(PromptKind::kUser));

struct saga_hasher_t {
  saga_hash_algorithm_t algorithm;
  std::uint32_t block_tokens;
  bool at_root = true;
  ChainHash root_state;  // SAGA_HASH_SAGA
  ChainHash state;
  std::optional<VllmHasher> vllm_root;
  std::optional<VllmHasher> vllm;
  char lora_name[1024];
  char cache_salt[1024];
  std::size_t lora_name_size = 0;
  std::size_t cache_salt_size = 0;
};

extern "C" {

uint32_t saga_abi_version(void) { return SAGA_ABI_VERSION; }

const char* saga_version(void) { return SAGA_VERSION; }

const char* saga_status_text(saga_status_t status) {
  switch (status) {
    case SAGA_OK:
      return "success";
    case SAGA_ERR_INVALID_ARGUMENT:
      return "an argument lies outside its stated range";
    case SAGA_ERR_NOT_FOUND:
      return "no such worker, workflow, call or sequence, or it has ended";
    case SAGA_ERR_FULL:
      return "a bound fixed at creation is reached";
    case SAGA_ERR_WRONG_STATE:
      return "the event does not fit the state of the object";
    case SAGA_ERR_TIME_REVERSED:
      return "the time lies before an event that was applied already";
    case SAGA_ERR_JOURNAL_FULL:
      return "the journal buffer is full: read it first";
    case SAGA_ERR_JOURNAL_CORRUPT:
      return "not a journal, or it is cut off or damaged";
    case SAGA_ERR_JOURNAL_MISMATCH:
      return "the replay decided otherwise than the journal says";
    case SAGA_ERR_OUT_OF_MEMORY:
      return "out of memory";
    case SAGA_ERR_VERSION_MISMATCH:
      return "another version of the format or the interface";
    case SAGA_ERR_OUT_OF_BLOCKS:
      return "fewer free blocks than the operation needs";
    case SAGA_ERR_NOT_RESIDENT:
      return "some blocks of the sequence are not in GPU memory: swap it in first";
    case SAGA_ERR_BUSY:
      return "a plan of the sequence is neither committed nor aborted";
  }
  return "unknown status";
}

saga_status_t saga_hasher_create(saga_hash_algorithm_t algorithm, uint32_t block_tokens, const char* root,
                                 size_t root_size, saga_hasher_t** hasher) {
  if (hasher == nullptr || !is_array(root, root_size) || !in_range(block_tokens, 1, kMaxBlockTokens)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const std::string_view text(root_size == 0 ? "" : root, root_size);
  const bool own = algorithm == SAGA_HASH_SAGA;
  if (algorithm > SAGA_HASH_XXHASH_CBOR_TAGGED) return SAGA_ERR_INVALID_ARGUMENT;
  if (!own && !in_range(root_size, 1, kMaxHashSeedBytes)) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    auto* made = new (std::nothrow) saga_hasher_t;
    if (made == nullptr) return SAGA_ERR_OUT_OF_MEMORY;
    made->algorithm = algorithm;
    made->block_tokens = block_tokens;
    if (own) {
      made->root_state = made->state = chain_root(text);
    } else {
      made->vllm_root.emplace(to_vllm_algorithm(algorithm), text);
      made->vllm = made->vllm_root;
    }
    *hasher = made;
    return SAGA_OK;
  });
}

void saga_hasher_destroy(saga_hasher_t* hasher) { delete hasher; }

saga_status_t saga_hasher_reset(saga_hasher_t* hasher) {
  if (hasher == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  hasher->state = hasher->root_state;
  hasher->vllm = hasher->vllm_root;
  hasher->at_root = true;
  return SAGA_OK;
}

saga_status_t saga_hasher_set_keys(saga_hasher_t* hasher, const char* lora_name, size_t lora_name_size,
                                   const char* cache_salt, size_t cache_salt_size) {
  if (hasher == nullptr || !is_array(lora_name, lora_name_size) || !is_array(cache_salt, cache_salt_size) ||
      lora_name_size > sizeof hasher->lora_name || cache_salt_size > sizeof hasher->cache_salt ||
      hasher->algorithm == SAGA_HASH_SAGA) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (!hasher->at_root) return SAGA_ERR_WRONG_STATE;
  if (lora_name_size != 0) std::memcpy(hasher->lora_name, lora_name, lora_name_size);
  if (cache_salt_size != 0) std::memcpy(hasher->cache_salt, cache_salt, cache_salt_size);
  hasher->lora_name_size = lora_name_size;
  hasher->cache_salt_size = cache_salt_size;
  return SAGA_OK;
}

saga_status_t saga_hasher_update(saga_hasher_t* hasher, const uint32_t* tokens, size_t token_count, uint64_t* hashes,
                                 size_t capacity, size_t* count) {
  if (hasher == nullptr || count == nullptr || !is_array(tokens, token_count) || !is_array(hashes, capacity) ||
      token_count / hasher->block_tokens > capacity) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const std::span<const std::uint32_t> given = to_span(tokens, token_count);
  if (hasher->algorithm == SAGA_HASH_SAGA) {
    *count = hash_blocks(hasher->state, given, hasher->block_tokens, hashes);
  } else {
    VllmRequestKeys keys;
    keys.lora_name = {hasher->lora_name, hasher->lora_name_size};
    keys.cache_salt = {hasher->cache_salt, hasher->cache_salt_size};
    *count = hasher->vllm->hash_blocks(given, hasher->block_tokens, keys, hashes);
  }
  if (*count != 0) hasher->at_root = false;
  return SAGA_OK;
}

saga_status_t saga_hasher_digest(const saga_hasher_t* hasher, uint8_t digest[32], size_t* size) {
  if (hasher == nullptr || digest == nullptr || size == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (hasher->algorithm == SAGA_HASH_SAGA) {
    std::memcpy(digest, &hasher->state.low, 8);
    std::memcpy(digest + 8, &hasher->state.high, 8);
    *size = 16;
  } else {
    const std::span<const std::uint8_t> bytes = hasher->vllm->digest();
    std::memcpy(digest, bytes.data(), bytes.size());
    *size = bytes.size();
  }
  return SAGA_OK;
}

}  // extern "C"
