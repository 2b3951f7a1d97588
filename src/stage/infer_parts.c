/* infer_parts: the answers of a run, in parts that are whole or absent, joined in input order.
 *
 * 1. parts and their files
 * 2. records in
 * 3. answers out
 * 4. joining
 * 5. joining shares
 */
#include "stage/infer_parts.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/router_stats_file.h"

enum { MOST_ROWS = 256, LEAST_PARTS = 64, BAD_SHOWN = 5 };

/* A part in work: lines[row * samples + sample]. */
typedef struct part {
    int64_t first, rows;
    int64_t next; /* row to read */
    int64_t left; /* answers to come */
    json_t **records;
    mb_str *lines;
    mb_router_query *shares; /* as lines; NULL: not wanted */
    mb_str bad;
    struct part *behind;
} part;

struct mb_infer_parts {
    mb_comm *comm;
    mb_infer_prompts *prompts;
    const mb_infer_program *options;
    const char *folder, *key;
    int64_t longest, samples;
    int64_t records, rows, count; /* all records; of a part; parts */
    mb_comm_queue *queue;
    part *open; /* the newest first: the one that is being read */
    mb_ids ids;
    int64_t shown;
    mb_router_stats *stats; /* NULL: not wanted */
};

/* ---- 1. parts and their files ---- */

static char *part_path(const mb_infer_parts *p, int64_t first, const char *suffix)
{
    const int64_t end = first + p->rows < p->records ? first + p->rows : p->records;
    return mb_str_format("%s/%.16s-%lld-%lld%s", p->folder, p->key, (long long)first, (long long)end, suffix);
}

static void part_free(const mb_infer_parts *p, part *one)
{
    if (one == NULL) return;
    for (int64_t i = 0; one->records != NULL && i < one->rows; i++) json_decref(one->records[i]);
    for (int64_t i = 0; one->lines != NULL && i < one->rows * p->samples; i++) mb_str_destroy(&one->lines[i]);
    mb_free(one->records);
    mb_free(one->lines);
    for (int64_t i = 0; one->shares != NULL && i < one->rows * p->samples; i++)
        mb_router_query_reset(&one->shares[i]);
    mb_free(one->shares);
    mb_str_destroy(&one->bad);
    mb_free(one);
}

static mb_status part_start(mb_infer_parts *p, int64_t unit)
{
    mb_status status = MB_OK;
    part *one = NULL;
    MB_NEW(one);
    one->first = unit * p->rows;
    one->rows = p->records - one->first < p->rows ? p->records - one->first : p->rows;
    one->left = one->rows * p->samples;
    MB_NEW_ARRAY(one->records, one->rows);
    MB_NEW_ARRAY(one->lines, one->left);
    if (p->stats != NULL) MB_NEW_ARRAY(one->shares, one->left);
    one->behind = p->open;
    p->open = one;
    one = NULL;
done:
    part_free(p, one);
    return status;
}

static mb_status part_write_shares(const mb_infer_parts *p, const part *one)
{
    mb_status status = MB_OK;
    mb_router_stats_file *file = NULL;
    char *path = part_path(p, one->first, ".stats.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", p->folder);
    MB_TRY(mb_router_stats_file_create(path, mb_router_stats_shape(p->stats), NULL, NULL, &file));
    for (int64_t i = 0; i < one->rows * p->samples; i++)
        if (one->shares[i].answer != NULL) MB_TRY(mb_router_stats_file_add(file, &one->shares[i]));
    MB_TRY(mb_router_stats_file_close(&file));
done:
    mb_router_stats_file_destroy(&file);
    mb_free(path);
    return status;
}

