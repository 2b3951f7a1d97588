/* linear (cpu): products as jobs of (group, tile of rows), one thread each; weights packed when it pays.
 *
 * A job's tile has up to 128 rows, so that few shapes occur. Where the library's row bits depend on the
 * number of rows, every tile has exactly 96, the last one padded with zeros. A small dense product on a row
 * stable library runs as one call on all threads instead.
 *
 * Packing: plain weights cost a few per cent of a full tile and half the time of a small one, and packing
 * costs as much as that over some 60 (large weights) to 200 tiles (small ones). So values that never changed
 * are packed at their 64th tile; values that do change at once when the version before them met 256 tiles,
 * else at their own 256th.
 *
 * dw is cut into tiles of its own rows; tokens are added in pieces of 512, 256, 128, 64 and the rest, again
 * to have few shapes.
 *
 * 1. packed weights
 * 2. tiles
 * 3. gradients of weights
 * 4. entries
 * 5. probe
 */
#include <omp.h>
#include <string.h>

#include "ops/cpu/cpu.h"

enum {
    TILE_ROWS = 128,
    FIXED_ROWS = 96,
    DW_ROWS = 64,
    SMALL_ROWS = 64, /* a dense product of at most this many rows per thread is one call */
    PACK_EARLY = 64,
    PACK_LATE = 256,
    ONE_THREAD_PRODUCTS = 1 << 18 /* m n k below which a second thread costs more than it does */
};

typedef enum direction { FORWARD, BACKWARD } direction; /* x W^T, dy W */

/* ---- 1. packed weights ---- */

typedef struct packed_weight {
    const mb_dense *dense; /* who packed */
    uint64_t version;      /* of the counts below */
    int64_t tiles[2];      /* met by this version, by direction */
    int64_t before[2];     /* met by the version before */
    uint64_t packed_version[2];
    void *packed[2];
} packed_weight;

static void packed_weight_free(void *opaque)
{
    packed_weight *p = opaque;
    mb_dense_free_packed(p->packed[FORWARD]);
    mb_dense_free_packed(p->packed[BACKWARD]);
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
        for (int d = FORWARD; d <= BACKWARD; d++) {
            p->before[d] = p->tiles[d];
            p->tiles[d] = 0;
        }
    }
    return p;
}

/* Count a call of `rows` rows and say whether the values are to be packed now; they then count as packed, so
 * that a weight which serves two groups is packed once. */
static mb_status count_rows(mb_dense *dense, mb_weight *w, direction d, int64_t rows, bool *out_pack)
{
    *out_pack = false;
    if (!mb_dense_can_pack(dense)) return MB_OK;
    packed_weight *p = record_get(dense, w);
    if (p == NULL) return MB_ENOMEM;
    p->tiles[d] += (rows + TILE_ROWS - 1) / TILE_ROWS;
    if (p->packed_version[d] == w->version) return MB_OK;
    bool is_first = w->version == 1 && p->tiles[d] >= PACK_EARLY;
    *out_pack = is_first || p->before[d] >= PACK_LATE || p->tiles[d] >= PACK_LATE;
    if (*out_pack) p->packed_version[d] = w->version;
    return MB_OK;
}

static mb_status pack(mb_dense *dense, int thread, mb_weight *w, direction d)
{
    packed_weight *p = w->packed;
    int64_t n = mb_ops_rows(&w->tensor), k = mb_ops_width(&w->tensor);
    mb_dense_free_packed(p->packed[d]);
    p->packed[d] = NULL;
    mb_status status = mb_dense_pack(dense, thread, mb_tensor_f32(&w->tensor), d == FORWARD ? k : n,
                                     d == FORWARD ? n : k, k, d == FORWARD, &p->packed[d]);
    if (status != MB_OK) p->packed_version[d] = 0;
    return status;
}

static const void *packed_get(const mb_dense *dense, const mb_weight *w, direction d)
{
    const packed_weight *p = w->packed;
    if (!mb_dense_can_pack(dense) || p == NULL || p->packed_version[d] != w->version) return NULL;
    return p->packed[d];
}

/* ---- 2. tiles ---- */

typedef struct tile {
    int64_t group, first, rows;
} tile;

typedef struct work {
    direction direction;
    const int32_t *offsets; /* [groups+1] */
    int64_t groups;
    mb_weight *const *weights;
    const float *in, *opt_bias;
    float *out;
    int64_t in_width, out_width;
    bool accumulate;
} work;

