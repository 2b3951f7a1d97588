/* quantise_layers: the walk over the blocks.
 *
 * 1. chunks of records
 * 2. half a block on a chunk
 * 3. Gram matrices of a step
 * 4. matrices
 * 5. steps of a block
 * 6. a block's file
 * 7. the whole
 *
 * A step is the matrices that read one input. For each, half of the block is run over all chunks with a tap
 * at that input; what the half gives is thrown away, but for the last time, when all its matrices are done.
 */
#include "model/quantise_layers.h"

#include <string.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/stop.h"
#include "model/lm_state.h"
#include "model/packed_io.h"
#include "model/params_choose.h"
#include "model/quantise_gram.h"

typedef struct layers_chunk {
    int64_t first, records, tokens;
    float *x; /* [tokens, D] going into the half at hand; NULL where another rank has it */
} layers_chunk;

typedef struct layers_made { /* a matrix that is done */
    const mb_param *param;
    mb_packed_io_matrix matrix;
} layers_made;

typedef struct layers_walk {
    mb_comm *comm;
    mb_lm *lm;
    mb_ops *ops;
    const mb_quantise_options *options;
    const mb_quantise_records *records;
    mb_lm_pass *pass;
    layers_chunk *chunks;
    int64_t chunk_count, first, mine; /* chunks of this rank */
    int32_t *positions, *offsets;     /* of the largest chunk */
    int64_t *row_offsets;             /* [ranks + 1] */
    layers_made *made;                /* of the block at hand */
    int64_t made_count;
    json_t *block_list;
    mb_quantise_report *report;
} layers_walk;

enum { ATTENTION, FFN };

/* ---- 1. chunks of records ---- */

static mb_status walk_cut(layers_walk *w)
{
    mb_status status = MB_OK;
    const mb_quantise_records *r = w->records;
    int64_t most_tokens = 0, most_records = 0;
    MB_NEW_ARRAY(w->chunks, r->records);
    for (int64_t i = 0; i < r->records; i++) {
        const int64_t n = r->offsets[i + 1] - r->offsets[i];
        layers_chunk *last = w->chunk_count > 0 ? &w->chunks[w->chunk_count - 1] : NULL;
        if (last == NULL || last->tokens + n > w->options->chunk_tokens) {
            last = &w->chunks[w->chunk_count++];
            last->first = i;
        }
        last->records++;
        last->tokens += n;
        if (last->tokens > most_tokens) most_tokens = last->tokens;
        if (last->records > most_records) most_records = last->records;
    }
    MB_NEW_ARRAY(w->positions, most_tokens);
    MB_NEW_ARRAY(w->offsets, most_records + 1);
    mb_comm_share(w->comm, w->chunk_count, &w->first, &w->mine);
    for (int64_t i = w->first; i < w->first + w->mine; i++)
        MB_NEW_ARRAY(w->chunks[i].x, w->chunks[i].tokens * w->lm->arch.width);
    w->report->tokens = r->offsets[r->records];
    w->report->chunks = w->chunk_count;
done:
    return status;
}

/* ---- 2. half a block on a chunk ---- */

/* The pass stands before a block, with the chunk's arrays where ops take them. */
static mb_status walk_begin(layers_walk *w, const layers_chunk *chunk)
{
    mb_status status = MB_OK;
    const int64_t *from = w->records->offsets + chunk->first;
    const mb_lm_want want = {.no_adapter = true, .no_routing = true};
    for (int64_t s = 0; s <= chunk->records; s++) w->offsets[s] = (int32_t)(from[s] - from[0]);
    for (int64_t s = 0; s < chunk->records; s++)
        for (int32_t t = w->offsets[s]; t < w->offsets[s + 1]; t++) w->positions[t] = t - w->offsets[s];
    const mb_lm_batch batch = {.tokens = chunk->tokens,
                               .segments = chunk->records,
                               .ids = w->records->ids + from[0],
                               .positions = w->positions,
                               .offsets = w->offsets};
    MB_TRY(mb_lm_forward_check(w->lm, &batch, &want));
    MB_TRY(mb_lm_forward_reset(w->pass, &batch, &want));
    MB_TRY(mb_lm_forward_prepare(w->pass));
    MB_TRY(mb_lm_forward_rope(w->pass, &w->pass->context, &w->pass->long_rope));
done:
    return status;
}

