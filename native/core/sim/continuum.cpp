#include "continuum.hpp"

#include <algorithm>
#include <utility>

#include "../base/assert.hpp"
#include "cluster.hpp"

namespace saga {
namespace {

constexpr std::size_t kClasses = 15;
constexpr std::size_t kGapsKept = 256;
constexpr std::size_t kGapsNeeded = 5;
constexpr double kDelayWeight = 0.02;          // of a new delay in the moving average
constexpr Time kUntilServed = 86'400'000'000;  // a returning call's lease; released at its first token
constexpr std::uint32_t kProfiledChunk = 2'048;

Time microseconds(double seconds) { return static_cast<Time>(std::max(0.0, seconds) * 1e6); }

double prefill_profile(const ClusterOptions& cluster) {
  StepLoad load;
  load.add_prefill(kProfiledChunk, 8 * kProfiledChunk);
  return static_cast<double>(cluster.step_time().step(load)) / kProfiledChunk;
}

}  // namespace

Continuum::Continuum(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload)
    : memory_weight_(options.parameter(0, 0.1)),
      queue_weight_(options.parameter(1, 1.0)),
      longest_ttl_(microseconds(options.parameter(2, 300.0))),
      cold_ttl_(microseconds(options.parameter(3, 2.0))),
      prefill_microseconds_(prefill_profile(cluster)),
      threads_(workload.calls()),
      tasks_(workload.tasks()),
      sent_(workload.calls(), 0),
      uncached_(workload.calls(), 0),
      context_(cluster.workers, 0),
      classes_(kClasses) {}

void Continuum::observe_gap(StopReason stop, ToolClass tool, Time gap) {
  GapClass& one = classes_[class_of(stop, tool)];
  ++one.followed;
  if (one.ring.size() < kGapsKept) {
    one.ring.push_back(gap);
  } else {
    const Time forgotten = std::exchange(one.ring[one.next], gap);
    one.next = static_cast<std::uint32_t>((one.next + 1) % kGapsKept);
    one.sorted.erase(std::lower_bound(one.sorted.begin(), one.sorted.end(), forgotten));
  }
  one.sorted.insert(std::upper_bound(one.sorted.begin(), one.sorted.end(), gap), gap);
}

Time Continuum::time_to_live(StopReason stop, ToolClass tool, std::uint32_t tokens) const {
  const GapClass& one = classes_[class_of(stop, tool)];
  const std::vector<Time>& gaps = one.sorted;
  if (gaps.size() < kGapsNeeded) return stop == StopReason::kEndTurn ? 0 : cold_ttl_;
  // Answers that are still to be followed count as if they were not: at most as many as programs are live.
  const double comes = static_cast<double>(one.followed) / static_cast<double>(std::max(one.ended, one.followed));
  const double saved = prefill_microseconds_ * tokens + queue_weight_ * mean_delay_;
  const auto n = static_cast<double>(gaps.size());
  double best = 0;
  Time ttl = 0;
  double before = 0;  // sum of the gaps up to the ttl
  for (std::size_t i = 0; i < gaps.size() && gaps[i] <= longest_ttl_; ++i) {
    const auto gap = static_cast<double>(gaps[i]);
    before += gap;
    if (i + 1 < gaps.size() && gaps[i + 1] == gaps[i]) continue;
    const auto within = static_cast<double>(i + 1);
    const double held = comes * (before + (n - within) * gap) / n + (1 - comes) * gap;
    const double value = comes * within / n * saved - memory_weight_ * held;
    if (value <= best) continue;
    best = value;
    ttl = gaps[i] + 1;  // a lease that ends with the gap would be gone when the call comes
  }
  return ttl;
}

// The context that a thread takes on its worker, or nothing where it is neither open nor leased.
void Continuum::count(ThreadId id) {
  Thread& thread = threads_[id];
  if (thread.worker == kNone) return;
  const bool holds = thread.open_calls > 0 || thread.lease != kNoLease;
  const std::uint32_t counted = holds ? thread.tokens : 0;
  context_[thread.worker] += counted;
  context_[thread.worker] -= thread.counted;
  thread.counted = counted;
}

WorkerId Continuum::place(CallId call, Time now, ClusterControl& cluster) {
  const ThreadId id = cluster.thread(call);
  const std::uint32_t number = cluster.task(call);
  Thread& thread = threads_[id];
  Task& task = tasks_[number];
  if (task.order == kNone) task.order = next_order_++;
  if (thread.idle_since != kNotDeclared) {
    observe_gap(static_cast<StopReason>(thread.last_class / 5), static_cast<ToolClass>(thread.last_class % 5),
                now - thread.idle_since);
    thread.idle_since = kNotDeclared;
  }
  if (thread.worker == kNone) {
    thread.next_of_task = task.first_thread;
    task.first_thread = id;
    if (task.worker == kNone) {
      task.worker = static_cast<WorkerId>(std::min_element(context_.begin(), context_.end()) - context_.begin());
    }
    thread.worker = task.worker;
  }
  if (thread.lease != kNoLease) {
    const LeaseId kept = thread.lease;
    const LeaseId extended = cluster.lease(call, thread.worker, ~std::uint64_t{task.order}, now + kUntilServed);
    if (extended != kNoLease) {
      thread.lease = extended;
      cluster.release(kept);
    }
  }
  ++thread.open_calls;
  thread.tokens = cluster.prompt_tokens(call);
  count(id);
  sent_[call] = now;
  const std::uint32_t cached = cluster.cached_pages(call, thread.worker) * cluster.page_tokens();
  uncached_[call] = cluster.prompt_tokens(call) - std::min(cached, cluster.prompt_tokens(call));
  return thread.worker;
}

std::int32_t Continuum::priority(CallId call, Time, ClusterControl& cluster) {
  return static_cast<std::int32_t>(tasks_[cluster.task(call)].order);
}

void Continuum::first_token(CallId call, WorkerId, Time now, ClusterControl& cluster) {
  const double own = prefill_microseconds_ * uncached_[call];
  const double delay = std::max(0.0, static_cast<double>(now - sent_[call]) - own);
  mean_delay_ += kDelayWeight * (delay - mean_delay_);
  Thread& thread = threads_[cluster.thread(call)];
  if (thread.lease != kNoLease) cluster.release(std::exchange(thread.lease, kNoLease));
}

void Continuum::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                              ClusterControl& cluster) {
  const ThreadId id = cluster.thread(call);
  Thread& thread = threads_[id];
  SAGA_ASSERT(thread.open_calls > 0);
  --thread.open_calls;
  thread.tokens = cluster.prompt_tokens(call) + cluster.output_tokens(call);
  thread.last_class = class_of(stop, tool);
  thread.idle_since = now;
  observe_end(stop, tool);
  const Time ttl = time_to_live(stop, tool, thread.tokens);
  if (ttl > 0 && thread.open_calls == 0) {
    const LeaseId lease = cluster.lease(call, worker, ~std::uint64_t{tasks_[cluster.task(call)].order}, now + ttl);
    if (thread.lease != kNoLease) cluster.release(thread.lease);
    thread.lease = lease;
  }
  count(id);
}

