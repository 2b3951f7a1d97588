/* stop: the stop flag. Signals only set it; long loops look at it between units of work.
 *
 * Layer: base.
 */
#ifndef MB_STOP_H
#define MB_STOP_H

#include <stdbool.h>

/* Handle USR2, TERM and INT by setting the flag (a second INT ends the process). */
void mb_stop_install(void);
/* Set the flag ourselves (end time near). */
void mb_stop_request(void);
bool mb_stop_is_set(void);
/* For tests: clear. */
void mb_stop_reset(void);

/* When this job ends, in seconds since 1970: MB_END_TIME, else SLURM_JOB_END_TIME; 0 when neither is there
 * or the one that counts is not a time. */
double mb_stop_deadline(void);

#endif
