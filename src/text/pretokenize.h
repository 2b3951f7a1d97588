/* pretokenize: the pre-tokenizer of a tokenizer.json: cuts a normalised text into words.
 *
 * Layer: text.  Uses: base, normalize, tokenizer_pattern.
 * Source: behaviour of huggingface/tokenizers (pre_tokenizers; all but FixedLength).
 *
 * ByteLevel's change of bytes to printable characters is not made: words stay bytes, and the model is told
 * (is_byte_level).
 */
#ifndef MB_PRETOKENIZE_H
#define MB_PRETOKENIZE_H

#include "text/normalize.h"

typedef struct mb_pretokenizer mb_pretokenizer;

/* Work arrays of a thread; start zeroed. */
typedef struct mb_pretokenize_work {
    mb_text_edit edits[2];
    mb_range *words[2]; /* byte ranges in the current text */
    int64_t capacity[2];
    int64_t count[2];
} mb_pretokenize_work;
void mb_pretokenize_work_destroy(mb_pretokenize_work *work);

/* json may be NULL or null: the whole text is one word. */
mb_status mb_pretokenizer_read(const json_t *json, const char *where, mb_pretokenizer **out_pretokenizer);
void mb_pretokenizer_destroy(mb_pretokenizer **pretokenizer);
void mb_pretokenizer_hash(const mb_pretokenizer *pretokenizer, mb_hash *hash);
bool mb_pretokenizer_is_byte_level(const mb_pretokenizer *pretokenizer);
/* Does a step ask where a word begins in the original text, when the text before it may have been changed
 * (is_changed: by the normaliser)? Then the views must be tracked. */
bool mb_pretokenizer_asks_start(const mb_pretokenizer *pretokenizer, bool is_changed);

/* Cut `text` (not empty). The words are ranges of *out_view; both are borrowed from text and work. */
mb_status mb_pretokenizer_run(const mb_pretokenizer *pretokenizer, mb_pretokenize_work *work,
                              mb_tokenizer_matcher *matcher, const mb_text_view *text, bool tracked,
                              mb_text_view *out_view, const mb_range **out_words, int64_t *out_count);

#endif
