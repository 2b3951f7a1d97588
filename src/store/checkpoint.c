/* checkpoint.c: filling, publishing, checking, finding and thinning out checkpoint folders.
 *
 * An existing checkpoint is replaced by exchanging the two names at once where the file system can; else it
 * is moved to
 * `<path>.old.<pid>` for the moment between two renames, and moved back by the next begin or latest should we
 * die there.
 *
 * 1. names beside   2. manifest   3. begin and commit   4. check   5. latest and rotate
 */
#include "store/checkpoint.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"

static const char manifest_name[] = "manifest.json";

/* ---- 1. names beside ---- */

/* Folder and last name of a path, without slashes at its end (both mb_free). */
static mb_status split_path(const char *path, char **out_folder, char **out_name)
{
    mb_status status = MB_OK;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t slash = n;
    while (slash > 0 && path[slash - 1] != '/') slash--;
    *out_folder = slash == 0 ? mb_strdup(".") : mb_strndup(path, slash > 1 ? slash - 1 : 1);
    *out_name = mb_strndup(path + slash, n - slash);
    if (*out_folder == NULL || *out_name == NULL) {
        MB_FREE(*out_folder);
        MB_FREE(*out_name);
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    }
done:
    return status;
}

/* What a dead process left beside `path`: its unfinished folders go; an old checkpoint comes back when `path`
 * is missing. */
