/* The gate: gradient against finite differences and PyTorch, AdamW and temperature against PyTorch, learning
 * what there is to learn and no more, the same bits on any number of threads, its file. */
#include "mb_test.h"

#include <omp.h>

#include "base/rng.h"
#include "learn/gate_net.h"
#include "store/contenthash.h"
#include "store/h5.h"

static const char golden[] = "tests/golden/gate/gate.h5";
enum { D = 6, H = 19, X = 5, N = 12, STEPS = 5 }; /* of make_gate.py */

static const mb_gate_options usual = {.hidden = 32,
                                      .epochs = 60,
                                      .patience = 10,
                                      .batch = 64,
                                      .learning_rate = 3e-3,
                                      .weight_decay = 0.01,
                                      .seed = 7};

/* ---- against PyTorch ---- */

static void read_floats(mb_h5 *file, const char *name, int64_t n, float *out)
{
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS], count = 1;
    void *data = NULL;
    mb_test_ok(mb_h5_read_new(file, name, MB_F32, &dims, shape, &data));
    for (int d = 0; d < dims; d++) count *= shape[d];
    assert_int_equal(count, n);
    memcpy(out, data, (size_t)n * sizeof *out);
    mb_free(data);
}

static mb_gate *read_gate(mb_h5 *file, const char *folder)
{
    mb_gate *gate = NULL;
    char name[32];
    mb_test_ok(mb_gate_create(D, H, X, &gate));
    const struct {
        const char *name;
        int64_t n;
        float *out;
    } all[] = {{"w1", H * D, gate->w1}, {"b1", H, gate->b1}, {"w2", X * H, gate->w2}, {"b2", X, gate->b2}};
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s/%s", folder, all[i].name);
        read_floats(file, name, all[i].n, all[i].out);
    }
    return gate;
}

typedef struct gradients {
    float w1[H * D], b1[H], w2[X * H], b2[X];
} gradients;

static double run_gradient(const mb_gate *gate, const float *x, const float *target, int64_t rows,
                           gradients *out)
{
    mb_gate_gradient gradient = {.w1 = out->w1, .b1 = out->b1, .w2 = out->w2, .b2 = out->b2};
    mb_test_ok(mb_gate_gradient_run(gate, x, target, rows, &gradient));
    return gradient.loss;
}

