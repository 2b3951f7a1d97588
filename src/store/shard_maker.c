/* shard_maker: see the header.
 *
 * Contents: 1. open, close  2. one text  3. pairs  4. make
 */
#include "store/shard_maker.h"

#include <string.h>

#include "base/memory.h"

/* ---- 1. open, close ---- */

mb_status mb_shard_maker_open(const mb_shard_build_options *options, bool is_pairs, mb_shard_maker *maker)
{
    mb_status status = MB_OK;
    maker->options = options;
    maker->is_pairs = is_pairs;
    if (options->tokenizer_path == NULL)
        MB_RAISE(MB_EUSAGE, "tokenizer.path is missing: the tokenizer.json, or the folder that holds it");
    MB_TRY(mb_tokenizer_open(options->tokenizer_path, &maker->tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(maker->tokenizer, &maker->scratch));
done:
    return status;
}

void mb_shard_maker_close(mb_shard_maker *maker)
{
    mb_tokenizer_scratch_destroy(&maker->scratch);
    mb_tokenizer_close(&maker->tokenizer);
    mb_ids_destroy(&maker->spans);
    mb_ids_destroy(&maker->prompt);
    for (int s = 0; s < 2; ++s) {
        mb_dialog_destroy(&maker->sides[s].dialog);
        mb_rendered_destroy(&maker->sides[s].rendered);
        mb_ids_destroy(&maker->sides[s].ids);
        MB_FREE(maker->sides[s].mask);
    }
}

/* ---- 2. one text ---- */

static mb_status grow_mask(mb_shard_side *side, int64_t n)
{
    mb_status status = MB_OK;
    if (n <= side->mask_capacity) return MB_OK;
    uint8_t *mask = mb_realloc(side->mask, (size_t)n * 2, 1);
    if (mask == NULL) MB_RAISE(MB_ENOMEM, "no memory for a loss mask of %lld tokens", (long long)n);
    side->mask = mask;
    side->mask_capacity = 2 * n;
done:
    return status;
}

static bool is_end_learnt(const mb_shard_side *side)
{
    const mb_rendered *r = &side->rendered;
    return r->range_count > 0 && r->ranges[2 * r->range_count - 1] >= (int64_t)r->text.length;
}

/* A token counts when its first byte lies in a learnt range; the closing end-of-text counts when the text's
 * last byte does. */
static mb_status fill_mask(mb_shard_side *side, const mb_ids *spans, bool is_eos_added)
{
    mb_status status = MB_OK;
    const int64_t n = side->ids.count, *ranges = side->rendered.ranges, count = side->rendered.range_count;
    MB_TRY(grow_mask(side, n));
    for (int64_t t = 0, r = 0; t < n - is_eos_added; ++t) {
        int64_t first = spans->data[2 * t], end = spans->data[2 * t + 1];
        while (r < count && ranges[2 * r + 1] <= first) ++r;
        side->mask[t] = end > first && r < count && ranges[2 * r] <= first;
    }
    if (is_eos_added) side->mask[n - 1] = is_end_learnt(side);
done:
    return status;
}

static mb_status add_prefix(mb_rendered *rendered, const char *prefix)
{
    mb_status status = MB_OK;
    const size_t n = strlen(prefix), length = rendered->text.length;
    MB_TRY(mb_str_add(&rendered->text, prefix));
    memmove(rendered->text.data + n, rendered->text.data, length);
    memcpy(rendered->text.data, prefix, n);
    rendered->range_count = 0;
done:
    return status;
}

/* Does the tokenizer put its begin mark in front? A template that writes it itself gets none. */
static bool wants_specials(const mb_shard_maker *maker, const mb_shard_side *side)
{
    const int64_t bos = mb_tokenizer_bos(maker->tokenizer);
    const char *mark = bos >= 0 ? mb_tokenizer_token(maker->tokenizer, (uint32_t)bos) : NULL;
    const bool has_bos = mark != NULL && mb_str_is_prefix(mb_str_text(&side->rendered.text), mark);
    return !has_bos && !maker->options->is_bare;
}

/* Is the end mark there? Templates may end with it, or with it and line feeds. */
static bool has_eos(const mb_shard_side *side, const mb_ids *spans, uint32_t eos)
{
    const int64_t n = side->ids.count;
    const char *text = mb_str_text(&side->rendered.text);
    for (int64_t i = n - 1; i >= 0; --i) {
        if (side->ids.data[i] == eos) return true;
        const uint32_t first = spans->data[2 * i], end = spans->data[2 * i + 1];
        bool is_space = true;
        for (uint32_t at = first; at < end; ++at) is_space = is_space && strchr(" \t\r\n", text[at]) != NULL;
        if (!is_space && i < n - 1) return false;
    }
    return false;
}

/* The rendered text -> ids and mask. */
static mb_status encode_side(mb_shard_maker *maker, mb_shard_side *side)
{
    mb_status status = MB_OK;
    const int64_t eos = mb_tokenizer_eos(maker->tokenizer);
    const mb_str *text = &side->rendered.text;
    mb_ids_reset(&side->ids);
    mb_ids_reset(&maker->spans);
    MB_TRY(mb_tokenizer_encode_spans(maker->tokenizer, maker->scratch, mb_str_text(text), text->length,
                                     wants_specials(maker, side), &side->ids, &maker->spans));
    const int64_t n = side->ids.count;
    const bool add_eos =
        maker->options->append_eos && eos >= 0 && !has_eos(side, &maker->spans, (uint32_t)eos);
    if (add_eos) {
        const uint32_t end = (uint32_t)text->length;
        MB_TRY(mb_ids_append(&side->ids, (uint32_t)eos));
        MB_TRY(mb_ids_append_all(&maker->spans, (const uint32_t[]){end, end}, 2));
    }
    MB_TRY(fill_mask(side, &maker->spans, add_eos));
    /* the end mark that the tokenizer puts behind every text counts as one that is put there here */
    if (!add_eos && n > 0 && side->ids.data[n - 1] == (uint32_t)eos &&
        maker->spans.data[2 * n - 2] == maker->spans.data[2 * n - 1])
        side->mask[n - 1] = is_end_learnt(side);
done:
    return status;
}

/* ---- 3. pairs ---- */

/* How many tokens both sides begin with alike, at most n. */
static int64_t common_prefix(const mb_ids *a, const mb_ids *b, int64_t n)
{
    int64_t i = 0;
    while (i < n && i < a->count && i < b->count && a->data[i] == b->data[i]) ++i;
    return i;
}

/* Where the answers begin in both texts; everything before is the prompt. */
static mb_status find_prompt(const mb_shard_side *chosen, const mb_shard_side *rejected, size_t *out_length)
{
    mb_status status = MB_OK;
    if (chosen->rendered.range_count == 0 || rejected->rendered.range_count == 0)
        MB_RAISE(MB_EDATA, "the %s side of the pair has no answer",
                 chosen->rendered.range_count == 0 ? "chosen" : "rejected");
    const int64_t a = chosen->rendered.ranges[0], b = rejected->rendered.ranges[0];
    const size_t n = (size_t)(a < b ? a : b);
    if (memcmp(mb_str_text(&chosen->rendered.text), mb_str_text(&rejected->rendered.text), n) != 0)
        MB_RAISE(MB_EDATA, "the two sides of the pair do not answer the same prompt");
    *out_length = n;
done:
    return status;
}

/* Tokens before the answers: see the header. */
static mb_status count_prompt(mb_shard_maker *maker, size_t length, int64_t *out_tokens)
{
    mb_status status = MB_OK;
    const mb_shard_side *chosen = &maker->sides[0], *rejected = &maker->sides[1];
    mb_ids *prompt = &maker->prompt;
    mb_ids_reset(prompt);
    mb_ids_reset(&maker->spans);
    MB_TRY(mb_tokenizer_encode_spans(maker->tokenizer, maker->scratch, mb_str_text(&chosen->rendered.text),
                                     length, wants_specials(maker, chosen), prompt, &maker->spans));
    /* what the tokenizer puts behind a whole text is no part of the prompt */
    while (prompt->count > 0 &&
           maker->spans.data[2 * prompt->count - 2] == maker->spans.data[2 * prompt->count - 1])
        --prompt->count;
    const int64_t n = common_prefix(&chosen->ids, prompt, prompt->count);
    *out_tokens = common_prefix(&chosen->ids, &rejected->ids, n);
done:
    return status;
}

/* The mask of a side: nothing before its answer's first token, and nothing missing from there on. */
static void mark_answer(mb_shard_side *side, int64_t first)
{
    const int64_t n = side->ids.count;
    int64_t counted = first;
    memset(side->mask, 0, (size_t)(first < n ? first : n));
    while (counted < n && !side->mask[counted]) ++counted;
    if (counted < n) memset(side->mask + first, 1, (size_t)(counted - first));
}

static mb_status make_pair(mb_shard_maker *maker)
{
    mb_status status = MB_OK;
    size_t length = 0;
    int64_t first = 0;
    MB_TRY(find_prompt(&maker->sides[0], &maker->sides[1], &length));
    for (int s = 0; s < 2; ++s) {
        maker->sides[s].rendered.ranges[0] = (int64_t)length;
        MB_TRY(encode_side(maker, &maker->sides[s]));
    }
    MB_TRY(count_prompt(maker, length, &first));
    for (int s = 0; s < 2; ++s) mark_answer(&maker->sides[s], first);
done:
    return status;
}

/* ---- 4. make ---- */

static mb_status render_pair(mb_shard_maker *maker, const mb_shard_input *input, const mb_template *tmpl,
                             const json_t *record)
{
    mb_status status = MB_OK;
    const mb_field_map map = {.form = input->form, .fields = input->fields};
    const int64_t bos = mb_tokenizer_bos(maker->tokenizer), eos = mb_tokenizer_eos(maker->tokenizer);
    MB_TRY(mb_dialog_read_pair(record, &map, &maker->sides[0].dialog, &maker->sides[1].dialog));
    for (int s = 0; s < 2; ++s)
        MB_TRY(mb_template_render(tmpl, &maker->sides[s].dialog, false,
                                  bos >= 0 ? mb_tokenizer_token(maker->tokenizer, (uint32_t)bos) : NULL,
                                  eos >= 0 ? mb_tokenizer_token(maker->tokenizer, (uint32_t)eos) : NULL,
                                  &maker->sides[s].rendered));
done:
    return status;
}

mb_status mb_shard_maker_make(mb_shard_maker *maker, const mb_shard_input *input, const mb_template *tmpl,
                              const json_t *record)
{
    mb_status status = MB_OK;
    mb_shard_side *side = &maker->sides[0];
    if (maker->is_pairs) {
        MB_TRY(render_pair(maker, input, tmpl, record));
        MB_TRY(make_pair(maker));
        goto done;
    }
    MB_TRY(mb_shard_build_render(record, input, tmpl, maker->tokenizer,
                                 strcmp(maker->options->loss_on, "all") == 0, &side->dialog,
                                 &side->rendered));
    if (maker->options->opt_prefix != NULL) MB_TRY(add_prefix(&side->rendered, maker->options->opt_prefix));
    MB_TRY(encode_side(maker, side));
done:
    return status;
}

int64_t mb_shard_maker_targets(const mb_shard_side *side, int64_t count)
{
    int64_t n = 0;
    for (int64_t t = 1; t < count && t < side->ids.count; ++t) n += side->mask[t];
    return n;
}
