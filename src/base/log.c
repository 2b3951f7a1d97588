/* log.c: lines to standard error and to the run's log file; the progress line.
 *
 * The program has one standard error, so this file has one record of how to write to it, under a lock.
 *
 * 1. where lines go   2. lines   3. progress
 */
#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/clock.h"

enum { LINE_BYTES = 8192 };
static const double SECONDS_ON_TERMINAL = 0.5, SECONDS_IN_FILE = 10;

/* ---- 1. where lines go ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char program[64];
    int rank, ranks;
    mb_log_level level;
    FILE *file;
    bool terminal;
    bool drawn; /* a progress line stands on the terminal */
} sink = {.ranks = 1, .level = MB_LOG_INFO};

static mb_log_level level_of(const char *word)
{
    static const char *const words[] = {"debug", "info", "warn", "error"};
    for (int i = 0; word != NULL && i < 4; i++) {
        if (strcasecmp(word, words[i]) == 0) return (mb_log_level)i;
    }
    return MB_LOG_INFO;
}

static void close_file(void)
{
    if (sink.file != NULL) fclose(sink.file);
    sink.file = NULL;
}

void mb_log_init(const char *program, int rank, int ranks, const char *opt_path)
{
    pthread_mutex_lock(&lock);
    close_file();
    snprintf(sink.program, sizeof sink.program, "%s", program);
    sink.rank = rank;
    sink.ranks = ranks;
    sink.level = level_of(getenv("MB_LOG"));
    sink.terminal = isatty(STDERR_FILENO) == 1;
    sink.file = opt_path != NULL ? fopen(opt_path, "ae") : NULL;
    int failure = opt_path != NULL && sink.file == NULL ? errno : 0;
    pthread_mutex_unlock(&lock);
    if (failure != 0) mb_warn("%s: cannot write the log there: %s", opt_path, strerror(failure));
}

void mb_log_close(void)
{
    pthread_mutex_lock(&lock);
    if (sink.drawn) fputc('\n', stderr);
    sink.drawn = false;
    close_file();
    pthread_mutex_unlock(&lock);
}

/* ---- 2. lines ---- */

/* One line to both places; the caller holds the lock. */
static void put_line(const char *line)
{
    char date[32];
    if (sink.drawn) fputs("\r\033[K", stderr);
    sink.drawn = false;
    fprintf(stderr, "%s\n", line);
    if (sink.file == NULL) return;
    mb_clock_iso(date);
    fprintf(sink.file, "%s %s\n", date, line);
    fflush(sink.file);
}

void mb_log_write(mb_log_level level, const char *format, ...)
{
    static const char *const marks[] = {"debug: ", "", "warning: ", "error: "};
    char line[LINE_BYTES], rank[32] = "";
    va_list arguments;
    pthread_mutex_lock(&lock);
    if (level >= sink.level && (sink.rank == 0 || level == MB_LOG_ERROR)) {
        if (level == MB_LOG_ERROR && sink.ranks > 1) snprintf(rank, sizeof rank, "rank %d: ", sink.rank);
        const char *colon = sink.program[0] != 0 ? ": " : "";
        int used = snprintf(line, sizeof line, "%s%s%s%s", sink.program, colon, rank, marks[level]);
        va_start(arguments, format);
        int length = vsnprintf(line + used, sizeof line - (size_t)used, format, arguments);
        va_end(arguments);
        if (length >= (int)sizeof line - used) memcpy(line + sizeof line - 4, "...", 4);
        put_line(line);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- 3. progress ---- */

static void write_seconds(double seconds, char *out_text, size_t bytes)
{
    int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 3600) {
        snprintf(out_text, bytes, "%lld h %02lld min", (long long)(s / 3600), (long long)(s % 3600 / 60));
    } else if (s >= 60) {
        snprintf(out_text, bytes, "%lld min %02lld s", (long long)(s / 60), (long long)(s % 60));
    } else {
        snprintf(out_text, bytes, "%lld s", (long long)s);
    }
}

static void format_progress(const mb_progress *progress, int64_t now, const char *opt_extra, bool ended,
                            char *out_text, size_t bytes)
{
    double elapsed = mb_clock_seconds() - progress->started;
    double rate = elapsed > 0 ? (double)(now - progress->first) / elapsed : 0;
    char total[64] = "", time[48] = "", tail[64] = "";
    if (progress->total > 0) {
        double percent = 100.0 * (double)now / (double)progress->total;
        snprintf(total, sizeof total, "/%lld (%.0f %%)", (long long)progress->total, percent);
    }
    if (ended) {
        write_seconds(elapsed, time, sizeof time);
        snprintf(tail, sizeof tail, ", done in %s", time);
    } else if (progress->total > 0 && rate > 0) {
        write_seconds((double)(progress->total - now) / rate, time, sizeof time);
        snprintf(tail, sizeof tail, ", %s left", time);
    }
    const char *extra = opt_extra != NULL ? opt_extra : "";
    snprintf(out_text, bytes, "%s: %lld%s %s, %.*f %s/s%s%s%s", progress->what, (long long)now, total,
             progress->unit, rate < 100 ? 1 : 0, rate, progress->unit, tail, *extra != 0 ? ", " : "", extra);
}

static void show_progress(mb_progress *progress, int64_t now, const char *opt_extra, bool ended)
{
    char text[512], line[640];
    pthread_mutex_lock(&lock);
    double clock = mb_clock_seconds();
    double pause = sink.terminal ? SECONDS_ON_TERMINAL : SECONDS_IN_FILE;
    bool wanted =
        sink.rank == 0 && sink.level <= MB_LOG_INFO && (ended || clock - progress->last_shown >= pause);
    if (wanted) {
        progress->last_shown = clock;
        format_progress(progress, now, opt_extra, ended, text, sizeof text);
        snprintf(line, sizeof line, "%s%s%s", sink.program, sink.program[0] != 0 ? ": " : "", text);
        if (ended || !sink.terminal) {
            put_line(line);
        } else {
            fprintf(stderr, "\r\033[K%s", line);
            fflush(stderr);
            sink.drawn = true;
        }
    }
    pthread_mutex_unlock(&lock);
}

void mb_progress_start(mb_progress *progress, const char *what, const char *unit, int64_t first,
                       int64_t total)
{
    double now = mb_clock_seconds();
    *progress = (mb_progress){
        .what = what, .unit = unit, .total = total, .first = first, .started = now, .last_shown = now};
}

void mb_progress_step(mb_progress *progress, int64_t now, const char *opt_extra)
{
    show_progress(progress, now, opt_extra, false);
}

void mb_progress_end(mb_progress *progress, int64_t now, const char *opt_extra)
{
    show_progress(progress, now, opt_extra, true);
}
