/* convert: trash in and out, merge, deltas written in full, random models, and a verify step that can fail.
 */
#include "model_cases.h"

#include "base/json.h"
#include "model/convert.h"

static const int32_t OFFSETS[] = {0, 9, 20, 31};

typedef struct convert_case {
    mb_ops *ops;
    char *folder; /* temporary */
    char *target; /* inside it */
} convert_case;

static int convert_setup(void **state)
{
    convert_case *c = mb_calloc(1, sizeof *c);
    assert_status_ok(mb_ops_create("ref", 1, &c->ops));
    c->folder = cases_temporary();
    c->target = mb_files_join(c->folder, "target");
    *state = c;
    return 0;
}

static int convert_teardown(void **state)
{
    convert_case *c = *state;
    cases_remove(c->folder);
    mb_free(c->target);
    mb_ops_destroy(&c->ops);
    mb_free(c);
    return 0;
}

static double convert_difference(mb_ops *ops, const char *a, const char *b)
{
    mb_lm *x = cases_open(ops, a, "none"), *y = cases_open(ops, b, "none");
    cases_batch batch;
    cases_random(&batch, mb_lm_arch(x)->vocab, OFFSETS, 3, CASES_SEED);
    float *p = cases_logits(x, &batch), *q = cases_logits(y, &batch);
    const double difference = cases_difference(p, q, batch.batch.head_rows * mb_lm_arch(x)->vocab);
    mb_free(p);
    mb_free(q);
    mb_lm_destroy(&x);
    mb_lm_destroy(&y);
    return difference;
}

/* ---- trash ---- */

static void test_closed_trash_computes_the_source(void **state)
{
    convert_case *c = *state;
    const mb_convert_trash_options options = {.trash_init = "closed", .trash_init_std = 0.02, .seed = 1};
    mb_convert_report report;
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_plain", c->target, &options));
    assert_true(convert_difference(c->ops, CASES_FOLDER "/olmoe_plain", c->target) <= 1e-6);
    assert_status_ok(mb_convert_verify(c->ops, CASES_FOLDER "/olmoe_plain", NULL, c->target, NULL, 50, true,
                                       1e-6, &report));
    assert_int_equal(report.changed, 0);
    assert_int_equal(report.added, 0);
    assert_int_equal(report.identical, report.tensors);
    assert_true(report.mean_trash_mass == 0);
    assert_true(fabs(report.loss_before - report.loss_after) < 1e-5);
    mb_arch arch;
    assert_status_ok(mb_arch_read(c->target, &arch));
    assert_int_equal(arch.trash, 2);
    assert_true(arch.trash_logit_bias == -1e4);
    mb_arch_reset(&arch);
}

/* Every mixture of experts: closed trash computes the source, and as a stock model again it is the source. */
static void test_trash_of_every_family(void **state)
{
    static const char *const names[] = {"mixtral", "qwen3_moe"};
    convert_case *c = *state;
    const mb_convert_trash_options options = {
        .trash_experts = 2, .trash_init = "closed", .trash_init_std = 0.02, .seed = 1};
    for (int i = 0; i < 2; i++) {
        char *source = cases_path(names[i]), *target = mb_files_join(c->folder, names[i]);
        char *plain = mb_str_format("%s_plain", target);
        mb_convert_report report;
        mb_arch arch;
        assert_status_ok(mb_convert_trash(source, target, &options));
        assert_true(convert_difference(c->ops, source, target) <= 1e-6);
        assert_status_ok(mb_convert_verify(c->ops, source, NULL, target, NULL, 50, true, 1e-6, &report));
        assert_int_equal(report.identical, report.tensors);
        assert_status_ok(mb_arch_read(target, &arch));
        assert_int_equal(arch.trash, 2);
        mb_arch_reset(&arch);
        assert_status_ok(mb_convert_plain(target, plain));
        assert_true(convert_difference(c->ops, source, plain) == 0);
        mb_free(source);
        mb_free(target);
        mb_free(plain);
    }
}

