/* roofline_ops: the cases: every op of ops.h at the shapes of a model.
 *
 * A case names its tensors in the order its function takes them (t[0], t[1], ...).
 *
 * 1. what a model's cases share   2. dense products   3. element-wise and norms   4. embedding and head
 * 5. attention   6. what no model decides   7. a model   (experts: roofline_experts.c)
 */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "roofline.h"

enum { LORA = 16, RECORD = 2048, SHORT = 512, DECODE = 32, DECODE_KEYS = 2048 };

/* ---- 1. what a model's cases share ---- */

/* K different experts of E for each token; skewed: expert e is drawn by weight 1 / (e + 1). */
static void draw_picks(const roof_model *m, int64_t tokens, bool is_skewed, int32_t *out)
{
    double total = 0;
    for (int64_t e = 0; e < m->experts; e++) total += is_skewed ? 1.0 / (double)(e + 1) : 1;
    for (int64_t t = 0; t < tokens; t++) {
        bool is_taken[ROOF_EXPERTS] = {false};
        for (int64_t k = 0, draw = 0; k < m->picks; draw++) {
            double at = total * mb_rng_uniform(2, MB_RNG_DATA, (uint32_t)draw, (uint64_t)t);
            int64_t e = 0;
            while (e < m->experts - 1 && (at -= is_skewed ? 1.0 / (double)(e + 1) : 1) > 0) e++;
            if (is_taken[e]) continue;
            is_taken[e] = true;
            out[t * m->picks + k++] = (int32_t)e;
        }
    }
}

static mb_status make_dispatch(roof *r, const roof_model *m, int64_t tokens, bool is_skewed, int32_t *host,
                               int32_t **out_ids, mb_dispatch *out)
{
    mb_status status = MB_OK;
    const int64_t rows = tokens * m->picks;
    draw_picks(m, tokens, is_skewed, host);
    MB_TRY(roof_upload(r, host, (size_t)rows * sizeof *host, (void **)out_ids));
    MB_ARENA_ARRAY(r->fixed, out->row_token, rows);
    MB_ARENA_ARRAY(r->fixed, out->slot_row, rows);
    MB_ARENA_ARRAY(r->fixed, out->offsets, m->experts + 1);
    MB_TRY(mb_ops_dispatch(r->ops, *out_ids, tokens, m->picks, m->experts, out));
    MB_TRY(mb_ops_wait(r->ops));
done:
    return status;
}

/* Records of `length` tokens, as offsets. */
static mb_status make_offsets(roof *r, int64_t tokens, int64_t length, int32_t *host, int32_t **out,
                              int64_t *out_segments)
{
    const int64_t n = (tokens + length - 1) / length;
    for (int64_t s = 0; s <= n; s++) host[s] = (int32_t)(s * length < tokens ? s * length : tokens);
    *out_segments = n;
    return roof_upload(r, host, (size_t)(n + 1) * sizeof *host, (void **)out);
}

/* DECODE queries of a token each, over DECODE_KEYS kept keys. */
static mb_status make_decode(roof *r, int32_t *host, int64_t keys, roof_given *g)
{
    mb_status status = MB_OK;
    for (int32_t s = 0; s < DECODE; s++) host[s] = s * (int32_t)keys;
    MB_TRY(roof_upload(r, host, DECODE * sizeof *host, (void **)&g->key_first));
    for (int32_t s = 0; s < DECODE; s++) host[s] = (int32_t)keys;
    MB_TRY(roof_upload(r, host, DECODE * sizeof *host, (void **)&g->key_count));
    for (int32_t s = 0; s <= DECODE; s++) host[s] = s;
    MB_TRY(roof_upload(r, host, (DECODE + 1) * sizeof *host, (void **)&g->each));
done:
    return status;
}

static int64_t record_length(const roof *r, bool is_short)
{
    return r->is_tiny ? (is_short ? 16 : 64) : is_short ? SHORT : RECORD;
}

