/* forecast_fuse: fused models in forecasts: their members whether or not they are there yet, the bytes they
 * take, the operations of a token.
 *
 * Layer: stage.  Uses: forecast_model, fuse_options, model (fuse), measure (forecast).
 */
#ifndef MB_FORECAST_FUSE_H
#define MB_FORECAST_FUSE_H

#include "measure/forecast.h"
#include "model/fuse.h"
#include "stage/forecast_model.h"

struct mb_forecast_fused {
    mb_fuse_kind kind;
    bool by_logits, is_spread; /* each member on a rank of its own */
    int64_t count, hidden;     /* members; columns of the routers */
    char *name[MB_FUSE_MAX_MEMBERS];
    double weight[MB_FUSE_MAX_MEMBERS];
    mb_forecast_model member[MB_FUSE_MAX_MEMBERS];
};

/* Is the model of this stage fused, by its keys of fuse.* alone? */
bool mb_forecast_fuse_is_given(const mb_forecast_stage *stage);
/* Members and kind as the keys say (fuse.foundation ...; new_router: with a router of fuse.router_type), or
 * as the fused folder at `path` says. Into model->fused and model->arch, which is what the open model's will
 * be. Errors: mb_forecast_model_find's, of each member. */
mb_status mb_forecast_fuse_from_keys(mb_forecast_stage *stage, const mb_fuse_options_stage *fuse,
                                     bool new_router, mb_forecast_model *model);
mb_status mb_forecast_fuse_from_folder(mb_forecast_stage *stage, const char *path, mb_forecast_model *model);
void mb_forecast_fuse_reset(mb_forecast_fused **fused);

/* Members that are run: all, or of an ensemble those that weigh something. */
int64_t mb_forecast_fuse_actives(const mb_forecast_fused *fused);
/* Does it mix whole distributions (an ensemble, token level)? */
bool mb_forecast_fuse_is_mixed(const mb_forecast_model *model);
/* Routers, as mb_lm_routers of the open model. */
int64_t mb_forecast_fuse_stages(const mb_forecast_model *model);
/* trains: its router. MB_EDATA: members that cannot be fused by layer. */
mb_status mb_forecast_fuse_plan(const mb_forecast_model *model, bool trains,
                                const mb_lm_plan_options *options, mb_fuse_plan *out_plan);
/* Of keys and values in `rows` rows, of the rank that keeps most. */
double mb_forecast_fuse_cache(const mb_forecast_model *model, mb_dtype dtype, int64_t rows);
/* Of logits that mixing has beside those of the model itself: [rows, V] of every member and of the mixture,
 * in chunks (fuse_token.c). 0 at the layer level. */
double mb_forecast_fuse_logits(const mb_forecast_model *model, double rows);

/* A token's forward: the members', the routers', the mixing; wide: with all columns of the vocabulary. */
mb_forecast_cost mb_forecast_fuse_cost(const mb_forecast_model *model, bool head, bool wide, double context);
/* A token of the router's training: at the layer level the way back goes through the members' blocks. */
mb_forecast_cost mb_forecast_fuse_cost_train(const mb_forecast_model *model, bool recompute, double context);

#endif
