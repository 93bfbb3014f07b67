// A server with a few slots behind a FairQueue, adversarial tenants in front of it, and an independent fluid model beside it
// that recomputes the fair shares by their definition (docs/fairness.md), in floating point and without any heap.
//
// FairSimulation::run() plays a scenario and reports the largest deviation between service and fair share over all
// intervals in which a tenant stayed backlogged, and how the waits compare with the wait bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/fair/fair_queue.hpp"

namespace saga {

// How a tenant behaves.
enum class Tactic : std::uint8_t {
  kHuge,           // always backlogged with the largest calls
  kTiny,           // always backlogged with the smallest calls
  kMixed,          // always backlogged, any size
  kBurst,          // many calls at once, then idle for long
  kSingle,         // one call at a time, the next as soon as nothing waits or runs
  kCancel,         // pushes, and cancels half of it
  kUnderestimate,  // charged a tenth of what its calls take
  kOverestimate,   // charged ten times what its calls take
};

struct FairScenario {
  std::vector<Tactic> tactics;
  std::vector<std::uint32_t> weights;  // in 1/1024
  std::uint32_t slots = 4;
  std::uint32_t events = 20'000;
  std::uint64_t largest = 100'000;       // G as the queue is told
  std::uint64_t largest_sent = 100'000;  // G as the tenants keep to it
  std::uint32_t oldest_every = 8;
  bool correct = true;       // whether calls are corrected to what they took
  bool charge_most = false;  // charge the most that a call can take, whatever it will
  bool verify_often = true;
  bool misfits = false;   // at each moment a quarter of the calls does not fit
  TenantId meek = kNone;  // a tenant that declares no deadlines: the last by urgency
};

struct FairOutcome {
  double deviation = 0;       // largest |service - fair share| over any backlogged interval of any tenant
  double lead = 0, lag = 0;   // its largest parts since a tenant became active
  double literal = 0;         // the same against shares among backlogged tenants only
  double up = 0, down = 0;    // largest sums of corrections still to come, of one tenant's running calls at one moment
  double can_consume = 0;     // what all running calls could still take, at most, at one moment
  double clock_error = 0;     // V of the queue against V of the model, in service for a weight of 1
  double worst_wait = 0;      // largest wait / bound
  double worst_turn = 0;      // largest (grants of the own tenant until a call's) / bound
  std::uint64_t illegal = 0;  // grants that the algorithm of the document forbids
  std::uint64_t grants = 0, cancelled = 0, free_grants = 0;
  bool verified = true;
  std::vector<double> served;
};

class FairSimulation {
 public:
  explicit FairSimulation(const FairScenario& scenario, std::uint64_t seed)
      : scenario_(scenario), random_(seed), queue_(options(scenario)), tenants_(scenario.tactics.size()) {
    for (TenantId id = 0; id < tenants_.size(); ++id) {
      tenants_[id].weight = scenario.weights[id];
      queue_.set_weight(id, scenario.weights[id]);
    }
  }

  FairOutcome run() {
    for (std::uint32_t event = 0; event < scenario_.events; ++event) {
      arrivals();
      while (running_.size() < scenario_.slots && grant()) {
      }
      potentials();
      if (scenario_.verify_often && event % 64 == 0) outcome_.verified = outcome_.verified && queue_.verify();
      step();
    }
    bound_waits();
    for (const auto& tenant : tenants_) outcome_.served.push_back(tenant.served);
    return outcome_;
  }

 private:
  struct Account {
    double weight = 1;
    double served = 0, tag = 0, credit = 0;
    bool active = false;
    // Of the backlogged period under way: extremes of service minus fair share.
    double least = 0, most = 0, least_literal = 0, most_literal = 0;
    bool backlogged = false;
    std::uint32_t idle_until = 0, in_flight = 0;
    double up = 0, down = 0;         // largest so far
    std::vector<FairEntry> waiting;  // in order of arrival
  };
  struct Waiting {
    Time since = 0;
    std::uint64_t actual = 0;
    std::uint32_t older = 0, turns = 0;
    double own = 0;  // what its tenant's calls granted meanwhile take, or are charged
  };
  struct Running {
    TenantId tenant;
    Time end, middle;
    std::uint64_t charged, actual, most;
  };
  struct Wait {
    TenantId tenant;
    double time, own;
  };

  static FairOptions options(const FairScenario& scenario) {
    FairOptions options;
    options.tenants = static_cast<std::uint32_t>(scenario.tactics.size());
    options.entries = 4096;
    options.largest_grant = scenario.largest;
    options.oldest_every = scenario.oldest_every;
    return options;
  }

