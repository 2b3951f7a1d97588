/* Folders as they come: configurations of 4.x and 5.x, fused experts, and everything that is refused, by
 * name. */
#include "model_cases.h"

#include "base/json.h"

/* ---- configurations ---- */

static json_t *folders_config(const char *name, const char *change)
{
    char *path = mb_str_format("%s/%s/config.json", CASES_FOLDER, name);
    json_t *config = NULL, *more = NULL;
    assert_status_ok(mb_json_read(path, &config));
    assert_status_ok(mb_json_parse(change, strlen(change), "change", &more));
    assert_int_equal(json_object_update(config, more), 0);
    json_decref(more);
    mb_free(path);
    return config;
}

static void folders_accept(const char *name, const char *change, mb_arch *out_arch)
{
    json_t *config = folders_config(name, change);
    assert_status_ok(mb_arch_from_json(config, "config.json", out_arch));
    json_decref(config);
}

static void folders_refuse(const char *name, const char *change, mb_status expected, const char *text)
{
    json_t *config = folders_config(name, change);
    mb_arch arch;
    assert_status_says(mb_arch_from_json(config, "folder/config.json", &arch), expected, text);
    assert_non_null(strstr(mb_status_message(), "folder/config.json"));
    json_decref(config);
}

static void test_both_spellings_of_transformers(void **state)
{
    (void)state;
    mb_arch a;
    folders_accept(
        "llama_tied",
        "{\"rope_theta\": null, \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5e5}, "
        "\"dtype\": \"bfloat16\", \"eos_token_id\": [7, 8]}",
        &a);
    assert_true(a.rope_theta == 5e5);
    assert_int_equal(a.stored_dtype, MB_BF16);
    assert_int_equal(a.eos, 7);
    assert_int_equal(a.pad, -1);
    json_t *written = NULL;
    assert_status_ok(mb_arch_to_json(&a, &written));
    assert_null(json_object_get(written, "rope_parameters"));
    assert_null(json_object_get(written, "dtype"));
    assert_true(json_number_value(json_object_get(written, "rope_theta")) == 5e5);
    assert_string_equal(json_string_value(json_object_get(written, "torch_dtype")), "bfloat16");
    assert_true(json_is_array(json_object_get(written, "eos_token_id")));
    json_decref(written);
    mb_arch_reset(&a);
    folders_accept(
        "llama_tied",
        "{\"rope_scaling\": {\"type\": \"default\"}, \"num_key_value_heads\": null, \"house_field\": 3}", &a);
    assert_int_equal(a.kv_heads, 4);
    assert_status_ok(mb_arch_to_json(&a, &written));
    assert_int_equal(json_integer_value(json_object_get(written, "house_field")), 3);
    json_decref(written);
    mb_arch_reset(&a);
}

static void test_architecture_survives_writing(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_tied",
                                        "llama_bias",
                                        "olmoe_plain",
                                        "olmoe_clip",
                                        "select_moe",
                                        "llama_linear",
                                        "llama_llama3",
                                        "llama_yarn",
                                        "llama_dynamic",
                                        "llama_longrope",
                                        "mistral",
                                        "qwen2",
                                        "qwen3",
                                        "mixtral",
                                        "qwen3_moe",
                                        "select_mixtral",
                                        "select_qwen3_moe",
                                        "biased_mixtral",
                                        "biased_qwen3_moe",
                                        "mixtral_five",
                                        "qwen3_moe_five",
                                        "qwen2_five",
                                        "llama_longrope_five"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        mb_arch a, b;
        json_t *config = NULL;
        folders_accept(names[i], "{}", &a);
        json_decref(a.config); /* written from the fields alone */
        a.config = NULL;
        assert_status_ok(mb_arch_to_json(&a, &config));
        assert_status_ok(mb_arch_from_json(config, "written", &b));
        json_decref(config);
        mb_arch_reset(&b);
        assert_memory_equal(&a, &b, sizeof a);
    }
}