static mb_status make_given(roof *r, const roof_model *m, int64_t tokens, roof_given *g)
{
    mb_status status = MB_OK;
    int64_t *wide = NULL;
    int32_t *host = NULL;
    const int64_t most = tokens * (m->picks > 0 ? m->picks : 1) + DECODE + 1;
    MB_NEW_ARRAY(wide, most);
    MB_NEW_ARRAY(host, most);
    *g = (roof_given){0};
    mb_arena_reset(r->fixed);
    for (int64_t t = 0; t < tokens; t++)
        host[t] = (int32_t)mb_rng_below(1, MB_RNG_DATA, 1, (uint64_t)t, (uint64_t)m->vocabulary);
    MB_TRY(roof_upload(r, host, (size_t)tokens * sizeof *host, (void **)&g->tokens));
    for (int64_t t = 0; t < tokens; t++) host[t] = (int32_t)(t % record_length(r, false));
    MB_TRY(roof_upload(r, host, (size_t)tokens * sizeof *host, (void **)&g->positions));
    MB_TRY(make_offsets(r, tokens, record_length(r, false), host, &g->offsets, &g->segments));
    MB_TRY(make_offsets(r, tokens, record_length(r, true), host, &g->short_offsets, &g->short_segments));
    MB_TRY(make_decode(r, host, r->is_tiny ? 64 : DECODE_KEYS, g));
    for (int64_t t = 0; t < tokens; t++) wide[t] = t;
    MB_TRY(roof_upload(r, wide, (size_t)tokens * sizeof *wide, (void **)&g->row_index));
    float *weights = (float *)host;
    for (int64_t t = 0; t < tokens; t++) weights[t] = 1 / (float)tokens;
    MB_TRY(roof_upload(r, weights, (size_t)tokens * sizeof *weights, (void **)&g->row_weight));
    if (m->experts > 0) {
        MB_TRY(make_dispatch(r, m, tokens, false, host, &g->even_ids, &g->even));
        MB_TRY(make_dispatch(r, m, tokens, true, host, &g->skewed_ids, &g->skewed));
    }
done:
    mb_free(wide);
    mb_free(host);
    return status;
}

#define SHAPE(c, ...) snprintf((c)->shape, sizeof(c)->shape, __VA_ARGS__)
#define LL(x)         ((long long)(x))

/* ---- 2. dense products ---- */

static mb_status run_linear(roof_case *c)
{
    return mb_ops_linear(c->ops, &c->t[0], c->w, NULL, false, &c->t[1]);
}
static mb_status run_linear_dx(roof_case *c)
{
    return mb_ops_linear_dx(c->ops, &c->t[0], c->w, false, &c->t[1]);
}
static mb_status run_linear_dw(roof_case *c)
{
    return mb_ops_linear_dw(c->ops, &c->t[0], &c->t[1], &c->t[2], NULL);
}

/* y[T,N] = x[T,K] W^T, and back. */
static mb_status linear(roof *r, roof_case *c, const char *what, mb_dtype dtype, int64_t t, int64_t n,
                        int64_t k, bool is_trained)
{
    mb_status status = MB_OK;
    const double flops = 2.0 * (double)t * (double)n * (double)k;
    roof_begin(r, c, "linear", run_linear, dtype, t);
    SHAPE(c, "%s %lld <- %lld", what, LL(n), LL(k));
    roof_arg(c, ROOF_IN, dtype, t, k, 0);
    roof_arg(c, ROOF_OUT, dtype, t, n, 0);
    MB_TRY(roof_weights(r, c, ROOF_WEIGHTS, dtype, n, k));
    MB_TRY(roof_measure(r, c, flops));
    if (t <= DECODE) goto done;
    roof_begin(r, c, "linear_dx", run_linear_dx, dtype, t);
    SHAPE(c, "%s %lld <- %lld", what, LL(n), LL(k));
    roof_arg(c, ROOF_IN, dtype, t, n, 0);
    roof_arg(c, ROOF_OUT, dtype, t, k, 0);
    MB_TRY(roof_weights(r, c, ROOF_WEIGHTS, dtype, n, k));
    MB_TRY(roof_measure(r, c, flops));
    if (!is_trained) goto done;
    roof_begin(r, c, "linear_dw", run_linear_dw, dtype, t);
    SHAPE(c, "%s %lld <- %lld", what, LL(n), LL(k));
    roof_arg(c, ROOF_IN, dtype, t, n, 0);
    roof_arg(c, ROOF_IN, dtype, t, k, 0);
    roof_arg(c, ROOF_BOTH, MB_F32, n, k, 0);
    MB_TRY(roof_measure(r, c, flops));
done:
    return status;
}

