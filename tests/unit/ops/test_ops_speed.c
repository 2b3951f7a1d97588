/* test_ops_speed: rates per op at two decoder-like sizes; does nothing unless MB_BENCH=1.
 *
 * MB_BENCH_THREADS=n (2), MB_BENCH_BACKEND=ref|cpu (cpu); MB_ISA and MB_OPS_DENSE choose as always. Best of
 * several runs, each op warm.
 */
#include "base/clock.h"
#include "ops_fixture.h"

typedef struct bench {
    mb_ops *ops;
    int64_t t, d, f, e, k, v, heads, kv_heads, dh, segments;
} bench;

typedef struct buffers {
    float *data[24];
    int64_t n;
} buffers;

static float *make(buffers *b, int64_t n)
{
    float *x = mb_calloc((size_t)n, sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)((i * 2654435761u % 1000) * 0.002 - 1.0);
    b->data[b->n++] = x;
    return x;
}

static void buffers_free(buffers *b)
{
    for (int64_t i = 0; i < b->n; i++) mb_free(b->data[i]);
    b->n = 0;
}

/* Best time of a statement over 0.15 s of runs, after two warm ones; then a line. */
#define BENCH(name, work, unit, call)                                                                        \
    do {                                                                                                     \
        double best = 1e9, until;                                                                            \
        fixture_ok(call);                                                                                    \
        fixture_ok(call);                                                                                    \
        until = mb_clock_seconds() + 0.15;                                                                   \
        while (mb_clock_seconds() < until) {                                                                 \
            double start = mb_clock_seconds();                                                               \
            fixture_ok(call);                                                                                \
            double took = mb_clock_seconds() - start;                                                        \
            best = took < best ? took : best;                                                                \
        }                                                                                                    \
        printf("# %-34s %9.1f us %8.1f %s\n", name, best * 1e6, (work) / best * 1e-9, unit);                 \
    } while (0)

static void bench_linear(const bench *b, const char *what, int64_t t, int64_t n, int64_t k)
{
    buffers all = {.n = 0};
    char name[64];
    double flops = 2.0 * (double)t * (double)n * (double)k;
    mb_tensor x = fixture_matrix(make(&all, t * k), t, k), y = fixture_matrix(make(&all, t * n), t, n);
    mb_tensor dw = fixture_matrix(make(&all, n * k), n, k);
    mb_weight w;
    mb_weight_init(&w, fixture_matrix(make(&all, n * k), n, k));
    snprintf(name, sizeof name, "linear %s %dx%dx%d", what, (int)t, (int)n, (int)k);
    BENCH(name, flops, "GFLOP/s", mb_ops_linear(b->ops, &x, &w, NULL, false, &y));
    BENCH("  new weight each call", flops, "GFLOP/s",
          (mb_weight_changed(&w), mb_ops_linear(b->ops, &x, &w, NULL, false, &y)));
    BENCH("  dx", flops, "GFLOP/s", mb_ops_linear_dx(b->ops, &y, &w, true, &x));
    BENCH("  dw", flops, "GFLOP/s", mb_ops_linear_dw(b->ops, &y, &x, &dw, NULL));
    mb_weight_reset(&w);
    buffers_free(&all);
}

static void bench_grouped(const bench *b)
{
    enum { MOST = 64 };
    buffers all = {.n = 0};
    int64_t p = b->t * b->k;
    double flops = 2.0 * (double)p * (double)b->f * (double)b->d;
    int32_t offsets[MOST + 1] = {0};
    mb_weight weights[MOST], *pointers[MOST];
    mb_tensor gradients[MOST];
    float *w = make(&all, b->e * b->f * b->d), *dw = make(&all, b->e * b->f * b->d);
    for (int64_t e = 0; e < b->e; e++) { /* uneven: the last has about three times the first */
        offsets[e + 1] = (int32_t)(p * (e + 1) * (b->e + e + 2) / (b->e * (2 * b->e + 1)));
        mb_weight_init(&weights[e], fixture_matrix(w + e * b->f * b->d, b->f, b->d));
        pointers[e] = &weights[e];
        gradients[e] = fixture_matrix(dw + e * b->f * b->d, b->f, b->d);
    }
    mb_tensor x = fixture_matrix(make(&all, p * b->d), p, b->d),
              y = fixture_matrix(make(&all, p * b->f), p, b->f);
    BENCH("grouped_linear", flops, "GFLOP/s", mb_ops_grouped_linear(b->ops, &x, offsets, b->e, pointers, &y));
    for (int64_t e = 0; e < b->e; e++) mb_weight_changed(&weights[e]);
    BENCH("  dx", flops, "GFLOP/s", mb_ops_grouped_linear_dx(b->ops, &y, offsets, b->e, pointers, true, &x));
    BENCH("  dw", flops, "GFLOP/s", mb_ops_grouped_linear_dw(b->ops, &y, &x, offsets, b->e, gradients));
    for (int64_t e = 0; e < b->e; e++) mb_weight_reset(&weights[e]);
    buffers_free(&all);
}

