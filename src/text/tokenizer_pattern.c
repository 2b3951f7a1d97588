/* tokenizer_pattern: Oniguruma patterns of a tokenizer.json, run by PCRE2 with its JIT.
 *
 * 1. rewriting of the syntax  2. create and destroy  3. matcher and find
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/tokenizer_pattern.h"

#include <pcre2.h>
#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_letters.h"

/* White_Space as Oniguruma's \s has it; PCRE2's own \s has U+180E too. */
#define WHITE                                                                                                \
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

struct mb_tokenizer_pattern {
    char *source; /* as in the file */
    size_t length;
    pcre2_code *code; /* NULL: `source` is looked for as it stands */
    bool has_jit;
};

struct mb_tokenizer_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* 1. rewriting of the syntax */

/* A class escape and more ranges, inside or outside of brackets. */
static mb_status add_class(const char *escape, const char *ranges, bool in_class, mb_str *s)
{
    return mb_str_add_format(s, in_class ? "%s%s" : "[%s%s]", escape, ranges);
}

/* \p{Name} at p, with the characters that Unicode added to it after PCRE2's tables. */
static mb_status rewrite_property(const char *p, bool in_class, const char *where, mb_str *s,
                                  size_t *out_read)
{
    mb_status status = MB_OK;
    char *escape = NULL;
    const char *end = p[2] == '{' ? strchr(p, '}') : NULL;
    if (end == NULL || p[3] == '^')
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: \\p in a regular expression must be followed by {name}; \\p{^name} is not done here",
                 where);
    *out_read = (size_t)(end - p) + 1;
    escape = mb_strndup(p, *out_read);
    if (escape == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a pattern", where);
    MB_TRY(add_class(escape, mb_tokenizer_letters_find(p + 3, (size_t)(end - p) - 3), in_class, s));
done:
    mb_free(escape);
    return status;
}

/* One escape sequence at p (p[0] is the backslash): append its PCRE2 form, give the number of characters
 * read. */
static mb_status rewrite_escape(const char *p, bool in_class, const char *where, mb_str *s, size_t *out_read)
{
    mb_status status = MB_OK;
    *out_read = 2;
    switch (p[1]) {
    case '\0':
        MB_RAISE(MB_EFORMAT, "%s: the pattern ends in a single backslash", where);
    case 's':
        MB_TRY(mb_str_add(s, in_class ? WHITE : "[" WHITE "]"));
        break;
    case 'S':
        MB_TRY(mb_str_add(s, in_class ? "\\S" : "[^" WHITE "]"));
        break;
    case 'd':
        MB_TRY(add_class("\\p{Nd}", mb_tokenizer_letters_find("Nd", 2), in_class, s));
        break;
    case 'p':
        MB_TRY(rewrite_property(p, in_class, where, s, out_read));
        break;
    case 'u':
        if (strspn(p + 2, "0123456789abcdefABCDEF") < 4)
            MB_RAISE(MB_EUNSUPPORTED, "%s: \\u in a pattern must be followed by 4 hexadecimal digits", where);
        MB_TRY(mb_str_add_format(s, "\\x{%.4s}", p + 2));
        *out_read = 6;
        break;
    case 'x':
        if (p[2] == '{' && strchr(p, '}') != NULL) *out_read = (size_t)(strchr(p, '}') - p) + 1;
        MB_TRY(mb_str_append(s, p, *out_read));
        break;
    default: /* a letter: only those that mean the same in both; anything else stands for itself */
        if (((p[1] | 0x20) >= 'a' && (p[1] | 0x20) <= 'z' && strchr("rntfavezA", p[1]) == NULL) ||
            (p[1] >= '0' && p[1] <= '9'))
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: \\%c in a regular expression means something else in PCRE2 and is not done here",
                     where, p[1]);
        MB_TRY(mb_str_append(s, p, 2));
    }
done:
    return status;
}

/* What Ruby and PCRE2 read differently outside escapes, at p. */
static mb_status check_syntax(const char *p, bool in_class, const char *where)
{
    if (in_class && (p[0] == '[' || (p[0] == '&' && p[1] == '&')))
        return mb_fail(
            MB_EUNSUPPORTED,
            "%s: sets inside sets ([a[b]], [[:alpha:]], &&) in a regular expression are not done here",
            where);
    if (!in_class && p[0] == '}' && p[1] == '+')
        return mb_fail(MB_EUNSUPPORTED, "%s: \"}+\" in a regular expression means something else in PCRE2",
                       where);
    if (!in_class && p[0] == '(' && p[1] == '?') {
        size_t flags = strspn(p + 2, "imsxaudn-");
        if ((p[2 + flags] == ')' || p[2 + flags] == ':') && strspn(p + 2, "ix-") != flags)
            return mb_fail(MB_EUNSUPPORTED,
                           "%s: the flags (?%.*s) in a regular expression are not done here; i and x are",
                           where, (int)flags, p + 2);
    }
    return MB_OK;
}

static mb_status rewrite(const char *regex, const char *where, mb_str *s)
{
    mb_status status = MB_OK;
    bool in_class = false;
    size_t class_start = 0, read = 1;
    for (size_t i = 0; regex[i] != '\0'; i += read) {
        read = 1;
        if (regex[i] == '\\') {
            MB_TRY(rewrite_escape(regex + i, in_class, where, s, &read));
            continue;
        }
        MB_TRY(check_syntax(regex + i, in_class, where));
        if (in_class && regex[i] == ']' && i > class_start) {
            in_class = false;
        } else if (!in_class && regex[i] == '[') {
            in_class = true;
            class_start = i + (regex[i + 1] == '^' ? 2 : 1);
        }
        MB_TRY(mb_str_append(s, regex + i, read));
    }
done:
    return status;
}