static void test_what_changes_the_function_is_refused(void **state)
{
    (void)state;
    folders_refuse("llama_tied", "{\"model_type\": \"mamba\"}", MB_EUNSUPPORTED, "'mamba'");
    folders_refuse("llama_tied", "{\"hidden_act\": \"gelu\"}", MB_EUNSUPPORTED, "'gelu'");
    folders_refuse("llama_tied", "{\"mlp_bias\": true}", MB_EUNSUPPORTED, "mlp_bias");
    folders_refuse("llama_tied", "{\"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 8}}",
                   MB_EFORMAT, "short_factor");
    folders_refuse("llama_tied", "{\"rope_scaling\": {\"type\": \"su\", \"factor\": 2}}", MB_EUNSUPPORTED,
                   "'su'");
    folders_refuse("llama_tied", "{\"rope_parameters\": {\"rope_type\": \"proportional\"}}", MB_EUNSUPPORTED,
                   "'proportional'");
    folders_refuse("llama_tied", "{\"quantization_config\": {\"bits\": 4}}", MB_EUNSUPPORTED,
                   "quantization_config");
    folders_refuse("select_moe", "{\"base_model_type\": \"llama\"}", MB_EUNSUPPORTED, "'llama'");
    folders_refuse("olmoe_plain", "{\"head_dim\": 6}", MB_EUNSUPPORTED, "head_dim 6");
    folders_refuse("qwen2",
                   "{\"layer_types\": [\"full_attention\", \"chunked_attention\", \"full_attention\"]}",
                   MB_EUNSUPPORTED, "'chunked_attention'");
    folders_refuse("mistral", "{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
                   MB_EUNSUPPORTED, "layer_types");
    folders_refuse("qwen3_moe", "{\"decoder_sparse_step\": 9}", MB_EUNSUPPORTED, "decoder_sparse_step");
    folders_refuse("qwen3", "{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}",
                   MB_EUNSUPPORTED, "'full_attention'");
}

/* Which layers have a window, as transformers has it. */
static void folders_check_windows(const char *name, const char *change, const char *expected, int64_t window)
{
    mb_arch a;
    folders_accept(name, change, &a);
    assert_int_equal(a.window, window);
    assert_int_equal(a.layers, strlen(expected));
    for (int64_t i = 0; i < a.layers; i++)
        assert_int_equal(mb_arch_window(&a, i), expected[i] == 'w' ? window : 0);
    mb_arch_reset(&a);
}

static void test_windows_are_those_of_transformers(void **state)
{
    (void)state;
    folders_check_windows("mistral", "{}", "ww", 5);
    folders_check_windows("mistral", "{\"sliding_window\": null}", "..", 0);
    folders_check_windows("mistral", "{\"layer_types\": [\"sliding_attention\", \"sliding_attention\"]}",
                          "ww", 5);
    folders_check_windows("mixtral", "{}", "ww", 5);
    folders_check_windows("qwen2", "{\"layer_types\": null}", ".ww", 5);
    folders_check_windows("qwen2", "{\"layer_types\": null, \"max_window_layers\": 2}", "..w", 5);
    folders_check_windows("qwen2", "{\"layer_types\": null, \"max_window_layers\": 28}", "...", 0);
    folders_check_windows("qwen2", "{\"layer_types\": null, \"use_sliding_window\": false}", "...", 0);
    folders_check_windows("qwen3", "{}", "w.", 5);
    folders_check_windows("qwen3_moe", "{\"use_sliding_window\": true, \"sliding_window\": 7}", "wwwww", 7);
    folders_check_windows("qwen3_moe", "{\"use_sliding_window\": false, \"sliding_window\": 7}", ".....", 0);
    folders_check_windows("llama_tied", "{\"sliding_window\": 7, \"use_sliding_window\": true}", "..", 0);
    folders_refuse("qwen2", "{\"use_sliding_window\": false}", MB_EFORMAT, "use_sliding_window");
    folders_refuse("mistral", "{\"sliding_window\": 0}", MB_ERANGE, "sliding_window is 0");
    folders_refuse("qwen3", "{\"layer_types\": [\"full_attention\"]}", MB_EFORMAT, "layer_types");
}

