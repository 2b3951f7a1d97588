/* category_files: see the header.
 *
 * Contents: 1. memory  2. writing  3. reading  4. rates
 */
#include "stage/category_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "store/h5.h"

enum { VERSION = 1 };
static const char format_name[] = "moebatch-categories";

/* ---- 1. memory ---- */

void mb_category_entry_reset(mb_category_entry *entry)
{
    mb_free(entry->name);
    mb_free(entry->judged_by);
    mb_category_result_reset(&entry->result);
    *entry = (mb_category_entry){0};
}

void mb_category_book_reset(mb_category_book *book)
{
    for (int64_t i = 0; book->entry != NULL && i < book->count; i++) mb_category_entry_reset(&book->entry[i]);
    mb_free(book->entry);
    mb_free(book->measured_on);
    *book = (mb_category_book){0};
}

/* ---- 2. writing ---- */

static mb_status write_column(mb_h5 *file, const char *name, const char *column, mb_dtype dtype, void *data,
                              int64_t n)
{
    mb_status status = MB_OK;
    const mb_tensor tensor = mb_tensor_view1(dtype, data, n);
    char *path = mb_str_format("/%s/%s", name, column);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_h5_write(file, path, &tensor));
done:
    mb_free(path);
    return status;
}

static mb_status write_entry(mb_h5 *file, const mb_category_entry *e)
{
    mb_status status = MB_OK;
    const mb_category_result *r = &e->result;
    double cost[] = {(double)r->forward_tokens, r->forward_seconds,       (double)e->step_tokens,
                     e->step_seconds,           (double)e->prompt_tokens, (double)e->generated_tokens,
                     e->generate_seconds};
    char *group = mb_str_format("/%s", e->name), *place = mb_str_format("provenance/%s", e->name);
    if (group == NULL || place == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(write_column(file, e->name, "kind", MB_U8, r->kind, r->records));
    MB_TRY(write_column(file, e->name, "record_hash", MB_U64, r->hash, r->records));
    MB_TRY(write_column(file, e->name, "nll", MB_F64, r->nll, r->records));
    MB_TRY(write_column(file, e->name, "tokens", MB_I64, r->tokens, r->records));
    MB_TRY(write_column(file, e->name, "correct", MB_F64, r->correct, r->records));
    MB_TRY(mb_h5_set_text(file, group, "file", e->file));
    MB_TRY(mb_h5_set_text(file, group, "judged_by", e->judged_by));
    MB_TRY(mb_h5_set_real(file, group, "context", r->context));
    MB_TRY(write_column(file, place, "cost", MB_F64, cost, (int64_t)(sizeof cost / sizeof *cost)));
done:
    mb_free(group);
    mb_free(place);
    return status;
}

mb_status mb_category_files_write(const mb_category_book *book, const char *path)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    const char **names = NULL;
    MB_NEW_ARRAY(names, book->count + 1);
    for (int64_t i = 0; i < book->count; i++) names[i] = book->entry[i].name;
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", format_name));
    MB_TRY(mb_h5_set_int(file, "/", "version", VERSION));
    MB_TRY(mb_h5_set_text(file, "/", "model", book->model));
    MB_TRY(mb_h5_set_text(file, "/", "tokenizer", book->tokenizer));
    MB_TRY(mb_h5_set_text(file, "/", "template", book->tmpl));
    MB_TRY(mb_h5_set_real(file, "/", "flops_per_token", book->flops_per_token));
    MB_TRY(mb_h5_set_real(file, "/", "parameters", book->parameters));
    MB_TRY(mb_h5_write_strings(file, "/categories", names, book->count));
    for (int64_t i = 0; i < book->count; i++) MB_TRY(write_entry(file, &book->entry[i]));
    MB_TRY(mb_h5_set_text(file, "/provenance", "measured_on", book->measured_on));
    MB_TRY(mb_h5_set_int(file, "/provenance", "speed_tokens", book->speed_tokens));
    MB_TRY(mb_h5_set_real(file, "/provenance", "speed_seconds", book->speed_seconds));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    mb_free(names);
    return status;
}

/* ---- 3. reading ---- */

static mb_status read_column(mb_h5 *file, const char *name, const char *column, mb_dtype dtype, int64_t n,
                             void **out_data)
{
    mb_status status = MB_OK;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    char *path = mb_str_format("/%s/%s", name, column);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_h5_read_new(file, path, dtype, &dims, shape, &data));
    if (dims != 1 || shape[0] != n)
        MB_RAISE(MB_EFORMAT, "%s: %s has another number of records than its category", mb_h5_path(file),
                 path);
    *out_data = data;
    data = NULL;
done:
    mb_free(data);
    mb_free(path);
    return status;
}

