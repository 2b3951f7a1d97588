/* attention_portable: the loops of attention for any processor. */
#define MB_ATTENTION_TABLE mb_attention_portable
#define MB_ATTENTION_NAME  "portable"
#include "ops/cpu/attention_loops.h"
