/* fake_nccl: NCCL's calls as comm_nccl.c makes them, over MPI, so that the way over NCCL is tested without
 * GPUs. Built as a libnccl.so.2; a test finds fake_nccl_set in it and says how the device's memory is
 * reached.
 */
#ifndef FAKE_NCCL_H
#define FAKE_NCCL_H

#include <stddef.h>

/* Each returns 1 when all went well. */
typedef struct fake_nccl_hooks {
    void *context;
    void *stream; /* that all calls have to name */
    int (*wait)(void *context);
    int (*down)(void *context, const void *data, size_t bytes, void *host);
    int (*up)(void *context, const void *host, size_t bytes, void *data);
} fake_nccl_hooks;

void fake_nccl_set(const fake_nccl_hooks *hooks);

#endif
