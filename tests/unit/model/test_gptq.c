/* GPTQ against the paper's algorithm in numpy, against rounding to nearest, and its edges: groups, columns
 * never used, Hessians that are not positive definite. */
#include "model/gptq.h"

#include <omp.h>

#include "model/quantise.h"
#include "model_cases.h"
#include "store/h5.h"

#define GOLDEN "tests/golden/gptq/gptq.h5"

/* ---- 1. small tools ---- */

static double *gram(const double *x, int64_t rows, int64_t k)
{
    double *h = mb_calloc((size_t)(k * k), sizeof *h);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j <= i; j++) h[i * k + j] += x[t * k + i] * x[t * k + j];
    return h;
}

static uint32_t draw_state = CASES_SEED;
static double draw(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        draw_state = draw_state * 1664525u + 1013904223u;
        sum += (draw_state >> 8) / 16777216.0;
    }
    return sum - 6;
}

typedef struct made {
    int64_t n, k, groups;
    uint8_t *packed;
    float *scale;
    double loss;
} made;

static made make(const mb_gptq *gptq, const float *w, int64_t n, int64_t k, const mb_gptq_options *o)
{
    made m = {.n = n, .k = k, .groups = mb_gptq_groups(k, o->group)};
    m.packed = mb_calloc((size_t)(n * ((k + 1) / 2)), 1);
    m.scale = mb_calloc((size_t)(n * m.groups), sizeof(float));
    double *loss = mb_calloc((size_t)n, sizeof *loss);
    if (gptq != NULL)
        assert_status_ok(mb_gptq_run(gptq, w, n, m.packed, m.scale, loss));
    else
        assert_status_ok(mb_gptq_round(w, n, k, o, m.packed, m.scale));
    for (int64_t r = 0; r < n; r++) m.loss += loss[r];
    mb_free(loss);
    return m;
}

static void unmake(made *m)
{
    mb_free(m->packed);
    mb_free(m->scale);
}

static int whole(const made *m, int64_t r, int64_t c)
{
    const uint8_t byte = m->packed[r * ((m->k + 1) / 2) + c / 2];
    return (c % 2 == 0 ? byte & 15 : byte >> 4) - 8;
}

/* Sum of (w - q) H (w - q) over the rows, H given by its lower triangle. */
static double loss_of(const made *m, const float *w, const double *h)
{
    double sum = 0, *e = mb_calloc((size_t)m->k, sizeof *e);
    for (int64_t r = 0; r < m->n; r++) {
        for (int64_t c = 0; c < m->k; c++)
            e[c] =
                w[r * m->k + c] - (double)m->scale[r * m->groups + c / (m->k / m->groups)] * whole(m, r, c);
        for (int64_t i = 0; i < m->k; i++)
            for (int64_t j = 0; j <= i; j++) sum += (i == j ? 1 : 2) * e[i] * e[j] * h[i * m->k + j];
    }
    mb_free(e);
    return sum;
}

/* ---- 2. numpy ---- */

static void *golden_read(mb_h5 *file, int number, const char *name, mb_dtype dtype, int64_t shape[4])
{
    char path[64];
    int dims;
    void *data;
    snprintf(path, sizeof path, "case%d/%s", number, name);
    assert_status_ok(mb_h5_read_new(file, path, dtype, &dims, shape, &data));
    return data;
}

