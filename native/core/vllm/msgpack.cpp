#include "msgpack.hpp"

#include <array>
#include <bit>

#include "../base/assert.hpp"
#include "../hash/bytes.hpp"

namespace saga {
namespace {

// By first byte: the size of a value whose size that byte alone tells and that contains no others; else 0.
constexpr std::array<std::uint8_t, 256> scalar_sizes() {
  std::array<std::uint8_t, 256> sizes{};
  for (std::size_t i = 0; i < 0x80; ++i) sizes[i] = 1;                                             // positive
  for (std::size_t i = 0xA0; i < 0xC0; ++i) sizes[i] = static_cast<std::uint8_t>(1 + (i & 0x1F));  // short texts
  sizes[0xC0] = sizes[0xC2] = sizes[0xC3] = 1;                                                     // nil, false, true
  sizes[0xCA] = 5, sizes[0xCB] = 9;                                                                // floats
  sizes[0xCC] = 2, sizes[0xCD] = 3, sizes[0xCE] = 5, sizes[0xCF] = 9;                              // unsigned
  sizes[0xD0] = 2, sizes[0xD1] = 3, sizes[0xD2] = 5, sizes[0xD3] = 9;                              // signed
  sizes[0xD4] = 3, sizes[0xD5] = 4, sizes[0xD6] = 6, sizes[0xD7] = 10, sizes[0xD8] = 18;           // extensions
  for (std::size_t i = 0xE0; i < 0x100; ++i) sizes[i] = 1;                                         // negative
  return sizes;
}
constexpr std::array<std::uint8_t, 256> kScalarSize = scalar_sizes();

std::uint16_t load_big_endian16(const std::uint8_t* from) { return static_cast<std::uint16_t>(from[0] << 8 | from[1]); }

// By first byte: how an unsigned integer of at most 4 bytes lies in the 8 bytes from there, read as a big-endian number. Size 0:
// the value is something else.
struct UnsignedForm {
  std::uint8_t size, left, right;
};
constexpr std::array<UnsignedForm, 256> unsigned_forms() {
  std::array<UnsignedForm, 256> forms{};
  for (std::size_t i = 0; i < 0x80; ++i) forms[i] = {1, 0, 56};
  forms[0xCC] = {2, 8, 56};
  forms[0xCD] = {3, 8, 48};
  forms[0xCE] = {5, 8, 32};
  return forms;
}
constexpr std::array<UnsignedForm, 256> kUnsignedForms = unsigned_forms();

// What a value takes without the values that it contains, and how many those are.
struct Extent {
  std::uint64_t size;
  std::uint64_t contents;
};

// False: no value begins here, or its own bytes do not fit.
bool extent_of(const std::uint8_t* at, std::uint64_t left, Extent* extent) {
  if (left == 0) return false;
  const std::uint8_t first = *at;
  *extent = {kScalarSize[first], 0};
  if (extent->size != 0) return extent->size <= left;
  if (first < 0x90) {
    *extent = {1, 2u * (first & 0x0Fu)};
    return true;
  }
  if (first < 0xA0) {
    *extent = {1, first & 0x0Fu};
    return true;
  }
  // The rest: a length of 1, 2 or 4 bytes behind the first.
  std::uint64_t width = 0;
  std::uint64_t fixed = 0;
  switch (first) {
    case 0xC4:  // bytes
    case 0xD9:  // text
      width = 1;
      break;
    case 0xC5:
    case 0xDA:
    case 0xDC:  // array
    case 0xDE:  // map
      width = 2;
      break;
    case 0xC6:
    case 0xDB:
    case 0xDD:
    case 0xDF:
      width = 4;
      break;
    case 0xC7:  // extensions have a byte that names their type
      width = 1, fixed = 1;
      break;
    case 0xC8:
      width = 2, fixed = 1;
      break;
    case 0xC9:
      width = 4, fixed = 1;
      break;
    default:  // 0xC1 is not used
      return false;
  }
  if (left < 1 + width) return false;
  const std::uint64_t length = width == 1   ? at[1]
                               : width == 2 ? load_big_endian16(at + 1)
                                            : load_big_endian<std::uint32_t>(at + 1);
  if (first == 0xDC || first == 0xDD) {
    *extent = {1 + width, length};
  } else if (first == 0xDE || first == 0xDF) {
    *extent = {1 + width, 2 * length};
  } else {
    *extent = {1 + width + fixed + length, 0};
  }
  return extent->size <= left;
}

}  // namespace

bool msgpack_valid(std::span<const std::uint8_t> bytes) {
  const std::uint8_t* at = bytes.data();
  std::uint64_t left = bytes.size();
  std::uint64_t outer[kMostMsgpackDepth];  // values still to come in each array or map around this one
  std::uint32_t depth = 0;
  std::uint64_t pending = 1;
  for (;;) {
    while (pending != 0 && left != 0) {
      const std::uint64_t size = kScalarSize[*at];
      if (size == 0 || size > left) break;
      at += size;
      left -= size;
      --pending;
    }
    if (pending == 0) {
      if (depth == 0) return left == 0;
      pending = outer[--depth];
      continue;
    }
    Extent extent;
    if (!extent_of(at, left, &extent)) return false;
    at += extent.size;
    left -= extent.size;
    --pending;
    if (extent.contents == 0) continue;
    // Each of them takes a byte at least; so no count can be made up.
    if (extent.contents > left || depth == kMostMsgpackDepth) return false;
    outer[depth++] = pending;
    pending = extent.contents;
  }
}

bool MsgpackReader::is_text() const { return at_ != end_ && ((*at_ & 0xE0) == 0xA0 || (*at_ >= 0xD9 && *at_ <= 0xDB)); }
bool MsgpackReader::is_array() const { return at_ != end_ && ((*at_ & 0xF0) == 0x90 || *at_ == 0xDC || *at_ == 0xDD); }
bool MsgpackReader::is_map() const { return at_ != end_ && ((*at_ & 0xF0) == 0x80 || *at_ == 0xDE || *at_ == 0xDF); }
bool MsgpackReader::is_integer() const {
  return at_ != end_ && (*at_ < 0x80 || *at_ >= 0xE0 || (*at_ >= 0xCC && *at_ <= 0xD3));
}

bool MsgpackReader::read_nil() {
  if (!is_nil()) return false;
  ++at_;
  return true;
}

// A length in the first byte (`fixed` to `fixed_most`), or behind it in 2 (`wide`) or 4 bytes (`wide` + 1).
bool MsgpackReader::read_length(std::uint8_t fixed, std::uint8_t fixed_most, std::uint8_t wide, std::uint32_t* length) {
  if (at_ == end_) return false;
  const std::uint8_t first = *at_;
  if (first >= fixed && first <= fixed_most) {
    *length = static_cast<std::uint32_t>(first - fixed);
    ++at_;
  } else if (first == wide && end_ - at_ >= 3) {
    *length = load_big_endian16(at_ + 1);
    at_ += 3;
  } else if (first == wide + 1 && end_ - at_ >= 5) {
    *length = load_big_endian<std::uint32_t>(at_ + 1);
    at_ += 5;
  } else {
    return false;
  }
  return true;
}

bool MsgpackReader::read_array(std::uint32_t* count) { return read_length(0x90, 0x9F, 0xDC, count); }
bool MsgpackReader::read_map(std::uint32_t* count) { return read_length(0x80, 0x8F, 0xDE, count); }

bool MsgpackReader::read_integer(std::uint64_t* bits, bool* negative) {
  if (!is_integer()) return false;
  const std::uint8_t first = *at_;
  const std::size_t size = kScalarSize[first];
  if (static_cast<std::size_t>(end_ - at_) < size) return false;
  const auto sign_extended = [](auto value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); };
  const std::uint8_t* const from = at_ + 1;
  switch (first) {
    case 0xCC:
      *bits = *from;
      break;
    case 0xCD:
      *bits = load_big_endian16(from);
      break;
    case 0xCE:
      *bits = load_big_endian<std::uint32_t>(from);
      break;
    case 0xCF:
      *bits = load_big_endian<std::uint64_t>(from);
      break;
    case 0xD0:
      *bits = sign_extended(static_cast<std::int8_t>(*from));
      break;
    case 0xD1:
      *bits = sign_extended(std::bit_cast<std::int16_t>(load_big_endian16(from)));
      break;
    case 0xD2:
      *bits = sign_extended(std::bit_cast<std::int32_t>(load_big_endian<std::uint32_t>(from)));
      break;
    case 0xD3:
      *bits = load_big_endian<std::uint64_t>(from);
      break;
    default:
      *bits = sign_extended(static_cast<std::int8_t>(first));
  }
  *negative = first != 0xCF && (*bits >> 63) != 0;
  at_ += size;
  return true;
}

