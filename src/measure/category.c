/* category.c: records -> tokens, prompts and questions -> losses and right answers.
 *
 * Records are made into tokens on every rank. Tiles are runs of them, longest first, cut by tokens alone;
 * ranks take tiles from a queue, and every loss goes back with its record's number, so nothing depends on who
 * computed it. A record's sum has one order.
 *
 * 1. a record   2. reading   3. what there is   4. tiles   5. forwards   6. choices   7. all   8. figures
 */
#include "measure/category.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/stop.h"
#include "measure/choice.h"
#include "measure/tile.h"
#include "store/shard_maker.h"
#include "text/records.h"
#include "text/tasks_build.h"

typedef struct category_record {
    mb_category_kind kind;
    uint64_t hash;
    int64_t first, count;    /* tokens of the pool; 0 for choices */
    size_t prompt, prompt_n; /* bytes of the texts */
    size_t expected, expected_n;
    bool is_asked; /* it has a prompt */
} category_record;

struct mb_category {
    const mb_category_file *file;
    mb_shard_build_options build; /* strings borrowed */
    const mb_template *tmpl;
    mb_shard_maker maker;
    mb_rendered prompt;
    category_record *record; /* [count] */
    int64_t count, capacity;
    mb_ids tokens; /* of all records */
    mb_str masks;  /* [tokens.count] bytes 0, 1 */
    mb_str texts;
    mb_tasks_build questions; /* the choices; their doc_id is the record's number */
};

/* ---- 1. a record ---- */

static bool has_text(const json_t *record, const char *name)
{
    return json_is_string(json_object_get(record, name));
}

/* {"prompt", "answer" | "response" | "completion"} as {"question", "answer"}, and an answer that is a whole
 * number as its digits; other records as they are. A new reference. */
static json_t *usual_form(const json_t *record)
{
    static const char *const answers[] = {"answer", "response", "completion"};
    const json_t *given = NULL;
    json_t *copy = NULL;
    const bool is_question = has_text(record, "question");
    for (size_t i = 0; i < sizeof answers / sizeof *answers && given == NULL; i++)
        given = json_object_get(record, answers[i]);
    const bool is_pair = has_text(record, "prompt") && json_object_get(record, "text") == NULL;
    if (!is_question && !(is_pair && given != NULL)) return json_incref((json_t *)(uintptr_t)record);
    copy = json_copy((json_t *)(uintptr_t)record);
    if (copy == NULL) return NULL;
    if (!is_question) json_object_set(copy, "question", json_object_get(record, "prompt"));
    if (json_is_integer(given)) {
        char digits[32];
        snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(given));
        json_object_set_new(copy, "answer", json_string(digits));
    } else if (given != NULL) {
        json_object_set(copy, "answer", (json_t *)(uintptr_t)given);
    }
    return copy;
}

/* What the dialog asks and expects, when it ends with an answer in words. */
static mb_status add_prompt(mb_category *c, category_record *r)
{
    mb_status status = MB_OK;
    mb_dialog *dialog = &c->maker.sides[0].dialog;
    const mb_turn *last = dialog->count > 1 ? &dialog->turns[dialog->count - 1] : NULL;
    const int64_t bos = mb_tokenizer_bos(c->maker.tokenizer), eos = mb_tokenizer_eos(c->maker.tokenizer);
    bool is_same;
    if (last == NULL || last->role != MB_ROLE_ASSISTANT || last->call) goto done;
    if (c->file->match == MB_ANSWER_MATCH_NUMBER)
        MB_TRY(mb_answer_match_check(c->file->match, last->text, last->length, "", 0, &is_same));
    dialog->count--;
    status = mb_template_render_prompt(
        c->tmpl, dialog, bos >= 0 ? mb_tokenizer_token(c->maker.tokenizer, (uint32_t)bos) : NULL,
        eos >= 0 ? mb_tokenizer_token(c->maker.tokenizer, (uint32_t)eos) : NULL, &c->prompt);
    dialog->count++;
    MB_TRY(status);
    r->is_asked = true;
    r->prompt = c->texts.length;
    r->prompt_n = c->prompt.text.length;
    MB_TRY(mb_str_append(&c->texts, mb_str_text(&c->prompt.text), r->prompt_n + 1));
    r->expected = c->texts.length;
    r->expected_n = last->length;
    MB_TRY(mb_str_append(&c->texts, last->text, last->length));
    MB_TRY(mb_str_append(&c->texts, "", 1));
done:
    return status;
}

