/* gate_apply.c: joining answers, applying a gate.
 *
 * 1. inputs   2. join   3. apply   4. run
 */
#include "stage/gate_apply.h"

#include <string.h>

#include "base/log.h"
#include "learn/gate.h"
#include "stage/gate_inputs.h"
#include "stage/gate_settings.h"
#include "store/contenthash.h"

/* ---- 1. inputs ---- */

typedef struct work {
    mb_program *program;
    const mb_gate_settings *own;
    bool has_gate;
    mb_gate_source source;
    char *gate, *embeddings; /* files */
} work;

static void close_work(work *w)
{
    mb_gate_inputs_reset(&w->source);
    mb_free(w->gate);
    mb_free(w->embeddings);
}

static mb_status find(work *w)
{
    mb_status status = MB_OK;
    MB_TRY(mb_gate_inputs_find("outputs.path", w->own->outputs, &w->source));
    if (!w->has_gate) goto done;
    MB_TRY(mb_gate_inputs_file("gate.path", w->own->path, "gate.h5", "moe-gate train", &w->gate));
    MB_TRY(mb_gate_inputs_file("gate.embeddings", w->own->embeddings, "embeddings.h5", "moe-embed",
                               &w->embeddings));
done:
    return status;
}

static mb_status begin(const work *w, bool *out_is_done)
{
    mb_status status = MB_OK;
    const char **names = NULL, **paths = NULL;
    char **labels = NULL;
    const int64_t n = w->source.files.count;
    MB_NEW_ARRAY(names, n + 2);
    MB_NEW_ARRAY(paths, n + 2);
    MB_NEW_ARRAY(labels, n);
    for (int64_t i = 0; i < n; i++) {
        names[i] = labels[i] = mb_str_format("outputs_%s", w->source.files.item[i].name);
        paths[i] = w->source.files.item[i].path;
        if (labels[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    }
    names[n] = "gate", paths[n] = w->gate;
    names[n + 1] = "embeddings", paths[n + 1] = w->embeddings;
    MB_TRY(mb_program_begin_run_list(w->program, names, paths, n + 2, out_is_done));
done:
    for (int64_t i = 0; labels != NULL && i < n; i++) mb_free(labels[i]);
    mb_free(labels);
    mb_free(names);
    mb_free(paths);
    return status;
}

/* ---- 2. join ---- */

static mb_status log_experts(const mb_outputs *o, mb_program *program)
{
    mb_status status = MB_OK;
    int64_t any = 0;
    for (int64_t x = 0; x < o->experts; x++) {
        int64_t right = 0;
        for (int64_t q = 0; q < o->questions; q++) right += o->right[q * o->experts + x];
        mb_info("  %-24s %7.2f %% right", o->expert_names[x], 100 * (double)right / (double)o->questions);
    }
    for (int64_t q = 0; q < o->questions; q++)
        any += memchr(o->right + q * o->experts, 1, (size_t)o->experts) != NULL;
    mb_info("%lld questions, %lld experts; any of them is right on %.2f %%", (long long)o->questions,
            (long long)o->experts, 100 * (double)any / (double)o->questions);
    MB_TRY(mb_program_result_int(program, "questions", o->questions));
    MB_TRY(mb_program_result_int(program, "experts", o->experts));
    MB_TRY(mb_program_result_real(program, "oracle", (double)any / (double)o->questions));
done:
    return status;
}

/* ---- 3. apply ---- */

/* The columns of the gate's experts, in its order. */
static mb_status take_experts(const mb_gate *gate, mb_outputs **outputs)
{
    mb_status status = MB_OK;
    mb_outputs *taken = NULL;
    int64_t *experts = NULL, *questions = NULL;
    const int64_t Q = (*outputs)->questions;
    MB_NEW_ARRAY(experts, gate->experts);
    MB_NEW_ARRAY(questions, Q);
    for (int64_t x = 0; x < gate->experts; x++) {
        status = mb_outputs_expert(*outputs, gate->expert_names[x], &experts[x]);
        if (status != MB_OK) mb_status_prefix("outputs.path lacks one that the gate chooses among: ");
        MB_TRY(status);
    }
    for (int64_t q = 0; q < Q; q++) questions[q] = q;
    if (gate->experts < (*outputs)->experts)
        mb_info("the gate chooses among %lld of %lld experts: the others are left out",
                (long long)gate->experts, (long long)(*outputs)->experts);
    MB_TRY(mb_outputs_take(*outputs, questions, Q, experts, gate->experts, &taken));
    mb_outputs_close(outputs);
    *outputs = taken;
done:
    mb_free(experts);
    mb_free(questions);
    return status;
}

static mb_status add_logits(const work *w, mb_outputs **outputs)
{
    mb_status status = MB_OK;
    mb_gate *gate = NULL;
    float *x = NULL;
    int64_t width = 0;
    char *embedder = NULL, hash[MB_HASH_TEXT];
    MB_TRY(mb_gate_open(w->gate, &gate));
    MB_TRY(take_experts(gate, outputs));
    mb_outputs *o = *outputs;
    MB_TRY(mb_gate_inputs_embeddings(w->embeddings, o->questions, &x, &width, &embedder));
    if (width != gate->width)
        MB_RAISE(MB_EDATA,
                 "%s: embeddings of %lld numbers, and the gate takes %lld; embed with the model it "
                 "was trained with",
                 w->embeddings, (long long)width, (long long)gate->width);
    if (strcmp(embedder, gate->embedder) != 0)
        MB_RAISE(MB_EDATA, "%s: made by %s, and the gate was trained on those of %s", w->embeddings, embedder,
                 gate->embedder);
    MB_TRY(mb_contenthash_path(w->gate, hash));
    mb_free(o->opt_gate_hash);
    mb_free(o->opt_gate_logits);
    o->opt_gate_logits = NULL;
    o->opt_gate_hash = mb_strdup(hash);
    if (o->opt_gate_hash == NULL) MB_RAISE(MB_ENOMEM, "no memory for a hash");
    MB_NEW_ARRAY(o->opt_gate_logits, o->questions * o->experts);
    MB_TRY(mb_gate_forward(gate, x, o->questions, o->opt_gate_logits));
done:
    mb_gate_destroy(&gate);
    mb_free(x);
    mb_free(embedder);
    return status;
}

/* ---- 4. run ---- */

static mb_status make(const work *w)
{
    mb_status status = MB_OK;
    mb_outputs *outputs = NULL;
    char *path = mb_program_path(w->program, "outputs.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_gate_inputs_table(&w->source, &outputs));
    if (w->has_gate) MB_TRY(add_logits(w, &outputs));
    MB_TRY(log_experts(outputs, w->program));
    MB_TRY(mb_outputs_write(outputs, path));
done:
    mb_outputs_close(&outputs);
    mb_free(path);
    return status;
}

static mb_status run(mb_program *program, bool has_gate)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own, .has_gate = has_gate};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, find(&w)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(&w, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_program_is_root(program) ? make(&w) : MB_OK));
    MB_TRY(mb_program_finish_run(program, "outputs.h5", NULL));
done:
    close_work(&w);
    return status;
}

mb_status mb_gate_apply_join(mb_program *program)
{
    return run(program, false);
}

mb_status mb_gate_apply_run(mb_program *program)
{
    return run(program, true);
}
