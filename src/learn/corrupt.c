/* corrupt.c: damaged copies.
 *
 * Draw d of a record has the index sample * 2^22 + d; the first draws choose kind and strength, the others
 * follow the tokens.
 *
 * 1. draws   2. the four kinds   3. choice
 */
#include "learn/corrupt.h"

#include <stdbool.h>
#include <string.h>

#include "base/rng.h"

/* ---- 1. draws ---- */

enum { DRAW_KIND, DRAW_STRENGTH, DRAW_POOL, DRAW_TOKENS };

static uint64_t draw_index(const mb_corrupt_source *source, int64_t draw)
{
    return (uint64_t)source->sample << 22 | (uint64_t)(draw & ((1 << 22) - 1));
}

static double draw_uniform(const mb_corrupt_source *source, int64_t draw)
{
    return mb_rng_uniform(source->seed, MB_RNG_CORRUPT, (uint32_t)source->epoch, draw_index(source, draw));
}

static int64_t draw_below(const mb_corrupt_source *source, int64_t draw, int64_t n)
{
    return (int64_t)mb_rng_below(source->seed, MB_RNG_CORRUPT, (uint32_t)source->epoch,
                                 draw_index(source, draw), (uint64_t)n);
}

static double draw_strength(const mb_corrupt_source *source)
{
    return 0.15 + 0.35 * draw_uniform(source, DRAW_STRENGTH);
}

/* ---- 2. the four kinds ---- */

static int64_t permute(const mb_corrupt_source *source, const int32_t *tokens, int64_t n, int32_t *out)
{
    memcpy(out, tokens, (size_t)n * sizeof *out);
    for (int64_t first = 1; first < n;) {
        int64_t width = 2 + draw_below(source, DRAW_TOKENS + 2 * first, 5);
        if (width > n - first) width = n - first;
        for (int64_t i = width - 1; i > 0; i--) {
            int64_t j = draw_below(source, DRAW_TOKENS + 2 * (first + i) + 1, i + 1);
            int32_t kept = out[first + i];
            out[first + i] = out[first + j];
            out[first + j] = kept;
        }
        first += width;
    }
    return n;
}

static int64_t replace(const mb_corrupt_source *source, const int32_t *tokens, int64_t n, int32_t *out)
{
    double strength = draw_strength(source);
    bool from_vocab = draw_uniform(source, DRAW_POOL) < 0.5;
    out[0] = tokens[0];
    for (int64_t i = 1; i < n; i++) {
        out[i] = tokens[i];
        if (draw_uniform(source, DRAW_TOKENS + 2 * i) >= strength) continue;
        int64_t draw = DRAW_TOKENS + 2 * i + 1;
        out[i] = from_vocab ? (int32_t)draw_below(source, draw, source->vocab)
                            : source->pool[draw_below(source, draw, source->pool_count)];
    }
    return n;
}

static int64_t drop(const mb_corrupt_source *source, const int32_t *tokens, int64_t n, int32_t *out)
{
    double strength = draw_strength(source);
    int64_t count = 1;
    out[0] = tokens[0];
    for (int64_t i = 1; i < n; i++) {
        if (draw_uniform(source, DRAW_TOKENS + i) >= strength) out[count++] = tokens[i];
    }
    return count;
}

static int64_t repeat(const mb_corrupt_source *source, const int32_t *tokens, int64_t n, int32_t *out)
{
    memcpy(out, tokens, (size_t)n * sizeof *out);
    if (n < 4) return n;
    int64_t longest = n / 2, shortest = longest < 4 ? longest : 4;
    int64_t span = shortest + draw_below(source, DRAW_TOKENS, longest - shortest + 1);
    int64_t first = 1 + draw_below(source, DRAW_TOKENS + 1, n - 2 * span + 1 > 0 ? n - 2 * span + 1 : 1);
    int64_t times = 1 + draw_below(source, DRAW_TOKENS + 2, 4);
    for (int64_t i = 0; i < times * span && first + span + i < n; i++)
        out[first + span + i] = tokens[first + i % span];
    return n;
}

/* ---- 3. choice ---- */

mb_corrupt_kind mb_corrupt_kind_get(const mb_corrupt_source *source)
{
    double u = draw_uniform(source, DRAW_KIND);
    if (u < 0.35) return MB_CORRUPT_PERMUTE;
    if (u < 0.60) return MB_CORRUPT_REPLACE;
    return u < 0.80 ? MB_CORRUPT_DELETE : MB_CORRUPT_REPEAT;
}

int64_t mb_corrupt_copy(const mb_corrupt_source *source, const int32_t *tokens, int64_t n, int32_t *out)
{
    switch (mb_corrupt_kind_get(source)) {
    case MB_CORRUPT_PERMUTE:
        return permute(source, tokens, n, out);
    case MB_CORRUPT_REPLACE:
        return replace(source, tokens, n, out);
    case MB_CORRUPT_DELETE:
        return drop(source, tokens, n, out);
    default:
        return repeat(source, tokens, n, out);
    }
}
