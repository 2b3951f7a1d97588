/* routing: a view of what the gates of one pass said, shared by balance and constraint losses.
 *
 * Layer: learn.  Uses: nothing.
 *
 * Letters: T rows, E' rows of a gate (good experts first, then trash), K picks. Gradients are added:
 * gradient[l][t, e] += scale * d value / d logits[l][t, e]. All sums are f64 and in an order that does not
 * depend on threads.
 */
#ifndef MB_ROUTING_H
#define MB_ROUTING_H

#include <stdint.h>

#define MB_ROUTING_MAX_EXPERTS 1024 /* E' */
#define MB_ROUTING_BLOCK       256  /* rows summed together before blocks are added in order */

typedef struct mb_routing {
    int64_t routers;
    int64_t rows;         /* T of the arrays */
    int64_t experts;      /* E' */
    int64_t good;         /* experts 0..good-1 are good, the others trash */
    int64_t picks;        /* K */
    float *const *logits; /* [routers] of [T, E'], without the trash bias */
    int32_t *const *ids;  /* [routers] of [T, K] */
    int threads;          /* to use, >= 1; values and gradients do not depend on it */
} mb_routing;

#endif
