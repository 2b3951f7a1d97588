/* ref: every op in plain C, one function mb_<op>_ref per entry of the table, same arguments as mb_ops_<op>.
 *
 * Layer: ops (ref backend).  Uses: ops_table.h.
 * Simple loops, sums in f64 where they are long, parallel over independent rows only: bits do not depend on
 * threads.
 */
#ifndef MB_OPS_REF_H
#define MB_OPS_REF_H

#include "ops/ops_table.h"

#define MB_REF_DECLARE(op) __typeof__(mb_ops_##op) mb_##op##_ref;
MB_OPS_LIST(MB_REF_DECLARE)
#undef MB_REF_DECLARE

#endif