std::uint32_t MsgpackReader::read_unsigned32(std::uint32_t* values, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    // Token ids are of mixed widths, which no branch predictor learns: shifts by what the first byte says.
    if (end_ - at_ >= 8) {
      const UnsignedForm form = kUnsignedForms[*at_];
      if (form.size != 0) {
        values[i] = static_cast<std::uint32_t>(load_big_endian<std::uint64_t>(at_) << form.left >> form.right);
        at_ += form.size;
        continue;
      }
    }
    const std::uint8_t* const before = at_;
    std::uint64_t bits = 0;
    bool negative = false;
    if (!read_integer(&bits, &negative) || negative || bits > 0xFFFFFFFFu) {
      at_ = before;
      return i;
    }
    values[i] = static_cast<std::uint32_t>(bits);
  }
  return count;
}

bool MsgpackReader::read_number(double* value) {
  if (at_ == end_) return false;
  if (*at_ == 0xCB && end_ - at_ >= 9) {
    *value = std::bit_cast<double>(load_big_endian<std::uint64_t>(at_ + 1));
    at_ += 9;
    return true;
  }
  if (*at_ == 0xCA && end_ - at_ >= 5) {
    *value = static_cast<double>(std::bit_cast<float>(load_big_endian<std::uint32_t>(at_ + 1)));
    at_ += 5;
    return true;
  }
  std::uint64_t bits = 0;
  bool negative = false;
  if (!read_integer(&bits, &negative)) return false;
  *value = negative ? static_cast<double>(std::bit_cast<std::int64_t>(bits)) : static_cast<double>(bits);
  return true;
}