/* 2. create and destroy */

mb_status mb_tokenizer_pattern_compile(const char *regex, const char *where,
                                       mb_tokenizer_pattern **out_pattern)
{
    mb_status status = MB_OK;
    mb_tokenizer_pattern *pattern = NULL;
    mb_str s = MB_STR_EMPTY;
    uint32_t can_be_empty = 0;
    int code = 0;
    PCRE2_SIZE offset = 0;
    MB_NEW(pattern);
    MB_TRY(rewrite(regex, where, &s));
    pattern->length = strlen(regex);
    pattern->source = mb_strdup(regex);
    if (pattern->source == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a pattern", where);
    pattern->code = pcre2_compile((PCRE2_SPTR)mb_str_text(&s), s.length,
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                                  &offset, NULL);
    if (pattern->code == NULL) {
        char text[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        MB_RAISE(MB_EUNSUPPORTED, "%s: the regular expression \"%s\" does not compile: %s at byte %zu", where,
                 regex, text, (size_t)offset);
    }
    pcre2_pattern_info(pattern->code, PCRE2_INFO_MATCHEMPTY, &can_be_empty);
    if (can_be_empty)
        MB_RAISE(
            MB_EUNSUPPORTED,
            "%s: the regular expression \"%s\" can match nothing at all; such patterns are not done here",
            where, regex);
    pattern->has_jit = pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE) == 0;
    *out_pattern = pattern;
    pattern = NULL;
done:
    mb_str_destroy(&s);
    mb_tokenizer_pattern_destroy(&pattern);
    return status;
}

mb_status mb_tokenizer_pattern_read(const json_t *json, const char *where, mb_tokenizer_pattern **out_pattern)
{
    mb_status status = MB_OK;
    mb_tokenizer_pattern *pattern = NULL;
    const char *text = json_string_value(json_object_get(json, "String"));
    const char *regex = json_string_value(json_object_get(json, "Regex"));
    if (regex != NULL) {
        MB_TRY(mb_tokenizer_pattern_compile(regex, where, &pattern));
    } else {
        if (text == NULL || text[0] == '\0')
            MB_RAISE(MB_EFORMAT,
                     "%s: \"pattern\" must be {\"String\": text} or {\"Regex\": text}, and not empty", where);
        MB_NEW(pattern);
        pattern->length = strlen(text);
        pattern->source = mb_strdup(text);
        if (pattern->source == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a pattern", where);
    }
    *out_pattern = pattern;
    pattern = NULL;
done:
    mb_tokenizer_pattern_destroy(&pattern);
    return status;
}

void mb_tokenizer_pattern_destroy(mb_tokenizer_pattern **pattern)
{
    if (*pattern == NULL) return;
    pcre2_code_free((*pattern)->code);
    mb_free((*pattern)->source);
    MB_FREE(*pattern);
}

void mb_tokenizer_pattern_hash(const mb_tokenizer_pattern *pattern, mb_hash *hash)
{
    mb_hash_add_int(hash, pattern->code != NULL);
    mb_hash_add_text(hash, pattern->source);
}

/* 3. matcher and find */

mb_status mb_tokenizer_matcher_create(mb_tokenizer_matcher **out_matcher)
{
    mb_status status = MB_OK;
    mb_tokenizer_matcher *matcher = NULL;
    MB_NEW(matcher);
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->context = pcre2_match_context_create(NULL);
    matcher->stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024,
                                            NULL); /* NULL without JIT: then it is not needed */
    if (matcher->data == NULL || matcher->context == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for a pattern's match data");
    pcre2_jit_stack_assign(matcher->context, NULL, matcher->stack);
    *out_matcher = matcher;
    matcher = NULL;
done:
    mb_tokenizer_matcher_destroy(&matcher);
    return status;
}

void mb_tokenizer_matcher_destroy(mb_tokenizer_matcher **matcher)
{
    if (*matcher == NULL) return;
    pcre2_match_data_free((*matcher)->data);
    pcre2_match_context_free((*matcher)->context);
    pcre2_jit_stack_free((*matcher)->stack);
    MB_FREE(*matcher);
}

mb_status mb_tokenizer_pattern_find(const mb_tokenizer_pattern *pattern, mb_tokenizer_matcher *matcher,
                                    const char *text, size_t n, size_t from, size_t *out_first,
                                    size_t *out_end)
{
    *out_first = *out_end = n;
    if (pattern->code == NULL) {
        const char *hit = from < n ? memmem(text + from, n - from, pattern->source, pattern->length) : NULL;
        if (hit != NULL) {
            *out_first = (size_t)(hit - text);
            *out_end = *out_first + pattern->length;
        }
        return MB_OK;
    }
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int found = pattern->has_jit
                    ? pcre2_jit_match(pattern->code, subject, n, from, 0, matcher->data, matcher->context)
                    : pcre2_match(pattern->code, subject, n, from, PCRE2_NO_UTF_CHECK, matcher->data,
                                  matcher->context);
    if (found == PCRE2_ERROR_NOMATCH) return MB_OK;
    if (found < 0) {
        char message[160] = "";
        pcre2_get_error_message(found, (PCRE2_UCHAR *)message, sizeof message);
        return mb_fail(MB_EUNSUPPORTED,
                       "the tokenizer's pattern \"%s\" gave up on a text of %zu bytes: %s; split the text",
                       pattern->source, n, message);
    }
    const PCRE2_SIZE *where = pcre2_get_ovector_pointer(matcher->data);
    *out_first = where[0];
    *out_end = where[1];
    return MB_OK;
}
