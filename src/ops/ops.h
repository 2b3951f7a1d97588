/* ops: the one interface to arithmetic. `ref` defines every op in plain C; `cpu` and `cuda` overwrite
 * entries.
 *
 * Layer: ops.  Uses: base, tensor; a backend's own libraries only in its own folder.
 *
 * Rules for every op: tensors are contiguous; inputs are const; outputs never alias inputs unless the comment
 * says "in place"; no allocation but from ops->scratch, which is as it was when the op returns; argument
 * rules are asserted/checked in ops_check.c, once, before dispatch. "+=" outputs accumulate. Every op gives
 * the same bits for the same inputs, thread count and instruction set, and a row's bits do not depend on how
 * many other rows are in the call, wherever the backend can promise it (mb_ops_is_row_stable).
 *
 * Memory. Every pointer an op is given (tensors and plain arrays; not structs, and not arrays of structs or
 * of pointers to them) lies in the backend's memory: mb_ops_allocator's. Where that is a device's
 * (mb_ops_is_device), the host cannot touch it, ops are queued in order and return at once, contents are not
 * checked, and mb_ops_wait is where the host sees results and failures. On the other backends it is ordinary
 * memory and all of this costs nothing.
 *
 * Dtypes. "act" in a comment is f32 or bf16; tensors called act of one letter (act X) share theirs. Whatever
 * is not said to be act is f32. Sums are f32 inside every op; a bf16 output is the f32 result rounded once,
 * to nearest even (an accumulating one: old value + result, rounded once). A product's dtype of computing is
 * that of its rows: bf16 rows meet the weight rounded to bf16, f32 rows the weight as it is. Where the chip
 * has no bf16 unit bf16 rows are computed in f32.
 *
 * Letters: T tokens (rows), D/K width in, N width out, F expert hidden, H query heads, G key/value heads, Dh
 * head width, E experts that exist, K picks per token, P rows sent to experts, V vocabulary, S segments
 * (records).
 */
#ifndef MB_OPS_H
#define MB_OPS_H

#include "base/memory.h"
#include "tensor/tensor.h"

typedef struct mb_ops mb_ops;

/* A weight matrix [N, K] as HF stores it (out, in), with the backend's packed form beside it. The tensors are
 * borrowed. After changing the values call mb_weight_changed; the packed form is remade when it pays (values
 * that met many rows unchanged). Reset weights before the ops that used them are destroyed.
 *
 * Quantised (frozen only): bits 8: tensor i8 [N, K]; bits 4: tensor u8 [N, (K+1)/2], column 2i in the low
 * half of byte i, stored + 8. Element (n, k) is its integer times scale[n, k / group]. */
typedef struct mb_weight {
    mb_tensor tensor; /* f32 or bf16; i8 or u8 when quantised */
    int bits;         /* 0: not quantised; 8; 4 */
    int64_t width;    /* K */
    int64_t group;    /* columns that share a scale; 0 when not quantised */
    mb_tensor scale;  /* [N, ceil(K / group)] f32; dims 0 when not quantised */
    uint64_t version; /* of the values; starts at 1 */
    void *packed;     /* backend's own, NULL at first */
    void (*packed_free)(void *packed);
} mb_weight;
void mb_weight_init(mb_weight *weight, mb_tensor tensor); /* f32 or bf16 [N, K] */
void mb_weight_init_quantised(mb_weight *weight, mb_tensor tensor, int bits, int64_t width, int64_t group,
                              mb_tensor scale);
/* Rows first..first+n as f32 [n, K]: what the matrix means. Its tensors lie in the host's memory. */
void mb_weight_read(const mb_weight *weight, int64_t first, int64_t n, float *out);
void mb_weight_changed(mb_weight *weight);
void mb_weight_reset(mb_weight *weight); /* frees the packed form */

/* How rows travel to experts and back: made by mb_ops_dispatch, arrays are the caller's. */
typedef struct mb_dispatch {
    int64_t rows; /* P <= T*K: picks of experts < E; picks >= E (trash) go nowhere. On a device T*K, room
                           for any: the rows from offsets[E] on are nobody's, and hold anything */
    int32_t *row_token; /* [T*K] token of each row; rows sorted by expert, then by token, then by pick */
    int32_t *slot_row;  /* [T*K] row of pick k of token t, -1 for trash */
    int32_t *offsets;   /* [E+1] first row of each expert */
} mb_dispatch;

