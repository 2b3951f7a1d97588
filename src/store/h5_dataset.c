/* h5_dataset.c: the table of datasets that are open for reading, and reads of them as they are stored.
 *
 * A dataset stays open, and with it HDF5's cache of its chunks, until the file is closed or its place is
 * needed.
 */
#include <string.h>

#include "store/h5_handle.h"

#define DEFAULT_CACHE_BYTES ((size_t)1 << 20) /* HDF5's own, per dataset */

/* All of its bytes must be in the file, before anything of that size is allocated. */
static mb_status check_stored(mb_h5 *file, const mb_h5_dataset *dataset)
{
    mb_status status = MB_OK;
    size_t bytes = dataset->element_bytes;
    hsize_t file_bytes = 0;
    for (int d = 0; d < dataset->dims; d++)
        if (__builtin_mul_overflow(bytes, (size_t)dataset->shape[d], &bytes))
            MB_RAISE(MB_EFORMAT, "%s: dataset %s: its shape is impossible", file->path, dataset->path);
    hsize_t stored = H5Dget_storage_size(dataset->id);
    if (H5Fget_filesize(file->file, &file_bytes) < 0)
        H5_RAISE(MB_EIO, file->path, "", "cannot get the size of the file");
    if (bytes > stored || stored > file_bytes)
        MB_RAISE(MB_EFORMAT,
                 "%s: dataset %s: %zu bytes by its shape, %llu stored in a file of %llu; the file is damaged "
                 "or was not written by this system",
                 file->path, dataset->path, bytes, (unsigned long long)stored,
                 (unsigned long long)file_bytes);
done:
    return status;
}

static mb_status describe_dataset(mb_h5 *file, mb_h5_dataset *dataset)
{
    mb_status status = MB_OK;
    hid_t type = mb_h5_handle_hold(H5Dget_type(dataset->id)),
          space = mb_h5_handle_hold(H5Dget_space(dataset->id));
    hsize_t shape[H5S_MAX_RANK] = {0};
    if (type < 0 || space < 0)
        H5_RAISE(MB_EFORMAT, file->path, dataset->path, "cannot read the description of dataset");
    int dims = H5Sget_simple_extent_dims(space, shape, NULL);
    if (dims < 0 || dims > MB_TENSOR_MAX_DIMS)
        MB_RAISE(MB_EUNSUPPORTED, "%s: dataset %s has %d dimensions; 0 to %d are understood", file->path,
                 dataset->path, dims, MB_TENSOR_MAX_DIMS);
    dataset->dims = dims;
    for (int d = 0; d < MB_TENSOR_MAX_DIMS; d++) {
        if (d < dims && shape[d] > INT64_MAX)
            MB_RAISE(MB_EFORMAT, "%s: dataset %s: its shape is impossible", file->path, dataset->path);
        dataset->shape[d] = d < dims ? (int64_t)shape[d] : 1;
    }
    dataset->is_text = H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) <= 0;
    dataset->dtype = dataset->is_text ? MB_U8 : mb_h5_handle_find_dtype(type);
    dataset->element_bytes = H5Tget_size(type);
    if (dataset->dtype == MB_DTYPE_COUNT)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: dataset %s has a type that is not understood (little-endian numbers and strings of "
                 "fixed length are)",
                 file->path, dataset->path);
    MB_TRY(check_stored(file, dataset));
done:
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&space);
    return status;
}

/* Open with a cache that holds at least two chunks. */
static mb_status open_with_cache(mb_h5 *file, const char *path, hid_t *out_id)
{
    mb_status status = MB_OK;
    hid_t layout = H5I_INVALID_HID, access = H5I_INVALID_HID, type = H5I_INVALID_HID,
          id = mb_h5_handle_hold(H5Dopen2(file->file, path, H5P_DEFAULT));
    hsize_t chunk[H5S_MAX_RANK] = {0};
    if (id < 0) H5_RAISE(MB_EFORMAT, file->path, path, "cannot open dataset");
    layout = mb_h5_handle_hold(H5Dget_create_plist(id));
    type = mb_h5_handle_hold(H5Dget_type(id));
    if (layout < 0 || type < 0) H5_RAISE(MB_EFORMAT, file->path, path, "cannot read the layout of dataset");
    size_t bytes = H5Tget_size(type);
    int dims = H5Pget_layout(layout) == H5D_CHUNKED ? H5Pget_chunk(layout, H5S_MAX_RANK, chunk) : 0;
    for (int d = 0; d < dims; d++) bytes *= (size_t)chunk[d];
    if (dims > 0 && 2 * bytes > DEFAULT_CACHE_BYTES) {
        access = mb_h5_handle_hold(H5Pcreate(H5P_DATASET_ACCESS));
        mb_h5_handle_drop(&id);
        if (access < 0 || H5Pset_chunk_cache(access, 521, 2 * bytes, 0.75) < 0)
            H5_RAISE(MB_EIO, file->path, path, "cannot set the chunk cache of dataset");
        id = mb_h5_handle_hold(H5Dopen2(file->file, path, access));
        if (id < 0) H5_RAISE(MB_EFORMAT, file->path, path, "cannot open dataset");
    }
    *out_id = id;
    id = H5I_INVALID_HID;
done:
    mb_h5_handle_drop(&id);
    mb_h5_handle_drop(&layout);
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&access);
    return status;
}

