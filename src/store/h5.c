/* h5.c: files, whole datasets and attributes over HDF5.
 *
 * Every byte of a file we write is under some checksum: small datasets are stored compact, inside their
 * object header (which the V110 format checksums), all others in chunks with fletcher32; strings have fixed
 * length, because HDF5's heap for variable ones has no checksum. Memory types equal file types, so nothing is
 * converted.
 *
 * 1. files   2. writing   3. reading   4. attributes   5. visit
 */
#include "store/h5.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "store/h5_handle.h"

/* ---- 1. files ---- */

static hid_t make_access(bool writing)
{
    hid_t access = mb_h5_handle_hold(H5Pcreate(H5P_FILE_ACCESS));
    if (access < 0) return access;
    bool good = H5Pset_fclose_degree(access, H5F_CLOSE_SEMI) >= 0;
    if (writing) good = good && H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0;
#if H5_VERSION_GE(1, 10, 7)
    good = good && H5Pset_file_locking(access, 0, 1) >=
                       0; /* some parallel file systems have no locks; renames need none */
#endif
    if (!good) mb_h5_handle_drop(&access);
    return access;
}

static mb_status new_file(const char *path, mb_h5 **out_file)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    MB_NEW(file);
    file->file = H5I_INVALID_HID;
    for (int i = 0; i < MB_H5_OPEN_DATASETS; i++) file->datasets[i].id = H5I_INVALID_HID;
    file->path = mb_strdup(path);
    if (file->path == NULL) status = MB_ENOMEM;
    *out_file = file;
done:
    return status;
}

mb_status mb_h5_create(const char *path, mb_h5 **out_file)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    hid_t access = H5I_INVALID_HID, creation = H5I_INVALID_HID;
    MB_TRY(new_file(path, &file));
    MB_TRY(mb_files_check_space(path, ((int64_t)1 << 20), path));
    file->aside = mb_str_format("%s.tmp.%ld", path, (long)getpid());
    if (file->aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    access = make_access(true);
    creation = mb_h5_handle_hold(H5Pcreate(H5P_FILE_CREATE));
    if (access < 0 || creation < 0 || H5Pset_obj_track_times(creation, 0) < 0)
        H5_RAISE(MB_EIO, path, "", "cannot prepare the file");
    file->file = mb_h5_handle_hold(H5Fcreate(file->aside, H5F_ACC_TRUNC, creation, access));
    if (file->file < 0)
        H5_RAISE(MB_EIO, path, "", "cannot create the file; does the folder exist, may you write there?");
    *out_file = file;
    file = NULL;
done:
    mb_h5_handle_drop(&access);
    mb_h5_handle_drop(&creation);
    mb_h5_destroy(&file);
    return status;
}

mb_status mb_h5_open(const char *path, mb_h5 **out_file)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    hid_t properties = H5I_INVALID_HID;
    if (!mb_files_is_file(path)) MB_RAISE(MB_ENOTFOUND, "%s: there is no such file", path);
    MB_TRY(new_file(path, &file));
    properties = make_access(false);
    if (properties < 0) H5_RAISE(MB_EIO, path, "", "cannot prepare reading");
    if (access(path, R_OK) != 0) MB_RAISE(MB_EIO, "%s: cannot be read: %s", path, strerror(errno));
    file->file = mb_h5_handle_hold(H5Fopen(path, H5F_ACC_RDONLY, properties));
    if (file->file < 0)
        H5_RAISE(MB_EFORMAT, path, "",
                 "not a readable HDF5 file (cut off or damaged?); make or copy it again");
    *out_file = file;
    file = NULL;
done:
    mb_h5_handle_drop(&properties);
    mb_h5_destroy(&file);
    return status;
}

/* Close every dataset; negative when one could not write what it still held. */
static herr_t close_datasets(mb_h5 *file)
{
    herr_t result = 0;
    for (int i = 0; i < MB_H5_OPEN_DATASETS; i++) {
        if (mb_h5_handle_drop(&file->datasets[i].id) < 0) result = -1;
        MB_FREE(file->datasets[i].path);
    }
    for (int64_t i = 0; i < file->rows_count; i++)
        if (mb_h5_handle_drop(&file->rows[i].id) < 0) result = -1;
    return result;
}

