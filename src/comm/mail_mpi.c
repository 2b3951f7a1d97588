/* mail_mpi: letters over MPI, by matched probes and nonblocking calls only.
 *
 * A letter is found by MPI_Improbe and received by MPI_Imrecv, so neither a long letter of a rank that
 * dies in the middle of it, nor one to a rank that takes none any more, is ever waited for. Letters of one
 * rank are given out in the order in which they were matched. MPI's errors mean that a rank is gone, which
 * is not an error here: whoever waits for an answer has a time limit. Built without MPI, opening it says
 * so.
 *
 * 1. Life   2. Sending   3. Receiving
 */
#include <assert.h>
#include <string.h>

#include "base/memory.h"
#include "comm/mail_impl.h"

#ifndef MB_HAVE_MPI

mb_status mb_mail_mpi_open(mb_mail *mail, mb_comm *comm)
{
    (void)mail, (void)comm;
    return mb_fail(MB_EUNSUPPORTED, "messages between ranks need MPI, and this program was built without it");
}

#else

#include <mpi.h>

#include "base/log.h"

/* A letter on its way, in or out. */
typedef struct transit {
    mb_mail_message message; /* rank: the other one */
    MPI_Request request;
    bool is_done, is_lost;
    struct transit *next;
} transit;

typedef struct mpi_mail {
    MPI_Comm world;
    transit *out, *in; /* the oldest first */
} mpi_mail;

/* ---- 1. Life ---- */

static void transit_free(transit *t)
{
    if (t != NULL) mb_free(t->message.bytes);
    mb_free(t);
}

/* Frees what MPI is through with; of the rest MPI may still use the memory. */
static void transits_drop(transit *first)
{
    while (first != NULL) {
        transit *next = first->next;
        int is_done = first->is_done;
        if (!is_done && MPI_Test(&first->request, &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS) is_done = 0;
        if (is_done) transit_free(first);
        first = next;
    }
}

static void mpi_mail_close(mb_mail *mail)
{
    mpi_mail *m = mail->impl;
    if (m == NULL) return;
    transits_drop(m->out);
    transits_drop(m->in);
    if (m->world != MPI_COMM_NULL) MPI_Comm_free(&m->world);
    MB_FREE(mail->impl);
}

/* ---- 2. Sending ---- */

static void transit_append(transit **list, transit *t)
{
    while (*list != NULL) list = &(*list)->next;
    *list = t;
}

static void sends_advance(mpi_mail *m)
{
    for (transit **at = &m->out; *at != NULL;) {
        transit *t = *at;
        int is_done = 0;
        const int code = MPI_Test(&t->request, &is_done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS)
            mb_debug("mail to rank %d is lost (MPI error %d)", t->message.rank, code);
        else if (!is_done) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        transit_free(t);
    }
}

static mb_status mpi_mail_send(mb_mail *mail, int rank, int tag, const void *bytes, size_t count)
{
    mb_status status = MB_OK;
    mpi_mail *m = mail->impl;
    transit *t = NULL;
    MB_NEW(t);
    t->message = (mb_mail_message){.rank = rank, .tag = tag, .count = count};
    MB_NEW_ARRAY(t->message.bytes, count);
    if (count > 0) memcpy(t->message.bytes, bytes, count);
    const int code = MPI_Isend(t->message.bytes, (int)count, MPI_BYTE, rank, tag, m->world, &t->request);
    if (code != MPI_SUCCESS) {
        mb_debug("mail to rank %d is lost (MPI error %d)", rank, code);
        goto done;
    }
    transit_append(&m->out, t);
    t = NULL;
done:
    transit_free(t);
    return status;
}

static int64_t mpi_mail_unsent(const mb_mail *mail)
{
    int64_t n = 0;
    for (const transit *t = ((const mpi_mail *)mail->impl)->out; t != NULL; t = t->next) n++;
    return n;
}

/* ---- 3. Receiving ---- */

/* Begin to receive all that has come. */
static mb_status receives_begin(mpi_mail *m)
{
    mb_status status = MB_OK;
    transit *t = NULL;
    for (;;) {
        int is_there = 0, count = 0;
        MPI_Message message;
        MPI_Status what;
        if (MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, m->world, &is_there, &message, &what) != MPI_SUCCESS ||
            !is_there)
            goto done;
        MPI_Get_count(&what, MPI_BYTE, &count);
        MB_NEW(t);
        t->message = (mb_mail_message){.rank = what.MPI_SOURCE, .tag = what.MPI_TAG, .count = (size_t)count};
        if (count > 0) MB_NEW_ARRAY(t->message.bytes, count);
        t->is_lost = MPI_Imrecv(t->message.bytes, count, MPI_BYTE, &message, &t->request) != MPI_SUCCESS;
        t->is_done = t->is_lost;
        transit_append(&m->in, t);
        t = NULL;
    }
done:
    transit_free(t);
    return status;
}

