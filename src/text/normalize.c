/* normalize: texts with the origin of each byte, and the steps of a tokenizer.json's normaliser.
 *
 * 1. views and edits  2. reading the steps  3. running them
 */
#include "text/normalize.h"

#include <string.h>

#include "base/memory.h"
#include "text/charsmap.h"
#include "text/normalize_bert.h"

/* 1. views and edits */

mb_text_view mb_normalize_slice(const mb_text_view *view, size_t first, size_t end)
{
    mb_text_view part = {.bytes = view->bytes + first, .n = end - first, .base = view->base + (int64_t)first};
    if (view->ranges != NULL) part.ranges = view->ranges + first;
    if (part.ranges != NULL && part.n > 0) part.base = part.ranges[0].first;
    return part;
}

mb_range mb_normalize_range(const mb_text_view *view, size_t a, size_t b)
{
    mb_range range;
    if (view->ranges != NULL) {
        range = view->ranges[a];
        for (size_t i = a + 1; i < b; i++) {
            if (view->ranges[i].first < range.first) range.first = view->ranges[i].first;
            if (view->ranges[i].end > range.end) range.end = view->ranges[i].end;
        }
        return range;
    }
    while (a > 0 && ((unsigned char)view->bytes[a] & 0xC0) == 0x80) a--;
    while (b < view->n && ((unsigned char)view->bytes[b] & 0xC0) == 0x80) b++;
    range.first = view->base + (int64_t)a;
    range.end = view->base + (int64_t)b;
    return range;
}

void mb_normalize_edit_destroy(mb_text_edit *edit)
{
    mb_str_destroy(&edit->text);
    mb_free(edit->ranges);
    *edit = (mb_text_edit){0};
}

void mb_normalize_edit_reset(mb_text_edit *edit, bool tracked)
{
    mb_str_reset(&edit->text);
    edit->tracked = tracked;
}

static mb_status reserve_ranges(mb_text_edit *edit, size_t n)
{
    size_t needed = edit->text.length + n;
    if (!edit->tracked || needed <= edit->range_capacity) return MB_OK;
    size_t capacity = needed + needed / 2 + 64;
    mb_range *ranges = mb_realloc(edit->ranges, capacity, sizeof *ranges);
    if (ranges == NULL) return MB_ENOMEM;
    edit->ranges = ranges;
    edit->range_capacity = capacity;
    return MB_OK;
}

mb_status mb_normalize_edit_put(mb_text_edit *edit, const char *bytes, size_t n, mb_range range)
{
    mb_status status = MB_OK;
    MB_TRY(reserve_ranges(edit, n));
    for (size_t i = 0; edit->tracked && i < n; i++) edit->ranges[edit->text.length + i] = range;
    MB_TRY(mb_str_append(&edit->text, bytes, n));
done:
    return status;
}

mb_status mb_normalize_edit_copy(mb_text_edit *edit, const mb_text_view *view, size_t a, size_t b)
{
    mb_status status = MB_OK;
    if (a == b) return MB_OK;
    MB_TRY(reserve_ranges(edit, b - a));
    if (edit->tracked && view->ranges != NULL)
        memcpy(edit->ranges + edit->text.length, view->ranges + a, (b - a) * sizeof *view->ranges);
    else if (edit->tracked)
        for (size_t i = a; i < b; i++)
            edit->ranges[edit->text.length + i - a] = mb_normalize_range(view, i, i + 1);
    MB_TRY(mb_str_append(&edit->text, view->bytes + a, b - a));
done:
    return status;
}

mb_status mb_normalize_edit_map(mb_text_edit *edit, const mb_text_view *view, size_t a, size_t b,
                                const unsigned char table[128])
{
    mb_status status = MB_OK;
    MB_TRY(reserve_ranges(edit, b - a));
    size_t needed = edit->text.length + (b - a) + 1;
    if (needed > edit->text.capacity) MB_TRY(mb_str_reserve(&edit->text, needed + needed / 2));
    char *to = edit->text.data;
    size_t at = edit->text.length;
    for (size_t i = a; i < b; i++) {
        to[at] = (char)table[(unsigned char)view->bytes[i]];
        if (to[at] == 0) continue;
        if (edit->tracked)
            edit->ranges[at] = view->ranges != NULL
                                   ? view->ranges[i]
                                   : (mb_range){view->base + (int64_t)i, view->base + (int64_t)i + 1};
        at++;
    }
    to[at] = 0;
    edit->text.length = at;
done:
    return status;
}

mb_text_view mb_normalize_edit_view(const mb_text_edit *edit)
{
    return (mb_text_view){.bytes = mb_str_text(&edit->text),
                          .n = edit->text.length,
                          .ranges = edit->tracked ? edit->ranges : NULL};
}

/* 2. reading the steps */

typedef enum step_kind {
    STEP_FORM,
    STEP_PREPEND,
    STEP_REPLACE,
    STEP_LOWERCASE,
    STEP_STRIP,
    STEP_BERT,
    STEP_ACCENTS,
    STEP_NMT,
    STEP_BYTES,
    STEP_CHARSMAP
} step_kind;

