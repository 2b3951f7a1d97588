/* generate: continuations of prompts by a language model, many at a time.
 *
 * 1. options
 * 2. ends of text
 * 3. state
 * 4. ranks in step
 * 5. new prompts
 * 6. the rows of a step
 * 7. tokens drawn
 * 8. answers
 * 9. run
 */
#include "serve/generate.h"

#include <omp.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/rng.h"
#include "base/stop.h"
#include "serve/answer.h"
#include "serve/sample.h"
#include "serve/slots.h"

/* ---- 1. options ---- */

const mb_option *mb_generate_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_INT(mb_generate_options, max_new_tokens, "generate.max_new_tokens", "128", 1, 1 << 24,
                      "tokens", "longest answer", "max_new_tokens"),
        MB_OPTION_REAL(mb_generate_options, temperature, "generate.temperature", "0", 0, 100, "",
                       "0: greedy; else tokens are drawn, with logits divided by it", "temperature"),
        MB_OPTION_INT(mb_generate_options, top_k, "generate.top_k", "0", 0, 1 << 24, "tokens",
                      "draw from the k likeliest tokens; 0: all", "top_k"),
        MB_OPTION_REAL(mb_generate_options, top_p, "generate.top_p", "1", 0, 1, "share",
                       "draw from the likeliest tokens that make up this probability", "top_p"),
        MB_OPTION_REAL(mb_generate_options, min_p, "generate.min_p", "0", 0, 1, "share",
                       "draw from tokens at least this share as likely as the likeliest", "min_p"),
        MB_OPTION_REAL(mb_generate_options, repetition_penalty, "generate.repetition_penalty", "1", 0.01, 100,
                       "", "makes tokens that stood before less likely; 1: no penalty", "repetition_penalty"),
        MB_OPTION_INT(mb_generate_options, samples, "generate.num_return_sequences", "1", 1, 4096, "answers",
                      "answers to each prompt", "num_return_sequences"),
        MB_OPTION_INT(mb_generate_options, seed, "generate.seed", "42", 0, 9e18, "",
                      "seed of draws; an answer depends on it and the record's number alone", "seed"),
        MB_OPTION_JSON(mb_generate_options, stop, "generate.stop", NULL,
                       "strings that end an answer: one as it stands, or a JSON list; the text is cut before "
                       "the first",
                       "stop|stop_strings"),
        MB_OPTION_BOOL(mb_generate_options, ignore_eos, "generate.ignore_eos", "false",
                       "do not stop at the model's end-of-text tokens", "ignore_eos"),
        MB_OPTION_BOOL(mb_generate_options, cache, "generate.cache", "true",
                       "keep keys and values; false: compute every sequence from scratch for each token (to "
                       "check)",
                       "use_cache"),
        MB_OPTION_INT(mb_generate_options, batch_sequences, "generate.batch_sequences", "64", 1, 65536,
                      "sequences", "answered at a time", "generate.batch_size|batch_size"),
        MB_OPTION_INT(mb_generate_options, batch_tokens, "generate.batch_tokens", "32768", 16, 1 << 30,
                      "tokens", "keys and values kept at a time, of prompts and answers in full length",
                      NULL),
        MB_OPTION_INT(mb_generate_options, prefill_tokens, "generate.prefill_tokens", "512", 1, 1 << 24,
                      "tokens", "tokens of new prompts computed in one step; longer prompts come in pieces",
                      NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

const char *mb_generate_finish_name(mb_generate_finish finish)
{
    static const char *const names[] = {"stop", "length", "stop_string"};
    return names[finish];
}

/* ---- 2. ends of text ---- */

/* eos_token_id of a JSON file, a number or a list of them; nothing when the file or the member is not
 * there. */
static mb_status ends_of_file(const char *folder, const char *name, mb_ids *ids)
{
    mb_status status = MB_OK;
    json_t *file = NULL;
    char *path = mb_files_join(folder, name);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", folder);
    if (!mb_files_is_file(path)) goto done;
    MB_TRY(mb_json_read(path, &file));
    const json_t *end = json_object_get(file, "eos_token_id");
    if (end == NULL || json_is_null(end)) goto done;
    const size_t n = json_is_array(end) ? json_array_size(end) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_array(end) ? json_array_get(end, i) : end;
        const json_int_t id = json_integer_value(one);
        if (!json_is_integer(one) || id < 0 || id > INT32_MAX)
            MB_RAISE(MB_EFORMAT, "%s: eos_token_id must be a token's number or a list of them", path);
        MB_TRY(mb_ids_append(ids, (uint32_t)id));
    }
done:
    json_decref(file);
    mb_free(path);
    return status;
}

