// A writer of canonical CBOR (RFC 8949, core deterministic encoding: shortest integers, definite lengths), for exactly
// what the preimage of a block hash needs: arrays, byte strings, text, integers, null.
//
// It writes into a buffer of the caller and allocates nothing. The bound is the caller's to know (the item sizes below
// are constants, kMaxItemSize and the length of the string) and is asserted on every write. Integers are stored as
// whole 8-byte words of which the surplus is overwritten by what follows, without a branch on their width: the widths
// of token ids are unpredictable (a vocabulary of 150,000 straddles 65,536). The buffer must therefore have kSlack
// bytes behind the last item.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "../base/assert.hpp"
#include "bytes.hpp"

namespace saga {

class CborWriter {
 public:
  static constexpr std::size_t kMaxItemSize = 9;    // the head of any item; all there is of an integer
  static constexpr std::size_t kMaxItemSize32 = 5;  // the same where the number or length has 32 bits
  static constexpr std::size_t kSlack = 8;

  CborWriter(std::uint8_t* buffer, std::size_t capacity) : begin_(buffer), next_(buffer), end_(buffer + capacity) {
    SAGA_ASSERT(capacity >= kSlack);
  }

  void null() {
    SAGA_ASSERT(fits(1));
    *next_++ = 0xf6;
  }

  void integer(std::int64_t value) {
    if (value >= 0) {
      head(kUnsigned, static_cast<std::uint64_t>(value));
    } else {
      head(kNegative, ~static_cast<std::uint64_t>(value));  // -1 - value
    }
  }

  // The head of an array; its `count` elements are the items that follow.
  void array(std::uint64_t count) { head(kArray, count); }

  void bytes(std::span<const std::uint8_t> value) { string(kBytes, value.data(), value.size()); }
  void text(std::string_view utf8) { string(kText, utf8.data(), utf8.size()); }

  // A whole array of unsigned integers.
  void integers(std::span<const std::uint32_t> values) {
    array(values.size());
    SAGA_ASSERT(fits(values.size() * kMaxItemSize32));
    std::uint8_t* to = next_;
    for (const std::uint32_t value : values) to = store_head32(to, kUnsigned, value);
    next_ = to;
  }

  std::size_t size() const { return static_cast<std::size_t>(next_ - begin_); }

  bool verify() const { return begin_ <= next_ && next_ + kSlack <= end_; }

 private:
  // Major types, as the high three bits of the first byte of an item.
  static constexpr std::uint8_t kUnsigned = 0 << 5;
  static constexpr std::uint8_t kNegative = 1 << 5;
  static constexpr std::uint8_t kBytes = 2 << 5;
  static constexpr std::uint8_t kText = 3 << 5;
  static constexpr std::uint8_t kArray = 4 << 5;

  bool fits(std::size_t size) const { return static_cast<std::size_t>(end_ - next_) >= size + kSlack; }

  // Writes 8 bytes; returns where the item ends.
  static std::uint8_t* store_head32(std::uint8_t* to, std::uint8_t major, std::uint32_t argument) {
    struct Form {
      std::uint8_t first;  // low bits of the first byte
      std::uint8_t drop;   // bits of the big-endian argument that are left out
      std::uint8_t shift;  // where the argument begins: in the first byte, or behind it
      std::uint8_t size;
    };
    static constexpr Form kForms[4] = {{0, 24, 0, 1}, {24, 24, 8, 2}, {25, 16, 8, 3}, {26, 0, 8, 5}};
    const Form& form = kForms[unsigned{argument >= 24} + unsigned{argument >= 256} + unsigned{argument >= 65536}];
    const std::uint64_t kept = swap_bytes(argument) >> form.drop;
    store_little_endian(to, (kept << form.shift) | form.first | major);
    return to + form.size;
  }

  void head(std::uint8_t major, std::uint64_t argument) {
    SAGA_ASSERT(fits(kMaxItemSize));
    if (argument <= 0xFFFFFFFFu) {
      next_ = store_head32(next_, major, static_cast<std::uint32_t>(argument));
    } else {
      *next_ = static_cast<std::uint8_t>(major | 27);
      store_big_endian(next_ + 1, argument);
      next_ += kMaxItemSize;
    }
  }

  void string(std::uint8_t major, const void* data, std::size_t size) {
    head(major, size);
    SAGA_ASSERT(fits(size));
    if (size != 0) std::memcpy(next_, data, size);
    next_ += size;
  }

  std::uint8_t* begin_;
  std::uint8_t* next_;
  std::uint8_t* end_;
};

}  // namespace saga
