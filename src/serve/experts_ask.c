/* experts_ask.c: what is asked of whom, by when it is due, and who is given up.
 *
 * A request is (question, place in its list of replies). Every expert has two lists of them: waiting to be
 * sent, and under way; both are short (a window, and the caller's open questions), so they are searched.
 *
 * 1. life   2. settling   3. life and death   4. asking   5. answers   6. a step   7. the end
 */
#include "serve/experts_ask.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

typedef struct request {
    mb_experts_question *question;
    int64_t place;
    int64_t ticket;
    mb_str bytes; /* while it waits to be sent */
    double due;
    struct request *next;
} request;

typedef struct expert {
    request *held, *sent; /* oldest first */
    int64_t under_way, strikes;
    double strike;            /* when it last was late, or was asked again */
    double died, sign, again; /* when it died; last sign of life; not asked before */
    mb_experts_ask_state state;
    bool has_complained;
} expert;

struct mb_experts_ask {
    mb_mail *mail;
    mb_experts_ask_options options;
    mb_experts_serve *here;
    expert *experts;
    mb_experts_question *settled; /* oldest first */
    int64_t open, tickets;
    double alive; /* when the others last heard that we are here */
    bool *said_bye;
};

/* ---- 1. life ---- */

static double now(const mb_experts_ask *a)
{
    return a->options.clock != NULL ? a->options.clock(a->options.own) : mb_clock_seconds();
}

const char *mb_experts_outcome_name(mb_experts_outcome outcome)
{
    static const char *const names[MB_EXPERTS_OUTCOMES] = {"waiting", "answered", "late", "dead", "unable"};
    return names[outcome];
}

void mb_experts_ask_free(mb_experts_question **question)
{
    if (*question == NULL) return;
    for (int64_t i = 0; (*question)->reply != NULL && i < (*question)->count; i++)
        mb_experts_wire_reset_answer(&(*question)->reply[i].answer);
    mb_free((*question)->reply);
    MB_FREE(*question);
}

static void free_request(request *r)
{
    if (r != NULL) mb_str_destroy(&r->bytes);
    mb_free(r);
}

mb_status mb_experts_ask_create(mb_mail *mail, const mb_experts_ask_options *options,
                                mb_experts_serve *opt_here, mb_experts_ask **out_ask)
{
    mb_status status = MB_OK;
    mb_experts_ask *a = NULL;
    MB_NEW(a);
    a->mail = mail;
    a->options = *options;
    a->here = opt_here;
    MB_NEW_ARRAY(a->experts, options->experts);
    MB_NEW_ARRAY(a->said_bye, mb_mail_size(mail));
    a->alive = now(a);
    for (int64_t x = 0; x < options->experts; x++) a->experts[x].strike = -INFINITY;
    *out_ask = a;
    a = NULL;
done:
    mb_experts_ask_destroy(&a);
    return status;
}

/* The last request of a question that nobody settles any more frees it. */
static void abandon(request *r)
{
    mb_experts_question *question = r->question;
    if (--question->waiting == 0) mb_experts_ask_free(&question);
    free_request(r);
}

static void abandon_all(request **list)
{
    while (*list != NULL) {
        request *r = *list;
        *list = r->next;
        abandon(r);
    }
}

void mb_experts_ask_destroy(mb_experts_ask **ask)
{
    mb_experts_ask *a = *ask;
    if (a == NULL) return;
    for (int64_t x = 0; a->experts != NULL && x < a->options.experts; x++) {
        abandon_all(&a->experts[x].held);
        abandon_all(&a->experts[x].sent);
    }
    for (mb_experts_question *q; (q = mb_experts_ask_next(a)) != NULL;) mb_experts_ask_free(&q);
    mb_free(a->experts);
    mb_free(a->said_bye);
    MB_FREE(*ask);
}

int64_t mb_experts_ask_open(const mb_experts_ask *ask)
{
    return ask->open;
}

mb_experts_ask_state mb_experts_ask_get(const mb_experts_ask *ask, int64_t x)
{
    return ask->experts[x].state;
}

