// SAGA_ASSERT states what the code around it relies on. It costs nothing in a release build (NDEBUG) and aborts with the
// place and the condition otherwise: a failed assertion is a bug in SAGA, never a reaction to a caller's input, which the C
// ABI has checked before.
#pragma once

#include <cstdio>
#include <cstdlib>

#if defined(NDEBUG) && !defined(SAGA_FORCE_ASSERTS)
#define SAGA_ASSERT(condition) ((void)sizeof(!(condition)))
#else
#define SAGA_ASSERT(condition) \
  ((condition)                 \
       ? (void)0               \
       : (std::fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, #condition), std::abort()))
#endif
