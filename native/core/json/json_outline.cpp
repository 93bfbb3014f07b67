#include "json_outline.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "../base/assert.hpp"
#include "../base/types.hpp"
#include "../hash/bytes.hpp"

#if defined(__SSE2__) && !defined(SAGA_JSON_PORTABLE)
#include <emmintrin.h>
#define SAGA_JSON_SSE2
#endif

namespace saga {
namespace {

using Byte = std::uint8_t;

constexpr std::uint64_t kOnes = 0x0101010101010101u;
constexpr std::uint64_t kHighBits = 0x8080808080808080u;

constexpr std::array<JsonType, 256> kTypeOfFirstByte = [] {
  std::array<JsonType, 256> types{};
  types['{'] = JsonType::kObject;
  types['['] = JsonType::kArray;
  types['"'] = JsonType::kString;
  types['-'] = JsonType::kNumber;
  for (std::size_t digit = '0'; digit <= '9'; ++digit) types[digit] = JsonType::kNumber;
  types['t'] = JsonType::kTrue;
  types['f'] = JsonType::kFalse;
  types['n'] = JsonType::kNull;
  return types;
}();

bool is_space(Byte byte) { return byte == ' ' || byte == '\n' || byte == '\r' || byte == '\t'; }
bool is_digit(Byte byte) { return byte >= '0' && byte <= '9'; }

Byte closing_of(bool object) { return object ? Byte{'}'} : Byte{']'}; }

// Value of a hexadecimal digit, or a value above 15.
unsigned hex_value(Byte byte) {
  if (is_digit(byte)) return byte - unsigned{'0'};
  const unsigned letter = (byte | 0x20u) - unsigned{'a'};
  return letter < 6 ? letter + 10 : 16;
}

// What ends or interrupts the plain part of a string.
bool is_special(Byte byte) { return byte < 0x20 || byte == '"' || byte == '\\' || byte >= 0x80; }

// The first byte from `p` on that is special, or `end`.
const Byte* find_special(const Byte* p, const Byte* end) {
#if defined(SAGA_JSON_SSE2)
  const __m128i quote = _mm_set1_epi8('"');
  const __m128i backslash = _mm_set1_epi8('\\');
  const __m128i last_control = _mm_set1_epi8(0x1f);
  const auto special = [&](const Byte* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, last_control), bytes);
    const __m128i ends = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash));
    // A byte that is not ASCII has the high bit that a comparison sets.
    return _mm_or_si128(_mm_or_si128(control, ends), bytes);
  };
  const auto mask_of = [](__m128i found) { return static_cast<unsigned>(_mm_movemask_epi8(found)); };
  while (end - p >= 16) {
    const unsigned mask = mask_of(special(p));
    if (mask != 0) return p + std::countr_zero(mask);
    p += 16;
    // Long plain runs: 64 bytes a test.
    while (end - p >= 64) {
      const __m128i first = special(p);
      const __m128i second = special(p + 16);
      const __m128i third = special(p + 32);
      const __m128i fourth = special(p + 48);
      if (mask_of(_mm_or_si128(_mm_or_si128(first, second), _mm_or_si128(third, fourth))) != 0) {
        const std::uint64_t masks = std::uint64_t{mask_of(first)} | std::uint64_t{mask_of(second)} << 16 |
                                    std::uint64_t{mask_of(third)} << 32 | std::uint64_t{mask_of(fourth)} << 48;
        return p + std::countr_zero(masks);
      }
      p += 64;
    }
  }
#else
  while (end - p >= 8) {
    const auto word = load_little_endian<std::uint64_t>(p);
    // The high bit of a byte of `word - n * kOnes` is set if the byte is below n, and perhaps above such a byte: the lowest is right.
    const std::uint64_t quote = word ^ (kOnes * '"');
    const std::uint64_t backslash = word ^ (kOnes * '\\');
    const std::uint64_t below = (word - kOnes * 0x20) | (quote - kOnes) | (backslash - kOnes);
    const std::uint64_t found = (below | word) & kHighBits;
    if (found != 0) return p + std::countr_zero(found) / 8;
    p += 8;
  }
