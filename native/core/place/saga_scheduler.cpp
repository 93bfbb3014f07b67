#include "saga_scheduler.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "../base/assert.hpp"
#include "../base/real.hpp"
#include "../graph/agent_graph.hpp"

namespace saga {

namespace {

constexpr double kMicrosecond = 1e-6;
constexpr Time kRefreshEvery = 1'000'000;
constexpr double kDeadlineFactor = 1.5;   // SAGA paper, section 9: deadline = submission + 1.5 x expected completion
constexpr double kCallsOfGain = 4;        // calls to come for which a move is credited
constexpr std::int32_t kPreempting = -1;  // priorities at the workers: smaller first
constexpr std::int32_t kYielding = 1;
constexpr double kFullEnough = 0.7;       // share of a worker's room from which on pages may have gone to host memory
constexpr double kAbsentPresence = 0.01;  // below it a paused thread is not counted
constexpr double kLongestPrefill = 0.9;   // share of a worker's time: a step time stays finite
constexpr double kRounding = 4e-6;        // more than rounding to floats can move a bound, in shares of it

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr float kNobody = std::numeric_limits<float>::infinity();  // the bound of who is no alternative
constexpr std::uint64_t kLargestGrant = std::uint64_t{1} << 32;    // over an hour of a worker

double seconds(Time time) { return static_cast<double>(time) * kMicrosecond; }
Time microseconds(double value) { return value <= 0 ? 0 : static_cast<Time>(value * 1e6); }

FairOptions fair_options(const SagaSchedulerOptions& options) {
  FairOptions fair;
  fair.tenants = options.tenants;
  fair.entries = options.calls;
  fair.largest_grant = kLargestGrant;
  if (!options.parts.fairness) fair.oldest_every = 1;
  return fair;
}

FairOptions admission_options(const SagaSchedulerOptions& options) {
  FairOptions fair = fair_options(options);
  if (options.parts.fairness) fair.oldest_every = options.oldest_every;
  return fair;
}

// These go on in steps of several workers where these are of no interest; sums side by side become vectors.

// Behind the workers from `w` on that hold the same.
WorkerId end_of_run(const std::uint32_t* matched, WorkerId w, WorkerId workers) {
  const std::uint32_t pages = matched[w];
  for (; w + 16 <= workers; w += 16) {
    const std::uint32_t* const here = matched + w;
    std::uint32_t difference[4] = {};
    for (std::size_t i = 0; i < 16; i += 4) {
      for (std::size_t k = 0; k < 4; ++k) difference[k] |= here[i + k] ^ pages;
    }
    if ((difference[0] | difference[1] | difference[2] | difference[3]) != 0) break;
  }
  while (w < workers && matched[w] == pages) ++w;
  return w;
}

// Of eight bounds.
float least_of(const float* bounds) {
  float least[4];
  for (std::uint32_t k = 0; k < 4; ++k) least[k] = bounds[k + 4] < bounds[k] ? bounds[k + 4] : bounds[k];
  return std::min(std::min(least[0], least[1]), std::min(least[2], least[3]));
}

// From `w` on, the first worker whose bound is at most `limit`; `workers`: none.
WorkerId first_within(const float* bounds, WorkerId w, WorkerId workers, float limit) {
  while (w + 8 <= workers && least_of(bounds + w) > limit) w += 8;
  while (w < workers && bounds[w] > limit) ++w;
  return w;
}

// The first worker of the least bound.
WorkerId least_bound(const float* bounds, WorkerId workers) {
  constexpr WorkerId kLanes = 32;
  WorkerId w = 0;
  float all = workers > 0 ? bounds[0] : kNobody;
  if (workers >= kLanes) {
    float least[kLanes];
    for (WorkerId k = 0; k < kLanes; ++k) least[k] = bounds[k];
    for (w = kLanes; w + kLanes <= workers; w += kLanes) {
      const float* const here = bounds + w;
      for (WorkerId k = 0; k < kLanes; ++k) least[k] = here[k] < least[k] ? here[k] : least[k];
    }
    for (WorkerId k = 0; k < 16; ++k) least[k] = least[k + 16] < least[k] ? least[k + 16] : least[k];
    for (WorkerId k = 0; k < 8; ++k) least[k] = least[k + 8] < least[k] ? least[k + 8] : least[k];
    all = least_of(least);
  }
  for (; w < workers; ++w) all = std::min(all, bounds[w]);
  return first_within(bounds, 0, workers, all);
}

PredictorOptions predictor_options(const SagaSchedulerOptions& options) {
  PredictorOptions predictor;
  predictor.max_workflows = options.threads;
  predictor.max_tenants = options.tenants;
  predictor.reuse_horizon = options.horizon;
  return predictor;
}

}  // namespace

SagaScheduler::SagaScheduler(const SagaSchedulerOptions& options)
    : options_(options),
      costs_(options.costs, options.workers),
      predictor_(predictor_options(options)),
      queue_(fair_options(options)),
      admissions_(admission_options(options)),
      random_(mix64(options.seed ^ 0x73616761ull)),
      threads_(options.threads),
      workers_(options.workers),
      floors_(options.workers),
      bounds_(options.workers),
      arrived_(options.tasks, 0),
      first_thread_(options.tasks, kNone),
      deadline_(options.tasks, kNotDeclared),
      matched_(options.workers, 0),
      next_open_(options.calls, kNone),
      timers_(options.threads + options.workers),
      active_slot_(options.threads, kNone) {
  for (WorkerId w = 0; w < options.workers; ++w) set_floor(w);
  active_.reserve(options.threads);
}

// ---------------------------------------------------------------------------------------------------------------- loads

Forecast SagaScheduler::estimate(Thread& thread, std::uint32_t id, Time now) {
  Forecast forecast;
  if (thread.opened) forecast = predictor_.forecast(id, now, options_.leases);
  if (!options_.parts.prediction || !thread.opened) {
    thread.output = 300;
    thread.growth = 300;
    thread.gap = 1;
    thread.calls = 10;
    return forecast;
  }
  const bool running = thread.state == State::kRunning || thread.state == State::kQueued;
  thread.output = std::max(1.0, running ? forecast.current_output_tokens : forecast.next_output_tokens);
  thread.growth = std::max(1.0, forecast.next_growth_tokens);
  thread.calls = forecast.remaining_calls;
  thread.gap = std::min(seconds(forecast.gap_p50), 3600.0);
  return forecast;
}

// Tokens that the thread may be expected to hold at most: the largest over k of P(at least k more calls) x context
// after them, calls ending with a constant hazard.
double SagaScheduler::working_set(const Thread& thread) {
  const double rest = thread.calls * (thread.output + thread.growth);
  return rest <= thread.context ? thread.context : rest * real_exp(thread.context / rest - 1);
}

SagaScheduler::Load SagaScheduler::load_of(const Thread& thread, double presence) const {
  const StepCosts& cost = options_.costs;
  const double prefill = thread.growth * (cost.per_prefill_token + cost.per_prefill_pair * thread.context);
  const double answer = thread.output * cost.base * 1.5 + prefill;
  // Who runs now does so for half of the time that a call like it takes, however long it is away afterwards.
  const double cycle = answer + (thread.state == State::kPaused ? thread.gap : std::min(thread.gap, answer));
  Load load;
  load.busy = presence * answer / cycle;
  load.step = (cost.per_call + cost.per_context_token * thread.context) * load.busy;
  load.prefill = presence * prefill / cycle;
  load.resident = presence * working_set(thread);
  return load;
}

void SagaScheduler::count(Thread& thread, double presence) {
  if (thread.worker == kNone) return;
  Load& sum = workers_[thread.worker].load;
  Load load = load_of(thread, presence);
  // Nobody asks for more than there is, or a paused thread of a large context would keep all others out.
  load.resident = std::min(load.resident, presence * workers_[thread.worker].capacity * options_.room);
  sum.busy += load.busy - thread.load.busy;
  sum.step += load.step - thread.load.step;
  sum.prefill += load.prefill - thread.load.prefill;
  sum.resident += load.resident - thread.load.resident;
  thread.load = load;
  thread.presence = presence;
  const double running =
      thread.state == State::kRunning || thread.state == State::kArriving ? thread.context + thread.output : 0;
  workers_[thread.worker].running += running - thread.running;
  thread.running = running;
  const double queued = thread.state == State::kQueued ? load_of(thread, 1).resident : 0;
  workers_[thread.worker].queued += queued - thread.queued;
  thread.queued = queued;
  set_floor(thread.worker);
}

SagaScheduler::Floor SagaScheduler::floor_of(WorkerId id) const {
  const Load& load = workers_[id].load;
  Floor floor;
  floor.factor = costs_.factor(id);
  floor.busy = costs_.factor(id) * std::max(0.0, load.busy);
  const double step = step_time(load);
  floor.step = costs_.factor(id) * step;
  if (load.prefill <= kLongestPrefill / 2) {
    floor.growing = floor.step;
    floor.longer = floor.busy * step;
  }
  return floor;
}

void SagaScheduler::set_floor(WorkerId id) {
  const Floor floor = floor_of(id);
  floors_.step[id] = static_cast<float>(floor.step);
  floors_.busy[id] = static_cast<float>(floor.busy);
  floors_.growing[id] = static_cast<float>(floor.growing);
  floors_.longer[id] = static_cast<float>(floor.longer);
  floors_.factor[id] = static_cast<float>(floor.factor);
}

void SagaScheduler::bound_prices(const Weights& weights, const PromptCost& prompt) {
  // Copies: the compiler cannot know that bounds_ does not overlap them.
  const auto of_step = static_cast<float>(weights.step);
  const auto of_busy = static_cast<float>(weights.busy);
  const auto of_growing = static_cast<float>(weights.growing);
  const auto of_longer = static_cast<float>(weights.longer);
  const auto computed = static_cast<float>(prompt.computed);
  const auto otherwise = static_cast<float>(prompt.otherwise);
  const auto transfer = static_cast<float>(prompt.transfer);
  const float* const step = floors_.step.data();
  const float* const busy = floors_.busy.data();
  const float* const growing = floors_.growing.data();
  const float* const longer = floors_.longer.data();
  const float* const factor = floors_.factor.data();
  float* const bounds = bounds_.data();
  const std::size_t workers = bounds_.size();
  for (std::size_t w = 0; w < workers; ++w) {
    const float here = factor[w] * computed;
    const float pulled = factor[w] * otherwise + transfer;
    bounds[w] = of_step * step[w] + of_busy * busy[w] + of_growing * growing[w] + of_longer * longer[w] +
                (pulled < here ? pulled : here);
  }
}

float SagaScheduler::bound(const Weights& weights, const PromptCost& prompt, WorkerId id) const {
  const double of_worker = weights.step * static_cast<double>(floors_.step[id]) +
                           weights.busy * static_cast<double>(floors_.busy[id]) +
                           weights.growing * static_cast<double>(floors_.growing[id]) +
                           weights.longer * static_cast<double>(floors_.longer[id]);
  return static_cast<float>(of_worker + prompt.at(static_cast<double>(floors_.factor[id])));
}

// With s and p the step load and the prefill share of a worker, and s' and p' of the call: a step takes (base + s + s') /
// (1 - p - p') with it and (base + s) / (1 - p) without, so it is longer by at least s' + step * p' / (1 - p').
SagaScheduler::Weights SagaScheduler::weights_of(const Thread& thread, const Load& own) {
  const double share = thread.output / std::max(own.busy, 1e-3);
  const double growth = own.prefill <= kLongestPrefill / 2 ? own.prefill / (1 - own.prefill) : 0;
  return {thread.output, share * own.step, thread.output * growth, share * growth};
}

double SagaScheduler::step_time(const Load& load) const {
  return (options_.costs.base + load.step) / (1 - std::min(load.prefill, kLongestPrefill));
}

double SagaScheduler::presence_of(std::uint32_t id, Time now) const {
  const Thread& thread = threads_[id];
  if (thread.state == State::kAbsent) return 0;
  if (thread.state != State::kPaused) return 1;
  if (options_.parts.prediction) return predictor_.reuse_within(id, options_.horizon, now);
  const double half = seconds(options_.horizon);
  return half / (half + seconds(now - thread.paused_at));
}

// ---------------------------------------------------------------------------------------------------------------- prices

// What does not depend on how much of the prompt is there: prefill and transfer are 0, and prefill in the way of others missing.
PriceTerms SagaScheduler::price_without_prompt(const Thread& thread, const Load& own, WorkerId id, double* busy) const {
  const Worker& worker = workers_[id];
  Load others = worker.load;
  double running = worker.running;
  if (thread.worker == id) {
    others.busy -= thread.load.busy;
    others.step -= thread.load.step;
    others.prefill -= thread.load.prefill;
    others.resident -= thread.load.resident;
    running -= thread.running;
  }
  Load together = others;
  together.step += own.step;
  together.prefill += own.prefill;
  const double before = step_time(others);
  const double after = step_time(together);
  PriceTerms terms;
  terms.decode = costs_.factor(id) * thread.output * after;
  *busy = std::max(0.0, others.busy);
  terms.interference = costs_.factor(id) * thread.output * (after - before) * *busy / std::max(own.busy, 1e-3);
  const double over = others.resident + own.resident - worker.capacity * options_.room;
  if (over > 0) {
    // By a worker of factor 1: who is pushed out may be computed again elsewhere.
    terms.displacement = options_.displacement * std::min(over, own.resident) * options_.costs.per_prefill_token;
  }
  const double short_of = running + thread.context + thread.output - worker.capacity;
  if (short_of > 0 && running > 1) {  // it waits until running calls of that size have ended
    terms.wait = costs_.factor(id) * short_of / running * after * thread.output;
  }
  return terms;
}

double SagaScheduler::prefill_seconds(const Thread& thread, double missing) const {
  missing = std::max(1.0, missing);
  return costs_.prefill(missing, std::max(0.0, thread.context - missing));
}

PriceTerms SagaScheduler::with_prompt(PriceTerms terms, WorkerId id, double busy, double prefill,
                                      double transfer) const {
  terms.prefill = costs_.factor(id) * prefill;
  terms.transfer = transfer;
  terms.interference += terms.prefill * busy;
  return terms;
}

PriceTerms SagaScheduler::price(const Thread& thread, const Load& own, WorkerId id, double missing,
                                double transfer) const {
  double busy = 0;
  const PriceTerms terms = price_without_prompt(thread, own, id, &busy);
  return with_prompt(terms, id, busy, prefill_seconds(thread, missing), transfer);
}

// Working sets at the worker that are not the thread's own.
double SagaScheduler::resident_beside(const Thread& thread, WorkerId id) const {
  const Worker& worker = workers_[id];
  double resident = worker.load.resident - (thread.worker == id ? thread.load.resident : 0);
  // Where nothing runs, those who wait for it wait for their tenants' turn, which may not come before this call's.
  if (thread.worker == kNone && worker.calls > 0) resident += worker.queued;
  return resident;
}

bool SagaScheduler::has_room(const Thread& thread, double set, WorkerId id, bool holds) const {
  const Worker& worker = workers_[id];
  const double running = worker.running - (thread.worker == id ? thread.running : 0);
  if (running > 1 && running + thread.context + thread.output > worker.capacity) return false;
  if (holds) return true;
  const double resident = resident_beside(thread, id);
  const double room = worker.capacity * options_.room;
  return resident <= 1 || resident + std::min(set, room * options_.largest_need) <= room;
}

// It has had no call for so long that whoever was here last is not coming back at once.
bool SagaScheduler::idles(WorkerId id, Time now) const {
  return workers_[id].calls == 0 && now >= workers_[id].idle_since + options_.longest_idle;
}

// What it pushes out of memory delays those who run there, when that is computed again, by less than its answer takes: with
// n calls of an answer time T a step gives n tokens, with one more n + 1, and of T seconds D go to what is computed again;
// (n + 1) (1 - D / T) > n where (n + 1) D < T. D is the displacement of the price, which counts that who is computed again
// pushes out others in turn: without that few agents on small workers thrash.
bool SagaScheduler::is_worth(const Thread& thread, double set, WorkerId id) const {
  if (!has_room(thread, set, id, true)) return false;
  const Worker& worker = workers_[id];
  const double over = std::clamp(resident_beside(thread, id) + set - worker.capacity * options_.room, 0.0, set);
  const double delay = options_.displacement * over * options_.costs.per_prefill_token;
  return (worker.calls + 1) * delay < thread.output * options_.costs.base;
}

bool SagaScheduler::fits(const Thread& thread, CallId call, Time now, ClusterControl& cluster) {
  if (cluster.accepting_workers() == 0) return false;
  if (!options_.parts.admission) return true;
  const FairQueue& queue = thread.admitted ? queue_ : admissions_;
  const Time waited = now - queue.waiting_since(thread.entry);
  if (waited > options_.longest_wait) return true;
  const double set = working_set(thread);
  for (WorkerId w = 0; w < options_.workers; ++w) {
    if (!cluster.accepts(w)) continue;
    if (has_room(thread, set, w, thread.admitted) || idles(w, now) || is_worth(thread, set, w)) return true;
  }
  if (thread.admitted || thread.worker == kNone || !cluster.accepts(thread.worker)) return false;
  if (!has_room(thread, set, thread.worker, true)) return false;
  return 2.0 * cluster.cached_pages(call, thread.worker) * page_tokens_ >= thread.context;
}

double SagaScheduler::transfer_time(std::uint32_t pages, WorkerId to, Time now, ClusterControl& cluster) const {
  return seconds(cluster.copy_time(pages) + link_wait(to, now));
}

// The alternatives are the workers; the price of most is not worked out, as a bound from below says enough: best and
// second are the two cheapest (ties: by id), and who is dearer than where the thread is can be neither of any use.
SagaScheduler::Choice SagaScheduler::choose(const Thread& thread, CallId call, Time now, ClusterControl& cluster) {
  cluster.match(call, matched_.data());
  const WorkerId workers = options_.workers;
  const std::uint32_t* const matched = matched_.data();
  std::uint32_t longest = 0, below = 0;  // the two greatest
  WorkerId holder = kNone;
  std::uint32_t holders = 0;
  for (WorkerId w = 0; w < workers;) {  // run by run: most hold the same
    const WorkerId first = w;
    const std::uint32_t pages = matched[w];
    w = end_of_run(matched, w, workers);
    if (pages > longest) {
      SAGA_ASSERT(cluster.active(first));
      below = longest;
      longest = pages;
      holder = first;
      holders = 0;
    }
    if (pages == longest) {
      holders += w - first;
    } else {
      below = std::max(below, pages);
    }
  }
  const auto rest_with = [&](std::uint32_t pages) {
    return prefill_seconds(thread, options_.parts.affinity ? thread.context - pages * page_tokens_ : thread.context);
  };
  const Load own = load_of(thread, 1);
  const double set = own.resident;  // the working set
  const bool pulls = options_.parts.affinity && options_.parts.stealing && holder != kNone;
  const double rest_of_holder = pulls ? rest_with(longest) : 0;
  // The prompt on a worker that holds so many pages of it, which is the same for most; nothing added for a busy link.
  std::uint32_t priced_pages = kNone;
  Time copy_time = 0;
  PromptCost prompt;
  const auto price_prompt = [&](std::uint32_t pages) {
    if (pages == priced_pages) return;
    priced_pages = pages;
    prompt = {rest_with(pages), rest_of_holder, kInfinite};
    if (!pulls || pages >= longest) return;
    copy_time = cluster.copy_time(longest - pages);
    prompt.transfer = seconds(copy_time);
  };

  Alternative best, second, home;
  double enough = kInfinite;  // a price above this changes nothing
  enum class Who { kHasRoom, kIdles, kWorth, kAnyone };
  const auto consider = [&](WorkerId w, Who who) {
    if (!cluster.accepts(w)) return;
    const bool holds = 2.0 * matched[w] * page_tokens_ >= thread.context;
    const bool stays = w == thread.worker && thread.admitted;
    if (who == Who::kHasRoom && options_.parts.admission && !has_room(thread, set, w, holds || stays)) return;
    if (who == Who::kIdles && !idles(w, now)) return;
    if (who == Who::kWorth && !is_worth(thread, set, w)) return;
    price_prompt(matched[w]);
    Alternative here;
    here.worker = w;
    here.reason = holder == kNone         ? SagaReason::kNew
                  : matched[w] == longest ? SagaReason::kHolder
                                          : SagaReason::kRecompute;
    double busy = 0;
    const PriceTerms terms = price_without_prompt(thread, own, w, &busy);
    here.terms = with_prompt(terms, w, busy, prompt.computed, 0);
    here.total = here.terms.total();
    if (pulls && matched[w] < longest) {
      const PriceTerms pulled = with_prompt(terms, w, busy, rest_of_holder, seconds(copy_time + link_wait(w, now)));
      const double total = pulled.total();
      if (total < here.total) {
        here.terms = pulled;
        here.source = holder;
        here.reason = SagaReason::kPull;
        here.total = total;
      }
    }
    if (w == thread.worker) {
      home = here;
      enough = std::min(enough, here.total * (1 + kRounding));
    }
    const auto before = [&here](const Alternative& other) {
      return other.worker == kNone || here.total < other.total ||
             (here.total == other.total && here.worker < other.worker);
    };
    if (before(best)) {
      second = best;
      best = here;
    } else if (before(second)) {
      second = here;
    }
    if (second.worker != kNone) enough = std::min(enough, second.total * (1 + kRounding));
  };

  // One pass bounds all as if they held what most do; those that hold less cost more, and the few that hold more have a
  // bound of their own.
  const std::uint32_t common = 2 * holders > workers ? longest : below;
  const Weights weights = weights_of(thread, own);
  const double own_steps = thread.output * own.step;
  const auto with_steps = [&] {
    return PromptCost{prompt.computed + own_steps, prompt.otherwise + own_steps, prompt.transfer};
  };
  price_prompt(common);
  bound_prices(weights, with_steps());
  if (longest > common) {
    price_prompt(longest);
    WorkerId w = holder;
    for (std::uint32_t left = holders; left > 0; ++w) {
      if (matched[w] != longest) continue;
      bounds_[w] = bound(weights, with_steps(), w);
      --left;
    }
  }
  float* const bounds = bounds_.data();
  const auto limit = [&enough] { return static_cast<float>(enough); };
  const auto consider_within = [&](WorkerId w, Who who) {
    if (matched[w] < common) {
      price_prompt(matched[w]);
      if (bound(weights, with_steps(), w) > limit()) return;
    }
    consider(w, who);
  };
  if (thread.worker != kNone) bounds[thread.worker] = kNobody;
  // If nobody has room: those without calls, for whose sake it was granted; or it has waited for long: anyone.
  for (const Who who : {Who::kHasRoom, Who::kIdles, Who::kWorth, Who::kAnyone}) {
    if (best.worker != kNone) break;
    if (thread.worker != kNone) consider(thread.worker, who);
    // The two of the least bounds first: few others are within what these leave.
    const WorkerId first = least_bound(bounds, workers);
    const float least = bounds[first];
    if (least > limit() || least == kNobody) continue;
    consider_within(first, who);
    bounds[first] = kNobody;
    const WorkerId next = least_bound(bounds, workers);
    if (bounds[next] <= limit() && bounds[next] != kNobody) {
      consider_within(next, who);
      for (WorkerId w = first_within(bounds, 0, workers, limit()); w < workers;
           w = first_within(bounds, w + 1, workers, limit())) {
        if (w != next && bounds[w] != kNobody) consider_within(w, who);
      }
    }
    bounds[first] = least;
  }
  // Where it is, unless elsewhere is better by a margin.
  if (home.worker != kNone && best.worker != thread.worker && options_.parts.affinity &&
      home.total <= best.total * (1 + options_.hysteresis)) {
    best = home;
  } else if (second.worker != kNone && best.worker != thread.worker &&
             second.total <= best.total * (1 + options_.tie)) {
    const bool second_drawn = (random_.next() & 1) != 0;
    const std::uint32_t open = cluster.open_calls(best.worker);
    const std::uint32_t other = cluster.open_calls(second.worker);
    if (other < open || (other == open && second_drawn)) best = second;
  }
  longest_ = longest;
  longest_worker_ = holder;
  return {best, home.terms};
}

// ---------------------------------------------------------------------------------------------------------------- calls

void SagaScheduler::task_arrived(std::uint32_t task, Time now, ClusterControl& cluster) {
  arrived_[task] = now;
  tenant_changed(cluster.tenant(task), now, cluster);
  const AgentGraph* graph = cluster.graph(task);
  const bool declared = graph != nullptr && options_.parts.prediction && graph->expected_seconds > 0;
  deadline_[task] = declared ? now + microseconds(kDeadlineFactor * graph->expected_seconds) : kNotDeclared;
}

void SagaScheduler::task_finished(std::uint32_t task, Time now, ClusterControl& cluster) {
  for (std::uint32_t id = first_thread_[task]; id != kNone;) {
    const std::uint32_t next = threads_[id].next;
    SAGA_ASSERT(threads_[id].open_calls == 0);
    leave(id, now, cluster, true);
    id = next;
  }
  first_thread_[task] = kNone;
  grant_waiting(now, cluster, kNone, nullptr);
}

// The thread counts nowhere any more.
void SagaScheduler::leave(std::uint32_t id, Time now, ClusterControl& cluster, bool ended) {
  Thread& thread = threads_[id];
  if (ended && thread.worker != kNone && thread.call != kNone) cluster.drop(thread.call, thread.worker);
  if (thread.lease != kNoLease) cluster.release(thread.lease);
  thread.lease = kNoLease;
  clear_timer(id);
  thread.state = State::kAbsent;
  count(thread, 0);
  if (ended) {
    if (thread.opened) predictor_.workflow_closed(id, now);
    thread = Thread{};
  }
  const std::uint32_t slot = active_slot_[id];
  if (slot == kNone) return;
  active_[slot] = active_.back();
  active_slot_[active_[slot]] = slot;
  active_.pop_back();
  active_slot_[id] = kNone;
}

WorkerId SagaScheduler::place(CallId call, Time now, ClusterControl& cluster) {
  if (workers_[0].capacity == 0) {
    for (WorkerId w = 0; w < options_.workers; ++w) learn_capacity(w, cluster);
  }
  refresh(now, cluster);
  const std::uint32_t id = cluster.thread(call);
  Thread& thread = threads_[id];
  const std::uint32_t task = cluster.task(call);
  const bool fresh = thread.call == kNone;
  const double presence_before = thread.state == State::kPaused ? presence_of(id, now) : 0;
  tell_started(id, call, now, cluster);
  if (thread.task == kNone) {
    thread.task = task;
    thread.next = first_thread_[task];
    first_thread_[task] = id;
  }
  if (active_slot_[id] == kNone) {
    active_slot_[id] = static_cast<std::uint32_t>(active_.size());
    active_.push_back(id);
  }
  if (thread.lease != kNoLease) {
    cluster.release(thread.lease);
    thread.lease = kNoLease;
  }
  add_open(thread, call);
  if (thread.open_calls++ >
      0) {  // overlaps a call of its own: it goes there too, with that one if it has not been sent
    if (thread.state != State::kRunning) return kNone;
    overlap(id, call, now, cluster);
    return thread.worker;
  }
  if (timers_.contains(id)) {  // it is back before its load from host memory began
    clear_timer(id);
    ++statistics_.prefetches_cancelled;
  }
  thread.context = cluster.prompt_tokens(call);
  thread.call = call;
  thread.state = State::kQueued;
  thread.preempts = thread.yields = false;
  const Forecast forecast = estimate(thread, id, now);
  if (thread.ready_at > now) {  // moved in its gap, and back before its pages have arrived
    thread.state = State::kArriving;
    thread.started_at = now;
    thread.predicted = 0;  // it waits for its pages: what it takes says nothing of the worker
    ++workers_[thread.worker].calls;
    count(thread, 1);
    ++statistics_.held;
    set_timer(id, thread.ready_at, cluster);
    return kNone;
  }
  thread.admitted = !fresh && thread.worker != kNone && presence_before >= options_.readmit;
  bool full = false;
  enqueue(id, fresh, forecast, now, cluster, &full);
  if (full) return grant(call, 0, now, cluster);
  WorkerId placed = kNone;
  grant_waiting(now, cluster, call, &placed);
  if (thread.state == State::kQueued) ++statistics_.queued;
  return placed;
}

void SagaScheduler::tell_started(std::uint32_t id, CallId call, Time now, ClusterControl& cluster) {
  Thread& thread = threads_[id];
  if (!thread.opened) {
    const std::uint32_t task = cluster.task(call);
    const AgentGraph* graph = options_.parts.prediction ? cluster.graph(task) : nullptr;
    predictor_.workflow_opened(id, cluster.tenant(task), cluster.agent_kind(task), graph, now);
    thread.opened = true;
  }
  const CallHints* hints = options_.parts.prediction ? cluster.hints(call) : nullptr;
  predictor_.call_started(id, cluster.prompt_tokens(call), cluster.prompt_kind(call), now, hints);
}

// One more call of a thread that runs.
void SagaScheduler::overlap(std::uint32_t id, CallId call, Time now, ClusterControl& cluster) {
  Thread& thread = threads_[id];
  thread.call = call;
  thread.context = std::max(thread.context, static_cast<double>(cluster.prompt_tokens(call)));
  thread.predicted = 0;  // what either of them takes says nothing of the worker
  estimate(thread, id, now);
  count(thread, 1);
  ++workers_[thread.worker].calls;
}

// The first of its open calls, which is counted at the worker already, and those that came behind it.
void SagaScheduler::send_open(std::uint32_t id, Time now, ClusterControl& cluster) {
  const CallId first = threads_[id].first_open;
  cluster.send(first, threads_[id].worker);
  for (CallId call = next_open_[first]; call != kNone; call = next_open_[call]) {
    overlap(id, call, now, cluster);
    cluster.send(call, threads_[id].worker);
  }
}

void SagaScheduler::add_open(Thread& thread, CallId call) {
  CallId* end = &thread.first_open;
  while (*end != kNone) end = &next_open_[*end];
  *end = call;
  next_open_[call] = kNone;
}

void SagaScheduler::remove_open(Thread& thread, CallId call) {
  CallId* at = &thread.first_open;
  while (*at != call) {
    SAGA_ASSERT(*at != kNone);
    at = &next_open_[*at];
  }
  *at = next_open_[call];
  next_open_[call] = kNone;
}

// Into the fair queue. *full: it has no room.
void SagaScheduler::enqueue(std::uint32_t id, bool fresh, const Forecast& forecast, Time now, ClusterControl& cluster,
                            bool* full) {
  Thread& thread = threads_[id];
  const std::uint32_t task = thread.task;
  // While it waits it asks for no memory, or those who wait could block each other.
  if (!thread.admitted) count(thread, 0);
  FairCall waiting;
  waiting.tenant = tenant_of(thread, cluster);
  waiting.kind = fresh && arrived_[task] == now ? FairClass::kAdmission : FairClass::kRunning;
  waiting.call = thread.call;
  const double own = call_seconds(thread);
  double work = own;
  if (options_.parts.fairness) {
    work = std::max(own, forecast.remaining_output_tokens * options_.costs.base +
                             costs_.prefill(0, forecast.remaining_growth_tokens + thread.growth, thread.context));
    waiting.work = thread.work = microseconds(work);
    waiting.deadline = deadline_[task];
  }
  waiting.cost = service(thread, own);
  thread.queued_at = now;
  thread.preempts = false;
  FairQueue& queue = thread.admitted ? queue_ : admissions_;
  *full = queue.push(waiting, now, &thread.entry) != Status::kOk;
  if (*full) ++statistics_.refused;
}

// What the running or next call is expected to take.
double SagaScheduler::call_seconds(const Thread& thread) const {
  return thread.output * options_.costs.base + costs_.prefill(0, thread.growth, thread.context);
}

// GPU time and KV room for that time, as one number.
std::uint64_t SagaScheduler::service(const Thread& thread, double gpu_seconds) const {
  const double bytes =
      std::min(thread.context * options_.kv_bytes_per_token * gpu_seconds * 1e6, 1e19);  // fits into 64 bits
  return std::min(queue_.service(microseconds(gpu_seconds), static_cast<std::uint64_t>(bytes)), kLargestGrant);
}

// Grants what may go and fits. The call `wanted` is not sent: its worker is returned in *placed.
void SagaScheduler::grant_waiting(Time now, ClusterControl& cluster, CallId wanted, WorkerId* placed) {
  FairCall next;
  const auto fitting = [&](const FairCall& waiting) {
    return fits(thread_of(waiting.call, cluster), waiting.call, now, cluster);
  };
  while ((queue_.size() > 0 && queue_.pop(now, fitting, &next)) ||
         (admissions_.size() > 0 && admissions_.pop(now, fitting, &next))) {
    Thread& thread = thread_of(next.call, cluster);
    // Both accounts count what calls take: one is charged by the grant, the other follows.
    thread.charged = next.cost;
    FairQueue& other = thread.admitted ? admissions_ : queue_;
    other.correct(tenant_of(thread, cluster), static_cast<std::int64_t>(next.cost));
    const WorkerId worker = grant(next.call, now - thread.queued_at, now, cluster);
    if (worker == kNone) continue;
    if (placed != nullptr && next.call == wanted) {
      *placed = worker;
    } else {
      send_open(cluster.thread(next.call), now, cluster);
    }
  }
  if (queue_.size() + admissions_.size() > 0) start_refresh(now, cluster);
}

// The worker, or kNone: its pages are on the way there, and it is sent when they have arrived.
WorkerId SagaScheduler::grant(CallId call, Time queued, Time now, ClusterControl& cluster) {
  const std::uint32_t id = cluster.thread(call);
  Thread& thread = threads_[id];
  ++statistics_.grants;
  const WorkerId home = thread.worker;
  const Choice choice = choose(thread, call, now, cluster);
  const Alternative& chosen = choice.chosen;
  receipt_ = {};
  receipt_.call = call;
  receipt_.worker = chosen.worker;
  receipt_.source = chosen.source;
  receipt_.reason = chosen.reason;
  receipt_.matched_pages = matched_[chosen.worker];
  receipt_.price = chosen.terms;
  receipt_.holder = home;
  receipt_.holder_price = choice.holder_terms;
  receipt_.queued = queued;
  cluster.granted(call);
  thread.state = State::kRunning;
  thread.admitted = true;
  thread.yields = false;
  thread.started_at = now;
  thread.predicted = chosen.terms.prefill + chosen.terms.decode;
  thread.prefill_seconds = chosen.terms.prefill;
  if (chosen.worker != home) {
    if (home != kNone) {
      thread.state = State::kAbsent;
      count(thread, 0);
      thread.state = State::kRunning;
      ++(chosen.source == kNone ? statistics_.recomputes : statistics_.pulls);
      note_move(thread, now);
    }
    thread.worker = chosen.worker;
  }
  ++workers_[thread.worker].calls;
  if (chosen.source != kNone) {
    copy_to(thread, call, chosen.source, chosen.worker, now, cluster);
    if (home != kNone && home != chosen.worker) cluster.drop(call, home);
    thread.state = State::kArriving;
    count(thread, 1);
    ++statistics_.held;
    set_timer(id, thread.ready_at, cluster);
    return kNone;
  }
  if (home != kNone && home != chosen.worker) cluster.drop(call, home);
  count(thread, 1);
  return thread.worker;
}

void SagaScheduler::copy_to(Thread& thread, CallId call, WorkerId from, WorkerId to, Time now,
                            ClusterControl& cluster) {
  const std::uint32_t pages = cluster.copy(call, from, to);
  Worker& worker = workers_[to];
  worker.link_free = std::max(worker.link_free, now) + cluster.copy_time(pages);
  thread.ready_at = worker.link_free + 1;
}

void SagaScheduler::call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                                  ClusterControl& cluster) {
  const std::uint32_t id = cluster.thread(call);
  Thread& thread = threads_[id];
  refresh(now, cluster);
  remove_open(thread, call);
  --thread.open_calls;
  call_left(worker, now, cluster);
  const std::uint32_t output = cluster.output_tokens(call);
  predictor_.call_ended(id, stop, tool, output, now, options_.parts.prediction ? cluster.hints(call) : nullptr);
  const std::uint64_t actual = service(thread, output * options_.costs.base + thread.prefill_seconds);
  const std::int64_t beyond = static_cast<std::int64_t>(actual) - static_cast<std::int64_t>(thread.charged);
  queue_.correct(tenant_of(thread, cluster), beyond);
  admissions_.correct(tenant_of(thread, cluster), beyond);
  thread.prefill_seconds = 0;  // of calls that overlap the first has it
  thread.charged = 0;
  if (thread.open_calls > 0) {
    if (thread.call == call) thread.call = thread.first_open;
  } else {
    const double took = seconds(now - thread.started_at);
    costs_.observe(worker, thread.predicted * (thread.output > 0 ? output / thread.output : 1), took);
    set_floor(worker);
    thread.call = call;
    thread.state = State::kPaused;
    thread.paused_at = now;
    thread.follows_tool = stop == StopReason::kToolUse;
    thread.context = cluster.prompt_tokens(call) + static_cast<double>(output);
    const Forecast forecast = estimate(thread, id, now);
    count(thread, presence_of(id, now));
    if (options_.parts.stealing) consider_steal(id, now, cluster);
    if (options_.leases && options_.parts.retention && thread.ready_at <= now) {
      if (forecast.end_probability < 0.5) {
        const Time until = now + std::min<Time>(forecast.gap_p95, 300'000'000) + 1;
        thread.lease = cluster.lease(call, thread.worker, static_cast<std::uint64_t>(thread.presence * 1e6), until);
      }
    }
    plan_prefetch(id, now, cluster);
    start_refresh(now, cluster);
  }
  grant_waiting(now, cluster, kNone, nullptr);
}

