/* compare_result: see the header.
 *
 * Contents: 1. the same records  2. columns and draws  3. values  4. all
 */
#include "stage/compare_result.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "measure/bootstrap.h"

/* ---- 1. the same records ---- */

static const mb_category_entry *find_entry(const mb_category_book *book, const char *name)
{
    for (int64_t i = 0; i < book->count; i++)
        if (strcmp(book->entry[i].name, name) == 0) return &book->entry[i];
    return NULL;
}

static mb_status check_entry(const char *first, const mb_category_entry *a, const char *place,
                             const mb_category_entry *b, bool is_same_tokenizer)
{
    mb_status status = MB_OK;
    const mb_category_result *x = &a->result, *y = &b->result;
    if (strcmp(a->file, b->file) != 0)
        MB_RAISE(MB_EDATA, "category %s: %s and %s evaluated different files (%.8s... and %.8s...)", a->name,
                 first, place, a->file, b->file);
    if (x->records != y->records)
        MB_RAISE(MB_EDATA, "category %s: %s has %lld records, %s has %lld (eval.limit?)", a->name, first,
                 (long long)x->records, place, (long long)y->records);
    if (strcmp(a->judged_by, b->judged_by) != 0)
        MB_RAISE(MB_EDATA, "category %s: %s judged answers by %s, %s by %s", a->name, first, a->judged_by,
                 place, b->judged_by);
    for (int64_t i = 0; i < x->records; i++) {
        if (x->hash[i] != y->hash[i] || x->kind[i] != y->kind[i])
            MB_RAISE(MB_EDATA, "category %s: record %lld of %s is not that of %s", a->name, (long long)i,
                     first, place);
        if (is_same_tokenizer && x->tokens[i] != y->tokens[i])
            MB_RAISE(MB_EDATA,
                     "category %s: record %lld has %lld target tokens in %s and %lld in %s; give both models "
                     "one eval.max_length and one eval.template",
                     a->name, (long long)i, (long long)x->tokens[i], first, (long long)y->tokens[i], place);
    }
done:
    return status;
}

mb_status mb_compare_check(const char *const *places, const mb_category_book *const *book, int64_t models)
{
    mb_status status = MB_OK;
    const mb_category_book *a = book[0];
    for (int64_t m = 1; m < models; m++) {
        const mb_category_book *b = book[m];
        const bool is_same_tokenizer = strcmp(a->tokenizer, b->tokenizer) == 0;
        for (int64_t c = 0; c < a->count || c < b->count; c++) {
            const bool here = c < a->count;
            const char *name = here ? a->entry[c].name : b->entry[c].name;
            const mb_category_entry *x = find_entry(a, name), *y = find_entry(b, name);
            if (x == NULL || y == NULL)
                MB_RAISE(MB_EDATA, "%s has a category %s, and %s has none", x != NULL ? places[0] : places[m],
                         name, x != NULL ? places[m] : places[0]);
            MB_TRY(check_entry(places[0], x, places[m], y, is_same_tokenizer));
        }
        if (b->count != a->count)
            MB_RAISE(MB_EDATA, "%s and %s have different categories", places[0], places[m]);
        if (is_same_tokenizer && strcmp(a->tmpl, b->tmpl) != 0)
            MB_RAISE(MB_EDATA,
                     "%s and %s laid the records out by different templates; name one with "
                     "eval.template",
                     places[0], places[m]);
    }
done:
    return status;
}

/* ---- 2. columns and draws ---- */

/* The statistics of one category: its own, and of every draw. Columns: losses per token of all models, then
 * accuracies. */
typedef struct sample {
    int64_t columns;
    double *own;   /* [columns] */
    double *drawn; /* [draws, columns] */
} sample;

static void sample_reset(sample *s)
{
    mb_free(s->own);
    mb_free(s->drawn);
}

/* Losses and tokens, right answers and whether they were judged, as columns: [4, records] of memory. */
static void fill_columns(const mb_category_result *r, double *memory, mb_bootstrap_column *loss,
                         mb_bootstrap_column *right)
{
    const int64_t n = r->records;
    double *tokens = memory, *correct = memory + n, *judged = memory + 2 * n;
    for (int64_t i = 0; i < n; i++) {
        tokens[i] = (double)r->tokens[i];
        judged[i] = !isnan(r->correct[i]);
        correct[i] = judged[i] != 0 ? r->correct[i] : 0;
    }
    *loss = (mb_bootstrap_column){.value = r->nll, .weight = tokens};
    *right = (mb_bootstrap_column){.value = correct, .weight = judged};
}

static mb_status draw(const mb_category_book *const *book, int64_t models, const char *name,
                      const mb_compare_options *options, sample *out)
{
    mb_status status = MB_OK;
    sample s = {.columns = 2 * models};
    mb_bootstrap_column *column = NULL;
    double *memory = NULL;
    const int64_t records = find_entry(book[0], name)->result.records;
    MB_NEW_ARRAY(column, s.columns);
    MB_NEW_ARRAY(memory, models * 3 * records + 1);
    MB_NEW_ARRAY(s.own, s.columns);
    MB_NEW_ARRAY(s.drawn, options->draws * s.columns);
    for (int64_t m = 0; m < models; m++)
        fill_columns(&find_entry(book[m], name)->result, memory + m * 3 * records, &column[m],
                     &column[models + m]);
    for (int64_t c = 0; c < s.columns; c++) s.own[c] = mb_bootstrap_statistic(&column[c], records);
    const uint32_t sub = (uint32_t)mb_hash_u64(name, strlen(name), 0);
    MB_TRY(
        mb_bootstrap_draw(column, s.columns, records, options->draws, (uint64_t)options->seed, sub, s.drawn));
    *out = s;
    s = (sample){0};
done:
    sample_reset(&s);
    mb_free(column);
    mb_free(memory);
    return status;
}

