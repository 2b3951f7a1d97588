/* fuse_vocab: do several models mean the same by their token ids, and which tokens has each?
 *
 * Layer: model.  Uses: text (tokenizer).
 *
 * Vocabularies are compared token by token in canonical form (id, bytes), whatever library saved them. A
 * member has token id i when its embedding has row i, and its tokenizer that token or nobody's has one there
 * (rows of padding). The joint vocabulary has the rows of the largest.
 */
#ifndef MB_FUSE_VOCAB_H
#define MB_FUSE_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/json.h"

enum { MB_FUSE_VOCAB_MEMBERS = 16 };

typedef struct mb_fuse_vocab_source { /* a member, all borrowed */
    const char *name, *folder;        /* folder: with tokenizer.json; without one rows alone count */
    int64_t rows;                     /* of the embedding */
} mb_fuse_vocab_source;

typedef struct mb_fuse_vocab_only { /* a token that not all have */
    int64_t id;
    char *token; /* NULL: a row of padding */
} mb_fuse_vocab_only;

typedef struct mb_fuse_vocab {
    int64_t size, members;
    int64_t rows[MB_FUSE_VOCAB_MEMBERS];
    uint8_t *has[MB_FUSE_VOCAB_MEMBERS]; /* [size] 0 or 1; NULL: the member has all */
    mb_fuse_vocab_only *only;
    int64_t only_count;
    char hash[MB_HASH_TEXT]; /* of ids and tokens of the joint vocabulary, and of who has them */
} mb_fuse_vocab;

/* MB_EDATA: an id that means two tokens, or a token with two ids (both tokens, ids and folders are named). */
mb_status mb_fuse_vocab_create(const mb_fuse_vocab_source *source, int64_t count, mb_fuse_vocab **out_vocab);
void mb_fuse_vocab_destroy(mb_fuse_vocab **vocab);
static inline bool mb_fuse_vocab_has(const mb_fuse_vocab *vocab, int64_t member, int64_t id)
{
    return vocab->has[member] == NULL || vocab->has[member][id] != 0;
}
/* Do all members have all tokens? */
bool mb_fuse_vocab_is_equal(const mb_fuse_vocab *vocab);
/* The token of an id that not all have, "" when it is a row of padding or all have it. */
const char *mb_fuse_vocab_token(const mb_fuse_vocab *vocab, int64_t id);
/* Name the tokens that not all have in the log: the first of them, and how many there are. */
void mb_fuse_vocab_report(const mb_fuse_vocab *vocab, const mb_fuse_vocab_source *source);

#endif
