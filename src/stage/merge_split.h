/* merge_split: moe-merge split: a file of questions to parts.
 *
 * Layer: stage.  Uses: merge_parts, merge_questions, merge_seen, program.
 *
 * Writes <part>.jsonl of every part, lines as they stand in the file, and split.json: counts by part and
 * source, what went to no part, and the ids of those that were left out because their text also stands in a
 * part of named sources.
 */
#ifndef MB_MERGE_SPLIT_H
#define MB_MERGE_SPLIT_H

#include "stage/program.h"

/* Collective; rank 0 does the work. program->own: mb_merge_program. */
mb_status mb_merge_split_run(mb_program *program);

#endif
