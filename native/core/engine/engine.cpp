#include "engine.hpp"

#include <algorithm>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/digest.hpp"

namespace saga {
namespace {

constexpr std::uint32_t kGenerationMask = (1u << 20) - 1;
constexpr std::size_t kMostDecisions = 4096;  // of the scheduler, at one time

std::uint64_t handle_of(std::uint32_t slot, std::uint32_t generation) {
  return slot | (std::uint64_t{generation & kGenerationMask} << 32);
}

void write_hashes(JournalWriter& journal, std::span<const BlockHash> hashes) {
  journal.put(static_cast<std::uint32_t>(hashes.size()));
  journal.put_bytes(hashes.data(), hashes.size_bytes());
}

EngineOptions complete(EngineOptions options) {
  if (options.scheduling.max_threads == 0) options.scheduling.max_threads = 2 * options.max_workflows;
  return options;
}

// Hints field by field: the struct has padding.
constexpr std::size_t kHintsSize = 1 + 1 + 8 + 4 + 4;

void write_hints(JournalWriter& journal, const CallHints& hints) {
  journal.put(static_cast<std::uint8_t>(hints.next_tool));
  journal.put(static_cast<std::uint8_t>(hints.final_step));
  journal.put(hints.gap);
  journal.put(hints.step);
  journal.put(hints.output_tokens);
}

bool nothing_told(const CallHints& hints) {
  return hints.next_tool == ToolClass::kNone && hints.final_step == CallHints::Final::kNotTold &&
         hints.gap == kNotDeclared && hints.step == kNone && hints.output_tokens == 0;
}

constexpr std::size_t kHashesFixed =
    4 + 1 + 8 + 4;  // worker, tier, parent, count: the largest fixed part of a block event

}  // namespace

Engine::Engine(const EngineOptions& options)
    : options_(complete(options)),
      mirror_(PrefixIndexOptions{options.max_workers, options.max_blocks}),
      random_(options.seed),
      journal_(static_cast<std::size_t>(options.journal_bytes)),
      removed_ids_(options.max_workers),
      workers_(options.max_workers),
      active_column_(options.max_workers),
      open_calls_column_(options.max_workers),
      blocks_in_use_column_(options.max_workers),
      matched_column_(options.max_workers),
      depth_(std::size_t{options.max_workers} * kTierCount),
      workflows_(options.max_workflows),
      next_chunk_(static_cast<std::size_t>((options.max_open_blocks + kChunkBlocks - 1) / kChunkBlocks)),
      scratch_chain_(options.max_chain_blocks),
      calls_(options_.max_calls +
             (options_.placement.kind == PlacementKind::kSaga ? options_.scheduling.max_threads : 0)),
      lost_calls_(options.max_calls) {
  const auto chunks = static_cast<std::uint32_t>(next_chunk_.size());
  chunks_ = HugeArray<BlockHash>(std::size_t{chunks} * kChunkBlocks);
  for (std::uint32_t chunk = 0; chunk < chunks; ++chunk) next_chunk_[chunk] = chunk + 1 < chunks ? chunk + 1 : kNone;
  free_chunk_ = chunks != 0 ? 0 : kNone;
  free_chunks_ = chunks;
  for (std::uint32_t slot = 0; slot < options.max_workflows; ++slot) {
    workflows_[slot].next_free = slot + 1 < options.max_workflows ? slot + 1 : kNone;
  }
  for (std::uint32_t slot = 0; slot < calls_.size(); ++slot) {
    calls_[slot].next = slot + 1 < calls_.size() ? slot + 1 : kNone;
  }
  if (options_.placement.kind == PlacementKind::kSaga) host_ = std::make_unique<SchedulerHost>(*this, options_);
  if (journal_.enabled()) write_options();
}

void Engine::write_options() {
  journal_.begin_header();
  journal_.put(options_.max_workers);
  journal_.put(options_.max_workflows);
  journal_.put(options_.max_calls);
  journal_.put(options_.max_blocks);
  journal_.put(options_.max_chain_blocks);
  journal_.put(options_.max_open_blocks);
  journal_.put(options_.block_tokens);
  journal_.put(options_.seed);
  journal_.put(static_cast<std::uint8_t>(options_.placement.kind));
  journal_.put(options_.placement.imbalance_calls);
  journal_.put(options_.placement.minimum_match_percent);
  if (options_.placement.kind == PlacementKind::kSaga) {
    const SchedulingOptions& scheduling = options_.scheduling;
    for (const std::uint32_t value :
         {scheduling.max_threads, scheduling.max_tenants, scheduling.max_graphs, scheduling.max_leases,
          scheduling.max_directives, scheduling.max_receipts, scheduling.directive_seconds, scheduling.without()}) {
      journal_.put(value);
    }
    journal_.put(scheduling.kv_bytes_per_token);
    journal_.put(scheduling.link_bytes_per_second);
    const StepCosts& costs = scheduling.costs;
    for (const double value :
         {costs.base, costs.per_call, costs.per_context_token, costs.per_prefill_token, costs.per_prefill_pair}) {
      journal_.put(value);
    }
  }
  journal_.end();
}

Status read_journal_options(std::span<const std::uint8_t> journal, EngineOptions* options) {
  std::span<const std::uint8_t> payload;
  JournalReader reader(journal);
  if (const Status status = reader.read_header(&payload); status != Status::kOk) return status;
  RecordReader values(payload);
  options->max_workers = values.get<std::uint32_t>();
  options->max_workflows = values.get<std::uint32_t>();
  options->max_calls = values.get<std::uint32_t>();
  options->max_blocks = values.get<std::uint64_t>();
  options->max_chain_blocks = values.get<std::uint32_t>();
  options->max_open_blocks = values.get<std::uint64_t>();
  options->block_tokens = values.get<std::uint32_t>();
  options->seed = values.get<std::uint64_t>();
  options->placement.kind = static_cast<PlacementKind>(values.get<std::uint8_t>());
  options->placement.imbalance_calls = values.get<std::uint32_t>();
  options->placement.minimum_match_percent = values.get<std::uint32_t>();
  if (options->placement.kind == PlacementKind::kSaga) {
    SchedulingOptions& scheduling = options->scheduling;
    for (std::uint32_t* value :
         {&scheduling.max_threads, &scheduling.max_tenants, &scheduling.max_graphs, &scheduling.max_leases,
          &scheduling.max_directives, &scheduling.max_receipts, &scheduling.directive_seconds}) {
      *value = values.get<std::uint32_t>();
    }
    scheduling.set_without(values.get<std::uint32_t>());
    scheduling.kv_bytes_per_token = values.get<std::uint64_t>();
    scheduling.link_bytes_per_second = values.get<std::uint64_t>();
    StepCosts& costs = scheduling.costs;
    for (double* value :
         {&costs.base, &costs.per_call, &costs.per_context_token, &costs.per_prefill_token, &costs.per_prefill_pair}) {
      *value = values.get<double>();
    }
  }
  options->journal_bytes = 0;
  return values.finished() ? Status::kOk : Status::kJournalCorrupt;
}

// What every event needs: time that does not run backwards, and room in the journal. An event that the empty journal could
// not take is kFull: draining would not help.
Status Engine::admit(Time now, std::size_t payload) const {
  if (now < now_) return Status::kTimeReversed;
  if (journal_.fits(payload)) return Status::kOk;
  return journal_.can_ever_fit(payload) ? Status::kJournalFull : Status::kFull;
}

std::uint32_t Engine::call_slot(CallHandle call) const {
  const std::uint32_t slot = any_call_slot(call);
  return slot == kNone || calls_[slot].state == CallState::kKept ? kNone : slot;
}

std::uint32_t Engine::any_call_slot(CallHandle call) const {
  const auto slot = static_cast<std::uint32_t>(call);
  if (slot >= calls_.size() || calls_[slot].state == CallState::kFree) return kNone;
  return handle_of_call(slot) == call ? slot : kNone;
}

CallHandle Engine::handle_of_call(std::uint32_t slot) const { return handle_of(slot, calls_[slot].generation); }

// The event belongs to a placement that the call has lost.
bool Engine::stale_placement(const Call& call, std::uint32_t placement) {
  if (placement == kNone || placement == (call.placement & 0xFFFFu)) return false;
  if (host_ != nullptr) host_->note_stale();
  return true;
}

std::uint32_t Engine::workflow_slot(WorkflowHandle workflow) const {
  const auto slot = static_cast<std::uint32_t>(workflow);
  if (slot >= options_.max_workflows || workflows_[slot].state == WorkflowState::kFree) return kNone;
  return handle_of(slot, workflows_[slot].generation) == workflow ? slot : kNone;
}

// Puts a call into the waiting queue before `next`, or at the end (kNone).
void Engine::enqueue_waiting(std::uint32_t slot, std::uint32_t next) {
  Call& call = calls_[slot];
  call.state = CallState::kWaiting;
  call.worker = kNone;
  call.previous = next == kNone ? waiting_last_ : calls_[next].previous;
  call.next = next;
  (call.previous == kNone ? waiting_first_ : calls_[call.previous].next) = slot;
  (next == kNone ? waiting_last_ : calls_[next].previous) = slot;
  ++waiting_calls_;
}

void Engine::dequeue_waiting(std::uint32_t slot) {
  Call& call = calls_[slot];
  (call.previous == kNone ? waiting_first_ : calls_[call.previous].next) = call.next;
  (call.next == kNone ? waiting_last_ : calls_[call.next].previous) = call.previous;
  call.previous = call.next = kNone;
  --waiting_calls_;
}

bool Engine::store_chain(Call& call, std::span<const BlockHash> chain) {
  const std::size_t needed = (chain.size() + kChunkBlocks - 1) / kChunkBlocks;
  if (needed > free_chunks_) return false;
  free_chunks_ -= static_cast<std::uint32_t>(needed);
  call.chain_blocks = static_cast<std::uint32_t>(chain.size());
  std::uint32_t* link = &call.first_chunk;
  for (std::size_t at = 0; at < chain.size(); at += kChunkBlocks) {
    const std::uint32_t chunk = free_chunk_;
    free_chunk_ = next_chunk_[chunk];
    *link = chunk;
    link = &next_chunk_[chunk];
    const std::size_t count = std::min<std::size_t>(kChunkBlocks, chain.size() - at);
    std::copy_n(chain.data() + at, count, &chunks_[std::size_t{chunk} * kChunkBlocks]);
  }
  *link = kNone;
  return true;
}

// Behind what is stored; not at all where there is no room.
void Engine::extend_chain(Call& call, std::span<const BlockHash> more) {
  const std::size_t total = call.chain_blocks + more.size();
  if (total > options_.max_chain_blocks) return;
  if (chunks_of(total) - chunks_of(call.chain_blocks) > free_chunks_) return;
  std::uint32_t* link = &call.first_chunk;
  std::size_t at = 0;  // blocks of the chunks before *link
  for (; at + kChunkBlocks <= call.chain_blocks; at += kChunkBlocks) link = &next_chunk_[*link];
  for (std::size_t done = 0; done < more.size(); at += kChunkBlocks) {
    const std::size_t used = call.chain_blocks + done - at;
    if (used == 0) {
      *link = free_chunk_;
      free_chunk_ = next_chunk_[*link];
      next_chunk_[*link] = kNone;
      --free_chunks_;
    }
    const std::size_t count = std::min(kChunkBlocks - used, more.size() - done);
    std::memcpy(&chunks_[std::size_t{*link} * kChunkBlocks + used], more.data() + done, count * sizeof(BlockHash));
    done += count;
    link = &next_chunk_[*link];
  }
  call.chain_blocks = static_cast<std::uint32_t>(total);
}

void Engine::release_chain(Call& call) {
  while (call.first_chunk != kNone) {
    const std::uint32_t chunk = call.first_chunk;
    call.first_chunk = next_chunk_[chunk];
    next_chunk_[chunk] = free_chunk_;
    free_chunk_ = chunk;
    ++free_chunks_;
  }
  call.chain_blocks = 0;
}

std::span<const BlockHash> Engine::load_chain(const Call& call) {
  std::size_t at = 0;
  for_each_chunk(call, [&](std::span<const BlockHash> hashes) {
    std::memcpy(scratch_chain_.data() + at, hashes.data(), hashes.size_bytes());
    at += hashes.size();
  });
  return {scratch_chain_.data(), call.chain_blocks};
}

void Engine::leave_worker(Call& call) {
  WorkerState& worker = workers_[call.worker];
  worker.open_calls -= 1;
  if (call.reports == worker.reports) worker.estimated_blocks -= blocks_of(call);
}

Status Engine::add_worker(Time now, std::uint32_t capacity_blocks, WorkerId* worker) {
  if (const Status status = admit(now, 4); status != Status::kOk) return status;
  if (active_workers_ == options_.max_workers) return Status::kFull;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWorkerAdded, now);
    journal_.put(capacity_blocks);
    journal_.end();
  }
  advance(now);
  if (worker_count_ < options_.max_workers) {
    *worker = worker_count_++;
  } else {
    *worker = removed_id(0);
    first_removed_ = (first_removed_ + 1) % options_.max_workers;
  }
  workers_[*worker] = WorkerState{};
  workers_[*worker].capacity_blocks = capacity_blocks;
  workers_[*worker].active = 1;
  ++active_workers_;
  ++added_workers_;
  count_properties(*worker, true);
  if (host_ != nullptr) host_->worker_added(*worker);
  return Status::kOk;
}