#endif
  while (p != end && !is_special(*p)) ++p;
  return p;
}

// The bytes of the well-formed UTF-8 character at `p`, which is not ASCII; 0 if it is ill-formed.
std::size_t utf8_size(const Byte* p, const Byte* end) {
  const std::ptrdiff_t left = end - p;
  const auto follows = [](Byte byte) { return (byte & 0xC0) == 0x80; };
  const Byte first = *p;
  if (first < 0xE0) return first >= 0xC2 && left >= 2 && follows(p[1]) ? 2 : 0;
  if (first < 0xF0) {
    if (left < 3 || !follows(p[1]) || !follows(p[2])) return 0;
    if (first == 0xE0 && p[1] < 0xA0) return 0;  // could be shorter
    if (first == 0xED && p[1] > 0x9F) return 0;  // half of a surrogate pair
    return 3;
  }
  if (first > 0xF4 || left < 4 || !follows(p[1]) || !follows(p[2]) || !follows(p[3])) return 0;
  if (first == 0xF0 && p[1] < 0x90) return 0;
  if (first == 0xF4 && p[1] > 0x8F) return 0;  // beyond U+10FFFF
  return 4;
}

// Eight bytes that begin with decimal digits.
struct Digits {
  std::uint64_t values;  // of the bytes; those from `count` on mean nothing
  unsigned count;        // leading digits
};

Digits leading_digits(const Byte* p) {
  const std::uint64_t values = load_little_endian<std::uint64_t>(p) ^ (kOnes * '0');
  // A value above 9 gets its high bit; what it carries reaches only bytes behind it.
  const std::uint64_t others = ((values + kOnes * 0x76) | values) & kHighBits;
  return {values, others == 0 ? 8 : static_cast<unsigned>(std::countr_zero(others)) / 8};
}

// The number that 1 to 8 digits are.
std::uint32_t number_of(Digits digits) {
  std::uint64_t value = digits.values << (64 - 8 * digits.count);  // zeros in front, to have 8
  value = (value * 10 + (value >> 8)) & 0x00FF00FF00FF00FFu;
  value = (value * 100 + (value >> 16)) & 0x0000FFFF0000FFFFu;
  return static_cast<std::uint32_t>(value * 10000 + (value >> 32));
}

// Ids from where one begins, as many as follow each other with commas between: in an array, up to its end or to what is no id.
class IdReader {
 public:
  // Ids beyond `ids` are counted.
  IdReader(const Byte* end, std::span<std::uint32_t> ids) : end_(end), ids_(ids) {}

  // Where it ended: behind an id (and white space) where no comma is, or, with at_element(), where an element had to begin and no
  // id does.
  const Byte* read(const Byte* p) {
#if defined(SAGA_JSON_SSE2)
    for (;;) {
      p = blocks(p);
      // What is written in another way comes one by one, and blocks again behind it.
      for (const Byte* const behind = p + std::min<std::ptrdiff_t>(kBlock, end_ - p); p < behind;) {
        if (!one(p)) return p;
      }
      if (p == end_) {
        at_element_ = true;
        return p;
      }
    }
#else
    while (one(p)) {
    }
    return p;
#endif
  }

  std::size_t count() const { return count_; }
  bool at_element() const { return at_element_; }

 private:
  // One id and the comma behind it; false where either is not there, and then `p` is where that was expected.
  bool one(const Byte*& p) {
    while (p != end_ && is_space(*p)) ++p;
    std::uint64_t id = 0;
    const Byte* behind = p;
    const Digits digits = end_ - p >= 8 ? leading_digits(p) : Digits{0, 0};
    if (digits.count != 0 && digits.count != 8) {
      id = number_of(digits);
      behind = p + digits.count;
    } else {
      while (behind != end_ && is_digit(*behind) && id <= 0xFFFFFFFFu) id = id * 10 + (*behind++ - unsigned{'0'});
    }
    const bool leading_zero = behind - p > 1 && *p == '0';
    const bool fraction = behind != end_ && (*behind == '.' || (*behind | 0x20) == 'e');
    if (behind == p || id > 0xFFFFFFFFu || leading_zero || fraction) {
      at_element_ = true;
      return false;
    }
    if (count_ < ids_.size()) ids_[count_] = static_cast<std::uint32_t>(id);
    ++count_;
    p = behind;
    while (p != end_ && is_space(*p)) ++p;
    if (p == end_ || *p != ',') return false;
    ++p;
    while (p != end_ && is_space(*p)) ++p;
    return true;
  }

#if defined(SAGA_JSON_SSE2)
  static constexpr std::ptrdiff_t kBlock = 64;
  static constexpr std::size_t kMostInBlock = kBlock / 2;

