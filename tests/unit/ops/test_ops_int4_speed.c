/* test_ops_int4_speed: products with bf16, 8-bit and 4-bit weights in turns; does nothing unless MB_BENCH=1.
 *
 * MB_BENCH_THREADS=n (2), MB_BENCH_BACKEND (cpu), MB_BENCH_ROWS=f32|bf16 (bf16), MB_BENCH_GROUP (64); MB_ISA
 * and MB_OPS_DENSE choose as always. The matrices are those of a decoder (D 768, 12 layers, F 2048): a pass
 * over all of them is what a step of generation asks of the memory, so its rate stands beside that of reading
 * a large array. Large products are of one matrix. All forms in turns, round by round; the best time of each
 * matrix, so that other work on the machine counts little.
 */
#include "base/clock.h"
#include "ops_fixture.h"

enum {
    LAYERS = 12,
    EACH = 7,
    WEIGHTS = LAYERS * EACH,
    FORMS = 3,
    ROUNDS = 15,
    ARRAY = 1 << 28,
    PIECE = 1 << 20
};

static const int64_t shapes[EACH][2] = {{768, 768},  {768, 768},  {768, 768}, {768, 768},
                                        {2048, 768}, {2048, 768}, {768, 2048}};
static const char *const names[FORMS] = {"bf16", "int8", "int4"};

typedef struct bench {
    mb_ops *ops;
    mb_dtype rows;
    int64_t group;
    mb_weight weights[FORMS][WEIGHTS];
    double bytes[FORMS]; /* of all weights */
    void *x, *y;
} bench;

static mb_weight make_weight(int form, int64_t n, int64_t k, int64_t group, double *bytes)
{
    mb_weight w;
    const int64_t width = form == 0 ? 2 * k : form == 1 ? k : (k + 1) / 2, g = (k + group - 1) / group;
    uint8_t *data = mb_calloc((size_t)(n * width), 1);
    assert_non_null(data);
    for (int64_t i = 0; i < n * width; i++)
        data[i] = form == 0 && i % 2 == 1 ? 0x3C : (uint8_t)(i * 2654435761u >> 7);
    *bytes += (double)(n * width);
    if (form == 0) {
        mb_weight_init(&w, mb_tensor_view2(MB_BF16, data, n, k));
        return w;
    }
    float *scale = fixture_random(n * g, 1, 0.01);
    mb_weight_init_quantised(&w, mb_tensor_view2(form == 1 ? MB_I8 : MB_U8, data, n, width),
                             form == 1 ? 8 : 4, k, group, fixture_matrix(scale, n, g));
    *bytes += (double)(n * g) * sizeof *scale;
    return w;
}

static double product(bench *b, mb_weight *w, int64_t m)
{
    const mb_tensor x = mb_tensor_view2(b->rows, b->x, m, w->width);
    mb_tensor y = mb_tensor_view2(b->rows, b->y, m, w->tensor.shape[0]);
    const double start = mb_clock_seconds();
    fixture_ok(mb_ops_linear(b->ops, &x, w, NULL, false, &y));
    return mb_clock_seconds() - start;
}

static double least(double a, double b)
{
    return b < a ? b : a;
}

/* Seconds for one piece of an array that no cache holds. */
static double memory_piece(const uint64_t *array, int threads)
{
    uint64_t sum = 0;
    const double start = mb_clock_seconds();
#pragma omp parallel for reduction(+ : sum) num_threads(threads) schedule(static)
    for (int64_t i = 0; i < PIECE / 8; i += 8)
        sum += (array[i] + array[i + 1]) + (array[i + 2] + array[i + 3]) + (array[i + 4] + array[i + 5]) +
               (array[i + 6] + array[i + 7]);
    assert_true(sum != 1);
    return mb_clock_seconds() - start;
}

