/* gate_net: the arithmetic of the gate: weights laid out for products, forward, backward, AdamW. For gate*.c.
 *
 * Layer: learn.  Uses: base, gate.
 */
#ifndef MB_GATE_NET_H
#define MB_GATE_NET_H

#include "learn/gate.h"

enum { MB_GATE_LANES = 16 };

/* Matrices lie in x out; outs are padded with zeros to whole lanes, and stay 0 there. One block holds all
 * weights: w1 [D, Hp], w2 [Hp, Xp], b1 [Hp], b2 [Xp]; the first `decayed` of `count` numbers are the
 * matrices. */
typedef struct mb_gate_net {
    int64_t width, hidden, experts, hidden_padded, experts_padded;
    int64_t decayed, count;
    float *data, *w1, *w2, *b1, *b2;
} mb_gate_net;
mb_status mb_gate_net_create(int64_t width, int64_t hidden, int64_t experts, mb_gate_net *out_net);
void mb_gate_net_reset(mb_gate_net *net);
void mb_gate_net_load(mb_gate_net *net, const mb_gate *gate);  /* from [out, in] */
void mb_gate_net_store(const mb_gate_net *net, mb_gate *gate); /* to */

/* Room for batches of `rows`. */
typedef struct mb_gate_work {
    int64_t rows;
    float *x;                 /* [rows, D] the batch: standardised, filled by the caller */
    float *target;            /* [rows, X] filled by the caller for backward */
    float *before, *hidden;   /* [rows, Hp] before and after gelu */
    float *logits, *d_logits; /* [rows, Xp] */
    float *d_hidden;          /* [rows, Hp] */
    float *w2_turned;         /* [X, Hp] */
} mb_gate_work;
mb_status mb_gate_work_create(const mb_gate_net *net, int64_t rows, mb_gate_work *out_work);
void mb_gate_work_reset(mb_gate_work *work);

/* logits of the first n rows of x. */
void mb_gate_net_forward(const mb_gate_net *net, int64_t n, mb_gate_work *work);
/* After forward: the mean loss over the rows with a target, and gradient->data of it. NaN (and zeros) when
 * none has one. */
double mb_gate_net_backward(const mb_gate_net *net, int64_t n, mb_gate_work *work, mb_gate_net *gradient);
/* One update; moments [2, count], step from 1. As torch.optim.AdamW with betas 0.9, 0.999 and eps 1e-8. */
void mb_gate_net_adamw(mb_gate_net *net, const mb_gate_net *gradient, float *moments, int64_t step,
                       double learning_rate, double weight_decay);

/* Is one of them not 0? */
bool mb_gate_has_target(const float *target, int64_t experts);

#endif
