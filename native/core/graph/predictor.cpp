#include "predictor.hpp"

#include <algorithm>
#include <bit>

#include "../base/assert.hpp"
#include "../base/real.hpp"

namespace saga {
namespace {

constexpr double kPseudoWaits = 8;          // of the table above, in every hazard
constexpr std::uint32_t kFewOpenWaits = 8;  // below twice as many a table is not rebuilt for them
constexpr double kPseudoTasks = 4;          // in shares of error, variances and hints
constexpr double kPseudoSteps = 8;          // in transition probabilities
constexpr double kPseudoTokens = 8;         // samples, in means
constexpr double kMostHazard = 0.999;       // both of a bucket
constexpr double kMaxCounted = 65536;
constexpr double kMaxTokenSamples = 4096;
constexpr double kMaxTasks = 1024;
constexpr double kLifeUnit = 64;  // length of the declared number of calls in its life table
constexpr double kPriorOutput = 250;
constexpr double kPriorGrowth = 300;
constexpr double kPriorTaskCalls = 32;
constexpr double kLongestSeconds = 3600;  // of a return, in means
constexpr double kLongestMultiple = 8;
constexpr double kLearnedGaps = 64;  // waits from which on a class knows more than the declared mean of a step
constexpr double kMicroseconds = 1e6;
constexpr double kMaxCalls = 1e6;
constexpr double kExpertPrior[] = {0.2, 0.3, 0.5};
constexpr double kCommonError = 0.9;  // of the smallest share
constexpr double kLengthPrior[] = {0.7, 0.3};
constexpr double kFinalPseudo = 20;
constexpr double kFinalPrior[] = {0.01, 0.95};  // share of last calls among those told kNo, kYes

constexpr double kAnyEnds = 0.05;

struct HazardPair {
  double returned, closed;
};

HazardPair prior_hazards(std::uint32_t table, const BucketGrid& grid, std::uint32_t bucket) {
  if (table == 0) return {0.02, 0.01};
  if (table == 1) return {0.04, 0.004};
  if (table < Predictor::kStepKinds) return {0.05, 0.002};
  const double multiple = grid.start[bucket];
  return {multiple < 0.25 ? 0.003 : multiple < 4 ? 0.06 : 0.03, 0.002};
}

double odds(double p) {
  const double bounded = std::clamp(p, 1e-9, 1 - 1e-9);
  return bounded / (1 - bounded);
}

double blend(double sum, double weight, double prior, double prior_weight) {
  return (sum + prior * prior_weight) / (weight + prior_weight);
}

Time to_time(double microseconds) {
  constexpr double kMost = 9e18;
  if (!(microseconds > 0)) return 0;
  return static_cast<Time>(microseconds < kMost ? microseconds : kMost);
}

std::uint32_t life_bucket(double x) {
  if (x < 8) return x > 0 ? static_cast<std::uint32_t>(x) : 0;
  const auto whole = static_cast<std::uint64_t>(std::min(x, 1e15));
  const auto octave = static_cast<std::uint32_t>(std::bit_width(whole)) - 1;
  const auto bucket = 8 + (octave - 3) * 4 + static_cast<std::uint32_t>((whole >> (octave - 2)) & 3);
  return std::min(bucket, 47u);
}

double life_bound(std::uint32_t bucket) {
  if (bucket <= 8) return bucket;
  const std::uint32_t octave = 3 + (bucket - 8) / 4;
  return static_cast<double>((4ull + (bucket - 8) % 4) << (octave - 2));
}

bool due(std::uint32_t since, double events, std::uint32_t open) {
  const double by_events = std::min(2048.0, events / 8);
  return since >= 16 && since >= by_events && since >= open;
}

}  // namespace

void Predictor::OwnMean::add(double tokens, double log) {
  count += 1;
  sum += tokens;
  log_sum += log;
  log_square_sum += log * log;
}

Predictor::Predictor(const PredictorOptions& options) : options_(options) {
  SAGA_ASSERT(options.max_workflows > 0 && options.max_workflows < kNone);
  classes_.resize(std::size_t{options.max_agent_classes} + 2);
  class_of_.assign(std::size_t{options.max_tenants} * options.max_agent_kinds, kNone);
  workflows_.resize(options.max_workflows);
  for (AgentClass& one : classes_) {
    one.tenant = kNone;
    one.agent_kind = kNone;
    for (GapTable& table : one.gaps) table.oldest = table.newest = kNone;
  }
  rebuild_all(0);
}

std::uint32_t Predictor::step_kind_of(StopReason stop, ToolClass tool) {
  if (stop == StopReason::kEndTurn) return 0;
  if (stop == StopReason::kUnknown && tool == ToolClass::kNone) return 1;
  return 2 + static_cast<std::uint32_t>(tool);
}

std::uint32_t Predictor::class_of(std::uint32_t tenant, std::uint32_t agent_kind) const {
  if (tenant >= options_.max_tenants || agent_kind >= options_.max_agent_kinds) return kOthers;
  return class_of_[std::size_t{tenant} * options_.max_agent_kinds + agent_kind];
}

std::uint32_t Predictor::find_or_add_class(std::uint32_t tenant, std::uint32_t agent_kind) {
  const std::uint32_t known = class_of(tenant, agent_kind);
  if (known != kNone) return known;
  std::uint32_t& entry = class_of_[std::size_t{tenant} * options_.max_agent_kinds + agent_kind];
  if (used_classes_ == classes_.size()) return entry = kOthers;
  entry = used_classes_++;
  classes_[entry].tenant = tenant;
  classes_[entry].agent_kind = agent_kind;
  // Without counts of its own it predicts what is known over all.
  for (std::uint32_t t = 0; t < kGapTables; ++t) rebuild_gap(entry, t, now_);
  rebuild_life(entry, false, now_);
  rebuild_life(entry, true, now_);
  return entry;
}

// Tables
// ------------------------------------------------------------------------------------------------------------------

void Predictor::count_open(std::uint32_t agent_class, std::uint32_t table, Time now, double* reached) const {
  const std::uint32_t which = table < kHintedGap ? 0 : table - kHintedGap + 1;
  for (std::uint32_t s = classes_[agent_class].gaps[table].oldest; s != kNone; s = workflows_[s].waits[which].newer) {
    const Time age = now - workflows_[s].gap_start;
    const std::uint32_t bucket = table < kHintedGap
                                     ? bucket_of(age)
                                     : multiple_bucket_of(static_cast<double>(age) / workflows_[s].waits[which].unit);
    reached[bucket] += 1;
  }
}

void Predictor::rebuild_gap(std::uint32_t agent_class, std::uint32_t t, Time now) {
  const BucketGrid& grid = grid_of(t);
  GapTable& table = classes_[agent_class].gaps[t];
  table.since_rebuild = 0;
  table.open_at_rebuild = table.open_waits;
  if (table.events > kMaxCounted) {
    for (std::uint32_t k = 0; k < kBuckets; ++k) {
      table.returned[k] *= 0.5f;
      table.closed[k] *= 0.5f;
      table.censored[k] *= 0.5f;
    }
    table.events *= 0.5;
  }
  double reached[kBuckets] = {};
  if (agent_class != kAll) {
    count_open(agent_class, t, now, reached);
  } else {
    for (std::uint32_t c = kOthers; c < used_classes_; ++c) count_open(c, t, now, reached);
  }
  double at_risk[kBuckets];
  double sum = 0;
  for (std::uint32_t k = kBuckets; k-- > 0;) {
    sum += reached[k] + static_cast<double>(table.returned[k]) + static_cast<double>(table.closed[k]) +
           static_cast<double>(table.censored[k]);
    at_risk[k] = sum;
  }
  // Returns and waits at risk since rates must fall, the prior included.
  double old_returned = 0;
  double old_at_risk = 0;
  for (std::uint32_t k = 0; k < kBuckets; ++k) {
    HazardPair above = prior_hazards(t, grid, k);
    if (agent_class != kAll) {
      const GapTable& parent = classes_[kAll].gaps[t];
      above = {static_cast<double>(parent.return_hazard[k]), static_cast<double>(parent.close_hazard[k])};
    }
    // Of ages that hardly a wait has seen: if next to nobody returned just before them, then neither just behind.
    if (k > grid.falling_from) above.returned = std::min(above.returned, old_returned / old_at_risk);
    if (k >= grid.falling_from) {
      old_returned +=
          static_cast<double>(table.returned[k]) + (k == grid.falling_from ? kPseudoWaits * above.returned : 0);
      old_at_risk += at_risk[k] + (k == grid.falling_from ? kPseudoWaits : 0);
    }
    const double returned = blend(static_cast<double>(table.returned[k]), at_risk[k], above.returned, kPseudoWaits);
    const double closed = blend(static_cast<double>(table.closed[k]), at_risk[k], above.closed, kPseudoWaits);
    const double bound = std::min(1.0, kMostHazard / (returned + closed));
    table.return_hazard[k] = static_cast<float>(returned * bound);
    table.close_hazard[k] = static_cast<float>(closed * bound);
  }

  table.waiting[0] = 1;
  for (std::uint32_t k = 0; k < kBuckets; ++k) {
    const double leave = static_cast<double>(table.return_hazard[k]) + static_cast<double>(table.close_hazard[k]);
    table.waiting[k + 1] = table.waiting[k] * (1 - leave);
  }
  table.returns[kBuckets] = 0;
  table.return_time[kBuckets] = 0;
  const double longest = t < kHintedGap ? kLongestSeconds : kLongestMultiple;
  for (std::uint32_t k = kBuckets; k-- > 0;) {
    const double mass = table.waiting[k] * static_cast<double>(table.return_hazard[k]);
    const double middle = std::min(longest, 0.5 * (grid.start[k] + grid.start[k + 1]));
    table.returns[k] = table.returns[k + 1] + mass;
    table.return_time[k] = table.return_time[k + 1] + mass * middle;
  }
  table.quantile_50 = gap_quantile(table, grid, 0, 0.50);
  table.quantile_90 = gap_quantile(table, grid, 0, 0.90);
  table.quantile_95 = gap_quantile(table, grid, 0, 0.95);
  if (t < kStepKinds) rebuild_end_factors(classes_[agent_class]);
}

void Predictor::rebuild_end_factors(AgentClass& one) {
  double ends = kPseudoSteps * kAnyEnds;
  for (std::uint32_t k = 0; k < kStepKinds; ++k) ends += one.step_count[k] * (1 - one.gaps[k].returns[0]);
  const double any = ends / (one.step_count_sum + kPseudoSteps);
  for (std::uint32_t k = 0; k < kStepKinds; ++k) one.end_factor[k] = odds(1 - one.gaps[k].returns[0]) / odds(any);
}

Predictor::GapPoint Predictor::point_at(const GapTable& table, const BucketGrid& grid, double age) {
  if (!(age > 0)) return {table.waiting[0], table.returns[0], table.return_time[0]};
  if (age >= grid.start[kBuckets]) return {table.waiting[kBuckets], 0, 0};
  const auto above = std::upper_bound(grid.start.begin(), grid.start.end(), age);
  const auto k = static_cast<std::uint32_t>(above - grid.start.begin()) - 1;
  const double part = (age - grid.start[k]) / (grid.start[k + 1] - grid.start[k]);
  const auto between = [part, k](const double* column) { return column[k] + part * (column[k + 1] - column[k]); };
  return {between(table.waiting), between(table.returns), between(table.return_time)};
}

double Predictor::gap_quantile(const GapTable& table, const BucketGrid& grid, double age, double p) {
  const double target = (1 - p) * point_at(table, grid, age).returns;
  if (!(target > 0)) return 0;
  // First bound at which no more than the target is still to return.
  std::uint32_t low = 0;
  std::uint32_t high = kBuckets;
  while (low < high) {
    const std::uint32_t middle = (low + high) / 2;
    if (table.returns[middle] <= target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  if (low == 0) return 0;
  const double mass = table.returns[low - 1] - table.returns[low];
  const double part = mass > 0 ? (table.returns[low - 1] - target) / mass : 1;
  const double at = grid.start[low - 1] + part * (grid.start[low] - grid.start[low - 1]);
  return at > age ? at - age : 0;
}

// Tasks that wait are at risk too. One inside a bucket has come through that part of it. And its wait may be the end
// already: it counts for as much of an end as its age makes likely, or the ends of clients that never close their
// workflows would be learned only when these are forgotten.
void Predictor::count_open_life(std::uint32_t agent_class, bool declared, Time now, double* ended,
                                double* inside) const {
  for (std::uint32_t t = 0; t < kStepKinds; ++t) {
    const GapTable& table = classes_[agent_class].gaps[t];
    for (std::uint32_t s = table.oldest; s != kNone; s = workflows_[s].waits[0].newer) {
      const Workflow& workflow = workflows_[s];
      if (declared && workflow.declared == nullptr) continue;
      const double unit = declared ? kLifeUnit / workflow.declared->total_calls() : 1;
      const double x = (workflow.ended - 0.5) * unit;
      const std::uint32_t life = life_bucket(x);
      const std::uint32_t bucket = bucket_of(now - workflow.gap_start);
      const double over = 1 - table.returns[bucket] / table.waiting[bucket];
      const double part = (x - life_bound(life)) / (life_bound(life + 1) - life_bound(life));
      ended[life] += over;
      inside[life] += (1 - over) * std::clamp(part, 0.0, 1.0);
    }
  }
}

void Predictor::rebuild_life(std::uint32_t agent_class, bool declared, Time now) {
  AgentClass& one = classes_[agent_class];
  LifeTable& table = declared ? one.declared_calls : one.calls;
  const AgentClass& all = classes_[kAll];
  const LifeTable* parent = agent_class == kAll ? nullptr : declared ? &all.declared_calls : &all.calls;
  const double prior_rate = 1 / (declared ? kLifeUnit : kPriorTaskCalls);
  table.since_rebuild = 0;
  if (table.events > kMaxCounted) {
    for (std::uint32_t k = 0; k < kLifeBuckets; ++k) {
      table.ended[k] *= 0.5;
      table.passed[k] *= 0.5;
    }
    table.events *= 0.5;
  }
  double ended[kLifeBuckets] = {};
  double inside[kLifeBuckets] = {};
  if (agent_class != kAll) {
    count_open_life(agent_class, declared, now, ended, inside);
  } else {
    for (std::uint32_t c = kOthers; c < used_classes_; ++c) count_open_life(c, declared, now, ended, inside);
  }
  table.alive[0] = 1;
  for (std::uint32_t k = 0; k < kLifeBuckets; ++k) {
    const double width = life_bound(k + 1) - life_bound(k);
    const double above = parent != nullptr ? parent->pass[k] : real_exp(-prior_rate * width);
    const double alive = table.passed[k] + inside[k];
    const double pass = blend(alive, alive + table.ended[k] + ended[k], above, kPseudoTasks);
    table.pass[k] = std::clamp(pass, 1e-4, 1 - 1e-9);
    table.alive[k + 1] = table.alive[k] * table.pass[k];
  }
  // Behind the last bucket a task is taken to go on for as long as that is wide.
  table.area[kLifeBuckets] = table.alive[kLifeBuckets] * (life_bound(kLifeBuckets) - life_bound(kLifeBuckets - 1));
  for (std::uint32_t k = kLifeBuckets; k-- > 0;) {
    const double width = life_bound(k + 1) - life_bound(k);
    table.area[k] = table.area[k + 1] + 0.5 * width * (table.alive[k] + table.alive[k + 1]);
  }
}

Predictor::LifePoint Predictor::life_at(const LifeTable& table, double x) {
  const std::uint32_t k = life_bucket(x);
  const double low = life_bound(k);
  const double width = life_bound(k + 1) - low;
  const double part = std::clamp((x - low) / width, 0.0, 1.0);
  const double alive = table.alive[k] + part * (table.alive[k + 1] - table.alive[k]);
  return {alive, table.area[k + 1] + 0.5 * width * (1 - part) * (alive + table.alive[k + 1])};
}

void Predictor::rebuild_all(Time now) {
  // Class kAll first: the others rest on it.
  for (std::uint32_t c = kAll; c < used_classes_; ++c) {
    for (std::uint32_t t = 0; t < kGapTables; ++t) rebuild_gap(c, t, now);
    rebuild_life(c, false, now);
    rebuild_life(c, true, now);
  }
}

void Predictor::learn_tokens(TokenTable& table, double tokens, std::uint32_t bucket) {
  if (table.samples >= kMaxTokenSamples) {
    for (float& count : table.count) count *= 0.5f;
    table.samples *= 0.5;
    table.sum *= 0.5;
  }
  table.count[bucket] += 1;
  table.samples += 1;
  table.sum += tokens;
}

double Predictor::token_quantile(const TokenTable& table, double p) {
  double left = p * table.samples;
  std::uint32_t k = 0;
  for (; k + 1 < kTokenBuckets; ++k) {
    left -= static_cast<double>(table.count[k]);
    if (left <= 0) break;
  }
  return real_exp2(0.5 * (k + 1)) - 1;
}

void Predictor::learn_variance(VarianceTable& table, const OwnMean& own) {
  if (own.count < 1) return;
  if (table.tasks >= kMaxTasks) {
    for (double* value : {&table.within, &table.within_freedom, &table.tasks, &table.mean_sum, &table.mean_square_sum,
                          &table.inverse_samples}) {
      *value *= 0.5;
    }
  }
  const double mean = own.log_sum / own.count;
  table.within += std::max(0.0, own.log_square_sum - own.count * mean * mean);
  table.within_freedom += own.count - 1;
  table.tasks += 1;
  table.mean_sum += mean;
  table.mean_square_sum += mean * mean;
  table.inverse_samples += 1 / own.count;
}

double Predictor::variance_ratio(const VarianceTable& one, const VarianceTable& all) {
  struct Variances {
    double within, between;
  };
  const auto estimate = [](const VarianceTable& table, Variances prior) {
    const double within = blend(table.within, table.within_freedom, prior.within, kPseudoTasks);
    if (table.tasks <= 1) return Variances{within, prior.between};
    const double spread = table.mean_square_sum - table.mean_sum * table.mean_sum / table.tasks;
    // Means of tasks differ by chance too: by the variance within over their lengths.
    const double chance = within * table.inverse_samples / table.tasks * (table.tasks - 1);
    return Variances{within, blend(std::max(0.0, spread - chance), table.tasks - 1, prior.between, kPseudoTasks)};
  };
  const Variances above = estimate(all, {1, 0.25});
  const Variances here = estimate(one, above);
  return std::clamp(here.within / here.between, 1.0 / 16, 64.0);
}

void Predictor::add_transition(std::uint32_t agent_class, std::uint32_t from, std::uint32_t to, double weight) {
  for (const std::uint32_t c : {agent_class, kAll}) {
    AgentClass& one = classes_[c];
    if (one.transition_sum[from] >= kTransitionWindow) {
      for (double& count : one.transitions[from]) count *= 0.5;
      one.transition_sum[from] *= 0.5;
    }
    if (to != kEnd) {
      if (one.step_count_sum >= kMaxTokenSamples) {
        for (double& count : one.step_count) count *= 0.5;
        one.step_count_sum *= 0.5;
      }
      one.step_count[to] += 1;
      one.step_count_sum += 1;
    }
    one.transitions[from][to] += weight;
    one.transition_sum[from] += weight;
  }
}

// Waits
// -------------------------------------------------------------------------------------------------------------------

void Predictor::begin_wait(std::uint32_t slot, std::uint32_t which, std::uint32_t t, double unit) {
  Workflow& workflow = workflows_[slot];
  GapTable& table = classes_[workflow.agent_class].gaps[t];
  Wait& wait = workflow.waits[which];
  wait = {t, table.newest, kNone, unit};
  (table.newest == kNone ? table.oldest : workflows_[table.newest].waits[which].newer) = slot;
  table.newest = slot;
  // Where waits begin and none ends there is something to learn too.
  for (const std::uint32_t c : {kAll, workflow.agent_class}) {
    GapTable& counted = classes_[c].gaps[t];
    if (++counted.open_waits < 2 * std::max(kFewOpenWaits, counted.open_at_rebuild)) continue;
    rebuild_gap(c, t, workflow.gap_start);
    if (which != 0) continue;
    rebuild_life(c, false, workflow.gap_start);
    rebuild_life(c, true, workflow.gap_start);
  }
}

void Predictor::end_waits(std::uint32_t slot, std::uint32_t how, Time now) {
  Workflow& workflow = workflows_[slot];
  const Time gap = now - workflow.gap_start;
  for (std::uint32_t which = 0; which < 3; ++which) {
    Wait& wait = workflow.waits[which];
    if (wait.table == kNone) continue;
    const std::uint32_t t = wait.table;
    GapTable& own = classes_[workflow.agent_class].gaps[t];
    (wait.older == kNone ? own.oldest : workflows_[wait.older].waits[which].newer) = wait.newer;
    (wait.newer == kNone ? own.newest : workflows_[wait.newer].waits[which].older) = wait.older;
    const std::uint32_t bucket =
        t < kHintedGap ? bucket_of(gap) : multiple_bucket_of(static_cast<double>(gap) / wait.unit);
    wait = Wait{};
    for (const std::uint32_t c : {kAll, workflow.agent_class}) {
      GapTable& table = classes_[c].gaps[t];
      --table.open_waits;
      float* counts = how == 0 ? table.returned : how == 1 ? table.closed : table.censored;
      counts[bucket] += 1;
      table.events += 1;
      ++table.since_rebuild;
      if (due(table.since_rebuild, table.events, table.open_waits)) rebuild_gap(c, t, now);
    }
  }
  if (how == 0) calibration_.gap_known(gap, workflow.predicted_p50, workflow.predicted_p90, workflow.predicted_p95);
  if (how != 2) calibration_.next_call_known(workflow.predicted_next, how == 0);
  const bool within = how == 0 && gap <= options_.reuse_horizon;
  if (how != 2 || gap > options_.reuse_horizon) calibration_.within_horizon_known(workflow.predicted_within, within);
}

std::uint32_t Predictor::open_waits(std::uint32_t agent_class) const {
  std::uint32_t sum = 0;
  for (std::uint32_t t = 0; t < kStepKinds; ++t) sum += classes_[agent_class].gaps[t].open_waits;
  return sum;
}

void Predictor::resolve_calls(Workflow& workflow, double ended, Time now) {
  if (workflow.unresolved == 0) return;
  const double first = workflow.ended - workflow.unresolved + 1;
  const double n = workflow.ended;
  workflow.unresolved = 0;
  const auto learn = [&](std::uint32_t c, bool declared, double unit) {
    LifeTable& table = declared ? classes_[c].declared_calls : classes_[c].calls;
    const std::uint32_t last = life_bucket((n - 0.5) * unit);
    const std::uint32_t next = life_bucket((n + 0.5) * unit);
    for (std::uint32_t k = life_bucket((first - 0.5) * unit); k < last; ++k) table.passed[k] += 1;
    for (std::uint32_t k = last; k < next; ++k) table.passed[k] += 1 - ended;
    table.ended[last] += ended;
    table.events += 1;
    ++table.since_rebuild;
    if (due(table.since_rebuild, table.events, open_waits(c))) rebuild_life(c, declared, now);
  };
  const double unit = workflow.declared != nullptr ? kLifeUnit / workflow.declared->total_calls() : 0;
  for (const std::uint32_t c : {kAll, workflow.agent_class}) {
    learn(c, false, 1);
    if (unit > 0) learn(c, true, unit);
    if (workflow.final_step != CallHints::Final::kNotTold) {
      const std::uint32_t told = workflow.final_step == CallHints::Final::kYes;
      classes_[c].final_told[told] += 1;
      classes_[c].final_ended[told] += ended;
    }
  }
}

// Events
// ------------------------------------------------------------------------------------------------------------------

void Predictor::workflow_opened(std::uint32_t slot, std::uint32_t tenant, std::uint32_t agent_kind,
                                const AgentGraph* declared, Time now) {
  SAGA_ASSERT(slot < workflows_.size() && workflows_[slot].state == State::kFree);
  SAGA_ASSERT(declared == nullptr || declared->steps.empty() || declared->prepared());
  now_ = now;
  Workflow& workflow = workflows_[slot];
  workflow = Workflow{};
  workflow.state = State::kOpen;
  workflow.agent_class = find_or_add_class(tenant, agent_kind);
  workflow.step_kind = kStart;
  if (declared != nullptr && declared->prepared()) workflow.declared = declared;
}

void Predictor::call_started(std::uint32_t slot, std::uint32_t prompt_tokens, PromptKind kind, Time now,
                             const CallHints* hints) {
  SAGA_ASSERT(is_open(slot));
  now_ = now;
  Workflow& workflow = workflows_[slot];
  if (workflow.state == State::kWaiting) {
    end_waits(slot, 0, now);
    resolve_calls(workflow, 0, now);
    // A prompt that shrank, or starts anew, is another conversation: what it adds is not a tool's result.
    if (kind != PromptKind::kStart && prompt_tokens >= workflow.prompt_tokens) {
      const std::uint64_t before = std::uint64_t{workflow.prompt_tokens} + workflow.output_tokens;
      const double growth = prompt_tokens > before ? static_cast<double>(prompt_tokens - before) : 0;
      const double log = real_log2(1 + growth);
      const auto bucket = std::min(kTokenBuckets - 1, static_cast<std::uint32_t>(2 * log));
      workflow.growth.add(growth, log);
      for (const std::uint32_t c : {kAll, workflow.agent_class}) {
        learn_tokens(classes_[c].growth[workflow.step_kind], growth, bucket);
        learn_tokens(classes_[c].any_growth, growth, bucket);
      }
    }
  }
  workflow.state = State::kRunning;
  workflow.prompt_tokens = prompt_tokens;
  workflow.running_step = kNone;
  workflow.final_step = CallHints::Final::kNotTold;
  ++workflow.calls;
  ++workflow.open_calls;
  if (hints == nullptr) return;
  workflow.final_step = hints->final_step;
  if (hints->output_tokens > 0) workflow.hinted_output = hints->output_tokens;
  if (workflow.declared != nullptr && hints->step < workflow.declared->steps.size()) {
    workflow.running_step = hints->step;
  }
  workflow.hinted = hints->final_step != CallHints::Final::kNotTold || workflow.running_step != kNone;
}

void Predictor::call_ended(std::uint32_t slot, StopReason stop, ToolClass tool, std::uint32_t output_tokens, Time now,
                           const CallHints* hints) {
  SAGA_ASSERT(is_open(slot) && workflows_[slot].state == State::kRunning);
  now_ = now;
  Workflow& workflow = workflows_[slot];
  const std::uint32_t c = workflow.agent_class;
  const std::uint32_t before = workflow.step_kind;
  const double output = output_tokens;
  const double log = real_log2(1 + output);
  const auto bucket = std::min(kTokenBuckets - 1, static_cast<std::uint32_t>(2 * log));

  if (workflow.hinted_output > 0) {
    const double model = estimate_output(workflow).next;
    const double model_error = (model - output) * (model - output);
    const double hint_error = (workflow.hinted_output - output) * (workflow.hinted_output - output);
    const double both = model_error + hint_error;
    if (both > 0) {
      for (const std::uint32_t i : {kAll, c}) {
        AgentClass& one = classes_[i];
        if (one.length_samples >= kMaxTasks) {
          one.length_error[0] *= 0.5;
          one.length_error[1] *= 0.5;
          one.length_samples *= 0.5;
        }
        one.length_error[0] += model_error / both;
        one.length_error[1] += hint_error / both;
        one.length_samples += 1;
      }
    }
    workflow.hinted_output = 0;
  }
  workflow.output.add(output, log);
  for (const std::uint32_t i : {kAll, c}) {
    learn_tokens(classes_[i].output[before], output, bucket);
    learn_tokens(classes_[i].any_output, output, bucket);
  }

  if (hints != nullptr) {
    if (tool == ToolClass::kNone && stop != StopReason::kEndTurn) tool = hints->next_tool;
    if (hints->final_step != CallHints::Final::kNotTold) workflow.final_step = hints->final_step;
    if (hints->output_tokens > 0) workflow.hinted_output = hints->output_tokens;
  }
  const std::uint32_t kind = step_kind_of(stop, tool);
  add_transition(c, before, kind, 1);
  workflow.step_kind = kind;

  if (workflow.declared != nullptr) {
    const AgentGraph& graph = *workflow.declared;
    if (hints != nullptr && hints->step < graph.steps.size()) workflow.running_step = hints->step;
    if (workflow.running_step != kNone) {
      workflow.step = workflow.running_step;
    } else if (workflow.ended == 0 || workflow.step != kNone) {
      workflow.step = graph.match_step(workflow.step, tool, stop == StopReason::kEndTurn);
    } else {
      workflow.step = tool == ToolClass::kNone ? kNone : graph.match_step(kNone, tool, true);
    }
  }
  workflow.hinted = workflow.final_step != CallHints::Final::kNotTold || workflow.running_step != kNone;
  workflow.running_step = kNone;
  workflow.output_tokens = output_tokens;
  ++workflow.ended;
  ++workflow.unresolved;
  if (--workflow.open_calls > 0) return;

  workflow.state = State::kWaiting;
  workflow.gap_start = now;
  begin_wait(slot, 0, kind, kMicroseconds);
  if (hints != nullptr && hints->gap != kNotDeclared) {
    begin_wait(slot, 1, kHintedGap, std::max(1.0, static_cast<double>(hints->gap)));
    workflow.hinted = true;
  }
  if (workflow.step != kNone && workflow.declared->steps[workflow.step].gap_seconds > 0) {
    begin_wait(slot, 2, kDeclaredGap,
               std::max(1.0, workflow.declared->steps[workflow.step].gap_seconds * kMicroseconds));
  }

  CallsToCome said[kCallExperts];
  experts(workflow, workflow.ended, false, said);
  if (workflow.declared != nullptr) {
    for (std::uint32_t e = 0; e < kCallExperts; ++e) {
      // An expert without an opinion is held to the next best.
      const CallsToCome& one = said[e].given_more < 0 ? said[e + 1] : said[e];
      const double total = workflow.ended + (1 - one.end) * one.given_more;
      workflow.expert_sum[e] += total;
      workflow.expert_square_sum[e] += total * total;
    }
    workflow.expert_samples += 1;
  }
  const CallsToCome calls = pool(workflow, said);
  const Wait& wait = best_wait(workflow);
  const GapTable& table = table_of(workflow, wait);
  workflow.predicted_p50 = to_time(table.quantile_50 * wait.unit);
  workflow.predicted_p90 = to_time(table.quantile_90 * wait.unit);
  workflow.predicted_p95 = to_time(table.quantile_95 * wait.unit);
  workflow.predicted_next = 1 - end_probability(workflow, calls, now);
  const double horizon = static_cast<double>(options_.reuse_horizon) / wait.unit;
  const double later = point_at(table, grid_of(wait.table), horizon).returns;
  workflow.predicted_within = workflow.predicted_next * (1 - later / table.returns[0]);
}

void Predictor::finish(std::uint32_t slot, double ended, Time now) {
  Workflow& workflow = workflows_[slot];
  const std::uint32_t c = workflow.agent_class;
  if (workflow.state == State::kWaiting) {
    resolve_calls(workflow, ended, now);
    add_transition(c, workflow.step_kind, kEnd, ended);
    if (ended > 0.5 && workflow.expert_samples > 0) {
      const double n = workflow.ended;
      double error[kCallExperts];
      double sum = 0;
      for (std::uint32_t e = 0; e < kCallExperts; ++e) {
        const double squares = workflow.expert_square_sum[e] - 2 * n * workflow.expert_sum[e];
        error[e] = std::max(0.0, squares / workflow.expert_samples + n * n);
        sum += error[e];
      }
      if (sum > 0) {
        for (const std::uint32_t i : {kAll, c}) {
          AgentClass& one = classes_[i];
          if (one.expert_tasks >= kMaxTasks) {
            for (double& share : one.expert_error) share *= 0.5;
            one.expert_tasks *= 0.5;
          }
          for (std::uint32_t e = 0; e < kCallExperts; ++e) one.expert_error[e] += error[e] / sum;
          one.expert_tasks += 1;
        }
      }
    }
  }
  for (const std::uint32_t i : {kAll, c}) {
    learn_variance(classes_[i].output_variance, workflow.output);
    learn_variance(classes_[i].growth_variance, workflow.growth);
    if (workflow.ended > 0) classes_[i].tasks += 1;
  }
  workflow = Workflow{};
  now_ = now;
}

void Predictor::workflow_closed(std::uint32_t slot, Time now) {
  SAGA_ASSERT(is_open(slot));
  if (workflows_[slot].state == State::kWaiting) end_waits(slot, 1, now);
  finish(slot, 1, now);
}

void Predictor::workflow_forgotten(std::uint32_t slot, Time now) {
  SAGA_ASSERT(is_open(slot));
  Workflow& workflow = workflows_[slot];
  double ended = 0;
  if (workflow.state == State::kWaiting) {
    ended = end_probability(workflow, pooled_calls(workflow, workflow.ended, false), now);
    end_waits(slot, 2, now);
  }
  finish(slot, ended, now);
}

bool Predictor::is_open(std::uint32_t slot) const {
  return slot < workflows_.size() && workflows_[slot].state != State::kFree;
}

// Forecasts
// ---------------------------------------------------------------------------------------------------------------

const Predictor::Wait& Predictor::best_wait(const Workflow& workflow) const {
  if (workflow.waits[1].table != kNone) return workflow.waits[1];
  const Wait& by_kind = workflow.waits[0];
  const Wait& declared = workflow.waits[2];
  if (declared.table != kNone && table_of(workflow, by_kind).events < kLearnedGaps) return declared;
  return by_kind;
}

void Predictor::experts(const Workflow& workflow, std::uint32_t n, bool running, CallsToCome out[kCallExperts]) const {
  for (std::uint32_t e = 0; e < kCallExperts; ++e) out[e] = {0, -1};
  const AgentClass& one = classes_[workflow.agent_class];
  const auto by_life = [n](const LifeTable& table, double unit) {
    const LifePoint here = life_at(table, n * unit);
    CallsToCome calls;
    if (n > 0) calls.end = std::clamp(1 - here.alive / life_at(table, (n - 1) * unit).alive, 0.0, 0.999);
    // The sum over calls of the chance to get there is the integral and half of its first term.
    calls.given_more = std::clamp(here.area / (here.alive * unit) + 0.5, 1.0, kMaxCalls);
    return calls;
  };
  out[2] = by_life(one.calls, 1);
  if (workflow.declared != nullptr) {
    const AgentGraph& graph = *workflow.declared;
    out[1] = by_life(one.declared_calls, kLifeUnit / graph.total_calls());
    if (n == 0) {
      out[0] = {0, 1 + graph.expectation(0).calls};
    } else {
      std::uint32_t at = running ? workflow.running_step : workflow.step;
      if (running && at == kNone && workflow.ended == 0) at = 0;
      if (at != kNone) {
        const StepExpectation& step = graph.expectation(at);
        out[0].end = step.end_probability;
        out[0].given_more = step.end_probability < 1 ? step.calls / (1 - step.end_probability) : 1;
      } else if (running && workflow.step != kNone && graph.expectation(workflow.step).next_step != kNone) {
        const StepExpectation& step = graph.expectation(workflow.step);
        const double behind = step.calls / (1 - step.end_probability) - 1;
        out[0].end = step.next_end_probability;
        out[0].given_more = out[0].end < 1 ? behind / (1 - out[0].end) : 1;
      }
      if (out[0].given_more >= 0) out[0].given_more = std::clamp(out[0].given_more, 1.0, kMaxCalls);
    }
  }
  if (running || n == 0) return;
  // Life tables know the number of calls; what the last answer was moves the odds by as much as it does over all
  // numbers.
  const double factor = one.end_factor[workflow.step_kind];
  for (std::uint32_t e = 1; e < kCallExperts; ++e) {
    if (out[e].given_more < 0) continue;
    const double moved = odds(out[e].end) * factor;
    out[e].end = moved / (1 + moved);
  }
}

Predictor::CallsToCome Predictor::pooled_calls(const Workflow& workflow, std::uint32_t n, bool running) const {
  CallsToCome said[kCallExperts];
  experts(workflow, n, running, said);
  return pool(workflow, said);
}

Predictor::CallsToCome Predictor::pool(const Workflow& workflow, const CallsToCome said[kCallExperts]) const {
  if (workflow.declared == nullptr) return said[2];
  const AgentClass& one = classes_[workflow.agent_class];
  const AgentClass& all = classes_[kAll];
  double share[kCallExperts];
  double least = 1;
  for (std::uint32_t e = 0; e < kCallExperts; ++e) {
    const double above = blend(all.expert_error[e], all.expert_tasks, kExpertPrior[e], kPseudoTasks);
    share[e] = blend(one.expert_error[e], one.expert_tasks, above, kPseudoTasks);
    if (said[e].given_more >= 0) least = std::min(least, share[e]);
  }
  CallsToCome pooled;
  double sum = 0;
  for (std::uint32_t e = 0; e < kCallExperts; ++e) {
    if (said[e].given_more < 0) continue;
    // Most of the error is the chance that all have in common: what counts is the excess.
    const double weight = 1 / (share[e] - kCommonError * least + 0.02);
    pooled.end += weight * said[e].end;
    pooled.given_more += weight * said[e].given_more;
    sum += weight;
  }
  pooled.end /= sum;
  pooled.given_more /= sum;
  return pooled;
}

double Predictor::end_probability(const Workflow& workflow, const CallsToCome& calls, Time now) const {
  double end = calls.end;
  if (workflow.final_step != CallHints::Final::kNotTold && workflow.state != State::kOpen) {
    const std::uint32_t told = workflow.final_step == CallHints::Final::kYes;
    const AgentClass& one = classes_[workflow.agent_class];
    const AgentClass& all = classes_[kAll];
    const double above = blend(all.final_ended[told], all.final_told[told], kFinalPrior[told], kFinalPseudo);
    end = blend(one.final_ended[told], one.final_told[told], above, kFinalPseudo);
  }
  if (workflow.state != State::kWaiting) return end;
  // Idle time is evidence: it multiplies the odds by how much more often a wait of this age has no next call than a
  // fresh one.
  const Wait& wait = best_wait(workflow);
  const GapTable& table = table_of(workflow, wait);
  const GapPoint point =
      point_at(table, grid_of(wait.table), static_cast<double>(now - workflow.gap_start) / wait.unit);
  if (!(point.returns > 0)) return 1;
  const double at_start = (1 - table.returns[0]) / table.returns[0];
  const double here = (point.waiting - point.returns) / point.returns;
  const double moved = odds(end) * std::max(here, 0.0) / std::max(at_start, 1e-9);
  return moved / (1 + moved);
}

double Predictor::class_mean(const Workflow& workflow, bool growth, std::uint32_t kind, double* any) const {
  const AgentClass& one = classes_[workflow.agent_class];
  const AgentClass& all = classes_[kAll];
  const TokenTable& of_all = growth ? all.any_growth : all.any_output;
  const TokenTable& of_one = growth ? one.any_growth : one.any_output;
  const TokenTable& of_kind = growth ? one.growth[kind] : one.output[kind];
  const double above = blend(of_all.sum, of_all.samples, growth ? kPriorGrowth : kPriorOutput, kPseudoTokens);
  *any = blend(of_one.sum, of_one.samples, above, kPseudoTokens);
  return blend(of_kind.sum, of_kind.samples, *any, kPseudoTokens);
}

Predictor::TokenEstimate Predictor::estimate_output(const Workflow& workflow) const {
  double level = 0;
  double next = class_mean(workflow, false, workflow.step_kind, &level);
  double average = level;
  if (workflow.declared != nullptr) {
    const AgentGraph& graph = *workflow.declared;
    const StepExpectation& start = graph.expectation(0);
    const double declared = (graph.steps[0].output_tokens + start.output_tokens) / (1 + start.calls);
    if (declared > 0) {
      level = next = average = declared;
      if (workflow.state == State::kRunning && workflow.running_step != kNone) {
        next = graph.steps[workflow.running_step].output_tokens;
      } else if (workflow.ended == 0) {
        next = graph.steps[0].output_tokens;
      } else if (workflow.step != kNone && graph.expectation(workflow.step).next_step != kNone) {
        next = graph.expectation(workflow.step).next_output_tokens;
      }
      if (workflow.step != kNone && graph.expectation(workflow.step).calls > 0) {
        average = graph.expectation(workflow.step).output_tokens / graph.expectation(workflow.step).calls;
      }
    }
  }
  const AgentClass& one = classes_[workflow.agent_class];
  const double k = variance_ratio(one.output_variance, classes_[kAll].output_variance);
  const double ratio = level > 0 ? blend(workflow.output.sum, workflow.output.count, level, k) / level : 1;
  return {next * ratio, average * ratio, ratio};
}

Predictor::TokenEstimate Predictor::estimate_growth(const Workflow& workflow) const {
  double level = 0;
  const bool waiting = workflow.state == State::kWaiting;
  double next = class_mean(workflow, true, workflow.step_kind, &level);
  double average = level;
  if (!waiting) next = average;
  if (workflow.declared != nullptr) {
    const AgentGraph& graph = *workflow.declared;
    const StepExpectation& start = graph.expectation(0);
    const double declared = start.calls > 0 ? start.observation_tokens / start.calls : 0;
    if (declared > 0) {
      level = next = average = declared;
      const std::uint32_t at = waiting ? workflow.step : workflow.running_step;
      if (at != kNone) next = graph.steps[at].observation_tokens;
      if (workflow.step != kNone && graph.expectation(workflow.step).calls > 0) {
        average = graph.expectation(workflow.step).observation_tokens / graph.expectation(workflow.step).calls;
      }
    }
  }
  const AgentClass& one = classes_[workflow.agent_class];
  const double k = variance_ratio(one.growth_variance, classes_[kAll].growth_variance);
  const double ratio = level > 0 ? blend(workflow.growth.sum, workflow.growth.count, level, k) / level : 1;
  return {next * ratio, average * ratio, ratio};
}

double Predictor::with_length_hint(const Workflow& workflow, double estimate) const {
  if (workflow.hinted_output == 0) return estimate;
  const AgentClass& one = classes_[workflow.agent_class];
  const AgentClass& all = classes_[kAll];
  double weight[2];
  for (std::uint32_t i = 0; i < 2; ++i) {
    const double above = blend(all.length_error[i], all.length_samples, kLengthPrior[i], kPseudoTasks);
    weight[i] = 1 / (blend(one.length_error[i], one.length_samples, above, kPseudoTasks) + 0.02);
  }
  return (weight[0] * estimate + weight[1] * workflow.hinted_output) / (weight[0] + weight[1]);
}

Predictor::GapView Predictor::gap_view(const Workflow& workflow) const {
  const AgentClass& one = classes_[workflow.agent_class];
  if (workflow.state == State::kWaiting) {
    const Wait& wait = best_wait(workflow);
    return {&table_of(workflow, wait), &grid_of(wait.table), wait.unit};
  }
  const std::uint32_t kind = likely_kind(workflow.agent_class, workflow.step_kind);
  if (workflow.declared != nullptr && one.gaps[kind].events < kLearnedGaps) {
    const AgentGraph& graph = *workflow.declared;
    std::uint32_t at = workflow.running_step;
    if (at == kNone && workflow.ended == 0) at = 0;
    if (at == kNone && workflow.step != kNone) at = graph.expectation(workflow.step).next_step;
    if (at != kNone && graph.steps[at].gap_seconds > 0) {
      return {&one.gaps[kDeclaredGap], &multiple_grid(), std::max(1.0, graph.steps[at].gap_seconds * kMicroseconds)};
    }
  }
  return {&one.gaps[kind], &second_grid(), kMicroseconds};
}

std::uint32_t Predictor::likely_kind(std::uint32_t agent_class, std::uint32_t from) const {
  const AgentClass& one = classes_[agent_class];
  const AgentClass& row = one.transition_sum[from] >= 4 ? one : classes_[kAll];
  std::uint32_t best = 2;
  for (std::uint32_t k = 0; k < kStepKinds; ++k) {
    if (row.transitions[from][k] > row.transitions[from][best]) best = k;
  }
  return best;
}

Forecast Predictor::forecast(std::uint32_t slot, Time now, bool tails) const {
  SAGA_ASSERT(is_open(slot));
  const Workflow& workflow = workflows_[slot];
  const AgentClass& one = classes_[workflow.agent_class];
  const bool waiting = workflow.state == State::kWaiting;
  const bool running = workflow.state == State::kRunning;
  const CallsToCome calls = pooled_calls(workflow, running ? workflow.calls : workflow.ended, running);

  Forecast result;
  result.end_probability = end_probability(workflow, calls, now);
  const double more = 1 - result.end_probability;
  result.remaining_calls = more * calls.given_more;

  const TokenEstimate output = estimate_output(workflow);
  const TokenEstimate growth = estimate_growth(workflow);
  const double first = with_length_hint(workflow, output.next);
  if (running) result.current_output_tokens = first;
  result.next_output_tokens = running ? output.average : first;
  if (tails) {
    const TokenTable& lengths = one.any_output.samples >= kPseudoTokens ? one.any_output : classes_[kAll].any_output;
    result.next_output_p95 =
        std::max(result.next_output_tokens,
                 lengths.samples >= kPseudoTokens ? token_quantile(lengths, 0.95) * output.ratio : 4 * output.average);
  }
  const bool opened = workflow.state == State::kOpen;
  result.next_growth_tokens = opened ? 0 : growth.next;
  result.remaining_output_tokens =
      result.current_output_tokens + more * (result.next_output_tokens + (calls.given_more - 1) * output.average);
  result.remaining_growth_tokens =
      more * (result.next_growth_tokens + std::max(0.0, calls.given_more - 1) * growth.average);

  const double cached = static_cast<double>(workflow.prompt_tokens) + (waiting ? workflow.output_tokens : 0);
  if (cached > 0) result.reuse_probability = more * cached / (cached + std::max(1.0, growth.next));

  const GapView gap = gap_view(workflow);
  const double age = waiting ? static_cast<double>(now - workflow.gap_start) / gap.unit : 0;
  const GapPoint point = point_at(*gap.table, *gap.grid, age);
  if (point.returns > 0) {
    result.gap_p50 = to_time(gap_quantile(*gap.table, *gap.grid, age, 0.50) * gap.unit);
    if (tails) result.gap_p95 = to_time(gap_quantile(*gap.table, *gap.grid, age, 0.95) * gap.unit);
    // Beyond the age where returns are cut off the mean says nothing.
    const double mean = (point.return_time / point.returns - age) * gap.unit;
    result.remaining_gap = mean > 0 ? to_time(mean) : result.gap_p50;
  }

  const double evidence = one.tasks + 2.0 * workflow.ended + 0.25 * classes_[kAll].tasks;
  const double learned = evidence / (evidence + 16);
  if (workflow.hinted || workflow.hinted_output > 0) {
    result.source = ForecastSource::kHinted;
  } else if (workflow.declared != nullptr) {
    result.source = ForecastSource::kDeclared;
  } else if (evidence > 0) {
    result.source = ForecastSource::kLearned;
  }
  result.confidence = result.source >= ForecastSource::kDeclared ? 0.5 + 0.5 * learned : learned;

  if (workflow.declared != nullptr && workflow.step != kNone) {
    const std::uint32_t next = workflow.declared->expectation(workflow.step).next_step;
    if (next != kNone) result.next_tool = workflow.declared->steps[next].tool;
  } else {
    const std::uint32_t kind = likely_kind(workflow.agent_class, workflow.step_kind);
    if (kind >= 2) result.next_tool = static_cast<ToolClass>(kind - 2);
  }
  return result;
}

double Predictor::reuse_within(std::uint32_t slot, Time horizon, Time now) const {
  SAGA_ASSERT(is_open(slot));
  const Workflow& workflow = workflows_[slot];
  const bool waiting = workflow.state == State::kWaiting;
  const bool running = workflow.state == State::kRunning;
  const CallsToCome calls = pooled_calls(workflow, running ? workflow.calls : workflow.ended, running);
  const GapView gap = gap_view(workflow);
  const double age = waiting ? static_cast<double>(now - workflow.gap_start) / gap.unit : 0;
  const double here = point_at(*gap.table, *gap.grid, age).returns;
  if (!(here > 0)) return 0;
  const double later = point_at(*gap.table, *gap.grid, age + static_cast<double>(horizon) / gap.unit).returns;
  return (1 - end_probability(workflow, calls, now)) * (1 - later / here);
}

// Whole tables
// ------------------------------------------------------------------------------------------------------------

void Predictor::merge(const Predictor& other) {
  const auto add_class = [](AgentClass& to, const AgentClass& from) {
    for (std::uint32_t t = 0; t < kGapTables; ++t) {
      GapTable& gaps = to.gaps[t];
      const GapTable& more = from.gaps[t];
      for (std::uint32_t k = 0; k < kBuckets; ++k) {
        gaps.returned[k] += more.returned[k];
        gaps.closed[k] += more.closed[k];
        gaps.censored[k] += more.censored[k];
      }
      gaps.events += more.events;
    }
    const auto add_life = [](LifeTable& life, const LifeTable& more) {
      for (std::uint32_t k = 0; k < kLifeBuckets; ++k) {
        life.ended[k] += more.ended[k];
        life.passed[k] += more.passed[k];
      }
      life.events += more.events;
    };
    add_life(to.calls, from.calls);
    add_life(to.declared_calls, from.declared_calls);
    const auto add_tokens = [](TokenTable& tokens, const TokenTable& more) {
      for (std::uint32_t k = 0; k < kTokenBuckets; ++k) tokens.count[k] += more.count[k];
      tokens.samples += more.samples;
      tokens.sum += more.sum;
    };
    for (std::uint32_t k = 0; k <= kStepKinds; ++k) {
      add_tokens(to.output[k], from.output[k]);
      add_tokens(to.growth[k], from.growth[k]);
      for (std::uint32_t j = 0; j <= kStepKinds; ++j) to.transitions[k][j] += from.transitions[k][j];
      to.transition_sum[k] += from.transition_sum[k];
    }
    for (std::uint32_t k = 0; k < kStepKinds; ++k) to.step_count[k] += from.step_count[k];
    to.step_count_sum += from.step_count_sum;
    add_tokens(to.any_output, from.any_output);
    add_tokens(to.any_growth, from.any_growth);
    const auto add_variance = [](VarianceTable& table, const VarianceTable& more) {
      table.within += more.within;
      table.within_freedom += more.within_freedom;
      table.tasks += more.tasks;
      table.mean_sum += more.mean_sum;
      table.mean_square_sum += more.mean_square_sum;
      table.inverse_samples += more.inverse_samples;
    };
    add_variance(to.output_variance, from.output_variance);
    add_variance(to.growth_variance, from.growth_variance);
    for (std::uint32_t e = 0; e < kCallExperts; ++e) to.expert_error[e] += from.expert_error[e];
    to.expert_tasks += from.expert_tasks;
    for (std::uint32_t i = 0; i < 2; ++i) {
      to.length_error[i] += from.length_error[i];
      to.final_told[i] += from.final_told[i];
      to.final_ended[i] += from.final_ended[i];
    }
    to.length_samples += from.length_samples;
    to.tasks += from.tasks;
  };
  add_class(classes_[kAll], other.classes_[kAll]);
  add_class(classes_[kOthers], other.classes_[kOthers]);
  for (std::uint32_t c = kOthers + 1; c < other.used_classes_; ++c) {
    const AgentClass& from = other.classes_[c];
    const bool fits = from.tenant < options_.max_tenants && from.agent_kind < options_.max_agent_kinds;
    add_class(classes_[fits ? find_or_add_class(from.tenant, from.agent_kind) : kOthers], from);
  }
  rebuild_all(now_);
  calibration_.merge(other.calibration_);
}

bool Predictor::verify() const {
  const auto count = [](double value) { return value >= 0 && value < real_detail::kInfinity; };
  const auto near = [](double a, double b) { return a <= b * (1 + 1e-6) + 1e-6 && b <= a * (1 + 1e-6) + 1e-6; };
  if (used_classes_ < 2 || used_classes_ > classes_.size()) return false;
  std::uint32_t open_in_all[kGapTables] = {};
  for (std::uint32_t c = 0; c < used_classes_; ++c) {
    const AgentClass& one = classes_[c];
    if (c > kOthers && class_of(one.tenant, one.agent_kind) != c) return false;
    for (std::uint32_t t = 0; t < kGapTables; ++t) {
      const GapTable& table = one.gaps[t];
      double sum = 0;
      for (std::uint32_t k = 0; k < kBuckets; ++k) {
        const auto returned = static_cast<double>(table.returned[k]);
        const auto closed = static_cast<double>(table.closed[k]);
        const auto censored = static_cast<double>(table.censored[k]);
        if (!count(returned) || !count(closed) || !count(censored)) return false;
        sum += returned + closed + censored;
        if (!(table.return_hazard[k] > 0 && table.close_hazard[k] > 0)) return false;
        if (!(table.return_hazard[k] + table.close_hazard[k] <= 1.0f + 1e-5f)) return false;
        if (!(table.waiting[k] >= table.waiting[k + 1] && table.returns[k] > table.returns[k + 1])) return false;
        if (table.returns[k] > table.waiting[k] * (1 + 1e-6)) return false;
      }
      if (!near(sum, table.events) || table.waiting[0] != 1) return false;
      if (!(table.quantile_50 <= table.quantile_90 && table.quantile_90 <= table.quantile_95)) return false;
      if (c == kAll) continue;
      // The list of open waits.
      const std::uint32_t which = t < kHintedGap ? 0 : t - kHintedGap + 1;
      std::uint32_t open = 0;
      std::uint32_t before = kNone;
      for (std::uint32_t s = table.oldest; s != kNone; s = workflows_[s].waits[which].newer) {
        const Workflow& workflow = workflows_[s];
        const Wait& wait = workflow.waits[which];
        if (workflow.state != State::kWaiting || workflow.agent_class != c || wait.table != t) return false;
        if (wait.older != before || !(wait.unit > 0)) return false;
        if (before != kNone && workflows_[before].gap_start > workflow.gap_start) return false;
        before = s;
        if (++open > workflows_.size()) return false;
      }
      if (table.newest != before || table.open_waits != open) return false;
      open_in_all[t] += open;
    }
    for (const LifeTable* table : {&one.calls, &one.declared_calls}) {
      for (std::uint32_t k = 0; k < kLifeBuckets; ++k) {
        if (!count(table->ended[k]) || !count(table->passed[k]) || !(table->alive[k] > table->alive[k + 1]) ||
            !(table->area[k] > table->area[k + 1]) || !(table->pass[k] > 0 && table->pass[k] < 1)) {
          return false;
        }
      }
    }
    for (std::uint32_t k = 0; k <= kStepKinds; ++k) {
      double sum = 0;
      for (const double to : one.transitions[k]) {
        if (!count(to)) return false;
        sum += to;
      }
      if (!near(sum, one.transition_sum[k])) return false;
    }
    const auto tokens = [&](const TokenTable& table) {
      double sum = 0;
      for (const float one_count : table.count) sum += static_cast<double>(one_count);
      return count(table.sum) && near(sum, table.samples);
    };
    for (std::uint32_t k = 0; k <= kStepKinds; ++k) {
      if (!tokens(one.output[k]) || !tokens(one.growth[k])) return false;
    }
    if (!tokens(one.any_output) || !tokens(one.any_growth)) return false;
  }
  for (std::uint32_t t = 0; t < kGapTables; ++t) {
    if (classes_[kAll].gaps[t].open_waits != open_in_all[t]) return false;
  }
  std::uint32_t waiting = 0;
  for (const Workflow& workflow : workflows_) {
    if (workflow.state == State::kWaiting) ++waiting;
    if ((workflow.state == State::kRunning) != (workflow.open_calls > 0)) return false;
    if (workflow.ended + workflow.open_calls != workflow.calls || workflow.unresolved > workflow.ended) return false;
    if ((workflow.state == State::kWaiting) != (workflow.waits[0].table != kNone)) return false;
  }
  std::uint32_t by_kind = 0;
  for (std::uint32_t t = 0; t < kStepKinds; ++t) by_kind += open_in_all[t];
  return waiting == by_kind && calibration_.verify();
}

}  // namespace saga
