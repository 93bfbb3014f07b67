// Outlines of JSON texts: what is accepted and what is refused where, ranges, and every place of a string at which something can
// stand that ends or interrupts it. Texts lie in memory of exactly their size, so that AddressSanitizer sees a byte read behind.
#include "../core/json/json_outline.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../core/base/common_prefix.hpp"
#include "../core/base/random.hpp"
#include "../core/base/types.hpp"

namespace saga {
namespace {

using namespace std::string_literals;

// A copy without a byte to spare.
class Exact {
 public:
  explicit Exact(std::string_view text) : size_(text.size()), bytes_(new std::uint8_t[text.size()]) {
    std::copy(text.begin(), text.end(), bytes_.get());
  }
  operator std::span<const std::uint8_t>() const { return {bytes_.get(), size_}; }

 private:
  std::size_t size_;
  std::unique_ptr<std::uint8_t[]> bytes_;
};

struct Scan {
  JsonOutline outline;
  std::vector<JsonMember> members;
  std::vector<JsonElement> elements;
};

Scan scan(std::string_view text, std::vector<std::string_view> names = {}, std::size_t room = 64) {
  Scan made;
  made.members.resize(room);
  made.elements.resize(room);
  made.outline = scan_json(Exact(text), names, made.members, made.elements);
  made.members.resize(std::min<std::size_t>(room, made.outline.member_count));
  made.elements.resize(std::min<std::size_t>(room, made.outline.element_count));
  return made;
}

JsonError error_of(std::string_view text) { return scan(text).outline.error; }

std::string part(std::string_view text, std::uint32_t start, std::uint32_t end) {
  return std::string(text.substr(start, end - start));
}

TEST(JsonOutline, AcceptsEveryKindOfValue) {
  for (const std::string_view text : {
           "null",
           "true",
           "false",
           "0",
           "-0",
           "1",
           "-1",
           "10",
           "1234567",
           "12345678",
           "123456789012345678901234567890",
           "0.5",
           "-0.0",
           "1.25",
           "1e5",
           "1E5",
           "1e+5",
           "1e-05",
           "1.5e300",
           "0e0",
           "-1.0E-0",
           "\"\"",
           "\"a\"",
           "\"\\\"\"",
           "\"\\\\\"",
           "\"\\/\\b\\f\\n\\r\\t\"",
           "\"\\u0000\"",
           "\"\\uD800\"",
           "\"\\uDC00\\uD800\"",
           "\"\\uABcd\"",
           "\"\x7f\"",
           "\"\xc2\x80\"",
           "\"\xdf\xbf\"",
           "\"\xe0\xa0\x80\"",
           "\"\xed\x9f\xbf\"",
           "\"\xee\x80\x80\"",
           "\"\xf0\x90\x80\x80\"",
           "\"\xf4\x8f\xbf\xbf\"",
           "[]",
           "[ ]",
           "[1]",
           "[1,2]",
           "[[],[[]]]",
           "{}",
           "{ }",
           "{\"\":0}",
           "{\"a\":{\"a\":{\"a\":[]}}}",
           "{\"a\":[{\"b\":1,\"b\":2}]}",
           " \t\n\r1 \t\n\r",
           " { \"a\" : [ 1 , null ] , \"b\" : { } } ",
           "[1,\"2\",{\"3\":4},[5],true,false,null]",
       }) {
    const JsonOutline outline = scan(text).outline;
    EXPECT_EQ(outline.error, JsonError::kNone) << text << " at " << outline.position;
  }
}

TEST(JsonOutline, SaysWhatIsWrongAndWhere) {
  struct Case {
    std::string text;
    JsonError expected;
    std::uint32_t position;
  };
  const std::vector<Case> cases = {
      {"", JsonError::kValue, 0},
      {"  ", JsonError::kValue, 2},
      {"nul", JsonError::kValue, 0},
      {"nulL", JsonError::kValue, 0},
      {"True", JsonError::kValue, 0},
      {"tru", JsonError::kValue, 0},
      {"falsE", JsonError::kValue, 0},
      {"NaN", JsonError::kValue, 0},
      {"Infinity", JsonError::kValue, 0},
      {"-Infinity", JsonError::kDigit, 1},
      {"'a'", JsonError::kValue, 0},
      {"undefined", JsonError::kValue, 0},
      {"\xef\xbb\xbf{}", JsonError::kValue, 0},
      {"\f1", JsonError::kValue, 0},
      {"\v1", JsonError::kValue, 0},
      {"\xc2\xa0"
       "1",
       JsonError::kValue, 0},
      {"+1", JsonError::kValue, 0},
      {".5", JsonError::kValue, 0},
      {"-", JsonError::kDigit, 1},
      {"-a", JsonError::kDigit, 1},
      {"--1", JsonError::kDigit, 1},
      {"-.5", JsonError::kDigit, 1},
      {"- 1      ", JsonError::kDigit, 1},
      {"01", JsonError::kEnd, 1},
      {"-01", JsonError::kEnd, 2},
      {"00", JsonError::kEnd, 1},
      {"1.", JsonError::kDigit, 2},
      {"1.e5", JsonError::kDigit, 2},
      {"1.5.5", JsonError::kEnd, 3},
      {"1e", JsonError::kDigit, 2},
      {"1e+", JsonError::kDigit, 3},
      {"1e5.5", JsonError::kEnd, 3},
      {"1E-x", JsonError::kDigit, 3},
      {"0x10", JsonError::kEnd, 1},
      {"1_000", JsonError::kEnd, 1},
      {"1 2", JsonError::kEnd, 2},
      {"{}x", JsonError::kEnd, 2},
      {"[]]", JsonError::kEnd, 2},
      {"{}\0"s, JsonError::kEnd, 2},
      {"// c\n1", JsonError::kValue, 0},
      {"1 // c", JsonError::kEnd, 2},
      {"\"", JsonError::kQuote, 1},
      {"\"abc", JsonError::kQuote, 4},
      {"\"a\\\"", JsonError::kQuote, 4},
      {"\"a\nb\"", JsonError::kEscape, 2},
      {"\"a\tb\"", JsonError::kEscape, 2},
      {"\"\0\""s, JsonError::kEscape, 1},
      {"\"\x1f\"", JsonError::kEscape, 1},
      {"\"\\", JsonError::kEscapeLetter, 2},
      {"\"\\x\"", JsonError::kEscapeLetter, 2},
      {"\"\\'\"", JsonError::kEscapeLetter, 2},
      {"\"\\N\"", JsonError::kEscapeLetter, 2},
      {"\"\\\n\"", JsonError::kEscapeLetter, 2},
      {"\"\\u12", JsonError::kHexDigit, 5},
      {"\"\\u12G4\"", JsonError::kHexDigit, 5},
      {"\"\\u 123\"", JsonError::kHexDigit, 3},
      {"\"\\u12\"", JsonError::kHexDigit, 5},
      {"\"\\U1234\"", JsonError::kEscapeLetter, 2},
      {"\"\\u123@\"", JsonError::kHexDigit, 6},
      {"\"\\u123`\"", JsonError::kHexDigit, 6},
      {"\"a\x80\"", JsonError::kUtf8, 2},
      {"\"\xc0\x80\"", JsonError::kUtf8, 1},
      {"\"\xc2\"", JsonError::kUtf8, 1},
      {"\"\xc2", JsonError::kUtf8, 1},
      {"\"\xe2\x82\"", JsonError::kUtf8, 1},
      {"\"\xed\xa0\x80\"", JsonError::kUtf8, 1},
      {"\"\xf4\x90\x80\x80\"", JsonError::kUtf8, 1},
      {"\"\xc3\xa9\xff\"", JsonError::kUtf8, 3},
      {"[", JsonError::kValue, 1},
      {"[,", JsonError::kValue, 1},
      {"[1", JsonError::kCommaOrBracket, 2},
      {"[1,", JsonError::kValue, 3},
      {"[1,]", JsonError::kValue, 3},
      {"[1 2]", JsonError::kCommaOrBracket, 3},
      {"[1}", JsonError::kCommaOrBracket, 2},
      {"[\"a\":1]", JsonError::kCommaOrBracket, 4},
      {"[1,,2]", JsonError::kValue, 3},
      {"]", JsonError::kValue, 0},
      {"}", JsonError::kValue, 0},
      {"{", JsonError::kName, 1},
      {"{ ", JsonError::kName, 2},
      {"{,}", JsonError::kName, 1},
      {"{a:1}", JsonError::kName, 1},
      {"{1:1}", JsonError::kName, 1},
      {"{\"a", JsonError::kQuote, 3},
      {"{\"a\"", JsonError::kColon, 4},
      {"{\"a\" 1}", JsonError::kColon, 5},
      {"{\"a\",1}", JsonError::kColon, 4},
      {"{\"a\":}", JsonError::kValue, 5},
      {"{\"a\"::1}", JsonError::kValue, 5},
      {"{\"a\":1", JsonError::kCommaOrBrace, 6},
      {"{\"a\":1]", JsonError::kCommaOrBrace, 6},
      {"{\"a\":1 \"b\":2}", JsonError::kCommaOrBrace, 7},
      {"{\"a\":1,}", JsonError::kName, 7},
      {"{\"a\":1,,}", JsonError::kName, 7},
      {"{\"a\":[1}", JsonError::kCommaOrBracket, 7},
      {"[{]}", JsonError::kName, 2},
      {"{\"a\":1,\"b\":2,\"a\":3}", JsonError::kNewName, 14},
      {"{\"\":1,\"\":3}", JsonError::kNewName, 7},
  };
  for (const Case& one : cases) {
    const JsonOutline outline = scan(one.text).outline;
    EXPECT_EQ(outline.error, one.expected) << one.text;
    EXPECT_EQ(outline.position, one.position) << one.text;
  }
}

TEST(JsonOutline, BoundsTheDepth) {
  const auto nested = [](std::size_t levels, std::string_view open, std::string_view close) {
    std::string text;
    for (std::size_t i = 0; i < levels; ++i) text += open;
    text += "1";
    for (std::size_t i = 0; i < levels; ++i) text += close;
    return text;
  };
  EXPECT_EQ(error_of(nested(1024, "[", "]")), JsonError::kNone);
  EXPECT_EQ(error_of(nested(1024, "{\"a\":", "}")), JsonError::kNone);
  EXPECT_EQ(error_of(nested(512, "{\"a\":[", "]}")), JsonError::kNone);
  const JsonOutline deep = scan(nested(1025, "[", "]")).outline;
  EXPECT_EQ(deep.error, JsonError::kLessDepth);
  EXPECT_EQ(deep.position, 1024u);
  EXPECT_EQ(error_of(nested(1025, "{\"a\":", "}")), JsonError::kLessDepth);
  EXPECT_EQ(error_of(std::string(1'000'000, '[')), JsonError::kLessDepth);
  // Depth is what is open, not what was.
  std::string wide = "[";
  for (int i = 0; i < 3000; ++i) wide += "[{}],";
  EXPECT_EQ(error_of(wide + "0]"), JsonError::kNone);
  // Kinds are remembered at every level: the wrong one does not close.
  for (std::size_t level : {1u, 63u, 64u, 65u, 128u, 1023u}) {
    std::string text = nested(1024, "[", "]");
    text[text.size() - level] = '}';
    EXPECT_EQ(error_of(text), JsonError::kCommaOrBracket) << level;
  }
}

TEST(JsonOutline, ReportsMembersAndElements) {
  const std::string_view text =
      " {\"model\":\"a b\" , \"messages\" : [ {\"content\":\"[,]\\\"\"} ,[1, 2],\"x\" ] "
      ",\"n\":[1,\"y\"],\"empty\":[],\"o\":{\"messages\":[{}]},"
      "\"t\":true,\"f\":false,\"z\":null,\"d\":-1.5e3}\n";
  const Scan made = scan(text, {"messages", "n", "empty", "model"});
  ASSERT_EQ(made.outline.error, JsonError::kNone);
  EXPECT_EQ(made.outline.type, JsonType::kObject);
  EXPECT_EQ(part(text, made.outline.start, made.outline.end), text.substr(1, text.size() - 2));
  struct Expected {
    std::string_view name;
    std::string_view value;
    JsonType type;
    std::uint32_t element_count;
    std::uint32_t first_element;
    std::vector<JsonType> element_types;
  };
  const std::vector<Expected> expected = {
      {"model", "\"a b\"", JsonType::kString, 0, kNone, {}},
      {"messages",
       "[ {\"content\":\"[,]\\\"\"} ,[1, 2],\"x\" ]",
       JsonType::kArray,
       3,
       0,
       {JsonType::kObject, JsonType::kArray, JsonType::kString}},
      {"n", "[1,\"y\"]", JsonType::kArray, 2, kNone, {JsonType::kNumber, JsonType::kString}},
      {"empty", "[]", JsonType::kArray, 0, 3, {}},
      {"o", "{\"messages\":[{}]}", JsonType::kObject, 0, kNone, {}},
      {"t", "true", JsonType::kTrue, 0, kNone, {}},
      {"f", "false", JsonType::kFalse, 0, kNone, {}},
      {"z", "null", JsonType::kNull, 0, kNone, {}},
      {"d", "-1.5e3", JsonType::kNumber, 0, kNone, {}},
  };
  ASSERT_EQ(made.members.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const JsonMember& member = made.members[i];
    EXPECT_EQ(part(text, member.name_start, member.name_end), expected[i].name);
    EXPECT_EQ(part(text, member.start, member.end), expected[i].value);
    std::uint32_t type = static_cast<std::uint32_t>(expected[i].type);
    for (const JsonType one : expected[i].element_types) type |= 1u << (16 + static_cast<unsigned>(one));
    EXPECT_EQ(member.type, type) << expected[i].name;
    EXPECT_EQ(member.element_count, expected[i].element_count);
    EXPECT_EQ(member.first_element, expected[i].first_element) << expected[i].name;
  }
  ASSERT_EQ(made.elements.size(), 3u);
  EXPECT_EQ(part(text, made.elements[0].start, made.elements[0].end), "{\"content\":\"[,]\\\"\"}");
  EXPECT_EQ(part(text, made.elements[1].start, made.elements[1].end), "[1, 2]");
  EXPECT_EQ(part(text, made.elements[2].start, made.elements[2].end), "\"x\"");
  EXPECT_EQ(made.elements[2].type, static_cast<std::uint32_t>(JsonType::kString));
}

TEST(JsonOutline, ListsNoArrayThatBeginsWithANumber) {
  const std::string_view text = "{\"a\":[\"x\",1],\"b\":[1,\"x\"],\"c\":[[1],2]}";
  const Scan made = scan(text, {"a", "b", "c"});
  ASSERT_EQ(made.members.size(), 3u);
  EXPECT_EQ(made.members[0].first_element, 0u);
  EXPECT_EQ(made.members[1].first_element, kNone);
  EXPECT_EQ(made.members[2].first_element, 2u);
  for (const JsonMember& member : made.members) EXPECT_EQ(member.element_count, 2u);
  ASSERT_EQ(made.elements.size(), 4u);
  EXPECT_EQ(part(text, made.elements[1].start, made.elements[1].end), "1");
  EXPECT_EQ(part(text, made.elements[2].start, made.elements[2].end), "[1]");
  EXPECT_EQ(part(text, made.elements[3].start, made.elements[3].end), "2");
}

TEST(JsonOutline, ATopLevelArrayHasNoMembers) {
  const Scan made = scan("[[1,2],{\"a\":1,\"a\":2},{\"a\":[3]}]", {"a"});
  EXPECT_EQ(made.outline.error, JsonError::kNone);
  EXPECT_EQ(made.outline.type, JsonType::kArray);
  EXPECT_EQ(made.outline.member_count, 0u);
  EXPECT_EQ(made.outline.element_count, 0u);
}

TEST(JsonOutline, ComparesNamesAfterUnescaping) {
  const std::vector<std::pair<std::string, std::string>> same = {
      {"priority", "priorit\\u0079"},
      {"a/b", "a\\/b"},
      {"\xc3\xa9", "\\u00E9"},
      {"\xe2\x82\xac", "\\u20ac"},
      {"\xf0\x9f\x98\x80", "\\ud83d\\uDE00"},
      {"\\n", "\\u000a"},
      {"\\\"", "\\u0022"},
      {"\\\\u0061", "\\u005cu0061"},
      {"\\ud800", "\\uD800"},
      {"\xdf\xbf", "\\u07ff"},
      {"\xe0\xa0\x80", "\\u0800"},
      {"\xef\xbf\xbf", "\\uffff"},
      {"\xf0\x90\x80\x80", "\\ud800\\udc00"},
      {"\xf4\x8f\xbf\xbf", "\\udbff\\udfff"},
  };
  for (const auto& [a, b] : same) {
    EXPECT_EQ(error_of("{\"" + a + "\":1,\"x\":2,\"" + b + "\":3}"), JsonError::kNewName) << a << " " << b;
    EXPECT_EQ(error_of("{\"" + b + "\":1,\"x\":2,\"" + a + "\":3}"), JsonError::kNewName) << a << " " << b;
  }
  const std::vector<std::pair<std::string, std::string>> different = {
      {"a", "A"}, {"\\\\u0061", "a"}, {"\\ud83d", "\\ude00"}, {"n", "\\n"}, {"a", "a\\u0000"}, {"", "\\u0000"},
  };
  for (const auto& [a, b] : different) {
    EXPECT_EQ(error_of("{\"" + a + "\":1,\"" + b + "\":3}"), JsonError::kNone) << a << " " << b;
  }
  // Wanted names are found by what they mean, too.
  const std::string_view text = "{\"messag\\u0065s\":[{}],\"tools\\u0000\":[{}]}";
  const Scan made = scan(text, {"messages", "tools"});
  ASSERT_EQ(made.members.size(), 2u);
  EXPECT_EQ(made.members[0].first_element, 0u);
  EXPECT_NE(made.members[0].type & JsonMember::kEscaped, 0u);
  EXPECT_EQ(made.members[1].first_element, kNone);
  EXPECT_EQ(made.outline.element_count, 1u);
}

TEST(JsonOutline, CountsWhatDoesNotFit) {
  const std::string_view text = "{\"a\":[{},{},{}],\"b\":[[]],\"c\":1}";
  for (std::size_t room = 0; room <= 5; ++room) {
    const Scan made = scan(text, {"a", "b"}, room);
    EXPECT_EQ(made.outline.error, JsonError::kNone);
    EXPECT_EQ(made.outline.member_count, 3u);
    EXPECT_EQ(made.outline.element_count, 4u);
  }
}

// Every byte that a string may meet, at every distance from the beginning and from the end of the text.
TEST(JsonOutline, FindsWhatEndsAStringAtEveryPlace) {
  for (std::size_t length = 0; length <= 150; ++length) {
    const std::string plain(length, 'a');
    ASSERT_EQ(error_of("\"" + plain + "\""), JsonError::kNone) << length;
    const JsonOutline open = scan("\"" + plain).outline;
    ASSERT_EQ(open.error, JsonError::kQuote);
    ASSERT_EQ(open.position, length + 1);
    for (std::size_t at = 0; at < length; ++at) {
      const auto with = [&](char byte) {
        std::string text = plain;
        text[at] = byte;
        return "\"" + text + "\"";
      };
      const auto position = static_cast<std::uint32_t>(at + 1);
      const JsonOutline control = scan(with('\x1f')).outline;
      ASSERT_TRUE(control.error == JsonError::kEscape && control.position == position) << length << " " << at;
      const JsonOutline high = scan(with('\x80')).outline;
      ASSERT_TRUE(high.error == JsonError::kUtf8 && high.position == position) << length << " " << at;
      const JsonOutline quote = scan(with('"')).outline;
      ASSERT_TRUE(quote.error == JsonError::kEnd && quote.position == position + 1) << length << " " << at;
      const JsonOutline backslash = scan(with('\\')).outline;
      const JsonError expected = at + 1 == length ? JsonError::kQuote : JsonError::kEscapeLetter;
      const std::uint32_t wrong = at + 1 == length ? position + 2 : position + 1;
      ASSERT_TRUE(backslash.error == expected && backslash.position == wrong) << length << " " << at;
    }
  }
}

TEST(JsonOutline, KnowsEveryByteOfAString) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (const std::size_t before : {0u, 3u, 20u, 70u}) {
      std::string text(1, '"');
      text.append(before, 'b').append(1, static_cast<char>(byte)).append(90, 'c').append(1, '"');
      JsonError expected = JsonError::kNone;
      if (byte < 0x20) expected = JsonError::kEscape;
      if (byte >= 0x80) expected = JsonError::kUtf8;
      if (byte == '"') expected = JsonError::kEnd;
      if (byte == '\\') expected = JsonError::kEscapeLetter;
      EXPECT_EQ(error_of(text), expected) << byte << " behind " << before;
    }
  }
}

