/* power_model: joules from a stated power, for machines that count none.
 *
 * Layer: measure.  Uses: base.
 * Source: the linear model of a server's power over its use: Fan, Weber, Barroso (2007) "Power provisioning
 * for a warehouse-sized computer", section 3; here use is that of one process, counted in core-seconds.
 *
 *     joules = watts_idle * seconds + watts_per_core * core_seconds + watts_gpu * seconds
 *
 * The figures are the user's, and nothing here is measured but the two times.
 */
#ifndef MB_POWER_MODEL_H
#define MB_POWER_MODEL_H

#include "base/str.h"

typedef struct mb_power_model {
    double watts_per_core; /* a busy core takes above rest */
    double watts_idle;     /* of the node at rest */
    double watts_gpu;      /* of the GPU that computes, all the time; 0: none */
} mb_power_model;

/* core_seconds: CPU time of all threads during those seconds. */
double mb_power_model_joules(const mb_power_model *model, double seconds, double core_seconds);
/* The model in words with all its figures, appended. */
mb_status mb_power_model_text(const mb_power_model *model, mb_str *text);

#endif