static mb_status walk_keep(layers_walk *w, layers_chunk *chunk)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ops_download(w->ops, w->pass->x.data, mb_tensor_bytes(&w->pass->x), chunk->x));
    MB_TRY(mb_lm_pass_wait(w->pass));
done:
    return status;
}

static mb_status walk_embed(layers_walk *w)
{
    mb_status status = MB_OK;
    for (int64_t i = w->first; i < w->first + w->mine; i++) {
        MB_TRY(walk_begin(w, &w->chunks[i]));
        MB_TRY(mb_ops_embedding(w->ops, w->pass->sent.ids, &w->lm->embedding->value, &w->pass->x));
        MB_TRY(walk_keep(w, &w->chunks[i]));
    }
done:
    return status;
}

static mb_status walk_half(layers_walk *w, layers_chunk *chunk, int64_t index, int half,
                           const mb_projection_tap *opt_tap, bool keep)
{
    mb_status status = MB_OK;
    mb_lm_pass *p = w->pass;
    mb_block *block = &w->lm->blocks[index];
    mb_block_saved *saved = &p->saved[index];
    MB_TRY(walk_begin(w, chunk));
    MB_TRY(mb_ops_upload(w->ops, chunk->x, mb_tensor_bytes(&p->x), p->x.data));
    p->context.p.opt_tap = opt_tap;
    saved->is_gate_only = false;
    if (half == ATTENTION)
        MB_TRY(mb_attention_block_forward(&p->context, block, &p->x, saved));
    else if (block->is_moe)
        MB_TRY(mb_experts_forward(&p->context, block, &p->x, saved));
    else
        MB_TRY(mb_ffn_forward(&p->context, block, &p->x, saved));
    MB_TRY(keep ? walk_keep(w, chunk) : mb_lm_pass_wait(p));
done:
    return status;
}

/* Every chunk through half a block as it is now. Collective. */
static mb_status walk_advance(layers_walk *w, int64_t index, int half)
{
    mb_status status = MB_OK;
    for (int64_t i = w->first; i < w->first + w->mine && status == MB_OK; i++)
        status = walk_half(w, &w->chunks[i], index, half, NULL, true);
    MB_TRY(mb_comm_agree(w->comm, status));
done:
    return status;
}

/* ---- 3. Gram matrices of a step ---- */

typedef struct layers_step {
    int half;
    const mb_projection *one;         /* whose input counts: */
    const mb_projection_group *group; /* the other is NULL */
    int64_t first, count;             /* experts of the group; 0, 1 */
    int64_t k;
} layers_step;

static mb_status step_chunk(layers_walk *w, const layers_step *step, int64_t index, int64_t i,
                            mb_quantise_gram *gram, double *out_most)
{
    mb_status status = MB_OK;
    MB_TRY(mb_quantise_gram_begin(gram));
    MB_TRY(walk_half(w, &w->chunks[i], index, step->half, mb_quantise_gram_tap(gram), false));
    MB_TRY(mb_quantise_gram_end(gram, out_most));
done:
    return status;
}

/* This rank's chunks; the first of all is in gram already where has_first. */
static mb_status step_add(layers_walk *w, const layers_step *step, int64_t index, bool has_first,
                          int exponent, mb_quantise_gram *gram)
{
    mb_status status = MB_OK;
    double most;
    for (int64_t i = w->first; i < w->first + w->mine; i++) {
        if (i > 0 || !has_first) MB_TRY(step_chunk(w, step, index, i, gram, &most));
        mb_quantise_gram_add(gram, exponent);
    }
done:
    return status;
}

/* Collective. */
static mb_status step_collect(layers_walk *w, const layers_step *step, int64_t index,
                              mb_quantise_gram **out_gram)
{
    mb_status status = MB_OK;
    mb_quantise_gram *gram = NULL;
    double most = 0;
    bool overflow = false, has_first = w->first == 0 && w->mine > 0;
    status = mb_quantise_gram_create(w->ops, step->one, step->group, step->first, step->count, step->k,
                                     w->chunk_count, &gram);
    if (status == MB_OK && has_first) status = step_chunk(w, step, index, 0, gram, &most);
    MB_TRY(mb_comm_agree(w->comm, status));
    MB_TRY(mb_comm_minmax_f64(w->comm, &most, 1, MB_COMM_MAX));
    for (int exponent = mb_quantise_gram_exponent(most, w->chunk_count);; exponent -= 16) {
        MB_TRY(mb_comm_agree(w->comm, step_add(w, step, index, has_first, exponent, gram)));
        MB_TRY(mb_quantise_gram_sum(gram, w->comm, &overflow));
        if (!overflow) break;
        mb_quantise_gram_reset(gram);
        has_first = false;
    }
    *out_gram = gram;
    gram = NULL;
done:
    mb_quantise_gram_destroy(&gram);
    return status;
}