  // What is where in 64 bytes, one bit a byte.
  struct Kinds {
    std::uint64_t digits;
    std::uint64_t commas;
    std::uint64_t blanks;  // ' ' alone
  };

  static Kinds kinds_of(const Byte* p) {
    const auto mask_of = [](__m128i found) {
      return std::uint64_t{static_cast<std::uint32_t>(_mm_movemask_epi8(found))};
    };
    const __m128i below_digits = _mm_set1_epi8('0' - 1);
    const __m128i above_digits = _mm_set1_epi8('9' + 1);
    Kinds kinds{};
    for (unsigned at = 0; at < kBlock; at += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at));
      // Bytes that are not ASCII are negative here: below.
      const __m128i digits = _mm_and_si128(_mm_cmpgt_epi8(bytes, below_digits), _mm_cmplt_epi8(bytes, above_digits));
      kinds.digits |= mask_of(digits) << at;
      kinds.commas |= mask_of(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(','))) << at;
      kinds.blanks |= mask_of(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' '))) << at;
    }
    return kinds;
  }

  // From where an id begins, ids of up to 8 digits with "," or ", " between them, while whole blocks hold nothing else. Returns where
  // the first begins that was not read, or the white space before it. Commas are found for a block at once, so that no id waits for
  // the length of the one before it.
  const Byte* blocks(const Byte* p) {
    // Least number of so many digits: a leading zero makes a smaller one.
    static constexpr std::uint32_t kLeast[] = {0, 0, 10, 100, 1000, 10000, 100000, 1000000, 10000000};
    const Byte* start = p;  // of the id that is next
    std::uint64_t digit_before = 0;
    std::uint64_t comma_before = 0;
    // 8 bytes are loaded from the first digit on.
    for (const Byte* block = p; end_ - block >= kBlock + 8; block += kBlock) {
      const Kinds kinds = kinds_of(block);
      const std::uint64_t ends = ~kinds.digits & (kinds.digits << 1 | digit_before);
      const std::uint64_t behind_commas = kinds.commas << 1 | comma_before;
      // A comma behind each number and none elsewhere, blanks behind commas alone, and nothing else.
      if ((kinds.digits | kinds.commas | kinds.blanks) != ~std::uint64_t{0} || ends != kinds.commas ||
          (kinds.blanks & ~behind_commas) != 0) {
        return start;
      }
      digit_before = kinds.digits >> 63;
      comma_before = kinds.commas >> 63;
      std::uint32_t spare[kMostInBlock];
      const bool fits = count_ + kMostInBlock <= ids_.size();
      std::uint32_t* const first = fits ? ids_.data() + count_ : spare;
      std::uint32_t* out = first;
      bool known = true;
      for (std::uint64_t left = kinds.commas; left != 0; left &= left - 1) {
        const Byte* const comma = block + std::countr_zero(left);
        const auto size = static_cast<std::size_t>(comma - start);
        if (size > 8) {
          known = false;
          break;
        }
        const std::uint64_t values = load_little_endian<std::uint64_t>(start) ^ (kOnes * '0');
        const std::uint32_t id = number_of({values, static_cast<unsigned>(size)});
        if (id < kLeast[size]) {
          known = false;
          break;
        }
        *out++ = id;
        start = comma + 1 + (comma[1] == ' ' ? 1 : 0);
      }
      const auto made = static_cast<std::size_t>(out - first);
      if (!fits && count_ < ids_.size()) std::copy_n(spare, std::min(made, ids_.size() - count_), ids_.data() + count_);
      count_ += made;
      if (!known) return start;
    }
    return start;
  }
