/* moe-merge: benchmarks to one file of questions; that file to parts; without what others have; to training
 * records. */
#include "stage/merge_options.h"
#include "stage/merge_records.h"
#include "stage/merge_set.h"
#include "stage/merge_split.h"
#include "stage/merge_without.h"
#include "stage/program.h"

#include "base/memory.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_merge_program *own;
    const mb_option *table = mb_merge_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "questions", table, n, own));
done:
    return status;
}

static mb_status run(mb_program *program)
{
    static const struct {
        const char *mode;
        mb_status (*run)(mb_program *program);
    } modes[] = {{"merge", mb_merge_set_run},
                 {"split", mb_merge_split_run},
                 {"without", mb_merge_without_run},
                 {"records", mb_merge_records_run}};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (mb_str_equal(program->mode, modes[i].mode)) return modes[i].run(program);
    return mb_fail(MB_EUSAGE, "say what to do: merge, split, without or records");
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-merge",
        .purpose = "benchmarks of many forms as one file of questions (merge), shared out to parts (split), "
                   "without what other files have (without), and as training records (records)",
        .modes = "merge|split|without|records",
        .example = "  moe-merge merge merge.inputs=mmlu=data/mmlu,arc=arc_easy.jsonl,agieval=data/agieval "
                   "output.dir=checkpoints/moe2/questions\n"
                   "  moe-merge split questions.path=checkpoints/moe2/questions "
                   "split.parts=train=1,gating_train=0.8:mmlu,gating_test=0.2:mmlu "
                   "output.dir=checkpoints/moe2/parts",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
