/* bench_transfer.c: see bench_transfer.h. */
#include "stage/bench_transfer.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "choose/vote.h"
#include "measure/latency.h"

enum { ROUNDS = 51, WARMUP = 5, TAG = 1, FUSE_BLOCK = 200 };
static const double patience = 30; /* s */

/* ---- 1. there and back ---- */

static mb_status wait_mail(mb_mail *mail, mb_mail_message *out)
{
    mb_status status = MB_OK;
    const double end = mb_clock_seconds() + patience;
    bool has = false;
    while (!has) {
        MB_TRY(mb_mail_poll(mail, out, &has));
        if (!has && mb_clock_seconds() > end)
            MB_RAISE(MB_ECOMM, "no message of %g s ago has come; is a rank gone?", patience);
    }
done:
    return status;
}

static mb_status send_and_wait(mb_mail *mail, int to, const char *bytes, size_t n, bool is_first)
{
    mb_status status = MB_OK;
    mb_mail_message message = {0};
    if (is_first) MB_TRY(mb_mail_send(mail, to, TAG, bytes, n));
    MB_TRY(wait_mail(mail, &message));
    if (!is_first) MB_TRY(mb_mail_send(mail, to, TAG, bytes, n));
done:
    mb_free(message.bytes);
    return status;
}

/* Everything is on its way before the mail is closed. */
static mb_status flush(mb_mail *mail)
{
    mb_status status = MB_OK;
    const double end = mb_clock_seconds() + patience;
    mb_mail_message message = {0};
    bool has;
    while (mb_mail_unsent(mail) > 0 && mb_clock_seconds() < end) {
        MB_TRY(mb_mail_poll(mail, &message, &has));
        mb_free(message.bytes);
        message = (mb_mail_message){0};
    }
done:
    return status;
}

static mb_status exchange(mb_comm *comm, mb_mail *mail, int rank, size_t there, size_t back,
                          double *out_seconds)
{
    mb_status status = MB_OK;
    const bool is_first = mb_comm_rank(comm) == 0;
    const size_t n = is_first ? there : back;
    double seconds[ROUNDS];
    char *bytes = NULL;
    mb_latency_spread spread;
    MB_NEW_ARRAY(bytes, n + 1);
    for (int i = -WARMUP; i < ROUNDS; i++) {
        const double began = mb_clock_seconds();
        MB_TRY(send_and_wait(mail, is_first ? rank : 0, bytes, n, is_first));
        if (i >= 0) seconds[i] = mb_clock_seconds() - began;
    }
    MB_TRY(flush(mail));
    MB_TRY(mb_latency_spread_get(seconds, ROUNDS, &spread));
    *out_seconds = spread.p50;
done:
    mb_free(bytes);
    return status;
}

mb_status mb_bench_transfer_run(mb_comm *comm, int rank, size_t there, size_t back, double *out_seconds)
{
    mb_status status = MB_OK;
    mb_mail *mail = NULL;
    const int mine = mb_comm_rank(comm);
    *out_seconds = 0;
    if (rank == 0) return MB_OK;
    MB_TRY(mb_mail_open(comm, &mail));
    if (mine == 0 || mine == rank) status = exchange(comm, mail, rank, there, back, out_seconds);
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_comm_bcast(comm, out_seconds, sizeof *out_seconds, 0));
done:
    mb_mail_close(&mail);
    return status;
}

/* ---- 2. fusing ---- */

mb_status mb_bench_transfer_fuse(int64_t experts, double *out_seconds)
{
    enum { OPTIONS = 4 };
    mb_status status = MB_OK;
    double seconds[ROUNDS];
    int64_t *members = NULL, voted = 0;
    float *prob = NULL, *logits = NULL;
    int32_t *picked = NULL;
    mb_latency_spread spread;
    MB_NEW_ARRAY(members, experts);
    MB_NEW_ARRAY(prob, experts * OPTIONS);
    MB_NEW_ARRAY(logits, experts);
    MB_NEW_ARRAY(picked, experts);
    for (int64_t e = 0; e < experts; e++) {
        members[e] = e;
        logits[e] = (float)(e % 3);
        picked[e] = (int32_t)(e % OPTIONS);
        for (int64_t c = 0; c < OPTIONS; c++) prob[e * OPTIONS + c] = 1.0f / OPTIONS;
    }
    const mb_vote_question question = {.kind = MB_OUTPUTS_SINGLE,
                                       .options = OPTIONS,
                                       .experts = experts,
                                       .choices = OPTIONS,
                                       .choice_prob = prob,
                                       .picked = picked,
                                       .opt_gate_logits = logits,
                                       .answer = 0};
    for (int i = 0; i < ROUNDS; i++) {
        const double began = mb_clock_seconds();
        for (int j = 0; j < FUSE_BLOCK; j++)
            voted += mb_vote_run(MB_VOTE_GATE_WEIGHTED, &question, members, experts) >= 0;
        seconds[i] = (mb_clock_seconds() - began) / FUSE_BLOCK;
    }
    if (voted != ROUNDS * FUSE_BLOCK) MB_RAISE(MB_ENUMERIC, "fusing gave no answer");
    MB_TRY(mb_latency_spread_get(seconds, ROUNDS, &spread));
    *out_seconds = spread.p50;
done:
    mb_free(members);
    mb_free(prob);
    mb_free(logits);
    mb_free(picked);
    return status;
}
