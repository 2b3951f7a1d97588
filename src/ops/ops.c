/* ops: creation of a backend, and the public functions: check, then the backend's entry.
 *
 * 1. weights
 * 2. creation
 * 3. memory
 * 4. dense products
 * 5. element-wise and norms
 * 6. embedding, head, attention
 * 7. routing
 * 8. optimiser
 */
#include <assert.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops_check.h"
#include "ops/ops_table.h"

/* ---- 1. weights ---- */

void mb_weight_init(mb_weight *weight, mb_tensor tensor)
{
    *weight = (mb_weight){.tensor = tensor, .width = mb_ops_width(&tensor), .version = 1};
}

void mb_weight_init_quantised(mb_weight *weight, mb_tensor tensor, int bits, int64_t width, int64_t group,
                              mb_tensor scale)
{
    assert(bits == 8 || bits == 4);
    assert(tensor.dtype == (bits == 8 ? MB_I8 : MB_U8) && group > 0);
    assert(scale.shape[0] == tensor.shape[0] && scale.shape[1] == (width + group - 1) / group);
    *weight = (mb_weight){
        .tensor = tensor, .bits = bits, .width = width, .group = group, .scale = scale, .version = 1};
}

static float weight_quantised(const mb_weight *weight, int64_t row, int64_t column)
{
    const int64_t groups = weight->scale.shape[1];
    const float scale = mb_tensor_f32(&weight->scale)[row * groups + column / weight->group];
    if (weight->bits == 8)
        return (float)((const int8_t *)weight->tensor.data)[row * weight->width + column] * scale;
    const uint8_t pair = ((const uint8_t *)weight->tensor.data)[row * weight->tensor.shape[1] + column / 2];
    return (float)((int)(column % 2 == 0 ? pair & 15 : pair >> 4) - 8) * scale;
}

void mb_weight_read(const mb_weight *weight, int64_t first, int64_t n, float *out)
{
    const int64_t width = weight->width;
    if (weight->bits == 0) {
        const mb_tensor rows = mb_tensor_rows(&weight->tensor, first, n);
        mb_dtype_to_f32(rows.dtype, rows.data, n * width, out);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < width; j++) out[i * width + j] = weight_quantised(weight, first + i, j);
}

void mb_weight_changed(mb_weight *weight)
{
    weight->version++;
}

void mb_weight_reset(mb_weight *weight)
{
    if (weight->packed != NULL) weight->packed_free(weight->packed);
    weight->packed = NULL;
    weight->packed_free = NULL;
}

/* ---- 2. creation ---- */

static int default_threads(void)
{
    if (getenv("OMP_NUM_THREADS") != NULL) return omp_get_max_threads();
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    return 1;
}

enum { SCRATCH_BYTES = 1 << 20 };

/* A backend of the name the user gave; "auto" takes the best that is there. */
static mb_status fill_backend(mb_ops *ops, const mb_ops_options *options)
{
    mb_status status = MB_OK;
    const char *backend = options->backend;
    const bool is_auto = strcmp(backend, "auto") == 0;
    if (is_auto && mb_ops_cuda_is_built() &&
        (options->share_gpu ? mb_ops_cuda_devices() > 0 : mb_ops_cuda_devices() >= options->local_size) &&
        mb_ops_cuda_devices() > 0) {
        MB_TRY(mb_ops_cuda_fill(ops, options));
    } else if (strcmp(backend, "cpu") == 0 || (is_auto && mb_ops_cpu_is_built())) {
        MB_TRY(mb_ops_cpu_fill(ops));
    } else if (strcmp(backend, "cuda") == 0) {
        MB_TRY(mb_ops_cuda_fill(ops, options));
    } else if (strcmp(backend, "ref") != 0 && !is_auto) {
        MB_RAISE(MB_EUNSUPPORTED, "backend \"%s\" is not known; use auto, cpu, cuda or ref", backend);
    }
done:
    return status;
}