#endif

  const Byte* end_;
  std::span<std::uint32_t> ids_;
  std::size_t count_ = 0;
  bool at_element_ = false;
};

// The bytes of a name after unescaping, one after another. Half of a surrogate pair is written as if it were a character: no text
// has that in its bytes, so different names stay different.
class NameReader {
 public:
  explicit NameReader(std::span<const Byte> name) : p_(name.data()), end_(name.data() + name.size()) {}

  // The next byte, or -1 at the end.
  int next() {
    if (waiting_ != 0) return ready_[--waiting_];
    if (p_ == end_) return -1;
    if (*p_ != '\\') return *p_++;
    const Byte letter = p_[1];
    p_ += 2;
    switch (letter) {
      case 'b':
        return '\b';
      case 'f':
        return '\f';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'u':
        return escaped_character();
      default:
        return letter;
    }
  }

 private:
  std::uint32_t unit(const Byte* digits) const {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 4 | hex_value(digits[i]);
    return value;
  }

  int escaped_character() {
    std::uint32_t character = unit(p_);
    p_ += 4;
    if (character >= 0xD800 && character < 0xDC00 && end_ - p_ >= 6 && p_[0] == '\\' && p_[1] == 'u') {
      const std::uint32_t low = unit(p_ + 2);
      if (low >= 0xDC00 && low < 0xE000) {
        character = 0x10000 + ((character - 0xD800) << 10) + (low - 0xDC00);
        p_ += 6;
      }
    }
    if (character < 0x80) return static_cast<int>(character);
    // Last byte first: they are taken from the end.
    const auto push = [this](std::uint32_t byte) { ready_[waiting_++] = static_cast<Byte>(byte); };
    std::uint32_t lead = 0xC0;
    std::uint32_t most = 0x20;  // what the first byte has room for
    while (true) {
      push(0x80 | (character & 0x3F));
      character >>= 6;
      if (character < most) break;
      lead = 0x80 | lead >> 1;
      most >>= 1;
    }
    return static_cast<int>(lead | character);
  }

  const Byte* p_;
  const Byte* end_;
  Byte ready_[4] = {};
  unsigned waiting_ = 0;
};

bool same_name(std::span<const Byte> a, bool a_escaped, std::span<const Byte> b, bool b_escaped) {
  if (!a_escaped && !b_escaped) return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
  NameReader left(a);
  NameReader right(b);
  for (;;) {
    const int byte = left.next();
    if (byte != right.next()) return false;
    if (byte < 0) return true;
  }
}

class Scanner {
 public:
  Scanner(std::span<const Byte> text, std::span<const std::string_view> names, std::span<JsonMember> members,
          std::span<JsonElement> elements, std::span<std::uint32_t> ids)
      : begin_(text.data()),
        end_(begin_ + text.size()),
        names_(names),
        members_(members),
        elements_(elements),
        ids_(ids) {}

  JsonOutline run() {
    if (!scan()) {
      outline_.error = error_;
      outline_.position = place(wrong_);
    }
    return outline_;
  }

 private:
  std::uint32_t place(const Byte* p) const { return static_cast<std::uint32_t>(p - begin_); }

  // All that read a part of the text return where it ends, or nullptr through this.
  std::nullptr_t fail(JsonError expected, const Byte* at) {
    error_ = expected;
    wrong_ = at;
    return nullptr;
  }

  const Byte* skip_space(const Byte* p) const {
    while (p != end_ && is_space(*p)) ++p;
    return p;
  }

  // From behind the opening quote to the closing one.
  const Byte* string(const Byte* p) {
    for (;;) {
      p = find_special(p, end_);
      if (p == end_) return fail(JsonError::kQuote, p);
      if (*p == '"') return p;
      if (*p == '\\') {
        p = escape(p);
        if (p == nullptr) return nullptr;
      } else if (*p >= 0x80) {
        do {
          const std::size_t size = utf8_size(p, end_);
          if (size == 0) return fail(JsonError::kUtf8, p);
          p += size;
        } while (p != end_ && *p >= 0x80);
      } else {
        return fail(JsonError::kEscape, p);
      }
    }
  }

