/* train_teacher: the teacher that moe-train asks while a student trains.
 *
 * Layer: stage.  Uses: fuse_options, model_options, program.
 */
#ifndef MB_TRAIN_TEACHER_H
#define MB_TRAIN_TEACHER_H

#include "stage/program.h"
#include "stage/program_options.h"

/* Does the run ask a teacher while it trains (and not read what one said before)? */
bool mb_train_teacher_is_online(const mb_train_program *own);
/* MB_EUSAGE: keys of a teacher that contradict each other, or the objective. */
mb_status mb_train_teacher_check(const mb_train_program *own);
/* The teacher of teacher.path or of the fuse.* keys beside this student; NULL where there is none to ask.
 * MB_EDATA: its vocabulary is not the student's, token by token. Collective. */
mb_status mb_train_teacher_open(mb_program *program, mb_lm *student, mb_lm **out_teacher);

#endif
