/* comm_library.c: the MPI library's own words about itself.
 *
 * 1. version
 */
#include "comm/comm_library.h"

#include <stdio.h>
#include <string.h>

#ifdef MB_HAVE_MPI
#include <mpi.h>
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