  double bound() const { return static_cast<double>(scenario_.largest); }  // lag_bound is left at largest_grant
  double release(const Account& tenant) const { return tenant.tag + bound() / tenant.weight; }

  // ---- the fluid model
  void model_push(Account& tenant) {
    if (tenant.waiting.size() != 1) return;
    if (!tenant.active || tenant.tag < clock_) tenant.tag = clock_;
    tenant.active = true;
    tenant.backlogged = true;
    tenant.least = tenant.most = deviation(tenant);
    tenant.least_literal = tenant.most_literal = literal(tenant);
  }
  void settle() {
    for (auto& tenant : tenants_) {
      if (tenant.waiting.empty()) tenant.backlogged = false;
      if (tenant.active && tenant.waiting.empty() && clock_ >= release(tenant)) tenant.active = false;
    }
  }
  void model_advance(double service, const Account* granted) {
    while (service > 0) {
      double weight = 0, next = INFINITY;
      for (const auto& tenant : tenants_) {
        const bool held = &tenant == granted || !tenant.waiting.empty();
        if (!held && (!tenant.active || clock_ >= release(tenant))) continue;
        weight += tenant.weight;
        if (!held) next = std::min(next, release(tenant));
      }
      const double until_next = (next - clock_) * weight;
      if (service < until_next) {
        clock_ += service / weight;
        return;
      }
      service -= until_next;
      clock_ = next;
    }
  }
  // Where every waiting tenant is ahead of its share.
  void model_jump() {
    double least = INFINITY;
    for (const auto& tenant : tenants_) {
      if (!tenant.waiting.empty()) least = std::min(least, tenant.tag);
    }
    if (least < INFINITY) clock_ = std::max(clock_, least);
    settle();
  }
  // What is asked of a grant: the urgent tenant with the earliest deadline, else one that is not ahead.
  void check_legal(const Account& granted) {
    const double tolerance = 4.0 / 65536 + 1e-9 * clock_;  // the queue's resolution
    double earliest = INFINITY;
    for (const auto& tenant : tenants_) {
      if (tenant.waiting.empty()) continue;
      if (clock_ >= release(tenant)) earliest = std::min(earliest, release(tenant) + bound() / tenant.weight);
    }
    const double key = release(granted) + bound() / granted.weight;
    if (earliest < INFINITY ? key > earliest + tolerance : granted.tag > clock_ + tolerance) {
      // A tenant that is urgent but for rounding may go, or be passed over.
      bool doubtful = false;
      for (const auto& tenant : tenants_) doubtful = doubtful || std::fabs(release(tenant) - clock_) < tolerance;
      if (!doubtful) ++outcome_.illegal;
    }
    if (earliest == INFINITY) ++outcome_.free_grants;
  }
  double deviation(const Account& tenant) const { return tenant.served - tenant.weight * clock_; }
  double literal(const Account& tenant) const { return tenant.served - tenant.weight * literal_clock_; }
  void observe() {
    for (auto& tenant : tenants_) {
      if (!tenant.backlogged) continue;
      const double now = deviation(tenant);
      tenant.least = std::min(tenant.least, now);
      tenant.most = std::max(tenant.most, now);
      outcome_.deviation = std::max({outcome_.deviation, now - tenant.least, tenant.most - now});
      const double plain = literal(tenant);
      tenant.least_literal = std::min(tenant.least_literal, plain);
      tenant.most_literal = std::max(tenant.most_literal, plain);
      outcome_.literal = std::max({outcome_.literal, plain - tenant.least_literal, tenant.most_literal - plain});
      const double lag = tenant.weight * (clock_ - tenant.tag);
      outcome_.lag = std::max(outcome_.lag, lag);
      outcome_.lead = std::max(outcome_.lead, -lag);
    }
  }

  // ---- the world
  std::uint64_t size_of(Tactic tactic) {
    const std::uint64_t largest = scenario_.largest_sent;
    switch (tactic) {
      case Tactic::kHuge:
        return largest;
      case Tactic::kTiny:
        return 1 + random_.below(largest / 100 + 1);
      default:
        return random_.below(4) == 0 ? largest - random_.below(largest / 10 + 1) : 1 + random_.below(largest);
    }
  }