typedef struct mb_attention_shape {
    int64_t segments;       /* S */
    const int32_t *offsets; /* [S+1] first row of each segment, offsets[S] = T */
    int64_t heads, kv_heads, head_width;
    float scale;    /* >= 0, usually 1/sqrt(Dh) */
    int64_t window; /* a query sees the last `window` keys, itself included; 0: all */
    bool
        is_bidirectional; /* every query sees every key of its segment (encoders); window 0 then. Forward only
                             */
    /* Keys kept from earlier calls (generation, forward only): segment s has keys (and values) in rows
     * key_first[s] .. key_first[s] + key_count[s] of k and v, and its queries are the last of them. Both
     * NULL:
     * keys lie as queries do. */
    const int32_t *opt_key_first, *opt_key_count; /* [S] */
} mb_attention_shape;

typedef struct mb_adamw {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    int64_t step;          /* from 1, for bias correction */
    double gradient_scale; /* clipping factor, 1 for none */
} mb_adamw;

/* ---- creation ---- */

/* backend: "ref", "cpu", "cuda" or "auto" (cuda when this build has it and the machine a GPU, else cpu
 * when this build has a matrix library, else ref). MB_ISA=portable|avx2|avx512 and MB_OPS_DENSE=dnnl|cblas
 * in the environment force a choice inside cpu. threads <= 0: OMP_NUM_THREADS, else the cores this process
 * is bound to. MB_EUNSUPPORTED (with the reason) for a backend this build or machine has not. */
typedef struct mb_ops_options {
    const char *backend;
    int threads;
    int local_rank, local_size; /* of this process on its node: which GPU is its own; 0, 1 (or 0) alone */
    bool share_gpu; /* more ranks than GPUs may share them; else MB_EUSAGE (auto takes the cpu then) */
} mb_ops_options;
mb_status mb_ops_create_with(const mb_ops_options *options, mb_ops **out_ops);
/* The same for a process by itself. */
mb_status mb_ops_create(const char *backend, int threads, mb_ops **out_ops);
void mb_ops_destroy(mb_ops **ops);
const char *mb_ops_name(const mb_ops *ops);
/* One line for the log and provenance: "cpu oneDNN 2.6.3 brg:avx512_core_bf16, attention avx512, 2 threads".
 * Borrowed. */
const char *mb_ops_describe(const mb_ops *ops);
bool mb_ops_is_row_stable(const mb_ops *ops);
int mb_ops_threads(const mb_ops *ops);
/* PCI bus id of the GPU in use ("0000:c1:00.0"), "" when there is none. Borrowed. */
const char *mb_ops_bus_id(const mb_ops *ops);
/* GPUs this process sees that backend "cuda" can use (0: none, no driver, or a build without CUDA), and
 * the bus id of one of them: to tell on which nodes ranks see the same ones. No context is made on any. */
enum { MB_OPS_BUS_ID = 32 };
int mb_ops_gpu_count(void);
mb_status mb_ops_gpu_bus_id(int gpu, char out_text[MB_OPS_BUS_ID]);

/* ---- memory ---- */

const mb_allocator *mb_ops_allocator(const mb_ops *ops); /* of tensors this backend computes on */
/* Of the host's side of uploads and downloads (page-locked for a device, so that they run beside the ops). */
const mb_allocator *mb_ops_host_allocator(const mb_ops *ops);
bool mb_ops_is_device(const mb_ops *ops); /* the host cannot touch the backend's memory */
/* Queued like ops. The host's memory must stay (upload: as it is; download: alone) until the next wait. */
mb_status mb_ops_upload(mb_ops *ops, const void *host, size_t bytes, void *data);
mb_status mb_ops_download(mb_ops *ops, const void *data, size_t bytes, void *host);
mb_status mb_ops_copy(mb_ops *ops, const void *from, size_t bytes, void *to); /* inside; no overlap */
mb_status mb_ops_zero(mb_ops *ops, void *data, size_t bytes);
/* All that was queued is done. MB_EDEVICE: something of it failed. */
mb_status mb_ops_wait(mb_ops *ops);
/* A host array as ops take it: itself, or on a device a copy in the arena (of mb_ops_allocator). NULL
 * gives NULL. */
