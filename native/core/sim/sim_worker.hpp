// SimWorker: one inference engine under continuous batching, after vLLM V1's rules.
//
// The engine does one **step** after another while it has work. A step is put together when it begins:
//   1. running calls, in order of admission: one token for a call that decodes, a chunk for an unfinished prompt. Pages
//      are taken as tokens are scheduled. When a page cannot be had, the newest running call (under `priority` the one
//      with the largest priority number, newest of equals) is preempted: its pages are let go, tail first, stay cached
//      until evicted, and it goes back to the front of the queue, to be computed again with what it has generated as
//      part of its prompt.
//   2. waiting calls, first come first served (under `priority` the smallest number first), unless the step preempted
//      one: the leading cached pages are taken over (full pages, never the last token of what must be computed), then a
//      chunk. The first call that finds no room for its chunk (with `whole_prompts`: for all that must be computed), or no
//      seat, ends the admission: nobody overtakes it.
// A step holds at most token_budget tokens and max_sequences calls. Its time is the step-time model's. Every call whose
// known tokens are all computed at its end yields one token; the first comes with the step that finishes the prompt. A
// call ends with its last token, whose KV is never computed. Full pages of answers are cached like those of prompts.
//
// Equal content lies only once in a cache (vLLM keeps a second copy of what two calls compute at the same time). Pages
// that are being loaded from the host tier count as cached from the start of the load; the call waits for it with its
// seat taken, and the engine goes on.
//
// **Leases** (lease.hpp) keep cached pages from eviction. The budget is checked when one is asked for: nodes of the
// page tree that leases pin, counted as a whole, never hold more than lease_budget_percent of the pages. Leases are
// revoked when a step is put together, where a running call cannot get a page (before anybody is preempted) and where a
// waiting call can then be admitted; while it could not, even without leases, they stay. Copies that arrive revoke
// nothing. Leased pages that no running call uses are not in use (running_pages()). With `leases_before_waiting` a
// waiting call gets leased pages only where nothing runs or loads, so that nothing else would ever make room for it.
//
// With `preempt_after` (no part of vLLM's rules) the head of the queue, once it has waited that long for pages, preempts
// running calls of clearly lower priority.
//
// **Lazy decoding.** While all running calls decode and nothing can be admitted, nothing happens for many steps but
// that contexts grow. The worker then plans up to the first end of an answer (or the first page that might not be had)
// and walks through the steps in a tight loop, taking each page at the begin of its step. Everything outside that could
// matter (a call comes, somebody looks) first calls sync(), which catches up with the clock; a call that comes cuts the
// plan at the end of the step in flight. A plan counts on pages that are free or evictable, so a new lease cuts it too;
// when a lease ends, there only are more of them. And no plan runs into a revocation: it ends before the step that
// needs one. Whether the head of the queue can be admitted does not depend on leases, for they can all be revoked;
// under `leases_before_waiting` it does, and there the end of a lease cuts the plan, too. The results are those of single steps, which `single_step` forces.
//
// Time: the owner asks wake() for the next moment at which the worker wants to be called and calls end_step() or
// begin_step() then. At one moment steps end first, then everything outside happens, then steps begin.
//
// Cost: about 2 ns a step and 10 ns a page in a plan; a step by itself O(running calls); admission and end O(nodes on
// the path). Memory: the PageCache plus O(max_sequences).
//
// States of a call here: waiting -> (loading ->) running -> gone; running -> waiting when preempted. Invariants
// (verify()): seats are waiting-free: each running or loading call owns one cache slot; used() of the cache <=
// capacity; a call holds an anonymous page exactly when the tokens scheduled for it end inside a page; each lease owns
// one of the cache's lease slots and covers at least a page; the pages leased are within the budget.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "../base/types.hpp"
#include "../evict/page_cache.hpp"
#include "../evict/page_tree.hpp"
#include "../place/lease.hpp"
#include "host_tier.hpp"
#include "page_cost.hpp"
#include "step_time.hpp"
#include "workload.hpp"

