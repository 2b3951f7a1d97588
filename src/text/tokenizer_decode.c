/* tokenizer_decode: token texts -> text, by the steps of the decoder.
 *
 * 1. pieces  2. reading the steps  3. bytes to UTF-8  4. the steps  5. running
 */
#include "text/tokenizer_decode.h"

#include <string.h>

#include "base/memory.h"
#include "text/bpe.h"
#include "text/normalize.h"

typedef enum step_kind {
    STEP_BYTE_LEVEL,
    STEP_REPLACE,
    STEP_BYTE_FALLBACK,
    STEP_FUSE,
    STEP_STRIP,
    STEP_METASPACE,
    STEP_WORDPIECE,
    STEP_BPE,
    STEP_CTC
} step_kind;

typedef struct step {
    step_kind kind;
    mb_tokenizer_pattern *pattern; /* REPLACE */
    /* REPLACE: content; STRIP, METASPACE: the character; WORDPIECE: prefix; BPE: suffix; CTC: pad token */
    char *text;
    int64_t start, stop; /* STRIP: at most so many */
    bool prepends;       /* METASPACE */
    char *delimiter;     /* CTC: becomes a space */
    bool cleans_up;      /* WORDPIECE, CTC */
} step;

struct mb_tokenizer_decoder {
    step *steps;
    int64_t count;
    int64_t capacity;
    bool is_absent; /* no decoder: join with spaces */
};

/* 1. pieces */

void mb_tokenizer_pieces_destroy(mb_tokenizer_pieces *pieces)
{
    mb_str_destroy(&pieces->text);
    mb_free(pieces->ends);
    *pieces = (mb_tokenizer_pieces){0};
}

/* End the piece that was appended to pieces->text. */
static mb_status end_piece(mb_tokenizer_pieces *pieces)
{
    if (pieces->count == pieces->capacity) {
        int64_t capacity = 2 * pieces->capacity + 64;
        size_t *ends = mb_realloc(pieces->ends, (size_t)capacity, sizeof *ends);
        if (ends == NULL) return MB_ENOMEM;
        pieces->ends = ends;
        pieces->capacity = capacity;
    }
    pieces->ends[pieces->count++] = pieces->text.length;
    return MB_OK;
}

mb_status mb_tokenizer_pieces_add(mb_tokenizer_pieces *pieces, const char *bytes, size_t n)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_append(&pieces->text, bytes, n));
    MB_TRY(end_piece(pieces));
done:
    return status;
}

static const char *get_piece(const mb_tokenizer_pieces *pieces, int64_t i, size_t *out_n)
{
    size_t start = i > 0 ? pieces->ends[i - 1] : 0;
    *out_n = pieces->ends[i] - start;
    return mb_str_text(&pieces->text) + start;
}

/* 2. reading the steps */

