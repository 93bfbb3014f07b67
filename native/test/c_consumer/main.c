/* The smallest program that proves that header and library were found and fit together. */
#include <saga/saga.h>
#include <stdio.h>

int main(void) {
  const unsigned version = (unsigned)saga_abi_version();
  printf("saga ABI version %u, header %u\n", version, (unsigned)SAGA_ABI_VERSION);
  return version == SAGA_ABI_VERSION ? 0 : 1;
}
