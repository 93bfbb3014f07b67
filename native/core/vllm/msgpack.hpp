// MessagePack, as much as KV events need: a check of a whole message, and a reader that walks a checked one in place.
//
// The check is one pass over all values: every length lies within the message, no value is nested deeper than
// kMostMsgpackDepth, there is exactly one value and nothing behind it. After that a reader needs no check of lengths for
// its safety; it makes the cheap ones all the same. Nothing is copied: texts and bytes refer to the message.
//
// Cost: 1 to 2 ns a value of the check, of skip() and of read_unsigned32(). No recursion, no allocation.
//
// States of a reader: it stands before a value, or at the end of the message. A read_.. that returns true has moved it
// behind the value (read_array, read_map: before the first of its contents); one that returns false, because the value
// is of another type, has not moved it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace saga {

inline constexpr std::uint32_t kMostMsgpackDepth = 32;

// Whether `bytes` are exactly one well-formed value.
bool msgpack_valid(std::span<const std::uint8_t> bytes);

class MsgpackReader {
 public:
  // Reads nothing.
  MsgpackReader() = default;
  // A message that msgpack_valid has accepted. It must outlive the reader.
  explicit MsgpackReader(std::span<const std::uint8_t> message)
      : at_(message.data()), end_(message.data() + message.size()) {}

  const std::uint8_t* position() const { return at_; }
  bool at_end() const { return at_ == end_; }

  bool is_nil() const { return at_ != end_ && *at_ == 0xC0; }
  bool is_text() const;
  bool is_array() const;
  bool is_map() const;
  bool is_integer() const;

  bool read_nil();
  bool read_array(std::uint32_t* count);
  bool read_map(std::uint32_t* count);  // of pairs
  // Any integer, as the 64 bits of its two's complement; *negative tells which of the two it is.
  bool read_integer(std::uint64_t* bits, bool* negative);
  // An integer in [0, 2^32).
  bool read_unsigned32(std::uint32_t* value) { return read_unsigned32(value, 1) == 1; }
  // Several of them: returns how many there were before one that is none, and stands before that.
  std::uint32_t read_unsigned32(std::uint32_t* values, std::uint32_t count);
  bool read_number(double* value);  // integer or float
  bool read_text(std::string_view* text);
  bool read_bytes(std::span<const std::uint8_t>* bytes);
  // Moves behind the value, whatever it is.
  void skip();
  void skip(std::uint64_t values);

 private:
  bool read_length(std::uint8_t fixed, std::uint8_t fixed_most, std::uint8_t wide, std::uint32_t* length);

  const std::uint8_t* at_ = nullptr;
  const std::uint8_t* end_ = nullptr;
};

}  // namespace saga
