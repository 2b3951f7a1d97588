/* packed_io: 4-bit matrices of a weight folder as compressed-tensors packs them, in and out.
 *
 * Layer: model.  Uses: params, params_source, store (safetensors).
 * Source: compressed-tensors, PackedQuantizationCompressor. For a module m of [N, K]: m.weight_packed i32
 * [N, ceil(K / 8)], eight columns in a word, the first in its lowest bits, as q + 8; m.weight_scale [N,
 * groups] in a float dtype; m.weight_shape i64 [2] = N, K. On little-endian machines a row's words are the
 * bytes of mb_weight's row, filled up to whole words.
 */
#ifndef MB_PACKED_IO_H
#define MB_PACKED_IO_H

#include "model/params.h"
#include "store/safetensors.h"

/* Before seal: which parameters of the decoder layers the folder holds in 4 bits, and in which groups.
 * MB_EUSAGE when there is none. */
mb_status mb_packed_io_mark(mb_params *params, const char *folder);
/* Is this tensor of a file a part of some marked parameter? */
bool mb_packed_io_is_known(mb_params *params, const char *name);
/* Into a marked parameter, bit for bit. MB_ENOTFOUND, MB_ESHAPE, MB_EDATA (a scale is NaN or Inf) name folder
 * and tensor. */
mb_status mb_packed_io_load(const mb_safetensors *file, const char *folder, mb_param *param);

/* As mb_weight keeps it, in the host's memory. */
typedef struct mb_packed_io_matrix {
    int64_t n, k, group;
    uint8_t *packed; /* [n, (k + 1) / 2] */
    float *scale;    /* [n, k / group] */
} mb_packed_io_matrix;
mb_status mb_packed_io_create(int64_t n, int64_t k, int64_t group, mb_packed_io_matrix *out_matrix);
void mb_packed_io_reset(mb_packed_io_matrix *matrix);
/* What it means: f32 [n, k]. */
void mb_packed_io_values(const mb_packed_io_matrix *matrix, float *out);
/* A quantised parameter of 4 bits as one (new arrays). */
mb_status mb_packed_io_get(const mb_param *param, mb_packed_io_matrix *out_matrix);
/* The three tensors of `<name>` ("....weight"); scales in `dtype`. Write in the order of the declarations. */
mb_status mb_packed_io_declare(mb_safetensors_writer *writer, const char *name, int64_t n, int64_t k,
                               int64_t group, mb_dtype dtype);
mb_status mb_packed_io_write(mb_safetensors_writer *writer, const char *name,
                             const mb_packed_io_matrix *matrix);
/* The same from a file that holds a parameter under its own name. */
mb_status mb_packed_io_read(const mb_safetensors *file, const char *folder, const mb_param *param,
                            mb_packed_io_matrix *out_matrix);

#endif
