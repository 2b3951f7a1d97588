/* A model quantised and written as a compressed-tensors folder: what the folder means, how it is opened and
 * what is refused; Gram matrices of calibration; GPTQ of whole models, experts with few tokens, resume. */
#include <omp.h>

#include "model/convert.h"
#include "model/lm_state.h"
#include "model/packed_config.h"
#include "model/packed_io.h"
#include "model/quantise_folder.h"
#include "model/quantise_gram.h"
#include "model_cases.h"

/* ---- 1. small tools ---- */

enum { RECORDS = 40, LENGTH = 16 };

typedef struct data { /* calibration records of random tokens */
    int64_t offsets[RECORDS + 1];
    int32_t ids[RECORDS * LENGTH];
    mb_quantise_records records;
} data;

static void data_make(data *d, int64_t vocab)
{
    uint32_t state = CASES_SEED;
    for (int64_t i = 0; i <= RECORDS; i++) d->offsets[i] = i * LENGTH - (i > 3 ? 5 : 0);
    for (int64_t i = 0; i < RECORDS * LENGTH; i++) {
        state = state * 1664525u + 1013904223u;
        d->ids[i] = (int32_t)((state >> 8) % (uint32_t)vocab);
    }
    d->records = (mb_quantise_records){RECORDS, d->offsets, d->ids};
}

typedef struct made {
    char *root, *target;
    mb_lm *lm; /* after the run */
    mb_quantise_report report;
    int64_t bytes;
} made;

static mb_comm *alone(void)
{
    mb_comm *comm = NULL;
    assert_int_equal(setenv("MB_COMM", "self", 1), 0);
    assert_status_ok(mb_comm_create(NULL, NULL, &comm));
    return comm;
}

static mb_quantise_options options_of(bool by_gptq, int64_t group)
{
    return (mb_quantise_options){.by_gptq = by_gptq,
                                 .gptq = {.group = group, .damping = 0.01},
                                 .expert_tokens = 8,
                                 .chunk_tokens = 100};
}

/* Quantise a golden model into root/model, blocks in root/blocks (which stay). */
static made make(mb_ops *ops, const char *name, const mb_quantise_options *options, char *opt_root)
{
    made m = {.root = opt_root != NULL ? opt_root : cases_temporary()};
    mb_comm *comm = alone();
    char *path = cases_path(name), *blocks = mb_files_join(m.root, "blocks");
    data d;
    m.target = mb_files_join(m.root, "model");
    m.lm = cases_open(ops, path, "none");
    mb_quantise_options o = *options;
    o.gptq.stored = mb_lm_arch(m.lm)->stored_dtype;
    data_make(&d, mb_lm_arch(m.lm)->vocab);
    assert_status_ok(mb_files_make_folders(blocks));
    assert_status_ok(mb_quantise_layers_run(comm, m.lm, &o, &d.records, blocks, &m.report));
    assert_status_ok(mb_quantise_folder_write(m.lm, &o, blocks, path, m.target, &m.bytes));
    mb_free(path);
    mb_free(blocks);
    mb_comm_destroy(&comm);
    return m;
}

static void unmake(made *m)
{
    mb_lm_destroy(&m->lm);
    json_decref(m->report.list);
    mb_free(m->target);
    cases_remove(m->root);
}

/* Logits on the first calibration records. */
static float *logits_of(mb_lm *lm, int64_t *out_n)
{
    static const int32_t offsets[] = {0, 16, 32, 48, 59, 75};
    cases_batch batch;
    data d;
    data_make(&d, mb_lm_arch(lm)->vocab);
    cases_pack(&batch, d.ids, offsets, 5);
    *out_n = batch.batch.head_rows * mb_lm_arch(lm)->vocab;
    return cases_logits(lm, &batch);
}

static double far_from(mb_lm *a, mb_lm *b)
{
    int64_t n;
    float *x = logits_of(a, &n), *y = logits_of(b, &n);
    double sum = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += pow((double)x[i] - (double)y[i], 2);
        size += pow((double)y[i], 2);
    }
    mb_free(x);
    mb_free(y);
    return sqrt(sum / size);
}

