// KvEventSource: what the KV cache of one publisher holds, by its events, told to a ResidencySink as it changes.
//
// A publisher is one data-parallel rank of an engine (vLLM, SGLang, ..), one worker of the scheduler. Its batches are applied in
// order; kv_event.hpp says what they look like. Three things lie between an event and what the scheduler is told:
//
//   copies     Engines do not de-duplicate: a block is announced once for each physical copy and removed once for each. Copies
//              are counted per (block, tier, KV-cache group); the sink hears of the first and of the last.
//   groups     Models with several kinds of layers keep several groups of KV blocks under the same hashes. A group keeps every
//              block (full, MLA, sink full attention), or a window (sliding window, chunked local attention), or something
//              else. A block counts as stored in a tier when every group of the first kind seen so far has it there or in a
//              faster tier, and one has it there. Where only window groups are known, they take the place of the first kind.
//              Blocks that all window groups hold in GPU memory are told apart (residency_sink.hpp). When a group
//              appears or its kind becomes known, all blocks are judged anew.
//   names      kDirect: the scheduler's key is the publisher's (the low 64 bits of its hash). kTranslate: the key is that of
//              SAGA's own chain, computed from the tokens; kept is a map from the publisher's key to the 128-bit state of
//              that chain. A block has a name if its parent has one, or nothing before it and so the root
//              chain_root(chain_salt(cache salt, LoRA adapter)). What else distinguishes it (extra keys: multimodal items,
//              prompt embeddings) is mixed in before its tokens, as bytes of its msgpack form: such a block has a name of its
//              own that only events lead to, never a prompt's tokens. A block without a name is counted, not told; it gets
//              one when it is announced behind a parent that has one. Names outlive the copies: an offload tier announces
//              hashes alone, maybe after the GPU let go of them. When room is needed the name unused for longest is forgotten.
//
// Media: GPU is GPU memory; CPU, CPU_PINNED and HOST are host memory; every other text is disk.
//
// What events cannot say. Salts in events exist since vLLM 0.17 only: before that, salted blocks look unsalted. With the request
// option kv_cache_report_mode "full" vLLM announces reused blocks again, which nobody can tell from copies: do not use it.
// AllBlocksCleared clears every tier: engines send it for the GPU's alone, but say nothing when they clear the others.
//
// All or nothing: a batch is checked as msgpack first, and the sink asked whether it takes events (ready()); then it is applied.
// What the sink refuses after that is remembered (what each block was told) and told with the next batch or by sync().
// An event that is not understood is skipped and counted; `uncertain()` says what may be wrong because of it.
//
// Cost: an event of 64 blocks and 1,024 tokens takes some 8 us with kDirect, 18 to 30 with kTranslate (the more the
// larger the tables are; native/bench/kv_events_bench.cpp). Memory: 32 bytes a block, 16 more and a second table with
// kTranslate, 16 to 32 a table; 32 to 64 reserved for counts of copies, touched where there are some. Nothing is
// allocated after construction. A group that appears, sync() and clearing visit all blocks.
//
// States of a slot: free -> known (has copies, or was told and not untold yet) -> with a name: forgettable -> free.
// Invariants (verify()): a slot is in the table of publisher's keys iff it is not free, in that of names iff it has one; it is
// in the list of forgettable ones iff it has a name of SAGA's, no copies and nothing told; a count of copies belongs to a group bit
// that is set; what was told of each block is what should be, unless the sink refused something.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "../base/huge_array.hpp"
#include "../base/status.hpp"
#include "../base/types.hpp"
#include "../hash/block_hash.hpp"
#include "copy_table.hpp"
#include "kv_event.hpp"
#include "residency_sink.hpp"
#include "slot_table.hpp"

