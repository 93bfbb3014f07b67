#include "kv_event_source.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>

#include "../base/assert.hpp"
#include "../hash/bytes.hpp"
#include "../hash/xxh3.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kWholePrefix = 1u << 24;  // as a window: longer than any prompt

std::uint32_t tier_of(std::string_view medium) {
  if (medium.empty() || medium == "GPU") return static_cast<std::uint32_t>(Tier::kGpu);
  if (medium == "CPU" || medium == "CPU_PINNED" || medium == "HOST") return static_cast<std::uint32_t>(Tier::kHost);
  return static_cast<std::uint32_t>(Tier::kDisk);
}

// What a group holds in a tier, as a key of CopyTable.
std::uint64_t copy_key(std::uint32_t slot, std::uint32_t tier, std::uint32_t group) {
  return static_cast<std::uint64_t>(slot) << 7 | tier << 5 | group;
}

std::uint32_t window_blocks_of(const KvEvent& event, std::uint32_t block_tokens) {
  if (!event.has_window) return kWholePrefix;
  // The next token sees itself and window - 1 before it.
  if (event.window <= 1) return 0;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>((event.window - 2) / block_tokens + 1, kWholePrefix));
}

// Changes the state of a chain by a value that distinguishes the next block.
void mix(ChainHash& state, const std::uint8_t* value, std::size_t size) {
  const Hash128 mixed = xxh3_128(value, size);
  std::uint8_t both[32];
  store_little_endian(both, state.low);
  store_little_endian(both + 8, state.high);
  store_little_endian(both + 16, mixed.low);
  store_little_endian(both + 24, mixed.high);
  state = xxh3_128(both, sizeof both);
}

// The LoRA adapter of an event by name. Engines that tell its number alone: that in decimal, written to `digits`.
std::string_view lora_of(const KvEvent& event, std::array<char, 24>* digits) {
  if (!event.lora_name.empty() || !event.has_lora_id) return event.lora_name;
  const auto id = static_cast<std::int64_t>(event.lora_id);
  const auto written = std::to_chars(digits->data(), digits->data() + digits->size(), id);
  return {digits->data(), static_cast<std::size_t>(written.ptr - digits->data())};
}

// The cache salt of an event that begins at the root: the last bare text among the extra keys of its first block, but for the
// LoRA adapter, which is the first of them.
std::string_view salt_of(const KvEvent& event) {
  if (!event.cache_salt.empty() || event.extra_keys.count == 0) return event.cache_salt;
  MsgpackReader reader = event.extra_keys.first;
  std::uint32_t count = 0;
  if (!reader.read_array(&count)) return {};
  std::string_view salt;
  for (std::uint32_t i = 0; i < count; ++i) {
    std::string_view text;
    if (!reader.read_text(&text)) {
      reader.skip();
    } else if (i != 0 || event.lora_name.empty() || text != event.lora_name) {
      salt = text;
    }
  }
  return salt;
}

}  // namespace

std::size_t write_chain_salt(std::string_view cache_salt, std::string_view lora_name, char* salt) {
  SAGA_ASSERT(cache_salt.size() <= kMostSaltPart && lora_name.size() <= kMostSaltPart);
  if (cache_salt.empty() && lora_name.empty()) return 0;
  char* at = std::to_chars(salt, salt + 8, cache_salt.size()).ptr;
  *at++ = ':';
  at = std::copy(cache_salt.begin(), cache_salt.end(), at);
  at = std::copy(lora_name.begin(), lora_name.end(), at);
  return static_cast<std::size_t>(at - salt);
}

// ---- Construction and inspection -------------------------------------------------------------------------------------

KvEventSource::KvEventSource(const KvEventSourceOptions& options)
    : options_(options),
      blocks_(options.max_blocks),
      names_(options.naming == KvNaming::kTranslate ? options.max_blocks : 0),
      by_key_(options.max_blocks),
      by_name_(options.naming == KvNaming::kTranslate ? options.max_blocks : 0),
      more_copies_(options.max_blocks),
      tokens_(options.block_tokens) {
  SAGA_ASSERT(options.max_blocks >= 1 && options.max_blocks <= std::uint64_t{1} << 28);
  SAGA_ASSERT(options.block_tokens >= 1 && options.block_tokens <= kMaxBlockTokens);
}

