/* Encoders against transformers and sentence-transformers (tests/golden/encoders), and against themselves. */
#include "mb_test.h"

#include "model/encoder.h"
#include "store/safetensors.h"

#define FOLDER "tests/golden/encoders"
#define SEED   20260101

static const char *const backends[] = {"ref", "cpu"};
static const char *const names[] = {"bert_mean", "bert_plain", "xlmr_dense", "mgte", "gte_v15", "gte_tf5"};
enum { NAMES = sizeof names / sizeof *names, ROOM = 64 };

typedef struct golden {
    char *folder;
    int32_t ids[ROOM], offsets[ROOM];
    mb_encoder_batch batch;
    float *hidden, *pooled;               /* pooled: NULL without */
    double bf16_error, bf16_pooled_error; /* of transformers' own bf16 */
    int64_t hidden_count, pooled_width;
} golden;

static float *read_floats(const mb_safetensors *file, const char *name, int64_t *out_count,
                          int64_t *out_width)
{
    mb_tensor view;
    mb_test_ok(mb_safetensors_view(file, name, &view));
    *out_count = mb_tensor_count(&view);
    *out_width = view.shape[1];
    float *values = mb_calloc((size_t)*out_count, sizeof *values);
    assert_non_null(values);
    memcpy(values, view.data, (size_t)*out_count * sizeof *values);
    return values;
}

static double read_number(const mb_safetensors *file, const char *name)
{
    int64_t n, width;
    float *value = read_floats(file, name, &n, &width);
    const double number = value[0];
    mb_free(value);
    return number;
}

static void golden_open(golden *g, const char *name)
{
    mb_safetensors *file = NULL;
    mb_tensor ids, offsets;
    int64_t n, width;
    *g = (golden){.folder = mb_test_path(FOLDER, name)};
    char *path = mb_test_path(g->folder, "expected.safetensors");
    mb_test_ok(mb_safetensors_open(path, &file));
    mb_test_ok(mb_safetensors_view(file, "ids", &ids));
    mb_test_ok(mb_safetensors_view(file, "offsets", &offsets));
    assert_true(ids.shape[0] <= ROOM && offsets.shape[0] <= ROOM);
    memcpy(g->ids, ids.data, mb_tensor_bytes(&ids));
    memcpy(g->offsets, offsets.data, mb_tensor_bytes(&offsets));
    g->batch = (mb_encoder_batch){
        .tokens = ids.shape[0], .segments = offsets.shape[0] - 1, .ids = g->ids, .offsets = g->offsets};
    g->hidden = read_floats(file, "hidden", &g->hidden_count, &width);
    g->bf16_error = read_number(file, "bf16_error");
    if (mb_safetensors_has(file, "pooled")) {
        g->pooled = read_floats(file, "pooled", &n, &g->pooled_width);
        g->bf16_pooled_error = read_number(file, "bf16_pooled_error");
    }
    mb_safetensors_close(&file);
    mb_free(path);
}

static void golden_close(golden *g)
{
    mb_free(g->folder);
    mb_free(g->hidden);
    mb_free(g->pooled);
}

static mb_encoder *open_encoder(const char *backend, const char *folder, mb_dtype dtype, mb_ops **out_ops)
{
    mb_encoder *encoder = NULL;
    if (mb_ops_create(backend, 2, out_ops) != MB_OK) { /* a build without a matrix library */
        print_message("# %s: %s\n", backend, mb_status_message());
        mb_status_reset();
        mb_test_ok(mb_ops_create("ref", 2, out_ops));
    }
    mb_test_ok(mb_encoder_open(*out_ops, folder, dtype, &encoder));
    return encoder;
}

static float *floats(int64_t n)
{
    float *values = mb_calloc((size_t)n, sizeof *values);
    assert_non_null(values);
    return values;
}

/* Largest difference over the largest value. */
static double difference(const float *a, const float *b, int64_t n)
{
    double worst = 0, most = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(a[i])) return INFINITY;
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        most = fmax(most, fabs((double)b[i]));
    }
    return worst / most;
}

