/* test_ops_attention: attention against f64, gradients against finite differences, masks, kept keys, and bits
 * of a segment's rows; f32 and bf16.
 *
 * 1. naive attention
 * 2. values
 * 3. gradients
 * 4. bits
 * 5. kept keys
 * 6. refused
 */
#include "attention_cases.h"

/* ---- 1. naive attention ---- */

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Is key j of the segment seen by the query at position i of its keys? */
static bool is_seen(const mb_attention_shape *s, int64_t i, int64_t j)
{
    if (s->is_bidirectional) return true;
    return j <= i && (s->window == 0 || i - j < s->window);
}

/* One query row and head: q, keys and values of its segment and head, `stride` apart. */
static double naive_row(const mb_attention_shape *s, int64_t at, int64_t count, const double *q,
                        const double *k, const double *v, int64_t stride, double *o)
{
    const int64_t dh = s->head_width;
    double sum = 0;
    for (int64_t j = 0; j < count; j++) {
        if (!is_seen(s, at, j)) continue;
        const double p = exp(dot(q, k + j * stride, dh) * s->scale);
        for (int64_t i = 0; i < dh; i++) o[i] += p * v[j * stride + i];
        sum += p;
    }
    for (int64_t i = 0; i < dh; i++) o[i] /= sum;
    return log(sum);
}

/* x = q, then k, then v; out = o, then lse. */
static void naive(const void *context, const double *x, double *out)
{
    const mb_attention_shape *s = context;
    const int64_t rows = s->offsets[s->segments], dh = s->head_width, hs = s->heads, gs = s->kv_heads;
    const double *q = x, *k = q + rows * hs * dh, *v = k + key_rows(s) * gs * dh;
    double *lse = out + rows * hs * dh;
    memset(out, 0, (size_t)(rows * hs * (dh + 1)) * sizeof *out);
    for (int64_t seg = 0; seg < s->segments; seg++) {
        const int64_t begin = s->offsets[seg], queries = s->offsets[seg + 1] - begin;
        const int64_t first = s->opt_key_first != NULL ? s->opt_key_first[seg] : begin;
        const int64_t count = s->opt_key_first != NULL ? s->opt_key_count[seg] : queries;
        for (int64_t t = 0; t < queries * hs; t++) {
            const int64_t row = begin * hs + t, key = (first * gs + t % hs * gs / hs) * dh;
            lse[row] = naive_row(s, count - queries + t / hs, count, q + row * dh, k + key, v + key, gs * dh,
                                 out + row * dh);
        }
    }
}

/* ---- 2. values ---- */

enum { Q, K, V, O, D_O, DQ, DK, DV, TENSORS };

/* Tensors of one dtype with their values as f32; x = q, k, v one after the other. */
typedef struct arrays {
    int64_t rows, wide, narrow; /* elements of q and of k */
    float *x, *lse_data;
    mb_tensor t[TENSORS], lse;
} arrays;

static bool is_key_side(int i)
{
    return i == K || i == V || i == DK || i == DV;
}

/* n numbers of a normal distribution, repeated after a prime number of them: drawing them is slow. */
static float *numbers(int64_t n, uint32_t sub)
{
    enum { DRAWN = 4099 };
    float *drawn = fixture_random(DRAWN, sub, 1), *x = mb_calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = drawn[i % DRAWN];
    mb_free(drawn);
    return x;
}

/* Inputs are set, outputs are NaN. */
static arrays arrays_create(const mb_attention_shape *s, mb_dtype dtype)
{
    const int64_t rows = s->offsets[s->segments], keys = key_rows(s), dh = s->head_width;
    arrays a = {.rows = rows, .wide = rows * s->heads * dh, .narrow = keys * s->kv_heads * dh};
    float *x = a.x = mb_calloc((size_t)(a.wide + 2 * a.narrow + 1), sizeof *a.x);
    a.lse_data = mb_calloc((size_t)(rows * s->heads + 1), sizeof *a.lse_data);
    memset(a.lse_data, 0xFF, (size_t)(rows * s->heads) * sizeof *a.lse_data);
    a.lse = mb_tensor_view2(MB_F32, a.lse_data, rows, s->heads);
    for (int i = 0; i < TENSORS; i++) {
        const int64_t n = is_key_side(i) ? a.narrow : a.wide;
        void *data = mb_calloc((size_t)n + 1, mb_dtype_bytes(dtype));
        a.t[i] = is_key_side(i) ? mb_tensor_view3(dtype, data, keys, s->kv_heads, dh)
                                : mb_tensor_view3(dtype, data, rows, s->heads, dh);
        memset(data, 0xFF, mb_tensor_bytes(&a.t[i]));
        if (i > V && i != D_O) continue;
        float *values = numbers(n, 10 + (uint32_t)i);
        fixture_ok(mb_dtype_from_f32(dtype, values, n, data));
        if (i <= V) fixture_ok(mb_dtype_to_f32(dtype, data, n, x)), x += n;
        mb_free(values);
    }
    return a;
}

