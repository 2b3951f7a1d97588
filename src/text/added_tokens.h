/* added_tokens: finds the added and special tokens inside a text, before the model sees it.
 *
 * Layer: text.  Uses: base, normalize.
 * Source: behaviour of huggingface/tokenizers (AddedVocabulary: leftmost-longest match, single_word, lstrip,
 * rstrip).
 */
#ifndef MB_ADDED_TOKENS_H
#define MB_ADDED_TOKENS_H

#include "text/normalize.h"

typedef struct mb_added_token {
    char *content; /* owned */
    uint32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} mb_added_token;

/* Tokens that are looked for together (all before normalisation, or all after it). */
typedef struct mb_added_tokens mb_added_tokens;
mb_status mb_added_tokens_create(mb_added_tokens **out_tokens);
void mb_added_tokens_destroy(mb_added_tokens **tokens);
/* Look for pattern[n] (n > 0) and report `token` (borrowed). The first of two equal patterns counts. */
mb_status mb_added_tokens_add(mb_added_tokens *tokens, const char *pattern, size_t n,
                              const mb_added_token *token);

/* A part of a text: an added token, or (token NULL) text between them. */
typedef struct mb_added_part {
    const mb_added_token *token;
    size_t first, end;
} mb_added_part;

/* Where a walk through a text is; start zeroed. */
typedef struct mb_added_walk {
    size_t search;         /* matches begin here or later */
    size_t start;          /* everything before it is reported */
    mb_added_part pending; /* a token found behind the text just reported */
} mb_added_walk;
/* Next part of text[n] in order; false at the end. */
bool mb_added_tokens_next(const mb_added_tokens *tokens, mb_added_walk *walk, const char *text, size_t n,
                          mb_added_part *out_part);

#endif
