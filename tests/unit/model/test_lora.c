/* lora: gradients against differences, PEFT's folders in and out, merge, refusals. */
#include "model_cases.h"

static const int32_t OFFSETS[] = {0, 7, 19, 24};

static mb_lm *lora_open(mb_ops *ops, const char *path, const mb_lora_options *opt_lora,
                        const char *opt_adapter, const char *train)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {
        .path = path, .opt_lora = opt_lora, .opt_adapter = opt_adapter, .train = train};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    return lm;
}

/* ---- gradients ---- */

/* picks [2 * T * K]: kept at first, then *out_same says whether they are as they were (the function jumps
 * where not). */
static double lora_loss(mb_lm_pass *pass, const cases_batch *b, const float *weight, int32_t *picks,
                        int64_t k, bool *out_same)
{
    mb_lm_output out;
    const mb_lm_want want = {.gradient = true};
    double loss = 0;
    assert_status_ok(mb_lm_forward(pass, &b->batch, &want, &out));
    for (int64_t i = 0; i < b->batch.head_rows; i++) loss += (double)weight[i] * (double)out.token_loss[i];
    const int64_t n = b->batch.tokens * k;
    for (int64_t l = 0; l < out.routers; l++) {
        if (out_same != NULL && memcmp(picks + l * n, out.router_ids[l], (size_t)n * sizeof *picks) != 0)
            *out_same = false;
        if (out_same == NULL) memcpy(picks + l * n, out.router_ids[l], (size_t)n * sizeof *picks);
    }
    return loss;
}

static void lora_check_gradients(const char *path, const char *targets, double dropout)
{
    mb_ops *ops = cases_ops("ref");
    const mb_lora_options lora = {
        .r = 2, .alpha = 6, .dropout = dropout, .targets = targets, .rslora = true, .seed = 3};
    mb_lm *lm = lora_open(ops, path, &lora, NULL, "all");
    mb_params *params = mb_lm_params(lm);
    const int64_t n = mb_params_trained_count(params);
    float *value = mb_params_trained(params), *gradient = mb_calloc((size_t)n, sizeof *gradient), weight[64];
    mb_lm_pass *pass = NULL;
    cases_batch b;
    for (int64_t i = 0; i < n; i++) value[i] += 0.1f * sinf((float)(i * 37 % 101));
    mb_params_changed(params);
    mb_params_bind_gradient(params, gradient);
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, 3, CASES_SEED);
    b.batch.row_index = b.row_index;
    b.batch.seed = 99;
    for (int i = 0; i < 64; i++) weight[i] = 1;
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    const int64_t k = mb_lm_arch(lm)->picks;
    int32_t picks[512];
    (void)lora_loss(pass, &b, weight, picks, k, NULL);
    assert_status_ok(mb_lm_backward(pass, weight, NULL, NULL));
    int tried = 0, total = 0, good = 0;
    for (int64_t i = 0; i < n; i += n / 60 + 1) {
        const float kept = value[i], h = 4e-3f;
        value[i] = kept + h;
        mb_params_changed(params);
        bool same = true;
        const double up = lora_loss(pass, &b, weight, picks, k, &same);
        value[i] = kept - h;
        mb_params_changed(params);
        const double slope = (up - lora_loss(pass, &b, weight, picks, k, &same)) / (2 * (double)h);
        value[i] = kept;
        tried++;
        if (!same) continue;
        total++;
        good += fabs(slope - gradient[i]) <= 0.02 * fabs(slope) + 0.02;
        if (fabs(slope - gradient[i]) > 0.02 * fabs(slope) + 0.02)
            print_message("# element %lld: slope %g, gradient %g\n", (long long)i, slope,
                          (double)gradient[i]);
    }
    print_message("# %s: %d of %d slopes agree (%d tried)\n", targets, good, total, tried);
    assert_true(total >= 15 && good == total);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_free(gradient);
    mb_ops_destroy(&ops);
}

static void test_gradients_of_a_dense_model(void **state)
{
    (void)state;
    lora_check_gradients(CASES_FOLDER "/llama_bias", "all-linear", 0);
    lora_check_gradients(CASES_FOLDER "/llama_bias", "q_proj,down_proj", 0.3);
}

