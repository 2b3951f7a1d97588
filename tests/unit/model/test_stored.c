/* How weights are kept: frozen in bf16, int8, int4; the same model with the weights they mean spelled out in
 * f32. */
#include "model_cases.h"

static const int32_t OFFSETS[] = {0, 9, 10, 27};

static mb_lm *stored_open(mb_ops *ops, const char *path, mb_dtype dtype, int bits, int64_t group)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {
        .path = path, .train = "none", .dtype = dtype, .frozen_bits = bits, .frozen_group = group};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    return lm;
}

/* Every parameter of `from` as f32 into `to`. */
static void stored_copy(mb_lm *from, mb_lm *to)
{
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(to)); i++) {
        mb_param *param = mb_params_at(mb_lm_params(to), i);
        const mb_param *kept = mb_params_find(mb_lm_params(from), param->name);
        float *value = mb_calloc((size_t)mb_tensor_count(&param->value), sizeof *value);
        assert_status_ok(mb_params_get_f32(kept, value));
        assert_status_ok(mb_params_set_f32(param, value));
        mb_free(value);
    }
}

static double stored_difference(mb_lm *a, mb_lm *b)
{
    cases_batch batch;
    const int64_t v = mb_lm_arch(a)->vocab;
    cases_random(&batch, v, OFFSETS, 3, CASES_SEED);
    float *x = cases_logits(a, &batch), *y = cases_logits(b, &batch);
    const double difference = cases_difference(x, y, batch.batch.head_rows * v);
    mb_free(x);
    mb_free(y);
    return difference;
}

/* f32 computing over kept weights = f32 over the values they mean; and not too far from the original. */
static void stored_check(const char *name, const char *backend, mb_dtype dtype, int bits, int64_t group,
                         double far)
{
    mb_ops *ops = cases_ops(backend);
    if (ops == NULL) skip();
    char *path = cases_path(name);
    mb_lm *kept = stored_open(ops, path, dtype, bits, group), *plain = cases_open(ops, path, "none");
    mb_lm_set_dtype(kept, MB_F32);
    const double off = stored_difference(kept, plain);
    stored_copy(kept, plain);
    const double same = stored_difference(kept, plain);
    print_message("# %s %s %s %d bits: %.2g of the original, %.2g of what the weights mean\n", name, backend,
                  mb_dtype_name(dtype), bits, off, same);
    assert_true(same <= 1e-5);
    assert_true(off > 0 && off <= far);
    mb_lm_destroy(&kept);
    mb_lm_destroy(&plain);
    mb_free(path);
    mb_ops_destroy(&ops);
}

static void test_quantised_weights_compute_what_they_mean(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_bias", "olmoe_clip", "mixtral", "qwen2", "mistral"};
    static const char *const backends[] = {"ref", "cpu"};
    for (int b = 0; b < 2; b++)
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            stored_check(names[i], backends[b], MB_F32, 8, 16, 0.1);
            stored_check(names[i], backends[b], MB_F32, 4, 8, 1);
            stored_check(names[i], backends[b], MB_BF16, 8, 0, 0.1);
        }
}

static void test_bf16_weights_compute_what_they_mean(void **state)
{
    (void)state;
    stored_check("llama_tied", "ref", MB_BF16, 0, 0, 0.05);
    stored_check("qwen3_moe", "ref", MB_BF16, 0, 0, 0.1);
    stored_check("llama_tied", "cpu", MB_BF16, 0, 0, 0.05);
    stored_check("qwen3_moe", "cpu", MB_BF16, 0, 0, 0.1);
}

/* An element is at most half a step from what it was; a step is the group's largest / 127.5 (7.5). */
static void test_quantised_values_are_within_half_a_step(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    for (int bits = 4; bits <= 8; bits += 4) {
        mb_lm *kept = stored_open(ops, CASES_FOLDER "/mixtral", MB_F32, bits, 5);
        mb_lm *plain = cases_open(ops, CASES_FOLDER "/mixtral", "none");
        int64_t quantised = 0;
        for (int64_t i = 0; i < mb_params_count(mb_lm_params(kept)); i++) {
            const mb_param *p = mb_params_at(mb_lm_params(kept), i);
            const mb_param *q = mb_params_find(mb_lm_params(plain), p->name);
            const int64_t n = p->value.shape[0], k = p->value.shape[1];
            if (p->weight.bits == 0) {
                const bool in_layer = strstr(p->name, ".layers.") != NULL && p->value.dims == 2;
                assert_true(!in_layer || strstr(p->name, ".gate.weight") != NULL);
                continue;
            }
            quantised++;
            float *value = mb_calloc((size_t)(n * k), sizeof *value);
            assert_status_ok(mb_params_get_f32(p, value));
            const float *exact = mb_tensor_f32(&q->value);
            for (int64_t r = 0; r < n; r++)
                for (int64_t c = 0; c < k; c++) {
                    float most = 0;
                    for (int64_t j = c / 5 * 5; j < k && j < c / 5 * 5 + 5; j++)
                        most = fmaxf(most, fabsf(exact[r * k + j]));
                    const float step = most / ((float)((1 << bits) - 1) / 2);
                    assert_true(fabsf(value[r * k + c] - exact[r * k + c]) <= step * 0.5001f + 1e-12f);
                }
            mb_free(value);
        }
        assert_int_equal(quantised, 2 * (4 + 3 * 6));
        mb_lm_destroy(&kept);
        mb_lm_destroy(&plain);
    }
    mb_ops_destroy(&ops);
}

