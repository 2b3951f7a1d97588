/* simd: one vector of floats, as wide as the instruction set of the file that includes this.
 *
 * Layer: ops (cpu backend, internal).  Included once per file, by kernels_body.h or attention_loops.h.
 *
 * 1. types, and what the compiler's own vectors say for every width: + - * / < & work on them directly
 * 2. AVX-512   3. AVX2   4. neither: what needs the instruction set by name
 * 5. bf16
 * 6. functions
 *
 * Partial loads give zeros beyond n. Sums of lanes have a fixed order. max and min give b if either is NaN.
 */
#ifndef MB_CPU_SIMD_H
#define MB_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* ---- 1. types ---- */

#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX2__)
enum { W = 8 };
#else
enum { W = 4 };
#endif

typedef float mb_vf __attribute__((vector_size(4 * W)));
typedef int32_t mb_vi __attribute__((vector_size(4 * W)));
typedef uint32_t mb_vu __attribute__((vector_size(4 * W)));
typedef uint64_t mb_vq __attribute__((vector_size(4 * W)));     /* W / 2 of them */
typedef int32_t mb_vi_half __attribute__((vector_size(2 * W))); /* W / 2 of them */
typedef uint16_t mb_vh __attribute__((vector_size(2 * W)));     /* W of them: bf16 */
/* The same at any address. */
typedef float mb_vf_loose __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t mb_vi_loose __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t mb_vi_half_loose __attribute__((vector_size(2 * W), aligned(4), may_alias));
typedef uint16_t mb_vh_loose __attribute__((vector_size(2 * W), aligned(2), may_alias));

static inline mb_vf vf_set(float x)
{
    return x - (mb_vf){0};
}
static inline mb_vf vf_load(const float *p)
{
    return *(const mb_vf_loose *)p;
}
static inline void vf_store(float *p, mb_vf x)
{
    *(mb_vf_loose *)p = x;
}
static inline mb_vf vf_abs(mb_vf a)
{
    return (mb_vf)((mb_vi)a & 0x7FFFFFFF);
}
/* mask: lanes of all ones or zeros, as comparisons give */
static inline mb_vf vf_choose(mb_vi mask, mb_vf a, mb_vf b)
{
    return (mb_vf)((mask & (mb_vi)a) | (~mask & (mb_vi)b));
}
/* x where a < b, else 0 */
static inline mb_vf vf_where_less(mb_vf a, mb_vf b, mb_vf x)
{
    return (mb_vf)((mb_vi)(a < b) & (mb_vi)x);
}

#if defined(__AVX512F__)

/* ---- 2. AVX-512 ---- */

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
}
static inline mb_vf vf_min(mb_vf a, mb_vf b)
{
    return _mm512_min_ps(a, b);
}
static inline mb_vf vf_sqrt(mb_vf a)
{
    return _mm512_sqrt_ps(a);
}
static inline float vf_sum(mb_vf a)
{
    return _mm512_reduce_add_ps(a);
}
static inline float vf_highest(mb_vf a)
{
    return _mm512_reduce_max_ps(a);
}
static inline mb_vf vf_round(mb_vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline mb_vf vf_scale2(mb_vf x, mb_vf n)
{
    return _mm512_scalef_ps(x, n);
}
static inline mb_vu vh_widen(mb_vh h)
{
    return (mb_vu)_mm512_cvtepu16_epi32((__m256i)h);
}
static inline mb_vh vh_high(mb_vu x) /* the high halves of the lanes */
{
    const __m512i odd = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23,
                                         21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return (mb_vh)_mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, (__m512i)x));
}
static inline mb_vh vh_load_part(const uint16_t *p, int64_t n)
{
    return (mb_vh)_mm256_maskz_loadu_epi16(vf_mask(n), p);
}
static inline void vh_store_part(uint16_t *p, mb_vh h, int64_t n)
{
    _mm256_mask_storeu_epi16(p, vf_mask(n), (__m256i)h);
}
static inline mb_vq vq_multiply(mb_vq a, mb_vq b) /* of the low halves */
{
    return (mb_vq)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
#define MB_EXP_LOW -110.0f

#else

static inline mb_vh vh_load_part(const uint16_t *p, int64_t n)
{
    mb_vh h = {0};
    for (int64_t i = 0; i < n; i++) h[i] = p[i];
    return h;
}
static inline void vh_store_part(uint16_t *p, mb_vh h, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i] = h[i];
}
#define MB_EXP_LOW -87.0f

#if defined(__AVX2__)

