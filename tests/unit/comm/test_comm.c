/* test_comm: one process, without a launcher: every call is the identity, and nothing starts MPI. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "comm/comm_impl.h"

static mb_comm *create_self(void)
{
    mb_comm *comm = NULL;
    setenv("MB_COMM", "self", 1);
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    return comm;
}

static void test_create(void **state)
{
    (void)state;
    mb_comm *comm = NULL;
    unsetenv("MB_COMM");
    unsetenv("PMIX_RANK");
    unsetenv("OMPI_COMM_WORLD_RANK");
    unsetenv("PMI_RANK");
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    assert_string_equal(mb_comm_name(comm), "self");
    assert_int_equal(mb_comm_rank(comm), 0);
    assert_int_equal(mb_comm_size(comm), 1);
    assert_int_equal(mb_comm_local_rank(comm), 0);
    assert_int_equal(mb_comm_local_size(comm), 1);
    mb_comm_destroy(&comm);
    assert_null(comm);
    mb_comm_destroy(&comm);
}

static void test_forced_self(void **state)
{
    (void)state;
    setenv("PMIX_RANK", "1", 1);
    mb_comm *comm = create_self();
    assert_string_equal(mb_comm_name(comm), "self");
    mb_comm_destroy(&comm);
    unsetenv("PMIX_RANK");
}

static void test_bad_wish(void **state)
{
    (void)state;
    mb_comm *comm = NULL;
    setenv("MB_COMM", "mpj", 1);
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_EUSAGE);
    assert_null(comm);
    assert_non_null(strstr(mb_status_message(), "MB_COMM=mpj"));
}

static void test_collectives(void **state)
{
    (void)state;
    mb_comm *comm = create_self();
    int64_t values[3] = {5, -7, INT64_MAX}, offsets[2] = {9, 9};
    double reals[2] = {1.5, -2.5};
    char copy[4] = "";
    void *out = NULL;
    assert_int_equal(mb_comm_barrier(comm), MB_OK);
    assert_int_equal(mb_comm_bcast(comm, values, sizeof values, 0), MB_OK);
    assert_int_equal(mb_comm_allreduce_i64(comm, values, 3, MB_COMM_SUM), MB_OK);
    assert_int_equal(mb_comm_minmax_f64(comm, reals, 2, MB_COMM_MIN), MB_OK);
    assert_true(values[0] == 5 && values[1] == -7 && values[2] == INT64_MAX && reals[0] == 1.5 &&
                reals[1] == -2.5);
    assert_int_equal(mb_comm_allgather(comm, "abc", 4, copy), MB_OK);
    assert_string_equal(copy, "abc");
    assert_int_equal(mb_comm_allgatherv(comm, "defg", 5, &out, offsets), MB_OK);
    assert_string_equal(out, "defg");
    assert_true(offsets[0] == 0 && offsets[1] == 5);
    MB_FREE(out);
    assert_int_equal(mb_comm_alltoallv(comm, "hi", (int64_t[]){3}, &out, offsets), MB_OK);
    assert_string_equal(out, "hi");
    assert_true(offsets[0] == 0 && offsets[1] == 3);
    MB_FREE(out);
    assert_int_equal(mb_comm_allgatherv(comm, NULL, 0, &out, offsets), MB_OK);
    assert_true(out != NULL && offsets[1] == 0);
    MB_FREE(out);
    mb_comm_destroy(&comm);
}

static void test_split(void **state)
{
    (void)state;
    mb_comm *comm = create_self(), *part = NULL;
    int64_t value = 7;
    assert_int_equal(mb_comm_split(comm, 3, &part), MB_OK);
    assert_true(part != comm && mb_comm_size(part) == 1 && mb_comm_rank(part) == 0);
    assert_int_equal(mb_comm_allreduce_i64(part, &value, 1, MB_COMM_SUM), MB_OK);
    assert_int_equal(value, 7);
    mb_comm_destroy(&part);
    assert_null(part);
    mb_comm_destroy(&comm);
}

static void test_cut(void **state)
{
    (void)state;
    mb_comm *comm = create_self();
    comm->message_max = 8;
    char from[21] = "twenty letters, cut.", into[21] = "";
    mb_comm_part send = {from, sizeof from, 0}, receive = {into, sizeof into, 0};
    mb_comm_exchange *exchange = NULL;
    assert_int_equal(mb_comm_exchange_start(comm, &send, 1, &receive, 1, &exchange), MB_OK);
    assert_int_equal(mb_comm_exchange_wait(&exchange), MB_OK);
    assert_null(exchange);
    assert_int_equal(mb_comm_exchange_wait(&exchange), MB_OK);
    assert_string_equal(into, from);
    memset(into, 0, sizeof into);
    assert_int_equal(mb_comm_allgather(comm, from, sizeof from, into), MB_OK);
    assert_string_equal(into, from);
    mb_comm_destroy(&comm);
}

static void test_agree(void **state)
{
    (void)state;
    mb_comm *comm = create_self();
    assert_int_equal(mb_comm_agree(comm, MB_OK), MB_OK);
    assert_int_equal(mb_comm_agree(comm, mb_fail(MB_EDATA, "line 3 is bad")), MB_EDATA);
    assert_string_equal(mb_status_message(), "line 3 is bad");
    assert_int_equal(mb_comm_agree(comm, MB_ESTOPPED), MB_ESTOPPED);
    assert_int_equal(mb_comm_exit_code(comm, MB_OK), 0);
    assert_int_equal(mb_comm_exit_code(comm, MB_EDATA), 3);
    assert_int_equal(mb_comm_exit_code(comm, MB_ESTOPPED), 75);
    mb_comm_destroy(&comm);
}

static void test_share(void **state)
{
    (void)state;
    static const struct {
        int64_t n;
        int size, rank;
        int64_t first, count;
    } table[] = {
        {10, 3, 0, 0, 4}, {10, 3, 1, 4, 3},
        {10, 3, 2, 7, 3}, {2, 3, 0, 0, 1},
        {2, 3, 1, 1, 1},  {2, 3, 2, 2, 0},
        {0, 2, 1, 0, 0},  {INT64_C(6000000000), 4, 3, INT64_C(4500000000), 1500000000},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int64_t first = -1, count = -1;
        mb_comm_share_of(table[i].n, table[i].size, table[i].rank, &first, &count);
        assert_int_equal(first, table[i].first);
        assert_int_equal(count, table[i].count);
    }
}

static void test_queue(void **state)
{
    (void)state;
    mb_comm *comm = create_self();
    mb_comm_queue *queue = NULL;
    int64_t unit = -2;
    assert_int_equal(mb_comm_queue_create(comm, 3, &queue), MB_OK);
    for (int64_t expected = 0; expected < 3; expected++) {
        assert_int_equal(mb_comm_queue_next(queue, &unit), MB_OK);
        assert_int_equal(unit, expected);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mb_comm_queue_next(queue, &unit), MB_OK);
        assert_int_equal(unit, -1);
    }
    mb_comm_queue_destroy(&queue);
    assert_null(queue);
    mb_comm_queue_destroy(&queue);
    mb_comm_destroy(&comm);
}

static int check_leaks(void **state)
{
    (void)state;
    return mb_memory_live_blocks() == 0 ? 0 : -1;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),   cmocka_unit_test(test_forced_self),
        cmocka_unit_test(test_bad_wish), cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_split),    cmocka_unit_test(test_cut),
        cmocka_unit_test(test_agree),    cmocka_unit_test(test_share),
        cmocka_unit_test(test_queue),
    };
    return cmocka_run_group_tests(tests, NULL, check_leaks);
}