// Whether four bytes are characters, by their values rather than by ranges of bytes.
bool is_utf8(std::string_view bytes) {
  const std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};
  for (std::size_t at = 0; at < bytes.size();) {
    const auto first = static_cast<std::uint8_t>(bytes[at++]);
    std::size_t more = 0;
    while (more < 7 && ((first << (more + 1)) & 0x100) != 0) ++more;
    if (more == 0) continue;
    if (more == 1 || more > 4 || bytes.size() - at < more - 1) return false;
    std::uint32_t value = first & (0x7Fu >> more);
    for (std::size_t i = 1; i < more; ++i) {
      const auto next = static_cast<std::uint8_t>(bytes[at++]);
      if (next >> 6 != 2) return false;
      value = value * 64 + next % 64;
    }
    if (value < least[more - 1] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return false;
  }
  return true;
}

TEST(JsonOutline, AcceptsUtf8AsItsValuesSay) {
  const std::string_view edges =
      "a\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff";
  std::size_t accepted = 0;
  std::string text = "\"....\"";
  for (const char a : edges) {
    for (const char b : edges) {
      for (const char c : edges) {
        for (const char d : edges) {
          text[1] = a;
          text[2] = b;
          text[3] = c;
          text[4] = d;
          const bool valid = is_utf8(std::string_view(text).substr(1, 4));
          accepted += valid ? 1 : 0;
          const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
          ASSERT_EQ(scan_json(bytes, {}, {}, {}).error == JsonError::kNone, valid) << text;
        }
      }
    }
  }
  EXPECT_GT(accepted, 500u);
}

