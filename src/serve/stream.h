/* stream: the text of an answer piece by piece, as soon as no later token can change it.
 *
 * Layer: serve.  Uses: text (tokenizer), answer.
 *
 * Held back until more is known: characters whose last bytes are still to come, runs of byte tokens
 * (SentencePiece's <0x..>, which decode together), and what may be the beginning of a stop string. The pieces
 * make up the answer's text as mb_answer_text gives it. Cost of a token: decoding of the last few dozen.
 */
#ifndef MB_STREAM_H
#define MB_STREAM_H

#include "serve/answer.h"

/* Of one answer. Start zeroed. */
typedef struct mb_stream {
    int64_t base;  /* tokens of prompt and answer before the window that is decoded */
    size_t given;  /* bytes of the window's text that were handed out */
    size_t before; /* bytes handed out of what lies before the window */
    mb_str text;   /* of the window */
} mb_stream;
void mb_stream_reset(mb_stream *stream);

/* The answer has grown: ids [count] are prompt and answer, the first `prompt` of them the prompt (0: a text
 * by itself). *out_text [*out_length]: what became final, "" when nothing did; borrowed until the next
 * call. */
mb_status mb_stream_push(mb_stream *stream, const mb_tokenizer *tokenizer, const mb_answer_stops *stops,
                         const uint32_t *ids, int64_t prompt, int64_t count, const char **out_text,
                         size_t *out_length);
/* The rest of the answer's whole text [n], behind what was handed out. */
void mb_stream_end(const mb_stream *stream, const char *whole, size_t n, const char **out_text,
                   size_t *out_length);

#endif