/* Open trash as experts of zeros under a stock configuration, and full from the fused form of 5.x. */
static void test_plain_and_full_of_every_family(void **state)
{
    static const char *const names[] = {"select_mixtral", "select_qwen3_moe", "mixtral_five",
                                        "qwen3_moe_five", "olmoe_plain_five"};
    convert_case *c = *state;
    for (int i = 0; i < 5; i++) {
        char *source = cases_path(names[i]), *target = mb_files_join(c->folder, names[i]);
        mb_convert_report report;
        mb_arch arch;
        assert_status_ok(i < 2 ? mb_convert_plain(source, target) : mb_convert_full(c->ops, source, target));
        assert_true(convert_difference(c->ops, source, target) <= 1e-6);
        assert_status_ok(mb_convert_verify(c->ops, source, NULL, target, NULL, 50, true, 1e-6, &report));
        assert_int_equal(report.changed, 0);
        assert_status_ok(mb_arch_read(target, &arch));
        assert_int_equal(arch.trash, 0);
        mb_arch_reset(&arch);
        mb_free(source);
        mb_free(target);
    }
}

static void test_trash_rows_are_drawn(void **state)
{
    convert_case *c = *state;
    mb_convert_trash_options options = {
        .trash_experts = 3, .trash_init = "normal", .trash_init_std = 0.5, .seed = 7};
    char *again = mb_files_join(c->folder, "again");
    mb_convert_report report;
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_plain", c->target, &options));
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_plain", again, &options));
    mb_safetensors *source = NULL, *a = NULL, *b = NULL;
    assert_status_ok(mb_safetensors_open(CASES_FOLDER "/olmoe_plain", &source));
    assert_status_ok(mb_safetensors_open(c->target, &a));
    assert_status_ok(mb_safetensors_open(again, &b));
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < mb_safetensors_count(source); i++) {
        const char *name = mb_safetensors_name(source, i);
        mb_tensor x, y, z;
        float rows[3 * 32];
        assert_status_ok(mb_safetensors_view(source, name, &x));
        assert_status_ok(mb_safetensors_view(a, name, &y));
        assert_status_ok(mb_safetensors_view(b, name, &z));
        assert_memory_equal(x.data, y.data, mb_tensor_bytes(&x));
        assert_memory_equal(y.data, z.data, mb_tensor_bytes(&y));
        if (strstr(name, "mlp.gate.weight") == NULL) continue;
        assert_int_equal(y.shape[0], 9);
        memcpy(rows, (const char *)y.data + mb_tensor_bytes(&x), sizeof rows);
        for (int j = 0; j < 96; j++) sum += rows[j], squares += (double)rows[j] * rows[j];
    }
    assert_true(fabs(sum / 192) < 0.15 && fabs(sqrt(squares / 192) - 0.5) < 0.1);
    assert_status_ok(
        mb_convert_verify(c->ops, CASES_FOLDER "/olmoe_plain", NULL, c->target, NULL, 0, false, 0, &report));
    assert_true(report.mean_trash_mass > 0.05 && report.mean_trash_mass < 0.95);
    assert_true(report.max_logit_difference > 1e-3);
    mb_safetensors_close(&source);
    mb_safetensors_close(&a);
    mb_safetensors_close(&b);
    options.seed = 8;
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_plain", again, &options));
    assert_true(convert_difference(c->ops, c->target, again) > 1e-3);
    mb_free(again);
}

static void test_plain_is_a_stock_model(void **state)
{
    convert_case *c = *state;
    mb_convert_report report;
    assert_status_ok(mb_convert_plain(CASES_FOLDER "/select_moe", c->target));
    assert_true(convert_difference(c->ops, CASES_FOLDER "/select_moe", c->target) <= 1e-6);
    assert_status_ok(mb_convert_verify(c->ops, CASES_FOLDER "/select_moe", NULL, c->target, NULL, 40, true,
                                       1e-6, &report));
    assert_int_equal(report.changed, 0);
    assert_int_equal(report.added, 2 * 2 * 3);
    mb_arch arch;
    assert_status_ok(mb_arch_read(c->target, &arch));
    assert_int_equal(arch.experts, 6);
    assert_int_equal(arch.trash, 0);
    assert_string_equal(json_string_value(json_object_get(arch.config, "model_type")), "olmoe");
    assert_null(json_object_get(arch.config, "num_trash_experts"));
    mb_arch_reset(&arch);
}

