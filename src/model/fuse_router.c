/* fuse_router: RMS norms of the parts, side by side into a SwiGLU network of one hidden layer, and a softmax.
 *
 * Norms and z are made again in the backward rather than kept (as in block.h). Parts of different widths
 * stand side by side in pieces of their greatest common divisor's width, so that a row op can place them:
 * piece j of part p of row r is row r * pieces + at_p + j of z seen as [R * pieces, piece].
 *
 * 1. parameters
 * 2. z
 * 3. forward
 * 4. backward
 */
#include "model/fuse_router.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/rng.h"

#define ROUTER_EPS 1e-6f
#define ROUTER_STD 0.02

/* ---- 1. parameters ---- */

void mb_fuse_router_init(mb_fuse_router *router, int64_t stage, int64_t block, int64_t parts,
                         const int64_t *width, int64_t members, int64_t hidden)
{
    assert(parts >= 1 && parts <= MB_FUSE_MAX_PARTS);
    *router = (mb_fuse_router){
        .stage = stage, .block = block, .parts = parts, .members = members, .hidden = hidden};
    for (int64_t p = 0; p < parts; p++) {
        router->width[p] = width[p];
        router->total += width[p];
    }
}

enum { NAME = 64 };

static const char *router_name(const mb_fuse_router *router, const char *what, char out[NAME])
{
    snprintf(out, NAME, "router.%lld.%s", (long long)router->stage, what);
    return out;
}

static const char *router_norm_name(const mb_fuse_router *router, int64_t part, char out[NAME])
{
    snprintf(out, NAME, "router.%lld.norm.%lld.weight", (long long)router->stage, (long long)part);
    return out;
}

mb_status mb_fuse_router_add(const mb_fuse_router *router, mb_params *params)
{
    mb_status status = MB_OK;
    char name[NAME];
    const int64_t in[2] = {router->hidden, router->total}, out[2] = {router->members, router->hidden};
    for (int64_t p = 0; p < router->parts; p++)
        MB_TRY(mb_params_add(params, router_norm_name(router, p, name), router->block, 1, &router->width[p]));
    MB_TRY(mb_params_add(params, router_name(router, "gate_proj.weight", name), router->block, 2, in));
    MB_TRY(mb_params_add(params, router_name(router, "up_proj.weight", name), router->block, 2, in));
    MB_TRY(mb_params_add(params, router_name(router, "down_proj.weight", name), router->block, 2, out));
    MB_TRY(mb_params_add(params, router_name(router, "down_proj.bias", name), router->block, 1, out));
done:
    return status;
}

void mb_fuse_router_find(mb_fuse_router *router, mb_params *params)
{
    char name[NAME];
    router->params = params;
    for (int64_t p = 0; p < router->parts; p++)
        router->norm[p] = mb_params_find(params, router_norm_name(router, p, name));
    router->gate = mb_params_find(params, router_name(router, "gate_proj.weight", name));
    router->up = mb_params_find(params, router_name(router, "up_proj.weight", name));
    router->down = mb_params_find(params, router_name(router, "down_proj.weight", name));
    router->bias = mb_params_find(params, router_name(router, "down_proj.bias", name));
    assert(router->bias != NULL);
}

static mb_status router_set_normal(mb_param *param, uint64_t seed)
{
    mb_status status = MB_OK;
    const int64_t n = mb_tensor_count(&param->value);
    const uint32_t sub = (uint32_t)mb_hash_u64(param->name, strlen(param->name), 0);
    float *value = NULL;
    MB_NEW_ARRAY(value, n);
    for (int64_t i = 0; i < n; i++)
        value[i] = (float)(ROUTER_STD * mb_rng_normal(seed, MB_RNG_INIT, sub, (uint64_t)i));
    MB_TRY(mb_params_set_f32(param, value));
done:
    mb_free(value);
    return status;
}

static mb_status router_set_constant(mb_param *param, float constant)
{
    mb_status status = MB_OK;
    const int64_t n = mb_tensor_count(&param->value);
    float *value = NULL;
    MB_NEW_ARRAY(value, n);
    for (int64_t i = 0; i < n; i++) value[i] = constant;
    MB_TRY(mb_params_set_f32(param, value));
done:
    mb_free(value);
    return status;
}