mb_status mb_ops_input(mb_ops *ops, mb_arena *arena, const void *host, size_t bytes, const void **out);
/* What ops wrote as the host reads it after the next wait: itself, or on a device a copy in the arena (of
 * mb_ops_host_allocator). */
mb_status mb_ops_output(mb_ops *ops, mb_arena *host_arena, const void *data, size_t bytes, void **out);

/* For whoever queues work of its own between ops (comm): what ops are queued in (CUDA: a cudaStream_t);
 * NULL where they are done at once. */
void *mb_ops_stream(mb_ops *ops);

/* Recorded work: where hundreds of small ops are queued again and again with the same arguments (a step of
 * generation), a device takes them as one piece. What is queued between begin and end is kept, not run,
 * and run queues it, with the pointers of then. In between nothing may wait, allocate, or move data to or
 * from the host; so the same work is run once in the ordinary way first. end fails with MB_EDEVICE where
 * that was broken, or cancels when out_record is NULL. */
typedef struct mb_ops_record mb_ops_record;
bool mb_ops_can_record(const mb_ops *ops); /* false: the backend has none of the calls below */
mb_status mb_ops_record_begin(mb_ops *ops);
mb_status mb_ops_record_end(mb_ops *ops, mb_ops_record **out_record);
mb_status mb_ops_record_run(mb_ops *ops, mb_ops_record *record);
void mb_ops_record_destroy(mb_ops *ops, mb_ops_record **record);

/* ---- dense products ---- */

/* act y[T,N] = (accumulate ? y : 0) + act x[T,K] W^T + opt_bias[N] */
mb_status mb_ops_linear(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                        bool accumulate, mb_tensor *y);
/* act dx[T,K] = (accumulate ? dx : 0) + act dy[T,N] W */
mb_status mb_ops_linear_dx(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate, mb_tensor *dx);
/* dw[N,K] += dy^T x (dy, x act A);  opt_dbias[N] += column sums of dy */
mb_status mb_ops_linear_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                           mb_tensor *opt_dbias);

/* The same for E groups of rows: rows offsets[e]..offsets[e+1] of x [P,K] go through w[e]. Groups may be
 * empty. */
mb_status mb_ops_grouped_linear(mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                                mb_weight *const *w, mb_tensor *y);
mb_status mb_ops_grouped_linear_dx(mb_ops *ops, const mb_tensor *dy, const int32_t *offsets, int64_t groups,
                                   mb_weight *const *w, bool accumulate, mb_tensor *dx);
/* dw[e] are [N,K] each, +=; entries may be tensors of dims 0 (that expert is frozen). */
mb_status mb_ops_grouped_linear_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                   const int32_t *offsets, int64_t groups, mb_tensor *dw);

/* ---- element-wise and norms ---- */

/* act y = act x * rsqrt(mean(x^2) + eps) * w, per row of x[R,D], w[D]; out_rstd[R]. */
mb_status mb_ops_rms_norm(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, float eps, mb_tensor *y,
                          mb_tensor *out_rstd);
/* act dx[R,D] = (accumulate ? dx : 0) + ... of act dy, act x; opt_dw[D] += */
mb_status mb_ops_rms_norm_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, const mb_tensor *w,
                                   const mb_tensor *rstd, bool accumulate, mb_tensor *dx, mb_tensor *opt_dw);
/* y = (x - mean) * rsqrt(variance + eps) * w + b, per row; act x, act y. Forward only. */
mb_status mb_ops_layer_norm(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                            float eps, mb_tensor *y);
/* In place, act: y = gelu(y): by the error function, or by tanh (gelu_new, gelu_pytorch_tanh). */
mb_status mb_ops_gelu(mb_ops *ops, bool is_tanh, mb_tensor *y);
/* y *= x, act each. */
mb_status mb_ops_multiply(mb_ops *ops, const mb_tensor *x, mb_tensor *y);
/* y = x in y's dtype, act each. */
mb_status mb_ops_cast(mb_ops *ops, const mb_tensor *x, mb_tensor *y);
/* y = silu(gate) * up, [R,F] each, all act A; so is the backward. */
mb_status mb_ops_swiglu(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y);
mb_status mb_ops_swiglu_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *gate, const mb_tensor *up,
                                 mb_tensor *dgate, mb_tensor *dup);
/* In place on act x[T,H,Dh]: pairs (i, i+Dh/2) turned by the angle of row positions[t] of table[Pmax, Dh]
 * (cos in
 * the first half, sin in the second); inverse turns back (the backward pass). */
