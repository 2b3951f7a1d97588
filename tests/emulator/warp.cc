/* warp: what the lanes of a warp do together, once all have come.
 *
 * Layouts of mma.m16n8k16 and ldmatrix: PTX ISA, as told in src/ops/cuda/device.cuh. A value nobody gave (a
 * shuffle from a lane outside of the mask) is all ones: a NaN.
 */
#include "internal.h"

namespace emulated
{

const char *warp_kind_name(mb_emulated_warp_kind kind)
{
    switch (kind) {
    case MB_EMULATED_SYNCWARP:
        return "__syncwarp";
    case MB_EMULATED_SHUFFLE:
        return "__shfl_sync";
    case MB_EMULATED_SHUFFLE_UP:
        return "__shfl_up_sync";
    case MB_EMULATED_SHUFFLE_DOWN:
        return "__shfl_down_sync";
    case MB_EMULATED_SHUFFLE_XOR:
        return "__shfl_xor_sync";
    case MB_EMULATED_BALLOT:
        return "a vote (__ballot_sync, __any_sync, __all_sync)";
    case MB_EMULATED_MATCH_ANY:
        return "__match_any_sync";
    case MB_EMULATED_MMA:
        return "mma";
    case MB_EMULATED_LDMATRIX:
        return "ldmatrix";
    case MB_EMULATED_LDMATRIX_TRANSPOSED:
        return "ldmatrix.trans";
    default:
        return "a __reduce_*_sync";
    }
}

static int source_lane(mb_emulated_warp_kind kind, int lane, const mb_emulated_exchange &e)
{
    const int first = lane & ~(e.width - 1), last = lane | (e.width - 1);
    int from = 0;
    switch (kind) {
    case MB_EMULATED_SHUFFLE_UP:
        from = lane - e.number;
        return from < first ? lane : from;
    case MB_EMULATED_SHUFFLE_DOWN:
        from = lane + e.number;
        return from > last ? lane : from;
    case MB_EMULATED_SHUFFLE_XOR:
        from = lane ^ e.number;
        return from > last ? lane : from;
    default:
        return first | (e.number & (e.width - 1));
    }
}

static void shuffle(mb_emulated_warp_kind kind, mb_emulated_exchange *const exchange[WARP])
{
    for (int lane = 0; lane < WARP; lane++) {
        if (exchange[lane] == NULL) continue;
        mb_emulated_exchange &e = *exchange[lane];
        if (e.width < 1 || e.width > WARP || (e.width & (e.width - 1)) != 0)
            stop("%s with width %d: it is a power of two up to 32", warp_kind_name(kind), e.width);
        const int from = source_lane(kind, lane, e);
        e.result = from >= 0 && from < WARP && exchange[from] != NULL ? exchange[from]->value : ~(uint64_t)0;
    }
}

static uint64_t combine(mb_emulated_warp_kind kind, uint32_t a, uint32_t b)
{
    switch (kind) {
    case MB_EMULATED_REDUCE_ADD:
        return (uint32_t)(a + b);
    case MB_EMULATED_REDUCE_MIN:
        return a < b ? a : b;
    case MB_EMULATED_REDUCE_MAX:
        return a > b ? a : b;
    case MB_EMULATED_REDUCE_MIN_SIGNED:
        return (uint32_t)((int32_t)a < (int32_t)b ? a : b);
    case MB_EMULATED_REDUCE_MAX_SIGNED:
        return (uint32_t)((int32_t)a > (int32_t)b ? a : b);
    case MB_EMULATED_REDUCE_OR:
        return a | b;
    default:
        return a & b;
    }
}

static void reduce(mb_emulated_warp_kind kind, mb_emulated_exchange *const exchange[WARP])
{
    uint64_t sum = 0;
    bool is_first = true;
    for (int lane = 0; lane < WARP; lane++) {
        if (exchange[lane] == NULL) continue;
        sum = is_first ? (uint32_t)exchange[lane]->value
                       : combine(kind, (uint32_t)sum, (uint32_t)exchange[lane]->value);
        is_first = false;
    }
    for (int lane = 0; lane < WARP; lane++)
        if (exchange[lane] != NULL) exchange[lane]->result = sum;
}

static void ballot(mb_emulated_exchange *const exchange[WARP])
{
    uint32_t set = 0;
    for (int lane = 0; lane < WARP; lane++)
        if (exchange[lane] != NULL && exchange[lane]->value != 0) set |= 1u << lane;
    for (int lane = 0; lane < WARP; lane++)
        if (exchange[lane] != NULL) exchange[lane]->result = set;
}

static void match_any(mb_emulated_exchange *const exchange[WARP])
{
    for (int lane = 0; lane < WARP; lane++) {
        uint32_t set = 0;
        if (exchange[lane] == NULL) continue;
        for (int other = 0; other < WARP; other++)
            if (exchange[other] != NULL && exchange[other]->value == exchange[lane]->value)
                set |= 1u << other;
        exchange[lane]->result = set;
    }
}

static float low(uint32_t pair)
{
    return mb_emulated_bits<float>(pair << 16);
}
static float high(uint32_t pair)
{
    return mb_emulated_bits<float>(pair & 0xffff0000u);
}

/* d[16,8] += a[16,16] b[16,8]: products in f32 (exact), added with k rising. Not instrumented: it touches
 * nothing of the kernel's, and most of the time of tests with sanitizers would go here. */
__attribute__((noinline, no_sanitize("address", "undefined"))) static void
multiply(const float a[16][16], const float b[16][8], float d[16][8])
{
    for (int row = 0; row < 16; row++) {
        float sum[8];
        memcpy(sum, d[row], sizeof sum);
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) sum[column] += a[row][k] * b[k][column];
        memcpy(d[row], sum, sizeof sum);
    }
}

