/* test_ops: norms, element-wise ops, embedding, head, routing and optimiser: values against f64, gradients
 * against finite differences, the same bits on 1 and 2 threads.
 *
 * 1. norms and element-wise
 * 2. embedding and head
 * 3. routing
 * 4. optimiser
 */
#include "ops_fixture.h"

static void free_all(void **blocks, size_t n)
{
    for (size_t i = 0; i < n; i++) mb_free(blocks[i]);
}

/* ---- 1. norms and element-wise ---- */

typedef struct norm_shape {
    int64_t rows, d;
} norm_shape;

/* x, then w. */
static void naive_norm(const void *context, const double *x, double *out)
{
    const norm_shape *s = context;
    const double *w = x + s->rows * s->d;
    for (int64_t r = 0; r < s->rows; r++, x += s->d, out += s->d) {
        double sum = 0;
        for (int64_t i = 0; i < s->d; i++) sum += x[i] * x[i];
        for (int64_t i = 0; i < s->d; i++) out[i] = x[i] / sqrt(sum / (double)s->d + 1e-5) * w[i];
    }
}

/* Adds the gradients to those of x, then w, by the formula that the small cases prove by differences. */
static void norm_gradient(norm_shape s, const double *x, const float *dy, double *gradient)
{
    const double *w = x + s.rows * s.d;
    double *dx = gradient, *dw = gradient + s.rows * s.d;
    for (int64_t r = 0; r < s.rows; r++, x += s.d, dy += s.d, dx += s.d) {
        double sum = 0, inner = 0;
        for (int64_t i = 0; i < s.d; i++) sum += x[i] * x[i], inner += dy[i] * w[i] * x[i];
        const double root = 1 / sqrt(sum / (double)s.d + 1e-5);
        for (int64_t i = 0; i < s.d; i++) {
            dx[i] += root * w[i] * dy[i] - x[i] * root * root * root / (double)s.d * inner;
            dw[i] += dy[i] * x[i] * root;
        }
    }
}

static void check_norm(mb_ops *ops, norm_shape s, bool accumulate, fixture_tape *tape)
{
    int64_t n = s.rows * s.d;
    float *x = fixture_random(n + s.d, 1, 1), *y = fixture_random(n, 2, 1),
          *rstd = fixture_random(s.rows, 3, 1);
    float *dy = fixture_random(n, 4, 1), *dx = fixture_random(n, 5, 1), *dw = fixture_random(s.d, 6, 1);
    double *in = fixture_f64(n + s.d), *want = fixture_f64(n), *gradient = fixture_f64(n + s.d);
    double *formula = fixture_f64(n + s.d);
    for (int64_t i = 0; i < n + s.d; i++) in[i] = x[i];
    for (int64_t i = 0; i < n; i++) gradient[i] = formula[i] = accumulate ? dx[i] : 0;
    for (int64_t i = 0; i < s.d; i++) gradient[n + i] = formula[n + i] = dw[i];
    mb_tensor tx = fixture_matrix(x, s.rows, s.d), ty = fixture_matrix(y, s.rows, s.d);
    mb_tensor tw = mb_tensor_view1(MB_F32, x + n, s.d), tr = mb_tensor_view1(MB_F32, rstd, s.rows);
    mb_tensor tdy = fixture_matrix(dy, s.rows, s.d), tdx = fixture_matrix(dx, s.rows, s.d);
    mb_tensor tdw = mb_tensor_view1(MB_F32, dw, s.d);
    naive_norm(&s, in, want);
    fixture_ok(mb_ops_rms_norm(ops, &tx, &tw, 1e-5f, &ty, &tr));
    fixture_near("rms_norm", y, want, n, 1e-5);
    fixture_ok(mb_ops_rms_norm_backward(ops, &tdy, &tx, &tw, &tr, accumulate, &tdx, &tdw));
    norm_gradient(s, in, dy, formula);
    fixture_near("rms_norm dx by the formula", dx, formula, n, 1e-5);
    fixture_near("rms_norm dw by the formula", dw, formula + n, s.d, 1e-5);
    if (n < 1000) {
        fixture_gradient(naive_norm, &s, x, n + s.d, dy, n, gradient);
        fixture_near("rms_norm dx", dx, gradient, n, 1e-5);
        fixture_near("rms_norm dw", dw, gradient + n, s.d, 1e-5);
    }
    fixture_record(tape, y, n), fixture_record(tape, dx, n), fixture_record(tape, dw, s.d);
    free_all((void *[]){x, y, rstd, dy, dx, dw, in, want, gradient, formula}, 10);
}

