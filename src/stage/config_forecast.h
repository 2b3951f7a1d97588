/* config_forecast: `moe-config forecast`: memory, time and files of a stage before it runs, and whether it
 * fits.
 *
 * Layer: stage.  Uses: forecast_*.
 */
#ifndef MB_CONFIG_FORECAST_H
#define MB_CONFIG_FORECAST_H

#include "model/lm.h"
#include "stage/program.h"

typedef struct mb_config_forecast {
    char *program; /* program */
    char *arch;    /* arch */
    char *makers;  /* makers */
    char *machine; /* machine */
    char *history; /* history */
    char *out;     /* out */
    int64_t nodes, ranks, ranks_per_node;
    double records, tokens, bytes_per_token;
    int64_t gpus_per_node;
    double node_memory_gib, gpu_memory_gib, max_minutes;
} mb_config_forecast;
const mb_option *mb_config_forecast_table(int64_t *out_count);

/* Is this word of the command line for the forecast itself (nodes=2), not for the stage? */
bool mb_config_forecast_is_own(const char *word);

/* words: what the stage's program gets. Prints the table; writes it as JSON where options->out says. threads:
 * of a rank; 0: as the stage says, else the node's cores shared out. MB_EUSAGE, after the table, when it does
 * not fit: the message names the limit, the kind that takes most, and what would help by how much. */
mb_status mb_config_forecast_run(const mb_config_forecast *options, const char *opt_file,
                                 const char *opt_group, int64_t threads, const char *const *words, int64_t n);

/* For the record of a run (rank 0): what `moe-config forecast out=<output.dir>/forecast.json` said before it:
 * results forecast_seconds, forecast_rank_bytes, forecast_source; and model_shape, by which later forecasts
 * find this record. Nothing but the last when there is no such file. */
mb_status mb_config_forecast_result(mb_program *program, const mb_lm *lm);

#endif
