/* files: paths, whole-file reads, writes that appear whole or not at all.
 *
 * Layer: base.  Uses: memory, str, log.
 */
#ifndef MB_FILES_H
#define MB_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

char *mb_files_join(const char *folder, const char *name); /* new block; NULL on no memory */
bool mb_files_is_file(const char *path);
bool mb_files_is_folder(const char *path);
mb_status mb_files_size(const char *path, int64_t *out_bytes); /* MB_ENOTFOUND with the path */

/* Whole file into s (replaces its content). max_bytes 0: no limit. MB_ENOTFOUND, MB_EIO, MB_ERANGE. */
mb_status mb_files_read(const char *path, int64_t max_bytes, mb_str *s);

/* Write beside (`path.tmp.<pid>`), fsync, rename. Nothing is left under `path` on failure. */
mb_status mb_files_write(const char *path, const void *bytes, size_t n);
mb_status mb_files_copy(const char *from, const char *to); /* the same, from a file */

/* The node-local copy of an input: `path` itself, unless the environment's MB_STAGED names a folder with a
 * copy of the folder that path is, or of the folder its file is in. The copy of /a/b is $MB_STAGED/a/b
 * (physical absolute path), with a file .complete: /a/b on the first line, then per file "<bytes> <mtime
 * seconds> <name>" of the original. It holds the plain files of /a/b (links followed) but not its folders,
 * and not those that mb_files_is_unstaged names. A copy is used only where .complete still agrees with the
 * originals and with the copies, in names, bytes and times (a stat of each; for the path of a file, of that
 * one); else the path itself is given, never an error. *out_path: new block, mb_free. MB_ENOMEM. */
mb_status mb_files_staged(const char *path, char **out_path);
/* Names that are not staged: they begin with "." or "lease", end in ".log" or ".tsv", or hold ".tmp.". */
bool mb_files_is_unstaged(const char *name);

/* Append one line (adds the newline) with a single write. */
mb_status mb_files_append_line(const char *path, const char *line);

mb_status mb_files_make_folders(const char *path); /* mkdir -p */
mb_status mb_files_remove_tree(const char *path);  /* rm -rf of files and folders; missing is fine */
mb_status
mb_files_rename(const char *from,
                const char *to); /* + fsync of the parent folder; `to` must not exist as a non-empty folder */
mb_status mb_files_sync(const char *path); /* fsync a file or folder */

/* Names (not paths) inside a folder in byte order, without . and ..; free each and the array with
 * mb_files_free_names. */
mb_status mb_files_list(const char *folder, char ***out_names, int64_t *out_count);
void mb_files_free_names(char ***names, int64_t count);

/* MB_ENOSPACE unless the file system of `path` (or its nearest existing parent) has `bytes` and 1 % more
 * free. MB_TEST_FREE_BYTES in the environment stands in for the real figure in tests. */
mb_status mb_files_check_space(const char *path, int64_t bytes, const char *what);

#endif
