/* Rope scalings: frequencies and attention factors of transformers (golden rotary.json), both spellings of
 * config.json, writing back, refusals. */
#include "model_cases.h"

#define EIGHT "1, 1, 1, 1, 1, 1, 1, 1"
#define LONGROPE_FIELDS(last)                                                                                \
    "\"short_factor\": [" EIGHT ", " EIGHT "], \"long_factor\": [" EIGHT ", 1, 1, 1, 1, 1, 1, 1, " #last "]"
#define YARN_FIELDS "\"factor\": 4.0, \"original_max_position_embeddings\": 16"

static json_t *rotary_json(const char *text)
{
    json_t *json = NULL;
    assert_status_ok(mb_json_parse(text, strlen(text), "text", &json));
    return json;
}

static mb_rotary rotary_of(const char *text)
{
    json_t *config = rotary_json(text);
    mb_rotary rotary;
    assert_status_ok(mb_rotary_read(config, 64, 32, "folder/config.json", &rotary));
    json_decref(config);
    return rotary;
}

static void rotary_refuse(const char *text, mb_status expected, const char *says)
{
    json_t *config = rotary_json(text);
    mb_rotary rotary;
    assert_status_says(mb_rotary_read(config, 64, 32, "folder/config.json", &rotary), expected, says);
    assert_non_null(strstr(mb_status_message(), "folder/config.json"));
    json_decref(config);
}

/* Frequencies relative to themselves, cos and sin at a late position absolutely. */
static void rotary_check_case(const json_t *golden)
{
    mb_rotary rotary;
    const int64_t width = json_integer_value(json_object_get(golden, "head_dim"));
    const int64_t positions = json_integer_value(json_object_get(golden, "max_position_embeddings"));
    const double theta = json_real_value(json_object_get(golden, "rope_theta"));
    const double factor = json_number_value(json_object_get(golden, "attention_factor"));
    const json_t *expected = json_object_get(golden, "frequencies");
    const json_t *given = json_object_get(golden, "length");
    const int64_t length = given != NULL ? json_integer_value(given) : 4;
    const int32_t position[5] = {0, 1, 2, 3, (int32_t)length - 1}, offsets[2] = {0, 5};
    float value[128], table[5 * 128];
    assert_status_ok(mb_rotary_read(golden, positions, width, "rotary.json", &rotary));
    assert_int_equal(json_array_size(expected), width / 2);
    mb_rotary_frequencies(&rotary, theta, width, length, value);
    mb_rotary_rows(&rotary, theta, width, position, offsets, 1, table);
    for (int64_t i = 0; i < width / 2; i++) {
        const double f = json_real_value(json_array_get(expected, (size_t)i));
        if (!(fabs(value[i] - f) <= 3e-7 * f))
            print_error("# type %d, width %d, pair %d: %.9g, not %.9g\n", (int)rotary.type, (int)width,
                        (int)i, (double)value[i], f);
        assert_true(fabs(value[i] - f) <= 3e-7 * f);
        for (int64_t p = 0; p < 4; p++) {
            assert_true(fabs(table[p * width + i] - factor * cos((double)p * f)) <= 1e-6);
            assert_true(fabs(table[p * width + width / 2 + i] - factor * sin((double)p * f)) <= 1e-6);
        }
    }
}

static void test_frequencies_are_those_of_transformers(void **state)
{
    (void)state;
    json_t *cases = NULL;
    char *path = cases_path("rotary.json");
    assert_status_ok(mb_json_read(path, &cases));
    assert_true(json_array_size(cases) >= 17);
    for (size_t i = 0; i < json_array_size(cases); i++) rotary_check_case(json_array_get(cases, i));
    json_decref(cases);
    mb_free(path);
}

