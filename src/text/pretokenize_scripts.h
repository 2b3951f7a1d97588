/* pretokenize_scripts: the script of a character, for the pre-tokenizer UnicodeScripts.
 *
 * Layer: text.  Uses: nothing.
 * Source: asked of `tokenizers` 0.22.2 (tests/golden/make_scripts.py).
 */
#ifndef MB_PRETOKENIZE_SCRIPTS_H
#define MB_PRETOKENIZE_SCRIPTS_H

#include <stdbool.h>
#include <stdint.h>

/* A number for each script (Han, Hiragana and Katakana are one); 0: it goes with any. */
int mb_pretokenize_script(uint32_t character);

#endif
