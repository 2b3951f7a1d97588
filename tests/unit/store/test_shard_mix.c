/* Data mix: exact numbers by seed, with unusable records replaced; weights, validation, repeats, shuffling;
 * thresholds without a list. */
#include "base/rng.h"
#include "store/shard_build_sample.h"
#include "store/shard_mix.h"
#include "store/shard_shuffle.h"

#define RECORDS 300

/* RECORDS records "<word> <i>", every `bad`-th broken (0: none). */
static char *write_records(void **state, const char *name, int bad)
{
    mb_str text = MB_STR_EMPTY;
    for (int i = 0; i < RECORDS; i++)
        assert_ok(bad > 0 && i % bad == 0
                      ? mb_str_add(&text, "{\"text\":\n")
                      : mb_str_add_format(&text, "{\"text\":\"This is record number %d of %s\"}\n", i, name));
    char file[64];
    snprintf(file, sizeof file, "%s.jsonl", name);
    char *path = mb_strdup(test_path(state, file));
    test_write(path, text.data, text.length);
    mb_str_destroy(&text);
    return path;
}

typedef struct built {
    mb_shard *shard, *held; /* held: NULL none */
    mb_shard_build_report report;
    json_t *mix;
} built;

static built build(void **state, mb_shard_build_options *options, const char *name)
{
    built b = {0};
    char file[64], *path, *validation;
    snprintf(file, sizeof file, "%s/shard.h5", name);
    path = mb_strdup(test_path(state, file));
    snprintf(file, sizeof file, "%s/validation.h5", name);
    validation = mb_strdup(test_path(state, file));
    assert_ok(mb_files_make_folders(test_path(state, name)));
    options->opt_mix = &b.mix;
    assert_ok(sample_build(options, path, &b.report));
    assert_ok(mb_shard_open(path, 0, &b.shard));
    if (mb_files_is_file(validation)) assert_ok(mb_shard_open(validation, 0, &b.held));
    mb_free(path);
    mb_free(validation);
    return b;
}

static void drop(built *b)
{
    mb_shard_close(&b->shard);
    mb_shard_close(&b->held);
    json_decref(b->mix);
}

/* How often each record of each source stands in a shard. */
static void count_records(mb_shard *shard, int counts[][RECORDS])
{
    const mb_shard_columns c = mb_shard_columns_get(shard);
    for (int64_t i = 0; i < mb_shard_count(shard); i++) counts[c.source[i]][c.source_index[i]]++;
}

static int total_of(const int *counts, int *out_most)
{
    int sum = 0;
    *out_most = 0;
    for (int i = 0; i < RECORDS; i++) {
        sum += counts[i];
        if (counts[i] > *out_most) *out_most = counts[i];
    }
    return sum;
}

static json_t *row(const built *b, const char *list, size_t i)
{
    return json_array_get(json_object_get(b->mix, list), i);
}

/* 150 of 300 of which every third is broken: 150 usable ones, other ones with another seed, no matter what
 * else is in the mix. */
static void test_samples(void **state)
{
    mb_shard_build_options options;
    int counts[4][2][RECORDS] = {0}, most, differ = 0;
    char *a = write_records(state, "a", 3), *b = write_records(state, "b", 0);
    char *alone = mb_str_format("[{\"name\":\"a\",\"path\":\"%s\",\"samples\":150}]", a),
         *both = mb_str_format(
             "[{\"name\":\"b\",\"path\":\"%s\"},{\"name\":\"a\",\"path\":\"%s\",\"samples\":150}]", b, a);
    sample_options(sample_tokenizer(state), alone, &options);
    for (int k = 0; k < 3; k++) {
        const char *const names[] = {"s0", "s1", "s2"};
        options.seed = k == 2 ? 43 : 42;
        options.inputs = k == 1 ? both : alone;
        built got = build(state, &options, names[k]);
        count_records(got.shard, counts[k]);
        assert_null(got.held);
        const int *own = counts[k][k == 1];
        assert_int_equal(total_of(own, &most), 150);
        assert_int_equal(most, 1);
        for (int i = 0; i < RECORDS; i += 3) assert_int_equal(own[i], 0);
        /* bad ones that were looked at stand in the list, each once */
        assert_true(got.report.bad > 20 && got.report.bad <= 100);
        const mb_shard_columns c = mb_shard_columns_get(got.shard);
        for (int64_t i = 1; i < mb_shard_count(got.shard); i++) /* in the order of the inputs */
            assert_true(c.source[i] > c.source[i - 1] || c.source_index[i] > c.source_index[i - 1]);
        assert_int_equal(json_integer_value(json_object_get(row(&got, "inputs", k == 1), "samples")), 150);
        drop(&got);
    }
    assert_memory_equal(counts[0][0], counts[1][1], sizeof counts[0][0]);
    for (int i = 0; i < RECORDS; i++) differ += counts[0][0][i] != counts[2][0][i];
    assert_true(differ > 50);
    assert_int_equal(total_of(counts[1][0], &most), RECORDS);
    sample_options_free(&options);
    mb_free(a);
    mb_free(b);
    mb_free(alone);
    mb_free(both);
}

