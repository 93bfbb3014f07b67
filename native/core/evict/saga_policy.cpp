#include "saga_policy.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "../base/assert.hpp"
#include "../base/real.hpp"

namespace saga {
namespace {

constexpr Time kNever = ~Time{0};
constexpr double kMicroseconds = 1e-6;
constexpr double kDeclaredShift = 62'500;   // added to ages and declared durations: zero has no multiples
constexpr std::uint32_t kBoundBuckets = 4;  // a bound holds up to the fourth border of a bucket
constexpr std::uint8_t kThreadsMost = 255;
constexpr std::size_t kNearPart = 8;  // one candidate in so many goes into the heap at a time
constexpr std::size_t kNearLeast = 32;

IndexValue add(IndexValue a, IndexValue b) { return std::min(kCertain, a + b); }

}  // namespace

SagaPolicy::SagaPolicy(const ResidentSet& residents, ReuseStatistics* shared)
    : residents_(residents),
      tree_(*residents.tree),
      own_statistics_(shared == nullptr ? std::make_unique<ReuseStatistics>() : nullptr),
      statistics_(shared == nullptr ? own_statistics_.get() : shared),
      nodes_(residents.nodes.size()),
      head_of_thread_(residents.tree->threads(), kNoHead),
      head_of_call_(residents.tree->calls(), kNoHead) {
  timer_lists_.fill(kNone);
  const bool live = residents.live != nullptr;
  heads_.reserve(std::size_t{tree_.threads()} * (live ? 1 : 2));
  pasts_.reserve(heads_.capacity());
  own_tables_.reserve(heads_.capacity());
  // One head a thread is sure to come: touched now, their memory is no page fault of a call.
  heads_.resize(tree_.threads());
  pasts_.resize(tree_.threads());
  heads_.clear();
  pasts_.clear();
  touched_.reserve(live ? nodes_.size() : 64);
  if (live) {
    free_heads_.reserve(tree_.threads());
    forgotten_threads_.reserve(tree_.threads());
    known_.reserve(nodes_.size());
    keys_.reserve(nodes_.size());
    scratch_.reserve(nodes_.size());
    timers_.reserve(nodes_.size());
  }
  statistics_->attach(this);
}

SagaPolicy::~SagaPolicy() { statistics_->detach(this); }

// ---- Heads ----------------------------------------------------------------------------------------------------------------

SagaPolicy::HeadId SagaPolicy::new_head() {
  if (!free_heads_.empty()) {
    const HeadId id = free_heads_.back();
    free_heads_.pop_back();
    heads_[id] = {};
    pasts_[id] = {};
    heads_[id].serial = ++next_serial_;
    return id;
  }
  heads_.emplace_back();
  pasts_.emplace_back();
  heads_.back().serial = ++next_serial_;
  return static_cast<HeadId>(heads_.size() - 1);
}

void SagaPolicy::set_path(HeadId id, NodeId leaf) {
  if (residents_.live != nullptr) {
    residents_.live->hold(leaf);
    residents_.live->unhold(heads_[id].path_leaf);
  }
  heads_[id].path_leaf = leaf;
}

// Lists the head if it is a ghost.
void SagaPolicy::list_ghost(HeadId id) {
  Head& head = heads_[id];
  if (residents_.live == nullptr || head.ghost || head.state == State::kRunning || head.state == State::kWaiting)
    return;
  if (head.hangs_at != kNone && residents_.nodes[head.path_leaf].pages > 0) return;
  head.ghost = true;
  head.older_ghost = newest_ghost_;
  head.newer_ghost = kNoHead;
  (newest_ghost_ == kNoHead ? oldest_ghost_ : heads_[newest_ghost_].newer_ghost) = id;
  newest_ghost_ = id;
}

void SagaPolicy::unlist_ghost(HeadId id) {
  Head& head = heads_[id];
  if (!head.ghost) return;
  (head.older_ghost == kNoHead ? oldest_ghost_ : heads_[head.older_ghost].newer_ghost) = head.newer_ghost;
  (head.newer_ghost == kNoHead ? newest_ghost_ : heads_[head.newer_ghost].older_ghost) = head.older_ghost;
  head.ghost = false;
}

bool SagaPolicy::forget_oldest(Time now) {
  const HeadId id = oldest_ghost_;
  if (id == kNoHead) return false;
  Head& head = heads_[id];
  if (head.state == State::kOrphan) {
    statistics_->orphan.censored(head.wait_class, bucket_of(std::min(now - head.since, ReuseStatistics::kForget)), 1);
    free_orphan(id);
    return true;
  }
  if (head.state == State::kIdle) give_up_wait(id, now);
  drop_own_table(head);
  for (NodeId node = head.path_leaf; node != kNone; node = tree_.node(node).parent) {
    if (nodes_[node].owner == id) nodes_[node].owner = kDropped;
  }
  const ThreadId thread = pasts_[id].thread;
  if (thread != kNone) {
    head_of_thread_[thread] = kNoHead;
    forgotten_threads_.push_back(thread);
  }
  unhang(id);
  unlist_ghost(id);
  set_path(id, kNone);
  head.state = State::kFree;
  head.newest_call = kNone;  // a call of a thread that has left, or an older one, may still run
  free_heads_.push_back(id);
  return true;
}

// Nobody has this node on its path, and it is no candidate.
void SagaPolicy::node_forgotten(NodeId node) {
  Node& state = nodes_[node];
  SAGA_ASSERT(state.first_head == kNoHead);
  if (state.key_slot != kNone) remove(node);
  if (state.known_slot != kNone) {
    const Known last = known_.back();
    known_[state.known_slot] = last;
    nodes_[last.node].known_slot = state.known_slot;
    known_.pop_back();
  }
  const bool touched = state.touched;
  state = {};
  state.touched = touched;
}

// Its pages stay known, but nobody's.
void SagaPolicy::free_orphan(HeadId id) {
  SAGA_ASSERT(heads_[id].state == State::kOrphan);
  for (NodeId node = heads_[id].path_leaf; node != heads_[id].fork; node = tree_.node(node).parent) {
    if (nodes_[node].owner == id) nodes_[node].owner = kDropped;  // others may have come onto some of them
  }
  unhang(id);
  unlist_ghost(id);
  set_path(id, kNone);
  heads_[id].state = State::kFree;
  free_heads_.push_back(id);
}

// Pages that were ever used are closed under prefixes, so the deepest known page of a path is found from its end.
SagaPolicy::HeadId SagaPolicy::infer(NodeId path_leaf) const {
  NodeId node = path_leaf;
  while (node != kNone && nodes_[node].owner == kNoHead) node = tree_.node(node).parent;
  if (node == kNone) return kNoHead;
  const HeadId id = nodes_[node].owner;
  if (id == kDropped || heads_[id].state == State::kOrphan) return kNoHead;
  const std::uint32_t known = tree_.path_pages(node);
  return known >= 2 && tree_.path_pages(heads_[id].path_leaf) <= known + 1 ? id : kNoHead;
}

// A thread id that was not seen before, with a prompt that continues that of a thread which has called once: ids may be new for
// each call, and say nothing then. The new thread takes the head over; if the other calls again it is a new one.
SagaPolicy::HeadId SagaPolicy::adopt(const CallStart& call) {
  const HeadId id = infer(call.path_leaf);
  if (id == kNoHead || heads_[id].state != State::kIdle) return kNoHead;
  if (pasts_[id].inferred || pasts_[id].thread_calls != 1) return kNoHead;
  head_of_thread_[pasts_[id].thread] = kNoHead;
  if (residents_.live != nullptr) forgotten_threads_.push_back(pasts_[id].thread);
  pasts_[id].thread = call.thread;
  pasts_[id].thread_calls = 0;
  head_of_thread_[call.thread] = id;
  return id;
}

// The deepest resident node of a path, or its first node.
NodeId SagaPolicy::place_of(NodeId path_leaf) const {
  NodeId node = path_leaf;
  while (node != kNone && residents_.nodes[node].pages == 0) {
    const NodeId parent = tree_.node(node).parent;
    if (parent == kNone) break;
    node = parent;
  }
  return node;
}

void SagaPolicy::hang(HeadId id, NodeId node) {
  Head& head = heads_[id];
  head.hangs_at = node;
  head.previous = kNoHead;
  head.next = kNoHead;
  if (node == kNone) return;  // a path without a page
  HeadId& first = nodes_[node].first_head;
  head.next = first;
  if (first != kNoHead) heads_[first].previous = id;
  first = id;
  if (++nodes_[node].heads > kMostHeads) give_up_oldest(node);
  touch(node);
}

// Running and waiting heads stay.
void SagaPolicy::give_up_oldest(NodeId node) {
  HeadId oldest = kNoHead;
  for (HeadId id = nodes_[node].first_head; id != kNoHead; id = heads_[id].next) {
    const Head& head = heads_[id];
    if (head.state == State::kRunning || head.state == State::kWaiting) continue;
    if (oldest == kNoHead || head.since < heads_[oldest].since || (head.since == heads_[oldest].since && id < oldest)) {
      oldest = id;
    }
  }
  if (oldest == kNoHead) return;
  unhang(oldest);
  list_ghost(oldest);
}

void SagaPolicy::unhang(HeadId id) {
  Head& head = heads_[id];
  if (head.hangs_at == kNone) return;
  (head.previous == kNoHead ? nodes_[head.hangs_at].first_head : heads_[head.previous].next) = head.next;
  if (head.next != kNoHead) heads_[head.next].previous = head.previous;
  --nodes_[head.hangs_at].heads;
  touch(head.hangs_at);
  head.hangs_at = kNone;
}

// ---- Events ---------------------------------------------------------------------------------------------------------------

void SagaPolicy::call_started(const CallStart& call, Time now) {
  HeadId id = head_of_call_[call.call];
  if (id != kNoHead) {  // preempted, and back again
    if (heads_[id].newest_call != call.call) return;
    unlist_ghost(id);
    heads_[id].state = State::kRunning;
    if (heads_[id].hangs_at != kNone) touch(heads_[id].hangs_at);
    return;
  }
  const bool inferred = call.thread == kNone;
  id = inferred ? infer(call.path_leaf) : head_of_thread_[call.thread];
  if (!inferred && id == kNoHead) id = adopt(call);
  NodeId above = kNone;
  if (id == kNoHead) {
    id = new_head();
    if (!inferred) head_of_thread_[call.thread] = id;
    pasts_[id].inferred = inferred;
    pasts_[id].thread = call.thread;
  } else {
    if (heads_[id].state == State::kIdle) gap_ended(id, now);
    const NodeId old_leaf = heads_[id].path_leaf;
    if (heads_[id].state != State::kExpected) {
      statistics_->run.event(heads_[id].run_class, bucket_of(now - heads_[id].run_since), 1);
      statistics_->learned();
    }
    above = tree_.common_ancestor(old_leaf, call.path_leaf);
    if (above != old_leaf) supersede(id, above, now);
    unhang(id);
  }
  arrive(call.path_leaf, above, id, now);
  if (inferred) {
    for (NodeId node = call.path_leaf; node != kNone; node = tree_.node(node).parent) nodes_[node].owner = id;
  }
  head_of_call_[call.call] = id;

  unlist_ghost(id);
  set_path(id, call.path_leaf);
  Head& head = heads_[id];
  Past& past = pasts_[id];
  head.newest_call = call.call;
  head.state = State::kRunning;
  head.run_since = now;
  ++past.thread_calls;
  const std::uint32_t pages = tree_.path_pages(call.path_leaf);
  past.gaps.call_started(call.prompt_kind, pages, pages - tree_.path_pages(above));
  head.run_class = statistics_->run_class(call.prompt_kind, past.gaps.gap_level());
  hang(id, place_of(call.path_leaf));
  statistics_->rebuild_if_due(now);
}

// The pages of the path of `id` from its fork on become an orphan's.
void SagaPolicy::supersede(HeadId id, NodeId above, Time now) {
  const HeadId orphan = new_head();
  const Head& head = heads_[id];
  Head& old = heads_[orphan];
  const std::uint32_t tail = tree_.path_pages(head.path_leaf) - tree_.path_pages(above);
  set_path(orphan, head.path_leaf);
  old.fork = above;
  old.state = State::kOrphan;
  old.since = now;
  old.parent = id;
  old.parent_serial = head.serial;
  old.wait_class = statistics_->orphan_class(tail, head.came_back);
  for (NodeId node = head.path_leaf; node != above; node = tree_.node(node).parent) nodes_[node].owner = orphan;
  hang(orphan, place_of(head.path_leaf));
  list_ghost(orphan);
}

// The head `id` comes onto the nodes from below `above` to `leaf`.
void SagaPolicy::arrive(NodeId leaf, NodeId above, HeadId id, Time now) {
  for (NodeId n = leaf; n != above; n = tree_.node(n).parent) {
    Node& node = nodes_[n];
    const HeadId owner = node.owner;
    if (owner < kDropped && owner != id && heads_[owner].state == State::kOrphan) {
      const Head& orphan = heads_[owner];
      statistics_->orphan.event(orphan.wait_class, bucket_of(now - orphan.since), 1);
      statistics_->learned();
      if (heads_[orphan.parent].serial == orphan.parent_serial) heads_[orphan.parent].came_back = true;
      free_orphan(owner);
    }
    if (node.threads < kThreadsMost) ++node.threads;
    if (node.known_slot != kNone) {
      Known& known = known_[node.known_slot];
      statistics_->base.event(statistics_->base_class(known.threads), bucket_of(now - known.last_foreign), known.pages);
      statistics_->learned_pages(known.pages);
      known.last_foreign = now;
      known.threads = node.threads;
    } else if (node.threads == 1 && ReuseStatistics::counts_in_base(tree_.sample_key(n))) {
      node.known_slot = static_cast<std::uint32_t>(known_.size());
      known_.push_back({now, n, tree_.node(n).pages, 1});
    }
    node.last_foreign = now;
    node.owner = id;
    touch(n);
  }
}

void SagaPolicy::call_ended(const CallEnd& call, Time now) {
  const HeadId id = std::exchange(head_of_call_[call.call], kNoHead);
  SAGA_ASSERT(id != kNoHead);
  Head& head = heads_[id];
  if (head.newest_call != call.call) return;  // the thread has gone on meanwhile
  Past& past = pasts_[id];
  if (head.path_leaf != call.leaf) {
    unhang(id);
    if (!tree_.on_path(call.leaf, head.path_leaf)) {  // a live tree: the pages of the answer came into being meanwhile
      SAGA_ASSERT(residents_.live != nullptr && tree_.on_path(head.path_leaf, call.leaf));
      arrive(call.leaf, head.path_leaf, id, now);
    } else if (residents_.live != nullptr) {  // pages that it did not get to are nobody's
      for (NodeId node = head.path_leaf; node != call.leaf; node = tree_.node(node).parent) {
        if (nodes_[node].owner == id) nodes_[node].owner = kDropped;
      }
    }
    set_path(id, call.leaf);
    hang(id, place_of(call.leaf));
  }
  if (head.hangs_at != kNone) touch(head.hangs_at);
  if (head.state == State::kLeft) return;
  head.state = State::kIdle;
  head.since = now;
  drop_own_table(head);
  head.own_from = kBuckets;
  head.past = past.gaps.past();
  head.survived = 0;
  past.gaps.call_ended(call.stop_reason, call.tool_class, call.output_tokens,
                       std::uint64_t{past.gaps.path_pages()} * tree_.page_tokens(), now - head.run_since,
                       statistics_->tool_gaps);
  set_wait(id, call);
  list_ghost(id);
}

bool SagaPolicy::call_told(ThreadId thread, const CallEnd& call) {
  const HeadId id = thread < head_of_thread_.size() ? head_of_thread_[thread] : kNoHead;
  if (id == kNoHead || heads_[id].state != State::kIdle) return false;
  Head& head = heads_[id];
  Past& past = pasts_[id];
  drop_own_table(head);
  head.own_from = kBuckets;
  past.gaps.call_told(call.stop_reason, call.tool_class, call.output_tokens,
                      std::uint64_t{past.gaps.path_pages()} * tree_.page_tokens(), head.since - head.run_since,
                      statistics_->tool_gaps);
  set_wait(id, call);
  if (head.hangs_at != kNone) touch(head.hangs_at);
  return true;
}

// By which table the head waits.
void SagaPolicy::set_wait(HeadId id, const CallEnd& call) {
  Head& head = heads_[id];
  const Past& past = pasts_[id];
  if (call.session_end) {
    head.wait = Wait::kEnded;
    head.wait_class = statistics_->ended.child(HazardTree::kRoot, 0);
  } else if (call.declared_gap != kNotDeclared) {
    head.wait = Wait::kDeclared;
    head.wait_class = statistics_->declared_class(call.tool_class, call.declared_gap);
    head.unit = static_cast<double>(call.declared_gap) + kDeclaredShift;
  } else {
    head.wait = Wait::kGap;
    const std::uint32_t calls_so_far = past.inferred ? past.gaps.calls() - 1 : ReuseStatistics::kCallsUnknown;
    head.wait_class = statistics_->gap_class(call.stop_reason, call.tool_class, calls_so_far);
  }
}

void SagaPolicy::call_preempted(CallId call, Time) {
  const HeadId id = head_of_call_[call];
  SAGA_ASSERT(id != kNoHead);
  Head& head = heads_[id];
  if (head.newest_call != call || head.state == State::kLeft) return;
  head.state = State::kWaiting;
  if (head.hangs_at != kNone) touch(head.hangs_at);
}

// An idle head is given up: whether it would have come back is not known.
void SagaPolicy::give_up_wait(HeadId id, Time now) {
  const Head& head = heads_[id];
  const Time age = std::min(now - head.since, ReuseStatistics::kForget);
  switch (head.wait) {
    case Wait::kGap:
      statistics_->gap.censored(head.wait_class, bucket_of(age), 1);
      break;
    case Wait::kEnded:
      statistics_->ended.censored(head.wait_class, bucket_of(age), 1);
      break;
    case Wait::kDeclared:
      statistics_->declared.censored(head.wait_class,
                                     multiple_bucket_of((static_cast<double>(age) + kDeclaredShift) / head.unit), 1);
      break;
  }
}

void SagaPolicy::thread_left(ThreadId thread, Time now) {
  const HeadId id = thread < head_of_thread_.size() ? head_of_thread_[thread] : kNoHead;
  if (id == kNoHead) return;
  Head& head = heads_[id];
  if (head.state == State::kIdle) give_up_wait(id, now);
  head.state = State::kLeft;
  if (head.hangs_at != kNone) touch(head.hangs_at);
  list_ghost(id);
}

void SagaPolicy::thread_expected(ThreadId thread, NodeId leaf, Time now) {
  if (thread >= head_of_thread_.size() || leaf == kNone) return;
  HeadId id = head_of_thread_[thread];
  NodeId above = kNone;
  if (id == kNoHead) {
    id = new_head();
    head_of_thread_[thread] = id;
    pasts_[id].thread = thread;
  } else {
    if (heads_[id].state != State::kLeft) return;  // it is here
    const NodeId old_leaf = heads_[id].path_leaf;
    above = tree_.common_ancestor(old_leaf, leaf);
    if (above != old_leaf) supersede(id, above, now);
    unhang(id);
  }
  arrive(leaf, above, id, now);
  unlist_ghost(id);
  set_path(id, leaf);
  Head& head = heads_[id];
  head.state = State::kExpected;
  head.since = now;
  hang(id, place_of(leaf));
  list_ghost(id);
}

void SagaPolicy::node_resident(NodeId node) {
  const NodeId parent = tree_.node(node).parent;
  if (parent == kNone) {  // who waits for a first node hangs there already
    for (HeadId id = nodes_[node].first_head; id != kNoHead; id = heads_[id].next) {
      if (heads_[id].path_leaf == node) unlist_ghost(id);
    }
    return;
  }
  HeadId id = nodes_[parent].first_head;
  while (id != kNoHead) {
    const HeadId next = heads_[id].next;
    if (tree_.on_path(node, heads_[id].path_leaf)) {
      unhang(id);
      hang(id, node);
      if (heads_[id].path_leaf == node) unlist_ghost(id);
    }
    id = next;
  }
}

void SagaPolicy::node_emptied(NodeId node) {
  const NodeId parent = tree_.node(node).parent;
  if (residents_.live != nullptr) {
    for (HeadId id = nodes_[node].first_head; id != kNoHead; id = heads_[id].next) {
      if (heads_[id].path_leaf == node) list_ghost(id);
    }
  }
  if (parent == kNone) return;
  if (nodes_[node].heads == 1 && nodes_[parent].heads == 0) {
    inherit(node, parent);
    return;
  }
  while (nodes_[node].first_head != kNoHead) {
    const HeadId id = nodes_[node].first_head;
    unhang(id);
    hang(id, parent);
  }
}

// The one head of a node moves up to where none hangs: mostly a branch that goes, node by node. It takes its rating along, if
// that is the head's alone.
void SagaPolicy::inherit(NodeId node, NodeId parent) {
  Node& from = nodes_[node];
  Node& to = nodes_[parent];
  heads_[from.first_head].hangs_at = parent;
  to.first_head = std::exchange(from.first_head, kNoHead);
  to.heads = std::exchange(from.heads, std::uint16_t{0});
  if (from.key_slot == kNone || to.key_slot != kNone || from.stale || from.threads > 1 || to.threads > 1) {
    touch(node);
    touch(parent);
    return;
  }
  to.key_slot = std::exchange(from.key_slot, kNone);
  KeyEntry entry = keys_[to.key_slot];
  entry.node = parent;
  rekey(entry);
  to.timer = std::exchange(from.timer, kNone);
  timers_[to.timer].node = parent;
  look_at(parent);
}

// ---- Learning -------------------------------------------------------------------------------------------------------------

void SagaPolicy::gap_ended(HeadId id, Time now) {
  Head& head = heads_[id];
  const Time gap = now - head.since;
  const std::uint32_t bucket = bucket_of(gap);
  switch (head.wait) {
    case Wait::kGap: {
      statistics_->gap.event(head.wait_class, bucket, 1);
      const GapHistory& gaps = pasts_[id].gaps;
      if (gaps.past()) {
        statistics_->correction.learn(statistics_->gap, head.wait_class, gaps.features(), head.survived,
                                      GapCorrection::group_of(bucket), true);
      }
      break;
    }
    case Wait::kEnded:
      statistics_->ended.event(head.wait_class, bucket, 1);
      break;
    case Wait::kDeclared:
      statistics_->declared.event(head.wait_class,
                                  multiple_bucket_of((static_cast<double>(gap) + kDeclaredShift) / head.unit), 1);
      break;
  }
  statistics_->learned();
  pasts_[id].gaps.gap_ended(gap, statistics_->tool_gaps);
}

void SagaPolicy::learn_survived(HeadId id, std::uint32_t groups) {
  Head& head = heads_[id];
  const GapHistory& gaps = pasts_[id].gaps;
  if (groups <= head.survived || !gaps.past()) return;
  statistics_->correction.learn(statistics_->gap, head.wait_class, gaps.features(), head.survived, groups, false);
  head.survived = static_cast<std::uint8_t>(groups);
}

void SagaPolicy::count_open_waits(Time now) {
  // `now` is that of the cache that asks for the count; one that shares the statistics may be a little ahead of it.
  const auto age_since = [now](Time since) {
    return since < now ? std::min(now - since, ReuseStatistics::kForget) : 0;
  };
  for (HeadId id = 0; id < heads_.size(); ++id) {
    Head& head = heads_[id];
    if (head.state == State::kFree) continue;
    if (head.state == State::kOrphan) {
      const Time age = age_since(head.since);
      if (age >= ReuseStatistics::kForget) {
        statistics_->orphan.censored(head.wait_class, bucket_of(ReuseStatistics::kForget), 1);
        free_orphan(id);
      } else {
        statistics_->orphan.open(head.wait_class, bucket_of(age), 1);
      }
      continue;
    }
    if (head.state == State::kLeft || head.state == State::kExpected) continue;
    statistics_->run.open(head.run_class, bucket_of(age_since(head.run_since)), 1);
    if (head.state != State::kIdle) continue;
    const Time age = age_since(head.since);
    const std::uint32_t bucket = bucket_of(age);
    switch (head.wait) {
      case Wait::kGap:
        statistics_->gap.open(head.wait_class, bucket, 1);
        learn_survived(id, GapCorrection::group_of(bucket));
        // A table is that of its time: what it is made of is about to change.
        if (head.own_from < kBuckets && bucket < GapCorrection::kEnd) (void)own_table(id);
        break;
      case Wait::kEnded:
        statistics_->ended.open(head.wait_class, bucket, 1);
        break;
      case Wait::kDeclared:
        statistics_->declared.open(head.wait_class,
                                   multiple_bucket_of((static_cast<double>(age) + kDeclaredShift) / head.unit), 1);
        break;
    }
  }
  for (const Known& known : known_) {
    statistics_->base.open(statistics_->base_class(known.threads), bucket_of(age_since(known.last_foreign)),
                           known.pages);
  }
}

// ---- Values ---------------------------------------------------------------------------------------------------------------

// A bound holds for the four buckets from `bucket` on, and for as many more as keep it above four times the key of the last
// victim: it matters when it comes near that. `part`: of a bound alone.
void SagaPolicy::add_value(Rating& rating, const IndexValue* index, std::uint32_t bucket, std::uint32_t end, Time since,
                           double part) const {
  IndexValue value = index[bucket];
  std::uint32_t last = bucket;
  if (!rating.exact) {
    while (last + 1 < end) {
      const IndexValue next = index[last + 1];
      if (last + 1 >= bucket + kBoundBuckets && next < rating.floor) break;
      value = std::min(value, next);
      ++last;
    }
    if (part < 1) value = static_cast<IndexValue>(part * static_cast<double>(value));
  }
  rating.key = add(rating.key, value);
  if (last + 1 < kBuckets) rating.until = std::min(rating.until, since + bucket_start(last + 1));
}

void SagaPolicy::add_head(Rating& rating, HeadId id, Time now) {
  const Head& head = heads_[id];
  switch (head.state) {
    case State::kRunning:
      rating.tie = std::max(rating.tie, head.run_since);
      add_value(rating, statistics_->run.index(head.run_class), bucket_of(now - head.run_since), kBuckets,
                head.run_since);
      return;
    case State::kWaiting:
      rating.tie = std::max(rating.tie, head.run_since);
      rating.key = kCertain;
      return;
    case State::kOrphan:
      rating.tie = std::max(rating.tie, head.since);
      add_value(rating, statistics_->orphan.index(head.wait_class), bucket_of(now - head.since), kBuckets, head.since);
      return;
    case State::kExpected:  // where its wait began is known to the worker that it came from
      rating.tie = std::max(rating.tie, head.since);
      add_value(rating, statistics_->gap.index(HazardTree::kRoot), bucket_of(now - head.since), kBuckets, head.since);
      return;
    case State::kLeft:
    case State::kFree:
      return;
    case State::kIdle:
      break;
  }
  rating.tie = std::max(rating.tie, head.since);
  const Time age = now - head.since;
  if (head.wait == Wait::kEnded) {
    add_value(rating, statistics_->ended.index(head.wait_class), bucket_of(age), kBuckets, head.since);
    return;
  }
  if (head.wait == Wait::kGap) {
    add_gap(rating, id, now);
    return;
  }
  // Declared: in multiples of it.
  const HazardTable& table = statistics_->declared.table(head.wait_class);
  const BucketGrid& grid = statistics_->declared.grid();
  const std::uint32_t bucket = multiple_bucket_of((static_cast<double>(age) + kDeclaredShift) / head.unit);
  double value = table.index[bucket];
  std::uint32_t last = bucket;
  if (!rating.exact) {
    last = std::min(bucket + kBoundBuckets - 1, kBuckets - 1);
    for (std::uint32_t k = bucket + 1; k <= last; ++k) value = std::min(value, table.index[k]);
  }
  rating.key = add(rating.key, to_index_value(value / (head.unit * kMicroseconds)));
  if (last + 1 < kBuckets) {
    // The first whole microsecond that surely lies in the next bucket.
    const double border = grid.start[last + 1] * head.unit - kDeclaredShift;
    rating.until = std::min(rating.until, head.since + static_cast<Time>(border < 0 ? 0 : border) + 1);
  }
}

// By the table of its class; or if its past says more by its own, which is begun when it is first needed (that is, not for a
// thread that is back before anything is evicted) and filled when a bound of it will not do any more.
void SagaPolicy::add_gap(Rating& rating, HeadId id, Time now) {
  Head& head = heads_[id];
  const std::uint32_t bucket = bucket_of(now - head.since);
  const GapCorrection& correction = statistics_->correction;
  const bool plain = !head.past || (head.own_from == kBuckets && !correction.active());
  if (plain || bucket >= GapCorrection::kEnd) {
    add_value(rating, statistics_->gap.index(head.wait_class), bucket, kBuckets, head.since);
    return;
  }
  if (head.own_from == kBuckets) {
    pasts_[id].shift = correction.shift(pasts_[id].gaps.features());
    head.own_from = static_cast<std::uint8_t>(bucket);
  }
  if (rating.exact || head.own_table != kNone) {
    add_value(rating, own_table(id), bucket, GapCorrection::kEnd, head.since);
  } else {
    add_value(rating, statistics_->gap.index(head.wait_class), bucket, GapCorrection::kEnd, head.since,
              correction.least_part(pasts_[id].shift, bucket));
  }
}

// The head's own table, from the bucket own_from on.
const IndexValue* SagaPolicy::own_table(HeadId id) {
  Head& head = heads_[id];
  if (head.own_table == kNone) {
    if (free_own_tables_.empty()) {
      head.own_table = static_cast<std::uint32_t>(own_tables_.size());
      own_tables_.emplace_back();
    } else {
      head.own_table = free_own_tables_.back();
      free_own_tables_.pop_back();
    }
    statistics_->correction.predict(statistics_->gap, head.wait_class, pasts_[id].shift, head.own_from,
                                    own_tables_[head.own_table].data());
  }
  return own_tables_[head.own_table].data();
}

void SagaPolicy::drop_own_table(Head& head) {
  if (head.own_table != kNone) free_own_tables_.push_back(std::exchange(head.own_table, kNone));
}

SagaPolicy::Rating SagaPolicy::rate(NodeId node, Time now, bool exact) {
  Rating rating{0, 0, kNever, 4 * level_, exact};
  const Node& state = nodes_[node];
  for (HeadId id = state.first_head; id != kNoHead; id = heads_[id].next) add_head(rating, id, now);
  if (state.threads >= 2) {
    rating.tie = std::max(rating.tie, state.last_foreign);
    add_value(rating, statistics_->base.index(statistics_->base_class(state.threads)),
              bucket_of(now - state.last_foreign), kBuckets, state.last_foreign);
  }
  return rating;
}

double SagaPolicy::reuse_probability(NodeId node, Time now, Time span) const {
  double none = 1;  // of them comes back
  const BucketGrid& seconds = second_grid();
  const double span_seconds = static_cast<double>(span) * kMicroseconds;
  for (HeadId id = nodes_[node].first_head; id != kNoHead; id = heads_[id].next) {
    const Head& head = heads_[id];
    const double age = static_cast<double>(now - head.since) * kMicroseconds;
    switch (head.state) {
      case State::kRunning:
      case State::kWaiting:
        return 1;
      case State::kOrphan:
        none *= 1 - statistics_->orphan.table(head.wait_class).event_within(seconds, age, span_seconds);
        break;
      case State::kExpected:
        none *= 1 - statistics_->gap.table(HazardTree::kRoot).event_within(seconds, age, span_seconds);
        break;
      case State::kLeft:
      case State::kFree:
        break;
      case State::kIdle:
        if (head.wait == Wait::kGap) {
          none *= 1 - statistics_->gap.table(head.wait_class).event_within(seconds, age, span_seconds);
        } else if (head.wait == Wait::kEnded) {
          none *= 1 - statistics_->ended.table(head.wait_class).event_within(seconds, age, span_seconds);
        } else {
          const double multiple = (static_cast<double>(now - head.since) + kDeclaredShift) / head.unit;
          none *= 1 - statistics_->declared.table(head.wait_class)
                          .event_within(multiple_grid(), multiple, static_cast<double>(span) / head.unit);
        }
        break;
    }
  }
  const Node& state = nodes_[node];
  if (state.threads >= 2) {
    const auto known = std::min<std::uint32_t>(state.threads, 7);
    const double age = static_cast<double>(now - state.last_foreign) * kMicroseconds;
    none *= 1 - statistics_->base.table(statistics_->base_class(known)).event_within(seconds, age, span_seconds);
  }
  return 1 - none;
}

std::uint64_t SagaPolicy::memory_bytes() const {
  return nodes_.size() * sizeof(Node) + heads_.size() * (sizeof(Head) + sizeof(Past)) +
         own_tables_.size() * sizeof(OwnTable) + known_.size() * sizeof(Known) +
         (free_heads_.size() + head_of_thread_.size() + head_of_call_.size()) * sizeof(NodeId) +
         timers_.size() * sizeof(Timer) + keys_.size() * (sizeof(KeyEntry) + sizeof(IndexValue));
}

// ---- Candidates ------------------------------------------------------------------------------------------------------------

bool SagaPolicy::before(const KeyEntry& a, const KeyEntry& b) const {
  if (a.key != b.key) return a.key < b.key;
  if (a.tie != b.tie) return a.tie < b.tie;
  const std::uint32_t depth_a = tree_.node(a.node).end_page();
  const std::uint32_t depth_b = tree_.node(b.node).end_page();
  return depth_a != depth_b ? depth_a > depth_b : a.node < b.node;
}

void SagaPolicy::key_up(std::uint32_t slot, KeyEntry entry) {
  while (slot > 0) {
    const std::uint32_t above = (slot - 1) / 2;
    if (!before(entry, keys_[above])) break;
    set_key(slot, keys_[above]);
    slot = above;
  }
  set_key(slot, entry);
}

void SagaPolicy::key_down(std::uint32_t slot, KeyEntry entry) {
  while (true) {
    std::uint32_t child = 2 * slot + 1;
    if (child >= near_) break;
    if (child + 1 < near_ && before(keys_[child + 1], keys_[child])) ++child;
    if (!before(keys_[child], entry)) break;
    set_key(slot, keys_[child]);
    slot = child;
  }
  set_key(slot, entry);
}

void SagaPolicy::key_moved(std::uint32_t slot, const KeyEntry& entry) {
  if (slot > 0 && before(entry, keys_[(slot - 1) / 2])) {
    key_up(slot, entry);
  } else {
    key_down(slot, entry);
  }
}

// The candidate at `slot` of the others goes into the heap.
void SagaPolicy::make_near(std::uint32_t slot, const KeyEntry& entry) {
  if (slot != near_) set_key(slot, keys_[near_]);
  key_up(near_++, entry);
}

// Out of the heap, to the first place behind it.
void SagaPolicy::make_far(std::uint32_t slot, const KeyEntry& entry) {
  if (slot != --near_) key_moved(slot, keys_[near_]);
  set_key(near_, entry);
}

// A candidate has another key.
void SagaPolicy::rekey(const KeyEntry& entry) {
  const std::uint32_t slot = nodes_[entry.node].key_slot;
  const bool near = entry.key <= near_most_;
  if (slot < near_) {
    near ? key_moved(slot, entry) : make_far(slot, entry);
  } else if (near) {
    make_near(slot, entry);
  } else {
    keys_[slot] = entry;
  }
}

// The heap is empty: the smallest keys form the next one. A part of them, so that what this costs is shared by as many.
void SagaPolicy::bring_near() {
  scratch_.clear();
  for (const KeyEntry& entry : keys_) scratch_.push_back(entry.key);
  const std::size_t wanted = std::min(std::max(kNearLeast, scratch_.size() / kNearPart), scratch_.size());
  const auto last = scratch_.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
  std::nth_element(scratch_.begin(), last, scratch_.end());
  near_most_ = *last;
  for (std::uint32_t slot = 0; slot < keys_.size(); ++slot) {
    if (keys_[slot].key <= near_most_) make_near(slot, KeyEntry(keys_[slot]));
  }
}

SagaPolicy::TimerId SagaPolicy::new_timer(NodeId node) {
  TimerId id = free_timer_;
  if (id == kNone) {
    id = static_cast<TimerId>(timers_.size());
    timers_.emplace_back();
  } else {
    free_timer_ = timers_[id].next;
  }
  timers_[id] = {kNoTimer, node, kNone, kNone};
  return id;
}

void SagaPolicy::set_timer(TimerId id, Time until) {
  Timer& timer = timers_[id];
  if (timer.until == until) return;
  clear_timer(id);
  if (until >= kNoTimer) return;
  TimerId& first = timer_list(until);
  timer.until = until;
  timer.next = first;
  if (first != kNone) timers_[first].previous = id;
  first = id;
}

void SagaPolicy::clear_timer(TimerId id) {
  Timer& timer = timers_[id];
  if (timer.until >= kNoTimer) return;
  (timer.previous == kNone ? timer_list(timer.until) : timers_[timer.previous].next) = timer.next;
  if (timer.next != kNone) timers_[timer.next].previous = timer.previous;
  timer = {kNoTimer, timer.node, kNone, kNone};
}

// Of the lists up to that of `now` every time is over, but for some of the last, which are listed anew: the others have the bit
// that differs in common with `timed_to_` and `now`.
void SagaPolicy::renew_due(Time now) {
  const auto lists = static_cast<std::uint32_t>(std::bit_width(now ^ timed_to_));
  timed_to_ = now;
  for (std::uint32_t list = 1; list <= lists; ++list) {
    TimerId next = std::exchange(timer_lists_[list], kNone);
    while (next != kNone) {
      const TimerId id = next;
      Timer& timer = timers_[id];
      const Time until = timer.until;
      next = timer.next;
      timer = {kNoTimer, timer.node, kNone, kNone};
      if (until <= now) {
        renew(timer.node, now);
      } else {
        set_timer(id, until);
      }
    }
  }
}

void SagaPolicy::put(NodeId node, const Rating& rating) {
  const KeyEntry entry{rating.key, rating.tie, node, rating.exact};
  if (nodes_[node].key_slot == kNone) {
    nodes_[node].key_slot = static_cast<std::uint32_t>(keys_.size());
    nodes_[node].timer = new_timer(node);
    keys_.push_back(entry);
  }
  rekey(entry);
  set_timer(nodes_[node].timer, rating.until);
}

void SagaPolicy::remove(NodeId node) {
  std::uint32_t slot = nodes_[node].key_slot;
  if (slot < near_) {
    make_far(slot, KeyEntry(keys_[slot]));
    slot = near_;
  }
  const KeyEntry last = keys_.back();
  keys_.pop_back();
  if (last.node != node) set_key(slot, last);
  nodes_[node].key_slot = kNone;
  const TimerId timer = std::exchange(nodes_[node].timer, kNone);
  clear_timer(timer);
  timers_[timer].next = std::exchange(free_timer_, timer);
}

void SagaPolicy::rate_all(Time now) {
  near_ = 0;
  near_most_ = 0;
  for (std::uint32_t slot = 0; slot < keys_.size(); ++slot) {
    const NodeId node = keys_[slot].node;
    put(node, rate(node, now, false));
  }
}

void SagaPolicy::bring_up_to_date(Time now) {
  for (const NodeId node : touched_) {
    Node& state = nodes_[node];
    const bool holds = state.key_slot != kNone && !state.stale;
    state.touched = false;
    state.stale = false;
    if (!residents_.is_candidate(node)) {
      if (state.key_slot != kNone) remove(node);
    } else if (!holds) {
      renew(node, now);
    }
  }
  touched_.clear();
  if (generation_ != statistics_->generation()) {
    generation_ = statistics_->generation();
    rate_all(now);
  }
  if (now != timed_to_) renew_due(now);
}

// A bound will do unless it comes to the top. What comes before the last victim will, most likely.
void SagaPolicy::renew(NodeId node, Time now) {
  if (node != next_of_branch_) {
    const Rating bound = rate(node, now, false);
    if (bound.key > (near_ == 0 ? near_most_ : keys_.front().key)) {
      put(node, bound);
      return;
    }
  }
  put(node, rate(node, now, true));
}

Victim SagaPolicy::victim(Time now) {
  bring_up_to_date(now);
  if (keys_.empty()) return {};
  while (true) {
    if (near_ == 0) bring_near();
    if (keys_.front().exact) break;
    const NodeId node = keys_.front().node;
    put(node, rate(node, now, true));
  }
  const NodeId node = keys_.front().node;
  level_ = keys_.front().key;
  next_of_branch_ = tree_.node(node).parent;
  return {node, residents_.nodes[node].pages};
}

bool SagaPolicy::verify() const {
  if (!statistics_->verify()) return false;
  std::size_t used = 0;
  std::size_t listed = 0;
  std::size_t hanging = 0;
  std::size_t timed = 0;
  for (HeadId id = 0; id < heads_.size(); ++id) {
    const Head& head = heads_[id];
    if (head.state == State::kFree) continue;
    ++used;
    if (head.hangs_at == kNone) {
      if (head.state == State::kRunning && head.path_leaf != kNone) return false;
      continue;
    }
    if (head.hangs_at != place_of(head.path_leaf)) return false;
    ++hanging;
  }
  if (used + free_heads_.size() != heads_.size() || pasts_.size() != heads_.size()) return false;
  for (NodeId node = 0; node < nodes_.size(); ++node) {
    const Node& state = nodes_[node];
    HeadId previous = kNoHead;
    std::uint32_t heads = 0;
    for (HeadId id = state.first_head; id != kNoHead; previous = id, id = heads_[id].next) {
      if (heads_[id].hangs_at != node || heads_[id].previous != previous || ++listed > hanging) return false;
      ++heads;
    }
    if (heads != state.heads) return false;
    if (state.owner < kDropped && heads_[state.owner].state == State::kFree) return false;
    if ((state.threads > 0) != (state.owner != kNoHead)) return false;
    if ((state.key_slot == kNone) != (state.timer == kNone)) return false;
    if (state.key_slot != kNone) {
      if (state.key_slot >= keys_.size() || keys_[state.key_slot].node != node) return false;
      if (state.timer >= timers_.size() || timers_[state.timer].node != node) return false;
      timed += timers_[state.timer].until < kNoTimer;
    }
    if (residents_.live != nullptr && state.threads > 0 && !tree_.is_known(node)) return false;
    if (!state.touched && (state.key_slot != kNone) != residents_.is_candidate(node)) return false;
  }
  if (listed != hanging || near_ > keys_.size()) return false;
  for (std::uint32_t slot = 0; slot < keys_.size(); ++slot) {
    if ((slot < near_) != (keys_[slot].key <= near_most_)) return false;
    if (slot > 0 && slot < near_ && before(keys_[slot], keys_[(slot - 1) / 2])) return false;
  }
  for (std::uint32_t list = 0; list < kTimerLists; ++list) {
    TimerId before_it = kNone;
    for (TimerId id = timer_lists_[list]; id != kNone; before_it = id, id = timers_[id].next) {
      const Timer& timer = timers_[id];
      if (timer.until <= timed_to_ || timer.until >= kNoTimer || timer.previous != before_it) return false;
      if (static_cast<std::uint32_t>(std::bit_width(timer.until ^ timed_to_)) != list || timed-- == 0) return false;
    }
  }
  if (timed != 0) return false;
  HeadId previous = kNoHead;
  std::size_t ghosts = 0;
  for (HeadId id = oldest_ghost_; id != kNoHead; previous = id, id = heads_[id].newer_ghost) {
    if (!heads_[id].ghost || heads_[id].older_ghost != previous || ++ghosts > used) return false;
  }
  for (const Head& head : heads_) {
    if (residents_.live == nullptr || head.state == State::kFree) continue;
    if (head.ghost) --ghosts;
    const bool busy = head.state == State::kRunning || head.state == State::kWaiting;
    const bool gone = head.hangs_at == kNone || residents_.nodes[head.path_leaf].pages == 0;
    if (busy ? head.ghost : gone && !head.ghost) return false;
  }
  if (ghosts != 0 || newest_ghost_ != previous) return false;
  for (std::uint32_t slot = 0; slot < known_.size(); ++slot) {
    const Known& known = known_[slot];
    const Node& node = nodes_[known.node];
    if (node.known_slot != slot || node.last_foreign != known.last_foreign || node.threads != known.threads)
      return false;
    if (tree_.node(known.node).pages != known.pages) return false;
  }
  return true;
}

}  // namespace saga
