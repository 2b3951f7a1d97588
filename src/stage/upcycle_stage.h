/* upcycle_stage: moe-convert's mode upcycle: its inputs, its plan, its report.
 *
 * Layer: stage.  Uses: program, convert_upcycle.
 */
#ifndef MB_UPCYCLE_STAGE_H
#define MB_UPCYCLE_STAGE_H

#include "stage/program.h"
#include "stage/program_options.h"

/* mb_program_begin_run with moe-convert's inputs, files of prompts and siblings among them. Collective. */
mb_status mb_upcycle_stage_begin(mb_program *program, mb_convert_program *own, bool *out_is_done);
/* Before anything is written, and all that a dry run does: check the options, say what it will be. In a dry
 * run the source may not be there yet. */
mb_status mb_upcycle_stage_plan(mb_program *program, mb_convert_program *own);
/* Make it; verify and report unless told not to. */
mb_status mb_upcycle_stage_run(mb_program *program, mb_convert_program *own, const char *target);
/* Mode verify of an upcycled target. *out_is_upcycled false: it is none, and nothing was done. */
mb_status mb_upcycle_stage_verify(mb_program *program, mb_convert_program *own, const char *target,
                                  bool *out_is_upcycled);

#endif
