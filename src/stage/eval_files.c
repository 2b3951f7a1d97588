/* eval_files: the result files of an evaluation. */
#include "stage/eval_files.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/version_info.h"

/* What the harness says of a run beside its results; null where there is nothing of the kind here. */
static mb_status add_run_facts(json_t *results, const char *model, const char *opt_adapter,
                               int64_t max_length, int64_t limit)
{
    static const char *const absent[] = {
        "upper_git_hash",         "chat_template",        "chat_template_sha", "system_instruction",
        "system_instruction_sha", "transformers_version", "lm_eval_version"};
    mb_status status = MB_OK;
    json_t *config = json_pack(
        "{s:s, s:{s:s, s:s?}, s:s, s:n, s:s, s:n, s:o, s:i, s:n, s:i, s:i, s:i, s:i}", "model", "moebatch",
        "model_args", "pretrained", model, "peft", opt_adapter, "batch_size", "auto", "batch_sizes", "device",
        "cpu", "use_cache", "limit", limit > 0 ? json_integer(limit) : json_null(), "bootstrap_iters", 100000,
        "gen_kwargs", "random_seed", 0, "numpy_seed", 1234, "torch_seed", 1234, "fewshot_seed", 1234);
    MB_TRY(mb_json_set(results, "config", config));
    MB_TRY(mb_json_set(results, "git_hash", json_string(mb_version_source())));
    MB_TRY(mb_json_set(results, "model_source", json_string("moebatch")));
    MB_TRY(mb_json_set(results, "model_name", json_string(model)));
    MB_TRY(mb_json_set(results, "max_length", json_integer(max_length)));
    MB_TRY(mb_json_set(results, "fewshot_as_multiturn", json_false()));
    MB_TRY(mb_json_set(results, "task_hashes", json_object()));
    for (size_t i = 0; i < sizeof absent / sizeof *absent; ++i)
        MB_TRY(mb_json_set(results, absent[i], json_null()));
done:
    return status;
}

/* The harness's rule for a folder's name: each run of characters that names may not hold becomes two
 * underscores. */
static char *sanitized(const char *model)
{
    mb_str name = MB_STR_EMPTY;
    mb_status status = MB_OK;
    for (const char *p = model; *p != '\0' && status == MB_OK;) {
        const size_t bad = strspn(p, "\"<>:/|\\?*[]"), good = strcspn(p, "\"<>:/|\\?*[]");
        status = bad > 0 ? mb_str_add(&name, "__") : mb_str_append(&name, p, good);
        p += bad > 0 ? bad : good;
    }
    return mb_str_take(&name);
}

/* results.json without dates (its bytes say the same for the same numbers), and the harness's own
 * <model>/results_<time>.json. */
mb_status mb_eval_files_write(const mb_program *program, const char *model, const char *opt_adapter,
                              int64_t max_length, int64_t limit, json_t *results, double seconds)
{
    mb_status status = MB_OK;
    char *plain = mb_program_path(program, "results.json"), *folder = NULL, *dated = NULL,
         *name = sanitized(model), time_text[32], seconds_text[32];
    MB_TRY(mb_json_write(plain, results, 2, false));
    mb_clock_iso(time_text);
    for (char *p = time_text; *p; ++p)
        if (*p == ':') *p = '-';
    snprintf(seconds_text, sizeof seconds_text, "%.3f", seconds);
    MB_TRY(add_run_facts(results, model, opt_adapter, max_length, limit));
    MB_TRY(mb_json_set(results, "date", json_real((double)time(NULL))));
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
