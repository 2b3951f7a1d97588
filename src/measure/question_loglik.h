/* question_loglik: how likely a model finds every option of the questions of a file.
 *
 * Layer: measure.  Uses: comm, text (question, tasks), store (h5), model, choice.
 *
 * An option is scored by the rules of choice.h: the prompt is the context, " B" or " <option>" goes on from
 * it. A part is a run of consecutive questions, cut by their prompts' tokens alone; ranks take parts from a
 * queue, compute each by themselves and write it aside, flushed and renamed, so that a run that is stopped
 * does only what is missing, and nothing depends on how many ranks there are.
 * Part files: <folder>/<key>-options-<first>-<end>.h5, format "moebatch-question-part" version 1:
 *   /loglik f32 [end - first, C]   NaN behind a question's own options, and for cloze
 */
#ifndef MB_QUESTION_LOGLIK_H
#define MB_QUESTION_LOGLIK_H

#include "comm/comm.h"
#include "model/lm.h"
#include "text/question.h"
#include "text/tokenizer.h"

typedef struct mb_question_loglik_options {
    mb_question_style style;
    int64_t few_shot;    /* solved examples in front, at most */
    int64_t limit;       /* the first questions only; 0: all */
    int64_t max_length;  /* longer requests are cut from the left; 0: the model's positions */
    int64_t tile_tokens; /* computed together */
    mb_dtype softmax_dtype;
} mb_question_loglik_options;

typedef struct mb_question_loglik mb_question_loglik;

/* Prompts are made into tokens, parts are cut. All is borrowed until close. key: what the numbers depend on;
 * the same on all ranks. */
mb_status mb_question_loglik_open(const mb_questions *questions, const mb_tokenizer *tokenizer,
                                  const mb_question_loglik_options *options, const char *folder,
                                  const char *key, mb_question_loglik **out_loglik);
void mb_question_loglik_close(mb_question_loglik **loglik);
int64_t mb_question_loglik_count(const mb_question_loglik *loglik);         /* Q */
int64_t mb_question_loglik_choices(const mb_question_loglik *loglik);       /* C: most options, at least 1 */
int64_t mb_question_loglik_parts(const mb_question_loglik *loglik);         /* that have options to score */
const int32_t *mb_question_loglik_tokens(const mb_question_loglik *loglik); /* [Q] of the prompts. Borrowed */

/* Make the missing parts. Collective. *out_skipped: parts of a run before this one. MB_EDATA: an option
 * longer than the model takes, or one that adds no token; MB_ENUMERIC: a log-likelihood is no number;
 * MB_ESTOPPED when the stop flag is set: finished parts stay. */
mb_status mb_question_loglik_run(mb_comm *comm, mb_lm *lm, const mb_question_loglik *loglik,
                                 int64_t *out_skipped);
/* One rank, when all parts are there: loglik [Q, C]. MB_EFORMAT: a part is damaged. */
mb_status mb_question_loglik_read(const mb_question_loglik *loglik, float *out_loglik);

#endif
