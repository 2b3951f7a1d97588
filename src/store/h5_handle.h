/* h5_handle: what the h5 files share: handles, errors, types, layouts, open datasets. The only file that
 * includes hdf5.h.
 *
 * Layer: store, only for h5*.c.  Uses: base, tensor, HDF5.
 *
 * Every handle goes through hold and drop, which count; a handle begins as H5I_INVALID_HID and is dropped
 * once at done:.
 */
#ifndef MB_H5_HANDLE_H
#define MB_H5_HANDLE_H

#define H5_USE_110_API
#include <hdf5.h>

#include "store/h5.h"

enum { MB_H5_OPEN_DATASETS = 24, MB_H5_PATH_BYTES = 1024 };
#define MB_H5_COMPACT_BYTES ((size_t)32 << 10)
#define MB_H5_CHUNK_BYTES   ((size_t)256 << 10)

/* A dataset open for reading. */
typedef struct mb_h5_dataset {
    char *path; /* NULL: free entry */
    hid_t id;
    bool is_text;
    size_t element_bytes;
    mb_dtype dtype; /* unless is_text */
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    uint64_t used;
} mb_h5_dataset;

/* A dataset being appended to. */
typedef struct mb_h5_rows {
    char *path;
    hid_t id; /* made with the first full chunk */
    mb_dtype dtype;
    int dims; /* with the leading one */
    int64_t shape[MB_TENSOR_MAX_DIMS];
    size_t row_bytes;
    int64_t chunk_rows, held; /* rows per chunk, rows in the buffer */
    size_t capacity;          /* of the buffer, bytes */
    char *buffer;
} mb_h5_rows;

struct mb_h5 {
    char *path;
    char *aside; /* NULL: reading */
    hid_t file;
    mb_h5_dataset datasets[MB_H5_OPEN_DATASETS];
    uint64_t uses;
    mb_h5_rows *rows;
    int64_t rows_count;
};

/* ---- one thread at a time (h5_handle.c) ---- */

/* HDF5 is built without threads on most systems. A function that calls it begins with MB_H5_ALONE: until it
 * returns other threads wait; functions may call each other. */
int mb_h5_handle_enter(void);
void mb_h5_handle_leave(const int *turn);
#define MB_H5_ALONE __attribute__((cleanup(mb_h5_handle_leave))) const int h5_turn = mb_h5_handle_enter()

/* ---- handles and errors (h5_handle.c) ---- */

hid_t mb_h5_handle_hold(hid_t id); /* count it, pass it through */
/* Close a handle of any kind and make it invalid; negative when HDF5 could not finish what hung on it. */
herr_t mb_h5_handle_drop(hid_t *id);
int64_t mb_h5_handle_live(void);
/* Record "<path>: <what> <object>: HDF5 says: <innermost reason>"; a full disk becomes MB_ENOSPACE. */
mb_status mb_h5_handle_fail(mb_status code, const char *path, const char *object, const char *what,
                            const char *function, int line);
#define H5_RAISE(code, path, object, what)                                                                   \
    do {                                                                                                     \
        status = mb_h5_handle_fail((code), (path), (object), (what), __func__, __LINE__);                    \
        goto done;                                                                                           \
    } while (0)

/* ---- types, spaces, layouts (h5_handle.c); invalid handles on failure ---- */

hid_t mb_h5_handle_type(mb_dtype dtype);
hid_t mb_h5_handle_text_type(size_t bytes);
mb_dtype mb_h5_handle_find_dtype(hid_t type); /* MB_DTYPE_COUNT: none of ours */
hid_t mb_h5_handle_space(int dims, const int64_t *shape, bool grows);
hid_t mb_h5_handle_layout(int dims, const int64_t *shape, size_t element_bytes, size_t chunk_bytes,
                          bool grows);
/* Select rows [first, first+n) of a dataset's space and make the memory space of the same shape. */
herr_t mb_h5_handle_select(hid_t space, int dims, const int64_t *shape, int64_t first, int64_t n,
                           hid_t *out_memory);
bool mb_h5_handle_is_there(mb_h5 *file, const char *path);
mb_status mb_h5_handle_groups(mb_h5 *file, const char *path); /* make those above path */
mb_status mb_h5_handle_check_space(mb_h5 *file, size_t bytes);

/* ---- growing rows (h5_rows.c) ---- */

mb_status mb_h5_rows_create(mb_h5 *file, const char *path, mb_dtype dtype, int row_dims,
                            const int64_t *row_shape, size_t chunk_bytes);
mb_status mb_h5_rows_append(mb_h5 *file, const char *path, const void *data, int64_t n);
mb_status mb_h5_rows_finish(mb_h5 *file); /* write what the buffers hold */
void mb_h5_rows_destroy(mb_h5 *file);     /* free the buffers */

/* ---- open datasets (h5_dataset.c) ---- */

mb_status mb_h5_dataset_open(mb_h5 *file, const char *path,
                             mb_h5_dataset **out_dataset); /* borrowed, until the next open */
mb_status mb_h5_dataset_check_dtype(const mb_h5 *file, const mb_h5_dataset *dataset, mb_dtype dtype);
/* Elements as stored: all of them (n < 0), or n rows from first. */
mb_status mb_h5_dataset_read(mb_h5 *file, const mb_h5_dataset *dataset, int64_t first, int64_t n, void *out);

#endif
