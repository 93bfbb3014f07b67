/* Outlines of JSON bodies from C99, with the wrong arguments that a caller can give. Exits with 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "saga/saga.h"

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                        \
    }                                                                 \
  } while (0)
#define IS(expected, call) CHECK((call) == (expected))

static const uint8_t* bytes(const char* text) { return (const uint8_t*)text; }

static void reports_ranges(void) {
  const char* body = " {\"model\": \"m\", \"messages\": [{\"a\":1}, \"x\", []], \"n\":[1,2.5]} ";
  const char names[] = "inputmessagesn";
  const uint32_t ends[3] = {5, 13, 14};
  saga_json_member_t members[4];
  saga_json_element_t elements[4];
  saga_json_outline_t outline;
  IS(SAGA_OK, saga_json_scan(bytes(body), strlen(body), names, ends, 3, members, 4, elements, 4, &outline));
  CHECK(outline.error == SAGA_JSON_VALID && outline.type == SAGA_JSON_OBJECT);
  CHECK(outline.start == 1 && outline.end == strlen(body) - 1);
  CHECK(outline.member_count == 3 && outline.element_count == 3);
  CHECK(members[0].name_start == 3 && members[0].name_end == 8 && members[0].start == 11 && members[0].end == 14);
  CHECK(members[0].type == SAGA_JSON_STRING && members[0].element_count == 0 && members[0].first_element == SAGA_NONE);
  CHECK(memcmp(body + members[1].start, "[{\"a\":1}, \"x\", []]", 18) == 0 && members[1].end == members[1].start + 18);
  CHECK((members[1].type & 0xff) == SAGA_JSON_ARRAY && members[1].element_count == 3 && members[1].first_element == 0);
  CHECK(members[1].type >> 16 == (1u << SAGA_JSON_OBJECT | 1u << SAGA_JSON_STRING | 1u << SAGA_JSON_ARRAY));
  CHECK(memcmp(body + elements[0].start, "{\"a\":1}", 7) == 0 && elements[0].end == elements[0].start + 7);
  CHECK(elements[0].type == SAGA_JSON_OBJECT && elements[1].type == SAGA_JSON_STRING);
  CHECK(elements[2].type == SAGA_JSON_ARRAY && elements[2].end == elements[2].start + 2);
  /* Numbers are counted, not listed. */
  CHECK(members[2].element_count == 2 && members[2].first_element == SAGA_NONE);
  CHECK(members[2].type == (SAGA_JSON_ARRAY | 1u << (16 + SAGA_JSON_NUMBER)));
}

static void says_how_much_room_it_needs(void) {
  const char* body = "{\"a\":[{},{},{}],\"b\":1}";
  const uint32_t ends[1] = {1};
  saga_json_member_t members[2];
  saga_json_element_t elements[3];
  saga_json_outline_t outline;
  memset(members, 0xee, sizeof members);
  memset(elements, 0xee, sizeof elements);
  IS(SAGA_ERR_FULL, saga_json_scan(bytes(body), strlen(body), "a", ends, 1, members, 1, elements, 2, &outline));
  CHECK(outline.error == SAGA_JSON_VALID && outline.member_count == 2 && outline.element_count == 3);
  CHECK(members[1].start == 0xeeeeeeeeu && elements[2].start == 0xeeeeeeeeu);
  IS(SAGA_ERR_FULL, saga_json_scan(bytes(body), strlen(body), "a", ends, 1, members, 2, NULL, 0, &outline));
  CHECK(outline.element_count == 3);
  IS(SAGA_OK, saga_json_scan(bytes(body), strlen(body), "a", ends, 1, members, 2, elements, 3, &outline));
  CHECK(members[1].start == 20 && elements[2].start == 12);
  /* What is wrong wins over what does not fit. */
  IS(SAGA_OK, saga_json_scan(bytes(body), strlen(body) - 1, "a", ends, 1, members, 1, elements, 1, &outline));
  CHECK(outline.error == SAGA_JSON_EXPECTED_COMMA_OR_BRACE && outline.position == 21);
}

static void reads_token_ids(void) {
  const char* body = "{\"p\":[0, 4294967295 ,17]}";
  uint32_t ids[3] = {9, 9, 9};
  saga_json_token_ids_t result;
  IS(SAGA_OK, saga_json_token_ids(bytes(body), strlen(body), 5, 24, ids, 3, &result));
  CHECK(result.error == SAGA_JSON_VALID && result.count == 3 && ids[0] == 0 && ids[1] == 4294967295u && ids[2] == 17);
  ids[2] = 9;
  IS(SAGA_ERR_FULL, saga_json_token_ids(bytes(body), strlen(body), 5, 24, ids, 2, &result));
  CHECK(result.count == 3 && ids[2] == 9);
  IS(SAGA_ERR_FULL, saga_json_token_ids(bytes(body), strlen(body), 5, 24, NULL, 0, &result));
  IS(SAGA_OK, saga_json_token_ids(bytes("[1,-2]"), 6, 0, 6, ids, 3, &result));
  CHECK(result.error == SAGA_JSON_EXPECTED_TOKEN_ID && result.position == 3);
}

