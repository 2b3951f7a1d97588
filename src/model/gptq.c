/* gptq: a blocked Cholesky factorisation from the last column to the first, then rows in tiles.
 *
 * 1. scales and integers
 * 2. the kernel of both
 * 3. order of columns, damping
 * 4. factor
 * 5. rows
 *
 * H = M D M^T with M upper is an ordinary Cholesky factorisation of H with rows and columns reversed:
 * H_(K-1-i, K-1-j) = (L L^T)_ij. M is kept in panels of 8 columns of the rows above them, so that the
 * correction of a block of columns (4 rows of errors times a panel) runs over memory in order. No sum is
 * reordered by the compiler and products are not fused, so that bits do not depend on the instruction set.
 */
#include "model/gptq.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, TILE = 4, ROWS = 16, STEP = 64, BLOCK = 128, ALONE = 256 /* columns for one thread */ };

typedef double gptq_lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));

struct mb_gptq {
    int64_t k;
    mb_gptq_options options;
    double damping;
    int64_t dead;
    int64_t *order; /* [K] column of the matrix that is i-th */
    bool *is_dead;  /* [K] by that order */
    double *d;      /* [K] */
    double *panels; /* M in panels of LANES columns */
    int64_t *panel; /* [blocks of columns x panels of a block + 1] where each begins */
    int64_t block;  /* columns rounded between two corrections */
    int64_t per;    /* panels of a block */
};

/* ---- 1. scales and integers ---- */

int64_t mb_gptq_group(int64_t k, int64_t wanted)
{
    int64_t best = k;
    double least = 4;
    if (wanted >= k) return k;
    if (k % wanted == 0) return wanted;
    for (int64_t d = 2; d <= k && d <= MB_GPTQ_GROUP; d += 2) {
        const double ratio = d < wanted ? (double)wanted / (double)d : (double)d / (double)wanted;
        if (k % d != 0 || ratio > least || (ratio == least && best < k)) continue;
        least = ratio;
        best = d;
    }
    return best;
}

/* Of a group whose largest |w| this is, as it will be read back. */
static float gptq_scale(float most, mb_dtype stored)
{
    const float scale = most / 7.5f;
    return stored == MB_BF16  ? mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(scale))
           : stored == MB_F16 ? mb_dtype_f32_from_f16(mb_dtype_f16_from_f32(scale))
                              : scale;
}

static float gptq_most(const float *value, int64_t n)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(value[i]));
    return most;
}

static int gptq_clamp(double q)
{
    return q < -8 ? -8 : q > 7 ? 7 : (int)q;
}

static void gptq_put(uint8_t *row, int64_t column, int q)
{
    row[column / 2] |= (uint8_t)((q + 8) << (column % 2 == 0 ? 0 : 4));
}

static mb_status gptq_check_values(const float *value, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(value[i]))
            return mb_fail(MB_ENUMERIC, "quantise: element %lld of the matrix is NaN or Inf", (long long)i);
    return MB_OK;
}

static mb_status gptq_check_scales(const float *scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(scale[i]))
            return mb_fail(MB_ENUMERIC, "quantise: scale %lld of the matrix does not fit the stored dtype",
                           (long long)i);
    return MB_OK;
}

mb_status mb_gptq_round(const float *value, int64_t n, int64_t k, const mb_gptq_options *options,
                        uint8_t *out_packed, float *out_scale)
{
    mb_status status = MB_OK;
    const int64_t group = options->group, groups = mb_gptq_groups(k, group), bytes = (k + 1) / 2;
    assert(k % group == 0);
    MB_TRY(gptq_check_values(value, n * k));
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        uint8_t *row = out_packed + r * bytes;
        memset(row, 0, (size_t)bytes);
        for (int64_t g = 0; g < groups; g++) {
            const float *w = value + r * k + g * group;
            const float scale = gptq_scale(gptq_most(w, group), options->stored);
            out_scale[r * groups + g] = scale;
            for (int64_t i = 0; i < group; i++)
                gptq_put(row, g * group + i, scale > 0 ? gptq_clamp(nearbyintf(w[i] / scale)) : 0);
        }
    }
    MB_TRY(gptq_check_scales(out_scale, n * groups));
