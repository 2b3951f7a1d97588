/* choice: multiple-choice accuracy by lm-evaluation-harness's rules, and its result files.
 *
 * Layer: measure.  Uses: comm, text (tasks), model.
 * Source: reference rules of lm-evaluation-harness at 4e7e0d4: evaluator.py, api/metrics.py,
 * models/huggingface.py.
 */
#ifndef MB_CHOICE_H
#define MB_CHOICE_H

#include "comm/comm.h"
#include "model/lm.h"
#include "text/tasks.h"

typedef struct mb_choice_question {
    double *loglik;                            /* [choices] sum over the continuation's tokens */
    bool *is_greedy;                           /* [choices] */
    int64_t picked, picked_norm, picked_bytes; /* the first of the best: by loglik, per character, per byte */
    bool is_near_tie;                          /* best two by loglik within near_tie */
} mb_choice_question;

/* Shares of questions answered right and the standard errors of these means (sample standard deviation / sqrt
 * n; NaN for one question). */
typedef struct mb_choice_result {
    int64_t count;
    double acc, acc_stderr, acc_norm, acc_norm_stderr, acc_bytes, acc_bytes_stderr;
    int64_t near_ties;
    int64_t inputs;        /* forward passes' segments: requests that share all but the last token are one */
    char request_hash[33]; /* of all request token ids in order */
    mb_choice_question *questions; /* [count] */
} mb_choice_result;
void mb_choice_result_reset(mb_choice_result *result);

/* Score every choice of every question: inputs (context and continuation but its last token) sorted by
 * -length, packed into tiles of tile_tokens; a question's requests with one input are scored by one pass over
 * it. max_length: model length; longer inputs are cut from the left; MB_EDATA when a continuation alone is
 * longer. softmax_dtype: MB_F32, or MB_BF16 (log-probabilities and their sums rounded as a bf16 model of the
 * harness gives them, so that its exact ties are there too). A task without a name has no progress line: its
 * caller's does. Collective; the same on every rank and for any number of them. */
mb_status mb_choice_run(mb_comm *comm, mb_lm *lm, const mb_task *task, const mb_tokenizer *tokenizer,
                        int64_t max_length, int64_t tile_tokens, mb_dtype softmax_dtype, double near_tie,
                        mb_choice_result *out_result);

/* One task's entries in the harness's result shape, into `results`: objects results, groups, group_subtasks,
 * configs, versions, n-shot, higher_is_better, n-samples, made when they are not there; and two of ours,
 * near_ties {task: [doc_id]} and request_hash {task: hash}. A task whose questions have groups (mmlu) becomes
 * tasks <name>_<group>, and groups <name>_<category> (MMLU's four) and <name>: document-weighted means,
 * pooled stderr. Numbers that cannot be computed are "N/A". */
mb_status mb_choice_add_json(const mb_task *task, const mb_choice_result *result, json_t *results);
/* samples_<task>.jsonl lines with the harness's fields; doc holds query, choices, gold (and group), which
 * doc_hash is of. */
mb_status mb_choice_write_samples(const mb_task *task, const mb_choice_result *result, const char *path);

#endif
