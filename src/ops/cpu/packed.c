/* packed: records of packed forms, when they pay, and blocks made for one call.
 *
 * f32 rows: plain weights cost a few per cent of a full tile and half the time of a small one, and packing
 * costs as much as that over some 60 (large weights) to 200 tiles (small ones). So values that never changed
 * are packed at their 64th tile; values that do change at once when the version before them met 256 tiles,
 * else at their own 256th.
 *
 * bf16 rows: making panels costs as much as the product of some 150 rows (f32 weights) or 60 (bf16), and has
 * to be
 * done at least once for each version and direction. So panels are kept from the second call of a version on,
 * and
 * at once when the version before met a second call.
 *
 * 1. records
 * 2. kept forms
 * 3. blocks for one call
 */
#include "ops/cpu/packed.h"

#include <string.h>

#include "ops/cpu/int4.h"
#include "ops/cpu/panels.h"
#include "ops/ops_table.h"

enum {
    TILE_ROWS = 128,
    PACK_EARLY = 64,
    PACK_LATE = 256,
    KEEP_CALLS = 2,
    STAGE_ROWS = 64,
    STAGE_COLUMNS = 512
};

/* ---- 1. records ---- */

typedef struct packed_weight {
    const mb_dense *dense; /* who packed */
    uint64_t version;      /* of the counts below */
    int64_t tiles[2];      /* of f32 rows met by this version, by direction */
    int64_t tiles_before[2];
    int64_t calls[2]; /* of bf16 rows */
    int64_t calls_before[2];
    uint64_t packed_version[2], panels_version[2];
    void *packed[2];
    uint16_t *panels[2];
} packed_weight;

static void packed_weight_free(void *opaque)
{
    packed_weight *p = opaque;
    for (int d = MB_FORWARD; d <= MB_BACKWARD; d++) {
        mb_dense_free_packed(p->packed[d]);
        mb_free(p->panels[d]);
    }
    mb_free(p);
}

/* The weight's record, empty at first or when another backend's was there. NULL: no memory. */
static packed_weight *record_get(mb_dense *dense, mb_weight *w)
{
    packed_weight *p = w->packed;
    if (p != NULL && (w->packed_free != packed_weight_free || p->dense != dense)) mb_weight_reset(w);
    if (w->packed == NULL) {
        p = mb_calloc(1, sizeof *p);
        if (p == NULL) return NULL;
        p->dense = dense;
        w->packed = p;
        w->packed_free = packed_weight_free;
    }
    p = w->packed;
    if (p->version != w->version) {
        p->version = w->version;
        for (int d = MB_FORWARD; d <= MB_BACKWARD; d++) {
            p->tiles_before[d] = p->tiles[d];
            p->calls_before[d] = p->calls[d];
            p->tiles[d] = p->calls[d] = 0;
        }
    }
    return p;
}

/* The record when it is this backend's, else NULL. */
static packed_weight *record_of(const mb_dense *dense, const mb_weight *w)
{
    packed_weight *p = w->packed;
    return p != NULL && w->packed_free == packed_weight_free && p->dense == dense ? p : NULL;
}

mb_status mb_packed_count(mb_dense *dense, mb_weight *w, mb_direction d, int64_t rows, bool is_bf16,
                          bool *out_due)
{
    *out_due = false;
    if (w->bits != 0 || (!is_bf16 && (w->tensor.dtype != MB_F32 || !mb_dense_can_pack(dense)))) return MB_OK;
    packed_weight *p = record_get(dense, w);
    if (p == NULL) return MB_ENOMEM;
    if (is_bf16) {
        p->calls[d]++;
        if (p->panels_version[d] == w->version) return MB_OK;
        *out_due = p->calls[d] >= KEEP_CALLS || p->calls_before[d] >= KEEP_CALLS;
        if (*out_due) p->panels_version[d] = w->version;
        return MB_OK;
    }
    p->tiles[d] += (rows + TILE_ROWS - 1) / TILE_ROWS;
    if (p->packed_version[d] == w->version) return MB_OK;
    bool is_first = w->version == 1 && p->tiles[d] >= PACK_EARLY;
    *out_due = is_first || p->tiles_before[d] >= PACK_LATE || p->tiles[d] >= PACK_LATE;
    if (*out_due) p->packed_version[d] = w->version;
    return MB_OK;
}

/* ---- 2. kept forms ---- */

mb_status mb_packed_make(mb_dense *dense, int thread, mb_weight *w, mb_direction d)
{
    packed_weight *p = w->packed;
    mb_dense_free_packed(p->packed[d]);
    p->packed[d] = NULL;
    mb_status status = mb_dense_pack(dense, thread, mb_tensor_f32(&w->tensor), mb_packed_rows(w, d),
                                     mb_packed_columns(w, d), w->width, d == MB_FORWARD, &p->packed[d]);
    if (status != MB_OK) p->packed_version[d] = 0;
    return status;
}

mb_status mb_packed_reserve(mb_weight *w, mb_direction d)
{
    packed_weight *p = w->packed;
    if (p->panels[d] != NULL) return MB_OK;
    const int64_t count = mb_panels_count(mb_packed_rows(w, d), mb_packed_columns(w, d));
    p->panels[d] = mb_calloc((size_t)count, sizeof *p->panels[d]);
    if (p->panels[d] != NULL) return MB_OK;
    p->panels_version[d] = 0;
    return MB_ENOMEM;
}

