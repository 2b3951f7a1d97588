/* ref: fills the table with the plain C functions. */
#include "ops/ref/ref.h"

#include <stdio.h>

void mb_ops_ref_fill(mb_ops *ops)
{
    ops->name = "ref";
    ops->row_stable = true;
    snprintf(ops->describe, sizeof ops->describe, "ref plain C, %d threads", ops->threads);
#define MB_REF_ENTRY(op) .op = mb_##op##_ref,
    ops->table = (mb_ops_table){MB_OPS_LIST(MB_REF_ENTRY)};
#undef MB_REF_ENTRY
}
