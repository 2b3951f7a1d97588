/* linear (cpu): products as jobs of (group, columns, rows), one thread each.
 *
 * f32 rows and f32 weights: a job is a tile of rows by all columns, so that few shapes occur. A small dense
 * product on a row stable library runs as one call on all threads instead.
 * Everything else: a job is a range of columns, of which it takes the kept panels or makes its own block of
 * the
 * weight (packed.h), and runs all rows through it, a tile at a time; where few rows leave few jobs, the
 * ranges
 * are narrower, and long groups are cut into parts. bf16 rows are products of bf16 where the library has
 * them;
 * elsewhere rows are widened and products are of f32, with weights rounded to bf16 all the same.
 *
 * A tile has up to 128 rows. Where the library's row bits depend on the number of rows, every tile has
 * exactly
 * 96, the last one padded with zeros, and column ranges depend on the weight's shape only.
 *
 * 1. helpers
 * 2. jobs
 * 3. running
 * 4. entries
 * 5. probe
 */
#include <omp.h>
#include <string.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/packed.h"
#include "ops/cpu/panels.h"

enum {
    TILE_ROWS = 128,
    FIXED_ROWS = 96,
    SMALL_ROWS = 64,         /* a dense f32 product of at most this many rows per thread is one call */
    JOB_ROWS = 2048,         /* most rows of a job */
    JOBS_PER_THREAD = 4,     /* wanted */
    BLOCK_BYTES = 512 << 10, /* of a job's part of the weight: half of a second-level cache */
    DEPTH_MOST = 1024,       /* rows of the weight that a product takes at a time */
    MEMORY_BYTES = 16 << 20, /* most of a block, and so of memory per thread */
    FILL_COLUMNS = 256,
    ONE_THREAD_PRODUCTS = 1 << 18 /* m n k below which a second thread costs more than it does */
};

/* ---- 1. helpers ---- */

bool mb_linear_has_bf16(mb_ops *ops)
{
    return mb_dense_has_bf16(mb_cpu_get(ops)->dense);
}

mb_status mb_linear_report(int failed)
{
    if (failed == MB_OK) return MB_OK;
    if (mb_status_message()[0] != '\0') return (mb_status)failed;
    return mb_fail((mb_status)failed, "a matrix product failed (%s)", mb_status_name((mb_status)failed));
}

/* Element (row, column) of rows. */
static void *rows_at(const mb_rows *rows, int64_t row, int64_t column)
{
    const int64_t at = row * rows->ld + column;
    return (char *)rows->data + at * (rows->is_bf16 ? 2 : 4);
}

mb_status mb_linear_widen(mb_ops *ops, mb_rows from, int64_t rows, int64_t width, mb_rows *out)
{
    mb_status status = MB_OK;
    const mb_dequant *loops = mb_cpu_get(ops)->dequant;
    float *data = NULL;
    MB_ARENA_ARRAY(ops->scratch, data, rows * width);
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, rows *width))
    for (int64_t r = 0; r < rows; r++) {
        const void *row = rows_at(&from, r, 0);
        if (from.is_bf16) loops->from_bf16(row, width, data + r * width);
        if (!from.is_bf16) memcpy(data + r * width, row, (size_t)width * sizeof *data);
    }
    *out = (mb_rows){data, false, width};
done:
    return status;
}

void mb_linear_narrow(mb_ops *ops, mb_rows from, int64_t rows, int64_t width, mb_rows to)
{
    const mb_dequant *loops = mb_cpu_get(ops)->dequant;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, rows *width))
    for (int64_t r = 0; r < rows; r++) {
        const void *row = rows_at(&from, r, 0);
        if (to.is_bf16) loops->to_bf16(row, width, rows_at(&to, r, 0));
        if (!to.is_bf16) memcpy(rows_at(&to, r, 0), row, (size_t)width * sizeof(float));
    }
}

/* ---- 2. jobs ---- */

typedef struct linear_work {
    mb_direction direction;
    const int32_t *offsets; /* [groups+1] */
    int64_t groups;
    mb_weight *const *weights;
    mb_rows in, out;
    const float *opt_bias;
    int64_t in_width, out_width;
    bool accumulate;
    bool is_rounded; /* f32 products with weights rounded to bf16 */
} linear_work;

typedef struct job {
    int64_t group, row, rows, column, columns;
} job;

