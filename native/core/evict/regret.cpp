#include "regret.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "page_cache.hpp"

namespace saga {

RegretMeter::RegretMeter(const PageTree& tree, const Options& options)
    : tree_(tree), options_(options), ring_(std::size_t{options.window} * 2 + 2), seen_(tree.calls(), false) {
  SAGA_ASSERT(options.window > 0 && options.warm_up < options.window);
}

void RegretMeter::append(const Event& event) {
  while (count_ > 0 && (count_ == ring_.size() || (!event.end && starts_ == options_.window))) {
    if (!ring_[first_].end) --starts_;
    first_ = (first_ + 1) % ring_.size();
    --count_;
  }
  ring_[(first_ + count_++) % ring_.size()] = event;
  if (!event.end) ++starts_;
}

void RegretMeter::call_started(CallId call, std::uint32_t missed_pages) {
  if (seen_[call]) return;
  seen_[call] = true;
  append({call, missed_pages, false});
  if (options_.every == 0 || ++since_replay_ < options_.every || starts_ <= options_.warm_up) return;
  since_replay_ = 0;
  reading_ = measure();
}

void RegretMeter::call_ended(CallId call) {
  SAGA_ASSERT(seen_[call]);
  append({call, 0, true});
}

RegretMeter::Reading RegretMeter::measure() const {
  // Ends of calls that started before the window are no news to the replay.
  constexpr std::uint32_t kNoSlot = kNone;
  std::vector<std::uint32_t> slot_of(tree_.calls(), kNoSlot);
  std::vector<CallId> calls;
  std::uint32_t running = 0;
  std::uint32_t peak = 1;
  for (std::size_t i = 0; i < count_; ++i) {
    const Event& e = event(i);
    if (!e.end) {
      calls.push_back(e.call);
      slot_of[e.call] = 0;
      peak = std::max(peak, ++running);
    } else if (slot_of[e.call] != kNoSlot) {
      slot_of[e.call] = kNoSlot;
      --running;
    }
  }
  std::fill(slot_of.begin(), slot_of.end(), kNoSlot);
  std::vector<std::uint32_t> free_slots;
  for (std::uint32_t slot = peak; slot-- > 0;) free_slots.push_back(slot);

  PageCache cache(tree_, options_.capacity_pages, peak, PolicyKind::kBelady,
                  FutureRequests{calls.data(), static_cast<std::uint32_t>(calls.size())});
  Reading reading;
  std::uint32_t started = 0;
  for (std::size_t i = 0; i < count_; ++i) {
    const Event& e = event(i);
    if (e.end) {
      const std::uint32_t slot = slot_of[e.call];
      if (slot == kNoSlot) continue;
      slot_of[e.call] = kNoSlot;
      cache.unpin(slot);
      free_slots.push_back(slot);
      cache.trim(0);
      continue;
    }
    CallStart info;
    info.call = e.call;
    info.prompt_leaf = info.path_leaf = tree_.prompt_leaf(e.call);
    const std::uint32_t slot = free_slots.back();
    free_slots.pop_back();
    slot_of[e.call] = slot;
    const std::uint32_t pages = tree_.path_pages(info.prompt_leaf);
    const std::uint32_t missed = pages - cache.start(slot, info, pages, 0);
    cache.insert(slot, missed);
    cache.trim(0);
    if (started++ < options_.warm_up) continue;
    ++reading.calls;
    reading.missed_pages += e.missed_pages;
    reading.optimum_missed += missed;
  }
  return reading;
}

bool RegretMeter::verify() const {
  if (count_ > ring_.size() || starts_ > options_.window) return false;
  std::uint32_t starts = 0;
  for (std::size_t i = 0; i < count_; ++i) {
    if (!seen_[event(i).call]) return false;
    starts += !event(i).end;
  }
  return starts == starts_;
}

}  // namespace saga
