/* version_info: which source this program was built from.
 *
 * Layer: base.
 */
#ifndef MB_VERSION_INFO_H
#define MB_VERSION_INFO_H

/* The source's version ("v1.2-3-gabcdef", "unknown"). Never NULL. */
const char *mb_version_source(void);

#endif
