/* eval_compare.c: reading the evaluations, comparing them, writing what came out.
 *
 * Contents: 1. reading  2. JSON  3. HDF5  4. comparing  5. run
 */
#include "stage/eval_compare.h"

#include <math.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "stage/compare_table.h"
#include "store/h5.h"

/* ---- 1. reading ---- */

typedef struct comparison {
    mb_named_paths inputs;
    char **path;                    /* [inputs.count] categories.h5 of each */
    mb_category_book *book;         /* [inputs.count] */
    const char **name;              /* [inputs.count] borrowed */
    const mb_category_book **books; /* [inputs.count] borrowed */
    int64_t baseline;
} comparison;

static void close_comparison(comparison *c)
{
    for (int64_t i = 0; i < c->inputs.count; i++) {
        if (c->path != NULL) mb_free(c->path[i]);
        if (c->book != NULL) mb_category_book_reset(&c->book[i]);
    }
    mb_free(c->path);
    mb_free(c->book);
    mb_free(c->name);
    mb_free(c->books);
    mb_named_paths_reset(&c->inputs);
}

static mb_status find_baseline(const mb_category_program *options, comparison *c)
{
    mb_status status = MB_OK;
    if (options->baseline == NULL) goto done;
    for (c->baseline = 0; c->baseline < c->inputs.count; c->baseline++)
        if (strcmp(c->inputs.item[c->baseline].name, options->baseline) == 0) goto done;
    MB_RAISE(MB_EUSAGE, "compare.baseline=%s: compare.inputs names no such model", options->baseline);
done:
    return status;
}

