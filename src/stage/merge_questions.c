/* merge_questions.c: see the header. */
#include "stage/merge_questions.h"

#include "base/files.h"
#include "base/memory.h"
#include "text/records.h"

mb_status mb_merge_questions_find(const char *path, char **out_path)
{
    mb_status status = MB_OK;
    char *found = NULL;
    if (path == NULL)
        MB_RAISE(MB_EUSAGE,
                 "questions.path is missing: the questions.jsonl of moe-merge merge, or its folder");
    found = mb_files_is_folder(path) ? mb_files_join(path, "questions.jsonl") : mb_strdup(path);
    if (found == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (!mb_files_is_file(found))
        MB_RAISE(MB_ENOTFOUND, "questions.path: %s: there is no such file; moe-merge merge writes it", found);
    *out_path = found;
    found = NULL;
done:
    mb_free(found);
    return status;
}

/* The file is read once more for its lines; no record of it is bad, or it would not be open. */
mb_status mb_merge_questions_each(const mb_questions *questions, mb_merge_questions_take take, void *own)
{
    mb_status status = MB_OK;
    const char *path = mb_questions_path(questions);
    mb_records *records = NULL;
    mb_record record;
    MB_TRY(mb_records_open(path, 0, &records));
    for (int64_t i = 0; i < mb_questions_count(questions); i++) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL || record.json == NULL)
            MB_RAISE(MB_EIO, "%s: the file changed while it was read", path);
        MB_TRY(take(own, i, mb_questions_at(questions, i), record.bytes, record.length));
    }
done:
    mb_records_close(&records);
    return status;
}

mb_status mb_merge_questions_write(const mb_program *program, const char *name, const mb_str *text)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(program, name);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_files_write(path, mb_str_text(text), text->length));
done:
    mb_free(path);
    return status;
}

mb_status mb_merge_questions_count(json_t *counts, const char *key, int64_t n)
{
    return mb_json_set(counts, key, json_integer(json_integer_value(json_object_get(counts, key)) + n));
}
