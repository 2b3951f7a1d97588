/* compare_table: see the header.
 *
 * Contents: 1. cells  2. a table in blocks  3. against the baseline  4. cost  5. all
 */
#include "stage/compare_table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 110, CELL = 48, MOST_NAME = 24, GAP = 2 };

/* ---- 1. cells ---- */

typedef void cell_writer(const mb_compare_cell *cell, char out[CELL]);

/* About four digits. */
static int decimals(double value)
{
    const double size = fabs(value);
    return size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0;
}

static void write_value(const mb_compare_value *v, double scale, int places, const char *before, bool is_real,
                        char out[CELL])
{
    char interval[32] = "";
    if (isnan(v->value)) {
        snprintf(out, CELL, "-");
        return;
    }
    if (!isnan(v->low))
        snprintf(interval, sizeof interval, " [%.*f, %.*f]", places, scale * v->low, places, scale * v->high);
    snprintf(out, CELL, "%s%.*f%s%s", before, places, scale * v->value, is_real ? "*" : "", interval);
}

static void write_perplexity(const mb_compare_cell *cell, char out[CELL])
{
    write_value(&cell->perplexity, 1, decimals(cell->perplexity.value), "", false, out);
}

static void write_accuracy(const mb_compare_cell *cell, char out[CELL])
{
    write_value(&cell->accuracy, 100, 1, "", false, out);
}

/* Of models that no record tells apart (the baseline and itself): without an interval. */
static mb_compare_value without_width(const mb_compare_value *v)
{
    return v->low < v->high ? *v : (mb_compare_value){v->value, NAN, NAN};
}

static void write_ratio(const mb_compare_cell *cell, char out[CELL])
{
    const mb_compare_value v = without_width(&cell->ratio);
    write_value(&v, 1, decimals(v.value), "x", mb_compare_excludes(&cell->ratio, 1), out);
}

static void write_gain(const mb_compare_cell *cell, char out[CELL])
{
    const mb_compare_value v = without_width(&cell->gain);
    write_value(&v, 100, 1, v.value >= 0 ? "+" : "", mb_compare_excludes(&cell->gain, 0), out);
}

/* ---- 2. a table in blocks ---- */

static const char *column_name(const mb_compare_result *r, int64_t column)
{
    return column < r->categories ? r->book[0]->entry[column].name : "mean";
}

static int name_width(const mb_compare_result *r)
{
    size_t width = strlen("model");
    for (int64_t m = 0; m < r->models; m++)
        if (strlen(r->model[m]) > width) width = strlen(r->model[m]);
    return width < MOST_NAME ? (int)width : MOST_NAME;
}

static int column_width(const mb_compare_result *r, int64_t column, cell_writer *write)
{
    char text[CELL];
    size_t width = strlen(column_name(r, column));
    if (width > MOST_NAME) width = MOST_NAME;
    for (int64_t m = 0; m < r->models; m++) {
        write(mb_compare_get(r, m, column), text);
        if (strlen(text) > width) width = strlen(text);
    }
    return (int)width;
}

/* Rows of columns [first, end). */
static mb_status print_block(const mb_compare_result *r, int64_t first, int64_t end, cell_writer *write,
                             mb_str *text)
{
    mb_status status = MB_OK;
    char cell[CELL];
    for (int64_t m = -1; m < r->models; m++) {
        const char *name = m < 0 ? "model" : r->model[m];
        MB_TRY(mb_str_add_format(text, "  %-*.*s", name_width(r), MOST_NAME, name));
        for (int64_t c = first; c < end; c++) {
            const int width = column_width(r, c, write);
            if (m < 0)
                snprintf(cell, sizeof cell, "%.*s", MOST_NAME, column_name(r, c));
            else
                write(mb_compare_get(r, m, c), cell);
            MB_TRY(mb_str_add_format(text, "%*s%-*s", GAP, "", c + 1 < end ? width : 0, cell));
        }
        MB_TRY(mb_str_add(text, "\n"));
    }
done:
    return status;
}

static mb_status print_table(const mb_compare_result *r, const char *title, cell_writer *write, mb_str *text)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add_format(text, "%s\n", title));
    for (int64_t first = 0, end; first <= r->categories; first = end) {
        int used = 2 + name_width(r);
        for (end = first; end <= r->categories; end++) {
            used += GAP + column_width(r, end, write);
            if (used > WIDTH && end > first) break;
        }
        MB_TRY(print_block(r, first, end, write, text));
    }
    MB_TRY(mb_str_add(text, "\n"));
done:
    return status;
}

/* ---- 3. against the baseline ---- */

static bool has_accuracy(const mb_compare_result *r)
{
    for (int64_t m = 0; m < r->models; m++)
        if (!isnan(mb_compare_get(r, m, r->categories)->accuracy.value)) return true;
    return false;
}

