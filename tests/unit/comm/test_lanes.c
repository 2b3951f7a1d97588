/* test_lanes: one process. The sum over lanes is that of the fixed tree, with as many buffers as the plan
 * says and no copies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "comm/lanes.h"

static mb_comm *comm;
static mb_ops *ops;
static mb_transfer *transfer;

static float value_of(int64_t i, int64_t lane)
{
    return (float)(1.0 / (double)(1 + i * 7 + lane * 13)) * (float)(1 << (i + 5 * lane) % 17);
}

/* The tree by its definition: pairs, then pairs of pairs, the odd one passed on. */
static float tree_of(int64_t i, int64_t lanes)
{
    float v[64];
    for (int64_t lane = 0; lane < lanes; lane++) v[lane] = value_of(i, lane);
    for (; lanes > 1; lanes = (lanes + 1) / 2)
        for (int64_t k = 0; k < (lanes + 1) / 2; k++)
            v[k] = 2 * k + 1 < lanes ? v[2 * k] + v[2 * k + 1] : v[2 * k];
    return v[0];
}

static float *run_step(mb_lanes *lanes, int64_t n, int64_t count)
{
    float *owned = NULL;
    for (int64_t lane = 0; lane < count; lane++) {
        float *gradient = NULL;
        assert_int_equal(mb_lanes_begin(lanes, lane, &gradient), MB_OK);
        for (int64_t i = 0; i < n; i++) {
            assert_true(gradient[i] == 0);
            gradient[i] += value_of(i, lane);
        }
        assert_int_equal(mb_lanes_end(lanes, lane), MB_OK);
    }
    assert_int_equal(mb_lanes_reduce(lanes, &owned), MB_OK);
    return owned;
}

static void test_tree(void **state)
{
    (void)state;
    enum { N = 3000 };
    for (int64_t count = 1; count <= 33; count++) {
        mb_lanes *lanes = NULL;
        assert_int_equal(mb_lanes_create(transfer, N, count, &lanes), MB_OK);
        for (int step = 0; step < 2; step++) {
            const float *owned = run_step(lanes, N, count);
            for (int64_t i = 0; i < N; i++) assert_true(owned[i] == tree_of(i, count));
        }
        mb_lanes_destroy(&lanes);
        assert_null(lanes);
    }
}

static void test_shares(void **state)
{
    (void)state;
    mb_lanes *lanes = NULL;
    int64_t first = -1, count = -1;
    assert_int_equal(mb_lanes_create(transfer, 200000, 6, &lanes), MB_OK);
    mb_lanes_mine(lanes, &first, &count);
    assert_true(first == 0 && count == 6);
    mb_lanes_owned(lanes, &first, &count);
    assert_true(first == 0 && count == 200000);
    mb_lanes_destroy(&lanes);
}

static void test_one_lane_is_not_copied(void **state)
{
    (void)state;
    mb_lanes *lanes = NULL;
    float *gradient = NULL, *owned = NULL;
    assert_int_equal(mb_lanes_create(transfer, 1000, 1, &lanes), MB_OK);
    const int64_t blocks = mb_memory_live_blocks() + 1; /* the buffer comes with the first begin */
    for (int step = 0; step < 3; step++) {
        assert_int_equal(mb_lanes_begin(lanes, 0, &gradient), MB_OK);
        assert_int_equal(mb_lanes_end(lanes, 0), MB_OK);
        assert_int_equal(mb_lanes_reduce(lanes, &owned), MB_OK);
        assert_ptr_equal(owned, gradient);
        assert_int_equal(mb_memory_live_blocks(), blocks);
    }
    mb_lanes_destroy(&lanes);
}

