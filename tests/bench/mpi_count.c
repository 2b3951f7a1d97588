/* mpi_count: counts what a rank sends and receives, for tests/bench/scale_sim.py --measure.
 *
 *     mpicc -shared -fPIC -O2 tests/bench/mpi_count.c -o count.so
 *     MB_COUNT=out mpirun -np 4 -x LD_PRELOAD=count.so moe-select ...
 *
 * Writes out.<rank>: a line "name calls bytes" per MPI function (bytes: those this rank puts in; of one-sided
 * gets those it fetches). MPI's profiling interface does the rest.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { BCAST, ALLREDUCE, ALLGATHER, ISEND, IRECV, GET, FETCH, BARRIER, KINDS };

static const char *const names[KINDS] = {"bcast", "allreduce", "allgather",    "isend",
                                         "irecv", "get",       "fetch_and_op", "barrier"};
static long long calls[KINDS], bytes[KINDS];

static void count(int kind, MPI_Count n, MPI_Datatype type)
{
    int size = 0;
    PMPI_Type_size(type, &size);
    calls[kind]++;
    bytes[kind] += (long long)n * size;
}

int MPI_Bcast(void *data, int n, MPI_Datatype type, int root, MPI_Comm comm)
{
    count(BCAST, n, type);
    return PMPI_Bcast(data, n, type, root, comm);
}

int MPI_Allreduce(const void *in, void *out, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm)
{
    count(ALLREDUCE, n, type);
    return PMPI_Allreduce(in, out, n, type, op, comm);
}

int MPI_Allgather(const void *in, int n, MPI_Datatype type, void *out, int m, MPI_Datatype to, MPI_Comm comm)
{
    count(ALLGATHER, n, type);
    return PMPI_Allgather(in, n, type, out, m, to, comm);
}

int MPI_Isend(const void *data, int n, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request *request)
{
    count(ISEND, n, type);
    return PMPI_Isend(data, n, type, to, tag, comm, request);
}

int MPI_Irecv(void *data, int n, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Request *request)
{
    count(IRECV, n, type);
    return PMPI_Irecv(data, n, type, from, tag, comm, request);
}

int MPI_Get(void *data, int n, MPI_Datatype type, int from, MPI_Aint at, int m, MPI_Datatype to,
            MPI_Win window)
{
    count(GET, n, type);
    return PMPI_Get(data, n, type, from, at, m, to, window);
}

int MPI_Fetch_and_op(const void *in, void *out, MPI_Datatype type, int to, MPI_Aint at, MPI_Op op,
                     MPI_Win window)
{
    count(FETCH, 1, type);
    return PMPI_Fetch_and_op(in, out, type, to, at, op, window);
}

int MPI_Barrier(MPI_Comm comm)
{
    calls[BARRIER]++;
    return PMPI_Barrier(comm);
}

int MPI_Finalize(void)
{
    char path[4096];
    int rank = 0;
    const char *stem = getenv("MB_COUNT");
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    snprintf(path, sizeof path, "%s.%d", stem != NULL ? stem : "mpi_count", rank);
    FILE *file = fopen(path, "w");
    if (file != NULL) {
        for (int k = 0; k < KINDS; k++) fprintf(file, "%s %lld %lld\n", names[k], calls[k], bytes[k]);
        fclose(file);
    }
    return PMPI_Finalize();
}
