/* mail_impl: what mail.c and its implementation over MPI share. Private to this folder and to tests, which
 * have ranks of their own.
 *
 * Layer: comm.  Uses: mail.
 *
 * mail.c keeps what a rank sends to itself; an implementation sees only other ranks.
 */
#ifndef MB_MAIL_IMPL_H
#define MB_MAIL_IMPL_H

#include "comm/mail.h"

typedef struct mb_mail_vtable {
    mb_status (*send)(mb_mail *mail, int rank, int tag, const void *bytes, size_t count);
    mb_status (*poll)(mb_mail *mail, mb_mail_message *out_message, bool *out_has);
    int64_t (*unsent)(const mb_mail *mail);
    void (*close)(mb_mail *mail); /* what is behind mail->impl; the mail is freed by the caller */
} mb_mail_vtable;

typedef struct mb_mail_letter {
    mb_mail_message message;
    struct mb_mail_letter *next;
} mb_mail_letter;

/* Letters, the oldest first. */
typedef struct mb_mail_box {
    mb_mail_letter *first, *last;
} mb_mail_box;
mb_status mb_mail_box_put(mb_mail_box *box, int rank, int tag, const void *bytes, size_t count);
bool mb_mail_box_take(mb_mail_box *box, mb_mail_message *out_message);
void mb_mail_box_reset(mb_mail_box *box);

struct mb_mail {
    const mb_mail_vtable *vtable; /* NULL: no other ranks */
    int rank, size;
    mb_mail_box own; /* sent to ourselves */
    void *impl;
};

/* Collective; rank and size are set. Fills vtable and impl. */
mb_status mb_mail_mpi_open(mb_mail *mail, mb_comm *comm);

#endif
