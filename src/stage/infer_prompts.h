/* infer_prompts: a file of records -> prompts as token ids.
 *
 * Layer: stage.  Uses: text.
 *
 * A line is a JSON object or a plain JSON string. `prompt` (a string), `text` and plain strings are
 * continued as they stand; messages, conversations, instruction and question are laid out by the chat
 * template, with the beginning of an answer behind them. A template that is named lays out `prompt` too.
 */
#ifndef MB_INFER_PROMPTS_H
#define MB_INFER_PROMPTS_H

#include "stage/program_options.h"
#include "text/records.h"

typedef struct mb_infer_prompts mb_infer_prompts;

/* options->input NULL: only for mb_infer_prompts_text. tokenizer_folder: the model's, when options name
 * none. MB_EUSAGE: the template is not known. */
mb_status mb_infer_prompts_open(const mb_infer_program *options, const char *tokenizer_folder,
                                mb_infer_prompts **out_prompts);
void mb_infer_prompts_close(mb_infer_prompts **prompts);
int64_t
mb_infer_prompts_count(const mb_infer_prompts *prompts); /* records of the file, options->limit at most */
const mb_tokenizer *mb_infer_prompts_tokenizer(const mb_infer_prompts *prompts);
const char *
mb_infer_prompts_template(const mb_infer_prompts *prompts); /* hash of the chat template, "" without one */

/* Record `index`; calls must rise. *out_record: a new reference to its object (a string as {"prompt":
 * ...}), NULL when the record is bad: *out_problem, with its place, is borrowed then until the next call,
 * *out_line its line. A prompt of more than `longest` tokens is bad. */
mb_status mb_infer_prompts_read(mb_infer_prompts *prompts, int64_t index, int64_t longest,
                                json_t **out_record, mb_ids *ids, const char **out_problem,
                                int64_t *out_line);
/* Plain text -> ids. */
mb_status mb_infer_prompts_text(mb_infer_prompts *prompts, const char *text, size_t n, mb_ids *ids);

#endif
