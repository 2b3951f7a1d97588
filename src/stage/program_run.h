/* program_run: what program.c needs of the run folder's side at the end of a run.
 *
 * Layer: stage.  Uses: program.
 */
#ifndef MB_PROGRAM_RUN_H
#define MB_PROGRAM_RUN_H

#include "stage/program.h"

/* A run that failed before it made anything to go on from gives the result that it moved aside its place
 * back. Does nothing where none was. */
void mb_program_move_back(mb_program *program);

#endif
