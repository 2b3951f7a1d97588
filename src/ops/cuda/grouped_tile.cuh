/* grouped_tile: what the kernels of grouped.cu are made of: which tile of which expert a block has, and the
 * product of one tile of 128 rows by tensor cores.
 *
 * Layer: ops (cuda backend).  Uses: device.cuh.
 * Sources: Markidis et al. 2018 (mixed precision products on tensor cores); NVIDIA CUTLASS, the layout of its
 * multistage kernels for sm_80 (warps of 64x64, copies that run ahead through a ring of stages).
 *
 * A block of 64 WN threads (2 x WN warps, 64x64 results each) makes 128 x 64 WN results. The reduced
 * dimension goes through shared memory 32 at a time, in a ring of 4 stages filled by asynchronous copies; the
 * registers of the next 16 are loaded while the tensor cores work on these. One barrier per 32.
 *
 * An operand lies either with the reduced dimension contiguous ("deep": rows of 32 elements, 64 bytes, are
 * staged) or with its own dimension contiguous ("wide": 32 rows of 128 or 64 WN elements). Its 16-byte pieces
 * are stored permuted so that neither the copies nor ldmatrix meet a bank twice: deep: piece p of row r at p
 * ^ (r / 2 % 4); wide: p ^ (r % 8). What is outside of the matrix or of the expert's rows is zero in shared
 * memory, whatever lies there in memory.
 *
 * Every sum is over the reduced dimension in ascending steps of 16, so a result's bits depend neither on the
 * tile shape nor on other rows.
 */
#ifndef MB_CUDA_GROUPED_TILE_CUH
#define MB_CUDA_GROUPED_TILE_CUH

#include "ops/cuda/device.cuh"

enum { TILE_M = 128, TILE_DEPTH = 32, TILE_STAGES = 4, TILE_BAND = 16, GROUPS_MOST = 256 };

/* ---- which tile ---- */

/* A place in the list of all tiles: experts are walked 32 at a time, each by a lane. Numbers asked for
 * must rise. */
typedef struct tile_walk {
    int first;      /* expert of lane 0 */
    int64_t before; /* tiles of the experts before it */
} tile_walk;

typedef struct tile_place {
    int expert, row, rows; /* its first row among all rows, and how many are left of the expert from there */
    int column_tile;
} tile_place;

/* Tile number `id` of row tiles (of HEIGHT rows) x column tiles of all experts; false beyond the last.
 * Within an expert: bands of TILE_BAND row tiles, in a band column by column, so that blocks that run
 * together share weights and rows. All lanes of a warp call it alike. */
template <int HEIGHT>
static __device__ bool find_tile(const int32_t *offsets, int groups, int column_tiles, int64_t id,
                                 tile_walk *walk, tile_place *out)
{
    const int lane = (int)threadIdx.x % 32;
    for (; walk->first < groups; walk->first += 32) {
        const int e = walk->first + lane;
        const int low = e < groups ? offsets[e] : 0, high = e < groups ? offsets[e + 1] : 0;
        const int tiles = (high - low + HEIGHT - 1) / HEIGHT;
        int sum = tiles;
        for (int d = 1; d < 32; d <<= 1) {
            const int other = __shfl_up_sync(0xffffffffu, sum, d);
            if (lane >= d) sum += other;
        }
        const int64_t local = id - walk->before,
                      all = (int64_t)__shfl_sync(0xffffffffu, sum, 31) * column_tiles;
        if (local >= all) {
            walk->before += all;
            continue;
        }
        const unsigned beyond = __ballot_sync(0xffffffffu, (int64_t)sum * column_tiles > local);
        const int at = __ffs((int)beyond) - 1;
        const int height = __shfl_sync(0xffffffffu, tiles, at);
        const int start = __shfl_sync(0xffffffffu, sum, at) - height;
        const int first = __shfl_sync(0xffffffffu, low, at), last = __shfl_sync(0xffffffffu, high, at);
        const int mine = (int)(local - (int64_t)start * column_tiles);
        const int band = mine / (TILE_BAND * column_tiles), in_band = mine - band * TILE_BAND * column_tiles;
        const int left = height - band * TILE_BAND, band_height = left < TILE_BAND ? left : TILE_BAND;
        const int row_tile = band * TILE_BAND + in_band % band_height;
        out->expert = walk->first + at;
        out->row = first + row_tile * HEIGHT;
        out->rows = last - out->row;
        out->column_tile = in_band / band_height;
        return true;
    }
    return false;
}

