/* reference.c: a score file's log-probabilities, once everything they were computed from is what it should
 * be.
 *
 * What differs is gathered, so that one refusal names all of it, and ends with the command that makes the
 * right file.
 *
 * 1. what differs   2. refusing   3. values   4. opening   5. access
 */
#include "learn/reference.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/hash.h"
#include "base/str.h"
#include "store/scores.h"

struct mb_reference {
    int64_t count;
    double *logprob, *targets;
    char hash[MB_HASH_TEXT];
};

/* What a file is held against. */
typedef struct reference_wish {
    mb_scores *scores;
    mb_shard *shard;
    const char *model, *adapter; /* "" none */
    mb_dtype dtype;
    bool any_model;
    int64_t max_length;
    mb_str differences; /* "; "-separated */
} reference_wish;

/* ---- 1. what differs ---- */

static mb_status begin_difference(reference_wish *wish)
{
    return wish->differences.length > 0 ? mb_str_add(&wish->differences, "; ") : MB_OK;
}

/* Hashes in short; "none" for an empty one. */
static mb_status add_hashes(reference_wish *wish, const char *what, const char *there, const char *here)
{
    mb_status status = MB_OK;
    MB_TRY(begin_difference(wish));
    MB_TRY(mb_str_add_format(&wish->differences, "%s (%.12s there, %.12s here)", what,
                             *there != 0 ? there : "none", *here != 0 ? here : "none"));
done:
    return status;
}

/* A text attribute against what it should be. */
static mb_status compare(reference_wish *wish, const char *attribute, const char *what, const char *here)
{
    mb_status status = MB_OK;
    mb_str there = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(mb_scores_file(wish->scores), "/", attribute, &there));
    if (strcmp(mb_str_text(&there), here) != 0) MB_TRY(add_hashes(wish, what, mb_str_text(&there), here));
done:
    mb_str_destroy(&there);
    return status;
}

/* Another shard: are the records others, or is it what is in them? */
static mb_status compare_data(reference_wish *wish)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT];
    mb_str there = MB_STR_EMPTY;
    mb_scores_records records;
    const int64_t n = mb_shard_count(wish->shard), has = mb_scores_count(wish->scores);
    int64_t others = 0;
    MB_TRY(mb_shard_hash(wish->shard, hash));
    MB_TRY(mb_h5_get_text(mb_scores_file(wish->scores), "/", "shard", &there));
    if (strcmp(mb_str_text(&there), hash) == 0) goto done;
    MB_TRY(begin_difference(wish));
    if (n != has) {
        MB_TRY(mb_str_add_format(&wish->differences, "data (%lld records there, %lld here)", (long long)has,
                                 (long long)n));
        goto done;
    }
    MB_TRY(mb_scores_records_view(wish->scores, &records));
    const uint64_t *mine = mb_shard_columns_get(wish->shard).record_hash;
    for (int64_t i = 0; i < n; i++) others += mine[i] != records.record_hash[i];
    if (others > 0)
        MB_TRY(mb_str_add_format(&wish->differences, "data (%lld of %lld records are others)",
                                 (long long)others, (long long)n));
    else
        MB_TRY(mb_str_add(&wish->differences, "data (the same texts, but other tokens or loss masks)"));
done:
    mb_str_destroy(&there);
    return status;
}

static int64_t cut(int64_t length, int64_t limit)
{
    return length < limit ? length : limit;
}

/* Records are what is cut: two limits are the same where no record is between them. */
static mb_status compare_length(reference_wish *wish)
{
    mb_status status = MB_OK;
    const int64_t n = mb_shard_count(wish->shard), here = wish->max_length > 0 ? wish->max_length : INT64_MAX;
    int64_t there, others = 0;
    MB_TRY(mb_h5_get_int(mb_scores_file(wish->scores), "/", "max_length", &there));
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = mb_shard_length(wish->shard, i);
        others += cut(length, there) != cut(length, here);
    }
    if (others == 0) goto done;
    MB_TRY(begin_difference(wish));
    MB_TRY(mb_str_add_format(&wish->differences, "max_length (%lld there, ", (long long)there));
    if (wish->max_length > 0)
        MB_TRY(mb_str_add_format(&wish->differences, "%lld", (long long)wish->max_length));
    else
        MB_TRY(mb_str_add(&wish->differences, "records as they stand"));
    MB_TRY(
        mb_str_add_format(&wish->differences, " here: %lld records are cut elsewhere)", (long long)others));
done:
    return status;
}

/* The model by the hash of its folder, or of folder and adapter together as mb_lm_hash has it. */
static mb_status compare_model(reference_wish *wish)
{
    mb_status status = MB_OK;
    mb_str whole = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(mb_scores_file(wish->scores), "/", "source_model", &whole));
    const bool is_whole = strcmp(mb_str_text(&whole), wish->model) == 0;
    if (!is_whole) MB_TRY(compare(wish, "source_folder", "model", wish->model));
    if (!is_whole || *wish->adapter != 0) MB_TRY(compare(wish, "source_adapter", "adapter", wish->adapter));
    MB_TRY(compare(wish, "dtype", "dtype", mb_dtype_name(wish->dtype)));
