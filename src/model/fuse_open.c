/* fuse_open: a fused model from its members' folders, with a new router or one that was written.
 *
 * 1. options
 * 2. members: what their folders say, then their weights
 * 3. the model around them
 * 4. routers
 * 5. open
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "model/fuse_state.h"
#include "store/contenthash.h"

/* ---- 1. options ---- */

static mb_status open_check_members(const mb_fuse_options *o)
{
    mb_status status = MB_OK;
    double sum = 0;
    if (o->count < 2 || o->count > MB_FUSE_MAX_MEMBERS)
        MB_RAISE(MB_EUSAGE, "a fused model has 2 to %d members, not %lld", MB_FUSE_MAX_MEMBERS,
                 (long long)o->count);
    for (int64_t m = 0; m < o->count; m++) {
        const mb_fuse_member *member = &o->member[m];
        for (int64_t i = 0; i < m; i++)
            if (strcmp(o->member[i].name, member->name) == 0)
                MB_RAISE(MB_EUSAGE, "two members are called %s; give each a name of its own", member->name);
        if (!(member->weight >= 0 && member->weight < 1e30))
            MB_RAISE(MB_ERANGE, "weight of member %s is %g; it must be 0 or more", member->name,
                     member->weight);
        if (member->weight == 0 && o->kind != MB_FUSE_ENSEMBLE)
            MB_RAISE(MB_ERANGE,
                     "weight of member %s is 0: a router starts from the weights, and would never choose it; "
                     "give it more, or leave it out",
                     member->name);
        if (mb_fuse_is_folder(member->path))
            MB_RAISE(MB_EUNSUPPORTED,
                     "member %s: %s is a fused model itself; give the models it is made of (at most %d)",
                     member->name, member->path, MB_FUSE_MAX_MEMBERS);
        sum += member->weight;
    }
    if (!(sum > 0)) MB_RAISE(MB_ERANGE, "all members' weights are 0; one of them must be more");
done:
    return status;
}

static mb_status open_check(const mb_fuse_options *o)
{
    mb_status status = MB_OK;
    MB_TRY(open_check_members(o));
    if (o->train && o->kind == MB_FUSE_ENSEMBLE)
        MB_RAISE(MB_EUSAGE, "an ensemble has no router, so nothing of it trains; set training.objective=btm "
                            "with fuse.foundation and fuse.sft, or train=none");
    if (o->train && o->opt_group != NULL)
        MB_RAISE(MB_EUSAGE, "with members on different ranks nothing trains; set fuse.members_on = all");
    if (o->by_logits && o->kind != MB_FUSE_ENSEMBLE)
        MB_RAISE(MB_EUSAGE, "mixing logits goes with an ensemble; a router says itself what it mixes");
    if (o->opt_group != NULL && mb_comm_size(o->opt_group) != o->count)
        MB_RAISE(MB_EUSAGE,
                 "%lld members on the ranks of a group of %d: one rank each; start as many ranks as members",
                 (long long)o->count, mb_comm_size(o->opt_group));
    if (o->router_hidden < 0 || o->router_hidden > 65536)
        MB_RAISE(MB_ERANGE, "fuse.router_hidden %lld: 1 to 65536", (long long)o->router_hidden);
done:
    return status;
}

/* All or none of the ranks go on. */
static mb_status open_agree(const mb_fuse_options *o, mb_status status)
{
    if (o->opt_group != NULL) return mb_comm_agree(o->opt_group, status);
    return o->opt_comm != NULL ? mb_comm_agree(o->opt_comm, status) : status;
}

/* ---- 2. members ---- */

static mb_status open_peek(struct mb_fuse *fuse, const mb_fuse_options *o)
{
    mb_status status = MB_OK;
    double sum = 0;
    for (int64_t m = 0; m < o->count; m++) sum += o->member[m].weight;
    for (int64_t m = 0; m < o->count; m++) {
        const mb_fuse_member *from = &o->member[m];
        fuse_member *to = &fuse->member[m];
        to->weight = from->weight / sum;
        to->name = mb_strdup(from->name);
        to->path = mb_strdup(from->path);
        to->adapter = mb_strdup(from->opt_adapter);
        if (to->name == NULL || to->path == NULL || (from->opt_adapter != NULL && to->adapter == NULL))
            MB_RAISE(MB_ENOMEM, "%s: no memory", from->path);
        MB_TRY(mb_lm_peek(to->path, &to->arch, &to->base));
        if (o->kind != MB_FUSE_ENSEMBLE || to->weight > 0) fuse->active[fuse->actives++] = m;
    }
done:
    return status;
}

