/* option_help.c: option tables as --help text and as markdown.
 *
 * 1. parts of a line   2. help   3. markdown
 */
#include "base/option.h"

#include <string.h>

/* ---- 1. parts of a line ---- */

static const char *kind_word(mb_option_kind kind)
{
    switch (kind) {
    case MB_OPTION_KIND_BOOL:
        return "bool";
    case MB_OPTION_KIND_INT:
        return "int";
    case MB_OPTION_KIND_REAL:
        return "real";
    case MB_OPTION_KIND_LIST:
        return "list";
    case MB_OPTION_KIND_JSON:
        return "json";
    default:
        return "text";
    }
}

static const char *unit_of(const mb_option *option)
{
    return option->unit != NULL ? option->unit : "";
}

static bool has_default(const mb_option *option)
{
    return option->default_text != NULL && *option->default_text != 0;
}

static mb_status add_words(mb_str *s, const char *words, const char *between)
{
    mb_status status = MB_OK;
    for (const char *p = words; *p != 0;) {
        size_t n = strcspn(p, "|");
        MB_TRY(mb_str_append(s, p, n));
        p += n;
        if (*p == '|') {
            MB_TRY(mb_str_add(s, between));
            p++;
        }
    }
done:
    return status;
}

static mb_status add_range(const mb_option *option, mb_str *s)
{
    if (option->low >= option->high) return MB_OK;
    return mb_str_add_format(s, "%.15g..%.15g", option->low, option->high);
}

static int width_of(const mb_option_table *tables, int64_t n)
{
    size_t width = 0;
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < tables[t].count; i++) {
            size_t length = strlen(tables[t].options[i].key);
            if (length > width && length <= 44) width = length;
        }
    }
    return (int)width;
}

/* ---- 2. help ---- */

/* "real, default 0.05, 0..1 share, also old.name" */
static mb_status add_facts(const mb_option *option, mb_str *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add(s, kind_word(option->kind)));
    if (option->required) MB_TRY(mb_str_add(s, ", required"));
    if (has_default(option)) MB_TRY(mb_str_add_format(s, ", default %s", option->default_text));
    bool ranged = option->low < option->high;
    if (ranged || *unit_of(option) != 0) MB_TRY(mb_str_add(s, ", "));
    MB_TRY(add_range(option, s));
    if (*unit_of(option) != 0) MB_TRY(mb_str_add_format(s, "%s%s", ranged ? " " : "in ", unit_of(option)));
    if (option->choices != NULL) {
        MB_TRY(mb_str_add(s, ", one of "));
        MB_TRY(add_words(s, option->choices, " | "));
    }
    if (option->aliases != NULL) {
        MB_TRY(mb_str_add(s, ", also "));
        MB_TRY(add_words(s, option->aliases, ", "));
    }
done:
    return status;
}

mb_status mb_option_help(const mb_option_table *tables, int64_t n, mb_str *s)
{
    mb_status status = MB_OK;
    int width = width_of(tables, n);
    for (int64_t t = 0; t < n; t++) {
        MB_TRY(mb_str_add_format(s, "%s%s\n", t > 0 ? "\n" : "", tables[t].title));
        for (int64_t i = 0; i < tables[t].count; i++) {
            const mb_option *option = &tables[t].options[i];
            MB_TRY(
                mb_str_add_format(s, "  %-*s  %s\n  %-*s  (", width, option->key, option->help, width, ""));
            MB_TRY(add_facts(option, s));
            MB_TRY(mb_str_add(s, ")\n"));
        }
    }
done:
    return status;
}

/* ---- 3. markdown ---- */

/* Text in a cell: a bar would end it. */
static mb_status add_cell(mb_str *s, const char *text)
{
    mb_status status = MB_OK;
    for (const char *p = text; *p != 0; p++) {
        if (*p == '|') MB_TRY(mb_str_add(s, "\\"));
        MB_TRY(mb_str_append(s, p, 1));
    }
done:
    return status;
}

static mb_status add_row(const mb_option *option, mb_str *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add_format(s, "| `%s` | %s | ", option->key, kind_word(option->kind)));
    if (option->required) MB_TRY(mb_str_add(s, "required"));
    if (has_default(option)) {
        MB_TRY(mb_str_add(s, "`"));
        MB_TRY(add_cell(s, option->default_text));
        MB_TRY(mb_str_add(s, "`"));
    }
    MB_TRY(mb_str_add(s, " | "));
    MB_TRY(add_range(option, s));
    if (option->choices != NULL) MB_TRY(add_words(s, option->choices, ", "));
    MB_TRY(mb_str_add(s, " | "));
    MB_TRY(add_cell(s, unit_of(option)));
    MB_TRY(mb_str_add(s, " | "));
    MB_TRY(add_cell(s, option->help));
    MB_TRY(mb_str_add(s, " | "));
    if (option->aliases != NULL) MB_TRY(add_words(s, option->aliases, ", "));
    MB_TRY(mb_str_add(s, " |\n"));
done:
    return status;
}

mb_status mb_option_markdown(const mb_option_table *tables, int64_t n, mb_str *s)
{
    mb_status status = MB_OK;
    for (int64_t t = 0; t < n; t++) {
        MB_TRY(mb_str_add_format(s, "%s## %s\n\n", t > 0 ? "\n" : "", tables[t].title));
        MB_TRY(mb_str_add(s, "| key | kind | default | values | unit | meaning | aliases |\n"));
        MB_TRY(mb_str_add(s, "|---|---|---|---|---|---|---|\n"));
        for (int64_t i = 0; i < tables[t].count; i++) MB_TRY(add_row(&tables[t].options[i], s));
    }
done:
    return status;
}