static mb_product product_of(mb_dense *dense, const work *job, const tile *t)
{
    const mb_weight *w = job->weights[t->group];
    return (mb_product){.m = t->rows,
                        .n = job->out_width,
                        .k = job->in_width,
                        .is_b_transposed = job->direction == FORWARD,
                        .accumulate = job->accumulate,
                        .a = job->in + t->first * job->in_width,
                        .b = mb_tensor_f32(&w->tensor),
                        .opt_bias = job->opt_bias,
                        .opt_packed = packed_get(dense, w, job->direction),
                        .c = job->out + t->first * job->out_width,
                        .lda = job->in_width,
                        .ldb = mb_ops_width(&w->tensor),
                        .ldc = job->out_width};
}

/* The last tile of a group as one of full size: rows copied in and out, the rest zero. */
static mb_status run_padded(mb_dense *dense, int thread, const mb_product *product)
{
    size_t in = (size_t)product->k * sizeof(float), out = (size_t)product->n * sizeof(float);
    size_t rows = (size_t)product->m;
    char *block = mb_dense_thread_block(dense, thread, FIXED_ROWS * (in + out));
    if (block == NULL) return MB_ENOMEM;
    char *result = block + FIXED_ROWS * in;
    memcpy(block, product->a, rows * in);
    memset(block + rows * in, 0, (FIXED_ROWS - rows) * in);
    if (product->accumulate) {
        memcpy(result, product->c, rows * out);
        memset(result + rows * out, 0, (FIXED_ROWS - rows) * out);
    }
    mb_product padded = *product;
    padded.m = FIXED_ROWS;
    padded.a = (const float *)block;
    padded.c = (float *)result;
    mb_status status = mb_dense_run(dense, thread, 1, &padded);
    if (status == MB_OK) memcpy(product->c, result, rows * out);
    return status;
}

static mb_status run_tile(mb_dense *dense, int thread, const work *job, const tile *t)
{
    mb_product product = product_of(dense, job, t);
    if (t->rows < FIXED_ROWS && !mb_dense_is_row_stable(dense)) return run_padded(dense, thread, &product);
    return mb_dense_run(dense, thread, 1, &product);
}

/* A failure inside a parallel region has its message in that thread: say it again here. */
static mb_status report(int failed)
{
    if (failed == MB_OK) return MB_OK;
    if (mb_status_message()[0] != '\0') return (mb_status)failed;
    return mb_fail((mb_status)failed, "a matrix product failed (%s)", mb_status_name((mb_status)failed));
}

/* Pack the weights that are due, several at a time. */
static mb_status prepare(mb_ops *ops, const work *job)
{
    mb_status status = MB_OK;
    mb_dense *dense = mb_cpu_get(ops)->dense;
    int failed = MB_OK;
    int64_t count = 0;
    mb_weight **due = NULL;
    MB_ARENA_ARRAY(ops->scratch, due, job->groups);
    for (int64_t e = 0; e < job->groups; e++) {
        int64_t rows = job->offsets[e + 1] - job->offsets[e];
        bool is_due = false;
        if (rows > 0) MB_TRY(count_rows(dense, job->weights[e], job->direction, rows, &is_due));
        if (is_due) due[count++] = job->weights[e];
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(ops->threads) if (count > 1)
    for (int64_t i = 0; i < count; i++) {
        mb_status one = pack(dense, omp_get_thread_num(), due[i], job->direction);
        if (one != MB_OK) {
#pragma omp atomic write
            failed = one;
        }
    }
    MB_TRY(report(failed));
done:
    return status;
}

static mb_status run_tiles(mb_ops *ops, const work *job, const tile *tiles, int64_t count)
{
    int failed = MB_OK;
    mb_dense *dense = mb_cpu_get(ops)->dense;
    int threads = ops->threads < count ? ops->threads : (int)count;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        mb_status one = run_tile(dense, omp_get_thread_num(), job, &tiles[i]);
        if (one != MB_OK) {
#pragma omp atomic write
            failed = one;
        }
    }
    return report(failed);
}

static mb_status run_work(mb_ops *ops, const work *job)
{
    mb_status status = MB_OK;
    mb_dense *dense = mb_cpu_get(ops)->dense;
    int64_t rows = job->offsets[job->groups], count = 0;
    int64_t step = mb_dense_is_row_stable(dense) ? TILE_ROWS : FIXED_ROWS;
    tile *tiles = NULL;
    if (rows == 0) goto done;
    MB_TRY(prepare(ops, job));
    if (job->groups == 1 && mb_dense_is_row_stable(dense) && rows <= (int64_t)SMALL_ROWS * ops->threads) {
        mb_product product = product_of(dense, job, &(tile){0, 0, rows});
        int threads = product.m * product.n * product.k < ONE_THREAD_PRODUCTS ? 1 : ops->threads;
        MB_TRY(mb_dense_run(dense, 0, threads, &product));
        goto done;
    }
    MB_ARENA_ARRAY(ops->scratch, tiles, rows / step + job->groups);
    for (int64_t e = 0; e < job->groups; e++) {
        for (int64_t first = job->offsets[e]; first < job->offsets[e + 1]; first += step) {
            int64_t left = job->offsets[e + 1] - first;
            tiles[count++] = (tile){e, first, left < step ? left : step};
        }
    }
    MB_TRY(run_tiles(ops, job, tiles, count));
done:
    return status;
}