static mb_status print_values(const mb_compare_result *r, mb_str *text)
{
    mb_status status = MB_OK;
    char title[256];
    const double level = 100 * r->level;
    const char *base = r->model[r->baseline];
    snprintf(title, sizeof title, "perplexity [%.4g %% interval]; mean: geometric; lower is better", level);
    MB_TRY(print_table(r, title, write_perplexity, text));
    if (has_accuracy(r)) {
        snprintf(title, sizeof title, "accuracy in %% [%.4g %% interval]; mean: of the categories", level);
        MB_TRY(print_table(r, title, write_accuracy, text));
    }
    if (r->models == 1) goto done;
    snprintf(title, sizeof title, "perplexity over that of %.*s, same records; * the interval excludes 1",
             MOST_NAME, base);
    MB_TRY(print_table(r, title, write_ratio, text));
    if (!has_accuracy(r)) goto done;
    snprintf(title, sizeof title,
             "accuracy less that of %.*s in points, same records; * the interval excludes 0", MOST_NAME,
             base);
    MB_TRY(print_table(r, title, write_gain, text));
done:
    return status;
}

/* ---- 4. cost ---- */

static void write_rate(double rate, double base, char out[CELL])
{
    if (isnan(rate))
        snprintf(out, CELL, "-");
    else if (isnan(base))
        snprintf(out, CELL, "%.4g", rate);
    else
        snprintf(out, CELL, "%.4g (x%.2f)", rate, base / rate);
}

static bool is_one_machine(const mb_compare_result *r)
{
    for (int64_t m = 1; m < r->models; m++)
        if (strcmp(r->book[m]->measured_on, r->book[0]->measured_on) != 0) return false;
    return true;
}

/* A text after `label`, broken at spaces. */
static mb_status print_wrapped(const char *label, const char *says, mb_str *text)
{
    mb_status status = MB_OK;
    size_t used = strlen(label);
    MB_TRY(mb_str_add(text, label));
    while (*says != 0) {
        const size_t n = strcspn(says, " ");
        if (used + 1 + n > WIDTH) {
            MB_TRY(mb_str_add(text, "\n   "));
            used = 3;
        }
        MB_TRY(mb_str_add(text, " "));
        MB_TRY(mb_str_append(text, says, n));
        used += n + 1;
        says += n + (says[n] == ' ');
    }
    MB_TRY(mb_str_add(text, "\n"));
done:
    return status;
}

static mb_status print_cost(const mb_compare_result *r, mb_str *text)
{
    mb_status status = MB_OK;
    const mb_category_book *base = r->book[r->baseline];
    char flops[CELL], scoring[CELL], decoding[CELL];
    MB_TRY(mb_str_add_format(text,
                             "cost; in brackets: times that of %.*s a token\n  %-*s  %-11s  %-18s  %-20s  "
                             "decoding tokens/s\n",
                             MOST_NAME, r->model[r->baseline], name_width(r), "model", "parameters",
                             "FLOP a token", "scoring tokens/s"));
    for (int64_t m = 0; m < r->models; m++) {
        const mb_category_book *book = r->book[m];
        snprintf(flops, sizeof flops, "%.4g (x%.2f)", book->flops_per_token,
                 book->flops_per_token / base->flops_per_token);
        write_rate(r->scoring[m], r->scoring[r->baseline], scoring);
        write_rate(r->decoding[m], r->decoding[r->baseline], decoding);
        MB_TRY(mb_str_add_format(text, "  %-*.*s  %-11.4g  %-18s  %-20s  %s\n", name_width(r), MOST_NAME,
                                 r->model[m], book->parameters, flops, scoring, decoding));
    }
    if (is_one_machine(r)) {
        MB_TRY(print_wrapped("  measured on", base->measured_on, text));
        goto done;
    }
    MB_TRY(mb_str_add(text, "  measured on different settings; only the FLOPs compare:\n"));
    for (int64_t m = 0; m < r->models; m++) {
        snprintf(flops, sizeof flops, "  %.*s:", MOST_NAME, r->model[m]);
        MB_TRY(print_wrapped(flops, r->book[m]->measured_on, text));
    }
done:
    return status;
}

/* ---- 5. all ---- */

mb_status mb_compare_table_print(const mb_compare_result *result, mb_str *text)
{
    mb_status status = MB_OK;
    mb_str says = MB_STR_EMPTY;
    for (int64_t c = 0; c < result->categories; c++) {
        const mb_category_entry *e = &result->book[0]->entry[c];
        const mb_category_summary s = mb_category_summarise(&e->result);
        MB_TRY(mb_str_add_format(&says, "%s %lld (%lld judged)%s", e->name, (long long)s.records,
                                 (long long)s.judged, c + 1 < result->categories ? ", " : "; "));
    }
    MB_TRY(
        mb_str_add_format(&says, "%lld draws, seed %lld", (long long)result->draws, (long long)result->seed));
    MB_TRY(print_wrapped("records:", mb_str_text(&says), text));
    MB_TRY(mb_str_add(text, "\n"));
    MB_TRY(print_values(result, text));
    MB_TRY(print_cost(result, text));
done:
    mb_str_destroy(&says);
    return status;
}
