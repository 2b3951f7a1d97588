/* safetensors: HF weight files, one file or model.safetensors.index.json with shards, in and out.
 *
 * Layer: store.  Uses: base, tensor. Source: huggingface/safetensors format: u64 little-endian header
 * length, JSON header {name: {dtype, shape, data_offsets}}, data.
 *
 * Reading maps the files, or their node-local copies (mb_files_staged); nothing in a header is believed
 * before it is checked (length <= file, offsets in range, no overlap, no holes, sizes match shape and dtype,
 * no duplicate names). / */
#ifndef MB_SAFETENSORS_H
#define MB_SAFETENSORS_H

#include <stdbool.h>

#include "base/json.h"
#include "tensor/tensor.h"

typedef struct mb_safetensors mb_safetensors;

/* path: a .safetensors file, an index .json, or a folder holding model.safetensors(.index.json) (or
 * adapter_model.safetensors). A folder with only .bin/.pt weights is MB_EUNSUPPORTED with the command that
 * converts them. */
mb_status mb_safetensors_open(const char *path, mb_safetensors **out_file);
void mb_safetensors_close(mb_safetensors **file);
int64_t mb_safetensors_count(const mb_safetensors *file);
const char *mb_safetensors_name(const mb_safetensors *file, int64_t i); /* in byte order of names */
/* View into the map (read-only, may be unaligned: copy or convert out of it). dims may be up to 4.
 * MB_ENOTFOUND names tensor and folder. */
mb_status mb_safetensors_view(const mb_safetensors *file, const char *name, mb_tensor *out_tensor);
bool mb_safetensors_has(const mb_safetensors *file, const char *name);
/* Checked read as f32 into out[n] (n must equal the element count, shape must equal when opt_shape given):
 * MB_ESHAPE, MB_EDATA when a value is NaN or Inf (names tensor and element). */
mb_status mb_safetensors_read_f32(const mb_safetensors *file, const char *name, int dims,
                                  const int64_t *shape, float *out);
const json_t *mb_safetensors_metadata(const mb_safetensors *file); /* "__metadata__" or NULL */

/* Writing: declare all tensors (name order is kept as given), then write them in that order; shards of at
 * most shard_bytes (0: one file), index written when more than one. metadata {"format": "pt"}. Everything is
 * written beside and renamed by close. `stem`: "model" or "adapter_model". Byte-equal for equal input. */
typedef struct mb_safetensors_writer mb_safetensors_writer;
mb_status mb_safetensors_writer_create(const char *folder, const char *stem, int64_t shard_bytes,
                                       mb_safetensors_writer **out_writer);
mb_status mb_safetensors_writer_declare(mb_safetensors_writer *writer, const char *name, mb_dtype dtype,
                                        int dims, const int64_t *shape);
mb_status mb_safetensors_writer_write(mb_safetensors_writer *writer, const char *name, const void *bytes,
                                      size_t n); /* already in the declared dtype */
mb_status mb_safetensors_writer_write_f32(mb_safetensors_writer *writer, const char *name,
                                          const float *values,
                                          int64_t n); /* converted to the declared dtype */
mb_status mb_safetensors_writer_close(
    mb_safetensors_writer *
        *writer); /* MB_EFORMAT when a declared tensor was not written (our mistake: assert too) */
void mb_safetensors_writer_destroy(mb_safetensors_writer **writer);

#endif
