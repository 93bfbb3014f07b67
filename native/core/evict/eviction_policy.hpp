// EvictionPolicy: the one question "which page goes next?", and what a policy is told so that it can answer.
//
// A policy belongs to one PageCache (evict/page_cache.hpp), reads its ResidentSet and is told of changes by it. What is
// resident is always closed under prefixes, so a victim is the last resident page of a **leaf** of the resident tree,
// and it must be unpinned; such a leaf is a **candidate**.
//
// Who calls what, and when. The owner of a cache (cache replay, simulated worker) speaks only to the PageCache, except
// for call_ended() in the atomic model (below); the PageCache speaks to the policy:
//
//   PageCache::start    call_started, then node_pinned for each node that the call found resident, from the root down.
//                       A call that was preempted starts again with the same call number.
//   PageCache::pin      node_pinned likewise, and nothing else: a copy or a lease (quiet). No thread has done anything,
//                       so nothing is to be learned from it.
//   PageCache::grow,    for each node that the call (or the copy) reaches, from the root down: node_resident if it had
//   PageCache::insert   no page yet, node_pinned. Pages of one node may come in many steps (chunked prefill, decode);
//                       later steps are not told. victim() may be asked before any of them.
//   PageCache::end      call_ended, then node_unpinned for each node whose last pin this was, from the leaf up.
//   PageCache::preempt  call_preempted, then node_unpinned likewise.
//   PageCache::unpin    node_unpinned likewise, and nothing else: the end of a copy or a lease; and the atomic model,
//                       where the pages of a request may go while it still runs; its owner calls policy.call_ended(...)
//                       itself when the call ends.
//   eviction            victim; then node_emptied if the last page of the node went.
//   at any of these     candidate_added and candidate_removed when a node becomes a candidate or stops being one: after
//                       node_unpinned, node_emptied (of the child) and call_ended, before node_pinned and node_resident
//                       (of the child). A node that is emptied is removed as a candidate first.
//
// Calls of one thread may overlap; the newest is the one that counts for the branch. Not every call that starts need
// ever end. Pages may be resident that no call here has used: copies.
//
// **Branches.** lru-prefix, wa-lru, ttl and saga-paper do not score pages but branches: the head of a thread (its newest prompt,
// with the answer once it ended) and superseded prompts (what the newest prompt of the thread no longer contains). A
// branch hangs at the deepest resident page of its path; a leaf takes the score of its least evictable branch, and one
// without a branch goes first (under wa-lru: has the worst R and P_reuse): so does a copy until its thread calls here,
// unless a lease holds it. Without thread ids heads are inferred from the prefix alone. What they are told is what a
// server in front of an engine sees: never the future.
//
// Policies (PolicyKind):
//   lru         vLLM's free queue: a page joins the recency list, tail first, when its last pin goes, be it a call's, a
//               copy's or a lease's.
//   lru-prefix  lru over branches with 2,000 ms of recency more where P_reuse > 0.5 (a baseline of the SAGA paper).
//   wa-lru      SAGA paper, Eq. 1: evict the largest 0.3 R + 0.5 (1 - P_reuse) + 0.2 S; R = idle / longest idle of a
//               resident branch, S = resident pages / the most of any, P_reuse = (1 - p_end) c / (c + g).
//   ttl         lru over branches, but a branch younger than its time to live goes last. TTL = half the p95 of the last
//               256 gaps of its class (stop reason x tool class), 2 s until 5 are seen, at most 300 s, none after
//               end_turn.
//   saga-paper  wa-lru, but a branch younger than its time to live goes last: that of ttl, but 300 s after end_turn.
//   saga        the Hazard Gittins Index (evict/saga_policy.hpp): evict the pages with the fewest expected hits for each
//               page-second of room, by learned distributions of how long a branch idles; the users of a shared page add up.
//               Takes session ends and declared gaps as hints whose worth it learns.
//   belady      the offline optimum, Belady's MIN with bypass: it is given the requests to come. Farthest next use
//               first, of equals the deepest. Calls may start in another order than recorded: what counts is which
//               recorded requests have not started yet.
//
// Ties: the deepest node, then the smallest node number. Nothing here depends on addresses, hash order or a clock:
// `now` is an argument and must not run backwards.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../base/types.hpp"
#include "page_tree.hpp"

