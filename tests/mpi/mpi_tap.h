/* mpi_tap: TAP lines from rank 0 for checks all ranks take part in. */
#ifndef MB_MPI_TAP_H
#define MB_MPI_TAP_H

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/transfer.h"
#include "fake_nccl.h"
#include "ops/ops_table.h"

typedef struct mpi_tap {
    mb_comm *comm;
    mb_ops *ops;           /* with tap_open */
    mb_transfer *transfer; /* with tap_open */
    int checks, failures;
} mpi_tap;

static inline int tap_hook_wait(void *context)
{
    return mb_ops_wait(context) == MB_OK;
}

static inline int tap_hook_down(void *context, const void *data, size_t bytes, void *host)
{
    return mb_ops_download(context, data, bytes, host) == MB_OK && mb_ops_wait(context) == MB_OK;
}

static inline int tap_hook_up(void *context, const void *host, size_t bytes, void *data)
{
    return mb_ops_upload(context, host, bytes, data) == MB_OK && mb_ops_wait(context) == MB_OK;
}

/* With NCCL's stand-in (fake_nccl.h) in the place of the library every rank is given a GPU of its own, by
 * name. */
static inline void tap_hook_nccl(const mpi_tap *tap)
{
    const fake_nccl_hooks hooks = {tap->ops, mb_ops_stream(tap->ops), tap_hook_wait, tap_hook_down,
                                   tap_hook_up};
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL),
         *symbol = library != NULL ? dlsym(library, "fake_nccl_set") : NULL;
    void (*set)(const fake_nccl_hooks *hooks);
    if (symbol == NULL) return;
    memcpy(&set, &symbol, sizeof set);
    set(&hooks);
    snprintf(tap->ops->bus_id, sizeof tap->ops->bus_id, "0000:%02x:00.0", mb_comm_rank(tap->comm));
}

/* comm, and a backend: the one named by the first argument, else cpu (ref in a build without a matrix
 * library). Several ranks share the only GPU there is. False: printed why; *out_code is the program's. */
static inline bool tap_open(mpi_tap *tap, int *argc, char ***argv, int *out_code)
{
    mb_status status = mb_comm_create(argc, argv, &tap->comm);
    const char *backend = *argc > 1 ? (*argv)[1] : "cpu";
    mb_ops_options options = {.backend = backend, .threads = 0, .share_gpu = true};
    if (status == MB_OK) {
        options.local_rank = mb_comm_local_rank(tap->comm);
        options.local_size = mb_comm_local_size(tap->comm);
        status = mb_ops_create_with(&options, &tap->ops);
        if (status == MB_EUNSUPPORTED && *argc <= 1) status = mb_ops_create("ref", 0, &tap->ops);
    }
    if (status == MB_EUNSUPPORTED && mb_comm_rank(tap->comm) == 0)
        printf("1..0 # SKIP %s\n", mb_status_message());
    *out_code = status == MB_EUNSUPPORTED ? 0 : 1;
    if (status == MB_OK) tap_hook_nccl(tap);
    if (status == MB_OK) status = mb_transfer_create(tap->comm, tap->ops, &tap->transfer);
    if (status == MB_OK) return true;
    if (*out_code != 0) fprintf(stderr, "# %s\n", mb_status_message());
    mb_ops_destroy(&tap->ops);
    mb_comm_destroy(&tap->comm);
    return false;
}

static inline void tap_close(mpi_tap *tap)
{
    mb_transfer_destroy(&tap->transfer);
    mb_ops_destroy(&tap->ops);
    mb_comm_destroy(&tap->comm);
}

/* n floats of the backend's memory into the host's, and back. */
static inline bool tap_read(const mpi_tap *tap, const float *data, int64_t n, float *host)
{
    return mb_ops_download(tap->ops, data, (size_t)n * sizeof *host, host) == MB_OK &&
           mb_ops_wait(tap->ops) == MB_OK;
}

static inline bool tap_write(const mpi_tap *tap, const float *host, int64_t n, float *data)
{
    return mb_ops_upload(tap->ops, host, (size_t)n * sizeof *host, data) == MB_OK &&
           mb_ops_wait(tap->ops) == MB_OK;
}

/* n floats of the backend's memory, zeroed. */
static inline float *tap_new(const mpi_tap *tap, int64_t n)
{
    const mb_allocator *memory = mb_ops_allocator(tap->ops);
    float *data = memory->alloc(memory->context, (size_t)n * sizeof *data);
    if (data == NULL) mb_comm_abort(tap->comm, 1);
    return data;
}

static inline void tap_free(const mpi_tap *tap, float *data)
{
    const mb_allocator *memory = mb_ops_allocator(tap->ops);
    if (data != NULL) memory->free(memory->context, data);
}

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
