/* metrics: curves of a run. metrics.jsonl is appended line by line; metrics.h5 is rebuilt from it at
 * checkpoints and at the end.
 *
 * Layer: store.  Uses: base, h5.
 *
 * metrics.jsonl: one object per line {"step": n, "loss": ..., ...}, numbers only, plus "time" (seconds of
 * this run; left out of hashes), and in some lines a table of counts {"loads": [[...], ...]}. Several lines
 * may have the same step (training, validation). metrics.h5, format "moebatch-metrics" version 1: /step i64
 * [n], /<name> f64 [n] (NaN where a line had none); of a table /<name> i64 [m, rows, columns] of the m lines
 * that have it, and their steps /<name>_step i64 [m].
 */
#ifndef MB_METRICS_H
#define MB_METRICS_H

#include <stdint.h>

#include "base/status.h"

typedef struct mb_metrics mb_metrics;
typedef struct mb_metric {
    const char *name; /* [A-Za-z0-9_/.]+ */
    double value;
} mb_metric;

/* Counts of one line; all lines of a run that have one have the same name and shape. */
typedef struct mb_metric_table {
    const char *name;
    int64_t rows, columns;
    const int64_t *counts; /* [rows, columns] */
} mb_metric_table;

/* Open folder/metrics.jsonl for appending; lines with step > keep_step are cut off first (resume), as is a
 * torn last line. keep_step < 0: start anew. */
mb_status mb_metrics_open(const char *folder, int64_t keep_step, mb_metrics **out_metrics);
mb_status mb_metrics_write(mb_metrics *metrics, int64_t step, const mb_metric *values, int64_t n);
mb_status mb_metrics_write_table(mb_metrics *metrics, int64_t step, const mb_metric *values, int64_t n,
                                 const mb_metric_table *opt_table);
/* The lines that have a number for names[0], as they stand in the file: *out_steps [rows], *out_values
 * [rows, n] (NaN where a line has none); both mb_free'd by the caller, NULL when there are no rows. */
mb_status mb_metrics_read(const mb_metrics *metrics, const char *const *names, int64_t n, int64_t *out_rows,
                          int64_t **out_steps, double **out_values);
mb_status mb_metrics_publish(mb_metrics *metrics); /* rebuild metrics.h5 */
void mb_metrics_close(mb_metrics **metrics);

#endif
