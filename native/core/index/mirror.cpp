#include "mirror.hpp"

#include "../base/assert.hpp"
#include "../base/random.hpp"

namespace saga {

Mirror::Mirror(const PrefixIndexOptions& options) : index_(options), table_(64, Shared{0, 0, 0}), held_(512) {}

std::size_t Mirror::home_of(std::uint32_t holder, BlockHash hash) const {
  return static_cast<std::size_t>(mix64(hash ^ mix64(holder))) & (table_.size() - 1);
}

std::size_t Mirror::find(std::uint32_t holder, BlockHash hash) const {
  std::size_t i = home_of(holder, hash);
  while (table_[i].count != 0 && (table_[i].hash != hash || table_[i].holder != holder)) {
    i = (i + 1) & (table_.size() - 1);
  }
  return i;
}

bool Mirror::store(WorkerId worker, Tier tier, std::span<const BlockHash> hashes, BlockHash parent) {
  if (held_.size() < hashes.size()) held_.resize(hashes.size());
  std::size_t held_count = 0;
  if (!index_.store(worker, tier, hashes, parent, held_.data(), &held_count)) return false;
  for (std::size_t i = 0; i < held_count; ++i) add_copy(HolderSets::holder(worker, tier), held_[i]);
  return true;
}

void Mirror::remove(WorkerId worker, Tier tier, std::span<const BlockHash> hashes) {
  if (shared_ == 0) {
    index_.remove(worker, tier, hashes);
    return;
  }
  // Blocks with one copy go to the index in stretches, so that neighbours are still removed together.
  const std::uint32_t holder = HolderSets::holder(worker, tier);
  std::size_t pending = 0;  // hashes[pending, i) are to be removed from the index
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    const std::size_t entry = find(holder, hashes[i]);
    if (table_[entry].count == 0) continue;
    index_.remove(worker, tier, hashes.subspan(pending, i - pending));
    pending = i + 1;
    if (--table_[entry].count == 1) erase(entry);
  }
  index_.remove(worker, tier, hashes.subspan(pending));
}

void Mirror::clear(WorkerId worker) {
  forget(worker, 0, kTierCount - 1);
  index_.clear(worker);
}

void Mirror::clear(WorkerId worker, Tier tier) {
  forget(worker, static_cast<std::uint32_t>(tier), static_cast<std::uint32_t>(tier));
  index_.clear(worker, tier);
}

std::uint32_t Mirror::count(WorkerId worker, Tier tier, BlockHash hash) const {
  const Shared& entry = table_[find(HolderSets::holder(worker, tier), hash)];
  if (entry.count != 0) return entry.count;
  return index_.holds(worker, tier, hash) ? 1 : 0;
}

void Mirror::add_copy(std::uint32_t holder, BlockHash hash) {
  const std::size_t entry = find(holder, hash);
  if (table_[entry].count != 0) {
    if (table_[entry].count != ~std::uint32_t{0}) ++table_[entry].count;
    return;
  }
  table_[entry] = {hash, holder, 2};
  ++shared_;
  if (shared_ * 2 > table_.size()) grow();
}

void Mirror::erase(std::size_t entry) {
  --shared_;
  const std::size_t mask = table_.size() - 1;
  for (std::size_t i = (entry + 1) & mask; table_[i].count != 0; i = (i + 1) & mask) {
    const std::size_t home = home_of(table_[i].holder, table_[i].hash);
    // The entry at i may fill the gap unless its probe begins behind the gap.
    if (((i - home) & mask) >= ((i - entry) & mask)) {
      table_[entry] = table_[i];
      entry = i;
    }
  }
  table_[entry].count = 0;
}

void Mirror::grow() {
  std::vector<Shared> before(table_.size() * 2, Shared{0, 0, 0});
  before.swap(table_);
  for (const Shared& entry : before) {
    if (entry.count != 0) table_[find(entry.holder, entry.hash)] = entry;
  }
}

void Mirror::forget(WorkerId worker, std::uint32_t first_tier, std::uint32_t last_tier) {
  const std::uint32_t first = worker * kTierCount + first_tier;
  const std::uint32_t last = worker * kTierCount + last_tier;
  if (shared_ == 0) return;
  // An erasure moves later entries forward, across the end of the table too: look at the same place again after one, and
  // begin behind an empty entry, so that no entry moves to where the scan has been.
  const std::size_t mask = table_.size() - 1;
  std::size_t start = 0;
  while (table_[start].count != 0) ++start;
  for (std::size_t seen = 0; seen <= mask;) {
    const std::size_t i = (start + seen) & mask;
    if (table_[i].count != 0 && table_[i].holder >= first && table_[i].holder <= last) {
      erase(i);
    } else {
      ++seen;
    }
  }
}

PrefixIndexStats Mirror::stats() const {
  PrefixIndexStats stats = index_.stats();
  stats.bytes += table_.capacity() * sizeof(Shared) + held_.capacity() * sizeof(BlockHash);
  return stats;
}

std::uint64_t Mirror::digest() const {
  std::uint64_t digest = index_.digest();
  for (const Shared& entry : table_) {
    if (entry.count != 0) digest += mix64(mix64(entry.hash ^ mix64(entry.holder)) + entry.count);
  }
  return digest;
}

bool Mirror::verify() const {
  if (!index_.verify()) return false;
  std::uint64_t shared = 0;
  for (std::size_t i = 0; i < table_.size(); ++i) {
    const Shared& entry = table_[i];
    if (entry.count == 0) continue;
    ++shared;
    if (entry.count < 2 || find(entry.holder, entry.hash) != i) return false;
    const WorkerId worker = entry.holder / kTierCount;
    if (!index_.holds(worker, static_cast<Tier>(entry.holder % kTierCount), entry.hash)) return false;
  }
  return shared == shared_ && shared * 2 <= table_.size();
}

}  // namespace saga