done:
    return status;
}

/* ---- 2. the kernel ---- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&     \
    !defined(__SANITIZE_THREAD__)
#define GPTQ_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GPTQ_CLONES
#endif

/* c[r][0..8) += sum_i a[r][i] b[i][0..8) of 4 rows, i rising. */
GPTQ_CLONES static void gptq_tile(int64_t n, const double *a, int64_t stride, const double *b, double *c,
                                  int64_t out_stride)
{
    gptq_lanes sum[TILE];
    for (int r = 0; r < TILE; r++) memcpy(&sum[r], c + r * out_stride, sizeof sum[r]);
    for (int64_t i = 0; i < n; i++) {
        gptq_lanes row;
        memcpy(&row, b + i * LANES, sizeof row);
        for (int r = 0; r < TILE; r++) sum[r] += a[r * stride + i] * row;
    }
    for (int r = 0; r < TILE; r++) memcpy(c + r * out_stride, &sum[r], sizeof sum[r]);
}

static int64_t gptq_padded(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* ---- 3. order of columns, damping ---- */

typedef struct gptq_column {
    double diagonal;
    int64_t number;
} gptq_column;

static int gptq_by_diagonal(const void *a, const void *b)
{
    const gptq_column *x = a, *y = b;
    if (x->diagonal != y->diagonal) return x->diagonal > y->diagonal ? -1 : 1;
    return x->number < y->number ? -1 : 1;
}

static mb_status gptq_order(mb_gptq *g, const double *hessian)
{
    mb_status status = MB_OK;
    gptq_column *columns = NULL;
    const int64_t k = g->k;
    MB_NEW_ARRAY(columns, k);
    for (int64_t i = 0; i < k; i++) {
        columns[i] = (gptq_column){hessian[i * k + i], i};
        if (!isfinite(columns[i].diagonal) || columns[i].diagonal < 0)
            MB_RAISE(MB_ENUMERIC, "gptq: the Hessian's diagonal is %g at column %lld", columns[i].diagonal,
                     (long long)i);
    }
    if (g->options.act_order) qsort(columns, (size_t)k, sizeof *columns, gptq_by_diagonal);
    for (int64_t i = 0; i < k; i++) {
        g->order[i] = columns[i].number;
        g->is_dead[i] = columns[i].diagonal == 0;
        g->dead += g->is_dead[i];
    }
done:
    mb_free(columns);
    return status;
}

/* The Hessian in our order, reversed, with the damping: lower triangle of a [K padded, stride]. What stands
 * on the diagonal for a column never used moves no other. */
static void gptq_fill(const mb_gptq *g, const double *hessian, double damping, double *a, int64_t stride)
{
    const int64_t k = g->k;
    double mean = 0;
    for (int64_t i = 0; i < k; i++) mean += hessian[i * k + i];
    mean = mean > 0 ? mean / (double)k : 1;
#pragma omp parallel for schedule(static, 16) if (k >= ALONE)
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j <= i; j++) {
            const int64_t p = g->order[k - 1 - i], q = g->order[k - 1 - j];
            const double h = p > q ? hessian[p * k + q] : hessian[q * k + p];
            const bool is_dead = i == j && g->is_dead[k - 1 - i];
            a[i * stride + j] = (is_dead ? mean : h) + (i == j ? damping * mean : 0);
        }
}

/* ---- 4. factor ---- */

/* The square of STEP columns on the diagonal, in place. False: not positive definite. */
static bool gptq_factor_corner(double *a, int64_t stride, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        double d = a[j * stride + j];
        for (int64_t i = 0; i < j; i++) d -= a[j * stride + i] * a[j * stride + i];
        if (!(d > 0) || !isfinite(d)) return false;
        const double root = a[j * stride + j] = sqrt(d);
        for (int64_t r = j + 1; r < n; r++) {
            double x = a[r * stride + j];
            for (int64_t i = 0; i < j; i++) x -= a[r * stride + i] * a[j * stride + i];
            a[r * stride + j] = x / root;
        }
    }
    return true;
}