Status Engine::remove_worker(Time now, WorkerId worker) {
  if (const Status status = admit(now, 4); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWorkerRemoved, now);
    journal_.put(worker);
    journal_.end();
  }
  advance(now);
  clear_blocks(worker);
  replaced_calls_ += take_calls_back(worker, false).size();
  count_properties(worker, false);
  workers_[worker].active = 0;
  workers_[worker].reported_blocks = 0;
  removed_ids_[(first_removed_ + removed_ids()) % options_.max_workers] = worker;
  --active_workers_;
  if (host_ != nullptr) host_->worker_removed(worker);
  return Status::kOk;
}

// Counts an active worker by its properties, or does so no more.
void Engine::count_properties(WorkerId worker, bool present) {
  const WorkerState& state = workers_[worker];
  const auto count = [present](std::uint32_t& sum, bool belongs) {
    if (belongs) sum = present ? sum + 1 : sum - 1;
  };
  count(accepting_workers_, state.accepts != 0);
  count(distrusted_workers_, state.trust != kFullTrust);
  count(windowed_workers_, state.window_blocks != 0);
}

void Engine::clear_blocks(WorkerId worker) {
  mirror_.clear(worker);
  if (windows_ != nullptr) windows_->clear(worker);
}

// Calls that were sent to the worker, or only those among them that nobody was told of, wait again; in order of submission.
std::span<const std::uint32_t> Engine::take_calls_back(WorkerId worker, bool granted_only) {
  std::size_t lost = 0;
  for (std::uint32_t slot = 0; slot < calls_.size(); ++slot) {
    Call& call = calls_[slot];
    if (call.worker != worker || call.state == CallState::kFree || call.state == CallState::kKept) continue;
    if (granted_only && call.state != CallState::kGranted) continue;
    leave_worker(call);
    if (call.state == CallState::kGranted) {
      --granted_calls_;  // nobody was told
    } else {
      ++call.placement;
    }
    if (host_ != nullptr) host_->call_lost(slot);
    lost_calls_[lost++] = slot;
  }
  // A call that lost its worker goes before all that were submitted after it, so it does not wait twice: both sequences are in
  // order of submission, and are merged in one pass.
  const auto submitted_first = [this](std::uint32_t a, std::uint32_t b) {
    return calls_[a].sequence < calls_[b].sequence;
  };
  std::sort(lost_calls_.begin(), lost_calls_.begin() + static_cast<std::ptrdiff_t>(lost), submitted_first);
  std::uint32_t next = waiting_first_;
  for (const std::uint32_t slot : std::span(lost_calls_.data(), lost)) {
    while (next != kNone && submitted_first(next, slot)) next = calls_[next].next;
    enqueue_waiting(slot, next);
  }
  return {lost_calls_.data(), lost};
}

