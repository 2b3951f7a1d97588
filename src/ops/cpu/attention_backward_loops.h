/* attention_backward_loops: gradients of one chunk of keys over all tiles of query rows that see it (part of
 * attention_loops.h).
 *
 * p = 2^(scale log2(e) s - lse log2(e)), s = q k, dp = do v, ds = p (dp - do.o) scale; then dv += p^T do,
 * dk += ds^T q, dq += ds k.
 *
 * 1. memory
 * 2. tiles
 * 3. scores to gradients
 * 4. products
 * 5. dq, in turns
 */

/* ---- 1. memory ---- */

enum { PLACES = ROWS * CHUNK };

/* Keys and values turned, keys as rows, sums of dk and dv; a tile's queries and gradients as first operands
 * (q, g) and as second ones (q_rows, g_rows); scores, gradients of scores. With PAIRS the last two also as
 * bf16: turned = pairs of rows, plain = pairs of keys. */
typedef struct backward_memory {
    float *keys, *values, *key_rows, *dk, *dv, *q, *g, *q_rows, *g_rows, *s, *ds, *p_turned, *ds_turned,
        *ds_plain, *dq, *rest;
} backward_memory;

static int64_t backward_scratch(int64_t width)
{
    const int64_t wide = padded(width), second = PAIR == 1 ? 0 : 2 * row_floats(ROWS, width) + 3 * PLACES / 2;
    return 2 * panel_floats(CHUNK, width) + row_floats(CHUNK, width) + 2 * CHUNK * wide +
           2 * ROWS * query_stride(width) + 2 * PLACES + ROWS * wide + second +
           most(turn_floats(width), 2 * wide);
}

static backward_memory backward_memory_at(float *scratch, int64_t width)
{
    const int64_t wide = padded(width), panel = panel_floats(CHUNK, width);
    const int64_t rows = PAIR == 1 ? 0 : row_floats(ROWS, width), half = PAIR == 1 ? 0 : PLACES / 2;
    backward_memory m = {.keys = scratch};
    m.values = m.keys + panel;
    m.key_rows = m.values + panel;
    m.dk = m.key_rows + row_floats(CHUNK, width);
    m.dv = m.dk + CHUNK * wide;
    m.q = m.dv + CHUNK * wide;
    m.g = m.q + ROWS * query_stride(width);
    m.s = m.g + ROWS * query_stride(width);
    m.ds = m.s + PLACES;
    m.dq = m.ds + PLACES;
    m.rest = m.dq + ROWS * wide;
    m.q_rows = m.q, m.g_rows = m.g, m.p_turned = m.s, m.ds_turned = m.ds_plain = m.ds;
    if (PAIR == 1) return m;
    m.q_rows = m.rest + most(turn_floats(width), 2 * wide);
    m.g_rows = m.q_rows + rows;
    m.p_turned = m.g_rows + rows;
    m.ds_turned = m.p_turned + half;
    m.ds_plain = m.ds_turned + half;
    return m;
}

/* ---- 2. tiles ---- */

static inline void zero_floats(float *s, int64_t from, int64_t to)
{
    if (from < to) memset(s + from, 0, (size_t)(to - from) * sizeof *s);
}

/* Tiles [first, end) have rows that see keys of chunk c. */
static void tiles_of(const mb_attention_head *head, int64_t c, int64_t *out_first, int64_t *out_end)
{
    const int64_t k0 = c * CHUNK, last = least(head->keys, k0 + CHUNK) - 1;
    const int64_t queries = head->window > 0 ? least(head->queries, last + head->window) : head->queries;
    *out_first = k0 * head->share / ROWS;
    *out_end = (queries * head->share + ROWS - 1) / ROWS;
}

/* do.o of the queries of chunk c: once, as every later chunk needs it too. */
static void deltas(const mb_attention_head *head, int64_t c, float *scratch)
{
    const int64_t dh = head->width, wide = padded(dh), end = least(head->queries, (c + 1) * CHUNK);
    float *o = scratch, *g = scratch + wide;
    zero_floats(scratch, 0, 2 * wide);
    for (int64_t r = c * CHUNK * head->share; r < end * head->share; r++) {
        const int64_t at = query_at(head, r);
        read_row(head->is_bf16, element(head, head->o, at), dh, o);
        read_row(head->is_bf16, element(head, head->d_o, at), dh, g);
        head->deltas[lse_at(head, r)] = dot_rows(o, g, wide);
    }
}