mb_status mb_generate_ends_read(const char *folder, const mb_tokenizer *opt_tokenizer, mb_ids *ids)
{
    mb_status status = MB_OK;
    const int64_t before = ids->count;
    if (folder != NULL) MB_TRY(ends_of_file(folder, "generation_config.json", ids));
    if (folder != NULL && ids->count == before) MB_TRY(ends_of_file(folder, "config.json", ids));
    if (ids->count == before && opt_tokenizer != NULL && mb_tokenizer_eos(opt_tokenizer) >= 0)
        MB_TRY(mb_ids_append(ids, (uint32_t)mb_tokenizer_eos(opt_tokenizer)));
done:
    return status;
}

/* ---- 3. state ---- */

/* A row of logits to draw from: the slot's own, and those of the samples that wait for it. */
typedef struct draw {
    int64_t slot, row;
    uint32_t token;
    double logprob;
    bool is_good;
} draw;

typedef struct generator {
    mb_lm *lm;
    const mb_tokenizer *tokenizer; /* or NULL */
    const mb_ids *ends;
    const mb_generate_options *options;
    const mb_generate_source *source;
    mb_generate_report report;
    mb_sample_rule rule;
    mb_answer_stops stops;
    mb_slots slots;
    mb_kv_cache *cache; /* NULL: from scratch */
    mb_lm_pass *pass;
    mb_sample **samplers; /* [threads] */
    int threads;
    mb_generate_prompt prompt; /* taken from the source, not yet in slots */
    bool has_prompt, is_at_end;
    bool has_failed; /* all ranks of the group know of a failure */
    mb_ids given;    /* ids of the prompt that the first rank of the group sent */
    /* the step's rows */
    int32_t *ids, *positions, *offsets, *slot, *head_row; /* [most rows], [slots + 1] */
    int64_t tokens, segments, heads, pieces;
    draw *draws; /* [slots] */
    int64_t draw_count;
    const float **routing; /* [routers] of a sequence */
    mb_str text;
} generator;

static void generator_reset(generator *g)
{
    for (int i = 0; g->samplers != NULL && i < g->threads; i++) mb_sample_destroy(&g->samplers[i]);
    mb_free(g->samplers);
    mb_answer_stops_reset(&g->stops);
    mb_slots_reset(&g->slots);
    mb_kv_cache_destroy(&g->cache);
    mb_lm_pass_destroy(&g->pass);
    mb_free(g->ids);
    mb_free(g->positions);
    mb_free(g->offsets);
    mb_free(g->slot);
    mb_free(g->head_row);
    mb_free(g->draws);
    mb_free(g->routing);
    mb_ids_destroy(&g->given);
    mb_str_destroy(&g->text);
}

/* Longest piece of a prompt. Where the rotary frequencies depend on a sequence's length, a prompt must come
 * whole. */
static int64_t piece_rows(const generator *g)
{
    const mb_rotary_type type = mb_lm_arch(g->lm)->rotary.type;
    const bool is_whole = type == MB_ROTARY_DYNAMIC || type == MB_ROTARY_LONGROPE;
    return is_whole ? mb_generate_longest(g->lm, g->options) : g->options->prefill_tokens;
}

/* Rows of a step at most: one of each sequence and a piece of a prompt, or all there are. */
static int64_t most_rows(const generator *g)
{
    return g->cache != NULL ? g->slots.count + piece_rows(g) : g->slots.rows;
}

