// BranchPolicy: the book-keeping that lru-prefix, wa-lru, ttl and saga-paper share. They score branches instead of pages.
//
// A **branch** is the head of a thread (its newest call: prompt, and what the answer added), or a superseded prompt: the path of
// a head at the moment when the next prompt of its thread turned out not to contain all of it. A branch **hangs** at the deepest
// node of its path that has resident pages. The branches whose pages would be lost with the last page of a leaf are exactly those
// that hang there. When a node is emptied its branches move to the parent; when a child is filled again those of the parent's
// branches that lead there move back. A head without resident pages is remembered (its thread may return), a superseded prompt
// without any is forgotten. A leaf where no branch hangs goes first: pages that a
// copy brought, or those of a call that its own thread overtook before it had any page.
//
//   states of a branch: running (its newest call has not ended), waiting (preempted: it is certain to come back), idle, superseded
//
// Where a call comes without a thread its branch is inferred: it continues the head that used its deepest known page last, if
// that is at least the second page of the prompt, that head is not superseded, and its path goes at most one page further.
//
// Learned here, by this cache alone: threads seen, continuations, and the mean growth of the prompt from call to call.
//   P_reuse = (1 - p_end) c / (c + g): c = tokens of the prompt in full pages; g = mean of max(0, growth) over all
//   continuations, 300 tokens before the first; p_end = 0.5 after end_turn, else min(0.5, threads / continuations) from the
//   sixth thread on, 0.05 before. 0 for a superseded prompt and for a thread that is over (the client said so with its last
//   answer, or it was moved away), 1 for a waiting one.
//
// Arithmetic is in integers (fixed point of 24 fractional bits), so that decisions are the same on every machine.
//
// Cost: a start O(nodes that the path gained or lost), an end O(1), a node that becomes resident O(branches at its parent). A
// decision scans the leaves and the branches that hang there. Memory: 8 bytes a node and a branch each for as many heads as
// there are threads (calls, where they are inferred) and for the superseded prompts that have resident pages; it grows on
// demand.
#pragma once

#include <vector>

#include "eviction_policy.hpp"

namespace saga {

class BranchPolicy : public EvictionPolicy {
 public:
  void call_started(const CallStart& call, Time now) override;
  void call_ended(const CallEnd& call, Time now) override;
  void call_preempted(CallId call, Time now) override;
  void thread_left(ThreadId thread, Time now) override;
  void node_resident(NodeId node) override;
  void node_emptied(NodeId node) override;
  bool verify() const override;

 protected:
  using BranchId = std::uint32_t;
  using Fraction = std::uint64_t;  // fixed point
  static constexpr std::uint32_t kFractionBits = 24;
  static constexpr Fraction kOne = Fraction{1} << kFractionBits;

  enum class State : std::uint8_t { kRunning, kWaiting, kIdle, kSuperseded, kFree };

  struct Branch {
    NodeId path_leaf = kNone;
    NodeId hangs_at = kNone;                  // kNone: nothing of it is resident
    BranchId previous = kNone, next = kNone;  // at the same node
    BranchId older = kNone, newer = kNone;    // among the resident ones, by last use
    CallId newest_call = kNone;
    std::uint32_t prompt_pages = 0;
    Time last_use = 0;  // end of the newest call; its start while it runs
    Time deadline = 0;  // for ttl and saga-paper: protected before this
    State state = State::kFree;
    bool over = false;  // no call of the thread is expected any more
    StopReason stop_reason = StopReason::kUnknown;
    ToolClass tool_class = ToolClass::kNone;
  };

  explicit BranchPolicy(const ResidentSet& residents);

  // The next call of a thread came, `gap` after the end of the one before.
  virtual void gap_ended(const Branch&, Time /*gap*/) {}
  // The newest call of a branch has ended; its reasons are known.
  virtual void became_idle(Branch&) {}

  // Running, certain to come back, or younger than its time to live.
  static bool alive(const Branch& branch, Time now) {
    return branch.state == State::kWaiting || branch.state == State::kRunning || now < branch.deadline;
  }
  Fraction reuse_probability(const Branch& branch) const;
  Time longest_idle(Time now) const;  // over all resident branches; at least 1

  // Whether node a goes before node b where their scores are equal.
  bool deeper(NodeId a, NodeId b) const {
    const std::uint32_t depth_a = residents_.tree->node(a).end_page();
    const std::uint32_t depth_b = residents_.tree->node(b).end_page();
    return depth_a != depth_b ? depth_a > depth_b : a < b;
  }

  const Branch& branch(BranchId id) const { return branches_[id]; }
  BranchId first_at(NodeId node) const { return first_at_[list_of(node)]; }

  const ResidentSet& residents_;

 private:
  static constexpr std::uint32_t kSupersededOwner = kNone - 1;

