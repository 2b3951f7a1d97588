/* experts_gate: the gate's rank of moe-infer experts: questions are embedded a few at a time, the experts
 * that the gate prefers are asked, and what they answer is fused.
 *
 * Layer: stage.  Uses: serve (experts_ask), experts_embed, experts_fuse.
 */
#ifndef MB_EXPERTS_GATE_H
#define MB_EXPERTS_GATE_H

#include "stage/experts_embed.h"
#include "stage/experts_fuse.h"

/* All questions of the table, until each is fused. MB_ESTOPPED: the stop flag is set. */
mb_status mb_experts_gate_run(const mb_experts_options *options, mb_experts_embed *embed, mb_experts_ask *ask,
                              mb_experts_table *table);

#endif
