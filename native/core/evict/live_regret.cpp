#include "live_regret.hpp"

#include <utility>

#include "../base/assert.hpp"
#include "../pages/block_hash_map.hpp"

namespace saga {

LiveRegret::LiveRegret(std::uint32_t capacity_pages, std::uint32_t max_open, std::uint32_t max_calls,
                       std::size_t max_hashes)
    : capacity_(capacity_pages),
      hashes_(max_hashes),
      calls_(max_calls),
      events_(std::size_t{max_calls} * 2 + max_open),
      call_of_slot_(max_open, kNoCall) {
  SAGA_ASSERT(max_calls > 0 && max_hashes > 0);
}

// The oldest call, and the events before the start of the next one.
void LiveRegret::forget_first() {
  hash_count_ -= call(first_call_).length;
  first_hash_ = (first_hash_ + call(first_call_).length) % hashes_.size();
  ++first_call_;
  --call_count_;
  while (event_count_ > 0 && (event(0).end || event(0).call < first_call_)) {
    first_event_ = (first_event_ + 1) % events_.size();
    --event_count_;
  }
}

void LiveRegret::append(const Event& event) { events_[(first_event_ + event_count_++) % events_.size()] = event; }

void LiveRegret::call_started(CallId slot, std::span<const BlockHash> chain, std::uint32_t missed_pages) {
  call_of_slot_[slot] = kNoCall;
  if (chain.size() > hashes_.size()) return;
  while (call_count_ == calls_.size() || hash_count_ + chain.size() > hashes_.size()) forget_first();
  const std::uint64_t number = first_call_ + call_count_++;
  std::size_t at = (first_hash_ + hash_count_) % hashes_.size();
  call(number) = {at, static_cast<std::uint32_t>(chain.size()), missed_pages};
  for (const BlockHash hash : chain) {
    hashes_[at] = hash;
    at = at + 1 == hashes_.size() ? 0 : at + 1;
  }
  hash_count_ += chain.size();
  append({number, false});
  call_of_slot_[slot] = number;
}

void LiveRegret::call_ended(CallId slot) {
  const std::uint64_t number = std::exchange(call_of_slot_[slot], kNoCall);
  if (number != kNoCall && number >= first_call_) append({number, true});
}

RegretMeter::Reading LiveRegret::measure() const {
  if (call_count_ < 2) return {};
  // Pages are numbered in order of appearance, so that a chain is a few runs of consecutive ids.
  Workload workload;
  workload.block_tokens = 1;
  workload.call_first_run.push_back(0);
  BlockHashMap id_of(static_cast<std::uint32_t>(hash_count_));
  for (std::uint64_t number = first_call_; number < first_call_ + call_count_; ++number) {
    const Call& one = call(number);
    const std::size_t first_run = workload.run_first_id.size();
    for (std::uint32_t i = 0; i < one.length; ++i) {
      const BlockHash hash = hashes_[(one.first_hash + i) % hashes_.size()];
      std::uint32_t id = id_of.find(hash);
      if (id == kNone) id_of.insert(hash, id = id_of.size());
      if (workload.run_first_id.size() > first_run && workload.run_first_id.back() + workload.run_length.back() == id) {
        ++workload.run_length.back();
      } else {
        workload.run_first_id.push_back(id);
        workload.run_length.push_back(1);
      }
    }
    workload.call_first_run.push_back(static_cast<std::uint32_t>(workload.run_first_id.size()));
    workload.call_thread.push_back(kNone);
    workload.prompt_tokens.push_back(one.length > 0 ? one.length : 1);
    workload.output_tokens.push_back(1);
    workload.prompt_kind.push_back(PromptKind::kStart);
    workload.stop_reason.push_back(StopReason::kUnknown);
    workload.tool_class.push_back(ToolClass::kNone);
  }
  const PageTree tree = PageTree::for_cache(workload, 1);
  RegretMeter::Options options;
  options.capacity_pages = capacity_;
  options.window = call_count_;
  options.warm_up = call_count_ / 4;
  options.every = 0;
  RegretMeter meter(tree, options);
  for (std::size_t i = 0; i < event_count_; ++i) {
    if (event(i).call < first_call_) continue;  // the end of a call that has left the window
    const auto number = static_cast<CallId>(event(i).call - first_call_);
    if (event(i).end) {
      meter.call_ended(number);
    } else {
      meter.call_started(number, call(event(i).call).missed_pages);
    }
  }
  return meter.measure();
}

bool LiveRegret::verify() const {
  std::size_t hashes = 0;
  std::size_t at = first_hash_;
  for (std::uint64_t number = first_call_; number < first_call_ + call_count_; ++number) {
    if (call(number).first_hash != at) return false;
    hashes += call(number).length;
    at = (at + call(number).length) % hashes_.size();
  }
  std::uint64_t starts = first_call_;
  for (std::size_t i = 0; i < event_count_; ++i) {
    if (event(i).end ? event(i).call >= starts : event(i).call != starts++) return false;
  }
  return hashes == hash_count_ && starts == first_call_ + call_count_ && event_count_ <= events_.size();
}

}  // namespace saga
