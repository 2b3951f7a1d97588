/* config.c: the tree of a study file and the assignments of the command line, walked against option tables.
 *
 * 1. open and close   2. what a key is   3. apply   4. show
 */
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "config/study.h"

typedef struct assignment {
    char *key;
    char *value; /* "" unsets */
} assignment;

struct mb_config {
    char *path;       /* NULL: no file */
    char *stage;      /* NULL: none */
    mb_study study;   /* the merged files */
    json_t *reported; /* aliases that were reported */
    assignment *overrides;
    int64_t overrides_count;
};

/* ---- 1. open and close ---- */

/* The stage's group must be there. */
static mb_status check_stage(const mb_config *config)
{
    mb_status status = MB_OK;
    mb_str groups = MB_STR_EMPTY;
    char **names = NULL;
    int64_t count = 0;
    if (config->stage == NULL || json_is_object(json_object_get(config->study.root, config->stage)))
        goto done;
    if (config->path == NULL) {
        MB_RAISE(MB_EUSAGE, "stage '%s' was asked for, but no study file was given that has it",
                 config->stage);
    }
    MB_TRY(mb_config_groups(config, &groups));
    MB_TRY(mb_option_list_split(mb_str_text(&groups), &names, &count));
    const char *nearest = mb_str_nearest(config->stage, (const char *const *)names, count);
    if (nearest != NULL) {
        MB_RAISE(MB_EUSAGE, "%s: no group '%s'; did you mean '%s'?", config->path, config->stage, nearest);
    }
    MB_RAISE(MB_EUSAGE, "%s: no group '%s'; it has: %s", config->path, config->stage, mb_str_text(&groups));
done:
    mb_option_list_free(&names, count);
    mb_str_destroy(&groups);
    return status;
}

mb_status mb_config_open(const char *opt_path, const char *opt_stage, mb_config **out_config)
{
    mb_status status = MB_OK;
    mb_config *config = NULL;
    MB_NEW(config);
    config->study.root = json_object();
    config->study.places = json_object();
    config->reported = json_object();
    config->path = mb_strdup(opt_path);
    config->stage = mb_strdup(opt_stage);
    bool complete = config->study.root != NULL && config->study.places != NULL && config->reported != NULL;
    complete = complete && (opt_path == NULL || config->path != NULL) &&
               (opt_stage == NULL || config->stage != NULL);
    if (!complete) MB_RAISE(MB_ENOMEM, "not enough memory for the configuration");
    if (opt_path != NULL) MB_TRY(mb_study_load(&config->study, opt_path));
    MB_TRY(check_stage(config));
    *out_config = config;
    config = NULL;
done:
    mb_config_close(&config);
    return status;
}

void mb_config_close(mb_config **config)
{
    mb_config *c = *config;
    if (c == NULL) return;
    for (int64_t i = 0; i < c->overrides_count; i++) {
        mb_free(c->overrides[i].key);
        mb_free(c->overrides[i].value);
    }
    mb_free(c->overrides);
    mb_free(c->path);
    mb_free(c->stage);
    json_decref(c->study.root);
    json_decref(c->study.places);
    json_decref(c->reported);
    MB_FREE(*config);
}

mb_status mb_config_override(mb_config *config, const char *text)
{
    mb_status status = MB_OK;
    assignment given = {0};
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text) {
        MB_RAISE(MB_EUSAGE, "command line: '%s' is not key=value (like training.learning_rate=1e-4)", text);
    }
    given.key = mb_strndup(text, (size_t)(equals - text));
    given.value = mb_strdup(equals + 1);
    assignment *grown = mb_realloc(config->overrides, (size_t)config->overrides_count + 1, sizeof *grown);
    if (grown != NULL) config->overrides = grown;
    if (given.key == NULL || given.value == NULL || grown == NULL)
        MB_RAISE(MB_ENOMEM, "command line: not enough memory");
    config->overrides[config->overrides_count++] = given;
    given = (assignment){0};
done:
    mb_free(given.key);
    mb_free(given.value);
    return status;
}

/* ---- 2. what a key is ---- */

typedef struct apply_state {
    mb_config *config;
    mb_option_table *tables;
    int64_t n;
    const char *known;             /* "model|dataset|..." */
    const mb_option_table *others; /* keys of all programs */
    int64_t others_count;
    json_t *given; /* keys that were set */
} apply_state;

