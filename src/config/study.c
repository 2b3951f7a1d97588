/* study.c: a study file, read by libconfig, as a JSON tree; the only file that includes libconfig.h.
 *
 * libconfig 1.5 neither lets a later setting replace an earlier one nor finds includes beside the including
 * file. So includes are ours: one at the top level of a file is a file of its own, read before the rest and
 * overridden by it; one inside a group is pasted. Every line of the text given to libconfig remembers where
 * it came from.
 *
 * 1. a file's text   2. settings to JSON   3. loading
 */
#include "config/study.h"

#include <inttypes.h>
#include <libconfig.h>
#include <string.h>

#include "base/files.h"
#include "base/memory.h"

/* ---- 1. a file's text ---- */

enum { INCLUDE_DEPTH = 16 };

typedef struct source {
    mb_str text;
    char **places; /* "file:line" of every line of text */
    int64_t count, capacity;
    int depth;    /* open braces, brackets and parentheses */
    bool quoted;  /* inside a string */
    bool comment; /* inside a block comment */
} source;

static void source_free(source *s)
{
    for (int64_t i = 0; i < s->count; i++) mb_free(s->places[i]);
    mb_free(s->places);
    mb_str_destroy(&s->text);
}

static const char *source_place(const source *s, int64_t line)
{
    if (s->count == 0) return "the file";
    if (line < 1) line = 1;
    return s->places[(line > s->count ? s->count : line) - 1];
}

/* Follow braces, strings and comments over one line. */
static void follow_line(source *s, const char *line, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char next = i + 1 < n ? line[i + 1] : 0;
        if (s->comment) {
            if (line[i] == '*' && next == '/') s->comment = false, i++;
        } else if (s->quoted) {
            if (line[i] == '\\')
                i++;
            else if (line[i] == '"')
                s->quoted = false;
        } else if (line[i] == '#' || (line[i] == '/' && next == '/')) {
            return;
        } else if (line[i] == '/' && next == '*') {
            s->comment = true;
            i++;
        } else if (line[i] == '"') {
            s->quoted = true;
        } else if (strchr("{[(", line[i]) != NULL) {
            s->depth++;
        } else if (strchr("}])", line[i]) != NULL) {
            s->depth--;
        }
    }
}

