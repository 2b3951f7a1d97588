/* test_ops_act: the two dtypes of activations, and the ops without a gradient.
 *
 * Every op of ops_cases.h runs on every allowed mix of f32 and bf16: sums are f32
 * inside, so a bf16 output must be the f32 output of the same numbers, rounded once, bit for bit. Mixes that
 * are not allowed must be refused.
 *
 * 1. every mix of dtypes
 * 2. refusals
 * 3. conversion
 * 4. gelu, layer norm, dropout against known values
 */
#include "ops_cases.h"

/* ---- 1. every mix of dtypes ---- */

/* got holds want's numbers, rounded if got is bf16. */
static void check_output(const op_case *c, unsigned mix, const mb_tensor *got, const mb_tensor *want)
{
    const float *w = mb_tensor_f32(want);
    for (int64_t i = 0; i < mb_tensor_count(want); i++) {
        bool is_same = got->dtype == MB_F32
                           ? memcmp(&mb_tensor_f32(got)[i], &w[i], sizeof *w) == 0
                           : ((const uint16_t *)got->data)[i] == mb_dtype_bf16_from_f32(w[i]);
        if (!is_same)
            fail_msg("%s, mix %u: element %lld of a %s output is not %.9g", c->name, mix, (long long)i,
                     mb_dtype_name(got->dtype), (double)w[i]);
    }
}

static void check_mixes(const scene *s, const op_case *c, fixture_tape *tape)
{
    mb_tensor want[MOST], got[MOST];
    int groups = make_arguments(s, c, 0, want);
    fixture_ok(c->run(s, want));
    for (unsigned mix = 1; mix < 1u << groups; mix++) {
        make_arguments(s, c, mix, got);
        fixture_ok(c->run(s, got));
        for (int i = 0; i < count_of(c); i++)
            if (c->arguments[i].use != READ) check_output(c, mix, &got[i], &want[i]);
        free_arguments(c, got);
    }
    for (int i = 0; i < count_of(c); i++)
        fixture_record(tape, mb_tensor_f32(&want[i]), mb_tensor_count(&want[i]));
    free_arguments(c, want);
}

static void mixes(mb_ops *ops, fixture_tape *tape)
{
    static const int64_t sizes[][2] = {{0, 8}, {1, 2}, {5, 38}, {6, 64}, {9, 150}, {130, 290}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        scene s = scene_create(ops, sizes[i][0], sizes[i][1]);
        for (int j = 0; j < CASES; j++) check_mixes(&s, &cases[j], tape);
        scene_destroy(&s);
    }
    scene odd = scene_create(ops, 7, 37);
    for (int j = 0; j < CASES; j++)
        if (strcmp(cases[j].name, "rope") != 0) check_mixes(&odd, &cases[j], tape);
    scene_destroy(&odd);
}

/* cpu and ref on the same bf16 numbers: apart by what f32 sums lose, and one rounding. */
static void check_against_ref(const scene *s, const scene *ref, const op_case *c)
{
    mb_tensor got[MOST], want[MOST];
    make_arguments(s, c, 0xFF, got), make_arguments(ref, c, 0xFF, want);
    fixture_ok(c->run(s, got)), fixture_ok(c->run(ref, want));
    for (int i = 0; i < count_of(c); i++) {
        int64_t n = mb_tensor_count(&got[i]);
        float *a = fixture_random(n, 0, 0), *b = fixture_random(n, 0, 0);
        double *expected = fixture_f64(n);
        fixture_ok(mb_dtype_to_f32(got[i].dtype, got[i].data, n, a));
        fixture_ok(mb_dtype_to_f32(want[i].dtype, want[i].data, n, b));
        for (int64_t j = 0; j < n; j++) expected[j] = b[j];
        fixture_near(c->name, a, expected, n, got[i].dtype == MB_F32 ? 1e-5 : 0x1p-8);
        mb_free(a), mb_free(b), mb_free(expected);
    }
    free_arguments(c, got), free_arguments(c, want);
}

static void against_ref(mb_ops *ops, fixture_tape *tape)
{
    (void)tape;
    mb_ops *plain = NULL;
    fixture_ok(mb_ops_create("ref", 1, &plain));
    scene s = scene_create(ops, 21, 74), ref = scene_create(plain, 21, 74);
    for (int j = 0; j < CASES; j++) check_against_ref(&s, &ref, &cases[j]);
    scene_destroy(&s), scene_destroy(&ref);
    mb_ops_destroy(&plain);
}

/* ---- 2. refusals ---- */