// One call fewer at the worker.
void SagaScheduler::call_left(WorkerId id, Time now, ClusterControl& cluster) {
  Worker& worker = workers_[id];
  if (--worker.calls > 0) return;
  worker.idle_since = now;
  set_timer(options_.threads + id, now + options_.longest_idle, cluster);
}

// What has gone to host memory by then is loaded shortly before the thread is expected back.
void SagaScheduler::plan_prefetch(std::uint32_t id, Time now, ClusterControl& cluster) {
  const Thread& thread = threads_[id];
  if (!options_.parts.prefetch || thread.presence < 0.5 || !cluster.has_host_tier() ||
      workers_[thread.worker].load.resident < workers_[thread.worker].capacity * kFullEnough) {
    return;
  }
  const Time load = cluster.copy_time(static_cast<std::uint32_t>(thread.context / page_tokens_));
  const Time gap = microseconds(thread.gap);
  if (gap > load) set_timer(id, now + gap - load, cluster);
}

// A paused thread goes to another worker, its pages with it. False: the copy is not worth it.
bool SagaScheduler::move_paused(std::uint32_t id, WorkerId to, double gain, Time now, ClusterControl& cluster) {
  Thread& thread = threads_[id];
  const WorkerId from = thread.worker;
  const std::uint32_t pages = cluster.cached_pages(thread.call, from);
  if (pages == 0) return false;
  const double copy = transfer_time(pages, to, now, cluster);
  const double late = std::max(0.0, copy - thread.gap);
  if (copy > options_.longest_copy_seconds || gain * kCallsOfGain <= late) return false;
  if (thread.lease != kNoLease) cluster.release(thread.lease);
  thread.lease = kNoLease;
  count(thread, 0);
  thread.worker = to;
  copy_to(thread, thread.call, from, to, now, cluster);
  cluster.drop(thread.call, from);
  count(thread, presence_of(id, now));
  ++statistics_.steals;
  note_move(thread, now);
  return true;
}

