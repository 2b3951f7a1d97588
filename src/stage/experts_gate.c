/* experts_gate.c: see the header.
 *
 * 1. texts   2. asking   3. the loop
 */
#include "stage/experts_gate.h"

#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/stop.h"

typedef struct work {
    const mb_experts_options *options;
    mb_experts_embed *embed;
    mb_experts_ask *ask;
    mb_experts_table *table;
    int64_t put, done;         /* questions */
    int64_t *experts, *chosen; /* [X] */
} work;

/* ---- 1. texts ---- */

/* What the gate sees of a question, as records.text made it; mb_free. */
static mb_status text_of(const work *w, const mb_question *question, char **out_text)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    if (mb_str_equal(w->options->embed_text, "prompt")) {
        MB_TRY(mb_question_prompt(question, w->table->plan->style, w->options->few_shot, &text));
    } else {
        MB_TRY(mb_str_add(&text, question->body.text));
        const bool has_options = mb_str_equal(w->options->embed_text, "options");
        for (int i = 0; i < question->body.option_count && has_options; i++)
            MB_TRY(mb_str_add_format(&text, "\n%c. %s", 'A' + i, question->body.options[i]));
    }
    *out_text = mb_strdup(mb_str_text(&text));
    if (*out_text == NULL) MB_RAISE(MB_ENOMEM, "no memory for a text");
done:
    mb_str_destroy(&text);
    return status;
}

/* What an expert gets of it. */
static mb_status request_of(const work *w, const mb_question *question, mb_experts_request *request)
{
    mb_status status = MB_OK;
    const mb_question_style style = w->table->plan->style;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_question_prompt(question, style, w->options->few_shot, &text));
    request->prompt = mb_strdup(mb_str_text(&text));
    if (request->prompt == NULL) MB_RAISE(MB_ENOMEM, "no memory for a prompt");
    MB_NEW_ARRAY(request->choices, question->body.option_count);
    for (; request->choice_count < question->body.option_count; request->choice_count++) {
        mb_str_reset(&text);
        MB_TRY(mb_question_choice(&question->body, style, (int)request->choice_count, &text));
        request->choices[request->choice_count] = mb_strdup(mb_str_text(&text));
        if (request->choices[request->choice_count] == NULL) MB_RAISE(MB_ENOMEM, "no memory for an option");
    }
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 2. asking ---- */

static mb_status ask_one(work *w, int64_t q)
{
    mb_status status = MB_OK;
    mb_experts_request request = {0};
    const mb_experts_table *t = w->table;
    const int64_t n =
        mb_vote_top_k(t->logits + q * t->experts, w->experts, t->experts, w->options->top_k, w->chosen);
    MB_TRY(request_of(w, mb_questions_at(t->questions, q), &request));
    MB_TRY(mb_experts_ask_put(w->ask, q, &request, w->chosen, n));
done:
    mb_experts_wire_reset_request(&request);
    return status;
}

/* The next n questions. */
static mb_status ask_more(work *w, int64_t n)
{
    mb_status status = MB_OK;
    mb_experts_table *t = w->table;
    char **texts = NULL;
    double embed = 0, gate = 0;
    const double began = mb_clock_seconds() - t->began;
    MB_NEW_ARRAY(texts, n);
    for (int64_t i = 0; i < n; i++) MB_TRY(text_of(w, mb_questions_at(t->questions, w->put + i), &texts[i]));
    MB_TRY(mb_experts_embed_run(w->embed, (const char *const *)(void *)texts, n,
                                t->logits + w->put * t->experts, &embed, &gate));
    for (int64_t i = 0; i < n; i++, w->put++) {
        mb_experts_row *row = &t->row[w->put];
        row->began = began;
        row->embed = embed;
        row->gate = gate;
        MB_TRY(ask_one(w, w->put));
    }
done:
    for (int64_t i = 0; texts != NULL && i < n; i++) mb_free(texts[i]);
    mb_free(texts);
    return status;
}

/* ---- 3. the loop ---- */

static void nap(void)
{
    const struct timespec short_while = {.tv_nsec = 100000};
    nanosleep(&short_while, NULL);
}

/* Questions to take up now: a whole batch where there is room for it. */
static int64_t wanted(const work *w)
{
    const int64_t open = mb_experts_ask_open(w->ask), left = w->table->count - w->put,
                  most = w->options->batch < w->options->open ? w->options->batch : w->options->open,
                  n = left < most ? left : most;
    return open + n <= w->options->open ? n : 0;
}

static mb_status fuse_settled(work *w)
{
    mb_status status = MB_OK;
    mb_experts_question *question;
    while ((question = mb_experts_ask_next(w->ask)) != NULL) {
        status = mb_experts_fuse_run(w->table, question);
        mb_experts_ask_free(&question);
        MB_TRY(status);
        w->done++;
    }
done:
    return status;
}

mb_status mb_experts_gate_run(const mb_experts_options *options, mb_experts_embed *embed, mb_experts_ask *ask,
                              mb_experts_table *table)
{
    mb_status status = MB_OK;
    work w = {.options = options, .embed = embed, .ask = ask, .table = table};
    mb_progress progress;
    MB_NEW_ARRAY(w.experts, table->experts);
    MB_NEW_ARRAY(w.chosen, table->experts);
    for (int64_t x = 0; x < table->experts; x++) w.experts[x] = x;
    table->began = mb_clock_seconds();
    mb_progress_start(&progress, "answering", "questions", 0, table->count);
    while (w.done < table->count) {
        bool did = false;
        if (mb_stop_is_set())
            MB_RAISE(MB_ESTOPPED, "stopped while questions are answered; run again from the start");
        if (wanted(&w) > 0) MB_TRY(ask_more(&w, wanted(&w)));
        MB_TRY(mb_experts_ask_step(ask, &did));
        MB_TRY(fuse_settled(&w));
        mb_progress_step(&progress, w.done, NULL);
        if (!did && wanted(&w) == 0) nap();
    }
    mb_progress_end(&progress, w.done, NULL);
done:
    mb_free(w.experts);
    mb_free(w.chosen);
    return status;
}
