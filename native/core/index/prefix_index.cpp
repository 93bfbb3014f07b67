#include "prefix_index.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/random.hpp"

namespace saga {

namespace {

// How far a query looks ahead, in lines: table entries are fetched kFetchAhead lines before they are needed, and the lines
// they name kLocateAhead lines before.
constexpr std::size_t kFirstAhead = 4;  // before the first block is known to be there
constexpr std::size_t kFetchAhead = 12;
constexpr std::size_t kLocateAhead = 8;
constexpr std::size_t kRing = 16;          // >= kLocateAhead
constexpr std::uint32_t kStreamAhead = 4;  // the same for lines that follow each other in memory
constexpr std::uint32_t kStretch = 4;  // of those, how many a query compares at once, and fetches the next of meanwhile

std::uint32_t bits_between(std::uint32_t first, std::uint32_t count) { return ((1u << count) - 1) << first; }

std::uint32_t count_bits(std::uint32_t bits) { return static_cast<std::uint32_t>(std::popcount(bits)); }

}  // namespace

PrefixIndex::PrefixIndex(const PrefixIndexOptions& options)
    : max_workers_(options.max_workers),
      max_blocks_(options.max_blocks),
      table_size_(options.max_blocks * 8 / 5 + 16),
      // Four blocks a line before lines are filled without regard to the layout (see any_free_place).
      line_limit_(static_cast<std::uint32_t>(options.max_blocks / 4 + 2)),
      table_(table_size_),
      hashes_(static_cast<std::size_t>(line_limit_) * kLine),
      lines_(line_limit_),
      mixed_(static_cast<std::size_t>(line_limit_) + 1),
      sets_(options.max_workers),
      holder_blocks_of_(static_cast<std::size_t>(options.max_workers) * kTierCount, 0) {
  SAGA_ASSERT(options.max_workers >= 1 && options.max_workers <= kMaxWorkers);
  SAGA_ASSERT(options.max_blocks < (1ull << 29));
}

// ---- the table of places ----------------------------------------------------------------------------------------------------

SAGA_ALWAYS_INLINE PrefixIndex::Place PrefixIndex::find(BlockHash hash) const {
  const std::uint32_t tag = tag_of(hash);
  for (std::uint64_t i = home_of(tag);; i = after(i)) {
    const Entry entry = table_[i];
    if (entry.place == 0) return 0;
    if (entry.tag == tag && hashes_[entry.place] == hash) return entry.place;
  }
}

// A place whose tag fits, without a look at the hash there: the caller compares it later, when the line has arrived.
SAGA_ALWAYS_INLINE PrefixIndex::Place PrefixIndex::find_candidate(BlockHash hash) const {
  const std::uint32_t tag = tag_of(hash);
  for (std::uint64_t i = home_of(tag);; i = after(i)) {
    const Entry entry = table_[i];
    if (entry.place == 0 || entry.tag == tag) return entry.place;
  }
}

// The place of the hash, or 0 and the empty entry that ended the probe.
SAGA_ALWAYS_INLINE PrefixIndex::Place PrefixIndex::find_or_insertion(BlockHash hash, std::uint64_t* entry_index) const {
  const std::uint32_t tag = tag_of(hash);
  for (std::uint64_t i = home_of(tag);; i = after(i)) {
    const Entry entry = table_[i];
    if (entry.place == 0) {
      *entry_index = i;
      return 0;
    }
    if (entry.tag == tag && hashes_[entry.place] == hash) return entry.place;
  }
}

void PrefixIndex::erase_entry(BlockHash hash, Place place) {
  std::uint64_t gap = home_of(tag_of(hash));
  while (table_[gap].place != place) gap = after(gap);
  const auto distance = [this](std::uint64_t from, std::uint64_t to) {
    return to >= from ? to - from : to + table_size_ - from;
  };
  for (std::uint64_t i = after(gap); table_[i].place != 0; i = after(i)) {
    // The entry at i may fill the gap unless its probe begins behind the gap.
    if (distance(home_of(table_[i].tag), i) >= distance(gap, i)) {
      table_[gap] = table_[i];
      gap = i;
    }
  }
  table_[gap] = Entry{0, 0};
}

// ---- lines --------------------------------------------------------------------------------------------------------------------

// How many places from `place` on, within its line, hold chain[0], chain[1], ... (at most `limit`).
SAGA_ALWAYS_INLINE std::uint32_t PrefixIndex::run_length(Place place, const BlockHash* chain, std::size_t limit) const {
  const std::uint32_t slot = place % kLine;
  const std::uint32_t occupied = lines_[place / kLine].occupied;
  const BlockHash* here = &hashes_[place];
  if (slot == 0 && limit >= kLine && occupied == kFullLine) {
    std::uint64_t difference = 0;
    for (std::uint32_t k = 0; k < kLine; ++k) difference |= here[k] ^ chain[k];
    if (difference == 0) return kLine;
  }
  const auto end = static_cast<std::uint32_t>(
      std::min<std::size_t>(limit, static_cast<std::size_t>(std::countr_one(occupied >> slot))));
  std::uint32_t k = 0;
  while (k < end && here[k] == chain[k]) ++k;
  return k;
}

// Whether the chain goes on through kStretch lines from `line` on, all of whose blocks have the holders of `set`.
SAGA_ALWAYS_INLINE bool PrefixIndex::follows(std::uint32_t line, HolderSetId set, const BlockHash* chain,
                                             std::size_t limit) const {
  if (line + kStretch > unused_line_ || limit < kStretch * kLine) return false;
  const auto expected = std::bit_cast<std::uint64_t>(Line{set, kFullLine, 0});
  std::uint64_t headers = 0;
  for (std::uint32_t k = 0; k < kStretch; ++k) headers |= std::bit_cast<std::uint64_t>(lines_[line + k]) ^ expected;
  if (headers != 0) return false;
  // Eight differences side by side, so that it is done with vectors; and in a loop, as the code is larger than the work.
  const BlockHash* const here = &hashes_[static_cast<std::size_t>(line) * kLine];
  std::uint64_t hashes[8] = {};
#if defined(__GNUC__)
#pragma GCC unroll 1
#endif
  for (std::uint32_t i = 0; i < kStretch * kLine; i += 8) {
    for (std::uint32_t k = 0; k < 8; ++k) hashes[k] |= here[i + k] ^ chain[i + k];
  }
  return (hashes[0] | hashes[1] | hashes[2] | hashes[3] | hashes[4] | hashes[5] | hashes[6] | hashes[7]) == 0;
}

std::uint32_t PrefixIndex::take_line() {
  std::uint32_t line = free_line_;
  if (line != 0) {
    free_line_ = lines_[line].set;
  } else if (unused_line_ < line_limit_) {
    line = unused_line_++;
  } else {
    return 0;
  }
  lines_[line] = Line{kEmptySet, 0, 0};
  ++lines_in_use_;
  return line;
}

void PrefixIndex::give_line(std::uint32_t line) {
  Line& header = lines_[line];
  if (header.mixed) {
    mixed_[header.set].set[0] = free_mixed_;
    free_mixed_ = header.set;
    --mixed_in_use_;
  }
  header = Line{free_line_, 0, 0};
  free_line_ = line;
  --lines_in_use_;
}

// Where the block behind `previous` goes: next to it, or to the start of a line of its own.
PrefixIndex::Place PrefixIndex::place_after(Place previous) {
  if (previous != 0 && (previous + 1) % kLine != 0) {
    const Place next = previous + 1;
    if ((lines_[next / kLine].occupied >> (next % kLine) & 1) == 0) return next;
  }
  const std::uint32_t line = take_line();
  return line != 0 ? line * kLine : any_free_place();
}

// All lines are in use: any place will do. There are four places a block, so a few steps find one.
PrefixIndex::Place PrefixIndex::any_free_place() {
  for (;;) {
    if (scan_line_ >= line_limit_) scan_line_ = 1;
    const std::uint32_t occupied = lines_[scan_line_].occupied;
    if (occupied != kFullLine) {
      return scan_line_ * kLine + static_cast<std::uint32_t>(std::countr_one(occupied));
    }
    ++scan_line_;
  }
}

void PrefixIndex::make_mixed(std::uint32_t line) {
  Line& header = lines_[line];
  std::uint32_t mixed = free_mixed_;
  if (mixed != 0) {
    free_mixed_ = mixed_[mixed].set[0];
  } else {
    mixed = unused_mixed_++;
  }
  std::fill_n(mixed_[mixed].set, kLine, header.set);
  header.set = mixed;
  header.mixed = 1;
  ++mixed_in_use_;
}

void PrefixIndex::make_uniform_if_possible(std::uint32_t line) {
  Line& header = lines_[line];
  const HolderSetId* sets = mixed_[header.set].set;
  const HolderSetId first = sets[std::countr_zero(static_cast<std::uint32_t>(header.occupied))];
  for (std::uint32_t slot = 0; slot < kLine; ++slot) {
    if (sets[slot] != first && (header.occupied >> slot & 1) != 0) return;
  }
  mixed_[header.set].set[0] = free_mixed_;
  free_mixed_ = header.set;
  --mixed_in_use_;
  header.set = first;
  header.mixed = 0;
}

// ---- changes of one line --------------------------------------------------------------------------------------------------

// Blocks that were just put into free slots of the line get their first holder.
void PrefixIndex::add_new(std::uint32_t line, std::uint32_t slots, HolderSetId set) {
  Line& header = lines_[line];
  if (header.occupied == 0) {
    header.set = set;
  } else if (header.mixed == 0 && header.set != set) {
    make_mixed(line);
  }
  if (header.mixed != 0) {
    for (std::uint32_t left = slots; left != 0; left &= left - 1) {
      mixed_[header.set].set[std::countr_zero(left)] = set;
    }
  }
  header.occupied = static_cast<std::uint16_t>(header.occupied | slots);
  sets_.reference(set, count_bits(slots));
}

// Returns the slots that had the holder already.
std::uint32_t PrefixIndex::add_holder(std::uint32_t line, std::uint32_t slots, std::uint32_t holder) {
  Line& header = lines_[line];
  if (header.mixed == 0) {
    const HolderSetId before = header.set;
    const HolderSetId set = sets_.with(before, holder);
    if (set == before) return slots;
    sets_.release(before, count_bits(slots));
    sets_.reference(set, count_bits(slots));
    if (slots == header.occupied) {
      header.set = set;
      return 0;
    }
    make_mixed(line);
    for (std::uint32_t left = slots; left != 0; left &= left - 1) {
      mixed_[header.set].set[std::countr_zero(left)] = set;
    }
    return 0;
  }
  std::uint32_t held = 0;
  for (std::uint32_t left = slots; left != 0; left &= left - 1) {
    HolderSetId& set = mixed_[header.set].set[std::countr_zero(left)];
    const HolderSetId changed = sets_.with(set, holder);
    if (changed == set) {
      held |= left & (~left + 1);
      continue;
    }
    sets_.release(set, 1);
    sets_.reference(changed, 1);
    set = changed;
  }
  if (held != slots) make_uniform_if_possible(line);
  return held;
}

// Returns the slots that had the holder. Blocks without any holder left leave the index, and so may the line.
std::uint32_t PrefixIndex::remove_holder(std::uint32_t line, std::uint32_t slots, std::uint32_t holder) {
  Line& header = lines_[line];
  if (header.mixed == 0) {
    const HolderSetId before = header.set;
    const HolderSetId set = sets_.without(before, holder);
    if (set == before) return 0;
    sets_.release(before, count_bits(slots));
    if (set == kEmptySet) {
      erase_blocks(line, slots);
      return slots;
    }
    sets_.reference(set, count_bits(slots));
    if (slots == header.occupied) {
      header.set = set;
      return slots;
    }
    make_mixed(line);
    for (std::uint32_t left = slots; left != 0; left &= left - 1) {
      mixed_[header.set].set[std::countr_zero(left)] = set;
    }
    return slots;
  }
  std::uint32_t held = 0;
  std::uint32_t gone = 0;
  for (std::uint32_t left = slots; left != 0; left &= left - 1) {
    const std::uint32_t bit = left & (~left + 1);
    HolderSetId& set = mixed_[header.set].set[std::countr_zero(left)];
    const HolderSetId changed = sets_.without(set, holder);
    if (changed == set) continue;
    held |= bit;
    sets_.release(set, 1);
    sets_.reference(changed, 1);
    set = changed;
    if (changed == kEmptySet) gone |= bit;
  }
  if (gone != 0) erase_blocks(line, gone);
  if (held != 0 && header.occupied != 0) make_uniform_if_possible(line);
  return held;
}

void PrefixIndex::erase_blocks(std::uint32_t line, std::uint32_t slots) {
  const BlockHash* hashes = &hashes_[static_cast<std::size_t>(line) * kLine];
  for (std::uint32_t left = slots; left != 0; left &= left - 1) prefetch_entry(hashes[std::countr_zero(left)]);
  for (std::uint32_t left = slots; left != 0; left &= left - 1) {
    const auto slot = static_cast<std::uint32_t>(std::countr_zero(left));
    erase_entry(hashes[slot], line * kLine + slot);
  }
  blocks_ -= count_bits(slots);
  Line& header = lines_[line];
  header.occupied = static_cast<std::uint16_t>(header.occupied & ~slots);
  if (header.occupied == 0) give_line(line);
}

// ---- store, remove, clear ---------------------------------------------------------------------------------------------------

bool PrefixIndex::store(WorkerId worker, Tier tier, std::span<const BlockHash> hashes, BlockHash parent,
                        BlockHash* held, std::size_t* held_count) {
  SAGA_ASSERT(worker < max_workers_ && static_cast<std::uint32_t>(tier) < kTierCount);
  const std::size_t n = hashes.size();
  if (held_count != nullptr) *held_count = 0;
  if (n == 0) return true;
  for (std::size_t i = 0; i < n && i < kLine; ++i) prefetch_entry(hashes[i]);
  if (parent != 0) prefetch_entry(parent);
  sets_.collect_if_worthwhile();

  if (blocks_ + n > max_blocks_) {
    std::uint64_t unknown = 0;
    for (const BlockHash hash : hashes) unknown += find(hash) == 0;
    if (blocks_ + unknown > max_blocks_) return false;
  }

  const std::uint32_t holder = HolderSets::holder(worker, tier);
  std::uint64_t added = 0;
  Place previous = 0;  // place of the block before hashes[i]; 0: not known
  for (std::size_t i = 0; i < n;) {
    std::uint64_t entry = 0;
    const bool follows = previous != 0 && (previous + 1) % kLine != 0 && is_at(previous + 1, hashes[i]);
    Place place = follows ? previous + 1 : find_or_insertion(hashes[i], &entry);

    if (place != 0) {  // a stretch of blocks that the index knows
      const std::uint32_t run = run_length(place, &hashes[i], n - i);
      const std::uint32_t slot = place % kLine;
      const std::uint32_t already = add_holder(place / kLine, bits_between(slot, run), holder);
      added += run - count_bits(already);
      if (held != nullptr) {
        for (std::uint32_t left = already; left != 0; left &= left - 1) {
          held[(*held_count)++] = hashes[i + static_cast<std::uint32_t>(std::countr_zero(left)) - slot];
        }
      }
      previous = place + run - 1;
      i += run;
      continue;
    }

    // New blocks: put them side by side as far as the line reaches.
    if (i == 0 && parent != 0) previous = find_candidate(parent);  // a wrong one costs nothing but room
    place = place_after(previous);
    const std::uint32_t line = place / kLine;
    const std::uint32_t free = ~static_cast<std::uint32_t>(lines_[line].occupied) & kFullLine;
    std::uint32_t slot = place % kLine;
    std::uint32_t slots = 0;
    for (;;) {
      table_[entry] = Entry{tag_of(hashes[i]), line * kLine + slot};
      hashes_[static_cast<std::size_t>(line) * kLine + slot] = hashes[i];
      slots |= 1u << slot;
      previous = line * kLine + slot;
      ++slot;
      ++i;
      if (i == n || slot == kLine || (free >> slot & 1) == 0 || find_or_insertion(hashes[i], &entry) != 0) break;
    }
    add_new(line, slots, sets_.with(kEmptySet, holder));
    blocks_ += count_bits(slots);
    added += count_bits(slots);
  }
  holder_blocks_ += added;
  holder_blocks_of_[holder] += added;
  return true;
}

void PrefixIndex::remove(WorkerId worker, Tier tier, std::span<const BlockHash> hashes) {
  SAGA_ASSERT(worker < max_workers_ && static_cast<std::uint32_t>(tier) < kTierCount);
  const std::size_t n = hashes.size();
  if (n == 0) return;
  for (std::size_t i = 0; i < n && i < 2 * kLine; ++i) prefetch_entry(hashes[i]);
  sets_.collect_if_worthwhile();

  const std::uint32_t holder = HolderSets::holder(worker, tier);
  std::uint64_t removed = 0;
  for (std::size_t i = 0; i < n;) {
    const Place place = find(hashes[i]);
    if (place == 0) {
      ++i;
      continue;
    }
    // A stretch within the line, in either direction: engines evict the deepest block first.
    const std::uint32_t slot = place % kLine;
    std::uint32_t run = run_length(place, &hashes[i], n - i);
    std::uint32_t slots = bits_between(slot, run);
    if (run == 1) {
      while (run <= slot && i + run < n && is_at(place - run, hashes[i + run])) ++run;
      slots = bits_between(slot + 1 - run, run);
    }
    for (std::size_t k = i + 2 * kLine; k < n && k < i + 2 * kLine + run; ++k) prefetch_entry(hashes[k]);
    if (i + run < n) {
      prefetch_line(find_candidate(hashes[i + run]));
    }
    removed += count_bits(remove_holder(place / kLine, slots, holder));
    i += run;
  }
  unknown_removals_ += n - removed;
  holder_blocks_ -= removed;
  holder_blocks_of_[holder] -= removed;
}

void PrefixIndex::clear_holder(std::uint32_t holder) {
  // Downwards, so that lines that become free are used again in increasing order.
  for (std::uint32_t line = unused_line_ - 1; line >= 1 && holder_blocks_of_[holder] > 0; --line) {
    const Line header = lines_[line];
    if (header.occupied == 0 || (header.mixed == 0 && !sets_.contains(header.set, holder))) continue;
    sets_.collect_if_worthwhile();
    const std::uint32_t removed = count_bits(remove_holder(line, header.occupied, holder));
    holder_blocks_ -= removed;
    holder_blocks_of_[holder] -= removed;
  }
}

void PrefixIndex::clear(WorkerId worker, Tier tier) {
  SAGA_ASSERT(worker < max_workers_ && static_cast<std::uint32_t>(tier) < kTierCount);
  clear_holder(HolderSets::holder(worker, tier));
}

void PrefixIndex::clear(WorkerId worker) {
  for (std::uint32_t tier = 0; tier < kTierCount; ++tier) clear(worker, static_cast<Tier>(tier));
}

// ---- queries ------------------------------------------------------------------------------------------------------------------

bool PrefixIndex::holds(WorkerId worker, Tier tier, BlockHash hash) const {
  SAGA_ASSERT(worker < max_workers_ && static_cast<std::uint32_t>(tier) < kTierCount);
  const Place place = find(hash);
  return place != 0 && sets_.contains(set_at(place), HolderSets::holder(worker, tier));
}

// Calls visitor.change(i, set) for block 0 and wherever the holder set of block i differs from that of block i - 1, until it
// returns false (nobody left), an unknown block comes or the chain ends. Returns the depth reached.
//
// Memory latency is the cost, so the walk looks ahead. A chain that was stored in one go lies in consecutive lines: the next
// line is tried first, without the table. Where that fails the boundaries between lines are still known in advance (every
// sixteenth block, counted from the start of the stretch), and table entries and lines of the next ones are fetched together.
template <class Visitor>
std::uint32_t PrefixIndex::walk(std::span<const BlockHash> chain, Visitor& visitor) const {
  const std::size_t n = chain.size();
  if (n == 0) return 0;
  for (std::size_t k = 0; k < n && k <= kFirstAhead * kLine; k += kLine) prefetch_entry(chain[k]);
  Place place = find_candidate(chain[0]);
  if (place == 0) return 0;

  Place ahead[kRing];               // candidate places of line boundaries, up to `located`
  std::size_t located = 0;          // boundaries of the chain below this one are in ahead[]
  std::size_t fetched = 0;          // table entries of boundaries below this one are on their way
  std::size_t limit = n;            // the first boundary known to be unknown, if one is
  HolderSetId current = kEmptySet;  // set of the block before
  bool consecutive = false;         // the line at hand was found behind the one before

  const auto look_ahead = [&](std::size_t from) {
    while (located <= limit && located < n && located < from + kLocateAhead * kLine) {
      const Place candidate = find_candidate(chain[located]);
      ahead[located / kLine % kRing] = candidate;
      if (candidate == 0) limit = located;
      located += kLine;
      prefetch_line(candidate);
    }
    for (; fetched < limit && fetched < from + kFetchAhead * kLine; fetched += kLine) prefetch_entry(chain[fetched]);
  };

  std::size_t i = 0;
  for (;;) {
    std::uint32_t number = place / kLine;
    const std::uint32_t slot = place % kLine;
    std::size_t boundary = i + (kLine - slot);  // where the line at hand ends
    if (located < boundary || (located - boundary) % kLine != 0) {
      located = fetched = boundary;
      limit = n;
    }
    const Line line = lines_[number];
    // Where the table has the next line right behind this one, the chain was stored in one go and is likely to go on so.
    if (consecutive || (located > boundary && ahead[boundary / kLine % kRing] == (number + 1) * kLine)) {
      prefetch_line(std::min(number + kStreamAhead, line_limit_ - 1) * kLine);
    } else {
      look_ahead(boundary);
    }

    const std::uint32_t run = run_length(place, &chain[i], n - i);
    if (run == 0) {  // only the tag had fitted
      place = find(chain[i]);
      if (place == 0) return static_cast<std::uint32_t>(i);
      consecutive = false;
      continue;
    }
    if (line.mixed == 0) {
      if (line.set != current) {
        current = line.set;
        if (!visitor.change(static_cast<std::uint32_t>(i), current)) return static_cast<std::uint32_t>(i);
      }
      i += run;
    } else {
      const HolderSetId* sets = &mixed_[line.set].set[slot];
      for (std::uint32_t k = 0; k < run; ++k, ++i) {
        if (sets[k] == current) continue;
        current = sets[k];
        if (!visitor.change(static_cast<std::uint32_t>(i), current)) return static_cast<std::uint32_t>(i);
      }
    }
    if (i == n) return static_cast<std::uint32_t>(i);

    consecutive = false;
    if (i == boundary) {
      while (follows(number + 1, current, &chain[i], n - i)) {
        number += kStretch;
        i += kStretch * kLine;
        for (std::uint32_t k = 1; k <= kStretch; ++k) {
          prefetch_line(std::min(number + kStretch + k, line_limit_ - 1) * kLine);
        }
      }
      if (i == n) return static_cast<std::uint32_t>(i);
      boundary = i;
      if (located < boundary) {
        located = fetched = boundary;
        limit = n;
      }
    }
    if (i != boundary) {
      place = find_candidate(chain[i]);
    } else if (number + 1 < unused_line_ && is_at(place = (number + 1) * kLine, chain[i])) {
      consecutive = true;
    } else {
      if (located == boundary) look_ahead(boundary);
      place = ahead[boundary / kLine % kRing];
    }
    if (place == 0) return static_cast<std::uint32_t>(i);
  }
}

namespace {

// Writes `depth` for all workers of one word that dropped out, for tiers [first, last]. Those that go on are written later:
// where the eight of a byte were all there so far, they are written together, whoever of them dropped out.
template <std::uint32_t kFirst, std::uint32_t kLast>
inline void write_depths(std::uint32_t* depths, std::uint32_t word, std::uint64_t before, std::uint64_t dropped,
                         std::uint32_t depth) {
  std::uint32_t* const base = depths + static_cast<std::size_t>(word) * 64 * kTierCount;
  if (kFirst == 0 && kLast == kTierCount - 1 && before == ~std::uint64_t{0} && dropped != 0) {
    std::fill_n(base, 64 * kTierCount, depth);  // a shared root is held by nearly all
    return;
  }
  while (dropped != 0) {
    const auto first = static_cast<std::uint32_t>(std::countr_zero(dropped));
    const std::uint32_t byte = first & ~7u;
    if (kFirst == 0 && kLast == kTierCount - 1 && (before >> byte & 0xFF) == 0xFF) {
      std::fill_n(base + byte * kTierCount, 8 * kTierCount, depth);
      dropped &= ~(std::uint64_t{0xFF} << byte);
      continue;
    }
    for (std::uint32_t tier = kFirst; tier <= kLast; ++tier) base[first * kTierCount + tier] = depth;
    dropped &= dropped - 1;
  }
}

// Follows the workers that hold everything so far, in the GPU tier; in GPU or host; in any tier. While all sets seen are of the
// GPU tier alone the three are the same and only the first is kept.
struct AllTiers {
  const HolderSets& sets;
  std::uint32_t* depths;
  std::uint32_t words;
  bool started = false;
  bool gpu_only = true;
  std::uint64_t gpu[PrefixIndex::kMaxWorkers / 64];
  std::uint64_t host[PrefixIndex::kMaxWorkers / 64];
  std::uint64_t disk[PrefixIndex::kMaxWorkers / 64];

