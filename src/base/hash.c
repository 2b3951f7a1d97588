/* hash.c: XXH3 behind our names; text is the canonical (big-endian) form in hexadecimal.
 *
 * 1. running hash   2. blocks and files
 */
#include "base/hash.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/memory.h"

struct mb_hash {
    XXH3_state_t *state;
};

/* ---- 1. running hash ---- */

mb_status mb_hash_create(mb_hash **out_hash)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    MB_NEW(hash);
    hash->state = XXH3_createState();
    if (hash->state == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for a hash");
    mb_hash_reset(hash);
    *out_hash = hash;
    hash = NULL;
done:
    mb_hash_destroy(&hash);
    return status;
}

void mb_hash_destroy(mb_hash **hash)
{
    if (*hash == NULL) return;
    XXH3_freeState((*hash)->state);
    MB_FREE(*hash);
}

void mb_hash_reset(mb_hash *hash)
{
    XXH3_128bits_reset(hash->state);
}

void mb_hash_add(mb_hash *hash, const void *bytes, size_t n)
{
    if (n > 0) XXH3_128bits_update(hash->state, bytes, n);
}

void mb_hash_add_text(mb_hash *hash, const char *text)
{
    size_t n = strlen(text);
    mb_hash_add_int(hash, (int64_t)n);
    mb_hash_add(hash, text, n);
}

void mb_hash_add_int(mb_hash *hash, int64_t value)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)value >> (8 * i));
    mb_hash_add(hash, bytes, sizeof bytes);
}

static void write_text(XXH128_hash_t value, char out_text[MB_HASH_TEXT])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, value);
    for (int i = 0; i < 16; i++) snprintf(out_text + 2 * i, 3, "%02x", canonical.digest[i]);
}

void mb_hash_get(const mb_hash *hash, char out_text[MB_HASH_TEXT])
{
    write_text(XXH3_128bits_digest(hash->state), out_text);
}

/* ---- 2. blocks and files ---- */

void mb_hash_bytes(const void *bytes, size_t n, char out_text[MB_HASH_TEXT])
{
    write_text(XXH3_128bits(n > 0 ? bytes : "", n), out_text);
}

mb_status mb_hash_file(const char *path, char out_text[MB_HASH_TEXT])
{
    enum { PIECE = 1 << 18 };
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    char *piece = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        MB_RAISE(errno == ENOENT ? MB_ENOTFOUND : MB_EIO, "%s: cannot open it: %s", path, strerror(errno));
    }
    MB_TRY(mb_hash_create(&hash));
    MB_NEW_ARRAY(piece, PIECE);
    for (size_t n; (n = fread(piece, 1, PIECE, file)) > 0;) mb_hash_add(hash, piece, n);
    if (ferror(file)) MB_RAISE(MB_EIO, "%s: cannot read it: %s", path, strerror(errno));
    mb_hash_get(hash, out_text);
done:
    if (file != NULL) fclose(file);
    mb_free(piece);
    mb_hash_destroy(&hash);
    return status;
}

uint64_t mb_hash_u64(const void *bytes, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(n > 0 ? bytes : "", n, seed);
}
