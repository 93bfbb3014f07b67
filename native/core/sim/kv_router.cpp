#include "kv_router.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "../base/real.hpp"
#include "cluster.hpp"

namespace saga {
namespace {

constexpr double kMicroseconds = 1e6;

}  // namespace

KvRouter::KvRouter(const ClusterPolicyOptions& options, const ClusterOptions& cluster, const Workload& workload)
    : prefill_scale_(options.parameter(0, 16.0)),
      temperature_(options.parameter(1, 0.0)),
      busy_tokens_(options.parameter(2, 0.01) * static_cast<double>(cluster.token_budget)),
      least_work_first_(options.parameter(3, 1.0) > 0),
      affinity_(static_cast<Time>(std::max(0.0, options.parameter(4, 10.0)) * kMicroseconds)),
      device_credit_(options.parameter(5, 1.0)),
      host_credit_(options.parameter(6, 0.75)),
      host_tier_(cluster.host_tier_tokens > 0),
      random_(options.seed),
      calls_(workload.calls()),
      books_(cluster.workers),
      bindings_(affinity_ > 0 ? workload.calls() : 0),
      matched_(cluster.workers),
      costs_(cluster.workers) {}

bool KvRouter::all_busy() const {
  for (const Books& books : books_) {
    if (static_cast<double>(books.prefill) <= busy_tokens_) return false;
  }
  return true;
}

// Tokens that the call would have to compute on the worker; matched_ holds what the workers cache on the GPU.
std::uint64_t KvRouter::uncached(CallId call, WorkerId worker, ClusterControl& cluster) {
  double pages = device_credit_ * matched_[worker];
  if (host_tier_) {
    pages += host_credit_ * (cluster.cached_or_host_pages(call, worker) - cluster.cached_pages(call, worker));
  }
  const double credit = pages * cluster.page_tokens();
  const double prompt = cluster.prompt_tokens(call);
  return credit < prompt ? static_cast<std::uint64_t>(prompt - credit) : 0;
}

WorkerId KvRouter::route(CallId call, Time now, ClusterControl& cluster) {
  const std::uint32_t workers = cluster.workers();
  cluster.match(call, matched_.data());
  const std::uint64_t prompt = cluster.prompt_tokens(call);
  Binding* binding = affinity_ > 0 ? &bindings_[cluster.thread(call)] : nullptr;
  WorkerId chosen = binding != nullptr && now <= binding->until ? binding->worker : kNone;
  if (chosen == kNone) {
    chosen = 0;
    for (WorkerId worker = 0; worker < workers; ++worker) {
      const std::uint64_t prefill = books_[worker].prefill + uncached(call, worker, cluster);
      costs_[worker] =
          prefill_scale_ * static_cast<double>(prefill) + static_cast<double>(books_[worker].decode + prompt);
      const bool cheaper = costs_[worker] != costs_[chosen] ? costs_[worker] < costs_[chosen]
                                                            : cluster.open_calls(worker) < cluster.open_calls(chosen);
      if (cheaper) chosen = worker;
    }
    const double range = *std::max_element(costs_.begin(), costs_.end()) - costs_[chosen];
    if (temperature_ > 0 && range > 0) {
      const double lowest = costs_[chosen];
      double sum = 0;
      for (double& cost : costs_) {
        cost = real_exp((lowest - cost) / (range * temperature_));
        sum += cost;
      }
      double left = random_.uniform() * sum;
      chosen = 0;
      while (chosen + 1 < workers && (left -= costs_[chosen]) >= 0) ++chosen;
    }
  }
  if (binding != nullptr) binding->worker = chosen;
  Call& booked = calls_[call];
  booked = {chosen, uncached(call, chosen, cluster), prompt};
  books_[chosen].prefill += booked.prefill;
  books_[chosen].decode += booked.decode;
  if (binding != nullptr) binding->until = ~Time{0};  // it is not idle
  return chosen;
}

WorkerId KvRouter::place(CallId call, Time now, ClusterControl& cluster) {
  if (busy_tokens_ > 0 && (!queue_.empty() || all_busy())) {
    queue_.push_back(call);
    return kNone;
  }
  return route(call, now, cluster);
}

void KvRouter::drain(Time now, ClusterControl& cluster) {
  while (!queue_.empty() && !all_busy()) {
    std::size_t next = 0;
    if (least_work_first_) {
      std::uint64_t least = 0;
      for (std::size_t i = 0; i < queue_.size(); ++i) {
        cluster.match(queue_[i], matched_.data());
        std::uint64_t work = uncached(queue_[i], 0, cluster);
        for (WorkerId worker = 1; worker < cluster.workers(); ++worker) {
          work = std::min(work, uncached(queue_[i], worker, cluster));
        }
        if (i == 0 || work < least) {
          next = i;
          least = work;
        }
      }
    }
    const CallId call = queue_[next];
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(next));
    cluster.send(call, route(call, now, cluster));
  }
}

void KvRouter::first_token(CallId call, WorkerId worker, Time now, ClusterControl& cluster) {
  books_[worker].prefill -= calls_[call].prefill;
  calls_[call].prefill = 0;
  if (!queue_.empty()) drain(now, cluster);
}

void KvRouter::call_finished(CallId call, WorkerId worker, StopReason, ToolClass, Time now, ClusterControl& cluster) {
  books_[worker].prefill -= calls_[call].prefill;
  books_[worker].decode -= calls_[call].decode;
  calls_[call] = {};
  if (affinity_ > 0) bindings_[cluster.thread(call)].until = now + affinity_;
  if (!queue_.empty()) drain(now, cluster);
}

bool KvRouter::verify() const {
  std::vector<Books> sums(books_.size());
  for (const Call& call : calls_) {
    if (call.worker == kNone) continue;
    if (call.worker >= books_.size()) return false;
    sums[call.worker].prefill += call.prefill;
    sums[call.worker].decode += call.decode;
  }
  for (std::size_t worker = 0; worker < books_.size(); ++worker) {
    if (sums[worker].prefill != books_[worker].prefill || sums[worker].decode != books_[worker].decode) return false;
  }
  return true;
}

}  // namespace saga
