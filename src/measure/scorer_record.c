/* scorer_record.c: see the header. Repeats are found in an open hash table of positions; equal hashes are
 * compared token by token.
 *
 * 1. routers   2. repeats
 */
#include "measure/scorer_record.h"

#include <math.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

/* ---- 1. routers ---- */

mb_scorer_router mb_scorer_record_router(const float *logits, int64_t tokens, int64_t gates, int64_t good)
{
    mb_scorer_router mean = {0};
    for (int64_t t = 0; t < tokens; t++) {
        const float *row = logits + t * gates;
        double top = row[0], sum = 0, good_sum = 0, weighted = 0, raw = 0;
        for (int64_t e = 1; e < gates; e++) top = row[e] > top ? row[e] : top;
        for (int64_t e = 0; e < gates; e++) {
            double below = row[e] - top, mass = exp(below);
            sum += mass;
            weighted += mass * below;
            if (e >= good) continue;
            good_sum += mass;
            raw += row[e];
        }
        mean.good_mass += good_sum / sum;
        mean.good_logits += raw;
        mean.entropy += log(sum) - weighted / sum;
    }
    mean.good_mass /= (double)tokens;
    mean.good_logits /= (double)tokens;
    mean.entropy /= (double)tokens;
    return mean;
}

/* ---- 2. repeats ---- */

/* Did the gram at `at` stand before? If not it is remembered. table holds positions + 1; its size is a power
 * of two. */
static int is_repeat(int64_t *table, int64_t size, const uint32_t *tokens, int64_t at)
{
    const size_t bytes = MB_SCORER_RECORD_GRAM * sizeof *tokens;
    uint64_t slot = mb_hash_u64(tokens + at, bytes, 0) & (uint64_t)(size - 1);
    while (table[slot] != 0) {
        if (memcmp(tokens + table[slot] - 1, tokens + at, bytes) == 0) return 1;
        slot = (slot + 1) & (uint64_t)(size - 1);
    }
    table[slot] = at + 1;
    return 0;
}

mb_status mb_scorer_record_repeats(const uint32_t *tokens, int64_t n, double *out_share)
{
    mb_status status = MB_OK;
    int64_t size = 16, covered = 0, covered_end = 0, *table = NULL;
    while (size < 2 * n) size *= 2;
    MB_NEW_ARRAY(table, size);
    for (int64_t at = 0; at + MB_SCORER_RECORD_GRAM <= n; at++) {
        if (!is_repeat(table, size, tokens, at)) continue;
        int64_t end = at + MB_SCORER_RECORD_GRAM;
        covered += end - (at > covered_end ? at : covered_end);
        covered_end = end;
    }
    *out_share = n > 0 ? (double)covered / (double)n : 0;
done:
    mb_free(table);
    return status;
}