namespace saga {

inline constexpr std::uint32_t kMostKvGroups = 32;
inline constexpr std::size_t kMostSaltPart = 4096;
inline constexpr std::size_t kMostChainSalt = 2 * kMostSaltPart + 8;

// The salt of SAGA's own chain for a cache salt and a LoRA adapter, each at most kMostSaltPart bytes: the length of the former in
// decimal, a colon, and both; empty if both are. Writes at most kMostChainSalt bytes and returns how many.
std::size_t write_chain_salt(std::string_view cache_salt, std::string_view lora_name, char* salt);

// Values as in saga_kv_uncertain_t.
struct KvUncertain {
  static constexpr std::uint32_t kGroupKind = 1;
  static constexpr std::uint32_t kGroupUnstated = 2;
  static constexpr std::uint32_t kGroupLimit = 4;
  static constexpr std::uint32_t kBlockSize = 8;
  static constexpr std::uint32_t kWindowUnstated = 16;
  static constexpr std::uint32_t kEventRefused = 32;
  static constexpr std::uint32_t kSourceFull = 64;
  static constexpr std::uint32_t kSinkFull = 128;
};

enum class KvNaming : std::uint8_t { kTranslate, kDirect };

struct KvEventSourceOptions {
  KvNaming naming = KvNaming::kTranslate;
  std::uint32_t block_tokens = 16;
  std::uint64_t max_blocks = 1u << 18;  // at most 2^28
  std::uint64_t max_batch_bytes = 1u << 26;
};

// As saga_kv_counts_t, which explains them.
struct KvCounts {
  std::uint64_t events = 0;
  std::uint64_t stored_events = 0;
  std::uint64_t removed_events = 0;
  std::uint64_t cleared_events = 0;
  std::uint64_t unknown_events = 0;
  std::uint64_t refused_events = 0;
  std::uint64_t remote_events = 0;
  std::uint64_t partial_events = 0;
  std::uint64_t group_events = 0;
  std::uint64_t stored_blocks = 0;
  std::uint64_t removed_blocks = 0;
  std::uint64_t unknown_removals = 0;
  std::uint64_t unusable_blocks = 0;
  std::uint64_t dropped_blocks = 0;
  std::uint64_t sink_stored = 0;
  std::uint64_t sink_removed = 0;
  std::uint64_t skipped_fields = 0;
};

struct KvReport {
  std::int32_t rank = kNoRank;
  double timestamp = 0;
  Status sink_status = Status::kOk;  // why the sink was not told everything
  KvCounts counts;
};

class KvEventSource {
 public:
  explicit KvEventSource(const KvEventSourceOptions& options);

  const KvEventSourceOptions& options() const { return options_; }

  // kOk: the batch was applied. kInvalidArgument: it is not a batch; kFull: it is too long; else what the sink's ready() said,
  // or what it still refuses of earlier batches. Then nothing was changed (but earlier batches may have been told).
  Status apply(std::span<const std::uint8_t> payload, ResidencySink& sink, KvReport* report);

  // Everything is forgotten. Not kOk: the sink refused, and nothing was changed.
  Status reset(ResidencySink& sink);

  // Tells the sink what it refused. Not kOk: it still refuses.
  Status sync(ResidencySink& sink);

  // Leading blocks of `chain` that can be used from that tier and faster ones, at most `full_depth` (kNone: any). 0 while groups
  // are known that are not understood.
  std::uint32_t usable(Tier tier, std::span<const BlockHash> chain, std::uint32_t full_depth) const;

  // Copies of a block, by the scheduler's key. group < kMostKvGroups.
  std::uint32_t copies(std::uint32_t group, Tier tier, BlockHash hash) const;

  std::uint32_t uncertain() const { return uncertain_; }
  bool is_behind() const { return behind_ != Status::kOk; }
  std::uint32_t groups() const;
  std::uint32_t window_blocks() const;  // the longest window of any group
  std::uint64_t batches() const { return batches_; }
  std::uint64_t blocks() const { return blocks_with_copies_; }
  std::uint64_t copies() const { return copies_; }
  std::uint64_t nameless_blocks() const { return nameless_; }
  const KvCounts& totals() const { return totals_; }
  std::uint64_t memory_bytes() const;
  bool verify() const;

 private:
  // What the sink was told of a block: a bit a tier, and one for the windows.
  static constexpr std::uint8_t kWindowBit = 1u << kTierCount;
  static constexpr std::uint32_t kToldBits = kTierCount + 1;

  static constexpr std::uint8_t kUsed = 1;         // not free
  static constexpr std::uint8_t kNamed = 2;        // has a key of the scheduler
  static constexpr std::uint8_t kForgettable = 4;  // in that list
  static constexpr std::uint8_t kBuffered = 8;     // in change_

  struct Block {
    BlockHash key;                   // the publisher's
    std::uint32_t held[kTierCount];  // groups that hold it, by tier
    std::uint32_t previous;          // in the list of forgettable blocks
    std::uint32_t next;              // there, or in that of free ones
    std::uint8_t told;
    std::uint8_t flags;
    std::uint16_t unused;
  };
  static_assert(sizeof(Block) == 32);