static void golden_case(mb_h5 *file, int number)
{
    char path[64];
    int64_t shape[4], inputs, k, group, act;
    double expected;
    snprintf(path, sizeof path, "case%d", number);
    assert_status_ok(mb_h5_get_int(file, path, "group", &group));
    assert_status_ok(mb_h5_get_int(file, path, "act_order", &act));
    int8_t *x = golden_read(file, number, "x", MB_I8, shape);
    inputs = shape[0];
    float *scale = golden_read(file, number, "scale", MB_F32, shape);
    int8_t *q = golden_read(file, number, "q", MB_I8, shape);
    float *w = golden_read(file, number, "weight", MB_F32, shape);
    const int64_t n = shape[0];
    k = shape[1];
    double *values = mb_calloc((size_t)(inputs * k), sizeof *values);
    for (int64_t i = 0; i < inputs * k; i++) values[i] = x[i];
    double *h = gram(values, inputs, k);
    snprintf(path, sizeof path, "case%d/loss", number);
    assert_status_ok(mb_h5_read_f64(file, path, &expected));
    const mb_gptq_options options = {.group = group, .damping = 0.01, .act_order = act != 0};
    mb_gptq *gptq = NULL;
    assert_status_ok(mb_gptq_create(h, k, &options, &gptq));
    made m = make(gptq, w, n, k, &options);
    int64_t other = 0, scales = 0;
    for (int64_t i = 0; i < n * k; i++) other += whole(&m, i / k, i % k) != q[i];
    for (int64_t i = 0; i < n * m.groups; i++) scales += fabs(m.scale[i] - scale[i]) > 1e-6 * scale[i];
    print_message("# case %d: [%lld, %lld] groups of %lld%s: %lld of %lld integers differ, loss %.9g, numpy "
                  "%.9g, %lld columns never used\n",
                  number, (long long)n, (long long)k, (long long)group, act != 0 ? " in order" : "",
                  (long long)other, (long long)(n * k), m.loss, expected, (long long)mb_gptq_dead(gptq));
    assert_int_equal(other, 0);
    assert_int_equal(scales, 0);
    assert_true(fabs(m.loss - expected) <= 1e-9 * expected);
    unmake(&m);
    mb_gptq_destroy(&gptq);
    void *all[] = {x, scale, q, w, values, h};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mb_free(all[i]);
}

static void test_integers_are_those_of_the_paper(void **state)
{
    (void)state;
    mb_h5 *file = NULL;
    assert_status_ok(mb_h5_open(GOLDEN, &file));
    for (int i = 0; i < 6; i++) golden_case(file, i);
    assert_status_ok(mb_h5_close(&file));
}

/* ---- 3. against rounding ---- */

typedef struct layer {
    int64_t n, k;
    float *w;
    double *h;
} layer;

/* Correlated inputs: every feature shares most of its neighbour. */
static layer layer_make(int64_t n, int64_t k, int64_t inputs)
{
    layer l = {.n = n, .k = k};
    double *x = mb_calloc((size_t)(inputs * k), sizeof *x);
    l.w = mb_calloc((size_t)(n * k), sizeof *l.w);
    for (int64_t i = 0; i < n * k; i++) l.w[i] = (float)(0.1 * draw());
    for (int64_t t = 0; t < inputs; t++)
        for (int64_t i = 0; i < k; i++)
            x[t * k + i] = (i > 0 ? 0.8 * x[t * k + i - 1] : 0) + draw() * (i % 7 == 0 ? 3 : 1);
    l.h = gram(x, inputs, k);
    mb_free(x);
    return l;
}

static void layer_free(layer *l)
{
    mb_free(l->w);
    mb_free(l->h);
}

static void test_it_loses_less_than_rounding(void **state)
{
    (void)state;
    static const int64_t groups[] = {32, 64, 128};
    layer l = layer_make(40, 256, 700);
    double last = 0;
    for (int i = 0; i < 3; i++)
        for (int act = 0; act < 2; act++) {
            const mb_gptq_options options = {.group = groups[i], .damping = 0.01, .act_order = act != 0};
            mb_gptq *gptq = NULL;
            assert_status_ok(mb_gptq_create(l.h, l.k, &options, &gptq));
            made better = make(gptq, l.w, l.n, l.k, &options), nearest = make(NULL, l.w, l.n, l.k, &options);
            const double a = loss_of(&better, l.w, l.h), b = loss_of(&nearest, l.w, l.h);
            print_message("# groups of %lld%s: loss %.5g, rounded %.5g\n", (long long)groups[i],
                          act != 0 ? ", ordered" : "", a, b);
            assert_true(a < 0.5 * b);
            assert_true(a <= better.loss); /* that of the damped Hessian is larger */
            if (act == 0) assert_true(a > last);
            if (act == 0) last = a;
            unmake(&better);
            unmake(&nearest);
            mb_gptq_destroy(&gptq);
        }
    layer_free(&l);
}

/* Integers are the same, but where a quotient ends on a half (the largest of a group are 7.5 scales) and the
 * last bit of a division decides. */