  AllTiers(const HolderSets& holder_sets, std::uint32_t* out)
      : sets(holder_sets), depths(out), words(holder_sets.words()) {}

  // Not inlined at each place of the walk that calls it once or twice a query: a query is bound by the code it fetches too.
  [[gnu::noinline]] bool change(std::uint32_t depth, HolderSetId set) {
    const std::uint64_t* const bits = sets.bits(set);
    if (!started) {
      started = true;
      gpu_only = sets.gpu_only(set);
      for (std::uint32_t k = 0; k < words; ++k) {
        gpu[k] = bits[k];
        if (gpu_only) continue;
        host[k] = bits[k] | bits[words + k];
        disk[k] = host[k] | bits[2 * words + k];
      }
      return true;
    }
    if (gpu_only && !sets.gpu_only(set)) {
      gpu_only = false;
      std::memcpy(host, gpu, words * sizeof(std::uint64_t));
      std::memcpy(disk, gpu, words * sizeof(std::uint64_t));
    }
    std::uint64_t any = 0;
    if (gpu_only) {
      for (std::uint32_t k = 0; k < words; ++k) {
        const std::uint64_t dropped = gpu[k] & ~bits[k];
        if (dropped != 0) {
          write_depths<0, 2>(depths, k, gpu[k], dropped, depth);
          gpu[k] ^= dropped;
        }
        any |= gpu[k];
      }
      return any != 0;
    }
    for (std::uint32_t k = 0; k < words; ++k) {
      const std::uint64_t in_host = bits[k] | bits[words + k];
      const std::uint64_t in_any = in_host | bits[2 * words + k];
      write_depths<0, 0>(depths, k, gpu[k], gpu[k] & ~bits[k], depth);
      write_depths<1, 1>(depths, k, host[k], host[k] & ~in_host, depth);
      write_depths<2, 2>(depths, k, disk[k], disk[k] & ~in_any, depth);
      gpu[k] &= bits[k];
      host[k] &= in_host;
      disk[k] &= in_any;
      any |= disk[k];
    }
    return any != 0;
  }

