/* emulated_device: what kernels call: indices, barriers, warp operations, atomics, mathematics, shared
 * memory.
 *
 * Waiting operations carry the place they were called from (by default arguments), for the report of a block
 * whose threads wait for ever.
 */
#ifndef MB_EMULATED_DEVICE_H
#define MB_EMULATED_DEVICE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>

#include "emulated_types.h"

/* ---- indices ---- */

/* Of the thread that runs. */
struct mb_emulated_state {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
    unsigned char *dynamic_shared;
    uint64_t launch; /* number of the launch that runs, from 1; 0: none */
};
extern mb_emulated_state mb_emulated_now;

#define threadIdx mb_emulated_now.thread_index
#define blockIdx  mb_emulated_now.block_index
#define blockDim  mb_emulated_now.block_size
#define gridDim   mb_emulated_now.grid_size
static const int warpSize = 32;

/* ---- shared memory ---- */

/* One per MB_SHARED (and instance of a template it is in). */
struct mb_emulated_shared_place {
    const char *name, *file;
    int line;
    size_t bytes;
    uint64_t launch; /* the one `data` is of */
    void *data;
};
void mb_emulated_shared_find(mb_emulated_shared_place *place);
static inline void *mb_emulated_shared(mb_emulated_shared_place *place)
{
    if (__builtin_expect(place->launch != mb_emulated_now.launch, 0)) mb_emulated_shared_find(place);
    return place->data;
}
/* An array of the block, as in CUDA: sizeof name is its size. */
#define MB_SHARED(type, name, count)                                                                         \
    static mb_emulated_shared_place name##_place = {                                                         \
        #name, __FILE__, __LINE__, sizeof(type) * (size_t)(count), 0, NULL};                                 \
    type(&name)[count] = *(type(*)[count])mb_emulated_shared(&name##_place)
#define MB_DYNAMIC_SHARED(type, name) type *name = (type *)mb_emulated_now.dynamic_shared

/* ---- waiting for others ---- */

#define MB_EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum mb_emulated_reduction { MB_EMULATED_NONE, MB_EMULATED_COUNT, MB_EMULATED_AND, MB_EMULATED_OR };
/* Over all threads of the block; what follows from their predicates. */
int mb_emulated_barrier(mb_emulated_reduction reduction, int predicate, const char *file, int line);

static inline void __syncthreads(MB_EMULATED_HERE)
{
    (void)mb_emulated_barrier(MB_EMULATED_NONE, 0, file, line);
}
static inline int __syncthreads_count(int predicate, MB_EMULATED_HERE)
{
    return mb_emulated_barrier(MB_EMULATED_COUNT, predicate, file, line);
}
static inline int __syncthreads_and(int predicate, MB_EMULATED_HERE)
{
    return mb_emulated_barrier(MB_EMULATED_AND, predicate, file, line);
}
static inline int __syncthreads_or(int predicate, MB_EMULATED_HERE)
{
    return mb_emulated_barrier(MB_EMULATED_OR, predicate, file, line);
}

enum mb_emulated_warp_kind {
    MB_EMULATED_SYNCWARP,
    MB_EMULATED_SHUFFLE,
    MB_EMULATED_SHUFFLE_UP,
    MB_EMULATED_SHUFFLE_DOWN,
    MB_EMULATED_SHUFFLE_XOR,
    MB_EMULATED_BALLOT,
    MB_EMULATED_MATCH_ANY,
    MB_EMULATED_REDUCE_ADD,
    MB_EMULATED_REDUCE_MIN,
    MB_EMULATED_REDUCE_MAX,
    MB_EMULATED_REDUCE_MIN_SIGNED,
    MB_EMULATED_REDUCE_MAX_SIGNED,
    MB_EMULATED_REDUCE_OR,
    MB_EMULATED_REDUCE_AND,
    MB_EMULATED_MMA,
    MB_EMULATED_LDMATRIX,
    MB_EMULATED_LDMATRIX_TRANSPOSED,
};
/* What a lane brings and gets. */
struct mb_emulated_exchange {
    uint64_t value, result;
    int number, width; /* of a shuffle */
    const uint32_t *a, *b;
    float *d;
    uint32_t *r;
    const void *row;
};
/* Returns when all lanes of the mask have come with the same kind and mask. */
void mb_emulated_warp(mb_emulated_warp_kind kind, uint32_t mask, mb_emulated_exchange *exchange,
                      const char *file, int line);

static inline void __syncwarp(unsigned mask = 0xffffffffu, MB_EMULATED_HERE)
{
    mb_emulated_exchange e = {};
    mb_emulated_warp(MB_EMULATED_SYNCWARP, mask, &e, file, line);
}
template <typename T>
static inline T mb_emulated_shuffle(mb_emulated_warp_kind kind, unsigned mask, T value, int number, int width,
                                    const char *file, int line)
{
    static_assert(std::is_arithmetic<T>::value && sizeof(T) <= 8,
                  "shuffles exchange numbers of up to 8 bytes");
    mb_emulated_exchange e = {};
    memcpy(&e.value, &value, sizeof value);
    e.number = number, e.width = width;
    mb_emulated_warp(kind, mask, &e, file, line);
    memcpy(&value, &e.result, sizeof value);
    return value;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, MB_EMULATED_HERE)
{
    return mb_emulated_shuffle(MB_EMULATED_SHUFFLE, mask, value, lane, width, file, line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MB_EMULATED_HERE)
{
    return mb_emulated_shuffle(MB_EMULATED_SHUFFLE_UP, mask, value, (int)delta, width, file, line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MB_EMULATED_HERE)
{
    return mb_emulated_shuffle(MB_EMULATED_SHUFFLE_DOWN, mask, value, (int)delta, width, file, line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, MB_EMULATED_HERE)
{
    return mb_emulated_shuffle(MB_EMULATED_SHUFFLE_XOR, mask, value, lanes, width, file, line);
}
static inline uint64_t mb_emulated_vote(mb_emulated_warp_kind kind, unsigned mask, uint64_t value,
                                        const char *file, int line)
{
    mb_emulated_exchange e = {};
    e.value = value;
    mb_emulated_warp(kind, mask, &e, file, line);
    return e.result;
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, MB_EMULATED_HERE)
{
    return (unsigned)mb_emulated_vote(MB_EMULATED_BALLOT, mask, predicate != 0, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, MB_EMULATED_HERE)
{
    return mb_emulated_vote(MB_EMULATED_BALLOT, mask, predicate != 0, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, MB_EMULATED_HERE)
{
    return mb_emulated_vote(MB_EMULATED_BALLOT, mask, predicate == 0, file, line) == 0;
}
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T value, MB_EMULATED_HERE)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return (unsigned)mb_emulated_vote(MB_EMULATED_MATCH_ANY, mask, bits, file, line);
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, MB_EMULATED_HERE)
{
    return (unsigned)mb_emulated_vote(MB_EMULATED_REDUCE_ADD, mask, value, file, line);
}
static inline int __reduce_add_sync(unsigned mask, int value, MB_EMULATED_HERE)
{
    return (int)mb_emulated_vote(MB_EMULATED_REDUCE_ADD, mask, (unsigned)value, file, line);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value, MB_EMULATED_HERE)
{
    return (unsigned)mb_emulated_vote(MB_EMULATED_REDUCE_MIN, mask, value, file, line);
}
static inline int __reduce_min_sync(unsigned mask, int value, MB_EMULATED_HERE)
{
    return (int)mb_emulated_vote(MB_EMULATED_REDUCE_MIN_SIGNED, mask, (unsigned)value, file, line);
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value, MB_EMULATED_HERE)
{
    return (unsigned)mb_emulated_vote(MB_EMULATED_REDUCE_MAX, mask, value, file, line);
}
static inline int __reduce_max_sync(unsigned mask, int value, MB_EMULATED_HERE)
{
    return (int)mb_emulated_vote(MB_EMULATED_REDUCE_MAX_SIGNED, mask, (unsigned)value, file, line);
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value, MB_EMULATED_HERE)
{
    return (unsigned)mb_emulated_vote(MB_EMULATED_REDUCE_OR, mask, value, file, line);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned value, MB_EMULATED_HERE)
{
    return (unsigned)mb_emulated_vote(MB_EMULATED_REDUCE_AND, mask, value, file, line);
}
/* Lanes of the warp that have not returned: the most a GPU could answer. */
unsigned __activemask();

static inline void mb_emulated_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2],
                                        MB_EMULATED_HERE)
{
    mb_emulated_exchange e = {};
    e.d = d, e.a = a, e.b = b;
    mb_emulated_warp(MB_EMULATED_MMA, 0xffffffffu, &e, file, line);
}
static inline void mb_emulated_ldmatrix_x4(uint32_t r[4], const void *row, bool is_transposed,
                                           MB_EMULATED_HERE)
{
    mb_emulated_exchange e = {};
    e.r = r, e.row = row;
    mb_emulated_warp(is_transposed ? MB_EMULATED_LDMATRIX_TRANSPOSED : MB_EMULATED_LDMATRIX, 0xffffffffu, &e,
                     file, line);
}

/* ---- copies to shared memory ---- */

void mb_emulated_copy_async_16(void *shared, const void *global, bool is_valid, MB_EMULATED_HERE);
void mb_emulated_copy_async_commit();
void mb_emulated_copy_async_wait(int left);

/* ---- memory ---- */

static inline void __threadfence() {}
static inline void __threadfence_block() {}
template <typename T> static inline T __ldg(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldca(const T *p)
{
    return *p;
}
template <typename T> static inline void __stcg(T *p, T value)
{
    *p = value;
}
template <typename T> static inline void __stcs(T *p, T value)
{
    *p = value;
}
template <typename T> static inline void __stwb(T *p, T value)
{
    *p = value;
}

/* Integers only: sums of floats by atomics are in no fixed order. */
#define MB_EMULATED_ATOMIC(function, type, expression)                                                       \
    static inline type function(type *address, type value)                                                   \
    {                                                                                                        \
        const type old = *address;                                                                           \
        *address = (expression);                                                                             \
        return old;                                                                                          \
    }
#define MB_EMULATED_ATOMICS(type)                                                                            \
    MB_EMULATED_ATOMIC(atomicAdd, type, (type)((unsigned long long)old + (unsigned long long)value))         \
    MB_EMULATED_ATOMIC(atomicExch, type, value)                                                              \
    MB_EMULATED_ATOMIC(atomicMin, type, value < old ? value : old)                                           \
    MB_EMULATED_ATOMIC(atomicMax, type, value > old ? value : old)                                           \
    MB_EMULATED_ATOMIC(atomicAnd, type, old &value)                                                          \
    MB_EMULATED_ATOMIC(atomicOr, type, old | value)                                                          \
    MB_EMULATED_ATOMIC(atomicXor, type, old ^ value)                                                         \
    static inline type atomicCAS(type *address, type expected, type value)                                   \
    {                                                                                                        \
        const type old = *address;                                                                           \
        if (old == expected) *address = value;                                                               \
        return old;                                                                                          \
    }
MB_EMULATED_ATOMICS(int)
MB_EMULATED_ATOMICS(unsigned int)
MB_EMULATED_ATOMICS(unsigned long long)
MB_EMULATED_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)value))
MB_EMULATED_ATOMIC(atomicSub, unsigned int, old - value)
MB_EMULATED_ATOMIC(atomicInc, unsigned int, old >= value ? 0 : old + 1)
MB_EMULATED_ATOMIC(atomicDec, unsigned int, old == 0 || old > value ? value : old - 1)
#undef MB_EMULATED_ATOMIC
#undef MB_EMULATED_ATOMICS

