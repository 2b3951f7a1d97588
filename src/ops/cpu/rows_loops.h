/* rows_loops: a row of logits beside a teacher: cross-entropy, distance, gradient. Part of kernels_body.h.
 *
 * Layer: ops (cpu backend, internal).
 *
 * The tokens a teacher lists are taken out of the row: copied to `room`, and in the row set so low that their
 * exponentials are 0. What stays is the last bucket, summed relative to its own largest, so that it is
 * neither lost beside the others nor the small difference of two sums. A dense teacher lists the whole row,
 * which is worked on where it lies. The row is read once for its largest and once for its sums; with a
 * gradient the exponentials of the last bucket are kept in it and read once more. exp(z) comes from
 * exp(z / T) by a product or a root where 2 T is a whole number up to 6; else it is an exponential of its
 * own.
 *
 * 1. sums of exponentials   2. listed tokens   3. the last bucket   4. a row
 */

/* ---- 1. sums of exponentials ---- */

/* How logits are sharpened: 1 / T; 2 T when it is 1 to 6, else 0; is the sum at temperature 1 wanted. */
typedef struct rows_temper {
    float inverse;
    int halves;
    bool has_one;
} rows_temper;

typedef struct rows_sums {
    double at_t, at_1;
} rows_sums;

/* exp(x) of x below 0, given e = exp(x / T). */
static inline mb_vf rows_sharpen(mb_vf e, mb_vf x, int halves)
{
    switch (halves) {
    case 1:
        return vf_sqrt(e);
    case 2:
        return e;
    case 3:
        return e * vf_sqrt(e);
    case 4:
        return e * e;
    case 5:
        return e * e * vf_sqrt(e);
    case 6:
        return e * e * e;
    default:
        return vf_exp(x);
    }
}

/* Vector i of a range whose end is filled up. */
static inline mb_vf rows_load(const float *x, int64_t i, int64_t n, float filler)
{
    if (n - i >= W) return vf_load(x + i);
    float last[W];
    for (int64_t j = 0; j < W; j++) last[j] = i + j < n ? x[i + j] : filler;
    return vf_load(last);
}

/* Sums of exp((x - top) / T) and exp(x - top), in f64 over blocks of 4096; opt_y keeps the former. */
static rows_sums rows_sum(const float *x, int64_t n, float top, const rows_temper *temper, float *opt_y)
{
    rows_sums sums = {0, 0};
    const mb_vf shift = vf_set(top), inverse = vf_set(temper->inverse);
    const float filler = top - 200.0f / temper->inverse;
    for (int64_t block = 0; block < n; block += 4096) {
        const int64_t end = block + 4096 < n ? block + 4096 : n;
        mb_vf s = vf_set(0), s1 = s;
        for (int64_t i = block; i < end; i += W) {
            const mb_vf off = rows_load(x, i, end, filler) - shift, e = vf_exp(off * inverse);
            if (opt_y != NULL) store_at(opt_y, i, end, e);
            s = s + e;
            if (temper->has_one) s1 = s1 + rows_sharpen(e, off, temper->halves);
        }
        sums.at_t += (double)vf_sum(s);
        sums.at_1 += (double)vf_sum(s1);
    }
    return sums;
}

/* ln(e^a + e^b), either -INFINITY or not. */
static inline double rows_join(double a, double b)
{
    const double top = a > b ? a : b;
    if (top == -INFINITY) return top;
    return top + log(exp(a - top) + exp(b - top));
}

/* ---- 2. listed tokens ---- */

enum { ROWS_FORWARD, ROWS_REVERSE, ROWS_JSD };
#define ROWS_FAR 10000.0f /* ln p - ln q beyond this is cut off: what it is multiplied with is 0 */

typedef struct rows_listed {
    const float *z, *known; /* [n] logits, the teacher's ln p */
    int64_t n;
    float z_top, known_top;
    float p_shift, q_shift; /* ln p = (z - z_top) / T + p_shift; ln q likewise */
    float one_scale;        /* softmax at temperature 1 = exp(z - z_top) one_scale */
    const rows_temper *temper;
    float beta, distil, task;
    double mean; /* of dD/dp over all buckets */
} rows_listed;

