/* mail: messages between ranks that nobody waits for: sent and forgotten, looked for when there is time.
 *
 * Layer: comm.  Uses: comm.
 *
 * Nothing here is collective but opening, and nothing here waits for another rank, so a rank that is slow
 * or dead holds nobody up: what is sent to it stays in memory. Messages of one rank to another arrive in
 * the order they were sent, and are looked at by the thread that opened the mail. Other traffic of the
 * comm is not touched. A rank may send to itself.
 */
#ifndef MB_MAIL_H
#define MB_MAIL_H

#include "comm/comm.h"

typedef struct mb_mail mb_mail;

typedef struct mb_mail_message {
    int rank, tag; /* of the sender */
    char *bytes;   /* [count] mb_free; NULL when empty */
    size_t count;
} mb_mail_message;

/* Collective. The comm must outlive the mail. */
mb_status mb_mail_open(mb_comm *comm, mb_mail **out_mail);
/* Not collective. What is under way is given up: where that may be something, end by _exit or
 * mb_comm_abort, not by mb_comm_destroy. */
void mb_mail_close(mb_mail **mail);

int mb_mail_rank(const mb_mail *mail); /* ours */
int mb_mail_size(const mb_mail *mail); /* ranks */

/* Bytes are copied; returns at once. tag 0..32767. A rank that cannot be reached is no error: nobody
 * answers. MB_ENOMEM; MB_ERANGE: more than 2^30 bytes. */
mb_status mb_mail_send(mb_mail *mail, int rank, int tag, const void *bytes, size_t count);
/* The next message that has arrived whole, of any rank; *out_has false: none. Also moves on what is being
 * sent: call it often. MB_ENOMEM. */
mb_status mb_mail_poll(mb_mail *mail, mb_mail_message *out_message, bool *out_has);
/* Messages that still are in our memory on the way out. */
int64_t mb_mail_unsent(const mb_mail *mail);

#endif