static void arrays_destroy(arrays *a)
{
    for (int i = 0; i < TENSORS; i++) mb_free(a->t[i].data);
    mb_free(a->x), mb_free(a->lse_data);
}

/* The tensor's values at the end of the tape. */
static const float *record(fixture_tape *tape, const mb_tensor *x)
{
    const int64_t n = mb_tensor_count(x);
    float *values = mb_calloc((size_t)n + 1, sizeof *values);
    fixture_ok(mb_dtype_to_f32(x->dtype, x->data, n, values));
    fixture_record(tape, values, n);
    mb_free(values);
    return tape->data + tape->n - n;
}

static void run_forward(mb_ops *ops, const mb_attention_shape *s, arrays *a)
{
    fixture_ok(mb_ops_attention(ops, s, &a->t[Q], &a->t[K], &a->t[V], &a->t[O], &a->lse));
}

static void run_backward(mb_ops *ops, const mb_attention_shape *s, arrays *a)
{
    fixture_ok(mb_ops_attention_backward(ops, s, &a->t[Q], &a->t[K], &a->t[V], &a->t[O], &a->lse, &a->t[D_O],
                                         &a->t[DQ], &a->t[DK], &a->t[DV]));
}

static const mb_dtype dtypes[] = {MB_F32, MB_BF16};

/* What a dtype's results may differ by from those of exact arithmetic on the same inputs: bf16 has 8 bits,
 * and probabilities are rounded to it too. */
static double allowed(mb_dtype dtype, double f32)
{
    return dtype == MB_F32 ? f32 : 2e-2;
}

static void check_values(mb_ops *ops, const attention_case *c, mb_dtype dtype, fixture_tape *tape)
{
    int32_t offsets[SEGMENTS_MOST + 1];
    const mb_attention_shape s = shape_of(c, offsets);
    arrays a = arrays_create(&s, dtype);
    const int64_t inputs = a.wide + 2 * a.narrow;
    double *x = fixture_f64(inputs), *want = fixture_f64(a.wide + a.rows * s.heads);
    for (int64_t i = 0; i < inputs; i++) x[i] = a.x[i];
    naive(&s, x, want);
    run_forward(ops, &s, &a);
    fixture_near("o", record(tape, &a.t[O]), want, a.wide, allowed(dtype, 1e-5));
    fixture_near("lse", record(tape, &a.lse), want + a.wide, a.rows * s.heads, 1e-5);
    mb_free(x), mb_free(want);
    arrays_destroy(&a);
}

