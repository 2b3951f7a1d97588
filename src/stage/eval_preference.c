/* eval_preference.c: figures of preference into log, results and record.
 *
 * 1. the reference   2. rows   3. both
 */
#include "stage/eval_preference.h"

#include <math.h>
#include <stdio.h>

#include "base/log.h"
#include "learn/reference.h"
#include "stage/program_options.h"

/* ---- 1. the reference ---- */

/* p_reference by record: a new block. The reference is another model than the one evaluated, so only the data
 * must be the same. */
static mb_status read_reference(const mb_eval_program *own, mb_shard *shard, double **out_logprob)
{
    mb_status status = MB_OK;
    mb_reference *reference = NULL;
    double *logprob = NULL;
    MB_TRY(mb_reference_open(own->reference, shard, NULL, NULL, MB_F32, true, own->max_length, &reference));
    MB_NEW_ARRAY(logprob, mb_reference_count(reference));
    for (int64_t i = 0; i < mb_reference_count(reference); ++i)
        logprob[i] = mb_reference_logprob(reference, i);
    *out_logprob = logprob;
    logprob = NULL;
done:
    mb_free(logprob);
    mb_reference_close(&reference);
    return status;
}

/* ---- 2. rows ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static mb_status give_row(const mb_preference_row *row, int64_t figures, const char *group, const char *name,
                          json_t *table, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    char *text = NULL;
    json_t *entry = json_pack("{s:I, s:I, s:I}", "pairs", (json_int_t)row->pairs, "left_out",
                              (json_int_t)row->left_out, "ties", (json_int_t)row->ties);
    MB_TRY(mb_json_set(table, name, entry)); /* takes it over */
    for (int f = 0; f < figures; ++f) {
        const char *figure = mb_preference_name((mb_preference_figure)f);
        MB_TRY(mb_json_set(entry, figure, number(row->mean[f])));
        mb_free(text);
        text = mb_str_format("%s_stderr", figure);
        if (text == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
        MB_TRY(mb_json_set(entry, text, number(row->error[f])));
        if (opt_file == NULL) continue;
        mb_free(text);
        text = mb_str_format("/%s/%s/%s", group, name, figure);
        if (text == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
        MB_TRY(mb_h5_write_f64(opt_file, text, row->mean[f]));
    }
done:
    mb_free(text);
    return status;
}

static void say_row(const mb_preference_result *r, const mb_preference_row *row, const char *name)
{
    mb_info("  preference %s%-20s accuracy %.4f +- %.4f, per token %.4f +- %.4f (%lld pairs%s)",
            row->type != NULL ? "of type " : "", name, row->mean[MB_PREFERENCE_ACCURACY],
            row->error[MB_PREFERENCE_ACCURACY], row->mean[MB_PREFERENCE_ACCURACY_PER_TOKEN],
            row->error[MB_PREFERENCE_ACCURACY_PER_TOKEN], (long long)row->pairs,
            row->left_out > 0 ? "; some have an answer that is cut away" : "");
    if (r->figures < MB_PREFERENCE_FIGURES) return;
    mb_info("  reward     %s%-20s accuracy %.4f +- %.4f, margin %.4f +- %.4f (chosen %.4f, rejected %.4f)",
            row->type != NULL ? "of type " : "", name, row->mean[MB_PREFERENCE_REWARD_ACCURACY],
            row->error[MB_PREFERENCE_REWARD_ACCURACY], row->mean[MB_PREFERENCE_REWARD_MARGIN],
            row->error[MB_PREFERENCE_REWARD_MARGIN], row->mean[MB_PREFERENCE_REWARD_CHOSEN],
            row->mean[MB_PREFERENCE_REWARD_REJECTED]);
}

static mb_status give_rows(const mb_preference_result *r, json_t *results, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    json_t *by_source = json_object(), *by_type = json_object();
    for (int64_t i = 0; i < r->rows; ++i) {
        const mb_preference_row *row = &r->row[i];
        const bool is_type = row->type != NULL;
        const char *name = is_type ? row->type : row->source != NULL ? row->source : "all";
        if (row->pairs + row->left_out == 0) continue;
        say_row(r, row, name);
        MB_TRY(give_row(row, r->figures, is_type ? "preference_by_type" : "preference", name,
                        is_type ? by_type : by_source, opt_file));
    }
    MB_TRY(mb_json_set(results, "preference", json_incref(by_source)));
    if (json_object_size(by_type) > 0)
        MB_TRY(mb_json_set(results, "preference_by_type", json_incref(by_type)));
done:
    json_decref(by_source);
    json_decref(by_type);
    return status;
}

/* The log-probabilities themselves, for whoever wants other figures. */
static mb_status give_records(const mb_preference_result *r, int64_t records, mb_h5 *file)
{
    mb_status status = MB_OK;
    const mb_tensor logprob = mb_tensor_view1(MB_F64, r->logprob, records),
                    targets = mb_tensor_view1(MB_I64, r->targets, records);
    MB_TRY(mb_h5_write(file, "/preference_records/logprob", &logprob));
    MB_TRY(mb_h5_write(file, "/preference_records/targets", &targets));
done:
    return status;
}

/* ---- 3. both ---- */

mb_status mb_eval_preference_open(const mb_program *program, const mb_shard *shard,
                                  mb_preference **out_preference)
{
    mb_status status = MB_OK;
    const mb_eval_program *own = program->own;
    if (mb_shard_is_pairs(shard))
        MB_TRY(mb_preference_create(shard, out_preference));
    else if (own->reference != NULL)
        MB_RAISE(MB_EUSAGE, "eval.reference is for preference pairs, and %s holds single records",
                 own->shard_path);
done:
    return status;
}

mb_status mb_eval_preference_finish(mb_program *program, mb_shard *shard, mb_preference *opt_preference,
                                    json_t *results, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    const mb_eval_program *own = program->own;
    double *reference = NULL;
    if (opt_preference == NULL) goto done;
    if (own->reference != NULL) MB_TRY(mb_comm_agree(program->comm, read_reference(own, shard, &reference)));
    MB_TRY(mb_preference_finish(opt_preference, program->comm, reference, own->beta));
    const mb_preference_result *r = mb_preference_get(opt_preference);
    status = give_rows(r, results, opt_file);
    if (status == MB_OK && opt_file != NULL) status = give_records(r, mb_shard_count(shard), opt_file);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (r->row[0].pairs == 0) goto done;
    for (int f = 0; f < r->figures; ++f) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", f < MB_PREFERENCE_REWARD_ACCURACY ? "preference_" : "",
                 mb_preference_name((mb_preference_figure)f));
        MB_TRY(mb_program_result_real(program, name, r->row[0].mean[f]));
    }
done:
    mb_free(reference);
    return status;
}
