/* moe-bench: how long experts take to answer, and what energy, by lengths of prompt and output; join: several
 * such measurements as one. */
#include "stage/bench_options.h"
#include "stage/bench_run.h"
#include "stage/program.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_bench_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_bench_option_table(&n);
    MB_TRY(mb_program_add_table(program, "measurement", table, n, own));
done:
    return status;
}

static mb_status run(mb_program *program)
{
    return program->mode != NULL ? mb_bench_join(program) : mb_bench_run(program);
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-bench",
        .purpose =
            "latency and energy of experts by prompt and output length, every round kept, the source of the "
            "joules named; join: several measurements as one",
        .modes = "join",
        .mode_is_optional = true,
        .example =
            "  moe-bench bench.experts=math=experts/math,law=experts/law bench.prompt_tokens=64,256,1024 "
            "output.dir=runs/bench\n"
            "  moe-bench join bench.inputs=a=runs/bench-a,b=runs/bench-b output.dir=runs/bench",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