namespace saga {

enum class PolicyKind : std::uint8_t {
  kLru = 0,
  kLruPrefix = 1,
  kWaLru = 2,
  kTtl = 3,
  kBelady = 4,
  kSagaPaper = 5,
  kSaga = 6,
  kStepsToExecution = 7,
};
inline constexpr std::uint32_t kPolicyKindCount = 5;

// What one cache holds of a page tree. Written by the PageCache, read by its policy.
struct ResidentNode {
  std::uint32_t pages = 0;          // resident pages, a prefix of the run
  std::uint32_t pins = 0;           // running calls that have reached this node, copies and leases
  std::uint32_t children = 0;       // children with resident pages
  std::uint32_t leaf_slot = kNone;  // place in ResidentSet::leaves
};

struct ResidentSet {
  const PageTree* tree = nullptr;
  PageTree* live = nullptr;  // the same tree if it is live: a policy holds the pages that it has to know
  std::vector<ResidentNode> nodes;
  // Nodes with resident pages and no resident child, pinned ones too, in no order of meaning.
  std::vector<NodeId> leaves;

  bool is_candidate(NodeId node) const {
    const ResidentNode& state = nodes[node];
    return state.pages > 0 && state.children == 0 && state.pins == 0;
  }
  // Pages from the root to the last resident page of a node that has some.
  std::uint32_t path_pages(NodeId node) const { return tree->node(node).first_page + nodes[node].pages; }
};

// A call as known at its start.
struct CallStart {
  CallId call = 0;
  ThreadId thread = kNone;     // kNone: not told, the policy infers it
  NodeId prompt_leaf = kNone;  // the prompt: what the call looks up
  NodeId path_leaf = kNone;    // where the call may grow to (cluster mode: final_leaf); prompt_leaf lies on its path
  PromptKind prompt_kind = PromptKind::kStart;
};

// A call as known at its end.
struct CallEnd {
  CallId call = 0;
  StopReason stop_reason = StopReason::kUnknown;
  ToolClass tool_class = ToolClass::kNone;
  NodeId leaf = kNone;               // what it has reached, prompt and answer: path_leaf, or the node of its last page
  bool session_end = false;          // the client says: this was the last call of the thread
  Time declared_gap = kNotDeclared;  // the client says: the coming tool takes so long
  std::uint32_t output_tokens = 0;   // of the answer; 0: not told
};

// Up to `pages` of the last resident pages of `node` may go before the policy is asked again. node == kNone:
// no candidate.
struct Victim {
  NodeId node = kNone;
  std::uint32_t pages = 0;
};

// The requests to come, for belady: those that will be served by this cache, in order. The span must outlive
// the policy.
struct FutureRequests {
  const CallId* calls = nullptr;
  std::uint32_t count = 0;
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  virtual void call_started(const CallStart&, Time) {}
  virtual void call_ended(const CallEnd&, Time) {}
  virtual void call_preempted(CallId, Time) {}
  // The thread will not come back to this cache: it was moved elsewhere, or its task has ended.
  virtual void thread_left(ThreadId, Time) {}
  // Pages on the path to `leaf` were copied here for the thread, whose next call will come here.
  virtual void thread_expected(ThreadId, NodeId /*leaf*/, Time) {}
  virtual void node_resident(NodeId) {}
  virtual void node_emptied(NodeId) {}
  virtual void node_pinned(NodeId) {}
  virtual void node_unpinned(NodeId) {}
  virtual void candidate_added(NodeId) {}
  virtual void candidate_removed(NodeId) {}
  // Live trees: the node, which is not resident and which nobody holds, is removed from the tree.
  virtual void node_forgotten(NodeId) {}

  virtual Victim victim(Time now) = 0;
  virtual bool verify() const = 0;

 protected:
  EvictionPolicy() = default;
  EvictionPolicy(const EvictionPolicy&) = delete;
  EvictionPolicy& operator=(const EvictionPolicy&) = delete;
};

// `residents` must outlive the policy. `future` is read by belady alone, `shared` by saga: what the caches of a cluster learn
// together (nullptr: each for itself).
class ReuseStatistics;
std::unique_ptr<EvictionPolicy> make_eviction_policy(PolicyKind kind, const ResidentSet& residents,
                                                     const FutureRequests& future = {},
                                                     ReuseStatistics* shared = nullptr);

}  // namespace saga
