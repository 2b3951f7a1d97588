/* merge_without: moe-merge without: a file of questions without those that stand in other files.
 *
 * Layer: stage.  Uses: merge_inputs, merge_line, merge_questions, merge_seen, program.
 *
 * Writes questions.jsonl (lines as they stand in the file), removed.jsonl (id, source, source_index, and in
 * which file it was found) and without.json (counts by file and by source).
 */
#ifndef MB_MERGE_WITHOUT_H
#define MB_MERGE_WITHOUT_H

#include "stage/program.h"

/* Collective; rank 0 does the work. program->own: mb_merge_program. */
mb_status mb_merge_without_run(mb_program *program);

#endif
