/* test_ops_dense: products against f64, their accumulation and empties, and the promise that a row's bits
 * depend on nothing else.
 *
 * 1. naive products
 * 2. values
 * 3. bits
 */
#include "ops_fixture.h"

enum { PAIR_MOST = 8 };

/* ---- 1. naive products ---- */

/* c[m,n] += a[m,k] b[k,n] with element strides. */
static void naive(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column,
                  const float *b, int64_t b_row, int64_t b_column, double *c)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t p = 0; p < k; p++) {
                c[i * n + j] += (double)a[i * a_row + p * a_column] * b[p * b_row + j * b_column];
            }
        }
    }
}

static double *widened(const float *x, int64_t n)
{
    double *y = fixture_f64(n);
    for (int64_t i = 0; i < n; i++) y[i] = x[i];
    return y;
}

/* ---- 2. values ---- */

static void check_linear(mb_ops *ops, int64_t t, int64_t n, int64_t k, bool accumulate)
{
    float *x = fixture_random(t * k, 1, 1), *w = fixture_random(n * k, 2, 1),
          *y = fixture_random(t * n, 3, 1);
    float *bias = fixture_random(n, 4, 1), *dx = fixture_random(t * k, 5, 1),
          *dw = fixture_random(n * k, 6, 1);
    float *dbias = fixture_copy(bias, n);
    double *want_y = accumulate ? widened(y, t * n) : fixture_f64(t * n);
    double *want_dx = accumulate ? widened(dx, t * k) : fixture_f64(t * k);
    double *want_dw = widened(dw, n * k), *want_db = widened(bias, n);
    mb_tensor tx = fixture_matrix(x, t, k), ty = fixture_matrix(y, t, n), tdx = fixture_matrix(dx, t, k);
    mb_tensor tdw = fixture_matrix(dw, n, k), tb = mb_tensor_view1(MB_F32, bias, n);
    mb_tensor tdb = mb_tensor_view1(MB_F32, dbias, n);
    mb_weight weight;
    mb_weight_init(&weight, fixture_matrix(w, n, k));
    naive(t, n, k, x, k, 1, w, 1, k, want_y);
    for (int64_t i = 0; i < t * n; i++) want_y[i] += bias[i % n];
    fixture_ok(mb_ops_linear(ops, &tx, &weight, &tb, accumulate, &ty));
    fixture_near("linear", y, want_y, t * n, 1e-5);
    naive(t, k, n, y, n, 1, w, k, 1, want_dx);
    fixture_ok(mb_ops_linear_dx(ops, &ty, &weight, accumulate, &tdx));
    fixture_near("linear_dx", dx, want_dx, t * k, 1e-5);
    naive(n, k, t, y, 1, n, x, k, 1, want_dw);
    for (int64_t i = 0; i < t * n; i++) want_db[i % n] += y[i];
    fixture_ok(mb_ops_linear_dw(ops, &ty, &tx, &tdw, &tdb));
    fixture_near("linear_dw", dw, want_dw, n * k, 1e-5);
    fixture_near("dbias", dbias, want_db, n, 1e-5);
    mb_weight_reset(&weight);
    void *blocks[] = {x, w, y, bias, dx, dw, dbias, want_y, want_dx, want_dw, want_db};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) mb_free(blocks[i]);
}

static void test_linear(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{0, 8, 8},    {1, 8, 8},     {3, 5, 7},      {64, 64, 64}, {130, 33, 65},
                                 {300, 48, 1}, {1, 200, 300}, {257, 128, 96}, {700, 96, 40}};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        printf("# %s\n", mb_ops_describe(ops));
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            check_linear(ops, shapes[i][0], shapes[i][1], shapes[i][2], i % 2 == 0);
        }
        mb_ops_destroy(&ops);
    }
}

/* Values of a weight change: the packed form must follow. */
static void test_weight_changed(void **state)
{
    (void)state;
    enum { T = 300, N = 64, K = 48 };
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        float *x = fixture_random(T * K, 1, 1), *w = fixture_random(N * K, 2, 1),
              *y = fixture_random(T * N, 3, 1);
        mb_tensor tx = fixture_matrix(x, T, K), ty = fixture_matrix(y, T, N);
        mb_weight weight;
        mb_weight_init(&weight, fixture_matrix(w, N, K));
        const int64_t uses = fixture_size(ops, 90, 3); /* long enough to be packed */
        for (int round = 0; round < 3; round++) {
            double *want = fixture_f64(T * N);
            naive(T, N, K, x, K, 1, w, 1, K, want);
            for (int64_t use = 0; use < uses; use++) {
                fixture_ok(mb_ops_linear(ops, &tx, &weight, NULL, false, &ty));
                if (use % 30 == 0 || use == uses - 1) fixture_near("after a change", y, want, T * N, 1e-5);
            }
            for (int64_t i = 0; i < N * K; i++) w[i] = 0.5f * w[i] + 1.0f;
            mb_weight_changed(&weight);
            mb_free(want);
        }
        mb_weight_reset(&weight);
        mb_free(x), mb_free(w), mb_free(y);
        mb_ops_destroy(&ops);
    }
}

