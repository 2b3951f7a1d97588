/* option: one table per module says every key it takes; parsing, range check, --help, --print-config, the
 * resolved dump and docs/keys.md all come from it.
 *
 * Layer: base.  Uses: str, json.
 *
 *     typedef struct mb_select_options {
 *         double selection_percentage;
 *         char *quota;
 *     } mb_select_options;
 *     static const mb_option options[] = {
 *         MB_OPTION_REAL(mb_select_options, selection_percentage, "select.selection_percentage", "0.05",
 *                        0, 1, "share", "share of the records to keep",
 *                        "data_selection.selection_percentage"),
 *         ...
 *     };
 *
 * Strings in option structs are owned by the struct (mb_option_free).
 */
#ifndef MB_OPTION_H
#define MB_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "base/str.h"

typedef enum mb_option_kind {
    MB_OPTION_KIND_BOOL, /* bool    */
    MB_OPTION_KIND_INT,  /* int64_t */
    MB_OPTION_KIND_REAL, /* double  */
    MB_OPTION_KIND_TEXT, /* char *, NULL when default is NULL */
    MB_OPTION_KIND_LIST, /* char *: comma-separated words as one string; libconfig arrays become this */
    MB_OPTION_KIND_JSON  /* char *: JSON text (libconfig groups and lists become this), or plain words as a
                            short form */
} mb_option_kind;

typedef struct mb_option {
    const char *key; /* "training.learning_rate" */
    mb_option_kind kind;
    size_t field;             /* offsetof in the option struct */
    const char *default_text; /* as typed; NULL: unset (TEXT) */
    double low, high;         /* INT, REAL: inclusive range when low < high */
    const char *choices;      /* TEXT: "a|b|c", NULL: free */
    const char *unit;         /* "records", "tokens", "s", "" */
    const char *help;         /* one sentence */
    const char *aliases;      /* "old.name|other.name" or NULL */
    bool required;            /* must be given */
} mb_option;

#define MB_OPTION_BOOL(type, member, name, dflt, text, alias)                                                \
    {                                                                                                        \
        .key = name, .kind = MB_OPTION_KIND_BOOL, .field = offsetof(type, member), .default_text = dflt,     \
        .unit = "", .help = text, .aliases = alias                                                           \
    }
#define MB_OPTION_INT(type, member, name, dflt, lo, hi, units, text, alias)                                  \
    {                                                                                                        \
        .key = name, .kind = MB_OPTION_KIND_INT, .field = offsetof(type, member), .default_text = dflt,      \
        .low = lo, .high = hi, .unit = units, .help = text, .aliases = alias                                 \
    }
#define MB_OPTION_REAL(type, member, name, dflt, lo, hi, units, text, alias)                                 \
    {                                                                                                        \
        .key = name, .kind = MB_OPTION_KIND_REAL, .field = offsetof(type, member), .default_text = dflt,     \
        .low = lo, .high = hi, .unit = units, .help = text, .aliases = alias                                 \
    }
#define MB_OPTION_TEXT(type, member, name, dflt, allowed, text, alias)                                       \
    {                                                                                                        \
        .key = name, .kind = MB_OPTION_KIND_TEXT, .field = offsetof(type, member), .default_text = dflt,     \
        .choices = allowed, .unit = "", .help = text, .aliases = alias                                       \
    }
#define MB_OPTION_LIST(type, member, name, dflt, text, alias)                                                \
    {                                                                                                        \
        .key = name, .kind = MB_OPTION_KIND_LIST, .field = offsetof(type, member), .default_text = dflt,     \
        .unit = "", .help = text, .aliases = alias                                                           \
    }
#define MB_OPTION_JSON(type, member, name, dflt, text, alias)                                                \
    {                                                                                                        \
        .key = name, .kind = MB_OPTION_KIND_JSON, .field = offsetof(type, member), .default_text = dflt,     \
        .unit = "", .help = text, .aliases = alias                                                           \
    }

/* A module's table together with the struct it fills (already zeroed). */
typedef struct mb_option_table {
    const char *title; /* heading in --help: "selection" */
    const mb_option *options;
    int64_t count;
    void *target; /* NULL only for documentation */
} mb_option_table;

/* Set every field of target to its default. Frees nothing: call on a zeroed struct. */
mb_status mb_option_defaults(const mb_option_table *table);
/* Set one field from text; checks kind, range, choices. `where` ("demo.cfg:12", "command line") for the
 * message. */
mb_status mb_option_set(const mb_option_table *table, const mb_option *option, const char *text,
                        const char *where);
/* Find by key or alias in n tables. out_alias true when found by alias. NULL if none. */
const mb_option *mb_option_find(const mb_option_table *tables, int64_t n, const char *key,
                                const mb_option_table **out_table, bool *out_alias);
/* The nearest key to a mistyped one over n tables, NULL if none is near. */
const char *mb_option_nearest(const mb_option_table *tables, int64_t n, const char *key);
/* Value of a field as text (as --print-config shows it). */
mb_status mb_option_print(const mb_option_table *table, const mb_option *option, mb_str *s);
/* Free the strings of a struct and set them to NULL. */
void mb_option_free(const mb_option_table *table);

/* --help text and a markdown table, for n tables. */
mb_status mb_option_help(const mb_option_table *tables, int64_t n, mb_str *s);
mb_status mb_option_markdown(const mb_option_table *tables, int64_t n, mb_str *s);

/* Split a comma-separated list: out_items (each mb_free'd by mb_option_list_free). "" or NULL gives 0 items.
 */
mb_status mb_option_list_split(const char *list, char ***out_items, int64_t *out_count);
void mb_option_list_free(char ***items, int64_t count);

#endif
