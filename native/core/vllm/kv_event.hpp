// KvBatch and KvEvent: the shape of KV events on the wire, whoever made them.
//
// A batch is an array [timestamp, events, data-parallel rank]; the rank may be absent and more may follow. An event is an
// array whose first element names its kind (vLLM up to 0.23, SGLang, llm-d-inference-sim), or a map with the key "type"
// (vLLM since 0.24, newest SGLang). Both forms are read by one decoder, also mixed:
//
//   map     keys in any order; unknown ones are skipped and counted
//   array   BlockStored   kind, block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name, extra_keys,
//                         group_idx, kv_cache_spec_kind, kv_cache_spec_sliding_window
//           BlockRemoved  kind, block_hashes, medium, group_idx
//           It may end early. A map among the elements behind the required ones holds further fields by name (SGLang's
//           cache_salt). Where lora_id or lora_name, being nil, was left out and what follows moved up (llm-d-inference-sim) the types
//           tell: a text in the place of lora_id is the medium, an array in the place of lora_name holds extra keys.
//           Any other element of a wrong type makes the event refused.
//
// nil stands for absent. A parent of 0 means none: llm-d-inference-sim writes it so, and a real hash is 0 once in 2^64.
//
// Cost: one pass over the event. Nothing is copied: lists are readers that stand before their first element.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "../base/types.hpp"
#include "msgpack.hpp"

namespace saga {

struct KvBatch {
  double timestamp = 0;
  std::uint32_t event_count = 0;
  MsgpackReader events;  // before the first one
};

// `payload` must be msgpack_valid. False: not a batch.
bool read_kv_batch(std::span<const std::uint8_t> payload, KvBatch* batch);

inline constexpr std::int32_t kNoRank = -1;

// The rank of a batch that read_kv_batch accepts; `behind_events` stands behind its events. Out of range counts as absent.
std::int32_t read_kv_rank(MsgpackReader behind_events);

enum class KvEventKind : std::uint8_t {
  kStored,
  kRemoved,
  kCleared,
  kUnknown,  // of another kind
  kRefused   // stored or removed, but not as it should be
};

struct KvList {
  MsgpackReader first;
  std::uint32_t count = 0;
};

struct KvEvent {
  KvEventKind kind = KvEventKind::kUnknown;
  bool has_parent = false;
  bool has_lora_id = false;
  bool has_window = false;
  bool is_remote = false;  // memory that is not the publisher's
  BlockHash parent = 0;
  KvList hashes;  // each is read by read_kv_hash, which succeeds
  KvList tokens;
  KvList extra_keys;             // an entry a hash: nil or an array
  std::uint32_t block_size = 0;  // tokens; 0: not told
  std::uint64_t lora_id = 0;     // 64 bits of any integer
  std::uint64_t group = 0;
  std::uint64_t window = 0;  // tokens
  std::string_view medium;   // empty: not told, and so on
  std::string_view lora_name;
  std::string_view spec_kind;
  std::string_view cache_salt;
  std::uint32_t skipped_fields = 0;
};

// Reads one event and moves `reader` behind it.
KvEvent read_kv_event(MsgpackReader& reader);

// A block hash: an integer of 64 bits, or a digest of 16 or 32 bytes, of which the last 8, big-endian, are the key.
bool read_kv_hash(MsgpackReader& reader, BlockHash* hash);

}  // namespace saga
