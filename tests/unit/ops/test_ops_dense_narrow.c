/* test_ops_dense_narrow: products of bf16 rows and of weights in every form against f64, and their bits.
 *
 * 1. tensors and weights
 * 2. values
 * 3. bits
 * 4. groups
 * 5. head
 * 6. quantised weights
 */
#include "ops_fixture.h"

enum { KINDS = 6, NARROW_ROWS = 150 };

/* ---- 1. tensors and weights ---- */

static mb_tensor random_tensor(mb_dtype dtype, int64_t rows, int64_t columns, uint32_t sub)
{
    float *x = fixture_random(rows * columns, sub, 1);
    if (dtype == MB_F32) return fixture_matrix(x, rows, columns);
    uint16_t *y = mb_calloc((size_t)(rows * columns) + 1, sizeof *y);
    assert_non_null(y);
    fixture_ok(mb_dtype_from_f32(dtype, x, rows * columns, y));
    mb_free(x);
    return mb_tensor_view2(dtype, y, rows, columns);
}

/* A tensor's values as f32. */
static float *values_of(const mb_tensor *tensor)
{
    const int64_t n = mb_tensor_count(tensor);
    float *x = mb_calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    fixture_ok(mb_dtype_to_f32(tensor->dtype, tensor->data, n, x));
    return x;
}

/* A weight of one of KINDS forms: f32, bf16, int8, int8 of other groups, int4, int4 of odd groups. */
static mb_weight random_weight(int kind, int64_t n, int64_t k, uint32_t sub)
{
    mb_weight w;
    const int64_t groups[KINDS] = {0, 0, 32, 7, 16, 5};
    if (kind < 2) {
        mb_weight_init(&w, random_tensor(kind == 0 ? MB_F32 : MB_BF16, n, k, sub));
        return w;
    }
    const int bits = kind < 4 ? 8 : 4;
    const int64_t width = bits == 8 ? k : (k + 1) / 2, g = (k + groups[kind] - 1) / groups[kind];
    uint8_t *data = mb_calloc((size_t)(n * width) + 1, 1);
    float *scale = fixture_random(n * g, sub + 1, 0.01);
    assert_non_null(data);
    for (int64_t i = 0; i < n * width; i++) data[i] = (uint8_t)fixture_below(sub, (uint64_t)i, 256);
    mb_weight_init_quantised(&w, mb_tensor_view2(bits == 8 ? MB_I8 : MB_U8, data, n, width), bits, k,
                             groups[kind], fixture_matrix(scale, n, g));
    return w;
}

static void weight_free(mb_weight *w)
{
    mb_weight_reset(w);
    mb_free(w->tensor.data);
    mb_free(w->scale.data);
}

/* The weight's values as rows of a dtype meet them. */
static float *weight_values(const mb_weight *w, mb_dtype rows)
{
    const int64_t count = w->tensor.shape[0] * w->width;
    float *x = mb_calloc((size_t)count + 1, sizeof *x);
    assert_non_null(x);
    mb_weight_read(w, 0, w->tensor.shape[0], x);
    for (int64_t i = 0; rows == MB_BF16 && i < count; i++)
        x[i] = mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(x[i]));
    return x;
}

/* Elements of got near want: f32 sums, and half a unit of bf16's last place where that is the dtype. */
static void check_near(const char *what, const mb_tensor *got, const double *want, double tolerance)
{
    const int64_t n = mb_tensor_count(got);
    float *x = values_of(got);
    double size = 1e-30;
    for (int64_t i = 0; i < n; i++) size = fabs(want[i]) > size ? fabs(want[i]) : size;
    for (int64_t i = 0; i < n; i++) {
        const double allowed = tolerance * size + (got->dtype == MB_BF16 ? 0x1p-8 * fabs(want[i]) : 0);
        if (!(fabs(x[i] - want[i]) <= allowed))
            fail_msg("%s: element %lld is %.9g, expected %.9g (allowed %.3g)", what, (long long)i,
                     (double)x[i], want[i], allowed);
    }
    mb_free(x);
}

static void check_same(const char *what, const mb_tensor *a, const mb_tensor *b)
{
    assert_int_equal(mb_tensor_bytes(a), mb_tensor_bytes(b));
    const char *x = a->data, *y = b->data;
    for (size_t i = 0; i < mb_tensor_bytes(a); i++) {
        if (x[i] != y[i]) fail_msg("%s: bits differ at byte %zu of %zu", what, i, mb_tensor_bytes(a));
    }
}