static mb_status read_character(const json_t *json, const char *key, const char *where, char **out_text)
{
    mb_status status = MB_OK;
    const char *text = NULL;
    uint32_t c;
    MB_TRY(mb_json_get_string(json, key, where, &text));
    if (text[0] == '\0' || mb_normalize_decode(text, &c) != strlen(text))
        MB_RAISE(MB_EFORMAT, "%s: the decoder's \"%s\" must be one character", where, key);
    *out_text = mb_strdup(text);
    if (*out_text == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
done:
    return status;
}

static mb_status read_metaspace(const json_t *json, const char *where, step *s)
{
    mb_status status = MB_OK;
    bool space = true;
    const char *scheme = NULL;
    s->kind = STEP_METASPACE;
    MB_TRY(read_character(json, "replacement", where, &s->text));
    MB_TRY(mb_json_opt_bool(json, "add_prefix_space", where, &space));
    MB_TRY(mb_json_opt_string(json, "prepend_scheme", where, &scheme));
    s->prepends = scheme != NULL ? strcmp(scheme, "never") != 0 : space;
done:
    return status;
}

/* A text that is looked for, so it must not be empty unless can_be_empty. */
static mb_status read_text(const json_t *json, const char *key, const char *where, bool can_be_empty,
                           char **out_text)
{
    mb_status status = MB_OK;
    const char *text = NULL;
    MB_TRY(mb_json_get_string(json, key, where, &text));
    if (text[0] == '\0' && !can_be_empty)
        MB_RAISE(MB_EUNSUPPORTED, "%s: an empty \"%s\" of the decoder is not done here", where, key);
    if ((*out_text = mb_strdup(text)) == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
done:
    return status;
}

static mb_status read_word_step(const json_t *json, const char *type, const char *where, step *s)
{
    mb_status status = MB_OK;
    if (strcmp(type, "WordPiece") == 0) {
        s->kind = STEP_WORDPIECE;
        MB_TRY(read_text(json, "prefix", where, true, &s->text));
        MB_TRY(mb_json_get_bool(json, "cleanup", where, &s->cleans_up));
    } else if (strcmp(type, "BPEDecoder") == 0) {
        s->kind = STEP_BPE;
        MB_TRY(read_text(json, "suffix", where, false, &s->text));
    } else if (strcmp(type, "CTC") == 0) {
        s->kind = STEP_CTC;
        MB_TRY(read_text(json, "pad_token", where, false, &s->text));
        MB_TRY(read_text(json, "word_delimiter_token", where, false, &s->delimiter));
        MB_TRY(mb_json_get_bool(json, "cleanup", where, &s->cleans_up));
    } else {
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: decoder \"%s\" is not done here (ByteLevel, Replace, ByteFallback, Fuse, Strip, "
                 "Metaspace, WordPiece, BPEDecoder, CTC and Sequence are)",
                 where, type);
    }
done:
    return status;
}

static mb_status read_step(const json_t *json, const char *type, const char *where, step *s)
{
    mb_status status = MB_OK;
    const char *content = NULL;
    if (strcmp(type, "ByteLevel") == 0) {
        s->kind = STEP_BYTE_LEVEL;
    } else if (strcmp(type, "ByteFallback") == 0) {
        s->kind = STEP_BYTE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        s->kind = STEP_FUSE;
    } else if (strcmp(type, "Metaspace") == 0) {
        return read_metaspace(json, where, s);
    } else if (strcmp(type, "Strip") == 0) {
        s->kind = STEP_STRIP;
        MB_TRY(read_character(json, "content", where, &s->text));
        MB_TRY(mb_json_get_int(json, "start", where, &s->start));
        MB_TRY(mb_json_get_int(json, "stop", where, &s->stop));
    } else if (strcmp(type, "Replace") == 0) {
        s->kind = STEP_REPLACE;
        MB_TRY(mb_json_get_string(json, "content", where, &content));
        s->text = mb_strdup(content);
        if (s->text == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
        MB_TRY(mb_tokenizer_pattern_read(json_object_get(json, "pattern"), where, &s->pattern));
    } else {
        return read_word_step(json, type, where, s);
    }
done:
    return status;
}

static mb_status read_steps(const json_t *json, const char *where, int depth, mb_tokenizer_decoder *decoder)
{
    mb_status status = MB_OK;
    const char *type = NULL;
    json_t *list = NULL;
    if (depth > 16) MB_RAISE(MB_EUNSUPPORTED, "%s: decoder Sequences are nested more than 16 deep", where);
    MB_TRY(mb_json_get_string(json, "type", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        MB_TRY(mb_json_get_array(json, "decoders", where, &list));
        for (size_t i = 0; i < json_array_size(list); i++)
            MB_TRY(read_steps(json_array_get(list, i), where, depth + 1, decoder));
        return MB_OK;
    }
    if (decoder->count == decoder->capacity) {
        int64_t capacity = 2 * decoder->capacity + 4;
        step *steps = mb_realloc(decoder->steps, (size_t)capacity, sizeof *steps);
        if (steps == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
        decoder->steps = steps;
        decoder->capacity = capacity;
    }
    decoder->steps[decoder->count] = (step){0};
    decoder->count++; /* counted first, so that destroy frees what a failed read leaves */
    MB_TRY(read_step(json, type, where, &decoder->steps[decoder->count - 1]));
done:
    return status;
}

mb_status mb_tokenizer_decoder_read(const json_t *json, const char *where, mb_tokenizer_decoder **out_decoder)
{
    mb_status status = MB_OK;
    mb_tokenizer_decoder *decoder = NULL;
    MB_NEW(decoder);
    decoder->is_absent = json == NULL || json_is_null(json);
    if (!decoder->is_absent) MB_TRY(read_steps(json, where, 0, decoder));
    *out_decoder = decoder;
    decoder = NULL;
done:
    mb_tokenizer_decoder_destroy(&decoder);
    return status;
}

void mb_tokenizer_decoder_destroy(mb_tokenizer_decoder **decoder)
{
    if (*decoder == NULL) return;
    for (int64_t i = 0; i < (*decoder)->count; i++) {
        mb_free((*decoder)->steps[i].text);
        mb_free((*decoder)->steps[i].delimiter);
        mb_tokenizer_pattern_destroy(&(*decoder)->steps[i].pattern);
    }
    mb_free((*decoder)->steps);
    MB_FREE(*decoder);
}

void mb_tokenizer_decoder_hash(const mb_tokenizer_decoder *decoder, mb_hash *hash)
{
    mb_hash_add_int(hash, decoder->is_absent ? -1 : decoder->count);
    for (int64_t i = 0; i < decoder->count; i++) {
        const step *s = &decoder->steps[i];
        mb_hash_add_int(hash, s->kind);
        mb_hash_add_text(hash, s->text != NULL ? s->text : "");
        if (s->pattern != NULL) mb_tokenizer_pattern_hash(s->pattern, hash);
        mb_hash_add_int(hash, s->start);
        mb_hash_add_int(hash, s->stop);
        mb_hash_add_int(hash, s->prepends);
        if (s->kind == STEP_WORDPIECE || s->kind == STEP_CTC) mb_hash_add_int(hash, s->cleans_up);
        if (s->delimiter != NULL) mb_hash_add_text(hash, s->delimiter);
    }
}

/* 3. bytes to UTF-8 */

/* Length of the valid character at p, or minus the length of the broken part that one U+FFFD stands for. */
static int character_length(const unsigned char *p, size_t n)
{
    unsigned char low = 0x80, high = 0xBF;
    int needed;
    if (p[0] < 0x80) return 1;
    if (p[0] >= 0xC2 && p[0] <= 0xDF)
        needed = 2;
    else if (p[0] >= 0xE0 && p[0] <= 0xEF)
        needed = 3;
    else if (p[0] >= 0xF0 && p[0] <= 0xF4)
        needed = 4;
    else
        return -1;
    if (p[0] == 0xE0) low = 0xA0;
    if (p[0] == 0xED) high = 0x9F;
    if (p[0] == 0xF0) low = 0x90;
    if (p[0] == 0xF4) high = 0x8F;
    for (int i = 1; i < needed; i++) {
        if ((size_t)i >= n || p[i] < low || p[i] > high) return -i;
        low = 0x80;
        high = 0xBF;
    }
    return needed;
}

mb_status mb_tokenizer_decode_lossy(const char *bytes, size_t n, mb_str *s)
{
    mb_status status = MB_OK;
    size_t kept = 0;
    for (size_t i = 0; i < n;) {
        int length = character_length((const unsigned char *)bytes + i, n - i);
        if (length > 0) {
            i += (size_t)length;
            continue;
        }
        MB_TRY(mb_str_append(s, bytes + kept, i - kept));
        MB_TRY(mb_str_append(s, "\xEF\xBF\xBD", 3));
        i += (size_t)-length;
        kept = i;
    }
    MB_TRY(mb_str_append(s, bytes + kept, n - kept));
done:
    return status;
}

/* 4. the steps */

/* The bytes that a token's printable characters stand for; the token itself when one of them stands for none.
 */
static mb_status append_bytes(const char *text, size_t n, mb_str *bytes)
{
    mb_status status = MB_OK;
    size_t start = bytes->length;
    uint32_t c;
    for (size_t i = 0; i < n;) {
        i += mb_normalize_decode(text + i, &c);
        int byte = mb_bpe_character_byte(c);
        if (byte < 0) {
            bytes->length = start;
            MB_TRY(mb_str_append(bytes, text, n));
            break;
        }
        MB_TRY(mb_str_append(bytes, &(char){(char)byte}, 1));
    }
done:
    return status;
}

static mb_status run_byte_level(const mb_tokenizer_pieces *in, mb_tokenizer_pieces *out)
{
    mb_status status = MB_OK;
    mb_str bytes = MB_STR_EMPTY;
    size_t n;
    for (int64_t i = 0; i < in->count; i++) {
        const char *text = get_piece(in, i, &n);
        MB_TRY(append_bytes(text, n, &bytes));
    }
    MB_TRY(mb_tokenizer_decode_lossy(mb_str_text(&bytes), bytes.length, &out->text));
    MB_TRY(end_piece(out));
done:
    mb_str_destroy(&bytes);
    return status;
}

/* The byte of a token "<0xNN>", else -1. */
static int fallback_byte(const char *text, size_t n)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const char *high = memchr(digits, text[3], 32), *low = memchr(digits, text[4], 32);
    if (text[3] == '+' && low != NULL) return (int)((low - digits) % 16); /* Rust's parser takes a sign */
    return high == NULL || low == NULL ? -1 : (int)((high - digits) % 16 * 16 + (low - digits) % 16);
}

/* Bytes that came one after the other: one text when they are UTF-8, else a U+FFFD for each. */
static mb_status flush_bytes(mb_str *bytes, mb_tokenizer_pieces *out)
{
    mb_status status = MB_OK;
    if (bytes->length == 0) return MB_OK;
    if (mb_str_is_utf8(bytes->data, bytes->length, NULL))
        MB_TRY(mb_tokenizer_pieces_add(out, bytes->data, bytes->length));
    else
        for (size_t i = 0; i < bytes->length; i++) MB_TRY(mb_tokenizer_pieces_add(out, "\xEF\xBF\xBD", 3));
    mb_str_reset(bytes);
done:
    return status;
}

static mb_status run_byte_fallback(const mb_tokenizer_pieces *in, mb_tokenizer_pieces *out)
{
    mb_status status = MB_OK;
    mb_str bytes = MB_STR_EMPTY;
    size_t n;
    for (int64_t i = 0; i < in->count; i++) {
        const char *text = get_piece(in, i, &n);
        int byte = fallback_byte(text, n);
        if (byte >= 0) {
            MB_TRY(mb_str_append(&bytes, &(char){(char)byte}, 1));
            continue;
        }
        MB_TRY(flush_bytes(&bytes, out));
        MB_TRY(mb_tokenizer_pieces_add(out, text, n));
    }
    MB_TRY(flush_bytes(&bytes, out));
done:
    mb_str_destroy(&bytes);
    return status;
}

static mb_status run_replace(const step *s, mb_tokenizer_matcher *matcher, const char *text, size_t n,
                             mb_str *out)
{
    mb_status status = MB_OK;
    for (size_t from = 0, first, end; from < n; from = end) {
        MB_TRY(mb_tokenizer_pattern_find(s->pattern, matcher, text, n, from, &first, &end));
        MB_TRY(mb_str_append(out, text + from, first - from));
        if (first < end) MB_TRY(mb_str_add(out, s->text));
    }
done:
    return status;
}

static mb_status run_strip(const step *s, const char *text, size_t n, mb_str *out)
{
    size_t length = strlen(s->text), first = 0, end = n;
    for (int64_t i = 0; i < s->start && end - first >= length && memcmp(text + first, s->text, length) == 0;
         i++)
        first += length;
    for (int64_t i = 0;
         i < s->stop && end - first >= length && memcmp(text + end - length, s->text, length) == 0; i++)
        end -= length;
    return mb_str_append(out, text + first, end - first);
}

static mb_status run_metaspace(const step *s, bool is_first, const char *text, size_t n, mb_str *out)
{
    mb_status status = MB_OK;
    size_t length = strlen(s->text), from = 0;
    const char *at;
    while (from < n && (at = memmem(text + from, n - from, s->text, length)) != NULL) {
        MB_TRY(mb_str_append(out, text + from, (size_t)(at - text) - from));
        if (!is_first || !s->prepends) MB_TRY(mb_str_append(out, " ", 1));
        from = (size_t)(at - text) + length;
    }
    MB_TRY(mb_str_append(out, text + from, n - from));
done:
    return status;
}

/* Every `from` in bytes [start, end) of s becomes `to`, which must not be longer. */
static void replace_all(mb_str *s, size_t start, const char *from, const char *to)
{
    const size_t nf = strlen(from), nt = strlen(to);
    size_t kept = start, at = start;
    while (at < s->length) {
        if (s->length - at >= nf && memcmp(s->data + at, from, nf) == 0) {
            memcpy(s->data + kept, to, nt);
            kept += nt;
            at += nf;
        } else {
            s->data[kept++] = s->data[at++];
        }
    }
    s->length = kept;
    if (s->data != NULL) s->data[kept] = 0;
}

/* As HF cleans up one token: no space before signs and short forms. */
static void clean_up(mb_str *s, size_t start)
{
    static const char *const pairs[][2] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    if (s->data == NULL || memchr(s->data + start, ' ', s->length - start) == NULL) return;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        replace_all(s, start, pairs[i][0], pairs[i][1]);
}

static mb_status run_wordpiece(const step *s, bool is_first, const char *text, size_t n, mb_str *out)
{
    mb_status status = MB_OK;
    const size_t start = out->length, skip = strlen(s->text);
    const bool goes_on = n >= skip && memcmp(text, s->text, skip) == 0;
    if (!is_first && !goes_on) MB_TRY(mb_str_append(out, " ", 1));
    if (!is_first && goes_on)
        MB_TRY(mb_str_append(out, text + skip, n - skip));
    else
        MB_TRY(mb_str_append(out, text, n));
    if (s->cleans_up) clean_up(out, start);
done:
    return status;
}

static mb_status run_bpe(const step *s, bool is_last, const char *text, size_t n, mb_str *out)
{
    mb_status status = MB_OK;
    const size_t length = strlen(s->text);
    size_t from = 0;
    const char *at;
    while (from < n && (at = memmem(text + from, n - from, s->text, length)) != NULL) {
        MB_TRY(mb_str_append(out, text + from, (size_t)(at - text) - from));
        if (!is_last) MB_TRY(mb_str_append(out, " ", 1));
        from = (size_t)(at - text) + length;
    }
    MB_TRY(mb_str_append(out, text + from, n - from));
done:
    return status;
}

/* Equal tokens in a row are one; pads and what is then empty go. */
static mb_status run_ctc(const step *s, const mb_tokenizer_pieces *in, mb_tokenizer_pieces *out)
{
    mb_status status = MB_OK;
    const char *before = NULL;
    size_t before_n = 0, n;
    for (int64_t i = 0; i < in->count; i++) {
        const char *text = get_piece(in, i, &n);
        const size_t start = out->text.length;
        const bool again = before != NULL && before_n == n && memcmp(before, text, n) == 0;
        before = text;
        before_n = n;
        if (again) continue;
        MB_TRY(mb_str_append(&out->text, text, n));
        replace_all(&out->text, start, s->text, "");
        if (s->cleans_up) {
            clean_up(&out->text, start);
            replace_all(&out->text, start, s->delimiter, " ");
        }
        if (out->text.length > start) MB_TRY(end_piece(out));
    }
done:
    return status;
}

/* 5. running */

static mb_status run_step(const step *s, mb_tokenizer_matcher *matcher, const mb_tokenizer_pieces *in,
                          mb_tokenizer_pieces *out)
{
    mb_status status = MB_OK;
    size_t n;
    if (s->kind == STEP_BYTE_LEVEL) return run_byte_level(in, out);
    if (s->kind == STEP_BYTE_FALLBACK) return run_byte_fallback(in, out);
    if (s->kind == STEP_CTC) return run_ctc(s, in, out);
    if (s->kind == STEP_FUSE) return mb_tokenizer_pieces_add(out, mb_str_text(&in->text), in->text.length);
    for (int64_t i = 0; i < in->count; i++) {
        const char *text = get_piece(in, i, &n);
        if (s->kind == STEP_REPLACE)
            MB_TRY(run_replace(s, matcher, text, n, &out->text));
        else if (s->kind == STEP_STRIP)
            MB_TRY(run_strip(s, text, n, &out->text));
        else if (s->kind == STEP_WORDPIECE)
            MB_TRY(run_wordpiece(s, i == 0, text, n, &out->text));
        else if (s->kind == STEP_BPE)
            MB_TRY(run_bpe(s, i + 1 == in->count, text, n, &out->text));
        else
            MB_TRY(run_metaspace(s, i == 0, text, n, &out->text));
        MB_TRY(end_piece(out));
    }
done:
    return status;
}

static mb_status join_with_spaces(const mb_tokenizer_pieces *pieces, mb_str *s)
{
    mb_status status = MB_OK;
    size_t n;
    for (int64_t i = 0; i < pieces->count; i++) {
        const char *text = get_piece(pieces, i, &n);
        if (i > 0) MB_TRY(mb_str_append(s, " ", 1));
        MB_TRY(mb_str_append(s, text, n));
    }
done:
    return status;
}

mb_status mb_tokenizer_decoder_run(const mb_tokenizer_decoder *decoder, mb_tokenizer_pieces *pieces,
                                   mb_str *s)
{
    mb_status status = MB_OK;
    mb_tokenizer_matcher *matcher = NULL;
    mb_tokenizer_pieces other = {0};
    if (decoder->is_absent) return join_with_spaces(pieces, s);
    for (int64_t i = 0; i < decoder->count; i++) {
        if (decoder->steps[i].pattern != NULL && matcher == NULL)
            MB_TRY(mb_tokenizer_matcher_create(&matcher));
        mb_str_reset(&other.text);
        other.count = 0;
        MB_TRY(run_step(&decoder->steps[i], matcher, pieces, &other));
        mb_tokenizer_pieces swap = *pieces;
        *pieces = other;
        other = swap;
    }
    MB_TRY(mb_str_append(s, mb_str_text(&pieces->text), pieces->text.length));
done:
    mb_tokenizer_matcher_destroy(&matcher);
    mb_tokenizer_pieces_destroy(&other);
    return status;
}