/* Sums of the best times of the pieces of the array, and of the matrices of each form. */
static void measure(bench *b, const uint64_t *array, int64_t m, double *memory, double total[FORMS])
{
    double best[FORMS][WEIGHTS], pieces[ARRAY / PIECE];
    for (int i = 0; i < FORMS * WEIGHTS; i++) best[i / WEIGHTS][i % WEIGHTS] = 1e9;
    for (int i = 0; i < ARRAY / PIECE; i++) pieces[i] = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < ARRAY / PIECE; i++)
            pieces[i] =
                least(pieces[i], memory_piece(array + (int64_t)i * (PIECE / 8), mb_ops_threads(b->ops)));
        for (int form = 0; form < FORMS; form++)
            for (int i = 0; i < WEIGHTS; i++)
                best[form][i] = least(best[form][i], product(b, &b->weights[form][i], m));
    }
    *memory = 0;
    for (int i = 0; i < ARRAY / PIECE; i++) *memory += pieces[i];
    for (int form = 0; form < FORMS; form++) {
        total[form] = 0;
        for (int i = 0; i < WEIGHTS; i++) total[form] += best[form][i];
    }
}

static void bench_passes(bench *b, const uint64_t *array)
{
    const int64_t counts[] = {1, 2, 3, 4, 6, 8, 16, 32};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        double memory, total[FORMS];
        measure(b, array, counts[c], &memory, total);
        for (int form = 0; form < FORMS; form++) {
            const double rate = b->bytes[form] / total[form], ceiling = ARRAY / memory;
            printf(
                "# %3d rows, all layers, %s: %8.2f ms, %5.1f GB/s, %3.0f %% of memory's %.1f, %.2f x bf16\n",
                (int)counts[c], names[form], 1e3 * total[form], 1e-9 * rate, 100 * rate / ceiling,
                1e-9 * ceiling, total[0] / total[form]);
        }
    }
}

static void bench_large(bench *b)
{
    const int64_t counts[] = {1, 4, 8, 16, 64, 128, 256, 512, 2048};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        const int64_t m = counts[c];
        double best[FORMS] = {1e9, 1e9, 1e9};
        for (int round = 0; round < 2 * ROUNDS; round++)
            for (int form = 0; form < FORMS; form++)
                best[form] = least(best[form], product(b, &b->weights[form][4], m));
        for (int form = 0; form < FORMS; form++)
            printf("# %4d x 2048 x 768, %s: %8.3f ms, %6.1f GFLOP/s, %.2f x bf16\n", (int)m, names[form],
                   1e3 * best[form], 2e-9 * (double)m * 2048 * 768 / best[form], best[0] / best[form]);
    }
}

static void test_speed(void **state)
{
    (void)state;
    if (getenv("MB_BENCH") == NULL) {
        printf("# nothing measured: set MB_BENCH=1\n");
        return;
    }
    const char *threads = getenv("MB_BENCH_THREADS"), *backend = getenv("MB_BENCH_BACKEND"),
               *rows = getenv("MB_BENCH_ROWS"), *group = getenv("MB_BENCH_GROUP");
    bench *b = mb_calloc(1, sizeof *b);
    uint64_t *array = mb_calloc(1, ARRAY);
    assert_non_null(b);
    assert_non_null(array);
    memset(array, 1, ARRAY);
    fixture_ok(
        mb_ops_create(backend != NULL ? backend : "cpu", threads != NULL ? atoi(threads) : 2, &b->ops));
    b->rows = rows != NULL && strcmp(rows, "f32") == 0 ? MB_F32 : MB_BF16;
    b->group = group != NULL ? atoi(group) : 64;
    b->x = mb_calloc(2048 * 2048, 4);
    b->y = mb_calloc(2048 * 2048, 4);
    assert_non_null(b->x);
    assert_non_null(b->y);
    for (int64_t i = 0; i < 2048 * 2048 * 2; i++) ((uint16_t *)b->x)[i] = i % 2 == 1 ? 0x3C12 : 0x3C81;
    for (int form = 0; form < FORMS; form++)
        for (int i = 0; i < WEIGHTS; i++)
            b->weights[form][i] =
                make_weight(form, shapes[i % EACH][0], shapes[i % EACH][1], b->group, &b->bytes[form]);
    printf("# %s, %s rows, groups of %d\n", mb_ops_describe(b->ops), mb_dtype_name(b->rows), (int)b->group);
    bench_passes(b, array);
    bench_large(b);
    for (int i = 0; i < FORMS * WEIGHTS; i++) {
        mb_weight *w = &b->weights[i / WEIGHTS][i % WEIGHTS];
        mb_weight_reset(w);
        mb_free(w->tensor.data), mb_free(w->scale.data);
    }
    mb_ops_destroy(&b->ops);
    mb_free(b->x), mb_free(b->y), mb_free(array), mb_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_speed)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