static void test_plain_of_closed_trash_is_the_source(void **state)
{
    convert_case *c = *state;
    const mb_convert_trash_options options = {.trash_init = "closed", .trash_init_std = 0.02};
    char *back = mb_files_join(c->folder, "back");
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_clip", c->target, &options));
    assert_status_ok(mb_convert_plain(c->target, back));
    assert_true(convert_difference(c->ops, CASES_FOLDER "/olmoe_clip", back) == 0);
    mb_free(back);
}

static void test_conversions_that_make_no_sense(void **state)
{
    convert_case *c = *state;
    mb_convert_trash_options options = {.trash_init = "closed"};
    assert_status_says(mb_convert_trash(CASES_FOLDER "/llama_tied", c->target, &options), MB_EUSAGE,
                       "moe-convert upcycle");
    assert_status_says(mb_convert_trash(CASES_FOLDER "/select_moe", c->target, &options), MB_EUSAGE,
                       "already");
    options.trash_init = "opne";
    assert_status_says(mb_convert_trash(CASES_FOLDER "/olmoe_plain", c->target, &options), MB_EUSAGE,
                       "'opne'");
    assert_status_says(mb_convert_plain(CASES_FOLDER "/olmoe_plain", c->target), MB_EUSAGE,
                       "no trash experts");
    mb_lm *lm = cases_open(c->ops, CASES_FOLDER "/select_moe", "none");
    mb_lm_set_trash_bias(lm, -3);
    char *half = mb_files_join(c->folder, "half");
    assert_status_ok(mb_files_make_folders(half));
    assert_status_ok(mb_lm_write(lm, half, "full", MB_F32));
    assert_status_says(mb_convert_plain(half, c->target), MB_EUSAGE, "trash_logit_bias is -3");
    assert_false(mb_files_is_folder(c->target));
    mb_lm_destroy(&lm);
    mb_free(half);
}

/* ---- merge, delta, full ---- */

static void test_merge_writes_what_the_adapter_computes(void **state)
{
    convert_case *c = *state;
    mb_convert_report report;
    assert_status_ok(
        mb_convert_merge(c->ops, CASES_FOLDER "/olmoe_plain", CASES_FOLDER "/olmoe_adapter", c->target));
    assert_status_ok(mb_convert_verify(c->ops, CASES_FOLDER "/olmoe_plain", CASES_FOLDER "/olmoe_adapter",
                                       c->target, NULL, 40, true, 1e-5, &report));
    assert_int_equal(report.changed,
                     2 * (1 + 1 + 2 * 6)); /* gate, o_proj, up and down of 6 experts in 2 layers */
    assert_true(convert_difference(c->ops, CASES_FOLDER "/olmoe_plain", c->target) > 1e-3);
}

/* A delta of changed gates on `base`, in `folder`. Returns the open model. */
static mb_lm *convert_write_delta(mb_ops *ops, const char *base, const char *train, const char *folder,
                                  float step)
{
    mb_lm *lm = cases_open(ops, base, train);
    float *value = mb_params_trained(mb_lm_params(lm));
    for (int64_t i = 0; i < mb_params_trained_count(mb_lm_params(lm)); i++)
        value[i] += step * (float)(i % 5 - 2);
    mb_params_changed(mb_lm_params(lm));
    mb_lm_set_trash_bias(lm, -0.5);
    assert_status_ok(mb_files_make_folders(folder));
    assert_status_ok(mb_lm_write(lm, folder, "delta", MB_F32));
    return lm;
}

