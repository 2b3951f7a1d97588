/* constraint.c: s of every token and layer, a loss on it, and back to the logits.
 *
 * Every loss is a function of s alone: the middle part fills slope[l][t] = dC/ds, the last part spreads it:
 * ds/dlogit is the softmax inside the upper set for its members and minus the softmax inside the lower set
 * for the others.
 *
 * 1. s   2. ratios   3. token losses   4. pair_rank   5. gradient   6. all together
 */
#include "learn/constraint.h"

#include <math.h>
#include <string.h>

#define RATIO_EDGE 13.815509557963773 /* log((1 - 1e-6) / 1e-6) */

static double softplus(double x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double sigmoid(double x)
{
    if (x >= 0) return 1.0 / (1.0 + exp(-x));
    double e = exp(x);
    return e / (1.0 + e);
}

/* ---- 1. s ---- */

/* Marks the upper set: the good experts, or the good ones among the picks. */
static void mark_upper(const mb_routing *routing, bool over_picks, const int32_t *picks, bool *upper)
{
    for (int64_t e = 0; e < routing->experts; e++) upper[e] = !over_picks && e < routing->good;
    for (int64_t k = 0; over_picks && k < routing->picks; k++) {
        if (picks[k] < routing->good) upper[picks[k]] = true;
    }
}

/* logsumexp over the members of one side; -inf when there is none. */
static double side_lse(const float *logits, int64_t n, const bool *upper, bool side)
{
    double top = -INFINITY, sum = 0;
    for (int64_t e = 0; e < n; e++) {
        if (upper[e] == side && logits[e] > top) top = logits[e];
    }
    if (top == -INFINITY) return top;
    for (int64_t e = 0; e < n; e++) {
        if (upper[e] == side) sum += exp((double)logits[e] - top);
    }
    return top + log(sum);
}

/* s of every row: s[l * rows + t]. */
static void compute_s(const mb_routing *routing, bool over_picks, double *s)
{
    int64_t rows = routing->rows, n = routing->experts;
#pragma omp parallel for schedule(static)                                                                    \
    num_threads(routing->threads) if (rows * routing->routers > MB_ROUTING_BLOCK)
    for (int64_t i = 0; i < rows * routing->routers; i++) {
        int64_t l = i / rows, t = i % rows;
        bool upper[MB_ROUTING_MAX_EXPERTS];
        const float *logits = routing->logits[l] + t * n;
        mark_upper(routing, over_picks, routing->ids == NULL ? NULL : routing->ids[l] + t * routing->picks,
                   upper);
        s[i] = side_lse(logits, n, upper, true) - side_lse(logits, n, upper, false);
        if (over_picks) s[i] = fmin(fmax(s[i], -RATIO_EDGE), RATIO_EDGE);
    }
}

/* ---- 2. ratios ---- */

static void measure_ratios(const double *s, int64_t routers, int64_t stride, int64_t rows,
                           mb_constraint_value *value)
{
    double all = 0;
    for (int64_t l = 0; l < routers; l++) {
        double sum = 0, squares = 0;
        for (int64_t t = 0; t < rows; t++) sum += sigmoid(s[l * stride + t]);
        double mean = sum / (double)rows;
        for (int64_t t = 0; t < rows; t++) {
            double apart = sigmoid(s[l * stride + t]) - mean;
            squares += apart * apart;
        }
        value->r_mean[l] = mean;
        value->r_var[l] = squares / (double)rows;
        all += mean;
    }
    value->mean_ratio = all / (double)routers;
}

/* ---- 3. token losses ---- */

/* (down) softplus(s) + (up) softplus(-s), mean over tokens and layers. */
static double pressure(const double *s, int64_t routers, int64_t stride, int64_t rows, double down, double up,
                       double *slope)
{
    double sum = 0, each = 1.0 / (double)(rows * routers);
    for (int64_t l = 0; l < routers; l++) {
        for (int64_t t = 0; t < rows; t++) {
            double x = s[l * stride + t];
            sum += down * softplus(x) + up * softplus(-x);
            slope[l * stride + t] = each * (down * sigmoid(x) - up * sigmoid(-x));
        }
    }
    return sum * each;
}

static double match_moments(const double *s, int64_t routers, int64_t stride, int64_t rows, double mean,
                            double var, const mb_constraint_value *value, double *slope)
{
    double sum = 0;
    for (int64_t l = 0; l < routers; l++) {
        double off_mean = value->r_mean[l] - mean, off_var = value->r_var[l] - var;
        double each = 2.0 / (double)(rows * routers);
        sum += off_mean * off_mean + off_var * off_var;
        for (int64_t t = 0; t < rows; t++) {
            double r = sigmoid(s[l * stride + t]);
            slope[l * stride + t] =
                each * (off_mean + 2.0 * off_var * (r - value->r_mean[l])) * r * sigmoid(-s[l * stride + t]);
        }
    }
    return sum / (double)routers;
}

/* ---- 4. pair_rank ---- */

/* One view: S[records] against losses. Adds dC/dS. */
static double rank_by_loss(const double *S, const double *loss, int64_t records, double sharpness,
                           double scale, double *d_S)
{
    double weight = 0, sum = 0;
    for (int64_t i = 0; i < records; i++) {
        for (int64_t j = 0; j < records; j++) {
            if (loss[j] > loss[i]) weight += loss[j] - loss[i];
        }
    }
    if (!(weight > 0)) return 0;
    for (int64_t i = 0; i < records; i++) {
        for (int64_t j = 0; j < records; j++) {
            if (!(loss[j] > loss[i])) continue;
            double share = (loss[j] - loss[i]) / weight, x = -sharpness * (S[i] - S[j]);
            double slope = scale * share * sharpness * sigmoid(x);
            sum += share * softplus(x);
            d_S[i] -= slope;
            d_S[j] += slope;
        }
    }
    return sum;
}

/* S[records] against their copies S[records..2 records). */
static double rank_copies(const double *S, int64_t records, double sharpness, double scale, double *d_S)
{
    double sum = 0, each = 1.0 / (double)records;
    for (int64_t i = 0; i < records; i++) {
        double x = -sharpness * (S[i] - S[records + i]), slope = scale * each * sharpness * sigmoid(x);
        sum += each * softplus(x);
        d_S[i] -= slope;
        d_S[records + i] += slope;
    }
    return sum;
}

static double anchor_ratio(const double *s, int64_t routers, int64_t stride, int64_t rows, double scale,
                           const mb_constraint_value *value, double *slope)
{
    double sum = 0;
    for (int64_t l = 0; l < routers; l++) {
        double off = value->r_mean[l] - 0.5, each = scale * 2.0 * off / (double)(rows * routers);
        sum += off * off;
        for (int64_t t = 0; t < rows; t++) {
            double x = s[l * stride + t];
            slope[l * stride + t] += each * sigmoid(x) * sigmoid(-x);
        }
    }
    return sum / (double)routers;
}

/* S[(routers+1)][segments]: means over the rows of each segment; the last view is the mean over layers. */
static void segment_means(const double *s, int64_t routers, int64_t stride,
                          const mb_constraint_segments *segments, double *S)
{
    int64_t n = segments->records + segments->copies;
    for (int64_t i = 0; i < n; i++) {
        double over_layers = 0;
        int64_t first = segments->offsets[i], end = segments->offsets[i + 1];
        for (int64_t l = 0; l < routers; l++) {
            double sum = 0;
            for (int64_t t = first; t < end; t++) sum += s[l * stride + t];
            S[l * n + i] = sum / (double)(end - first);
            over_layers += S[l * n + i];
        }
        S[routers * n + i] = over_layers / (double)routers;
    }
}

static void spread_segments(const double *d_S, int64_t routers, int64_t stride,
                            const mb_constraint_segments *segments, double *slope)
{
    int64_t n = segments->records + segments->copies;
    for (int64_t i = 0; i < n; i++) {
        int64_t first = segments->offsets[i], end = segments->offsets[i + 1];
        double shared = d_S[routers * n + i] / (double)routers;
        for (int64_t l = 0; l < routers; l++) {
            double each = (d_S[l * n + i] + shared) / (double)(end - first);
            for (int64_t t = first; t < end; t++) slope[l * stride + t] += each;
        }
    }
}

static bool is_single(const mb_constraint_segments *segments)
{
    int64_t with_loss = 0;
    for (int64_t i = 0; i < segments->records; i++) with_loss += !isnan(segments->loss[i]);
    return with_loss < 2;
}

static mb_status pair_rank(const mb_constraint_options *options, const double *s, int64_t routers,
                           int64_t stride, const mb_constraint_segments *segments, mb_arena *arena,
                           double *slope, mb_constraint_value *value)
{
    mb_status status = MB_OK;
    int64_t n = segments->records + segments->copies, views = routers + 1;
    double *S, *d_S, share = options->copy_share, each = 1.0 / (double)views;
    MB_ARENA_ARRAY(arena, S, views * n);
    MB_ARENA_ARRAY(arena, d_S, views * n);
    memset(d_S, 0, (size_t)(views * n) * sizeof *d_S);
    memset(slope, 0, (size_t)(routers * stride) * sizeof *slope);
    segment_means(s, routers, stride, segments, S);
    value->is_single = is_single(segments);
    for (int64_t v = 0; v < views; v++) {
        value->loss_rank += each * rank_by_loss(S + v * n, segments->loss, segments->records,
                                                options->sharpness, each * (1 - share), d_S + v * n);
        if (segments->copies == 0) continue;
        value->copy_rank +=
            each * rank_copies(S + v * n, segments->records, options->sharpness, each * share, d_S + v * n);
    }
    spread_segments(d_S, routers, stride, segments, slope);
    value->anchor = anchor_ratio(s, routers, stride, segments->offsets[segments->records],
                                 options->anchor_weight, value, slope);
    value->constraint =
        (1 - share) * value->loss_rank + share * value->copy_rank + options->anchor_weight * value->anchor;
done:
    return status;
}

/* ---- 5. gradient ---- */

static void spread_row(const mb_routing *routing, const float *logits, const bool *upper, double slope,
                       float *gradient)
{
    int64_t n = routing->experts;
    double up = side_lse(logits, n, upper, true), down = side_lse(logits, n, upper, false);
    for (int64_t e = 0; e < n; e++) {
        double part = upper[e] ? exp((double)logits[e] - up) : -exp((double)logits[e] - down);
        gradient[e] = (float)((double)gradient[e] + slope * part);
    }
}

static void add_gradient(const mb_routing *routing, bool over_picks, const double *s, const double *slope,
                         double scale, float *const *gradient)
{
    int64_t rows = routing->rows, n = routing->experts;
#pragma omp parallel for schedule(static)                                                                    \
    num_threads(routing->threads) if (rows * routing->routers > MB_ROUTING_BLOCK)
    for (int64_t i = 0; i < rows * routing->routers; i++) {
        if (slope[i] == 0 || (over_picks && fabs(s[i]) >= RATIO_EDGE)) continue;
        int64_t l = i / rows, t = i % rows;
        bool upper[MB_ROUTING_MAX_EXPERTS];
        mark_upper(routing, over_picks, routing->ids == NULL ? NULL : routing->ids[l] + t * routing->picks,
                   upper);
        spread_row(routing, routing->logits[l] + t * n, upper, scale * slope[i], gradient[l] + t * n);
    }
}

/* ---- 6. all together ---- */

static mb_status run_kind(const mb_constraint_options *options, const mb_routing *routing,
                          const mb_constraint_segments *segments, const double *s, mb_arena *arena,
                          double *slope, mb_constraint_value *value)
{
    int64_t routers = routing->routers, stride = routing->rows, rows = segments->offsets[segments->records];
    switch (options->kind) {
    case MB_CONSTRAINT_NONE:
        break;
    case MB_CONSTRAINT_BETA_NLL:
        value->constraint = pressure(s, routers, stride, rows, options->beta - 1, options->alpha - 1, slope);
        break;
    case MB_CONSTRAINT_BARRIER:
        value->constraint = pressure(s, routers, stride, rows, options->beta - 1, 1, slope);
        break;
    case MB_CONSTRAINT_MOMENT_MATCHING:
        value->constraint =
            match_moments(s, routers, stride, rows, options->mean, options->var, value, slope);
        break;
    case MB_CONSTRAINT_PAIR_RANK:
        return pair_rank(options, s, routers, stride, segments, arena, slope, value);
    }
    return MB_OK;
}

mb_status mb_constraint_loss(const mb_constraint_options *options, const mb_routing *routing,
                             const mb_constraint_segments *segments, double scale, mb_arena *arena,
                             float *const *opt_gradient, mb_constraint_value *out_value)
{
    mb_status status = MB_OK;
    mb_constraint_value value = {0};
    double *s, *slope;
    int64_t all = routing->routers * routing->rows;
    MB_ARENA_ARRAY(arena, value.r_mean, routing->routers);
    MB_ARENA_ARRAY(arena, value.r_var, routing->routers);
    MB_ARENA_ARRAY(arena, s, all);
    MB_ARENA_ARRAY(arena, slope, all);
    memset(slope, 0, (size_t)all * sizeof *slope);
    compute_s(routing, options->over_picks, s);
    measure_ratios(s, routing->routers, routing->rows, segments->offsets[segments->records], &value);
    MB_TRY(run_kind(options, routing, segments, s, arena, slope, &value));
    if (opt_gradient != NULL && options->kind != MB_CONSTRAINT_NONE) {
        add_gradient(routing, options->over_picks, s, slope, scale, opt_gradient);
    }
    *out_value = value;
done:
    return status;
}