mb_status mb_fuse_router_randomise(mb_fuse_router *router, uint64_t seed, const double *weight)
{
    mb_status status = MB_OK;
    float bias[MB_FUSE_MAX_MEMBERS];
    double mean = 0;
    for (int64_t m = 0; m < router->members; m++) mean += log(weight[m]) / (double)router->members;
    for (int64_t m = 0; m < router->members; m++) bias[m] = (float)(log(weight[m]) - mean);
    for (int64_t p = 0; p < router->parts; p++) MB_TRY(router_set_constant(router->norm[p], 1));
    MB_TRY(router_set_normal(router->gate, seed));
    MB_TRY(router_set_normal(router->up, seed));
    MB_TRY(router_set_constant(router->down, 0));
    MB_TRY(mb_params_set_f32(router->bias, bias));
done:
    return status;
}

/* ---- 2. z ---- */

static int64_t router_piece(const mb_fuse_router *router)
{
    int64_t piece = router->width[0];
    for (int64_t p = 1; p < router->parts; p++)
        for (int64_t rest = router->width[p]; rest != 0;) {
            const int64_t next = piece % rest;
            piece = rest;
            rest = next;
        }
    return piece;
}

/* An array of the host's as ops take it. */
static mb_status router_send(const mb_block_context *c, const int32_t *host, int64_t n, const int32_t **out)
{
    mb_status status = MB_OK;
    const void *sent;
    MB_TRY(mb_ops_input(c->p.ops, c->p.arena, host, (size_t)n * sizeof *host, &sent));
    *out = sent;
done:
    return status;
}

mb_status mb_fuse_router_map_create(const mb_fuse_router *router, const mb_block_context *context,
                                    int64_t rows, mb_fuse_router_map *out_map)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    const int64_t piece = router_piece(router), pieces = router->total / piece, n = rows * router->members;
    int32_t *place, *ids;
    int64_t at = 0;
    *out_map = (mb_fuse_router_map){.rows = rows, .parts = router->parts};
    for (int64_t p = 0; p < router->parts; p++) {
        const int64_t own = router->width[p] / piece;
        MB_ARENA_ARRAY(c->host, place, rows * own);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < own; j++) place[r * own + j] = (int32_t)(r * pieces + at + j);
        MB_TRY(router_send(c, place, rows * own, &out_map->place[p]));
        at += own;
    }
    MB_ARENA_ARRAY(c->host, ids, n);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i % router->members);
    MB_TRY(router_send(c, ids, n, &out_map->ids));
done:
    return status;
}

/* The same memory as rows of pieces. */
static mb_tensor router_view(const mb_fuse_router *router, const mb_tensor *x)
{
    const int64_t piece = router_piece(router);
    return mb_tensor_view2(MB_F32, x->data, mb_tensor_count(x) / piece, piece);
}

/* The norm of part p to its places in z; rstd too. */
static mb_status router_place_part(const mb_fuse_router *router, const mb_block_context *c,
                                   const mb_fuse_router_map *map, int64_t part, const mb_tensor *x,
                                   mb_tensor *z, mb_tensor *rstd)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    mb_tensor normed, pieces = router_view(router, z);
    MB_TRY(mb_block_new2(c, x->shape[0], router->width[part], &normed));
    MB_TRY(mb_ops_rms_norm(c->p.ops, x, &router->norm[part]->value, ROUTER_EPS, &normed, rstd));
    normed = router_view(router, &normed);
    MB_TRY(mb_ops_scatter_rows(c->p.ops, &normed, map->place[part], &pieces));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

static mb_status router_z(const mb_fuse_router *router, const mb_block_context *c,
                          const mb_fuse_router_map *map, const mb_tensor *parts, mb_fuse_router_saved *saved,
                          mb_tensor *out_z)
{
    mb_status status = MB_OK;
    const int64_t rows = parts[0].shape[0];
    MB_TRY(mb_block_new2(c, rows, router->total, out_z));
    for (int64_t p = 0; p < router->parts; p++)
        MB_TRY(router_place_part(router, c, map, p, &parts[p], out_z, &saved->rstd[p]));
done:
    return status;
}

/* ---- 3. forward ---- */