std::uint32_t KvEventSource::groups() const {
  std::uint32_t seen = 0;
  for (const Group& group : groups_) seen += group.kind != GroupKind::kUnseen || group.has_other_block_size;
  return seen;
}

std::uint32_t KvEventSource::window_blocks() const {
  std::uint32_t longest = 0;
  for (const Group& group : groups_) {
    if (group.kind == GroupKind::kWindow) longest = std::max(longest, group.window_blocks);
  }
  return longest;
}

std::uint64_t KvEventSource::memory_bytes() const {
  return blocks_.size() * sizeof(Block) + names_.size() * sizeof(ChainHash) + by_key_.memory_bytes() +
         by_name_.memory_bytes() + more_copies_.memory_bytes() + tokens_.capacity() * sizeof(std::uint32_t) +
         sizeof(*this);
}

// Every slot that holds the block of a name: one, but where the publisher began anew without saying so.
template <typename Visit>
void KvEventSource::for_each_holder(BlockHash name, Visit&& visit) const {
  if (options_.naming == KvNaming::kDirect) {
    const std::uint32_t slot = find(name);
    if (slot != kNone) visit(slot);
    return;
  }
  by_name_.find(name, [&](std::uint32_t slot) {
    if (names_[slot].low == name) visit(slot);
    return false;
  });
}

std::uint32_t KvEventSource::usable(Tier tier, std::span<const BlockHash> chain, std::uint32_t full_depth) const {
  if (strange_groups_ != 0 || beyond_limit_ || (full_groups_ | window_groups_) == 0) return 0;
  std::uint32_t held_in_a_row[kMostKvGroups] = {};
  const std::size_t most = std::min<std::size_t>(chain.size(), full_depth);
  std::uint32_t longest = 0;
  for (std::uint32_t i = 0; i < most; ++i) {
    std::uint32_t held = 0;
    for_each_holder(chain[i], [&](std::uint32_t slot) {
      for (std::uint32_t t = 0; t <= static_cast<std::uint32_t>(tier); ++t) held |= blocks_[slot].held[t];
    });
    if ((held & full_groups_) != full_groups_) break;
    bool enough = true;
    for (std::uint32_t left = window_groups_; left != 0; left &= left - 1) {
      const auto group = static_cast<std::uint32_t>(std::countr_zero(left));
      std::uint32_t& row = held_in_a_row[group];
      row = (held >> group & 1) != 0 ? row + 1 : 0;
      enough = enough && row >= std::min(groups_[group].window_blocks, i + 1);
    }
    if (enough) longest = i + 1;
  }
  return longest;
}

std::uint32_t KvEventSource::copies(std::uint32_t group, Tier tier, BlockHash hash) const {
  SAGA_ASSERT(group < kMostKvGroups);
  const auto t = static_cast<std::uint32_t>(tier);
  std::uint32_t total = 0;
  for_each_holder(hash, [&](std::uint32_t slot) {
    if ((blocks_[slot].held[t] >> group & 1) == 0) return;
    total += std::max<std::uint32_t>(more_copies_.count(copy_key(slot, t, group)), 1);
  });
  return total;
}

