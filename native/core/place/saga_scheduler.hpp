// SagaScheduler: SAGA's own scheduling of a cluster: which worker gets a call, when, and what happens to its cache
// between calls.
//
// The unit of residence is a **thread** (one agent of one workflow: its calls follow each other and share a growing
// prefix), the unit of admission and fairness is its workflow (task). It stands behind the seam of cluster_control.hpp,
// so that the engine and the simulator run the same code.
//
// **One price.** Every alternative for a call is priced in seconds of delay that it causes, to the call itself and to
// those around it (cost_model.hpp):
//
//   wait          until the worker has room for it
//   prefill       of what the worker (or the peer it pulls from) does not hold
//   transfer      of what is pulled, behind what the link has to carry already
//   decode        expected answer times the step time that the worker will have with the call on it
//   interference  what the call costs the others there: longer steps, its prefill in their way
//   displacement  what it pushes out of memory, times the cost of computing that again
//
// The alternatives are: stay with the holder, recompute elsewhere, pull the pages to another worker, and, where no
// worker has room, wait in the fair queue. Affinity falls out of the price. Of alternatives that differ by less than
// `tie` two are drawn by seed, and the one with fewer open calls is taken. A thread leaves its worker only for a gain
// of more than `hysteresis`.
//
// **Presence.** A thread counts on its worker's load and memory while a call of it runs, and in a gap by the
// probability that it returns within `horizon` (graph/predictor.hpp): one second into a tool call all of it, hours
// after the last answer nothing.
//
//   states of a thread   absent -> queued -> (arriving ->) running -> paused -> queued ...; absent when its task ends
//     queued     its oldest open call waits in the fair queue; those that overlap it are sent with it
//     arriving   granted; its pages are on the way to its new worker, its calls are sent when they are there
//     running    all its open calls are at its worker: one that comes now overlaps them and goes there at once
//     paused     in a gap; its pages stay (a lease may keep them), or are copied to a worker where it will run better
//
// **Admission.** A thread is admitted with its first call, and anew when it was away for long (presence below
// `readmit`): some worker must have room for its whole expected working set among those of all threads present, or hold
// its pages and have room for it among the running ones. So a new workflow waits rather than pushing out running ones,
// unless what it pushes out is worth less than its answer (is_worth()): short chats of people who may or may not write
// again keep nobody out.
// Calls of admitted threads need room among the running ones only; held back they would lose their pages. Both kinds
// wait in fair queues of their own (fair/fair_queue.hpp), which order tenants by their shares and workflows by urgency
// and count the same service: what calls take. Memory starves nobody: a worker that has had no calls for `longest_idle`
// takes who waits, and a call that has waited `longest_wait` may go anywhere.
//
// **Stealing.** Decided when a thread pauses (its next call, priced on every worker against where it is) and when a
// worker has been idle for `longest_idle` while another has at least `steal_ratio` times the mean load. Only paused
// threads move. A copy that would keep the link busy for more than `longest_copy` is not made, and a thread stays
// `settle` where it has come to.
//
// **Drain.** A worker that does not accept is no alternative, only a source of pages. Threads that wait for their pages
// there are queued again, and those that pause there are moved by the same price, against computing them anew elsewhere:
// when the drain begins, when a call ends there, and with each tick.
//
// Cost: place O(workers) and one directory look-up; an end O(workers) (steal check) plus the grants it makes possible;
// while calls wait each of these also tries them, at most 16 of each of 16 tenants, O(workers) each; a tick (once a
// second while somebody is paused or waits) O(present threads), and O(their square) where many of them wait with
// deadlines. Memory is taken at construction. Deterministic: + - * / on doubles, seeded draws, ties by small ids.
//
// Invariants (verify()): the load of each worker is the sum of its present threads' (to rounding); a thread is in the
// fair queue exactly when queued; arriving threads are exactly those whose timer is that of an arrival; the calls
// counted at a worker are the open ones of the threads that are sent there; while anybody is queued or paused, the next
// tick is set.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/digest.hpp"
#include "../base/random.hpp"
#include "../base/types.hpp"
#include "../fair/fair_queue.hpp"
#include "../fair/indexed_heap.hpp"
#include "../graph/predictor.hpp"
#include "cluster_control.hpp"
#include "cost_model.hpp"