/* Weights of 8 or 4 bits, scales for groups of 64 columns. */
static mb_status linear_quantised(roof *r, roof_case *c, mb_dtype dtype, int64_t t, int64_t n, int64_t k,
                                  int bits)
{
    mb_status status = MB_OK;
    const int64_t group = 64, stored = bits == 8 ? k : (k + 1) / 2, scales = (k + group - 1) / group;
    roof_begin(r, c, bits == 8 ? "linear int8" : "linear int4", run_linear, dtype, t);
    SHAPE(c, "%lld <- %lld, group 64", LL(n), LL(k));
    roof_arg(c, ROOF_IN, dtype, t, k, 0);
    roof_arg(c, ROOF_OUT, dtype, t, n, 0);
    MB_TRY(roof_weights(r, c, 1, MB_U8, n, stored + 4 * scales)); /* the room and bytes of both */
    mb_weight_init_quantised(
        &c->weights[0], mb_tensor_view2(bits == 8 ? MB_I8 : MB_U8, r->weights, n, stored), bits, k, group,
        mb_tensor_view2(MB_F32, r->weights + (n * stored + 63) / 64 * 64, n, scales));
    MB_TRY(roof_measure(r, c, 2.0 * (double)t * (double)n * (double)k));
done:
    return status;
}

static mb_status dense_products(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t)
{
    mb_status status = MB_OK;
    const int64_t q = m->heads * m->head_width, kv = m->kv_heads * m->head_width;
    MB_TRY(linear(r, c, "q", dtype, t, q, m->d, true));
    if (kv != q) MB_TRY(linear(r, c, "k v", dtype, t, kv, m->d, true));
    if (q != m->d) MB_TRY(linear(r, c, "o", dtype, t, m->d, q, true));
    MB_TRY(linear(r, c, "lora a", dtype, t, LORA, m->d, true));
    MB_TRY(linear(r, c, "lora b", dtype, t, q, LORA, true));
    MB_TRY(linear(r, c, "decode q", dtype, DECODE, q, m->d, false));
    if (m->experts > 0) {
        MB_TRY(linear(r, c, "router", dtype, t, m->experts, m->d, true));
        goto done;
    }
    MB_TRY(linear(r, c, "gate up", dtype, t, m->f, m->d, true));
    MB_TRY(linear(r, c, "down", dtype, t, m->d, m->f, true));
    MB_TRY(linear(r, c, "decode gate up", dtype, DECODE, m->f, m->d, false));
    for (int bits = 8; bits >= 4; bits -= 4) {
        MB_TRY(linear_quantised(r, c, dtype, t, m->f, m->d, bits));
        MB_TRY(linear_quantised(r, c, dtype, DECODE, m->f, m->d, bits));
    }
done:
    return status;
}

/* ---- 3. element-wise and norms ---- */

