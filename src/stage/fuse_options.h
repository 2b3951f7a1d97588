/* fuse_options: how programs name a fused model: its members and what mixes them, or the folder of a trained
 * router.
 *
 * Layer: stage.  Uses: model_options, model (fuse), comm, program.
 *
 * A program that takes these keys beside the model's opens what they say together:
 *   model.path                  an ordinary model, or a fused folder
 *   fuse.router                 a fused folder (fuse.json)
 *   fuse.foundation, fuse.sft   a new fused model of these members (and of those of fuse.more): an ensemble,
 *                               or with a new router
 * Only one of the three may be given.
 */
#ifndef MB_FUSE_OPTIONS_H
#define MB_FUSE_OPTIONS_H

#include "base/option.h"
#include "model/fuse.h"
#include "stage/model_options.h"
#include "stage/program.h"

typedef struct mb_fuse_options_stage {
    char *foundation, *sft;                 /* fuse.foundation, fuse.sft: folders */
    char *foundation_adapter, *sft_adapter; /* PEFT folders on top of them */
    double foundation_weight, sft_weight;   /* 0.5, 0.5 */
    char *more;                             /* fuse.more: list of [name=]folder */
    char *more_weights;                     /* fuse.more_weights: list, 0.5 each */
    char *mixing;                           /* fuse.mixing probabilities|logits */
    char *router_type;                      /* fuse.router_type layer_level|token_level */
    int64_t router_hidden;                  /* fuse.router_hidden 128 */
    char *router;                           /* fuse.router: a fused folder */
    char *members_on;                       /* fuse.members_on all|ranks */
} mb_fuse_options_stage;
const mb_option *mb_fuse_option_table(int64_t *out_count);

/* Do the keys name a model (members or fuse.router)? Do they name members? */
bool mb_fuse_options_is_given(const mb_fuse_options_stage *fuse);
bool mb_fuse_options_has_members(const mb_fuse_options_stage *fuse);

/* Members with the storage of their texts; what the keys hold is borrowed. */
typedef struct mb_fuse_options_list {
    int64_t count;
    mb_fuse_member member[MB_FUSE_MAX_MEMBERS];
    char **folder, **weight; /* items of fuse.more and fuse.more_weights */
    int64_t folders, weights;
    char name[MB_FUSE_MAX_MEMBERS][32];
} mb_fuse_options_list;
/* Those of fuse.foundation, fuse.sft and fuse.more; reset in any case. MB_EUSAGE as check. */
mb_status mb_fuse_options_list_get(const mb_fuse_options_stage *fuse, mb_fuse_options_list *list);
void mb_fuse_options_list_reset(mb_fuse_options_list *list);
/* MB_EUSAGE: contradicting keys, a member without its folder, weights that fit no member. */
mb_status mb_fuse_options_check(const mb_fuse_options_stage *fuse, const mb_model_options *model);
/* MB_EUSAGE where members are asked for on ranks of their own: for programs that have no such groups. */
mb_status mb_fuse_options_refuse_ranks(const mb_fuse_options_stage *fuse, const char *program);
/* Members of the model that open will give: 1 for an ordinary folder; reads the folder of a fused one. */
mb_status mb_fuse_options_members(const mb_fuse_options_stage *fuse, const mb_model_options *model,
                                  int64_t *out_members);
/* Of a fused folder, the folder and the adapter (NULL: none) of the member of this name; both mb_free.
 * MB_ENOTFOUND names those there are. */
mb_status mb_fuse_options_find_member(const char *folder, const char *name, char **out_path,
                                      char **out_adapter);
/* The folder that names the model in messages and records: model.path, fuse.router or fuse.foundation; NULL
 * when none is given. Borrowed. */
const char *mb_fuse_options_path(const mb_fuse_options_stage *fuse, const mb_model_options *model);

/* The model that the keys name (model->path alone: as mb_model_options_open, and a fused folder too).
 * train: "none", or for fused ones "router" (the router trains). opt_group: as in model/fuse.h
 * (fuse.members_on = ranks), NULL: all members here. seed: of a new router. new_router: members given by
 * fuse.foundation ... get a new router of fuse.router_type instead of being an ensemble. Collective with
 * model->opt_comm, and with opt_group. */
mb_status mb_fuse_options_open(const mb_fuse_options_stage *fuse, const mb_model_options *model, mb_ops *ops,
                               const char *train, mb_comm *opt_group, uint64_t seed, bool new_router,
                               mb_lm **out_lm);

/* mb_program_begin_run_list with the folders of these keys as inputs too ("foundation", "sft",
 * "foundation_adapter", "sft_adapter", "more_0", ..., "router"). Collective. */
mb_status mb_fuse_options_begin_run(mb_program *program, const mb_fuse_options_stage *fuse,
                                    const char *const *names, const char *const *paths, int64_t n,
                                    bool *out_is_done);
/* Into the key of a cache: the content of those inputs and how the members are mixed; nothing where the keys
 * name no fused model. After mb_fuse_options_begin_run, rank 0. */
mb_status mb_fuse_options_add_key(const mb_program *program, const mb_fuse_options_stage *fuse, json_t *what);

#endif