Status Engine::blocks_stored(Time now, WorkerId worker, Tier tier, BlockHash parent,
                             std::span<const BlockHash> hashes) {
  if (const Status status = admit(now, kHashesFixed + hashes.size_bytes()); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (!mirror_.store(worker, tier, hashes, parent)) return Status::kFull;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kBlocksStored, now);
    journal_.put(worker);
    journal_.put(static_cast<std::uint8_t>(tier));
    journal_.put(parent);
    write_hashes(journal_, hashes);
    journal_.end();
  }
  advance(now);
  host_blocks_seen_ |= tier == Tier::kHost;
  return Status::kOk;
}

Status Engine::blocks_removed(Time now, WorkerId worker, Tier tier, std::span<const BlockHash> hashes) {
  if (const Status status = admit(now, kHashesFixed + hashes.size_bytes()); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kBlocksRemoved, now);
    journal_.put(worker);
    journal_.put(static_cast<std::uint8_t>(tier));
    write_hashes(journal_, hashes);
    journal_.end();
  }
  advance(now);
  mirror_.remove(worker, tier, hashes);
  return Status::kOk;
}

Status Engine::blocks_cleared(Time now, WorkerId worker) {
  if (const Status status = admit(now, 4); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kBlocksCleared, now);
    journal_.put(worker);
    journal_.end();
  }
  advance(now);
  clear_blocks(worker);
  return Status::kOk;
}

Status Engine::worker_load(Time now, WorkerId worker, const WorkerLoad& load) {
  const bool told = load.waiting_calls != kNone || load.free_blocks != kNone;
  if (const Status status = admit(now, told ? 16 : 8); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(told ? RecordType::kWorkerLoadTold : RecordType::kWorkerLoad, now);
    journal_.put(worker);
    journal_.put(load.running_blocks);
    if (told) {
      journal_.put(load.waiting_calls);
      journal_.put(load.free_blocks);
    }
    journal_.end();
  }
  advance(now);
  workers_[worker].reports += 1;
  workers_[worker].reported_blocks = load.running_blocks;
  workers_[worker].reported_waiting = load.waiting_calls;
  workers_[worker].reported_free = load.free_blocks;
  workers_[worker].estimated_blocks = 0;
  return Status::kOk;
}

Status Engine::worker_trust(Time now, WorkerId worker, std::uint32_t per_mille) {
  if (const Status status = admit(now, 8); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (per_mille > kFullTrust) return Status::kInvalidArgument;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWorkerTrust, now);
    journal_.put(worker);
    journal_.put(per_mille);
    journal_.end();
  }
  advance(now);
  count_properties(worker, false);
  workers_[worker].trust = per_mille;
  count_properties(worker, true);
  return Status::kOk;
}

Status Engine::worker_accepts(Time now, WorkerId worker, bool accepts) {
  if (const Status status = admit(now, 5); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWorkerAccepts, now);
    journal_.put(worker);
    journal_.put(static_cast<std::uint8_t>(accepts));
    journal_.end();
  }
  advance(now);
  if (worker_accepting(worker) == accepts) return Status::kOk;
  count_properties(worker, false);
  workers_[worker].accepts = accepts;
  count_properties(worker, true);
  if (host_ == nullptr) return Status::kOk;
  if (accepts) {
    host_->worker_resumed(worker);
  } else {
    host_->worker_drained(worker, take_calls_back(worker, true));
  }
  return Status::kOk;
}

Status Engine::worker_window(Time now, WorkerId worker, std::uint32_t window_blocks) {
  if (const Status status = admit(now, 8); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWorkerWindow, now);
    journal_.put(worker);
    journal_.put(window_blocks);
    journal_.end();
  }
  advance(now);
  count_properties(worker, false);
  workers_[worker].window_blocks = window_blocks;
  count_properties(worker, true);
  return Status::kOk;
}

Status Engine::window_stored(Time now, WorkerId worker, std::span<const BlockHash> hashes) {
  if (const Status status = admit(now, 4 + 4 + hashes.size_bytes()); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (windows_ == nullptr) {
    windows_ = std::make_unique<Mirror>(PrefixIndexOptions{options_.max_workers, options_.max_blocks});
  }
  if (!windows_->store(worker, Tier::kGpu, hashes, 0)) return Status::kFull;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWindowStored, now);
    journal_.put(worker);
    write_hashes(journal_, hashes);
    journal_.end();
  }
  advance(now);
  return Status::kOk;
}

Status Engine::window_removed(Time now, WorkerId worker, std::span<const BlockHash> hashes) {
  if (const Status status = admit(now, 4 + 4 + hashes.size_bytes()); status != Status::kOk) return status;
  if (!worker_active(worker)) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWindowRemoved, now);
    journal_.put(worker);
    write_hashes(journal_, hashes);
    journal_.end();
  }
  advance(now);
  if (windows_ != nullptr) windows_->remove(worker, Tier::kGpu, hashes);
  return Status::kOk;
}

// Shortens matches to what the window groups make usable. Returns the longest in any tier.
std::uint32_t Engine::apply_windows(std::span<const BlockHash> chain, std::uint32_t* depth) const {
  std::uint32_t longest = 0;
  for (WorkerId worker = 0; worker < worker_count_; ++worker) {
    std::uint32_t* tiers = depth + std::size_t{worker} * kTierCount;
    const std::uint32_t window = workers_[worker].window_blocks;
    const std::uint32_t matched = tiers[0];
    if (window != 0 && matched != 0) {
      std::uint32_t usable = matched;
      std::uint32_t run = 0;  // blocks before `usable` that the window groups hold
      for (std::uint32_t at = matched; at-- > 0 && run < window;) {
        if (windows_ != nullptr && windows_->holds(worker, Tier::kGpu, chain[at])) {
          ++run;
        } else {
          usable = at;
          run = 0;
        }
      }
      // A slower tier that adds nothing must not seem to hold what could be loaded.
      for (std::uint32_t tier = 0; tier < kTierCount && tiers[tier] == matched; ++tier) tiers[tier] = usable;
    }
    longest = std::max(longest, tiers[kTierCount - 1]);
  }
  return longest;
}

// Who is gone holds nothing.
void Engine::find_longest_match(Decision* decision) const {
  decision->longest_match = 0;
  decision->longest_match_worker = kNone;
  for (WorkerId worker = 0; worker < worker_count_; ++worker) {
    const std::uint32_t matched = depth_[worker * kTierCount];
    if (matched > decision->longest_match) {
      decision->longest_match = matched;
      decision->longest_match_worker = worker;
    }
  }
}

Status Engine::declare_graph(Time now, const AgentGraph& graph, std::uint32_t* id) {
  if (host_ == nullptr) return Status::kWrongState;
  const std::size_t payload = 3 * 8 + 4 + 4 + graph.steps.size() * 25 + graph.edges.size() * 16;
  if (const Status status = admit(now, payload); status != Status::kOk) return status;
  const std::uint32_t known = host_->find_graph(graph);
  if (known != kNone) {
    *id = known;
    return Status::kOk;
  }
  if (host_->graphs_full()) return Status::kFull;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kGraphDeclared, now);
    journal_.put(graph.first_prompt_tokens);
    journal_.put(graph.expected_calls);
    journal_.put(graph.expected_seconds);
    journal_.put(static_cast<std::uint32_t>(graph.steps.size()));
    journal_.put(static_cast<std::uint32_t>(graph.edges.size()));
    for (const AgentStep& step : graph.steps) {
      journal_.put(static_cast<std::uint8_t>(step.tool));
      journal_.put(step.output_tokens);
      journal_.put(step.observation_tokens);
      journal_.put(step.gap_seconds);
    }
    for (const AgentEdge& edge : graph.edges) {
      journal_.put(edge.from);
      journal_.put(edge.to);
      journal_.put(edge.probability);
    }
    journal_.end();
  }
  advance(now);
  *id = host_->declare_graph(graph);
  return Status::kOk;
}