static void test_gradients_of_experts_and_gates(void **state)
{
    (void)state;
    lora_check_gradients(CASES_FOLDER "/olmoe_clip", "gate,o_proj", 0);
    lora_check_gradients(CASES_FOLDER "/select_moe", "all-linear", 0);
    lora_check_gradients(CASES_FOLDER "/select_moe", "gate_proj,up_proj,down_proj", 0.25);
    lora_check_gradients(CASES_FOLDER "/select_moe", "gate", 0.25);
}

/* ---- PEFT folders ---- */

static void lora_check_peft(const char *base, const char *adapter, const char *backend)
{
    mb_ops *ops = cases_ops(backend);
    if (ops == NULL) skip();
    char *folder = cases_path(base), *peft = cases_path(adapter),
         *file = mb_files_join(peft, "expected.safetensors");
    char *source = mb_files_join(folder, "expected.safetensors");
    mb_safetensors *expected = NULL, *inputs = NULL;
    mb_tensor ids, offsets, logits;
    int32_t id[256], offset[16];
    cases_batch b;
    assert_status_ok(mb_safetensors_open(file, &expected));
    assert_status_ok(mb_safetensors_open(source, &inputs));
    assert_status_ok(mb_safetensors_view(inputs, "ids", &ids));
    assert_status_ok(mb_safetensors_view(inputs, "offsets", &offsets));
    assert_status_ok(mb_safetensors_view(expected, "logits", &logits));
    memcpy(id, ids.data, mb_tensor_bytes(&ids));
    memcpy(offset, offsets.data, mb_tensor_bytes(&offsets));
    cases_pack(&b, id, offset, offsets.shape[0] - 1);
    mb_lm *lm = lora_open(ops, folder, NULL, peft, "none"), *plain = cases_open(ops, folder, "none");
    float *ours = cases_logits(lm, &b), *without = cases_logits(plain, &b), row[256];
    const int64_t v = mb_lm_arch(lm)->vocab;
    double changed = 0;
    for (int64_t i = 0; i < b.batch.head_rows; i++) {
        memcpy(row, (const float *)logits.data + b.head_row[i] * v, (size_t)v * sizeof *row);
        assert_true(cases_difference(ours + i * v, row, v) <= 1e-4);
        changed = fmax(changed, cases_difference(without + i * v, row, v));
    }
    assert_true(changed > 0.01);
    mb_free(ours);
    mb_free(without);
    mb_lm_destroy(&plain);
    mb_lm_destroy(&lm);
    mb_safetensors_close(&expected);
    mb_safetensors_close(&inputs);
    mb_free(folder);
    mb_free(peft);
    mb_free(file);
    mb_free(source);
    mb_ops_destroy(&ops);
}

static void test_adapters_of_peft_give_its_logits(void **state)
{
    (void)state;
    lora_check_peft("llama_tied", "llama_adapter", "ref");
    lora_check_peft("olmoe_plain", "olmoe_adapter", "ref");
    lora_check_peft("llama_tied", "llama_adapter", "cpu");
    lora_check_peft("olmoe_plain", "olmoe_adapter", "cpu");
}

/* Modules by regular expression and layer, ranks and alphas by pattern, rslora, Mixtral's names. */
static void test_patterns_of_peft_give_its_logits(void **state)
{
    (void)state;
    lora_check_peft("qwen2", "qwen2_adapter", "ref");
    lora_check_peft("mixtral", "mixtral_adapter", "ref");
    lora_check_peft("mixtral", "mixtral_adapter", "cpu");
    lora_check_peft("qwen3_moe", "qwen3_moe_adapter", "ref");
}

/* target_parameters: what peft stores of the fused experts of transformers 5. */
static void test_fused_adapters_give_its_logits(void **state)
{
    (void)state;
    lora_check_peft("olmoe_plain", "olmoe_adapter_five", "ref");
    lora_check_peft("mixtral", "mixtral_adapter_five", "ref");
}

