/* test_ops_device: ops on a device's memory, which the host cannot touch: what was uploaded, computed and
 * downloaded is what ref computes. Rows to experts are fewer than there is room for, and the rest holds NaN,
 * which must reach no result.
 *
 * On a GPU, or on the emulator that the test may be linked with; skipped where there is neither.
 *
 * 1. the device
 * 2. every op of ops_cases.h
 * 3. the router, the optimiser, what waits
 */
#include "ops_cases.h"

/* ---- 1. the device ---- */

/* The backend, and what it has allocated. */
typedef struct device {
    mb_ops *ops;
    const mb_allocator *memory;
    void *blocks[64];
    int count;
} device;

static bool device_create(device *d)
{
    *d = (device){0};
    unsetenv("MB_CUDA_SHARED"), unsetenv("MB_EMULATOR_PAGEABLE"), unsetenv("MB_EMULATOR_ORDER");
    const mb_status status = mb_ops_create("cuda", 1, &d->ops);
    if (status == MB_EUNSUPPORTED) {
        printf("# skipped: %s\n", mb_status_message());
        return false;
    }
    fixture_ok(status);
    assert_true(mb_ops_is_device(d->ops));
    d->memory = mb_ops_allocator(d->ops);
    return true;
}

/* The host's n bytes on the device. */
static void *sent(device *d, const void *host, size_t bytes)
{
    assert_in_range(d->count, 0, 63);
    void *data = d->memory->alloc(d->memory->context, bytes + 1);
    assert_non_null(data);
    fixture_ok(mb_ops_upload(d->ops, host, bytes, data));
    fixture_ok(mb_ops_wait(d->ops));
    return d->blocks[d->count++] = data;
}

static mb_tensor sent_tensor(device *d, const mb_tensor *host)
{
    mb_tensor tensor = *host;
    tensor.data = sent(d, host->data, mb_tensor_bytes(host));
    return tensor;
}

static void fetched(device *d, const void *data, size_t bytes, void *host)
{
    fixture_ok(mb_ops_download(d->ops, data, bytes, host));
    fixture_ok(mb_ops_wait(d->ops));
}

/* Frees the blocks from number `kept` on. */
static void forget(device *d, int kept)
{
    while (d->count > kept) d->memory->free(d->memory->context, d->blocks[--d->count]);
}

static void device_destroy(device *d)
{
    forget(d, 0);
    mb_ops_destroy(&d->ops);
}

/* ---- 2. every op of ops_cases.h ---- */

/* A scene's arrays on the device, rows to experts sorted there. */
static scene scene_on(device *d, const scene *host)
{
    const int64_t n = host->t * PICKS;
    scene s = {.ops = d->ops, .t = host->t, .d = host->d};
    int32_t *ids = mb_calloc((size_t)n + 1, sizeof *ids), *junk = mb_calloc((size_t)n + 1, sizeof *junk);
    for (int64_t i = 0; i < n; i++) {
        ids[i] = (int32_t)fixture_below(4, (uint64_t)i, COLUMNS); /* as scene_create draws them */
        junk[i] = INT32_MAX;
    }
    const int32_t *device_ids = sent(d, ids, (size_t)n * sizeof *ids);
    s.dispatch.row_token = sent(d, junk, (size_t)n * sizeof *junk);
    s.dispatch.slot_row = sent(d, junk, (size_t)n * sizeof *junk);
    s.dispatch.offsets = sent(d, (int32_t[EXPERTS + 1]){9, 9, 9, 9}, (EXPERTS + 1) * sizeof *junk);
    s.positions = sent(d, host->positions, (size_t)host->t * sizeof *host->positions);
    s.tokens = sent(d, host->tokens, (size_t)host->t * sizeof *host->tokens);
    s.places = sent(d, host->places, (size_t)host->t * sizeof *host->places);
    s.rows = sent(d, host->rows, (size_t)host->t * sizeof *host->rows);
    fixture_ok(mb_ops_dispatch(d->ops, device_ids, host->t, PICKS, EXPERTS, &s.dispatch));
    assert_int_equal(s.dispatch.rows, n);
    mb_free(ids), mb_free(junk);
    return s;
}

static void check_scene(device *d, const scene *s, const scene *want)
{
    const int64_t n = s->t * PICKS, p = want->dispatch.rows;
    int32_t *got = mb_calloc((size_t)n + EXPERTS + 1, sizeof *got);
    fetched(d, s->dispatch.offsets, (EXPERTS + 1) * sizeof *got, got);
    assert_memory_equal(got, want->dispatch.offsets, (EXPERTS + 1) * sizeof *got);
    fetched(d, s->dispatch.slot_row, (size_t)n * sizeof *got, got);
    assert_memory_equal(got, want->dispatch.slot_row, (size_t)n * sizeof *got);
    fetched(d, s->dispatch.row_token, (size_t)n * sizeof *got, got);
    assert_memory_equal(got, want->dispatch.row_token, (size_t)p * sizeof *got);
    mb_free(got);
}