/* The dataset at `path`, from the table or newly opened in the place of the one not used for longest. */
mb_status mb_h5_dataset_open(mb_h5 *file, const char *path, mb_h5_dataset **out_dataset)
{
    mb_status status = MB_OK;
    mb_h5_dataset fresh = {.id = H5I_INVALID_HID}, *place = &file->datasets[0];
    for (int i = 0; i < MB_H5_OPEN_DATASETS; i++) {
        mb_h5_dataset *dataset = &file->datasets[i];
        if (dataset->path != NULL && strcmp(dataset->path, path) == 0) {
            dataset->used = ++file->uses;
            *out_dataset = dataset;
            return MB_OK;
        }
        if (dataset->used < place->used) place = dataset;
    }
    if (!mb_h5_has(file, path)) MB_RAISE(MB_ENOTFOUND, "%s: there is no dataset %s", file->path, path);
    fresh.path = mb_strdup(path);
    if (fresh.path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", file->path);
    MB_TRY(open_with_cache(file, path, &fresh.id));
    MB_TRY(describe_dataset(file, &fresh));
    mb_h5_handle_drop(&place->id);
    mb_free(place->path);
    *place = fresh;
    place->used = ++file->uses;
    *out_dataset = place;
    fresh = (mb_h5_dataset){.id = H5I_INVALID_HID};
done:
    mb_h5_handle_drop(&fresh.id);
    mb_free(fresh.path);
    return status;
}

/* Elements of a dataset, all of them (n < 0) or n rows from first, as stored. */
mb_status mb_h5_dataset_read(mb_h5 *file, const mb_h5_dataset *dataset, int64_t first, int64_t n, void *out)
{
    mb_status status = MB_OK;
    hid_t type = H5I_INVALID_HID, space = H5I_INVALID_HID, memory = H5I_INVALID_HID;
    for (int d = 0; d < dataset->dims; d++)
        if (dataset->shape[d] == 0) return MB_OK;
    if (n == 0) return MB_OK;
    type = mb_h5_handle_hold(H5Dget_type(dataset->id));
    if (type < 0) H5_RAISE(MB_EIO, file->path, dataset->path, "cannot get the type of dataset");
    if (n > 0) {
        space = mb_h5_handle_hold(H5Dget_space(dataset->id));
        if (space < 0 || mb_h5_handle_select(space, dataset->dims, dataset->shape, first, n, &memory) < 0)
            H5_RAISE(MB_EIO, file->path, dataset->path, "cannot select rows of dataset");
    }
    if (H5Dread(dataset->id, type, n > 0 ? memory : H5S_ALL, n > 0 ? space : H5S_ALL, H5P_DEFAULT, out) < 0)
        H5_RAISE(MB_EFORMAT, file->path, dataset->path,
                 "the data cannot be read (a damaged file? make or copy it again): dataset");
done:
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&space);
    mb_h5_handle_drop(&memory);
    return status;
}

mb_status mb_h5_dataset_check_dtype(const mb_h5 *file, const mb_h5_dataset *dataset, mb_dtype dtype)
{
    if (!dataset->is_text && dataset->dtype == dtype) return MB_OK;
    return mb_fail(MB_ESHAPE, "%s: dataset %s holds %s, not %s", file->path, dataset->path,
                   dataset->is_text ? "strings" : mb_dtype_name(dataset->dtype), mb_dtype_name(dtype));
}
