/* stream: the text of an answer piece by piece, as soon as no later token can change it. */
#include "serve/stream.h"

#include <ctype.h>
#include <string.h>

enum {
    WINDOW = 48
}; /* tokens after which the window moves on, at the next place where nothing is held back */

void mb_stream_reset(mb_stream *stream)
{
    mb_str_destroy(&stream->text);
    *stream = (mb_stream){0};
}

static bool is_byte(const char *token)
{
    return strlen(token) == 6 && strncmp(token, "<0x", 3) == 0 && isxdigit((unsigned char)token[3]) &&
           isxdigit((unsigned char)token[4]) && token[5] == '>';
}

/* Does the text up to this token stand whatever follows it? Not behind a token of one byte, whose run decodes
 * as a whole, nor behind one without a text (special ones), which a run goes on across. */
static mb_status is_firm(const mb_tokenizer *tokenizer, uint32_t id, mb_str *text, bool *out_firm)
{
    mb_status status = MB_OK;
    const char *token = mb_tokenizer_token(tokenizer, id);
    *out_firm = false;
    if (token == NULL || is_byte(token)) goto done;
    mb_str_reset(text);
    MB_TRY(mb_tokenizer_decode(tokenizer, &id, 1, true, text));
    *out_firm = text->length > 0;
done:
    return status;
}

/* Bytes at the end of text that are U+FFFD: characters that may be whole with the next token. */
static size_t broken_bytes(const char *text, size_t n)
{
    size_t held = 0;
    while (n - held >= 3 && memcmp(text + n - held - 3, "\xEF\xBF\xBD", 3) == 0) held += 3;
    return held;
}

/* Longest end of text that a stop string begins with. */
static size_t stop_bytes(const mb_answer_stops *stops, const char *text, size_t n)
{
    size_t held = 0;
    for (int64_t i = 0; i < stops->count; i++) {
        const size_t most = strlen(stops->strings[i]) - 1;
        for (size_t k = most < n ? most : n; k > held; k--)
            if (memcmp(text + n - k, stops->strings[i], k) == 0) held = k;
    }
    return held;
}

mb_status mb_stream_push(mb_stream *stream, const mb_tokenizer *tokenizer, const mb_answer_stops *stops,
                         const uint32_t *ids, int64_t prompt, int64_t count, const char **out_text,
                         size_t *out_length)
{
    mb_status status = MB_OK;
    int64_t end = count;
    if (stream->base < prompt) stream->base = prompt;
    for (bool firm = false; end > stream->base; end--) {
        MB_TRY(is_firm(tokenizer, ids[end - 1], &stream->text, &firm));
        if (firm) break;
    }
    mb_str_reset(&stream->text);
    MB_TRY(
        mb_answer_text(tokenizer, ids, stream->base, ids + stream->base, end - stream->base, &stream->text));
    const char *text = mb_str_text(&stream->text);
    const size_t n = stream->text.length, whole = n - broken_bytes(text, n),
                 last = whole - stop_bytes(stops, text, whole), given = stream->given;
    *out_text = text + given;
    *out_length = last > given ? last - given : 0;
    stream->given += *out_length;
    if (end == count && last == n && stream->given == n && end - stream->base >= WINDOW) {
        stream->before += stream->given;
        stream->given = 0;
        stream->base = end;
    }
done:
    return status;
}

void mb_stream_end(const mb_stream *stream, const char *whole, size_t n, const char **out_text,
                   size_t *out_length)
{
    const size_t given = stream->before + stream->given;
    *out_text = whole + (given < n ? given : n);
    *out_length = given < n ? n - given : 0;
}