// Any damage to a text is found or is none; nothing behind its end is read (AddressSanitizer), and ranges are within it.
TEST(JsonOutline, EveryPrefixAndEveryDamageIsHandled) {
  const std::string text =
      "{\"model\":\"m\\u00e9\",\"messages\":[{\"role\":\"user\",\"content\":\"h\xc3\xa9llo w\xf0\x9f\x98\x80rld, quite "
      "long\\n\"},[1,2.5e-7]],"
      "\"prompt\":[1,22,333,4444444,55555555],\"stream\":true,\"x\":null,\"y\":{}}";
  ASSERT_EQ(error_of(text), JsonError::kNone);
  for (std::size_t size = 0; size < text.size(); ++size) {
    const JsonOutline outline = scan(std::string_view(text).substr(0, size), {"messages"}).outline;
    ASSERT_NE(outline.error, JsonError::kNone) << size;
    ASSERT_LE(outline.position, size);
  }
  Random random(7);
  std::size_t refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string damaged = text;
    for (std::uint64_t i = 0; i <= random.below(3); ++i) {
      damaged[random.below(damaged.size())] = static_cast<char>(random.below(256));
    }
    const Scan made = scan(damaged, {"messages", "prompt"});
    if (made.outline.error != JsonError::kNone) {
      ++refused;
      ASSERT_LE(made.outline.position, damaged.size());
      continue;
    }
    std::uint32_t behind = made.outline.start;
    for (const JsonMember& member : made.members) {
      ASSERT_LT(behind, member.name_start);
      ASSERT_LE(member.name_start, member.name_end);
      ASSERT_LT(member.name_end, member.start);
      ASSERT_LT(member.start, member.end);
      behind = member.end;
    }
    ASSERT_LT(behind, made.outline.end);
  }
  EXPECT_GT(refused, 10'000u);
}