  void push(TenantId id) {
    auto& tenant = tenants_[id];
    const Tactic tactic = scenario_.tactics[id];
    FairCall call;
    call.tenant = id;
    call.kind = random_.below(4) == 0 ? FairClass::kAdmission : FairClass::kRunning;
    call.call = ++calls_;
    std::uint64_t actual = size_of(tactic);
    call.cost = actual;
    if (tactic == Tactic::kUnderestimate) call.cost = actual / 10;
    if (tactic == Tactic::kOverestimate) actual = std::max<std::uint64_t>(1, actual / 10);
    if (scenario_.charge_most) call.cost = std::max(actual, call.cost);
    // Deadlines of every kind; tenant 0 always claims to be the most urgent.
    switch (id == 0 ? 4 : random_.below(5)) {
      case 0:
        break;
      case 1:
        call.deadline = now_ / 2;
        break;
      case 2:
        call.deadline = now_;
        break;
      case 3:
        call.deadline = now_ + random_.below(20 * scenario_.largest);
        break;
      default:
        call.deadline = now_ + 100 * scenario_.largest;
        break;
    }
    if (id == scenario_.meek) call.deadline = kNotDeclared;
    if (random_.below(4) != 0) call.work = 1 + random_.below(100 * scenario_.largest);
    if (id == 0) call.work = 99 * scenario_.largest;
    FairEntry entry = kNone;
    if (queue_.push(call, now_, &entry) != Status::kOk) return;
    if (entry >= entries_.size()) entries_.resize(entry + 1);
    entries_[entry] = {now_, actual, static_cast<std::uint32_t>(tenant.waiting.size()), 0, 0};
    if (by_call_.size() <= call.call) by_call_.resize(call.call + 1);
    by_call_[call.call] = entry;
    tenant.waiting.push_back(entry);
    model_push(tenant);
  }

  void cancel(TenantId id) {
    auto& tenant = tenants_[id];
    const auto at = static_cast<std::ptrdiff_t>(random_.below(tenant.waiting.size()));
    queue_.remove(tenant.waiting[static_cast<std::size_t>(at)]);
    tenant.waiting.erase(tenant.waiting.begin() + at);
    ++outcome_.cancelled;
    settle();
  }

  void arrivals() {
    for (TenantId id = 0; id < tenants_.size(); ++id) {
      auto& tenant = tenants_[id];
      switch (scenario_.tactics[id]) {
        case Tactic::kBurst:
          if (tenant.waiting.empty() && tick_ >= tenant.idle_until) {
            for (std::uint64_t i = 1 + random_.below(30); i > 0; --i) push(id);
            tenant.idle_until = tick_ + static_cast<std::uint32_t>(random_.below(400));
          }
          break;
        case Tactic::kSingle:
          if (tenant.waiting.empty() && tenant.in_flight == 0) push(id);
          break;
        case Tactic::kCancel:
          if (tenant.waiting.size() < 6) push(id);
          if (!tenant.waiting.empty() && random_.below(2) == 0) cancel(id);
          if (random_.below(20) == 0) {
            while (!tenant.waiting.empty()) cancel(id);
          }
          break;
        default:
          while (tenant.waiting.size() < 12) push(id);
      }
    }
    observe();
  }

  bool grant() {
    FairCall call;
    const auto fits = [this](const FairCall& candidate) {
      return !scenario_.misfits || mix64(candidate.call * std::uint64_t{1'000'003} + tick_) % 4 != 0;
    };
    const bool granted_one = queue_.pop(now_, fits, &call);
    model_jump();  // the queue's clock goes on also when it finds that nothing fits
    if (!granted_one) return false;
    ++outcome_.grants;
    auto& tenant = tenants_[call.tenant];
    check_legal(tenant);
    observe();
    const FairEntry entry = by_call_[call.call];
    const Waiting granted = entries_[entry];
    tenant.waiting.erase(std::find(tenant.waiting.begin(), tenant.waiting.end(), entry));
    const double turns = (scenario_.misfits ? 2.0 : 1.0) * scenario_.oldest_every * (granted.older + 1.0);
    outcome_.worst_turn = std::max(outcome_.worst_turn, (granted.turns + 1.0) / turns);
    waits_.push_back({call.tenant, static_cast<double>(now_ - granted.since), granted.own});
    for (const FairEntry other : tenant.waiting) {
      ++entries_[other].turns;
      entries_[other].own += static_cast<double>(std::max(call.cost, granted.actual));
    }

    const double cost = static_cast<double>(call.cost);
    const double paid = std::min(tenant.credit, cost);
    tenant.credit -= paid;
    tenant.tag += (cost - paid) / tenant.weight;
    tenant.served += cost;
    literal_advance(cost, call.tenant);
    model_advance(cost - paid, &tenant);
    // The clocks are compared after each move. The model goes on from the queue's, which is in whole units: otherwise
    // roundings of the moments at which tenants become inactive would add up in the comparison.
    const double clock = static_cast<double>(queue_.virtual_time()) / 65536.0;
    outcome_.clock_error = std::max(outcome_.clock_error, std::fabs(clock - clock_));
    clock_ = clock;
    observe();
    settle();
    const std::uint64_t took = granted.actual;
    running_.push_back({call.tenant, now_ + took, now_ + took / 2, call.cost, took, std::max(call.cost, took)});
    ++tenant.in_flight;
    return true;
  }

