/* merge_line: a question as a line of the unified file, and the keys that tell whether two are the same.
 *
 * Layer: stage.  Uses: merge_body, text (question), base.
 */
#ifndef MB_MERGE_LINE_H
#define MB_MERGE_LINE_H

#include "stage/merge_body.h"

typedef enum mb_merge_same {
    MB_MERGE_SAME_OPTIONS, /* text and options in any order */
    MB_MERGE_SAME_ORDER,   /* text and options in their order: what a question's id is */
    MB_MERGE_SAME_QUESTION /* the text alone */
} mb_merge_same;
mb_merge_same mb_merge_same_parse(const char *name); /* "options", "order", else "question" */
/* Hash of what must be equal, normalised. */
mb_status mb_merge_same_hash(const mb_question_body *body, mb_merge_same same, uint64_t *out_hash);
/* Hash of the right answers' texts, normalised, in any order. */
mb_status mb_merge_answer_hash(const mb_question_body *body, uint64_t *out_hash);

typedef struct mb_merge_origin {
    const char *source;
    int64_t source_index;
} mb_merge_origin;
/* Append the line. few_shot: a list, borrowed. out_id as in mb_question_hash. The line reads back
 * (mb_question_from_json). */
mb_status mb_merge_line_add(const mb_merge_body *body, const mb_merge_origin *origin, const json_t *few_shot,
                            mb_str *lines, char out_id[MB_QUESTION_ID]);
/* Append an object as a line, and give it back (json_decref); NULL is MB_ENOMEM. */
mb_status mb_merge_line_json(json_t *object, mb_str *lines);

#endif
