/* option.c: fields of option structs, set from text and shown as text.
 *
 * 1. setting   2. finding   3. showing and freeing   4. lists
 */
#include "base/option.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static void *field_of(const mb_option_table *table, const mb_option *option)
{
    return (char *)table->target + option->field;
}

static bool is_text_kind(mb_option_kind kind)
{
    return kind == MB_OPTION_KIND_TEXT || kind == MB_OPTION_KIND_LIST || kind == MB_OPTION_KIND_JSON;
}

/* Is word[0..n) one of "a|b|c"? */
static bool is_choice(const char *choices, const char *word, size_t n)
{
    for (const char *p = choices; *p != 0;) {
        size_t length = strcspn(p, "|");
        if (length == n && memcmp(p, word, n) == 0) return true;
        p += length;
        if (*p == '|') p++;
    }
    return false;
}

/* ---- 1. setting ---- */

static mb_status check_choices(const mb_option *option, const char *text, const char *where)
{
    if (option->choices == NULL) return MB_OK;
    bool list = option->kind == MB_OPTION_KIND_LIST;
    for (const char *p = text;; p++) {
        p += list ? strspn(p, " \t") : 0;
        size_t whole = list ? strcspn(p, ",") : strlen(p), n = whole;
        while (list && n > 0 && (p[n - 1] == ' ' || p[n - 1] == '\t')) n--;
        if (!is_choice(option->choices, p, n)) {
            return mb_fail(MB_EUSAGE, "%s: %s = '%.*s' is not one of %s", where, option->key, (int)n, p,
                           option->choices);
        }
        p += whole;
        if (*p == 0) return MB_OK;
    }
}

static mb_status set_text(const mb_option_table *table, const mb_option *option, const char *text,
                          const char *where)
{
    mb_status status = MB_OK;
    char **field = field_of(table, option), *copy = NULL;
    json_t *json = NULL;
    if (text != NULL && *text != 0) {
        MB_TRY(check_choices(option, text, where));
        if (option->kind == MB_OPTION_KIND_JSON && strchr("[{", text[strspn(text, " \t\n")]) != NULL &&
            mb_json_parse(text, strlen(text), option->key, &json) != MB_OK) {
            mb_status_prefix("%s: ", where);
            MB_TRY(MB_EUSAGE);
        }
        copy = mb_strdup(text);
        if (copy == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for %s", where, option->key);
    }
    mb_free(*field);
    *field = copy;
done:
    json_decref(json);
    return status;
}

static mb_status check_range(const mb_option *option, double value, const char *text, const char *where)
{
    if (option->low >= option->high || (value >= option->low && value <= option->high)) return MB_OK;
    return mb_fail(MB_EUSAGE, "%s: %s = %s is outside %.15g..%.15g%s%s", where, option->key, text,
                   option->low, option->high, *option->unit != 0 ? " " : "", option->unit);
}

mb_status mb_option_set(const mb_option_table *table, const mb_option *option, const char *text,
                        const char *where)
{
    mb_status status = MB_OK;
    void *field = field_of(table, option);
    int64_t whole = 0;
    double real = 0;
    if (is_text_kind(option->kind)) return set_text(table, option, text, where);
    if (text == NULL) MB_RAISE(MB_EUSAGE, "%s: %s has no value", where, option->key);
    if (option->kind == MB_OPTION_KIND_BOOL) {
        status = mb_str_parse_bool(text, field);
    } else if (option->kind == MB_OPTION_KIND_INT) {
        status = mb_str_parse_int(text, &whole);
    } else {
        status = mb_str_parse_real(text, &real);
    }
    if (status != MB_OK) {
        mb_status_prefix("%s: %s: ", where, option->key);
        MB_TRY(MB_EUSAGE);
    }
    if (option->kind == MB_OPTION_KIND_INT) {
        MB_TRY(check_range(option, (double)whole, text, where));
        *(int64_t *)field = whole;
    } else if (option->kind == MB_OPTION_KIND_REAL) {
        MB_TRY(check_range(option, real, text, where));
        *(double *)field = real;
    }
done:
    return status;
}

mb_status mb_option_defaults(const mb_option_table *table)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < table->count; i++) {
        const mb_option *option = &table->options[i];
        if (option->default_text == NULL) continue;
        MB_TRY(mb_option_set(table, option, option->default_text, "default"));
    }
done:
    return status;
}

/* ---- 2. finding ---- */

