/* moe-convert: model folder -> model folder, each proven by a verify step. */
#include <math.h>
#include <stdio.h>

#include "base/files.h"
#include "base/log.h"
#include "model/convert.h"
#include "stage/model_options.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "stage/upcycle_stage.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_convert_program *own;
    MB_NEW(own);
    program->own = own;
    const mb_option *table = mb_model_option_table(&n);
    MB_TRY(mb_program_add_table(program, "source", table, n, &own->model));
    table = mb_program_options_convert(&n);
    MB_TRY(mb_program_add_table(program, "conversion", table, n, own));
done:
    return status;
}

static mb_status verify(mb_program *program, const char *target, bool expect_equal, double tolerance)
{
    mb_status status = MB_OK;
    mb_convert_program *own = program->own;
    mb_convert_report report;
    MB_TRY(mb_convert_verify(program->ops, own->model.path, own->model.adapter, target, NULL, 64,
                             expect_equal, tolerance, &report));
    mb_info("%lld tensors: %lld identical, %lld changed, %lld added; largest logit difference %.3g "
            "(relative), mean trash mass %.3g, loss %.4f -> %.4f",
            (long long)report.tensors, (long long)report.identical, (long long)report.changed,
            (long long)report.added, report.max_logit_difference, report.mean_trash_mass, report.loss_before,
            report.loss_after);
    MB_TRY(mb_program_result_int(program, "tensors_identical", report.identical));
    if (isfinite(report.max_logit_difference))
        MB_TRY(mb_program_result_real(program, "max_logit_difference", report.max_logit_difference));
done:
    return status;
}

static mb_status verify_given(mb_program *program)
{
    mb_status status = MB_OK;
    mb_convert_program *own = program->own;
    bool is_upcycled = false;
    if (own->against == NULL)
        MB_RAISE(MB_EUSAGE, "verify needs convert.target: the folder to compare model.path with");
    MB_TRY(mb_upcycle_stage_verify(program, own, own->against, &is_upcycled));
    if (!is_upcycled) MB_TRY(verify(program, own->against, false, 1e-6));
done:
    return status;
}

static mb_status convert(mb_program *program, const char *target)
{
    mb_status status = MB_OK;
    mb_convert_program *own = program->own;
    const char *mode = program->mode, *source = own->model.path;
    const bool is_closed = mb_str_equal(own->trash_init, "closed");
    own->trash.trash_init = own->trash_init;
    own->trash.seed = (uint64_t)own->seed;
    if (mb_str_equal(mode, "init")) {
        if (own->config == NULL)
            MB_RAISE(MB_EUSAGE, "init needs convert.config: the config.json of the new model");
        MB_TRY(mb_convert_init(program->ops, own->config, own->tokenizer, (uint64_t)own->seed, target));
        goto done;
    }
    if (mb_str_equal(mode, "upcycle")) return mb_upcycle_stage_run(program, own, target);
    if (mb_str_equal(mode, "trash"))
        MB_TRY(mb_convert_trash(source, target, &own->trash));
    else if (mb_str_equal(mode, "plain"))
        MB_TRY(mb_convert_plain(source, target));
    else if (mb_str_equal(mode, "full"))
        MB_TRY(mb_convert_full(program->ops, source, target));
    else {
        if (own->model.adapter == NULL)
            MB_RAISE(MB_EUSAGE, "merge needs model.adapter: the PEFT folder to merge into model.path");
        MB_TRY(mb_convert_merge(program->ops, source, own->model.adapter, target));
    }
    if (own->verify)
        MB_TRY(verify(program, target, !mb_str_equal(mode, "trash") || is_closed,
                      mb_str_equal(mode, "merge") ? 1e-4 : 1e-6));
done:
    return status;
}

static mb_status check(mb_program *program)
{
    mb_status status = MB_OK;
    mb_convert_program *own = program->own;
    const char *mode = program->mode;
    if (!mb_str_equal(mode, "init") && own->model.path == NULL)
        MB_RAISE(MB_EUSAGE, "model.path is missing: the folder to convert");
    if (own->model.adapter != NULL && (mb_str_equal(mode, "trash") || mb_str_equal(mode, "plain") ||
                                       mb_str_equal(mode, "full") || mb_str_equal(mode, "upcycle")))
        MB_RAISE(MB_EUSAGE, "%s takes no model.adapter; merge it into the model first (moe-convert merge)",
                 mode);
    if (mb_str_equal(mode, "upcycle") && !program->asks_done) MB_TRY(mb_upcycle_stage_plan(program, own));
done:
    return status;
}

static mb_status run(mb_program *program)
{
    mb_status status = MB_OK;
    bool is_done = false;
    char *target = NULL;
    const bool is_verify = mb_str_equal(program->mode, "verify");
    MB_TRY(check(program));
    if (program->is_dry_run) goto done;
    if (program->asks_done && is_verify) goto done; /* it leaves nothing */
    MB_TRY(mb_program_open_ops(program));
    if (is_verify) {
        MB_TRY(verify_given(program));
        goto done;
    }
    MB_TRY(mb_upcycle_stage_begin(program, program->own, &is_done));
    if (is_done) goto done;
    target = mb_program_path(program, "model");
    MB_TRY(mb_comm_agree(program->comm, mb_program_is_root(program) ? convert(program, target) : MB_OK));
    mb_info("%s written", target);
    MB_TRY(mb_program_finish_run(program, "model", NULL));
done:
    mb_free(target);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-convert",
        .purpose = "convert a model folder: upcycle a dense model into experts, add trash experts, export "
                   "them as a stock model, merge an "
                   "adapter, resolve a delta, start from scratch; prove it",
        .modes = "upcycle|trash|plain|merge|full|init|verify",
        .example =
            "  moe-convert upcycle model.path=models/llama convert.experts=8 convert.experts_per_token=2 "
            "output.dir=checkpoints/x/upcycle\n"
            "  moe-convert trash model.path=models/olmoe output.dir=checkpoints/x/convert      -> "
            "checkpoints/x/convert/model\n"
            "  moe-convert merge model.path=models/llama model.adapter=sft/final "
            "output.dir=checkpoints/x/merged",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
