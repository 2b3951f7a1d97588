/* attention_avx512: the loops of attention for AVX-512. */
#define MB_ATTENTION_TABLE mb_attention_avx512
#define MB_ATTENTION_NAME  "avx512"
#include "ops/cpu/attention_loops.h"
