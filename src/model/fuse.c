/* fuse: what several models as one share, whatever the kind: passes, checks, caches, identity.
 *
 * 1. the model
 * 2. what it says about itself
 * 3. hashes
 * 4. caches
 * 5. passes: create, check, start, wait, backward
 */
#include "model/fuse.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "model/fuse_state.h"
#include "store/contenthash.h"

/* ---- 1. the model ---- */

const char *mb_fuse_kind_name(mb_fuse_kind kind)
{
    static const char *const names[] = {"ensemble", "token_level", "layer_level"};
    return names[kind];
}

static void fuse_member_reset(fuse_member *member)
{
    mb_lm_destroy(&member->lm);
    mb_arch_reset(&member->arch);
    mb_free(member->name);
    mb_free(member->path);
    mb_free(member->adapter);
    mb_free(member->base);
}

void mb_fuse_destroy(struct mb_fuse **fuse)
{
    struct mb_fuse *f = *fuse;
    if (f == NULL) return;
    for (int64_t m = 0; m < f->count; m++) fuse_member_reset(&f->member[m]);
    mb_fuse_vocab_destroy(&f->vocab);
    mb_free(f->router);
    mb_free(f);
    *fuse = NULL;
}

/* ---- 2. what it says about itself ---- */

bool mb_lm_is_fused(const mb_lm *lm)
{
    return lm->fuse != NULL;
}
mb_fuse_kind mb_fuse_get_kind(const mb_lm *lm)
{
    assert(lm->fuse != NULL);
    return lm->fuse->kind;
}
int64_t mb_fuse_members(const mb_lm *lm)
{
    return lm->fuse != NULL ? lm->fuse->count : 1;
}
const char *mb_fuse_member_name(const mb_lm *lm, int64_t member)
{
    assert(lm->fuse != NULL && member >= 0 && member < lm->fuse->count);
    return lm->fuse->member[member].name;
}
double mb_fuse_member_weight(const mb_lm *lm, int64_t member)
{
    assert(lm->fuse != NULL && member >= 0 && member < lm->fuse->count);
    return lm->fuse->member[member].weight;
}
mb_lm *mb_fuse_member_lm(mb_lm *lm, int64_t member)
{
    assert(lm->fuse != NULL && member >= 0 && member < lm->fuse->count);
    return lm->fuse->member[member].lm;
}

void mb_fuse_set_dtype(mb_lm *lm, mb_dtype dtype)
{
    for (int64_t m = 0; m < lm->fuse->count; m++)
        if (lm->fuse->member[m].lm != NULL) mb_lm_set_dtype(lm->fuse->member[m].lm, dtype);
}

int64_t mb_fuse_rope_bytes(const mb_lm *lm)
{
    int64_t bytes = 0;
    for (int64_t m = 0; m < lm->fuse->count; m++)
        if (lm->fuse->member[m].lm != NULL) bytes += mb_lm_rope_bytes(lm->fuse->member[m].lm);
    return bytes;
}

mb_params_bytes_used mb_lm_used(const mb_lm *lm)
{
    mb_params_bytes_used sum = mb_params_used(lm->params);
    for (int64_t m = 0; lm->fuse != NULL && m < lm->fuse->count; m++) {
        if (lm->fuse->member[m].lm == NULL) continue;
        const mb_params_bytes_used one = mb_lm_used(lm->fuse->member[m].lm);
        sum.frozen += one.frozen;
        sum.trained += one.trained;
        sum.slots += one.slots;
    }
    return sum;
}

double mb_lm_flops(const mb_lm *lm, int64_t context)
{
    double flops = 0;
    if (lm->fuse == NULL) return mb_arch_flops(&lm->arch, lm->arch.layers, true, context);
    for (int64_t i = 0; i < lm->fuse->actives; i++) {
        const mb_arch *arch = &lm->fuse->member[lm->fuse->active[i]].arch;
        flops += mb_arch_flops(arch, arch->layers, true, context);
    }
    for (int64_t s = 0; s < lm->fuse->stages; s++) {
        const mb_fuse_router *router = &lm->fuse->router[s];
        flops += 2.0 * (double)router->hidden * (double)(2 * router->total + router->members);
    }
    return flops;
}

/* ---- 3. hashes ---- */

mb_status mb_fuse_member_hashes(fuse_member *member)
{
    mb_status status = MB_OK;
    if (member->hash[0] != 0) goto done;
    if (member->lm != NULL) {
        MB_TRY(mb_lm_hashes(member->lm, member->hash, member->adapter_hash));
        goto done;
    }
    if (member->adapter != NULL) MB_TRY(mb_contenthash_path(member->adapter, member->adapter_hash));
    MB_TRY(mb_contenthash_path(member->path, member->hash));
done:
    return status;
}

