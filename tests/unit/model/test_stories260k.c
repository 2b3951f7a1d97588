/* A really trained model: logits and log-probabilities of stories260K against the double-precision reference
 * beside it. */
#include "model_cases.h"

#include "base/json.h"

static char *stories_folder(void)
{
    const char *root = getenv("MB_SHARED_DATA") != NULL ? getenv("MB_SHARED_DATA") : "../shared/data";
    return mb_str_format("%s/models/stories260K/hf", root);
}

static void stories_check(const char *backend)
{
    char *folder = stories_folder(), *file = mb_files_join(folder, "reference.json");
    if (!mb_files_is_file(file)) {
        print_message("# %s is not there\n", file);
        mb_free(folder);
        mb_free(file);
        skip();
    }
    mb_ops *ops = cases_ops(backend);
    if (ops == NULL) skip();
    json_t *reference = NULL, *list = NULL, *rows = NULL, *next = NULL;
    assert_status_ok(mb_json_read(file, &reference));
    assert_status_ok(mb_json_get_array(reference, "input_ids", file, &list));
    assert_status_ok(mb_json_get_array(reference, "logits_first_16_positions", file, &rows));
    assert_status_ok(mb_json_get_array(reference, "logprob_of_next", file, &next));
    int32_t ids[256], offsets[2] = {0, (int32_t)json_array_size(list)};
    assert_int_equal(offsets[1], 201);
    for (int32_t i = 0; i < offsets[1]; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    cases_batch b;
    cases_pack(&b, ids, offsets, 1);
    mb_lm *lm = cases_open(ops, folder, "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.logits = true};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    for (size_t t = 0; t < 16; t++) {
        float expected[512];
        for (size_t v = 0; v < 512; v++)
            expected[v] = (float)json_number_value(json_array_get(json_array_get(rows, t), v));
        assert_true(cases_difference(out.logits + t * 512, expected, 512) <= 1e-4);
    }
    for (size_t t = 0; t < 200; t++) {
        const double expected = json_number_value(json_array_get(next, t));
        assert_true(fabs(-(double)out.token_loss[t] - expected) <= 1e-3);
    }
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    json_decref(reference);
    mb_ops_destroy(&ops);
    mb_free(folder);
    mb_free(file);
}

static void test_stories_ref(void **state)
{
    (void)state;
    stories_check("ref");
}
static void test_stories_cpu(void **state)
{
    (void)state;
    stories_check("cpu");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stories_ref),
                                       cmocka_unit_test(test_stories_cpu)};
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
