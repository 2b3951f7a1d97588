/* h5: everything we ask of HDF5, with our errors. Only h5_handle.h includes hdf5.h, only h5*.c include that.
 *
 * Layer: store.  Uses: base, tensor, HDF5.
 *
 * Files: bounds V110..V110, object times off, semi-strict close, little-endian types in memory and file.
 * Every byte is under a checksum: small datasets lie in their (checksummed) object header, all others in
 * chunks with fletcher32; strings have fixed length. Writers write beside the final name and rename in
 * mb_h5_close; a writer that is destroyed without close leaves nothing under the final name. The handles this
 * module holds are counted (mb_h5_live_handles), tests end at zero. Threads take turns: a call
 * waits while another thread is in this module (HDF5 is built without threads on most systems).
 */
#ifndef MB_H5_H
#define MB_H5_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"
#include "tensor/tensor.h"

typedef struct mb_h5 mb_h5;

/* For writing, beside; refused (MB_ENOSPACE) when the disk is nearly full. */
mb_status mb_h5_create(const char *path, mb_h5 **out_file);
/* For reading; MB_ENOTFOUND, MB_EFORMAT. */
mb_status mb_h5_open(const char *path, mb_h5 **out_file);
/* Close; a writer flushes, fsyncs and renames to the final name. On failure nothing is under the final name.
 */
mb_status mb_h5_close(mb_h5 **file);
/* Drop without publishing (a reader: just close). NULL is fine. Use at done: labels. */
void mb_h5_destroy(mb_h5 **file);

/* Paths begin with "/" and may hold groups ("/grad/model.layers.0.x"): missing groups are made when writing.
 * At most 32 KiB: compact; above: chunks of 256 KiB. Shapes: row-major, dims 0..4 (0: scalar). A path is
 * written once. MB_ENOSPACE before the disk is full. */
mb_status mb_h5_write(mb_h5 *file, const char *path, const mb_tensor *tensor);
mb_status mb_h5_write_f64(mb_h5 *file, const char *path, double value);
mb_status mb_h5_write_strings(mb_h5 *file, const char *path, const char *const *texts,
                              int64_t n); /* UTF-8, padded to the longest */

/* A dataset that grows by rows: create with row shape (dims-1 values, all > 0), append, read ranges of rows.
 * chunk_bytes e.g. 256 KiB. Appended rows are gathered to whole chunks in memory, so any piece size is fine
 * and gives the same file, and they can be read only after close. A dataset that never fills a chunk is
 * stored like one of mb_h5_write. */
mb_status mb_h5_create_rows(mb_h5 *file, const char *path, mb_dtype dtype, int row_dims,
                            const int64_t *row_shape, size_t chunk_bytes);
mb_status mb_h5_append_rows(mb_h5 *file, const char *path, const void *data, int64_t rows);

bool mb_h5_has(mb_h5 *file, const char *path);
/* Shape and dtype of a dataset; MB_ENOTFOUND. */
mb_status mb_h5_shape(mb_h5 *file, const char *path, mb_dtype *out_dtype, int *out_dims,
                      int64_t out_shape[MB_TENSOR_MAX_DIMS]);
/* Whole dataset into the caller's tensor: dtype and shape must be equal (MB_ESHAPE). A checksum error is
 * MB_EFORMAT naming the dataset. */
mb_status mb_h5_read(mb_h5 *file, const char *path, mb_tensor *tensor);
/* Whole dataset into a new block (mb_free); shape as above. Size is checked against the file's before
 * allocation. */
mb_status mb_h5_read_new(mb_h5 *file, const char *path, mb_dtype dtype, int *out_dims,
                         int64_t out_shape[MB_TENSOR_MAX_DIMS], void **out_data);
mb_status mb_h5_read_rows(mb_h5 *file, const char *path, mb_dtype dtype, int64_t first, int64_t rows,
                          void *out);
mb_status mb_h5_read_f64(mb_h5 *file, const char *path, double *out_value);
mb_status mb_h5_read_strings(mb_h5 *file, const char *path, char ***out_texts,
                             int64_t *out_count); /* free with mb_h5_free_strings */
void mb_h5_free_strings(char ***texts, int64_t count);

/* Attributes of the root ("/") or of an object. */
mb_status mb_h5_set_text(mb_h5 *file, const char *object, const char *name, const char *text);
mb_status mb_h5_set_int(mb_h5 *file, const char *object, const char *name, int64_t value);
mb_status mb_h5_set_real(mb_h5 *file, const char *object, const char *name, double value);
mb_status mb_h5_get_text(mb_h5 *file, const char *object, const char *name, mb_str *out_text);
mb_status mb_h5_get_int(mb_h5 *file, const char *object, const char *name, int64_t *out_value);
mb_status mb_h5_get_real(mb_h5 *file, const char *object, const char *name, double *out_value);

/* Every object in name order: path, is_group. Stop by returning anything but MB_OK from visit. */
typedef mb_status (*mb_h5_visitor)(void *context, mb_h5 *file, const char *path, bool is_group);
mb_status mb_h5_visit(mb_h5 *file, mb_h5_visitor visit, void *context);

/* Content hash of an open file: datasets (path, dtype, shape, bytes) and attributes in name order; chunk
 * layout and everything under /provenance left out. */
mb_status mb_h5_content_hash(mb_h5 *file, char out_text[33]);

int64_t mb_h5_live_handles(void);
const char *mb_h5_path(const mb_h5 *file); /* final name */

#endif
