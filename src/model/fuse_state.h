/* fuse_state: what a fused model and its passes have beside an ordinary model's; seen by the lm and fuse
 * files only.
 *
 * Layer: model.  Uses: lm_state, fuse_router, fuse_vocab.
 *
 * lm.c, lm_forward.c, lm_backward.c, lm_write.c and lm_plan.c come here first when lm->fuse is there. Of the
 * struct mb_lm around it these are used: ops, arch (member 0's, with experts = members, picks = 1; experts 0
 * for an ensemble), params (routers alone), dtype, path, base, hash. A pass has the members' own passes,
 * which hold what they keep; its own arenas hold what the mixing needs.
 */
#ifndef MB_FUSE_STATE_H
#define MB_FUSE_STATE_H

#include "model/fuse.h"
#include "model/fuse_router.h"
#include "model/fuse_vocab.h"
#include "model/lm_state.h"

typedef struct fuse_member {
    char *name, *path, *adapter;                         /* adapter NULL: none */
    char *base;                                          /* HF folder under path */
    double weight;                                       /* the sum of all is 1 */
    mb_lm *lm;                                           /* NULL: on another rank */
    mb_arch arch;                                        /* of all, wherever they are */
    char hash[MB_HASH_TEXT], adapter_hash[MB_HASH_TEXT]; /* "" until asked for */
} fuse_member;

struct mb_fuse {
    mb_fuse_kind kind;
    bool by_logits;
    int64_t count;
    fuse_member member[MB_FUSE_MAX_MEMBERS];
    int64_t active[MB_FUSE_MAX_MEMBERS], actives; /* members that are run: all, or of an ensemble those that
                                                     weigh something */
    int64_t stages, hidden;
    mb_fuse_router *router; /* [stages] */
    mb_fuse_vocab *vocab;   /* of the active members, in their order */
    mb_comm *group; /* NULL: all members are here; else rank m of it has member m, and it has as many ranks */
    bool trains;    /* the router */
    uint64_t seed;
    char router_hash[MB_HASH_TEXT]; /* of the folder's router file; "" for a new one */
};

/* Token level and ensembles; arrays are the host's, there after finish. */
typedef struct fuse_token_pass {
    int64_t rows;                    /* that the router is given: T, or the head rows; 0: it is not asked */
    float *router_logits;            /* [rows, M] */
    double *weight;                  /* [rows, M] their softmax; of an ensemble [1, M] */
    double *posterior;               /* [Nh, M] of the targets: w_m p_m / their sum */
    float *nll[MB_FUSE_MAX_MEMBERS]; /* [Nh] the members' losses */
    float *hidden[MB_FUSE_MAX_MEMBERS]; /* [rows, D_m] with members on ranks */
    mb_fuse_router_map map;
} fuse_token_pass;

struct mb_fuse_pass {
    mb_lm_pass *member[MB_FUSE_MAX_MEMBERS]; /* NULL: not run, or on another rank */
    mb_fuse_router_saved *saved;             /* [stages] */
    mb_tensor *parts;                        /* [stages * MB_FUSE_MAX_PARTS] what each stage looked at */
    mb_lm_output out;                        /* what start promised */
    bool is_pending;                         /* the host's part of a forward is still to be done, by wait */
    fuse_token_pass token;
    struct mb_fuse_layer_pass *layer; /* layer level, else NULL */
};

/* ---- fuse.c: what lm*.c dispatch to ---- */

void mb_fuse_destroy(struct mb_fuse **fuse);
mb_status mb_fuse_pass_create(mb_lm_pass *pass);
void mb_fuse_pass_destroy(mb_lm_pass *pass);
mb_status mb_fuse_forward_start(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want,
                                mb_lm_output *out);
mb_status mb_fuse_pass_wait(mb_lm_pass *pass);
mb_status mb_fuse_backward(mb_lm_pass *pass, const float *opt_d_token_loss,
                           float *const *opt_d_router_logits);
