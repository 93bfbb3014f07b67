#include "branch_policy.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "../base/assert.hpp"

namespace saga {
namespace {

constexpr std::uint64_t kThreadsBeforeLearning = 6;
constexpr std::uint32_t kScoredTokens = 512;
constexpr int kTimeBits = 40;
constexpr std::uint32_t kShareBits = 16;  // more precision, so that S needs no division for each leaf
constexpr Time kReuseBonus = 2'000'000;
constexpr std::size_t kGapsKept = 256;
constexpr std::size_t kGapsNeeded = 5;
constexpr Time kTtlAtColdStart = 2'000'000;
constexpr std::size_t kStopReasons = 3;
constexpr std::size_t kToolClasses = 5;

std::size_t class_of(StopReason stop, ToolClass tool) {
  return static_cast<std::size_t>(stop) * kToolClasses + static_cast<std::size_t>(tool);
}

}  // namespace

BranchPolicy::BranchPolicy(const ResidentSet& residents)
    : residents_(residents),
      head_of_thread_(residents.tree->threads(), kNone),
      branch_of_call_(residents.tree->calls(), kNone),
      first_at_(residents.nodes.size() + 1, kNone),
      owner_(residents.nodes.size(), kNone) {
  branches_.reserve(std::size_t{residents.tree->threads()} * 2);
}

BranchPolicy::BranchId BranchPolicy::new_branch() {
  if (!free_.empty()) {
    const BranchId id = free_.back();
    free_.pop_back();
    branches_[id] = {};
    return id;
  }
  branches_.emplace_back();
  return static_cast<BranchId>(branches_.size() - 1);
}

// Pages that were ever used are closed under prefixes, so the deepest known page of a path is found from its end.
BranchPolicy::BranchId BranchPolicy::infer(NodeId path_leaf) const {
  const PageTree& tree = *residents_.tree;
  NodeId node = path_leaf;
  while (node != kNone && owner_[node] == kNone) node = tree.node(node).parent;
  if (node == kNone || owner_[node] == kSupersededOwner) return kNone;
  const std::uint32_t known = tree.path_pages(node);
  const BranchId head = owner_[node];
  return known >= 2 && tree.path_pages(branches_[head].path_leaf) <= known + 1 ? head : kNone;
}

void BranchPolicy::own(NodeId leaf, NodeId above, std::uint32_t owner) {
  for (NodeId node = leaf; node != above; node = residents_.tree->node(node).parent) owner_[node] = owner;
}

void BranchPolicy::call_started(const CallStart& call, Time now) {
  const PageTree& tree = *residents_.tree;
  const bool inferred = call.thread == kNone;
  BranchId id = kNone;
  if (branch_of_call_[call.call] != kNone) {
    id = branch_of_call_[call.call];  // preempted, and back again
    if (branches_[id].newest_call != call.call) return;
    branches_[id].state = State::kRunning;
    touch(id, now);
    return;
  }
  id = inferred ? infer(call.path_leaf) : head_of_thread_[call.thread];
  const std::uint32_t prompt_pages = tree.path_pages(call.prompt_leaf);
  if (id == kNone) {
    ++threads_;
    id = new_branch();
    if (!inferred) head_of_thread_[call.thread] = id;
    hang(id, kNone);
  } else {
    const Branch head = branches_[id];
    ++continuations_;
    if (prompt_pages > head.prompt_pages) {
      growth_tokens_ += std::uint64_t{prompt_pages - head.prompt_pages} * tree.page_tokens();
    }
    if (head.state == State::kIdle) gap_ended(head, now - head.last_use);
    if (!tree.on_path(head.path_leaf, call.path_leaf)) {
      if (inferred) {
        own(head.path_leaf, tree.common_ancestor(head.path_leaf, call.path_leaf), kSupersededOwner);
      }
      supersede(head, now);
    }
  }
  if (continuations_ > 0) mean_growth_ = (growth_tokens_ << kGrowthBits) / continuations_;
  if (threads_ >= kThreadsBeforeLearning) {
    const bool often = threads_ * 2 >= continuations_;
    end_probability_ = often ? kOne / 2 : (threads_ << kFractionBits) / continuations_;
  }
  if (inferred) own(call.path_leaf, kNone, id);
  branch_of_call_[call.call] = id;

  NodeId deepest = call.path_leaf;
  while (deepest != kNone && residents_.nodes[deepest].pages == 0) deepest = tree.node(deepest).parent;
  unhang(id);
  Branch& head = branches_[id];
  head.path_leaf = call.path_leaf;
  head.prompt_pages = prompt_pages;
  head.newest_call = call.call;
  head.state = State::kRunning;
  head.over = false;
  head.last_use = now;
  hang(id, deepest);
}

void BranchPolicy::supersede(const Branch& head, Time now) {
  if (head.hangs_at == kNone) return;
  const BranchId id = new_branch();
  Branch& old = branches_[id];
  old.path_leaf = head.path_leaf;
  old.prompt_pages = head.prompt_pages;
  old.state = State::kSuperseded;
  old.last_use = now;
  hang(id, head.hangs_at);
}

void BranchPolicy::call_ended(const CallEnd& call, Time now) {
  const BranchId id = std::exchange(branch_of_call_[call.call], kNone);
  SAGA_ASSERT(id != kNone);
  Branch& head = branches_[id];
  if (head.newest_call != call.call) return;  // the thread has gone on meanwhile
  SAGA_ASSERT(head.state == State::kRunning);
  head.state = State::kIdle;
  head.over = call.session_end;
  head.stop_reason = call.stop_reason;
  head.tool_class = call.tool_class;
  if (head.path_leaf != call.leaf) {
    SAGA_ASSERT(residents_.tree->on_path(call.leaf, head.path_leaf));
    NodeId deepest = call.leaf;
    while (deepest != kNone && residents_.nodes[deepest].pages == 0) deepest = residents_.tree->node(deepest).parent;
    unhang(id);
    head.path_leaf = call.leaf;
    hang(id, deepest);
  }
  touch(id, now);
  became_idle(branches_[id]);
}

void BranchPolicy::call_preempted(CallId call, Time now) {
  const BranchId id = branch_of_call_[call];
  SAGA_ASSERT(id != kNone);
  if (branches_[id].newest_call != call) return;
  branches_[id].state = State::kWaiting;
  touch(id, now);
}

// A call of it that still runs keeps its branch alive; when that call ends the branch is idle like any other.
void BranchPolicy::thread_left(ThreadId thread, Time) {
  if (thread == kNone || head_of_thread_[thread] == kNone) return;
  Branch& head = branches_[head_of_thread_[thread]];
  if (head.state == State::kRunning) return;
  if (head.state == State::kWaiting) head.state = State::kIdle;
  head.over = true;
  head.deadline = 0;
}

void BranchPolicy::node_resident(NodeId node) {
  BranchId id = first_at_[list_of(residents_.tree->node(node).parent)];
  while (id != kNone) {
    const BranchId next = branches_[id].next;
    if (residents_.tree->on_path(node, branches_[id].path_leaf)) {
      unhang(id);
      hang(id, node);
    }
    id = next;
  }
}

void BranchPolicy::node_emptied(NodeId node) {
  const NodeId parent = residents_.tree->node(node).parent;
  while (first_at_[node] != kNone) {
    const BranchId id = first_at_[node];
    unhang(id);
    if (parent == kNone && branches_[id].state == State::kSuperseded) {
      branches_[id].state = State::kFree;
      free_.push_back(id);
    } else {
      hang(id, parent);
    }
  }
}

void BranchPolicy::hang(BranchId id, NodeId node) {
  Branch& branch = branches_[id];
  BranchId& first = first_at_[list_of(node)];
  branch.hangs_at = node;
  branch.previous = kNone;
  branch.next = first;
  if (first != kNone) branches_[first].previous = id;
  first = id;
  if (node != kNone) link_by_use(id);
}

void BranchPolicy::unhang(BranchId id) {
  Branch& branch = branches_[id];
  (branch.previous == kNone ? first_at_[list_of(branch.hangs_at)] : branches_[branch.previous].next) = branch.next;
  if (branch.next != kNone) branches_[branch.next].previous = branch.previous;
  if (branch.hangs_at != kNone) unlink_by_use(id);
}

void BranchPolicy::touch(BranchId id, Time now) {
  const bool resident = branches_[id].hangs_at != kNone;
  if (resident) unlink_by_use(id);
  branches_[id].last_use = now;
  if (resident) link_by_use(id);
}

// Sorted by last use. Nearly always the branch is the newest; else it has just moved a node up or down, or an old head has got
// pages again.
void BranchPolicy::link_by_use(BranchId id) {
  Branch& branch = branches_[id];
  BranchId older = newest_;
  while (older != kNone && branches_[older].last_use > branch.last_use) older = branches_[older].older;
  branch.older = older;
  branch.newer = older == kNone ? oldest_ : branches_[older].newer;
  (older == kNone ? oldest_ : branches_[older].newer) = id;
  (branch.newer == kNone ? newest_ : branches_[branch.newer].older) = id;
}

void BranchPolicy::unlink_by_use(BranchId id) {
  Branch& branch = branches_[id];
  (branch.older == kNone ? oldest_ : branches_[branch.older].newer) = branch.newer;
  (branch.newer == kNone ? newest_ : branches_[branch.newer].older) = branch.older;
}

Time BranchPolicy::longest_idle(Time now) const {
  return oldest_ == kNone || now <= branches_[oldest_].last_use ? 1 : now - branches_[oldest_].last_use;
}

BranchPolicy::Fraction BranchPolicy::reuse_probability(const Branch& branch) const {
  if (branch.state == State::kSuperseded || branch.over) return 0;
  if (branch.state == State::kWaiting) return kOne;
  const bool turn_over = branch.state == State::kIdle && branch.stop_reason == StopReason::kEndTurn;
  const Fraction end = turn_over ? kOne / 2 : end_probability_;
  const std::uint64_t context = (std::uint64_t{branch.prompt_pages} * residents_.tree->page_tokens()) << kGrowthBits;
  if (context == 0) return 0;
  return ((kOne - end) * ((context << kFractionBits) / (context + mean_growth_))) >> kFractionBits;
}

bool BranchPolicy::verify() const {
  const PageTree& tree = *residents_.tree;
  std::size_t resident = 0;
  std::size_t listed = 0;
  std::size_t free = 0;
  for (BranchId id = 0; id < branches_.size(); ++id) {
    const Branch& branch = branches_[id];
    if (branch.state == State::kFree) {
      ++free;
      continue;
    }
    NodeId deepest = branch.path_leaf;
    while (deepest != kNone && residents_.nodes[deepest].pages == 0) deepest = tree.node(deepest).parent;
    if (branch.hangs_at != deepest) return false;
    if (deepest == kNone && branch.state == State::kSuperseded) return false;
    resident += deepest != kNone;
  }
  if (free != free_.size()) return false;
  for (std::size_t list = 0; list < first_at_.size(); ++list) {
    BranchId previous = kNone;
    for (BranchId id = first_at_[list]; id != kNone; previous = id, id = branches_[id].next) {
      if (list_of(branches_[id].hangs_at) != list || branches_[id].previous != previous) return false;
      if (++listed > branches_.size()) return false;
    }
  }
  if (listed + free != branches_.size()) return false;
  BranchId older = kNone;
  for (BranchId id = oldest_; id != kNone; older = id, id = branches_[id].newer) {
    const Branch& branch = branches_[id];
    if (branch.hangs_at == kNone || branch.older != older || resident-- == 0) return false;
    if (older != kNone && branches_[older].last_use > branch.last_use) return false;
  }
  return older == newest_ && resident == 0;
}

Victim PrefixRecencyPolicy::victim(Time) {
  NodeId best = kNone;
  Time best_use = 0;
  for (const NodeId node : residents_.leaves) {
    if (residents_.nodes[node].pins > 0) continue;
    Time use = 0;
    for (BranchId id = first_at(node); id != kNone; id = branch(id).next) {
      const Time bonus = reuse_probability(branch(id)) > kOne / 2 ? kReuseBonus : 0;
      use = std::max(use, branch(id).last_use + bonus);
    }
    if (best == kNone || use < best_use || (use == best_use && deeper(node, best))) {
      best = node;
      best_use = use;
    }
  }
  if (best == kNone) return {};
  return {best, residents_.nodes[best].pages};
}

template <typename Kept>
Victim WorkflowAwarePolicy::choose(Time now, const Kept& kept) {
  // Scores are ten times Eq. 1: 3 R + 5 (1 - P_reuse) + 2 S.
  const Time longest = longest_idle(now);
  const int shift = std::max(0, static_cast<int>(std::bit_width(longest)) - kTimeBits);  // beyond 12 days: coarser
  const Time scale = std::max<Time>(1, longest >> shift);
  candidates_.clear();
  kept_candidates_.clear();
  std::uint32_t others_most = 1;  // the most resident pages of those that cannot be chosen
  for (const NodeId node : residents_.leaves) {
    if (residents_.nodes[node].pins > 0) {
      others_most = std::max(others_most, residents_.path_pages(node));
      continue;
    }
    bool keep = false;
    Fraction base = 8 * kOne;
    for (BranchId id = first_at(node); id != kNone; id = branch(id).next) {
      const bool keep_branch = kept(branch(id));
      if (keep && !keep_branch) continue;
      const Time idle = now - branch(id).last_use;
      const Fraction recency = ((idle >> shift) << kFractionBits) / scale;
      const Fraction score = 3 * recency + 5 * (kOne - reuse_probability(branch(id)));
      base = keep == keep_branch ? std::min(base, score) : score;
      keep = keep_branch;
    }
    (keep ? kept_candidates_ : candidates_).push_back({node, residents_.path_pages(node), base});
  }
  if (candidates_.empty()) {
    candidates_.swap(kept_candidates_);
  } else {
    for (const Candidate& other : kept_candidates_) others_most = std::max(others_most, other.path_pages);
  }
  if (candidates_.empty()) return {};

  // The most resident pages of any branch are those of the largest leaf; when it loses pages, in time those of the second.
  std::size_t largest = 0;
  std::uint32_t second = others_most;
  for (std::size_t i = 1; i < candidates_.size(); ++i) {
    if (candidates_[i].path_pages > candidates_[largest].path_pages) largest = i;
  }
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (i != largest) second = std::max(second, candidates_[i].path_pages);
  }
  // The candidate that goes first after the candidate `but` has lost `gone` pages.
  const auto goes_first = [&](std::size_t but, std::uint32_t gone) {
    const std::uint32_t largest_pages = candidates_[largest].path_pages - (but == largest ? gone : 0);
    const std::uint64_t share = (kOne << kShareBits) / std::max(second, largest_pages);  // of one page
    std::size_t best = 0;
    Fraction best_score = 0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      const std::uint64_t pages = candidates_[i].path_pages - (i == but ? gone : 0);
      const Fraction score = candidates_[i].base + 2 * ((pages * share) >> kShareBits);
      if (i == 0 || score > best_score ||
          (score == best_score && deeper(candidates_[i].node, candidates_[best].node))) {
        best = i;
        best_score = score;
      }
    }
    return best;
  };
  const std::size_t victim = goes_first(0, 0);
  const NodeId node = candidates_[victim].node;
  const std::uint32_t pages = residents_.nodes[node].pages;
  // The more of it is gone the less it is the first to go.
  std::uint32_t low = std::min(pages, std::max(1u, kScoredTokens / residents_.tree->page_tokens()));
  if (low < pages && goes_first(victim, pages - 1) == victim) low = pages;
  for (std::uint32_t high = pages; high - low > 1;) {
    const std::uint32_t middle = low + (high - low) / 2;
    (goes_first(victim, middle - 1) == victim ? low : high) = middle;
  }
  return {node, low};
}