static mb_status clean_beside(const char *path)
{
    mb_status status = MB_OK;
    char *folder = NULL, *name = NULL, *temporary = NULL, *old = NULL, *full = NULL, **names = NULL;
    int64_t n = 0;
    MB_TRY(split_path(path, &folder, &name));
    temporary = mb_str_format("%s.tmp.", name);
    old = mb_str_format("%s.old.", name);
    if (temporary == NULL || old == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    if (mb_files_is_folder(folder)) MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        bool is_old = mb_str_is_prefix(names[i], old);
        if (!is_old && !mb_str_is_prefix(names[i], temporary)) continue;
        MB_FREE(full);
        full = mb_files_join(folder, names[i]);
        if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        if (is_old && !mb_files_is_folder(path) && mb_checkpoint_check(full, false) == MB_OK)
            MB_TRY(mb_files_rename(full, path));
        else
            MB_TRY(mb_files_remove_tree(full));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(folder);
    mb_free(name);
    mb_free(temporary);
    mb_free(old);
    mb_free(full);
    return status;
}

/* ---- 2. manifest ---- */

/* Add every file under folder/below to the manifest and sync it. */
static mb_status add_files(const char *folder, const char *below, json_t *files)
{
    mb_status status = MB_OK;
    char **names = NULL, *relative = NULL, *full = NULL;
    char hash[MB_HASH_TEXT];
    int64_t n = 0, bytes = 0;
    full = below[0] ? mb_files_join(folder, below) : mb_strdup(folder);
    if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_files_list(full, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        mb_free(relative);
        mb_free(full);
        relative = below[0] ? mb_files_join(below, names[i]) : mb_strdup(names[i]);
        full = relative != NULL ? mb_files_join(folder, relative) : NULL;
        if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
        if (strcmp(relative, manifest_name) == 0) continue;
        if (mb_files_is_folder(full)) {
            MB_TRY(add_files(folder, relative, files));
        } else {
            MB_TRY(mb_files_size(full, &bytes));
            MB_TRY(mb_hash_file(full, hash));
            MB_TRY(mb_json_set(files, relative,
                               json_pack("{s:I, s:s}", "bytes", (json_int_t)bytes, "hash", hash)));
        }
        MB_TRY(mb_files_sync(full));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(relative);
    mb_free(full);
    return status;
}

static mb_status write_manifest(const char *folder)
{
    mb_status status = MB_OK;
    json_t *manifest = json_object(), *files = NULL;
    char *path = mb_files_join(folder, manifest_name);
    if (path == NULL || manifest == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_json_set(manifest, "files", json_object()));
    files = json_object_get(manifest, "files");
    MB_TRY(add_files(folder, "", files));
    MB_TRY(mb_json_write(path, manifest, 1, true));
    MB_TRY(mb_files_sync(folder));
done:
    mb_free(path);
    json_decref(manifest);
    return status;
}

/* ---- 3. begin and commit ---- */

mb_status mb_checkpoint_begin(const char *path, char **out_folder)
{
    mb_status status = MB_OK;
    char *folder = mb_str_format("%s.tmp.%ld", path, (long)getpid());
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(clean_beside(path));
    MB_TRY(mb_files_make_folders(folder));
    *out_folder = folder;
    folder = NULL;
done:
    mb_free(folder);
    return status;
}

mb_status mb_checkpoint_commit(const char *folder, const char *path)
{
    mb_status status = MB_OK;
    char *old = mb_str_format("%s.old.%ld", path, (long)getpid()), *parent = NULL, *name = NULL;
    if (old == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(split_path(path, &parent, &name));
    MB_TRY(write_manifest(folder));
    if (!mb_files_is_folder(path)) {
        MB_TRY(mb_files_rename(folder, path));
    } else if (renameat2(AT_FDCWD, folder, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
        MB_TRY(mb_files_sync(parent));
        MB_TRY(mb_files_remove_tree(folder));
    } else {
        MB_TRY(mb_files_remove_tree(old));
        MB_TRY(mb_files_rename(path, old));
        MB_TRY(mb_files_rename(folder, path));
        MB_TRY(mb_files_remove_tree(old));
    }
done:
    mb_free(old);
    mb_free(parent);
    mb_free(name);
    return status;
}

/* ---- 4. check ---- */

static mb_status check_file(const char *path, const char *name, const json_t *entry, const char *manifest,
                            bool deep)
{
    mb_status status = MB_OK;
    int64_t wanted = 0, bytes = 0;
    const char *hash = NULL;
    char found[MB_HASH_TEXT];
    char *full = mb_files_join(path, name);
    if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(mb_json_get_int(entry, "bytes", manifest, &wanted));
    MB_TRY(mb_json_get_string(entry, "hash", manifest, &hash));
    if (!mb_files_is_file(full)) MB_RAISE(MB_EFORMAT, "%s: missing, but in the checkpoint's manifest", full);
    MB_TRY(mb_files_size(full, &bytes));
    if (bytes != wanted)
        MB_RAISE(MB_EFORMAT, "%s: %lld bytes, but %lld by the checkpoint's manifest", full, (long long)bytes,
                 (long long)wanted);
    if (deep) MB_TRY(mb_hash_file(full, found));
    if (deep && strcmp(found, hash) != 0)
        MB_RAISE(MB_EFORMAT, "%s: its content is not that of the checkpoint's manifest", full);
done:
    mb_free(full);
    return status;
}

mb_status mb_checkpoint_check(const char *path, bool deep)
{
    mb_status status = MB_OK;
    json_t *manifest = NULL, *files = NULL, *entry = NULL;
    const char *name = NULL;
    char *manifest_path = mb_files_join(path, manifest_name);
    if (manifest_path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    if (!mb_files_is_folder(path)) MB_RAISE(MB_ENOTFOUND, "%s: there is no such checkpoint", path);
    if (!mb_files_is_file(manifest_path))
        MB_RAISE(MB_EFORMAT, "%s: missing; the checkpoint was not finished", manifest_path);
    MB_TRY(mb_json_read(manifest_path, &manifest));
    MB_TRY(mb_json_get_object(manifest, "files", manifest_path, &files));
    json_object_foreach(files, name, entry) MB_TRY(check_file(path, name, entry, manifest_path, deep));
done:
    mb_free(manifest_path);
    json_decref(manifest);
    return status;
}

/* ---- 5. latest and rotate ---- */

typedef struct numbered {
    char *path;
    int64_t number;
} numbered;

static int compare_falling(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    return x->number > y->number ? -1 : x->number < y->number;
}

/* The number after the prefix when the name is exactly prefix and digits. */
static bool parse_number(const char *name, const char *prefix, int64_t *out_number)
{
    if (!mb_str_is_prefix(name, prefix)) return false;
    const char *digits = name + strlen(prefix);
    size_t n = strlen(digits);
    if (n == 0 || n > 18) return false;
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)digits[i])) return false;
    *out_number = strtoll(digits, NULL, 10);
    return true;
}

/* Bring back checkpoints that died between two renames: `<prefix><number>.old.<pid>` without
 * `<prefix><number>`. */
static mb_status restore_old(const char *folder, const char *prefix)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL;
    int64_t n = 0, number = 0;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        char *end = strstr(names[i], ".old.");
        if (end == NULL) continue;
        *end = 0;
        if (!parse_number(names[i], prefix, &number)) continue;
        MB_FREE(path);
        path = mb_files_join(folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
        if (!mb_files_is_folder(path)) MB_TRY(clean_beside(path));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(path);
    return status;
}

/* All checkpoints of the prefix, newest first. */
static mb_status list_numbered(const char *folder, const char *prefix, numbered **out_list,
                               int64_t *out_count)
{
    mb_status status = MB_OK;
    char **names = NULL;
    numbered *list = NULL;
    int64_t n = 0, kept = 0;
    if (mb_files_is_folder(folder)) {
        MB_TRY(restore_old(folder, prefix));
        MB_TRY(mb_files_list(folder, &names, &n));
    }
    MB_NEW_ARRAY(list, n + 1);
    for (int64_t i = 0; i < n; i++) {
        if (!parse_number(names[i], prefix, &list[kept].number)) continue;
        list[kept].path = mb_files_join(folder, names[i]);
        if (list[kept].path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
        if (mb_files_is_folder(list[kept].path))
            kept++;
        else
            MB_FREE(list[kept].path);
    }
    qsort(list, (size_t)kept, sizeof *list, compare_falling);
    *out_list = list;
    *out_count = kept;
    list = NULL;
done:
    for (int64_t i = 0; list != NULL && i < kept; i++) mb_free(list[i].path);
    mb_free(list);
    mb_files_free_names(&names, n);
    return status;
}

static void free_numbered(numbered **list, int64_t n)
{
    if (*list == NULL) return;
    for (int64_t i = 0; i < n; i++) mb_free((*list)[i].path);
    MB_FREE(*list);
}

/* Out of the way under a name that is no checkpoint's; kept to be looked at until the next of its number. */
static mb_status put_away(const char *path)
{
    mb_status status = MB_OK;
    char *torn = mb_str_format("%s.torn", path);
    if (torn == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(mb_files_remove_tree(torn));
    MB_TRY(mb_files_rename(path, torn));
done:
    mb_free(torn);
    return status;
}

mb_status mb_checkpoint_latest(const char *folder, const char *prefix, char **out_path, int64_t *out_number)
{
    mb_status status = MB_OK;
    numbered *list = NULL;
    int64_t n = 0;
    char *found = NULL;
    MB_TRY(list_numbered(folder, prefix, &list, &n));
    for (int64_t i = 0; i < n && found == NULL; i++) {
        status = mb_checkpoint_check(list[i].path, true);
        if (status != MB_OK && status != MB_EIO && status != MB_ENOMEM) {
            mb_warn("%s is not whole and is passed over (kept as %s.torn): %s", list[i].path, list[i].path,
                    mb_status_message());
            mb_status_reset();
            MB_TRY(put_away(list[i].path));
            continue;
        }
        MB_TRY(status);
        found = list[i].path;
        list[i].path = NULL;
        *out_number = list[i].number;
    }
    *out_path = found;
done:
    free_numbered(&list, n);
    return status;
}

mb_status mb_checkpoint_rotate(const char *folder, const char *prefix, int64_t keep)
{
    mb_status status = MB_OK;
    numbered *list = NULL;
    int64_t n = 0, whole = 0;
    if (keep <= 0) return MB_OK;
    MB_TRY(list_numbered(folder, prefix, &list, &n));
    for (int64_t i = 0; i < n; i++) {
        if (whole < keep) {
            if (mb_checkpoint_check(list[i].path, false) == MB_OK) whole++;
            mb_status_reset();
            continue; /* a torn one among the newest does not count */
        }
        MB_TRY(mb_files_remove_tree(list[i].path));
    }
done:
    free_numbered(&list, n);
    return status;
}
