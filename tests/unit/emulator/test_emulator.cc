/* test_emulator: the emulated GPU that the cuda backend's tests run on, inside of a kernel: right kernels
 * give right results in every order, and each kind of mistake is seen.
 *
 * 1. barriers and warps 2. matrices 3. copies to shared memory 4. order 5. shared memory 6. intrinsics
 */
#include "emulator_fixture.h"

/* ---- 1. barriers and warps ---- */

static __global__ void reverse_kernel(const int *x, int *y)
{
    MB_SHARED(int, tile, 96);
    const unsigned i = threadIdx.x + threadIdx.y * blockDim.x, n = blockDim.x * blockDim.y;
    const int64_t at = (int64_t)(blockIdx.x + blockIdx.y * gridDim.x) * n;
    tile[i] = x[at + i];
    __syncthreads();
    y[at + i] = tile[n - 1 - i];
}

static void test_barrier(void **)
{
    std::vector<int> x(96 * 6);
    for (size_t i = 0; i < x.size(); i++) x[i] = (int)i;
    int *dx = device(x), *dy = device(x);
    for (const char *order : orders) {
        set_order(order);
        MB_LAUNCH(reverse_kernel, dim3(3, 2), dim3(32, 3), 0, 0, dx, dy);
        const std::vector<int> y = host(dy, x.size());
        for (size_t i = 0; i < x.size(); i++) assert_int_equal(y[i], i / 96 * 96 + 95 - i % 96);
    }
    ok(cudaFree(dx)), ok(cudaFree(dy));
}

static __global__ void vote_kernel(int *out)
{
    const int i = (int)threadIdx.x;
    out[i * 3] = __syncthreads_count(i % 3 == 0);
    out[i * 3 + 1] = __syncthreads_or(i == 50);
    out[i * 3 + 2] = __syncthreads_and(i != 50);
}

static void test_barrier_votes(void **)
{
    int *d = device(std::vector<int>(3 * 70));
    MB_LAUNCH(vote_kernel, 1, 70, 0, 0, d);
    const std::vector<int> out = host(d, 3 * 70);
    for (int i = 0; i < 70; i++) {
        assert_int_equal(out[(size_t)i * 3], 24);
        assert_int_equal(out[(size_t)i * 3 + 1], 1);
        assert_int_equal(out[(size_t)i * 3 + 2], 0);
    }
    ok(cudaFree(d));
}

enum { SHUFFLES = 16 };

static __global__ void shuffle_kernel(double *out)
{
    const int lane = (int)threadIdx.x % 32;
    double *to = out + threadIdx.x * SHUFFLES;
    to[0] = __shfl_sync(0xffffffffu, lane * 1.5f, 7);
    to[1] = __shfl_sync(0xffffffffu, lane, 3, 8);
    to[2] = __shfl_up_sync(0xffffffffu, lane, 5);
    to[3] = __shfl_down_sync(0xffffffffu, (unsigned)lane, 9, 16);
    to[4] = __shfl_xor_sync(0xffffffffu, lane * 1e100, 21);
    to[5] = (double)__shfl_xor_sync(0xffffffffu, (int64_t)lane << 40, 8, 8);
    to[6] = __ballot_sync(0xffffffffu, lane % 5 == 0);
    to[7] = __any_sync(0xffffffffu, lane == 31) + 2 * __any_sync(0xffffffffu, 0);
    to[8] = __all_sync(0xffffffffu, lane < 32) + 2 * __all_sync(0xffffffffu, lane < 31);
    to[9] = __match_any_sync(0xffffffffu, lane / 10);
    to[10] = __reduce_add_sync(0xffffffffu, lane - 20);
    to[11] =
        __reduce_min_sync(0xffffffffu, lane - 20) + 1000.0 * __reduce_max_sync(0xffffffffu, (unsigned)lane);
    to[12] = lane < 16 ? __shfl_sync(0x0000ffffu, lane, 15) : __shfl_sync(0xffff0000u, lane, 16);
    to[13] = mb_warp_sum((float)lane);
    to[14] = mb_warp_max((float)-lane);
    to[15] = __popc(__activemask());
    __syncwarp();
}

