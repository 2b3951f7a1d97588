/* linear_dw (cpu): gradients of weights, dw[n,k] += dy^T x, as jobs of (group, rows of dw, columns of dw); a
 * job takes its group's tokens in order, in pieces, so bits do not depend on threads.
 *
 * bf16: x is packed into panels once, by all threads, and so is dy where our own loops take both operands as
 * panels; for a library a job transposes its columns of dy, piece by piece, into memory of its own. Pieces
 * have 512 tokens, the last one is filled with zeros to a multiple of 32: few shapes.
 * f32: tokens go in pieces of 512, 256, 128, 64 and the rest, again to have few shapes.
 *
 * 1. jobs
 * 2. f32
 * 3. bf16
 * 4. biases
 * 5. entries
 */
#include <omp.h>
#include <string.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/panels.h"

enum { TILE_F32 = 64, TILE_BF16 = 128, COLUMNS = 512, PIECE = 512, JOBS = 64 };

/* ---- 1. jobs ---- */

typedef struct dw_work {
    mb_rows dy, x;
    const int32_t *offsets;
    const mb_tensor *dw; /* [groups] */
    int64_t groups, n, k;
    uint16_t *panels;    /* bf16: x by pieces */
    uint16_t *dy_panels; /* and dy, NULL where jobs transpose it */
    int64_t *pieces;     /* [groups] where a group's begin, in tokens */
} dw_work;

typedef struct dw_job {
    int64_t group, row, rows, column, columns;
} dw_job;

typedef struct dw_list {
    dw_job *jobs;
    int64_t count;
} dw_list;

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

static bool is_wanted(const dw_work *work, int64_t group)
{
    return work->dw[group].dims != 0 && work->offsets[group] < work->offsets[group + 1];
}

/* Tiles of `rows` by `columns` of every gradient. */
static mb_status list_tiles(mb_ops *ops, const dw_work *work, int64_t rows, int64_t columns, dw_list *list)
{
    mb_status status = MB_OK;
    const int64_t per_group = (work->n + rows - 1) / rows * ((work->k + columns - 1) / columns);
    list->count = 0;
    MB_ARENA_ARRAY(ops->scratch, list->jobs, work->groups * per_group);
    for (int64_t e = 0; e < work->groups; e++) {
        if (!is_wanted(work, e)) continue;
        for (int64_t row = 0; row < work->n; row += rows) {
            for (int64_t column = 0; column < work->k; column += columns) {
                const int64_t high = work->n - row < rows ? work->n - row : rows;
                const int64_t wide = work->k - column < columns ? work->k - column : columns;
                list->jobs[list->count++] = (dw_job){e, row, high, column, wide};
            }
        }
    }
done:
    return status;
}

/* ---- 2. f32 ---- */

static mb_status run_f32(mb_dense *dense, int thread, const dw_work *work, const dw_job *j)
{
    mb_status status = MB_OK;
    int64_t token = work->offsets[j->group], end = work->offsets[j->group + 1], piece = PIECE;
    while (token < end) {
        while (piece > 64 && piece > end - token) piece /= 2;
        int64_t tokens = piece < end - token ? piece : end - token;
        mb_product product = {.m = j->rows,
                              .n = j->columns,
                              .k = tokens,
                              .is_a_transposed = true,
                              .accumulate = true,
                              .a = (const float *)work->dy.data + token * work->dy.ld + j->row,
                              .b = (const float *)work->x.data + token * work->x.ld + j->column,
                              .c = mb_tensor_f32(&work->dw[j->group]) + j->row * work->k + j->column,
                              .lda = work->dy.ld,
                              .ldb = work->x.ld,
                              .ldc = work->k};
        MB_TRY(mb_dense_run(dense, thread, 1, &product));
        token += tokens;
    }
done:
    return status;
}

/* ---- 3. bf16 ---- */

/* Tokens of piece `first` of a group of `count`. */
static int64_t piece_of(int64_t first, int64_t count)
{
    return count - first < PIECE ? count - first : PIECE;
}

/* One piece of a job: tokens first.. of its group. */
static mb_product piece_product(const dw_work *work, const dw_job *j, int64_t first, int64_t padded)
{
    const int64_t width = round_up(work->k, MB_PANEL_COLUMNS), piece = work->pieces[j->group] + first;
    return (mb_product){.m = j->rows,
                        .n = j->columns,
                        .k = padded,
                        .accumulate = true,
                        .is_bf16 = true,
                        .b = work->panels + piece * width + j->column * padded,
                        .c = mb_tensor_f32(&work->dw[j->group]) + j->row * work->k + j->column,
                        .lda = padded,
                        .ldc = work->k};
}

