/* normalize_grapheme: where a grapheme ends.
 *
 * 1. classes  2. breaks
 *
 * Source: Unicode Standard Annex 29, section 3.1.1, rules GB3 to GB13, as the crate unicode-segmentation has
 * them (classes by its tables where they matter, see normalize_tables.h).
 */
#include <utf8proc.h>

#include "text/normalize.h"
#include "text/normalize_tables.h"

/* 1. classes */

typedef enum grapheme_class {
    OTHER,
    CR,
    LF,
    CONTROL,
    JOINED, /* Extend, ZWJ, SpacingMark */
    PREPEND,
    REGIONAL,
    HANGUL_L,
    HANGUL_V,
    HANGUL_T,
    HANGUL_LV,
    HANGUL_LVT
} grapheme_class;

static grapheme_class hangul_class(uint32_t c)
{
    if (c >= 0xAC00 && c <= 0xD7A3) return (c - 0xAC00) % 28 == 0 ? HANGUL_LV : HANGUL_LVT;
    if ((c >= 0x1100 && c <= 0x115F) || (c >= 0xA960 && c <= 0xA97C)) return HANGUL_L;
    if ((c >= 0x1160 && c <= 0x11A7) || (c >= 0xD7B0 && c <= 0xD7C6)) return HANGUL_V;
    return (c >= 0x11A8 && c <= 0x11FF) || (c >= 0xD7CB && c <= 0xD7FB) ? HANGUL_T : OTHER;
}

static grapheme_class class_of(uint32_t c)
{
    if (c < 0x80) return c == '\r' ? CR : c == '\n' ? LF : c < 0x20 || c == 0x7F ? CONTROL : OTHER;
    if (c >= 0x3400 && c <= 0x9FFF) return OTHER;
    if (mb_normalize_table_has(&mb_normalize_joined, c)) return JOINED;
    if (mb_normalize_table_has(&mb_normalize_breaking, c)) return CONTROL;
    if (c >= 0x1F1E6 && c <= 0x1F1FF) return REGIONAL;
    if (mb_normalize_table_has(&mb_normalize_joining, c)) return PREPEND;
    return hangul_class(c);
}

static bool is_pictograph(uint32_t c)
{
    return utf8proc_get_property((utf8proc_int32_t)c)->boundclass ==
           UTF8PROC_BOUNDCLASS_EXTENDED_PICTOGRAPHIC;
}

static bool is_spacing(uint32_t c)
{
    return utf8proc_get_property((utf8proc_int32_t)c)->boundclass == UTF8PROC_BOUNDCLASS_SPACINGMARK;
}

/* 2. breaks */

/* What the grapheme so far would join by GB9c, GB11, GB12 and GB13. */
typedef struct grapheme {
    bool pictograph, joiner; /* a pictograph and marks; then a ZWJ */
    bool consonant, linker;  /* a consonant and marks; with a linker among them */
    bool odd_regional;       /* an odd number of regional indicators */
} grapheme;

static void step(grapheme *g, uint32_t c, grapheme_class class)
{
    if (class == JOINED && !is_spacing(c)) {
        g->joiner = g->pictograph && c == 0x200D;
        g->linker = g->consonant && (g->linker || mb_normalize_table_has(&mb_normalize_linkers, c));
        g->odd_regional = false;
        return;
    }
    *g = (grapheme){.pictograph = is_pictograph(c),
                    .consonant = c >= 0x900 && mb_normalize_table_has(&mb_normalize_consonants, c),
                    .odd_regional = class == REGIONAL && !g->odd_regional};
}

static bool is_joined(const grapheme *g, grapheme_class before, uint32_t c, grapheme_class class)
{
    if (before == CR) return class == LF;
    if (before == LF || before == CONTROL || class == CR || class == LF || class == CONTROL) return false;
    if (class == JOINED || before == PREPEND) return true;
    if (before == HANGUL_L) return class >= HANGUL_L && class != HANGUL_T;
    if (before == HANGUL_LV || before == HANGUL_V) return class == HANGUL_V || class == HANGUL_T;
    if (before == HANGUL_LVT || before == HANGUL_T) return class == HANGUL_T;
    if (g->odd_regional) return class == REGIONAL;
    return (g->joiner && is_pictograph(c)) ||
           (g->linker && mb_normalize_table_has(&mb_normalize_consonants, c));
}

size_t mb_normalize_grapheme_end(const char *bytes, size_t n, size_t at)
{
    uint32_t c;
    grapheme g = {.pictograph = false};
    size_t end = at + mb_normalize_decode(bytes + at, &c);
    if (c >= 0x3400 && c <= 0x9FFF && (end == n || (unsigned char)bytes[end] < 0x80)) return end;
    grapheme_class before = class_of(c);
    step(&g, c, before);
    while (end < n) {
        size_t length = mb_normalize_decode(bytes + end, &c);
        grapheme_class class = class_of(c);
        if (!is_joined(&g, before, c, class)) break;
        step(&g, c, class);
        before = class;
        end += length;
    }
    return end;
}