static mb_status generator_create(generator *g)
{
    mb_status status = MB_OK;
    const mb_generate_options *o = g->options;
    const mb_arch *arch = mb_lm_arch(g->lm);
    mb_ops *ops = mb_lm_ops(g->lm);
    const int64_t slots = o->batch_sequences < o->samples ? o->samples : o->batch_sequences;
    const int64_t most = slots * mb_rotary_limit(&arch->rotary, arch->max_positions),
                  rows = o->batch_tokens < most ? o->batch_tokens : most;
    g->rule = (mb_sample_rule){o->temperature, o->top_k, o->top_p, o->min_p, o->repetition_penalty};
    MB_TRY(mb_answer_stops_read(o->stop, &g->stops));
    if (g->stops.count > 0 && g->tokenizer == NULL)
        MB_RAISE(MB_EUSAGE, "generate.stop needs a tokenizer; name its folder with tokenizer.path");
    MB_TRY(mb_slots_create(slots, rows, &g->slots));
    if (o->cache) MB_TRY(mb_lm_cache_create(g->lm, slots, rows, &g->cache));
    MB_TRY(mb_lm_pass_create(g->lm, &g->pass));
    g->threads = mb_ops_threads(ops);
    MB_NEW_ARRAY(g->samplers, g->threads);
    for (int i = 0; i < g->threads; i++) MB_TRY(mb_sample_create(arch->vocab, &g->samplers[i]));
    MB_NEW_ARRAY(g->ids, most_rows(g));
    MB_NEW_ARRAY(g->positions, most_rows(g));
    MB_NEW_ARRAY(g->offsets, slots + 1);
    MB_NEW_ARRAY(g->slot, slots);
    MB_NEW_ARRAY(g->head_row, slots);
    MB_NEW_ARRAY(g->draws, slots);
    MB_NEW_ARRAY(g->routing, mb_lm_routers(g->lm) + 1);
done:
    return status;
}

/* ---- 4. ranks in step ---- */

static bool is_first(const generator *g)
{
    return g->source->opt_group == NULL || mb_comm_rank(g->source->opt_group) == 0;
}

/* All ranks of the group fail, or none. Between what may fail on one rank and the next call of this none of
 * them communicates; once all know of a failure it passes through. */
static mb_status agreed(generator *g, mb_status status)
{
    if (g->source->opt_group == NULL || g->has_failed) return status;
    status = mb_comm_agree(g->source->opt_group, status);
    g->has_failed = status != MB_OK;
    return status;
}

/* The first rank's next prompt, on all of them. */
static mb_status next_prompt(generator *g)
{
    mb_status status = MB_OK;
    mb_comm *group = g->source->opt_group;
    g->has_prompt = false;
    if (is_first(g)) status = g->source->next(g->source->own, &g->prompt, &g->has_prompt);
    if (group == NULL) return status;
    int64_t head[] = {status == MB_OK && g->has_prompt, g->prompt.record, g->prompt.count};
    MB_TRY(agreed(g, status));
    MB_TRY(mb_comm_bcast(group, head, sizeof head, 0));
    g->has_prompt = head[0] != 0;
    if (!g->has_prompt) goto done;
    mb_ids_reset(&g->given);
    for (int64_t i = 0; status == MB_OK && !is_first(g) && i < head[2]; i++)
        status = mb_ids_append(&g->given, 0);
    MB_TRY(agreed(g, status));
    if (!is_first(g)) g->prompt = (mb_generate_prompt){head[1], g->given.data, head[2]};
    uint32_t *ids = is_first(g) ? (uint32_t *)(uintptr_t)g->prompt.ids : g->given.data;
    MB_TRY(mb_comm_bcast(group, ids, (size_t)head[2] * sizeof *ids, 0));
done:
    return status;
}

/* ---- 5. new prompts ---- */

int64_t mb_generate_longest(const mb_lm *lm, const mb_generate_options *options)
{
    const mb_arch *arch = mb_lm_arch(lm);
    const int64_t positions = mb_rotary_limit(&arch->rotary, arch->max_positions),
                  rows = options->batch_tokens / options->samples;
    return (positions < rows ? positions : rows) - 1;
}

