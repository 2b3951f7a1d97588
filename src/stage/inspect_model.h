/* inspect_model: forward passes and gradients of a model on given token ids, written as HDF5.
 *
 * Layer: stage.  Uses: model, learn, store.
 */
#ifndef MB_INSPECT_MODEL_H
#define MB_INSPECT_MODEL_H

#include "learn/objective.h"

typedef struct mb_inspect_model {
    mb_lm_options lm; /* train is set by the calls */
    const char
        *tokens;     /* JSON array of arrays of ids, or of {"ids": [...], "loss_mask": [...]}; for objective
                           dpo chosen, rejected, chosen, ... */
    const char *out; /* .h5 */
    const mb_objective_options *objective; /* gradients only */
    const char *opt_train;                 /* gradients: what trains; NULL by objective */
} mb_inspect_model;

/* /seq_00000/logits [T,V], hidden [T,D] (not of a fused model), router_logits [L,T,E'] of every sequence,
 * each a pass of its own. */
mb_status mb_inspect_model_forward(mb_ops *ops, const mb_inspect_model *inspect);
/* /loss, /loss_terms/<name>, /grad/<tensor> of one micro-batch of all sequences; the terms are printed too.
 */
mb_status mb_inspect_model_gradients(mb_ops *ops, const mb_inspect_model *inspect);

#endif
