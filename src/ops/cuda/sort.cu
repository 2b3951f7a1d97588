/* sort (cuda): stable counting sort of small keys.
 *
 * Items are cut into chunks, by their number alone. Chunks count their keys (atomics on integers in shared
 * memory, whose order does not show); the counts of a key are summed over the chunks before, and the totals
 * over the keys before; then one warp per chunk walks its items 32 at a time: lanes of one key find each
 * other, and take places in the order of lanes. A list of one chunk is sorted by one kernel.
 *
 * 1. counting   2. sums   3. placing   4. one chunk   5. the entry
 */
#include "ops/cuda/sort.h"

enum { LEAST_CHUNK = 512, MOST_CHUNKS = 1024, SMALL = 1024, THREADS = 256, SEGMENTS = 16 };

/* Item i's place in the list that keys are about. */
static __device__ __forceinline__ int32_t source_of(const mb_sort &s, int64_t i)
{
    return s.opt_order != NULL ? s.opt_order[i] : (int32_t)i;
}

/* -1 for items that go nowhere. */
static __device__ __forceinline__ int key_of(const mb_sort &s, int32_t source)
{
    const int32_t key = (s.keys[source] >> s.shift) & s.mask;
    return key >= 0 && key < s.bins ? key : -1;
}

/* ---- 1. counting ---- */

/* counts[chunks, bins] */
static __global__ void sort_count(mb_sort s, int64_t chunk, int32_t *counts)
{
    MB_DYNAMIC_SHARED(int, bin);
    const int64_t first = blockIdx.x * chunk, last = first + chunk < s.n ? first + chunk : s.n;
    for (int b = (int)threadIdx.x; b < s.bins; b += (int)blockDim.x) bin[b] = 0;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
        const int key = key_of(s, source_of(s, i));
        if (key >= 0) atomicAdd(&bin[key], 1);
    }
    __syncthreads();
    for (int b = (int)threadIdx.x; b < s.bins; b += (int)blockDim.x)
        counts[(int64_t)blockIdx.x * s.bins + b] = bin[b];
}

/* ---- 2. sums ---- */

/* Each count becomes the sum of those of the chunks before, totals[bins] of all. 32 bins a block; a warp
 * sums a segment of the chunks, twice. */
static __global__ void sort_chunks(int chunks, int bins, int32_t *counts, int32_t *totals)
{
    MB_SHARED(int, room, SEGMENTS * 32);
    const int segment = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32,
              bin = (int)blockIdx.x * 32 + lane;
    const int each = (chunks + SEGMENTS - 1) / SEGMENTS, first = segment * each;
    const int last = first + each < chunks ? first + each : chunks;
    int sum = 0;
    if (bin < bins)
        for (int c = first; c < last; c++) sum += counts[(int64_t)c * bins + bin];
    room[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int g = 0; g < segment; g++) sum += room[g * 32 + lane];
    if (bin >= bins) return;
    for (int c = first; c < last; c++) {
        const int own = counts[(int64_t)c * bins + bin];
        counts[(int64_t)c * bins + bin] = sum;
        sum += own;
    }
    if (segment == SEGMENTS - 1) totals[bin] = sum;
}

/* Sum of x over the threads of the block up to this one; *out_all: over all. `room`: [32] shared. */
static __device__ int block_scan(int x, int *room, int *out_all)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    for (int d = 1; d < 32; d *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, x, d);
        if (lane >= d) x += before;
    }
    if (lane == 31) room[warp] = x;
    __syncthreads();
    int all = 0, before = 0;
    for (int w = 0; w < warps; w++) {
        before += w < warp ? room[w] : 0;
        all += room[w];
    }
    __syncthreads();
    *out_all = all;
    return x + before;
}

/* offsets[bins+1] from totals; by one block. */
static __device__ void offsets_of(int bins, const int *totals, int *room, int32_t *offsets)
{
    int base = 0;
    for (int top = 0; top < bins; top += (int)blockDim.x) {
        const int b = top + (int)threadIdx.x;
        int all;
        const int sum = block_scan(b < bins ? totals[b] : 0, room, &all);
        if (b < bins) offsets[b + 1] = base + sum;
        base += all;
    }
    if (threadIdx.x == 0) offsets[0] = 0;
}

static __global__ void sort_offsets(int bins, const int32_t *totals, int32_t *offsets)
{
    MB_SHARED(int, room, 32);
    offsets_of(bins, totals, room, offsets);
}

/* ---- 3. placing ---- */

