/* block: one decoder layer, its parameters, what a pass keeps of it, and its two halves forward and
 * backward.
 *
 * Layer: model.  Uses: projection, arch, ops.
 * Source: transformers' modeling_llama.py, modeling_olmoe.py and their sisters.
 *
 * Dtypes: the residual stream, norms' statistics and everything of the router are f32; what passes between
 * matrices ("act" below) has the context's dtype. The residual stream x [T, D] is changed in place:
 * x += attention(norm(x)); x += ffn(norm(x)). So is its gradient on the way back. What a half needs for its
 * backward pass is kept in mb_block_saved, in the pass's arena; norms, gathers and SwiGLU are made again
 * rather than kept. All of it, the arrays of numbers too, lies in the backend's memory (ops.h): nothing here
 * is read by the host.
 */
#ifndef MB_BLOCK_H
#define MB_BLOCK_H

#include "model/kv_cache.h"
#include "model/projection.h"

typedef struct mb_block {
    mb_param *input_norm, *post_norm; /* [D] */
    mb_param *q_norm, *k_norm;        /* or NULL */
    mb_projection q, k, v, o;
    mb_projection gate, up, down; /* dense FFN */
    mb_projection router;         /* mixture of experts */
    mb_param *router_bias; /* [E'], or NULL: a bias that the choice of experts sees, and nothing else */
    mb_projection_group experts_gate, experts_up, experts_down;
    bool is_moe;
    int64_t index, window;
    /* What the backward pass has to compute, fixed by what trains: */
    bool needs_any;       /* anything here at all */
    bool needs_input;     /* the gradient of the block's input: something below trains, or it was asked for */
    bool needs_qkv;       /* through the attention */
    bool needs_attention; /* the attention half in any way */
    bool needs_ffn_input; /* the gradient of the FFN half's input */
    bool needs_experts;   /* into the expert (or dense FFN) matrices */
    bool needs_router;    /* the gradient of the router's logits */
} mb_block;

typedef struct mb_block_saved {
    mb_tensor x_in, rstd_in;   /* [T, D], [T] */
    mb_tensor q_raw, k_raw;    /* act, before q/k norm and clip; dims 0 when there is neither */
    mb_tensor q_rstd, k_rstd;  /* [T], or [T, H|G] where each head is normed by itself */
    mb_tensor q, k, v, o;      /* act [T, H|G, Dh], after rotation */
    mb_tensor lse;             /* [T, H] */
    mb_tensor x_mid, rstd_mid; /* [T, D], [T] */
    mb_tensor gate, up;        /* act [T, F] dense, [P, F] experts */
    mb_tensor out;             /* act [P, D] of experts */
    mb_tensor router_logits;   /* [T, E'], without the trash bias */
    mb_tensor probs, weights;  /* [T, E'], [T, K] */
    int32_t *ids;              /* [T, K], the backend's as well */
    mb_dispatch dispatch;
    bool is_gate_only; /* stopped after the router */
} mb_block_saved;

typedef struct mb_block_context {
    mb_projection_context p; /* row_index is that of tokens */
    mb_arena *host;          /* of what the host sends (mb_block_send); stays until the pass has waited */
    const mb_arch *arch;
    const mb_tensor *rope; /* [Pmax, Dh] */
    int64_t tokens;
    const int32_t *positions;
    mb_attention_shape shape;     /* its window is set per block */
    mb_dtype dtype;               /* of act tensors: f32 or bf16 */
    mb_tensor normed;             /* [T, D] f32 work space */
    mb_tensor normed_act;         /* [T, D] act work space; normed itself when act is f32 */
    bool gradient;                /* keep what the backward pass needs */
    mb_kv_cache *opt_cache;       /* keys and values of earlier calls are there and new ones are put there: */
    const int32_t *opt_cache_row; /* [T] row of the cache for each new one; shape speaks of all of them */
} mb_block_context;

/* Point at the parameters and work out what has to be computed backward: what trains, and with
 * input_gradient the gradient of the input whatever trains. Frees nothing on failure: call reset. */
mb_status mb_block_find(mb_block *block, const mb_arch *arch, mb_params *params, int64_t index,
                        bool input_gradient);
void mb_block_reset(mb_block *block);

/* Both halves on x [T, D], in place, its weights acquired meanwhile; gate_only: a mixture of experts stops
 * after its router. Back, the later half first: dx is the gradient of the output, then of the input where
 * that is needed. */
mb_status mb_block_forward(const mb_block_context *context, mb_params *params, mb_block *block,
                           bool gate_only, mb_tensor *x, mb_block_saved *saved);
mb_status mb_block_backward(const mb_block_context *context, mb_params *params, mb_block *block,
                            const mb_block_saved *saved, const float *opt_d_router_logits, mb_tensor *dx);

/* f32 tensors from the pass's arena, act ones, and a copy of one in its dtype. */
mb_status mb_block_new1(const mb_block_context *context, int64_t n0, mb_tensor *out);
mb_status mb_block_new2(const mb_block_context *context, int64_t n0, int64_t n1, mb_tensor *out);
mb_status mb_block_new3(const mb_block_context *context, int64_t n0, int64_t n1, int64_t n2, mb_tensor *out);
mb_status mb_block_act2(const mb_block_context *context, int64_t n0, int64_t n1, mb_tensor *out);
mb_status mb_block_act3(const mb_block_context *context, int64_t n0, int64_t n1, int64_t n2, mb_tensor *out);
/* x itself when act is f32, else x rounded. */
mb_status mb_block_cast(const mb_block_context *context, const mb_tensor *x, mb_tensor *out);
mb_status mb_block_keep(const mb_block_context *context, const mb_tensor *x, mb_tensor *out);
/* Numbers of the host's memory, which is free again at once, into a tensor that is there; and as ops take
 * them: themselves, or a copy in the arena. */
mb_status mb_block_send(const mb_block_context *context, const void *host, mb_tensor *out);
mb_status mb_block_input(const mb_block_context *context, const void *host, size_t bytes, const void **out);
/* The gradient a trained parameter takes, NULL for a frozen one. */
mb_tensor *mb_block_gradient(mb_param *param);

mb_status mb_attention_block_forward(const mb_block_context *context, mb_block *block, mb_tensor *x,
                                     mb_block_saved *saved);
mb_status mb_attention_block_backward(const mb_block_context *context, mb_block *block,
                                      const mb_block_saved *saved, mb_tensor *dx);
mb_status mb_ffn_forward(const mb_block_context *context, mb_block *block, mb_tensor *x,
                         mb_block_saved *saved);
mb_status mb_ffn_backward(const mb_block_context *context, mb_block *block, const mb_block_saved *saved,
                          mb_tensor *dx);
/* saved->is_gate_only set by the caller: x is not changed then. */
mb_status mb_experts_forward(const mb_block_context *context, mb_block *block, mb_tensor *x,
                             mb_block_saved *saved);
mb_status mb_experts_backward(const mb_block_context *context, mb_block *block, const mb_block_saved *saved,
                              const float *opt_d_router_logits, mb_tensor *dx);

#endif