Status Engine::set_tenant(Time now, std::uint32_t tenant, double weight) {
  if (host_ == nullptr) return Status::kWrongState;
  if (const Status status = admit(now, 12); status != Status::kOk) return status;
  if (tenant >= host_->tenants()) return Status::kInvalidArgument;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kTenantSet, now);
    journal_.put(tenant);
    journal_.put(weight);
    journal_.end();
  }
  advance(now);
  host_->set_weight(tenant, weight);
  return Status::kOk;
}

Status Engine::directive_done(Time now, std::uint64_t id, Outcome outcome) {
  if (host_ == nullptr) return Status::kWrongState;
  if (const Status status = admit(now, 9); status != Status::kOk) return status;
  const Directive* directive = host_->directive(id);
  // It may be over because of what was due before this event; then nothing is left to tell.
  if (directive == nullptr || directive->until < now) return Status::kNotFound;
  if (!Outbox::is_lease(id) && outcome == Outcome::kRevoked) return Status::kInvalidArgument;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kDirectiveDone, now);
    journal_.put(id);
    journal_.put(static_cast<std::uint8_t>(outcome));
    journal_.end();
  }
  advance(now);
  // A timer may have ended a lease just before.
  if (host_->directive(id) != nullptr) host_->directive_done(id, outcome);
  return Status::kOk;
}

Status Engine::open_workflow(Time now, const WorkflowInfo& info, WorkflowHandle* workflow) {
  const bool told = info.graph != kNone || info.agent_kind != 0;
  if (const Status status = admit(now, told ? 12 : 4); status != Status::kOk) return status;
  if (host_ != nullptr &&
      (info.tenant >= host_->tenants() || (info.graph != kNone && !host_->graph_known(info.graph)))) {
    return Status::kInvalidArgument;
  }
  if (free_workflow_ == kNone) return Status::kFull;
  if (journal_.enabled()) {
    journal_.begin(told ? RecordType::kWorkflowOpenedTold : RecordType::kWorkflowOpened, now);
    journal_.put(info.tenant);
    if (told) {
      journal_.put(info.graph);
      journal_.put(info.agent_kind);
    }
    journal_.end();
  }
  advance(now, true);
  const std::uint32_t slot = free_workflow_;
  Workflow& opened = workflows_[slot];
  free_workflow_ = opened.next_free;
  opened.next_free = kNone;
  opened.since = now;
  opened.tenant = info.tenant;
  opened.graph = info.graph;
  opened.agent_kind = info.agent_kind;
  opened.open_calls = 0;
  opened.finished_calls = 0;
  opened.state = WorkflowState::kThinking;
  opened.tool = ToolClass::kNone;
  opened.last_stop = StopReason::kUnknown;
  ++open_workflows_;
  *workflow = handle_of(slot, opened.generation);
  if (host_ != nullptr) host_->workflow_opened(slot);
  return Status::kOk;
}

Status Engine::close_workflow(Time now, WorkflowHandle workflow) {
  if (const Status status = admit(now, 8); status != Status::kOk) return status;
  const std::uint32_t slot = workflow_slot(workflow);
  if (slot == kNone) return Status::kNotFound;
  Workflow& closed = workflows_[slot];
  if (closed.open_calls != 0) return Status::kWrongState;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kWorkflowClosed, now);
    journal_.put(workflow);
    journal_.end();
  }
  advance(now);
  if (host_ != nullptr) host_->workflow_closed(slot);
  closed.state = WorkflowState::kFree;
  closed.generation = (closed.generation + 1) & kGenerationMask;
  closed.next_free = free_workflow_;
  free_workflow_ = slot;
  --open_workflows_;
  return Status::kOk;
}

Status Engine::submit_call(Time now, WorkflowHandle workflow, const CallInfo& info, std::span<const BlockHash> chain,
                           CallHandle* call) {
  const bool told = info.agent != 0 || info.prompt_kind != kNone || !nothing_told(info.hints);
  const std::size_t payload = 8 + 4 + (told ? 4 + 4 + kHintsSize : 0) + 4 + chain.size_bytes();
  if (const Status status = admit(now, payload); status != Status::kOk) return status;
  const std::uint32_t workflow_at = workflow_slot(workflow);
  if (workflow_at == kNone) return Status::kNotFound;
  const std::uint32_t prompt_blocks = info.prompt_tokens / options_.block_tokens;
  if (info.prompt_tokens == 0 || prompt_blocks > options_.max_chain_blocks || chain.size() > prompt_blocks) {
    return Status::kInvalidArgument;
  }
  if (open_calls_ == options_.max_calls) return Status::kFull;
  if (host_ != nullptr) {
    if (!host_->thread_available(workflow_at, info.agent)) return Status::kFull;
    const std::uint32_t needed = chunks_of(chain.size());
    if (needed > free_chunks_ + host_->kept_chunks()) return Status::kFull;
    while (needed > free_chunks_) host_->release_kept_chain();
  }
  if (!store_chain(calls_[free_call_], chain)) return Status::kFull;
  if (host_ != nullptr) mirror_.prefetch(chain);
  if (journal_.enabled()) {
    journal_.begin(told ? RecordType::kCallSubmittedTold : RecordType::kCallSubmitted, now);
    journal_.put(workflow);
    journal_.put(info.prompt_tokens);
    if (told) {
      journal_.put(info.agent);
      journal_.put(info.prompt_kind);
      write_hints(journal_, info.hints);
    }
    write_hashes(journal_, chain);
    journal_.end();
  }
  const std::uint32_t slot = free_call_;
  Call& submitted = calls_[slot];
  free_call_ = submitted.next;
  advance(now, true);
  submitted.submitted = now;
  submitted.sequence = submitted_calls_++;
  submitted.workflow = workflow_at;
  submitted.prompt_tokens = info.prompt_tokens;
  submitted.placement = 0;
  enqueue_waiting(slot, kNone);
  workflows_[workflow_at].open_calls += 1;
  ++open_calls_;
  *call = handle_of_call(slot);
  if (host_ != nullptr) host_->call_submitted(slot, info.agent, info.prompt_kind, info.hints, chain);
  return Status::kOk;
}

Status Engine::first_token(Time now, CallHandle call, std::uint32_t placement) {
  const bool told = placement != kNone;
  if (const Status status = admit(now, told ? 12 : 8); status != Status::kOk) return status;
  const std::uint32_t slot = call_slot(call);
  if (slot == kNone) return Status::kNotFound;
  if (calls_[slot].state != CallState::kPlaced || stale_placement(calls_[slot], placement)) return Status::kWrongState;
  if (journal_.enabled()) {
    journal_.begin(told ? RecordType::kFirstTokenTold : RecordType::kFirstToken, now);
    journal_.put(call);
    if (told) journal_.put(placement);
    journal_.end();
  }
  advance(now);
  calls_[slot].state = CallState::kRunning;
  if (host_ != nullptr) host_->first_token(slot, calls_[slot].worker);
  return Status::kOk;
}

