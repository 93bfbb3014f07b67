// Lineage: which workflow a call belongs to, told by its chain of block hashes.
//
// A prompt that begins with all that an earlier call's prompt was (but for its last few blocks, which clients rewrite)
// continues that call's workflow. Kept is a trie of the chains of all known calls, a node a block: equal hash means
// equal prefix, so a node is found by one probe, and the deepest known block of a prompt by a binary search over its
// hashes (the trie is closed under prefixes).
//
// A **head** is the newest prompt of one line of calls; it hangs at the node of its last block. A workflow has one head
// or several. A prompt of which d leading blocks are known is, in this order:
//   kContinued   a head hangs at block d, within `slack_blocks` behind it on that line, or else, nearest first, above
//                it (two workflows with the same content share their nodes), and does not run: the next call of that
//                line. A superseded head comes back to life this way.
//   kForked      the deepest common block belongs to a line of which no other workflow uses it, and the line's head
//                runs: a sub-agent or parallel sample. A further head of that workflow.
//   kRolledBack  the same, but the head waits: the conversation goes on from an earlier point (cleared results, edited
//                turn). The new head takes the old one's place; the old one is **superseded**: reported, still known.
//   kCompacted   only with an explicit id: nothing of its own is common any more but (part of) what its first prompt
//                had, as when a summary replaces the conversation. The newest waiting head of the workflow is
//                superseded.
//   kNew         everything else: a new workflow, or a further thread of an explicit one whose heads all run (then
//                kForked).
// "Belongs to": d reaches beyond the first prompt of that workflow, less the slack. So a shared system prompt, or the
// same task asked again with other words, joins no strangers. Nor do heads of several workflows on one block (equal
// short prompts): they are continued by nobody without an id. An explicit id always wins: then only heads of that
// workflow are looked at. What content cannot tell: a sub-agent that starts while its parent waits looks like a
// rollback, until the parent's next call revives its head.
//
// Bounds are fixed at construction: heads (and so workflows) and blocks. When one is used up the head unused for
// longest is forgotten, with the blocks that only it needs; a workflow without heads is forgotten with it, and its slot
// used again (forgotten() names those of the last call). A prompt longer than all blocks is known by its leading part.
//
// Cost of a call: O(log blocks) probes, plus a node for each new block; O(blocks) for everything but kContinued, and
// where a new workflow is the first to share a known prefix. Measured: 3 us (64 threads) to 10 us (512) a call of 1,024
// blocks that brings 16 new ones, 45 to 65 ns a block of a new prompt. Memory: 56 to 72 bytes a block (hash map
// included), ~80 a head and its workflow. Nothing is allocated later. Deterministic: of heads at one block one that is
// not superseded comes first, then the smaller id.
//
// Invariants (verify()): every node but those of depth 1 has a parent one block up; children and hanging heads are
// counted; a node without either does not exist; each live hash is found in the map; every head is in its workflow's
// list and, in order of use, in the list of all; every workflow has a head.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../base/huge_array.hpp"
#include "../base/types.hpp"

namespace saga {

enum class LineageKind : std::uint8_t { kNew = 0, kContinued = 1, kForked = 2, kRolledBack = 3, kCompacted = 4 };

struct LineageMatch {
  LineageKind kind = LineageKind::kNew;
  std::uint32_t workflow = kNone;  // slot, below max_heads
  std::uint32_t head = kNone;      // of this call, below max_heads
  // Head whose branch was left: with kRolledBack, kCompacted, and kContinued of a superseded one.
  std::uint32_t superseded = kNone;
  std::uint32_t common_blocks = 0;  // leading blocks shared with the head continued, left or forked; kNew: with anybody
  std::uint32_t known_blocks = 0;   // leading blocks that were known at all
};

struct LineageOptions {
  std::uint32_t max_heads = 4096;
  std::uint32_t max_blocks = 1u << 20;
  std::uint32_t slack_blocks =
      1;  // of a prompt that the next one may lack: 1, or as many as the template of a client rewrites
};

class Lineage {
 public:
  static constexpr std::uint64_t kNoId = ~std::uint64_t{0};

  explicit Lineage(const LineageOptions& options);

  // A prompt of `blocks` chain hashes is sent, by the workflow `id` if the client names it. Its head runs until call_ended.
  // At most max_heads - 2 heads run before: besides the head that is left one may have to be forgotten.
  LineageMatch call_started(const BlockHash* chain, std::uint32_t blocks, std::uint64_t id = kNoId);
  void call_ended(std::uint32_t head);
  void workflow_closed(std::uint32_t workflow);  // forgets it; its blocks stay only where others use them

  // Slots of workflows that the last call_started forgot to make room.
  const std::vector<std::uint32_t>& forgotten() const { return forgotten_; }