/* Is name one of "a|b|c"? */
static bool is_word(const char *words, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = words != NULL ? words : ""; *p != 0;) {
        size_t length = strcspn(p, "|");
        if (length == n && memcmp(p, name, n) == 0) return true;
        p += length;
        if (*p == '|') p++;
    }
    return false;
}

/* Does any word of "a.b|c.d" begin with `prefix` and a dot? */
static bool has_prefix(const char *words, const char *prefix)
{
    size_t n = strlen(prefix);
    for (const char *p = words != NULL ? words : ""; *p != 0;) {
        if (strncmp(p, prefix, n) == 0 && p[n] == '.') return true;
        p += strcspn(p, "|");
        if (*p == '|') p++;
    }
    return false;
}

/* Do our tables have a key or an alias below this one? */
static bool is_our_prefix(const apply_state *a, const char *prefix)
{
    for (int64_t t = 0; t < a->n; t++) {
        for (int64_t i = 0; i < a->tables[t].count; i++) {
            const mb_option *option = &a->tables[t].options[i];
            if (has_prefix(option->key, prefix) || has_prefix(option->aliases, prefix)) return true;
        }
    }
    return false;
}

/* Find an option by key; inside a stage's group that is named like a key's first part (stage score, keys
 * score.*), the first part may be left out. */
static const mb_option *find_option(const apply_state *a, const char *key, bool in_stage,
                                    const mb_option_table **out_table, bool *out_alias)
{
    const mb_option *option = mb_option_find(a->tables, a->n, key, out_table, out_alias);
    if (option != NULL || !in_stage || a->config->stage == NULL) return option;
    char longer[512];
    snprintf(longer, sizeof longer, "%s.%s", a->config->stage, key);
    return mb_option_find(a->tables, a->n, longer, out_table, out_alias);
}

static mb_status unknown_key(const apply_state *a, const char *key, bool in_stage, const char *where)
{
    char longer[512];
    const mb_option_table *table;
    bool is_alias;
    const bool is_others = mb_option_find(a->others, a->others_count, key, &table, &is_alias) != NULL;
    if (is_others && !in_stage) return MB_OK; /* a default for another program */
    const char *nearest = mb_option_nearest(a->tables, a->n, key);
    if (is_others && nearest == NULL)
        return mb_fail(MB_EUSAGE, "%s: '%s' is a key of another program, not of this one (see --help)", where,
                       key);
    if (nearest == NULL && in_stage && a->config->stage != NULL) {
        snprintf(longer, sizeof longer, "%s.%s", a->config->stage, key);
        nearest = mb_option_nearest(a->tables, a->n, longer);
    }
    if (nearest != NULL)
        return mb_fail(MB_EUSAGE, "%s: unknown key '%s'; did you mean %s?", where, key, nearest);
    return mb_fail(MB_EUSAGE, "%s: unknown key '%s'; --help lists the keys of this program", where, key);
}

/* ---- 3. apply ---- */

static mb_status add_scalar(const json_t *value, mb_str *s)
{
    char text[40];
    switch (json_typeof(value)) {
    case JSON_STRING:
        return mb_str_add(s, json_string_value(value));
    case JSON_TRUE:
        return mb_str_add(s, "true");
    case JSON_FALSE:
        return mb_str_add(s, "false");
    case JSON_INTEGER:
        return mb_str_add_format(s, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    default:
        break;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, json_real_value(value));
        if (strtod(text, NULL) == json_real_value(value)) break;
    }
    return mb_str_add(s, text);
}

static bool is_aggregate(const json_t *value)
{
    return json_is_object(value) || json_is_array(value);
}