/* A warp puts items first .. last at their places; next[bins] (shared) is where each key's next item goes. */
static __device__ void place_items(const mb_sort &s, int64_t first, int64_t last, int *next)
{
    const int lane = (int)threadIdx.x % 32;
    for (int64_t top = first; top < last; top += 32) {
        const int64_t i = top + lane;
        const int32_t source = i < last ? source_of(s, i) : 0;
        const int key = i < last ? key_of(s, source) : -1;
        const unsigned alike = __match_any_sync(0xffffffffu, key), before = alike & ((1u << lane) - 1);
        const int place = key >= 0 ? next[key] + __popc(before) : -1;
        __syncwarp();
        if (key >= 0 && before == 0) next[key] += __popc(alike);
        __syncwarp();
        if (place >= 0) s.sorted[place] = (int32_t)((uint32_t)source / (uint32_t)s.divisor);
        if (i < last && s.opt_place != NULL) s.opt_place[i] = place;
    }
}

/* Places from the last item on are nobody's. */
static __device__ __forceinline__ void clear_rest(const mb_sort &s, int64_t first, int64_t last,
                                                  int64_t total)
{
    const int64_t from = first > total ? first : total;
    for (int64_t i = from + threadIdx.x; i < last; i += blockDim.x) s.sorted[i] = -1;
}

static __global__ void sort_place(mb_sort s, int64_t chunk, const int32_t *counts)
{
    MB_DYNAMIC_SHARED(int, next);
    const int64_t first = blockIdx.x * chunk, last = first + chunk < s.n ? first + chunk : s.n;
    for (int b = (int)threadIdx.x; b < s.bins; b += 32)
        next[b] = s.offsets[b] + counts[(int64_t)blockIdx.x * s.bins + b];
    __syncwarp();
    place_items(s, first, last, next);
    clear_rest(s, first, last, s.offsets[s.bins]);
}

/* ---- 4. one chunk ---- */

static __global__ void sort_small(mb_sort s)
{
    MB_DYNAMIC_SHARED(int, bin);
    MB_SHARED(int, room, 32);
    for (int b = (int)threadIdx.x; b < s.bins; b += (int)blockDim.x) bin[b] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < s.n; i += blockDim.x) {
        const int key = key_of(s, source_of(s, i));
        if (key >= 0) atomicAdd(&bin[key], 1);
    }
    __syncthreads();
    offsets_of((int)s.bins, bin, room, s.offsets);
    __syncthreads();
    for (int b = (int)threadIdx.x; b < s.bins; b += (int)blockDim.x) bin[b] = s.offsets[b];
    __syncthreads();
    if (threadIdx.x < 32) place_items(s, 0, s.n, bin);
    clear_rest(s, 0, s.n, s.offsets[s.bins]);
}

/* ---- 5. the entry ---- */

mb_status mb_cuda_sort(mb_ops *ops, const mb_sort *sort)
{
    const size_t room = ((size_t)sort->bins + 1) * sizeof(int);
    int64_t chunk = mb_cuda_blocks(mb_cuda_blocks(sort->n, MOST_CHUNKS), 32) * 32;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    int32_t *counts = NULL, *totals = NULL;
    if (sort->bins > MB_SORT_MOST_BINS)
        return mb_fail(MB_EUNSUPPORTED, "backend \"cuda\": %lld experts; it takes %d at most",
                       (long long)sort->bins, MB_SORT_MOST_BINS);
    if (sort->n <= SMALL) {
        MB_LAUNCH(sort_small, 1, THREADS, room, stream, *sort);
        return MB_CUDA_LAUNCHED();
    }
    if (chunk < LEAST_CHUNK) chunk = LEAST_CHUNK;
    const int chunks = (int)mb_cuda_blocks(sort->n, chunk);
    MB_CUDA_TRY(mb_cuda_scratch(ops, (int64_t)chunks * sort->bins + 1, &counts));
    MB_CUDA_TRY(mb_cuda_scratch(ops, (int64_t)sort->bins + 1, &totals));
    MB_LAUNCH(sort_count, chunks, THREADS, room, stream, *sort, chunk, counts);
    if (sort->bins > 0)
        MB_LAUNCH(sort_chunks, (int)mb_cuda_blocks(sort->bins, 32), SEGMENTS * 32, 0, stream, chunks,
                  (int)sort->bins, counts, totals);
    MB_LAUNCH(sort_offsets, 1, 1024, 0, stream, (int)sort->bins, totals, sort->offsets);
    MB_LAUNCH(sort_place, chunks, 32, room, stream, *sort, chunk, counts);
    return MB_CUDA_LAUNCHED();
}