/* Whatever form it was read from, what we write says the same. */
static void test_written_again_they_compute_the_same(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {{"qwen2", "qwen2_adapter"},
                                           {"mixtral", "mixtral_adapter"},
                                           {"qwen3_moe", "qwen3_moe_adapter"},
                                           {"olmoe_plain", "olmoe_adapter_five"},
                                           {"mixtral", "mixtral_adapter_five"}};
    mb_ops *ops = cases_ops("ref");
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        char *base = cases_path(pairs[i][0]), *adapter = cases_path(pairs[i][1]), *folder = cases_temporary();
        cases_batch b;
        mb_lm *lm = lora_open(ops, base, NULL, adapter, "all");
        const int64_t v = mb_lm_arch(lm)->vocab;
        cases_random(&b, v, OFFSETS, 3, CASES_SEED);
        float *x = cases_logits(lm, &b);
        assert_status_ok(mb_lm_write(lm, folder, "adapter", MB_F32));
        mb_lm_destroy(&lm);
        lm = lora_open(ops, base, NULL, folder, "none");
        float *y = cases_logits(lm, &b);
        assert_true(cases_difference(y, x, b.batch.head_rows * v) <= 1e-6);
        mb_lm_destroy(&lm);
        mb_free(x);
        mb_free(y);
        cases_remove(folder);
        mb_free(base);
        mb_free(adapter);
    }
    mb_ops_destroy(&ops);
}

/* What we write has the names, shapes and values of what PEFT wrote, and a configuration that reads back. */
static void test_written_adapter_is_that_of_peft(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    char *folder = cases_temporary();
    mb_lm *lm = lora_open(ops, CASES_FOLDER "/olmoe_plain", NULL, CASES_FOLDER "/olmoe_adapter", "all");
    mb_safetensors *ours = NULL, *peft = NULL;
    mb_lora_options options;
    assert_true(mb_params_trained_count(mb_lm_params(lm)) > 0);
    assert_status_ok(mb_lm_write(lm, folder, "full", MB_F32));
    char *file = mb_files_join(folder, "adapter_model.safetensors");
    assert_status_ok(mb_safetensors_open(file, &ours));
    assert_status_ok(mb_safetensors_open(CASES_FOLDER "/olmoe_adapter/adapter_model.safetensors", &peft));
    assert_int_equal(mb_safetensors_count(ours), mb_safetensors_count(peft));
    for (int64_t i = 0; i < mb_safetensors_count(peft); i++) {
        mb_tensor a, b;
        assert_status_ok(mb_safetensors_view(ours, mb_safetensors_name(peft, i), &a));
        assert_status_ok(mb_safetensors_view(peft, mb_safetensors_name(peft, i), &b));
        assert_int_equal(mb_tensor_bytes(&a), mb_tensor_bytes(&b));
        assert_memory_equal(a.data, b.data, mb_tensor_bytes(&a));
    }
    assert_status_ok(mb_lora_read_options(folder, &options));
    assert_int_equal(options.r, 3);
    assert_true(options.alpha == 7 && options.dropout == 0 && !options.rslora);
    assert_string_equal(options.targets, "down_proj,gate,o_proj,up_proj");
    mb_free((char *)options.targets);
    mb_safetensors_close(&ours);
    mb_safetensors_close(&peft);
    mb_lm_destroy(&lm);
    mb_free(file);
    cases_remove(folder);
    mb_ops_destroy(&ops);
}

/* ---- start, merge ---- */

static void test_new_adapter_changes_nothing_yet(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    const mb_lora_options lora = {.r = 4, .alpha = 8, .dropout = 0.1, .targets = "all-linear", .seed = 1};
    mb_lm *lm = lora_open(ops, CASES_FOLDER "/olmoe_plain", &lora, NULL, "all");
    mb_lm *plain = cases_open(ops, CASES_FOLDER "/olmoe_plain", "none");
    cases_batch b;
    cases_random(&b, 80, OFFSETS, 3, CASES_SEED);
    float *x = cases_logits(lm, &b), *y = cases_logits(plain, &b);
    assert_true(cases_difference(x, y, b.batch.head_rows * 80) == 0);
    const mb_param *a =
        mb_params_find(mb_lm_params(lm), "model.layers.0.mlp.experts.3.down_proj.lora_A.weight");
    assert_non_null(a);
    double most = 0;
    for (int64_t i = 0; i < mb_tensor_count(&a->value); i++)
        most = fmax(most, fabs((double)mb_tensor_f32(&a->value)[i]));
    assert_true(most > 0 && most <= 1 / sqrt(12.0));
    assert_null(mb_params_find(mb_lm_params(lm), "model.layers.0.mlp.gate.lora_A.weight"));
    mb_free(x);
    mb_free(y);
    mb_lm_destroy(&lm);
    mb_lm_destroy(&plain);
    mb_ops_destroy(&ops);
}

