/* choice.c: requests -> inputs -> tiles -> log-likelihoods -> picks.
 *
 * Most inputs belong to one request: their losses come fused with the head. An input of several requests
 * (one-token continuations: " A", " B" ...), and every input with bf16 log-probabilities, needs whole rows of
 * logits; such inputs stand in tiles of their own, with a bounded number of rows.
 *
 * 1. requests and inputs   2. tiles   3. one tile   4. picks   5. run
 */
#include "measure/choice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/stop.h"
#include "measure/tile.h"

#define LOGIT_BYTES ((int64_t)64 << 20) /* of one tile */

/* ---- 1. requests and inputs ---- */

typedef struct choice_request {
    uint32_t *continuation; /* [count] owned */
    int64_t count;
    int64_t input, next; /* next request of the same input, -1 none */
} choice_request;

typedef struct choice_input {
    uint32_t *tokens;     /* [count] owned */
    int64_t count, heads; /* heads: the last rows that some request asks about */
    int64_t first, last;  /* requests */
    bool needs_logits;
    int64_t index;
} choice_input;

typedef struct choice_work {
    const mb_task *task;
    int64_t max_length;
    mb_dtype softmax_dtype;
    choice_request *requests; /* [request_count] by question, then choice */
    int64_t request_count;
    choice_input *inputs; /* [input_count] longest first, those that need logits at the end */
    int64_t input_count;
    int64_t *tile_first; /* [tile_count + 1] inputs */
    int64_t tile_count;
    char request_hash[MB_HASH_TEXT];
} choice_work;

static void work_reset(choice_work *work)
{
    for (int64_t i = 0; work->requests != NULL && i < work->request_count; i++)
        mb_free(work->requests[i].continuation);
    for (int64_t i = 0; work->inputs != NULL && i < work->input_count; i++) mb_free(work->inputs[i].tokens);
    mb_free(work->requests);
    mb_free(work->inputs);
    mb_free(work->tile_first);
}

/* Context and continuation, cut from the left to max_length + 1, without the last token. */
static mb_status make_input(const choice_work *work, const mb_ids *context, const mb_ids *continuation,
                            choice_input *out)
{
    mb_status status = MB_OK;
    int64_t all = context->count + continuation->count, count = all - 1;
    if (count > work->max_length) count = work->max_length;
    int64_t skip = all - 1 - count, from_context = context->count - skip;
    if (from_context < 0) from_context = 0;
    MB_NEW_ARRAY(out->tokens, count + 1);
    memcpy(out->tokens, context->data + context->count - from_context,
           (size_t)from_context * sizeof *out->tokens);
    memcpy(out->tokens + from_context, continuation->data + continuation->count - 1 - (count - from_context),
           (size_t)(count - from_context) * sizeof *out->tokens);
    out->count = count;
    out->heads = continuation->count;
done:
    return status;
}

/* The input joins an equal one of the same question (inputs from `from` on), or the list. Takes over its
 * tokens. */
static void add_input(choice_work *work, int64_t from, int64_t request, choice_input *input)
{
    for (int64_t i = from; i < work->input_count; i++) {
        choice_input *other = &work->inputs[i];
        if (other->count != input->count ||
            memcmp(other->tokens, input->tokens, (size_t)input->count * sizeof *input->tokens) != 0) {
            continue;
        }
        work->requests[other->last].next = request;
        work->requests[request].input = i;
        other->last = request;
        other->needs_logits = true;
        if (input->heads > other->heads) other->heads = input->heads;
        MB_FREE(input->tokens);
        return;
    }
    work->requests[request].input = work->input_count;
    input->first = input->last = request;
    input->index = work->input_count;
    input->needs_logits = work->softmax_dtype == MB_BF16;
    work->inputs[work->input_count++] = *input;
    input->tokens = NULL;
}

typedef struct choice_encoder {
    const mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_ids context, continuation;
    mb_hash *hash;
} choice_encoder;

static void hash_ids(mb_hash *hash, const mb_ids *ids)
{
    mb_hash_add_int(hash, ids->count);
    mb_hash_add(hash, ids->data, (size_t)ids->count * sizeof *ids->data);
}

