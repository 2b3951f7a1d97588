/* test_ops_cuda_products: products of the CUDA backend at the borders of its tiles, against ref, in device
 * memory.
 *
 * Every case runs on ref and on cuda by the same code; rows beyond the last expert's hold NaN.
 *
 * 1. memory and weights
 * 2. expert products
 * 3. weights that change
 * 4. dense products
 * 5. head
 * 6. recorded
 */
#include "ops_fixture.h"

enum { KINDS = 6, BLOCKS_MOST = 1400, GROUPS_ROOM = 320, ORDERS = 3 };

/* head.cu; not there in a build without the backend */
mb_status mb_cuda_head_loss(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                            mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                            mb_tensor *opt_dh, mb_tensor *opt_dw, int64_t chunk_rows) __attribute__((weak));

/* ---- 1. memory and weights ---- */

/* Blocks of a backend's memory that one run made. */
typedef struct place {
    mb_ops *ops;
    void *blocks[BLOCKS_MOST];
    int count;
} place;

static void *put(place *p, const void *host, size_t bytes)
{
    const mb_allocator *allocator = mb_ops_allocator(p->ops);
    void *data = allocator->alloc(allocator->context, bytes);
    assert_non_null(data);
    assert_true(p->count < BLOCKS_MOST);
    p->blocks[p->count++] = data;
    fixture_ok(mb_ops_upload(p->ops, host, bytes, data));
    fixture_ok(mb_ops_wait(p->ops));
    return data;
}

static void leave(place *p)
{
    const mb_allocator *allocator = mb_ops_allocator(p->ops);
    fixture_ok(mb_ops_wait(p->ops));
    for (int i = 0; i < p->count; i++) allocator->free(allocator->context, p->blocks[i]);
    p->count = 0;
}

/* Normal numbers in a dtype; the last `nans` rows are NaN. */
static mb_tensor put_random(place *p, mb_dtype dtype, int64_t rows, int64_t columns, int64_t nans,
                            uint32_t sub)
{
    float *x = fixture_random(rows * columns, sub, 1);
    uint16_t *narrow = mb_calloc((size_t)(rows * columns) + 1, sizeof *narrow);
    for (int64_t i = (rows - nans) * columns; i < rows * columns; i++) x[i] = NAN;
    fixture_ok(mb_dtype_from_f32(MB_BF16, x, rows * columns, narrow));
    const void *data = dtype == MB_F32 ? (const void *)x : narrow;
    mb_tensor tensor =
        mb_tensor_view2(dtype, put(p, data, (size_t)(rows * columns) * mb_dtype_bytes(dtype)), rows, columns);
    mb_free(x), mb_free(narrow);
    return tensor;
}

/* Forms of a weight: f32, bf16, int8, int8 of odd groups, int4, int4 of odd groups. */
static mb_weight put_weight(place *p, int kind, int64_t n, int64_t k, uint32_t sub)
{
    mb_weight w;
    const int64_t groups[KINDS] = {0, 0, 32, 7, 16, 5};
    if (kind < 2) {
        mb_weight_init(&w, put_random(p, kind == 0 ? MB_F32 : MB_BF16, n, k, 0, sub));
        return w;
    }
    const int bits = kind < 4 ? 8 : 4;
    const int64_t width = bits == 8 ? k : (k + 1) / 2, g = (k + groups[kind] - 1) / groups[kind];
    uint8_t *data = mb_calloc((size_t)(n * width) + 1, 1);
    float *scale = fixture_random(n * g, sub + 1, bits == 8 ? 0.01 : 0.2);
    for (int64_t i = 0; i < n * width; i++) data[i] = (uint8_t)fixture_below(sub, (uint64_t)i, 256);
    mb_weight_init_quantised(
        &w, mb_tensor_view2(bits == 8 ? MB_I8 : MB_U8, put(p, data, (size_t)(n * width)), n, width), bits, k,
        groups[kind], fixture_matrix(put(p, scale, (size_t)(n * g) * sizeof *scale), n, g));
    mb_free(data), mb_free(scale);
    return w;
}