struct Ids {
  TokenIds read;
  std::vector<std::uint32_t> ids;
};

Ids ids_of(std::string_view text, std::size_t room = 64) {
  Ids made;
  made.ids.resize(room);
  made.read = read_token_ids(Exact(text), 0, text.size(), made.ids);
  made.ids.resize(std::min<std::size_t>(room, made.read.count));
  return made;
}

TEST(TokenIds, AreRead) {
  using List = std::vector<std::uint32_t>;
  EXPECT_EQ(ids_of("[]").ids, List{});
  EXPECT_EQ(ids_of(" [ ] ").ids, List{});
  EXPECT_EQ(ids_of("[0]").ids, List{0});
  EXPECT_EQ(ids_of("[7,10,99]").ids, (List{7, 10, 99}));
  EXPECT_EQ(ids_of("\n[ 1 ,\t22\r,333 ] ").ids, (List{1, 22, 333}));
  EXPECT_EQ(ids_of("[1234567,12345678,123456789,1234567890,4294967295]").ids,
            (List{1234567, 12345678, 123456789, 1234567890, 4294967295u}));
  EXPECT_EQ(ids_of("[1,2,3]", 2).read.count, 3u);
  EXPECT_EQ(ids_of("[1,2,3]", 2).read.error, JsonError::kNone);
  for (const std::string_view valid : {"[]", "[1,2]", "[12345678]"}) {
    EXPECT_EQ(ids_of(valid).read.error, JsonError::kNone) << valid;
  }
}

