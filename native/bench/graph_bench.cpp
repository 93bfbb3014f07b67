// Predictor and lineage: cost of an event, and with --trace what they get right on a recorded trace.
//
//   graph_bench                      costs on synthetic agents, in CPU nanoseconds
//   graph_bench --trace FILE [--live N]   FILE: one request a line, JSON with sid, aid, in, out, llm_s, gap_s,
//   gap_kind, stop and h = runs
//                                    of 64-token block ids; N sessions (32) run at a time, in a closed loop as
//                                    recorded.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <queue>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/graph/lineage.hpp"
#include "../core/graph/predictor.hpp"

namespace {

using saga::Time;

double cpu_nanoseconds() { return static_cast<double>(std::clock()) * 1e9 / CLOCKS_PER_SEC; }

void bench_predictor(std::uint32_t workflows, std::uint32_t classes, bool declared) {
  saga::PredictorOptions options;
  options.max_workflows = workflows;
  options.max_agent_classes = classes;
  saga::Predictor predictor(options);
  saga::AgentGraph graph;
  for (std::uint32_t i = 0; i < 4; ++i) {
    graph.steps.push_back({static_cast<saga::ToolClass>(i + 1), 300, 400, 1.0});
    for (std::uint32_t j = 0; j < 4; ++j) graph.edges.push_back({i, j, 0.24});
  }
  graph.expected_calls = 25;
  graph.prepare();

  std::vector<std::uint32_t> prompt(workflows, 2000);
  std::uint64_t opened = 0;
  std::uint64_t drawn = 0;
  const auto open = [&](std::uint32_t w, Time now) {
    predictor.workflow_opened(w, static_cast<std::uint32_t>(opened++ % classes), 1, declared ? &graph : nullptr, now);
    prompt[w] = 2000;
  };
  Time now = 1;
  for (std::uint32_t w = 0; w < workflows; ++w) open(w, now);
  const auto run = [&](std::uint32_t rounds) {
    std::uint64_t events = 0;
    for (std::uint32_t i = 0; i < rounds; ++i) {
      const std::uint64_t draw = saga::mix64(drawn++);
      const auto w = static_cast<std::uint32_t>(draw % workflows);
      now += (draw >> 40) & 0xFFFF;
      predictor.call_started(w, prompt[w], saga::PromptKind::kTool, now);
      const auto output = static_cast<std::uint32_t>(100 + ((draw >> 20) & 511));
      now += (draw >> 50) & 0x3FF;
      predictor.call_ended(w, saga::StopReason::kToolUse, static_cast<saga::ToolClass>(1 + ((draw >> 33) & 3)), output,
                           now);
      prompt[w] += output + static_cast<std::uint32_t>((draw >> 12) & 255);
      events += 2;
      if ((draw >> 58) == 0) {
        predictor.workflow_closed(w, now);
        open(w, now);
        events += 2;
      }
    }
    return events;
  };
  (void)run(100'000);
  double begin = cpu_nanoseconds();
  const std::uint64_t events = run(1'000'000);
  const double event_cost = (cpu_nanoseconds() - begin) / static_cast<double>(events);
  begin = cpu_nanoseconds();
  double sum = 0;
  for (std::uint32_t i = 0; i < 1'000'000; ++i) sum += predictor.forecast(i % workflows, now).remaining_calls;
  const double forecast_cost = (cpu_nanoseconds() - begin) / 1e6;
  std::printf(
      "predictor  %6u workflows %3u classes %-8s  event %6.1f ns   forecast %6.1f ns   (mean rest %.1f calls)\n",
      workflows, classes, declared ? "declared" : "learned", event_cost, forecast_cost, sum / 1e6);
}

void bench_lineage(std::uint32_t threads, std::uint32_t blocks, std::uint32_t growth) {
  saga::LineageOptions options;
  options.max_heads = threads * 2;
  options.max_blocks = threads * (blocks + 64 * growth) + 4096;
  saga::Lineage lineage(options);
  const std::uint32_t most = blocks + 64 * growth;
  std::vector<std::vector<saga::BlockHash>> chains(threads);
  std::uint64_t next = 1;
  for (auto& chain : chains) {
    for (std::uint32_t i = 0; i < most; ++i) {
      chain.push_back(i < blocks / 4 ? saga::mix64(i) : saga::mix64(0x100000 + next++));
    }
  }
  double first = 0;
  double later = 0;
  for (std::uint32_t turn = 0; turn < 64; ++turn) {
    const double begin = cpu_nanoseconds();
    for (auto& chain : chains) lineage.call_ended(lineage.call_started(chain.data(), blocks + turn * growth).head);
    (turn == 0 ? first : later) += cpu_nanoseconds() - begin;
  }
  std::printf("lineage    %6u threads of %4u blocks, +%2u a call   first call %8.1f ns   later %8.1f ns\n", threads,
              blocks, growth, first / threads, later / (63.0 * threads));
}

// What forecasts are worth on tasks like the SWE-bench ones of the SAGA paper: 1 + Gamma(2, 18.5) calls, answers of 100
// to 500 tokens that are the same within a task.
void synthetic_accuracy(bool declared) {
  saga::PredictorOptions options;
  saga::Predictor predictor(options);
  saga::AgentGraph graph;
  graph.steps.push_back({saga::ToolClass::kNone, 300, 350, 1.0});
  graph.edges.push_back({0, 0, 1 - 1.0 / 38});
  graph.expected_calls = 38;
  graph.prepare();
  saga::Random random(19);
  Time now = 1;
  double calls_error = 0, calls_naive = 0, rest_error = 0, rest_naive = 0, answer_error = 0, answer_naive = 0, n = 0;
  for (std::uint32_t task = 0; task < 2000; ++task) {
    const double drawn = -18.5 * (std::log(1 - random.uniform()) + std::log(1 - random.uniform()));
    const auto calls = static_cast<std::uint32_t>(1 + std::min(drawn, 150.0));
    const auto output = static_cast<std::uint32_t>(100 + random.below(401));
    std::uint32_t prompt = 3000;
    predictor.workflow_opened(0, 0, 1, declared ? &graph : nullptr, now);
    for (std::uint32_t i = 1; i <= calls; ++i) {
      predictor.call_started(0, prompt, saga::PromptKind::kTool, now);
      now += 2'000'000;
      predictor.call_ended(0, saga::StopReason::kToolUse, saga::ToolClass::kNone, output, now);
      prompt += output + 350;
      const saga::Forecast forecast = predictor.forecast(0, now);
      now += 500'000;
      if (task < 100) continue;
      const double rest = calls - i;
      calls_error += std::abs(forecast.remaining_calls - rest);
      calls_naive += std::abs(std::max(0.0, 38.0 - i) - rest);
      rest_error += std::abs(forecast.remaining_output_tokens - rest * output);
      rest_naive += std::abs(std::max(0.0, 38.0 - i) * 300 - rest * output);
      answer_error += std::abs(forecast.next_output_tokens - output);
      answer_naive += std::abs(300.0 - output);
      n += 1;
    }
    predictor.workflow_closed(0, now);
  }
  std::printf(
      "forecasts, %-8s  mean absolute error (of the class mean less what is done): calls to come %.1f (%.1f), tokens "
      "of answers to "
      "come %.0f (%.0f), next answer %.1f (%.1f)\n",
      declared ? "declared" : "learned", calls_error / n, calls_naive / n, rest_error / n, rest_naive / n,
      answer_error / n, answer_naive / n);
}

// --- A recorded trace
// -------------------------------------------------------------------------------------------------------

struct Request {
  std::uint32_t session = 0;
  std::uint32_t thread = 0;
  std::uint32_t prompt = 0;
  std::uint32_t output = 0;
  double llm_seconds = 0;
  double gap_seconds = 0;
  saga::PromptKind kind = saga::PromptKind::kStart;
  saga::StopReason stop = saga::StopReason::kUnknown;
  std::vector<saga::BlockHash> chain;
  bool last = false;  // of its thread
  Time start = 0, end = 0;
};

// The text of a field; good enough for one flat object a line.
std::string field(const std::string& line, const char* name) {
  const std::string wanted = std::string("\"") + name + "\":";
  std::size_t at = line.find(wanted);
  if (at == std::string::npos) return {};
  at += wanted.size();
  std::size_t end = at;
  if (line[at] == '"') {
    end = line.find('"', ++at);
  } else if (line[at] == '[') {
    for (int depth = 0; end < line.size(); ++end) {
      depth += line[end] == '[' ? 1 : line[end] == ']' ? -1 : 0;
      if (depth == 0) break;
    }
    ++end;
  } else {
    end = line.find_first_of(",}", at);
  }
  return line.substr(at, end - at);
}

std::vector<Request> read_trace(const char* path, std::vector<std::vector<std::uint32_t>>* threads) {
  std::vector<Request> requests;
  std::ifstream in(path);
  std::map<std::string, std::uint32_t> sessions;
  std::map<std::string, std::uint32_t> thread_ids;
  for (std::string line; std::getline(in, line);) {
    if (!field(line, "dup").empty() && field(line, "dup") != "null") continue;
    Request request;
    const std::string sid = field(line, "sid");
    request.session = sessions.emplace(sid, static_cast<std::uint32_t>(sessions.size())).first->second;
    request.thread =
        thread_ids.emplace(sid + "/" + field(line, "aid"), static_cast<std::uint32_t>(thread_ids.size())).first->second;
    request.prompt = static_cast<std::uint32_t>(std::atoi(field(line, "in").c_str()));
    request.output = static_cast<std::uint32_t>(std::atoi(field(line, "out").c_str()));
    request.llm_seconds = std::atof(field(line, "llm_s").c_str());
    request.gap_seconds = std::min(1800.0, std::atof(field(line, "gap_s").c_str()));
    const std::string kind = field(line, "gap_kind");
    request.kind = kind == "tool"   ? saga::PromptKind::kTool
                   : kind == "user" ? saga::PromptKind::kUser
                                    : saga::PromptKind::kStart;
    const std::string stop = field(line, "stop");
    request.stop = stop == "tool_use"   ? saga::StopReason::kToolUse
                   : stop == "end_turn" ? saga::StopReason::kEndTurn
                                        : saga::StopReason::kUnknown;
    // Ids name content: a chain hash names the prefix too.
    const std::string runs = field(line, "h");
    std::uint64_t hash = 0;
    for (const char* p = runs.c_str(); *p != '\0';) {
      if (*p < '0' || *p > '9') {
        ++p;
        continue;
      }
      char* after = nullptr;
      const std::uint64_t first = std::strtoull(p, &after, 10);
      const std::uint64_t length = std::strtoull(after + 1, &after, 10);
      for (std::uint64_t i = 0; i < length; ++i) {
        hash = saga::mix64(hash ^ saga::mix64(first + i));
        request.chain.push_back(hash);
      }
      p = after;
    }
    if (threads->size() <= request.thread) threads->resize(request.thread + 1);
    (*threads)[request.thread].push_back(static_cast<std::uint32_t>(requests.size()));
    requests.push_back(std::move(request));
  }
  for (const auto& calls : *threads) requests[calls.back()].last = true;
  return requests;
}

struct Event {
  Time at;
  std::uint32_t order;  // ends before starts, then by request
  std::uint32_t request;
  bool start;
  bool operator>(const Event& other) const {
    if (at != other.at) return at > other.at;
    if (start != other.start) return start;
    return request > other.request;
  }
};

// Threads of a session start with it; sessions are admitted in order, `live` at a time.
std::vector<Event> schedule(std::vector<Request>& requests, const std::vector<std::vector<std::uint32_t>>& threads,
                            std::uint32_t live) {
  std::vector<std::vector<std::uint32_t>> of_session;
  for (std::uint32_t t = 0; t < threads.size(); ++t) {
    const std::uint32_t s = requests[threads[t][0]].session;
    if (of_session.size() <= s) of_session.resize(s + 1);
    of_session[s].push_back(t);
  }
  std::priority_queue<Time, std::vector<Time>, std::greater<Time>> slots;
  for (std::uint32_t i = 0; i < live; ++i) slots.push(0);
  std::vector<Event> events;
  for (const auto& session : of_session) {
    const Time begin = slots.top();
    slots.pop();
    Time finish = begin;
    for (const std::uint32_t t : session) {
      Time now = begin;
      for (const std::uint32_t r : threads[t]) {
        Request& request = requests[r];
        now += static_cast<Time>(request.gap_seconds * 1e6);
        request.start = now;
        now += static_cast<Time>(request.llm_seconds * 1e6);
        request.end = now;
        events.push_back({request.start, 0, r, true});
        events.push_back({request.end, 0, r, false});
      }
      finish = std::max(finish, now);
    }
    slots.push(finish);
  }
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return b > a; });
  return events;
}

