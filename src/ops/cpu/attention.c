/* attention (cpu): which head, tile and block is computed by whom, forward. attention_kernels.h says what a
 * head is and why the division into jobs does not change the bits.
 *
 * A job is a run of tiles of one segment, for one key head: all tiles of a segment of one block (its keys are
 * packed by the job), else one tile. Keys that several jobs read are packed before. Where there are too few
 * jobs for the threads, as when a few records generate, a job is one block of a tile and the tile's blocks
 * are merged at the end.
 *
 * 1. heads
 * 2. the plan
 * 3. running it
 */
#include <omp.h>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/cpu.h"

/* Query rows first..last and blocks block..end of a segment. packed: where its keys lie, key head by key
 * head; -1: the job packs them. partial: where its partials begin, those of the next key head partial_step
 * on; -1: none. */
typedef struct job {
    int64_t segment, first, last, block, end, packed, partial, partial_step;
} job;

/* One block to pack before. */
typedef struct pack {
    int64_t segment, block, packed;
} pack;

typedef struct plan {
    const mb_attention_kernels *kernels;
    const mb_attention_shape *shape;
    const mb_tensor *q, *k, *v, *o, *lse;
    bool is_joined, is_split;
    job *jobs, *tiles; /* tiles: to be merged, where is_split */
    pack *packs;
    int64_t job_count, tile_count, pack_count, packed_floats, partial_floats,
        own; /* own: scratch of a thread */
    float *packed, *partials, *scratch;
} plan;

/* ---- 1. heads ---- */

static const void *at(const mb_tensor *x, int64_t element)
{
    return (const char *)x->data + element * (int64_t)mb_dtype_bytes(x->dtype);
}

static mb_attention_head head_of(const plan *p, int64_t s, int64_t g)
{
    const mb_attention_shape *shape = p->shape;
    const int64_t dh = shape->head_width, share = shape->heads / shape->kv_heads, query = shape->offsets[s];
    const int64_t queries = shape->offsets[s + 1] - query;
    const int64_t key = shape->opt_key_first != NULL ? shape->opt_key_first[s] : query;
    const int64_t wide = (query * shape->heads + g * share) * dh, narrow = (key * shape->kv_heads + g) * dh;
    return (mb_attention_head){.queries = queries,
                               .keys = shape->opt_key_first != NULL ? shape->opt_key_count[s] : queries,
                               .share = share,
                               .width = dh,
                               .stride = shape->heads * dh,
                               .kv_stride = shape->kv_heads * dh,
                               .lse_stride = shape->heads,
                               .window = shape->window,
                               .scale = shape->scale,
                               .is_bidirectional = shape->is_bidirectional,
                               .is_bf16 = p->q->dtype == MB_BF16,
                               .q = at(p->q, wide),
                               .k = at(p->k, narrow),
                               .v = at(p->v, narrow),
                               .o = (void *)(uintptr_t)at(p->o, wide),
                               .lse = mb_tensor_f32(p->lse) + query * shape->heads + g * share};
}

/* ---- 2. the plan ---- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t blocks_of(const plan *p, const mb_attention_head *head)
{
    return (head->keys + p->kernels->block - 1) / p->kernels->block;
}

/* The job of one tile, or those of its blocks. */
static void plan_tile(plan *p, const mb_attention_head *head, job one)
{
    const int64_t own = p->kernels->partial_floats(one.last - one.first, head->width);
    mb_attention_blocks(p->kernels, head, one.first, one.last, &one.block, &one.end);
    if (p->is_split) {
        one.partial = p->partial_floats, one.partial_step = (one.end - one.block) * own;
        p->partial_floats += one.partial_step * p->shape->kv_heads;
    }
    if (p->tiles != NULL) p->tiles[p->tile_count] = one;
    p->tile_count++;
    const int64_t end = one.end, step = p->is_split ? 1 : end - one.block;
    for (; one.block < end; one.block += step, one.partial += own) {
        one.end = one.block + step;
        if (p->jobs != NULL) p->jobs[p->job_count] = one;
        p->job_count++;
        if (!p->is_split) break;
    }
}

static void plan_segment(plan *p, int64_t s)
{
    const mb_attention_head head = head_of(p, s, 0);
    const int64_t rows = head.queries * head.share, blocks = blocks_of(p, &head), tile = p->kernels->rows;
    job one = {.segment = s, .packed = -1, .partial = -1};
    if (rows == 0) return;
    if (blocks == 1 && p->is_joined) {
        one.last = rows, one.end = 1;
        if (p->jobs != NULL) p->jobs[p->job_count] = one;
        p->job_count++, p->tile_count++;
        return;
    }
    if (rows > tile) {
        one.packed = p->packed_floats;
        p->packed_floats += p->kernels->packed_floats(head.keys, head.width) * p->shape->kv_heads;
        for (int64_t b = 0; b < blocks; b++, p->pack_count++)
            if (p->packs != NULL) p->packs[p->pack_count] = (pack){s, b, one.packed};
    }
    for (; one.first < rows; one.first += tile) {
        one.last = least(rows, one.first + tile);
        plan_tile(p, &head, one);
    }
}

