/* log: one line per message on standard error, and a progress line with rate and time left.
 *
 * Layer: base.  Uses: status, clock, json, memory.
 *
 * INFO and WARN come from rank 0 only (mb_log_init says who that is); ERROR from every rank. On a terminal
 * the progress line is redrawn in place; in a file it is a plain line every few seconds.
 */
#ifndef MB_LOG_H
#define MB_LOG_H

#include <stdint.h>

#include "base/status.h"

typedef enum mb_log_level { MB_LOG_DEBUG, MB_LOG_INFO, MB_LOG_WARN, MB_LOG_ERROR } mb_log_level;

/* Set program name, rank and number of ranks. Level from MB_LOG=debug|info|warn|error (info). opt_path: also
 * append every line to this file (the run's log); NULL none. Call again to change. */
void mb_log_init(const char *program, int rank, int ranks, const char *opt_path);
void mb_log_close(void);

void mb_log_write(mb_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define mb_debug(...) mb_log_write(MB_LOG_DEBUG, __VA_ARGS__)
#define mb_info(...)  mb_log_write(MB_LOG_INFO, __VA_ARGS__)
#define mb_warn(...)  mb_log_write(MB_LOG_WARN, __VA_ARGS__)
#define mb_error(...) mb_log_write(MB_LOG_ERROR, __VA_ARGS__)

/* Rank 0's progress objects also write this file (mb_progress below); NULL: none, as at the start. It stays
 * until changed or mb_log_close; mb_log_init leaves it. Call it again at the start of every piece of work
 * that has a file of its own. MB_ENOMEM. */
mb_status mb_log_set_progress_file(const char *opt_path);

/* Progress of work with a known total (0: unknown), in `unit` ("records", "tokens", "steps"). */
typedef struct mb_progress {
    const char *what;
    const char *unit;
    int64_t total;
    int64_t first; /* where this run began (after a resume) */
    double started;
    double last_shown;
} mb_progress;
void mb_progress_start(mb_progress *progress, const char *what, const char *unit, int64_t first,
                       int64_t total);
/* opt_extra: more text for the line ("loss 3.21 lr 1e-3"), may be NULL. Shows at most every 0.5 s / 10 s in
 * a file.
 *
 * The progress file holds one object, a key per line: "done", "total" (0: unknown), "unit", "percent",
 * "seconds" (since the start of this run), "seconds_left" (both null where the total is unknown or nothing
 * is done yet), "text" (the line as shown), "time" (ISO, UTC). It is renamed into place, at most every 2 s
 * and at each end, whatever MB_LOG says; it is not flushed to disk. When it cannot be written there is one
 * warning. */
void mb_progress_step(mb_progress *progress, int64_t now, const char *opt_extra);
void mb_progress_end(mb_progress *progress, int64_t now, const char *opt_extra);

#endif
