/* merge_set.c: see the header.
 *
 * 1. counts   2. one question   3. all files   4. results   5. the mode
 */
#include "stage/merge_set.h"

#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/merge_examples.h"
#include "stage/merge_line.h"
#include "stage/merge_options.h"
#include "stage/merge_questions.h"
#include "stage/merge_seen.h"

/* Where a kept question came from. */
typedef struct kept {
    const char *source, *path;
    int64_t index, line;
    uint64_t answer;
    char id[MB_QUESTION_ID];
} kept;

typedef struct merging {
    const mb_merge_program *own;
    mb_merge_inputs inputs;
    mb_merge_examples *examples; /* of the file that is read */
    mb_merge_seen *seen, *ids;
    mb_merge_same same;
    kept *kept; /* [count] */
    int64_t count, capacity, duplicates, conflicts, bad;
    mb_str questions, doubles, bads;
    json_t *sources; /* counts by source */
} merging;

/* A path without its folder: what is written does not depend on where the data lie. */
static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* ---- 1. counts ---- */

/* The member of counts that is an object, made when it is not there. */
static json_t *inner(json_t *counts, const char *key)
{
    json_t *object = json_object_get(counts, key);
    if (object == NULL && json_object_set_new(counts, key, json_object()) == 0)
        object = json_object_get(counts, key);
    return object;
}

static mb_status count_kept(json_t *counts, const mb_merge_body *body, bool has_examples)
{
    mb_status status = MB_OK;
    char options[8];
    snprintf(options, sizeof options, "%d", body->option_count);
    MB_TRY(mb_merge_questions_count(counts, "kept", 1));
    MB_TRY(mb_merge_questions_count(inner(counts, "kinds"), mb_question_kind_name(body->kind), 1));
    MB_TRY(mb_merge_questions_count(inner(counts, "options"), options, 1));
    if (body->subject.length > 0)
        MB_TRY(mb_merge_questions_count(inner(counts, "subjects"), body->subject.data, 1));
    if (has_examples) MB_TRY(mb_merge_questions_count(counts, "with_examples", 1));
done:
    return status;
}

/* ---- 2. one question ---- */

static mb_status add_bad(merging *m, const mb_merge_taken *taken, json_t *counts)
{
    mb_status status = MB_OK;
    if (mb_str_equal(m->own->on_bad, "fail"))
        MB_RAISE(MB_EDATA, "%s: %s; merge.on_bad=skip leaves such records out", taken->file->path,
                 taken->problem);
    m->bad++;
    MB_TRY(mb_merge_questions_count(counts, "bad", 1));
    MB_TRY(mb_merge_line_json(json_pack("{s:s, s:s, s:I, s:s}", "source", taken->file->source, "file",
                                        file_name(taken->file->path), "line", (json_int_t)taken->line,
                                        "problem", taken->problem),
                              &m->bads));
done:
    return status;
}

static mb_status add_duplicate(merging *m, const mb_merge_taken *taken, int64_t first, uint64_t answer,
                               json_t *counts)
{
    mb_status status = MB_OK;
    const kept *f = &m->kept[first];
    m->duplicates++;
    m->conflicts += f->answer != answer;
    MB_TRY(mb_merge_questions_count(counts, "duplicates", 1));
    if (f->answer != answer) MB_TRY(mb_merge_questions_count(counts, "other_answer", 1));
    MB_TRY(mb_merge_line_json(json_pack("{s:s, s:I, s:s, s:I, s:{s:s, s:s, s:I, s:s, s:I}, s:b}", "source",
                                        taken->file->source, "source_index", (json_int_t)taken->index, "file",
                                        file_name(taken->file->path), "line", (json_int_t)taken->line,
                                        "first", "id", f->id, "source", f->source, "source_index",
                                        (json_int_t)f->index, "file", file_name(f->path), "line",
                                        (json_int_t)f->line, "same_answer", f->answer == answer),
                              &m->doubles));
done:
    return status;
}

static mb_status grow(merging *m)
{
    mb_status status = MB_OK;
    if (m->count < m->capacity) goto done;
    const int64_t capacity = 2 * m->capacity + 256;
    kept *more = mb_realloc(m->kept, (size_t)capacity, sizeof *more);
    if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld questions", (long long)capacity);
    m->kept = more;
    m->capacity = capacity;
done:
    return status;
}

/* Its place among the kept when it is the same as one of them, else -1: by the keys asked for, and by its id,
 * of which a file holds one. */
