/* shard_build_sample: a small tokenizer, record files and default options, for tests that shard. */
#ifndef MB_SHARD_BUILD_SAMPLE_H
#define MB_SHARD_BUILD_SAMPLE_H

#include "store/shard.h"
#include "store/shard_build.h"
#include "store/store_test.h"
#include "text/bpe_train.h"

/* A byte-level BPE of 400 tokens with the end mark <|im_end|>, in `tok` of the test's folder. Its path is
 * good for the test. */
static inline char *sample_tokenizer(void **state)
{
    static const char text[] =
        "The quick brown fox jumps over the lazy dog. What is two plus two? It is four, of course.\n"
        "user assistant system question answer chosen rejected prompt\n\n\n\nThis is a record, number ";
    mb_bpe_train *train = NULL;
    char *folder = mb_strdup(test_path(state, "tok"));
    assert_ok(mb_bpe_train_create(400, 1, "<|im_end|>,<|im_start|>", &train));
    for (int i = 0; i < 4; i++) assert_ok(mb_bpe_train_add(train, text, sizeof text - 1));
    assert_ok(mb_bpe_train_write(train, folder));
    mb_bpe_train_destroy(&train);
    return folder;
}

static inline void sample_options(char *tokenizer, char *inputs, mb_shard_build_options *options)
{
    int64_t n;
    const mb_option *table = mb_shard_build_option_table(&n);
    *options = (mb_shard_build_options){0};
    assert_ok(mb_option_defaults(&(mb_option_table){.options = table, .count = n, .target = options}));
    mb_free(options->tmpl);
    options->tokenizer_path = tokenizer;
    options->inputs = inputs;
    options->tmpl = mb_strdup("chatml");
}

/* Frees what sample_options and sample_tokenizer made, but for `inputs`. */
static inline void sample_options_free(mb_shard_build_options *options)
{
    int64_t n;
    const mb_option *table = mb_shard_build_option_table(&n);
    options->inputs = NULL;
    mb_option_free(&(mb_option_table){.options = table, .count = n, .target = options});
}

static inline void sample_set(char **field, const char *text)
{
    mb_free(*field);
    *field = mb_strdup(text);
}

static inline mb_status sample_build(const mb_shard_build_options *options, const char *path,
                                     mb_shard_build_report *report)
{
    mb_comm *comm = NULL;
    setenv("MB_COMM", "self", 1);
    mb_status status = mb_comm_create(NULL, NULL, &comm);
    if (status == MB_OK) status = mb_shard_build_run(comm, options, path, report);
    mb_comm_destroy(&comm);
    return status;
}

#endif
