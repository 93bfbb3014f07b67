#include "kv_flow.hpp"

#include <utility>

#include "cluster.hpp"

namespace saga {
namespace {

constexpr Time kIdleLimit = 1'800'000'000;

}  // namespace

KvFlow::KvFlow(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload)
    : by_task_(options.parameter(0, 1.0) > 0),
      host_tier_(cluster.host_tier_tokens > 0),
      affinity_(PlacementKind::kAffinity, options.seed),
      sessions_(workload.tasks(), cluster.workers, kIdleLimit),
      prefetch_(workload.calls()),
      last_call_(workload.calls(), kNone),
      next_thread_(workload.calls(), kNone),
      first_thread_(workload.tasks(), kNone) {}

WorkerId KvFlow::place(CallId call, Time now, ClusterControl& cluster) {
  const std::uint32_t task = cluster.task(call);
  const ThreadId thread = cluster.thread(call);
  sessions_.forget_idle(now);
  if (host_tier_) prefetch_.call_sent(thread, now);
  if (!by_task_) return affinity_.place(call, now, cluster);
  if (sessions_.worker(task) == kNone) sessions_.bind(task, sessions_.least_context(), now);
  sessions_.call_opened(task, cluster.prompt_tokens(call));
  return sessions_.worker(task);
}

void KvFlow::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                           ClusterControl& cluster) {
  const std::uint32_t task = cluster.task(call);
  const ThreadId thread = cluster.thread(call);
  if (by_task_) sessions_.call_closed(task, cluster.prompt_tokens(call), cluster.output_tokens(call), now);
  if (last_call_[thread] == kNone) next_thread_[thread] = std::exchange(first_thread_[task], thread);
  last_call_[thread] = call;
  if (host_tier_) prefetch_.call_finished(call, worker, stop, tool, now, cluster);
}

void KvFlow::task_finished(std::uint32_t task, Time, ClusterControl& cluster) {
  for (ThreadId thread = first_thread_[task]; thread != kNone; thread = std::exchange(next_thread_[thread], kNone)) {
    const CallId call = std::exchange(last_call_[thread], kNone);
    for (WorkerId worker = 0; worker < cluster.workers(); ++worker) {
      if (!by_task_ || worker == sessions_.worker(task)) cluster.drop(call, worker);
    }
  }
  first_thread_[task] = kNone;
  sessions_.task_over(task);
}

}  // namespace saga
