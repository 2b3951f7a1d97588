/* attention_body: attention of one head of one segment, in blocks of queries and keys (part of
 * kernels_body.h).
 *
 * Sources: Dao et al. 2022, "FlashAttention", algorithms 1 and 4 (running maximum, recomputed probabilities);
 * Dao 2023, section 3.1 (queries outside, keys inside). All products go through one routine, tile(): c[m,n]
 * (+)= a[m,k] b[k,n], sums running over k in order in one register per element, so that the bits of an
 * element do not depend on how m and n are cut. Keys and values come transposed, in panels of PANEL columns.
 * Blocks of keys begin at multiples of KEYS from the segment's first row, so a row's bits depend on its
 * segment's rows only.
 *
 * 1. products
 * 2. forward
 * 3. backward
 */

#if defined(__AVX512F__)
enum { NV = 4, MR4 = 6, MR3 = 8, MR2 = 12, MR1 = 12 };
#else
enum { NV = 2, MR4 = 1, MR3 = 1, MR2 = 6, MR1 = 6 };
#endif
enum { PANEL = NV * W, QUERIES = 24, KEYS = 256, SCRATCH_FLOATS = 2 * QUERIES * KEYS + 2 * QUERIES };

/* ---- 1. products ---- */

/* A matrix [k,n] whose columns come in panels of PANEL, `panel_stride` floats apart; its rows are `stride`
 * apart. */
typedef struct panels {
    const float *data;
    int64_t stride, panel_stride;
} panels;

typedef struct operand {
    const float *data;
    int64_t row_stride, column_stride;
} operand;

