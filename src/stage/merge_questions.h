/* merge_questions: files of questions as modes split, without and records read them, and texts as they write
 * them.
 *
 * Layer: stage.  Uses: text (question), program, base.
 */
#ifndef MB_MERGE_QUESTIONS_H
#define MB_MERGE_QUESTIONS_H

#include "stage/program.h"
#include "text/question.h"

/* The file that questions.path means: itself, or questions.jsonl of a folder. *out_path: mb_free. MB_EUSAGE:
 * no path; MB_ENOTFOUND. */
mb_status mb_merge_questions_find(const char *path, char **out_path);
/* Every question of a file in order, with its line (without line end). */
typedef mb_status (*mb_merge_questions_take)(void *own, int64_t i, const mb_question *question,
                                             const char *line, size_t length);
mb_status mb_merge_questions_each(const mb_questions *questions, mb_merge_questions_take take, void *own);
/* Write a text to a file of output.dir. */
mb_status mb_merge_questions_write(const mb_program *program, const char *name, const mb_str *text);
/* counts[key] + n. */
mb_status mb_merge_questions_count(json_t *counts, const char *key, int64_t n);

#endif