static void test_warp(void **)
{
    double *d = device(std::vector<double>(64 * SHUFFLES));
    for (const char *order : orders) {
        set_order(order);
        MB_LAUNCH(shuffle_kernel, 1, 64, 0, 0, d);
        const std::vector<double> out = host(d, 64 * SHUFFLES);
        for (int t = 0; t < 64; t++) {
            const int lane = t % 32;
            const double fives = 1 + 32 + 1024 + 32768 + (1 << 20) + (1 << 25) + (1 << 30);
            const uint64_t tens =
                (1ull << (lane / 10 == 3 ? 32 : lane / 10 * 10 + 10)) - (1ull << lane / 10 * 10);
            const double want[SHUFFLES] = {10.5,
                                           (double)(lane / 8 * 8 + 3),
                                           (double)(lane < 5 ? lane : lane - 5),
                                           (double)(lane % 16 + 9 > 15 ? lane : lane + 9),
                                           (lane ^ 21) * 1e100,
                                           (double)((int64_t)(lane % 16 < 8 ? lane : lane - 8) << 40),
                                           fives,
                                           1,
                                           1,
                                           (double)tens,
                                           496 - 640,
                                           -20 + 31000,
                                           (double)(lane < 16 ? 15 : 16),
                                           496,
                                           0,
                                           32};
            for (int j = 0; j < SHUFFLES; j++) assert_true(out[(size_t)(t * SHUFFLES + j)] == want[j]);
        }
    }
    ok(cudaFree(d));
}

static __global__ void partial_kernel(unsigned *out)
{
    out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}

static __global__ void block_sum_kernel(const float *x, float *sums)
{
    MB_SHARED(float, room, 32);
    const float sum = mb_block_sum(x[blockIdx.x * blockDim.x + threadIdx.x], room);
    const float most = mb_block_max(x[blockIdx.x * blockDim.x + threadIdx.x], room);
    if (threadIdx.x == 5) sums[2 * blockIdx.x] = sum, sums[2 * blockIdx.x + 1] = most;
}

static void test_warps_of_a_block(void **)
{
    unsigned *votes = device(std::vector<unsigned>(40));
    std::vector<float> x(5 * 256);
    for (size_t i = 0; i < x.size(); i++) x[i] = small((uint32_t)i);
    float *dx = device(x), *dsums = device(std::vector<float>(10));
    for (const char *order : orders) {
        set_order(order);
        MB_LAUNCH(partial_kernel, 1, 40, 0, 0, votes);
        const std::vector<unsigned> out = host(votes, 40);
        assert_true(out[0] == 0xffffffffu && out[39] == 0xffu);
        MB_LAUNCH(block_sum_kernel, 5, 256, 0, 0, dx, dsums);
        const std::vector<float> sums = host(dsums, 10);
        for (size_t b = 0; b < 5; b++) {
            float sum = 0, most = -100;
            for (size_t i = 0; i < 256; i++) sum += x[b * 256 + i], most = max(most, x[b * 256 + i]);
            assert_true(sums[2 * b] == sum && sums[2 * b + 1] == most);
        }
    }
    ok(cudaFree(votes)), ok(cudaFree(dx)), ok(cudaFree(dsums));
}

static __global__ void some_return_kernel(int *out)
{
    if (threadIdx.x >= 40) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
static __global__ void some_elsewhere_kernel(int *out)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        out[0] = __syncthreads_or(1);
}
static __global__ void lane_missing_kernel(float *out)
{
    if (threadIdx.x != 9) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    __syncthreads();
}
static __global__ void lane_outside_kernel()
{
    __syncwarp(0xff);
}
static __global__ void lanes_differ_kernel(float *out)
{
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    else
        __syncwarp();
}

template <void (*kernel)(int *)> static void launch_alone()
{
    int *d = device(std::vector<int>(64));
    MB_LAUNCH(kernel, 2, 64, 0, 0, d);
    (void)cudaDeviceSynchronize();
}
template <void (*kernel)(float *)> static void launch_alone_f32()
{
    float *d = device(std::vector<float>(64));
    MB_LAUNCH(kernel, 1, 64, 0, 0, d);
    (void)cudaDeviceSynchronize();
}

static void test_stuck(void **)
{
    for (const char *order : orders) {
        set_order(order);
        dies(launch_alone<some_return_kernel>, "threads 40 to 63 have returned");
        dies(launch_alone<some_elsewhere_kernel>, "others are at that of");
        dies(launch_alone_f32<lane_missing_kernel>, "__shfl_xor_sync of lanes 0xffffffff");
        dies(launch_alone_f32<lanes_differ_kernel>, "this lane is at ");
    }
    set_order("forward");
    dies(launch_alone<some_return_kernel>, "threads 0 to 39 wait at __syncthreads");
    dies([]() { MB_LAUNCH(lane_outside_kernel, 1, 32, 0, 0), (void)cudaDeviceSynchronize(); },
         "leaves it out");
}

