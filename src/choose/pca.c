/* pca: covariance by panels of rows, its two largest eigenvalues by subspace iteration.
 *
 * A subspace of up to 16 directions is multiplied by the covariance until the residuals of the two leading
 * ones vanish; its error falls by the ratio of the 17th eigenvalue to the 2nd in every step.
 *
 * 1. covariance   2. a small eigenproblem   3. subspace iteration   4. the plane
 */
#include "choose/pca.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "choose/kmeans_state.h"

enum { DIRECTIONS = 16, MOST_STEPS = 10000, HIGH = MB_ROW_GRAM_HEIGHT, WIDE = MB_ROW_GRAM_WIDTH };

/* ---- 1. covariance ---- */

typedef struct covariance {
    const mb_rows *rows;
    const mb_row_products *loops;
    int threads;
    int64_t stride; /* columns, padded by zeros to whole tiles */
    double *mean;   /* [width] */
    double *unit;   /* [stride] scale of column i times that of column j is the scale of their product */
    float *panel;   /* [PANEL, stride] rows less the mean */
    int64_t *sum;   /* [stride, stride], on and above the diagonal */
} covariance;

static void centre_panel(const covariance *c, int64_t first, int64_t n)
{
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < n; r++) {
        const float *row = c->rows->data + (first + r) * c->rows->width;
        for (int64_t d = 0; d < c->rows->width; d++)
            c->panel[r * c->stride + d] = (float)((double)row[d] - c->mean[d]);
    }
}

/* Products of 8 columns with 32, summed over a panel in f32, and added as integers. */
static void add_tile(const covariance *c, int64_t n, int64_t i, int64_t j)
{
    float out[HIGH * WIDE];
    c->loops->gram(c->panel, n, c->stride, i, j, out);
    for (int a = 0; a < HIGH; a++) {
        int64_t *sum = c->sum + (i + a) * c->stride + j;
        for (int b = 0; b < WIDE; b++) {
            const double shifter = 0x1.8p52,
                         value = (double)out[a * WIDE + b] * (c->unit[i + a] * c->unit[j + b]) + shifter;
            int64_t bits, zero;
            memcpy(&bits, &value, sizeof bits);
            memcpy(&zero, &shifter, sizeof zero);
            sum[b] += bits - zero;
        }
    }
}

static void add_panel(const covariance *c, int64_t n)
{
    const int64_t high = c->stride / HIGH, wide = c->stride / WIDE;
#pragma omp parallel for num_threads(c->threads) schedule(dynamic, 8)
    for (int64_t t = 0; t < high * wide; t++) {
        const int64_t i = t / wide * HIGH, j = t % wide * WIDE;
        if (j + WIDE > i) add_tile(c, n, i, j);
    }
}

/* cov [width, width], symmetric, divided by N - 1. Collective. */
static mb_status sum_covariance(mb_comm *comm, covariance *c, double *cov)
{
    mb_status status = MB_OK;
    const int64_t width = c->rows->width;
    const double divisor = c->rows->total > 1 ? (double)(c->rows->total - 1) : 1;
    for (int64_t first = 0; first < c->rows->count; first += MB_ROWS_PANEL) {
        const int64_t left = c->rows->count - first, n = left < MB_ROWS_PANEL ? left : MB_ROWS_PANEL;
        centre_panel(c, first, n);
        add_panel(c, n);
    }
    MB_TRY(mb_comm_allreduce_i64(comm, c->sum, c->stride * c->stride, MB_COMM_SUM));
    for (int64_t i = 0; i < width; i++)
        for (int64_t j = i; j < width; j++)
            cov[i * width + j] = cov[j * width + i] =
                (double)c->sum[i * c->stride + j] / (c->unit[i] * c->unit[j]) / divisor;
done:
    return status;
}

/* unit[d] = 2^(share of the bits) / a bound of |x - mean|: panel sums of products stay below 2^50, and all of
 * them together below 2^62. */
static void set_units(covariance *c, const mb_row_columns *columns)
{
    const int bits = mb_rows_bits(c->rows->total) < 42 ? mb_rows_bits(c->rows->total) : 42;
    for (int64_t d = 0; d < c->stride; d++) {
        const int exponent = d < c->rows->width ? mb_rows_exponent(2 * columns->largest[d]) : 0;
        c->unit[d] = ldexp(1, bits / 2 - exponent);
    }
}

/* ---- 2. a small eigenproblem ---- */

/* Jacobi: a [n, n] symmetric (becomes diagonal), v [n, n] eigenvectors as columns, largest value first in
 * order. */
