/* test_ops_attention_speed: rates of attention, f32 beside bf16; does nothing unless MB_BENCH=1.
 *
 * MB_BENCH_THREADS=n (1); MB_ISA chooses as always. Best of several runs; with one thread its processor time,
 * so that a busy machine disturbs less. Masked pairs of query and key are not counted as work.
 */
#include <time.h>

#include "ops_fixture.h"

enum { Q, K, V, O, D_O, DQ, DK, DV, TENSORS };

/* Segments of `rows` queries; kept > 0: over that many keys each. */
typedef struct speed_case {
    int64_t segments, rows, heads, kv_heads, width, window, kept;
} speed_case;

typedef struct speed_run {
    mb_attention_shape shape;
    mb_tensor t[TENSORS], lse;
    int32_t offsets[65], first[64], count[64];
} speed_run;

static void run_create(const speed_case *c, mb_dtype dtype, speed_run *r)
{
    const int64_t rows = c->segments * c->rows, keys = c->kept > 0 ? c->segments * c->kept : rows;
    *r = (speed_run){.offsets = {0}};
    for (int64_t s = 0; s < c->segments; s++) {
        r->offsets[s + 1] = (int32_t)((s + 1) * c->rows);
        r->first[s] = (int32_t)(s * c->kept), r->count[s] = (int32_t)c->kept;
    }
    r->shape = (mb_attention_shape){.segments = c->segments,
                                    .offsets = r->offsets,
                                    .heads = c->heads,
                                    .kv_heads = c->kv_heads,
                                    .head_width = c->width,
                                    .scale = (float)(1 / sqrt((double)c->width)),
                                    .window = c->window,
                                    .opt_key_first = c->kept > 0 ? r->first : NULL,
                                    .opt_key_count = c->kept > 0 ? r->count : NULL};
    for (int i = 0; i < TENSORS; i++) {
        const bool is_key = i == K || i == V || i == DK || i == DV;
        const int64_t n = is_key ? keys : rows, heads = is_key ? c->kv_heads : c->heads;
        float *x = mb_calloc((size_t)(n * heads * c->width), sizeof *x);
        void *data = mb_calloc((size_t)(n * heads * c->width), mb_dtype_bytes(dtype));
        assert_true(x != NULL && data != NULL);
        for (int64_t j = 0; j < n * heads * c->width; j++) x[j] = (float)(j * 7919 % 1000) * 0.002f - 1;
        fixture_ok(mb_dtype_from_f32(dtype, x, n * heads * c->width, data));
        r->t[i] = mb_tensor_view3(dtype, data, n, heads, c->width);
        mb_free(x);
    }
    r->lse = mb_tensor_view2(MB_F32, mb_calloc((size_t)(rows * c->heads), sizeof(float)), rows, c->heads);
}

static void run_destroy(speed_run *r)
{
    for (int i = 0; i < TENSORS; i++) mb_free(r->t[i].data);
    mb_free(r->lse.data);
}

static void once(mb_ops *ops, speed_run *r, bool is_backward)
{
    if (is_backward) {
        fixture_ok(mb_ops_attention_backward(ops, &r->shape, &r->t[Q], &r->t[K], &r->t[V], &r->t[O], &r->lse,
                                             &r->t[D_O], &r->t[DQ], &r->t[DK], &r->t[DV]));
    } else {
        fixture_ok(mb_ops_attention(ops, &r->shape, &r->t[Q], &r->t[K], &r->t[V], &r->t[O], &r->lse));
    }
}

static double seconds(int threads)
{
    struct timespec now;
    clock_gettime(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds of the best of at least three runs in a tenth of a second. */
static double best_of(mb_ops *ops, int threads, speed_run *r, bool is_backward)
{
    double best = 1e9;
    const double until = seconds(threads) + 0.1;
    for (int i = 0; i < 3 || seconds(threads) < until; i++) {
        const double start = seconds(threads);
        once(ops, r, is_backward);
        const double took = seconds(threads) - start;
        best = took < best ? took : best;
    }
    return best;
}

static void measure(mb_ops *ops, int threads, const speed_case *c, mb_dtype dtype)
{
    speed_run r;
    double pairs = 0;
    run_create(c, dtype, &r);
    for (int64_t i = 0; i < c->rows; i++)
        pairs += (double)(c->window > 0 && i >= c->window ? c->window : i + 1);
    pairs *= (double)(c->segments * c->heads * c->width);
    const double forward = best_of(ops, threads, &r, false);
    printf("# %-4s %2dx%-4d heads %d/%d Dh %-3d window %-3d", mb_dtype_name(dtype), (int)c->segments,
           (int)(c->kept > 0 ? c->kept : c->rows), (int)c->heads, (int)c->kv_heads, (int)c->width,
           (int)c->window);
    if (c->kept > 0) {
        const double bytes = 2 * (double)mb_tensor_bytes(&r.t[K]);
        printf(" kept keys %9.1f us %6.1f GB/s\n", forward * 1e6, bytes / forward * 1e-9);
    } else {
        printf(" forward %6.1f backward %6.1f GFLOP/s\n", 4 * pairs / forward * 1e-9,
               10 * pairs / best_of(ops, threads, &r, true) * 1e-9);
    }
    run_destroy(&r);
}

static void test_speed(void **state)
{
    (void)state;
    if (getenv("MB_BENCH") == NULL) {
        printf("# nothing measured: set MB_BENCH=1\n");
        return;
    }
    const speed_case cases[] = {
        {.segments = 32, .rows = 24, .heads = 4, .kv_heads = 2, .width = 64},
        {.segments = 8, .rows = 128, .heads = 4, .kv_heads = 2, .width = 64},
        {.segments = 1, .rows = 512, .heads = 4, .kv_heads = 2, .width = 64},
        {.segments = 1, .rows = 2048, .heads = 4, .kv_heads = 2, .width = 64},
        {.segments = 1, .rows = 2048, .heads = 4, .kv_heads = 2, .width = 64, .window = 512},
        {.segments = 8, .rows = 128, .heads = 4, .kv_heads = 2, .width = 128},
        {.segments = 1, .rows = 512, .heads = 4, .kv_heads = 2, .width = 128},
        {.segments = 1, .rows = 2048, .heads = 4, .kv_heads = 2, .width = 128},
        {.segments = 1, .rows = 1, .heads = 8, .kv_heads = 2, .width = 128, .kept = 4096},
        {.segments = 8, .rows = 1, .heads = 8, .kv_heads = 2, .width = 128, .kept = 4096},
    };
    const int threads = getenv("MB_BENCH_THREADS") != NULL ? atoi(getenv("MB_BENCH_THREADS")) : 1;
    mb_ops *ops = NULL;
    fixture_ok(mb_ops_create("cpu", threads, &ops));
    printf("# %s\n", mb_ops_describe(ops));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        measure(ops, threads, &cases[i], MB_F32);
        measure(ops, threads, &cases[i], MB_BF16);
    }
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_speed)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
