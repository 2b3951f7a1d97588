/* Checkpoints: whole or not there, torn ones passed over, thinned out; the trainer's state comes back. */
#include "store/store_test.h"

#include "store/checkpoint.h"

static void fill(const char *path, const char *content)
{
    char *folder = NULL, file[600];
    assert_ok(mb_checkpoint_begin(path, &folder));
    snprintf(file, sizeof file, "%s/weights", folder);
    assert_ok(mb_files_write(file, content, strlen(content)));
    snprintf(file, sizeof file, "%s/sub", folder);
    assert_ok(mb_files_make_folders(file));
    snprintf(file, sizeof file, "%s/sub/more", folder);
    assert_ok(mb_files_write(file, "more", 4));
    assert_ok(mb_checkpoint_commit(folder, path));
    assert_false(mb_files_is_folder(folder));
    mb_free(folder);
}

static void test_replace(void **state)
{
    char path[512], file[600];
    mb_str text = MB_STR_EMPTY;
    snprintf(path, sizeof path, "%s", test_path(state, "run/last"));
    snprintf(file, sizeof file, "%s/weights", path);
    assert_fails(MB_ENOTFOUND, mb_checkpoint_check(path, true), "run/last");
    fill(path, "first");
    assert_ok(mb_checkpoint_check(path, true));
    fill(path, "second");
    assert_ok(mb_checkpoint_check(path, true));
    assert_ok(mb_files_read(file, 0, &text));
    assert_string_equal(mb_str_text(&text), "second");
    char **names = NULL;
    int64_t n = 0;
    snprintf(file, sizeof file, "%s", test_path(state, "run"));
    assert_ok(mb_files_list(file, &names, &n));
    assert_int_equal(n, 1);
    mb_files_free_names(&names, n);
    mb_str_destroy(&text);
}

static void test_torn(void **state)
{
    char folder[512], path[600], file[700], *found = NULL;
    int64_t number = -1;
    snprintf(folder, sizeof folder, "%s", test_path(state, "torn"));
    assert_ok(mb_checkpoint_latest(folder, "step_", &found, &number));
    assert_null(found);
    for (int i = 8; i <= 11; i++) {
        snprintf(path, sizeof path, "%s/step_%d", folder, i);
        fill(path, "content");
    }
    snprintf(file, sizeof file, "%s/step_11/manifest.json", folder);
    unlink(file);
    assert_fails(MB_EFORMAT, mb_checkpoint_check(path, false), "manifest.json");
    snprintf(path, sizeof path, "%s/step_10", folder);
    snprintf(file, sizeof file, "%s/weights", path);
    assert_ok(mb_files_write(file, "conTent", 7)); /* same size: only the deep check sees it */
    assert_ok(mb_checkpoint_check(path, false));
    assert_fails(MB_EFORMAT, mb_checkpoint_check(path, true), "step_10/weights");
    snprintf(path, sizeof path, "%s/step_9", folder);
    snprintf(file, sizeof file, "%s/weights", path);
    assert_ok(mb_files_write(file, "short", 5));
    assert_fails(MB_EFORMAT, mb_checkpoint_check(path, false), "step_9/weights");
    snprintf(path, sizeof path, "%s/step_x12", folder);
    fill(path, "not numbered");
    assert_ok(mb_checkpoint_latest(folder, "step_", &found, &number));
    assert_int_equal(number, 8);
    assert_non_null(strstr(found, "step_8"));
    mb_free(found);
    for (int i = 9; i <= 11; i++) { /* out of the way, and kept */
        snprintf(path, sizeof path, "%s/step_%d", folder, i);
        assert_false(mb_files_is_folder(path));
        snprintf(path, sizeof path, "%s/step_%d.torn", folder, i);
        assert_true(mb_files_is_folder(path));
    }
    for (int i = 9; i <= 10; i++) {
        snprintf(path, sizeof path, "%s/step_%d", folder, i);
        fill(path, "content");
    }
    snprintf(file, sizeof file, "%s/manifest.json", path);
    unlink(file);
    assert_ok(mb_checkpoint_rotate(folder, "step_", 1)); /* torn ones do not count */
    snprintf(path, sizeof path, "%s/step_9", folder);
    assert_true(mb_files_is_folder(path));
    snprintf(path, sizeof path, "%s/step_8", folder);
    assert_false(mb_files_is_folder(path));
    snprintf(path, sizeof path, "%s/step_x12", folder);
    assert_true(mb_files_is_folder(path));
}