void SagaScheduler::note_move(Thread& thread, Time now) {
  if (thread.moved && seconds(now - thread.moved_at) < 3 * options_.settle_seconds) ++statistics_.thrash;
  thread.moved = true;
  thread.moved_at = now;
}

bool SagaScheduler::may_move(const Thread& thread, Time now, ClusterControl& cluster) const {
  if (thread.state != State::kPaused || thread.presence < 0.5 || thread.ready_at > now) return false;
  const bool settles = thread.moved && seconds(now - thread.moved_at) < options_.settle_seconds;
  return !settles || !cluster.accepts(thread.worker);
}

void SagaScheduler::consider_steal(std::uint32_t id, Time now, ClusterControl& cluster) {
  const Thread& thread = threads_[id];
  if (!may_move(thread, now, cluster)) return;
  const WorkerId home = thread.worker;
  const Load own = load_of(thread, 1);
  const double set = own.resident;  // the working set
  const bool may_stay = cluster.accepts(home);
  double stay = may_stay ? price(thread, own, home, thread.growth, 0).total() : kInfinite;
  WorkerId best = home;
  double best_price = stay;
  double enough = stay * (1 + kRounding);
  const Weights weights = weights_of(thread, own);
  bound_prices(weights, {thread.output * own.step + prefill_seconds(thread, thread.growth), 0, kInfinite});
  const float* const bounds = bounds_.data();
  for (WorkerId w = first_within(bounds, 0, options_.workers, static_cast<float>(enough)); w < options_.workers;
       w = first_within(bounds, w + 1, options_.workers, static_cast<float>(enough))) {
    if (w == home || !cluster.accepts(w)) continue;
    // Where all are full, to one that stays less full than this one.
    if (!has_room(thread, set, w, false) &&
        workers_[w].load.resident + thread.load.resident > workers_[home].load.resident) {
      continue;
    }
    const double there = price(thread, own, w, thread.growth, 0).total();
    if (there < best_price) {
      best = w;
      best_price = there;
      enough = there * (1 + kRounding);
    }
  }
  // Where it may not go on, it would have to be computed again.
  if (best != home && !may_stay) stay = price(thread, own, best, thread.context, 0).total();
  if (best != home && stay > best_price * (1 + options_.hysteresis)) {
    move_paused(id, best, stay - best_price, now, cluster);
  }
}

