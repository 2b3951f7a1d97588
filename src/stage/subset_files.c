/* subset_files.c: see subset_files.h.
 *
 * 1. cells   2. tables   3. HDF5   4. JSON
 */
#include "stage/subset_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "base/memory.h"
#include "store/h5.h"

/* ---- 1. cells ---- */

enum { CELL = 32 };

/* Experts of a set by name, joined by '+'; "none". mb_free. */
static char *set_text(const mb_outputs *outputs, uint64_t set)
{
    mb_str text = MB_STR_EMPTY;
    mb_status status = set == 0 ? mb_str_add(&text, "none") : MB_OK;
    for (int64_t e = 0; e < outputs->experts && status == MB_OK; e++) {
        if ((set >> e & 1) == 0) continue;
        status = mb_str_add_format(&text, "%s%s", text.length > 0 ? "+" : "", outputs->expert_names[e]);
    }
    char *copy = status == MB_OK ? mb_strdup(mb_str_text(&text)) : NULL;
    mb_str_destroy(&text);
    return copy;
}

static void limit_text(char out[CELL], double limit)
{
    if (isinf(limit))
        snprintf(out, CELL, "-");
    else
        snprintf(out, CELL, "%.6g", limit);
}

static void share_text(char out[CELL], bool has, int64_t right, int64_t questions)
{
    if (!has)
        snprintf(out, CELL, "-");
    else
        snprintf(out, CELL, "%.4f", (double)right / (double)questions);
}

static const char *const columns[] = {"latency_limit_s", "energy_limit_J",  "experts",   "latency_s",
                                      "energy_J",        "train_accuracy",  "bound",     "test_accuracy",
                                      "test_optimum",    "optimum_experts", "retrained", "proved"};
enum { COLUMNS = sizeof columns / sizeof *columns };

static mb_status add_row(const mb_subset_result *r, const mb_subset_row *row, mb_table *table)
{
    mb_status status = MB_OK;
    const int64_t Q = r->train->questions, T = r->test->questions;
    const bool has = row->train.set != 0, has_optimum = row->optimum.set != 0;
    char cell[COLUMNS][CELL] = {{0}};
    char *experts = set_text(r->train, row->train.set), *optimum = set_text(r->train, row->optimum.set);
    if (experts == NULL || optimum == NULL) MB_RAISE(MB_ENOMEM, "no memory for the names of a subset");
    limit_text(cell[0], row->limits.latency);
    limit_text(cell[1], row->limits.energy);
    limit_text(cell[3], has ? row->train.latency : INFINITY);
    limit_text(cell[4], has ? row->train.energy : INFINITY);
    share_text(cell[5], has, row->train.right, Q);
    share_text(cell[6], row->bound > 0, row->bound, Q);
    share_text(cell[7], has, row->test_right, T);
    share_text(cell[8], has_optimum, row->optimum.right, T);
    share_text(cell[10], row->retrained_right >= 0, row->retrained_right, T);
    snprintf(cell[11], CELL, "%s", row->bound == 0 && has ? "-" : row->is_proved ? "yes" : "no");
    const char *cells[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) cells[c] = cell[c];
    cells[2] = experts;
    cells[9] = has_optimum ? optimum : "-";
    MB_TRY(mb_table_add(table, cells));
done:
    mb_free(experts);
    mb_free(optimum);
    return status;
}

static const char *const titles[MB_SUBSET_TABLES] = {
    "Every expert alone, and all together",
    "Best subset under each latency limit",
    "Best subset under each energy limit",
    "Best subset under both limits",
    "Best subset under each decile of latency",
    "Best subset under each decile of energy",
    "Best subset under both deciles",
    "Pareto front: no subset is right more often for as little latency and energy"};

/* ---- 2. tables ---- */

