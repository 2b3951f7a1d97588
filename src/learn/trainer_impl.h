/* trainer_impl: what the trainer's files share. Private to this folder.
 *
 * Layer: learn.  Uses: trainer, batches, optimiser, schedule, lanes, metrics.
 */
#ifndef MB_TRAINER_IMPL_H
#define MB_TRAINER_IMPL_H

#include "comm/lanes.h"
#include "comm/scatter.h"
#include "learn/batches.h"
#include "learn/optimiser.h"
#include "learn/schedule.h"
#include "learn/trainer.h"
#include "store/metrics.h"

/* In state/ of the run's folder; the trained values in trainer.h5. */
#define MB_TRAINER_STATE_PREFIX  "step_"
#define MB_TRAINER_STATE_VALUES  "/trained"
#define MB_TRAINER_STATE_CARRIED "/carried"

typedef struct mb_trainer_saver mb_trainer_saver;
typedef struct mb_trainer_validation mb_trainer_validation;

/* The passes of one micro-batch: models' passes and scratch, kept over the steps. */
typedef struct mb_trainer_passes {
    mb_lm *lm;
    mb_objective *objective;
    mb_arena *arena; /* of the host: batches, gradients of the objective */
    bool recompute;
    int64_t *loads; /* [routers, E'] where training adds the picks of its rows; NULL: nobody counts */
    mb_lm_pass *pass[MB_OBJECTIVE_MAX_PASSES];
} mb_trainer_passes;

/* A micro-batch as a part of something: what its terms are scaled by, and the picks of all of it (NULL: the
 * micro-batch stands alone). */
typedef struct mb_trainer_view {
    mb_microbatch microbatch;
    const int64_t *opt_picks;
} mb_trainer_view;

/* Records of one of my micro-batches in the step at hand. */
typedef struct mb_trainer_part {
    int64_t lane, number, records;
    mb_shard_record *record; /* [batch_size x records of a sample] */
    int64_t *sample;         /* the same */
} mb_trainer_part;

typedef struct mb_trainer_counts {
    int64_t targets, tokens, records, stops, saves;
} mb_trainer_counts;

/* Picks per expert (trainer_loads.c): of the last counted step, over all ranks. */
typedef struct mb_trainer_loads {
    int64_t routers, experts; /* experts = E' */
    int64_t *counts;          /* [routers, experts]; NULL: never counted */
    bool is_counted;          /* in the step at hand */
    char *names;              /* storage of the metrics' names */
    const char **name;        /* [routers] */
} mb_trainer_loads;

/* Weights with the lowest validation loss (trainer_weights.c); the same on all ranks. */
typedef struct mb_trainer_best {
    bool is_kept;
    double loss;  /* over all; INFINITY: none yet */
    int64_t step; /* -1: none yet */
} mb_trainer_best;

typedef struct mb_trainer {
    mb_comm *comm;
    mb_lm *lm;
    mb_params *params;
    mb_objective *objective;
    mb_shard *shard;
    const mb_trainer_options *options;
    const char *folder;

    mb_batches *batches;
    mb_transfer *transfer;
    mb_lanes *lanes;
    mb_optimiser *optimiser;
    mb_schedule schedule;
    mb_metrics *metrics;     /* rank 0 */
    mb_trainer_saver *saver; /* rank 0, from its first checkpoint on */
    mb_trainer_passes passes;
    mb_trainer_loads loads;
    mb_trainer_validation *validation; /* NULL: none is asked for */
    mb_trainer_best best;
    /* My lanes: lane_first, lane_first + lane_stride, ...: contiguous under ZeRO-1, dealt under ZeRO-2 and
       3. */
    int64_t lane_total, lane_first, lane_stride, lane_count;
    mb_scatter *scatter; /* ZeRO-2 and 3: gradients by block; NULL: whole ones in lanes */
    mb_params_sink sink;

    mb_arena *step_arena;   /* tokens of the step's records */
    mb_trainer_part *parts; /* [room for my micro-batches] */
    int64_t part_count;
    double *lane_terms; /* [lane_count, terms]; with scatter [waves, terms] */
    double *terms;      /* [terms] of the last step, over all ranks */
    double norm;

    int64_t step;            /* done */
    bool is_resumed;         /* there was a state to go on from */
    int64_t tokens, records; /* of all steps done */
    double loss_sum;         /* of the epoch at hand */
    int64_t loss_steps;
    char *settings, *environment;
    double started, saved;                                                  /* clock */
    double step_seconds, save_seconds, weights_seconds, validation_seconds; /* the longest so far */
    double routing_seconds, routing_share;   /* of the last step's routing-only pass, and its share of it */
    double all_routing_seconds, all_seconds; /* of all steps of this run */
    int64_t first_tokens;                    /* tokens before this run */
    mb_lm_memory memory[MB_TRAINER_MEMORY_KINDS];
} mb_trainer;

/* trainer_passes.c */
mb_status mb_trainer_passes_create(mb_lm *lm, mb_objective *objective, mb_trainer_passes *out_passes);
void mb_trainer_passes_destroy(mb_trainer_passes *passes);
/* Forward, loss, backward of one micro-batch into the bound gradient. */
mb_status mb_trainer_passes_train(mb_trainer_passes *passes, const mb_microbatch *microbatch,
                                  mb_objective_terms *out_terms);
