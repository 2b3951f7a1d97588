/* experts_ask, experts_serve: the gate and its experts on ranks and a clock of the test's own: who is asked
 * when, what is computed together, who is late, dead, and there again. */
#include "mb_test.h"

#include "comm/mail_impl.h"
#include "serve/experts_ask.h"

enum { RANKS = 4, EXPERTS = 4 };

/* ---- ranks that are boxes ---- */

typedef struct net {
    mb_mail_box in[RANKS];
    mb_mail mail[RANKS];
    bool is_dead[RANKS]; /* its mail is lost */
    int asks[RANKS], drops[RANKS];
    double time, tick; /* tick: what a look at the clock takes */
    int64_t batches, largest;
    int64_t looks;
    int64_t unable; /* ticket that no expert can answer, -1: none */
} net;

static mb_status net_send(mb_mail *mail, int rank, int tag, const void *bytes, size_t count)
{
    net *n = mail->impl;
    n->asks[rank] += tag == MB_EXPERTS_ASK;
    n->drops[rank] += tag == MB_EXPERTS_DROP;
    if (n->is_dead[rank]) return MB_OK;
    if (tag == MB_EXPERTS_END) return mb_mail_box_put(&n->in[mail->rank], rank, MB_EXPERTS_BYE, NULL, 0);
    return mb_mail_box_put(&n->in[rank], mail->rank, tag, bytes, count);
}

static mb_status net_poll(mb_mail *mail, mb_mail_message *out_message, bool *out_has)
{
    *out_has = mb_mail_box_take(&((net *)mail->impl)->in[mail->rank], out_message);
    return MB_OK;
}

static int64_t net_unsent(const mb_mail *mail)
{
    (void)mail;
    return 0;
}

static double net_clock(void *own)
{
    net *n = own;
    return n->time += n->tick;
}

static void net_look(void *own)
{
    ((net *)own)->looks++;
}

/* Expert x says x + 10 * ticket for every choice. */
static mb_status net_answer(void *own, int64_t expert, const mb_experts_request *requests, int64_t n,
                            mb_experts_answer *answers)
{
    mb_status status = MB_OK;
    net *net_ = own;
    net_->batches++;
    if (n > net_->largest) net_->largest = n;
    net_->time += 0.5; /* computing */
    for (int64_t i = 0; i < n; i++) {
        if (requests[i].ticket == net_->unable) MB_RAISE(MB_EDATA, "this is too hard");
        MB_NEW_ARRAY(answers[i].loglik, requests[i].choice_count);
        answers[i].choices = requests[i].choice_count;
        answers[i].tokens = (int64_t)strlen(requests[i].prompt);
        for (int64_t c = 0; c < answers[i].choices; c++)
            answers[i].loglik[c] = (float)(expert + 10 * requests[i].ticket);
    }
done:
    return status;
}

/* ---- a gate and experts ---- */

typedef struct place {
    net net;
    mb_experts_ask *ask;
    mb_experts_serve *serve[RANKS];
} place;

static const char *const names[EXPERTS] = {"a", "b", "c", "d"};
static const int usual[EXPERTS] = {1, 2, 3, 1};

static void open_place(place *p, const int *rank, int64_t batch, int64_t window, int64_t strikes)
{
    static const mb_mail_vtable vtable = {.send = net_send, .poll = net_poll, .unsent = net_unsent};
    *p = (place){.net = {.time = 100, .unable = -1}};
    const mb_experts_serve_options serve = {.batch = batch,
                                            .patience = 50,
                                            .own = &p->net,
                                            .answer = net_answer,
                                            .clock = net_clock,
                                            .opt_look = net_look};
    const mb_experts_ask_options ask = {.experts = EXPERTS,
                                        .rank = rank,
                                        .names = names,
                                        .timeout = 2,
                                        .window = window,
                                        .strikes = strikes,
                                        .own = &p->net,
                                        .clock = net_clock};
    bool is_gate_serving = false;
    for (int x = 0; x < EXPERTS; x++) is_gate_serving = is_gate_serving || rank[x] == 0;
    for (int r = 0; r < RANKS; r++) {
        p->net.mail[r] = (mb_mail){.vtable = &vtable, .rank = r, .size = RANKS, .impl = &p->net};
        mb_test_ok(mb_experts_serve_create(&p->net.mail[r], 0, &serve, &p->serve[r]));
    }
    mb_test_ok(mb_experts_ask_create(&p->net.mail[0], &ask, is_gate_serving ? p->serve[0] : NULL, &p->ask));
}