static void mma(mb_emulated_exchange *const exchange[WARP])
{
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < WARP; lane++) {
        const int g = lane / 4, i = 2 * (lane % 4);
        const mb_emulated_exchange &e = *exchange[lane];
        for (int j = 0; j < 4; j++) {
            const int row = g + 8 * (j % 2), column = i + 8 * (j / 2);
            a[row][column] = low(e.a[j]), a[row][column + 1] = high(e.a[j]);
        }
        for (int j = 0; j < 2; j++) b[i + 8 * j][g] = low(e.b[j]), b[i + 8 * j + 1][g] = high(e.b[j]);
        d[g][i] = e.d[0], d[g][i + 1] = e.d[1], d[g + 8][i] = e.d[2], d[g + 8][i + 1] = e.d[3];
    }
    multiply(a, b, d);
    for (int lane = 0; lane < WARP; lane++) {
        const int g = lane / 4, i = 2 * (lane % 4);
        float *to = exchange[lane]->d;
        to[0] = d[g][i], to[1] = d[g][i + 1], to[2] = d[g + 8][i], to[3] = d[g + 8][i + 1];
    }
}

static void ldmatrix(mb_emulated_exchange *const exchange[WARP], bool is_transposed)
{
    uint16_t m[4][8][8];
    for (int lane = 0; lane < WARP; lane++) {
        const void *row = exchange[lane]->row;
        if ((uintptr_t)row % 16 != 0)
            stop("ldmatrix: the address of lane %d, %p, is not 16-byte aligned", lane, row);
        if (!shared_holds(row, 16))
            stop("ldmatrix: the 16 bytes of lane %d at %p are not inside of an array of shared memory", lane,
                 row);
        memcpy(m[lane / 8][lane % 8], row, 16);
    }
    for (int lane = 0; lane < WARP; lane++) {
        const int g = lane / 4, i = 2 * (lane % 4);
        for (int j = 0; j < 4; j++) {
            const uint16_t first = is_transposed ? m[j][i][g] : m[j][g][i];
            const uint16_t second = is_transposed ? m[j][i + 1][g] : m[j][g][i + 1];
            exchange[lane]->r[j] = (uint32_t)first | (uint32_t)second << 16;
        }
    }
}

void warp_perform(mb_emulated_warp_kind kind, mb_emulated_exchange *const exchange[WARP])
{
    switch (kind) {
    case MB_EMULATED_SYNCWARP:
        return;
    case MB_EMULATED_SHUFFLE:
    case MB_EMULATED_SHUFFLE_UP:
    case MB_EMULATED_SHUFFLE_DOWN:
    case MB_EMULATED_SHUFFLE_XOR:
        shuffle(kind, exchange);
        return;
    case MB_EMULATED_BALLOT:
        ballot(exchange);
        return;
    case MB_EMULATED_MATCH_ANY:
        match_any(exchange);
        return;
    case MB_EMULATED_MMA:
        mma(exchange);
        return;
    case MB_EMULATED_LDMATRIX:
        ldmatrix(exchange, false);
        return;
    case MB_EMULATED_LDMATRIX_TRANSPOSED:
        ldmatrix(exchange, true);
        return;
    default:
        reduce(kind, exchange);
        return;
    }
}

} // namespace emulated
