/* h5_library: which HDF5 this program runs with.
 *
 * Layer: store.  Uses: HDF5.
 */
#ifndef MB_H5_LIBRARY_H
#define MB_H5_LIBRARY_H

#include <stddef.h>

/* "HDF5 1.10.8, serial, not thread-safe": the library found at run time, and how this program's headers were
 * built. */
void mb_h5_library(char *out_text, size_t bytes);

#endif
