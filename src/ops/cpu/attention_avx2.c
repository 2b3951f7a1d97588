/* attention_avx2: the loops of attention for AVX2. */
#define MB_ATTENTION_TABLE mb_attention_avx2
#define MB_ATTENTION_NAME  "avx2"
#include "ops/cpu/attention_loops.h"
