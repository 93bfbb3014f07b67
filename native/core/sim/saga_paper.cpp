#include "saga_paper.hpp"

#include <algorithm>
#include <cstddef>

#include "../base/assert.hpp"
#include "../base/real.hpp"
#include "cluster.hpp"

namespace saga {
namespace {

constexpr Time kEpoch = 100'000;
constexpr Time kIdleLimit = 1'800'000'000;
constexpr int kStealsAnEpoch = 4;
constexpr double kDeadlineFactor = 1.5;
constexpr double kShortestSlack = 1e-9;  // seconds; the official floor
constexpr double kRouterQueueWeight = 0.01;
constexpr double kStealerQueueWeight = 0.05;
constexpr double kPreemptionThreshold = 0.5;
// For tasks that declare nothing, before any has finished: the paper's SWE-bench class.
constexpr double kCallsAtFirst = 37;
constexpr double kSecondsAtFirst = 200;
constexpr double kSecondsACall = 4;
constexpr std::int32_t kPriorityStep = 1 << 20;

Time microseconds(double seconds) { return static_cast<Time>(std::max(0.0, seconds) * 1e6); }

double step_seconds(const ClusterOptions& cluster, std::uint64_t prefill, std::uint64_t decoding) {
  StepLoad step;
  if (prefill > 0) step.add_prefill(prefill, 8'192);
  for (std::uint64_t i = 0; i < decoding; ++i) step.add_decode(16'384);
  return static_cast<double>(cluster.step_time().step(step)) * 1e-6;
}

}  // namespace

Time SagaPaper::preemption_threshold(const ClusterPolicyOptions& options) {
  return options.has(kPartFairness) ? microseconds(options.parameter(5, kPreemptionThreshold)) : 0;
}

SagaPaper::SagaPaper(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload)
    : options_(options),
      theta_(options.parameter(0, 1.2)),
      strategy_(options.has(kPartFairness) ? static_cast<Strategy>(static_cast<int>(options.parameter(1, 3)))
                                           : Strategy::kBreadth),
      idle_before_stealing_(microseconds(options.parameter(2, 0.1))),
      largest_ratio_(options.parameter(3, 2.0)),
      dispatch_depth_(static_cast<std::uint32_t>(std::max(1.0, options.parameter(4, 1)))),
      seats_(cluster.max_sequences),
      host_tier_(cluster.host_tier_tokens > 0 && options.has(kPartPrefetch)),
      prefill_seconds_(step_seconds(cluster, 2'048, 0) / 2'048),
      decode_seconds_(step_seconds(cluster, 0, 16) / 16),
      random_(options.seed),
      sessions_(workload.tasks(), workload.calls(), cluster.workers, kIdleLimit),
      prefetch_(workload.calls()),
      tasks_(workload.tasks()),
      urgency_(workload.task_tenant.empty()
                   ? 0
                   : *std::max_element(workload.task_tenant.begin(), workload.task_tenant.end()) + std::size_t{1},
               0.0),
      queues_(cluster.workers),
      last_busy_(cluster.workers, 0) {}

double SagaPaper::load(WorkerId worker, double queue_weight, ClusterControl& cluster) const {
  const double room = static_cast<double>(std::uint64_t{cluster.capacity_pages(worker)} * cluster.page_tokens());
  const double memory = static_cast<double>(sessions_.context(worker)) / room;
  const double utilization = static_cast<double>(cluster.open_calls(worker)) / seats_;
  const double queue = static_cast<double>(queues_[worker].size() + cluster.waiting_calls(worker));
  return 0.5 * utilization + 0.5 * memory + queue_weight * queue;
}

WorkerId SagaPaper::least_loaded(ClusterControl& cluster) const {
  WorkerId best = 0;
  double least = load(0, kRouterQueueWeight, cluster);
  for (WorkerId worker = 1; worker < cluster.workers(); ++worker) {
    const double other = load(worker, kRouterQueueWeight, cluster);
    if (other >= least) continue;
    best = worker;
    least = other;
  }
  return best;
}

void SagaPaper::task_arrived(std::uint32_t number, Time now, ClusterControl& cluster) {
  Task& task = tasks_[number];
  if (!task.live) live_.push_back(number);
  task = {};
  task.live = true;
  task.arrival = now;
  task.order = next_order_++;
  const AgentGraph* graph = options_.has(kPartPrediction) ? cluster.graph(number) : nullptr;
  if (graph == nullptr || graph->steps.empty()) return;
  for (const AgentStep& step : graph->steps) {
    task.seconds_a_call += step.output_tokens * decode_seconds_ + step.observation_tokens * prefill_seconds_;
  }
  task.seconds_a_call /= static_cast<double>(graph->steps.size());
  task.expected_calls = graph->expected_calls;
  task.expected_seconds = graph->expected_seconds;
}

// Eq. 8. Tasks that were forgotten (idle, and nobody said that they are over) leave here.
void SagaPaper::refresh(Time now, ClusterControl& cluster) {
  if (refreshed_ != kNotDeclared && now < refreshed_ + kEpoch) return;
  refreshed_ = now;
  sessions_.forget_idle(now);
  std::fill(urgency_.begin(), urgency_.end(), 0.0);
  std::size_t kept = 0;
  for (const std::uint32_t number : live_) {
    Task& task = tasks_[number];
    if (task.calls_done > 0 && sessions_.worker(number) == kNone) {
      task = {};
      continue;
    }
    live_[kept++] = number;
    const double calls = task.expected_calls > 0 ? task.expected_calls : tasks_seen_ > 0 ? mean_calls_ : kCallsAtFirst;
    const double expected = task.expected_seconds > 0 ? task.expected_seconds
                            : tasks_seen_ > 0         ? mean_seconds_
                                                      : kSecondsAtFirst;
    const double work =
        std::max(1.0, calls - task.calls_done) * (task.seconds_a_call > 0 ? task.seconds_a_call : kSecondsACall);
    const double slack = kDeadlineFactor * expected - static_cast<double>(now - task.arrival) * 1e-6;
    const std::uint32_t tenant = cluster.tenant(number);
    urgency_[tenant] += cluster.weight(tenant) * work / std::max(slack, kShortestSlack);
  }
  live_.resize(kept);
}

std::int32_t SagaPaper::priority(CallId call, Time now, ClusterControl& cluster) {
  if (strategy_ < Strategy::kHybridByCall) return 0;
  refresh(now, cluster);
  const std::uint32_t number = cluster.task(call);
  const double urgency = urgency_[cluster.tenant(number)];
  // Sixteenths of a power of two, and under them the session.
  const double exponent = urgency > 0 ? std::clamp(real_log2(urgency), -60.0, 60.0) : -60.0;
  const auto base = -static_cast<std::int32_t>(exponent * 16) * kPriorityStep;
  return strategy_ == Strategy::kHybridByCall ? base
                                              : base + static_cast<std::int32_t>(tasks_[number].order % kPriorityStep);
}

bool SagaPaper::goes_before(const Queued& a, const Queued& b, ClusterControl& cluster) const {
  if (a.stolen != b.stolen) return a.stolen;  // the front of the thief's queue
  const std::uint32_t task_a = cluster.task(a.call);
  const std::uint32_t task_b = cluster.task(b.call);
  if (strategy_ >= Strategy::kHybridByCall) {
    const double urgency_a = urgency_[cluster.tenant(task_a)];
    const double urgency_b = urgency_[cluster.tenant(task_b)];
    if (urgency_a != urgency_b) return urgency_a > urgency_b;
  }
  if (strategy_ == Strategy::kHybridBySession && tasks_[task_a].order != tasks_[task_b].order) {
    return tasks_[task_a].order < tasks_[task_b].order;
  }
  if (a.since != b.since) return strategy_ == Strategy::kDepth ? a.since > b.since : a.since < b.since;
  return a.call < b.call;
}

WorkerId SagaPaper::place(CallId call, Time now, ClusterControl& cluster) {
  const std::uint32_t number = cluster.task(call);
  if (host_tier_) prefetch_.call_sent(cluster.thread(call), now);
  refresh(now, cluster);
  WorkerId worker = options_.has(kPartAffinity) ? sessions_.worker(number) : kNone;
  if (worker != kNone &&
      (cluster.cached_pages(call, worker) == 0 || load(worker, kRouterQueueWeight, cluster) >= theta_)) {
    worker = kNone;
  }
  if (worker == kNone) worker = least_loaded(cluster);
  if (sessions_.worker(number) != worker) {
    if (sessions_.worker(number) != kNone && options_.has(kPartAffinity)) {
      cluster.drop(call, sessions_.worker(number));
    }
    sessions_.bind(number, worker, now);
  }
  sessions_.call_opened(number, cluster.prompt_tokens(call));
  sessions_.thread_called(number, cluster.thread(call), call);
  if (!queues_[worker].empty() || cluster.waiting_calls(worker) >= dispatch_depth_) {
    queues_[worker].push_back({call, now, now, false});
    ++queued_;
    last_busy_[worker] = now;
    keep_time(now, cluster);
    return kNone;
  }
  return worker;
}

void SagaPaper::dispatch(WorkerId worker, Time now, ClusterControl& cluster) {
  std::vector<Queued>& queue = queues_[worker];
  while (!queue.empty() && cluster.waiting_calls(worker) < dispatch_depth_) {
    std::size_t next = queue.size();
    for (std::size_t i = 0; i < queue.size(); ++i) {
      if (queue[i].ready > now) continue;
      if (next == queue.size() || goes_before(queue[i], queue[next], cluster)) next = i;
    }
    if (next == queue.size()) break;
    const CallId call = queue[next].call;
    queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(next));
    --queued_;
    last_busy_[worker] = now;
    cluster.send(call, worker);
  }
}

void SagaPaper::first_token(CallId, WorkerId worker, Time now, ClusterControl& cluster) {
  if (!queues_[worker].empty()) dispatch(worker, now, cluster);
}

void SagaPaper::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                              ClusterControl& cluster) {
  const std::uint32_t number = cluster.task(call);
  sessions_.call_closed(number, cluster.prompt_tokens(call), cluster.output_tokens(call), now);
  ++tasks_[number].calls_done;
  if (host_tier_) prefetch_.call_finished(call, worker, stop, tool, now, cluster);
  if (!queues_[worker].empty()) dispatch(worker, now, cluster);
}

void SagaPaper::task_finished(std::uint32_t number, Time now, ClusterControl& cluster) {
  sessions_.drop_threads(number, cluster);
  sessions_.task_over(number);
  Task& task = tasks_[number];
  if (!task.live) return;
  tasks_seen_ += 1;
  mean_calls_ += (task.calls_done - mean_calls_) / tasks_seen_;
  mean_seconds_ += (static_cast<double>(now - task.arrival) * 1e-6 - mean_seconds_) / tasks_seen_;
  task = {};
  live_.erase(std::find(live_.begin(), live_.end(), number));
}

void SagaPaper::steal(Time now, ClusterControl& cluster) {
  const std::uint32_t workers = cluster.workers();
  for (int stolen = 0; stolen < kStealsAnEpoch && queued_ > 0; ++stolen) {
    WorkerId thief = 0;
    double least = 0;
    double most = 0;
    for (WorkerId worker = 0; worker < workers; ++worker) {
      if (!queues_[worker].empty() || cluster.waiting_calls(worker) > 0) last_busy_[worker] = now;
      const double its = load(worker, kStealerQueueWeight, cluster);
      if (worker == 0 || its < least) {
        thief = worker;
        least = its;
      }
      if (worker == 0 || its > most) most = its;
    }
    const bool idle = now - last_busy_[thief] >= idle_before_stealing_;
    if (!idle && most <= largest_ratio_ * least) return;
    overloaded_.clear();
    for (WorkerId worker = 0; worker < workers; ++worker) {
      if (worker == thief || queues_[worker].empty()) continue;
      const double its = load(worker, kStealerQueueWeight, cluster);
      if (its <= least) continue;
      if (its > largest_ratio_ * least || queues_[worker].size() >= 2) overloaded_.push_back(worker);
    }
    if (overloaded_.empty()) return;
    const WorkerId victim = overloaded_[random_.below(overloaded_.size())];
    std::vector<Queued>& queue = queues_[victim];
    std::size_t oldest = queue.size();
    for (std::size_t i = 0; i < queue.size(); ++i) {
      if (queue[i].stolen || !sessions_.only_call(cluster.task(queue[i].call))) continue;
      if (oldest == queue.size() || queue[i].since < queue[oldest].since) oldest = i;
    }
    if (oldest == queue.size()) return;
    Queued item = queue[oldest];
    const std::uint64_t context = cluster.prompt_tokens(item.call);
    if (sessions_.context(thief) + context > sessions_.context(victim)) return;  // it would be the fuller one
    queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(oldest));
    const std::uint32_t pages = cluster.copy(item.call, victim, thief);
    cluster.drop(item.call, victim);
    sessions_.bind(cluster.task(item.call), thief, now);
    item.ready = now + (pages > 0 ? cluster.copy_time(pages) : 0);
    item.stolen = true;
    queues_[thief].push_back(item);
    last_busy_[thief] = now;
    ++steals_;
    cluster.wake_at(item.ready);
  }
}

void SagaPaper::keep_time(Time now, ClusterControl& cluster) {
  if (epoch_set_) return;
  epoch_set_ = true;
  epoch_at_ = (now / kEpoch + 1) * kEpoch;
  cluster.wake_at(epoch_at_);
}

void SagaPaper::timer(Time now, ClusterControl& cluster) {
  if (host_tier_) prefetch_.timer(now, cluster);
  if (queued_ == 0 && !epoch_set_) return;
  refresh(now, cluster);
  if (epoch_set_ && now >= epoch_at_) {
    epoch_set_ = false;
    if (options_.has(kPartStealing) && queued_ > 0) steal(now, cluster);
  }
  for (WorkerId worker = 0; worker < cluster.workers(); ++worker) {
    if (!queues_[worker].empty()) dispatch(worker, now, cluster);
  }
  if (queued_ > 0) keep_time(now, cluster);
}

bool SagaPaper::verify() const {
  if (!sessions_.verify() || !prefetch_.verify()) return false;
  std::size_t queued = 0;
  for (const std::vector<Queued>& queue : queues_) queued += queue.size();
  if (queued != queued_ || (queued_ > 0 && !epoch_set_)) return false;
  std::size_t live = 0;
  for (const Task& task : tasks_) live += task.live;
  return live == live_.size();
}

}  // namespace saga