/* Sum of the parts of D and of dD/dp, and with opt_out distil * dD/ds + task * softmax (out may be z). */
static inline __attribute__((always_inline)) rows_sums rows_pass(const rows_listed *l, int kind,
                                                                 bool has_sums, float *opt_out)
{
    rows_sums sums = {0, 0};
    const mb_vf inverse = vf_set(l->temper->inverse), z_top = vf_set(l->z_top), q_top = vf_set(l->known_top);
    const mb_vf p_shift = vf_set(l->p_shift), q_shift = vf_set(l->q_shift), p_scale = vf_exp(p_shift);
    const mb_vf beta = vf_set(l->beta), other = vf_set(1 - l->beta), mean = vf_set((float)l->mean);
    const mb_vf distil = vf_set(l->distil), task = vf_set(l->task * l->one_scale);
    const float far = 200.0f / l->temper->inverse;
    for (int64_t block = 0; block < l->n; block += 4096) {
        const int64_t end = block + 4096 < l->n ? block + 4096 : l->n;
        mb_vf s = vf_set(0), s1 = s;
        for (int64_t i = block; i < end; i += W) {
            const mb_vf off = rows_load(l->z, i, end, l->z_top - far) - z_top, at_t = off * inverse;
            const mb_vf known = rows_load(l->known, i, end, l->known_top - far) - q_top;
            const mb_vf x = at_t + p_shift, y = vf_fma(known, inverse, q_shift), e = vf_exp(at_t);
            const mb_vf p = e * p_scale, q = kind == ROWS_REVERSE ? p : vf_exp(y);
            const mb_vf ratio = vf_max(vf_set(-ROWS_FAR), vf_min(vf_set(ROWS_FAR), y - x));
            mb_vf slope = p - p, part;
            if (kind == ROWS_FORWARD) {
                part = q * ratio;
            } else if (kind == ROWS_REVERSE) {
                slope = x - vf_max(vf_set(MB_ROWS_LEAST), y);
                part = p * slope;
            } else {
                const mb_vf near = vf_min(vf_set(88.0f), ratio);
                const mb_vf below = vf_set(0) - vf_log(vf_fma(beta, vf_exp(near), other)); /* ln p - ln m */
                slope = other * below;
                part = vf_fma(p, slope, beta * q * (below + near));
            }
            if (has_sums) s = s + part;
            if (has_sums && kind != ROWS_FORWARD) s1 = vf_fma(p, slope, s1);
            if (opt_out == NULL) continue;
            const mb_vf gradient = kind == ROWS_FORWARD ? p - q : p * (slope - mean);
            const mb_vf one = rows_sharpen(e, off, l->temper->halves);
            store_at(opt_out, i, end, vf_fma(distil, gradient, task * one));
        }
        sums.at_t += (double)vf_sum(s);
        sums.at_1 += (double)vf_sum(s1);
    }
    return sums;
}

static rows_sums rows_distances(const rows_listed *l, int kind)
{
    if (kind == ROWS_FORWARD) return rows_pass(l, ROWS_FORWARD, true, NULL);
    return kind == ROWS_REVERSE ? rows_pass(l, ROWS_REVERSE, true, NULL) : rows_pass(l, ROWS_JSD, true, NULL);
}

/* With the sums too where the gradient does not wait for them. */
static rows_sums rows_gradients(const rows_listed *l, int kind, float *out)
{
    if (kind == ROWS_FORWARD) return rows_pass(l, ROWS_FORWARD, true, out);
    return kind == ROWS_REVERSE ? rows_pass(l, ROWS_REVERSE, false, out) : rows_pass(l, ROWS_JSD, false, out);
}

/* ---- 3. the last bucket ---- */

/* Its part of D and, in *out_slope, dD/dp; x, y: ln p, ln q. */
static double rows_bucket(int kind, double beta, double x, double y, double *out_slope)
{
    const double p = exp(x), q = exp(y), least = (double)MB_ROWS_LEAST;
    *out_slope = 0;
    if (kind == ROWS_FORWARD) return q != 0 ? q * (y - x) : 0;
    if (kind == ROWS_REVERSE) {
        *out_slope = x - (y < least ? least : y);
        return p * *out_slope;
    }
    const double m = rows_join(x + log1p(-beta), y + log(beta));
    *out_slope = (1 - beta) * (x - m);
    return p * *out_slope + (q != 0 ? beta * q * (y - m) : 0);
}

/* x = share * exp((x - top) / T) + one * exp(x - top); is_kept: x holds the former exponentials. */
static void rows_rest(float *x, int64_t n, float top, const rows_temper *temper, bool is_kept, float share,
                      float one)
{
    const mb_vf shift = vf_set(top), inverse = vf_set(temper->inverse), a = vf_set(share), b = vf_set(one);
    for (int64_t i = 0; i < n; i += W) {
        const mb_vf in = load_at(x, i, n), off = in - shift, e = is_kept ? in : vf_exp(off * inverse);
        store_at(x, i, n, vf_fma(a, e, b * rows_sharpen(e, off, temper->halves)));
    }
}

/* ---- 4. a row ---- */

/* Listed tokens to room, and out of the row. */
static void rows_take(float *x, const mb_teacher_row *teacher, float *room)
{
    for (int64_t b = 0; b < teacher->k; b++) room[b] = x[teacher->opt_ids[b]];
    for (int64_t b = 0; b < teacher->k; b++) x[teacher->opt_ids[b]] = -FLT_MAX;
}

/* The first token whose logit is top. */
static int32_t rows_first(const float *x, int64_t n, float top, const mb_teacher_row *teacher,
                          const float *room)
{
    int64_t best = 0;
    while (best < n - 1 && x[best] != top) best++;
    if (teacher->opt_ids == NULL) return (int32_t)best;
    if (x[best] != top) best = n;
    for (int64_t b = 0; b < teacher->k; b++)
        if (room[b] == top && teacher->opt_ids[b] < best) best = teacher->opt_ids[b];
    return (int32_t)(best < n ? best : 0);
}

