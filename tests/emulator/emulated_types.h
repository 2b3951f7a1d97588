/* emulated_types: CUDA's attributes and vector types. */
#ifndef MB_EMULATED_TYPES_H
#define MB_EMULATED_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* No __shared__: static arrays are MB_SHARED, the dynamic one MB_DYNAMIC_SHARED. */

#define MB_EMULATED_VECTORS(type, name, align2, align4)                                                      \
    struct name##1                                                                                           \
    {                                                                                                        \
        type x;                                                                                              \
    };                                                                                                       \
    struct __align__(align2) name##2                                                                         \
    {                                                                                                        \
        type x, y;                                                                                           \
    };                                                                                                       \
    struct name##3                                                                                           \
    {                                                                                                        \
        type x, y, z;                                                                                        \
    };                                                                                                       \
    struct __align__(align4) name##4                                                                         \
    {                                                                                                        \
        type x, y, z, w;                                                                                     \
    };                                                                                                       \
    static inline name##1 make_##name##1(type x)                                                             \
    {                                                                                                        \
        return {x};                                                                                          \
    }                                                                                                        \
    static inline name##2 make_##name##2(type x, type y)                                                     \
    {                                                                                                        \
        return {x, y};                                                                                       \
    }                                                                                                        \
    static inline name##3 make_##name##3(type x, type y, type z)                                             \
    {                                                                                                        \
        return {x, y, z};                                                                                    \
    }                                                                                                        \
    static inline name##4 make_##name##4(type x, type y, type z, type w)                                     \
    {                                                                                                        \
        return {x, y, z, w};                                                                                 \
    }
MB_EMULATED_VECTORS(signed char, char, 2, 4)
MB_EMULATED_VECTORS(unsigned char, uchar, 2, 4)
MB_EMULATED_VECTORS(short, short, 4, 8)
MB_EMULATED_VECTORS(unsigned short, ushort, 4, 8)
MB_EMULATED_VECTORS(int, int, 8, 16)
MB_EMULATED_VECTORS(unsigned int, uint, 8, 16)
MB_EMULATED_VECTORS(long long, longlong, 16, 16)
MB_EMULATED_VECTORS(unsigned long long, ulonglong, 16, 16)
MB_EMULATED_VECTORS(float, float, 8, 16)
MB_EMULATED_VECTORS(double, double, 16, 16)
#undef MB_EMULATED_VECTORS

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

#endif
