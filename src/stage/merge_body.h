/* merge_body: one question of a benchmark while it is read: what is asked, its options, which are right.
 *
 * Layer: stage.  Uses: text (question), base.
 *
 * Texts lose the white space around them. Messages name the member, not the place in the file. All errors of
 * a record are MB_EDATA.
 */
#ifndef MB_MERGE_BODY_H
#define MB_MERGE_BODY_H

#include "text/question.h"

/* Zeroed at first; reused after mb_merge_body_reset. */
typedef struct mb_merge_body {
    mb_question_kind kind;
    mb_str text; /* a passage in front, with a blank line between */
    mb_str option[MB_QUESTION_MAX_OPTIONS];
    int option_count;
    uint32_t answer_mask;
    json_t *accepted; /* cloze: array of texts, the answer first */
    mb_str subject;   /* "" where there is none */
} mb_merge_body;

void mb_merge_body_reset(mb_merge_body *body);
void mb_merge_body_destroy(mb_merge_body *body);

/* What is asked. Neither text may be anything but text; a passage may be NULL, null or empty. */
mb_status mb_merge_body_ask(mb_merge_body *body, const json_t *opt_passage, const json_t *question);
mb_status mb_merge_body_subject(mb_merge_body *body, const json_t *opt_subject);
/* One more option. */
mb_status mb_merge_body_option(mb_merge_body *body, const json_t *text);
/* A list of texts. */
mb_status mb_merge_body_options(mb_merge_body *body, const json_t *list);
/* Leave out the letters that stand in front of options: "(A)", "A.", "A " ..., of the ones in parentheses
 * each by itself, of the others when every option has its own. */
mb_status mb_merge_body_unletter(mb_merge_body *body);
/* Which options are right: a letter ("B", "(b)"), one of labels (a list, one for each option), a number (a
 * JSON number or its digits; the first option's is `first`), or an option's own text; or a list of these:
 * several options may be right, also where the list has one. Numbers come before texts. */
mb_status mb_merge_body_answer(mb_merge_body *body, const json_t *value, const json_t *opt_labels, int first);
/* The right option by its text alone. */
mb_status mb_merge_body_answer_text(mb_merge_body *body, const json_t *value);
/* Cloze: the text, or the list of all texts, that are accepted. */
mb_status mb_merge_body_cloze(mb_merge_body *body, const json_t *value);
/* Is all there: 2 to 10 options, a right one, none that is right of the same text as a wrong one; or a text.
 * */
mb_status mb_merge_body_check(const mb_merge_body *body);

/* Append question, options, answer (and answers) to an object. */
mb_status mb_merge_body_json(const mb_merge_body *body, json_t *object);
/* As the functions of questions take it; borrowed. */
void mb_merge_body_view(const mb_merge_body *body, mb_question_body *out_body);

#endif
