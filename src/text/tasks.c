/* tasks: see the header.
 *
 * Contents: 1 open and close  2 requests  3 lengths
 */
#include "text/tasks.h"

#include <string.h>

#include "base/memory.h"
#include "text/dialog_text.h"
#include "text/tasks_build.h"
#include "text/tasks_text.h"

/* ---- 1 open and close ---- */

typedef struct kind {
    const char *name;
    int64_t version; /* of the harness's task */
    bool has_acc_norm, has_acc_bytes;
    mb_tasks_build_record read; /* NULL: mmlu */
} kind;

static const kind kinds[] = {
    {"arc_easy", 1, true, false, mb_tasks_kinds_arc},
    {"arc_challenge", 1, true, false, mb_tasks_kinds_arc},
    {"hellaswag", 1, true, false, mb_tasks_kinds_hellaswag},
    {"mmlu", 2, false, false, NULL},
    {"choice", 1, true, true, mb_tasks_kinds_choice},
    {"requests", 1, true, true, mb_tasks_kinds_requests},
};

void mb_task_close(mb_task **task)
{
    if (*task == NULL) return;
    for (int64_t i = 0; i < (*task)->count; i++) {
        mb_task_question *question = &(*task)->questions[i];
        for (int64_t k = 0; k < question->choice_count; k++) mb_free(question->choices[k]);
        mb_free(question->choices);
        mb_free(question->context);
        mb_free(question->group);
    }
    mb_free((*task)->questions);
    mb_free((*task)->name);
    mb_free((*task)->path);
    MB_FREE(*task);
}

static const kind *find_kind(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    return NULL;
}

/* The file's name without folder and endings, for tasks that have no name of their own. */
static char *stem(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    return mb_strndup(name, strcspn(name, "."));
}

static mb_status check_fewshot(const kind *found, int64_t fewshot)
{
    mb_status status = MB_OK;
    if (fewshot < 0) MB_RAISE(MB_ERANGE, "%lld examples cannot be shown (fewshot)", (long long)fewshot);
    if (fewshot > 0 && found->read != NULL)
        MB_RAISE(
            MB_EUNSUPPORTED,
            "%s with %lld examples: the harness draws them at random; write its requests to a file and give "
            "that as task \"requests\", or take fewshot 0",
            found->name, (long long)fewshot);
done:
    return status;
}

static mb_status read_questions(mb_tasks_build *build, const kind *found, const char *path)
{
    mb_status status = MB_OK;
    mb_task *task = build->task;
    if (found->read == NULL)
        MB_TRY(mb_tasks_mmlu_read(build, path, task->fewshot));
    else
        MB_TRY(mb_tasks_build_read(build, path, false, found->read));
    if (found->read == mb_tasks_kinds_requests) MB_TRY(mb_tasks_kinds_finish_requests(build));
    if (task->count == 0) MB_RAISE(MB_EDATA, "%s: holds no questions", path);
done:
    return status;
}

