/* ops_fixture: what the op tests share: backends to run on, random data, comparison with f64.
 *
 * Every configuration (backend, instruction set, matrix library) is created anew; one that this machine or
 * build has not is skipped. "cuda" runs on tensors of ordinary memory (MB_CUDA_SHARED=1): on a GPU whose
 * driver reaches it, or on the emulator that the test may be linked with, where other orders of a grid's
 * threads take the place of other numbers of threads.
 */
#ifndef MB_TEST_OPS_FIXTURE_H
#define MB_TEST_OPS_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/rng.h"
#include "ops/ops.h"

enum { FIXTURE_SEED = 20240613 };

typedef struct fixture_config {
    const char *backend, *isa, *dense;
} fixture_config;

static const fixture_config fixture_configs[] = {
    {"ref", NULL, NULL},     {"cpu", "avx512", "dnnl"},    {"cpu", "avx512", "cblas"},
    {"cpu", "avx2", "dnnl"}, {"cpu", "portable", "cblas"}, {"cuda", NULL, NULL},
};
enum { FIXTURE_CONFIGS = sizeof fixture_configs / sizeof fixture_configs[0] };

/* Of the emulator, when the test is linked with it (tests/emulator/emulator.h): device bytes not freed. */
extern int64_t mb_emulator_live_bytes(void) __attribute__((weak));

/* A GPU, real or emulated. */
static inline bool fixture_is_cuda(const mb_ops *ops)
{
    return strcmp(mb_ops_name(ops), "cuda") == 0;
}

/* A size for most backends, or the one for a backend that runs every thread of a GPU in turn. */
static inline int64_t fixture_size(const mb_ops *ops, int64_t size, int64_t emulated)
{
    return fixture_is_cuda(ops) && mb_emulator_live_bytes != NULL ? emulated : size;
}

/* NULL when the configuration is not available here. */
static inline mb_ops *fixture_ops(const fixture_config *config, int threads)
{
    static const char *const orders[] = {"forward", "reverse", "20240613"};
    mb_ops *ops = NULL;
    if (config->isa != NULL) setenv("MB_ISA", config->isa, 1);
    if (config->dense != NULL) setenv("MB_OPS_DENSE", config->dense, 1);
    setenv("MB_CUDA_SHARED", "1", 1);
    setenv("MB_EMULATOR_PAGEABLE", "1", 1);
    setenv("MB_EMULATOR_ORDER", orders[(threads - 1) % 3], 1);
    mb_status status = mb_ops_create(config->backend, threads, &ops);
    unsetenv("MB_ISA");
    unsetenv("MB_OPS_DENSE");
    unsetenv("MB_CUDA_SHARED");
    if (status == MB_EUNSUPPORTED) {
        printf("# skipped: %s\n", mb_status_message());
        return NULL;
    }
    assert_int_equal(status, MB_OK);
    return ops;
}

static inline void fixture_ok(mb_status status)
{
    if (status != MB_OK) printf("# %s\n%s", mb_status_message(), mb_status_trace_text());
    assert_int_equal(status, MB_OK);
}

/* n normal numbers times scale; `sub` tells arrays apart. */
static inline float *fixture_random(int64_t n, uint32_t sub, double scale)
{
    float *x = mb_calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(scale * mb_rng_normal(FIXTURE_SEED, MB_RNG_INIT, sub, (uint64_t)i));
    }
    return x;
}

static inline float *fixture_copy(const float *x, int64_t n)
{
    float *y = mb_calloc((size_t)n + 1, sizeof *y);
    assert_non_null(y);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

static inline double *fixture_f64(int64_t n)
{
    double *x = mb_calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* Largest difference over the largest value must be below tolerance; a NaN is a difference above all. */
static inline void fixture_near(const char *what, const float *got, const double *want, int64_t n,
                                double tolerance)
{
    double worst = 0, size = 1e-30;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        double difference = fabs(got[i] - want[i]);
        if (isnan(difference) && !isnan(worst)) worst = difference, at = i;
        if (difference > worst) worst = difference, at = i;
        if (fabs(want[i]) > size) size = fabs(want[i]);
    }
    if (!(worst <= tolerance * size)) {
        fail_msg("%s: element %lld is %.9g, expected %.9g (relative to %.3g: %.3g, allowed %.3g)", what,
                 (long long)at, (double)got[at], want[at], size, worst / size, tolerance);
    }
}

static inline void fixture_same(const char *what, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0) {
            fail_msg("%s: bits differ at %lld: %.9g, %.9g", what, (long long)i, (double)a[i], (double)b[i]);
        }
    }
}

