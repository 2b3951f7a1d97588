/* share.c: which units a share has, and how its files are called. */
#include "store/share.h"

#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "base/str.h"

static mb_status read_number(const char *text, size_t n, int64_t *out_number)
{
    mb_status status = MB_OK;
    char *word = mb_strndup(text, n);
    if (word == NULL) MB_RAISE(MB_ENOMEM, "run.share: not enough memory");
    MB_TRY(mb_str_parse_int(word, out_number));
done:
    mb_free(word);
    return status;
}

mb_status mb_share_parse(const char *opt_text, mb_share *out_share)
{
    mb_status status = MB_OK;
    mb_share share = {0};
    const char *slash = opt_text != NULL ? strchr(opt_text, '/') : NULL;
    if (opt_text == NULL || *opt_text == 0) goto done;
    if (slash == NULL || read_number(opt_text, (size_t)(slash - opt_text), &share.part) != MB_OK ||
        read_number(slash + 1, strlen(slash + 1), &share.of) != MB_OK || share.part < 0 ||
        share.part >= share.of)
        MB_RAISE(MB_EUSAGE, "run.share=%s: not k/n with k from 0 to n-1, as in run.share=0/4", opt_text);
done:
    if (status == MB_OK) *out_share = share;
    return status;
}

bool mb_share_is_whole(mb_share share)
{
    return share.of == 0;
}

int64_t mb_share_count(mb_share share, int64_t units)
{
    if (share.of == 0) return units;
    return units > share.part ? (units - share.part - 1) / share.of + 1 : 0;
}

int64_t mb_share_unit(mb_share share, int64_t i)
{
    return share.of == 0 ? i : share.part + i * share.of;
}

char *mb_share_name(mb_share share, const char *stem, const char *ending)
{
    if (share.of == 0) return mb_str_format("%s%s", stem, ending);
    return mb_str_format("%s-%" PRId64 "of%" PRId64 "%s", stem, share.part, share.of, ending);
}
