// What all files of the C interface share: status conversion, argument checks, and the border that no exception crosses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "../core/base/status.hpp"
#include "../core/hash/block_hash.hpp"
#include "saga/saga.h"

namespace saga::capi {

inline saga_status_t to_c(Status status) { return static_cast<saga_status_t>(status); }

// Whether (pointer, count) may be read or written as an array: NULL only with count 0, and not beyond the address space.
template <typename T>
bool is_array(const T* pointer, std::size_t count) {
  return count == 0 || (pointer != nullptr && count <= SIZE_MAX / sizeof(T));
}

template <typename T>
std::span<T> to_span(T* pointer, std::size_t count) {
  return count == 0 ? std::span<T>() : std::span<T>(pointer, count);
}

inline bool in_range(std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  return value >= least && value <= most;
}

// Not SAGA_HASH_SAGA.
inline VllmHashAlgorithm to_vllm_algorithm(std::uint32_t algorithm) {
  static_assert(SAGA_HASH_XXHASH_CBOR_TAGGED - 1 == static_cast<int>(VllmHashAlgorithm::kXxhashCborTagged));
  return static_cast<VllmHashAlgorithm>(algorithm - 1);
}

// Runs `make`, which allocates, and turns the one exception that the core can meet into a status.
template <typename F>
saga_status_t guarded(F&& make) {
  try {
    return std::forward<F>(make)();
  } catch (...) {
    return SAGA_ERR_OUT_OF_MEMORY;
  }
}

// Writes defaults into a caller's options struct of `struct_size` bytes, which may be that of an older or a newer header: never
// a byte behind it, and zeros where this library knows nothing.
template <typename Options>
void write_options(Options defaults, Options* options, std::uint32_t struct_size) {
  if (options == nullptr || struct_size < sizeof(defaults.struct_size)) return;
  defaults.struct_size = struct_size;
  const std::size_t known = struct_size < sizeof(Options) ? struct_size : sizeof(Options);
  std::memcpy(options, &defaults, known);
  std::memset(reinterpret_cast<unsigned char*>(options) + known, 0, struct_size - known);
}

// Copies the caller's options over the defaults: as many bytes as both know. False if struct_size is not that of an options
// struct (smaller than its own field, or beyond what any version could have).
template <typename Options>
bool read_options(const Options* given, Options* options) {
  constexpr std::uint32_t kMost = 4096;
  if (given == nullptr || given->struct_size < sizeof(given->struct_size) || given->struct_size > kMost) return false;
  const std::size_t size = given->struct_size < sizeof(Options) ? given->struct_size : sizeof(Options);
  const auto* from = reinterpret_cast<const unsigned char*>(given);
  // An option of a newer header that this library does not know cannot be honoured: only its zero, "not used", is accepted.
  for (std::size_t i = size; i < given->struct_size; ++i) {
    if (from[i] != 0) return false;
  }
  std::memcpy(options, from, size);
  return true;
}

}  // namespace saga::capi
