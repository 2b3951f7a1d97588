/* objective: what a training step minimises. An objective declares its passes and turns their outputs into
 * losses and gradients; it never calls the model.
 *
 * Layer: learn.  Uses: base, tensor, store (shard), model (lm.h types).
 *
 * Objectives: "lm" (all tokens), "sft" (loss mask), "router_warmup" (MISSION A1), "dpo" (preference pairs),
 * "btm" (the router of a fused model), "distil" (a student of a teacher).
 */
#ifndef MB_OBJECTIVE_H
#define MB_OBJECTIVE_H

#include "base/option.h"
#include "model/lm.h"
#include "store/shard.h"

#define MB_OBJECTIVE_MAX_PASSES 4
#define MB_OBJECTIVE_MAX_TERMS  272

/* One micro-batch as read from the shard: `records` records in their order; of a pair shard chosen, rejected,
 * chosen, ... */
typedef struct mb_microbatch {
    int64_t records;
    const mb_shard_record *record; /* [records], cut to max_length */
    const int64_t
        *sample; /* [records] global sample number (shard record number): key of every random draw */
    int64_t epoch;
    uint64_t seed;
    /* of the whole step, known before any pass: */
    int64_t step_targets; /* target tokens in all micro-batches */
    int64_t step_microbatches;
    int64_t step_records; /* of a pair shard: twice its pairs */
    int64_t step_tokens;  /* of those records */
    int64_t step;         /* from 0 */
    bool is_validation;   /* the records are of the validation shard */
} mb_microbatch;

/* A pass the objective wants: which model (0: the trained one; 1: opt_second, forward alone) and the packed
 * rows, built in the arena it is given. */
typedef struct mb_objective_pass {
    int64_t model;
    mb_lm_batch batch;
    mb_lm_want want;
    void *context; /* the objective's own, in the arena */
} mb_objective_pass;

/* Loss terms of one micro-batch, each already scaled so that the sum over the step's micro-batches is the
 * step's value. The first is "loss" (the total). */
typedef struct mb_objective_terms {
    int64_t count;
    const char *name[MB_OBJECTIVE_MAX_TERMS];
    double value[MB_OBJECTIVE_MAX_TERMS];
} mb_objective_terms;

/* What flows back into a pass; arrays in the arena; NULL: nothing. */
typedef struct mb_objective_gradient {
    float *d_token_loss;
    float **d_router_logits;
    float *d_hidden;
} mb_objective_gradient;

/* What a run trains on and validates with; borrowed. */
typedef struct mb_objective_data {
    mb_shard *shard, *opt_validation;
    int64_t max_length; /* records are cut to it; 0: as they stand */
} mb_objective_data;

typedef struct mb_objective mb_objective;
struct mb_objective {
    const char *name;
    /* Names of the terms every loss() gives, in their order, known before any pass; terms named .../<n> are
     * per router layer. */
    int64_t term_count;
    const char *term[MB_OBJECTIVE_MAX_TERMS];
    int64_t least_records; /* of a whole micro-batch, for the objective to make sense; a smaller batch_size is
                              refused */
    int64_t row_copies;    /* rows of a pass per token of the batch: 1, or 2 with copies; 0: 1 */
    int64_t plain_passes;  /* forwards of the same rows beside the trained one, without gradient */
    mb_lm *opt_second;     /* model 1 of its passes: a teacher, whose logits it wants; borrowed */
    int64_t row_bytes; /* what it hands over with a head row (a teacher's tokens), in the host's memory and on
                              a device there too */
    bool wants_pairs;  /* its data are pair shards (shard.h); the others' are not */
    /* Nothing flows back from the outputs: the weights of the head's rows are in the batches, and loss()
     * gives no gradients. Then the backward need not wait for loss(). */
    bool is_fused;
    bool reads_routing; /* loss() looks at the routers' logits and ids */
    /* "key = value" lines of every setting that changes what is minimised (for resume keys); of files the
     * content, known after open_data. Owned. */
    char *settings;
    /* What the objective reads beside the records (reference log-probabilities). May be NULL. */
    mb_status (*open_data)(mb_objective *self, const mb_objective_data *data);
    /* Target tokens of a record under this objective (for step_targets); sample: its number in the shard. */
    int64_t (*count_targets)(const mb_objective *self, const mb_shard_record *record, int64_t sample);
    /* Build the passes of a micro-batch. */
    mb_status (*plan_passes)(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                             mb_objective_pass passes[MB_OBJECTIVE_MAX_PASSES], int64_t *out_count);
    /* With opt_second: the outputs of its passes are there (valid until the next micro-batch); make the
     * batches of model 0 whole, whose passes come after. */
    mb_status (*complete)(mb_objective *self, mb_objective_pass *passes, const mb_lm_output *outputs,
                          int64_t count);
    /* Outputs -> loss terms and gradients. */
    mb_status (*loss)(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                      const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                      mb_objective_terms *out_terms,
                      mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES]);
    /* Before a step (trash opening). May be NULL. */
    void (*begin_step)(mb_objective *self, mb_lm *lm, int64_t step);
    /* balance_scope = step: before a step of several micro-batches the trainer runs this routing-only pass of
     * each (want.routers = all), sums the picks over the step into picks[pick_count] ([routers, E']) and sets
     * has_picks. plan_routing NULL: not wanted. */
    mb_status (*plan_routing)(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              mb_objective_pass *out_pass);
    int64_t pick_count;
    int64_t *picks; /* owned */
    bool has_picks;
    void (*destroy)(mb_objective *self);
};