static mb_status try_open(mb_ops *ops, const mb_lm_options *options)
{
    mb_lm *lm = NULL;
    const mb_status status = mb_lm_open(ops, options, &lm);
    mb_lm_destroy(&lm);
    return status;
}

/* Every parameter means the same, bit for bit. */
static void assert_same_values(mb_lm *a, mb_lm *b)
{
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(a)); i++) {
        const mb_param *p = mb_params_at(mb_lm_params(a), i), *q = mb_params_find(mb_lm_params(b), p->name);
        const int64_t n = mb_tensor_count(&p->value);
        float *x = mb_calloc((size_t)n, sizeof *x), *y = mb_calloc((size_t)n, sizeof *y);
        assert_non_null(q);
        assert_status_ok(mb_params_get_f32(p, x));
        assert_status_ok(mb_params_get_f32(q, y));
        if (memcmp(x, y, (size_t)n * sizeof *x) != 0) print_error("# %s differs\n", p->name);
        assert_memory_equal(x, y, (size_t)n * sizeof *x);
        mb_free(x);
        mb_free(y);
    }
}

/* ---- 2. the folder ---- */

static void folder_check(mb_ops *ops, const char *name, bool by_gptq, int64_t group)
{
    const mb_quantise_options options = options_of(by_gptq, group);
    made m = make(ops, name, &options, NULL);
    char *path = cases_path(name);
    mb_lm *kept = cases_open(ops, m.target, "none"), *source = cases_open(ops, path, "none");
    int64_t packed = 0;
    assert_same_values(kept, m.lm);
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(kept)); i++) {
        const mb_param *p = mb_params_at(mb_lm_params(kept), i);
        packed += p->is_packed;
        assert_int_equal(p->bits, p->is_packed ? 4 : 0);
        assert_int_equal(p->is_packed, mb_quantise_layers_has(mb_lm_params(kept), p));
        if (p->is_packed) assert_int_equal(p->group, mb_gptq_group(p->value.shape[1], group));
    }
    assert_int_equal(packed, m.report.matrices);
    assert_int_equal(json_array_size(m.report.list), m.report.matrices);
    assert_int_equal(m.report.by_gptq + m.report.scant, by_gptq ? m.report.matrices : 0);
    const double same = far_from(kept, m.lm), off = far_from(kept, source);
    print_message("# %s %s: %lld matrices, %lld by GPTQ, %lld with other groups; logits %.2g of what is in "
                  "memory, %.2g of the original\n",
                  name, mb_ops_name(ops), (long long)m.report.matrices, (long long)m.report.by_gptq,
                  (long long)m.report.other_groups, same, off);
    assert_true(same <= 1e-5 && off > 1e-4 && off < 1);
    mb_lm_destroy(&kept);
    mb_lm_destroy(&source);
    mb_free(path);
    unmake(&m);
}

static void test_folder_means_what_memory_holds(void **state)
{
    static const char *const names[] = {"llama_tied", "mistral",          "qwen2",
                                        "qwen3",      "olmoe_clip",       "mixtral",
                                        "qwen3_moe",  "select_qwen3_moe", "biased_mixtral"};
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) folder_check(ops, names[i], i % 2 == 0, 8);
    folder_check(ops, "llama_bias", true, 128); /* wider than any matrix */
    mb_ops_destroy(&ops);
}

/* A packed model saved in full is the same folder again, whatever dtype the rest is in. */
static void test_full_save_keeps_the_integers(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("cpu");
    if (ops == NULL) skip();
    const mb_quantise_options options = options_of(false, 8);
    made m = make(ops, "llama_tied", &options, NULL);
    mb_lm *kept = cases_open(ops, m.target, "none"), *again;
    char *path = mb_files_join(m.root, "again");
    assert_status_ok(mb_files_make_folders(path));
    assert_status_ok(mb_lm_write(kept, path, "full", MB_F32));
    again = cases_open(ops, path, "none");
    assert_int_equal(mb_lm_arch(again)->packed_bits, 4);
    assert_int_equal(mb_lm_arch(again)->packed_group, 8);
    assert_same_values(kept, again);
    mb_lm_destroy(&again);
    mb_lm_destroy(&kept);
    mb_free(path);
    unmake(&m);
    mb_ops_destroy(&ops);
}

/* ---- 3. GPTQ of a model ---- */

