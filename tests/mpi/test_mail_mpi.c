/* test_mail_mpi: messages between ranks arrive once, whole, and in the order in which their sender sent
 * them; nobody waits for one who does not look; other traffic of the comm is untouched.
 *
 *     test_mail_mpi
 */
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/mail.h"
#include "mpi_tap.h"

static const size_t sizes[] = {0, 1, 17, 4095, 4097, 65536, 1 << 20, 5 << 20, 3, 0, 1 << 18, 9};
enum { SIZES = sizeof sizes / sizeof *sizes, LONGEST = 5 << 20 };

static char byte_of(int from, int to, int number, size_t at)
{
    return (char)(from * 31 + to * 17 + number * 7 + (int)(at % 251));
}

static void fill(char *bytes, size_t n, int from, int to, int number)
{
    for (size_t i = 0; i < n; i++) bytes[i] = byte_of(from, to, number, i);
}

static bool is_whole(const mb_mail_message *m, int to, int number)
{
    if (m->tag != 100 + number || m->count != sizes[number % SIZES]) return false;
    for (size_t i = 0; i < m->count; i++)
        if (m->bytes[i] != byte_of(m->rank, to, number, i)) return false;
    return true;
}

/* The next message, waited for up to a minute. */
static bool wait_for(mb_mail *mail, mb_mail_message *message)
{
    bool has = false;
    for (const double since = mb_clock_seconds(); !has && mb_clock_seconds() - since < 60;) {
        const struct timespec nap = {.tv_nsec = 20000};
        if (mb_mail_poll(mail, message, &has) != MB_OK) return false;
        if (!has) nanosleep(&nap, NULL);
    }
    return has;
}

/* Every rank sends a dozen messages of all sizes to every rank, itself included. */
static void check_all_to_all(mpi_tap *tap, mb_mail *mail)
{
    const int size = mb_mail_size(mail), rank = mb_mail_rank(mail);
    bool ok = true;
    char *bytes = mb_calloc(LONGEST, 1);
    int *next = mb_calloc((size_t)size, sizeof *next);
    if (bytes == NULL || next == NULL) mb_comm_abort(tap->comm, 1);
    for (int k = 0; k < SIZES; k++)
        for (int to = 0; to < size; to++) {
            fill(bytes, sizes[k], rank, to, k);
            ok = ok && mb_mail_send(mail, to, 100 + k, bytes, sizes[k]) == MB_OK;
        }
    for (int n = 0; n < SIZES * size && ok; n++) {
        mb_mail_message m = {0};
        ok = wait_for(mail, &m) && m.rank >= 0 && m.rank < size && is_whole(&m, rank, next[m.rank]);
        if (ok) next[m.rank]++;
        mb_free(m.bytes);
    }
    mb_free(bytes);
    mb_free(next);
    tap_check(tap, ok, "messages of 0 bytes to 5 MiB of everyone to everyone, whole and in their order");
}

/* Sent to ranks that are busy elsewhere: sending returns, and nothing is lost. */
static void check_nobody_waits(mpi_tap *tap, mb_mail *mail)
{
    enum { MANY = 40 };
    const int size = mb_mail_size(mail), rank = mb_mail_rank(mail);
    mb_mail_message m = {0};
    bool ok = true, has = false;
    char *bytes = mb_calloc(LONGEST, 1);
    int64_t sum = rank;
    if (bytes == NULL) mb_comm_abort(tap->comm, 1);
    const double since = mb_clock_seconds();
    for (int i = 0; i < MANY && rank == 0; i++)
        for (int to = 1; to < size; to++) ok = ok && mb_mail_send(mail, to, 1, bytes, 1 << 20) == MB_OK;
    const double seconds = mb_clock_seconds() - since;
    const int64_t unsent = mb_mail_unsent(mail);
    /* the others have not looked yet: they are here */
    ok =
        ok && mb_comm_allreduce_i64(tap->comm, &sum, 1, MB_COMM_SUM) == MB_OK && sum == size * (size - 1) / 2;
    tap_check(tap, ok && seconds < 30 && (rank > 0 || size == 1 || unsent > 0),
              "sending 40 MiB to ranks that do not look returns, and a sum over the ranks goes on beside it");
    for (int i = 0; i < MANY && rank > 0 && ok; i++) {
        ok = wait_for(mail, &m) && m.rank == 0 && m.count == 1 << 20;
        mb_free(m.bytes);
    }
    if (rank > 0) ok = ok && mb_mail_send(mail, 0, 2, "got", 3) == MB_OK;
    for (int i = 1; i < size && rank == 0 && ok; i++) {
        ok = wait_for(mail, &m) && m.tag == 2 && m.count == 3;
        mb_free(m.bytes);
    }
    ok = ok && mb_mail_poll(mail, &m, &has) == MB_OK && !has;
    tap_check(tap, ok && (rank > 0 || mb_mail_unsent(mail) == 0),
              "all of it arrives once they look, and no more");
    mb_free(bytes);
}

/* Mail of a group of ranks has its ranks' numbers, and keeps apart from that of all. */
static void check_groups(mpi_tap *tap, mb_mail *mail)
{
    const int rank = mb_comm_rank(tap->comm), size = mb_comm_size(tap->comm);
    mb_comm *part = NULL;
    mb_mail *own = NULL;
    mb_mail_message m = {0};
    bool ok = mb_comm_split(tap->comm, rank % 2, &part) == MB_OK && mb_mail_open(part, &own) == MB_OK;
    if (!ok) mb_comm_abort(tap->comm, 1);
    const int next = (mb_mail_rank(own) + 1) % mb_mail_size(own);
    ok = mb_mail_size(own) == (size + 1 - rank % 2) / 2 && mb_mail_rank(own) == rank / 2;
    ok = ok && mb_mail_send(mail, (rank + 1) % size, 5, &rank, sizeof rank) == MB_OK;
    ok = ok && mb_mail_send(own, next, 6, &rank, sizeof rank) == MB_OK;
    ok = ok && wait_for(own, &m) && m.tag == 6 && m.count == sizeof rank &&
         *(int *)(void *)m.bytes % 2 == rank % 2;
    mb_free(m.bytes);
    m.bytes = NULL;
    ok = ok && wait_for(mail, &m) && m.tag == 5 && m.rank == (rank + size - 1) % size;
    mb_free(m.bytes);
    while (mb_mail_unsent(own) > 0 || mb_mail_unsent(mail) > 0) {
        bool has = false;
        ok = ok && mb_mail_poll(own, &m, &has) == MB_OK && !has && mb_mail_poll(mail, &m, &has) == MB_OK &&
             !has;
    }
    tap_check(tap, ok, "groups of ranks have mail of their own");
    mb_mail_close(&own);
    mb_comm_destroy(&part);
}

int main(int argc, char **argv)
{
    mpi_tap tap = {0};
    mb_mail *mail = NULL;
    if (mb_comm_create(&argc, &argv, &tap.comm) != MB_OK) return 1;
    const int64_t blocks = mb_memory_live_blocks();
    tap_check(&tap, mb_mail_open(tap.comm, &mail) == MB_OK, "mail opens");
    if (mail == NULL) mb_comm_abort(tap.comm, 1);
    check_all_to_all(&tap, mail);
    check_nobody_waits(&tap, mail);
    check_groups(&tap, mail);
    mb_mail_close(&mail);
    tap_check(&tap, mb_memory_live_blocks() == blocks, "nothing is left");
    const int code = tap_end(&tap);
    mb_comm_destroy(&tap.comm);
    return code;
}
