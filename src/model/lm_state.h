/* lm_state: what a language model and its passes are made of; seen by the lm files only.
 *
 * Layer: model.  Uses: lm, block.
 */
#ifndef MB_LM_STATE_H
#define MB_LM_STATE_H

#include "base/hash.h"
#include "model/block.h"
#include "model/lm.h"

struct mb_fuse;
struct mb_fuse_pass;

#define MB_LM_GROUP 64 /* columns that share a scale when frozen weights are quantised */

struct mb_lm {
    mb_ops *ops;
    mb_arch arch;
    mb_params *params;
    mb_lora lora;
    mb_dtype dtype;      /* of act tensors */
    bool input_gradient; /* blocks give the gradient of their input, whatever trains */
    mb_block *blocks;    /* [L] */
    mb_buffer *rope_data;
    mb_tensor rope; /* [Pmax, Dh]: cos in the first half, sin in the second */
    mb_param *embedding, *final_norm, *head;
    char *path;                   /* the folder that was opened, NULL for a created model */
    char *base;                   /* the HF folder under it: the same but for a delta */
    char *adapter;                /* PEFT folder that was loaded, or NULL */
    char hash[MB_HASH_TEXT];      /* of path and adapter, "" until asked for */
    char base_hash[MB_HASH_TEXT]; /* of base, "" until asked for */
    struct mb_fuse *fuse;         /* several models as this one (fuse_state.h), NULL: an ordinary model */
};

typedef struct mb_lm_replay mb_lm_replay;

struct mb_lm_pass {
    mb_lm *lm;
    mb_ops *ops;
    mb_arena *arena;       /* the backend's memory: activations */
    mb_arena *host;        /* of a forward: what it sends, and its outputs on a device */
    mb_arena *host_back;   /* of its backward passes: what they send */
    mb_block_saved *saved; /* [L] */
    mb_tensor *inputs;     /* [L] of each block, when it is made again; dims 0 otherwise */
    float **router_logits; /* [routers] */
    int32_t **router_ids;  /* [routers] */
    mb_block_context context;
    mb_lm_batch batch;       /* the caller's */
    mb_lm_batch sent;        /* the same, its arrays as ops take them */
    mb_teacher_rows teacher; /* what sent.opt_teacher points at */
    mb_lm_want want;
    mb_tensor long_rope; /* [T, Dh] a row per row, when a segment is long (rotary.h) */
    bool is_ready;       /* a forward with gradient is there */
    bool is_queued;      /* since the last wait something was sent from host, or from host_back: */
    bool is_queued_back;
    mb_tensor x, x_rstd; /* final residual stream [T, D] and its norm's rstd (when hidden was asked) */
    mb_tensor head_x, head_rstd, head_h; /* rows that get a loss: [Nh, D], [Nh], [Nh, D] after the norm */
    mb_tensor head_dh; /* [Nh, D] when the head's gradient was fused into the forward; dims 0 otherwise */
    mb_tensor loss, distance, logits, hidden; /* outputs as the ops made them; dims 0, NULL: not asked for */
    int32_t *argmax;
    int64_t routers;           /* run by the forward */
    mb_lm_replay *replay;      /* recorded forwards, NULL: none yet */
    struct mb_fuse_pass *fuse; /* of a fused model's pass, else NULL */
};

/* What `train` of the options means as patterns of params.h. */
mb_status mb_lm_patterns(const char *train, bool has_lora, const mb_arch *arch, const char **out_patterns);
/* Content hash of the base folder, taken once. */
mb_status mb_lm_base_hash(mb_lm *lm, const char **out_hash);
/* What a folder says before its weights are read: the architecture, and the HF folder under it (new block,
 * mb_free). Deltas' bases are checked. */
mb_status mb_lm_peek(const char *path, mb_arch *out_arch, char **out_base);
/* Parts of a forward. check: batch and want fit the model. reset: everything of the last forward is gone,
 * batch and want are the pass's. prepare: what the host sends, and the context. rope: in a context whose
 * arch has segments so long that their frequencies differ, every row has a rope row of its own. run: reset,
 * prepare, rope and every op, without checks, rows of the cache counted; nothing is fetched. */
mb_status mb_lm_forward_check(const mb_lm *lm, const mb_lm_batch *batch, const mb_lm_want *want);
mb_status mb_lm_forward_reset(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want);
mb_status mb_lm_forward_prepare(mb_lm_pass *pass);
mb_status mb_lm_forward_rope(mb_lm_pass *pass, mb_block_context *context, mb_tensor *long_rope);
mb_status mb_lm_forward_run(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want);
/* A tensor the ops made, as the host reads it once the pass has waited; NULL when there is none. */
mb_status mb_lm_fetch(mb_lm_pass *pass, const mb_tensor *tensor, float **out);
mb_status mb_lm_fetch_ids(mb_lm_pass *pass, const int32_t *ids, int64_t n, int32_t **out);
/* Before a backward sends anything: its own arena, once the last backward's is free. */
mb_status mb_lm_backward_begin(mb_lm_pass *pass);
/* How `folder` calls `base`: by the way up to their common parent and down again, so that a study can be
 * moved as a whole; in full when they share nothing but the root. New block. */
mb_status mb_lm_base_name(const char *folder, const char *base, char **out_name);
/* Bytes of one token in one block of an open model, with or without a gradient (lm_plan.c). */
typedef struct mb_lm_plan_block {
    int64_t always;            /* kept by any forward: router logits and picks, which are outputs */
    int64_t kept;              /* by one that keeps what the backward needs */
    int64_t forward, backward; /* temporaries of each way, the most at one time */
} mb_lm_plan_block;
mb_lm_plan_block mb_lm_plan_block_get(const mb_lm *lm, int64_t index, bool gradient);
/* Run block `index` on x [T, D], in place; what it keeps goes to pass->saved[index]. */
mb_status mb_lm_forward_block(mb_lm_pass *pass, int64_t index, bool gate_only, mb_tensor *x);
/* Queue a forward whose batch was sent, by `queue`, or as it was recorded (lm_replay.c). */
mb_status mb_lm_replay_forward(mb_lm_pass *pass, mb_status (*queue)(mb_lm_pass *pass));
void mb_lm_replay_destroy(mb_lm_replay **replay);
int64_t mb_lm_replay_count(const mb_lm_pass *pass); /* forwards that ran from a record */
/* Copy tokenizer and generation files that are there. */
mb_status mb_lm_copy_companions(const char *source, const char *target);

#endif