/* ---- 4. matrices ---- */

bool mb_quantise_layers_has(mb_params *params, const mb_param *param)
{
    return param->value.dims == 2 && mb_params_is_in_layer(params, param) &&
           !mb_params_choose_is_router(param) && !mb_params_choose_is_lora(param);
}

/* The values a matrix means from here on. Collective only through mb_params_filled, later. */
static mb_status matrix_set(mb_param *param, const mb_packed_io_matrix *matrix)
{
    mb_status status = MB_OK;
    float *value = NULL;
    MB_NEW_ARRAY(value, matrix->n * matrix->k);
    mb_packed_io_values(matrix, value);
    MB_TRY(mb_params_set_f32(param, value));
    mb_weight_changed(&param->weight); /* of every rank, also where another fills it */
done:
    mb_free(value);
    return status;
}

/* What the matrices of one input are made by. */
typedef struct layers_maker {
    mb_gptq_options options; /* with their group */
    bool is_gptq;
    mb_gptq *gptq; /* on the ranks that need it */
    int owner;     /* that makes all rows; -1: every rank a share */
    int64_t tokens;
    double damping, dead;
    double unit; /* of a loss: mean squared error of a token's product */
} layers_maker;

/* Collective. */
static mb_status maker_create(layers_walk *w, mb_quantise_gram *opt_gram, int64_t i, int64_t k, int owner,
                              layers_maker *maker)
{
    mb_status status = MB_OK;
    double facts[2] = {0, 0};
    *maker = (layers_maker){.options = w->options->gptq, .owner = owner};
    maker->options.group = mb_gptq_group(k, w->options->gptq.group);
    if (opt_gram == NULL) goto done;
    maker->tokens = mb_quantise_gram_rows(opt_gram, i);
    maker->is_gptq = owner < 0 || maker->tokens >= w->options->expert_tokens;
    if (!maker->is_gptq || maker->tokens == 0) maker->is_gptq = false;
    if (!maker->is_gptq) goto done;
    if (owner < 0 || owner == mb_comm_rank(w->comm))
        status = mb_gptq_create(mb_quantise_gram_matrix(opt_gram, i), k, &maker->options, &maker->gptq);
    MB_TRY(mb_comm_agree(w->comm, status));
    if (maker->gptq != NULL) {
        facts[0] = mb_gptq_damping(maker->gptq);
        facts[1] = (double)mb_gptq_dead(maker->gptq);
    }
    MB_TRY(mb_comm_bcast(w->comm, facts, sizeof facts, owner < 0 ? 0 : owner));
    maker->unit = mb_quantise_gram_unit(opt_gram) / (double)maker->tokens;
    maker->damping = facts[0];
    maker->dead = facts[1];
done:
    return status;
}

static mb_status matrix_say(layers_walk *w, const layers_maker *maker, const layers_made *made,
                            const double *loss)
{
    mb_status status = MB_OK;
    const mb_packed_io_matrix *m = &made->matrix;
    json_t *one =
        json_pack("{s:s, s:I, s:I, s:I, s:s}", "name", made->param->name, "rows", (json_int_t)m->n, "columns",
                  (json_int_t)m->k, "group", (json_int_t)m->group, "method", maker->is_gptq ? "gptq" : "rtn");
    double sum = 0;
    if (one == NULL || json_array_append_new(w->block_list, one) != 0)
        MB_RAISE(MB_ENOMEM, "quantise: no memory for the report");
    if (w->options->by_gptq) MB_TRY(mb_json_set(one, "tokens", json_integer(maker->tokens)));
    if (!maker->is_gptq) goto done;
    for (int64_t r = 0; r < m->n; r++) sum += loss[r];
    MB_TRY(mb_json_set(one, "loss", json_real(sum * maker->unit)));
    MB_TRY(mb_json_set(one, "damping", json_real(maker->damping)));
    MB_TRY(mb_json_set(one, "dead", json_integer((json_int_t)maker->dead)));
done:
    return status;
}