static void values(mb_ops *ops, fixture_tape *tape)
{
    const attention_case cases[] = {
        {.segments = 0, .heads = 2, .kv_heads = 1, .width = 8},
        {.segments = 3, .heads = 2, .kv_heads = 2, .width = 32, .sizes = {1, 128, 1}},
        {.segments = 4, .heads = 4, .kv_heads = 2, .width = 16, .sizes = {0, 50, 1, 25}},
        {.segments = 5, .heads = 3, .kv_heads = 1, .width = 17, .sizes = {24, 24, 0, 24, 70}},
        {.segments = 1, .heads = 1, .kv_heads = 1, .width = 64, .sizes = {600}},
        {.segments = 1, .heads = 2, .kv_heads = 1, .width = 20, .sizes = {530}, .window = 37},
        {.segments = 2, .heads = 2, .kv_heads = 1, .width = 80, .sizes = {300, 7}, .window = 1},
        {.segments = 2, .heads = 3, .kv_heads = 1, .width = 128, .sizes = {70, 257}, .window = 256},
        {.segments = 2, .heads = 8, .kv_heads = 1, .width = 96, .sizes = {60, 33}, .window = 60},
        {.segments = 1, .heads = 5, .kv_heads = 1, .width = 256, .sizes = {40}, .window = 41},
        {.segments = 1, .heads = 2, .kv_heads = 2, .width = 1, .sizes = {40}},
        {.segments = 3,
         .heads = 4,
         .kv_heads = 2,
         .width = 24,
         .sizes = {40, 0, 300},
         .is_bidirectional = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int d = 0; d < 2; d++) check_values(ops, &cases[i], dtypes[d], tape);
}

static void test_values(void **state)
{
    (void)state;
    fixture_each(values);
}

/* ---- 3. gradients ---- */

static void check_gradients(mb_ops *ops, const attention_case *c, mb_dtype dtype, fixture_tape *tape)
{
    int32_t offsets[SEGMENTS_MOST + 1];
    const mb_attention_shape s = shape_of(c, offsets);
    arrays a = arrays_create(&s, dtype);
    const int64_t inputs = a.wide + 2 * a.narrow, outputs = a.wide + a.rows * s.heads;
    double *want = fixture_f64(inputs);
    float *dy = fixture_random(outputs, 9, 0); /* no gradient comes through lse */
    fixture_ok(mb_dtype_to_f32(dtype, a.t[D_O].data, a.wide, dy));
    fixture_gradient(naive, &s, a.x, inputs, dy, outputs, want);
    run_forward(ops, &s, &a);
    run_backward(ops, &s, &a);
    fixture_near("dq", record(tape, &a.t[DQ]), want, a.wide, allowed(dtype, 2e-5));
    fixture_near("dk", record(tape, &a.t[DK]), want + a.wide, a.narrow, allowed(dtype, 2e-5));
    fixture_near("dv", record(tape, &a.t[DV]), want + a.wide + a.narrow, a.narrow, allowed(dtype, 2e-5));
    mb_free(want), mb_free(dy);
    arrays_destroy(&a);
}

static void gradients(mb_ops *ops, fixture_tape *tape)
{
    const attention_case cases[] = {
        {.segments = 3, .heads = 2, .kv_heads = 1, .width = 6, .sizes = {1, 13, 4}},
        {.segments = 2, .heads = 1, .kv_heads = 1, .width = 4, .sizes = {40, 0}},
        {.segments = 1, .heads = 2, .kv_heads = 2, .width = 5, .sizes = {27}, .window = 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int d = 0; d < 2; d++) check_gradients(ops, &cases[i], dtypes[d], tape);
}

static void test_gradients(void **state)
{
    (void)state;
    fixture_each(gradients);
}

/* Gradients of one configuration, in order dq, dk, dv. */
static void long_gradients(const attention_case *c, int config, int threads, mb_dtype dtype,
                           fixture_tape *tape, int64_t *out_sizes)
{
    int32_t offsets[SEGMENTS_MOST + 1];
    const mb_attention_shape s = shape_of(c, offsets);
    mb_ops *ops = fixture_ops(&fixture_configs[config], threads);
    if (ops == NULL) return;
    arrays a = arrays_create(&s, dtype);
    run_forward(ops, &s, &a);
    run_backward(ops, &s, &a);
    for (int i = DQ; i <= DV; i++) {
        record(tape, &a.t[i]);
        out_sizes[i - DQ] = mb_tensor_count(&a.t[i]);
    }
    arrays_destroy(&a);
    mb_ops_destroy(&ops);
}

static void compare_long(const attention_case *c, mb_dtype dtype)
{
    fixture_tape reference = {0};
    int64_t sizes[3];
    long_gradients(c, 0, 2, dtype, &reference, sizes);
    double *want = fixture_f64(reference.n);
    for (int64_t j = 0; j < reference.n; j++) want[j] = reference.data[j];
    for (int i = 1; i < FIXTURE_CONFIGS; i++) {
        fixture_tape one = {0}, two = {0};
        long_gradients(c, i, 1, dtype, &one, sizes);
        long_gradients(c, i, 3, dtype, &two, sizes);
        for (int64_t j = 0, at = 0; one.n > 0 && j < 3; at += sizes[j], j++)
            fixture_near("dq, dk, dv", one.data + at, want + at, sizes[j], allowed(dtype, 1e-5));
        if (one.n > 0) fixture_same("gradients with 1 and 3 threads", one.data, two.data, one.n);
        mb_free(one.data), mb_free(two.data);
    }
    mb_free(want), mb_free(reference.data);
}

/* Longer segments than finite differences can do: every backend against the first (ref). */
static void test_long_gradients(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 2, .heads = 4, .kv_heads = 2, .width = 32, .sizes = {300, 129}},
        {.segments = 1, .heads = 2, .kv_heads = 1, .width = 40, .sizes = {580}, .window = 100},
        {.segments = 3, .heads = 3, .kv_heads = 1, .width = 17, .sizes = {193, 1, 192}, .window = 192},
        {.segments = 2, .heads = 7, .kv_heads = 1, .width = 128, .sizes = {200, 31}, .window = 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int d = 0; d < 2; d++) compare_long(&cases[i], dtypes[d]);
}

/* ---- 4. bits ---- */

static void *at_row(const mb_tensor *x, int64_t row)
{
    return (char *)x->data + (size_t)(row * x->shape[1] * x->shape[2]) * mb_dtype_bytes(x->dtype);
}

static void same_rows(const char *what, const mb_tensor *got, const mb_tensor *want, int64_t row)
{
    if (memcmp(got->data, at_row(want, row), mb_tensor_bytes(got)) != 0) fail_msg("%s: bits differ", what);
}

static void check_segment_bits(mb_ops *ops, mb_dtype dtype)
{
    const attention_case both = {
        .segments = 3, .heads = 6, .kv_heads = 2, .width = 32, .sizes = {17, 300, 5}, .window = 270};
    int32_t offsets[SEGMENTS_MOST + 1], own[SEGMENTS_MOST + 1];
    const mb_attention_shape s = shape_of(&both, offsets);
    arrays a = arrays_create(&s, dtype);
    run_forward(ops, &s, &a);
    for (int i = 0; i < 2; i++) {
        attention_case alone = both;
        alone.segments = 1, alone.sizes[0] = i == 0 ? 300 : 211;
        const mb_attention_shape part = shape_of(&alone, own);
        arrays b = arrays_create(&part, dtype), c = b;
        for (int j = Q; j <= V; j++) c.t[j].data = at_row(&a.t[j], 17);
        run_forward(ops, &part, &c);
        same_rows(i == 0 ? "segment alone" : "first rows of a segment", &c.t[O], &a.t[O], 17);
        fixture_same("lse", c.lse_data, a.lse_data + 17 * 6, b.rows * 6);
        arrays_destroy(&b);
    }
    arrays_destroy(&a);
}

/* A segment alone has the bits it has among others, and its first rows do not see the later ones. */
static void test_segment_bits(void **state)
{
    (void)state;
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        for (int d = 0; d < 2; d++) check_segment_bits(ops, dtypes[d]);
        mb_ops_destroy(&ops);
    }
}

