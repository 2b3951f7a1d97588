/* params: a model's tensors by HF name, which of them train, and the flat space the trained ones live in.
 *
 * Layer: model.  Uses: tensor, ops, store (safetensors), arch.
 *
 * Blocks reach weights only between mb_params_acquire(block) and release(block): no-ops while everything is
 * resident; the place for gathers and offload later. Trained tensors lie one after another in one flat f32
 * array, in the order of the list (which is a function of arch and adapter alone), so that optimiser,
 * checkpoints and reductions see one array. Frozen tensors have no gradient and no moments.
 */
#ifndef MB_PARAMS_H
#define MB_PARAMS_H

#include "model/arch.h"
#include "ops/ops.h"

#define MB_PARAMS_EMBEDDING (-1) /* block number of the embedding */
/* Blocks 0..L-1 are the decoder layers, block L the final norm and head. */

typedef struct mb_param {
    char *name; /* HF tensor name, "model.layers.0.mlp.gate.weight" (LoRA:
                   "model.layers.0.self_attn.q_proj.lora_A.weight") */
    int64_t block;
    mb_tensor value;  /* f32, dims 1 or 2 */
    mb_weight weight; /* of value when dims == 2 */
    bool trained;
    int64_t flat;       /* first element in the trained space, -1 frozen */
    mb_tensor gradient; /* same shape; data NULL unless trained and bound */
    bool from_delta;    /* read from a delta folder: differs from the base whether it trains or not */
} mb_param;

typedef struct mb_params mb_params;

/* Which tensors train: comma-separated patterns of HF names with * (e.g. "*.mlp.gate.weight"), "all" or
 * "none". LoRA tensors always train unless "none". */
mb_status mb_params_create(const mb_arch *arch, mb_ops *ops, mb_params **out_params);
void mb_params_destroy(mb_params **params);
/* Before seal: add a tensor (LoRA). shape [N, K] or [N]. */
mb_status mb_params_add(mb_params *params, const char *name, int64_t block, int dims, const int64_t *shape);
/* Decide what trains (mb_params_seal does it too; alone it serves plans, where nothing is allocated and ops
 * may be NULL). */
mb_status mb_params_choose(mb_params *params, const char *patterns);
/* Decide what trains, allocate everything. MB_EUSAGE when a pattern matches nothing (names the nearest). */
mb_status mb_params_seal(mb_params *params, const char *patterns);

int64_t mb_params_count(const mb_params *params);
mb_param *mb_params_at(mb_params *params, int64_t i);
mb_param *mb_params_find(mb_params *params, const char *name); /* NULL when absent */

mb_status mb_params_acquire(mb_params *params, int64_t block);
void mb_params_release(mb_params *params, int64_t block);

int64_t mb_params_trained_count(const mb_params *params);         /* elements */
float *mb_params_trained(mb_params *params);                      /* [that many]; NULL when 0 */
void mb_params_bind_gradient(mb_params *params, float *gradient); /* [that many], or NULL to unbind */
void mb_params_changed(mb_params *params); /* trained values changed: packed forms are stale */
/* Lowest block with a trained tensor (embedding -1), L+1 when nothing trains: the backward pass stops above
 * it. */
int64_t mb_params_lowest_trained(const mb_params *params);

/* Fill from a weight folder (all tensors of the arch must be there, with their shapes, finite:
 * MB_ENOTFOUND/MB_ESHAPE/MB_EDATA name folder and tensor; unknown extra tensors are warned about once,
 * rotary inv_freq buffers silently ignored). */
mb_status mb_params_read(mb_params *params, const char *folder);
/* Fill from the delta.safetensors of a delta folder: only tensors of the model, at least one. */
mb_status mb_params_read_delta(mb_params *params, const char *folder);
/* N(0, std) for matrices and embedding, ones for norms, zeros for biases; by tensor name, so independent of
 * order. */
mb_status mb_params_randomise(mb_params *params, uint64_t seed, double std);
/* Write HF weights (LoRA tensors left out) into folder: model.safetensors or shards. only_trained: just the
 * trained tensors (and those that came from a delta), as `stem` delta. */
mb_status mb_params_write(mb_params *params, const char *folder, const char *stem, mb_dtype dtype,
                          int64_t shard_bytes, bool only_trained);

#endif
