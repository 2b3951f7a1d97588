/* int4 (AVX-512 with bf16 products): few rows, and panels for many.
 *
 * An operand of the dot product is 16 words, each two neighbours of k of one column (panels.h). They are made
 * of
 * units: 16 bytes of each of 16 rows of W, of which a vector takes those of 4 rows, one in each quarter.
 *
 * 4 bits: the 16 values of a row's scale, rounded, are a table; two registers hold the tables of 4 rows, and
 * one permutation looks up 8 neighbours of each. 8 bits: a byte becomes a float below the exponent of 2^23,
 * which is taken off again, is multiplied by the scale and rounded. Of four vectors of 4 rows a transposition
 * within quarters makes operands of 16: the order of the rows in the vectors is chosen so that theirs comes
 * out right.
 *
 * 1. rows of W 2. values of 4 bits 3. values of 8 bits 4. units 5. few rows 6. panels
 */
#include <immintrin.h>
#include <string.h>

#include "ops/cpu/int4.h"
#include "ops/cpu/panels.h"

enum {
    LANES = 16,
    COLUMNS = MB_INT4_COLUMNS,
    GROUPS = COLUMNS / LANES,
    FEW = MB_INT4_FEW,
    QUADS = 4,
    UNIT = 16,   /* bytes of a row */
    CHUNKS = 4,  /* of a unit */
    PIECE = 512, /* numbers of a row of x that lie together */
    COPIED = 16  /* units of a row of W that are copied at a time */
};

#define INLINE static inline __attribute__((always_inline, target("avx512vbmi")))
#define VBMI   __attribute__((target("avx512vbmi")))

/* 64 rows of W, or fewer, from `row` on. */
typedef struct row_panel {
    const mb_weight *w;
    int64_t row, rows;
    bool has_next; /* the matrix has 64 more: they are fetched into the cache */
} row_panel;

/* Values of the 64 rows' scales of a span: of 16 rows each, 4 times 4. */
typedef union span_scales {
    uint16_t table[GROUPS][QUADS][2][32]; /* 4 bits: entry 16 c + v of two vectors is value v - 8 of row c */
    float wide[GROUPS][QUADS][LANES];     /* 8 bits: a quarter for each row */
} span_scales;

typedef struct work_room {
    _Alignas(64) span_scales scales;
    _Alignas(64) float sums[FEW][COLUMNS];
    _Alignas(64) char copy[COLUMNS][COPIED * UNIT]; /* of rows of W */
    _Alignas(64) uint16_t x[];                      /* [pieces][FEW][PIECE] */
} work_room;

static bool has_vbmi(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi");
}

static int64_t unit_columns(const mb_weight *w)
{
    return UNIT * 8 / w->bits;
}

bool mb_int4_is_fast_bf16(const mb_weight *w)
{
    return mb_int4_is_fast(w) && (w->group % unit_columns(w) == 0 || w->group >= w->width) && has_vbmi();
}

size_t mb_int4_room_bf16(const mb_weight *w)
{
    return sizeof(work_room) + (size_t)((w->width + PIECE - 1) / PIECE * PIECE * FEW) * sizeof(uint16_t);
}

/* ---- 1. rows of W ---- */

/* Which of 16 rows is in quarter `lane` of vector `quad`. */
static inline int row_of(int bits, int quad, int lane)
{
    return bits == 4 ? 4 * lane + quad : quad % 2 * 8 + quad / 2 * 2 + lane % 2 + lane / 2 * 4;
}

INLINE __m512i quad_load(int bits, int quad, const char *rows, int64_t stride)
{
    __m512i x = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; lane++) {
        const char *row = rows + row_of(bits, quad, lane) * stride;
        const __m128i part = _mm_loadu_si128((const __m128i *)(const void *)row);
        x = lane == 0 ? _mm512_broadcast_i32x4(part)
                      : _mm512_mask_broadcast_i32x4(x, (__mmask16)(0xF << 4 * lane), part);
    }
    return x;
}

/* A column of scales, `stride` apart. */
typedef struct scale_column {
    const float *at;
    int64_t stride;
} scale_column;

