/* question_answers: from log-likelihoods of options and greedy texts to a table of answers, and what it is
 * worth.
 *
 * Layer: stage.  Uses: text (question, answer_match), store (answers), choose (vote: picks), measure
 * (bootstrap).
 */
#ifndef MB_QUESTION_ANSWERS_H
#define MB_QUESTION_ANSWERS_H

#include "store/answers.h"
#include "text/answer_match.h"
#include "text/question.h"

/* A table of the first `count` questions, unanswered: ids, kinds, right answers, chances, sources (by their
 * first question), hashes, style and few_shot. choices: C; tokens [count] of the prompts. The hash of the
 * questions is the file's, or with fewer of them one of hash and count. */
mb_status mb_question_answers_create(const mb_questions *questions, int64_t count, int64_t choices,
                                     const int32_t *tokens, mb_question_style style, int64_t few_shot,
                                     mb_answers **out_answers);
/* loglik [count, C] of the options: copied; choice_prob, picked and right follow as answers.h says. */
void mb_question_answers_pick(const mb_questions *questions, const float *loglik, mb_answers *answers);
/* texts [count]: what was generated, NULL: nothing (other kinds, and prompts that are too long). Normalised
 * by `match` (number: the last number where there is one) they become the table's, and are right when they
 * match one of the accepted answers. MB_EDATA: accepted answers without a number where numbers are matched.
 */
mb_status mb_question_answers_texts(const mb_questions *questions, const char *const *texts,
                                    mb_answer_match match, mb_answers *answers);

/* One question's: probabilities of its options, the softmax of their log-likelihoods, by_byte: per byte of
 * the option's text (out_prob [option_count], others untouched); a generated text normalised by `match` (the
 * caller frees it); whether it matches one of the accepted answers. */
void mb_question_answers_prob(const mb_question_body *body, bool by_byte, const float *loglik,
                              float *out_prob);
mb_status mb_question_answers_normal(const char *text, mb_answer_match match, char **out_text);
mb_status mb_question_answers_judge(const mb_question *question, const char *text, mb_answer_match match,
                                    bool *out_is_right);

/* Shares of the questions answered right, of all, of each source, and of each kind there is. */
typedef struct mb_question_answers_row {
    char *name; /* "all", "source/<name>", "kind/<name>" */
    int64_t questions;
    double accuracy, low, high; /* interval of the bootstrap over the questions */
    double chance;              /* mean chance of being right by guessing */
} mb_question_answers_row;
typedef struct mb_question_answers_summary {
    mb_question_answers_row *row; /* [count], the first is "all" */
    int64_t count;
} mb_question_answers_summary;
mb_status mb_question_answers_summarise(const mb_answers *answers, int64_t draws, int64_t seed, double level,
                                        mb_question_answers_summary *out_summary);
void mb_question_answers_summary_reset(mb_question_answers_summary *summary);

#endif
