/* tasks_kinds: one record of an ARC, HellaSwag, free multiple-choice or requests file -> a question.
 *
 * Contents: 1 choices and answers  2 arc  3 hellaswag  4 choice  5 requests
 */
#include <string.h>

#include "base/memory.h"
#include "text/tasks_build.h"
#include "text/tasks_text.h"

static bool is_full(const mb_tasks_build *build)
{
    return build->limit > 0 && build->task->count >= build->limit;
}

/* ---- 1 choices and answers ---- */

/* A list of texts, or {"text": [..], "label": [..]}. */
static mb_status add_choices(mb_tasks_build *build, const json_t *record, const char *answers)
{
    mb_status status = MB_OK;
    const json_t *choices = mb_tasks_build_member(record, "choices|options|endings");
    const json_t *labels = NULL;
    if (choices == NULL) MB_RAISE(MB_EDATA, "its choices are missing (field choices, options or endings)");
    if (json_is_object(choices)) {
        labels = json_object_get(choices, "label");
        choices = json_object_get(choices, "text");
        if (json_array_size(labels) != json_array_size(choices))
            MB_RAISE(MB_EDATA, "its choices and their labels differ in number");
    }
    MB_TRY(mb_tasks_build_choices(build, choices));
    MB_TRY(mb_tasks_build_gold(build, mb_tasks_build_member(record, answers), labels));
done:
    return status;
}

static mb_status add_asked(mb_tasks_build *build, const char *passage, const char *question, int64_t index)
{
    mb_status status = MB_OK;
    char *context =
        mb_str_format("%s%sQuestion: %s\nAnswer:", passage, passage[0] != 0 ? "\n" : "", question);
    if (context == NULL) MB_RAISE(MB_ENOMEM, "no memory for a question");
    MB_TRY(mb_tasks_build_question(build, context, index));
done:
    mb_free(context);
    return status;
}

/* ---- 2 arc ---- */

mb_status mb_tasks_kinds_arc(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on)
{
    mb_status status = MB_OK;
    const char *text;
    if (json_object_get(record, "query") != NULL)
        return mb_tasks_kinds_choice(build, record, index, io_go_on);
    MB_TRY(mb_tasks_build_text(record, "question", &text));
    MB_TRY(add_asked(build, "", text, index));
    MB_TRY(add_choices(build, record, "answerKey"));
    *io_go_on = !is_full(build);
done:
    return status;
}

/* ---- 3 hellaswag ---- */

static mb_status hellaswag_context(const json_t *record, mb_str *s)
{
    mb_status status = MB_OK;
    mb_str whole = MB_STR_EMPTY;
    const char *label, *first, *second;
    MB_TRY(mb_tasks_build_text(record, "activity_label", &label));
    MB_TRY(mb_tasks_build_text(record, "ctx_a", &first));
    MB_TRY(mb_tasks_build_text(record, "ctx_b", &second));
    MB_TRY(mb_str_add_format(&whole, "%s: %s ", label, first));
    MB_TRY(mb_tasks_text_capitalize(second, &whole));
    MB_TRY(mb_tasks_text_preprocess(mb_str_text(&whole), s));
done:
    mb_str_destroy(&whole);
    return status;
}

mb_status mb_tasks_kinds_hellaswag(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    const json_t *endings = json_object_get(record, "endings");
    if (json_object_get(record, "query") != NULL)
        return mb_tasks_kinds_choice(build, record, index, io_go_on);
    MB_TRY(hellaswag_context(record, &s));
    MB_TRY(mb_tasks_build_question(build, mb_str_text(&s), index));
    if (json_array_size(endings) == 0) MB_RAISE(MB_EDATA, "field \"endings\" is missing or no list");
    for (size_t i = 0; i < json_array_size(endings); i++) {
        const char *text = json_string_value(json_array_get(endings, i));
        if (text == NULL) MB_RAISE(MB_EDATA, "ending %zu is no text", i + 1);
        mb_str_reset(&s);
        MB_TRY(mb_tasks_text_preprocess(text, &s));
        MB_TRY(mb_tasks_build_choice(build, mb_str_text(&s)));
    }
    MB_TRY(mb_tasks_build_gold(build, mb_tasks_build_member(record, "label"), NULL));
    *io_go_on = !is_full(build);
done:
    mb_str_destroy(&s);
    return status;
}

/* ---- 4 choice ---- */

