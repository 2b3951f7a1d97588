/* tasks_text: see the header.
 *
 * Contents: 1 case  2 HellaSwag  3 characters
 */
#include "text/tasks_text.h"

#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"
#include "text/dialog_text.h"

/* ---- 1 case ---- */

/* Characters whose title case is several characters (Unicode SpecialCasing.txt); utf8proc has the single
 * ones. */
typedef struct title_case {
    int32_t from;
    const char *to;
} title_case;

static const title_case title_cases[] = {
    {0x00DF, "\x53\x73"},
    {0x0149, "\xCA\xBC\x4E"},
    {0x01F0, "\x4A\xCC\x8C"},
    {0x0390, "\xCE\x99\xCC\x88\xCC\x81"},
    {0x03B0, "\xCE\xA5\xCC\x88\xCC\x81"},
    {0x0587, "\xD4\xB5\xD6\x82"},
    {0x1E96, "\x48\xCC\xB1"},
    {0x1E97, "\x54\xCC\x88"},
    {0x1E98, "\x57\xCC\x8A"},
    {0x1E99, "\x59\xCC\x8A"},
    {0x1E9A, "\x41\xCA\xBE"},
    {0x1F50, "\xCE\xA5\xCC\x93"},
    {0x1F52, "\xCE\xA5\xCC\x93\xCC\x80"},
    {0x1F54, "\xCE\xA5\xCC\x93\xCC\x81"},
    {0x1F56, "\xCE\xA5\xCC\x93\xCD\x82"},
    {0x1FB2, "\xE1\xBE\xBA\xCD\x85"},
    {0x1FB4, "\xCE\x86\xCD\x85"},
    {0x1FB6, "\xCE\x91\xCD\x82"},
    {0x1FB7, "\xCE\x91\xCD\x82\xCD\x85"},
    {0x1FC2, "\xE1\xBF\x8A\xCD\x85"},
    {0x1FC4, "\xCE\x89\xCD\x85"},
    {0x1FC6, "\xCE\x97\xCD\x82"},
    {0x1FC7, "\xCE\x97\xCD\x82\xCD\x85"},
    {0x1FD2, "\xCE\x99\xCC\x88\xCC\x80"},
    {0x1FD3, "\xCE\x99\xCC\x88\xCC\x81"},
    {0x1FD6, "\xCE\x99\xCD\x82"},
    {0x1FD7, "\xCE\x99\xCC\x88\xCD\x82"},
    {0x1FE2, "\xCE\xA5\xCC\x88\xCC\x80"},
    {0x1FE3, "\xCE\xA5\xCC\x88\xCC\x81"},
    {0x1FE4, "\xCE\xA1\xCC\x93"},
    {0x1FE6, "\xCE\xA5\xCD\x82"},
    {0x1FE7, "\xCE\xA5\xCC\x88\xCD\x82"},
    {0x1FF2, "\xE1\xBF\xBA\xCD\x85"},
    {0x1FF4, "\xCE\x8F\xCD\x85"},
    {0x1FF6, "\xCE\xA9\xCD\x82"},
    {0x1FF7, "\xCE\xA9\xCD\x82\xCD\x85"},
    {0xFB00, "\x46\x66"},
    {0xFB01, "\x46\x69"},
    {0xFB02, "\x46\x6C"},
    {0xFB03, "\x46\x66\x69"},
    {0xFB04, "\x46\x66\x6C"},
    {0xFB05, "\x53\x74"},
    {0xFB06, "\x53\x74"},
    {0xFB13, "\xD5\x84\xD5\xB6"},
    {0xFB14, "\xD5\x84\xD5\xA5"},
    {0xFB15, "\xD5\x84\xD5\xAB"},
    {0xFB16, "\xD5\x8E\xD5\xB6"},
    {0xFB17, "\xD5\x84\xD5\xAD"},
};

static mb_status add_character(int32_t c, mb_str *s)
{
    uint8_t bytes[4];
    return mb_str_append(s, bytes, (size_t)utf8proc_encode_char(c, bytes));
}

static mb_status add_title(int32_t c, mb_str *s)
{
    for (size_t i = 0; i < sizeof title_cases / sizeof *title_cases; i++)
        if (title_cases[i].from == c) return mb_str_add(s, title_cases[i].to);
    return add_character(utf8proc_totitle(c), s);
}

