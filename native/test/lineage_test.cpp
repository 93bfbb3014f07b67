#include "../core/graph/lineage.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "../core/base/random.hpp"

namespace {
std::uint64_t allocations = 0;
}

// Not inlined: compilers would pair the calls of malloc and delete that they see.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) std::abort();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace saga {
namespace {

// Contents of blocks; a chain hash names all before it too.
using Content = std::vector<std::uint64_t>;

std::vector<BlockHash> chain_of(const Content& content) {
  std::vector<BlockHash> chain;
  std::uint64_t hash = 0;
  for (const std::uint64_t block : content) {
    hash = mix64(hash ^ mix64(block));
    chain.push_back(hash);
  }
  return chain;
}

Content range(std::uint64_t first, std::uint32_t length) {
  Content content;
  for (std::uint32_t i = 0; i < length; ++i) content.push_back(first + i);
  return content;
}

Content operator+(Content a, const Content& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Content first_of(const Content& content, std::uint32_t length) { return {content.begin(), content.begin() + length}; }

LineageOptions small() {
  LineageOptions options;
  options.max_heads = 16;
  options.max_blocks = 1000;
  options.slack_blocks = 1;
  return options;
}

struct Calls {
  explicit Calls(const LineageOptions& options = small()) : lineage(options) {}
  LineageMatch start(const Content& content, std::uint64_t id = Lineage::kNoId) {
    const std::vector<BlockHash> chain = chain_of(content);
    const LineageMatch match = lineage.call_started(chain.data(), static_cast<std::uint32_t>(chain.size()), id);
    EXPECT_TRUE(lineage.verify());
    return match;
  }
  LineageMatch call(const Content& content, std::uint64_t id = Lineage::kNoId) {
    const LineageMatch match = start(content, id);
    lineage.call_ended(match.head);
    return match;
  }
  Lineage lineage;
};

const Content kSystem = range(1, 10);

TEST(Lineage, APromptThatGoesOnIsTheSameWorkflow) {
  Calls calls;
  const Content prompt = kSystem + range(100, 10);
  const LineageMatch first = calls.call(prompt);
  EXPECT_EQ(first.kind, LineageKind::kNew);
  EXPECT_EQ(first.common_blocks, 0u);
  const LineageMatch second = calls.call(prompt + range(200, 5));
  EXPECT_EQ(second.kind, LineageKind::kContinued);
  EXPECT_EQ(second.workflow, first.workflow);
  EXPECT_EQ(second.head, first.head);
  EXPECT_EQ(second.common_blocks, 20u);
  EXPECT_EQ(second.superseded, kNone);
  // The last block was rewritten.
  const LineageMatch third = calls.call(prompt + range(200, 4) + range(300, 9));
  EXPECT_EQ(third.kind, LineageKind::kContinued);
  EXPECT_EQ(third.workflow, first.workflow);
  EXPECT_EQ(third.common_blocks, 24u);
  EXPECT_EQ(calls.lineage.heads(), 1u);
  EXPECT_EQ(calls.lineage.blocks(), 33u);
  // The same prompt again, after the answer: a retry.
  EXPECT_EQ(calls.call(prompt + range(200, 4) + range(300, 9)).kind, LineageKind::kContinued);
}

TEST(Lineage, ASharedSystemPromptJoinsNoStrangers) {
  Calls calls;
  const LineageMatch a = calls.call(kSystem + range(100, 10));
  const LineageMatch b = calls.call(kSystem + range(200, 10));
  EXPECT_EQ(b.kind, LineageKind::kNew);
  EXPECT_EQ(b.known_blocks, 10u);
  EXPECT_NE(a.workflow, b.workflow);
  EXPECT_EQ(calls.call(kSystem + range(100, 10) + range(110, 4)).workflow, a.workflow);
  EXPECT_EQ(calls.call(kSystem + range(200, 10) + range(210, 4)).workflow, b.workflow);
}

TEST(Lineage, ParallelCallsFork) {
  Calls calls;
  const Content prompt = kSystem + range(100, 10);
  const LineageMatch a = calls.call(prompt);
  const Content parent = prompt + range(200, 10);
  EXPECT_EQ(calls.start(parent).kind, LineageKind::kContinued);
  const LineageMatch child = calls.start(prompt + range(300, 10));
  EXPECT_EQ(child.kind, LineageKind::kForked);
  EXPECT_EQ(child.workflow, a.workflow);
  EXPECT_NE(child.head, a.head);
  EXPECT_EQ(child.common_blocks, 20u);
  EXPECT_EQ(child.superseded, kNone);
  // A sample of the same prompt in parallel.
  const LineageMatch sample = calls.start(parent);
  EXPECT_EQ(sample.kind, LineageKind::kForked);
  EXPECT_EQ(sample.workflow, a.workflow);
  EXPECT_EQ(sample.common_blocks, 30u);
  calls.lineage.call_ended(a.head);
  calls.lineage.call_ended(child.head);
  calls.lineage.call_ended(sample.head);
  const LineageMatch more = calls.call(prompt + range(300, 10) + range(400, 1));
  EXPECT_EQ(more.kind, LineageKind::kContinued);
  EXPECT_EQ(more.head, child.head);
}

TEST(Lineage, RollbackSupersedesAndAReturnRevives) {
  Calls calls;
  const Content prompt = kSystem + range(100, 10);
  const Content longer = prompt + range(200, 20);
  const LineageMatch a = calls.call(prompt);
  calls.call(longer);
  const LineageMatch back = calls.call(first_of(longer, 30) + range(300, 5));
  EXPECT_EQ(back.kind, LineageKind::kRolledBack);
  EXPECT_EQ(back.workflow, a.workflow);
  EXPECT_EQ(back.superseded, a.head);
  EXPECT_EQ(back.common_blocks, 30u);
  EXPECT_TRUE(calls.lineage.is_superseded(a.head));
  const LineageMatch returned = calls.call(longer + range(400, 2));
  EXPECT_EQ(returned.kind, LineageKind::kContinued);
  EXPECT_EQ(returned.head, a.head);
  EXPECT_EQ(returned.superseded, back.head);
  EXPECT_FALSE(calls.lineage.is_superseded(a.head));
  // A second departure, from what the first one took over: its place is that of the live head.
  const LineageMatch again = calls.call(first_of(longer, 25) + range(500, 5));
  EXPECT_EQ(again.kind, LineageKind::kRolledBack);
  EXPECT_EQ(again.superseded, a.head);
  EXPECT_EQ(calls.lineage.heads(), 3u);
}

TEST(Lineage, ExplicitIdsWin) {
  Calls calls;
  const Content prompt = kSystem + range(100, 10);
  const LineageMatch a = calls.call(prompt, 7);
  const LineageMatch b = calls.call(prompt + range(200, 5), 8);  // looks like a continuation
  EXPECT_EQ(b.kind, LineageKind::kNew);
  EXPECT_NE(a.workflow, b.workflow);
  // Nothing in common at all, but the same id.
  const LineageMatch other = calls.call(range(900, 6), 7);
  EXPECT_EQ(other.kind, LineageKind::kCompacted);
  EXPECT_EQ(other.workflow, a.workflow);
  EXPECT_EQ(other.superseded, a.head);
  EXPECT_EQ(other.common_blocks, 0u);
  // The same content under both ids: each has its own head.
  EXPECT_EQ(calls.call(prompt + range(200, 8), 8).head, b.head);
  EXPECT_EQ(calls.call(prompt + range(200, 8), 7).head, a.head);
  // While everything of a workflow runs, a call of it is a fork.
  calls.start(prompt + range(200, 9), 8);
  const LineageMatch fork = calls.start(range(600, 5), 8);
  EXPECT_EQ(fork.kind, LineageKind::kForked);
  EXPECT_EQ(fork.workflow, b.workflow);
}

TEST(Lineage, Compaction) {
  Calls calls;
  const LineageMatch a = calls.call(kSystem + range(100, 10), 5);
  calls.call(kSystem + range(100, 10) + range(200, 50), 5);
  const LineageMatch compacted = calls.call(kSystem + range(300, 6), 5);
  EXPECT_EQ(compacted.kind, LineageKind::kCompacted);
  EXPECT_EQ(compacted.workflow, a.workflow);
  EXPECT_EQ(compacted.superseded, a.head);
  EXPECT_EQ(compacted.common_blocks, 10u);
  const LineageMatch next = calls.call(kSystem + range(300, 6) + range(400, 6), 5);
  EXPECT_EQ(next.kind, LineageKind::kContinued);
  EXPECT_EQ(next.head, compacted.head);
}

TEST(Lineage, EqualShortPromptsOfSeveralAreContinuedByNobody) {
  Calls calls;
  calls.call(kSystem, 1);
  calls.call(kSystem, 2);
  EXPECT_EQ(calls.call(kSystem + range(100, 5)).kind, LineageKind::kNew);
}

TEST(Lineage, TheHeadUnusedForLongestIsForgotten) {
  LineageOptions options = small();
  options.max_heads = 3;
  Calls calls(options);
  std::vector<LineageMatch> made;
  for (std::uint32_t i = 0; i < 3; ++i) made.push_back(calls.call(range(1000 * (i + 1), 5)));
  calls.call(range(1000, 5) + range(50, 1));  // the first is used again
  EXPECT_TRUE(calls.lineage.forgotten().empty());
  const LineageMatch fourth = calls.call(range(4000, 5));
  ASSERT_EQ(calls.lineage.forgotten().size(), 1u);
  EXPECT_EQ(calls.lineage.forgotten()[0], made[1].workflow);
  EXPECT_EQ(fourth.workflow, made[1].workflow);  // its slot is used again
  EXPECT_EQ(calls.call(range(2000, 5) + range(60, 1)).kind, LineageKind::kNew);
  EXPECT_EQ(calls.lineage.heads(), 3u);
}

// The worst case for the bound on heads that run: the line that is left must stay, so the other one that waits goes.
TEST(Lineage, OneHeadIsLeftAndAnotherForgotten) {
  for (const bool named : {false, true}) {
    LineageOptions options = small();
    options.max_heads = 3;
    Calls calls(options);
    const std::uint64_t id = named ? 7 : Lineage::kNoId;
    const Content prompt = range(100, 10);
    const LineageMatch stranger = calls.call(range(900, 5));
    const LineageMatch parent = calls.call(prompt + range(200, 10), id);
    calls.start(range(500, 5));
    EXPECT_EQ(calls.lineage.running(), 1u);
    const LineageMatch back = calls.start(prompt + range(200, 9) + range(300, 10), id);
    EXPECT_EQ(back.kind, LineageKind::kContinued);  // all but the last block
    calls.lineage.call_ended(back.head);
    const LineageMatch left = calls.start(prompt + range(200, 9) + range(300, 5) + range(400, 5), id);
    EXPECT_EQ(left.kind, LineageKind::kRolledBack);
    EXPECT_EQ(left.workflow, parent.workflow);
    EXPECT_EQ(left.superseded, parent.head);
    EXPECT_EQ(left.head, stranger.head);
    EXPECT_EQ(calls.lineage.forgotten(), std::vector<std::uint32_t>{stranger.workflow});
    EXPECT_EQ(calls.lineage.running(), 2u);
  }
}

TEST(Lineage, AWorkflowIsBusyWhileOneOfItsHeadsRuns) {
  Calls calls;
  const Content prompt = range(100, 10);
  const LineageMatch first = calls.call(prompt + range(200, 5));
  EXPECT_FALSE(calls.lineage.is_busy(first.workflow));
  const LineageMatch parent = calls.start(prompt + range(200, 9));
  const LineageMatch child = calls.start(prompt + range(200, 7) + range(300, 5));
  EXPECT_EQ(child.kind, LineageKind::kForked);
  EXPECT_EQ(calls.lineage.running(), 2u);
  calls.lineage.call_ended(child.head);
  EXPECT_TRUE(calls.lineage.is_running(parent.head));
  EXPECT_FALSE(calls.lineage.is_running(child.head));
  EXPECT_TRUE(calls.lineage.is_busy(first.workflow));
  EXPECT_EQ(calls.lineage.workflows(), 1u);
  // What is closed runs no more.
  calls.lineage.workflow_closed(first.workflow);
  EXPECT_TRUE(calls.lineage.verify());
  EXPECT_EQ(calls.lineage.running(), 0u);
  EXPECT_EQ(calls.lineage.workflows(), 0u);
}

TEST(Lineage, BlocksAreBounded) {
  LineageOptions options = small();
  options.max_blocks = 20;
  Calls calls(options);
  const LineageMatch a = calls.call(range(100, 12));
  calls.call(range(200, 12));  // takes the place of the first
  EXPECT_EQ(calls.lineage.forgotten(), std::vector<std::uint32_t>{a.workflow});
  EXPECT_LE(calls.lineage.blocks(), 20u);
  // Longer than all blocks: known by its leading part.
  const LineageMatch big = calls.call(range(300, 50));
  EXPECT_EQ(big.kind, LineageKind::kNew);
  EXPECT_EQ(calls.lineage.blocks(), 20u);
  const LineageMatch more = calls.call(range(300, 55));
  EXPECT_EQ(more.kind, LineageKind::kContinued);
  EXPECT_EQ(more.common_blocks, 20u);
  // What runs is not forgotten.
  calls.start(range(300, 56));
  const LineageMatch squeezed = calls.call(range(700, 5));
  EXPECT_EQ(squeezed.kind, LineageKind::kNew);
  EXPECT_TRUE(calls.lineage.forgotten().empty());
  EXPECT_EQ(calls.lineage.blocks(), 20u);
}

TEST(Lineage, ClosedWorkflowsLeaveWhatOthersUse) {
  Calls calls;
  const LineageMatch a = calls.call(kSystem + range(100, 10), 1);
  calls.call(kSystem + range(200, 10), 2);
  EXPECT_EQ(calls.lineage.blocks(), 30u);
  calls.lineage.workflow_closed(a.workflow);
  EXPECT_TRUE(calls.lineage.verify());
  EXPECT_FALSE(calls.lineage.is_open(a.workflow));
  EXPECT_EQ(calls.lineage.blocks(), 20u);
  EXPECT_EQ(calls.call(kSystem + range(100, 10), 1).kind, LineageKind::kNew);
}

TEST(Lineage, PromptsWithoutAFullBlock) {
  Calls calls;
  const LineageMatch a = calls.call({});
  const LineageMatch b = calls.call({});
  EXPECT_EQ(a.kind, LineageKind::kNew);
  EXPECT_EQ(b.kind, LineageKind::kNew);
  EXPECT_NE(a.workflow, b.workflow);
  const LineageMatch c = calls.call({}, 9);
  const LineageMatch d = calls.call(range(1, 3), 9);
  EXPECT_EQ(d.workflow, c.workflow);
}

TEST(Lineage, AHashAtAnotherDepthIsNotFollowed) {
  Calls calls;
  const std::vector<BlockHash> good = {11, 12, 13, 14};
  const std::vector<BlockHash> bad = {21, 13, 23};  // 13 is known, at depth 3
  calls.lineage.call_ended(calls.lineage.call_started(good.data(), 4).head);
  const LineageMatch match = calls.lineage.call_started(bad.data(), 3);
  EXPECT_TRUE(calls.lineage.verify());
  EXPECT_EQ(match.kind, LineageKind::kNew);
  EXPECT_EQ(match.known_blocks, 0u);
  EXPECT_EQ(calls.lineage.blocks(), 5u);
}

// Agents with known truth: private growth behind shared system prompts, rewritten last blocks, rollbacks behind the
// first prompt, forks while the parent runs. What is known is compared with all prompts so far, by brute force.
TEST(Lineage, RandomAgentsWithKnownTruth) {
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {
    Random random(seed);
    LineageOptions options;
    options.max_heads = 512;
    options.max_blocks = 60'000;
    options.slack_blocks = 2;
    Calls calls(options);
    struct Agent {
      Content content;
      std::uint32_t root = 0;
      std::uint32_t workflow = kNone;
      std::uint32_t head = kNone;
      bool running = false;
    };
    std::vector<Agent> agents;
    std::vector<Content> seen;
    std::uint64_t fresh = 1'000'000;
    const auto grow = [&](Content& content, std::uint64_t blocks) {
      for (std::uint64_t i = 0; i < blocks; ++i) content.push_back(fresh++);
    };
    const auto known = [&seen](const Content& content) {
      std::size_t best = 0;
      for (const Content& other : seen) {
        const std::size_t length = std::min(other.size(), content.size());
        std::size_t common = 0;
        while (common < length && other[common] == content[common]) ++common;
        best = std::max(best, common);
      }
      return best;
    };
    for (int i = 0; i < 700; ++i) {
      const std::uint64_t what = random.below(20);
      if (agents.empty() || (what == 0 && agents.size() < 60)) {
        Agent agent;
        agent.content = range(1 + 1000 * random.below(3), 12);
        grow(agent.content, 4 + random.below(8));
        agent.root = static_cast<std::uint32_t>(agent.content.size());
        const std::size_t expected = known(agent.content);
        const LineageMatch match = calls.start(agent.content);
        EXPECT_EQ(match.kind, LineageKind::kNew);
        EXPECT_EQ(match.known_blocks, expected);
        agent.workflow = match.workflow;
        agent.head = match.head;
        agent.running = true;
        for (const Agent& other : agents) EXPECT_NE(other.workflow, agent.workflow);
        seen.push_back(agent.content);
        agents.push_back(agent);
        continue;
      }
      Agent& agent = agents[random.below(agents.size())];
      if (agent.running && what < 3 && agent.content.size() > agent.root + 4u) {
        // A sub-agent with the context of its parent.
        Agent child = agent;
        child.content.resize(agent.root + random.below(agent.content.size() - agent.root - 3));
        grow(child.content, 3 + random.below(5));
        const std::size_t expected = known(child.content);
        const LineageMatch match = calls.start(child.content);
        ASSERT_EQ(match.workflow, agent.workflow);
        EXPECT_EQ(match.known_blocks, expected);
        EXPECT_NE(match.kind, LineageKind::kNew);
        // Its sibling lines may wait at that very place; then it goes on from there.
        child.head = match.head;
        child.running = true;
        seen.push_back(child.content);
        for (Agent& other : agents) {
          if (other.head == child.head) other.running = false;  // that line is the child's now
        }
        std::erase_if(agents, [&child](const Agent& other) { return other.head == child.head; });
        agents.push_back(child);
        continue;
      }
      if (agent.running) {
        calls.lineage.call_ended(agent.head);
        agent.running = false;
        continue;
      }
      Content next = agent.content;
      const bool back = what < 5 && next.size() > agent.root + 8u;
      if (back) {
        next.resize(agent.root + random.below(next.size() - agent.root - 4));
      } else if (random.below(3) == 0) {
        next.resize(next.size() - 1 - random.below(2));  // within the slack
      }
      grow(next, 3 + random.below(10));
      const std::size_t expected = known(next);
      const LineageMatch match = calls.start(next);
      EXPECT_EQ(match.known_blocks, expected);
      ASSERT_EQ(match.workflow, agent.workflow) << i;
      if (!back) {
        EXPECT_EQ(match.kind, LineageKind::kContinued);
        EXPECT_EQ(match.head, agent.head);
      }
      agent.content = next;
      agent.head = match.head;
      agent.running = true;
      seen.push_back(next);
      const std::uint32_t head = agent.head;
      const Content mine = next;
      // A rollback to where a sibling waits goes on from the sibling's line, which then is nobody else's.
      std::erase_if(agents, [&](const Agent& other) { return other.head == head && other.content != mine; });
    }
    if (HasFatalFailure()) return;
    for (Agent& agent : agents) {
      if (agent.running) calls.lineage.call_ended(agent.head);
      agent.running = false;
    }
    std::vector<std::uint32_t> open;
    for (const Agent& agent : agents) open.push_back(agent.workflow);
    std::sort(open.begin(), open.end());
    open.erase(std::unique(open.begin(), open.end()), open.end());
    for (const std::uint32_t workflow : open) calls.lineage.workflow_closed(workflow);
    EXPECT_TRUE(calls.lineage.verify());
  }
}

// Tight bounds, random ids, chains that share much: whatever happens the structure holds and an id keeps its workflow.
TEST(Lineage, RandomCallsUnderTightBounds) {
  for (const std::uint64_t seed : {5u, 6u, 7u}) {
    Random random(seed);
    LineageOptions options;
    options.max_heads = 12;
    options.max_blocks = 150;
    options.slack_blocks = static_cast<std::uint32_t>(random.below(3));
    Calls calls(options);
    struct Running {
      std::uint32_t head;
    };
    std::vector<Running> running;
    std::vector<std::uint32_t> workflow_of_id(6, kNone);
    for (int i = 0; i < 4000; ++i) {
      if (!running.empty() && (running.size() >= 5 || random.below(2) == 0)) {
        const std::size_t at = random.below(running.size());
        calls.lineage.call_ended(running[at].head);
        running.erase(running.begin() + static_cast<std::ptrdiff_t>(at));
        continue;
      }
      Content content;
      const std::uint64_t length = random.below(40);
      for (std::uint64_t k = 0; k < length; ++k) content.push_back(random.below(10) == 0 ? random.below(3) : 0);
      const std::uint64_t id = random.below(3) == 0 ? random.below(6) : Lineage::kNoId;
      const LineageMatch match = calls.start(content, id);
      ASSERT_TRUE(calls.lineage.is_open(match.workflow));
      ASSERT_EQ(calls.lineage.workflow_of(match.head), match.workflow);
      ASSERT_LE(match.common_blocks, content.size());
      ASSERT_NE(match.superseded, match.head);
      if (match.superseded != kNone) {
        ASSERT_TRUE(calls.lineage.is_superseded(match.superseded));
        ASSERT_EQ(calls.lineage.workflow_of(match.superseded), match.workflow);
      }
      for (const std::uint32_t gone : calls.lineage.forgotten()) {
        std::replace(workflow_of_id.begin(), workflow_of_id.end(), gone, kNone);
      }
      if (id != Lineage::kNoId) {
        if (workflow_of_id[id] != kNone) {
          ASSERT_EQ(match.workflow, workflow_of_id[id]);
          ASSERT_NE(match.kind, LineageKind::kNew);
        } else {
          ASSERT_EQ(match.kind, LineageKind::kNew);
        }
        workflow_of_id[id] = match.workflow;
      }
      running.push_back({match.head});
      ASSERT_LE(calls.lineage.heads(), options.max_heads);
      ASSERT_LE(calls.lineage.blocks(), options.max_blocks);
      if (HasFailure()) return;
    }
  }
}

TEST(Lineage, NothingIsAllocatedAfterConstruction) {
  Lineage lineage(small());
  std::vector<std::vector<BlockHash>> chains;
  for (std::uint64_t i = 0; i < 60; ++i) chains.push_back(chain_of(range(1, 5) + range(100 * i, 30)));
  const std::uint64_t before = allocations;
  for (const auto& chain : chains) {
    for (const std::uint32_t length : {10u, 20u, 35u})
      lineage.call_ended(lineage.call_started(chain.data(), length).head);
  }
  EXPECT_EQ(allocations, before);
}

}  // namespace
}  // namespace saga