/* A result to the end of the tape, as f32. */
static void record(place *p, const mb_tensor *tensor, fixture_tape *tape)
{
    const int64_t n = mb_tensor_count(tensor);
    void *host = mb_calloc((size_t)n + 1, 4);
    float *x = mb_calloc((size_t)n + 1, sizeof *x);
    fixture_ok(mb_ops_download(p->ops, tensor->data, mb_tensor_bytes(tensor), host));
    fixture_ok(mb_ops_wait(p->ops));
    fixture_ok(mb_dtype_to_f32(tensor->dtype, host, n, x));
    fixture_record(tape, x, n);
    mb_free(host), mb_free(x);
}

/* Near to what ref has: where results are bf16 (narrow), the neighbour. */
static void check_tapes(const char *what, const fixture_tape *got, const fixture_tape *want, double tolerance,
                        bool narrow)
{
    assert_int_equal(got->n, want->n);
    for (int64_t i = 0; i < got->n; i++) {
        const double allowed =
            tolerance * (1 + fabs(want->data[i])) + (narrow ? 0x1p-7 * fabs(want->data[i]) : 0);
        if (!(fabs((double)got->data[i] - want->data[i]) <= allowed))
            fail_msg("%s: element %lld of %lld is %.9g, ref has %.9g (allowed %.3g)", what, (long long)i,
                     (long long)got->n, (double)got->data[i], (double)want->data[i], allowed);
    }
}

/* In device memory, with one order of the emulator's threads (a GPU has its own); NULL after a message. */
static mb_ops *cuda_ops(int order)
{
    static const char *const orders[] = {"forward", "reverse", "20240613"};
    mb_ops *ops = NULL;
    unsetenv("MB_CUDA_SHARED"), unsetenv("MB_EMULATOR_PAGEABLE");
    setenv("MB_EMULATOR_ORDER", orders[order], 1);
    const mb_status status = mb_ops_create("cuda", 1, &ops);
    if (status == MB_EUNSUPPORTED) {
        printf("# skipped: %s\n", mb_status_message());
        return NULL;
    }
    fixture_ok(status);
    assert_true(mb_ops_is_device(ops));
    return ops;
}

/* A body on cuda in every order, beside ref. */
static void on_both(void (*body)(mb_ops *ops, mb_ops *ref))
{
    for (int order = 0; order < ORDERS; order++) {
        mb_ops *ops = cuda_ops(order), *ref = NULL;
        if (ops == NULL) skip();
        fixture_ok(mb_ops_create("ref", 1, &ref));
        body(ops, ref);
        mb_ops_destroy(&ops);
        mb_ops_destroy(&ref);
    }
}

/* ---- 2. expert products ---- */

typedef struct products_case {
    int64_t groups, n, k, trash; /* trash: rows of nobody at the end */
    int32_t sizes[8];            /* rows of expert e: sizes[e % 8] */
    mb_dtype in, out;
    int kind; /* of weights; KINDS: mixed */
    bool accumulate;
} products_case;

/* y, dx and the dw of one case; every fifth expert's dw is frozen. */
static void run_products(mb_ops *ops, const products_case *c, fixture_tape *tape)
{
    place *p = mb_calloc(1, sizeof *p);
    int32_t offsets[GROUPS_ROOM + 1] = {0};
    mb_weight *w = mb_calloc(GROUPS_ROOM, sizeof *w), *pointers[GROUPS_ROOM];
    mb_tensor *dw = mb_calloc(GROUPS_ROOM, sizeof *dw);
    p->ops = ops;
    assert_true(c->groups <= GROUPS_ROOM);
    for (int e = 0; e < c->groups; e++) {
        offsets[e + 1] = offsets[e] + c->sizes[e % 8];
        w[e] = put_weight(p, c->kind < KINDS ? c->kind : e % KINDS, c->n, c->k, 100 + 2 * (uint32_t)e);
        pointers[e] = &w[e];
        if (e % 5 != 2) dw[e] = put_random(p, MB_F32, c->n, c->k, 0, 1000 + (uint32_t)e);
    }
    const int64_t rows = offsets[c->groups] + c->trash;
    const int32_t *starts = put(p, offsets, sizeof offsets);
    mb_tensor x = put_random(p, c->in, rows, c->k, c->trash, 1),
              dy = put_random(p, c->in, rows, c->n, c->trash, 2);
    mb_tensor y = put_random(p, c->out, rows, c->n, 0, 3), dx = put_random(p, c->out, rows, c->k, 0, 4);
    for (int e = 0; e < c->groups; e++) { /* what is not read must not matter */
        if (c->in == MB_BF16 && e % 7 == 3) mb_weight_changed(&w[e]);
    }
    fixture_ok(mb_ops_grouped_linear(ops, &x, starts, c->groups, pointers, &y));
    fixture_ok(mb_ops_grouped_linear_dx(ops, &dy, starts, c->groups, pointers, c->accumulate, &dx));
    fixture_ok(mb_ops_grouped_linear_dw(ops, &dy, &x, starts, c->groups, dw));
    record(p, &y, tape);
    record(p, &dx, tape);
    for (int e = 0; e < c->groups; e++) {
        if (dw[e].dims != 0) record(p, &dw[e], tape);
        mb_weight_reset(&w[e]);
    }
    leave(p);
    mb_free(p), mb_free(w), mb_free(dw);
}

