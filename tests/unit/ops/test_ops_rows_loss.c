/* test_ops_rows_loss: losses of rows of logits against their definitions in f64, gradients against finite
 * differences, and what has no room in f32: a teacher or a student sure of itself, probabilities of 0.
 *
 * 1. a case   2. definitions   3. one case on one backend   4. all cases   5. what is promised
 */
#include "ops_fixture.h"

/* ---- 1. a case ---- */

enum { DENSE = -1, NONE = 0 };

typedef struct loss_case {
    int64_t n, v, k; /* k: DENSE, NONE (no teacher), or as many as are listed */
    double temperature, beta, distil, task;
    float spread;         /* of logits */
    float teacher_spread; /* of the teacher's */
    bool is_sure;         /* some of the teacher's probabilities are 0, its tails too */
} loss_case;

typedef struct loss_data {
    const loss_case *c;
    float *logits, *weight, *dense, *logprob, *tail;
    int32_t *targets, *ids;
    mb_teacher_rows teacher;
} loss_data;

/* ids: the k likeliest, then the tail at T of what is not there. */
static void list_row(loss_data *d, int64_t t, char *taken)
{
    const int64_t v = d->c->v, k = d->c->k;
    const float *known = d->dense + t * v;
    double tail = 0;
    memset(taken, 0, (size_t)v);
    for (int64_t b = 0; b < k; b++) {
        int64_t best = -1;
        for (int64_t j = 0; j < v; j++)
            if (!taken[j] && (best < 0 || known[j] > known[best])) best = j;
        taken[best] = 1;
        d->ids[t * k + (b * 11 + t) % k] = (int32_t)best; /* in no order; k is no multiple of 11 */
    }
    for (int64_t b = 0; b < k; b++) d->logprob[t * k + b] = known[d->ids[t * k + b]];
    for (int64_t j = 0; j < v; j++) tail += taken[j] ? 0 : exp(known[j] / d->c->temperature);
    d->tail[t] = (float)log(tail);
}

/* ln p of logits. */
static void normalise(float *x, int64_t n)
{
    float top = -INFINITY;
    double sum = 0;
    for (int64_t j = 0; j < n; j++) top = fmaxf(top, x[j]);
    for (int64_t j = 0; j < n; j++) sum += exp(x[j] - top);
    for (int64_t j = 0; j < n; j++) x[j] -= top + (float)log(sum);
}

static loss_data data_create(const loss_case *c)
{
    loss_data d = {.c = c};
    const int64_t k = c->k > 0 ? c->k : 0;
    char *taken = mb_calloc((size_t)c->v + 1, 1);
    d.logits = fixture_random(c->n * c->v, 1, c->spread), d.weight = fixture_random(c->n, 2, 1);
    d.dense = fixture_random(c->n * c->v, 3, c->teacher_spread), d.tail = fixture_random(c->n, 4, 1);
    d.logprob = fixture_random(c->n * k, 5, 1);
    d.ids = mb_calloc((size_t)(c->n * k) + 1, sizeof *d.ids);
    d.targets = mb_calloc((size_t)c->n + 1, sizeof *d.targets);
    for (int64_t t = 0; t < c->n; t++) {
        float *known = d.dense + t * c->v, *logits = d.logits + t * c->v;
        d.targets[t] = (int32_t)fixture_below(6, (uint64_t)t, c->v);
        if (t % 4 == 2) d.weight[t] = 0;
        for (int64_t j = 0; j < c->v; j++) known[j] += 0.7f * logits[j] * c->teacher_spread / c->spread;
        if (c->v > 9) logits[5] = logits[8] = 4 * c->spread; /* two largest, perhaps */
        for (int64_t j = 0; c->is_sure && j < c->v; j++)
            if ((j + t) % 3 == 1) known[j] = -INFINITY;
        normalise(known, c->v);
        if (k > 0) list_row(&d, t, taken);
        if (c->is_sure && t % 2 == 0) d.tail[t] = -INFINITY;
    }
    mb_free(taken);
    d.teacher = (mb_teacher_rows){.temperature = c->temperature,
                                  .beta = c->beta,
                                  .distil_weight = c->distil,
                                  .task_weight = c->task,
                                  .opt_dense = c->k == DENSE ? d.dense : NULL,
                                  .k = k,
                                  .ids = d.ids,
                                  .logprob = d.logprob,
                                  .tail = d.tail};
    return d;
}

static void data_destroy(loss_data *d)
{
    void *blocks[] = {d->logits, d->weight, d->dense, d->logprob, d->tail, d->targets, d->ids};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) mb_free(blocks[i]);
}

/* ---- 2. definitions ---- */

static double log_sum(const double *x, int64_t n)
{
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - top);
    return top > -INFINITY ? log(sum) + top : top;
}

