/* test_ops_cuda_attention: the cuda backend's attention against ref's, where tiles begin and end: lengths
 * around tile borders, windows, grouped heads, kept keys, head widths of every kernel; and bits: of a row
 * alone, of the kernel for few queries against the one for many, and of two runs.
 *
 * On the emulated GPU or a real one: everything goes through upload and download.
 *
 * 1. a case   2. runs   3. values   4. gradients   5. bits
 */
#include "attention_cases.h"

/* ---- 1. a case ---- */

enum { Q, K, V, D_O, INPUTS };
enum { O, LSE, DQ, DK, DV, OUTPUTS };

/* Host memory: inputs in the case's dtype, outputs as f32. */
typedef struct arrays {
    mb_dtype dtype;
    mb_attention_shape shape;
    int32_t offsets[SEGMENTS_MOST + 1];
    int64_t rows, keys;
    void *in[INPUTS];
    float *out[OUTPUTS];
} arrays;

static int64_t count_in(const arrays *a, int i)
{
    return i == K || i == V ? a->keys * a->shape.kv_heads * a->shape.head_width
                            : a->rows * a->shape.heads * a->shape.head_width;
}

static int64_t count_out(const arrays *a, int i)
{
    return i == LSE ? a->rows * a->shape.heads : count_in(a, i == DK || i == DV ? K : Q);
}

static void arrays_create(const attention_case *c, mb_dtype dtype, arrays *a)
{
    *a = (arrays){.dtype = dtype};
    a->shape = shape_of(c, a->offsets);
    a->rows = a->offsets[c->segments];
    a->keys = key_rows(&a->shape);
    for (int i = 0; i < INPUTS; i++) {
        const int64_t n = count_in(a, i);
        float *values = fixture_random(n, 30 + (uint32_t)i, 1);
        a->in[i] = mb_calloc((size_t)n + 1, mb_dtype_bytes(dtype));
        fixture_ok(mb_dtype_from_f32(dtype, values, n, a->in[i]));
        mb_free(values);
    }
    for (int i = 0; i < OUTPUTS; i++) a->out[i] = mb_calloc((size_t)count_out(a, i) + 1, sizeof **a->out);
}

static void arrays_destroy(arrays *a)
{
    for (int i = 0; i < INPUTS; i++) mb_free(a->in[i]);
    for (int i = 0; i < OUTPUTS; i++) mb_free(a->out[i]);
}

/* ---- 2. runs ---- */

static mb_ops *cuda_ops(void)
{
    mb_ops *ops = NULL;
    const mb_status status = mb_ops_create("cuda", 1, &ops);
    if (status == MB_OK) return ops;
    printf("# skipped: %s\n", mb_status_message());
    assert_int_equal(status, MB_EUNSUPPORTED);
    return NULL;
}

/* The backend's memory: an input's copy, or room of NaN for an output. */
static void *placed(mb_ops *ops, mb_arena *arena, mb_arena *host_arena, const void *host, size_t bytes)
{
    const void *data = NULL;
    void *room = mb_arena_alloc(host_arena, bytes + 1, 1);
    assert_non_null(room);
    if (host != NULL) memcpy(room, host, bytes);
    if (host == NULL) memset(room, 0xFF, bytes);
    fixture_ok(mb_ops_input(ops, arena, room, bytes, &data));
    return (void *)data;
}

static void fetch(mb_ops *ops, mb_arena *host_arena, const mb_tensor *x, float *out)
{
    void *host = NULL;
    fixture_ok(mb_ops_output(ops, host_arena, x->data, mb_tensor_bytes(x), &host));
    fixture_ok(mb_ops_wait(ops));
    fixture_ok(mb_dtype_to_f32(x->dtype, host, mb_tensor_count(x), out));
}