/* Slots for all samples of the prompt at hand; false when they must wait. */
static mb_status admit_one(generator *g, bool *out_admitted)
{
    mb_status status = MB_OK;
    const mb_generate_options *o = g->options;
    const int64_t longest = mb_generate_longest(g->lm, o), n = g->prompt.count;
    if (n < 1 || n > longest)
        MB_RAISE(MB_ERANGE, "record %lld: its prompt has %lld tokens; 1 to %lld can be answered",
                 (long long)g->prompt.record, (long long)n, (long long)longest);
    const int64_t room = o->max_new_tokens < longest + 1 - n ? n + o->max_new_tokens : longest + 1;
    int64_t leader = -1;
    *out_admitted = false;
    for (int64_t i = 0; i < o->samples; i++) {
        const int64_t slot = mb_slots_take(&g->slots, room);
        if (slot < 0) { /* give back what this prompt has */
            for (int64_t j = 0; leader >= 0 && j < g->slots.count; j++)
                if (j == leader || (g->slots.list[j].is_used && g->slots.list[j].leader == leader))
                    mb_slots_give(&g->slots, j);
            return MB_OK;
        }
        mb_slot *s = &g->slots.list[slot];
        s->record = g->prompt.record;
        s->sample = i;
        s->prompt = n;
        s->leader = leader;
        s->routed = i > 0 ? n : 0;
        if (leader < 0) leader = slot;
        if (g->cache != NULL) mb_kv_cache_place(g->cache, slot, s->first, room);
        MB_TRY(mb_ids_append_all(&s->ids, g->prompt.ids, n));
    }
    g->has_prompt = false;
    *out_admitted = true;
    g->report.prompts++;
    g->report.prompt_tokens += n;
done:
    return status;
}

static mb_status admit(generator *g)
{
    mb_status status = MB_OK;
    bool admitted = true;
    while (admitted && g->slots.used < g->slots.count) {
        if (!g->has_prompt && !g->is_at_end) {
            MB_TRY(next_prompt(g));
            g->is_at_end = !g->has_prompt;
        }
        if (!g->has_prompt) break;
        MB_TRY(agreed(g, admit_one(g, &admitted)));
    }
done:
    return status;
}

/* ---- 6. the rows of a step ---- */

static void add_rows(generator *g, int64_t slot, int64_t first, int64_t n)
{
    const mb_slot *s = &g->slots.list[slot];
    for (int64_t i = 0; i < n; i++) {
        g->ids[g->tokens + i] = (int32_t)s->ids.data[first + i];
        g->positions[g->tokens + i] = (int32_t)(first + i);
    }
    g->slot[g->segments++] = (int32_t)slot;
    g->tokens += n;
    g->offsets[g->segments] = (int32_t)g->tokens;
    if (first + n < s->ids.count) return;
    g->draws[g->draw_count++] = (draw){.slot = slot, .row = g->heads};
    g->head_row[g->heads++] = (int32_t)(g->tokens - 1);
}

/* From scratch: as many whole sequences as there is room for in the pool: all, their samples too. */
static void plan_whole(generator *g)
{
    for (int64_t i = 0; i < g->slots.count; i++) {
        mb_slot *s = &g->slots.list[i];
        if (!s->is_used) continue;
        s->leader = -1;
        g->pieces += s->ids.count == s->prompt;
        add_rows(g, i, 0, s->ids.count);
    }
}

/* Sequences being answered first, then pieces of prompts up to prefill_tokens rows (the first piece always
 * fits). */
static void plan_kept(generator *g)
{
    const int64_t piece = piece_rows(g);
    int64_t left = piece;
    for (int64_t i = 0; i < g->slots.count; i++) {
        const mb_slot *s = &g->slots.list[i];
        if (s->is_used && s->kept >= s->prompt) add_rows(g, i, s->kept, 1);
    }
    for (int64_t i = 0; i < g->slots.count; i++) {
        const mb_slot *s = &g->slots.list[i];
        if (!s->is_used || s->leader >= 0 || s->kept >= s->prompt) continue;
        const int64_t rest = s->prompt - s->kept, n = rest < piece ? rest : piece;
        if (n > left) continue;
        left -= n;
        add_rows(g, i, s->kept, n);
        g->pieces++;
    }
}

static mb_status forward(generator *g, mb_lm_output *out)
{
    mb_status status = MB_OK;
    const mb_lm_want want = {.logits = g->heads > 0, .no_routing = g->source->route == NULL};
    const mb_lm_batch batch = {.tokens = g->tokens,
                               .segments = g->segments,
                               .ids = g->ids,
                               .positions = g->positions,
                               .offsets = g->offsets,
                               .head_rows = g->heads,
                               .head_row = g->head_row,
                               .opt_cache = g->cache,
                               .opt_slot = g->slot};
    MB_TRY(mb_lm_forward(g->pass, &batch, &want, out));
    for (int64_t i = 0; g->cache != NULL && i < g->segments; i++)
        g->slots.list[g->slot[i]].kept = g->cache->length[g->slot[i]];
done:
    return status;
}