/* ---- 2. values ---- */

typedef struct product_case {
    mb_dtype x, y;
    int kind;
    bool is_dx, accumulate;
    int64_t t, n, k; /* the weight is [n, k] */
} product_case;

/* What y must be. */
static double *wanted(const product_case *c, const mb_tensor *x, const mb_weight *w, const float *opt_bias,
                      const mb_tensor *y)
{
    const int64_t in = c->is_dx ? c->n : c->k, out = c->is_dx ? c->k : c->n;
    float *a = values_of(x), *b = weight_values(w, c->x), *old = values_of(y);
    double *want = fixture_f64(c->t * out);
    for (int64_t t = 0; t < c->t; t++) {
        for (int64_t j = 0; j < out; j++) {
            double sum = opt_bias != NULL ? opt_bias[j] : 0;
            for (int64_t i = 0; i < in; i++)
                sum += (double)a[t * in + i] * b[c->is_dx ? i * c->k + j : j * c->k + i];
            want[t * out + j] = sum + (c->accumulate ? old[t * out + j] : 0);
        }
    }
    mb_free(a), mb_free(b), mb_free(old);
    return want;
}

static void check_product(mb_ops *ops, const product_case *c)
{
    char what[200];
    const int64_t in = c->is_dx ? c->n : c->k, out = c->is_dx ? c->k : c->n;
    mb_tensor x = random_tensor(c->x, c->t, in, 1), bias = random_tensor(MB_F32, 1, out, 2);
    mb_weight w = random_weight(c->kind, c->n, c->k, 3);
    const bool has_bias = !c->is_dx && c->t % 2 == 0;
    mb_tensor first = random_tensor(c->y, c->t, out, 4), y = random_tensor(c->y, c->t, out, 4);
    double *want = wanted(c, &x, &w, has_bias ? bias.data : NULL, &first);
    for (int call = 0; call < 3; call++) { /* the later ones by kept panels */
        memcpy(y.data, first.data, mb_tensor_bytes(&y));
        if (c->is_dx) fixture_ok(mb_ops_linear_dx(ops, &x, &w, c->accumulate, &y));
        if (!c->is_dx) fixture_ok(mb_ops_linear(ops, &x, &w, has_bias ? &bias : NULL, c->accumulate, &y));
        snprintf(what, sizeof what, "%.60s: %s x kind %d -> %s, dx %d, += %d, %d rows of [%d, %d], call %d",
                 mb_ops_describe(ops), mb_dtype_name(c->x), c->kind, mb_dtype_name(c->y), c->is_dx,
                 c->accumulate, (int)c->t, (int)c->n, (int)c->k, call);
        check_near(what, &y, want, 1e-5);
    }
    mb_free(x.data), mb_free(bias.data), mb_free(first.data), mb_free(y.data), mb_free(want);
    weight_free(&w);
}

static void test_products(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{1, 8, 8},    {3, 5, 7},    {17, 33, 65}, {130, 20, 31},
                                 {4, 129, 96}, {260, 5, 67}, {9, 300, 1},  {2, 1, 300}};
    const mb_dtype dtypes[] = {MB_F32, MB_BF16};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        for (int i = 0; i < 8 * 4 * KINDS * 2; i++) {
            const int64_t *shape = shapes[i % 8];
            const product_case one = {.x = dtypes[i / 8 % 2],
                                      .y = dtypes[i / 16 % 2],
                                      .kind = i / 32 % KINDS,
                                      .is_dx = i / 32 / KINDS == 1,
                                      .accumulate = (i + i / 8) % 2 == 0,
                                      .t = shape[0],
                                      .n = shape[1],
                                      .k = shape[2]};
            check_product(ops, &one);
        }
        mb_ops_destroy(&ops);
    }
}

static void check_dw(mb_ops *ops, int64_t t, int64_t n, int64_t k)
{
    mb_tensor x = random_tensor(MB_BF16, t, k, 1), dy = random_tensor(MB_BF16, t, n, 2);
    mb_tensor dw = random_tensor(MB_F32, n, k, 3),
              dbias = mb_tensor_view1(MB_F32, fixture_random(n, 4, 1), n);
    float *a = values_of(&dy), *b = values_of(&x);
    double *want = fixture_f64(n * k), *want_bias = fixture_f64(n);
    for (int64_t i = 0; i < n * k; i++) {
        want[i] = mb_tensor_f32(&dw)[i];
        for (int64_t r = 0; r < t; r++) want[i] += (double)a[r * n + i / k] * b[r * k + i % k];
    }
    for (int64_t i = 0; i < n; i++) {
        want_bias[i] = mb_tensor_f32(&dbias)[i];
        for (int64_t r = 0; r < t; r++) want_bias[i] += a[r * n + i];
    }
    fixture_ok(mb_ops_linear_dw(ops, &dy, &x, &dw, &dbias));
    check_near("linear_dw of bf16", &dw, want, 1e-5);
    check_near("dbias of bf16", &dbias, want_bias, 1e-5);
    void *blocks[] = {x.data, dy.data, dw.data, dbias.data, a, b, want, want_bias};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) mb_free(blocks[i]);
}