/* sum a (ln a - ln b) */
static double divergence(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp(a[i]) > 0 ? exp(a[i]) * (a[i] - b[i]) : 0;
    return sum;
}

static double distance_of(double beta, double *p, double *q, double *room, int64_t n)
{
    const double p_all = log_sum(p, n), q_all = log_sum(q, n);
    for (int64_t i = 0; i < n; i++) p[i] -= p_all, q[i] -= q_all;
    if (beta == 0) return divergence(q, p, n);
    for (int64_t i = 0; i < n; i++) {
        if (beta == 1) q[i] = fmax(q[i], (double)MB_ROWS_LEAST);
        room[i] = log((1 - beta) * exp(p[i]) + beta * exp(q[i]));
    }
    if (beta == 1) return divergence(p, q, n);
    return beta * divergence(q, room, n) + (1 - beta) * divergence(p, room, n);
}

/* The row's D from its logits, by gathering both into buckets. */
static double row_distance(const loss_data *d, int64_t t, const double *z)
{
    const loss_case *c = d->c;
    const int64_t k = c->k == DENSE ? c->v : c->k;
    double *p = fixture_f64(c->v + 1), *q = fixture_f64(c->v + 1), *rest = fixture_f64(c->v + 1);
    int64_t n = 0, others = 0;
    for (int64_t j = 0; j < c->v; j++) {
        int64_t b = 0;
        while (c->k != DENSE && b < k && d->ids[t * k + b] != j) b++;
        if (c->k != DENSE && b == k) {
            rest[others++] = z[j] / c->temperature;
            continue;
        }
        p[n] = z[j] / c->temperature;
        q[n++] = (c->k == DENSE ? d->dense[t * c->v + j] : d->logprob[t * k + b]) / c->temperature;
    }
    if (others > 0) p[n] = log_sum(rest, others), q[n++] = d->tail[t];
    const double out = distance_of(c->beta, p, q, rest, n);
    mb_free(p), mb_free(q), mb_free(rest);
    return out;
}

/* Row losses. */
static void naive_losses(const void *context, const double *x, double *out)
{
    const loss_data *d = context;
    const loss_case *c = d->c;
    for (int64_t t = 0; t < c->n; t++, x += c->v) {
        const double ce = log_sum(x, c->v) - x[d->targets[t]];
        out[t] = c->k == NONE
                     ? ce
                     : c->distil * c->temperature * c->temperature * row_distance(d, t, x) + c->task * ce;
    }
}

/* ---- 3. one case on one backend ---- */

typedef struct loss_result {
    float *gradient, *ce, *distance;
    int32_t *argmax;
} loss_result;

static loss_result run_case(mb_ops *ops, const loss_data *d, bool has_weight)
{
    const loss_case *c = d->c;
    loss_result r = {.gradient = fixture_copy(d->logits, c->n * c->v),
                     .ce = fixture_random(c->n, 7, 1),
                     .distance = fixture_random(c->n, 8, 0),
                     .argmax = mb_calloc((size_t)c->n + 1, sizeof *r.argmax)};
    mb_tensor logits = fixture_matrix(r.gradient, c->n, c->v), ce = mb_tensor_view1(MB_F32, r.ce, c->n);
    mb_tensor distance = mb_tensor_view1(MB_F32, r.distance, c->n);
    fixture_ok(mb_ops_rows_loss(ops, &logits, d->targets, c->k != NONE ? &d->teacher : NULL, &ce,
                                c->k != NONE ? &distance : NULL, r.argmax, has_weight ? d->weight : NULL));
    return r;
}

static void result_destroy(loss_result *r)
{
    mb_free(r->gradient), mb_free(r->ce), mb_free(r->distance), mb_free(r->argmax);
}

static void check_losses(const loss_data *d, const loss_result *r, const char *what)
{
    const loss_case *c = d->c;
    double *z = fixture_f64(c->n * c->v), *ce = fixture_f64(c->n), *distance = fixture_f64(c->n);
    char text[96];
    for (int64_t i = 0; i < c->n * c->v; i++) z[i] = d->logits[i];
    for (int64_t t = 0; t < c->n; t++) {
        const float *row = d->logits + t * c->v;
        int64_t best = 0;
        for (int64_t j = 1; j < c->v; j++)
            if (row[j] > row[best]) best = j;
        assert_int_equal(r->argmax[t], best);
        ce[t] = log_sum(z + t * c->v, c->v) - z[t * c->v + d->targets[t]];
        if (c->k != NONE) distance[t] = row_distance(d, t, z + t * c->v);
    }
    snprintf(text, sizeof text, "%s: ce", what);
    fixture_near(text, r->ce, ce, c->n, 2e-6);
    snprintf(text, sizeof text, "%s: distance", what);
    if (c->k != NONE) fixture_near(text, r->distance, distance, c->n, 1e-5);
    mb_free(z), mb_free(ce), mb_free(distance);
}