mb_status mb_ops_rope(mb_ops *ops, mb_tensor *x, const int32_t *positions, const mb_tensor *table,
                      bool inverse);
/* act y += scale * act x; y = scale * y; y = clamp(y, -limit, limit), and the gradient's mask: dy = 0 where
 * |y| >= limit (y: clamped values; y and dy act A). */
mb_status mb_ops_axpy(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y);
mb_status mb_ops_scale(mb_ops *ops, float scale, mb_tensor *y);
mb_status mb_ops_clamp(mb_ops *ops, float limit, mb_tensor *y);
mb_status mb_ops_clamp_backward(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy);
/* y[R,C] = x (act A) with elements dropped with probability p and the rest scaled by 1/(1-p); element (r,c)
 * is drawn
 * by (seed, MB_RNG_DROPOUT, sub, row_index[r] * C + c). The backward pass is the same call on dy. May be in
 * place. */
mb_status mb_ops_dropout(mb_ops *ops, const mb_tensor *x, float p, uint64_t seed, uint32_t sub,
                         const int64_t *row_index, mb_tensor *y);

/* ---- embedding and head ---- */

/* act y[T,D] = act table[tokens[t]];  act dy; dtable[V,D] += (rows added in token order, same bits for any
 * thread count). */
mb_status mb_ops_embedding(mb_ops *ops, const int32_t *tokens, const mb_tensor *table, mb_tensor *y);
mb_status mb_ops_embedding_backward(mb_ops *ops, const int32_t *tokens, const mb_tensor *dy,
                                    mb_tensor *dtable);
/* Fused head and cross-entropy in chunks of rows: logits (f32) = act h[N,D] W^T, never all of them at once.
 * out_loss[N] f32 = logsumexp - logit[target]; opt_argmax[N] the first largest id.
 * With opt_row_weight[N]: act out_dh[N,D] = weight_n * (softmax - onehot) W, and opt_dw[V,D] += the weight's
 * gradient. Rows of weight 0 are free of charge in the backward part. Targets outside [0,V) are MB_ERANGE. */
mb_status mb_ops_head_loss(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                           mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                           mb_tensor *opt_dh, mb_tensor *opt_dw);

/* What a teacher says of rows [N] of logits. Sparse: k tokens of each row (the likeliest) and all others as
 * one bucket; dense: every token. Its distribution is divided by its sum at T, so log-probabilities less
 * any constant of the row serve as well. -INFINITY is a probability of 0 anywhere. The arrays lie in the
 * backend's memory for ops, in the host's for the model's batches (model/lm.h). */
typedef struct mb_teacher_rows {
    double temperature; /* T > 0, of both distributions */
    double beta;        /* 0: KL(teacher || student); 1: KL(student || teacher); between: generalised JSD
                           beta KL(teacher || m) + (1-beta) KL(student || m) with
                           m = beta teacher + (1-beta) student */
    double distil_weight, task_weight; /* row loss = distil_weight T^2 D + task_weight CE */
    const float *opt_dense;            /* [N, V] ln p; NULL: sparse */
    int64_t k;                         /* 1 .. V */
    const int32_t *ids;                /* [N, k] no two of a row alike */
    const float *logprob;              /* [N, k] ln p at temperature 1 */
    const float *tail; /* [N] ln of the sum of p^(1/T) over the others (not read when k = V) */
} mb_teacher_rows;
/* Losses of rows of logits [N,V] f32. opt_ce[N] = logsumexp - logit[target]; opt_distance[N] = D between the
 * teacher and the softmax of logits / T, in nats and not times T^2, over V tokens or the k + 1 buckets;
 * opt_argmax[N] the first largest id. With opt_row_weight[N] the logits become weight_n times the row loss's
 * gradient: of CE, or with a teacher of distil_weight T^2 D + task_weight CE (rows of weight 0: zeros);
 * without, they stay. Targets are needed for opt_ce, and for a gradient unless task_weight is 0.
 * A teacher's probability of 0 costs KL(student || teacher), which would be infinite, as one of
 * e^MB_ROWS_LEAST. */
#define MB_ROWS_LEAST -104.0f
mb_status mb_ops_rows_loss(mb_ops *ops, mb_tensor *logits, const int32_t *opt_targets,
                           const mb_teacher_rows *opt_teacher, mb_tensor *opt_ce, mb_tensor *opt_distance,
                           int32_t *opt_argmax, const float *opt_row_weight);