static void check_products(mb_ops *ops, mb_ops *ref, const products_case *c)
{
    fixture_tape want = {0}, got = {0};
    char what[160];
    snprintf(what, sizeof what, "%d experts of [%d, %d], %s -> %s, kind %d, += %d", (int)c->groups, (int)c->n,
             (int)c->k, mb_dtype_name(c->in), mb_dtype_name(c->out), c->kind, c->accumulate);
    run_products(ref, c, &want);
    run_products(ops, c, &got);
    check_tapes(what, &got, &want, 2e-5, c->out == MB_BF16);
    mb_free(want.data), mb_free(got.data);
}

static const products_case product_cases[] = {
    /* one expert; row and column tiles that end before, at and after a border; fast and scalar copies */
    {1, 128, 32, 0, {128}, MB_BF16, MB_BF16, 1, false},
    {1, 136, 40, 3, {129}, MB_BF16, MB_F32, 0, true},
    {1, 127, 33, 0, {127}, MB_BF16, MB_BF16, 0, true},
    {1, 8, 200, 1, {1}, MB_BF16, MB_F32, 1, false},
    {1, 1, 1, 0, {1}, MB_BF16, MB_BF16, 0, false},
    /* several, some without rows; the columns of a wide tile and one more piece */
    {3, 256, 64, 70, {130, 0, 257}, MB_BF16, MB_BF16, 1, true},
    {2, 256, 248, 3, {300, 5}, MB_BF16, MB_F32, 0, true}, /* wide ones in all three */
    {2, 256, 248, 0, {301, 5}, MB_BF16, MB_BF16, 1, true},
    {3, 264, 24, 0, {65, 64, 1}, MB_BF16, MB_BF16, 0, false},
    {3, 72, 264, 5, {63, 200, 2}, MB_BF16, MB_F32, KINDS, true},
    {6, 41, 72, 9, {5, 140, 0, 1, 33, 2}, MB_BF16, MB_BF16, KINDS, true},
    {6, 64, 48, 1, {5, 14, 0, 1, 33, 2}, MB_BF16, MB_F32, KINDS, false},
    {64, 24, 16, 130, {0, 3, 0, 0, 17, 1, 0, 2}, MB_BF16, MB_BF16, 0, true},
    {300, 8, 8, 11, {1, 0, 2, 0, 0, 3, 0, 0}, MB_BF16, MB_BF16, 0, false},
    {5, 16, 8, 20, {0, 0, 0, 0, 0, 0, 0, 0}, MB_BF16, MB_F32, 1, true},
    /* the same of f32 */
    {1, 65, 17, 2, {64}, MB_F32, MB_F32, 0, false},
    {3, 64, 16, 0, {65, 0, 63}, MB_F32, MB_BF16, 1, true},
    {6, 41, 72, 9, {5, 140, 0, 1, 33, 2}, MB_F32, MB_F32, KINDS, true},
    {300, 3, 5, 4, {1, 0, 2, 0, 0, 3, 0, 0}, MB_F32, MB_F32, 0, true},
};
enum { PRODUCT_CASES = sizeof product_cases / sizeof product_cases[0] };

static void all_products(mb_ops *ops, mb_ops *ref)
{
    for (int i = 0; i < PRODUCT_CASES; i++) check_products(ops, ref, &product_cases[i]);
}

static void test_groups(void **state)
{
    (void)state;
    on_both(all_products);
}

static void groups_by(const char *whose)
{
    setenv("MB_CUDA_GROUPED", whose, 1);
    mb_ops *ops = cuda_ops(0), *ref = NULL;
    unsetenv("MB_CUDA_GROUPED");
    if (ops == NULL) skip();
    fixture_ok(mb_ops_create("ref", 1, &ref));
    all_products(ops, ref);
    mb_ops_destroy(&ops);
    mb_ops_destroy(&ref);
}