static void test_dw(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{0, 8, 8},     {1, 8, 8},     {3, 5, 7},    {33, 65, 129},
                                 {513, 40, 70}, {700, 130, 9}, {64, 8, 200}, {1030, 17, 33}};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            check_dw(ops, shapes[i][0], shapes[i][1], shapes[i][2]);
        mb_ops_destroy(&ops);
    }
}

/* NaN in rows of another group, or after the last, must not reach a gradient: pieces are filled with zeros.
 * */
static void test_dw_neighbours(void **state)
{
    (void)state;
    enum { T = 40, N = 24, K = 16 };
    const int32_t offsets[] = {0, 11, 30};
    mb_ops *ops = fixture_ops(&fixture_configs[1], 2);
    if (ops == NULL) return;
    mb_tensor x = random_tensor(MB_BF16, T, K, 1), dy = random_tensor(MB_BF16, T, N, 2);
    mb_tensor dw[2] = {random_tensor(MB_F32, N, K, 3), random_tensor(MB_F32, N, K, 4)};
    for (int64_t i = 30 * N; i < T * N; i++) ((uint16_t *)dy.data)[i] = 0x7FC0;
    for (int64_t i = 0; i < 11 * K; i++) ((uint16_t *)x.data)[i] = 0x7FC0;
    fixture_ok(mb_ops_grouped_linear_dw(ops, &dy, &x, offsets, 2, dw));
    for (int64_t i = 0; i < N * K; i++) {
        assert_true(isnan(mb_tensor_f32(&dw[0])[i]));
        assert_false(isnan(mb_tensor_f32(&dw[1])[i]));
    }
    mb_free(x.data), mb_free(dy.data), mb_free(dw[0].data), mb_free(dw[1].data);
    mb_ops_destroy(&ops);
}

/* ---- 3. bits ---- */

/* The last `rows` of x through a weight, `calls` times. */
static mb_tensor last_rows(mb_ops *ops, const mb_tensor *x, int64_t rows, mb_weight *w, bool is_dx,
                           mb_dtype dtype, int calls)
{
    const int64_t out = is_dx ? w->width : w->tensor.shape[0];
    mb_tensor in = mb_tensor_rows(x, x->shape[0] - rows, rows), y = random_tensor(dtype, rows, out, 9);
    for (int i = 0; i < calls; i++) {
        if (is_dx) fixture_ok(mb_ops_linear_dx(ops, &in, w, false, &y));
        if (!is_dx) fixture_ok(mb_ops_linear(ops, &in, w, NULL, false, &y));
    }
    return y;
}

/* bf16 results are f32 results rounded; rows have the bits they have among all rows. */
static void check_rows(const fixture_config *config, int kind, bool is_dx, int64_t n, int64_t k)
{
    const int64_t counts[] = {1, 2, 5, 6, 7, 16, 33, 128, 149};
    mb_tensor x = random_tensor(MB_BF16, NARROW_ROWS, is_dx ? n : k, 1), all = {0};
    for (int threads = 1; threads <= 3; threads++) {
        mb_ops *ops = fixture_ops(config, threads);
        if (ops == NULL) break;
        mb_weight w = random_weight(kind, n, k, 5);
        if (threads == 1) all = last_rows(ops, &x, NARROW_ROWS, &w, is_dx, MB_F32, 1);
        uint16_t *rounded = mb_calloc((size_t)mb_tensor_count(&all), sizeof *rounded);
        fixture_ok(mb_dtype_from_f32(MB_BF16, all.data, mb_tensor_count(&all), rounded));
        const mb_tensor narrow = mb_tensor_view2(MB_BF16, rounded, all.shape[0], all.shape[1]);
        for (size_t i = 0; i < sizeof counts / sizeof counts[0] && mb_ops_is_row_stable(ops); i++) {
            char what[160];
            const mb_tensor want[2] = {mb_tensor_rows(&all, NARROW_ROWS - counts[i], counts[i]),
                                       mb_tensor_rows(&narrow, NARROW_ROWS - counts[i], counts[i])};
            snprintf(what, sizeof what, "%.70s: kind %d dx %d, last %d rows of %d", mb_ops_describe(ops),
                     kind, is_dx, (int)counts[i], NARROW_ROWS);
            for (int d = 0; d < 2; d++) {
                mb_weight_changed(&w);
                mb_tensor y =
                    last_rows(ops, &x, counts[i], &w, is_dx, d == 0 ? MB_F32 : MB_BF16, 1 + (int)(i % 3));
                check_same(what, &y, &want[d]);
                mb_free(y.data);
            }
        }
        mb_free(rounded);
        weight_free(&w);
        mb_ops_destroy(&ops);
    }
    mb_free(all.data), mb_free(x.data);
}

