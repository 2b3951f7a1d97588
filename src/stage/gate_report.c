/* gate_report.c: reading both tables, leaving out what the experts have seen, writing the report.
 *
 * 1. inputs   2. report   3. run
 */
#include "stage/gate_report.h"

#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "stage/gate_inputs.h"
#include "stage/gate_score_files.h"
#include "stage/gate_settings.h"

/* ---- 1. inputs ---- */

typedef struct work {
    mb_program *program;
    const mb_gate_settings *own;
    mb_gate_source train_source, test_source;
    mb_named_paths seen;
    int64_t *top_k, top_k_count;
    mb_outputs *train, *test;
    int64_t shared;
    mb_gate_score score;
} work;

static void close_work(work *w)
{
    mb_gate_inputs_reset(&w->train_source);
    mb_gate_inputs_reset(&w->test_source);
    mb_named_paths_reset(&w->seen);
    mb_free(w->top_k);
    mb_outputs_close(&w->train);
    mb_outputs_close(&w->test);
    mb_gate_score_reset(&w->score);
}

static mb_status read_top_k(work *w)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(w->own->top_k, &words, &n));
    MB_NEW_ARRAY(w->top_k, n + 1);
    for (int64_t i = 0; i < n; i++) {
        MB_TRY(mb_str_parse_int(words[i], &w->top_k[i]));
        if (w->top_k[i] < 2)
            MB_RAISE(MB_EUSAGE, "gate.top_k: %s experts are not fused; give 2 or more", words[i]);
        for (int64_t j = 0; j < i; j++)
            if (w->top_k[j] == w->top_k[i]) MB_RAISE(MB_EUSAGE, "gate.top_k names %s twice", words[i]);
    }
    w->top_k_count = n;
done:
    mb_option_list_free(&words, n);
    return status;
}

static mb_status find(work *w)
{
    mb_status status = MB_OK;
    MB_TRY(read_top_k(w));
    MB_TRY(mb_gate_inputs_find("gate.train", w->own->train, &w->train_source));
    MB_TRY(mb_gate_inputs_find("gate.test", w->own->test, &w->test_source));
    if (w->test_source.is_answers)
        MB_RAISE(MB_EUSAGE,
                 "gate.test: answers without gate logits; run moe-gate apply, and give its outputs");
    MB_TRY(mb_named_paths_read("gate.experts_data", w->own->experts_data, NULL, 0, &w->seen));
done:
    return status;
}

