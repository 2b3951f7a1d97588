/* dequant_portable: the conversions for any processor. */
#define MB_DEQUANT_TABLE mb_dequant_portable
#include "ops/cpu/dequant_body.h"