Status Engine::finish_call(Time now, CallHandle call, const AnswerInfo& info, std::span<const BlockHash> chain) {
  const bool told = info.placement != kNone || !nothing_told(info.hints) || !chain.empty();
  const std::size_t payload = 8 + 1 + 1 + 4 + (told ? 4 + kHintsSize + 4 + chain.size_bytes() : 0);
  if (const Status status = admit(now, payload); status != Status::kOk) return status;
  const std::uint32_t slot = call_slot(call);
  if (slot == kNone) return Status::kNotFound;
  Call& finished = calls_[slot];
  if ((finished.state != CallState::kPlaced && finished.state != CallState::kRunning) ||
      stale_placement(finished, info.placement)) {
    return Status::kWrongState;
  }
  const std::uint64_t tokens = std::uint64_t{finished.prompt_tokens} + info.output_tokens;
  if (chain.size() > tokens / options_.block_tokens - finished.prompt_tokens / options_.block_tokens) {
    return Status::kInvalidArgument;
  }
  if (journal_.enabled()) {
    journal_.begin(told ? RecordType::kCallFinishedTold : RecordType::kCallFinished, now);
    journal_.put(call);
    journal_.put(static_cast<std::uint8_t>(info.stop));
    journal_.put(static_cast<std::uint8_t>(info.tool));
    journal_.put(info.output_tokens);
    if (told) {
      journal_.put(info.placement);
      write_hints(journal_, info.hints);
      write_hashes(journal_, chain);
    }
    journal_.end();
  }
  advance(now);
  leave_worker(finished);
  const WorkerId worker = finished.worker;
  Workflow& workflow = workflows_[finished.workflow];
  workflow.finished_calls += 1;
  workflow.last_stop = info.stop;
  workflow.tool = info.tool;
  ++finished_calls_;
  end_call(slot);
  if (host_ == nullptr) {
    free_slot(slot);
  } else {
    host_->call_finished(slot, worker, info.stop, info.tool, info.output_tokens, info.hints, chain);
  }
  return Status::kOk;
}

Status Engine::cancel_call(Time now, CallHandle call) {
  if (const Status status = admit(now, 8); status != Status::kOk) return status;
  const std::uint32_t slot = call_slot(call);
  if (slot == kNone) return Status::kNotFound;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kCallCancelled, now);
    journal_.put(call);
    journal_.end();
  }
  advance(now);
  if (calls_[slot].state == CallState::kWaiting) {
    dequeue_waiting(slot);
  } else {
    if (calls_[slot].state == CallState::kGranted) --granted_calls_;
    leave_worker(calls_[slot]);
  }
  ++cancelled_calls_;
  end_call(slot);
  if (host_ != nullptr) host_->call_cancelled(slot);
  free_slot(slot);
  return Status::kOk;
}

// It is over; the slot is not free yet.
void Engine::end_call(std::uint32_t slot) {
  Call& call = calls_[slot];
  workflows_[call.workflow].open_calls -= 1;
  call.state = CallState::kKept;
  call.worker = kNone;
  --open_calls_;
}

// The call's id becomes invalid and its slot the next to be used.
void Engine::free_slot(std::uint32_t slot) {
  Call& call = calls_[slot];
  call.state = CallState::kFree;
  call.generation = (call.generation + 1) & kGenerationMask;
  release_chain(call);
  call.previous = kNone;
  call.next = free_call_;
  free_call_ = slot;
}

// The scheduler sends a waiting call; the decision receives what is known of the worker before.
void Engine::grant(std::uint32_t slot, WorkerId id, Decision& decision) {
  Call& call = calls_[slot];
  SAGA_ASSERT(call.state == CallState::kWaiting && worker_accepting(id));
  WorkerState& worker = workers_[id];
  decision.worker = id;
  decision.call = handle_of_call(slot);
  decision.placement = static_cast<std::uint16_t>(call.placement);
  decision.prompt_blocks = call.prompt_tokens / options_.block_tokens;
  decision.open_calls = worker.open_calls;
  decision.blocks_in_use = worker.blocks_in_use();
  decision.active_workers = static_cast<std::uint16_t>(accepting_workers_);
  dequeue_waiting(slot);
  call.state = CallState::kGranted;
  ++granted_calls_;
  call.worker = id;
  worker.open_calls += 1;
  worker.estimated_blocks += blocks_of(call);
  call.reports = worker.reports;
}

Status Engine::tool_started(Time now, WorkflowHandle workflow, ToolClass tool) {
  if (const Status status = admit(now, 8 + 1); status != Status::kOk) return status;
  const std::uint32_t slot = workflow_slot(workflow);
  if (slot == kNone) return Status::kNotFound;
  if (workflows_[slot].state != WorkflowState::kThinking) return Status::kWrongState;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kToolStarted, now);
    journal_.put(workflow);
    journal_.put(static_cast<std::uint8_t>(tool));
    journal_.end();
  }
  advance(now);
  workflows_[slot].state = WorkflowState::kTool;
  workflows_[slot].tool = tool;
  workflows_[slot].since = now;
  return Status::kOk;
}

Status Engine::tool_finished(Time now, WorkflowHandle workflow) {
  if (const Status status = admit(now, 8); status != Status::kOk) return status;
  const std::uint32_t slot = workflow_slot(workflow);
  if (slot == kNone) return Status::kNotFound;
  if (workflows_[slot].state != WorkflowState::kTool) return Status::kWrongState;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kToolFinished, now);
    journal_.put(workflow);
    journal_.end();
  }
  advance(now);
  workflows_[slot].state = WorkflowState::kThinking;
  workflows_[slot].since = now;
  return Status::kOk;
}

Status Engine::tick(Time now) {
  if (const Status status = admit(now, 0); status != Status::kOk) return status;
  if (journal_.enabled()) {
    journal_.begin(RecordType::kTick, now);
    journal_.end();
  }
  advance(now, true);
  return Status::kOk;
}

Status Engine::decide_by_scheduler(Time now, std::span<Decision> decisions, std::size_t* count) {
  const std::size_t room = decisions.size();
  const std::size_t most = now >= now_ && host_->due_before(now) ? room : std::min<std::size_t>(room, host_->pending());
  if (const Status status = admit(now, 4 + most * sizeof(Decision)); status != Status::kOk) return status;
  advance(now);
  while (*count < room && host_->pending() > 0) {
    const Decision decision = host_->pop();
    decisions[(*count)++] = decision;
    if (decision.type != static_cast<std::uint16_t>(DecisionType::kPlace)) continue;
    calls_[call_slot(decision.call)].state = CallState::kPlaced;
    --granted_calls_;
    ++placed_calls_;
    prompt_blocks_ += decision.prompt_blocks;
    matched_blocks_ += decision.matched_blocks[0];
  }
  if (journal_.enabled()) {
    journal_.begin(RecordType::kDecided, now);
    journal_.put(static_cast<std::uint32_t>(room));
    journal_.put_bytes(decisions.data(), *count * sizeof(Decision));
    journal_.end();
  }
  return Status::kOk;
}