mb_status mb_subset_files_table(const mb_subset_result *result, int table, mb_table *out_table)
{
    mb_status status = MB_OK;
    *out_table = (mb_table){.title = titles[table], .column_count = COLUMNS};
    if (table == MB_SUBSET_TABLE_PARETO && !result->solution->is_exhaustive)
        out_table->title = "Pareto front of the subsets that were found under limits";
    memcpy(out_table->columns, columns, sizeof columns);
    for (int64_t i = 0; i < result->solution->count[table]; i++)
        MB_TRY(add_row(result, &result->solution->rows[table][i], out_table));
done:
    if (status != MB_OK) mb_table_reset(out_table);
    return status;
}

mb_status mb_subset_files_tables(const mb_subset_result *result, const char *folder)
{
    mb_status status = MB_OK;
    mb_table table = {0};
    char *base = NULL;
    MB_TRY(mb_files_make_folders(folder));
    for (int t = 0; t < MB_SUBSET_TABLES; t++) {
        MB_TRY(mb_subset_files_table(result, t, &table));
        if ((base = mb_str_format("%s/%s", folder, mb_subset_solve_name(t))) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_table_write(&table, base));
        mb_table_reset(&table);
        MB_FREE(base);
    }
done:
    mb_table_reset(&table);
    mb_free(base);
    return status;
}

/* ---- 3. HDF5 ---- */

typedef double (*row_real)(const mb_subset_row *row);
typedef int64_t (*row_int)(const mb_subset_row *row);

static double latency_limit(const mb_subset_row *row)
{
    return row->limits.latency;
}
static double energy_limit(const mb_subset_row *row)
{
    return row->limits.energy;
}
static double latency(const mb_subset_row *row)
{
    return row->train.latency;
}
static double energy(const mb_subset_row *row)
{
    return row->train.energy;
}
static int64_t set_of(const mb_subset_row *row)
{
    return (int64_t)row->train.set;
}
static int64_t right(const mb_subset_row *row)
{
    return row->train.right;
}
static int64_t test_right(const mb_subset_row *row)
{
    return row->test_right;
}
static int64_t optimum_set(const mb_subset_row *row)
{
    return (int64_t)row->optimum.set;
}
static int64_t optimum_right(const mb_subset_row *row)
{
    return row->optimum.right;
}
static int64_t bound(const mb_subset_row *row)
{
    return row->bound;
}
static int64_t is_proved(const mb_subset_row *row)
{
    return row->is_proved;
}
static int64_t retrained(const mb_subset_row *row)
{
    return row->retrained_right;
}

static mb_status write_column(mb_h5 *file, const char *table, const char *name, mb_dtype dtype, void *data,
                              int64_t n)
{
    mb_status status = MB_OK;
    char *path = mb_str_format("/tables/%s/%s", table, name);
    const mb_tensor tensor = mb_tensor_view1(dtype, data, n);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a dataset's name");
    MB_TRY(mb_h5_write(file, path, &tensor));
done:
    mb_free(path);
    return status;
}

static mb_status write_table(mb_h5 *file, const char *name, const mb_subset_row *rows, int64_t n)
{
    static const struct {
        const char *name;
        row_real get;
    } reals[] = {{"latency_limit", latency_limit},
                 {"energy_limit", energy_limit},
                 {"latency", latency},
                 {"energy", energy}};
    static const struct {
        const char *name;
        row_int get;
    } ints[] = {{"set", set_of},
                {"right", right},
                {"test_right", test_right},
                {"optimum_set", optimum_set},
                {"optimum_right", optimum_right},
                {"bound", bound},
                {"is_proved", is_proved},
                {"retrained_right", retrained}};
    mb_status status = MB_OK;
    double *real = NULL;
    int64_t *whole = NULL;
    MB_NEW_ARRAY(real, n + 1);
    MB_NEW_ARRAY(whole, n + 1);
    for (size_t c = 0; c < sizeof reals / sizeof *reals; c++) {
        for (int64_t i = 0; i < n; i++) real[i] = reals[c].get(rows + i);
        MB_TRY(write_column(file, name, reals[c].name, MB_F64, real, n));
    }
    for (size_t c = 0; c < sizeof ints / sizeof *ints; c++) {
        for (int64_t i = 0; i < n; i++) whole[i] = ints[c].get(rows + i);
        MB_TRY(write_column(file, name, ints[c].name, MB_I64, whole, n));
    }
done:
    mb_free(real);
    mb_free(whole);
    return status;
}