/* ---- 3. AVX2 ---- */

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
static inline mb_vf vf_round(mb_vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline mb_vf vf_scale2(mb_vf x, mb_vf n)
{
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
static inline mb_vu vh_widen(mb_vh h)
{
    return (mb_vu)_mm256_cvtepu16_epi32((__m128i)h);
}
static inline mb_vh vh_high(mb_vu x)
{
    __m256i low = (__m256i)(x >> 16), pairs = _mm256_packus_epi32(low, low); /* of each 128 bits */
    return (mb_vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
}
static inline mb_vq vq_multiply(mb_vq a, mb_vq b)
{
    return (mb_vq)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

#else

/* ---- 4. neither ---- */

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
static inline float vf_sum(mb_vf a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}
static inline float vf_highest(mb_vf a)
{
    return fmaxf(fmaxf(a[0], a[2]), fmaxf(a[1], a[3]));
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
static inline mb_vu vh_widen(mb_vh h)
{
    return __builtin_convertvector(h, mb_vu);
}
static inline mb_vh vh_high(mb_vu x)
{
    return __builtin_convertvector(x >> 16, mb_vh);
}
static inline mb_vq vq_multiply(mb_vq a, mb_vq b)
{
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
}

#endif
#endif

/* ---- 5. bf16 ---- */

static inline mb_vh vh_load(const uint16_t *p)
{
    return *(const mb_vh_loose *)p;
}
static inline void vh_store(uint16_t *p, mb_vh h)
{
    *(mb_vh_loose *)p = h;
}
static inline mb_vf vf_from_bf16(mb_vh h)
{
    return (mb_vf)(vh_widen(h) << 16);
}
/* To nearest even, as mb_dtype_bf16_from_f32; NaN stays NaN. By integers, since the instruction for it
 * (AVX512_BF16) takes subnormal numbers for zero, and correcting that costs what it saves. */
static inline mb_vh vf_to_bf16(mb_vf x)
{
    mb_vu bits = (mb_vu)x, rounded = bits + (bits >> 16 & 1u) + 0x7FFFu;
    return vh_high((mb_vu)vf_choose((mb_vi)(x == x), (mb_vf)rounded, (mb_vf)(bits | 0x400000u)));
}

/* ---- 6. functions ---- */

/* Cody-Waite reduction and the polynomial of Cephes expf (Moshier 1992), relative error below 2e-7; 0 below
 * about -87 (portable, AVX2) or -104 (AVX-512); NaN stays NaN. */
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

/* The polynomial of Cephes logf (Moshier 1992), relative error below 2e-7. For normal numbers above 0 and
 * NaN, which stays one. */
static inline mb_vf vf_log(mb_vf x)
{
    const mb_vi bits = (mb_vi)x;
    const mb_vf half = (mb_vf)((bits & 0x007FFFFF) | 0x3F000000); /* 0.5 to 1 */
    const mb_vi is_low = (mb_vi)(half < vf_set(0.707106781f));
    const mb_vf n = __builtin_convertvector((bits >> 23) - 126 + is_low, mb_vf); /* is_low: -1 */
    const mb_vf r = half - vf_set(1.0f) + (mb_vf)(is_low & (mb_vi)half), rr = r * r;
    mb_vf p = vf_fma(vf_set(7.0376836292e-2f), r, vf_set(-1.1514610310e-1f));
    p = vf_fma(p, r, vf_set(1.1676998740e-1f));
    p = vf_fma(p, r, vf_set(-1.2420140846e-1f));
    p = vf_fma(p, r, vf_set(1.4249322787e-1f));
    p = vf_fma(p, r, vf_set(-1.6668057665e-1f));
    p = vf_fma(p, r, vf_set(2.0000714765e-1f));
    p = vf_fma(p, r, vf_set(-2.4999993993e-1f));
    p = vf_fma(p, r, vf_set(3.3333331174e-1f));
    p = vf_fma(n, vf_set(-2.12194440e-4f), p * r * rr);
    p = vf_fma(rr, vf_set(-0.5f), p);
    return vf_choose((mb_vi)(x == x), vf_fma(n, vf_set(0.693359375f), r + p), x);
}

static inline mb_vf vf_sigmoid(mb_vf x)
{
    return vf_set(1.0f) / (vf_set(1.0f) + vf_exp(vf_set(0.0f) - x));
}

/* Phi, the normal distribution function: exp(-x^2/2) t Q(t) / 2 with t = 1 / (1 + |x| / sqrt(8)) is the
 * smaller tail. Q: fitted to the scaled complement of the error function on |x| / sqrt(2) <= 10, relative
 * error of the fit 5e-8. */
static inline mb_vf vf_normal(mb_vf x)
{
    static const float q[] = {0.284574986f, -0.487199962f, 0.278067201f, -0.0266256984f,
                              0.202686876f, 0.243103758f,  0.282375306f, 0.282086432f};
    mb_vf t = vf_set(1.0f) / vf_fma(vf_abs(x), vf_set(0.353553391f), vf_set(1.0f));
    mb_vf p = vf_set(-0.0590689667f);
    for (int i = 0; i < 8; i++) p = vf_fma(p, t, vf_set(q[i]));
    mb_vf tail = vf_exp(x * x * vf_set(-0.5f)) * (vf_set(0.5f) * t * p);
    return vf_choose((mb_vi)(x < vf_set(0.0f)), tail, vf_set(1.0f) - tail);
}

#endif