static void norms(mb_ops *ops, fixture_tape *tape)
{
    check_norm(ops, (norm_shape){0, 16}, false, tape);
    check_norm(ops, (norm_shape){1, 3}, false, tape);
    check_norm(ops, (norm_shape){7, 37}, false, tape);
    check_norm(ops, (norm_shape){9, 64}, true, tape);
    check_norm(ops, (norm_shape){700, 100}, true, tape);
    check_norm(ops, (norm_shape){3, 10000}, false, tape);
    check_norm(ops, (norm_shape){67, 128}, true, tape);
    check_norm(ops, (norm_shape){20, 516}, false, tape);
}

static void naive_swiglu(const void *context, const double *x, double *out)
{
    int64_t n = *(const int64_t *)context;
    for (int64_t i = 0; i < n; i++) out[i] = x[i] / (1 + exp(-x[i])) * x[n + i];
}

static void check_swiglu(mb_ops *ops, int64_t n, fixture_tape *tape)
{
    float *x = fixture_random(2 * n, 1, 4), *y = fixture_random(n, 2, 1), *dy = fixture_random(n, 3, 1);
    float *dx = fixture_random(2 * n, 4, 1);
    double *in = fixture_f64(2 * n), *want = fixture_f64(n), *gradient = fixture_f64(2 * n);
    for (int64_t i = 0; i < 2 * n; i++) in[i] = x[i];
    mb_tensor gate = fixture_matrix(x, 1, n), up = fixture_matrix(x + n, 1, n), ty = fixture_matrix(y, 1, n);
    mb_tensor tdy = fixture_matrix(dy, 1, n), dgate = fixture_matrix(dx, 1, n),
              dup = fixture_matrix(dx + n, 1, n);
    naive_swiglu(&n, in, want);
    fixture_ok(mb_ops_swiglu(ops, &gate, &up, &ty));
    fixture_near("swiglu", y, want, n, 1e-6);
    fixture_ok(mb_ops_swiglu_backward(ops, &tdy, &gate, &up, &dgate, &dup));
    if (n < 1000) {
        fixture_gradient(naive_swiglu, &n, x, 2 * n, dy, n, gradient);
        fixture_near("swiglu dx", dx, gradient, 2 * n, 1e-5);
    }
    fixture_record(tape, y, n), fixture_record(tape, dx, 2 * n);
    free_all((void *[]){x, y, dy, dx, in, want, gradient}, 7);
}

/* Extremes of the exponential: no NaN from large arguments, NaN stays NaN. */
static void check_extremes(mb_ops *ops)
{
    float gate[] = {-200, -100, -88, -87, 0, 88, 100, 200, NAN, -INFINITY}, up[10], y[10];
    for (int i = 0; i < 10; i++) up[i] = 1;
    mb_tensor tg = fixture_matrix(gate, 1, 10), tu = fixture_matrix(up, 1, 10), ty = fixture_matrix(y, 1, 10);
    fixture_ok(mb_ops_swiglu(ops, &tg, &tu, &ty));
    for (int i = 0; i < 8; i++)
        assert_true(fabs(y[i] - gate[i] / (1 + exp(-(double)gate[i]))) <= 1e-5 * fabs(y[i]) + 1e-30);
    assert_true(isnan(y[8]));
}

static void check_rope(mb_ops *ops, int64_t rows, int64_t heads, int64_t width, fixture_tape *tape)
{
    enum { POSITIONS = 50 };
    int64_t n = rows * heads * width, half = width / 2;
    float *x = fixture_random(n, 1, 1), *y = fixture_copy(x, n),
          *table = fixture_random(POSITIONS * width, 2, 1);
    int32_t *positions = mb_calloc((size_t)rows + 1, sizeof *positions);
    double *want = fixture_f64(n);
    for (int64_t t = 0; t < rows; t++) positions[t] = (int32_t)fixture_below(1, (uint64_t)t, POSITIONS);
    for (int64_t p = 0; p < POSITIONS * half; p++) {
        double angle = (double)p * 0.37;
        table[p / half * width + p % half] = (float)cos(angle),
                                     table[p / half * width + half + p % half] = (float)sin(angle);
    }
    for (int64_t i = 0; i < n; i++) {
        const float *angles = table + positions[i / (heads * width)] * width, *head = x + i / width * width;
        int64_t j = i % width, m = j % half;
        want[i] = j < half ? (double)head[m] * angles[m] - (double)head[m + half] * angles[half + m]
                           : (double)head[m + half] * angles[m] + (double)head[m] * angles[half + m];
    }
    mb_tensor ty = mb_tensor_view3(MB_F32, y, rows, heads, width),
              tt = fixture_matrix(table, POSITIONS, width);
    fixture_ok(mb_ops_rope(ops, &ty, positions, &tt, false));
    fixture_near("rope", y, want, n, 1e-6);
    fixture_record(tape, y, n);
    fixture_ok(mb_ops_rope(ops, &ty, positions, &tt, true));
    for (int64_t i = 0; i < n; i++) want[i] = x[i];
    fixture_near("rope and back", y, want, n, 1e-6);
    free_all((void *[]){x, y, table, positions, want}, 5);
}

