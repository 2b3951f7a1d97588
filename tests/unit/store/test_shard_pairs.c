/* Pair shards: both sides with one prompt, masks of answers alone, cuts, what is refused and where it is. */
#include "store/shard_build_sample.h"

/* A pair per line: plain, one prompt that the tokenizer merges into one answer, one whose prompts differ, one
 * without an answer, a long one, and one as whole dialogs. */
static const char records[] =
    "{\"prompt\":\"What is two plus two?\",\"chosen\":\"It is four.\",\"rejected\":\"the lazy dog\"}\n"
    "{\"prompt\":\"What is two?\",\"chosen\":\"\\n\\nIt is four.\",\"rejected\":\"the lazy dog\"}\n"
    "{\"chosen\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}],"
    "\"rejected\":[{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}\n"
    "{\"prompt\":\"What is two?\",\"chosen\":\"\",\"rejected\":\"dog\"}\n"
    "{\"prompt\":\"The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. "
    "The "
    "quick brown fox jumps over the lazy dog.\",\"chosen\":\"four\",\"rejected\":\"dog\"}\n"
    "{\"chosen\":\"\\n\\nHuman: What?\\n\\nAssistant: four of them\",\"rejected\":\"\\n\\nHuman: What?\\n\\n"
    "Assistant: the dog\"}\n";

static mb_shard *build(void **state, mb_shard_build_options *options, const char *text,
                       mb_shard_build_report *report)
{
    mb_shard *shard = NULL;
    test_write(test_path(state, "pairs.jsonl"), text, strlen(text));
    char *inputs = mb_str_format("p=%s", test_path(state, "pairs.jsonl"));
    options->inputs = inputs;
    assert_ok(sample_build(options, test_path(state, "pairs.h5"), report));
    assert_ok(mb_shard_open(test_path(state, "pairs.h5"), 0, &shard));
    mb_free(inputs);
    options->inputs = NULL;
    return shard;
}

/* First counted token of a record, and how many are counted; they lie in one run. */
static int64_t first_counted(const mb_shard_record *r, int64_t *out_count)
{
    int64_t first = 0, n = 0;
    while (first < r->count && !r->loss_mask[first]) first++;
    while (first + n < r->count && r->loss_mask[first + n]) n++;
    for (int64_t t = first + n; t < r->count; t++) assert_false(r->loss_mask[t]);
    *out_count = n;
    return first;
}

static void check_pair(mb_shard *shard, int64_t pair, int64_t index)
{
    mb_shard_record r;
    static uint32_t chosen[4096];
    int64_t n, first;
    assert_ok(mb_shard_read(shard, 2 * pair, &r));
    assert_int_equal(r.source_index, index);
    first = first_counted(&r, &n);
    assert_true(n > 0 && first > 0 && r.count < 4096);
    memcpy(chosen, r.tokens, (size_t)r.count * 4);
    const int64_t offset = r.byte_offset, length = r.byte_length;
    const uint64_t hash = r.record_hash;
    assert_ok(mb_shard_read(shard, 2 * pair + 1, &r));
    assert_int_equal(r.source_index, index);
    assert_int_equal(r.byte_offset, offset);
    assert_int_equal(r.byte_length, length);
    assert_true(r.record_hash != hash);
    assert_int_equal(first_counted(&r, &n), first);
    assert_true(n > 0);
    assert_memory_equal(r.tokens, chosen, (size_t)first * 4);
}

static void test_build(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    sample_options(sample_tokenizer(state), NULL, &options);
    sample_set(&options.form, "pair");
    mb_shard *shard = build(state, &options, records, &report);
    assert_true(mb_shard_is_pairs(shard));
    assert_int_equal(report.pairs, 4);
    assert_int_equal(report.records, 8);
    assert_int_equal(report.bad, 2);
    assert_int_equal(mb_shard_count(shard), 8);
    assert_int_equal(mb_shard_counter(shard, "bad"), 2);
    const int64_t kept[] = {0, 1, 4, 5};
    for (int64_t p = 0; p < 4; p++) check_pair(shard, p, kept[p]);
    mb_shard_close(&shard);
    mb_str notes = MB_STR_EMPTY;
    assert_ok(mb_files_read(test_path(state, "pairs.h5.bad.jsonl"), 0, &notes));
    assert_non_null(strstr(mb_str_text(&notes), "\"index\": 2, \"line\": 3"));
    assert_non_null(strstr(mb_str_text(&notes), "do not answer the same prompt"));
    assert_non_null(strstr(mb_str_text(&notes), "\"index\": 3, \"line\": 4"));
    mb_str_destroy(&notes);
    sample_options_free(&options);
}

/* The ids before the mask are those of the prompt alone; where "\n" of the prompt and "\n\n" of an answer are
 * one token, that token is an answer's on both sides. */
