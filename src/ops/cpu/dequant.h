/* dequant: reading a block of any weight as f32, with vector loops for each instruction set.
 *
 * Layer: ops (cpu backend, internal).
 * dequant_body.h is the one source of the loops; dequant_avx512.c, dequant_avx2.c and dequant_portable.c
 * compile it.
 */
#ifndef MB_CPU_DEQUANT_H
#define MB_CPU_DEQUANT_H

#include "ops/ops.h"

typedef struct mb_dequant {
    void (*from_bf16)(const uint16_t *x, int64_t n, float *out);
    void (*to_bf16)(const float *x, int64_t n, uint16_t *out);
    void (*to_bf16_in_place)(float *x, int64_t n); /* into the first 2 n bytes of x */
    void (*round)(float *x, int64_t n);            /* in place, to what bf16 holds */
    /* n integers times scale; of int4 from the low half of the first byte on */
    void (*from_int8)(const int8_t *x, float scale, int64_t n, float *out);
    void (*from_int4)(const uint8_t *x, float scale, int64_t n, float *out);
} mb_dequant;

/* isa: "portable", "avx2", "avx512" (as mb_kernels_get chose). */
const mb_dequant *mb_dequant_get(const char *isa);

/* Part of a weight's matrix. */
typedef struct mb_block {
    int64_t row, rows, column, columns;
} mb_block;

/* out[rows, columns] f32, rows ld apart: what mb_weight_read gives, rounded to bf16 when asked. */
void mb_dequant_block(const mb_dequant *loops, const mb_weight *w, mb_block block, bool is_rounded,
                      int64_t ld, float *out);

#if defined(__x86_64__)
extern const mb_dequant mb_dequant_avx512, mb_dequant_avx2;
#endif
extern const mb_dequant mb_dequant_portable;

#endif