typedef struct job_list {
    job *jobs;
    int64_t count;
} job_list;

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

/* Does the library take this weight as it is, or packed by itself? */
static bool is_direct(const linear_work *work, int64_t group)
{
    const mb_weight *w = work->weights[group];
    return !work->in.is_bf16 && !work->is_rounded && w->bits == 0 && w->tensor.dtype == MB_F32;
}

static int64_t rows_of(const linear_work *work, int64_t group)
{
    return work->offsets[group + 1] - work->offsets[group];
}

/* Jobs that tiles of rows alone would make. A block of a weight made for the call serves all rows of its
 * group. */
static int64_t tiles_of(mb_ops *ops, const linear_work *work)
{
    int64_t tiles = 0;
    for (int64_t e = 0; e < work->groups; e++) {
        const int64_t rows = rows_of(work, e);
        const bool is_kept =
            work->in.is_bf16 && mb_packed_panels(mb_cpu_get(ops)->dense, work->weights[e], work->direction);
        tiles += is_kept ? (rows + TILE_ROWS - 1) / TILE_ROWS : rows > 0;
    }
    return tiles;
}

/* Columns of a job, a multiple of 64: as many as BLOCK_BYTES hold of the rows that a product takes at a time;
 * fewer
 * when there are few tiles, if bits allow. */
static int64_t columns_of(mb_ops *ops, const linear_work *work)
{
    const int64_t size = work->in.is_bf16 ? 2 : 4, n = round_up(work->out_width, MB_PANEL_COLUMNS);
    const int64_t k = mb_panels_rows(work->in_width), deep = k < DEPTH_MOST ? k : DEPTH_MOST;
    int64_t most = BLOCK_BYTES / (deep * size);
    if (MEMORY_BYTES / (k * size) < most) most = MEMORY_BYTES / (k * size);
    if (mb_dense_is_row_stable(mb_cpu_get(ops)->dense)) {
        const int64_t tiles = tiles_of(ops, work);
        const int64_t wanted = (JOBS_PER_THREAD * ops->threads + tiles - 1) / tiles;
        if (n / wanted < most) most = n / wanted;
    }
    if (most < MB_PANEL_COLUMNS) most = MB_PANEL_COLUMNS;
    const int64_t pieces = (n + most - 1) / most;
    return round_up((n + pieces - 1) / pieces, MB_PANEL_COLUMNS);
}

/* Rows of a job: a multiple of the tile. */
static int64_t rows_of_job(mb_ops *ops, const linear_work *work, int64_t columns, int64_t step)
{
    const int64_t total = work->offsets[work->groups], ranges = (work->out_width + columns - 1) / columns;
    int64_t rows = total * ranges / (JOBS_PER_THREAD * ops->threads);
    if (rows > JOB_ROWS) rows = JOB_ROWS;
    return rows < step ? step : rows / step * step;
}

/* Jobs of one group; list->jobs NULL: count them only. */
static void add_jobs(const linear_work *work, int64_t group, int64_t columns, int64_t rows, job_list *list)
{
    const int64_t last = work->offsets[group + 1];
    for (int64_t column = 0; column < work->out_width; column += columns) {
        const int64_t wide = work->out_width - column < columns ? work->out_width - column : columns;
        for (int64_t row = work->offsets[group]; row < last; row += rows) {
            const int64_t high = last - row < rows ? last - row : rows;
            if (list->jobs != NULL) list->jobs[list->count] = (job){group, row, high, column, wide};
            list->count++;
        }
    }
}

static mb_status list_jobs(mb_ops *ops, const linear_work *work, job_list *list)
{
    mb_status status = MB_OK;
    const int64_t step = mb_dense_is_row_stable(mb_cpu_get(ops)->dense) ? TILE_ROWS : FIXED_ROWS;
    const int64_t columns = columns_of(ops, work), rows = rows_of_job(ops, work, columns, step);
    *list = (job_list){NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) MB_ARENA_ARRAY(ops->scratch, list->jobs, list->count);
        list->count = 0;
        for (int64_t e = 0; e < work->groups; e++) {
            const bool direct = is_direct(work, e);
            add_jobs(work, e, direct ? work->out_width : columns, direct ? step : rows, list);
        }
    }
done:
    return status;
}

