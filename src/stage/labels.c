/* labels: AUC of every score per kind of damage.
 *
 * Contents: 1. reading labels  2. AUC of one column  3. report
 */
#include "stage/labels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "choose/select.h"
#include "text/records.h"

#define MAX_KINDS 32

typedef struct label {
    uint64_t key;
    int64_t kind;
} label;

typedef struct labels {
    label *data;
    int64_t count, capacity;
    char *kinds[MAX_KINDS]; /* kinds[0] is "good" */
    int64_t kind_count;
    int64_t *row_kind; /* [N] kind of each row, -1 none */
} labels;

/* ---- 1. reading labels ---- */

static uint64_t key_of(const char *source, int64_t index)
{
    return mb_hash_u64(source, strlen(source), (uint64_t)index);
}

static int by_key(const void *a, const void *b)
{
    const label *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

static mb_status find_kind(labels *l, const char *kind, int64_t *out_kind)
{
    for (int64_t k = 0; k < l->kind_count; ++k)
        if (strcmp(l->kinds[k], kind) == 0) return *out_kind = k, MB_OK;
    if (l->kind_count == MAX_KINDS)
        return mb_fail(MB_EDATA, "labels: more than %d kinds of damage", MAX_KINDS);
    if ((l->kinds[l->kind_count] = mb_strdup(kind)) == NULL) return MB_ENOMEM;
    return *out_kind = l->kind_count++, MB_OK;
}

static mb_status add_label(labels *l, const mb_record *record, const char *path)
{
    mb_status status = MB_OK;
    const char *source, *kind;
    int64_t index;
    if (record->problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", path, record->problem);
    MB_TRY(mb_json_get_string(record->json, "source", path, &source));
    MB_TRY(mb_json_get_int(record->json, "index", path, &index));
    MB_TRY(mb_json_get_string(record->json, "kind", path, &kind));
    if (l->count == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 4096;
        label *data = mb_realloc(l->data, (size_t)l->capacity, sizeof *data);
        if (data == NULL) MB_RAISE(MB_ENOMEM, "no memory for labels");
        l->data = data;
    }
    l->data[l->count].key = key_of(source, index);
    MB_TRY(find_kind(l, kind, &l->data[l->count].kind));
    ++l->count;
done:
    return status;
}

static mb_status read_labels(labels *l, const char *path, const mb_scores *scores)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    mb_scores_records rows;
    int64_t good, matched = 0;
    MB_TRY(find_kind(l, "good", &good));
    MB_TRY(mb_records_open(path, INT64_MAX, &records));
    for (;;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        MB_TRY(add_label(l, &record, path));
    }
    qsort(l->data, (size_t)l->count, sizeof *l->data, by_key);
    MB_TRY(mb_scores_records_view(scores, &rows));
    MB_NEW_ARRAY(l->row_kind, mb_scores_count(scores) + 1);
    for (int64_t i = 0; i < mb_scores_count(scores); ++i) {
        const label wanted = {.key = key_of(rows.source_names[rows.source[i]], rows.source_index[i])};
        const label *found = bsearch(&wanted, l->data, (size_t)l->count, sizeof *l->data, by_key);
        l->row_kind[i] = found != NULL ? found->kind : -1;
        matched += found != NULL;
    }
    if (matched == 0)
        MB_RAISE(MB_EDATA, "%s: no label matches a record of the score table (source, index)", path);
done:
    mb_records_close(&records);
    return status;
}

static void free_labels(labels *l)
{
    for (int64_t k = 0; k < l->kind_count; ++k) mb_free(l->kinds[k]);
    mb_free(l->data);
    mb_free(l->row_kind);
}

/* ---- 2. AUC of one column ---- */

/* kind < 0: all kinds of damage together. values: higher is better. NaN when one side is empty. */
static double column_auc(const labels *l, const double *values, int64_t n, int64_t kind, double *good,
                         double *bad)
{
    int64_t good_count = 0, bad_count = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (l->row_kind[i] < 0 || isnan(values[i])) continue;
        if (l->row_kind[i] == 0)
            good[good_count++] = values[i];
        else if (kind < 0 || l->row_kind[i] == kind)
            bad[bad_count++] = values[i];
    }
    return good_count > 0 && bad_count > 0 ? mb_select_auc(good, good_count, bad, bad_count) : NAN;
}

