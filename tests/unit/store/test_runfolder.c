/* Run folders: leases (held, stale, of a requeued job), records that match or say why not, shares of the
 * work, looking without touching, fencing, moving aside, content hashes of folders. */
#include "store/store_test.h"

#include <sys/wait.h>

#include "store/contenthash.h"
#include "store/runfolder.h"

static void put(const char *folder, const char *name, const char *text)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_ok(mb_files_write(path, text, strlen(text)));
}

static void put_lease(const char *folder, const char *host, long pid, const char *start, const char *job,
                      const char *restart)
{
    char text[600];
    snprintf(text, sizeof text,
             "{\"host\": \"%s\", \"pid\": %ld, \"start\": \"%s\", \"boot\": \"\", \"job\": \"%s\", "
             "\"restart\": \"%s\"}",
             host, pid, start, job, restart);
    put(folder, "lease", text);
}

/* A pid that was alive a moment ago. */
static long dead_pid(void)
{
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
    return (long)pid;
}

static void test_lease(void **state)
{
    char folder[512], lease[600], host[256] = "", pid[32];
    mb_runfolder *run = NULL, *second = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "run"));
    snprintf(lease, sizeof lease, "%s/lease", folder);
    snprintf(pid, sizeof pid, "process %ld", (long)getpid());
    gethostname(host, sizeof host - 1);
    assert_ok(mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run));
    assert_true(mb_files_is_file(lease));
    assert_fails(MB_EEXIST, mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &second), pid);
    mb_runfolder_close(&run);
    assert_false(mb_files_is_file(lease));
    put_lease(folder, host, dead_pid(), "1", "", ""); /* its process is gone */
    assert_ok(mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run));
    mb_runfolder_close(&run);
    put_lease(folder, host, (long)getpid(), "1", "", ""); /* its pid is used by another process */
    assert_ok(mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run));
    mb_runfolder_close(&run);
    put_lease(folder, "another-host", dead_pid(), "1", "77", "");
    assert_fails(MB_EEXIST, mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run),
                 "another-host, Slurm job 77");
    setenv("SLURM_JOB_ID", "77", 1);
    setenv("SLURM_RESTART_COUNT", "1", 1); /* the same job, requeued */
    assert_ok(mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run));
    put_lease(folder, "thief", 1, "1", "", ""); /* not ours any more: closing leaves it */
    mb_runfolder_close(&run);
    assert_true(mb_files_is_file(lease));
    unsetenv("SLURM_JOB_ID");
    unsetenv("SLURM_RESTART_COUNT");
    put(folder, "lease", "garbage");
    assert_fails(MB_EEXIST, mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run), "lease");
    unlink(lease);
}