/* Killed while filling: the leftover is removed by the next begin; between two renames: the old one comes
 * back. */
static void test_killed(void **state)
{
    char folder[512], path[600], other[700], *found = NULL, *fresh = NULL;
    int64_t number = -1;
    snprintf(folder, sizeof folder, "%s", test_path(state, "killed"));
    snprintf(path, sizeof path, "%s/step_5", folder);
    fill(path, "five");
    snprintf(other, sizeof other, "%s/step_5.old.99999", folder);
    assert_int_equal(rename(path, other), 0);
    assert_ok(mb_checkpoint_latest(folder, "step_", &found, &number));
    assert_int_equal(number, 5);
    mb_free(found);
    snprintf(other, sizeof other, "%s/step_6.tmp.99999", folder);
    assert_ok(mb_files_make_folders(other));
    snprintf(path, sizeof path, "%s/step_6", folder);
    assert_ok(mb_checkpoint_begin(path, &fresh));
    assert_false(mb_files_is_folder(other));
    assert_true(mb_files_is_folder(fresh));
    mb_free(fresh);
}

static void test_trainer_state(void **state)
{
    const char *path = test_path(state, "trainer.h5");
    enum { ELEMENTS = 700000 };
    float *values = mb_calloc(ELEMENTS, sizeof *values), *back = mb_calloc(ELEMENTS, sizeof *back);
    mb_trainer_state put = {.step = 7,
                            .epoch = 1,
                            .sample = 1234567890123,
                            .elements = ELEMENTS,
                            .seed = UINT64_MAX - 3,
                            .key = "abc",
                            .environment = "cpu, avx2"};
    mb_trainer_state got;
    mb_h5 *file = NULL;
    for (int64_t i = 0; i < ELEMENTS; i++) values[i] = (float)i * 0.5f;
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_trainer_state_write(file, &put));
    for (int m = 1; m <= 2; m++) {
        assert_ok(mb_trainer_state_create_moment(file, m));
        for (int64_t at = 0; at < ELEMENTS; at += 65536)
            assert_ok(mb_trainer_state_append_moment(file, m, values + at,
                                                     ELEMENTS - at < 65536 ? ELEMENTS - at : 65536));
    }
    assert_ok(mb_h5_close(&file));
    assert_ok(mb_h5_open(path, &file));
    assert_ok(mb_trainer_state_read(file, &got));
    assert_true(got.step == 7 && got.epoch == 1 && got.sample == put.sample && got.seed == put.seed &&
                got.elements == ELEMENTS);
    assert_string_equal(got.key, "abc");
    assert_string_equal(got.environment, "cpu, avx2");
    assert_true(mb_trainer_state_has_moment(file, 2));
    assert_ok(mb_trainer_state_read_moment(file, 2, 100, ELEMENTS - 100, back));
    assert_memory_equal(back, values + 100, (ELEMENTS - 100) * sizeof *values);
    assert_ok(mb_h5_close(&file));
    put.elements++;
    assert_ok(mb_h5_create(path, &file));
    assert_ok(mb_trainer_state_write(file, &put));
    assert_ok(mb_trainer_state_create_moment(file, 1));
    assert_ok(mb_trainer_state_append_moment(file, 1, values, ELEMENTS));
    assert_ok(mb_h5_close(&file));
    assert_ok(mb_h5_open(path, &file));
    assert_fails(MB_EFORMAT, mb_trainer_state_read(file, &got), "/moment1");
    mb_h5_destroy(&file);
    mb_free(values);
    mb_free(back);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_replace), cmocka_unit_test(test_torn),
                                       cmocka_unit_test(test_killed), cmocka_unit_test(test_trainer_state)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
