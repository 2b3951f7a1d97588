/* simd: one vector of floats, as wide as the instruction set of the file that includes this.
 *
 * Layer: ops (cpu backend, internal).  Included once by kernels_body.h.
 * + - * / work on mb_vf directly (GNU vector types). Partial loads give zeros beyond n. Sums of lanes have a
 * fixed order. exp: Cody-Waite reduction and the polynomial of Cephes expf (Moshier 1992), relative error
 * below 2e-7; 0 below about -87 (portable, AVX2) or -104 (AVX-512); NaN stays NaN.
 */
#ifndef MB_CPU_SIMD_H
#define MB_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

enum { W = 16 };
typedef __m512 mb_vf;

static inline mb_vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline mb_vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, mb_vf x)
{
    _mm512_storeu_ps(p, x);
}
static inline __mmask16 vf_mask(int64_t n)
{
    return (__mmask16)((1u << n) - 1u);
}
static inline mb_vf vf_load_part(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}
static inline void vf_store_part(float *p, mb_vf x, int64_t n)
{
    _mm512_mask_storeu_ps(p, vf_mask(n), x);
}
static inline mb_vf vf_fma(mb_vf a, mb_vf b, mb_vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline mb_vf vf_max(mb_vf a, mb_vf b)
{
    return _mm512_max_ps(a, b);
} /* b if either is NaN */
static inline mb_vf vf_min(mb_vf a, mb_vf b)
{
    return _mm512_min_ps(a, b);
}
static inline mb_vf vf_sqrt(mb_vf a)
{
    return _mm512_sqrt_ps(a);
}
static inline mb_vf vf_abs(mb_vf a)
{
    return _mm512_abs_ps(a);
}
static inline float vf_sum(mb_vf a)
{
    return _mm512_reduce_add_ps(a);
}
static inline float vf_highest(mb_vf a)
{
    return _mm512_reduce_max_ps(a);
}
/* x where a < b, else 0 */
static inline mb_vf vf_where_less(mb_vf a, mb_vf b, mb_vf x)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
static inline mb_vf vf_round(mb_vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline mb_vf vf_scale2(mb_vf x, mb_vf n)
{
    return _mm512_scalef_ps(x, n);
}
#define MB_EXP_LOW -110.0f

#elif defined(__AVX2__)

enum { W = 8 };
typedef __m256 mb_vf;

static inline mb_vf vf_set(float x)
{
    return _mm256_set1_ps(x);
}
static inline mb_vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, mb_vf x)
{
    _mm256_storeu_ps(p, x);
}
static inline __m256i vf_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline mb_vf vf_load_part(const float *p, int64_t n)
{
    return _mm256_maskload_ps(p, vf_mask(n));
}
static inline void vf_store_part(float *p, mb_vf x, int64_t n)
{
    _mm256_maskstore_ps(p, vf_mask(n), x);
}
static inline mb_vf vf_fma(mb_vf a, mb_vf b, mb_vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline mb_vf vf_max(mb_vf a, mb_vf b)
{
    return _mm256_max_ps(a, b);
}
static inline mb_vf vf_min(mb_vf a, mb_vf b)
{
    return _mm256_min_ps(a, b);
}
static inline mb_vf vf_sqrt(mb_vf a)
{
    return _mm256_sqrt_ps(a);
}
static inline mb_vf vf_abs(mb_vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline float vf_sum(mb_vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline float vf_highest(mb_vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline mb_vf vf_where_less(mb_vf a, mb_vf b, mb_vf x)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), x);
}
static inline mb_vf vf_round(mb_vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline mb_vf vf_scale2(mb_vf x, mb_vf n)
{
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
#define MB_EXP_LOW -87.0f

#else

enum { W = 4 };
typedef float mb_vf __attribute__((vector_size(16)));
typedef int32_t mb_vi __attribute__((vector_size(16)));

static inline mb_vf vf_set(float x)
{
    return (mb_vf){x, x, x, x};
}
static inline mb_vf vf_load(const float *p)
{
    mb_vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void vf_store(float *p, mb_vf x)
{
    memcpy(p, &x, sizeof x);
}
static inline mb_vf vf_load_part(const float *p, int64_t n)
{
    mb_vf x = {0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
static inline void vf_store_part(float *p, mb_vf x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i] = x[i];
}
static inline mb_vf vf_fma(mb_vf a, mb_vf b, mb_vf c)
{
    return a * b + c;
}
static inline mb_vf vf_choose(mb_vi mask, mb_vf a, mb_vf b)
{
    return (mb_vf)((mask & (mb_vi)a) | (~mask & (mb_vi)b));
}
static inline mb_vf vf_max(mb_vf a, mb_vf b)
{
    return vf_choose((mb_vi)(a > b), a, b);
}
static inline mb_vf vf_min(mb_vf a, mb_vf b)
{
    return vf_choose((mb_vi)(a < b), a, b);
}
static inline mb_vf vf_sqrt(mb_vf a)
{
    return (mb_vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])};
}
static inline mb_vf vf_abs(mb_vf a)
{
    return (mb_vf){fabsf(a[0]), fabsf(a[1]), fabsf(a[2]), fabsf(a[3])};
}
static inline float vf_sum(mb_vf a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}
static inline float vf_highest(mb_vf a)
{
    return fmaxf(fmaxf(a[0], a[2]), fmaxf(a[1], a[3]));
}
static inline mb_vf vf_where_less(mb_vf a, mb_vf b, mb_vf x)
{
    return vf_choose((mb_vi)(a < b), x, vf_set(0));
}
static inline mb_vf vf_round(mb_vf x)
{
    mb_vf magic = vf_set(12582912.0f); /* 1.5 * 2^23: the sum has no bits after the point */
    return (x + magic) - magic;
}
static inline mb_vf vf_scale2(mb_vf x, mb_vf n)
{
    mb_vf safe = vf_choose((mb_vi)(n == n), n, vf_set(0)); /* a NaN has no integer */
    mb_vi power = (__builtin_convertvector(safe, mb_vi) + 127) << 23;
    return x * (mb_vf)power;
}
#define MB_EXP_LOW -87.0f

#endif

static inline mb_vf vf_exp(mb_vf x)
{
    mb_vf low = vf_set(MB_EXP_LOW);
    mb_vf bounded = vf_max(low, vf_min(vf_set(88.7f), x)); /* in this order a NaN passes */
    mb_vf n = vf_round(bounded * vf_set(1.44269504088896341f));
    mb_vf r = vf_fma(n, vf_set(-0.693359375f), bounded);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    mb_vf p = vf_fma(vf_set(1.9875691500e-4f), r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p, r * r, r + vf_set(1.0f));
    mb_vf y = vf_scale2(p, n);
#if defined(__AVX512F__)
    return y;
#else
    return y - vf_where_less(x, low, y);
#endif
}

static inline mb_vf vf_sigmoid(mb_vf x)
{
    return vf_set(1.0f) / (vf_set(1.0f) + vf_exp(vf_set(0.0f) - x));
}

#endif