static void close_place(place *p)
{
    mb_experts_ask_destroy(&p->ask);
    for (int r = 0; r < RANKS; r++) {
        mb_experts_serve_destroy(&p->serve[r]);
        mb_mail_box_reset(&p->net.in[r]);
        mb_mail_box_reset(&p->net.mail[r].own);
    }
}

static void put(place *p, int64_t number, int64_t first, int64_t count)
{
    char *choices[] = {(char *)(uintptr_t) " A", (char *)(uintptr_t) " B"};
    const mb_experts_request request = {
        .prompt = (char *)(uintptr_t) "what?", .choices = choices, .choice_count = 2};
    int64_t experts[EXPERTS];
    for (int64_t i = 0; i < count; i++) experts[i] = first + i;
    mb_test_ok(mb_experts_ask_put(p->ask, number, &request, experts, count));
}

static bool step(place *p)
{
    bool did = false;
    mb_test_ok(mb_experts_ask_step(p->ask, &did));
    return did;
}

/* Rank r takes its mail and computes up to `batches` batches; how many they were. */
static int serve(place *p, int r, int batches)
{
    mb_mail_message message;
    bool has = true, did = true;
    int n = 0;
    while (mb_mail_poll(&p->net.mail[r], &message, &has) == MB_OK && has)
        mb_test_ok(mb_experts_serve_take(p->serve[r], &message));
    for (; n < batches; n++) {
        mb_test_ok(mb_experts_serve_work(p->serve[r], &did));
        if (!did) break;
    }
    return n;
}

/* The next settled question must be this one, with these outcomes. */
static void expect(place *p, int64_t number, int64_t count, const mb_experts_outcome *outcomes)
{
    mb_experts_question *q = mb_experts_ask_next(p->ask);
    assert_non_null(q);
    assert_int_equal(q->number, number);
    assert_int_equal(q->count, count);
    for (int64_t i = 0; i < count; i++) assert_int_equal(q->reply[i].outcome, outcomes[i]);
    mb_experts_ask_free(&q);
}

static const mb_experts_outcome all_answered[EXPERTS] = {MB_EXPERTS_ANSWERED, MB_EXPERTS_ANSWERED,
                                                         MB_EXPERTS_ANSWERED, MB_EXPERTS_ANSWERED};

/* ---- tests ---- */

static void test_answers(void **state)
{
    (void)state;
    place p;
    open_place(&p, usual, 4, 8, 3);
    put(&p, 41, 0, EXPERTS);
    assert_int_equal(mb_experts_ask_open(p.ask), 1);
    assert_true(step(&p));
    p.net.time += 0.125; /* on the way */
    assert_null(mb_experts_ask_next(p.ask));
    assert_int_equal(serve(&p, 1, 9), 2);
    assert_int_equal(serve(&p, 2, 9) + serve(&p, 3, 9), 2);
    p.net.time += 0.25;
    assert_true(step(&p));
    assert_int_equal(mb_experts_ask_open(p.ask), 0);
    mb_experts_question *q = mb_experts_ask_next(p.ask);
    assert_non_null(q);
    assert_int_equal(q->number, 41);
    for (int x = 0; x < EXPERTS; x++) {
        const mb_experts_reply *r = &q->reply[x];
        assert_true(r->expert == x && r->outcome == MB_EXPERTS_ANSWERED && r->answer.choices == 2);
        assert_true(r->answer.loglik[1] == (float)(x + 10 * r->answer.ticket));
        assert_true(r->put == 100 && r->sent == 100 && r->settled == 102.375);
        assert_true(r->answer.compute == 0.5 && r->answer.batch == 1 && r->answer.tokens == 5);
    }
    assert_true(q->reply[0].answer.queued == 0 && q->reply[3].answer.queued == 0.5); /* d waited for a */
    mb_experts_ask_free(&q);
    assert_false(step(&p));
    close_place(&p);
}

static void test_window_and_batches(void **state)
{
    (void)state;
    place p;
    open_place(&p, usual, 3, 5, 3);
    for (int64_t i = 0; i < 9; i++) put(&p, i, 0, EXPERTS);
    step(&p);
    assert_int_equal(p.net.asks[1], 10); /* two experts of five requests each */
    assert_int_equal(p.net.asks[2], 5);
    step(&p);
    assert_int_equal(p.net.asks[1], 10);
    assert_int_equal(serve(&p, 1, 1), 1); /* three of a, though d's lie between them */
    assert_int_equal(p.net.largest, 3);
    step(&p);
    assert_int_equal(p.net.asks[1], 13);
    p.net.tick = 0;
    for (int round = 0; round < 20; round++) {
        for (int r = 1; r < RANKS; r++) serve(&p, r, 9);
        p.net.time = 101; /* the test's own computing takes no time here: nobody is late */
        step(&p);
    }
    for (int64_t i = 0; i < 9; i++) expect(&p, i, EXPERTS, all_answered);
    assert_int_equal(p.net.largest, 3);
    const mb_experts_ask_state a = mb_experts_ask_get(p.ask, 0);
    assert_true(a.asked == 9 && a.answered == 9 && a.late == 0 && !a.is_dead);
    close_place(&p);
}

