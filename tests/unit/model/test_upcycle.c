/* upcycle: dense models into experts: the function kept in every family, shards, groups and scaling by their
 * formulas, noise, and a verify step that can fail.
 */
#include "upcycle_cases.h"

#include "store/contenthash.h"

/* ---- whole copies ---- */

static void upcycle_check_same(upcycle_case *c, const char *source, const char *type)
{
    const mb_convert_upcycle_report r = upcycle_make(c, source);
    mb_arch dense, moe;
    assert_status_ok(mb_arch_read(source, &dense));
    assert_status_ok(mb_arch_read(c->target, &moe));
    assert_true(r.is_exact && r.is_preserved);
    assert_true(r.max_logit_difference <= 1e-6);
    assert_true(upcycle_difference(c->ops, source, c->target) <= 1e-6);
    assert_int_equal(r.copied, dense.layers * 4 * 3);
    assert_int_equal(r.added, dense.layers);
    assert_int_equal(r.sliced + r.computed + r.averaged, 0);
    assert_int_equal(r.copies, 4);
    assert_string_equal(json_string_value(json_object_get(moe.config, "model_type")), type);
    assert_true(moe.normalise_picks);
    assert_int_equal(moe.head_width, dense.head_width);
    assert_int_equal(moe.window, dense.window);
    assert_true(moe.rms_eps == dense.rms_eps && moe.rope_theta == dense.rope_theta);
    assert_memory_equal(&moe.rotary, &dense.rotary, sizeof dense.rotary);
    mb_arch_reset(&dense);
    mb_arch_reset(&moe);
}

/* Golden weights under the configuration of transformers 5. */
static char *upcycle_five(upcycle_case *c, const char *name)
{
    char *folder = mb_files_join(c->folder, name), *to = mb_files_join(folder, "config.json"),
         *from = mb_str_format("%s/%s_five/config.json", CASES_FOLDER, name),
         *weights = mb_str_format("%s/%s/model.safetensors", CASES_FOLDER, name),
         *there = mb_files_join(folder, "model.safetensors");
    assert_status_ok(mb_files_make_folders(folder));
    assert_status_ok(mb_files_copy(from, to));
    assert_status_ok(mb_files_copy(weights, there));
    mb_free(from);
    mb_free(to);
    mb_free(weights);
    mb_free(there);
    return folder;
}

static void test_the_function_is_kept_in_every_family(void **state)
{
    static const char *const mixtral[] = {"llama_tied", "llama_llama3",   "llama_linear", "llama_dynamic",
                                          "llama_yarn", "llama_longrope", "mistral"};
    static const char *const five[] = {"llama_tied", "llama_yarn", "llama_longrope", "mistral"};
    upcycle_case *c = *state;
    for (size_t i = 0; i < sizeof mixtral / sizeof *mixtral; i++) {
        char *source = cases_path(mixtral[i]);
        upcycle_check_same(c, source, "mixtral");
        mb_free(source);
    }
    for (size_t i = 0; i < sizeof five / sizeof *five; i++) {
        char *source = upcycle_five(c, five[i]);
        upcycle_check_same(c, source, "mixtral");
        mb_free(source);
    }
    static const char *const qwen3[] = {"", "\"attention_bias\": true, \"tie_word_embeddings\": true",
                                        "\"use_sliding_window\": true, \"sliding_window\": 5, "
                                        "\"max_window_layers\": 0"};
    for (size_t i = 0; i < sizeof qwen3 / sizeof *qwen3; i++) {
        char *source = upcycle_dense(c, "qwen3", "qwen3", qwen3[i], i);
        upcycle_check_same(c, source, "qwen3_moe");
        mb_free(source);
    }
}