void trace_lineage(const std::vector<Request>& requests, const std::vector<Event>& events, std::uint32_t slack) {
  saga::LineageOptions options;
  options.max_heads = 8192;
  options.max_blocks = 1u << 22;
  options.slack_blocks = slack;
  saga::Lineage lineage(options);
  // A call is right if the call before it in its inferred workflow is of the same session (its thread, strictly), or,
  // where a workflow is said to be new, if its thread is.
  std::unordered_map<std::uint32_t, std::uint32_t> session_of;   // inferred workflow -> session of its first call
  std::unordered_map<std::uint32_t, std::uint32_t> workflow_of;  // session -> inferred workflow of its last call
  std::unordered_map<std::uint32_t, std::uint32_t> head_of_request;
  std::unordered_set<std::uint32_t> seen_threads;
  std::uint64_t right = 0, joined_strangers = 0, split = 0, calls = 0, kinds[5] = {}, same_as_before = 0,
                continuing = 0;
  double cost = 0;
  // Joined to another session whose call shares as much with the prompt as the thread's own: content cannot tell them
  // apart.
  std::uint64_t twins = 0;
  // Split off where less than half of the prompt is the thread's last one.
  std::uint64_t departures = 0;
  std::unordered_map<std::uint32_t, std::vector<saga::BlockHash>> newest_chain;
  for (const Event& event : events) {
    const Request& request = requests[event.request];
    if (!event.start) {
      const auto found = head_of_request.find(event.request);
      lineage.call_ended(found->second);
      head_of_request.erase(found);
      continue;
    }
    const double begin = cpu_nanoseconds();
    const saga::LineageMatch match =
        lineage.call_started(request.chain.data(), static_cast<std::uint32_t>(request.chain.size()));
    cost += cpu_nanoseconds() - begin;
    for (const std::uint32_t w : lineage.forgotten()) session_of.erase(w);
    head_of_request[event.request] = match.head;
    ++calls;
    ++kinds[static_cast<std::uint32_t>(match.kind)];
    const bool first_of_thread = seen_threads.insert(request.thread).second;
    const auto before = workflow_of.find(request.session);
    bool wrong = false;
    bool off = false;
    if (match.kind == saga::LineageKind::kNew) {
      session_of[match.workflow] = request.session;
      if (first_of_thread) {
        ++right;
      } else {
        ++split;
        off = true;
      }
    } else if (session_of[match.workflow] == request.session) {
      ++right;
    } else {
      ++joined_strangers;
      wrong = true;
      session_of[match.workflow] = request.session;
    }
    std::vector<saga::BlockHash>& own = newest_chain[request.thread];
    const auto own_common = static_cast<std::size_t>(
        std::mismatch(own.begin(), own.end(), request.chain.begin(), request.chain.end()).first - own.begin());
    twins += wrong && own_common <= match.common_blocks;
    departures += off && own_common < request.chain.size() / 2;
    own = request.chain;
    if (before != workflow_of.end() && !first_of_thread) {
      ++continuing;
      same_as_before += before->second == match.workflow;
    }
    workflow_of[request.session] = match.workflow;
  }
  const auto share = [calls](std::uint64_t n) { return 100.0 * static_cast<double>(n) / static_cast<double>(calls); };
  std::printf("lineage, slack %u: right workflow %.2f %%\n", slack, share(right));
  std::printf("  split off %.2f %% (of these %.2f with less than half of the thread's last prompt)\n", share(split),
              share(departures));
  std::printf("  joined another session %.2f %% (of these %.2f with the same content as its own)\n",
              share(joined_strangers), share(twins));
  std::printf(
      "  new %.2f %%, continued %.2f, forked %.2f, rolled back %.2f; in the workflow of the session's last call %.2f "
      "%%\n",
      share(kinds[0]), share(kinds[1]), share(kinds[2]), share(kinds[3]),
      100.0 * static_cast<double>(same_as_before) / static_cast<double>(continuing));
  std::printf("  %.0f ns a call, %u blocks, verify %d\n", cost / static_cast<double>(calls), lineage.blocks(),
              lineage.verify());
}