static void test_late(void **state)
{
    (void)state;
    static const mb_experts_outcome b_late[] = {MB_EXPERTS_ANSWERED, MB_EXPERTS_LATE, MB_EXPERTS_ANSWERED};
    place p;
    open_place(&p, usual, 4, 8, 3);
    put(&p, 0, 0, 3);
    step(&p);
    serve(&p, 1, 9);
    serve(&p, 3, 9);
    step(&p);
    p.net.time = 102; /* not yet: more than the limit */
    step(&p);
    assert_null(mb_experts_ask_next(p.ask));
    p.net.time = 102.001;
    step(&p);
    expect(&p, 0, 3, b_late);
    assert_int_equal(p.net.drops[2], 1);
    /* What is dropped before it was begun is not computed; what was begun comes late and changes nothing. */
    const int64_t before = p.net.batches;
    assert_int_equal(serve(&p, 2, 9), 0);
    assert_int_equal(p.net.batches, before);
    step(&p);
    mb_experts_ask_state b = mb_experts_ask_get(p.ask, 1);
    assert_true(b.late == 1 && b.late_answers == 0 && b.answered == 0 && !b.is_dead);
    put(&p, 1, 1, 1);
    step(&p);
    serve(&p, 2, 9);
    mb_mail_message answer, drop;
    bool has = false;
    mb_test_ok(mb_mail_poll(&p.net.mail[0], &answer, &has)); /* held up on the way */
    assert_true(has);
    p.net.time += 3;
    step(&p);
    assert_int_equal(mb_experts_ask_open(p.ask), 0);
    mb_test_ok(mb_mail_poll(&p.net.mail[2], &drop, &has));
    assert_true(has && drop.tag == MB_EXPERTS_DROP);
    mb_test_ok(mb_experts_serve_take(p.serve[2], &drop));
    mb_test_ok(mb_mail_box_put(&p.net.in[0], 2, answer.tag, answer.bytes, answer.count));
    mb_free(answer.bytes);
    step(&p);
    b = mb_experts_ask_get(p.ask, 1);
    assert_true(b.late == 2 && b.late_answers == 1 && b.answered == 0);
    expect(&p, 1, 1, (const mb_experts_outcome[]){MB_EXPERTS_LATE});
    close_place(&p);
}

/* An answer that lies there is taken before the clock is looked at. */
static void test_busy_gate(void **state)
{
    (void)state;
    place p;
    open_place(&p, usual, 4, 8, 1);
    put(&p, 0, 0, EXPERTS);
    step(&p);
    for (int r = 1; r < RANKS; r++) serve(&p, r, 9);
    p.net.time += 1000;
    step(&p);
    expect(&p, 0, EXPERTS, all_answered);
    close_place(&p);
}

/* A window of requests that is late at once is one strike; the third is death, for what waits too. */
static void test_death(void **state)
{
    (void)state;
    static const mb_experts_outcome late[] = {MB_EXPERTS_LATE}, dead[] = {MB_EXPERTS_DEAD};
    place p;
    open_place(&p, usual, 4, 4, 3);
    p.net.is_dead[2] = true;
    for (int64_t i = 0; i < 15; i++) put(&p, i, 1, 1);
    int64_t settled = 0;
    for (int strike = 1; strike <= 3; strike++) {
        step(&p);
        assert_int_equal(p.net.asks[2], 4 * strike);
        assert_false(mb_experts_ask_get(p.ask, 1).is_dead);
        p.net.time += 2.5;
        step(&p); /* which also sends the next four, unless it is dead */
        for (int i = 0; i < 4; i++) expect(&p, settled++, 1, late);
        if (strike < 3) assert_null(mb_experts_ask_next(p.ask));
    }
    assert_int_equal(p.net.asks[2], 12);
    assert_true(mb_experts_ask_get(p.ask, 1).is_dead);
    while (settled < 15) expect(&p, settled++, 1, dead);
    put(&p, 15, 0, 2); /* others are asked, the dead one is not */
    put(&p, 16, 1, 1);
    expect(&p, 16, 1, dead);
    step(&p);
    serve(&p, 1, 9);
    step(&p);
    expect(&p, 15, 2, (const mb_experts_outcome[]){MB_EXPERTS_ANSWERED, MB_EXPERTS_DEAD});
    const mb_experts_ask_state b = mb_experts_ask_get(p.ask, 1);
    assert_true(b.late == 12 && b.passed_over == 5 && b.deaths == 1 && b.asked == 12);
    close_place(&p);
}

