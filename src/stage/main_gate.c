/* moe-gate: join: several experts' answers as one table; train: a gate that says who will answer right;
 * apply: its logits beside the answers; report: what gate and fusion are worth. */
#include "stage/gate_apply.h"
#include "stage/gate_fit.h"
#include "stage/gate_report.h"
#include "stage/gate_settings.h"
#include "stage/program.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_gate_settings *own;
    const mb_option *table = mb_gate_settings_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "data", table, n, own));
    table = mb_gate_option_table(&n);
    MB_TRY(mb_program_add_table(program, "gate", table, n, &own->gate));
done:
    return status;
}

static mb_status run(mb_program *program)
{
    static const struct {
        const char *mode;
        mb_status (*run)(mb_program *program);
    } modes[] = {{"join", mb_gate_apply_join},
                 {"train", mb_gate_fit_run},
                 {"apply", mb_gate_apply_run},
                 {"report", mb_gate_report_run}};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (mb_str_equal(program->mode, modes[i].mode)) return modes[i].run(program);
    return mb_fail(MB_EUSAGE, "say what to do: join, train, apply or report");
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-gate",
        .purpose =
            "a gate between experts: which of them will answer a question right, learned from what they "
            "answered and the questions' embeddings, and what choosing and fusing is worth",
        .modes = "join|train|apply|report",
        .example = "  moe-gate train gate.train=math=runs/eval-math,law=runs/eval-law "
                   "gate.embeddings=runs/embed-train output.dir=runs/gate\n"
                   "  moe-gate apply gate.path=runs/gate gate.embeddings=runs/embed-test "
                   "outputs.path=math=runs/test-math,law=runs/test-law output.dir=runs/outputs-test\n"
                   "  moe-gate report gate.train=runs/outputs-train gate.test=runs/outputs-test "
                   "output.dir=runs/gate-report",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
