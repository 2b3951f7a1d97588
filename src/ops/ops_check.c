/* ops_check: argument rules of the ops.
 *
 * 1. helpers
 * 2. dense products
 * 3. element-wise and norms
 * 4. embedding, head, attention
 * 5. routing
 * 6. optimiser
 */
#include "ops/ops_check.h"

#include "ops/ops_table.h"

/* ---- 1. helpers ---- */

static bool is_act(const mb_tensor *tensor)
{
    return tensor->dtype == MB_F32 || tensor->dtype == MB_BF16;
}

/* f32 or bf16, `rows` rows of `width` elements. */
static mb_status check_act(const char *op, const char *what, const mb_tensor *tensor, int64_t rows,
                           int64_t width)
{
    char text[64];
    if (tensor->dims < 1 || !is_act(tensor)) {
        return mb_fail(MB_EUNSUPPORTED, "%s: %s is %s; expected f32 or bf16", op, what,
                       mb_tensor_describe(tensor, text, sizeof text));
    }
    if (mb_ops_rows(tensor) != rows || mb_ops_width(tensor) != width) {
        return mb_fail(MB_ESHAPE, "%s: %s is %s, expected [%lld, %lld]", op, what,
                       mb_tensor_describe(tensor, text, sizeof text), (long long)rows, (long long)width);
    }
    return MB_OK;
}

static mb_status check_dtype(const char *op, const mb_tensor *a, const mb_tensor *b)
{
    if (a->dtype == b->dtype) return MB_OK;
    return mb_fail(MB_EUNSUPPORTED, "%s: one argument is %s, another %s; they must agree", op,
                   mb_dtype_name(a->dtype), mb_dtype_name(b->dtype));
}

static mb_status check_weight(const char *op, const mb_weight *w, int64_t n, int64_t k)
{
    if (w->bits == 0) return check_act(op, "weight", &w->tensor, n, k);
    if (mb_ops_rows(&w->tensor) == n && w->width == k) return MB_OK;
    return mb_fail(MB_ESHAPE, "%s: the quantised weight is [%lld, %lld], expected [%lld, %lld]", op,
                   (long long)mb_ops_rows(&w->tensor), (long long)w->width, (long long)n, (long long)k);
}

/* f32, `rows` rows of `width` elements. */
static mb_status check_matrix(const char *op, const char *what, const mb_tensor *tensor, int64_t rows,
                              int64_t width)
{
    char text[64];
    if (tensor->dims < 1 || tensor->dtype != MB_F32) {
        return mb_fail(MB_EUNSUPPORTED, "%s: %s is %s; expected f32", op, what,
                       mb_tensor_describe(tensor, text, sizeof text));
    }
    if (mb_ops_rows(tensor) != rows || mb_ops_width(tensor) != width) {
        return mb_fail(MB_ESHAPE, "%s: %s is %s, expected [%lld, %lld]", op, what,
                       mb_tensor_describe(tensor, text, sizeof text), (long long)rows, (long long)width);
    }
    return MB_OK;
}

static mb_status check_vector(const char *op, const char *what, const mb_tensor *tensor, int64_t n)
{
    char text[64];
    if (tensor->dims < 1 || tensor->dtype != MB_F32 || mb_tensor_count(tensor) != n) {
        const mb_status code = tensor->dims >= 1 && tensor->dtype != MB_F32 ? MB_EUNSUPPORTED : MB_ESHAPE;
        return mb_fail(code, "%s: %s is %s, expected [%lld] f32", op, what,
                       mb_tensor_describe(tensor, text, sizeof text), (long long)n);
    }
    return MB_OK;
}

/* What lies on a device is not read. */
static mb_status check_ids(const mb_ops *ops, const char *op, const char *what, const int32_t *ids, int64_t n,
                           int64_t limit)
{
    if (ops->is_device) return MB_OK;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= limit) {
            return mb_fail(MB_ERANGE, "%s: %s %lld is %d, outside 0..%lld", op, what, (long long)i,
                           (int)ids[i], (long long)limit - 1);
        }
    }
    return MB_OK;
}