/* Columns of kept panels that are due. */
typedef struct due_panels {
    mb_weight *weight;
    int64_t column, columns;
} due_panels;

/* Fill panels of the weights that are due, by ranges of columns. */
static mb_status fill_panels(mb_ops *ops, const linear_work *work, mb_weight *const *due, int64_t count)
{
    mb_status status = MB_OK;
    int64_t parts = 0, ranges = (work->out_width + FILL_COLUMNS - 1) / FILL_COLUMNS;
    due_panels *list = NULL;
    MB_ARENA_ARRAY(ops->scratch, list, count * ranges);
    for (int64_t i = 0; i < count; i++) {
        MB_TRY(mb_packed_reserve(due[i], work->direction));
        for (int64_t column = 0; column < work->out_width; column += FILL_COLUMNS) {
            const int64_t left = work->out_width - column;
            list[parts++] = (due_panels){due[i], column, left < FILL_COLUMNS ? left : FILL_COLUMNS};
        }
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(ops->threads) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        mb_packed_fill(list[i].weight, work->direction, list[i].column, list[i].columns);
    }
done:
    return status;
}

/* Pack the weights that are due. */
static mb_status prepare(mb_ops *ops, const linear_work *work)
{
    mb_status status = MB_OK;
    mb_dense *dense = mb_cpu_get(ops)->dense;
    int failed = MB_OK;
    int64_t count = 0;
    mb_weight **due = NULL;
    MB_ARENA_ARRAY(ops->scratch, due, work->groups);
    for (int64_t e = 0; e < work->groups; e++) {
        bool is_due = false;
        if (rows_of(work, e) == 0 || (!work->in.is_bf16 && !is_direct(work, e))) continue;
        MB_TRY(mb_packed_count(dense, work->weights[e], work->direction, rows_of(work, e), work->in.is_bf16,
                               &is_due));
        if (is_due) due[count++] = work->weights[e];
    }
    if (work->in.is_bf16) {
        if (count > 0) MB_TRY(fill_panels(ops, work, due, count));
        goto done;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(ops->threads) if (count > 1)
    for (int64_t i = 0; i < count; i++) {
        mb_status one = mb_packed_make(dense, omp_get_thread_num(), due[i], work->direction);
        if (one != MB_OK) {
#pragma omp atomic write
            failed = one;
        }
    }
    MB_TRY(mb_linear_report(failed));
done:
    return status;
}

/* ---- 3. running ---- */

/* The job's part of the weight in the form its products take: product->b, ldb, is_b_transposed, opt_packed.
 * */
static mb_status operand_get(mb_ops *ops, int thread, const linear_work *work, const job *j,
                             mb_product *product)
{
    const mb_cpu *cpu = mb_cpu_get(ops);
    const mb_weight *w = work->weights[j->group];
    const mb_direction d = work->direction;
    product->is_b_transposed = d == MB_FORWARD;
    if (is_direct(work, j->group)) {
        product->b = w->tensor.data;
        product->ldb = w->width;
        product->opt_packed = mb_packed_get(cpu->dense, w, d);
        return MB_OK;
    }
    if (!work->in.is_bf16) {
        const float *block = NULL;
        mb_status status = mb_packed_block_f32(cpu->dense, thread, cpu->dequant, w, d, j->column, j->columns,
                                               work->is_rounded, &block);
        product->b = block;
        product->ldb = d == MB_FORWARD ? w->width : j->columns;
        return status;
    }
    const uint16_t *panels = mb_packed_panels(cpu->dense, w, d);
    product->is_bf16 = true;
    if (panels != NULL) {
        product->b = panels + j->column / MB_PANEL_COLUMNS * mb_panels_stride(product->k);
        return MB_OK;
    }
    mb_status status =
        mb_packed_block_panels(cpu->dense, thread, cpu->dequant, w, d, j->column, j->columns, &panels);
    product->b = panels;
    return status;
}

/* f32 rows of a tile as one of full size: copied in and out, the rest zero. */
static mb_status run_padded(mb_dense *dense, int thread, const mb_product *product)
{
    const int64_t n = product->n, k = product->k;
    float *in = mb_dense_thread_block(dense, thread, MB_DENSE_PADDING,
                                      (size_t)(FIXED_ROWS * (n + k)) * sizeof(float));
    if (in == NULL) return MB_ENOMEM;
    float *out = in + FIXED_ROWS * k;
    memset(in, 0, (size_t)(FIXED_ROWS * (n + k)) * sizeof(float));
    for (int64_t r = 0; r < product->m; r++) {
        memcpy(in + r * k, (const float *)product->a + r * product->lda, (size_t)k * sizeof(float));
        if (product->accumulate)
            memcpy(out + r * n, (float *)product->c + r * product->ldc, (size_t)n * sizeof(float));
    }
    mb_product padded = *product;
    padded.m = FIXED_ROWS;
    padded.a = in, padded.lda = k;
    padded.c = out, padded.ldc = n;
    mb_status status = mb_dense_run(dense, thread, 1, &padded);
    for (int64_t r = 0; status == MB_OK && r < product->m; r++) {
        memcpy((float *)product->c + r * product->ldc, out + r * n, (size_t)n * sizeof(float));
    }
    return status;
}

static mb_product product_of(const linear_work *work, const job *j)
{
    return (mb_product){.m = j->rows,
                        .n = j->columns,
                        .k = work->in_width,
                        .accumulate = work->accumulate,
                        .is_c_bf16 = work->out.is_bf16,
                        .a = rows_at(&work->in, j->row, 0),
                        .opt_bias = work->opt_bias != NULL ? work->opt_bias + j->column : NULL,
                        .c = rows_at(&work->out, j->row, j->column),
                        .lda = work->in.ld,
                        .ldc = work->out.ld};
}

/* Do our own loops for quantised weights take the job? */
static bool is_int4(mb_ops *ops, const linear_work *work, const job *j)
{
    const mb_weight *w = work->weights[j->group];
    if (work->direction != MB_FORWARD) return false;
    if (!work->in.is_bf16) return mb_int4_is_fast(w);
    return j->rows <= MB_INT4_FEW && mb_dense_has_panels(mb_cpu_get(ops)->dense) && mb_int4_is_fast_bf16(w);
}

static mb_status run_int4(mb_ops *ops, int thread, const linear_work *work, const job *j)
{
    mb_cpu *cpu = mb_cpu_get(ops);
    const mb_weight *w = work->weights[j->group];
    const size_t bytes = work->in.is_bf16 ? mb_int4_room_bf16(w) : MB_INT4_ROOM;
    void *room = mb_dense_thread_block(cpu->dense, thread, MB_DENSE_STAGE, bytes);
    if (room == NULL) return MB_ENOMEM;
    const mb_int4_product product = {.w = w,
                                     .m = j->rows,
                                     .n = j->columns,
                                     .row = j->column,
                                     .x = rows_at(&work->in, j->row, 0),
                                     .ldx = work->in.ld,
                                     .opt_bias = work->opt_bias != NULL ? work->opt_bias + j->column : NULL,
                                     .y = rows_at(&work->out, j->row, j->column),
                                     .ldy = work->out.ld,
                                     .accumulate = work->accumulate,
                                     .is_y_bf16 = work->out.is_bf16,
                                     .is_rounded = work->is_rounded};
    if (work->in.is_bf16)
        mb_int4_few_bf16(&product, room);
    else
        cpu->int4(&product, room);
    return MB_OK;
}

static mb_status run_job(mb_ops *ops, int thread, const linear_work *work, const job *j)
{
    if (is_int4(ops, work, j)) return run_int4(ops, thread, work, j);
    mb_status status = MB_OK;
    mb_cpu *cpu = mb_cpu_get(ops);
    mb_product product = product_of(work, j);
    const bool is_stable = mb_dense_is_row_stable(cpu->dense);
    const int64_t step = is_stable || product.is_bf16 ? TILE_ROWS : FIXED_ROWS;
    MB_TRY(operand_get(ops, thread, work, j, &product));
    for (int64_t row = 0; row < j->rows; row += step) {
        product.m = j->rows - row < step ? j->rows - row : step;
        product.a = rows_at(&work->in, j->row + row, 0);
        product.c = rows_at(&work->out, j->row + row, j->column);
        if (product.m < FIXED_ROWS && !is_stable && !product.is_bf16) {
            MB_TRY(run_padded(cpu->dense, thread, &product));
        } else {
            MB_TRY(mb_dense_run(cpu->dense, thread, 1, &product));
        }
    }
done:
    return status;
}

static mb_status run_jobs(mb_ops *ops, const linear_work *work, const job_list *list)
{
    int failed = MB_OK;
    int threads = ops->threads < list->count ? ops->threads : (int)list->count;
    if (work->offsets[work->groups] * work->in_width * work->out_width < ONE_THREAD_PRODUCTS) threads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < list->count; i++) {
        mb_status one = run_job(ops, omp_get_thread_num(), work, &list->jobs[i]);
        if (one != MB_OK) {
#pragma omp atomic write
            failed = one;
        }
    }
    return mb_linear_report(failed);
}