/* Those of a span; rows that are not there have the last one's, by way of `room`. */
static inline scale_column scales_of(const row_panel *p, int64_t span, float room[COLUMNS])
{
    const int64_t stride = p->w->scale.shape[1];
    const float *at = mb_tensor_f32(&p->w->scale) + p->row * stride + span;
    if (p->rows == COLUMNS) return (scale_column){at, stride};
    for (int64_t i = 0; i < COLUMNS; i++) room[i] = at[(i < p->rows ? i : p->rows - 1) * stride];
    return (scale_column){room, 1};
}

/* ---- 2. values of 4 bits ---- */

/* Rows i and 4 + i of s. */
INLINE __m512i two_tables(const float *s, int64_t stride)
{
    const __m512 integers = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(integers, _mm512_set1_ps(s[4 * stride])),
                                        _mm512_mul_ps(integers, _mm512_set1_ps(s[0])));
}

static VBMI void tables_make(scale_column scales, span_scales *out)
{
    const int64_t stride = scales.stride;
    for (int group = 0; group < GROUPS; group++) {
        const float *s = scales.at + group * LANES * stride;
        for (int quad = 0; quad < QUADS; quad++, s += stride) {
            _mm512_store_si512(out->table[group][quad][0], two_tables(s, stride));
            _mm512_store_si512(out->table[group][quad][1], two_tables(s + 8 * stride, stride));
        }
    }
}

/* 8 neighbours of 4 rows: of half chunk / 2 of the unit the low or the high ones. */
INLINE __m512i look_up(__m512i unit, int chunk, const uint16_t (*table)[32])
{
    enum { AND_OR = 0xEA };
    const __m512i columns =
        _mm512_set_epi64(0x0030003000300030, 0x0030003000300030, 0x0020002000200020, 0x0020002000200020,
                         0x0010001000100010, 0x0010001000100010, 0, 0);
    const int64_t first = 0x000C000800040000, step = 0x0010001000100010;
    const __m512i offsets =
        _mm512_set4_epi64(first + (chunk % 2 * 2 + 1) * step, first + chunk % 2 * 2 * step,
                          first + (chunk % 2 * 2 + 1) * step, first + chunk % 2 * 2 * step);
    const __m512i half =
        chunk / 2 == 0 ? _mm512_unpacklo_epi64(unit, unit) : _mm512_unpackhi_epi64(unit, unit);
    const __m512i fields = _mm512_multishift_epi64_epi8(offsets, half);
    const __m512i index = _mm512_ternarylogic_epi32(fields, _mm512_set1_epi16(15), columns, AND_OR);
    return _mm512_permutex2var_epi16(_mm512_load_si512(table[0]), index, _mm512_load_si512(table[1]));
}

/* 4 operands. */
INLINE void chunk_of_4(const __m512i unit[QUADS], int chunk, const uint16_t (*table)[2][32], __m512i *out)
{
    __m512i x[QUADS];
#pragma GCC unroll 4
    for (int quad = 0; quad < QUADS; quad++) x[quad] = look_up(unit[quad], chunk, table[quad]);
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpacklo_epi32(x[2], x[3]);
    const __m512i c = _mm512_unpackhi_epi32(x[0], x[1]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    out[0] = _mm512_unpacklo_epi64(a, b), out[1] = _mm512_unpackhi_epi64(a, b);
    out[2] = _mm512_unpacklo_epi64(c, d), out[3] = _mm512_unpackhi_epi64(c, d);
}

/* ---- 3. values of 8 bits ---- */

static VBMI void wide_make(scale_column scales, span_scales *out)
{
    const int64_t stride = scales.stride;
    for (int group = 0; group < GROUPS; group++) {
        const float *s = scales.at + group * LANES * stride;
#pragma GCC unroll 4
        for (int quad = 0; quad < QUADS; quad++) {
            __m512 x = _mm512_set1_ps(s[row_of(8, quad, 0) * stride]);
#pragma GCC unroll 4
            for (int lane = 1; lane < 4; lane++)
                x = _mm512_mask_mov_ps(x, (__mmask16)(0xF << 4 * lane),
                                       _mm512_set1_ps(s[row_of(8, quad, lane) * stride]));
            _mm512_store_ps(out->wide[group][quad], x);
        }
    }
}

/* 4 neighbours of 4 rows. */
INLINE __m512 widen(__m512i unit, int chunk, const float *scale)
{
    const __m512i zero = _mm512_setzero_si512(), exponent = _mm512_set1_epi16(0x4B00); /* of 2^23 */
    const __m512i pairs =
        chunk / 2 == 0 ? _mm512_unpacklo_epi8(unit, zero) : _mm512_unpackhi_epi8(unit, zero);
    const __m512i bits =
        chunk % 2 == 0 ? _mm512_unpacklo_epi16(pairs, exponent) : _mm512_unpackhi_epi16(pairs, exponent);
    const __m512 value = _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p23f + 128));
    return _mm512_mul_ps(value, _mm512_load_ps(scale));
}