static mb_status check_offsets(const mb_ops *ops, const char *op, const int32_t *offsets, int64_t n,
                               int64_t rows)
{
    if (ops->is_device) return MB_OK;
    bool is_good = offsets[0] == 0 && offsets[n] <= rows;
    for (int64_t i = 0; i < n; i++) is_good = is_good && offsets[i] <= offsets[i + 1];
    if (!is_good) {
        return mb_fail(MB_ERANGE, "%s: the %lld offsets must rise from 0 to at most %lld", op,
                       (long long)n + 1, (long long)rows);
    }
    return MB_OK;
}

/* ---- 2. dense products ---- */

mb_status mb_ops_check_linear(const mb_tensor *x, const mb_weight *w, const mb_tensor *opt_bias,
                              const mb_tensor *y)
{
    mb_status status = MB_OK;
    int64_t n = mb_ops_rows(&w->tensor), k = w->width;
    MB_TRY(check_weight("linear", w, n, k));
    MB_TRY(check_act("linear", "the [T,K] side", x, mb_ops_rows(x), k));
    MB_TRY(check_act("linear", "the [T,N] side", y, mb_ops_rows(x), n));
    if (opt_bias != NULL) MB_TRY(check_vector("linear", "bias", opt_bias, n));
done:
    return status;
}

mb_status mb_ops_check_linear_dw(const mb_tensor *dy, const mb_tensor *x, const mb_tensor *dw,
                                 const mb_tensor *opt_dbias)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("linear_dw", "x", x, mb_ops_rows(x), mb_ops_width(x)));
    MB_TRY(check_act("linear_dw", "dy", dy, mb_ops_rows(x), mb_ops_width(dy)));
    MB_TRY(check_dtype("linear_dw", dy, x));
    MB_TRY(check_matrix("linear_dw", "dw", dw, mb_ops_width(dy), mb_ops_width(x)));
    if (opt_dbias != NULL) MB_TRY(check_vector("linear_dw", "dbias", opt_dbias, mb_ops_width(dy)));
done:
    return status;
}

mb_status mb_ops_check_grouped(const mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                               mb_weight *const *w, const mb_tensor *y)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("grouped_linear", "the [P,K] side", x, mb_ops_rows(x), mb_ops_width(x)));
    MB_TRY(check_act("grouped_linear", "the [P,N] side", y, mb_ops_rows(x), mb_ops_width(y)));
    MB_TRY(check_offsets(ops, "grouped_linear", offsets, groups, mb_ops_rows(x)));
    for (int64_t e = 0; e < groups; e++) {
        MB_TRY(check_weight("grouped_linear", w[e], mb_ops_width(y), mb_ops_width(x)));
    }
done:
    return status;
}

mb_status mb_ops_check_grouped_dw(const mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                  const int32_t *offsets, int64_t groups, const mb_tensor *dw)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("grouped_linear_dw", "x", x, mb_ops_rows(x), mb_ops_width(x)));
    MB_TRY(check_act("grouped_linear_dw", "dy", dy, mb_ops_rows(x), mb_ops_width(dy)));
    MB_TRY(check_dtype("grouped_linear_dw", dy, x));
    MB_TRY(check_offsets(ops, "grouped_linear_dw", offsets, groups, mb_ops_rows(x)));
    for (int64_t e = 0; e < groups; e++) {
        if (dw[e].dims == 0) continue;
        MB_TRY(check_matrix("grouped_linear_dw", "dw", &dw[e], mb_ops_width(dy), mb_ops_width(x)));
    }
done:
    return status;
}

/* ---- 3. element-wise and norms ---- */

mb_status mb_ops_check_count(const char *op, int n, const mb_tensor *const *tensors)
{
    mb_status status = MB_OK;
    for (int i = 0; i < n; i++) {
        const mb_tensor *t = tensors[i];
        MB_TRY(check_act(op, "an argument", t, mb_ops_rows(t), mb_ops_width(t)));
        if (mb_tensor_count(t) != mb_tensor_count(tensors[0]))
            MB_RAISE(MB_ESHAPE, "%s: argument %d has %lld elements, the first %lld", op, i + 1,
                     (long long)mb_tensor_count(t), (long long)mb_tensor_count(tensors[0]));
    }
done:
    return status;
}