mb_status mb_fuse_gradient_begin(mb_lm *lm);
mb_status mb_fuse_cache_create(mb_lm *lm, int64_t slots, int64_t rows, mb_kv_cache **out_cache);
void mb_fuse_set_dtype(mb_lm *lm, mb_dtype dtype);
int64_t mb_fuse_rope_bytes(const mb_lm *lm);
mb_status mb_fuse_hashes(mb_lm *lm, char out_model[MB_HASH_TEXT]);
/* Hashes of a member's folders into its fields. */
mb_status mb_fuse_member_hashes(fuse_member *member);
/* A member's cache of the chain, NULL without one. */
mb_kv_cache *mb_fuse_cache_of(const struct mb_fuse *fuse, mb_kv_cache *opt_cache, int64_t member);

/* ---- fuse_open.c, fuse_write.c, fuse_plan.c ---- */

/* As mb_fuse_open; with a folder the router comes from its router.safetensors. */
mb_status mb_fuse_open_from(mb_ops *ops, const mb_fuse_options *options, const char *opt_folder,
                            mb_lm **out_lm);
/* fuse->router and fuse->stages, by kind and the members' architectures; their parameters are not there yet.
 * MB_EDATA as mb_fuse_layer_check. */
mb_status mb_fuse_make_routers(struct mb_fuse *fuse);
mb_status mb_fuse_write(mb_lm *lm, const char *folder);
mb_status mb_fuse_plan_open(mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *out_plan);

/* ---- fuse_token.c: ensembles and token level ---- */

/* The batch was checked and the pass reset; members' forwards are queued by start, the host's part of the
 * work is done by finish. */
mb_status mb_fuse_token_start(mb_lm_pass *pass, mb_lm_output *out);
mb_status mb_fuse_token_finish(mb_lm_pass *pass);
mb_status mb_fuse_token_backward(mb_lm_pass *pass, const float *opt_d_token_loss,
                                 float *const *opt_d_router_logits);

/* ---- fuse_ranks.c: members on the ranks of a group ---- */

/* Is this process the one that mixes: always without a group, else its rank 0? */
bool mb_fuse_is_root(const struct mb_fuse *fuse);
/* Every active member's rank gives its data[m] of bytes[m], rank 0 gets all; entries of others are not looked
 * at. Collective; nothing without a group. */
mb_status mb_fuse_gather(const struct mb_fuse *fuse, void *const *data, const size_t *bytes);
/* From the rank of `member` to all. Collective; nothing without a group, or for NULL. */
mb_status mb_fuse_spread(const struct mb_fuse *fuse, int64_t member, void *opt_data, size_t bytes);
/* All or none go on; the status itself without a group. */
mb_status mb_fuse_agree(const struct mb_fuse *fuse, mb_status status);

/* ---- fuse_layer.c, fuse_layer_backward.c, fuse_head.c: layer level ---- */

/* What a layer-level model asks of its members beyond the vocabulary, MB_EDATA with names and fields; and its
 * stages' parts and widths are L + 2 of [h, one of each member] (stage 0: one of each member), D each. */
mb_status mb_fuse_layer_check(const struct mb_fuse *fuse);
mb_status mb_fuse_layer_pass_create(mb_lm_pass *pass); /* fills pass->fuse->layer */
void mb_fuse_layer_pass_destroy(mb_lm_pass *pass);
/* As mb_lm_forward_start: pass->batch and pass->want are set, checked (mb_lm_forward_check) and the arenas
 * reset (mb_lm_forward_reset); rows of the caches grow here (mb_kv_cache_grow, each of the chain). */
mb_status mb_fuse_layer_forward_start(mb_lm_pass *pass, mb_lm_output *out);
mb_status mb_fuse_layer_wait(mb_lm_pass *pass); /* the ops have been waited for */
/* Activations and scratch of a pass; they replace those of the members. */
void mb_fuse_layer_plan(const mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *plan);
/* Something trains, gradients are bound, those of the head's block asked for (mb_lm_gradient_begin), and what
 * is sent goes to context.host. Ends each block's gradients (mb_params_gradient_end), the head's too. */
mb_status mb_fuse_layer_backward(mb_lm_pass *pass, const float *opt_d_token_loss,
                                 float *const *opt_d_router_logits);

#endif
