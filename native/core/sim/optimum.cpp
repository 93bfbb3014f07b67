// Pinned OPT on the requests that one simulated worker served (declared in cluster.hpp).
#include <algorithm>

#include "../base/assert.hpp"
#include "cluster.hpp"
#include "event_queue.hpp"

namespace saga {

OptimumResult replay_optimum(const Workload& workload, const PageTree& tree, const std::vector<ServedRequest>& served,
                             std::uint32_t capacity_pages) {
  OptimumResult result;
  std::vector<CallId> order;
  order.reserve(served.size());
  for (const ServedRequest& request : served) order.push_back(request.call);

  // Most requests at once: a sweep over the ends, sorted.
  std::vector<Time> ends;
  ends.reserve(served.size());
  for (const ServedRequest& request : served) ends.push_back(request.end);
  std::sort(ends.begin(), ends.end());
  std::size_t ended = 0;
  std::size_t most = 1;
  for (std::size_t i = 0; i < served.size(); ++i) {
    while (ends[ended] <= served[i].start && ended < i) ++ended;
    most = std::max(most, i + 1 - ended);
  }

  const FutureRequests future{order.data(), static_cast<std::uint32_t>(order.size())};
  PageCache cache(tree, capacity_pages, static_cast<std::uint32_t>(most), PolicyKind::kBelady, future);
  std::vector<std::uint32_t> free_slots;
  for (auto slot = static_cast<std::uint32_t>(most); slot-- > 0;) free_slots.push_back(slot);

  EventQueue running;  // time = end, kind = position in `served`, subject = slot
  const auto end_until = [&](Time now) {
    while (!running.empty() && running.top().time <= now) {
      const Event event = running.pop();
      const CallId call = served[event.kind].call;
      const std::uint32_t pages = tree.path_pages(tree.final_leaf(call));
      cache.insert(event.subject, pages - cache.frontier(event.subject));
      cache.end(event.subject, {call, workload.stop_reason[call], workload.tool_class[call], tree.final_leaf(call)},
                event.time);
      cache.trim(event.time);
      free_slots.push_back(event.subject);
    }
  };
  for (std::uint32_t i = 0; i < served.size(); ++i) {
    const ServedRequest& request = served[i];
    end_until(request.start);
    SAGA_ASSERT(!free_slots.empty());
    const std::uint32_t slot = free_slots.back();
    free_slots.pop_back();
    const NodeId prompt_leaf = tree.prompt_leaf(request.call);
    const std::uint32_t pages = tree.path_pages(prompt_leaf);
    const std::uint32_t matched = cache.start(
        slot, {request.call, workload.call_thread[request.call], prompt_leaf, tree.final_leaf(request.call)}, pages,
        request.start);
    cache.insert(slot, pages - matched);
    cache.trim(request.start);
    result.missed_pages += pages - matched;
    result.missed_cost += page_cost(tree.page_tokens(), matched, pages);
    running.push({std::max(request.end, request.start + 1), i, slot, 0});
  }
  return result;
}

}  // namespace saga
