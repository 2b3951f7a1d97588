/* sha256: the hash that the harness's sample files carry.
 *
 * Layer: measure.  Uses: nothing.
 * Source: FIPS 180-4.
 */
#ifndef MB_SHA256_H
#define MB_SHA256_H

#include <stddef.h>

/* 64 hexadecimal digits and a 0. */
void mb_sha256_text(const void *bytes, size_t n, char out_text[65]);

#endif