TEST(TokenIds, OfEveryLengthAtEveryPlace) {
  Random random(3);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::uint32_t> expected;
    std::string text = "[";
    for (std::uint64_t i = 0; i < random.below(20); ++i) {
      const auto id = static_cast<std::uint32_t>(random.next() >> (32 + random.below(32)));
      if (!expected.empty()) text += random.below(8) == 0 ? " , " : ",";
      text += std::to_string(id);
      expected.push_back(id);
    }
    text += "]";
    const Ids made = ids_of(text);
    ASSERT_EQ(made.read.error, JsonError::kNone) << text;
    ASSERT_EQ(made.ids, expected) << text;
  }
}

TEST(TokenIds, AreRefusedWhereTheyAreNone) {
  struct Case {
    std::string_view text;
    JsonError expected;
    std::uint32_t position;
  };
  for (const Case& one : std::initializer_list<Case>{
           {"", JsonError::kArray, 0},
           {" 1", JsonError::kArray, 1},
           {"{}", JsonError::kArray, 0},
           {"[", JsonError::kTokenId, 1},
           {"[1", JsonError::kCommaOrBracket, 2},
           {"[1,", JsonError::kTokenId, 3},
           {"[1,]", JsonError::kTokenId, 3},
           {"[,1]", JsonError::kTokenId, 1},
           {"[1 2]", JsonError::kCommaOrBracket, 3},
           {"[-1]", JsonError::kTokenId, 1},
           {"[3,-0]", JsonError::kTokenId, 3},
           {"[1.0]", JsonError::kTokenId, 1},
           {"[10,2e3,4567890]", JsonError::kTokenId, 4},
           {"[10,2E3]", JsonError::kTokenId, 4},
           {"[4294967296]", JsonError::kTokenId, 1},
           {"[1,99999999999999999999999]", JsonError::kTokenId, 3},
           {"[18446744073709551617]", JsonError::kTokenId, 1},
           {"[01]", JsonError::kTokenId, 1},
           {"[00000000000]", JsonError::kTokenId, 1},
           {"[\"1\"]", JsonError::kTokenId, 1},
           {"[null]", JsonError::kTokenId, 1},
           {"[[1]]", JsonError::kTokenId, 1},
           {"[1,[2]]", JsonError::kTokenId, 3},
           {"[1}", JsonError::kCommaOrBracket, 2},
           {"[1]x", JsonError::kEnd, 3},
           {"[1]]", JsonError::kEnd, 3},
           {"[1/2,4567890]", JsonError::kCommaOrBracket, 2},
           {"[1:2,4567890]", JsonError::kCommaOrBracket, 2},
           {"[1\xb0,4567890]", JsonError::kCommaOrBracket, 2},
       }) {
    const TokenIds read = ids_of(one.text).read;
    EXPECT_EQ(read.error, one.expected) << one.text;
    EXPECT_EQ(read.position, one.position) << one.text;
  }
}

