/* experts_serve: the end of the experts: requests are queued as they come, and answered a batch at a time.
 *
 * Layer: serve.  Uses: base, comm (mail), experts_wire, experts_fail.
 *
 * A batch is the oldest request and the next ones of the same expert. What the gate does not wait for any
 * more is dropped from the queue, and the gate is told: that is how it learns that an expert it had given
 * up is there again. A request that cannot be answered is answered with the reason; only lack of memory
 * ends a rank.
 */
#ifndef MB_EXPERTS_SERVE_H
#define MB_EXPERTS_SERVE_H

#include "comm/mail.h"
#include "serve/experts_fail.h"
#include "serve/experts_wire.h"

typedef struct mb_experts_serve_options {
    int64_t batch;               /* most requests computed together */
    double patience;             /* seconds without a word from the gate after which it is taken for gone */
    const mb_experts_fail *fail; /* borrowed; NULL: none */
    void *own;
    /* Answer n requests of one expert: loglik or text, how and tokens of every answer; numbers and times are
     * filled in by the caller. An error is one of the whole batch: it is asked again one by one then. */
    mb_status (*answer)(void *own, int64_t expert, const mb_experts_request *requests, int64_t n,
                        mb_experts_answer *answers);
    double (*clock)(void *own); /* NULL: mb_clock_seconds */
    /* NULL: not wanted. Whenever mb_experts_serve_run looks for mail. */
    void (*opt_look)(void *own);
} mb_experts_serve_options;

typedef struct mb_experts_serve mb_experts_serve;
/* Borrows the mail. gate: rank of the gate. */
mb_status mb_experts_serve_create(mb_mail *mail, int gate, const mb_experts_serve_options *options,
                                  mb_experts_serve **out_serve);
void mb_experts_serve_destroy(mb_experts_serve **serve);

/* A message of the gate; takes over its bytes. */
mb_status mb_experts_serve_take(mb_experts_serve *serve, mb_mail_message *message);
/* Answer one batch; *out_did false: there was nothing to do. */
mb_status mb_experts_serve_work(mb_experts_serve *serve, bool *out_did);

/* All of it until the gate says what to do: *out_together: all ranks are there and go on together;
 * otherwise the gate will end the job. MB_ECOMM: the gate is gone. */
mb_status mb_experts_serve_run(mb_experts_serve *serve, bool *out_together);

#endif
