#include "cluster.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "../evict/reuse_statistics.hpp"
#include "event_queue.hpp"
#include "saga_paper.hpp"

namespace saga {

double exponential(Random& random) {
  // Of a descending run u > v1 > v2 > ... of uniforms an odd length is accepted; every rejection adds 1.
  std::uint32_t whole = 0;
  for (;;) {
    const std::uint64_t first = random.next() >> 11;
    std::uint64_t last = first;
    bool odd = true;
    for (;;) {
      const std::uint64_t next = random.next() >> 11;
      if (next >= last) break;
      last = next;
      odd = !odd;
    }
    if (odd) return static_cast<double>((std::uint64_t{whole} << 53) + first) * 0x1.0p-53;
    ++whole;
  }
}

namespace {

// Kinds of events, in the order in which they happen at one moment.
enum EventKind : std::uint32_t {
  kStepEnd = 0,      // subject: worker, tag: generation
  kLeaseEnd = 1,     // subject: worker
  kLoadEnd = 2,      // subject: worker, tag: slot
  kCopyEnd = 3,      // subject: index into copies_
  kTimer = 4,        //
  kTaskArrival = 5,  // subject: task
  kCallSent = 6,     // subject: call
  kStepBegin = 7,    // subject: worker, tag: generation
};

constexpr double kSecondsPerMicrosecond = 1e-6;

double seconds(std::uint64_t microseconds, std::uint64_t divisor = 1) {
  return divisor == 0 ? 0.0 : static_cast<double>(microseconds) / static_cast<double>(divisor) * kSecondsPerMicrosecond;
}

double ratio(std::uint64_t a, std::uint64_t b) {
  return b == 0 ? 0.0 : static_cast<double>(a) / static_cast<double>(b);
}

Distribution distribution_of(std::vector<Time> times) {
  Distribution result;
  if (times.empty()) return result;
  std::sort(times.begin(), times.end());
  std::uint64_t sum = 0;
  for (const Time time : times) sum += time;
  const std::uint64_t n = times.size();
  const auto rank = [&](std::uint64_t percent) { return seconds(times[(percent * n + 99) / 100 - 1]); };
  result.mean = seconds(sum, n);
  result.p50 = rank(50);
  result.p95 = rank(95);
  result.p99 = rank(99);
  return result;
}

SimWorkerOptions worker_options(const PageTree& tree, const ClusterOptions& options) {
  SimWorkerOptions worker;
  worker.step_time = options.step_time();
  worker.capacity_pages = static_cast<std::uint32_t>(options.kv_tokens / tree.page_tokens());
  worker.max_sequences = options.max_sequences;
  worker.token_budget = options.token_budget;
  worker.priority_scheduling = options.priority_scheduling || priority_scheduling_of(options.policy);
  worker.eviction = eviction_of(options.policy);
  worker.host_pages = static_cast<std::uint32_t>(options.host_tier_tokens / tree.page_tokens());
  worker.link_bytes_per_second = options.link_bytes_per_second;
  worker.kv_bytes_per_token = options.kv_bytes_per_token;
  worker.whole_prompts = options.whole_prompts;
  worker.max_leases = options.max_leases;
  worker.preempt_after = preempt_after_of(options.policy);
  worker.preemption_gap = SagaPaper::kPreemptionGap;
  worker.leases_before_waiting = leases_before_waiting_of(options.policy);
  worker.lease_budget_percent = worker.leases_before_waiting ? 100 : options.lease_budget_percent;
  worker.single_step = options.single_step;
  return worker;
}

// One run.
class Cluster final : public ClusterControl, public WorkerObserver, public PrefixDirectory {
 public:
  Cluster(const Workload& workload, const PageTree& tree, const ClusterOptions& options, bool tasks_alone,
          PlacementPolicy& placement, PrefixDirectory* directory, std::atomic<std::uint64_t>* progress);

  Status run();
  bool verify() const;
  void report(ClusterResult& result);
  const std::vector<Time>& completion() const { return completion_; }

