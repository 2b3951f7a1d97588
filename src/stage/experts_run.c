/* experts_run.c: what is open on every rank, the two kinds of ranks, and the two kinds of ends.
 *
 * 1. inputs   2. opening   3. the gate's rank   4. the experts' ranks   5. an end without all   6. run
 */
#include "stage/experts_run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "stage/experts_files.h"
#include "stage/experts_gate.h"
#include "stage/experts_models.h"
#include "stage/failure.h"
#include "stage/gate_inputs.h"
#include "stage/merge_questions.h"
#include "store/contenthash.h"

enum { GATE = 0 }; /* rank */

typedef struct work {
    mb_program *program;
    const mb_experts_program *own;
    char *gate_path, *questions_path;
    mb_gate *gate;
    mb_experts_plan plan;
    mb_comm *alone;
    mb_experts_models *models;
    mb_questions *questions; /* the gate's rank, as the next two */
    mb_experts_embed *embed;
    mb_experts_table *table;
    char *hashes; /* [X][MB_HASH_TEXT] of the models, on all ranks */
    mb_mail *mail;
    mb_experts_serve *serve;
    mb_experts_ask *ask;
} work;

static void close_work(work *w)
{
    mb_experts_ask_destroy(&w->ask);
    mb_experts_serve_destroy(&w->serve);
    mb_mail_close(&w->mail);
    mb_free(w->hashes);
    mb_experts_fuse_destroy(&w->table);
    mb_experts_embed_close(&w->embed);
    mb_questions_close(&w->questions);
    mb_experts_models_close(&w->models);
    mb_comm_destroy(&w->alone);
    mb_experts_options_reset(&w->plan);
    mb_gate_destroy(&w->gate);
    mb_free(w->gate_path);
    mb_free(w->questions_path);
}

static bool is_gate(const work *w)
{
    return mb_comm_rank(w->program->comm) == GATE;
}

/* ---- 1. inputs ---- */

static mb_status find(work *w)
{
    mb_status status = MB_OK;
    const mb_experts_options *o = &w->own->experts;
    if (w->own->infer.input != NULL || w->own->infer.prompt != NULL)
        MB_RAISE(MB_EUSAGE,
                 "mode experts answers the questions of questions.path: dataset.path and prompt are "
                 "for the other modes");
    if (w->own->infer.model.path == NULL)
        MB_RAISE(MB_EUSAGE,
                 "model.path is missing: the model that made the embeddings the gate learned from");
    MB_TRY(mb_gate_inputs_file("gate.path", o->gate, "gate.h5", "moe-gate train", &w->gate_path));
    MB_TRY(mb_merge_questions_find(o->questions, &w->questions_path));
    MB_TRY(mb_gate_open(w->gate_path, &w->gate));
    MB_TRY(mb_experts_options_plan(o, w->gate->expert_names, w->gate->experts, mb_comm_size(w->program->comm),
                                   &w->plan));
done:
    return status;
}