const mb_option *mb_option_find(const mb_option_table *tables, int64_t n, const char *key,
                                const mb_option_table **out_table, bool *out_alias)
{
    for (int pass = 0; pass < 2; pass++) { /* keys before aliases */
        for (int64_t t = 0; t < n; t++) {
            for (int64_t i = 0; i < tables[t].count; i++) {
                const mb_option *option = &tables[t].options[i];
                const char *aliases = option->aliases != NULL ? option->aliases : "";
                bool found = pass == 0 ? strcmp(option->key, key) == 0 : is_choice(aliases, key, strlen(key));
                if (!found) continue;
                if (out_table != NULL) *out_table = &tables[t];
                if (out_alias != NULL) *out_alias = pass == 1;
                return option;
            }
        }
    }
    return NULL;
}

static const char *last_part(const char *key)
{
    const char *dot = strrchr(key, '.');
    return dot != NULL ? dot + 1 : key;
}

/* How far a mistyped key is from a name; the right last part in the wrong group counts as near. */
static int slip_distance(const char *key, const char *name)
{
    int distance = mb_str_distance(key, name);
    return distance > 1 && strcmp(last_part(name), last_part(key)) == 0 ? 1 : distance;
}

/* The least distance to the option's key and aliases. */
static int option_distance(const mb_option *option, const char *key)
{
    char alias[256];
    int least = slip_distance(key, option->key);
    for (const char *p = option->aliases != NULL ? option->aliases : ""; *p != 0;) {
        int n = (int)strcspn(p, "|");
        snprintf(alias, sizeof alias, "%.*s", n, p);
        int distance = slip_distance(key, alias);
        if (distance < least) least = distance;
        p += n;
        if (*p == '|') p++;
    }
    return least;
}

const char *mb_option_nearest(const mb_option_table *tables, int64_t n, const char *key)
{
    const char *nearest = NULL;
    int least = 2 + (int)(strlen(key) / 3);
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < tables[t].count; i++) {
            int distance = option_distance(&tables[t].options[i], key);
            if (distance >= least) continue;
            least = distance;
            nearest = tables[t].options[i].key;
        }
    }
    return nearest;
}

/* ---- 3. showing and freeing ---- */

/* The shortest of 15 to 17 digits that reads back as the same number. */
static mb_status add_real(mb_str *s, double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return mb_str_add(s, text);
}

mb_status mb_option_print(const mb_option_table *table, const mb_option *option, mb_str *s)
{
    const void *field = field_of(table, option);
    switch (option->kind) {
    case MB_OPTION_KIND_BOOL:
        return mb_str_add(s, *(const bool *)field ? "true" : "false");
    case MB_OPTION_KIND_INT:
        return mb_str_add_format(s, "%" PRId64, *(const int64_t *)field);
    case MB_OPTION_KIND_REAL:
        return add_real(s, *(const double *)field);
    default:
        break;
    }
    const char *text = *(char *const *)field;
    return mb_str_add(s, text != NULL ? text : "");
}

void mb_option_free(const mb_option_table *table)
{
    for (int64_t i = 0; i < table->count; i++) {
        if (!is_text_kind(table->options[i].kind)) continue;
        char **field = field_of(table, &table->options[i]);
        MB_FREE(*field);
    }
}

/* ---- 4. lists ---- */

mb_status mb_option_list_split(const char *list, char ***out_items, int64_t *out_count)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t count = 0, capacity = 0;
    const char *text = list != NULL ? list : "";
    if (text[strspn(text, " \t")] == 0) goto give;
    capacity = 1;
    for (const char *p = text; *p != 0; p++) capacity += *p == ',';
    MB_NEW_ARRAY(items, capacity);
    for (const char *p = text;; p++) {
        p += strspn(p, " \t");
        size_t whole = strcspn(p, ","), n = whole;
        while (n > 0 && (p[n - 1] == ' ' || p[n - 1] == '\t')) n--;
        if (n == 0) MB_RAISE(MB_EUSAGE, "'%s': item %lld of this list is empty", text, (long long)count + 1);
        items[count] = mb_strndup(p, n);
        if (items[count] == NULL) MB_RAISE(MB_ENOMEM, "'%s': not enough memory for this list", text);
        count++;
        p += whole;
        if (*p == 0) break;
    }
give:
    *out_items = items;
    *out_count = count;
    items = NULL;
done:
    mb_option_list_free(&items, count);
    return status;
}

void mb_option_list_free(char ***items, int64_t count)
{
    for (int64_t i = 0; *items != NULL && i < count; i++) mb_free((*items)[i]);
    MB_FREE(*items);
}