/* A file's value as the text that this option's kind parses. */
static mb_status value_text(const mb_option *option, const json_t *value, const char *where, mb_str *s)
{
    mb_status status = MB_OK;
    if (option->kind == MB_OPTION_KIND_JSON && !json_is_string(value)) {
        MB_TRY(mb_json_print(value, 0, false, s));
    } else if (option->kind == MB_OPTION_KIND_LIST && json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            const json_t *item = json_array_get(value, i);
            bool comma = json_is_string(item) && strchr(json_string_value(item), ',') != NULL;
            if (is_aggregate(item) || comma) {
                MB_RAISE(MB_EUSAGE, "%s: item %zu of %s must be one word without a comma", where, i + 1,
                         option->key);
            }
            if (i > 0) MB_TRY(mb_str_add(s, ","));
            MB_TRY(add_scalar(item, s));
        }
    } else if (is_aggregate(value)) {
        MB_RAISE(MB_EUSAGE, "%s: %s takes one value, not a group, array or list", where, option->key);
    } else {
        MB_TRY(add_scalar(value, s));
    }
done:
    return status;
}

static mb_status set_option(apply_state *a, const mb_option_table *table, const mb_option *option,
                            const char *text, const char *where)
{
    mb_status status = MB_OK;
    MB_TRY(mb_option_set(table, option, text, where));
    if (text != NULL && *text != 0) {
        MB_TRY(mb_json_set(a->given, option->key, json_true()));
    } else {
        json_object_del(a->given, option->key);
    }
done:
    return status;
}

static mb_status report_alias(apply_state *a, const mb_option *option, const char *key, const char *where)
{
    if (json_object_get(a->config->reported, key) != NULL) return MB_OK;
    mb_info("%s: %s is taken as %s", where, key, option->key);
    return mb_json_set(a->config->reported, key, json_true());
}

static mb_status walk_group(apply_state *a, const json_t *group, const char *key, const char *place,
                            bool in_stage);

/* One member of a group: an option's value, or a group of them. `key` relative to the stage, `place` within
 * the file. */
static mb_status walk_member(apply_state *a, const json_t *value, const char *key, const char *place,
                             bool in_stage)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    const mb_option_table *table = NULL;
    bool alias = false;
    const char *where = json_string_value(json_object_get(a->config->study.places, place));
    const mb_option *option = find_option(a, key, in_stage, &table, &alias);
    if (where == NULL) where = a->config->path;
    /* A name may be an option and the first part of others: "model" is model.path, or a group of model.* */
    const bool is_group = json_is_object(value) &&
                          (option == NULL || (option->kind != MB_OPTION_KIND_JSON && is_our_prefix(a, key)));
    if (is_group) {
        MB_TRY(walk_group(a, value, key, place, in_stage));
    } else if (option == NULL) {
        MB_TRY(unknown_key(a, key, in_stage, where));
    } else {
        if (alias) MB_TRY(report_alias(a, option, key, where));
        MB_TRY(value_text(option, value, where, &text));
        MB_TRY(set_option(a, table, option, mb_str_text(&text), where));
    }
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status walk_group(apply_state *a, const json_t *group, const char *key, const char *place,
                            bool in_stage)
{
    mb_status status = MB_OK;
    char *inner_key = NULL, *inner_place = NULL;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)group, name, value)
    {
        /* A stage may be named like a key's first part: what its group holds for its own keys is not ours. */
        bool another = !in_stage && strchr(place, '.') == NULL && json_is_object(value);
        inner_key = mb_str_format("%s%s%s", key, *key != 0 ? "." : "", name);
        inner_place = mb_str_format("%s.%s", place, name);
        if (inner_key == NULL || inner_place == NULL)
            MB_RAISE(MB_ENOMEM, "%s: not enough memory for a key", a->config->path);
        another = another && (is_word(a->known, name) || is_our_prefix(a, name)) &&
                  !is_our_prefix(a, inner_key) &&
                  mb_option_find(a->tables, a->n, inner_key, NULL, NULL) == NULL;
        if (!another) MB_TRY(walk_member(a, value, inner_key, inner_place, in_stage));
        MB_FREE(inner_key);
        MB_FREE(inner_place);
    }
done:
    mb_free(inner_key);
    mb_free(inner_place);
    return status;
}

