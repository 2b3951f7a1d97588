/* gate_report: moe-gate report.
 *
 * Layer: stage.  Uses: gate_score, gate_score_files, gate_inputs, gate_settings.
 */
#ifndef MB_GATE_REPORT_H
#define MB_GATE_REPORT_H

#include "stage/program.h"

/* report.txt, report.json and report.h5 in the run folder, the text in the log. Collective; one rank works.
 */
mb_status mb_gate_report_run(mb_program *program);

#endif