static void test_all_linear_is_written_name_by_name(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    char *folder = cases_temporary();
    const mb_lora_options lora = {.r = 2, .alpha = 3.5, .targets = "q_proj,all-linear,gate", .rslora = true};
    mb_lora_options options;
    mb_lm *lm = lora_open(ops, CASES_FOLDER "/olmoe_plain", &lora, NULL, "all");
    assert_status_ok(mb_lm_write(lm, folder, "adapter", MB_F32));
    const int64_t trained = mb_params_trained_count(mb_lm_params(lm));
    mb_lm_destroy(&lm);
    assert_status_ok(mb_lora_read_options(folder, &options));
    assert_string_equal(options.targets, "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,gate");
    assert_true(options.alpha == 3.5 && options.rslora);
    mb_free((char *)options.targets);
    lm = lora_open(ops, CASES_FOLDER "/olmoe_plain", NULL, folder, "all");
    assert_int_equal(mb_params_trained_count(mb_lm_params(lm)), trained);
    mb_lm_destroy(&lm);
    cases_remove(folder);
    mb_ops_destroy(&ops);
}

static void test_merged_model_equals_adapter(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    static const char *const pairs[][2] = {{"llama_tied", "llama_adapter"},
                                           {"olmoe_plain", "olmoe_adapter"},
                                           {"mixtral", "mixtral_adapter_five"},
                                           {"qwen2", "qwen2_adapter"}};
    for (int i = 0; i < 4; i++) {
        char *base = cases_path(pairs[i][0]), *adapter = cases_path(pairs[i][1]);
        mb_lm *lm = lora_open(ops, base, NULL, adapter, "none");
        cases_batch b;
        const int64_t v = mb_lm_arch(lm)->vocab;
        cases_random(&b, v, OFFSETS, 3, CASES_SEED);
        float *before = cases_logits(lm, &b);
        assert_status_ok(mb_lora_merge(mb_lm_lora(lm), ops, mb_lm_params(lm)));
        float *after = cases_logits(lm, &b);
        assert_true(cases_difference(after, before, b.batch.head_rows * v) <= 1e-5);
        mb_free(before);
        mb_free(after);
        mb_lm_destroy(&lm);
        mb_free(base);
        mb_free(adapter);
    }
    mb_ops_destroy(&ops);
}

/* ---- refusals ---- */

static void lora_refuse_config(const char *change, mb_status expected, const char *text)
{
    char *folder = cases_temporary(), *path = mb_files_join(folder, "adapter_config.json");
    json_t *config = NULL, *more = NULL;
    mb_lora_options options;
    assert_status_ok(mb_json_read(CASES_FOLDER "/llama_adapter/adapter_config.json", &config));
    assert_status_ok(mb_json_parse(change, strlen(change), "change", &more));
    assert_int_equal(json_object_update(config, more), 0);
    assert_status_ok(mb_json_write(path, config, 2, true));
    assert_status_says(mb_lora_read_options(folder, &options), expected, text);
    json_decref(config);
    json_decref(more);
    mb_free(path);
    cases_remove(folder);
}

