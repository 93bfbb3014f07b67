// A zeroed array of fixed length on memory that the system is asked to back with huge pages.
//
// Why: the tables of the prefix index are probed at random. With 4 KiB pages every probe of a table beyond the reach of the
// translation cache also waits for a page walk; with 2 MiB pages it does not.
// Cost: only pages that are touched take memory (the length may be a generous bound); elements start as all zero bits.
// States: live, or moved from (empty). The element type must be trivial, and all zero bits must be a valid value of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "assert.hpp"

// For functions that do nothing but prefetch: GCC takes such a function for one without effect and drops the calls that it
// does not inline. And for probes, which overlap only when they are inlined.
#if defined(__GNUC__)
#define SAGA_ALWAYS_INLINE __attribute__((always_inline)) inline
#else
#define SAGA_ALWAYS_INLINE inline
#endif

namespace saga {

template <class T>
class HugeArray {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  HugeArray() = default;

  explicit HugeArray(std::size_t length) : length_(length) {
    if (length == 0) return;
    // The start is rounded up to a huge page: an array that straddles one more page than it must wastes both.
    mapped_bytes_ = length * sizeof(T) + kAlignment;
#if defined(__linux__)
    void* mapped =
        ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) fail();
    mapping_ = mapped;
#else
    mapping_ = std::calloc(1, mapped_bytes_);
    if (mapping_ == nullptr) fail();
#endif
    const auto start = (reinterpret_cast<std::uintptr_t>(mapping_) + kAlignment - 1) & ~(kAlignment - 1);
    data_ = reinterpret_cast<T*>(start);
#if defined(__linux__)
    if (length * sizeof(T) >= kAlignment) (void)::madvise(data_, length * sizeof(T), MADV_HUGEPAGE);
#endif
  }

  HugeArray(HugeArray&& other) noexcept { swap(other); }
  HugeArray& operator=(HugeArray&& other) noexcept {
    HugeArray moved(std::move(other));
    swap(moved);
    return *this;
  }
  HugeArray(const HugeArray&) = delete;
  HugeArray& operator=(const HugeArray&) = delete;

  ~HugeArray() {
    if (mapping_ == nullptr) return;
#if defined(__linux__)
    (void)::munmap(mapping_, mapped_bytes_);
#else
    std::free(mapping_);
#endif
  }

  T& operator[](std::size_t i) {
    SAGA_ASSERT(i < length_);
    return data_[i];
  }
  const T& operator[](std::size_t i) const {
    SAGA_ASSERT(i < length_);
    return data_[i];
  }
  SAGA_ALWAYS_INLINE void prefetch(std::size_t i) const {
#if defined(__GNUC__)
    __builtin_prefetch(data_ + i);
#else
    (void)i;
#endif
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return length_; }

 private:
  // As a failed `new`: the C interface turns it into a status.
  [[noreturn]] static void fail() {
#if defined(__cpp_exceptions)
    throw std::bad_alloc();
#else
    std::abort();
#endif
  }

  static constexpr std::uintptr_t kAlignment = std::uintptr_t{2} << 20;

  void swap(HugeArray& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    std::swap(data_, other.data_);
    std::swap(length_, other.length_);
  }

  void* mapping_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  T* data_ = nullptr;
  std::size_t length_ = 0;
};

}  // namespace saga