/* Queries and their gradients, and lse log2(e) of a tile's rows. */
static void tile_read(const query_tile *t, const backward_memory *m, float *out_deltas, float *out_lses)
{
    const mb_attention_head *head = t->head;
    const int64_t dh = head->width, wide = padded(dh), qs = query_stride(dh);
    const bool is_bf16 = head->is_bf16;
    for (int64_t r = 0; r < t->rows; r++) {
        const int64_t at = query_at(head, t->first + r);
        const void *query = element(head, head->q, at), *gradient = element(head, head->d_o, at);
        out_deltas[r] = head->deltas[lse_at(head, t->first + r)];
        out_lses[r] = head->lse[lse_at(head, t->first + r)] * log2_e;
        read_units(is_bf16, query, dh, qs, m->q + r * qs);
        read_units(is_bf16, gradient, dh, qs, m->g + r * qs);
        if (PAIR == 1 || (r % 2 == 0 && r + 1 < t->rows)) continue;
        const int64_t first = r / 2 * 2, before = query_at(head, t->first + first);
        pack_row(is_bf16, element(head, head->q, before), r > first ? query : NULL, dh,
                 m->q_rows + r / 2 * wide);
        pack_row(is_bf16, element(head, head->d_o, before), r > first ? gradient : NULL, dh,
                 m->g_rows + r / 2 * wide);
    }
}

/* ---- 3. scores to gradients ---- */

/* In place: s to p, and dp (in ds) to ds; columns [first, end), 0 where the row does not see the key. */
static void gradient_rows(const query_tile *t, int64_t k0, int64_t n, int64_t first, int64_t end,
                          const float *row_deltas, const float *lses, float *s, float *ds)
{
    const mb_vf factor = vf_set(t->head->scale * log2_e), scale = vf_set(t->head->scale);
    for (int64_t r = 0; r < t->rows; r++, s += CHUNK, ds += CHUNK) {
        int64_t low, high;
        seen(t, r, k0, n, &low, &high);
        if (low >= high) low = high = first;
        const int64_t from = low / W * W, to = rounded(high, W);
        const mb_vf shift = vf_set(-lses[r]), delta = vf_set(row_deltas[r]);
        blind_edges(s, low, high, -INFINITY);
        blind_edges(ds, low, high, 0);
        zero_floats(s, first, from);
        zero_floats(ds, first, from);
        for (int64_t i = from; i < to; i += W) {
            const mb_vf p = power2(vf_fma(vf_load(s + i), factor, shift));
            vf_store(s + i, p);
            vf_store(ds + i, p * (vf_load(ds + i) - delta) * scale);
        }
        zero_floats(s, to, end);
        zero_floats(ds, to, end);
    }
}

#if defined(MB_ATTENTION_PAIRS)
/* p and ds of two rows as bf16. */
static void pair_rows(const backward_memory *m, int64_t r, int64_t first, int64_t end)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const float *s = m->s + r * CHUNK, *ds = m->ds + r * CHUNK;
    float *p_turned = m->p_turned + r / 2 * CHUNK, *ds_turned = m->ds_turned + r / 2 * CHUNK;
    uint16_t *plain_row = (uint16_t *)m->ds_plain + r * CHUNK;
    for (int64_t i = first; i < end; i += W) {
        const __m512i p =
            (__m512i)_mm512_cvtne2ps_pbh((__m512)vf_load(s + CHUNK + i), (__m512)vf_load(s + i));
        const __m512i d =
            (__m512i)_mm512_cvtne2ps_pbh((__m512)vf_load(ds + CHUNK + i), (__m512)vf_load(ds + i));
        _mm512_storeu_si512(p_turned + i, _mm512_permutexvar_epi16(order, p));
        _mm512_storeu_si512(ds_turned + i, _mm512_permutexvar_epi16(order, d));
        _mm256_storeu_si256((__m256i *)(void *)(plain_row + i), _mm512_castsi512_si256(d));
        _mm256_storeu_si256((__m256i *)(void *)(plain_row + CHUNK + i), _mm512_extracti64x4_epi64(d, 1));
    }
}

static void pair_all(const backward_memory *m, int64_t rows, int64_t first, int64_t end)
{
    if (rows % 2 != 0) {
        zero_floats(m->s + rows * CHUNK, first, end);
        zero_floats(m->ds + rows * CHUNK, first, end);
    }
    for (int64_t r = 0; r < rows; r += 2) pair_rows(m, r, first, end);
}
#endif

/* ---- 4. products ---- */