/* Columns of a weight that is not quantised. */
static void fill(const mb_weight *w, mb_direction d, int64_t column, int64_t columns, uint16_t *out)
{
    const int64_t k = mb_packed_rows(w, d), stride = mb_panels_stride(k);
    const size_t first = (size_t)(d == MB_FORWARD ? column * w->width : column);
    const mb_panels_source b = {.data =
                                    (const char *)w->tensor.data + first * mb_dtype_bytes(w->tensor.dtype),
                                .is_bf16 = w->tensor.dtype == MB_BF16,
                                .ld = w->width};
    if (d == MB_FORWARD) {
        mb_panels_pack_transposed(&b, k, columns, stride, out);
    } else {
        mb_panels_pack(&b, k, columns, stride, out);
    }
}

void mb_packed_fill(mb_weight *w, mb_direction d, int64_t column, int64_t columns)
{
    packed_weight *p = w->packed;
    const int64_t stride = mb_panels_stride(mb_packed_rows(w, d));
    fill(w, d, column, columns, p->panels[d] + column / MB_PANEL_COLUMNS * stride);
}

const void *mb_packed_get(const mb_dense *dense, const mb_weight *w, mb_direction d)
{
    const packed_weight *p = record_of(dense, w);
    return p != NULL && p->packed_version[d] == w->version ? p->packed[d] : NULL;
}

const uint16_t *mb_packed_panels(const mb_dense *dense, const mb_weight *w, mb_direction d)
{
    const packed_weight *p = record_of(dense, w);
    return p != NULL && p->panels_version[d] == w->version ? p->panels[d] : NULL;
}

/* ---- 3. blocks for one call ---- */

/* Quantised: piece by piece as f32 in `stage` (STAGE_ROWS * STAGE_COLUMNS), then packed. */
static void fill_quantised(const mb_dequant *loops, const mb_weight *w, mb_direction d, int64_t column,
                           int64_t columns, float *stage, uint16_t *out)
{
    const int64_t k = mb_packed_rows(w, d), stride = mb_panels_stride(k);
    const int64_t step_k = d == MB_FORWARD ? STAGE_COLUMNS : STAGE_ROWS;
    const int64_t step_n = d == MB_FORWARD ? STAGE_ROWS : STAGE_COLUMNS;
    const mb_panels_source b = {.data = stage, .ld = STAGE_COLUMNS};
    for (int64_t j = 0; j < columns; j += step_n) {
        const int64_t n = columns - j < step_n ? columns - j : step_n;
        for (int64_t i = 0; i < k; i += step_k) {
            const int64_t rows = k - i < step_k ? k - i : step_k;
            uint16_t *to = out + j / MB_PANEL_COLUMNS * stride + i * MB_PANEL_COLUMNS;
            if (d == MB_FORWARD) {
                mb_dequant_block(loops, w, (mb_block){column + j, n, i, rows}, false, STAGE_COLUMNS, stage);
                mb_panels_pack_transposed(&b, rows, n, stride, to);
            } else {
                mb_dequant_block(loops, w, (mb_block){i, rows, column + j, n}, false, STAGE_COLUMNS, stage);
                mb_panels_pack(&b, rows, n, stride, to);
            }
        }
    }
}

mb_status mb_packed_block_panels(mb_dense *dense, int thread, const mb_dequant *loops, const mb_weight *w,
                                 mb_direction d, int64_t column, int64_t columns, const uint16_t **out)
{
    const size_t bytes = (size_t)mb_panels_count(mb_packed_rows(w, d), columns) * sizeof(uint16_t);
    uint16_t *panels = mb_dense_thread_block(dense, thread, MB_DENSE_WEIGHT, bytes);
    if (panels == NULL) return MB_ENOMEM;
    *out = panels;
    if (w->bits == 0) {
        fill(w, d, column, columns, panels);
        return MB_OK;
    }
    if (d == MB_FORWARD && mb_int4_is_fast_bf16(w)) {
        void *room = mb_dense_thread_block(dense, thread, MB_DENSE_STAGE, mb_int4_room_bf16(w));
        if (room == NULL) return MB_ENOMEM;
        mb_int4_panels(w, column, columns, mb_panels_stride(w->width), panels, room);
        return MB_OK;
    }
    float *stage = mb_dense_thread_block(dense, thread, MB_DENSE_STAGE,
                                         (size_t)STAGE_ROWS * STAGE_COLUMNS * sizeof(float));
    if (stage == NULL) return MB_ENOMEM;
    fill_quantised(loops, w, d, column, columns, stage, panels);
    return MB_OK;
}

mb_status mb_packed_block_f32(mb_dense *dense, int thread, const mb_dequant *loops, const mb_weight *w,
                              mb_direction d, int64_t column, int64_t columns, bool is_rounded,
                              const float **out)
{
    const size_t bytes = (size_t)(mb_packed_rows(w, d) * columns) * sizeof(float);
    float *block = mb_dense_thread_block(dense, thread, MB_DENSE_WEIGHT, bytes);
    if (block == NULL) return MB_ENOMEM;
    *out = block;
    if (d == MB_FORWARD) {
        mb_dequant_block(loops, w, (mb_block){column, columns, 0, w->width}, is_rounded, w->width, block);
    } else {
        mb_dequant_block(loops, w, (mb_block){0, w->tensor.shape[0], column, columns}, is_rounded, columns,
                         block);
    }
    return MB_OK;
}
