/* wordpiece: reads the WordPiece model of a tokenizer.json and cuts words into its pieces.
 *
 * 1. reading  2. create and access  3. encode
 */
#include "text/wordpiece.h"

#include <string.h>

#include "base/memory.h"
#include "text/piece_trie.h"
#include "text/word_cache.h"

struct mb_wordpiece {
    mb_bpe_vocab vocab;
    mb_piece_trie first; /* whole entries: they begin a word */
    mb_piece_trie later; /* entries with the prefix, without it: they go on */
    uint32_t unk_id;     /* UINT32_MAX: not in the vocabulary */
    int64_t max_characters;
    char settings_hash[MB_HASH_TEXT];
};

struct mb_wordpiece_work {
    mb_word_pieces pieces;
    mb_word_cached *cache;
};

/* 1. reading */

static mb_status build_tries(mb_wordpiece *wordpiece, const char *prefix)
{
    mb_status status = MB_OK;
    mb_piece_text *texts = NULL;
    const int64_t count = wordpiece->vocab.count;
    const size_t skip = strlen(prefix);
    for (int later = 0; later < 2; later++) {
        int64_t used = 0;
        mb_free(texts);
        MB_NEW_ARRAY(texts, count);
        for (int64_t id = 0; id < count; id++) {
            size_t n = 0;
            const char *text = mb_bpe_vocab_text(&wordpiece->vocab, (uint32_t)id, &n);
            if (text == NULL || (later && (n <= skip || memcmp(text, prefix, skip) != 0))) continue;
            texts[used++] = (mb_piece_text){
                .text = text + (later ? skip : 0), .n = n - (later ? skip : 0), .id = (uint32_t)id};
        }
        MB_TRY(mb_piece_trie_build(later ? &wordpiece->later : &wordpiece->first, texts, used));
    }
done:
    mb_free(texts);
    return status;
}

static mb_status read_settings(mb_wordpiece *wordpiece, const json_t *model, const char *where)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    const char *unk = NULL, *prefix = NULL;
    MB_TRY(mb_hash_create(&hash));
    MB_TRY(mb_json_get_string(model, "unk_token", where, &unk));
    MB_TRY(mb_json_get_string(model, "continuing_subword_prefix", where, &prefix));
    MB_TRY(mb_json_get_int(model, "max_input_chars_per_word", where, &wordpiece->max_characters));
    if (wordpiece->max_characters < 0)
        MB_RAISE(MB_EFORMAT, "%s: model.max_input_chars_per_word must not be negative", where);
    wordpiece->unk_id = mb_bpe_vocab_find(&wordpiece->vocab, unk, strlen(unk));
    MB_TRY(build_tries(wordpiece, prefix));
    mb_hash_add_text(hash, unk);
    mb_hash_add_text(hash, prefix);
    mb_hash_add_int(hash, wordpiece->max_characters);
    mb_hash_get(hash, wordpiece->settings_hash);
done:
    mb_hash_destroy(&hash);
    return status;
}

/* 2. create and access */

mb_status mb_wordpiece_read(const json_t *model, const char *where, mb_wordpiece **out_wordpiece)
{
    mb_status status = MB_OK;
    mb_wordpiece *wordpiece = NULL;
    json_t *vocab = NULL;
    MB_NEW(wordpiece);
    MB_TRY(mb_json_get_object(model, "vocab", where, &vocab));
    MB_TRY(mb_bpe_vocab_read(&wordpiece->vocab, vocab, where));
    MB_TRY(read_settings(wordpiece, model, where));
    *out_wordpiece = wordpiece;
    wordpiece = NULL;
done:
    mb_wordpiece_destroy(&wordpiece);
    return status;
}

void mb_wordpiece_destroy(mb_wordpiece **wordpiece)
{
    if (*wordpiece == NULL) return;
    mb_bpe_vocab_destroy(&(*wordpiece)->vocab);
    mb_piece_trie_destroy(&(*wordpiece)->first);
    mb_piece_trie_destroy(&(*wordpiece)->later);
    MB_FREE(*wordpiece);
}

void mb_wordpiece_hash(const mb_wordpiece *wordpiece, mb_hash *hash)
{
    mb_hash_add_text(hash, wordpiece->settings_hash);
}

const mb_bpe_vocab *mb_wordpiece_vocab(const mb_wordpiece *wordpiece)
{
    return &wordpiece->vocab;
}

mb_status mb_wordpiece_work_create(mb_wordpiece_work **out_work)
{
    mb_status status = MB_OK;
    mb_wordpiece_work *work = NULL;
    MB_NEW(work);
    MB_NEW_ARRAY(work->cache, MB_WORD_CACHE_SLOTS);
    *out_work = work;
    work = NULL;
done:
    mb_wordpiece_work_destroy(&work);
    return status;
}

void mb_wordpiece_work_destroy(mb_wordpiece_work **work)
{
    if (*work == NULL) return;
    mb_free((*work)->cache);
    mb_word_pieces_destroy(&(*work)->pieces);
    MB_FREE(*work);
}

/* 3. encode */

static int64_t count_characters(const char *word, size_t n)
{
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)word[i] & 0xC0) != 0x80;
    return count;
}

/* The longest entry of the trie at the start of text[n]: its bytes, 0 when there is none. */
static size_t find_longest(const mb_piece_trie *trie, const char *text, size_t n, uint32_t *out_id)
{
    size_t longest = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        node = mb_piece_trie_next(trie, node, (unsigned char)text[i]);
        if (node == MB_PIECE_TRIE_NONE) break;
        if (trie->units[node].id == MB_PIECE_TRIE_NONE) continue;
        *out_id = trie->units[node].id;
        longest = i + 1;
    }
    return longest;
}

static mb_status make_pieces(const mb_wordpiece *wordpiece, mb_wordpiece_work *work, const char *word,
                             size_t n)
{
    mb_status status = MB_OK;
    bool known = count_characters(word, n) <= wordpiece->max_characters;
    work->pieces.count = 0;
    for (size_t at = 0, length; known && at < n; at += length) {
        uint32_t id = 0;
        length = find_longest(at == 0 ? &wordpiece->first : &wordpiece->later, word + at, n - at, &id);
        known = length > 0;
        if (known) MB_TRY(mb_word_pieces_add(&work->pieces, id, length));
    }
    if (known) return MB_OK;
    if (wordpiece->unk_id == UINT32_MAX)
        MB_RAISE(MB_EDATA,
                 "the text has a word that the tokenizer's vocabulary cannot make, and its unk_token "
                 "is not in the vocabulary");
    work->pieces.count = 0;
    MB_TRY(mb_word_pieces_add(&work->pieces, wordpiece->unk_id, n));
done:
    return status;
}

mb_status mb_wordpiece_encode(const mb_wordpiece *wordpiece, mb_wordpiece_work *work, const char *word,
                              size_t n, mb_ids *ids, mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    if (n == 0) return MB_OK;
    mb_word_cached *slot = mb_word_cache_slot(work->cache, word, n);
    if (slot != NULL && mb_word_cache_holds(slot, word, n)) return mb_word_cache_get(slot, ids, opt_lengths);
    MB_TRY(make_pieces(wordpiece, work, word, n));
    MB_TRY(mb_word_cache_put(slot, word, n, &work->pieces, ids, opt_lengths));
done:
    return status;
}