/* A dense f32 product of few rows: one call on all threads. */
static mb_status run_small(mb_ops *ops, const linear_work *work)
{
    mb_status status = MB_OK;
    const job all = {0, 0, work->offsets[1], 0, work->out_width};
    mb_product product = product_of(work, &all);
    int threads = product.m * product.n * product.k < ONE_THREAD_PRODUCTS ? 1 : ops->threads;
    MB_TRY(operand_get(ops, 0, work, &all, &product));
    MB_TRY(mb_dense_run(mb_cpu_get(ops)->dense, 0, threads, &product));
done:
    return status;
}

/* Rows and results as the library takes them. */
static mb_status run_work(mb_ops *ops, const linear_work *work)
{
    mb_status status = MB_OK;
    const int64_t rows = work->offsets[work->groups];
    const bool is_stable = mb_dense_is_row_stable(mb_cpu_get(ops)->dense);
    job_list list;
    if (rows == 0 || work->out_width == 0) goto done;
    MB_TRY(prepare(ops, work));
    if (work->groups == 1 && is_stable && is_direct(work, 0) && rows <= (int64_t)SMALL_ROWS * ops->threads) {
        MB_TRY(run_small(ops, work));
        goto done;
    }
    MB_TRY(list_jobs(ops, work, &list));
    MB_TRY(run_jobs(ops, work, &list));
done:
    return status;
}

