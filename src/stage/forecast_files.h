/* forecast_files: what a stage writes: bytes and numbers of files, what stays and what is there meanwhile.
 *
 * Layer: stage.  Uses: forecast_stage, forecast_data, forecast_memory, measure (forecast).
 */
#ifndef MB_FORECAST_FILES_H
#define MB_FORECAST_FILES_H

#include "stage/forecast_data.h"
#include "stage/forecast_memory.h"
#include "stage/forecast_model.h"

enum { MB_FORECAST_FILES_MAX = 8 };

typedef struct mb_forecast_file {
    const char *kind;
    double bytes, files; /* of all of this kind */
    bool is_passing;     /* gone when the stage is done */
} mb_forecast_file;

typedef struct mb_forecast_files {
    mb_forecast_file file[MB_FORECAST_FILES_MAX];
    int64_t count;
    double bytes, files;           /* that stay */
    double peak_bytes, peak_files; /* with those that pass */
} mb_forecast_files;

void mb_forecast_files_get(const mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                           const mb_forecast_data *data, const mb_forecast_memory *memory,
                           mb_forecast_files *out_files);

#endif