static void test_golden(void **state)
{
    (void)state;
    mb_h5 *file = NULL;
    float x[N * D], target[N * X], expected[N * X], logits[N * X], sharp[N * X], says[N * X];
    double value;
    gradients g;
    mb_test_ok(mb_h5_open(golden, &file));
    read_floats(file, "/x", N * D, x);
    read_floats(file, "/target", N * X, target);
    read_floats(file, "/logits", N * X, expected);
    mb_gate *gate = read_gate(file, ""), *by_torch = read_gate(file, "/gradient"),
            *after = read_gate(file, "/after");
    mb_test_ok(mb_gate_forward(gate, x, N, logits));
    mb_test_near_all(logits, expected, N * X, 1e-5, 1e-6);
    const double loss = run_gradient(gate, x, target, N, &g);
    mb_test_ok(mb_h5_read_f64(file, "/loss", &value));
    mb_test_near(loss, value, 1e-6);
    mb_test_near_all(g.w1, by_torch->w1, H * D, 1e-5, 1e-7);
    mb_test_near_all(g.b1, by_torch->b1, H, 1e-5, 1e-7);
    mb_test_near_all(g.w2, by_torch->w2, X * H, 1e-5, 1e-7);
    mb_test_near_all(g.b2, by_torch->b2, X, 1e-5, 1e-7);
    /* temperature */
    read_floats(file, "/sharp", N * X, sharp);
    read_floats(file, "/says", N * X, says);
    const double T = mb_gate_temperature(sharp, says, N, X);
    mb_test_ok(mb_h5_read_f64(file, "/temperature", &value));
    mb_test_near(T, value, 1e-4);
    mb_test_ok(mb_h5_read_f64(file, "/loss_calibrated", &value));
    mb_test_near(mb_gate_loss(sharp, says, N, X, T), value, 1e-9);
    mb_test_near(mb_gate_loss(logits, target, N, X, 1), loss, 1e-9);
    /* AdamW */
    mb_gate_net net, gradient;
    mb_gate_work work;
    mb_test_ok(mb_gate_net_create(D, H, X, &net));
    mb_test_ok(mb_gate_net_create(D, H, X, &gradient));
    mb_test_ok(mb_gate_work_create(&net, N, &work));
    float *moments = mb_calloc((size_t)net.count * 2, sizeof *moments);
    mb_gate_net_load(&net, gate);
    memcpy(work.x, x, sizeof x);
    memcpy(work.target, target, sizeof target);
    for (int step = 1; step <= STEPS; step++) {
        mb_gate_net_forward(&net, N, &work);
        mb_gate_net_backward(&net, N, &work, &gradient);
        mb_gate_net_adamw(&net, &gradient, moments, step, 0.02, 0.1);
    }
    mb_gate_net_store(&net, gate);
    mb_test_near_all(gate->w1, after->w1, H * D, 2e-4, 2e-5);
    mb_test_near_all(gate->b1, after->b1, H, 2e-4, 2e-5);
    mb_test_near_all(gate->w2, after->w2, X * H, 2e-4, 2e-5);
    mb_test_near_all(gate->b2, after->b2, X, 2e-4, 2e-5);
    mb_test_ok(mb_h5_read_f64(file, "/loss_after", &value));
    mb_test_near(run_gradient(gate, x, target, N, &g), value, 1e-4);
    /* the padding is still 0 */
    for (int64_t d = 0; d < D; d++)
        for (int64_t h = H; h < net.hidden_padded; h++)
            assert_float_equal(net.w1[d * net.hidden_padded + h], 0, 0);
    mb_free(moments);
    mb_gate_work_reset(&work);
    mb_gate_net_reset(&net);
    mb_gate_net_reset(&gradient);
    mb_gate_destroy(&gate);
    mb_gate_destroy(&by_torch);
    mb_gate_destroy(&after);
    mb_h5_destroy(&file);
}

/* Central differences of the loss by some weights of each kind. */
static void test_differences(void **state)
{
    (void)state;
    mb_h5 *file = NULL;
    float x[N * D], target[N * X];
    gradients g, other;
    mb_test_ok(mb_h5_open(golden, &file));
    read_floats(file, "/x", N * D, x);
    read_floats(file, "/target", N * X, target);
    mb_gate *gate = read_gate(file, "");
    run_gradient(gate, x, target, N, &g);
    const struct {
        float *value, *gradient;
        int64_t n;
    } all[] = {{gate->w1, g.w1, H * D}, {gate->b1, g.b1, H}, {gate->w2, g.w2, X * H}, {gate->b2, g.b2, X}};
    int checked = 0;
    for (int k = 0; k < 4; k++)
        for (int64_t i = 0; i < all[k].n; i += 3) {
            const float kept = all[k].value[i], h = 1.0f / 128;
            all[k].value[i] = kept + h;
            const double up = run_gradient(gate, x, target, N, &other);
            all[k].value[i] = kept - h;
            const double down = run_gradient(gate, x, target, N, &other);
            all[k].value[i] = kept;
            mb_test_near_abs(all[k].gradient[i], (up - down) / (2 * (double)h), 1e-3, 2e-5);
            checked++;
        }
    print_message("# %d derivatives\n", checked);
    mb_gate_destroy(&gate);
    mb_h5_destroy(&file);
}

/* ---- learning ---- */

enum { WIDTH = 12, EXPERTS = 4, ROWS = 1500 };

typedef struct sample {
    float x[ROWS * WIDTH], target[ROWS * EXPERTS];
    uint8_t right[ROWS * EXPERTS];
    int cluster[ROWS];
    int64_t rows[ROWS];
} sample;