mb_status mb_tasks_kinds_choice(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on)
{
    mb_status status = MB_OK;
    const json_t *passage = json_object_get(record, "passage");
    const json_t *as_it_is = mb_tasks_build_member(record, "query");
    const json_t *question = mb_tasks_build_member(record, "question");
    if (as_it_is == NULL && question == NULL) as_it_is = mb_tasks_build_member(record, "ctx");
    const json_t *text = as_it_is != NULL ? as_it_is : question;
    if (text == NULL) MB_RAISE(MB_EDATA, "what is asked is missing (field query, question or ctx)");
    if (!json_is_string(text)) MB_RAISE(MB_EDATA, "what is asked is no text");
    if (as_it_is != NULL)
        MB_TRY(mb_tasks_build_question(build, json_string_value(text), index));
    else
        MB_TRY(add_asked(build, json_is_string(passage) ? json_string_value(passage) : "",
                         json_string_value(text), index));
    MB_TRY(add_choices(build, record, "gold|answer|label|answerKey"));
    *io_go_on = !is_full(build);
done:
    return status;
}

/* ---- 5 requests ---- */

/* OLMo's request files repeat every question from this doc_id on without its context, for another metric. */
enum { FIRST_UNCONDITIONAL = 1000000 };

static mb_status begin_request(mb_tasks_build *build, const char *context, int64_t doc_id,
                               const json_t *record)
{
    mb_status status = MB_OK;
    const json_t *gold = mb_tasks_build_member(record, "label|gold");
    if (!json_is_integer(gold)) MB_RAISE(MB_EDATA, "field \"label\" is no number of a choice");
    MB_TRY(mb_tasks_build_question(build, context, doc_id));
    build->task->questions[build->task->count - 1].gold = json_integer_value(gold);
done:
    return status;
}

mb_status mb_tasks_kinds_requests(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on)
{
    mb_status status = MB_OK;
    (void)index;
    mb_task *task = build->task;
    const json_t *request = json_object_get(record, "request");
    const char *context, *continuation, *type = "loglikelihood", *name = NULL;
    int64_t doc_id = 0, choice = 0;
    MB_TRY(mb_json_opt_string(record, "request_type", "request", &type));
    if (strcmp(type, "loglikelihood") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "a request of type \"%s\"; only loglikelihood requests are scored here",
                 type);
    MB_TRY(mb_json_get_int(record, "doc_id", "request", &doc_id));
    MB_TRY(mb_json_get_int(record, "idx", "request", &choice));
    MB_TRY(mb_tasks_build_text(request, "context", &context));
    MB_TRY(mb_tasks_build_text(request, "continuation", &continuation));
    MB_TRY(mb_json_opt_string(record, "task_name", "request", &name));
    if (doc_id >= FIRST_UNCONDITIONAL && task->count > 0 && task->questions[0].doc_id < FIRST_UNCONDITIONAL) {
        task->unconditional_count++;
        goto done;
    }
    mb_task_question *last = task->count > 0 ? &task->questions[task->count - 1] : NULL;
    if (last == NULL || last->doc_id != doc_id) {
        *io_go_on = !is_full(build);
        if (!*io_go_on) goto done;
        MB_TRY(begin_request(build, context, doc_id, record));
        last = &task->questions[task->count - 1];
    }
    if (task->count == 1 && name != NULL && last->choice_count == 0) {
        mb_free(task->name);
        task->name = mb_strdup(name);
    }
    if (choice != last->choice_count)
        MB_RAISE(MB_EDATA, "doc_id %lld: choice %lld comes where choice %lld is due", (long long)doc_id,
                 (long long)choice, (long long)last->choice_count);
    if (strcmp(context, last->context) != 0)
        MB_RAISE(MB_EUNSUPPORTED,
                 "doc_id %lld: its choices have different contexts; only one context per question is scored",
                 (long long)doc_id);
    MB_TRY(mb_tasks_build_choice(build, continuation));
done:
    return status;
}

mb_status mb_tasks_kinds_finish_requests(mb_tasks_build *build)
{
    mb_status status = MB_OK;
    mb_task *task = build->task;
    bool all_spaced = true;
    for (int64_t i = 0; i < task->count; i++) {
        const mb_task_question *question = &task->questions[i];
        if (question->gold < 0 || question->gold >= question->choice_count)
            MB_RAISE(MB_EDATA, "%s: doc_id %lld: its label %lld is none of its %lld choices", task->path,
                     (long long)question->doc_id, (long long)question->gold,
                     (long long)question->choice_count);
        for (int64_t k = 0; k < question->choice_count; k++) all_spaced &= question->choices[k][0] == ' ';
    }
    task->delimiter = all_spaced ? " " : "";
    for (int64_t i = 0; i < task->count && all_spaced; i++)
        for (int64_t k = 0; k < task->questions[i].choice_count; k++) {
            char *text = task->questions[i].choices[k];
            memmove(text, text + 1, strlen(text));
        }
done:
    return status;
}