static void convert_check_same(mb_lm *lm, mb_ops *ops, const char *folder)
{
    mb_lm *read = cases_open(ops, folder, "none");
    cases_batch b;
    cases_random(&b, 80, OFFSETS, 3, CASES_SEED);
    float *x = cases_logits(lm, &b), *y = cases_logits(read, &b);
    assert_memory_equal(x, y, (size_t)(b.batch.head_rows * 80) * sizeof *x);
    mb_free(x);
    mb_free(y);
    mb_lm_destroy(&read);
}

static void test_delta_holds_what_trained(void **state)
{
    convert_case *c = *state;
    char *delta = mb_files_join(c->folder, "run/step_5"), *second = mb_files_join(c->folder, "run/step_6");
    mb_convert_report report;
    mb_safetensors *file = NULL;
    mb_lm *lm = convert_write_delta(c->ops, CASES_FOLDER "/select_moe", "router", delta, 0.1f);
    char *path = mb_files_join(delta, "delta.safetensors");
    assert_status_ok(mb_safetensors_open(path, &file));
    assert_int_equal(mb_safetensors_count(file), 2);
    mb_safetensors_close(&file);
    convert_check_same(lm, c->ops, delta);
    mb_lm_destroy(&lm);
    /* Trained on from the delta: the new one stands on the same base and needs the old one no more. */
    lm = convert_write_delta(c->ops, delta, "model.norm.weight", second, 0.1f);
    assert_status_ok(mb_files_remove_tree(delta));
    convert_check_same(lm, c->ops, second);
    mb_lm_destroy(&lm);
    assert_status_ok(mb_convert_full(c->ops, second, c->target));
    assert_status_ok(mb_convert_verify(c->ops, second, NULL, c->target, NULL, 30, true, 0, &report));
    mb_free(delta);
    mb_free(second);
    mb_free(path);
}

static void test_delta_knows_its_base(void **state)
{
    convert_case *c = *state;
    const mb_convert_trash_options options = {.trash_init = "normal", .trash_init_std = 0.5, .seed = 7};
    char *base = mb_files_join(c->folder, "base"), *delta = mb_files_join(c->folder, "delta");
    mb_lm *lm = NULL;
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_plain", base, &options));
    lm = convert_write_delta(c->ops, base, "router", delta, 0.1f);
    mb_lm_destroy(&lm);
    /* Both moved together. */
    char *moved = mb_str_format("%s_moved", c->folder);
    assert_int_equal(rename(c->folder, moved), 0);
    char *there = mb_files_join(moved, "delta");
    lm = cases_open(c->ops, there, "none");
    assert_string_equal(mb_lm_base(lm) + strlen(mb_lm_base(lm)) - 4, "base");
    mb_lm_destroy(&lm);
    assert_int_equal(rename(moved, c->folder), 0);
    /* Another base in its place. */
    const mb_convert_trash_options other = {.trash_init = "normal", .trash_init_std = 0.5, .seed = 8};
    const mb_lm_options open = {.path = delta, .train = "none"};
    assert_status_ok(mb_convert_trash(CASES_FOLDER "/olmoe_plain", base, &other));
    assert_status_says(mb_lm_open(c->ops, &open, &lm), MB_EDATA, "belongs to another model");
    assert_status_ok(mb_files_remove_tree(base));
    assert_status_says(mb_lm_open(c->ops, &open, &lm), MB_ENOTFOUND, "correct \"base\"");
    mb_free(base);
    mb_free(delta);
    mb_free(moved);
    mb_free(there);
}

/* ---- init ---- */