static void test_experts_are_bytes_of_the_source(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3), name[96];
    (void)upcycle_make(c, source);
    mb_safetensors *a = upcycle_file(source), *b = upcycle_file(c->target);
    static const char *const parts[3][2] = {{"gate_proj", "w1"}, {"up_proj", "w3"}, {"down_proj", "w2"}};
    for (int p = 0; p < 3; p++)
        for (int e = 0; e < 4; e++) {
            snprintf(name, sizeof name, "model.layers.2.mlp.%s.weight", parts[p][0]);
            const mb_tensor x = upcycle_tensor(a, name);
            snprintf(name, sizeof name, "model.layers.2.block_sparse_moe.experts.%d.%s.weight", e,
                     parts[p][1]);
            const mb_tensor y = upcycle_tensor(b, name);
            assert_memory_equal(x.data, y.data, mb_tensor_bytes(&x));
        }
    const mb_tensor gate = upcycle_tensor(b, "model.layers.1.block_sparse_moe.gate.weight");
    double squares = 0;
    for (int i = 0; i < 4 * 32; i++) squares += pow((double)((const float *)gate.data)[i], 2);
    assert_true(fabs(sqrt(squares / 128) - 0.5) < 0.15);
    assert_int_equal(mb_safetensors_count(b), mb_safetensors_count(a) + 3 * (1 + 3 * 3));
    mb_safetensors_close(&a);
    mb_safetensors_close(&b);
    mb_free(source);
}

/* Equal models are equal files, whatever folders they were made from and in. */
static void test_a_result_follows_from_source_and_options_alone(void **state)
{
    upcycle_case *c = *state;
    char *one = upcycle_dense(c, "one", "llama", "", 3), *two = upcycle_dense(c, "two", "llama", "", 3);
    char first[MB_HASH_TEXT], again[MB_HASH_TEXT];
    c->options.noise = 0.1;
    assert_status_ok(mb_convert_upcycle(c->ops, one, c->target, &c->options));
    assert_status_ok(mb_contenthash_path(c->target, first));
    assert_status_ok(mb_files_remove_tree(c->target));
    assert_status_ok(mb_convert_upcycle(c->ops, two, c->target, &c->options));
    assert_status_ok(mb_contenthash_path(c->target, again));
    assert_string_equal(first, again);
    c->options.seed = 43;
    assert_status_ok(mb_convert_upcycle(c->ops, two, c->target, &c->options));
    assert_status_ok(mb_contenthash_path(c->target, again));
    assert_string_not_equal(first, again);
    mb_free(one);
    mb_free(two);
}

static void test_some_layers_stay_dense(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "", 3);
    mb_arch arch;
    c->options.layers = "0,2-2";
    c->options.granularity = 2;
    const mb_convert_upcycle_report r = upcycle_make(c, source);
    assert_true(r.is_preserved);
    assert_int_equal(r.added, 2);
    assert_int_equal(r.sliced + r.computed, 2 * 4 * 3);
    assert_status_ok(mb_arch_read(c->target, &arch));
    assert_true(mb_arch_is_moe(&arch, 0) && !mb_arch_is_moe(&arch, 1) && mb_arch_is_moe(&arch, 2));
    assert_int_equal(arch.dense_ffn, 48);
    assert_int_equal(arch.ffn, 24);
    assert_int_equal(json_array_size(json_object_get(arch.config, "mlp_only_layers")), 1);
    mb_arch_reset(&arch);
    mb_free(source);
}

static void test_written_in_another_dtype(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3), *half = mb_files_join(c->folder, "half");
    mb_lm *lm = cases_open(c->ops, source, "none");
    mb_arch arch;
    assert_status_ok(mb_files_make_folders(half));
    assert_status_ok(mb_lm_write(lm, half, "full", MB_BF16));
    mb_lm_destroy(&lm);
    mb_convert_upcycle_report r = upcycle_make(c, half);
    assert_true(r.is_exact && r.max_logit_difference <= 1e-6 && r.computed == 0);
    c->options.dtype = "f32";
    r = upcycle_make(c, half);
    assert_true(r.is_exact && r.max_logit_difference <= 1e-6 && r.identical == 0);
    c->options.dtype = "bf16";
    r = upcycle_make(c, source);
    assert_true(!r.is_exact && !r.is_preserved && r.max_logit_difference < 0.1);
    assert_status_ok(mb_arch_read(c->target, &arch));
    assert_int_equal(arch.stored_dtype, MB_BF16);
    mb_arch_reset(&arch);
    mb_free(source);
    mb_free(half);
}

/* ---- shards, groups, scaling ---- */

