/* params: a model's tensors by HF name, which of them train, and the flat space the trained ones live in.
 *
 * Layer: model.  Uses: tensor, ops, store (safetensors), arch.
 *
 * Blocks reach weights only between mb_params_acquire(block) and release(block): no-ops while everything is
 * resident; with mb_params_spread they bring a block's tensors in from the ranks that keep them. Trained
 * tensors lie one after another in one flat f32 array, in the order of the list (which is a function of arch
 * and adapter alone), so that optimiser, checkpoints and reductions see one array. Frozen tensors have no
 * gradient and no moments. Carried tensors (the routers' selection biases) have none either, but change by
 * rules of their own: they lie one after another in a space of their own, in the order of the list, whole and
 * f32 on every rank whatever is said of the others, no pattern makes them train, and they go into full saves
 * (as f32), deltas and states.
 *
 * Values and gradients lie in the backend's memory (ops.h): mb_params_trained, mb_params_owned, a
 * parameter's value.data and gradient.data, and what is bound as gradient are pointers the host cannot
 * follow where that is a device's. Host values: mb_params_get_f32 and set_f32 of one parameter,
 * mb_params_download and upload of a part of the trained space.
 */
#ifndef MB_PARAMS_H
#define MB_PARAMS_H

#include "base/str.h"
#include "comm/comm.h"
#include "model/arch.h"
#include "ops/ops.h"

/* Of a router: "model.layers.<i>.mlp.gate.e_score_correction_bias", as DeepSeek-V3 calls it. */
#define MB_PARAMS_ROUTER_BIAS "e_score_correction_bias"
#define MB_PARAMS_EMBEDDING   (-1) /* block number of the embedding */
/* Blocks 0..L-1 are the decoder layers, block L the final norm and head. */

typedef struct mb_param {
    char *name; /* HF tensor name, "model.layers.0.mlp.gate.weight" (LoRA:
                   "model.layers.0.self_attn.q_proj.lora_A.weight") */
    int64_t block;
    mb_tensor value;  /* dims 1 or 2; f32, or what mb_params_store said: bf16, or quantised (i8, u8) */
    mb_weight weight; /* of value when dims == 2 */
    void *scale;      /* of a quantised value: where its scales lie */
    bool trained;
    int64_t flat;        /* first element in the trained space, -1 frozen */
    mb_tensor gradient;  /* same shape; data NULL unless trained and bound */
    size_t at, scale_at; /* of a frozen one: where it lies in its block's memory, and its scales after it */
    size_t bytes;        /* it takes there, scales included; of a trained one: of its values */
    struct mb_params_shard
        *shard;        /* it is cut over the ranks: data is NULL but between acquire and release */
    bool is_elsewhere; /* another rank of the node fills it: setting it does nothing */
    bool from_delta;   /* read from a delta folder: differs from the base whether it trains or not */
    bool is_carried;   /* changes without a gradient: f32, whole on every rank, saved with what trains */
    bool was_read;     /* of a carried one: a folder held it */
    bool is_packed;    /* its folder holds it in 4 bits (packed_io.h), and so it is kept */
    int bits;          /* it is kept in: 8, 4; 0: not quantised */
    int64_t group;     /* of a quantised one: columns that share a scale */
    float lora_scale;  /* of a lora_B: what its product is multiplied by */
    struct mb_staging *staging; /* the way to values on a device; NULL: they lie in the host's memory */
} mb_param;

typedef struct mb_params mb_params;

/* Which tensors train: "none", or a list of patterns of HF names with * (e.g. "*.mlp.gate.weight") and words
 * (all, router, experts, attention); ! before an item freezes, experts=0+3 leaves only those experts
 * (params_choose.h). LoRA tensors train unless "none" or frozen so. */