static void test_gptq_stays_nearer_than_rounding(void **state)
{
    static const char *const names[] = {"llama_bias", "qwen2"};
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    for (int i = 0; i < 2; i++) {
        char *path = cases_path(names[i]);
        mb_lm *source = cases_open(ops, path, "none");
        double off[3];
        for (int way = 0; way < 3; way++) {
            mb_quantise_options options = options_of(way > 0, 16);
            options.gptq.act_order = way == 2;
            made m = make(ops, names[i], &options, NULL);
            off[way] = far_from(m.lm, source);
            unmake(&m);
        }
        print_message("# %s %s: logits of the original: rounded %.4f, GPTQ %.4f, in order %.4f\n", names[i],
                      mb_ops_name(ops), off[0], off[1], off[2]);
        assert_true(off[1] < off[0] && off[2] < off[0]);
        mb_lm_destroy(&source);
        mb_free(path);
    }
    mb_ops_destroy(&ops);
}

static void test_experts_with_few_tokens_are_rounded(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("cpu");
    if (ops == NULL) skip();
    mb_quantise_options options = options_of(true, 8);
    options.expert_tokens = 1 << 20;
    made few = make(ops, "mixtral", &options, NULL);
    options.by_gptq = false;
    made rounded = make(ops, "mixtral", &options, NULL);
    mb_params *a = mb_lm_params(few.lm), *b = mb_lm_params(rounded.lm);
    int64_t experts = 0, others = 0;
    for (int64_t i = 0; i < mb_params_count(a); i++) {
        const mb_param *p = mb_params_at(a, i), *q = mb_params_find(b, p->name);
        if (!mb_quantise_layers_has(a, p)) continue;
        const bool same = memcmp(p->value.data, q->value.data, mb_tensor_bytes(&p->value)) == 0;
        if (strstr(p->name, ".experts.") != NULL) assert_true(same);
        experts += strstr(p->name, ".experts.") != NULL;
        others += !same;
    }
    assert_int_equal(few.report.scant, experts);
    assert_true(others > 0 && others <= few.report.by_gptq);
    assert_int_equal(rounded.report.scant, 0);
    unmake(&few);
    unmake(&rounded);
    mb_ops_destroy(&ops);
}

/* Blocks of an earlier run are taken; the file is the same byte for byte. */
static void test_an_interrupted_run_goes_on(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("cpu");
    if (ops == NULL) skip();
    const mb_quantise_options options = options_of(true, 8);
    made first = make(ops, "qwen3_moe", &options, NULL);
    char *path = mb_files_join(first.target, "model.safetensors"),
         *last = mb_str_format("%s/blocks/block-3.safetensors", first.root), *root = mb_strdup(first.root);
    mb_str a = MB_STR_EMPTY, b = MB_STR_EMPTY;
    assert_status_ok(mb_files_read(path, 1 << 28, &a));
    assert_int_equal(remove(last), 0);
    made second = make(ops, "qwen3_moe", &options, root);
    assert_int_equal(first.report.resumed, 0);
    assert_int_equal(second.report.resumed, 3);
    assert_int_equal(second.report.blocks, 5);
    assert_int_equal(second.report.matrices, first.report.matrices);
    assert_status_ok(mb_files_read(path, 1 << 28, &b));
    assert_int_equal(a.length, b.length);
    assert_memory_equal(a.data, b.data, a.length);
    mb_str_destroy(&a);
    mb_str_destroy(&b);
    mb_free(path);
    mb_free(last);
    mb_lm_destroy(&first.lm);
    json_decref(first.report.list);
    mb_free(first.target);
    mb_free(first.root);
    unmake(&second);
    mb_ops_destroy(&ops);
}

/* ---- 4. Gram matrices ---- */

enum { GRAM_K = 24, GRAM_ROWS = 50, GRAM_CHUNKS = 5 };