/* Sums of a row's two parts, and what they come to. */
typedef struct rows_state {
    float top, rest_top;   /* of the listed tokens; of the others, -INFINITY: none */
    rows_sums rest;        /* relative to rest_top */
    double at_t, at_1;     /* logsumexp of z / T, of z */
    double teacher_sum;    /* of ln p / T */
    double rest_p, rest_q; /* ln of the last bucket's shares */
} rows_state;

static void rows_fill(rows_state *s, const rows_listed *l, const mb_teacher_row *teacher, float *x, int64_t n,
                      bool has_rest, bool is_kept)
{
    const double inverse = 1 / teacher->temperature;
    const rows_temper cold = {l->temper->inverse, 0, false};
    const rows_sums listed = rows_sum(l->z, l->n, l->z_top, l->temper, NULL);
    const double known = rows_sum(l->known, l->n, l->known_top, &cold, NULL).at_t;
    s->at_t = l->z_top * inverse + log(listed.at_t);
    s->at_1 = l->z_top + log(listed.at_1);
    s->teacher_sum = l->known_top * inverse + log(known);
    if (!has_rest) return;
    s->rest = rows_sum(x, n, s->rest_top, l->temper, is_kept ? x : NULL);
    const double rest = s->rest_top * inverse + log(s->rest.at_t);
    s->at_t = rows_join(s->at_t, rest);
    s->at_1 = rows_join(s->at_1, s->rest_top + log(s->rest.at_1));
    s->teacher_sum = rows_join(s->teacher_sum, (double)teacher->tail);
    s->rest_p = rest - s->at_t;
    s->rest_q = teacher->tail - s->teacher_sum;
}

static void teacher_loss(float *x, int64_t n, int64_t target, const mb_teacher_row *teacher, float distil,
                         float task, bool has_gradient, float *room, mb_row_losses *out)
{
    const bool is_dense = teacher->opt_ids == NULL, has_rest = !is_dense && teacher->k < n;
    const int kind = teacher->beta == 0 ? ROWS_FORWARD : teacher->beta == 1 ? ROWS_REVERSE : ROWS_JSD;
    const double halves = 2 * teacher->temperature;
    const rows_temper temper = {(float)(1 / teacher->temperature),
                                halves == floor(halves) && halves <= 6 ? (int)halves : 0, target >= 0};
    const bool is_kept = has_gradient && (temper.halves > 0 || task == 0);
    const float wanted = target >= 0 ? x[target] : 0;
    rows_state s = {.rest_top = -INFINITY};
    rows_listed l = {.z = is_dense ? x : room,
                     .known = teacher->logprob,
                     .n = is_dense ? n : teacher->k,
                     .temper = &temper,
                     .beta = (float)teacher->beta,
                     .distil = distil,
                     .task = task};
    double slope = 0;
    if (!is_dense) rows_take(x, teacher, room);
    l.z_top = highest(l.z, l.n), l.known_top = highest(l.known, l.n);
    if (has_rest) s.rest_top = highest(x, n);
    out->argmax = rows_first(x, n, l.z_top > s.rest_top ? l.z_top : s.rest_top, teacher, room);
    rows_fill(&s, &l, teacher, x, n, has_rest, is_kept);
    l.p_shift = (float)(l.z_top / teacher->temperature - s.at_t);
    l.q_shift = (float)(l.known_top / teacher->temperature - s.teacher_sum);
    l.one_scale = (float)exp(l.z_top - s.at_1);
    out->ce = (float)(s.at_1 - (double)wanted);
    double d = has_rest ? rows_bucket(kind, teacher->beta, s.rest_p, s.rest_q, &slope) : 0;
    if (!has_gradient || kind != ROWS_FORWARD) {
        const rows_sums sums = rows_distances(&l, kind);
        d += sums.at_t;
        l.mean = sums.at_1 + (has_rest ? exp(s.rest_p) * slope : 0);
    }
    if (has_gradient) {
        float *to = is_dense ? x : room;
        const rows_sums sums = rows_gradients(&l, kind, to);
        if (kind == ROWS_FORWARD) d += sums.at_t;
        const double rest =
            kind == ROWS_FORWARD ? exp(s.rest_p) - exp(s.rest_q) : exp(s.rest_p) * (slope - l.mean);
        if (has_rest)
            rows_rest(x, n, s.rest_top, &temper, is_kept, (float)(distil * rest / s.rest.at_t),
                      (float)(task * exp(s.rest_top - s.at_1)));
    }
    for (int64_t b = 0; !is_dense && b < teacher->k; b++) x[teacher->opt_ids[b]] = room[b];
    if (has_gradient && task != 0) x[target] -= task;
    out->distance = (float)d;
}
