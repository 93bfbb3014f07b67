// SagaPolicy: the Hazard Gittins Index. Keeps the pages with the most expected hits for each page-second of room.
//
// A **head** is a live branch: the newest call of a thread (running, or idle since it ended), or a superseded prompt, an
// **orphan**. It hangs at the deepest resident node of its path; if none is resident, at the first node of the path. The
// **value** of a head is the index G(age) of its class table at the time that it has been waiting (evict/reuse_statistics.hpp,
// graph/hazard.hpp); with the correction its own table. The key of a leaf is the sum over the heads that hang there, plus a
// term for new users where several threads have come onto it. The candidate with the smallest key goes; of equals the one
// whose youngest head is oldest, then the deepest, then the smallest number. Values are integers (fixed point), so a sum does
// not depend on its order.
//
//   states of a head  running    its newest call has not ended. Its pages are pinned; where they are not (atomic model) it
//                                counts by the table of starts
//                     waiting    preempted: certain to come back, more than anything else
//                     idle       its call has ended; by stop reason and tool, or by the declared duration, or as ended
//                     orphan     superseded; gone when somebody comes onto one of its pages beyond the fork
//                     left       thread_left(): worth nothing until its thread calls again
//                     expected   thread_expected(): its pages were copied here; by the table of all gaps, from the copy on
//
// Where a call comes without a thread its head is inferred: the head that used its deepest known page last, if that is at least
// the second page, the head is no orphan, and its path goes at most one page further. So it is where a thread id is new and the
// head found is idle and of a thread that has called once: ids that are new for each call say nothing.
//
// **Live trees.** A head holds the last page of its path, so what it has to know of pages that are gone stays known; how much
// that is, the owner bounds by forget_oldest(). What a head forgotten had waited counts as censored.
//
// **Structures.** Notifications only mark nodes; victim() brings them up to date. A candidate has a lower bound of its key; only
// what comes to the top is computed exactly. The candidates with the smallest keys form a heap; the others, whom most of what
// happens befalls, lie in no order, and when the heap is empty the smallest eighth of them is the next. The times when bounds
// must be renewed are listed by the highest bit in which they differ from the present: to set one is O(1), and until it is due
// it moves from list to list once a bit at most. A bound holds for at least an octave of age, and on for as long as it stays
// well above the key of the last victim: what is not about to go is left alone. A table of a head's own is begun (the weights
// of then are kept) when the head is first rated and filled when a bound by the table of its class will not do any more, at the
// latest when that one changes. A branch that goes, node by node, takes its rating along. So a call that returns before
// anything was evicted costs neither heap nor lists anything. All candidates are rated anew when the tables were rebuilt.
//
// Cost: a start O(nodes that the path gained or lost), an end O(1), a decision O(log candidates) on average, for as many pages
// as the node has. Memory: 32 bytes a node, 24 more for those of the sample, 56 a candidate; about 300 bytes a head, 456 more
// while it has a table of its own; one head a thread (a call, where they are inferred; memory for one a thread is touched at
// construction, so that calls meet no page faults), and orphans until they are 40,000 s old.
// Invariants: verify().
#pragma once

#include <array>
#include <bit>
#include <memory>
#include <vector>

#include "eviction_policy.hpp"
#include "gap_history.hpp"
#include "reuse_statistics.hpp"

namespace saga {

class SagaPolicy final : public EvictionPolicy, private OpenWaits {
 public:
  // `shared` must outlive the policy; nullptr: it learns for itself alone.
  explicit SagaPolicy(const ResidentSet& residents, ReuseStatistics* shared = nullptr);
  ~SagaPolicy() override;

  void call_started(const CallStart& call, Time now) override;
  void call_ended(const CallEnd& call, Time now) override;
  void call_preempted(CallId call, Time now) override;
  void thread_left(ThreadId thread, Time now) override;
  void thread_expected(ThreadId thread, NodeId leaf, Time now) override;
  void node_resident(NodeId node) override;
  void node_emptied(NodeId node) override;
  void candidate_added(NodeId node) override { look_at(node); }
  void candidate_removed(NodeId node) override {
    if (nodes_[node].key_slot != kNone) look_at(node);
  }
  void node_forgotten(NodeId node) override;
  Victim victim(Time now) override;
  bool verify() const override;

  // How the newest call of the thread ended, as it turned out during the gap that follows: its wait goes on by the class that
  // call_ended() would have given it, from the same moment on. False, and nothing happens, if the thread is not in a gap.
  bool call_told(ThreadId thread, const CallEnd& call);

