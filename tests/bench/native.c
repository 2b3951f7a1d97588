/* native: what the bench measures inside our libraries, without a program around it. Prints one number.
 *
 *   native ceiling f32|bf16            GFLOP/s of one large product (2048 cubed), weights packed
 *   native tokenize TOKENIZER FILE     MB/s of the "text" of a JSONL file, one thread
 *   native shard FILE                  MB/s of tokens of a shard, records in random order
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "ops/ops.h"
#include "store/shard.h"
#include "text/records.h"
#include "text/tokenizer.h"

enum { CUBE = 2048, ROUNDS = 12, READS = 20000 };

static mb_status ceiling(const char *name, double *out_rate)
{
    mb_status status = MB_OK;
    mb_ops *ops = NULL;
    mb_dtype dtype;
    char *x = NULL, *w = NULL;
    float *y = NULL;
    mb_weight weight = {0};
    MB_TRY(mb_dtype_parse(name, &dtype));
    MB_TRY(mb_ops_create("cpu", 0, &ops));
    const int64_t n = (int64_t)CUBE * CUBE;
    MB_NEW_ARRAY(x, n * (int64_t)mb_dtype_bytes(dtype));
    MB_NEW_ARRAY(w, n * (int64_t)mb_dtype_bytes(dtype));
    MB_NEW_ARRAY(y, n);
    for (int64_t i = 0; i < n; i++) y[i] = (float)(i % 97) * 0.01f - 0.5f;
    MB_TRY(mb_dtype_from_f32(dtype, y, n, x));
    MB_TRY(mb_dtype_from_f32(dtype, y, n, w));
    const mb_tensor in = mb_tensor_view2(dtype, x, CUBE, CUBE);
    mb_tensor out = mb_tensor_view2(MB_F32, y, CUBE, CUBE);
    mb_weight_init(&weight, mb_tensor_view2(dtype, w, CUBE, CUBE));
    double best = 1e9;
    for (int i = 0; i < ROUNDS + 10; i++) { /* the first are for packing */
        const double start = mb_clock_seconds();
        MB_TRY(mb_ops_linear(ops, &in, &weight, NULL, false, &out));
        const double took = mb_clock_seconds() - start;
        if (i >= 10 && took < best) best = took;
    }
    *out_rate = 2.0 * CUBE * (double)n / best / 1e9;
done:
    mb_weight_reset(&weight);
    mb_ops_destroy(&ops);
    mb_free(x);
    mb_free(w);
    mb_free(y);
    return status;
}

/* All texts of the file in one block; parts[i] begins where the one before ends. */
static mb_status read_texts(const char *path, mb_str *text, int64_t **out_ends, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    int64_t *ends = NULL, count = 0, capacity = 0;
    MB_TRY(mb_records_open(path, 0, &records));
    for (;;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        const char *value = json_string_value(json_object_get(record.json, "text"));
        if (value == NULL) MB_RAISE(MB_EDATA, "%s: line %lld has no text", path, (long long)record.line);
        if (count == capacity) {
            capacity = 2 * capacity + 64;
            int64_t *bigger = mb_realloc(ends, (size_t)capacity, sizeof *ends);
            if (bigger == NULL) MB_RAISE(MB_ENOMEM, "no memory");
            ends = bigger;
        }
        MB_TRY(mb_str_add(text, value));
        ends[count++] = (int64_t)text->length;
    }
    *out_ends = ends;
    *out_count = count;
    ends = NULL;
done:
    mb_free(ends);
    mb_records_close(&records);
    return status;
}

static mb_status tokenize(const char *tokenizer_path, const char *path, double *out_rate)
{
    mb_status status = MB_OK;
    mb_tokenizer *tokenizer = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_str text = MB_STR_EMPTY;
    mb_ids ids = {0};
    int64_t *ends = NULL, count = 0;
    MB_TRY(mb_tokenizer_open(tokenizer_path, &tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(tokenizer, &scratch));
    MB_TRY(read_texts(path, &text, &ends, &count));
    const double start = mb_clock_seconds();
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = i > 0 ? ends[i - 1] : 0;
        mb_ids_reset(&ids);
        MB_TRY(mb_tokenizer_encode(tokenizer, scratch, mb_str_text(&text) + first, (size_t)(ends[i] - first),
                                   true, &ids));
    }
    *out_rate = (double)text.length / (mb_clock_seconds() - start) / 1e6;
done:
    mb_free(ends);
    mb_ids_destroy(&ids);
    mb_str_destroy(&text);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_tokenizer_close(&tokenizer);
    return status;
}

static mb_status read_shard(const char *path, double *out_rate)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    mb_shard_record record;
    int64_t tokens = 0;
    MB_TRY(mb_shard_open(path, 0, &shard));
    const double start = mb_clock_seconds();
    for (int64_t i = 0; i < READS; i++) {
        const int64_t r =
            (int64_t)mb_rng_below(0, MB_RNG_DATA, 0, (uint64_t)i, (uint64_t)mb_shard_count(shard));
        MB_TRY(mb_shard_read(shard, r, &record));
        tokens += record.count;
    }
    *out_rate = 4.0 * (double)tokens / (mb_clock_seconds() - start) / 1e6;
done:
    mb_shard_close(&shard);
    return status;
}

int main(int argc, char **argv)
{
    double rate = 0;
    mb_status status = MB_EUSAGE;
    if (argc == 3 && strcmp(argv[1], "ceiling") == 0) status = ceiling(argv[2], &rate);
    if (argc == 4 && strcmp(argv[1], "tokenize") == 0) status = tokenize(argv[2], argv[3], &rate);
    if (argc == 3 && strcmp(argv[1], "shard") == 0) status = read_shard(argv[2], &rate);
    if (status != MB_OK) {
        fprintf(stderr, "native: %s\n",
                status == MB_EUSAGE && argc < 3 ? "see the head of the file" : mb_status_message());
        return 1;
    }
    printf("%.6g\n", rate);
    return 0;
}