static void test_layers_with_experts(void **state)
{
    (void)state;
    static const char *const changes[][2] = {
        {"{}", ".m..."},
        {"{\"mlp_only_layers\": null}", ".m.m."},
        {"{\"decoder_sparse_step\": 1}", "mmm.m"},
        {"{\"decoder_sparse_step\": 3, \"mlp_only_layers\": [0, 17, -1]}", "..m.."},
        {"{\"decoder_sparse_step\": null, \"mlp_only_layers\": []}", "mmmmm"}};
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        mb_arch a;
        folders_accept("qwen3_moe", changes[i][0], &a);
        for (int64_t l = 0; l < a.layers; l++)
            assert_int_equal(mb_arch_is_moe(&a, l), changes[i][1][l] == 'm');
        assert_int_equal(mb_arch_dense_ffn(&a), 11);
        assert_int_equal(a.ffn, 6);
        mb_arch_reset(&a);
    }
    folders_refuse("qwen3_moe", "{\"decoder_sparse_step\": 0}", MB_ERANGE, "decoder_sparse_step is 0");
    folders_refuse("qwen3_moe", "{\"mlp_only_layers\": [\"one\"]}", MB_EFORMAT, "mlp_only_layers");
    folders_refuse("qwen3_moe", "{\"num_local_experts\": 6}", MB_EFORMAT, "num_local_experts");
}

/* What transformers takes where the file says nothing. */
static void test_absent_fields_are_transformers_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        int64_t kv_heads, head_width, positions, window, picks, bos, eos, pad;
        double eps, theta, aux;
        bool normalised;
    } expected[] = {{"llama", 64, 64, 2048, 0, 0, 1, 2, -1, 1e-6, 1e4, 0, false},
                    {"mistral", 8, 64, 131072, 4096, 0, 1, 2, -1, 1e-6, 1e4, 0, false},
                    {"qwen2", 32, 64, 32768, 0, 0, -1, -1, -1, 1e-6, 1e4, 0, false},
                    {"qwen3", 32, 128, 32768, 0, 0, -1, -1, -1, 1e-6, 1e4, 0, false},
                    {"olmoe", 64, 64, 4096, 0, 8, -1, 50279, 1, 1e-5, 1e4, 0.01, false},
                    {"mixtral", 8, 64, 131072, 0, 2, 1, 2, -1, 1e-5, 1e6, 0.001, true},
                    {"qwen3_moe", 4, 64, 32768, 0, 8, -1, -1, -1, 1e-6, 1e4, 0.001, false}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        mb_arch a;
        json_t *config = json_pack("{s:s, s:i, s:i, s:i, s:i, s:i}", "model_type", expected[i].type,
                                   "hidden_size", 4096, "intermediate_size", 64, "num_hidden_layers", 2,
                                   "num_attention_heads", 64, "vocab_size", 60000);
        if (expected[i].picks > 0) json_object_set_new(config, "num_experts", json_integer(16));
        assert_status_ok(mb_arch_from_json(config, "config.json", &a));
        json_decref(config);
        assert_int_equal(a.kv_heads, expected[i].kv_heads);
        assert_int_equal(a.head_width, expected[i].head_width);
        assert_int_equal(a.max_positions, expected[i].positions);
        assert_int_equal(a.window, expected[i].window);
        assert_int_equal(a.picks, expected[i].picks);
        assert_int_equal(a.bos, expected[i].bos);
        assert_int_equal(a.eos, expected[i].eos);
        assert_int_equal(a.pad, expected[i].pad);
        assert_true(a.rms_eps == expected[i].eps && a.rope_theta == expected[i].theta);
        assert_true(a.router_aux_loss_coef == expected[i].aux && a.normalise_picks == expected[i].normalised);
        assert_true(a.o_bias == false && a.attention_bias == (a.family == MB_FAMILY_QWEN2));
        mb_arch_reset(&a);
    }
}