TEST(TokenIds, LieInARangeOfTheText) {
  const Exact text("[9,[12,13],8]");
  std::vector<std::uint32_t> ids(2);
  const TokenIds read = read_token_ids(text, 3, 10, ids);
  EXPECT_EQ(read.error, JsonError::kNone);
  EXPECT_EQ(ids, (std::vector<std::uint32_t>{12, 13}));
  // The range ends, though the text goes on.
  EXPECT_EQ(read_token_ids(text, 3, 6, ids).error, JsonError::kCommaOrBracket);
  EXPECT_EQ(read_token_ids(text, 3, 9, ids).position, 9u);
}

// ---- Ids that are read as a text is scanned, against a reader that takes one byte after the other.

struct Numbers {
  JsonError error = JsonError::kNone;
  std::uint32_t position = 0;
  std::uint32_t count = 0;
  bool all_ids = true;
  std::vector<std::uint32_t> ids;
};

// Of `{"n":[`, numbers, `]}`, or what is left of that.
Numbers numbers_of(std::string_view text) {
  Numbers made;
  std::size_t at = 6;
  const auto peek = [&](std::size_t i) { return i < text.size() ? text[i] : '\0'; };
  const auto digit = [&] { return peek(at) >= '0' && peek(at) <= '9'; };
  const auto blank = [&] {
    while (peek(at) != '\0' && std::string_view(" \t\r\n").find(peek(at)) != std::string_view::npos) ++at;
  };
  const auto wrong = [&](JsonError error) {
    made.error = error;
    made.position = static_cast<std::uint32_t>(at);
    return made;
  };
  blank();
  if (peek(at) == ']') made.all_ids = false;
  while (peek(at) != ']' || made.count != 0) {
    bool id = digit();
    if (peek(at) == '-') {
      ++at;
      if (!digit()) return wrong(JsonError::kDigit);
    } else if (!digit()) {
      return wrong(JsonError::kValue);
    }
    std::uint64_t value = 0;
    if (peek(at) == '0') {
      ++at;
    } else {
      while (digit())
        value = std::min<std::uint64_t>(value * 10 + static_cast<unsigned>(text[at++] - '0'), 0x100000000u);
    }
    if (peek(at) == '.') {
      id = false;
      ++at;
      if (!digit()) return wrong(JsonError::kDigit);
      while (digit()) ++at;
    }
    if (peek(at) == 'e' || peek(at) == 'E') {
      id = false;
      ++at;
      if (peek(at) == '+' || peek(at) == '-') ++at;
      if (!digit()) return wrong(JsonError::kDigit);
      while (digit()) ++at;
    }
    ++made.count;
    made.all_ids = made.all_ids && id && value <= 0xFFFFFFFFu;
    if (made.all_ids) made.ids.push_back(static_cast<std::uint32_t>(value));
    blank();
    if (peek(at) != ',') break;
    ++at;
    blank();
  }
  if (peek(at) != ']') return wrong(JsonError::kCommaOrBracket);
  ++at;
  blank();
  if (peek(at) == ',') {
    ++at;
    blank();
    return wrong(JsonError::kName);
  }
  if (peek(at) != '}') return wrong(JsonError::kCommaOrBrace);
  ++at;
  blank();
  return at == text.size() ? made : wrong(JsonError::kEnd);
}

