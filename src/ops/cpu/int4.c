/* int4: which weights the products take, and which loops there are. */
#include "ops/cpu/int4.h"

#include <string.h>

bool mb_int4_is_fast(const mb_weight *w)
{
    enum { RUN = 8 }; /* columns in a word of 4 bits each */
    return (w->bits == 4 || w->bits == 8) && w->width > 0 && (w->group % RUN == 0 || w->group >= w->width);
}

mb_int4_multiply mb_int4_get(const char *isa)
{
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0) return mb_int4_get_avx512();
    if (strcmp(isa, "avx2") == 0) return mb_int4_get_avx2();
#endif
    (void)isa;
    return mb_int4_get_portable();
}