static mb_status run_rms_norm(roof_case *c)
{
    return mb_ops_rms_norm(c->ops, &c->t[0], &c->t[1], 1e-5F, &c->t[2], &c->t[3]);
}
static mb_status run_rms_norm_backward(roof_case *c)
{
    return mb_ops_rms_norm_backward(c->ops, &c->t[0], &c->t[1], &c->t[2], &c->t[3], true, &c->t[4],
                                    c->args > 5 ? &c->t[5] : NULL);
}
static mb_status run_layer_norm(roof_case *c)
{
    return mb_ops_layer_norm(c->ops, &c->t[0], &c->t[1], &c->t[2], 1e-5F, &c->t[3]);
}
static mb_status run_gelu(roof_case *c)
{
    return mb_ops_gelu(c->ops, false, &c->t[0]);
}
static mb_status run_multiply(roof_case *c)
{
    return mb_ops_multiply(c->ops, &c->t[0], &c->t[1]);
}
static mb_status run_cast(roof_case *c)
{
    return mb_ops_cast(c->ops, &c->t[0], &c->t[1]);
}
static mb_status run_swiglu(roof_case *c)
{
    return mb_ops_swiglu(c->ops, &c->t[0], &c->t[1], &c->t[2]);
}
static mb_status run_swiglu_backward(roof_case *c)
{
    return mb_ops_swiglu_backward(c->ops, &c->t[0], &c->t[1], &c->t[2], &c->t[3], &c->t[4]);
}
static mb_status run_rope(roof_case *c)
{
    return mb_ops_rope(c->ops, &c->t[1], c->ids, &c->t[0], false);
}
static mb_status run_axpy(roof_case *c)
{
    return mb_ops_axpy(c->ops, 0.5F, &c->t[0], &c->t[1]);
}
static mb_status run_scale(roof_case *c)
{
    return mb_ops_scale(c->ops, 0.999F, &c->t[0]);
}
static mb_status run_clamp(roof_case *c)
{
    return mb_ops_clamp(c->ops, 0.5F, &c->t[0]);
}
static mb_status run_clamp_backward(roof_case *c)
{
    return mb_ops_clamp_backward(c->ops, 0.5F, &c->t[0], &c->t[1]);
}
static mb_status run_dropout(roof_case *c)
{
    return mb_ops_dropout(c->ops, &c->t[0], 0.1F, 7, 1, c->row_index, &c->t[1]);
}

/* Arguments of one shape, as `kinds` says: i read, o written, b both. */
static mb_status same(roof *r, roof_case *c, const char *op, roof_run run, mb_dtype dtype, int64_t t,
                      int64_t d, const char *kinds)
{
    roof_begin(r, c, op, run, dtype, t);
    SHAPE(c, "%lld x %lld", LL(t), LL(d));
    for (const char *k = kinds; *k != 0; k++)
        roof_arg(c, *k == 'i' ? ROOF_IN : *k == 'o' ? ROOF_OUT : ROOF_BOTH, dtype, t, d, 0);
    return roof_measure(r, c, 0);
}

static mb_status norms(roof *r, roof_case *c, mb_dtype dtype, int64_t t, int64_t rows, int64_t d,
                       bool is_trained)
{
    mb_status status = MB_OK;
    roof_begin(r, c, "rms_norm", run_rms_norm, dtype, t);
    SHAPE(c, "%lld x %lld", LL(rows), LL(d));
    roof_arg(c, ROOF_IN, dtype, rows, d, 0);
    roof_arg(c, ROOF_IN, MB_F32, d, 0, 0);
    roof_arg(c, ROOF_OUT, dtype, rows, d, 0);
    roof_arg(c, ROOF_OUT, MB_F32, rows, 0, 0);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, is_trained ? "rms_norm_backward dw" : "rms_norm_backward", run_rms_norm_backward, dtype,
               t);
    SHAPE(c, "%lld x %lld", LL(rows), LL(d));
    roof_arg(c, ROOF_IN, dtype, rows, d, 0);
    roof_arg(c, ROOF_IN, dtype, rows, d, 0);
    roof_arg(c, ROOF_IN, MB_F32, d, 0, 0);
    roof_arg(c, ROOF_IN, MB_F32, rows, 0, 0);
    roof_arg(c, ROOF_BOTH, dtype, rows, d, 0);
    if (is_trained) roof_arg(c, ROOF_BOTH, MB_F32, d, 0, 0);
    MB_TRY(roof_measure(r, c, 0));
done:
    return status;
}

static mb_status rope(roof *r, roof_case *c, mb_dtype dtype, int64_t t, int64_t heads, int64_t width,
                      const roof_given *g)
{
    roof_begin(r, c, "rope", run_rope, dtype, t);
    SHAPE(c, "%lld heads x %lld", LL(heads), LL(width));
    roof_arg(c, ROOF_IN, MB_F32, record_length(r, false), width, 0);
    roof_arg(c, ROOF_BOTH, dtype, t, heads, width);
    c->ids = g->positions;
    return roof_measure(r, c, 0);
}

