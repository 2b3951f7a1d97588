/* test_reference: values of a reference file, and every way in which it can be the wrong one. */
#include "mb_test.h"

#include "learn/reference.h"
#include "store/scores.h"

enum { RECORDS = 8, LENGTH = 12 };

typedef struct shard_kind {
    const char *tokenizer, *template;
    int64_t records, first_hash, shift; /* shift: of the loss mask */
} shard_kind;

static const shard_kind usual = {"tok", "tmpl", RECORDS, 1, 0};

/* Records of 5 to 12 tokens; the mask is their second half. */
static mb_shard *make_shard(const char *folder, const char *name, const shard_kind *kind)
{
    const char *sources[] = {"web"}, *files[] = {"web.jsonl"};
    const mb_shard_info info = {.tokenizer_hash = kind->tokenizer,
                                .template_hash = kind->template,
                                .max_length = LENGTH,
                                .vocab_size = 32,
                                .source_names = sources,
                                .source_files = files,
                                .source_count = 1,
                                .has_loss_mask = true};
    mb_shard_writer *writer = NULL;
    mb_shard *shard = NULL;
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = 0; i < kind->records; i++) {
        uint32_t tokens[LENGTH];
        uint8_t mask[LENGTH] = {0};
        const int64_t n = LENGTH - i % 8;
        for (int64_t t = 0; t < n; t++) {
            tokens[t] = (uint32_t)((i + t) % 32);
            mask[t] = t >= n / 2 + kind->shift;
        }
        const mb_shard_record record = {.tokens = tokens,
                                        .loss_mask = mask,
                                        .count = n,
                                        .source_index = i,
                                        .byte_offset = 9 * i,
                                        .byte_length = 9,
                                        .text_bytes = 9,
                                        .record_hash = (uint64_t)(i + kind->first_hash)};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    mb_test_ok(mb_shard_open(path, 0, &shard));
    mb_free(path);
    return shard;
}

typedef struct scores_kind {
    const char *columns[2], *whole, *folder, *adapter, *dtype;
    int64_t max_length;
    double last; /* log-probability of the last record */
} scores_kind;

static const scores_kind plain = {{"logprob", "targets"}, "base", "base", "", "f32", 64, -8};
static const scores_kind adapted = {{"logprob", "targets"}, "both", "base", "lora", "bf16", 64, -8};

/* A score file as moe-score writes it: record i has log-probability -1 - i over i + 2 targets. */
static char *make_scores(const char *folder, const char *name, mb_shard *shard, const scores_kind *kind)
{
    mb_scores_column columns[2] = {{.higher_is_better = true}, {.higher_is_better = true}};
    const int64_t n = mb_shard_count(shard);
    double *values = mb_calloc((size_t)(2 * n), sizeof *values);
    char *path = mb_test_path(folder, name);
    for (int c = 0; c < 2; c++) snprintf(columns[c].name, sizeof columns[c].name, "%s", kind->columns[c]);
    for (int64_t i = 0; i < n; i++) {
        values[i] = -1.0 - (double)i;
        values[n + i] = (double)(i + 2);
    }
    values[n - 1] = kind->last;
    const mb_scores_part part = {.rows = n, .values = values};
    json_t *attributes = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I}", "source_model", kind->whole,
                                   "source_folder", kind->folder, "source_adapter", kind->adapter, "dtype",
                                   kind->dtype, "tokenizer", mb_shard_tokenizer_hash(shard), "template",
                                   mb_shard_template_hash(shard), "max_length", (json_int_t)kind->max_length);
    mb_test_ok(mb_scores_part_write(path, "key", columns, 2, 0, &part));
    mb_test_ok(mb_scores_join(path, "key", shard, columns, 2, NULL, 0, attributes));
    mb_scores_parts_remove(path);
    json_decref(attributes);
    mb_free(values);
    return path;
}

static void test_values(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), hash[33];
    mb_shard *shard = make_shard(folder, "a.h5", &usual);
    char *path = make_scores(folder, "scores.h5", shard, &plain);
    mb_reference *reference = NULL;
    mb_h5 *file = NULL;
    mb_test_ok(mb_reference_open(path, shard, "base", NULL, MB_F32, false, 0, &reference));
    mb_shard_close(&shard); /* not kept */
    assert_int_equal(mb_reference_count(reference), RECORDS);
    for (int64_t i = 0; i < RECORDS; i++) {
        assert_true(mb_reference_logprob(reference, i) == -1.0 - (double)i);
        assert_int_equal(mb_reference_targets(reference, i), i + 2);
    }
    mb_test_ok(mb_h5_open(path, &file));
    mb_test_ok(mb_h5_content_hash(file, hash));
    assert_string_equal(mb_reference_hash(reference), hash);
    mb_h5_destroy(&file);
    mb_reference_close(&reference);
    mb_reference_close(&reference);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

typedef struct asked {
    const char *model, *adapter;
    mb_dtype dtype;
    bool any_model;
    int64_t max_length;
} asked;

static mb_status open_with(const char *path, mb_shard *shard, const asked *a, mb_reference **out)
{
    return mb_reference_open(path, shard, a->model, a->adapter, a->dtype, a->any_model, a->max_length, out);
}

/* What is accepted: the model by itself, by folder and adapter, by both in one hash, any; lengths that cut
 * the same. */