/* ---- 5. kept keys ---- */

static void kept(mb_ops *ops, fixture_tape *tape)
{
    const attention_case cases[] = {
        {.segments = 3,
         .heads = 4,
         .kv_heads = 2,
         .width = 32,
         .sizes = {1, 1, 1},
         .key_first = {40, 0, 900},
         .key_count = {800, 33, 1}},
        {.segments = 2,
         .heads = 7,
         .kv_heads = 1,
         .width = 65,
         .sizes = {1, 9},
         .key_first = {300, 0},
         .key_count = {290, 300},
         .window = 280},
        {.segments = 2,
         .heads = 2,
         .kv_heads = 2,
         .width = 64,
         .sizes = {0, 70},
         .key_first = {0, 3},
         .key_count = {5, 513}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int d = 0; d < 2; d++) check_values(ops, &cases[i], dtypes[d], tape);
}

static void test_kept_keys(void **state)
{
    (void)state;
    fixture_each(kept);
}

/* The rows of a prefill come out the same when they are computed some at a time over the kept keys, whatever
 * else is in the call. */
static void check_pieces(mb_ops *ops, mb_dtype dtype, int64_t window)
{
    enum { KEYS = 560 };
    const attention_case all = {
        .segments = 1, .heads = 6, .kv_heads = 2, .width = 40, .sizes = {KEYS}, .window = window};
    const int32_t ends[] = {1, 2, 259, 260, 557, KEYS};
    int32_t offsets[SEGMENTS_MOST + 1], own[SEGMENTS_MOST + 1];
    const mb_attention_shape s = shape_of(&all, offsets);
    arrays a = arrays_create(&s, dtype);
    run_forward(ops, &s, &a);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        const int32_t first = i == 0 ? 0 : ends[i - 1];
        attention_case piece = all;
        piece.segments = i % 2 + 1;
        piece.sizes[0] = ends[i] - first, piece.key_count[0] = ends[i];
        piece.sizes[1] = 2, piece.key_count[1] = KEYS - 3, piece.key_first[1] = 3;
        const mb_attention_shape part = shape_of(&piece, own);
        arrays b = arrays_create(&part, dtype), c = b;
        c.t[K] = a.t[K], c.t[V] = a.t[V];
        memcpy(c.t[Q].data, at_row(&a.t[Q], first), (size_t)piece.sizes[0] * 6 * 40 * mb_dtype_bytes(dtype));
        run_forward(ops, &part, &c);
        const mb_tensor rows = mb_tensor_rows(&c.t[O], 0, piece.sizes[0]);
        same_rows("rows over kept keys", &rows, &a.t[O], first);
        fixture_same("lse over kept keys", c.lse_data, a.lse_data + first * 6, piece.sizes[0] * 6);
        arrays_destroy(&b);
    }
    arrays_destroy(&a);
}