/* ---- staging ---- */

/* One side of a tile: element (own, depth) is at[own * stride + depth] (deep) or at[depth * stride + own]
 * (wide); own < span and depth < the tile's depth exist. */
typedef struct tile_side {
    const uint16_t *at;
    int64_t stride;
    int span;
} tile_side;

/* 8 elements of 16 bits with zeros for those that are not there, where pieces are neither aligned nor
 * whole. */
static __device__ __forceinline__ void copy_piece(unsigned char *to, const uint16_t *from, int count)
{
    uint32_t words[4];
    for (int i = 0; i < 4; i++) {
        const uint32_t low = 2 * i < count ? from[2 * i] : 0, high = 2 * i + 1 < count ? from[2 * i + 1] : 0;
        words[i] = low | high << 16;
    }
    *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
}

/* Depths first.. of one side into a stage. IS_FAST: pieces are aligned to 16 bytes, and wholly in or out.
 * A thread's pieces lie a multiple of 8 rows apart, so that one turn serves all of them. */
template <bool IS_WIDE, int SPAN, int THREADS, bool IS_FAST>
static __device__ __forceinline__ void stage_side(unsigned char *stage, const tile_side &side, int first,
                                                  int depth)
{
    enum {
        PIECES = IS_WIDE ? SPAN / 8 : TILE_DEPTH / 8,
        COUNT = SPAN * TILE_DEPTH / 8 / THREADS,
        STEP = THREADS / PIECES
    };
    const int row = (int)threadIdx.x / PIECES, piece = (int)threadIdx.x % PIECES;
    const int turned = IS_WIDE ? piece ^ (row & 7) : piece ^ (row >> 1 & 3);
    unsigned char *to = stage + (row * PIECES + turned) * 16;
    const int rows = (IS_WIDE ? depth - first : side.span) - row;
    const int left = (IS_WIDE ? side.span : depth - first) - piece * 8;
    const uint16_t *from =
        side.at + (IS_WIDE ? first + row : row) * side.stride + (IS_WIDE ? 0 : first) + piece * 8;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const bool is_there = i * STEP < rows && left > 0;
        if (IS_FAST)
            mb_copy_async_16(to + i * STEP * PIECES * 16, from, is_there);
        else
            copy_piece(to + i * STEP * PIECES * 16, from, !is_there ? 0 : left < 8 ? left : 8);
        from += STEP * side.stride;
    }
}

/* ---- registers ---- */

/* Which pieces a lane points at for ldmatrix is a number of three bits combined with the row's turn by
 * exclusive or, so that the pieces of other registers are at one place with bits of the offset flipped
 * (own is a multiple of 64). */

/* 16 depths (step 0 or 1 of a stage) of 64 rows of the left side from `own` on: a[i] is rows 16 i.. */
template <bool IS_WIDE, int SPAN>
static __device__ __forceinline__ void load_left(const unsigned char *stage, int own, int step,
                                                 uint32_t a[4][4])
{
    const int lane = (int)threadIdx.x % 32;
    const int row = IS_WIDE ? lane % 8 + lane / 16 * 8 : lane % 16, turn = IS_WIDE ? row & 7 : row >> 1 & 3;
    const int piece = IS_WIDE ? lane / 8 % 2 : lane / 16;
    const int offset = IS_WIDE ? row * SPAN * 2 + own * 2 + (piece ^ turn) * 16
                               : (own + row) * TILE_DEPTH * 2 + (piece ^ turn) * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (IS_WIDE)
            mb_ldmatrix_x4_transposed(a[i], stage + (offset ^ 32 * i) + step * 16 * SPAN * 2);
        else
            mb_ldmatrix_x4(a[i], stage + (offset ^ 32 * step) + i * 16 * TILE_DEPTH * 2);
    }
}

/* The same of 64 columns of the right side: b[i] is columns 16 i.. (two of mma's 8: words 0, 1 and 2, 3). */
template <bool IS_WIDE, int SPAN>
static __device__ __forceinline__ void load_right(const unsigned char *stage, int own, int step,
                                                  uint32_t b[4][4])
{
    const int lane = (int)threadIdx.x % 32;
    const int row = IS_WIDE ? lane % 16 : lane % 8 + lane / 16 * 8, turn = IS_WIDE ? row & 7 : row >> 1 & 3;
    const int piece = IS_WIDE ? lane / 16 : lane / 8 % 2;
    const int offset = IS_WIDE ? row * SPAN * 2 + own * 2 + (piece ^ turn) * 16
                               : (own + row) * TILE_DEPTH * 2 + (piece ^ turn) * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (IS_WIDE)
            mb_ldmatrix_x4_transposed(b[i], stage + (offset ^ 32 * i) + step * 16 * SPAN * 2);
        else
            mb_ldmatrix_x4(b[i], stage + (offset ^ 32 * step) + i * 16 * TILE_DEPTH * 2);
    }
}