static void test_bad_figures_are_refused(void **state)
{
    (void)state;
    folders_refuse("llama_tied", "{\"hidden_size\": null}", MB_EFORMAT, "'hidden_size' is missing");
    folders_refuse("llama_tied", "{\"hidden_size\": \"big\"}", MB_EFORMAT, "hidden_size");
    folders_refuse("llama_tied", "{\"num_hidden_layers\": 0}", MB_ERANGE, "num_hidden_layers is 0");
    folders_refuse("llama_tied", "{\"vocab_size\": -5}", MB_ERANGE, "vocab_size is -5");
    folders_refuse("llama_tied", "{\"num_key_value_heads\": 3}", MB_ESHAPE, "num_key_value_heads 3");
    folders_refuse("llama_tied", "{\"head_dim\": 7}", MB_ESHAPE, "odd");
    folders_refuse("olmoe_plain", "{\"num_experts_per_tok\": 9}", MB_ERANGE, "num_experts_per_tok 9");
    folders_refuse("olmoe_plain", "{\"num_attention_heads\": 3, \"num_key_value_heads\": 3}", MB_ESHAPE,
                   "no multiple");
    folders_refuse("select_moe", "{\"num_trash_experts\": 0}", MB_ERANGE, "num_trash_experts");
}

static void test_counts_follow_the_architecture(void **state)
{
    (void)state;
    mb_arch a;
    folders_accept("olmoe_plain", "{}", &a);
    const double layer =
        2 * (2.0 * 32 * 32 + 2.0 * 32 * 16) + 4.0 * 32 * 10 + 2.0 * 32 * 6 + 2 * 6.0 * 32 * 12;
    assert_true(mb_arch_flops(&a, 2, true, 10) == 2 * layer + 2.0 * 32 * 80);
    assert_true(mb_arch_flops(&a, 0, false, 10) == 0);
    mb_arch_reset(&a);
    folders_accept("olmoe_plain",
                   "{\"hidden_size\": 2048, \"intermediate_size\": 1024, \"num_hidden_layers\": 16, "
                   "\"num_attention_heads\": 16, \"num_key_value_heads\": 16, \"vocab_size\": 50304, "
                   "\"num_experts\": 64, \"num_experts_per_tok\": 8}",
                   &a);
    assert_int_equal(mb_arch_parameters(&a), 6919161856LL); /* OLMoE-1B-7B */
    mb_arch_reset(&a);
}

/* ---- weights ---- */

typedef enum folders_fault {
    FAULT_BARE, /* names without "model.", as a model without its head is saved */
    FAULT_HALF, /* bf16 */
    FAULT_NONE,
    FAULT_MISSING,
    FAULT_SHAPE,
    FAULT_NAN,
    FAULT_EXTRA,
    FAULT_FUSED
} folders_fault;

static bool folders_is_expert(const char *name)
{
    return strstr(name, ".mlp.experts.") != NULL;
}

