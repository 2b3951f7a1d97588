/* forecast_time: operations and seconds of a stage: from the record of a run of the same work where there is
 * one, else from rates of the machine (measure/forecast.h).
 *
 * Layer: stage.  Uses: forecast_stage, forecast_model, forecast_data, forecast_memory, forecast_history,
 * measure (forecast).
 */
#ifndef MB_FORECAST_TIME_H
#define MB_FORECAST_TIME_H

#include "measure/forecast.h"
#include "stage/forecast_data.h"
#include "stage/forecast_history.h"
#include "stage/forecast_memory.h"

typedef struct mb_forecast_time {
    bool is_known;          /* how much work there is */
    double tokens;          /* computed; copies not counted */
    double flops_per_token; /* of all passes over a token, on the way back too */
    double steps, step_seconds;
    double compute_seconds; /* tokens and steps */
    double file_seconds;    /* reading the model, writing checkpoints: not within a measured run's seconds */
    double seconds;         /* of the stage */
    double tokens_per_second;
    double estimated_seconds; /* compute_seconds by rates alone, whatever was measured */
    char says[700];           /* measured or estimated, and from what */
} mb_forecast_time;

/* past: is_found false when there is no record. */
mb_status mb_forecast_time_get(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                               const mb_forecast_model *opt_source, const mb_forecast_data *data,
                               const mb_forecast_memory *memory, const mb_forecast_machine *machine,
                               const mb_forecast_layout *layout, const mb_forecast_past *past,
                               mb_forecast_time *out_time);

/* Of moe-score: which models its scores need. */
mb_scorer_needs mb_forecast_time_needs(const mb_forecast_stage *stage);

#endif
