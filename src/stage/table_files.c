/* table_files.c: see table_files.h.
 *
 * 1. rows   2. text   3. CSV   4. LaTeX   5. files
 */
#include "stage/table_files.h"

#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/memory.h"

/* ---- 1. rows ---- */

mb_status mb_table_add(mb_table *table, const char *const *cells)
{
    mb_status status = MB_OK;
    const int64_t n = table->column_count;
    if (table->row_count == table->room) {
        const int64_t room = table->room > 0 ? 2 * table->room : 16;
        char **more = mb_realloc(table->cells, (size_t)(room * n), sizeof *more);
        if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for a table of %lld rows", (long long)room);
        table->cells = more, table->room = room;
    }
    char **row = table->cells + table->row_count * n;
    memset(row, 0, sizeof *row * (size_t)n);
    table->row_count++;
    for (int64_t c = 0; c < n; c++)
        if ((row[c] = mb_strdup(cells[c])) == NULL) MB_RAISE(MB_ENOMEM, "no memory for a table's cell");
done:
    return status;
}

void mb_table_reset(mb_table *table)
{
    for (int64_t i = 0; i < table->row_count * table->column_count; i++) mb_free(table->cells[i]);
    mb_free(table->cells);
    *table = (mb_table){0};
}

/* ---- 2. text ---- */

static bool is_number(const char *cell)
{
    char *end;
    if (*cell == 0) return true;
    (void)strtod(cell, &end);
    return end != cell && (*end == 0 || strcmp(end, "%") == 0);
}

/* Numbers only, but for marks like "none"? */
static bool is_right_aligned(const mb_table *table, int64_t column)
{
    int64_t numbers = 0;
    for (int64_t r = 0; r < table->row_count; r++)
        numbers += is_number(table->cells[r * table->column_count + column]);
    return 2 * numbers > table->row_count;
}

static mb_status add_cell(mb_str *text, const char *cell, int64_t width, bool is_right, bool is_name)
{
    mb_status status = MB_OK;
    const size_t at = text->length;
    MB_TRY(mb_str_add_format(text, is_right ? "%*s" : "%-*s", (int)width, cell));
    for (size_t i = at; is_name && i < text->length; i++)
        if (text->data[i] == '_') text->data[i] = ' ';
done:
    return status;
}

static mb_status add_line(const mb_table *table, const char *const *cells, const int64_t *width, bool is_head,
                          mb_str *text)
{
    mb_status status = MB_OK;
    for (int64_t c = 0; c < table->column_count; c++) {
        if (c > 0) MB_TRY(mb_str_add(text, "  "));
        MB_TRY(add_cell(text, cells[c], width[c], is_right_aligned(table, c), is_head));
    }
    while (text->length > 0 && text->data[text->length - 1] == ' ') text->data[--text->length] = 0;
    MB_TRY(mb_str_add(text, "\n"));
done:
    return status;
}

mb_status mb_table_text(const mb_table *table, mb_str *text)
{
    mb_status status = MB_OK;
    const int64_t n = table->column_count;
    int64_t width[MB_TABLE_COLUMNS];
    MB_TRY(mb_str_add_format(text, "%s\n\n", table->title));
    for (int64_t c = 0; c < n; c++) {
        width[c] = (int64_t)strlen(table->columns[c]);
        for (int64_t r = 0; r < table->row_count; r++) {
            const int64_t own = (int64_t)strlen(table->cells[r * n + c]);
            if (own > width[c]) width[c] = own;
        }
    }
    MB_TRY(add_line(table, table->columns, width, true, text));
    for (int64_t r = 0; r < table->row_count; r++)
        MB_TRY(add_line(table, (const char *const *)(void *)(table->cells + r * n), width, false, text));
done:
    return status;
}

/* ---- 3. CSV ---- */

static mb_status add_csv_cell(mb_str *text, const char *cell)
{
    mb_status status = MB_OK;
    if (strpbrk(cell, ",\"\n\r") == NULL) return mb_str_add(text, cell);
    MB_TRY(mb_str_add(text, "\""));
    for (const char *p = cell; *p != 0; p++) MB_TRY(mb_str_add_format(text, *p == '"' ? "\"%c" : "%c", *p));
    MB_TRY(mb_str_add(text, "\""));
done:
    return status;
}

mb_status mb_table_csv(const mb_table *table, mb_str *text)
{
    mb_status status = MB_OK;
    const int64_t n = table->column_count;
    for (int64_t r = -1; r < table->row_count; r++)
        for (int64_t c = 0; c < n; c++) {
            MB_TRY(add_csv_cell(text, r < 0 ? table->columns[c] : table->cells[r * n + c]));
            MB_TRY(mb_str_add(text, c + 1 < n ? "," : "\n"));
        }
done:
    return status;
}

/* ---- 4. LaTeX ---- */

static mb_status add_latex_cell(mb_str *text, const char *cell, bool is_name)
{
    mb_status status = MB_OK;
    for (const char *p = cell; *p != 0; p++) {
        if (*p == '_' && is_name)
            MB_TRY(mb_str_add(text, " "));
        else if (strchr("_%&#${}", *p) != NULL)
            MB_TRY(mb_str_add_format(text, "\\%c", *p));
        else if (*p == '\\')
            MB_TRY(mb_str_add(text, "\\textbackslash{}"));
        else if (*p == '~' || *p == '^')
            MB_TRY(mb_str_add_format(text, "\\%c{}", *p));
        else
            MB_TRY(mb_str_append(text, p, 1));
    }
done:
    return status;
}

mb_status mb_table_latex(const mb_table *table, mb_str *text)
{
    mb_status status = MB_OK;
    const int64_t n = table->column_count;
    MB_TRY(mb_str_add(text, "\\begin{table}\n\\centering\n\\caption{"));
    MB_TRY(add_latex_cell(text, table->title, false));
    MB_TRY(mb_str_add(text, "}\n\\begin{tabular}{"));
    for (int64_t c = 0; c < n; c++) MB_TRY(mb_str_add(text, is_right_aligned(table, c) ? "r" : "l"));
    MB_TRY(mb_str_add(text, "}\n\\toprule\n"));
    for (int64_t r = -1; r < table->row_count; r++) {
        for (int64_t c = 0; c < n; c++) {
            MB_TRY(add_latex_cell(text, r < 0 ? table->columns[c] : table->cells[r * n + c], r < 0));
            MB_TRY(mb_str_add(text, c + 1 < n ? " & " : " \\\\\n"));
        }
        if (r < 0) MB_TRY(mb_str_add(text, "\\midrule\n"));
    }
    MB_TRY(mb_str_add(text, "\\bottomrule\n\\end{tabular}\n\\end{table}\n"));
done:
    return status;
}

/* ---- 5. files ---- */

mb_status mb_table_write(const mb_table *table, const char *base)
{
    static const struct {
        const char *suffix;
        mb_status (*make)(const mb_table *table, mb_str *text);
    } forms[] = {{"txt", mb_table_text}, {"csv", mb_table_csv}, {"tex", mb_table_latex}};
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char *path = NULL;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        mb_str_reset(&text);
        MB_FREE(path);
        if ((path = mb_str_format("%s.%s", base, forms[i].suffix)) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(forms[i].make(table, &text));
        MB_TRY(mb_files_write(path, mb_str_text(&text), text.length));
    }
done:
    mb_str_destroy(&text);
    mb_free(path);
    return status;
}