static void test_plan(void **state)
{
    (void)state;
    const int64_t n = 100000;
    static const struct {
        int64_t lanes, buffers;
    } table[] = {{1, 1}, {2, 2}, {3, 2}, {4, 3}, {8, 4}, {9, 4}, {16, 5}};
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        mb_lanes *lanes = NULL;
        const int64_t before = mb_memory_live_bytes(), planned = (int64_t)mb_lanes_plan(n, table[k].lanes, 1);
        assert_int_equal(planned, table[k].buffers * n * (int64_t)sizeof(float));
        assert_int_equal(mb_lanes_create(transfer, n, table[k].lanes, &lanes), MB_OK);
        run_step(lanes, n, table[k].lanes);
        const int64_t used = mb_memory_live_bytes() - before;
        assert_true(used >= planned && used < planned + 16384);
        mb_lanes_destroy(&lanes);
    }
    /* 4 ranks of 2 lanes: 2 buffers, and two rounds of 3 foreign sums of the only 2 blocks. */
    assert_int_equal(mb_lanes_plan(n, 8, 4), 4 * (2 * n + 2 * 3 * 2 * MB_LANES_BLOCK));
    assert_int_equal(mb_lanes_plan(n, 8, 9), 0);
}

static void test_scalars(void **state)
{
    (void)state;
    mb_lanes *lanes = NULL;
    const double values[5][2] = {{1e16, 1}, {1, 2}, {-1e16, 3}, {1, 4}, {0.5, 5}};
    const double blocks[3] = {1e16, 1, -1e16};
    double sums[2] = {0}, total = 1;
    assert_int_equal(mb_lanes_create(transfer, 2 * MB_LANES_BLOCK + 1, 5, &lanes), MB_OK);
    assert_int_equal(mb_lanes_sum(lanes, &values[0][0], 2, sums), MB_OK);
    assert_true(sums[0] == ((1e16 + 1) + (-1e16 + 1)) + 0.5 && sums[1] == 15);
    assert_int_equal(mb_lanes_block_sum(lanes, blocks, &total), MB_OK);
    assert_true(total == (1e16 + 1) - 1e16);
    float parameter[3] = {1, 2, 3};
    assert_int_equal(mb_lanes_allgather(lanes, parameter), MB_OK);
    assert_true(parameter[0] == 1 && parameter[2] == 3);
    mb_lanes_destroy(&lanes);
}

static void test_refused(void **state)
{
    (void)state;
    mb_lanes *lanes = NULL;
    assert_int_equal(mb_lanes_create(transfer, 10, 0, &lanes), MB_EUSAGE);
    assert_non_null(strstr(mb_status_message(), "training.lanes = 0"));
    assert_null(lanes);
}

static void test_unfinished(void **state)
{
    (void)state;
    mb_lanes *lanes = NULL;
    float *gradient = NULL;
    assert_int_equal(mb_lanes_create(transfer, 10, 4, &lanes), MB_OK);
    for (int64_t lane = 0; lane < 3; lane++) {
        assert_int_equal(mb_lanes_begin(lanes, lane, &gradient), MB_OK);
        if (lane < 2) assert_int_equal(mb_lanes_end(lanes, lane), MB_OK);
    }
    mb_lanes_destroy(&lanes); /* the group's teardown counts the blocks */
}

static void test_empty(void **state)
{
    (void)state;
    mb_lanes *lanes = NULL;
    assert_int_equal(mb_lanes_create(transfer, 0, 2, &lanes), MB_OK);
    assert_null(run_step(lanes, 0, 2));
    mb_lanes_destroy(&lanes);
}

static int open_comm(void **state)
{
    (void)state;
    setenv("MB_COMM", "self", 1);
    return mb_comm_create(NULL, NULL, &comm) == MB_OK && mb_ops_create("ref", 1, &ops) == MB_OK &&
                   mb_transfer_create(comm, ops, &transfer) == MB_OK
               ? 0
               : -1;
}

static int close_comm(void **state)
{
    (void)state;
    mb_transfer_destroy(&transfer);
    mb_ops_destroy(&ops);
    mb_comm_destroy(&comm);
    return mb_memory_live_blocks() == 0 ? 0 : -1;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_one_lane_is_not_copied),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_unfinished),
        cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, open_comm, close_comm);
}
