/* h5_rows.c: datasets that grow by rows, gathered to whole chunks before they are written.
 *
 * So a file does not depend on the pieces in which its rows came, and a dataset that never fills a chunk is
 * stored compact.
 */
#include <assert.h>
#include <string.h>

#include "store/h5_handle.h"

static mb_h5_rows *find_rows(mb_h5 *file, const char *path)
{
    for (int64_t i = 0; i < file->rows_count; i++)
        if (strcmp(file->rows[i].path, path) == 0) return &file->rows[i];
    return NULL;
}

mb_status mb_h5_rows_create(mb_h5 *file, const char *path, mb_dtype dtype, int row_dims,
                            const int64_t *row_shape, size_t chunk_bytes)
{
    mb_status status = MB_OK;
    mb_h5_rows row = {
        .id = H5I_INVALID_HID, .dtype = dtype, .dims = row_dims + 1, .row_bytes = mb_dtype_bytes(dtype)};
    assert(file->aside != NULL && row_dims < MB_TENSOR_MAX_DIMS && find_rows(file, path) == NULL);
    for (int d = 0; d < row_dims; d++) {
        assert(row_shape[d] > 0);
        row.shape[d + 1] = row_shape[d];
        row.row_bytes *= (size_t)row_shape[d];
    }
    row.chunk_rows = row.row_bytes < chunk_bytes ? (int64_t)(chunk_bytes / row.row_bytes) : 1;
    row.path = mb_strdup(path);
    mb_h5_rows *grown = mb_realloc(file->rows, (size_t)file->rows_count + 1, sizeof *grown);
    if (grown != NULL) file->rows = grown;
    if (row.path == NULL || grown == NULL)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory for dataset %s", file->path, path);
    file->rows[file->rows_count++] = row;
    row.path = NULL;
done:
    mb_free(row.path);
    return status;
}

/* The growing dataset itself, empty, when its first chunk is full. */
static mb_status create_growing(mb_h5 *file, mb_h5_rows *rows)
{
    mb_status status = MB_OK;
    hid_t type = mb_h5_handle_type(rows->dtype), space = H5I_INVALID_HID, layout = H5I_INVALID_HID;
    int64_t one_chunk[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_handle_groups(file, rows->path));
    memcpy(one_chunk, rows->shape, sizeof one_chunk);
    one_chunk[0] = rows->chunk_rows;
    layout = mb_h5_handle_layout(rows->dims, one_chunk, mb_dtype_bytes(rows->dtype),
                                 (size_t)rows->chunk_rows * rows->row_bytes, true);
    rows->shape[0] = 0;
    space = mb_h5_handle_space(rows->dims, rows->shape, true);
    if (type < 0 || space < 0 || layout < 0)
        H5_RAISE(MB_EIO, file->path, rows->path, "cannot lay out dataset");
    rows->id =
        mb_h5_handle_hold(H5Dcreate2(file->file, rows->path, type, space, H5P_DEFAULT, layout, H5P_DEFAULT));
    if (rows->id < 0) H5_RAISE(MB_EIO, file->path, rows->path, "cannot create dataset");
done:
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&space);
    mb_h5_handle_drop(&layout);
    return status;
}

static mb_status flush_rows(mb_h5 *file, mb_h5_rows *rows)
{
    mb_status status = MB_OK;
    hid_t type = H5I_INVALID_HID, space = H5I_INVALID_HID, memory = H5I_INVALID_HID;
    hsize_t size[MB_TENSOR_MAX_DIMS] = {0};
    if (rows->held == 0) return MB_OK;
    MB_TRY(mb_h5_handle_check_space(file, (size_t)rows->held * rows->row_bytes));
    if (rows->id < 0) MB_TRY(create_growing(file, rows));
    for (int d = 0; d < rows->dims; d++) size[d] = (hsize_t)rows->shape[d];
    size[0] = (hsize_t)(rows->shape[0] + rows->held);
    type = mb_h5_handle_type(rows->dtype);
    if (type < 0 || H5Dset_extent(rows->id, size) < 0)
        H5_RAISE(MB_EIO, file->path, rows->path, "cannot extend dataset");
    space = mb_h5_handle_hold(H5Dget_space(rows->id));
    if (space < 0 ||
        mb_h5_handle_select(space, rows->dims, rows->shape, rows->shape[0], rows->held, &memory) < 0 ||
        H5Dwrite(rows->id, type, memory, space, H5P_DEFAULT, rows->buffer) < 0)
        H5_RAISE(MB_EIO, file->path, rows->path, "cannot append to dataset");
    rows->shape[0] += rows->held;
    rows->held = 0;
done:
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&space);
    mb_h5_handle_drop(&memory);
    return status;
}

/* Room for one more row than held; the buffer doubles up to one chunk. */
static mb_status grow_buffer(mb_h5_rows *rows, size_t wanted)
{
    size_t most = (size_t)rows->chunk_rows * rows->row_bytes, now = rows->capacity;
    if (wanted <= now) return MB_OK;
    while (now < wanted) now = now == 0 ? 4096 : 2 * now;
    if (now > most) now = most;
    char *grown = mb_realloc(rows->buffer, now, 1);
    if (grown == NULL) return mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
    rows->buffer = grown;
    rows->capacity = now;
    return MB_OK;
}

mb_status mb_h5_rows_append(mb_h5 *file, const char *path, const void *data, int64_t n)
{
    mb_status status = MB_OK;
    mb_h5_rows *rows = find_rows(file, path);
    const char *from = data;
    assert(rows != NULL && "mb_h5_create_rows comes first");
    while (n > 0) {
        int64_t part = rows->chunk_rows - rows->held < n ? rows->chunk_rows - rows->held : n;
        MB_TRY(grow_buffer(rows, (size_t)(rows->held + part) * rows->row_bytes));
        memcpy(rows->buffer + (size_t)rows->held * rows->row_bytes, from, (size_t)part * rows->row_bytes);
        rows->held += part;
        from += (size_t)part * rows->row_bytes;
        n -= part;
        if (rows->held == rows->chunk_rows) MB_TRY(flush_rows(file, rows));
    }
done:
    return status;
}

/* What was appended since the last full chunk; a dataset that never filled one is written whole. */
mb_status mb_h5_rows_finish(mb_h5 *file)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < file->rows_count; i++) {
        mb_h5_rows *rows = &file->rows[i];
        if (rows->id >= 0) {
            MB_TRY(flush_rows(file, rows));
            continue;
        }
        mb_tensor tensor = {.dtype = rows->dtype, .dims = rows->dims, .data = rows->buffer};
        memcpy(tensor.shape, rows->shape, sizeof tensor.shape);
        tensor.shape[0] = rows->held;
        MB_TRY(mb_h5_write(file, rows->path, &tensor));
    }
done:
    return status;
}

void mb_h5_rows_destroy(mb_h5 *file)
{
    for (int64_t i = 0; i < file->rows_count; i++) {
        mb_free(file->rows[i].path);
        mb_free(file->rows[i].buffer);
    }
    MB_FREE(file->rows);
    file->rows_count = 0;
}