static void check_small(mb_ops *ops, int64_t n, fixture_tape *tape)
{
    float *x = fixture_random(n, 1, 1), *y = fixture_random(n, 2, 1), *dy = fixture_random(n, 3, 1);
    double *want = fixture_f64(n);
    mb_tensor tx = fixture_matrix(x, 1, n), ty = fixture_matrix(y, 1, n), tdy = fixture_matrix(dy, 1, n);
    for (int64_t i = 0; i < n; i++) want[i] = y[i] + 0.3f * (double)x[i];
    fixture_ok(mb_ops_axpy(ops, 0.3f, &tx, &ty));
    fixture_near("axpy", y, want, n, 1e-6);
    for (int64_t i = 0; i < n; i++) want[i] = -1.7f * (double)y[i];
    fixture_ok(mb_ops_scale(ops, -1.7f, &ty));
    fixture_near("scale", y, want, n, 1e-6);
    for (int64_t i = 0; i < n; i++) want[i] = fmin(0.8, fmax(-0.8, y[i]));
    if (n > 2) y[2] = NAN;
    fixture_ok(mb_ops_clamp(ops, 0.8f, &ty));
    if (n > 2) assert_true(isnan(y[2])), y[2] = (float)want[2];
    fixture_near("clamp", y, want, n, 1e-6);
    for (int64_t i = 0; i < n; i++) want[i] = fabsf(y[i]) >= 0.8f ? 0 : dy[i];
    fixture_ok(mb_ops_clamp_backward(ops, 0.8f, &ty, &tdy));
    fixture_near("clamp_backward", dy, want, n, 0);
    fixture_record(tape, y, n), fixture_record(tape, dy, n);
    free_all((void *[]){x, y, dy, want}, 4);
}

static void check_dropout(mb_ops *ops, fixture_tape *tape)
{
    enum { R = 60, C = 200 };
    float *x = fixture_random(R * C, 1, 1), *y = fixture_random(R * C, 2, 1),
          *z = fixture_random(R * C, 2, 1);
    int64_t index[R], dropped = 0;
    for (int64_t r = 0; r < R; r++) index[r] = 1000 - 3 * r;
    mb_tensor tx = fixture_matrix(x, R, C), ty = fixture_matrix(y, R, C);
    fixture_ok(mb_ops_dropout(ops, &tx, 0.25f, 7, 3, index, &ty));
    for (int64_t i = 0; i < R * C; i++) {
        dropped += y[i] == 0;
        if (y[i] != 0) assert_true(fabsf(y[i] - x[i] / 0.75f) <= 1e-6f * fabsf(y[i]));
    }
    assert_in_range(dropped, R * C / 4 - 200, R * C / 4 + 200);
    mb_tensor x7 = fixture_matrix(x + 7 * C, 1, C), z7 = fixture_matrix(z, 1, C);
    fixture_ok(mb_ops_dropout(ops, &x7, 0.25f, 7, 3, index + 7, &z7));
    fixture_same("dropout of one row alone", z, y + 7 * C, C);
    fixture_ok(mb_ops_dropout(ops, &tx, 0.25f, 7, 3, index, &tx));
    fixture_same("dropout in place", x, y, R * C);
    assert_int_equal(mb_ops_dropout(ops, &tx, 1.0f, 7, 3, index, &ty), MB_ERANGE);
    fixture_record(tape, y, R * C);
    free_all((void *[]){x, y, z}, 3);
}