/* Against ref, and ref against finite differences where the case is small. */
static void check_gradient(mb_ops *ops, const loss_data *d, const loss_result *r, const char *what)
{
    const loss_case *c = d->c;
    const int64_t n = c->n * c->v;
    const bool is_small =
        n < 400 && c->spread < 5 && strcmp(mb_ops_name(ops), "ref") == 0 && mb_ops_threads(ops) == 1;
    double *want = fixture_f64(n);
    char text[96];
    mb_ops *ref = NULL;
    fixture_ok(mb_ops_create("ref", 1, &ref));
    loss_result exact = run_case(ref, d, true);
    for (int64_t i = 0; i < n; i++) want[i] = exact.gradient[i];
    snprintf(text, sizeof text, "%s: gradient", what);
    fixture_near(text, r->gradient, want, n, 4e-6);
    if (is_small) {
        memset(want, 0, (size_t)n * sizeof *want);
        fixture_gradient(naive_losses, d, d->logits, n, d->weight, c->n, want);
        snprintf(text, sizeof text, "%s: gradient by differences", what);
        fixture_near(text, r->gradient, want, n, 1e-5);
    }
    result_destroy(&exact);
    mb_ops_destroy(&ref);
    mb_free(want);
}

/* Where every thread of a GPU is run in turn: one case of some. */
static bool is_left_out(mb_ops *ops, int number)
{
    return fixture_size(ops, 0, 1) == 1 && number % 9 != 0;
}

static void check_case(mb_ops *ops, const loss_case *c, fixture_tape *tape)
{
    loss_data d = data_create(c);
    char what[64];
    snprintf(what, sizeof what, "%s, V %lld, k %lld, T %g, beta %g", mb_ops_name(ops), (long long)c->v,
             (long long)c->k, c->temperature, c->beta);
    loss_result r = run_case(ops, &d, true), alone = run_case(ops, &d, false);
    check_losses(&d, &r, what);
    check_gradient(ops, &d, &r, what);
    fixture_same("ce without a gradient", alone.ce, r.ce, c->n);
    fixture_same("distance without a gradient", alone.distance, r.distance, c->n);
    fixture_same("logits without a gradient", alone.gradient, d.logits, c->n * c->v);
    assert_memory_equal(alone.argmax, r.argmax, (size_t)c->n * sizeof *r.argmax);
    check_losses(&d, &alone, what);
    fixture_record(tape, r.ce, c->n), fixture_record(tape, r.distance, c->n);
    fixture_record(tape, r.gradient, c->n * c->v);
    result_destroy(&r), result_destroy(&alone);
    data_destroy(&d);
}

/* ---- 4. all cases ---- */

static void losses(mb_ops *ops, fixture_tape *tape)
{
    int number = 0;
    static const double temperatures[] = {1, 2, 3, 1.5, 0.5, 2.5, 0.7, 8}, betas[] = {0, 1, 0.5, 0.1};
    const loss_case plain[] = {
        {0, 11, NONE, 1, 0, 0, 0, 1, 1, false},    {6, 11, NONE, 1, 0, 0, 0, 1, 1, false},
        {3, 1, NONE, 1, 0, 0, 0, 1, 1, false},     {9, 4104, NONE, 1, 0, 0, 0, 2, 1, false},
        {5, 9001, NONE, 1, 0, 0, 0, 30, 1, false}, {0, 9, 3, 1, 0, 0.7, 0.3, 1, 1, false},
        {2, 1, 1, 2, 0, 0.7, 0.3, 1, 1, false},    {2, 1, DENSE, 2, 0.5, 0.7, 0.3, 1, 1, false},
    };
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) check_case(ops, &plain[i], tape);
    for (int t = 0; t < 8; t++)
        for (int b = 0; b < 4; b++) {
            const int64_t listed[] = {1, 8, 36, 37, DENSE};
            for (int k = 0; k < 5; k++) {
                const loss_case c = {5,   37, listed[k], temperatures[t], betas[b], 0.7,
                                     0.3, 1,  2,         (t + k) % 3 == 2};
                if (!is_left_out(ops, number++)) check_case(ops, &c, tape);
            }
        }
    for (int b = 0; b < 4; b++) {
        const int64_t v = fixture_size(ops, 5003, 4200);
        const loss_case wide[] = {
            {4, v, 50, 2, betas[b], 0.7, 0.3, 3, 3, false},
            {3, v, DENSE, 3, betas[b], 1, 0, 3, 3, false},
            {3, 4096, DENSE, 1, betas[b], 0.5, 1, 2, 1, true},
            {2, 4104, 128, 1.5, betas[b], 0.7, 0.3, 2, 4, true},
        };
        for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
            if (!is_left_out(ops, number++)) check_case(ops, &wide[i], tape);
    }
}

