/* forecast_stage: a stage as its program would see it, read from the words of its command line, without
 * running it.
 *
 * Layer: stage.  Uses: config, program_options.
 */
#ifndef MB_FORECAST_STAGE_H
#define MB_FORECAST_STAGE_H

#include "config/config.h"
#include "stage/program_options.h"

typedef enum mb_forecast_program {
    MB_FORECAST_SHARD,
    MB_FORECAST_CONVERT,
    MB_FORECAST_TRAIN,
    MB_FORECAST_SCORE,
    MB_FORECAST_SELECT,
    MB_FORECAST_EVAL,
    MB_FORECAST_EMBED,
    MB_FORECAST_INFER,
    MB_FORECAST_TEACHER,
    MB_FORECAST_PROGRAMS
} mb_forecast_program;

/* Options of every program and of the job around it, as far as a forecast needs them. */
typedef struct mb_forecast_common {
    char *output_dir, *backend, *share, *site, *extra, *partition, *gpus, *time, *memory;
    bool force, share_gpu;
    int64_t threads, nodes, ntasks, cpus_per_task, array, throttle;
} mb_forecast_common;

typedef struct mb_forecast_stage {
    mb_forecast_program program;
    char *mode;         /* NULL: none was given */
    char *file;         /* study file, NULL: none */
    char *group;        /* NULL: none */
    bool on_gpu;        /* it computes on GPUs, one of a rank; said by whoever knows the nodes */
    mb_config *config;  /* of file and group, for keys that no table has */
    const char *makers; /* list of the study's stages (forecast_makers.h); NULL: none. Borrowed */
    const char *arch;   /* config.json of models that are not there; NULL: none. Borrowed */
    int64_t depth;      /* stages that were asked on the way to this one */
    union {
        mb_shard_program shard;
        mb_convert_program convert;
        mb_train_program train;
        mb_score_program score;
        mb_select_program select;
        mb_eval_program eval;
        mb_embed_program embed;
        mb_infer_program infer;
        mb_teacher_program teacher;
    } own;
    mb_forecast_common common;
    mb_option_table tables[8];
    int64_t table_count;
} mb_forecast_stage;

const char *mb_forecast_stage_name(mb_forecast_program program); /* "moe-train" */

/* opt_program: "moe-train"; NULL: by the keys of the group. words: what the program gets: `[mode]
 * [study.cfg] [stage=GROUP] key=value ...`; options beginning with "-" are passed over. MB_EUSAGE as the
 * program itself would say it. Reset in any case. */
mb_status mb_forecast_stage_open(const char *opt_program, const char *const *words, int64_t n,
                                 mb_forecast_stage *out_stage);
void mb_forecast_stage_reset(mb_forecast_stage *stage);

/* The model that the stage opens; NULL: none. Borrowed. */
mb_model_options *mb_forecast_stage_model(mb_forecast_stage *stage);
/* Its keys of fused models; NULL: it has none. Borrowed. */
const mb_fuse_options_stage *mb_forecast_stage_fuse(const mb_forecast_stage *stage);
/* Is it moe-train with training.objective=btm; with distil? */
bool mb_forecast_stage_is_btm(const mb_forecast_stage *stage);
bool mb_forecast_stage_is_distil(const mb_forecast_stage *stage);
/* The shard or file it reads, as named; NULL: none. Borrowed. */
const char *mb_forecast_stage_dataset(const mb_forecast_stage *stage);
/* A key of the study file as text (mb_free), NULL when it is not there or empty. */
char *mb_forecast_stage_text(const mb_forecast_stage *stage, const char *key);
/* Has the study file this group? */
bool mb_forecast_stage_has_group(const mb_forecast_stage *stage, const char *group);

#endif
