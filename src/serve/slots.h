/* slots: the sequences that are being answered, each with its run of cache rows.
 *
 * Layer: serve.  Uses: text (ids).
 */
#ifndef MB_SLOTS_H
#define MB_SLOTS_H

#include "text/tokenizer.h"

typedef struct mb_slot {
    bool is_used;
    int64_t record, sample;
    int64_t leader; /* slot whose prompt's rows this one waits for, -1: none */
    int64_t first;  /* row of the pool */
    int64_t room;   /* rows = most tokens, prompt and answer */
    mb_ids ids;     /* prompt and answer */
    int64_t prompt; /* tokens of the prompt */
    int64_t kept;   /* tokens whose keys are in the cache */
    int64_t routed; /* tokens whose routing was given out */
    double logprob;
} mb_slot;

typedef struct mb_slots {
    mb_slot *list;
    int64_t count, used;
    int64_t rows; /* of the pool */
} mb_slots;

mb_status mb_slots_create(int64_t count, int64_t rows, mb_slots *slots);
void mb_slots_reset(mb_slots *slots);
/* A free slot with a run of `room` free rows, the lowest of each; -1 when there is none. Its ids are
 * empty. */
int64_t mb_slots_take(mb_slots *slots, int64_t room);
void mb_slots_give(mb_slots *slots, int64_t slot);

#endif