/* An answer in time wipes out what was before. */
static void test_strikes_in_a_row(void **state)
{
    (void)state;
    place p;
    open_place(&p, usual, 4, 4, 2);
    for (int64_t i = 0; i < 6; i++) {
        put(&p, i, 1, 1);
        step(&p);
        if (i % 2 == 0)
            p.net.time += 2.5;
        else
            serve(&p, 2, 9);
        step(&p);
        expect(&p, i, 1, (const mb_experts_outcome[]){i % 2 == 0 ? MB_EXPERTS_LATE : MB_EXPERTS_ANSWERED});
        assert_false(mb_experts_ask_get(p.ask, 1).is_dead);
    }
    close_place(&p);
}

static void test_revival(void **state)
{
    (void)state;
    static const mb_experts_outcome late[] = {MB_EXPERTS_LATE}, dead[] = {MB_EXPERTS_DEAD},
                                    answered[] = {MB_EXPERTS_ANSWERED};
    place p;
    open_place(&p, usual, 4, 4, 2);
    for (int strike = 0; strike < 2; strike++) { /* rank 2 sleeps */
        put(&p, strike, 1, 1);
        step(&p);
        p.net.time += 2.5;
        step(&p);
        expect(&p, strike, 1, late);
    }
    const double died = p.net.time;
    assert_true(mb_experts_ask_get(p.ask, 1).is_dead);
    p.net.time = died + 5; /* the pause is over, but there was no sign of life */
    step(&p);
    assert_true(mb_experts_ask_get(p.ask, 1).is_dead);
    assert_int_equal(serve(&p, 2, 9), 0); /* it wakes, and drops what it is told to: that is one */
    step(&p);
    assert_false(mb_experts_ask_get(p.ask, 1).is_dead);
    put(&p, 2, 1, 1); /* late once more, it is dead at once, for twice as long */
    step(&p);
    p.net.time += 2.5;
    step(&p);
    expect(&p, 2, 1, late);
    assert_true(mb_experts_ask_get(p.ask, 1).is_dead);
    serve(&p, 2, 9);
    p.net.time += 7;
    step(&p);
    put(&p, 3, 1, 1);
    expect(&p, 3, 1, dead);
    p.net.time += 1.5;
    step(&p);
    assert_false(mb_experts_ask_get(p.ask, 1).is_dead);
    put(&p, 4, 1, 1);
    step(&p);
    serve(&p, 2, 9);
    step(&p);
    expect(&p, 4, 1, answered);
    put(&p, 5, 1, 1); /* whole again: late once is not death */
    step(&p);
    p.net.time += 2.5;
    step(&p);
    expect(&p, 5, 1, late);
    assert_false(mb_experts_ask_get(p.ask, 1).is_dead);
    assert_int_equal(mb_experts_ask_get(p.ask, 1).deaths, 2);
    close_place(&p);
}

/* One request of a batch fails: the others of it are answered. */
static void test_unable(void **state)
{
    (void)state;
    static const mb_experts_outcome answered[] = {MB_EXPERTS_ANSWERED};
    place p;
    open_place(&p, usual, 4, 8, 3);
    p.net.unable = 1; /* tickets count from 0 */
    for (int64_t i = 0; i < 3; i++) put(&p, i, 1, 1);
    step(&p);
    assert_int_equal(serve(&p, 2, 9), 1);
    step(&p);
    expect(&p, 0, 1, answered);
    mb_experts_question *q = mb_experts_ask_next(p.ask);
    assert_int_equal(q->reply[0].outcome, MB_EXPERTS_UNABLE);
    assert_string_equal(q->reply[0].answer.text, "this is too hard");
    mb_experts_ask_free(&q);
    expect(&p, 2, 1, answered);
    const mb_experts_ask_state b = mb_experts_ask_get(p.ask, 1);
    assert_true(b.answered == 2 && b.unable == 1 && b.late == 0);
    close_place(&p);
}