/* ---- 2. matrices ---- */

/* c[16,8] += a[16,16] b[16,8], all row-major in global memory: fragments put together by the layout of
 * device.cuh. */
static __global__ void mma_kernel(const mb_bf16 *a, const mb_bf16 *b, float *c)
{
    const int g = (int)threadIdx.x / 4, i = 2 * ((int)threadIdx.x % 4);
    uint32_t fa[4], fb[2];
    float d[4];
    for (int j = 0; j < 4; j++) {
        const mb_bf16 *at = a + (g + j % 2 * 8) * 16 + i + j / 2 * 8;
        fa[j] = (uint32_t)at[0].bits | (uint32_t)at[1].bits << 16;
        d[j] = c[(g + j / 2 * 8) * 8 + i + j % 2];
    }
    for (int j = 0; j < 2; j++)
        fb[j] = (uint32_t)b[(i + 8 * j) * 8 + g].bits | (uint32_t)b[(i + 8 * j + 1) * 8 + g].bits << 16;
    mb_mma_bf16(d, fa, fb);
    for (int j = 0; j < 4; j++) c[(g + j / 2 * 8) * 8 + i + j % 2] = d[j];
}

/* The same with fragments by ldmatrix: a as it lies, b transposed (both halves at once; the last two are
 * not used). */
static __global__ void mma_ldmatrix_kernel(const mb_bf16 *a, const mb_bf16 *b, float *c)
{
    MB_SHARED(mb_bf16, sa, 16 * 16);
    MB_SHARED(mb_bf16, sb, 16 * 8);
    const int lane = (int)threadIdx.x, g = lane / 4, i = 2 * (lane % 4);
    for (int j = lane; j < 256; j += 32) sa[j] = a[j];
    for (int j = lane; j < 128; j += 32) sb[j] = b[j];
    __syncwarp();
    uint32_t fa[4], fb[4];
    float d[4];
    mb_ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
    mb_ldmatrix_x4_transposed(fb, sb + lane % 16 * 8);
    for (int j = 0; j < 4; j++) d[j] = c[(g + j / 2 * 8) * 8 + i + j % 2];
    mb_mma_bf16(d, fa, fb);
    for (int j = 0; j < 4; j++) c[(g + j / 2 * 8) * 8 + i + j % 2] = d[j];
}

static mb_bf16 bf16(float x)
{
    return mb_to_bf16(x);
}

static void test_mma(void **)
{
    std::vector<mb_bf16> a(256), b(128);
    std::vector<float> c(128), want(128);
    for (uint32_t i = 0; i < 256; i++) a[i] = bf16(small(i));
    for (uint32_t i = 0; i < 128; i++) b[i] = bf16(small(1000 + i)), c[i] = small(5000 + i);
    for (size_t r = 0; r < 16; r++)
        for (size_t j = 0; j < 8; j++) {
            want[r * 8 + j] = c[r * 8 + j];
            for (size_t k = 0; k < 16; k++)
                want[r * 8 + j] += mb_float(a[r * 16 + k]) * mb_float(b[k * 8 + j]);
        }
    mb_bf16 *da = device(a), *db = device(b);
    for (const char *order : orders) {
        set_order(order);
        float *d1 = device(c), *d2 = device(c);
        MB_LAUNCH(mma_kernel, 1, 32, 0, 0, da, db, d1);
        MB_LAUNCH(mma_ldmatrix_kernel, 1, 32, 0, 0, da, db, d2);
        assert_memory_equal(host(d1, 128).data(), want.data(), 128 * sizeof(float));
        assert_memory_equal(host(d2, 128).data(), want.data(), 128 * sizeof(float));
        ok(cudaFree(d1)), ok(cudaFree(d2));
    }
    ok(cudaFree(da)), ok(cudaFree(db));
}