/* Rows of four clusters. An expert is right with probability `own` on its cluster and `other` elsewhere. */
static void make(sample *s, double own, double other, double spread)
{
    for (int64_t r = 0; r < ROWS; r++) {
        int sum = 0;
        s->rows[r] = r;
        s->cluster[r] = (int)mb_rng_below(3, MB_RNG_DATA, 0, (uint64_t)r, EXPERTS);
        for (int64_t d = 0; d < WIDTH; d++)
            s->x[r * WIDTH + d] =
                (float)(mb_rng_normal(3, MB_RNG_DATA, 1, (uint64_t)(s->cluster[r] * WIDTH + d)) +
                        spread * mb_rng_normal(3, MB_RNG_DATA, 2, (uint64_t)(r * WIDTH + d)));
        for (int64_t e = 0; e < EXPERTS; e++) {
            const double p = e == s->cluster[r] ? own : other;
            s->right[r * EXPERTS + e] = mb_rng_uniform(3, MB_RNG_DATA, 4, (uint64_t)(r * EXPERTS + e)) < p;
            sum += s->right[r * EXPERTS + e];
        }
        for (int64_t e = 0; e < EXPERTS; e++)
            s->target[r * EXPERTS + e] = sum > 0 ? (float)s->right[r * EXPERTS + e] / (float)sum : 0;
    }
}

enum { TRAIN = 900, VALIDATION = 200, TEST = ROWS - TRAIN - VALIDATION };

static mb_gate_data data_of(const sample *s)
{
    return (mb_gate_data){.x = s->x,
                          .target = s->target,
                          .rows = ROWS,
                          .width = WIDTH,
                          .experts = EXPERTS,
                          .train = s->rows,
                          .train_count = TRAIN,
                          .validation = s->rows + TRAIN,
                          .validation_count = VALIDATION};
}

/* Shares of the test rows that the gate's first choice, the best single expert and any expert get right. */
static void judge(const sample *s, const mb_gate *gate, double *out_gate, double *out_single,
                  double *out_oracle)
{
    float *logits = mb_calloc((size_t)TEST * EXPERTS, sizeof *logits);
    int64_t picked = 0, any = 0, each[EXPERTS] = {0}, best = 0;
    mb_test_ok(mb_gate_forward(gate, s->x + (ROWS - TEST) * WIDTH, TEST, logits));
    for (int64_t i = 0; i < TEST; i++) {
        const uint8_t *right = s->right + (ROWS - TEST + i) * EXPERTS;
        int top = 0, has = 0;
        for (int e = 0; e < EXPERTS; e++) {
            if (logits[i * EXPERTS + e] > logits[i * EXPERTS + top]) top = e;
            has |= right[e];
            each[e] += right[e];
        }
        picked += right[top];
        any += has;
    }
    for (int e = 1; e < EXPERTS; e++)
        if (each[e] > each[best]) best = e;
    *out_gate = (double)picked / TEST;
    *out_single = (double)each[best] / TEST;
    *out_oracle = (double)any / TEST;
    mb_free(logits);
}

static void test_learns(void **state)
{
    (void)state;
    static sample s;
    static const double own[] = {1, 0.9}, other[] = {0, 0.3};
    for (int k = 0; k < 2; k++) {
        mb_gate *gate = NULL;
        mb_gate_report report;
        double by_gate, single, oracle;
        make(&s, own[k], other[k], 0.5);
        const mb_gate_data data = data_of(&s);
        mb_test_ok(mb_gate_train(&data, &usual, &gate, &report));
        judge(&s, gate, &by_gate, &single, &oracle);
        print_message("# own %.1f other %.1f: gate %.3f, best single %.3f, oracle %.3f; %lld epochs, best "
                      "%lld, loss %.3f to %.3f, T %.3f, ECE %.3f to %.3f\n",
                      own[k], other[k], by_gate, single, oracle, (long long)report.epochs,
                      (long long)report.best_epoch, report.validation_loss[0],
                      report.validation_loss[report.best_epoch], report.temperature, report.ece_before,
                      report.ece_after);
        assert_true(by_gate > own[k] - 0.04 && by_gate > single + 0.3);
        assert_true(report.validation_loss[report.best_epoch] < report.validation_loss[0]);
        for (int64_t e = 1; e <= report.epochs; e++)
            assert_true(report.validation_loss[e] >= report.validation_loss[report.best_epoch]);
        assert_true(report.nll_after <= report.nll_before + 1e-12);
        mb_test_near(report.nll_before, report.validation_loss[report.best_epoch], 1e-12);
        mb_gate_report_reset(&report);
        mb_gate_destroy(&gate);
    }
}

