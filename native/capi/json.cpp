// Outlines of JSON texts in the C interface: checks, then native/core/json/json_outline.hpp.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "../core/base/common_prefix.hpp"
#include "../core/hash/xxh3.hpp"
#include "../core/json/json_outline.hpp"
#include "check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_JSON_MAX_DEPTH == kMaxJsonDepth);
static_assert(SAGA_JSON_OBJECT == static_cast<int>(JsonType::kObject) &&
              SAGA_JSON_ARRAY == static_cast<int>(JsonType::kArray) &&
              SAGA_JSON_STRING == static_cast<int>(JsonType::kString) &&
              SAGA_JSON_NUMBER == static_cast<int>(JsonType::kNumber) &&
              SAGA_JSON_TRUE == static_cast<int>(JsonType::kTrue) &&
              SAGA_JSON_FALSE == static_cast<int>(JsonType::kFalse) &&
              SAGA_JSON_NULL == static_cast<int>(JsonType::kNull));
static_assert(SAGA_JSON_EXPECTED_VALUE == static_cast<int>(JsonError::kValue) &&
              SAGA_JSON_EXPECTED_NAME == static_cast<int>(JsonError::kName) &&
              SAGA_JSON_EXPECTED_COLON == static_cast<int>(JsonError::kColon) &&
              SAGA_JSON_EXPECTED_COMMA_OR_BRACE == static_cast<int>(JsonError::kCommaOrBrace) &&
              SAGA_JSON_EXPECTED_COMMA_OR_BRACKET == static_cast<int>(JsonError::kCommaOrBracket) &&
              SAGA_JSON_EXPECTED_END == static_cast<int>(JsonError::kEnd) &&
              SAGA_JSON_EXPECTED_QUOTE == static_cast<int>(JsonError::kQuote) &&
              SAGA_JSON_EXPECTED_ESCAPE == static_cast<int>(JsonError::kEscape) &&
              SAGA_JSON_EXPECTED_ESCAPE_LETTER == static_cast<int>(JsonError::kEscapeLetter) &&
              SAGA_JSON_EXPECTED_HEX_DIGIT == static_cast<int>(JsonError::kHexDigit) &&
              SAGA_JSON_EXPECTED_UTF8 == static_cast<int>(JsonError::kUtf8) &&
              SAGA_JSON_EXPECTED_DIGIT == static_cast<int>(JsonError::kDigit) &&
              SAGA_JSON_EXPECTED_LESS_DEPTH == static_cast<int>(JsonError::kLessDepth) &&
              SAGA_JSON_EXPECTED_NEW_NAME == static_cast<int>(JsonError::kNewName) &&
              SAGA_JSON_EXPECTED_TOKEN_ID == static_cast<int>(JsonError::kTokenId) &&
              SAGA_JSON_EXPECTED_ARRAY == static_cast<int>(JsonError::kArray));

// The core writes into the caller's arrays.
static_assert(sizeof(saga_json_member_t) == sizeof(JsonMember) && sizeof(saga_json_element_t) == sizeof(JsonElement));
static_assert(offsetof(saga_json_member_t, name_start) == offsetof(JsonMember, name_start) &&
              offsetof(saga_json_member_t, name_end) == offsetof(JsonMember, name_end) &&
              offsetof(saga_json_member_t, start) == offsetof(JsonMember, start) &&
              offsetof(saga_json_member_t, end) == offsetof(JsonMember, end) &&
              offsetof(saga_json_member_t, type) == offsetof(JsonMember, type) &&
              offsetof(saga_json_member_t, element_count) == offsetof(JsonMember, element_count) &&
              offsetof(saga_json_member_t, first_element) == offsetof(JsonMember, first_element) &&
              offsetof(saga_json_element_t, start) == offsetof(JsonElement, start) &&
              offsetof(saga_json_element_t, end) == offsetof(JsonElement, end) &&
              offsetof(saga_json_element_t, type) == offsetof(JsonElement, type));
static_assert(SAGA_JSON_NAME_ESCAPED == JsonMember::kEscaped && SAGA_JSON_IDS == JsonMember::kIds);

namespace {

constexpr std::size_t kMostNames = 64;
constexpr std::size_t kMostMembers = 4096;

}  // namespace

