/* Leases: whose it is now, whose it was, and what a process that was cut off may still write. */
#include "store/store_test.h"

#include "base/json.h"
#include "store/lease.h"

static void make_folder(void **state, const char *name, char folder[512])
{
    snprintf(folder, 512, "%s", test_path(state, name));
    assert_ok(mb_files_make_folders(folder));
}

static void put(const char *folder, const char *name, const char *host, long pid, const char *job,
                const char *restart)
{
    char path[600], text[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(text, sizeof text,
             "{\"host\": \"%s\", \"pid\": %ld, \"start\": \"1\", \"boot\": \"\", \"job\": \"%s\", "
             "\"restart\": \"%s\"}",
             host, pid, job, restart);
    assert_ok(mb_files_write(path, text, strlen(text)));
}

static void drop(const char *folder, const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(unlink(path), 0);
}

static void test_check(void **state)
{
    char folder[512];
    mb_lease *lease = NULL;
    assert_ok(mb_lease_check(test_path(state, "no-such-folder")));
    make_folder(state, "check", folder);
    assert_ok(mb_lease_check(folder)); /* nobody ever took one */
    assert_ok(mb_lease_open(folder, NULL, &lease));
    assert_ok(mb_lease_check(folder));
    assert_ok(mb_lease_is_mine(lease));
    put(folder, "lease", "node9", 4711, "88", "1"); /* taken over */
    assert_fails(MB_EEXIST, mb_lease_check(folder), "process 4711 on node9, Slurm job 88 took over while");
    assert_fails(MB_EEXIST, mb_lease_is_mine(lease), "node9");
    put(folder, "lease.last", "node9", 4711, "88", "1"); /* and given back: its work is done */
    drop(folder, "lease");
    assert_fails(MB_EEXIST, mb_lease_check(folder), "node9, Slurm job 88 took over and has ended");
    assert_fails(MB_EEXIST, mb_lease_is_mine(lease), "has ended");
    put(folder, "lease", "node9", 4712, "88", "2");
    mb_lease_close(&lease); /* leaves what is not ours */
    assert_true(mb_lease_is_held(folder, NULL));
    drop(folder, "lease");
    assert_ok(mb_lease_open(folder, NULL, &lease)); /* we again */
    assert_ok(mb_lease_check(folder));
    drop(folder, "lease"); /* removed by somebody who takes us for gone */
    assert_fails(MB_EEXIST, mb_lease_check(folder), "was removed while this process was at work");
    assert_fails(MB_EEXIST, mb_lease_is_mine(lease), "was removed");
    mb_lease_close(&lease);
}

/* A job's earlier run is gone; to that run, should it still live, its successor is not. */
static void test_restarts(void **state)
{
    char folder[512];
    mb_lease *lease = NULL;
    make_folder(state, "restarts", folder);
    setenv("SLURM_JOB_ID", "77", 1);
    put(folder, "lease", "another-host", 5, "77", "");
    assert_fails(MB_EEXIST, mb_lease_open(folder, NULL, &lease),
                 "another-host"); /* the same run of the job */
    setenv("SLURM_RESTART_COUNT", "2", 1);
    assert_false(mb_lease_is_held(folder, NULL));
    assert_ok(mb_lease_open(folder, NULL, &lease));
    mb_lease_close(&lease);
    put(folder, "lease", "another-host", 5, "77", "10");
    assert_true(mb_lease_is_held(folder, NULL));
    assert_fails(MB_EEXIST, mb_lease_open(folder, NULL, &lease), "another-host, Slurm job 77");
    unsetenv("SLURM_JOB_ID");
    unsetenv("SLURM_RESTART_COUNT");
}

static void test_names(void **state)
{
    char folder[512], path[600], aside[520];
    const char *text = NULL;
    json_t *json = NULL;
    mb_lease *whole = NULL, *first = NULL, *second = NULL, *again = NULL;
    make_folder(state, "names", folder);
    setenv("SLURM_ARRAY_JOB_ID", "500", 1);
    setenv("SLURM_ARRAY_TASK_ID", "3", 1);
    assert_ok(mb_lease_open(folder, NULL, &whole));
    assert_ok(mb_lease_open(folder, "lease-0of2", &first));
    assert_ok(mb_lease_open(folder, "lease-1of2", &second));
    unsetenv("SLURM_ARRAY_JOB_ID");
    unsetenv("SLURM_ARRAY_TASK_ID");
    assert_fails(MB_EEXIST, mb_lease_open(folder, "lease-0of2", &again), "lease-0of2: held by process");
    assert_true(mb_lease_is_held(folder, "lease-1of2"));
    assert_false(mb_lease_is_held(folder, "lease-2of3"));
    snprintf(path, sizeof path, "%s/lease-1of2", folder);
    assert_ok(mb_json_read(path, &json));
    assert_ok(mb_json_get_string(json, "array_job", path, &text));
    assert_string_equal(text, "500");
    assert_ok(mb_json_get_string(json, "array_task", path, &text));
    assert_string_equal(text, "3");
    json_decref(json);
    mb_lease_close(&second);
    assert_false(mb_lease_is_held(folder, "lease-1of2"));
    assert_ok(mb_files_write(path, "garbage", 7));
    assert_true(mb_lease_is_held(folder, "lease-1of2")); /* by we do not know whom */
    snprintf(aside, sizeof aside, "%s.1", folder);
    assert_ok(mb_files_rename(folder, aside)); /* a lease goes with its folder */
    assert_fails(MB_EEXIST, mb_lease_is_mine(first), "was removed");
    assert_ok(mb_lease_move(first, aside));
    assert_ok(mb_lease_is_mine(first));
    mb_lease_close(&first);
    assert_false(mb_lease_is_held(aside, "lease-0of2"));
    mb_lease_close(&whole);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_check), cmocka_unit_test(test_restarts),
                                       cmocka_unit_test(test_names)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
