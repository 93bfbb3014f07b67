/* json.h - where things are in the JSON body of a request. Included by saga.h, whose conventions hold.
 *
 * Bodies of long conversations are megabytes that a gateway forwards unchanged but for a few members. saga_json_scan passes over
 * one once, checks all of it, and reports byte ranges: of the members of the top-level object, and of the elements of those arrays
 * that are asked for. No value is made. See native/core/json/json_outline.hpp for costs (1 to 10 GB/s).
 *
 * Accepted is exactly RFC 8259 in UTF-8, without a byte order mark, and with two bounds of its own: at most SAGA_JSON_MAX_DEPTH
 * levels, and no name twice in the top-level object, however it is escaped. Two readers of such a body could take different
 * values of it.
 */
#ifndef SAGA_JSON_H
#define SAGA_JSON_H

#include "saga.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SAGA_JSON_MAX_DEPTH 1024u

typedef enum saga_json_type_t SAGA_ENUM {
  SAGA_JSON_OBJECT = 1,
  SAGA_JSON_ARRAY = 2,
  SAGA_JSON_STRING = 3,
  SAGA_JSON_NUMBER = 4,
  SAGA_JSON_TRUE = 5,
  SAGA_JSON_FALSE = 6,
  SAGA_JSON_NULL = 7
} saga_json_type_t;

/* What was expected where a body is wrong. */
typedef enum saga_json_error_t SAGA_ENUM {
  SAGA_JSON_VALID = 0,
  SAGA_JSON_EXPECTED_VALUE = 1,
  SAGA_JSON_EXPECTED_NAME = 2, /* a name in quotes */
  SAGA_JSON_EXPECTED_COLON = 3,
  SAGA_JSON_EXPECTED_COMMA_OR_BRACE = 4,   /* , or } */
  SAGA_JSON_EXPECTED_COMMA_OR_BRACKET = 5, /* , or ] */
  SAGA_JSON_EXPECTED_END = 6,              /* nothing but white space behind the value */
  SAGA_JSON_EXPECTED_QUOTE = 7,            /* the end of a string */
  SAGA_JSON_EXPECTED_ESCAPE = 8,           /* a control character must be escaped */
  SAGA_JSON_EXPECTED_ESCAPE_LETTER = 9,    /* one of " \ / b f n r t u behind a backslash */
  SAGA_JSON_EXPECTED_HEX_DIGIT = 10,       /* four of them behind \u */
  SAGA_JSON_EXPECTED_UTF8 = 11,
  SAGA_JSON_EXPECTED_DIGIT = 12,
  SAGA_JSON_EXPECTED_LESS_DEPTH = 13, /* beyond SAGA_JSON_MAX_DEPTH */
  SAGA_JSON_EXPECTED_NEW_NAME = 14,   /* the top-level object has this name already */
  SAGA_JSON_EXPECTED_TOKEN_ID = 15,   /* an integer from 0 to 2^32 - 1 (saga_json_token_ids) */
  SAGA_JSON_EXPECTED_ARRAY = 16       /* [ (saga_json_token_ids) */
} saga_json_error_t;

/* What was expected, as the rest of a sentence that begins "expected"; static and never NULL. */
SAGA_API const char* saga_json_error_text(saga_json_error_t error);

/* Ranges are bytes [start, end) of the body. */
typedef struct saga_json_member_t {
  uint32_t name_start; /* without the quotes */
  uint32_t name_end;
  uint32_t start; /* of the value; a string's with its quotes */
  uint32_t end;
  uint32_t type; /* saga_json_type_t in the low 8 bits; bit 8: the name has escapes; bits 16 and up: of an array, which
                             types its elements have, 1 << (16 + saga_json_type_t); bit 9: first_element is a place in `ids` */
  uint32_t element_count; /* of an array */
  uint32_t
      first_element; /* place in `elements` or, with bit 9 of the type, in `ids`; SAGA_NONE where they are in neither */
  uint32_t name_hash; /* of the library's own use */
} saga_json_member_t;
#define SAGA_JSON_NAME_ESCAPED 0x100u
#define SAGA_JSON_IDS 0x200u

typedef struct saga_json_element_t {
  uint32_t start;
  uint32_t end;
  uint32_t type; /* saga_json_type_t */
} saga_json_element_t;

typedef struct saga_json_outline_t {
  uint32_t error;    /* saga_json_error_t; where it is not SAGA_JSON_VALID only `position` means something besides */
  uint32_t position; /* of the byte that is wrong; the size of the body where it ends too early */
  uint32_t type;     /* of the value that the body is; it has members if it is an object */
  uint32_t start;
  uint32_t end;
  uint32_t member_count;
  uint32_t element_count; /* listed, of all arrays together */
} saga_json_outline_t;

/* Scans a body of less than 2^32 - 1 bytes. A body that is wrong gives SAGA_OK and says so in outline->error.
 *
 * `names` are UTF-8 texts behind one another, the i-th of which ends at name_ends[i] (ascending): the elements of top-level arrays
 * of these names are listed, unless the first is a number, since saga_json_token_ids reads those. At most 64.
 *
 * SAGA_ERR_FULL: there are more members than member_capacity or more elements than element_capacity. `outline` is written and says
 * how many of both there are; scan again with as much room. Whether a name is there twice is known then only.
 * With m members their names cost m * m / 2 comparisons of integers: keep member_capacity (1 to 4,096) small. */
SAGA_API saga_status_t saga_json_scan(const uint8_t* body, size_t size, const char* names, const uint32_t* name_ends,
                                      size_t name_count, saga_json_member_t* members, size_t member_capacity,
                                      saga_json_element_t* elements, size_t element_capacity,
                                      saga_json_outline_t* outline);

/* The same, and reads the top-level arrays, of whatever name, that have nothing but token ids (integers from 0 to 2^32 - 1 in plain
 * digits) into `ids`, one behind the other: their members have SAGA_JSON_IDS. *id_count is the ids of all of them together; where
 * it is more than id_capacity, which is no error, the first array that does not fit and those behind it have no SAGA_JSON_IDS. What
 * `ids` has behind those that fit means nothing. */
SAGA_API saga_status_t saga_json_scan_ids(const uint8_t* body, size_t size, const char* names,
                                          const uint32_t* name_ends, size_t name_count, saga_json_member_t* members,
                                          size_t member_capacity, saga_json_element_t* elements,
                                          size_t element_capacity, uint32_t* ids, size_t id_capacity, size_t* id_count,
                                          saga_json_outline_t* outline);

typedef struct saga_json_token_ids_t {
  uint32_t error; /* saga_json_error_t */
  uint32_t position;
  uint32_t count;
} saga_json_token_ids_t;

/* Reads the array of token ids that is body[start, end), with white space around it if there is any. Only integers from 0 to
 * 2^32 - 1 in plain digits are ids. SAGA_ERR_FULL: `capacity` is less than result->count; the first `capacity` were written. */
SAGA_API saga_status_t saga_json_token_ids(const uint8_t* body, size_t size, size_t start, size_t end, uint32_t* ids,
                                           size_t capacity, saga_json_token_ids_t* result);

/* ---- Bytes */

/* How many leading bytes two arrays share. */
SAGA_API saga_status_t saga_common_prefix(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size,
                                          size_t* count);
/* XXH3-128 of the bytes, its low half: equal on every machine. Not for bytes whose author gains by a collision. */
SAGA_API saga_status_t saga_hash_bytes(const uint8_t* bytes, size_t size, uint64_t* hash);

#ifdef __cplusplus
}
#endif

#endif /* SAGA_JSON_H */
