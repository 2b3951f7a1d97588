/* h5_content.c: the content hash of a file: what is in it, not how it is laid out.
 *
 * Objects in the order of their paths; for each its path, then a dataset's type, shape and bytes, then the
 * attributes in the order of their names. Everything under /provenance is left out. Bytes are hashed as
 * stored (little-endian on all machines).
 */
#include <string.h>

#include "base/hash.h"
#include "store/h5_handle.h"

enum { PIECE_BYTES = 4 << 20 };

typedef struct content {
    mb_hash *hash;
    mb_h5 *file;
    const char *object;
    mb_status status; /* of the attribute that stopped the iteration */
} content;

static mb_status add_dataset(content *context, const char *path)
{
    mb_status status = MB_OK;
    mb_h5_dataset *dataset = NULL;
    char *piece = NULL;
    MB_TRY(mb_h5_dataset_open(context->file, path, &dataset));
    mb_hash_add_text(context->hash, dataset->is_text ? "text" : mb_dtype_name(dataset->dtype));
    mb_hash_add_int(context->hash, (int64_t)dataset->element_bytes);
    mb_hash_add_int(context->hash, dataset->dims);
    size_t row_bytes = dataset->element_bytes;
    for (int d = 0; d < dataset->dims; d++) {
        mb_hash_add_int(context->hash, dataset->shape[d]);
        if (d > 0) row_bytes *= (size_t)dataset->shape[d];
    }
    int64_t rows = dataset->dims > 0 ? dataset->shape[0] : 1;
    int64_t step = row_bytes < PIECE_BYTES && row_bytes > 0 ? (int64_t)(PIECE_BYTES / row_bytes) : 1;
    if (rows == 0 || row_bytes == 0) goto done;
    MB_NEW_ARRAY(piece, (size_t)(step < rows ? step : rows) * row_bytes);
    for (int64_t first = 0; first < rows; first += step) {
        int64_t n = rows - first < step ? rows - first : step;
        MB_TRY(mb_h5_dataset_read(context->file, dataset, first, dataset->dims > 0 ? n : -1, piece));
        mb_hash_add(context->hash, piece, (size_t)n * row_bytes);
    }
done:
    mb_free(piece);
    return status;
}

/* One attribute: name, type, value. */
static mb_status add_attribute(content *context, hid_t owner, const char *name)
{
    mb_status status = MB_OK;
    char *value = NULL;
    hid_t attribute = mb_h5_handle_hold(H5Aopen(owner, name, H5P_DEFAULT)), type = H5I_INVALID_HID;
    if (attribute < 0) H5_RAISE(MB_EFORMAT, context->file->path, name, "cannot open attribute");
    type = mb_h5_handle_hold(H5Aget_type(attribute));
    if (type < 0) H5_RAISE(MB_EFORMAT, context->file->path, name, "cannot read the type of attribute");
    if (H5Tdetect_class(type, H5T_VLEN) > 0 || H5Tis_variable_str(type) > 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: attribute \"%s\" of %s has variable length, so it cannot be hashed",
                 context->file->path, name, context->object);
    H5A_info_t info;
    if (H5Aget_info(attribute, &info) < 0)
        H5_RAISE(MB_EFORMAT, context->file->path, name, "cannot read attribute");
    MB_NEW_ARRAY(value, info.data_size);
    if (H5Aread(attribute, type, value) < 0)
        H5_RAISE(MB_EFORMAT, context->file->path, name, "cannot read attribute");
    mb_hash_add_text(context->hash, name);
    mb_hash_add_int(context->hash, H5Tget_class(type));
    mb_hash_add_int(context->hash, (int64_t)info.data_size);
    mb_hash_add(context->hash, value, info.data_size);
done:
    mb_free(value);
    mb_h5_handle_drop(&type);
    mb_h5_handle_drop(&attribute);
    return status;
}

static herr_t visit_attribute(hid_t owner, const char *name, const H5A_info_t *info, void *context)
{
    (void)info;
    content *c = context;
    c->status = add_attribute(c, owner, name);
    return c->status == MB_OK ? 0 : -1;
}

static mb_status visit_object(void *opaque, mb_h5 *file, const char *path, bool is_group)
{
    mb_status status = MB_OK;
    content *context = opaque;
    hid_t owner = H5I_INVALID_HID;
    if (strcmp(path, "/provenance") == 0 || mb_str_is_prefix(path, "/provenance/")) return MB_OK;
    context->object = path;
    mb_hash_add_text(context->hash, path);
    if (!is_group) MB_TRY(add_dataset(context, path));
    owner = mb_h5_handle_hold(H5Oopen(file->file, path, H5P_DEFAULT));
    if (owner < 0) H5_RAISE(MB_EFORMAT, file->path, path, "cannot open");
    context->status = MB_OK;
    if (H5Aiterate2(owner, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_attribute, context) < 0 &&
        context->status == MB_OK)
        H5_RAISE(MB_EFORMAT, file->path, path, "cannot list the attributes of");
    H5Eclear2(H5E_DEFAULT);
    MB_TRY(context->status);
done:
    mb_h5_handle_drop(&owner);
    return status;
}

mb_status mb_h5_content_hash(mb_h5 *file, char out_text[MB_HASH_TEXT])
{
    MB_H5_ALONE;
    mb_status status = MB_OK;
    content context = {.file = file};
    MB_TRY(mb_hash_create(&context.hash));
    MB_TRY(mb_h5_visit(file, visit_object, &context));
    mb_hash_get(context.hash, out_text);
done:
    mb_hash_destroy(&context.hash);
    return status;
}