mb_experts_question *mb_experts_ask_next(mb_experts_ask *ask)
{
    mb_experts_question *q = ask->settled;
    if (q != NULL) {
        ask->settled = q->next;
        q->next = NULL;
    }
    return q;
}

/* ---- 2. settling ---- */

static void settle_question(mb_experts_ask *a, mb_experts_question *q)
{
    mb_experts_question **end = &a->settled;
    while (*end != NULL) end = &(*end)->next;
    *end = q;
    a->open--;
}

static void settle_reply(mb_experts_ask *a, mb_experts_question *q, int64_t place, mb_experts_outcome outcome)
{
    q->reply[place].outcome = outcome;
    q->reply[place].settled = now(a);
    if (--q->waiting == 0) settle_question(a, q);
}

/* Unlinked already. */
static void settle(mb_experts_ask *a, request *r, mb_experts_outcome outcome)
{
    settle_reply(a, r->question, r->place, outcome);
    free_request(r);
}

/* ---- 3. life and death ---- */

static bool is_here(const mb_experts_ask *a, int64_t x)
{
    return a->options.rank[x] == mb_mail_rank(a->mail);
}

static mb_status give_up(mb_experts_ask *a, int64_t x, request *r)
{
    expert *e = &a->experts[x];
    const mb_experts_drop what = {.ticket = r->ticket, .expert = x};
    const mb_status status = mb_mail_send(a->mail, a->options.rank[x], MB_EXPERTS_DROP, &what, sizeof what);
    if (r->question->reply[r->place].sent >= e->strike) {
        e->strikes++;
        e->strike = now(a);
    }
    e->under_way--;
    e->state.late++;
    settle(a, r, MB_EXPERTS_LATE);
    return status;
}

/* Nothing that waits is worth waiting for. */
static mb_status die(mb_experts_ask *a, int64_t x)
{
    mb_status status = MB_OK;
    expert *e = &a->experts[x];
    e->state.is_dead = true;
    e->state.deaths++;
    e->died = now(a);
    e->again = e->died + a->options.timeout * exp2((double)(e->state.deaths < 30 ? e->state.deaths : 30));
    mb_warn("%s (rank %d) was late %lld times without an answer in time between: it is not asked any more",
            a->options.names[x], a->options.rank[x], (long long)e->strikes);
    while (e->held != NULL) {
        request *r = e->held;
        e->held = r->next;
        e->state.passed_over++;
        settle(a, r, MB_EXPERTS_DEAD);
    }
    while (e->sent != NULL) {
        request *r = e->sent;
        e->sent = r->next;
        MB_TRY(give_up(a, x, r));
    }
done:
    return status;
}

static void revive_when_due(mb_experts_ask *a, int64_t x)
{
    expert *e = &a->experts[x];
    const double t = now(a);
    if (!e->state.is_dead || e->sign <= e->died || t < e->again) return;
    e->state.is_dead = false;
    e->strikes = a->options.strikes - 1;
    e->strike = t;
    mb_info("%s (rank %d) gave a sign of life: it is asked again", a->options.names[x], a->options.rank[x]);
}

static mb_status check_due(mb_experts_ask *a, int64_t x, bool *out_did)
{
    mb_status status = MB_OK;
    expert *e = &a->experts[x];
    const double t = now(a);
    if (is_here(a, x)) goto done;
    for (request **at = &e->sent; *at != NULL;) {
        request *r = *at;
        if (t <= r->due) {
            at = &r->next;
            continue;
        }
        *at = r->next;
        *out_did = true;
        MB_TRY(give_up(a, x, r));
    }
    if (!e->state.is_dead && e->strikes >= a->options.strikes) MB_TRY(die(a, x));
    revive_when_due(a, x);
done:
    return status;
}

/* ---- 4. asking ---- */

