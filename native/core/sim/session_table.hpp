// SessionTable: which worker each task (session) belongs to, and how much context the live tasks of a worker have: what
// several schedulers know of their sessions.
//
//   unknown -> bound (to a worker) -> unknown: task_over(), or forgotten after it was idle for the time limit, for a client
//   may never say that a task is over
//
// The context of a task is its open prompts, or its last context if that is more. Cost: O(1) an operation. Memory: 64 bytes a
// task and 8 a thread. Invariants (verify()): a worker's context is the sum over its bound tasks; exactly the bound tasks without open calls
// are in the list of idle ones, longest idle first.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/types.hpp"
#include "../place/cluster_control.hpp"

namespace saga {

class SessionTable {
 public:
  SessionTable(std::uint32_t tasks, std::uint32_t threads, std::uint32_t workers, Time time_limit);

  WorkerId worker(std::uint32_t task) const { return sessions_[task].worker; }
  std::uint64_t context(WorkerId worker) const { return context_[worker]; }
  // Where live contexts are smallest in sum.
  WorkerId least_context() const;

  void bind(std::uint32_t task, WorkerId worker, Time now);  // also moves a bound one
  void call_opened(std::uint32_t task, std::uint32_t prompt_tokens);
  void call_closed(std::uint32_t task, std::uint32_t prompt_tokens, std::uint32_t output_tokens, Time now);
  void task_over(std::uint32_t task);
  void forget_idle(Time now);

  // The last call of a thread of the task. drop_threads() tells the worker that none of them comes back, and forgets them.
  void thread_called(std::uint32_t task, ThreadId thread, CallId call);
  void drop_threads(std::uint32_t task, ClusterControl& cluster);

  bool only_call(std::uint32_t task) const { return sessions_[task].open_calls == 1; }
  std::uint32_t bound() const { return bound_; }
  bool verify() const;

 private:
  struct Session {
    WorkerId worker = kNone;
    std::uint32_t open_calls = 0;
    std::uint64_t open_tokens = 0;
    std::uint64_t last_tokens = 0;
    std::uint64_t counted = 0;
    Time idle_since = 0;
    ThreadId first_thread = kNone;
    std::uint32_t previous = kNone, next = kNone;  // idle ones
  };
  void count(Session& session);
  void link_idle(std::uint32_t task, Time now);
  void unlink_idle(std::uint32_t task);

  const Time time_limit_;
  std::vector<Session> sessions_;
  std::vector<std::uint64_t> context_;
  std::vector<CallId> last_call_;      // per thread; kNone: it is in no list
  std::vector<ThreadId> next_thread_;  // of the same task
  std::uint32_t first_idle_ = kNone, last_idle_ = kNone;
  std::uint32_t bound_ = 0;
};

}  // namespace saga