mb_status mb_ops_check_f32(const char *op, const char *what, const mb_tensor *tensor)
{
    return check_matrix(op, what, tensor, mb_ops_rows(tensor), mb_ops_width(tensor));
}

mb_status mb_ops_check_same(const char *op, int n, const mb_tensor *const *tensors)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ops_check_count(op, n, tensors));
    for (int i = 1; i < n; i++) MB_TRY(check_dtype(op, tensors[0], tensors[i]));
done:
    return status;
}

/* Rows of d elements: as many in x as in y, however they are shaped. */
static mb_status check_norm_rows(const char *op, const mb_tensor *x, const mb_tensor *y, int64_t d)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ops_check_count(op, 2, (const mb_tensor *[]){x, y}));
    if (d < 1 || mb_tensor_count(x) % d != 0)
        MB_RAISE(MB_ESHAPE, "%s: x has %lld elements, no multiple of the weight's %lld", op,
                 (long long)mb_tensor_count(x), (long long)d);
done:
    return status;
}

mb_status mb_ops_check_layer_norm(const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                                  const mb_tensor *y)
{
    mb_status status = MB_OK;
    MB_TRY(check_vector("layer_norm", "w", w, mb_tensor_count(w)));
    MB_TRY(check_vector("layer_norm", "b", b, mb_tensor_count(w)));
    MB_TRY(check_norm_rows("layer_norm", x, y, mb_tensor_count(w)));
done:
    return status;
}

mb_status mb_ops_check_rms_norm(const mb_tensor *x, const mb_tensor *w, const mb_tensor *y,
                                const mb_tensor *rstd)
{
    mb_status status = MB_OK;
    int64_t d = mb_tensor_count(w);
    MB_TRY(check_vector("rms_norm", "w", w, d));
    MB_TRY(check_norm_rows("rms_norm", x, y, d));
    MB_TRY(check_vector("rms_norm", "rstd", rstd, mb_tensor_count(x) / d));
done:
    return status;
}

mb_status mb_ops_check_rms_norm_backward(const mb_tensor *dy, const mb_tensor *x, const mb_tensor *w,
                                         const mb_tensor *rstd, const mb_tensor *dx, const mb_tensor *opt_dw)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ops_check_rms_norm(x, w, dy, rstd));
    MB_TRY(mb_ops_check_count("rms_norm_backward", 2, (const mb_tensor *[]){x, dx}));
    if (opt_dw != NULL) MB_TRY(check_vector("rms_norm_backward", "dw", opt_dw, mb_tensor_count(w)));
done:
    return status;
}

mb_status mb_ops_check_rope(const mb_ops *ops, const mb_tensor *x, const int32_t *positions,
                            const mb_tensor *table)
{
    mb_status status = MB_OK;
    if (x->dims != 3 || x->shape[2] % 2 != 0) MB_RAISE(MB_ESHAPE, "rope: x must be [T, H, Dh] with even Dh");
    MB_TRY(check_act("rope", "x", x, x->shape[0], x->shape[1] * x->shape[2]));
    MB_TRY(check_matrix("rope", "table", table, mb_ops_rows(table), x->shape[2]));
    MB_TRY(check_ids(ops, "rope", "position", positions, x->shape[0], mb_ops_rows(table)));
done:
    return status;
}

mb_status mb_ops_check_dropout(const mb_tensor *x, float p, const mb_tensor *y)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("dropout", "x", x, mb_ops_rows(x), mb_ops_width(x)));
    MB_TRY(check_act("dropout", "y", y, mb_ops_rows(x), mb_ops_width(x)));
    MB_TRY(check_dtype("dropout", x, y));
    if (!(p >= 0 && p < 1)) MB_RAISE(MB_ERANGE, "dropout: probability %g is not in [0, 1)", (double)p);
done:
    return status;
}

/* ---- 4. embedding, head, attention ---- */