/* Both operands are panels: 64 rows at a time. */
static mb_status run_panels(mb_dense *dense, int thread, const dw_work *work, const dw_job *j)
{
    mb_status status = MB_OK;
    const int64_t count = work->offsets[j->group + 1] - work->offsets[j->group];
    const int64_t width = round_up(work->n, MB_PANEL_COLUMNS);
    for (int64_t first = 0; first < count; first += PIECE) {
        const int64_t padded = mb_panels_rows(piece_of(first, count));
        const uint16_t *dy = work->dy_panels + (work->pieces[j->group] + first) * width;
        for (int64_t row = 0; row < j->rows; row += MB_PANEL_COLUMNS) {
            const int64_t left = j->rows - row;
            const dw_job part = {j->group, j->row + row, left < MB_PANEL_COLUMNS ? left : MB_PANEL_COLUMNS,
                                 j->column, j->columns};
            mb_product product = piece_product(work, &part, first, padded);
            product.a = dy + part.row * padded;
            product.is_a_panels = true;
            MB_TRY(mb_dense_run(dense, thread, 1, &product));
        }
    }
done:
    return status;
}

static mb_status run_transposed(mb_dense *dense, int thread, const dw_work *work, const dw_job *j)
{
    mb_status status = MB_OK;
    const int64_t begin = work->offsets[j->group], count = work->offsets[j->group + 1] - begin;
    uint16_t *turned =
        mb_dense_thread_block(dense, thread, MB_DENSE_WEIGHT, (size_t)(j->rows * PIECE) * sizeof *turned);
    if (turned == NULL) return MB_ENOMEM;
    for (int64_t first = 0; first < count; first += PIECE) {
        const int64_t tokens = piece_of(first, count), padded = mb_panels_rows(tokens);
        const uint16_t *dy = (const uint16_t *)work->dy.data + (begin + first) * work->dy.ld + j->row;
        mb_panels_transpose(dy, tokens, j->rows, work->dy.ld, padded, turned);
        mb_product product = piece_product(work, j, first, padded);
        product.a = turned;
        MB_TRY(mb_dense_run(dense, thread, 1, &product));
    }
done:
    return status;
}

/* The pieces of all groups, and where each group's begin. */
static mb_status list_pieces(mb_ops *ops, dw_work *work, dw_list *pieces, int64_t *out_tokens)
{
    mb_status status = MB_OK;
    *out_tokens = 0;
    MB_ARENA_ARRAY(ops->scratch, work->pieces, work->groups);
    MB_ARENA_ARRAY(ops->scratch, pieces->jobs, work->groups + work->offsets[work->groups] / PIECE + 1);
    for (int64_t e = 0; e < work->groups; e++) {
        if (!is_wanted(work, e)) continue;
        const int64_t rows = work->offsets[e + 1] - work->offsets[e];
        work->pieces[e] = *out_tokens;
        for (int64_t first = 0; first < rows; first += PIECE)
            pieces->jobs[pieces->count++] = (dw_job){.group = e, .row = first, .rows = piece_of(first, rows)};
        *out_tokens += mb_panels_rows(rows);
    }
done:
    return status;
}

/* Rows [tokens, width] as panels, a piece after the other. */
static mb_status pack_pieces(mb_ops *ops, const dw_work *work, const dw_list *pieces, int64_t tokens,
                             mb_rows in, int64_t width, uint16_t **out_panels)
{
    mb_status status = MB_OK;
    const int64_t wide = round_up(width, MB_PANEL_COLUMNS);
    uint16_t *panels;
    MB_ARENA_ARRAY(ops->scratch, panels, tokens * wide);
#pragma omp parallel for schedule(dynamic, 1) num_threads(mb_cpu_threads_for(ops, tokens *wide))
    for (int64_t i = 0; i < pieces->count; i++) {
        const dw_job *piece = &pieces->jobs[i];
        const int64_t row = work->offsets[piece->group] + piece->row;
        const mb_panels_source source = {(const uint16_t *)in.data + row * in.ld, true, in.ld};
        mb_panels_pack(&source, piece->rows, width, mb_panels_stride(piece->rows),
                       panels + (work->pieces[piece->group] + piece->row) * wide);
    }
    *out_panels = panels;
done:
    return status;
}

static mb_status pack(mb_ops *ops, dw_work *work)
{
    mb_status status = MB_OK;
    dw_list pieces = {0};
    int64_t tokens;
    MB_TRY(list_pieces(ops, work, &pieces, &tokens));
    MB_TRY(pack_pieces(ops, work, &pieces, tokens, work->x, work->k, &work->panels));
    if (mb_dense_has_panels(mb_cpu_get(ops)->dense))
        MB_TRY(pack_pieces(ops, work, &pieces, tokens, work->dy, work->n, &work->dy_panels));
done:
    return status;
}