  enum class GroupKind : std::uint8_t { kUnseen, kUnstated, kFull, kWindow, kOther };
  struct Group {
    GroupKind kind = GroupKind::kUnseen;
    bool has_our_block_size = false;
    bool has_other_block_size = false;
    bool is_contradictory = false;    // its kind or block size changed
    std::uint32_t window_blocks = 0;  // kWindow
  };

  // Blocks whose residency changes alike and that the sink has not heard of yet.
  static constexpr std::uint32_t kMostChanged = 256;
  struct Change {
    bool stored = false;
    std::uint8_t bit = 0;
    std::uint32_t count = 0;
    BlockHash parent = 0;
    BlockHash last = 0;
    std::array<BlockHash, kMostChanged> names;
    std::array<std::uint32_t, kMostChanged> slots;
  };

  void apply_event(const KvEvent& event);
  void apply_stored(const KvEvent& event);
  void apply_removed(const KvEvent& event);
  void apply_cleared();

  // Whether the group's blocks are counted; notes what the event says of it.
  bool admit_group(const KvEvent& event);
  void note_kind(std::uint32_t group, const KvEvent& event);
  void note_groups();  // after a change of groups_

  // The state of SAGA's chain before the block that comes next in a stored event.
  struct ChainCursor;
  ChainCursor begin_chain(const KvEvent& event);
  void extend_chain(ChainCursor& chain);

  std::uint32_t find(BlockHash key) const;
  std::uint32_t acquire(BlockHash key);  // kNone: no room
  void fetch_forgettable(std::uint32_t count) const;
  void release(std::uint32_t slot);
  void set_name(std::uint32_t slot, const ChainHash& name);
  BlockHash name_of(std::uint32_t slot) const;
  bool has_copies(const Block& block) const { return (block.held[0] | block.held[1] | block.held[2]) != 0; }
  void add_copy(std::uint32_t slot, std::uint32_t tier, std::uint32_t group);
  bool remove_copy(std::uint32_t slot, std::uint32_t tier, std::uint32_t group);
  void settle(std::uint32_t slot);  // after its last copy went
  void make_forgettable(std::uint32_t slot);
  void unlink_forgettable(std::uint32_t slot);
  void forget_all();

  std::uint8_t wanted(const Block& block) const;
  // Buffers what the sink has not heard of the block. `parent`: its parent's name, or 0.
  void tell(std::uint32_t slot, BlockHash parent);
  void tell_all();
  void tell_window();
  void flush();
  // The sink refused; `final`: it is not asked again by itself.
  void note_refusal(Status status, bool final);
  Status tell_the_rest(KvReport* report);

  template <typename Visit>
  void for_each_holder(BlockHash name, Visit&& visit) const;

  KvEventSourceOptions options_;
  HugeArray<Block> blocks_;
  HugeArray<ChainHash> names_;  // kTranslate: state of the chain behind the block
  SlotTable by_key_;
  SlotTable by_name_;  // kTranslate
  CopyTable more_copies_;
  std::vector<std::uint32_t> tokens_;  // scratch: of one block
  Change change_;
  Group groups_[kMostKvGroups];
  std::uint32_t full_groups_ = 0;  // that must hold every block
  std::uint32_t window_groups_ = 0;
  std::uint32_t strange_groups_ = 0;  // not understood: nothing is usable
  bool beyond_limit_ = false;
  std::uint32_t told_window_ = 0;  // window_blocks() as the sink knows it

  std::uint64_t fresh_ = 0;  // slots used so far
  std::uint32_t free_ = kNone;
  std::uint32_t oldest_ = kNone;  // forgettable, in the order in which their last copy went
  std::uint32_t newest_ = kNone;

  std::uint64_t blocks_with_copies_ = 0;
  std::uint64_t nameless_ = 0;  // of those
  std::uint64_t copies_ = 0;
  std::uint64_t batches_ = 0;
  std::uint32_t uncertain_ = 0;
  Status behind_ = Status::kOk;  // why the sink lacks something that it will be told
  KvCounts totals_;
  ResidencySink* sink_ = nullptr;  // during a call
  KvReport* report_ = nullptr;
};

}  // namespace saga
