/* convert_upcycle_prompts: gates from what the dense model makes of prompts, one set for each expert.
 *
 * Layer: model.  Uses: convert_upcycle_tensor, convert_upcycle_stream, text (records, tokenizer).
 * Source: mergekit-moe's gate mode "hidden" (mean hidden state of an expert's prompts, less that of its
 * negative ones), taken here where the router reads: after the norm of the feed-forward half.
 *
 * Files: one of records (JSONL, JSON, CSV) with "expert": 0 .. and "text" (or "prompt"), and "negative": true
 * for prompts the expert shall not take; or as many text files as experts, a prompt on each line. With
 * virtual groups it is groups that have prompts.
 *
 * Of expert e, m_e is the mean over its prompts of the mean over their tokens (a BOS token put in front is
 * left out), v_e = m_e less the mean of its negative prompts. The row is the direction of v_e less the mean
 * over experts (which moves all logits alike), times one factor per layer, so that on its own prompts an
 * expert's mean logit lies prompts_margin above the mean of the others', on average over experts.
 */
#ifndef MB_CONVERT_UPCYCLE_PROMPTS_H
#define MB_CONVERT_UPCYCLE_PROMPTS_H

#include "model/convert_upcycle_tensor.h"

/* Fills set->prompted. MB_EUSAGE, MB_EDATA with file, line and what to do. */
mb_status mb_convert_upcycle_prompts_run(mb_convert_upcycle_set *set, mb_ops *ops);

#endif