/* A row below it: x L^T = row, with the corner's transpose. */
static void gptq_solve(double *row, const double *corner, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        const double x = row[j] /= corner[j * STEP + j];
        for (int64_t c = j + 1; c < n; c++) row[c] -= x * corner[j * STEP + c];
    }
}

/* Lower Cholesky factor of a [rows padded to TILE, stride padded to LANES], in place. work: [stride, STEP],
 * what is added to the rest. */
static bool gptq_factor(double *a, int64_t k, int64_t stride, double *work)
{
    double corner[STEP * STEP];
    for (int64_t at = 0; at < k; at += STEP) {
        const int64_t n = k - at < STEP ? k - at : STEP, next = at + n;
        if (!gptq_factor_corner(a + at * stride + at, stride, n)) return false;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) corner[j * STEP + i] = a[(at + i) * stride + at + j];
#pragma omp parallel if (k >= ALONE)
        {
#pragma omp for schedule(static)
            for (int64_t r = next; r < k; r++) {
                double *row = a + r * stride + at;
                gptq_solve(row, corner, n);
                double *panel = work + (r - next) / LANES * LANES * STEP + (r - next) % LANES;
                for (int64_t i = 0; i < n; i++) panel[i * LANES] = -row[i];
            }
#pragma omp for schedule(dynamic, 4)
            for (int64_t r = next; r < k; r += TILE)
                for (int64_t c = next; c < r + TILE && c < k; c += LANES)
                    gptq_tile(n, a + r * stride + at, stride, work + (c - next) * STEP, a + r * stride + c,
                              stride);
        }
    }
    return true;
}

/* D and M's panels from the factor of the reversed matrix: M_ji = L_(K-1-j, K-1-i) / L_(K-1-i, K-1-i). */
static void gptq_panels(mb_gptq *g, const double *a, int64_t stride)
{
    const int64_t k = g->k, panels = (k + g->block - 1) / g->block * g->per;
#pragma omp parallel for schedule(dynamic, 1) if (k >= ALONE)
    for (int64_t p = 0; p < panels; p++) {
        const int64_t from = p / g->per * g->block, end = from + g->block < k ? from + g->block : k;
        const int64_t first = from + p % g->per * LANES;
        double *to = g->panels + g->panel[p];
        for (int64_t i = first; i < first + LANES && i < end; i++) {
            const double *column = a + (k - 1 - i); /* of L, downwards */
            const double root = column[(k - 1 - i) * stride];
            g->d[i] = root * root;
            for (int64_t j = 0; j < i; j++) to[j * LANES + i - first] = column[(k - 1 - j) * stride] / root;
        }
    }
}

/* Scales are those of the matrix as given; else a block is a group. */
static bool gptq_is_static(const mb_gptq *g)
{
    return g->options.act_order || g->options.group > MB_GPTQ_GROUP;
}

/* Where panels lie: that of a block has the rows above it and the block's own. */
static mb_status gptq_lay_out(mb_gptq *g)
{
    mb_status status = MB_OK;
    g->block = gptq_is_static(g) ? BLOCK : g->options.group;
    if (g->block > g->k) g->block = g->k;
    g->per = (g->block + LANES - 1) / LANES;
    const int64_t blocks = (g->k + g->block - 1) / g->block;
    MB_NEW_ARRAY(g->panel, blocks * g->per + 1);
    for (int64_t p = 0; p < blocks * g->per; p++) {
        const int64_t end = (p / g->per + 1) * g->block;
        g->panel[p + 1] = g->panel[p] + (end < g->k ? end : g->k) * LANES;
    }
    MB_NEW_ARRAY(g->panels, g->panel[blocks * g->per]);
done:
    return status;
}

static mb_status gptq_decompose(mb_gptq *g, const double *hessian)
{
    mb_status status = MB_OK;
    const int64_t k = g->k, stride = gptq_padded(k, LANES) + LANES;
    double *a = NULL, *work = NULL, damping = g->options.damping;
    MB_NEW_ARRAY(a, gptq_padded(k, TILE) * stride + (int64_t)TILE * stride);
    MB_NEW_ARRAY(work, stride * STEP);
    for (;;) {
        gptq_fill(g, hessian, damping, a, stride);
        if (gptq_factor(a, k, stride, work)) break;
        damping = damping > 0 ? damping * 10 : 1e-4;
        if (damping > 1)
            MB_RAISE(MB_ENUMERIC, "gptq: the Hessian cannot be factored, even with a damping of %g",
                     damping / 10);
    }
    g->damping = damping;
    MB_TRY(gptq_lay_out(g));
    gptq_panels(g, a, stride);
done:
    mb_free(a);
    mb_free(work);
    return status;
}