/* Rows [first, first + n) of a matrix. */
static mb_status matrix_rows(const layers_maker *maker, const mb_param *param, int64_t first, int64_t n,
                             mb_packed_io_matrix *m, double *loss)
{
    mb_status status = MB_OK;
    float *value = NULL;
    uint8_t *packed = m->packed + first * ((m->k + 1) / 2);
    float *scale = m->scale + first * (m->k / m->group);
    if (n == 0) goto done;
    MB_NEW_ARRAY(value, m->n * m->k);
    MB_TRY(mb_params_get_f32(param, value));
    if (maker->gptq != NULL)
        MB_TRY(mb_gptq_run(maker->gptq, value + first * m->k, n, packed, scale, loss + first));
    else
        MB_TRY(mb_gptq_round(value + first * m->k, n, m->k, &maker->options, packed, scale));
done:
    mb_free(value);
    return status;
}

/* Who makes which rows. */
static void matrix_share(layers_walk *w, int64_t n, int owner)
{
    for (int r = 0; r < mb_comm_size(w->comm); r++) {
        int64_t first, count;
        mb_comm_share_of(n, mb_comm_size(w->comm), r, &first, &count);
        w->row_offsets[r + 1] = owner < 0 ? first + count : r >= owner ? n : 0;
    }
}

/* Every rank gets all rows. Collective. */
static mb_status matrix_gather(layers_walk *w, mb_packed_io_matrix *m, double *loss)
{
    mb_status status = MB_OK;
    const int ranks = mb_comm_size(w->comm);
    const int64_t sizes[3] = {(m->k + 1) / 2, m->k / m->group * (int64_t)sizeof(float), sizeof(double)};
    void *const data[3] = {m->packed, m->scale, loss};
    int64_t *offsets = NULL;
    MB_NEW_ARRAY(offsets, ranks + 1);
    for (int i = 0; i < 3; i++) {
        for (int r = 0; r <= ranks; r++) offsets[r] = w->row_offsets[r] * sizes[i];
        MB_TRY(mb_comm_allgather_parts(w->comm, data[i], offsets));
    }
done:
    mb_free(offsets);
    return status;
}

/* Collective. */
static mb_status matrix_make(layers_walk *w, const layers_maker *maker, mb_param *param)
{
    mb_status status = MB_OK;
    const int64_t n = param->value.shape[0];
    const int rank = mb_comm_rank(w->comm);
    layers_made *made = &w->made[w->made_count];
    double *loss = NULL;
    matrix_share(w, n, maker->owner);
    made->param = param;
    status = mb_packed_io_create(n, param->value.shape[1], maker->options.group, &made->matrix);
    if (status == MB_OK && (loss = mb_calloc((size_t)n, sizeof *loss)) == NULL) status = MB_ENOMEM;
    if (status == MB_OK)
        status = matrix_rows(maker, param, w->row_offsets[rank],
                             w->row_offsets[rank + 1] - w->row_offsets[rank], &made->matrix, loss);
    MB_TRY(mb_comm_agree(w->comm, status));
    w->made_count++;
    MB_TRY(matrix_gather(w, &made->matrix, loss));
    status = matrix_say(w, maker, made, loss);
    if (status == MB_OK) status = matrix_set(param, &made->matrix);
    MB_TRY(mb_comm_agree(w->comm, status));
done:
    mb_free(loss);
    return status;
}

/* ---- 5. steps of a block ---- */

/* Matrices of one input: those of `params`, or of each expert of the step's range the params of `groups`.
 * Collective. */
static mb_status step_run(layers_walk *w, layers_step *step, int64_t index, mb_param *const *params,
                          const mb_projection_group *const *groups, int64_t count)
{
    mb_status status = MB_OK;
    mb_quantise_gram *gram = NULL;
    layers_maker maker = {0};
    const int ranks = mb_comm_size(w->comm);
    if (w->options->by_gptq) MB_TRY(step_collect(w, step, index, &gram));
    for (int64_t e = 0; e < step->count; e++) {
        const int owner = step->group != NULL ? (int)((step->first + e) % ranks) : -1;
        MB_TRY(maker_create(w, gram, e, step->k, owner, &maker));
        for (int64_t i = 0; i < count; i++)
            MB_TRY(matrix_make(w, &maker, groups != NULL ? groups[i]->weight[step->first + e] : params[i]));
        mb_gptq_destroy(&maker.gptq);
    }
    MB_TRY(mb_params_filled(w->lm->params));
done:
    mb_gptq_destroy(&maker.gptq);
    mb_quantise_gram_destroy(&gram);
    return status;
}

