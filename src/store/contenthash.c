/* contenthash.c: hashes of files by what they say, and of folders by what is in them.
 *
 * 1. metrics.jsonl   2. files   3. folders
 */
#include "store/contenthash.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "store/h5.h"

/* ---- 1. metrics.jsonl ---- */

/* Lines without their "time", members in the order of their names; a torn last line does not count. */
static mb_status hash_metrics(const char *path, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    FILE *stream = NULL;
    char *line = NULL;
    size_t capacity = 0;
    json_t *json = NULL;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_hash_create(&hash));
    stream = fopen(path, "re");
    if (stream == NULL) MB_RAISE(MB_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    for (ssize_t n = getline(&line, &capacity, stream); n > 0 && line[n - 1] == '\n';
         n = getline(&line, &capacity, stream)) {
        MB_TRY(mb_json_parse(line, (size_t)n, path, &json));
        json_object_del(json, "time");
        mb_str_reset(&text);
        MB_TRY(mb_json_print(json, 0, true, &text));
        mb_hash_add_text(hash, mb_str_text(&text));
        json_decref(json);
        json = NULL;
    }
    mb_hash_get(hash, out_text);
done:
    if (stream != NULL) fclose(stream);
    free(line);
    json_decref(json);
    mb_str_destroy(&text);
    mb_hash_destroy(&hash);
    return status;
}

/* ---- 2. files ---- */

static bool is_hdf5(const char *path)
{
    static const char mark[8] = "\x89HDF\r\n\x1a\n";
    char head[8] = {0};
    FILE *stream = fopen(path, "re");
    if (stream == NULL) return false;
    bool found = fread(head, 1, sizeof head, stream) == sizeof head && memcmp(head, mark, sizeof head) == 0;
    fclose(stream);
    return found;
}

static mb_status hash_one(const char *path, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    const char *slash = strrchr(path, '/');
    if (strcmp(slash != NULL ? slash + 1 : path, "metrics.jsonl") == 0) {
        MB_TRY(hash_metrics(path, out_text));
    } else if (is_hdf5(path)) {
        MB_TRY(mb_h5_open(path, &file));
        MB_TRY(mb_h5_content_hash(file, out_text));
    } else {
        MB_TRY(mb_hash_file(path, out_text));
    }
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 3. folders ---- */

/* "<stem>.json", or "<stem>-<k>of<n>.json" of a part of a stage. */
static bool is_record(const char *name, const char *stem)
{
    const size_t n = strlen(stem);
    int part, parts, end = 0;
    if (!mb_str_is_prefix(name, stem)) return false;
    if (strcmp(name + n, ".json") == 0) return true;
    return sscanf(name + n, "-%dof%d.json%n", &part, &parts, &end) == 2 && end > 0 &&
           name[n + (size_t)end] == 0;
}

/* Records about a run rather than its results, and what is not finished. */
static bool is_left_out(const char *name)
{
    return is_record(name, "done") || is_record(name, "progress") || is_record(name, "failure") ||
           strcmp(name, "manifest.json") == 0 || strcmp(name, "attempts.tsv") == 0 ||
           strcmp(name, "lease") == 0 || mb_str_is_prefix(name, "lease.") ||
           mb_str_is_prefix(name, "lease-") || mb_str_is_suffix(name, ".log") ||
           strstr(name, ".tmp.") != NULL;
}

static mb_status hash_folder(const char *path, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    char **names = NULL, *full = NULL;
    char text[MB_HASH_TEXT];
    int64_t n = 0;
    MB_TRY(mb_hash_create(&hash));
    MB_TRY(mb_files_list(path, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (is_left_out(names[i])) continue;
        mb_free(full);
        full = mb_files_join(path, names[i]);
        if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        MB_TRY(mb_contenthash_path(full, text));
        mb_hash_add_text(hash, names[i]);
        mb_hash_add_text(hash, text);
    }
    mb_hash_get(hash, out_text);
done:
    mb_files_free_names(&names, n);
    mb_free(full);
    mb_hash_destroy(&hash);
    return status;
}

mb_status mb_contenthash_path(const char *path, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    char *place = NULL;
    if (mb_files_is_folder(path)) {
        MB_TRY(hash_folder(path, out_text));
    } else if (mb_files_is_file(path)) {
        MB_TRY(mb_files_staged(path, &place));
        MB_TRY(hash_one(place, out_text));
    } else {
        MB_RAISE(MB_ENOTFOUND, "%s: there is no such file or folder", path);
    }
done:
    mb_free(place);
    return status;
}