/* Weights 3 and 1 of 201: 151 and 50 (the sum is right); without a total, as many as the first can give. */
static void test_weights(void **state)
{
    mb_shard_build_options options;
    char *a = write_records(state, "a", 0), *b = write_records(state, "b", 0);
    char *inputs = mb_str_format("[{\"name\":\"a\",\"path\":\"%s\",\"type\":\"code\",\"weight\":3},"
                                 "{\"name\":\"b\",\"path\":\"%s\",\"type\":\"chat\",\"weight\":1.0}]",
                                 a, b);
    sample_options(sample_tokenizer(state), inputs, &options);
    options.total = 201;
    built got = build(state, &options, "w");
    assert_int_equal(got.report.records, 201);
    assert_int_equal(json_integer_value(json_object_get(row(&got, "inputs", 0), "samples")), 151);
    assert_int_equal(json_integer_value(json_object_get(row(&got, "types", 1), "samples")), 50);
    const double tokens = json_real_value(json_object_get(row(&got, "inputs", 0), "token_share")) +
                          json_real_value(json_object_get(row(&got, "inputs", 1), "token_share"));
    assert_true(tokens > 1 - 1e-12 && tokens < 1 + 1e-12);
    assert_string_equal(mb_shard_type_name(got.shard, 1), "chat");
    mb_str text = MB_STR_EMPTY; /* the same table as an attribute */
    mb_h5 *file = NULL;
    assert_ok(mb_h5_open(test_path(state, "w/shard.h5"), &file));
    assert_ok(mb_h5_get_text(file, "/", "mix", &text));
    json_t *stored = NULL;
    assert_ok(mb_json_parse(text.data, text.length, "mix", &stored));
    assert_true(json_equal(stored, got.mix));
    json_decref(stored);
    mb_str_destroy(&text);
    mb_h5_destroy(&file);
    drop(&got);
    options.total = 0;
    got = build(state, &options, "w0");
    assert_int_equal(got.report.records, RECORDS + RECORDS / 3);
    drop(&got);
    sample_options_free(&options);
    mb_free(a);
    mb_free(b);
    mb_free(inputs);
}

/* 20 of each input and a tenth are held back; never in both; the usual draw goes on behind them. */
static void test_validation(void **state)
{
    mb_shard_build_options options;
    int counts[2][RECORDS] = {0}, held[2][RECORDS] = {0}, most;
    char *a = write_records(state, "a", 3), *b = write_records(state, "b", 0);
    char *inputs = mb_str_format("[{\"name\":\"a\",\"path\":\"%s\",\"samples\":120},"
                                 "{\"name\":\"b\",\"path\":\"%s\",\"validation\":0.1}]",
                                 a, b);
    sample_options(sample_tokenizer(state), inputs, &options);
    options.validation = 20;
    options.shuffle = true;
    built got = build(state, &options, "v");
    assert_non_null(got.held);
    count_records(got.shard, counts);
    count_records(got.held, held);
    assert_int_equal(total_of(counts[0], &most), 120);
    assert_int_equal(total_of(held[0], &most), 20);
    assert_int_equal(total_of(held[1], &most), RECORDS / 10);
    assert_int_equal(total_of(counts[1], &most), RECORDS - RECORDS / 10);
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < RECORDS; i++) assert_true(counts[s][i] + held[s][i] <= 1);
    assert_int_equal(got.report.validation_records, 20 + RECORDS / 10);
    drop(&got);
    sample_options_free(&options);
    mb_free(a);
    mb_free(b);
    mb_free(inputs);
}

/* 700 of 200 usable ones: all (with a warning), or each 3 times and 100 once more. Everything held back is
 * an error. */
static void test_oversample(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    int counts[1][RECORDS] = {0}, most, fours = 0;
    char *a = write_records(state, "a", 3);
    char *inputs = mb_str_format("[{\"name\":\"a\",\"path\":\"%s\",\"samples\":700}]", a);
    sample_options(sample_tokenizer(state), inputs, &options);
    built got = build(state, &options, "o0");
    assert_int_equal(got.report.records, 200);
    drop(&got);
    options.oversample = true;
    options.shuffle = true;
    got = build(state, &options, "o1");
    count_records(got.shard, counts);
    assert_int_equal(total_of(counts[0], &most), 700);
    for (int i = 0; i < RECORDS; i++) {
        assert_true(i % 3 == 0 ? counts[0][i] == 0 : counts[0][i] == 3 || counts[0][i] == 4);
        fours += counts[0][i] == 4;
    }
    assert_int_equal(fours, 100);
    drop(&got);
    options.validation = 1000;
    assert_fails(MB_EDATA, sample_build(&options, test_path(state, "o2.h5"), &report), "dataset.validation");
    sample_options_free(&options);
    mb_free(a);
    mb_free(inputs);
}