typedef struct step {
    step_kind kind;
    mb_normalize_form form;
    char *text; /* PREPEND, REPLACE: what is put in */
    mb_tokenizer_pattern *pattern;
    bool left, right; /* STRIP */
    mb_normalize_bert bert;
    mb_charsmap *charsmap;
} step;

struct mb_normalizer {
    step *steps;
    int64_t count;
    int64_t capacity;
};

static mb_status read_step(const json_t *json, const char *type, const char *where, step *s)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    static const char *const plain[] = {"StripAccents", "Nmt", "ByteLevel"}; /* STEP_ACCENTS and on */
    mb_status status = MB_OK;
    const char *text = NULL;
    for (int i = 0; i < 4; i++)
        if (strcmp(type, forms[i]) == 0) {
            *s = (step){.kind = STEP_FORM, .form = (mb_normalize_form)i};
            return MB_OK;
        }
    if (strcmp(type, "Prepend") == 0) {
        s->kind = STEP_PREPEND;
        MB_TRY(mb_json_get_string(json, "prepend", where, &text));
    } else if (strcmp(type, "Replace") == 0) {
        s->kind = STEP_REPLACE;
        MB_TRY(mb_json_get_string(json, "content", where, &text));
        MB_TRY(mb_tokenizer_pattern_read(json_object_get(json, "pattern"), where, &s->pattern));
    } else if (strcmp(type, "Lowercase") == 0) {
        s->kind = STEP_LOWERCASE;
    } else if (strcmp(type, "Strip") == 0) {
        s->kind = STEP_STRIP;
        s->left = s->right = true;
        MB_TRY(mb_json_opt_bool(json, "strip_left", where, &s->left));
        MB_TRY(mb_json_opt_bool(json, "strip_right", where, &s->right));
    } else if (strcmp(type, "BertNormalizer") == 0) {
        s->kind = STEP_BERT;
        MB_TRY(mb_normalize_bert_read(json, where, &s->bert));
    } else if (strcmp(type, "Precompiled") == 0) {
        s->kind = STEP_CHARSMAP;
        MB_TRY(mb_charsmap_read(json, where, &s->charsmap));
    } else {
        int found = -1;
        for (int i = 0; i < 3; i++)
            if (strcmp(type, plain[i]) == 0) found = i;
        if (found < 0)
            MB_RAISE(
                MB_EUNSUPPORTED,
                "%s: normalizer \"%s\" is not done here (BertNormalizer, NFC, NFD, NFKC, NFKD, Lowercase, "
                "Strip, StripAccents, Nmt, Replace, Prepend, Precompiled, ByteLevel and Sequence are)",
                where, type);
        s->kind = STEP_ACCENTS + found;
    }
    if (text != NULL && (s->text = mb_strdup(text)) == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
done:
    return status;
}