/* Many processes at once over a stale lease: one gets it. */
static void test_race(void **state)
{
    char folder[512], host[256] = "";
    enum { PROCESSES = 12 };
    pid_t pids[PROCESSES];
    int winners = 0, status = 0, gate[2], quit[2];
    snprintf(folder, sizeof folder, "%s", test_path(state, "race"));
    assert_ok(mb_files_make_folders(folder));
    gethostname(host, sizeof host - 1);
    put_lease(folder, host, dead_pid(), "1", "", "");
    assert_int_equal(pipe(gate) | pipe(quit), 0);
    for (int i = 0; i < PROCESSES; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            mb_runfolder *run = NULL;
            char byte;
            close(gate[1]);
            close(quit[1]);
            if (read(gate[0], &byte, 1) != 0) _exit(9);
            mb_status got = mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run);
            if (got == MB_OK && read(quit[0], &byte, 1) != 0) _exit(9); /* hold it until all have tried */
            _exit(got == MB_OK ? 0 : got == MB_EEXIST ? 1 : 9);
        }
    }
    close(gate[1]);
    for (int done = 0; done < PROCESSES - 1; done++) {
        assert_true(waitpid(-1, &status, 0) > 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
        winners += WEXITSTATUS(status) == 0;
    }
    assert_int_equal(winners, 0);
    close(quit[1]);
    assert_true(waitpid(-1, &status, 0) > 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(gate[0]);
    close(quit[0]);
}

/* A run over this corpus and model; *out_done says whether it was done already, reason why not. */
static void run_stage(void **state, const char *model, double rate, bool *out_done, char reason[256])
{
    char folder[512], corpus[512];
    mb_runfolder *run = NULL;
    const mb_runfolder_machine machine = {.ranks = 4, .threads = 2, .opt_backend = "cpu avx2"};
    snprintf(folder, sizeof folder, "%s", test_path(state, "stage"));
    snprintf(corpus, sizeof corpus, "%s", test_path(state, "corpus.txt"));
    json_t *config = json_pack("{s:{s:f, s:i}}", "training", "rate", rate, "epochs", 3);
    assert_ok(mb_runfolder_open(folder, "moe-x", "score", (mb_share){0}, &run));
    assert_ok(mb_runfolder_input(run, "corpus", corpus));
    assert_ok(mb_runfolder_input_text(run, "model", model));
    assert_ok(mb_runfolder_config(run, config));
    json_decref(config);
    *out_done = mb_runfolder_is_done(run);
    snprintf(reason, 256, "%s", mb_runfolder_reason(run));
    if (!*out_done) {
        put(folder, "out.txt", model);
        assert_ok(mb_runfolder_output(run, "out.txt"));
        assert_ok(mb_runfolder_result(run, "loss", json_real(0.5)));
        assert_ok(mb_runfolder_finish(run, &machine));
    }
    mb_runfolder_close(&run);
}

static void test_record(void **state)
{
    bool done = true;
    char reason[256], path[600], text[700];
    json_t *record = NULL;
    put(((test_folder *)*state)->path, "corpus.txt", "some text");
    const struct {
        const char *model;
        double rate;
        bool done;
        const char *reason;
    } cases[] = {{"m", 0.1, false, "no record"},        {"m", 0.1, true, ""},
                 {"n", 0.1, false, "inputs: model"},    {"n", 0.1, true, ""},
                 {"n", 0.2, false, "config: training"}, {"n", 0.2, true, ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run_stage(state, cases[i].model, cases[i].rate, &done, reason);
        assert_int_equal(done, cases[i].done);
        assert_non_null(strstr(reason, cases[i].reason));
    }
    put(((test_folder *)*state)->path, "corpus.txt", "some texts");
    run_stage(state, "n", 0.2, &done, reason);
    assert_non_null(strstr(reason, "inputs: corpus"));
    snprintf(path, sizeof path, "%s", test_path(state, "stage"));
    put(path, "out.txt", "damaged");
    run_stage(state, "n", 0.2, &done, reason);
    assert_non_null(strstr(reason, "out.txt changed"));
    snprintf(text, sizeof text, "%s/out.txt", path);
    unlink(text);
    run_stage(state, "n", 0.2, &done, reason);
    assert_non_null(strstr(reason, "out.txt is missing"));
    snprintf(text, sizeof text, "%s/done.json", path);
    assert_ok(mb_json_read(text, &record));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(record, "provenance"), "ranks")), 4);
    assert_true(json_real_value(json_object_get(json_object_get(record, "results"), "loss")) == 0.5);
    assert_int_equal(
        strlen(json_string_value(json_object_get(json_object_get(record, "outputs"), "out.txt"))), 32);
    json_decref(record);
    put(path, "done.json", "{torn");
    run_stage(state, "n", 0.2, &done, reason);
    assert_non_null(strstr(reason, "cannot be read"));
}

/* A run over one input of share k of n; out_done: done already. Stays open. */
static mb_runfolder *open_share(const char *folder, mb_share share, const char *model, bool *out_done)
{
    mb_runfolder *run = NULL;
    assert_ok(mb_runfolder_open(folder, "moe-x", "score", share, &run));
    assert_ok(mb_runfolder_input_text(run, "model", model));
    *out_done = mb_runfolder_is_done(run);
    return run;
}

