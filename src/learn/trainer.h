/* trainer: the training loop: data order, micro-batches, lanes, optimiser, checkpoints, resume.
 *
 * Layer: learn.  Uses: objective, optimiser, schedule, comm (lanes), store, model.
 *
 * A step takes batch_size x gradient_accumulation_steps records whatever the number of ranks:
 * gradient_accumulation_steps micro-batches of batch_size records, shared over lanes. Order: a permutation
 * per epoch keyed by (seed, epoch). The last step of an epoch may be short. Equal bits on any number of
 * ranks up to `lanes`, after any kill and resume.
 *
 * A step that a stop (base/stop.h) interrupts is given up between two micro-batches and done again by the
 * next run. A run also stops by itself before time_limit_minutes from mb_trainer_run are over, and before
 * its job ends (mb_stop_deadline), with room for three steps, two checkpoints and the weights; every run
 * does at least one step. A run whose folder was taken over (mb_lease_check) fails with MB_EEXIST and
 * changes nothing there. max_steps and max_tokens replace epochs, whichever comes first. A line of metrics
 * is of its step alone; what depends on the machine (tokens per second) stands under provenance/, which
 * content hashes leave out. State checkpoints come at epoch ends (the last too), every save_steps and
 * save_minutes; the weights epoch_<n> (n from 1, the last part of an epoch counts) before them; final is a
 * relative link to the last.
 *
 * Validation: the objective's terms on the records of another shard, without gradients and dropout, before
 * the first step, every validation_steps (0: at epoch ends) and at the end; micro-batches of one type each,
 * values per type and over all as lines "validation/[<type>/]<term>" of the metrics. They have the same bits
 * on any number of ranks and change nothing of the training. With save_best the weights whose loss over all
 * is the lowest so far stand in best_<step>, which the link best names (btm: best_router too): always a whole
 * folder, and after a resume the one an uninterrupted run would have.
 */
#ifndef MB_TRAINER_H
#define MB_TRAINER_H

#include "comm/comm.h"
#include "learn/objective.h"

typedef struct mb_trainer_options {
    double learning_rate; /* training.learning_rate 1e-4 */
    double epochs;     /* training.epochs 1 (alias num_epochs, num_train_epochs); parts of an epoch allowed */
    int64_t max_steps; /* training.max_steps 0: by epochs */
    int64_t max_tokens;                  /* training.max_tokens 0: stop at the first step that reaches it */
    int64_t batch_size;                  /* training.batch_size 8 records per micro-batch */
    int64_t gradient_accumulation_steps; /* training.gradient_accumulation_steps 8 micro-batches per step,
                                            over all ranks */
    int64_t lanes;                       /* training.lanes 8, cut to the micro-batches per step */
    int64_t zero;         /* training.zero 1: which of optimiser state (1), gradients (2) and parameters (3)
                             are cut over the ranks; each includes those before */
    char *recompute;      /* training.recompute none|blocks (true|false) */
    int64_t max_length;   /* dataset.max_length: records are cut to this many tokens; 0: as in the shard */
    double subset_ratio;  /* dataset.subset_ratio: share of the records used, 0: all, drawn by
                             seed */
    int64_t seed;         /* training.seed 42 */
    char *schedule;       /* training.lr_scheduler_type linear|cosine|constant */
    double warmup_ratio;  /* training.warmup_ratio 0 */
    int64_t warmup_steps; /* training.warmup_steps 0 */
    double weight_decay, adam_beta1, adam_beta2, adam_epsilon; /* 0, .9, .999, 1e-8 */
    double max_grad_norm;                                      /* 1.0; 0: no clipping */
    double router_bias_rate;    /* training.router_bias_rate 0: none; else router_bias.h after every step */
    char *save;                 /* training.save full|delta */
    int64_t save_steps;         /* training.save_steps 0: only at epoch ends; state checkpoints for resume */
    double save_minutes;        /* training.save_minutes 30: state checkpoint at least this often; 0 never */
    int64_t save_total_limit;   /* training.save_total_limit 2: state checkpoints kept */
    bool async_save;            /* training.async_save: they are written beside the next steps */
    int64_t log_steps;          /* training.logging_steps 10 */
    char *stored_dtype;         /* training.save_dtype f32|bf16|f16|source */
    bool strict;                /* training.strict refuse a resume under another environment */
    double time_limit_minutes;  /* training.time_limit_minutes 0: none: stop in time by itself (exit 75) */
    int64_t validation_steps;   /* training.validation_steps 0: at epoch ends and the end */
    int64_t validation_samples; /* training.validation_samples 0: all; drawn by seed */
    char *save_best;            /* training.save_best auto|true|false: keep the weights validated best */
    bool log_loads;             /* training.log_loads: also where nothing else reads the routing */
    mb_shard *opt_validation;   /* no option: what to validate on, NULL: nothing. Borrowed */
} mb_trainer_options;
const mb_option *mb_trainer_option_table(int64_t *out_count);

/* Bytes by kind on the rank that needs most: what was forecast and what was used. activations: of the passes
 * and their batches; other: packed weights (forecast as if all were packed), the data's index, and the
 * rest. */
enum { MB_TRAINER_MEMORY_KINDS = 8 };

enum { MB_TRAINER_NAME = 128 };

/* A validated term over a whole run, whatever interrupted it. */
typedef struct mb_trainer_validated {
    char name[MB_TRAINER_NAME]; /* "validation/code/loss" */
    double first, best, last;   /* best: at the step where the loss over all is lowest */
} mb_trainer_validated;

typedef struct mb_trainer_report {
    int64_t steps, tokens, records;
    double loss; /* mean over the last epoch's steps */
    double seconds, tokens_per_second;
    double routing_seconds, routing_share; /* of this run's routing-only passes (balance_scope = step), and
                                              their share of its steps' time */
    mb_trainer_validated *validated;       /* [validated_count], rank 0; owned: reset */
    int64_t validated_count, best_step;
    bool has_best; /* the folder best is there (save_best) */
    mb_lm_memory memory[MB_TRAINER_MEMORY_KINDS];
    bool is_stopped; /* ended at a checkpoint before its end (MB_ESTOPPED) */
} mb_trainer_report;

/* Train lm on the shard into folder (metrics.jsonl, metrics.h5, state/step_<n>/ for resume, epoch_<n>/ after
 * each epoch with weights, final/ -> the last). Resumes by itself from the newest whole state whose key
 * matches; MB_EUSAGE when the folder holds a state of another key (says what differs). Collective.
 * opt_source: the model folder, for delta and adapter files. */
mb_status mb_trainer_run(mb_comm *comm, mb_lm *lm, mb_objective *objective, mb_shard *shard,
                         const mb_trainer_options *options, const char *folder, const char *opt_source,
                         mb_trainer_report *out_report);

void mb_trainer_report_reset(mb_trainer_report *report);

/* Loss terms and gradients of all records of ONE micro-batch given as id arrays, without an optimiser step
 * (moe-inspect gradients). gradient [trained] is the caller's, in the host's memory. */
mb_status mb_trainer_gradients(mb_lm *lm, mb_objective *objective, const mb_microbatch *microbatch,
                               float *gradient, mb_objective_terms *out_terms);

/* The forecast alone, from an open model and shard. */
mb_status mb_trainer_forecast(const mb_comm *comm, mb_lm *lm, const mb_objective *objective, mb_shard *shard,
                              const mb_trainer_options *options,
                              mb_lm_memory memory[MB_TRAINER_MEMORY_KINDS]);

#endif