static mb_status add_line(source *s, const char *line, size_t n, const char *path, int64_t number)
{
    mb_status status = MB_OK;
    if (s->count == s->capacity) {
        int64_t capacity = 2 * s->capacity + 64;
        char **grown = mb_realloc(s->places, (size_t)capacity, sizeof *grown);
        if (grown == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its lines", path);
        s->places = grown;
        s->capacity = capacity;
    }
    s->places[s->count] = mb_str_format("%s:%" PRId64, path, number);
    if (s->places[s->count] == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its lines", path);
    s->count++;
    MB_TRY(mb_str_append(&s->text, line, n));
    MB_TRY(mb_str_add(&s->text, "\n"));
done:
    return status;
}

/* The file named by a line `@include "name"`, beside the including file; *out_path stays NULL for any other
 * line. */
static mb_status include_path(const char *line, size_t n, const char *path, int64_t number, char **out_path)
{
    static const char word[] = "@include";
    mb_status status = MB_OK;
    char *name = NULL;
    const char *end = line + n, *p = line;
    while (p < end && (*p == ' ' || *p == '\t')) p++;
    if ((size_t)(end - p) < sizeof word - 1 || memcmp(p, word, sizeof word - 1) != 0) goto done;
    p += sizeof word - 1;
    while (p < end && (*p == ' ' || *p == '\t')) p++;
    const char *close = p < end && *p == '"' ? memchr(p + 1, '"', (size_t)(end - p - 1)) : NULL;
    if (close == NULL)
        MB_RAISE(MB_EUSAGE, "%s:%" PRId64 ": @include needs a name in quotes: @include \"base.cfg\"", path,
                 number);
    name = mb_strndup(p + 1, (size_t)(close - p - 1));
    if (name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for a name", path);
    const char *slash = strrchr(path, '/');
    int folder = slash != NULL && name[0] != '/' ? (int)(slash - path + 1) : 0;
    *out_path = mb_str_format("%.*s%s", folder, path, name);
    if (*out_path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for a name", path);
done:
    mb_free(name);
    return status;
}

static mb_status load_file(mb_study *study, const char *path, int depth);

/* Append a file's lines to s; includes at the top level are loaded into the study first, others are pasted.
 */
static mb_status read_source(mb_study *study, const char *path, int depth, source *s)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char *included = NULL;
    int64_t number = 0;
    if (depth > INCLUDE_DEPTH)
        MB_RAISE(MB_EUSAGE, "%s: includes go deeper than %d: do they include each other?", path,
                 INCLUDE_DEPTH);
    MB_TRY(mb_files_read(path, 1 << 26, &text));
    if (strlen(mb_str_text(&text)) != text.length)
        MB_RAISE(MB_EUSAGE, "%s: holds a zero byte: not a study file", path);
    for (const char *line = mb_str_text(&text); *line != 0;) {
        size_t n = strcspn(line, "\n");
        number++;
        if (!s->quoted && !s->comment) MB_TRY(include_path(line, n, path, number, &included));
        if (included == NULL) {
            follow_line(s, line, n);
            MB_TRY(add_line(s, line, n, path, number));
        } else {
            MB_TRY(add_line(s, "", 0, path, number));
            status = s->depth == 0 ? load_file(study, included, depth + 1)
                                   : read_source(study, included, depth + 1, s);
            if (status == MB_ENOTFOUND) mb_status_prefix("%s:%" PRId64 ": ", path, number);
            MB_TRY(status);
            MB_FREE(included);
        }
        line += n + (line[n] == '\n');
    }
done:
    mb_free(included);
    mb_str_destroy(&text);
    return status;
}

/* ---- 2. settings to JSON ---- */

static mb_status setting_json(const config_setting_t *setting, const source *s, const char *path,
                              json_t *places, json_t **out_json);

/* Members of a group (with their places) or elements of an array or list. */
static mb_status add_members(const config_setting_t *setting, const source *s, const char *path,
                             json_t *places, json_t *json)
{
    mb_status status = MB_OK;
    char *inner = NULL;
    json_t *value = NULL;
    int n = config_setting_length(setting);
    for (int i = 0; i < n; i++) {
        const config_setting_t *member = config_setting_get_elem(setting, (unsigned)i);
        const char *place = source_place(s, config_setting_source_line(member));
        if (json_is_array(json)) {
            MB_TRY(setting_json(member, s, NULL, NULL, &value));
            if (json_array_append_new(json, value) != 0) MB_RAISE(MB_ENOMEM, "%s: not enough memory", place);
            value = NULL;
            continue;
        }
        const char *name = config_setting_name(member);
        if (path != NULL) inner = mb_str_format("%s%s%s", path, *path != 0 ? "." : "", name);
        if (path != NULL && inner == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for a key", place);
        if (path != NULL) MB_TRY(mb_json_set(places, inner, json_string(place)));
        MB_TRY(setting_json(member, s, inner, places, &value));
        MB_TRY(mb_json_set(json, name, value));
        value = NULL;
        MB_FREE(inner);
    }
done:
    mb_free(inner);
    return status;
}

/* path NULL: inside a list, where places are not kept. */
static mb_status setting_json(const config_setting_t *setting, const source *s, const char *path,
                              json_t *places, json_t **out_json)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    const char *place = source_place(s, config_setting_source_line(setting));
    switch (config_setting_type(setting)) {
    case CONFIG_TYPE_GROUP:
        json = json_object();
        break;
    case CONFIG_TYPE_ARRAY:
    case CONFIG_TYPE_LIST:
        json = json_array();
        break;
    case CONFIG_TYPE_INT:
        json = json_integer(config_setting_get_int(setting));
        break;
    case CONFIG_TYPE_INT64:
        json = json_integer(config_setting_get_int64(setting));
        break;
    case CONFIG_TYPE_FLOAT:
        json = json_real(config_setting_get_float(setting));
        break;
    case CONFIG_TYPE_BOOL:
        json = json_boolean(config_setting_get_bool(setting));
        break;
    default:
        json = json_string(config_setting_get_string(setting));
        break;
    }
    if (json == NULL)
        MB_RAISE(MB_EUSAGE, "%s: this value is too large, not valid UTF-8, or there is no memory for it",
                 place);
    if (config_setting_is_aggregate(setting)) MB_TRY(add_members(setting, s, path, places, json));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}

/* ---- 3. loading ---- */

/* Read a file and merge it over what is there. */
static mb_status load_file(mb_study *study, const char *path, int depth)
{
    mb_status status = MB_OK;
    source s = {.text = MB_STR_EMPTY};
    json_t *json = NULL;
    config_t parsed;
    config_init(&parsed);
    MB_TRY(read_source(study, path, depth, &s));
    if (config_read_string(&parsed, mb_str_text(&s.text)) != CONFIG_TRUE) {
        MB_RAISE(MB_EUSAGE, "%s: %s", source_place(&s, config_error_line(&parsed)),
                 config_error_text(&parsed));
    }
    MB_TRY(setting_json(config_root_setting(&parsed), &s, "", study->places, &json));
    if (json_object_update_recursive(study->root, json) != 0)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
done:
    json_decref(json);
    config_destroy(&parsed);
    source_free(&s);
    return status;
}

mb_status mb_study_load(mb_study *study, const char *path)
{
    return load_file(study, path, 0);
}