  void literal_advance(double service, TenantId granted) {
    double weight = 0;
    for (TenantId id = 0; id < tenants_.size(); ++id) {
      if (id == granted || !tenants_[id].waiting.empty()) weight += tenants_[id].weight;
    }
    if (weight > 0) literal_clock_ += service / weight;
  }

  void correct(Running& call, std::uint64_t to) {
    if (to == call.charged) return;
    auto& tenant = tenants_[call.tenant];
    const auto delta = static_cast<std::int64_t>(to) - static_cast<std::int64_t>(call.charged);
    call.charged = to;
    tenant.served += static_cast<double>(delta);
    if (!scenario_.correct) return;
    queue_.correct(call.tenant, delta);
    double due = static_cast<double>(delta);
    if (due < 0) {
      tenant.credit -= due;
      return;
    }
    const double paid = std::min(tenant.credit, due);
    tenant.credit -= paid;
    due -= paid;
    if (due <= 0) return;
    if (tenant.waiting.empty() && (!tenant.active || tenant.tag < clock_)) tenant.tag = clock_;
    tenant.tag += due / tenant.weight;
    tenant.active = true;
    settle();
  }

  // To the next moment at which a call ends or is half done.
  void step() {
    ++tick_;
    Time next = ~Time{0};
    for (const auto& call : running_) next = std::min(next, call.middle > now_ ? call.middle : call.end);
    if (running_.empty()) next = now_ + 1000;
    now_ = std::max(next, now_);
    for (std::size_t i = 0; i < running_.size();) {
      auto& call = running_[i];
      if (call.end > now_) {
        if (call.middle <= now_ && call.charged < call.actual) correct(call, (call.charged + call.actual) / 2);
        call.middle = 0;
        ++i;
        continue;
      }
      correct(call, call.actual);
      --tenants_[call.tenant].in_flight;
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    observe();
  }

  void potentials() {
    double can = 0;
    std::vector<double> up(tenants_.size()), down(tenants_.size());
    for (const auto& call : running_) {
      const double gap = static_cast<double>(call.actual) - static_cast<double>(call.charged);
      up[call.tenant] += std::max(gap, 0.0);
      down[call.tenant] += std::max(-gap, 0.0);
      can += static_cast<double>(call.most);
    }
    for (TenantId id = 0; id < tenants_.size(); ++id) {
      outcome_.up = std::max(outcome_.up, up[id]);
      outcome_.down = std::max(outcome_.down, down[id]);
    }
    outcome_.can_consume = std::max(outcome_.can_consume, can);
  }

  // Theorem 2: waits in terms of the service that the server gives in that time (one unit per slot and microsecond).
  void bound_waits() {
    double weights = 0;
    for (const auto& tenant : tenants_) weights += tenant.weight;
    const double largest = bound();
    const double corrections = outcome_.up + outcome_.down;
    for (const Wait& wait : waits_) {
      const double own = 4 * largest + outcome_.up + wait.own;
      const double all = weights / tenants_[wait.tenant].weight * own +
                         static_cast<double>(tenants_.size()) * (4 * largest + corrections) + outcome_.can_consume;
      outcome_.worst_wait = std::max(outcome_.worst_wait, wait.time * scenario_.slots / all);
    }
  }

  FairScenario scenario_;
  Random random_;
  FairQueue queue_;
  std::vector<Account> tenants_;
  std::vector<Waiting> entries_;
  std::vector<FairEntry> by_call_;
  std::vector<Running> running_;
  std::vector<Wait> waits_;
  FairOutcome outcome_;
  double clock_ = 0, literal_clock_ = 0;
  Time now_ = 1'000'000;
  std::uint32_t tick_ = 0, calls_ = 0;
};

}  // namespace saga
