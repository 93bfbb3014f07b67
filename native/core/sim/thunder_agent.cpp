#include "thunder_agent.hpp"

#include <algorithm>
#include <tuple>

#include "../base/assert.hpp"

namespace saga {
namespace {

Time microseconds(double seconds) { return static_cast<Time>(std::max(0.0, seconds) * 1e6); }

// tokens * 2^(-idle / half_life), linear between whole half-lives.
std::uint64_t decayed(std::uint64_t tokens, Time idle, Time half_life) {
  if (half_life == 0) return tokens;
  const Time halvings = idle / half_life;
  if (halvings >= 32) return 0;
  const std::uint64_t whole = tokens >> halvings;
  return whole - static_cast<std::uint64_t>(static_cast<double>(whole) * static_cast<double>(idle % half_life) /
                                            (2.0 * static_cast<double>(half_life)));
}

std::uint64_t room(double share, WorkerId worker, const ClusterControl& cluster) {
  const std::uint64_t tokens = std::uint64_t{cluster.capacity_pages(worker)} * cluster.page_tokens();
  return static_cast<std::uint64_t>(std::max(0.0, share) * static_cast<double>(tokens));
}

}  // namespace

ThunderAgent::ThunderAgent(const ClusterPolicyOptions& options, const Workload& workload)
    : pause_at_(options.parameter(0, 0.95)),
      pause_to_(options.parameter(1, 0.90)),
      resume_to_(pause_at_ - options.parameter(2, 0.15)),
      half_life_(microseconds(options.parameter(3, 20.0))),
      tick_(std::max<Time>(1'000, microseconds(options.parameter(4, 5.0)))),
      resume_order_(static_cast<int>(options.parameter(5, 2.0))),
      time_limit_(microseconds(options.parameter(6, 1800.0))),
      programs_(workload.tasks()),
      next_held_(workload.calls(), kNone) {}

std::uint64_t ThunderAgent::full_weight(const Program& program) const {
  return std::max(program.open_tokens, program.tokens);
}

std::uint64_t ThunderAgent::weight(const Program& program, Time now) const {
  if (program.open_calls > 0) return full_weight(program);
  return decayed(program.tokens, now - program.idle_since, half_life_);
}

void ThunderAgent::hold(Program& program, CallId call) {
  next_held_[call] = kNone;
  (program.first_held == kNone ? program.first_held : next_held_[program.last_held]) = call;
  program.last_held = call;
}

void ThunderAgent::pause(Program& program, Time now) {
  program.state = State::kPaused;
  program.marked = false;
  program.paused_since = now;
  ++pauses_;
}

void ThunderAgent::activate(Program& program, WorkerId worker, Time now, ClusterControl& cluster) {
  program.state = State::kActive;
  program.worker = worker;
  CallId call = program.first_held;
  program.first_held = program.last_held = kNone;
  while (call != kNone) {
    const CallId next = next_held_[call];
    ++program.open_calls;
    program.open_tokens += cluster.prompt_tokens(call);
    cluster.send(call, worker);
    call = next;
  }
  load_[worker] += weight(program, now);
}

void ThunderAgent::measure(Time now, ClusterControl& cluster) {
  load_.assign(cluster.workers(), 0);
  for (const std::uint32_t task : live_) {
    const Program& program = programs_[task];
    if (program.state == State::kActive && !program.marked) load_[program.worker] += weight(program, now);
  }
}

// The worker with the least room that is enough, of those that cache some of the prompt if there is one; an empty worker is
// always enough.
WorkerId ThunderAgent::best_fit(const Program& program, ClusterControl& cluster) {
  std::uint64_t tokens = 0;
  for (CallId call = program.first_held; call != kNone; call = next_held_[call]) tokens += cluster.prompt_tokens(call);
  tokens = std::max(tokens, program.tokens);
  WorkerId best = kNone;
  std::tuple<bool, std::uint64_t> best_key;
  for (WorkerId worker = 0; worker < cluster.workers(); ++worker) {
    const std::uint64_t limit = room(resume_to_, worker, cluster);
    if (load_[worker] > 0 && load_[worker] + tokens > limit) continue;
    // A program that never ran is not packed: it goes where most room is left.
    const bool cached = program.worker == worker && cluster.cached_pages(program.first_held, worker) > 0;
    const std::uint64_t fit = program.worker == kNone ? load_[worker] : ~load_[worker];
    const std::tuple<bool, std::uint64_t> key{!cached, fit};
    if (best == kNone || key < best_key) {
      best = worker;
      best_key = key;
    }
  }
  return best;
}

WorkerId ThunderAgent::place(CallId call, Time now, ClusterControl& cluster) {
  Program& program = programs_[cluster.task(call)];
  if (program.state == State::kActive) {
    ++program.open_calls;
    program.open_tokens += cluster.prompt_tokens(call);
    keep_ticking(now, cluster);
    return program.worker;
  }
  if (program.state == State::kPaused) {
    hold(program, call);
    keep_ticking(now, cluster);
    return kNone;
  }
  program = {};
  program.state = State::kPaused;
  program.paused_since = now;
  program.order = next_order_++;
  const std::uint32_t task = cluster.task(call);
  bool others_wait = false;
  for (const std::uint32_t other : live_) others_wait |= programs_[other].first_held != kNone;
  live_.push_back(task);
  hold(program, call);
  keep_ticking(now, cluster);
  if (!others_wait) {
    measure(now, cluster);
    const WorkerId worker = best_fit(program, cluster);
    if (worker != kNone) {
      program.first_held = program.last_held = kNone;
      program.state = State::kActive;
      program.worker = worker;
      ++program.open_calls;
      program.open_tokens += cluster.prompt_tokens(call);
      return worker;
    }
  }
  return kNone;
}

void ThunderAgent::call_finished(CallId call, WorkerId, StopReason, ToolClass, Time now, ClusterControl& cluster) {
  Program& program = programs_[cluster.task(call)];
  SAGA_ASSERT(program.open_calls > 0);
  --program.open_calls;
  ++program.calls_done;
  program.open_tokens -= cluster.prompt_tokens(call);
  program.tokens = std::uint64_t{cluster.prompt_tokens(call)} + cluster.output_tokens(call);
  program.idle_since = now;
  if (program.open_calls == 0 && program.marked) pause(program, now);
}

void ThunderAgent::task_finished(std::uint32_t task, Time, ClusterControl&) {
  if (programs_[task].state == State::kAbsent) return;
  SAGA_ASSERT(programs_[task].open_calls == 0 && programs_[task].first_held == kNone);
  programs_[task] = {};
  live_.erase(std::find(live_.begin(), live_.end(), task));
}

bool ThunderAgent::goes_before(const Program& a, const Program& b) const {
  switch (resume_order_) {
    case 0:
      if (full_weight(a) != full_weight(b)) return full_weight(a) > full_weight(b);
      break;
    case 2:
      if (full_weight(a) != full_weight(b)) return full_weight(a) < full_weight(b);
      break;
    case 3:
      if (a.calls_done != b.calls_done) return a.calls_done > b.calls_done;
      break;
    default:
      break;
  }
  return a.order < b.order;
}

void ThunderAgent::pause_programs(Time now, ClusterControl& cluster) {
  for (WorkerId worker = 0; worker < cluster.workers(); ++worker) {
    if (load_[worker] < room(pause_at_, worker, cluster)) continue;
    const std::uint64_t target = room(pause_to_, worker, cluster);
    candidates_.clear();
    for (const std::uint32_t task : live_) {
      const Program& program = programs_[task];
      if (program.state == State::kActive && program.worker == worker && !program.marked) candidates_.push_back(task);
    }
    std::sort(candidates_.begin(), candidates_.end(), [this](std::uint32_t a, std::uint32_t b) {
      const Program& one = programs_[a];
      const Program& other = programs_[b];
      return std::tuple(one.open_calls > 0, full_weight(one), other.order) <
             std::tuple(other.open_calls > 0, full_weight(other), one.order);
    });
    // The last one stays: a worker without a program would serve nobody.
    for (std::size_t i = 0; i + 1 < candidates_.size() && load_[worker] > target; ++i) {
      Program& program = programs_[candidates_[i]];
      load_[worker] -= weight(program, now);
      if (program.open_calls == 0) {
        pause(program, now);
      } else {
        program.marked = true;
      }
    }
  }
}

void ThunderAgent::resume_programs(Time now, ClusterControl& cluster) {
  candidates_.clear();
  for (const std::uint32_t task : live_) {
    const Program& program = programs_[task];
    if (program.state == State::kPaused && program.first_held != kNone) candidates_.push_back(task);
  }
  std::sort(candidates_.begin(), candidates_.end(),
            [this](std::uint32_t a, std::uint32_t b) { return goes_before(programs_[a], programs_[b]); });
  for (const std::uint32_t task : candidates_) {
    Program& program = programs_[task];
    WorkerId worker = best_fit(program, cluster);
    if (worker == kNone && now - program.paused_since >= time_limit_) {
      worker = static_cast<WorkerId>(std::min_element(load_.begin(), load_.end()) - load_.begin());
    }
    if (worker != kNone) activate(program, worker, now, cluster);
  }
}

void ThunderAgent::keep_ticking(Time now, ClusterControl& cluster) {
  if (ticking_) return;
  ticking_ = true;
  cluster.wake_at((now / tick_ + 1) * tick_);
}

void ThunderAgent::timer(Time now, ClusterControl& cluster) {
  ticking_ = false;
  std::size_t kept = 0;
  for (const std::uint32_t task : live_) {
    Program& program = programs_[task];
    const bool silent =
        program.open_calls == 0 && program.first_held == kNone && now - program.idle_since > time_limit_;
    if (silent) {
      program = {};
    } else {
      live_[kept++] = task;
    }
  }
  live_.resize(kept);
  if (live_.empty()) return;
  measure(now, cluster);
  pause_programs(now, cluster);
  resume_programs(now, cluster);
  keep_ticking(now, cluster);
}

bool ThunderAgent::verify() const {
  std::size_t live = 0;
  for (const Program& program : programs_) {
    if (program.state == State::kAbsent) {
      if (program.open_calls > 0 || program.first_held != kNone) return false;
      continue;
    }
    ++live;
    if ((program.state == State::kActive) && (program.first_held != kNone || program.worker == kNone)) return false;
    if (program.state == State::kPaused && (program.open_calls > 0 || program.marked)) return false;
    if (program.marked && program.open_calls == 0) return false;
    if ((program.first_held == kNone) != (program.last_held == kNone)) return false;
  }
  if (live != live_.size()) return false;
  for (const std::uint32_t task : live_) {
    if (programs_[task].state == State::kAbsent) return false;
  }
  return true;
}

}  // namespace saga