/* Embeddings that say nothing: training stops, and the gate is no worse than whoever is best on average. */
static void test_nothing_to_learn(void **state)
{
    (void)state;
    static sample s;
    make(&s, 0.4, 0.4, 0.5);
    for (int64_t r = 0; r < ROWS; r++) { /* expert 2 is right more often */
        int sum = 0;
        s.right[r * EXPERTS + 2] = mb_rng_uniform(3, MB_RNG_DATA, 9, (uint64_t)r) < 0.7;
        for (int e = 0; e < EXPERTS; e++) sum += s.right[r * EXPERTS + e];
        for (int e = 0; e < EXPERTS; e++)
            s.target[r * EXPERTS + e] = sum > 0 ? (float)s.right[r * EXPERTS + e] / (float)sum : 0;
    }
    mb_gate *gate = NULL;
    mb_gate_report report;
    double by_gate, single, oracle;
    const mb_gate_data data = data_of(&s);
    int64_t with_target = 0;
    for (int64_t r = 0; r < TRAIN; r++) with_target += mb_gate_has_target(s.target + r * EXPERTS, EXPERTS);
    mb_test_ok(mb_gate_train(&data, &usual, &gate, &report));
    judge(&s, gate, &by_gate, &single, &oracle);
    print_message("# gate %.3f, best single %.3f; %lld epochs, best %lld\n", by_gate, single,
                  (long long)report.epochs, (long long)report.best_epoch);
    assert_true(by_gate > single - 0.05);
    assert_int_equal(report.epochs, report.best_epoch + usual.patience);
    assert_int_equal(report.train_rows, with_target);
    assert_true(with_target < TRAIN);
    mb_gate_report_reset(&report);
    mb_gate_destroy(&gate);
    /* Nobody is ever right. */
    memset(s.target, 0, sizeof s.target);
    mb_test_fails(mb_gate_train(&data, &usual, &gate, &report), MB_EDATA, "nothing to learn");
    make(&s, 1, 0, 0.5);
    s.x[5] = NAN;
    mb_test_fails(mb_gate_train(&data, &usual, &gate, &report), MB_ENUMERIC, "row 0");
}

/* The same file from one thread and from three, and back. */
static void test_bits_and_file(void **state)
{
    (void)state;
    static sample s;
    char *folder = mb_test_folder_make(), hash[2][MB_HASH_TEXT];
    mb_gate *gate = NULL, *back = NULL;
    mb_gate_report report;
    mb_gate_options options = usual;
    options.hidden = 300;
    options.epochs = 4;
    options.batch = 200;
    make(&s, 0.9, 0.3, 0.5);
    const mb_gate_data data = data_of(&s);
    for (int k = 0; k < 2; k++) {
        char name[16];
        snprintf(name, sizeof name, "gate%d.h5", k);
        char *path = mb_test_path(folder, name);
        omp_set_num_threads(k == 0 ? 1 : 3);
        mb_gate_destroy(&gate);
        mb_test_ok(mb_gate_train(&data, &options, &gate, &report));
        mb_gate_report_reset(&report);
        for (int e = 0; e < EXPERTS; e++) {
            gate->expert_names[e] = mb_str_format("expert_%d", e);
            assert_non_null(gate->expert_names[e]);
        }
        gate->embedder = mb_strdup("abc");
        mb_test_ok(mb_gate_write(gate, path));
        mb_test_ok(mb_contenthash_path(path, hash[k]));
        mb_gate_destroy(&back);
        mb_test_ok(mb_gate_open(path, &back));
        mb_free(path);
    }
    assert_string_equal(hash[0], hash[1]);
    assert_string_equal(back->expert_names[3], "expert_3");
    assert_string_equal(back->embedder, "abc");
    assert_string_equal(back->questions, "");
    assert_int_equal(back->seed, 7);
    assert_true(back->temperature == gate->temperature);
    float one[EXPERTS], all[ROWS * EXPERTS];
    mb_test_ok(mb_gate_forward(gate, s.x, ROWS, all));
    for (int64_t r = 0; r < ROWS; r += 97) { /* alone, by the file */
        mb_test_ok(mb_gate_forward(back, s.x + r * WIDTH, 1, one));
        assert_memory_equal(one, all + r * EXPERTS, sizeof one);
    }
    char *path = mb_test_path(folder, "gate1.h5"), *bad = mb_test_path(folder, "bad.h5");
    gate->scale[3] = 0;
    mb_test_ok(mb_gate_write(gate, bad));
    mb_gate *refused = NULL;
    mb_test_fails(mb_gate_open(bad, &refused), MB_EFORMAT, "/scale");
    mb_test_fails(mb_gate_open(golden, &refused), MB_EFORMAT, "not a gate");
    s.x[WIDTH + 1] = INFINITY;
    mb_test_fails(mb_gate_forward(gate, s.x, 2, all), MB_ENUMERIC, "row 1");
    mb_free(path);
    mb_free(bad);
    mb_gate_destroy(&gate);
    mb_gate_destroy(&back);
    mb_test_folder_remove(&folder);
}