static mb_status add_request(choice_work *work, choice_encoder *encoder, int64_t question, int64_t choice,
                             int64_t from)
{
    mb_status status = MB_OK;
    choice_input input = {0};
    choice_request *request = &work->requests[work->request_count];
    mb_ids *context = &encoder->context, *continuation = &encoder->continuation;
    MB_TRY(mb_task_request(work->task, encoder->tokenizer, encoder->scratch, question, choice, context,
                           continuation));
    if (continuation->count > work->max_length) {
        MB_RAISE(MB_EDATA,
                 "%s: question %lld: choice %lld has %lld tokens, the model takes %lld; raise "
                 "eval.max_length or leave it out",
                 work->task->path, (long long)work->task->questions[question].doc_id, (long long)choice + 1,
                 (long long)continuation->count, (long long)work->max_length);
    }
    hash_ids(encoder->hash, context);
    hash_ids(encoder->hash, continuation);
    MB_NEW_ARRAY(request->continuation, continuation->count);
    memcpy(request->continuation, continuation->data,
           (size_t)continuation->count * sizeof *continuation->data);
    request->count = continuation->count;
    request->next = -1;
    work->request_count++;
    MB_TRY(make_input(work, context, continuation, &input));
    add_input(work, from, work->request_count - 1, &input);
done:
    mb_free(input.tokens);
    return status;
}

static mb_status make_requests(choice_work *work, const mb_tokenizer *tokenizer)
{
    mb_status status = MB_OK;
    choice_encoder encoder = {.tokenizer = tokenizer};
    int64_t requests = 0;
    for (int64_t q = 0; q < work->task->count; q++) requests += work->task->questions[q].choice_count;
    MB_NEW_ARRAY(work->requests, requests + 1);
    MB_NEW_ARRAY(work->inputs, requests + 1);
    MB_TRY(mb_hash_create(&encoder.hash));
    MB_TRY(mb_tokenizer_scratch_create(tokenizer, &encoder.scratch));
    for (int64_t q = 0; q < work->task->count; q++) {
        int64_t from = work->input_count;
        for (int64_t c = 0; c < work->task->questions[q].choice_count; c++)
            MB_TRY(add_request(work, &encoder, q, c, from));
    }
    mb_hash_get(encoder.hash, work->request_hash);
done:
    mb_tokenizer_scratch_destroy(&encoder.scratch);
    mb_ids_destroy(&encoder.context);
    mb_ids_destroy(&encoder.continuation);
    mb_hash_destroy(&encoder.hash);
    return status;
}

/* ---- 2. tiles ---- */

static int order_inputs(const void *a, const void *b)
{
    const choice_input *x = a, *y = b;
    if (x->needs_logits != y->needs_logits) return x->needs_logits ? 1 : -1;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static mb_status make_tiles(choice_work *work, int64_t tile_tokens, int64_t vocab)
{
    mb_status status = MB_OK;
    const int64_t most_heads = LOGIT_BYTES / (vocab * (int64_t)sizeof(float)) + 1;
    int64_t tokens = 0, heads = 0;
    qsort(work->inputs, (size_t)work->input_count, sizeof *work->inputs, order_inputs);
    MB_NEW_ARRAY(work->tile_first, work->input_count + 1);
    for (int64_t i = 0; i < work->input_count; i++) {
        const choice_input *input = &work->inputs[i];
        bool is_other = i > 0 && input->needs_logits != work->inputs[i - 1].needs_logits;
        bool is_full =
            tokens + input->count > tile_tokens || (input->needs_logits && heads + input->heads > most_heads);
        if (i == 0 || is_other || is_full) {
            work->tile_first[work->tile_count++] = i;
            tokens = heads = 0;
        }
        tokens += input->count;
        heads += input->heads;
    }
    work->tile_first[work->tile_count] = work->input_count;
done:
    return status;
}

/* ---- 3. one tile ---- */

typedef struct choice_answer {
    int64_t request;
    double loglik;
    int64_t is_greedy;
} choice_answer;

typedef struct choice_answers {
    choice_answer *data; /* [requests] */
    int64_t count;
} choice_answers;

static float round_bf16(double value)
{
    return mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32((float)value));
}