static inline mb_tensor fixture_matrix(float *data, int64_t rows, int64_t columns)
{
    return mb_tensor_view2(MB_F32, data, rows, columns);
}

static inline int64_t fixture_below(uint32_t sub, uint64_t index, int64_t n)
{
    return (int64_t)mb_rng_below(FIXTURE_SEED, MB_RNG_DATA, sub, index, (uint64_t)n);
}

static inline int fixture_teardown(void **state)
{
    (void)state;
    if (mb_emulator_live_bytes != NULL && mb_emulator_live_bytes() != 0) return -1;
    return mb_memory_live_blocks() == 0 ? 0 : -1;
}

/* Outputs of a run in order, to compare runs bit for bit. */
typedef struct fixture_tape {
    float *data;
    int64_t n;
} fixture_tape;

static inline void fixture_record(fixture_tape *tape, const float *x, int64_t n)
{
    float *grown = mb_realloc(tape->data, (size_t)(tape->n + n), sizeof *grown);
    assert_non_null(grown);
    memcpy(grown + tape->n, x, (size_t)n * sizeof *x);
    tape->data = grown;
    tape->n += n;
}

/* A function of f64 inputs [n] to outputs [m], for finite differences. */
typedef void (*fixture_function)(const void *context, const double *x, double *out);

/* out[n] += gradient of sum(dy * f(x)) by central differences. */
static inline void fixture_gradient(fixture_function f, const void *context, const float *x, int64_t n,
                                    const float *dy, int64_t m, double *out)
{
    const double h = 1e-5;
    double *at = fixture_f64(n), *up = fixture_f64(m), *down = fixture_f64(m);
    for (int64_t i = 0; i < n; i++) at[i] = x[i];
    for (int64_t i = 0; i < n; i++) {
        double sum = 0, keep = at[i];
        at[i] = keep + h;
        f(context, at, up);
        at[i] = keep - h;
        f(context, at, down);
        at[i] = keep;
        for (int64_t j = 0; j < m; j++) sum += dy[j] * (up[j] - down[j]);
        out[i] += sum / (2 * h);
    }
    mb_free(at), mb_free(up), mb_free(down);
}

/* Run `body` on every configuration with 1, 2 and 3 threads (or in 3 orders); all must leave the same bits on
 * the tape, and the scratch as it was. */
static inline void fixture_each(void (*body)(mb_ops *ops, fixture_tape *tape))
{
    enum { RUNS = 3 };
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        fixture_tape tapes[RUNS] = {{0}};
        for (int i = 0; i < RUNS; i++) {
            mb_ops *ops = fixture_ops(&fixture_configs[c], i + 1);
            if (ops == NULL) break;
            mb_arena_mark before = mb_arena_mark_get(mb_ops_scratch(ops));
            body(ops, &tapes[i]);
            mb_arena_mark after = mb_arena_mark_get(mb_ops_scratch(ops));
            assert_true(before.chunk == after.chunk && before.used == after.used);
            mb_ops_destroy(&ops);
        }
        for (int i = 1; i < RUNS; i++) {
            assert_int_equal(tapes[0].n, tapes[i].n);
            fixture_same(fixture_configs[c].isa != NULL ? fixture_configs[c].isa : fixture_configs[c].backend,
                         tapes[0].data, tapes[i].data, tapes[0].n);
        }
        for (int i = 0; i < RUNS; i++) mb_free(tapes[i].data);
    }
}

#endif
