/* machine_report.c: facts and verdicts.
 *
 * 1. report
 */
#include "stage/machine_report.h"

#include <stdarg.h>
#include <stdio.h>

/* ---- 1. report ---- */

mb_status mb_machine_report_create(mb_machine_report *out_report)
{
    *out_report = (mb_machine_report){.json = json_object(), .verdicts = MB_STR_EMPTY};
    if (out_report->json == NULL) return mb_fail(MB_ENOMEM, "no memory for a report");
    return mb_json_set(out_report->json, "verdicts", json_array());
}

void mb_machine_report_destroy(mb_machine_report *report)
{
    json_decref(report->json);
    report->json = NULL;
    mb_str_destroy(&report->verdicts);
}

void mb_machine_print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout); /* a check that hangs shows what was before it */
}

void mb_machine_verdict(mb_machine_report *report, mb_machine_level level, const char *format, ...)
{
    static const char *const names[] = {"ok", "warn", "broken"};
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    report->warnings += level == MB_MACHINE_WARN;
    report->broken += level == MB_MACHINE_BROKEN;
    if (mb_str_add_format(&report->verdicts, "%s: %s\n", names[level], text) != MB_OK)
        mb_machine_print("%s: %s", names[level], text);
    json_array_append_new(json_object_get(report->json, "verdicts"),
                          json_pack("{s:s, s:s}", "level", names[level], "text", text));
}

void mb_machine_report_end(const mb_machine_report *report)
{
    fputs(mb_str_text(&report->verdicts), stdout);
    mb_machine_print("warnings: %lld, broken: %lld", (long long)report->warnings, (long long)report->broken);
}
