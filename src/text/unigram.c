/* unigram: reads the Unigram model of a tokenizer.json and finds the best pieces of a word.
 *
 * 1. scores  2. reading  3. create and access  4. best path  5. pieces  6. encode
 */
#include "text/unigram.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "text/normalize.h"
#include "text/piece_trie.h"
#include "text/word_cache.h"

#define NONE        UINT32_MAX
#define EXACT_POWER 22   /* the highest power of ten that a double holds exactly */
#define PENALTY     10.0 /* an unknown character's score is so far below the lowest */

struct mb_unigram {
    mb_bpe_vocab vocab;
    mb_piece_trie trie;
    double *scores;   /* per id */
    double unk_score; /* of an unknown character */
    uint32_t unk_id;  /* NONE: there is none */
    bool byte_fallback;
    uint32_t byte_id[256]; /* of "<0xNN>", NONE */
    char settings_hash[MB_HASH_TEXT];
};

/* The best path that ends at a byte of the word. */
typedef struct path {
    double score;
    uint32_t start; /* of its last piece; NONE: no path ends here */
    uint32_t id;
} path;

struct mb_unigram_work {
    path *paths;
    size_t capacity;
    mb_word_pieces found; /* of a path, last piece first; id is the node's */
    mb_word_pieces pieces;
    mb_word_cached *cache;
};

/* 1. scores */

/* The decimal digits of a value and the power of ten behind them: as few as give the value back. */
static void shortest_digits(double value, uint64_t *out_digits, int *out_exponent)
{
    char text[40] = "", shorter[40];
    for (int precision = 17; precision >= 1; precision--) {
        snprintf(shorter, sizeof shorter, "%.*e", precision - 1, value);
        if (precision < 17 && strtod(shorter, NULL) != value) break;
        memcpy(text, shorter, sizeof text);
    }
    uint64_t digits = 0;
    int behind = 0;
    bool point = false;
    const char *p = text;
    for (; *p != 'e' && *p != '\0'; p++) {
        if (*p == '.') point = true;
        if (*p < '0' || *p > '9') continue;
        digits = digits * 10 + (uint64_t)(*p - '0');
        behind += point;
    }
    *out_digits = digits;
    *out_exponent = (*p == 'e' ? atoi(p + 1) : 0) - behind;
}

/* A value that is an integer below 2^53 by a power of ten up to 10^22 comes out of serde_json's one division
 * as itself, whichever of its shortest forms is in the file: both sides of the division are exact. */
static bool is_short(double value)
{
    double power = 1;
    for (int k = 0; k <= EXACT_POWER && value * power < 9e15; k++, power *= 10)
        if (rint(value * power) / power == value) return true;
    return false;
}

static double power_of_ten(int n) /* n from 0 to 308 */
{
    char text[16];
    double power = 1;
    if (n > EXACT_POWER) {
        snprintf(text, sizeof text, "1e%d", n);
        return strtod(text, NULL);
    }
    for (int k = 0; k < n; k++) power *= 10;
    return power;
}

double mb_unigram_score(double value)
{
    uint64_t digits = 0;
    int exponent = 0;
    if (value == 0 || !isfinite(value) || is_short(fabs(value))) return value;
    shortest_digits(fabs(value), &digits, &exponent);
    double score = (double)digits;
    for (; exponent < -308; exponent += 308) score /= 1e308;
    score = exponent < 0 ? score / power_of_ten(-exponent) : score * power_of_ten(exponent);
    return value < 0 ? -score : score;
}

/* 2. reading */

static mb_status read_entry(mb_unigram *unigram, const json_t *entry, const char *where, size_t index)
{
    mb_status status = MB_OK;
    const json_t *text = json_array_get(entry, 0), *score = json_array_get(entry, 1);
    if (json_array_size(entry) != 2 || !json_is_string(text) || !json_is_number(score))
        MB_RAISE(MB_EFORMAT, "%s: model.vocab entry %zu must be [text, score]", where, index);
    double value = json_number_value(score);
    if (!isfinite(value)) MB_RAISE(MB_EFORMAT, "%s: model.vocab entry %zu has no finite score", where, index);
    unigram->scores[index] = json_is_real(score) ? mb_unigram_score(value) : value;
    status =
        mb_bpe_vocab_add(&unigram->vocab, json_string_value(text), json_string_length(text), (uint32_t)index);
    if (status == MB_EEXIST)
        MB_RAISE(MB_EUNSUPPORTED, "%s: model.vocab entry %zu, \"%s\", is there twice; that is not done here",
                 where, index, json_string_value(text));
    MB_TRY(status);
done:
    return status;
}

