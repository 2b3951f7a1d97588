/* tasks_mmlu: MMLU's prompts from its CSV files (a folder) or from JSONL with a subject per record.
 *
 * Contents: 1 items  2 examples  3 questions  4 files
 */
#include <string.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/dialog_text.h"
#include "text/tasks_build.h"

enum { CHOICES = 4 };
static const char *const letters[CHOICES] = {"A", "B", "C", "D"};

/* Examples of one subject, already rendered. */
typedef struct subject {
    char *name;
    mb_str examples;
    int64_t example_count;
    int64_t question_count;
} subject;

/* The reader: a build (first member, so that a pointer to it is one to this) and what it knows of subjects.
 */
typedef struct reader {
    mb_tasks_build build;
    subject *subjects;
    int64_t count;
    int64_t fewshot;
    const char *subject; /* of the file being read; NULL: the records say */
} reader;

/* ---- 1 items ---- */

typedef struct item {
    const char *question;
    const char *choices[CHOICES];
    int64_t answer;
} item;

static mb_status get_answer(const json_t *value, int64_t *out_answer)
{
    mb_status status = MB_OK;
    const char *text = json_string_value(value);
    *out_answer = json_is_integer(value) ? json_integer_value(value) : -1;
    if (text != NULL && text[0] != 0 && text[1] == 0)
        *out_answer = text[0] >= 'A' ? text[0] - 'A' : text[0] - '0';
    if (*out_answer < 0 || *out_answer >= CHOICES)
        MB_RAISE(MB_EDATA, "its answer is none of A, B, C, D (or 0 to 3)");
done:
    return status;
}

/* CSV row: question, four choices, answer. JSON: question, choices, answer. */
static mb_status read_item(const json_t *record, item *out_item)
{
    mb_status status = MB_OK;
    const bool is_row = json_object_get(record, "0") != NULL;
    const json_t *choices = json_object_get(record, "choices");
    if (is_row && json_object_size(record) != CHOICES + 2)
        MB_RAISE(MB_EDATA, "has %zu fields; a row is question, A, B, C, D, answer", json_object_size(record));
    if (!is_row && json_array_size(choices) != CHOICES)
        MB_RAISE(MB_EDATA, "field \"choices\" is no list of four texts");
    MB_TRY(mb_tasks_build_text(record, is_row ? "0" : "question", &out_item->question));
    for (int i = 0; i < CHOICES; i++) {
        const char name[2] = {(char)('1' + i), 0};
        out_item->choices[i] =
            json_string_value(is_row ? json_object_get(record, name) : json_array_get(choices, (size_t)i));
        if (out_item->choices[i] == NULL) MB_RAISE(MB_EDATA, "choice %s is no text", letters[i]);
    }
    MB_TRY(get_answer(json_object_get(record, is_row ? "5" : "answer"), &out_item->answer));
done:
    return status;
}

static mb_status add_item(const item *one, mb_str *s)
{
    mb_status status = MB_OK;
    const char *question = one->question;
    size_t n = strlen(question);
    mb_dialog_text_strip(&question, &n);
    MB_TRY(mb_str_append(s, question, n));
    for (int i = 0; i < CHOICES; i++) MB_TRY(mb_str_add_format(s, "\n%s. %s", letters[i], one->choices[i]));
    MB_TRY(mb_str_add(s, "\nAnswer:"));
done:
    return status;
}

/* ---- 2 examples ---- */