/* Experts on the gate's own rank are computed in its steps, and never late. */
static void test_own_rank(void **state)
{
    (void)state;
    static const int mixed[EXPERTS] = {0, 0, 2, 0};
    place p;
    open_place(&p, mixed, 2, 4, 1);
    for (int64_t i = 0; i < 3; i++) put(&p, i, 0, 2);
    put(&p, 3, 3, 1);
    for (int i = 0; i < 6; i++) {
        step(&p);
        p.net.time += 100;
    }
    for (int64_t i = 0; i < 3; i++) expect(&p, i, 2, all_answered);
    expect(&p, 3, 1, all_answered);
    assert_int_equal(p.net.batches, 5); /* 2 + 1 of each of two, 1 of the third */
    assert_int_equal(mb_experts_ask_get(p.ask, 0).deaths, 0);
    close_place(&p);
}

static void test_end(void **state)
{
    (void)state;
    for (int lost = 0; lost < 2; lost++) {
        place p;
        bool together = false, missing[RANKS] = {0};
        open_place(&p, usual, 4, 8, 3);
        p.net.is_dead[2] = lost == 1;
        p.net.tick = 0.01;
        mb_test_ok(mb_experts_ask_end(p.ask, 1, &together, missing));
        assert_int_equal(together, lost == 0);
        for (int r = 0; r < RANKS; r++) assert_int_equal(missing[r], lost == 1 && r == 2);
        mb_mail_message message = {0};
        bool has = false;
        mb_test_ok(mb_mail_poll(&p.net.mail[1], &message, &has));
        assert_true(has && message.tag == MB_EXPERTS_LEAVE && message.count == 1 &&
                    message.bytes[0] == !lost);
        mb_free(message.bytes);
        close_place(&p);
    }
}

/* The loop of an expert's rank: it answers, says bye, and does what it is told; without a gate it gives
 * up. */
static void test_serve_loop(void **state)
{
    (void)state;
    place p;
    bool together = false;
    const char yes = 1;
    open_place(&p, usual, 4, 8, 3);
    put(&p, 0, 0, 1);
    step(&p);
    mb_test_ok(mb_mail_box_put(&p.net.in[1], 0, MB_EXPERTS_ALIVE, NULL, 0));
    mb_test_ok(mb_mail_box_put(&p.net.in[1], 0, MB_EXPERTS_LEAVE, &yes, 1));
    mb_test_ok(mb_experts_serve_run(p.serve[1], &together));
    assert_true(together && p.net.looks > 0);
    step(&p);
    expect(&p, 0, 1, all_answered);
    p.net.tick = 1;
    mb_test_fails(mb_experts_serve_run(p.serve[2], &together), MB_ECOMM, "has said nothing for 50 seconds");
    close_place(&p);
}

/* END drops what is not begun. */
static void test_end_drops(void **state)
{
    (void)state;
    place p;
    open_place(&p, usual, 4, 8, 3);
    for (int64_t i = 0; i < 3; i++) put(&p, i, 1, 1);
    step(&p);
    mb_test_ok(mb_mail_box_put(&p.net.in[2], 0, MB_EXPERTS_END, NULL, 0));
    assert_int_equal(serve(&p, 2, 9), 0);
    close_place(&p); /* with questions that are open */
}

/* Strangers' answers are refused. */
static void test_stranger(void **state)
{
    (void)state;
    place p;
    bool did = false;
    open_place(&p, usual, 4, 8, 3);
    const mb_experts_answer answer = {.expert = 1};
    mb_str bytes = MB_STR_EMPTY;
    mb_test_ok(mb_experts_wire_put_answer(&answer, &bytes));
    mb_test_ok(mb_mail_box_put(&p.net.in[0], 3, MB_EXPERTS_ANSWER, bytes.data, bytes.length));
    mb_test_fails(mb_experts_ask_step(p.ask, &did), MB_EFORMAT, "rank 3 answers for expert 1");
    mb_str_destroy(&bytes);
    close_place(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),    cmocka_unit_test(test_window_and_batches),
        cmocka_unit_test(test_late),       cmocka_unit_test(test_busy_gate),
        cmocka_unit_test(test_death),      cmocka_unit_test(test_strikes_in_a_row),
        cmocka_unit_test(test_revival),    cmocka_unit_test(test_unable),
        cmocka_unit_test(test_own_rank),   cmocka_unit_test(test_end),
        cmocka_unit_test(test_serve_loop), cmocka_unit_test(test_end_drops),
        cmocka_unit_test(test_stranger),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