static void compare_golden(const char *backend, const char *name, mb_dtype dtype)
{
    golden g;
    mb_ops *ops = NULL;
    golden_open(&g, name);
    mb_encoder *e = open_encoder(backend, g.folder, dtype, &ops);
    float *hidden = floats(g.hidden_count);
    mb_test_ok(mb_encoder_run(e, &g.batch, 0, hidden, NULL));
    const double off = difference(hidden, g.hidden, g.hidden_count);
    const double allowed = dtype == MB_F32 ? 1e-4 : 1.5 * g.bf16_error;
    print_message("# %s %s %s: hidden state differs by %.2e (transformers in bf16 by %.2e)\n", backend, name,
                  mb_dtype_name(dtype), off, g.bf16_error);
    assert_true(off <= allowed);
    if (g.pooled != NULL) {
        const int64_t n = g.batch.segments * g.pooled_width;
        float *pooled = floats(n), *alone = floats(n);
        mb_test_ok(mb_encoder_run(e, &g.batch, 0, hidden, pooled));
        mb_test_ok(mb_encoder_run(e, &g.batch, 0, NULL, alone));
        assert_true(difference(pooled, g.pooled, n) <= (dtype == MB_F32 ? 1e-4 : 1.5 * g.bf16_pooled_error));
        assert_true(difference(alone, pooled, n) <= 1e-6);
        mb_free(pooled);
        mb_free(alone);
    }
    mb_free(hidden);
    mb_encoder_destroy(&e);
    mb_ops_destroy(&ops);
    golden_close(&g);
}

static void test_golden_f32(void **state)
{
    (void)state;
    for (size_t b = 0; b < 2; b++)
        for (int i = 0; i < NAMES; i++) compare_golden(backends[b], names[i], MB_F32);
}

/* As near to f32 as transformers' bf16 is. */
static void test_golden_bf16(void **state)
{
    (void)state;
    for (size_t b = 0; b < 2; b++)
        for (int i = 0; i < NAMES; i++) compare_golden(backends[b], names[i], MB_BF16);
}

static void test_packed_is_single(void **state)
{
    (void)state;
    for (int i = 0; i < NAMES; i++) {
        golden g;
        mb_ops *ops = NULL;
        int64_t width = 0;
        golden_open(&g, names[i]);
        mb_encoder *e = open_encoder("cpu", g.folder, MB_F32, &ops);
        mb_test_ok(
            mb_encoder_pooling_width(mb_encoder_get_pooling(e), mb_encoder_get_config(e)->width, &width));
        float *all = floats(g.batch.segments * width), *one = floats(width);
        mb_test_ok(mb_encoder_run(e, &g.batch, 0, NULL, all));
        for (int64_t s = 0; s < g.batch.segments; s++) {
            const int32_t offsets[2] = {0, g.offsets[s + 1] - g.offsets[s]};
            const mb_encoder_batch single = {
                .tokens = offsets[1], .segments = 1, .ids = g.ids + g.offsets[s], .offsets = offsets};
            mb_test_ok(mb_encoder_run(e, &single, 0, NULL, one));
            if (mb_ops_is_row_stable(ops))
                assert_memory_equal(one, all + s * width, (size_t)width * sizeof *one);
            else
                mb_test_near_all(one, all + s * width, width, 1e-5, 1e-6);
        }
        mb_free(all);
        mb_free(one);
        mb_encoder_destroy(&e);
        mb_ops_destroy(&ops);
        golden_close(&g);
    }
}

/* ---- pooling by hand ---- */

static void test_pooling_by_hand(void **state)
{
    (void)state;
    const float hidden[] = {1, 5, 3, -4, 8, 2, 7, 7};
    const int32_t offsets[] = {0, 3, 4};
    const struct {
        const char *name;
        float expected[4];
    } cases[] = {{"cls", {1, 5, 7, 7}},
                 {"lasttoken", {8, 2, 7, 7}},
                 {"max", {8, 5, 7, 7}},
                 {"mean", {4, 1, 7, 7}},
                 {"mean_sqrt_len_tokens", {6.92820323f, 1.73205081f, 7, 7}},
                 {"weightedmean", {31.0f / 6, 0.5f, 7, 7}}};
    mb_encoder_pooling pooling = {0};
    mb_ops *ops = NULL;
    float out[8];
    char text[64];
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_test_ok(mb_encoder_pooling_choose(&pooling, cases[i].name));
        mb_test_ok(mb_encoder_pooling_run(&pooling, ops, hidden, 2, offsets, 2, 0, out));
        mb_test_near_all(out, cases[i].expected, 4, 1e-6, 0);
        assert_string_equal(mb_encoder_pooling_describe(&pooling, text, sizeof text), cases[i].name);
    }
    mb_test_ok(mb_encoder_pooling_choose(&pooling, "mean+cls"));
    pooling.normalise = true;
    mb_test_ok(mb_encoder_pooling_run(&pooling, ops, hidden, 2, offsets, 2, 3, out));
    const double length = sqrt(4 * 4 + 1 + 1);
    mb_test_near(out[0], 4 / length, 1e-6);
    mb_test_near(out[2], 1 / length, 1e-6);
    mb_test_fails(mb_encoder_pooling_run(&pooling, ops, hidden, 2, offsets, 2, 5, out), MB_EUSAGE,
                  "have 4 numbers");
    mb_test_fails(mb_encoder_pooling_choose(&pooling, "mean+middle"), MB_EUSAGE, "weightedmean");
    mb_ops_destroy(&ops);
}