/* Softmax: op route's probabilities stand in the order of the members. */
static mb_status router_softmax(const mb_fuse_router *router, const mb_block_context *c,
                                mb_fuse_router_saved *saved)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const int64_t rows = saved->logits.shape[0], m = router->members;
    mb_tensor sorted;
    int32_t *order;
    MB_TRY(mb_block_new2(c, rows, m, &sorted));
    MB_ARENA_ARRAY(c->p.arena, order, rows * m);
    MB_TRY(mb_ops_route(c->p.ops, &saved->logits, NULL, m, false, &saved->w, order, &sorted));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

static mb_status router_network(mb_fuse_router *router, const mb_block_context *c,
                                const mb_fuse_router_map *map, const mb_tensor *parts,
                                mb_fuse_router_saved *saved)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const int64_t rows = parts[0].shape[0];
    mb_tensor z, u;
    MB_TRY(router_z(router, c, map, parts, saved, &z));
    MB_TRY(mb_ops_linear(c->p.ops, &z, &router->gate->weight, NULL, false, &saved->gate));
    MB_TRY(mb_ops_linear(c->p.ops, &z, &router->up->weight, NULL, false, &saved->up));
    MB_TRY(mb_block_new2(c, rows, router->hidden, &u));
    MB_TRY(mb_ops_swiglu(c->p.ops, &saved->gate, &saved->up, &u));
    MB_TRY(mb_ops_linear(c->p.ops, &u, &router->down->weight, &router->bias->value, false, &saved->logits));
    MB_TRY(router_softmax(router, c, saved));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

mb_status mb_fuse_router_forward(mb_fuse_router *router, const mb_block_context *context,
                                 const mb_fuse_router_map *map, const mb_tensor *parts, bool keep,
                                 mb_fuse_router_saved *saved)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    const int64_t rows = parts[0].shape[0];
    mb_arena_mark mark;
    assert(map->rows == rows && map->parts == router->parts);
    *saved = (mb_fuse_router_saved){0};
    MB_TRY(mb_block_new2(c, rows, router->members, &saved->logits));
    MB_TRY(mb_block_new2(c, rows, router->members, &saved->w));
    for (int64_t p = 0; p < router->parts; p++) MB_TRY(mb_block_new1(c, rows, &saved->rstd[p]));
    mark = mb_arena_mark_get(c->p.arena);
    MB_TRY(mb_block_new2(c, rows, router->hidden, &saved->gate));
    MB_TRY(mb_block_new2(c, rows, router->hidden, &saved->up));
    MB_TRY(mb_params_acquire(router->params, router->block));
    status = router_network(router, c, map, parts, saved);
    mb_params_release(router->params, router->block);
    MB_TRY(status);
    if (keep) goto done;
    mb_arena_release(c->p.arena, mark);
    saved->gate = saved->up = (mb_tensor){0};
done:
    return status;
}

/* ---- 4. backward ---- */

/* Gradient of the logits from those that came in, [R, M]. */
static mb_status router_d_logits(const mb_fuse_router *router, const mb_block_context *c,
                                 const mb_fuse_router_map *map, const mb_fuse_router_saved *saved,
                                 const mb_tensor *opt_d_w, const mb_tensor *opt_d_logits, mb_tensor *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_block_new2(c, saved->logits.shape[0], router->members, out));
    if (opt_d_logits != NULL)
        MB_TRY(mb_ops_copy(c->p.ops, opt_d_logits->data, mb_tensor_bytes(out), out->data));
    else
        MB_TRY(mb_ops_zero(c->p.ops, out->data, mb_tensor_bytes(out)));
    if (opt_d_w != NULL)
        MB_TRY(mb_ops_route_backward(c->p.ops, &saved->w, map->ids, &saved->w, false, opt_d_w, out));
done:
    return status;
}