/* A group that nobody's keys begin with is a stage's, or a slip: say so when it looks like one. */
static void warn_slip(const apply_state *a, const char *name, const json_t *group)
{
    const char *member;
    json_t *value;
    char word[64], nearest[64] = "";
    int least = 3;
    json_object_foreach((json_t *)group, member, value)
    {
        if (is_word(a->known, member) || is_our_prefix(a, member)) return; /* a stage's tree of keys */
    }
    for (const char *p = a->known != NULL ? a->known : ""; *p != 0;) {
        int n = (int)strcspn(p, "|");
        snprintf(word, sizeof word, "%.*s", n, p);
        int distance = mb_str_distance(word, name);
        if (n > 4 && distance < least) {
            least = distance;
            memcpy(nearest, word, sizeof nearest);
        }
        p += n;
        if (*p == '|') p++;
    }
    const char *where = json_string_value(json_object_get(a->config->study.places, name));
    if (*nearest != 0) {
        mb_warn("%s: group '%s' is not read here; did you mean '%s'?",
                where != NULL ? where : a->config->path, name, nearest);
    }
}

/* Everything at the top of the file but the stage's own group. */
static mb_status apply_defaults(apply_state *a)
{
    mb_status status = MB_OK;
    const char *name;
    json_t *value;
    json_object_foreach(a->config->study.root, name, value)
    {
        if (mb_str_equal(name, a->config->stage)) continue;
        bool option = mb_option_find(a->tables, a->n, name, NULL, NULL) != NULL;
        if (option || is_our_prefix(a, name)) {
            if (option || !json_is_object(value))
                MB_TRY(walk_member(a, value, name, name, false));
            else
                MB_TRY(walk_group(a, value, name, name, false));
        } else if (is_word(a->known, name)) {
            continue; /* another program's */
        } else if (json_is_object(value)) {
            warn_slip(a, name, value);
        } else {
            MB_TRY(walk_member(a, value, name, name, false));
        }
    }
done:
    return status;
}

static mb_status apply_overrides(apply_state *a)
{
    mb_status status = MB_OK;
    const char *where = "command line";
    for (int64_t i = 0; i < a->config->overrides_count; i++) {
        const assignment *given = &a->config->overrides[i];
        const mb_option_table *table = NULL;
        bool alias = false;
        const mb_option *option = find_option(a, given->key, true, &table, &alias);
        if (option == NULL) MB_TRY(unknown_key(a, given->key, true, where));
        if (alias) MB_TRY(report_alias(a, option, given->key, where));
        bool number = option->kind == MB_OPTION_KIND_BOOL || option->kind == MB_OPTION_KIND_INT ||
                      option->kind == MB_OPTION_KIND_REAL;
        if (*given->value == 0 && number) { /* a number has no "unset" but its default */
            MB_TRY(mb_option_set(table, option, option->default_text != NULL ? option->default_text : "0",
                                 where));
            json_object_del(a->given, option->key);
        } else {
            MB_TRY(set_option(a, table, option, given->value, where));
        }
    }
done:
    return status;
}

static mb_status check_required(const apply_state *a)
{
    for (int64_t t = 0; t < a->n; t++) {
        for (int64_t i = 0; i < a->tables[t].count; i++) {
            const mb_option *option = &a->tables[t].options[i];
            if (!option->required || json_object_get(a->given, option->key) != NULL) continue;
            return mb_fail(MB_EUSAGE,
                           "%s: %s is missing (%s); give it there or as %s=... on the command line",
                           a->config->path != NULL ? a->config->path : "command line", option->key,
                           option->help, option->key);
        }
    }
    return MB_OK;
}

mb_status mb_config_apply(mb_config *config, mb_option_table *tables, int64_t n, const char *known_prefixes,
                          const mb_option_table *opt_others, int64_t others)
{
    mb_status status = MB_OK;
    apply_state a = {.config = config,
                     .tables = tables,
                     .n = n,
                     .known = known_prefixes,
                     .others = opt_others,
                     .others_count = others,
                     .given = json_object()};
    if (a.given == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the configuration");
    for (int64_t t = 0; t < n; t++) MB_TRY(mb_option_defaults(&tables[t]));
    MB_TRY(apply_defaults(&a));
    if (config->stage != NULL) {
        MB_TRY(walk_group(&a, json_object_get(config->study.root, config->stage), "", config->stage, true));
    }
    MB_TRY(apply_overrides(&a));
    MB_TRY(check_required(&a));
done:
    json_decref(a.given);
    return status;
}

/* ---- 4. show ---- */

typedef struct shown {
    const char *key;
    const char *help;
    mb_str text;
} shown;

static int compare_shown(const void *a, const void *b)
{
    return strcmp(((const shown *)a)->key, ((const shown *)b)->key);
}

static void free_shown(shown *rows, int64_t count)
{
    for (int64_t i = 0; i < count; i++) mb_str_destroy(&rows[i].text);
    mb_free(rows);
}

/* Every option of the tables with its value as text. */
static mb_status list_shown(const mb_option_table *tables, int64_t n, shown **out_rows, int64_t *out_count)
{
    mb_status status = MB_OK;
    shown *rows = NULL;
    int64_t total = 0, count = 0;
    for (int64_t t = 0; t < n; t++) total += tables[t].count;
    MB_NEW_ARRAY(rows, total);
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < tables[t].count; i++) {
            const mb_option *option = &tables[t].options[i];
            shown *row = &rows[count++];
            *row = (shown){.key = option->key, .help = option->help};
            MB_TRY(mb_option_print(&tables[t], option, &row->text));
        }
    }
    *out_rows = rows;
    *out_count = count;
    rows = NULL;
    count = 0;
