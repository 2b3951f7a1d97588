/* Mutated config.json: refused with a message, or a sound architecture that survives writing and reading.
 * MB_FUZZ_COUNT sets how many (3000). */
#include "mb_fuzz.h"

#include "model/arch.h"

static const uint64_t seed = 51;

static const char *const bases[] = {
    "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 172, \"num_hidden_layers\": 5,"
    " \"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"head_dim\": 8, \"vocab_size\": 512,"
    " \"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,"
    " \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0,"
    " \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 512}, \"tie_word_embeddings\": true, "
    "\"torch_dtype\": \"float32\","
    " \"hidden_act\": \"silu\", \"mlp_bias\": false, \"attention_bias\": false, \"attention_dropout\": 0.0,"
    " \"bos_token_id\": 1, \"eos_token_id\": [2, 3], \"pad_token_id\": null, \"initializer_range\": 0.02}",
    "{\"architectures\": [\"OlmoeForCausalLM\"], \"model_type\": \"olmoe\", \"hidden_size\": 64,"
    " \"intermediate_size\": 32, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"vocab_size\": 256,"
    " \"num_key_value_heads\": 4, \"num_experts\": 8, \"num_experts_per_tok\": 2, \"norm_topk_prob\": false,"
    " \"router_aux_loss_coef\": 0.01, \"clip_qkv\": 8.0, \"hidden_act\": \"silu\", \"dtype\": \"bfloat16\","
    " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0}, \"eos_token_id\": 50279}",
    "{\"model_type\": \"select_moe\", \"base_model_type\": \"olmoe\", \"num_trash_experts\": 2,"
    " \"trash_logit_bias\": -1.5, \"hidden_size\": 16, \"intermediate_size\": 8, \"num_hidden_layers\": 1,"
    " \"num_attention_heads\": 2, \"vocab_size\": 32, \"num_experts\": 4, \"num_experts_per_tok\": 2,"
    " \"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4.0, \"beta_fast\": 32.0, \"mscale\": 1.0,"
    " \"mscale_all_dim\": 0.5, \"truncate\": false, \"original_max_position_embeddings\": 16},"
    " \"max_position_embeddings\": 64, \"partial_rotary_factor\": 1.0, \"quantization_config\": null}",
    "{\"model_type\": \"qwen3_moe\", \"hidden_size\": 20, \"intermediate_size\": 11, "
    "\"moe_intermediate_size\": 6,"
    " \"num_hidden_layers\": 5, \"num_attention_heads\": 3, \"num_key_value_heads\": 3, \"head_dim\": 4,"
    " \"vocab_size\": 40, \"num_local_experts\": 7, \"num_experts_per_tok\": 3, \"decoder_sparse_step\": 2,"
    " \"mlp_only_layers\": [3], \"norm_topk_prob\": true, \"use_sliding_window\": true, \"sliding_window\": "
    "5,"
    " \"attention_bias\": true, \"rope_parameters\": {\"rope_type\": \"dynamic\", \"factor\": 2.0,"
    " \"rope_theta\": 1e6}, \"dtype\": \"float16\"}",
    "{\"model_type\": \"qwen2\", \"hidden_size\": 18, \"intermediate_size\": 11, \"num_hidden_layers\": 3,"
    " \"num_attention_heads\": 3, \"num_key_value_heads\": 1, \"vocab_size\": 40, \"use_sliding_window\": "
    "true,"
    " \"sliding_window\": 5, \"max_window_layers\": 1, \"layer_types\": [\"full_attention\","
    " \"sliding_attention\", \"sliding_attention\"], \"tie_word_embeddings\": true}",
    "{\"model_type\": \"mixtral\", \"hidden_size\": 16, \"intermediate_size\": 7, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 4, \"vocab_size\": 40,"
    " \"num_local_experts\": 6, \"sliding_window\": 5, \"router_jitter_noise\": 0.0,"
    " \"max_position_embeddings\": 64, \"original_max_position_embeddings\": 16, \"rope_scaling\":"
    " {\"rope_type\": \"longrope\", \"short_factor\": [1.0, 1.5], \"long_factor\": [2.0, 4.0]}}",
    "{\"model_type\": \"mistral\", \"hidden_size\": 20, \"intermediate_size\": 13, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"head_dim\": 6, \"vocab_size\": 40, \"sliding_window\": null,"
    " \"num_key_value_heads\": 2, \"layer_types\": [\"sliding_attention\", \"sliding_attention\"]}"};