/* The same records in another order, which another seed changes; the sides of a pair stay together. */
static void test_shuffle(void **state)
{
    mb_shard_build_options options;
    mb_str text = MB_STR_EMPTY;
    for (int i = 0; i < RECORDS; i++)
        assert_ok(mb_str_add_format(
            &text, "{\"prompt\":\"What is record %d?\",\"chosen\":\"It is four\",\"rejected\":\"the dog\"}\n",
            i));
    char *path = mb_strdup(test_path(state, "p.jsonl"));
    test_write(path, text.data, text.length);
    char *inputs = mb_str_format("p=%s", path);
    sample_options(sample_tokenizer(state), inputs, &options);
    sample_set(&options.form, "pair");
    options.shuffle = true;
    int64_t order[2][RECORDS], moved = 0, differ = 0;
    for (int k = 0; k < 2; k++) {
        int counts[1][RECORDS] = {0};
        options.seed = 42 + k;
        built got = build(state, &options, k == 0 ? "h0" : "h1");
        assert_true(mb_shard_is_pairs(got.shard));
        count_records(got.shard, counts);
        const mb_shard_columns c = mb_shard_columns_get(got.shard);
        for (int64_t p = 0; p < RECORDS; p++) {
            assert_int_equal(counts[0][p], 2);
            assert_int_equal(c.source_index[2 * p], c.source_index[2 * p + 1]);
            order[k][p] = c.source_index[2 * p];
            moved += order[k][p] != p;
        }
        drop(&got);
    }
    for (int64_t p = 0; p < RECORDS; p++) differ += order[0][p] != order[1][p];
    assert_true(moved > 2 * RECORDS - 20 && differ > RECORDS - 20);
    mb_str_destroy(&text);
    sample_options_free(&options);
    mb_free(path);
    mb_free(inputs);
}

/* Any number of buckets gives one order. */
static void test_buckets(void **state)
{
    const char *const names[] = {"s"};
    const mb_shard_info info = {.tokenizer_hash = "t",
                                .template_hash = "",
                                .vocab_size = 1000,
                                .source_names = names,
                                .source_files = names,
                                .source_count = 1,
                                .has_loss_mask = true};
    char hashes[3][MB_HASH_TEXT], path[600];
    const int64_t buckets[] = {1, 7, 200};
    snprintf(path, sizeof path, "%s", test_path(state, "b.h5"));
    for (int k = 0; k < 3; k++) {
        mb_shard_shuffle *shuffle = NULL;
        mb_shard_writer *writer = NULL;
        mb_shard *shard = NULL;
        uint32_t tokens[20];
        uint8_t mask[20];
        assert_ok(mb_shard_shuffle_create(test_path(state, "buckets"), buckets[k], &shuffle));
        for (int64_t i = 0; i < 500; i++) {
            for (int64_t t = 0; t < 20; t++) {
                tokens[t] = (uint32_t)(i + t);
                mask[t] = (uint8_t)(i + t) & 1;
            }
            const mb_shard_record record = {
                .tokens = tokens, .loss_mask = mask, .count = 1 + i % 20, .source_index = i};
            /* a few equal places: they keep their order */
            assert_ok(
                mb_shard_shuffle_add(shuffle, mb_rng_u64(1, MB_RNG_DATA, 0, (uint64_t)i / 3), &record, 1));
        }
        assert_ok(mb_shard_writer_create(path, &info, &writer));
        assert_ok(mb_shard_shuffle_write(shuffle, writer));
        assert_ok(mb_shard_writer_close(&writer));
        mb_shard_shuffle_destroy(&shuffle);
        assert_ok(mb_shard_open(path, 0, &shard));
        assert_ok(mb_shard_hash(shard, hashes[k]));
        const mb_shard_columns c = mb_shard_columns_get(shard);
        mb_shard_record record;
        for (int64_t i = 0; i < 500; i++) {
            assert_ok(mb_shard_read(shard, i, &record));
            assert_int_equal(record.count, 1 + c.source_index[i] % 20);
            assert_int_equal(record.tokens[0], c.source_index[i]);
        }
        mb_shard_close(&shard);
    }
    assert_string_equal(hashes[0], hashes[1]);
    assert_string_equal(hashes[0], hashes[2]);
}