/* 2 operands. The unit's bytes are + 128. */
INLINE void chunk_of_8(const __m512i unit[QUADS], int chunk, const float (*scale)[LANES], __m512i *out)
{
    enum { EVEN = 0x88, ODD = 0xDD };
    __m512 x[QUADS];
#pragma GCC unroll 4
    for (int quad = 0; quad < QUADS; quad++) x[quad] = widen(unit[quad], chunk, scale[quad]);
    const __m512 a = (__m512)_mm512_cvtne2ps_pbh(x[1], x[0]), b = (__m512)_mm512_cvtne2ps_pbh(x[3], x[2]);
    out[0] = (__m512i)_mm512_shuffle_ps(a, b, EVEN);
    out[1] = (__m512i)_mm512_shuffle_ps(a, b, ODD);
}

/* ---- 4. units ---- */

/* Units of one scale that lie together: of the panel's rows themselves, or of a copy. */
typedef struct unit_run {
    const char *rows;
    int64_t stride, units, column; /* of the weight, of the first unit */
    const char *opt_next;          /* what follows the panel in memory, at the same unit */
} unit_run;

/* What to do with a run; the scales of its span are made. */
typedef void (*run_function)(const mb_weight *w, const unit_run *run, void *context);

INLINE void unit_load(int bits, const unit_run *run, int64_t unit, int group, __m512i out[QUADS])
{
    const char *rows = run->rows + unit * UNIT + group * LANES * run->stride;
#pragma GCC unroll 4
    for (int quad = 0; quad < QUADS; quad++) {
        out[quad] = quad_load(bits, quad, rows, run->stride);
        if (bits == 8) out[quad] = _mm512_xor_si512(out[quad], _mm512_set1_epi8(-128));
    }
}

/* Operands of a chunk: 4 or 2. */
INLINE void chunk_get(int bits, const __m512i unit[QUADS], int chunk, const span_scales *s, int64_t group,
                      __m512i *out)
{
    if (bits == 4)
        chunk_of_4(unit, chunk, (const uint16_t(*)[2][32])s->table[group], out);
    else
        chunk_of_8(unit, chunk, (const float(*)[LANES])s->wide[group], out);
}

/* 64 bytes for each row of the next panel that a unit has, so that all of it is there in time. */
INLINE void fetch_next(const unit_run *run, int64_t unit, int64_t first_group, int groups)
{
    const char *next = run->opt_next + unit * UNIT * COLUMNS + first_group * LANES * UNIT;
#pragma GCC unroll 16
    for (int i = 0; i < groups * LANES * UNIT; i += 64) __builtin_prefetch(next + i, 0, 2);
}

/* Units of a span, some from a copy: rows that are too few, or end within a unit. */
static void span_copied(const row_panel *p, int64_t first, int64_t last, work_room *room, run_function run,
                        void *context)
{
    const int64_t bytes = p->w->tensor.shape[1], columns = unit_columns(p->w);
    for (int64_t unit = first; unit < last; unit += COPIED) {
        const int64_t units = last - unit < COPIED ? last - unit : COPIED, at = unit * UNIT;
        const int64_t there = bytes - at < units * UNIT ? bytes - at : units * UNIT;
        for (int64_t i = 0; i < p->rows; i++) {
            memset(room->copy[i], 0, sizeof room->copy[i]);
            memcpy(room->copy[i], (const char *)p->w->tensor.data + (p->row + i) * bytes + at, (size_t)there);
        }
        const unit_run copy = {room->copy[0], COPIED * UNIT, units, unit * columns, NULL};
        run(p->w, &copy, context);
    }
}

static void span_run(const row_panel *p, int64_t first, int64_t last, work_room *room, run_function run,
                     void *context)
{
    const int64_t bytes = p->w->tensor.shape[1], whole = p->rows == COLUMNS ? bytes / UNIT : 0;
    const char *rows = (const char *)p->w->tensor.data + p->row * bytes;
    const int64_t direct = whole < last ? whole : last;
    if (first < direct) {
        const unit_run here = {rows + first * UNIT, bytes, direct - first, first * unit_columns(p->w),
                               p->has_next ? rows + COLUMNS * bytes + first * UNIT * COLUMNS : NULL};
        run(p->w, &here, context);
        first = direct;
    }
    if (first < last) span_copied(p, first, last, room, run, context);
}