/* The main file last: the part counts as done when it is there. */
static mb_status part_write(mb_infer_parts *p, const part *one)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char *path = part_path(p, one->first, ".jsonl"), *bad_path = part_path(p, one->first, ".bad.jsonl");
    if (path == NULL || bad_path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", p->folder);
    for (int64_t i = 0; i < one->rows * p->samples; i++)
        MB_TRY(mb_str_append(&text, mb_str_text(&one->lines[i]), one->lines[i].length));
    if (p->stats != NULL) MB_TRY(part_write_shares(p, one));
    if (one->bad.length > 0) MB_TRY(mb_files_write(bad_path, one->bad.data, one->bad.length));
    MB_TRY(mb_files_write(path, mb_str_text(&text), text.length));
done:
    mb_str_destroy(&text);
    mb_free(path);
    mb_free(bad_path);
    return status;
}

/* Write and forget a part whose last answer is there. */
static mb_status part_settle(mb_infer_parts *p, part *one)
{
    mb_status status = MB_OK;
    if (one->left > 0) return MB_OK;
    MB_TRY(part_write(p, one));
    part **at = &p->open;
    while (*at != one) at = &(*at)->behind;
    *at = one->behind;
    part_free(p, one);
done:
    return status;
}

mb_status mb_infer_parts_open(mb_comm *comm, mb_infer_prompts *prompts, const mb_infer_program *options,
                              const mb_router_shape *opt_shape, const char *folder, const char *key,
                              int64_t longest, mb_infer_parts **out_parts)
{
    mb_status status = MB_OK;
    mb_infer_parts *p = NULL;
    MB_NEW(p);
    p->comm = comm;
    p->prompts = prompts;
    p->options = options;
    p->folder = folder;
    p->key = key;
    p->longest = longest;
    p->samples = options->generate.samples;
    p->records = mb_infer_prompts_count(prompts);
    p->rows = (p->records + LEAST_PARTS - 1) / LEAST_PARTS;
    p->rows = p->rows < 1 ? 1 : p->rows > MOST_ROWS ? MOST_ROWS : p->rows;
    p->count = (p->records + p->rows - 1) / p->rows;
    if (opt_shape != NULL)
        MB_TRY(mb_router_stats_create(opt_shape, mb_infer_prompts_tokenizer(prompts), p->samples, &p->stats));
    MB_TRY(mb_comm_agree(comm, mb_comm_rank(comm) == 0 ? mb_files_make_folders(folder) : MB_OK));
    MB_TRY(mb_comm_queue_create(comm, p->count, &p->queue));
    *out_parts = p;
    p = NULL;
done:
    mb_infer_parts_close(&p);
    return status;
}

void mb_infer_parts_close(mb_infer_parts **parts)
{
    mb_infer_parts *p = *parts;
    if (p == NULL) return;
    mb_comm_queue_destroy(&p->queue);
    while (p->open != NULL) {
        part *one = p->open;
        p->open = one->behind;
        part_free(p, one);
    }
    mb_router_stats_destroy(&p->stats);
    mb_ids_destroy(&p->ids);
    mb_free(p);
    *parts = NULL;
}

/* ---- 2. records in ---- */

static mb_status note_bad(mb_infer_parts *p, part *one, int64_t index, int64_t line, const char *problem)
{
    mb_status status = MB_OK;
    json_t *note = NULL;
    if (mb_str_equal(p->options->on_bad, "fail"))
        MB_RAISE(MB_EDATA, "%s: %s; mend the record, or leave such records out with dataset.on_bad=skip",
                 p->options->input, problem);
    if (p->shown++ < BAD_SHOWN) mb_warn("%s: left out %s", p->options->input, problem);
    note = json_pack("{s:s, s:I, s:I, s:s}", "path", p->options->input, "index", (json_int_t)index, "line",
                     (json_int_t)line, "problem", problem);
    if (note == NULL) MB_RAISE(MB_ENOMEM, "no memory for a note on a bad record");
    MB_TRY(mb_json_print(note, 0, false, &one->bad));
    MB_TRY(mb_str_add(&one->bad, "\n"));
done:
    json_decref(note);
    return status;
}