static void jacobi(int n, double *a, double *v, int *order)
{
    for (int i = 0; i < n * n; i++) v[i] = i % (n + 1) == 0;
    for (int sweep = 0; sweep < 60; sweep++) {
        double off = 0, all = 0;
        for (int i = 0; i < n * n; i++) all += a[i] * a[i];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < i; j++) off += a[i * n + j] * a[i * n + j];
        if (off <= 1e-34 * all) break;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) {
                if (a[p * n + q] == 0) continue;
                const double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]),
                             t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1)),
                             c = 1 / sqrt(t * t + 1), s = t * c;
                for (int i = 0; i < n; i++) {
                    const double x = a[i * n + p], y = a[i * n + q];
                    a[i * n + p] = c * x - s * y;
                    a[i * n + q] = s * x + c * y;
                }
                for (int i = 0; i < n; i++) {
                    const double x = a[p * n + i], y = a[q * n + i];
                    a[p * n + i] = c * x - s * y;
                    a[q * n + i] = s * x + c * y;
                }
                for (int i = 0; i < n; i++) {
                    const double x = v[i * n + p], y = v[i * n + q];
                    v[i * n + p] = c * x - s * y;
                    v[i * n + q] = s * x + c * y;
                }
            }
    }
    for (int i = 0; i < n; i++) {
        int at = i;
        for (; at > 0 && a[order[at - 1] * (n + 1)] < a[i * (n + 1)]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
}

/* ---- 3. subspace iteration ---- */

static double dot(const double *a, const double *b, int64_t n)
{
    double sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) sum[j] += a[i + j] * b[i + j];
    for (; i < n; i++) sum[0] += a[i] * b[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Rows of v [n, width] to length 1 and right angles, twice over against rounding; what is left of a dependent
 * one becomes zeros. */
static void straighten(int n, int64_t width, double *v)
{
    for (int i = 0; i < n; i++) {
        double *own = v + i * width;
        const double before = sqrt(dot(own, own, width));
        for (int pass = 0; pass < 2; pass++)
            for (int j = 0; j < i; j++) {
                const double along = dot(own, v + j * width, width);
                for (int64_t d = 0; d < width; d++) own[d] -= along * v[j * width + d];
            }
        const double length = sqrt(dot(own, own, width)), factor = length > 1e-13 * before ? 1 / length : 0;
        for (int64_t d = 0; d < width; d++) own[d] *= factor;
    }
}

typedef struct subspace {
    int n, threads;
    int64_t width;
    const double *cov;
    double *v, *image, *turned; /* [n, width] */
} subspace;

/* image = v times cov. */
static void multiply(subspace *s)
{
#pragma omp parallel for num_threads(s->threads) schedule(static)
    for (int64_t d = 0; d < s->width; d++)
        for (int i = 0; i < s->n; i++)
            s->image[i * s->width + d] = dot(s->cov + d * s->width, s->v + i * s->width, s->width);
}

/* to = the rows of from turned into the eigenvectors w (columns, by order). */
static void turn(const subspace *s, const double *w, const int *order, const double *from, double *to)
{
    for (int i = 0; i < s->n; i++)
        for (int64_t d = 0; d < s->width; d++) {
            double sum = 0;
            for (int j = 0; j < s->n; j++) sum += w[j * s->n + order[i]] * from[j * s->width + d];
            to[i * s->width + d] = sum;
        }
}

/* One step; values of the two leading directions, which are then the first rows of v. Are they found? */
static bool step(subspace *s, double *values)
{
    double small[DIRECTIONS * DIRECTIONS], w[DIRECTIONS * DIRECTIONS];
    int order[DIRECTIONS];
    bool is_found = true;
    const int axes = s->n < MB_PCA_AXES ? s->n : MB_PCA_AXES;
    multiply(s);
    for (int i = 0; i < s->n; i++)
        for (int j = 0; j <= i; j++)
            small[i * s->n + j] = small[j * s->n + i] =
                dot(s->v + i * s->width, s->image + j * s->width, s->width);
    jacobi(s->n, small, w, order);
    turn(s, w, order, s->image, s->turned);
    turn(s, w, order, s->v, s->image); /* the directions; s->turned is their image */
    for (int i = 0; i < axes; i++) {
        double residual = 0;
        values[i] = small[order[i] * (s->n + 1)];
        for (int64_t d = 0; d < s->width; d++) {
            const double rest = s->turned[i * s->width + d] - values[i] * s->image[i * s->width + d];
            residual += rest * rest;
        }
        is_found = is_found && sqrt(residual) <= 1e-11 * fabs(values[0]);
    }
    memcpy(s->v, is_found ? s->image : s->turned, (size_t)(s->n * s->width) * sizeof *s->v);
    if (!is_found) straighten(s->n, s->width, s->v);
    return is_found;
}

/* The two leading directions of cov into axes, their values. The same on every rank. */
static mb_status find_axes(const double *cov, int64_t width, int threads, double *axes, double *values)
{
    mb_status status = MB_OK;
    subspace s = {
        .n = width < DIRECTIONS ? (int)width : DIRECTIONS, .threads = threads, .width = width, .cov = cov};
    MB_NEW_ARRAY(s.v, s.n * width);
    MB_NEW_ARRAY(s.image, s.n * width);
    MB_NEW_ARRAY(s.turned, s.n * width);
    for (int64_t i = 0; i < s.n * width; i++)
        s.v[i] = mb_rng_normal(1, MB_KMEANS_STREAM, 0xFFFE, (uint64_t)i);
    straighten(s.n, width, s.v);
    int steps = 0;
    while (!step(&s, values))
        if (++steps == MOST_STEPS)
            MB_RAISE(MB_ENUMERIC, "the axes of the plane were not found in %d steps", MOST_STEPS);
    for (int i = 0; i < MB_PCA_AXES && i < s.n; i++) {
        const double *from = s.v + i * width;
        int64_t most = 0;
        for (int64_t d = 0; d < width; d++)
            if (fabs(from[d]) > fabs(from[most])) most = d;
        const double sign = values[i] <= 1e-12 * values[0] ? 0 : from[most] < 0 ? -1 : 1;
        for (int64_t d = 0; d < width; d++) axes[i * width + d] = sign * from[d];
        if (sign == 0) values[i] = 0;
    }
done:
    mb_free(s.v);
    mb_free(s.image);
    mb_free(s.turned);
    return status;
}

/* ---- 4. the plane ---- */

void mb_pca_reset(mb_pca *pca)
{
    mb_free(pca->plane);
    mb_free(pca->mean);
    mb_free(pca->axes);
    *pca = (mb_pca){0};
}

static void project(const mb_rows *rows, int threads, mb_pca *pca)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows->count; i++) {
        const float *row = rows->data + i * rows->width;
        double sum[MB_PCA_AXES] = {0};
        for (int64_t d = 0; d < rows->width; d++)
            for (int a = 0; a < MB_PCA_AXES; a++)
                sum[a] += ((double)row[d] - pca->mean[d]) * pca->axes[a * rows->width + d];
        for (int a = 0; a < MB_PCA_AXES; a++) pca->plane[i * MB_PCA_AXES + a] = (float)sum[a];
    }
}

