/* test_kmeans: k-means, silhouette and principal components against scikit-learn, brute force and themselves.
 * Seed 20263 throughout. Run from the project's folder (tests/golden). */
#include "mb_test.h"

#include "base/rng.h"
#include "base/stop.h"
#include "choose/kmeans.h"
#include "choose/pca.h"
#include "choose/silhouette.h"
#include "store/h5.h"

enum { SEED = 20263 };

static mb_comm *comm;

static const mb_kmeans_options plain_options = {
    .metric = "euclidean", .restarts = 1, .max_iterations = 300, .tolerance = 1e-4, .seed = 42};

static mb_rows rows_of(float *data, int64_t count, int64_t width)
{
    return (mb_rows){.data = data, .count = count, .total = count, .width = width};
}

static float draw(uint32_t sub, int64_t i)
{
    return (float)mb_rng_normal(SEED, MB_RNG_DATA, sub, (uint64_t)i);
}

/* Rows around `groups` centres that lie `apart` from each other; some rows twice. */
static float *make_rows(int64_t count, int64_t width, int64_t groups, float apart)
{
    float *data = mb_calloc((size_t)(count * width), sizeof *data);
    assert_non_null(data);
    for (int64_t i = 0; i < count; i++) {
        const int64_t from = i % 17 == 5 ? i - 3 : i, group = from * 7 % groups;
        for (int64_t d = 0; d < width; d++)
            data[i * width + d] = draw(1, from * width + d) + apart * draw(2, group * width + d);
    }
    return data;
}

static void run_with(float *data, int64_t count, int64_t width, int64_t k, const float *start,
                     const mb_kmeans_options *options, mb_kmeans_result *out)
{
    mb_rows rows = rows_of(data, count, width);
    mb_kmeans *kmeans = NULL;
    mb_test_ok(mb_kmeans_create(comm, &rows, options, &kmeans));
    mb_test_ok(mb_kmeans_run(kmeans, k, start, out));
    mb_kmeans_destroy(&kmeans);
}

static void assert_same(const mb_kmeans_result *a, const mb_kmeans_result *b)
{
    assert_memory_equal(a->labels, b->labels, (size_t)a->count * sizeof *a->labels);
    assert_memory_equal(a->distance, b->distance, (size_t)a->count * sizeof *a->distance);
    assert_memory_equal(a->centres, b->centres, (size_t)(a->k * a->width) * sizeof *a->centres);
    assert_memory_equal(a->sizes, b->sizes, (size_t)a->k * sizeof *a->sizes);
    assert_int_equal(a->longest, b->longest);
    assert_memory_equal(a->trace, b->trace, (size_t)(a->restarts * a->longest) * sizeof *a->trace);
    assert_true(a->inertia == b->inertia && a->best_restart == b->best_restart);
}

static double square_of(const float *a, const float *b, int64_t width)
{
    double sum = 0;
    for (int64_t d = 0; d < width; d++) sum += ((double)a[d] - (double)b[d]) * ((double)a[d] - (double)b[d]);
    return sum;
}

/* ---- scikit-learn ---- */

