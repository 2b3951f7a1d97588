/* gate_score_files.c: the three forms of the report.
 *
 * 1. text   2. JSON   3. HDF5
 */
#include "stage/gate_score_files.h"

#include <math.h>
#include <string.h>

#include "choose/vote.h"
#include "store/h5.h"

/* ---- 1. text ---- */

static mb_status add_all(const mb_gate_score *s, const mb_outputs *test, mb_str *text)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add_format(text,
                             "%lld test questions, %lld experts; intervals of %.0f %%; best_single is %s (by "
                             "the training questions)\n\n%-28s %9s %19s   %9s %19s\n",
                             (long long)s->questions, (long long)s->experts, 100 * s->options.level,
                             test->expert_names[s->best_expert], "system", "accuracy", "interval", "- best",
                             "interval"));
    for (int64_t i = 0; i < s->systems; i++) {
        const mb_gate_score_value *a = &s->accuracy[i * s->groups], *g = &s->gain[i * s->groups];
        MB_TRY(mb_str_add_format(text, "%-28.28s %8.2f%% [%7.2f%%,%7.2f%%]   ", s->system[i], 100 * a->value,
                                 100 * a->low, 100 * a->high));
        MB_TRY(mb_str_add_format(text, "%+8.2f%% [%+7.2f%%,%+7.2f%%]\n", 100 * g->value, 100 * g->low,
                                 100 * g->high));
    }
done:
    return status;
}

/* Groups in blocks of COLUMNS, the systems that are no single experts below each other. */
enum { COLUMNS = 6 };

static mb_status add_groups(const mb_gate_score *s, int64_t first, mb_str *text)
{
    mb_status status = MB_OK;
    const int64_t end = first + COLUMNS < s->groups ? first + COLUMNS : s->groups;
    MB_TRY(mb_str_add_format(text, "\n%-20s", ""));
    for (int64_t g = first; g < end; g++) {
        const char *name = strchr(s->group[g], '/') != NULL ? strchr(s->group[g], '/') + 1 : s->group[g];
        MB_TRY(mb_str_add_format(text, " %14.14s", name));
    }
    MB_TRY(mb_str_add_format(text, "\n%-20s", "questions"));
    for (int64_t g = first; g < end; g++) MB_TRY(mb_str_add_format(text, " %14lld", (long long)s->size[g]));
    for (int64_t i = 0; i < s->systems; i++) {
        if (mb_str_is_prefix(s->system[i], "expert/")) continue;
        MB_TRY(mb_str_add_format(text, "\n%-20.20s", s->system[i]));
        for (int64_t g = first; g < end; g++)
            MB_TRY(mb_str_add_format(text, " %13.2f%%", 100 * s->accuracy[i * s->groups + g].value));
    }
    MB_TRY(mb_str_add(text, "\n"));
done:
    return status;
}

mb_status mb_gate_score_files_text(const mb_gate_score *score, const mb_outputs *test, mb_str *text)
{
    mb_status status = MB_OK;
    MB_TRY(add_all(score, test, text));
    for (int64_t g = 0; g < score->groups; g += COLUMNS) MB_TRY(add_groups(score, g, text));
    MB_TRY(mb_str_add(text, "\nshare of the gate's first choices, and mean weight:\n"));
    for (int64_t x = 0; x < score->experts; x++)
        MB_TRY(mb_str_add_format(text, "  %-28.28s %7.2f%% %7.2f%%\n", test->expert_names[x],
                                 100 * score->picks[x], 100 * score->weight[x]));
    MB_TRY(mb_str_add_format(text, "loss of the gate's weights %.4f, calibration error %.4f\n", score->nll,
                             score->ece));
done:
    return status;
}

/* ---- 2. JSON ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *cell(const mb_gate_score_value *a, const mb_gate_score_value *g)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "accuracy", number(a->value), "low", number(a->low),
                     "high", number(a->high), "gain", number(g->value), "gain_low", number(g->low),
                     "gain_high", number(g->high));
}

static mb_status add_group_json(const mb_gate_score *s, const mb_outputs *test, int64_t g, json_t *groups)
{
    mb_status status = MB_OK;
    json_t *systems = json_object(), *picks = json_object(), *one = NULL;
    for (int64_t i = 0; i < s->systems; i++)
        MB_TRY(mb_json_set(systems, s->system[i],
                           cell(&s->accuracy[i * s->groups + g], &s->gain[i * s->groups + g])));
    for (int64_t x = 0; x < s->experts; x++)
        MB_TRY(mb_json_set(picks, test->expert_names[x], number(s->picks[g * s->experts + x])));
    one = json_pack("{s:I, s:O, s:O}", "questions", (json_int_t)s->size[g], "systems", systems, "gate_picks",
                    picks);
    MB_TRY(mb_json_set(groups, s->group[g], json_incref(one)));
done:
    json_decref(systems);
    json_decref(picks);
    json_decref(one);
    return status;
}

mb_status mb_gate_score_files_json(const mb_gate_score *score, const mb_outputs *test, json_t **out_json)
{
    mb_status status = MB_OK;
    const mb_gate_score *s = score;
    json_t *groups = json_object(), *bins = json_array();
    json_t *root = json_pack("{s:s, s:i, s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:f}", "format",
                             "moebatch-gate-report", "version", 1, "questions", test->questions_hash, "gate",
                             test->opt_gate_hash, "best_single", test->expert_names[s->best_expert], "nll",
                             number(s->nll), "ece", number(s->ece), "draws", (json_int_t)s->options.draws,
                             "seed", (json_int_t)s->options.seed, "level", s->options.level);
    for (int i = 0; i < MB_GATE_BINS; i++)
        json_array_append_new(bins,
                              json_pack("{s:I, s:o, s:o}", "rows", (json_int_t)s->bins[i].rows, "confidence",
                                        number(s->bins[i].confidence), "target", number(s->bins[i].target)));
    for (int64_t g = 0; g < s->groups; g++) MB_TRY(add_group_json(s, test, g, groups));
    MB_TRY(mb_json_set(root, "reliability", json_incref(bins)));
    MB_TRY(mb_json_set(root, "groups", json_incref(groups)));
    *out_json = json_incref(root);
done:
    json_decref(root);
    json_decref(groups);
    json_decref(bins);
    return status;
}

/* ---- 3. HDF5 ---- */