mb_status mb_ops_check_embedding(const mb_ops *ops, const int32_t *tokens, const mb_tensor *table,
                                 const mb_tensor *rows)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("embedding", "table", table, mb_ops_rows(table), mb_ops_width(table)));
    MB_TRY(check_act("embedding", "rows", rows, mb_ops_rows(rows), mb_ops_width(table)));
    MB_TRY(check_ids(ops, "embedding", "token", tokens, mb_ops_rows(rows), mb_ops_rows(table)));
done:
    return status;
}

mb_status mb_ops_check_scatter_rows(const mb_ops *ops, const mb_tensor *x, const int32_t *rows,
                                    const mb_tensor *y)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("scatter_rows", "x", x, mb_ops_rows(x), mb_ops_width(y)));
    MB_TRY(check_act("scatter_rows", "y", y, mb_ops_rows(y), mb_ops_width(y)));
    MB_TRY(check_dtype("scatter_rows", x, y));
    MB_TRY(check_ids(ops, "scatter_rows", "row", rows, mb_ops_rows(x), mb_ops_rows(y)));
done:
    return status;
}

mb_status mb_ops_check_head_loss(const mb_ops *ops, const mb_tensor *h, const mb_weight *w,
                                 const int32_t *targets, const mb_tensor *loss, const float *opt_row_weight,
                                 const mb_tensor *opt_dh, const mb_tensor *opt_dw)
{
    mb_status status = MB_OK;
    int64_t n = mb_ops_rows(h), v = mb_ops_rows(&w->tensor), d = w->width;
    MB_TRY(check_weight("head_loss", w, v, d));
    MB_TRY(check_act("head_loss", "h", h, n, d));
    MB_TRY(check_vector("head_loss", "loss", loss, n));
    MB_TRY(check_ids(ops, "head_loss", "target", targets, n, v));
    if (opt_dh != NULL) MB_TRY(check_act("head_loss", "dh", opt_dh, n, d));
    if (opt_dw != NULL) MB_TRY(check_matrix("head_loss", "dw", opt_dw, v, d));
    if (opt_row_weight == NULL && (opt_dh != NULL || opt_dw != NULL)) {
        MB_RAISE(MB_ESHAPE, "head_loss: gradients need row weights");
    }
done:
    return status;
}

static mb_status check_teacher(const mb_ops *ops, const mb_teacher_rows *teacher, int64_t n, int64_t v)
{
    mb_status status = MB_OK;
    if (!(teacher->temperature > 0) || !(teacher->beta >= 0 && teacher->beta <= 1))
        MB_RAISE(MB_ERANGE, "rows_loss: temperature %g, beta %g; expected above 0, and 0 to 1",
                 teacher->temperature, teacher->beta);
    if (teacher->opt_dense != NULL) goto done;
    if (teacher->k < 1 || teacher->k > v)
        MB_RAISE(MB_ERANGE, "rows_loss: the teacher lists %lld tokens of %lld", (long long)teacher->k,
                 (long long)v);
    MB_TRY(check_ids(ops, "rows_loss", "teacher's id", teacher->ids, n * teacher->k, v));
done:
    return status;
}

mb_status mb_ops_check_rows_loss(const mb_ops *ops, const mb_tensor *logits, const int32_t *opt_targets,
                                 const mb_teacher_rows *opt_teacher, const mb_tensor *opt_ce,
                                 const mb_tensor *opt_distance, const float *opt_row_weight)
{
    mb_status status = MB_OK;
    const int64_t n = mb_ops_rows(logits), v = mb_ops_width(logits);
    const bool has_task = opt_row_weight != NULL && (opt_teacher == NULL || opt_teacher->task_weight != 0);
    MB_TRY(check_matrix("rows_loss", "logits", logits, n, v));
    if (v < 1) MB_RAISE(MB_ESHAPE, "rows_loss: the logits have no columns");
    if (opt_targets != NULL) MB_TRY(check_ids(ops, "rows_loss", "target", opt_targets, n, v));
    if (opt_targets == NULL && (opt_ce != NULL || has_task))
        MB_RAISE(MB_ESHAPE, "rows_loss: cross-entropy needs targets");
    if (opt_teacher == NULL && opt_distance != NULL)
        MB_RAISE(MB_ESHAPE, "rows_loss: a distance needs a teacher");
    if (opt_ce != NULL) MB_TRY(check_vector("rows_loss", "ce", opt_ce, n));
    if (opt_distance != NULL) MB_TRY(check_vector("rows_loss", "distance", opt_distance, n));
    if (opt_teacher != NULL) MB_TRY(check_teacher(ops, opt_teacher, n, v));
done:
    return status;
}