static mb_status find_subject(reader *r, const json_t *record, subject **out_subject)
{
    mb_status status = MB_OK;
    const char *name = r->subject;
    if (name == NULL) MB_TRY(mb_tasks_build_text(record, "subject", &name));
    for (int64_t i = r->count - 1; i >= 0; i--)
        if (strcmp(r->subjects[i].name, name) == 0) {
            *out_subject = &r->subjects[i];
            return MB_OK;
        }
    subject *subjects = mb_realloc(r->subjects, (size_t)r->count + 1, sizeof *subjects);
    if (subjects == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld subjects", (long long)r->count);
    r->subjects = subjects;
    subjects[r->count] = (subject){.name = mb_strdup(name)};
    if (subjects[r->count].name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a subject");
    *out_subject = &subjects[r->count++];
done:
    return status;
}

static mb_status add_example(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on)
{
    mb_status status = MB_OK;
    reader *r = (reader *)build;
    subject *about;
    item one;
    (void)index, (void)io_go_on;
    MB_TRY(find_subject(r, record, &about));
    if (about->example_count >= r->fewshot) goto done;
    MB_TRY(read_item(record, &one));
    MB_TRY(add_item(&one, &about->examples));
    MB_TRY(mb_str_add_format(&about->examples, " %s\n\n", letters[one.answer]));
    about->example_count++;
done:
    return status;
}

/* ---- 3 questions ---- */

static mb_status add_description(const char *name, mb_str *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add(s, "The following are multiple choice questions (with answers) about "));
    const size_t first = s->length;
    MB_TRY(mb_str_add_format(s, "%s.\n\n", name));
    for (size_t i = first; i < s->length; i++)
        if (s->data[i] == '_') s->data[i] = ' ';
done:
    return status;
}

static mb_status add_question(mb_tasks_build *build, const json_t *record, int64_t index, bool *io_go_on)
{
    mb_status status = MB_OK;
    reader *r = (reader *)build;
    mb_str s = MB_STR_EMPTY;
    subject *about;
    item one;
    (void)index, (void)io_go_on;
    MB_TRY(find_subject(r, record, &about));
    if (build->limit > 0 && about->question_count >= build->limit) goto done;
    if (about->example_count < r->fewshot)
        MB_RAISE(MB_EDATA, "subject %s has %lld examples, %lld are asked for (fewshot)", about->name,
                 (long long)about->example_count, (long long)r->fewshot);
    MB_TRY(read_item(record, &one));
    MB_TRY(add_description(about->name, &s));
    MB_TRY(mb_str_append(&s, mb_str_text(&about->examples), about->examples.length));
    MB_TRY(add_item(&one, &s));
    MB_TRY(mb_tasks_build_question(build, mb_str_text(&s), about->question_count++));
    for (int i = 0; i < CHOICES; i++) MB_TRY(mb_tasks_build_choice(build, letters[i]));
    mb_task_question *question = &build->task->questions[build->task->count - 1];
    question->gold = one.answer;
    question->group = mb_strdup(about->name);
    if (question->group == NULL) MB_RAISE(MB_ENOMEM, "no memory for a subject");
done:
    mb_str_destroy(&s);
    return status;
}

/* ---- 4 files ---- */

/* The first of the two paths that is a file; NULL when neither is. */
static mb_status pick(char *first, char *second, char **out_path)
{
    const bool no_memory = first == NULL || second == NULL;
    *out_path = NULL;
    if (!no_memory && mb_files_is_file(first)) {
        *out_path = first;
        first = NULL;
    } else if (!no_memory && mb_files_is_file(second)) {
        *out_path = second;
        second = NULL;
    }
    mb_free(first);
    mb_free(second);
    return no_memory ? mb_fail(MB_ENOMEM, "no memory for the name of a file") : MB_OK;
}

static mb_status read_subject(reader *r, const char *folder, const char *test_folder, const char *file_name)
{
    mb_status status = MB_OK;
    char *dev = NULL;
    const size_t n = strlen(file_name) - strlen("_test.csv");
    char *name = mb_strndup(file_name, n);
    char *test = mb_files_join(test_folder, file_name);
    if (name == NULL || test == NULL) MB_RAISE(MB_ENOMEM, "no memory for the name of a file");
    MB_TRY(pick(mb_str_format("%s/%s_dev.csv", folder, name),
                mb_str_format("%s/dev/%s_dev.csv", folder, name), &dev));
    if (dev == NULL && r->fewshot > 0)
        MB_RAISE(MB_ENOTFOUND, "%s: %s_dev.csv with the examples of this subject is missing", folder, name);
    r->subject = name;
    if (r->fewshot > 0) MB_TRY(mb_tasks_build_read(&r->build, dev, true, add_example));
    MB_TRY(mb_tasks_build_read(&r->build, test, true, add_question));
done:
    mb_free(name);
    mb_free(test);
    mb_free(dev);
    return status;
}

static mb_status read_csv_folder(reader *r, const char *folder)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t count = 0, found = 0;
    char *inner = mb_files_join(folder, "test");
    if (inner == NULL) MB_RAISE(MB_ENOMEM, "no memory for the name of a folder");
    const char *test_folder = mb_files_is_folder(inner) ? inner : folder;
    MB_TRY(mb_files_list(test_folder, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        if (!mb_str_is_suffix(names[i], "_test.csv")) continue;
        MB_TRY(read_subject(r, folder, test_folder, names[i]));
        found++;
    }
    if (found == 0)
        MB_RAISE(MB_ENOTFOUND,
                 "%s: holds neither <subject>_test.csv files nor test.jsonl; see datasets/fetch.md for MMLU",
                 test_folder);
done:
    mb_files_free_names(&names, count);
    mb_free(inner);
    return status;
}

/* A file with a subject in every record; its examples lie beside it, "dev" standing in its name where "test"
 * does. */
static mb_status read_jsonl(reader *r, const char *path)
{
    mb_status status = MB_OK;
    char *dev = NULL;
    const char *slash = strrchr(path, '/');
    const char *mark = strstr(slash != NULL ? slash : path, "test");
    if (r->fewshot > 0) {
        if (mark != NULL) dev = mb_str_format("%.*sdev%s", (int)(mark - path), path, mark + 4);
        if (dev == NULL || !mb_files_is_file(dev))
            MB_RAISE(MB_ENOTFOUND,
                     "%s: the examples are missing: a file of the same name with \"dev\" instead of \"test\"",
                     path);
        MB_TRY(mb_tasks_build_read(&r->build, dev, false, add_example));
    }
    MB_TRY(mb_tasks_build_read(&r->build, path, false, add_question));
done:
    mb_free(dev);
    return status;
}

static mb_status read_path(reader *r, const char *path)
{
    mb_status status = MB_OK;
    char *file = NULL;
    if (!mb_files_is_folder(path)) return read_jsonl(r, path);
    MB_TRY(pick(mb_files_join(path, "test.jsonl"), mb_files_join(path, "test.jsonl.gz"), &file));
    MB_TRY(file != NULL ? read_jsonl(r, file) : read_csv_folder(r, path));
done:
    mb_free(file);
    return status;
}

mb_status mb_tasks_mmlu_read(mb_tasks_build *build, const char *path, int64_t fewshot)
{
    reader r = {.build = *build, .fewshot = fewshot};
    const mb_status status = read_path(&r, path);
    for (int64_t i = 0; i < r.count; i++) {
        mb_free(r.subjects[i].name);
        mb_str_destroy(&r.subjects[i].examples);
    }
    mb_free(r.subjects);
    *build = r.build;
    return status;
}