static void test_shards_in_virtual_groups_keep_the_function(void **state)
{
    static const struct {
        const char *type;
        int64_t granularity, experts, picks;
    } cases[] = {{"llama", 2, 8, 4}, {"llama", 4, 8, 4},  {"mistral", 3, 6, 3},
                 {"qwen3", 2, 6, 4}, {"qwen3", 8, 16, 8}, {"llama", 48, 96, 48}};
    upcycle_case *c = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *source = upcycle_dense(c, "dense", cases[i].type, "", i);
        c->options.granularity = cases[i].granularity;
        c->options.experts = cases[i].experts;
        c->options.picks = cases[i].picks;
        const mb_convert_upcycle_report r = upcycle_make(c, source);
        assert_true(r.is_exact && r.max_logit_difference <= 1e-6);
        assert_true(upcycle_difference(c->ops, source, c->target) <= 1e-6);
        assert_int_equal(r.sliced, 3 * cases[i].experts * 2);
        assert_int_equal(r.computed, 3 * cases[i].experts);
        assert_int_equal(r.copies, cases[i].experts / cases[i].granularity);
        mb_free(source);
    }
}

/* Picks of every token and layer are whole groups; without virtual groups they are not. */
static void upcycle_check_groups(upcycle_case *c, int64_t g, bool expect_whole)
{
    mb_lm *lm = cases_open(c->ops, c->target, "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b;
    const mb_lm_want want = {.logits = true};
    const int64_t picks = mb_lm_arch(lm)->picks;
    int64_t broken = 0, tokens = 0, used[16] = {0}, groups = 0;
    cases_random(&b, 60, UPCYCLE_OFFSETS, 3, CASES_SEED);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_int_equal(out.routers, 3);
    for (int64_t l = 0; l < out.routers; l++)
        for (int64_t t = 0; t < b.batch.tokens; t++, tokens++) {
            int64_t members[16] = {0};
            bool whole = true;
            for (int64_t k = 0; k < picks; k++) members[out.router_ids[l][t * picks + k] / g]++;
            for (int i = 0; i < 16; i++) {
                whole = whole && (members[i] == 0 || members[i] == g);
                used[i] += members[i];
            }
            broken += !whole;
        }
    for (int i = 0; i < 16; i++) groups += used[i] > 0;
    assert_true(groups == mb_lm_arch(lm)->experts / g); /* each is picked somewhere */
    if (expect_whole)
        assert_int_equal(broken, 0);
    else
        assert_true(broken > tokens / 2);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
}

static void test_virtual_groups_are_picked_whole(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "", 3);
    c->options.experts = 8;
    c->options.picks = 4;
    c->options.granularity = 2;
    (void)upcycle_make(c, source);
    upcycle_check_groups(c, 2, true);
    c->options.virtual_groups = false;
    const mb_convert_upcycle_report r = upcycle_make(c, source);
    assert_true(!r.is_exact && !r.is_preserved);
    upcycle_check_groups(c, 2, false);
    mb_free(source);
}

/* K / g whole groups, weights that sum to 1, every matrix times s: the dense FFN with gate and up times s and
 * down times s / g. */
static void test_scaling_by_its_formula(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3);
    const float s = cbrtf(4), cubic[3] = {s, s, s / 4}, none[3] = {1, 1, 0.25f};
    char *scaled = upcycle_scaled(c, source, "cubic", cubic),
         *quarter = upcycle_scaled(c, source, "none", none);
    c->options.experts = 8;
    c->options.picks = 4;
    c->options.granularity = 4;
    c->options.scaling = "megatron";
    mb_convert_upcycle_report r = upcycle_make(c, source);
    assert_true(!r.is_exact && !r.is_preserved); /* silu is not homogeneous */
    assert_int_equal(r.computed, 3 * 8 * 3);
    assert_true(upcycle_difference(c->ops, scaled, c->target) <= 1e-6);
    assert_true(upcycle_difference(c->ops, source, c->target) > 1e-3);
    c->options.scaling = "none";
    r = upcycle_make(c, source);
    assert_true(!r.is_exact && r.computed == 0);
    assert_true(upcycle_difference(c->ops, quarter, c->target) <= 1e-6);
    mb_free(source);
    mb_free(scaled);
    mb_free(quarter);
}

/* softmax before top-k, weights not divided by their sum: A = r g^2 / K, exact while all experts are as
 * likely. */