struct ScanOfIds {
  JsonOutline outline;
  JsonMember member{};
  std::vector<std::uint32_t> ids;
};

ScanOfIds scan_ids(std::string_view text, std::size_t room) {
  ScanOfIds made;
  made.ids.resize(room);
  // Exactly `room`, so that AddressSanitizer sees an id written behind.
  const std::unique_ptr<std::uint32_t[]> ids(new std::uint32_t[room]);
  made.outline = scan_json(Exact(text), {}, {&made.member, 1}, {}, {ids.get(), room});
  std::copy_n(ids.get(), room, made.ids.data());
  return made;
}

TEST(JsonOutline, ReadsIdsAsAModelDoes) {
  Random random(11);
  constexpr std::string_view kSeparators[] = {",", ", ", ",  ", " ,", ",\n ", "\t,\t"};
  constexpr std::string_view kOthers[] = {"-1", "01", "1.5", "2e3", "4294967296", "99999999999", "1.", "x", "00", "-"};
  constexpr std::string_view kBytes = "0123456789,, .-eE]}x\n\x80";
  std::uint32_t read = 0;
  std::uint32_t not_ids = 0;
  std::uint32_t refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = "{\"n\":[";
    const std::string_view usual = kSeparators[random.below(3)];
    const std::uint64_t digits = 1 + random.below(10);
    for (std::uint64_t left = random.below(120); left != 0; --left) {
      std::uint64_t value = random.next() >> 32;
      for (std::uint64_t shown = digits; shown < 10; ++shown) value /= 10;
      text += std::to_string(value);
      if (left != 1) text += random.below(60) == 0 ? kSeparators[random.below(std::size(kSeparators))] : usual;
    }
    text += "]}";
    // In some rounds one place is something else.
    const std::size_t place = 6 + random.below(text.size() - 6);
    switch (random.below(6)) {
      case 0:
        text.insert(place, kOthers[random.below(std::size(kOthers))]);
        break;
      case 1:
        text[place] = kBytes[random.below(kBytes.size())];
        break;
      case 2:
        text.resize(place);
        break;
      default:
        break;
    }
    const std::size_t room = random.below(4) == 0 ? random.below(130) : 130;
    const Numbers expected = numbers_of(text);
    const ScanOfIds made = scan_ids(text, room);
    ASSERT_EQ(made.outline.error, expected.error) << text;
    // Read by itself, an array is refused where the first element is no id, or where the text is wrong.
    std::vector<std::uint32_t> again(130);
    const TokenIds alone = read_token_ids(Exact(text), 5, text.size(), again);
    if (expected.error != JsonError::kNone) {
      ++refused;
      ASSERT_EQ(made.outline.position, expected.position) << text;
      continue;
    }
    ASSERT_EQ(made.member.element_count, expected.count) << text;
    const bool fits = expected.all_ids && expected.ids.size() <= room;
    ASSERT_EQ((made.member.type & JsonMember::kIds) != 0, fits) << text;
    ASSERT_EQ(made.member.first_element, fits ? 0u : kNone) << text;
    ASSERT_EQ(made.outline.id_count, expected.all_ids ? expected.ids.size() : 0) << text;
    if (fits) {
      ASSERT_TRUE(std::equal(expected.ids.begin(), expected.ids.end(), made.ids.begin())) << text;
    }
    if (expected.all_ids) {
      ++read;
      ASSERT_EQ(alone.count, expected.ids.size()) << text;
      ASSERT_TRUE(std::equal(expected.ids.begin(), expected.ids.end(), again.begin())) << text;
    } else if (expected.count != 0) {
      ++not_ids;
      ASSERT_EQ(alone.error, JsonError::kTokenId) << text;
      ASSERT_EQ(alone.count, expected.ids.size()) << text;
    }
  }
  EXPECT_GT(read, 5'000u);
  EXPECT_GT(not_ids, 300u);
  EXPECT_GT(refused, 3'000u);
}

TEST(JsonOutline, ReadsIdsOfSeveralArrays) {
  const std::string text =
      "{\"a\":[1,2,3],\"b\":[[4],5],\"c\":[6,\"7\"],\"d\":[8,9],\"e\":{\"f\":[10]},\"g\":[],\"h\":[11]}";
  const auto scan_into = [&](std::vector<JsonMember>& members, std::vector<std::uint32_t>& ids) {
    return scan_json(Exact(text), {}, members, {}, ids);
  };
  std::vector<JsonMember> members(8);
  std::vector<std::uint32_t> ids(6);
  EXPECT_EQ(scan_into(members, ids).id_count, 6u);
  EXPECT_EQ(ids, (std::vector<std::uint32_t>{1, 2, 3, 8, 9, 11}));
  const auto first_of = [&](std::size_t i) {
    return (members[i].type & JsonMember::kIds) != 0 ? members[i].first_element : kNone;
  };
  EXPECT_EQ(first_of(0), 0u);
  EXPECT_EQ(first_of(1), kNone);
  EXPECT_EQ(first_of(2), kNone);
  EXPECT_EQ(first_of(3), 3u);
  EXPECT_EQ(first_of(4), kNone);
  EXPECT_EQ(first_of(5), kNone);
  EXPECT_EQ(first_of(6), 5u);
  // The second array does not fit: nor is the one behind it told to be there.
  ids.assign(4, 0);
  EXPECT_EQ(scan_into(members, ids).id_count, 6u);
  EXPECT_EQ(first_of(0), 0u);
  EXPECT_EQ(first_of(3), kNone);
  EXPECT_EQ(first_of(6), kNone);
  EXPECT_EQ(ids[2], 3u);
  EXPECT_EQ(members[3].element_count, 2u);
}

TEST(CommonPrefix, IsFoundAtEveryPlace) {
  for (const std::size_t size : {0u, 1u, 7u, 8u, 9u, 100u, 4095u, 4096u, 4097u, 9000u}) {
    std::string a(size, 'x');
    EXPECT_EQ(common_prefix(a.data(), a.data(), size), size);
    const std::string b = a;
    EXPECT_EQ(common_prefix(a.data(), b.data(), size), size);
    const std::size_t step = size > 200 ? 61 : 1;
    for (std::size_t at = 0; at < size; at += step) {
      a[at] = 'y';
      EXPECT_EQ(common_prefix(a.data(), b.data(), size), at);
      EXPECT_EQ(common_prefix(a.data(), b.data(), at), at);
      a[at] = 'x';
    }
  }
}

}  // namespace
}  // namespace saga