  void finish(std::uint32_t depth) {
    for (std::uint32_t k = 0; k < words; ++k) {
      if (gpu_only) {
        write_depths<0, 2>(depths, k, gpu[k], gpu[k], depth);
      } else {
        write_depths<0, 0>(depths, k, gpu[k], gpu[k], depth);
        write_depths<1, 1>(depths, k, host[k], host[k], depth);
        write_depths<2, 2>(depths, k, disk[k], disk[k], depth);
      }
    }
  }
};

// The same for the GPU tier alone. by_worker[] is written for the workers of the first set only.
struct GpuTier {
  const HolderSets& sets;
  std::uint32_t words;
  bool started = false;
  std::uint64_t first[PrefixIndex::kMaxWorkers / 64];
  std::uint64_t gpu[PrefixIndex::kMaxWorkers / 64];
  std::uint32_t by_worker[PrefixIndex::kMaxWorkers];

  explicit GpuTier(const HolderSets& holder_sets) : sets(holder_sets), words(holder_sets.words()) {}

  bool change(std::uint32_t depth, HolderSetId set) {
    const std::uint64_t* const bits = sets.bits(set);
    std::uint64_t any = 0;
    if (!started) {
      started = true;
      for (std::uint32_t k = 0; k < words; ++k) {
        first[k] = gpu[k] = bits[k];
        any |= bits[k];
      }
      return any != 0;
    }
    for (std::uint32_t k = 0; k < words; ++k) {
      for (std::uint64_t dropped = gpu[k] & ~bits[k]; dropped != 0; dropped &= dropped - 1) {
        by_worker[k * 64 + static_cast<std::uint32_t>(std::countr_zero(dropped))] = depth;
      }
      gpu[k] &= bits[k];
      any |= gpu[k];
    }
    return any != 0;
  }