bool KvEventSource::verify() const {
  const bool translates = options_.naming == KvNaming::kTranslate;
  std::uint64_t used = 0, named = 0, with_copies = 0, nameless = 0, copies = 0, forgettable = 0;
  for (std::uint32_t slot = 0; slot < fresh_; ++slot) {
    const Block& block = blocks_[slot];
    if ((block.flags & kUsed) == 0) continue;
    ++used;
    if (find(block.key) != slot || (block.flags & kBuffered) != 0) return false;
    const bool has_name = (block.flags & kNamed) != 0;
    if (!translates && !has_name) return false;
    if (has_name) {
      ++named;
      bool found = false;
      for_each_holder(name_of(slot), [&](std::uint32_t other) { found = found || other == slot; });
      if (!found) return false;
    }
    if (has_copies(block)) {
      ++with_copies;
      nameless += !has_name;
      for (const std::uint32_t held : block.held) copies += static_cast<std::uint64_t>(std::popcount(held));
    }
    const bool can_be_forgotten = !has_copies(block) && block.told == 0;
    if (can_be_forgotten != ((block.flags & kForgettable) != 0)) return false;
    if (can_be_forgotten && (!translates || !has_name)) return false;
    forgettable += can_be_forgotten;
    // A block that the sink had no room for is told less than it should be, never more.
    const std::uint8_t want = wanted(block);
    if (behind_ == Status::kOk) {
      if ((block.told & ~want) != 0) return false;
      if (block.told != want && (uncertain_ & KvUncertain::kSinkFull) == 0) return false;
    }
  }
  bool good = change_.count == 0 && by_key_.size() == used && by_name_.size() == (translates ? named : 0);
  more_copies_.for_each([&](std::uint64_t key, std::uint32_t count) {
    const std::uint64_t slot = key >> 7;
    const auto tier = static_cast<std::uint32_t>(key >> 5 & 3);
    good = good && count >= 2 && slot < fresh_ && tier < kTierCount && (blocks_[slot].flags & kUsed) != 0 &&
           (blocks_[slot].held[tier] >> (key & 31) & 1) != 0;
    copies += count - 1;
  });
  std::uint64_t listed = 0;
  std::uint32_t previous = kNone;
  for (std::uint32_t slot = oldest_; slot != kNone && listed <= fresh_; slot = blocks_[slot].next, ++listed) {
    if ((blocks_[slot].flags & kForgettable) == 0 || blocks_[slot].previous != previous) return false;
    previous = slot;
  }
  std::uint64_t free = 0;
  for (std::uint32_t slot = free_; slot != kNone && free <= fresh_; slot = blocks_[slot].next, ++free) {
    if (blocks_[slot].flags != 0) return false;
  }
  return good && previous == newest_ && listed == forgettable && used + free == fresh_ &&
         with_copies == blocks_with_copies_ && nameless == nameless_ && copies == copies_;
}

// ---- Slots -----------------------------------------------------------------------------------------------------------

std::uint32_t KvEventSource::find(BlockHash key) const {
  return by_key_.find(key, [&](std::uint32_t slot) { return blocks_[slot].key == key; });
}

BlockHash KvEventSource::name_of(std::uint32_t slot) const {
  return options_.naming == KvNaming::kDirect ? blocks_[slot].key : names_[slot].low;
}

std::uint32_t KvEventSource::acquire(BlockHash key) {
  if (free_ == kNone && fresh_ == options_.max_blocks) {
    // A block that is gone keeps its slot until the sink has heard of it.
    if (oldest_ == kNone) flush();
  }
  if (free_ == kNone && fresh_ == options_.max_blocks) {
    if (oldest_ == kNone) return kNone;
    const std::uint32_t forgotten = oldest_;
    unlink_forgettable(forgotten);
    release(forgotten);
  }
  std::uint32_t slot = free_;
  if (slot != kNone) {
    free_ = blocks_[slot].next;
  } else {
    slot = static_cast<std::uint32_t>(fresh_++);
  }
  blocks_[slot] = {};
  blocks_[slot].key = key;
  blocks_[slot].flags = options_.naming == KvNaming::kDirect ? kUsed | kNamed : kUsed;
  by_key_.insert(key, slot);
  return slot;
}

// Fetches what it takes to forget the next `count` names, where they will have to make room.
void KvEventSource::fetch_forgettable(std::uint32_t count) const {
  if (free_ != kNone || fresh_ != options_.max_blocks) return;
  for (std::uint32_t slot = oldest_; slot != kNone && count != 0; slot = blocks_[slot].next, --count) {
    by_key_.prefetch(blocks_[slot].key);
    by_name_.prefetch(names_[slot].low);
  }
}

void KvEventSource::release(std::uint32_t slot) {
  Block& block = blocks_[slot];
  SAGA_ASSERT(!has_copies(block) && block.told == 0 && (block.flags & (kForgettable | kBuffered)) == 0);
  by_key_.erase(block.key, slot);
  if (options_.naming == KvNaming::kTranslate && (block.flags & kNamed) != 0) by_name_.erase(names_[slot].low, slot);
  block.flags = 0;
  block.next = free_;
  free_ = slot;
}

void KvEventSource::set_name(std::uint32_t slot, const ChainHash& name) {
  Block& block = blocks_[slot];
  SAGA_ASSERT(options_.naming == KvNaming::kTranslate && (block.flags & kNamed) == 0);
  names_[slot] = name;
  block.flags |= kNamed;
  by_name_.insert(name.low, slot);
  if (has_copies(block)) --nameless_;
}

