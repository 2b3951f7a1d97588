/* upcycle_stage: moe-convert's mode upcycle.
 *
 * 1. inputs
 * 2. the plan
 * 3. making and proving it
 */
#include "stage/upcycle_stage.h"

#include "base/files.h"
#include "base/log.h"

/* ---- 1. inputs ---- */

/* Each file under a name of its own: "<name>_0", "<name>_1", ... */
static mb_status list_inputs(const char *list, const char *name, char ***out_paths, char ***out_names,
                             int64_t *out_count)
{
    mb_status status = MB_OK;
    char **names = NULL, **paths = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(list, &paths, &n));
    MB_NEW_ARRAY(names, n);
    for (int64_t i = 0; i < n; i++) {
        names[i] = mb_str_format("%s_%lld", name, (long long)i);
        if (names[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    }
    *out_paths = paths, *out_names = names, *out_count = n;
    paths = names = NULL;
done:
    mb_option_list_free(&names, n);
    mb_option_list_free(&paths, n);
    return status;
}

mb_status mb_upcycle_stage_begin(mb_program *program, mb_convert_program *own, bool *out_is_done)
{
    mb_status status = MB_OK;
    const char **names = NULL, **paths = NULL;
    char **prompts = NULL, **prompt_names = NULL, **siblings = NULL, **sibling_names = NULL;
    int64_t np = 0, ns = 0, n = 4;
    if (mb_str_equal(program->mode, "upcycle")) {
        MB_TRY(list_inputs(own->upcycle.prompts, "prompts", &prompts, &prompt_names, &np));
        MB_TRY(list_inputs(own->upcycle.siblings, "sibling", &siblings, &sibling_names, &ns));
    }
    MB_NEW_ARRAY(names, n + np + ns);
    MB_NEW_ARRAY(paths, n + np + ns);
    names[0] = "model", paths[0] = own->model.path;
    names[1] = "adapter", paths[1] = own->model.adapter;
    names[2] = "config", paths[2] = own->config;
    names[3] = "tokenizer", paths[3] = own->tokenizer;
    for (int64_t i = 0; i < np; i++) names[n] = prompt_names[i], paths[n++] = prompts[i];
    for (int64_t i = 0; i < ns; i++) names[n] = sibling_names[i], paths[n++] = siblings[i];
    MB_TRY(mb_program_begin_run_list(program, names, paths, n, out_is_done));
done:
    mb_option_list_free(&prompts, np);
    mb_option_list_free(&prompt_names, np);
    mb_option_list_free(&siblings, ns);
    mb_option_list_free(&sibling_names, ns);
    mb_free(names);
    mb_free(paths);
    return status;
}

/* ---- 2. the plan ---- */

mb_status mb_upcycle_stage_plan(mb_program *program, mb_convert_program *own)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_plan plan = {0};
    mb_arch dense = {0};
    own->upcycle.seed = (uint64_t)own->seed;
    own->upcycle.tokenizer = own->tokenizer;
    if (program->is_dry_run && !mb_files_is_folder(own->model.path)) goto done;
    MB_TRY(mb_arch_read(own->model.path, &dense));
    MB_TRY(mb_convert_upcycle_plan_create(&dense, own->model.path, &own->upcycle, &plan));
    mb_info("%s of %.4g parameters -> %s: %lld experts of width %lld in %lld of %lld layers, %lld a token, "
            "%.4g parameters (%s), scaled by %g",
            mb_arch_facts(&dense)->type, (double)mb_arch_parameters(&dense), mb_arch_facts(&plan.arch)->type,
            (long long)plan.arch.experts, (long long)plan.arch.ffn, (long long)mb_arch_moe_layers(&plan.arch),
            (long long)plan.arch.layers, (long long)plan.arch.picks, (double)mb_arch_parameters(&plan.arch),
            mb_dtype_name(plan.arch.stored_dtype),
            mb_str_equal(own->upcycle.scaling, "none") ? 1 : plan.factor);
done:
    mb_convert_upcycle_plan_reset(&plan);
    mb_arch_reset(&dense);
    return status;
}

/* ---- 3. making and proving it ---- */

static mb_status report_upcycle(mb_program *program, const mb_convert_upcycle_report *r)
{
    mb_status status = MB_OK;
    mb_info("%lld tensors: %lld identical, %lld copied and %lld sliced into experts, %lld computed, %lld "
            "averaged, %lld new; every dense FFN is there %lld times",
            (long long)r->tensors, (long long)r->identical, (long long)r->copied, (long long)r->sliced,
            (long long)r->computed, (long long)r->averaged, (long long)r->added, (long long)r->copies);
    mb_info("function preserved: %s (largest logit difference %.3g of the largest logit, limit %.2g%s)",
            r->is_preserved ? "yes" : "no", r->max_logit_difference, r->limit,
            r->is_exact ? "" : "; these options need not preserve it");
    MB_TRY(mb_program_result_int(program, "tensors_identical", r->identical));
    MB_TRY(mb_program_result_int(program, "tensors_copied", r->copied));
    MB_TRY(mb_program_result_int(program, "tensors_sliced", r->sliced));
    MB_TRY(mb_program_result_int(program, "tensors_computed", r->computed));
    MB_TRY(mb_program_result_int(program, "tensors_averaged", r->averaged));
    MB_TRY(mb_program_result_int(program, "tensors_new", r->added));
    MB_TRY(mb_program_result_int(program, "function_preserved", r->is_preserved));
    MB_TRY(mb_program_result_real(program, "max_logit_difference", r->max_logit_difference));
done:
    return status;
}

mb_status mb_upcycle_stage_run(mb_program *program, mb_convert_program *own, const char *target)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_report report;
    MB_TRY(mb_convert_upcycle(program->ops, own->model.path, target, &own->upcycle));
    if (!own->verify) goto done;
    MB_TRY(mb_convert_upcycle_verify(program->ops, own->model.path, target, &own->upcycle, &report));
    MB_TRY(report_upcycle(program, &report));
done:
    return status;
}

mb_status mb_upcycle_stage_verify(mb_program *program, mb_convert_program *own, const char *target,
                                  bool *out_is_upcycled)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_report report;
    bool is_upcycled = false;
    MB_TRY(mb_convert_upcycle_verify_folder(program->ops, own->model.path, target, own->upcycle.siblings,
                                            &is_upcycled, &report));
    if (is_upcycled) MB_TRY(report_upcycle(program, &report));
    *out_is_upcycled = is_upcycled;
done:
    return status;
}
