/* rows_loss (ref): cross-entropy and the distance to a teacher by their definitions, in f64, a row at a
 * time.
 *
 * Buckets: the tokens the teacher lists, one each, then all others as one where there are any. With p the
 * student's probabilities at T and q the teacher's, s = ln p up to a constant, the gradient of the distance
 * is dD/ds_b = p_b (g_b - sum p g) with g_b = dD/dp_b; a token of the last bucket has its share of that
 * bucket's.
 */
#include <math.h>
#include <string.h>

#include "ops/ref/ref.h"

enum { CHUNK = 16 }; /* rows at one time */

/* A row's buckets: s, then ln p; ln q; dD/ds. */
typedef struct row_room {
    double *p, *q, *gradient; /* [V + 1] */
    double *share;            /* [V] of a token in the last bucket; 0: it has a bucket of its own */
} row_room;

typedef struct rows_work {
    int64_t v;
    float *logits;
    const int32_t *opt_targets;
    const mb_teacher_rows *opt_teacher;
    const float *opt_row_weight;
    float *opt_ce, *opt_distance;
    int32_t *opt_argmax;
} rows_work;

static double log_of_sum(const double *x, int64_t n)
{
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    if (top == -INFINITY) return top;
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - top);
    return log(sum) + top;
}

/* Token of bucket b. */
static int64_t token_of(const mb_teacher_rows *teacher, int64_t t, int64_t b)
{
    return teacher->opt_dense != NULL ? b : teacher->ids[t * teacher->k + b];
}

/* ln p and ln q of the row's buckets, and the shares within the last. Returns how many there are. */
static int64_t fill_buckets(const rows_work *work, int64_t t, row_room *room)
{
    const mb_teacher_rows *teacher = work->opt_teacher;
    const float *logits = work->logits + t * work->v;
    const bool is_dense = teacher->opt_dense != NULL;
    const int64_t v = work->v, listed = is_dense ? v : teacher->k;
    const float *known = is_dense ? teacher->opt_dense + t * v : teacher->logprob + t * listed;
    const double temperature = teacher->temperature;
    int64_t n = listed;
    for (int64_t j = 0; j < v; j++) room->share[j] = logits[j] / temperature;
    for (int64_t b = 0; b < listed; b++) {
        room->p[b] = room->share[token_of(teacher, t, b)];
        room->q[b] = known[b] / temperature;
    }
    for (int64_t b = 0; b < listed; b++) room->share[token_of(teacher, t, b)] = -INFINITY;
    if (listed < v) {
        room->p[n] = log_of_sum(room->share, v);
        room->q[n] = teacher->tail[t];
        for (int64_t j = 0; j < v; j++) room->share[j] = exp(room->share[j] - room->p[n]);
        n++;
    }
    const double p_all = log_of_sum(room->p, n), q_all = log_of_sum(room->q, n);
    for (int64_t b = 0; b < n; b++) room->p[b] -= p_all, room->q[b] -= q_all;
    return n;
}

/* A bucket's part of D, and dD/dp but for a constant that is the same for all buckets; x, y: ln p, ln q. */
static double bucket_part(double beta, double x, double y, double *out_slope)
{
    const double p = exp(x), q = exp(y), least = (double)MB_ROWS_LEAST;
    if (beta == 0) return q != 0 ? q * (y - x) : 0; /* its gradient needs no slope */
    if (beta == 1) {
        *out_slope = x - (y < least ? least : y);
        return p * *out_slope;
    }
    const double m = log_of_sum((double[]){x + log1p(-beta), y + log(beta)}, 2);
    *out_slope = (1 - beta) * (x - m);
    return p * *out_slope + (q != 0 ? beta * q * (y - m) : 0);
}

/* D of n buckets; room->gradient gets dD/ds. */
static double distance(double beta, int64_t n, row_room *room)
{
    double sum = 0, mean = 0;
    for (int64_t b = 0; b < n; b++) {
        sum += bucket_part(beta, room->p[b], room->q[b], &room->gradient[b]);
        if (beta == 0) continue;
        mean += exp(room->p[b]) * room->gradient[b];
    }
    for (int64_t b = 0; b < n; b++) {
        const double p = exp(room->p[b]);
        room->gradient[b] = beta == 0 ? p - exp(room->q[b]) : p * (room->gradient[b] - mean);
    }
    return sum;
}

