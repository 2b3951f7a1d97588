/* exact_sum.c: a long fixed-point number.
 *
 * Word w counts units of 2^(32 w - 1074). A double is an integer of 53 bits times 2^(e - 1074), e >= 0, so it
 * touches at most three words.
 */
#include "choose/exact_sum.h"

#include <math.h>

void mb_exact_sum_add(mb_exact_sum *sum, double value)
{
    int exponent;
    double fraction = frexp(fabs(value), &exponent); /* value = fraction 2^exponent, fraction in [1/2, 1) */
    if (fraction == 0) return;
    uint64_t mantissa = (uint64_t)ldexp(fraction, 53);
    int shift = exponent - 53 + 1074;
    if (shift < 0) { /* subnormal: the lowest bits are zero */
        mantissa >>= -shift;
        shift = 0;
    }
    int word = shift / 32, bit = shift % 32;
    int64_t sign = value < 0 ? -1 : 1;
    uint64_t low = (mantissa & 0xffffffffu) << bit, high = (mantissa >> 32) << bit;
    sum->word[word] += sign * (int64_t)(low & 0xffffffffu);
    sum->word[word + 1] += sign * (int64_t)((low >> 32) + (high & 0xffffffffu));
    sum->word[word + 2] += sign * (int64_t)(high >> 32);
}

/* Every word into [0, 2^32); returns what is left above: 0, or negative for a negative sum. */
static int64_t carry_up(int64_t *word)
{
    int64_t carry = 0;
    for (int i = 0; i < MB_EXACT_SUM_WORDS; i++) {
        int64_t value = word[i] + carry;
        carry = value >> 32; /* rounds down */
        word[i] = value - carry * (INT64_C(1) << 32);
    }
    return carry;
}

double mb_exact_sum_get(const mb_exact_sum *sum)
{
    mb_exact_sum copy = *sum;
    double total = 0, sign = 1;
    if (carry_up(copy.word) < 0) {
        sign = -1;
        for (int i = 0; i < MB_EXACT_SUM_WORDS; i++) copy.word[i] = -sum->word[i];
        carry_up(copy.word);
    }
    for (int i = MB_EXACT_SUM_WORDS - 1; i >= 0; i--) total += ldexp((double)copy.word[i], 32 * i - 1074);
    return sign * total;
}