static void test_row_bits(void **state)
{
    (void)state;
    const int64_t shapes[][2] = {{64, 96}, {100, 70}, {33, 150}, {150, 33}};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        for (int kind = 0; kind < KINDS; kind++) {
            const int64_t *shape = shapes[(kind + c) % 4];
            check_rows(&fixture_configs[c], kind, false, shape[0], shape[1]);
            check_rows(&fixture_configs[c], kind, true, shape[0], shape[1]);
        }
    }
    check_rows(&fixture_configs[1], 1, false, 130, 1100);
    check_rows(&fixture_configs[2], 0, true, 1100, 130);
}

static void dw_tape(mb_ops *ops, fixture_tape *tape)
{
    const int64_t counts[] = {1, 37, 64, 300, 511, 513};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        mb_tensor x = random_tensor(MB_BF16, counts[i], 96, 1),
                  dy = random_tensor(MB_BF16, counts[i], 150, 2);
        mb_tensor dw = random_tensor(MB_F32, 150, 96, 3);
        fixture_ok(mb_ops_linear_dw(ops, &dy, &x, &dw, NULL));
        fixture_record(tape, dw.data, mb_tensor_count(&dw));
        mb_free(x.data), mb_free(dy.data), mb_free(dw.data);
    }
}

static void test_dw_bits(void **state)
{
    (void)state;
    fixture_each(dw_tape);
}

/* ---- 4. groups ---- */

enum { GROUPS_MOST = 6, GROUP_N = 72, GROUP_K = 41 };

/* All grouped products on ops, of weights of every kind: y, dx, dw one after the other on the tape. */
static void run_groups(mb_ops *ops, mb_dtype dtype, const int32_t *sizes, fixture_tape *tape)
{
    int32_t offsets[GROUPS_MOST + 1] = {0};
    mb_weight w[GROUPS_MOST], *pointers[GROUPS_MOST];
    mb_tensor dw[GROUPS_MOST];
    for (int e = 0; e < GROUPS_MOST; e++) {
        offsets[e + 1] = offsets[e] + sizes[e];
        w[e] = random_weight(e % KINDS, GROUP_N, GROUP_K, 10 + 2 * (uint32_t)e);
        pointers[e] = &w[e];
        dw[e] = e == 2 ? (mb_tensor){0} : random_tensor(MB_F32, GROUP_N, GROUP_K, 40 + (uint32_t)e);
    }
    const int64_t p = offsets[GROUPS_MOST];
    mb_tensor x = random_tensor(dtype, p, GROUP_K, 1), dx = random_tensor(MB_BF16, p, GROUP_K, 3);
    mb_tensor y = random_tensor(dtype, p, GROUP_N, 2), dy = random_tensor(dtype, p, GROUP_N, 4);
    fixture_ok(mb_ops_grouped_linear(ops, &x, offsets, GROUPS_MOST, pointers, &y));
    fixture_ok(mb_ops_grouped_linear_dx(ops, &dy, offsets, GROUPS_MOST, pointers, true, &dx));
    fixture_ok(mb_ops_grouped_linear_dw(ops, &dy, &x, offsets, GROUPS_MOST, dw));
    mb_tensor *out[GROUPS_MOST + 2] = {&y, &dx};
    for (int e = 0; e < GROUPS_MOST; e++) out[2 + e] = &dw[e];
    for (int i = 0; i < GROUPS_MOST + 2; i++) {
        if (out[i]->dims == 0) continue;
        float *values = values_of(out[i]);
        fixture_record(tape, values, mb_tensor_count(out[i]));
        mb_free(values), mb_free(out[i]->data);
    }
    for (int e = 0; e < GROUPS_MOST; e++) weight_free(&w[e]);
    mb_free(x.data), mb_free(dy.data);
}

