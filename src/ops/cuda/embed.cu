/* embed (cuda): rows of a table, their gradients added in token order, rows put at places.
 *
 * The gradient: tokens are sorted by id, stably, in passes of BITS bits; then a block per run of one id (and
 * slice of columns) adds the run's rows in order. Blocks of positions where no run begins have nothing to do.
 *
 * 1. rows   2. gradients   3. the table
 */
#include "ops/cuda/rows.cuh"
#include "ops/cuda/sort.h"

/* ---- 1. rows ---- */

static mb_status cuda_embedding(mb_ops *ops, const int32_t *tokens, const mb_tensor *table, mb_tensor *y)
{
    const mb_rows rows = {mb_ops_rows(y), mb_ops_width(table), tokens, NULL};
    return mb_launch_rows(ops, rows, table->dtype, table->data, y->dtype, y->data);
}

static mb_status cuda_scatter_rows(mb_ops *ops, const mb_tensor *x, const int32_t *rows, mb_tensor *y)
{
    const mb_rows all = {mb_ops_rows(x), mb_ops_width(y), NULL, rows};
    return mb_launch_rows(ops, all, x->dtype, x->data, y->dtype, y->data);
}

/* ---- 2. gradients ---- */

enum { BITS = 9, WARPS = 4, AHEAD = 8 };

/* dtable[id] += the rows of its run, one after the other. Block (p, slice) owns some columns, N a thread,
 * of the run that begins at p. A warp looks at 32 tokens at a time, and has AHEAD rows on their way. */
template <typename DY, int N>
static __global__ void runs_add(int64_t n, int64_t d, int slices, const int32_t *order, const int32_t *tokens,
                                const DY *dy, float *dtable)
{
    const int lane = (int)threadIdx.x % 32;
    const int64_t p = blockIdx.x / slices;
    const int64_t column = ((int64_t)(blockIdx.x % slices) * blockDim.x + threadIdx.x) * N;
    const int64_t id = tokens[order[p]];
    if (p > 0 && tokens[order[p - 1]] == id) return; /* the whole block */
    float sum[N] = {};
    int count = 32;
    if (column < d) mb_load(dtable + id * d + column, sum);
    for (int64_t top = p; count == 32; top += 32) {
        const int own = top + lane < n ? order[top + lane] : -1;
        count = __popc(__ballot_sync(0xffffffffu, own >= 0 && tokens[own >= 0 ? own : 0] ==
                                                                  id)); /* sorted: the first ones */
        for (int at = 0; at < count; at += AHEAD) {
            float row[AHEAD][N];
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int64_t source = __shfl_sync(0xffffffffu, own, at + a);
                if (at + a < count && column < d) mb_load(dy + source * d + column, row[a]);
            }
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
#pragma unroll
                for (int i = 0; i < N; i++)
                    if (at + a < count && column < d) sum[i] += row[a][i];
        }
    }
    if (column < d) mb_store(dtable + id * d + column, sum);
}

template <typename DY, int N>
static void launch_runs(mb_ops *ops, int64_t n, int64_t d, const int32_t *order, const int32_t *tokens,
                        const DY *dy, float *dtable)
{
    const int64_t slices = mb_cuda_blocks(d, 32 * WARPS * N);
    MB_LAUNCH((runs_add<DY, N>), (int)(n * slices), 32 * WARPS, 0, mb_cuda_of(ops)->stream, n, d, (int)slices,
              order, tokens, dy, dtable);
}

/* order[n]: tokens' numbers by rising id, then rising number; as many passes as ids below v need. */
static mb_status order_by_id(mb_ops *ops, const int32_t *tokens, int64_t n, int64_t v, int32_t **out_order)
{
    int32_t *offsets = NULL, *now = NULL, *before = NULL;
    MB_CUDA_TRY(mb_cuda_scratch(ops, ((int64_t)1 << BITS) + 1, &offsets));
    MB_CUDA_TRY(mb_cuda_scratch(ops, n, &now));
    MB_CUDA_TRY(mb_cuda_scratch(ops, n, &before));
    for (int shift = 0; shift == 0 || (v - 1) >> shift > 0; shift += BITS) {
        mb_sort sort = {};
        sort.n = n;
        sort.keys = tokens;
        sort.opt_order = shift > 0 ? before : NULL;
        sort.shift = shift;
        sort.mask = (1 << BITS) - 1;
        sort.bins = 1 << BITS;
        sort.divisor = 1;
        sort.offsets = offsets;
        sort.sorted = now;
        MB_CUDA_TRY(mb_cuda_sort(ops, &sort));
        int32_t *const swap = now;
        now = before;
        before = swap;
    }
    *out_order = before;
    return MB_OK;
}

static mb_status cuda_embedding_backward(mb_ops *ops, const int32_t *tokens, const mb_tensor *dy,
                                         mb_tensor *dtable)
{
    const int64_t n = mb_ops_rows(dy), d = mb_ops_width(dtable), v = mb_ops_rows(dtable);
    int32_t *order = NULL;
    if (n * d == 0) return MB_OK;
    MB_CUDA_TRY(order_by_id(ops, tokens, n, v, &order));
    MB_CUDA_BY_DTYPE(dy->dtype, DY, {
        if (mb_is_whole(dy->dtype, dy->data, d, 4) && mb_is_whole(MB_F32, dtable->data, d, 4))
            launch_runs<DY, 4>(ops, n, d, order, tokens, mb_data<const DY>(dy), mb_data<float>(dtable));
        else
            launch_runs<DY, 1>(ops, n, d, order, tokens, mb_data<const DY>(dy), mb_data<float>(dtable));
    });
    return MB_CUDA_LAUNCHED();
}

/* ---- 3. the table ---- */

void mb_cuda_fill_embed(mb_ops_table *table)
{
    table->embedding = cuda_embedding;
    table->embedding_backward = cuda_embedding_backward;
    table->scatter_rows = cuda_scatter_rows;
}