/* Written in full, what is frozen is what the folder held, however it was kept; what trained is new. */
static void written_check(mb_dtype dtype, int bits)
{
    mb_ops *ops = cases_ops("ref");
    char *folder = cases_temporary();
    mb_lm *lm = NULL, *again = NULL, *plain = NULL;
    const mb_lm_options options = {.path = CASES_FOLDER "/mixtral",
                                   .train = "router",
                                   .dtype = dtype,
                                   .frozen_bits = bits,
                                   .frozen_group = 8};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    mb_params_trained(mb_lm_params(lm))[0] += 1;
    mb_params_changed(mb_lm_params(lm));
    assert_status_ok(mb_lm_write(lm, folder, "full", MB_F32));
    again = cases_open(ops, folder, "none");
    plain = cases_open(ops, CASES_FOLDER "/mixtral", "none");
    int64_t changed = 0;
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(plain)); i++) {
        const mb_param *a = mb_params_at(mb_lm_params(plain), i);
        const mb_param *b = mb_params_find(mb_lm_params(again), a->name);
        const bool is_same = memcmp(a->value.data, b->value.data, mb_tensor_bytes(&a->value)) == 0;
        if (!is_same) assert_non_null(strstr(a->name, ".gate.weight"));
        changed += !is_same;
    }
    assert_int_equal(changed, 1);
    mb_lm_destroy(&lm);
    mb_lm_destroy(&again);
    mb_lm_destroy(&plain);
    cases_remove(folder);
    mb_ops_destroy(&ops);
}

static void test_a_full_write_has_the_originals(void **state)
{
    (void)state;
    written_check(MB_BF16, 0);
    written_check(MB_F32, 8);
    written_check(MB_BF16, 4);
}

/* ---- adapters over them ---- */

static mb_lm *stored_adapted(mb_ops *ops, const char *path, mb_dtype dtype, int bits)
{
    const mb_lora_options lora = {.r = 3, .alpha = 6, .targets = "all-linear", .seed = 4};
    const mb_lm_options options = {.path = path,
                                   .train = "all",
                                   .opt_lora = &lora,
                                   .dtype = dtype,
                                   .frozen_bits = bits,
                                   .frozen_group = 8};
    mb_lm *lm = NULL;
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    float *value = mb_params_trained(mb_lm_params(lm));
    for (int64_t i = 0; i < mb_params_trained_count(mb_lm_params(lm)); i++)
        value[i] += 0.1f * sinf((float)(i * 37 % 101));
    mb_params_changed(mb_lm_params(lm));
    return lm;
}

static float *stored_gradient(mb_lm *lm)
{
    cases_batch b;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    float weight[64];
    const mb_lm_want want = {.gradient = true};
    float *gradient = mb_calloc((size_t)mb_params_trained_count(mb_lm_params(lm)), sizeof *gradient);
    for (int i = 0; i < 64; i++) weight[i] = 0.1f;
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, 3, CASES_SEED);
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_status_ok(mb_lm_backward(pass, weight, NULL, NULL));
    mb_lm_pass_destroy(&pass);
    return gradient;
}

static double stored_norm_difference(const float *a, const float *b, int64_t n)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / size);
}

/* Gradients of an adapter over quantised weights are those over the values they mean; in bf16 about those. */
static void test_adapters_train_over_quantised_weights(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_bias", "mixtral", "qwen3"};
    static const char *const backends[] = {"ref", "cpu"};
    for (int i = 0; i < 6; i++) {
        mb_ops *ops = cases_ops(backends[i % 2]);
        if (ops == NULL) continue;
        char *path = cases_path(names[i / 2]);
        mb_lm *kept = stored_adapted(ops, path, MB_F32, i % 4 < 2 ? 4 : 8);
        mb_lm *plain = stored_adapted(ops, path, MB_F32, 0);
        const int64_t n = mb_params_trained_count(mb_lm_params(kept));
        stored_copy(kept, plain);
        mb_params_changed(mb_lm_params(plain));
        float *a = stored_gradient(kept), *b = stored_gradient(plain);
        const double exact = cases_difference(a, b, n);
        mb_lm_set_dtype(kept, MB_BF16);
        float *c = stored_gradient(kept);
        const double rough = stored_norm_difference(c, b, n);
        print_message("# %s %s: %.2g of the exact gradient, bf16 %.2g\n", names[i / 2], backends[i % 2],
                      exact, rough);
        assert_true(exact <= 1e-5);
        assert_true(rough > 0 && rough <= 0.05);
        mb_free(a);
        mb_free(b);
        mb_free(c);
        mb_lm_destroy(&kept);
        mb_lm_destroy(&plain);
        mb_free(path);
        mb_ops_destroy(&ops);
    }
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantised_weights_compute_what_they_mean),
        cmocka_unit_test(test_bf16_weights_compute_what_they_mean),
        cmocka_unit_test(test_quantised_values_are_within_half_a_step),
        cmocka_unit_test(test_a_full_write_has_the_originals),
        cmocka_unit_test(test_adapters_train_over_quantised_weights),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
