/* memory_report: what a program says about its memory: forecast and used, by kind.
 *
 * Layer: stage.  Uses: program, model (lines).
 */
#ifndef MB_MEMORY_REPORT_H
#define MB_MEMORY_REPORT_H

#include "model/lm.h"
#include "stage/program.h"

/* One log line of what is forecast per rank; kinds of no bytes are left out. */
void mb_memory_report_forecast(const mb_lm_memory *lines, int64_t n);
/* One log line "kind forecast/used" in MiB, and results memory.<kind>.forecast and .used (bytes) for
 * done.json. */
mb_status mb_memory_report_used(mb_program *program, const mb_lm_memory *lines, int64_t n);

#endif