mb_status mb_gptq_create(const double *hessian, int64_t k, const mb_gptq_options *options, mb_gptq **out_gptq)
{
    mb_status status = MB_OK;
    mb_gptq *g = NULL;
    assert(k > 0 && k % options->group == 0 && (options->group <= MB_GPTQ_GROUP || options->group == k));
    MB_NEW(g);
    g->k = k;
    g->options = *options;
    MB_NEW_ARRAY(g->order, k);
    MB_NEW_ARRAY(g->is_dead, k);
    MB_NEW_ARRAY(g->d, k);
    MB_TRY(gptq_order(g, hessian));
    MB_TRY(gptq_decompose(g, hessian));
    *out_gptq = g;
    g = NULL;
done:
    mb_gptq_destroy(&g);
    return status;
}

void mb_gptq_destroy(mb_gptq **gptq)
{
    mb_gptq *g = *gptq;
    if (g == NULL) return;
    mb_free(g->order);
    mb_free(g->is_dead);
    mb_free(g->d);
    mb_free(g->panels);
    mb_free(g->panel);
    mb_free(g);
    *gptq = NULL;
}

double mb_gptq_damping(const mb_gptq *gptq)
{
    return gptq->damping;
}

int64_t mb_gptq_dead(const mb_gptq *gptq)
{
    return gptq->dead;
}

/* ---- 5. rows ---- */

/* ROWS rows at a time: w as given, in our order; error w - q of the columns that are done; moved: the block
 * at hand. */
typedef struct gptq_rows {
    int64_t stride, n;
    double *w, *error, *moved; /* [ROWS, stride], moved [ROWS, block padded] */
    double *loss;              /* [n] */
    float *scale;              /* [n, groups], the caller's */
    uint8_t *packed;
} gptq_rows;

static void gptq_rows_load(const mb_gptq *g, gptq_rows *t, const float *value)
{
    const int64_t groups = mb_gptq_groups(g->k, g->options.group);
    const bool is_static = gptq_is_static(g);
    memset(t->error, 0, (size_t)(ROWS * t->stride) * sizeof *t->error);
    memset(t->w, 0, (size_t)(ROWS * t->stride) * sizeof *t->w);
    for (int64_t r = 0; r < t->n; r++) {
        t->loss[r] = 0;
        if (is_static) memset(t->scale + r * groups, 0, (size_t)groups * sizeof *t->scale);
        for (int64_t i = 0; i < g->k; i++) {
            const float w = g->is_dead[i] ? 0 : value[r * g->k + g->order[i]];
            float *most = &t->scale[r * groups + g->order[i] / g->options.group];
            t->w[r * t->stride + i] = w;
            if (is_static) *most = fmaxf(*most, fabsf(w));
        }
        for (int64_t i = 0; is_static && i < groups; i++)
            t->scale[r * groups + i] = gptq_scale(t->scale[r * groups + i], g->options.stored);
    }
}

/* moved = w + the errors of all blocks before this one. */
static void gptq_rows_move(const mb_gptq *g, gptq_rows *t, int64_t from, int64_t width)
{
    const int64_t out = g->per * LANES, panel = from / g->block * g->per;
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < width; c++) t->moved[r * out + c] = t->w[r * t->stride + from + c];
    for (int64_t p = 0; p * LANES < width; p++)
        for (int64_t r = 0; r < t->n; r += TILE)
            gptq_tile(from, t->error + r * t->stride, t->stride, g->panels + g->panel[panel + p],
                      t->moved + r * out + p * LANES, out);
}

/* A column's error moves those behind it in the block. */
static void gptq_push(const mb_gptq *g, int64_t i, int64_t from, int64_t width, double error, double *moved)
{
    const int64_t panel = from / g->block * g->per;
    for (int64_t p = (i - from) / LANES; p * LANES < width; p++) {
        const double *row = g->panels + g->panel[panel + p] + i * LANES;
        for (int64_t l = 0; l < LANES; l++) moved[p * LANES + l] += error * row[l];
    }
}