static mb_status begin(const work *w, bool *out_is_done)
{
    enum { OTHERS = 4 };
    mb_status status = MB_OK;
    const int64_t X = w->plan.experts.count;
    const mb_infer_program *infer = &w->own->infer;
    const char *const other_names[OTHERS] = {"model", "tokenizer", "gate", "questions"};
    const char *const other_paths[OTHERS] = {infer->model.path, infer->tokenizer, w->gate_path,
                                             w->questions_path};
    const char **paths = NULL;
    char **names = NULL;
    MB_NEW_ARRAY(names, 2 * X + OTHERS);
    MB_NEW_ARRAY(paths, 2 * X + OTHERS);
    for (int64_t x = 0; x < X; x++) {
        const mb_named_path *item = &w->plan.experts.item[x];
        names[2 * x] = mb_str_format("expert_%s", item->name);
        names[2 * x + 1] = mb_str_format("adapter_%s", item->name);
        paths[2 * x] = item->path;
        paths[2 * x + 1] = item->more[0];
    }
    for (int i = 0; i < OTHERS; i++) {
        names[2 * X + i] = mb_strdup(other_names[i]);
        paths[2 * X + i] = other_paths[i];
    }
    for (int64_t i = 0; i < 2 * X + OTHERS; i++)
        if (names[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    MB_TRY(mb_program_begin_run_list(w->program, (const char *const *)(void *)names, paths, 2 * X + OTHERS,
                                     out_is_done));
done:
    for (int64_t i = 0; names != NULL && i < 2 * X + OTHERS; i++) mb_free(names[i]);
    mb_free(names);
    mb_free(paths);
    return status;
}

/* ---- 2. opening ---- */

static mb_status open_gate_side(work *w)
{
    mb_status status = MB_OK;
    const mb_experts_options *o = &w->own->experts;
    const mb_infer_program *infer = &w->own->infer;
    MB_TRY(mb_experts_embed_open(&infer->model, infer->tokenizer, w->program->ops, w->gate, w->gate_path,
                                 o->tile_tokens, &w->embed));
    MB_TRY(mb_questions_open(w->questions_path, &w->questions));
    const int64_t all = mb_questions_count(w->questions),
                  count = o->limit > 0 && o->limit < all ? o->limit : all;
    if (count == 0) MB_RAISE(MB_EDATA, "%s: holds no questions", w->questions_path);
    status = mb_experts_fuse_create(w->questions, count, &w->plan, o->few_shot, &w->table);
    if (status != MB_OK) mb_status_prefix("%s: ", w->questions_path);
    MB_TRY(status);
    for (int64_t x = 0; x < w->plan.experts.count; x++)
        mb_info("%s: rank %d", w->plan.names[x], w->plan.rank[x]);
done:
    return status;
}

static mb_status open_side(work *w)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(w->hashes, w->plan.experts.count * MB_HASH_TEXT);
    MB_TRY(mb_experts_models_open(w->alone, mb_comm_rank(w->program->comm), w->program->ops,
                                  &w->own->infer.model, &w->own->experts, &w->plan, &w->models));
    if (is_gate(w)) MB_TRY(open_gate_side(w));
    for (int64_t x = 0; x < w->plan.experts.count; x++) {
        const char *hash = mb_experts_models_hash(w->models, x);
        if (hash != NULL) strncpy(w->hashes + x * MB_HASH_TEXT, hash, MB_HASH_TEXT - 1);
    }
done:
    return status;
}

/* Every rank's hashes at the places of its experts. Collective. */
static mb_status share_hashes(work *w)
{
    mb_status status = MB_OK;
    const size_t bytes = (size_t)w->plan.experts.count * MB_HASH_TEXT;
    char *all = mb_calloc((size_t)mb_comm_size(w->program->comm), bytes);
    MB_TRY(mb_comm_agree(w->program->comm, all != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgather(w->program->comm, w->hashes, bytes, all));
    for (int64_t x = 0; x < w->plan.experts.count; x++)
        memcpy(w->hashes + x * MB_HASH_TEXT, all + (size_t)w->plan.rank[x] * bytes + (size_t)x * MB_HASH_TEXT,
               MB_HASH_TEXT);
done:
    mb_free(all);
    return status;
}

static mb_status answer_requests(void *own, int64_t expert, const mb_experts_request *requests, int64_t n,
                                 mb_experts_answer *answers)
{
    return mb_experts_models_answer(((const work *)own)->models, expert, requests, n, answers);
}

/* A batch that never ends must not keep the job for ever: unless this is called again, the process is
 * killed. */
static void wind_up(void *own)
{
    alarm((unsigned)(60 + 10 * ((const work *)own)->own->experts.timeout));
}

/* The ends of the mail; the last collective work before the questions. */
static mb_status open_ends(work *w)
{
    const double longest_silence = 600;
    mb_status status = MB_OK;
    const mb_experts_options *o = &w->own->experts;
    const mb_experts_serve_options serve = {.batch = o->batch,
                                            .patience = longest_silence,
                                            .fail = &w->plan.fail,
                                            .own = w,
                                            .answer = answer_requests,
                                            .opt_look = wind_up};
    const mb_experts_ask_options ask = {.experts = w->plan.experts.count,
                                        .rank = w->plan.rank,
                                        .names = (const char *const *)(void *)w->plan.names,
                                        .timeout = o->timeout,
                                        .window = 2 * o->batch,
                                        .strikes = o->strikes};
    MB_TRY(mb_comm_agree(w->program->comm, mb_mail_open(w->program->comm, &w->mail)));
    status = mb_experts_serve_create(w->mail, GATE, &serve, &w->serve);
    if (status == MB_OK && is_gate(w))
        status = mb_experts_ask_create(w->mail, &ask,
                                       mb_experts_models_count(w->models) > 0 ? w->serve : NULL, &w->ask);
    MB_TRY(mb_comm_agree(w->program->comm, status));
done:
    return status;
}

/* ---- 3. the gate's rank ---- */

static const char *const files[] = {"answers.jsonl", "outputs.h5", "requests.h5", "results.json"};
enum { FILES = sizeof files / sizeof *files };

static mb_status write_outputs(const work *w, const char *path)
{
    mb_status status = MB_OK;
    mb_outputs *outputs = NULL;
    const char **hashes = NULL;
    char gate[MB_HASH_TEXT];
    MB_NEW_ARRAY(hashes, w->plan.experts.count);
    for (int64_t x = 0; x < w->plan.experts.count; x++) hashes[x] = w->hashes + x * MB_HASH_TEXT;
    MB_TRY(mb_contenthash_path(w->gate_path, gate));
    MB_TRY(mb_experts_fuse_outputs(w->table, hashes, gate, &outputs));
    MB_TRY(mb_outputs_write(outputs, path));
done:
    mb_outputs_close(&outputs);
    mb_free(hashes);
    return status;
}

static mb_status write_files(const work *w)
{
    mb_status status = MB_OK;
    mb_experts_ask_state *state = NULL;
    char *path[FILES] = {0};
    double accuracy = 0;
    int64_t incomplete = 0;
    MB_NEW_ARRAY(state, w->plan.experts.count);
    for (int i = 0; i < FILES; i++) {
        path[i] = mb_program_path(w->program, files[i]);
        if (path[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    }
    for (int64_t x = 0; x < w->plan.experts.count; x++) state[x] = mb_experts_ask_get(w->ask, x);
    MB_TRY(mb_experts_files_answers(w->table, path[0]));
    MB_TRY(write_outputs(w, path[1]));
    MB_TRY(mb_experts_files_requests(w->table, path[2]));
    MB_TRY(mb_experts_files_results(w->table, &w->own->experts, state, path[3], &accuracy, &incomplete));
    MB_TRY(mb_program_result_int(w->program, "questions", w->table->count));
    MB_TRY(mb_program_result_int(w->program, "incomplete", incomplete));
    MB_TRY(mb_program_result_real(w->program, "accuracy", accuracy));
done:
    for (int i = 0; i < FILES; i++) mb_free(path[i]);
    mb_free(state);
    return status;
}

/* How long ranks may take to say that they are there: long enough for a batch that is late. */
static double grace(const work *w)
{
    const double timeout = w->own->experts.timeout;
    return timeout < 2 ? 2 : timeout > 30 ? 30 : timeout;
}

/* *out_together false: only this rank goes on. */
static mb_status run_gate(work *w, bool *out_together)
{
    mb_status status = mb_experts_gate_run(&w->own->experts, w->embed, w->ask, w->table), ended;
    bool *missing = mb_calloc((size_t)mb_comm_size(w->program->comm), sizeof *missing);
    if (status == MB_OK) status = write_files(w);
    char *message = status != MB_OK ? mb_strdup(mb_status_message()) : NULL;
    ended = mb_experts_ask_end(w->ask, grace(w), out_together, missing);
    if (ended != MB_OK) *out_together = false;
    for (int r = 0; ended == MB_OK && missing != NULL && r < mb_comm_size(w->program->comm); r++)
        if (missing[r]) mb_warn("rank %d does not come back: dead, or too slow to be waited for", r);
    if (status != MB_OK && ended != MB_OK) mb_fail(status, "%s", message != NULL ? message : "");
    mb_free(message);
    mb_free(missing);
    return status != MB_OK ? status : ended;
}

/* ---- 4. the experts' ranks ---- */

/* Was Open MPI told to go on when a rank dies? */
static bool has_recovery(void)
{
    const char *recovery = getenv("OMPI_MCA_orte_enable_recovery");
    return recovery != NULL && strcmp(recovery, "0") != 0 && strcmp(recovery, "false") != 0;
}

/* Ranks that all leave by themselves are over sooner; else the gate's rank is about to end the job. */
static void leave(int code)
{
    const struct timespec second = {.tv_sec = 1};
    mb_log_close();
    for (int i = 0; i < 60 && !has_recovery(); i++) nanosleep(&second, NULL);
    _exit(code);
}

static void run_experts(work *w)
{
    bool is_together = false;
    const mb_status status = mb_experts_serve_run(w->serve, &is_together);
    alarm(0);
    if (status != MB_OK) {
        mb_error("%s: %s", mb_status_name(status), mb_status_message());
        _exit(mb_status_exit_code(status)); /* for the gate this rank is dead from here on */
    }
    if (!is_together) leave(0);
}

/* ---- 5. an end without all ---- */

/* What mb_program_finish_run does, by this rank alone. */
static mb_status finish_alone(const work *w)
{
    mb_status status = MB_OK;
    const mb_program *program = w->program;
    const mb_runfolder_machine machine = {.ranks = mb_comm_size(program->comm),
                                          .threads = mb_ops_threads(program->ops),
                                          .opt_backend = mb_ops_describe(program->ops)};
    for (int i = 0; i < FILES; i++) MB_TRY(mb_runfolder_output(program->run, files[i]));
    MB_TRY(mb_runfolder_finish(program->run, &machine));
    mb_failure_remove_all(program->options.output_dir);
done:
    return status;
}

/* Does not return. */
static void end_alone(const work *w, mb_status status)
{
    mb_program *program = w->program;
    if (status == MB_OK) status = finish_alone(w);
    if (status != MB_OK && status != MB_ESTOPPED) {
        mb_error("%s: %s", mb_status_name(status), mb_status_message());
        if (mb_failure_write(program->options.output_dir, program->share, status, mb_status_message(),
                             GATE) != MB_OK)
            mb_warn("the cause is not kept in the folder: %s", mb_status_message());
    } else {
        mb_info("%s; the job is ended for all ranks, since not all of them can end in order",
                status == MB_OK ? "all results are written" : mb_status_message());
    }
    const int code = mb_status_exit_code(status);
    mb_runfolder_close(&program->run);
    mb_log_close();
    if (has_recovery()) _exit(code);
    mb_comm_abort(program->comm, code);
}

/* ---- 6. run ---- */

/* Open MPI ends a job of which a rank dies, unless it was told otherwise. */
static void advise(const work *w)
{
    if (mb_comm_size(w->program->comm) > 1 && getenv("OMPI_COMM_WORLD_SIZE") != NULL && !has_recovery())
        mb_info(
            "mpirun without --enable-recovery ends the job when a rank dies; slow ones are left out in any "
            "case");
}

static mb_status answer(work *w)
{
    mb_status status = MB_OK;
    bool is_together = true;
    advise(w);
    if (is_gate(w)) {
        status = run_gate(w, &is_together);
        if (!is_together) end_alone(w, status);
    } else {
        run_experts(w);
    }
    MB_TRY(mb_comm_agree(w->program->comm, status));
    MB_TRY(mb_program_finish_run(w->program, files[0], files[1], files[2], files[3], NULL));
done:
    return status;
}

mb_status mb_experts_run(mb_program *program)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, find(&w)));
    if (program->is_dry_run) {
        mb_info("%lld experts on %d ranks would answer %s", (long long)w.plan.experts.count,
                mb_comm_size(program->comm), w.questions_path);
        goto done;
    }
    MB_TRY(begin(&w, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_experts_options_check(&w.plan)));
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_comm_split(program->comm, mb_comm_rank(program->comm), &w.alone));
    MB_TRY(mb_comm_agree(program->comm, open_side(&w)));
    MB_TRY(share_hashes(&w));
    MB_TRY(open_ends(&w));
    MB_TRY(answer(&w));
done:
    close_work(&w);
    return status;
}
