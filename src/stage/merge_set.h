/* merge_set: moe-merge merge: benchmarks to one file of questions.
 *
 * Layer: stage.  Uses: merge_inputs, merge_examples, merge_line, merge_seen, program.
 *
 * Writes questions.jsonl (text/question.h), duplicates.jsonl (a question that stands there already: its place
 * and that of the first, and whether their answers agree), bad.jsonl (source, path, line, problem), and
 * counts.json (by source: read, bad, duplicates, kept, kinds, options, subjects, with solved examples).
 */
#ifndef MB_MERGE_SET_H
#define MB_MERGE_SET_H

#include "stage/program.h"

/* Collective; rank 0 does the work. program->own: mb_merge_program. */
mb_status mb_merge_set_run(mb_program *program);

#endif