// A worker without calls takes a thread that is due to return from the most loaded one, if that has too much.
void SagaScheduler::steal_for_idle(WorkerId thief, Time now, ClusterControl& cluster) {
  if (workers_[thief].calls > 0 || !cluster.accepts(thief)) return;
  WorkerId victim = thief;
  double sum = 0;
  for (WorkerId w = 0; w < options_.workers; ++w) {  // those that are gone have no load
    sum += workers_[w].load.busy;
    if (workers_[w].load.busy > workers_[victim].load.busy) victim = w;
  }
  if (workers_[victim].load.busy * cluster.active_workers() < options_.steal_ratio * sum) return;
  std::uint32_t best = kNone;
  for (const std::uint32_t id : active_) {
    const Thread& thread = threads_[id];
    if (thread.worker != victim || !may_move(thread, now, cluster) ||
        !has_room(thread, working_set(thread), thief, false))
      continue;
    if (best == kNone || thread.paused_at < threads_[best].paused_at ||
        (thread.paused_at == threads_[best].paused_at && id < best)) {
      best = id;
    }
  }
  if (best == kNone) return;
  const Thread& thread = threads_[best];
  const Load own = load_of(thread, 1);
  const double gain =
      price(thread, own, victim, thread.growth, 0).total() - price(thread, own, thief, thread.growth, 0).total();
  if (gain > 0) move_paused(best, thief, gain, now, cluster);
}