mb_status mb_params_create(const mb_arch *arch, mb_ops *ops, mb_params **out_params);
/* With no tensors yet, for what belongs to no architecture (a router between models). */
mb_status mb_params_create_empty(int64_t layers, mb_ops *ops, mb_params **out_params);
void mb_params_destroy(mb_params **params);
/* Before seal: add a tensor (LoRA). shape [N, K] or [N]. */
mb_status mb_params_add(mb_params *params, const char *name, int64_t block, int dims, const int64_t *shape);
/* Decide what trains (mb_params_seal does it too; alone it serves plans, where nothing is allocated and ops
 * may be NULL). */
mb_status mb_params_choose(mb_params *params, const char *patterns);
/* How frozen matrices are kept, said before seal: dtype f32 or bf16 (norms, biases and routers stay f32),
 * and bits 8 or 4 to quantise those of the decoder layers (group columns share a scale); 0: not. */
void mb_params_store(mb_params *params, mb_dtype dtype, int bits, int64_t group);
/* Where weights live, said before seal, which is collective then. shard: everything is cut over the ranks of
 * comm. share: frozen tensors lie once per node, filled by its first rank (call mb_params_filled after
 * filling and before use); it says nothing on a device, where each rank has its own. With one rank (of the
 * node) nothing is different. The comm is borrowed. */
void mb_params_spread(mb_params *params, mb_comm *comm, bool shard, bool share);
bool mb_params_is_sharded(const mb_params *params);
bool mb_params_is_shared(const mb_params *params);    /* frozen ones lie once per node */
const char *mb_params_place(const mb_params *params); /* in words */
/* "key = value" lines of what mb_params_store said, for resume keys; none when f32. */
mb_status mb_params_describe_storage(const mb_params *params, mb_str *text);
/* Collective: all values were set; what is spread is seen by all. */
mb_status mb_params_filled(mb_params *params);
/* Bytes a parameter takes as it is (to be) kept. */
size_t mb_params_bytes(const mb_param *param);
/* A parameter's values as f32 in the host's memory, whatever and wherever it is kept in, and back (rounded,
 * quantised). [elements]. The array is free again when set returns, and later ops see the values. */
mb_status mb_params_get_f32(const mb_param *param, float *out);
mb_status mb_params_set_f32(mb_param *param, const float *value);
/* Of one kept in 4 bits: its rows [N, (K + 1) / 2] and scales [N, ceil(K / group)], as they are, and back. */
mb_status mb_params_get_packed(const mb_param *param, uint8_t *out_rows, float *out_scale);
mb_status mb_params_set_packed(mb_param *param, const uint8_t *rows, const float *scale);
/* Decide what trains, allocate everything. MB_EUSAGE when a pattern matches nothing (names the nearest), or a
 * tensor that its folder holds in 4 bits. */
mb_status mb_params_seal(mb_params *params, const char *patterns);

int64_t mb_params_count(const mb_params *params);
mb_param *mb_params_at(mb_params *params, int64_t i);
mb_param *mb_params_find(mb_params *params, const char *name); /* NULL when absent */

bool mb_params_is_in_layer(const mb_params *params, const mb_param *param); /* of a decoder layer */

mb_status mb_params_acquire(mb_params *params, int64_t block);
void mb_params_release(mb_params *params, int64_t block);

int64_t mb_params_trained_count(const mb_params *params); /* elements */
float *mb_params_trained(mb_params *params);              /* [that many]; NULL when 0 or sharded */
/* From element `first` on, which this rank owns (mb_lanes_owned); good for the owned elements. */
float *mb_params_owned(mb_params *params, int64_t first);
/* n trained values from element `first` on (sharded: of those this rank owns) into the host's memory and
 * back. As get_f32 and set_f32; follow uploads by mb_params_sync. */
mb_status mb_params_download(mb_params *params, int64_t first, int64_t n, float *host);
mb_status mb_params_upload(mb_params *params, int64_t first, int64_t n, const float *host);
/* The carried space: elements, its values into the host's memory and back (as get_f32 and set_f32; every rank
 * sets its own). */