  std::size_t list_of(NodeId node) const { return node == kNone ? first_at_.size() - 1 : node; }
  BranchId new_branch();
  BranchId infer(NodeId path_leaf) const;
  void own(NodeId leaf, NodeId above, std::uint32_t owner);
  void supersede(const Branch& head, Time now);
  void hang(BranchId id, NodeId node);
  void unhang(BranchId id);
  void touch(BranchId id, Time now);
  void link_by_use(BranchId id);
  void unlink_by_use(BranchId id);

  std::vector<Branch> branches_;
  std::vector<BranchId> free_;
  std::vector<BranchId> head_of_thread_;
  std::vector<BranchId> branch_of_call_;  // for calls whose end is still to come
  std::vector<BranchId> first_at_;        // [nodes + 1], the last: branches without resident pages
  std::vector<std::uint32_t> owner_;      // per node: the inferred head that used it last
  BranchId oldest_ = kNone;
  BranchId newest_ = kNone;
  std::uint64_t threads_ = 0;
  std::uint64_t continuations_ = 0;
  std::uint64_t growth_tokens_ = 0;
  static constexpr std::uint32_t kGrowthBits = 8;
  std::uint64_t mean_growth_ = std::uint64_t{300} << kGrowthBits;  // tokens, fixed point
  Fraction end_probability_ = kOne / 20;                           // p_end but for end_turn
};

// LRU over branches; one whose P_reuse is above one half counts as used two seconds later.
class PrefixRecencyPolicy final : public BranchPolicy {
 public:
  explicit PrefixRecencyPolicy(const ResidentSet& residents) : BranchPolicy(residents) {}
  Victim victim(Time now) override;
};

// The SAGA paper's WA-LRU: the largest of 0.3 R + 0.5 (1 - P_reuse) + 0.2 S goes. As pages of a branch go its S falls (or, if it
// was the largest, that of the others rises), so a decision holds for as many pages as leave it first, but for at least 512
// tokens of its node: branches of like score would else take turns page by page. With pages of 512 tokens or more this is exact.
// Cost of a decision: O(leaves), times the logarithm of the node's pages where it does not go as a whole.
class WorkflowAwarePolicy : public BranchPolicy {
 public:
  explicit WorkflowAwarePolicy(const ResidentSet& residents) : BranchPolicy(residents) {}
  Victim victim(Time now) override;

 protected:
  // The victim where branches of which kept(branch) is true go only when nothing else is left; among themselves, as among the
  // others, in order of their scores.
  template <typename Kept>
  Victim choose(Time now, const Kept& kept);

 private:
  struct Candidate {
    NodeId node;
    std::uint32_t path_pages;
    Fraction base;  // ten times 0.3 R + 0.5 (1 - P_reuse)
  };
  std::vector<Candidate> candidates_;
  std::vector<Candidate> kept_candidates_;
};

// Times to live of idle branches: half the nearest-rank p95 of the last 256 gaps of their class (stop reason x tool class), 2 s
// until 5 are seen, at most 300 s. learn() is O(256), of() O(1).
class TimesToLive {
 public:
  static constexpr Time kMax = 300'000'000;

  TimesToLive();
  void learn(StopReason stop, ToolClass tool, Time gap);
  Time of(StopReason stop, ToolClass tool) const;
  bool verify() const;

 private:
  // The last gaps of a class, in order of arrival and in order of size.
  struct GapHistory {
    std::vector<Time> ring;
    std::vector<Time> sorted;
    std::uint32_t next = 0;
  };
  std::vector<GapHistory> classes_;
};

// LRU over branches, but a branch younger than its time to live goes only when nothing else is left.
class TimeToLivePolicy final : public BranchPolicy {
 public:
  explicit TimeToLivePolicy(const ResidentSet& residents) : BranchPolicy(residents) {}
  Victim victim(Time now) override;
  bool verify() const override;

 private:
  void gap_ended(const Branch& branch, Time gap) override;
  void became_idle(Branch& branch) override;

  TimesToLive times_to_live_;
};

// The SAGA paper's WA-LRU with its times to live (Algorithm 1): a branch younger than its time to live goes only when nothing
// else is left; within each of the two groups WA-LRU decides. After end_turn (no tool is known to run) it is the longest, 300 s;
// a thread that is over has none.
class SagaPaperPolicy final : public WorkflowAwarePolicy {
 public:
  explicit SagaPaperPolicy(const ResidentSet& residents) : WorkflowAwarePolicy(residents) {}
  Victim victim(Time now) override;
  bool verify() const override;

 private:
  void gap_ended(const Branch& branch, Time gap) override;
  void became_idle(Branch& branch) override;

  TimesToLive times_to_live_;
};

}  // namespace saga
