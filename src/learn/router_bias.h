/* router_bias: load balance without a loss: a bias per expert that moves against its load.
 *
 * Layer: learn.  Uses: lm.
 * Source: Wang et al. (2024) arXiv 2408.15664, algorithm 1; DeepSeek-V3 (2024) arXiv 2412.19437, 2.1.2;
 * OLMo-core's bias_gamma, Megatron-LM's --moe-router-enable-expert-bias.
 *
 * A router picks the top K of p + b, and weighs what it picked by p alone (ops.h, mb_ops_route). b has no
 * gradient: after each step b_e += rate x sign(mean load - load_e), with the picks of the whole step (all
 * micro-batches, all ranks), so that it does not depend on how the step was cut. The model holds b
 * (mb_lm_options.router_bias) and saves it.
 *
 * Trash experts take no part: their b stays 0, and the mean is over the good experts' loads. What b does
 * among the good experts also moves their share against the trash; the trash has its own losses for that.
 */
#ifndef MB_ROUTER_BIAS_H
#define MB_ROUTER_BIAS_H

#include "model/lm.h"

/* loads [routers, E']: picks per expert of the step, the same numbers on every rank (each changes its own
 * copy, so that nothing has to be sent). rate >= 0; 0, and a router without any load, change nothing. To be
 * called between two passes. MB_EUSAGE: the model holds no bias. */
mb_status mb_router_bias_update(mb_lm *lm, const int64_t *loads, double rate);

#endif