static void *golden(mb_h5 *file, const char *group, const char *name, mb_dtype dtype, int64_t *shape)
{
    char path[64];
    int dims;
    int64_t all[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    snprintf(path, sizeof path, "/%s/%s", group, name);
    mb_test_ok(mb_h5_read_new(file, path, dtype, &dims, all, &data));
    for (int i = 0; i < 2 && shape != NULL; i++) shape[i] = i < dims ? all[i] : 1;
    return data;
}

static void check_golden(const char *group, const char *metric)
{
    mb_h5 *file = NULL;
    int64_t shape[2], start_shape[2];
    mb_test_ok(mb_h5_open("tests/golden/kmeans/kmeans.h5", &file));
    float *data = golden(file, group, "rows", MB_F32, shape),
          *start = golden(file, group, "start", MB_F32, start_shape),
          *centres = golden(file, group, "centres", MB_F32, NULL),
          *silhouette = golden(file, group, "silhouette", MB_F32, NULL),
          *plane = golden(file, group, "plane", MB_F32, NULL);
    int32_t *labels = golden(file, group, "labels", MB_I32, NULL);
    double *numbers = golden(file, group, "numbers", MB_F64, NULL),
           *variance = golden(file, group, "variance", MB_F64, NULL);
    const int64_t count = shape[0], width = shape[1], k = start_shape[0];
    mb_kmeans_options options = plain_options;
    options.metric = (char *)metric;
    mb_kmeans_result r = {0};
    run_with(data, count, width, k, start, &options, &r); /* cosine: data is normalised now */
    assert_memory_equal(r.labels, labels, (size_t)count * sizeof *labels);
    mb_test_near(r.inertia, numbers[0], 1e-6);
    mb_test_near(r.trace[r.longest - 1], numbers[0], 1e-6);
    assert_int_equal(r.iterations[0], (int64_t)numbers[1]);
    assert_true(r.is_converged);
    mb_test_near_all(r.centres, centres, k * width, 1e-5, 1e-6);

    const mb_rows rows = rows_of(data, count, width);
    const mb_silhouette_options how = {.limit = count, .is_cosine = strcmp(metric, "cosine") == 0};
    float *values = mb_calloc((size_t)count, sizeof *values);
    double by_cluster[16], mean = 0;
    mb_silhouette_summary summary;
    mb_test_ok(mb_silhouette_run(comm, &rows, labels, k, &how, values, by_cluster, &summary));
    mb_test_near_all(values, silhouette, count, 0, 3e-6);
    for (int64_t i = 0; i < count; i++) mean += silhouette[i] / (double)count;
    mb_test_near_abs(summary.mean, mean, 0, 1e-6);
    assert_int_equal(summary.rows, count);

    mb_pca pca = {0};
    mb_test_ok(mb_pca_run(comm, &rows, 0, NULL, &pca));
    for (int i = 0; i < 2; i++) mb_test_near(pca.variance[i], variance[i], 1e-5);
    mb_test_near(pca.total, variance[2], 1e-5);
    mb_test_near_all(pca.plane, plane, count * 2, 1e-4, 1e-4 * sqrt(variance[0]));
    mb_pca_reset(&pca);
    mb_kmeans_result_reset(&r);
    void *all[] = {data, start, centres, silhouette, plane, labels, numbers, variance, values};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mb_free(all[i]);
    mb_h5_destroy(&file);
}

static void test_sklearn(void **state)
{
    (void)state;
    check_golden("plain", "euclidean");
}

static void test_sklearn_far(void **state)
{
    (void)state;
    check_golden("far", "euclidean");
}

static void test_sklearn_empty(void **state)
{
    (void)state;
    check_golden("empty", "euclidean");
}

static void test_cosine(void **state)
{
    (void)state;
    check_golden("cosine", "cosine");
}

/* ---- the same bits ---- */

/* Threads, instruction sets and bounds, over shapes that fill vectors and panels and ones that do not. */
static void check_bits(int64_t count, int64_t width, int64_t k, const char *metric, bool has_portable)
{
    float *data = make_rows(count, width, 9, 0.7f), *copy = mb_calloc((size_t)(count * width), sizeof *copy);
    memcpy(copy, data, (size_t)(count * width) * sizeof *copy);
    mb_kmeans_options options = plain_options;
    options.metric = (char *)metric;
    options.restarts = 2;
    mb_kmeans_result first = {0}, other = {0};
    run_with(data, count, width, k, NULL, &options, &first);
    const char *const sets[] = {"avx512", "avx2", "portable", NULL, NULL};
    for (int i = 0; i < 5; i++) {
        if (sets[i] != NULL && mb_row_products_get(sets[i]) == NULL) continue;
        if (i == 2 && !has_portable) continue;
        options.opt_isa = sets[i];
        options.threads = i == 3 ? 1 : 3;
        options.is_without_bounds = i == 4;
        memcpy(data, copy, (size_t)(count * width) * sizeof *copy);
        run_with(data, count, width, k, NULL, &options, &other);
        assert_same(&first, &other);
        mb_kmeans_result_reset(&other);
    }
    mb_kmeans_result_reset(&first);
    mb_free(data);
    mb_free(copy);
}

static void test_bits(void **state)
{
    (void)state;
    check_bits(700, 21, 5, "euclidean", true);
    check_bits(700, 21, 5, "cosine", true);
    check_bits(900, 13, 77, "euclidean", true);
    check_bits(1500, 8, 210, "euclidean", false); /* a row's own distance first */
    check_bits(300, 1, 3, "euclidean", true);
}

/* Rows in another order: the same centres, whatever the order of sums. */
static void test_order(void **state)
{
    (void)state;
    enum { N = 999, D = 11, K = 6 };
    float *data = make_rows(N, D, 6, 1), *turned = mb_calloc(N * D, sizeof *turned);
    for (int64_t i = 0; i < N; i++) memcpy(turned + i * D, data + (N - 1 - i) * D, D * sizeof *data);
    mb_kmeans_result a = {0}, b = {0};
    run_with(data, N, D, K, data, &plain_options, &a);
    run_with(turned, N, D, K, data, &plain_options, &b);
    assert_memory_equal(a.centres, b.centres, K * D * sizeof *a.centres);
    assert_true(a.inertia == b.inertia && a.longest == b.longest);
    for (int64_t i = 0; i < N; i++) assert_int_equal(a.labels[i], b.labels[N - 1 - i]);
    mb_kmeans_result_reset(&a);
    mb_kmeans_result_reset(&b);
    mb_free(data);
    mb_free(turned);
}

/* ---- brute force ---- */

/* Every row is with the centre that is nearest in f64; of equals the first. */
static void test_nearest(void **state)
{
    (void)state;
    enum { N = 1200, D = 24 };
    const int64_t numbers[] = {1, 2, 16, 17, 65, 130, 200};
    float *data = make_rows(N, D, 5, 0.5f);
    for (size_t t = 0; t < sizeof numbers / sizeof *numbers; t++) {
        const int64_t k = numbers[t];
        mb_kmeans_result r = {0};
        mb_kmeans_options options = plain_options;
        options.max_iterations = 8;
        run_with(data, N, D, k, NULL, &options, &r);
        double inertia = 0;
        int64_t sizes[256] = {0};
        for (int64_t i = 0; i < N; i++) {
            int64_t best = 0;
            double least = INFINITY;
            for (int64_t c = 0; c < k; c++) {
                const double d = square_of(data + i * D, r.centres + c * D, D);
                if (d < least * (1 - 1e-14)) {
                    least = d;
                    best = c;
                }
            }
            assert_int_equal(r.labels[i], best);
            mb_test_near(r.distance[i], least, 1e-6);
            inertia += least;
            sizes[best]++;
        }
        mb_test_near(r.inertia, inertia, 1e-12);
        mb_test_near(r.trace[r.longest - 1], inertia, 1e-10);
        for (int64_t c = 0; c < k; c++) assert_int_equal(r.sizes[c], sizes[c]);
        for (int64_t i = 1; i < r.longest; i++) assert_true(r.trace[i] <= r.trace[i - 1] * (1 + 1e-9));
        mb_kmeans_result_reset(&r);
    }
    mb_free(data);
}

/* Two centres that are the same: every tie goes to the first. */
static void test_ties(void **state)
{
    (void)state;
    float data[] = {0, 0, 0, 1, 4, 4, 5, 5}, start[] = {4, 4, 4, 4, 0, 0};
    mb_kmeans_options options = plain_options;
    options.max_iterations = 0;
    mb_kmeans_result r = {0};
    run_with(data, 4, 2, 3, start, &options, &r);
    const int32_t expected[] = {2, 2, 0, 0};
    assert_memory_equal(r.labels, expected, sizeof expected);
    assert_memory_equal(r.centres, start, sizeof start);
    assert_int_equal(r.iterations[0], 0);
    assert_true(r.inertia == 3 && r.empty == 1 && r.is_converged);
    mb_kmeans_result_reset(&r);
}

/* ---- starts ---- */

/* Groups far from each other: k-means++ finds all of them; other seeds, other starts. */
static void test_start(void **state)
{
    (void)state;
    enum { N = 2000, D = 12, K = 20 };
    float *data = make_rows(N, D, K, 30);
    mb_kmeans_options options = plain_options;
    mb_kmeans_result r = {0}, other = {0};
    for (int64_t seed = 1; seed <= 3; seed++) {
        options.seed = seed;
        run_with(data, N, D, K, NULL, &options, &r);
        mb_test_near(r.inertia, (double)N * D, 0.05); /* variance 1 in every column */
        for (int64_t i = K; i < N; i++)
            if (i % 17 != 5 && (i - K) % 17 != 5) assert_int_equal(r.labels[i], r.labels[i - K]);
        mb_kmeans_result_reset(&r);
    }
    options.max_iterations = 1;
    run_with(data, N, D, 3, NULL, &options, &r);
    options.seed = 1;
    run_with(data, N, D, 3, NULL, &options, &other);
    assert_memory_not_equal(r.centres, other.centres, 3 * D * sizeof *r.centres);
    assert_false(r.is_converged);
    mb_kmeans_result_reset(&r);
    mb_kmeans_result_reset(&other);
    mb_free(data);
}

static void test_restarts(void **state)
{
    (void)state;
    enum { N = 800, D = 6, K = 12 };
    float *data = make_rows(N, D, K, 1.5f);
    mb_kmeans_options options = plain_options;
    options.restarts = 6;
    mb_kmeans_result r = {0};
    run_with(data, N, D, K, NULL, &options, &r);
    bool differ = false;
    for (int64_t i = 0; i < 6; i++) {
        const double inertia = r.trace[i * r.longest + r.iterations[i]];
        assert_true(i == r.best_restart ? mb_test_is_near(inertia, r.inertia, 1e-10, 0)
                                        : inertia >= r.inertia * (1 - 1e-12));
        for (int64_t t = r.iterations[i] + 1; t < r.longest; t++)
            assert_true(isnan(r.trace[i * r.longest + t]));
        differ = differ || !mb_test_is_near(inertia, r.inertia, 1e-6, 0);
    }
    assert_true(differ);
    mb_kmeans_result_reset(&r);
    mb_free(data);
}

/* ---- degenerate input ---- */

static void test_degenerate(void **state)
{
    (void)state;
    enum { N = 40, D = 5 };
    float *data = make_rows(N, D, 4, 1), equal[N * 2];
    mb_rows rows = rows_of(data, N, D), none = rows_of(data, 0, D);
    mb_kmeans *kmeans = NULL;
    mb_kmeans_result r = {0};
    mb_test_fails(mb_kmeans_create(comm, &none, &plain_options, &kmeans), MB_ERANGE, "no rows");
    mb_test_ok(mb_kmeans_create(comm, &rows, &plain_options, &kmeans));
    mb_test_fails(mb_kmeans_run(kmeans, N + 1, NULL, &r), MB_ERANGE, "41 clusters of 40 rows");
    mb_test_fails(mb_kmeans_run(kmeans, 0, NULL, &r), MB_ERANGE, "at least 1");
    mb_test_ok(mb_kmeans_run(kmeans, 1, NULL, &r));
    for (int64_t d = 0; d < D; d++) {
        double mean = 0;
        for (int64_t i = 0; i < N; i++) mean += data[i * D + d] / (double)N;
        mb_test_near_abs(r.centres[d], mean, 1e-6, 1e-6);
    }
    mb_kmeans_result_reset(&r);
    mb_kmeans_destroy(&kmeans);
    /* All rows the same: one cluster has them, the others stay empty. */
    for (int i = 0; i < N * 2; i++) equal[i] = i % 2 ? 0.3f : -7.7f;
    run_with(equal, N, 2, 3, NULL, &plain_options, &r);
    assert_true(r.inertia < 1e-12 && r.empty == 2 && r.is_converged && r.sizes[0] == N);
    mb_kmeans_result_reset(&r);
    /* As many clusters as different rows. */
    for (int i = 0; i < N; i++) equal[2 * i] = (float)(i % 4);
    run_with(equal, N, 2, 4, NULL, &plain_options, &r);
    assert_true(r.inertia == 0 && r.empty == 0);
    mb_kmeans_result_reset(&r);
    run_with(data + 6 * D, 3, D, 3, NULL, &plain_options, &r); /* as many as rows */
    assert_true(r.inertia == 0 && r.empty == 0);
    mb_kmeans_result_reset(&r);
    mb_free(data);
}

static void test_bad_rows(void **state)
{
    (void)state;
    enum { N = 30, D = 19 };
    float *data = make_rows(N, D, 4, 1);
    mb_rows rows = rows_of(data, N, D);
    mb_kmeans_options options = plain_options;
    mb_kmeans *kmeans = NULL;
    data[17 * D + 18] = NAN;
    mb_test_fails(mb_kmeans_create(comm, &rows, &options, &kmeans), MB_EDATA, "row 17 holds NaN");
    data[11 * D] = -INFINITY;
    mb_test_fails(mb_kmeans_create(comm, &rows, &options, &kmeans), MB_EDATA,
                  "row 11 holds NaN or an infinity");
    data[17 * D + 18] = data[11 * D] = 1;
    memset(data + 5 * D, 0, D * sizeof *data);
    options.metric = "cosine";
    mb_test_fails(mb_kmeans_create(comm, &rows, &options, &kmeans), MB_EDATA, "row 5 is all zeros");
    options.metric = "euclidean";
    data[3] = 1e20f;
    mb_test_fails(mb_kmeans_create(comm, &rows, &options, &kmeans), MB_ERANGE, "scale the vectors");
    data[3] = 1;
    options.opt_isa = "abacus";
    mb_test_fails(mb_kmeans_create(comm, &rows, &options, &kmeans), MB_EUNSUPPORTED, "MB_ISA=abacus");
    options.opt_isa = NULL;
    mb_test_ok(mb_kmeans_create(comm, &rows, &options, &kmeans));
    mb_kmeans_result r = {0};
    float start[D] = {[2] = NAN};
    mb_test_fails(mb_kmeans_run(kmeans, 1, start, &r), MB_EDATA, "centre 0 of the start");
    mb_stop_request();
    mb_test_fails(mb_kmeans_run(kmeans, 2, NULL, &r), MB_ESTOPPED, "run again");
    mb_stop_reset();
    mb_kmeans_destroy(&kmeans);
    mb_free(data);
}

/* A start that leaves four clusters empty: each takes one of the farthest rows. */
static void test_empty(void **state)
{
    (void)state;
    enum { N = 120, D = 3, K = 5 };
    float *data = make_rows(N, D, 6, 3), start[K * D];
    for (int i = 0; i < K * D; i++) start[i] = i < D ? 0 : 1000 + (float)i;
    mb_kmeans_result r = {0};
    mb_kmeans_options options = plain_options;
    options.max_iterations = 1;
    run_with(data, N, D, K, start, &options, &r);
    /* The four rows farthest from the first centre are the other four now. */
    for (int c = 1; c < K; c++) {
        bool is_row = false;
        for (int64_t i = 0; i < N; i++)
            is_row = is_row || square_of(data + i * D, r.centres + c * D, D) < 1e-8;
        assert_true(is_row);
        if (c > 1) {
            const float zero[D] = {0};
            assert_true(square_of(r.centres + c * D, zero, D) <=
                        square_of(r.centres + (c - 1) * D, zero, D) + 1e-6);
        }
    }
    mb_kmeans_result_reset(&r);
    options.max_iterations = 300;
    run_with(data, N, D, K, start, &options, &r);
    assert_int_equal(r.empty, 0);
    mb_kmeans_result_reset(&r);
    mb_free(data);
}

/* ---- silhouette ---- */

/* Of the rows in `list`, in f64. */
static double silhouette_by_hand(const float *data, int64_t width, const int32_t *labels, int k,
                                 const int64_t *list, int64_t n, int64_t own)
{
    double sum[8] = {0}, near = INFINITY;
    int64_t size[8] = {0};
    for (int64_t j = 0; j < n; j++) {
        sum[labels[list[j]]] += sqrt(square_of(data + own * width, data + list[j] * width, width));
        size[labels[list[j]]]++;
    }
    const int32_t c = labels[own];
    if (size[c] == 1) return 0;
    for (int o = 0; o < k; o++)
        if (o != c && size[o] > 0) near = fmin(near, sum[o] / (double)size[o]);
    const double inside = sum[c] / (double)(size[c] - 1);
    return fmax(inside, near) > 0 ? (near - inside) / fmax(inside, near) : 0;
}

static void test_silhouette(void **state)
{
    (void)state;
    enum { N = 700, D = 20, K = 5 };
    float *data = make_rows(N, D, 4, 1), values[N], again[N];
    int32_t labels[N];
    int64_t list[N];
    double by_cluster[K], sum = 0;
    mb_silhouette_summary summary;
    const mb_rows rows = rows_of(data, N, D);
    for (int i = 0; i < N; i++) labels[i] = i == 3 ? 4 : i % 3; /* 3 stays empty, 4 has one row */
    for (int limit = 250; limit <= N; limit += 450) {
        mb_silhouette_options options = {.limit = limit, .seed = 7, .threads = 2};
        mb_test_ok(mb_silhouette_run(comm, &rows, labels, K, &options, values, by_cluster, &summary));
        int64_t n = 0;
        for (int64_t i = 0; i < N; i++)
            if (!isnan(values[i])) list[n++] = i;
        assert_int_equal(n, limit);
        assert_int_equal(summary.rows, limit);
        sum = 0;
        for (int64_t i = 0; i < n; i++) {
            const double expected = silhouette_by_hand(data, D, labels, K, list, n, list[i]);
            mb_test_near_abs(values[list[i]], expected, 0, 2e-6);
            sum += expected;
        }
        mb_test_near_abs(summary.mean, sum / (double)n, 0, 1e-6);
        assert_true(isnan(by_cluster[3]) && isfinite(by_cluster[0]));
        const char *const sets[] = {"avx512", "avx2", "portable"};
        for (int s = 0; s < 3; s++) {
            options.opt_isa = sets[s];
            options.threads = 1 + s;
            if (mb_row_products_get(sets[s]) == NULL) continue;
            mb_test_ok(mb_silhouette_run(comm, &rows, labels, K, &options, again, by_cluster, &summary));
            assert_memory_equal(values, again, sizeof values);
        }
    }
    mb_free(data);
}

static void test_silhouette_undefined(void **state)
{
    (void)state;
    enum { N = 20, D = 3 };
    float *data = make_rows(N, D, 2, 1), values[N];
    int32_t labels[N] = {0};
    double by_cluster[2];
    mb_silhouette_summary summary;
    const mb_rows rows = rows_of(data, N, D);
    mb_silhouette_options options = {.limit = 100};
    mb_test_ok(mb_silhouette_run(comm, &rows, labels, 2, &options, values, by_cluster, &summary));
    assert_true(isnan(summary.mean) && isnan(values[0]) && summary.rows == 0);
    labels[1] = 1;
    options.limit = 0;
    mb_test_ok(mb_silhouette_run(comm, &rows, labels, 2, &options, values, by_cluster, &summary));
    assert_true(isnan(summary.mean));
    /* Rows all the same: 0, not NaN. */
    memset(data, 0, N * D * sizeof *data);
    options.limit = 100;
    mb_test_ok(mb_silhouette_run(comm, &rows, labels, 2, &options, values, by_cluster, &summary));
    assert_true(summary.mean == 0 && values[5] == 0);
    mb_free(data);
}

/* ---- principal components ---- */

static void test_pca(void **state)
{
    (void)state;
    enum { N = 600, D = 70 };
    float *data = make_rows(N, D, 3, 2), line[N * 3];
    const mb_rows rows = rows_of(data, N, D);
    mb_pca a = {0}, b = {0};
    mb_test_ok(mb_pca_run(comm, &rows, 1, NULL, &a));
    const char *const sets[] = {"avx512", "avx2", "portable"};
    for (int s = 0; s < 3; s++) {
        if (mb_row_products_get(sets[s]) == NULL) continue;
        mb_test_ok(mb_pca_run(comm, &rows, 2, sets[s], &b));
        assert_memory_equal(a.plane, b.plane, N * 2 * sizeof *a.plane);
        assert_memory_equal(a.axes, b.axes, D * 2 * sizeof *a.axes);
        mb_pca_reset(&b);
    }
    /* The plane's own variances are those of the axes, and its columns have nothing in common. */
    double square[2] = {0}, both = 0;
    for (int64_t i = 0; i < N; i++) {
        for (int c = 0; c < 2; c++)
            square[c] += (double)a.plane[i * 2 + c] * (double)a.plane[i * 2 + c] / (N - 1);
        both += (double)a.plane[i * 2] * (double)a.plane[i * 2 + 1] / (N - 1);
    }
    for (int c = 0; c < 2; c++) mb_test_near(square[c], a.variance[c], 1e-5);
    assert_true(fabs(both) < 1e-5 * a.variance[0] && a.variance[0] + a.variance[1] < a.total);
    mb_pca_reset(&a);
    /* One direction only, then none. */
    for (int i = 0; i < N * 3; i++) line[i] = (float)(i / 3) * (i % 3 == 1 ? -2.0f : 1.0f);
    const mb_rows thin = rows_of(line, N, 3);
    mb_test_ok(mb_pca_run(comm, &thin, 0, NULL, &a));
    mb_test_near(a.axes[1], sqrt(4.0 / 6), 1e-9);
    mb_test_near(a.axes[0], -sqrt(1.0 / 6), 1e-9);
    mb_test_near(a.variance[0], a.total, 1e-9);
    assert_true(a.variance[1] == 0 && a.axes[3] == 0 && a.plane[7] == 0);
    mb_pca_reset(&a);
    for (int i = 0; i < N * 3; i++) line[i] = 2.5f;
    mb_test_ok(mb_pca_run(comm, &thin, 0, NULL, &a));
    assert_true(a.total < 1e-9 && a.plane[0] == 0);
    mb_pca_reset(&a);
    const mb_rows one = rows_of(line, 1, 1);
    mb_test_ok(mb_pca_run(comm, &one, 0, NULL, &a));
    assert_true(a.total == 0);
    mb_pca_reset(&a);
    mb_free(data);
}

/* ---- exact sums ---- */

/* Means of columns of very different sizes. */
static void test_columns(void **state)
{
    (void)state;
    enum { N = 5000, D = 6 };
    float *data = mb_calloc(N * D, sizeof *data);
    const double size[D] = {1, 1e-9, 1e7, 0, 3, 1e-30};
    for (int64_t i = 0; i < N * D; i++)
        data[i] = (float)((draw(3, i) + (i % D == 4 ? 1000 : 0)) * size[i % D]);
    const mb_rows rows = rows_of(data, N, D);
    mb_row_columns columns = {0};
    mb_test_ok(mb_rows_columns(comm, &rows, 2, mb_row_products_get(NULL), &columns));
    for (int d = 0; d < D; d++) {
        long double sum = 0;
        for (int64_t i = 0; i < N; i++) sum += data[i * D + d];
        mb_test_near_abs(columns.mean[d], (double)(sum / N), 1e-12, 1e-12 * columns.largest[d]);
    }
    assert_int_equal(mb_rows_bits(1), 50);
    assert_int_equal(mb_rows_bits(4096), 50);
    assert_int_equal(mb_rows_bits(4097), 49);
    assert_int_equal(mb_rows_bits(200000), 44);
    mb_rows_columns_reset(&columns);
    mb_free(data);
}

static int set_up(void **state)
{
    (void)state;
    return mb_comm_create(NULL, NULL, &comm) == MB_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    mb_comm_destroy(&comm);
    return mb_test_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sklearn),
        cmocka_unit_test(test_sklearn_far),
        cmocka_unit_test(test_sklearn_empty),
        cmocka_unit_test(test_cosine),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_restarts),
        cmocka_unit_test(test_degenerate),
        cmocka_unit_test(test_bad_rows),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_silhouette),
        cmocka_unit_test(test_silhouette_undefined),
        cmocka_unit_test(test_pca),
        cmocka_unit_test(test_columns),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
