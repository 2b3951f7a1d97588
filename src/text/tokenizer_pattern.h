/* tokenizer_pattern: the patterns of a tokenizer.json ({"String": ...} or {"Regex": ...}) on PCRE2.
 *
 * Layer: text.  Uses: base, PCRE2 (only tokenizer_pattern.c includes it).
 *
 * The files are written for Oniguruma (Ruby syntax). A regular expression is rewritten where the two differ
 * (\s, \uHHHH), and refused (MB_EUNSUPPORTED) where it uses something that means another thing in PCRE2 or
 * could match nothing.
 */
#ifndef MB_TOKENIZER_PATTERN_H
#define MB_TOKENIZER_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/json.h"

typedef struct mb_tokenizer_pattern mb_tokenizer_pattern;
typedef struct mb_tokenizer_matcher mb_tokenizer_matcher; /* per thread: match data and stack */

/* From JSON, or from the text of a regular expression. `where` names file and component in messages. */
mb_status mb_tokenizer_pattern_read(const json_t *json, const char *where,
                                    mb_tokenizer_pattern **out_pattern);
mb_status mb_tokenizer_pattern_compile(const char *regex, const char *where,
                                       mb_tokenizer_pattern **out_pattern);
void mb_tokenizer_pattern_destroy(mb_tokenizer_pattern **pattern);
void mb_tokenizer_pattern_hash(const mb_tokenizer_pattern *pattern, mb_hash *hash);

mb_status mb_tokenizer_matcher_create(mb_tokenizer_matcher **out_matcher);
void mb_tokenizer_matcher_destroy(mb_tokenizer_matcher **matcher);

/* First match at or after byte `from` of valid UTF-8 text[n]; *out_first == n (and *out_end == n) when there
 * is none. Matches are never empty. MB_EUNSUPPORTED: PCRE2 gave up (its limits). */
mb_status mb_tokenizer_pattern_find(const mb_tokenizer_pattern *pattern, mb_tokenizer_matcher *matcher,
                                    const char *text, size_t n, size_t from, size_t *out_first,
                                    size_t *out_end);

#endif