static mb_status create(const mb_rows *rows, covariance *c, double **out_cov, mb_pca *pca)
{
    mb_status status = MB_OK;
    pca->width = rows->width;
    pca->count = rows->count;
    c->stride = (rows->width + WIDE - 1) / WIDE * WIDE;
    MB_NEW_ARRAY(pca->plane, rows->count * MB_PCA_AXES);
    MB_NEW_ARRAY(pca->mean, rows->width);
    MB_NEW_ARRAY(pca->axes, rows->width * MB_PCA_AXES);
    MB_NEW_ARRAY(*out_cov, rows->width * rows->width);
    MB_NEW_ARRAY(c->unit, c->stride);
    MB_NEW_ARRAY(c->panel, MB_ROWS_PANEL * c->stride);
    MB_NEW_ARRAY(c->sum, c->stride * c->stride);
    c->mean = pca->mean;
done:
    return status;
}

mb_status mb_pca_run(mb_comm *comm, const mb_rows *rows, int threads, const char *opt_isa, mb_pca *out_pca)
{
    mb_status status = MB_OK;
    mb_pca pca = {0};
    covariance c = {.rows = rows,
                    .loops = mb_row_products_get(opt_isa),
                    .threads = threads > 0 ? threads : omp_get_max_threads()};
    double *cov = NULL;
    mb_row_columns columns = {0};
    if (c.loops == NULL) MB_RAISE(MB_EUNSUPPORTED, "MB_ISA=%s: not known, or not on this processor", opt_isa);
    MB_TRY(mb_comm_agree(comm, create(rows, &c, &cov, &pca)));
    MB_TRY(mb_rows_columns(comm, rows, c.threads, c.loops, &columns));
    memcpy(pca.mean, columns.mean, (size_t)rows->width * sizeof *pca.mean);
    set_units(&c, &columns);
    MB_TRY(sum_covariance(comm, &c, cov));
    for (int64_t d = 0; d < rows->width; d++) pca.total += cov[d * (rows->width + 1)];
    MB_TRY(mb_comm_agree(comm, find_axes(cov, rows->width, c.threads, pca.axes, pca.variance)));
    project(rows, c.threads, &pca);
    *out_pca = pca;
    pca = (mb_pca){0};
done:
    mb_pca_reset(&pca);
    mb_rows_columns_reset(&columns);
    mb_free(cov);
    mb_free(c.unit);
    mb_free(c.panel);
    mb_free(c.sum);
    return status;
}
