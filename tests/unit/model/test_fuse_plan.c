/* test_fuse_plan: bytes of a fused model that is not open are those of the open one, of every kind, dtype and
 * quantisation, with and without a gradient; with members on ranks those of the largest. */
#include "fuse_cases.h"

enum { TOKENS = 240 };

/* The shape of an open model. */
typedef struct shape_case {
    const mb_arch *arch[MB_FUSE_MAX_MEMBERS];
    const char *name[MB_FUSE_MAX_MEMBERS];
    const mb_lora_options *adapter[MB_FUSE_MAX_MEMBERS];
} shape_case;

static mb_fuse_shape shape_of(mb_lm *lm, bool train, shape_case *c)
{
    *c = (shape_case){0};
    for (int64_t m = 0; m < mb_fuse_members(lm); m++) {
        c->arch[m] = mb_lm_arch(mb_fuse_member_lm(lm, m));
        c->name[m] = mb_fuse_member_name(lm, m);
    }
    return (mb_fuse_shape){.kind = mb_fuse_get_kind(lm),
                           .count = mb_fuse_members(lm),
                           .router_hidden = FUSE_HIDDEN,
                           .train = train,
                           .arch = c->arch,
                           .name = c->name,
                           .opt_adapter = c->adapter};
}

static void check_equal(const mb_lm_plan *a, const mb_lm_plan *b)
{
    assert_int_equal(a->weights, b->weights);
    assert_int_equal(a->slots, b->slots);
    assert_int_equal(a->packed, b->packed);
    assert_int_equal(a->trained, b->trained);
    assert_int_equal(a->gradients, b->gradients);
    assert_int_equal(a->activations, b->activations);
    assert_int_equal(a->scratch, b->scratch);
}

static void check_routers(mb_lm *lm, const mb_fuse_plan *plan)
{
    int64_t n = 0;
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++)
        n += mb_tensor_count(&mb_params_at(params, i)->value);
    assert_int_equal(plan->router, n);
    assert_int_equal(plan->tensors, mb_params_count(params));
    assert_true(mb_lm_routers(lm) == 0 ? plan->most_of_block == 0
                                       : plan->most_of_block * mb_lm_routers(lm) >= n);
}

static void check_case(mb_ops *ops, const char *name, const mb_fuse_options *how)
{
    mb_lm *lm = fuse_cases_open_as(ops, name, how);
    shape_case c;
    const mb_fuse_shape shape = shape_of(lm, how->train, &c);
    for (int i = 0; i < 8; i++) {
        mb_lm_plan open;
        mb_fuse_plan plan;
        const mb_lm_plan_options options = {.tokens = TOKENS,
                                            .gradient = i & 1,
                                            .recompute = i & 2,
                                            .has_head = i < 4,
                                            .dtype = how->dtype,
                                            .frozen_bits = how->frozen_bits,
                                            .frozen_group = how->frozen_group};
        assert_status_ok(mb_lm_plan_open(lm, &options, &open));
        assert_status_ok(mb_fuse_plan_get(&shape, &options, &plan));
        check_equal(&open, &plan.bytes);
        check_routers(lm, &plan);
        assert_true(!how->train || plan.bytes.trained == 4 * (size_t)plan.router);
    }
    mb_lm_destroy(&lm);
}

static void test_a_closed_model_takes_what_an_open_one_does(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    static const mb_fuse_kind kinds[] = {MB_FUSE_ENSEMBLE, MB_FUSE_TOKEN, MB_FUSE_LAYER};
    static const char *const names[] = {"llama", "qwen3", "mixtral"};
    assert_status_ok(mb_ops_create("cpu", 1, &ops));
    for (size_t k = 0; k < 3; k++) {
        for (size_t n = 0; n < 3; n++) {
            const bool train = kinds[k] != MB_FUSE_ENSEMBLE;
            check_case(ops, names[n], &(mb_fuse_options){.kind = kinds[k], .train = train});
            check_case(ops, names[n], &(mb_fuse_options){.kind = kinds[k], .dtype = MB_BF16});
            check_case(ops, names[n], &(mb_fuse_options){.kind = kinds[k], .train = train, .dtype = MB_BF16});
        }
        check_case(ops, "llama", &(mb_fuse_options){.kind = kinds[k], .frozen_bits = 8, .frozen_group = 8});
    }
    mb_ops_destroy(&ops);
}

/* A rank holds one member, and every one the router. */
static void test_members_on_ranks(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    shape_case c;
    mb_fuse_plan all, one;
    mb_lm_plan alone;
    assert_status_ok(mb_ops_create("cpu", 1, &ops));
    mb_lm *lm = fuse_cases_open(ops, "llama", MB_FUSE_TOKEN);
    mb_fuse_shape shape = shape_of(lm, false, &c);
    const mb_lm_plan_options options = {.tokens = TOKENS, .has_head = true};
    assert_status_ok(mb_fuse_plan_get(&shape, &options, &all));
    shape.is_spread = true;
    assert_status_ok(mb_fuse_plan_get(&shape, &options, &one));
    assert_status_ok(mb_lm_plan_get(c.arch[0], "none", NULL, &options, &alone));
    const size_t router = one.bytes.weights - alone.weights; /* arrays begin at whole lines */
    assert_in_range(router, 4 * one.router, 4 * one.router + 64 * one.tensors);
    assert_int_equal(all.bytes.weights, 2 * alone.weights + router);
    assert_true(one.bytes.activations < all.bytes.activations);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* The layer level asks for one architecture, also before anything is open. */
static void test_other_architectures_are_named(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    shape_case c;
    mb_fuse_plan plan;
    mb_arch other = {0};
    assert_status_ok(mb_ops_create("cpu", 1, &ops));
    mb_lm *lm = fuse_cases_open(ops, "llama", MB_FUSE_LAYER);
    const mb_fuse_shape shape = shape_of(lm, true, &c);
    assert_status_ok(mb_arch_copy(c.arch[1], &other));
    other.layers -= 1;
    c.arch[1] = &other;
    assert_int_equal(mb_fuse_plan_get(&shape, &(mb_lm_plan_options){.tokens = TOKENS}, &plan), MB_EDATA);
    assert_non_null(strstr(mb_status_message(), "num_hidden_layers"));
    mb_arch_reset(&other);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_closed_model_takes_what_an_open_one_does),
                                       cmocka_unit_test(test_members_on_ranks),
                                       cmocka_unit_test(test_other_architectures_are_named)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
