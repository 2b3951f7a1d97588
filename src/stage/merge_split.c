/* merge_split.c: see the header.
 *
 * 1. which part   2. lines   3. results   4. the mode
 */
#include "stage/merge_split.h"

#include <stdio.h>

#include "base/log.h"
#include "base/memory.h"
#include "stage/merge_options.h"
#include "stage/merge_parts.h"
#include "stage/merge_questions.h"
#include "stage/merge_seen.h"

typedef struct splitting {
    const mb_merge_program *own;
    mb_merge_parts parts;
    mb_questions *questions;
    int64_t *place;      /* [questions] part, -1: none */
    mb_str *text;        /* [parts] */
    json_t **counts;     /* [parts] {source: questions} */
    json_t *rest;        /* {source: questions} of no part */
    json_t *shared;      /* ids */
    mb_merge_seen *held; /* texts of parts of named sources */
} splitting;

/* ---- 1. which part ---- */

static mb_status place_all(splitting *s)
{
    mb_status status = MB_OK;
    const int64_t n = mb_questions_count(s->questions);
    int64_t first;
    uint64_t hash;
    MB_NEW_ARRAY(s->place, n + 1);
    MB_TRY(mb_merge_seen_create(&s->held));
    for (int64_t i = 0; i < n; i++) {
        const mb_question *q = mb_questions_at(s->questions, i);
        MB_TRY(mb_merge_parts_get(&s->parts, q, (uint64_t)s->own->seed, &s->place[i]));
        if (s->place[i] < 0 || s->parts.part[s->place[i]].source_count == 0) continue;
        MB_TRY(mb_question_text_hash(q, &hash));
        MB_TRY(mb_merge_seen_add(s->held, hash, i, &first));
    }
done:
    return status;
}

/* Does its text stand in a part of named sources, while it is in none? */
static mb_status is_shared(const splitting *s, int64_t i, const mb_question *question, bool *out_is)
{
    mb_status status = MB_OK;
    uint64_t hash;
    *out_is = false;
    if (s->own->keep_shared || s->parts.part[s->place[i]].source_count > 0) goto done;
    MB_TRY(mb_question_text_hash(question, &hash));
    *out_is = mb_merge_seen_get(s->held, hash) >= 0;
done:
    return status;
}

/* ---- 2. lines ---- */

static mb_status take(void *own, int64_t i, const mb_question *question, const char *line, size_t length)
{
    mb_status status = MB_OK;
    splitting *s = own;
    const int64_t part = s->place[i];
    bool is;
    if (part < 0) {
        MB_TRY(mb_merge_questions_count(s->rest, question->source, 1));
        goto done;
    }
    MB_TRY(is_shared(s, i, question, &is));
    if (is) {
        if (json_array_append_new(s->shared, json_string(question->id)) != 0)
            MB_RAISE(MB_ENOMEM, "no memory for a list of questions");
        goto done;
    }
    MB_TRY(mb_str_append(&s->text[part], line, length));
    MB_TRY(mb_str_add(&s->text[part], "\n"));
    MB_TRY(mb_merge_questions_count(s->counts[part], question->source, 1));
done:
    return status;
}

static mb_status split_all(splitting *s)
{
    mb_status status = MB_OK;
    const int64_t n = s->parts.count;
    MB_NEW_ARRAY(s->text, n);
    MB_NEW_ARRAY(s->counts, n);
    for (int64_t p = 0; p < n; p++) s->counts[p] = json_object();
    s->rest = json_object();
    s->shared = json_array();
    MB_TRY(place_all(s));
    MB_TRY(mb_merge_questions_each(s->questions, take, s));
done:
    return status;
}

/* ---- 3. results ---- */

static int64_t total(const json_t *counts)
{
    const char *key;
    json_t *value;
    int64_t n = 0;
    json_object_foreach((json_t *)(uintptr_t)counts, key, value)
    {
        (void)key;
        n += json_integer_value(value);
    }
    return n;
}