/* Forward, and backward when asked, on a backend; results in a->out. */
static void run(mb_ops *ops, arrays *a, bool has_backward)
{
    mb_arena *arena = NULL, *host_arena = NULL;
    mb_tensor in[INPUTS], out[OUTPUTS];
    mb_attention_shape shape = a->shape;
    const size_t ints = (size_t)shape.segments * sizeof(int32_t);
    fixture_ok(mb_arena_create_on(mb_ops_allocator(ops), 1 << 20, &arena));
    fixture_ok(mb_arena_create_on(mb_ops_host_allocator(ops), 1 << 20, &host_arena));
    shape.offsets = placed(ops, arena, host_arena, a->offsets, ints + sizeof(int32_t));
    if (shape.opt_key_first != NULL) {
        shape.opt_key_first = placed(ops, arena, host_arena, a->shape.opt_key_first, ints);
        shape.opt_key_count = placed(ops, arena, host_arena, a->shape.opt_key_count, ints);
    }
    for (int i = 0; i < INPUTS; i++) {
        void *data =
            placed(ops, arena, host_arena, a->in[i], (size_t)count_in(a, i) * mb_dtype_bytes(a->dtype));
        in[i] = mb_tensor_view3(a->dtype, data, i == K || i == V ? a->keys : a->rows,
                                i == K || i == V ? shape.kv_heads : shape.heads, shape.head_width);
    }
    for (int i = 0; i < OUTPUTS; i++) {
        const mb_dtype dtype = i == LSE ? MB_F32 : a->dtype;
        void *data = placed(ops, arena, host_arena, NULL, (size_t)count_out(a, i) * mb_dtype_bytes(dtype));
        out[i] = in[i == DK || i == DV ? K : Q], out[i].data = data;
        if (i == LSE) out[i] = mb_tensor_view2(MB_F32, data, a->rows, shape.heads);
    }
    fixture_ok(mb_ops_attention(ops, &shape, &in[Q], &in[K], &in[V], &out[O], &out[LSE]));
    if (has_backward)
        fixture_ok(mb_ops_attention_backward(ops, &shape, &in[Q], &in[K], &in[V], &out[O], &out[LSE],
                                             &in[D_O], &out[DQ], &out[DK], &out[DV]));
    for (int i = 0; i < (has_backward ? OUTPUTS : DQ); i++) fetch(ops, host_arena, &out[i], a->out[i]);
    mb_arena_destroy(&arena), mb_arena_destroy(&host_arena);
}

/* ---- 3. values ---- */

/* A case's results near ref's on the same inputs; bf16 has 8 bits, and probabilities are rounded to it. */
static void check(mb_ops *ops, const attention_case *c, mb_dtype dtype, bool has_backward)
{
    static const char *const names[OUTPUTS] = {"o", "lse", "dq", "dk", "dv"};
    arrays got, want;
    mb_ops *ref = NULL;
    fixture_ok(mb_ops_create("ref", 2, &ref));
    arrays_create(c, dtype, &got), arrays_create(c, dtype, &want);
    run(ops, &got, has_backward), run(ref, &want, has_backward);
    for (int i = 0; i < (has_backward ? OUTPUTS : DQ); i++) {
        const int64_t n = count_out(&got, i);
        const double allowed = dtype == MB_BF16 && i != LSE ? 2e-2 : i < DQ ? 1e-5 : 2e-5;
        double *exact = fixture_f64(n);
        for (int64_t j = 0; j < n; j++) exact[j] = want.out[i][j];
        if (n > 0) fixture_near(names[i], got.out[i], exact, n, allowed);
        mb_free(exact);
    }
    arrays_destroy(&got), arrays_destroy(&want);
    mb_ops_destroy(&ref);
}

static void check_all(const attention_case *cases, int n, mb_dtype dtype, bool has_backward)
{
    mb_ops *ops = cuda_ops();
    for (int i = 0; ops != NULL && i < n; i++) check(ops, &cases[i], dtype, has_backward);
    mb_ops_destroy(&ops);
}

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static void test_forward_bf16(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 8, .heads = 2, .kv_heads = 2, .width = 64, .sizes = {1, 63, 0, 64, 65, 129, 0, 2}},
        {.segments = 3, .heads = 4, .kv_heads = 1, .width = 128, .sizes = {65, 1, 33}},
        {.segments = 2, .heads = 8, .kv_heads = 1, .width = 64, .sizes = {40, 17}, .window = 9},
        {.segments = 2, .heads = 2, .kv_heads = 1, .width = 80, .sizes = {150, 70}, .window = 64},
        {.segments = 1, .heads = 3, .kv_heads = 1, .width = 32, .sizes = {90}, .is_bidirectional = true},
        {.segments = 2, .heads = 1, .kv_heads = 1, .width = 96, .sizes = {5, 66}},
        {.segments = 2, .heads = 2, .kv_heads = 1, .width = 256, .sizes = {70, 3}},
        {.segments = 1, .heads = 2, .kv_heads = 1, .width = 200, .sizes = {66}, .window = 65},
        {.segments = 3, .heads = 2, .kv_heads = 1, .width = 20, .sizes = {63, 64, 2}},
    };
    check_all(cases, COUNT(cases), MB_BF16, false);
}