static void finish_share(mb_runfolder **run, const char *output)
{
    const mb_runfolder_machine machine = {.ranks = 1, .threads = 1};
    put(mb_runfolder_path(*run), output, "result");
    assert_ok(mb_runfolder_output(*run, output));
    assert_ok(mb_runfolder_finish(*run, &machine));
    mb_runfolder_close(run);
}

static void test_shares(void **state)
{
    char folder[512], path[600];
    bool done = true;
    json_t *record = NULL;
    const mb_share first = {0, 2}, second = {1, 2}, whole = {0, 0};
    snprintf(folder, sizeof folder, "%s", test_path(state, "shares"));
    mb_runfolder *a = open_share(folder, first, "m", &done), *b = open_share(folder, second, "m", &done);
    assert_false(done);
    finish_share(&a, "part0");
    a = open_share(folder, first, "m", &done);
    assert_true(done);
    mb_runfolder_close(&a);
    a = open_share(folder, whole, "m", &done); /* a share's record is not the whole's; both may be open */
    assert_false(done);
    finish_share(&a, "all");
    mb_runfolder_close(&b);
    b = open_share(folder, second, "m", &done); /* never done itself, but the whole is */
    assert_true(done && mb_runfolder_is_whole_done(b));
    mb_runfolder_close(&b);
    snprintf(path, sizeof path, "%s/part0", folder);
    unlink(path);
    a = open_share(folder, first, "m", &done);
    assert_true(done);
    mb_runfolder_close(&a);
    snprintf(path, sizeof path, "%s/all", folder);
    unlink(path);
    a = open_share(folder, first, "m", &done);
    assert_false(done);
    assert_non_null(strstr(mb_runfolder_reason(a), "part0 is missing"));
    mb_runfolder_close(&a);
    snprintf(path, sizeof path, "%s/done-0of2.json", folder);
    assert_ok(mb_json_read(path, &record));
    const json_t *provenance = json_object_get(record, "provenance");
    assert_string_equal(json_string_value(json_object_get(provenance, "share")), "0/2");
    assert_int_equal(json_integer_value(json_object_get(provenance, "threads")), 1);
    assert_int_equal(json_integer_value(json_object_get(provenance, "restarts")), 0);
    json_decref(record);
}

/* To look at a folder makes none, and takes no lease. */
static void test_view(void **state)
{
    char folder[512], lease[600];
    mb_runfolder *run = NULL;
    bool done = true;
    snprintf(folder, sizeof folder, "%s", test_path(state, "view"));
    snprintf(lease, sizeof lease, "%s/lease", folder);
    for (int i = 0; i < 2; i++) {
        assert_ok(mb_runfolder_view(folder, "moe-x", "score", (mb_share){0}, &run));
        assert_ok(mb_runfolder_input_text(run, "model", "m"));
        assert_int_equal(mb_runfolder_is_done(run), i == 1);
        assert_int_equal(mb_files_is_folder(folder), i == 1);
        assert_false(mb_files_is_file(lease));
        assert_fails(MB_EEXIST, mb_runfolder_is_mine(run), "no lease");
        mb_runfolder_close(&run);
        if (i == 1) break;
        run = open_share(folder, (mb_share){0}, "m", &done);
        finish_share(&run, "all");
    }
}

/* Whose lease was taken writes no record. */
static void test_fence(void **state)
{
    char folder[512], record[600];
    const mb_runfolder_machine machine = {.ranks = 1, .threads = 1};
    bool done = true;
    snprintf(folder, sizeof folder, "%s", test_path(state, "fence"));
    snprintf(record, sizeof record, "%s/done.json", folder);
    mb_runfolder *run = open_share(folder, (mb_share){0}, "m", &done);
    put_lease(folder, "another-host", 4711, "1", "99", "");
    assert_fails(MB_EEXIST, mb_runfolder_finish(run, &machine), "another-host, Slurm job 99 took over");
    assert_false(mb_files_is_file(record));
    mb_runfolder_close(&run);
}

/* Finished work of another kind is moved aside once, by whichever of several shares comes first; one that
 * is at work is waited for. */