mb_status mb_task_open(const char *kind_name, const char *path, int64_t fewshot, int64_t limit,
                       mb_task **out_task)
{
    mb_status status = MB_OK;
    mb_task *task = NULL;
    const kind *found = find_kind(kind_name);
    if (found == NULL)
        MB_RAISE(MB_EUSAGE,
                 "there is no task \"%s\"; take arc_easy, arc_challenge, hellaswag, mmlu, choice or requests",
                 kind_name);
    MB_TRY(check_fewshot(found, fewshot));
    MB_NEW(task);
    const bool is_named = found->read != mb_tasks_kinds_choice && found->read != mb_tasks_kinds_requests;
    task->name = is_named ? mb_strdup(kind_name) : stem(path);
    task->path = mb_strdup(path);
    if (task->name == NULL || task->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a task");
    task->version = found->version;
    task->fewshot = fewshot;
    task->has_acc_norm = found->has_acc_norm;
    task->has_acc_bytes = found->has_acc_bytes;
    task->delimiter = " ";
    mb_tasks_build build = {.task = task, .limit = limit};
    MB_TRY(read_questions(&build, found, path));
    *out_task = task;
    task = NULL;
done:
    mb_task_close(&task);
    return status;
}

/* ---- 2 requests ---- */

/* The token that stands for an empty context: BOS, else EOS. */
static mb_status get_prefix(const mb_tokenizer *tokenizer, uint32_t *out_id)
{
    mb_status status = MB_OK;
    const int64_t bos = mb_tokenizer_bos(tokenizer);
    const int64_t id = bos >= 0 ? bos : mb_tokenizer_eos(tokenizer);
    if (id < 0)
        MB_RAISE(
            MB_EDATA,
            "the tokenizer names neither a BOS nor an EOS token; a question without a context needs one");
    *out_id = (uint32_t)id;
done:
    return status;
}

/* Encode as the harness does: special tokens by the tokenizer's default, unless the text brings its own BOS.
 */
static mb_status encode(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch, const char *text,
                        size_t n, mb_ids *ids)
{
    const int64_t bos = mb_tokenizer_bos(tokenizer);
    const int64_t prefix = bos >= 0 ? bos : mb_tokenizer_eos(tokenizer);
    const char *token = prefix >= 0 ? mb_tokenizer_token(tokenizer, (uint32_t)prefix) : NULL;
    const size_t length = token != NULL ? strlen(token) : 0;
    const bool has_own = length > 0 && n >= length && memcmp(text, token, length) == 0;
    return mb_tokenizer_encode(tokenizer, scratch, text, n, !has_own, ids);
}

/* No context: the prefix token is it, or the continuation's own first token when that is the prefix. */
static mb_status encode_alone(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                              const mb_str *text, mb_ids *context, mb_ids *continuation)
{
    mb_status status = MB_OK;
    mb_ids ids = {0};
    uint32_t prefix = 0;
    MB_TRY(get_prefix(tokenizer, &prefix));
    MB_TRY(mb_tokenizer_encode(tokenizer, scratch, mb_str_text(text), text->length, false, &ids));
    const int64_t skip = ids.count > 0 && ids.data[0] == prefix;
    MB_TRY(mb_ids_append(context, prefix));
    MB_TRY(mb_ids_append_all(continuation, ids.data + skip, ids.count - skip));
done:
    mb_ids_destroy(&ids);
    return status;
}

static mb_status encode_pair(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                             const mb_str *whole, size_t context_length, mb_ids *context,
                             mb_ids *continuation)
{
    mb_status status = MB_OK;
    mb_ids ids = {0};
    MB_TRY(encode(tokenizer, scratch, whole->data, whole->length, &ids));
    MB_TRY(encode(tokenizer, scratch, whole->data, context_length, context));
    if (context->count < ids.count)
        MB_TRY(mb_ids_append_all(continuation, ids.data + context->count, ids.count - context->count));
    if (context->count == 0) {
        uint32_t prefix = 0;
        MB_TRY(get_prefix(tokenizer, &prefix));
        MB_TRY(mb_ids_append(context, prefix));
    }
done:
    mb_ids_destroy(&ids);
    return status;
}

mb_status mb_task_request(const mb_task *task, const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                          int64_t question, int64_t choice, mb_ids *context, mb_ids *continuation)
{
    mb_status status = MB_OK;
    const mb_task_question *asked = &task->questions[question];
    mb_str whole = MB_STR_EMPTY;
    const size_t length = strlen(asked->context);
    mb_ids_reset(context);
    mb_ids_reset(continuation);
    MB_TRY(mb_str_append(&whole, asked->context, length));
    MB_TRY(mb_str_add(&whole, task->delimiter));
    MB_TRY(mb_str_add(&whole, asked->choices[choice]));
    if (length == 0)
        MB_TRY(encode_alone(tokenizer, scratch, &whole, context, continuation));
    else
        MB_TRY(encode_pair(tokenizer, scratch, &whole,
                           length - mb_dialog_text_space_after(asked->context, length), context,
                           continuation));
    if (continuation->count == 0)
        MB_RAISE(MB_EDATA, "%s: question %lld: choice %lld adds no token to its context", task->path,
                 (long long)asked->doc_id, (long long)choice + 1);
done:
    mb_str_destroy(&whole);
    return status;
}

/* ---- 3 lengths ---- */

void mb_task_choice_length(const mb_task *task, int64_t question, int64_t choice, int64_t *out_characters,
                           int64_t *out_bytes)
{
    const char *text = task->questions[question].choices[choice];
    if (task->delimiter[0] == 0 && text[0] == ' ') text++;
    *out_characters = mb_tasks_text_characters(text);
    *out_bytes = (int64_t)strlen(text);
}