/* Every element of four 8x8 matrices, whose values are their place. */
static __global__ void ldmatrix_kernel(uint32_t *out, bool is_transposed)
{
    MB_DYNAMIC_SHARED(uint16_t, rows);
    const int lane = (int)threadIdx.x;
    for (int j = 0; j < 8; j++) rows[lane * 8 + j] = (uint16_t)(lane * 8 + j);
    __syncthreads();
    uint32_t r[4];
    if (is_transposed)
        mb_ldmatrix_x4_transposed(r, rows + lane * 8);
    else
        mb_ldmatrix_x4(r, rows + lane * 8);
    for (int j = 0; j < 4; j++) out[lane * 4 + j] = r[j];
}

static void test_ldmatrix(void **)
{
    uint32_t *d = device(std::vector<uint32_t>(128));
    for (int is_transposed = 0; is_transposed < 2; is_transposed++) {
        MB_LAUNCH(ldmatrix_kernel, 1, 32, 512, 0, d, is_transposed != 0);
        const std::vector<uint32_t> out = host(d, 128);
        for (uint32_t lane = 0; lane < 32; lane++)
            for (uint32_t j = 0; j < 4; j++) {
                const uint32_t g = lane / 4, i = lane % 4;
                const uint32_t first = is_transposed ? (j * 8 + 2 * i) * 8 + g : (j * 8 + g) * 8 + 2 * i;
                const uint32_t second = is_transposed ? first + 8 : first + 1;
                assert_int_equal(out[lane * 4 + j], first | second << 16);
            }
    }
    ok(cudaFree(d));
}

static __global__ void ldmatrix_off_kernel(uint32_t *out, int bytes)
{
    MB_SHARED(uint16_t, rows, 256);
    uint32_t r[4];
    mb_ldmatrix_x4(r, (char *)rows + threadIdx.x * 16 + bytes);
    out[threadIdx.x] = r[0];
}
static __global__ void ldmatrix_global_kernel(uint32_t *out)
{
    uint32_t r[4];
    mb_ldmatrix_x4(r, out);
    out[threadIdx.x] = r[0];
}

static void test_ldmatrix_refused(void **)
{
    dies(
        []() {
            MB_LAUNCH(ldmatrix_off_kernel, 1, 32, 0, 0, device(std::vector<uint32_t>(32)), 8),
                (void)cudaDeviceSynchronize();
        },
        "not 16-byte aligned");
    dies(
        []() {
            MB_LAUNCH(ldmatrix_off_kernel, 1, 32, 0, 0, device(std::vector<uint32_t>(32)), 16),
                (void)cudaDeviceSynchronize();
        },
        "not inside of an array of shared memory");
    dies(
        []() {
            MB_LAUNCH(ldmatrix_global_kernel, 1, 32, 0, 0, device(std::vector<uint32_t>(32))),
                (void)cudaDeviceSynchronize();
        },
        "not inside of an array of shared memory");
    dies(
        []() {
            MB_LAUNCH(ldmatrix_off_kernel, 1, 16, 0, 0, device(std::vector<uint32_t>(32)), 0),
                (void)cudaDeviceSynchronize();
        },
        "needs a whole warp");
}

/* ---- 3. copies to shared memory ---- */

/* Sums `tiles` tiles of 32 float4 through a ring of two, the next copied while one is summed. waits: 1, or
 * 0 to forget the wait; barrier: or forget the barrier before a tile is overwritten. */
static __global__ void ring_kernel(const float4 *x, int tiles, float *out, int waits, int barrier)
{
    MB_SHARED(float4, ring, 64);
    const int i = (int)threadIdx.x;
    float sum = 0;
    mb_copy_async_16(ring + i, x + i, true);
    mb_copy_async_commit();
    for (int t = 0; t < tiles; t++) {
        const bool has_next = t + 1 < tiles;
        mb_copy_async_16(ring + (t + 1) % 2 * 32 + i, x + (has_next ? (t + 1) * 32 + i : 0), has_next);
        mb_copy_async_commit();
        if (waits) mb_copy_async_wait<1>();
        __syncthreads();
        const float4 v = ring[t % 2 * 32 + (i + 7) % 32];
        sum += v.x + v.y + v.z + v.w;
        if (barrier) __syncthreads();
    }
    mb_copy_async_wait<0>();
    __syncthreads();
    const float4 zeros = ring[tiles % 2 * 32 + (i + 1) % 32];
    out[i] = sum + 1000 * (zeros.x + zeros.y + zeros.z + zeros.w);
}