/* Experts of olmoe_plain as transformers 5.x names them in memory: gate and up in one tensor. */
static void folders_write_fused(mb_safetensors *source, mb_safetensors_writer *writer, int pass)
{
    const int64_t gate_up[3] = {6, 24, 32}, down[3] = {6, 32, 12};
    char name[160];
    for (int layer = 0; layer < 2; layer++) {
        float both[6 * 24 * 32], one[6 * 32 * 12];
        for (int e = 0; e < 6; e++)
            for (int part = 0; part < 3; part++) {
                static const char *const parts[3] = {"gate_proj", "up_proj", "down_proj"};
                mb_tensor view;
                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s.weight", layer, e,
                         parts[part]);
                assert_status_ok(mb_safetensors_view(source, name, &view));
                memcpy(part == 2 ? one + e * 384 : both + e * 768 + part * 384, view.data,
                       384 * sizeof(float));
            }
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.gate_up_proj", layer);
        if (pass == 0)
            assert_status_ok(mb_safetensors_writer_declare(writer, name, MB_F32, 3, gate_up));
        else
            assert_status_ok(mb_safetensors_writer_write(writer, name, both, sizeof both));
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.down_proj", layer);
        if (pass == 0)
            assert_status_ok(mb_safetensors_writer_declare(writer, name, MB_F32, 3, down));
        else
            assert_status_ok(mb_safetensors_writer_write(writer, name, one, sizeof one));
    }
}

/* A copy of a golden folder with a fault in tensor `victim`. */
static char *folders_copy(const char *name, folders_fault fault, const char *victim)
{
    char *folder = cases_temporary(), *from = cases_path(name), *config = mb_files_join(from, "config.json");
    char *to = mb_files_join(folder, "config.json");
    mb_safetensors *source = NULL;
    mb_safetensors_writer *writer = NULL;
    const int64_t four[1] = {4};
    const float extra[4] = {0};
    assert_status_ok(mb_files_copy(config, to));
    assert_status_ok(mb_safetensors_open(from, &source));
    assert_status_ok(mb_safetensors_writer_create(folder, "model", 0, &writer));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < mb_safetensors_count(source); i++) {
            const char *tensor = mb_safetensors_name(source, i);
            const bool hit = strcmp(tensor, victim) == 0;
            mb_tensor view;
            assert_status_ok(mb_safetensors_view(source, tensor, &view));
            if ((hit && (fault == FAULT_MISSING || fault == FAULT_BARE)) ||
                (fault == FAULT_FUSED && folders_is_expert(tensor)))
                continue;
            if (hit && fault == FAULT_SHAPE) view.shape[0]--;
            const int64_t n = mb_tensor_count(&view);
            float *values = mb_calloc((size_t)n, sizeof *values);
            memcpy(values, view.data, (size_t)n * sizeof *values);
            if (hit && fault == FAULT_NAN) values[n / 2] = NAN;
            const mb_dtype dtype = fault == FAULT_HALF ? MB_BF16 : MB_F32;
            const bool bare = fault == FAULT_BARE && mb_str_is_prefix(tensor, "model.");
            const char *written = bare ? tensor + strlen("model.") : tensor;
            if (pass == 0)
                assert_status_ok(
                    mb_safetensors_writer_declare(writer, written, dtype, view.dims, view.shape));
            else
                assert_status_ok(mb_safetensors_writer_write_f32(writer, written, values, n));
            mb_free(values);
        }
        if (fault == FAULT_FUSED) folders_write_fused(source, writer, pass);
        if (fault != FAULT_EXTRA) continue;
        if (pass == 0)
            assert_status_ok(mb_safetensors_writer_declare(writer, victim, MB_F32, 1, four));
        else
            assert_status_ok(mb_safetensors_writer_write(writer, victim, extra, sizeof extra));
    }
    assert_status_ok(mb_safetensors_writer_close(&writer));
    mb_safetensors_close(&source);
    mb_free(from);
    mb_free(config);
    mb_free(to);
    return folder;
}

static void folders_check(const char *name, folders_fault fault, const char *victim, mb_status expected)
{
    mb_ops *ops = cases_ops("ref");
    char *folder = folders_copy(name, fault, victim);
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = folder, .train = "none"};
    if (expected == MB_OK) {
        assert_status_ok(mb_lm_open(ops, &options, &lm));
    } else {
        assert_status_says(mb_lm_open(ops, &options, &lm), expected, victim);
        assert_non_null(strstr(mb_status_message(), folder));
    }
    mb_lm_destroy(&lm);
    cases_remove(folder);
    mb_ops_destroy(&ops);
}