/* ---- 3. gradients of weights ---- */

typedef struct dw_work {
    const float *dy, *x;
    const int32_t *offsets;
    const mb_tensor *dw; /* [groups] */
    int64_t n, k;
} dw_work;

/* Rows first.. of dw of one group, all tokens. */
static mb_status run_dw_tile(mb_dense *dense, int thread, const dw_work *job, const tile *t)
{
    mb_status status = MB_OK;
    int64_t token = job->offsets[t->group], end = job->offsets[t->group + 1], piece = 512;
    float *c = mb_tensor_f32(&job->dw[t->group]) + t->first * job->k;
    while (token < end) {
        while (piece > 64 && piece > end - token) piece /= 2;
        int64_t tokens = piece < end - token ? piece : end - token;
        mb_product product = {.m = t->rows,
                              .n = job->k,
                              .k = tokens,
                              .is_a_transposed = true,
                              .accumulate = true,
                              .a = job->dy + token * job->n + t->first,
                              .b = job->x + token * job->k,
                              .c = c,
                              .lda = job->n,
                              .ldb = job->k,
                              .ldc = job->k};
        MB_TRY(mb_dense_run(dense, thread, 1, &product));
        token += tokens;
    }
done:
    return status;
}

static mb_status run_dw(mb_ops *ops, const dw_work *job, int64_t groups)
{
    mb_status status = MB_OK;
    mb_dense *dense = mb_cpu_get(ops)->dense;
    int64_t step = mb_dense_is_row_stable(dense) && job->n <= DW_ROWS * ops->threads ? DW_ROWS / 2 : DW_ROWS;
    int64_t per_group = (job->n + step - 1) / step, count = 0;
    int failed = MB_OK;
    tile *tiles = NULL;
    MB_ARENA_ARRAY(ops->scratch, tiles, groups * per_group);
    for (int64_t e = 0; e < groups; e++) {
        if (job->dw[e].dims == 0 || job->offsets[e] == job->offsets[e + 1]) continue;
        for (int64_t first = 0; first < job->n; first += step) {
            tiles[count++] = (tile){e, first, job->n - first < step ? job->n - first : step};
        }
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(ops->threads) if (count > 1)
    for (int64_t i = 0; i < count; i++) {
        mb_status one = run_dw_tile(dense, omp_get_thread_num(), job, &tiles[i]);
        if (one != MB_OK) {
#pragma omp atomic write
            failed = one;
        }
    }
    MB_TRY(report(failed));
done:
    return status;
}

/* Each thread owns columns; rows are added in order. */
static void add_dbias(mb_ops *ops, const float *dy, int64_t rows, int64_t n, float *dbias)
{
    enum { COLUMNS = 64 };
    int64_t slices = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, rows *n))
    for (int64_t s = 0; s < slices; s++) {
        int64_t first = s * COLUMNS, width = n - first < COLUMNS ? n - first : COLUMNS;
        double sums[COLUMNS] = {0};
        for (int64_t t = 0; t < rows; t++) {
            for (int64_t i = 0; i < width; i++) sums[i] += dy[t * n + first + i];
        }
        for (int64_t i = 0; i < width; i++) dbias[first + i] = (float)(dbias[first + i] + sums[i]);
    }
}

/* ---- 4. entries ---- */

mb_status mb_linear_rows(mb_ops *ops, const float *x, int64_t rows, mb_weight *w, bool is_transposed,
                         float *y)
{
    int64_t n = mb_ops_rows(&w->tensor), k = mb_ops_width(&w->tensor);
    int32_t offsets[2] = {0, (int32_t)rows};
    work job = {.direction = is_transposed ? FORWARD : BACKWARD,
                .offsets = offsets,
                .groups = 1,
                .weights = &w,
                .in = x,
                .out = y,
                .in_width = is_transposed ? k : n,
                .out_width = is_transposed ? n : k};
    return run_work(ops, &job);
}

mb_status mb_linear_add_dw(mb_ops *ops, const float *dy, const float *x, int64_t rows, int64_t n, int64_t k,
                           float *dw)
{
    int32_t offsets[2] = {0, (int32_t)rows};
    mb_tensor tensor = mb_tensor_view2(MB_F32, dw, n, k);
    dw_work job = {.dy = dy, .x = x, .offsets = offsets, .dw = &tensor, .n = n, .k = k};
    return run_dw(ops, &job, 1);
}

