#include "cache_replay.hpp"

#include <algorithm>
#include <vector>

#include "../base/assert.hpp"
#include "../evict/page_cache.hpp"
#include "page_cost.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kProgressEvery = 256;

class CacheReplay {
 public:
  CacheReplay(const Workload& workload, const PageTree& tree, const CacheSchedule& schedule,
              const CacheReplayOptions& options)
      : workload_(workload),
        tree_(tree),
        schedule_(schedule),
        options_(options),
        requests_(std::min(options.request_limit, static_cast<std::uint32_t>(schedule.call.size()))),
        order_of_end_(requests_by_end()),
        peak_(most_at_once()),
        cache_(tree, options.capacity_pages, peak_, options.policy, FutureRequests{schedule.call.data(), requests_}) {
    for (std::uint32_t slot = peak_; slot-- > 0;) free_slots_.push_back(slot);
    slot_of_request_.assign(requests_, kNone);
  }

  CacheReplayResult run() {
    for (std::uint32_t i = 0; i < requests_; ++i) {
      const Time now = schedule_.start[i];
      while (ends_before(ended_, i)) end(order_of_end_[ended_++]);
      start(i, now);
      if (options_.progress != nullptr && i % kProgressEvery == 0) options_.progress->store(i);
    }
    if (options_.progress != nullptr) options_.progress->store(requests_);
    result_.requests = requests_;
    result_.evicted_pages = cache_.evicted_total();
    result_.decisions = cache_.decisions();
    result_.requested_cost = static_cast<double>(requested_cost_) / 120000.0;
    result_.missed_cost = static_cast<double>(missed_cost_) / 120000.0;
    result_.peak_running = peak_;
    return result_;
  }

 private:
  bool pinned() const { return options_.model == CacheModel::kPinned; }

  // Whether the next request to end does so before request `next` starts.
  bool ends_before(std::uint32_t ended, std::uint32_t next) const {
    return ended < requests_ && schedule_.end[order_of_end_[ended]] <= schedule_.start[next] &&
           order_of_end_[ended] < next;
  }

  std::vector<std::uint32_t> requests_by_end() const {
    std::vector<std::uint32_t> order(requests_);
    for (std::uint32_t i = 0; i < requests_; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return schedule_.end[a] < schedule_.end[b]; });
    return order;
  }

  // The most requests that run at once: slots are bounded from the start.
  std::uint32_t most_at_once() const {
    std::uint32_t most = 1;
    std::uint32_t ended = 0;
    for (std::uint32_t i = 0; pinned() && i < requests_; ++i) {
      while (ends_before(ended, i)) ++ended;
      most = std::max(most, i + 1 - ended);
    }
    return most;
  }

  void start(std::uint32_t request, Time now) {
    const CallId call = schedule_.call[request];
    CallStart info;
    info.call = call;
    info.thread = options_.infer_threads ? kNone : workload_.call_thread[call];
    info.prompt_leaf = info.path_leaf = tree_.prompt_leaf(call);
    info.prompt_kind = workload_.prompt_kind[call];
    const std::uint32_t slot = free_slots_.back();
    const std::uint32_t pages = tree_.path_pages(info.prompt_leaf);
    const std::uint64_t begun = clock();
    const std::uint32_t hits = cache_.start(slot, info, pages, now);
    cache_.insert(slot, pages - hits);
    if (pinned()) {
      free_slots_.pop_back();
      slot_of_request_[request] = slot;
    } else {
      cache_.unpin(slot);
    }
    cut(now, begun);
    result_.requested_pages += pages;
    result_.missed_pages += pages - hits;
    requested_cost_ += page_cost(tree_.page_tokens(), 0, pages);
    missed_cost_ += page_cost(tree_.page_tokens(), hits, pages);
  }

  void end(std::uint32_t request) {
    const CallId call = schedule_.call[request];
    const Time now = schedule_.end[request];
    CallEnd info{call, workload_.stop_reason[call], workload_.tool_class[call], tree_.prompt_leaf(call)};
    info.output_tokens = workload_.output_tokens[call];
    if (!schedule_.session_end.empty()) info.session_end = schedule_.session_end[request] != 0;
    if (!schedule_.declared_gap.empty()) info.declared_gap = schedule_.declared_gap[request];
    const std::uint64_t begun = clock();
    if (!pinned()) {
      cache_.policy().call_ended(info, now);
      result_.policy_ns += clock() - begun;
      return;
    }
    const std::uint32_t slot = slot_of_request_[request];
    cache_.end(slot, info, now);
    free_slots_.push_back(slot);
    cut(now, begun);
  }

  std::uint64_t clock() const { return options_.now_ns != nullptr ? options_.now_ns() : 0; }

  // The end of a phase that began at `begun`.
  void cut(Time now, std::uint64_t begun) {
    if (cache_.used() > cache_.capacity()) {
      if (cache_.evictable() > 0) {
        const std::uint64_t before = clock();
        cache_.trim(now);
        const std::uint64_t after = clock();
        result_.cut_ns += after - before;
        result_.policy_ns += after - begun;
        ++result_.cuts;
        result_.overflows += cache_.used() > cache_.capacity();
        return;
      }
      ++result_.overflows;
    }
    result_.policy_ns += clock() - begun;
  }

  const Workload& workload_;
  const PageTree& tree_;
  const CacheSchedule& schedule_;
  const CacheReplayOptions options_;
  const std::uint32_t requests_;
  const std::vector<std::uint32_t> order_of_end_;
  const std::uint32_t peak_;
  PageCache cache_;
  std::uint32_t ended_ = 0;
  std::uint64_t requested_cost_ = 0;
  std::uint64_t missed_cost_ = 0;
  std::vector<std::uint32_t> slot_of_request_;
  std::vector<std::uint32_t> free_slots_;
  CacheReplayResult result_;
};

}  // namespace

CacheReplayResult replay_cache(const Workload& workload, const PageTree& tree, const CacheSchedule& schedule,
                               const CacheReplayOptions& options) {
  SAGA_ASSERT(schedule.call.size() == schedule.start.size() && schedule.call.size() == schedule.end.size());
  return CacheReplay(workload, tree, schedule, options).run();
}

}  // namespace saga