static mb_status step_attention(layers_walk *w, int64_t index)
{
    mb_status status = MB_OK;
    mb_block *b = &w->lm->blocks[index];
    layers_step qkv = {.half = ATTENTION, .one = &b->q, .count = 1, .k = b->q.weight->value.shape[1]};
    layers_step o = {.half = ATTENTION, .one = &b->o, .count = 1, .k = b->o.weight->value.shape[1]};
    mb_param *const three[] = {b->q.weight, b->k.weight, b->v.weight};
    MB_TRY(step_run(w, &qkv, index, three, NULL, 3));
    MB_TRY(step_run(w, &o, index, &b->o.weight, NULL, 1));
done:
    return status;
}

static mb_status step_ffn(layers_walk *w, int64_t index)
{
    mb_status status = MB_OK;
    mb_block *b = &w->lm->blocks[index];
    layers_step in = {.half = FFN, .one = &b->gate, .count = 1, .k = b->gate.weight->value.shape[1]};
    layers_step out = {.half = FFN, .one = &b->down, .count = 1, .k = b->down.weight->value.shape[1]};
    mb_param *const two[] = {b->gate.weight, b->up.weight};
    MB_TRY(step_run(w, &in, index, two, NULL, 2));
    MB_TRY(step_run(w, &out, index, &b->down.weight, NULL, 1));
done:
    return status;
}

/* Experts whose Gram matrices are there at one time. */
static int64_t step_range(int64_t k, int64_t experts)
{
    const int64_t fit = MB_QUANTISE_GRAM_BYTES / (12 * k * k);
    return fit < 1 ? 1 : fit < experts ? fit : experts;
}

/* A group's matrices, range by range. */
static mb_status step_group(layers_walk *w, int64_t index, const mb_projection_group *read,
                            const mb_projection_group *const *groups, int64_t count)
{
    mb_status status = MB_OK;
    const int64_t k = read->weight[0]->value.shape[1], range = step_range(k, read->count);
    for (int64_t e = 0; e < read->count; e += range) {
        layers_step step = {.half = FFN, .group = read, .first = e, .k = k};
        step.count = read->count - e < range ? read->count - e : range;
        MB_TRY(step_run(w, &step, index, NULL, groups, count));
    }
done:
    return status;
}

static mb_status step_experts(layers_walk *w, int64_t index)
{
    mb_status status = MB_OK;
    mb_block *b = &w->lm->blocks[index];
    const mb_projection_group *const in[] = {&b->experts_gate, &b->experts_up}, *const out[] = {
                                                                                    &b->experts_down};
    MB_TRY(step_group(w, index, &b->experts_gate, in, 2));
    MB_TRY(step_group(w, index, &b->experts_down, out, 1));
done:
    return status;
}

/* ---- 6. a block's file ---- */

/* In the order of the model, whatever order they were made in. */
static layers_made *made_find(layers_walk *w, const mb_param *param)
{
    for (int64_t i = 0; i < w->made_count; i++)
        if (w->made[i].param == param) return &w->made[i];
    return NULL;
}

static void made_reset(layers_walk *w)
{
    for (int64_t i = 0; i < w->made_count; i++) mb_packed_io_reset(&w->made[i].matrix);
    w->made_count = 0;
    json_decref(w->block_list);
    w->block_list = NULL;
}

static char *block_path(const char *folder, int64_t index, const char *ending)
{
    return mb_str_format("%s/block-%lld.%s", folder, (long long)index, ending);
}

static mb_status block_write(layers_walk *w, int64_t index, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    char stem[32], *path = block_path(folder, index, "json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(mb_json_write(path, w->block_list, 2, false));
    snprintf(stem, sizeof stem, "block-%lld", (long long)index);
    MB_TRY(mb_safetensors_writer_create(folder, stem, 0, &writer));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < mb_params_count(w->lm->params); i++) {
            const layers_made *made = made_find(w, mb_params_at(w->lm->params, i));
            if (made == NULL) continue;
            const mb_packed_io_matrix *m = &made->matrix;
            MB_TRY(pass == 0 ? mb_packed_io_declare(writer, made->param->name, m->n, m->k, m->group, MB_F32)
                             : mb_packed_io_write(writer, made->param->name, m));
        }
    MB_TRY(mb_safetensors_writer_close(&writer));
done:
    mb_safetensors_writer_destroy(&writer);
    mb_free(path);
    return status;
}