Status Engine::decide(Time now, std::span<Decision> decisions, std::size_t* count) {
  *count = 0;
  // One record holds all decisions of one call of decide, so the journal's capacity bounds them as `decisions` does. The bound
  // depends on the options alone, not on how much was drained, and is recorded.
  std::size_t room = std::min<std::size_t>(decisions.size(), host_ != nullptr ? kMostDecisions : options_.max_calls);
  if (journal_.enabled()) room = std::min(room, (journal_.largest_payload() - 4) / sizeof(Decision));
  if (host_ != nullptr) return decide_by_scheduler(now, decisions.first(room), count);
  const std::size_t most = accepting_workers_ == 0 ? 0 : std::min<std::size_t>(room, waiting_calls_);
  if (const Status status = admit(now, 4 + most * sizeof(Decision)); status != Status::kOk) return status;
  advance(now);
  const std::span<const std::uint8_t> active(active_column_.data(), worker_count_);
  for (WorkerId worker = 0; worker < worker_count_; ++worker) {
    const WorkerState& state = workers_[worker];
    active_column_[worker] = worker_accepting(worker);
    open_calls_column_[worker] = state.open_calls;
    blocks_in_use_column_[worker] = state.blocks_in_use();
  }
  while (*count < most) {
    const std::uint32_t slot = waiting_first_;
    Call& call = calls_[slot];
    match(load_chain(call), depth_.data());
    Decision decision;
    find_longest_match(&decision);
    for (WorkerId worker = 0; worker < worker_count_; ++worker) matched_column_[worker] = depth_[worker * kTierCount];
    for (WorkerId worker = 0; worker < worker_count_ && distrusted_workers_ != 0; ++worker) {
      matched_column_[worker] = believed(matched_column_[worker], workers_[worker].trust);
    }
    const std::uint32_t prompt_blocks = call.prompt_tokens / options_.block_tokens;
    const Placement placement =
        place(options_.placement, {active, matched_column_, open_calls_column_, blocks_in_use_column_, prompt_blocks},
              round_robin_next_, random_);
    SAGA_ASSERT(placement.worker < worker_count_);
    WorkerState& worker = workers_[placement.worker];
    decision.type = static_cast<std::uint16_t>(DecisionType::kPlace);
    decision.placement = static_cast<std::uint16_t>(call.placement);
    decision.worker = placement.worker;
    decision.call = handle_of(slot, call.generation);
    decision.reason = static_cast<std::uint32_t>(placement.reason);
    decision.prompt_blocks = prompt_blocks;
    for (std::uint32_t tier = 0; tier < kTierCount; ++tier) {
      decision.matched_blocks[tier] = depth_[placement.worker * kTierCount + tier];
    }
    decision.open_calls = worker.open_calls;
    decision.blocks_in_use = blocks_in_use_column_[placement.worker];
    decision.active_workers = static_cast<std::uint16_t>(accepting_workers_);
    decision.decided_at = now;
    decisions[(*count)++] = decision;

    dequeue_waiting(slot);
    call.state = CallState::kPlaced;
    call.worker = placement.worker;
    worker.open_calls += 1;
    worker.estimated_blocks += blocks_of(call);
    call.reports = worker.reports;
    open_calls_column_[placement.worker] = worker.open_calls;
    blocks_in_use_column_[placement.worker] = worker.blocks_in_use();
    ++placed_calls_;
    prompt_blocks_ += prompt_blocks;
    matched_blocks_ += decision.matched_blocks[0];
  }
  if (journal_.enabled()) {
    journal_.begin(RecordType::kDecided, now);
    journal_.put(static_cast<std::uint32_t>(room));
    journal_.put_bytes(decisions.data(), *count * sizeof(Decision));
    journal_.end();
  }
  return Status::kOk;
}

bool Engine::worker_state(WorkerId worker, WorkerState* state) const {
  if (worker >= worker_count_) return false;
  *state = workers_[worker];
  return true;
}

EngineStats Engine::stats() const {
  EngineStats stats;
  stats.workers = active_workers_;
  stats.workflows = open_workflows_;
  stats.open_calls = open_calls_;
  stats.waiting_calls = waiting_calls_ + granted_calls_;
  stats.placed_calls = placed_calls_;
  stats.finished_calls = finished_calls_;
  stats.cancelled_calls = cancelled_calls_;
  stats.replaced_calls = replaced_calls_;
  stats.prompt_blocks = prompt_blocks_;
  stats.matched_blocks = matched_blocks_;
  stats.holder_blocks = mirror_.holder_blocks();
  stats.journal_bytes = journal_.total_bytes();
  return stats;
}

bool Engine::verify() const {
  std::vector<WorkerState> expected(worker_count_);
  std::vector<std::uint32_t> calls_of_workflow(options_.max_workflows);
  std::uint32_t open = 0;
  std::uint32_t waiting = 0;
  std::uint32_t granted = 0;
  std::uint32_t kept = 0;
  std::size_t used_chunks = 0;
  std::vector<bool> seen_chunk(next_chunk_.size());
  for (const Call& call : calls_) {
    if (call.state == CallState::kFree) continue;
    ++open;
    std::size_t chunks = 0;
    for (std::uint32_t chunk = call.first_chunk; chunk != kNone; chunk = next_chunk_[chunk], ++chunks) {
      if (chunk >= seen_chunk.size() || seen_chunk[chunk]) return false;
      seen_chunk[chunk] = true;
    }
    if (chunks != (call.chain_blocks + kChunkBlocks - 1) / kChunkBlocks) return false;
    used_chunks += chunks;
    if (call.workflow >= options_.max_workflows) return false;
    if (call.state == CallState::kKept) {
      if (host_ == nullptr || call.worker != kNone) return false;
      ++kept;
      --open;
      continue;
    }
    ++calls_of_workflow[call.workflow];
    if (call.state == CallState::kGranted) ++granted;
    if (call.state == CallState::kWaiting) {
      ++waiting;
      if (call.worker != kNone) return false;
      continue;
    }
    if (!worker_active(call.worker)) return false;
    expected[call.worker].open_calls += 1;
    if (call.reports > workers_[call.worker].reports) return false;
    if (call.reports == workers_[call.worker].reports) expected[call.worker].estimated_blocks += blocks_of(call);
  }
  if (granted != granted_calls_ || (granted > 0 && host_ == nullptr)) return false;
  if (open != open_calls_ || waiting != waiting_calls_ || used_chunks + free_chunks_ != next_chunk_.size())
    return false;
  std::size_t free_chunks = 0;
  for (std::uint32_t chunk = free_chunk_; chunk != kNone; chunk = next_chunk_[chunk], ++free_chunks) {
    if (chunk >= seen_chunk.size() || seen_chunk[chunk]) return false;
    seen_chunk[chunk] = true;
  }
  if (free_chunks != free_chunks_) return false;
  std::vector<bool> waits_for_reuse(worker_count_);
  if (active_workers_ > worker_count_) return false;
  for (std::uint32_t place = 0; place < removed_ids(); ++place) {
    const WorkerId id = removed_id(place);
    if (id >= worker_count_ || waits_for_reuse[id] || workers_[id].active != 0) return false;
    waits_for_reuse[id] = true;
  }
  std::uint32_t active = 0, accepting = 0, distrusted = 0, windowed = 0;
  for (WorkerId worker = 0; worker < worker_count_; ++worker) {
    const WorkerState& state = workers_[worker];
    active += state.active;
    accepting += worker_accepting(worker);
    distrusted += state.active != 0 && state.trust != kFullTrust;
    windowed += state.active != 0 && state.window_blocks != 0;
    if (state.trust > kFullTrust || (state.active == 0 && window_held(worker) != 0)) return false;
    if (workers_[worker].open_calls != expected[worker].open_calls) return false;
    if (workers_[worker].estimated_blocks != expected[worker].estimated_blocks) return false;
  }
  if (active != active_workers_ || accepting != accepting_workers_ || distrusted != distrusted_workers_ ||
      windowed != windowed_workers_) {
    return false;
  }
  std::uint32_t queued = 0;
  std::uint32_t previous = kNone;
  for (std::uint32_t slot = waiting_first_; slot != kNone; slot = calls_[slot].next) {
    if (calls_[slot].state != CallState::kWaiting || calls_[slot].previous != previous) return false;
    if (previous != kNone && calls_[previous].sequence >= calls_[slot].sequence) return false;
    previous = slot;
    if (++queued > waiting_calls_) return false;
  }
  if (queued != waiting_calls_ || previous != waiting_last_) return false;
  std::uint32_t free_calls = 0;
  for (std::uint32_t slot = free_call_; slot != kNone; slot = calls_[slot].next) {
    if (calls_[slot].state != CallState::kFree || ++free_calls > calls_.size()) return false;
  }
  if (free_calls + open_calls_ + kept != calls_.size()) return false;
  std::uint32_t free_workflows = 0;
  for (std::uint32_t slot = free_workflow_; slot != kNone; slot = workflows_[slot].next_free) {
    if (workflows_[slot].state != WorkflowState::kFree || ++free_workflows > options_.max_workflows) return false;
  }
  if (free_workflows + open_workflows_ != options_.max_workflows) return false;
  for (std::uint32_t slot = 0; slot < options_.max_workflows; ++slot) {
    const std::uint32_t calls = calls_of_workflow[slot];
    if (workflows_[slot].state == WorkflowState::kFree ? calls != 0 : calls != workflows_[slot].open_calls)
      return false;
  }
  return mirror_.verify() && (windows_ == nullptr || windows_->verify()) && (host_ == nullptr || host_->verify());
}