/* All units of the panel, span by span. */
static void panel_run(const row_panel *p, work_room *room, run_function run, void *context)
{
    const int64_t columns = unit_columns(p->w), units = (p->w->width + columns - 1) / columns;
    const int64_t spans = p->w->scale.shape[1];
    int64_t first = 0;
    for (int64_t span = 0; span < spans; span++) {
        const int64_t last = span + 1 == spans ? units : (span + 1) * p->w->group / columns;
        float few[COLUMNS];
        const scale_column scales = scales_of(p, span, few);
        if (p->w->bits == 4)
            tables_make(scales, &room->scales);
        else
            wide_make(scales, &room->scales);
        span_run(p, first, last, room, run, context);
        first = last;
    }
}

/* ---- 5. few rows ---- */

typedef struct few_rows {
    work_room *room;
    int64_t rows;
} few_rows;

INLINE void sums_load(int rows, int groups, float (*sums)[COLUMNS], int64_t column, __m512 acc[FEW][GROUPS])
{
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) acc[r][g] = _mm512_load_ps(sums[r] + column + g * LANES);
    }
}

INLINE void sums_store(int rows, int groups, float (*sums)[COLUMNS], int64_t column, __m512 acc[FEW][GROUPS])
{
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) _mm512_store_ps(sums[r] + column + g * LANES, acc[r][g]);
    }
}

/* Rows of x by a unit of `groups` times 16 rows of W. */
INLINE void add_unit(int bits, int rows, int groups, __m512i unit[GROUPS][QUADS], const span_scales *s,
                     int64_t first, const uint16_t *x, __m512 acc[FEW][GROUPS])
{
    const int each = 16 / bits; /* operands of a chunk */
#pragma GCC unroll 4
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        __m512i operands[GROUPS][4];
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) chunk_get(bits, unit[g], chunk, s, first + g, operands[g]);
#pragma GCC unroll 4
        for (int i = 0; i < each; i++) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * PIECE + 2 * (chunk * each + i), sizeof pair);
#pragma GCC unroll 4
                for (int g = 0; g < groups; g++)
                    acc[r][g] = _mm512_dpbf16_ps(acc[r][g], (__m512bh)_mm512_set1_epi32(pair),
                                                 (__m512bh)operands[g][i]);
            }
        }
    }
}

/* `groups` of 16 rows of W at a time. */
INLINE void add_run(int bits, int rows, int groups, const unit_run *run, work_room *room)
{
    for (int64_t first = 0; first < GROUPS; first += groups) {
        __m512 acc[FEW][GROUPS];
        int64_t column = run->column;
        sums_load(rows, groups, room->sums, first * LANES, acc);
        for (int64_t u = 0; u < run->units; u++, column += UNIT * 8 / bits) {
            const uint16_t *x = room->x + column / PIECE * PIECE * FEW + column % PIECE;
            __m512i unit[GROUPS][QUADS];
            if (run->opt_next != NULL) fetch_next(run, u, first, groups);
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) unit_load(bits, run, u, (int)first + g, unit[g]);
            add_unit(bits, rows, groups, unit, &room->scales, first, x, acc);
        }
        sums_store(rows, groups, room->sums, first * LANES, acc);
    }
}

/* As many groups at a time as keep the units busy and fit the registers. */
INLINE void add_rows(int bits, const few_rows *f, const unit_run *run)
{
    switch (f->rows) {
    case 1:
        add_run(bits, 1, 4, run, f->room);
        break;
    case 2:
        add_run(bits, 2, 2, run, f->room);
        break;
    case 3:
        add_run(bits, 3, 2, run, f->room);
        break;
    case 4:
        add_run(bits, 4, 2, run, f->room);
        break;
    case 5:
        add_run(bits, 5, 2, run, f->room);
        break;
    case 6:
        add_run(bits, 6, 2, run, f->room);
        break;
    case 7:
        add_run(bits, 7, 1, run, f->room);
        break;
    default:
        add_run(bits, 8, 1, run, f->room);
        break;
    }
}

