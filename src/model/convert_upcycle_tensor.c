/* convert_upcycle_tensor: the tensors of an upcycled model, one at a time.
 *
 * 1. which tensor comes from where
 * 2. stored bytes: whole, rows, columns
 * 3. values: scaled, with noise, averaged
 * 4. gates
 * 5. reading
 *
 * Random numbers are Philox, keyed by the seed and the name of the tensor, counted by its elements: they do
 * not depend on what else is converted, in which order, or by how many threads.
 */
#include "model/convert_upcycle_tensor.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/rng.h"

#define TENSOR_PIECE 65536

void mb_convert_upcycle_tensor_reset(mb_convert_upcycle_work *work)
{
    mb_free(work->values);
    mb_free(work->bytes);
    *work = (mb_convert_upcycle_work){0};
}

static mb_status work_values(mb_convert_upcycle_work *work, int64_t n)
{
    mb_status status = MB_OK;
    if ((size_t)n <= work->values_room) goto done;
    MB_FREE(work->values);
    work->values_room = 0;
    MB_NEW_ARRAY(work->values, n);
    work->values_room = (size_t)n;
done:
    return status;
}

static mb_status work_bytes(mb_convert_upcycle_work *work, size_t n)
{
    mb_status status = MB_OK;
    if (n <= work->bytes_room) goto done;
    MB_FREE(work->bytes);
    work->bytes_room = 0;
    MB_NEW_ARRAY(work->bytes, n);
    work->bytes_room = n;
done:
    return status;
}

/* ---- 1. which tensor comes from where ---- */

static const mb_param *tensor_dense(mb_convert_upcycle_set *set, int64_t layer, int part)
{
    static const char *const parts[3] = {"gate", "up", "down"};
    char name[96];
    snprintf(name, sizeof name, "model.layers.%lld.mlp.%s_proj.weight", (long long)layer, parts[part]);
    return mb_params_find(set->source, name);
}

static void tensor_find_expert(mb_convert_upcycle_set *set, const char *rest, mb_convert_upcycle_tensor *t)
{
    const mb_convert_upcycle_plan *plan = &set->plan;
    const mb_family_facts *facts = mb_arch_facts(&plan->arch);
    const char *const names[3] = {facts->gate, facts->up, facts->down};
    long long expert = -1;
    char part[16] = "";
    const int found = sscanf(rest, "experts.%lld.%15[a-z0-9_].weight", &expert, part);
    assert(found == 2);
    (void)found;
    for (t->part = 0; t->part < 2 && strcmp(part, names[t->part]) != 0;) t->part++;
    t->kind = MB_CONVERT_UPCYCLE_EXPERT;
    t->shard = expert % plan->shards;
    t->giver = set->first + expert / plan->shards % (set->count - set->first);
    t->source = tensor_dense(set, t->target->block, t->part);
}

mb_status mb_convert_upcycle_tensor_find(mb_convert_upcycle_set *set, int64_t i,
                                         mb_convert_upcycle_tensor *out_tensor)
{
    mb_status status = MB_OK;
    const mb_param *target = mb_params_at(set->target, i);
    mb_convert_upcycle_tensor t = {.target = target, .source = mb_params_find(set->source, target->name)};
    mb_params_source stored, first;
    char prefix[96];
    if (t.source == NULL) {
        const int n = snprintf(prefix, sizeof prefix, "model.layers.%lld.%s.", (long long)target->block,
                               mb_arch_facts(&set->plan.arch)->moe);
        if (mb_convert_folder_is_gate(target->name)) {
            t.kind = MB_CONVERT_UPCYCLE_ROUTER;
            t.source = tensor_dense(set, target->block, 0);
        } else {
            tensor_find_expert(set, target->name + n, &t);
        }
    } else {
        t.giver = set->first;
        t.is_averaged = set->count - set->first > 1;
    }
    MB_TRY(mb_params_source_find(set->models[0].folder.source_file, set->models[0].path, t.source, &first));
    MB_TRY(mb_params_source_find(set->models[t.giver].folder.source_file, set->models[t.giver].path, t.source,
                                 &stored));
    t.dtype = strcmp(set->options->dtype, "source") == 0 ? first.dtype : set->plan.arch.stored_dtype;
    const bool is_scaled =
        t.kind == MB_CONVERT_UPCYCLE_EXPERT && (set->plan.scale[t.part] != 1 || set->options->noise > 0);
    t.is_computed =
        t.kind == MB_CONVERT_UPCYCLE_ROUTER || t.is_averaged || is_scaled || t.dtype != stored.dtype;
    *out_tensor = t;
done:
    return status;
}

/* ---- 2. stored bytes ---- */

/* The part of a stored matrix that a tensor takes: whole, a shard's rows, or a shard's columns gathered into
 * work->bytes from `at` on. */
static mb_status tensor_stored(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t, int64_t model,
                               mb_convert_upcycle_work *work, size_t at, mb_params_source *out)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_model *m = &set->models[model];
    mb_params_source s;
    MB_TRY(mb_params_source_find(m->folder.source_file, m->path, t->source, &s));
    if (t->kind != MB_CONVERT_UPCYCLE_EXPERT || set->plan.shards == 1) goto found;
    const int64_t rows = t->target->value.shape[0], columns = t->target->value.shape[1];
    const size_t size = mb_dtype_bytes(s.dtype), width = (size_t)columns * size;
    s.count = rows * columns;
    if (t->part < 2) {
        s.first = t->shard * s.count;
        s.data = (const char *)s.data + (size_t)s.first * size;
        goto found;
    }
    MB_TRY(work_bytes(work, at + (size_t)s.count * size));
    const size_t stride = width * (size_t)set->plan.shards;
    for (int64_t r = 0; r < rows; r++)
        memcpy(work->bytes + at + (size_t)r * width,
               (const char *)s.data + (size_t)r * stride + (size_t)t->shard * width, width);
    s.data = work->bytes + at;
