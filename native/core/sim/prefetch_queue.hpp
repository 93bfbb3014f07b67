// PrefetchQueue: contexts whose thread is idle are brought back from a worker's host memory shortly before the thread is
// expected to run again.
//
// The expected gap after an answer is the median of the last gaps after answers of its class (stop reason x tool class); the
// load is started so that it is done by then. A thread that comes earlier, or a cache that still holds everything, makes it
// void. Cost: O(log idle threads) a call and O(64) a gap; one look at the cache when a load is due. Memory: 16 bytes a thread and
// a load under way. Invariants (verify()): a heap by time; the gaps of a class are sorted.
#pragma once

#include <vector>

#include "../place/cluster_control.hpp"

namespace saga {

class PrefetchQueue {
 public:
  explicit PrefetchQueue(std::uint32_t threads);

  void call_sent(ThreadId thread, Time now);
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now, ClusterControl& cluster);
  void timer(Time now, ClusterControl& cluster);
  std::uint64_t loads() const { return loads_; }
  bool verify() const;

 private:
  struct Thread {
    Time idle_since = kNotDeclared;
    std::uint32_t gap_class = 0;
    std::uint32_t generation = 0;
  };
  struct Due {
    Time time;
    CallId call;
    WorkerId worker;
    ThreadId thread;
    std::uint32_t generation;
  };
  struct GapClass {
    std::vector<Time> ring;
    std::vector<Time> sorted;
    std::uint32_t next = 0;
  };
  static bool later(const Due& a, const Due& b) { return a.time != b.time ? a.time > b.time : a.call > b.call; }

  std::vector<Thread> threads_;
  std::vector<Due> heap_;
  std::vector<GapClass> classes_;
  std::uint64_t loads_ = 0;
};

}  // namespace saga