void KvEventSource::add_copy(std::uint32_t slot, std::uint32_t tier, std::uint32_t group) {
  Block& block = blocks_[slot];
  if ((block.flags & kForgettable) != 0) unlink_forgettable(slot);
  const std::uint32_t bit = 1u << group;
  if ((block.held[tier] & bit) != 0) {
    if (!more_copies_.add(copy_key(slot, tier, group))) {
      uncertain_ |= KvUncertain::kSourceFull;
      ++report_->counts.dropped_blocks;
      return;
    }
  } else {
    if (!has_copies(block)) {
      ++blocks_with_copies_;
      if ((block.flags & kNamed) == 0) ++nameless_;
    }
    block.held[tier] |= bit;
  }
  ++copies_;
  ++report_->counts.stored_blocks;
}

bool KvEventSource::remove_copy(std::uint32_t slot, std::uint32_t tier, std::uint32_t group) {
  Block& block = blocks_[slot];
  const std::uint32_t bit = 1u << group;
  if ((block.held[tier] & bit) == 0) return false;
  --copies_;
  if (more_copies_.size() != 0 && more_copies_.remove(copy_key(slot, tier, group))) return true;
  block.held[tier] &= ~bit;
  if (!has_copies(block)) {
    --blocks_with_copies_;
    if ((block.flags & kNamed) == 0) --nameless_;
  }
  return true;
}

void KvEventSource::settle(std::uint32_t slot) {
  const Block& block = blocks_[slot];
  if (has_copies(block) || block.told != 0 || (block.flags & (kUsed | kForgettable | kBuffered)) != kUsed) return;
  if (options_.naming == KvNaming::kTranslate && (block.flags & kNamed) != 0) {
    make_forgettable(slot);
  } else {
    release(slot);
  }
}

void KvEventSource::make_forgettable(std::uint32_t slot) {
  Block& block = blocks_[slot];
  block.flags |= kForgettable;
  block.previous = newest_;
  block.next = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].next) = slot;
  newest_ = slot;
}

void KvEventSource::unlink_forgettable(std::uint32_t slot) {
  Block& block = blocks_[slot];
  (block.previous == kNone ? oldest_ : blocks_[block.previous].next) = block.next;
  (block.next == kNone ? newest_ : blocks_[block.next].previous) = block.previous;
  block.flags = static_cast<std::uint8_t>(block.flags & ~kForgettable);
}

void KvEventSource::forget_all() {
  // A table that is nearly empty is emptied entry by entry, not as a whole.
  constexpr std::uint64_t kSparse = 16;
  const bool is_sparse = by_key_.size() * kSparse < options_.max_blocks;
  for (std::uint32_t slot = 0; is_sparse && slot < fresh_; ++slot) {
    const Block& block = blocks_[slot];
    if ((block.flags & kUsed) == 0) continue;
    by_key_.erase(block.key, slot);
    if (names_.size() != 0 && (block.flags & kNamed) != 0) by_name_.erase(names_[slot].low, slot);
  }
  by_key_.clear();
  by_name_.clear();
  more_copies_.clear();
  fresh_ = 0;
  free_ = oldest_ = newest_ = kNone;
  blocks_with_copies_ = nameless_ = copies_ = 0;
}

// ---- Telling the sink ------------------------------------------------------------------------------------------------

std::uint8_t KvEventSource::wanted(const Block& block) const {
  if ((block.flags & kNamed) == 0) return 0;
  const std::uint32_t required = full_groups_ != 0 ? full_groups_ : window_groups_;
  std::uint32_t want = 0;
  std::uint32_t held = 0;  // in this tier or a faster one
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
    held |= block.held[tier];
    if ((held & required) == required && (block.held[tier] & required) != 0) want |= 1u << tier;
  }
  if (window_groups_ != 0 && (block.held[0] & window_groups_) == window_groups_) want |= kWindowBit;
  return static_cast<std::uint8_t>(want);
}