static void gram_feed(mb_ops *ops, mb_quantise_gram *gram, const mb_projection *one, const float *x,
                      double *most)
{
    mb_buffer *room = cases_room(ops, GRAM_ROWS * GRAM_K);
    mb_tensor rows = mb_tensor_view2(MB_F32, room->data, GRAM_ROWS, GRAM_K);
    const mb_projection other = {0};
    const mb_projection_tap *tap = mb_quantise_gram_tap(gram);
    assert_status_ok(mb_ops_upload(ops, x, room->bytes, room->data));
    assert_status_ok(mb_quantise_gram_begin(gram));
    assert_status_ok(tap->one(tap->context, one, &rows));
    assert_status_ok(tap->one(tap->context, &other, &rows)); /* not ours */
    assert_status_ok(mb_quantise_gram_end(gram, most));
    mb_buffer_destroy(&room);
}

static void test_gram_sums_have_the_same_bits_in_any_order(void **state)
{
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    mb_comm *comm = alone();
    const mb_projection one = {0};
    float x[GRAM_CHUNKS][GRAM_ROWS * GRAM_K];
    uint32_t seed = CASES_SEED;
    double most, expected = 0, worst = 0;
    bool overflow;
    mb_quantise_gram *gram[2] = {NULL, NULL};
    for (int i = 0; i < GRAM_CHUNKS * GRAM_ROWS * GRAM_K; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i / (GRAM_ROWS * GRAM_K)][i % (GRAM_ROWS * GRAM_K)] =
            (float)((double)(seed >> 8) / (1 << 23) - 1) * (float)(1 + i % GRAM_K);
    }
    for (int g = 0; g < 2; g++) {
        int exponent = 0;
        assert_status_ok(mb_quantise_gram_create(ops, &one, NULL, 0, 1, GRAM_K, GRAM_CHUNKS, &gram[g]));
        gram_feed(ops, gram[g], &one, x[0], &most);
        exponent = mb_quantise_gram_exponent(most, GRAM_CHUNKS);
        for (int i = 0; i < GRAM_CHUNKS; i++) {
            const int chunk = g == 0 ? i : (3 * i + 2) % GRAM_CHUNKS;
            double unused;
            gram_feed(ops, gram[g], &one, x[chunk], &unused);
            mb_quantise_gram_add(gram[g], exponent);
        }
        assert_status_ok(mb_quantise_gram_sum(gram[g], comm, &overflow));
        assert_false(overflow);
        assert_int_equal(mb_quantise_gram_rows(gram[g], 0), GRAM_CHUNKS * GRAM_ROWS);
        most = ldexp(1, exponent);
    }
    const float *all = &x[0][0];
    const double *a = mb_quantise_gram_matrix(gram[0], 0), *b = mb_quantise_gram_matrix(gram[1], 0);
    for (int i = 0; i < GRAM_K; i++)
        for (int j = 0; j <= i; j++) {
            expected = 0;
            for (int t = 0; t < GRAM_CHUNKS * GRAM_ROWS; t++)
                expected += (double)all[t * GRAM_K + i] * (double)all[t * GRAM_K + j];
            assert_true(a[i * GRAM_K + j] == b[i * GRAM_K + j]);
            const double size = sqrt(a[i * GRAM_K + i] * a[j * GRAM_K + j]);
            worst = fmax(worst, fabs(a[i * GRAM_K + j] - expected * most) / size);
        }
    print_message("# %s: Gram matrix within %.2g\n", mb_ops_name(ops), worst);
    assert_true(worst <= 1e-6);
    mb_quantise_gram_destroy(&gram[0]);
    mb_quantise_gram_destroy(&gram[1]);
    mb_comm_destroy(&comm);
    mb_ops_destroy(&ops);
}