static mb_status write_subsets(mb_h5 *file, const mb_subset_solution *s)
{
    mb_status status = MB_OK;
    const int64_t n = (int64_t)1 << s->train.experts;
    const mb_tensor right_of = mb_tensor_view1(MB_I32, s->train.right, n),
                    test_of = mb_tensor_view1(MB_I32, s->test.right, n),
                    latency_of = mb_tensor_view1(MB_F64, s->train.latency, n),
                    energy_of = mb_tensor_view1(MB_F64, s->train.energy, n);
    MB_TRY(mb_h5_write(file, "/subsets/right", &right_of));
    MB_TRY(mb_h5_write(file, "/subsets/test_right", &test_of));
    MB_TRY(mb_h5_write(file, "/subsets/latency", &latency_of));
    MB_TRY(mb_h5_write(file, "/subsets/energy", &energy_of));
done:
    return status;
}

static mb_status write_head(mb_h5 *file, const mb_subset_result *r)
{
    mb_status status = MB_OK;
    const mb_subset_work *work = &r->solution->work;
    double seconds[MB_SUBSET_EXPERTS], joules[MB_SUBSET_EXPERTS];
    memcpy(seconds, r->costs->latency, sizeof seconds);
    memcpy(joules, r->costs->energy, sizeof joules);
    const mb_tensor latency_of = mb_tensor_view1(MB_F64, seconds, r->train->experts),
                    energy_of = mb_tensor_view1(MB_F64, joules, r->train->experts);
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-subset"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "questions", r->train->questions_hash));
    MB_TRY(mb_h5_set_text(file, "/", "test_questions", r->test->questions_hash));
    MB_TRY(mb_h5_set_int(file, "/", "question_count", r->train->questions));
    MB_TRY(mb_h5_set_int(file, "/", "test_question_count", r->test->questions));
    MB_TRY(mb_h5_set_text(file, "/", "rule", r->own->rule));
    MB_TRY(mb_h5_set_int(file, "/", "top_k", r->own->top_k));
    MB_TRY(mb_h5_set_text(file, "/", "limits", r->own->limits));
    MB_TRY(
        mb_h5_set_text(file, "/", "method", r->solution->is_exhaustive ? "exhaustive" : "branch_and_bound"));
    MB_TRY(mb_h5_set_real(file, "/", "aggregation_seconds", r->costs->aggregation));
    MB_TRY(mb_h5_set_int(file, "/", "nodes", work->nodes));
    MB_TRY(mb_h5_set_int(file, "/", "evaluations", work->evaluations));
    MB_TRY(mb_h5_set_int(file, "/", "pruned_bound", work->pruned_bound));
    MB_TRY(mb_h5_set_int(file, "/", "pruned_limits", work->pruned_limits));
    MB_TRY(mb_h5_write_strings(file, "/expert_names", (const char *const *)(void *)r->train->expert_names,
                               r->train->experts));
    MB_TRY(mb_h5_write(file, "/latency", &latency_of));
    MB_TRY(mb_h5_write(file, "/energy", &energy_of));
done:
    return status;
}

mb_status mb_subset_files_h5(const mb_subset_result *result, const char *path)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(write_head(file, result));
    for (int t = 0; t < MB_SUBSET_TABLES; t++)
        MB_TRY(write_table(file, mb_subset_solve_name(t), result->solution->rows[t],
                           result->solution->count[t]));
    if (result->solution->is_exhaustive) MB_TRY(write_subsets(file, result->solution));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 4. JSON ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *names(const mb_outputs *outputs, uint64_t set)
{
    json_t *list = json_array();
    for (int64_t e = 0; e < outputs->experts; e++)
        if (set >> e & 1) json_array_append_new(list, json_string(outputs->expert_names[e]));
    return list;
}

