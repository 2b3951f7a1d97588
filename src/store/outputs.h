/* outputs: what each of several experts answered to each question of one set, in one HDF5 file that the gate,
 * the subset search and the report read.
 *
 * Layer: store.  Uses: base, h5.
 *
 * File, format "moebatch-outputs" version 1 (Q questions, X experts, C options of the question with most):
 *   /choice_prob f32 [Q, X, C]  softmax over the question's own options; NaN behind them; all NaN for cloze,
 *                               and where an expert gave no answer
 *   /picked i32 [Q, X]          single: the option; multiple: mask of the options; cloze: index into /texts;
 *                               -1: no answer (single and multiple follow from choice_prob: vote.h)
 *   /right u8 [Q, X]            1: the whole answer is right
 *   /answer i32 [Q]             single: the option; multiple: the mask; cloze: -1
 *   /kind u8 [Q]                0 single, 1 multiple, 2 cloze
 *   /options i32 [Q]            options of the question, 0 for cloze
 *   /chance f32 [Q]             chance of being right by guessing
 *   /gate_logits f32 [Q, X]     absent before there is a gate; divided by the gate's temperature, so that
 *                               their softmax is its calibrated weight of every expert
 *   /latency f32 [Q, X]         seconds, absent unless measured
 *   /id [Q]                     the questions' ids
 *   /text_hash u64 [Q]          of the normalised question text alone (without options)
 *   /source i32 [Q], /source_names, /expert_names [X]
 *   /texts                      normalised cloze answers, each once, in byte order
 *   attributes: format, version, questions (hash), models (JSON list of X hashes), style, few_shot,
 *   gate (hash; absent without /gate_logits)
 * Equal inputs give a file of equal content (moe-inspect file --hash).
 */
#ifndef MB_OUTPUTS_H
#define MB_OUTPUTS_H

#include "base/str.h"

/* As text/question.h has them. */
enum { MB_OUTPUTS_SINGLE = 0, MB_OUTPUTS_MULTIPLE = 1, MB_OUTPUTS_CLOZE = 2 };
enum { MB_OUTPUTS_OPTIONS = 31 }; /* of a question at most: a mask fits an int32_t */

/* Everything in memory, owned; arrays row-major, strings 0-terminated. */
typedef struct mb_outputs {
    int64_t questions, experts, choices; /* Q, X, C (C >= 1) */
    float *choice_prob;                  /* [Q, X, C] */
    int32_t *picked;                     /* [Q, X] */
    uint8_t *right;                      /* [Q, X] */
    int32_t *answer;                     /* [Q] */
    uint8_t *kind;                       /* [Q] */
    int32_t *options;                    /* [Q] */
    float *chance;                       /* [Q] */
    float *opt_gate_logits;              /* [Q, X], NULL: no gate yet */
    float *opt_latency;                  /* [Q, X], NULL: not measured */
    uint64_t *text_hash;                 /* [Q] */
    char **ids;                          /* [Q] */
    int32_t *source;                     /* [Q] into source_names */
    char **source_names;                 /* [sources] */
    int64_t sources;
    char **expert_names; /* [X] */
    char **texts;        /* [text_count] */
    int64_t text_count;
    char *questions_hash;
    char **model_hashes; /* [X] */
    char *style;
    int64_t few_shot;
    char *opt_gate_hash; /* NULL: no gate yet */
} mb_outputs;

/* Read all of it, checked: sizes agree, kinds, options (<= C), picks and answers are in their range, an id
 * stands once. MB_ENOTFOUND, MB_EFORMAT (names the dataset and the question), MB_EUNSUPPORTED (version). */
mb_status mb_outputs_open(const char *path, mb_outputs **out_outputs);
/* Empty (zeroed) arrays of these sizes: choice_prob NaN, picked and answer -1; strings NULL, to be filled by
 * the caller. */
mb_status mb_outputs_create(int64_t questions, int64_t experts, int64_t choices, mb_outputs **out_outputs);
void mb_outputs_close(mb_outputs **outputs);
/* The same checks (MB_EDATA), then written beside and renamed. */
mb_status mb_outputs_write(const mb_outputs *outputs, const char *path);

/* Some of the questions (rows, in this order) and of the experts (columns): a new table. Latency and gate
 * logits are kept, the latter only with all experts (a gate over others is another gate). */
mb_status mb_outputs_take(const mb_outputs *outputs, const int64_t *questions, int64_t question_count,
                          const int64_t *experts, int64_t expert_count, mb_outputs **out_outputs);
/* Place of an expert by name; MB_ENOTFOUND lists the names there are. */
mb_status mb_outputs_expert(const mb_outputs *outputs, const char *name, int64_t *out_expert);

#endif