void KvEventSource::tell(std::uint32_t slot, BlockHash parent) {
  Block& block = blocks_[slot];
  const std::uint8_t want = wanted(block);
  if (want == block.told) return;
  // Every bit once: what is refused on the way is not tried again here.
  for (std::uint32_t i = 0; i < kToldBits; ++i) {
    const auto bit = static_cast<std::uint8_t>(1u << i);
    if (((want ^ block.told) & bit) == 0 || behind_ != Status::kOk) continue;
    const bool stored = (want & bit) != 0;
    if (change_.count != 0 && (change_.stored != stored || change_.bit != bit || change_.count == kMostChanged ||
                               (stored && bit != kWindowBit && change_.last != parent))) {
      flush();
      if (((want ^ block.told) & bit) == 0 || behind_ != Status::kOk) continue;
    }
    if (change_.count == 0) {
      change_.stored = stored;
      change_.bit = bit;
      change_.parent = parent;
    }
    change_.last = change_.names[change_.count] = name_of(slot);
    change_.slots[change_.count++] = slot;
    block.told ^= bit;
    block.flags |= kBuffered;
  }
}

void KvEventSource::flush() {
  if (change_.count == 0) return;
  const std::uint32_t count = change_.count;
  const std::span<const BlockHash> names(change_.names.data(), count);
  const bool stored = change_.stored;
  const auto tier = static_cast<Tier>(std::countr_zero(change_.bit));
  Status status = Status::kOk;
  if (change_.bit == kWindowBit) {
    status = stored ? sink_->window_stored(names) : sink_->window_removed(names);
  } else {
    status = stored ? sink_->stored(tier, change_.parent, names) : sink_->removed(tier, names);
    if (status == Status::kOk) (stored ? report_->counts.sink_stored : report_->counts.sink_removed) += count;
  }
  change_.count = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    Block& block = blocks_[change_.slots[i]];
    block.flags = static_cast<std::uint8_t>(block.flags & ~kBuffered);
    if (status != Status::kOk) block.told ^= change_.bit;
  }
  if (status != Status::kOk) note_refusal(status, stored && status == Status::kFull);
  for (std::uint32_t i = 0; i < count; ++i) settle(change_.slots[i]);
}

void KvEventSource::note_refusal(Status status, bool final) {
  report_->sink_status = status;
  if (final) {
    uncertain_ |= KvUncertain::kSinkFull;
  } else {
    behind_ = status;
  }
}

void KvEventSource::tell_window() {
  const std::uint32_t blocks = window_blocks();
  if (blocks == told_window_) return;
  flush();
  if (behind_ != Status::kOk) return;
  const Status status = sink_->window_blocks(blocks);
  if (status == Status::kOk) {
    told_window_ = blocks;
  } else {
    note_refusal(status, false);
  }
}

void KvEventSource::tell_all() {
  for (std::uint32_t slot = 0; slot < fresh_; ++slot) {
    if ((blocks_[slot].flags & kUsed) != 0) tell(slot, change_.last);
  }
}

Status KvEventSource::tell_the_rest(KvReport* report) {
  report_ = report;
  behind_ = Status::kOk;
  tell_window();
  tell_all();
  flush();
  if (report->sink_status == Status::kOk) uncertain_ &= ~KvUncertain::kSinkFull;
  return report->sink_status;
}

Status KvEventSource::sync(ResidencySink& sink) {
  sink_ = &sink;
  KvReport report;
  const Status status = tell_the_rest(&report);
  totals_.sink_stored += report.counts.sink_stored;
  totals_.sink_removed += report.counts.sink_removed;
  return status;
}

Status KvEventSource::reset(ResidencySink& sink) {
  if (const Status status = sink.ready(); status != Status::kOk) return status;
  if (const Status status = sink.cleared(); status != Status::kOk) return status;
  forget_all();
  for (Group& group : groups_) group = {};
  full_groups_ = window_groups_ = strange_groups_ = 0;
  beyond_limit_ = false;
  uncertain_ = 0;
  behind_ = Status::kOk;
  // The engine's answer to this is remembered, not returned: all else has happened.
  sync(sink);
  return Status::kOk;
}

// ---- Batches ---------------------------------------------------------------------------------------------------------

