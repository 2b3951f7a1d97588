/* answer: ids of an answer -> its text, and where a stop string ends it.
 *
 * Layer: serve.  Uses: text (tokenizer).
 *
 * An answer's text is what it adds to the prompt's: both are decoded with the prompt's last tokens in
 * front, so that spaces and characters cut at the border come out right. Special tokens are left out.
 */
#ifndef MB_ANSWER_H
#define MB_ANSWER_H

#include "text/tokenizer.h"

/* Append the text of answer [n], which follows prompt [prompt_count]. */
mb_status mb_answer_text(const mb_tokenizer *tokenizer, const uint32_t *prompt, int64_t prompt_count,
                         const uint32_t *answer, int64_t n, mb_str *text);

/* Stop strings. Start zeroed. */
typedef struct mb_answer_stops {
    char **strings;
    int64_t count;
    size_t longest; /* bytes */
} mb_answer_stops;
/* From an option: a JSON list of strings, or one string as it stands; NULL or "" none. MB_EUSAGE for
 * anything else and for empty strings. */
mb_status mb_answer_stops_read(const char *option, mb_answer_stops *stops);
void mb_answer_stops_reset(mb_answer_stops *stops);
/* Byte of the first stop string in text, -1 when there is none. */
int64_t mb_answer_stops_find(const mb_answer_stops *stops, const char *text, size_t n);
/* Has the last token of the answer completed a stop string? Then *out_found, and text holds the answer's
 * text cut before it. Looks at the last tokens only: cost does not grow with the answer. text is work space
 * otherwise. */
mb_status mb_answer_stops_check(const mb_answer_stops *stops, const mb_tokenizer *tokenizer,
                                const uint32_t *prompt, int64_t prompt_count, const uint32_t *answer,
                                int64_t n, mb_str *text, bool *out_found);

#endif