/* The names, and where their files are. */
static mb_status open_comparison(const mb_category_program *options, comparison *c)
{
    mb_status status = MB_OK;
    MB_TRY(mb_named_paths_read("compare.inputs", options->inputs, NULL, 0, &c->inputs));
    if (c->inputs.count == 0)
        MB_RAISE(MB_EUSAGE, "nothing to compare: give compare.inputs=name=folder,name=folder, folders of "
                            "moe-eval eval.categories=...");
    MB_TRY(find_baseline(options, c));
    MB_NEW_ARRAY(c->path, c->inputs.count);
    MB_NEW_ARRAY(c->book, c->inputs.count);
    MB_NEW_ARRAY(c->name, c->inputs.count);
    MB_NEW_ARRAY(c->books, c->inputs.count);
    for (int64_t i = 0; i < c->inputs.count; i++) {
        const mb_named_path *input = &c->inputs.item[i];
        c->name[i] = input->name;
        c->books[i] = &c->book[i];
        c->path[i] = mb_files_is_folder(input->path) ? mb_files_join(input->path, "categories.h5")
                                                     : mb_strdup(input->path);
        if (c->path[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        if (!mb_files_is_file(c->path[i]))
            MB_RAISE(MB_ENOTFOUND,
                     "%s: no such file (compare.inputs, '%s'); moe-eval eval.categories=... "
                     "writes it",
                     c->path[i], input->name);
    }
done:
    return status;
}

/* ---- 2. JSON ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *value_json(const mb_compare_value *v)
{
    return json_pack("{s:o, s:o, s:o}", "value", number(v->value), "low", number(v->low), "high",
                     number(v->high));
}

static json_t *difference_json(const mb_compare_value *v, double none)
{
    json_t *object = value_json(v);
    if (object != NULL) json_object_set_new(object, "is_real", json_boolean(mb_compare_excludes(v, none)));
    return object;
}

static json_t *cell_json(const mb_compare_cell *cell)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "perplexity", value_json(&cell->perplexity), "accuracy",
                     value_json(&cell->accuracy), "perplexity_ratio", difference_json(&cell->ratio, 1),
                     "accuracy_difference", difference_json(&cell->gain, 0));
}

static mb_status add_cells(const mb_compare_result *r, int64_t column, json_t *object)
{
    mb_status status = MB_OK;
    json_t *models = json_object();
    for (int64_t m = 0; m < r->models; m++)
        MB_TRY(mb_json_set(models, r->model[m], cell_json(mb_compare_get(r, m, column))));
    MB_TRY(mb_json_set(object, "models", json_incref(models)));
done:
    json_decref(models);
    return status;
}

static mb_status add_costs(const mb_compare_result *r, json_t *object)
{
    mb_status status = MB_OK;
    const mb_category_book *base = r->book[r->baseline];
    for (int64_t m = 0; m < r->models; m++) {
        const mb_category_book *book = r->book[m];
        MB_TRY(mb_json_set(
            object, r->model[m],
            json_pack("{s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:s}", "parameters", book->parameters,
                      "flops_per_token", book->flops_per_token, "relative_flops",
                      number(book->flops_per_token / base->flops_per_token), "scoring_tokens_per_second",
                      number(r->scoring[m]), "relative_scoring_time",
                      number(r->scoring[r->baseline] / r->scoring[m]), "decoding_tokens_per_second",
                      number(r->decoding[m]), "relative_decoding_time",
                      number(r->decoding[r->baseline] / r->decoding[m]), "measured_on", book->measured_on)));
    }
done:
    return status;
}

static mb_status make_json(const mb_compare_result *r, json_t *root)
{
    mb_status status = MB_OK;
    json_t *categories = json_object(), *one = NULL, *mean = json_object(), *cost = json_object(),
           *names = json_array();
    for (int64_t m = 0; m < r->models; m++) json_array_append_new(names, json_string(r->model[m]));
    MB_TRY(mb_json_set(root, "format", json_string("moebatch-compare")));
    MB_TRY(mb_json_set(root, "version", json_integer(1)));
    MB_TRY(mb_json_set(root, "models", json_incref(names)));
    MB_TRY(mb_json_set(root, "baseline", json_string(r->model[r->baseline])));
    MB_TRY(mb_json_set(root, "draws", json_integer(r->draws)));
    MB_TRY(mb_json_set(root, "seed", json_integer(r->seed)));
    MB_TRY(mb_json_set(root, "level", json_real(r->level)));
    for (int64_t c = 0; c < r->categories; c++) {
        const mb_category_entry *e = &r->book[0]->entry[c];
        const mb_category_summary s = mb_category_summarise(&e->result);
        json_decref(one);
        one = json_pack("{s:s, s:I, s:I, s:s}", "file", e->file, "records", (json_int_t)s.records, "judged",
                        (json_int_t)s.judged, "judged_by", e->judged_by);
        MB_TRY(add_cells(r, c, one));
        MB_TRY(mb_json_set(categories, e->name, json_incref(one)));
    }
    MB_TRY(add_cells(r, r->categories, mean));
    MB_TRY(add_costs(r, cost));
    MB_TRY(mb_json_set(root, "categories", json_incref(categories)));
    MB_TRY(mb_json_set(root, "mean", json_incref(mean)));
    MB_TRY(mb_json_set(root, "cost", json_incref(cost)));
done:
    json_decref(categories);
    json_decref(one);
    json_decref(mean);
    json_decref(cost);
    json_decref(names);
    return status;
}

/* ---- 3. HDF5 ---- */

/* One figure of all cells: the value, its low and high ends, [models, categories + 1] each. */
static mb_status write_figure(const mb_compare_result *r, size_t offset, const char *name, mb_h5 *file)
{
    static const char *const ends[] = {"", "_low", "_high"};
    mb_status status = MB_OK;
    const int64_t columns = r->categories + 1, n = r->models * columns;
    double *data = NULL;
    char *path = NULL;
    MB_NEW_ARRAY(data, n);
    const mb_tensor tensor = mb_tensor_view2(MB_F64, data, r->models, columns);
    for (int end = 0; end < 3; end++) {
        for (int64_t i = 0; i < n; i++) {
            const mb_compare_value *v =
                (const mb_compare_value *)(const void *)((const char *)&r->cell[i] + offset);
            data[i] = end == 0 ? v->value : end == 1 ? v->low : v->high;
        }
        mb_free(path);
        path = mb_str_format("/%s%s", name, ends[end]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_h5_write(file, path, &tensor));
    }
done:
    mb_free(data);
    mb_free(path);
    return status;
}

static mb_status write_costs(const mb_compare_result *r, mb_h5 *file)
{
    mb_status status = MB_OK;
    double *data = NULL;
    MB_NEW_ARRAY(data, r->models);
    const mb_tensor tensor = mb_tensor_view1(MB_F64, data, r->models);
    for (int64_t m = 0; m < r->models; m++) data[m] = r->book[m]->flops_per_token;
    MB_TRY(mb_h5_write(file, "/flops_per_token", &tensor));
    for (int64_t m = 0; m < r->models; m++) data[m] = r->book[m]->parameters;
    MB_TRY(mb_h5_write(file, "/parameters", &tensor));
    memcpy(data, r->scoring, (size_t)r->models * sizeof *data);
    MB_TRY(mb_h5_write(file, "/provenance/scoring_tokens_per_second", &tensor));
    memcpy(data, r->decoding, (size_t)r->models * sizeof *data);
    MB_TRY(mb_h5_write(file, "/provenance/decoding_tokens_per_second", &tensor));
done:
    mb_free(data);
    return status;
}

static mb_status write_h5(const mb_compare_result *r, const char *path)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    const char **names = NULL;
    MB_NEW_ARRAY(names, r->categories + 1);
    for (int64_t c = 0; c < r->categories; c++) names[c] = r->book[0]->entry[c].name;
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-compare"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "baseline", r->model[r->baseline]));
    MB_TRY(mb_h5_set_int(file, "/", "draws", r->draws));
    MB_TRY(mb_h5_set_int(file, "/", "seed", r->seed));
    MB_TRY(mb_h5_set_real(file, "/", "level", r->level));
    MB_TRY(mb_h5_write_strings(file, "/models", r->model, r->models));
    MB_TRY(mb_h5_write_strings(file, "/categories", names, r->categories));
    MB_TRY(write_figure(r, offsetof(mb_compare_cell, perplexity), "perplexity", file));
    MB_TRY(write_figure(r, offsetof(mb_compare_cell, accuracy), "accuracy", file));
    MB_TRY(write_figure(r, offsetof(mb_compare_cell, ratio), "perplexity_ratio", file));
    MB_TRY(write_figure(r, offsetof(mb_compare_cell, gain), "accuracy_difference", file));
    MB_TRY(write_costs(r, file));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    mb_free(names);
    return status;
}

/* ---- 4. comparing ---- */

static void log_lines(const char *text)
{
    while (*text != 0) {
        const size_t n = strcspn(text, "\n");
        mb_info("%.*s", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

static mb_status write_files(mb_program *program, const mb_compare_result *r)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *root = json_object();
    char *txt = mb_program_path(program, "compare.txt"), *json = mb_program_path(program, "compare.json"),
         *h5 = mb_program_path(program, "compare.h5");
    if (txt == NULL || json == NULL || h5 == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_compare_table_print(r, &text));
    log_lines(mb_str_text(&text));
    MB_TRY(mb_files_write(txt, mb_str_text(&text), text.length));
    MB_TRY(make_json(r, root));
    MB_TRY(mb_json_write(json, root, 2, false));
    MB_TRY(write_h5(r, h5));
done:
    mb_str_destroy(&text);
    json_decref(root);
    mb_free(txt);
    mb_free(json);
    mb_free(h5);
    return status;
}

static mb_status compare(mb_program *program, comparison *c)
{
    mb_status status = MB_OK;
    const mb_category_program *o = &((mb_eval_program *)program->own)->category;
    mb_compare_result result = {0};
    const mb_compare_options options = {
        .baseline = c->baseline, .draws = o->draws, .seed = o->seed, .level = o->level};
    for (int64_t i = 0; i < c->inputs.count; i++) MB_TRY(mb_category_files_read(c->path[i], &c->book[i]));
    MB_TRY(mb_compare_check((const char *const *)c->path, c->books, c->inputs.count));
    for (int64_t i = 1; i < c->inputs.count; i++)
        if (strcmp(c->book[i].tokenizer, c->book[0].tokenizer) != 0)
            mb_warn("%s and %s have different tokenizers: their perplexities per token are not compared",
                    c->name[0], c->name[i]);
    MB_TRY(mb_compare_make(c->name, c->books, c->inputs.count, &options, &result));
    MB_TRY(write_files(program, &result));
done:
    mb_compare_reset(&result);
    return status;
}

/* ---- 5. run ---- */

mb_status mb_eval_compare_run(mb_program *program)
{
    mb_status status = MB_OK;
    comparison c = {0};
    bool is_done = false;
    status = open_comparison(&((mb_eval_program *)program->own)->category, &c);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (program->is_dry_run) goto done;
    MB_TRY(mb_program_begin_run_list(program, c.name, (const char *const *)c.path, c.inputs.count, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_program_is_root(program) ? compare(program, &c) : MB_OK));
    MB_TRY(mb_program_finish_run(program, "compare.json", "compare.h5", "compare.txt", NULL));
done:
    close_comparison(&c);
    return status;
}
