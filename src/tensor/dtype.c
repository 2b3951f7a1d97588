/* dtype.c: element types and conversions, to nearest even.
 *
 * 1. names and sizes   2. single values   3. arrays
 */
#include <string.h>

#include "tensor/tensor.h"

/* ---- 1. names and sizes ---- */

static const struct {
    size_t bytes;
    const char *names[4]; /* ours, the long one, that of safetensors */
} types[MB_DTYPE_COUNT] = {
    [MB_F32] = {4, {"f32", "float32", "F32", "float"}},
    [MB_F64] = {8, {"f64", "float64", "F64", "double"}},
    [MB_BF16] = {2, {"bf16", "bfloat16", "BF16"}},
    [MB_F16] = {2, {"f16", "float16", "F16", "half"}},
    [MB_I8] = {1, {"i8", "int8", "I8"}},
    [MB_U8] = {1, {"u8", "uint8", "U8"}},
    [MB_U16] = {2, {"u16", "uint16", "U16"}},
    [MB_I32] = {4, {"i32", "int32", "I32"}},
    [MB_U32] = {4, {"u32", "uint32", "U32"}},
    [MB_I64] = {8, {"i64", "int64", "I64"}},
    [MB_U64] = {8, {"u64", "uint64", "U64"}},
    [MB_BOOL] = {1, {"bool", "boolean", "BOOL"}},
};

size_t mb_dtype_bytes(mb_dtype dtype)
{
    return (unsigned)dtype < MB_DTYPE_COUNT ? types[dtype].bytes : 0;
}

const char *mb_dtype_name(mb_dtype dtype)
{
    return (unsigned)dtype < MB_DTYPE_COUNT ? types[dtype].names[0] : "unknown";
}

mb_status mb_dtype_parse(const char *text, mb_dtype *out_dtype)
{
    const char *word = strncmp(text, "torch.", 6) == 0 ? text + 6 : text;
    for (int i = 0; i < MB_DTYPE_COUNT; i++) {
        for (int j = 0; j < 4 && types[i].names[j] != NULL; j++) {
            if (strcmp(word, types[i].names[j]) == 0) {
                *out_dtype = (mb_dtype)i;
                return MB_OK;
            }
        }
    }
    return mb_fail(MB_EUNSUPPORTED,
                   "'%s' is not a type of numbers we know (f32, f64, bf16, f16, i8, u8, ...)", text);
}

/* ---- 2. single values ---- */

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Below: no branches, so that the loops of section 3 become vector code. */
static inline uint32_t choose(bool condition, uint32_t yes, uint32_t no)
{
    uint32_t mask = 0u - (uint32_t)condition;
    return (yes & mask) | (no & ~mask);
}

static inline uint16_t bf16_bits(float value)
{
    uint32_t bits = bits_of(value), rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return (uint16_t)choose(is_nan, bits >> 16 | 0x40u, rounded); /* NaN stays NaN, quiet */
}

static inline float f16_value(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, size = bits & 0x7FFFu;
    uint32_t normal = (size << 13) + (112u << 23), tiny = bits_of((float)(int32_t)size * 0x1p-24f);
    uint32_t value = choose(size < 0x400u, tiny, normal); /* tiny: subnormal, exact */
    return float_of(sign | value | choose(size >= 0x7C00u, 0x7F800000u, 0));
}

static inline uint16_t f16_bits(float value)
{
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
    uint32_t normal = ((size + 0xFFFu + (size >> 13 & 1u)) >> 13) - (112u << 10);
    /* below 2^-14: adding 0.5 aligns and rounds to multiples of 2^-24 */
    uint32_t tiny = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    uint32_t half = choose(size < 0x38800000u, tiny, normal);
    half = choose(size >= 0x477FF000u, 0x7C00u, half); /* from 65520 on: infinity */
    half = choose(size > 0x7F800000u, 0x7E00u | (size >> 13 & 0x1FFu), half);
    return (uint16_t)(sign | half);
}

float mb_dtype_f32_from_bf16(uint16_t bits)
{
    return float_of((uint32_t)bits << 16);
}

uint16_t mb_dtype_bf16_from_f32(float value)
{
    return bf16_bits(value);
}

float mb_dtype_f32_from_f16(uint16_t bits)
{
    return f16_value(bits);
}

uint16_t mb_dtype_f16_from_f32(float value)
{
    return f16_bits(value);
}

/* ---- 3. arrays ---- */

mb_status mb_dtype_to_f32(mb_dtype from, const void *source, int64_t n, float *out)
{
    const uint16_t *halves = source;
    switch (from) {
    case MB_F32:
        if (n > 0) memcpy(out, source, (size_t)n * sizeof *out);
        return MB_OK;
    case MB_F64:
        for (int64_t i = 0; i < n; i++) out[i] = (float)((const double *)source)[i];
        return MB_OK;
    case MB_BF16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = float_of((uint32_t)halves[i] << 16);
        return MB_OK;
    case MB_F16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = f16_value(halves[i]);
        return MB_OK;
    default:
        return mb_fail(MB_EUNSUPPORTED, "%s numbers cannot be read as f32", mb_dtype_name(from));
    }
}

mb_status mb_dtype_from_f32(mb_dtype to, const float *source, int64_t n, void *out)
{
    uint16_t *halves = out;
    switch (to) {
    case MB_F32:
        if (n > 0) memcpy(out, source, (size_t)n * sizeof *source);
        return MB_OK;
    case MB_F64:
        for (int64_t i = 0; i < n; i++) ((double *)out)[i] = source[i];
        return MB_OK;
    case MB_BF16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) halves[i] = bf16_bits(source[i]);
        return MB_OK;
    case MB_F16:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) halves[i] = f16_bits(source[i]);
        return MB_OK;
    default:
        return mb_fail(MB_EUNSUPPORTED, "f32 numbers cannot be written as %s", mb_dtype_name(to));
    }
}