Status KvEventSource::apply(std::span<const std::uint8_t> payload, ResidencySink& sink, KvReport* report) {
  *report = {};
  if (payload.size() > options_.max_batch_bytes) return Status::kFull;
  KvBatch batch;
  if (!msgpack_valid(payload) || !read_kv_batch(payload, &batch)) return Status::kInvalidArgument;
  if (const Status status = sink.ready(); status != Status::kOk) return status;
  sink_ = &sink;
  if (behind_ != Status::kOk) {
    sync(sink);
    if (behind_ != Status::kOk) return behind_;
  }
  report_ = report;
  for (std::uint32_t i = 0; i < batch.event_count; ++i) apply_event(read_kv_event(batch.events));
  flush();
  report->rank = read_kv_rank(batch.events);
  report->timestamp = batch.timestamp;
  ++batches_;
  const KvCounts& counts = report->counts;
  totals_.events += counts.events;
  totals_.stored_events += counts.stored_events;
  totals_.removed_events += counts.removed_events;
  totals_.cleared_events += counts.cleared_events;
  totals_.unknown_events += counts.unknown_events;
  totals_.refused_events += counts.refused_events;
  totals_.remote_events += counts.remote_events;
  totals_.partial_events += counts.partial_events;
  totals_.group_events += counts.group_events;
  totals_.stored_blocks += counts.stored_blocks;
  totals_.removed_blocks += counts.removed_blocks;
  totals_.unknown_removals += counts.unknown_removals;
  totals_.unusable_blocks += counts.unusable_blocks;
  totals_.dropped_blocks += counts.dropped_blocks;
  totals_.sink_stored += counts.sink_stored;
  totals_.sink_removed += counts.sink_removed;
  totals_.skipped_fields += counts.skipped_fields;
  return Status::kOk;
}

void KvEventSource::apply_event(const KvEvent& event) {
  KvCounts& counts = report_->counts;
  ++counts.events;
  counts.skipped_fields += event.skipped_fields;
  switch (event.kind) {
    case KvEventKind::kStored:
      ++counts.stored_events;
      event.is_remote ? void(++counts.remote_events) : apply_stored(event);
      break;
    case KvEventKind::kRemoved:
      ++counts.removed_events;
      event.is_remote ? void(++counts.remote_events) : apply_removed(event);
      break;
    case KvEventKind::kCleared:
      ++counts.cleared_events;
      apply_cleared();
      break;
    case KvEventKind::kUnknown:
      ++counts.unknown_events;
      break;
    case KvEventKind::kRefused:
      ++counts.refused_events;
      uncertain_ |= KvUncertain::kEventRefused;
      break;
  }
}

bool KvEventSource::admit_group(const KvEvent& event) {
  if (event.group >= kMostKvGroups) {
    beyond_limit_ = true;
    uncertain_ |= KvUncertain::kGroupLimit;
    ++report_->counts.group_events;
    return false;
  }
  Group& group = groups_[event.group];
  if (event.block_size == options_.block_tokens) {
    group.has_our_block_size = true;
  } else if (event.block_size != 0 || (group.has_other_block_size && !group.has_our_block_size)) {
    // A group of ours announces what fills a part of a block by its size, and removes it before it stores the whole one.
    if (group.has_our_block_size && event.block_size < options_.block_tokens) {
      ++report_->counts.partial_events;
      return false;
    }
    group.has_other_block_size = true;
    group.is_contradictory = group.has_our_block_size;
    uncertain_ |= KvUncertain::kBlockSize;
    ++report_->counts.group_events;
    note_groups();
    return false;
  }
  note_kind(static_cast<std::uint32_t>(event.group), event);
  return true;
}

void KvEventSource::note_kind(std::uint32_t index, const KvEvent& event) {
  Group& group = groups_[index];
  const std::string_view text = event.spec_kind;
  GroupKind kind = GroupKind::kOther;
  if (text.empty()) {
    if (group.kind != GroupKind::kUnseen) return;
    kind = GroupKind::kUnstated;
    if (index != 0) uncertain_ |= KvUncertain::kGroupUnstated;
  } else if (text == "full_attention" || text == "mla_attention" || text == "sink_full_attention") {
    kind = GroupKind::kFull;
  } else if (text == "sliding_window" || text == "sliding_window_mla" || text == "chunked_local_attention") {
    kind = GroupKind::kWindow;
  }
  if (kind == group.kind) {
    if (kind != GroupKind::kWindow || !event.has_window) return;
    const std::uint32_t blocks = window_blocks_of(event, options_.block_tokens);
    if (blocks == group.window_blocks) return;
    // Once stated it can only be told longer: that is on the safe side.
    group.window_blocks = group.window_blocks == kWholePrefix ? blocks : std::max(group.window_blocks, blocks);
    tell_window();
    return;
  }
  if (group.kind != GroupKind::kUnseen && group.kind != GroupKind::kUnstated) {
    group.is_contradictory = true;
    uncertain_ |= KvUncertain::kGroupKind;
    note_groups();
    return;
  }
  group.kind = kind;
  if (kind == GroupKind::kWindow) {
    group.window_blocks = window_blocks_of(event, options_.block_tokens);
    if (!event.has_window) uncertain_ |= KvUncertain::kWindowUnstated;
  }
  if (kind == GroupKind::kOther) uncertain_ |= KvUncertain::kGroupKind;
  note_groups();
  tell_window();
  tell_all();
}