std::uint64_t Engine::digest() const {
  Digest digest;
  digest.add(now_);
  digest.add(worker_count_);
  digest.add(round_robin_next_);
  for (int word = 0; word < 4; ++word) digest.add(random_.state()[word]);
  for (WorkerId worker = 0; worker < worker_count_; ++worker) {
    const WorkerState& state = workers_[worker];
    digest.add(state.capacity_blocks);
    digest.add(state.open_calls);
    digest.add(state.estimated_blocks);
    digest.add(state.reports);
    digest.add(state.reported_blocks | (std::uint64_t{state.active} << 32));
    digest.add(state.reported_waiting | (std::uint64_t{state.reported_free} << 32));
    digest.add(state.trust | (std::uint64_t{state.window_blocks} << 32));
    digest.add(state.accepts);
  }
  for (const Workflow& workflow : workflows_) {
    digest.add(workflow.generation | (static_cast<std::uint64_t>(workflow.state) << 32));
    if (workflow.state == WorkflowState::kFree) continue;
    digest.add(workflow.since);
    digest.add(workflow.tenant | (std::uint64_t{workflow.open_calls} << 32));
    digest.add(workflow.graph | (std::uint64_t{workflow.agent_kind} << 32));
    digest.add(workflow.finished_calls | (static_cast<std::uint64_t>(workflow.tool) << 32) |
               (static_cast<std::uint64_t>(workflow.last_stop) << 40));
  }
  for (const Call& call : calls_) {
    digest.add(call.generation | (static_cast<std::uint64_t>(call.state) << 32));
    if (call.state == CallState::kFree) continue;
    digest.add(call.submitted);
    digest.add(call.sequence);
    digest.add(call.workflow | (std::uint64_t{call.worker} << 32));
    digest.add(call.prompt_tokens | (std::uint64_t{call.next} << 32));
    digest.add(call.reports);
    digest.add(call.chain_blocks | (std::uint64_t{call.placement} << 32));
    for_each_chunk(call, [&](std::span<const BlockHash> hashes) {
      for (const BlockHash hash : hashes) digest.add(hash);
    });
  }
  digest.add(added_workers_);
  // The order in which slots and ids will be given out is state as well.
  for (std::uint32_t place = 0; place < removed_ids(); ++place) digest.add(removed_id(place));
  digest.add(free_call_);
  digest.add(free_workflow_);
  for (std::uint32_t slot = free_call_; slot != kNone; slot = calls_[slot].next) digest.add(slot);
  for (std::uint32_t slot = free_workflow_; slot != kNone; slot = workflows_[slot].next_free) digest.add(slot);
  digest.add(submitted_calls_);
  digest.add(placed_calls_);
  digest.add(finished_calls_);
  digest.add(cancelled_calls_);
  digest.add(replaced_calls_);
  digest.add(prompt_blocks_);
  digest.add(matched_blocks_);
  digest.add(mirror_.digest());
  digest.add(windows_ == nullptr || windows_->holder_blocks() == 0 ? 0 : windows_->digest());
  if (host_ != nullptr) {
    digest.add(granted_calls_ | (std::uint64_t{host_blocks_seen_} << 32));
    host_->add_to(digest);
  }
  return digest.value();
}

