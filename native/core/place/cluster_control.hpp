// What schedules a cluster of workers, and what it can see and do: the seam between a scheduling policy and its host.
//
// A policy decides where each call goes, when, in what order, and what is copied, kept and dropped between calls. Its host
// is the engine, in front of real workers (engine/engine.hpp), or the simulated cluster (sim/cluster.hpp); a policy cannot
// tell which. It sees what a router in front of engines sees: prompts when they are sent, what each worker caches, how
// much it runs, answers when they end, and what clients declare. Never the future.
//
// Calls, tasks (workflows), threads and tenants are small integers. The number of a call may be used again when the next
// call of its thread has been placed, those of tasks and their threads after task_finished (the engine does so, the
// simulator does not). A policy belongs to one host and is called
// from one thread, in order of time; it may call any action of ClusterControl from within any of its notifications.
#pragma once

#include <cstdint>

#include "../base/types.hpp"
#include "lease.hpp"

namespace saga {

class AgentGraph;
struct CallHints;

// The cluster as a policy sees it and acts on it.
class ClusterControl {
 public:
  virtual std::uint32_t workers() const = 0;
  virtual std::uint32_t page_tokens() const = 0;

  // What the request itself tells.
  virtual std::uint32_t prompt_tokens(CallId call) const = 0;
  virtual PromptKind prompt_kind(CallId call) const = 0;
  virtual ThreadId thread(CallId call) const = 0;
  virtual std::uint32_t task(CallId call) const = 0;
  virtual std::uint32_t tenant(std::uint32_t task) const = 0;
  virtual double weight(std::uint32_t tenant) const = 0;  // of its fair share; above 0, default 1
  // What the client declared for the task when it arrived; nullptr: nothing. Class values, never the task's own draws.
  virtual const AgentGraph* graph(std::uint32_t task) const = 0;
  virtual std::uint32_t agent_kind(std::uint32_t) const { return 0; }  // of a task: small numbers from 1; 0: unknown
  // What the client told beyond that with the call and, once it has ended, with its answer; nullptr: nothing.
  virtual const CallHints* hints(CallId) const { return nullptr; }
  // Of a call that has finished, during and after call_finished until the thread's next call is placed.
  virtual std::uint32_t output_tokens(CallId call) const = 0;

  // The workers now.
  virtual bool active(WorkerId) const { return true; }  // false: it is gone, nothing may go there
  virtual std::uint32_t active_workers() const { return workers(); }
  // false: it is gone or drained. No call and no copy goes to a drained one; its calls go on, and pages may leave it.
  virtual bool accepts(WorkerId worker) const { return active(worker); }
  virtual std::uint32_t accepting_workers() const { return active_workers(); }
  virtual bool has_host_tier() const { return false; }
  // Leading cached pages of the prompt, per worker, as far as its reports are believed; 0 of those that are not active.
  virtual void match(CallId call, std::uint32_t* pages) = 0;
  virtual std::uint32_t open_calls(WorkerId worker) const = 0;     // sent and not yet finished
  virtual std::uint32_t running_pages(WorkerId worker) = 0;        // pages in use by running calls
  virtual std::uint32_t waiting_calls(WorkerId worker) const = 0;  // in the engine's queue
  virtual std::uint32_t free_pages(WorkerId worker) = 0;           // hold nothing at all
  virtual std::uint32_t capacity_pages(WorkerId worker) const = 0;
  virtual std::uint32_t leased_pages(WorkerId worker) const = 0;  // of these, held against the budget by leases

  // Leading pages of the call's prompt (and answer, once it has ended) that the worker holds in GPU memory, and in GPU or
  // host memory, as far as its reports are believed.
  virtual std::uint32_t cached_pages(CallId call, WorkerId worker) = 0;
  virtual std::uint32_t cached_or_host_pages(CallId call, WorkerId worker) = 0;
  // Estimated time of a copy of so many pages between workers, or from a worker's host memory, on an idle link.
  virtual Time copy_time(std::uint32_t pages) const = 0;

