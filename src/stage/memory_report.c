/* memory_report: forecast and use of memory in log and result. */
#include "stage/memory_report.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

enum { TEXT_BYTES = 640 }; /* of a line */

static double mib(int64_t bytes)
{
    return (double)bytes / 1048576;
}

void mb_memory_report_forecast(const mb_lm_memory *lines, int64_t n)
{
    char text[TEXT_BYTES] = "";
    size_t used = 0;
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += lines[i].forecast;
        if (lines[i].forecast > 0 && used + 64 < sizeof text)
            used += (size_t)snprintf(text + used, 64, ", %s %.1f", lines[i].kind, mib(lines[i].forecast));
    }
    mb_info("memory forecast per rank, MiB: %.1f%s", mib(sum), text);
}

mb_status mb_memory_report_used(mb_program *program, const mb_lm_memory *lines, int64_t n)
{
    mb_status status = MB_OK;
    char text[TEXT_BYTES] = "", key[96];
    size_t used = 0;
    for (int64_t i = 0; i < n; i++) {
        if (lines[i].forecast == 0 && lines[i].used == 0) continue;
        if (used + 64 < sizeof text)
            used += (size_t)snprintf(text + used, 64, "%s %s %.1f/%.1f", i > 0 ? "," : "", lines[i].kind,
                                     mib(lines[i].forecast), mib(lines[i].used));
        snprintf(key, sizeof key, "memory_%s_forecast", lines[i].kind);
        for (char *c = key; *c != 0; c++)
            if (*c == ' ') *c = '_';
        MB_TRY(mb_program_result_int(program, key, lines[i].forecast));
        memcpy(strrchr(key, '_'), "_used", sizeof "_used");
        MB_TRY(mb_program_result_int(program, key, lines[i].used));
    }
    mb_info("memory of the largest rank, MiB, forecast/used:%s", text);
done:
    return status;
}