static mb_status begin(const work *w, bool *out_is_done)
{
    mb_status status = MB_OK;
    const mb_named_paths *lists[] = {&w->train_source.files, &w->test_source.files, &w->seen};
    static const char *const prefixes[] = {"train", "test", "seen"};
    const int64_t most = lists[0]->count + lists[1]->count + lists[2]->count;
    const char **paths = NULL;
    char **labels = NULL;
    int64_t n = 0;
    MB_NEW_ARRAY(paths, most);
    MB_NEW_ARRAY(labels, most);
    for (int l = 0; l < 3; l++)
        for (int64_t i = 0; i < lists[l]->count; i++, n++) {
            labels[n] = mb_str_format("%s_%s", prefixes[l], lists[l]->item[i].name);
            paths[n] = lists[l]->item[i].path;
            if (labels[n] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
        }
    MB_TRY(mb_program_begin_run_list(w->program, (const char *const *)(void *)labels, paths, n, out_is_done));
done:
    for (int64_t i = 0; labels != NULL && i < most; i++) mb_free(labels[i]);
    mb_free(labels);
    mb_free(paths);
    return status;
}

/* The table without the questions that experts were trained on. */
static mb_status leave_out(const work *w, mb_outputs **outputs, int64_t *out_shared)
{
    mb_status status = MB_OK;
    uint8_t *shared = NULL;
    int64_t *by_file = NULL, *questions = NULL, *experts = NULL, n = 0;
    mb_outputs *o = *outputs, *kept = NULL;
    *out_shared = 0;
    if (w->seen.count == 0) goto done;
    MB_TRY(mb_gate_inputs_shared(o, &w->seen, &shared, &by_file));
    MB_NEW_ARRAY(questions, o->questions);
    MB_NEW_ARRAY(experts, o->experts);
    for (int64_t q = 0; q < o->questions; q++)
        if (shared[q] == 0) questions[n++] = q;
    for (int64_t x = 0; x < o->experts; x++) experts[x] = x;
    if (n == 0) MB_RAISE(MB_EDATA, "the experts were trained on every question: none is left");
    MB_TRY(mb_outputs_take(o, questions, n, experts, o->experts, &kept));
    *out_shared = o->questions - n;
    mb_outputs_close(outputs);
    *outputs = kept;
done:
    mb_free(shared);
    mb_free(by_file);
    mb_free(questions);
    mb_free(experts);
    return status;
}

/* ---- 2. report ---- */

static void log_lines(const char *text)
{
    while (*text != 0) {
        const size_t n = strcspn(text, "\n");
        mb_info("%.*s", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

static mb_status add_results(const work *w)
{
    static const char *const names[] = {"gate_top1",     "majority_all", "gate_weighted_all",
                                        "mean_prob_all", "oracle",       "best_single",
                                        "random",        "chance"};
    mb_status status = MB_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const int64_t at = mb_gate_score_find(&w->score, names[i]);
        MB_TRY(mb_program_result_real(w->program, names[i], w->score.accuracy[at * w->score.groups].value));
    }
    MB_TRY(mb_program_result_int(w->program, "questions", w->score.questions));
    MB_TRY(mb_program_result_int(w->program, "shared", w->shared));
done:
    return status;
}

static mb_status write_files(const work *w)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *root = NULL;
    char *txt = mb_program_path(w->program, "report.txt"), *json = mb_program_path(w->program, "report.json"),
         *h5 = mb_program_path(w->program, "report.h5");
    if (txt == NULL || json == NULL || h5 == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_gate_score_files_text(&w->score, w->test, &text));
    log_lines(mb_str_text(&text));
    MB_TRY(mb_files_write(txt, mb_str_text(&text), text.length));
    MB_TRY(mb_gate_score_files_json(&w->score, w->test, &root));
    MB_TRY(mb_json_set(root, "shared", json_integer(w->shared)));
    MB_TRY(mb_json_write(json, root, 2, false));
    MB_TRY(mb_gate_score_files_h5(&w->score, w->test, h5));
    MB_TRY(add_results(w));
done:
    mb_str_destroy(&text);
    json_decref(root);
    mb_free(txt);
    mb_free(json);
    mb_free(h5);
    return status;
}

static mb_status make(work *w)
{
    mb_status status = MB_OK;
    int64_t from_train = 0;
    const mb_gate_score_options options = {.top_k = w->top_k,
                                           .top_k_count = w->top_k_count,
                                           .draws = w->own->draws,
                                           .seed = w->own->gate.seed,
                                           .level = w->own->level};
    MB_TRY(mb_gate_inputs_table(&w->train_source, &w->train));
    MB_TRY(mb_gate_inputs_table(&w->test_source, &w->test));
    MB_TRY(leave_out(w, &w->train, &from_train));
    MB_TRY(leave_out(w, &w->test, &w->shared));
    MB_TRY(mb_gate_score_make(w->train, w->test, &options, &w->score));
    MB_TRY(write_files(w));
done:
    return status;
}

/* ---- 3. run ---- */

mb_status mb_gate_report_run(mb_program *program)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, find(&w)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(&w, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_program_is_root(program) ? make(&w) : MB_OK));
    MB_TRY(mb_program_finish_run(program, "report.txt", "report.json", "report.h5", NULL));
done:
    close_work(&w);
    return status;
}