static void test_copy_async(void **)
{
    std::vector<float4> x(32 * 5);
    for (uint32_t i = 0; i < x.size(); i++)
        x[i] = make_float4(small(i), small(i + 9), small(i + 99), small(i + 999));
    float4 *dx = device(x);
    float *d = device(std::vector<float>(32));
    int wrong_without_wait = 0, wrong_without_barrier = 0;
    for (const char *order : orders) {
        std::vector<float> want(32, 0.0f), got;
        for (size_t i = 0; i < 32; i++)
            for (size_t t = 0; t < 5; t++) {
                const float4 v = x[t * 32 + (i + 7) % 32];
                want[i] += v.x + v.y + v.z + v.w;
            }
        set_order(order);
        MB_LAUNCH(ring_kernel, 1, 32, 0, 0, dx, 5, d, 1, 1);
        assert_memory_equal(host(d, 32).data(), want.data(), 32 * sizeof(float));
        MB_LAUNCH(ring_kernel, 1, 32, 0, 0, dx, 5, d, 0, 1);
        wrong_without_wait += memcmp(host(d, 32).data(), want.data(), 32 * sizeof(float)) != 0;
        MB_LAUNCH(ring_kernel, 1, 32, 0, 0, dx, 5, d, 1, 0);
        wrong_without_barrier += memcmp(host(d, 32).data(), want.data(), 32 * sizeof(float)) != 0;
        if (strcmp(order, "forward") == 0) assert_int_equal(wrong_without_wait, 1);
        if (strcmp(order, "reverse") == 0) assert_int_equal(wrong_without_barrier, 1);
    }
    assert_true(wrong_without_wait >= 3 && wrong_without_barrier >= 2);
    ok(cudaFree(dx)), ok(cudaFree(d));
}

static __global__ void copy_off_kernel(const char *x, int to, int from)
{
    MB_SHARED(float4, room, 32);
    mb_copy_async_16((char *)room + to + 16 * threadIdx.x, x + from + 16 * threadIdx.x, true);
    mb_copy_async_commit();
    mb_copy_async_wait<0>();
}

static void test_copy_async_refused(void **)
{
    dies(
        []() {
            MB_LAUNCH(copy_off_kernel, 1, 32, 0, 0, device(std::vector<char>(1024)), 0, 4),
                (void)cudaDeviceSynchronize();
        },
        "must be 16-byte aligned");
    dies(
        []() {
            MB_LAUNCH(copy_off_kernel, 1, 32, 0, 0, device(std::vector<char>(1024)), 16, 0),
                (void)cudaDeviceSynchronize();
        },
        "not inside of an array of shared memory");
}

/* ---- 4. order ---- */

/* Without `barrier` a thread reads what its neighbour may not have written yet. */
static __global__ void shift_kernel(const float *x, float *y, bool barrier)
{
    MB_SHARED(float, tile, 64);
    const unsigned i = threadIdx.x;
    tile[i] = x[blockIdx.x * 64 + i];
    if (barrier) __syncthreads();
    y[blockIdx.x * 64 + i] = i > 0 ? tile[i - 1] : 0.0f;
}

/* Blocks that add to one place without atomics: the last to run decides. */
static __global__ void last_block_kernel(int *out)
{
    *out = (int)blockIdx.x;
}

static void test_order(void **)
{
    std::vector<float> x(640);
    for (uint32_t i = 0; i < x.size(); i++) x[i] = small(i) + 20;
    float *dx = device(x), *dy = device(x);
    int *last = device(std::vector<int>(1));
    int wrong = 0, lasts = 0;
    for (const char *order : orders) {
        set_order(order);
        for (int barrier = 0; barrier < 2; barrier++) {
            int differ = 0;
            MB_LAUNCH(shift_kernel, 10, 64, 0, 0, dx, dy, barrier != 0);
            const std::vector<float> y = host(dy, 640);
            for (size_t i = 0; i < 640; i++) differ += !(y[i] == (i % 64 > 0 ? x[i - 1] : 0.0f));
            if (barrier)
                assert_int_equal(differ, 0);
            else
                wrong += differ > 0;
        }
        MB_LAUNCH(last_block_kernel, 10, 1, 0, 0, last);
        lasts |= 1 << host(last, 1)[0];
    }
    assert_int_equal(wrong, 4); /* all but forward */
    assert_true(__builtin_popcount((unsigned)lasts) >= 3);
    set_order("nonsense");
    dies(
        []() {
            MB_LAUNCH(last_block_kernel, 1, 1, 0, 0, device(std::vector<int>(1))),
                (void)cudaDeviceSynchronize();
        },
        "give forward, reverse or a number");
    set_order("forward");
    ok(cudaFree(dx)), ok(cudaFree(dy)), ok(cudaFree(last));
}

