/* energy_report: joules of a run's work over all ranks, in log and record.
 *
 * Layer: stage.  Uses: program, measure (energy).
 *
 * A GPU is counted by the first of the ranks that use it, the processors of a node by its first rank.
 */
#ifndef MB_ENERGY_REPORT_H
#define MB_ENERGY_REPORT_H

#include "measure/energy.h"
#include "stage/program.h"

typedef struct mb_energy_report {
    mb_energy *energy; /* NULL: another rank counts */
    bool counts;
    double began;
} mb_energy_report;

/* Collective; program->ops is open. */
mb_status mb_energy_report_begin(mb_program *program, mb_energy_report *out_report);
/* Collective. One log line "energy: J +- J (source), J a <unit>", and results energy_joules,
 * energy_joules_uncertainty, energy_seconds (counted: of this run, not of those it resumed) and
 * energy_source for done.json; nothing where a rank that counts has no source. n: of the unit; 0: no such
 * figure. Ends the counting. */
mb_status mb_energy_report_end(mb_program *program, mb_energy_report *report, const char *unit, int64_t n);
/* For the way out of a failure; counting that ended is fine. */
void mb_energy_report_reset(mb_energy_report *report);

#endif