// An admitted call that has waited long for room, and whose workflow is much more urgent than one that runs where it
// belongs, is sent there before it; the worker preempts the other when it needs the room.
void SagaScheduler::preempt_for_waiting(Time now, ClusterControl& cluster) {
  if (!options_.parts.fairness || queue_.size() == 0) return;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    Thread& waiting = threads_[active_[i]];
    if (waiting.state != State::kQueued || !waiting.admitted || !cluster.accepts(waiting.worker)) continue;
    std::uint32_t victim = kNone;
    for (const std::uint32_t id : active_) {
      const Thread& running = threads_[id];
      if (running.state != State::kRunning || running.worker != waiting.worker || running.yields) continue;
      if (!queue_.should_preempt(waiting.entry, running.work, deadline_[running.task], now)) continue;
      if (victim == kNone || running.work > threads_[victim].work ||
          (running.work == threads_[victim].work && id < victim)) {
        victim = id;
      }
    }
    if (victim == kNone) continue;
    threads_[victim].yields = true;
    cluster.set_priority(threads_[victim].call, kYielding);
    ++statistics_.preemptions;
    waiting.charged = queue_.call(waiting.entry).cost;
    queue_.remove(waiting.entry);
    queue_.correct(tenant_of(waiting, cluster), static_cast<std::int64_t>(waiting.charged));
    admissions_.correct(tenant_of(waiting, cluster), static_cast<std::int64_t>(waiting.charged));
    waiting.preempts = true;
    if (grant(waiting.call, now - waiting.queued_at, now, cluster) != kNone) send_open(active_[i], now, cluster);
    return;  // one at a time: the next is judged when this one runs
  }
}

