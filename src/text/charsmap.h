/* charsmap: the normaliser "Precompiled" of a tokenizer.json: SentencePiece's table of replacements.
 *
 * Layer: text.  Uses: base, normalize.
 * Source: behaviour of huggingface/tokenizers (normalizers/precompiled) and of its crate spm_precompiled: a
 * grapheme of less than 6 bytes is replaced as a whole by what its shortest prefix in the table becomes; else
 * each of its characters by itself. The table: 4 bytes of length, a double array of darts-clone (Yata), then
 * the replacements, each ended by a 0.
 */
#ifndef MB_CHARSMAP_H
#define MB_CHARSMAP_H

#include "text/normalize.h"

typedef struct mb_charsmap mb_charsmap;

/* json: the normaliser, with "precompiled_charsmap" in base64. MB_EFORMAT: it is damaged. */
mb_status mb_charsmap_read(const json_t *json, const char *where, mb_charsmap **out_charsmap);
void mb_charsmap_destroy(mb_charsmap **charsmap);
void mb_charsmap_hash(const mb_charsmap *charsmap, mb_hash *hash);
mb_status mb_charsmap_run(const mb_charsmap *charsmap, const mb_text_view *in, mb_text_edit *out);

#endif
