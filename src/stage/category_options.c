/* category_options: see the header.
 *
 * Contents: 1. the table  2. files  3. rules
 */
#include "stage/category_options.h"

#include <string.h>

#include "base/files.h"
#include "base/memory.h"

/* ---- 1. the table ---- */

static const mb_option options[] = {
    MB_OPTION_JSON(mb_category_program, files, "eval.categories", NULL,
                   "category files for perplexity and accuracy: name=path,name=path or a list of groups "
                   "{ name, path, form, fields, match }",
                   "categories"),
    MB_OPTION_TEXT(
        mb_category_program, tmpl, "eval.template", "auto", NULL,
        "eval.categories: chat template; auto: the tokenizer folder's own, lines where it has none", NULL),
    MB_OPTION_TEXT(mb_category_program, template_dir, "dataset.template_dir", "conf/template", NULL,
                   "folder of the template files", NULL),
    MB_OPTION_TEXT(mb_category_program, match, "eval.match", "text", "text|number",
                   "eval.categories: an answer is right when its normalised text, or its last number, is the "
                   "expected one",
                   NULL),
    MB_OPTION_TEXT(mb_category_program, choice_by, "eval.choice_by", "sum", "sum|character|byte",
                   "eval.categories: a choice is picked by its log-probability, or by that per character or "
                   "per byte",
                   NULL),
    MB_OPTION_BOOL(mb_category_program, generate, "eval.generate", "true",
                   "eval.categories: let the model answer, for accuracy; false: perplexity and choices only",
                   NULL),
    MB_OPTION_INT(mb_category_program, max_new_tokens, "eval.max_new_tokens", "128", 1, 1 << 24, "tokens",
                  "eval.categories: longest answer", NULL),
    MB_OPTION_TEXT(mb_category_program, stop, "eval.stop", NULL, NULL,
                   "eval.categories: where an answer ends: a JSON list of strings, or one string", NULL),
    MB_OPTION_INT(mb_category_program, batch_sequences, "eval.batch_sequences", "64", 1, 1 << 20, "answers",
                  "eval.categories: generated at a time", NULL),
    MB_OPTION_INT(mb_category_program, speed_tokens, "eval.speed_tokens", "32", 0, 4096, "tokens",
                  "eval.categories: decoded behind each of eval.batch_sequences prompts, twice, to measure "
                  "the speed at one length whatever the answers are; 0: not",
                  NULL),
    MB_OPTION_JSON(mb_category_program, inputs, "compare.inputs", NULL,
                   "mode compare: folders of evaluations with eval.categories: name=folder,name=folder or a "
                   "list of groups { name, path }",
                   "compare.models"),
    MB_OPTION_TEXT(mb_category_program, baseline, "compare.baseline", NULL, NULL,
                   "mode compare: the model that others are compared with; default: the first", NULL),
    MB_OPTION_INT(mb_category_program, draws, "compare.draws", "10000", 100, 1e7, "",
                  "mode compare: draws of the bootstrap", NULL),
    MB_OPTION_INT(mb_category_program, seed, "compare.seed", "42", 0, 9e18, "",
                  "mode compare: seed of the draws", NULL),
    MB_OPTION_REAL(mb_category_program, level, "compare.level", "0.95", 0.5, 0.9999, "share",
                   "mode compare: what the intervals hold of the draws", NULL),
};

const mb_option *mb_category_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options / sizeof *options);
    return options;
}

/* ---- 2. files ---- */

enum { MATCH = 2 }; /* among the further members */

mb_status mb_category_options_files(const mb_category_program *program, mb_named_paths *out_files)
{
    static const char *const further[] = {"form", "fields", [MATCH] = "match"};
    mb_status status = MB_OK;
    mb_named_paths files = {0};
    mb_answer_match match;
    MB_TRY(mb_named_paths_read("eval.categories", program->files, further, 3, &files));
    for (int64_t i = 0; i < files.count; i++) {
        const mb_named_path *file = &files.item[i];
        if (!mb_files_is_file(file->path))
            MB_RAISE(MB_ENOTFOUND, "%s: no such file (eval.categories, '%s')", file->path, file->name);
        if (mb_str_equal(file->name, "categories") || mb_str_equal(file->name, "provenance") ||
            mb_str_equal(file->name, "mean"))
            MB_RAISE(MB_EUSAGE, "eval.categories: a category cannot be called '%s'", file->name);
        MB_TRY(mb_category_options_match(program, file, &match));
    }
    *out_files = files;
    files = (mb_named_paths){0};
done:
    mb_named_paths_reset(&files);
    return status;
}

/* ---- 3. rules ---- */

mb_status mb_category_options_match(const mb_category_program *program, const mb_named_path *file,
                                    mb_answer_match *out_match)
{
    const char *own = file->more[MATCH];
    mb_status status = mb_answer_match_parse(own != NULL ? own : program->match, out_match);
    if (status != MB_OK) mb_status_prefix("eval.categories, '%s': ", file->name);
    return status;
}

mb_category_by mb_category_options_by(const mb_category_program *program)
{
    if (mb_str_equal(program->choice_by, "character")) return MB_CATEGORY_BY_CHARACTER;
    return mb_str_equal(program->choice_by, "byte") ? MB_CATEGORY_BY_BYTE : MB_CATEGORY_BY_SUM;
}

char *mb_category_options_judged_by(const mb_category_program *program, mb_answer_match match)
{
    const char *stop = program->stop != NULL ? program->stop : "";
    if (!program->generate) return mb_str_format("choice_by=%s", program->choice_by);
    return mb_str_format("choice_by=%s match=%s max_new_tokens=%lld stop=%s", program->choice_by,
                         mb_answer_match_name(match), (long long)program->max_new_tokens, stop);
}
