// Cost of a placement by SAGA's scheduler in the engine: submit_call and decide, with the match of the prompt against what the
// workers hold included, while `workers` workers have a few calls each. Prints nanoseconds a call, by part, and the digest of
// the engine in the end, by which two builds are seen to have decided alike.
//
//   place_bench [workers] [prompt blocks] [calls]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/engine/engine.hpp"

using namespace saga;

namespace {

double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

void check(Status status) {
  if (status == Status::kOk) return;
  std::fprintf(stderr, "refused: %d\n", static_cast<int>(status));
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int at, std::uint32_t otherwise) {
    return argc > at ? static_cast<std::uint32_t>(std::atoi(argv[at])) : otherwise;
  };
  const std::uint32_t workers = argument(1, 128);
  const std::uint32_t blocks = argument(2, 384);
  const std::uint32_t rounds = argument(3, 100'000);
  const std::uint32_t sessions = workers * 8;

  EngineOptions options;
  options.max_workers = workers;
  options.max_workflows = sessions;
  options.max_calls = sessions;
  options.max_blocks = std::uint64_t{sessions} * blocks * 2;
  options.max_open_blocks = std::uint64_t{sessions} * (blocks + 256) * 2;
  options.placement.kind = PlacementKind::kSaga;
  Engine engine(options);
  for (std::uint32_t i = 0; i < workers; ++i) {
    WorkerId worker = kNone;
    check(engine.add_worker(0, 28'000, &worker));
  }
  struct Session {
    WorkflowHandle workflow = 0;
    CallHandle call = 0;
    std::vector<BlockHash> chain;
  };
  std::vector<Session> open(sessions);
  Random random(1);
  Time now = 1;
  std::vector<Decision> decisions(64);
  std::uint64_t decided = 0, placed = 0, others = 0;
  double submit_time = 0, decide_time = 0, finish_time = 0, slowest = 0;
  const auto submit = [&](Session& session, bool timed) {
    now += 700;
    check(engine.tick(now));
    std::size_t count = 0;
    const auto start = std::chrono::steady_clock::now();
    check(engine.submit_call(now, session.workflow, blocks * 16 + 7, session.chain, &session.call));
    const double submitted = since(start);
    check(engine.decide(now, decisions, &count));
    const double both = since(start);
    if (timed) {
      submit_time += submitted;
      decide_time += both - submitted;
      slowest = std::max(slowest, both);
    }
    decided += count;
    for (std::size_t i = 0; i < count; ++i) {
      if (decisions[i].type != static_cast<std::uint16_t>(DecisionType::kPlace)) {
        ++others;
        continue;
      }
      ++placed;
    }
  };
  const auto finish = [&](Session& session) {
    now += 700;
    check(engine.tick(now));
    const auto start = std::chrono::steady_clock::now();
    const Status status = engine.finish_call(now, session.call, StopReason::kToolUse, ToolClass::kCodeExecution, 120);
    finish_time += since(start);
    if (status == Status::kWrongState) return false;  // held
    check(status);
    std::size_t count = 0;
    check(engine.decide(now, decisions, &count));
    return true;
  };
  std::uint64_t id = 1;
  for (Session& session : open) {
    check(engine.open_workflow(now, 0u, &session.workflow));
    for (std::uint32_t i = 0; i < blocks; ++i) session.chain.push_back(mix64(i < 64 ? i : ++id + 1'000'000));
    submit(session, false);
    WorkerId worker = static_cast<WorkerId>((&session - open.data()) % workers);
    if (const Receipt* receipt = engine.scheduling()->receipt(session.call)) worker = receipt->decided.worker;
    check(engine.blocks_stored(now, worker, Tier::kGpu, 0, session.chain));
  }
  std::vector<std::uint32_t> running(sessions);
  for (std::uint32_t i = 0; i < sessions; ++i) running[i] = i;
  decided = placed = others = 0;
  submit_time = decide_time = finish_time = slowest = 0;
  std::uint64_t held = 0;
  for (std::uint32_t round = 0; round < rounds; ++round) {
    Session& session = open[running[random.below(sessions)]];
    if (!finish(session)) {
      ++held;
      continue;
    }
    submit(session, true);
  }
  const double calls = static_cast<double>(rounds - held);
  std::printf("%u workers, prompts of %u blocks, %u sessions\n", workers, blocks, sessions);
  std::printf("  submit %.0f ns, decide %.0f ns, together %.0f ns (slowest %.0f), finish %.0f ns\n",
              submit_time / calls, decide_time / calls, (submit_time + decide_time) / calls, slowest,
              finish_time / rounds);
  std::printf("  %llu placements, %llu directives, %llu held\n", static_cast<unsigned long long>(placed),
              static_cast<unsigned long long>(others), static_cast<unsigned long long>(held));
  std::printf("  digest %016llx\n", static_cast<unsigned long long>(engine.digest()));
  return engine.verify() ? 0 : 1;
}
