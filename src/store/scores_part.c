/* scores_part.c: parts of a score file: written by any rank, each whole or absent, listed when they are
 * joined.
 */
#include "store/scores_part.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"

char *mb_scores_part_folder(const char *path)
{
    return mb_str_format("%s.parts", path);
}

char *mb_scores_part_path(const char *path, int64_t first, int64_t rows)
{
    return mb_str_format("%s.parts/%" PRId64 "-%" PRId64 ".h5", path, first, first + rows);
}

static mb_status write_columns(mb_h5 *file, const mb_scores_column *columns, int64_t column_count,
                               int64_t layer_count, const mb_scores_part *part)
{
    mb_status status = MB_OK;
    char name[96];
    for (int64_t c = 0; c < column_count; c++) {
        mb_tensor values = mb_tensor_view1(MB_F64, part->values + c * part->rows, part->rows);
        snprintf(name, sizeof name, "/scores/%s", columns[c].name);
        MB_TRY(mb_h5_write(file, name, &values));
        if (!columns[c].has_layers) continue;
        mb_tensor layers =
            mb_tensor_view2(MB_F32, part->layers + c * part->rows * layer_count, part->rows, layer_count);
        snprintf(name, sizeof name, "/layers/%s", columns[c].name);
        MB_TRY(mb_h5_write(file, name, &layers));
    }
done:
    return status;
}

static mb_status write_part(const char *name, const char *key, const mb_scores_column *columns,
                            int64_t column_count, int64_t layer_count, const mb_scores_part *part)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    MB_TRY(mb_h5_create(name, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-scores-part"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "key", key));
    MB_TRY(mb_h5_set_int(file, "/", "first", part->first));
    MB_TRY(mb_h5_set_int(file, "/", "rows", part->rows));
    MB_TRY(write_columns(file, columns, column_count, layer_count, part));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

mb_status mb_scores_part_write(const char *path, const char *key, const mb_scores_column *columns,
                               int64_t column_count, int64_t layer_count, const mb_scores_part *part)
{
    mb_status status = MB_OK;
    char *folder = mb_scores_part_folder(path), *name = mb_scores_part_path(path, part->first, part->rows);
    if (folder == NULL || name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    assert(part->first >= 0 && part->rows > 0);
    for (int attempt = 0;; attempt++) {
        MB_TRY(mb_files_make_folders(folder));
        status = write_part(name, key, columns, column_count, layer_count, part);
        if (status == MB_OK || attempt == 3 || mb_files_is_folder(folder)) break;
        mb_status_reset(); /* another run joined the parts and removed the folder: late, but no harm */
    }
    MB_TRY(status);
done:
    mb_free(folder);
    mb_free(name);
    return status;
}

void mb_scores_parts_remove(const char *path)
{
    char *folder = mb_scores_part_folder(path);
    if (folder != NULL && mb_files_is_folder(folder) && mb_files_remove_tree(folder) != MB_OK) {
        mb_warn("%s: not removed (%s)", folder, mb_status_message());
        mb_status_reset();
    }
    mb_free(folder);
}

/* Key, first row and rows of a part file. */
static mb_status read_head(const char *path, mb_str *key, int64_t *out_first, int64_t *out_rows)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(mb_h5_get_text(file, "/", "key", key));
    MB_TRY(mb_h5_get_int(file, "/", "first", out_first));
    MB_TRY(mb_h5_get_int(file, "/", "rows", out_rows));
done:
    mb_h5_destroy(&file);
    return status;
}

bool mb_scores_part_is_done(const char *path, const char *key, int64_t first, int64_t rows)
{
    mb_str found = MB_STR_EMPTY;
    int64_t has_first = 0, has_rows = 0;
    char *name = mb_scores_part_path(path, first, rows);
    bool done = name != NULL && mb_files_is_file(name) &&
                read_head(name, &found, &has_first, &has_rows) == MB_OK && has_first == first &&
                has_rows == rows && strcmp(mb_str_text(&found), key) == 0;
    mb_str_destroy(&found);
    mb_free(name);
    return done;
}

static int compare_parts(const void *a, const void *b)
{
    const mb_scores_part_file *x = a, *y = b;
    if (x->first != y->first) return x->first < y->first ? -1 : 1;
    return x->rows < y->rows ? -1 : x->rows > y->rows;
}

/* One file of the folder: into the list when its key is ours; removed when it is another's or broken. */
static mb_status add_part(const char *path, const char *key, mb_scores_part_file *part, bool *out_is_ours)
{
    mb_status status = MB_OK;
    mb_str found = MB_STR_EMPTY;
    *out_is_ours = false;
    if (read_head(path, &found, &part->first, &part->rows) != MB_OK) {
        mb_warn("%s: not a whole part of scores, removed: %s", path, mb_status_message());
        mb_status_reset();
        unlink(path);
    } else if (strcmp(mb_str_text(&found), key) != 0) {
        mb_warn("%s: a part of other work (model, corpus or options changed), removed", path);
        unlink(path);
    } else {
        part->path = mb_strdup(path);
        if (part->path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        *out_is_ours = true;
    }
done:
    mb_str_destroy(&found);
    return status;
}

mb_status mb_scores_part_list(const char *path, const char *key, mb_scores_part_file **out_parts,
                              int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_scores_part_file *parts = NULL;
    char **names = NULL, *folder = mb_scores_part_folder(path), *full = NULL;
    int64_t n = 0, kept = 0;
    bool is_ours = false;
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    if (mb_files_is_folder(folder)) MB_TRY(mb_files_list(folder, &names, &n));
    MB_NEW_ARRAY(parts, n + 1);
    for (int64_t i = 0; i < n; i++) {
        if (!mb_str_is_suffix(names[i], ".h5")) continue;
        mb_free(full);
        full = mb_files_join(folder, names[i]);
        if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        MB_TRY(add_part(full, key, &parts[kept], &is_ours));
        if (is_ours) kept++;
    }
    qsort(parts, (size_t)kept, sizeof *parts, compare_parts);
    *out_parts = parts;
    *out_count = kept;
    parts = NULL;
done:
    mb_files_free_names(&names, n);
    mb_scores_part_free_list(&parts, kept);
    mb_free(folder);
    mb_free(full);
    return status;
}

void mb_scores_part_free_list(mb_scores_part_file **parts, int64_t count)
{
    if (*parts == NULL) return;
    for (int64_t i = 0; i < count; i++) mb_free((*parts)[i].path);
    MB_FREE(*parts);
}
