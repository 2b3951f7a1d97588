/* files_staged.c: node-local copies of input folders, believed only while they agree with the originals.
 *
 * 1. the list of a copy   2. does it agree   3. the path to read
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"

/* ---- 1. the list of a copy ---- */

typedef struct staged_file {
    long long bytes, seconds;
    const char *name; /* in `text` */
} staged_file;

typedef struct staged_list {
    mb_str text;
    staged_file *files;
    int64_t count;
} staged_list;

static void destroy_list(staged_list *list)
{
    mb_str_destroy(&list->text);
    MB_FREE(list->files);
}

/* "<bytes> <mtime> <name>" */
static bool parse_line(char *line, staged_file *file)
{
    char *p = line;
    file->bytes = strtoll(p, &p, 10);
    if (p == line || *p != ' ') return false;
    char *second = p + 1;
    file->seconds = strtoll(second, &p, 10);
    if (p == second || *p != ' ' || p[1] == 0) return false;
    file->name = p + 1;
    return true;
}

/* false: no memory, not readable, or not a list of this folder. */
static bool read_list(const char *path, const char *folder, staged_list *list)
{
    if (!mb_files_is_file(path) || mb_files_read(path, 0, &list->text) != MB_OK || list->text.length == 0)
        return false;
    char *text = list->text.data, *end = text + list->text.length;
    if (end[-1] != '\n' || memchr(text, 0, list->text.length) != NULL) return false;
    int64_t lines = 0;
    for (char *p = text; p < end; p++) lines += *p == '\n';
    list->files = mb_calloc((size_t)lines, sizeof *list->files);
    if (list->files == NULL) return false;
    for (char *p = text, *stop; p < end; p = stop + 1) {
        stop = strchr(p, '\n');
        *stop = 0;
        if (p == text) {
            if (strcmp(p, folder) != 0) return false;
        } else if (!parse_line(p, &list->files[list->count++])) {
            return false;
        }
    }
    return true;
}

static const staged_file *find_file(const staged_list *list, const char *name)
{
    for (int64_t i = 0; i < list->count; i++)
        if (strcmp(list->files[i].name, name) == 0) return &list->files[i];
    return NULL;
}

/* ---- 2. does it agree ---- */

bool mb_files_is_unstaged(const char *name)
{
    return mb_str_is_prefix(name, ".") || mb_str_is_prefix(name, "lease") || mb_str_is_suffix(name, ".log") ||
           mb_str_is_suffix(name, ".tsv") || strstr(name, ".tmp.") != NULL;
}

/* Bytes, and where seconds is not NULL time, of folder/name as a plain file. */
static bool has_file(const char *folder, const char *name, long long bytes, const long long *seconds)
{
    struct stat info;
    char *path = mb_files_join(folder, name);
    bool agrees = path != NULL && stat(path, &info) == 0 && S_ISREG(info.st_mode) &&
                  (long long)info.st_size == bytes &&
                  (seconds == NULL || (long long)info.st_mtime == *seconds);
    mb_free(path);
    return agrees;
}

static bool is_listed(const staged_list *list, const char *name, const char *folder, const char *copy)
{
    const staged_file *file = find_file(list, name);
    return file != NULL && has_file(folder, name, file->bytes, &file->seconds) &&
           has_file(copy, name, file->bytes, NULL);
}

/* Every plain file of the folder is listed as it is, and nothing else is listed. */
static bool is_folder_listed(const staged_list *list, const char *folder, const char *copy)
{
    char **names = NULL;
    int64_t count = 0, found = 0;
    bool agrees = mb_files_list(folder, &names, &count) == MB_OK;
    for (int64_t i = 0; agrees && i < count; i++) {
        if (mb_files_is_unstaged(names[i])) continue;
        char *path = mb_files_join(folder, names[i]);
        agrees = path != NULL;
        if (agrees && !mb_files_is_folder(path)) {
            agrees = is_listed(list, names[i], folder, copy);
            found++;
        }
        mb_free(path);
    }
    mb_files_free_names(&names, count);
    return agrees && found == list->count;
}

/* ---- 3. the path to read ---- */

/* Physical path of the folder, in malloc's memory (realpath's), and for a file its name in path. */
static char *place_of(const char *path, const char **out_name)
{
    *out_name = NULL;
    if (mb_files_is_folder(path)) return realpath(path, NULL);
    if (!mb_files_is_file(path)) return NULL;
    const char *slash = strrchr(path, '/');
    *out_name = slash != NULL ? slash + 1 : path;
    if (slash == NULL) return realpath(".", NULL);
    char *folder = mb_strndup(path, slash == path ? 1 : (size_t)(slash - path));
    char *real = folder != NULL ? realpath(folder, NULL) : NULL;
    mb_free(folder);
    return real;
}

/* The copy's path, NULL when there is none to believe. */
static char *find_copy(const char *root, const char *folder, const char *opt_name)
{
    staged_list list = {.text = MB_STR_EMPTY};
    char *found = NULL, *copy = mb_str_format("%s%s", root, folder);
    char *mark = copy != NULL ? mb_files_join(copy, ".complete") : NULL;
    bool agrees =
        mark != NULL && read_list(mark, folder, &list) &&
        (opt_name != NULL ? is_listed(&list, opt_name, folder, copy) : is_folder_listed(&list, folder, copy));
    if (agrees) {
        found = opt_name != NULL ? mb_files_join(copy, opt_name) : copy;
        if (opt_name == NULL) copy = NULL;
    } else if (mark != NULL && mb_files_is_file(mark)) {
        mb_debug("%s: not the same as %s any more; the original is read", copy, folder);
    }
    destroy_list(&list);
    mb_free(mark);
    mb_free(copy);
    return found;
}

mb_status mb_files_staged(const char *path, char **out_path)
{
    const char *root = getenv("MB_STAGED"), *name = NULL;
    char *result = NULL;
    if (root != NULL && *root != 0) {
        char *folder = place_of(path, &name);
        if (folder != NULL && (name == NULL || !mb_files_is_unstaged(name)))
            result = find_copy(root, folder, name);
        free(folder);
        mb_status_reset(); /* what went wrong with a copy is no failure */
    }
    if (result == NULL) result = mb_strdup(path);
    if (result == NULL) return mb_fail(MB_ENOMEM, "%s: not enough memory for its name", path);
    *out_path = result;
    return MB_OK;
}
