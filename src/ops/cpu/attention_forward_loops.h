/* attention_forward_loops: one tile of query rows against blocks of keys (part of attention_loops.h).
 *
 * Scores are kept times scale * log2(e), so that probabilities are powers of two.
 *
 * 1. memory
 * 2. what a row sees
 * 3. scores to probabilities
 * 4. blocks
 * 5. tiles
 */

/* ---- 1. memory ---- */

static int64_t block_floats(int64_t keys, int64_t width)
{
    return panel_floats(keys, width) + row_floats(keys, width);
}

static int64_t packed_floats(int64_t keys, int64_t width)
{
    return keys / BLOCK * block_floats(BLOCK, width) + block_floats(keys % BLOCK, width);
}

/* What some keys give to the rows of a tile: sums of probabilities times values, relative to the row's
 * largest score, which is in `tops`; sums of probabilities. */
typedef struct partial {
    float *o, *tops, *sums; /* [rows][padded(width)], [rows], [rows] */
} partial;

static int64_t partial_floats(int64_t rows, int64_t width)
{
    return rows * padded(width) + 2 * rounded(rows, W);
}

static partial partial_at(float *floats, int64_t rows, int64_t width)
{
    float *tops = floats + rows * padded(width);
    return (partial){floats, tops, tops + rounded(rows, W)};
}

enum { SCORES = ROWS * BLOCK };

static int64_t forward_scratch(int64_t width)
{
    return ROWS * query_stride(width) + SCORES * PAIR + 2 * partial_floats(ROWS, width) +
           block_floats(BLOCK, width) + turn_floats(width);
}

typedef struct forward_memory {
    float *q, *s, *p, *done, *part, *packed, *turn;
} forward_memory;

static forward_memory forward_memory_at(float *scratch, int64_t width)
{
    forward_memory m = {.q = scratch};
    m.s = m.q + ROWS * query_stride(width);
    m.p = PAIR == 1 ? m.s : m.s + SCORES; /* f32: in place of the scores */
    m.done = m.s + SCORES * PAIR;
    m.part = m.done + partial_floats(ROWS, width);
    m.packed = m.part + partial_floats(ROWS, width);
    m.turn = m.packed + block_floats(BLOCK, width);
    return m;
}

static void pack_block(const mb_attention_head *head, int64_t b, float *out, float *scratch)
{
    const int64_t first = b * BLOCK, n = least(BLOCK, head->keys - first), at = first * head->kv_stride;
    pack_turned(head->is_bf16, element(head, head->k, at), n, head->width, head->kv_stride, out, scratch);
    pack_rows(head->is_bf16, element(head, head->v, at), n, head->width, head->kv_stride,
              out + panel_floats(n, head->width));
}

/* ---- 2. what a row sees ---- */

/* Query rows first..first+rows; row r sees keys low[r]..high[r], both never falling. */
typedef struct query_tile {
    const mb_attention_head *head;
    int64_t first, rows;
    int64_t low[ROWS], high[ROWS];
} query_tile;

static void tile_set(query_tile *t, const mb_attention_head *head, int64_t first, int64_t rows)
{
    t->head = head, t->first = first, t->rows = rows;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = head->keys - head->queries + (first + r) / head->share;
        t->high[r] = head->is_bidirectional ? head->keys : at + 1;
        t->low[r] = head->window > 0 ? most(0, at + 1 - head->window) : 0;
    }
}

/* The part of keys k0..k0+n that row r sees, from k0. */
static inline void seen(const query_tile *t, int64_t r, int64_t k0, int64_t n, int64_t *out_low,
                        int64_t *out_high)
{
    *out_low = most(0, t->low[r] - k0);
    *out_high = least(n, t->high[r] - k0);
}

/* ---- 3. scores to probabilities ---- */

/* Lanes of s[i..i+W] outside [low, high) become `value`. */
static inline void blind(float *s, int64_t i, int64_t low, int64_t high, float value)
{
    mb_vi lane = {0};
    for (int j = 0; j < W; j++) lane[j] = j;
    const mb_vi at = lane + (int32_t)i, mask = (at >= (int32_t)low) & (at < (int32_t)high);
    vf_store(s + i, vf_choose(mask, vf_load(s + i), vf_set(value)));
}

static inline void blind_edges(float *s, int64_t low, int64_t high, float value)
{
    if (low % W != 0) blind(s, low / W * W, low, high, value);
    if (high % W != 0) blind(s, high / W * W, low, high, value);
}