/* bf16 rows without a library for them, or bf16 results of f32 rows: through copies in f32. */
static mb_status run_wide(mb_ops *ops, const linear_work *original)
{
    mb_status status = MB_OK;
    linear_work wide = *original;
    const int64_t rows = wide.offsets[wide.groups];
    if (wide.in.is_bf16) {
        wide.is_rounded = true;
        MB_TRY(mb_linear_widen(ops, original->in, rows, wide.in_width, &wide.in));
    }
    if (wide.out.is_bf16) MB_TRY(mb_linear_widen(ops, original->out, rows, wide.out_width, &wide.out));
    MB_TRY(run_work(ops, &wide));
    if (original->out.is_bf16) mb_linear_narrow(ops, wide.out, rows, wide.out_width, original->out);
done:
    return status;
}

static mb_status run(mb_ops *ops, const linear_work *work)
{
    const bool is_plain = work->in.is_bf16 ? mb_linear_has_bf16(ops) : !work->out.is_bf16;
    return is_plain ? run_work(ops, work) : run_wide(ops, work);
}

/* ---- 4. entries ---- */

mb_status mb_linear_rows(mb_ops *ops, mb_rows x, int64_t rows, mb_weight *w, bool is_transposed, mb_rows y)
{
    const mb_direction d = is_transposed ? MB_FORWARD : MB_BACKWARD;
    int32_t offsets[2] = {0, (int32_t)rows};
    linear_work work = {.direction = d,
                        .offsets = offsets,
                        .groups = 1,
                        .weights = &w,
                        .in = x,
                        .out = y,
                        .in_width = mb_packed_rows(w, d),
                        .out_width = mb_packed_columns(w, d)};
    return run(ops, &work);
}

mb_status mb_linear_cpu(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                        bool accumulate, mb_tensor *y)
{
    int32_t offsets[2] = {0, (int32_t)mb_ops_rows(x)};
    linear_work work = {.direction = MB_FORWARD,
                        .offsets = offsets,
                        .groups = 1,
                        .weights = &w,
                        .in = mb_rows_of(x),
                        .opt_bias = opt_bias != NULL ? mb_tensor_f32(opt_bias) : NULL,
                        .out = mb_rows_of(y),
                        .in_width = mb_ops_width(x),
                        .out_width = mb_ops_width(y),
                        .accumulate = accumulate};
    return run(ops, &work);
}