void KvEventSource::note_groups() {
  full_groups_ = window_groups_ = strange_groups_ = 0;
  for (std::uint32_t i = 0; i < kMostKvGroups; ++i) {
    const Group& group = groups_[i];
    const std::uint32_t bit = 1u << i;
    if (group.kind == GroupKind::kFull || group.kind == GroupKind::kUnstated) full_groups_ |= bit;
    if (group.kind == GroupKind::kWindow) window_groups_ |= bit;
    if (group.kind == GroupKind::kOther || group.is_contradictory ||
        (group.has_other_block_size && !group.has_our_block_size)) {
      strange_groups_ |= bit;
    }
  }
}

struct KvEventSource::ChainCursor {
  const KvEvent* event = nullptr;
  bool advances = false;  // the tokens are those of the hashes, block by block
  bool is_known = false;  // `state` is that of the chain before the next block
  bool at_root = false;
  ChainHash state;
  BlockHash name = 0;  // of the block before; 0: none, or not known
  MsgpackReader tokens;
  MsgpackReader extra_keys;
  std::string_view salt;  // of the root
};

KvEventSource::ChainCursor KvEventSource::begin_chain(const KvEvent& event) {
  ChainCursor chain;
  chain.event = &event;
  if (options_.naming == KvNaming::kDirect) {
    chain.name = event.parent;
    return chain;
  }
  const std::uint64_t hashes = event.hashes.count;
  chain.advances = event.tokens.count != 0 && event.tokens.count == hashes * options_.block_tokens &&
                   (event.extra_keys.count == 0 || event.extra_keys.count == hashes);
  if (!chain.advances) return chain;
  chain.tokens = event.tokens.first;
  chain.extra_keys = event.extra_keys.first;
  if (event.has_parent) {
    const std::uint32_t parent = find(event.parent);
    chain.is_known = parent != kNone && (blocks_[parent].flags & kNamed) != 0;
    if (!chain.is_known) return chain;
    chain.state = names_[parent];
    chain.name = chain.state.low;
    return chain;
  }
  chain.at_root = true;
  chain.salt = salt_of(event);
  std::array<char, 24> digits;
  const std::string_view lora = lora_of(event, &digits);
  if (chain.salt.size() > kMostSaltPart || lora.size() > kMostSaltPart) return chain;
  char salt[kMostChainSalt];
  chain.state = chain_root({salt, write_chain_salt(chain.salt, lora, salt)});
  chain.is_known = true;
  return chain;
}

// Moves the state behind the next block of the event; it must be known.
void KvEventSource::extend_chain(ChainCursor& chain) {
  const KvEvent& event = *chain.event;
  if (event.extra_keys.count != 0 && !chain.extra_keys.read_nil()) {
    MsgpackReader& keys = chain.extra_keys;
    std::uint32_t count = 1;
    const bool is_list = keys.read_array(&count);
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint8_t* const from = keys.position();
      std::string_view text;
      if (is_list && keys.read_text(&text)) {
        // These two are in the root.
        if (i == 0 && !event.lora_name.empty() && text == event.lora_name) continue;
        if (chain.at_root && text == chain.salt) continue;
      } else {
        keys.skip();
      }
      mix(chain.state, from, static_cast<std::size_t>(keys.position() - from));
    }
  }
  const std::uint32_t read = chain.tokens.read_unsigned32(tokens_.data(), options_.block_tokens);
  if (read != options_.block_tokens) {
    chain.tokens.skip(options_.block_tokens - read);
    chain.is_known = false;
    uncertain_ |= KvUncertain::kEventRefused;
    return;
  }
  BlockHash key = 0;
  hash_blocks(chain.state, tokens_, options_.block_tokens, &key);
}