static void test_gram_says_when_numbers_do_not_fit(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("ref");
    mb_comm *comm = alone();
    const mb_projection one = {0};
    mb_quantise_gram *gram = NULL;
    static float small[GRAM_ROWS * GRAM_K], large[GRAM_ROWS * GRAM_K];
    double most, more;
    bool overflow;
    for (int i = 0; i < GRAM_ROWS * GRAM_K; i++) small[i] = 0.001f, large[i] = 10;
    assert_status_ok(mb_quantise_gram_create(ops, &one, NULL, 0, 1, GRAM_K, 2, &gram));
    gram_feed(ops, gram, &one, small, &most);
    const int exponent = mb_quantise_gram_exponent(most, 2);
    mb_quantise_gram_add(gram, exponent);
    gram_feed(ops, gram, &one, large, &more);
    mb_quantise_gram_add(gram, exponent);
    assert_status_ok(mb_quantise_gram_sum(gram, comm, &overflow));
    assert_true(overflow);
    mb_quantise_gram_reset(gram);
    mb_quantise_gram_add(gram, exponent - 16);
    assert_status_ok(mb_quantise_gram_sum(gram, comm, &overflow));
    assert_false(overflow);
    assert_int_equal(mb_quantise_gram_rows(gram, 0), GRAM_ROWS);
    large[7] = NAN;
    const mb_projection_tap *tap = mb_quantise_gram_tap(gram);
    mb_tensor rows = mb_tensor_view2(MB_F32, large, GRAM_ROWS, GRAM_K);
    assert_status_ok(mb_quantise_gram_begin(gram));
    assert_status_ok(tap->one(tap->context, &one, &rows));
    assert_status_says(mb_quantise_gram_end(gram, &most), MB_ENUMERIC, "NaN or Inf");
    mb_quantise_gram_destroy(&gram);
    mb_comm_destroy(&comm);
    mb_ops_destroy(&ops);
}

/* ---- 5. what such a model cannot do ---- */

static void test_what_a_quantised_model_cannot_do(void **state)
{
    (void)state;
    mb_ops *ops = cases_ops("cpu");
    if (ops == NULL) skip();
    const mb_quantise_options options = options_of(false, 8);
    made m = make(ops, "mixtral", &options, NULL);
    mb_comm *comm = alone();
    char *out = mb_files_join(m.root, "out");
    mb_lm *lm = NULL;
    mb_quantise_report report;
    mb_convert_trash_options trash = {.trash_init = "normal"};
    mb_lm_options o = {.path = m.target, .train = "none", .frozen_bits = 4};
    assert_status_says(try_open(ops, &o), MB_EUSAGE, "quantised already");
    o = (mb_lm_options){.path = m.target, .train = "all"};
    assert_status_says(try_open(ops, &o), MB_EUSAGE, "cannot train");
    assert_status_says(mb_convert_trash(m.target, out, &trash), MB_EUSAGE, "is quantised");
    assert_status_says(mb_convert_merge(ops, m.target, "tests/golden/models/mixtral_adapter", out), MB_EUSAGE,
                       "cannot be merged");
    lm = cases_open(ops, m.target, "none");
    assert_status_says(mb_quantise_layers_run(comm, lm, &options, NULL, out, &report), MB_EUSAGE,
                       "quantised already");
    mb_lm_destroy(&lm);
    o = (mb_lm_options){.path = "tests/golden/models/mixtral", .train = "none", .frozen_bits = 8};
    assert_status_ok(mb_lm_open(ops, &o, &lm));
    assert_status_says(mb_quantise_layers_run(comm, lm, &options, NULL, out, &report), MB_EUSAGE,
                       "model.quantize");
    mb_lm_destroy(&lm);
    /* norms and gates are not quantised, and may train: */
    o = (mb_lm_options){.path = m.target, .train = "router"};
    assert_status_ok(try_open(ops, &o));
    mb_free(out);
    mb_comm_destroy(&comm);
    unmake(&m);
    mb_ops_destroy(&ops);
}

/* An adapter over it: the same logits, and a gradient. */
static void test_an_adapter_trains_over_it(void **state)
{
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    const mb_quantise_options options = options_of(false, 8);
    made m = make(ops, "olmoe_plain", &options, NULL);
    const mb_lora_options lora = {.r = 2, .alpha = 4, .targets = "q_proj,up_proj"};
    const mb_lm_options o = {.path = m.target, .train = "all", .opt_lora = &lora};
    static const int32_t offsets[] = {0, 20};
    mb_lm *lm = NULL;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch batch;
    float weight[19];
    assert_status_ok(mb_lm_open(ops, &o, &lm));
    assert_true(far_from(lm, m.lm) <= 1e-5);
    cases_random(&batch, mb_lm_arch(lm)->vocab, offsets, 1, 3);
    for (int i = 0; i < 19; i++) weight[i] = 1.0f / 19;
    batch.batch.opt_head_weight = weight;
    const int64_t n = mb_params_trained_count(mb_lm_params(lm));
    mb_buffer *gradient = cases_room(ops, n);
    cases_zero(ops, gradient->data, n);
    mb_params_bind_gradient(mb_lm_params(lm), gradient->data);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &batch.batch, &(mb_lm_want){.gradient = true}, &out));
    assert_status_ok(mb_lm_backward(pass, NULL, NULL, NULL));
    float *values = cases_read(ops, gradient->data, n);
    double size = 0;
    for (int64_t i = 0; i < n; i++) size += fabs((double)values[i]);
    assert_true(size > 0 && isfinite(size));
    mb_free(values);
    mb_lm_pass_destroy(&pass);
    mb_buffer_destroy(&gradient);
    mb_lm_destroy(&lm);
    unmake(&m);
    mb_ops_destroy(&ops);
}