Victim WorkflowAwarePolicy::victim(Time now) {
  return choose(now, [](const Branch&) { return false; });
}

TimesToLive::TimesToLive() : classes_(kStopReasons * kToolClasses) {
  for (GapHistory& history : classes_) {
    history.ring.reserve(kGapsKept);
    history.sorted.reserve(kGapsKept);
  }
}

void TimesToLive::learn(StopReason stop, ToolClass tool, Time gap) {
  GapHistory& history = classes_[class_of(stop, tool)];
  if (history.ring.size() < kGapsKept) {
    history.ring.push_back(gap);
  } else {
    const Time forgotten = std::exchange(history.ring[history.next], gap);
    history.next = static_cast<std::uint32_t>((history.next + 1) % kGapsKept);
    history.sorted.erase(std::lower_bound(history.sorted.begin(), history.sorted.end(), forgotten));
  }
  history.sorted.insert(std::upper_bound(history.sorted.begin(), history.sorted.end(), gap), gap);
}

Time TimesToLive::of(StopReason stop, ToolClass tool) const {
  const std::vector<Time>& sorted = classes_[class_of(stop, tool)].sorted;
  if (sorted.size() < kGapsNeeded) return kTtlAtColdStart;
  return std::min(kMax, sorted[(sorted.size() * 95 + 99) / 100 - 1] / 2);
}