/* How many blocks from the first on an earlier run has left. Rank 0. */
static int64_t block_count(const char *folder, int64_t layers)
{
    for (int64_t i = 0; i < layers; i++) {
        char *path = block_path(folder, i, "safetensors"), *list = block_path(folder, i, "json");
        const bool is_there =
            path != NULL && list != NULL && mb_files_is_file(path) && mb_files_is_file(list);
        mb_free(path);
        mb_free(list);
        if (!is_there) return i;
    }
    return layers;
}

/* The matrices an earlier run made. */
static mb_status block_read(layers_walk *w, int64_t index, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    mb_packed_io_matrix matrix = {0};
    char *path = block_path(folder, index, "safetensors"), *list = block_path(folder, index, "json");
    if (path == NULL || list == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(mb_json_read(list, &w->block_list));
    MB_TRY(mb_safetensors_open(path, &file));
    for (int64_t i = 0; i < mb_params_count(w->lm->params); i++) {
        mb_param *param = mb_params_at(w->lm->params, i);
        if (param->block != index || !mb_quantise_layers_has(w->lm->params, param)) continue;
        MB_TRY(mb_packed_io_read(file, path, param, &matrix));
        MB_TRY(matrix_set(param, &matrix));
        mb_packed_io_reset(&matrix);
    }
done:
    mb_packed_io_reset(&matrix);
    mb_safetensors_close(&file);
    mb_free(path);
    mb_free(list);
    return status;
}

/* ---- 7. the whole ---- */

static mb_status walk_count(layers_walk *w)
{
    mb_status status = MB_OK;
    mb_quantise_report *r = w->report;
    size_t i;
    json_t *one;
    json_array_foreach(w->block_list, i, one)
    {
        const int64_t columns = json_integer_value(json_object_get(one, "columns"));
        const bool is_gptq = strcmp(json_string_value(json_object_get(one, "method")), "gptq") == 0;
        r->matrices++;
        r->by_gptq += is_gptq;
        r->scant += w->options->by_gptq && !is_gptq;
        r->other_groups += mb_gptq_group(columns, w->options->gptq.group) != w->options->gptq.group;
        if (json_array_append(r->list, one) != 0) MB_RAISE(MB_ENOMEM, "quantise: no memory for the report");
    }
done:
    return status;
}

/* Collective. */
static mb_status walk_block(layers_walk *w, int64_t index, const char *folder, bool is_there)
{
    mb_status status = MB_OK;
    const bool is_moe = w->lm->blocks[index].is_moe, moves = w->options->by_gptq;
    if (is_there) {
        MB_TRY(mb_comm_agree(w->comm, block_read(w, index, folder)));
        MB_TRY(mb_params_filled(w->lm->params));
        w->report->resumed++;
    } else {
        w->block_list = json_array();
        MB_TRY(step_attention(w, index));
    }
    if (moves) MB_TRY(walk_advance(w, index, ATTENTION));
    if (!is_there) MB_TRY(is_moe ? step_experts(w, index) : step_ffn(w, index));
    if (moves) MB_TRY(walk_advance(w, index, FFN));
    if (!is_there && mb_comm_rank(w->comm) == 0) status = block_write(w, index, folder);
    MB_TRY(mb_comm_agree(w->comm, status));
    MB_TRY(walk_count(w));
done:
    made_reset(w);
    return status;
}

static mb_status walk_prepare(layers_walk *w)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(w->made, mb_params_count(w->lm->params));
    MB_NEW_ARRAY(w->row_offsets, mb_comm_size(w->comm) + 1);
    w->report->list = json_array();
    if (w->report->list == NULL) MB_RAISE(MB_ENOMEM, "quantise: no memory for the report");
    if (!w->options->by_gptq) goto done;
    MB_TRY(mb_lm_pass_create(w->lm, &w->pass));
    MB_TRY(walk_cut(w));
    MB_TRY(walk_embed(w));
done:
    return status;
}

/* From here on a plain model. */
static mb_status walk_merge(layers_walk *w)
{
    mb_status status = MB_OK;
    if (!w->lm->lora.is_on) goto done;
    MB_TRY(mb_lora_merge(&w->lm->lora, w->ops, w->lm->params));
    w->lm->lora.is_on = false;
done:
    return status;
}