static void test_losses(void **state)
{
    (void)state, fixture_each(losses);
}

/* ---- 5. what is promised ---- */

/* Logits hundreds apart, on the teacher's tokens or on the others; a teacher as sure, or with zeros. */
static void extremes(mb_ops *ops, fixture_tape *tape)
{
    int number = 0;
    static const double betas[] = {0, 1, 0.5};
    const int64_t listed[] = {2, 30, 31, DENSE};
    for (int b = 0; b < 3; b++)
        for (int k = 0; k < 4; k++) {
            const loss_case cases[] = {
                {7, 31, listed[k], 1, betas[b], 0.7, 0.3, 200, 1, false},
                {7, 31, listed[k], 2, betas[b], 0.7, 0.3, 1, 200, false},
                {7, 31, listed[k], 2, betas[b], 0.7, 0.3, 200, 200, true},
                {7, 31, listed[k], 0.3, betas[b], 0.7, 0.3, 20, 200, true},
            };
            for (int i = 0; i < 4; i++)
                if (!is_left_out(ops, number++)) check_case(ops, &cases[i], tape);
        }
}

static void test_extremes(void **state)
{
    (void)state, fixture_each(extremes);
}

/* A row alone has the bits it has among others; a list of everything is a dense teacher. */
static void promises(mb_ops *ops, fixture_tape *tape)
{
    for (int b = 0; b < 3; b++) {
        const loss_case sparse = {6, 203, 203, 2, b * 0.5, 0.7, 0.3, 2, 2, false};
        loss_case dense = sparse, few = sparse;
        dense.k = DENSE, few.k = 20;
        loss_data d[] = {data_create(&sparse), data_create(&dense), data_create(&few)};
        loss_result r[] = {run_case(ops, &d[0], true), run_case(ops, &d[1], true),
                           run_case(ops, &d[2], true)};
        double *want = fixture_f64(6 * 203);
        for (int64_t i = 0; i < 6 * 203; i++) want[i] = r[1].gradient[i];
        fixture_near("a list of all, gradient", r[0].gradient, want, 6 * 203, 1e-6);
        for (int64_t i = 0; i < 6; i++) want[i] = r[1].distance[i];
        fixture_near("a list of all, distance", r[0].distance, want, 6, 1e-6);
        const loss_case last = {1, 203, 20, 2, b * 0.5, 0.7, 0.3, 2, 2, false};
        loss_data one = d[2];
        one.c = &last;
        one.logits += 5 * 203, one.weight += 5, one.targets += 5;
        one.teacher.ids += 5 * 20, one.teacher.logprob += 5 * 20, one.teacher.tail += 5;
        loss_result alone = run_case(ops, &one, true);
        fixture_same("a row alone", alone.gradient, r[2].gradient + 5 * 203, 203);
        fixture_same("its distance", alone.distance, r[2].distance + 5, 1);
        fixture_record(tape, r[0].gradient, 6 * 203);
        result_destroy(&alone);
        for (int i = 0; i < 3; i++) result_destroy(&r[i]), data_destroy(&d[i]);
        mb_free(want);
    }
}

static void test_promises(void **state)
{
    (void)state, fixture_each(promises);
}

static void refusals(mb_ops *ops, fixture_tape *tape)
{
    (void)tape;
    const loss_case c = {3, 12, 4, 2, 0.5, 0.7, 0.3, 1, 1, false};
    loss_data d = data_create(&c);
    mb_tensor logits = fixture_matrix(d.logits, 3, 12), out = mb_tensor_view1(MB_F32, d.tail, 3);
    mb_teacher_rows bad[] = {d.teacher, d.teacher, d.teacher, d.teacher};
    bad[0].temperature = 0, bad[1].beta = 1.5, bad[2].k = 13, bad[3].k = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(mb_ops_rows_loss(ops, &logits, d.targets, &bad[i], NULL, &out, NULL, NULL),
                         MB_ERANGE);
    assert_int_equal(mb_ops_rows_loss(ops, &logits, NULL, &d.teacher, &out, NULL, NULL, NULL), MB_ESHAPE);
    assert_int_equal(mb_ops_rows_loss(ops, &logits, NULL, &d.teacher, NULL, NULL, NULL, d.weight), MB_ESHAPE);
    assert_int_equal(mb_ops_rows_loss(ops, &logits, d.targets, NULL, NULL, &out, NULL, NULL), MB_ESHAPE);
    if (!mb_ops_is_device(ops)) {
        d.ids[7] = 12;
        assert_int_equal(mb_ops_rows_loss(ops, &logits, d.targets, &d.teacher, NULL, NULL, NULL, NULL),
                         MB_ERANGE);
    }
    data_destroy(&d);
}

static void test_refusals(void **state)
{
    (void)state, fixture_each(refusals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_promises),
        cmocka_unit_test(test_refusals),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
