/* comm_library.c: the MPI library's own words about itself.
 *
 * 1. version   2. memory of GPUs
 */
#include "comm/comm_library.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MB_HAVE_MPI
#include <mpi.h>
#if defined(OPEN_MPI) && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif
#endif

/* ---- 1. version ---- */

void mb_comm_library(char *out_text, size_t bytes)
{
    const char *name = "none";
#ifdef MB_HAVE_MPI
    char text[MPI_MAX_LIBRARY_VERSION_STRING + 1] = "";
    int length = 0;
    if (MPI_Get_library_version(text, &length) == MPI_SUCCESS) name = text;
#endif
    snprintf(out_text, bytes, "%.*s", (int)strcspn(name, "\n"), name);
}

/* ---- 2. memory of GPUs ---- */

static bool is_on(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && strcmp(value, "1") == 0;
}

bool mb_comm_library_is_cuda_aware(void)
{
    const char *said = getenv("MB_MPI_CUDA");
    if (said != NULL && *said != 0) return is_on("MB_MPI_CUDA");
#if defined(MB_HAVE_MPI) && defined(MPIX_CUDA_AWARE_SUPPORT)
    if (MPIX_Query_cuda_support() != 0) return true;
#endif
    return is_on("MPICH_GPU_SUPPORT_ENABLED") || is_on("MPIR_CVAR_ENABLE_GPU") || is_on("MV2_USE_CUDA");
}