/* What the router is: its file, or what a new one is made from. */
static void fuse_hash_router(const struct mb_fuse *fuse, mb_hash *hash)
{
    if (fuse->stages > 0 && fuse->router_hash[0] != 0) {
        mb_hash_add_text(hash, fuse->router_hash);
        return;
    }
    mb_hash_add_int(hash, fuse->hidden);
    mb_hash_add_int(hash, fuse->stages > 0 ? (int64_t)fuse->seed : 0);
    mb_hash_add_int(hash, fuse->by_logits);
    for (int64_t m = 0; m < fuse->count; m++)
        mb_hash_add(hash, &fuse->member[m].weight, sizeof fuse->member[m].weight);
}

mb_status mb_fuse_hashes(mb_lm *lm, char out_model[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    struct mb_fuse *fuse = lm->fuse;
    mb_hash *hash = NULL;
    MB_TRY(mb_hash_create(&hash));
    mb_hash_add_text(hash, mb_fuse_kind_name(fuse->kind));
    for (int64_t m = 0; m < fuse->count; m++) {
        MB_TRY(mb_fuse_member_hashes(&fuse->member[m]));
        mb_hash_add_text(hash, fuse->member[m].hash);
        mb_hash_add_text(hash, fuse->member[m].adapter_hash);
    }
    fuse_hash_router(fuse, hash);
    mb_hash_get(hash, out_model);
done:
    mb_hash_destroy(&hash);
    return status;
}

/* ---- 4. caches ---- */

/* Members whose keys are kept here: those that are run; a rank whose member is not keeps the books with
 * it. */
static bool fuse_keeps(const struct mb_fuse *fuse, int64_t member)
{
    if (fuse->member[member].lm == NULL) return false;
    for (int64_t i = 0; i < fuse->actives; i++)
        if (fuse->active[i] == member) return true;
    return fuse->group != NULL;
}

mb_status mb_fuse_cache_create(mb_lm *lm, int64_t slots, int64_t rows, mb_kv_cache **out_cache)
{
    mb_status status = MB_OK;
    mb_kv_cache *first = NULL, **end = &first;
    for (int64_t m = 0; m < lm->fuse->count; m++) {
        if (!fuse_keeps(lm->fuse, m)) continue;
        MB_TRY(mb_lm_cache_create(lm->fuse->member[m].lm, slots, rows, end));
        end = &(*end)->next;
    }
    *out_cache = first;
    first = NULL;
done:
    mb_kv_cache_destroy(&first);
    return status;
}

mb_kv_cache *mb_fuse_cache_of(const struct mb_fuse *fuse, mb_kv_cache *opt_cache, int64_t member)
{
    mb_kv_cache *cache = opt_cache;
    for (int64_t m = 0; m < member && cache != NULL; m++)
        if (fuse_keeps(fuse, m)) cache = cache->next;
    return cache;
}

/* ---- 5. passes ---- */

mb_status mb_fuse_pass_create(mb_lm_pass *pass)
{
    mb_status status = MB_OK;
    struct mb_fuse *fuse = pass->lm->fuse;
    MB_NEW(pass->fuse);
    MB_NEW_ARRAY(pass->fuse->saved, fuse->stages);
    MB_NEW_ARRAY(pass->fuse->parts, fuse->stages * MB_FUSE_MAX_PARTS);
    for (int64_t i = 0; fuse->kind != MB_FUSE_LAYER && i < fuse->actives; i++) {
        const int64_t m = fuse->active[i];
        if (fuse->member[m].lm != NULL) MB_TRY(mb_lm_pass_create(fuse->member[m].lm, &pass->fuse->member[m]));
    }
    if (fuse->kind == MB_FUSE_LAYER) MB_TRY(mb_fuse_layer_pass_create(pass));
done:
    return status;
}

void mb_fuse_pass_destroy(mb_lm_pass *pass)
{
    if (pass->fuse == NULL) return;
    if (pass->lm->fuse->kind == MB_FUSE_LAYER) mb_fuse_layer_pass_destroy(pass);
    for (int64_t m = 0; m < MB_FUSE_MAX_MEMBERS; m++) mb_lm_pass_destroy(&pass->fuse->member[m]);
    mb_free(pass->fuse->saved);
    mb_free(pass->fuse->parts);
    MB_FREE(pass->fuse);
}

size_t mb_lm_pass_peak_bytes(const mb_lm_pass *pass)
{
    size_t bytes = mb_arena_peak_bytes(pass->arena);
    for (int64_t m = 0; pass->fuse != NULL && m < MB_FUSE_MAX_MEMBERS; m++)
        if (pass->fuse->member[m] != NULL) bytes += mb_lm_pass_peak_bytes(pass->fuse->member[m]);
    return bytes;
}

/* Tokens that a member has no embedding for. */
static mb_status fuse_check_ids(const mb_lm *lm, const mb_lm_batch *batch)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = lm->fuse;
    int64_t least = lm->arch.vocab;
    for (int64_t i = 0; i < fuse->actives; i++)
        if (fuse->member[fuse->active[i]].arch.vocab < least)
            least = fuse->member[fuse->active[i]].arch.vocab;
    for (int64_t t = 0; t < batch->tokens && least < lm->arch.vocab; t++) {
        if (batch->ids[t] < least) continue;
        for (int64_t i = 0; i < fuse->actives; i++) {
            const fuse_member *member = &fuse->member[fuse->active[i]];
            if (batch->ids[t] < member->arch.vocab) continue;
            MB_RAISE(MB_ERANGE,
                     "forward: row %lld holds token %d '%s', and member %s (%s) has no embedding for it; "
                     "leave it out of the text (%s has %lld tokens)",
                     (long long)t, batch->ids[t], mb_fuse_vocab_token(fuse->vocab, batch->ids[t]),
                     member->name, member->path, member->name, (long long)member->arch.vocab);
        }
    }
done:
    return status;
}

