/* cpu: creation of the backend: instruction set, matrix library, table entries.
 *
 * MB_ISA=portable|avx2|avx512 and MB_OPS_DENSE=dnnl|cblas force a choice.
 */
#include "ops/cpu/cpu.h"
#include "ops/cpu/dense_library.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void cpu_destroy(void *opaque)
{
    mb_cpu *cpu = opaque;
    mb_dense_destroy(&cpu->dense);
    mb_free(cpu);
}

bool mb_ops_cpu_is_built(void)
{
    return mb_dnnl_get() != NULL || mb_blas_get() != NULL;
}

mb_status mb_ops_cpu_fill(mb_ops *ops)
{
    mb_status status = MB_OK;
    mb_cpu *cpu = NULL;
    const char *isa = getenv("MB_ISA");
    MB_NEW(cpu);
    ops->backend = cpu;
    ops->backend_destroy = cpu_destroy;
    cpu->kernels = mb_kernels_get(isa);
    if (cpu->kernels == NULL) {
        MB_RAISE(MB_EUNSUPPORTED, "MB_ISA=%s: not known, or not on this processor; unset it", isa);
    }
    cpu->dequant = mb_dequant_get(cpu->kernels->name);
    cpu->int4 = mb_int4_get(cpu->kernels->name);
    MB_TRY(mb_dense_create(getenv("MB_OPS_DENSE"), strcmp(cpu->kernels->name, "avx512") == 0, ops->threads,
                           &cpu->dense));
#define MB_CPU_ENTRY(op) ops->table.op = mb_##op##_cpu;
    MB_CPU_LIST(MB_CPU_ENTRY)
#undef MB_CPU_ENTRY
    ops->name = "cpu";
    MB_TRY(mb_linear_probe(ops, &ops->row_stable));
    snprintf(ops->describe, sizeof ops->describe, "cpu %s, attention %s, %d threads",
             mb_dense_describe(cpu->dense), cpu->kernels->name, ops->threads);
done:
    return status;
}