// What a forecast at the end of a call said about the rest of its thread.
struct Errors {
  double absolute = 0, actual = 0, baseline = 0;
  std::uint64_t n = 0;
  void add(double predicted, double known, double naive) {
    absolute += std::abs(predicted - known);
    baseline += std::abs(naive - known);
    actual += known;
    ++n;
  }
  void print(const char* name) const {
    const auto count = static_cast<double>(n);
    std::printf("  %-22s mean absolute error %9.1f   of always the mean %9.1f   mean %9.1f\n", name, absolute / count,
                baseline / count, actual / count);
  }
};

void print_reliability(const char* name, const saga::ReliabilityTable& table) {
  const double rate =
      static_cast<double>(table.happened()) / static_cast<double>(std::max<std::uint64_t>(1, table.predictions()));
  std::printf("  %s: %llu predictions, happened %.4f, Brier %.4f (always the rate: %.4f), calibration error %.4f\n",
              name, static_cast<unsigned long long>(table.predictions()), rate, table.brier(), rate * (1 - rate),
              table.calibration_error());
  for (const saga::ReliabilityBin& bin : table.bins) {
    if (bin.predictions == 0) continue;
    const auto n = static_cast<double>(bin.predictions);
    std::printf("    %8llu predicted %.3f happened %.3f\n", static_cast<unsigned long long>(bin.predictions),
                bin.predicted_sum / n, static_cast<double>(bin.happened) / n);
  }
}