  // Live trees. Forgets the head whose last page left the cache first, of those that neither run nor wait; false if there is
  // none.
  bool forget_oldest(Time now);
  // Whether forget_oldest() must have been called before `more` heads can be made without going beyond `most`.
  bool has_room(std::uint32_t more, std::uint32_t most) const { return heads() + more <= most; }
  // Threads without a head from now on; their ids can be used again. The owner empties it.
  std::vector<ThreadId>& forgotten_threads() { return forgotten_threads_; }

  std::uint32_t heads() const { return static_cast<std::uint32_t>(heads_.size() - free_heads_.size()); }
  std::uint64_t memory_bytes() const;

  // P(somebody who uses this resident node, a leaf of the resident tree, comes back within `span` from now on).
  double reuse_probability(NodeId node, Time now, Time span) const;

  const ReuseStatistics& statistics() const { return *statistics_; }

  // The key of a candidate, from scratch: what victim() goes by.
  IndexValue key_of(NodeId node, Time now) { return rate(node, now, true).key; }

 private:
  using HeadId = std::uint32_t;
  using ClassId = HazardTree::ClassId;

  enum class State : std::uint8_t { kRunning, kWaiting, kIdle, kOrphan, kLeft, kExpected, kFree };
  enum class Wait : std::uint8_t { kGap, kDeclared, kEnded };

  struct Head {
    NodeId path_leaf = kNone;
    NodeId fork = kNone;  // orphan: the last node that it has in common with its parent's next prompt
    NodeId hangs_at = kNone;
    HeadId previous = kNone, next = kNone;  // at the same node
    Time since = 0;                         // begin of the present wait
    Time run_since = 0;                     // start of the newest call
    double unit = 1;                        // kDeclared: microseconds of one multiple
    ClassId wait_class = 0;
    ClassId run_class = 0;
    CallId newest_call = kNone;
    HeadId parent = kNone;  // orphan: the head that it was superseded by, with its serial number
    std::uint32_t parent_serial = 0;
    std::uint32_t serial = 0;
    HeadId older_ghost = kNone, newer_ghost = kNone;  // live trees: the list of ghosts
    std::uint32_t own_table = kNone;                  // its own table, place in own_tables_; kNone: not filled yet
    std::uint8_t own_from = kBuckets;  // first bucket of its own table; kBuckets: it goes by that of its class
    std::uint8_t survived = 0;         // groups of the correction that were counted as survived
    bool past = false;                 // there is something to correct its gap by
    bool ghost = false;                // in that list
    bool came_back = false;            // somebody has come back to an orphan of this head
    State state = State::kFree;
    Wait wait = Wait::kGap;
  };

  // What is kept of a head that is no orphan.
  struct Past {
    GapHistory gaps;
    GapCorrection::Shift shift{};    // what its own table is made of
    ThreadId thread = kNone;         // whose it is, if its id was told
    std::uint32_t thread_calls = 0;  // since it is
    bool inferred = false;           // no thread id
  };

  struct Node {
    Time last_foreign = 0;
    HeadId owner = kNone;
    HeadId first_head = kNone;
    std::uint32_t key_slot = kNone;
    std::uint32_t timer = kNone;
    std::uint32_t known_slot = kNone;  // place in known_
    std::uint16_t heads = 0;           // that hang here
    std::uint8_t threads = 0;          // that ever came onto it, saturating
    bool touched : 1 = false;          // in touched_
    bool stale : 1 = false;            // and its rating does not hold any more
  };

  // A node that some thread has come onto, of the sample of `base`: what counting needs of it, side by side.
  struct Known {
    Time last_foreign;
    NodeId node;
    std::uint32_t pages;
    std::uint32_t threads;
  };
  using OwnTable = std::array<IndexValue, GapCorrection::kEnd>;

  // How a candidate stands: its key or a bound of it, and until when that holds.
  struct Rating {
    IndexValue key;
    Time tie;  // when the youngest of its users came
    Time until;
    IndexValue floor;  // so far a bound may fall
    bool exact;
  };
  struct KeyEntry {
    IndexValue key;
    Time tie;
    NodeId node;
    bool exact;
  };
  using TimerId = std::uint32_t;
  // Of a candidate: when its rating must be renewed, and neighbours among those of about the same time.
  struct Timer {
    Time until = kNoTimer;
    NodeId node = kNone;
    TimerId previous = kNone;
    TimerId next = kNone;  // of one that is free: the next free one
  };
  static constexpr Time kNoTimer = Time{1} << 62;  // from here on it holds for ever
  static constexpr std::uint32_t kTimerLists = 63;

  static constexpr HeadId kNoHead = kNone;
  static constexpr std::uint32_t kMostHeads = 32;
  static constexpr HeadId kDropped = kNone - 1;  // owner: an orphan that is gone