static void assert_halves(const made *a, const made *b, const float *w)
{
    int64_t halves = 0;
    for (int64_t r = 0; r < a->n; r++)
        for (int64_t c = 0; c < a->k; c++) {
            const int p = whole(a, r, c), q = whole(b, r, c);
            const double quotient = w[r * a->k + c] / (double)a->scale[r * a->groups + c * a->groups / a->k];
            if (p == q) continue;
            halves++;
            assert_true(fabs(fabs(quotient - p) - 0.5) < 1e-6 && fabs(fabs(quotient - q) - 0.5) < 1e-6);
        }
    assert_true(halves <= a->n * a->groups);
}

/* A diagonal Hessian moves nothing: GPTQ is rounding then. */
static void test_without_correlation_it_rounds(void **state)
{
    (void)state;
    layer l = layer_make(9, 96, 10);
    for (int64_t i = 0; i < l.k; i++)
        for (int64_t j = 0; j < i; j++) l.h[i * l.k + j] = 0;
    const mb_gptq_options options = {.group = 32, .damping = 0.01};
    mb_gptq *gptq = NULL;
    assert_status_ok(mb_gptq_create(l.h, l.k, &options, &gptq));
    made a = make(gptq, l.w, l.n, l.k, &options), b = make(NULL, l.w, l.n, l.k, &options);
    assert_halves(&a, &b, l.w);
    assert_memory_equal(a.scale, b.scale, (size_t)(l.n * a.groups) * sizeof(float));
    unmake(&a);
    unmake(&b);
    mb_gptq_destroy(&gptq);
    layer_free(&l);
}

/* The same integers as model.quantize makes while loading, but for quotients that end on a half. */
static void test_rounding_is_that_of_loading(void **state)
{
    (void)state;
    layer l = layer_make(16, 128, 1);
    const mb_gptq_options options = {.group = 32};
    made a = make(NULL, l.w, l.n, l.k, &options);
    uint8_t packed[16 * 64];
    float scale[16 * 4];
    mb_weight weight;
    mb_weight_init_quantised(&weight, mb_tensor_view2(MB_U8, packed, 16, 64), 4, 128, 32,
                             mb_tensor_view2(MB_F32, scale, 16, 4));
    mb_quantise_rows(l.w, &weight);
    made b = {.n = 16, .k = 128, .groups = 4, .packed = packed, .scale = scale};
    assert_halves(&a, &b, l.w);
    assert_memory_equal(a.scale, scale, sizeof scale);
    mb_weight_reset(&weight);
    unmake(&a);
    layer_free(&l);
}

/* ---- 4. edges ---- */

static void test_rows_do_not_depend_on_threads_or_neighbours(void **state)
{
    (void)state;
    layer l = layer_make(37, 192, 300);
    const mb_gptq_options options = {.group = 64, .damping = 0.01, .stored = MB_BF16};
    mb_gptq *one = NULL, *many = NULL;
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    assert_status_ok(mb_gptq_create(l.h, l.k, &options, &one));
    made a = make(one, l.w, l.n, l.k, &options);
    omp_set_num_threads(3);
    assert_status_ok(mb_gptq_create(l.h, l.k, &options, &many));
    made b = make(many, l.w, l.n, l.k, &options), c = make(many, l.w + 11 * l.k, 5, l.k, &options);
    omp_set_num_threads(threads);
    assert_memory_equal(a.packed, b.packed, (size_t)(l.n * l.k / 2));
    assert_memory_equal(a.scale, b.scale, (size_t)(l.n * a.groups) * sizeof(float));
    assert_true(a.loss == b.loss);
    assert_memory_equal(c.packed, a.packed + 11 * l.k / 2, (size_t)(5 * l.k / 2));
    for (int64_t i = 0; i < l.n * a.groups; i++) /* scales are those that bf16 holds */
        assert_true(mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(a.scale[i])) == a.scale[i]);
    unmake(&a);
    unmake(&b);
    unmake(&c);
    mb_gptq_destroy(&one);
    mb_gptq_destroy(&many);
    layer_free(&l);
}