/* Vocabularies of those that are run. */
static mb_status open_vocab(struct mb_fuse *fuse)
{
    mb_status status = MB_OK;
    mb_fuse_vocab_source source[MB_FUSE_MAX_MEMBERS];
    for (int64_t i = 0; i < fuse->actives; i++) {
        const fuse_member *member = &fuse->member[fuse->active[i]];
        source[i] = (mb_fuse_vocab_source){member->name, member->base, member->arch.vocab};
    }
    MB_TRY(mb_fuse_vocab_create(source, fuse->actives, &fuse->vocab));
    mb_fuse_vocab_report(fuse->vocab, source);
done:
    return status;
}

static mb_status open_weights(struct mb_fuse *fuse, mb_ops *ops, const mb_fuse_options *o)
{
    mb_status status = MB_OK;
    const bool is_alone = o->opt_group != NULL;
    for (int64_t m = 0; m < fuse->count; m++) {
        const mb_lm_options one = {.path = fuse->member[m].path,
                                   .opt_adapter = fuse->member[m].adapter,
                                   .train = "none",
                                   .input_gradient = o->train && o->kind == MB_FUSE_LAYER,
                                   .seed = o->seed,
                                   .dtype = o->dtype,
                                   .frozen_bits = o->frozen_bits,
                                   .frozen_group = o->frozen_group,
                                   .opt_comm = is_alone ? NULL : o->opt_comm,
                                   .share = o->share && !is_alone};
        if (is_alone && mb_comm_rank(o->opt_group) != m) continue;
        MB_TRY(mb_lm_open(ops, &one, &fuse->member[m].lm));
    }
done:
    return status;
}

/* ---- 3. the model around them ---- */

/* The first member's architecture, with routers in the place of experts, and what all can do. */
static mb_status open_arch(mb_lm *lm)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = lm->fuse;
    mb_arch *arch = &lm->arch;
    MB_TRY(mb_arch_copy(&fuse->member[fuse->active[0]].arch, arch));
    int64_t limit = mb_rotary_limit(&arch->rotary, arch->max_positions);
    for (int64_t i = 1; i < fuse->actives; i++) {
        const mb_arch *other = &fuse->member[fuse->active[i]].arch;
        const int64_t its = mb_rotary_limit(&other->rotary, other->max_positions);
        if (its >= limit) continue;
        limit = its;
        arch->max_positions = other->max_positions;
        arch->rotary = other->rotary;
        arch->rope_theta = other->rope_theta;
    }
    for (int64_t l = 0; l < arch->layers; l++) arch->layer[l] &= (uint8_t)~MB_LAYER_MOE;
    if (arch->experts > 0) arch->ffn = arch->dense_ffn > 0 ? arch->dense_ffn : arch->ffn;
    arch->vocab = fuse->vocab->size;
    for (int64_t i = 0; fuse->kind == MB_FUSE_LAYER && i < fuse->actives;
         i++) /* heads are cut to the least */
        if (fuse->vocab->rows[i] < arch->vocab) arch->vocab = fuse->vocab->rows[i];
    arch->experts = fuse->stages > 0 ? fuse->count : 0;
    arch->picks = fuse->stages > 0 ? 1 : 0;
    arch->trash = arch->declared_trash = 0;
    arch->router_bias = arch->tied_head = false;
done:
    return status;
}

/* ---- 4. routers ---- */

static mb_status open_token_router(struct mb_fuse *fuse)
{
    mb_status status = MB_OK;
    int64_t width[MB_FUSE_MAX_PARTS];
    for (int64_t m = 0; m < fuse->count; m++) width[m] = fuse->member[m].arch.width;
    MB_NEW(fuse->router);
    fuse->stages = 1;
    mb_fuse_router_init(&fuse->router[0], 0, fuse->member[0].arch.layers, fuse->count, width, fuse->count,
                        fuse->hidden);
done:
    return status;
}