static void test_scaling_without_normalised_picks(void **state)
{
    static const int64_t cases[][3] = {{8, 4, 2}, {12, 4, 4}, {6, 2, 2}}; /* E, K, g */
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "", 3);
    c->options.normalise = false;
    for (int i = 0; i < 3; i++) {
        const double e = (double)cases[i][0], k = (double)cases[i][1], g = (double)cases[i][2], r = e / g;
        mb_convert_upcycle_plan plan;
        mb_arch arch;
        c->options.experts = cases[i][0];
        c->options.picks = cases[i][1];
        c->options.granularity = cases[i][2];
        c->options.router_init = "zero";
        mb_convert_upcycle_report report = upcycle_make(c, source);
        assert_true(!report.is_exact && report.max_logit_difference <= 1e-6);
        assert_true(upcycle_difference(c->ops, source, c->target) <= 1e-6);
        assert_status_ok(mb_arch_read(source, &arch));
        assert_status_ok(mb_convert_upcycle_plan_create(&arch, source, &c->options, &plan));
        assert_true(fabs(plan.factor - r * g * g / k) < 1e-12);
        mb_convert_upcycle_plan_reset(&plan);
        mb_arch_reset(&arch);
        c->options.router_init = "normal";
        report = upcycle_make(c, source);
        assert_true(!report.is_preserved);
    }
    mb_free(source);
}

/* ---- noise ---- */

static void test_noise_is_drawn_by_seed_and_name(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "", 3), *some = mb_files_join(c->folder, "some");
    c->options.noise = 0.25;
    const mb_convert_upcycle_report r = upcycle_make(c, source);
    assert_true(!r.is_exact && !r.is_preserved);
    assert_int_equal(r.computed, 3 * 4 * 3);
    /* Fewer layers, more experts: the same numbers in the tensors that both have. */
    mb_convert_upcycle_options other = c->options;
    other.layers = "1";
    other.experts = 6;
    assert_status_ok(mb_convert_upcycle(c->ops, source, some, &other));
    mb_safetensors *a = upcycle_file(source), *b = upcycle_file(c->target), *d = upcycle_file(some);
    const mb_tensor x = upcycle_tensor(a, "model.layers.1.mlp.up_proj.weight");
    const mb_tensor y = upcycle_tensor(b, "model.layers.1.mlp.experts.0.up_proj.weight");
    const mb_tensor z = upcycle_tensor(b, "model.layers.1.mlp.experts.3.up_proj.weight");
    const mb_tensor w = upcycle_tensor(d, "model.layers.1.mlp.experts.3.up_proj.weight");
    assert_memory_equal(z.data, w.data, mb_tensor_bytes(&z));
    double size = 0, first = 0, second = 0, both = 0;
    for (int i = 0; i < 48 * 32; i++) {
        const double v = ((const float *)x.data)[i], p = ((const float *)y.data)[i] - v,
                     q = ((const float *)z.data)[i] - v;
        size += v * v, first += p * p, second += q * q, both += p * q;
    }
    assert_true(fabs(sqrt(first / size) - 0.25) < 0.02 && fabs(sqrt(second / size) - 0.25) < 0.02);
    assert_true(fabs(both / sqrt(first * second)) < 0.1); /* of each expert its own */
    mb_safetensors_close(&a);
    mb_safetensors_close(&b);
    mb_safetensors_close(&d);
    mb_free(source);
    mb_free(some);
}

/* ---- verify ---- */

/* One element of a tensor of the target is changed. */
static void upcycle_damage(upcycle_case *c, const char *name)
{
    mb_lm *lm = cases_open(c->ops, c->target, name);
    assert_int_equal(mb_params_trained_count(mb_lm_params(lm)) > 0, 1);
    mb_params_trained(mb_lm_params(lm))[5] += 1;
    mb_params_changed(mb_lm_params(lm));
    assert_status_ok(mb_lm_write(lm, c->target, "full", MB_F32));
    mb_lm_destroy(&lm);
}