done:
    mb_str_destroy(&whole);
    return status;
}

/* ---- 2. refusing ---- */

static mb_status refuse(const reference_wish *wish, const char *path)
{
    mb_status status = MB_OK;
    mb_str command = MB_STR_EMPTY;
    const char *file = mb_shard_files(wish->shard) > 0 ? mb_shard_file_path(wish->shard, 0) : "SHARD.h5";
    MB_TRY(mb_str_add_format(&command,
                             "moe-score score.scores=logprob dataset.path=%s%s model.path=REFERENCE", file,
                             mb_shard_files(wish->shard) > 1 ? ",..." : ""));
    if (*wish->adapter != 0) MB_TRY(mb_str_add(&command, " model.adapter=ADAPTER"));
    if (wish->max_length > 0)
        MB_TRY(mb_str_add_format(&command, " dataset.max_length=%lld", (long long)wish->max_length));
    if (!wish->any_model) MB_TRY(mb_str_add_format(&command, " model.dtype=%s", mb_dtype_name(wish->dtype)));
    MB_RAISE(
        MB_EDATA,
        "%s: reference log-probabilities of something else: %s. Make them with %s output.dir=REFERENCE_RUN "
        "(REFERENCE: the model that training starts from)",
        path, mb_str_text(&wish->differences), mb_str_text(&command));
done:
    mb_str_destroy(&command);
    return status;
}

static mb_status check(reference_wish *wish, const char *path)
{
    mb_status status = MB_OK;
    MB_TRY(compare_data(wish));
    MB_TRY(compare(wish, "tokenizer", "tokenizer", mb_shard_tokenizer_hash(wish->shard)));
    MB_TRY(compare(wish, "template", "template", mb_shard_template_hash(wish->shard)));
    MB_TRY(compare_length(wish));
    if (!wish->any_model) MB_TRY(compare_model(wish));
    if (wish->differences.length > 0) MB_TRY(refuse(wish, path));
done:
    return status;
}

/* ---- 3. values ---- */

static bool has_column(const mb_scores *scores, const char *name)
{
    for (int64_t i = 0; i < mb_scores_columns(scores); i++)
        if (strcmp(mb_scores_column_get(scores, i)->name, name) == 0) return true;
    return false;
}

static mb_status read_values(mb_scores *scores, const char *path, mb_reference *reference)
{
    mb_status status = MB_OK;
    const int64_t n = reference->count;
    MB_NEW_ARRAY(reference->logprob, n);
    MB_NEW_ARRAY(reference->targets, n);
    MB_TRY(mb_scores_read(scores, "logprob", 0, n, reference->logprob));
    MB_TRY(mb_scores_read(scores, "targets", 0, n, reference->targets));
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(reference->logprob[i]) || !(reference->targets[i] >= 0))
            MB_RAISE(MB_EDATA,
                     "%s: record %lld has log-probability %g over %g targets, which cannot be; check the "
                     "weights of the model and score it again",
                     path, (long long)i, reference->logprob[i], reference->targets[i]);
    MB_TRY(mb_h5_content_hash(mb_scores_file(scores), reference->hash));
done:
    return status;
}

/* ---- 4. opening ---- */

mb_status mb_reference_open(const char *path, mb_shard *shard, const char *model_hash,
                            const char *opt_adapter_hash, mb_dtype dtype, bool any_model, int64_t max_length,
                            mb_reference **out_reference)
{
    mb_status status = MB_OK;
    mb_reference *reference = NULL;
    reference_wish wish = {.shard = shard,
                           .model = model_hash != NULL ? model_hash : "",
                           .adapter = opt_adapter_hash != NULL ? opt_adapter_hash : "",
                           .dtype = dtype,
                           .any_model = any_model,
                           .max_length = max_length};
    MB_TRY(mb_scores_open(path, &wish.scores));
    if (!has_column(wish.scores, "logprob") || !has_column(wish.scores, "targets"))
        MB_RAISE(MB_ENOTFOUND,
                 "%s: a score file without log-probabilities; make one with moe-score score.scores=logprob",
                 path);
    MB_TRY(check(&wish, path));
    MB_NEW(reference);
    reference->count = mb_scores_count(wish.scores);
    MB_TRY(read_values(wish.scores, path, reference));
    *out_reference = reference;
    reference = NULL;
done:
    mb_str_destroy(&wish.differences);
    mb_scores_close(&wish.scores);
    mb_reference_close(&reference);
    return status;
}

void mb_reference_close(mb_reference **reference)
{
    if (*reference == NULL) return;
    mb_free((*reference)->logprob);
    mb_free((*reference)->targets);
    MB_FREE(*reference);
}

/* ---- 5. access ---- */

int64_t mb_reference_count(const mb_reference *reference)
{
    return reference->count;
}

double mb_reference_logprob(const mb_reference *reference, int64_t record)
{
    assert(record >= 0 && record < reference->count);
    return reference->logprob[record];
}

int64_t mb_reference_targets(const mb_reference *reference, int64_t record)
{
    assert(record >= 0 && record < reference->count);
    return (int64_t)reference->targets[record];
}

const char *mb_reference_hash(const mb_reference *reference)
{
    return reference->hash;
}