/* One tile against the chunk at k0: sums of dk and dv, the tile's part of dq. */
static void tile_backward(const query_tile *t, int64_t k0, int64_t n, const backward_memory *m)
{
    const int64_t dh = t->head->width, wide = padded(dh), units = units_of(dh), qs = query_stride(dh);
    float row_deltas[ROWS], lses[ROWS];
    int64_t first, end, unused;
    seen(t, 0, k0, n, &first, &unused);
    seen(t, t->rows - 1, k0, n, &unused, &end);
    first = first / PANEL * PANEL;
    const int64_t columns = rounded(end, W) - first, pairs = (t->rows + PAIR - 1) / PAIR;
    const panels keys = {m->keys + first * units, PANEL, PANEL * units};
    const panels values = {m->values + first * units, PANEL, PANEL * units};
    tile_read(t, m, row_deltas, lses);
    product(t->rows, columns, units, (operand){m->q, qs, 1}, keys, false, m->s + first, CHUNK);
    product(t->rows, columns, units, (operand){m->g, qs, 1}, values, false, m->ds + first, CHUNK);
    gradient_rows(t, k0, n, first, rounded(end, W), row_deltas, lses, m->s, m->ds);
#if defined(MB_ATTENTION_PAIRS)
    pair_all(m, t->rows, first, rounded(end, W));
#endif
    product(end - first, wide, pairs, (operand){m->p_turned + first, 1, CHUNK}, plain(m->g_rows, wide), true,
            m->dv + first * wide, wide);
    product(end - first, wide, pairs, (operand){m->ds_turned + first, 1, CHUNK}, plain(m->q_rows, wide), true,
            m->dk + first * wide, wide);
    product(t->rows, wide, (end - first + PAIR - 1) / PAIR,
            (operand){m->ds_plain + first / PAIR, CHUNK / PAIR, 1},
            plain(m->key_rows + first / PAIR * wide, wide), false, m->dq, wide);
}

/* ---- 5. dq, in turns ---- */

/* A tile's part of dq: first to come, last to come. */
static void add_dq(const query_tile *t, float *part, bool is_first, bool is_last)
{
    const mb_attention_head *head = t->head;
    const int64_t dh = head->width, wide = padded(dh);
    float *sums = head->is_bf16 ? head->opt_dq_sums : head->dq;
    for (int64_t r = 0; r < t->rows; r++, part += wide) {
        const int64_t at = query_at(head, t->first + r);
        if (!is_first) {
            int64_t i = 0;
            for (; i + W <= dh; i += W) vf_store(part + i, vf_load(sums + at + i) + vf_load(part + i));
            if (i < dh) vf_store(part + i, vf_load_part(sums + at + i, dh - i) + vf_load(part + i));
        }
        if (is_last) {
            write_row(head->is_bf16, part, dh, (void *)(uintptr_t)element(head, head->dq, at));
        } else {
            memcpy(sums + at, part, (size_t)dh * sizeof *sums);
        }
    }
}

static void backward(const mb_attention_head *head, int64_t c, mb_attention_turn turn_of, float *scratch)
{
    const int64_t k0 = c * CHUNK, n = least(CHUNK, head->keys - k0), dh = head->width, wide = padded(dh);
    const int64_t at = k0 * head->kv_stride;
    const bool is_bf16 = head->is_bf16;
    int64_t first, end, before = 0, before_end = 0, next = INT64_MAX, unused;
    const backward_memory m = backward_memory_at(scratch, dh);
    pack_turned(is_bf16, element(head, head->k, at), n, dh, head->kv_stride, m.keys, m.rest);
    pack_turned(is_bf16, element(head, head->v, at), n, dh, head->kv_stride, m.values, m.rest);
    pack_rows(is_bf16, element(head, head->k, at), n, dh, head->kv_stride, m.key_rows);
    zero_floats(m.dk, 0, n * wide);
    zero_floats(m.dv, 0, n * wide);
    tiles_of(head, c, &first, &end);
    if (c > 0) tiles_of(head, c - 1, &before, &before_end);
    if (k0 + n < head->keys) tiles_of(head, c + 1, &next, &unused);
    for (int64_t i = first; i < end; i++) {
        query_tile t;
        const int64_t rows = head->queries * head->share;
        tile_set(&t, head, i * ROWS, least(ROWS, rows - i * ROWS));
        tile_backward(&t, k0, n, &m);
        while (i < before_end &&
               atomic_load_explicit(turn_of.opt_before, memory_order_acquire) <= (int)(i - before))
            sched_yield();
        add_dq(&t, m.dq, i >= before_end, i < next);
        atomic_store_explicit(turn_of.done, (int)(i - first + 1), memory_order_release);
    }
    for (int64_t j = 0; j < n; j++) {
        const int64_t row = at + j * head->kv_stride;
        write_row(is_bf16, m.dk + j * wide, dh, (void *)(uintptr_t)element(head, head->dk, row));
        write_row(is_bf16, m.dv + j * wide, dh, (void *)(uintptr_t)element(head, head->dv, row));
    }
}