static mb_status build_trie(mb_unigram *unigram)
{
    mb_status status = MB_OK;
    mb_piece_text *texts = NULL;
    int64_t count = unigram->vocab.count;
    MB_NEW_ARRAY(texts, count);
    for (int64_t i = 0; i < count; i++) {
        texts[i].text = mb_bpe_vocab_text(&unigram->vocab, (uint32_t)i, &texts[i].n);
        texts[i].id = (uint32_t)i;
    }
    MB_TRY(mb_piece_trie_build(&unigram->trie, texts, count));
done:
    mb_free(texts);
    return status;
}

static mb_status read_vocab(mb_unigram *unigram, const json_t *list, const char *where, mb_hash *hash)
{
    mb_status status = MB_OK;
    size_t count = json_array_size(list);
    double lowest = INFINITY;
    if (count == 0 || count >= MB_BPE_VOCAB_MAX_ID)
        MB_RAISE(MB_EFORMAT, "%s: model.vocab must have 1 to %u entries", where, MB_BPE_VOCAB_MAX_ID - 1);
    MB_NEW_ARRAY(unigram->scores, count);
    for (size_t i = 0; i < count; i++) {
        MB_TRY(read_entry(unigram, json_array_get(list, i), where, i));
        if (unigram->scores[i] < lowest) lowest = unigram->scores[i];
    }
    mb_hash_add(hash, unigram->scores, count * sizeof *unigram->scores);
    unigram->unk_score = lowest - PENALTY;
    for (int b = 0; b < 256; b++) {
        char text[8];
        size_t n = (size_t)snprintf(text, sizeof text, "<0x%02X>", b);
        unigram->byte_id[b] = mb_bpe_vocab_find(&unigram->vocab, text, n);
    }
    MB_TRY(build_trie(unigram));
done:
    return status;
}

static mb_status read_settings(mb_unigram *unigram, const json_t *model, const char *where, mb_hash *hash)
{
    mb_status status = MB_OK;
    int64_t unk = -1;
    const json_t *value = json_object_get(model, "unk_id");
    MB_TRY(mb_json_opt_int(model, "unk_id", where, &unk));
    MB_TRY(mb_json_opt_bool(model, "byte_fallback", where, &unigram->byte_fallback));
    if (json_is_integer(value) && (unk < 0 || unk >= unigram->vocab.count))
        MB_RAISE(MB_EFORMAT, "%s: model.unk_id is %lld, outside the vocabulary", where, (long long)unk);
    unigram->unk_id = unk < 0 ? NONE : (uint32_t)unk;
    mb_hash_add_int(hash, unk);
    mb_hash_add_int(hash, unigram->byte_fallback);
done:
    return status;
}

/* 3. create and access */

mb_status mb_unigram_read(const json_t *model, const char *where, mb_unigram **out_unigram)
{
    mb_status status = MB_OK;
    mb_unigram *unigram = NULL;
    mb_hash *hash = NULL;
    json_t *vocab = NULL;
    MB_NEW(unigram);
    MB_TRY(mb_hash_create(&hash));
    MB_TRY(mb_json_get_array(model, "vocab", where, &vocab));
    MB_TRY(read_vocab(unigram, vocab, where, hash));
    MB_TRY(read_settings(unigram, model, where, hash));
    mb_hash_get(hash, unigram->settings_hash);
    *out_unigram = unigram;
    unigram = NULL;
done:
    mb_hash_destroy(&hash);
    mb_unigram_destroy(&unigram);
    return status;
}

void mb_unigram_destroy(mb_unigram **unigram)
{
    if (*unigram == NULL) return;
    mb_bpe_vocab_destroy(&(*unigram)->vocab);
    mb_piece_trie_destroy(&(*unigram)->trie);
    mb_free((*unigram)->scores);
    MB_FREE(*unigram);
}

void mb_unigram_hash(const mb_unigram *unigram, mb_hash *hash)
{
    mb_hash_add_text(hash, unigram->settings_hash);
}

const mb_bpe_vocab *mb_unigram_vocab(const mb_unigram *unigram)
{
    return &unigram->vocab;
}

mb_status mb_unigram_work_create(mb_unigram_work **out_work)
{
    mb_status status = MB_OK;
    mb_unigram_work *work = NULL;
    MB_NEW(work);
    MB_NEW_ARRAY(work->cache, MB_WORD_CACHE_SLOTS);
    *out_work = work;
    work = NULL;
done:
    mb_unigram_work_destroy(&work);
    return status;
}

void mb_unigram_work_destroy(mb_unigram_work **work)
{
    if (*work == NULL) return;
    mb_free((*work)->paths);
    mb_free((*work)->cache);
    mb_word_pieces_destroy(&(*work)->found);
    mb_word_pieces_destroy(&(*work)->pieces);
    MB_FREE(*work);
}

/* 4. best path */