static mb_status find_first(merging *m, const mb_question_body *view, int64_t *out_first)
{
    mb_status status = MB_OK;
    uint64_t key, id;
    int64_t by_id;
    MB_TRY(mb_merge_same_hash(view, m->same, &key));
    MB_TRY(mb_merge_same_hash(view, MB_MERGE_SAME_ORDER, &id));
    *out_first = mb_merge_seen_get(m->seen, key);
    if (*out_first < 0) *out_first = mb_merge_seen_get(m->ids, id);
    if (*out_first >= 0) goto done;
    MB_TRY(mb_merge_seen_add(m->seen, key, m->count, &by_id));
    MB_TRY(mb_merge_seen_add(m->ids, id, m->count, &by_id));
done:
    return status;
}

static mb_status add_question(merging *m, const mb_merge_taken *taken, json_t *counts)
{
    mb_status status = MB_OK;
    mb_question_body view;
    json_t *few_shot = NULL;
    uint64_t answer;
    int64_t first;
    mb_merge_body_view(taken->opt_body, &view);
    MB_TRY(mb_merge_answer_hash(&view, &answer));
    MB_TRY(find_first(m, &view, &first));
    if (first >= 0) {
        MB_TRY(add_duplicate(m, taken, first, answer, counts));
        goto done;
    }
    MB_TRY(grow(m));
    kept *k = &m->kept[m->count];
    *k = (kept){.source = taken->file->source,
                .path = taken->file->path,
                .index = taken->index,
                .line = taken->line,
                .answer = answer};
    const mb_merge_origin origin = {.source = k->source, .source_index = k->index};
    MB_TRY(mb_merge_examples_get(m->examples, taken->opt_body, m->own->few_shot, &few_shot));
    MB_TRY(mb_merge_line_add(taken->opt_body, &origin, few_shot, &m->questions, k->id));
    MB_TRY(count_kept(counts, taken->opt_body, json_array_size(few_shot) > 0));
    m->count++;
done:
    json_decref(few_shot);
    return status;
}

static mb_status take(void *own, const mb_merge_taken *taken)
{
    mb_status status = MB_OK;
    merging *m = own;
    json_t *counts = json_object_get(m->sources, taken->file->source);
    MB_TRY(mb_merge_questions_count(counts, "read", 1));
    MB_TRY(taken->opt_body == NULL ? add_bad(m, taken, counts) : add_question(m, taken, counts));
done:
    return status;
}

/* ---- 3. all files ---- */

static mb_status begin_source(merging *m, const mb_merge_file *file)
{
    mb_status status = MB_OK;
    json_t *counts = json_object_get(m->sources, file->source);
    if (counts == NULL)
        MB_TRY(mb_json_set(m->sources, file->source,
                           json_pack("{s:s, s:b, s:i, s:i, s:i, s:i, s:i}", "format", file->format->name,
                                     "recognised", file->is_found, "read", 0, "bad", 0, "duplicates", 0,
                                     "kept", 0, "with_examples", 0)));
done:
    return status;
}

static void log_source(const mb_merge_file *file, const json_t *counts)
{
    const json_int_t bad = json_integer_value(json_object_get(counts, "bad")),
                     twice = json_integer_value(json_object_get(counts, "duplicates"));
    mb_info(
        "  %-20s %7lld questions of %lld records (format %s, %s); %lld stood there before, %lld bad, %lld "
        "with solved examples",
        file->source, (long long)json_integer_value(json_object_get(counts, "kept")),
        (long long)json_integer_value(json_object_get(counts, "read")), file->format->name,
        file->is_found ? "found by the content" : "as given", (long long)twice, (long long)bad,
        (long long)json_integer_value(json_object_get(counts, "with_examples")));
}

static mb_status merge_all(merging *m)
{
    mb_status status = MB_OK;
    m->same = mb_merge_same_parse(m->own->duplicates);
    m->sources = json_object();
    if (m->sources == NULL) MB_RAISE(MB_ENOMEM, "no memory for the counts");
    MB_TRY(mb_merge_seen_create(&m->seen));
    MB_TRY(mb_merge_seen_create(&m->ids));
    for (int64_t i = 0; i < m->inputs.count; i++) {
        const mb_merge_file *file = &m->inputs.file[i];
        MB_TRY(begin_source(m, file));
        MB_TRY(mb_merge_examples_open(file, m->own->support, mb_str_equal(m->own->on_bad, "fail"),
                                      &m->examples));
        MB_TRY(mb_merge_inputs_read(file, m->own->support, take, m));
        mb_merge_examples_close(&m->examples);
        if (i + 1 == m->inputs.count || !mb_str_equal(file[1].source, file->source))
            log_source(file, json_object_get(m->sources, file->source));
    }
done:
    return status;
}

/* ---- 4. results ---- */