static mb_status publish(mb_h5 *file)
{
    mb_status status = MB_OK;
    MB_TRY(mb_h5_rows_finish(file));
    if (close_datasets(file) < 0) H5_RAISE(MB_EIO, file->path, "", "cannot write the last data");
    if (H5Fflush(file->file, H5F_SCOPE_GLOBAL) < 0)
        H5_RAISE(MB_EIO, file->path, "", "cannot write the last data");
    if (mb_h5_handle_drop(&file->file) < 0) H5_RAISE(MB_EIO, file->path, "", "cannot close the file");
    MB_TRY(mb_files_sync(file->aside));
    MB_TRY(mb_files_rename(file->aside, file->path));
    MB_FREE(file->aside);
done:
    return status;
}

mb_status mb_h5_close(mb_h5 **file)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    if (*file == NULL) return MB_OK;
    if ((*file)->aside != NULL) MB_TRY(publish(*file));
    close_datasets(*file);
    if (mb_h5_handle_drop(&(*file)->file) < 0) H5_RAISE(MB_EIO, (*file)->path, "", "cannot close the file");
done:
    mb_h5_destroy(file);
    return status;
}

void mb_h5_destroy(mb_h5 **file)
{
    MB_H5_ALONE;
    mb_h5 *f = *file;
    if (f == NULL) return;
    close_datasets(f);
    mb_h5_rows_destroy(f);
    mb_h5_handle_drop(&f->file);
    if (f->aside != NULL) unlink(f->aside);
    mb_free(f->aside);
    mb_free(f->path);
    MB_FREE(*file);
}

int64_t mb_h5_live_handles(void)
{
    return mb_h5_handle_live();
}

const char *mb_h5_path(const mb_h5 *file)
{
    return file->path;
}

/* ---- 2. writing ---- */

static mb_status write_whole(mb_h5 *file, const char *path, hid_t type, int dims, const int64_t *shape,
                             size_t chunk_bytes, const void *data)
{
    mb_status status = MB_OK;
    hid_t space = H5I_INVALID_HID, layout = H5I_INVALID_HID, dataset = H5I_INVALID_HID;
    size_t element = type >= 0 ? H5Tget_size(type) : 0, bytes = element;
    assert(file->aside != NULL && "the file is open for reading");
    if (type < 0) H5_RAISE(MB_EIO, file->path, path, "cannot make the type of dataset");
    for (int d = 0; d < dims; d++) bytes *= (size_t)shape[d];
    MB_TRY(mb_h5_handle_check_space(file, bytes));
    MB_TRY(mb_h5_handle_groups(file, path));
    space = mb_h5_handle_space(dims, shape, false);
    layout = mb_h5_handle_layout(dims, shape, element, chunk_bytes, false);
    if (space < 0 || layout < 0) H5_RAISE(MB_EIO, file->path, path, "cannot lay out dataset");
    dataset = mb_h5_handle_hold(H5Dcreate2(file->file, path, type, space, H5P_DEFAULT, layout, H5P_DEFAULT));
    if (dataset < 0) H5_RAISE(MB_EIO, file->path, path, "cannot create dataset");
    if (bytes > 0 && H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        H5_RAISE(MB_EIO, file->path, path, "cannot write dataset");
    if (mb_h5_handle_drop(&dataset) < 0) H5_RAISE(MB_EIO, file->path, path, "cannot finish dataset");
done:
    mb_h5_handle_drop(&dataset);
    mb_h5_handle_drop(&layout);
    mb_h5_handle_drop(&space);
    return status;
}

mb_status mb_h5_write(mb_h5 *file, const char *path, const mb_tensor *tensor)
{
    MB_H5_ALONE;
    hid_t type = mb_h5_handle_type(tensor->dtype);
    mb_status status =
        write_whole(file, path, type, tensor->dims, tensor->shape, MB_H5_CHUNK_BYTES, tensor->data);
    mb_h5_handle_drop(&type);
    return status;
}

mb_status mb_h5_write_f64(mb_h5 *file, const char *path, double value)
{
    MB_H5_ALONE;
    mb_tensor tensor = {.dtype = MB_F64, .dims = 0, .shape = {1, 1, 1, 1}, .data = &value};
    return mb_h5_write(file, path, &tensor);
}

mb_status mb_h5_write_strings(mb_h5 *file, const char *path, const char *const *texts, int64_t n)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    char *block = NULL;
    size_t longest = 1;
    hid_t type = H5I_INVALID_HID;
    for (int64_t i = 0; i < n; i++)
        if (strlen(texts[i]) > longest) longest = strlen(texts[i]);
    MB_NEW_ARRAY(block, (size_t)n * longest);
    for (int64_t i = 0; i < n; i++) memcpy(block + (size_t)i * longest, texts[i], strlen(texts[i]));
    type = mb_h5_handle_text_type(longest);
    MB_TRY(write_whole(file, path, type, 1, &n, MB_H5_CHUNK_BYTES, block));
done:
    mb_h5_handle_drop(&type);
    mb_free(block);
    return status;
}