static void test_bad_weights_are_named(void **state)
{
    (void)state;
    folders_check("llama_bias", FAULT_NONE, "", MB_OK);
    folders_check("llama_bias", FAULT_MISSING, "model.layers.2.self_attn.k_proj.bias", MB_ENOTFOUND);
    folders_check("llama_bias", FAULT_MISSING, "lm_head.weight", MB_ENOTFOUND);
    folders_check("llama_bias", FAULT_BARE, "lm_head.weight", MB_ENOTFOUND);
    folders_check("llama_bias", FAULT_SHAPE, "model.layers.1.mlp.up_proj.weight", MB_ESHAPE);
    folders_check("llama_bias", FAULT_NAN, "model.layers.0.input_layernorm.weight", MB_EDATA);
    folders_check("olmoe_plain", FAULT_MISSING, "model.layers.1.mlp.experts.5.down_proj.weight",
                  MB_ENOTFOUND);
    folders_check("olmoe_plain", FAULT_NAN, "model.layers.0.mlp.gate.weight", MB_EDATA);
    folders_check("select_moe", FAULT_SHAPE, "model.layers.0.mlp.gate.weight", MB_ESHAPE);
    folders_check("llama_tied", FAULT_EXTRA, "model.layers.0.self_attn.rotary_emb.inv_freq", MB_OK);
    folders_check("llama_tied", FAULT_EXTRA, "lm_head.weight", MB_OK);
    folders_check("llama_tied", FAULT_EXTRA, "something.else", MB_OK);
}

/* The same logits from names without "model.", and the same bytes of bf16 kept as bf16. */
static void test_other_names_and_dtypes_are_read(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 10, 19};
    mb_ops *ops = cases_ops("ref");
    char *bare = folders_copy("llama_tied", FAULT_BARE, ""), *half = folders_copy("mixtral", FAULT_HALF, "");
    mb_lm *a = cases_open(ops, CASES_FOLDER "/llama_tied", "none"), *b = cases_open(ops, bare, "none");
    cases_batch batch;
    cases_random(&batch, 80, offsets, 2, CASES_SEED);
    float *x = cases_logits(a, &batch), *y = cases_logits(b, &batch);
    assert_memory_equal(x, y, (size_t)(batch.batch.head_rows * 80) * sizeof *x);
    mb_free(x);
    mb_free(y);
    mb_lm_destroy(&a);
    mb_lm_destroy(&b);
    const mb_lm_options options = {.path = half, .train = "none", .dtype = MB_BF16};
    assert_status_ok(mb_lm_open(ops, &options, &a));
    mb_safetensors *file = NULL;
    assert_status_ok(mb_safetensors_open(half, &file));
    for (int64_t i = 0; i < mb_safetensors_count(file); i++) {
        const char *name = mb_safetensors_name(file, i);
        const mb_param *param = mb_params_find(mb_lm_params(a), name);
        mb_tensor view;
        assert_status_ok(mb_safetensors_view(file, name, &view));
        const bool is_f32 = view.dims == 1 || strstr(name, ".gate.weight") != NULL;
        assert_int_equal(param->value.dtype, is_f32 ? MB_F32 : MB_BF16);
        const int64_t n = mb_tensor_count(&view);
        float *ours = mb_calloc((size_t)n, sizeof *ours), *theirs = mb_calloc((size_t)n, sizeof *theirs);
        assert_status_ok(mb_params_get_f32(param, ours));
        assert_status_ok(mb_safetensors_read_f32(file, name, view.dims, view.shape, theirs));
        assert_memory_equal(ours, theirs, (size_t)n * sizeof *ours);
        mb_free(ours);
        mb_free(theirs);
    }
    mb_safetensors_close(&file);
    mb_lm_destroy(&a);
    cases_remove(bare);
    cases_remove(half);
    mb_ops_destroy(&ops);
}