/* Group sizes of one case: E groups, rows P. */
typedef struct grouped_case {
    int64_t groups, n, k;
    int32_t sizes[PAIR_MOST];
} grouped_case;

static void check_grouped(mb_ops *ops, const grouped_case *g)
{
    int32_t offsets[PAIR_MOST + 1] = {0};
    for (int64_t e = 0; e < g->groups; e++) offsets[e + 1] = offsets[e] + g->sizes[e];
    int64_t p = offsets[g->groups], n = g->n, k = g->k;
    float *x = fixture_random(p * k, 1, 1), *y = fixture_random(p * n, 2, 1),
          *dx = fixture_random(p * k, 3, 1);
    float *w[PAIR_MOST], *dw[PAIR_MOST];
    mb_weight weights[PAIR_MOST], *pointers[PAIR_MOST];
    mb_tensor gradients[PAIR_MOST];
    double *want_y = fixture_f64(p * n), *want_dx = widened(dx, p * k), *want_dw[PAIR_MOST];
    for (int64_t e = 0; e < g->groups; e++) {
        w[e] = fixture_random(n * k, 10 + (uint32_t)e, 1), dw[e] = fixture_random(n * k, 20 + (uint32_t)e, 1);
        mb_weight_init(&weights[e], fixture_matrix(w[e], n, k));
        pointers[e] = &weights[e];
        gradients[e] = e == 1 ? (mb_tensor){0} : fixture_matrix(dw[e], n, k);
        want_dw[e] = widened(dw[e], n * k);
        naive(g->sizes[e], n, k, x + offsets[e] * k, k, 1, w[e], 1, k, want_y + offsets[e] * n);
    }
    mb_tensor tx = fixture_matrix(x, p, k), ty = fixture_matrix(y, p, n), tdx = fixture_matrix(dx, p, k);
    fixture_ok(mb_ops_grouped_linear(ops, &tx, offsets, g->groups, pointers, &ty));
    fixture_near("grouped_linear", y, want_y, p * n, 1e-5);
    for (int64_t e = 0; e < g->groups; e++) {
        naive(g->sizes[e], k, n, y + offsets[e] * n, n, 1, w[e], k, 1, want_dx + offsets[e] * k);
        if (e != 1) naive(n, k, g->sizes[e], y + offsets[e] * n, 1, n, x + offsets[e] * k, k, 1, want_dw[e]);
    }
    fixture_ok(mb_ops_grouped_linear_dx(ops, &ty, offsets, g->groups, pointers, true, &tdx));
    fixture_near("grouped_linear_dx", dx, want_dx, p * k, 1e-5);
    fixture_ok(mb_ops_grouped_linear_dw(ops, &ty, &tx, offsets, g->groups, gradients));
    for (int64_t e = 0; e < g->groups; e++) {
        fixture_near("grouped_linear_dw", dw[e], want_dw[e], n * k, 1e-5);
        mb_weight_reset(&weights[e]);
        mb_free(w[e]), mb_free(dw[e]), mb_free(want_dw[e]);
    }
    void *blocks[] = {x, y, dx, want_y, want_dx};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) mb_free(blocks[i]);
}

static void test_grouped(void **state)
{
    (void)state;
    const grouped_case cases[] = {
        {.groups = 3, .n = 40, .k = 24, .sizes = {5, 200, 130}},
        {.groups = 4, .n = 16, .k = 32, .sizes = {0, 1, 0, 67}},
        {.groups = 2, .n = 8, .k = 8, .sizes = {0, 0}},
        {.groups = 8, .n = 48, .k = 64, .sizes = {1, 2, 3, 128, 129, 0, 64, 63}},
    };
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_grouped(ops, &cases[i]);
        mb_ops_destroy(&ops);
    }
}

static void test_refused(void **state)
{
    (void)state;
    for (int c = 0; c < 2; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 1);
        if (ops == NULL) continue;
        float data[64] = {0};
        int32_t falling[3] = {0, 4, 2};
        mb_tensor x = fixture_matrix(data, 2, 4), y = fixture_matrix(data + 32, 2, 3);
        mb_tensor half = mb_tensor_view2(MB_F16, data, 2, 4);
        mb_weight w, *both[2] = {&w, &w};
        mb_weight_init(&w, fixture_matrix(data, 3, 5));
        assert_int_equal(mb_ops_linear(ops, &x, &w, NULL, false, &y), MB_ESHAPE);
        assert_non_null(strstr(mb_status_message(), "[2, 4]"));
        mb_weight_init(&w, fixture_matrix(data, 3, 4));
        assert_int_equal(mb_ops_linear(ops, &half, &w, NULL, false, &y), MB_EUNSUPPORTED);
        assert_int_equal(mb_ops_grouped_linear(ops, &x, falling, 2, both, &y), MB_ERANGE);
        mb_ops_destroy(&ops);
    }
    mb_ops *none = NULL;
    assert_int_equal(mb_ops_create("abacus", 1, &none), MB_EUNSUPPORTED);
    assert_null(none);
}