static mb_status fuse_check(const mb_lm *lm, const mb_lm_batch *batch, const mb_lm_want *want)
{
    mb_status status = MB_OK;
    if (want->hidden)
        MB_RAISE(MB_EUSAGE, "forward: a fused model has no one hidden state; ask a member for its own");
    if (want->routers > 0)
        MB_RAISE(MB_EUSAGE, "forward: a fused model does not stop after some of its routers");
    if (batch->opt_teacher != NULL) MB_RAISE(MB_EUSAGE, "forward: a fused model is a teacher, not a student");
    if (want->gradient && lm->fuse->group != NULL)
        MB_RAISE(MB_EUSAGE, "forward: with members on different ranks nothing trains");
    MB_TRY(mb_lm_forward_check(lm, batch, want));
    MB_TRY(fuse_check_ids(lm, batch));
done:
    return status;
}

static mb_status fuse_finish(mb_lm_pass *pass)
{
    pass->fuse->is_pending = false;
    return pass->lm->fuse->kind == MB_FUSE_LAYER ? mb_fuse_layer_wait(pass) : mb_fuse_token_finish(pass);
}

mb_status mb_fuse_forward_start(mb_lm_pass *pass, const mb_lm_batch *batch, const mb_lm_want *want,
                                mb_lm_output *out)
{
    mb_status status = MB_OK;
    mb_lm *lm = pass->lm;
    mb_lm_output result = {0};
    MB_TRY(fuse_check(lm, batch, want));
    MB_TRY(mb_lm_forward_reset(pass, batch, want));
    pass->sent = *batch;
    pass->context = (mb_block_context){.p = {.ops = lm->ops, .arena = pass->arena},
                                       .host = pass->host,
                                       .arch = &lm->arch,
                                       .tokens = batch->tokens,
                                       .dtype = MB_F32,
                                       .gradient = want->gradient};
    MB_TRY(lm->fuse->kind == MB_FUSE_LAYER ? mb_fuse_layer_forward_start(pass, &result)
                                           : mb_fuse_agree(lm->fuse, mb_fuse_token_start(pass, &result)));
    pass->fuse->is_pending = true;
    if (!mb_ops_is_device(lm->ops)) MB_TRY(fuse_finish(pass));
    pass->is_ready = want->gradient;
    *out = result;
done:
    return status;
}

mb_status mb_fuse_pass_wait(mb_lm_pass *pass)
{
    mb_status status = mb_ops_wait(pass->ops);
    for (int64_t m = 0; m < MB_FUSE_MAX_MEMBERS && status == MB_OK; m++)
        if (pass->fuse->member[m] != NULL) status = mb_lm_pass_wait(pass->fuse->member[m]);
    if (pass->fuse->is_pending) status = mb_fuse_agree(pass->lm->fuse, status);
    MB_TRY(status);
    if (pass->fuse->is_pending) MB_TRY(fuse_finish(pass));
done:
    return status;
}

mb_status mb_fuse_gradient_begin(mb_lm *lm)
{
    mb_status status = MB_OK;
    if (lm->fuse->kind != MB_FUSE_ENSEMBLE) MB_TRY(mb_params_gradient_begin(lm->params, lm->arch.layers));
done:
    return status;
}

mb_status mb_fuse_backward(mb_lm_pass *pass, const float *opt_d_token_loss, float *const *opt_d_router_logits)
{
    mb_status status = MB_OK;
    const mb_lm *lm = pass->lm;
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    if (mb_params_lowest_trained(lm->params) > lm->arch.layers) return MB_OK;
    if (pass->fuse->is_pending) MB_TRY(mb_lm_pass_wait(pass)); /* the host's part comes first */
    MB_TRY(mb_lm_backward_begin(pass));
    pass->context.host = pass->host_back;
    MB_TRY(mb_lm_gradient_begin(pass->lm));
    MB_TRY(lm->fuse->kind == MB_FUSE_LAYER
               ? mb_fuse_layer_backward(pass, opt_d_token_loss, opt_d_router_logits)
               : mb_fuse_token_backward(pass, opt_d_token_loss, opt_d_router_logits));
done:
    mb_arena_release(pass->arena, mark);
    return status;
}