  // From the backslash on.
  const Byte* escape(const Byte* p) {
    escaped_ = true;
    ++p;
    if (p == end_) return fail(JsonError::kEscapeLetter, p);
    switch (*p) {
      case '"':
      case '\\':
      case '/':
      case 'b':
      case 'f':
      case 'n':
      case 'r':
      case 't':
        return p + 1;
      case 'u':
        ++p;
        for (int i = 0; i < 4; ++i, ++p) {
          if (p == end_ || hex_value(*p) > 15) return fail(JsonError::kHexDigit, p);
        }
        return p;
      default:
        return fail(JsonError::kEscapeLetter, p);
    }
  }

  const Byte* digits(const Byte* p) {
    if (p == end_ || !is_digit(*p)) return fail(JsonError::kDigit, p);
    do {
      ++p;
    } while (p != end_ && is_digit(*p));
    return p;
  }

  const Byte* number(const Byte* p) {
    if (*p == '-') ++p;
    if (p != end_ && *p == '0') {
      ++p;
    } else if (end_ - p >= 8) {
      const unsigned count = leading_digits(p).count;
      p = count != 0 && count != 8 ? p + count : digits(p);
    } else {
      p = digits(p);
    }
    if (p == nullptr) return nullptr;
    if (p != end_ && *p == '.') {
      p = digits(p + 1);
      if (p == nullptr) return nullptr;
    }
    if (p != end_ && (*p | 0x20) == 'e') {
      ++p;
      if (p != end_ && (*p == '+' || *p == '-')) ++p;
      p = digits(p);
    }
    return p;
  }

  const Byte* literal(const Byte* p, std::string_view word) {
    const auto left = static_cast<std::size_t>(end_ - p);
    if (left < word.size() || std::memcmp(p, word.data(), word.size()) != 0) return fail(JsonError::kValue, p);
    return p + word.size();
  }

  const Byte* scalar(const Byte* p, JsonType type) {
    switch (type) {
      case JsonType::kString:
        p = string(p + 1);
        return p == nullptr ? nullptr : p + 1;
      case JsonType::kNumber:
        return number(p);
      case JsonType::kTrue:
        return literal(p, "true");
      case JsonType::kFalse:
        return literal(p, "false");
      case JsonType::kNull:
        return literal(p, "null");
      default:
        return fail(JsonError::kValue, p);
    }
  }

  // A name and the colon behind it; ends where the value or the white space before it begins.
  const Byte* name(const Byte* p) {
    if (p == end_ || *p != '"') return fail(JsonError::kName, p);
    const Byte* start = p + 1;
    escaped_ = false;
    p = string(start);
    if (p == nullptr) return nullptr;
    if (depth_ == 1 && !begin_member(start, p)) return nullptr;
    p = skip_space(p + 1);
    if (p == end_ || *p != ':') return fail(JsonError::kColon, p);
    return p + 1;
  }

  std::span<const Byte> name_of(const JsonMember& member) const {
    return {begin_ + member.name_start, begin_ + member.name_end};
  }

  bool begin_member(const Byte* start, const Byte* end) {
    member_ = {};
    member_.name_start = place(start);
    member_.name_end = place(end);
    member_.first_element = kNone;
    member_.type = escaped_ ? JsonMember::kEscaped : 0;
    const std::span<const Byte> name(start, end);
    std::uint32_t hash = 2166136261u;
    const auto mix = [&hash](unsigned byte) { hash = (hash ^ byte) * 16777619u; };
    if (escaped_) {
      NameReader reader(name);
      for (int byte = reader.next(); byte >= 0; byte = reader.next()) mix(static_cast<unsigned>(byte));
    } else {
      for (const Byte byte : name) mix(byte);
    }
    member_.name_hash = hash;
    const std::size_t known = std::min<std::size_t>(outline_.member_count, members_.size());
    for (const JsonMember& other : members_.first(known)) {
      if (other.name_hash != hash) continue;
      if (same_name(name_of(other), (other.type & JsonMember::kEscaped) != 0, name, escaped_)) {
        fail(JsonError::kNewName, start);
        return false;
      }
    }
    return true;
  }