static mb_status hold(mb_experts_ask *a, mb_experts_question *q, int64_t place,
                      const mb_experts_request *request_)
{
    mb_status status = MB_OK;
    const int64_t x = q->reply[place].expert;
    request *r = NULL, **end = &a->experts[x].held;
    mb_experts_request whole = *request_;
    MB_NEW(r);
    r->question = q;
    r->place = place;
    r->ticket = whole.ticket = a->tickets++;
    whole.expert = x;
    MB_TRY(mb_experts_wire_put_request(&whole, &r->bytes));
    while (*end != NULL) end = &(*end)->next;
    *end = r;
    r = NULL;
done:
    free_request(r);
    return status;
}

mb_status mb_experts_ask_put(mb_experts_ask *ask, int64_t number, const mb_experts_request *request_,
                             const int64_t *experts, int64_t count)
{
    mb_status status = MB_OK;
    mb_experts_ask *a = ask;
    mb_experts_question *q = NULL;
    int64_t held = 0;
    assert(count > 0);
    MB_NEW(q);
    MB_NEW_ARRAY(q->reply, count);
    q->number = number;
    q->count = q->waiting = count;
    for (int64_t i = 0; i < count; i++) q->reply[i] = (mb_experts_reply){.expert = experts[i], .put = now(a)};
    a->open++;
    for (int64_t i = 0; i < count; i++) {
        if (a->experts[experts[i]].state.is_dead) continue;
        status = hold(a, q, i, request_);
        if (status != MB_OK) goto done;
        held++;
    }
    for (int64_t i = 0; i < count; i++) { /* behind the others: the last settles the question */
        if (!a->experts[experts[i]].state.is_dead) continue;
        a->experts[experts[i]].state.passed_over++;
        settle_reply(a, q, i, MB_EXPERTS_DEAD);
    }
done:
    if (status != MB_OK && q != NULL) {
        if (q->reply != NULL) a->open--;
        q->waiting = held; /* those held free it with the last of them */
        if (held == 0) mb_experts_ask_free(&q);
    }
    return status;
}

static mb_status send_held(mb_experts_ask *a, int64_t x, bool *out_did)
{
    mb_status status = MB_OK;
    expert *e = &a->experts[x];
    while (e->held != NULL && e->under_way < a->options.window) {
        request *r = e->held, **end = &e->sent;
        const double t = now(a);
        MB_TRY(mb_mail_send(a->mail, a->options.rank[x], MB_EXPERTS_ASK, mb_str_text(&r->bytes),
                            r->bytes.length));
        e->held = r->next;
        r->next = NULL;
        mb_str_destroy(&r->bytes);
        r->question->reply[r->place].sent = t;
        r->due = t + a->options.timeout;
        while (*end != NULL) end = &(*end)->next;
        *end = r;
        e->under_way++;
        e->state.asked++;
        *out_did = true;
    }
done:
    return status;
}

/* ---- 5. answers ---- */

/* The request of this ticket, taken from those under way; NULL: it was given up. */
static request *take_sent(expert *e, int64_t ticket)
{
    for (request **at = &e->sent; *at != NULL; at = &(*at)->next) {
        request *r = *at;
        if (r->ticket != ticket) continue;
        *at = r->next;
        e->under_way--;
        return r;
    }
    return NULL;
}

static void complain(mb_experts_ask *a, int64_t x, const char *why)
{
    expert *e = &a->experts[x];
    if (!e->has_complained)
        mb_warn("%s (rank %d) cannot answer (said once): %s", a->options.names[x], a->options.rank[x], why);
    e->has_complained = true;
}

static mb_status take_answer(mb_experts_ask *a, const mb_mail_message *message)
{
    mb_status status = MB_OK;
    mb_experts_answer answer = {0};
    MB_TRY(mb_experts_wire_get_answer(message->bytes, message->count, &answer));
    if (answer.expert < 0 || answer.expert >= a->options.experts ||
        a->options.rank[answer.expert] != message->rank)
        MB_RAISE(MB_EFORMAT, "rank %d answers for expert %lld, which is not there", message->rank,
                 (long long)answer.expert);
    const int64_t x = answer.expert;
    expert *e = &a->experts[x];
    e->sign = now(a);
    request *r = take_sent(e, answer.ticket);
    if (r == NULL) {
        e->state.late_answers += answer.how != MB_EXPERTS_DROPPED;
        goto done;
    }
    e->strikes = 0;
    const bool is_able = answer.how == MB_EXPERTS_DONE;
    if (!is_able) complain(a, x, answer.text != NULL ? answer.text : "no reason given");
    e->state.answered += is_able;
    e->state.unable += !is_able;
    r->question->reply[r->place].answer = answer;
    answer = (mb_experts_answer){0};
    settle(a, r, is_able ? MB_EXPERTS_ANSWERED : MB_EXPERTS_UNABLE);
done:
    mb_experts_wire_reset_answer(&answer);
    return status;
}