/* y[rows[t]] = x[t], act A both; rows of y that are not named stay. No two rows alike. */
mb_status mb_ops_scatter_rows(mb_ops *ops, const mb_tensor *x, const int32_t *rows, mb_tensor *y);

/* ---- attention ---- */

/* Causal within each segment (unless shape says otherwise), never across. q[T,H,Dh], k, v [T,G,Dh] ->
 * o[T,H,Dh], all act A; lse[T,H]. */
mb_status mb_ops_attention(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                           const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse);
/* dq, dk, dv are overwritten. All but lse act A. */
mb_status mb_ops_attention_backward(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                    const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                    const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq, mb_tensor *dk,
                                    mb_tensor *dv);

/* ---- routing ---- */

/* softmax over all columns of logits[T,E'] (f32), top K by probability (ties: lower index); ids[T,K];
 * weights[T,K] = probabilities, divided by their sum when normalise. probs[T,E'] is an output too. With
 * opt_bias[E'] (f32, finite) the top K are those of probability + bias, in that order; probs and weights do
 * not see it (Wang et al. 2024). Normalised picks that a bias chose and whose probabilities do not even sum
 * to MB_ROUTE_LEAST have weights and gradients of 0. */
#define MB_ROUTE_LEAST 1e-20f
mb_status mb_ops_route(mb_ops *ops, const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                       bool normalise, mb_tensor *probs, int32_t *ids, mb_tensor *weights);
/* dlogits[T,E'] += from dweights[T,K]. */
mb_status mb_ops_route_backward(mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                const mb_tensor *weights, bool normalise, const mb_tensor *dweights,
                                mb_tensor *dlogits);
/* In place: y[T,E] f32 += value in the columns from `first` on (the bias of the trash experts). */
mb_status mb_ops_shift_columns(mb_ops *ops, int64_t first, float value, mb_tensor *y);
/* Fill dispatch from ids[T,K]; ids >= experts are trash. */
mb_status mb_ops_dispatch(mb_ops *ops, const int32_t *ids, int64_t tokens, int64_t picks, int64_t experts,
                          mb_dispatch *dispatch);
/* out[slot_row[t,k]] = row_index[t] * K + k, for dropout in experts; out[T*K] (trash has none). */
mb_status mb_ops_expand_rows(mb_ops *ops, const mb_dispatch *dispatch, const int64_t *row_index,
                             int64_t tokens, int64_t picks, int64_t *out);
/* act y[P,D] = act x[row_token[p]] */
mb_status mb_ops_gather(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch, mb_tensor *y);
/* dx[T,D] += sum over picks of act dy[slot_row], in pick order */
mb_status mb_ops_gather_backward(mb_ops *ops, const mb_tensor *dy, const mb_dispatch *dispatch, int64_t picks,
                                 mb_tensor *dx);
/* y[T,D] += sum over picks of weights[t,k] * act x[slot_row[t,k]], in pick order */
mb_status mb_ops_combine(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch,
                         const mb_tensor *weights, mb_tensor *y);
/* act X dx[P,D] = weights * dy[token] (overwritten; x is act X);  opt_dweights[T,K] = dot(dy[t], x[row]) (0
 * for trash;
 * overwritten) */
mb_status mb_ops_combine_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                  const mb_dispatch *dispatch, const mb_tensor *weights, mb_tensor *dx,
                                  mb_tensor *opt_dweights);

/* ---- optimiser ---- */

/* AdamW (Loshchilov & Hutter 2019, algorithm 2) on flat f32 arrays of n elements, in place. */
mb_status mb_ops_adamw(mb_ops *ops, const mb_adamw *adamw, int64_t n, const float *gradient, float *parameter,
                       float *moment1, float *moment2);
/* out[b] = f64 sum of squares of elements b*block .. of x[n], each block summed in one fixed order. `out`
 * is the host's, and filled when this returns. */
mb_status mb_ops_sum_squares(mb_ops *ops, const float *x, int64_t n, int64_t block, double *out);

/* Scratch of the ops themselves, in the backend's memory; also offered to callers between ops (mark and
 * release). */
mb_arena *mb_ops_scratch(mb_ops *ops);

#endif