/* Keys of every segment: where they lie, how many, at least as many as queries. Rows of k and v that the
 * shape
 * speaks of: *out_rows. */
static mb_status check_keys(const mb_ops *ops, const mb_attention_shape *shape, int64_t queries,
                            int64_t *out_rows)
{
    mb_status status = MB_OK;
    *out_rows = queries;
    if (shape->is_bidirectional && shape->window != 0)
        MB_RAISE(MB_ERANGE, "attention: a window needs the causal order");
    if (shape->opt_key_first == NULL) return MB_OK;
    *out_rows = 0;
    if (ops->is_device) goto done;
    for (int64_t s = 0; s < shape->segments; s++) {
        const int64_t first = shape->opt_key_first[s], count = shape->opt_key_count[s];
        if (first < 0 || count < shape->offsets[s + 1] - shape->offsets[s])
            MB_RAISE(MB_ERANGE, "attention: segment %lld has %lld keys from row %lld for %d queries",
                     (long long)s, (long long)count, (long long)first,
                     shape->offsets[s + 1] - shape->offsets[s]);
        if (first + count > *out_rows) *out_rows = first + count;
    }
done:
    return status;
}

static mb_status check_attention_shape(const mb_ops *ops, const mb_attention_shape *shape, int64_t t)
{
    mb_status status = MB_OK;
    if (shape->kv_heads < 1 || shape->heads % shape->kv_heads != 0 || shape->window < 0) {
        MB_RAISE(MB_ESHAPE,
                 "attention: %lld heads are no multiple of %lld key/value heads, or window %lld < 0",
                 (long long)shape->heads, (long long)shape->kv_heads, (long long)shape->window);
    }
    if (!(shape->scale >= 0)) MB_RAISE(MB_ERANGE, "attention: scale %g is negative", (double)shape->scale);
    MB_TRY(check_offsets(ops, "attention", shape->offsets, shape->segments, t));
    if (!ops->is_device && shape->offsets[shape->segments] != t) {
        MB_RAISE(MB_ERANGE, "attention: segments cover %d of %lld rows", (int)shape->offsets[shape->segments],
                 (long long)t);
    }
done:
    return status;
}

mb_status mb_ops_check_attention(const mb_ops *ops, const mb_attention_shape *shape, int wides,
                                 const mb_tensor *const *wide, int narrows, const mb_tensor *const *narrow,
                                 const mb_tensor *lse)
{
    mb_status status = MB_OK;
    const int64_t t = mb_ops_rows(wide[0]);
    int64_t keys;
    MB_TRY(check_attention_shape(ops, shape, t));
    MB_TRY(check_keys(ops, shape, t, &keys));
    for (int i = 0; i < wides; i++) {
        MB_TRY(check_act("attention", "the query side", wide[i], t, shape->heads * shape->head_width));
        MB_TRY(check_dtype("attention", wide[0], wide[i]));
    }
    for (int i = 0; i < narrows; i++) {
        const int64_t rows = mb_ops_rows(narrow[i]);
        MB_TRY(check_act("attention", "the key side", narrow[i], rows, shape->kv_heads * shape->head_width));
        MB_TRY(check_dtype("attention", wide[0], narrow[i]));
        if (shape->opt_key_first == NULL ? rows != t : rows < keys)
            MB_RAISE(MB_ESHAPE, "attention: %lld rows of keys or values, the shape speaks of %lld",
                     (long long)rows, (long long)keys);
    }
    MB_TRY(check_vector("attention", "lse", lse, t * shape->heads));
done:
    return status;
}