/* mr rows times nv vectors; mr and nv are constants after inlining. The last vector has `last` columns when
 * is_partial. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const bool is_partial,
                                                       int64_t last, int64_t k, const float *a,
                                                       int64_t row_stride, int64_t column_stride,
                                                       const float *b, int64_t ldb, bool accumulate, float *c,
                                                       int64_t ldc)
{
    mb_vf sum[12][4];
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            bool part = is_partial && j == nv - 1;
            const float *at = c + i * ldc + j * W;
            sum[i][j] = !accumulate ? vf_set(0) : part ? vf_load_part(at, last) : vf_load(at);
        }
    }
    for (int64_t p = 0; p < k; p++, a += column_stride, b += ldb) {
        mb_vf row[4];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            row[j] = is_partial && j == nv - 1 ? vf_load_part(b + j * W, last) : vf_load(b + j * W);
        }
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++) {
            mb_vf x = vf_set(a[i * row_stride]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] = vf_fma(x, row[j], sum[i][j]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            float *at = c + i * ldc + j * W;
            if (is_partial && j == nv - 1) {
                vf_store_part(at, sum[i][j], last);
            } else {
                vf_store(at, sum[i][j]);
            }
        }
    }
}

/* All m rows times nv vectors, mr rows at a time, then 4, 2 and 1. */
static inline __attribute__((always_inline)) void column(const int mr, const int nv, const bool is_partial,
                                                         int64_t last, int64_t m, int64_t k, operand a,
                                                         const float *b, int64_t ldb, bool accumulate,
                                                         float *c, int64_t ldc)
{
    const float *x = a.data;
    int64_t rs = a.row_stride, cs = a.column_stride, i = 0;
    for (; i + mr <= m; i += mr) {
        tile(mr, nv, is_partial, last, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    }
    for (; mr > 4 && i + 4 <= m; i += 4) {
        tile(4, nv, is_partial, last, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    }
    for (; mr > 2 && i + 2 <= m; i += 2) {
        tile(2, nv, is_partial, last, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    }
    for (; mr > 1 && i < m; i++) {
        tile(1, nv, is_partial, last, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    }
}

/* c[m,n] = (accumulate ? c : 0) + a[m,k] b[k,n] */
static void product(int64_t m, int64_t n, int64_t k, operand a, panels b, bool accumulate, float *c,
                    int64_t ldc)
{
    for (int64_t j = 0; j < n; j += PANEL, b.data += b.panel_stride) {
        int64_t columns = n - j < PANEL ? n - j : PANEL, vectors = (columns + W - 1) / W;
        int64_t last = columns - (vectors - 1) * W;
        bool part = last < W;
        const float *x = b.data;
        float *y = c + j;
        if (vectors == 1 && !part) column(MR1, 1, false, W, m, k, a, x, b.stride, accumulate, y, ldc);
        if (vectors == 1 && part) column(MR1, 1, true, last, m, k, a, x, b.stride, accumulate, y, ldc);
        if (vectors == 2 && !part) column(MR2, 2, false, W, m, k, a, x, b.stride, accumulate, y, ldc);
        if (vectors == 2 && part) column(MR2, 2, true, last, m, k, a, x, b.stride, accumulate, y, ldc);
#if defined(__AVX512F__)
        if (vectors == 3 && !part) column(MR3, 3, false, W, m, k, a, x, b.stride, accumulate, y, ldc);
        if (vectors == 3 && part) column(MR3, 3, true, last, m, k, a, x, b.stride, accumulate, y, ldc);
        if (vectors == 4 && !part) column(MR4, 4, false, W, m, k, a, x, b.stride, accumulate, y, ldc);
        if (vectors == 4 && part) column(MR4, 4, true, last, m, k, a, x, b.stride, accumulate, y, ldc);
#endif
    }
}

/* Four rows of four elements to four columns. */
typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_index __attribute__((vector_size(16)));

static inline void turn_quad(const float *in, int64_t stride, float *out)
{
    quad a, b, c, d;
    memcpy(&a, in, sizeof a), memcpy(&b, in + stride, sizeof b);
    memcpy(&c, in + 2 * stride, sizeof c), memcpy(&d, in + 3 * stride, sizeof d);
    quad ab = __builtin_shuffle(a, b, (quad_index){0, 4, 1, 5}),
         AB = __builtin_shuffle(a, b, (quad_index){2, 6, 3, 7});
    quad cd = __builtin_shuffle(c, d, (quad_index){0, 4, 1, 5}),
         CD = __builtin_shuffle(c, d, (quad_index){2, 6, 3, 7});
    quad turned[4] = {__builtin_shuffle(ab, cd, (quad_index){0, 1, 4, 5}),
                      __builtin_shuffle(ab, cd, (quad_index){2, 3, 6, 7}),
                      __builtin_shuffle(AB, CD, (quad_index){0, 1, 4, 5}),
                      __builtin_shuffle(AB, CD, (quad_index){2, 3, 6, 7})};
    for (int64_t i = 0; i < 4; i++) memcpy(out + i * PANEL, &turned[i], sizeof turned[i]);
}

/* Rows [rows, width] as panels of the transposed matrix. */
static void pack_panels(const float *k, int64_t rows, int64_t width, int64_t stride, float *out_panels)
{
    for (int64_t first = 0; first < rows; first += PANEL, out_panels += PANEL * width) {
        int64_t columns = rows - first < PANEL ? rows - first : PANEL, j = 0;
        for (; j + 4 <= columns; j += 4) {
            const float *row = k + (first + j) * stride;
            int64_t i = 0;
            for (; i + 4 <= width; i += 4) turn_quad(row + i, stride, out_panels + i * PANEL + j);
            for (; i < width; i++) {
                for (int64_t m = 0; m < 4; m++) out_panels[i * PANEL + j + m] = row[m * stride + i];
            }
        }
        for (; j < columns; j++) {
            for (int64_t i = 0; i < width; i++) out_panels[i * PANEL + j] = k[(first + j) * stride + i];
        }
        if (columns == PANEL) continue;
        for (int64_t i = 0; i < width; i++) {
            memset(out_panels + i * PANEL + columns, 0, (size_t)(PANEL - columns) * sizeof(float));
        }
    }
}

/* A matrix [k, width] as it lies: panels side by side. */
static inline panels plain(const float *data, int64_t stride)
{
    return (panels){data, stride, PANEL};
}

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- 2. forward ---- */

/* The keys of one block that query t sees: columns [low, high) of the block that begins at key k0 and has n
 * keys. */
static inline void seen(const mb_head *head, int64_t t, int64_t k0, int64_t n, int64_t *out_low,
                        int64_t *out_high)
{
    int64_t first = head->window > 0 ? most(0, t - head->window + 1) : 0;
    *out_low = least(n, most(0, first - k0));
    *out_high = most(*out_low, least(n, t + 1 - k0));
}

/* Scores i..i+W of a row, -inf where the query does not see the key. NaN stays NaN. */
static const float lane_limits[3 * W] = {
    [0 ... W - 1] = -INFINITY, [W... 2 * W - 1] = INFINITY, [2 * W... 3 * W - 1] = -INFINITY};

static inline mb_vf visible(const float *s, int64_t i, int64_t low, int64_t high)
{
    mb_vf x = vf_load(s + i);
    if (i < low) x = vf_min(vf_load(lane_limits + W - (low - i)), x);
    if (i + W > high) x = vf_min(vf_load(lane_limits + 2 * W - (high - i)), x);
    return x;
}

static inline void zero_vectors(float *s, int64_t from, int64_t to)
{
    for (int64_t i = from; i < to; i += W) vf_store(s + i, vf_set(0));
}

/* One row of scores to probabilities exp(scale s - top), 0 where unseen; returns their sum. */
static inline float row_exponentials(float *s, int64_t low, int64_t high, int64_t width, float factor,
                                     float top)
{
    int64_t from = low / W * W, to = (high + W - 1) / W * W;
    mb_vf sum = vf_set(0), f = vf_set(factor), shift = vf_set(-top);
    zero_vectors(s, 0, from);
    for (int64_t i = from; i < to; i += W) {
        mb_vf p = vf_exp(vf_fma(visible(s, i, low, high), f, shift));
        vf_store(s + i, p);
        sum = sum + p;
    }
    zero_vectors(s, to, width);
    return vf_sum(sum);
}

static inline float row_highest(const float *s, int64_t low, int64_t high)
{
    mb_vf top = vf_set(-INFINITY);
    for (int64_t i = low / W * W; i < high; i += W) top = vf_max(top, visible(s, i, low, high));
    return vf_highest(top);
}

/* Rows of one block of scores to probabilities; tops and sums of the rows are brought up to date, o of a row
 * whose top moved is scaled to the new one. */
static void softmax_rows(const mb_head *head, int64_t q0, int64_t rows, int64_t k0, int64_t n, int64_t width,
                         bool is_first, float *s, float *tops, float *sums)
{
    for (int64_t r = 0; r < rows; r++, s += KEYS) {
        int64_t low, high;
        float top = -INFINITY, kept = 0;
        seen(head, q0 + r, k0, n, &low, &high);
        if (low < high) top = row_highest(s, low, high) * head->scale;
        if (!is_first) {
            top = top > tops[r] ? top : tops[r];
            kept = tops[r] == top ? 1.0f : expf(tops[r] - top);
            float *o = head->o + (q0 + r) * head->stride;
            if (kept != 1.0f) scale(kept, o, head->width, o);
        } else {
            sums[r] = 0;
        }
        float sum = 0;
        if (low < high) {
            sum = row_exponentials(s, low, high, width, head->scale, top);
        } else {
            zero_vectors(s, 0, width);
        }
        sums[r] = sums[r] * kept + sum;
        tops[r] = top;
    }
}

static void attention(const mb_head *head, int64_t first, int64_t last, const float *key_panels,
                      float *scratch)
{
    float *s = scratch, *tops = scratch + QUERIES * KEYS, *sums = tops + QUERIES;
    int64_t dh = head->width;
    for (int64_t q0 = first; q0 < last; q0 += QUERIES) {
        int64_t rows = least(QUERIES, last - q0), end = q0 + rows;
        int64_t begin = head->window > 0 ? most(0, q0 - head->window + 1) / KEYS * KEYS : 0;
        for (int64_t k0 = begin; k0 < end; k0 += KEYS) {
            int64_t n = least(KEYS, end - k0), width = (n + W - 1) / W * W;
            operand q = {head->q + q0 * head->stride, head->stride, 1}, p = {s, KEYS, 1};
            panels keys = {key_panels + k0 * dh, PANEL, PANEL * dh};
            product(rows, width, dh, q, keys, false, s, KEYS);
            softmax_rows(head, q0, rows, k0, n, width, k0 == begin, s, tops, sums);
            product(rows, dh, n, p, plain(head->v + k0 * head->kv_stride, head->kv_stride), k0 > begin,
                    head->o + q0 * head->stride, head->stride);
        }
        for (int64_t r = 0; r < rows; r++) {
            float *o = head->o + (q0 + r) * head->stride;
            scale(1.0f / sums[r], o, dh, o);
            head->lse[(q0 + r) * head->lse_stride] = tops[r] + logf(sums[r]);
        }
    }
}

/* ---- 3. backward ---- */

/* p = exp(scale s - lse); ds = p (dp - delta) scale; both 0 where the query does not see the key. */
static void gradient_rows(const mb_head *head, int64_t q0, int64_t rows, int64_t k0, int64_t n, int64_t width,
                          const float *deltas, float *s, float *dp)
{
    for (int64_t r = 0; r < rows; r++, s += KEYS, dp += KEYS) {
        int64_t low, high;
        seen(head, q0 + r, k0, n, &low, &high);
        int64_t from = low / W * W, to = low < high ? (high + W - 1) / W * W : from;
        mb_vf factor = vf_set(head->scale), shift = vf_set(-head->lse[(q0 + r) * head->lse_stride]);
        mb_vf delta = vf_set(deltas[r]);
        zero_vectors(s, 0, from);
        zero_vectors(dp, 0, from);
        for (int64_t i = from; i < to; i += W) {
            mb_vf p = vf_exp(vf_fma(visible(s, i, low, high), factor, shift));
            vf_store(s + i, p);
            vf_store(dp + i, p * (vf_load(dp + i) - delta) * factor);
        }
        zero_vectors(s, to, width);
        zero_vectors(dp, to, width);
    }
}

static void attention_backward(const mb_head *head, const float *key_panels, const float *value_panels,
                               float *scratch)
{
    float *s = scratch, *dp = s + QUERIES * KEYS, *deltas = dp + QUERIES * KEYS;
    int64_t dh = head->width, stride = head->stride, kv = head->kv_stride;
    for (int64_t q0 = 0; q0 < head->rows; q0 += QUERIES) {
        int64_t rows = least(QUERIES, head->rows - q0), end = q0 + rows;
        int64_t begin = head->window > 0 ? most(0, q0 - head->window + 1) / KEYS * KEYS : 0;
        const float *q = head->q + q0 * stride, *d_o = head->d_o + q0 * stride;
        for (int64_t r = 0; r < rows; r++) deltas[r] = dot(d_o + r * stride, head->o + (q0 + r) * stride, dh);
        for (int64_t k0 = begin; k0 < end; k0 += KEYS) {
            int64_t n = least(KEYS, end - k0), width = (n + W - 1) / W * W;
            panels keys = {key_panels + k0 * dh, PANEL, PANEL * dh};
            panels values = {value_panels + k0 * dh, PANEL, PANEL * dh};
            product(rows, width, dh, (operand){q, stride, 1}, keys, false, s, KEYS);
            product(rows, width, dh, (operand){d_o, stride, 1}, values, false, dp, KEYS);
            gradient_rows(head, q0, rows, k0, n, width, deltas, s, dp);
            product(rows, dh, n, (operand){dp, KEYS, 1}, plain(head->k + k0 * kv, kv), k0 > begin,
                    head->dq + q0 * stride, stride);
            product(n, dh, rows, (operand){s, 1, KEYS}, plain(d_o, stride), true, head->dv + k0 * kv, kv);
            product(n, dh, rows, (operand){dp, 1, KEYS}, plain(q, stride), true, head->dk + k0 * kv, kv);
        }
    }
}