static void test_border(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    mb_tokenizer *tokenizer = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_shard_record r;
    int64_t n;
    sample_options(sample_tokenizer(state), NULL, &options);
    sample_set(&options.pairs, "true");
    mb_shard *shard = build(state, &options, records, &report);
    assert_ok(mb_tokenizer_open(options.tokenizer_path, &tokenizer));
    assert_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
    const char *const prompts[] = {
        "<|im_start|>user\nWhat is two plus two?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nWhat is two?<|im_end|>\n<|im_start|>assistant\n"};
    for (int64_t p = 0; p < 2; p++) {
        mb_ids_reset(&ids);
        assert_ok(mb_tokenizer_encode(tokenizer, scratch, prompts[p], strlen(prompts[p]), true, &ids));
        for (int64_t s = 0; s < 2; s++) {
            assert_ok(mb_shard_read(shard, 2 * p + s, &r));
            assert_int_equal(first_counted(&r, &n), ids.count - p);
            assert_memory_equal(r.tokens, ids.data, (size_t)(ids.count - p) * 4);
        }
    }
    assert_true(r.tokens[ids.count - 1] == ids.data[ids.count - 1]); /* the rejected side's line feed */
    mb_ids_destroy(&ids);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_tokenizer_close(&tokenizer);
    mb_shard_close(&shard);
    sample_options_free(&options);
}

static void test_long(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    sample_options(sample_tokenizer(state), NULL, &options);
    sample_set(&options.form, "pair");
    options.max_length = 35; /* the long prompt alone is longer */
    mb_shard *shard = build(state, &options, records, &report);
    assert_int_equal(report.pairs, 3);
    assert_int_equal(report.bad, 3);
    for (int64_t i = 0; i < 6; i++) assert_true(mb_shard_length(shard, i) <= 35);
    mb_shard_close(&shard);
    sample_set(&options.on_long, "skip");
    shard = build(state, &options, records, &report);
    assert_int_equal(report.skipped_long, 1);
    assert_int_equal(report.bad, 2);
    assert_int_equal(report.cut, 0);
    mb_shard_close(&shard);
    sample_options_free(&options);
}

/* The chosen side alone, as single records. */
static void test_chosen_alone(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    sample_options(sample_tokenizer(state), NULL, &options);
    sample_set(&options.form, "pair");
    sample_set(&options.pairs, "false");
    mb_shard *shard = build(state, &options, records, &report);
    assert_false(mb_shard_is_pairs(shard));
    assert_int_equal(report.pairs, 0);
    assert_int_equal(report.records, 5);
    mb_shard_close(&shard);
    sample_options_free(&options);
}

static void test_refused(void **state)
{
    mb_shard_build_options options;
    mb_shard_build_report report;
    char *path = mb_strdup(test_path(state, "r.jsonl"));
    test_write(path, records, strlen(records));
    char *mixed = mb_str_format(
             "[{\"name\":\"a\",\"path\":\"%s\",\"form\":\"pair\"},{\"name\":\"b\",\"path\":\"%s\","
             "\"form\":\"qa\"}]",
             path, path),
         *out = mb_strdup(test_path(state, "r.h5"));
    sample_options(sample_tokenizer(state), mixed, &options);
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "dataset.pairs");
    sample_set(&options.pairs, "true");
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "'b' has the form qa");
    char *one = mb_str_format("p=%s", path);
    options.inputs = one;
    sample_set(&options.loss_on, "all");
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "only answers count");
    sample_set(&options.loss_on, "answers");
    sample_set(&options.on_long, "split");
    assert_fails(MB_EUSAGE, sample_build(&options, out, &report), "cannot be split");
    sample_options_free(&options);
    mb_free(path);
    mb_free(mixed);
    mb_free(one);
    mb_free(out);
}

/* Files of pairs and of single records are no corpus; an odd number of records or sides of other places are
 * no pairs. */
static void test_read(void **state)
{
    const char *const names[] = {"s"};
    const uint32_t tokens[] = {1, 2};
    const uint8_t mask[] = {0, 1};
    char pairs[600], single[600], both[1300];
    snprintf(pairs, sizeof pairs, "%s", test_path(state, "x.h5"));
    snprintf(single, sizeof single, "%s", test_path(state, "y.h5"));
    snprintf(both, sizeof both, "%s,%s", pairs, single);
    mb_shard *shard = NULL;
    for (int kind = 0; kind < 3; kind++) {
        mb_shard_writer *writer = NULL;
        const mb_shard_info info = {.tokenizer_hash = "t",
                                    .template_hash = "",
                                    .vocab_size = 10,
                                    .source_names = names,
                                    .source_files = names,
                                    .source_count = 1,
                                    .has_loss_mask = true,
                                    .is_pairs = kind > 0};
        mb_shard_record record = {.tokens = tokens, .loss_mask = mask, .count = 2};
        assert_ok(mb_shard_writer_create(kind > 0 ? pairs : single, &info, &writer));
        for (int i = 0; i < 4; i++) {
            record.source_index = kind == 1 && i == 3 ? 7 : i / 2;
            assert_ok(mb_shard_writer_add(writer, &record));
        }
        assert_ok(mb_shard_writer_close(&writer));
        if (kind == 1) assert_fails(MB_EFORMAT, mb_shard_open(pairs, 0, &shard), "records 2 and 3");
    }
    assert_ok(mb_shard_open(pairs, 0, &shard));
    assert_true(mb_shard_is_pairs(shard));
    mb_shard_close(&shard);
    assert_fails(MB_EDATA, mb_shard_open(both, 0, &shard), "files of one kind");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_build),   cmocka_unit_test(test_border), cmocka_unit_test(test_long),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_read),   cmocka_unit_test(test_chosen_alone),
    };
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
