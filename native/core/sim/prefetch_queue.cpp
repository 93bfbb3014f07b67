#include "prefetch_queue.hpp"

#include <algorithm>
#include <utility>

namespace saga {
namespace {

constexpr std::size_t kClasses = 15;
constexpr std::size_t kGapsKept = 64;
constexpr std::size_t kGapsNeeded = 5;

}  // namespace

PrefetchQueue::PrefetchQueue(std::uint32_t threads) : threads_(threads), classes_(kClasses) {}

void PrefetchQueue::call_sent(ThreadId id, Time now) {
  Thread& thread = threads_[id];
  ++thread.generation;
  if (thread.idle_since == kNotDeclared) return;
  const Time gap = now - std::exchange(thread.idle_since, kNotDeclared);
  GapClass& one = classes_[thread.gap_class];
  if (one.ring.size() < kGapsKept) {
    one.ring.push_back(gap);
  } else {
    const Time forgotten = std::exchange(one.ring[one.next], gap);
    one.next = static_cast<std::uint32_t>((one.next + 1) % kGapsKept);
    one.sorted.erase(std::lower_bound(one.sorted.begin(), one.sorted.end(), forgotten));
  }
  one.sorted.insert(std::upper_bound(one.sorted.begin(), one.sorted.end(), gap), gap);
}

void PrefetchQueue::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                                  ClusterControl& cluster) {
  const ThreadId id = cluster.thread(call);
  Thread& thread = threads_[id];
  thread.idle_since = now;
  thread.gap_class = static_cast<std::uint32_t>(stop) * 5 + static_cast<std::uint32_t>(tool);
  ++thread.generation;
  const std::vector<Time>& gaps = classes_[thread.gap_class].sorted;
  if (gaps.size() < kGapsNeeded) return;
  const Time load =
      cluster.copy_time((cluster.prompt_tokens(call) + cluster.output_tokens(call)) / cluster.page_tokens());
  const Time expected = gaps[gaps.size() / 2];
  const Time due = now + (expected > load ? expected - load : 0);
  heap_.push_back({due, call, worker, id, thread.generation});
  std::push_heap(heap_.begin(), heap_.end(), later);
  cluster.wake_at(due);
}

void PrefetchQueue::timer(Time now, ClusterControl& cluster) {
  while (!heap_.empty() && heap_.front().time <= now) {
    const Due due = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end(), later);
    heap_.pop_back();
    if (threads_[due.thread].generation != due.generation) continue;
    if (cluster.copy(due.call, due.worker, due.worker) > 0) ++loads_;
  }
}

bool PrefetchQueue::verify() const {
  if (!std::is_heap(heap_.begin(), heap_.end(), later)) return false;
  for (const GapClass& one : classes_) {
    std::vector<Time> sorted = one.ring;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != one.sorted) return false;
  }
  return true;
}

}  // namespace saga