/* log-softmax of row[V] at `target`; is_greedy: it is the first of the largest. */
static double row_loglik(const float *row, int64_t vocab, uint32_t target, bool is_bf16, bool *out_is_greedy)
{
    int64_t best = 0;
    double sum = 0;
    float top = is_bf16 ? round_bf16(row[0]) : row[0];
    for (int64_t v = 1; v < vocab; v++) {
        float value = is_bf16 ? round_bf16(row[v]) : row[v];
        if (value > top) {
            top = value;
            best = v;
        }
    }
    for (int64_t v = 0; v < vocab; v++) sum += exp((double)(is_bf16 ? round_bf16(row[v]) : row[v]) - top);
    *out_is_greedy = best == (int64_t)target;
    double value = (is_bf16 ? (double)round_bf16(row[target]) : (double)row[target]) - top - log(sum);
    return is_bf16 ? (double)round_bf16(value) : value;
}

static choice_answer answer_by_logits(const choice_work *work, int64_t request, const float *logits,
                                      int64_t heads, int64_t vocab)
{
    const choice_request *asked = &work->requests[request];
    const bool is_bf16 = work->softmax_dtype == MB_BF16;
    choice_answer answer = {.request = request, .is_greedy = true};
    float rounded = 0;
    for (int64_t j = 0; j < asked->count; j++) {
        bool is_greedy;
        const float *row = logits + (heads - asked->count + j) * vocab;
        double value = row_loglik(row, vocab, asked->continuation[j], is_bf16, &is_greedy);
        answer.loglik += value;
        rounded += (float)value;
        answer.is_greedy = answer.is_greedy && is_greedy;
    }
    if (is_bf16) answer.loglik = round_bf16(rounded);
    return answer;
}

static choice_answer answer_by_loss(const choice_work *work, int64_t request, const float *loss,
                                    const int32_t *argmax)
{
    const choice_request *asked = &work->requests[request];
    choice_answer answer = {.request = request, .is_greedy = true};
    for (int64_t j = 0; j < asked->count; j++) {
        answer.loglik -= loss[j];
        answer.is_greedy = answer.is_greedy && argmax[j] == (int32_t)asked->continuation[j];
    }
    return answer;
}

static mb_status fill_tile(const choice_work *work, int64_t first, int64_t end, mb_tile *tile)
{
    mb_status status = MB_OK;
    mb_tile_reset(tile);
    for (int64_t i = first; i < end; i++) {
        const choice_input *input = &work->inputs[i];
        const choice_request *asked = &work->requests[input->first];
        MB_TRY(mb_tile_add(tile, input->tokens, input->count));
        for (int64_t j = 0; j < input->heads; j++) {
            int64_t at = asked->count - input->heads + j; /* of this request; others go by the logits */
            mb_tile_add_target(tile, tile->tokens - input->heads + j, at >= 0 ? asked->continuation[at] : 0);
        }
    }
done:
    return status;
}

/* A request of a tile, and the head rows of its input. */
typedef struct choice_item {
    int64_t request, head, heads;
} choice_item;

static int64_t list_tile(const choice_work *work, int64_t first, int64_t end, choice_item *items)
{
    int64_t n = 0, head = 0;
    for (int64_t i = first; i < end; i++) {
        const choice_input *input = &work->inputs[i];
        for (int64_t r = input->first; r >= 0; r = work->requests[r].next)
            items[n++] = (choice_item){r, head, input->heads};
        head += input->heads;
    }
    return n;
}

/* Rows of logits are worked on by all threads, a request by one. items: room for all requests. */
static mb_status run_tile(const choice_work *work, mb_lm_pass *pass, int64_t vocab, int threads,
                          int64_t first, int64_t end, mb_tile *tile, choice_item *items,
                          choice_answers *answers)
{
    mb_status status = MB_OK;
    const bool by_logits = work->inputs[first].needs_logits;
    const mb_lm_want want = {.argmax = !by_logits, .logits = by_logits, .no_routing = true};
    mb_lm_output out;
    MB_TRY(fill_tile(work, first, end, tile));
    mb_lm_batch batch = mb_tile_batch(tile);
    MB_TRY(mb_lm_forward(pass, &batch, &want, &out));
    const int64_t n = list_tile(work, first, end, items);
    choice_answer *answer = answers->data + answers->count;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (by_logits && n > 1)
    for (int64_t k = 0; k < n; k++) {
        const choice_item *item = &items[k];
        answer[k] =
            by_logits
                ? answer_by_logits(work, item->request, out.logits + item->head * vocab, item->heads, vocab)
                : answer_by_loss(work, item->request, out.token_loss + item->head, out.argmax + item->head);
    }
    answers->count += n;
done:
    return status;
}