static mb_status read_steps(const json_t *json, const char *where, int depth, mb_normalizer *normalizer)
{
    mb_status status = MB_OK;
    const char *type = NULL;
    json_t *list = NULL;
    if (json == NULL || json_is_null(json)) return MB_OK;
    if (depth > 16) MB_RAISE(MB_EUNSUPPORTED, "%s: normalizer Sequences are nested more than 16 deep", where);
    MB_TRY(mb_json_get_string(json, "type", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        MB_TRY(mb_json_get_array(json, "normalizers", where, &list));
        for (size_t i = 0; i < json_array_size(list); i++)
            MB_TRY(read_steps(json_array_get(list, i), where, depth + 1, normalizer));
        return MB_OK;
    }
    if (normalizer->count == normalizer->capacity) {
        int64_t capacity = 2 * normalizer->capacity + 4;
        step *steps = mb_realloc(normalizer->steps, (size_t)capacity, sizeof *steps);
        if (steps == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
        normalizer->steps = steps;
        normalizer->capacity = capacity;
    }
    normalizer->steps[normalizer->count] = (step){0};
    normalizer->count++; /* counted first, so that destroy frees what a failed read leaves */
    MB_TRY(read_step(json, type, where, &normalizer->steps[normalizer->count - 1]));
done:
    return status;
}

mb_status mb_normalizer_read(const json_t *json, const char *where, mb_normalizer **out_normalizer)
{
    mb_status status = MB_OK;
    mb_normalizer *normalizer = NULL;
    MB_NEW(normalizer);
    MB_TRY(read_steps(json, where, 0, normalizer));
    *out_normalizer = normalizer;
    normalizer = NULL;
done:
    mb_normalizer_destroy(&normalizer);
    return status;
}

void mb_normalizer_destroy(mb_normalizer **normalizer)
{
    if (*normalizer == NULL) return;
    for (int64_t i = 0; i < (*normalizer)->count; i++) {
        mb_free((*normalizer)->steps[i].text);
        mb_tokenizer_pattern_destroy(&(*normalizer)->steps[i].pattern);
        mb_charsmap_destroy(&(*normalizer)->steps[i].charsmap);
    }
    mb_free((*normalizer)->steps);
    MB_FREE(*normalizer);
}

bool mb_normalizer_is_empty(const mb_normalizer *normalizer)
{
    return normalizer->count == 0;
}

void mb_normalizer_hash(const mb_normalizer *normalizer, mb_hash *hash)
{
    mb_hash_add_int(hash, normalizer->count);
    for (int64_t i = 0; i < normalizer->count; i++) {
        const step *s = &normalizer->steps[i];
        mb_hash_add_int(hash, s->kind);
        mb_hash_add_int(hash, s->form);
        mb_hash_add_text(hash, s->text != NULL ? s->text : "");
        if (s->pattern != NULL) mb_tokenizer_pattern_hash(s->pattern, hash);
        mb_hash_add_int(hash, s->left + 2 * s->right);
        if (s->kind == STEP_BERT) mb_normalize_bert_hash(&s->bert, hash);
        if (s->charsmap != NULL) mb_charsmap_hash(s->charsmap, hash);
    }
}

/* 3. running them */

static mb_status run_prepend(const char *text, const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    uint32_t c;
    mb_range range = mb_normalize_range(in, 0, mb_normalize_decode(in->bytes, &c));
    MB_TRY(mb_normalize_edit_put(out, text, strlen(text), range));
    MB_TRY(mb_normalize_edit_copy(out, in, 0, in->n));
done:
    return status;
}

/* What is put in came, as in HF, from the last character of what it replaces. */
static mb_status run_replace(const step *s, mb_tokenizer_matcher *matcher, const mb_text_view *in,
                             mb_text_edit *out)
{
    mb_status status = MB_OK;
    size_t length = strlen(s->text);
    for (size_t from = 0, first, end; from < in->n; from = end) {
        MB_TRY(mb_tokenizer_pattern_find(s->pattern, matcher, in->bytes, in->n, from, &first, &end));
        MB_TRY(mb_normalize_edit_copy(out, in, from, first));
        if (first < end && length > 0)
            MB_TRY(mb_normalize_edit_put(out, s->text, length, mb_normalize_range(in, end - 1, end)));
    }
done:
    return status;
}

/* Strip needs no copy: it narrows the view. */
static void run_strip(const step *s, mb_text_view *view)
{
    size_t first = 0, end = view->n;
    uint32_t c;
    while (s->left && first < end) {
        size_t length = mb_normalize_decode(view->bytes + first, &c);
        if (!mb_normalize_is_white(c)) break;
        first += length;
    }
    while (s->right && end > first) {
        size_t at = end - 1;
        while (at > first && ((unsigned char)view->bytes[at] & 0xC0) == 0x80) at--;
        mb_normalize_decode(view->bytes + at, &c);
        if (!mb_normalize_is_white(c)) break;
        end = at;
    }
    *view = mb_normalize_slice(view, first, end);
}

/* Is there nothing to do? */
static bool is_plain(const step *s, const mb_text_view *view)
{
    if (s->kind == STEP_FORM) return mb_normalize_is_plain(s->form, view->bytes, view->n);
    return s->kind == STEP_ACCENTS && mb_normalize_is_ascii(view->bytes, view->n);
}

static mb_status run_step(const step *s, mb_tokenizer_matcher *matcher, const mb_text_view *in,
                          mb_text_edit *out)
{
    switch (s->kind) {
    case STEP_FORM:
        return mb_normalize_form_run(s->form, in, out);
    case STEP_PREPEND:
        return run_prepend(s->text, in, out);
    case STEP_REPLACE:
        return run_replace(s, matcher, in, out);
    case STEP_LOWERCASE:
        return mb_normalize_lowercase_run(in, out);
    case STEP_BERT:
        return mb_normalize_bert_run(&s->bert, in, out);
    case STEP_ACCENTS:
        return mb_normalize_accents_run(in, out);
    case STEP_NMT:
        return mb_normalize_nmt_run(in, out);
    case STEP_BYTES:
        return mb_normalize_bytes_run(in, out);
    case STEP_CHARSMAP:
        return mb_charsmap_run(s->charsmap, in, out);
    case STEP_STRIP: /* run_strip */
        break;
    }
    return MB_OK;
}

mb_status mb_normalizer_run(const mb_normalizer *normalizer, mb_tokenizer_matcher *matcher,
                            const mb_text_view *text, bool tracked, mb_text_edit edits[2],
                            mb_text_view *out_view)
{
    mb_status status = MB_OK;
    mb_text_view view = *text;
    int next = 0;
    for (int64_t i = 0; i < normalizer->count && view.n > 0; i++) {
        const step *s = &normalizer->steps[i];
        if (s->kind == STEP_STRIP) {
            run_strip(s, &view);
            continue;
        }
        if (is_plain(s, &view)) continue;
        mb_text_edit *out = &edits[next];
        mb_normalize_edit_reset(out, tracked);
        MB_TRY(run_step(s, matcher, &view, out));
        int64_t base = view.base;
        view = mb_normalize_edit_view(out);
        view.base = view.ranges != NULL && view.n > 0 ? view.ranges[0].first : base;
        next = 1 - next;
    }
    *out_view = view;
done:
    return status;
}