  bool is_wanted() const {
    const bool escaped = (member_.type & JsonMember::kEscaped) != 0;
    const std::span<const Byte> name = name_of(member_);
    for (const std::string_view wanted : names_) {
      const std::span<const Byte> bytes(reinterpret_cast<const Byte*>(wanted.data()), wanted.size());
      if (is_text(bytes, name, escaped)) return true;
    }
    return false;
  }

  // Whether a name of the text is `bytes`, which have no escapes.
  static bool is_text(std::span<const Byte> bytes, std::span<const Byte> name, bool escaped) {
    if (!escaped) return bytes.size() == name.size() && std::equal(bytes.begin(), bytes.end(), name.begin());
    NameReader reader(name);
    for (const Byte byte : bytes) {
      if (reader.next() != byte) return false;
    }
    return reader.next() < 0;
  }

  // ---- What is reported of a value depends on where it is: the body, a member of the top-level object, or an element of an array
  // ---- that is such a member.

  void begin_value(const Byte* p, JsonType type) {
    if (depth_ == 2) {
      if (in_member_array_) begin_element(p, type);
    } else if (depth_ == 1) {
      if (outline_.type == JsonType::kObject) begin_member_value(p, type);
    } else if (depth_ == 0) {
      outline_.type = type;
      outline_.start = place(p);
    }
  }

  void begin_member_value(const Byte* p, JsonType type) {
    member_.start = place(p);
    member_.type |= static_cast<std::uint32_t>(type);
    if (type != JsonType::kArray) return;
    in_member_array_ = true;
    listing_ = is_wanted();
    if (listing_) member_.first_element = outline_.element_count;
  }

  void begin_element(const Byte* p, JsonType type) {
    if (member_.element_count++ == 0 && type == JsonType::kNumber) {
      listing_ = false;
      member_.first_element = kNone;
    }
    member_.type |= 1u << (JsonMember::kElementTypes + static_cast<unsigned>(type));
    element_ = {.start = place(p), .end = 0, .type = static_cast<std::uint32_t>(type)};
  }

  // Where the first element of a member is a number: that and the ids behind it. Returns where the last of them ended, `p` if that
  // is none, or, with `at_element`, where an element has to begin that is none.
  const Byte* first_ids(const Byte* p, bool& at_element) {
    const std::size_t known = std::min<std::size_t>(outline_.id_count, ids_.size());
    IdReader reader(end_, ids_.subspan(known));
    const Byte* const behind = reader.read(p);
    const auto count = static_cast<std::uint32_t>(reader.count());
    if (count == 0) return p;
    member_.element_count += count - 1;  // the first was counted where it began
    at_element = reader.at_element();
    if (behind != end_ && *behind == ']' && !at_element) {
      if (count <= ids_.size() - known && known == outline_.id_count) {
        member_.type |= JsonMember::kIds;
        member_.first_element = outline_.id_count;
      }
      outline_.id_count += count;
    }
    return behind;
  }

  void end_value(const Byte* p) {
    if (depth_ == 2) {
      if (in_member_array_ && listing_) {
        element_.end = place(p);
        if (outline_.element_count < elements_.size()) elements_[outline_.element_count] = element_;
        ++outline_.element_count;
      }
    } else if (depth_ == 1) {
      in_member_array_ = false;
      if (outline_.type == JsonType::kObject) {
        member_.end = place(p);
        if (outline_.member_count < members_.size()) members_[outline_.member_count] = member_;
        ++outline_.member_count;
      }
    } else if (depth_ == 0) {
      outline_.end = place(p);
    }
  }

  // ---- Open containers: bit `d` says whether the one at depth d is an object.

  bool in_object() const { return (objects_[(depth_ - 1) / 64] >> ((depth_ - 1) % 64) & 1) != 0; }

  bool open(const Byte* p, bool object) {
    if (depth_ == kMaxJsonDepth) {
      fail(JsonError::kLessDepth, p);
      return false;
    }
    const std::uint64_t bit = std::uint64_t{1} << (depth_ % 64);
    std::uint64_t& word = objects_[depth_ / 64];
    word = object ? word | bit : word & ~bit;
    ++depth_;
    return true;
  }

