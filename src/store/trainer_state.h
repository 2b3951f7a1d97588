/* trainer_state: position and optimiser of a training run, in trainer.h5 of a checkpoint.
 *
 * Layer: store.  Uses: base, h5.
 *
 * File, format "moebatch-trainer" version 1: attributes step, epoch, sample, elements, seed, key,
 * environment; datasets /moment1, /moment2 f32 [elements] (absent for optimisers without them). Nothing in it
 * depends on the number of ranks. Written by rank 0: mb_trainer_state_write, then per moment
 * mb_trainer_state_create_moment and the pieces in order.
 */
#ifndef MB_TRAINER_STATE_H
#define MB_TRAINER_STATE_H

#include "store/h5.h"

typedef struct mb_trainer_state {
    int64_t step;     /* optimiser steps done */
    int64_t epoch;    /* epochs done */
    int64_t sample;   /* global samples consumed in the current epoch */
    int64_t elements; /* of the trained space */
    uint64_t seed;
    char key[33];          /* hash of what must not change: data, model, objective, batch layout */
    char environment[512]; /* backend, instruction set, threads, lanes, libraries: a difference warns (strict:
                              refuses) */
} mb_trainer_state;

mb_status mb_trainer_state_write(mb_h5 *file, const mb_trainer_state *state);
/* MB_EFORMAT when it is no trainer file, or a moment in it has not `elements` elements. */
mb_status mb_trainer_state_read(mb_h5 *file, mb_trainer_state *out_state);

/* A moment (1, 2): create, append pieces in order of elements, read ranges back. */
mb_status mb_trainer_state_create_moment(mb_h5 *file, int moment);
mb_status mb_trainer_state_append_moment(mb_h5 *file, int moment, const float *values, int64_t n);
bool mb_trainer_state_has_moment(mb_h5 *file, int moment);
mb_status mb_trainer_state_read_moment(mb_h5 *file, int moment, int64_t first, int64_t n, float *out);

#endif