/* ---- 4. biases ---- */

/* Each thread owns columns; rows are added in order. */
static void add_dbias(mb_ops *ops, mb_rows dy, int64_t rows, int64_t n, float *dbias)
{
    enum { SLICE = 64 };
    const mb_dequant *loops = mb_cpu_get(ops)->dequant;
    int64_t slices = (n + SLICE - 1) / SLICE;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, rows *n))
    for (int64_t s = 0; s < slices; s++) {
        int64_t first = s * SLICE, width = n - first < SLICE ? n - first : SLICE;
        double sums[SLICE] = {0};
        for (int64_t t = 0; t < rows; t++) {
            float row[SLICE];
            const int64_t at = t * dy.ld + first;
            if (dy.is_bf16) loops->from_bf16((const uint16_t *)dy.data + at, width, row);
            if (!dy.is_bf16) memcpy(row, (const float *)dy.data + at, (size_t)width * sizeof *row);
            for (int64_t i = 0; i < width; i++) sums[i] += row[i];
        }
        for (int64_t i = 0; i < width; i++) dbias[first + i] = (float)(dbias[first + i] + sums[i]);
    }
}

/* ---- 5. entries ---- */

static mb_status run_list(mb_ops *ops, const dw_work *work, const dw_list *list)
{
    int failed = MB_OK;
    mb_dense *dense = mb_cpu_get(ops)->dense;
#pragma omp parallel for schedule(dynamic, 1) num_threads(ops->threads) if (list->count > 1)
    for (int64_t i = 0; i < list->count; i++) {
        const int thread = omp_get_thread_num();
        const dw_job *job = &list->jobs[i];
        mb_status one = work->dy_panels != NULL ? run_panels(dense, thread, work, job)
                        : work->panels != NULL  ? run_transposed(dense, thread, work, job)
                                                : run_f32(dense, thread, work, job);
        if (one != MB_OK) {
#pragma omp atomic write
            failed = one;
        }
    }
    return mb_linear_report(failed);
}

static mb_status run(mb_ops *ops, dw_work *work)
{
    mb_status status = MB_OK;
    const int64_t rows = work->offsets[work->groups];
    const bool is_stable = mb_dense_is_row_stable(mb_cpu_get(ops)->dense);
    int64_t tile = TILE_F32, columns = work->k;
    dw_list list = {0};
    if (rows == 0 || work->n == 0 || work->k == 0) return MB_OK;
    if (work->x.is_bf16 && mb_linear_has_bf16(ops)) {
        tile = TILE_BF16, columns = COLUMNS;
        while (columns > MB_PANEL_COLUMNS &&
               work->groups * (work->n / tile + 1) * (work->k / columns + 1) < JOBS)
            columns /= 2;
        MB_TRY(pack(ops, work));
    } else if (work->x.is_bf16) {
        MB_TRY(mb_linear_widen(ops, work->x, rows, work->k, &work->x));
        MB_TRY(mb_linear_widen(ops, work->dy, rows, work->n, &work->dy));
    }
    if (work->panels == NULL && is_stable && work->n <= TILE_F32 * ops->threads) tile = TILE_F32 / 2;
    MB_TRY(list_tiles(ops, work, tile, columns, &list));
    MB_TRY(run_list(ops, work, &list));
done:
    return status;
}

mb_status mb_linear_add_dw(mb_ops *ops, mb_rows dy, mb_rows x, int64_t rows, int64_t n, int64_t k, float *dw)
{
    int32_t offsets[2] = {0, (int32_t)rows};
    mb_tensor tensor = mb_tensor_view2(MB_F32, dw, n, k);
    dw_work work = {.dy = dy, .x = x, .offsets = offsets, .dw = &tensor, .groups = 1, .n = n, .k = k};
    return run(ops, &work);
}

mb_status mb_linear_dw_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                           mb_tensor *opt_dbias)
{
    const int64_t rows = mb_ops_rows(x), n = mb_ops_width(dy);
    if (opt_dbias != NULL) add_dbias(ops, mb_rows_of(dy), rows, n, mb_tensor_f32(opt_dbias));
    return mb_linear_add_dw(ops, mb_rows_of(dy), mb_rows_of(x), rows, n, mb_ops_width(x), mb_tensor_f32(dw));
}

mb_status mb_grouped_linear_dw_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                   const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    dw_work work = {.dy = mb_rows_of(dy),
                    .x = mb_rows_of(x),
                    .offsets = offsets,
                    .dw = dw,
                    .groups = groups,
                    .n = mb_ops_width(dy),
                    .k = mb_ops_width(x)};
    return run(ops, &work);
}