mb_status mb_ops_create_with(const mb_ops_options *options, mb_ops **out_ops)
{
    mb_status status = MB_OK;
    mb_ops *ops = NULL;
    MB_NEW(ops);
    ops->threads = options->threads > 0 ? options->threads : default_threads();
    ops->allocator = ops->host_allocator = mb_allocator_host();
    MB_TRY(mb_arena_create(SCRATCH_BYTES, &ops->scratch));
    mb_ops_ref_fill(ops);
    MB_TRY(fill_backend(ops, options));
    if (ops->is_device) {
        mb_arena_destroy(&ops->scratch);
        MB_TRY(mb_arena_create_on(ops->allocator, SCRATCH_BYTES, &ops->scratch));
    }
    *out_ops = ops;
    ops = NULL;
done:
    mb_ops_destroy(&ops);
    return status;
}

mb_status mb_ops_create(const char *backend, int threads, mb_ops **out_ops)
{
    const mb_ops_options options = {.backend = backend, .threads = threads};
    return mb_ops_create_with(&options, out_ops);
}

void mb_ops_destroy(mb_ops **ops)
{
    if (*ops == NULL) return;
    mb_arena_destroy(&(*ops)->scratch);
    if ((*ops)->backend_destroy != NULL) (*ops)->backend_destroy((*ops)->backend);
    MB_FREE(*ops);
}

const char *mb_ops_name(const mb_ops *ops)
{
    return ops->name;
}
const char *mb_ops_describe(const mb_ops *ops)
{
    return ops->describe;
}
bool mb_ops_is_row_stable(const mb_ops *ops)
{
    return ops->row_stable;
}
int mb_ops_threads(const mb_ops *ops)
{
    return ops->threads;
}
const char *mb_ops_bus_id(const mb_ops *ops)
{
    return ops->bus_id;
}
int mb_ops_gpu_count(void)
{
    return mb_ops_cuda_is_built() ? mb_ops_cuda_devices() : 0;
}
mb_status mb_ops_gpu_bus_id(int gpu, char out_text[MB_OPS_BUS_ID])
{
    return mb_ops_cuda_bus_id(gpu, out_text);
}
const mb_allocator *mb_ops_allocator(const mb_ops *ops)
{
    return ops->allocator;
}
mb_arena *mb_ops_scratch(mb_ops *ops)
{
    return ops->scratch;
}

/* End of an entry: scratch as it was when the op began. */
static mb_status finish(mb_ops *ops, mb_arena_mark mark, mb_status status, const char *op)
{
    mb_arena_release(ops->scratch, mark);
    if (status == MB_OK && ops->waits) status = ops->memory->wait(ops);
    return status == MB_OK ? MB_OK : mb_status_trace(status, op, __FILE__, __LINE__);
}

/* ---- 3. memory ---- */

const mb_allocator *mb_ops_host_allocator(const mb_ops *ops)
{
    return ops->host_allocator;
}
bool mb_ops_is_device(const mb_ops *ops)
{
    return ops->is_device;
}

mb_status mb_ops_upload(mb_ops *ops, const void *host, size_t bytes, void *data)
{
    if (bytes == 0) return MB_OK;
    if (ops->memory != NULL) return ops->memory->upload(ops, host, bytes, data);
    memcpy(data, host, bytes);
    return MB_OK;
}

mb_status mb_ops_download(mb_ops *ops, const void *data, size_t bytes, void *host)
{
    if (bytes == 0) return MB_OK;
    if (ops->memory != NULL) return ops->memory->download(ops, data, bytes, host);
    memcpy(host, data, bytes);
    return MB_OK;
}

mb_status mb_ops_copy(mb_ops *ops, const void *from, size_t bytes, void *to)
{
    if (bytes == 0) return MB_OK;
    if (ops->memory != NULL) return ops->memory->copy(ops, from, bytes, to);
    memcpy(to, from, bytes);
    return MB_OK;
}

static void zero_host(const mb_ops *ops, char *data, size_t bytes)
{
    const size_t part = (size_t)1 << 16;
#pragma omp parallel for schedule(static) num_threads(ops->threads) if (bytes > 8 * part)
    for (size_t at = 0; at < bytes; at += part) memset(data + at, 0, bytes - at < part ? bytes - at : part);
}