void trace_predictor(const std::vector<Request>& requests, const std::vector<std::vector<std::uint32_t>>& threads,
                     const std::vector<Event>& events, bool closes) {
  saga::PredictorOptions options;
  options.max_workflows = static_cast<std::uint32_t>(threads.size());
  saga::Predictor predictor(options);
  std::vector<std::uint32_t> position(requests.size());
  std::vector<double> rest_output(requests.size());
  double mean_calls = 0, mean_output = 0, mean_rest_output = 0;
  for (const auto& calls : threads) {
    double rest = 0;
    for (std::uint32_t i = static_cast<std::uint32_t>(calls.size()); i-- > 0;) {
      position[calls[i]] = i;
      rest_output[calls[i]] = rest;
      mean_rest_output += rest;
      rest += requests[calls[i]].output;
      mean_calls += static_cast<double>(calls.size() - 1 - i);
      mean_output += requests[calls[i]].output;
    }
  }
  const auto n = static_cast<double>(requests.size());
  mean_calls /= n;
  mean_output /= n;
  mean_rest_output /= n;
  Errors calls_error, output_error, rest_error;
  std::vector<std::pair<Time, std::uint32_t>> idle;  // ends of threads, for clients that never close
  for (const Event& event : events) {
    const Request& request = requests[event.request];
    const std::uint32_t t = request.thread;
    if (event.start) {
      if (position[event.request] == 0) predictor.workflow_opened(t, 0, 1, nullptr, event.at);
      predictor.call_started(t, request.prompt, request.kind, event.at);
      output_error.add(predictor.forecast(t, event.at).current_output_tokens, request.output, mean_output);
      continue;
    }
    predictor.call_ended(t, request.stop, saga::ToolClass::kNone, request.output, event.at);
    const saga::Forecast forecast = predictor.forecast(t, event.at);
    calls_error.add(forecast.remaining_calls, static_cast<double>(threads[t].size() - 1 - position[event.request]),
                    mean_calls);
    rest_error.add(forecast.remaining_output_tokens, rest_output[event.request], mean_rest_output);
    if (request.last) {
      if (closes) {
        predictor.workflow_closed(t, event.at);
      } else {
        idle.push_back({event.at, t});
      }
    }
    while (!idle.empty() && idle.front().first + 40'000'000'000ull < event.at) {
      predictor.workflow_forgotten(idle.front().second, event.at);
      idle.erase(idle.begin());
    }
  }
  const saga::CalibrationReport& report = predictor.calibration().report();
  std::printf("predictor, clients %s (verify %d)\n", closes ? "close their workflows" : "never close",
              predictor.verify());
  print_reliability("next call comes", report.next_call);
  print_reliability("next call within 60 s", report.within_horizon);
  const auto gaps = static_cast<double>(report.gaps.gaps);
  std::printf("  gaps within p50 %.3f, p90 %.3f, p95 %.3f\n", static_cast<double>(report.gaps.within_p50) / gaps,
              static_cast<double>(report.gaps.within_p90) / gaps, static_cast<double>(report.gaps.within_p95) / gaps);
  calls_error.print("calls to come");
  output_error.print("answer of a call");
  rest_error.print("answers to come");
}

}  // namespace

