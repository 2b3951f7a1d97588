/* gate_inputs: what moe-gate reads: outputs (or answers joined to them), embeddings in the questions' order,
 * and which questions the experts have seen.
 *
 * Layer: stage.  Uses: store (outputs, answers, embeddings), text (question), named_paths.
 */
#ifndef MB_GATE_INPUTS_H
#define MB_GATE_INPUTS_H

#include "stage/named_paths.h"
#include "store/embeddings.h"
#include "store/outputs.h"

/* Files behind a key: one outputs.h5, or several answers.h5 by name. */
typedef struct mb_gate_source {
    bool is_answers;
    mb_named_paths files; /* folders are replaced by the files in them */
} mb_gate_source;
/* key: for messages. MB_EUSAGE: not given; MB_ENOTFOUND: a file is missing. */
mb_status mb_gate_inputs_find(const char *key, const char *text, mb_gate_source *out_source);
void mb_gate_inputs_reset(mb_gate_source *source);
/* The table, joined where they are answers. */
mb_status mb_gate_inputs_table(const mb_gate_source *source, mb_outputs **out_outputs);
/* path, or <path>/name where it is a folder; mb_free. MB_EUSAGE: NULL; MB_ENOTFOUND. */
mb_status mb_gate_inputs_file(const char *key, const char *opt_path, const char *name, const char *made_by,
                              char **out_file);

/* Embeddings [questions, D] in the order of the table's questions (record i of the embedded file is question
 * i), and what made them: model, tokenizer, pooling, normalised, prefix, max_length, dimension as one line of
 * JSON with sorted keys; both mb_free. MB_EDATA: other numbers of records and questions. */
mb_status mb_gate_inputs_embeddings(const char *path, int64_t questions, float **out_x, int64_t *out_width,
                                    char **out_embedder);
/* That line of a file of embeddings; mb_free. */
mb_status mb_gate_inputs_embedder(const mb_embeddings *embeddings, char **out_embedder);

/* The experts of a comma-separated list, by number (all when NULL): [*out_count], mb_free. */
mb_status mb_gate_inputs_experts(const mb_outputs *outputs, const char *opt_list, int64_t **out_experts,
                                 int64_t *out_count);

/* Which questions stand in these files of questions too, by their normalised text without options: shared
 * [Q] (mb_free), and how many of each file. */
mb_status mb_gate_inputs_shared(const mb_outputs *outputs, const mb_named_paths *files, uint8_t **out_shared,
                                int64_t **out_by_file);

#endif
