/* params_source: where a parameter lies in a weight folder, whichever way transformers saved it, and its way
 * from there into memory.
 *
 * Layer: model.  Uses: params, store (safetensors).
 *
 * Names read: those of 4.x (and of 5.x's save_pretrained, which writes the same), 5.x's own (the experts of
 * a layer fused into experts.gate_up_proj [E, 2 F, D] and experts.down_proj [E, D, F]; Mixtral's
 * block_sparse_moe called mlp), and both without the leading "model." (a model saved without its head).
 */
#ifndef MB_PARAMS_SOURCE_H
#define MB_PARAMS_SOURCE_H

#include "model/params.h"
#include "store/safetensors.h"

typedef struct mb_params_source {
    char name[200];   /* of the file's tensor */
    const void *data; /* where the parameter begins in the map (may be unaligned) */
    mb_dtype dtype;
    int64_t count;
    int64_t first; /* of a piece: its first element in the parameter, for messages */
} mb_params_source;

/* MB_ENOTFOUND, MB_ESHAPE: name folder and tensor. */
/* Is a tensor that is nobody's slice in the file, under any of its names? */
bool mb_params_source_has(const mb_safetensors *file, const mb_param *param);
mb_status mb_params_source_find(const mb_safetensors *file, const char *folder, const mb_param *param,
                                mb_params_source *out_source);
/* The file's tensor called as the parameter, under any of its names, with `suffix` behind. */
bool mb_params_source_name(const mb_safetensors *file, const mb_param *param, const char *suffix,
                           char *out_name, size_t bytes);
/* Is this tensor of a file some parameter's? */
bool mb_params_source_is_known(mb_params *params, const char *name);
/* Into the parameter: copied where the file's dtype is the one it is kept in, else converted once. MB_EDATA
 * when a value is NaN or Inf (names folder, tensor, element). */
mb_status mb_params_source_load(const mb_params_source *source, const char *folder, mb_param *param);
/* Its values as f32 [count]; errors as above. */
mb_status mb_params_source_read(const mb_params_source *source, const char *folder, float *out);

#endif
