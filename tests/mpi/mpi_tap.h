/* mpi_tap: TAP lines from rank 0 for checks all ranks take part in. */
#ifndef MB_MPI_TAP_H
#define MB_MPI_TAP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "comm/comm.h"

typedef struct mpi_tap {
    mb_comm *comm;
    int checks, failures;
} mpi_tap;

/* Collective: passes when ok on all ranks; a rank that fails says so on standard error. */
__attribute__((format(printf, 3, 4))) static inline void tap_check(mpi_tap *tap, bool ok, const char *format,
                                                                   ...)
{
    char name[256];
    int64_t all = ok;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    if (mb_comm_allreduce_i64(tap->comm, &all, 1, MB_COMM_MIN) != MB_OK) mb_comm_abort(tap->comm, 1);
    tap->checks++;
    tap->failures += !all;
    if (!ok)
        fprintf(stderr, "# rank %d fails: %s (last error: %s)\n", mb_comm_rank(tap->comm), name,
                mb_status_message());
    if (mb_comm_rank(tap->comm) == 0) printf("%sok %d - %s\n", all ? "" : "not ", tap->checks, name);
}

static inline void tap_note(const mpi_tap *tap, const char *text)
{
    if (mb_comm_rank(tap->comm) == 0) printf("# %s\n", text);
}

/* Prints the plan; returns the exit code. */
static inline int tap_end(const mpi_tap *tap)
{
    if (mb_comm_rank(tap->comm) == 0) printf("1..%d\n", tap->checks);
    fflush(stdout);
    return tap->failures > 0;
}

#endif