static bool is_cased(int32_t c)
{
    const utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
           category == UTF8PROC_CATEGORY_LT || c == 0xAA || c == 0xBA;
}

/* Characters that stand inside words without being letters of a case. */
static bool is_ignorable(int32_t c)
{
    const utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME ||
           category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_LM ||
           category == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' || c == 0xB7 ||
           c == 0x2018 || c == 0x2019 || c == 0x2024 || c == 0x2027;
}

/* A capital sigma is final when a cased letter stands before it and none behind. */
static bool is_final_sigma(const int32_t *characters, int64_t n, int64_t at)
{
    int64_t i = at - 1;
    while (i >= 0 && is_ignorable(characters[i])) i--;
    if (i < 0 || !is_cased(characters[i])) return false;
    for (i = at + 1; i < n && is_ignorable(characters[i]);) i++;
    return i == n || !is_cased(characters[i]);
}

static mb_status add_lower(const int32_t *characters, int64_t n, int64_t at, mb_str *s)
{
    const int32_t c = characters[at];
    if (c == 0x130) return mb_str_add(s, "i\xCC\x87");
    if (c == 0x3A3) return mb_str_add(s, is_final_sigma(characters, n, at) ? "\xCF\x82" : "\xCF\x83");
    return add_character(utf8proc_tolower(c), s);
}

mb_status mb_tasks_text_capitalize(const char *text, mb_str *s)
{
    mb_status status = MB_OK;
    int32_t *characters = NULL;
    int64_t count = 0;
    const size_t n = strlen(text);
    MB_NEW_ARRAY(characters, n + 1);
    for (size_t i = 0; i < n;) {
        const utf8proc_ssize_t used =
            utf8proc_iterate((const uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &characters[count++]);
        if (used <= 0) MB_RAISE(MB_EDATA, "the text is not UTF-8 at byte %zu", i);
        i += (size_t)used;
    }
    if (count > 0) MB_TRY(add_title(characters[0], s));
    for (int64_t i = 1; i < count; i++) MB_TRY(add_lower(characters, count, i, s));
done:
    mb_free(characters);
    return status;
}

/* ---- 2 HellaSwag ---- */

/* Replace what stands for `from`, left to right. Whole text in s. */
static mb_status replace(mb_str *s, const char *from, const char *to)
{
    mb_status status = MB_OK;
    mb_str out = MB_STR_EMPTY;
    const char *at = mb_str_text(s);
    for (const char *hit; (hit = strstr(at, from)) != NULL; at = hit + strlen(from)) {
        MB_TRY(mb_str_append(&out, at, (size_t)(hit - at)));
        MB_TRY(mb_str_add(&out, to));
    }
    MB_TRY(mb_str_add(&out, at));
    mb_str_reset(s);
    MB_TRY(mb_str_add(s, mb_str_text(&out)));
done:
    mb_str_destroy(&out);
    return status;
}

/* Take out every shortest [..] within a line, as re.sub(r"\[.*?\]", "", text). */
static void remove_brackets(mb_str *s)
{
    size_t to = 0;
    for (size_t i = 0; i < s->length;) {
        const size_t end = s->data[i] == '[' ? i + strcspn(s->data + i, "]\n") : s->length;
        if (end < s->length && s->data[end] == ']')
            i = end + 1;
        else
            s->data[to++] = s->data[i++];
    }
    s->length = to;
    if (s->data != NULL) s->data[to] = 0;
}

mb_status mb_tasks_text_preprocess(const char *text, mb_str *s)
{
    mb_status status = MB_OK;
    mb_str work = MB_STR_EMPTY;
    size_t n = strlen(text);
    mb_dialog_text_strip(&text, &n);
    MB_TRY(mb_str_append(&work, text, n));
    MB_TRY(replace(&work, " [title]", ". "));
    remove_brackets(&work);
    MB_TRY(replace(&work, "  ", " "));
    MB_TRY(mb_str_append(s, mb_str_text(&work), work.length));
done:
    mb_str_destroy(&work);
    return status;
}

/* ---- 3 characters ---- */

int64_t mb_tasks_text_characters(const char *text)
{
    int64_t count = 0;
    for (; *text != 0; text++) count += ((unsigned char)*text & 0xC0) != 0x80;
    return count;
}