static void test_groups(void **state)
{
    (void)state;
    const int32_t sizes[][GROUPS_MOST] = {
        {5, 140, 0, 1, 33, 2}, {0, 0, 0, 0, 0, 0}, {0, 0, 3, 0, 0, 0}, {1, 1, 1, 1, 1, 1}};
    const mb_dtype dtypes[] = {MB_F32, MB_BF16};
    for (int i = 0; i < 8; i++) {
        fixture_tape want = {0};
        mb_ops *ref = fixture_ops(&fixture_configs[0], 1);
        run_groups(ref, dtypes[i % 2], sizes[i / 2], &want);
        mb_ops_destroy(&ref);
        for (int c = 1; c < FIXTURE_CONFIGS; c++) {
            fixture_tape got = {0};
            mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
            if (ops == NULL) continue;
            run_groups(ops, dtypes[i % 2], sizes[i / 2], &got);
            assert_int_equal(got.n, want.n);
            for (int64_t j = 0; j < got.n; j++) {
                if (!(fabs(got.data[j] - want.data[j]) <= 0x1p-7 * fabs(want.data[j]) + 2e-4))
                    fail_msg("%.60s: element %lld of all groups is %.9g, ref has %.9g", mb_ops_describe(ops),
                             (long long)j, (double)got.data[j], (double)want.data[j]);
            }
            mb_free(got.data);
            mb_ops_destroy(&ops);
        }
        mb_free(want.data);
    }
}

/* ---- 5. head ---- */

enum { HEAD_N = 70, HEAD_D = 33, HEAD_V = 301 };

/* Loss, dh and dw of one form of the head. */
static void run_head(mb_ops *ops, mb_dtype h_dtype, mb_dtype dh_dtype, int kind, fixture_tape *tape)
{
    int32_t targets[HEAD_N], largest[HEAD_N];
    float row_weight[HEAD_N];
    for (int i = 0; i < HEAD_N; i++) {
        targets[i] = (int32_t)fixture_below(7, (uint64_t)i, HEAD_V);
        row_weight[i] = i % 5 == 0 ? 0 : 0.1f * (float)(i % 7 + 1);
    }
    mb_tensor h = random_tensor(h_dtype, HEAD_N, HEAD_D, 1), dh = random_tensor(dh_dtype, HEAD_N, HEAD_D, 2);
    mb_tensor dw = random_tensor(MB_F32, HEAD_V, HEAD_D, 3), loss = random_tensor(MB_F32, 1, HEAD_N, 4);
    mb_tensor losses = mb_tensor_view1(MB_F32, loss.data, HEAD_N);
    mb_weight w = random_weight(kind, HEAD_V, HEAD_D, 5);
    fixture_ok(mb_ops_head_loss(ops, &h, &w, targets, &losses, largest, row_weight, &dh, &dw));
    float *gradient = values_of(&dh);
    fixture_record(tape, losses.data, HEAD_N);
    fixture_record(tape, gradient, HEAD_N * HEAD_D);
    fixture_record(tape, dw.data, HEAD_V * HEAD_D);
    for (int i = 0; i < HEAD_N; i++) tape->data[i] += 0.0f * (float)largest[i];
    mb_free(gradient), mb_free(h.data), mb_free(dh.data), mb_free(dw.data), mb_free(loss.data);
    weight_free(&w);
}

static void check_head(mb_dtype h, mb_dtype dh, int kind)
{
    fixture_tape want = {0};
    mb_ops *ref = fixture_ops(&fixture_configs[0], 1);
    run_head(ref, h, dh, kind, &want);
    mb_ops_destroy(&ref);
    for (int c = 1; c < FIXTURE_CONFIGS; c++) {
        fixture_tape got = {0};
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        run_head(ops, h, dh, kind, &got);
        assert_int_equal(got.n, want.n);
        for (int64_t i = 0; i < got.n; i++) {
            /* differences of bf16 rows are bf16 themselves: sums of some hundred of them */
            const double allowed = i < HEAD_N ? 2e-5 : h == MB_BF16 || dh == MB_BF16 ? 1e-2 : 2e-5;
            if (!(fabs(got.data[i] - want.data[i]) <= allowed * (1 + fabs(want.data[i]))))
                fail_msg("%.60s: head %s -> %s, kind %d: element %lld is %.9g, ref has %.9g",
                         mb_ops_describe(ops), mb_dtype_name(h), mb_dtype_name(dh), kind, (long long)i,
                         (double)got.data[i], (double)want.data[i]);
        }
        mb_free(got.data);
        mb_ops_destroy(&ops);
    }
    mb_free(want.data);
}

