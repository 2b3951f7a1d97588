/* gate_inputs.c: finding, joining and matching what moe-gate reads.
 *
 * 1. files   2. tables   3. embeddings   4. experts   5. questions the experts have seen
 */
#include "stage/gate_inputs.h"

#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/option.h"
#include "store/answers.h"
#include "text/question.h"

/* ---- 1. files ---- */

mb_status mb_gate_inputs_file(const char *key, const char *opt_path, const char *name, const char *made_by,
                              char **out_file)
{
    mb_status status = MB_OK;
    char *file = NULL;
    if (opt_path == NULL) MB_RAISE(MB_EUSAGE, "%s is missing: the %s of %s", key, name, made_by);
    file = mb_files_is_folder(opt_path) ? mb_files_join(opt_path, name) : mb_strdup(opt_path);
    if (file == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (!mb_files_is_file(file))
        MB_RAISE(MB_ENOTFOUND, "%s: no such file (%s); %s writes it", file, key, made_by);
    *out_file = file;
    file = NULL;
done:
    mb_free(file);
    return status;
}

void mb_gate_inputs_reset(mb_gate_source *source)
{
    mb_named_paths_reset(&source->files);
    *source = (mb_gate_source){0};
}

/* A list of names, and not one path alone? */
static bool is_list(const char *text)
{
    return text[0] == '[' || text[0] == '{' || strpbrk(text, "=,") != NULL;
}

mb_status mb_gate_inputs_find(const char *key, const char *text, mb_gate_source *out_source)
{
    mb_status status = MB_OK;
    mb_gate_source source = {0};
    if (text == NULL || text[0] == 0)
        MB_RAISE(MB_EUSAGE,
                 "%s is missing: an outputs.h5, or name=folder,name=folder of evaluations with "
                 "eval.questions",
                 key);
    source.is_answers = is_list(text);
    MB_TRY(mb_named_paths_read(key, text, NULL, 0, &source.files));
    for (int64_t i = 0; i < source.files.count; i++) {
        mb_named_path *item = &source.files.item[i];
        char *file = NULL;
        MB_TRY(mb_gate_inputs_file(key, item->path, source.is_answers ? "answers.h5" : "outputs.h5",
                                   source.is_answers ? "moe-eval eval.questions=<file>" : "moe-gate", &file));
        mb_free(item->path);
        item->path = file;
    }
    *out_source = source;
    source = (mb_gate_source){0};
done:
    mb_gate_inputs_reset(&source);
    return status;
}

/* ---- 2. tables ---- */

static mb_status join_answers(const mb_named_paths *files, mb_outputs **out_outputs)
{
    mb_status status = MB_OK;
    mb_answers **answers = NULL;
    const char **names = NULL, **paths = NULL;
    MB_NEW_ARRAY(answers, files->count);
    MB_NEW_ARRAY(names, files->count);
    MB_NEW_ARRAY(paths, files->count);
    for (int64_t i = 0; i < files->count; i++) {
        names[i] = files->item[i].name;
        paths[i] = files->item[i].path;
        MB_TRY(mb_answers_open(paths[i], &answers[i]));
    }
    MB_TRY(
        mb_answers_join((const mb_answers *const *)(void *)answers, names, paths, files->count, out_outputs));
done:
    for (int64_t i = 0; answers != NULL && i < files->count; i++) mb_answers_close(&answers[i]);
    mb_free(answers);
    mb_free(names);
    mb_free(paths);
    return status;
}

mb_status mb_gate_inputs_table(const mb_gate_source *source, mb_outputs **out_outputs)
{
    if (source->is_answers) return join_answers(&source->files, out_outputs);
    return mb_outputs_open(source->files.item[0].path, out_outputs);
}

/* ---- 3. embeddings ---- */

mb_status mb_gate_inputs_embedder(const mb_embeddings *embeddings, char **out_embedder)
{
    static const char *const texts[] = {"model", "tokenizer", "pooling", "prefix"};
    static const char *const numbers[] = {"normalised", "max_length", "dimension"};
    mb_status status = MB_OK;
    mb_h5 *file = mb_embeddings_file(embeddings);
    json_t *all = json_object();
    mb_str text = MB_STR_EMPTY;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mb_str_reset(&text);
        MB_TRY(mb_h5_get_text(file, "/", texts[i], &text));
        MB_TRY(mb_json_set(all, texts[i], json_string(mb_str_text(&text))));
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int64_t value = 0;
        MB_TRY(mb_h5_get_int(file, "/", numbers[i], &value));
        MB_TRY(mb_json_set(all, numbers[i], json_integer(value)));
    }
    mb_str_reset(&text);
    MB_TRY(mb_json_print(all, 0, true, &text));
    *out_embedder = mb_str_take(&text);
done:
    mb_str_destroy(&text);
    json_decref(all);
    return status;
}

