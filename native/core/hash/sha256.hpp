// SHA-256 (FIPS 180-4), for the block hashes of engines that use it.
//
// A block of 16 tokens with its parent digest is at most 126 padded bytes, hence two compressions, and each block waits
// for the one before: what counts is the latency of a compression. Where the processor has SHA-256 instructions (found
// at run time on x86-64 and on 64-bit Arm under Linux; the build needs no -m flag) two compressions take some 70 ns, in
// plain C++ six times that.
//
// `sha256` is the one-shot form: it reads the message where it lies and copies only the last partial block. `Sha256` is
// the incremental form for messages that come in pieces: update any number of times, finish once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace saga {

using Sha256Digest = std::array<std::uint8_t, 32>;

Sha256Digest sha256(const void* data, std::size_t size);

// The same for a message in a buffer that may be written to: the padding goes behind the message, into kSha256Room
// bytes of any content, so that nothing is copied; that saves some 10 ns a block hash.
inline constexpr std::size_t kSha256Room = 72;
Sha256Digest sha256_in_place(std::uint8_t* message, std::size_t size);

// States: open (after construction) -> finished. Invariant while open: the first `size_ % 64` bytes of `pending_` are
// the message bytes that state_ has not absorbed yet.
class Sha256 {
 public:
  Sha256();

  void update(const void* data, std::size_t size);
  Sha256Digest finish();

  bool verify() const;

 private:
  std::uint32_t state_[8];
  std::uint8_t pending_[64] = {};
  std::uint64_t size_ = 0;  // bytes given so far
  bool finished_ = false;
};

// The compression function over `blocks` consecutive 64-byte blocks, by implementation. The digest functions choose by
// themselves; these are here so that the implementations can be tested against each other.
namespace sha256_detail {
void compress_portable(std::uint32_t state[8], const std::uint8_t* data, std::size_t blocks);
// With the processor's SHA instructions; returns false and does nothing where there are none.
bool compress_accelerated(std::uint32_t state[8], const std::uint8_t* data, std::size_t blocks);
}  // namespace sha256_detail

}  // namespace saga