namespace saga {

struct SimWorkerOptions {
  StepTimeModel step_time{Hardware::kA100Tp4};
  std::uint32_t capacity_pages = 28'000;
  std::uint32_t max_sequences = 256;
  std::uint32_t token_budget = 2'048;
  bool priority_scheduling = false;  // false: first come first served
  // As newer releases of vLLM do (scheduler_reserve_full_isl), so that long prompts preempt each other less.
  bool whole_prompts = false;
  PolicyKind eviction = PolicyKind::kLru;
  std::uint32_t host_pages = 0;  // 0: no host tier
  std::uint64_t link_bytes_per_second = 25'000'000'000;
  std::uint64_t kv_bytes_per_token = 327'680;
  std::uint32_t max_leases = 256;           // at a time
  std::uint32_t lease_budget_percent = 50;  // of the pages
  // Nobody is admitted at the expense of a lease while anybody runs or loads.
  bool leases_before_waiting = false;
  // Under priority scheduling: a head of the queue that has waited so long preempts the running call with the largest
  // priority number, if that is larger by more than the gap. 0: never.
  Time preempt_after = 0;
  std::int64_t preemption_gap = 0;
  bool single_step = false;
  ReuseStatistics* statistics = nullptr;  // shared with other workers; nullptr: each learns for itself
};

// Time on a link: bytes / rate, rounded up, at least one microsecond.
Time transfer_time(std::uint64_t pages, std::uint32_t page_tokens, std::uint64_t kv_bytes_per_token,
                   std::uint64_t link_bytes_per_second);

// What a worker reports while it runs. `now` may lie behind the owner's clock, never before the last report of this
// worker.
class WorkerObserver {
 public:
  virtual ~WorkerObserver() = default;
  // Leading pages on the path to `leaf` that some worker has computed so far.
  virtual std::uint32_t computed_pages(NodeId leaf, Time now) = 0;
  // The call is about to take over its cached pages, for the first time.
  virtual void call_admitted(WorkerId worker, CallId call, Time now) = 0;
  virtual void first_token(WorkerId worker, CallId call, Time now) = 0;
  virtual void call_finished(WorkerId worker, CallId call, Time now) = 0;
  // A load from the host tier takes until `end`; load_ended(slot, end) is wanted then.
  virtual void load_started(WorkerId worker, std::uint32_t slot, Time end) = 0;
  virtual void pages_changed(WorkerId worker, const std::vector<PageCache::Change>& changes, Time now) = 0;
  // Called from within the worker: it must not be acted upon before the worker has returned.
  virtual void lease_changed(const LeaseReport& report, Time now) = 0;
};

struct WorkerCounters {
  std::uint64_t prompt_tokens = 0;       // of admitted calls, each once
  std::uint64_t hit_tokens = 0;          // of these, tokens not computed: cached at the first admission
  std::uint64_t loaded_tokens = 0;       // of the hits, those loaded from the host tier
  std::uint64_t requested_pages = 0;     // full pages of the prompts
  std::uint64_t missed_pages = 0;        // of these, pages behind the leading cached run (GPU) at the first admission
  std::uint64_t missed_cost = 0;         // their cost in 1/120,000 tokens (see cache_replay.hpp)
  std::uint64_t prefilled_tokens = 0;    // prompt tokens computed, anew after preemption too
  std::uint64_t regenerated_tokens = 0;  // of these, in pages that had been computed before the admission
  std::uint64_t output_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t preempted_tokens = 0;  // computed tokens that preempted calls gave up
  std::uint64_t steps = 0;
};

class SimWorker {
 public:
  // `awaited` (one entry a node, owned by the caller): how many calls to come count on the node; see node_awaited().
  SimWorker(WorkerId id, const Workload& workload, const PageTree& tree, const SimWorkerOptions& options,
            const std::vector<std::uint32_t>& awaited, WorkerObserver& observer);

  SimWorker(const SimWorker&) = delete;
  SimWorker& operator=(const SimWorker&) = delete;

