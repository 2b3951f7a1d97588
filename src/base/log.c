/* log.c: lines to standard error and to the run's log file; the progress line.
 *
 * The program has one standard error, so this file has one record of how to write to it, under a lock.
 *
 * 1. where lines go   2. lines   3. progress   4. the progress file
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
#include "base/json.h"
#include "base/memory.h"

enum { LINE_BYTES = 8192 };
static const double SECONDS_ON_TERMINAL = 0.5, SECONDS_IN_FILE = 10, SECONDS_OF_PROGRESS_FILE = 2;

/* ---- 1. where lines go ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char program[64];
    int rank, ranks;
    mb_log_level level;
    FILE *file;
    bool terminal;
    bool drawn;                           /* a progress line stands on the terminal */
    char *progress_path, *progress_aside; /* NULL: no progress file */
    double progress_written;              /* when last */
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

static void forget_progress_file(void)
{
    MB_FREE(sink.progress_path);
    MB_FREE(sink.progress_aside);
    sink.progress_written = 0;
}

mb_status mb_log_set_progress_file(const char *opt_path)
{
    mb_status status = MB_OK;
    pthread_mutex_lock(&lock);
    forget_progress_file();
    if (opt_path != NULL) {
        sink.progress_path = mb_strdup(opt_path);
        sink.progress_aside = mb_str_format("%s.tmp.%ld", opt_path, (long)getpid());
    }
    if (opt_path != NULL && (sink.progress_path == NULL || sink.progress_aside == NULL)) {
        forget_progress_file();
        status = mb_fail(MB_ENOMEM, "%s: not enough memory for its name", opt_path);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

void mb_log_close(void)
{
    pthread_mutex_lock(&lock);
    if (sink.drawn) fputc('\n', stderr);
    sink.drawn = false;
    close_file();
    forget_progress_file();
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

static void show_line(const char *text, bool ended)
{
    char line[640];
    snprintf(line, sizeof line, "%s%s%s", sink.program, sink.program[0] != 0 ? ": " : "", text);
    if (ended || !sink.terminal) {
        put_line(line);
    } else {
        fprintf(stderr, "\r\033[K%s", line);
        fflush(stderr);
        sink.drawn = true;
    }
}

static int write_progress_file(const mb_progress *progress, int64_t now, const char *text);

static void show_progress(mb_progress *progress, int64_t now, const char *opt_extra, bool shows, bool ended)
{
    char text[512];
    int failure = 0;
    pthread_mutex_lock(&lock);
    double clock = mb_clock_seconds();
    double pause = sink.terminal ? SECONDS_ON_TERMINAL : SECONDS_IN_FILE;
    shows = shows && sink.rank == 0 && sink.level <= MB_LOG_INFO &&
            (ended || clock - progress->last_shown >= pause);
    bool writes = sink.rank == 0 && sink.progress_path != NULL &&
                  (ended || clock - sink.progress_written >= SECONDS_OF_PROGRESS_FILE);
    if (shows || writes) format_progress(progress, now, opt_extra, ended, text, sizeof text);
    if (shows) {
        progress->last_shown = clock;
        show_line(text, ended);
    }
    if (writes) {
        sink.progress_written = clock;
        failure = write_progress_file(progress, now, text);
        if (failure != 0) forget_progress_file();
    }
    pthread_mutex_unlock(&lock);
    if (failure != 0) mb_warn("progress cannot be written to its file any more: %s", strerror(failure));
}

void mb_progress_start(mb_progress *progress, const char *what, const char *unit, int64_t first,
                       int64_t total)
{
    double now = mb_clock_seconds();
    *progress = (mb_progress){
        .what = what, .unit = unit, .total = total, .first = first, .started = now, .last_shown = now};
    show_progress(progress, first, NULL, false, false);
}

void mb_progress_step(mb_progress *progress, int64_t now, const char *opt_extra)
{
    show_progress(progress, now, opt_extra, true, false);
}

void mb_progress_end(mb_progress *progress, int64_t now, const char *opt_extra)
{
    show_progress(progress, now, opt_extra, true, true);
}

/* ---- 4. the progress file ---- */

static json_t *real_or_null(bool is_known, double value)
{
    return is_known ? json_real(value) : json_null();
}

static json_t *describe_progress(const mb_progress *progress, int64_t now, const char *text)
{
    char date[32];
    double elapsed = mb_clock_seconds() - progress->started, left = (double)(progress->total - now);
    double rate = elapsed > 0 ? (double)(now - progress->first) / elapsed : 0;
    bool has_total = progress->total > 0;
    mb_clock_iso(date);
    json_t *line = json_string(text); /* NULL when a long line was cut inside a character */
    if (line == NULL) line = json_string(progress->what);
    return json_pack("{s:I,s:I,s:s,s:o,s:f,s:o,s:o,s:s}", "done", (json_int_t)now, "total",
                     (json_int_t)progress->total, "unit", progress->unit, "percent",
                     real_or_null(has_total, has_total ? 100.0 * (double)now / (double)progress->total : 0),
                     "seconds", elapsed, "seconds_left",
                     real_or_null(has_total && (rate > 0 || left <= 0), left > 0 ? left / rate : 0), "text",
                     line, "time", date);
}

/* 0 or the errno. Works without mb_fail: it must not write over the record of a failure on its way up. */
static int write_progress_file(const mb_progress *progress, int64_t now, const char *text)
{
    int failure = 0;
    json_t *json = describe_progress(progress, now, text);
    FILE *stream = json != NULL ? fopen(sink.progress_aside, "we") : NULL;
    if (json == NULL) return ENOMEM;
    if (stream == NULL || json_dumpf(json, stream, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) != 0 ||
        fputc('\n', stream) == EOF)
        failure = errno != 0 ? errno : EIO;
    if (stream != NULL && fclose(stream) != 0 && failure == 0) failure = errno;
    if (failure == 0 && rename(sink.progress_aside, sink.progress_path) != 0) failure = errno;
    if (failure != 0 && stream != NULL) unlink(sink.progress_aside);
    json_decref(json);
    return failure;
}