mb_status mb_ops_zero(mb_ops *ops, void *data, size_t bytes)
{
    if (bytes == 0) return MB_OK;
    if (ops->memory != NULL) return ops->memory->zero(ops, data, bytes);
    zero_host(ops, data, bytes);
    return MB_OK;
}

mb_status mb_ops_wait(mb_ops *ops)
{
    return ops->memory != NULL ? ops->memory->wait(ops) : MB_OK;
}

mb_status mb_ops_input(mb_ops *ops, mb_arena *arena, const void *host, size_t bytes, const void **out)
{
    mb_status status = MB_OK;
    char *data = NULL;
    if (host == NULL || !ops->is_device) {
        *out = host;
        goto done;
    }
    MB_ARENA_ARRAY(arena, data, bytes);
    MB_TRY(mb_ops_upload(ops, host, bytes, data));
    *out = data;
done:
    return status;
}

mb_status mb_ops_output(mb_ops *ops, mb_arena *host_arena, const void *data, size_t bytes, void **out)
{
    mb_status status = MB_OK;
    char *host = NULL;
    if (data == NULL || !ops->is_device) {
        *out = (void *)data;
        goto done;
    }
    MB_ARENA_ARRAY(host_arena, host, bytes);
    MB_TRY(mb_ops_download(ops, data, bytes, host));
    *out = host;
done:
    return status;
}

void *mb_ops_stream(mb_ops *ops)
{
    return ops->stream;
}

bool mb_ops_can_record(const mb_ops *ops)
{
    return ops->memory != NULL && ops->memory->record_begin != NULL && !ops->waits;
}

mb_status mb_ops_record_begin(mb_ops *ops)
{
    return ops->memory->record_begin(ops);
}

mb_status mb_ops_record_end(mb_ops *ops, mb_ops_record **out_record)
{
    return ops->memory->record_end(ops, out_record);
}

mb_status mb_ops_record_run(mb_ops *ops, mb_ops_record *record)
{
    return ops->memory->record_run(ops, record);
}

void mb_ops_record_destroy(mb_ops *ops, mb_ops_record **record)
{
    if (*record != NULL) ops->memory->record_destroy(*record);
    *record = NULL;
}

/* ---- 4. dense products ---- */

mb_status mb_ops_linear(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                        bool accumulate, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_linear(x, w, opt_bias, y);
    if (status == MB_OK) status = ops->table.linear(ops, x, w, opt_bias, accumulate, y);
    return finish(ops, mark, status, "linear");
}

mb_status mb_ops_linear_dx(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate, mb_tensor *dx)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_linear(dx, w, NULL, dy);
    if (status == MB_OK) status = ops->table.linear_dx(ops, dy, w, accumulate, dx);
    return finish(ops, mark, status, "linear_dx");
}

mb_status mb_ops_linear_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                           mb_tensor *opt_dbias)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_linear_dw(dy, x, dw, opt_dbias);
    if (status == MB_OK) status = ops->table.linear_dw(ops, dy, x, dw, opt_dbias);
    return finish(ops, mark, status, "linear_dw");
}

mb_status mb_ops_grouped_linear(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                mb_weight *const *w, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_grouped(ops, x, offsets, groups, w, y);
    if (status == MB_OK) status = ops->table.grouped_linear(ops, x, offsets, groups, w, y);
    return finish(ops, mark, status, "grouped_linear");
}

mb_status mb_ops_grouped_linear_dx(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets, int64_t groups,
                                   mb_weight *const *w, bool accumulate, mb_tensor *dx)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_grouped(ops, dx, offsets, groups, w, dy);
    if (status == MB_OK) status = ops->table.grouped_linear_dx(ops, dy, offsets, groups, w, accumulate, dx);
    return finish(ops, mark, status, "grouped_linear_dx");
}