static void test_folder_pooling(void **state)
{
    (void)state;
    mb_encoder_pooling p = {0};
    mb_test_ok(mb_encoder_pooling_read(FOLDER "/bert_mean", &p));
    assert_true(p.mode_count == 1 && p.modes[0] == MB_ENCODER_MEAN && p.normalise && !p.is_default);
    assert_int_equal(p.max_length, 20);
    mb_encoder_pooling_reset(&p);
    mb_test_ok(mb_encoder_pooling_read(FOLDER "/bert_plain", &p));
    assert_true(p.mode_count == 1 && p.modes[0] == MB_ENCODER_MEAN && !p.normalise && p.is_default);
    mb_encoder_pooling_reset(&p);
    mb_test_ok(mb_encoder_pooling_read(FOLDER "/xlmr_dense", &p));
    assert_true(p.mode_count == 2 && p.dense_count == 1 && p.dense[0].is_tanh);
    mb_encoder_pooling_reset(&p);
}

/* ---- what is refused ---- */

static mb_status read_config(const char *text)
{
    json_t *json = NULL;
    mb_encoder_config config;
    mb_test_ok(mb_json_parse(text, strlen(text), "config.json", &json));
    mb_status status = mb_encoder_config_from_json(json, "config.json", &config);
    json_decref(json);
    return status;
}

#define SHAPE                                                                                                \
    "\"hidden_size\": 48, \"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"intermediate_size\": 8, "  \
    "\"vocab_size\": 9, \"max_position_embeddings\": 16"

static void test_refused_configs(void **state)
{
    (void)state;
    const struct {
        const char *text, *says;
        mb_status status;
    } cases[] = {
        {"{\"model_type\": \"mpnet\", " SHAPE "}", "mpnet", MB_EUNSUPPORTED},
        {"{\"model_type\": \"bert\", \"hidden_act\": \"relu\", " SHAPE "}", "relu", MB_EUNSUPPORTED},
        {"{\"model_type\": \"bert\", \"is_decoder\": true, " SHAPE "}", "is_decoder", MB_EUNSUPPORTED},
        {"{\"model_type\": \"bert\", \"position_embedding_type\": \"relative_key\", " SHAPE "}",
         "relative_key", MB_EUNSUPPORTED},
        {"{\"model_type\": \"new\", \"layer_norm_type\": \"rms_norm\", " SHAPE "}", "rms_norm",
         MB_EUNSUPPORTED},
        {"{\"model_type\": \"new\", \"logn_attention_scale\": true, " SHAPE "}", "logn", MB_EUNSUPPORTED},
        {"{\"model_type\": \"new\", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, " SHAPE "}",
         "linear", MB_EUNSUPPORTED},
        {"{\"model_type\": \"new\", \"rope_scaling\": {\"type\": \"ntk\", \"factor\": 2, \"mixed_b\": "
         "0.75}, " SHAPE "}",
         "mixed_b", MB_EUNSUPPORTED},
        {"{\"model_type\": \"gte\", \"rope_parameters\": {\"rope_type\": \"yarn\"}, " SHAPE "}", "yarn",
         MB_EUNSUPPORTED},
        {"{\"model_type\": \"roberta\", \"pad_token_id\": 15, " SHAPE "}", "pad_token_id", MB_ERANGE},
        {"{\"model_type\": \"bert\"}", "hidden_size", MB_EFORMAT}};
    for (size_t i = 0; i + 1 < sizeof cases / sizeof *cases; i++)
        mb_test_fails(read_config(cases[i].text), cases[i].status, cases[i].says);
    assert_int_not_equal(read_config(cases[sizeof cases / sizeof *cases - 1].text), MB_OK);
    mb_test_ok(read_config("{\"model_type\": \"bert\", " SHAPE "}"));
}