/* Is record i of the embeddings line i of one file? */
static mb_status check_order(const mb_embeddings *embeddings, const char *path, int64_t n)
{
    mb_status status = MB_OK;
    int64_t *index = NULL, count = 0;
    char **names = NULL;
    MB_NEW_ARRAY(index, n);
    MB_TRY(mb_h5_read_strings(mb_embeddings_file(embeddings), "/source_names", &names, &count));
    MB_TRY(mb_h5_read_rows(mb_embeddings_file(embeddings), "/source_index", MB_I64, 0, n, index));
    if (count != 1)
        MB_RAISE(MB_EDATA, "%s: embeddings of %lld files; embed the file of questions alone", path,
                 (long long)count);
    for (int64_t i = 0; i < n; i++)
        if (index[i] != i)
            MB_RAISE(MB_EDATA,
                     "%s: record %lld is line %lld of its file; embed the file of questions in its order, "
                     "with nothing left out",
                     path, (long long)i, (long long)index[i]);
done:
    mb_free(index);
    mb_h5_free_strings(&names, count);
    return status;
}

mb_status mb_gate_inputs_embeddings(const char *path, int64_t questions, float **out_x, int64_t *out_width,
                                    char **out_embedder)
{
    mb_status status = MB_OK;
    mb_embeddings *embeddings = NULL;
    float *x = NULL;
    MB_TRY(mb_embeddings_open(path, &embeddings));
    const int64_t n = mb_embeddings_count(embeddings), width = mb_embeddings_width(embeddings);
    if (n != questions)
        MB_RAISE(MB_EDATA, "%s: %lld embeddings for %lld questions; embed the same file of questions", path,
                 (long long)n, (long long)questions);
    MB_TRY(check_order(embeddings, path, n));
    MB_NEW_ARRAY(x, n * width);
    MB_TRY(mb_embeddings_read(embeddings, 0, n, x));
    MB_TRY(mb_gate_inputs_embedder(embeddings, out_embedder));
    *out_x = x;
    *out_width = width;
    x = NULL;
done:
    mb_free(x);
    mb_embeddings_close(&embeddings);
    return status;
}

/* ---- 4. experts ---- */

mb_status mb_gate_inputs_experts(const mb_outputs *outputs, const char *opt_list, int64_t **out_experts,
                                 int64_t *out_count)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0, *experts = NULL;
    MB_TRY(mb_option_list_split(opt_list, &words, &n));
    const int64_t count = n > 0 ? n : outputs->experts;
    MB_NEW_ARRAY(experts, count);
    for (int64_t i = 0; i < count; i++) {
        experts[i] = i;
        if (n == 0) continue;
        status = mb_outputs_expert(outputs, words[i], &experts[i]);
        if (status != MB_OK) mb_status_prefix("gate.experts: ");
        MB_TRY(status);
        for (int64_t j = 0; j < i; j++)
            if (experts[j] == experts[i]) MB_RAISE(MB_EUSAGE, "gate.experts names '%s' twice", words[i]);
    }
    *out_experts = experts;
    *out_count = count;
    experts = NULL;
done:
    mb_option_list_free(&words, n);
    mb_free(experts);
    return status;
}

/* ---- 5. questions the experts have seen ---- */

static int by_number(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Mark what a file of questions shares; returns how many in *out_count. */
static mb_status mark_shared(const mb_outputs *outputs, const char *path, uint8_t *shared, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_questions *set = NULL;
    uint64_t *seen = NULL;
    *out_count = 0;
    MB_TRY(mb_questions_open(path, &set));
    const int64_t n = mb_questions_count(set);
    MB_NEW_ARRAY(seen, n);
    for (int64_t i = 0; i < n; i++) MB_TRY(mb_question_text_hash(mb_questions_at(set, i), &seen[i]));
    qsort(seen, (size_t)n, sizeof *seen, by_number);
    for (int64_t q = 0; q < outputs->questions; q++) {
        if (bsearch(&outputs->text_hash[q], seen, (size_t)n, sizeof *seen, by_number) == NULL) continue;
        shared[q] = 1;
        ++*out_count;
    }
done:
    mb_free(seen);
    mb_questions_close(&set);
    return status;
}

mb_status mb_gate_inputs_shared(const mb_outputs *outputs, const mb_named_paths *files, uint8_t **out_shared,
                                int64_t **out_by_file)
{
    mb_status status = MB_OK;
    uint8_t *shared = NULL;
    int64_t *by_file = NULL;
    MB_NEW_ARRAY(shared, outputs->questions);
    MB_NEW_ARRAY(by_file, files->count + 1);
    for (int64_t i = 0; i < files->count; i++) {
        MB_TRY(mark_shared(outputs, files->item[i].path, shared, &by_file[i]));
        if (by_file[i] > 0)
            mb_warn("%lld of %lld questions stand in %s too, which an expert was trained on: left out",
                    (long long)by_file[i], (long long)outputs->questions, files->item[i].path);
    }
    *out_shared = shared;
    *out_by_file = by_file;
    shared = NULL;
    by_file = NULL;
done:
    mb_free(shared);
    mb_free(by_file);
    return status;
}