/* f16 nowhere; bf16 not where f32 is asked for; one of a group not alone. */
static void refusals(mb_ops *ops, fixture_tape *tape)
{
    (void)tape;
    scene s = scene_create(ops, 3, 8);
    for (int j = 0; j < CASES; j++) {
        const op_case *c = &cases[j];
        mb_tensor a[MOST];
        make_arguments(&s, c, 0, a);
        for (int i = 0; i < count_of(c); i++) {
            a[i].dtype = MB_F16;
            assert_int_equal(c->run(&s, a), MB_EUNSUPPORTED);
            int sharers = 0;
            for (int k = 0; k < count_of(c); k++) sharers += c->arguments[k].group == c->arguments[i].group;
            a[i].dtype = MB_BF16;
            if (c->arguments[i].group == 0 || sharers > 1) assert_int_equal(c->run(&s, a), MB_EUNSUPPORTED);
            a[i].dtype = MB_F32;
        }
        free_arguments(c, a);
    }
    scene_destroy(&s);
}

/* ---- 3. conversion ---- */

/* Every bf16, and what lies around and between them. */
static void conversions(mb_ops *ops, fixture_tape *tape)
{
    enum { ALL = 65536 };
    static const uint32_t offsets[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    uint16_t *halves = mb_calloc(ALL, sizeof *halves);
    float *x = fixture_random(ALL, 0, 0);
    for (int64_t i = 0; i < ALL; i++) halves[i] = (uint16_t)i;
    mb_tensor th = mb_tensor_view2(MB_BF16, halves, 1, ALL), tx = fixture_matrix(x, 1, ALL);
    fixture_ok(mb_ops_cast(ops, &th, &tx));
    for (int64_t i = 0; i < ALL; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        if (bits != (uint32_t)i << 16) fail_msg("bf16 %llx read as %x", (long long)i, bits);
    }
    for (size_t o = 0; o < sizeof offsets / sizeof offsets[0]; o++) {
        for (int64_t i = 0; i < ALL; i++) {
            uint32_t bits = (uint32_t)i << 16 | offsets[o];
            memcpy(&x[i], &bits, sizeof bits);
        }
        fixture_ok(mb_ops_cast(ops, &tx, &th));
        for (int64_t i = 0; i < ALL; i++) {
            uint32_t bits = (uint32_t)i << 16 | offsets[o];
            bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
            uint32_t up = (uint32_t)i + 1, rest = bits & 0xFFFFu;
            uint32_t want = rest > 0x8000u || (rest == 0x8000u && (i & 1) != 0) ? up : (uint32_t)i;
            if (is_nan) want = (uint32_t)i | 0x40u;
            if (is_nan && fixture_is_cuda(ops)) { /* some NaN */
                assert_true((halves[i] & 0x7FFFu) > 0x7F80u);
                continue;
            }
            if (halves[i] != want) fail_msg("%x rounded to %x, expected %x", bits, halves[i], want);
        }
    }
    fixture_record(tape, x, 1);
    mb_free(halves), mb_free(x);
}

/* ---- 4. gelu, layer norm, dropout against known values ---- */

/* Of torch 2, in f64. */
static void known(mb_ops *ops, fixture_tape *tape)
{
    enum { N = 9, D = 5 };
    static const double x[N] = {-6, -3, -1.5, -0.5, -1e-3, 0.25, 1, 2.75, 8};
    static const double want[2][N] = {{-5.91952586948e-09, -0.00404969409489, -0.100210801903,
                                       -0.154268769363, -0.000499601057786, 0.149676581421, 0.841344746069,
                                       2.7418056511, 8},
                                      {-8.43964897967e-11, -0.00363739208177, -0.10042842302, -0.154285990175,
                                       -0.000499601057786, 0.149675350702, 0.841191990608, 2.74227685593, 8}};
    static const double normed[2 * D] = {-0.501403811, -0.01156249027, -0.5048496663, 1.249993557,
                                         0.5070448261, -1.414210027,   -0.4142100269, -1,
                                         0.6035525067, 6.242630081};
    float rows[2 * D] = {0.5f, -1.25f, 3, 1000.5f, 2, 1000, 1001, 1002, 1003, 1004}, out[2 * D], y[N];
    float w[D] = {1, 2, -1, 0.5f, 3}, b[D] = {0, 1, -1, 0.25f, 2};
    mb_tensor ty = fixture_matrix(y, 1, N), tr = fixture_matrix(rows, 2, D), to = fixture_matrix(out, 2, D);
    mb_tensor tw = mb_tensor_view1(MB_F32, w, D), tb = mb_tensor_view1(MB_F32, b, D);
    for (int kind = 0; kind < 2; kind++) {
        for (int i = 0; i < N; i++) y[i] = (float)x[i];
        fixture_ok(mb_ops_gelu(ops, kind == 1, &ty));
        for (int i = 0; i < N; i++)
            assert_true(fabs(y[i] - want[kind][i]) <= 2e-6 * fabs(want[kind][i]) + 1e-15);
    }
    fixture_ok(mb_ops_layer_norm(ops, &tr, &tw, &tb, 1e-5f, &to));
    fixture_near("layer_norm", out, normed, 2 * D, 3e-7);
    fixture_record(tape, out, 2 * D), fixture_record(tape, y, N);
}

/* The normal distribution's tails keep their relative accuracy; infinities and NaN do as arithmetic says. */
static void gelu_range(mb_ops *ops, fixture_tape *tape)
{
    enum { N = 40001 };
    float *y = fixture_random(N + 2, 0, 0);
    for (int i = 0; i < N; i++) y[i] = (float)(-12.5 + 25.0 * i / (N - 1));
    y[N] = NAN, y[N + 1] = INFINITY;
    mb_tensor ty = fixture_matrix(y, 1, N + 2);
    fixture_ok(mb_ops_gelu(ops, false, &ty));
    for (int i = 0; i < N; i++) {
        double x = (float)(-12.5 + 25.0 * i / (N - 1)), want = 0.5 * x * erfc(-x * sqrt(0.5));
        double allowed = 6e-7 + 1.2e-7 * x * x; /* the exponential's argument is rounded */
        if (!(fabs(y[i] - want) <= allowed * fabs(want) + 1e-36))
            fail_msg("gelu(%.9g) is %.9g, expected %.9g", x, (double)y[i], want);
    }
    assert_true(isnan(y[N]) && y[N + 1] == INFINITY);
    fixture_record(tape, y, N);
    mb_free(y);
}

/* The draws are those of base/rng.h, and at their edges too: nothing dropped at 0. */
static void draws(mb_ops *ops, fixture_tape *tape)
{
    enum { R = 5, C = 1003 };
    static const float shares[] = {0, 1e-20f, 0.1f, 0.5f, 0.999f};
    const int64_t rows[R] = {0, 4294967295, 7, 3, 123456789012};
    float *x = fixture_random(R * C, 1, 1), *y = fixture_random(R * C, 2, 1);
    mb_tensor tx = fixture_matrix(x, R, C), ty = fixture_matrix(y, R, C);
    for (size_t s = 0; s < sizeof shares / sizeof shares[0]; s++) {
        fixture_ok(mb_ops_dropout(ops, &tx, shares[s], 0x123456789ABCDEF0u, 77, rows, &ty));
        for (int64_t i = 0; i < R * C; i++) {
            uint64_t index = (uint64_t)(rows[i / C] * C + i % C);
            bool drop = mb_rng_uniform(0x123456789ABCDEF0u, MB_RNG_DROPOUT, 77, index) < (double)shares[s];
            float want = drop ? 0.0f : 1.0f / (1.0f - shares[s]) * x[i];
            assert_memory_equal(&y[i], &want, sizeof want);
        }
        fixture_record(tape, y, R * C);
    }
    mb_free(x), mb_free(y);
}

/* A limit that bf16 has not: clamped values are the rounded limit, and the gradient there is 0. */
static void clamped(mb_ops *ops, fixture_tape *tape)
{
    (void)tape;
    static const float limits[] = {0.8f, 1.003f};
    for (int l = 0; l < 2; l++) {
        uint16_t y[3] = {mb_dtype_bf16_from_f32(5), mb_dtype_bf16_from_f32(-0.5f),
                         mb_dtype_bf16_from_f32(-7)};
        uint16_t dy[3] = {0x3F80, 0x3F80, 0x3F80}, limit = mb_dtype_bf16_from_f32(limits[l]);
        mb_tensor ty = mb_tensor_view2(MB_BF16, y, 1, 3), tdy = mb_tensor_view2(MB_BF16, dy, 1, 3);
        fixture_ok(mb_ops_clamp(ops, limits[l], &ty));
        assert_int_equal(y[0], limit), assert_int_equal(y[2], limit | 0x8000);
        fixture_ok(mb_ops_clamp_backward(ops, limits[l], &ty, &tdy));
        assert_int_equal(dy[0], 0), assert_int_equal(dy[1], 0x3F80), assert_int_equal(dy[2], 0);
    }
}

static void test_mixes(void **state)
{
    (void)state, fixture_each(mixes);
}
static void test_against_ref(void **state)
{
    (void)state, fixture_each(against_ref);
}
static void test_refusals(void **state)
{
    (void)state, fixture_each(refusals);
}
static void test_conversions(void **state)
{
    (void)state, fixture_each(conversions);
}
static void test_known(void **state)
{
    (void)state, fixture_each(known);
}
static void test_gelu_range(void **state)
{
    (void)state, fixture_each(gelu_range);
}
static void test_draws(void **state)
{
    (void)state, fixture_each(draws);
}
static void test_clamped(void **state)
{
    (void)state, fixture_each(clamped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixes),    cmocka_unit_test(test_against_ref),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_known),    cmocka_unit_test(test_gelu_range),
        cmocka_unit_test(test_draws),    cmocka_unit_test(test_clamped),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