static void test_head(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        check_head(MB_BF16, MB_BF16, kind);
        check_head(MB_F32, MB_F32, kind);
    }
    check_head(MB_BF16, MB_F32, 1);
    check_head(MB_F32, MB_BF16, 0);
}

static void head_tape(mb_ops *ops, fixture_tape *tape)
{
    run_head(ops, MB_BF16, MB_BF16, 0, tape);
    run_head(ops, MB_BF16, MB_BF16, 4, tape);
}

static void test_head_bits(void **state)
{
    (void)state;
    fixture_each(head_tape);
}

/* ---- 6. quantised weights ---- */

/* By hand: 5 columns, groups of 2. */
static void test_read(void **state)
{
    (void)state;
    int8_t eight[] = {1, -2, 3, -128, 127, 0, 5, -6, 7, 8};
    uint8_t four[] = {0x9A, 0x08, 0xF7, 0xF0, 0x81, 0x0B}; /* low half first; the last high half is nothing */
    float scale[] = {0.5f, 2.0f, 1.0f, 1.0f, 0.25f, 4.0f}, out[10];
    const float want8[] = {0.5f, -1.0f, 6.0f, -256.0f, 127.0f, 0.0f, 5.0f, -1.5f, 1.75f, 32.0f};
    const float want4[] = {1.0f, 0.5f, 0.0f, -16.0f, -1.0f, -8.0f, 7.0f, -1.75f, 0.0f, 12.0f};
    mb_weight w;
    mb_weight_init_quantised(&w, mb_tensor_view2(MB_I8, eight, 2, 5), 8, 5, 2, fixture_matrix(scale, 2, 3));
    assert_int_equal(w.width, 5);
    mb_weight_read(&w, 0, 2, out);
    fixture_same("int8", out, want8, 10);
    mb_weight_init_quantised(&w, mb_tensor_view2(MB_U8, four, 2, 3), 4, 5, 2, fixture_matrix(scale, 2, 3));
    mb_weight_read(&w, 0, 2, out);
    fixture_same("int4", out, want4, 10);
    mb_weight_read(&w, 1, 1, out);
    fixture_same("int4, second row", out, want4 + 5, 5);
    uint16_t bits[2] = {mb_dtype_bf16_from_f32(1.5f), mb_dtype_bf16_from_f32(-2.0f)};
    mb_weight_init(&w, mb_tensor_view2(MB_BF16, bits, 2, 1));
    assert_int_equal(w.width, 1);
    mb_weight_read(&w, 0, 2, out);
    assert_true(out[0] == 1.5f && out[1] == -2.0f);
}

/* A product with a quantised weight is the product with its values: the same bits where rows are stable. */
static void test_quantised_is_read(void **state)
{
    (void)state;
    enum { T = 20, N = 70, K = 45 };
    mb_ops *ops = fixture_ops(&fixture_configs[1], 2);
    if (ops == NULL) return;
    for (int kind = 2; kind < KINDS; kind++) {
        mb_weight w = random_weight(kind, N, K, 3), plain;
        float *values = weight_values(&w, MB_F32);
        mb_weight_init(&plain, fixture_matrix(values, N, K));
        for (int d = 0; d < 2; d++) {
            mb_tensor x = random_tensor(d == 0 ? MB_F32 : MB_BF16, T, K, 1);
            mb_tensor a = random_tensor(MB_F32, T, N, 2), b = random_tensor(MB_F32, T, N, 2);
            fixture_ok(mb_ops_linear(ops, &x, &w, NULL, true, &a));
            fixture_ok(mb_ops_linear(ops, &x, &plain, NULL, true, &b));
            check_same("quantised and read", &a, &b);
            mb_free(x.data), mb_free(a.data), mb_free(b.data);
        }
        weight_free(&w);
        weight_free(&plain);
    }
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),      cmocka_unit_test(test_products),
        cmocka_unit_test(test_dw),        cmocka_unit_test(test_dw_neighbours),
        cmocka_unit_test(test_row_bits),  cmocka_unit_test(test_dw_bits),
        cmocka_unit_test(test_groups),    cmocka_unit_test(test_head),
        cmocka_unit_test(test_head_bits), cmocka_unit_test(test_quantised_is_read),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