/* ---- calibration ---- */

/* Targets drawn from softmax(logits / 2.5): that temperature is found, and its error is small. */
static void test_calibration(void **state)
{
    (void)state;
    enum { ROWS_HERE = 20000 };
    float *logits = mb_calloc((size_t)ROWS_HERE * 3, sizeof *logits),
          *target = mb_calloc((size_t)ROWS_HERE * 3, sizeof *target);
    mb_gate_bin bins[MB_GATE_BINS];
    for (int64_t r = 0; r < ROWS_HERE; r++) {
        double p[3], sum = 0, at = mb_rng_uniform(1, MB_RNG_DATA, 1, (uint64_t)r);
        for (int e = 0; e < 3; e++) {
            logits[r * 3 + e] = (float)(4 * mb_rng_normal(1, MB_RNG_DATA, 2, (uint64_t)(r * 3 + e)));
            sum += p[e] = exp(logits[r * 3 + e] / 2.5);
        }
        int picked = 0;
        while (picked < 2 && at > p[picked] / sum) at -= p[picked++] / sum;
        target[r * 3 + picked] = 1;
        if (r % 50 == 0) target[r * 3 + picked] = 0;
    }
    const double T = mb_gate_temperature(logits, target, ROWS_HERE, 3);
    const double before = mb_gate_reliability(logits, target, ROWS_HERE, 3, 1, bins);
    const double after = mb_gate_reliability(logits, target, ROWS_HERE, 3, T, bins);
    print_message("# temperature %.3f, ECE %.4f to %.4f\n", T, before, after);
    mb_test_near(T, 2.5, 0.03);
    assert_true(before > 0.1 && after < 0.02);
    int64_t rows = 0;
    double error = 0;
    for (int i = 0; i < MB_GATE_BINS; i++) {
        rows += bins[i].rows;
        if (bins[i].rows == 0) continue;
        error += (double)bins[i].rows * fabs(bins[i].confidence - bins[i].target);
        assert_true(bins[i].confidence > i / 15.0 - 1e-12 && bins[i].confidence <= (i + 1) / 15.0 + 1e-12);
    }
    assert_int_equal(rows, ROWS_HERE - ROWS_HERE / 50);
    mb_test_near(error / (double)rows, after, 1e-9);
    for (double t = 0.1; t < 15; t *= 1.3)
        assert_true(mb_gate_loss(logits, target, ROWS_HERE, 3, t) >=
                    mb_gate_loss(logits, target, ROWS_HERE, 3, T) - 1e-12);
    memset(target, 0, sizeof(float) * ROWS_HERE * 3);
    assert_true(isnan(mb_gate_loss(logits, target, ROWS_HERE, 3, 1)));
    assert_true(mb_gate_temperature(logits, target, ROWS_HERE, 3) == 1);
    mb_free(logits);
    mb_free(target);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_learns),        cmocka_unit_test(test_nothing_to_learn),
        cmocka_unit_test(test_bits_and_file), cmocka_unit_test(test_calibration)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