int main(int argc, char** argv) {
  const char* path = nullptr;
  std::uint32_t live = 32;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--trace") == 0) path = argv[i + 1];
    if (std::strcmp(argv[i], "--live") == 0) live = static_cast<std::uint32_t>(std::atoi(argv[i + 1]));
  }
  if (path == nullptr) {
    bench_predictor(64, 4, false);
    bench_predictor(1024, 16, false);
    bench_predictor(1024, 16, true);
    bench_predictor(16384, 64, false);
    synthetic_accuracy(false);
    synthetic_accuracy(true);
    bench_lineage(64, 1024, 16);
    bench_lineage(512, 1024, 16);
    return 0;
  }
  std::vector<std::vector<std::uint32_t>> threads;
  std::vector<Request> requests = read_trace(path, &threads);
  if (requests.empty() || live == 0) {
    std::fprintf(stderr, "no requests in %s\n", path);
    return 1;
  }
  const std::vector<Event> events = schedule(requests, threads, live);
  std::printf("%zu requests, %zu threads\n", requests.size(), threads.size());
  for (const std::uint32_t slack : {1u, 2u, 8u}) trace_lineage(requests, events, slack);
  trace_predictor(requests, threads, events, true);
  trace_predictor(requests, threads, events, false);
  return 0;
}
