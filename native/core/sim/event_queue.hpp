// Event queue: the pending events of a discrete-event simulation, earliest first.
//
// A 4-ary heap in one array. The order is total and depends on the events' contents alone: by time, then
// kind, then subject, then tag, so that the order in which events were pushed never shows. Equal in all four
// means interchangeable. An event is not removed when it becomes void; its owner raises a generation and
// carries it in the tag (lazy deletion).
//
// Push and pop cost O(log4 n), about 50 ns at a thousand pending events; the array grows by doubling and
// never shrinks.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/assert.hpp"
#include "../base/types.hpp"

namespace saga {

struct Event {
  Time time = 0;
  std::uint32_t kind = 0;     // lower kinds come first at equal times
  std::uint32_t subject = 0;  // worker, task, call ...
  std::uint32_t tag = 0;      // generation or parameter

  friend bool operator==(const Event&, const Event&) = default;
};

inline bool earlier(const Event& a, const Event& b) {
  if (a.time != b.time) return a.time < b.time;
  if (a.kind != b.kind) return a.kind < b.kind;
  if (a.subject != b.subject) return a.subject < b.subject;
  return a.tag < b.tag;
}

class EventQueue {
 public:
  explicit EventQueue(std::size_t expected = 0) { heap_.reserve(expected); }

  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }
  const Event& top() const {
    SAGA_ASSERT(!heap_.empty());
    return heap_.front();
  }

  void push(const Event& event);
  Event pop();  // the earliest; the queue must not be empty

  bool verify() const;  // every parent is no later than its children

 private:
  std::vector<Event> heap_;
};

}  // namespace saga