static mb_status add_tokens(mb_category *c, const json_t *json, category_record *r)
{
    mb_status status = MB_OK;
    json_t *usual = usual_form(json);
    const mb_shard_input input = {.form = (char *)(uintptr_t)c->file->opt_form,
                                  .fields = (char *)(uintptr_t)c->file->opt_fields};
    const mb_shard_side *side = &c->maker.sides[0];
    if (usual == NULL) MB_RAISE(MB_ENOMEM, "no memory for a record");
    MB_TRY(mb_shard_maker_make(&c->maker, &input, c->tmpl, usual));
    r->kind = MB_CATEGORY_TEXT;
    for (int64_t i = 0; i < side->dialog.count; i++)
        if (side->dialog.turns[i].role != MB_ROLE_TEXT) r->kind = MB_CATEGORY_ANSWER;
    r->first = c->tokens.count;
    r->count = side->ids.count;
    MB_TRY(mb_ids_append_all(&c->tokens, side->ids.data, side->ids.count));
    MB_TRY(mb_str_append(&c->masks, side->mask, (size_t)side->ids.count));
    if (r->kind == MB_CATEGORY_ANSWER) MB_TRY(add_prompt(c, r));
done:
    json_decref(usual);
    return status;
}

/* ---- 2. reading ---- */

static mb_status add_record(mb_category *c, const mb_record *read)
{
    mb_status status = MB_OK;
    category_record r = {.hash = mb_hash_u64(read->bytes, read->length, 0)};
    bool go_on = true;
    if (c->count == c->capacity) {
        const int64_t capacity = 2 * c->capacity + 64;
        category_record *more = mb_realloc(c->record, (size_t)capacity, sizeof *more);
        if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld records", (long long)capacity);
        c->record = more;
        c->capacity = capacity;
    }
    if (mb_tasks_build_member(read->json, "choices|options|endings") != NULL) {
        r.kind = MB_CATEGORY_CHOICE;
        MB_TRY(mb_tasks_kinds_choice(&c->questions, read->json, c->count, &go_on));
    } else {
        MB_TRY(add_tokens(c, read->json, &r));
    }
    c->record[c->count++] = r;
done:
    return status;
}

static mb_status read_file(mb_category *c)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record read;
    MB_TRY(mb_records_open(c->file->path, 0, &records));
    while (c->file->limit <= 0 || c->count < c->file->limit) {
        MB_TRY(mb_records_read(records, &read));
        if (read.bytes == NULL) break;
        if (read.problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", c->file->path, read.problem);
        status = add_record(c, &read);
        if (status != MB_OK) mb_status_prefix("%s: line %lld: ", c->file->path, (long long)read.line);
        if (status == MB_ENOTFOUND || status == MB_EFORMAT || status == MB_ERANGE) status = MB_EDATA;
        MB_TRY(status);
    }
    if (c->count == 0) MB_RAISE(MB_EDATA, "%s: holds no records", c->file->path);
done:
    mb_records_close(&records);
    return status;
}