done:
    free_shown(rows, count);
    return status;
}

mb_status mb_config_resolved(const mb_option_table *tables, int64_t n, json_t **out_json)
{
    mb_status status = MB_OK;
    shown *rows = NULL;
    int64_t count = 0;
    json_t *json = json_object();
    if (json == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the configuration");
    MB_TRY(list_shown(tables, n, &rows, &count));
    if (count > 0) qsort(rows, (size_t)count, sizeof *rows, compare_shown);
    for (int64_t i = 0; i < count; i++)
        MB_TRY(mb_json_set(json, rows[i].key, json_string(mb_str_text(&rows[i].text))));
    *out_json = json;
    json = NULL;
done:
    free_shown(rows, count);
    json_decref(json);
    return status;
}

mb_status mb_config_print(const mb_option_table *tables, int64_t n, mb_str *s)
{
    mb_status status = MB_OK;
    shown *rows = NULL;
    int64_t count = 0;
    int key_width = 0, text_width = 0;
    MB_TRY(list_shown(tables, n, &rows, &count));
    for (int64_t i = 0; i < count; i++) {
        int key = (int)strlen(rows[i].key), text = (int)rows[i].text.length;
        if (key > key_width && key <= 44) key_width = key;
        if (text > text_width && text <= 24) text_width = text;
    }
    for (int64_t i = 0; i < count; i++) {
        MB_TRY(mb_str_add_format(s, "%-*s = %-*s   # %s\n", key_width, rows[i].key, text_width,
                                 mb_str_text(&rows[i].text), rows[i].help));
    }
done:
    free_shown(rows, count);
    return status;
}

mb_status mb_config_groups(const mb_config *config, mb_str *s)
{
    mb_status status = MB_OK;
    const char *name;
    json_t *value;
    bool first = true;
    json_object_foreach(config->study.root, name, value)
    {
        if (!json_is_object(value)) continue;
        if (!first) MB_TRY(mb_str_add(s, ","));
        MB_TRY(mb_str_add(s, name));
        first = false;
    }
done:
    return status;
}

/* The member at a dotted key below a group; NULL when there is none. */
static const json_t *find_value(const json_t *group, const char *key)
{
    char part[128];
    while (group != NULL) {
        const size_t n = strcspn(key, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, key);
        group = json_object_get(group, part);
        if (key[n] == '\0') return group;
        key += n + 1;
    }
    return NULL;
}

mb_status mb_config_text(const mb_config *config, const char *key, mb_str *s)
{
    mb_status status = MB_OK;
    const json_t *value = NULL;
    const json_t *starts[2] = {config->stage != NULL ? json_object_get(config->study.root, config->stage)
                                                     : NULL,
                               config->study.root};
    for (int64_t i = config->overrides_count - 1; i >= 0; i--)
        if (strcmp(config->overrides[i].key, key) == 0) return mb_str_add(s, config->overrides[i].value);
    for (int i = 0; i < 2 && value == NULL; i++) value = find_value(starts[i], key);
    if (value == NULL)
        MB_RAISE(MB_ENOTFOUND, "%s: no key '%s'", config->path ? config->path : "command line", key);
    if (is_aggregate(value))
        MB_TRY(mb_json_print(value, 0, false, s));
    else
        MB_TRY(add_scalar(value, s));
done:
    return status;
}
