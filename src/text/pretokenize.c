/* pretokenize: cuts a normalised text into words, step by step.
 *
 * 1. reading the steps  2. word lists  3. cutting  4. the other steps  5. running
 */
#include "text/pretokenize.h"

#include <string.h>

#include "base/memory.h"
#include "text/pretokenize_scripts.h"

#define GPT2_REGEX "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef enum step_kind {
    STEP_BYTE_LEVEL,
    STEP_SPLIT,
    STEP_DIGITS,
    STEP_METASPACE,
    STEP_PUNCTUATION,
    STEP_WHITE,     /* WhitespaceSplit */
    STEP_DELIMITER, /* CharDelimiterSplit */
    STEP_WORDS,     /* Whitespace: runs of \w, runs of what is neither \w nor \s */
    STEP_BERT,      /* WhitespaceSplit, then Punctuation alone */
    STEP_SCRIPTS    /* UnicodeScripts */
} step_kind;
typedef enum behavior { ISOLATED, REMOVED, WITH_PREVIOUS, WITH_NEXT, CONTIGUOUS } behavior;
typedef enum prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend;

typedef struct step {
    step_kind kind;
    mb_tokenizer_pattern *pattern; /* NULL: no cut */
    behavior how;
    bool invert;
    prepend prefix;    /* BYTE_LEVEL, METASPACE: put `replacement` in front */
    char *replacement; /* METASPACE: a space becomes this; BYTE_LEVEL: " " */
    uint32_t delimiter;
} step;

struct mb_pretokenizer {
    step *steps;
    int64_t count;
    int64_t capacity;
    bool is_byte_level;
};

/* 1. reading the steps */

static mb_status read_byte_level(const json_t *json, const char *where, step *s)
{
    mb_status status = MB_OK;
    bool space = true, regex = true;
    MB_TRY(mb_json_opt_bool(json, "add_prefix_space", where, &space));
    MB_TRY(mb_json_opt_bool(json, "use_regex", where, &regex));
    s->kind = STEP_BYTE_LEVEL;
    s->prefix = space ? PREPEND_ALWAYS : PREPEND_NEVER;
    s->how = ISOLATED;
    s->replacement = mb_strdup(" ");
    if (s->replacement == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
    if (regex) MB_TRY(mb_tokenizer_pattern_compile(GPT2_REGEX, where, &s->pattern));
done:
    return status;
}

static mb_status read_behavior(const json_t *json, const char *type, const char *where, behavior *how)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                        "Contiguous"};
    mb_status status = MB_OK;
    const char *name = NULL;
    MB_TRY(mb_json_get_string(json, "behavior", where, &name));
    for (int i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0) {
            *how = (behavior)i;
            return MB_OK;
        }
    MB_RAISE(MB_EUNSUPPORTED, "%s: %s behavior \"%s\" is not known", where, type, name);
done:
    return status;
}

static mb_status read_split(const json_t *json, const char *where, step *s)
{
    mb_status status = MB_OK;
    s->kind = STEP_SPLIT;
    MB_TRY(read_behavior(json, "Split", where, &s->how));
    MB_TRY(mb_json_opt_bool(json, "invert", where, &s->invert));
    MB_TRY(mb_tokenizer_pattern_read(json_object_get(json, "pattern"), where, &s->pattern));
done:
    return status;
}

/* Steps that cut by the class of each character. */
static mb_status read_class(const json_t *json, const char *type, const char *where, step *s)
{
    mb_status status = MB_OK;
    bool individual = false;
    const char *text = NULL;
    if (strcmp(type, "Digits") == 0) {
        MB_TRY(mb_json_opt_bool(json, "individual_digits", where, &individual));
        *s = (step){.kind = STEP_DIGITS, .how = individual ? ISOLATED : CONTIGUOUS};
    } else if (strcmp(type, "Punctuation") == 0) {
        *s = (step){.kind = STEP_PUNCTUATION, .how = ISOLATED};
        if (json_object_get(json, "behavior") != NULL) MB_TRY(read_behavior(json, type, where, &s->how));
    } else if (strcmp(type, "WhitespaceSplit") == 0) {
        *s = (step){.kind = STEP_WHITE, .how = REMOVED};
    } else if (strcmp(type, "CharDelimiterSplit") == 0) {
        *s = (step){.kind = STEP_DELIMITER, .how = REMOVED};
        MB_TRY(mb_json_get_string(json, "delimiter", where, &text));
        if (text[0] == '\0' || mb_normalize_decode(text, &s->delimiter) != strlen(text))
            MB_RAISE(MB_EFORMAT, "%s: CharDelimiterSplit's \"delimiter\" must be one character", where);
    } else if (strcmp(type, "Whitespace") == 0) {
        *s = (step){.kind = STEP_WORDS};
    } else if (strcmp(type, "BertPreTokenizer") == 0) {
        *s = (step){.kind = STEP_BERT};
    } else if (strcmp(type, "UnicodeScripts") == 0) {
        *s = (step){.kind = STEP_SCRIPTS};
    } else {
        MB_RAISE(
            MB_EUNSUPPORTED,
            "%s: pre-tokenizer \"%s\" is not done here (BertPreTokenizer, ByteLevel, CharDelimiterSplit, "
            "Digits, Metaspace, Punctuation, Split, UnicodeScripts, Whitespace, WhitespaceSplit and "
            "Sequence are)",
            where, type);
    }
done:
    return status;
}

