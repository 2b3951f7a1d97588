/* h5_library.c: version and kind of the HDF5 library.
 *
 * 1. version
 */
#include "store/h5_library.h"

#include <stdio.h>

#include "store/h5_handle.h"

/* ---- 1. version ---- */

void mb_h5_library(char *out_text, size_t bytes)
{
    unsigned major = 0, minor = 0, release = 0;
    hbool_t is_safe = false;
#ifdef H5_HAVE_PARALLEL
    const char *kind = "parallel";
#else
    const char *kind = "serial";
#endif
    if (H5get_libversion(&major, &minor, &release) < 0 || H5is_library_threadsafe(&is_safe) < 0) {
        snprintf(out_text, bytes, "HDF5 of unknown version");
        return;
    }
    snprintf(out_text, bytes, "HDF5 %u.%u.%u, %s, %s", major, minor, release, kind,
             is_safe ? "thread-safe" : "not thread-safe");
}