namespace {

bool stop_valid(std::uint8_t stop) { return stop <= static_cast<std::uint8_t>(StopReason::kEndTurn); }
bool tool_valid(std::uint8_t tool) { return tool <= static_cast<std::uint8_t>(ToolClass::kDatabaseQuery); }

// False: not hints.
bool read_hints(RecordReader& values, CallHints* hints) {
  const auto tool = values.get<std::uint8_t>();
  const auto final_step = values.get<std::uint8_t>();
  hints->gap = values.get<Time>();
  hints->step = values.get<std::uint32_t>();
  hints->output_tokens = values.get<std::uint32_t>();
  if (!tool_valid(tool) || final_step > static_cast<std::uint8_t>(CallHints::Final::kYes)) return false;
  hints->next_tool = static_cast<ToolClass>(tool);
  hints->final_step = static_cast<CallHints::Final>(final_step);
  return true;
}

// False: not a graph.
bool read_graph(RecordReader& values, AgentGraph* graph) {
  graph->first_prompt_tokens = values.get<double>();
  graph->expected_calls = values.get<double>();
  graph->expected_seconds = values.get<double>();
  const auto steps = values.get<std::uint32_t>();
  const auto edges = values.get<std::uint32_t>();
  if (steps == 0 || values.rest().size() != std::uint64_t{steps} * 25 + std::uint64_t{edges} * 16) return false;
  for (std::uint32_t i = 0; i < steps; ++i) {
    AgentStep step;
    const auto tool = values.get<std::uint8_t>();
    if (!tool_valid(tool)) return false;
    step.tool = static_cast<ToolClass>(tool);
    step.output_tokens = values.get<double>();
    step.observation_tokens = values.get<double>();
    step.gap_seconds = values.get<double>();
    graph->steps.push_back(step);
  }
  for (std::uint32_t i = 0; i < edges; ++i) {
    AgentEdge edge;
    edge.from = values.get<std::uint32_t>();
    edge.to = values.get<std::uint32_t>();
    edge.probability = values.get<double>();
    graph->edges.push_back(edge);
  }
  return values.finished() && graph->verify();
}

// Applies one record. kJournalCorrupt where the payload does not fit its type; the status of the event where it is refused.
Status apply_record(const Record& record, Engine& engine, std::vector<BlockHash>& hashes,
                    std::vector<Decision>& decisions, ReplayResult& result) {
  RecordReader values(record.payload);
  const Time now = record.now;
  switch (record.type) {
    case RecordType::kWorkerAdded: {
      const auto capacity = values.get<std::uint32_t>();
      WorkerId worker = kNone;
      return values.finished() ? engine.add_worker(now, capacity, &worker) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkerRemoved: {
      const auto worker = values.get<WorkerId>();
      return values.finished() ? engine.remove_worker(now, worker) : Status::kJournalCorrupt;
    }
    case RecordType::kBlocksStored: {
      const auto worker = values.get<WorkerId>();
      const auto tier = values.get<std::uint8_t>();
      const auto parent = values.get<BlockHash>();
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      if (!values.finished() || tier >= kTierCount) return Status::kJournalCorrupt;
      return engine.blocks_stored(now, worker, static_cast<Tier>(tier), parent, hashes);
    }
    case RecordType::kBlocksRemoved: {
      const auto worker = values.get<WorkerId>();
      const auto tier = values.get<std::uint8_t>();
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      if (!values.finished() || tier >= kTierCount) return Status::kJournalCorrupt;
      return engine.blocks_removed(now, worker, static_cast<Tier>(tier), hashes);
    }
    case RecordType::kBlocksCleared: {
      const auto worker = values.get<WorkerId>();
      return values.finished() ? engine.blocks_cleared(now, worker) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkerLoad: {
      const auto worker = values.get<WorkerId>();
      const auto blocks = values.get<std::uint32_t>();
      return values.finished() ? engine.worker_load(now, worker, blocks) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkflowOpened: {
      const auto tenant = values.get<std::uint32_t>();
      WorkflowHandle workflow = 0;
      return values.finished() ? engine.open_workflow(now, tenant, &workflow) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkflowClosed: {
      const auto workflow = values.get<WorkflowHandle>();
      return values.finished() ? engine.close_workflow(now, workflow) : Status::kJournalCorrupt;
    }
    case RecordType::kCallSubmitted: {
      const auto workflow = values.get<WorkflowHandle>();
      const auto prompt_tokens = values.get<std::uint32_t>();
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      CallHandle call = 0;
      return values.finished() ? engine.submit_call(now, workflow, prompt_tokens, hashes, &call)
                               : Status::kJournalCorrupt;
    }
    case RecordType::kFirstToken: {
      const auto call = values.get<CallHandle>();
      return values.finished() ? engine.first_token(now, call) : Status::kJournalCorrupt;
    }
    case RecordType::kCallFinished: {
      const auto call = values.get<CallHandle>();
      const auto stop = values.get<std::uint8_t>();
      const auto tool = values.get<std::uint8_t>();
      const auto output_tokens = values.get<std::uint32_t>();
      if (!values.finished() || !stop_valid(stop) || !tool_valid(tool)) return Status::kJournalCorrupt;
      return engine.finish_call(now, call, static_cast<StopReason>(stop), static_cast<ToolClass>(tool), output_tokens);
    }
    case RecordType::kCallCancelled: {
      const auto call = values.get<CallHandle>();
      return values.finished() ? engine.cancel_call(now, call) : Status::kJournalCorrupt;
    }
    case RecordType::kToolStarted: {
      const auto workflow = values.get<WorkflowHandle>();
      const auto tool = values.get<std::uint8_t>();
      if (!values.finished() || !tool_valid(tool)) return Status::kJournalCorrupt;
      return engine.tool_started(now, workflow, static_cast<ToolClass>(tool));
    }
    case RecordType::kToolFinished: {
      const auto workflow = values.get<WorkflowHandle>();
      return values.finished() ? engine.tool_finished(now, workflow) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkerLoadTold: {
      const auto worker = values.get<WorkerId>();
      WorkerLoad load;
      load.running_blocks = values.get<std::uint32_t>();
      load.waiting_calls = values.get<std::uint32_t>();
      load.free_blocks = values.get<std::uint32_t>();
      return values.finished() ? engine.worker_load(now, worker, load) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkflowOpenedTold: {
      WorkflowInfo info;
      info.tenant = values.get<std::uint32_t>();
      info.graph = values.get<std::uint32_t>();
      info.agent_kind = values.get<std::uint32_t>();
      WorkflowHandle workflow = 0;
      return values.finished() ? engine.open_workflow(now, info, &workflow) : Status::kJournalCorrupt;
    }
    case RecordType::kCallSubmittedTold: {
      const auto workflow = values.get<WorkflowHandle>();
      CallInfo info;
      info.prompt_tokens = values.get<std::uint32_t>();
      info.agent = values.get<std::uint32_t>();
      info.prompt_kind = values.get<std::uint32_t>();
      const bool hints_valid = read_hints(values, &info.hints);
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      const bool kind_valid =
          info.prompt_kind == kNone || info.prompt_kind <= static_cast<std::uint32_t>(PromptKind::kUser);
      if (!values.finished() || !hints_valid || !kind_valid) return Status::kJournalCorrupt;
      CallHandle call = 0;
      return engine.submit_call(now, workflow, info, hashes, &call);
    }
    case RecordType::kFirstTokenTold: {
      const auto call = values.get<CallHandle>();
      const auto placement = values.get<std::uint32_t>();
      return values.finished() ? engine.first_token(now, call, placement) : Status::kJournalCorrupt;
    }
    case RecordType::kCallFinishedTold: {
      const auto call = values.get<CallHandle>();
      const auto stop = values.get<std::uint8_t>();
      const auto tool = values.get<std::uint8_t>();
      AnswerInfo info;
      info.output_tokens = values.get<std::uint32_t>();
      info.placement = values.get<std::uint32_t>();
      const bool hints_valid = read_hints(values, &info.hints);
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      if (!values.finished() || !hints_valid || !stop_valid(stop) || !tool_valid(tool)) return Status::kJournalCorrupt;
      info.stop = static_cast<StopReason>(stop);
      info.tool = static_cast<ToolClass>(tool);
      return engine.finish_call(now, call, info, hashes);
    }
    case RecordType::kGraphDeclared: {
      AgentGraph graph;
      std::uint32_t id = 0;
      return read_graph(values, &graph) ? engine.declare_graph(now, graph, &id) : Status::kJournalCorrupt;
    }
    case RecordType::kTenantSet: {
      const auto tenant = values.get<std::uint32_t>();
      const auto weight = values.get<double>();
      if (!values.finished() || !(weight >= kLeastWeight && weight <= kMostWeight)) return Status::kJournalCorrupt;
      return engine.set_tenant(now, tenant, weight);
    }
    case RecordType::kDirectiveDone: {
      const auto id = values.get<std::uint64_t>();
      const auto outcome = values.get<std::uint8_t>();
      if (!values.finished() || outcome > static_cast<std::uint8_t>(Outcome::kRevoked)) return Status::kJournalCorrupt;
      return engine.directive_done(now, id, static_cast<Outcome>(outcome));
    }
    case RecordType::kWorkerTrust: {
      const auto worker = values.get<WorkerId>();
      const auto per_mille = values.get<std::uint32_t>();
      return values.finished() ? engine.worker_trust(now, worker, per_mille) : Status::kJournalCorrupt;
    }
    case RecordType::kWorkerAccepts: {
      const auto worker = values.get<WorkerId>();
      const auto accepts = values.get<std::uint8_t>();
      if (!values.finished() || accepts > 1) return Status::kJournalCorrupt;
      return engine.worker_accepts(now, worker, accepts != 0);
    }
    case RecordType::kWorkerWindow: {
      const auto worker = values.get<WorkerId>();
      const auto blocks = values.get<std::uint32_t>();
      return values.finished() ? engine.worker_window(now, worker, blocks) : Status::kJournalCorrupt;
    }
    case RecordType::kWindowStored: {
      const auto worker = values.get<WorkerId>();
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      return values.finished() ? engine.window_stored(now, worker, hashes) : Status::kJournalCorrupt;
    }
    case RecordType::kWindowRemoved: {
      const auto worker = values.get<WorkerId>();
      const auto count = values.get<std::uint32_t>();
      values.get_hashes(count, hashes);
      return values.finished() ? engine.window_removed(now, worker, hashes) : Status::kJournalCorrupt;
    }
    case RecordType::kTick:
      return values.finished() ? engine.tick(now) : Status::kJournalCorrupt;
    case RecordType::kDecided: {
      const auto room = values.get<std::uint32_t>();
      const std::span<const std::uint8_t> recorded = values.rest();
      if (!values.ok() || recorded.size() % sizeof(Decision) != 0) return Status::kJournalCorrupt;
      // Never more room than calls wait, whatever the journal says; a scheduler may have more to say by then.
      decisions.resize(engine.scheduling() != nullptr ? std::min<std::size_t>(room, kMostDecisions)
                                                      : std::min(room, engine.stats().waiting_calls));
      std::size_t count = 0;
      const Status status = engine.decide(now, decisions, &count);
      if (status != Status::kOk) return status;
      if (count * sizeof(Decision) != recorded.size()) return Status::kJournalMismatch;
      if (count != 0 && std::memcmp(decisions.data(), recorded.data(), recorded.size()) != 0) {
        return Status::kJournalMismatch;
      }
      result.decisions += count;
      return Status::kOk;
    }
  }
  return Status::kJournalCorrupt;
}

}  // namespace

ReplayResult replay_journal(std::span<const std::uint8_t> journal, Engine& engine) {
  ReplayResult result;
  JournalReader reader(journal);
  std::span<const std::uint8_t> options;
  result.status = reader.read_header(&options);
  std::vector<BlockHash> hashes;
  std::vector<Decision> decisions;
  while (result.status == Status::kOk) {
    result.good_bytes = reader.good_bytes();
    Record record;
    const Status next = reader.next(&record);
    if (next == Status::kNotFound) return result;
    result.status = next;
    if (next != Status::kOk) break;
    const Status applied = apply_record(record, engine, hashes, decisions, result);
    if (applied == Status::kOk) {
      ++result.events;
    } else {
      // An event that was accepted when it was recorded and is refused now: these are not the same states.
      result.status = applied == Status::kJournalCorrupt ? applied : Status::kJournalMismatch;
    }
  }
  return result;
}

}  // namespace saga