namespace saga {

// Parts that can be switched off, to see what each is worth.
struct SagaParts {
  bool prediction = true;  // off: the same constants for every thread
  bool affinity = true;    // off: pages held count for nothing; the least loaded worker
  bool stealing = true;    // off: no thread moves in its gap, and no pages are pulled
  bool prefetch = true;    // off: nothing is loaded from host memory before a return
  bool admission = true;   // off: every call is granted at once
  bool fairness = true;    // off: one queue, first come first served
  bool retention = true;   // off: no leases
};

struct SagaSchedulerOptions {
  std::uint32_t workers = 1;
  std::uint32_t threads = 1;  // ids are below; tasks and calls too
  std::uint32_t tasks = 1;
  std::uint32_t calls = 1;
  std::uint32_t tenants = 1;
  std::uint64_t seed = 0;
  StepCosts costs;
  double kv_bytes_per_token = 327'680;
  SagaParts parts;
  double room = 0.9;     // of the KV room that working sets may fill
  double readmit = 0.3;  // a thread that returns with less presence is admitted anew
  double hysteresis = 0.01;
  double tie = 0.005;
  double settle_seconds = 10;
  double longest_copy_seconds = 2;
  double displacement =
      10;  // price of a displaced token in prefills of it: it is missed, and pushes out others in turn
  Time horizon = 30'000'000;
  Time longest_wait = 36'000'000'000;
  std::uint32_t oldest_every = 64;  // admissions: every so many the oldest
  double largest_need = 0.1;        // share of the room that an admission may ask for at most
  Time longest_idle = 100'000;      // a worker without calls for so long steals (SAGA paper), and takes who waits
  double steal_ratio = 2;
  bool leases = false;  // workers that evict by another order than SAGA's: keep what will be used soon
};

// What the price of an alternative is made of, in seconds.
struct PriceTerms {
  double wait = 0;
  double prefill = 0;
  double transfer = 0;
  double decode = 0;
  double interference = 0;
  double displacement = 0;
  double total() const { return wait + prefill + transfer + decode + interference + displacement; }
};

enum class SagaReason : std::uint8_t {
  kNew = 0,        // no worker holds anything worth going to
  kHolder = 1,     // where its pages are
  kRecompute = 2,  // another worker, computing its prompt again
  kPull = 3,       // another worker, after copying its pages there
};

struct SagaReceipt {
  CallId call = kNone;
  WorkerId worker = kNone;
  WorkerId source = kNone;  // of a pull
  SagaReason reason = SagaReason::kNew;
  std::uint32_t matched_pages = 0;
  PriceTerms price;
  WorkerId holder = kNone;  // where the thread was
  PriceTerms holder_price;  // what staying would have cost
  Time queued = 0;          // waited in the fair queue
};

struct SagaStatistics {
  std::uint64_t grants = 0;
  std::uint64_t queued = 0;      // calls that waited in the fair queue
  std::uint64_t held = 0;        // calls that waited for their pages
  std::uint64_t steals = 0;      // threads moved while paused
  std::uint64_t pulls = 0;       // threads moved when they returned
  std::uint64_t recomputes = 0;  // threads that went elsewhere without their pages
  std::uint64_t thrash = 0;      // moves of a thread within three settle times of the move before
  std::uint64_t prefetches = 0;  // loads from host memory ahead of a return
  std::uint64_t prefetches_cancelled = 0;
  std::uint64_t preemptions = 0;  // running calls asked to give way
  std::uint64_t refused = 0;      // calls that the fair queue had no room for and were granted at once
};

class SagaScheduler final : public PlacementPolicy {
 public:
  explicit SagaScheduler(const SagaSchedulerOptions& options);

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  std::int32_t priority(CallId call, Time now, ClusterControl& cluster) override;
  void task_arrived(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void task_finished(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                     ClusterControl& cluster) override;
  void timer(Time now, ClusterControl& cluster) override;
  void worker_added(WorkerId worker, Time now, ClusterControl& cluster) override;
  void worker_removed(WorkerId worker, Time now, ClusterControl& cluster) override;
  void worker_drained(WorkerId worker, Time now, ClusterControl& cluster) override;
  void worker_resumed(WorkerId worker, Time now, ClusterControl& cluster) override;
  void call_recalled(CallId call, Time now, ClusterControl& cluster) override;
  void call_cancelled(CallId call, Time now, ClusterControl& cluster) override;
  void tenant_changed(std::uint32_t tenant, Time now, ClusterControl& cluster) override;
  void copy_ended(CallId call, WorkerId to, Time now, ClusterControl& cluster) override;
  // The earliest time that wake_at() was asked for and timer() has not come to; kNotDeclared: none.
  Time next_wake() const;
  std::uint64_t steals() const override { return statistics_.steals + statistics_.pulls; }
  bool verify() const override;

  const SagaStatistics& statistics() const { return statistics_; }
  const SagaReceipt& receipt() const { return receipt_; }  // of the last grant
  // Of the prompt of the last grant: what the active workers held of it at most, and the first that did; kNone: none.
  std::uint32_t longest_match() const { return longest_; }
  WorkerId longest_match_worker() const { return longest_worker_; }
  const Predictor& predictor() const { return predictor_; }
  const FairQueue& queue() const { return queue_; }
  const FairQueue& admissions() const { return admissions_; }
  double cost_factor(WorkerId worker) const { return costs_.factor(worker); }
  double resident_tokens(WorkerId worker) const { return workers_[worker].load.resident; }
  double running_tokens(WorkerId worker) const { return workers_[worker].running; }
  // Adds its state: threads, workers, timers and draws in full; the fair queues by the accounts and lags of tenants; of
  // the predictor the forecasts for all present threads and its calibration.
  void add_to(Digest& digest, Time now) const;

 private:
  enum class State : std::uint8_t { kAbsent, kQueued, kArriving, kRunning, kPaused };

  // What a thread asks of its worker, as rates and shares of time.
  struct Load {
    double busy = 0;      // share of time that a call of it runs
    double step = 0;      // seconds that it adds to a step, times busy
    double prefill = 0;   // share of time that its prefills take
    double resident = 0;  // tokens of its working set, growth included
  };
  struct Thread {
    State state = State::kAbsent;
    WorkerId worker = kNone;
    CallId call = kNone;  // waiting: the first of its open calls; running: one of them; paused: the last that ended
    CallId first_open = kNone;  // its open calls, in the order in which they came
    std::uint32_t task = kNone;
    std::uint32_t next = kNone;  // of the task
    std::uint32_t open_calls = 0;
    FairEntry entry = 0;
    double context = 0;  // tokens: prompt of the newest call, and its answer once it has ended
    double output = 0;   // expected of the running or next call
    double growth = 0;   // expected of the next gap
    double gap = 0;      // expected seconds of a gap
    double calls = 0;    // expected number of calls to come
    double presence = 0;
    double running = 0;  // tokens counted as running on the worker
    double queued = 0;   // tokens counted as queued there
    Load load;           // counted on the worker, presence included
    Time paused_at = 0;
    Time ready_at = 0;  // its pages are on the worker then
    Time moved_at = 0;
    Time started_at = 0;
    double predicted = 0;        // seconds that the running call was expected to take
    std::uint64_t charged = 0;   // for the running call, in both accounts
    double prefill_seconds = 0;  // of the running call, as predicted
    std::uint64_t work = 0;      // GPU-microseconds that its workflow is expected to need still
    Time queued_at = 0;
    LeaseId lease = kNoLease;
    bool moved = false;
    bool follows_tool = false;
    bool opened = false;    // in the predictor
    bool preempts = false;  // its call goes before others at its worker
    bool yields = false;    // its running call was asked to give way
    bool admitted = false;  // its working set has been granted room, and it has not been absent since
  };
  struct Worker {
    Load load;
    double running = 0;  // tokens of running calls
    double queued = 0;   // working sets of threads that wait for a grant here: room that is not for newcomers
    std::uint32_t calls = 0;
    double capacity = 0;  // tokens
    Time link_free = 0;
    Time idle_since = 0;  // of a worker without calls
  };
  // What bounds the price of a call at a worker from below, so that most prices need not be worked out (bound()). Of
  // the worker, kept with its load, its cost factor included:
  struct Floor {
    double step = 0;     // seconds of a step
    double busy = 0;     // calls that run
    double growing = 0;  // step; 0: prefills take so much of the worker's time that their share may not grow
    double longer = 0;   // busy * growing
    double factor = 0;   // the cost factor
  };
  // The floors of all workers, one column a field: a pass over them all takes several workers an instruction, more of them
  // as floats. What these are rounded by, the limit on bounds allows for.
  struct Floors {
    explicit Floors(std::size_t workers)
        : step(workers), busy(workers), growing(workers), longer(workers), factor(workers) {}
    std::vector<float> step, busy, growing, longer, factor;
  };
  // Of the call:
  struct Weights {
    double step = 0;
    double busy = 0;
    double growing = 0;
    double longer = 0;
  };
  // Of the prompt, in seconds by a worker of factor 1: computed there, or `otherwise` after a transfer.
  struct PromptCost {
    double computed = 0;
    double otherwise = 0;
    double transfer = 0;
    double at(double factor) const { return std::min(factor * computed, factor * otherwise + transfer); }
  };
  struct Alternative {
    WorkerId worker = kNone;
    WorkerId source = kNone;
    SagaReason reason = SagaReason::kNew;
    PriceTerms terms;
    double total = 0;
  };
  struct Choice {
    Alternative chosen;
    PriceTerms holder_terms;
  };

  Thread& thread_of(CallId call, ClusterControl& cluster) { return threads_[cluster.thread(call)]; }
  // Fills in what is expected of the thread. Returns the forecast that says so, without tails unless there are leases.
  Forecast estimate(Thread& thread, std::uint32_t id, Time now);
  static double working_set(const Thread& thread);
  Load load_of(const Thread& thread, double presence) const;
  void count(Thread& thread, double presence);  // on its worker, anew
  double step_time(const Load& load) const;
  Floor floor_of(WorkerId worker) const;
  void set_floor(WorkerId worker);
  static Weights weights_of(const Thread& thread, const Load& own);
  // Of decode, interference and prompt where the thread is not; of each worker, into bounds_.
  float bound(const Weights& weights, const PromptCost& prompt, WorkerId worker) const;
  void bound_prices(const Weights& weights, const PromptCost& prompt);
  double presence_of(std::uint32_t id, Time now) const;
  // own: the thread's load_of(), all present.
  PriceTerms price(const Thread& thread, const Load& own, WorkerId worker, double missing, double transfer) const;
  PriceTerms price_without_prompt(const Thread& thread, const Load& own, WorkerId worker, double* busy) const;
  // prefill: by a worker of factor 1.
  PriceTerms with_prompt(PriceTerms terms, WorkerId worker, double busy, double prefill, double transfer) const;
  double prefill_seconds(const Thread& thread, double missing) const;
  Time link_wait(WorkerId to, Time now) const {
    const Time free = workers_[to].link_free;
    return free > now ? free - now : 0;
  }
  bool has_room(const Thread& thread, double set, WorkerId worker, bool holds) const;  // set: its working_set()
  double resident_beside(const Thread& thread, WorkerId worker) const;
  bool idles(WorkerId worker, Time now) const;
  bool is_worth(const Thread& thread, double set, WorkerId worker) const;
  bool fits(const Thread& thread, CallId call, Time now, ClusterControl& cluster);
  std::uint64_t service(const Thread& thread, double gpu_seconds) const;
  Choice choose(const Thread& thread, CallId call, Time now, ClusterControl& cluster);
  WorkerId grant(CallId call, Time queued, Time now, ClusterControl& cluster);
  void grant_waiting(Time now, ClusterControl& cluster, CallId wanted, WorkerId* placed);
  void call_left(WorkerId worker, Time now, ClusterControl& cluster);
  double transfer_time(std::uint32_t pages, WorkerId to, Time now, ClusterControl& cluster) const;
  void copy_to(Thread& thread, CallId call, WorkerId from, WorkerId to, Time now, ClusterControl& cluster);
  bool may_move(const Thread& thread, Time now, ClusterControl& cluster) const;
  bool move_paused(std::uint32_t id, WorkerId to, double gain, Time now, ClusterControl& cluster);
  void note_move(Thread& thread, Time now);
  void consider_steal(std::uint32_t id, Time now, ClusterControl& cluster);
  void steal_for_idle(WorkerId thief, Time now, ClusterControl& cluster);
  void preempt_for_waiting(Time now, ClusterControl& cluster);
  void plan_prefetch(std::uint32_t id, Time now, ClusterControl& cluster);
  std::uint32_t tenant_of(const Thread& thread, ClusterControl& cluster) const;
  void add_open(Thread& thread, CallId call);
  void remove_open(Thread& thread, CallId call);
  void tell_started(std::uint32_t id, CallId call, Time now, ClusterControl& cluster);
  void overlap(std::uint32_t id, CallId call, Time now, ClusterControl& cluster);
  void send_open(std::uint32_t id, Time now, ClusterControl& cluster);
  void set_timer(std::uint32_t subject, Time at, ClusterControl& cluster);
  void clear_timer(std::uint32_t subject);
  void start_refresh(Time now, ClusterControl& cluster);
  double call_seconds(const Thread& thread) const;
  void leave(std::uint32_t id, Time now, ClusterControl& cluster, bool ended);
  void enqueue(std::uint32_t id, bool fresh, const Forecast& forecast, Time now, ClusterControl& cluster, bool* full);
  void uncharge(Thread& thread, ClusterControl& cluster);
  void queue_again(std::uint32_t id, Time now, ClusterControl& cluster);
  void move_off(WorkerId worker, Time now, ClusterControl& cluster);
  void learn_capacity(WorkerId worker, ClusterControl& cluster);
  void refresh(Time now, ClusterControl& cluster);

  SagaSchedulerOptions options_;
  CostModel costs_;
  Predictor predictor_;
  FairQueue queue_;       // calls of admitted threads
  FairQueue admissions_;  // first calls, and calls of threads that were away for long
  Random random_;
  std::vector<Thread> threads_;
  std::vector<Worker> workers_;
  Floors floors_;
  std::vector<float> bounds_;  // scratch, per worker
  std::vector<Time> arrived_;  // per task
  std::vector<std::uint32_t> first_thread_;
  std::vector<Time> deadline_;  // per task; kNotDeclared: none
  std::vector<std::uint32_t> matched_;
  std::uint32_t longest_ = 0;
  WorkerId longest_worker_ = kNone;
  std::vector<CallId> next_open_;  // per call: the next open one of its thread
  // By time. A thread: the arrival of its pages if it is arriving, its load from host memory if it is paused. threads +
  // a worker: it will have been idle for longest_idle.
  IndexedHeap timers_;
  std::vector<std::uint32_t> active_;       // threads that are not absent, in no order of meaning
  std::vector<std::uint32_t> active_slot_;  // per thread
  double page_tokens_ = 16;
  Time next_refresh_ = 0;
  SagaStatistics statistics_;
  SagaReceipt receipt_;
};

}  // namespace saga
