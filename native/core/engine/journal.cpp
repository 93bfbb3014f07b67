#include "journal.hpp"

#include "../base/assert.hpp"
#include "../hash/xxh3.hpp"

namespace saga {
namespace {

constexpr std::uint8_t kMagic[8] = {'S', 'A', 'G', 'A', 'J', 'R', 'N', 'L'};
constexpr std::size_t kHeaderFixed = sizeof kMagic + 4 + 4;  // magic, version, size of the options

std::uint64_t checksum_of(const std::uint8_t* data, std::size_t size, std::uint64_t chained) {
  return xxh3_128(data, size, chained).low;
}

template <typename T>
T read_at(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

void JournalWriter::compact() {
  // Drained bytes are dropped once they are at least half of the buffer, so each byte is moved at most once on average.
  if (drained_ == 0 || drained_ * 2 < buffer_.size()) return;
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(drained_));
  drained_ = 0;
}

void JournalWriter::begin(RecordType type, Time now) {
  SAGA_ASSERT(enabled() && header_);
  compact();
  record_start_ = buffer_.size();
  put(std::uint32_t{0});  // size, patched by end()
  put(static_cast<std::uint8_t>(type));
  put(now);
}

void JournalWriter::begin_header() {
  SAGA_ASSERT(enabled() && !header_ && buffer_.empty());
  header_ = true;
  record_start_ = 0;
  put_bytes(kMagic, sizeof kMagic);
  put(kJournalVersion);
  put(std::uint32_t{0});  // size of the options, patched by end()
}

void JournalWriter::end() {
  const bool is_header = record_start_ == 0 && total_ == 0;
  const std::size_t fixed = is_header ? kHeaderFixed : kRecordOverhead - 8;
  const std::size_t size_at = record_start_ + (is_header ? kHeaderFixed - 4 : 0);
  const auto payload = static_cast<std::uint32_t>(buffer_.size() - record_start_ - fixed);
  std::memcpy(buffer_.data() + size_at, &payload, sizeof payload);
  checksum_ = checksum_of(buffer_.data() + record_start_, buffer_.size() - record_start_, checksum_);
  put(checksum_);
  total_ += buffer_.size() - record_start_;
}

std::size_t JournalWriter::drain(std::uint8_t* out, std::size_t size) {
  const std::size_t count = size < pending() ? size : pending();
  if (count != 0) std::memcpy(out, buffer_.data() + drained_, count);
  drained_ += count;
  return count;
}

Status JournalReader::read_header(std::span<const std::uint8_t>* options) {
  if (bytes_.size() < kHeaderFixed + 8 || std::memcmp(bytes_.data(), kMagic, sizeof kMagic) != 0) {
    return Status::kJournalCorrupt;
  }
  if (read_at<std::uint32_t>(bytes_.data() + sizeof kMagic) != kJournalVersion) return Status::kVersionMismatch;
  const std::size_t size = read_at<std::uint32_t>(bytes_.data() + sizeof kMagic + 4);
  if (size > bytes_.size() - kHeaderFixed - 8) return Status::kJournalCorrupt;
  const std::uint64_t expected = checksum_of(bytes_.data(), kHeaderFixed + size, 0);
  if (read_at<std::uint64_t>(bytes_.data() + kHeaderFixed + size) != expected) return Status::kJournalCorrupt;
  checksum_ = expected;
  *options = bytes_.subspan(kHeaderFixed, size);
  position_ = kHeaderFixed + size + 8;
  return Status::kOk;
}

Status JournalReader::next(Record* record) {
  constexpr std::size_t kFixed = JournalWriter::kRecordOverhead - 8;
  const std::span<const std::uint8_t> rest = bytes_.subspan(position_);
  if (rest.empty()) return Status::kNotFound;
  if (rest.size() < JournalWriter::kRecordOverhead) return Status::kJournalCorrupt;
  const std::size_t size = read_at<std::uint32_t>(rest.data());
  if (size > rest.size() - JournalWriter::kRecordOverhead) return Status::kJournalCorrupt;
  const std::uint64_t expected = checksum_of(rest.data(), kFixed + size, checksum_);
  if (read_at<std::uint64_t>(rest.data() + kFixed + size) != expected) return Status::kJournalCorrupt;
  checksum_ = expected;
  record->type = static_cast<RecordType>(rest[4]);
  record->now = read_at<Time>(rest.data() + 5);
  record->payload = rest.subspan(kFixed, size);
  position_ += JournalWriter::kRecordOverhead + size;
  return Status::kOk;
}

}  // namespace saga
