/* experts_serve.c: a list of requests, batches out of it, and the loop of a rank that does nothing else.
 *
 * 1. life   2. queue   3. batches   4. messages   5. the loop
 */
#include "serve/experts_serve.h"

#include <assert.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"

typedef struct queued {
    mb_experts_request request;
    double since; /* when it came */
    struct queued *next;
} queued;

typedef struct served {
    int64_t expert, requests;
    struct served *next;
} served;

struct mb_experts_serve {
    mb_mail *mail;
    int gate;
    mb_experts_serve_options options;
    queued *first;
    served *counts; /* requests begun, of every expert that had some */
    double heard;   /* when the gate last said something */
    bool has_ended, may_leave, is_together;
};

/* ---- 1. life ---- */

static double now(const mb_experts_serve *s)
{
    return s->options.clock != NULL ? s->options.clock(s->options.own) : mb_clock_seconds();
}

static void free_queued(queued *q)
{
    if (q != NULL) mb_experts_wire_reset_request(&q->request);
    mb_free(q);
}

static void drop_all(mb_experts_serve *s)
{
    while (s->first != NULL) {
        queued *q = s->first;
        s->first = q->next;
        free_queued(q);
    }
}

mb_status mb_experts_serve_create(mb_mail *mail, int gate, const mb_experts_serve_options *options,
                                  mb_experts_serve **out_serve)
{
    mb_status status = MB_OK;
    mb_experts_serve *s = NULL;
    MB_NEW(s);
    s->mail = mail;
    s->gate = gate;
    s->options = *options;
    s->heard = now(s);
    *out_serve = s;
done:
    return status;
}

void mb_experts_serve_destroy(mb_experts_serve **serve)
{
    if (*serve == NULL) return;
    drop_all(*serve);
    while ((*serve)->counts != NULL) {
        served *c = (*serve)->counts;
        (*serve)->counts = c->next;
        mb_free(c);
    }
    MB_FREE(*serve);
}

/* ---- 2. queue ---- */

static mb_status send_answer(mb_experts_serve *s, const mb_experts_answer *answer)
{
    mb_status status = MB_OK;
    mb_str bytes = MB_STR_EMPTY;
    MB_TRY(mb_experts_wire_put_answer(answer, &bytes));
    MB_TRY(mb_mail_send(s->mail, s->gate, MB_EXPERTS_ANSWER, bytes.data, bytes.length));
done:
    mb_str_destroy(&bytes);
    return status;
}

static mb_status put(mb_experts_serve *s, const mb_mail_message *message)
{
    mb_status status = MB_OK;
    queued *q = NULL, **end = &s->first;
    MB_NEW(q);
    q->since = now(s);
    MB_TRY(mb_experts_wire_get_request(message->bytes, message->count, &q->request));
    while (*end != NULL) end = &(*end)->next;
    *end = q;
    q = NULL;
done:
    free_queued(q);
    return status;
}

static mb_status drop(mb_experts_serve *s, const mb_mail_message *message)
{
    mb_status status = MB_OK;
    mb_experts_drop what;
    if (message->count != sizeof what) MB_RAISE(MB_EFORMAT, "a message of the gate has the wrong length");
    memcpy(&what, message->bytes, sizeof what);
    for (queued **at = &s->first; *at != NULL; at = &(*at)->next) {
        queued *q = *at;
        if (q->request.ticket != what.ticket || q->request.expert != what.expert) continue;
        const mb_experts_answer answer = {
            .ticket = what.ticket, .expert = what.expert, .how = MB_EXPERTS_DROPPED};
        *at = q->next;
        free_queued(q);
        MB_TRY(send_answer(s, &answer));
        break;
    }
done:
    return status;
}

/* ---- 3. batches ---- */

typedef struct batch {
    queued **item; /* [count] taken from the queue */
    mb_experts_request *requests;
    mb_experts_answer *answers;
    int64_t count;
} batch;

static void reset_batch(batch *b)
{
    for (int64_t i = 0; i < b->count; i++) {
        free_queued(b->item[i]);
        mb_experts_wire_reset_answer(&b->answers[i]);
    }
    mb_free(b->item);
    mb_free(b->requests);
    mb_free(b->answers);
}

static mb_status take_batch(mb_experts_serve *s, batch *b)
{
    mb_status status = MB_OK;
    const int64_t expert = s->first->request.expert;
    MB_NEW_ARRAY(b->item, s->options.batch);
    MB_NEW_ARRAY(b->requests, s->options.batch);
    MB_NEW_ARRAY(b->answers, s->options.batch);
    for (queued **at = &s->first; *at != NULL && b->count < s->options.batch;) {
        queued *q = *at;
        if (q->request.expert != expert) {
            at = &q->next;
            continue;
        }
        *at = q->next;
        b->requests[b->count] = q->request; /* borrowed */
        b->item[b->count++] = q;
    }
done:
    return status;
}