static void test_refused_modules(void **state)
{
    (void)state;
    const struct {
        const char *modules, *pooling, *says;
    } cases[] = {
        {"[{\"type\": \"sentence_transformers.models.LSTM\", \"path\": \"\"}]", NULL, "LSTM"},
        {"[{\"type\": \"sentence_transformers.models.Transformer\", \"path\": \"\"}]", NULL, "no Pooling"},
        {"[{\"type\": \"sentence_transformers.models.Transformer\", \"path\": \"\"}, "
         "{\"type\": \"sentence_transformers.models.Pooling\", \"path\": \"1_Pooling\"}]",
         "{\"pooling_mode\": \"median\"}", "median"},
        {"[{\"type\": \"a.b.Pooling\", \"path\": \"1_Pooling\"}, {\"type\": \"a.b.LayerNorm\", \"path\": "
         "\"2\"}]",
         "{\"pooling_mode_cls_token\": true}", "LayerNorm"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_encoder_pooling pooling = {0};
        char *folder = mb_test_folder_make(), *inner = mb_test_path(folder, "1_Pooling");
        mb_test_ok(mb_files_make_folders(inner));
        mb_free(mb_test_write(folder, "modules.json", cases[i].modules));
        if (cases[i].pooling != NULL) mb_free(mb_test_write(inner, "config.json", cases[i].pooling));
        mb_test_fails(mb_encoder_pooling_read(folder, &pooling), MB_EUNSUPPORTED, cases[i].says);
        mb_free(inner);
        mb_test_folder_remove(&folder);
    }
}

static void test_bad_batches(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_encoder *e = open_encoder("ref", FOLDER "/bert_mean", MB_F32, &ops);
    int32_t ids[25] = {0}, whole[] = {0, 25}, empty[] = {0, 2, 2};
    float out[48];
    mb_encoder_batch batch = {.tokens = 25, .segments = 1, .ids = ids, .offsets = whole};
    mb_test_fails(mb_encoder_run(e, &batch, 0, NULL, out), MB_ERANGE, "25 tokens");
    batch = (mb_encoder_batch){.tokens = 2, .segments = 2, .ids = ids, .offsets = empty};
    mb_test_fails(mb_encoder_run(e, &batch, 0, NULL, out), MB_ERANGE, "0 tokens");
    batch.segments = 1;
    ids[1] = 61;
    mb_test_fails(mb_encoder_run(e, &batch, 0, NULL, out), MB_ERANGE, "token 61");
    assert_int_equal(mb_encoder_max_length(e), 20);
    mb_encoder_destroy(&e);
    mb_test_fails(mb_encoder_open(ops, FOLDER "/nowhere", MB_F32, &e), MB_ENOTFOUND, "nowhere");
    mb_ops_destroy(&ops);
}

/* A tensor less: the message names it. */
static void test_missing_tensor(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_encoder *e = NULL;
    char *folder = mb_test_folder_make(), *config = mb_test_path(folder, "config.json");
    mb_test_ok(mb_files_copy(FOLDER "/bert_mean/config.json", config));
    mb_safetensors_writer *writer = NULL;
    const char *name = "embeddings.word_embeddings.weight";
    float *values = floats(61 * 24);
    mb_test_ok(mb_safetensors_writer_create(folder, "model", 0, &writer));
    mb_test_ok(mb_safetensors_writer_declare(writer, name, MB_F32, 2, (const int64_t[]){61, 24}));
    mb_test_ok(mb_safetensors_writer_write_f32(writer, name, values, 61 * 24));
    mb_test_ok(mb_safetensors_writer_close(&writer));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_fails(mb_encoder_open(ops, folder, MB_F32, &e), MB_ENOTFOUND,
                  "embeddings.position_embeddings.weight");
    assert_null(e);
    mb_ops_destroy(&ops);
    mb_free(values);
    mb_free(config);
    mb_test_folder_remove(&folder);
}

static void test_plan(void **state)
{
    (void)state;
    mb_encoder_config config;
    mb_test_ok(mb_encoder_config_read(FOLDER "/mgte", &config));
    const mb_encoder_plan f32 = mb_encoder_plan_get(&config, MB_F32, 100),
                          bf16 = mb_encoder_plan_get(&config, MB_BF16, 100);
    const size_t rotary = 24 * 12 * sizeof(float);
    assert_int_equal(f32.weights, (size_t)mb_encoder_config_parameters(&config) * 4 + rotary);
    assert_true(bf16.weights < f32.weights && bf16.activations < f32.activations && f32.packed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_f32),       cmocka_unit_test(test_golden_bf16),
        cmocka_unit_test(test_packed_is_single), cmocka_unit_test(test_pooling_by_hand),
        cmocka_unit_test(test_folder_pooling),   cmocka_unit_test(test_refused_configs),
        cmocka_unit_test(test_refused_modules),  cmocka_unit_test(test_bad_batches),
        cmocka_unit_test(test_missing_tensor),   cmocka_unit_test(test_plan)};
    print_message("# seed %d\n", SEED);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
