/* select_files: summary.json and selection.h5 beside selected_data.jsonl. */
#include "stage/select_files.h"

#include "base/log.h"
#include "store/h5.h"

mb_status mb_select_files_write(const mb_program *program, const char *score, const mb_scores *scores,
                                const int64_t *records, const double *quality, int64_t count)
{
    mb_status status = MB_OK;
    mb_scores_records view_of_rows, *rows = &view_of_rows;
    const int64_t total = mb_scores_count(scores);
    json_t *summary = json_pack("{s:s, s:I, s:I}", "score", score, "records", (json_int_t)count, "of",
                                (json_int_t)total),
           *sources = json_object();
    mb_h5 *file = NULL;
    char *json_path = mb_program_path(program, "summary.json"),
         *h5_path = mb_program_path(program, "selection.h5");
    int64_t tokens = 0;
    MB_TRY(mb_scores_records_view(scores, rows));
    for (int64_t i = 0; i < count; ++i) tokens += rows->tokens[records[i]];
    for (int64_t s = 0; s < rows->source_count; ++s) {
        int64_t all = 0, kept = 0;
        for (int64_t i = 0; i < total; ++i) all += rows->source[i] == s;
        for (int64_t i = 0; i < count; ++i) kept += rows->source[records[i]] == s;
        MB_TRY(mb_json_set(sources, rows->source_names[s],
                           json_pack("{s:I, s:I, s:f}", "available", (json_int_t)all, "selected",
                                     (json_int_t)kept, "share", count ? (double)kept / (double)count : 0.0)));
        mb_info("  %-24s %8lld of %8lld  (%.1f %% of the selection)", rows->source_names[s], (long long)kept,
                (long long)all, count ? 100.0 * (double)kept / (double)count : 0.0);
    }
    MB_TRY(mb_json_set(summary, "tokens", json_integer(tokens)));
    MB_TRY(mb_json_set(summary, "sources", sources));
    sources = NULL;
    MB_TRY(mb_json_write(json_path, summary, 2, false));
    MB_TRY(mb_h5_create(h5_path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-selection"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "score", score));
    mb_tensor view = mb_tensor_view1(MB_I64, (void *)records, count);
    MB_TRY(mb_h5_write(file, "/record", &view));
    view = mb_tensor_view1(MB_F64, (void *)quality, count);
    MB_TRY(mb_h5_write(file, "/quality_score", &view));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    json_decref(sources);
    json_decref(summary);
    mb_free(json_path);
    mb_free(h5_path);
    return status;
}