/* Options of all objectives (one table, keys training.*). */
typedef struct mb_objective_options {
    char *objective;             /* training.objective lm|sft|router_warmup|dpo|btm|distil */
    double router_aux_loss_coef; /* training.router_aux_loss_coef 0.01 */
    char *load_balance;          /* training.load_balance hf|switch ("hf") */
    char *balance_over;          /* training.balance_over good|all ("good") */
    char *balance_scope; /* training.balance_scope micro|step ("micro"): HF parity, or over the whole step by
                            a routing-only pass first */
    double router_z_loss_coef; /* training.router_z_loss_coef 0 */
    char *constraint_loss;     /* training.constraint_loss pair_rank|beta_nll|moment_matching|barrier|none */
    double constraint_loss_weight;  /* training.constraint_loss_weight 1.0 */
    double trash_can_loss_alpha;    /* 1 */
    double trash_can_loss_beta;     /* 2 */
    double moment_mean, moment_var; /* 0.5, 0.05 */
    char *ratio_over;               /* training.ratio_over all|topk ("all") */
    double pair_rank_sharpness;     /* 4 */
    double pair_rank_copy_share;    /* 0.5: weight of copy_rank against loss_rank */
    double anchor_weight;           /* 1 */
    int64_t trash_open_steps;       /* steps over which trash_logit_bias rises to 0 */
    char *dpo_loss;                 /* training.dpo.loss sigmoid; a list of pair_loss.h with weights */
    double dpo_beta;                /* 0.1 */
    double dpo_label_smoothing;     /* 0 */
    double dpo_simpo_gamma;         /* 0.5 */
    double dpo_sft_weight;          /* 0: of the mean -ln p of the chosen answers' tokens */
    double dpo_ld_alpha;            /* 1: weight of an answer's tokens behind the shorter one's length */
    char *dpo_nll_over;             /* orpo's own SFT term: all|answers ("all") */
    char *reference;            /* training.reference: a score file with logprob, "adapter_off", NULL: by the
                                   model */
    char *validation_reference; /* training.validation_reference: the same for the validation shard */
    bool reference_any_model;   /* the file may be another model's than the one training starts from */
    double load_balance_weight; /* training.load_balance_weight 0.01: btm */
    double sparsity_weight;     /* training.sparsity_weight 0.001: btm */
    char *targets;              /* training.targets masked|all ("masked"): btm, distil */
    double temperature;         /* training.temperature 2: distil */
    char *distill_loss;         /* training.distill_loss forward_kl|reverse_kl|jsd */
    double distill_beta;        /* training.distill_beta 0.5: of jsd */
    double distill_loss_weight; /* training.distill_loss_weight 0.7 */
    double task_loss_weight;    /* training.task_loss_weight 0.3 */
    char *teacher_store;        /* teacher.store: a file of moe-teacher */
    char *teacher_validation_store; /* teacher.validation_store: the same for the validation shard */
    mb_lm *opt_teacher;             /* no option: a teacher that is asked while training; borrowed */
} mb_objective_options;
const mb_option *mb_objective_option_table(int64_t *out_count);
/* What plain_passes will be, before there is a model: has an adapter to train, and is it a new one? */
int64_t mb_objective_plain_passes(const mb_objective_options *options, bool has_adapter, bool is_new);

/* The model is borrowed. MB_EUSAGE: settings that do not go together, or not with the model. */
mb_status mb_objective_create(const mb_objective_options *options, mb_lm *lm, mb_objective **out_objective);
/* Before the first pass over a shard's records: MB_EDATA where data and objective do not fit. Every rank for
 * itself; again for the same shard it does nothing. */
mb_status mb_objective_open_data(mb_objective *objective, const mb_objective_data *data);
void mb_objective_destroy(mb_objective **objective);

#endif
