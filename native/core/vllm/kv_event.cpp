#include "kv_event.hpp"

#include <algorithm>

#include "../hash/bytes.hpp"

namespace saga {
namespace {

// The places of an array, in order. A stored event has all of them but kLocality, a removed one those marked below.
enum class Field : std::uint8_t {
  kHashes,
  kParent,
  kTokens,
  kBlockSize,
  kLoraId,
  kMedium,
  kLoraName,
  kExtraKeys,
  kGroup,
  kSpecKind,
  kWindow,
  kEnd,
  // Only by name.
  kLocality,
  kCacheSalt,
  kOther
};
constexpr Field kRemovedFields[] = {Field::kHashes, Field::kMedium, Field::kGroup, Field::kEnd};

Field next(Field field) { return static_cast<Field>(static_cast<std::uint8_t>(field) + 1); }

struct Name {
  std::string_view text;
  Field field;
};
constexpr Name kNames[] = {
    {"block_hashes", Field::kHashes},
    {"parent_block_hash", Field::kParent},
    {"token_ids", Field::kTokens},
    {"block_size", Field::kBlockSize},
    {"lora_id", Field::kLoraId},
    {"medium", Field::kMedium},
    {"lora_name", Field::kLoraName},
    {"extra_keys", Field::kExtraKeys},
    {"group_idx", Field::kGroup},
    {"kv_cache_spec_kind", Field::kSpecKind},
    {"kv_cache_spec_sliding_window", Field::kWindow},
    {"locality", Field::kLocality},
    {"cache_salt", Field::kCacheSalt},
};

Field field_of(std::string_view name) {
  for (const Name& known : kNames) {
    if (known.text == name) return known.field;
  }
  return Field::kOther;
}

KvEventKind kind_of(std::string_view tag) {
  if (tag == "BlockStored") return KvEventKind::kStored;
  if (tag == "BlockRemoved") return KvEventKind::kRemoved;
  if (tag == "AllBlocksCleared") return KvEventKind::kCleared;
  return KvEventKind::kUnknown;
}

bool read_list(MsgpackReader& reader, KvList* list) {
  if (!reader.read_array(&list->count)) return false;
  list->first = reader;
  reader.skip(list->count);
  return true;
}

bool read_hashes(MsgpackReader& reader, KvList* list) {
  if (!reader.read_array(&list->count)) return false;
  list->first = reader;
  BlockHash hash = 0;
  for (std::uint32_t i = 0; i < list->count; ++i) {
    if (!read_kv_hash(reader, &hash)) return false;
  }
  return true;
}

bool read_unsigned(MsgpackReader& reader, std::uint64_t* value) {
  bool negative = false;
  return reader.read_integer(value, &negative) && !negative;
}

// Reads the value of a field. False: it is of a wrong type, and the reader stands wherever.
bool read_field(Field field, MsgpackReader& reader, KvEvent* event) {
  if (reader.read_nil()) return field != Field::kHashes;
  switch (field) {
    case Field::kHashes:
      return read_hashes(reader, &event->hashes);
    case Field::kParent:
      if (!read_kv_hash(reader, &event->parent)) return false;
      event->has_parent = event->parent != 0;
      return true;
    case Field::kTokens:
      return read_list(reader, &event->tokens);
    case Field::kBlockSize:
      return reader.read_unsigned32(&event->block_size);
    case Field::kLoraId: {
      bool negative = false;
      event->has_lora_id = reader.read_integer(&event->lora_id, &negative);
      // Some producers name the adapter here.
      return event->has_lora_id || reader.read_text(&event->lora_name);
    }
    case Field::kMedium:
      return reader.read_text(&event->medium);
    case Field::kLoraName:
      return reader.read_text(&event->lora_name);
    case Field::kExtraKeys:
      return read_list(reader, &event->extra_keys);
    case Field::kGroup:
      return read_unsigned(reader, &event->group);
    case Field::kSpecKind:
      return reader.read_text(&event->spec_kind);
    case Field::kWindow:
      event->has_window = read_unsigned(reader, &event->window);
      return event->has_window;
    case Field::kLocality: {
      std::string_view locality;
      if (!reader.read_text(&locality)) return false;
      event->is_remote = locality == "REMOTE";
      return true;
    }
    case Field::kCacheSalt:
      return reader.read_text(&event->cache_salt);
    default:
      return false;
  }
}

// Reads `pairs` keys and values; of a whole event, one of them names its kind. Returns whether all that are known are as they
// should be.
bool read_fields(MsgpackReader& reader, std::uint32_t pairs, bool is_whole, KvEvent* event) {
  bool good = true;
  for (std::uint32_t i = 0; i < pairs; ++i) {
    std::string_view name;
    if (!reader.read_text(&name)) {
      reader.skip(2);
      ++event->skipped_fields;
      continue;
    }
    MsgpackReader behind = reader;
    if (is_whole && name == "type") {
      std::string_view tag;
      event->kind = behind.read_text(&tag) ? kind_of(tag) : KvEventKind::kUnknown;
      reader.skip();
      continue;
    }
    const Field field = field_of(name);
    if (field == Field::kOther) {
      ++event->skipped_fields;
      reader.skip();
    } else if (read_field(field, behind, event)) {
      reader = behind;
    } else {
      good = false;
      reader.skip();
    }
  }
  return good;
}

// Whether what stands in the place of a field has moved up from the one behind it.
bool has_moved_up(Field field, const MsgpackReader& reader) {
  return (field == Field::kLoraId && reader.is_text()) || (field == Field::kLoraName && reader.is_array());
}

// The elements behind the tag. Returns whether they are as they should be.
bool read_elements(MsgpackReader& reader, std::uint32_t count, KvEvent* event) {
  bool good = true;
  Field stored_field = Field::kHashes;
  std::size_t removed_field = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const bool is_stored = event->kind == KvEventKind::kStored;
    const Field required = is_stored ? Field::kLoraId : Field::kMedium;
    if (is_stored && has_moved_up(stored_field, reader)) stored_field = next(stored_field);
    const Field field = is_stored ? stored_field : kRemovedFields[removed_field];
    MsgpackReader behind = reader;
    std::uint32_t pairs = 0;
    if (event->kind == KvEventKind::kCleared || !good) {
      reader.skip();
      if (event->kind == KvEventKind::kCleared) ++event->skipped_fields;
    } else if (field >= required && behind.read_map(&pairs)) {
      good = read_fields(behind, pairs, false, event);
      if (field != Field::kEnd) is_stored ? void(stored_field = next(stored_field)) : void(++removed_field);
      reader = behind;
    } else if (field == Field::kEnd) {
      ++event->skipped_fields;
      reader.skip();
    } else {
      good = read_field(field, behind, event);
      is_stored ? void(stored_field = next(stored_field)) : void(++removed_field);
      reader.skip();
    }
  }
  return good;
}

bool is_complete(const KvEvent& event) {
  if (event.kind == KvEventKind::kRemoved) return event.hashes.first.position() != nullptr;
  if (event.kind != KvEventKind::kStored) return true;
  // Without tokens it announces blocks by their hashes alone, and then a block size of 0 is as it should be.
  return event.hashes.first.position() != nullptr && (event.tokens.count == 0 || event.block_size != 0);
}

}  // namespace