static void test_accepted(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_shard *shard = make_shard(folder, "a.h5", &usual);
    char *path[2] = {make_scores(folder, "plain.h5", shard, &plain),
                     make_scores(folder, "adapted.h5", shard, &adapted)};
    const struct {
        int file;
        asked asked;
    } rows[] = {
        {0, {"base", NULL, MB_F32, false, 0}},         {0, {"base", "", MB_F32, false, LENGTH}},
        {0, {"base", NULL, MB_F32, false, 1000}},      {0, {"other", "x", MB_BF16, true, 0}},
        {1, {"base", "lora", MB_BF16, false, 0}},      {1, {"both", NULL, MB_BF16, false, 0}},
        {1, {"both", "lora", MB_BF16, false, 0}},      {1, {NULL, NULL, MB_F32, true, 0}},
        {1, {"base", "lora", MB_BF16, false, LENGTH}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_reference *reference = NULL;
        mb_test_ok(open_with(path[rows[i].file], shard, &rows[i].asked, &reference));
        mb_reference_close(&reference);
    }
    for (int f = 0; f < 2; f++) mb_free(path[f]);
    mb_shard_close(&shard);
    mb_test_folder_remove(&folder);
}

/* Each difference is named, and so is the command. */
static void test_refused(void **state)
{
    (void)state;
    static const shard_kind fewer = {"tok", "tmpl", RECORDS - 2, 1, 0},
                            others = {"tok", "tmpl", RECORDS, 3, 0},
                            remasked = {"tok", "tmpl", RECORDS, 1, 1},
                            tokenizer = {"other", "tmpl", RECORDS, 1, 0},
                            template = {"tok", "", RECORDS, 1, 0};
    static const asked right = {"base", NULL, MB_F32, false, 0}, any = {NULL, NULL, MB_F32, true, 0};
    char *folder = mb_test_folder_make();
    mb_shard *shard = make_shard(folder, "a.h5", &usual), *other = NULL;
    char *path[2] = {make_scores(folder, "plain.h5", shard, &plain),
                     make_scores(folder, "adapted.h5", shard, &adapted)};
    const struct {
        int file;
        const shard_kind *shard;
        asked asked;
        const char *part[2];
    } rows[] = {
        {0, &fewer, any, {"data (8 records there, 6 here)", "score.scores=logprob dataset.path="}},
        {0, &others, any, {"data (8 of 8 records are others)", "b.h5"}},
        {0, &remasked, right, {"other tokens or loss masks", "model.dtype=f32"}},
        {0, &tokenizer, any, {"tokenizer (tok there, other here)", "data ("}},
        {0, &template, right, {"template (tmpl there, none here)", "data ("}},
        {0,
         &usual,
         {"base", NULL, MB_F32, false, 9},
         {"max_length (64 there, 9 here: 3 records", "dataset.max_length=9"}},
        {0, &usual, {"base", NULL, MB_BF16, false, 0}, {"dtype (f32 there, bf16 here)", "model.dtype=bf16"}},
        {0, &usual, {"sft", NULL, MB_F32, false, 0}, {"model (base there, sft here)", "model.path="}},
        {0, &usual, {"", NULL, MB_F32, false, 0}, {"model (base there, none here)", "moe-score"}},
        {0,
         &usual,
         {"base", "lora", MB_F32, false, 0},
         {"adapter (none there, lora here)", "model.adapter="}},
        {1, &usual, {"base", NULL, MB_BF16, false, 0}, {"adapter (lora there, none here)", "moe-score"}},
        {1,
         &usual,
         {"both", "lora2", MB_BF16, false, 0},
         {"adapter (lora there, lora2 here)", "model.adapter="}},
        {1,
         &usual,
         {"sft", "lora2", MB_F32, false, 5},
         {"max_length (64 there, 5 here: 7 records are cut elsewhere); "
          "model (base there, sft here); adapter (lora there, lora2 here); "
          "dtype (bf16 there, f32 here)",
          "moe-score"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_reference *reference = NULL;
        other = make_shard(folder, "b.h5", rows[i].shard);
        for (int k = 0; k < 2; k++)
            mb_test_fails(open_with(path[rows[i].file], other, &rows[i].asked, &reference), MB_EDATA,
                          rows[i].part[k]);
        assert_null(reference);
        mb_shard_close(&other);
    }
    for (int f = 0; f < 2; f++) mb_free(path[f]);
    mb_shard_close(&shard);
    mb_test_folder_remove(&folder);
}

/* Files that are no reference at all. */
static void test_files(void **state)
{
    (void)state;
    static const scores_kind perplexity = {{"perplexity", "length"}, "base", "base", "", "f32", 64, -8},
                             broken = {{"logprob", "targets"}, "base", "base", "", "f32", 64, NAN};
    char *folder = mb_test_folder_make(), *missing = mb_test_path(folder, "none.h5"),
         *not_scores = mb_test_path(folder, "a.h5");
    mb_shard *shard = make_shard(folder, "a.h5", &usual);
    char *no_column = make_scores(folder, "p.h5", shard, &perplexity),
         *no_number = make_scores(folder, "n.h5", shard, &broken);
    const asked right = {"base", NULL, MB_F32, false, 0};
    mb_reference *reference = NULL;
    mb_test_fails(open_with(missing, shard, &right, &reference), MB_ENOTFOUND, "none.h5");
    mb_test_fails(open_with(not_scores, shard, &right, &reference), MB_EFORMAT, "not a score file");
    mb_test_fails(open_with(no_column, shard, &right, &reference), MB_ENOTFOUND, "score.scores=logprob");
    mb_test_fails(open_with(no_number, shard, &right, &reference), MB_EDATA, "record 7 has log-probability");
    assert_null(reference);
    mb_shard_close(&shard);
    mb_free(missing);
    mb_free(not_scores);
    mb_free(no_column);
    mb_free(no_number);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_accepted),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_files)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
