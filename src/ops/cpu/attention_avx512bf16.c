/* attention_avx512bf16: the loops of attention on bf16 with AVX-512's bf16 dot products. */
#define MB_ATTENTION_TABLE mb_attention_avx512bf16
#define MB_ATTENTION_NAME  "avx512bf16"
#define MB_ATTENTION_PAIRS 1
#include "ops/cpu/attention_loops.h"
