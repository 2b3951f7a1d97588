/* test_scatter: on one rank, gradients by segment have the bits of whole ones; what is not put counts as
 * zero; windows. */
#include "comm/scatter.h"

#include "comm/window.h"
#include "mb_test.h"

enum { SEGMENTS = 3, N = 150000 };

static mb_comm *comm;
static mb_ops *ops;
static mb_transfer *transfer;
static const int64_t first[SEGMENTS] = {100000, 500, 0}, count[SEGMENTS] = {50000, 99500, 500};

static int setup(void **state)
{
    (void)state;
    setenv("MB_COMM", "self", 1);
    return mb_comm_create(NULL, NULL, &comm) == MB_OK && mb_ops_create("ref", 1, &ops) == MB_OK &&
                   mb_transfer_create(comm, ops, &transfer) == MB_OK
               ? 0
               : -1;
}

static int teardown(void **state)
{
    mb_transfer_destroy(&transfer);
    mb_ops_destroy(&ops);
    mb_comm_destroy(&comm);
    return mb_test_teardown(state);
}

static float value_of(int64_t i, int64_t microbatch)
{
    return (float)((i * 37 + microbatch * 1009) % 8191) * 1.000001f / (float)(1 + (i + microbatch) % 13);
}

/* Micro-batch `skipped` puts its first segment only. */
static void run_scatter(mb_scatter *s, int64_t lanes, int64_t microbatches, int64_t skipped)
{
    for (int64_t m = 0; m < microbatches || m % lanes != 0; m++) {
        mb_scatter_begin(s, m / lanes, m % lanes);
        for (int g = 0; m < microbatches && g < (m == skipped ? 1 : SEGMENTS); g++) {
            float *room = NULL;
            assert_int_equal(mb_scatter_room(s, g, &room), MB_OK);
            for (int64_t i = 0; i < count[g]; i++) {
                assert_true(room[i] == 0);
                room[i] = value_of(first[g] + i, m);
            }
            assert_int_equal(mb_scatter_put(s, g), MB_OK);
        }
        assert_int_equal(mb_scatter_finish(s), MB_OK);
    }
}

static void test_one_round_is_zero_1(void **state)
{
    (void)state;
    for (int64_t lanes = 1; lanes <= 9; lanes += 2) {
        mb_scatter *s = NULL;
        mb_lanes *whole = NULL;
        float *gradient = NULL, *owned = NULL;
        assert_int_equal(mb_scatter_create(transfer, N, lanes, SEGMENTS, first, count, &s), MB_OK);
        assert_int_equal(mb_lanes_create(transfer, N, lanes, &whole), MB_OK);
        for (int step = 0; step < 2; step++) {
            for (int64_t lane = 0; lane < lanes; lane++) {
                assert_int_equal(mb_lanes_begin(whole, lane, &gradient), MB_OK);
                for (int64_t i = 0; i < N; i++) gradient[i] += value_of(i, lane);
                assert_int_equal(mb_lanes_end(whole, lane), MB_OK);
            }
            assert_int_equal(mb_lanes_reduce(whole, &owned), MB_OK);
            run_scatter(s, lanes, lanes, -1);
            assert_memory_equal(mb_scatter_owned(s), owned, N * sizeof(float));
        }
        mb_scatter_destroy(&s);
        mb_lanes_destroy(&whole);
    }
}

static void test_rounds_and_gaps(void **state)
{
    (void)state;
    mb_scatter *s = NULL;
    assert_int_equal(mb_scatter_create(transfer, N, 2, SEGMENTS, first, count, &s), MB_OK);
    run_scatter(s, 2, 3, 1);
    const float *sum = mb_scatter_owned(s);
    for (int64_t i = 0; i < N; i += 11) {
        const float b = i >= first[0] ? value_of(i, 1) : 0;
        assert_true(sum[i] == (value_of(i, 0) + b) + (value_of(i, 2) + 0));
    }
    mb_scatter_destroy(&s);
}

static void test_windows(void **state)
{
    (void)state;
    mb_window *window = NULL;
    int32_t *mine = NULL, got[3];
    assert_int_equal(mb_window_create(comm, 10 * sizeof *mine, (void **)&mine, &window), MB_OK);
    for (int i = 0; i < 10; i++) assert_int_equal(mine[i], 0);
    for (int i = 0; i < 10; i++) mine[i] = i;
    assert_int_equal(mb_window_sync(window), MB_OK);
    assert_int_equal(mb_window_get(window, 0, 4 * sizeof *mine, got, sizeof got), MB_OK);
    assert_int_equal(mb_window_wait(window), MB_OK);
    assert_int_equal(got[0] + got[1] + got[2], 4 + 5 + 6);
    mb_window_destroy(&window);
    mb_window_destroy(&window);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_round_is_zero_1),
                                       cmocka_unit_test(test_rounds_and_gaps),
                                       cmocka_unit_test(test_windows)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# no seed: values are fixed\n");
    return cmocka_run_group_tests(tests, setup, teardown);
}
