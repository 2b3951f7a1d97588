/* convert_folder: a weight folder rewritten tensor by tensor, bytes kept as they are.
 *
 * Layer: model.  Uses: arch, store (safetensors, checkpoint).
 */
#ifndef MB_CONVERT_FOLDER_H
#define MB_CONVERT_FOLDER_H

#include "model/arch.h"
#include "store/safetensors.h"

typedef struct mb_convert_folder {
    mb_arch arch; /* of the source; change it to what the target's config.json shall say */
    mb_safetensors *source_file;
    char *folder; /* the target while it is filled */
    mb_safetensors_writer *writer;
} mb_convert_folder;

/* A plain HF folder (a delta is MB_EUSAGE with what to do). Start zeroed; reset in any case. */
mb_status mb_convert_folder_open(mb_convert_folder *f, const char *source);
mb_status mb_convert_folder_begin(mb_convert_folder *f, const char *target);
/* config.json, companions of source, publish under target. */
mb_status mb_convert_folder_commit(mb_convert_folder *f, const char *source, const char *target);
/* Give up what was not committed; close everything. */
void mb_convert_folder_reset(mb_convert_folder *f);

/* "model.layers.<i>.mlp.gate.weight", Mixtral's "model.layers.<i>.block_sparse_moe.gate.weight" */
bool mb_convert_folder_is_gate(const char *name);
/* "model.layers.<i>.mlp.gate.e_score_correction_bias" */
bool mb_convert_folder_is_bias(const char *name);

#endif