static void elements(mb_ops *ops, fixture_tape *tape)
{
    check_swiglu(ops, 0, tape);
    check_swiglu(ops, 33, tape);
    check_swiglu(ops, 50021, tape);
    check_extremes(ops);
    check_rope(ops, 0, 2, 8, tape);
    check_rope(ops, 5, 3, 6, tape);
    check_rope(ops, 400, 4, 32, tape);
    check_small(ops, 5, tape);
    check_small(ops, 40001, tape);
    check_dropout(ops, tape);
}

/* ---- 2. embedding and head ---- */

static void check_embedding(mb_ops *ops, int64_t rows, int64_t v, int64_t d, fixture_tape *tape)
{
    float *table = fixture_random(v * d, 1, 1), *y = fixture_random(rows * d, 2, 1);
    double *want = fixture_f64(v * d);
    int32_t *tokens = mb_calloc((size_t)rows + 1, sizeof *tokens);
    for (int64_t t = 0; t < rows; t++) tokens[t] = (int32_t)fixture_below(2, (uint64_t)t, v);
    mb_tensor tt = fixture_matrix(table, v, d), ty = fixture_matrix(y, rows, d);
    fixture_ok(mb_ops_embedding(ops, tokens, &tt, &ty));
    for (int64_t t = 0; t < rows; t++) fixture_same("embedding", y + t * d, table + tokens[t] * d, d);
    for (int64_t i = 0; i < v * d; i++) want[i] = table[i];
    for (int64_t i = 0; i < rows * d; i++) want[tokens[i / d] * d + i % d] += y[i];
    fixture_ok(mb_ops_embedding_backward(ops, tokens, &ty, &tt));
    fixture_near("embedding_backward", table, want, v * d, 1e-6);
    fixture_record(tape, table, v * d);
    if (rows > 0) tokens[0] = (int32_t)v;
    if (rows > 0) assert_int_equal(mb_ops_embedding(ops, tokens, &tt, &ty), MB_ERANGE);
    free_all((void *[]){table, y, want, tokens}, 4);
}

typedef struct head_shape {
    int64_t n, d, v;
    const int32_t *targets;
} head_shape;

/* h, then w; out = losses. */
static void naive_head(const void *context, const double *x, double *out)
{
    const head_shape *s = context;
    const double *w = x + s->n * s->d;
    for (int64_t i = 0; i < s->n; i++) {
        double sum = 0, wanted = 0;
        for (int64_t j = 0; j < s->v; j++) {
            double logit = 0;
            for (int64_t p = 0; p < s->d; p++) logit += x[i * s->d + p] * w[j * s->d + p];
            sum += exp(logit);
            if (j == s->targets[i]) wanted = logit;
        }
        out[i] = log(sum) - wanted;
    }
}

/* Gradients in f64, by the formula that the small case proves against finite differences. */
static void head_gradient(const head_shape *s, const float *h, const float *w, const float *row_weight,
                          double *dh, double *dw, int32_t *argmax)
{
    double *p = fixture_f64(s->v);
    for (int64_t i = 0; i < s->n; i++) {
        double sum = 0;
        argmax[i] = 0;
        for (int64_t j = 0; j < s->v; j++) {
            p[j] = 0;
            for (int64_t q = 0; q < s->d; q++) p[j] += (double)h[i * s->d + q] * w[j * s->d + q];
            if (p[j] > p[argmax[i]]) argmax[i] = (int32_t)j;
        }
        for (int64_t j = 0; j < s->v; j++) sum += exp(p[j]);
        for (int64_t j = 0; j < s->v; j++) {
            double g = row_weight[i] * (exp(p[j]) / sum - (j == s->targets[i]));
            for (int64_t q = 0; q < s->d; q++) {
                dh[i * s->d + q] += g * w[j * s->d + q];
                dw[j * s->d + q] += g * h[i * s->d + q];
            }
        }
    }
    mb_free(p);
}

