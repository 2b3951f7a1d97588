/* eval_files: the result files of an evaluation. */
#include "stage/eval_files.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/version_info.h"

/* results.json without dates (its bytes say the same for the same numbers), and the harness's own
 * <model>/results_<time>.json. */
mb_status mb_eval_files_write(const mb_program *program, const char *model, const char *opt_adapter,
                              int64_t limit, json_t *results, double seconds)
{
    mb_status status = MB_OK;
    char *plain = mb_program_path(program, "results.json"), *folder = NULL, *dated = NULL,
         *name = mb_strdup(model), time_text[32], seconds_text[32];
    MB_TRY(mb_json_write(plain, results, 2, false));
    for (char *p = name; p != NULL && *p; ++p)
        if (strchr("/\\:*?\"<>| ", *p) != NULL) *p = '_';
    mb_clock_iso(time_text);
    for (char *p = time_text; *p; ++p)
        if (*p == ':') *p = '-';
    snprintf(seconds_text, sizeof seconds_text, "%.3f", seconds);
    MB_TRY(mb_json_set(results, "config",
                       json_pack("{s:s, s:s, s:s?, s:I}", "model", "moebatch", "model_args", model, "adapter",
                                 opt_adapter, "limit", (json_int_t)limit)));
    MB_TRY(mb_json_set(results, "git_hash", json_string(mb_version_source())));
    MB_TRY(mb_json_set(results, "date", json_real((double)time(NULL))));
    MB_TRY(mb_json_set(results, "model_name", json_string(model)));
    MB_TRY(mb_json_set(results, "model_name_sanitized", json_string(name)));
    MB_TRY(mb_json_set(results, "total_evaluation_time_seconds", json_string(seconds_text)));
    folder = mb_program_path(program, name);
    MB_TRY(mb_files_make_folders(folder));
    dated = mb_str_format("%s/results_%s.json", folder, time_text);
    MB_TRY(mb_json_write(dated, results, 2, false));
done:
    mb_free(plain);
    mb_free(folder);
    mb_free(dated);
    mb_free(name);
    return status;
}
