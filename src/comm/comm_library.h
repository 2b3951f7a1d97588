/* comm_library: which MPI this program was built with.
 *
 * Layer: comm.  Uses: MPI.
 */
#ifndef MB_COMM_LIBRARY_H
#define MB_COMM_LIBRARY_H

#include <stddef.h>

/* "Open MPI v4.1.4, package: ..." (the library's own first line), or "none" in a build without MPI. MPI need
 * not have been started. */
void mb_comm_library(char *out_text, size_t bytes);

#endif
