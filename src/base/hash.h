/* hash: 128-bit content hashes (XXH3, Collet 2019-2023) and small 64-bit ones for tables and tie breaks.
 *
 * Layer: base.  Uses: xxhash, status.
 * Not cryptographic: it identifies content among honest files, it does not protect against forgery.
 */
#ifndef MB_HASH_H
#define MB_HASH_H

#include <stdint.h>

#include "base/status.h"

#define MB_HASH_TEXT 33 /* 32 hexadecimal digits and a 0 */

typedef struct mb_hash mb_hash; /* a running hash */
mb_status mb_hash_create(mb_hash **out_hash);
void mb_hash_destroy(mb_hash **hash);
void mb_hash_reset(mb_hash *hash);
void mb_hash_add(mb_hash *hash, const void *bytes, size_t n);
void mb_hash_add_text(mb_hash *hash,
                      const char *text);            /* length first, so that "ab","c" differs from "a","bc" */
void mb_hash_add_int(mb_hash *hash, int64_t value); /* as 8 little-endian bytes */
void mb_hash_get(const mb_hash *hash, char out_text[MB_HASH_TEXT]);

/* One block, one file. */
void mb_hash_bytes(const void *bytes, size_t n, char out_text[MB_HASH_TEXT]);
mb_status mb_hash_file(const char *path, char out_text[MB_HASH_TEXT]);

/* 64 bits of a block, by seed. */
uint64_t mb_hash_u64(const void *bytes, size_t n, uint64_t seed);

#endif
