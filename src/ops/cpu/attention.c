/* attention (cpu): segments and heads as jobs, one thread each.
 *
 * Forward: keys are packed per (segment, key head), then jobs of (segment, head, up to SPAN queries).
 * Backward: jobs of (segment, key head) with all query heads of that group in order, so dk and dv have one
 * owner.
 */
#include <omp.h>
#include <string.h>

#include "ops/cpu/cpu.h"

enum { SPAN = 480 }; /* a multiple of the kernels' blocks of queries */

typedef struct job {
    int64_t segment, first;
} job;

/* Where the panels of each segment begin, per key head; out_panels[segments] = the total. */
static void panel_offsets(const mb_attention_shape *shape, const mb_kernels *kernels, int64_t *out_panels)
{
    out_panels[0] = 0;
    for (int64_t s = 0; s < shape->segments; s++) {
        int64_t rows = shape->offsets[s + 1] - shape->offsets[s];
        out_panels[s + 1] =
            out_panels[s] + shape->kv_heads * mb_kernels_panel_floats(kernels, rows, shape->head_width);
    }
}

static mb_head head_of(const mb_attention_shape *shape, int64_t segment)
{
    return (mb_head){.rows = shape->offsets[segment + 1] - shape->offsets[segment],
                     .width = shape->head_width,
                     .stride = shape->heads * shape->head_width,
                     .kv_stride = shape->kv_heads * shape->head_width,
                     .lse_stride = shape->heads,
                     .window = shape->window,
                     .scale = shape->scale};
}

/* Jobs of all segments, long ones cut into spans; returns their number. out_jobs may be NULL to count. */
static int64_t jobs_list(const mb_attention_shape *shape, int64_t span, job *out_jobs)
{
    int64_t count = 0;
    for (int64_t s = 0; s < shape->segments; s++) {
        int64_t rows = shape->offsets[s + 1] - shape->offsets[s];
        for (int64_t first = 0; first < rows; first += span, count++) {
            if (out_jobs != NULL) out_jobs[count] = (job){s, first};
        }
    }
    return count;
}

static void pack_all(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *k, const int64_t *offsets,
                     float *panels)
{
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int64_t groups = shape->kv_heads, dh = shape->head_width, pairs = shape->segments * groups;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pairs; i++) {
        int64_t s = i / groups, g = i % groups, rows = shape->offsets[s + 1] - shape->offsets[s];
        kernels->pack_panels(mb_tensor_f32(k) + (shape->offsets[s] * groups + g) * dh, rows, dh, groups * dh,
                             panels + offsets[s] + g * mb_kernels_panel_floats(kernels, rows, dh));
    }
}

mb_status mb_attention_cpu(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                           const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    mb_status status = MB_OK;
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int64_t heads = shape->heads, dh = shape->head_width, share = heads / shape->kv_heads;
    int64_t count = jobs_list(shape, SPAN, NULL);
    job *jobs = NULL;
    int64_t *offsets = NULL;
    float *panels = NULL, *scratch = NULL;
    MB_ARENA_ARRAY(ops->scratch, jobs, count);
    MB_ARENA_ARRAY(ops->scratch, offsets, shape->segments + 1);
    panel_offsets(shape, kernels, offsets);
    jobs_list(shape, SPAN, jobs);
    MB_ARENA_ARRAY(ops->scratch, panels, offsets[shape->segments]);
    MB_ARENA_ARRAY(ops->scratch, scratch, ops->threads * kernels->attention_scratch);
#pragma omp parallel num_threads(mb_cpu_threads_for(ops, 16 * mb_tensor_count(q)))
    {
        pack_all(ops, shape, k, offsets, panels);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count * heads; i++) {
            const job *one = &jobs[i / heads];
            int64_t h = i % heads, g = h / share, begin = shape->offsets[one->segment];
            mb_head head = head_of(shape, one->segment);
            head.q = mb_tensor_f32(q) + (begin * heads + h) * dh;
            head.v = mb_tensor_f32(v) + (begin * shape->kv_heads + g) * dh;
            head.o = mb_tensor_f32(o) + (begin * heads + h) * dh;
            head.lse = mb_tensor_f32(lse) + begin * heads + h;
            kernels->attention(
                &head, one->first, one->first + SPAN < head.rows ? one->first + SPAN : head.rows,
                panels + offsets[one->segment] + g * mb_kernels_panel_floats(kernels, head.rows, dh),
                scratch + omp_get_thread_num() * kernels->attention_scratch);
        }
    }
done:
    return status;
}

typedef struct gradients {
    const float *q, *k, *v, *o, *lse, *d_o;
    float *dq, *dk, *dv;
} gradients;

/* All query heads of one key head of one segment. key_panels and value_panels are this thread's. */
static void group_backward(const mb_kernels *kernels, const mb_attention_shape *shape, int64_t segment,
                           int64_t g, const gradients *all, float *key_panels, float *value_panels,
                           float *scratch)
{
    int64_t heads = shape->heads, groups = shape->kv_heads, dh = shape->head_width, share = heads / groups;
    int64_t begin = shape->offsets[segment], at = (begin * groups + g) * dh;
    mb_head head = head_of(shape, segment);
    head.k = all->k + at, head.v = all->v + at, head.dk = all->dk + at, head.dv = all->dv + at;
    kernels->pack_panels(head.k, head.rows, dh, head.kv_stride, key_panels);
    kernels->pack_panels(head.v, head.rows, dh, head.kv_stride, value_panels);
    for (int64_t t = 0; t < head.rows; t++) {
        memset(head.dk + t * head.kv_stride, 0, (size_t)dh * sizeof(float));
        memset(head.dv + t * head.kv_stride, 0, (size_t)dh * sizeof(float));
    }
    for (int64_t h = g * share; h < (g + 1) * share; h++) {
        int64_t row = (begin * heads + h) * dh;
        head.q = all->q + row, head.d_o = all->d_o + row, head.dq = all->dq + row;
        head.o = (float *)(uintptr_t)(all->o + row);
        head.lse = (float *)(uintptr_t)(all->lse + begin * heads + h);
        kernels->attention_backward(&head, key_panels, value_panels, scratch);
    }
}

mb_status mb_attention_backward_cpu(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                    const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                    const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq, mb_tensor *dk,
                                    mb_tensor *dv)
{
    mb_status status = MB_OK;
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    gradients all = {mb_tensor_f32(q),  mb_tensor_f32(k),   mb_tensor_f32(v),
                     mb_tensor_f32(o),  mb_tensor_f32(lse), mb_tensor_f32(d_o),
                     mb_tensor_f32(dq), mb_tensor_f32(dk),  mb_tensor_f32(dv)};
    int64_t longest = 0;
    float *scratch = NULL;
    for (int64_t s = 0; s < shape->segments; s++) {
        int64_t rows = shape->offsets[s + 1] - shape->offsets[s];
        longest = rows > longest ? rows : longest;
    }
    int64_t panel = mb_kernels_panel_floats(kernels, longest, shape->head_width);
    int64_t own = 2 * panel + kernels->attention_scratch;
    MB_ARENA_ARRAY(ops->scratch, scratch, ops->threads * own);
#pragma omp parallel for schedule(dynamic, 1) num_threads(mb_cpu_threads_for(ops, 16 * mb_tensor_count(q)))
    for (int64_t i = 0; i < shape->segments * shape->kv_heads; i++) {
        float *mine = scratch + omp_get_thread_num() * own;
        group_backward(kernels, shape, i / shape->kv_heads, i % shape->kv_heads, &all, mine, mine + panel,
                       mine + 2 * panel);
    }
done:
    return status;
}