/* ---- bits ---- */

template <typename To, typename From> static inline To mb_emulated_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x)
{
    return mb_emulated_bits<unsigned>(x);
}
static inline int __float_as_int(float x)
{
    return mb_emulated_bits<int>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return mb_emulated_bits<float>(x);
}
static inline float __int_as_float(int x)
{
    return mb_emulated_bits<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return mb_emulated_bits<long long>(x);
}
static inline double __longlong_as_double(long long x)
{
    return mb_emulated_bits<double>(x);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}
static inline int __clzll(long long x)
{
    return x == 0 ? 64 : __builtin_clzll((unsigned long long)x);
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}
static inline unsigned __brev(unsigned x)
{
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
static inline unsigned __umulhi(unsigned x, unsigned y)
{
    return (unsigned)((unsigned long long)x * y >> 32);
}
static inline int __mulhi(int x, int y)
{
    return (int)((long long)x * y >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y)
{
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned z = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned byte = (unsigned)(both >> 8 * (selector >> 4 * i & 7)) & 0xffu;
        z |= ((selector >> 4 * i & 8) != 0 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return z;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by)
{
    return (unsigned)((((unsigned long long)high << 32 | low) << (by & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by)
{
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31));
}

/* ---- mathematics ---- */

/* The overloads of CUDA, no more: what is ambiguous there is here. */
#define MB_EMULATED_LESS(a, b) ((b) < (a) ? (b) : (a))
#define MB_EMULATED_MORE(a, b) ((a) < (b) ? (b) : (a))
#define MB_EMULATED_PAIR(result, first, second)                                                              \
    static inline result min(first a, second b)                                                              \
    {                                                                                                        \
        return MB_EMULATED_LESS((result)a, (result)b);                                                       \
    }                                                                                                        \
    static inline result max(first a, second b)                                                              \
    {                                                                                                        \
        return MB_EMULATED_MORE((result)a, (result)b);                                                       \
    }
#define MB_EMULATED_INTEGERS(wide_unsigned, wide_signed)                                                     \
    MB_EMULATED_PAIR(wide_signed, wide_signed, wide_signed)                                                  \
    MB_EMULATED_PAIR(wide_unsigned, wide_unsigned, wide_unsigned)                                            \
    MB_EMULATED_PAIR(wide_unsigned, wide_signed, wide_unsigned)                                              \
    MB_EMULATED_PAIR(wide_unsigned, wide_unsigned, wide_signed)
MB_EMULATED_INTEGERS(unsigned int, int)
MB_EMULATED_INTEGERS(unsigned long, long)
MB_EMULATED_INTEGERS(unsigned long long, long long)
#define MB_EMULATED_FLOATS(result, first, second, f)                                                         \
    static inline result min(first a, second b)                                                              \
    {                                                                                                        \
        return fmin##f(a, b);                                                                                \
    }                                                                                                        \
    static inline result max(first a, second b)                                                              \
    {                                                                                                        \
        return fmax##f(a, b);                                                                                \
    }
MB_EMULATED_FLOATS(float, float, float, f)
MB_EMULATED_FLOATS(double, double, double, )
MB_EMULATED_FLOATS(double, float, double, )
MB_EMULATED_FLOATS(double, double, float, )
#undef MB_EMULATED_PAIR
#undef MB_EMULATED_INTEGERS
#undef MB_EMULATED_FLOATS

/* By macros, since a C library may declare these too. */
#define rsqrtf    mb_emulated_rsqrtf
#define rsqrt     mb_emulated_rsqrt
#define __expf    mb_emulated_expf
#define __exp10f  mb_emulated_exp10f
#define __logf    mb_emulated_logf
#define __log2f   mb_emulated_log2f
#define __log10f  mb_emulated_log10f
#define __sinf    mb_emulated_sinf
#define __cosf    mb_emulated_cosf
#define __tanf    mb_emulated_tanf
#define __powf    mb_emulated_powf
#define __sincosf mb_emulated_sincosf
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}

#define MB_EMULATED_UNARY(name, type, expression)                                                            \
    static inline type name(type x)                                                                          \
    {                                                                                                        \
        return expression;                                                                                   \
    }
MB_EMULATED_UNARY(__expf, float, expf(x))
MB_EMULATED_UNARY(__exp10f, float, powf(10.0f, x))
MB_EMULATED_UNARY(__logf, float, logf(x))
MB_EMULATED_UNARY(__log2f, float, log2f(x))
MB_EMULATED_UNARY(__log10f, float, log10f(x))
MB_EMULATED_UNARY(__sinf, float, sinf(x))
MB_EMULATED_UNARY(__cosf, float, cosf(x))
MB_EMULATED_UNARY(__tanf, float, tanf(x))
MB_EMULATED_UNARY(__frcp_rn, float, 1.0f / x)
MB_EMULATED_UNARY(__fsqrt_rn, float, sqrtf(x))
MB_EMULATED_UNARY(__frsqrt_rn, float, (float)(1.0 / sqrt((double)x)))
MB_EMULATED_UNARY(__drcp_rn, double, 1.0 / x)
MB_EMULATED_UNARY(__dsqrt_rn, double, sqrt(x))
MB_EMULATED_UNARY(__saturatef, float, x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f)
#undef MB_EMULATED_UNARY
#define MB_EMULATED_BINARY(name, type, expression)                                                           \
    static inline type name(type x, type y)                                                                  \
    {                                                                                                        \
        return expression;                                                                                   \
    }
MB_EMULATED_BINARY(__fadd_rn, float, x + y)
MB_EMULATED_BINARY(__fsub_rn, float, x - y)
MB_EMULATED_BINARY(__fmul_rn, float, x *y)
MB_EMULATED_BINARY(__fdiv_rn, float, x / y)
MB_EMULATED_BINARY(__fdividef, float, x / y)
MB_EMULATED_BINARY(__powf, float, powf(x, y))
MB_EMULATED_BINARY(__dadd_rn, double, x + y)
MB_EMULATED_BINARY(__dsub_rn, double, x - y)
MB_EMULATED_BINARY(__dmul_rn, double, x *y)
MB_EMULATED_BINARY(__ddiv_rn, double, x / y)
#undef MB_EMULATED_BINARY
static inline float __fmaf_rn(float x, float y, float z)
{
    return fmaf(x, y, z);
}
static inline double __fma_rn(double x, double y, double z)
{
    return fma(x, y, z);
}
static inline void __sincosf(float x, float *s, float *c)
{
    *s = sinf(x), *c = cosf(x);
}

/* Conversions saturate, and a NaN gives 0, as the chip's do. */
template <typename To, typename From> static inline To mb_emulated_saturate(From x)
{
    const To least = std::is_signed<To>::value ? (To)((To)1 << (sizeof(To) * 8 - 1)) : (To)0;
    const To most = (To)~least;
    if (x != x) return 0;
    if (x >= (From)most) return most;
    return x <= (From)least ? least : (To)x;
}
#define MB_EMULATED_TO_INTEGER(suffix, rounded)                                                              \
    static inline int __float2int_##suffix(float x)                                                          \
    {                                                                                                        \
        return (int)mb_emulated_saturate<int32_t>((double)rounded((double)x));                               \
    }                                                                                                        \
    static inline unsigned __float2uint_##suffix(float x)                                                    \
    {                                                                                                        \
        return (unsigned)mb_emulated_saturate<uint32_t>((double)rounded((double)x));                         \
    }                                                                                                        \
    static inline long long __float2ll_##suffix(float x)                                                     \
    {                                                                                                        \
        return mb_emulated_saturate<int64_t>((double)rounded((double)x));                                    \
    }
MB_EMULATED_TO_INTEGER(rn, rint)
MB_EMULATED_TO_INTEGER(rz, trunc)
MB_EMULATED_TO_INTEGER(ru, ceil)
MB_EMULATED_TO_INTEGER(rd, floor)
#undef MB_EMULATED_TO_INTEGER
static inline float __int2float_rn(int x)
{
    return (float)x;
}
static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}
static inline float __ll2float_rn(long long x)
{
    return (float)x;
}
static inline float __double2float_rn(double x)
{
    return (float)x;
}

/* Ends the program with a report. */
void mb_emulated_trap(const char *file, int line);
static inline void __trap(MB_EMULATED_HERE)
{
    mb_emulated_trap(file, line);
}

#endif