/* The threshold of the first k of 3 million records lets through k of them, and memory does not grow. */
static void test_threshold(void **state)
{
    (void)state;
    const int64_t n = 3000000, asked[] = {1, 1000, 2999999};
    const mb_shard_build_options options = {.seed = 42};
    mb_comm *comm = NULL;
    assert_ok(mb_comm_create(NULL, NULL, &comm));
    const int64_t before = mb_memory_live_bytes();
    for (int k = 0; k < 3; k++) {
        char name[] = "corpus";
        const mb_shard_input input = {.name = name, .samples = asked[k], .weight = -1, .validation = -1};
        mb_shard_draw draw = {0};
        int64_t found = 0;
        mb_shard_mix_start(&options, &input, 1, &draw);
        draw.available = n;
        assert_ok(mb_shard_mix_plan(&options, &input, 1, &draw));
        assert_ok(mb_shard_mix_window(comm, &draw, 1));
        for (int64_t i = 0; i < n; i++) found += mb_shard_mix_is_candidate(&draw, i);
        assert_int_equal(found, asked[k]);
        /* a second round takes others */
        draw.good = asked[k] / 2;
        if (mb_shard_mix_grow(&draw, 1)) {
            assert_ok(mb_shard_mix_window(comm, &draw, 1));
            for (int64_t i = 0; i < n; i++) found += mb_shard_mix_is_candidate(&draw, i);
            assert_int_equal(found, draw.candidates);
        }
    }
    assert_true(mb_memory_live_bytes() <= before + 65536);
    mb_comm_destroy(&comm);
}

static void test_default_mix(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    char *a = write_records(state, "a", 0), *out = mb_strdup(test_path(state, "d.h5"));
    mb_str text = MB_STR_EMPTY;
    const char *const types[] = {"general", "conversation", "code", "reasoning", "creative"};
    const int64_t wanted[] = {60, 50, 40, 30, 20};
    for (int i = 0; i < 5; i++)
        assert_ok(mb_str_add_format(&text, "%c{\"name\":\"%s\",\"path\":\"%s\",\"type\":\"%s\"}",
                                    i == 0 ? '[' : ',', types[i], a, types[i]));
    assert_ok(mb_str_add(&text, "]"));
    sample_options(sample_tokenizer(state), text.data, &options);
    options.total = 200;
    built got = build(state, &options, "d");
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(json_integer_value(json_object_get(row(&got, "types", i), "samples")), wanted[i]);
    drop(&got);
    char *untyped = mb_str_format("x=%s", a), *many = mb_str_format("[{\"path\":\"%s\",\"samples\":3}]", a),
         *below = mb_str_format("[{\"path\":\"%s\",\"weight\":-1}]", a),
         *near = mb_str_format("[{\"path\":\"%s\",\"wieght\":1}]", a);
    options.inputs = untyped;
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "'x' has neither a weight nor samples");
    options.inputs = many;
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "no input has one");
    options.inputs = below;
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "weight is below 0");
    options.inputs = near;
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "did you mean weight");
    sample_options_free(&options);
    mb_str_destroy(&text);
    mb_free(a);
    mb_free(out);
    mb_free(untyped);
    mb_free(many);
    mb_free(below);
    mb_free(near);
}

/* A template per input: one hash over both, each record by its own. */
static void test_templates(void **state)
{
    mb_shard_build_options options;
    char *a = mb_strdup(test_path(state, "q.jsonl"));
    static const char one_record[] = "{\"question\":\"What?\",\"answer\":\"four\"}\n";
    test_write(a, one_record, sizeof one_record - 1);
    char *one = mb_str_format("[{\"name\":\"a\",\"path\":\"%s\"},{\"name\":\"b\",\"path\":\"%s\"}]", a, a),
         *two = mb_str_format(
             "[{\"name\":\"a\",\"path\":\"%s\"},{\"name\":\"b\",\"path\":\"%s\",\"template\":\"lines\"}]", a,
             a);
    sample_options(sample_tokenizer(state), one, &options);
    built same = build(state, &options, "t1");
    options.inputs = two;
    built other = build(state, &options, "t2");
    assert_string_not_equal(mb_shard_template_hash(same.shard), mb_shard_template_hash(other.shard));
    assert_int_equal(mb_shard_length(same.shard, 0), mb_shard_length(other.shard, 0));
    assert_true(mb_shard_length(other.shard, 1) < mb_shard_length(same.shard, 1));
    assert_string_equal(json_string_value(json_object_get(row(&other, "inputs", 1), "template")), "lines");
    drop(&same);
    drop(&other);
    sample_options_free(&options);
    mb_free(a);
    mb_free(one);
    mb_free(two);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),    cmocka_unit_test(test_weights),
        cmocka_unit_test(test_validation), cmocka_unit_test(test_oversample),
        cmocka_unit_test(test_shuffle),    cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_threshold),  cmocka_unit_test(test_default_mix),
        cmocka_unit_test(test_templates),
    };
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