/* Is an older letter of this one's sender still under way? */
static bool has_older(const mpi_mail *m, const transit *t)
{
    for (const transit *other = m->in; other != t; other = other->next)
        if (other->message.rank == t->message.rank) return true;
    return false;
}

static mb_status mpi_mail_poll(mb_mail *mail, mb_mail_message *out_message, bool *out_has)
{
    mb_status status = MB_OK;
    mpi_mail *m = mail->impl;
    *out_has = false;
    sends_advance(m);
    MB_TRY(receives_begin(m));
    for (transit **at = &m->in; *at != NULL && !*out_has;) {
        transit *t = *at;
        int is_done = t->is_done;
        if (!is_done && MPI_Test(&t->request, &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
            t->is_lost = true;
            is_done = 1;
        }
        t->is_done = is_done;
        if (!is_done || has_older(m, t)) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        if (!t->is_lost) {
            *out_message = t->message;
            t->message.bytes = NULL;
            *out_has = true;
        }
        transit_free(t);
    }
done:
    return status;
}

static const mb_mail_vtable mpi_vtable = {
    .send = mpi_mail_send, .poll = mpi_mail_poll, .unsent = mpi_mail_unsent, .close = mpi_mail_close};

/* A communicator of our own for the comm's ranks, found by their numbers in MPI_COMM_WORLD. */
static mb_status open_world(mb_comm *comm, mpi_mail *m)
{
    enum { GROUP_TAG = 7 };
    mb_status status = MB_OK;
    MPI_Group world = MPI_GROUP_NULL, ours = MPI_GROUP_NULL;
    int mine = 0, code, *all = NULL;
    MB_NEW_ARRAY(all, mb_comm_size(comm));
    code = MPI_Comm_rank(MPI_COMM_WORLD, &mine);
    MB_TRY(mb_comm_allgather(comm, &mine, sizeof mine, all));
    if (code == MPI_SUCCESS) code = MPI_Comm_group(MPI_COMM_WORLD, &world);
    if (code == MPI_SUCCESS) code = MPI_Group_incl(world, mb_comm_size(comm), all, &ours);
    if (code == MPI_SUCCESS) code = MPI_Comm_create_group(MPI_COMM_WORLD, ours, GROUP_TAG, &m->world);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(m->world, MPI_ERRORS_RETURN);
    if (code != MPI_SUCCESS) MB_RAISE(MB_ECOMM, "MPI made no communicator for messages (error %d)", code);
done:
    if (ours != MPI_GROUP_NULL) MPI_Group_free(&ours);
    if (world != MPI_GROUP_NULL) MPI_Group_free(&world);
    mb_free(all);
    return status;
}

mb_status mb_mail_mpi_open(mb_mail *mail, mb_comm *comm)
{
    mb_status status = MB_OK;
    mpi_mail *m = NULL;
    assert(strcmp(mb_comm_name(comm), "mpi") == 0);
    MB_NEW(m);
    m->world = MPI_COMM_NULL;
    mail->vtable = &mpi_vtable;
    mail->impl = m;
    MB_TRY(open_world(comm, m));
done:
    return status;
}

#endif