  // Actions. send() places a call that was held. set_priority() acts on workers with priority scheduling (smaller
  // first). copy(): the pages of the prompt (and of the answer, once it has ended) that `from` caches and `to` lacks go over
  // the link into `to` (its incoming link carries one copy after the other) and are cached there, as far as there is room,
  // when they arrive; from == to loads from the host tier. The source keeps its copy, which ages. Returns the pages under
  // way. wake_at(): timer() at that time, now or later.
  virtual void send(CallId call, WorkerId worker) = 0;
  virtual void set_priority(CallId call, std::int32_t priority) = 0;
  virtual std::uint32_t copy(CallId call, WorkerId from, WorkerId to) = 0;
  virtual void wake_at(Time time) = 0;
  // drop(): the call's thread will not come back to this worker (it was moved away, or has ended); what only it would use
  // there goes first. Pages that other threads use are not touched.
  virtual void drop(CallId call, WorkerId worker) = 0;
  // lease(): what the worker caches now of a call's prompt, and of its answer if that has ended, is kept before `until`
  // unless it is revoked (lease.hpp). kNoLease: refused. release(): false if the lease has ended before.
  virtual LeaseId lease(CallId call, WorkerId worker, std::uint64_t value, Time until) = 0;
  virtual bool release(LeaseId lease) = 0;
  // The policy has just decided on this call, and has a receipt of it.
  virtual void granted(CallId) {}

 protected:
  ~ClusterControl() = default;
};

class PlacementPolicy {
 public:
  virtual ~PlacementPolicy() = default;

  // The worker for a call that is sent now, or kNone: the policy holds it and will send() it later.
  virtual WorkerId place(CallId call, Time now, ClusterControl& cluster) = 0;
  virtual std::int32_t priority(CallId, Time, ClusterControl&) { return 0; }

  virtual void task_arrived(std::uint32_t, Time, ClusterControl&) {}
  virtual void task_finished(std::uint32_t, Time, ClusterControl&) {}
  virtual void first_token(CallId, WorkerId, Time, ClusterControl&) {}
  virtual void call_finished(CallId, WorkerId, StopReason, ToolClass, Time, ClusterControl&) {}
  virtual void timer(Time, ClusterControl&) {}

  // What a simulated cluster never does. worker_removed(): active() says so already, and the calls that were sent there
  // and have not finished are not sent any more: the policy sends them again. call_cancelled(): ended without an answer,
  // in whatever state; its number may be used again. tenant_changed(): its weight.
  virtual void worker_added(WorkerId, Time, ClusterControl&) {}
  virtual void worker_removed(WorkerId, Time, ClusterControl&) {}
  virtual void call_cancelled(CallId, Time, ClusterControl&) {}
  // accepts() says so already. call_recalled(): send() was taken back, as the worker is drained and was not told of the
  // call yet; the policy sends it again. All of these come before worker_drained().
  virtual void worker_drained(WorkerId, Time, ClusterControl&) {}
  virtual void worker_resumed(WorkerId, Time, ClusterControl&) {}
  virtual void call_recalled(CallId, Time, ClusterControl&) {}
  virtual void tenant_changed(std::uint32_t, Time, ClusterControl&) {}
  // A copy of the pages of a call to `to` has come to its end, whether they are there or not.
  virtual void copy_ended(CallId, WorkerId, Time, ClusterControl&) {}
  // Each outcome once, in order, at the moment when it happens but after everything that the same event brings about
  // (so lease() has returned before its kGranted comes). Who asks again at each refusal asks for ever.
  virtual void lease_reported(const LeaseReport&, Time, ClusterControl&) {}
  // For reports: how often it has moved a paused or waiting session to another worker.
  virtual std::uint64_t steals() const { return 0; }
  virtual bool verify() const { return true; }

 protected:
  PlacementPolicy() = default;
  PlacementPolicy(const PlacementPolicy&) = delete;
  PlacementPolicy& operator=(const PlacementPolicy&) = delete;
};

}  // namespace saga