static void test_only_pickled_weights_are_refused(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    char *folder = folders_copy("llama_bias", FAULT_BARE, "");
    char *path = mb_files_join(folder, "model.safetensors"),
         *renamed = mb_files_join(folder, "pytorch_model.bin");
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = folder, .train = "none"};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    mb_lm_destroy(&lm);
    assert_int_equal(rename(path, renamed), 0);
    assert_status_says(mb_lm_open(ops, &options, &lm), MB_EUNSUPPORTED, "save_pretrained");
    cases_remove(folder);
    mb_free(path);
    mb_free(renamed);
    mb_ops_destroy(&ops);
}

static void test_fused_experts_are_read(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 10, 19};
    mb_ops *ops = cases_ops("ref");
    char *fused = folders_copy("olmoe_plain", FAULT_FUSED, "");
    mb_lm *a = cases_open(ops, CASES_FOLDER "/olmoe_plain", "none"), *b = cases_open(ops, fused, "none");
    cases_batch batch;
    cases_random(&batch, 80, offsets, 2, CASES_SEED);
    float *x = cases_logits(a, &batch), *y = cases_logits(b, &batch);
    assert_memory_equal(x, y, (size_t)(batch.batch.head_rows * 80) * sizeof *x);
    mb_free(x);
    mb_free(y);
    mb_lm_destroy(&a);
    mb_lm_destroy(&b);
    cases_remove(fused);
    mb_ops_destroy(&ops);
}

static void test_folders_that_are_not_models(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    mb_lm *lm = NULL;
    mb_lm_options options = {.path = "/nowhere/model", .train = "none"};
    assert_status_says(mb_lm_open(ops, &options, &lm), MB_ENOTFOUND, "/nowhere/model");
    char *empty = cases_temporary();
    options.path = empty;
    assert_status_says(mb_lm_open(ops, &options, &lm), MB_ENOTFOUND, "config.json");
    cases_remove(empty);
    mb_ops_destroy(&ops);
}

/* ---- the parameter list ---- */

static void test_trained_space_is_the_list_in_order(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    mb_lm *lm = cases_open(ops, CASES_FOLDER "/olmoe_plain", "*.mlp.gate.weight, model.norm.weight");
    mb_params *params = mb_lm_params(lm);
    int64_t next = 0, seen = 0;
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *p = mb_params_at(params, i);
        assert_ptr_equal(mb_params_find(params, p->name), p);
        assert_null(p->gradient.data);
        if (!p->trained) {
            assert_int_equal(p->flat, -1);
            continue;
        }
        assert_int_equal(p->flat, next);
        assert_ptr_equal(p->value.data, mb_params_trained(params) + next);
        next += mb_tensor_count(&p->value);
        seen++;
    }
    assert_int_equal(seen, 3);
    assert_int_equal(next, mb_params_trained_count(params));
    assert_int_equal(mb_params_lowest_trained(params), 0);
    assert_null(mb_params_find(params, "model.layers.0.mlp.gate"));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_spellings_of_transformers),
        cmocka_unit_test(test_architecture_survives_writing),
        cmocka_unit_test(test_what_changes_the_function_is_refused),
        cmocka_unit_test(test_bad_figures_are_refused),
        cmocka_unit_test(test_counts_follow_the_architecture),
        cmocka_unit_test(test_bad_weights_are_named),
        cmocka_unit_test(test_fused_experts_are_read),
        cmocka_unit_test(test_other_names_and_dtypes_are_read),
        cmocka_unit_test(test_only_pickled_weights_are_refused),
        cmocka_unit_test(test_windows_are_those_of_transformers),
        cmocka_unit_test(test_layers_with_experts),
        cmocka_unit_test(test_absent_fields_are_transformers_defaults),
        cmocka_unit_test(test_folders_that_are_not_models),
        cmocka_unit_test(test_trained_space_is_the_list_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
