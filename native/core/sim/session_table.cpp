#include "session_table.hpp"

#include <algorithm>
#include <utility>

#include "../base/assert.hpp"

namespace saga {

SessionTable::SessionTable(std::uint32_t tasks, std::uint32_t threads, std::uint32_t workers, Time time_limit)
    : time_limit_(time_limit),
      sessions_(tasks),
      context_(workers, 0),
      last_call_(threads, kNone),
      next_thread_(threads, kNone) {}

WorkerId SessionTable::least_context() const {
  return static_cast<WorkerId>(std::min_element(context_.begin(), context_.end()) - context_.begin());
}

void SessionTable::count(Session& session) {
  const std::uint64_t counted = std::max(session.open_tokens, session.last_tokens);
  context_[session.worker] += counted;
  context_[session.worker] -= session.counted;
  session.counted = counted;
}

void SessionTable::link_idle(std::uint32_t task, Time now) {
  Session& session = sessions_[task];
  session.idle_since = now;
  session.previous = last_idle_;
  session.next = kNone;
  (last_idle_ == kNone ? first_idle_ : sessions_[last_idle_].next) = task;
  last_idle_ = task;
}

void SessionTable::unlink_idle(std::uint32_t task) {
  Session& session = sessions_[task];
  (session.previous == kNone ? first_idle_ : sessions_[session.previous].next) = session.next;
  (session.next == kNone ? last_idle_ : sessions_[session.next].previous) = session.previous;
}

void SessionTable::bind(std::uint32_t task, WorkerId worker, Time now) {
  Session& session = sessions_[task];
  if (session.worker == kNone) {
    ++bound_;
    link_idle(task, now);
  } else {
    context_[session.worker] -= session.counted;
    session.counted = 0;
  }
  session.worker = worker;
  count(session);
}

void SessionTable::call_opened(std::uint32_t task, std::uint32_t prompt_tokens) {
  Session& session = sessions_[task];
  SAGA_ASSERT(session.worker != kNone);
  if (session.open_calls++ == 0) unlink_idle(task);
  session.open_tokens += prompt_tokens;
  count(session);
}

void SessionTable::call_closed(std::uint32_t task, std::uint32_t prompt_tokens, std::uint32_t output_tokens, Time now) {
  Session& session = sessions_[task];
  SAGA_ASSERT(session.open_calls > 0 && session.open_tokens >= prompt_tokens);
  session.open_tokens -= prompt_tokens;
  session.last_tokens = std::uint64_t{prompt_tokens} + output_tokens;
  if (--session.open_calls == 0) link_idle(task, now);
  count(session);
}

void SessionTable::task_over(std::uint32_t task) {
  Session& session = sessions_[task];
  if (session.worker == kNone) return;
  SAGA_ASSERT(session.open_calls == 0);
  unlink_idle(task);
  context_[session.worker] -= session.counted;
  for (ThreadId thread = session.first_thread; thread != kNone; thread = std::exchange(next_thread_[thread], kNone)) {
    last_call_[thread] = kNone;
  }
  session = {};
  --bound_;
}

void SessionTable::thread_called(std::uint32_t task, ThreadId thread, CallId call) {
  Session& session = sessions_[task];
  SAGA_ASSERT(session.worker != kNone);
  if (last_call_[thread] == kNone) next_thread_[thread] = std::exchange(session.first_thread, thread);
  last_call_[thread] = call;
}

void SessionTable::drop_threads(std::uint32_t task, ClusterControl& cluster) {
  Session& session = sessions_[task];
  for (ThreadId thread = session.first_thread; thread != kNone; thread = std::exchange(next_thread_[thread], kNone)) {
    cluster.drop(std::exchange(last_call_[thread], kNone), session.worker);
  }
  session.first_thread = kNone;
}

void SessionTable::forget_idle(Time now) {
  while (first_idle_ != kNone && now - sessions_[first_idle_].idle_since > time_limit_) task_over(first_idle_);
}

bool SessionTable::verify() const {
  std::vector<std::uint64_t> context(context_.size(), 0);
  std::uint32_t bound = 0;
  std::uint32_t idle = 0;
  for (const Session& session : sessions_) {
    if (session.worker == kNone) {
      if (session.open_calls > 0 || session.counted > 0) return false;
      continue;
    }
    if (session.worker >= context.size()) return false;
    if (session.counted != std::max(session.open_tokens, session.last_tokens)) return false;
    context[session.worker] += session.counted;
    ++bound;
    idle += session.open_calls == 0;
  }
  std::size_t listed = 0;
  for (const Session& session : sessions_) {
    for (ThreadId thread = session.first_thread; thread != kNone; thread = next_thread_[thread]) {
      if (last_call_[thread] == kNone || ++listed > last_call_.size()) return false;
    }
  }
  for (const CallId call : last_call_) listed -= call != kNone;
  if (listed != 0) return false;
  std::uint32_t previous = kNone;
  for (std::uint32_t task = first_idle_; task != kNone; previous = task, task = sessions_[task].next) {
    const Session& session = sessions_[task];
    if (idle-- == 0 || session.previous != previous || session.worker == kNone || session.open_calls > 0) return false;
    if (previous != kNone && sessions_[previous].idle_since > session.idle_since) return false;
  }
  return idle == 0 && previous == last_idle_ && bound == bound_ && context == context_;
}

}  // namespace saga
