/* mail: of one process: what it sends to itself arrives once, in order, as it was. Between ranks:
 * tests/mpi/test_mail_mpi.c. */
#include "mb_test.h"

#include "comm/mail.h"

typedef struct pair {
    mb_comm *comm;
    mb_mail *mail;
} pair;

static pair open_self(void)
{
    pair p = {0};
    setenv("MB_COMM", "self", 1);
    mb_test_ok(mb_comm_create(NULL, NULL, &p.comm));
    mb_test_ok(mb_mail_open(p.comm, &p.mail));
    assert_int_equal(mb_mail_rank(p.mail), 0);
    assert_int_equal(mb_mail_size(p.mail), 1);
    return p;
}

static void close_self(pair *p)
{
    mb_mail_close(&p->mail);
    assert_null(p->mail);
    mb_mail_close(&p->mail);
    mb_comm_destroy(&p->comm);
}

static void test_order(void **state)
{
    (void)state;
    pair p = open_self();
    mb_mail_message message;
    bool has = true;
    mb_test_ok(mb_mail_poll(p.mail, &message, &has));
    assert_false(has);
    for (int i = 0; i < 20; i++) {
        char text[32];
        const int n = snprintf(text, sizeof text, "letter %d", i);
        mb_test_ok(mb_mail_send(p.mail, 0, i * 1700, text, (size_t)n));
        memset(text, 'x', sizeof text); /* bytes were copied */
    }
    assert_int_equal(mb_mail_unsent(p.mail), 0);
    for (int i = 0; i < 20; i++) {
        char text[32];
        const int n = snprintf(text, sizeof text, "letter %d", i);
        mb_test_ok(mb_mail_poll(p.mail, &message, &has));
        assert_true(has);
        assert_int_equal(message.rank, 0);
        assert_int_equal(message.tag, i * 1700);
        assert_int_equal(message.count, n);
        assert_memory_equal(message.bytes, text, (size_t)n);
        mb_free(message.bytes);
        if (i == 10) mb_test_ok(mb_mail_send(p.mail, 0, 1, "late", 4)); /* behind all others */
    }
    mb_test_ok(mb_mail_poll(p.mail, &message, &has));
    assert_true(has);
    assert_memory_equal(message.bytes, "late", 4);
    mb_free(message.bytes);
    mb_test_ok(mb_mail_poll(p.mail, &message, &has));
    assert_false(has);
    close_self(&p);
}

static void test_empty_and_long(void **state)
{
    (void)state;
    enum { LONG = 3 << 20 };
    pair p = open_self();
    mb_mail_message message;
    bool has = false;
    char *bytes = mb_calloc(LONG, 1);
    assert_non_null(bytes);
    for (int i = 0; i < LONG; i++) bytes[i] = (char)(i * 7 + i / 255);
    mb_test_ok(mb_mail_send(p.mail, 0, 0, NULL, 0));
    mb_test_ok(mb_mail_send(p.mail, 0, 32767, bytes, LONG));
    mb_test_ok(mb_mail_poll(p.mail, &message, &has));
    assert_true(has && message.count == 0 && message.bytes == NULL && message.tag == 0);
    mb_test_ok(mb_mail_poll(p.mail, &message, &has));
    assert_true(has && message.count == LONG && message.tag == 32767);
    assert_memory_equal(message.bytes, bytes, LONG);
    mb_free(message.bytes);
    mb_free(bytes);
    close_self(&p);
}

static void test_too_long(void **state)
{
    (void)state;
    pair p = open_self();
    char byte = 0;
    bool has = true;
    mb_mail_message message;
    mb_test_fails(mb_mail_send(p.mail, 0, 1, &byte, ((size_t)1 << 30) + 1), MB_ERANGE, "longer than");
    mb_test_ok(mb_mail_poll(p.mail, &message, &has));
    assert_false(has);
    close_self(&p);
}

/* Letters that nobody took are freed. */
static void test_left(void **state)
{
    (void)state;
    pair p = open_self();
    for (int i = 0; i < 5; i++) mb_test_ok(mb_mail_send(p.mail, 0, 1, "left", 4));
    close_self(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_empty_and_long),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_left),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