static mb_status read_hash(mb_h5 *file, const char *object, const char *name, char out[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, object, name, &text));
    if (text.length >= MB_HASH_TEXT)
        MB_RAISE(MB_EFORMAT, "%s: attribute %s of %s is no hash", mb_h5_path(file), name, object);
    snprintf(out, MB_HASH_TEXT, "%s", mb_str_text(&text));
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status read_cost(mb_h5 *file, mb_category_entry *e)
{
    mb_status status = MB_OK;
    double *cost = NULL;
    char *place = mb_str_format("provenance/%s", e->name);
    if (place == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(read_column(file, place, "cost", MB_F64, 7, (void **)&cost));
    e->result.forward_tokens = (int64_t)cost[0];
    e->result.forward_seconds = cost[1];
    e->step_tokens = (int64_t)cost[2];
    e->step_seconds = cost[3];
    e->prompt_tokens = (int64_t)cost[4];
    e->generated_tokens = (int64_t)cost[5];
    e->generate_seconds = cost[6];
done:
    mb_free(cost);
    mb_free(place);
    return status;
}

static mb_status read_entry(mb_h5 *file, const char *name, mb_category_entry *e)
{
    mb_status status = MB_OK;
    mb_category_result *r = &e->result;
    mb_str text = MB_STR_EMPTY;
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    char *group = mb_str_format("/%s", name), *path = mb_str_format("/%s/nll", name);
    e->name = mb_strdup(name);
    if (group == NULL || path == NULL || e->name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a category");
    MB_TRY(mb_h5_shape(file, path, &dtype, &dims, shape));
    r->records = dims == 1 ? shape[0] : 0;
    MB_TRY(read_column(file, name, "kind", MB_U8, r->records, (void **)&r->kind));
    MB_TRY(read_column(file, name, "record_hash", MB_U64, r->records, (void **)&r->hash));
    MB_TRY(read_column(file, name, "nll", MB_F64, r->records, (void **)&r->nll));
    MB_TRY(read_column(file, name, "tokens", MB_I64, r->records, (void **)&r->tokens));
    MB_TRY(read_column(file, name, "correct", MB_F64, r->records, (void **)&r->correct));
    MB_TRY(read_hash(file, group, "file", e->file));
    MB_TRY(mb_h5_get_text(file, group, "judged_by", &text));
    e->judged_by = mb_strdup(mb_str_text(&text));
    if (e->judged_by == NULL) MB_RAISE(MB_ENOMEM, "no memory for a category");
    MB_TRY(mb_h5_get_real(file, group, "context", &r->context));
    MB_TRY(read_cost(file, e));
done:
    mb_str_destroy(&text);
    mb_free(group);
    mb_free(path);
    return status;
}

static mb_status check_format(mb_h5 *file)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    int64_t version = 0;
    if (mb_h5_get_text(file, "/", "format", &text) != MB_OK) mb_status_reset();
    if (strcmp(mb_str_text(&text), format_name) != 0)
        MB_RAISE(MB_EFORMAT, "%s: is no %s file; moe-eval eval.categories=... writes them", mb_h5_path(file),
                 format_name);
    MB_TRY(mb_h5_get_int(file, "/", "version", &version));
    if (version != VERSION)
        MB_RAISE(MB_EFORMAT, "%s: has version %lld, and %d is read here", mb_h5_path(file),
                 (long long)version, VERSION);
done:
    mb_str_destroy(&text);
    return status;
}

mb_status mb_category_files_read(const char *path, mb_category_book *out_book)
{
    mb_status status = MB_OK;
    mb_category_book book = {0};
    mb_h5 *file = NULL;
    mb_str text = MB_STR_EMPTY;
    char **names = NULL;
    int64_t n = 0;
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(check_format(file));
    MB_TRY(read_hash(file, "/", "model", book.model));
    MB_TRY(read_hash(file, "/", "tokenizer", book.tokenizer));
    MB_TRY(read_hash(file, "/", "template", book.tmpl));
    MB_TRY(mb_h5_get_real(file, "/", "flops_per_token", &book.flops_per_token));
    MB_TRY(mb_h5_get_real(file, "/", "parameters", &book.parameters));
    MB_TRY(mb_h5_get_text(file, "/provenance", "measured_on", &text));
    book.measured_on = mb_strdup(mb_str_text(&text));
    if (book.measured_on == NULL) MB_RAISE(MB_ENOMEM, "no memory for a text");
    MB_TRY(mb_h5_get_int(file, "/provenance", "speed_tokens", &book.speed_tokens));
    MB_TRY(mb_h5_get_real(file, "/provenance", "speed_seconds", &book.speed_seconds));
    MB_TRY(mb_h5_read_strings(file, "/categories", &names, &n));
    MB_NEW_ARRAY(book.entry, n + 1);
    book.count = n;
    for (int64_t i = 0; i < n; i++) MB_TRY(read_entry(file, names[i], &book.entry[i]));
    *out_book = book;
    book = (mb_category_book){0};
done:
    mb_category_book_reset(&book);
    mb_h5_free_strings(&names, n);
    mb_str_destroy(&text);
    mb_h5_destroy(&file);
    return status;
}

/* ---- 4. rates ---- */

double mb_category_book_scoring_rate(const mb_category_book *book)
{
    double tokens = 0, seconds = 0;
    for (int64_t i = 0; i < book->count; i++) {
        tokens += (double)book->entry[i].result.forward_tokens;
        seconds += book->entry[i].result.forward_seconds;
    }
    return seconds > 0 ? tokens / seconds : NAN;
}

double mb_category_book_decoding_rate(const mb_category_book *book)
{
    double tokens = (double)book->speed_tokens, seconds = book->speed_seconds;
    for (int64_t i = 0; i < book->count && book->speed_tokens == 0; i++) {
        tokens += (double)book->entry[i].step_tokens;
        seconds += book->entry[i].step_seconds;
    }
    return tokens > 0 && seconds > 0 ? tokens / seconds : NAN;
}