mb_status mb_ops_check_attention_backward(const mb_attention_shape *shape)
{
    if (!shape->is_bidirectional && shape->opt_key_first == NULL) return MB_OK;
    return mb_fail(MB_EUNSUPPORTED, "attention_backward: only causal attention without kept keys has one");
}

/* ---- 5. routing ---- */

mb_status mb_ops_check_route(const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                             const mb_tensor *probs, const mb_tensor *weights)
{
    mb_status status = MB_OK;
    int64_t t = mb_ops_rows(logits), e = mb_ops_width(logits);
    MB_TRY(check_matrix("route", "logits", logits, t, e));
    MB_TRY(check_matrix("route", "probs", probs, t, e));
    MB_TRY(check_matrix("route", "weights", weights, t, picks));
    if (opt_bias != NULL) MB_TRY(check_vector("route", "bias", opt_bias, e));
    if (picks < 1 || picks > e) {
        MB_RAISE(MB_ERANGE, "route: %lld picks of %lld experts", (long long)picks, (long long)e);
    }
done:
    return status;
}

mb_status mb_ops_check_route_backward(const mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                      const mb_tensor *weights, const mb_tensor *dweights,
                                      const mb_tensor *dlogits)
{
    mb_status status = MB_OK;
    int64_t t = mb_ops_rows(probs), e = mb_ops_width(probs), picks = mb_ops_width(weights);
    MB_TRY(mb_ops_check_route(probs, NULL, picks, dlogits, weights));
    MB_TRY(check_matrix("route_backward", "dweights", dweights, t, picks));
    MB_TRY(check_ids(ops, "route_backward", "id", ids, t * picks, e));
done:
    return status;
}

mb_status mb_ops_check_dispatch(const mb_ops *ops, const int32_t *ids, int64_t tokens, int64_t picks,
                                int64_t experts, const mb_dispatch *dispatch)
{
    mb_status status = MB_OK;
    if (tokens < 0 || picks < 1 || experts < 0 || tokens * picks > INT32_MAX) {
        MB_RAISE(MB_ERANGE, "dispatch: %lld tokens x %lld picks", (long long)tokens, (long long)picks);
    }
    if (dispatch->offsets == NULL || dispatch->row_token == NULL || dispatch->slot_row == NULL) {
        MB_RAISE(MB_ESHAPE, "dispatch: its arrays must be given by the caller");
    }
    MB_TRY(check_ids(ops, "dispatch", "id", ids, tokens * picks, INT32_MAX));
done:
    return status;
}

mb_status mb_ops_check_rows_of(const mb_dispatch *dispatch, const mb_tensor *tokens, const mb_tensor *rows)
{
    mb_status status = MB_OK;
    MB_TRY(check_act("gather", "the [T,D] side", tokens, mb_ops_rows(tokens), mb_ops_width(tokens)));
    MB_TRY(check_act("gather", "the [P,D] side", rows, dispatch->rows, mb_ops_width(tokens)));
done:
    return status;
}

mb_status mb_ops_check_combine(const mb_dispatch *dispatch, const mb_tensor *weights, const mb_tensor *tokens,
                               const mb_tensor *rows, const mb_tensor *opt_dweights)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ops_check_rows_of(dispatch, tokens, rows));
    MB_TRY(mb_ops_check_f32("combine", "the [T,D] side", tokens));
    MB_TRY(check_matrix("combine", "weights", weights, mb_ops_rows(tokens), mb_ops_width(weights)));
    if (opt_dweights != NULL) {
        MB_TRY(check_matrix("combine", "dweights", opt_dweights, mb_ops_rows(tokens), mb_ops_width(weights)));
    }
done:
    return status;
}

/* ---- 6. optimiser ---- */

mb_status mb_ops_check_adamw(const mb_adamw *adamw, int64_t n)
{
    if (adamw->step < 1 || n < 0)
        return mb_fail(MB_ERANGE, "adamw: step %lld must be >= 1", (long long)adamw->step);
    return MB_OK;
}

mb_status mb_ops_check_blocks(int64_t n, int64_t block)
{
    if (n < 0 || block < 1)
        return mb_fail(MB_ERANGE, "sum_squares: blocks of %lld elements", (long long)block);
    return MB_OK;
}