static void check_head(mb_ops *ops, int64_t n, int64_t d, int64_t v, fixture_tape *tape)
{
    float *h = fixture_random(n * d + v * d, 1, 0.4), *w = h + n * d, *loss = fixture_random(n, 2, 1);
    float *row_weight = fixture_random(n, 3, 1), *dh = fixture_random(n * d, 4, 1),
          *dw = fixture_random(v * d, 5, 1);
    double *in = fixture_f64(n * d + v * d), *want = fixture_f64(n), *gradient = fixture_f64(n * d + v * d);
    double *formula = fixture_f64(n * d + v * d);
    int32_t *targets = mb_calloc((size_t)n + 1, sizeof *targets),
            *best = mb_calloc((size_t)n + 1, sizeof *best);
    int32_t *argmax = mb_calloc((size_t)n + 1, sizeof *argmax);
    for (int64_t i = 0; i < n; i++) targets[i] = (int32_t)fixture_below(3, (uint64_t)i, v);
    for (int64_t i = 0; i < n; i++) row_weight[i] = i % 3 == 1 ? 0 : row_weight[i];
    for (int64_t i = 0; i < (n + v) * d; i++) in[i] = h[i];
    for (int64_t i = 0; i < v * d; i++) gradient[n * d + i] = formula[n * d + i] = dw[i];
    head_shape s = {n, d, v, targets};
    mb_tensor th = fixture_matrix(h, n, d), tl = mb_tensor_view1(MB_F32, loss, n),
              tdh = fixture_matrix(dh, n, d);
    mb_tensor tdw = fixture_matrix(dw, v, d);
    mb_weight weight;
    mb_weight_init(&weight, fixture_matrix(w, v, d));
    naive_head(&s, in, want);
    head_gradient(&s, h, w, row_weight, formula, formula + n * d, best);
    fixture_ok(mb_ops_head_loss(ops, &th, &weight, targets, &tl, argmax, row_weight, &tdh, &tdw));
    fixture_near("loss", loss, want, n, 1e-5);
    fixture_near("head dh", dh, formula, n * d, 1e-5);
    fixture_near("head dw", dw, formula + n * d, v * d, 1e-5);
    assert_memory_equal(argmax, best, (size_t)n * sizeof *best);
    if ((n + v) * d < 1000) {
        fixture_gradient(naive_head, &s, h, (n + v) * d, row_weight, n, gradient);
        fixture_near("head dh by differences", dh, gradient, n * d, 1e-5);
        fixture_near("head dw by differences", dw, gradient + n * d, v * d, 1e-5);
    }
    fixture_record(tape, loss, n), fixture_record(tape, dh, n * d), fixture_record(tape, dw, v * d);
    fixture_ok(mb_ops_head_loss(ops, &th, &weight, targets, &tl, NULL, NULL, NULL, NULL));
    fixture_near("loss alone", loss, want, n, 1e-5);
    if (n > 0) {
        targets[n - 1] = (int32_t)v;
        assert_int_equal(mb_ops_head_loss(ops, &th, &weight, targets, &tl, NULL, NULL, NULL, NULL),
                         MB_ERANGE);
    }
    mb_weight_reset(&weight);
    free_all((void *[]){h, loss, row_weight, dh, dw, in, want, gradient, formula, targets, best, argmax}, 12);
}

static void ends(mb_ops *ops, fixture_tape *tape)
{
    check_embedding(ops, 0, 5, 4, tape);
    check_embedding(ops, 40, 11, 7, tape);
    check_embedding(ops, 500, 20, 130, tape);
    check_head(ops, 0, 4, 6, tape);
    check_head(ops, 7, 5, 11, tape);
    check_head(ops, 1, 8, 3, tape);
    check_head(ops, 650, 16, 203, tape);
}

/* ---- 3. routing ---- */

typedef struct route_shape {
    int64_t t, e, picks;
    bool normalise;
    const int32_t *ids; /* fixed: the choice itself has no gradient */
} route_shape;

static void naive_route(const void *context, const double *x, double *out)
{
    const route_shape *s = context;
    for (int64_t t = 0; t < s->t; t++, x += s->e, out += s->picks) {
        double all = 0, picked = 0;
        for (int64_t e = 0; e < s->e; e++) all += exp(x[e]);
        for (int64_t k = 0; k < s->picks; k++) picked += exp(x[s->ids[t * s->picks + k]]);
        for (int64_t k = 0; k < s->picks; k++) {
            out[k] = exp(x[s->ids[t * s->picks + k]]) / (s->normalise ? picked : all);
        }
    }
}

/* Every row's ids are those of the largest scores, in falling order, ties to the lower. */
static void check_picks(const float *scores, int64_t t, int64_t e, int64_t picks, const int32_t *ids)
{
    for (int64_t i = 0; i < t; i++, scores += e, ids += picks)
        for (int64_t k = 0; k < picks; k++) {
            int64_t larger = 0; /* experts that must come first */
            for (int64_t j = 0; j < e; j++)
                larger += scores[j] > scores[ids[k]] || (scores[j] == scores[ids[k]] && (int32_t)j < ids[k]);
            assert_int_equal(larger, k);
        }
}