  HeadId new_head();
  void free_orphan(HeadId id);
  HeadId infer(NodeId path_leaf) const;
  HeadId adopt(const CallStart& call);
  void supersede(HeadId id, NodeId above, Time now);
  void arrive(NodeId leaf, NodeId above, HeadId id, Time now);
  void hang(HeadId id, NodeId node);
  void give_up_oldest(NodeId node);
  void unhang(HeadId id);
  NodeId place_of(NodeId path_leaf) const;
  void set_path(HeadId id, NodeId leaf);
  void list_ghost(HeadId id);
  void unlist_ghost(HeadId id);
  void set_wait(HeadId id, const CallEnd& call);
  void give_up_wait(HeadId id, Time now);
  void gap_ended(HeadId id, Time now);
  void learn_survived(HeadId id, std::uint32_t groups);
  void count_open_waits(Time now) override;

  // Whether the node is a candidate, victim() has to find out.
  void look_at(NodeId node) {
    if (nodes_[node].touched) return;
    nodes_[node].touched = true;
    touched_.push_back(node);
  }
  // What its rating goes by has changed. A node that has none is rated when it becomes a candidate.
  void touch(NodeId node) {
    if (nodes_[node].key_slot == kNone) return;
    nodes_[node].stale = true;
    look_at(node);
  }
  void bring_up_to_date(Time now);
  void rate_all(Time now);
  void renew(NodeId node, Time now);
  Rating rate(NodeId node, Time now, bool exact);
  void add_value(Rating& rating, const IndexValue* index, std::uint32_t bucket, std::uint32_t end, Time since,
                 double part = 1) const;
  void add_head(Rating& rating, HeadId id, Time now);
  void add_gap(Rating& rating, HeadId id, Time now);
  const IndexValue* own_table(HeadId id);
  void drop_own_table(Head& head);
  void inherit(NodeId node, NodeId parent);

  bool before(const KeyEntry& a, const KeyEntry& b) const;
  void put(NodeId node, const Rating& rating);
  void remove(NodeId node);
  void key_up(std::uint32_t slot, KeyEntry entry);
  void key_down(std::uint32_t slot, KeyEntry entry);
  void key_moved(std::uint32_t slot, const KeyEntry& entry);
  void set_key(std::uint32_t slot, const KeyEntry& entry) {
    keys_[slot] = entry;
    nodes_[entry.node].key_slot = slot;
  }
  void rekey(const KeyEntry& entry);
  void make_near(std::uint32_t slot, const KeyEntry& entry);
  void make_far(std::uint32_t slot, const KeyEntry& entry);
  void bring_near();
  TimerId& timer_list(Time until) { return timer_lists_[static_cast<std::size_t>(std::bit_width(until ^ timed_to_))]; }
  TimerId new_timer(NodeId node);
  void set_timer(TimerId id, Time until);
  void clear_timer(TimerId id);
  void renew_due(Time now);

  const ResidentSet& residents_;
  const PageTree& tree_;
  std::unique_ptr<ReuseStatistics> own_statistics_;
  ReuseStatistics* const statistics_;
  std::uint64_t generation_ = 0;
  std::vector<Node> nodes_;
  std::vector<Head> heads_;
  std::vector<Past> pasts_;  // by head; orphans leave theirs unused
  std::vector<OwnTable> own_tables_;
  std::vector<std::uint32_t> free_own_tables_;
  std::vector<HeadId> free_heads_;
  std::vector<ThreadId> forgotten_threads_;
  // Live trees: heads that neither run nor wait and whose last page is not resident (or that hang nowhere), in the order in
  // which they became so. Not those that have not been looked at since somebody else brought their last page back.
  HeadId oldest_ghost_ = kNone;
  HeadId newest_ghost_ = kNone;
  std::uint32_t next_serial_ = 0;
  std::vector<HeadId> head_of_thread_;
  std::vector<HeadId> head_of_call_;  // for calls whose end is still to come
  std::vector<Known> known_;
  std::vector<NodeId> touched_;
  IndexValue level_ = 0;           // key of the last victim
  NodeId next_of_branch_ = kNone;  // its parent
  // Candidates: `near_` of them, those with keys up to near_most_, as a heap; behind it the others, in no order.
  std::vector<KeyEntry> keys_;
  std::uint32_t near_ = 0;
  IndexValue near_most_ = 0;
  std::vector<IndexValue> scratch_;
  // In list b the times whose highest bit that differs from timed_to_ is bit b - 1; all are later than timed_to_.
  std::vector<Timer> timers_;
  std::array<TimerId, kTimerLists> timer_lists_;
  TimerId free_timer_ = kNone;
  Time timed_to_ = 0;
};

}  // namespace saga