static mb_status read_metaspace(const json_t *json, const char *where, step *s)
{
    mb_status status = MB_OK;
    const char *text = NULL, *scheme = NULL;
    bool space = true, split = true;
    uint32_t c = 0;
    MB_TRY(mb_json_get_string(json, "replacement", where, &text));
    if (text[0] == '\0' || mb_normalize_decode(text, &c) != strlen(text))
        MB_RAISE(MB_EFORMAT, "%s: Metaspace's \"replacement\" must be one character", where);
    MB_TRY(mb_json_opt_bool(json, "add_prefix_space", where, &space));
    MB_TRY(mb_json_opt_bool(json, "split", where, &split));
    MB_TRY(mb_json_opt_string(json, "prepend_scheme", where, &scheme));
    if (scheme == NULL) scheme = space ? "always" : "never";
    s->kind = STEP_METASPACE;
    if (strcmp(scheme, "always") == 0)
        s->prefix = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        s->prefix = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        s->prefix = PREPEND_NEVER;
    else
        MB_RAISE(MB_EUNSUPPORTED, "%s: Metaspace's prepend_scheme \"%s\" is not known", where, scheme);
    s->how = WITH_NEXT;
    s->replacement = mb_strdup(text);
    if (s->replacement == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
    if (split) {
        json_t *pattern = json_pack("{s:s}", "String", text);
        status = mb_tokenizer_pattern_read(pattern, where, &s->pattern);
        json_decref(pattern);
    }
done:
    return status;
}

static mb_status read_step(const json_t *json, const char *type, const char *where, step *s)
{
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(json, where, s);
    if (strcmp(type, "Split") == 0) return read_split(json, where, s);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(json, where, s);
    return read_class(json, type, where, s);
}

static mb_status read_steps(const json_t *json, const char *where, int depth, mb_pretokenizer *tokens)
{
    mb_status status = MB_OK;
    const char *type = NULL;
    json_t *list = NULL;
    if (json == NULL || json_is_null(json)) return MB_OK;
    if (depth > 16)
        MB_RAISE(MB_EUNSUPPORTED, "%s: pre-tokenizer Sequences are nested more than 16 deep", where);
    MB_TRY(mb_json_get_string(json, "type", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        MB_TRY(mb_json_get_array(json, "pretokenizers", where, &list));
        for (size_t i = 0; i < json_array_size(list); i++)
            MB_TRY(read_steps(json_array_get(list, i), where, depth + 1, tokens));
        return MB_OK;
    }
    if (tokens->is_byte_level)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: pre-tokenizer \"%s\" after ByteLevel is not done here; ByteLevel must be the last",
                 where, type);
    if (tokens->count == tokens->capacity) {
        int64_t capacity = 2 * tokens->capacity + 4;
        step *steps = mb_realloc(tokens->steps, (size_t)capacity, sizeof *steps);
        if (steps == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
        tokens->steps = steps;
        tokens->capacity = capacity;
    }
    tokens->steps[tokens->count] = (step){0};
    tokens->count++; /* counted first, so that destroy frees what a failed read leaves */
    MB_TRY(read_step(json, type, where, &tokens->steps[tokens->count - 1]));
    tokens->is_byte_level = strcmp(type, "ByteLevel") == 0;
done:
    return status;
}

mb_status mb_pretokenizer_read(const json_t *json, const char *where, mb_pretokenizer **out_pretokenizer)
{
    mb_status status = MB_OK;
    mb_pretokenizer *tokens = NULL;
    MB_NEW(tokens);
    MB_TRY(read_steps(json, where, 0, tokens));
    *out_pretokenizer = tokens;
    tokens = NULL;
done:
    mb_pretokenizer_destroy(&tokens);
    return status;
}

void mb_pretokenizer_destroy(mb_pretokenizer **pretokenizer)
{
    if (*pretokenizer == NULL) return;
    for (int64_t i = 0; i < (*pretokenizer)->count; i++) {
        mb_free((*pretokenizer)->steps[i].replacement);
        mb_tokenizer_pattern_destroy(&(*pretokenizer)->steps[i].pattern);
    }
    mb_free((*pretokenizer)->steps);
    MB_FREE(*pretokenizer);
}

void mb_pretokenizer_hash(const mb_pretokenizer *pretokenizer, mb_hash *hash)
{
    mb_hash_add_int(hash, pretokenizer->count);
    for (int64_t i = 0; i < pretokenizer->count; i++) {
        const step *s = &pretokenizer->steps[i];
        mb_hash_add_int(hash, s->kind);
        mb_hash_add_int(hash, s->pattern != NULL);
        if (s->pattern != NULL) mb_tokenizer_pattern_hash(s->pattern, hash);
        mb_hash_add_int(hash, s->how);
        mb_hash_add_int(hash, s->invert);
        mb_hash_add_int(hash, s->prefix);
        mb_hash_add_text(hash, s->replacement != NULL ? s->replacement : "");
        if (s->kind == STEP_DELIMITER) mb_hash_add_int(hash, s->delimiter);
    }
}

bool mb_pretokenizer_is_byte_level(const mb_pretokenizer *pretokenizer)
{
    return pretokenizer->is_byte_level;
}

bool mb_pretokenizer_asks_start(const mb_pretokenizer *pretokenizer, bool is_changed)
{
    for (int64_t i = 0; i < pretokenizer->count; i++) {
        const step *s = &pretokenizer->steps[i];
        if (s->prefix == PREPEND_FIRST && is_changed) return true;
        is_changed = is_changed || s->kind == STEP_METASPACE || s->prefix != PREPEND_NEVER;
    }
    return false;
}

/* 2. word lists */

void mb_pretokenize_work_destroy(mb_pretokenize_work *work)
{
    for (int i = 0; i < 2; i++) {
        mb_normalize_edit_destroy(&work->edits[i]);
        mb_free(work->words[i]);
    }
    *work = (mb_pretokenize_work){0};
}

static mb_status put_word(mb_pretokenize_work *work, int list, size_t first, size_t end)
{
    int64_t count = work->count[list];
    if (count == work->capacity[list]) {
        int64_t capacity = 2 * count + 256;
        mb_range *words = mb_realloc(work->words[list], (size_t)capacity, sizeof *words);
        if (words == NULL) return MB_ENOMEM;
        work->words[list] = words;
        work->capacity[list] = capacity;
    }
    work->words[list][count] = (mb_range){.first = (int64_t)first, .end = (int64_t)end};
    work->count[list] = count + 1;
    return MB_OK;
}

/* 3. cutting */

/* The cutting of one word: parts arrive in order, each a match or what lies between matches. */
typedef struct cutter {
    mb_pretokenize_work *work;
    int list;
    behavior how;
    bool invert;
    bool previous_match; /* was the part before a match */
    int64_t first_word;  /* words of this cut begin here in the list */
} cutter;

static mb_status cut_part(cutter *cut, size_t first, size_t end, bool match)
{
    if (first == end) return MB_OK;
    match = match != cut->invert;
    bool previous = cut->previous_match;
    bool has_last = cut->work->count[cut->list] > cut->first_word;
    mb_range *last = has_last ? &cut->work->words[cut->list][cut->work->count[cut->list] - 1] : NULL;
    cut->previous_match = match;
    switch (cut->how) {
    case REMOVED:
        if (match) return MB_OK;
        break;
    case CONTIGUOUS:
        if (last == NULL || match != previous) break;
        last->end = (int64_t)end;
        return MB_OK;
    case WITH_PREVIOUS: /* a match joins the part before it unless that is a match too */
        if (last == NULL || !match || previous) break;
        last->end = (int64_t)end;
        return MB_OK;
    case WITH_NEXT: /* a part that is no match joins the match before it */
        if (last == NULL || match || !previous) break;
        last->end = (int64_t)end;
        return MB_OK;
    case ISOLATED:
        break;
    }
    return put_word(cut->work, cut->list, first, end);
}

static mb_status cut_by_pattern(const step *s, mb_tokenizer_matcher *matcher, const char *text, size_t first,
                                size_t end, cutter *cut)
{
    mb_status status = MB_OK;
    const char *word = text + first;
    size_t n = end - first;
    for (size_t from = 0, a, b; from < n; from = b) {
        MB_TRY(mb_tokenizer_pattern_find(s->pattern, matcher, word, n, from, &a, &b));
        MB_TRY(cut_part(cut, first + from, first + a, false));
        MB_TRY(cut_part(cut, first + a, first + b, true));
    }
done:
    return status;
}

/* Is the character what the step looks for? */
static bool has_class(const step *s, uint32_t c)
{
    switch (s->kind) {
    case STEP_DIGITS:
        return mb_normalize_is_numeric(c);
    case STEP_PUNCTUATION:
        return mb_normalize_is_punctuation(c);
    case STEP_WHITE:
        return mb_normalize_is_white(c);
    default:
        return c == s->delimiter;
    }
}

static mb_status cut_by_class(const step *s, const char *text, size_t first, size_t end, cutter *cut)
{
    mb_status status = MB_OK;
    size_t from = first;
    uint32_t c;
    for (size_t i = first, length; i < end; i += length) {
        length = mb_normalize_decode(text + i, &c);
        if (!has_class(s, c)) continue;
        MB_TRY(cut_part(cut, from, i, false));
        MB_TRY(cut_part(cut, i, i + length, true));
        from = i + length;
    }
    MB_TRY(cut_part(cut, from, end, false));
done:
    return status;
}

/* The group of a character in STEP_WORDS and STEP_BERT: white space goes, SIGN is for punctuation. */
typedef enum group { GROUP_WHITE, GROUP_WORD, GROUP_SIGN } group;

static group group_of(const step *s, uint32_t c)
{
    if (c < 0x80 && ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')) return GROUP_WORD;
    if (mb_normalize_is_white(c)) return GROUP_WHITE;
    if (s->kind == STEP_BERT) return mb_normalize_is_punctuation(c) ? GROUP_SIGN : GROUP_WORD;
    return mb_normalize_is_word(c) ? GROUP_WORD : GROUP_SIGN;
}

/* STEP_WORDS, STEP_BERT: runs of one group; signs alone in STEP_BERT. */
static mb_status cut_by_group(const step *s, const char *text, size_t first, size_t end, cutter *cut)
{
    mb_status status = MB_OK;
    size_t from = first;
    group before = GROUP_WHITE;
    uint32_t c;
    for (size_t i = first, length; i < end; i += length) {
        length = mb_normalize_decode(text + i, &c);
        group now = group_of(s, c);
        if (now == before && !(now == GROUP_SIGN && s->kind == STEP_BERT)) continue;
        if (before != GROUP_WHITE) MB_TRY(put_word(cut->work, cut->list, from, i));
        before = now;
        from = i;
    }
    if (before != GROUP_WHITE) MB_TRY(put_word(cut->work, cut->list, from, end));
done:
    return status;
}

/* UnicodeScripts: a cut where the script changes. White space and the like belong to any script; as in HF the
 * text before the first letter of a script is lost. */
static mb_status cut_by_script(const char *text, size_t first, size_t end, cutter *cut)
{
    mb_status status = MB_OK;
    size_t from = end;
    int last = -1;
    uint32_t c;
    for (size_t i = first, length; i < end; i += length) {
        length = mb_normalize_decode(text + i, &c);
        int script = mb_pretokenize_script(c);
        if (script == 0 || script == last) continue;
        if (from < i) MB_TRY(put_word(cut->work, cut->list, from, i));
        from = i;
        last = script;
    }
    if (from < end) MB_TRY(put_word(cut->work, cut->list, from, end));
done:
    return status;
}

/* 4. the other steps */

static bool needs_prefix(const step *s, const mb_text_view *view, const mb_range *word)
{
    size_t length = strlen(s->replacement);
    if (s->prefix == PREPEND_NEVER) return false;
    const char *p = view->bytes + word->first;
    bool there = (size_t)(word->end - word->first) >= length && memcmp(p, s->replacement, length) == 0;
    if (s->kind == STEP_METASPACE && *p == ' ') there = true; /* it becomes one */
    bool at_start = (view->ranges != NULL ? view->ranges[word->first].first : view->base + word->first) == 0;
    return !there && (s->prefix == PREPEND_ALWAYS || at_start);
}

static bool needs_edit(const step *s, const mb_text_view *view, const mb_range *words, int64_t count)
{
    if (s->kind == STEP_METASPACE && memchr(view->bytes, ' ', view->n) != NULL) return true;
    if (s->kind != STEP_METASPACE && s->kind != STEP_BYTE_LEVEL) return false;
    for (int64_t i = 0; i < count; i++)
        if (needs_prefix(s, view, &words[i])) return true;
    return false;
}

/* Rewrite the text word by word (prefix, space to replacement); `words` is updated to the new text. */
static mb_status edit_words(const step *s, const mb_text_view *view, mb_range *words, int64_t count,
                            mb_text_edit *out)
{
    mb_status status = MB_OK;
    size_t length = strlen(s->replacement);
    uint32_t c;
    for (int64_t i = 0; i < count; i++) {
        size_t from = (size_t)words[i].first, end = (size_t)words[i].end, start = out->text.length;
        if (needs_prefix(s, view, &words[i])) {
            mb_range range =
                mb_normalize_range(view, from, from + mb_normalize_decode(view->bytes + from, &c));
            MB_TRY(mb_normalize_edit_put(out, s->replacement, length, range));
        }
        while (s->kind == STEP_METASPACE && from < end) {
            const char *space = memchr(view->bytes + from, ' ', end - from);
            if (space == NULL) break;
            size_t at = (size_t)(space - view->bytes);
            MB_TRY(mb_normalize_edit_copy(out, view, from, at));
            MB_TRY(mb_normalize_edit_put(out, s->replacement, length, mb_normalize_range(view, at, at + 1)));
            from = at + 1;
        }
        MB_TRY(mb_normalize_edit_copy(out, view, from, end));
        words[i] = (mb_range){.first = (int64_t)start, .end = (int64_t)out->text.length};
    }
done:
    return status;
}

/* 5. running */

static mb_status cut_words(const step *s, mb_tokenizer_matcher *matcher, const mb_text_view *view,
                           mb_pretokenize_work *work, int from)
{
    mb_status status = MB_OK;
    cutter cut = {.work = work, .list = 1 - from, .how = s->how, .invert = s->invert};
    work->count[cut.list] = 0;
    for (int64_t i = 0; i < work->count[from]; i++) {
        size_t first = (size_t)work->words[from][i].first, end = (size_t)work->words[from][i].end;
        cut.first_word = work->count[cut.list];
        cut.previous_match = false;
        if (s->pattern != NULL)
            MB_TRY(cut_by_pattern(s, matcher, view->bytes, first, end, &cut));
        else if (s->kind == STEP_SCRIPTS)
            MB_TRY(cut_by_script(view->bytes, first, end, &cut));
        else if (s->kind == STEP_WORDS || s->kind == STEP_BERT)
            MB_TRY(cut_by_group(s, view->bytes, first, end, &cut));
        else
            MB_TRY(cut_by_class(s, view->bytes, first, end, &cut));
    }
done:
    return status;
}

mb_status mb_pretokenizer_run(const mb_pretokenizer *pretokenizer, mb_pretokenize_work *work,
                              mb_tokenizer_matcher *matcher, const mb_text_view *text, bool tracked,
                              mb_text_view *out_view, const mb_range **out_words, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_text_view view = *text;
    int list = 0, next_edit = 0;
    work->count[0] = 0;
    MB_TRY(put_word(work, 0, 0, view.n));
    for (int64_t i = 0; i < pretokenizer->count; i++) {
        const step *s = &pretokenizer->steps[i];
        if (needs_edit(s, &view, work->words[list], work->count[list])) {
            int64_t base = view.base;
            mb_text_edit *out = &work->edits[next_edit];
            mb_normalize_edit_reset(out, tracked);
            MB_TRY(edit_words(s, &view, work->words[list], work->count[list], out));
            view = mb_normalize_edit_view(out);
            view.base = base; /* still tells whether the text begins the original */
            next_edit = 1 - next_edit;
        }
        if (s->pattern == NULL && (s->kind == STEP_BYTE_LEVEL || s->kind == STEP_METASPACE)) continue;
        MB_TRY(cut_words(s, matcher, &view, work, list));
        list = 1 - list;
    }
    *out_view = view;
    *out_words = work->words[list];
    *out_count = work->count[list];
done:
    return status;
}