static mb_status elements(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                          const roof_given *g)
{
    mb_status status = MB_OK;
    const int64_t f_rows = m->experts > 0 ? t * m->picks : t;
    MB_TRY(norms(r, c, dtype, t, t, m->d, false));
    MB_TRY(norms(r, c, dtype, t, t, m->d, true));
    if (m->norms_heads) MB_TRY(norms(r, c, dtype, t, t * m->heads, m->head_width, true));
    MB_TRY(same(r, c, "swiglu", run_swiglu, dtype, f_rows, m->f, "iio"));
    MB_TRY(same(r, c, "swiglu_backward", run_swiglu_backward, dtype, f_rows, m->f, "iiioo"));
    MB_TRY(rope(r, c, dtype, t, m->heads, m->head_width, g));
    if (m->kv_heads != m->heads) MB_TRY(rope(r, c, dtype, t, m->kv_heads, m->head_width, g));
    if (m->experts == 0) goto done; /* the rest is the same for all of one width */
    MB_TRY(same(r, c, "multiply", run_multiply, dtype, t, m->d, "ib"));
    MB_TRY(same(r, c, "axpy", run_axpy, dtype, t, m->d, "ib"));
    MB_TRY(same(r, c, "scale", run_scale, dtype, t, m->d, "b"));
    MB_TRY(same(r, c, "clamp", run_clamp, dtype, t, m->d, "b"));
    MB_TRY(same(r, c, "clamp_backward", run_clamp_backward, dtype, t, m->d, "ib"));
    roof_begin(r, c, "cast", run_cast, dtype, t);
    SHAPE(c, "%lld x %lld to %s", LL(t), LL(m->d), dtype == MB_F32 ? "bf16" : "f32");
    roof_arg(c, ROOF_IN, dtype, t, m->d, 0);
    roof_arg(c, ROOF_OUT, dtype == MB_F32 ? MB_BF16 : MB_F32, t, m->d, 0);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "dropout", run_dropout, dtype, t);
    SHAPE(c, "%lld x %lld", LL(t), LL(m->d));
    roof_arg(c, ROOF_IN, dtype, t, m->d, 0);
    roof_arg(c, ROOF_OUT, dtype, t, m->d, 0);
    c->row_index = g->row_index;
    MB_TRY(roof_measure(r, c, 0));
done:
    return status;
}

/* ---- 4. embedding and head ---- */

static mb_status run_embedding(roof_case *c)
{
    return mb_ops_embedding(c->ops, c->ids, &c->w->tensor, &c->t[0]);
}
static mb_status run_embedding_backward(roof_case *c)
{
    return mb_ops_embedding_backward(c->ops, c->ids, &c->t[0], &c->t[1]);
}
static mb_status run_scatter_rows(roof_case *c)
{
    return mb_ops_scatter_rows(c->ops, &c->t[0], c->ids, &c->t[1]);
}
static mb_status run_head_loss(roof_case *c)
{
    return mb_ops_head_loss(c->ops, &c->t[0], c->w, c->ids, &c->t[1], NULL, c->row_weight,
                            c->args > 2 ? &c->t[2] : NULL, c->args > 3 ? &c->t[3] : NULL);
}

static mb_status embedding(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                           const roof_given *g)
{
    mb_status status = MB_OK;
    const double moved = (double)t * (double)m->d;
    roof_begin(r, c, "embedding", run_embedding, dtype, t);
    SHAPE(c, "of %lld x %lld", LL(m->vocabulary), LL(m->d));
    MB_TRY(roof_weights(r, c, 1, dtype, m->vocabulary, m->d));
    roof_arg(c, ROOF_OUT, dtype, t, m->d, 0);
    c->bytes = 2 * moved * (double)mb_dtype_bytes(dtype); /* of the table only the rows asked */
    c->ids = g->tokens;
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "embedding_backward", run_embedding_backward, dtype, t);
    SHAPE(c, "of %lld x %lld", LL(m->vocabulary), LL(m->d));
    roof_arg(c, ROOF_IN, dtype, t, m->d, 0);
    roof_arg(c, ROOF_BOTH, MB_F32, m->vocabulary, m->d, 0);
    c->bytes = moved * ((double)mb_dtype_bytes(dtype) + 8);
    c->ids = g->tokens;
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "scatter_rows", run_scatter_rows, dtype, t);
    SHAPE(c, "%lld rows of %lld x %lld", LL(DECODE), LL(DECODE * 64), LL(m->d));
    roof_arg(c, ROOF_IN, dtype, DECODE, m->d, 0);
    roof_arg(c, ROOF_OUT, dtype, DECODE * 64, m->d, 0);
    c->bytes = 2 * DECODE * (double)m->d * (double)mb_dtype_bytes(dtype);
    c->ids = g->each;
    MB_TRY(roof_measure(r, c, 0));