  std::uint32_t finish(std::uint32_t depth, WorkerId* workers, std::uint32_t* depths) const {
    if (!started) return 0;
    std::uint32_t count = 0;
    for (std::uint32_t k = 0; k < words; ++k) {
      for (std::uint64_t left = first[k]; left != 0; left &= left - 1) {
        const auto bit = static_cast<std::uint32_t>(std::countr_zero(left));
        workers[count] = k * 64 + bit;
        depths[count] = (gpu[k] >> bit & 1) != 0 ? depth : by_worker[k * 64 + bit];
        ++count;
      }
    }
    return count;
  }
};

}  // namespace

void PrefixIndex::prefetch(std::span<const BlockHash> chain) const {
  for (std::size_t k = 0; k < chain.size() && k < kFetchAhead * kLine; k += kLine) prefetch_entry(chain[k]);
}

std::uint32_t PrefixIndex::match(std::span<const BlockHash> chain, std::uint32_t* depth) const {
  if (!chain.empty()) prefetch_entry(chain[0]);
  std::memset(depth, 0, static_cast<std::size_t>(max_workers_) * kTierCount * sizeof(std::uint32_t));
  AllTiers tiers(sets_, depth);
  const std::uint32_t reached = walk(chain, tiers);
  if (tiers.started) tiers.finish(reached);
  return reached;
}

std::uint32_t PrefixIndex::match_gpu(std::span<const BlockHash> chain, WorkerId* workers, std::uint32_t* depths) const {
  GpuTier tier(sets_);
  const std::uint32_t reached = walk(chain, tier);
  return tier.finish(reached, workers, depths);
}

// ---- inspection -----------------------------------------------------------------------------------------------------------------

PrefixIndexStats PrefixIndex::stats() const {
  const std::uint64_t bytes = table_size_ * sizeof(Entry) + unused_line_ * (kLine * sizeof(BlockHash) + sizeof(Line)) +
                              unused_mixed_ * sizeof(MixedSets) + sets_.bytes() +
                              holder_blocks_of_.capacity() * sizeof(std::uint64_t);
  return {blocks_, holder_blocks_, sets_.live(), lines_in_use_, mixed_in_use_, bytes, unknown_removals_};
}

std::uint64_t PrefixIndex::digest() const {
  std::uint64_t digest = 0;
  for (std::uint32_t line = 1; line < unused_line_; ++line) {
    for (std::uint32_t left = lines_[line].occupied; left != 0; left &= left - 1) {
      const Place place = line * kLine + static_cast<std::uint32_t>(std::countr_zero(left));
      digest += mix64(hashes_[place] ^ mix64(sets_.signature(set_at(place))));
    }
  }
  return digest;
}

bool PrefixIndex::verify() const {
  if (!sets_.verify()) return false;

  // Every occupied place is found under its hash, and its set has holders.
  std::vector<std::uint32_t> references(sets_.ids(), 0);
  std::vector<std::uint64_t> of_holder(holder_blocks_of_.size(), 0);
  std::uint64_t blocks = 0;
  std::uint64_t holder_blocks = 0;
  std::uint64_t lines = 0;
  std::uint64_t mixed = 0;
  for (std::uint32_t line = 1; line < unused_line_; ++line) {
    const Line header = lines_[line];
    if (header.occupied == 0) {
      if (header.mixed != 0) return false;
      continue;
    }
    ++lines;
    mixed += header.mixed;
    bool differs = false;
    HolderSetId before = kEmptySet;
    for (std::uint32_t left = header.occupied; left != 0; left &= left - 1) {
      const Place place = line * kLine + static_cast<std::uint32_t>(std::countr_zero(left));
      const HolderSetId set = set_at(place);
      if (set == kEmptySet || set >= references.size()) return false;
      if (find(hashes_[place]) != place) return false;
      differs |= before != kEmptySet && set != before;
      before = set;
      ++blocks;
      ++references[set];
      holder_blocks += sets_.holders(set);
    }
    if (differs != (header.mixed != 0)) return false;
  }
  if (blocks != blocks_ || holder_blocks != holder_blocks_) return false;
  if (lines != lines_in_use_ || mixed != mixed_in_use_ || blocks > max_blocks_) return false;

  for (HolderSetId set = 1; set < references.size(); ++set) {
    if (sets_.references(set) != references[set]) return false;
    if (references[set] == 0) continue;
    for (std::uint32_t holder = 0; holder < of_holder.size(); ++holder) {
      if (sets_.contains(set, holder)) of_holder[holder] += references[set];
    }
  }
  if (of_holder != holder_blocks_of_) return false;

  // The table names occupied places only, and as many as there are.
  std::uint64_t entries = 0;
  for (std::uint64_t i = 0; i < table_size_; ++i) {
    const Entry entry = table_[i];
    if (entry.place == 0) continue;
    ++entries;
    if (entry.place / kLine >= unused_line_ || tag_of(hashes_[entry.place]) != entry.tag) return false;
    if ((lines_[entry.place / kLine].occupied >> (entry.place % kLine) & 1) == 0) return false;
  }
  if (entries != blocks_) return false;

  // The free lists hold exactly what is not in use.
  std::uint64_t free_lines = 0;
  for (std::uint32_t line = free_line_; line != 0; line = lines_[line].set) {
    if (line >= unused_line_ || lines_[line].occupied != 0 || ++free_lines > unused_line_) return false;
  }
  std::uint64_t free_mixed = 0;
  for (std::uint32_t i = free_mixed_; i != 0; i = mixed_[i].set[0]) {
    if (i >= unused_mixed_ || ++free_mixed > unused_mixed_) return false;
  }
  return free_lines + lines_in_use_ + 1 == unused_line_ && free_mixed + mixed_in_use_ + 1 == unused_mixed_;
}

}  // namespace saga
