/* named_paths: see the header.
 *
 * Contents: 1. one entry  2. lists  3. all
 */
#include "stage/named_paths.h"

#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/option.h"

/* ---- 1. one entry ---- */

/* "dir/news.jsonl.gz" -> "news", "runs/eval-sft/" -> "eval-sft" */
static char *name_of_path(const char *path)
{
    size_t end = strlen(path), begin;
    while (end > 1 && path[end - 1] == '/') end--;
    for (begin = end; begin > 0 && path[begin - 1] != '/';) begin--;
    const char *dot = memchr(path + begin, '.', end - begin);
    return mb_strndup(path + begin, dot > path + begin ? (size_t)(dot - path) - begin : end - begin);
}

static mb_status set_entry(const char *opt_name, size_t name_length, const char *path, mb_named_path *out)
{
    mb_status status = MB_OK;
    out->name = opt_name != NULL ? mb_strndup(opt_name, name_length) : name_of_path(path);
    out->path = mb_strdup(path);
    if (out->name == NULL || out->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a list of paths");
done:
    return status;
}

static mb_status read_word(const char *word, mb_named_path *out)
{
    const char *equals = strchr(word, '=');
    return set_entry(equals != NULL ? word : NULL, equals != NULL ? (size_t)(equals - word) : 0,
                     equals != NULL ? equals + 1 : word, out);
}

static mb_status read_group(const json_t *group, const char *where, const char *const *further, int64_t n,
                            mb_named_path *out)
{
    mb_status status = MB_OK;
    const char *known[2 + MB_NAMED_PATHS_MORE] = {"name", "path"}, *name = NULL, *path = NULL, *key;
    json_t *value;
    for (int64_t i = 0; i < n; i++) known[2 + i] = further[i];
    if (!json_is_object(group))
        MB_RAISE(MB_EUSAGE, "%s: a group { name = ...; path = ...; } is expected", where);
    json_object_foreach((json_t *)(uintptr_t)group, key, value)
    {
        bool is_known = false;
        for (int64_t i = 0; i < n + 2; i++) is_known = is_known || strcmp(key, known[i]) == 0;
        if (is_known) continue;
        const char *near = mb_str_nearest(key, known, n + 2);
        MB_RAISE(MB_EUSAGE, "%s: unknown key '%s'%s%s", where, key, near != NULL ? "; did you mean " : "",
                 near != NULL ? near : "");
    }
    MB_TRY(mb_json_get_string(group, "path", where, &path));
    MB_TRY(mb_json_opt_string(group, "name", where, &name));
    MB_TRY(set_entry(name, name != NULL ? strlen(name) : 0, path, out));
    for (int64_t i = 0; i < n; i++) {
        const char *text = NULL;
        MB_TRY(mb_json_opt_string(group, further[i], where, &text));
        out->more[i] = mb_strdup(text);
        if (text != NULL && out->more[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a list of paths");
    }
done:
    return status;
}

/* ---- 2. lists ---- */

static mb_status read_words(const char *text, mb_named_paths *paths)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(text, &words, &n));
    MB_NEW_ARRAY(paths->item, n + 1);
    for (paths->count = 0; paths->count < n; paths->count++)
        MB_TRY(read_word(words[paths->count], &paths->item[paths->count]));
done:
    mb_option_list_free(&words, n);
    return status;
}

static mb_status read_groups(const char *key, const char *text, const char *const *further, int64_t n,
                             mb_named_paths *paths)
{
    mb_status status = MB_OK;
    json_t *list = NULL;
    char where[96];
    MB_TRY(mb_json_parse(text, strlen(text), key, &list));
    if (!json_is_array(list)) MB_RAISE(MB_EUSAGE, "%s: a list of groups is expected", key);
    MB_NEW_ARRAY(paths->item, json_array_size(list) + 1);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        mb_named_path *out = &paths->item[paths->count++];
        snprintf(where, sizeof where, "%s[%zu]", key, i);
        MB_TRY(json_is_string(item) ? read_word(json_string_value(item), out)
                                    : read_group(item, where, further, n, out));
    }
done:
    json_decref(list);
    return status;
}

/* ---- 3. all ---- */

static mb_status check_names(const char *key, const mb_named_paths *paths)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < paths->count; i++) {
        const mb_named_path *item = &paths->item[i];
        bool is_plain = item->name[0] != 0 && item->name[0] != '.';
        for (const char *c = item->name; *c != 0; c++)
            is_plain = is_plain && (isalnum((unsigned char)*c) || strchr("_-+.", *c) != NULL);
        if (!is_plain)
            MB_RAISE(MB_EUSAGE, "%s: '%s' is no name; take letters, digits, _, -, + and ., as in mine=%s",
                     key, item->name, item->path);
        if (item->path[0] == 0) MB_RAISE(MB_EUSAGE, "%s: '%s' has no path", key, item->name);
        for (int64_t j = 0; j < i; j++)
            if (mb_str_equal(paths->item[j].name, item->name))
                MB_RAISE(MB_EUSAGE, "%s: two are named '%s'; give each its own name=path", key, item->name);
    }
done:
    return status;
}

mb_status mb_named_paths_read(const char *key, const char *text, const char *const *further, int64_t n,
                              mb_named_paths *out_paths)
{
    mb_status status = MB_OK;
    mb_named_paths paths = {0};
    assert(n <= MB_NAMED_PATHS_MORE);
    if (text == NULL) text = "";
    const bool is_list = text[strspn(text, " \t\n")] == '[';
    MB_TRY(is_list ? read_groups(key, text, further, n, &paths) : read_words(text, &paths));
    MB_TRY(check_names(key, &paths));
    *out_paths = paths;
    paths = (mb_named_paths){0};
done:
    mb_named_paths_reset(&paths);
    return status;
}

void mb_named_paths_reset(mb_named_paths *paths)
{
    /* of a list that was not read to its end, one item more */
    for (int64_t i = 0; paths->item != NULL && i <= paths->count; i++) {
        mb_free(paths->item[i].name);
        mb_free(paths->item[i].path);
        for (int k = 0; k < MB_NAMED_PATHS_MORE; k++) mb_free(paths->item[i].more[k]);
    }
    mb_free(paths->item);
    *paths = (mb_named_paths){0};
}