static void bench_attention(const bench *b, int64_t segments)
{
    enum { MOST = 256 };
    buffers all = {.n = 0};
    int32_t offsets[MOST + 1];
    int64_t wide = b->heads * b->dh, narrow = b->kv_heads * b->dh, rows = b->t / segments;
    char name[64];
    for (int64_t s = 0; s <= segments; s++) offsets[s] = (int32_t)(s * rows);
    double pairs =
        (double)segments * (double)rows * (double)(rows + 1) / 2 * (double)b->heads * (double)b->dh;
    mb_attention_shape shape = {segments, offsets, b->heads, b->kv_heads, b->dh, 0.177f, 0};
    mb_tensor q = fixture_matrix(make(&all, b->t * wide), b->t, wide),
              k = fixture_matrix(make(&all, b->t * narrow), b->t, narrow);
    mb_tensor v = fixture_matrix(make(&all, b->t * narrow), b->t, narrow),
              o = fixture_matrix(make(&all, b->t * wide), b->t, wide);
    mb_tensor dq = fixture_matrix(make(&all, b->t * wide), b->t, wide),
              dk = fixture_matrix(make(&all, b->t * narrow), b->t, narrow);
    mb_tensor dv = fixture_matrix(make(&all, b->t * narrow), b->t, narrow),
              g = fixture_matrix(make(&all, b->t * wide), b->t, wide);
    mb_tensor lse = fixture_matrix(make(&all, b->t * b->heads), b->t, b->heads);
    snprintf(name, sizeof name, "attention %dx%d Dh=%d", (int)segments, (int)rows, (int)b->dh);
    BENCH(name, 4 * pairs, "GFLOP/s", mb_ops_attention(b->ops, &shape, &q, &k, &v, &o, &lse));
    BENCH("  backward", 10 * pairs, "GFLOP/s",
          mb_ops_attention_backward(b->ops, &shape, &q, &k, &v, &o, &lse, &g, &dq, &dk, &dv));
    buffers_free(&all);
}

static void bench_head(const bench *b)
{
    buffers all = {.n = 0};
    double flops = 2.0 * (double)b->t * (double)b->v * (double)b->d;
    mb_tensor h = fixture_matrix(make(&all, b->t * b->d), b->t, b->d),
              dh = fixture_matrix(make(&all, b->t * b->d), b->t, b->d);
    mb_tensor dw = fixture_matrix(make(&all, b->v * b->d), b->v, b->d),
              loss = mb_tensor_view1(MB_F32, make(&all, b->t), b->t);
    float *row_weight = make(&all, b->t);
    int32_t *targets = mb_calloc((size_t)b->t, sizeof *targets),
            *largest = mb_calloc((size_t)b->t, sizeof *largest);
    for (int64_t i = 0; i < b->t; i++) row_weight[i] = 1;
    mb_weight w;
    mb_weight_init(&w, fixture_matrix(make(&all, b->v * b->d), b->v, b->d));
    BENCH("head_loss forward", flops, "GFLOP/s",
          mb_ops_head_loss(b->ops, &h, &w, targets, &loss, largest, NULL, NULL, NULL));
    BENCH("head_loss with gradients", 3 * flops, "GFLOP/s",
          mb_ops_head_loss(b->ops, &h, &w, targets, &loss, largest, row_weight, &dh, &dw));
    mb_weight_reset(&w);
    mb_free(targets), mb_free(largest);
    buffers_free(&all);
}

