/* machine_facts: what one process can see of its node and of what it was given.
 *
 * Layer: stage.  Uses: machine_ranks.
 */
#ifndef MB_MACHINE_FACTS_H
#define MB_MACHINE_FACTS_H

#include "stage/machine_ranks.h"

/* Fill all but `arithmetic` and `threads`; size: of the comm. Cannot fail: what is not known stays 0. */
void mb_machine_facts_get(int size, mb_machine_rank *out_rank);

#endif
