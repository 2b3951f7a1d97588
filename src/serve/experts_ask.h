/* experts_ask: the end of the gate: questions to several experts at a time, their answers gathered, nobody
 * waited for beyond a time limit.
 *
 * Layer: serve.  Uses: base, comm (mail), experts_wire, experts_serve.
 *
 * Each expert has a window of requests under way; what is beyond waits here. A request's time begins when
 * it is sent. One that is not answered in time is settled without its answer: late. An expert that is late
 * `strikes` times without one answer in time between is dead: it is not asked any more, until it gives a
 * sign of life (a late answer, or word that it dropped a request) and a pause is over that doubles with
 * each death; then it is asked again, and once late is dead again. Requests that were under way when it
 * was last late do not count twice. Experts on the gate's own rank are computed by the gate itself and are
 * never late. All times are the gate's clock, and differences on an expert's clock; clocks are never
 * compared.
 */
#ifndef MB_EXPERTS_ASK_H
#define MB_EXPERTS_ASK_H

#include "serve/experts_serve.h"

typedef struct mb_experts_ask_options {
    int64_t experts;
    const int *rank;          /* [experts] where they are; borrowed */
    const char *const *names; /* [experts] for the log; borrowed */
    double timeout;           /* seconds */
    int64_t window;           /* requests of an expert under way */
    int64_t strikes;
    void *own;
    double (*clock)(void *own); /* NULL: mb_clock_seconds */
} mb_experts_ask_options;

typedef enum mb_experts_outcome {
    MB_EXPERTS_WAITING,
    MB_EXPERTS_ANSWERED,
    MB_EXPERTS_LATE,
    MB_EXPERTS_DEAD,   /* it was dead, and not asked (or died meanwhile) */
    MB_EXPERTS_UNABLE, /* it said why it cannot: answer.text */
} mb_experts_outcome;
enum { MB_EXPERTS_OUTCOMES = 5 };
const char *mb_experts_outcome_name(mb_experts_outcome outcome); /* "waiting", "answered", "late" ... */

typedef struct mb_experts_reply {
    int64_t expert;
    mb_experts_outcome outcome;
    mb_experts_answer answer;
    double put, sent, settled; /* on the gate's clock; sent 0: never */
} mb_experts_reply;

/* A question and what became of it. */
typedef struct mb_experts_question {
    int64_t number;
    mb_experts_reply *reply; /* [count], in rising order of expert */
    int64_t count, waiting;
    struct mb_experts_question *next; /* for the owner */
} mb_experts_question;
void mb_experts_ask_free(mb_experts_question **question);

typedef struct mb_experts_ask_state {
    int64_t asked, answered, late, unable; /* requests */
    int64_t passed_over;                   /* not asked: it was dead */
    int64_t late_answers;                  /* that came after all */
    int64_t deaths;
    bool is_dead;
} mb_experts_ask_state;

typedef struct mb_experts_ask mb_experts_ask;
/* Borrows the mail and what serves the experts of this rank (NULL: it has none). */
mb_status mb_experts_ask_create(mb_mail *mail, const mb_experts_ask_options *options,
                                mb_experts_serve *opt_here, mb_experts_ask **out_ask);
void mb_experts_ask_destroy(mb_experts_ask **ask);

/* Ask these experts (rising order); prompt and choices of the request are borrowed, its numbers unused. */
mb_status mb_experts_ask_put(mb_experts_ask *ask, int64_t number, const mb_experts_request *request,
                             const int64_t *experts, int64_t count);
/* Take what came, give up what is late, send what may be sent, and let this rank's own experts answer a
 * batch. *out_did: something happened; otherwise the caller may rest a moment. */
mb_status mb_experts_ask_step(mb_experts_ask *ask, bool *out_did);
/* A question that is settled, the longest settled first; NULL: none. The caller's, mb_experts_ask_free. */
mb_experts_question *mb_experts_ask_next(mb_experts_ask *ask);
int64_t mb_experts_ask_open(const mb_experts_ask *ask); /* questions that are not settled */
mb_experts_ask_state mb_experts_ask_get(const mb_experts_ask *ask, int64_t x); /* of expert x */

/* Tell all other ranks that it is over and wait up to `grace` seconds for their word. *out_together: all
 * gave it, and were told to go on together with this rank; out_missing [ranks] (may be NULL): those that
 * did not.
 */
mb_status mb_experts_ask_end(mb_experts_ask *ask, double grace, bool *out_together, bool *opt_missing);

#endif