/* A copy of mixtral_adapter without the tensors whose names hold `leave_out`, and with one called `extra`. */
static void lora_refuse_tensors(const char *leave_out, const char *extra, const char *text)
{
    char *folder = cases_temporary(), *config = mb_files_join(folder, "adapter_config.json");
    mb_safetensors *source = NULL;
    mb_safetensors_writer *writer = NULL;
    mb_ops *ops = cases_ops("ref");
    mb_lm *lm = NULL;
    const int64_t shape[2] = {2, 2};
    const float values[4] = {1, 2, 3, 4};
    assert_status_ok(mb_files_copy(CASES_FOLDER "/mixtral_adapter/adapter_config.json", config));
    assert_status_ok(mb_safetensors_open(CASES_FOLDER "/mixtral_adapter/adapter_model.safetensors", &source));
    assert_status_ok(mb_safetensors_writer_create(folder, "adapter_model", 0, &writer));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < mb_safetensors_count(source); i++) {
            const char *name = mb_safetensors_name(source, i);
            mb_tensor view;
            if (strstr(name, leave_out) != NULL) continue;
            assert_status_ok(mb_safetensors_view(source, name, &view));
            if (pass == 0)
                assert_status_ok(mb_safetensors_writer_declare(writer, name, MB_F32, 2, view.shape));
            else
                assert_status_ok(
                    mb_safetensors_writer_write(writer, name, view.data, mb_tensor_bytes(&view)));
        }
        if (extra != NULL && pass == 0)
            assert_status_ok(mb_safetensors_writer_declare(writer, extra, MB_F32, 2, shape));
        if (extra != NULL && pass == 1)
            assert_status_ok(mb_safetensors_writer_write_f32(writer, extra, values, 4));
    }
    assert_status_ok(mb_safetensors_writer_close(&writer));
    mb_safetensors_close(&source);
    const mb_lm_options o = {.path = CASES_FOLDER "/mixtral", .opt_adapter = folder, .train = "none"};
    assert_status_says(mb_lm_open(ops, &o, &lm), text == NULL ? MB_OK : MB_EUNSUPPORTED,
                       text == NULL ? "" : text);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_free(config);
    cases_remove(folder);
}

static void test_adapters_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    lora_refuse_tensors("layers.1.block_sparse_moe.experts.4.w1", NULL,
                        "layers.1.block_sparse_moe.experts.4.w1");
    lora_refuse_tensors("layers.0.block_sparse_moe.experts.0.w2", NULL,
                        "layers.0.block_sparse_moe.experts.1.w2");
    lora_refuse_tensors("nothing", "base_model.model.lm_head.lora_A.weight",
                        "base_model.model.lm_head.lora_A");
    lora_refuse_tensors(".w3.", NULL, NULL); /* all experts alike: fine */
}

static void test_what_we_do_not_do_is_refused(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    mb_lm *lm = NULL;
    mb_lora_options lora = {.r = 4, .alpha = 8, .targets = "q_proj,query"};
    mb_lm_options o = {.path = CASES_FOLDER "/llama_tied", .opt_lora = &lora, .train = "all"};
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "'query' matches no module");
    lora.targets = "gate";
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "'gate' matches no module");
    lora.targets = "q_proj";
    lora.r = 0;
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "r is 0");
    lora.r = 2;
    o.train = "*.mlp.*";
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "only the adapter trains");
    o.train = "all";
    o.opt_adapter = CASES_FOLDER "/llama_adapter";
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "exclude each other");
    o = (mb_lm_options){.path = CASES_FOLDER "/llama_bias", .opt_adapter = CASES_FOLDER "/llama_adapter"};
    assert_int_not_equal(mb_lm_open(ops, &o, &lm), MB_OK);
    mb_ops_destroy(&ops);
    lora_refuse_config("{\"use_dora\": true}", MB_EUNSUPPORTED, "use_dora");
    lora_refuse_config("{\"modules_to_save\": [\"lm_head\"]}", MB_EUNSUPPORTED, "modules_to_save");
    lora_refuse_config("{\"bias\": \"all\"}", MB_EUNSUPPORTED, "bias");
    lora_refuse_config("{\"peft_type\": \"IA3\"}", MB_EUNSUPPORTED, "IA3");
    lora_refuse_config("{\"init_lora_weights\": \"pissa\"}", MB_EUNSUPPORTED, "pissa");
    mb_lora_options options;
    assert_status_says(mb_lora_read_options("/nowhere", &options), MB_ENOTFOUND,
                       "/nowhere/adapter_config.json");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_of_a_dense_model),
        cmocka_unit_test(test_gradients_of_experts_and_gates),
        cmocka_unit_test(test_adapters_of_peft_give_its_logits),
        cmocka_unit_test(test_patterns_of_peft_give_its_logits),
        cmocka_unit_test(test_fused_adapters_give_its_logits),
        cmocka_unit_test(test_written_again_they_compute_the_same),
        cmocka_unit_test(test_written_adapter_is_that_of_peft),
        cmocka_unit_test(test_new_adapter_changes_nothing_yet),
        cmocka_unit_test(test_all_linear_is_written_name_by_name),
        cmocka_unit_test(test_merged_model_equals_adapter),
        cmocka_unit_test(test_adapters_that_do_not_fit_are_refused),
        cmocka_unit_test(test_what_we_do_not_do_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
