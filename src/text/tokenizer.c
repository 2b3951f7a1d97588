/* tokenizer: text -> ids and back.
 *
 * 1. id arrays  2. scratch  3. encode  4. decode  5. access
 */
#include "text/tokenizer.h"

#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_model.h"

/* 1. id arrays */

static mb_status reserve_ids(mb_ids *ids, int64_t n)
{
    if (ids->count + n <= ids->capacity) return MB_OK;
    int64_t capacity = ids->count + n + ids->capacity / 2 + 64;
    uint32_t *data = mb_realloc(ids->data, (size_t)capacity, sizeof *data);
    if (data == NULL) return MB_ENOMEM;
    ids->data = data;
    ids->capacity = capacity;
    return MB_OK;
}

mb_status mb_ids_append(mb_ids *ids, uint32_t id)
{
    if (ids->count == ids->capacity) {
        mb_status status = reserve_ids(ids, 1);
        if (status != MB_OK) return status;
    }
    ids->data[ids->count++] = id;
    return MB_OK;
}

mb_status mb_ids_append_all(mb_ids *ids, const uint32_t *data, int64_t n)
{
    if (n <= 0) return MB_OK;
    mb_status status = reserve_ids(ids, n);
    if (status != MB_OK) return status;
    memcpy(ids->data + ids->count, data, (size_t)n * sizeof *data);
    ids->count += n;
    return MB_OK;
}

void mb_ids_reset(mb_ids *ids)
{
    ids->count = 0;
}

void mb_ids_destroy(mb_ids *ids)
{
    mb_free(ids->data);
    *ids = (mb_ids){0};
}

/* 2. scratch */

struct mb_tokenizer_scratch {
    const mb_tokenizer *tokenizer;
    mb_tokenizer_matcher *matcher;
    mb_text_edit edits[2];
    mb_pretokenize_work words;
    mb_word_model_work *model;
    mb_ids lengths;
};

mb_status mb_tokenizer_scratch_create(const mb_tokenizer *tokenizer, mb_tokenizer_scratch **out_scratch)
{
    mb_status status = MB_OK;
    mb_tokenizer_scratch *scratch = NULL;
    MB_NEW(scratch);
    scratch->tokenizer = tokenizer;
    MB_TRY(mb_tokenizer_matcher_create(&scratch->matcher));
    MB_TRY(mb_word_model_work_create(tokenizer->words, &scratch->model));
    *out_scratch = scratch;
    scratch = NULL;
done:
    mb_tokenizer_scratch_destroy(&scratch);
    return status;
}

void mb_tokenizer_scratch_destroy(mb_tokenizer_scratch **scratch)
{
    mb_tokenizer_scratch *s = *scratch;
    if (s == NULL) return;
    mb_tokenizer_matcher_destroy(&s->matcher);
    mb_normalize_edit_destroy(&s->edits[0]);
    mb_normalize_edit_destroy(&s->edits[1]);
    mb_pretokenize_work_destroy(&s->words);
    mb_word_model_work_destroy(&s->model);
    mb_ids_destroy(&s->lengths);
    MB_FREE(*scratch);
}

/* 3. encode */

/* Where the ids go. */
typedef struct sink {
    mb_ids *ids;
    mb_ids *opt_spans;
} sink;

static mb_status put_span(mb_ids *spans, mb_range range)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ids_append(spans, (uint32_t)range.first));
    MB_TRY(mb_ids_append(spans, (uint32_t)range.end));
done:
    return status;
}

static mb_status put_added(const mb_added_part *part, const mb_text_view *view, const sink *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ids_append(out->ids, part->token->id));
    if (out->opt_spans != NULL)
        MB_TRY(put_span(out->opt_spans, mb_normalize_range(view, part->first, part->end)));
done:
    return status;
}

/* The spans of a word's ids, from the bytes that each stands for. */
static mb_status put_word_spans(const mb_text_view *view, const mb_range *word, const mb_ids *lengths,
                                mb_ids *spans)
{
    mb_status status = MB_OK;
    size_t at = (size_t)word->first, end = (size_t)word->end;
    for (int64_t i = 0; i < lengths->count; i++) {
        size_t next = at + lengths->data[i] < end ? at + lengths->data[i] : end;
        mb_range range =
            at < next ? mb_normalize_range(view, at, next) : mb_normalize_range(view, end - 1, end);
        MB_TRY(put_span(spans, range));
        at = next;
    }
done:
    return status;
}

/* Text without added tokens, normalised. */
static mb_status encode_plain(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                              const mb_text_view *text, const sink *out)
{
    mb_status status = MB_OK;
    mb_text_view view;
    const mb_range *words = NULL;
    int64_t count = 0;
    mb_ids *lengths = out->opt_spans != NULL ? &scratch->lengths : NULL;
    MB_TRY(mb_pretokenizer_run(tokenizer->pretokenizer, &scratch->words, scratch->matcher, text,
                               lengths != NULL || tokenizer->keeps_ranges, &view, &words, &count));
    for (int64_t i = 0; i < count; i++) {
        size_t n = (size_t)(words[i].end - words[i].first);
        mb_ids_reset(&scratch->lengths);
        MB_TRY(mb_word_model_encode(tokenizer->words, scratch->model, view.bytes + words[i].first, n,
                                    out->ids, lengths));
        if (lengths != NULL) MB_TRY(put_word_spans(&view, &words[i], lengths, out->opt_spans));
    }
done:
    return status;
}