static mb_status run_tiles(mb_lm *lm, const choice_work *work, mb_comm_queue *queue, choice_answers *answers)
{
    mb_status status = MB_OK;
    mb_lm_pass *pass = NULL;
    mb_tile tile = {0};
    choice_item *items = NULL;
    mb_progress progress;
    int64_t unit;
    const bool has_progress = work->task->name != NULL;
    if (has_progress) mb_progress_start(&progress, work->task->name, "tiles", 0, work->tile_count);
    MB_NEW_ARRAY(answers->data, work->request_count + 1);
    MB_NEW_ARRAY(items, work->request_count + 1);
    MB_TRY(mb_lm_pass_create(lm, &pass));
    for (;;) {
        if (mb_stop_is_set()) MB_RAISE(MB_ESTOPPED, "stopped in %s; run again", work->task->path);
        MB_TRY(mb_comm_queue_next(queue, &unit));
        if (unit < 0) break;
        MB_TRY(run_tile(work, pass, mb_lm_arch(lm)->vocab, mb_ops_threads(mb_lm_ops(lm)),
                        work->tile_first[unit], work->tile_first[unit + 1], &tile, items, answers));
        if (has_progress) mb_progress_step(&progress, unit + 1, NULL);
    }
    if (has_progress) mb_progress_end(&progress, work->tile_count, NULL);
done:
    mb_lm_pass_destroy(&pass);
    mb_tile_destroy(&tile);
    mb_free(items);
    return status;
}

/* ---- 4. picks ---- */

void mb_choice_result_reset(mb_choice_result *result)
{
    for (int64_t q = 0; result->questions != NULL && q < result->count; q++) {
        mb_free(result->questions[q].loglik);
        mb_free(result->questions[q].is_greedy);
    }
    mb_free(result->questions);
    *result = (mb_choice_result){0};
}

static void pick(const mb_task *task, int64_t q, double near_tie, mb_choice_question *question)
{
    double best = -INFINITY, best_norm = -INFINITY, best_bytes = -INFINITY, second = -INFINITY;
    for (int64_t c = 0; c < task->questions[q].choice_count; c++) {
        int64_t characters, bytes;
        double value = question->loglik[c];
        mb_task_choice_length(task, q, c, &characters, &bytes);
        double norm = value / (double)characters, per_byte = value / (double)bytes;
        if (value > best) {
            second = best;
            best = value;
            question->picked = c;
        } else if (value > second) {
            second = value;
        }
        if (norm > best_norm) {
            best_norm = norm;
            question->picked_norm = c;
        }
        if (per_byte > best_bytes) {
            best_bytes = per_byte;
            question->picked_bytes = c;
        }
    }
    question->is_near_tie = best - second <= near_tie;
}

/* Mean of n zeros and ones of which k are ones, and its standard error. */
static void share_right(int64_t k, int64_t n, double *out_mean, double *out_stderr)
{
    double mean = n > 0 ? (double)k / (double)n : NAN;
    double squares = (double)k * (1 - mean) * (1 - mean) + (double)(n - k) * mean * mean;
    *out_mean = mean;
    *out_stderr = n > 1 ? sqrt(squares / (double)(n - 1)) / sqrt((double)n) : NAN;
}

static void summarise(const mb_task *task, mb_choice_result *result)
{
    int64_t right = 0, right_norm = 0, right_bytes = 0;
    for (int64_t q = 0; q < result->count; q++) {
        const mb_choice_question *question = &result->questions[q];
        int64_t gold = task->questions[q].gold;
        right += question->picked == gold;
        right_norm += question->picked_norm == gold;
        right_bytes += question->picked_bytes == gold;
        result->near_ties += question->is_near_tie;
    }
    share_right(right, result->count, &result->acc, &result->acc_stderr);
    share_right(right_norm, result->count, &result->acc_norm, &result->acc_norm_stderr);
    share_right(right_bytes, result->count, &result->acc_bytes, &result->acc_bytes_stderr);
}