static void test_spellings_agree(void **state)
{
    (void)state;
    const mb_rotary now = rotary_of("{\"rope_scaling\": {\"rope_type\": \"yarn\", " YARN_FIELDS "}}");
    const mb_rotary older = rotary_of("{\"rope_scaling\": {\"type\": \"yarn\", " YARN_FIELDS "}}");
    const mb_rotary newer = rotary_of("{\"rope_scaling\": null, \"rope_parameters\": {\"rope_type\": "
                                      "\"yarn\", \"rope_theta\": 5e5, " YARN_FIELDS "}}");
    const mb_rotary ratio = rotary_of("{\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": null, "
                                      "\"original_max_position_embeddings\": 16}}");
    assert_int_equal(now.type, MB_ROTARY_YARN);
    assert_true(now.factor == 4 && now.original_positions == 16 && now.beta_fast == 32 && now.truncate);
    assert_true(fabs(now.attention_factor - (0.1 * log(4) + 1)) < 1e-12);
    assert_memory_equal(&now, &older, sizeof now);
    assert_memory_equal(&now, &newer, sizeof now);
    assert_memory_equal(&now, &ratio, sizeof now);
    assert_int_equal(rotary_of("{}").type, MB_ROTARY_DEFAULT);
    assert_int_equal(rotary_of("{\"rope_scaling\": {}}").type, MB_ROTARY_DEFAULT);
}

/* What is written reads as the same, with 4.x names, and keeps what it does not know. */
static void rotary_check_round(const char *text, bool has_type)
{
    const mb_rotary before = rotary_of(text);
    json_t *config = rotary_json(text);
    mb_rotary after;
    assert_status_ok(mb_rotary_write(&before, 32, config));
    assert_null(json_object_get(config, "rope_parameters"));
    const json_t *rope = json_object_get(config, "rope_scaling");
    assert_true(json_is_object(rope));
    assert_non_null(json_object_get(rope, "rope_type"));
    assert_int_equal(json_object_get(rope, "type") != NULL, has_type);
    assert_null(json_object_get(rope, "rope_theta"));
    assert_int_equal(json_integer_value(json_object_get(rope, "house_field")), 7);
    assert_status_ok(mb_rotary_read(config, 64, 32, "written", &after));
    assert_memory_equal(&before, &after, sizeof before);
    json_decref(config);
}

static void test_writing_keeps_them(void **state)
{
    (void)state;
    rotary_check_round("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2, \"house_field\": 7}}", true);
    rotary_check_round(
        "{\"rope_parameters\": {\"rope_type\": \"dynamic\", \"factor\": 2.5, \"rope_theta\": 1e4,"
        " \"house_field\": 7}}",
        false);
    rotary_check_round(
        "{\"rope_parameters\": {\"rope_type\": \"yarn\", \"mscale\": 1.0, \"mscale_all_dim\": 0.7,"
        " \"house_field\": 7, \"truncate\": false, " YARN_FIELDS "}}",
        false);
    rotary_check_round("{\"rope_scaling\": {\"rope_type\": \"llama3\", \"low_freq_factor\": 1, "
                       "\"high_freq_factor\": 3.7, \"house_field\": 7, " YARN_FIELDS "}}",
                       false);
    rotary_check_round("{\"original_max_position_embeddings\": 16, \"rope_scaling\": {\"rope_type\": "
                       "\"longrope\", \"house_field\": 7, " LONGROPE_FIELDS(2) "}}",
                       false);
    json_t *config = rotary_json("{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5}}");
    const mb_rotary none = {0};
    assert_status_ok(mb_rotary_write(&none, 32, config));
    assert_true(json_is_null(json_object_get(config, "rope_scaling")));
    assert_null(json_object_get(config, "rope_parameters"));
    json_decref(config);
}