bool read_kv_hash(MsgpackReader& reader, BlockHash* hash) {
  bool negative = false;
  if (reader.read_integer(hash, &negative)) return true;
  std::span<const std::uint8_t> digest;
  if (!reader.read_bytes(&digest) || (digest.size() != 16 && digest.size() != 32)) return false;
  *hash = load_big_endian<std::uint64_t>(digest.data() + digest.size() - 8);
  return true;
}

bool read_kv_batch(std::span<const std::uint8_t> payload, KvBatch* batch) {
  MsgpackReader reader(payload);
  std::uint32_t count = 0;
  if (!reader.read_array(&count) || count < 2 || !reader.read_number(&batch->timestamp) ||
      !reader.read_array(&batch->event_count)) {
    return false;
  }
  batch->events = reader;
  return true;
}

std::int32_t read_kv_rank(MsgpackReader behind_events) {
  std::uint32_t rank = 0;
  const bool told = behind_events.read_unsigned32(&rank) && rank <= 0x7FFFFFFFu;
  return told ? static_cast<std::int32_t>(rank) : kNoRank;
}

KvEvent read_kv_event(MsgpackReader& reader) {
  KvEvent event;
  bool good = true;
  std::uint32_t count = 0;
  if (reader.read_map(&count)) {
    good = read_fields(reader, count, true, &event);
  } else if (!reader.read_array(&count)) {
    reader.skip();
    return event;
  } else if (count != 0) {
    std::string_view tag;
    if (reader.read_text(&tag)) {
      event.kind = kind_of(tag);
    } else {
      reader.skip();
    }
    if (event.kind == KvEventKind::kUnknown) {
      reader.skip(count - 1);
      return event;
    }
    good = read_elements(reader, count - 1, &event);
  }
  if (event.kind != KvEventKind::kUnknown && event.kind != KvEventKind::kCleared && (!good || !is_complete(event))) {
    event.kind = KvEventKind::kRefused;
  }
  if (event.kind == KvEventKind::kUnknown) event.skipped_fields = 0;
  return event;
}

}  // namespace saga