/* spread: of the bias that the choice sees; 0: none is given. */
static void check_route(mb_ops *ops, int64_t t, int64_t e, int64_t picks, bool normalise, float spread,
                        fixture_tape *tape)
{
    float *logits = fixture_random(t * e, 1, 1), *probs = fixture_random(t * e, 2, 1),
          *weights = fixture_random(t * picks, 3, 1);
    float *dweights = fixture_random(t * picks, 4, 1), *dlogits = fixture_random(t * e, 5, 1);
    float *bias = fixture_random(e, 6, spread), *scores = fixture_random(t * e, 7, 0);
    int32_t *ids = mb_calloc((size_t)(t * picks) + 1, sizeof *ids);
    double *in = fixture_f64(t * e), *want = fixture_f64(t * picks), *gradient = fixture_f64(t * e);
    if (t > 3 && e > 3) logits[3 * e + 1] = logits[3 * e + 3] = 5; /* a tie */
    for (int64_t i = 0; i < t * e; i++) in[i] = logits[i], gradient[i] = dlogits[i];
    mb_tensor tl = fixture_matrix(logits, t, e), tp = fixture_matrix(probs, t, e),
              tw = fixture_matrix(weights, t, picks);
    mb_tensor tdw = fixture_matrix(dweights, t, picks), tdl = fixture_matrix(dlogits, t, e);
    mb_tensor tb = mb_tensor_view1(MB_F32, bias, e);
    fixture_ok(mb_ops_route(ops, &tl, spread > 0 ? &tb : NULL, picks, normalise, &tp, ids, &tw));
    for (int64_t i = 0; i < t; i++) {
        double sum = 0;
        for (int64_t j = 0; j < e; j++) {
            sum += probs[i * e + j];
            scores[i * e + j] = probs[i * e + j] + (spread > 0 ? bias[j] : 0);
        }
        assert_true(fabs(sum - 1) < 1e-5);
    }
    check_picks(scores, t, e, picks, ids);
    route_shape s = {t, e, picks, normalise, ids};
    naive_route(&s, in, want);
    fixture_near("route weights", weights, want, t * picks, 1e-5);
    fixture_ok(mb_ops_route_backward(ops, &tp, ids, &tw, normalise, &tdw, &tdl));
    if (t * e < 1000) {
        fixture_gradient(naive_route, &s, logits, t * e, dweights, t * picks, gradient);
        fixture_near("route_backward", dlogits, gradient, t * e, 1e-5);
    }
    fixture_record(tape, weights, t * picks), fixture_record(tape, dlogits, t * e);
    free_all((void *[]){logits, probs, weights, dweights, dlogits, ids, in, want, gradient, bias, scores},
             11);
}

typedef struct travel {
    int64_t t, picks, experts, d;
    mb_dispatch dispatch;
    int32_t *ids;
} travel;

/* ids below `columns` columns; those >= experts are trash. */
static travel travel_create(mb_ops *ops, int64_t t, int64_t picks, int64_t experts, int64_t columns,
                            int64_t d)
{
    travel v = {.t = t, .picks = picks, .experts = experts, .d = d};
    v.ids = mb_calloc((size_t)(t * picks) + 1, sizeof(int32_t));
    v.dispatch.row_token = mb_calloc((size_t)(t * picks) + 1, sizeof(int32_t));
    v.dispatch.slot_row = mb_calloc((size_t)(t * picks) + 1, sizeof(int32_t));
    v.dispatch.offsets = mb_calloc((size_t)experts + 1, sizeof(int32_t));
    for (int64_t i = 0; i < t * picks; i++) v.ids[i] = (int32_t)fixture_below(4, (uint64_t)i, columns);
    if (experts < columns && experts == 1) {
        for (int64_t i = 0; i < t * picks; i++) v.ids[i] = 1; /* all trash */
    }
    fixture_ok(mb_ops_dispatch(ops, v.ids, t, picks, experts, &v.dispatch));
    return v;
}

static void travel_destroy(travel *v)
{
    free_all((void *[]){v->ids, v->dispatch.row_token, v->dispatch.slot_row, v->dispatch.offsets}, 4);
}

