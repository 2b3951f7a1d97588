/* forecast_history: what finished runs of the same work took.
 *
 * Layer: stage.  Uses: forecast_stage, forecast_model.
 *
 * Records are the done.json files below a folder (the study's first). One is of the same work when its
 * program, the keys that decide what is computed (objective, what trains, dtype, quantisation, recomputation,
 * scores ...) and the shape of its model are the same, and it ran on GPUs if this stage will, else on CPUs.
 * Data, seeds and rates of learning do not matter. The shape stands in the record's results ("model_shape");
 * of a record without it, the model is looked for by its content hash among the outputs of the other records,
 * and in what the run wrote.
 */
#ifndef MB_FORECAST_HISTORY_H
#define MB_FORECAST_HISTORY_H

#include "stage/forecast_model.h"

typedef struct mb_forecast_past {
    bool is_found;
    double tokens, seconds;
    int64_t ranks, threads; /* of a rank */
    int64_t looked_at;      /* records */
    char path[512];         /* the record */
} mb_forecast_past;

/* The newest record below `folder`; those of the stage's own study (opt_near) are looked at first. At most
 * some hundred are read. Among equal work one of `ranks` x `threads` is preferred. */
mb_status mb_forecast_history_find(const mb_forecast_stage *stage, const mb_forecast_model *model,
                                   const char *folder, const char *opt_near, int64_t ranks, int64_t threads,
                                   mb_forecast_past *out_past);

#endif