static mb_status write_all(const mb_program *program, const merging *m)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(program, "counts.json");
    json_t *counts =
        json_pack("{s:s, s:i, s:I, s:I, s:I, s:I, s:s, s:O}", "format", "moebatch-merge", "version", 1,
                  "questions", (json_int_t)m->count, "duplicates", (json_int_t)m->duplicates,
                  "duplicates_with_other_answer", (json_int_t)m->conflicts, "bad", (json_int_t)m->bad, "same",
                  m->own->duplicates, "sources", m->sources);
    if (path == NULL || counts == NULL) MB_RAISE(MB_ENOMEM, "no memory for the counts");
    MB_TRY(mb_merge_questions_write(program, "questions.jsonl", &m->questions));
    MB_TRY(mb_merge_questions_write(program, "duplicates.jsonl", &m->doubles));
    MB_TRY(mb_merge_questions_write(program, "bad.jsonl", &m->bads));
    MB_TRY(mb_json_write(path, counts, 2, false));
done:
    json_decref(counts);
    mb_free(path);
    return status;
}

/* ---- 5. the mode ---- */

/* The files of all inputs, and their examples, as the record's inputs. */
static mb_status begin(mb_program *program, const mb_merge_inputs *inputs, bool *out_is_done)
{
    mb_status status = MB_OK;
    const int64_t n = inputs->count;
    char **names = NULL;
    const char **paths = NULL;
    MB_NEW_ARRAY(names, 2 * n);
    MB_NEW_ARRAY(paths, 2 * n);
    for (int64_t i = 0; i < n; i++) {
        const mb_merge_file *file = &inputs->file[i];
        const char *subject = file->opt_subject != NULL ? file->opt_subject : "";
        names[2 * i] = mb_str_format("%s%s%s", file->source, subject[0] != 0 ? "/" : "", subject);
        names[2 * i + 1] =
            mb_str_format("%s%s%s few_shot", file->source, subject[0] != 0 ? "/" : "", subject);
        if (names[2 * i] == NULL || names[2 * i + 1] == NULL) MB_RAISE(MB_ENOMEM, "no memory for names");
        paths[2 * i] = file->path;
        paths[2 * i + 1] = file->opt_examples;
    }
    MB_TRY(mb_program_begin_run_list(program, (const char *const *)names, paths, 2 * n, out_is_done));
done:
    for (int64_t i = 0; names != NULL && i < 2 * n; i++) mb_free(names[i]);
    mb_free(names);
    mb_free(paths);
    return status;
}

static mb_status finish(mb_program *program, const merging *m)
{
    mb_status status = MB_OK;
    mb_info("%lld questions; left out: %lld that stood there before (%lld of them with another answer), %lld "
            "bad records",
            (long long)m->count, (long long)m->duplicates, (long long)m->conflicts, (long long)m->bad);
    if (m->conflicts > 0)
        mb_warn("%lld questions stand twice with different answers; the first was kept (duplicates.jsonl)",
                (long long)m->conflicts);
    MB_TRY(mb_program_result_int(program, "questions", m->count));
    MB_TRY(mb_program_result_int(program, "duplicates", m->duplicates));
    MB_TRY(mb_program_result_int(program, "bad", m->bad));
    MB_TRY(mb_program_finish_run(program, "questions.jsonl", "duplicates.jsonl", "bad.jsonl", "counts.json",
                                 NULL));
done:
    return status;
}

static void destroy(merging *m)
{
    mb_merge_inputs_close(&m->inputs);
    mb_merge_examples_close(&m->examples);
    mb_merge_seen_destroy(&m->seen);
    mb_merge_seen_destroy(&m->ids);
    mb_free(m->kept);
    mb_str_destroy(&m->questions);
    mb_str_destroy(&m->doubles);
    mb_str_destroy(&m->bads);
    json_decref(m->sources);
}

mb_status mb_merge_set_run(mb_program *program)
{
    mb_status status = MB_OK;
    merging m = {.own = program->own};
    bool is_done = false;
    const mb_merge_input_options options = {
        .key = "merge.inputs", .inputs = m.own->inputs, .format = m.own->format, .fields = m.own->fields};
    if (m.own->inputs == NULL)
        MB_RAISE(MB_EUSAGE, "merge.inputs is missing: benchmarks, name=path,name=path");
    MB_TRY(mb_comm_agree(program->comm, mb_merge_inputs_open(&options, &m.inputs)));
    if (m.inputs.count == 0) MB_RAISE(MB_EUSAGE, "merge.inputs names no benchmark");
    if (program->is_dry_run) {
        mb_info("%lld files are there and would be merged", (long long)m.inputs.count);
        goto done;
    }
    MB_TRY(begin(program, &m.inputs, &is_done));
    if (is_done) goto done;
    if (mb_program_is_root(program)) {
        status = merge_all(&m);
        if (status == MB_OK) status = write_all(program, &m);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(finish(program, &m));
done:
    destroy(&m);
    return status;
}
