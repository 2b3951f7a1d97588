/* comm_library: which MPI this program was built with.
 *
 * Layer: comm.  Uses: MPI.
 */
#ifndef MB_COMM_LIBRARY_H
#define MB_COMM_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

/* "Open MPI v4.1.4, package: ..." (the library's own first line), or "none" in a build without MPI. MPI need
 * not have been started. */
void mb_comm_library(char *out_text, size_t bytes);
/* Does MPI take pointers to a GPU's memory? As it says itself (Open MPI; MPICH and its descendants by their
 * environment variables), or MB_MPI_CUDA=1 or 0 in the environment does for it. MPI must have been
 * started. */
bool mb_comm_library_is_cuda_aware(void);

#endif