mb_status mb_linear_cpu(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                        bool accumulate, mb_tensor *y)
{
    int32_t offsets[2] = {0, (int32_t)mb_ops_rows(x)};
    work job = {.direction = FORWARD,
                .offsets = offsets,
                .groups = 1,
                .weights = &w,
                .in = mb_tensor_f32(x),
                .opt_bias = opt_bias != NULL ? mb_tensor_f32(opt_bias) : NULL,
                .out = mb_tensor_f32(y),
                .in_width = mb_ops_width(&w->tensor),
                .out_width = mb_ops_rows(&w->tensor),
                .accumulate = accumulate};
    return run_work(ops, &job);
}

mb_status mb_linear_dx_cpu(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate, mb_tensor *dx)
{
    int32_t offsets[2] = {0, (int32_t)mb_ops_rows(dy)};
    work job = {.direction = BACKWARD,
                .offsets = offsets,
                .groups = 1,
                .weights = &w,
                .in = mb_tensor_f32(dy),
                .out = mb_tensor_f32(dx),
                .in_width = mb_ops_rows(&w->tensor),
                .out_width = mb_ops_width(&w->tensor),
                .accumulate = accumulate};
    return run_work(ops, &job);
}

mb_status mb_linear_dw_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                           mb_tensor *opt_dbias)
{
    int32_t offsets[2] = {0, (int32_t)mb_ops_rows(x)};
    dw_work job = {.dy = mb_tensor_f32(dy),
                   .x = mb_tensor_f32(x),
                   .offsets = offsets,
                   .dw = dw,
                   .n = mb_ops_width(dy),
                   .k = mb_ops_width(x)};
    if (opt_dbias != NULL) add_dbias(ops, job.dy, mb_ops_rows(x), job.n, mb_tensor_f32(opt_dbias));
    return run_dw(ops, &job, 1);
}

mb_status mb_grouped_linear_cpu(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                mb_weight *const *w, mb_tensor *y)
{
    work job = {.direction = FORWARD,
                .offsets = offsets,
                .groups = groups,
                .weights = w,
                .in = mb_tensor_f32(x),
                .out = mb_tensor_f32(y),
                .in_width = mb_ops_width(x),
                .out_width = mb_ops_width(y)};
    return run_work(ops, &job);
}

mb_status mb_grouped_linear_dx_cpu(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets, int64_t groups,
                                   mb_weight *const *w, bool accumulate, mb_tensor *dx)
{
    work job = {.direction = BACKWARD,
                .offsets = offsets,
                .groups = groups,
                .weights = w,
                .in = mb_tensor_f32(dy),
                .out = mb_tensor_f32(dx),
                .in_width = mb_ops_width(dy),
                .out_width = mb_ops_width(dx),
                .accumulate = accumulate};
    return run_work(ops, &job);
}

mb_status mb_grouped_linear_dw_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                   const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    dw_work job = {.dy = mb_tensor_f32(dy),
                   .x = mb_tensor_f32(x),
                   .offsets = offsets,
                   .dw = dw,
                   .n = mb_ops_width(dy),
                   .k = mb_ops_width(x)};
    return run_dw(ops, &job, groups);
}

/* ---- 5. probe ---- */

/* Do equal rows give equal bits wherever they stand in a call? Always on a row stable library; with tiles of
 * one size it depends on whether the library treats all rows of a tile alike, so it is tried: all rows equal,
 * results must be too. */
mb_status mb_linear_probe(mb_ops *ops, bool *out_stable)
{
    enum { ROWS = 2 * FIXED_ROWS + 5, N = 72, K = 200 };
    mb_status status = MB_OK;
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    float *x = NULL, *w = NULL, *y = NULL;
    mb_weight weight;
    MB_ARENA_ARRAY(ops->scratch, x, ROWS * K);
    MB_ARENA_ARRAY(ops->scratch, w, N * K);
    MB_ARENA_ARRAY(ops->scratch, y, ROWS * N);
    mb_weight_init(&weight, mb_tensor_view2(MB_F32, w, N, K));
    for (int64_t i = 0; i < ROWS * K; i++) x[i] = 1.0f / (float)(1 + i % K * 7 % 31);
    for (int64_t i = 0; i < N * K; i++) w[i] = 1.0f / (float)(1 + i * 13 % 101) - 0.1f;
    status = mb_linear_rows(ops, x, ROWS, &weight, true, y);
    mb_weight_reset(&weight);
    if (status != MB_OK) goto done;
    *out_stable = true;
    for (int64_t r = 1; r < ROWS; r++) {
        *out_stable = *out_stable && memcmp(y, y + r * N, N * sizeof *y) == 0;
    }
done:
    mb_arena_release(ops->scratch, mark);
    return status;
}
