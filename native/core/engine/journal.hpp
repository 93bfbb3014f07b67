// The journal: every event that an engine accepted and every decision that it made, as bytes.
//
// The engine is deterministic, so the journal is enough to rebuild it: replaying the events into a new engine gives the same
// state digest, and the decisions come out again byte for byte (the replay compares them). The core does no I/O: records
// collect in a bounded buffer that the owner drains (saga_engine_journal_read) and stores where it likes.
//
// Format, little-endian, no padding:
//
//   header   "SAGAJRNL"  u32 version (1)  u32 size of the options  options (engine.cpp, write_options)  u64 checksum
//   record   u32 size of the payload  u8 type  u64 time  payload  u64 checksum
//
// The checksum of a record is XXH3 (low 64 bits of XXH3-128) over everything before it in the record, seeded with the
// checksum before it, so that a lost, repeated or exchanged record is found. A journal may end after any whole record; a torn
// last record is reported as kJournalCorrupt together with the number of bytes that are good.
//
// Cost: one copy of the event (8 bytes a block hash) and its checksum, about 0.5 ns a byte.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "../base/status.hpp"
#include "../base/types.hpp"

namespace saga {

inline constexpr std::uint32_t kJournalVersion = 1;

// Numeric values are part of the format: append, never renumber.
enum class RecordType : std::uint8_t {
  kWorkerAdded = 1,
  kWorkerRemoved = 2,
  kBlocksStored = 3,
  kBlocksRemoved = 4,
  kBlocksCleared = 5,
  kWorkerLoad = 6,
  kWorkflowOpened = 7,
  kWorkflowClosed = 8,
  kCallSubmitted = 9,
  kFirstToken = 10,
  kCallFinished = 11,
  kToolStarted = 12,
  kToolFinished = 13,
  kTick = 14,
  kDecided = 15,  // decide(now) was called; the payload holds what it emitted
  kCallCancelled = 16,
  // The same events with more told of them, and what only SAGA's scheduler needs.
  kWorkerLoadTold = 17,
  kWorkflowOpenedTold = 18,
  kCallSubmittedTold = 19,
  kFirstTokenTold = 20,
  kCallFinishedTold = 21,
  kGraphDeclared = 22,
  kTenantSet = 23,
  kDirectiveDone = 24,
  kWorkerTrust = 25,
  kWorkerAccepts = 26,
  kWorkerWindow = 27,
  kWindowStored = 28,
  kWindowRemoved = 29,
};

class JournalWriter {
 public:
  // `capacity` bytes are allocated once; 0 switches the journal off.
  // Twice the room, because drained bytes are dropped lazily.
  explicit JournalWriter(std::size_t capacity) : capacity_(capacity) { buffer_.reserve(2 * capacity); }

  bool enabled() const { return capacity_ != 0; }
  // Whether a record of `payload` bytes fits now.
  bool fits(std::size_t payload) const {
    return capacity_ == 0 || buffer_.size() - drained_ + payload + kRecordOverhead <= capacity_;
  }

  // The largest payload that the empty journal takes, and whether this one is not larger.
  std::size_t largest_payload() const { return capacity_ - kRecordOverhead; }
  bool can_ever_fit(std::size_t payload) const { return capacity_ == 0 || payload <= largest_payload(); }

  // A record is written as begin, put.., end. The caller has checked fits().
  void begin(RecordType type, Time now);
  void begin_header();
  template <typename T>
  void put(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    put_bytes(&value, sizeof value);
  }
  void put_bytes(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    buffer_.insert(buffer_.end(), bytes, bytes + size);
  }
  void end();

  // Copies up to `size` bytes that were not drained yet and forgets them.
  std::size_t drain(std::uint8_t* out, std::size_t size);
  std::size_t pending() const { return buffer_.size() - drained_; }
  std::uint64_t total_bytes() const { return total_; }

  static constexpr std::size_t kRecordOverhead = 4 + 1 + 8 + 8;

 private:
  void compact();

  std::vector<std::uint8_t> buffer_;
  std::size_t capacity_ = 0;
  std::size_t drained_ = 0;
  std::size_t record_start_ = 0;
  std::uint64_t checksum_ = 0;  // of the record before: the chain
  std::uint64_t total_ = 0;
  bool header_ = false;
};

// Reads values from one record; `ok` turns false on the first read past the end.
class RecordReader {
 public:
  explicit RecordReader(std::span<const std::uint8_t> payload) : rest_(payload) {}
  template <typename T>
  T get() {
    T value{};
    if (rest_.size() < sizeof value) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_ = rest_.subspan(sizeof value);
    return value;
  }
  // `count` block hashes, copied because the bytes need not be aligned.
  void get_hashes(std::uint64_t count, std::vector<BlockHash>& out) {
    out.clear();
    if (count > rest_.size() / sizeof(BlockHash)) {
      ok_ = false;
      return;
    }
    out.resize(count);
    if (count != 0) std::memcpy(out.data(), rest_.data(), count * sizeof(BlockHash));
    rest_ = rest_.subspan(count * sizeof(BlockHash));
  }
  std::span<const std::uint8_t> rest() const { return rest_; }
  bool ok() const { return ok_; }
  bool finished() const { return ok_ && rest_.empty(); }

 private:
  std::span<const std::uint8_t> rest_;
  bool ok_ = true;
};

struct Record {
  RecordType type{};
  Time now = 0;
  std::span<const std::uint8_t> payload;
};

// Splits a journal into its header and records, checking sizes and checksums.
class JournalReader {
 public:
  explicit JournalReader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  // kOk, kJournalCorrupt or kVersionMismatch.
  Status read_header(std::span<const std::uint8_t>* options);
  // kOk and a record; kNotFound at the clean end; kJournalCorrupt.
  Status next(Record* record);
  // Bytes up to the last good record.
  std::size_t good_bytes() const { return position_; }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t position_ = 0;
  std::uint64_t checksum_ = 0;
};

}  // namespace saga