static mb_status fill_result(const choice_work *work, const choice_answer *by_request, double near_tie,
                             mb_choice_result *result)
{
    mb_status status = MB_OK;
    const mb_task *task = work->task;
    int64_t request = 0;
    MB_NEW_ARRAY(result->questions, task->count + 1);
    result->count = task->count;
    result->inputs = work->input_count;
    memcpy(result->request_hash, work->request_hash, sizeof result->request_hash);
    for (int64_t q = 0; q < task->count; q++) {
        const int64_t choices = task->questions[q].choice_count;
        mb_choice_question *question = &result->questions[q];
        MB_NEW_ARRAY(question->loglik, choices);
        MB_NEW_ARRAY(question->is_greedy, choices);
        for (int64_t c = 0; c < choices; c++, request++) {
            question->loglik[c] = by_request[request].loglik;
            question->is_greedy[c] = by_request[request].is_greedy;
            if (isfinite(question->loglik[c])) continue;
            MB_RAISE(MB_ENUMERIC,
                     "%s: question %lld: the log-likelihood of choice %lld is not a number; check the "
                     "model's weights",
                     task->path, (long long)task->questions[q].doc_id, (long long)c + 1);
        }
        pick(task, q, near_tie, question);
    }
    summarise(task, result);
done:
    return status;
}

/* ---- 5. run ---- */

static mb_status prepare(choice_work *work, const mb_lm *lm, const mb_tokenizer *tokenizer,
                         int64_t tile_tokens)
{
    mb_status status = MB_OK;
    if (work->softmax_dtype != MB_F32 && work->softmax_dtype != MB_BF16) {
        MB_RAISE(MB_EUSAGE, "softmax_dtype %s: f32 and bf16 are there", mb_dtype_name(work->softmax_dtype));
    }
    MB_TRY(make_requests(work, tokenizer));
    MB_TRY(make_tiles(work, tile_tokens, mb_lm_arch(lm)->vocab));
done:
    return status;
}

/* Everybody's answers, by request. */
static mb_status gather(mb_comm *comm, const choice_work *work, const choice_answers *mine,
                        choice_answer **out_by_request)
{
    mb_status status = MB_OK;
    choice_answer *all = NULL, *by_request = NULL;
    int64_t *offsets = mb_calloc((size_t)mb_comm_size(comm) + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(comm, offsets != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgatherv(comm, mine->data, (size_t)mine->count * sizeof *all, (void **)&all, offsets));
    MB_NEW_ARRAY(by_request, work->request_count + 1);
    const int64_t count = offsets[mb_comm_size(comm)] / (int64_t)sizeof *all;
    for (int64_t i = 0; i < count; i++) by_request[all[i].request] = all[i];
    *out_by_request = by_request;
done:
    mb_free(offsets);
    mb_free(all);
    return status;
}

mb_status mb_choice_run(mb_comm *comm, mb_lm *lm, const mb_task *task, const mb_tokenizer *tokenizer,
                        int64_t max_length, int64_t tile_tokens, mb_dtype softmax_dtype, double near_tie,
                        mb_choice_result *out_result)
{
    mb_status status = MB_OK;
    choice_work work = {
        .task = task, .max_length = mb_tile_limit(max_length, lm, NULL), .softmax_dtype = softmax_dtype};
    choice_answers answers = {0};
    choice_answer *by_request = NULL;
    mb_comm_queue *queue = NULL;
    mb_choice_result result = {0};
    MB_TRY(mb_comm_agree(comm, prepare(&work, lm, tokenizer, tile_tokens)));
    MB_TRY(mb_comm_queue_create(comm, work.tile_count, &queue));
    MB_TRY(mb_comm_agree(comm, run_tiles(lm, &work, queue, &answers)));
    MB_TRY(gather(comm, &work, &answers, &by_request));
    MB_TRY(fill_result(&work, by_request, near_tie, &result));
    *out_result = result;
    result = (mb_choice_result){0};
done:
    mb_choice_result_reset(&result);
    mb_comm_queue_destroy(&queue);
    mb_free(answers.data);
    mb_free(by_request);
    work_reset(&work);
    return status;
}