/* Forward and loss without gradients and dropout: the terms of the same records under each of n views. */
mb_status mb_trainer_passes_validate(mb_trainer_passes *passes, const mb_trainer_view *views, int64_t n,
                                     mb_objective_terms *out_terms);
/* The objective's routing-only pass; adds the picks to picks [routers, E']. */
mb_status mb_trainer_passes_route(mb_trainer_passes *passes, const mb_microbatch *microbatch, int64_t *picks);

/* trainer_step.c */
mb_status mb_trainer_step_create(mb_trainer *trainer); /* parts, terms, arenas */
void mb_trainer_step_destroy(mb_trainer *trainer);
/* ZeRO-2 and 3: where gradients go. */
mb_status mb_trainer_step_create_scatter(mb_trainer *trainer);
/* Read my records of the next step; counts over all ranks. Collective. */
mb_status mb_trainer_step_read(mb_trainer *trainer, const mb_batches_step *taken, mb_trainer_counts *counts);
/* The step itself; counts as read gave them. Collective. */
mb_status mb_trainer_step_run(mb_trainer *trainer, const mb_batches_step *taken,
                              const mb_trainer_counts *counts);
/* A record of a shard into the arena, cut to max_length (0: not). */
mb_status mb_trainer_step_copy(mb_shard *shard, int64_t record, int64_t max_length, mb_arena *arena,
                               mb_shard_record *out_record);

/* trainer_loads.c: picks per expert, counted in the steps where somebody wants them. begin: before a step's
 * passes. finish: after its update: the sum over all ranks, and the routers' biases moved by it; collective.
 */
mb_status mb_trainer_loads_create(mb_trainer *trainer);
void mb_trainer_loads_destroy(mb_trainer *trainer);
void mb_trainer_loads_begin(mb_trainer *trainer);
mb_status mb_trainer_loads_finish(mb_trainer *trainer);
/* Of a step that was counted: how uneven each router is; returns their number, at most routers + 1. */
int64_t mb_trainer_loads_metrics(const mb_trainer *trainer, mb_metric *room);

/* trainer_validate.c: all collective but destroy, is_due and report. */
mb_status mb_trainer_validate_create(mb_trainer *trainer); /* nothing without options->opt_validation */
void mb_trainer_validate_destroy(mb_trainer *trainer);
/* After trainer->step steps: does the plan ask for one? */
bool mb_trainer_validate_is_due(const mb_trainer *trainer, bool is_epoch_end);
/* Run it and write its line of metrics. MB_ESTOPPED: given up between two micro-batches. */
mb_status mb_trainer_validate_run(mb_trainer *trainer);
/* The one of the step this run begins at, where it is due and not there yet. */
mb_status mb_trainer_validate_catch_up(mb_trainer *trainer);
/* Rank 0, at the end: from all lines of the run into the report, and as a table into the log. */
mb_status mb_trainer_validate_report(const mb_trainer *trainer, mb_trainer_report *report);

/* trainer_weights.c: all collective but prune. */
/* Once it is known where the run goes on: is the best kept, and which is it so far? */
mb_status mb_trainer_weights_begin(mb_trainer *trainer);
/* epoch_<epoch + 1>, and with is_last the link final. */
mb_status mb_trainer_weights_epoch(mb_trainer *trainer, int64_t epoch, bool is_last);
/* After a validation with this loss over all: best_<step> and the link best, where it is the lowest. */
mb_status mb_trainer_weights_best(mb_trainer *trainer, double loss);
/* Rank 0, once a state after `saved` steps is on the disk: earlier bests are not needed any more. */
mb_status mb_trainer_weights_prune(mb_trainer *trainer, int64_t saved);

/* trainer_memory.c: forecast and what was used, the most of any rank. Collective. */
mb_status mb_trainer_memory_measure(mb_trainer *trainer);

/* trainer_save.c: a checkpoint to resume from, as the trainer stands. Not awaited, with
 * training.async_save, it returns once a copy is taken, and a failure of the write is that of a later
 * check, wait or run. Collective. */
mb_status mb_trainer_save_run(mb_trainer *trainer, bool is_awaited);
/* Did a write beside the steps fail since? Looks only, at no cost; rank 0 (MB_OK elsewhere). */
mb_status mb_trainer_save_check(mb_trainer *trainer);
/* Until nothing is being written any more. Collective. */
mb_status mb_trainer_save_wait(mb_trainer *trainer);
void mb_trainer_save_destroy(mb_trainer *trainer); /* waits too */
/* Bytes of the copy on rank 0; 0: checkpoints are written between the steps. */
int64_t mb_trainer_save_copy_bytes(const mb_trainer_options *options, int64_t trained, int ranks);
/* The same now, as far as it was needed. */
int64_t mb_trainer_save_used_bytes(const mb_trainer *trainer);

/* trainer_resume.c */
mb_status mb_trainer_resume_describe(mb_trainer *trainer); /* settings, environment */
mb_status
mb_trainer_resume_read(mb_trainer *trainer); /* collective; nothing to resume from: nothing changes */

#endif