/* ---- 5. shared memory ---- */

static __global__ void fresh_kernel(float *out)
{
    MB_SHARED(float, fixed, 33);
    MB_DYNAMIC_SHARED(float, dynamic);
    const int i = (int)threadIdx.x;
    out[blockIdx.x * 33 + (unsigned)i] = (isnan(fixed[i]) ? 1.0f : 0.0f) + (isnan(dynamic[i]) ? 2.0f : 0.0f);
    __syncthreads();
    fixed[i] = dynamic[i] = 0;
}
static __global__ void shared_over_kernel(int at)
{
    MB_SHARED(float, first, 33);
    MB_SHARED(float, second, 33);
    ((volatile float *)first)[at] = second[0];
}
static __global__ void dynamic_over_kernel(int at)
{
    MB_DYNAMIC_SHARED(volatile float, room);
    room[at] = 1;
}

static void test_shared(void **)
{
    float *d = device(std::vector<float>(99));
    for (const char *order : orders) {
        set_order(order);
        MB_LAUNCH(fresh_kernel, 3, 33, 33 * sizeof(float), 0, d);
        for (float x : host(d, 99)) assert_true(x == 3);
    }
    set_order("forward");
    ok(cudaFree(d));
    const char *part = "";
#ifdef __SANITIZE_ADDRESS__
    part = "use-after-poison";
#endif
    dies([]() { MB_LAUNCH(shared_over_kernel, 1, 32, 0, 0, 33), (void)cudaDeviceSynchronize(); }, part);
    dies([]() { MB_LAUNCH(shared_over_kernel, 1, 32, 0, 0, -1), (void)cudaDeviceSynchronize(); }, part);
    dies([]() { MB_LAUNCH(dynamic_over_kernel, 1, 32, 100, 0, 25), (void)cudaDeviceSynchronize(); }, part);
}

/* ---- 6. intrinsics ---- */

static __global__ void count_kernel(unsigned *bins, unsigned long long *all, const float *x, int n)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    atomicAdd(&bins[__float2int_rn(x[i]) + 8], 1u);
    atomicMax(all, (unsigned long long)i << 33);
    if (i == 3) bins[17] = (unsigned)__clz(1) + (unsigned)__ffs(8) * 100 + __brev(1u) / 0x80000000u * 10000;
    if (i == 4) bins[18] = __byte_perm(0x33221100u, 0x77665544u, 0x5140u);
    if (i == 5)
        bins[19] = (unsigned)(rsqrtf(4.0f) * 8 + __expf(0.0f) + __fdividef(6.0f, 3.0f) + __saturatef(7.0f));
}

static void test_intrinsics(void **)
{
    std::vector<float> x(1000);
    std::vector<unsigned> want(20);
    for (uint32_t i = 0; i < 1000; i++) x[i] = small(i), want[(size_t)(x[i] + 8)]++;
    float *dx = device(x);
    unsigned *bins = device(std::vector<unsigned>(20));
    unsigned long long *all = device(std::vector<unsigned long long>(1));
    MB_LAUNCH(count_kernel, 8, 128, 0, 0, bins, all, dx, 1000);
    want[17] = 31 + 400 + 10000, want[18] = 0x55114400u, want[19] = 8;
    assert_memory_equal(host(bins, 20).data(), want.data(), 80);
    assert_true(host(all, 1)[0] == 999ull << 33);
    ok(cudaFree(dx)), ok(cudaFree(bins)), ok(cudaFree(all));
}

/* ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barrier),    cmocka_unit_test(test_barrier_votes),
        cmocka_unit_test(test_warp),       cmocka_unit_test(test_warps_of_a_block),
        cmocka_unit_test(test_stuck),      cmocka_unit_test(test_mma),
        cmocka_unit_test(test_ldmatrix),   cmocka_unit_test(test_ldmatrix_refused),
        cmocka_unit_test(test_copy_async), cmocka_unit_test(test_copy_async_refused),
        cmocka_unit_test(test_order),      cmocka_unit_test(test_shared),
        cmocka_unit_test(test_intrinsics),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