mb_status mb_ops_grouped_linear_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                   const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_grouped_dw(ops, dy, x, offsets, groups, dw);
    if (status == MB_OK) status = ops->table.grouped_linear_dw(ops, dy, x, offsets, groups, dw);
    return finish(ops, mark, status, "grouped_linear_dw");
}

/* ---- 5. element-wise and norms ---- */

mb_status mb_ops_rms_norm(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, float eps, mb_tensor *y,
                          mb_tensor *out_rstd)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_rms_norm(x, w, y, out_rstd);
    if (status == MB_OK) status = ops->table.rms_norm(ops, x, w, eps, y, out_rstd);
    return finish(ops, mark, status, "rms_norm");
}

mb_status mb_ops_rms_norm_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, const mb_tensor *w,
                                   const mb_tensor *rstd, bool accumulate, mb_tensor *dx, mb_tensor *opt_dw)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_rms_norm_backward(dy, x, w, rstd, dx, opt_dw);
    if (status == MB_OK) status = ops->table.rms_norm_backward(ops, dy, x, w, rstd, accumulate, dx, opt_dw);
    return finish(ops, mark, status, "rms_norm_backward");
}

mb_status mb_ops_layer_norm(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                            float eps, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_layer_norm(x, w, b, y);
    if (status == MB_OK) status = ops->table.layer_norm(ops, x, w, b, eps, y);
    return finish(ops, mark, status, "layer_norm");
}

mb_status mb_ops_gelu(mb_ops *ops, bool is_tanh, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_count("gelu", 1, (const mb_tensor *[]){y});
    if (status == MB_OK) status = ops->table.gelu(ops, is_tanh, y);
    return finish(ops, mark, status, "gelu");
}

mb_status mb_ops_multiply(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_count("multiply", 2, (const mb_tensor *[]){x, y});
    if (status == MB_OK) status = ops->table.multiply(ops, x, y);
    return finish(ops, mark, status, "multiply");
}

mb_status mb_ops_cast(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_count("cast", 2, (const mb_tensor *[]){x, y});
    if (status == MB_OK) status = ops->table.cast(ops, x, y);
    return finish(ops, mark, status, "cast");
}

mb_status mb_ops_swiglu(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_same("swiglu", 3, (const mb_tensor *[]){gate, up, y});
    if (status == MB_OK) status = ops->table.swiglu(ops, gate, up, y);
    return finish(ops, mark, status, "swiglu");
}

mb_status mb_ops_swiglu_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *gate, const mb_tensor *up,
                                 mb_tensor *dgate, mb_tensor *dup)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status =
        mb_ops_check_same("swiglu_backward", 5, (const mb_tensor *[]){dy, gate, up, dgate, dup});
    if (status == MB_OK) status = ops->table.swiglu_backward(ops, dy, gate, up, dgate, dup);
    return finish(ops, mark, status, "swiglu_backward");
}

mb_status mb_ops_rope(mb_ops *ops, mb_tensor *x, const int32_t *positions, const mb_tensor *table,
                      bool inverse)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_rope(ops, x, positions, table);
    if (status == MB_OK) status = ops->table.rope(ops, x, positions, table, inverse);
    return finish(ops, mark, status, "rope");
}

mb_status mb_ops_axpy(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_count("axpy", 2, (const mb_tensor *[]){x, y});
    if (status == MB_OK) status = ops->table.axpy(ops, scale, x, y);
    return finish(ops, mark, status, "axpy");
}

mb_status mb_ops_scale(mb_ops *ops, float scale, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_same("scale", 1, (const mb_tensor *[]){y});
    if (status == MB_OK) status = ops->table.scale(ops, scale, y);
    return finish(ops, mark, status, "scale");
}

mb_status mb_ops_clamp(mb_ops *ops, float limit, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_same("clamp", 1, (const mb_tensor *[]){y});
    if (status == MB_OK) status = ops->table.clamp(ops, limit, y);
    return finish(ops, mark, status, "clamp");
}

