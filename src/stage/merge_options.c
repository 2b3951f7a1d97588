/* merge_options.c: the table. */
#include "stage/merge_options.h"

static const mb_option table[] = {
    MB_OPTION_JSON(mb_merge_program, inputs, "merge.inputs", NULL,
                   "mode merge: benchmarks, files or folders: name=path,name=path, or a list of groups "
                   "{ name, path, format, fields, few_shot }; the name becomes the questions' source",
                   NULL),
    MB_OPTION_TEXT(mb_merge_program, format, "merge.format", "auto", MB_MERGE_FORMATS,
                   "form of the inputs that name none; auto: by what their first record has", NULL),
    MB_OPTION_TEXT(
        mb_merge_program, fields, "merge.fields", NULL, NULL,
        "format mapped: which member is what: question=,options=,answer= (letter, label, number or "
        "list) or answer_text=, and passage=, subject=, first=0|1; options: a list, or a+b+c; "
        "without options a question is cloze",
        NULL),
    MB_OPTION_INT(mb_merge_program, few_shot, "merge.few_shot", "5", 0, 100, "examples",
                  "solved examples kept with every question, where the benchmark brings some (MMLU's "
                  "<subject>_dev.csv, AGIEval's few_shot_prompts.csv, an input's few_shot = file)",
                  NULL),
    MB_OPTION_BOOL(mb_merge_program, support, "merge.support", "true",
                   "SciQ: put the supporting paragraph in front of the question", NULL),
    MB_OPTION_TEXT(
        mb_merge_program, on_bad, "merge.on_bad", "skip", "skip|fail",
        "records that are no question: leave out, count and list in bad.jsonl, or fail at the first", NULL),
    MB_OPTION_TEXT(
        mb_merge_program, duplicates, "merge.duplicates", "options", "options|order|question",
        "what makes two questions the same, case, white space and marks at the end aside: text and "
        "options in any order; text and options in their order; the text alone",
        NULL),
    MB_OPTION_TEXT(mb_merge_program, questions, "questions.path", NULL, NULL,
                   "modes split, without, records: a file of questions in moe-merge's form, or its folder",
                   NULL),
    MB_OPTION_JSON(
        mb_merge_program, parts, "split.parts", "train=0.8,test=0.2",
        "mode split: name=share, or name=share:source:source for a part of these sources alone; or "
        "a list of groups { name, share, sources }; what the shares leave goes to no part",
        NULL),
    MB_OPTION_INT(mb_merge_program, seed, "split.seed", "42", 0, 9e15, "",
                  "which question goes to which part", NULL),
    MB_OPTION_BOOL(
        mb_merge_program, keep_shared, "split.keep_shared", "false",
        "keep questions in parts of all sources whose text also stands in a part of named sources; "
        "else they are left out and counted",
        NULL),
    MB_OPTION_JSON(
        mb_merge_program, without, "without.inputs", NULL,
        "mode without: files whose questions are to be left out: name=path,..., of any format that "
        "mode merge reads",
        NULL),
    MB_OPTION_TEXT(mb_merge_program, by, "without.by", "question", "question|options",
                   "mode without: questions are the same by their text alone, or by text and options", NULL),
    MB_OPTION_TEXT(
        mb_merge_program, style, "records.style", "letters", "letters|texts",
        "mode records: options listed and answered by a letter, or not listed and answered by their "
        "text",
        NULL),
    MB_OPTION_INT(mb_merge_program, record_few_shot, "records.few_shot", "0", 0, 100, "examples",
                  "mode records: solved examples in front of every question", NULL),
    MB_OPTION_TEXT(mb_merge_program, text, "records.text", "question", "question|options|prompt",
                   "mode records: what the member text holds, for embedding: the question, with its options, "
                   "or the whole prompt",
                   NULL),
};

const mb_option *mb_merge_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof *table);
    return table;
}