static void test_refusals(void **state)
{
    (void)state;
    rotary_refuse("{\"rope_scaling\": {\"rope_type\": \"su\", \"factor\": 2}}", MB_EUNSUPPORTED, "'su'");
    rotary_refuse("{\"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 2}}", MB_EFORMAT,
                  "short_factor must be a list of 16");
    rotary_refuse("{\"rope_scaling\": {\"rope_type\": \"longrope\", \"short_factor\": [1, 2]}}", MB_EFORMAT,
                  "short_factor must be a list of 16");
    rotary_refuse("{\"rope_scaling\": {\"rope_type\": \"longrope\", " LONGROPE_FIELDS(-1) "}}", MB_ERANGE,
                  "long_factor, entry 15");
    rotary_refuse(
        "{\"original_max_position_embeddings\": 16, \"rope_scaling\": {\"rope_type\": \"longrope\", "
        "\"factor\": 3, " LONGROPE_FIELDS(2) "}}",
        MB_EUNSUPPORTED, "set attention_factor");
    rotary_refuse("{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}",
                  MB_EUNSUPPORTED, "'full_attention'");
    rotary_refuse("{\"rope_scaling\": {\"rope_type\": \"linear\", \"type\": \"yarn\", \"factor\": 2}}",
                  MB_EFORMAT, "remove one");
    rotary_refuse(
        "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, \"rope_parameters\": {\"rope_type\": "
        "\"default\"}}",
        MB_EFORMAT, "remove one");
    rotary_refuse("{\"rope_scaling\": {\"type\": \"linear\"}}", MB_EFORMAT, "factor");
    rotary_refuse("{\"rope_scaling\": {\"type\": \"yarn\"}}", MB_EFORMAT, "factor");
    rotary_refuse("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}}", MB_ERANGE, "factor 0.5");
    rotary_refuse("{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 2}}", MB_EFORMAT, "low_freq_factor");
    rotary_refuse(
        "{\"rope_scaling\": {\"type\": \"llama3\", \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
        "\"original_max_position_embeddings\": 16, \"factor\": 2}}",
        MB_ERANGE, "high_freq_factor 4");
    rotary_refuse("{\"rope_scaling\": {\"type\": \"yarn\", \"beta_fast\": 1, \"beta_slow\": 2, " YARN_FIELDS
                  "}}",
                  MB_ERANGE, "beta_fast 1");
    rotary_refuse("{\"rope_scaling\": {\"type\": \"yarn\", \"attention_factor\": -1, " YARN_FIELDS "}}",
                  MB_ERANGE, "attention_factor -1");
    rotary_refuse("{\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", MB_EUNSUPPORTED,
                  "partial_rotary_factor");
}

/* Dynamic computes as default within max_position_embeddings, goes on to factor times that, and stops. */
static void test_dynamic_stretches_and_stops(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    mb_arch arch;
    mb_lm *plain, *dynamic;
    cases_batch b, both;
    const int32_t offsets[] = {0, 64}, packed[] = {0, 64, 164};
    char *path = cases_path("llama_linear");
    assert_status_ok(mb_arch_read(path, &arch));
    mb_free(path);
    arch.rotary = (mb_rotary){0};
    assert_status_ok(mb_lm_create(ops, &arch, "none", 3, &plain));
    arch.rotary = (mb_rotary){.type = MB_ROTARY_DYNAMIC, .factor = 3, .original_positions = 64};
    assert_status_ok(mb_lm_create(ops, &arch, "none", 3, &dynamic));
    cases_random(&b, arch.vocab, offsets, 1, CASES_SEED);
    float *x = cases_logits(plain, &b), *y = cases_logits(dynamic, &b);
    assert_memory_equal(x, y, (size_t)(b.batch.head_rows * arch.vocab) * sizeof *x);
    /* Packed with a long one, the short one stays what it is. */
    cases_random(&both, arch.vocab, packed, 2, CASES_SEED);
    float *z = cases_logits(dynamic, &both);
    assert_memory_equal(x, z, (size_t)(b.batch.head_rows * arch.vocab) * sizeof *x);
    const int32_t longer[] = {0, 193};
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.logits = true};
    cases_random(&b, arch.vocab, longer, 1, CASES_SEED);
    assert_status_ok(mb_lm_pass_create(dynamic, &pass));
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE,
                       "position 192, the model has 192");
    mb_lm_pass_destroy(&pass);
    mb_free(x);
    mb_free(y);
    mb_free(z);
    mb_lm_destroy(&plain);
    mb_lm_destroy(&dynamic);
    mb_arch_reset(&arch);
    mb_ops_destroy(&ops);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies_are_those_of_transformers),
        cmocka_unit_test(test_spellings_agree),
        cmocka_unit_test(test_writing_keeps_them),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_dynamic_stretches_and_stops),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