  bool is_open(std::uint32_t workflow) const { return workflows_[workflow].heads != 0; }
  bool is_busy(std::uint32_t workflow) const;  // whether one of its heads runs; O(its heads)
  bool is_running(std::uint32_t head) const { return heads_[head].running != 0; }
  bool is_superseded(std::uint32_t head) const { return heads_[head].superseded; }
  std::uint32_t workflow_of(std::uint32_t head) const { return heads_[head].workflow; }
  std::uint32_t workflows() const { return live_workflows_; }
  std::uint32_t heads() const { return live_heads_; }
  std::uint32_t running() const { return running_; }  // calls; a head has one at most
  std::uint32_t blocks() const { return live_nodes_; }
  std::uint64_t memory_bytes() const;
  bool verify() const;

 private:
  struct Node {
    BlockHash hash = 0;
    std::uint32_t parent = kNone;  // of free nodes: the next free one
    std::uint32_t depth = 0;       // number of blocks from the root to here; 0: free
    std::uint32_t head = kNone;    // whose line it is on: the head that made it, or took its line over
    std::uint32_t generation = 0;  // of that head: if it is another by now, the line is nobody's
    std::uint32_t children = 0;
    std::uint32_t hanging = 0;  // heads that end here
    std::uint32_t first_hanging = kNone;
    bool shared = false;  // a second workflow began with it
  };
  // Of the map from hashes to nodes: open addressing with linear probing. The tag, which also tells where an entry would
  // stand, spares the probe all nodes but the right one: they lie anywhere in memory.
  struct Slot {
    std::uint32_t node;  // kNone: empty
    std::uint32_t tag;   // low half of the mixed hash
  };
  struct Head {
    std::uint32_t workflow = kNone;  // kNone: free
    std::uint32_t tail = kNone;      // node of its last block; kNone: a prompt without a full block
    std::uint32_t length = 0;
    std::uint32_t running = 0;  // calls under way
    std::uint32_t generation = 0;
    bool superseded = false;
    std::uint32_t older = kNone, newer = kNone;    // in order of use; of free heads newer is the next free one
    std::uint32_t previous = kNone, next = kNone;  // in the workflow, newest first
    std::uint32_t same_node = kNone;               // next head that hangs at the same node
  };
  struct Workflow {
    std::uint64_t id = kNoId;
    std::uint32_t heads = 0;        // 0: free
    std::uint32_t newest = kNone;   // head; of free workflows the next free one
    std::uint32_t root_blocks = 0;  // of its first prompt
  };

  std::uint32_t find_node(BlockHash hash, std::uint32_t depth) const;
  std::uint32_t known_depth(const BlockHash* chain, std::uint32_t blocks) const;
  std::size_t slot_of(BlockHash hash) const;
  void insert_hash(BlockHash hash, std::uint32_t node);
  void erase_hash(BlockHash hash);
  std::uint32_t find_workflow(std::uint64_t id) const;
  void insert_id(std::uint64_t id, std::uint32_t workflow);
  void erase_id(std::uint64_t id);

  std::uint32_t owner(std::uint32_t node) const;
  std::uint32_t head_hanging(std::uint32_t node, std::uint32_t workflow) const;
  bool anybody_hangs(std::uint32_t node, std::uint32_t workflow) const;
  std::uint32_t head_behind(std::uint32_t node, std::uint32_t workflow) const;
  std::uint32_t head_above(std::uint32_t node, std::uint32_t workflow) const;
  std::uint32_t common_with(std::uint32_t head, const BlockHash* chain, std::uint32_t known) const;
  std::uint32_t newest_head(std::uint32_t workflow, bool waiting, std::uint32_t except) const;
  std::uint32_t add_workflow(std::uint64_t id, std::uint32_t blocks);
  std::uint32_t add_head(std::uint32_t workflow);
  std::uint32_t add_node(std::uint32_t parent, BlockHash hash, std::uint32_t head);
  void fetch(BlockHash hash) const;
  void extend(std::uint32_t head, const BlockHash* chain, std::uint32_t blocks, std::uint32_t known);
  void take_over(std::uint32_t node, std::uint32_t from, std::uint32_t to);
  void hang(std::uint32_t head, std::uint32_t node);
  void unhang(std::uint32_t head);
  void prune(std::uint32_t node);
  void link_newest(std::uint32_t head);
  void unlink(std::uint32_t head);
  void forget_head(std::uint32_t head);
  bool forget_oldest(std::uint32_t except);

  LineageOptions options_;
  HugeArray<Node> nodes_;
  std::vector<Head> heads_;
  std::vector<Workflow> workflows_;
  HugeArray<Slot> slots_;
  std::vector<std::uint32_t> id_slots_;  // explicit id -> workflow, open addressing, kNone empty
  std::vector<std::uint32_t> forgotten_;
  std::uint32_t free_node_ = kNone, free_head_ = kNone, free_workflow_ = kNone;
  std::uint32_t live_nodes_ = 0, live_heads_ = 0, live_workflows_ = 0, running_ = 0;
  std::uint32_t oldest_ = kNone, newest_ = kNone;
};

}  // namespace saga