static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static mb_status add_column(const labels *l, const mb_scores *scores, const mb_scores_column *column,
                            double *work, json_t *out_scores, mb_str *table)
{
    mb_status status = MB_OK;
    const int64_t n = mb_scores_count(scores);
    double *values = work, *good = work + n, *bad = work + 2 * n;
    json_t *entry = json_object(), *layers = json_array();
    MB_TRY(mb_scores_read(scores, column->name, 0, n, values));
    for (int64_t i = 0; i < n && !column->higher_is_better; ++i) values[i] = -values[i];
    MB_TRY(mb_str_add_format(table, "  %-16s", column->name));
    for (int64_t k = -1; k < l->kind_count; ++k) {
        if (k == 0) continue;
        const double auc = column_auc(l, values, n, k, good, bad);
        MB_TRY(mb_json_set(entry, k < 0 ? "all" : l->kinds[k], real_or_null(auc)));
        MB_TRY(mb_str_add_format(table, " %9.3f", auc));
    }
    MB_TRY(mb_str_add_format(table, "  %10.3g\n", column->flops_per_token));
    for (int64_t layer = 0; column->has_layers && layer < mb_scores_layers(scores); ++layer) {
        MB_TRY(mb_scores_read_layers(scores, column->name, &layer, 1, 0, n, values));
        for (int64_t i = 0; i < n && !column->higher_is_better; ++i) values[i] = -values[i];
        if (json_array_append_new(layers, real_or_null(column_auc(l, values, n, -1, good, bad))) != 0)
            MB_RAISE(MB_ENOMEM, "no memory");
    }
    MB_TRY(mb_json_set(entry, "layers", json_incref(layers)));
    MB_TRY(mb_json_set(entry, "flops_per_token", json_real(column->flops_per_token)));
    MB_TRY(mb_json_set(out_scores, column->name, json_incref(entry)));
done:
    json_decref(entry);
    json_decref(layers);
    return status;
}

/* ---- 3. report ---- */

static mb_status count_kinds(const labels *l, int64_t n, json_t *report)
{
    mb_status status = MB_OK;
    json_t *counts = json_object();
    for (int64_t k = 0; k < l->kind_count; ++k) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; ++i) count += l->row_kind[i] == k;
        MB_TRY(mb_json_set(counts, l->kinds[k], json_integer(count)));
    }
    MB_TRY(mb_json_set(report, "counts", json_incref(counts)));
done:
    json_decref(counts);
    return status;
}

mb_status mb_labels_auc(const mb_scores *scores, const char *labels_path, const char *json_path)
{
    mb_status status = MB_OK;
    labels l = {0};
    double *work = NULL;
    mb_str table = MB_STR_EMPTY;
    json_t *report = json_object(), *columns = json_object();
    MB_TRY(read_labels(&l, labels_path, scores));
    MB_NEW_ARRAY(work, 3 * mb_scores_count(scores) + 1);
    MB_TRY(mb_str_add_format(&table, "AUC              %9s", "all"));
    for (int64_t k = 1; k < l.kind_count; ++k) MB_TRY(mb_str_add_format(&table, " %9.9s", l.kinds[k]));
    MB_TRY(mb_str_add(&table, "  FLOPs/token\n"));
    for (int64_t i = 0; i < mb_scores_columns(scores); ++i)
        MB_TRY(add_column(&l, scores, mb_scores_column_get(scores, i), work, columns, &table));
    MB_TRY(mb_json_set(report, "scores", json_incref(columns)));
    MB_TRY(count_kinds(&l, mb_scores_count(scores), report));
    MB_TRY(mb_json_write(json_path, report, 2, false));
    mb_info("%s", mb_str_text(&table));
done:
    json_decref(report);
    json_decref(columns);
    mb_str_destroy(&table);
    mb_free(work);
    free_labels(&l);
    return status;
}