static void check_arch(const mb_fuzz *f, const mb_arch *arch)
{
    const int64_t sizes[] = {arch->width, arch->ffn,      arch->layers,     arch->heads,
                             arch->vocab, arch->kv_heads, arch->head_width, arch->max_positions};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        mb_fuzz_holds(f, sizes[i] >= 1 && sizes[i] <= (int64_t)1 << 30);
    mb_fuzz_holds(f, arch->heads % arch->kv_heads == 0 && arch->head_width % 2 == 0);
    mb_fuzz_holds(f, isfinite(arch->rms_eps) && arch->rms_eps >= 0);
    mb_fuzz_holds(f, isfinite(arch->rope_theta) && arch->rope_theta > 0);
    mb_fuzz_holds(f, isfinite(arch->clip_qkv) && arch->clip_qkv >= 0);
    mb_fuzz_holds(f, isfinite(arch->initializer_range) && arch->initializer_range >= 0);
    mb_fuzz_holds(f, isfinite(arch->trash_logit_bias) && isfinite(arch->router_aux_loss_coef));
    mb_fuzz_holds(f, arch->bos >= -1 && arch->eos >= -1 && arch->pad >= -1);
    mb_fuzz_holds(f, arch->trash >= 0 && arch->experts >= 0 && arch->declared_trash == 0);
    mb_fuzz_holds(f, mb_arch_facts(arch)->is_moe == (arch->experts > 0));
    mb_fuzz_holds(f, (mb_arch_moe_layers(arch) > 0) == (arch->experts > 0));
    mb_fuzz_holds(f, arch->window >= 0 && arch->window <= (int64_t)1 << 30);
    mb_fuzz_holds(f, mb_arch_moe_layers(arch) == arch->layers || mb_arch_dense_ffn(arch) >= 1);
    mb_fuzz_holds(f, arch->experts == 0 || (arch->picks >= 1 && arch->picks <= mb_arch_gates(arch)));
    const mb_rotary *r = &arch->rotary;
    mb_fuzz_holds(f, r->type == MB_ROTARY_DEFAULT || r->type == MB_ROTARY_LONGROPE ||
                         (r->factor >= 1 && r->factor < 1e9));
    mb_fuzz_holds(f,
                  r->type != MB_ROTARY_LLAMA3 || (isfinite(r->high_freq_factor) && r->low_freq_factor > 0 &&
                                                  r->high_freq_factor > r->low_freq_factor));
    mb_fuzz_holds(f, r->type != MB_ROTARY_YARN || (r->attention_factor > 0 && r->attention_factor < 1e6 &&
                                                   r->beta_slow > 0 && isfinite(r->beta_fast)));
    mb_fuzz_holds(f, r->type != MB_ROTARY_LONGROPE || (r->attention_factor > 0 && r->attention_factor < 1e6 &&
                                                       r->original_positions >= 2 && r->long_factor[0] > 0));
    mb_fuzz_holds(f, mb_rotary_limit(r, arch->max_positions) >= arch->max_positions);
    mb_fuzz_holds(f, mb_arch_parameters(arch) > 0 && mb_arch_parameters(arch) < (int64_t)1 << 51);
    mb_fuzz_holds(f, isfinite(mb_arch_flops(arch, arch->layers, true, arch->max_positions)));
}

static void check_again(const mb_fuzz *f, const mb_arch *arch)
{
    json_t *written = NULL;
    mb_arch again = {0}, copy = {0};
    mb_fuzz_holds(f, mb_arch_to_json(arch, &written) == MB_OK);
    mb_fuzz_holds(f, mb_arch_from_json(written, "again", &again) == MB_OK);
    mb_fuzz_holds(f, mb_arch_parameters(&again) == mb_arch_parameters(arch));
    mb_fuzz_holds(f,
                  again.family == arch->family && again.picks == arch->picks && again.trash == arch->trash);
    mb_fuzz_holds(f, again.rope_theta == arch->rope_theta && again.clip_qkv == arch->clip_qkv);
    mb_fuzz_holds(f, memcmp(&again.rotary, &arch->rotary, sizeof again.rotary) == 0);
    mb_fuzz_holds(f,
                  memcmp(again.layer, arch->layer, sizeof again.layer) == 0 && again.window == arch->window);
    mb_fuzz_holds(f, again.dense_ffn == arch->dense_ffn && again.normalise_picks == arch->normalise_picks);
    mb_fuzz_holds(f, again.attention_bias == arch->attention_bias && again.o_bias == arch->o_bias);
    mb_fuzz_holds(f, again.bos == arch->bos && again.eos == arch->eos && again.pad == arch->pad);
    mb_fuzz_holds(f, mb_arch_copy(&again, &copy) == MB_OK && json_equal(copy.config, again.config));
    mb_arch_reset(&copy);
    mb_arch_reset(&again);
    json_decref(written);
}

static void test_config(void **state)
{
    (void)state;
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 3000), first = mb_fuzz_number("MB_FUZZ_FIRST", 0);
    uint64_t parsed = 0, refused = 0;
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed, i);
        const char *base = bases[i % (sizeof bases / sizeof bases[0])];
        mb_str text = mb_fuzz_mutate(&f, base, strlen(base), "0123456789[]{},:\"-e. _");
        json_t *json = NULL;
        mb_arch arch = {0};
        if (mb_json_parse(mb_str_text(&text), text.length, "some/config.json", &json) != MB_OK) {
            mb_fuzz_named(&f, "some/config.json");
        } else if (parsed++, mb_arch_from_json(json, "some/config.json", &arch) != MB_OK) {
            mb_fuzz_named(&f, "some/config.json");
            refused++;
        } else {
            check_arch(&f, &arch);
            check_again(&f, &arch);
        }
        mb_arch_reset(&arch);
        json_decref(json);
        mb_str_destroy(&text);
        mb_fuzz_end(&f);
    }
    printf("# seed %llu: %llu cases, %llu were JSON, %llu of them refused\n", (unsigned long long)seed,
           (unsigned long long)count, (unsigned long long)parsed, (unsigned long long)refused);
    assert_true(count < 100 || (parsed > count / 4 && refused > count / 20 && refused < parsed));
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    mb_fuzz_quiet();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_config)};
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