void Continuum::task_finished(std::uint32_t number, Time, ClusterControl& cluster) {
  Task& task = tasks_[number];
  for (ThreadId id = task.first_thread; id != kNone;) {
    Thread& thread = threads_[id];
    SAGA_ASSERT(thread.open_calls == 0);
    if (thread.lease != kNoLease) cluster.release(std::exchange(thread.lease, kNoLease));
    count(id);
    id = std::exchange(thread, {}).next_of_task;
  }
  task = {};
}

void Continuum::lease_reported(const LeaseReport& report, Time, ClusterControl& cluster) {
  if (report.outcome == LeaseOutcome::kGranted || report.outcome == LeaseOutcome::kRefused) return;
  const ThreadId id = cluster.thread(report.call);
  Thread& thread = threads_[id];
  if (thread.lease != report.lease) return;  // released, or replaced
  thread.lease = kNoLease;
  count(id);
}

bool Continuum::verify() const {
  std::vector<std::uint64_t> context(context_.size(), 0);
  for (const Thread& thread : threads_) {
    if (thread.worker == kNone) {
      if (thread.counted > 0 || thread.open_calls > 0 || thread.lease != kNoLease) return false;
      continue;
    }
    if (thread.worker >= context.size()) return false;
    if (thread.counted != (thread.open_calls > 0 || thread.lease != kNoLease ? thread.tokens : 0)) return false;
    context[thread.worker] += thread.counted;
  }
  for (const GapClass& one : classes_) {
    std::vector<Time> sorted = one.ring;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != one.sorted) return false;
  }
  return context == context_;
}

}  // namespace saga