int64_t mb_params_carried_count(const mb_params *params);
mb_status mb_params_carried_get(const mb_params *params, float *host);
mb_status mb_params_carried_set(mb_params *params, const float *host);
/* [that many] in the backend's memory, or NULL to unbind: */
void mb_params_bind_gradient(mb_params *params, float *gradient);
void mb_params_changed(mb_params *params);           /* trained values changed: packed forms are stale */
uint64_t mb_params_version(const mb_params *params); /* another number after any matrix changed */
/* The same after owned values changed, for sharded ones: all ranks see them afterwards. Collective. */
mb_status mb_params_sync(mb_params *params);

/* Gradients block by block, instead of one bound buffer: a pass asks for the room of a block before it adds
 * into it and says when it is complete. Blocks are complete in the order L, L-1, .., 0, -1 (the head of a
 * tied model is part of -1); one that trains nothing is passed over. */
typedef struct mb_params_sink {
    void *context;
    mb_status (*room)(void *context, int64_t block,
                      float **out); /* zeroed, [trained elements of the block], the backend's memory */
    mb_status (*complete)(void *context, int64_t block); /* queued: later ops see it */
} mb_params_sink;
/* Borrowed; NULL: none. Unbinds all gradients. */
void mb_params_set_sink(mb_params *params, const mb_params_sink *opt_sink);
bool mb_params_has_sink(const mb_params *params);
/* Bind a block's gradients (nothing without a sink, or when they are bound already), and give them away. */
mb_status mb_params_gradient_begin(mb_params *params, int64_t block);
mb_status mb_params_gradient_end(mb_params *params, int64_t block);
/* Trained elements of a block: from *out_first on in the trained space. */
int64_t mb_params_block_trained(const mb_params *params, int64_t block, int64_t *out_first);

/* Bytes this process keeps: frozen values (its piece of them; of memory shared by the node this rank's part
 * of the sum), trained ones, and the most that blocks brought in took. */
typedef struct mb_params_bytes_used {
    size_t frozen, trained, slots;
} mb_params_bytes_used;
mb_params_bytes_used mb_params_used(const mb_params *params);
/* After seal: fetch a sharded model's next block while one is used (done anyway where ranks are on several
 * nodes). */
void mb_params_set_ahead(mb_params *params);
bool mb_params_is_ahead(const mb_params *params);
/* Lowest block with a trained tensor (embedding -1), L+1 when nothing trains: the backward pass stops above
 * it. */
int64_t mb_params_lowest_trained(const mb_params *params);

/* Fill from a weight folder (all tensors of the arch must be there, with their shapes, finite:
 * MB_ENOTFOUND/MB_ESHAPE/MB_EDATA name folder and tensor; unknown extra tensors are warned about once,
 * rotary inv_freq buffers silently ignored; carried ones may be absent, and stay 0: was_read). */
mb_status mb_params_read(mb_params *params, const char *folder);
/* Fill from the delta.safetensors of a delta folder: only tensors of the model, at least one. */
mb_status mb_params_read_delta(mb_params *params, const char *folder);
/* N(0, std) for matrices and embedding, ones for norms, zeros for biases and what is carried; by tensor name,
 * so independent of order. */
mb_status mb_params_randomise(mb_params *params, uint64_t seed, double std);
/* Write HF weights (LoRA tensors left out) into folder: model.safetensors or shards. only_trained: just the
 * trained tensors (and those carried, or that came from a delta), as `stem` delta. Carried ones are f32 in
 * any dtype. opt_source: the folder the frozen ones were read from, which are kept rounded (bf16, quantised)
 * in memory and written as they are there; without it a quantised tensor is MB_EUNSUPPORTED. What the folder
 * holds in 4 bits is written so. */
mb_status mb_params_write(mb_params *params, const char *folder, const char *stem, mb_dtype dtype,
                          int64_t shard_bytes, bool only_trained, const char *opt_source);

#endif