/* The scale of a block that is a group, from where its columns will be moved to if nothing in it is lost by
 * rounding: what the paper's matrix holds when the group is reached. */
static float gptq_rows_scale(const mb_gptq *g, const gptq_rows *t, int64_t r, int64_t from, int64_t width)
{
    const double *w = t->w + r * t->stride + from;
    double ahead[MB_GPTQ_GROUP + LANES], most = 0;
    memcpy(ahead, t->moved + r * g->per * LANES, (size_t)(g->per * LANES) * sizeof *ahead);
    for (int64_t c = 0; c < width; c++) {
        most = fmax(most, fabs(ahead[c]));
        gptq_push(g, from + c, from, width, w[c] - ahead[c], ahead);
    }
    return gptq_scale((float)most, g->options.stored);
}

/* Round the block's columns of one row one by one. */
static void gptq_rows_round(const mb_gptq *g, gptq_rows *t, int64_t r, int64_t from, int64_t width)
{
    const int64_t groups = mb_gptq_groups(g->k, g->options.group), bytes = (g->k + 1) / 2;
    double *moved = t->moved + r * g->per * LANES;
    for (int64_t c = 0; c < width; c++) {
        const int64_t i = from + c, column = g->order[i];
        const double scale = t->scale[r * groups + column / g->options.group];
        const int q = scale > 0 ? gptq_clamp(nearbyint(moved[c] / scale)) : 0;
        const double error = t->w[r * t->stride + i] - q * scale, off = moved[c] - q * scale;
        t->error[r * t->stride + i] = error;
        t->loss[r] += g->d[i] * off * off;
        gptq_put(t->packed + r * bytes, column, q);
        gptq_push(g, i, from, width, error, moved);
    }
}

static void gptq_rows_run(const mb_gptq *g, gptq_rows *t)
{
    const int64_t groups = mb_gptq_groups(g->k, g->options.group);
    for (int64_t from = 0; from < g->k; from += g->block) {
        const int64_t width = g->k - from < g->block ? g->k - from : g->block;
        gptq_rows_move(g, t, from, width);
        for (int64_t r = 0; r < t->n; r++) {
            if (!gptq_is_static(g))
                t->scale[r * groups + from / g->options.group] = gptq_rows_scale(g, t, r, from, width);
            gptq_rows_round(g, t, r, from, width);
        }
    }
}

mb_status mb_gptq_run(const mb_gptq *gptq, const float *value, int64_t n, uint8_t *out_packed,
                      float *out_scale, double *out_loss)
{
    mb_status status = MB_OK;
    const int64_t k = gptq->k, bytes = (k + 1) / 2, groups = mb_gptq_groups(k, gptq->options.group);
    const int64_t tiles = (n + ROWS - 1) / ROWS, stride = gptq_padded(k, LANES);
    const int64_t each = 2 * ROWS * stride + ROWS * gptq->per * LANES;
    bool is_full = false;
    MB_TRY(gptq_check_values(value, n * k));
    memset(out_packed, 0, (size_t)(n * bytes));
#pragma omp parallel reduction(|| : is_full)
    {
        double *room = mb_calloc((size_t)each, sizeof *room);
        is_full = room == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t first = i * ROWS;
            if (room == NULL) continue;
            gptq_rows t = {.stride = stride,
                           .n = n - first < ROWS ? n - first : ROWS,
                           .w = room,
                           .error = room + ROWS * stride,
                           .moved = room + 2 * ROWS * stride,
                           .loss = out_loss + first,
                           .scale = out_scale + first * groups,
                           .packed = out_packed + first * bytes};
            gptq_rows_load(gptq, &t, value + first * k);
            gptq_rows_run(gptq, &t);
        }
        mb_free(room);
    }
    if (is_full) MB_RAISE(MB_ENOMEM, "gptq: no memory for rows of %lld columns", (long long)k);
    MB_TRY(gptq_check_scales(out_scale, n * groups));
done:
    return status;
}
