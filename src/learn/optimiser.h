/* optimiser: AdamW on the elements this rank owns, with clipping by the global norm.
 *
 * Layer: learn.  Uses: ops, comm (lanes), model (params).
 * Source: Loshchilov & Hutter (2019), algorithm 2. Weight decay spares tensors of one dimension (norms,
 * biases), as transformers' Trainer does.
 *
 * Moments exist only for owned elements (ZeRO-1); the f32 parameters themselves are the master weights. The
 * norm is the root of f64 sums over blocks of MB_LANES_BLOCK elements added in block order, so it has the
 * same bits on any number of ranks.
 */
#ifndef MB_OPTIMISER_H
#define MB_OPTIMISER_H

#include "comm/lanes.h"
#include "model/params.h"

typedef struct mb_optimiser mb_optimiser;

typedef struct mb_optimiser_options {
    double beta1, beta2, epsilon, weight_decay, max_norm; /* max_norm 0: no clipping */
} mb_optimiser_options;

/* ops, params and lanes are borrowed. */
mb_status mb_optimiser_create(mb_ops *ops, mb_params *params, mb_lanes *lanes,
                              const mb_optimiser_options *options, mb_optimiser **out_optimiser);
void mb_optimiser_destroy(mb_optimiser **optimiser);

/* One update from the sums of the owned gradients ([owned], as mb_lanes_reduce gives them). step from 1.
 * Collective: all fail or none. MB_ENUMERIC when the norm is not finite: nothing was changed. Afterwards all
 * ranks have the new parameters (of a sharded model: will be brought the new ones) and packed forms are
 * stale. */
mb_status mb_optimiser_step(mb_optimiser *optimiser, float *gradient, int64_t step, double learning_rate,
                            double *out_norm);

/* This rank's moments (1 and 2), [owned], in the backend's memory, as the gradient and the parameters are. */
float *mb_optimiser_moment(mb_optimiser *optimiser, int moment);
/* n elements of one from its element `first` on, into the host's memory and back. */
mb_status mb_optimiser_download(mb_optimiser *optimiser, int moment, int64_t first, int64_t n, float *host);
mb_status mb_optimiser_upload(mb_optimiser *optimiser, int moment, int64_t first, int64_t n,
                              const float *host);

#endif