static void test_columns_never_used_become_nothing(void **state)
{
    (void)state;
    layer l = layer_make(6, 64, 200);
    for (int64_t i = 0; i < l.k; i++)
        for (int64_t j = 0; j <= i; j++)
            if (i == 5 || j == 5 || i == 40 || j == 40) l.h[i * l.k + j] = 0;
    const mb_gptq_options options = {.group = 32, .damping = 0.01};
    mb_gptq *gptq = NULL;
    assert_status_ok(mb_gptq_create(l.h, l.k, &options, &gptq));
    assert_int_equal(mb_gptq_dead(gptq), 2);
    made m = make(gptq, l.w, l.n, l.k, &options);
    for (int64_t r = 0; r < l.n; r++) {
        assert_int_equal(whole(&m, r, 5), 0);
        assert_int_equal(whole(&m, r, 40), 0);
    }
    unmake(&m);
    mb_gptq_destroy(&gptq);
    layer_free(&l);
}

static void test_damping_grows_until_the_hessian_can_be_factored(void **state)
{
    (void)state;
    layer l = layer_make(4, 64, 3); /* of rank 3 */
    const mb_gptq_options options = {.group = 32, .damping = 0};
    mb_gptq *gptq = NULL;
    for (int64_t i = 0; i < l.k; i++) l.h[i * l.k + i] *= 1 - 1e-3; /* and not even semi-definite */
    assert_status_ok(mb_gptq_create(l.h, l.k, &options, &gptq));
    assert_true(mb_gptq_damping(gptq) > 0 && mb_gptq_damping(gptq) <= 0.1);
    mb_gptq_destroy(&gptq);
    for (int64_t i = 0; i < l.k; i++)
        for (int64_t j = 0; j < i; j++) l.h[i * l.k + j] = 1e6;
    assert_status_says(mb_gptq_create(l.h, l.k, &options, &gptq), MB_ENUMERIC, "cannot be factored");
    l.h[9 * l.k + 9] = NAN;
    assert_status_says(mb_gptq_create(l.h, l.k, &options, &gptq), MB_ENUMERIC, "at column 9");
    assert_null(gptq);
    layer_free(&l);
}

static void test_bad_values_are_refused(void **state)
{
    (void)state;
    float w[64] = {0}, scale[2];
    uint8_t packed[32];
    mb_gptq_options options = {.group = 32};
    assert_status_ok(mb_gptq_round(w, 1, 64, &options, packed, scale));
    assert_true(scale[0] == 0 && packed[0] == 0x88); /* zeros: scale 0, integers 0 */
    w[33] = 1e30f;
    options.stored = MB_F16;
    assert_status_says(mb_gptq_round(w, 1, 64, &options, packed, scale), MB_ENUMERIC, "scale 1");
    w[33] = NAN;
    assert_status_says(mb_gptq_round(w, 1, 64, &options, packed, scale), MB_ENUMERIC, "element 33");
}

static void test_groups_that_do_not_fit_give_way(void **state)
{
    (void)state;
    assert_int_equal(mb_gptq_group(4096, 128), 128);
    assert_int_equal(mb_gptq_group(344, 32), 86); /* 8 is further off */
    assert_int_equal(mb_gptq_group(344, 128), 172);
    assert_int_equal(mb_gptq_group(172, 64), 86);
    assert_int_equal(mb_gptq_group(172, 16), 4);
    assert_int_equal(mb_gptq_group(11008, 128), 128);
    assert_int_equal(mb_gptq_group(96, 64), 48); /* 96 is as near: 48 / 64 is 1.33 off, 96 / 64 1.5 */
    assert_int_equal(mb_gptq_group(64, 128), 64);
    assert_int_equal(mb_gptq_group(1009, 128), 1009); /* a prime: a scale per row */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_integers_are_those_of_the_paper),
                                       cmocka_unit_test(test_it_loses_less_than_rounding),
                                       cmocka_unit_test(test_without_correlation_it_rounds),
                                       cmocka_unit_test(test_rounding_is_that_of_loading),
                                       cmocka_unit_test(test_rows_do_not_depend_on_threads_or_neighbours),
                                       cmocka_unit_test(test_columns_never_used_become_nothing),
                                       cmocka_unit_test(test_damping_grows_until_the_hessian_can_be_factored),
                                       cmocka_unit_test(test_bad_values_are_refused),
                                       cmocka_unit_test(test_groups_that_do_not_fit_give_way)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