/* One after the other: what cannot be answered shall not take the others with it. */
static mb_status answer_singly(mb_experts_serve *s, batch *b)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < b->count; i++) {
        mb_experts_wire_reset_answer(&b->answers[i]);
        status = s->options.answer(s->options.own, b->requests[i].expert, &b->requests[i], 1, &b->answers[i]);
        if (status == MB_OK || status == MB_ENOMEM) {
            MB_TRY(status);
            continue;
        }
        mb_experts_wire_reset_answer(&b->answers[i]);
        b->answers[i].how = MB_EXPERTS_FAILED;
        b->answers[i].text = mb_strdup(mb_status_message());
        mb_status_reset();
        status = MB_OK;
    }
done:
    return status;
}

/* How many requests this expert had before. */
static mb_status count_requests(mb_experts_serve *s, int64_t expert, int64_t n, int64_t *out_before)
{
    mb_status status = MB_OK;
    served *c = s->counts;
    while (c != NULL && c->expert != expert) c = c->next;
    if (c == NULL) {
        MB_NEW(c);
        c->expert = expert;
        c->next = s->counts;
        s->counts = c;
    }
    *out_before = c->requests;
    c->requests += n;
done:
    return status;
}

mb_status mb_experts_serve_work(mb_experts_serve *serve, bool *out_did)
{
    mb_status status = MB_OK;
    mb_experts_serve *s = serve;
    batch b = {0};
    int64_t before = 0;
    *out_did = s->first != NULL;
    if (s->first == NULL) goto done;
    MB_TRY(take_batch(s, &b));
    const int64_t expert = b.requests[0].expert;
    MB_TRY(count_requests(s, expert, b.count, &before));
    const double began = now(s);
    if (s->options.fail != NULL) mb_experts_fail_run(s->options.fail, expert, before + 1, b.count);
    status = s->options.answer(s->options.own, expert, b.requests, b.count, b.answers);
    if (status != MB_OK && status != MB_ENOMEM) status = answer_singly(s, &b);
    MB_TRY(status);
    const double compute = now(s) - began;
    for (int64_t i = 0; i < b.count; i++) {
        mb_experts_answer *a = &b.answers[i];
        a->ticket = b.requests[i].ticket;
        a->expert = expert;
        a->batch = b.count;
        a->queued = began - b.item[i]->since;
        a->compute = compute;
        MB_TRY(send_answer(s, a));
    }
done:
    reset_batch(&b);
    return status;
}

/* ---- 4. messages ---- */

mb_status mb_experts_serve_take(mb_experts_serve *serve, mb_mail_message *message)
{
    mb_status status = MB_OK;
    mb_experts_serve *s = serve;
    s->heard = now(s);
    switch (message->tag) {
    case MB_EXPERTS_ASK:
        MB_TRY(put(s, message));
        break;
    case MB_EXPERTS_DROP:
        MB_TRY(drop(s, message));
        break;
    case MB_EXPERTS_END:
        drop_all(s);
        s->has_ended = true;
        MB_TRY(mb_mail_send(s->mail, s->gate, MB_EXPERTS_BYE, NULL, 0));
        break;
    case MB_EXPERTS_LEAVE:
        s->may_leave = true;
        s->is_together = message->count == 1 && message->bytes[0] == 1;
        break;
    default: /* alive */
        break;
    }
done:
    MB_FREE(message->bytes);
    return status;
}

/* ---- 5. the loop ---- */

static void nap(void)
{
    const struct timespec short_while = {.tv_nsec = 100000};
    nanosleep(&short_while, NULL);
}

mb_status mb_experts_serve_run(mb_experts_serve *serve, bool *out_together)
{
    mb_status status = MB_OK;
    mb_experts_serve *s = serve;
    assert(mb_mail_rank(s->mail) != s->gate);
    while (!s->may_leave) {
        mb_mail_message message;
        bool has = false, did = false;
        if (s->options.opt_look != NULL) s->options.opt_look(s->options.own);
        for (;;) { /* all that has come, before a batch is chosen: some of it may be dropped again */
            MB_TRY(mb_mail_poll(s->mail, &message, &has));
            if (!has) break;
            MB_TRY(mb_experts_serve_take(s, &message));
        }
        MB_TRY(mb_experts_serve_work(s, &did));
        if (did || s->may_leave) continue;
        if (now(s) - s->heard > s->options.patience)
            MB_RAISE(MB_ECOMM, "rank %d, the gate's, has said nothing for %.0f seconds: it is taken for gone",
                     s->gate, s->options.patience);
        nap();
    }
    *out_together = s->is_together;
done:
    return status;
}