static inline void zero_units(float *p, int64_t from, int64_t to)
{
    if (from < to) memset(p + from / PAIR, 0, (size_t)((to - from) / PAIR) * sizeof *p);
}

static inline float highest(const float *s, int64_t from, int64_t to)
{
    mb_vf a = vf_load(s + from), b = a;
    int64_t i = from + W;
    for (; i + 2 * W <= to; i += 2 * W) a = vf_max(a, vf_load(s + i)), b = vf_max(b, vf_load(s + i + W));
    if (i < to) a = vf_max(a, vf_load(s + i));
    return vf_highest(vf_max(a, b));
}

static inline void store_units(float *p, int64_t i, mb_vf x)
{
#if defined(MB_ATTENTION_PAIRS)
    vh_store((uint16_t *)p + i, (mb_vh)_mm512_cvtneps_pbh((__m512)x));
#else
    vf_store(p + i, x);
#endif
}

/* p = 2^(factor s - top) for i in [from, to); returns the sum. */
static inline float exponentials(const float *s, int64_t from, int64_t to, float factor, float top, float *p)
{
    mb_vf a = vf_set(0), b = a, f = vf_set(factor), shift = vf_set(-top);
    int64_t i = from;
    for (; i + 2 * W <= to; i += 2 * W) {
        const mb_vf x = power2(vf_fma(vf_load(s + i), f, shift));
        const mb_vf y = power2(vf_fma(vf_load(s + i + W), f, shift));
        store_units(p, i, x);
        store_units(p, i + W, y);
        a = a + x, b = b + y;
    }
    if (i < to) {
        const mb_vf x = power2(vf_fma(vf_load(s + i), f, shift));
        store_units(p, i, x);
        a = a + x;
    }
    return vf_sum(a + b);
}

/* Columns [first, end) of the scores of keys k0.. to probabilities, 0 where unseen. */
static void softmax_rows(const query_tile *t, int64_t k0, int64_t n, int64_t first, int64_t end, float *s,
                         float *p, partial *out)
{
    const float factor = t->head->scale * log2_e;
    for (int64_t r = 0; r < t->rows; r++, s += BLOCK, p += BLOCK / PAIR) {
        int64_t low, high;
        seen(t, r, k0, n, &low, &high);
        out->tops[r] = -INFINITY, out->sums[r] = 0;
        if (low >= high) {
            zero_units(p, first, end);
            continue;
        }
        const int64_t from = low / W * W, to = rounded(high, W);
        blind_edges(s, low, high, -INFINITY);
        out->tops[r] = highest(s, from, to) * factor;
        out->sums[r] = exponentials(s, from, to, factor, out->tops[r], p);
        zero_units(p, first, from);
        zero_units(p, to, end);
    }
}

/* ---- 4. blocks ---- */

/* What block b gives to the rows. */
static void block_partial(const query_tile *t, int64_t b, const float *packed, const forward_memory *m,
                          partial out)
{
    const mb_attention_head *head = t->head;
    const int64_t k0 = b * BLOCK, n = least(BLOCK, head->keys - k0), dh = head->width, wide = padded(dh);
    int64_t first, end, unused;
    seen(t, 0, k0, n, &first, &unused);
    seen(t, t->rows - 1, k0, n, &unused, &end);
    first = first / PANEL * PANEL;
    const operand q = {m->q, query_stride(dh), 1}, p = {m->p + first / PAIR, BLOCK / PAIR, 1};
    const panels keys = {packed + first * units_of(dh), PANEL, PANEL * units_of(dh)};
    const float *values = packed + panel_floats(n, dh) + first / PAIR * wide;
    product(t->rows, rounded(end, W) - first, units_of(dh), q, keys, false, m->s + first, BLOCK);
    softmax_rows(t, k0, n, first, rounded(end, W), m->s, m->p, &out);
    product(t->rows, wide, (end - first + PAIR - 1) / PAIR, p, plain(values, wide), false, out.o, wide);
}

