/* files.c: paths, whole-file reads, atomic writes, folders.
 *
 * 1. paths   2. reading   3. writing   4. folders   5. space
 */
#include "base/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/memory.h"

/* The status that fits errno. */
static mb_status status_of(int number)
{
    switch (number) {
    case ENOENT:
    case ENOTDIR:
        return MB_ENOTFOUND;
    case ENOSPC:
    case EDQUOT:
        return MB_ENOSPACE;
    case ENOMEM:
        return MB_ENOMEM;
    case EEXIST:
    case ENOTEMPTY:
        return MB_EEXIST;
    default:
        return MB_EIO;
    }
}

/* ---- 1. paths ---- */

char *mb_files_join(const char *folder, const char *name)
{
    if (*folder == 0) return mb_strdup(name);
    return mb_str_format("%s%s%s", folder, mb_str_is_suffix(folder, "/") ? "" : "/", name);
}

bool mb_files_is_file(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

bool mb_files_is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

mb_status mb_files_size(const char *path, int64_t *out_bytes)
{
    struct stat info;
    if (stat(path, &info) != 0) return mb_fail(status_of(errno), "%s: %s", path, strerror(errno));
    *out_bytes = (int64_t)info.st_size;
    return MB_OK;
}

/* The folder a path is in: "." for a bare name. NULL on no memory. */
static char *folder_of(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    while (n > 0 && path[n - 1] != '/') n--;
    while (n > 1 && path[n - 1] == '/') n--;
    return n == 0 ? mb_strdup(".") : mb_strndup(path, n);
}

/* ---- 2. reading ---- */

static mb_status read_all(int file, const char *path, int64_t max_bytes, mb_str *s)
{
    mb_status status = MB_OK;
    for (;;) {
        if (s->length == s->capacity) MB_TRY(mb_str_reserve(s, s->capacity + (1 << 16)));
        ssize_t n = read(file, s->data + s->length, s->capacity - s->length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) MB_RAISE(MB_EIO, "%s: cannot read it: %s", path, strerror(errno));
        if (n == 0) break;
        s->length += (size_t)n;
        if (max_bytes > 0 && s->length > (size_t)max_bytes) {
            MB_RAISE(MB_ERANGE, "%s: larger than the %lld bytes expected of such a file", path,
                     (long long)max_bytes);
        }
    }
    s->data[s->length] = 0;
done:
    return status;
}

mb_status mb_files_read(const char *path, int64_t max_bytes, mb_str *s)
{
    mb_status status = MB_OK;
    struct stat info;
    mb_str_reset(s);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) MB_RAISE(status_of(errno), "%s: cannot open it: %s", path, strerror(errno));
    if (fstat(file, &info) == 0 && S_ISDIR(info.st_mode)) MB_RAISE(MB_EIO, "%s: a folder, not a file", path);
    if (fstat(file, &info) == 0 && S_ISREG(info.st_mode)) {
        if (max_bytes > 0 && info.st_size > max_bytes) {
            MB_RAISE(MB_ERANGE, "%s: %lld bytes, larger than the %lld expected of such a file", path,
                     (long long)info.st_size, (long long)max_bytes);
        }
        MB_TRY(mb_str_reserve(s, (size_t)info.st_size + 1)); /* +1: the end is seen without growing */
    }
    MB_TRY(read_all(file, path, max_bytes, s));
done:
    if (file >= 0) close(file);
    return status;
}

/* ---- 3. writing ---- */

static mb_status write_all(int file, const char *path, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n > 0) {
        ssize_t written = write(file, p, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return mb_fail(status_of(errno), "%s: cannot write it: %s", path, strerror(errno));
        p += written;
        n -= (size_t)written;
    }
    return MB_OK;
}

mb_status mb_files_sync(const char *path)
{
    mb_status status = MB_OK;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) MB_RAISE(status_of(errno), "%s: cannot open it: %s", path, strerror(errno));
    if (fsync(file) != 0 && errno != EINVAL)
        MB_RAISE(MB_EIO, "%s: cannot flush it: %s", path, strerror(errno));
done:
    if (file >= 0) close(file);
    return status;
}

