/* lm_state: what a language model and its passes are made of; seen by the lm files only.
 *
 * Layer: model.  Uses: lm, block.
 */
#ifndef MB_LM_STATE_H
#define MB_LM_STATE_H

#include "base/hash.h"
#include "model/block.h"
#include "model/lm.h"

#define MB_LM_GROUP 64 /* columns that share a scale when frozen weights are quantised */

struct mb_lm {
    mb_ops *ops;
    mb_arch arch;
    mb_params *params;
    mb_lora lora;
    mb_dtype dtype;   /* of act tensors */
    mb_block *blocks; /* [L] */
    mb_buffer *rope_data;
    mb_tensor rope; /* [Pmax, Dh]: cos in the first half, sin in the second */
    mb_param *embedding, *final_norm, *head;
    char *path;                   /* the folder that was opened, NULL for a created model */
    char *base;                   /* the HF folder under it: the same but for a delta */
    char *adapter;                /* PEFT folder that was loaded, or NULL */
    char hash[MB_HASH_TEXT];      /* of path and adapter, "" until asked for */
    char base_hash[MB_HASH_TEXT]; /* of base, "" until asked for */
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
    mb_lm_batch batch; /* the caller's */
    mb_lm_batch sent;  /* the same, its arrays as ops take them */
    mb_lm_want want;
    mb_tensor long_rope; /* [T, Dh] a row per row, when a segment is long (rotary.h) */
    bool is_ready;       /* a forward with gradient is there */
    bool is_queued;      /* since the last wait something was sent from host, or from host_back: */
    bool is_queued_back;
    mb_tensor x, x_rstd; /* final residual stream [T, D] and its norm's rstd (when hidden was asked) */
    mb_tensor head_x, head_rstd, head_h; /* rows that get a loss: [Nh, D], [Nh], [Nh, D] after the norm */
    mb_tensor head_dh; /* [Nh, D] when the head's gradient was fused into the forward; dims 0 otherwise */
    mb_tensor loss, logits, hidden; /* outputs as the ops made them; dims 0, NULL: not asked for */
    int32_t *argmax;
    int64_t routers;      /* run by the forward */
    mb_lm_replay *replay; /* recorded forwards, NULL: none yet */
};

/* What `train` of the options means as patterns of params.h. */
mb_status mb_lm_patterns(const char *train, bool has_lora, const mb_arch *arch, const char **out_patterns);
/* Content hash of the base folder, taken once. */
mb_status mb_lm_base_hash(mb_lm *lm, const char **out_hash);
/* Run block `index` on x [T, D], in place; what it keeps goes to pass->saved[index]. */
mb_status mb_lm_forward_block(mb_lm_pass *pass, int64_t index, bool gate_only, mb_tensor *x);
/* Queue a forward whose batch was sent, by `queue`, or as it was recorded (lm_replay.c). */
mb_status mb_lm_replay_forward(mb_lm_pass *pass, mb_status (*queue)(mb_lm_pass *pass));
void mb_lm_replay_destroy(mb_lm_replay **replay);
int64_t mb_lm_replay_count(const mb_lm_pass *pass); /* forwards that ran from a record */
/* Copy tokenizer and generation files that are there. */
mb_status mb_lm_copy_companions(const char *source, const char *target);

#endif