std::int32_t SagaScheduler::priority(CallId call, Time, ClusterControl& cluster) {
  return thread_of(call, cluster).preempts ? kPreempting : 0;
}

std::uint32_t SagaScheduler::tenant_of(const Thread& thread, ClusterControl& cluster) const {
  return options_.parts.fairness ? cluster.tenant(thread.task) : 0;
}

// ---------------------------------------------------------------------------------------------------------------- time

void SagaScheduler::set_timer(std::uint32_t subject, Time at, ClusterControl& cluster) {
  timers_.set(subject, at);
  cluster.wake_at(at);
}

void SagaScheduler::clear_timer(std::uint32_t subject) {
  if (timers_.contains(subject)) timers_.erase(subject);
}

void SagaScheduler::start_refresh(Time now, ClusterControl& cluster) {
  if (next_refresh_ != 0) return;
  next_refresh_ = now + kRefreshEvery;
  cluster.wake_at(next_refresh_);
}

// Presence falls with time.
void SagaScheduler::refresh(Time now, ClusterControl& cluster) {
  if (next_refresh_ == 0 || now < next_refresh_) return;
  next_refresh_ = 0;
  bool again = queue_.size() + admissions_.size() > 0;
  for (std::size_t i = 0; i < active_.size();) {
    const std::uint32_t id = active_[i];
    Thread& thread = threads_[id];
    if (thread.state == State::kPaused) {
      const double presence = presence_of(id, now);
      if (presence < kAbsentPresence) {
        count(thread, 0);
        active_[i] = active_.back();
        active_slot_[active_[i]] = static_cast<std::uint32_t>(i);
        active_.pop_back();
        active_slot_[id] = kNone;
        continue;
      }
      count(thread, presence);
      again = true;
    }
    ++i;
  }
  if (again) start_refresh(now, cluster);
}