/* Losses of rows of logits as wide as a large vocabulary, beside the whole head of a narrow model. */
static void bench_rows_loss(mb_ops *ops)
{
    enum { N = 512, V = 128256, K = 50, D = 64 };
    buffers all = {.n = 0};
    const double elements = (double)N * V;
    mb_tensor logits = fixture_matrix(make(&all, (int64_t)N * V), N, V);
    mb_tensor h = fixture_matrix(make(&all, N * D), N, D), dh = fixture_matrix(make(&all, N * D), N, D);
    mb_tensor loss = mb_tensor_view1(MB_F32, make(&all, N), N),
              far = mb_tensor_view1(MB_F32, make(&all, N), N);
    float *weight = make(&all, N);
    int32_t *targets = mb_calloc(N, sizeof *targets), *ids = mb_calloc(N * K, sizeof *ids);
    mb_teacher_rows teacher = {
        .temperature = 2, .distil_weight = 0.7, .task_weight = 0.3, .k = K, .ids = ids};
    mb_weight w;
    teacher.logprob = make(&all, N * K), teacher.tail = make(&all, N);
    for (int64_t i = 0; i < N; i++) weight[i] = 1;
    for (int64_t i = 0; i < N * K; i++) ids[i] = (int32_t)(i % K * 2503 + i / K);
    mb_weight_init(&w, fixture_matrix(make(&all, (int64_t)V * D), V, D));
    BENCH("head_loss 512x128256, D 64, dh", elements, "G logits/s",
          mb_ops_head_loss(ops, &h, &w, targets, &loss, NULL, weight, &dh, NULL));
    BENCH("rows_loss, no teacher", elements, "G logits/s",
          mb_ops_rows_loss(ops, &logits, targets, NULL, &loss, NULL, NULL, NULL));
    BENCH("rows_loss, no teacher, gradient", elements, "G logits/s",
          mb_ops_rows_loss(ops, &logits, targets, NULL, &loss, NULL, NULL, weight));
    const double temperatures[] = {1, 2, 1.7};
    for (int t = 0; t < 3; t++)
        for (int beta = 0; beta < 3; beta++) {
            char name[64];
            teacher.temperature = temperatures[t], teacher.beta = beta * 0.5;
            snprintf(name, sizeof name, "rows_loss, k 50, T %g, beta %g, gradient", teacher.temperature,
                     teacher.beta);
            BENCH(name, elements, "G logits/s",
                  mb_ops_rows_loss(ops, &logits, targets, &teacher, &loss, &far, NULL, weight));
        }
    teacher.opt_dense = make(&all, (int64_t)N * V);
    teacher.temperature = 2;
    for (int beta = 0; beta < 3; beta++) {
        char name[64];
        teacher.beta = beta * 0.5;
        snprintf(name, sizeof name, "rows_loss, dense, T 2, beta %g, gradient", teacher.beta);
        BENCH(name, elements, "G logits/s",
              mb_ops_rows_loss(ops, &logits, targets, &teacher, &loss, &far, NULL, weight));
    }
    mb_weight_reset(&w);
    mb_free(targets), mb_free(ids);
    buffers_free(&all);
}

static void bench_rows(const bench *b)
{
    buffers all = {.n = 0};
    int64_t n = b->t * b->d, pf = b->t * b->k * b->f, wide = b->heads * b->dh;
    mb_tensor x = fixture_matrix(make(&all, n), b->t, b->d), y = fixture_matrix(make(&all, n), b->t, b->d);
    mb_tensor dx = fixture_matrix(make(&all, n), b->t, b->d),
              w = mb_tensor_view1(MB_F32, make(&all, b->d), b->d);
    mb_tensor r = mb_tensor_view1(MB_F32, make(&all, b->t), b->t),
              dw = mb_tensor_view1(MB_F32, make(&all, b->d), b->d);
    mb_tensor g = fixture_matrix(make(&all, pf), 1, pf), u = fixture_matrix(make(&all, pf), 1, pf),
              s = fixture_matrix(make(&all, pf), 1, pf);
    mb_tensor dg = fixture_matrix(make(&all, pf), 1, pf), du = fixture_matrix(make(&all, pf), 1, pf);
    mb_tensor q = mb_tensor_view3(MB_F32, make(&all, b->t * wide), b->t, b->heads, b->dh);
    mb_tensor table = fixture_matrix(make(&all, b->t * b->dh), b->t, b->dh);
    int32_t *positions = mb_calloc((size_t)b->t, sizeof *positions);
    float *p = make(&all, 4 << 20), *m1 = make(&all, 4 << 20), *m2 = make(&all, 4 << 20),
          *grad = make(&all, 4 << 20);
    mb_adamw adamw = {0.001, 0.9, 0.95, 1e-8, 0.1, 1, 1};
    double one = sizeof(float);
    for (int64_t i = 0; i < 4 << 20; i++) m2[i] = 1;
    BENCH("rms_norm", 2 * one * (double)n, "GB/s", mb_ops_rms_norm(b->ops, &x, &w, 1e-5f, &y, &r));
    BENCH("rms_norm_backward", 3 * one * (double)n, "GB/s",
          mb_ops_rms_norm_backward(b->ops, &y, &x, &w, &r, false, &dx, &dw));
    BENCH("swiglu", 3 * one * (double)pf, "GB/s", mb_ops_swiglu(b->ops, &g, &u, &s));
    BENCH("swiglu_backward", 5 * one * (double)pf, "GB/s",
          mb_ops_swiglu_backward(b->ops, &s, &g, &u, &dg, &du));
    BENCH("rope", 2 * one * (double)(b->t * wide), "GB/s", mb_ops_rope(b->ops, &q, positions, &table, false));
    BENCH("axpy", 3 * one * (double)n, "GB/s", mb_ops_axpy(b->ops, 0.5f, &x, &y));
    BENCH("adamw 4M", 7 * one * (4 << 20), "GB/s", mb_ops_adamw(b->ops, &adamw, 4 << 20, grad, p, m1, m2));
    BENCH("embedding", 2 * one * (double)n, "GB/s", mb_ops_embedding(b->ops, positions, &x, &y));
    mb_free(positions);
    buffers_free(&all);
}

