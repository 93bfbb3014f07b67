// FairQueue: the cost of an enqueue and a dequeue, and fairness against first come, first served on adversarial tenants.
//
//   fair_bench [flows [operations]]
//
// Each flow is a tenant; each operation pushes a call of a random tenant and grants the next one.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/fair/fair_queue.hpp"

namespace saga {
namespace {

// Processor time: what else the machine does is not measured.
double seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double nanoseconds_per_pair(std::uint32_t flows, std::uint32_t operations, std::uint32_t calls_per_flow, bool deadlines,
                            double* worst_refresh) {
  FairOptions options;
  options.tenants = flows;
  options.entries = flows * calls_per_flow + 1;
  options.largest_grant = 1'000'000;
  FairQueue queue(options);
  Random random(7);
  std::vector<FairCall> calls(1u << 16);
  for (auto& call : calls) {
    call.tenant = static_cast<TenantId>(random.below(flows));
    call.cost = 1 + random.below(1'000'000);
    call.work = 1 + random.below(100'000'000);
    call.deadline = deadlines && random.below(2) == 0 ? 50'000'000 + random.below(500'000'000) : kNotDeclared;
  }
  for (TenantId id = 0; id < flows; ++id)
    queue.set_weight(id, static_cast<std::uint32_t>(1 + random.below(100)) * 1024);
  Time now = 0;
  FairEntry entry = kNone;
  FairCall granted;
  for (std::uint32_t i = 0; i < flows * calls_per_flow; ++i) {
    FairCall call = calls[i & 0xFFFF];
    call.tenant = i % flows;
    if (queue.push(call, now, &entry) != Status::kOk) std::abort();
  }
  std::uint32_t refused = 0;
  const auto pairs = [&](std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      now += 1;
      if (queue.push(calls[i & 0xFFFF], now, &entry) != Status::kOk) ++refused;
      if (!queue.pop(now, &granted)) ++refused;
    }
  };
  pairs(operations / 4);
  const double start = seconds();
  pairs(operations);
  const double elapsed = (seconds() - start) * 1e9;
  *worst_refresh = 0;
  for (int i = 0; i < 20; ++i) {
    now += options.epoch;
    const double before = seconds();
    queue.refresh(now);
    *worst_refresh = std::max(*worst_refresh, (seconds() - before) * 1e6);
  }
  if (refused > 0 || !queue.verify()) std::abort();
  return elapsed / operations;
}

// One server, always loaded by all tenants, of which the first sends ten times as many calls as the others and the second
// the largest ones. Jain's index of service over weight, the largest deviation from the fair share, and the largest number
// of grants that its own tenant got before a call, as a part of its bound (no call starves: at most 1).
struct Fairness {
  double jain, worst_gap, worst_turn;
};

Fairness play(bool fair) {
  constexpr std::uint32_t kTenants = 50;
  constexpr std::uint64_t kLargest = 1'000'000;
  FairOptions options;
  options.tenants = kTenants;
  options.entries = 1u << 16;
  options.largest_grant = kLargest;
  FairQueue queue(options);
  std::deque<FairCall> fifo;
  struct Pushed {
    std::uint32_t granted, older;
  };
  std::vector<Pushed> pushed(1u << 18);
  std::vector<double> served(kTenants), weight(kTenants);
  std::vector<std::uint32_t> waiting(kTenants), grants(kTenants);
  Random random(11);
  double weights = 0, total = 0, gap = 0, turn = 0;
  for (TenantId id = 0; id < kTenants; ++id) {
    weight[id] = static_cast<double>(1 + id % 4);
    weights += weight[id];
    queue.set_weight(id, (1 + id % 4) * kFairWeightOne);
  }
  Time now = 0;
  std::uint32_t name = 0;
  for (int step = 0; step < 200'000; ++step) {
    for (TenantId id = 0; id < kTenants; ++id) {
      while (waiting[id] < (id == 0 ? 200u : 20u)) {
        FairCall call;
        call.tenant = id;
        call.call = name++;
        call.cost = id == 1 ? kLargest : 1 + random.below(kLargest / 2);
        call.work = call.cost * (1 + random.below(40));
        call.deadline = random.below(3) == 0 ? now + random.below(400 * kLargest) : kNotDeclared;
        pushed[call.call] = {grants[id], waiting[id]};
        ++waiting[id];
        FairEntry entry = kNone;
        if (fair && queue.push(call, now, &entry) != Status::kOk) std::abort();
        if (!fair) fifo.push_back(call);
      }
    }
    FairCall granted;
    if (fair) {
      if (!queue.pop(now, &granted)) std::abort();
    } else {
      granted = fifo.front();
      fifo.pop_front();
    }
    --waiting[granted.tenant];
    const Pushed& before = pushed[granted.call];
    turn = std::max(turn, static_cast<double>(++grants[granted.tenant] - before.granted) /
                              (options.oldest_every * (before.older + 1.0)));
    now += granted.cost;
    served[granted.tenant] += static_cast<double>(granted.cost);
    total += static_cast<double>(granted.cost);
    for (TenantId id = 0; id < kTenants; ++id) {
      gap = std::max(gap, std::abs(served[id] - weight[id] / weights * total) / static_cast<double>(kLargest));
    }
  }
  double sum = 0, squares = 0;
  for (TenantId id = 0; id < kTenants; ++id) {
    sum += served[id] / weight[id];
    squares += served[id] / weight[id] * served[id] / weight[id];
  }
  return {sum * sum / (kTenants * squares), gap, turn};
}

}  // namespace
}  // namespace saga

int main(int argc, char** argv) {
  const auto flows = static_cast<std::uint32_t>(argc > 1 ? std::atoi(argv[1]) : 10'000);
  const auto operations = static_cast<std::uint32_t>(argc > 2 ? std::atoi(argv[2]) : 2'000'000);
  for (const std::uint32_t depth : {1u, 8u}) {
    for (const bool deadlines : {false, true}) {
      double refresh = 0;
      const double pair = saga::nanoseconds_per_pair(flows, operations, depth, deadlines, &refresh);
      std::printf("%u flows, %u calls each, %s: %.0f ns per enqueue and dequeue, refresh of all %.0f us\n", flows,
                  depth, deadlines ? "half with deadlines" : "no deadlines", pair, refresh);
    }
  }
  for (const bool fair : {false, true}) {
    const saga::Fairness result = saga::play(fair);
    std::printf("%s: Jain's index %.5f, largest deviation %.2f grants (bound 4), turns / bound %.2f\n",
                fair ? "fair queue" : "first come, first served", result.jain, result.worst_gap, result.worst_turn);
  }
  return 0;
}
