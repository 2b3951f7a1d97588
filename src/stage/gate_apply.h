/* gate_apply: moe-gate join and apply: answers to outputs, and the gate's logits beside them.
 *
 * Layer: stage.  Uses: learn (gate), gate_inputs, gate_settings.
 */
#ifndef MB_GATE_APPLY_H
#define MB_GATE_APPLY_H

#include "stage/program.h"

/* outputs.h5 in the run folder, without gate_logits. Collective; one rank works. */
mb_status mb_gate_apply_join(mb_program *program);
/* outputs.h5 of the gate's experts, with gate_logits. */
mb_status mb_gate_apply_run(mb_program *program);

#endif