static void test_verify_finds_what_changed(void **state)
{
    static char *const names[] = {"model.layers.1.block_sparse_moe.experts.3.w2.weight",
                                  "model.layers.0.block_sparse_moe.gate.weight",
                                  "model.layers.2.self_attn.k_proj.weight", "model.embed_tokens.weight"};
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3);
    mb_convert_upcycle_report r;
    for (int g = 1; g <= 2; g++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            c->options.granularity = g;
            (void)upcycle_make(c, source);
            upcycle_damage(c, names[i]);
            assert_status_says(mb_convert_upcycle_verify(c->ops, source, c->target, &c->options, &r),
                               MB_EDATA, names[i]);
        }
    /* Other options than it was made by, another source. */
    (void)upcycle_make(c, source);
    c->options.picks = 4;
    assert_status_says(mb_convert_upcycle_verify(c->ops, source, c->target, &c->options, &r), MB_EDATA,
                       "config.json");
    c->options.picks = 2;
    char *other = upcycle_dense(c, "other", "llama", "", 4);
    assert_status_says(mb_convert_upcycle_verify(c->ops, other, c->target, &c->options, &r), MB_EDATA,
                       "is not what");
    mb_free(other);
    mb_free(source);
}

static void test_verify_by_the_folder_itself(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3), *one = upcycle_dense(c, "one", "llama", "", 4);
    mb_convert_upcycle_report r;
    bool is_upcycled = true;
    c->options.noise = 0.1;
    c->options.granularity = 2;
    c->options.scaling = "megatron";
    c->options.siblings = one;
    (void)upcycle_make(c, source);
    assert_status_says(mb_convert_upcycle_verify_folder(c->ops, source, c->target, NULL, &is_upcycled, &r),
                       MB_EUSAGE, "convert.siblings");
    assert_status_ok(mb_convert_upcycle_verify_folder(c->ops, source, c->target, one, &is_upcycled, &r));
    assert_true(is_upcycled && r.computed == 3 * 4 * 3);
    assert_status_ok(mb_convert_upcycle_verify_folder(c->ops, source, one, NULL, &is_upcycled, &r));
    assert_false(is_upcycled);
    mb_free(source);
    mb_free(one);
}

/* The passes of verify on every backend of this build: the host's memory and a device's. */
static void test_verify_on_every_backend(void **state)
{
    static const char *const backends[] = {"ref", "cpu", "cuda"};
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "\"attention_bias\": true", 3),
         *longrope = cases_path("llama_longrope");
    c->options.granularity = 2;
    assert_status_ok(mb_convert_upcycle(c->ops, source, c->target, &c->options));
    for (int i = 0; i < 3; i++) {
        mb_ops *ops = cases_ops(backends[i]);
        mb_convert_upcycle_report r;
        char *place = mb_files_join(c->folder, backends[i]);
        if (ops != NULL) {
            assert_status_ok(mb_convert_upcycle_verify(ops, source, c->target, &c->options, &r));
            assert_true(r.is_preserved && r.max_logit_difference <= 2e-6);
            assert_status_ok(mb_convert_upcycle(ops, longrope, place, &c->options));
            assert_status_ok(mb_convert_upcycle_verify(ops, longrope, place, &c->options, &r));
            assert_true(r.is_preserved && r.max_logit_difference <= 2e-6);
        }
        mb_free(place);
        mb_ops_destroy(&ops);
    }
    mb_free(source);
    mb_free(longrope);
}

/* Upcycled, then trash experts, then back: what study A does with a dense selector. */
static void test_trash_on_an_upcycled_model(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "", 3), *trash = mb_files_join(c->folder, "trash");
    const mb_convert_trash_options closed = {.trash_init = "closed", .trash_init_std = 0.02, .seed = 1};
    (void)upcycle_make(c, source);
    assert_status_ok(mb_convert_trash(c->target, trash, &closed));
    assert_true(upcycle_difference(c->ops, source, trash) <= 1e-6);
    mb_free(source);
    mb_free(trash);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        CASE(test_the_function_is_kept_in_every_family),
        CASE(test_experts_are_bytes_of_the_source),
        CASE(test_a_result_follows_from_source_and_options_alone),
        CASE(test_some_layers_stay_dense),
        CASE(test_written_in_another_dtype),
        CASE(test_shards_in_virtual_groups_keep_the_function),
        CASE(test_virtual_groups_are_picked_whole),
        CASE(test_scaling_by_its_formula),
        CASE(test_scaling_without_normalised_picks),
        CASE(test_noise_is_drawn_by_seed_and_name),
        CASE(test_verify_finds_what_changed),
        CASE(test_verify_by_the_folder_itself),
        CASE(test_verify_on_every_backend),
        CASE(test_trash_on_an_upcycled_model),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
