/* experts_wire.c: numbers in a row, texts with their length (-1: none) in front.
 *
 * 1. putting   2. getting   3. requests   4. answers
 */
#include "serve/experts_wire.h"

#include <string.h>

#include "base/memory.h"

/* ---- 1. putting ---- */

static mb_status put_int(mb_str *bytes, int64_t value)
{
    return mb_str_append(bytes, &value, sizeof value);
}

static mb_status put_text(mb_str *bytes, const char *opt_text)
{
    mb_status status = MB_OK;
    MB_TRY(put_int(bytes, opt_text != NULL ? (int64_t)strlen(opt_text) : -1));
    if (opt_text != NULL) MB_TRY(mb_str_add(bytes, opt_text));
done:
    return status;
}

/* ---- 2. getting ---- */

typedef struct reader {
    const char *at;
    size_t left;
} reader;

static mb_status get(reader *r, void *out, size_t n)
{
    mb_status status = MB_OK;
    if (n > r->left) MB_RAISE(MB_EFORMAT, "a message of an expert is cut off");
    memcpy(out, r->at, n);
    r->at += n;
    r->left -= n;
done:
    return status;
}

static mb_status get_text(reader *r, char **out_text)
{
    mb_status status = MB_OK;
    int64_t n = 0;
    MB_TRY(get(r, &n, sizeof n));
    if (n < -1 || (n > 0 && (uint64_t)n > r->left))
        MB_RAISE(MB_EFORMAT, "a message of an expert is cut off in a text");
    if (n < 0) goto done;
    *out_text = mb_strndup(r->at, (size_t)n);
    if (*out_text == NULL) MB_RAISE(MB_ENOMEM, "no memory for a text");
    r->at += n;
    r->left -= (size_t)n;
done:
    return status;
}

/* A count of things that take at least `bytes` each. */
static mb_status get_count(reader *r, size_t bytes, int64_t *out_count)
{
    mb_status status = MB_OK;
    MB_TRY(get(r, out_count, sizeof *out_count));
    if (*out_count < 0 || (uint64_t)*out_count > r->left / bytes)
        MB_RAISE(MB_EFORMAT, "a message of an expert holds a wrong count");
done:
    return status;
}

static mb_status check_end(const reader *r)
{
    return r->left == 0 ? MB_OK : mb_fail(MB_EFORMAT, "a message of an expert is too long");
}

/* ---- 3. requests ---- */

void mb_experts_wire_reset_request(mb_experts_request *request)
{
    mb_free(request->prompt);
    for (int64_t i = 0; request->choices != NULL && i < request->choice_count; i++)
        mb_free(request->choices[i]);
    mb_free(request->choices);
    *request = (mb_experts_request){0};
}

mb_status mb_experts_wire_put_request(const mb_experts_request *request, mb_str *bytes)
{
    mb_status status = MB_OK;
    MB_TRY(put_int(bytes, request->ticket));
    MB_TRY(put_int(bytes, request->expert));
    MB_TRY(put_text(bytes, request->prompt));
    MB_TRY(put_int(bytes, request->choice_count));
    for (int64_t i = 0; i < request->choice_count; i++) MB_TRY(put_text(bytes, request->choices[i]));
done:
    return status;
}

mb_status mb_experts_wire_get_request(const void *bytes, size_t n, mb_experts_request *out_request)
{
    mb_status status = MB_OK;
    reader r = {.at = bytes, .left = n};
    mb_experts_request request = {0};
    int64_t count = 0;
    MB_TRY(get(&r, &request.ticket, sizeof request.ticket));
    MB_TRY(get(&r, &request.expert, sizeof request.expert));
    MB_TRY(get_text(&r, &request.prompt));
    if (request.prompt == NULL) MB_RAISE(MB_EFORMAT, "a request without a prompt");
    MB_TRY(get_count(&r, sizeof(int64_t), &count));
    MB_NEW_ARRAY(request.choices, count);
    request.choice_count = count;
    for (int64_t i = 0; i < count; i++) {
        MB_TRY(get_text(&r, &request.choices[i]));
        if (request.choices[i] == NULL) MB_RAISE(MB_EFORMAT, "a request with an absent choice");
    }
    MB_TRY(check_end(&r));
    *out_request = request;
    request = (mb_experts_request){0};
done:
    mb_experts_wire_reset_request(&request);
    return status;
}

/* ---- 4. answers ---- */

void mb_experts_wire_reset_answer(mb_experts_answer *answer)
{
    mb_free(answer->loglik);
    mb_free(answer->text);
    *answer = (mb_experts_answer){0};
}

mb_status mb_experts_wire_put_answer(const mb_experts_answer *answer, mb_str *bytes)
{
    mb_status status = MB_OK;
    const int64_t numbers[] = {answer->ticket, answer->expert, (int64_t)answer->how, answer->tokens,
                               answer->batch};
    const double seconds[] = {answer->queued, answer->compute};
    MB_TRY(mb_str_append(bytes, numbers, sizeof numbers));
    MB_TRY(mb_str_append(bytes, seconds, sizeof seconds));
    MB_TRY(put_text(bytes, answer->text));
    MB_TRY(put_int(bytes, answer->choices));
    if (answer->choices > 0)
        MB_TRY(mb_str_append(bytes, answer->loglik, (size_t)answer->choices * sizeof *answer->loglik));
done:
    return status;
}

mb_status mb_experts_wire_get_answer(const void *bytes, size_t n, mb_experts_answer *out_answer)
{
    mb_status status = MB_OK;
    reader r = {.at = bytes, .left = n};
    int64_t numbers[5] = {0}, count = 0;
    double seconds[2] = {0};
    mb_experts_answer answer = {0};
    MB_TRY(get(&r, numbers, sizeof numbers));
    MB_TRY(get(&r, seconds, sizeof seconds));
    if (numbers[2] < MB_EXPERTS_DONE || numbers[2] > MB_EXPERTS_DROPPED)
        MB_RAISE(MB_EFORMAT, "an answer of an unknown kind");
    answer = (mb_experts_answer){.ticket = numbers[0],
                                 .expert = numbers[1],
                                 .how = (mb_experts_how)numbers[2],
                                 .tokens = numbers[3],
                                 .batch = numbers[4],
                                 .queued = seconds[0],
                                 .compute = seconds[1]};
    MB_TRY(get_text(&r, &answer.text));
    MB_TRY(get_count(&r, sizeof *answer.loglik, &count));
    MB_NEW_ARRAY(answer.loglik, count);
    answer.choices = count;
    if (count > 0) MB_TRY(get(&r, answer.loglik, (size_t)count * sizeof *answer.loglik));
    MB_TRY(check_end(&r));
    *out_answer = answer;
    answer = (mb_experts_answer){0};
done:
    mb_experts_wire_reset_answer(&answer);
    return status;
}
