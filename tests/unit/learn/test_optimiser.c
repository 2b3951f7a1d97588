/* test_optimiser: twenty clipped AdamW steps against torch.optim.AdamW. */
#include "learn/optimiser.h"

#include "fixture.h"
#include "learn/schedule.h"
#include "store/h5.h"

enum { MATRIX = 60, ALL = 67, STEPS = 20 };

static void *read_golden(mb_h5 *file, const char *path, mb_dtype dtype, int64_t expected)
{
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS], n = 1;
    void *data = NULL;
    mb_test_ok(mb_h5_read_new(file, path, dtype, &dims, shape, &data));
    for (int i = 0; i < dims; i++) n *= shape[i];
    assert_int_equal(n, expected);
    return data;
}

static mb_params *make_params(mb_ops *ops, mb_arch *arch)
{
    const int64_t matrix[] = {12, 5}, vector[] = {7};
    mb_params *params = NULL;
    mb_test_ok(mb_params_create(arch, ops, &params));
    mb_test_ok(mb_params_add(params, "golden.matrix", 0, 2, matrix));
    mb_test_ok(mb_params_add(params, "golden.vector", 0, 1, vector));
    mb_test_ok(mb_params_seal(params, "golden.*"));
    assert_int_equal(mb_params_trained_count(params), ALL);
    return params;
}

static void test_against_torch(void **state)
{
    (void)state;
    mb_h5 *file = NULL;
    mb_comm *comm = NULL;
    mb_ops *ops = NULL;
    mb_transfer *transfer = NULL;
    mb_lanes *lanes = NULL;
    mb_optimiser *optimiser = NULL;
    mb_arch arch = fix_arch(0, 0);
    mb_schedule schedule;
    mb_optimiser_options options = {
        .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1, .max_norm = 1};
    setenv("MB_COMM", "self", 1);
    mb_test_ok(mb_h5_open("tests/golden/losses/losses.h5", &file));
    float *start = read_golden(file, "/adamw/start", MB_F32, ALL),
          *gradients = read_golden(file, "/adamw/gradients", MB_F32, STEPS * ALL);
    float *after = read_golden(file, "/adamw/after", MB_F32, STEPS * ALL);
    double *norms = read_golden(file, "/adamw/norms", MB_F64, STEPS);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_params *params = make_params(ops, &arch);
    memcpy(mb_params_trained(params), start, ALL * sizeof(float));
    mb_test_ok(mb_transfer_create(comm, ops, &transfer));
    mb_test_ok(mb_lanes_create(transfer, ALL, 1, &lanes));
    mb_test_ok(mb_optimiser_create(ops, params, lanes, &options, &optimiser));
    mb_test_ok(mb_schedule_init(&schedule, "linear", 3, 0, STEPS));
    for (int64_t s = 0; s < STEPS; s++) {
        double norm, rate = 1e-2 * mb_schedule_factor(&schedule, s);
        mb_test_ok(mb_optimiser_step(optimiser, gradients + s * ALL, s + 1, rate, &norm));
        mb_test_near(norm, norms[s], 1e-6);
        mb_test_near_all(mb_params_trained(params), after + s * ALL, ALL, 2e-6, 1e-7);
    }
    float bad[ALL] = {0};
    double norm;
    bad[3] = INFINITY;
    memcpy(start, mb_params_trained(params), ALL * sizeof(float));
    mb_test_fails(mb_optimiser_step(optimiser, bad, STEPS + 1, 1, &norm), MB_ENUMERIC, "norm");
    assert_memory_equal(start, mb_params_trained(params), ALL * sizeof(float));
    mb_optimiser_destroy(&optimiser);
    mb_lanes_destroy(&lanes);
    mb_transfer_destroy(&transfer);
    mb_params_destroy(&params);
    mb_ops_destroy(&ops);
    mb_comm_destroy(&comm);
    mb_h5_destroy(&file);
    mb_free(start);
    mb_free(gradients);
    mb_free(after);
    mb_free(norms);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_torch)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
