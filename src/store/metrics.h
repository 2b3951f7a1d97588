/* metrics: curves of a run. metrics.jsonl is appended line by line; metrics.h5 is rebuilt from it at
 * checkpoints and at the end.
 *
 * Layer: store.  Uses: base, h5.
 *
 * metrics.jsonl: one object per line {"step": n, "loss": ..., ...}, numbers only, plus "time" (seconds of
 * this run; left out of hashes). metrics.h5, format "moebatch-metrics" version 1: /step i64 [n], /<name> f64
 * [n] (NaN where a line had none).
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

/* Open folder/metrics.jsonl for appending; lines with step > keep_step are cut off first (resume), as is a
 * torn last line. keep_step < 0: start anew. */
mb_status mb_metrics_open(const char *folder, int64_t keep_step, mb_metrics **out_metrics);
mb_status mb_metrics_write(mb_metrics *metrics, int64_t step, const mb_metric *values, int64_t n);
mb_status mb_metrics_publish(mb_metrics *metrics); /* rebuild metrics.h5 */
void mb_metrics_close(mb_metrics **metrics);

#endif