bool TimesToLive::verify() const {
  for (const GapHistory& history : classes_) {
    std::vector<Time> sorted = history.ring;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != history.sorted) return false;
  }
  return true;
}

void TimeToLivePolicy::gap_ended(const Branch& branch, Time gap) {
  times_to_live_.learn(branch.stop_reason, branch.tool_class, gap);
}

void TimeToLivePolicy::became_idle(Branch& branch) {
  const bool none = branch.over || branch.stop_reason == StopReason::kEndTurn;
  branch.deadline = none ? 0 : branch.last_use + times_to_live_.of(branch.stop_reason, branch.tool_class);
}

Victim TimeToLivePolicy::victim(Time now) {
  NodeId best = kNone;
  bool best_kept = false;
  Time best_use = 0;
  for (const NodeId node : residents_.leaves) {
    if (residents_.nodes[node].pins > 0) continue;
    bool kept = false;
    Time use = 0;
    for (BranchId id = first_at(node); id != kNone; id = branch(id).next) {
      const Branch& b = branch(id);
      const bool keep = alive(b, now);
      if (keep > kept || (keep == kept && b.last_use > use)) {
        kept = keep;
        use = b.last_use;
      }
    }
    const bool first = kept != best_kept ? best_kept
                       : use != best_use ? use < best_use
                                         : best != kNone && deeper(node, best);
    if (best == kNone || first) {
      best = node;
      best_kept = kept;
      best_use = use;
    }
  }
  if (best == kNone) return {};
  return {best, residents_.nodes[best].pages};
}

bool TimeToLivePolicy::verify() const { return times_to_live_.verify() && BranchPolicy::verify(); }

Victim SagaPaperPolicy::victim(Time now) {
  return choose(now, [now](const Branch& branch) { return alive(branch, now); });
}

void SagaPaperPolicy::gap_ended(const Branch& branch, Time gap) {
  times_to_live_.learn(branch.stop_reason, branch.tool_class, gap);
}

void SagaPaperPolicy::became_idle(Branch& branch) {
  if (branch.over) {
    branch.deadline = 0;
    return;
  }
  const bool turn_over = branch.stop_reason == StopReason::kEndTurn;
  branch.deadline =
      branch.last_use + (turn_over ? TimesToLive::kMax : times_to_live_.of(branch.stop_reason, branch.tool_class));
}

bool SagaPaperPolicy::verify() const { return times_to_live_.verify() && WorkflowAwarePolicy::verify(); }

}  // namespace saga