static mb_status reserve_paths(mb_unigram_work *work, size_t n)
{
    if (n > work->capacity) {
        size_t capacity = n + n / 2 + 256;
        path *paths = mb_realloc(work->paths, capacity, sizeof *paths);
        if (paths == NULL) return MB_ENOMEM;
        work->paths = paths;
        work->capacity = capacity;
    }
    for (size_t i = 0; i < n; i++) work->paths[i] = (path){.start = NONE};
    return MB_OK;
}

static inline void offer(path *end, double score, size_t start, uint32_t id)
{
    if (end->start == NONE || score > end->score) *end = (path){score, (uint32_t)start, id};
}

static size_t character_bytes(unsigned char first)
{
    return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

static mb_status find_paths(const mb_unigram *unigram, mb_unigram_work *work, const char *word, size_t n)
{
    mb_status status = MB_OK;
    const mb_piece_trie *trie = &unigram->trie;
    MB_TRY(reserve_paths(work, n + 1));
    path *paths = work->paths;
    for (size_t start = 0, length; start < n; start += length) {
        const double score = paths[start].score;
        bool has_single = false;
        length = character_bytes((unsigned char)word[start]);
        uint32_t node = 0;
        for (size_t i = start; i < n; i++) {
            node = mb_piece_trie_next(trie, node, (unsigned char)word[i]);
            if (node == MB_PIECE_TRIE_NONE) break;
            uint32_t id = trie->units[node].id;
            if (id == MB_PIECE_TRIE_NONE) continue;
            offer(&paths[i + 1], unigram->scores[id] + score, start, id);
            if (i + 1 - start == length) has_single = true;
        }
        if (has_single) continue;
        path *end = &paths[start + length];
        double unknown = unigram->unk_score + score;
        if (unigram->unk_id == NONE && (end->start == NONE || unknown > end->score))
            MB_RAISE(MB_EDATA, "the text has a character that is not in the tokenizer's vocabulary, and its "
                               "model has no unk_id");
        offer(end, unknown, start, unigram->unk_id);
    }
done:
    return status;
}

/* 5. pieces */

/* Bytes that are no piece: their byte tokens, or the unknown token. */
static mb_status add_unknown(const mb_unigram *unigram, mb_unigram_work *work, const char *text, size_t n)
{
    mb_status status = MB_OK;
    uint32_t id = mb_bpe_vocab_find(&unigram->vocab, text, n); /* fused ones may be a piece together */
    bool falls_back = id == NONE && unigram->byte_fallback;
    for (size_t i = 0; falls_back && i < n; i++)
        falls_back = unigram->byte_id[(unsigned char)text[i]] != NONE;
    if (!falls_back) return mb_word_pieces_add(&work->pieces, id != NONE ? id : unigram->unk_id, n);
    for (size_t i = 0; i < n; i++)
        MB_TRY(mb_word_pieces_add(&work->pieces, unigram->byte_id[(unsigned char)text[i]], 1));
done:
    return status;
}

static mb_status make_pieces(const mb_unigram *unigram, mb_unigram_work *work, const char *word, size_t n)
{
    mb_status status = MB_OK;
    work->found.count = work->pieces.count = 0;
    for (size_t end = n; end > 0; end = work->paths[end].start)
        MB_TRY(mb_word_pieces_add(&work->found, work->paths[end].id, end - work->paths[end].start));
    size_t at = 0, unknown = 0; /* bytes of unknown pieces right before `at` */
    for (int64_t i = work->found.count - 1; i >= 0; i--) {
        const mb_word_piece *piece = &work->found.data[i];
        if (unigram->unk_id != NONE && piece->id == unigram->unk_id) {
            unknown += piece->length;
        } else {
            if (unknown > 0) MB_TRY(add_unknown(unigram, work, word + at - unknown, unknown));
            unknown = 0;
            MB_TRY(mb_word_pieces_add(&work->pieces, piece->id, piece->length));
        }
        at += piece->length;
    }
    if (unknown > 0) MB_TRY(add_unknown(unigram, work, word + at - unknown, unknown));
done:
    return status;
}

/* 6. encode */

mb_status mb_unigram_encode(const mb_unigram *unigram, mb_unigram_work *work, const char *word, size_t n,
                            mb_ids *ids, mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    if (n == 0) return MB_OK;
    mb_word_cached *slot = mb_word_cache_slot(work->cache, word, n);
    if (slot != NULL && mb_word_cache_holds(slot, word, n)) return mb_word_cache_get(slot, ids, opt_lengths);
    MB_TRY(find_paths(unigram, work, word, n));
    MB_TRY(make_pieces(unigram, work, word, n));
    MB_TRY(mb_word_cache_put(slot, word, n, &work->pieces, ids, opt_lengths));
done:
    return status;
}
