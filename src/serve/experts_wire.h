/* experts_wire: a question to an expert, and its answer, as bytes of a message between ranks.
 *
 * Layer: serve.  Uses: base.
 *
 * A request is all that is needed to answer it: the prompt and the texts that may follow it, or none when
 * the expert is to go on by itself. Ranks run one program on machines of one byte order: numbers go as
 * they are.
 */
#ifndef MB_EXPERTS_WIRE_H
#define MB_EXPERTS_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

/* Tags of messages: what they are. */
typedef enum mb_experts_tag {
    MB_EXPERTS_ASK = 1, /* gate to expert: a request */
    MB_EXPERTS_DROP,    /* gate to expert: do not answer this ticket any more (an mb_experts_drop) */
    MB_EXPERTS_ANSWER,  /* expert to gate */
    MB_EXPERTS_ALIVE,   /* gate to expert: I am there */
    MB_EXPERTS_END,     /* gate to expert: there is nothing more to do */
    MB_EXPERTS_BYE,     /* expert to gate: so it is, what do I do now? */
    MB_EXPERTS_LEAVE    /* gate to expert: one byte, 1: all are here, go on together; 0: not all are */
} mb_experts_tag;

typedef struct mb_experts_drop {
    int64_t ticket, expert;
} mb_experts_drop;

typedef struct mb_experts_request {
    int64_t ticket; /* number of the request */
    int64_t expert;
    char *prompt;
    char **choices;       /* [choice_count] what may follow the prompt */
    int64_t choice_count; /* 0: generate */
} mb_experts_request;

typedef enum mb_experts_how {
    MB_EXPERTS_DONE,   /* loglik, or text */
    MB_EXPERTS_FAILED, /* text: why */
    MB_EXPERTS_DROPPED /* it was asked to */
} mb_experts_how;

typedef struct mb_experts_answer {
    int64_t ticket, expert;
    mb_experts_how how;
    float *loglik; /* [choices] log-likelihoods */
    int64_t choices;
    char *text;             /* generated; NULL: nothing (the prompt is too long) */
    int64_t tokens;         /* of the prompt */
    int64_t batch;          /* requests computed together */
    double queued, compute; /* seconds on the expert's clock: waiting there; of the whole batch */
} mb_experts_answer;

mb_status mb_experts_wire_put_request(const mb_experts_request *request, mb_str *bytes);
mb_status mb_experts_wire_put_answer(const mb_experts_answer *answer, mb_str *bytes);
/* MB_EFORMAT: not such a message. New blocks. */
mb_status mb_experts_wire_get_request(const void *bytes, size_t n, mb_experts_request *out_request);
mb_status mb_experts_wire_get_answer(const void *bytes, size_t n, mb_experts_answer *out_answer);
void mb_experts_wire_reset_request(mb_experts_request *request);
void mb_experts_wire_reset_answer(mb_experts_answer *answer);

#endif