mb_status mb_ops_clamp_backward(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_same("clamp_backward", 2, (const mb_tensor *[]){y, dy});
    if (status == MB_OK) status = ops->table.clamp_backward(ops, limit, y, dy);
    return finish(ops, mark, status, "clamp_backward");
}

mb_status mb_ops_dropout(mb_ops *ops, const mb_tensor *x, float p, uint64_t seed, uint32_t sub,
                         const int64_t *row_index, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_dropout(x, p, y);
    if (status == MB_OK) status = ops->table.dropout(ops, x, p, seed, sub, row_index, y);
    return finish(ops, mark, status, "dropout");
}

/* ---- 6. embedding, head, attention ---- */

mb_status mb_ops_embedding(mb_ops *ops, const int32_t *tokens, const mb_tensor *table, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_embedding(ops, tokens, table, y);
    if (status == MB_OK) status = ops->table.embedding(ops, tokens, table, y);
    return finish(ops, mark, status, "embedding");
}

mb_status mb_ops_embedding_backward(mb_ops *ops, const int32_t *tokens, const mb_tensor *dy,
                                    mb_tensor *dtable)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_embedding(ops, tokens, dtable, dy);
    if (status == MB_OK) status = mb_ops_check_f32("embedding_backward", "dtable", dtable);
    if (status == MB_OK) status = ops->table.embedding_backward(ops, tokens, dy, dtable);
    return finish(ops, mark, status, "embedding_backward");
}

mb_status mb_ops_scatter_rows(mb_ops *ops, const mb_tensor *x, const int32_t *rows, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_scatter_rows(ops, x, rows, y);
    if (status == MB_OK) status = ops->table.scatter_rows(ops, x, rows, y);
    return finish(ops, mark, status, "scatter_rows");
}

mb_status mb_ops_head_loss(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                           mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                           mb_tensor *opt_dh, mb_tensor *opt_dw)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_head_loss(ops, h, w, targets, out_loss, opt_row_weight, opt_dh, opt_dw);
    if (status == MB_OK)
        status =
            ops->table.head_loss(ops, h, w, targets, out_loss, opt_argmax, opt_row_weight, opt_dh, opt_dw);
    return finish(ops, mark, status, "head_loss");
}

mb_status mb_ops_rows_loss(mb_ops *ops, mb_tensor *logits, const int32_t *opt_targets,
                           const mb_teacher_rows *opt_teacher, mb_tensor *opt_ce, mb_tensor *opt_distance,
                           int32_t *opt_argmax, const float *opt_row_weight)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status =
        mb_ops_check_rows_loss(ops, logits, opt_targets, opt_teacher, opt_ce, opt_distance, opt_row_weight);
    if (status == MB_OK)
        status = ops->table.rows_loss(ops, logits, opt_targets, opt_teacher, opt_ce, opt_distance, opt_argmax,
                                      opt_row_weight);
    return finish(ops, mark, status, "rows_loss");
}

mb_status mb_ops_attention(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                           const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_attention(ops, shape, 2, (const mb_tensor *[]){q, o}, 2,
                                              (const mb_tensor *[]){k, v}, lse);
    if (status == MB_OK) status = ops->table.attention(ops, shape, q, k, v, o, lse);
    return finish(ops, mark, status, "attention");
}

mb_status mb_ops_attention_backward(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                    const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                    const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq, mb_tensor *dk,
                                    mb_tensor *dv)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_attention(ops, shape, 4, (const mb_tensor *[]){q, o, d_o, dq}, 4,
                                              (const mb_tensor *[]){k, v, dk, dv}, lse);
    if (status == MB_OK) status = mb_ops_check_attention_backward(shape);
    if (status == MB_OK) status = ops->table.attention_backward(ops, shape, q, k, v, o, lse, d_o, dq, dk, dv);
    return finish(ops, mark, status, "attention_backward");
}

/* ---- 7. routing ---- */

mb_status mb_ops_route(mb_ops *ops, const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                       bool normalise, mb_tensor *probs, int32_t *ids, mb_tensor *weights)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_route(logits, opt_bias, picks, probs, weights);
    if (status == MB_OK)
        status = ops->table.route(ops, logits, opt_bias, picks, normalise, probs, ids, weights);
    return finish(ops, mark, status, "route");
}

