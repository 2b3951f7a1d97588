/* category: what one model does on one file of records, record by record, rank-independent.
 *
 * Layer: measure.  Uses: comm, text (template, tasks, answer_match), store (shard_maker), model, choice.
 *
 * A record has one of three kinds, by its fields:
 *   choice  choices, options or endings, with what is asked and the right one (tasks.h, "choice"): right when
 *           the right choice is the likeliest; its loss is that of the right choice
 *   answer  a dialog that ends with an answer (all forms of dialog.h, and prompt with answer, response or
 *           completion): its loss is that of its answers' tokens, laid out by the template as a token shard
 *           has them; whether the model's own answer is right is for who generates it (prompt, expected)
 *   text    anything else: the loss of all tokens but the first
 */
#ifndef MB_CATEGORY_H
#define MB_CATEGORY_H

#include "comm/comm.h"
#include "model/lm.h"
#include "store/shard_build.h"
#include "text/answer_match.h"

typedef enum mb_category_kind { MB_CATEGORY_TEXT, MB_CATEGORY_ANSWER, MB_CATEGORY_CHOICE } mb_category_kind;

/* What makes a choice the likeliest: the sum of its tokens' log-probabilities, or that per character, or per
 * byte. */
typedef enum mb_category_by {
    MB_CATEGORY_BY_SUM,
    MB_CATEGORY_BY_CHARACTER,
    MB_CATEGORY_BY_BYTE
} mb_category_by;

typedef struct mb_category_file {
    const char *name, *path;
    const char *opt_form, *opt_fields; /* as dataset.form and dataset.fields */
    mb_answer_match match;             /* expected answers are checked for it */
    int64_t limit;                     /* the first records only; 0: all */
} mb_category_file;

typedef struct mb_category mb_category;

/* Reads the file whole. build: tokenizer_path, append_eos and loss_on count; the strings of `file` are
 * borrowed until close. MB_EDATA names line and fault of a bad record: an evaluation leaves none out. */
mb_status mb_category_open(const mb_category_file *file, const mb_shard_build_options *build,
                           const mb_template *tmpl, mb_category **out_category);
void mb_category_close(mb_category **category);

int64_t mb_category_count(const mb_category *category);                        /* records N */
int64_t mb_category_kinds(const mb_category *category, mb_category_kind kind); /* how many are of it */
mb_category_kind mb_category_kind_get(const mb_category *category, int64_t record);
/* Of an answer: the text up to where the model is to go on (the last answer left out), and that answer.
 * NULL for other kinds, and for dialogs that end with a tool call. Borrowed. */
const char *mb_category_prompt(const mb_category *category, int64_t record, size_t *out_length);
const char *mb_category_expected(const mb_category *category, int64_t record, size_t *out_length);

typedef struct mb_category_result {
    int64_t records; /* N */
    uint8_t *kind;   /* [N] mb_category_kind */
    uint64_t *hash;  /* [N] of the record's bytes in the file */
    double *nll;     /* [N] sum over target tokens; 0 without any */
    int64_t *tokens; /* [N] targets */
    double *correct; /* [N] 1, 0, or NaN: not judged (all but choices, until they are) */
    /* What the forwards over texts and answers took, all ranks together (choices not counted): */
    int64_t forward_tokens;
    double forward_seconds; /* of the slowest rank; 0: there were none */
    double context;         /* mean number of tokens that a token of theirs attends to */
} mb_category_result;
mb_status mb_category_result_create(int64_t records, mb_category_result *out_result);
void mb_category_result_reset(mb_category_result *result);

typedef struct mb_category_options {
    int64_t max_length;  /* longer records are cut; 0: the model's positions */
    int64_t tile_tokens; /* computed together */
    mb_category_by by;
    bool warm_up; /* compute the first tile once before the clock starts */
} mb_category_options;

/* Collective; the same on every rank, and the same bits for any number of them (but for the seconds).
 * MB_ENUMERIC: a loss is no number. MB_ESTOPPED when the stop flag is set. */
mb_status mb_category_score(mb_comm *comm, mb_lm *lm, const mb_category *category,
                            const mb_category_options *options, mb_category_result *out_result);

/* Figures of all records together. */
typedef struct mb_category_summary {
    int64_t records, tokens, judged;
    double perplexity;                /* exp of the mean loss per token; NaN without tokens */
    double accuracy, accuracy_stderr; /* over the judged; NaN without any (the error: below two) */
} mb_category_summary;
mb_category_summary mb_category_summarise(const mb_category_result *result);

#endif
