#include "holder_sets.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/random.hpp"

namespace saga {

namespace {
std::uint64_t holder_word(std::uint32_t holder) { return mix64(0x5A6A000000000000ull + holder); }
}  // namespace

HolderSets::HolderSets(std::uint32_t max_workers)
    : words_((max_workers + 63) / 64),
      stride_(words_ * kTierCount),
      buckets_(1024, kNone),
      transitions_(kTransitions, Transition{0, 0, 0, 0}),
      wanted_(stride_, 0) {
  static_assert(kTransitions == 1u << 15);
  const HolderSetId empty = take_id();
  SAGA_ASSERT(empty == kEmptySet);
  sets_[empty].in_use = true;
}

void HolderSets::reference(HolderSetId set, std::uint32_t blocks) {
  if (set == kEmptySet || blocks == 0) return;
  if (sets_[set].references == 0) {
    --dead_;
    ++live_;
  }
  sets_[set].references += blocks;
}

void HolderSets::release(HolderSetId set, std::uint32_t blocks) {
  if (set == kEmptySet || blocks == 0) return;
  SAGA_ASSERT(sets_[set].references >= blocks);
  sets_[set].references -= blocks;
  if (sets_[set].references == 0) {
    --live_;
    ++dead_;
  }
}

HolderSetId HolderSets::take_id() {
  if (first_free_ != kNone) {
    const HolderSetId id = first_free_;
    first_free_ = sets_[id].next;
    return id;
  }
  const auto id = static_cast<HolderSetId>(sets_.size());
  if (id % kChunkSets == 0) {
    chunks_.push_back(std::make_unique<std::uint64_t[]>(static_cast<std::size_t>(stride_) * kChunkSets));
  }
  sets_.emplace_back();
  return id;
}

HolderSetId HolderSets::find_or_make(HolderSetId set, std::uint32_t holder, bool removal) {
  if (contains(set, holder) != removal) return set;  // nothing to add, or nothing to remove
  const std::uint32_t holders = removal ? sets_[set].holders - 1 : sets_[set].holders + 1;
  if (holders == 0) return kEmptySet;

  const std::uint64_t signature = sets_[set].signature ^ holder_word(holder);
  std::memcpy(wanted_.data(), bits(set), stride_ * sizeof(std::uint64_t));
  const std::uint32_t worker = holder / kTierCount;
  wanted_[(holder % kTierCount) * words_ + worker / 64] ^= std::uint64_t{1} << (worker % 64);

  for (std::uint32_t id = buckets_[signature & (buckets_.size() - 1)]; id != kNone; id = sets_[id].next) {
    if (sets_[id].signature == signature && std::equal(wanted_.begin(), wanted_.end(), bits(id))) return id;
  }

  if (live_ + dead_ >= buckets_.size()) grow_buckets();
  const HolderSetId id = take_id();
  std::memcpy(mutable_bits(id), wanted_.data(), stride_ * sizeof(std::uint64_t));
  Set& made = sets_[id];
  std::uint32_t& bucket = buckets_[signature & (buckets_.size() - 1)];
  made.signature = signature;
  made.references = 0;
  made.holders = holders;
  made.next = bucket;
  made.gpu_only = std::all_of(wanted_.begin() + words_, wanted_.end(), [](std::uint64_t w) { return w == 0; });
  made.in_use = true;
  bucket = id;
  ++dead_;
  return id;
}

void HolderSets::grow_buckets() {
  buckets_.assign(buckets_.size() * 2, kNone);
  for (HolderSetId id = 1; id < sets_.size(); ++id) {
    if (!sets_[id].in_use) continue;
    std::uint32_t& bucket = buckets_[sets_[id].signature & (buckets_.size() - 1)];
    sets_[id].next = bucket;
    bucket = id;
  }
}

void HolderSets::collect() {
  std::fill(transitions_.begin(), transitions_.end(), Transition{0, 0, 0, 0});
  std::fill(buckets_.begin(), buckets_.end(), kNone);
  first_free_ = kNone;
  // Downwards, so that the smallest ids are given out first: ids depend on the operations alone and stay dense.
  for (HolderSetId id = static_cast<HolderSetId>(sets_.size()) - 1; id >= 1; --id) {
    Set& set = sets_[id];
    if (set.references > 0) {
      std::uint32_t& bucket = buckets_[set.signature & (buckets_.size() - 1)];
      set.next = bucket;
      bucket = id;
    } else {
      set.in_use = false;
      set.next = first_free_;
      first_free_ = id;
    }
  }
  dead_ = 0;
}

std::uint64_t HolderSets::bytes() const {
  return chunks_.size() * kChunkSets * stride_ * sizeof(std::uint64_t) + sets_.capacity() * sizeof(Set) +
         buckets_.capacity() * sizeof(std::uint32_t) + transitions_.capacity() * sizeof(Transition);
}

bool HolderSets::verify() const {
  std::uint32_t live = 0;
  std::uint32_t dead = 0;
  for (HolderSetId id = 0; id < sets_.size(); ++id) {
    const Set& set = sets_[id];
    if (!set.in_use) continue;
    std::uint64_t signature = 0;
    std::uint32_t holders = 0;
    bool gpu_only = true;
    for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
      for (std::uint32_t word = 0; word < words_; ++word) {
        for (std::uint64_t left = bits(id)[tier * words_ + word]; left != 0; left &= left - 1) {
          const std::uint32_t worker = word * 64 + static_cast<std::uint32_t>(std::countr_zero(left));
          signature ^= holder_word(worker * kTierCount + tier);
          ++holders;
          if (tier != 0) gpu_only = false;
        }
      }
    }
    if (signature != set.signature || holders != set.holders || gpu_only != set.gpu_only) return false;
    if (id == kEmptySet) {
      if (holders != 0 || set.references != 0) return false;
      continue;
    }
    if (holders == 0) return false;
    ++(set.references > 0 ? live : dead);
    // Found under its signature, and no other set of the bucket has the same holders.
    bool found = false;
    for (std::uint32_t other = buckets_[signature & (buckets_.size() - 1)]; other != kNone; other = sets_[other].next) {
      if (!sets_[other].in_use) return false;
      if (other == id) {
        found = true;
      } else if (std::equal(bits(id), bits(id) + stride_, bits(other))) {
        return false;
      }
    }
    if (!found) return false;
  }
  if (live != live_ || dead != dead_) return false;
  std::size_t free = 0;
  for (std::uint32_t id = first_free_; id != kNone; id = sets_[id].next) {
    if (sets_[id].in_use || ++free > sets_.size()) return false;
  }
  if (free + live + dead + 1 != sets_.size()) return false;
  for (const Transition& cached : transitions_) {
    if (cached.change != 0 && (!sets_[cached.from].in_use || !sets_[cached.to].in_use)) return false;
  }
  return true;
}

}  // namespace saga
