/* version_info.c: the one file that sees the version the build writes.
 *
 * 1. version
 */
#include "base/version_info.h"

#include <version.h>

const char *mb_version_source(void)
{
    return MB_SOURCE_VERSION;
}