/* Text between the tokens that are found before normalisation. */
static mb_status encode_section(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                                const mb_text_view *text, const sink *out)
{
    mb_status status = MB_OK;
    mb_text_view view;
    mb_added_walk walk = {0};
    mb_added_part part;
    const bool tracked = out->opt_spans != NULL || tokenizer->keeps_ranges;
    MB_TRY(mb_normalizer_run(tokenizer->normalizer, scratch->matcher, text, tracked, scratch->edits, &view));
    while (mb_added_tokens_next(tokenizer->normalized, &walk, view.bytes, view.n, &part)) {
        if (part.token != NULL) {
            MB_TRY(put_added(&part, &view, out));
            continue;
        }
        mb_text_view plain = mb_normalize_slice(&view, part.first, part.end);
        MB_TRY(encode_plain(tokenizer, scratch, &plain, out));
    }
done:
    return status;
}

static mb_status put_outer(const mb_ids *outer, int64_t at, const sink *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ids_append_all(out->ids, outer->data, outer->count));
    for (int64_t i = 0; out->opt_spans != NULL && i < outer->count; i++)
        MB_TRY(put_span(out->opt_spans, (mb_range){at, at}));
done:
    return status;
}

static mb_status encode(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch, const char *text,
                        size_t n, bool add_special_tokens, const sink *out)
{
    mb_status status = MB_OK;
    size_t bad = 0;
    mb_text_view view = {.bytes = text, .n = n};
    mb_added_walk walk = {0};
    mb_added_part part;
    if (n >= INT32_MAX / 4)
        MB_RAISE(MB_ERANGE, "a text of %zu bytes is too long to tokenise at once; split it", n);
    if (!mb_str_is_utf8(text, n, &bad)) MB_RAISE(MB_EDATA, "the text is not valid UTF-8 at byte %zu", bad);
    if (add_special_tokens) MB_TRY(put_outer(&tokenizer->before, 0, out));
    while (mb_added_tokens_next(tokenizer->raw, &walk, text, n, &part)) {
        if (part.token != NULL) {
            MB_TRY(put_added(&part, &view, out));
            continue;
        }
        mb_text_view section = mb_normalize_slice(&view, part.first, part.end);
        MB_TRY(encode_section(tokenizer, scratch, &section, out));
    }
    if (add_special_tokens) MB_TRY(put_outer(&tokenizer->after, (int64_t)n, out));
done:
    return status;
}

mb_status mb_tokenizer_encode_spans(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                                    const char *text, size_t n, bool add_special_tokens, mb_ids *ids,
                                    mb_ids *spans)
{
    sink out = {.ids = ids, .opt_spans = spans};
    int64_t id_count = ids->count, span_count = spans != NULL ? spans->count : 0;
    if (scratch->tokenizer != tokenizer)
        return mb_fail(MB_EUSAGE, "this scratch was made for another tokenizer");
    mb_status status = encode(tokenizer, scratch, text, n, add_special_tokens, &out);
    if (status != MB_OK) { /* nothing is appended on failure */
        ids->count = id_count;
        if (spans != NULL) spans->count = span_count;
    }
    return status;
}

mb_status mb_tokenizer_encode(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch, const char *text,
                              size_t n, bool add_special_tokens, mb_ids *ids)
{
    return mb_tokenizer_encode_spans(tokenizer, scratch, text, n, add_special_tokens, ids, NULL);
}

/* 4. decode */

mb_status mb_tokenizer_decode(const mb_tokenizer *tokenizer, const uint32_t *ids, int64_t n,
                              bool skip_special_tokens, mb_str *s)
{
    mb_status status = MB_OK;
    mb_tokenizer_pieces pieces = {0};
    for (int64_t i = 0; i < n; i++) {
        size_t length;
        const char *token = mb_word_model_token(tokenizer->words, ids[i], &length);
        if (token == NULL)
            MB_RAISE(MB_ERANGE, "id %u at place %lld is not in the tokenizer's vocabulary", ids[i],
                     (long long)i);
        if (skip_special_tokens && tokenizer->is_special[ids[i]]) continue;
        MB_TRY(mb_tokenizer_pieces_add(&pieces, token, length));
    }
    MB_TRY(mb_tokenizer_decoder_run(tokenizer->decoder, &pieces, s));
done:
    mb_tokenizer_pieces_destroy(&pieces);
    return status;
}

/* 5. access */

int64_t mb_tokenizer_count(const mb_tokenizer *tokenizer)
{
    return mb_word_model_count(tokenizer->words);
}

bool mb_tokenizer_find(const mb_tokenizer *tokenizer, const char *token, uint32_t *out_id)
{
    uint32_t id = mb_word_model_find(tokenizer->words, token, strlen(token));
    if (id == MB_WORD_MODEL_NONE) return false;
    *out_id = id;
    return true;
}

const char *mb_tokenizer_token(const mb_tokenizer *tokenizer, uint32_t id)
{
    return mb_word_model_token(tokenizer->words, id, NULL);
}

int64_t mb_tokenizer_bos(const mb_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int64_t mb_tokenizer_eos(const mb_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

int64_t mb_tokenizer_pad(const mb_tokenizer *tokenizer)
{
    return tokenizer->pad;
}

const char *mb_tokenizer_chat_template(const mb_tokenizer *tokenizer)
{
    return tokenizer->chat_template;
}

const char *mb_tokenizer_hash(const mb_tokenizer *tokenizer)
{
    return tokenizer->hash;
}