  bool scan() {
    const Byte* p = begin_;
    for (;;) {
      // Here a value begins.
      p = skip_space(p);
      const JsonType type = p == end_ ? JsonType::kNone : kTypeOfFirstByte[*p];
      if (type == JsonType::kNone) return fail(JsonError::kValue, p) != nullptr;
      begin_value(p, type);
      if (type == JsonType::kObject || type == JsonType::kArray) {
        const bool object = type == JsonType::kObject;
        if (!open(p, object)) return false;
        p = skip_space(p + 1);
        if (p == end_ || *p != closing_of(object)) {
          if (object) p = name(p);
          if (p == nullptr) return false;
          continue;
        }
        --depth_;
        ++p;
      } else {
        const Byte* const start = p;
        if (type == JsonType::kNumber && depth_ == 2 && in_member_array_ && member_.element_count == 1) {
          bool at_element = false;
          p = first_ids(p, at_element);
          if (at_element) continue;
        }
        if (p == start) p = scalar(p, type);
        if (p == nullptr) return false;
      }
      // Here it has ended, and perhaps containers with it.
      for (;;) {
        end_value(p);
        p = skip_space(p);
        if (depth_ == 0) return p == end_ || fail(JsonError::kEnd, p) != nullptr;
        const bool object = in_object();
        if (p != end_ && *p == ',') {
          ++p;
          if (object) p = name(skip_space(p));
          if (p == nullptr) return false;
          break;
        }
        if (p == end_ || *p != closing_of(object)) {
          return fail(object ? JsonError::kCommaOrBrace : JsonError::kCommaOrBracket, p) != nullptr;
        }
        --depth_;
        ++p;
      }
    }
  }

  const Byte* begin_;
  const Byte* end_;
  std::span<const std::string_view> names_;
  std::span<JsonMember> members_;
  std::span<JsonElement> elements_;
  std::span<std::uint32_t> ids_;

  JsonOutline outline_;
  JsonMember member_ = {};    // that is being read
  JsonElement element_ = {};  // the same
  bool in_member_array_ = false;
  bool listing_ = false;
  bool escaped_ = false;  // the string read last has escapes; set by string(), cleared by name()
  JsonError error_ = JsonError::kNone;
  const Byte* wrong_ = nullptr;
  std::uint32_t depth_ = 0;  // open containers
  std::uint64_t objects_[kMaxJsonDepth / 64] = {};
};

}  // namespace

JsonOutline scan_json(std::span<const std::uint8_t> text, std::span<const std::string_view> names,
                      std::span<JsonMember> members, std::span<JsonElement> elements, std::span<std::uint32_t> ids) {
  SAGA_ASSERT(text.size() <= kMaxJsonBytes);
  return Scanner(text, names, members, elements, ids).run();
}

TokenIds read_token_ids(std::span<const std::uint8_t> text, std::size_t start, std::size_t end,
                        std::span<std::uint32_t> ids) {
  SAGA_ASSERT(text.size() <= kMaxJsonBytes && start <= end && end <= text.size());
  const Byte* const begin = text.data();
  const Byte* const stop = begin + end;
  const Byte* p = begin + start;
  IdReader reader(stop, ids);
  const auto answer = [&](JsonError error) {
    return TokenIds{error, static_cast<std::uint32_t>(p - begin), static_cast<std::uint32_t>(reader.count())};
  };
  const auto skip_space = [&] {
    while (p != stop && is_space(*p)) ++p;
  };
  skip_space();
  if (p == stop || *p != '[') return answer(JsonError::kArray);
  ++p;
  skip_space();
  if (p == stop || *p != ']') {
    p = reader.read(p);
    if (reader.at_element()) return answer(JsonError::kTokenId);
    if (p == stop || *p != ']') return answer(JsonError::kCommaOrBracket);
  }
  ++p;
  skip_space();
  return answer(p == stop ? JsonError::kNone : JsonError::kEnd);
}

}  // namespace saga
