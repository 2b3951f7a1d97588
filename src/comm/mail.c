/* mail: letters to oneself, and the calls of mail.h over MPI for those to others.
 *
 * 1. boxes   2. mail
 */
#include "comm/mail.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"
#include "comm/comm_impl.h"
#include "comm/mail_impl.h"

/* ---- 1. boxes ---- */

mb_status mb_mail_box_put(mb_mail_box *box, int rank, int tag, const void *bytes, size_t count)
{
    mb_status status = MB_OK;
    mb_mail_letter *letter = NULL;
    MB_NEW(letter);
    letter->message = (mb_mail_message){.rank = rank, .tag = tag, .count = count};
    if (count > 0) {
        MB_NEW_ARRAY(letter->message.bytes, count);
        memcpy(letter->message.bytes, bytes, count);
    }
    if (box->last != NULL)
        box->last->next = letter;
    else
        box->first = letter;
    box->last = letter;
    letter = NULL;
done:
    mb_free(letter);
    return status;
}

bool mb_mail_box_take(mb_mail_box *box, mb_mail_message *out_message)
{
    mb_mail_letter *letter = box->first;
    if (letter == NULL) return false;
    *out_message = letter->message;
    box->first = letter->next;
    if (box->first == NULL) box->last = NULL;
    mb_free(letter);
    return true;
}

void mb_mail_box_reset(mb_mail_box *box)
{
    mb_mail_message message;
    while (mb_mail_box_take(box, &message)) mb_free(message.bytes);
}

/* ---- 2. mail ---- */

mb_status mb_mail_open(mb_comm *comm, mb_mail **out_mail)
{
    mb_status status = MB_OK;
    mb_mail *mail = NULL;
    MB_NEW(mail);
    mail->rank = mb_comm_rank(comm);
    mail->size = mb_comm_size(comm);
    if (mail->size > 1) MB_TRY(mb_mail_mpi_open(mail, comm));
    *out_mail = mail;
    mail = NULL;
done:
    mb_mail_close(&mail);
    return status;
}

void mb_mail_close(mb_mail **mail)
{
    if (*mail == NULL) return;
    if ((*mail)->vtable != NULL) (*mail)->vtable->close(*mail);
    mb_mail_box_reset(&(*mail)->own);
    MB_FREE(*mail);
}

int mb_mail_rank(const mb_mail *mail)
{
    return mail->rank;
}

int mb_mail_size(const mb_mail *mail)
{
    return mail->size;
}

mb_status mb_mail_send(mb_mail *mail, int rank, int tag, const void *bytes, size_t count)
{
    mb_status status = MB_OK;
    assert(rank >= 0 && rank < mail->size && tag >= 0 && tag <= 32767);
    if (count > MB_COMM_MESSAGE_MAX)
        MB_RAISE(MB_ERANGE, "a message of %zu bytes is longer than the %zu that can be sent at once", count,
                 MB_COMM_MESSAGE_MAX);
    if (rank == mail->rank)
        MB_TRY(mb_mail_box_put(&mail->own, rank, tag, bytes, count));
    else
        MB_TRY(mail->vtable->send(mail, rank, tag, bytes, count));
done:
    return status;
}

mb_status mb_mail_poll(mb_mail *mail, mb_mail_message *out_message, bool *out_has)
{
    *out_has = mb_mail_box_take(&mail->own, out_message);
    return *out_has || mail->vtable == NULL ? MB_OK : mail->vtable->poll(mail, out_message, out_has);
}

int64_t mb_mail_unsent(const mb_mail *mail)
{
    return mail->vtable != NULL ? mail->vtable->unsent(mail) : 0;
}