done:
    return status;
}

/* Losses alone (scoring), with dh (LoRA), with dh and dw (full training). */
static mb_status head(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                      const roof_given *g)
{
    mb_status status = MB_OK;
    static const char *const names[] = {"head_loss", "head_loss dh", "head_loss dh dw"};
    for (int parts = 0; parts < 3; parts++) {
        roof_begin(r, c, names[parts], run_head_loss, dtype, t);
        SHAPE(c, "V %lld, D %lld", LL(m->vocabulary), LL(m->d));
        MB_TRY(roof_weights(r, c, 1, dtype, m->vocabulary, m->d));
        roof_arg(c, ROOF_IN, dtype, t, m->d, 0);
        roof_arg(c, ROOF_OUT, MB_F32, t, 0, 0);
        if (parts > 0) roof_arg(c, ROOF_OUT, dtype, t, m->d, 0);
        if (parts > 1) roof_arg(c, ROOF_BOTH, MB_F32, m->vocabulary, m->d, 0);
        c->ids = g->tokens;
        c->row_weight = parts > 0 ? g->row_weight : NULL;
        MB_TRY(roof_measure(r, c, 2.0 * (parts + 1) * (double)t * (double)m->vocabulary * (double)m->d));
    }
done:
    return status;
}

/* ---- 5. attention ---- */

static mb_status run_attention(roof_case *c)
{
    return mb_ops_attention(c->ops, &c->attention, &c->t[0], &c->t[1], &c->t[2], &c->t[3], &c->t[4]);
}
static mb_status run_attention_backward(roof_case *c)
{
    return mb_ops_attention_backward(c->ops, &c->attention, &c->t[0], &c->t[1], &c->t[2], &c->t[3], &c->t[4],
                                     &c->t[5], &c->t[6], &c->t[7], &c->t[8]);
}

static void attention_begin(roof *r, roof_case *c, const char *op, roof_run run, const roof_model *m,
                            mb_dtype dtype, int64_t t, const int32_t *offsets, int64_t segments)
{
    roof_begin(r, c, op, run, dtype, t);
    c->attention = (mb_attention_shape){.segments = segments,
                                        .offsets = offsets,
                                        .heads = m->heads,
                                        .kv_heads = m->kv_heads,
                                        .head_width = m->head_width,
                                        .scale = 1 / sqrtf((float)m->head_width)};
}

/* Records of `length`: a query sees (length + 1) / 2 keys on average. */
static mb_status attention(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                           int64_t length, const int32_t *offsets, int64_t segments)
{
    mb_status status = MB_OK;
    const int64_t h = m->heads, kv = m->kv_heads, w = m->head_width;
    const double pairs = (double)t * (double)(length + 1) / 2, flops = 4 * pairs * (double)(h * w);
    attention_begin(r, c, "attention", run_attention, m, dtype, t, offsets, segments);
    SHAPE(c, "%lld/%lld x %lld, records of %lld", LL(h), LL(kv), LL(w), LL(length));
    roof_arg(c, ROOF_IN, dtype, t, h, w);
    roof_arg(c, ROOF_IN, dtype, t, kv, w);
    roof_arg(c, ROOF_IN, dtype, t, kv, w);
    roof_arg(c, ROOF_OUT, dtype, t, h, w);
    roof_arg(c, ROOF_OUT, MB_F32, t, h, 0);
    MB_TRY(roof_measure(r, c, flops));
    attention_begin(r, c, "attention_backward", run_attention_backward, m, dtype, t, offsets, segments);
    SHAPE(c, "%lld/%lld x %lld, records of %lld", LL(h), LL(kv), LL(w), LL(length));
    roof_arg(c, ROOF_IN, dtype, t, h, w);
    roof_arg(c, ROOF_IN, dtype, t, kv, w);
    roof_arg(c, ROOF_IN, dtype, t, kv, w);
    roof_arg(c, ROOF_IN, dtype, t, h, w);
    roof_arg(c, ROOF_IN, MB_F32, t, h, 0);
    roof_arg(c, ROOF_IN, dtype, t, h, w);
    roof_arg(c, ROOF_OUT, dtype, t, h, w);
    roof_arg(c, ROOF_OUT, dtype, t, kv, w);
    roof_arg(c, ROOF_OUT, dtype, t, kv, w);
    MB_TRY(roof_measure(r, c, 2.5 * flops)); /* five products for the forward's two */
done:
    return status;
}

