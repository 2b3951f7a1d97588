/* schedule.c: curves over steps.
 *
 * 1. learning rate   2. trash bias
 */
#include "learn/schedule.h"

#include <math.h>

#include "base/str.h"

/* ---- 1. learning rate ---- */

mb_status mb_schedule_init(mb_schedule *schedule, const char *name, int64_t warmup_steps, double warmup_ratio,
                           int64_t total)
{
    mb_schedule_kind kind = MB_SCHEDULE_CONSTANT;
    if (mb_str_equal(name, "linear")) {
        kind = MB_SCHEDULE_LINEAR;
    } else if (mb_str_equal(name, "cosine")) {
        kind = MB_SCHEDULE_COSINE;
    } else if (!mb_str_equal(name, "constant")) {
        return mb_fail(MB_EUSAGE, "training.lr_scheduler_type = '%s' is not one of linear, cosine, constant",
                       name);
    }
    schedule->kind = kind;
    schedule->total = total;
    schedule->warmup = warmup_steps > 0 ? warmup_steps : (int64_t)ceil((double)total * warmup_ratio);
    return MB_OK;
}

double mb_schedule_factor(const mb_schedule *schedule, int64_t step)
{
    int64_t warmup = schedule->warmup, falling = schedule->total - warmup;
    if (step < warmup) return (double)step / (double)warmup;
    double left =
        falling < 1 ? (double)(schedule->total - step) : (double)(schedule->total - step) / (double)falling;
    switch (schedule->kind) {
    case MB_SCHEDULE_LINEAR:
        return left > 0 ? left : 0;
    case MB_SCHEDULE_COSINE: {
        double factor = 0.5 * (1.0 + cos(3.14159265358979323846 * (1.0 - left)));
        return factor > 0 ? factor : 0;
    }
    default:
        return 1;
    }
}

/* ---- 2. trash bias ---- */

double mb_schedule_trash_bias(double start, int64_t step, int64_t steps)
{
    if (step >= steps) return 0;
    return 1.0 - pow(1.0 - start, 1.0 - (double)step / (double)steps);
}
