// Where things are in a JSON text: one pass that checks all of it and makes no value.
//
// Reported are the members of the top-level object (name, value, type; of arrays how many elements of which types) and the ranges
// of the elements of chosen arrays, so that a gateway can read small members, know the bytes of each message, and send a body on
// with a few members changed. Arrays of token ids, which can be a whole body, are read in the same pass.
//
// Accepted is RFC 8259 in well-formed UTF-8, and nothing else but for two bounds: kMaxJsonDepth levels, and no name twice in the
// top-level object. Names are compared as they are after unescaping: "n" and "\u006e" are one.
//
// Cost: strings are most of a chat body. They are searched 16 bytes at a time (SSE2; elsewhere 8 in a word) for what ends or
// interrupts them: a quote, a backslash, a control character, a byte that is not ASCII. On a core at 3 to 4 GHz: long ASCII strings
// 10 GB/s and more, code with an escape every few dozen bytes several, text that is not ASCII about 1. Token ids are looked at 64
// bytes at a time (SSE2; elsewhere one by one, a third as fast): 2 to 3 ns an id. No recursion, no allocation:
// the kind of every open container is one bit. m members cost m * m / 2 comparisons of integers for names that are there twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace saga {

inline constexpr std::uint32_t kMaxJsonDepth = 1024;
inline constexpr std::size_t kMaxJsonBytes = 0xFFFFFFFEu;  // positions are 32 bits, and kNone is none

enum class JsonType : std::uint8_t {
  kNone = 0,
  kObject = 1,
  kArray = 2,
  kString = 3,
  kNumber = 4,
  kTrue = 5,
  kFalse = 6,
  kNull = 7,
};

// What was expected where a text is wrong. Values are those of saga_json_error_t.
enum class JsonError : std::uint8_t {
  kNone = 0,
  kValue = 1,
  kName = 2,
  kColon = 3,
  kCommaOrBrace = 4,
  kCommaOrBracket = 5,
  kEnd = 6,
  kQuote = 7,
  kEscape = 8,
  kEscapeLetter = 9,
  kHexDigit = 10,
  kUtf8 = 11,
  kDigit = 12,
  kLessDepth = 13,
  kNewName = 14,
  kTokenId = 15,
  kArray = 16,
};

// A member of the top-level object. Ranges are bytes [start, end).
struct JsonMember {
  static constexpr std::uint32_t kEscaped = 1u << 8;  // in `type`: the name has escapes
  static constexpr std::uint32_t kIds = 1u << 9;      // in `type`: first_element is a place in `ids`
  static constexpr std::uint32_t kElementTypes = 16;  // in `type`: bits from here on are the set of types of elements

  std::uint32_t name_start;  // within the quotes
  std::uint32_t name_end;
  std::uint32_t start;
  std::uint32_t end;
  std::uint32_t type;           // JsonType in the low 8 bits
  std::uint32_t element_count;  // of an array
  std::uint32_t first_element;  // kNone: neither listed nor read as ids
  std::uint32_t name_hash;      // of the name after unescaping
};

struct JsonElement {
  std::uint32_t start;
  std::uint32_t end;
  std::uint32_t type;  // JsonType
};

struct JsonOutline {
  JsonError error = JsonError::kNone;  // if another, only `position` means something besides
  std::uint32_t position = 0;          // the byte that is wrong; the size where the text ends too early
  JsonType type = JsonType::kNone;     // of the one value that the text is
  std::uint32_t start = 0;
  std::uint32_t end = 0;
  std::uint32_t member_count = 0;   // beyond members.size(): the first of them were written
  std::uint32_t element_count = 0;  // listed ones; the same
  std::uint32_t id_count = 0;       // of all arrays of ids
};

// Scans a text of at most kMaxJsonBytes. Elements are listed of arrays that are members with one of the `names`, but not where the
// first is a number: there may be very many. A name that is there twice is found among those members that fit.
//
// Arrays that are members, of whatever name, and have nothing but token ids (integers from 0 to 2^32 - 1 in plain digits) are read
// into `ids`, one behind the other, and have JsonMember::kIds. One that does not fit is counted, and neither it nor one behind it is
// marked; read_token_ids reads it. What `ids` has behind the arrays that are marked means nothing.
JsonOutline scan_json(std::span<const std::uint8_t> text, std::span<const std::string_view> names,
                      std::span<JsonMember> members, std::span<JsonElement> elements,
                      std::span<std::uint32_t> ids = {});

struct TokenIds {
  JsonError error = JsonError::kNone;
  std::uint32_t position = 0;
  std::uint32_t count = 0;  // beyond ids.size(): the first of them were written
};

// Reads an array of integers from 0 to 2^32 - 1, with white space around it if there is any: text[start, end). Positions are those
// of `text`.
TokenIds read_token_ids(std::span<const std::uint8_t> text, std::size_t start, std::size_t end,
                        std::span<std::uint32_t> ids);

}  // namespace saga
