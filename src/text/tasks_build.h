/* tasks_build: what the readers of task files share. For tasks*.c, and for measure/category,
 * whose files hold questions among other records.
 *
 * Layer: text.  Uses: base, tasks.
 */
#ifndef MB_TASKS_BUILD_H
#define MB_TASKS_BUILD_H

#include "base/json.h"
#include "text/tasks.h"

/* A task that grows. */
typedef struct mb_tasks_build {
    mb_task *task;
    int64_t capacity; /* of questions */
    int64_t limit;    /* <= 0: none */
} mb_tasks_build;

/* Begin a question with no choices yet; it is the last of task->questions. */
mb_status mb_tasks_build_question(mb_tasks_build *build, const char *context, int64_t doc_id);
/* Add a choice to the last question. */
mb_status mb_tasks_build_choice(mb_tasks_build *build, const char *text);
mb_status mb_tasks_build_choices(mb_tasks_build *build, const json_t *texts);
/* Set the gold choice of the last question from a letter, a number from 0, one of opt_labels, or a choice's
 * own text. */
mb_status mb_tasks_build_gold(mb_tasks_build *build, const json_t *answer, const json_t *opt_labels);

/* A string member. MB_EDATA when it is missing or no text. */
mb_status mb_tasks_build_text(const json_t *record, const char *name, const char **out_text);
/* First member of the list ("a|b") that is there and not null; NULL if none. */
const json_t *mb_tasks_build_member(const json_t *record, const char *names);

/* Called with each record of a file. *io_go_on may be set to false. */
typedef mb_status (*mb_tasks_build_record)(mb_tasks_build *build, const json_t *record, int64_t index,
                                           bool *io_go_on);
/* Read a file's records; a bad one is an error with its place (an evaluation does not leave questions out).
 * rows: CSV without header. */
mb_status mb_tasks_build_read(mb_tasks_build *build, const char *path, bool rows,
                              mb_tasks_build_record record);

/* In tasks_kinds.c. */
mb_status mb_tasks_kinds_arc(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on);
mb_status mb_tasks_kinds_hellaswag(mb_tasks_build *build, const json_t *record, int64_t index,
                                   bool *io_go_on);
mb_status mb_tasks_kinds_choice(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on);
mb_status mb_tasks_kinds_requests(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on);
/* Behind the last request: golds are checked, the leading space of continuations becomes the delimiter. */
mb_status mb_tasks_kinds_finish_requests(mb_tasks_build *build);

/* In tasks_mmlu.c. */
mb_status mb_tasks_mmlu_read(mb_tasks_build *build, const char *path, int64_t fewshot);

#endif
