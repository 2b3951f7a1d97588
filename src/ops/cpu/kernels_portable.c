/* kernels_portable: the vector loops for no instruction set beyond the compiler's default. */
#define MB_KERNELS_TABLE mb_kernels_portable
#define MB_KERNELS_NAME  "portable"
#include "ops/cpu/kernels_body.h"