/* A token each for DECODE records, over the keys kept of them. */
static mb_status attention_decode(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype,
                                  const roof_given *g)
{
    const int64_t keys = r->is_tiny ? 64 : DECODE_KEYS, kv = m->kv_heads, w = m->head_width;
    attention_begin(r, c, "attention kept keys", run_attention, m, dtype, DECODE, g->each, DECODE);
    c->attention.opt_key_first = g->key_first;
    c->attention.opt_key_count = g->key_count;
    SHAPE(c, "%lld/%lld x %lld, %lld keys each", LL(m->heads), LL(kv), LL(w), LL(keys));
    roof_arg(c, ROOF_IN, dtype, DECODE, m->heads, w);
    roof_arg(c, ROOF_IN, dtype, DECODE * keys, kv, w);
    roof_arg(c, ROOF_IN, dtype, DECODE * keys, kv, w);
    roof_arg(c, ROOF_OUT, dtype, DECODE, m->heads, w);
    roof_arg(c, ROOF_OUT, MB_F32, DECODE, m->heads, 0);
    return roof_measure(r, c, 4.0 * (double)DECODE * (double)keys * (double)(m->heads * w));
}

/* ---- 6. what no model decides ---- */

static mb_status run_adamw(roof_case *c)
{
    const mb_adamw adamw = {.learning_rate = 1e-4,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .epsilon = 1e-8,
                            .weight_decay = 0.01,
                            .step = 10,
                            .gradient_scale = 1};
    return mb_ops_adamw(c->ops, &adamw, c->t[0].shape[0], c->t[0].data, c->t[1].data, c->t[2].data,
                        c->t[3].data);
}
static mb_status run_sum_squares(roof_case *c)
{
    return mb_ops_sum_squares(c->ops, c->t[0].data, c->t[0].shape[0], 65536, c->host);
}
static mb_status run_zero(roof_case *c)
{
    return mb_ops_zero(c->ops, c->t[0].data, mb_tensor_bytes(&c->t[0]));
}
static mb_status run_upload(roof_case *c)
{
    return mb_ops_upload(c->ops, c->host, mb_tensor_bytes(&c->t[0]), c->t[0].data);
}
static mb_status run_download(roof_case *c)
{
    return mb_ops_download(c->ops, c->t[0].data, mb_tensor_bytes(&c->t[0]), c->host);
}

static mb_status flat(roof *r, roof_case *c, int64_t n)
{
    mb_status status = MB_OK;
    double *sums = NULL;
    roof_begin(r, c, "adamw", run_adamw, MB_F32, 0);
    SHAPE(c, "%lld elements", LL(n));
    c->is_zeroed = true; /* the moments */
    roof_arg(c, ROOF_IN, MB_F32, n, 0, 0);
    for (int i = 0; i < 3; i++) roof_arg(c, ROOF_BOTH, MB_F32, n, 0, 0);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "sum_squares", run_sum_squares, MB_F32, 0);
    SHAPE(c, "%lld elements", LL(n));
    MB_NEW_ARRAY(sums, n / 65536 + 1);
    c->host = sums;
    c->is_waiting = true;
    roof_arg(c, ROOF_IN, MB_F32, n, 0, 0);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "zero", run_zero, MB_F32, 0);
    SHAPE(c, "%lld elements", LL(n));
    roof_arg(c, ROOF_OUT, MB_F32, n, 0, 0);
    MB_TRY(roof_measure(r, c, 0));