/* logsumexp of the row's logits; the first largest. */
static double row_sum(const float *logits, int64_t v, int32_t *out_argmax)
{
    int64_t best = 0;
    double sum = 0;
    for (int64_t j = 1; j < v; j++)
        if (logits[j] > logits[best]) best = j;
    for (int64_t j = 0; j < v; j++) sum += exp((double)logits[j] - logits[best]);
    *out_argmax = (int32_t)best;
    return log(sum) + logits[best];
}

/* weight times the row loss's gradient over the row's logits; `all`: their logsumexp. */
static void write_gradient(const rows_work *work, int64_t t, double all, int64_t buckets, row_room *room)
{
    const mb_teacher_rows *teacher = work->opt_teacher;
    const int64_t v = work->v, target = work->opt_targets != NULL ? work->opt_targets[t] : -1;
    const double weight = work->opt_row_weight[t];
    const double task = weight * (teacher != NULL ? teacher->task_weight : 1);
    float *logits = work->logits + t * v;
    if (weight == 0) {
        memset(logits, 0, (size_t)v * sizeof *logits);
        return;
    }
    if (teacher != NULL) {
        for (int64_t j = 0; j < v; j++) room->share[j] *= room->gradient[buckets - 1];
        const int64_t listed = teacher->opt_dense != NULL ? v : teacher->k;
        for (int64_t b = 0; b < listed; b++) room->share[token_of(teacher, t, b)] = room->gradient[b];
    }
    const double distil = teacher != NULL ? weight * teacher->distil_weight * teacher->temperature : 0;
    for (int64_t j = 0; j < v; j++) {
        double sum = teacher != NULL ? distil * room->share[j] : 0;
        if (task != 0) sum += task * (exp(logits[j] - all) - (j == target));
        logits[j] = (float)sum;
    }
}

static void run_row(const rows_work *work, int64_t t, row_room *room)
{
    const float *logits = work->logits + t * work->v;
    int64_t buckets = 0;
    int32_t best;
    const double all = row_sum(logits, work->v, &best);
    if (work->opt_argmax != NULL) work->opt_argmax[t] = best;
    if (work->opt_ce != NULL) work->opt_ce[t] = (float)(all - logits[work->opt_targets[t]]);
    if (work->opt_teacher != NULL) {
        buckets = fill_buckets(work, t, room);
        const double d = distance(work->opt_teacher->beta, buckets, room);
        if (work->opt_distance != NULL) work->opt_distance[t] = (float)d;
    }
    if (work->opt_row_weight != NULL) write_gradient(work, t, all, buckets, room);
}

mb_status mb_rows_loss_ref(mb_ops *ops, mb_tensor *logits, const int32_t *opt_targets,
                           const mb_teacher_rows *opt_teacher, mb_tensor *opt_ce, mb_tensor *opt_distance,
                           int32_t *opt_argmax, const float *opt_row_weight)
{
    mb_status status = MB_OK;
    const int64_t n = mb_ops_rows(logits), v = mb_ops_width(logits), chunk = n < CHUNK ? n : CHUNK;
    double *room = NULL;
    const rows_work work = {.v = v,
                            .logits = mb_tensor_f32(logits),
                            .opt_targets = opt_targets,
                            .opt_teacher = opt_teacher,
                            .opt_row_weight = opt_row_weight,
                            .opt_ce = opt_ce != NULL ? mb_tensor_f32(opt_ce) : NULL,
                            .opt_distance = opt_distance != NULL ? mb_tensor_f32(opt_distance) : NULL,
                            .opt_argmax = opt_argmax};
    MB_ARENA_ARRAY(ops->scratch, room, chunk * 4 * (v + 1));
    for (int64_t first = 0; first < n; first += chunk) {
        const int64_t rows = n - first < chunk ? n - first : chunk;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t r = 0; r < rows; r++) {
            double *at = room + r * 4 * (v + 1);
            row_room own = {at, at + (v + 1), at + 2 * (v + 1), at + 3 * (v + 1)};
            run_row(&work, first + r, &own);
        }
    }
done:
    return status;
}
