/* quantize_report: see the header.
 *
 * 1. size   2. memory   3. figures
 */
#include "stage/quantize_report.h"

#include <string.h>

#include "base/log.h"
#include "stage/memory_report.h"

#define MIB 1048576.0

/* ---- 1. size ---- */

mb_quantize_size mb_quantize_report_size(mb_lm *lm, const mb_quantise_options *options)
{
    mb_params *params = mb_lm_params(lm);
    const int64_t stored = (int64_t)mb_dtype_bytes(mb_lm_arch(lm)->stored_dtype),
                  scale = (int64_t)mb_dtype_bytes(options->gptq.stored);
    mb_quantize_size size = {0};
    int64_t packed = 0;
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const int64_t n = param->value.shape[0], k = param->value.shape[1];
        if (strstr(param->name, ".lora_") != NULL) continue;
        const int64_t plain = n * k * (param->is_carried ? 4 : stored);
        size.parameters += n * k;
        size.before += plain;
        if (!mb_quantise_layers_has(params, param)) {
            size.after += plain;
            continue;
        }
        size.quantised += n * k;
        packed += n * ((k + 7) / 8 * 4 + k / mb_gptq_group(k, options->gptq.group) * scale);
    }
    size.after += packed;
    size.bits = size.quantised > 0 ? 8 * (double)packed / (double)size.quantised : 0;
    return size;
}

/* ---- 2. memory ---- */

void mb_quantize_report_forecast(mb_program *program, mb_lm *lm, const mb_quantise_options *options,
                                 int64_t tokens)
{
    const mb_quantize_size size = mb_quantize_report_size(lm, options);
    const mb_params_bytes_used used = mb_lm_used(lm);
    const int ranks = mb_comm_size(program->comm);
    int64_t records, step;
    mb_info("%.4g M of %.4g M parameters become 4 bits, %.2f with their scales: %.1f MiB -> %.1f MiB",
            (double)size.quantised / 1e6, (double)size.parameters / 1e6, size.bits, (double)size.before / MIB,
            (double)size.after / MIB);
    mb_quantise_layers_plan(mb_lm_arch(lm), options, tokens, &records, &step);
    const mb_lm_memory memory[] = {{"weights", (int64_t)used.frozen + mb_lm_rope_bytes(lm), 0},
                                   {"calibration", (records + ranks - 1) / ranks, 0},
                                   {"Hessians", step, 0}};
    mb_memory_report_forecast(memory, 3);
}

/* ---- 3. figures ---- */

static mb_status report_json(const mb_quantise_options *o, const mb_quantize_size *size, int64_t file_bytes,
                             const mb_quantise_report *r, int64_t records, const mb_quantize_loss *opt_loss,
                             json_t **out_json)
{
    mb_status status = MB_OK;
    json_t *json = json_pack(
        "{s:s, s:i, s:I, s:b, s:I, s:I, s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:O}", "method",
        o->by_gptq ? "gptq" : "rtn", "bits", 4, "group", (json_int_t)o->gptq.group, "act_order",
        o->by_gptq && o->gptq.act_order, "parameters", (json_int_t)size->parameters, "quantised_parameters",
        (json_int_t)size->quantised, "bytes_before", (json_int_t)size->before, "bytes_after",
        (json_int_t)file_bytes, "compression", (double)size->before / (double)file_bytes, "bits_per_weight",
        size->bits, "matrices", (json_int_t)r->matrices, "matrices_gptq", (json_int_t)r->by_gptq,
        "matrices_scant", (json_int_t)r->scant, "matrices_other_group", (json_int_t)r->other_groups, "layers",
        r->list);
    if (json == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for results.json");
    if (o->by_gptq)
        MB_TRY(mb_json_set(json, "calibration",
                           json_pack("{s:I, s:I, s:f, s:I}", "records", (json_int_t)records, "tokens",
                                     (json_int_t)r->tokens, "percdamp", o->gptq.damping, "expert_tokens",
                                     (json_int_t)o->expert_tokens)));
    if (opt_loss != NULL)
        MB_TRY(mb_json_set(json, "perplexity",
                           json_pack("{s:f, s:f, s:f, s:f, s:I}", "before", opt_loss[0].perplexity, "after",
                                     opt_loss[1].perplexity, "nll_before", opt_loss[0].nll, "nll_after",
                                     opt_loss[1].nll, "tokens", (json_int_t)opt_loss[0].tokens)));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}

static void report_log(const mb_quantise_options *o, const mb_quantize_size *size, int64_t file_bytes,
                       const mb_quantise_report *r, const mb_quantize_loss *opt_loss)
{
    mb_info("%lld matrices in 4 bits (%s), %.2f bits a weight: %.1f MiB -> %.1f MiB, %.2f times smaller, in "
            "%.1f s",
            (long long)r->matrices, o->by_gptq ? "GPTQ" : "to the nearest", size->bits,
            (double)size->before / MIB, (double)file_bytes / MIB, (double)size->before / (double)file_bytes,
            r->seconds);
    if (r->scant > 0)
        mb_warn(
            "%lld matrices of experts that fewer than %lld of %lld calibration tokens reached were rounded "
            "to the nearest; more quantize.samples reach more (results.json lists them)",
            (long long)r->scant, (long long)o->expert_tokens, (long long)r->tokens);
    if (r->other_groups > 0)
        mb_warn("%lld matrices have columns that are no multiple of %lld and got the nearest group that "
                "divides them",
                (long long)r->other_groups, (long long)o->gptq.group);
    if (opt_loss != NULL)
        mb_info("perplexity %.4f -> %.4f (%+.2f %%, %lld tokens)", opt_loss[0].perplexity,
                opt_loss[1].perplexity, 100 * (opt_loss[1].perplexity / opt_loss[0].perplexity - 1),
                (long long)opt_loss[0].tokens);
}

mb_status mb_quantize_report_write(mb_program *program, const mb_quantise_options *options,
                                   const mb_quantize_size *size, int64_t file_bytes,
                                   const mb_quantise_report *report, int64_t records,
                                   const mb_quantize_loss *opt_loss)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char *path = mb_program_path(program, "results.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for results.json");
    report_log(options, size, file_bytes, report, opt_loss);
    MB_TRY(mb_program_result_int(program, "bytes_before", size->before));
    MB_TRY(mb_program_result_int(program, "bytes_after", file_bytes));
    MB_TRY(mb_program_result_int(program, "matrices", report->matrices));
    MB_TRY(mb_program_result_int(program, "matrices_scant", report->scant));
    MB_TRY(mb_program_result_real(program, "quantize_seconds", report->seconds));
    if (opt_loss != NULL) {
        MB_TRY(mb_program_result_real(program, "perplexity_before", opt_loss[0].perplexity));
        MB_TRY(mb_program_result_real(program, "perplexity_after", opt_loss[1].perplexity));
    }
    if (!mb_program_is_root(program)) goto done;
    MB_TRY(report_json(options, size, file_bytes, report, records, opt_loss, &json));
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(json);
    mb_free(path);
    return status;
}