void SagaScheduler::timer(Time now, ClusterControl& cluster) {
  while (!timers_.empty() && timers_.top_key() <= now) {
    const std::uint32_t subject = timers_.top();
    timers_.erase(subject);
    if (subject >= options_.threads) {
      if (queue_.size() + admissions_.size() > 0) grant_waiting(now, cluster, kNone, nullptr);
      if (options_.parts.stealing) steal_for_idle(subject - options_.threads, now, cluster);
      continue;
    }
    Thread& thread = threads_[subject];
    if (thread.state == State::kArriving) {
      thread.state = State::kRunning;
      send_open(subject, now, cluster);
    } else if (thread.worker != kNone && thread.ready_at <= now && cluster.accepts(thread.worker) &&
               cluster.cached_or_host_pages(thread.call, thread.worker) >
                   cluster.cached_pages(thread.call, thread.worker)) {
      copy_to(thread, thread.call, thread.worker, thread.worker, now, cluster);
      ++statistics_.prefetches;
    }
  }
  if (next_refresh_ != 0 && now >= next_refresh_) {
    refresh(now, cluster);
    if (cluster.accepting_workers() < cluster.active_workers()) move_off(kNone, now, cluster);
    grant_waiting(now, cluster, kNone, nullptr);
    preempt_for_waiting(now, cluster);
  }
}

Time SagaScheduler::next_wake() const {
  const Time refresh_at = next_refresh_ != 0 ? next_refresh_ : kNotDeclared;
  return timers_.empty() ? refresh_at : std::min<Time>(timers_.top_key(), refresh_at);
}

// ------------------------------------------------------------------------------------------------- what only engines meet

void SagaScheduler::learn_capacity(WorkerId worker, ClusterControl& cluster) {
  page_tokens_ = cluster.page_tokens();
  workers_[worker].capacity = static_cast<double>(cluster.capacity_pages(worker)) * cluster.page_tokens();
}

void SagaScheduler::worker_added(WorkerId worker, Time now, ClusterControl& cluster) {
  workers_[worker] = Worker{};  // the id may have been that of another
  workers_[worker].idle_since = now;
  costs_.reset(worker);
  learn_capacity(worker, cluster);
  set_floor(worker);
  grant_waiting(now, cluster, kNone, nullptr);
}

// Its threads are nowhere any more; those with a call wait for another worker.
void SagaScheduler::worker_removed(WorkerId worker, Time now, ClusterControl& cluster) {
  for (std::uint32_t id = 0; id < options_.threads; ++id) {
    Thread& thread = threads_[id];
    if (thread.worker != worker) continue;
    const State state = thread.state;
    thread.state = State::kAbsent;
    count(thread, 0);
    thread.state = state;
    thread.worker = kNone;
    thread.ready_at = 0;
    if (thread.lease != kNoLease) cluster.release(thread.lease);
    thread.lease = kNoLease;
    if (state != State::kRunning && state != State::kArriving) continue;
    thread.admitted = false;
    queue_again(id, now, cluster);
  }
  workers_[worker].load = {};
  workers_[worker].running = workers_[worker].queued = 0;
  workers_[worker].calls = 0;
  set_floor(worker);
  clear_timer(options_.threads + worker);
  grant_waiting(now, cluster, kNone, nullptr);
}

// Its calls are at no worker after all.
void SagaScheduler::queue_again(std::uint32_t id, Time now, ClusterControl& cluster) {
  Thread& thread = threads_[id];
  uncharge(thread, cluster);
  clear_timer(id);
  thread.state = State::kQueued;
  thread.call = thread.first_open;
  thread.ready_at = 0;
  thread.yields = false;
  const Forecast forecast = estimate(thread, id, now);
  if (thread.admitted) count(thread, 1);
  bool full = false;
  enqueue(id, false, forecast, now, cluster, &full);
  SAGA_ASSERT(!full);  // there is an entry for each call
}

// Who is about to go there waits again, admitted as before; who pauses there moves, where that is worth it.
void SagaScheduler::worker_drained(WorkerId worker, Time now, ClusterControl& cluster) {
  for (std::uint32_t id = 0; id < options_.threads; ++id) {
    Thread& thread = threads_[id];
    if (thread.worker != worker) continue;
    if (thread.state == State::kArriving) {
      call_left(worker, now, cluster);
      queue_again(id, now, cluster);
    } else if (thread.state == State::kPaused) {
      clear_timer(id);
      thread.ready_at = std::min(thread.ready_at, now);
    }
  }
  move_off(worker, now, cluster);
  grant_waiting(now, cluster, kNone, nullptr);
}

void SagaScheduler::worker_resumed(WorkerId, Time now, ClusterControl& cluster) {
  grant_waiting(now, cluster, kNone, nullptr);
}

// Of a thread with this one open call alone: calls that overlap are not sent to wait.
void SagaScheduler::call_recalled(CallId call, Time now, ClusterControl& cluster) {
  const std::uint32_t id = cluster.thread(call);
  SAGA_ASSERT(threads_[id].state == State::kRunning && threads_[id].open_calls == 1);
  call_left(threads_[id].worker, now, cluster);
  queue_again(id, now, cluster);
}

// Moves threads that pause on a drained worker (kNone: on any). In order of id, as they share the links.
void SagaScheduler::move_off(WorkerId worker, Time now, ClusterControl& cluster) {
  if (!options_.parts.stealing) return;
  for (std::uint32_t id = 0; id < options_.threads; ++id) {
    const Thread& thread = threads_[id];
    if (thread.state != State::kPaused || thread.worker == kNone || cluster.accepts(thread.worker)) continue;
    if (worker == kNone || thread.worker == worker) consider_steal(id, now, cluster);
  }
}

// What the call was charged in advance, it did not take.
void SagaScheduler::uncharge(Thread& thread, ClusterControl& cluster) {
  queue_.correct(tenant_of(thread, cluster), -static_cast<std::int64_t>(thread.charged));
  admissions_.correct(tenant_of(thread, cluster), -static_cast<std::int64_t>(thread.charged));
  thread.charged = 0;
}

// The thread may go on with another call, or not: nothing is known of it but where its pages are.
void SagaScheduler::call_cancelled(CallId call, Time now, ClusterControl& cluster) {
  const std::uint32_t id = cluster.thread(call);
  Thread& thread = threads_[id];
  refresh(now, cluster);
  const bool first = call == thread.first_open;
  remove_open(thread, call);
  --thread.open_calls;
  if (thread.opened) predictor_.workflow_forgotten(id, now);
  thread.opened = false;
  for (CallId open = thread.first_open; open != kNone; open = next_open_[open]) tell_started(id, open, now, cluster);
  if (thread.state == State::kQueued && first) (thread.admitted ? queue_ : admissions_).remove(thread.entry);
  if (thread.open_calls == 0) {
    if (thread.state != State::kQueued) {
      call_left(thread.worker, now, cluster);
      uncharge(thread, cluster);
    }
    thread.call = kNone;
    leave(id, now, cluster, false);
  } else if (thread.state == State::kRunning) {
    call_left(thread.worker, now, cluster);
    if (thread.call == call) thread.call = thread.first_open;
  } else if (first) {  // the next one stands for the thread
    thread.call = thread.first_open;
    if (thread.state == State::kQueued) {
      thread.context = cluster.prompt_tokens(thread.call);
      const Forecast forecast = estimate(thread, id, now);
      bool full = false;
      enqueue(id, false, forecast, now, cluster, &full);
      SAGA_ASSERT(!full);  // its entry was removed just now
    }
  }
  grant_waiting(now, cluster, kNone, nullptr);
}

void SagaScheduler::tenant_changed(std::uint32_t tenant, Time, ClusterControl& cluster) {
  if (!options_.parts.fairness) return;
  const auto weight = std::max(1u, static_cast<std::uint32_t>(cluster.weight(tenant) * kFairWeightOne + 0.5));
  if (queue_.weight(tenant) == weight) return;
  queue_.set_weight(tenant, weight);
  admissions_.set_weight(tenant, weight);
}

// Earlier than was estimated, or not at all: then the call is computed again where it was to go.
void SagaScheduler::copy_ended(CallId call, WorkerId to, Time now, ClusterControl& cluster) {
  Thread& thread = thread_of(call, cluster);
  if (thread.call != call || thread.worker != to || thread.ready_at <= now) return;
  thread.ready_at = now;
  if (thread.state != State::kArriving) return;
  clear_timer(cluster.thread(call));
  thread.state = State::kRunning;
  send_open(cluster.thread(call), now, cluster);
}

