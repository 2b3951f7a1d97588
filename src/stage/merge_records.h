/* merge_records: moe-merge records: questions to training records, and texts to embed.
 *
 * Layer: stage.  Uses: merge_questions, merge_line, text (question), program.
 *
 * A record is {id, source, prompt, completion, text}: prompt as in mb_question_prompt, completion as in
 * mb_question_solution, so that prompt and completion together are what a model reads when it is asked.
 * moe-shard with dataset.form=io dataset.fields=input=prompt,output=completion dataset.template=plain puts
 * the loss on the completion alone; moe-embed with dataset.form=text reads text. questions.path is a file, a
 * folder with questions.jsonl (records.jsonl is written), or a folder of other *.jsonl files of questions,
 * moe-cluster's or a split's: a file of the same name is written for each.
 */
#ifndef MB_MERGE_RECORDS_H
#define MB_MERGE_RECORDS_H

#include "stage/program.h"

/* Collective; rank 0 does the work. program->own: mb_merge_program. */
mb_status mb_merge_records_run(mb_program *program);

#endif
