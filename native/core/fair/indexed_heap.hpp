// A 4-ary min-heap of small integer ids by (key, id), with the place of every id, so that keys can change in place.
//
// Cost: O(log n) a change, about three cache lines a level less than a binary heap; nothing is allocated after construction.
// Invariants: place_[heap_[i].id] == i; no element is smaller than its parent; equal keys order by id, so the order never
// depends on history.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../base/assert.hpp"
#include "../base/types.hpp"

namespace saga {

class IndexedHeap {
 public:
  explicit IndexedHeap(std::uint32_t ids) : heap_(ids), place_(ids, kNone) {}

  bool empty() const { return size_ == 0; }
  std::uint32_t size() const { return size_; }
  bool contains(std::uint32_t id) const { return place_[id] != kNone; }
  std::uint32_t top() const { return heap_[0].id; }
  std::uint64_t top_key() const { return heap_[0].key; }
  std::uint32_t at(std::uint32_t i) const { return heap_[i].id; }  // in no particular order but for the first
  std::uint64_t key(std::uint32_t id) const { return heap_[place_[id]].key; }

  // Inserts the id, or moves it to its new key.
  void set(std::uint32_t id, std::uint64_t key) {
    std::uint32_t place = place_[id];
    const Element element{key, id};
    if (place == kNone) {
      place = size_++;
      sift_up(place, element);
    } else if (element.before(heap_[place])) {
      sift_up(place, element);
    } else {
      sift_down(place, element);
    }
  }

  void erase(std::uint32_t id) {
    const std::uint32_t place = place_[id];
    SAGA_ASSERT(place != kNone);
    place_[id] = kNone;
    const Element last = heap_[--size_];
    if (place == size_) return;
    if (place > 0 && last.before(heap_[(place - 1) / 4])) {
      sift_up(place, last);
    } else {
      sift_down(place, last);
    }
  }

  void clear() {
    while (size_ > 0) place_[heap_[--size_].id] = kNone;
  }

  bool verify() const {
    std::uint32_t placed = 0;
    for (const std::uint32_t place : place_) placed += place != kNone ? 1u : 0u;
    if (placed != size_) return false;
    for (std::uint32_t i = 0; i < size_; ++i) {
      if (place_[heap_[i].id] != i) return false;
      if (i > 0 && heap_[i].before(heap_[(i - 1) / 4])) return false;
    }
    return true;
  }

 private:
  struct Element {
    std::uint64_t key;
    std::uint32_t id;
    bool before(const Element& other) const { return key != other.key ? key < other.key : id < other.id; }
  };

  void put(std::uint32_t place, const Element& element) {
    heap_[place] = element;
    place_[element.id] = place;
  }

  void sift_up(std::uint32_t place, const Element& element) {
    while (place > 0) {
      const std::uint32_t parent = (place - 1) / 4;
      if (!element.before(heap_[parent])) break;
      put(place, heap_[parent]);
      place = parent;
    }
    put(place, element);
  }

  void sift_down(std::uint32_t place, const Element& element) {
    for (;;) {
      const std::uint32_t first = place * 4 + 1;
      if (first >= size_) break;
      const std::uint32_t end = first + 4 < size_ ? first + 4 : size_;
      std::uint32_t least = first;
      for (std::uint32_t child = first + 1; child < end; ++child) {
        if (heap_[child].before(heap_[least])) least = child;
      }
      if (!heap_[least].before(element)) break;
      put(place, heap_[least]);
      place = least;
    }
    put(place, element);
  }

  std::vector<Element> heap_;
  std::vector<std::uint32_t> place_;
  std::uint32_t size_ = 0;
};

}  // namespace saga