static void test_move_aside(void **state)
{
    char folder[512], path[600], byte;
    bool done = true;
    int gate[2], status = 0;
    char *aside = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "aside"));
    mb_runfolder *a = open_share(folder, (mb_share){0}, "old", &done), *b;
    finish_share(&a, "all");
    assert_int_equal(pipe(gate), 0);
    pid_t pid = fork();
    if (pid == 0) { /* a share of the old work, for a short while */
        mb_runfolder *other = NULL;
        const bool is_open = mb_runfolder_open(folder, "moe-x", "score", (mb_share){5, 6}, &other) == MB_OK;
        const ssize_t n = write(gate[1], "x", 1);
        usleep(300000);
        mb_runfolder_close(&other);
        _exit(is_open && n == 1 ? 0 : 1);
    }
    assert_int_equal(read(gate[0], &byte, 1), 1);
    a = open_share(folder, (mb_share){0, 2}, "new", &done);
    assert_false(done);
    assert_ok(mb_runfolder_move_aside(a, false, &aside));
    assert_int_equal(waitpid(pid, &status, WNOHANG), pid); /* it waited */
    assert_int_equal(WEXITSTATUS(status), 0);
    snprintf(path, sizeof path, "%s.1", folder);
    assert_string_equal(aside, path);
    snprintf(path, sizeof path, "%s.1/done.json", folder);
    assert_true(mb_files_is_file(path));
    snprintf(path, sizeof path, "%s.1/lease", folder);
    assert_false(mb_files_is_file(path));
    mb_free(aside);
    aside = NULL;
    assert_ok(mb_runfolder_claim(a));
    assert_ok(mb_runfolder_is_mine(a));
    b = open_share(folder, (mb_share){1, 2}, "new", &done);
    assert_ok(mb_runfolder_move_aside(b, false, &aside)); /* nothing is there any more */
    assert_null(aside);
    mb_runfolder_close(&a);
    mb_runfolder_close(&b);
    a = open_share(folder, (mb_share){0}, "new", &done);
    finish_share(&a, "all");
    b = open_share(folder, (mb_share){1, 2}, "new", &done);
    assert_ok(mb_runfolder_move_aside(b, false, &aside)); /* what was joined meanwhile stays */
    assert_null(aside);
    assert_ok(mb_runfolder_move_aside(b, true, &aside)); /* but for who wants it anew */
    assert_non_null(aside);
    mb_free(aside);
    mb_runfolder_close(&b);
    close(gate[0]);
    close(gate[1]);
}

static void test_folder_hash(void **state)
{
    char folder[512], first[MB_HASH_TEXT], hash[MB_HASH_TEXT];
    snprintf(folder, sizeof folder, "%s", test_path(state, "hash"));
    snprintf(first, sizeof first, "x");
    char below[600];
    snprintf(below, sizeof below, "%s/sub", folder);
    assert_ok(mb_files_make_folders(below));
    put(folder, "a", "1");
    put(below, "b", "2");
    assert_ok(mb_contenthash_path(folder, first));
    put(folder, "done.json", "{}");
    put(folder, "manifest.json", "{}");
    put(folder, "run.log", "line");
    put(folder, "lease", "{}");
    put(folder, "a.tmp.77", "half");
    assert_ok(mb_contenthash_path(folder, hash));
    assert_string_equal(hash, first);
    put(below, "b", "3");
    assert_ok(mb_contenthash_path(folder, hash));
    assert_string_not_equal(hash, first);
    put(below, "b", "2");
    put(folder, "c", "");
    assert_ok(mb_contenthash_path(folder, hash));
    assert_string_not_equal(hash, first);
    assert_fails(MB_ENOTFOUND, mb_contenthash_path("/tmp/no-such-thing", hash), "/tmp/no-such-thing");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lease),      cmocka_unit_test(test_race),
                                       cmocka_unit_test(test_record),     cmocka_unit_test(test_shares),
                                       cmocka_unit_test(test_view),       cmocka_unit_test(test_fence),
                                       cmocka_unit_test(test_move_aside), cmocka_unit_test(test_folder_hash)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