mb_status mb_linear_dx_cpu(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate, mb_tensor *dx)
{
    int32_t offsets[2] = {0, (int32_t)mb_ops_rows(dy)};
    linear_work work = {.direction = MB_BACKWARD,
                        .offsets = offsets,
                        .groups = 1,
                        .weights = &w,
                        .in = mb_rows_of(dy),
                        .out = mb_rows_of(dx),
                        .in_width = mb_ops_width(dy),
                        .out_width = mb_ops_width(dx),
                        .accumulate = accumulate};
    return run(ops, &work);
}

mb_status mb_grouped_linear_cpu(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                mb_weight *const *w, mb_tensor *y)
{
    linear_work work = {.direction = MB_FORWARD,
                        .offsets = offsets,
                        .groups = groups,
                        .weights = w,
                        .in = mb_rows_of(x),
                        .out = mb_rows_of(y),
                        .in_width = mb_ops_width(x),
                        .out_width = mb_ops_width(y)};
    return run(ops, &work);
}

mb_status mb_grouped_linear_dx_cpu(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets, int64_t groups,
                                   mb_weight *const *w, bool accumulate, mb_tensor *dx)
{
    linear_work work = {.direction = MB_BACKWARD,
                        .offsets = offsets,
                        .groups = groups,
                        .weights = w,
                        .in = mb_rows_of(dy),
                        .out = mb_rows_of(dx),
                        .in_width = mb_ops_width(dy),
                        .out_width = mb_ops_width(dx),
                        .accumulate = accumulate};
    return run(ops, &work);
}

/* ---- 5. probe ---- */

enum { PROBE_ROWS = 2 * FIXED_ROWS + 5, PROBE_N = 72, PROBE_K = 200 };

/* y[rows] of rows that are all equal: are the results, too? */
static mb_status probe_rows(mb_ops *ops, mb_rows x, int64_t rows, mb_weight *w, float *y, bool *out_equal)
{
    mb_status status = MB_OK;
    MB_TRY(mb_linear_rows(ops, x, rows, w, true, (mb_rows){y, false, PROBE_N}));
    *out_equal = true;
    for (int64_t r = 1; r < rows; r++) {
        *out_equal = *out_equal && memcmp(y, y + r * PROBE_N, PROBE_N * sizeof *y) == 0;
    }
done:
    return status;
}

/* Do equal rows give equal bits wherever they stand in a call? Always on a row stable library; with tiles of
 * one size it depends on whether the library treats all rows of a tile alike, so it is tried: all rows equal,
 * results must be too. */
mb_status mb_linear_probe(mb_ops *ops, bool *out_stable)
{
    mb_status status = MB_OK;
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    float *x = NULL, *w = NULL, *y = NULL;
    uint16_t *narrow = NULL;
    bool is_equal = false;
    mb_weight weight = {0};
    MB_ARENA_ARRAY(ops->scratch, x, PROBE_ROWS * PROBE_K);
    MB_ARENA_ARRAY(ops->scratch, narrow, PROBE_ROWS * PROBE_K);
    MB_ARENA_ARRAY(ops->scratch, w, PROBE_N * PROBE_K);
    MB_ARENA_ARRAY(ops->scratch, y, PROBE_ROWS * PROBE_N);
    mb_weight_init(&weight, mb_tensor_view2(MB_F32, w, PROBE_N, PROBE_K));
    for (int64_t i = 0; i < PROBE_ROWS * PROBE_K; i++) x[i] = 1.0f / (float)(1 + i % PROBE_K * 7 % 31);
    for (int64_t i = 0; i < PROBE_N * PROBE_K; i++) w[i] = 1.0f / (float)(1 + i * 13 % 101) - 0.1f;
    mb_cpu_get(ops)->dequant->to_bf16(x, PROBE_ROWS * PROBE_K, narrow);
    MB_TRY(probe_rows(ops, (mb_rows){x, false, PROBE_K}, PROBE_ROWS, &weight, y, out_stable));
    MB_TRY(probe_rows(ops, (mb_rows){narrow, true, PROBE_K}, PROBE_ROWS, &weight, y, &is_equal));
    *out_stable = *out_stable && is_equal;
done:
    mb_weight_reset(&weight);
    mb_arena_release(ops->scratch, mark);
    return status;
}
