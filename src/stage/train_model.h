/* train_model: the model that moe-train trains: an ordinary one, a student, or a fused one with its router.
 *
 * Layer: stage.  Uses: fuse_options, model_options, train_parts, program.
 */
#ifndef MB_TRAIN_MODEL_H
#define MB_TRAIN_MODEL_H

#include "stage/program.h"
#include "stage/program_options.h"

/* Before anything is read: MB_EUSAGE for keys of the model that contradict each other or the objective.
 * training.student_init is put into model.path (and model.adapter) here. */
mb_status mb_train_model_check(mb_train_program *own);
/* Its folder in messages: model.path, or a fused model's (fuse_options.h). Borrowed. */
const char *mb_train_model_path(const mb_train_program *own);
/* Collective. */
mb_status mb_train_model_open(mb_program *program, mb_lm **out_lm);

#endif
