/* lm: a decoder language model: open, forward, backward, save.
 *
 * Layer: model.  Uses: arch, params, lora, ops.
 * Source: Touvron et al. (2023) Llama 2; Muennighoff et al. (2024) OLMoE; behaviour of transformers'
 * modeling_llama.py and modeling_olmoe.py.
 *
 * A pass is one forward over a packed micro-batch: records one after another without padding, never
 * attending across each other. A model may have several passes open at once (an objective of several
 * forwards); each pass owns its activations in an arena that is reused when the pass is reset. Weights,
 * activations, gradients and kept keys lie in the backend's memory (ops.h); what a caller gives and gets
 * here lies in the host's. A forward of the same sizes (tokens, segments, head rows) and wants as the one
 * before it uses the same addresses, once a pass is steady (its third forward), and all its uploads come
 * first.
 */
#ifndef MB_LM_H
#define MB_LM_H

#include "comm/comm.h"
#include "model/head_rows.h"
#include "model/kv_cache.h"
#include "model/lora.h"
#include "model/params.h"

typedef struct mb_lm mb_lm;
typedef struct mb_lm_pass mb_lm_pass;

typedef struct mb_lm_options {
    const char *path; /* HF folder, a delta folder (delta.json names and hashes its base; both are read), or a
                         fused one (fuse.h): train is "none" or "router" then */
    const char *opt_adapter; /* PEFT folder to load on top, NULL none */
    const char *train;       /* "none", "all", "router" (the gates), or patterns of params.h; with an adapter:
                                "none" or the adapter alone ("all") */
    const mb_lora_options *opt_lora; /* a new adapter to train, NULL none (not together with opt_adapter,
                                        which trains as it is unless train == "none") */
    double trash_expert_ratio;       /* > 0: declare the last share of an ordinary MoE's experts trash */
    bool router_bias;    /* every router gets a selection bias where the folder has none: zeros, to be moved
                         (mb_lm_router_bias_write). Not with an adapter that trains, whose folder has no
                         place for it: MB_EUSAGE */
    bool input_gradient; /* a backward runs through all blocks, whatever trains: a fused model's members */
    uint64_t seed;       /* of new tensors */
    mb_dtype dtype;  /* of computing, and of frozen matrices in memory: f32 (0) or bf16. What trains is f32
                          in memory in any case */
    int frozen_bits; /* 8 or 4: frozen matrices of the decoder layers are quantised; 0: not */
    int64_t frozen_group; /* columns that share a scale; 0: 64 */
    /* Several ranks: */
    mb_comm *opt_comm; /* whose; NULL: every process by itself. Borrowed, must outlive the model */
    bool shard;        /* all weights are cut over the ranks and come block by block (params.h) */
    bool ahead;        /* sharded: fetch the next block while one is used, also on one node, where it only
                          costs memory (between nodes it is done in any case) */
    bool share;        /* frozen weights lie once per node; nothing on a device */
} mb_lm_options;

/* Collective when opt_comm has several ranks (it agrees: all fail or none), and so is destroy then. */
mb_status mb_lm_open(mb_ops *ops, const mb_lm_options *options, mb_lm **out_lm);
/* A new model with random weights, computing in f32. */
mb_status mb_lm_create(mb_ops *ops, const mb_arch *arch, const char *train, uint64_t seed, mb_lm **out_lm);
/* Change the dtype of computing of an open model (frozen matrices stay as they are kept). */
void mb_lm_set_dtype(mb_lm *lm, mb_dtype dtype);
mb_dtype mb_lm_dtype(const mb_lm *lm);
void mb_lm_destroy(mb_lm **lm);

const mb_arch *mb_lm_arch(const mb_lm *lm);
mb_params *mb_lm_params(mb_lm *lm);
mb_lora *mb_lm_lora(mb_lm *lm);
mb_ops *mb_lm_ops(mb_lm *lm);
int64_t
mb_lm_routers(const mb_lm *lm); /* layers that have a router, 0 for dense. Router r of all that follows
                                           is that of the r-th such layer */
void mb_lm_set_trash_bias(mb_lm *lm, double bias);
/* The routers' selection biases (ops.h, mb_ops_route), f32 [routers, E'] in the host's memory: out, and back
 * between two passes (every rank its own copy, the same on all). MB_EUSAGE when the model holds none. */
