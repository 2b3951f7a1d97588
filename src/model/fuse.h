/* fuse: several language models as one: fixed mixtures of their distributions, and trained routers between
 * them, by token or by layer.
 *
 * Layer: model.  Uses: lm, text (tokenizer), comm.
 * Source: ensembles: Li et al. (2022) "Branch-Train-Merge", section 2; routers between whole models as
 * docs/fuse.md defines them.
 *
 * A fused model is an mb_lm (lm.h) and is used as one: forward, backward, cache, write. Its members are
 * frozen. What it adds to lm.h:
 *   kind      routers  output logits                        token_loss
 *   ensemble  0        ln sum_m a_m p_m, or sum_m a_m z_m   of that distribution
 *   token     1        ln sum_m w_m p_m                     - ln sum_m w_m p_m(target)
 *   layer     L + 2    sum_m w_m z_m of one shared stream   of their softmax
 * router_logits[s] [T, M] are ln w less a constant; router_ids[s] [T, 1] the member of the largest. Stage 0
 * weighs the embeddings, 1..L the layers, L + 1 the heads.
 */
#ifndef MB_FUSE_H
#define MB_FUSE_H

#include "model/lm.h"

typedef enum mb_fuse_kind { MB_FUSE_ENSEMBLE, MB_FUSE_TOKEN, MB_FUSE_LAYER } mb_fuse_kind;
const char *mb_fuse_kind_name(mb_fuse_kind kind); /* "ensemble", "token_level", "layer_level" */

enum { MB_FUSE_MAX_MEMBERS = 16 };

typedef struct mb_fuse_member {
    const char *name;        /* "foundation", "sft", ...; no two alike */
    const char *path;        /* HF folder */
    const char *opt_adapter; /* PEFT folder on top of it */
    double weight;           /* >= 0; they are divided by their sum */
} mb_fuse_member;

typedef struct mb_fuse_options {
    mb_fuse_kind kind;
    bool by_logits; /* ensemble: mix logits instead of probabilities */
    int64_t count;  /* members M: 2 .. MB_FUSE_MAX_MEMBERS */
    const mb_fuse_member *member;
    int64_t router_hidden; /* inner width of the router's MLPs; 0: 128 */
    bool train;            /* the router trains */
    uint64_t seed;         /* of a new router */
    mb_dtype dtype;        /* as in mb_lm_options, for all members */
    int frozen_bits;
    int64_t frozen_group;
    mb_comm *opt_comm; /* as in mb_lm_options (share) */
    bool share;
    mb_comm *opt_group; /* of M ranks: rank m holds member m alone, every call on the model is collective
                           over it with the same arguments and gives the same on all. Nothing trains then */
} mb_fuse_options;

/* A new fused model. MB_EDATA: vocabularies that contradict each other (both tokens named), layer level over
 * different architectures. Collective over opt_group. */
mb_status mb_fuse_open(mb_ops *ops, const mb_fuse_options *options, mb_lm **out_lm);
/* Is this the folder of a fused model (it has a fuse.json)? mb_lm_open opens it. */
bool mb_fuse_is_folder(const char *path);
/* The same with members on the ranks of a group. */
mb_status mb_fuse_open_folder(mb_ops *ops, const char *path, const mb_lm_options *options, mb_comm *opt_group,
                              mb_lm **out_lm);

/* Of one that is not open: what decides the bytes it takes. */
typedef struct mb_fuse_shape {
    mb_fuse_kind kind;
    int64_t count, router_hidden; /* as above */
    bool train, is_spread;        /* the router trains; each member on a rank of its own (opt_group) */
    const mb_arch *const *arch;   /* [count] */
    const char *const *name;      /* [count] for messages */
    const mb_lora_options *const *opt_adapter; /* [count], NULL where there is none */
} mb_fuse_shape;
typedef struct mb_fuse_plan {
    mb_lm_plan bytes;        /* is_spread: of the rank whose member takes most */
    int64_t router, tensors; /* elements and tensors of the routers */
    int64_t most_of_block;   /* elements of the block with most of them */
} mb_fuse_plan;
/* As mb_lm_plan_open of the open model. MB_EDATA: layer level over different architectures. */
mb_status mb_fuse_plan_get(const mb_fuse_shape *shape, const mb_lm_plan_options *options,
                           mb_fuse_plan *out_plan);

bool mb_lm_is_fused(const mb_lm *lm);
mb_fuse_kind mb_fuse_get_kind(const mb_lm *lm);
int64_t mb_fuse_members(const mb_lm *lm); /* 1 for an ordinary model */
const char *mb_fuse_member_name(const mb_lm *lm, int64_t member);
double mb_fuse_member_weight(const mb_lm *lm, int64_t member); /* of an ensemble; divided by their sum */
mb_lm *mb_fuse_member_lm(mb_lm *lm, int64_t member);           /* NULL: on another rank */

#endif