/* ---- 6. config.json ---- */

#define WEIGHTS(more)                                                                                        \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", \"config_groups\": "         \
    "{\"group_0\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"type\": \"int\", "           \
    "\"symmetric\": true, \"strategy\": \"group\", \"group_size\": 32" more "}}}}"

static void config_check(const char *quantised, mb_status expected, const char *says, int64_t group)
{
    json_t *config = json_pack("{s:o}", "quantization_config", json_loads(quantised, 0, NULL));
    int bits = -1;
    int64_t found = -1;
    assert_non_null(config);
    if (expected == MB_OK) {
        assert_status_ok(mb_packed_config_read(config, "config.json", &bits, &found));
        assert_int_equal(bits, 4);
        assert_int_equal(found, group);
    } else
        assert_status_says(mb_packed_config_read(config, "config.json", &bits, &found), expected, says);
    json_decref(config);
}

static void test_descriptions_that_are_read_and_refused(void **state)
{
    (void)state;
    config_check(WEIGHTS(""), MB_OK, "", 32);
    config_check(WEIGHTS(", \"actorder\": \"static\""), MB_OK, "", 32);
    config_check(WEIGHTS(", \"actorder\": \"weight\", \"dynamic\": false"), MB_OK, "", 32);
    config_check(WEIGHTS(", \"strategy\": \"channel\""), MB_OK, "", 0);
    config_check("{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "
                 "\"config_groups\": {\"W4A16\": [\"Linear\"]}}",
                 MB_OK, "", 128);
    config_check(WEIGHTS(", \"actorder\": \"group\""), MB_EUNSUPPORTED, "actorder 'group'", 0);
    config_check(WEIGHTS(", \"actorder\": true"), MB_EUNSUPPORTED, "not supported", 0);
    config_check(WEIGHTS(", \"symmetric\": false"), MB_EUNSUPPORTED, "zero points", 0);
    config_check(WEIGHTS(", \"num_bits\": 8"), MB_EUNSUPPORTED, "8 bits", 0);
    config_check(WEIGHTS(", \"type\": \"float\""), MB_EUNSUPPORTED, "type 'float'", 0);
    config_check("{\"quant_method\": \"gptq\", \"bits\": 4}", MB_EUNSUPPORTED, "quant_method 'gptq'", 0);
    config_check("{\"quant_method\": \"compressed-tensors\", \"format\": \"naive-quantized\"}",
                 MB_EUNSUPPORTED, "format 'naive-quantized'", 0);
    config_check("{\"quant_method\": \"compressed-tensors\", \"kv_cache_scheme\": {}, \"config_groups\": {}}",
                 MB_EUNSUPPORTED, "kv_cache_scheme", 0);
    config_check("{\"quant_method\": \"compressed-tensors\", \"config_groups\": {}}", MB_EFORMAT, "empty", 0);
}

/* ---- 7. damaged folders ---- */

