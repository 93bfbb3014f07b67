// RegretMeter: how far a live cache is from the optimum, on the requests that it has just seen.
//
// It keeps the last `window` calls of one cache, with their starts and ends and the pages that each missed, and replays them
// from time to time under Belady's MIN at the cache's size, running calls pinned (as the pinned model of cache replay). The
// first `warm_up` of them fill the optimum's cache, which begins empty; over the others the misses of both are compared.
// The optimum knows the window only: towards its end it takes pages for dead that come back later, as any finite trace does.
//
// Cost: O(1) a call, and every `every` calls a replay of the window, O(nodes on its paths) and O(nodes of the tree) of memory for
// as long as it lasts; with window 2,048 and every 1,024 that is about two more look-ups a call. Memory otherwise: 12 bytes an
// event. A call that starts again after a preemption counts once. Deterministic; it never changes what a cache does.
#pragma once

#include <cstdint>
#include <vector>

#include "page_tree.hpp"

namespace saga {

class RegretMeter {
 public:
  struct Options {
    std::uint32_t capacity_pages = 1;
    std::uint32_t window = 2048;  // calls, at least 1
    std::uint32_t warm_up = 512;  // of these, fewer than window
    std::uint32_t every = 1024;   // calls between two replays; 0: only measure() replays
  };

  struct Reading {
    std::uint64_t calls = 0;         // compared, without the warm-up
    std::uint64_t missed_pages = 0;  // by the cache
    std::uint64_t optimum_missed = 0;
    // 0 where nothing was compared or the optimum missed nothing.
    double ratio() const {
      return optimum_missed == 0 ? 0 : static_cast<double>(missed_pages) / static_cast<double>(optimum_missed);
    }
  };

  // The tree must outlive the meter.
  RegretMeter(const PageTree& tree, const Options& options);

  void call_started(CallId call, std::uint32_t missed_pages);
  void call_ended(CallId call);

  // The latest replay; measure() makes one now.
  const Reading& reading() const { return reading_; }
  Reading measure() const;

  std::uint32_t calls() const { return starts_; }  // in the window

  bool verify() const;

 private:
  struct Event {
    CallId call;
    std::uint32_t missed_pages;
    bool end;
  };
  void append(const Event& event);
  const Event& event(std::size_t i) const { return ring_[(first_ + i) % ring_.size()]; }

  const PageTree& tree_;
  const Options options_;
  std::vector<Event> ring_;  // of fixed length: a window has at most as many ends as starts
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  std::uint32_t starts_ = 0;
  std::uint32_t since_replay_ = 0;
  std::vector<bool> seen_;  // by call: it has started once
  Reading reading_;
};

}  // namespace saga
