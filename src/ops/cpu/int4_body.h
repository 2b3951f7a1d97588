/* int4_body: products of f32 rows with quantised weights, compiled once per instruction set. The including
 * file defines MB_INT4_GET.
 *
 * 128 columns of W of 64 rows become f32 in the first-level cache and meet all rows of a tile; the sums of
 * the tile are kept between such blocks.
 *
 * 1. blocks of f32 2. rows by a block 3. results 4. product
 */
#include "ops/cpu/int4_stage.h"

enum {
    BLOCK = 128, /* columns of W */
    TILE = 512,  /* rows of x whose sums are kept */
#if defined(__AVX512F__)
    ROWS = 6,
    VECTORS = 4
#elif defined(__AVX2__)
    ROWS = 6,
    VECTORS = 2
#else
    ROWS = 4,
    VECTORS = 2
#endif
};

typedef struct work_room {
    stage piece;
    float block[BLOCK][COLUMNS];
    float sums[TILE][COLUMNS];
} work_room;
_Static_assert(sizeof(work_room) <= MB_INT4_ROOM, "the room is too small");

/* ---- 1. blocks of f32 ---- */

/* A word's fields times its scale, one vector of columns; out[field][COLUMNS]. */
static inline __attribute__((always_inline)) void decode_word(int bits, bool is_rounded, const uint32_t *word,
                                                              mb_vf scale, float (*out)[COLUMNS])
{
    const int each = 32 / bits, low = 23 / bits; /* fields below bit 23 */
    mb_vu x;
    memcpy(&x, word, sizeof x);
#pragma GCC unroll 8
    for (int i = 0; i < each; i++) {
        const int at = i % low * bits;
        if (i > 0 && i % low == 0) x = x >> (uint32_t)(low * bits);
        const mb_vu field = (x & (((1u << bits) - 1u) << at)) | field_exponent(at);
        mb_vf value = ((mb_vf)field - field_bias(at, bits)) * scale;
        if (is_rounded) value = vf_from_bf16(vf_to_bf16(value));
        vf_store(out[i], value);
    }
}

/* Words first..last of the piece. */
static inline __attribute__((always_inline)) void decode_words(int bits, bool is_rounded, const stage *s,
                                                               int64_t first, int64_t last, int64_t columns,
                                                               float (*out)[COLUMNS])
{
    const int each = 32 / bits;
    int64_t span = 0;
    for (int64_t t = first; t < last; t++) {
        while (t >= s->ends[span]) span++;
        for (int64_t c = 0; c < columns; c += W)
            decode_word(bits, is_rounded, s->words[t] + c, vf_load(s->scale[span] + c),
                        (float(*)[COLUMNS])(void *)(out[(t - first) * each] + c));
    }
}

static void decode(const mb_int4_product *p, const stage *s, int64_t first, int64_t last, int64_t columns,
                   float (*out)[COLUMNS])
{
    if (p->w->bits == 4 && p->is_rounded)
        decode_words(4, true, s, first, last, columns, out);
    else if (p->w->bits == 4)
        decode_words(4, false, s, first, last, columns, out);
    else if (p->is_rounded)
        decode_words(8, true, s, first, last, columns, out);
    else
        decode_words(8, false, s, first, last, columns, out);
}

/* ---- 2. rows by a block ---- */

/* sums[rows, columns] (+)= x[rows, k] block[k, columns]; x of the block's first column. */
typedef struct block_part {
    const float *x;
    int64_t ldx, k, columns;
    const float (*block)[COLUMNS];
    float (*sums)[COLUMNS];
    bool is_first;
} block_part;

/* `rows` is known where this is inlined. */
static inline __attribute__((always_inline)) void add_rows(int rows, const block_part *p, int64_t row,
                                                           int64_t column)
{
    mb_vf acc[ROWS][VECTORS];
    const float *x = p->x + row * p->ldx;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++)
            acc[r][v] = p->is_first ? vf_set(0) : vf_load(p->sums[row + r] + column + v * W);
    }
    for (int64_t i = 0; i < p->k; i++) {
        mb_vf b[VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) b[v] = vf_load(p->block[i] + column + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const mb_vf one = vf_set(x[r * p->ldx + i]);
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; v++) acc[r][v] = vf_fma(one, b[v], acc[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) vf_store(p->sums[row + r] + column + v * W, acc[r][v]);
    }
}

static void add_block(const block_part *p, int64_t rows)
{
    for (int64_t column = 0; column < p->columns; column += VECTORS * W) {
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) add_rows(ROWS, p, row, column);
        switch (rows - row) {
#if defined(__AVX2__)
        case 5:
            add_rows(5, p, row, column);
            break;
        case 4:
            add_rows(4, p, row, column);
            break;
#endif
        case 3:
            add_rows(3, p, row, column);
            break;
        case 2:
            add_rows(2, p, row, column);
            break;
        case 1:
            add_rows(1, p, row, column);
            break;
        default:
            break;
        }
    }
}

/* ---- 3. results ---- */

/* Rows first.. of the tile, columns from `column` of y on. */
static void finish_rows(const mb_int4_product *p, int64_t first, int64_t rows, int64_t column,
                        int64_t columns, const float (*sums)[COLUMNS])
{
    for (int64_t r = 0; r < rows; r++) {
        float *y = (float *)p->y + (first + r) * p->ldy + column;
        for (int64_t c = 0; c < columns; c += W) {
            const int64_t left = columns - c < W ? columns - c : W;
            mb_vf sum = vf_load(sums[r] + c);
            if (p->opt_bias != NULL) sum += vf_load_part(p->opt_bias + column + c, left);
            if (p->accumulate) sum += vf_load_part(y + c, left);
            if (left == W)
                vf_store(y + c, sum);
            else
                vf_store_part(y + c, sum, left);
        }
    }
}

/* ---- 4. product ---- */

static void add_piece(const mb_int4_product *p, int64_t first, int64_t rows, int64_t columns, work_room *room)
{
    const stage *s = &room->piece;
    const int64_t each = 32 / p->w->bits;
    for (int64_t at = 0; at < s->fields; at += BLOCK) {
        const int64_t k = s->fields - at < BLOCK ? s->fields - at : BLOCK;
        decode(p, s, at / each, (at + k + each - 1) / each, columns, room->block);
        const block_part part = {.x = (const float *)p->x + first * p->ldx + s->first + at,
                                 .ldx = p->ldx,
                                 .k = k,
                                 .columns = columns,
                                 .block = (const float(*)[COLUMNS])room->block,
                                 .sums = room->sums,
                                 .is_first = s->first + at == 0};
        add_block(&part, rows);
    }
}

static void multiply(const mb_int4_product *p, void *memory)
{
    work_room *room = memory;
    const int64_t row_bytes = p->w->tensor.shape[1];
    for (int64_t first = 0; first < p->m; first += TILE) {
        const int64_t rows = p->m - first < TILE ? p->m - first : TILE;
        for (int64_t column = 0; column < p->n; column += COLUMNS) {
            const int64_t columns = p->n - column < COLUMNS ? p->n - column : COLUMNS;
            for (int64_t at = 0; at < row_bytes; at += 4 * WORDS) {
                stage_piece(p->w, p->row + column, columns, at, &room->piece);
                add_piece(p, first, rows, columns, room);
            }
            finish_rows(p, first, rows, column, columns, (const float(*)[COLUMNS])room->sums);
        }
    }
}

mb_int4_multiply MB_INT4_GET(void)
{
    return multiply;
}
