/* tasks: multiple-choice questions -> scoring requests, by lm-evaluation-harness's rules.
 *
 * Layer: text.  Uses: base, records, tokenizer.
 * Source: EleutherAI/lm-evaluation-harness at 4e7e0d4 (task files arc, hellaswag, mmlu; api/task.py;
 * models/huggingface.py).
 */
#ifndef MB_TASKS_H
#define MB_TASKS_H

#include <stdbool.h>
#include <stdint.h>

#include "text/tokenizer.h"

typedef struct mb_task_question {
    char *context;  /* owned */
    char **choices; /* text scored after the context, without the delimiter; owned */
    int64_t choice_count;
    int64_t gold;
    int64_t doc_id;
    char *group; /* mmlu subject, NULL otherwise; owned */
} mb_task_question;

typedef struct mb_task {
    char *name; /* "arc_easy" */
    char *path; /* the file read */
    int64_t version;
    int64_t fewshot;
    bool has_acc_norm;
    bool has_acc_bytes;
    const char *delimiter; /* target_delimiter, " " */
    mb_task_question *questions;
    int64_t count;
    int64_t unconditional_count; /* requests left out: OLMo's without context (doc_id from 1000000 on) */
} mb_task;

/* kind: "arc_easy" | "arc_challenge" | "hellaswag" | "mmlu" | "choice" (any multiple-choice JSONL:
 * query|question|ctx, choices|options|endings, gold|answer|label|answerKey; a choices object {text:[],
 * label:[]} as ARC ships; when `query` is there it is the context as it stands) | "requests" (ready scoring
 * requests: doc_id/idx, request.context, request.continuation, label). path: JSONL/JSON/CSV file or folder
 * (mmlu: files <subject>_test.csv + <subject>_dev.csv, or JSONL with subject). fewshot: mmlu takes the first
 * n of dev; others 0 only, else MB_EUNSUPPORTED naming the requests form. limit <= 0: all; mmlu: per subject,
 * as the harness. A bad record, an answer that is no choice: MB_EDATA with file and line (nothing is left out
 * of an evaluation). A numeric answer counts from 0; without `query`, a question becomes "Question:
 * ..\nAnswer:" (its `passage` in front), ctx stands as it is. */
mb_status mb_task_open(const char *kind, const char *path, int64_t fewshot, int64_t limit,
                       mb_task **out_task);
void mb_task_close(mb_task **task);

/* One request = context + delimiter + choice -> ids of the context and of the continuation, by the harness's
 * rules (trailing spaces of the context move to the continuation; both tokenised separately: cont =
 * encode(ctx+cont)[len(encode(ctx)):]; BOS by the tokenizer's own default; empty context: BOS else EOS). Both
 * lists are emptied first. MB_EDATA: a choice that adds no token. */
mb_status mb_task_request(const mb_task *task, const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                          int64_t question, int64_t choice, mb_ids *context, mb_ids *continuation);
/* Denominators of acc_norm and acc_bytes: Unicode characters and UTF-8 bytes of a choice without the leading
 * space (0 for an empty one). */
void mb_task_choice_length(const mb_task *task, int64_t question, int64_t choice, int64_t *out_characters,
                           int64_t *out_bytes);

#endif
