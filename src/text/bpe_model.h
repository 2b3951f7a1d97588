/* bpe_model: the inside of an mb_bpe, for bpe.c (reading) and bpe_encode.c (running).
 *
 * Layer: text.  Uses: base, bpe_vocab.
 */
#ifndef MB_BPE_MODEL_H
#define MB_BPE_MODEL_H

#include "text/bpe.h"
#include "text/bpe_vocab.h"

struct mb_bpe {
    mb_bpe_vocab vocab; /* of the model */
    mb_bpe_merges merges;
    bool is_byte_level;
    bool ignore_merges;
    bool byte_fallback;
    bool fuse_unk;
    char *prefix;          /* continuing_subword_prefix: of each character but the first; NULL none */
    char *suffix;          /* end_of_word_suffix: of the last character; NULL none */
    bool has_unk;          /* unk_token is set */
    uint32_t unk_id;       /* MB_BPE_NONE: not in the vocabulary */
    uint32_t byte_id[256]; /* of the byte's character (byte level) or of "<0xNN>" (byte fallback) */
    bool cuts_at_blank;    /* no merge joins anything to a following U+2581: a word may be cut there */
    char settings_hash[MB_HASH_TEXT];
};

#endif