void SagaScheduler::add_to(Digest& digest, Time now) const {
  const auto add = [&digest](double value) { digest.add(std::bit_cast<std::uint64_t>(value)); };
  const auto add_load = [&add](const Load& load) {
    for (const double value : {load.busy, load.step, load.prefill, load.resident}) add(value);
  };
  for (std::uint32_t id = 0; id < options_.threads; ++id) {
    const Thread& thread = threads_[id];
    if (thread.state == State::kAbsent && thread.call == kNone && !thread.opened) continue;
    digest.add(id | (static_cast<std::uint64_t>(thread.state) << 32) | (std::uint64_t{thread.moved} << 40) |
               (std::uint64_t{thread.follows_tool} << 41) | (std::uint64_t{thread.opened} << 42) |
               (std::uint64_t{thread.preempts} << 43) | (std::uint64_t{thread.yields} << 44) |
               (std::uint64_t{thread.admitted} << 45));
    digest.add(thread.worker | (std::uint64_t{thread.call} << 32));
    for (CallId call = thread.first_open; call != kNone; call = next_open_[call]) digest.add(call);
    digest.add(thread.task | (std::uint64_t{thread.open_calls} << 32));
    for (const double value : {thread.context, thread.output, thread.growth, thread.gap, thread.calls, thread.presence,
                               thread.running, thread.queued, thread.predicted}) {
      add(value);
    }
    add_load(thread.load);
    for (const std::uint64_t value : {thread.paused_at, thread.ready_at, thread.moved_at, thread.started_at,
                                      thread.charged, thread.work, thread.queued_at, thread.lease}) {
      digest.add(value);
    }
    if (thread.state == State::kQueued) digest.add(thread.entry);
    if (!thread.opened) continue;
    const Forecast forecast = predictor_.forecast(id, now);
    for (const double value : {forecast.end_probability, forecast.remaining_calls, forecast.current_output_tokens,
                               forecast.next_output_tokens, forecast.next_growth_tokens, forecast.confidence}) {
      add(value);
    }
    digest.add(forecast.gap_p50);
    digest.add(forecast.gap_p95);
  }
  for (WorkerId w = 0; w < options_.workers; ++w) {
    const Worker& worker = workers_[w];
    add_load(worker.load);
    for (const double value : {worker.running, worker.queued, worker.capacity, costs_.factor(w)}) add(value);
    digest.add(worker.calls);
    digest.add(worker.link_free);
    digest.add(worker.idle_since);
  }
  for (std::uint32_t subject = 0; subject < options_.threads + options_.workers; ++subject) {
    if (!timers_.contains(subject)) continue;
    digest.add(subject);
    digest.add(timers_.key(subject));
  }
  for (const std::uint32_t id : active_) digest.add(id);
  digest.add(next_refresh_);
  for (int word = 0; word < 4; ++word) digest.add(random_.state()[word]);
  for (const FairQueue* queue : {&queue_, &admissions_}) {
    digest.add(queue->virtual_time());
    for (std::uint32_t tenant = 0; tenant < options_.tenants; ++tenant) {
      digest.add(queue->weight(tenant) | (std::uint64_t{queue->waiting(tenant)} << 32));
      digest.add(static_cast<std::uint64_t>(queue->served(tenant)));
      digest.add(queue->credit(tenant));
      digest.add(static_cast<std::uint64_t>(queue->lag(tenant)));
    }
  }
  const CalibrationReport& calibration = predictor_.calibration().report();
  add(calibration.next_call.squared_error);
  add(calibration.within_horizon.squared_error);
  digest.add(calibration.gaps.gaps);
  digest.add(calibration.gaps.within_p90);
  for (const std::uint64_t value :
       {statistics_.grants, statistics_.queued, statistics_.held, statistics_.steals, statistics_.pulls,
        statistics_.recomputes, statistics_.prefetches, statistics_.preemptions}) {
    digest.add(value);
  }
}

bool SagaScheduler::verify() const {
  if (!queue_.verify() || !admissions_.verify() || !predictor_.verify() || !timers_.verify()) return false;
  std::vector<Worker> sums(options_.workers);
  std::uint32_t admitted = 0, newcomers = 0, listed = 0, of_tasks = 0;
  bool paused = false;
  for (std::uint32_t id = 0; id < options_.threads; ++id) {
    const Thread& thread = threads_[id];
    const std::uint32_t slot = active_slot_[id];
    const bool active = slot != kNone;
    if (active && (slot >= active_.size() || active_[slot] != id)) return false;
    listed += active;
    of_tasks += thread.task != kNone;
    if (thread.opened != predictor_.is_open(id)) return false;

    std::uint32_t open = 0;
    bool call_open = false;
    for (CallId call = thread.first_open; call != kNone; call = next_open_[call]) {
      if (++open > thread.open_calls) return false;
      call_open = call_open || call == thread.call;
    }
    if (open != thread.open_calls) return false;
    const bool waits = thread.state == State::kQueued || thread.state == State::kArriving;
    const bool calls = waits || thread.state == State::kRunning;
    if (calls != (open > 0) || call_open != calls || (waits && thread.call != thread.first_open)) return false;
    const bool counted = thread.load.resident > 0 || thread.running > 0 || thread.queued > 0;
    if ((calls || counted) && !active) return false;
    if (timers_.contains(id) && thread.state != State::kArriving && thread.state != State::kPaused) return false;
    switch (thread.state) {
      case State::kAbsent:
        if (active) return false;
        break;
      case State::kQueued: {
        const FairQueue& queue = thread.admitted ? queue_ : admissions_;
        if (queue.call(thread.entry).call != thread.call) return false;
        ++(thread.admitted ? admitted : newcomers);
        break;
      }
      case State::kArriving:
        if (!timers_.contains(id) || timers_.key(id) != thread.ready_at) return false;
        break;
      case State::kRunning:
        break;
      case State::kPaused:
        paused = paused || active;
        if (thread.call == kNone) return false;
        break;
    }
    const bool sent = thread.state == State::kArriving || thread.state == State::kRunning;
    if ((thread.running > 0) != sent || (thread.queued > 0 && thread.state != State::kQueued)) return false;
    if (thread.worker == kNone) {
      if (sent || counted) return false;
      continue;
    }
    Worker& sum = sums[thread.worker];
    if (sent) sum.calls += thread.state == State::kRunning ? open : 1;
    sum.load.busy += thread.load.busy;
    sum.load.step += thread.load.step;
    sum.load.prefill += thread.load.prefill;
    sum.load.resident += thread.load.resident;
    sum.running += thread.running;
    sum.queued += thread.queued;
  }
  if (listed != active_.size() || queue_.size() != admitted || admissions_.size() != newcomers) return false;
  if ((paused || admitted + newcomers > 0) && next_refresh_ == 0) return false;

  for (std::uint32_t task = 0; task < options_.tasks; ++task) {
    for (std::uint32_t id = first_thread_[task]; id != kNone; id = threads_[id].next) {
      if (threads_[id].task != task || of_tasks-- == 0) return false;
    }
  }
  if (of_tasks != 0) return false;

  const auto same = [](double a, double b, double tolerance) { return a - b < tolerance && b - a < tolerance; };
  for (WorkerId w = 0; w < options_.workers; ++w) {
    const Worker& worker = workers_[w];
    const Worker& sum = sums[w];
    const Floor floor = floor_of(w);
    if (static_cast<float>(floor.step) != floors_.step[w] || static_cast<float>(floor.busy) != floors_.busy[w] ||
        static_cast<float>(floor.growing) != floors_.growing[w] ||
        static_cast<float>(floor.longer) != floors_.longer[w] ||
        static_cast<float>(floor.factor) != floors_.factor[w]) {
      return false;
    }
    if (worker.calls != sum.calls) return false;
    if (!same(worker.load.busy, sum.load.busy, 1e-6) || !same(worker.load.step, sum.load.step, 1e-6) ||
        !same(worker.load.prefill, sum.load.prefill, 1e-6) || !same(worker.load.resident, sum.load.resident, 1) ||
        !same(worker.running, sum.running, 1) || !same(worker.queued, sum.queued, 1)) {
      return false;
    }
  }
  return true;
}

}  // namespace saga