mb_status mb_h5_create_rows(mb_h5 *file, const char *path, mb_dtype dtype, int row_dims,
                            const int64_t *row_shape, size_t chunk_bytes)
{
    MB_H5_ALONE;
    return mb_h5_rows_create(file, path, dtype, row_dims, row_shape, chunk_bytes);
}

mb_status mb_h5_append_rows(mb_h5 *file, const char *path, const void *data, int64_t rows)
{
    MB_H5_ALONE;
    return mb_h5_rows_append(file, path, data, rows);
}

/* ---- 3. reading ---- */

bool mb_h5_has(mb_h5 *file, const char *path)
{
    MB_H5_ALONE;
    bool there = mb_h5_handle_is_there(file, path);
    H5Eclear2(H5E_DEFAULT);
    return there;
}

mb_status mb_h5_shape(mb_h5 *file, const char *path, mb_dtype *out_dtype, int *out_dims,
                      int64_t out_shape[MB_TENSOR_MAX_DIMS])
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5_dataset *dataset = NULL;
    MB_TRY(mb_h5_dataset_open(file, path, &dataset));
    if (out_dtype != NULL) *out_dtype = dataset->dtype;
    *out_dims = dataset->dims;
    memcpy(out_shape, dataset->shape, sizeof dataset->shape);
done:
    return status;
}

mb_status mb_h5_read(mb_h5 *file, const char *path, mb_tensor *tensor)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5_dataset *dataset = NULL;
    char have[96], want[96];
    MB_TRY(mb_h5_dataset_open(file, path, &dataset));
    MB_TRY(mb_h5_dataset_check_dtype(file, dataset, tensor->dtype));
    mb_tensor stored = {.dtype = dataset->dtype, .dims = dataset->dims};
    memcpy(stored.shape, dataset->shape, sizeof stored.shape);
    if (!mb_tensor_is_shape(tensor, dataset->dims, dataset->shape))
        MB_RAISE(MB_ESHAPE, "%s: dataset %s is %s, not %s", file->path, path,
                 mb_tensor_describe(&stored, have, sizeof have),
                 mb_tensor_describe(tensor, want, sizeof want));
    MB_TRY(mb_h5_dataset_read(file, dataset, 0, -1, tensor->data));
done:
    return status;
}

mb_status mb_h5_read_new(mb_h5 *file, const char *path, mb_dtype dtype, int *out_dims,
                         int64_t out_shape[MB_TENSOR_MAX_DIMS], void **out_data)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5_dataset *dataset = NULL;
    char *data = NULL;
    size_t bytes = mb_dtype_bytes(dtype);
    MB_TRY(mb_h5_dataset_open(file, path, &dataset));
    MB_TRY(mb_h5_dataset_check_dtype(file, dataset, dtype));
    for (int d = 0; d < dataset->dims; d++) bytes *= (size_t)dataset->shape[d];
    MB_NEW_ARRAY(data, bytes);
    MB_TRY(mb_h5_dataset_read(file, dataset, 0, -1, data));
    *out_dims = dataset->dims;
    memcpy(out_shape, dataset->shape, sizeof dataset->shape);
    *out_data = data;
    data = NULL;
done:
    mb_free(data);
    return status;
}

mb_status mb_h5_read_rows(mb_h5 *file, const char *path, mb_dtype dtype, int64_t first, int64_t rows,
                          void *out)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5_dataset *dataset = NULL;
    MB_TRY(mb_h5_dataset_open(file, path, &dataset));
    MB_TRY(mb_h5_dataset_check_dtype(file, dataset, dtype));
    if (dataset->dims == 0 || first < 0 || rows < 0 || first > dataset->shape[0] ||
        rows > dataset->shape[0] - first)
        MB_RAISE(MB_ERANGE, "%s: dataset %s has %lld rows; %lld from row %lld were asked for", file->path,
                 path, (long long)dataset->shape[0], (long long)rows, (long long)first);
    MB_TRY(mb_h5_dataset_read(file, dataset, first, rows, out));
done:
    return status;
}

