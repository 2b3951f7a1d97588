/* answers: what one model (one expert) answered to a set of questions, in one HDF5 file.
 *
 * Layer: store.  Uses: base, h5, outputs.
 *
 * File, format "moebatch-answers" version 1 (Q questions, C options of the question with most):
 *   /loglik f32 [Q, C]       log-likelihood of each option's continuation; NaN behind a question's own
 *                            options; all NaN for cloze
 *   /choice_prob f32 [Q, C]  softmax of it over the question's options (style texts: of loglik per byte)
 *   /picked i32 [Q]          single: the first of the likeliest by choice_prob; multiple: mask of the options
 *                            with at least half the probability of the likeliest; cloze: index into /texts
 *                            of the greedy answer (vote.h: mb_vote_pick)
 *   /right u8 [Q]            1: the whole answer is right
 *   /texts                   normalised cloze answers (text/answer_match), each once, in byte order
 *   /tokens i32 [Q]          tokens of the prompt
 *   /answer, /kind, /options, /chance, /id, /text_hash, /source, /source_names: as in outputs.h
 *   attributes: format, version, questions (hash), model (hash, with its adapter), tokenizer (hash), style
 *   ("letters", "texts"), few_shot
 */
#ifndef MB_ANSWERS_H
#define MB_ANSWERS_H

#include "store/outputs.h"

typedef struct mb_answers {
    int64_t questions, choices; /* Q, C (C >= 1) */
    float *loglik;              /* [Q, C] */
    float *choice_prob;         /* [Q, C] */
    int32_t *picked;            /* [Q] */
    uint8_t *right;             /* [Q] */
    int32_t *tokens;            /* [Q] */
    int32_t *answer;            /* [Q] */
    uint8_t *kind;              /* [Q] */
    int32_t *options;           /* [Q] */
    float *chance;              /* [Q] */
    uint64_t *text_hash;        /* [Q] */
    char **ids;                 /* [Q] */
    int32_t *source;            /* [Q] */
    char **source_names;        /* [sources] */
    int64_t sources;
    char **texts; /* [text_count] */
    int64_t text_count;
    char *questions_hash, *model_hash, *tokenizer_hash, *style;
    int64_t few_shot;
} mb_answers;

/* As in outputs.h. */
mb_status mb_answers_create(int64_t questions, int64_t choices, mb_answers **out_answers);
mb_status mb_answers_open(const char *path, mb_answers **out_answers);
void mb_answers_close(mb_answers **answers);
mb_status mb_answers_write(const mb_answers *answers, const char *path);

/* The answers of several experts as one table, without gate and latency. MB_EDATA names what differs:
 * questions, ids, style, few_shot. paths: for messages. */
mb_status mb_answers_join(const mb_answers *const *answers, const char *const *names,
                          const char *const *paths, int64_t experts, mb_outputs **out_outputs);

#endif