  // ClusterControl
  std::uint32_t workers() const override { return options_.workers; }
  std::uint32_t page_tokens() const override { return tree_.page_tokens(); }
  std::uint32_t prompt_tokens(CallId call) const override { return workload_.prompt_tokens[call]; }
  PromptKind prompt_kind(CallId call) const override { return workload_.prompt_kind[call]; }
  ThreadId thread(CallId call) const override { return workload_.call_thread[call]; }
  std::uint32_t task(CallId call) const override { return calls_[call].task; }
  std::uint32_t tenant(std::uint32_t task) const override { return workload_.task_tenant[task]; }
  double weight(std::uint32_t tenant) const override {
    return tenant < workload_.tenant_weight.size() ? workload_.tenant_weight[tenant] : 1.0;
  }
  const AgentGraph* graph(std::uint32_t task) const override;
  std::uint32_t output_tokens(CallId call) const override {
    SAGA_ASSERT(calls_[call].finished);
    return workload_.output_tokens[call];
  }
  void match(CallId call, std::uint32_t* pages) override;
  std::uint32_t open_calls(WorkerId worker) const override { return open_calls_[worker]; }
  std::uint32_t running_pages(WorkerId worker) override;
  std::uint32_t waiting_calls(WorkerId worker) const override { return workers_[worker]->waiting_calls(); }
  std::uint32_t free_pages(WorkerId worker) override;
  bool has_host_tier() const override { return options_.host_tier_tokens > 0; }
  std::uint32_t capacity_pages(WorkerId worker) const override { return workers_[worker]->cache().capacity(); }
  std::uint32_t leased_pages(WorkerId worker) const override { return workers_[worker]->cache().leased(); }
  std::uint32_t cached_pages(CallId call, WorkerId worker) override;
  std::uint32_t cached_or_host_pages(CallId call, WorkerId worker) override;
  Time copy_time(std::uint32_t pages) const override {
    return transfer_time(pages, tree_.page_tokens(), options_.kv_bytes_per_token, options_.link_bytes_per_second);
  }
  void send(CallId call, WorkerId worker) override;
  void drop(CallId call, WorkerId worker) override;
  void set_priority(CallId call, std::int32_t priority) override;
  std::uint32_t copy(CallId call, WorkerId from, WorkerId to) override;
  void wake_at(Time time) override;
  LeaseId lease(CallId call, WorkerId worker, std::uint64_t value, Time until) override;
  bool release(LeaseId lease) override;

 private:
  struct Call {
    std::uint32_t task = 0;
    std::uint32_t predecessors_left = 0;
    Time ready = 0;           // latest (answer + gap) so far
    CallId critical = kNone;  // the predecessor that set it
    Time gaps = 0;            // on the critical path up to this call
    WorkerId worker = kNone;
    std::uint32_t served = 0;  // index into served_[worker]
    bool held = false;
    bool finished = false;
  };
  struct Copy {
    ThreadId thread;
    NodeId leaf;
    WorkerId to;
    std::uint32_t pages;  // on the path to the leaf, from its first
  };

  // The prompt, and the answer once it has ended.
  NodeId known_leaf(CallId call) const {
    return calls_[call].finished ? tree_.final_leaf(call) : tree_.prompt_leaf(call);
  }

  // WorkerObserver
  std::uint32_t computed_pages(NodeId leaf, Time now) override;
  void call_admitted(WorkerId worker, CallId call, Time now) override;
  void first_token(WorkerId worker, CallId call, Time now) override;
  void call_finished(WorkerId worker, CallId call, Time now) override;
  void load_started(WorkerId worker, std::uint32_t slot, Time end) override;
  void pages_changed(WorkerId worker, const std::vector<PageCache::Change>& changes, Time now) override;
  void lease_changed(const LeaseReport& report, Time now) override;

  // Ids of leases: those of a worker come one after the other, so this is one to one and keeps their order there.
  LeaseId cluster_lease(LeaseId lease, WorkerId worker) const {
    return lease == kNoLease ? kNoLease : lease * workers() + worker;
  }
  void report_leases();
  void sync_all();
  void push_wake(WorkerId worker);
  void task_arrives(std::uint32_t task);
  void place(CallId call);
  void await(NodeId leaf, bool more);
  bool over_limit() const;

  const Workload& workload_;
  const PageTree& tree_;
  const ClusterOptions& options_;
  const bool tasks_alone_;  // one after the other, everything forgotten in between
  PlacementPolicy& placement_;
  PrefixDirectory* directory_;
  std::atomic<std::uint64_t>* progress_;

  Time now_ = 0;
  ReuseStatistics statistics_;  // of saga's eviction: the workers learn together
  EventQueue events_;
  std::vector<std::uint32_t> awaited_;         // per node: calls of open tasks to come that have it in their prompt
  std::vector<std::uint32_t> computed_pages_;  // per node: leading pages that some worker has computed
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::vector<std::uint32_t> pushed_generation_;
  std::vector<std::uint32_t> open_calls_;
  std::vector<Time> copy_link_free_;
  std::vector<Copy> copies_;
  std::vector<LeaseReport> lease_reports_;  // not yet delivered
  std::vector<NodeId> path_;                // scratch
  std::vector<std::vector<ServedRequest>> served_;