/* Everything that has come. */
static mb_status take_all(mb_experts_ask *a, bool *out_did)
{
    mb_status status = MB_OK;
    mb_mail_message message = {0};
    bool has = false;
    for (;;) {
        MB_TRY(mb_mail_poll(a->mail, &message, &has));
        if (!has) break;
        *out_did = true;
        if (message.tag == MB_EXPERTS_BYE)
            a->said_bye[message.rank] = true;
        else if (message.tag == MB_EXPERTS_ANSWER)
            MB_TRY(take_answer(a, &message));
        else if (a->here != NULL)
            MB_TRY(mb_experts_serve_take(a->here, &message));
        MB_FREE(message.bytes);
    }
done:
    mb_free(message.bytes);
    return status;
}

/* ---- 6. a step ---- */

static mb_status tell_others(mb_experts_ask *a, int tag, const void *bytes, size_t n)
{
    mb_status status = MB_OK;
    for (int r = 0; r < mb_mail_size(a->mail); r++)
        if (r != mb_mail_rank(a->mail)) MB_TRY(mb_mail_send(a->mail, r, tag, bytes, n));
done:
    return status;
}

mb_status mb_experts_ask_step(mb_experts_ask *ask, bool *out_did)
{
    mb_status status = MB_OK;
    mb_experts_ask *a = ask;
    bool did = false, has_worked = false;
    MB_TRY(take_all(a, &did)); /* before the clock is looked at: what is here is not late */
    for (int64_t x = 0; x < a->options.experts; x++) {
        MB_TRY(check_due(a, x, &did));
        MB_TRY(send_held(a, x, &did));
    }
    if (now(a) - a->alive > 1) {
        MB_TRY(tell_others(a, MB_EXPERTS_ALIVE, NULL, 0));
        a->alive = now(a);
    }
    if (a->here != NULL) {
        MB_TRY(take_all(a, &did));
        MB_TRY(mb_experts_serve_work(a->here, &has_worked));
    }
    *out_did = did || has_worked;
done:
    return status;
}

/* ---- 7. the end ---- */

static bool have_all_said_bye(const mb_experts_ask *a)
{
    for (int r = 0; r < mb_mail_size(a->mail); r++)
        if (r != mb_mail_rank(a->mail) && !a->said_bye[r]) return false;
    return true;
}

static void nap(void)
{
    const struct timespec short_while = {.tv_nsec = 200000};
    nanosleep(&short_while, NULL);
}

mb_status mb_experts_ask_end(mb_experts_ask *ask, double grace, bool *out_together, bool *opt_missing)
{
    mb_status status = MB_OK;
    mb_experts_ask *a = ask;
    bool did = false;
    char word = 0;
    MB_TRY(tell_others(a, MB_EXPERTS_END, NULL, 0));
    for (const double since = now(a); !have_all_said_bye(a) && now(a) - since <= grace; nap())
        MB_TRY(take_all(a, &did));
    word = have_all_said_bye(a) ? 1 : 0;
    MB_TRY(tell_others(a, MB_EXPERTS_LEAVE, &word, 1));
    for (const double since = now(a); mb_mail_unsent(a->mail) > 0 && now(a) - since <= (word ? grace : 1);
         nap())
        MB_TRY(take_all(a, &did));
    for (int r = 0; opt_missing != NULL && r < mb_mail_size(a->mail); r++)
        opt_missing[r] = r != mb_mail_rank(a->mail) && !a->said_bye[r];
    *out_together = word != 0;
done:
    return status;
}