  enum class Wake : std::uint8_t { kNever = 0, kStepEnd = 1, kStepBegin = 2 };
  Wake wake() const { return wake_; }
  Time wake_time() const { return wake_time_; }
  // Changes whenever wake() or wake_time() does.
  std::uint32_t generation() const { return generation_; }

  void submit(CallId call, std::int32_t priority, Time now);
  void set_priority(CallId call, std::int32_t priority, Time now);  // of a waiting or running call here
  void end_step(Time now);
  void begin_step(Time now);
  void load_ended(std::uint32_t slot, Time now);

  // Catches up to `now`: afterwards pages and counters are as single steps would have left them. Cheap when there is
  // nothing.
  void sync(Time now);

  // Pages [cached, pages) of the path to `leaf` arrived from elsewhere (prefetch, migration): caches as many as find
  // room without a running call or a lease. The eviction policy hears of no call. Returns how many.
  std::uint32_t receive(NodeId leaf, std::uint32_t pages, Time now);

  // The thread will not come back here: what only it would use goes first.
  void drop(ThreadId thread, Time now);
  // What was received on the path to `leaf` is for the thread, whose next call will come here.
  void expect(ThreadId thread, NodeId leaf, Time now);

  // Keeps the leading `pages` pages of the path to `leaf` (kNone: all) that are cached now from eviction, before
  // `until` or until they are revoked; `call` is for the report. kNoLease: refused, for nothing is cached, the deadline
  // has come, the budget is exceeded or all max_leases hold.
  LeaseId lease(CallId call, NodeId leaf, std::uint32_t pages, std::uint64_t value, Time until, Time now);
  // False if the lease has ended before.
  bool release(LeaseId lease, Time now);
  // Ends what has reached its deadline; the owner sees to it that this is called at each deadline.
  void expire_leases(Time now);

  // The owner is about to change whether anybody awaits the node: awaited[node] goes from or to 0 right after.
  void node_awaited(NodeId node, bool will_be_awaited, Time now);

  std::uint32_t match(NodeId leaf) const { return cache_.match(leaf); }
  // Pages in use by running calls.
  std::uint32_t running_pages() const { return cache_.pinned() - cache_.revocable() + cache_.anonymous(); }
  std::uint32_t waiting_calls() const { return static_cast<std::uint32_t>(waiting_.size()); }
  std::uint32_t running_calls() const { return static_cast<std::uint32_t>(running_.size()) + loading_; }
  const PageCache& cache() const { return cache_; }
  const HostTier& host() const { return host_; }
  const WorkerCounters& counters() const { return counters_; }
  const LeaseCounters& lease_counters() const { return lease_counters_; }
  std::uint32_t open_leases() const { return static_cast<std::uint32_t>(leases_.size()); }

  // Pages that a running call uses or somebody awaits, times microseconds, up to the last sync or change.
  std::uint64_t useful_page_microseconds(Time now);
  // Tokens of answers produced by steps that ended at or before `now` (not earlier than the last sync).
  std::uint64_t output_tokens(Time now) const;

  // Between tasks that must not see each other: everything cached goes. Only while nothing waits or runs.
  void forget_everything(Time now);

  bool verify() const;

 private:
  struct Sequence {
    CallId call = kNone;
    std::int32_t priority = 0;
    std::uint64_t order = 0;            // of submission
    std::uint32_t computed = 0;         // tokens whose KV exists (in a plan: at its begin)
    std::uint32_t known = 0;            // prompt + generated
    std::uint32_t generated = 0;        // tokens of the answer
    std::uint32_t scheduled = 0;        // tokens of the step in flight
    std::uint32_t regenerated_end = 0;  // prompt tokens before this position had been computed before
    bool anonymous = false;             // holds a partly filled page
    bool loading = false;
  };
  struct Waiting {
    CallId call = kNone;
    std::int32_t priority = 0;
    std::uint64_t order = 0;
    std::uint32_t generated = 0;
    bool admitted_before = false;
    Time since = 0;
  };
  struct Lease {
    LeaseId id = kNoLease;
    CallId call = kNone;
    std::uint32_t slot = 0;  // of the cache
    NodeId deepest = kNone;  // node that it pins
    std::uint64_t value = 0;
    Time until = 0;
  };