static VBMI void add(const mb_weight *w, const unit_run *run, void *context)
{
    if (w->bits == 4)
        add_rows(4, context, run);
    else
        add_rows(8, context, run);
}

/* x with zeros beyond K, in pieces. */
static void copy_rows(const mb_int4_product *p, work_room *room)
{
    for (int64_t k = 0; k < p->w->width; k += PIECE) {
        const int64_t left = p->w->width - k < PIECE ? p->w->width - k : PIECE;
        for (int64_t r = 0; r < p->m; r++) {
            uint16_t *to = room->x + k * FEW + r * PIECE;
            memcpy(to, (const uint16_t *)p->x + r * p->ldx + k, (size_t)left * sizeof *to);
            memset(to + left, 0, (size_t)(PIECE - left) * sizeof *to);
        }
    }
}

void mb_int4_few_bf16(const mb_int4_product *p, void *memory)
{
    work_room *room = memory;
    few_rows few = {room, p->m};
    copy_rows(p, room);
    for (int64_t column = 0; column < p->n; column += COLUMNS) {
        const int64_t columns = p->n - column < COLUMNS ? p->n - column : COLUMNS, row = p->row + column;
        const row_panel panel = {p->w, row, columns, row + 2 * COLUMNS <= p->w->tensor.shape[0]};
        memset(room->sums, 0, sizeof room->sums);
        panel_run(&panel, room, add, &few);
        const mb_panels_product tile = {.m = p->m,
                                        .n = columns,
                                        .opt_bias = p->opt_bias != NULL ? p->opt_bias + column : NULL,
                                        .c = (char *)p->y + column * (p->is_y_bf16 ? 2 : 4),
                                        .ldc = p->ldy,
                                        .accumulate = p->accumulate,
                                        .is_c_bf16 = p->is_y_bf16};
        mb_panels_finish(&tile, room->sums[0], COLUMNS);
    }
}

/* ---- 6. panels ---- */

typedef struct panel_fill {
    const span_scales *scales;
    int64_t columns; /* those from here on are zeros */
    uint16_t *panel;
} panel_fill;

INLINE void write_run(int bits, const panel_fill *f, const unit_run *run)
{
    const int each = 16 / bits;
    for (int64_t u = 0; u < run->units; u++) {
        uint16_t *out = f->panel + (run->column + u * (UNIT * 8 / bits)) * COLUMNS;
        for (int64_t g = 0; g < GROUPS; g++) {
            const int64_t left = f->columns - g * LANES;
            const __mmask16 mask = left >= LANES ? 0xFFFF : left > 0 ? (__mmask16)((1u << left) - 1u) : 0;
            __m512i unit[QUADS];
            unit_load(bits, run, u, (int)g, unit);
#pragma GCC unroll 4
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                __m512i operands[4];
                chunk_get(bits, unit, chunk, f->scales, g, operands);
#pragma GCC unroll 4
                for (int i = 0; i < each; i++)
                    _mm512_store_si512(out + ((chunk * each + i) * COLUMNS + g * LANES) * 2,
                                       _mm512_maskz_mov_epi32(mask, operands[i]));
            }
        }
    }
}

static VBMI void write_units(const mb_weight *w, const unit_run *run, void *context)
{
    if (w->bits == 4)
        write_run(4, context, run);
    else
        write_run(8, context, run);
}

/* Rows of a panel from `from` on to the next multiple of 32 are zeros. */
static void clear_rows(int64_t from, uint16_t *panel)
{
    const int64_t end = mb_panels_rows(from);
    if (from % 2 != 0) {
        uint16_t *pair = panel + from / 2 * COLUMNS * 2;
        for (int64_t c = 0; c < COLUMNS; c++) pair[2 * c + 1] = 0;
        from++;
    }
    memset(panel + from / 2 * COLUMNS * 2, 0, (size_t)((end - from) * COLUMNS) * sizeof *panel);
}

void mb_int4_panels(const mb_weight *w, int64_t row, int64_t n, int64_t stride, uint16_t *out, void *memory)
{
    work_room *room = memory;
    for (int64_t column = 0; column < n; column += COLUMNS, out += stride) {
        const row_panel panel = {w, row + column, n - column < COLUMNS ? n - column : COLUMNS, false};
        panel_fill fill = {&room->scales, panel.rows, out};
        panel_run(&panel, room, write_units, &fill);
        clear_rows(w->width, out);
    }
}