/* The mean over the samples, column by column; a column that some sample lacks is the mean of the others. */
static mb_status mean_sample(const sample *samples, int64_t count, int64_t draws, sample *out)
{
    mb_status status = MB_OK;
    sample s = {.columns = samples[0].columns};
    MB_NEW_ARRAY(s.own, s.columns);
    MB_NEW_ARRAY(s.drawn, draws * s.columns);
    for (int64_t c = 0; c < s.columns; c++) {
        int64_t there = 0;
        for (int64_t k = 0; k < count; k++) {
            if (isnan(samples[k].own[c])) continue;
            there++;
            s.own[c] += samples[k].own[c];
            for (int64_t b = 0; b < draws; b++)
                s.drawn[b * s.columns + c] += samples[k].drawn[b * s.columns + c];
        }
        s.own[c] = there > 0 ? s.own[c] / (double)there : NAN;
        for (int64_t b = 0; b < draws; b++)
            s.drawn[b * s.columns + c] = there > 0 ? s.drawn[b * s.columns + c] / (double)there : NAN;
    }
    *out = s;
    s = (sample){0};
done:
    sample_reset(&s);
    return status;
}

/* ---- 3. values ---- */

/* Column `a` less column `b` (-1: nothing), and its interval. work: [draws]. */
static mb_status value_of(const sample *s, int64_t a, int64_t b, const mb_compare_options *options,
                          double *work, mb_compare_value *out)
{
    mb_status status = MB_OK;
    out->value = s->own[a] - (b >= 0 ? s->own[b] : 0);
    for (int64_t d = 0; d < options->draws; d++)
        work[d] = s->drawn[d * s->columns + a] - (b >= 0 ? s->drawn[d * s->columns + b] : 0);
    MB_TRY(mb_bootstrap_interval(work, options->draws, 1, options->level, &out->low, &out->high));
done:
    return status;
}

static mb_compare_value exp_of(mb_compare_value v)
{
    return (mb_compare_value){exp(v.value), exp(v.low), exp(v.high)};
}

static mb_status fill_cell(const sample *s, int64_t model, int64_t models, bool is_same_tokenizer,
                           const mb_compare_options *options, double *work, mb_compare_cell *cell)
{
    mb_status status = MB_OK;
    const int64_t base = options->baseline;
    MB_TRY(value_of(s, model, -1, options, work, &cell->perplexity));
    MB_TRY(value_of(s, models + model, -1, options, work, &cell->accuracy));
    MB_TRY(value_of(s, model, base, options, work, &cell->ratio));
    MB_TRY(value_of(s, models + model, models + base, options, work, &cell->gain));
    cell->perplexity = exp_of(cell->perplexity);
    cell->ratio = is_same_tokenizer ? exp_of(cell->ratio) : (mb_compare_value){NAN, NAN, NAN};
done:
    return status;
}

const mb_compare_cell *mb_compare_get(const mb_compare_result *result, int64_t model, int64_t category)
{
    return &result->cell[model * (result->categories + 1) + category];
}

bool mb_compare_excludes(const mb_compare_value *value, double none)
{
    return value->low > none || value->high < none;
}

/* ---- 4. all ---- */

void mb_compare_reset(mb_compare_result *result)
{
    mb_free(result->cell);
    mb_free(result->scoring);
    mb_free(result->decoding);
    *result = (mb_compare_result){0};
}

static mb_status fill_cells(mb_compare_result *r, const sample *samples, const mb_compare_options *options)
{
    mb_status status = MB_OK;
    double *work = NULL;
    MB_NEW_ARRAY(work, options->draws);
    for (int64_t m = 0; m < r->models; m++) {
        const bool is_same = strcmp(r->book[m]->tokenizer, r->book[r->baseline]->tokenizer) == 0;
        for (int64_t c = 0; c <= r->categories; c++)
            MB_TRY(fill_cell(&samples[c], m, r->models, is_same, options, work,
                             &r->cell[m * (r->categories + 1) + c]));
    }
done:
    mb_free(work);
    return status;
}

mb_status mb_compare_make(const char **names, const mb_category_book *const *book, int64_t models,
                          const mb_compare_options *options, mb_compare_result *out_result)
{
    mb_status status = MB_OK;
    sample *samples = NULL;
    const int64_t categories = book[0]->count;
    mb_compare_result r = {.models = models,
                           .categories = categories,
                           .model = names,
                           .book = book,
                           .baseline = options->baseline,
                           .draws = options->draws,
                           .seed = options->seed,
                           .level = options->level};
    MB_NEW_ARRAY(samples, categories + 1);
    MB_NEW_ARRAY(r.cell, models * (categories + 1));
    MB_NEW_ARRAY(r.scoring, models);
    MB_NEW_ARRAY(r.decoding, models);
    for (int64_t c = 0; c < categories; c++)
        MB_TRY(draw(book, models, book[0]->entry[c].name, options, &samples[c]));
    MB_TRY(mean_sample(samples, categories, options->draws, &samples[categories]));
    MB_TRY(fill_cells(&r, samples, options));
    for (int64_t m = 0; m < models; m++) {
        r.scoring[m] = mb_category_book_scoring_rate(book[m]);
        r.decoding[m] = mb_category_book_decoding_rate(book[m]);
    }
    *out_result = r;
    r = (mb_compare_result){0};
done:
    for (int64_t c = 0; samples != NULL && c <= categories; c++) sample_reset(&samples[c]);
    mb_free(samples);
    mb_compare_reset(&r);
    return status;
}