/* By cuBLAS, which gets the sizes on the host. */
static void test_groups_by_cublas(void **state)
{
    (void)state;
    groups_by("cublas");
}

/* By Hopper's own instructions. */
static void test_groups_by_wgmma(void **state)
{
    (void)state;
    groups_by("wgmma");
}

/* Rows of one expert, cut in two at `cut` for two experts of the same weight. */
static void run_cut(mb_ops *ops, int32_t cut, int64_t copies, fixture_tape *tape)
{
    enum { ROWS = 131, N = 256, K = 72 };
    place *p = mb_calloc(1, sizeof *p);
    p->ops = ops;
    mb_weight w = put_weight(p, 0, N, K, 5), *pointers[2] = {&w, &w};
    const int32_t offsets[3] = {0, cut, ROWS};
    const int32_t *starts = put(p, offsets, sizeof offsets);
    mb_tensor x = put_random(p, MB_BF16, ROWS * copies, K, 0, 1),
              y = put_random(p, MB_F32, ROWS * copies, N, 0, 2);
    fixture_ok(mb_ops_grouped_linear(ops, &x, starts, 2, pointers, &y));
    const mb_tensor first = mb_tensor_rows(&y, 0, ROWS);
    record(p, &first, tape);
    mb_weight_reset(&w);
    leave(p);
    mb_free(p);
}

/* A row's bits depend neither on the tile it is in, nor on the shape of tiles (more room: wider ones). */
static void test_row_bits(void **state)
{
    (void)state;
    mb_ops *ops = cuda_ops(2);
    if (ops == NULL) skip();
    fixture_tape all = {0};
    run_cut(ops, 0, 1, &all);
    const int32_t cuts[] = {131, 3, 64, 128, 130, 0};
    for (int i = 0; i < 6; i++) {
        fixture_tape some = {0};
        run_cut(ops, cuts[i], i == 5 ? 200 : 1, &some);
        fixture_same("rows cut in two", some.data, all.data, all.n);
        mb_free(some.data);
    }
    mb_free(all.data);
    mb_ops_destroy(&ops);
}

/* ---- 3. weights that change ---- */

/* The product by each of three weights after one of them changed, was reset, or was given other memory. */
static void run_changes(mb_ops *ops, fixture_tape *tape)
{
    enum { ROWS = 9, N = 16, K = 24 };
    place *p = mb_calloc(1, sizeof *p);
    mb_weight w[3], *pointers[3];
    const int32_t offsets[4] = {0, 2, 6, 9};
    p->ops = ops;
    for (int e = 0; e < 3; e++) w[e] = put_weight(p, 0, N, K, 10 + (uint32_t)e), pointers[e] = &w[e];
    const int32_t *starts = put(p, offsets, sizeof offsets);
    mb_tensor x = put_random(p, MB_BF16, ROWS, K, 0, 1), y = put_random(p, MB_F32, ROWS, N, 0, 2);
    float *other = fixture_random(N * K, 50, 2);
    for (int round = 0; round < 5; round++) {
        if (round == 1) {
            fixture_ok(mb_ops_upload(ops, other, N * K * sizeof *other, w[1].tensor.data));
            fixture_ok(mb_ops_wait(ops));
            mb_weight_changed(&w[1]);
        }
        if (round == 2) mb_weight_reset(&w[0]);
        if (round == 3) w[2].tensor.data = w[1].tensor.data;
        if (round == 4) mb_weight_reset(&w[0]), mb_weight_reset(&w[1]), mb_weight_changed(&w[2]);
        fixture_ok(mb_ops_grouped_linear(ops, &x, starts, 3, pointers, &y));
        record(p, &y, tape);
        fixture_ok(mb_ops_linear(ops, &x, &w[round % 3], NULL, true, &y));
        record(p, &y, tape);
    }
    for (int e = 0; e < 3; e++) mb_weight_reset(&w[e]);
    mb_free(other);
    leave(p);
    mb_free(p);
}

static void check_changed(mb_ops *ops, mb_ops *ref)
{
    fixture_tape want = {0}, got = {0};
    run_changes(ref, &want);
    run_changes(ops, &got);
    check_tapes("weights that change", &got, &want, 2e-5, false);
    mb_free(want.data), mb_free(got.data);
}

