#include "engine_placement.hpp"

#include <algorithm>

#include "../base/assert.hpp"
#include "cluster.hpp"

namespace saga {
namespace {

constexpr std::size_t kJournalBytes = std::size_t{1} << 22;

}  // namespace

EngineOptions EnginePlacement::options_for(const Workload& workload, const PageTree& tree, std::uint32_t workers,
                                           std::uint32_t capacity_pages, PlacementKind kind, std::uint64_t seed,
                                           bool journal, const SchedulingOptions& scheduling) {
  // All calls may be open at once; memory is taken only for those that are. Chains lie in chunks of 256 blocks.
  constexpr std::uint64_t kMostOpenBlocks = std::uint64_t{1} << 32;
  std::uint64_t open_blocks = 256;
  std::uint32_t longest_of_all = 1;
  for (CallId call = 0; call < workload.calls(); ++call) {
    const std::uint32_t pages =
        tree.path_pages(kind == PlacementKind::kSaga ? tree.final_leaf(call) : tree.prompt_leaf(call));
    open_blocks += (std::uint64_t{pages} + 255) / 256 * 256;
    longest_of_all = std::max(longest_of_all, pages);
  }
  EngineOptions options;
  options.max_workers = workers;
  options.max_workflows = workload.tasks();
  options.max_calls = workload.calls();
  options.max_open_blocks = std::min(open_blocks, kMostOpenBlocks);
  options.max_chain_blocks = longest_of_all;
  // What all workers hold at once, and what one of them reports stored before it reports evicted.
  options.max_blocks =
      std::min<std::uint64_t>(tree.distinct_pages(), std::uint64_t{workers} * capacity_pages) + capacity_pages;
  options.block_tokens = tree.page_tokens();
  options.seed = seed;
  options.placement.kind = kind;
  options.scheduling = scheduling;
  options.journal_bytes = journal ? std::max<std::uint64_t>(kJournalBytes, std::uint64_t{longest_of_all} * 16) : 0;
  return options;
}

EnginePlacement::EnginePlacement(const Workload& workload, const PageTree& tree, std::uint32_t workers,
                                 std::uint32_t capacity_pages, PlacementKind kind, std::uint64_t seed, JournalSink sink,
                                 void* sink_context, const SchedulingOptions& scheduling)
    : workload_(workload),
      tree_(tree),
      workers_(workers),
      engine_(options_for(workload, tree, workers, capacity_pages, kind, seed, sink != nullptr, scheduling)),
      sink_(sink),
      sink_context_(sink_context),
      workflow_(workload.tasks()),
      handle_(workload.calls()),
      started_(workload.calls()),
      path_(tree.max_path_nodes()),
      depth_(std::size_t{workers} * kTierCount) {
  chain_.reserve(engine_.options().max_chain_blocks);
  if (sink_ != nullptr) journal_bytes_.resize(std::size_t{1} << 16);
  for (std::uint32_t i = 0; i < workers; ++i) {
    WorkerId worker = kNone;
    drain(64);
    note(engine_.add_worker(0, capacity_pages, &worker));
  }
  if (!schedules()) return;
  call_in_slot_.assign(std::size_t{workload.calls()} + engine_.options().scheduling.max_threads, kNone);
  priority_.assign(workload.calls(), 0);
  decisions_.resize(256);
  for (const AgentGraph& graph : workload.graphs) {
    std::uint32_t id = kNone;
    drain(graph.steps.size() * 32 + graph.edges.size() * 16 + 64);
    note(engine_.declare_graph(0, graph, &id));
    graph_.push_back(id);
  }
  for (std::uint32_t tenant = 0; tenant < workload.tenant_weight.size() && tenant < scheduling.max_tenants; ++tenant) {
    drain(64);
    if (workload.tenant_weight[tenant] != 1) note(engine_.set_tenant(0, tenant, workload.tenant_weight[tenant]));
  }
}

SchedulingOptions EnginePlacement::scheduling_for(const ClusterPolicyOptions& policy, const ClusterOptions& cluster,
                                                  const Workload& workload) {
  const SagaSchedulerOptions saga = saga_options(policy, cluster, workload);
  SchedulingOptions scheduling;
  // A call that need not wait for the one before of its thread may overlap it, and then has a lane of its own.
  scheduling.max_threads = saga.threads;
  std::vector<CallId> before(saga.threads, kNone);
  for (CallId call = 0; call < workload.calls(); ++call) {
    CallId& last = before[workload.call_thread[call]];
    const auto first = workload.predecessor_call.begin() + workload.call_first_predecessor[call];
    const auto end = workload.predecessor_call.begin() + workload.call_first_predecessor[call + 1];
    if (last != kNone && std::find(first, end, last) == end) ++scheduling.max_threads;
    last = call;
  }
  scheduling.max_tenants = saga.tenants;
  scheduling.max_graphs = static_cast<std::uint32_t>(workload.graphs.size());
  scheduling.max_leases = cluster.workers * cluster.max_leases;
  scheduling.max_directives = std::min(4 * saga.threads + 4096, 1u << 20);
  scheduling.max_receipts = 0;
  scheduling.parts = saga.parts;
  scheduling.leases = saga.leases;
  scheduling.kv_bytes_per_token = cluster.kv_bytes_per_token;
  scheduling.link_bytes_per_second = cluster.link_bytes_per_second;
  scheduling.costs = saga.costs;
  return scheduling;
}

void EnginePlacement::drain(std::size_t payload) {
  if (sink_ == nullptr || (payload != 0 && engine_.journal().fits(payload))) return;
  for (;;) {
    const std::size_t count = engine_.journal().drain(journal_bytes_.data(), journal_bytes_.size());
    if (count == 0) return;
    sink_(sink_context_, journal_bytes_.data(), count);
  }
}

std::span<const BlockHash> EnginePlacement::chain_to(NodeId leaf) {
  chain_.clear();
  const std::uint32_t nodes = tree_.path(leaf, path_.data());
  for (std::uint32_t i = 0; i < nodes; ++i) {
    const std::uint32_t pages = tree_.node(path_[i]).pages;
    for (std::uint32_t page = 0; page < pages; ++page) chain_.push_back(tree_.page_hash(path_[i], page));
  }
  return chain_;
}

void EnginePlacement::task_arrived(std::uint32_t task, Time now, ClusterControl& cluster) {
  drain(64);
  WorkflowInfo info;
  info.tenant = workload_.task_tenant[task];
  if (schedules() && cluster.graph(task) != nullptr) info.graph = graph_[workload_.task_graph[task]];
  note(engine_.open_workflow(at(now), info, &workflow_[task]));
  if (schedules()) carry_out(kNone, now, cluster);
}

void EnginePlacement::task_finished(std::uint32_t task, Time now, ClusterControl& cluster) {
  if (schedules()) catch_up(cluster);
  drain(64);
  note(engine_.close_workflow(at(now), workflow_[task]));
  if (schedules()) carry_out(kNone, now, cluster);
}

void EnginePlacement::catch_up(ClusterControl& cluster) {
  for (WorkerId worker = 0; worker < workers_; ++worker) cluster.running_pages(worker);
}

WorkerId EnginePlacement::carry_out(CallId wanted, Time now, ClusterControl& cluster) {
  WorkerId placed = kNone;
  while (engine_.pending_decisions() > 0 && status_ == Status::kOk) {
    std::size_t count = 0;
    drain(decisions_.size() * sizeof(Decision) + 64);
    note(engine_.decide(at(now), decisions_, &count));
    for (std::size_t i = 0; i < count; ++i) {
      const Decision& decision = decisions_[i];
      const CallId call = call_of(decision.call);
      const Directive directive = to_directive(decision);
      switch (static_cast<DecisionType>(decision.type)) {
        case DecisionType::kPlace:
          priority_[call] = decision.priority;
          if (call == wanted) {
            placed = decision.worker;
          } else {
            cluster.send(call, decision.worker);
          }
          break;
        case DecisionType::kCopy:
          cluster.copy(call, directive.source, directive.worker);
          break;
        case DecisionType::kRetain: {
          const LeaseId lease = cluster.lease(call, directive.worker, directive.value, directive.until);
          if (lease != kNoLease) {
            leases_.insert(std::upper_bound(leases_.begin(), leases_.end(), std::pair(lease, LeaseId{0})),
                           {lease, directive.id});
          }
          drain(64);
          note(
              engine_.directive_done(at(now), directive.id, lease == kNoLease ? Outcome::kRefused : Outcome::kApplied));
          break;
        }
        case DecisionType::kRelease: {
          const auto found = std::find_if(leases_.begin(), leases_.end(),
                                          [&](const auto& pair) { return pair.second == directive.id; });
          if (found == leases_.end()) break;
          const LeaseId lease = found->first;
          leases_.erase(found);
          cluster.release(lease);
          break;
        }
        case DecisionType::kDrop:
          cluster.drop(call, decision.worker);
          break;
        case DecisionType::kPriority:
          cluster.set_priority(call, directive.priority);
          break;
      }
    }
  }
  await_wake(cluster);
  return placed;
}

// Each time once.
void EnginePlacement::await_wake(ClusterControl& cluster) {
  const Time next = engine_.next_wake();
  if (next == kNotDeclared || next >= wake_) return;
  wake_ = next;
  cluster.wake_at(next);
}

void EnginePlacement::timer(Time now, ClusterControl& cluster) {
  if (!schedules()) return;
  if (now >= wake_) wake_ = kNotDeclared;
  catch_up(cluster);
  drain(64);
  note(engine_.tick(at(now)));
  carry_out(kNone, now, cluster);
}

void EnginePlacement::lease_reported(const LeaseReport& report, Time now, ClusterControl& cluster) {
  if (!schedules() || report.lease == kNoLease || report.outcome == LeaseOutcome::kGranted) return;
  const auto found = std::lower_bound(leases_.begin(), leases_.end(), std::pair(report.lease, LeaseId{0}));
  if (found == leases_.end() || found->first != report.lease) return;  // released
  const LeaseId lease = found->second;
  leases_.erase(found);
  drain(64);
  const Status told = engine_.directive_done(
      at(now), lease, report.outcome == LeaseOutcome::kRevoked ? Outcome::kRevoked : Outcome::kExpired);
  if (told != Status::kNotFound) note(told);
  carry_out(kNone, now, cluster);
}

std::int32_t EnginePlacement::priority(CallId call, Time, ClusterControl&) { return schedules() ? priority_[call] : 0; }

std::uint64_t EnginePlacement::steals() const { return schedules() ? engine_.scheduling()->scheduler().steals() : 0; }

WorkerId EnginePlacement::place(CallId call, Time now, ClusterControl& cluster) {
  for (WorkerId worker = 0; worker < workers_; ++worker) {
    const std::uint32_t running = cluster.running_pages(worker);
    if (schedules()) continue;  // which decides by its own account of what runs
    drain(64);
    note(engine_.worker_load(at(now), worker, running));
  }
  const std::span<const BlockHash> chain = chain_of(call);
  drain(chain.size_bytes() + 64);
  if (schedules()) {
    CallInfo info;
    info.prompt_tokens = workload_.prompt_tokens[call];
    info.agent = cluster.thread(call);
    info.prompt_kind = static_cast<std::uint32_t>(cluster.prompt_kind(call));
    note(engine_.submit_call(at(now), workflow_[cluster.task(call)], info, chain, &handle_[call]));
    if (status_ != Status::kOk) return 0;
    call_in_slot_[static_cast<std::uint32_t>(handle_[call])] = call;
    return carry_out(call, now, cluster);
  }
  note(engine_.submit_call(at(now), workflow_[cluster.task(call)], workload_.prompt_tokens[call], chain,
                           &handle_[call]));
  Decision decision;
  std::size_t count = 0;
  drain(sizeof decision + 64);
  note(engine_.decide(at(now), {&decision, 1}, &count));
  if (status_ != Status::kOk) return 0;
  SAGA_ASSERT(count == 1 && decision.call == handle_[call]);
  return decision.worker;
}

void EnginePlacement::first_token(CallId call, WorkerId, Time now, ClusterControl&) {
  if (started_[call] != 0) return;
  started_[call] = 1;
  drain(64);
  note(engine_.first_token(at(now), handle_[call]));
}

void EnginePlacement::call_finished(CallId call, WorkerId, StopReason stop, ToolClass tool, Time now,
                                    ClusterControl& cluster) {
  if (!schedules()) {
    drain(64);
    note(engine_.finish_call(at(now), handle_[call], stop, tool, workload_.output_tokens[call]));
    return;
  }
  catch_up(cluster);
  const std::span<const BlockHash> chain = chain_to(tree_.final_leaf(call));
  drain(chain.size_bytes() + 128);
  AnswerInfo info;
  info.stop = stop;
  info.tool = tool;
  info.output_tokens = workload_.output_tokens[call];
  note(engine_.finish_call(at(now), handle_[call], info, chain.subspan(tree_.path_pages(tree_.prompt_leaf(call)))));
  carry_out(kNone, now, cluster);
}

void EnginePlacement::match(CallId call, std::uint32_t* pages) {
  engine_.match(chain_of(call), depth_.data());
  for (WorkerId worker = 0; worker < workers_; ++worker) pages[worker] = depth_[worker * kTierCount];
}

void EnginePlacement::pages_changed(WorkerId worker, const std::vector<PageCache::Change>& changes, Time now) {
  for (const PageCache::Change& change : changes) {
    const PageRange& range = change.range;
    chain_.clear();
    for (std::uint32_t page = 0; page < range.count; ++page) {
      chain_.push_back(tree_.page_hash(range.node, range.first + page));
    }
    drain(chain_.size() * sizeof(BlockHash) + 64);
    if (!change.stored) {
      note(engine_.blocks_removed(at(now), worker, Tier::kGpu, chain_));
      continue;
    }
    const NodeId above = tree_.node(range.node).parent;
    const BlockHash parent = range.first > 0  ? tree_.page_hash(range.node, range.first - 1)
                             : above != kNone ? tree_.page_hash(above, tree_.node(above).pages - 1)
                                              : 0;
    note(engine_.blocks_stored(at(now), worker, Tier::kGpu, parent, chain_));
  }
}

}  // namespace saga
