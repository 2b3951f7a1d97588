/* test_ops_speed_elem: bytes per second of the ops of ops_cases.h in f32 and in bf16; does nothing unless
 * MB_BENCH=1.
 *
 * MB_BENCH_THREADS=n (2), MB_BENCH_ROWS=n (2048), MB_BENCH_WIDTH=n (2048); MB_ISA chooses as always. Bytes:
 * what is read plus what is written, each argument once; the rate of a plain copy of 64 MiB stands above for
 * comparison.
 */
#include <omp.h>

#include "base/clock.h"
#include "ops_cases.h"

static int64_t number(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? atoll(text) : otherwise;
}

/* Bytes a second of a copy, in GB. */
static double copy_rate(int threads)
{
    enum { PART = 1 << 20, PARTS = 32 };
    char *from = mb_calloc(PARTS, PART), *to = mb_calloc(PARTS, PART);
    double best = 1e9;
    assert_true(from != NULL && to != NULL);
    for (int run = 0; run < 12; run++) {
        double start = mb_clock_seconds();
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int i = 0; i < PARTS; i++) memcpy(to + (size_t)i * PART, from + (size_t)i * PART, PART);
        double took = mb_clock_seconds() - start;
        best = took < best ? took : best;
    }
    mb_free(from), mb_free(to);
    return 2.0 * PART * PARTS / best * 1e-9;
}

/* A table's rows are read and changed once per token. */
static double bytes_of(const scene *s, const op_case *c, const mb_tensor *a)
{
    double bytes = 0;
    for (int i = 0; i < count_of(c); i++) {
        double n = (double)mb_tensor_count(&a[i]);
        if (c->arguments[i].shape == ENTRIES || c->arguments[i].shape == PLACES) n = (double)(s->t * s->d);
        bytes += n * (double)mb_dtype_bytes(a[i].dtype) * (c->arguments[i].use == CHANGED ? 2 : 1);
    }
    return bytes;
}

/* GB a second, best of runs over 0.1 s. */
static double rate(const scene *s, const op_case *c, unsigned mix)
{
    mb_tensor a[MOST];
    make_arguments(s, c, mix, a);
    double best = 1e9, bytes = bytes_of(s, c, a), until = mb_clock_seconds() + 0.1;
    do {
        double start = mb_clock_seconds();
        fixture_ok(c->run(s, a));
        double took = mb_clock_seconds() - start;
        best = took < best ? took : best;
    } while (mb_clock_seconds() < until);
    free_arguments(c, a);
    return bytes / best * 1e-9;
}

static void test_speed(void **state)
{
    (void)state;
    if (getenv("MB_BENCH") == NULL) return;
    int threads = (int)number("MB_BENCH_THREADS", 2);
    mb_ops *ops = NULL;
    fixture_ok(mb_ops_create("cpu", threads, &ops));
    scene s = scene_create(ops, number("MB_BENCH_ROWS", 2048), number("MB_BENCH_WIDTH", 2048));
    double copy = copy_rate(threads);
    printf("# %s\n# copy %.1f GB/s\n", mb_ops_describe(ops), copy);
    for (int i = 0; i < CASES; i++) {
        double f32 = rate(&s, &cases[i], 0), bf16 = rate(&s, &cases[i], 0xFF);
        printf("# %-24s f32 %6.1f GB/s (%3.0f%%)  bf16 %6.1f GB/s (%3.0f%%)\n", cases[i].name, f32,
               100 * f32 / copy, bf16, 100 * bf16 / copy);
    }
    scene_destroy(&s);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_speed)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