/* The next row of the part being read; *out_has false when it is bad. */
static mb_status read_row(mb_infer_parts *p, part *one, mb_generate_prompt *out_prompt, bool *out_has)
{
    mb_status status = MB_OK;
    const int64_t row = one->next++, index = one->first + row;
    const char *problem;
    int64_t line;
    MB_TRY(
        mb_infer_prompts_read(p->prompts, index, p->longest, &one->records[row], &p->ids, &problem, &line));
    *out_has = one->records[row] != NULL;
    *out_prompt = (mb_generate_prompt){.record = index, .ids = p->ids.data, .count = p->ids.count};
    if (*out_has) goto done;
    one->left -= p->samples;
    MB_TRY(note_bad(p, one, index, line, problem));
    MB_TRY(part_settle(p, one));
done:
    return status;
}

/* Another part from the queue that is not done yet; *out_is_end: none is left. */
static mb_status next_part(mb_infer_parts *p, bool *out_is_end)
{
    mb_status status = MB_OK;
    int64_t unit;
    char *path = NULL;
    for (bool is_done = true; is_done;) {
        MB_TRY(mb_comm_queue_next(p->queue, &unit));
        *out_is_end = unit < 0;
        if (unit < 0) goto done;
        mb_free(path);
        path = part_path(p, unit * p->rows, ".jsonl");
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", p->folder);
        is_done = mb_files_is_file(path);
    }
    MB_TRY(part_start(p, unit));
done:
    mb_free(path);
    return status;
}

static mb_status next_prompt(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    mb_status status = MB_OK;
    mb_infer_parts *p = own;
    bool is_end = false;
    *out_has = false;
    while (!*out_has && !is_end) {
        if (p->open != NULL && p->open->next < p->open->rows)
            MB_TRY(read_row(p, p->open, out_prompt, out_has));
        else
            MB_TRY(next_part(p, &is_end));
    }
done:
    return status;
}

/* ---- 3. answers out ---- */

/* {"<member>": share, ...} of the answer. */
static mb_status add_share(const mb_router_shape *shape, const mb_router_query *query, json_t *result)
{
    mb_status status = MB_OK;
    double share[MB_FUSE_MAX_MEMBERS];
    json_t *object = json_object();
    if (object == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
    mb_router_query_mean(shape, query->answer, share);
    for (int64_t m = 0; m < shape->members; m++)
        MB_TRY(mb_json_set(object, shape->members_name[m], json_real(share[m])));
    MB_TRY(mb_json_set(result, "router_share", json_incref(object)));
done:
    json_decref(object);
    return status;
}

/* query: its shares; without stats unused. */
static mb_status print_answer(const mb_infer_parts *p, const json_t *record, const mb_generate_answer *answer,
                              const mb_router_query *query, mb_str *line)
{
    mb_status status = MB_OK;
    json_t *result = json_copy((json_t *)(uintptr_t)record);
    if (result == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
    MB_TRY(mb_json_set(result, "generated_text", json_stringn(answer->text, answer->length)));
    MB_TRY(mb_json_set(result, "finish_reason", json_string(mb_generate_finish_name(answer->finish))));
    MB_TRY(mb_json_set(result, "tokens", json_integer(answer->count)));
    MB_TRY(mb_json_set(result, "logprob", json_real(answer->logprob)));
    if (p->samples > 1) MB_TRY(mb_json_set(result, "sample", json_integer(answer->sample)));
    if (p->stats != NULL) MB_TRY(add_share(mb_router_stats_shape(p->stats), query, result));
    MB_TRY(mb_json_print(result, 0, false, line));
    MB_TRY(mb_str_add(line, "\n"));
done:
    json_decref(result);
    return status;
}

static mb_status take_answer(void *own, const mb_generate_answer *answer)
{
    mb_status status = MB_OK;
    mb_infer_parts *p = own;
    part *one = p->open;
    while (answer->record < one->first || answer->record >= one->first + one->rows) one = one->behind;
    const int64_t row = answer->record - one->first, at = row * p->samples + answer->sample;
    if (p->stats != NULL) MB_TRY(mb_router_stats_take(p->stats, answer, &one->shares[at]));
    const mb_router_query *query = p->stats != NULL ? &one->shares[at] : NULL;
    MB_TRY(print_answer(p, one->records[row], answer, query, &one->lines[at]));
    one->left--;
    MB_TRY(part_settle(p, one));
done:
    return status;
}

static mb_status route_rows(void *own, const mb_generate_routing *routing)
{
    return mb_router_stats_route(((mb_infer_parts *)own)->stats, routing);
}

mb_generate_source mb_infer_parts_source(mb_infer_parts *parts, bool has_shares, mb_comm *opt_group)
{
    return (mb_generate_source){.own = parts,
                                .next = next_prompt,
                                .take = take_answer,
                                .route = has_shares ? route_rows : NULL,
                                .opt_group = opt_group};
}

/* ---- 4. joining ---- */

/* Behind the file: the part's text. Lines are counted. */
static mb_status append_part(FILE *file, const char *target, const char *path, int64_t *lines)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_files_read(path, 0, &text));
    for (size_t i = 0; i < text.length; i++) *lines += text.data[i] == '\n';
    if (text.length > 0 && fwrite(text.data, 1, text.length, file) != text.length)
        MB_RAISE(MB_EIO, "%s: writing failed", target);
done:
    mb_str_destroy(&text);
    return status;
}