static void test_changed(void **state)
{
    (void)state;
    on_both(check_changed);
}

/* ---- 4. dense products ---- */

typedef struct dense_case {
    int64_t t, n, k;
    mb_dtype in, out;
    int kind;
    bool has_bias, accumulate;
} dense_case;

static void run_dense(mb_ops *ops, const dense_case *c, fixture_tape *tape)
{
    place *p = mb_calloc(1, sizeof *p);
    p->ops = ops;
    mb_weight w = put_weight(p, c->kind, c->n, c->k, 5);
    mb_tensor x = put_random(p, c->in, c->t, c->k, 0, 1), dy = put_random(p, c->in, c->t, c->n, 0, 2);
    mb_tensor y = put_random(p, c->out, c->t, c->n, 0, 3), dx = put_random(p, c->out, c->t, c->k, 0, 4);
    mb_tensor dw = put_random(p, MB_F32, c->n, c->k, 0, 7), bias = put_random(p, MB_F32, 1, c->n, 0, 8);
    mb_tensor line = mb_tensor_view1(MB_F32, bias.data, c->n);
    fixture_ok(mb_ops_linear(ops, &x, &w, c->has_bias ? &line : NULL, c->accumulate, &y));
    fixture_ok(mb_ops_linear_dx(ops, &dy, &w, c->accumulate, &dx));
    fixture_ok(mb_ops_linear_dw(ops, &dy, &x, &dw, c->has_bias ? &line : NULL));
    record(p, &y, tape);
    record(p, &dx, tape);
    record(p, &dw, tape);
    record(p, &bias, tape);
    mb_weight_reset(&w);
    leave(p);
    mb_free(p);
}