done:
    mb_free(sums);
    return status;
}

/* Moves between the host's side (page-locked for a device) and the backend's. */
static mb_status moves(roof *r, roof_case *c, int64_t n)
{
    mb_status status = MB_OK;
    const mb_allocator *host = mb_ops_host_allocator(r->ops);
    void *block = host->alloc(host->context, (size_t)n * 4);
    if (block == NULL) MB_RAISE(MB_ENOMEM, "no host block of %lld elements", LL(n));
    for (int part = 0; part < 2; part++) {
        roof_begin(r, c, part == 0 ? "upload" : "download", part == 0 ? run_upload : run_download, MB_F32, 0);
        SHAPE(c, "%lld elements", LL(n));
        c->host = block;
        c->is_waiting = c->is_unlimited = true;
        roof_arg(c, part == 0 ? ROOF_OUT : ROOF_IN, MB_F32, n, 0, 0);
        MB_TRY(roof_measure(r, c, 0));
    }
done:
    if (block != NULL) host->free(host->context, block);
    return status;
}

/* The width of a small sentence encoder (384 and 1,536). */
static mb_status encoder(roof *r, roof_case *c, mb_dtype dtype, int64_t t, int64_t d)
{
    mb_status status = MB_OK;
    roof_begin(r, c, "layer_norm", run_layer_norm, dtype, t);
    SHAPE(c, "%lld x %lld", LL(t), LL(d));
    roof_arg(c, ROOF_IN, dtype, t, d, 0);
    roof_arg(c, ROOF_IN, MB_F32, d, 0, 0);
    roof_arg(c, ROOF_IN, MB_F32, d, 0, 0);
    roof_arg(c, ROOF_OUT, dtype, t, d, 0);
    MB_TRY(roof_measure(r, c, 0));
    MB_TRY(same(r, c, "gelu", run_gelu, dtype, t, 4 * d, "b"));
    MB_TRY(linear(r, c, "encoder up", dtype, t, 4 * d, d, false));
done:
    return status;
}

mb_status roof_common_run(roof *r)
{
    mb_status status = MB_OK;
    roof_case *c = NULL;
    MB_NEW(c);
    r->model = "any";
    MB_TRY(flat(r, c, r->is_tiny ? 1 << 16 : 1 << 26));
    MB_TRY(moves(r, c, r->is_tiny ? 1 << 16 : 1 << 26));
    for (int d = 0; d < 2; d++) {
        r->model = "encoder";
        MB_TRY(encoder(r, c, d == 0 ? MB_BF16 : MB_F32, r->is_tiny ? 128 : 32768, r->is_tiny ? 48 : 384));
    }
done:
    mb_free(c);
    return status;
}

/* ---- 7. a model ---- */

mb_status roof_model_run(roof *r, const roof_model *m, mb_dtype dtype, int64_t tokens)
{
    mb_status status = MB_OK;
    roof_case *c = NULL;
    roof_given g;
    const int64_t whole = record_length(r, false), part = record_length(r, true);
    MB_NEW(c);
    r->model = m->name;
    MB_TRY(make_given(r, m, tokens, &g));
    MB_TRY(dense_products(r, c, m, dtype, tokens));
    if (m->experts > 0) MB_TRY(roof_experts_run(r, c, m, dtype, tokens, &g));
    MB_TRY(attention(r, c, m, dtype, tokens, whole, g.offsets, g.segments));
    MB_TRY(attention(r, c, m, dtype, tokens, part, g.short_offsets, g.short_segments));
    MB_TRY(attention_decode(r, c, m, dtype, &g));
    MB_TRY(head(r, c, m, dtype, tokens, &g));
    MB_TRY(embedding(r, c, m, dtype, tokens, &g));
    MB_TRY(elements(r, c, m, dtype, tokens, &g));
done:
    mb_free(c);
    return status;
}
