#include "kv_flow.hpp"

#include "cluster.hpp"

namespace saga {
namespace {

constexpr Time kIdleLimit = 1'800'000'000;

}  // namespace

KvFlow::KvFlow(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload)
    : by_task_(options.parameter(0, 1.0) > 0),
      host_tier_(cluster.host_tier_tokens > 0),
      affinity_(PlacementKind::kAffinity, options.seed),
      sessions_(workload.tasks(), workload.calls(), cluster.workers, kIdleLimit),
      prefetch_(workload.calls()) {}

WorkerId KvFlow::place(CallId call, Time now, ClusterControl& cluster) {
  const std::uint32_t task = cluster.task(call);
  sessions_.forget_idle(now);
  if (host_tier_) prefetch_.call_sent(cluster.thread(call), now);
  WorkerId worker = by_task_ ? sessions_.worker(task) : affinity_.place(call, now, cluster);
  if (worker == kNone) worker = sessions_.least_context();
  if (worker != sessions_.worker(task)) {
    if (sessions_.worker(task) != kNone) sessions_.drop_threads(task, cluster);
    sessions_.bind(task, worker, now);
  }
  sessions_.call_opened(task, cluster.prompt_tokens(call));
  sessions_.thread_called(task, cluster.thread(call), call);
  return worker;
}

void KvFlow::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                           ClusterControl& cluster) {
  sessions_.call_closed(cluster.task(call), cluster.prompt_tokens(call), cluster.output_tokens(call), now);
  if (host_tier_) prefetch_.call_finished(call, worker, stop, tool, now, cluster);
}

void KvFlow::task_finished(std::uint32_t task, Time, ClusterControl& cluster) {
  sessions_.drop_threads(task, cluster);
  sessions_.task_over(task);
}

}  // namespace saga