/* Rewrite the weights with one tensor left out, or changed by `change`. */
static void damage(const char *folder, const char *name, const char *change)
{
    mb_safetensors *file = NULL;
    mb_safetensors_writer *writer = NULL;
    char *aside = mb_str_format("%s.aside", folder), *to = mb_files_join(folder, "model.safetensors"),
         *from = mb_files_join(aside, "model.safetensors");
    mb_tensor t;
    assert_status_ok(mb_files_make_folders(aside));
    assert_status_ok(mb_safetensors_open(folder, &file));
    assert_status_ok(mb_safetensors_writer_create(aside, "model", 0, &writer));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < mb_safetensors_count(file); i++) {
            const char *own = mb_safetensors_name(file, i);
            const bool is_it = strcmp(own, name) == 0;
            if (is_it && strcmp(change, "missing") == 0) continue;
            assert_status_ok(mb_safetensors_view(file, own, &t));
            if (pass == 0) {
                if (is_it && strcmp(change, "shape") == 0) t.shape[0] /= 2;
                assert_status_ok(mb_safetensors_writer_declare(writer, own, t.dtype, t.dims, t.shape));
                continue;
            }
            if (is_it && strcmp(change, "shape") == 0) t.shape[0] /= 2;
            const size_t n = mb_tensor_bytes(&t);
            char *bytes = mb_calloc(n, 1);
            memcpy(bytes, t.data, n);
            if (is_it && strcmp(change, "inf") == 0) memcpy(bytes, &(float){INFINITY}, sizeof(float));
            assert_status_ok(mb_safetensors_writer_write(writer, own, bytes, n));
            mb_free(bytes);
        }
    assert_status_ok(mb_safetensors_writer_close(&writer));
    mb_safetensors_close(&file);
    assert_status_ok(mb_files_copy(from, to));
    mb_free(aside);
    mb_free(to);
    mb_free(from);
}

static void test_damaged_folders_are_refused(void **state)
{
    (void)state;
#define MODULE "model.layers.1.mlp.up_proj.weight"
    static const struct {
        const char *name, *change, *says;
        mb_status status;
    } cases[] = {{MODULE "_packed", "missing", "no tensor " MODULE, MB_ENOTFOUND},
                 {MODULE "_scale", "missing", MODULE "_scale is missing", MB_ENOTFOUND},
                 {MODULE "_shape", "missing", MODULE "_shape is missing", MB_ENOTFOUND},
                 {MODULE "_scale", "inf", MODULE "_scale holds NaN or Inf at element 0", MB_EDATA},
                 {MODULE "_packed", "shape", MODULE "_packed is", MB_ESHAPE},
                 {MODULE "_scale", "shape", MODULE "_scale is", MB_ESHAPE},
                 {MODULE "_shape", "shape", MODULE "_shape says", MB_ESHAPE}};
#undef MODULE
    mb_ops *ops = cases_ops("ref");
    const mb_quantise_options options = options_of(false, 8);
    made m = make(ops, "llama_tied", &options, NULL);
    const mb_lm_options o = {.path = m.target, .train = "none"};
    char *file = mb_files_join(m.target, "model.safetensors"), *whole = mb_files_join(m.root, "whole");
    assert_status_ok(mb_files_copy(file, whole));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        damage(m.target, cases[i].name, cases[i].change);
        assert_status_says(try_open(ops, &o), cases[i].status, cases[i].says);
        assert_status_ok(mb_files_copy(whole, file));
    }
    assert_status_ok(try_open(ops, &o));
    mb_free(file);
    mb_free(whole);
    unmake(&m);
    mb_ops_destroy(&ops);
}

#define BACKEND_TEST(test)                                                                                   \
    {#test " ref", test, NULL, NULL, "ref"}, {#test " cpu", test, NULL, NULL, "cpu"},                        \
    {                                                                                                        \
#test " cuda", test, NULL, NULL, "cuda"                                                              \
    }

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    omp_set_num_threads(1);
    const struct CMUnitTest tests[] = {BACKEND_TEST(test_folder_means_what_memory_holds),
                                       cmocka_unit_test(test_full_save_keeps_the_integers),
                                       BACKEND_TEST(test_gptq_stays_nearer_than_rounding),
                                       cmocka_unit_test(test_experts_with_few_tokens_are_rounded),
                                       cmocka_unit_test(test_an_interrupted_run_goes_on),
                                       BACKEND_TEST(test_gram_sums_have_the_same_bits_in_any_order),
                                       cmocka_unit_test(test_gram_says_when_numbers_do_not_fit),
                                       cmocka_unit_test(test_what_a_quantised_model_cannot_do),
                                       BACKEND_TEST(test_an_adapter_trains_over_it),
                                       cmocka_unit_test(test_descriptions_that_are_read_and_refused),
                                       cmocka_unit_test(test_damaged_folders_are_refused)};
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