static void check_dispatch(const travel *v)
{
    int64_t live = 0;
    const mb_dispatch *d = &v->dispatch;
    for (int64_t i = 0; i < v->t * v->picks; i++) {
        int32_t row = d->slot_row[i];
        if (v->ids[i] >= v->experts) {
            assert_int_equal(row, -1);
            continue;
        }
        live++;
        assert_in_range(row, d->offsets[v->ids[i]], d->offsets[v->ids[i] + 1] - 1);
        assert_int_equal(d->row_token[row], i / v->picks);
    }
    assert_int_equal(live, d->rows);
    assert_int_equal(d->offsets[0], 0);
    assert_int_equal(d->offsets[v->experts], d->rows);
    for (int64_t e = 0; e < v->experts; e++) {
        for (int64_t p = d->offsets[e] + 1; p < d->offsets[e + 1]; p++)
            assert_true(d->row_token[p] >= d->row_token[p - 1]);
    }
}

/* Rows to experts and back: each result against sums over (token, pick). */
static void check_travel(mb_ops *ops, int64_t t, int64_t picks, int64_t experts, int64_t columns, int64_t d,
                         fixture_tape *tape)
{
    travel v = travel_create(ops, t, picks, experts, columns, d);
    int64_t p = v.dispatch.rows;
    float *x = fixture_random(t * d, 1, 1), *rows = fixture_random(p * d, 2, 1),
          *w = fixture_random(t * picks, 3, 1);
    float *dx = fixture_random(t * d, 4, 1), *drows = fixture_random(p * d, 5, 1),
          *dw = fixture_random(t * picks, 6, 1);
    float *y = fixture_random(t * d, 7, 1);
    double *want_dx = fixture_f64(t * d), *want_y = fixture_f64(t * d), *want_rows = fixture_f64(p * d);
    double *want_dw = fixture_f64(t * picks);
    mb_tensor tx = fixture_matrix(x, t, d), tr = fixture_matrix(rows, p, d), tw = fixture_matrix(w, t, picks);
    mb_tensor tdx = fixture_matrix(dx, t, d), tdr = fixture_matrix(drows, p, d),
              tdw = fixture_matrix(dw, t, picks);
    mb_tensor ty = fixture_matrix(y, t, d);
    check_dispatch(&v);
    fixture_ok(mb_ops_gather(ops, &tx, &v.dispatch, &tr));
    for (int64_t r = 0; r < p; r++) fixture_same("gather", rows + r * d, x + v.dispatch.row_token[r] * d, d);
    for (int64_t i = 0; i < p * d; i++) rows[i] += 0.5f * (float)(i % 7);
    for (int64_t i = 0; i < t * d; i++) want_dx[i] = dx[i], want_y[i] = y[i];
    for (int64_t i = 0; i < t * picks; i++) {
        int64_t row = v.dispatch.slot_row[i], token = i / picks;
        for (int64_t j = 0; row >= 0 && j < d; j++) {
            want_dx[token * d + j] += rows[row * d + j];
            want_y[token * d + j] += (double)w[i] * rows[row * d + j];
            want_rows[row * d + j] = (double)w[i] * x[token * d + j];
            want_dw[i] += (double)x[token * d + j] * rows[row * d + j];
        }
    }
    fixture_ok(mb_ops_gather_backward(ops, &tr, &v.dispatch, picks, &tdx));
    fixture_near("gather_backward", dx, want_dx, t * d, 1e-6);
    fixture_ok(mb_ops_combine(ops, &tr, &v.dispatch, &tw, &ty));
    fixture_near("combine", y, want_y, t * d, 1e-6);
    fixture_ok(mb_ops_combine_backward(ops, &tx, &tr, &v.dispatch, &tw, &tdr, &tdw));
    fixture_near("combine_backward dx", drows, want_rows, p * d, 1e-6);
    fixture_near("combine_backward dweights", dw, want_dw, t * picks, 1e-5);
    fixture_record(tape, dx, t * d), fixture_record(tape, y, t * d), fixture_record(tape, drows, p * d);
    fixture_record(tape, dw, t * picks);
    free_all((void *[]){x, rows, w, dx, drows, dw, y, want_dx, want_y, want_rows, want_dw}, 11);
    travel_destroy(&v);
}