found:
    *out = s;
done:
    return status;
}

/* ---- 3. values ---- */

static uint64_t tensor_seed(const mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t)
{
    return mb_hash_u64(t->target->name, strlen(t->target->name), set->options->seed);
}

/* values += N(0, noise * root mean square of them). */
static void tensor_add_noise(const mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                             float *values, int64_t n)
{
    const uint64_t seed = tensor_seed(set, t);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)values[i] * values[i];
    const double std = set->options->noise * sqrt(sum / (double)n);
#pragma omp parallel for schedule(static) if (n > TENSOR_PIECE)
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)((double)values[i] + std * mb_rng_normal(seed, MB_RNG_INIT, 0, (uint64_t)i));
}

static mb_status tensor_expert(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                               mb_convert_upcycle_work *work)
{
    mb_status status = MB_OK;
    mb_params_source stored;
    const double scale = set->plan.scale[t->part];
    MB_TRY(tensor_stored(set, t, t->giver, work, 0, &stored));
    MB_TRY(work_values(work, stored.count));
    MB_TRY(mb_params_source_read(&stored, set->models[t->giver].path, work->values));
    if (scale != 1)
        for (int64_t i = 0; i < stored.count; i++) work->values[i] = (float)(work->values[i] * scale);
    if (set->options->noise > 0) tensor_add_noise(set, t, work->values, stored.count);
done:
    return status;
}

/* Mean over the models that give experts (one: itself), summed in f64 in their order. */
static mb_status tensor_mean(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                             mb_convert_upcycle_work *work)
{
    mb_status status = MB_OK;
    mb_params_source stored;
    float *piece = NULL;
    double *sum = NULL;
    const int64_t n = mb_tensor_count(&t->source->value);
    const int64_t last = t->is_averaged ? set->count : t->giver + 1;
    MB_TRY(work_values(work, n));
    MB_NEW_ARRAY(piece, TENSOR_PIECE);
    MB_NEW_ARRAY(sum, TENSOR_PIECE);
    for (int64_t first = 0; first < n; first += TENSOR_PIECE) {
        const int64_t count = n - first < TENSOR_PIECE ? n - first : TENSOR_PIECE;
        memset(sum, 0, TENSOR_PIECE * sizeof *sum);
        for (int64_t m = t->giver; m < last; m++) {
            MB_TRY(tensor_stored(set, t, m, work, 0, &stored));
            stored.data = (const char *)stored.data + (size_t)first * mb_dtype_bytes(stored.dtype);
            stored.first = first;
            stored.count = count;
            MB_TRY(mb_params_source_read(&stored, set->models[m].path, piece));
            for (int64_t i = 0; i < count; i++) sum[i] += piece[i];
        }
        for (int64_t i = 0; i < count; i++)
            work->values[first + i] = (float)(sum[i] / (double)(last - t->giver));
    }
done:
    mb_free(piece);
    mb_free(sum);
    return status;
}

/* ---- 4. gates ---- */

/* Row e is row e / g of the groups' with virtual groups, else its own. */
static mb_status tensor_router(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                               mb_convert_upcycle_work *work)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_plan *plan = &set->plan;
    const int64_t experts = plan->arch.experts, width = plan->arch.width;
    const uint64_t seed = tensor_seed(set, t);
    const bool is_zero = strcmp(set->options->router_init, "zero") == 0;
    MB_TRY(work_values(work, experts * width));
    for (int64_t e = 0; e < experts; e++) {
        const int64_t row = plan->virtual_groups ? e / plan->shards : e;
        float *to = work->values + e * width;
        if (set->prompted != NULL) {
            memcpy(to, set->prompted + (t->target->block * set->prompted_rows + row) * width,
                   (size_t)width * sizeof *to);
            continue;
        }
        for (int64_t i = 0; i < width; i++)
            to[i] = is_zero ? 0
                            : (float)(set->options->router_init_std *
                                      mb_rng_normal(seed, MB_RNG_INIT, 0, (uint64_t)(row * width + i)));
    }
done:
    return status;
}

/* ---- 5. reading ---- */

mb_status mb_convert_upcycle_tensor_read(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *tensor,
                                         mb_convert_upcycle_work *work, const void **out_bytes, size_t *out_n)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_tensor *t = tensor;
    const int64_t n = mb_tensor_count(&t->target->value);
    const size_t size = (size_t)n * mb_dtype_bytes(t->dtype);
    mb_params_source stored;
    if (!t->is_computed) {
        MB_TRY(tensor_stored(set, t, t->giver, work, 0, &stored));
        *out_bytes = stored.data;
        *out_n = size;
        goto done;
    }
    MB_TRY(t->kind == MB_CONVERT_UPCYCLE_SAME     ? tensor_mean(set, t, work)
           : t->kind == MB_CONVERT_UPCYCLE_ROUTER ? tensor_router(set, t, work)
                                                  : tensor_expert(set, t, work));
    MB_TRY(work_bytes(work, size));
    MB_TRY(mb_dtype_from_f32(t->dtype, work->values, n, work->bytes));
    *out_bytes = work->bytes;
    *out_n = size;
done:
    return status;
}
