/* forecast_model: the shape of the model a stage will open, whether or not it is there yet.
 *
 * Layer: stage.  Uses: forecast_stage, model (arch, encoder_config, lora).
 *
 * A folder that is there says it itself (config.json). One that an earlier stage will make is looked for in
 * the study file: study.selector and study.target (folders), or study.selector_config and study.target_config
 * (config.json of models made on the spot). Which of the two: a path whose stage has "target" in its name, or
 * that a stage after it trains or evaluates, is the target's; with the trash experts that moe-convert adds
 * where the path's stage converts or warms up. Where the study file does not say, the stage that makes the
 * folder does (forecast_makers.h): moe-train its own model, moe-convert what it is given.
 */
#ifndef MB_FORECAST_MODEL_H
#define MB_FORECAST_MODEL_H

#include "model/encoder_config.h"
#include "stage/forecast_stage.h"

typedef struct mb_forecast_fused mb_forecast_fused; /* forecast_fuse.h */

typedef struct mb_forecast_model {
    bool is_encoder;
    mb_forecast_fused *fused;  /* several models as one; NULL: an ordinary model */
    mb_arch arch;              /* of a decoder */
    mb_encoder_config encoder; /* of an encoder */
    bool has_adapter;          /* on top of the decoder, read from a folder */
    mb_lora_options adapter;   /* targets owned */
    char says[512];            /* where the shape is from */
} mb_forecast_model;

/* The model of the stage's own options, or, of moe-score, that at opt_path. opt_arch: config.json, or a
 * folder that has one, that counts instead of it (of a fused model: of the members that are not there).
 * MB_EUSAGE when nothing says what the model is, MB_EUNSUPPORTED when a stage makes it and does not say that.
 * Reset in any case. */
mb_status mb_forecast_model_find(mb_forecast_stage *stage, const char *opt_path, const char *opt_arch,
                                 mb_forecast_model *out_model);
/* The model in the folder `path`, now or later, and an adapter on it. Errors as above. */
mb_status mb_forecast_model_at(mb_forecast_stage *stage, const char *path, const char *opt_adapter,
                               mb_forecast_model *out_model);
/* Of a distillation, the teacher that is asked while training; *out_found false: there is none. */
mb_status mb_forecast_model_find_teacher(mb_forecast_stage *stage, mb_forecast_model *out_model,
                                         bool *out_found);
void mb_forecast_model_reset(mb_forecast_model *model);

/* Shape in one word for records and comparing: equal for models of equal cost. opt_kind: of a fused model. */
void mb_forecast_model_shape(const mb_arch *arch, const char *opt_kind, char out_text[200]);
/* opt_kind of a model: NULL where it is an ordinary one. */
const char *mb_forecast_model_kind(const mb_forecast_model *model);

/* The name of the stage that makes a file: ".../run1/finetune-all/final" -> "finetune-all" (mb_free; NULL on
 * no memory). */
char *mb_forecast_model_stage_of(const char *path);
/* The group of the study file that a stage of this name reads: itself, or what is left of its last "-"s
 * (mb_free); NULL: none. */
char *mb_forecast_model_group_of(const mb_forecast_stage *stage, const char *name);

#endif