/* An argument as the device gets it: a row before the first, and `rows` of them, of which those that the
 * host's tensor has not are NaN, as the one before is. */
static mb_tensor sent_roomy(device *d, const mb_tensor *host, int64_t rows)
{
    mb_tensor row = *host, full = *host;
    row.shape[0] = 1, full.shape[0] = rows;
    const size_t before = mb_tensor_bytes(&row), bytes = before + mb_tensor_bytes(&full);
    char *data = mb_calloc(bytes + 1, 1);
    assert_non_null(data);
    memset(data, 0xFF, bytes); /* NaN in f32 and in bf16 */
    memcpy(data + before, host->data, mb_tensor_bytes(host));
    full.data = (char *)sent(d, data, bytes) + before;
    mb_free(data);
    return full;
}

/* Argument i of an op: as near as two backends are. */
static void check_near(const op_case *c, const mb_tensor *got, const mb_tensor *want)
{
    const int64_t n = mb_tensor_count(want);
    float *a = fixture_random(n, 0, 0), *b = fixture_random(n, 0, 0);
    double *expected = fixture_f64(n);
    fixture_ok(mb_dtype_to_f32(got->dtype, got->data, n, a));
    fixture_ok(mb_dtype_to_f32(want->dtype, want->data, n, b));
    for (int64_t j = 0; j < n; j++) expected[j] = b[j];
    fixture_near(c->name, a, expected, n, got->dtype == MB_F32 ? 1e-5 : 0x1p-8);
    mb_free(a), mb_free(b), mb_free(expected);
}

static void check_case(device *d, const scene *s, const scene *ref, const op_case *c, unsigned mix)
{
    const int kept = d->count;
    mb_tensor want[MOST], on_device[MOST];
    make_arguments(ref, c, mix, want);
    for (int i = 0; i < count_of(c); i++) {
        const bool has_room = c->arguments[i].shape == SENT;
        on_device[i] = sent_roomy(d, &want[i], has_room ? s->t * PICKS : want[i].shape[0]);
    }
    fixture_ok(c->run(ref, want));
    fixture_ok(c->run(s, on_device));
    for (int i = 0; i < count_of(c); i++) {
        mb_tensor got = on_device[i];
        got.data = mb_calloc(mb_tensor_bytes(&got) + 1, 1);
        fetched(d, on_device[i].data, mb_tensor_bytes(&got), got.data);
        check_near(c, &got, &want[i]);
        mb_free(got.data);
    }
    free_arguments(c, want);
    forget(d, kept);
}

static void test_cases(void **state)
{
    static const int64_t sizes[][2] = {{0, 8}, {1, 6}, {21, 74}, {40, 128}, {600, 4}};
    device d;
    mb_ops *plain = NULL;
    (void)state;
    if (!device_create(&d)) return;
    fixture_ok(mb_ops_create("ref", 1, &plain));
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        scene ref = scene_create(plain, sizes[i][0], sizes[i][1]), s = scene_on(&d, &ref);
        check_scene(&d, &s, &ref);
        if (ref.t > 1) assert_true(ref.dispatch.rows < ref.t * PICKS); /* some trash */
        for (int j = 0; j < CASES; j++)
            for (unsigned mix = 0; mix < 2; mix++) check_case(&d, &s, &ref, &cases[j], mix == 0 ? 0 : 0xFF);
        scene_destroy(&ref);
        forget(&d, 0);
    }
    mb_ops_destroy(&plain);
    device_destroy(&d);
}

/* ---- 3. the router, the optimiser, what waits ---- */

enum { T = 50, E = 9 };

/* Route and back on some backend; a: logits, probs, weights, dweights, dlogits, bias [E]. */
static void run_route(mb_ops *ops, const mb_tensor a[6], bool is_biased, int32_t *ids)
{
    mb_tensor t[6];
    memcpy(t, a, sizeof t);
    fixture_ok(mb_ops_route(ops, &t[0], is_biased ? &t[5] : NULL, PICKS, true, &t[1], ids, &t[2]));
    fixture_ok(mb_ops_route_backward(ops, &t[1], ids, &t[2], true, &t[3], &t[4]));
}

