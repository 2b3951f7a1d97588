/* moe-subset: which experts to keep so that their fused answers are right most often and latency and energy
 * limits are met; every subset, or branch and bound. */
#include "stage/program.h"
#include "stage/subset_options.h"
#include "stage/subset_run.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_subset_program *own;
    const mb_option *table = mb_subset_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "subsets", table, n, own));
    table = mb_gate_option_table(&n);
    MB_TRY(mb_program_add_table(program, "retrained gates", table, n, &own->gate));
done:
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-subset",
        .purpose =
            "the best subset of experts under latency and energy limits, chosen on some questions and judged "
            "on others: exact, with the whole Pareto front",
        .example = "  moe-subset subset.train=runs/outputs-train subset.test=runs/outputs-test "
                   "subset.latency=runs/bench subset.energy=runs/bench output.dir=runs/subset\n"
                   "  mpirun -np 4 moe-subset subset.method=branch_and_bound subset.seconds=600 ...",
        .declare = declare,
        .run = mb_subset_run};
    return mb_program_main(argc, argv, &spec);
}
