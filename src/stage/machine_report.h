/* machine_report: what moe-inspect machine prints and writes: facts, then a verdict per check.
 *
 * Layer: stage.  Uses: base.
 *
 * Held by rank 0. A verdict is one line: "ok: ...", "warn: ...; <what to do>" or "broken: ...; <what to do>".
 */
#ifndef MB_MACHINE_REPORT_H
#define MB_MACHINE_REPORT_H

#include "base/json.h"

typedef struct mb_machine_report {
    json_t *json;     /* the whole as an object */
    mb_str verdicts;  /* lines, printed last */
    int64_t warnings; /* verdicts "warn" */
    int64_t broken;   /* verdicts "broken" */
} mb_machine_report;

typedef enum mb_machine_level { MB_MACHINE_OK, MB_MACHINE_WARN, MB_MACHINE_BROKEN } mb_machine_level;

mb_status mb_machine_report_create(mb_machine_report *out_report);
void mb_machine_report_destroy(mb_machine_report *report);

/* One line to standard output, at once. */
void mb_machine_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Without memory for the line it is printed at once instead of last. */
void mb_machine_verdict(mb_machine_report *report, mb_machine_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Print the verdicts and a count of them. */
void mb_machine_report_end(const mb_machine_report *report);

#endif