  void set_wake(Wake wake, Time time);
  void account(Time now);
  std::uint32_t available() const { return cache_.free() + cache_.evictable(); }
  std::uint32_t pinned_by_calls() const { return cache_.pinned() - cache_.revocable(); }
  void process_changes(std::uint32_t pinned_before, Time now);
  void recount_idle_awaited();
  bool allocate(Sequence& sequence, std::uint32_t slot, std::uint32_t end_token, Time now);
  std::size_t newest_running() const;  // index in running_ of the call that is preempted next
  void preempt(std::size_t index, Time now);
  bool admit(std::uint32_t& budget, Time now);
  bool preempt_for_head(std::uint32_t& budget, Time now);
  std::pair<bool, bool> compose_step(Time now);
  std::uint32_t pages_to_pin(NodeId leaf, std::uint32_t matched) const;
  std::uint32_t pages_without_call(NodeId leaf, std::uint32_t matched) const;
  void unpin_accounting(NodeId leaf, std::uint32_t frontier);
  void enqueue(const Waiting& call, bool front);
  void finish(std::uint32_t slot, Time now);
  bool head_stays_blocked() const;
  void plan(bool preempted, Time now);
  void allocate_planned_step(Time now);
  Time planned_duration(std::uint64_t step) const;  // of step 1, 2, ...
  void cut_plan(Time now);
  bool revoke_lease(Time now);
  void end_lease(std::size_t index, LeaseOutcome outcome, Time now);

  const WorkerId id_;
  const Workload& workload_;
  const PageTree& tree_;
  const SimWorkerOptions options_;
  const std::uint32_t page_tokens_;
  const std::vector<std::uint32_t>& awaited_;
  WorkerObserver& observer_;
  PageCache cache_;
  HostTier host_;
  std::vector<PageCache::Change> changes_;

  std::vector<Sequence> sequences_;        // by cache slot
  std::vector<std::uint32_t> free_slots_;  // the last is used next
  std::vector<std::uint32_t> running_;     // slots, in order of admission
  std::vector<std::uint32_t> loaded_;      // slots whose load has ended; they join running_ when the next step begins
  std::deque<Waiting> waiting_;
  std::uint32_t loading_ = 0;  // slots whose load has not been followed by a step
  std::uint64_t next_order_ = 0;
  Time load_link_free_ = 0;

  const std::uint32_t lease_budget_;  // pages
  LeaseId next_lease_ = 0;
  std::vector<Lease> leases_;                    // that hold, by id
  std::vector<std::uint32_t> free_lease_slots_;  // the last is used next
  LeaseCounters lease_counters_;

  bool in_step_ = false;
  Wake wake_ = Wake::kNever;
  Time wake_time_ = 0;
  std::uint32_t generation_ = 0;

  // Plan of decode steps: planned_ of them; step number reached_ has begun and ends at reached_end_.
  std::uint64_t planned_ = 0;
  std::uint64_t reached_ = 0;
  Time reached_end_ = 0;
  std::uint64_t plan_fixed_ = 0;              // picoseconds of step 1
  std::uint64_t plan_slope_ = 0;              // more with each step
  std::uint32_t step_outputs_ = 0;            // tokens of answers that the step in flight yields
  std::vector<std::uint32_t> residue_order_;  // indices into running_, by computed tokens modulo the page
  std::vector<std::uint32_t> residue_first_;  // [page_tokens + 1]

  // Useful pages: pinned, anonymous, and unpinned ones that are awaited.
  std::uint64_t idle_awaited_ = 0;
  Time accounted_until_ = 0;
  std::uint64_t useful_area_ = 0;
  WorkerCounters counters_;
};

}  // namespace saga