static void test_pieces(void **state)
{
    (void)state;
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        for (int threads = 1; threads <= 5; threads += 4) {
            mb_ops *ops = fixture_ops(&fixture_configs[c], threads);
            for (int d = 0; ops != NULL && d < 2; d++) {
                check_pieces(ops, dtypes[d], 0);
                check_pieces(ops, dtypes[d], 290);
            }
            if (ops != NULL) mb_ops_destroy(&ops);
        }
    }
}

/* ---- 6. refused ---- */

static mb_status forward_status(mb_ops *ops, const mb_attention_shape *s, arrays *a)
{
    return mb_ops_attention(ops, s, &a->t[Q], &a->t[K], &a->t[V], &a->t[O], &a->lse);
}

static mb_status backward_status(mb_ops *ops, const mb_attention_shape *s, arrays *a)
{
    return mb_ops_attention_backward(ops, s, &a->t[Q], &a->t[K], &a->t[V], &a->t[O], &a->lse, &a->t[D_O],
                                     &a->t[DQ], &a->t[DK], &a->t[DV]);
}

static void test_refused(void **state)
{
    (void)state;
    attention_case c = {.segments = 1, .heads = 3, .kv_heads = 2, .width = 4, .sizes = {5}};
    int32_t offsets[SEGMENTS_MOST + 1], first = 0, count = 5;
    mb_ops *ops = fixture_ops(&fixture_configs[0], 1);
    mb_attention_shape s = shape_of(&c, offsets);
    arrays a = arrays_create(&s, MB_F32);
    assert_int_equal(forward_status(ops, &s, &a), MB_ESHAPE);
    s.heads = s.kv_heads = 3;
    assert_int_equal(forward_status(ops, &s, &a), MB_ESHAPE);
    arrays_destroy(&a);
    s.kv_heads = 1;
    a = arrays_create(&s, MB_F32);
    fixture_ok(forward_status(ops, &s, &a));
    fixture_ok(backward_status(ops, &s, &a));
    s.is_bidirectional = true;
    assert_int_equal(backward_status(ops, &s, &a), MB_EUNSUPPORTED);
    s.window = 2;
    assert_int_equal(forward_status(ops, &s, &a), MB_ERANGE);
    s.is_bidirectional = false, s.opt_key_first = &first, s.opt_key_count = &count;
    fixture_ok(forward_status(ops, &s, &a));
    assert_int_equal(backward_status(ops, &s, &a), MB_EUNSUPPORTED);
    count = 4; /* fewer keys than queries */
    assert_int_equal(forward_status(ops, &s, &a), MB_ERANGE);
    count = 6; /* more than there are */
    assert_int_equal(forward_status(ops, &s, &a), MB_ESHAPE);
    s.opt_key_first = NULL;
    offsets[1] = 4;
    assert_int_equal(forward_status(ops, &s, &a), MB_ERANGE);
    arrays_destroy(&a);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),         cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_long_gradients), cmocka_unit_test(test_segment_bits),
        cmocka_unit_test(test_kept_keys),      cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_refused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