/* All parts with this suffix as one file, written aside. */
static mb_status join_files(const mb_infer_parts *p, const char *suffix, bool may_lack, const char *path,
                            int64_t *out_lines)
{
    mb_status status = MB_OK;
    FILE *file = NULL;
    char *one = NULL, *aside = mb_str_format("%s.tmp", path);
    *out_lines = 0;
    if (aside == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", path);
    file = fopen(aside, "wb");
    if (file == NULL) MB_RAISE(MB_EIO, "%s: cannot be written", aside);
    for (int64_t i = 0; i < p->count; i++) {
        mb_free(one);
        one = part_path(p, i * p->rows, suffix);
        if (one == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", path);
        if (may_lack && !mb_files_is_file(one)) continue;
        MB_TRY(append_part(file, aside, one, out_lines));
    }
    const int failed = fclose(file);
    file = NULL;
    if (failed != 0) MB_RAISE(MB_EIO, "%s: writing failed", aside);
    MB_TRY(mb_files_sync(aside));
    MB_TRY(mb_files_rename(aside, path));
done:
    if (file != NULL) fclose(file);
    mb_free(one);
    mb_free(aside);
    return status;
}

mb_status mb_infer_parts_join(const mb_infer_parts *parts, const char *path, const char *bad_path,
                              int64_t *out_lines, int64_t *out_bad)
{
    mb_status status = MB_OK;
    MB_TRY(join_files(parts, ".jsonl", false, path, out_lines));
    MB_TRY(join_files(parts, ".bad.jsonl", true, bad_path, out_bad));
    if (*out_bad == 0) unlink(bad_path);
done:
    return status;
}

/* ---- 5. joining shares ---- */

mb_status mb_infer_parts_join_shares(const mb_infer_parts *parts, const char *path, const char *model_hash,
                                     double *out_prompt, double *out_answer)
{
    mb_status status = MB_OK;
    const mb_infer_parts *p = parts;
    mb_router_stats_file *file = NULL;
    char *one = NULL;
    MB_TRY(mb_router_stats_file_create(path, mb_router_stats_shape(p->stats), model_hash,
                                       mb_tokenizer_hash(mb_infer_prompts_tokenizer(p->prompts)), &file));
    for (int64_t i = 0; i < p->count; i++) {
        mb_free(one);
        one = part_path(p, i * p->rows, ".stats.h5");
        if (one == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", path);
        MB_TRY(mb_router_stats_file_append(file, one));
    }
    mb_router_stats_file_mean(file, out_prompt, out_answer);
    MB_TRY(mb_router_stats_file_close(&file));
done:
    mb_router_stats_file_destroy(&file);
    mb_free(one);
    return status;
}