static json_t *row_json(const mb_subset_result *r, const mb_subset_row *row)
{
    const double Q = (double)r->train->questions, T = (double)r->test->questions;
    const bool has = row->train.set != 0;
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "latency_limit",
                     number(row->limits.latency), "energy_limit", number(row->limits.energy), "experts",
                     names(r->train, row->train.set), "latency", number(has ? row->train.latency : NAN),
                     "energy", number(has ? row->train.energy : NAN), "train_accuracy",
                     number(has ? (double)row->train.right / Q : NAN), "test_accuracy",
                     number(has ? (double)row->test_right / T : NAN), "test_optimum",
                     number(row->optimum.set != 0 ? (double)row->optimum.right / T : NAN),
                     "retrained_test_accuracy",
                     number(row->retrained_right >= 0 ? (double)row->retrained_right / T : NAN), "bound",
                     number(row->bound > 0 ? (double)row->bound / Q : NAN), "proved", row->is_proved);
}

/* Of the table "single": the expert that is the best one on the training questions; all together. */
static const mb_subset_row *best_single(const mb_subset_solution *s)
{
    const mb_subset_row *rows = s->rows[MB_SUBSET_TABLE_SINGLE], *best = rows;
    for (int64_t i = 1; i < s->count[MB_SUBSET_TABLE_SINGLE] - 1; i++)
        if (mb_subset_is_better(&rows[i].train, &best->train)) best = rows + i;
    return best;
}

static const mb_subset_row *all_together(const mb_subset_solution *s)
{
    return s->rows[MB_SUBSET_TABLE_SINGLE] + s->count[MB_SUBSET_TABLE_SINGLE] - 1;
}

mb_status mb_subset_files_json(const mb_subset_result *result, json_t **out_json)
{
    mb_status status = MB_OK;
    const mb_subset_solution *s = result->solution;
    json_t *tables = json_object();
    json_t *root =
        json_pack("{s:s, s:i, s:s, s:I, s:s, s:s, s:I, s:I, s:I, s:{s:I, s:I, s:I, s:I}}", "format",
                  "moebatch-subset-results", "version", 1, "rule", result->own->rule, "top_k",
                  (json_int_t)result->own->top_k, "limits", result->own->limits, "method",
                  s->is_exhaustive ? "exhaustive" : "branch_and_bound", "questions",
                  (json_int_t)result->train->questions, "test_questions", (json_int_t)result->test->questions,
                  "checked", (json_int_t)s->checked, "branch_and_bound", "nodes", (json_int_t)s->work.nodes,
                  "evaluations", (json_int_t)s->work.evaluations, "pruned_bound",
                  (json_int_t)s->work.pruned_bound, "pruned_limits", (json_int_t)s->work.pruned_limits);
    if (root == NULL || tables == NULL) MB_RAISE(MB_ENOMEM, "no memory for results");
    for (int t = 0; t < MB_SUBSET_TABLES; t++) {
        json_t *rows = json_array();
        for (int64_t i = 0; i < s->count[t]; i++)
            json_array_append_new(rows, row_json(result, &s->rows[t][i]));
        MB_TRY(mb_json_set(tables, mb_subset_solve_name(t), rows));
    }
    MB_TRY(mb_json_set(root, "best_single", row_json(result, best_single(s))));
    MB_TRY(mb_json_set(root, "all", row_json(result, all_together(s))));
    MB_TRY(mb_json_set(root, "tables", json_incref(tables)));
    *out_json = json_incref(root);
done:
    json_decref(tables);
    json_decref(root);
    return status;
}