static mb_status sync_parent(const char *path)
{
    mb_status status = MB_OK;
    char *folder = folder_of(path);
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its name", path);
    MB_TRY(mb_files_sync(folder));
done:
    mb_free(folder);
    return status;
}

/* Open `path.tmp.<pid>` for writing: its name and descriptor. */
static mb_status open_beside(const char *path, char **out_name, int *out_file)
{
    mb_status status = MB_OK;
    char *name = mb_str_format("%s.tmp.%ld", path, (long)getpid());
    if (name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its name", path);
    int file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) MB_RAISE(status_of(errno), "%s: cannot create it: %s", name, strerror(errno));
    *out_name = name;
    *out_file = file;
    name = NULL;
done:
    mb_free(name);
    return status;
}

/* Flush, close and rename a file opened by open_beside; or, after a failure, remove it. Frees the name. */
static mb_status close_beside(mb_status so_far, const char *path, char **name, int *file)
{
    mb_status status = so_far;
    if (*file < 0) return status;
    if (status == MB_OK && fsync(*file) != 0) {
        status = mb_fail(status_of(errno), "%s: cannot flush it: %s", *name, strerror(errno));
    }
    if (close(*file) != 0 && status == MB_OK) {
        status = mb_fail(status_of(errno), "%s: cannot close it: %s", *name, strerror(errno));
    }
    if (status == MB_OK && rename(*name, path) != 0) {
        status = mb_fail(status_of(errno), "%s: cannot rename it to %s: %s", *name, path, strerror(errno));
    }
    if (status != MB_OK) unlink(*name);
    *file = -1;
    MB_FREE(*name);
    return status == MB_OK ? sync_parent(path) : status;
}

mb_status mb_files_write(const char *path, const void *bytes, size_t n)
{
    mb_status status = MB_OK;
    char *name = NULL;
    int file = -1;
    MB_TRY(open_beside(path, &name, &file));
    MB_TRY(write_all(file, name, bytes, n));
done:
    return close_beside(status, path, &name, &file);
}

mb_status mb_files_copy(const char *from, const char *to)
{
    enum { PIECE = 1 << 18 };
    mb_status status = MB_OK;
    char *name = NULL, *piece = NULL;
    int target = -1, source = open(from, O_RDONLY | O_CLOEXEC);
    if (source < 0) MB_RAISE(status_of(errno), "%s: cannot open it: %s", from, strerror(errno));
    MB_NEW_ARRAY(piece, PIECE);
    MB_TRY(open_beside(to, &name, &target));
    for (;;) {
        ssize_t n = read(source, piece, PIECE);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) MB_RAISE(MB_EIO, "%s: cannot read it: %s", from, strerror(errno));
        if (n == 0) break;
        MB_TRY(write_all(target, name, piece, (size_t)n));
    }
done:
    if (source >= 0) close(source);
    mb_free(piece);
    return close_beside(status, to, &name, &target);
}

mb_status mb_files_append_line(const char *path, const char *line)
{
    mb_status status = MB_OK;
    char *text = NULL;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file < 0) MB_RAISE(status_of(errno), "%s: cannot open it: %s", path, strerror(errno));
    text = mb_str_format("%s\n", line);
    if (text == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for a line", path);
    MB_TRY(write_all(file, path, text, strlen(text)));
done:
    if (file >= 0 && close(file) != 0 && status == MB_OK) {
        status = mb_fail(status_of(errno), "%s: cannot close it: %s", path, strerror(errno));
    }
    mb_free(text);
    return status;
}

mb_status mb_files_rename(const char *from, const char *to)
{
    mb_status status = MB_OK;
    if (rename(from, to) != 0) {
        MB_RAISE(status_of(errno), "%s: cannot rename it to %s: %s", from, to, strerror(errno));
    }
    MB_TRY(sync_parent(to));
done:
    return status;
}

/* ---- 4. folders ---- */

mb_status mb_files_make_folders(const char *path)
{
    mb_status status = MB_OK;
    char *part = mb_strdup(path);
    if (part == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its name", path);
    for (char *p = part + 1; *part != 0; p++) {
        if (*p != '/' && *p != 0) continue;
        char kept = *p;
        *p = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST) {
            MB_RAISE(status_of(errno), "%s: cannot make this folder: %s", part, strerror(errno));
        }
        if (kept == 0) break;
        *p = kept;
    }
    if (!mb_files_is_folder(path)) MB_RAISE(MB_EEXIST, "%s: in the way of a folder of this name", path);
done:
    mb_free(part);
    return status;
}