static void check_route(device *d, mb_ops *plain, bool is_biased)
{
    const int64_t widths[5] = {E, E, PICKS, PICKS, E};
    mb_tensor want[6], got[6];
    int32_t want_ids[T * PICKS] = {0}, got_ids[T * PICKS];
    for (int i = 0; i < 5; i++)
        want[i] = fixture_matrix(fixture_random(T * widths[i], (uint32_t)i, 1), T, widths[i]);
    want[5] = mb_tensor_view1(MB_F32, fixture_random(E, 5, 0.1f), E);
    for (int i = 0; i < 6; i++) got[i] = sent_tensor(d, &want[i]);
    int32_t *ids = sent(d, want_ids, sizeof want_ids);
    run_route(plain, want, is_biased, want_ids);
    run_route(d->ops, got, is_biased, ids);
    fetched(d, ids, sizeof got_ids, got_ids);
    assert_memory_equal(got_ids, want_ids, sizeof want_ids);
    for (int i = 0; i < 5; i++) {
        const int64_t n = T * widths[i];
        float *host = fixture_random(n, 0, 0);
        double *expected = fixture_f64(n);
        fetched(d, got[i].data, (size_t)n * sizeof *host, host);
        for (int64_t j = 0; j < n; j++) expected[j] = mb_tensor_f32(&want[i])[j];
        fixture_near("route", host, expected, n, 1e-5);
        mb_free(host), mb_free(expected), mb_free(want[i].data);
    }
    mb_free(want[5].data);
}

static void test_route(void **state)
{
    device d;
    mb_ops *plain = NULL;
    (void)state;
    if (!device_create(&d)) return;
    fixture_ok(mb_ops_create("ref", 1, &plain));
    check_route(&d, plain, false);
    check_route(&d, plain, true);
    mb_ops_destroy(&plain);
    device_destroy(&d);
}

/* Queued one behind the other: a step, and the sum of squares of its result, which is there at once. */
static void test_optimiser(void **state)
{
    enum { N = 5001, BLOCK = 1000, BLOCKS = 6 };
    const mb_adamw a = {.learning_rate = 0.01,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .epsilon = 1e-8,
                        .weight_decay = 0.1,
                        .step = 3,
                        .gradient_scale = 0.5};
    device d;
    mb_ops *plain = NULL;
    float *want[4], *got[4];
    double want_sums[BLOCKS], got_sums[BLOCKS];
    (void)state;
    if (!device_create(&d)) return;
    fixture_ok(mb_ops_create("ref", 1, &plain));
    for (int i = 0; i < 4; i++) {
        want[i] = fixture_random(N, (uint32_t)i, 1);
        for (int64_t j = 0; i == 3 && j < N; j++) want[i][j] = fabsf(want[i][j]);
        got[i] = sent(&d, want[i], N * sizeof(float));
    }
    fixture_ok(mb_ops_adamw(plain, &a, N, want[0], want[1], want[2], want[3]));
    fixture_ok(mb_ops_adamw(d.ops, &a, N, got[0], got[1], got[2], got[3]));
    fixture_ok(mb_ops_sum_squares(plain, want[1], N, BLOCK, want_sums));
    fixture_ok(mb_ops_sum_squares(d.ops, got[1], N, BLOCK, got_sums));
    for (int b = 0; b < BLOCKS; b++) assert_true(fabs(got_sums[b] - want_sums[b]) <= 1e-6 * want_sums[b]);
    for (int i = 0; i < 4; i++) {
        float *host = fixture_random(N, 0, 0);
        double *expected = fixture_f64(N);
        fetched(&d, got[i], N * sizeof *host, host);
        for (int64_t j = 0; j < N; j++) expected[j] = want[i][j];
        fixture_near("adamw", host, expected, N, 1e-6);
        mb_free(host), mb_free(expected), mb_free(want[i]);
    }
    mb_ops_destroy(&plain);
    device_destroy(&d);
}

/* More columns or experts than a kernel has room for are refused with a word, not computed wrongly. */
static void test_too_many(void **state)
{
    enum { WIDE = 1025, MANY = 8193 };
    device d;
    (void)state;
    if (!device_create(&d)) return;
    float *x = fixture_random(WIDE, 1, 1);
    mb_tensor host = fixture_matrix(x, 1, WIDE), logits = sent_tensor(&d, &host),
              probs = sent_tensor(&d, &host);
    mb_tensor weights = mb_tensor_view2(MB_F32, probs.data, 1, 1);
    int32_t *offsets = mb_calloc(MANY + 1, sizeof *offsets),
            *room = sent(&d, offsets, (MANY + 1) * sizeof *offsets);
    mb_dispatch dispatch = {.row_token = room, .slot_row = room, .offsets = room};
    assert_int_equal(mb_ops_route(d.ops, &logits, NULL, 1, false, &probs, room, &weights), MB_EUNSUPPORTED);
    assert_non_null(strstr(mb_status_message(), "1025"));
    assert_int_equal(mb_ops_dispatch(d.ops, room, 1, 1, MANY, &dispatch), MB_EUNSUPPORTED);
    assert_non_null(strstr(mb_status_message(), "8193"));
    mb_free(x), mb_free(offsets);
    device_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_route),
        cmocka_unit_test(test_optimiser),
        cmocka_unit_test(test_too_many),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