/* Counts; with jobs and packs set, also writes them. */
static void plan_pass(plan *p)
{
    p->job_count = p->tile_count = p->pack_count = p->packed_floats = p->partial_floats = 0;
    for (int64_t s = 0; s < p->shape->segments; s++) plan_segment(p, s);
}

static mb_status plan_create(mb_ops *ops, plan *p, int threads)
{
    mb_status status = MB_OK;
    const int64_t groups = p->shape->kv_heads, width = p->shape->head_width, wanted = 2 * threads;
    p->is_joined = p->shape->segments * groups >= wanted;
    plan_pass(p);
    p->is_split = threads > 1 && p->tile_count * groups < wanted;
    plan_pass(p);
    p->own = p->kernels->forward_scratch(width) + p->kernels->packed_floats(p->kernels->block, width);
    MB_ARENA_ARRAY(ops->scratch, p->jobs, p->job_count);
    MB_ARENA_ARRAY(ops->scratch, p->packs, p->pack_count);
    if (p->is_split) MB_ARENA_ARRAY(ops->scratch, p->tiles, p->tile_count);
    MB_ARENA_ARRAY(ops->scratch, p->packed, p->packed_floats);
    MB_ARENA_ARRAY(ops->scratch, p->partials, p->partial_floats);
    MB_ARENA_ARRAY(ops->scratch, p->scratch, threads * p->own);
    plan_pass(p);
done:
    return status;
}

/* ---- 3. running it ---- */

static void run_pack(const plan *p, int64_t i, float *scratch)
{
    const pack *one = &p->packs[i / p->shape->kv_heads];
    const int64_t g = i % p->shape->kv_heads;
    const mb_attention_head head = head_of(p, one->segment, g);
    const int64_t all = p->kernels->packed_floats(head.keys, head.width);
    const int64_t before = p->kernels->packed_floats(one->block * p->kernels->block, head.width);
    p->kernels->pack(&head, one->block, p->packed + one->packed + g * all + before, scratch);
}

static void run_job(const plan *p, int64_t i, float *scratch)
{
    const job *one = &p->jobs[i / p->shape->kv_heads];
    const int64_t g = i % p->shape->kv_heads;
    const mb_attention_head head = head_of(p, one->segment, g);
    const float *packed = NULL;
    float *partials = NULL;
    if (one->packed >= 0) {
        packed = p->packed + one->packed + g * p->kernels->packed_floats(head.keys, head.width);
    } else if (one->last - one->first > p->kernels->rows) {
        float *own = scratch + p->kernels->forward_scratch(head.width);
        p->kernels->pack(&head, 0, own, scratch);
        packed = own;
    }
    if (one->partial >= 0) partials = p->partials + one->partial + g * one->partial_step;
    p->kernels->forward(&head, one->first, one->last, one->block, one->end, packed, partials, scratch);
}

static void run_merge(const plan *p, int64_t i, float *scratch)
{
    const job *one = &p->tiles[i / p->shape->kv_heads];
    const int64_t g = i % p->shape->kv_heads;
    const mb_attention_head head = head_of(p, one->segment, g);
    const float *partials = p->partials + one->partial + g * one->partial_step;
    p->kernels->merge(&head, one->first, one->last, partials, scratch);
}

/* Threads that the work is worth: queries, or reading the keys. */
static int threads_for(const mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q)
{
    int64_t keys = 0;
    for (int64_t s = 0; shape->opt_key_count != NULL && s < shape->segments; s++)
        keys += shape->opt_key_count[s];
    return mb_cpu_threads_for(ops, 16 * mb_tensor_count(q) + keys * shape->kv_heads * shape->head_width);
}

mb_status mb_attention_cpu(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                           const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    mb_status status = MB_OK;
    const int threads = threads_for(ops, shape, q);
    const char *isa = mb_cpu_get(ops)->kernels->name;
    plan p = {.kernels = mb_attention_kernels_get(isa, q->dtype == MB_BF16), .shape = shape};
    p.q = q, p.k = k, p.v = v, p.o = o, p.lse = lse;
    MB_TRY(plan_create(ops, &p, threads));
    const int64_t groups = shape->kv_heads, jobs = p.job_count * groups;
    const int64_t merges = p.is_split ? p.tile_count * groups : 0;
#pragma omp parallel num_threads(threads)
    {
        float *scratch = p.scratch + omp_get_thread_num() * p.own;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < p.pack_count * groups; i++) run_pack(&p, i, scratch);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = jobs - 1; i >= 0; i--) run_job(&p, i, scratch); /* the long ones are the last */
#pragma omp for schedule(static)
        for (int64_t i = 0; i < merges; i++) run_merge(&p, i, scratch);
    }
done:
    return status;
}