bool mb_lm_has_router_bias(const mb_lm *lm);
mb_status mb_lm_router_bias_read(mb_lm *lm, float *out_bias);
mb_status mb_lm_router_bias_write(mb_lm *lm, const float *bias);
const char *mb_lm_base(const mb_lm *lm);    /* HF folder under it all (tokenizer files are there); NULL for a
                                            created one. Borrowed */
const char *mb_lm_adapter(const mb_lm *lm); /* PEFT folder that was loaded; NULL: none. Borrowed */
const char *mb_lm_hash(mb_lm *lm); /* content hash of the folder(s) it came from; "" for a created one */
/* Of its folder without an adapter, and of the adapter's ("" where none; both "" for a created one). */
mb_status mb_lm_hashes(mb_lm *lm, char out_model[33], char out_adapter[33]);

/* Packed rows. All arrays are the caller's, in the host's memory (a device gets copies of them, once, at the
 * start of the forward), and must outlive the pass's backward. */
typedef struct mb_lm_batch {
    int64_t tokens, segments;     /* T, S */
    const int32_t *ids;           /* [T] */
    const int32_t *positions;     /* [T] usually 0.. within each segment */
    const int32_t *offsets;       /* [S+1] */
    const int64_t *row_index;     /* [T] global row numbers for dropout draws; NULL: no dropout */
    uint64_t seed;                /* of dropout */
    int64_t head_rows;            /* Nh: rows that get a loss, 0: no head */
    const int32_t *head_row;      /* [Nh] increasing row numbers */
    const int32_t *targets;       /* [Nh]; NULL: no losses (want.logits then) */
    const float *opt_head_weight; /* [Nh] dLoss/d token_loss when known beforehand (fused: with want.gradient
                                     the head's own gradient is added in the forward); NULL: given to
                                     backward, or no gradient. With a teacher dLoss/d row loss (ops.h) */
    const mb_teacher_rows *opt_teacher; /* of the head rows, arrays of the host (the first dimension Nh). On a
                                           device dense rows go there a chunk at a time, while the forward is
                                           queued. Not with a cache */
    /* Generation: rows follow those already in the cache's slots (positions say so too). No gradient. */
    mb_kv_cache *opt_cache;
    const int32_t *opt_slot; /* [S] slot of each segment, no two alike */
} mb_lm_batch;

typedef struct mb_lm_want {
    bool gradient;  /* keep what backward needs */
    bool recompute; /* with gradient: keep only each block's input and make the rest again in backward (same
                        bits; a third more time, memory of one block) */
    bool hidden;    /* final hidden state after the norm, [T, D] */
    bool argmax;    /* of head rows */
    bool logits; /* [Nh, V] of head rows: for inspection and generation, never for whole training batches */
    int64_t routers; /* stop after this many routers (scoring): 1..mb_lm_routers; 0: no limit. The last block
                        is run only up to its gate. Excludes head, hidden, gradient. */
    bool no_routing; /* the routers' logits and ids are not read: none are given (on a device they would have
                        to be fetched, T (E' + K) numbers a layer) */
    bool no_adapter; /* the adapter is left out: what the model under it gives. Excludes gradient */
} mb_lm_want;

/* Outputs of a forward, in the host's memory, owned by the pass until its next forward. Pointers not asked
 * for are NULL. */
typedef struct mb_lm_output {
    float *token_loss;     /* [Nh] cross-entropy */
    float *token_distil;   /* [Nh] distance to opt_teacher, in nats and not times T^2 */
    int32_t *argmax;       /* [Nh] */
    float *logits;         /* [Nh, V] */
    float *hidden;         /* [T, D] */
    int64_t routers;       /* 0 with no_routing */
    float **router_logits; /* [routers] of [T, E'], without the trash bias */
    int32_t **router_ids;  /* [routers] of [T, K] */
} mb_lm_output;

mb_status mb_lm_pass_create(mb_lm *lm, mb_lm_pass **out_pass);
void mb_lm_pass_destroy(mb_lm_pass **pass);
/* A forward in two steps, for work of the host in between: start returns once all of it is queued, with the
 * pointers in *out, and wait when what they point to is there. Where the backend is the host all is done
 * when start returns. */
mb_status mb_lm_forward_start(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want,
                              mb_lm_output *out);
