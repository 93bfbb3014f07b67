#include "engine_placement.hpp"

#include <algorithm>

#include "../base/assert.hpp"

namespace saga {
namespace {

constexpr std::size_t kJournalBytes = std::size_t{1} << 22;

}  // namespace

EngineOptions EnginePlacement::options_for(const Workload& workload, const PageTree& tree, std::uint32_t workers,
                                           std::uint32_t capacity_pages, PlacementKind kind, std::uint64_t seed,
                                           bool journal) {
  // All calls may be open at once; memory is taken only for those that are. Chains lie in chunks of 256 blocks.
  constexpr std::uint64_t kMostOpenBlocks = std::uint64_t{1} << 32;
  std::uint64_t open_blocks = 256;
  std::uint32_t longest_of_all = 1;
  for (CallId call = 0; call < workload.calls(); ++call) {
    const std::uint32_t pages = tree.path_pages(tree.prompt_leaf(call));
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
  options.journal_bytes = journal ? std::max<std::uint64_t>(kJournalBytes, std::uint64_t{longest_of_all} * 16) : 0;
  return options;
}

EnginePlacement::EnginePlacement(const Workload& workload, const PageTree& tree, std::uint32_t workers,
                                 std::uint32_t capacity_pages, PlacementKind kind, std::uint64_t seed, JournalSink sink,
                                 void* sink_context)
    : workload_(workload),
      tree_(tree),
      workers_(workers),
      engine_(options_for(workload, tree, workers, capacity_pages, kind, seed, sink != nullptr)),
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
}

void EnginePlacement::drain(std::size_t payload) {
  if (sink_ == nullptr || (payload != 0 && engine_.journal().fits(payload))) return;
  for (;;) {
    const std::size_t count = engine_.journal().drain(journal_bytes_.data(), journal_bytes_.size());
    if (count == 0) return;
    sink_(sink_context_, journal_bytes_.data(), count);
  }
}

std::span<const BlockHash> EnginePlacement::chain_of(CallId call) {
  chain_.clear();
  const std::uint32_t nodes = tree_.path(tree_.prompt_leaf(call), path_.data());
  for (std::uint32_t i = 0; i < nodes; ++i) {
    const std::uint32_t pages = tree_.node(path_[i]).pages;
    for (std::uint32_t page = 0; page < pages; ++page) chain_.push_back(tree_.page_hash(path_[i], page));
  }
  return chain_;
}

void EnginePlacement::task_arrived(std::uint32_t task, Time now, ClusterControl&) {
  drain(64);
  note(engine_.open_workflow(at(now), workload_.task_tenant[task], &workflow_[task]));
}

void EnginePlacement::task_finished(std::uint32_t task, Time now, ClusterControl&) {
  drain(64);
  note(engine_.close_workflow(at(now), workflow_[task]));
}

WorkerId EnginePlacement::place(CallId call, Time now, ClusterControl& cluster) {
  for (WorkerId worker = 0; worker < workers_; ++worker) {
    const std::uint32_t running = cluster.running_pages(worker);
    drain(64);
    note(engine_.worker_load(at(now), worker, running));
  }
  const std::span<const BlockHash> chain = chain_of(call);
  drain(chain.size_bytes() + 64);
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

void EnginePlacement::call_finished(CallId call, WorkerId, StopReason stop, ToolClass tool, Time now, ClusterControl&) {
  drain(64);
  note(engine_.finish_call(at(now), handle_[call], stop, tool, workload_.output_tokens[call]));
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
