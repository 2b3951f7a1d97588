/* status.c: names and exit codes of statuses, and the thread's error record.
 *
 * The record is two fixed buffers per thread, so that reporting "no memory" needs none.
 *
 * 1. names and exit codes   2. the record
 */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- 1. names and exit codes ---- */

const char *mb_status_name(mb_status status)
{
    static const char *const names[MB_STATUS_COUNT] = {
        [MB_OK] = "ok",
        [MB_EUSAGE] = "bad usage or configuration",
        [MB_EDATA] = "bad input data",
        [MB_EFORMAT] = "bad file format",
        [MB_ESHAPE] = "shapes do not fit",
        [MB_ERANGE] = "value out of range",
        [MB_ENOTFOUND] = "not found",
        [MB_EUNSUPPORTED] = "not supported",
        [MB_ENUMERIC] = "not a finite number",
        [MB_EIO] = "input or output failed",
        [MB_ENOSPACE] = "not enough disk space",
        [MB_ENOMEM] = "not enough memory",
        [MB_ECOMM] = "communication failed",
        [MB_EDEVICE] = "the GPU failed",
        [MB_EEXIST] = "exists already",
        [MB_ESTOPPED] = "stopped at a checkpoint",
    };
    if ((int)status < 0 || status >= MB_STATUS_COUNT) return "unknown status";
    return names[status];
}

int mb_status_exit_code(mb_status status)
{
    switch (status) {
    case MB_OK:
        return 0;
    case MB_EUSAGE:
        return 2;
    case MB_EDATA:
    case MB_EFORMAT:
    case MB_ESHAPE:
    case MB_ERANGE:
    case MB_ENOTFOUND:
    case MB_EUNSUPPORTED:
        return 3;
    case MB_ESTOPPED:
        return 75;
    default:
        return 1;
    }
}

/* ---- 2. the record ---- */

enum { MESSAGE_BYTES = 4096, TRACE_BYTES = 4096 };

static _Thread_local struct {
    char message[MESSAGE_BYTES];
    char trace[TRACE_BYTES];
} record;

mb_status mb_status_fail(mb_status status, const char *function, const char *file, int line,
                         const char *format, ...)
{
    char text[MESSAGE_BYTES]; /* aside first: an argument may be the old message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(record.message, text, strlen(text) + 1);
    record.trace[0] = 0;
    return mb_status_trace(status, function, file, line);
}

mb_status mb_status_trace(mb_status status, const char *function, const char *file, int line)
{
    size_t used = strlen(record.trace);
    char entry[512];
    int length = snprintf(entry, sizeof entry, "  at %s (%s:%d)\n", function, file, line);
    if (length > 0 && (size_t)length < sizeof entry && used + (size_t)length < TRACE_BYTES)
        memcpy(record.trace + used, entry, (size_t)length + 1);
    return status;
}

void mb_status_prefix(const char *format, ...)
{
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0) return;
    size_t used = (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
    snprintf(text + used, sizeof text - used, "%s", record.message);
    memcpy(record.message, text, strlen(text) + 1);
}

const char *mb_status_message(void)
{
    return record.message;
}

const char *mb_status_trace_text(void)
{
    return record.trace;
}

void mb_status_reset(void)
{
    record.message[0] = 0;
    record.trace[0] = 0;
}