mb_status mb_h5_read_f64(mb_h5 *file, const char *path, double *out_value)
{
    MB_H5_ALONE;
    mb_tensor tensor = {.dtype = MB_F64, .dims = 0, .shape = {1, 1, 1, 1}, .data = out_value};
    return mb_h5_read(file, path, &tensor);
}

mb_status mb_h5_read_strings(mb_h5 *file, const char *path, char ***out_texts, int64_t *out_count)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    mb_h5_dataset *dataset = NULL;
    char *block = NULL, **texts = NULL;
    int64_t n = 0;
    MB_TRY(mb_h5_dataset_open(file, path, &dataset));
    if (!dataset->is_text || dataset->dims != 1)
        MB_RAISE(MB_EFORMAT, "%s: dataset %s is not a list of strings", file->path, path);
    MB_NEW_ARRAY(block, dataset->element_bytes * (size_t)dataset->shape[0]);
    MB_TRY(mb_h5_dataset_read(file, dataset, 0, -1, block));
    MB_NEW_ARRAY(texts, dataset->shape[0]);
    for (; n < dataset->shape[0]; n++) {
        const char *text = block + (size_t)n * dataset->element_bytes;
        texts[n] = mb_strndup(text, strnlen(text, dataset->element_bytes));
        if (texts[n] == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory for dataset %s", file->path, path);
    }
    *out_texts = texts;
    *out_count = n;
    texts = NULL;
done:
    mb_free(block);
    mb_h5_free_strings(&texts, n);
    return status;
}

void mb_h5_free_strings(char ***texts, int64_t count)
{
    if (*texts == NULL) return;
    for (int64_t i = 0; i < count; i++) mb_free((*texts)[i]);
    MB_FREE(*texts);
}

/* ---- 4. attributes ---- */

static mb_status set_attribute(mb_h5 *file, const char *object, const char *name, hid_t type,
                               const void *value)
{
    mb_status status = MB_OK;
    hid_t owner = H5I_INVALID_HID, space = H5I_INVALID_HID, attribute = H5I_INVALID_HID;
    assert(file->aside != NULL && "the file is open for reading");
    if (type < 0) H5_RAISE(MB_EIO, file->path, name, "cannot make the type of attribute");
    owner = mb_h5_handle_hold(H5Oopen(file->file, object, H5P_DEFAULT));
    if (owner < 0) H5_RAISE(MB_ENOTFOUND, file->path, object, "cannot open");
    if (H5Aexists(owner, name) > 0 && H5Adelete(owner, name) < 0)
        H5_RAISE(MB_EIO, file->path, name, "cannot replace attribute");
    space = mb_h5_handle_space(0, NULL, false);
    attribute = mb_h5_handle_hold(H5Acreate2(owner, name, type, space, H5P_DEFAULT, H5P_DEFAULT));
    if (attribute < 0 || H5Awrite(attribute, type, value) < 0)
        H5_RAISE(MB_EIO, file->path, name, "cannot write attribute");
done:
    mb_h5_handle_drop(&attribute);
    mb_h5_handle_drop(&space);
    mb_h5_handle_drop(&owner);
    return status;
}

mb_status mb_h5_set_text(mb_h5 *file, const char *object, const char *name, const char *text)
{
    MB_H5_ALONE;
    hid_t type = mb_h5_handle_text_type(strlen(text));
    mb_status status = set_attribute(file, object, name, type, text);
    mb_h5_handle_drop(&type);
    return status;
}

mb_status mb_h5_set_int(mb_h5 *file, const char *object, const char *name, int64_t value)
{
    MB_H5_ALONE;
    hid_t type = mb_h5_handle_type(MB_I64);
    mb_status status = set_attribute(file, object, name, type, &value);
    mb_h5_handle_drop(&type);
    return status;
}

mb_status mb_h5_set_real(mb_h5 *file, const char *object, const char *name, double value)
{
    MB_H5_ALONE;
    hid_t type = mb_h5_handle_type(MB_F64);
    mb_status status = set_attribute(file, object, name, type, &value);
    mb_h5_handle_drop(&type);
    return status;
}