/* The routers' logits of the step's rows, sequence by sequence; rows computed again are left out. */
static mb_status give_routing(generator *g, const mb_lm_output *out)
{
    mb_status status = MB_OK;
    const mb_arch *arch = mb_lm_arch(g->lm);
    const int64_t width = arch->experts + arch->trash;
    for (int64_t i = 0; i < g->segments; i++) {
        mb_slot *s = &g->slots.list[g->slot[i]];
        const int64_t begin = g->positions[g->offsets[i]], end = begin + g->offsets[i + 1] - g->offsets[i],
                      first = s->routed > begin ? s->routed : begin;
        if (first >= end) continue;
        for (int64_t r = 0; r < out->routers; r++)
            g->routing[r] = out->router_logits[r] + (g->offsets[i] + first - begin) * width;
        const mb_generate_routing piece = {.record = s->record,
                                           .sample = s->sample,
                                           .ids = s->ids.data,
                                           .prompt = s->prompt,
                                           .first = first,
                                           .count = end - first,
                                           .routers = out->routers,
                                           .width = width,
                                           .logits = g->routing};
        MB_TRY(g->source->route(g->source->own, &piece));
        s->routed = end;
    }
done:
    return status;
}

/* ---- 7. tokens drawn ---- */

/* Samples that waited for a prompt's rows get copies of them, and draw from its last row too. */
static mb_status wake_samples(generator *g)
{
    mb_status status = MB_OK;
    const int64_t draws = g->draw_count;
    for (int64_t d = 0; d < draws; d++)
        for (int64_t i = 0; i < g->slots.count; i++) {
            mb_slot *s = &g->slots.list[i];
            if (!s->is_used || s->leader != g->draws[d].slot) continue;
            MB_TRY(mb_kv_cache_copy(g->cache, s->leader, i));
            s->kept = s->prompt;
            s->leader = -1;
            g->draws[g->draw_count++] = (draw){.slot = i, .row = g->draws[d].row};
        }
done:
    return status;
}

static void draw_one(const generator *g, mb_sample *sampler, const float *logits, draw *d)
{
    const mb_slot *s = &g->slots.list[d->slot];
    const uint64_t index = (uint64_t)s->record << 24 | (uint64_t)s->sample;
    const double uniform =
        g->rule.temperature > 0
            ? mb_rng_uniform((uint64_t)g->options->seed, MB_RNG_GENERATE, (uint32_t)s->ids.count, index)
            : 0;
    d->is_good = mb_sample_next(sampler, &g->rule, logits + d->row * mb_lm_arch(g->lm)->vocab, s->ids.data,
                                s->ids.count, uniform, &d->token, &d->logprob);
}

static mb_status draw_all(generator *g, const float *logits)
{
    mb_status status = MB_OK;
    const int64_t n = g->draw_count;
#pragma omp parallel for schedule(static, 1) num_threads(g->threads) if (n > 1)
    for (int64_t i = 0; i < n; i++) draw_one(g, g->samplers[omp_get_thread_num()], logits, &g->draws[i]);
    if (g->source->opt_group != NULL) /* other machines may round otherwise */
        MB_TRY(mb_comm_bcast(g->source->opt_group, g->draws, (size_t)n * sizeof *g->draws, 0));
    for (int64_t i = 0; i < n; i++)
        if (!g->draws[i].is_good)
            MB_RAISE(MB_ERANGE,
                     "record %lld: logits that are not finite after %lld tokens; is the model whole?",
                     (long long)g->slots.list[g->draws[i].slot].record,
                     (long long)g->slots.list[g->draws[i].slot].ids.count);
done:
    return status;
}

/* ---- 8. answers ---- */

static bool is_end(const generator *g, uint32_t token)
{
    for (int64_t i = 0; !g->options->ignore_eos && i < g->ends->count; i++)
        if (g->ends->data[i] == token) return true;
    return false;
}