static void bench_route(const bench *b)
{
    buffers all = {.n = 0};
    int64_t t = b->t, n = b->t * b->k, d = b->d;
    mb_tensor logits = fixture_matrix(make(&all, t * b->e), t, b->e),
              probs = fixture_matrix(make(&all, t * b->e), t, b->e);
    mb_tensor weights = fixture_matrix(make(&all, n), t, b->k),
              dweights = fixture_matrix(make(&all, n), t, b->k);
    mb_tensor x = fixture_matrix(make(&all, t * d), t, d), rows = fixture_matrix(make(&all, n * d), n, d);
    mb_tensor drows = fixture_matrix(make(&all, n * d), n, d);
    int32_t *ids = mb_calloc((size_t)n, sizeof *ids);
    mb_dispatch dispatch = {0, mb_calloc((size_t)n, 4), mb_calloc((size_t)n, 4),
                            mb_calloc((size_t)b->e + 1, 4)};
    double bytes = sizeof(float) * (double)(n * d);
    BENCH("route", sizeof(float) * 2 * (double)(t * b->e), "GB/s",
          mb_ops_route(b->ops, &logits, NULL, b->k, true, &probs, ids, &weights));
    BENCH("route_backward", sizeof(float) * 2 * (double)(t * b->e), "GB/s",
          mb_ops_route_backward(b->ops, &probs, ids, &weights, true, &dweights, &logits));
    BENCH("dispatch", sizeof(float) * 3 * (double)n, "GB/s",
          mb_ops_dispatch(b->ops, ids, t, b->k, b->e, &dispatch));
    BENCH("gather", 2 * bytes, "GB/s", mb_ops_gather(b->ops, &x, &dispatch, &rows));
    BENCH("gather_backward", 2 * bytes, "GB/s", mb_ops_gather_backward(b->ops, &rows, &dispatch, b->k, &x));
    BENCH("combine", 2 * bytes, "GB/s", mb_ops_combine(b->ops, &rows, &dispatch, &weights, &x));
    BENCH("combine_backward", 3 * bytes, "GB/s",
          mb_ops_combine_backward(b->ops, &x, &rows, &dispatch, &weights, &drows, &dweights));
    mb_free(ids), mb_free(dispatch.row_token), mb_free(dispatch.slot_row), mb_free(dispatch.offsets);
    buffers_free(&all);
}

static void test_speed(void **state)
{
    (void)state;
    if (getenv("MB_BENCH") == NULL) {
        printf("# nothing measured: set MB_BENCH=1\n");
        return;
    }
    const char *threads = getenv("MB_BENCH_THREADS"), *backend = getenv("MB_BENCH_BACKEND");
    bench sizes[] = {
        {NULL, 2048, 128, 256, 8, 2, 2048, 4, 2, 32, 16},
        {NULL, 2048, 512, 1024, 16, 4, 8192, 8, 4, 64, 4},
    };
    mb_ops *ops = NULL;
    fixture_ok(mb_ops_create(backend != NULL ? backend : "cpu", threads != NULL ? atoi(threads) : 2, &ops));
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        bench *b = &sizes[i];
        b->ops = ops;
        printf("# %s: T=%d D=%d F=%d E=%d K=%d V=%d\n", mb_ops_describe(ops), (int)b->t, (int)b->d, (int)b->f,
               (int)b->e, (int)b->k, (int)b->v);
        bench_linear(b, "q", b->t, b->heads * b->dh, b->d);
        bench_linear(b, "k", b->t, b->kv_heads * b->dh, b->d);
        bench_linear(b, "router", b->t, b->e, b->d);
        bench_linear(b, "decode", 4, b->f, b->d);
        bench_grouped(b);
        bench_attention(b, b->segments);
        bench_attention(b, 1);
        bench_head(b);
        bench_rows(b);
        bench_route(b);
    }
    bench_rows_loss(ops);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_speed)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