static __device__ __forceinline__ void multiply_step(const uint32_t a[4][4], const uint32_t b[4][4],
                                                     float sums[4][8][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) mb_mma_bf16(sums[i][j], a[i], b[j / 2] + j % 2 * 2);
    }
}

/* ---- a tile ---- */

/* Both sides of the tile in hand. */
typedef struct tile_work {
    tile_side left, right;
    int depth;
} tile_work;

template <int WN, bool LEFT_WIDE, bool RIGHT_WIDE, bool IS_FAST> struct tile_engine {
    enum {
        WIDTH = 64 * WN,
        THREADS = 64 * WN,
        LEFT_BYTES = TILE_M * TILE_DEPTH * 2,
        STAGE_BYTES = LEFT_BYTES + WIDTH * TILE_DEPTH * 2,
        SHARED_BYTES = TILE_STAGES * STAGE_BYTES
    };

    static __device__ __forceinline__ void fill(unsigned char *ring, const tile_work &work, int number)
    {
        unsigned char *stage = ring + number % TILE_STAGES * STAGE_BYTES;
        stage_side<LEFT_WIDE, TILE_M, THREADS, IS_FAST>(stage, work.left, number * TILE_DEPTH, work.depth);
        stage_side<RIGHT_WIDE, WIDTH, THREADS, IS_FAST>(stage + LEFT_BYTES, work.right, number * TILE_DEPTH,
                                                        work.depth);
    }

    /* The first stages of a tile; may run while the results of the tile before are written. */
    static __device__ __forceinline__ void start(unsigned char *ring, const tile_work &work)
    {
        for (int i = 0; i < TILE_STAGES - 1; i++) {
            if (i * TILE_DEPTH < work.depth) fill(ring, work, i);
            mb_copy_async_commit();
        }
    }

    static __device__ __forceinline__ void load(const unsigned char *ring, int number, int step,
                                                uint32_t a[4][4], uint32_t b[4][4])
    {
        const int warp = (int)threadIdx.x / 32;
        const unsigned char *stage = ring + number % TILE_STAGES * STAGE_BYTES;
        load_left<LEFT_WIDE, TILE_M>(stage, warp / WN * 64, step, a);
        load_right<RIGHT_WIDE, WIDTH>(stage + LEFT_BYTES, warp % WN * 64, step, b);
    }

    /* sums[i][j] of a warp: rows 16 i.., columns 8 j.. of its 64x64, as mma leaves them. Shared memory is
     * free again when all threads have come back. Warps whose results all lie outside of the tile only
     * copy. */
    static __device__ __forceinline__ void run(unsigned char *ring, const tile_work &work,
                                               float sums[4][8][4])
    {
        const int warp = (int)threadIdx.x / 32, stages = (work.depth + TILE_DEPTH - 1) / TILE_DEPTH;
        const bool has_work = warp / WN * 64 < work.left.span && warp % WN * 64 < work.right.span;
        uint32_t a[2][4][4], b[2][4][4];
#pragma unroll
        for (int i = 0; i < 4 * 8 * 4; i++) sums[i / 32][i / 4 % 8][i % 4] = 0;
        mb_copy_async_wait<TILE_STAGES - 2>();
        __syncthreads();
        if (has_work && stages > 0) load(ring, 0, 0, a[0], b[0]);
        for (int s = 0; s < stages; s++) {
            if (has_work) load(ring, s, 1, a[1], b[1]);
            if (s + TILE_STAGES - 1 < stages) fill(ring, work, s + TILE_STAGES - 1);
            mb_copy_async_commit();
            if (has_work) multiply_step(a[0], b[0], sums);
            mb_copy_async_wait<TILE_STAGES - 2>();
            __syncthreads();
            if (has_work && s + 1 < stages) load(ring, s + 1, 0, a[0], b[0]);
            if (has_work) multiply_step(a[1], b[1], sums);
        }
    }
};

/* ---- results ---- */