/* ---- 3. bits ---- */

/* y = x w^T (is_dx: x w) of some rows, with the weight used `uses` times before (65: enough to be packed). */
static void some_rows(mb_ops *ops, const float *x, int64_t rows, float *w, int64_t n, int64_t k, bool is_dx,
                      int uses, float *y)
{
    mb_weight weight;
    mb_weight_init(&weight, is_dx ? fixture_matrix(w, k, n) : fixture_matrix(w, n, k));
    mb_tensor tx = fixture_matrix((float *)(uintptr_t)x, rows, k), ty = fixture_matrix(y, rows, n);
    for (int i = 0; i <= uses; i++) {
        if (is_dx) fixture_ok(mb_ops_linear_dx(ops, &tx, &weight, false, &ty));
        if (!is_dx) fixture_ok(mb_ops_linear(ops, &tx, &weight, NULL, false, &ty));
    }
    mb_weight_reset(&weight);
}

/* Rows in calls of other sizes, on 1 and 2 threads, packed or not: the bits of a call of all rows. */
static void check_rows(const fixture_config *config, int64_t n, int64_t k, bool is_dx)
{
    const int64_t counts[] = {1,  2,  3,  4,  5,   7,   8,   12,  16,  17,  31,  32, 33,
                              48, 63, 64, 65, 100, 127, 128, 129, 200, 255, 256, 299};
    enum { ROWS = 300 };
    float *x = fixture_random(ROWS * k, 1, 1), *w = fixture_random(n * k, 2, 1);
    float *all = fixture_random(ROWS * n, 3, 1), *some = fixture_random(ROWS * n, 4, 1);
    for (int threads = 1; threads <= 2; threads++) {
        mb_ops *ops = fixture_ops(config, threads);
        if (ops == NULL) break;
        bool is_packing = strstr(mb_ops_describe(ops), "oneDNN") != NULL;
        if (strstr(mb_ops_describe(ops), "brg:avx512") != NULL) assert_true(mb_ops_is_row_stable(ops));
        if (!mb_ops_is_row_stable(ops)) {
            printf("# no promise by %s\n", mb_ops_describe(ops));
            mb_ops_destroy(&ops);
            break;
        }
        if (threads == 1) some_rows(ops, x, ROWS, w, n, k, is_dx, 0, all);
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            int64_t first = ROWS - counts[i];
            some_rows(ops, x + first * k, counts[i], w, n, k, is_dx, is_packing && i % 5 == 0 ? 65 : 0, some);
            char what[160];
            snprintf(what, sizeof what, "%.80s: N %d K %d dx %d, last %d of %d rows", mb_ops_describe(ops),
                     (int)n, (int)k, is_dx, (int)counts[i], ROWS);
            fixture_same(what, some, all + first * n, counts[i] * n);
        }
        mb_ops_destroy(&ops);
    }
    mb_free(x), mb_free(w), mb_free(all), mb_free(some);
}

static void test_row_bits(void **state)
{
    (void)state;
    const int64_t shapes[][2] = {{64, 128}, {256, 64}, {128, 512}, {8, 128}, {100, 70}, {1024, 512}};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            if (c != 1 && i == 5) continue; /* the large one for the default only */
            if (c == 0 && i > 1) continue;
            check_rows(&fixture_configs[c], shapes[i][0], shapes[i][1], false);
            check_rows(&fixture_configs[c], shapes[i][0], shapes[i][1], true);
        }
    }
}

/* dw on 1 and 2 threads: the same bits. */
static void test_dw_bits(void **state)
{
    (void)state;
    enum { N = 150, K = 96 };
    const int64_t counts[] = {1, 37, 64, 100, 300, 511, 1100};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            int64_t t = counts[i];
            float *x = fixture_random(t * K, 1, 1), *dy = fixture_random(t * N, 2, 1), *dw[2] = {NULL, NULL};
            for (int threads = 1; threads <= 2; threads++) {
                mb_ops *ops = fixture_ops(&fixture_configs[c], threads);
                dw[threads - 1] = fixture_random(N * K, 3, 1);
                if (ops == NULL) continue;
                mb_tensor tx = fixture_matrix(x, t, K), tdy = fixture_matrix(dy, t, N);
                mb_tensor tdw = fixture_matrix(dw[threads - 1], N, K);
                fixture_ok(mb_ops_linear_dw(ops, &tdy, &tx, &tdw, NULL));
                mb_ops_destroy(&ops);
            }
            fixture_same("dw on 1 and 2 threads", dw[0], dw[1], N * K);
            mb_free(x), mb_free(dy), mb_free(dw[0]), mb_free(dw[1]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),  cmocka_unit_test(test_weight_changed), cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_row_bits),       cmocka_unit_test(test_dw_bits),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