/* Open a scalar attribute and get its type. */
static mb_status open_attribute(mb_h5 *file, const char *object, const char *name, hid_t *out_attribute,
                                hid_t *out_type)
{
    mb_status status = MB_OK;
    hid_t space = H5I_INVALID_HID;
    if (!mb_h5_has(file, object) || H5Aexists_by_name(file->file, object, name, H5P_DEFAULT) <= 0)
        MB_RAISE(MB_ENOTFOUND, "%s: %s has no attribute \"%s\"", file->path, object, name);
    *out_attribute = mb_h5_handle_hold(H5Aopen_by_name(file->file, object, name, H5P_DEFAULT, H5P_DEFAULT));
    if (*out_attribute < 0) H5_RAISE(MB_EFORMAT, file->path, name, "cannot open attribute");
    *out_type = mb_h5_handle_hold(H5Aget_type(*out_attribute));
    space = mb_h5_handle_hold(H5Aget_space(*out_attribute));
    if (*out_type < 0 || space < 0)
        H5_RAISE(MB_EFORMAT, file->path, name, "cannot read the type of attribute");
    if (H5Sget_simple_extent_npoints(space) != 1)
        MB_RAISE(MB_EFORMAT, "%s: attribute \"%s\" is not a single value", file->path, name);
done:
    mb_h5_handle_drop(&space);
    return status;
}

mb_status mb_h5_get_text(mb_h5 *file, const char *object, const char *name, mb_str *out_text)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    hid_t attribute = H5I_INVALID_HID, type = H5I_INVALID_HID;
    char *text = NULL;
    MB_TRY(open_attribute(file, object, name, &attribute, &type));
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) > 0)
        MB_RAISE(MB_EFORMAT, "%s: attribute \"%s\" is not a string of fixed length", file->path, name);
    MB_NEW_ARRAY(text, H5Tget_size(type) + 1);
    if (H5Aread(attribute, type, text) < 0) H5_RAISE(MB_EFORMAT, file->path, name, "cannot read attribute");
    mb_str_reset(out_text);
    MB_TRY(mb_str_add(out_text, text));
done:
    mb_free(text);
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&attribute);
    return status;
}

static mb_status get_number(mb_h5 *file, const char *object, const char *name, mb_dtype dtype,
                            void *out_value)
{
    mb_status status = MB_OK;
    hid_t attribute = H5I_INVALID_HID, type = H5I_INVALID_HID;
    MB_TRY(open_attribute(file, object, name, &attribute, &type));
    if (mb_h5_handle_find_dtype(type) != dtype)
        MB_RAISE(MB_EFORMAT, "%s: attribute \"%s\" is not of type %s", file->path, name,
                 mb_dtype_name(dtype));
    if (H5Aread(attribute, type, out_value) < 0)
        H5_RAISE(MB_EFORMAT, file->path, name, "cannot read attribute");
done:
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&attribute);
    return status;
}

mb_status mb_h5_get_int(mb_h5 *file, const char *object, const char *name, int64_t *out_value)
{
    MB_H5_ALONE;
    return get_number(file, object, name, MB_I64, out_value);
}

mb_status mb_h5_get_real(mb_h5 *file, const char *object, const char *name, double *out_value)
{
    MB_H5_ALONE;
    return get_number(file, object, name, MB_F64, out_value);
}

/* ---- 5. visit ---- */

typedef struct path_list {
    char **paths; /* each begins with 'g' or 'd', then the path */
    int64_t count;
} path_list;

static herr_t collect_path(hid_t root, const char *name, const H5O_info_t *info, void *context)
{
    path_list *list = context;
    (void)root;
    char **grown = mb_realloc(list->paths, (size_t)list->count + 1, sizeof *grown);
    if (grown == NULL) return -1;
    list->paths = grown;
    grown[list->count] =
        mb_str_format("%c/%s", info->type == H5O_TYPE_GROUP ? 'g' : 'd', strcmp(name, ".") == 0 ? "" : name);
    return grown[list->count++] != NULL ? 0 : -1;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a + 1, *(char *const *)b + 1);
}

mb_status mb_h5_visit(mb_h5 *file, mb_h5_visitor visit, void *context)
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    path_list list = {0};
    if (H5Ovisit(file->file, H5_INDEX_NAME, H5_ITER_INC, collect_path, &list) < 0)
        H5_RAISE(MB_EFORMAT, file->path, "", "cannot list what is in the file");
    qsort(list.paths, (size_t)list.count, sizeof *list.paths, compare_paths);
    for (int64_t i = 0; i < list.count; i++)
        MB_TRY(visit(context, file, list.paths[i] + 1, list.paths[i][0] == 'g'));
done:
    mb_h5_free_strings(&list.paths, list.count);
    return status;
}
