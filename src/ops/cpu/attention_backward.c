/* attention_backward (cpu): chunks of keys as jobs.
 *
 * A job is one chunk of keys of one segment, for one key head: it owns those rows of dk and dv, and adds its
 * part of dq to each tile of queries after the chunk before it has (mb_attention_turn). Jobs are taken in an
 * order in which whoever is waited for was taken earlier, all first chunks before all second ones: nobody
 * waits for a job that nobody has, and rarely for one at all. The order of the sums is that of the chunks for
 * any number of threads.
 */
#include <omp.h>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/cpu.h"

typedef struct job {
    int64_t segment, chunk, count; /* count: where tiles done are counted, key head by key head */
} job;

typedef struct backward_work {
    const mb_attention_kernels *kernels;
    const mb_attention_shape *shape;
    const mb_tensor *q, *k, *v, *o, *lse, *d_o, *dq, *dk, *dv;
    float *opt_dq_sums, *deltas;
    atomic_int *done; /* tiles, per chunk and key head */
    job *jobs;
    int64_t job_count;
} backward_work;

static void *at(const mb_tensor *x, int64_t element)
{
    return (char *)x->data + element * (int64_t)mb_dtype_bytes(x->dtype);
}

static mb_attention_head head_of(const backward_work *w, int64_t s, int64_t g)
{
    const mb_attention_shape *shape = w->shape;
    const int64_t dh = shape->head_width, share = shape->heads / shape->kv_heads, first = shape->offsets[s];
    const int64_t wide = (first * shape->heads + g * share) * dh, narrow = (first * shape->kv_heads + g) * dh;
    const int64_t rows = shape->offsets[s + 1] - first;
    return (mb_attention_head){.queries = rows,
                               .keys = rows,
                               .share = share,
                               .width = dh,
                               .stride = shape->heads * dh,
                               .kv_stride = shape->kv_heads * dh,
                               .lse_stride = shape->heads,
                               .window = shape->window,
                               .scale = shape->scale,
                               .is_bf16 = w->q->dtype == MB_BF16,
                               .q = at(w->q, wide),
                               .k = at(w->k, narrow),
                               .v = at(w->v, narrow),
                               .o = at(w->o, wide),
                               .lse = mb_tensor_f32(w->lse) + first * shape->heads + g * share,
                               .d_o = at(w->d_o, wide),
                               .dq = at(w->dq, wide),
                               .dk = at(w->dk, narrow),
                               .dv = at(w->dv, narrow),
                               .deltas = w->deltas + first * shape->heads + g * share,
                               .opt_dq_sums = w->opt_dq_sums != NULL ? w->opt_dq_sums + wide : NULL};
}

static int64_t chunks_of(const backward_work *w, int64_t s)
{
    const int64_t rows = w->shape->offsets[s + 1] - w->shape->offsets[s];
    return (rows + w->kernels->chunk - 1) / w->kernels->chunk;
}

/* Jobs, first chunks first; returns the largest number of chunks. */
static int64_t jobs_count(backward_work *w)
{
    int64_t most = 0;
    for (int64_t s = 0; s < w->shape->segments; s++) {
        const int64_t chunks = chunks_of(w, s);
        w->job_count += chunks;
        most = chunks > most ? chunks : most;
    }
    return most;
}

static void jobs_list(backward_work *w, int64_t most)
{
    int64_t n = 0;
    for (int64_t c = 0; c < most; c++) {
        for (int64_t s = 0, before = 0; s < w->shape->segments; s++) {
            const int64_t chunks = chunks_of(w, s);
            if (c < chunks) w->jobs[n++] = (job){s, c, (before + c) * w->shape->kv_heads};
            before += chunks;
        }
    }
}

static void run_job(const backward_work *w, int64_t i, float *scratch)
{
    const int64_t groups = w->shape->kv_heads, g = i % groups;
    const job *one = &w->jobs[i / groups];
    const mb_attention_head head = head_of(w, one->segment, g);
    atomic_int *done = w->done + one->count + g;
    w->kernels->backward(
        &head, one->chunk,
        (mb_attention_turn){.opt_before = one->chunk > 0 ? done - groups : NULL, .done = done}, scratch);
}

static void run_all(const backward_work *w, int threads, float *scratch, int64_t own)
{
    const int64_t groups = w->shape->kv_heads, count = w->job_count * groups;
    atomic_llong next = 0;
#pragma omp parallel num_threads(threads)
    {
        float *mine = scratch + omp_get_thread_num() * own;
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < count; i++) {
            const mb_attention_head head = head_of(w, w->jobs[i / groups].segment, i % groups);
            w->kernels->deltas(&head, w->jobs[i / groups].chunk, mine);
        }
        for (;;) {
            const int64_t i = atomic_fetch_add(&next, 1);
            if (i >= count) break;
            run_job(w, i, mine);
        }
    }
}

mb_status mb_attention_backward_cpu(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                    const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                    const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq, mb_tensor *dk,
                                    mb_tensor *dv)
{
    mb_status status = MB_OK;
    const int threads = mb_cpu_threads_for(ops, 16 * mb_tensor_count(q));
    const bool is_bf16 = q->dtype == MB_BF16;
    backward_work w = {.kernels = mb_attention_kernels_get(mb_cpu_get(ops)->kernels->name, is_bf16)};
    float *scratch = NULL;
    w.shape = shape, w.q = q, w.k = k, w.v = v, w.o = o, w.lse = lse, w.d_o = d_o;
    w.dq = dq, w.dk = dk, w.dv = dv;
    const int64_t most = jobs_count(&w), own = w.kernels->backward_scratch(shape->head_width);
    MB_ARENA_ARRAY(ops->scratch, w.jobs, w.job_count);
    MB_ARENA_ARRAY(ops->scratch, w.done, w.job_count * shape->kv_heads);
    MB_ARENA_ARRAY(ops->scratch, scratch, threads * own);
    MB_ARENA_ARRAY(ops->scratch, w.deltas, mb_tensor_count(lse));
    if (is_bf16 && most > 1) MB_ARENA_ARRAY(ops->scratch, w.opt_dq_sums, mb_tensor_count(q));
    jobs_list(&w, most);
    for (int64_t i = 0; i < w.job_count * shape->kv_heads; i++) atomic_init(&w.done[i], 0);
    run_all(&w, threads, scratch, own);
done:
    return status;
}
