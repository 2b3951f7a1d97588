/* tokenizer_model: the inside of an mb_tokenizer, for tokenizer*.c.
 *
 * Layer: text.  Uses: base and the parts of a tokenizer.
 */
#ifndef MB_TOKENIZER_MODEL_H
#define MB_TOKENIZER_MODEL_H

#include "text/added_tokens.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"
#include "text/tokenizer_decode.h"
#include "text/word_model.h"

struct mb_tokenizer {
    mb_normalizer *normalizer;
    mb_pretokenizer *pretokenizer;
    mb_word_model *words;
    mb_tokenizer_decoder *decoder;
    mb_added_token *added; /* in the file's order */
    int64_t added_count;
    mb_added_tokens *raw;        /* looked for before normalisation */
    mb_added_tokens *normalized; /* looked for after it */
    bool *is_special;            /* per id */
    bool keeps_ranges;           /* normalised texts must tell where they begin in the original */
    mb_ids before, after;        /* ids that the post-processor puts around the text */
    int64_t bos, eos, pad;       /* -1 none */
    char *chat_template;
    char hash[MB_HASH_TEXT];
};

/* tokenizer_open.c: read the parsed tokenizer.json into an empty tokenizer. */
mb_status mb_tokenizer_open_json(mb_tokenizer *tokenizer, const json_t *json, const char *where);
/* tokenizer_config.c: bos, eos, pad, chat template and add_bos_token of the folder's other files. opt_folder
 * NULL: a lone file. */
mb_status mb_tokenizer_config_read(mb_tokenizer *tokenizer, const char *opt_folder);

#endif