static void reads_ids_as_it_scans(void) {
  const char* body = "{\"p\":[0, 4294967295 ,17],\"q\":[1,-1],\"r\":[5]}";
  saga_json_member_t members[3];
  saga_json_outline_t outline;
  uint32_t ids[5] = {9, 9, 9, 9, 9};
  size_t count = 99;
  IS(SAGA_OK,
     saga_json_scan_ids(bytes(body), strlen(body), NULL, NULL, 0, members, 3, NULL, 0, ids, 4, &count, &outline));
  CHECK(outline.error == SAGA_JSON_VALID && outline.member_count == 3 && count == 4);
  CHECK(ids[0] == 0 && ids[1] == 4294967295u && ids[2] == 17 && ids[3] == 5 && ids[4] == 9);
  CHECK((members[0].type & SAGA_JSON_IDS) != 0 && members[0].first_element == 0 && members[0].element_count == 3);
  CHECK((members[1].type & SAGA_JSON_IDS) == 0 && members[1].first_element == SAGA_NONE);
  CHECK((members[2].type & SAGA_JSON_IDS) != 0 && members[2].first_element == 3);
  /* What does not fit is counted. */
  IS(SAGA_OK,
     saga_json_scan_ids(bytes(body), strlen(body), NULL, NULL, 0, members, 3, NULL, 0, ids, 3, &count, &outline));
  CHECK(count == 4 && (members[0].type & SAGA_JSON_IDS) != 0 && (members[2].type & SAGA_JSON_IDS) == 0);
  IS(SAGA_OK,
     saga_json_scan_ids(bytes(body), strlen(body), NULL, NULL, 0, members, 3, NULL, 0, NULL, 0, &count, &outline));
  CHECK(count == 4 && (members[0].type & SAGA_JSON_IDS) == 0);
  IS(SAGA_ERR_INVALID_ARGUMENT,
     saga_json_scan_ids(bytes(body), strlen(body), NULL, NULL, 0, members, 3, NULL, 0, NULL, 1, &count, &outline));
  IS(SAGA_ERR_INVALID_ARGUMENT,
     saga_json_scan_ids(bytes(body), strlen(body), NULL, NULL, 0, members, 3, NULL, 0, ids, 5, NULL, &outline));
}

static void handles_bytes(void) {
  uint64_t hash = 0, other = 0;
  size_t count = 9;
  IS(SAGA_OK, saga_common_prefix(bytes("abcdefghij"), 10, bytes("abcdefghiJ"), 10, &count));
  CHECK(count == 9);
  IS(SAGA_OK, saga_common_prefix(NULL, 0, bytes("x"), 1, &count));
  CHECK(count == 0);
  IS(SAGA_OK, saga_hash_bytes(bytes("abc"), 3, &hash));
  IS(SAGA_OK, saga_hash_bytes(bytes("abd"), 3, &other));
  CHECK(hash != other);
  /* The low half of XXH3-128 of nothing, as published. */
  IS(SAGA_OK, saga_hash_bytes(NULL, 0, &hash));
  CHECK(hash == UINT64_C(0x6001c324468d497f));
}

static void refuses_wrong_arguments(void) {
  const uint8_t* body = bytes("{}");
  const uint32_t ends[2] = {2, 1};
  saga_json_member_t member;
  saga_json_element_t element;
  saga_json_outline_t outline;
  saga_json_token_ids_t ids;
  uint64_t hash;
  size_t count;
  const saga_status_t wrong = SAGA_ERR_INVALID_ARGUMENT;
  IS(wrong, saga_json_scan(NULL, 2, NULL, NULL, 0, &member, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, (size_t)UINT32_MAX, NULL, NULL, 0, &member, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, "ab", NULL, 1, &member, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, NULL, ends, 1, &member, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, "ab", ends, 2, &member, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, "ab", ends, 65, &member, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, NULL, NULL, 0, NULL, 1, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, NULL, NULL, 0, &member, 0, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, NULL, NULL, 0, &member, 4097, &element, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, NULL, NULL, 0, &member, 1, NULL, 1, &outline));
  IS(wrong, saga_json_scan(body, 2, NULL, NULL, 0, &member, 1, &element, 1, NULL));
  IS(wrong, saga_json_token_ids(NULL, 2, 0, 2, NULL, 0, &ids));
  IS(wrong, saga_json_token_ids(body, 2, 2, 1, NULL, 0, &ids));
  IS(wrong, saga_json_token_ids(body, 2, 0, 3, NULL, 0, &ids));
  IS(wrong, saga_json_token_ids(body, 2, 0, 2, NULL, 1, &ids));
  IS(wrong, saga_json_token_ids(body, 2, 0, 2, NULL, 0, NULL));
  IS(wrong, saga_common_prefix(NULL, 1, body, 1, &count));
  IS(wrong, saga_common_prefix(body, 1, NULL, 1, &count));
  IS(wrong, saga_common_prefix(body, 1, body, 1, NULL));
  IS(wrong, saga_hash_bytes(NULL, 1, &hash));
  IS(wrong, saga_hash_bytes(body, 1, NULL));
  CHECK(strcmp(saga_json_error_text((saga_json_error_t)99), "something else") == 0);
  CHECK(strcmp(saga_json_error_text(SAGA_JSON_EXPECTED_COLON), "a colon behind the name") == 0);
}

int main(void) {
  reports_ranges();
  says_how_much_room_it_needs();
  reads_token_ids();
  reads_ids_as_it_scans();
  handles_bytes();
  refuses_wrong_arguments();
  return 0;
}