/* y = (accumulate ? y : 0) + v for two neighbours, of which `count` exist. */
static __device__ __forceinline__ void write_pair(float *y, float v0, float v1, int count, bool accumulate,
                                                  bool is_even)
{
    if (count >= 2 && is_even) {
        float2 old = make_float2(0, 0);
        if (accumulate) old = *(const float2 *)y;
        *(float2 *)y = accumulate ? make_float2(old.x + v0, old.y + v1) : make_float2(v0, v1);
        return;
    }
    if (count >= 1) y[0] = accumulate ? y[0] + v0 : v0;
    if (count >= 2) y[1] = accumulate ? y[1] + v1 : v1;
}
static __device__ __forceinline__ void write_pair(mb_bf16 *y, float v0, float v1, int count, bool accumulate,
                                                  bool is_even)
{
    if (count >= 2 && is_even) {
        const uint32_t old = accumulate ? *(const uint32_t *)y : 0;
        *(uint32_t *)y =
            accumulate ? mb_pack_bf16(mb_low_bf16(old) + v0, mb_high_bf16(old) + v1) : mb_pack_bf16(v0, v1);
        return;
    }
    if (count >= 1) y[0] = mb_to_bf16(accumulate ? mb_float(y[0]) + v0 : v0);
    if (count >= 2) y[1] = mb_to_bf16(accumulate ? mb_float(y[1]) + v1 : v1);
}

/* A warp's sums to y, its 64x64 corner, of which rows x columns exist. is_even: y and stride in pairs. */
template <typename T>
static __device__ __forceinline__ void write_sums(const float sums[4][8][4], T *y, int64_t stride, int rows,
                                                  int columns, bool accumulate, bool is_even)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * i + 8 * half + lane / 4;
            T *to = y + row * stride;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int column = 8 * j + lane % 4 * 2, left = row < rows ? columns - column : 0;
                write_pair(to + column, sums[i][j][2 * half], sums[i][j][2 * half + 1], left, accumulate,
                           is_even);
            }
        }
    }
}

/* Word j of the four lanes 4g..4g+3 to lane j of them: r[i] of lane j is then word j of lane i. */
static __device__ __forceinline__ void exchange_words(uint32_t r[4])
{
    const int lane = (int)threadIdx.x % 4;
    uint32_t s[4];
    /* pairs (0, 1) and (2, 3) of words between lanes that differ in bit 0, then words between those of bit
     * 1 */
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t send = lane & 1 ? r[2 * i] : r[2 * i + 1];
        const uint32_t got = __shfl_xor_sync(0xffffffffu, send, 1);
        s[2 * i] = lane & 1 ? got : r[2 * i];
        s[2 * i + 1] = lane & 1 ? r[2 * i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t send = lane & 2 ? s[i] : s[i + 2];
        const uint32_t got = __shfl_xor_sync(0xffffffffu, send, 2);
        r[i] = lane & 2 ? got : s[i];
        r[i + 2] = lane & 2 ? s[i + 2] : got;
    }
}

/* The same for bf16 in pieces of 16 bytes: y aligned to them, stride and columns multiples of 8. Of four
 * mma tiles side by side lane j of a row takes the j-th, so that a row is written 64 bytes at a time. */
static __device__ __forceinline__ void write_sums_wide(const float sums[4][8][4], mb_bf16 *y, int64_t stride,
                                                       int rows, int columns, bool accumulate)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const int block = i / 4, half = i / 2 % 2, four = i % 2; /* 16 rows, 8 of them, 32 columns */
        const int row = 16 * block + 8 * half + lane / 4, column = 32 * four + lane % 4 * 8;
        mb_bf16 *to = y + row * stride + column;
        const bool is_there = row < rows && column < columns;
        float v[4][2];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[j][0] = sums[block][4 * four + j][2 * half];
            v[j][1] = sums[block][4 * four + j][2 * half + 1];
        }
        uint32_t words[4];
        if (accumulate) { /* f32 must meet the old value before it is rounded: old values go the other way */
            const uint4 old = is_there ? *(const uint4 *)to : make_uint4(0, 0, 0, 0);
            words[0] = old.x, words[1] = old.y, words[2] = old.z, words[3] = old.w;
            exchange_words(words);
#pragma unroll
            for (int j = 0; j < 4; j++) v[j][0] += mb_low_bf16(words[j]), v[j][1] += mb_high_bf16(words[j]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) words[j] = mb_pack_bf16(v[j][0], v[j][1]);
        exchange_words(words);
        if (is_there) *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

#endif
