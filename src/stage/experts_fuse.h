/* experts_fuse: what experts answered to the questions of a run, each question fused as soon as its
 * answers are there.
 *
 * Layer: stage.  Uses: text (question, answer_match), choose (vote), serve (experts_ask), store (answers,
 * outputs), question_answers, experts_options.
 *
 * Probabilities, picks and what is right are those of answers.h, so that the run's table of outputs is the
 * one that moe-gate apply makes of the same experts' evaluations.
 */
#ifndef MB_EXPERTS_FUSE_H
#define MB_EXPERTS_FUSE_H

#include "serve/experts_ask.h"
#include "stage/experts_options.h"
#include "stage/question_answers.h"

/* One expert on one question, in seconds on the gate's clock; NaN: not measured. */
typedef struct mb_experts_cell {
    mb_experts_outcome outcome; /* MB_EXPERTS_WAITING: not asked */
    double sent;                /* since the run began; NaN: never */
    double held;                /* at the gate, before it was sent */
    double round_trip;          /* sent to settled */
    double queue, compute;      /* at the expert, on its clock */
    double transfer;            /* the round trip without those two */
    int32_t batch, tokens;
} mb_experts_cell;

typedef struct mb_experts_row {
    bool is_done;  /* fused */
    int32_t fused; /* as outputs.h's picked; cloze: 0 with a text; -1: no answer */
    char *text;    /* cloze: the fused answer, normalised */
    double began, embed, gate, fuse,
        total; /* began: since the run did. embed, gate: of its questions together */
} mb_experts_row;

typedef struct mb_experts_table {
    const mb_questions *questions;
    const mb_experts_plan *plan;
    int64_t count, experts, choices; /* Q, X, C */
    double began;                    /* by mb_clock_seconds */
    mb_answers *fused;               /* columns of the questions; right: of the fused answers */
    float *logits;                   /* [Q, X] of the gate */
    float *loglik;                   /* [X, Q, C] */
    char **texts;                    /* [X, Q] generated; NULL: none */
    mb_experts_cell *cell;           /* [Q, X] */
    mb_experts_row *row;             /* [Q] */
    int32_t *picked;                 /* [X] of the question that is fused */
    uint8_t *right;                  /* [X] */
    float *prob;                     /* [X, C] */
    char **normal;                   /* [X] */
    int64_t *members;                /* [X] */
} mb_experts_table;

/* The first `count` questions; both are borrowed. MB_EDATA: an accepted answer that cannot be matched. */
mb_status mb_experts_fuse_create(const mb_questions *questions, int64_t count, const mb_experts_plan *plan,
                                 int64_t few_shot, mb_experts_table **out_table);
void mb_experts_fuse_destroy(mb_experts_table **table);

/* The answers of a settled question go over into the table (logits are there) and are fused. */
mb_status mb_experts_fuse_run(mb_experts_table *table, mb_experts_question *question);

/* Everything as one table of outputs, once all questions are fused. hashes [X]: of the models. */
mb_status mb_experts_fuse_outputs(const mb_experts_table *table, const char *const *hashes,
                                  const char *gate_hash, mb_outputs **out_outputs);

#endif