mb_status mb_ops_route_backward(mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                const mb_tensor *weights, bool normalise, const mb_tensor *dweights,
                                mb_tensor *dlogits)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_route_backward(ops, probs, ids, weights, dweights, dlogits);
    if (status == MB_OK)
        status = ops->table.route_backward(ops, probs, ids, weights, normalise, dweights, dlogits);
    return finish(ops, mark, status, "route_backward");
}

mb_status mb_ops_shift_columns(mb_ops *ops, int64_t first, float value, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_f32("shift_columns", "y", y);
    if (status == MB_OK) status = ops->table.shift_columns(ops, first, value, y);
    return finish(ops, mark, status, "shift_columns");
}

mb_status mb_ops_dispatch(mb_ops *ops, const int32_t *ids, int64_t tokens, int64_t picks, int64_t experts,
                          mb_dispatch *dispatch)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_dispatch(ops, ids, tokens, picks, experts, dispatch);
    if (status == MB_OK) status = ops->table.dispatch(ops, ids, tokens, picks, experts, dispatch);
    return finish(ops, mark, status, "dispatch");
}

mb_status mb_ops_expand_rows(mb_ops *ops, const mb_dispatch *dispatch, const int64_t *row_index,
                             int64_t tokens, int64_t picks, int64_t *out)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = ops->table.expand_rows(ops, dispatch, row_index, tokens, picks, out);
    return finish(ops, mark, status, "expand_rows");
}

mb_status mb_ops_gather(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_rows_of(dispatch, x, y);
    if (status == MB_OK) status = ops->table.gather(ops, x, dispatch, y);
    return finish(ops, mark, status, "gather");
}

mb_status mb_ops_gather_backward(mb_ops *ops, const mb_tensor *dy, const mb_dispatch *dispatch, int64_t picks,
                                 mb_tensor *dx)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_rows_of(dispatch, dx, dy);
    if (status == MB_OK) status = mb_ops_check_f32("gather_backward", "dx", dx);
    if (status == MB_OK) status = ops->table.gather_backward(ops, dy, dispatch, picks, dx);
    return finish(ops, mark, status, "gather_backward");
}

mb_status mb_ops_combine(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch,
                         const mb_tensor *weights, mb_tensor *y)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_combine(dispatch, weights, y, x, NULL);
    if (status == MB_OK) status = ops->table.combine(ops, x, dispatch, weights, y);
    return finish(ops, mark, status, "combine");
}

mb_status mb_ops_combine_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                  const mb_dispatch *dispatch, const mb_tensor *weights, mb_tensor *dx,
                                  mb_tensor *opt_dweights)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_combine(dispatch, weights, dy, dx, opt_dweights);
    if (status == MB_OK) status = mb_ops_check_same("combine_backward", 2, (const mb_tensor *[]){x, dx});
    if (status == MB_OK)
        status = ops->table.combine_backward(ops, dy, x, dispatch, weights, dx, opt_dweights);
    return finish(ops, mark, status, "combine_backward");
}

/* ---- 8. optimiser ---- */

mb_status mb_ops_adamw(mb_ops *ops, const mb_adamw *adamw, int64_t n, const float *gradient, float *parameter,
                       float *moment1, float *moment2)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_adamw(adamw, n);
    if (status == MB_OK) status = ops->table.adamw(ops, adamw, n, gradient, parameter, moment1, moment2);
    return finish(ops, mark, status, "adamw");
}

mb_status mb_ops_sum_squares(mb_ops *ops, const float *x, int64_t n, int64_t block, double *out)
{
    mb_arena_mark mark = mb_arena_mark_get(ops->scratch);
    mb_status status = mb_ops_check_blocks(n, block);
    if (status == MB_OK) status = ops->table.sum_squares(ops, x, n, block, out);
    return finish(ops, mark, status, "sum_squares");
}
