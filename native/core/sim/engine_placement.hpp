// EnginePlacement: the simulated cluster, scheduled by the engine that schedules a real one.
//
// What a router would see becomes events of the engine (engine/engine.hpp): pages that a worker stores and evicts are KV
// events with their hashes, a sent call is submitted with the chain of its prompt, running pages are the load that a worker
// reports before a decision. The worker that the engine's decision names is where the call goes. Its journal, if it keeps one,
// rebuilds the same engine and the same decisions.
//
// With the placement kind saga, answers are told with the hashes of the blocks that they fill, graphs are declared, the directives
// among the decisions are carried out on the simulated workers at once, what becomes of leases is told, and the engine ticks when
// it wants to. Then a run gives the same results, to the microsecond, as the scheduler without an engine in between, but for workers
// with a host tier, of which no KV events are told.
//
// Cost: a hash and an index operation a page that a worker stores or evicts, one match a call, one load report a worker and
// call. Memory: the engine's tables, bounded by the workload: all tasks may be open at once.
//
// Times the simulator reports for a worker may lie a little behind its clock; the engine gets them in order of reporting, at
// the latest time known.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../engine/engine.hpp"
#include "../evict/page_tree.hpp"
#include "cluster_policy.hpp"
#include "placement_policy.hpp"
#include "workload.hpp"

namespace saga {

class EnginePlacement final : public PlacementPolicy, public PrefixDirectory {
 public:
  // Receives journal bytes as they come; return value of no account.
  using JournalSink = void (*)(void* context, const std::uint8_t* bytes, std::size_t count);

  EnginePlacement(const Workload& workload, const PageTree& tree, std::uint32_t workers, std::uint32_t capacity_pages,
                  PlacementKind kind, std::uint64_t seed, JournalSink sink = nullptr, void* sink_context = nullptr,
                  const SchedulingOptions& scheduling = {});
  // How the engine is to schedule so that it decides as the policy `saga` of these options; its bounds are those of the workload.
  static SchedulingOptions scheduling_for(const ClusterPolicyOptions& policy, const ClusterOptions& cluster,
                                          const Workload& workload);

  const Engine& engine() const { return engine_; }
  // kOk, or what the engine said to the first event that it refused; then the run means nothing.
  Status status() const { return status_; }
  // Hands the rest of the journal to the sink.
  void finish_journal() { drain(0); }

  WorkerId place(CallId call, Time now, ClusterControl& cluster) override;
  void task_arrived(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void task_finished(std::uint32_t task, Time now, ClusterControl& cluster) override;
  void first_token(CallId call, WorkerId worker, Time now, ClusterControl& cluster) override;
  void call_finished(CallId call, WorkerId worker, StopReason stop, ToolClass tool, Time now,
                     ClusterControl& cluster) override;
  void timer(Time now, ClusterControl& cluster) override;
  void lease_reported(const LeaseReport& report, Time now, ClusterControl& cluster) override;
  std::int32_t priority(CallId call, Time now, ClusterControl& cluster) override;
  std::uint64_t steals() const override;
  bool verify() const override { return engine_.verify(); }

  void match(CallId call, std::uint32_t* pages) override;
  void pages_changed(WorkerId worker, const std::vector<PageCache::Change>& changes, Time now) override;

 private:
  static EngineOptions options_for(const Workload& workload, const PageTree& tree, std::uint32_t workers,
                                   std::uint32_t capacity_pages, PlacementKind kind, std::uint64_t seed, bool journal,
                                   const SchedulingOptions& scheduling);
  bool schedules() const { return engine_.scheduling() != nullptr; }
  Time at(Time now) const { return now > engine_.now() ? now : engine_.now(); }
  // The hashes of the pages from the root to `leaf`, in chain_.
  std::span<const BlockHash> chain_to(NodeId leaf);
  std::span<const BlockHash> chain_of(CallId call) { return chain_to(tree_.prompt_leaf(call)); }
  CallId call_of(CallHandle handle) const { return call_in_slot_[static_cast<std::uint32_t>(handle)]; }
  // The workers report what they have stored and evicted until now.
  void catch_up(ClusterControl& cluster);
  // Carries out what the engine has decided; the call `wanted` is not sent: its worker is returned.
  WorkerId carry_out(CallId wanted, Time now, ClusterControl& cluster);
  void await_wake(ClusterControl& cluster);
  void note(Status status) {
    if (status_ == Status::kOk) status_ = status;
  }
  // Makes room for a record of `payload` bytes.
  void drain(std::size_t payload);

  const Workload& workload_;
  const PageTree& tree_;
  const std::uint32_t workers_;
  Engine engine_;
  Status status_ = Status::kOk;
  const JournalSink sink_;
  void* const sink_context_;
  std::vector<WorkflowHandle> workflow_;  // per task
  std::vector<CallHandle> handle_;        // per call
  std::vector<std::uint8_t> started_;     // per call: the first token was reported (a preempted call sends it once)
  std::vector<NodeId> path_;
  std::vector<BlockHash> chain_;
  std::vector<std::uint32_t> depth_;
  std::vector<std::uint8_t> journal_bytes_;
  // With saga:
  std::vector<CallId> call_in_slot_;                 // of the engine
  std::vector<std::uint32_t> graph_;                 // per declared graph of the workload, its number in the engine
  std::vector<std::int32_t> priority_;               // per call
  std::vector<Decision> decisions_;                  // scratch
  std::vector<std::pair<LeaseId, LeaseId>> leases_;  // of the cluster and of the engine, in order of the cluster's
  Time wake_ = kNotDeclared;                         // asked for
};

}  // namespace saga
