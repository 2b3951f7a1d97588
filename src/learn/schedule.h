/* schedule: the learning rate of a step, and how far the trash experts are open.
 *
 * Layer: learn.  Uses: base.
 * Source: transformers' get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup and
 * get_constant_schedule_with_warmup (same values).
 */
#ifndef MB_SCHEDULE_H
#define MB_SCHEDULE_H

#include <stdint.h>

#include "base/status.h"

typedef enum mb_schedule_kind {
    MB_SCHEDULE_LINEAR,
    MB_SCHEDULE_COSINE,
    MB_SCHEDULE_CONSTANT
} mb_schedule_kind;

typedef struct mb_schedule {
    mb_schedule_kind kind;
    int64_t warmup, total; /* steps */
} mb_schedule;

/* name: linear, cosine, constant. warmup_steps > 0 counts, else ceil(total * warmup_ratio). */
mb_status mb_schedule_init(mb_schedule *schedule, const char *name, int64_t warmup_steps, double warmup_ratio,
                           int64_t total);
/* Factor on the learning rate of step 0.. (the first step of a warm-up has factor 0). */
double mb_schedule_factor(const mb_schedule *schedule, int64_t step);

/* Trash bias at step 0..: from start (< 0) to 0 in `steps` steps by a constant factor on 1 - bias; 0
 * afterwards. */
double mb_schedule_trash_bias(double start, int64_t step, int64_t steps);

#endif