mb_status mb_files_remove_tree(const char *path)
{
    mb_status status = MB_OK;
    char **names = NULL, *inner = NULL;
    int64_t count = 0;
    struct stat info;
    if (lstat(path, &info) != 0) {
        if (errno != ENOENT) MB_RAISE(MB_EIO, "%s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISDIR(info.st_mode)) {
        if (unlink(path) != 0 && errno != ENOENT)
            MB_RAISE(MB_EIO, "%s: cannot remove it: %s", path, strerror(errno));
        goto done;
    }
    MB_TRY(mb_files_list(path, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        inner = mb_files_join(path, names[i]);
        if (inner == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for a name", path);
        MB_TRY(mb_files_remove_tree(inner));
        MB_FREE(inner);
    }
    if (rmdir(path) != 0 && errno != ENOENT)
        MB_RAISE(MB_EIO, "%s: cannot remove it: %s", path, strerror(errno));
done:
    mb_free(inner);
    mb_files_free_names(&names, count);
    return status;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

mb_status mb_files_list(const char *folder, char ***out_names, int64_t *out_count)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t count = 0, capacity = 0;
    DIR *handle = opendir(folder);
    if (handle == NULL) MB_RAISE(status_of(errno), "%s: cannot list it: %s", folder, strerror(errno));
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(handle);
        if (entry == NULL && errno != 0) MB_RAISE(MB_EIO, "%s: cannot list it: %s", folder, strerror(errno));
        if (entry == NULL) break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (count == capacity) {
            capacity = 2 * capacity + 16;
            char **grown = mb_realloc(names, (size_t)capacity, sizeof *grown);
            if (grown == NULL)
                MB_RAISE(MB_ENOMEM, "%s: not enough memory for its %lld names", folder, (long long)count);
            names = grown;
        }
        names[count] = mb_strdup(entry->d_name);
        if (names[count] == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its names", folder);
        count++;
    }
    if (count > 0) qsort(names, (size_t)count, sizeof *names, compare_names);
    *out_names = names;
    *out_count = count;
    names = NULL;
    count = 0;
done:
    if (handle != NULL) closedir(handle);
    mb_files_free_names(&names, count);
    return status;
}

void mb_files_free_names(char ***names, int64_t count)
{
    for (int64_t i = 0; *names != NULL && i < count; i++) mb_free((*names)[i]);
    MB_FREE(*names);
}

/* ---- 5. space ---- */

/* Free bytes on the file system of `path` or its nearest existing parent. */
static mb_status free_bytes(const char *path, double *out_bytes)
{
    mb_status status = MB_OK;
    struct statvfs info;
    char *at = mb_strdup(path), *up = NULL;
    if (at == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its name", path);
    while (statvfs(at, &info) != 0) {
        int failure = errno;
        up = folder_of(at);
        if (up == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for its name", path);
        if (failure != ENOENT || strcmp(up, at) == 0) {
            MB_RAISE(MB_EIO, "%s: cannot see its free space: %s", at, strerror(failure));
        }
        mb_free(at);
        at = up;
        up = NULL;
    }
    *out_bytes = (double)info.f_bavail * (double)info.f_frsize;
done:
    mb_free(at);
    mb_free(up);
    return status;
}

mb_status mb_files_check_space(const char *path, int64_t bytes, const char *what)
{
    mb_status status = MB_OK;
    double available = 0, needed = 1.01 * (double)bytes;
    const char *stand_in = getenv("MB_TEST_FREE_BYTES");
    if (stand_in != NULL) {
        MB_TRY(mb_str_parse_real(stand_in, &available));
    } else {
        MB_TRY(free_bytes(path, &available));
    }
    if (available < needed) {
        MB_RAISE(MB_ENOSPACE,
                 "%s: %s needs %.3f GB, %.3f GB are free there; make room or choose another folder", path,
                 what, needed / 1e9, available / 1e9);
    }
done:
    return status;
}
