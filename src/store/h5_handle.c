/* h5_handle.c: handles, errors, types, spaces and layouts that the h5 files share.
 *
 * 1. one thread at a time   2. handles and errors   3. types   4. groups, spaces and layouts
 */
#include "store/h5_handle.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"

/* ---- 1. one thread at a time ---- */

static pthread_mutex_t h5_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

int mb_h5_handle_enter(void)
{
    pthread_mutex_lock(&h5_lock);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* a thread's own; mb_h5_handle_fail says errors */
    return 0;
}

void mb_h5_handle_leave(const int *turn)
{
    (void)turn;
    pthread_mutex_unlock(&h5_lock);
}

/* ---- 2. handles and errors ---- */

static atomic_llong live_handles;

int64_t mb_h5_handle_live(void)
{
    return atomic_load(&live_handles);
}

hid_t mb_h5_handle_hold(hid_t id)
{
    if (id >= 0) atomic_fetch_add(&live_handles, 1);
    return id;
}

/* Close a handle of any kind; negative when HDF5 could not finish what hung on it. */
herr_t mb_h5_handle_drop(hid_t *id)
{
    herr_t result = 0;
    if (*id >= 0) {
        result = H5Idec_ref(*id) < 0 ? -1 : 0;
        atomic_fetch_sub(&live_handles, 1);
    }
    *id = H5I_INVALID_HID;
    return result;
}

/* Keep the innermost description: what really went wrong. */
static herr_t keep_first(unsigned n, const H5E_error2_t *error, void *context)
{
    char *reason = context;
    (void)n;
    if (reason[0] == 0 && error->desc != NULL && error->desc[0] != 0)
        snprintf(reason, 384, "%s", error->desc);
    return 0;
}

mb_status mb_h5_handle_fail(mb_status code, const char *path, const char *object, const char *what,
                            const char *function, int line)
{
    char reason[384] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, reason);
    H5Eclear2(H5E_DEFAULT);
    if (strstr(reason, strerror(ENOSPC)) != NULL) code = MB_ENOSPACE;
    return mb_status_fail(code, function, __FILE__, line, "%s: %s%s%s%s%s", path, what, object[0] ? " " : "",
                          object, reason[0] ? ": HDF5 says: " : "", reason);
}

/* ---- 3. types ---- */

/* A float of 16 bits with that many bits of mantissa. */
static hid_t make_half(size_t mantissa, size_t bias)
{
    hid_t type = mb_h5_handle_hold(H5Tcopy(H5T_IEEE_F32LE));
    if (type < 0) return type;
    if (H5Tset_fields(type, 15, mantissa, 15 - mantissa, 0, mantissa) < 0 || H5Tset_size(type, 2) < 0 ||
        H5Tset_ebias(type, bias) < 0)
        mb_h5_handle_drop(&type);
    return type;
}

static hid_t make_bool(void)
{
    const signed char no = 0, yes = 1;
    hid_t type = mb_h5_handle_hold(H5Tenum_create(H5T_STD_I8LE));
    if (type < 0) return type;
    if (H5Tenum_insert(type, "FALSE", &no) < 0 || H5Tenum_insert(type, "TRUE", &yes) < 0)
        mb_h5_handle_drop(&type);
    return type;
}

hid_t mb_h5_handle_type(mb_dtype dtype)
{
    switch (dtype) {
    case MB_F32:
        return mb_h5_handle_hold(H5Tcopy(H5T_IEEE_F32LE));
    case MB_F64:
        return mb_h5_handle_hold(H5Tcopy(H5T_IEEE_F64LE));
    case MB_BF16:
        return make_half(7, 127);
    case MB_F16:
        return make_half(10, 15);
    case MB_I8:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_I8LE));
    case MB_U8:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_U8LE));
    case MB_U16:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_U16LE));
    case MB_I32:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_I32LE));
    case MB_U32:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_U32LE));
    case MB_I64:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_I64LE));
    case MB_U64:
        return mb_h5_handle_hold(H5Tcopy(H5T_STD_U64LE));
    case MB_BOOL:
        return make_bool();
    default:
        return H5I_INVALID_HID;
    }
}

hid_t mb_h5_handle_text_type(size_t bytes)
{
    hid_t type = mb_h5_handle_hold(H5Tcopy(H5T_C_S1));
    if (type < 0) return type;
    if (H5Tset_size(type, bytes > 0 ? bytes : 1) < 0 || H5Tset_strpad(type, H5T_STR_NULLPAD) < 0 ||
        H5Tset_cset(type, H5T_CSET_UTF8) < 0)
        mb_h5_handle_drop(&type);
    return type;
}

/* Which of ours a file's type is; MB_DTYPE_COUNT when none. */
mb_dtype mb_h5_handle_find_dtype(hid_t type)
{
    for (int d = 0; d < MB_DTYPE_COUNT; d++) {
        hid_t ours = mb_h5_handle_type((mb_dtype)d);
        bool equal = ours >= 0 && H5Tequal(type, ours) > 0;
        mb_h5_handle_drop(&ours);
        if (equal) return (mb_dtype)d;
    }
    return MB_DTYPE_COUNT;
}

/* ---- 4. groups, spaces and layouts ---- */

