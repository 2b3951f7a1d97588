/* tokenizer_letters: characters newer than the Unicode tables of the PCRE2 at hand, so that \p{L} means what
 * it means to HF.
 *
 * Layer: text.  Uses: nothing.
 * Source: The Unicode Standard, version 16.0, general categories (as HF `tokenizers` 0.22 has them through
 * Oniguruma).
 */
#ifndef MB_TOKENIZER_LETTERS_H
#define MB_TOKENIZER_LETTERS_H

#include <stddef.h>

/* Ranges to put into a character class beside \p{name}; "" when nothing was added or the name is no general
 * category. Never NULL. */
const char *mb_tokenizer_letters_find(const char *name, size_t n);

#endif