static mb_status walk_run(layers_walk *w, const char *folder)
{
    mb_status status = MB_OK;
    const int64_t layers = w->lm->arch.layers;
    int64_t there = mb_comm_rank(w->comm) == 0 ? block_count(folder, layers) : 0, stop;
    mb_progress progress;
    MB_TRY(mb_comm_agree(w->comm, walk_merge(w)));
    MB_TRY(mb_comm_agree(w->comm, walk_prepare(w)));
    MB_TRY(mb_comm_bcast(w->comm, &there, sizeof there, 0));
    mb_progress_start(&progress, "quantise", "layers", there, layers);
    for (int64_t i = 0; i < layers; i++) {
        stop = mb_stop_is_set();
        MB_TRY(mb_comm_allreduce_i64(w->comm, &stop, 1, MB_COMM_MAX));
        if (stop != 0)
            MB_RAISE(MB_ESTOPPED, "stopped before layer %lld of %lld; run again", (long long)i,
                     (long long)layers);
        MB_TRY(walk_block(w, i, folder, i < there));
        if (i >= there) mb_progress_step(&progress, i + 1, NULL);
    }
    mb_progress_end(&progress, layers, NULL);
    w->report->blocks = layers;
done:
    return status;
}

mb_status mb_quantise_layers_run(mb_comm *comm, mb_lm *lm, const mb_quantise_options *options,
                                 const mb_quantise_records *opt_records, const char *folder,
                                 mb_quantise_report *out_report)
{
    mb_status status = MB_OK;
    mb_quantise_report report = {0};
    const double start = mb_clock_seconds();
    layers_walk w = {.comm = comm,
                     .lm = lm,
                     .ops = lm->ops,
                     .options = options,
                     .records = opt_records,
                     .report = &report};
    if (options->by_gptq && (opt_records == NULL || opt_records->records == 0))
        MB_RAISE(MB_EUSAGE, "quantise: GPTQ needs calibration records");
    if (mb_params_is_sharded(lm->params))
        MB_RAISE(MB_EUSAGE, "quantise: the model's weights are cut over the ranks; leave model.shard out");
    if (lm->lora.is_on && mb_params_is_shared(lm->params))
        MB_RAISE(MB_EUSAGE, "quantise: an adapter is merged by every rank into weights of its own; open the "
                            "model with model.share_weights=false");
    if (lm->fuse != NULL || lm->arch.packed_bits != 0)
        MB_RAISE(MB_EUSAGE, "%s: is %s", lm->path != NULL ? lm->path : "the model",
                 lm->fuse != NULL ? "a fused model; quantise its members one by one"
                                  : "quantised already; give the model it was made from");
    for (int64_t i = 0; i < mb_params_count(lm->params); i++)
        if (mb_params_at(lm->params, i)->bits != 0)
            MB_RAISE(MB_EUSAGE, "quantise: the model was opened quantised; leave model.quantize out");
    MB_TRY(walk_run(&w, folder));
    report.seconds = mb_clock_seconds() - start;
    *out_report = report;
    report.list = NULL;
done:
    made_reset(&w);
    for (int64_t i = 0; i < w.chunk_count; i++) mb_free(w.chunks[i].x);
    mb_free(w.chunks);
    mb_free(w.positions);
    mb_free(w.offsets);
    mb_free(w.row_offsets);
    mb_free(w.made);
    mb_lm_pass_destroy(&w.pass);
    json_decref(report.list);
    return status;
}

void mb_quantise_layers_plan(const mb_arch *arch, const mb_quantise_options *options, int64_t tokens,
                             int64_t *out_records, int64_t *out_step)
{
    const int64_t inputs[] = {arch->width, arch->heads * arch->head_width, mb_arch_dense_ffn(arch),
                              arch->ffn};
    *out_records = *out_step = 0;
    if (!options->by_gptq) return;
    *out_records = tokens * arch->width * (int64_t)sizeof(float);
    for (int i = 0; i < 4; i++) {
        const int64_t k = inputs[i], sets = arch->experts > 0 ? step_range(k, arch->experts) : 1;
        const int64_t bytes = 12 * k * k * sets + 20 * k * k; /* factoring beside the Gram matrices */
        if (bytes > *out_step) *out_step = bytes;
    }
}