mb_status mb_lm_pass_wait(mb_lm_pass *pass);
/* Both. */
mb_status mb_lm_forward(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want,
                        mb_lm_output *out);

/* Gradients that enter: token losses (row losses with a teacher; unless fused), router logits per router
 * ([T,E'] each; entries or the array may be NULL), hidden [T,D] (NULL none), all in the host's memory and
 * free again when this returns. Adds into the bound gradients of trained tensors (params.h: the backend's
 * memory); computes nothing below the lowest trained block. On a device it returns once queued: later ops
 * see the gradients, the host after mb_ops_wait. */
mb_status mb_lm_backward(mb_lm_pass *pass, const float *opt_d_token_loss, float *const *opt_d_router_logits,
                         const float *opt_d_hidden);
/* With gradients by block (mb_params_set_sink): bind those of the head before the forward, which may add
 * into them. A pass whose forward kept anything for a gradient must get its backward, once. */
mb_status mb_lm_gradient_begin(mb_lm *lm);
/* Room for the keys and values of a generation (mb_lm_batch.opt_cache): `rows` rows in all, shared out
 * equally at first. A fused model's is a chain, one of each member. */
mb_status mb_lm_cache_create(mb_lm *lm, int64_t slots, int64_t rows, mb_kv_cache **out_cache);
int64_t mb_lm_rope_bytes(const mb_lm *lm); /* of the table of angles, which belongs to the weights */
/* Of its activations, in the backend's memory; reset by the next forward. */
mb_arena *mb_lm_pass_arena(mb_lm_pass *pass);
/* The most it took there, with that of the members' passes where the model is fused. */
size_t mb_lm_pass_peak_bytes(const mb_lm_pass *pass);
/* What the weights take in this process (mb_params_used), of all members where the model is fused. */
mb_params_bytes_used mb_lm_used(const mb_lm *lm);
/* Multiply-adds x 2 of one token's forward pass at `context` tokens (mb_arch_flops), of all members that are
 * run and the router where the model is fused. */
double mb_lm_flops(const mb_lm *lm, int64_t context);

/* Save: "full" HF folder (config.json, weights, and the tokenizer and generation files of the source folder
 * copied), "delta" (delta.json {base, base_hash} + delta.safetensors), or the adapter when LoRA is on. A
 * fused model is fuse.json and its router in either kind. Into an existing folder (a checkpoint being
 * filled). */
mb_status mb_lm_write(mb_lm *lm, const char *folder, const char *kind, mb_dtype dtype);

/* Bytes by kind on one rank; the kinds add up. weights: frozen tensors (this rank's part of them) and rope
 * table; slots: blocks of a sharded model that are brought in; trained: f32 values; gradients: whole ones
 * (trainer.h plans those that are cut); packed: the most a backend's packed matrices take; activations: kept
 * by one pass over `tokens` rows that all have a loss; scratch: the largest temporary of its backward or
 * forward. Keys and values of generation are mb_kv_cache_plan. */
typedef struct mb_lm_plan {
    size_t weights, slots, packed, trained, gradients, activations, scratch;
} mb_lm_plan;
typedef struct mb_lm_plan_options {
    int64_t tokens; /* rows of a pass */
    bool gradient, recompute;
    bool has_head;       /* the rows have a loss */
    bool input_gradient; /* as in mb_lm_options; of an open model its own */
    mb_dtype dtype;      /* as in mb_lm_options; of an open model its own */
    int frozen_bits;     /* as in mb_lm_options */
    int64_t frozen_group;
    bool shard;     /* weights are cut over `ranks`; of an open model its own */
    bool ahead;     /* and the next block is fetched ahead; of an open model its own */
    bool share;     /* frozen weights once per node; of an open model its own */
    int ranks;      /* 0: 1 */
    int node_ranks; /* of them on this node; 0: 1 */
} mb_lm_plan_options;
/* A line of what a program says about its memory. */
typedef struct mb_lm_memory {
    const char *kind;
    int64_t forecast, used; /* bytes */
} mb_lm_memory;

/* Before anything is opened. */
mb_status mb_lm_plan_get(const mb_arch *arch, const char *train, const mb_lora_options *opt_lora,
                         const mb_lm_plan_options *options, mb_lm_plan *out_plan);
/* Of an open model: what trains and how it is kept are its own. */
mb_status mb_lm_plan_open(mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *out_plan);

#endif
