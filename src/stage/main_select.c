/* moe-select: choose records from stored scores; compare two selections; AUC of every score against known
 * labels. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "choose/select.h"
#include "stage/labels.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "stage/select_files.h"
#include "store/scores.h"
#include "store/selection.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_select_program *own;
    const mb_option *table;
    MB_NEW(own);
    program->own = own;
    table = mb_program_options_select(&n);
    MB_TRY(mb_program_add_table(program, "scores", table, n, own));
    table = mb_select_option_table(&n);
    MB_TRY(mb_program_add_table(program, "selection", table, n, &own->select));
    table = mb_shard_build_option_table(&n);
    MB_TRY(mb_program_add_table(program, "data, as it was sharded", table, n, &own->build));
done:
    return status;
}

/* ---- mode select ---- */

static mb_status read_score(const mb_select_program *own, const mb_scores *scores, int64_t first,
                            int64_t count, double *out)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0, layers[256];
    bool is_higher_better = true;
    for (int64_t i = 0; i < mb_scores_columns(scores); ++i)
        if (mb_str_equal(mb_scores_column_get(scores, i)->name, own->score))
            is_higher_better = mb_scores_column_get(scores, i)->higher_is_better;
    MB_TRY(mb_option_list_split(own->score_layers, &items, &n));
    if (n > 256) MB_RAISE(MB_EUSAGE, "select.score_layers: at most 256 layers");
    for (int64_t i = 0; i < n; ++i) MB_TRY(mb_str_parse_int(items[i], &layers[i]));
    if (n > 0)
        MB_TRY(mb_scores_read_layers(scores, own->score, layers, n, first, count, out));
    else
        MB_TRY(mb_scores_read(scores, own->score, first, count, out));
    for (int64_t i = 0; i < count && !is_higher_better; ++i) out[i] = -out[i];
done:
    mb_option_list_free(&items, n);
    return status;
}

static mb_status choose(mb_program *program, const mb_scores *scores, int64_t **out_records,
                        double **out_quality, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_select_program *own = program->own;
    mb_scores_records rows;
    double *values = NULL;
    int64_t first, count;
    const int64_t total = mb_scores_count(scores);
    mb_comm_share(program->comm, total, &first, &count);
    MB_TRY(mb_scores_records_view(scores, &rows));
    MB_NEW_ARRAY(values, count + 1);
    MB_TRY(mb_comm_agree(program->comm, read_score(own, scores, first, count, values)));
    mb_select_rows mine = {.first = first,
                           .count = count,
                           .score = values,
                           .record_hash = rows.record_hash + first,
                           .source = rows.source + first,
                           .tokens = rows.tokens + first};
    MB_TRY(mb_select_run(program->comm, &mine, total, rows.source_names, rows.source_count, &own->select,
                         out_records, out_quality, out_count));
done:
    mb_free(values);
    return status;
}

static mb_status run_select(mb_program *program)
{
    mb_status status = MB_OK;
    mb_select_program *own = program->own;
    bool is_done = false;
    mb_scores *scores = NULL;
    int64_t *records = NULL, count = 0;
    double *quality = NULL;
    char *path = NULL;
    MB_TRY(mb_program_begin_run(program, &is_done, "scores", own->scores_path, NULL));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_scores_open(own->scores_path, &scores)));
    MB_TRY(choose(program, scores, &records, &quality, &count));
    if (mb_program_is_root(program)) {
        path = mb_program_path(program, "selected_data.jsonl");
        status = mb_selection_write(path, scores, &own->build, records, quality, count);
        if (status == MB_OK)
            status = mb_select_files_write(program, own->score, scores, records, quality, count);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    mb_info("%lld of %lld records selected by %s", (long long)count, (long long)mb_scores_count(scores),
            own->score);
    MB_TRY(mb_program_result_int(program, "records", count));
    MB_TRY(mb_program_finish_run(program, "selected_data.jsonl", "selection.h5", NULL));
done:
    mb_scores_close(&scores);
    mb_free(records);
    mb_free(quality);
    mb_free(path);
    return status;
}

/* ---- mode compare ---- */

static mb_status run_compare(mb_program *program)
{
    mb_status status = MB_OK;
    mb_select_program *own = program->own;
    int64_t *a = NULL, *b = NULL, a_count = 0, b_count = 0;
    double *a_score = NULL, *b_score = NULL;
    mb_select_comparison result;
    if (own->a == NULL || own->b == NULL)
        MB_RAISE(MB_EUSAGE, "compare needs two selections: a.path=... b.path=...");
    MB_TRY(mb_selection_read(own->a, &a, &a_score, &a_count));
    MB_TRY(mb_selection_read(own->b, &b, &b_score, &b_count));
    MB_TRY(mb_select_compare(a, a_score, a_count, b, b_score, b_count, &result));
    if (mb_program_is_root(program))
        printf("records in a %lld, in b %lld, in both %lld\nJaccard %.4f\nof the shared ones: Spearman %.4f, "
               "Kendall %.4f\n",
               (long long)result.a, (long long)result.b, (long long)result.both, result.jaccard,
               result.spearman, result.kendall);
done:
    mb_free(a);
    mb_free(b);
    mb_free(a_score);
    mb_free(b_score);
    return status;
}

/* ---- mode auc ---- */

static mb_status run_auc(mb_program *program)
{
    mb_status status = MB_OK;
    mb_select_program *own = program->own;
    bool is_done = false;
    mb_scores *scores = NULL;
    char *json_path = NULL;
    if (own->labels_path == NULL)
        MB_RAISE(MB_EUSAGE, "auc needs labels.path: JSONL of {source, index, kind}");
    MB_TRY(mb_program_begin_run(program, &is_done, "scores", own->scores_path, "labels", own->labels_path,
                                NULL));
    if (is_done) goto done;
    if (mb_program_is_root(program)) {
        json_path = mb_program_path(program, "auc.json");
        status = mb_scores_open(own->scores_path, &scores);
        if (status == MB_OK) status = mb_labels_auc(scores, own->labels_path, json_path);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, "auc.json", NULL));
done:
    mb_scores_close(&scores);
    mb_free(json_path);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_select_program *own = program->own;
    if (mb_str_equal(program->mode, "compare")) return program->asks_done ? MB_OK : run_compare(program);
    if (own->scores_path == NULL)
        return mb_fail(MB_EUSAGE, "scores.path is missing: the scores.h5 of moe-score");
    if (program->is_dry_run) return MB_OK;
    return mb_str_equal(program->mode, "auc") ? run_auc(program) : run_select(program);
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-select",
        .purpose = "select records from stored scores (seconds, no model), compare two selections, or "
                   "measure scores against known labels",
        .modes = "select|compare|auc",
        .example = "  moe-select select scores.path=score/scores.h5 select.selection_percentage=0.05 "
                   "dataset.inputs=... tokenizer.path=... output.dir=checkpoints/x/select\n"
                   "  moe-select compare a=x/selected_data.jsonl b=y/selected_data.jsonl",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