static void test_forward_f32(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 5, .heads = 2, .kv_heads = 1, .width = 20, .sizes = {1, 63, 0, 65, 64}},
        {.segments = 1, .heads = 1, .kv_heads = 1, .width = 129, .sizes = {70}, .window = 63},
        {.segments = 2, .heads = 3, .kv_heads = 1, .width = 33, .sizes = {30, 9}, .is_bidirectional = true},
    };
    check_all(cases, COUNT(cases), MB_F32, false);
}

/* Generation: one query each, and some of several; the rows before the keys belong to others. */
static void test_kept_keys(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 4,
         .heads = 8,
         .kv_heads = 1,
         .width = 128,
         .sizes = {1, 1, 0, 1},
         .key_first = {130, 0, 3, 400},
         .key_count = {258, 64, 7, 1}},
        {.segments = 3,
         .heads = 2,
         .kv_heads = 2,
         .width = 64,
         .sizes = {1, 3, 1},
         .key_first = {1, 600, 200},
         .key_count = {321, 65, 129},
         .window = 200},
        {.segments = 2,
         .heads = 4,
         .kv_heads = 1,
         .width = 80,
         .sizes = {9, 1},
         .key_first = {0, 90},
         .key_count = {90, 200}},
        {.segments = 1,
         .heads = 4,
         .kv_heads = 2,
         .width = 256,
         .sizes = {1},
         .key_first = {9},
         .key_count = {193}},
        {.segments = 1,
         .heads = 2,
         .kv_heads = 1,
         .width = 72,
         .sizes = {130},
         .key_first = {2},
         .key_count = {200}},
        {.segments = 2,
         .heads = 2,
         .kv_heads = 1,
         .width = 33,
         .sizes = {1, 2},
         .key_first = {0, 70},
         .key_count = {70, 65}},
    };
    check_all(cases, COUNT(cases), MB_BF16, false);
    check_all(cases + COUNT(cases) - 1, 1, MB_F32, false);
}

/* More segments and heads than a GPU has processors: blocks have fewer warps then; bits are the same. */
static void test_many_kept(void **state)
{
    (void)state;
    mb_ops *ops = cuda_ops();
    for (int64_t width = 64; ops != NULL && width <= 128; width += 64) {
        attention_case c = {.segments = SEGMENTS_MOST, .heads = 8, .kv_heads = 4, .width = width};
        arrays all, one;
        for (int s = 0; s < SEGMENTS_MOST; s++)
            c.sizes[s] = 1, c.key_first[s] = 3 * s, c.key_count[s] = 40 + 7 * s;
        check(ops, &c, MB_BF16, false);
        arrays_create(&c, MB_BF16, &all);
        run(ops, &all, false);
        c.segments = 1, c.key_first[0] = 3 * 33, c.key_count[0] = 40 + 7 * 33;
        arrays_create(&c, MB_BF16, &one);
        const size_t row = (size_t)(8 * width) * 2;
        memcpy(one.in[Q], (char *)all.in[Q] + 33 * row, row);
        memcpy(one.in[K], all.in[K], (size_t)count_in(&one, K) * 2);
        memcpy(one.in[V], all.in[V], (size_t)count_in(&one, V) * 2);
        run(ops, &one, false);
        fixture_same("o alone", one.out[O], all.out[O] + 33 * 8 * width, 8 * width);
        fixture_same("lse alone", one.out[LSE], all.out[LSE] + 33 * 8, 8);
        arrays_destroy(&all), arrays_destroy(&one);
    }
    mb_ops_destroy(&ops);
}

/* ---- 4. gradients ---- */

static void test_backward_bf16(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 7, .heads = 2, .kv_heads = 1, .width = 64, .sizes = {1, 63, 0, 64, 65, 130, 2}},
        {.segments = 2, .heads = 8, .kv_heads = 1, .width = 128, .sizes = {20, 3}},
        {.segments = 2, .heads = 4, .kv_heads = 4, .width = 64, .sizes = {140, 33}, .window = 30},
        {.segments = 1, .heads = 1, .kv_heads = 1, .width = 128, .sizes = {200}, .window = 65},
        {.segments = 2, .heads = 3, .kv_heads = 1, .width = 80, .sizes = {33, 50}},
        {.segments = 2, .heads = 2, .kv_heads = 1, .width = 256, .sizes = {65, 3}, .window = 40},
        {.segments = 2, .heads = 2, .kv_heads = 1, .width = 20, .sizes = {65, 3}, .window = 40},
    };
    check_all(cases, COUNT(cases), MB_BF16, true);
}