/* Through the norm of part p: dz's places of it. */
static mb_status router_part_backward(mb_fuse_router *router, const mb_block_context *c,
                                      const mb_fuse_router_map *map, int64_t part, const mb_tensor *x,
                                      const mb_tensor *rstd, const mb_tensor *dz, mb_tensor *opt_dx)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const mb_tensor pieces = router_view(router, dz);
    mb_tensor dn, dn_pieces, unused, *dx = opt_dx;
    if (opt_dx == NULL && !router->norm[part]->trained) goto done;
    MB_TRY(mb_block_new2(c, x->shape[0], router->width[part], &dn));
    dn_pieces = router_view(router, &dn);
    MB_TRY(mb_ops_embedding(c->p.ops, map->place[part], &pieces, &dn_pieces));
    if (dx == NULL) {
        MB_TRY(mb_block_new2(c, x->shape[0], router->width[part], &unused));
        dx = &unused;
    }
    MB_TRY(mb_ops_rms_norm_backward(c->p.ops, &dn, x, &router->norm[part]->value, rstd, opt_dx != NULL, dx,
                                    mb_block_gradient(router->norm[part])));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

static mb_status router_d_weight(const mb_block_context *c, mb_param *weight, mb_param *opt_bias,
                                 const mb_tensor *dy, const mb_tensor *x)
{
    if (!weight->trained) return MB_OK;
    return mb_ops_linear_dw(c->p.ops, dy, x, &weight->gradient,
                            opt_bias != NULL ? mb_block_gradient(opt_bias) : NULL);
}

/* From the logits' gradient down to that of z, weights on the way. */
static mb_status router_network_backward(mb_fuse_router *router, const mb_block_context *c,
                                         const mb_fuse_router_map *map, const mb_tensor *parts,
                                         const mb_fuse_router_saved *saved, const mb_tensor *d_logits,
                                         mb_tensor *dz)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    const int64_t rows = parts[0].shape[0], h = router->hidden;
    mb_fuse_router_saved again = *saved;
    mb_tensor z, u, du, dgate, dup;
    MB_TRY(mb_block_new2(c, rows, h, &u));
    MB_TRY(mb_block_new2(c, rows, h, &du));
    MB_TRY(mb_block_new2(c, rows, h, &dgate));
    MB_TRY(mb_block_new2(c, rows, h, &dup));
    MB_TRY(mb_ops_swiglu(c->p.ops, &saved->gate, &saved->up, &u));
    MB_TRY(router_d_weight(c, router->down, router->bias, d_logits, &u));
    MB_TRY(mb_ops_linear_dx(c->p.ops, d_logits, &router->down->weight, false, &du));
    MB_TRY(mb_ops_swiglu_backward(c->p.ops, &du, &saved->gate, &saved->up, &dgate, &dup));
    if (router->gate->trained || router->up->trained) {
        MB_TRY(router_z(router, c, map, parts, &again, &z));
        MB_TRY(router_d_weight(c, router->gate, NULL, &dgate, &z));
        MB_TRY(router_d_weight(c, router->up, NULL, &dup, &z));
    }
    MB_TRY(mb_ops_linear_dx(c->p.ops, &dgate, &router->gate->weight, false, dz));
    MB_TRY(mb_ops_linear_dx(c->p.ops, &dup, &router->up->weight, true, dz));
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}

mb_status mb_fuse_router_backward(mb_fuse_router *router, const mb_block_context *context,
                                  const mb_fuse_router_map *map, const mb_tensor *parts,
                                  const mb_fuse_router_saved *saved, const mb_tensor *opt_d_w,
                                  const mb_tensor *opt_d_logits, mb_tensor *const *opt_d_parts)
{
    mb_status status = MB_OK;
    const mb_block_context *c = context;
    const mb_arena_mark mark = mb_arena_mark_get(c->p.arena);
    mb_tensor d_logits, dz;
    assert(saved->gate.dims > 0);
    MB_TRY(router_d_logits(router, c, map, saved, opt_d_w, opt_d_logits, &d_logits));
    MB_TRY(mb_block_new2(c, parts[0].shape[0], router->total, &dz));
    MB_TRY(mb_params_acquire(router->params, router->block));
    status = router_network_backward(router, c, map, parts, saved, &d_logits, &dz);
    for (int64_t p = 0; p < router->parts && status == MB_OK; p++)
        status = router_part_backward(router, c, map, p, &parts[p], &saved->rstd[p], &dz,
                                      opt_d_parts != NULL ? opt_d_parts[p] : NULL);
    mb_params_release(router->params, router->block);
done:
    mb_arena_release(c->p.arena, mark);
    return status;
}
