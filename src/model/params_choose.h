/* params_choose: which tensors of a model train, said in words and patterns. Used by params.c alone.
 *
 * Layer: model.  Uses: params.
 *
 * What is said is a comma-separated list, taken in its order, so that a later item overrules an earlier one:
 *   *.mlp.gate.weight   a pattern of HF names with * ? and [...]: these train
 *   all, router, experts, attention   words for every tensor, the gates, the experts' matrices, and what is
 *                       called self_attn
 *   !item               these do not, an adapter's tensors among them
 *   lora                an adapter's tensors, which train anyway unless the whole list is "none"
 *   experts=0+3         of the tensors of experts that train by all this (an adapter's too), only those of
 *                       these experts do, in every layer; wherever it stands in the list
 * A tensor that does not train keeps its bits: it has no gradient, no moments, no weight decay.
 */
#ifndef MB_PARAMS_CHOOSE_H
#define MB_PARAMS_CHOOSE_H

#include "model/params.h"

/* Sets list[i].trained. MB_EUSAGE: an item matches nothing (names the nearest), or experts= has nothing to
 * choose from. */
mb_status mb_params_choose_apply(mb_param *list, int64_t count, const char *patterns);
/* Is it an adapter's tensor, a gate's weight? */
bool mb_params_choose_is_lora(const mb_param *param);
bool mb_params_choose_is_router(const mb_param *param);

#endif
