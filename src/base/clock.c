/* clock.c: monotonic seconds and dates.
 *
 * 1. clock
 */
#include "base/clock.h"

#include <time.h>

double mb_clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void mb_clock_iso(char out_text[32])
{
    time_t now = time(NULL);
    struct tm parts;
    gmtime_r(&now, &parts);
    strftime(out_text, 32, "%Y-%m-%dT%H:%M:%SZ", &parts);
}