static void all_dense(mb_ops *ops, mb_ops *ref)
{
    const dense_case cases[] = {
        {130, 17000, 2, MB_BF16, MB_BF16, 1, true, true}, /* f32 sums in more than one part */
        {130, 17000, 2, MB_F32, MB_BF16, 0, false, false},
        {7, 33, 20, MB_BF16, MB_BF16, 0, true, false},
        {7, 33, 20, MB_BF16, MB_BF16, 3, false, true},
        {1030, 5, 9, MB_BF16, MB_F32, 2, true, true}, /* more than one part of the bias' gradient */
        {0, 8, 8, MB_BF16, MB_F32, 0, true, true},
        {6, 8, 64, MB_F32, MB_F32, 4, true, false},
        {6, 8, 33, MB_F32, MB_BF16, 5, true, true},
        {5, 40, 32, MB_F32, MB_F32, 1, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture_tape want = {0}, got = {0};
        char what[120];
        snprintf(what, sizeof what, "dense case %d", (int)i);
        run_dense(ref, &cases[i], &want);
        run_dense(ops, &cases[i], &got);
        check_tapes(what, &got, &want, 2e-5, cases[i].out == MB_BF16);
        mb_free(want.data), mb_free(got.data);
    }
}

static void test_dense(void **state)
{
    (void)state;
    on_both(all_dense);
}

/* ---- 5. head ---- */

typedef struct head_case {
    int64_t n, d, v, chunk; /* chunk 0: as ops.h has it */
    mb_dtype in, out;
    int kind;
    bool has_weight, has_dh, has_dw;
} head_case;

static mb_status run_op(mb_ops *ops, const head_case *c, const mb_tensor *h, mb_weight *w,
                        const int32_t *targets, mb_tensor *loss, int32_t *argmax, const float *weight,
                        mb_tensor *dh, mb_tensor *dw)
{
    mb_tensor *opt_dh = c->has_dh ? dh : NULL, *opt_dw = c->has_dw ? dw : NULL;
    const float *opt_weight = c->has_weight ? weight : NULL;
    if (strcmp(mb_ops_name(ops), "cuda") != 0 || c->chunk == 0)
        return mb_ops_head_loss(ops, h, w, targets, loss, argmax, opt_weight, opt_dh, opt_dw);
    const mb_arena_mark mark = mb_arena_mark_get(mb_ops_scratch(ops));
    assert_true(mb_cuda_head_loss != NULL);
    const mb_status status =
        mb_cuda_head_loss(ops, h, w, targets, loss, argmax, opt_weight, opt_dh, opt_dw, c->chunk);
    mb_arena_release(mb_ops_scratch(ops), mark);
    return status;
}

/* Loss and largest on one tape (exact as f32 sums go), gradients on the other. Two ids have the first row
 * of h as theirs in the weight: equal logits, the largest of that row. */
static void run_head(mb_ops *ops, const head_case *c, fixture_tape *losses, fixture_tape *gradients)
{
    place *p = mb_calloc(1, sizeof *p);
    int32_t *ids = mb_calloc((size_t)c->n, sizeof *ids);
    float *weights = mb_calloc((size_t)c->n, sizeof *weights);
    p->ops = ops;
    for (int64_t i = 0; i < c->n; i++) {
        ids[i] = i == 1 ? (int32_t)c->v - 1 : (int32_t)fixture_below(7, (uint64_t)i, c->v);
        weights[i] = i % 5 == 3 ? 0 : 0.1f * (float)(i % 7 + 1);
    }
    mb_weight w = put_weight(p, c->kind, c->v, c->d, 5);
    const int32_t *targets = put(p, ids, (size_t)c->n * sizeof *ids);
    int32_t *argmax = put(p, ids, (size_t)c->n * sizeof *ids),
            *found = mb_calloc((size_t)c->n, sizeof *found);
    const float *weight = put(p, weights, (size_t)c->n * sizeof *weights);
    mb_tensor h = put_random(p, c->in, c->n, c->d, 0, 1);
    if (c->kind < 2 && c->v > 2 && c->n > 0 && w.tensor.dtype == c->in) {
        const size_t bytes = (size_t)c->d * mb_dtype_bytes(c->in);
        fixture_ok(mb_ops_copy(ops, h.data, bytes, (char *)w.tensor.data + (size_t)(c->v / 3) * bytes));
        fixture_ok(mb_ops_copy(ops, h.data, bytes, (char *)w.tensor.data + (size_t)(c->v - 1) * bytes));
    }
    mb_tensor dh = put_random(p, c->out, c->n, c->d, 0, 2);
    mb_tensor dw = put_random(p, MB_F32, c->v, c->d, 0, 3), row = put_random(p, MB_F32, 1, c->n, 0, 4);
    mb_tensor loss = mb_tensor_view1(MB_F32, row.data, c->n);
    fixture_ok(run_op(ops, c, &h, &w, targets, &loss, argmax, weight, &dh, &dw));
    record(p, &loss, losses);
    fixture_ok(mb_ops_download(ops, argmax, (size_t)c->n * sizeof *found, found));
    fixture_ok(mb_ops_wait(ops));
    for (int64_t i = 0; i < c->n; i++) weights[i] = (float)found[i];
    fixture_record(losses, weights, c->n);
    record(p, &dh, gradients); /* as they were where they are not asked for */
    record(p, &dw, gradients);
    mb_weight_reset(&w);
    leave(p);
    mb_free(p), mb_free(ids), mb_free(weights), mb_free(found);
}

static void all_head(mb_ops *ops, mb_ops *ref)
{
    const head_case cases[] = {
        {5, 16, 1, 0, MB_BF16, MB_BF16, 1, true, true, true},
        {11, 24, 8, 4, MB_BF16, MB_F32, 0, true, true, true},
        {40, 33, 301, 16, MB_BF16, MB_BF16, 0, true, true, true},
        {40, 33, 301, 7, MB_F32, MB_F32, 0, true, true, true},
        {40, 33, 301, 0, MB_F32, MB_BF16, 4, true, true, true},
        {13, 16, 4097, 5, MB_BF16, MB_BF16, 1, true, true, true}, /* a row is more than one turn of a block */
        {6, 8, 12500, 4, MB_F32, MB_F32, 0, true, true, true},
        {9, 8, 9001, 0, MB_BF16, MB_F32, 3, false, false, false},
        {12, 16, 100, 5, MB_BF16, MB_BF16, 0, true, false, true},
        {12, 16, 100, 5, MB_BF16, MB_BF16, 0, true, true, false},
        {12, 16, 100, 5, MB_F32, MB_F32, 0, true, false, false},
        {0, 16, 100, 0, MB_F32, MB_F32, 0, true, true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const head_case *c = &cases[i];
        fixture_tape want[2] = {{0}}, got[2] = {{0}};
        char what[80];
        run_head(ref, c, &want[0], &want[1]);
        run_head(ops, c, &got[0], &got[1]);
        snprintf(what, sizeof what, "head case %d, losses and largest", (int)i);
        check_tapes(what, &got[0], &want[0], 2e-5, false);
        snprintf(what, sizeof what, "head case %d, gradients", (int)i);
        /* differences are rounded to bf16 before the products: half of 2^-8 of terms below 1, some hundred
         * of them */
        check_tapes(what, &got[1], &want[1], c->in == MB_BF16 || c->out == MB_BF16 ? 4e-3 : 2e-5,
                    c->out == MB_BF16);
        for (int t = 0; t < 2; t++) mb_free(want[t].data), mb_free(got[t].data);
    }
}

static void test_head(void **state)
{
    (void)state;
    on_both(all_head);
}

/* ---- 6. recorded ---- */

/* Products of one step, and what they left on the tape. */
typedef struct step {
    place *p;
    const int32_t *starts, *targets;
    mb_weight w[2], *pointers[2];
    mb_tensor x, y, z, loss;
} step;

static void queue_step(mb_ops *ops, step *s)
{
    fixture_ok(mb_ops_grouped_linear(ops, &s->x, s->starts, 2, s->pointers, &s->y));
    fixture_ok(mb_ops_linear(ops, &s->x, &s->w[1], NULL, false, &s->z));
    fixture_ok(mb_ops_head_loss(ops, &s->x, &s->w[0], s->targets, &s->loss, NULL, NULL, NULL, NULL));
}

static void record_step(step *s, fixture_tape *tape)
{
    record(s->p, &s->y, tape);
    record(s->p, &s->z, tape);
    record(s->p, &s->loss, tape);
}

/* The step that was recorded gives for other rows and other sizes what it gives when queued. */
static void test_recorded(void **state)
{
    (void)state;
    enum { ROWS = 20, N = 24, K = 16 };
    mb_ops *ops = cuda_ops(0);
    if (ops == NULL) skip();
    place *p = mb_calloc(1, sizeof *p);
    const int32_t first[3] = {0, 4, ROWS}, second[3] = {0, 11, ROWS - 1}, ids[ROWS] = {3, 1, 4, 1, 5};
    fixture_tape queued = {0}, recorded = {0};
    mb_ops_record *kept = NULL;
    p->ops = ops;
    step s = {.p = p, .starts = put(p, first, sizeof first), .targets = put(p, ids, sizeof ids)};
    for (int e = 0; e < 2; e++) s.w[e] = put_weight(p, e == 0 ? 0 : 2, N, K, 5), s.pointers[e] = &s.w[e];
    s.x = put_random(p, MB_BF16, ROWS, K, 0, 1), s.y = put_random(p, MB_BF16, ROWS, N, 0, 2);
    s.z = put_random(p, MB_F32, ROWS, N, 0, 3);
    s.loss = mb_tensor_view1(MB_F32, put_random(p, MB_F32, 1, ROWS, 0, 4).data, ROWS);
    assert_true(mb_ops_can_record(ops));
    queue_step(ops, &s);
    fixture_ok(mb_ops_wait(ops));
    fixture_ok(mb_ops_record_begin(ops));
    queue_step(ops, &s);
    fixture_ok(mb_ops_record_end(ops, &kept));
    const mb_tensor other = put_random(p, MB_BF16, ROWS, K, 0, 9);
    fixture_ok(mb_ops_copy(ops, other.data, mb_tensor_bytes(&other), s.x.data));
    fixture_ok(mb_ops_upload(ops, second, sizeof second, (void *)(uintptr_t)s.starts));
    fixture_ok(mb_ops_record_run(ops, kept));
    record_step(&s, &recorded);
    fixture_ok(mb_ops_zero(ops, s.z.data, mb_tensor_bytes(&s.z)));
    queue_step(ops, &s);
    record_step(&s, &queued);
    fixture_same("recorded", recorded.data, queued.data, queued.n);
    mb_ops_record_destroy(ops, &kept);
    for (int e = 0; e < 2; e++) mb_weight_reset(&s.w[e]);
    mb_free(queued.data), mb_free(recorded.data);
    leave(p);
    mb_free(p);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_groups_by_cublas),
        cmocka_unit_test(test_groups_by_wgmma),
        cmocka_unit_test(test_row_bits),
        cmocka_unit_test(test_changed),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_recorded),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