  std::vector<Call> calls_;
  std::vector<std::uint32_t> first_successor_;  // [calls + 1], into successor_
  std::vector<std::uint32_t> successor_;        // successor call
  std::vector<std::uint32_t> successor_edge_;   // index of the edge in predecessor_gap
  std::vector<std::uint32_t> calls_left_;       // per task
  std::vector<Time> arrival_;
  std::vector<Time> completion_;
  std::vector<Time> critical_gaps_;
  std::vector<CallRecord> records_;
  std::uint32_t tasks_arrived_ = 0;
  std::uint32_t tasks_completed_ = 0;
  std::uint64_t completed_total_ = 0;  // sum of completion times
  std::uint64_t open_tasks_ = 0;
  std::uint64_t open_arrivals_ = 0;  // sum of their arrivals
  std::uint64_t copied_pages_ = 0;
  std::uint64_t held_calls_ = 0;

  // At the latest arrival.
  double useful_area_ = 0;  // page-microseconds
  std::uint64_t output_tokens_ = 0;
};

Cluster::Cluster(const Workload& workload, const PageTree& tree, const ClusterOptions& options, bool tasks_alone,
                 PlacementPolicy& placement, PrefixDirectory* directory, std::atomic<std::uint64_t>* progress)
    : workload_(workload),
      tree_(tree),
      options_(options),
      tasks_alone_(tasks_alone),
      placement_(placement),
      directory_(directory != nullptr ? directory : this),
      progress_(progress),
      events_(1024),
      awaited_(tree.size(), 0),
      computed_pages_(tree.size(), 0),
      pushed_generation_(options.workers, 0),
      open_calls_(options.workers, 0),
      copy_link_free_(options.workers, 0),
      path_(tree.max_path_nodes()),
      served_(options.workers),
      calls_(workload.calls()),
      first_successor_(workload.calls() + 1, 0),
      successor_(workload.predecessor_call.size()),
      successor_edge_(workload.predecessor_call.size()),
      calls_left_(workload.tasks()),
      arrival_(workload.tasks(), 0),
      completion_(workload.tasks(), 0),
      critical_gaps_(workload.tasks(), 0),
      records_(options.record_calls ? workload.calls() : 0) {
  SimWorkerOptions worker = worker_options(tree, options);
  worker.statistics = &statistics_;
  for (WorkerId w = 0; w < options.workers; ++w) {
    workers_.push_back(std::make_unique<SimWorker>(w, workload, tree, worker, awaited_, *this));
  }
  for (std::uint32_t t = 0; t < workload.tasks(); ++t) {
    calls_left_[t] = workload.task_first_call[t + 1] - workload.task_first_call[t];
    for (CallId c = workload.task_first_call[t]; c < workload.task_first_call[t + 1]; ++c) calls_[c].task = t;
  }
  for (const std::uint32_t call : workload.predecessor_call) ++first_successor_[call + 1];
  for (std::size_t c = 0; c + 1 < first_successor_.size(); ++c) first_successor_[c + 1] += first_successor_[c];
  std::vector<std::uint32_t> next(first_successor_.begin(), first_successor_.end() - 1);
  for (CallId c = 0; c < workload.calls(); ++c) {
    const std::uint32_t begin = workload.call_first_predecessor[c];
    const std::uint32_t end = workload.call_first_predecessor[c + 1];
    calls_[c].predecessors_left = end - begin;
    for (std::uint32_t edge = begin; edge < end; ++edge) {
      const std::uint32_t at = next[workload.predecessor_call[edge]]++;
      successor_[at] = c;
      successor_edge_[at] = edge;
    }
  }
}

void Cluster::sync_all() {
  for (const auto& worker : workers_) worker->sync(now_);
}

void Cluster::push_wake(WorkerId w) {
  const SimWorker& worker = *workers_[w];
  if (worker.generation() == pushed_generation_[w]) return;
  pushed_generation_[w] = worker.generation();
  if (worker.wake() == SimWorker::Wake::kNever) return;
  const std::uint32_t kind = worker.wake() == SimWorker::Wake::kStepEnd ? kStepEnd : kStepBegin;
  events_.push({worker.wake_time(), kind, w, worker.generation()});
}

void Cluster::match(CallId call, std::uint32_t* pages) {
  sync_all();
  if (directory_ != static_cast<PrefixDirectory*>(this)) {
    directory_->match(call, pages);
    return;
  }
  // What is cached is closed under prefixes, so along the path the nodes with cached pages come first: bisect.
  const std::uint32_t length = tree_.path(tree_.prompt_leaf(call), path_.data());
  for (WorkerId w = 0; w < workers(); ++w) {
    const ResidentSet& residents = workers_[w]->cache().residents();
    std::uint32_t held = 0;
    std::uint32_t open = length;
    while (held < open) {
      const std::uint32_t middle = (held + open) / 2;
      if (residents.nodes[path_[middle]].pages > 0) {
        held = middle + 1;
      } else {
        open = middle;
      }
    }
    pages[w] = held == 0 ? 0 : residents.path_pages(path_[held - 1]);
  }
}

std::uint32_t Cluster::running_pages(WorkerId worker) {
  workers_[worker]->sync(now_);
  return workers_[worker]->running_pages();
}

std::uint32_t Cluster::free_pages(WorkerId worker) {
  workers_[worker]->sync(now_);
  return workers_[worker]->cache().free();
}

const AgentGraph* Cluster::graph(std::uint32_t task) const {
  if (options_.hints == ClusterHints::kNone) return nullptr;
  if (task >= workload_.task_graph.size() || workload_.task_graph[task] == kNone) return nullptr;
  return &workload_.graphs[workload_.task_graph[task]];
}

std::uint32_t Cluster::cached_pages(CallId call, WorkerId worker) {
  workers_[worker]->sync(now_);
  return workers_[worker]->match(known_leaf(call));
}

std::uint32_t Cluster::cached_or_host_pages(CallId call, WorkerId worker) {
  const NodeId leaf = known_leaf(call);
  const std::uint32_t cached = cached_pages(call, worker);
  return cached + workers_[worker]->host().run_on_path(tree_, leaf, cached, tree_.path_pages(leaf));
}

void Cluster::drop(CallId call, WorkerId worker) { workers_[worker]->drop(workload_.call_thread[call], now_); }

void Cluster::send(CallId call, WorkerId worker) {
  SAGA_ASSERT(worker < workers() && calls_[call].worker == kNone);
  calls_[call].held = false;
  calls_[call].worker = worker;
  ++open_calls_[worker];
  workers_[worker]->submit(call, placement_.priority(call, now_, *this), now_);
  push_wake(worker);
}

void Cluster::set_priority(CallId call, std::int32_t priority) {
  const WorkerId worker = calls_[call].worker;
  if (worker == kNone) return;
  workers_[worker]->set_priority(call, priority, now_);
  push_wake(worker);
}

std::uint32_t Cluster::copy(CallId call, WorkerId from, WorkerId to) {
  workers_[from]->sync(now_);
  workers_[to]->sync(now_);
  const NodeId leaf = known_leaf(call);
  const std::uint32_t there = workers_[to]->match(leaf);
  std::uint32_t pages = 0;
  if (from == to) {
    pages = there + workers_[to]->host().run_on_path(tree_, leaf, there, tree_.path_pages(leaf));
  } else {
    pages = workers_[from]->match(leaf);
  }
  if (pages <= there) return 0;
  copy_link_free_[to] =
      std::max(copy_link_free_[to], now_) +
      transfer_time(pages - there, tree_.page_tokens(), options_.kv_bytes_per_token, options_.link_bytes_per_second);
  copies_.push_back({workload_.call_thread[call], leaf, to, pages});
  events_.push({copy_link_free_[to], kCopyEnd, static_cast<std::uint32_t>(copies_.size() - 1), 0});
  return pages - there;
}

void Cluster::wake_at(Time time) { events_.push({std::max(time, now_), kTimer, 0, 0}); }

LeaseId Cluster::lease(CallId call, WorkerId worker, std::uint64_t value, Time until) {
  SAGA_ASSERT(worker < workers());
  const LeaseId lease = workers_[worker]->lease(call, known_leaf(call), kNone, value, until, now_);
  if (lease == kNoLease) return kNoLease;
  events_.push({until, kLeaseEnd, worker, 0});
  push_wake(worker);
  return cluster_lease(lease, worker);
}

bool Cluster::release(LeaseId lease) {
  if (lease == kNoLease) return false;
  const auto worker = static_cast<WorkerId>(lease % workers());
  const bool released = workers_[worker]->release(lease / workers(), now_);
  push_wake(worker);
  return released;
}

void Cluster::lease_changed(const LeaseReport& report, Time now) {
  SAGA_ASSERT(now == now_);
  (void)now;
  lease_reports_.push_back(report);
  lease_reports_.back().lease = cluster_lease(report.lease, report.worker);
}

// What the policy does on a report may bring more of them.
void Cluster::report_leases() {
  for (std::size_t i = 0; i < lease_reports_.size(); ++i) {
    const LeaseReport report = lease_reports_[i];
    placement_.lease_reported(report, now_, *this);
  }
  lease_reports_.clear();
}

std::uint32_t Cluster::computed_pages(NodeId leaf, Time now) {
  SAGA_ASSERT(now == now_);
  (void)now;
  sync_all();
  while (leaf != kNone && computed_pages_[leaf] == 0) leaf = tree_.node(leaf).parent;
  return leaf == kNone ? 0 : tree_.node(leaf).first_page + computed_pages_[leaf];
}

// The prompt that ends at `leaf` is one more, or one less, that calls to come will ask for.
void Cluster::await(NodeId leaf, bool more) {
  for (NodeId node = leaf; node != kNone; node = tree_.node(node).parent) {
    const bool changes = more ? awaited_[node] == 0 : awaited_[node] == 1;
    if (changes && computed_pages_[node] > 0) {  // else nobody holds any of it
      for (const auto& worker : workers_) worker->node_awaited(node, more, now_);
    }
    awaited_[node] += more ? 1u : kNone;  // kNone = -1
  }
}

void Cluster::call_admitted(WorkerId worker, CallId call, Time now) {
  SAGA_ASSERT(now == now_);
  await(tree_.prompt_leaf(call), false);
  calls_[call].served = static_cast<std::uint32_t>(served_[worker].size());
  served_[worker].push_back({call, now, now});
  if (options_.record_calls) records_[call].admitted = now;
}

void Cluster::first_token(WorkerId worker, CallId call, Time now) {
  if (options_.record_calls) records_[call].first_token = now;
  placement_.first_token(call, worker, now, *this);
}

void Cluster::call_finished(WorkerId worker, CallId call, Time now) {
  SAGA_ASSERT(now == now_);
  calls_[call].finished = true;
  const Call& finished = calls_[call];
  --open_calls_[worker];
  served_[worker][finished.served].end = now;
  if (options_.record_calls) records_[call].finished = now;
  for (std::uint32_t i = first_successor_[call]; i < first_successor_[call + 1]; ++i) {
    Call& next = calls_[successor_[i]];
    const Time gap = workload_.predecessor_gap[successor_edge_[i]];
    const Time ready = now + gap;
    if (next.critical == kNone || ready > next.ready || (ready == next.ready && call < next.critical)) {
      next.ready = ready;
      next.critical = call;
      next.gaps = finished.gaps + gap;
    }
    if (--next.predecessors_left == 0) events_.push({next.ready, kCallSent, successor_[i], 0});
  }
  const std::uint32_t task = finished.task;
  critical_gaps_[task] = finished.gaps;  // the last answer's stands
  placement_.call_finished(call, worker, workload_.stop_reason[call], workload_.tool_class[call], now, *this);
  if (--calls_left_[task] > 0) return;
  completion_[task] = now - arrival_[task];
  completed_total_ += completion_[task];
  --open_tasks_;
  open_arrivals_ -= arrival_[task];
  ++tasks_completed_;
  if (progress_ != nullptr) progress_->store(tasks_completed_, std::memory_order_relaxed);
  if (options_.hints == ClusterHints::kGraph) placement_.task_finished(task, now, *this);
  if (options_.live > 0 && tasks_arrived_ < workload_.tasks()) {
    events_.push({now, kTaskArrival, tasks_arrived_++, 0});
  }
}

void Cluster::load_started(WorkerId worker, std::uint32_t slot, Time end) {
  events_.push({end, kLoadEnd, worker, slot});
}

void Cluster::pages_changed(WorkerId worker, const std::vector<PageCache::Change>& changes, Time now) {
  for (const PageCache::Change& change : changes) {
    if (!change.stored) continue;
    std::uint32_t& computed = computed_pages_[change.range.node];
    computed = std::max(computed, change.range.first + change.range.count);
  }
  if (directory_ != static_cast<PrefixDirectory*>(this)) directory_->pages_changed(worker, changes, now);
}

void Cluster::place(CallId call) {
  if (options_.record_calls) records_[call].sent = now_;
  const WorkerId worker = placement_.place(call, now_, *this);
  if (worker == kNone) {
    calls_[call].held = true;
    ++held_calls_;
    return;
  }
  send(call, worker);
}

void Cluster::task_arrives(std::uint32_t task) {
  if (tasks_alone_) workers_[0]->forget_everything(now_);
  sync_all();
  useful_area_ = 0;
  output_tokens_ = 0;
  for (const auto& worker : workers_) {
    useful_area_ += static_cast<double>(worker->useful_page_microseconds(now_));
    output_tokens_ += worker->output_tokens(now_);
  }
  arrival_[task] = now_;
  ++open_tasks_;
  open_arrivals_ += now_;
  for (CallId call = workload_.task_first_call[task]; call < workload_.task_first_call[task + 1]; ++call) {
    await(tree_.prompt_leaf(call), true);
    if (calls_[call].predecessors_left == 0) events_.push({now_, kCallSent, call, 0});
  }
  placement_.task_arrived(task, now_, *this);
}

// Completion times only grow: those of open tasks are at least their age.
bool Cluster::over_limit() const {
  if (options_.total_completion_limit == 0) return false;
  const std::uint64_t open = open_tasks_ * now_ - open_arrivals_;
  return completed_total_ + open > options_.total_completion_limit;
}

Status Cluster::run() {
  const std::uint32_t tasks = workload_.tasks();
  if (options_.live > 0) {
    while (tasks_arrived_ < std::min(options_.live, tasks)) events_.push({0, kTaskArrival, tasks_arrived_++, 0});
  } else {
    // Arrivals in units of the mean gap first: the pattern does not depend on the rate.
    Random random(mix64(options_.seed ^ 0x61727269'76616C73ull));
    const double gap = 1e6 / options_.rate;
    double units = 0;
    for (std::uint32_t task = 0; task < tasks; ++task) {
      units += exponential(random);
      events_.push({static_cast<Time>(units * gap), kTaskArrival, task, 0});
    }
    tasks_arrived_ = tasks;
  }
  std::uint64_t events_done = 0;
  while (!events_.empty() && tasks_completed_ < tasks) {
    const Event event = events_.pop();
    SAGA_ASSERT(event.time >= now_);
    now_ = event.time;
    switch (event.kind) {
      case kStepEnd:
      case kStepBegin:
        if (workers_[event.subject]->generation() != event.tag) break;
        if (event.kind == kStepEnd) {
          workers_[event.subject]->end_step(now_);
        } else {
          workers_[event.subject]->begin_step(now_);
        }
        push_wake(event.subject);
        break;
      case kLeaseEnd:
        workers_[event.subject]->expire_leases(now_);
        push_wake(event.subject);
        break;
      case kLoadEnd:
        workers_[event.subject]->load_ended(event.tag, now_);
        push_wake(event.subject);
        break;
      case kCopyEnd: {
        const Copy& copy = copies_[event.subject];
        workers_[copy.to]->expect(copy.thread, copy.leaf, now_);
        copied_pages_ += workers_[copy.to]->receive(copy.leaf, copy.pages, now_);
        push_wake(copy.to);
        break;
      }
      case kTimer:
        placement_.timer(now_, *this);
        break;
      case kTaskArrival:
        task_arrives(event.subject);
        break;
      default:
        place(event.subject);
        break;
    }
    if (!lease_reports_.empty()) report_leases();
    if (over_limit()) return Status::kFull;
    if (options_.verify_every > 0 && ++events_done % options_.verify_every == 0 && !verify())
      return Status::kWrongState;
  }
  return tasks_completed_ == tasks && (options_.verify_every == 0 || verify()) ? Status::kOk : Status::kWrongState;
}

bool Cluster::verify() const {
  if (!events_.verify() || !placement_.verify()) return false;
  for (const auto& worker : workers_) {
    if (!worker->verify()) return false;
  }
  std::uint64_t open = 0;
  for (const std::uint32_t calls : open_calls_) open += calls;
  std::uint64_t sent = 0;
  for (const auto& worker : workers_) sent += worker->waiting_calls() + worker->running_calls();
  if (open != sent) return false;
  return tasks_completed_ < workload_.tasks() || open == 0;
}

void Cluster::report(ClusterResult& result) {
  const std::uint32_t tasks = workload_.tasks();
  result = {};
  result.tasks_completed = tasks_completed_;
  result.completion = distribution_of(completion_);
  std::vector<Time> without_gaps(tasks);
  for (std::uint32_t t = 0; t < tasks; ++t) without_gaps[t] = completion_[t] - critical_gaps_[t];
  result.completion_without_gaps = distribution_of(std::move(without_gaps));

  WorkerCounters sum;
  std::uint64_t optimum_cost = 0;
  const auto capacity = workers_[0]->cache().capacity();
  for (WorkerId w = 0; w < workers(); ++w) {
    const WorkerCounters& counters = workers_[w]->counters();
    sum.prompt_tokens += counters.prompt_tokens;
    sum.hit_tokens += counters.hit_tokens;
    sum.missed_cost += counters.missed_cost;
    result.requested_pages += counters.requested_pages;
    result.missed_pages += counters.missed_pages;
    result.regenerated_tokens += counters.regenerated_tokens;
    result.output_tokens += counters.output_tokens;
    result.prefilled_tokens += counters.prefilled_tokens;
    result.loaded_tokens += counters.loaded_tokens;
    result.preemptions += counters.preemptions;
    result.preempted_tokens += counters.preempted_tokens;
    result.steps += counters.steps;
    result.evicted_pages += workers_[w]->cache().evicted_total();
    const LeaseCounters& leases = workers_[w]->lease_counters();
    result.leases.granted += leases.granted;
    result.leases.refused += leases.refused;
    result.leases.expired += leases.expired;
    result.leases.released += leases.released;
    result.leases.revoked += leases.revoked;
    SAGA_ASSERT(workers_[w]->running_pages() == 0);
    if (!options_.optimum) continue;
    const OptimumResult optimum = replay_optimum(workload_, tree_, served_[w], capacity);
    result.optimum_missed_pages += optimum.missed_pages;
    optimum_cost += optimum.missed_cost;
  }
  result.prefix_hit_rate = ratio(sum.hit_tokens, sum.prompt_tokens);
  if (options_.optimum) {
    result.belady_ratio = ratio(result.missed_pages, result.optimum_missed_pages);
    result.cost_ratio = ratio(sum.missed_cost, optimum_cost);
  }
  result.copied_pages = copied_pages_;
  result.held_calls = held_calls_;
  result.steals = placement_.steals();

  result.first_arrival = *std::min_element(arrival_.begin(), arrival_.end());
  result.last_arrival = *std::max_element(arrival_.begin(), arrival_.end());
  result.end = now_;
  Time window = result.last_arrival - result.first_arrival;
  if (window == 0) {  // all at once: the whole run
    window = now_ - result.first_arrival;
    useful_area_ = 0;
    for (const auto& worker : workers_) useful_area_ += static_cast<double>(worker->useful_page_microseconds(now_));
    output_tokens_ = result.output_tokens;
  }
  result.memory_utilization =
      useful_area_ / static_cast<double>(window) / static_cast<double>(std::uint64_t{capacity} * workers());
  result.throughput_tokens_per_second = static_cast<double>(output_tokens_) / seconds(window);

  if (options_.ideal != nullptr) {
    std::uint64_t ideal_sum = 0;
    std::uint32_t attained = 0;
    for (std::uint32_t t = 0; t < tasks; ++t) {
      ideal_sum += (*options_.ideal)[t];
      if (completion_[t] <= 3 * (*options_.ideal)[t]) ++attained;
    }
    result.ideal_seconds = seconds(ideal_sum, tasks);
    result.slo_attainment = ratio(attained, tasks);
  }
  if (options_.expected != nullptr) {
    std::uint32_t attained = 0;
    for (std::uint32_t t = 0; t < tasks; ++t) {
      if (2 * completion_[t] <= 3 * (*options_.expected)[t]) ++attained;
    }
    result.slo_attainment_paper = ratio(attained, tasks);
  }
  if (options_.record_calls) {
    for (CallId call = 0; call < workload_.calls(); ++call) records_[call].worker = calls_[call].worker;
    result.calls = std::move(records_);
  }
  result.task_completion = std::move(completion_);
}

bool valid(const Workload& workload, const PageTree& tree, const ClusterOptions& options) {
  const std::uint32_t tasks = workload.tasks();
  if (tasks == 0 || options.workers == 0 || options.max_sequences == 0 ||
      options.token_budget < options.max_sequences) {
    return false;
  }
  const std::uint64_t capacity = options.kv_tokens / tree.page_tokens();
  if (capacity == 0 || capacity >= kNone || options.host_tier_tokens / tree.page_tokens() >= kNone) return false;
  if (options.link_bytes_per_second == 0 || options.link_bytes_per_second > 10'000'000'000'000 ||
      options.kv_bytes_per_token == 0) {
    return false;
  }
  if (!valid(options.policy)) return false;
  if (options.lease_budget_percent > 100) return false;
  if ((options.rate > 0) == (options.live > 0) || !(options.rate >= 0) || options.rate > 1e9) return false;
  if (options.rate > 0 && options.rate < 1e-8) return false;  // arrivals stay far inside 64 bits
  if (options.ideal != nullptr && options.ideal->size() != tasks) return false;
  if (options.expected != nullptr && options.expected->size() != tasks) return false;
  return (longest_context(workload) + tree.page_tokens() - 1) / tree.page_tokens() <= capacity;
}

std::uint64_t sum_of(const std::vector<Time>& times) {
  std::uint64_t sum = 0;
  for (const Time time : times) sum += time;
  return sum;
}

}  // namespace

Status ideal_completion(const Workload& workload, const PageTree& tree, const ClusterOptions& options,
                        std::vector<Time>* ideal) {
  ClusterOptions alone = options;
  alone.workers = 1;
  alone.policy = {};
  alone.policy.kind = ClusterPolicyKind::kRoundRobin;
  alone.priority_scheduling = false;
  alone.rate = 0;
  alone.live = 1;
  alone.optimum = false;
  alone.ideal = alone.expected = nullptr;
  alone.record_calls = false;
  alone.total_completion_limit = 0;
  if (!valid(workload, tree, alone)) return Status::kInvalidArgument;
  BaselinePlacement placement(PlacementKind::kRoundRobin, 0);
  Cluster cluster(workload, tree, alone, true, placement, nullptr, nullptr);
  const Status status = cluster.run();
  *ideal = cluster.completion();
  return status;
}

Status simulate_cluster(const Workload& workload, const PageTree& tree, const ClusterOptions& options,
                        ClusterResult* result, std::atomic<std::uint64_t>* progress, PlacementPolicy* placement,
                        PrefixDirectory* directory) {
  if (!valid(workload, tree, options)) return Status::kInvalidArgument;
  ClusterOptions complete = options;
  std::vector<Time> ideal;
  if (options.ideal == nullptr) {
    const Status status = ideal_completion(workload, tree, options, &ideal);
    if (status != Status::kOk) return status;
    complete.ideal = &ideal;
  }
  std::unique_ptr<PlacementPolicy> made;
  if (placement == nullptr) {
    made = make_cluster_policy(options.policy, options, workload);
    placement = made.get();
  }
  Cluster cluster(workload, tree, complete, false, *placement, directory, progress);
  const Status status = cluster.run();
  if (status == Status::kOk) cluster.report(*result);
  return status;
}

Status find_saturation(const Workload& workload, const PageTree& tree, const ClusterOptions& options, double* rate,
                       std::atomic<std::uint64_t>* progress) {
  ClusterOptions search = options;
  search.live = 0;
  search.rate = 1;
  search.optimum = false;
  search.record_calls = false;
  if (!valid(workload, tree, search)) return Status::kInvalidArgument;
  std::vector<Time> ideal;
  if (options.ideal == nullptr) {
    const Status status = ideal_completion(workload, tree, options, &ideal);
    if (status != Status::kOk) return status;
    search.ideal = &ideal;
  }
  const std::uint64_t ideal_sum = sum_of(*search.ideal);
  search.total_completion_limit = 3 * ideal_sum;
  Status failure = Status::kOk;
  std::uint64_t runs = 0;
  const auto saturated = [&](double tasks_per_second) {
    search.rate = tasks_per_second;
    ClusterResult ignored;
    const Status status = simulate_cluster(workload, tree, search, &ignored);
    if (status != Status::kOk && status != Status::kFull) failure = status;
    if (progress != nullptr) progress->store(++runs, std::memory_order_relaxed);
    return status == Status::kFull;
  };
  const double mean_ideal = seconds(ideal_sum, workload.tasks());
  double low = 2.0 * options.workers / mean_ideal;
  double high = low;
  if (saturated(low)) {
    do {
      high = low;
      low = high * 0.5;
    } while (failure == Status::kOk && low > 1e-7 && saturated(low));
  } else {
    const double last = std::min(low * 1e6, 1e9);  // the highest rate that valid() accepts
    do {
      low = high;
      high = low * 2.0;
      if (high > last) return Status::kNotFound;
    } while (failure == Status::kOk && !saturated(high));
  }
  while (failure == Status::kOk && high > low * 1.02) {
    const double middle = (low + high) * 0.5;
    (saturated(middle) ? high : low) = middle;
  }
  *rate = low;
  return failure;
}

std::uint64_t longest_context(const Workload& workload) {
  std::uint64_t longest = 0;
  for (CallId call = 0; call < workload.calls(); ++call) {
    longest = std::max(longest, std::uint64_t{workload.prompt_tokens[call]} + workload.output_tokens[call] - 1);
  }
  return longest;
}

std::uint32_t live_for_pressure(const Workload& workload, const ClusterOptions& options, double pressure) {
  std::uint64_t context2 = 0;  // twice the sum of prompt + half the answer
  for (CallId call = 0; call < workload.calls(); ++call) {
    context2 += 2 * std::uint64_t{workload.prompt_tokens[call]} + workload.output_tokens[call];
  }
  if (context2 == 0) return 1;
  const double mean_context = static_cast<double>(context2) / static_cast<double>(2 * std::uint64_t{workload.calls()});
  const double room = static_cast<double>(options.kv_tokens * options.workers);
  const double live = pressure * room / mean_context;
  if (live >= 1e9) return 1'000'000'000;
  return std::max<std::uint32_t>(1, static_cast<std::uint32_t>(live + 0.5));
}

}  // namespace saga
