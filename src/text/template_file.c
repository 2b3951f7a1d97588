/* template_file: see the header.
 *
 * Contents: 1 keys  2 pieces  3 hash  4 read
 */
#include "text/template_file.h"

#include <string.h>

/* ---- 1 keys ---- */

static const char *const file_keys[] = {"name",
                                        "source",
                                        "start",
                                        "end",
                                        "between",
                                        "default_system",
                                        "default_system_input",
                                        "learn_end",
                                        "learn_after",
                                        "strip",
                                        "system_in_user",
                                        "think",
                                        "think_always",
                                        "system",
                                        "user",
                                        "assistant",
                                        "tool",
                                        "tools",
                                        "jinja_hashes"};
static const char *const piece_keys[] = {"before",     "end",  "after",  "after_last", "item_before",
                                         "item_after", "join", "prompt", "input"};

static mb_status check_keys(const json_t *object, const char *const *keys, size_t n, const char *where)
{
    mb_status status = MB_OK;
    json_t *mutable_object = (json_t *)object; /* jansson's iterators want it so; nothing is changed */
    for (void *at = json_object_iter(mutable_object); at != NULL;
         at = json_object_iter_next(mutable_object, at)) {
        const char *key = json_object_iter_key(at);
        bool known = false;
        for (size_t i = 0; i < n; i++) known |= strcmp(key, keys[i]) == 0;
        const char *nearest = mb_str_nearest(key, keys, (int64_t)n);
        if (!known)
            MB_RAISE(MB_EFORMAT, "%s: unknown key \"%s\"%s%s", where, key,
                     nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "");
    }
done:
    return status;
}

/* ---- 2 pieces ---- */

static mb_status read_piece(const json_t *json, const char *role, const char *where, mb_template_piece *piece,
                            bool *opt_has)
{
    mb_status status = MB_OK;
    char place[512];
    const json_t *object = json_object_get(json, role);
    *piece = (mb_template_piece){"", "", "", NULL, "", "", "", NULL, "\n"};
    if (opt_has != NULL) *opt_has = object != NULL;
    if (object == NULL) return MB_OK;
    snprintf(place, sizeof place, "%s: \"%s\"", where, role);
    if (!json_is_object(object)) MB_RAISE(MB_EFORMAT, "%s is not an object", place);
    MB_TRY(check_keys(object, piece_keys, sizeof piece_keys / sizeof *piece_keys, place));
    const char **const fields[] = {&piece->before,     &piece->end,         &piece->after,
                                   &piece->after_last, &piece->item_before, &piece->item_after,
                                   &piece->join,       &piece->prompt,      &piece->input};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        MB_TRY(mb_json_opt_string(object, piece_keys[i], place, fields[i]));
done:
    return status;
}

static mb_status read_pieces(const char *path, mb_template *tmpl)
{
    mb_status status = MB_OK;
    MB_TRY(read_piece(tmpl->json, "system", path, &tmpl->system, NULL));
    MB_TRY(read_piece(tmpl->json, "user", path, &tmpl->user, NULL));
    MB_TRY(read_piece(tmpl->json, "assistant", path, &tmpl->assistant, NULL));
    MB_TRY(read_piece(tmpl->json, "tool", path, &tmpl->tool, &tmpl->has_tool));
    MB_TRY(read_piece(tmpl->json, "tools", path, &tmpl->tools, &tmpl->has_tools));
done:
    return status;
}

/* ---- 3 hash ---- */

/* Of the file's content in sorted form, without what does not change a rendered text. */
static mb_status hash_content(mb_template *tmpl)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    json_t *copy = json_copy(tmpl->json);
    if (copy == NULL) MB_RAISE(MB_ENOMEM, "no memory for a template");
    json_object_del(copy, "jinja_hashes");
    json_object_del(copy, "source");
    MB_TRY(mb_json_print(copy, 0, true, &s));
    mb_hash_bytes(s.data, s.length, tmpl->hash);
done:
    json_decref(copy);
    mb_str_destroy(&s);
    return status;
}

/* ---- 4 read ---- */

mb_status mb_template_file_read(const char *path, mb_template *tmpl)
{
    mb_status status = MB_OK;
    tmpl->start = tmpl->end = tmpl->between = "";
    tmpl->learn_end = true;
    MB_TRY(mb_json_read(path, &tmpl->json));
    if (!json_is_object(tmpl->json)) MB_RAISE(MB_EFORMAT, "%s: a template file is a JSON object", path);
    MB_TRY(check_keys(tmpl->json, file_keys, sizeof file_keys / sizeof *file_keys, path));
    MB_TRY(mb_json_get_string(tmpl->json, "name", path, &tmpl->name));
    MB_TRY(mb_json_opt_string(tmpl->json, "start", path, &tmpl->start));
    MB_TRY(mb_json_opt_string(tmpl->json, "end", path, &tmpl->end));
    MB_TRY(mb_json_opt_string(tmpl->json, "between", path, &tmpl->between));
    MB_TRY(mb_json_opt_string(tmpl->json, "default_system", path, &tmpl->default_system));
    MB_TRY(mb_json_opt_string(tmpl->json, "default_system_input", path, &tmpl->default_system_input));
    MB_TRY(mb_json_opt_bool(tmpl->json, "learn_end", path, &tmpl->learn_end));
    MB_TRY(mb_json_opt_bool(tmpl->json, "learn_after", path, &tmpl->learn_after));
    MB_TRY(mb_json_opt_bool(tmpl->json, "strip", path, &tmpl->strip));
    MB_TRY(mb_json_opt_bool(tmpl->json, "system_in_user", path, &tmpl->system_in_user));
    MB_TRY(mb_json_opt_bool(tmpl->json, "think", path, &tmpl->think));
    MB_TRY(mb_json_opt_bool(tmpl->json, "think_always", path, &tmpl->think_always));
    MB_TRY(read_pieces(path, tmpl));
    MB_TRY(hash_content(tmpl));
done:
    return status;
}