hid_t mb_h5_handle_space(int dims, const int64_t *shape, bool grows)
{
    hsize_t now[MB_TENSOR_MAX_DIMS] = {0}, most[MB_TENSOR_MAX_DIMS] = {0};
    if (dims == 0) return mb_h5_handle_hold(H5Screate(H5S_SCALAR));
    for (int d = 0; d < dims; d++) now[d] = most[d] = (hsize_t)shape[d];
    if (grows) most[0] = H5S_UNLIMITED;
    return mb_h5_handle_hold(H5Screate_simple(dims, now, most));
}

/* Is there something under this path? */
bool mb_h5_handle_is_there(mb_h5 *file, const char *path)
{
    char part[MB_H5_PATH_BYTES];
    if (strcmp(path, "/") == 0) return true;
    for (const char *end = path; *end != 0;) {
        const char *next = strchr(end + 1, '/');
        size_t n = next != NULL ? (size_t)(next - path) : strlen(path);
        if (n >= sizeof part) return false;
        memcpy(part, path, n);
        part[n] = 0;
        if (H5Lexists(file->file, part, H5P_DEFAULT) <= 0) return false;
        end = path + n;
    }
    return path[0] != 0;
}

/* Make the groups above `path` (HDF5's own way would store their times). */
mb_status mb_h5_handle_groups(mb_h5 *file, const char *path)
{
    mb_status status = MB_OK;
    hid_t creation = H5I_INVALID_HID, group = H5I_INVALID_HID;
    char part[MB_H5_PATH_BYTES];
    assert(path[0] == '/');
    if (strlen(path) >= sizeof part)
        MB_RAISE(MB_ERANGE, "%s: the name of a dataset is too long: %.80s...", file->path, path);
    for (const char *next = strchr(path + 1, '/'); next != NULL; next = strchr(next + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(next - path), path);
        if (H5Lexists(file->file, part, H5P_DEFAULT) > 0) continue;
        if (creation < 0) creation = mb_h5_handle_hold(H5Pcreate(H5P_GROUP_CREATE));
        if (creation < 0 || H5Pset_obj_track_times(creation, 0) < 0)
            H5_RAISE(MB_EIO, file->path, part, "cannot prepare group");
        group = mb_h5_handle_hold(H5Gcreate2(file->file, part, H5P_DEFAULT, creation, H5P_DEFAULT));
        if (group < 0) H5_RAISE(MB_EIO, file->path, part, "cannot make group");
        mb_h5_handle_drop(&group);
    }
done:
    mb_h5_handle_drop(&creation);
    return status;
}

/* Chunks of about `bytes`: whole rows as long as they fit, then parts of rows. */
static void plan_chunk(int dims, const int64_t *shape, size_t element_bytes, size_t bytes,
                       hsize_t out_chunk[MB_TENSOR_MAX_DIMS])
{
    size_t below = element_bytes; /* bytes of one step along dimension d */
    for (int d = dims - 1; d >= 0; d--) {
        int64_t fit = below < bytes ? (int64_t)(bytes / below) : 1;
        int64_t most = shape[d] > 0 ? shape[d] : 1;
        out_chunk[d] = (hsize_t)(fit < most ? fit : most);
        below *= (size_t)most;
    }
}

/* How a dataset of this shape is stored. */
hid_t mb_h5_handle_layout(int dims, const int64_t *shape, size_t element_bytes, size_t chunk_bytes,
                          bool grows)
{
    hsize_t chunk[MB_TENSOR_MAX_DIMS] = {0};
    size_t bytes = element_bytes;
    for (int d = 0; d < dims; d++) bytes *= (size_t)shape[d];
    hid_t layout = mb_h5_handle_hold(H5Pcreate(H5P_DATASET_CREATE));
    if (layout < 0) return layout;
    bool good = H5Pset_obj_track_times(layout, 0) >= 0;
    if (!grows && bytes > 0 && bytes <= MB_H5_COMPACT_BYTES) {
        good = good && H5Pset_layout(layout, H5D_COMPACT) >= 0;
    } else if (bytes > 0) {
        plan_chunk(dims, shape, element_bytes, chunk_bytes, chunk);
        good = good && H5Pset_chunk(layout, dims, chunk) >= 0 && H5Pset_fletcher32(layout) >= 0;
    }
    if (!good) mb_h5_handle_drop(&layout);
    return layout;
}

/* Select rows [first, first+n) of a dataset's space and make the memory space of the same shape. */
herr_t mb_h5_handle_select(hid_t space, int dims, const int64_t *shape, int64_t first, int64_t n,
                           hid_t *out_memory)
{
    hsize_t start[MB_TENSOR_MAX_DIMS] = {0}, count[MB_TENSOR_MAX_DIMS] = {0};
    for (int d = 0; d < dims; d++) count[d] = (hsize_t)shape[d];
    start[0] = (hsize_t)first;
    count[0] = (hsize_t)n;
    *out_memory = mb_h5_handle_hold(H5Screate_simple(dims, count, NULL));
    return *out_memory < 0 ? -1 : H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
}

mb_status mb_h5_handle_check_space(mb_h5 *file, size_t bytes)
{
    return bytes <= MB_H5_COMPACT_BYTES ? MB_OK
                                        : mb_files_check_space(file->aside, (int64_t)bytes, file->path);
}