static void routes(mb_ops *ops, fixture_tape *tape)
{
    check_route(ops, 0, 4, 2, true, 0, tape);
    check_route(ops, 13, 8, 2, true, 0, tape);
    check_route(ops, 13, 8, 2, false, 0, tape);
    check_route(ops, 6, 5, 5, true, 0, tape);
    check_route(ops, 7, 37, 1, false, 0, tape);
    check_route(ops, 900, 20, 4, true, 0, tape);
    check_route(ops, 0, 4, 2, true, 0.1f, tape);
    check_route(ops, 13, 8, 2, true, 0.1f, tape);
    check_route(ops, 13, 8, 3, false, 5, tape); /* the bias alone decides */
    check_route(ops, 6, 5, 5, true, 0.2f, tape);
    check_route(ops, 7, 37, 1, false, 0.02f, tape);
    check_route(ops, 900, 20, 4, true, 0.05f, tape);
    check_travel(ops, 0, 2, 4, 4, 8, tape);
    check_travel(ops, 30, 2, 5, 5, 9, tape);
    check_travel(ops, 30, 3, 5, 8, 16, tape);
    check_travel(ops, 20, 2, 1, 2, 16, tape);
    check_travel(ops, 400, 2, 8, 10, 64, tape);
}

/* ---- 4. optimiser ---- */

static void check_adamw(mb_ops *ops, int64_t n, fixture_tape *tape)
{
    float *g = fixture_random(n, 1, 1), *p = fixture_random(n, 2, 1), *m = fixture_random(n, 3, 0),
          *v = fixture_random(n, 4, 0);
    double *wp = fixture_f64(n), *wm = fixture_f64(n), *wv = fixture_f64(n);
    mb_adamw a = {.learning_rate = 0.01,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .epsilon = 1e-8,
                  .weight_decay = 0.1,
                  .gradient_scale = 0.5};
    for (int64_t i = 0; i < n; i++) wp[i] = p[i];
    for (a.step = 1; a.step <= 3; a.step++) {
        for (int64_t i = 0; i < n; i++) {
            double gradient = g[i] * a.gradient_scale;
            wm[i] = a.beta1 * wm[i] + (1 - a.beta1) * gradient;
            wv[i] = a.beta2 * wv[i] + (1 - a.beta2) * gradient * gradient;
            double mean = wm[i] / (1 - pow(a.beta1, (double)a.step)),
                   square = wv[i] / (1 - pow(a.beta2, (double)a.step));
            wp[i] -= a.learning_rate * (mean / (sqrt(square) + a.epsilon) + a.weight_decay * wp[i]);
        }
        fixture_ok(mb_ops_adamw(ops, &a, n, g, p, m, v));
        for (int64_t i = 0; i < n; i++) g[i] = g[i] * -0.7f + 0.1f;
    }
    fixture_near("adamw", p, wp, n, 1e-6);
    fixture_near("moment1", m, wm, n, 1e-6);
    fixture_near("moment2", v, wv, n, 1e-6);
    fixture_record(tape, p, n), fixture_record(tape, m, n), fixture_record(tape, v, n);
    a.step = 0;
    assert_int_equal(mb_ops_adamw(ops, &a, n, g, p, m, v), MB_ERANGE);
    free_all((void *[]){g, p, m, v, wp, wm, wv}, 7);
}

static void check_squares(mb_ops *ops, int64_t n, int64_t block)
{
    int64_t blocks = (n + block - 1) / block;
    float *x = fixture_random(n, 1, 1);
    double *out = fixture_f64(blocks), *want = fixture_f64(blocks);
    for (int64_t i = 0; i < n; i++) want[i / block] += (double)x[i] * x[i];
    fixture_ok(mb_ops_sum_squares(ops, x, n, block, out));
    for (int64_t b = 0; b < blocks; b++) assert_true(fabs(out[b] - want[b]) <= 1e-12 * want[b]);
    free_all((void *[]){x, out, want}, 3);
}

static void optimisers(mb_ops *ops, fixture_tape *tape)
{
    check_adamw(ops, 0, tape);
    check_adamw(ops, 37, tape);
    check_adamw(ops, 50001, tape);
    check_squares(ops, 0, 10);
    check_squares(ops, 1003, 100);
    check_squares(ops, 70000, 65536);
}

static void test_norms(void **state)
{
    (void)state, fixture_each(norms);
}
static void test_elements(void **state)
{
    (void)state, fixture_each(elements);
}
static void test_ends(void **state)
{
    (void)state, fixture_each(ends);
}
static void test_routes(void **state)
{
    (void)state, fixture_each(routes);
}
static void test_optimisers(void **state)
{
    (void)state, fixture_each(optimisers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),  cmocka_unit_test(test_elements),   cmocka_unit_test(test_ends),
        cmocka_unit_test(test_routes), cmocka_unit_test(test_optimisers),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