static void test_random_models_follow_the_seed(void **state)
{
    convert_case *c = *state;
    char *again = mb_files_join(c->folder, "again"), *other = mb_files_join(c->folder, "other");
    assert_status_ok(mb_convert_init(c->ops, CASES_FOLDER "/select_moe/config.json", NULL, 3, c->target));
    assert_status_ok(mb_convert_init(c->ops, CASES_FOLDER "/select_moe", NULL, 3, again));
    assert_status_ok(mb_convert_init(c->ops, CASES_FOLDER "/select_moe", NULL, 4, other));
    assert_true(convert_difference(c->ops, c->target, again) == 0);
    assert_true(convert_difference(c->ops, c->target, other) > 0.01);
    mb_lm *lm = cases_open(c->ops, c->target, "none");
    const mb_param *embedding = mb_params_find(mb_lm_params(lm), "model.embed_tokens.weight");
    const mb_param *norm = mb_params_find(mb_lm_params(lm), "model.layers.1.self_attn.q_norm.weight");
    double squares = 0;
    for (int i = 0; i < 80 * 32; i++) squares += pow((double)mb_tensor_f32(&embedding->value)[i], 2);
    assert_true(fabs(sqrt(squares / (80 * 32)) - 0.02) < 0.002);
    for (int i = 0; i < 32; i++) assert_true(mb_tensor_f32(&norm->value)[i] == 1);
    mb_lm_destroy(&lm);
    assert_status_says(mb_convert_init(c->ops, "/nowhere.json", NULL, 3, again), MB_ENOTFOUND,
                       "/nowhere.json");
    mb_free(again);
    mb_free(other);
}

/* ---- stored types, verify ---- */

static void test_bf16_is_written_and_read(void **state)
{
    convert_case *c = *state;
    mb_lm *lm = cases_open(c->ops, CASES_FOLDER "/llama_bias", "none");
    mb_arch arch;
    assert_status_ok(mb_files_make_folders(c->target));
    assert_status_ok(mb_lm_write(lm, c->target, "full", MB_BF16));
    mb_lm_destroy(&lm);
    assert_status_ok(mb_arch_read(c->target, &arch));
    assert_int_equal(arch.stored_dtype, MB_BF16);
    mb_arch_reset(&arch);
    const double difference = convert_difference(c->ops, c->target, CASES_FOLDER "/llama_bias");
    assert_true(difference > 1e-5 && difference < 3e-2);
}

static void test_verify_finds_a_changed_tensor(void **state)
{
    convert_case *c = *state;
    mb_convert_report report;
    mb_lm *lm =
        cases_open(c->ops, CASES_FOLDER "/olmoe_plain", "model.layers.1.mlp.experts.4.up_proj.weight");
    mb_params_trained(mb_lm_params(lm))[5] += 1;
    mb_params_changed(mb_lm_params(lm));
    assert_status_ok(mb_files_make_folders(c->target));
    assert_status_ok(mb_lm_write(lm, c->target, "full", MB_F32));
    mb_lm_destroy(&lm);
    assert_status_says(
        mb_convert_verify(c->ops, CASES_FOLDER "/olmoe_plain", NULL, c->target, NULL, 30, true, 1, &report),
        MB_EDATA, "model.layers.1.mlp.experts.4.up_proj.weight");
    assert_status_says(mb_convert_verify(c->ops, CASES_FOLDER "/olmoe_plain", CASES_FOLDER "/olmoe_adapter",
                                         CASES_FOLDER "/olmoe_plain", NULL, 30, true, 1e-6, &report),
                       MB_EDATA, "merged gives");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_closed_trash_computes_the_source, convert_setup,
                                        convert_teardown),
        cmocka_unit_test_setup_teardown(test_trash_of_every_family, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_plain_and_full_of_every_family, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_trash_rows_are_drawn, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_plain_is_a_stock_model, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_plain_of_closed_trash_is_the_source, convert_setup,
                                        convert_teardown),
        cmocka_unit_test_setup_teardown(test_conversions_that_make_no_sense, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_merge_writes_what_the_adapter_computes, convert_setup,
                                        convert_teardown),
        cmocka_unit_test_setup_teardown(test_delta_holds_what_trained, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_delta_knows_its_base, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_random_models_follow_the_seed, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_bf16_is_written_and_read, convert_setup, convert_teardown),
        cmocka_unit_test_setup_teardown(test_verify_finds_a_changed_tensor, convert_setup, convert_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