/* done += the partial of block b, row by row: a row's first block is copied. */
static void fold(const query_tile *t, int64_t b, partial part, partial done)
{
    const int64_t wide = padded(t->head->width);
    float keep[ROWS], add[ROWS];
    for (int64_t i = 0; i < t->rows; i += W) {
        const mb_vf x = vf_load(done.tops + i), y = vf_load(part.tops + i), top = vf_max(x, y);
        vf_store(keep + i, power2(x - top));
        vf_store(add + i, power2(y - top));
    }
    for (int64_t r = 0; r < t->rows; r++) {
        float *o = done.o + r * wide;
        const float *from = part.o + r * wide;
        if (b < t->low[r] / BLOCK || b * BLOCK >= t->high[r]) continue;
        if (b == t->low[r] / BLOCK) {
            memcpy(o, from, (size_t)wide * sizeof *o);
            done.tops[r] = part.tops[r], done.sums[r] = part.sums[r];
            continue;
        }
        const mb_vf x = vf_set(keep[r]), y = vf_set(add[r]);
        for (int64_t i = 0; i < wide; i += W)
            vf_store(o + i, vf_fma(vf_load(o + i), x, vf_load(from + i) * y));
        done.sums[r] = done.sums[r] * keep[r] + part.sums[r] * add[r];
        done.tops[r] = part.tops[r] > done.tops[r] ? part.tops[r] : done.tops[r];
    }
}

static void finish(const query_tile *t, partial done)
{
    const mb_attention_head *head = t->head;
    const int64_t wide = padded(head->width);
    for (int64_t r = 0; r < t->rows; r++) {
        float *o = done.o + r * wide;
        const mb_vf x = vf_set(1.0f / done.sums[r]);
        for (int64_t i = 0; i < wide; i += W) vf_store(o + i, vf_load(o + i) * x);
        const int64_t at = query_at(head, t->first + r);
        write_row(head->is_bf16, o, head->width, (void *)(uintptr_t)element(head, head->o, at));
        head->lse[lse_at(head, t->first + r)] = done.tops[r] * ln_2 + logf(done.sums[r]);
    }
}

/* ---- 5. tiles ---- */

static void forward_tile(const query_tile *t, int64_t block, int64_t blocks_end, const float *opt_packed,
                         float *opt_partials, const forward_memory *m)
{
    const mb_attention_head *head = t->head;
    const int64_t dh = head->width, own = partial_floats(t->rows, dh);
    const partial done = partial_at(m->done, t->rows, dh), part = partial_at(m->part, t->rows, dh);
    for (int64_t r = 0; r < t->rows; r++) {
        read_units(head->is_bf16, element(head, head->q, query_at(head, t->first + r)), dh, query_stride(dh),
                   m->q + r * query_stride(dh));
    }
    for (int64_t b = block; b < blocks_end; b++) {
        const float *packed = opt_packed != NULL ? opt_packed + b * block_floats(BLOCK, dh) : m->packed;
        if (opt_packed == NULL) pack_block(head, b, m->packed, m->turn);
        if (opt_partials != NULL) {
            block_partial(t, b, packed, m, partial_at(opt_partials + (b - block) * own, t->rows, dh));
        } else {
            block_partial(t, b, packed, m, b == block ? done : part);
            if (b > block) fold(t, b, part, done);
        }
    }
    if (opt_partials == NULL) finish(t, done);
}

static void forward(const mb_attention_head *head, int64_t first, int64_t last, int64_t block,
                    int64_t blocks_end, const float *opt_packed, float *opt_partials, float *scratch)
{
    const forward_memory m = forward_memory_at(scratch, head->width);
    for (; first < last; first += ROWS) {
        query_tile t;
        int64_t from, to;
        const int64_t end = least(last, first + ROWS);
        tile_set(&t, head, first, end - first);
        mb_attention_blocks(&MB_ATTENTION_TABLE, head, first, end, &from, &to);
        forward_tile(&t, most(from, block), least(to, blocks_end), opt_packed, opt_partials, &m);
    }
}

static void merge(const mb_attention_head *head, int64_t first, int64_t last, const float *partials,
                  float *scratch)
{
    const int64_t dh = head->width, rows = last - first, own = partial_floats(rows, dh);
    const partial done = partial_at(scratch, rows, dh);
    query_tile t;
    int64_t from, to;
    tile_set(&t, head, first, rows);
    mb_attention_blocks(&MB_ATTENTION_TABLE, head, first, last, &from, &to);
    memcpy(scratch, partials, (size_t)own * sizeof *scratch);
    for (int64_t b = from + 1; b < to; b++) {
        float *floats = (float *)(uintptr_t)partials + (b - from) * own;
        fold(&t, b, partial_at(floats, rows, dh), done);
    }
    finish(&t, done);
}