static void test_backward_f32(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 4, .heads = 2, .kv_heads = 1, .width = 20, .sizes = {65, 0, 1, 34}},
        {.segments = 1, .heads = 1, .kv_heads = 1, .width = 70, .sizes = {130}, .window = 64},
    };
    check_all(cases, COUNT(cases), MB_F32, true);
}

/* ---- 5. bits ---- */

/* Row `from` of one run is row `to` of another. */
static void same_row(const arrays *a, int64_t from, const arrays *b, int64_t to)
{
    const int64_t wide = a->shape.heads * a->shape.head_width, heads = a->shape.heads;
    fixture_same("o", a->out[O] + from * wide, b->out[O] + to * wide, wide);
    fixture_same("lse", a->out[LSE] + from * heads, b->out[LSE] + to * heads, heads);
}

/* Rows of a whole segment, one at a time over its keys (the kernel for few queries), and some at a time. */
static void check_rows(mb_ops *ops, int64_t width, int64_t window, mb_dtype dtype)
{
    enum { KEYS = 290 };
    static const int32_t at[] = {0, 63, 64, 191, KEYS - 1};
    const attention_case whole = {
        .segments = 1, .heads = 4, .kv_heads = 2, .width = width, .sizes = {KEYS}, .window = window};
    arrays all, some;
    arrays_create(&whole, dtype, &all);
    run(ops, &all, false);
    for (int size = 1; size <= 40; size += 39) {
        for (int i = 0; i < COUNT(at); i++) {
            attention_case part = whole;
            const size_t row = (size_t)(4 * width) * mb_dtype_bytes(dtype);
            const int32_t n = at[i] + 1 < size ? at[i] + 1 : size;
            part.segments = 2, part.sizes[0] = 1, part.sizes[1] = n;
            part.key_first[0] = 5, part.key_count[0] = KEYS - 5, part.key_count[1] = at[i] + 1;
            arrays_create(&part, dtype, &some);
            memcpy(some.in[K], all.in[K], (size_t)count_in(&all, K) * mb_dtype_bytes(dtype));
            memcpy(some.in[V], all.in[V], (size_t)count_in(&all, V) * mb_dtype_bytes(dtype));
            memcpy((char *)some.in[Q] + row, (char *)all.in[Q] + (size_t)(at[i] + 1 - n) * row,
                   (size_t)n * row);
            run(ops, &some, false);
            for (int j = 0; j < n; j++) same_row(&all, at[i] + 1 - n + j, &some, 1 + j);
            arrays_destroy(&some);
        }
    }
    arrays_destroy(&all);
}

static void test_row_bits(void **state)
{
    (void)state;
    mb_ops *ops = cuda_ops();
    if (ops == NULL) return;
    check_rows(ops, 64, 0, MB_BF16);
    check_rows(ops, 96, 100, MB_BF16);
    check_rows(ops, 12, 100, MB_F32);
    mb_ops_destroy(&ops);
}

/* A segment's gradients do not depend on the others', nor on the run. */
static void test_gradient_bits(void **state)
{
    (void)state;
    const attention_case both = {.segments = 3, .heads = 4, .kv_heads = 2, .width = 64, .sizes = {7, 90, 5}};
    const attention_case one = {.segments = 1, .heads = 4, .kv_heads = 2, .width = 64, .sizes = {90}};
    arrays a, again, alone;
    mb_ops *ops = cuda_ops();
    if (ops == NULL) return;
    arrays_create(&both, MB_BF16, &a), arrays_create(&both, MB_BF16, &again);
    arrays_create(&one, MB_BF16, &alone);
    for (int i = 0; i < INPUTS; i++) {
        const size_t row = (size_t)(count_in(&alone, i) / 90) * 2;
        memcpy(alone.in[i], (char *)a.in[i] + 7 * row, 90 * row);
    }
    run(ops, &a, true), run(ops, &again, true), run(ops, &alone, true);
    for (int i = 0; i < OUTPUTS; i++) {
        fixture_same("again", a.out[i], again.out[i], count_out(&a, i));
        fixture_same("alone", a.out[i] + 7 * (count_out(&alone, i) / 90), alone.out[i], count_out(&alone, i));
    }
    arrays_destroy(&a), arrays_destroy(&again), arrays_destroy(&alone);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward_bf16),  cmocka_unit_test(test_forward_f32),
        cmocka_unit_test(test_kept_keys),     cmocka_unit_test(test_many_kept),
        cmocka_unit_test(test_backward_bf16), cmocka_unit_test(test_backward_f32),
        cmocka_unit_test(test_row_bits),      cmocka_unit_test(test_gradient_bits),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
