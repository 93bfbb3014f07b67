// The tests of json_outline_test.cpp once more, for the code of processors without SSE2. The definitions here take the place of those
// of the library.
#define SAGA_JSON_PORTABLE
#include "../core/json/json_outline.cpp"
#include "json_outline_test.cpp"
