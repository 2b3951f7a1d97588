/* forecast_makers: the stages of a study, and which of them will make a file that is not there yet.
 *
 * Layer: stage.  Uses: forecast_stage.
 *
 * A study's script writes them down (jobs/lib-forecast.sh, `makers=FILE`), a stage a line, fields parted by
 * tabs:
 *     folder of the results, program, and every word that the program gets
 * So models and data to come are those of the stages' own keys, not guesses by names.
 */
#ifndef MB_FORECAST_MAKERS_H
#define MB_FORECAST_MAKERS_H

#include "stage/forecast_stage.h"

/* The stage whose folder `path` is in; *out_found false: none, or there is no list. Reset it in any case.
 * MB_EFORMAT: a line without folder or program; MB_EUSAGE: what the stage's own words are refused for, or a
 * chain of stages that ends nowhere. */
mb_status mb_forecast_makers_find(const mb_forecast_stage *stage, const char *path,
                                  mb_forecast_stage *out_maker, bool *out_found);

#endif