extern "C" {

const char* saga_json_error_text(saga_json_error_t error) {
  switch (error) {
    case SAGA_JSON_VALID:
      return "nothing else";
    case SAGA_JSON_EXPECTED_VALUE:
      return "a value";
    case SAGA_JSON_EXPECTED_NAME:
      return "a name in quotes";
    case SAGA_JSON_EXPECTED_COLON:
      return "a colon behind the name";
    case SAGA_JSON_EXPECTED_COMMA_OR_BRACE:
      return "a comma or a closing brace";
    case SAGA_JSON_EXPECTED_COMMA_OR_BRACKET:
      return "a comma or a closing bracket";
    case SAGA_JSON_EXPECTED_END:
      return "nothing behind the value";
    case SAGA_JSON_EXPECTED_QUOTE:
      return "the closing quote of a string";
    case SAGA_JSON_EXPECTED_ESCAPE:
      return "control characters within strings to be escaped";
    case SAGA_JSON_EXPECTED_ESCAPE_LETTER:
      return "one of \" \\ / b f n r t u behind the backslash";
    case SAGA_JSON_EXPECTED_HEX_DIGIT:
      return "four hexadecimal digits behind \\u";
    case SAGA_JSON_EXPECTED_UTF8:
      return "well-formed UTF-8";
    case SAGA_JSON_EXPECTED_DIGIT:
      return "a digit";
    case SAGA_JSON_EXPECTED_LESS_DEPTH:
      return "at most 1024 levels of objects and arrays";
    case SAGA_JSON_EXPECTED_NEW_NAME:
      return "each name once";
    case SAGA_JSON_EXPECTED_TOKEN_ID:
      return "a token id, an integer from 0 to 4294967295";
    case SAGA_JSON_EXPECTED_ARRAY:
      return "an array of token ids";
  }
  return "something else";
}

saga_status_t saga_json_scan(const uint8_t* body, size_t size, const char* names, const uint32_t* name_ends,
                             size_t name_count, saga_json_member_t* members, size_t member_capacity,
                             saga_json_element_t* elements, size_t element_capacity, saga_json_outline_t* outline) {
  size_t id_count = 0;
  return saga_json_scan_ids(body, size, names, name_ends, name_count, members, member_capacity, elements,
                            element_capacity, nullptr, 0, &id_count, outline);
}

saga_status_t saga_json_scan_ids(const uint8_t* body, size_t size, const char* names, const uint32_t* name_ends,
                                 size_t name_count, saga_json_member_t* members, size_t member_capacity,
                                 saga_json_element_t* elements, size_t element_capacity, uint32_t* ids,
                                 size_t id_capacity, size_t* id_count, saga_json_outline_t* outline) {
  if (!is_array(body, size) || size > kMaxJsonBytes || !is_array(name_ends, name_count) || name_count > kMostNames ||
      members == nullptr || !in_range(member_capacity, 1, kMostMembers) || !is_array(elements, element_capacity) ||
      !is_array(ids, id_capacity) || id_count == nullptr || outline == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  std::array<std::string_view, kMostNames> texts;
  std::size_t start = 0;
  for (std::size_t i = 0; i < name_count; ++i) {
    const std::size_t end = name_ends[i];
    if (end < start || (names == nullptr && end != 0)) return SAGA_ERR_INVALID_ARGUMENT;
    if (end != start) texts[i] = {names + start, end - start};
    start = end;
  }
  const JsonOutline made = scan_json(
      to_span(body, size), {texts.data(), name_count}, {reinterpret_cast<JsonMember*>(members), member_capacity},
      to_span(reinterpret_cast<JsonElement*>(elements), element_capacity), to_span(ids, id_capacity));
  outline->error = static_cast<uint32_t>(made.error);
  outline->position = made.position;
  outline->type = static_cast<uint32_t>(made.type);
  outline->start = made.start;
  outline->end = made.end;
  outline->member_count = made.member_count;
  outline->element_count = made.element_count;
  *id_count = made.id_count;
  const bool fits = made.member_count <= member_capacity && made.element_count <= element_capacity;
  return made.error != JsonError::kNone || fits ? SAGA_OK : SAGA_ERR_FULL;
}

saga_status_t saga_json_token_ids(const uint8_t* body, size_t size, size_t start, size_t end, uint32_t* ids,
                                  size_t capacity, saga_json_token_ids_t* result) {
  if (!is_array(body, size) || size > kMaxJsonBytes || start > end || end > size || !is_array(ids, capacity) ||
      result == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const TokenIds read = read_token_ids(to_span(body, size), start, end, to_span(ids, capacity));
  result->error = static_cast<uint32_t>(read.error);
  result->position = read.position;
  result->count = read.count;
  return read.error != JsonError::kNone || read.count <= capacity ? SAGA_OK : SAGA_ERR_FULL;
}

saga_status_t saga_common_prefix(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size, size_t* count) {
  if (!is_array(a, a_size) || !is_array(b, b_size) || count == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *count = common_prefix(a, b, a_size < b_size ? a_size : b_size);
  return SAGA_OK;
}

saga_status_t saga_hash_bytes(const uint8_t* bytes, size_t size, uint64_t* hash) {
  if (!is_array(bytes, size) || hash == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *hash = xxh3_128(bytes, size).low;
  return SAGA_OK;
}

}  // extern "C"