static mb_status answer(generator *g, int64_t slot, mb_generate_finish finish)
{
    mb_status status = MB_OK;
    const mb_slot *s = &g->slots.list[slot];
    const uint32_t *ids = s->ids.data + s->prompt;
    const int64_t n = s->ids.count - s->prompt;
    if (g->tokenizer != NULL && finish != MB_GENERATE_STOP_STRING) {
        mb_str_reset(&g->text);
        MB_TRY(mb_answer_text(g->tokenizer, s->ids.data, s->prompt, ids, n - (finish == MB_GENERATE_STOP),
                              &g->text));
    }
    const mb_generate_answer result = {.record = s->record,
                                       .sample = s->sample,
                                       .ids = ids,
                                       .count = n,
                                       .text = g->tokenizer != NULL ? mb_str_text(&g->text) : NULL,
                                       .length = g->text.length,
                                       .finish = finish,
                                       .logprob = s->logprob};
    if (is_first(g)) MB_TRY(g->source->take(g->source->own, &result));
    g->report.answers++;
    mb_slots_give(&g->slots, slot);
done:
    return status;
}

/* Put the drawn token behind its sequence, and end that where a rule says so. */
static mb_status accept(generator *g, const draw *d)
{
    mb_status status = MB_OK;
    mb_slot *s = &g->slots.list[d->slot];
    bool is_cut = false;
    MB_TRY(mb_ids_append(&s->ids, d->token));
    s->logprob += d->logprob;
    g->report.tokens++;
    if (is_end(g, d->token)) return answer(g, d->slot, MB_GENERATE_STOP);
    MB_TRY(mb_answer_stops_check(&g->stops, g->tokenizer, s->ids.data, s->prompt, s->ids.data + s->prompt,
                                 s->ids.count - s->prompt, &g->text, &is_cut));
    if (is_cut) return answer(g, d->slot, MB_GENERATE_STOP_STRING);
    if (s->ids.count == s->room) return answer(g, d->slot, MB_GENERATE_LENGTH);
    if (g->source->grow == NULL || !is_first(g)) goto done;
    const mb_generate_growth growth = {s->record, s->sample, s->ids.data, s->prompt, s->ids.count};
    MB_TRY(g->source->grow(g->source->own, &growth));
done:
    return status;
}

/* ---- 9. run ---- */

static mb_status step(generator *g)
{
    mb_status status = MB_OK;
    const double started = mb_clock_seconds();
    mb_lm_output out = {0};
    g->tokens = g->segments = g->heads = g->pieces = g->draw_count = 0;
    g->offsets[0] = 0;
    if (g->cache != NULL)
        plan_kept(g);
    else
        plan_whole(g);
    status = forward(g, &out);
    if (status == MB_OK && g->cache != NULL && g->options->samples > 1) status = wake_samples(g);
    MB_TRY(agreed(g, status));
    MB_TRY(draw_all(g, out.logits));
    if (g->source->route != NULL && is_first(g)) MB_TRY(give_routing(g, &out));
    for (int64_t i = 0; i < g->draw_count; i++) MB_TRY(accept(g, &g->draws[i]));
    const double seconds = mb_clock_seconds() - started;
    g->report.seconds += seconds;
    if (g->pieces > 0) goto done;
    g->report.step_tokens += g->draw_count;
    g->report.step_seconds += seconds;
done:
    return status;
}

static mb_status check_stop(void)
{
    if (!mb_stop_is_set()) return MB_OK;
    return mb_fail(MB_ESTOPPED, "stopped; the finished parts stay, run again to go on");
}

mb_status mb_generate_run(mb_lm *lm, const mb_tokenizer *opt_tokenizer, const mb_ids *ends,
                          const mb_generate_options *options, const mb_generate_source *source,
                          mb_generate_report *out_report)
{
    mb_status status = MB_OK;
    generator g = {.lm = lm, .tokenizer = opt_tokenizer, .ends = ends, .options = options, .source = source};
    MB_TRY(agreed(&g, generator_create(&g)));
    MB_TRY(agreed(&g, check_stop()));
    for (;;) {
        MB_TRY(agreed(&g, admit(&g)));
        if (g.slots.used == 0) break;
        status = step(&g);
        if (status == MB_OK) status = check_stop();
        MB_TRY(agreed(&g, status));
    }
    if (!is_first(&g))
        g.report = (mb_generate_report){.seconds = g.report.seconds, .step_seconds = g.report.step_seconds};
    *out_report = g.report;
done:
    generator_reset(&g);
    return status;
}
