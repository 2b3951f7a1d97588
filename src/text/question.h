/* question: a file of questions in one form whatever benchmark they come from, and the texts that models get
 * of them.
 *
 * Layer: text.  Uses: base, records, answer_match.
 * Source: the letters' prompt is that of Hendrycks et al. (2021) MMLU, "Measuring massive multitask language
 * understanding", appendix; texts behind "Answer:" that of Brown et al. (2020), section 2.4.
 *
 * A file is JSON lines (gzip too), one object each:
 *   id            16 hexadecimal digits: hash of the normalised question and options (mb_question_hash)
 *   source        which benchmark; source_index: place in its file; subject: where the benchmark has them
 *   kind          single: one option is right; multiple: a list of options is; cloze: a text is
 *   question      a passage it is about stands in front, with a blank line between
 *   options       2 to 10 texts; [] for cloze
 *   answer        single: index from 0; multiple: list of indices; cloze: text, all that are accepted in
 *                 answers
 *   few_shot      solved examples {question, options, answer}, of the same kind
 *   chance        expected share of right answers by guessing: 1/n; multiple 1/(2^n - 1); cloze 0
 * Normalised: mb_answer_match_text (letters folded, white space collapsed, marks at the end left out).
 */
#ifndef MB_QUESTION_H
#define MB_QUESTION_H

#include <stdint.h>

#include "base/json.h"
#include "base/str.h"

enum { MB_QUESTION_MAX_OPTIONS = 10, MB_QUESTION_ID = 17 };

typedef enum mb_question_kind {
    MB_QUESTION_SINGLE,
    MB_QUESTION_MULTIPLE,
    MB_QUESTION_CLOZE
} mb_question_kind;
enum { MB_QUESTION_KINDS = 3 };
const char *mb_question_kind_name(mb_question_kind kind); /* "single", "multiple", "cloze" */

/* What a question and its solved examples share; texts are borrowed. */
typedef struct mb_question_body {
    const char *text;
    const char *options[MB_QUESTION_MAX_OPTIONS];
    int option_count;     /* 0 for cloze */
    uint32_t answer_mask; /* bit i: option i is right */
    const char *answer;   /* cloze: the first accepted text; NULL otherwise */
} mb_question_body;

typedef struct mb_question {
    mb_question_body body;
    mb_question_kind kind;
    char id[MB_QUESTION_ID];
    const char *source;
    const char *opt_subject;
    int64_t source_index;
    int answer; /* single: the option; else -1 */
    double chance;
    const json_t *accepted;           /* cloze: array of texts; else NULL */
    const mb_question_body *few_shot; /* [few_shot_count] */
    int64_t few_shot_count;
} mb_question;

typedef struct mb_questions mb_questions;
/* Read a file. Errors: MB_ENOTFOUND, MB_EIO; MB_EDATA with file and line: a member that is missing or of the
 * wrong type, 1 or more than 10 options, an answer that is no option, an id that is not the content's, an id
 * that stood there before. */
mb_status mb_questions_open(const char *path, mb_questions **out_questions);
void mb_questions_close(mb_questions **questions);
int64_t mb_questions_count(const mb_questions *questions);
const mb_question *mb_questions_at(const mb_questions *questions, int64_t i); /* borrowed */
const char *mb_questions_path(const mb_questions *questions);
/* Content of all questions in their order. */
void mb_questions_hash(const mb_questions *questions, char out_text[33]);

/* One object; strings are borrowed from it, few_shot is owned by the question (mb_question_reset). Messages
 * name the member, not the place. */
mb_status mb_question_from_json(const json_t *object, mb_question *out_question);
void mb_question_reset(mb_question *question);
/* Hash of normalised question and options as the member `id` has it, whatever id the question has now. */
mb_status mb_question_hash(const mb_question_body *body, char out_id[MB_QUESTION_ID]);
/* 64 bits of the normalised question alone, without options: what two data sets share. */
mb_status mb_question_text_hash(const mb_question *question, uint64_t *out_hash);

/* How options are put to a model. */
typedef enum mb_question_style {
    MB_QUESTION_LETTERS, /* listed as "A. ..", answered by a letter */
    MB_QUESTION_TEXTS    /* not listed, answered by an option's text */
} mb_question_style;
mb_status mb_question_style_parse(const char *name, mb_question_style *out_style); /* "letters", "texts" */
const char *mb_question_style_name(mb_question_style style);

/* Append what a model gets: up to few_shot solved examples, each followed by a blank line, then
 *   "Question: <text>\n", in letters "A. <option>\n" for each, and "Answer:". */
mb_status mb_question_prompt(const mb_question *question, mb_question_style style, int64_t few_shot,
                             mb_str *text);
/* Append how it goes on for option i: " A", or " <option>". */
mb_status mb_question_choice(const mb_question_body *body, mb_question_style style, int i, mb_str *text);
/* Append the right answer as a model should give it: " B"; " A, C" (texts: joined by "; "); cloze " <text>".
 * */
mb_status mb_question_solution(const mb_question *question, mb_question_style style, mb_str *text);

#endif