static mb_status write_f64(mb_h5 *file, const char *name, const double *data, int64_t rows, int64_t columns)
{
    const mb_tensor tensor = mb_tensor_view2(MB_F64, (void *)(uintptr_t)data, rows, columns);
    return mb_h5_write(file, name, &tensor);
}

/* value, low and high of all cells as three datasets. */
static mb_status write_values(mb_h5 *file, const char *name, const mb_gate_score_value *values,
                              const mb_gate_score *s)
{
    static const char *const ends[] = {"", "_low", "_high"};
    mb_status status = MB_OK;
    const int64_t n = s->systems * s->groups;
    double *data = NULL;
    char *path = NULL;
    MB_NEW_ARRAY(data, n);
    for (int end = 0; end < 3; end++) {
        for (int64_t i = 0; i < n; i++)
            data[i] = end == 0 ? values[i].value : end == 1 ? values[i].low : values[i].high;
        mb_free(path);
        path = mb_str_format("/%s%s", name, ends[end]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(write_f64(file, path, data, s->systems, s->groups));
    }
done:
    mb_free(data);
    mb_free(path);
    return status;
}

static mb_status write_correct(mb_h5 *file, const mb_gate_score *s)
{
    mb_status status = MB_OK;
    float *data = NULL;
    MB_NEW_ARRAY(data, s->questions * s->systems);
    for (int64_t i = 0; i < s->systems; i++)
        for (int64_t q = 0; q < s->questions; q++)
            data[q * s->systems + i] = (float)s->correct[i * s->questions + q];
    const mb_tensor tensor = mb_tensor_view2(MB_F32, data, s->questions, s->systems);
    MB_TRY(mb_h5_write(file, "/correct", &tensor));
done:
    mb_free(data);
    return status;
}

static mb_status write_head(mb_h5 *file, const mb_gate_score *s, const mb_outputs *test)
{
    mb_status status = MB_OK;
    const mb_tensor size = mb_tensor_view1(MB_I64, s->size, s->groups);
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-gate-report"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "questions", test->questions_hash));
    MB_TRY(mb_h5_set_text(file, "/", "gate", test->opt_gate_hash));
    MB_TRY(mb_h5_set_text(file, "/", "best_single", test->expert_names[s->best_expert]));
    MB_TRY(mb_h5_set_real(file, "/", "nll", s->nll));
    MB_TRY(mb_h5_set_real(file, "/", "ece", s->ece));
    MB_TRY(mb_h5_set_int(file, "/", "draws", s->options.draws));
    MB_TRY(mb_h5_set_int(file, "/", "seed", s->options.seed));
    MB_TRY(mb_h5_set_real(file, "/", "level", s->options.level));
    MB_TRY(mb_h5_write_strings(file, "/systems", (const char *const *)(void *)s->system, s->systems));
    MB_TRY(mb_h5_write_strings(file, "/groups", (const char *const *)(void *)s->group, s->groups));
    MB_TRY(
        mb_h5_write_strings(file, "/experts", (const char *const *)(void *)test->expert_names, s->experts));
    MB_TRY(mb_h5_write(file, "/size", &size));
done:
    return status;
}

mb_status mb_gate_score_files_h5(const mb_gate_score *score, const mb_outputs *test, const char *path)
{
    mb_status status = MB_OK;
    const mb_gate_score *s = score;
    double bins[MB_GATE_BINS * 3];
    mb_h5 *file = NULL;
    for (int i = 0; i < MB_GATE_BINS; i++) {
        bins[3 * i] = (double)s->bins[i].rows;
        bins[3 * i + 1] = s->bins[i].confidence;
        bins[3 * i + 2] = s->bins[i].target;
    }
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(write_head(file, s, test));
    MB_TRY(write_values(file, "accuracy", s->accuracy, s));
    MB_TRY(write_values(file, "gain", s->gain, s));
    MB_TRY(write_correct(file, s));
    MB_TRY(write_f64(file, "/picks", s->picks, s->groups, s->experts));
    MB_TRY(write_f64(file, "/weight", s->weight, s->groups, s->experts));
    MB_TRY(write_f64(file, "/reliability", bins, MB_GATE_BINS, 3));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}