bool MsgpackReader::read_text(std::string_view* text) {
  Extent extent;
  if (!is_text() || !extent_of(at_, static_cast<std::uint64_t>(end_ - at_), &extent)) return false;
  const std::size_t head = *at_ < 0xC0 ? 1 : *at_ == 0xD9 ? 2 : *at_ == 0xDA ? 3 : 5;
  *text = {reinterpret_cast<const char*>(at_) + head, extent.size - head};
  at_ += extent.size;
  return true;
}

bool MsgpackReader::read_bytes(std::span<const std::uint8_t>* bytes) {
  Extent extent;
  if (at_ == end_ || *at_ < 0xC4 || *at_ > 0xC6) return false;
  if (!extent_of(at_, static_cast<std::uint64_t>(end_ - at_), &extent)) return false;
  const std::size_t head = *at_ == 0xC4 ? 2 : *at_ == 0xC5 ? 3 : 5;
  *bytes = {at_ + head, extent.size - head};
  at_ += extent.size;
  return true;
}

void MsgpackReader::skip() { skip(1); }

void MsgpackReader::skip(std::uint64_t values) {
  while (values != 0) {
    const auto left = static_cast<std::uint64_t>(end_ - at_);
    if (left != 0) {
      const std::uint64_t size = kScalarSize[*at_];
      if (size != 0 && size <= left) {
        at_ += size;
        --values;
        continue;
      }
    }
    Extent extent;
    const bool fits = extent_of(at_, left, &extent);
    SAGA_ASSERT(fits);
    if (!fits) {
      at_ = end_;
      return;
    }
    at_ += extent.size;
    values += extent.contents - 1;
  }
}

}  // namespace saga
