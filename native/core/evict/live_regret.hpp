// LiveRegret: how far a live cache is from Belady's optimum on the calls that it has just seen. What RegretMeter is to
// calls of a workload (evict/regret.hpp), for calls that are known by their chains of hashes only.
//
// It keeps the chains of the last calls, at most `max_calls` of them and at most `max_hashes` hashes together, with
// what each missed; measure() makes a workload of them and lets RegretMeter replay it at the cache's size. The first
// quarter of the calls warms the optimum up. The optimum has the room of the whole cache for prompts; the cache itself
// also holds answers and unfinished blocks, so the regret is, if anything, overstated.
//
// Cost: a call copies its chain, measure() about 50 ns a hash. Memory: 8 bytes a hash and 40 a call, allocated at
// construction.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../base/types.hpp"
#include "regret.hpp"

namespace saga {

class LiveRegret {
 public:
  LiveRegret(std::uint32_t capacity_pages, std::uint32_t max_open, std::uint32_t max_calls, std::size_t max_hashes);

  // `slot`: of the calls that are open, below max_open. A chain longer than max_hashes is left out.
  void call_started(CallId slot, std::span<const BlockHash> chain, std::uint32_t missed_pages);
  void call_ended(CallId slot);

  std::uint32_t calls() const { return call_count_; }  // in the window
  RegretMeter::Reading measure() const;
  std::uint64_t memory_bytes() const {
    return hashes_.size() * sizeof(BlockHash) + calls_.size() * sizeof(Call) + events_.size() * sizeof(Event) +
           call_of_slot_.size() * sizeof(std::uint64_t);
  }
  bool verify() const;

 private:
  struct Call {
    std::size_t first_hash = 0;  // in the ring
    std::uint32_t length = 0;
    std::uint32_t missed_pages = 0;
  };
  // Calls are counted from the beginning of time; those of the window are [first_call_, first_call_ + call_count_).
  struct Event {
    std::uint64_t call;
    bool end;
  };
  static constexpr std::uint64_t kNoCall = ~std::uint64_t{0};

  Call& call(std::uint64_t number) { return calls_[number % calls_.size()]; }
  const Call& call(std::uint64_t number) const { return calls_[number % calls_.size()]; }
  const Event& event(std::size_t i) const { return events_[(first_event_ + i) % events_.size()]; }
  void forget_first();
  void append(const Event& event);

  const std::uint32_t capacity_;
  std::vector<BlockHash> hashes_;  // rings, all three
  std::vector<Call> calls_;
  std::vector<Event> events_;
  std::size_t first_hash_ = 0;
  std::size_t hash_count_ = 0;
  std::uint64_t first_call_ = 0;
  std::uint32_t call_count_ = 0;
  std::size_t first_event_ = 0;
  std::size_t event_count_ = 0;
  std::vector<std::uint64_t> call_of_slot_;
};

}  // namespace saga
