/* answer_match: is a generated answer the expected one?
 *
 * Layer: text.  Uses: base, utf8proc.
 * Source: normalisation as in Rajpurkar et al. (2016) SQuAD (without leaving out articles); the last number
 * of an answer as in Cobbe et al. (2021) GSM8K.
 */
#ifndef MB_ANSWER_MATCH_H
#define MB_ANSWER_MATCH_H

#include <stdbool.h>

#include "base/str.h"

typedef enum mb_answer_match {
    MB_ANSWER_MATCH_TEXT,  /* the normalised texts are equal */
    MB_ANSWER_MATCH_NUMBER /* the last numbers of both are equal */
} mb_answer_match;
/* "text", "number". MB_EUSAGE for anything else. */
mb_status mb_answer_match_parse(const char *name, mb_answer_match *out_match);
const char *mb_answer_match_name(mb_answer_match match);

/* Append the text [n] without white space around it, each run of white space in it as one space, letters
 * folded (Unicode's full case folding after NFC), marks that end a sentence (. , ; : ! ? and their wide
 * forms) left out at its end. MB_EDATA: not UTF-8. */
mb_status mb_answer_match_text(const char *text, size_t n, mb_str *s);
/* Append the last number in the text: digits, commas between groups of three left out, a decimal part
 * without zeros behind, a minus sign that is no dash between words or digits: "$1,250.50" gives 1250.5.
 * *out_has false: there is none. */
mb_status mb_answer_match_number(const char *text, size_t n, mb_str *s, bool *out_has);
/* Compare. An answer without a number is wrong; an expected one without is MB_EDATA. */
mb_status mb_answer_match_check(mb_answer_match match, const char *expected, size_t expected_n,
                                const char *answer, size_t answer_n, bool *out_is_equal);

#endif