static mb_status open_layer_routers(struct mb_fuse *fuse)
{
    mb_status status = MB_OK;
    const int64_t layers = fuse->member[0].arch.layers;
    int64_t width[MB_FUSE_MAX_PARTS];
    MB_TRY(mb_fuse_layer_check(fuse));
    for (int64_t p = 0; p <= fuse->count; p++) width[p] = fuse->member[0].arch.width;
    MB_NEW_ARRAY(fuse->router, layers + 2);
    fuse->stages = layers + 2;
    for (int64_t s = 0; s < fuse->stages; s++)
        mb_fuse_router_init(&fuse->router[s], s, s - 1, s == 0 ? fuse->count : fuse->count + 1, width,
                            fuse->count, fuse->hidden);
done:
    return status;
}

static mb_status open_router_values(struct mb_fuse *fuse, mb_params *params, const char *opt_folder)
{
    mb_status status = MB_OK;
    char *path = NULL;
    double weight[MB_FUSE_MAX_MEMBERS];
    for (int64_t m = 0; m < fuse->count; m++) weight[m] = fuse->member[m].weight;
    for (int64_t s = 0; s < fuse->stages; s++) mb_fuse_router_find(&fuse->router[s], params);
    if (fuse->stages == 0) goto done;
    if (opt_folder != NULL) {
        path = mb_files_join(opt_folder, "router.safetensors");
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", opt_folder);
        MB_TRY(mb_params_read(params, path));
        MB_TRY(mb_contenthash_path(path, fuse->router_hash));
    }
    for (int64_t s = 0; s < fuse->stages && opt_folder == NULL; s++)
        MB_TRY(mb_fuse_router_randomise(&fuse->router[s], fuse->seed, weight));
done:
    mb_free(path);
    return status;
}

mb_status mb_fuse_make_routers(struct mb_fuse *fuse)
{
    if (fuse->kind == MB_FUSE_TOKEN) return open_token_router(fuse);
    return fuse->kind == MB_FUSE_LAYER ? open_layer_routers(fuse) : MB_OK;
}

/* ---- 5. open ---- */

/* Everything that can go wrong before weights are read. */
static mb_status open_prepare(mb_lm *lm, const mb_fuse_options *o, const char *opt_folder)
{
    mb_status status = MB_OK;
    struct mb_fuse *fuse = lm->fuse;
    MB_TRY(open_check(o));
    fuse->kind = o->kind;
    fuse->by_logits = o->by_logits;
    fuse->count = o->count;
    fuse->hidden = o->router_hidden > 0 ? o->router_hidden : MB_FUSE_ROUTER_HIDDEN;
    fuse->group = o->opt_group;
    fuse->trains = o->train;
    fuse->seed = o->seed;
    MB_TRY(open_peek(fuse, o));
    MB_TRY(open_vocab(fuse));
    MB_TRY(mb_fuse_make_routers(fuse));
    MB_TRY(open_arch(lm));
    MB_TRY(mb_params_create_empty(lm->arch.layers, lm->ops, &lm->params));
    for (int64_t s = 0; s < fuse->stages; s++) MB_TRY(mb_fuse_router_add(&fuse->router[s], lm->params));
    lm->dtype = o->dtype;
    lm->base = mb_strdup(fuse->member[0].base);
    lm->path = mb_strdup(opt_folder);
    if (lm->base == NULL || (opt_folder != NULL && lm->path == NULL)) MB_RAISE(MB_ENOMEM, "no memory");
    mb_params_spread(lm->params, o->opt_group == NULL ? o->opt_comm : NULL, false, false);
done:
    return status;
}

mb_status mb_fuse_open_from(mb_ops *ops, const mb_fuse_options *options, const char *opt_folder,
                            mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    MB_NEW(lm);
    lm->ops = ops;
    MB_NEW(lm->fuse);
    MB_TRY(open_agree(options, open_prepare(lm, options, opt_folder)));
    MB_TRY(open_agree(options, open_weights(lm->fuse, ops, options)));
    MB_TRY(mb_params_seal(lm->params, options->train ? "all" : "none"));
    MB_TRY(open_agree(options, open_router_values(lm->fuse, lm->params, opt_folder)));
    MB_TRY(mb_params_filled(lm->params));
    *out_lm = lm;
    lm = NULL;
done:
    mb_lm_destroy(&lm);
    return status;
}

mb_status mb_fuse_open(mb_ops *ops, const mb_fuse_options *options, mb_lm **out_lm)
{
    return mb_fuse_open_from(ops, options, NULL, out_lm);
}