/* The list that the choices are read into, as mb_task_open would make it. */
static mb_status begin_questions(mb_category *c)
{
    mb_status status = MB_OK;
    mb_task *task;
    MB_NEW(task);
    c->questions.task = task;
    task->name = mb_strdup(c->file->name);
    task->path = mb_strdup(c->file->path);
    if (task->name == NULL || task->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a task");
    task->delimiter = " ";
    task->has_acc_norm = task->has_acc_bytes = true;
done:
    return status;
}

mb_status mb_category_open(const mb_category_file *file, const mb_shard_build_options *build,
                           const mb_template *tmpl, mb_category **out_category)
{
    mb_status status = MB_OK;
    mb_category *c = NULL;
    MB_NEW(c);
    c->file = file;
    c->build = *build;
    c->tmpl = tmpl;
    MB_TRY(mb_shard_maker_open(&c->build, false, &c->maker));
    MB_TRY(begin_questions(c));
    MB_TRY(read_file(c));
    *out_category = c;
    c = NULL;
done:
    mb_category_close(&c);
    return status;
}

void mb_category_close(mb_category **category)
{
    mb_category *c = *category;
    if (c == NULL) return;
    mb_shard_maker_close(&c->maker);
    mb_rendered_destroy(&c->prompt);
    mb_task_close(&c->questions.task);
    mb_ids_destroy(&c->tokens);
    mb_str_destroy(&c->masks);
    mb_str_destroy(&c->texts);
    mb_free(c->record);
    MB_FREE(*category);
}

/* ---- 3. what there is ---- */

int64_t mb_category_count(const mb_category *category)
{
    return category->count;
}

int64_t mb_category_kinds(const mb_category *category, mb_category_kind kind)
{
    int64_t n = 0;
    for (int64_t i = 0; i < category->count; i++) n += category->record[i].kind == kind;
    return n;
}

mb_category_kind mb_category_kind_get(const mb_category *category, int64_t record)
{
    return category->record[record].kind;
}

const char *mb_category_prompt(const mb_category *category, int64_t record, size_t *out_length)
{
    const category_record *r = &category->record[record];
    *out_length = r->prompt_n;
    return r->is_asked ? category->texts.data + r->prompt : NULL;
}

const char *mb_category_expected(const mb_category *category, int64_t record, size_t *out_length)
{
    const category_record *r = &category->record[record];
    *out_length = r->expected_n;
    return r->is_asked ? category->texts.data + r->expected : NULL;
}

/* ---- 4. tiles ---- */

typedef struct category_item {
    int64_t record, length; /* tokens, as cut */
} category_item;

typedef struct category_work {
    const mb_category *category;
    category_item *item; /* [items] longest first */
    int64_t *tile_first; /* [tiles + 1] items */
    int64_t items, tiles;
} category_work;

static int longest_first(const void *a, const void *b)
{
    const category_item *x = a, *y = b;
    if (x->length != y->length) return x->length > y->length ? -1 : 1;
    return (x->record > y->record) - (x->record < y->record);
}

/* Is token t of the record, t >= 1, one whose loss counts? */
static bool is_target(const mb_category *c, const category_record *r, int64_t t)
{
    return c->masks.data[r->first + t] != 0;
}

static int64_t count_targets(const mb_category *c, const category_record *r, int64_t length)
{
    int64_t n = 0;
    for (int64_t t = 1; t < length; t++) n += is_target(c, r, t);
    return n;
}

/* Records without a target are left out. */
static mb_status plan_tiles(const mb_category *c, int64_t limit, int64_t tile_tokens, category_work *work)
{
    mb_status status = MB_OK;
    int64_t held = 0;
    work->category = c;
    MB_NEW_ARRAY(work->item, c->count + 1);
    MB_NEW_ARRAY(work->tile_first, c->count + 1);
    for (int64_t i = 0; i < c->count; i++) {
        const int64_t n = c->record[i].count < limit ? c->record[i].count : limit;
        if (n > 1 && count_targets(c, &c->record[i], n) > 0)
            work->item[work->items++] = (category_item){i, n};
    }
    qsort(work->item, (size_t)work->items, sizeof *work->item, longest_first);
    for (int64_t i = 0; i < work->items; i++) {
        if (i == 0 || held + work->item[i].length > tile_tokens) {
            work->tile_first[work->tiles++] = i;
            held = 0;
        }
        held += work->item[i].length;
    }
    work->tile_first[work->tiles] = work->items;
done:
    return status;
}

static mb_status fill_tile(const category_work *work, int64_t index, mb_tile *tile)
{
    mb_status status = MB_OK;
    const mb_category *c = work->category;
    mb_tile_reset(tile);
    for (int64_t i = work->tile_first[index]; i < work->tile_first[index + 1]; i++) {
        const category_record *r = &c->record[work->item[i].record];
        const int64_t row = tile->tokens;
        MB_TRY(mb_tile_add(tile, c->tokens.data + r->first, work->item[i].length));
        for (int64_t t = 1; t < work->item[i].length; t++)
            if (is_target(c, r, t)) mb_tile_add_target(tile, row + t - 1, c->tokens.data[r->first + t]);
    }
done:
    return status;
}

/* ---- 5. forwards ---- */

typedef struct category_loss {
    int64_t record, tokens;
    double nll;
} category_loss;

typedef struct category_losses {
    category_loss *data; /* [items] */
    int64_t count, tokens;
    double seconds;
} category_losses;

static mb_status take_tile(const category_work *work, int64_t index, const float *loss, category_losses *mine)
{
    mb_status status = MB_OK;
    const mb_category *c = work->category;
    int64_t head = 0;
    for (int64_t i = work->tile_first[index]; i < work->tile_first[index + 1]; i++) {
        const category_item *item = &work->item[i];
        category_loss one = {.record = item->record,
                             .tokens = count_targets(c, &c->record[item->record], item->length)};
        for (int64_t k = 0; k < one.tokens; k++) one.nll += loss[head++];
        if (!isfinite(one.nll))
            MB_RAISE(MB_ENUMERIC, "%s: record %lld: its loss is not a number; check the model's weights",
                     c->file->path, (long long)item->record);
        mine->data[mine->count++] = one;
        mine->tokens += item->length;
    }
done:
    return status;
}

static mb_status run_tiles(mb_lm *lm, const category_work *work, mb_comm_queue *queue, bool warm_up,
                           category_losses *mine)
{
    mb_status status = MB_OK;
    const mb_lm_want want = {.no_routing = true};
    mb_lm_pass *pass = NULL;
    mb_tile tile = {0};
    mb_lm_output out;
    mb_progress progress;
    int64_t unit;
    if (work->tiles == 0) goto done;
    mb_progress_start(&progress, work->category->file->name, "tiles", 0, work->tiles);
    MB_NEW_ARRAY(mine->data, work->items + 1);
    MB_TRY(mb_lm_pass_create(lm, &pass));
    for (;;) {
        if (mb_stop_is_set())
            MB_RAISE(MB_ESTOPPED, "stopped in category %s; run again", work->category->file->name);
        MB_TRY(mb_comm_queue_next(queue, &unit));
        if (unit < 0) break;
        MB_TRY(fill_tile(work, unit, &tile));
        const mb_lm_batch batch = mb_tile_batch(&tile);
        if (warm_up) MB_TRY(mb_lm_forward(pass, &batch, &want, &out));
        warm_up = false;
        const double began = mb_clock_seconds();
        MB_TRY(mb_lm_forward(pass, &batch, &want, &out));
        mine->seconds += mb_clock_seconds() - began;
        MB_TRY(take_tile(work, unit, out.token_loss, mine));
        mb_progress_step(&progress, unit + 1, NULL);
    }
    mb_progress_end(&progress, work->tiles, NULL);
done:
    mb_lm_pass_destroy(&pass);
    mb_tile_destroy(&tile);
    return status;
}

/* Everybody's losses, by record. */
static mb_status gather(mb_comm *comm, const category_losses *mine, mb_category_result *result)
{
    mb_status status = MB_OK;
    category_loss *all = NULL;
    int64_t *offsets = mb_calloc((size_t)mb_comm_size(comm) + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(comm, offsets != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgatherv(comm, mine->data, (size_t)mine->count * sizeof *all, (void **)&all, offsets));
    const int64_t n = offsets[mb_comm_size(comm)] / (int64_t)sizeof *all;
    for (int64_t i = 0; i < n; i++) {
        result->nll[all[i].record] = all[i].nll;
        result->tokens[all[i].record] = all[i].tokens;
    }
    result->forward_tokens = mine->tokens;
    result->forward_seconds = mine->seconds;
    MB_TRY(mb_comm_allreduce_i64(comm, &result->forward_tokens, 1, MB_COMM_SUM));
    MB_TRY(mb_comm_minmax_f64(comm, &result->forward_seconds, 1, MB_COMM_MAX));
done:
    mb_free(offsets);
    mb_free(all);
    return status;
}

static mb_status score_tokens(mb_comm *comm, mb_lm *lm, const mb_category *category,
                              const mb_category_options *options, mb_category_result *result)
{
    mb_status status = MB_OK;
    category_work work = {0};
    category_losses mine = {0};
    mb_comm_queue *queue = NULL;
    double attended = 0;
    const int64_t limit = mb_tile_limit(options->max_length, lm, NULL);
    MB_TRY(mb_comm_agree(comm, plan_tiles(category, limit, options->tile_tokens, &work)));
    MB_TRY(mb_comm_queue_create(comm, work.tiles, &queue));
    MB_TRY(mb_comm_agree(comm, run_tiles(lm, &work, queue, options->warm_up, &mine)));
    MB_TRY(gather(comm, &mine, result));
    for (int64_t i = 0; i < work.items; i++)
        attended += 0.5 * (double)work.item[i].length * (double)(work.item[i].length + 1);
    if (result->forward_tokens > 0) result->context = attended / (double)result->forward_tokens;
done:
    mb_comm_queue_destroy(&queue);
    mb_free(work.item);
    mb_free(work.tile_first);
    mb_free(mine.data);
    return status;
}

/* ---- 6. choices ---- */

static bool is_right(const mb_task_question *asked, const mb_choice_question *answered, mb_category_by by)
{
    const int64_t picked = by == MB_CATEGORY_BY_CHARACTER ? answered->picked_norm
                           : by == MB_CATEGORY_BY_BYTE    ? answered->picked_bytes
                                                          : answered->picked;
    return picked == asked->gold;
}

static mb_status score_choices(mb_comm *comm, mb_lm *lm, const mb_category *category,
                               const mb_category_options *options, mb_category_result *result)
{
    mb_status status = MB_OK;
    const mb_task *task = category->questions.task;
    mb_choice_result choices = {0};
    mb_ids context = {0}, continuation = {0};
    if (task->count == 0) goto done;
    MB_TRY(mb_choice_run(comm, lm, task, category->maker.tokenizer, options->max_length, options->tile_tokens,
                         MB_F32, 0, &choices));
    for (int64_t q = 0; q < task->count; q++) {
        const mb_task_question *asked = &task->questions[q];
        const int64_t at = asked->doc_id;
        MB_TRY(mb_task_request(task, category->maker.tokenizer, category->maker.scratch, q, asked->gold,
                               &context, &continuation));
        result->nll[at] = -choices.questions[q].loglik[asked->gold];
        result->tokens[at] = continuation.count;
        result->correct[at] = is_right(asked, &choices.questions[q], options->by);
    }
done:
    mb_choice_result_reset(&choices);
    mb_ids_destroy(&context);
    mb_ids_destroy(&continuation);
    return status;
}

/* ---- 7. all ---- */

mb_status mb_category_result_create(int64_t records, mb_category_result *out_result)
{
    mb_status status = MB_OK;
    mb_category_result r = {.records = records};
    MB_NEW_ARRAY(r.kind, records + 1);
    MB_NEW_ARRAY(r.hash, records + 1);
    MB_NEW_ARRAY(r.nll, records + 1);
    MB_NEW_ARRAY(r.tokens, records + 1);
    MB_NEW_ARRAY(r.correct, records + 1);
    for (int64_t i = 0; i < records; i++) r.correct[i] = NAN;
    *out_result = r;
    r = (mb_category_result){0};
done:
    mb_category_result_reset(&r);
    return status;
}

void mb_category_result_reset(mb_category_result *result)
{
    mb_free(result->kind);
    mb_free(result->hash);
    mb_free(result->nll);
    mb_free(result->tokens);
    mb_free(result->correct);
    *result = (mb_category_result){0};
}

mb_status mb_category_score(mb_comm *comm, mb_lm *lm, const mb_category *category,
                            const mb_category_options *options, mb_category_result *out_result)
{
    mb_status status = MB_OK;
    mb_category_result result = {0};
    MB_TRY(mb_comm_agree(comm, mb_category_result_create(category->count, &result)));
    for (int64_t i = 0; i < category->count; i++) {
        result.kind[i] = (uint8_t)category->record[i].kind;
        result.hash[i] = category->record[i].hash;
    }
    MB_TRY(score_tokens(comm, lm, category, options, &result));
    MB_TRY(score_choices(comm, lm, category, options, &result));
    *out_result = result;
    result = (mb_category_result){0};
done:
    mb_category_result_reset(&result);
    return status;
}

/* ---- 8. figures ---- */

mb_category_summary mb_category_summarise(const mb_category_result *result)
{
    mb_category_summary s = {.records = result->records};
    double nll = 0, right = 0;
    for (int64_t i = 0; i < result->records; i++) {
        nll += result->nll[i];
        s.tokens += result->tokens[i];
        if (isnan(result->correct[i])) continue;
        s.judged++;
        right += result->correct[i];
    }
    const double n = (double)s.judged;
    s.perplexity = s.tokens > 0 ? exp(nll / (double)s.tokens) : NAN;
    s.accuracy = s.judged > 0 ? right / n : NAN;
    s.accuracy_stderr = s.judged > 1 ? sqrt(s.accuracy * (1 - s.accuracy) / (n - 1)) : NAN;
    return s;
}
