/* test_params_choose: which tensors train, by words, patterns, exclusions and numbers of experts. */
#include "mb_test.h"

#include "model/lm.h"

static mb_arch arch_of(int64_t experts)
{
    return (mb_arch){.family = experts > 0 ? MB_FAMILY_OLMOE : MB_FAMILY_LLAMA,
                     .width = 8,
                     .layers = 2,
                     .heads = 2,
                     .kv_heads = 2,
                     .head_width = 4,
                     .ffn = 8,
                     .vocab = 16,
                     .max_positions = 16,
                     .experts = experts,
                     .layer = {experts > 0 ? MB_LAYER_MOE : 0, experts > 0 ? MB_LAYER_MOE : 0},
                     .picks = experts > 0 ? 2 : 0};
}

/* Tensors of a small MoE of 12 experts that train, those whose name holds `part` alone counted in *out_of. */
static int64_t count(const char *train, const char *part, int64_t *out_of, bool with_lora)
{
    const mb_arch arch = arch_of(12);
    mb_params *params = NULL;
    mb_lora lora = {0};
    const mb_lora_options options = {.r = 2, .alpha = 4, .targets = "q_proj,up_proj"};
    int64_t n = 0;
    *out_of = 0;
    mb_test_ok(mb_params_create(&arch, NULL, &params));
    if (with_lora) mb_test_ok(mb_lora_attach(&lora, &options, &arch, params));
    mb_test_ok(mb_params_choose(params, train));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (!param->trained) continue;
        assert_true(param->flat >= 0);
        n++;
        *out_of += strstr(param->name, part) != NULL;
    }
    mb_lora_reset(&lora);
    mb_params_destroy(&params);
    return n;
}

/* Per layer: 2 norms, 4 of attention, a gate, 36 of experts; and embedding, norm, head. */
static void test_words(void **state)
{
    (void)state;
    static const struct {
        const char *train, *part;
        int64_t all, of;
    } cases[] = {{"none", "", 0, 0},
                 {"all", ".experts.", 2 * 43 + 3, 72},
                 {"router", ".gate.weight", 2, 2},
                 {"experts", ".experts.", 72, 72},
                 {"experts,router", ".gate.weight", 74, 2},
                 {"attention", ".self_attn.", 8, 8},
                 {"all,!attention", ".self_attn.", 2 * 39 + 3, 0},
                 {"all,!attention,*.q_proj.weight", ".self_attn.", 2 * 40 + 3, 2},
                 {"*.layers.1.*,!*norm*", ".layers.0.", 41, 0},
                 {"all,experts=0+3", ".experts.", 2 * (7 + 6) + 3, 12},
                 {"all,experts=11", ".experts.11.", 2 * (7 + 3) + 3, 6},
                 {"all,experts=1", ".experts.1.", 2 * (7 + 3) + 3, 6},
                 {"experts=2,experts", ".experts.2.", 6, 6},
                 {"experts,!*.down_proj.*,experts=5", ".up_proj.", 4, 2},
                 {"router,*.experts.7.*", ".experts.7.", 8, 6}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t of;
        const int64_t n = count(cases[i].train, cases[i].part, &of, false);
        print_message("# %s: %lld tensors, %lld of %s\n", cases[i].train, (long long)n, (long long)of,
                      cases[i].part);
        assert_int_equal(n, cases[i].all);
        assert_int_equal(of, cases[i].of);
    }
}

/* An adapter on q_proj and up_proj of every expert: 2 x (1 + 12) pairs. */
static void test_adapter(void **state)
{
    (void)state;
    int64_t of;
    assert_int_equal(count("lora", ".lora_", &of, true), 52);
    assert_int_equal(of, 52);
    assert_int_equal(count("experts=4", ".experts.4.", &of, true), 8);
    assert_int_equal(of, 4);
    assert_int_equal(count("!*.q_proj.*", ".q_proj.", &of, true), 48);
    assert_int_equal(of, 0);
    assert_int_equal(count("none", ".lora_", &of, true), 0);
}

static mb_status choose(int64_t experts, const char *train, bool with_lora)
{
    const mb_arch arch = arch_of(experts);
    mb_params *params = NULL;
    mb_lora lora = {0};
    const mb_lora_options options = {.r = 2, .alpha = 4, .targets = "q_proj"};
    mb_test_ok(mb_params_create(&arch, NULL, &params));
    if (with_lora) mb_test_ok(mb_lora_attach(&lora, &options, &arch, params));
    const mb_status status = mb_params_choose(params, train);
    mb_lora_reset(&lora);
    mb_params_destroy(&params);
    return status;
}

static void test_refusals(void **state)
{
    (void)state;
    mb_test_fails(choose(4, "*.mlp.gates.weight", false), MB_EUSAGE, "matches no tensor");
    mb_test_fails(choose(4, "all,!*.self_atn.*", false), MB_EUSAGE, "matches no tensor");
    mb_test_fails(choose(0, "router", false), MB_EUSAGE, "'router' names nothing");
    mb_test_fails(choose(0, "all,experts=0", false), MB_EUSAGE, "dense");
    mb_test_fails(choose(4, "all,experts=4", false), MB_EUSAGE,
                  "there is no expert 4; those of this model are 0 .. 3");
    mb_test_fails(choose(4, "all,experts=", false), MB_EUSAGE, "experts=0+3");
    mb_test_fails(choose(4, "all,experts=1+", false), MB_EUSAGE, "experts=0+3");
    mb_test_fails(choose(4, "all,experts=-1", false), MB_EUSAGE, "experts=0+3");
    mb_test_fails(choose(4, "router,experts=1", false), MB_EUSAGE, "and none does");
    mb_test_fails(choose(4, "experts=1", true), MB_EUSAGE, "and none does");
    mb_test_fails(choose(4, "!*.lora_A.*", true), MB_EUSAGE, "train together or not at all");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_words), cmocka_unit_test(test_adapter),
                                       cmocka_unit_test(test_refusals)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