/* A source that no question has is a slip of the pen. */
static mb_status check_sources(const splitting *s)
{
    mb_status status = MB_OK;
    const char **sources = NULL;
    const int64_t n = mb_questions_count(s->questions);
    MB_NEW_ARRAY(sources, n + 1);
    for (int64_t i = 0; i < n; i++) sources[i] = mb_questions_at(s->questions, i)->source;
    for (int64_t p = 0; p < s->parts.count; p++) {
        for (int64_t k = 0; k < s->parts.part[p].source_count; k++) {
            const char *name = s->parts.part[p].sources[k];
            int64_t i = 0;
            while (i < n && !mb_str_equal(sources[i], name)) i++;
            const char *near = i == n ? mb_str_nearest(name, sources, n) : NULL;
            if (i == n)
                MB_RAISE(MB_EUSAGE, "split.parts: %s: no question of %s comes from a source '%s'%s%s",
                         s->parts.part[p].name, mb_questions_path(s->questions), name,
                         near != NULL ? "; did you mean " : "", near != NULL ? near : "");
        }
    }
done:
    mb_free(sources);
    return status;
}

static mb_status write_report(mb_program *program, const splitting *s)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(program, "split.json");
    json_t *parts = json_object(), *report = NULL;
    for (int64_t p = 0; p < s->parts.count; p++)
        MB_TRY(mb_json_set(parts, s->parts.part[p].name,
                           json_pack("{s:I, s:f, s:O}", "questions", (json_int_t)total(s->counts[p]), "share",
                                     s->parts.part[p].share, "sources", s->counts[p])));
    report = json_pack("{s:s, s:i, s:I, s:O, s:{s:I, s:O}, s:O}", "format", "moebatch-split", "version", 1,
                       "seed", (json_int_t)s->own->seed, "parts", parts, "no_part", "questions",
                       (json_int_t)total(s->rest), "sources", s->rest, "shared", s->shared);
    if (path == NULL || report == NULL) MB_RAISE(MB_ENOMEM, "no memory for the counts");
    MB_TRY(mb_json_write(path, report, 2, false));
done:
    json_decref(report);
    json_decref(parts);
    mb_free(path);
    return status;
}

static mb_status write_parts(mb_program *program, const splitting *s)
{
    mb_status status = MB_OK;
    char *name = NULL;
    for (int64_t p = 0; p < s->parts.count; p++) {
        const int64_t n = total(s->counts[p]);
        mb_free(name);
        name = mb_str_format("%s.jsonl", s->parts.part[p].name);
        if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_merge_questions_write(program, name, &s->text[p]));
        MB_TRY(mb_program_output(program, name));
        MB_TRY(mb_program_result_int(program, s->parts.part[p].name, n));
        mb_info("  %-20s %7lld questions", s->parts.part[p].name, (long long)n);
        if (n == 0) mb_warn("%s has no question", name);
    }
    MB_TRY(write_report(program, s));
    mb_info("%lld questions went to no part; %lld were left out because their text stands in a part of named "
            "sources too",
            (long long)total(s->rest), (long long)json_array_size(s->shared));
    MB_TRY(mb_program_result_int(program, "shared", (int64_t)json_array_size(s->shared)));
done:
    mb_free(name);
    return status;
}

/* ---- 4. the mode ---- */

static void destroy(splitting *s)
{
    for (int64_t p = 0; p < s->parts.count; p++) {
        if (s->text != NULL) mb_str_destroy(&s->text[p]);
        if (s->counts != NULL) json_decref(s->counts[p]);
    }
    mb_free(s->text);
    mb_free(s->counts);
    mb_free(s->place);
    json_decref(s->rest);
    json_decref(s->shared);
    mb_merge_seen_destroy(&s->held);
    mb_merge_parts_reset(&s->parts);
    mb_questions_close(&s->questions);
}

static mb_status do_work(mb_program *program, splitting *s, const char *path)
{
    mb_status status = MB_OK;
    MB_TRY(mb_questions_open(path, &s->questions));
    MB_TRY(check_sources(s));
    MB_TRY(split_all(s));
    MB_TRY(write_parts(program, s));
done:
    return status;
}

mb_status mb_merge_split_run(mb_program *program)
{
    mb_status status = MB_OK;
    splitting s = {.own = program->own};
    bool is_done = false;
    char *path = NULL;
    MB_TRY(mb_merge_parts_read("split.parts", s.own->parts, &s.parts));
    if (program->is_dry_run && s.own->questions != NULL) goto done;
    MB_TRY(mb_merge_questions_find(s.own->questions, &path));
    MB_TRY(mb_program_begin_run(program, &is_done, "questions", path, NULL));
    if (is_done) goto done;
    if (mb_program_is_root(program)) status = do_work(program, &s, path);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, "split.json", NULL));
done:
    mb_free(path);
    destroy(&s);
    return status;
}