void KvEventSource::apply_stored(const KvEvent& event) {
  if (!admit_group(event)) return;
  KvCounts& counts = report_->counts;
  const std::uint32_t tier = tier_of(event.medium);
  const auto group = static_cast<std::uint32_t>(event.group);
  ChainCursor chain = begin_chain(event);
  MsgpackReader hashes = event.hashes.first;
  // In stretches: first the names of all blocks, then the changes; so the entries of both tables are fetched ahead.
  constexpr std::uint32_t kStretch = 64;
  BlockHash keys[kStretch];
  ChainHash names[kStretch];
  bool has_name[kStretch];
  for (std::uint32_t done = 0; done < event.hashes.count; done += kStretch) {
    const std::uint32_t count = std::min(kStretch, event.hashes.count - done);
    for (std::uint32_t i = 0; i < count; ++i) {
      read_kv_hash(hashes, &keys[i]);
      by_key_.prefetch(keys[i]);
      has_name[i] = false;
    }
    for (std::uint32_t i = 0; chain.advances && i < count; ++i) {
      const std::uint32_t slot = find(keys[i]);
      if (slot != kNone && (blocks_[slot].flags & kNamed) != 0) {
        chain.tokens.skip(options_.block_tokens);
        if (event.extra_keys.count != 0) chain.extra_keys.skip();
        chain.state = names_[slot];
        chain.is_known = true;
      } else if (chain.is_known) {
        extend_chain(chain);
      } else {
        chain.tokens.skip(options_.block_tokens);
        if (event.extra_keys.count != 0) chain.extra_keys.skip();
      }
      chain.at_root = false;
      has_name[i] = chain.is_known;
      names[i] = chain.state;
      if (chain.is_known) by_name_.prefetch(chain.state.low);
    }
    fetch_forgettable(count);
    for (std::uint32_t i = 0; i < count; ++i) {
      std::uint32_t slot = find(keys[i]);
      if (slot == kNone) slot = acquire(keys[i]);
      if (slot == kNone) {
        uncertain_ |= KvUncertain::kSourceFull;
        ++counts.dropped_blocks;
        chain.name = has_name[i] ? names[i].low : 0;
        continue;
      }
      if (has_name[i] && (blocks_[slot].flags & kNamed) == 0) set_name(slot, names[i]);
      const bool is_usable = (blocks_[slot].flags & kNamed) != 0;
      if (!is_usable) ++counts.unusable_blocks;
      add_copy(slot, tier, group);
      tell(slot, chain.name);
      chain.name = is_usable ? name_of(slot) : 0;
    }
  }
}

void KvEventSource::apply_removed(const KvEvent& event) {
  KvCounts& counts = report_->counts;
  const bool is_counted = event.group < kMostKvGroups &&
                          (groups_[event.group].has_our_block_size || !groups_[event.group].has_other_block_size);
  if (!is_counted) {
    ++counts.group_events;
    return;
  }
  const std::uint32_t tier = tier_of(event.medium);
  const auto group = static_cast<std::uint32_t>(event.group);
  MsgpackReader hashes = event.hashes.first;
  for (std::uint32_t i = 0; i < event.hashes.count; ++i) {
    BlockHash key = 0;
    read_kv_hash(hashes, &key);
    const std::uint32_t slot = find(key);
    if (slot == kNone || !remove_copy(slot, tier, group)) {
      ++counts.unknown_removals;
      continue;
    }
    ++counts.removed_blocks;
    tell(slot, 0);
    settle(slot);
  }
}

void KvEventSource::apply_cleared() {
  flush();
  if (behind_ == Status::kOk) {
    const Status status = sink_->cleared();
    if (status != Status::kOk) note_refusal(status, false);
  }
  if (behind_ == Status::kOk) {
    forget_all();
  } else {
    // What the sink still believes in stays, without copies, until it can be told.
    more_copies_.clear();
    blocks_with_copies_ = nameless_ = copies_ = 0;
    for (std::uint32_t slot = 0; slot < fresh_; ++slot) {
      Block& block = blocks_[slot];
      if ((block.flags & kUsed) == 0) continue;
      for (std::uint32_t& held : block.held) held = 0;
      if (block.told != 0) continue;
      if ((block.flags & kForgettable) != 0) unlink_forgettable(slot);
      release(slot);
    }
  }
  uncertain_ &= ~(KvUncertain::kEventRefused | KvUncertain::kSourceFull | KvUncertain::kSinkFull);
}

}  // namespace saga
